//! `leno profile`: the profiles of installations.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::Failure;
use crate::install::operator::{Inputs, Operator, with_profile};
use crate::install::{What, charts, diff, manifest, tree};
use crate::out::{out, outln};

/// Lists, prints and compares profiles.
#[derive(Debug, clap::Args)]
pub(crate) struct Profile {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the profiles
    List,
    /// Print a profile, with what the default profile says too
    Dump(Dump),
    /// Compare two profiles; the exit code is 1 if they differ
    Diff(Diff),
}

#[derive(Debug, clap::Args)]
struct Dump {
    /// Its name, or a file
    #[arg(value_name = "PROFILE")]
    name: Option<String>,
    #[command(flatten)]
    what: What,
    /// Print what is at this path of the spec only, as `components.pilot`
    #[arg(short = 'p', long = "config-path", value_name = "PATH")]
    path: Option<String>,
    /// yaml or json
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "yaml", value_parser = ["yaml", "json"])]
    output: String,
}

#[derive(Debug, clap::Args)]
struct Diff {
    /// A profile
    #[arg(value_name = "PROFILE")]
    left: String,
    /// Another
    #[arg(value_name = "PROFILE")]
    right: String,
}

impl Profile {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.verb {
            Verb::List => {
                outln!("Leno configuration profiles:");
                charts::profiles().for_each(|name| outln!("    {name}"));
                Ok(ExitCode::SUCCESS)
            }
            Verb::Dump(verb) => Ok(verb.run()?),
            Verb::Diff(verb) => Ok(verb.run()?),
        }
    }
}

impl Dump {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut inputs: Inputs = self.what.inputs()?;
        if let Some(name) = self.name {
            inputs.set.push(format!("profile={name}"));
        }
        let operator = Operator::read(&inputs)?;
        let mut shown = json!({
            "apiVersion": "install.istio.io/v1alpha1",
            "kind": "IstioOperator",
            "metadata": { "namespace": operator.namespace },
            "spec": operator.spec,
        });
        if let Some(path) = &self.path {
            let path = path.trim_start_matches("spec.");
            let found = tree::find(&shown, &format!("spec.{path}")).cloned();
            shown = found.ok_or_else(|| anyhow::anyhow!("--config-path: there is no {path}"))?;
        }
        match self.output.as_str() {
            "json" => outln!("{shown:#}"),
            _ => out!("{}", leno_api::encode::yaml_blocks(&shown)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Diff {
    fn run(self) -> anyhow::Result<ExitCode> {
        let one = |name: &str| {
            let (spec, _) = with_profile(name)?;
            let object = json!({ "kind": "IstioOperator", "spec": spec });
            anyhow::Ok([(manifest::Id::of(&object), object)].into_iter().collect())
        };
        let lines = diff::compare(&one(&self.left)?, &one(&self.right)?);
        if lines.is_empty() {
            outln!("Profiles are identical");
            return Ok(ExitCode::SUCCESS);
        }
        outln!("The difference between profiles:");
        lines.iter().skip(1).for_each(|line| outln!("{line}"));
        Ok(ExitCode::FAILURE)
    }
}
