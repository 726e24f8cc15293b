//! `leno manifest`: what would be installed, as YAML.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;

use super::install::Install;
use crate::cli::Failure;
use crate::install::component::{Component, Kind, RELEASE};
use crate::install::operator::Operator;
use crate::install::{What, diff, manifest};
use crate::out::{out, outln};

/// Prints and compares what is installed.
#[derive(Debug, clap::Args)]
pub(crate) struct Manifest {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant)] // one exists per process
enum Verb {
    /// Print the objects that would be installed
    Generate(Generate),
    /// Compare two manifests, object by object; the exit code is 1 if they differ
    Diff(Diff),
    /// As `leno install`
    Install(Install),
    /// Say how Helm would install the same
    Translate(Translate),
}

#[derive(Debug, clap::Args)]
struct Generate {
    #[command(flatten)]
    what: What,
    /// Print objects of these components only, as Base or Pilot
    #[arg(long = "component", visible_alias = "filter", value_name = "NAME", value_delimiter = ',')]
    components: Vec<String>,
    /// Write a file for each component into this folder, in place of printing
    #[arg(short = 'o', long = "output", value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Diff {
    /// A file, or a folder of YAML
    #[arg(value_name = "FILE")]
    left: PathBuf,
    /// What to compare it with
    #[arg(value_name = "FILE")]
    right: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Translate {
    #[command(flatten)]
    what: What,
    /// Where to write the values of each chart
    #[arg(short = 'o', long = "output", value_name = "DIR", default_value = ".")]
    output: PathBuf,
}

impl Manifest {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.verb {
            Verb::Generate(verb) => Ok(verb.run()?),
            Verb::Diff(verb) => Ok(verb.run()?),
            Verb::Install(verb) => verb.run(),
            Verb::Translate(verb) => Ok(verb.run()?),
        }
    }
}

impl Generate {
    fn run(self) -> anyhow::Result<ExitCode> {
        let operator = Operator::read(&self.what.inputs()?)?;
        let mut rendered = manifest::render(&operator)?;
        let all: Vec<&str> = Kind::ALL.iter().map(|kind| kind.label()).collect();
        for name in &self.components {
            anyhow::ensure!(
                all.contains(&name.as_str()),
                "--component {name}: use one of {}",
                all.join(", ")
            );
        }
        if !self.components.is_empty() {
            rendered.retain(|one| self.components.iter().any(|name| name == one.component.kind.label()));
        }
        match &self.output {
            None => out!("{}", manifest::yaml(rendered.iter().flat_map(|one| &one.objects))),
            Some(folder) => {
                std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
                for kind in Kind::ALL {
                    let of_it = rendered.iter().filter(|one| one.component.kind == kind);
                    let text = manifest::yaml(of_it.flat_map(|one| &one.objects));
                    if !text.is_empty() {
                        let path = folder.join(format!("{}.yaml", kind.label()));
                        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Diff {
    fn run(self) -> anyhow::Result<ExitCode> {
        let lines = diff::compare(&diff::read(&self.left)?, &diff::read(&self.right)?);
        if lines.is_empty() {
            outln!("Manifests are identical");
            return Ok(ExitCode::SUCCESS);
        }
        outln!("Differences of manifests are:\n");
        lines.iter().for_each(|line| outln!("{line}"));
        Ok(ExitCode::FAILURE)
    }
}

impl Translate {
    fn run(self) -> anyhow::Result<ExitCode> {
        let operator = Operator::read(&self.what.inputs()?)?;
        std::fs::create_dir_all(&self.output).with_context(|| self.output.display().to_string())?;
        for one in manifest::render(&operator)? {
            let Component { kind, chart, namespace, values, kubernetes, workload, .. } = &one.component;
            let release = match kind {
                Kind::Base => "istio-base".to_owned(),
                Kind::Pilot => workload.1.clone(),
                Kind::Cni => "istio-cni".to_owned(),
                Kind::IngressGateways | Kind::EgressGateways => workload.1.clone(),
            };
            let path = self.output.join(format!("{release}-values.yaml"));
            std::fs::write(&path, leno_api::encode::yaml_blocks(values))
                .with_context(|| path.display().to_string())?;
            outln!(
                "helm upgrade --install {release} deploy/charts/{} --namespace {namespace} --create-namespace -f {}",
                chart.name(),
                path.display(),
            );
            if kubernetes.as_object().is_some_and(|settings| settings.values().any(|it| *it != Value::Null)) {
                outln!(
                    "# {}.k8s has no counterpart among values: patch what Helm has rendered",
                    one.component.path
                );
            }
        }
        outln!("# Labels differ: the release was {RELEASE:?}, and the installer's own are missing.");
        Ok(ExitCode::SUCCESS)
    }
}
