//! The services of Leno's samples: `bookinfo` (four HTTP services) and `grpc` (a server and a client).
//!
//! One library with two front doors: the `leno` binary's hidden verb `leno sample ARGS...`, and the
//! `leno-samples` program that the container image holds. Both call [`run`]. The services know
//! nothing of a mesh: plain HTTP/1.1 and gRPC to names, which is the point of running them in one.
//!
//! Read next: `bookinfo/productpage.rs` for HTTP, `grpc/client.rs` for gRPC.

pub mod bookinfo;
mod call;
pub mod grpc;
mod headers;
mod http_server;
mod pod;
mod proxy;
mod shutdown;

use std::ffi::OsString;

use clap::{Args, FromArgMatches, Parser, Subcommand};
use tokio::net::TcpListener;

pub use call::{InvalidPeer, Peer};
pub use proxy::{InvalidProxy, OutboundProxy};
pub use shutdown::{Shutdown, Trigger};

#[derive(Parser)]
#[command(name = "sample", about = "The services of Leno's samples", version)]
struct Cli {
    #[command(subcommand)]
    sample: Sample,
}

#[derive(Subcommand)]
enum Sample {
    /// An online bookshop of four HTTP services
    #[command(subcommand)]
    Bookinfo(bookinfo::Command),
    /// A gRPC echo server, and a client that shows which replica answers
    #[command(subcommand)]
    Grpc(grpc::Command),
}

/// Runs one service of a sample until it ends, or until SIGTERM or SIGINT ask it to.
///
/// `args` are the verbs and options without the program's name: `["bookinfo", "reviews"]`.
/// As usual with clap, `--help` and a wrong usage print their text and end the process.
///
/// # Errors
///
/// When the address cannot be bound, when an environment variable makes no sense, and, for
/// `grpc client`, when calls failed.
pub fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let cli = parse(args).unwrap_or_else(|refused| refused.exit());
    // One thread does: a sample's work is waiting, and ten replicas share a laptop.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signal()?;
        match cli.sample {
            Sample::Bookinfo(command) => bookinfo::run(command, shutdown).await,
            Sample::Grpc(command) => grpc::run(command, shutdown).await,
        }
    })
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let command = <Cli as clap::CommandFactory>::command().no_binary_name(true);
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// Where a service listens.
#[derive(Args, Clone, Debug)]
struct Listen {
    /// The address to listen on, an IP address (`[::]` takes IPv4 too)
    #[arg(long, env = "LISTEN_ADDRESS", default_value = "0.0.0.0")]
    listen_address: String,
}

impl Listen {
    async fn bind(&self, service: &str, port: u16) -> anyhow::Result<TcpListener> {
        let text = self.listen_address.trim_start_matches('[').trim_end_matches(']');
        let address: std::net::IpAddr = text
            .parse()
            .map_err(|_| anyhow::anyhow!("LISTEN_ADDRESS: `{}` is not an IP address", self.listen_address))?;
        let listener = TcpListener::bind((address, port))
            .await
            .map_err(|error| anyhow::anyhow!("{service} cannot listen on {address} port {port}: {error}"))?;
        println!("{service} listens on {}", listener.local_addr()?);
        Ok(listener)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn verbs_parse_without_a_program_name() {
        for args in [
            &["bookinfo", "productpage"][..],
            &["bookinfo", "details", "9081"],
            &["bookinfo", "reviews"],
            &["bookinfo", "ratings", "--listen-address", "[::]"],
            &["grpc", "server"],
            &["grpc", "client", "--rps", "5", "--requests", "10", "--json"],
        ] {
            assert!(super::parse(args.iter().map(Into::into)).is_ok(), "{args:?}");
        }
        assert!(super::parse(["bookinfo", "billing"].map(Into::into)).is_err());
    }

    #[test]
    fn the_manifests_run_verbs_that_exist() {
        let bookinfo = include_str!("../../bookinfo/bookinfo.yaml");
        let grpc = [include_str!("../../grpc/echo.yaml"), include_str!("../../grpc/client.yaml")].concat();
        for (manifests, containers) in [(bookinfo, 6), (&grpc, 2)] {
            let args = manifests.lines().filter_map(|line| line.trim().strip_prefix("args: "));
            let args: Vec<Vec<String>> = args.map(|list| serde_json::from_str(list).unwrap()).collect();
            assert_eq!(args.len(), containers);
            for args in args {
                assert!(super::parse(args.iter().map(Into::into)).is_ok(), "{args:?}");
            }
        }
    }

    #[tokio::test]
    async fn listen_addresses() {
        for (address, works) in [("127.0.0.1", true), ("localhost", false), ("127.0.0.1:80", false)] {
            let listen = super::Listen { listen_address: address.to_owned() };
            assert_eq!(listen.bind("test", 0).await.is_ok(), works, "{address}");
        }
    }
}
