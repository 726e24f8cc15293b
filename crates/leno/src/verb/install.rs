//! `leno install` and `leno upgrade`: the mesh into a Kubernetes cluster, as istioctl does it.

use std::process::ExitCode;
use std::time::Duration;

use leno_control::server::parse_duration;

use crate::cli::Failure;
use crate::install::cluster::{Cluster, Where};
use crate::install::operator::Operator;
use crate::install::progress::Progress;
use crate::install::{What, apply, block_on, confirm, manifest};
use crate::out::outln;

/// The oldest Kubernetes that has all that is installed.
const OLDEST: (u32, u32) = (1, 29);

/// Installs the control plane and gateways that a profile, files and settings ask for, waits until they
/// run, and takes away what an earlier installation of that name had and this one has not.
#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    place: Where,
    /// Do not ask
    #[arg(short = 'y', long = "skip-confirmation")]
    yes: bool,
    /// Say what would be installed, and change nothing
    #[arg(long = "dry-run")]
    dry_run: bool,
    /// How long to wait for each component to run
    #[arg(long = "readiness-timeout", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    patience: Duration,
    /// Check afterwards that everything is there
    #[arg(long = "verify")]
    verify: bool,
}

/// As install; what is not said is as it was installed.
#[derive(Debug, clap::Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    install: Install,
}

impl Install {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Ok(block_on(self.go(false))?)
    }

    async fn go(self, upgrade: bool) -> anyhow::Result<ExitCode> {
        let inputs = self.what.inputs()?;
        let mut operator = Operator::read(&inputs)?;
        let mut rendered = manifest::render(&operator)?;
        // What is printed needs no cluster.
        if self.dry_run && !upgrade {
            return Ok(say(&operator, &rendered));
        }
        let cluster = Cluster::new(&self.place).await?;
        if upgrade {
            let before = apply::installed(&cluster, &operator.namespace, &operator.revision).await?;
            let Some(before) = before else {
                anyhow::bail!(
                    "there is no installation of revision {:?} in {} to upgrade: use `leno install`",
                    operator.revision_label(),
                    operator.namespace,
                );
            };
            if self.what.is_empty() {
                operator = again(before);
                rendered = manifest::render(&operator)?;
            }
            if self.dry_run {
                return Ok(say(&operator, &rendered));
            }
        }
        let (major, minor) = cluster.version().await?;
        if (major, minor) < OLDEST && !self.yes {
            eprintln!("warning: Kubernetes {major}.{minor} is older than {}.{}", OLDEST.0, OLDEST.1);
        }
        let question = format!(
            "This will install the Leno {} profile {:?} into the cluster. Proceed?",
            env!("CARGO_PKG_VERSION"),
            operator.profile,
        );
        if !self.yes && !confirm(&question)? {
            outln!("Cancelled.");
            return Ok(ExitCode::FAILURE);
        }
        let mut progress = Progress::new(false);
        apply::install(&cluster, &operator, &rendered, self.patience, &mut progress).await?;
        progress.done("Installation complete");
        if self.verify {
            return super::verify_install::verify(&cluster, &rendered).await;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Upgrade {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Ok(block_on(self.install.go(true))?)
    }
}

/// What was installed, with the images of this program: those that were not chosen.
fn again(mut before: Operator) -> Operator {
    let default = crate::install::charts::profile("default").unwrap_or_default();
    let own = |name: &str| crate::install::tree::text(&default, &format!("spec.{name}"));
    let was_ours = |hub: &str| hub == own("hub");
    if was_ours(&crate::install::tree::text(&before.spec, "values.global.hub")) {
        let tag = serde_json::Value::from(own("tag"));
        crate::install::operator::merge_at(&mut before.spec, "values.global.tag", tag);
    }
    before
}

/// Says what would be installed.
fn say(operator: &Operator, rendered: &[manifest::Rendered]) -> ExitCode {
    outln!(
        "Profile {:?}, revision {:?}, namespace {}:",
        operator.profile,
        operator.revision_label(),
        operator.namespace
    );
    for one in rendered {
        outln!("{}:", one.component.kind.title());
        for object in &one.objects {
            outln!("  {}", manifest::Id::of(object));
        }
    }
    outln!("Nothing was changed (--dry-run).");
    ExitCode::SUCCESS
}

/// A duration as Go writes it: `30s`, `5m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is no duration such as 30s or 5m"))
}
