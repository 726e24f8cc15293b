//! `leno tag`: other names for control planes, under which namespaces can ask for them.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use crate::cli::Failure;
use crate::install::cluster::{Cluster, Where};
use crate::install::tag::{self, Wanted};
use crate::install::{block_on, confirm, manifest};
use crate::out::{out, outln};

/// Makes, lists and removes revision tags.
#[derive(Debug, clap::Args)]
pub(crate) struct Tag {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a tag, or let it mean another control plane
    Set(Set),
    /// Print the objects of a tag
    Generate(Set),
    /// List the tags
    #[command(visible_alias = "show")]
    List(List),
    /// Take a tag away
    #[command(visible_alias = "delete")]
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The name of the tag; `default`: for namespaces that do not name one
    #[arg(value_name = "TAG")]
    name: String,
    /// The revision of the control plane
    #[arg(short = 'r', long = "revision", value_name = "NAME")]
    revision: String,
    /// The namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAME", default_value = "istio-system")]
    namespace: String,
    /// Let a tag that is there already mean this control plane
    #[arg(long = "overwrite")]
    overwrite: bool,
    /// The name of the MutatingWebhookConfiguration
    #[arg(long = "webhook-name", value_name = "NAME")]
    webhook_name: Option<String>,
    /// Give sidecars to namespaces without any label
    #[arg(long = "auto-inject-namespaces")]
    auto_inject: bool,
    /// Do not ask
    #[arg(short = 'y', long = "skip-confirmation")]
    yes: bool,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, clap::Args)]
struct List {
    /// table, json or yaml
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "table", value_parser = ["table", "json", "yaml"])]
    output: String,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// The name of the tag
    #[arg(value_name = "TAG")]
    name: String,
    /// Do not ask
    #[arg(short = 'y', long = "skip-confirmation")]
    yes: bool,
    #[command(flatten)]
    place: Where,
}

impl Tag {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let done = match self.verb {
            Verb::Set(verb) => block_on(verb.go(false)),
            Verb::Generate(verb) => block_on(verb.go(true)),
            Verb::List(verb) => block_on(verb.go()),
            Verb::Remove(verb) => block_on(verb.go()),
        };
        Ok(done?)
    }
}

impl Set {
    async fn go(self, only_print: bool) -> anyhow::Result<ExitCode> {
        let cluster = Cluster::new(&self.place).await?;
        if !crate::install::operator::is_label(&self.name) {
            bail!("{:?} is no name such as `prod` or `canary`", self.name);
        }
        let there = tag::list(&cluster).await?.into_iter().find(|tag| tag.name == self.name);
        if let Some(there) = there.filter(|_| !only_print && !self.overwrite)
            && there.revision != self.revision
        {
            bail!(
                "revision tag {:?} already exists, and means {:?}: use --overwrite to change it",
                self.name,
                there.revision,
            );
        }
        if let Some(why) = tag::is_taken(&cluster, &self.name, &self.revision).await? {
            let words = format!("tag {:?} would come twice: {why}", self.name);
            if !self.yes {
                bail!("{words}; use --skip-confirmation to go on");
            }
            eprintln!("warning: {words}");
        }
        let wanted = Wanted {
            name: self.name.clone(),
            revision: self.revision.clone(),
            namespace: self.namespace,
            webhook_name: self.webhook_name,
            auto_inject: self.auto_inject,
        };
        let objects = tag::objects(&cluster, &wanted).await?;
        if only_print {
            out!("{}", manifest::yaml(objects.iter()));
            return Ok(ExitCode::SUCCESS);
        }
        for object in &objects {
            cluster.apply(object).await?;
        }
        outln!(
            "Revision tag {:?} created, referencing control plane revision {:?}. To enable injection using this\n\
             revision tag, use 'kubectl label namespace <NAMESPACE> istio.io/rev={}'",
            self.name,
            self.revision,
            self.name,
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    async fn go(self) -> anyhow::Result<ExitCode> {
        let tags = tag::list(&Cluster::new(&self.place).await?).await?;
        let shown: Vec<_> = tags
            .iter()
            .map(|tag| json!({ "tag": tag.name, "revision": tag.revision, "namespaces": tag.namespaces }))
            .collect();
        match self.output.as_str() {
            "json" => outln!("{:#}", serde_json::Value::from(shown)),
            "yaml" => out!("{}", leno_api::encode::yaml_text(&shown.into())),
            _ => {
                let width = |name: &str, of: fn(&tag::Tag) -> usize| {
                    tags.iter().map(of).chain([name.len()]).max().unwrap_or(0)
                };
                let (one, two) =
                    (width("TAG", |tag| tag.name.len()), width("REVISION", |tag| tag.revision.len()));
                outln!("{:one$} {:two$} NAMESPACES", "TAG", "REVISION");
                for tag in &tags {
                    outln!("{:one$} {:two$} {}", tag.name, tag.revision, tag.namespaces.join(","));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Remove {
    async fn go(self) -> anyhow::Result<ExitCode> {
        let cluster = Cluster::new(&self.place).await?;
        let tag = tag::find(&cluster, &self.name).await?;
        if !tag.namespaces.is_empty() && !self.yes {
            let question = format!(
                "Caution, found {} namespace(s) still injected by tag {:?}: {}\nProceed?",
                tag.namespaces.len(),
                tag.name,
                tag.namespaces.join(", "),
            );
            if !confirm(&question)? {
                outln!("Aborting operation.");
                return Ok(ExitCode::SUCCESS);
            }
        }
        tag::remove(&cluster, &self.name).await?;
        outln!("Revision tag {:?} removed", self.name);
        Ok(ExitCode::SUCCESS)
    }
}
