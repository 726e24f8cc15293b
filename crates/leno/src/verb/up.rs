//! `leno up`: its flags. What it does is in `crate::up`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Failure;

/// Runs the Deployments, Services and gateways of folders of Kubernetes and Istio YAML as local
/// processes, each replica with an address and, where its namespace asks for it, a sidecar of its
/// own. Edited files take effect at once. Ctrl-C ends it and leaves nothing behind.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Up {
    /// Folders or files of Kubernetes and Istio YAML; of a folder, the files directly in it
    #[arg(required = true, value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
    /// Run containers of an image by a local command: NAME is the image with or without its tag,
    /// or the last part of its name; COMMAND stands for its entry point and the container's
    /// `command`, to which `args` are appended. May be repeated
    #[arg(long = "image", value_name = "NAME=COMMAND", value_parser = image)]
    pub(crate) images: Vec<(String, String)>,
    /// Whose proxy to use: `leno`, or Envoy's binary as `envoy=PATH`
    #[arg(long, value_name = "leno|envoy=PATH", default_value = "leno", value_parser = proxy)]
    pub(crate) proxy: ProxyProgram,
    /// The address of this machine that ports of gateways and of admin interfaces are published on
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) address: IpAddr,
    /// Do without network namespaces: replicas get addresses 127.x.y.z and send to their sidecar by
    /// `http_proxy`
    #[arg(long)]
    pub(crate) no_namespaces: bool,
    /// Where to keep runtime files instead of in a folder that ends with the mesh
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The mesh's name, for running several at a time
    #[arg(long, default_value = "mesh", value_parser = name)]
    pub(crate) name: String,
    /// The log level of sidecars and gateways
    #[arg(long, default_value = "warning")]
    pub(crate) proxy_log_level: String,
    /// Plain lines, also on a terminal
    #[arg(long)]
    pub(crate) plain: bool,
}

/// Which program sidecars and gateways are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProxyProgram {
    /// This one.
    Leno,
    /// Envoy, or another that has its command line.
    Envoy(PathBuf),
}

impl Up {
    #[cfg(target_os = "linux")]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Ok(crate::up::run(self)?)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Err(Failure::Error(anyhow::anyhow!("leno up needs Linux so far")))
    }
}

fn image(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.is_empty() && !command.trim().is_empty() => {
            Ok((name.to_owned(), command.to_owned()))
        }
        _ => Err("it has the form NAME=COMMAND".to_owned()),
    }
}

fn proxy(text: &str) -> Result<ProxyProgram, String> {
    match text.split_once('=') {
        None if text == "leno" => Ok(ProxyProgram::Leno),
        Some(("envoy", path)) if !path.is_empty() => Ok(ProxyProgram::Envoy(path.into())),
        _ => Err("it is `leno` or `envoy=PATH`".to_owned()),
    }
}

/// The name becomes part of a path and of node metadata.
fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !text.is_empty() && text.len() <= 40 && text.chars().all(fits) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err("up to 40 of a-z, 0-9 and - are allowed".to_owned())
}
