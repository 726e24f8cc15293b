//! `leno pilot`, also as `pilot-discovery discovery`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::cli::Failure;

/// Flags have the names of pilot-discovery's.
#[derive(Debug, clap::Args)]
pub(crate) struct Pilot {
    /// `discovery`, as pilot-discovery has it; the only thing to do, so it may be left out
    #[arg(value_parser = ["discovery"], hide_possible_values = true)]
    verb: Option<String>,
    /// A folder (or file) of Kubernetes and Istio YAML, watched; may be repeated
    #[arg(long = "dir", value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Where proxies connect to for xDS
    #[arg(long = "grpcAddr", alias = "grpc-addr", value_name = "ADDRESS", default_value = ":15010")]
    grpc_addr: String,
    /// Without effect: everything is served at --monitoringAddr
    #[arg(long = "httpAddr", alias = "http-addr", value_name = "ADDRESS", default_value = ":8080")]
    http_addr: String,
    /// Where /ready and /debug are served
    #[arg(
        long = "monitoringAddr",
        alias = "monitoring-addr",
        value_name = "ADDRESS",
        default_value = ":15014"
    )]
    monitoring_addr: String,
    /// Levels of the log, as `default:info,ads:debug`
    #[arg(
        long = "log_output_level",
        alias = "log-output-level",
        value_name = "LIST",
        default_value = "default:info"
    )]
    log_output_level: String,
}

impl Pilot {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let _ = self.verb;
        address("--httpAddr", &self.http_addr)?; // a typing error is one all the same
        start_log(&self.log_output_level)?;
        let mut config = leno_control::server::Config::new(self.dirs);
        config.grpc_addr = address("--grpcAddr", &self.grpc_addr)?;
        config.http_addr = address("--monitoringAddr", &self.monitoring_addr)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime
            .block_on(async {
                let mut terminate =
                    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
                let shutdown = async move {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = tokio::signal::ctrl_c() => {}
                    }
                };
                leno_control::server::run(config, shutdown).await
            })
            .map_err(anyhow::Error::from)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// An address as Go writes it: `:15010` is all addresses of the machine.
fn address(flag: &str, text: &str) -> anyhow::Result<SocketAddr> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().with_context(|| format!("{flag}: {text:?} is not ADDRESS:PORT"))
}

fn start_log(levels: &str) -> anyhow::Result<()> {
    let mut directives = Vec::new();
    for pair in levels.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (scope, level) = pair.split_once(':').unwrap_or(("default", pair));
        let level = match level {
            "none" => "off",
            "fatal" | "error" => "error",
            "warn" => "warn",
            "info" => "info",
            "debug" => "debug",
            "trace" => "trace",
            _ => bail!("--log_output_level: {pair:?} is not SCOPE:LEVEL"),
        };
        directives.push(match scope {
            "default" | "all" => format!("warn,leno={level},leno_control={level},leno_xds={level}"),
            scope => format!("leno_control::{scope}={level}"),
        });
    }
    let filter = tracing_subscriber::EnvFilter::try_new(directives.join(","))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses() {
        for (text, expected) in [
            (":15010", Some("0.0.0.0:15010")),
            ("10.244.0.1:15010", Some("10.244.0.1:15010")),
            ("[::1]:80", Some("[::1]:80")),
            ("localhost:80", None),
            ("15010", None),
        ] {
            assert_eq!(
                address("--grpcAddr", text).ok().map(|it| it.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
