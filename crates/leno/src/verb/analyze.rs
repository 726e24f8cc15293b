//! `leno analyze`: what is wrong with configuration, with istioctl's codes, flags and exit codes.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use leno_control::analysis::{self, Found, Options, Outcome, Text};
use leno_control::server::Kubernetes;
use leno_control::{CODES, Level};
use serde_json::json;

use crate::cli::Failure;
use crate::out::{out, outln};

/// Istioctl's exit code if messages reach the failure threshold.
const FOUND: u8 = 79;

/// Prints one line per fault. The exit code is 79 if there are some of the level of
/// --failure-threshold, and 1 if a file cannot be read.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // they are istioctl's flags
pub(crate) struct Analyze {
    /// Files and folders of YAML, `-` for what is piped in; without any, the cluster alone
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Analyze a cluster, and files as if they were applied to it; `--use-kube=false`: files alone.
    /// Without it a cluster is analyzed if there are no files
    #[arg(short = 'k', long = "use-kube", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    use_kube: Option<bool>,
    /// The kubeconfig of the cluster
    #[arg(short = 'c', long = "kubeconfig", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long = "context", value_name = "NAME")]
    context: Option<String>,
    /// The namespace to report about, and that of objects that name none
    #[arg(short = 'n', long = "namespace", value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,
    /// Report about all namespaces
    #[arg(short = 'A', long = "all-namespaces")]
    all_namespaces: bool,
    /// How to print: log, json or yaml
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "log", value_parser = ["log", "json", "yaml"])]
    output: String,
    /// From which level on the exit code says so: Info, Warning or Error
    #[arg(long = "failure-threshold", value_name = "LEVEL", default_value = "Error", value_parser = level)]
    failure_threshold: Level,
    /// From which level on messages are printed
    #[arg(long = "output-threshold", value_name = "LEVEL", default_value = "Info", value_parser = level)]
    output_threshold: Level,
    /// Do not raise a code for an object, as `IST0103=Pod *.testing`; may be repeated
    #[arg(short = 'S', long = "suppress", value_name = "CODE=OBJECT")]
    suppress: Vec<String>,
    /// Settings of the mesh in place of those that are found
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// List the analyzers
    #[arg(short = 'L', long = "list-analyzers")]
    list_analyzers: bool,
    /// Run some analyzers only; may be repeated
    #[arg(long = "analyzer", value_name = "NAME")]
    analyzers: Vec<String>,
    /// Look into folders inside folders too
    #[arg(short = 'R', long = "recursive")]
    recursive: bool,
    /// Do not fail if a file cannot be parsed
    #[arg(long = "ignore-unknown")]
    ignore_unknown: bool,
    /// Without effect: there are no colors
    #[arg(long = "color", value_name = "BOOL", num_args = 0..=1, require_equals = true, hide = true)]
    _color: Option<String>,
}

fn level(text: &str) -> Result<Level, String> {
    match text.to_ascii_lowercase().as_str() {
        "info" => Ok(Level::Info),
        "warning" => Ok(Level::Warning),
        "error" => Ok(Level::Error),
        _ => Err("use Info, Warning or Error".to_owned()),
    }
}

impl Analyze {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.list_analyzers {
            for (name, help) in analysis::analyzers() {
                outln!("* {name}: {help}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let options = self.options()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Outcome { messages, unreadable } = runtime.block_on(analysis::run(&options))?;
        for fault in &unreadable {
            eprintln!("Error: {fault}");
        }
        let shown: Vec<&Found> =
            messages.iter().filter(|message| message.code.level >= self.output_threshold).collect();
        match self.output.as_str() {
            "json" => outln!("{:#}", documents(&shown)),
            "yaml" => out!("{}", leno_api::encode::yaml_text(&documents(&shown))),
            _ => shown.iter().for_each(|message| outln!("{}", line(message))),
        }
        if shown.is_empty() {
            eprintln!("\u{2714} No validation issues found when analyzing {}.", self.target());
        }
        if self.output != "log" {
            return Ok(ExitCode::SUCCESS);
        }
        if messages.iter().any(|message| message.code.level >= self.failure_threshold) {
            eprintln!("Error: Analyzers found issues when analyzing {}.", self.target());
            return Ok(ExitCode::from(FOUND));
        }
        Ok(if unreadable.is_empty() || self.ignore_unknown { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// What is analyzed, in words.
    fn target(&self) -> String {
        if self.all_namespaces {
            "all namespaces".to_owned()
        } else {
            format!("namespace: {}", self.namespace)
        }
    }

    fn options(&self) -> anyhow::Result<Options> {
        let asked = self.kubeconfig.is_some() || self.context.is_some() || self.files.is_empty();
        let kubernetes = self.use_kube.unwrap_or(asked).then(|| Kubernetes {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.root_namespace.clone(),
            ..Kubernetes::default()
        });
        let mut files = Vec::new();
        for path in &self.files {
            gather(path, self.recursive, true, &mut files)?;
        }
        let mut suppress = Vec::new();
        for text in &self.suppress {
            let Some((code, object)) = text.split_once('=') else {
                bail!("{text} is not a valid suppression value, use CODE=OBJECT");
            };
            if CODES.iter().all(|known| known.code != code) {
                eprintln!("Warning: {code} is an unknown message code and will not have any effect.");
            }
            suppress.push((code.to_owned(), object.to_owned()));
        }
        Ok(Options {
            files,
            kubernetes,
            namespace: (!self.all_namespaces).then(|| self.namespace.clone()),
            mesh_config: self.mesh_config.as_deref().map(read).transpose()?,
            suppress,
            analyzers: self.analyzers.clone(),
        })
    }
}

/// Reads a file, or the files of a folder.
pub(super) fn gather(path: &Path, recursive: bool, named: bool, files: &mut Vec<Text>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        if std::io::stdin().is_terminal() {
            eprintln!("Reading from stdin:");
        }
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("stdin")?;
        files.push(Text { name: "-".to_owned(), text });
        return Ok(());
    }
    let found = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    if found.is_dir() {
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| path.display().to_string())?;
        inside.sort();
        for path in inside.iter().filter(|path| recursive || !path.is_dir()) {
            gather(path, recursive, false, files)?;
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    if matches!(extension, Some("yaml" | "yml" | "json")) {
        files.push(read(path)?);
    } else if named {
        eprintln!("Skipping file {}, recognized file extensions are: json, yaml, yml", path.display());
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Text> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(Text { name: path.display().to_string(), text })
}

/// A message as istioctl prints it.
fn line(message: &Found) -> String {
    let Found { code, object, text, .. } = message;
    format!("{} [{}] ({object}{}) {text}", code.level, code.code, place(message))
}

fn place(message: &Found) -> String {
    match (message.file.as_str(), message.line) {
        ("", _) => String::new(),
        (file, 0) => format!(" {file}"),
        (file, line) => format!(" {file}:{line}"),
    }
}

fn documents(messages: &[&Found]) -> serde_json::Value {
    let documents = messages.iter().map(|message| {
        let mut document = json!({
            "code": message.code.code,
            "level": message.code.level.to_string(),
            "message": message.text,
            "origin": message.object,
        });
        if message.code.code.starts_with("IST") {
            let page = message.code.code.to_ascii_lowercase();
            document["documentationUrl"] =
                format!("https://istio.io/latest/docs/reference/config/analysis/{page}/").into();
        }
        if !message.file.is_empty() {
            document["reference"] = place(message).trim_start().into();
        }
        document
    });
    documents.collect()
}

#[cfg(test)]
mod tests {
    use super::{Found, line};
    use leno_control::CODES;

    #[test]
    fn lines_are_as_istioctl_prints_them() {
        let code = CODES.iter().find(|known| known.code == "IST0101").unwrap();
        let mut message = Found {
            code,
            object: "VirtualService default/a".to_owned(),
            namespace: "default".to_owned(),
            file: "a.yaml".to_owned(),
            line: 7,
            path: "spec.hosts[0]".to_owned(),
            text: "Referenced host not found: \"b\"".to_owned(),
        };
        let expected = "Error [IST0101] (VirtualService default/a a.yaml:7) Referenced host not found: \"b\"";
        assert_eq!(line(&message), expected);
        message.file.clear();
        assert!(line(&message).contains("(VirtualService default/a) "));
    }
}
