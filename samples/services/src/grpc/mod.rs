//! The gRPC sample: an echo server of several replicas, and a client that counts who answers.
//!
//! A client keeps one connection for ever. A plain Kubernetes Service balances connections, so all
//! its calls would go to one replica; a mesh balances requests, and the client's lines show it.

pub mod client;
pub mod server;

use clap::{Args, Subcommand};

use crate::pod::pod_name;
use crate::{Listen, OutboundProxy, Shutdown};

/// `leno.samples.echo.v1`, generated from `samples/grpc/echo.proto`.
#[allow(unused_qualifications, unreachable_pub, clippy::all, clippy::wildcard_imports)]
pub mod echo {
    tonic::include_proto!("leno.samples.echo.v1");
}

/// `grpc.health.v1`, generated from `proto/health.proto`.
#[allow(unused_qualifications, unreachable_pub, clippy::all, clippy::wildcard_imports)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// An end of the sample.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Answers Echo, Watch and Chat, and health checks
    Server {
        /// The port to listen on
        #[arg(env = "PORT", default_value_t = 7070)]
        port: u16,
        #[command(flatten)]
        listen: Listen,
        /// The version that replies name
        #[arg(long, env = "SERVICE_VERSION", default_value = "v1")]
        service_version: String,
    },
    /// Calls over one connection, and shows which replicas answer
    Client(ClientArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    options: client::Options,
    /// Print only the totals, as JSON; the lines of each second go to standard error
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(command: Command, shutdown: Shutdown) -> anyhow::Result<()> {
    match command {
        Command::Server { port, listen, service_version } => {
            let listener = listen.bind("echo", port).await?;
            let config = server::Config { hostname: pod_name(), version: service_version };
            server::serve(listener, config, shutdown).await?;
        }
        Command::Client(ClientArgs { options, json }) => {
            let say = |line: &str| if json { eprintln!("{line}") } else { println!("{line}") };
            let totals = client::run(&options, OutboundProxy::from_env()?, say, shutdown).await?;
            if json {
                println!("{}", serde_json::to_string(&totals)?);
            } else {
                println!("in all: {totals}");
            }
            anyhow::ensure!(totals.errors == 0, "{} of {} calls failed", totals.errors, totals.calls);
        }
    }
    Ok(())
}
