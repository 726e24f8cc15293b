//! Installing the mesh into a Kubernetes cluster, as istioctl does it.
//!
//! START HERE: `operator.rs` puts together what is asked for (profiles, files, `--set`) as one
//! IstioOperator, after `shape.rs` has refused what is not known; `component.rs` makes charts and values
//! of it; `manifest.rs` renders these (the charts of `deploy/charts`, which `charts.rs` has in the
//! binary) and lays over them what `overlay.rs` reads; `apply.rs` installs the objects, takes away what
//! is no longer wanted, and uninstalls; `wait.rs` waits and says why something does not run. `tag.rs` has
//! other names for control planes, `diff.rs` compares manifests, `tree.rs` is for trees of settings,
//! `cluster.rs` talks to the API server. The verbs are in `../verb/`: `install`, `uninstall`,
//! `verify_install`, `manifest`, `profile`, `tag`.

pub(crate) mod apply;
pub(crate) mod charts;
pub(crate) mod cluster;
pub(crate) mod component;
pub(crate) mod diff;
pub(crate) mod manifest;
pub(crate) mod operator;
mod overlay;
pub(crate) mod progress;
mod shape;
pub(crate) mod tag;
pub(crate) mod tree;
pub(crate) mod wait;

use std::io::{BufRead, Write};
use std::path::PathBuf;

use self::operator::Inputs;

/// What is to be installed, on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct What {
    /// A file with an IstioOperator, or with values of the Helm charts; may be repeated, later ones win
    #[arg(short = 'f', long = "filename", value_name = "FILE", value_delimiter = ',')]
    files: Vec<PathBuf>,
    /// Set a field of the IstioOperator's spec, as `profile=demo`, `values.global.tag=1.2`,
    /// `components.ingressGateways[name:istio-ingressgateway].enabled=false`; may be repeated
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// The name of the control plane, so that several can be in one cluster
    #[arg(short = 'r', long = "revision", value_name = "NAME")]
    revision: Option<String>,
    /// The namespace of the control plane, if nothing else says it
    #[arg(short = 'i', long = "istioNamespace", visible_alias = "namespace", value_name = "NAME")]
    namespace: Option<String>,
    /// Go on in spite of settings that are not known
    #[arg(long = "force")]
    force: bool,
    /// Not supported: the charts are in the program
    #[arg(short = 'd', long = "manifests", visible_alias = "charts", value_name = "DIR", hide = true)]
    manifests: Option<PathBuf>,
}

impl What {
    /// As it is read by [`operator::Operator::read`].
    ///
    /// # Errors
    /// If charts of somebody else are asked for.
    pub(crate) fn inputs(&self) -> anyhow::Result<Inputs> {
        anyhow::ensure!(
            self.manifests.is_none(),
            "--manifests is not supported: the charts are in the program"
        );
        Ok(Inputs {
            files: self.files.clone(),
            set: self.set.clone(),
            revision: self.revision.clone(),
            namespace: self.namespace.clone(),
            force: self.force,
        })
    }

    /// Whether nothing is said of what is to be installed.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.set.is_empty()
    }

    /// The revision that was named.
    pub(crate) fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The namespace that was named, or Istio's.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("istio-system")
    }
}

/// Asks; whether the answer was yes.
///
/// # Errors
/// If there is nobody to ask.
pub(crate) fn confirm(question: &str) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    write!(out, "{question} (y/N) ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES"))
}

/// Runs what talks to a cluster.
///
/// # Errors
/// As it does.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}
