//! `leno uninstall`: what was installed out of a Kubernetes cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;

use crate::cli::Failure;
use crate::install::apply::{self, Target};
use crate::install::cluster::{Cluster, Where};
use crate::install::manifest::Id;
use crate::install::operator::{Inputs, Operator};
use crate::install::progress::Progress;
use crate::install::{block_on, confirm};
use crate::out::outln;

/// Takes away a control plane with its gateways; what users have made stays, but with --purge.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // they are istioctl's flags
pub(crate) struct Uninstall {
    /// All control planes, and the kinds with all objects of them
    #[arg(long = "purge")]
    purge: bool,
    /// The revision of the control plane; `default` is the one without a name
    #[arg(short = 'r', long = "revision", value_name = "NAME")]
    revision: Option<String>,
    /// The IstioOperator that was installed
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set a field of the IstioOperator's spec; only `revision=NAME` matters here
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// The namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", visible_alias = "namespace", value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    place: Where,
    /// Do not ask
    #[arg(short = 'y', long = "skip-confirmation")]
    yes: bool,
    /// Say what would be taken away, and change nothing
    #[arg(long = "dry-run")]
    dry_run: bool,
    /// Go on in spite of settings that are not known
    #[arg(long = "force")]
    force: bool,
    /// Name every object
    #[arg(short = 'v', long = "verbose")]
    verbose: bool,
}

impl Uninstall {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Ok(block_on(self.go())?)
    }

    async fn go(self) -> anyhow::Result<ExitCode> {
        let set_revision = self.set.iter().any(|text| text.starts_with("revision="));
        if self.revision.is_none() && !set_revision && self.file.is_none() && !self.purge {
            bail!(
                "at least one of the --revision (or --set revision=<revision>), --filename or --purge flags must be set"
            );
        }
        let inputs = Inputs {
            files: self.file.iter().cloned().collect(),
            set: self.set.clone(),
            revision: self.revision.clone(),
            namespace: self.namespace.clone(),
            force: self.force,
        };
        let operator = Operator::read(&inputs)?;
        let cluster = Cluster::new(&self.place).await?;
        let revision = operator.revision_label().to_owned();
        let target = if self.purge {
            if self.revision.is_some() || self.file.is_some() {
                eprintln!(
                    "Purge uninstall will remove all Leno resources, ignoring the specified revision or operator file"
                );
            }
            Target::Everything
        } else if self.file.is_some() {
            Target::Installation(operator.name.clone(), operator.namespace.clone(), revision.clone())
        } else {
            if !apply::revisions(&cluster).await?.contains(&revision) {
                bail!("could not find target revision {revision:?}");
            }
            Target::Revision(revision.clone())
        };
        let objects = apply::find(&cluster, &target).await?;
        let ids: Vec<Id> = objects.iter().map(Id::of).collect();
        if objects.is_empty() && !self.purge {
            outln!("No resources will be pruned from the cluster. Please double check the input configs");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run || self.verbose {
            outln!("The following resources will be pruned from the cluster:");
            ids.iter().for_each(|id| outln!("  {id}"));
        }
        if self.dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        let is_gateway = |id: &&Id| id.kind == "Deployment" && !id.name.starts_with("istiod");
        let gateways: Vec<&str> = ids.iter().filter(is_gateway).map(|id| id.name.as_str()).collect();
        let mut question = String::new();
        if self.purge {
            question.push_str("All Leno resources will be pruned from the cluster\n");
        } else if !gateways.is_empty() {
            question = format!(
                "You are about to remove the following gateways: {}. To avoid downtime, please quit this command and \
                 reinstall the gateway(s) with a revision that is not being removed from the cluster.\n",
                gateways.join(", "),
            );
        } else {
            question = format!("The control plane {revision:?} will be removed from the cluster\n");
        }
        if !self.yes && !confirm(&format!("{question}Proceed?"))? {
            outln!("Cancelled.");
            return Ok(ExitCode::FAILURE);
        }
        let mut progress = Progress::new(self.verbose);
        apply::uninstall(&cluster, &objects, &target, &operator.namespace, &mut progress).await?;
        progress.done("Uninstall complete");
        Ok(ExitCode::SUCCESS)
    }
}
