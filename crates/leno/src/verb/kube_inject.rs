//! `leno kube-inject`: what the webhook would do to Pods, done to files.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use leno_control::inject::{BuiltIn, Injector, MeshSettings, Settings, manifest};

use crate::cli::Failure;
use crate::out::out;

/// Flags have the names of `istioctl kube-inject`; nothing is read from a cluster.
// Deviation: istioctl reads configuration that is not given from the cluster; here what is built in
// is used, so that the result is the same everywhere.
#[derive(Debug, clap::Args)]
pub(crate) struct KubeInject {
    /// Files of Kubernetes YAML, `-` for what is piped in
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    filenames: Vec<PathBuf>,
    /// Where the result is written; without it to the terminal
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Key `config` of the ConfigMap istio-sidecar-injector: policy and templates
    #[arg(long = "injectConfigFile", value_name = "FILE")]
    inject_config: Option<PathBuf>,
    /// Key `values` of the same ConfigMap
    #[arg(long = "valuesFile", value_name = "FILE")]
    values: Option<PathBuf>,
    /// MeshConfig, as in key `mesh` of the ConfigMap istio
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// The revision of the control plane
    #[arg(short = 'r', long = "revision", value_name = "NAME", default_value = "default")]
    revision: String,
    /// Whether proxies are native sidecars (init containers that keep running)
    #[arg(long = "native-sidecars", env = "ENABLE_NATIVE_SIDECARS", value_name = "BOOLEAN", default_value = "false",
          value_parser = clap::value_parser!(bool), action = clap::ArgAction::Set)]
    native: bool,
}

impl KubeInject {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut settings = BuiltIn::settings(&self.revision);
        if self.inject_config.is_some() || self.values.is_some() {
            let config = match &self.inject_config {
                Some(path) => leno_control::inject::Config::parse(&read(path)?)?,
                None => settings.config.clone(),
            };
            let values = match &self.values {
                Some(path) => Settings::parse("", &read(path)?, &self.revision)?.values,
                None => settings.values.clone(),
            };
            settings = Settings { config, values, revision: self.revision.clone() };
        }
        let mesh = match &self.mesh_config {
            Some(path) => MeshSettings::parse(&read(path)?)?,
            None => MeshSettings::default(),
        };
        let injector = Injector::new(settings, mesh)?;
        let mut out = String::new();
        for path in &self.filenames {
            let (text, warnings) = manifest::inject_text(&injector, &read(path)?, self.native)
                .with_context(|| path.display().to_string())?;
            for warning in warnings {
                eprintln!("{warning}");
            }
            out.push_str(&text);
        }
        match &self.output {
            Some(path) => std::fs::write(path, out).with_context(|| path.display().to_string())?,
            None => out!("{out}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
