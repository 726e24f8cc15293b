//! `leno pilot`, also as `pilot-discovery discovery`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use leno_control::server::Kubernetes;

use crate::cli::Failure;

/// Flags have the names of pilot-discovery's.
#[derive(Debug, clap::Args)]
pub(crate) struct Pilot {
    /// `discovery`, as pilot-discovery has it; the only thing to do, so it may be left out
    #[arg(value_parser = ["discovery"], hide_possible_values = true)]
    verb: Option<String>,
    /// A folder (or file) of Kubernetes and Istio YAML, watched; may be repeated. With one no cluster
    /// is read, unless --kubeconfig, --context or --registries says so
    #[arg(long = "dir", alias = "configDir", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// The kubeconfig of the cluster to read; without one what kubectl would use, or the service
    /// account of the Pod
    #[arg(long = "kubeconfig", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long = "context", value_name = "NAME")]
    context: Option<String>,
    /// Where services are read from beside the folders: Kubernetes, or nothing
    #[arg(long = "registries", value_name = "LIST", value_delimiter = ',')]
    registries: Option<Vec<String>>,
    /// The root namespace, of the ConfigMap `istio`
    #[arg(
        short = 'n',
        long = "namespace",
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "istio-system"
    )]
    namespace: String,
    /// Where proxies connect to for xDS
    #[arg(long = "grpcAddr", alias = "grpc-addr", value_name = "ADDRESS", default_value = ":15010")]
    grpc_addr: String,
    /// Write what is found wrong with objects of the cluster into their status
    #[arg(long = "writeStatus", env = "PILOT_ENABLE_ANALYSIS")]
    write_status: bool,
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
        let kubernetes = self.kubernetes()?;
        let mut config = leno_control::server::Config::new(self.dirs);
        config.grpc_addr = address("--grpcAddr", &self.grpc_addr)?;
        config.kubernetes = kubernetes;
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

impl Pilot {
    /// The cluster to read: if one is named, or asked for, or there is nothing else to read.
    fn kubernetes(&self) -> anyhow::Result<Option<Kubernetes>> {
        let mut asked = self.kubeconfig.is_some() || self.context.is_some();
        for registry in self.registries.iter().flatten().filter(|name| !name.is_empty()) {
            match registry.as_str() {
                "Kubernetes" => asked = true,
                other => bail!("--registries: {other:?} is not supported, use Kubernetes"),
            }
        }
        if !asked && (self.registries.is_some() || !self.dirs.is_empty()) {
            if self.dirs.is_empty() {
                bail!("nothing to read: neither --dir nor a registry");
            }
            return Ok(None);
        }
        Ok(Some(Kubernetes {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.namespace.clone(),
            write_status: self.write_status,
            identity: std::env::var("POD_NAME").unwrap_or_default(),
        }))
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
