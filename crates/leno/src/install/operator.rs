//! What is to be installed, as people say it: profiles, files, `--set`; put together into one
//! IstioOperator.
//!
//! Later wins: the default profile, the profile that was chosen, files in their order, and what is set
//! on the command line. A file is an IstioOperator, or values of the Helm charts, which are taken for its
//! `spec.values`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use leno_api::yaml::{Dialect, Node, parse};
use serde_json::{Map, Value, json};

use super::charts;
use super::shape::{self, Wrong};
use super::tree::{self, Path, Step};

/// What the command line says of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// Files with IstioOperators or values; `-` is what is piped in.
    pub(crate) files: Vec<PathBuf>,
    /// `path=value`, paths being those of an IstioOperator's `spec`.
    pub(crate) set: Vec<String>,
    /// The name of the control plane among several.
    pub(crate) revision: Option<String>,
    /// Where it is to be, if the rest does not say.
    pub(crate) namespace: Option<String>,
    /// Whether to go on in spite of settings that are not known.
    pub(crate) force: bool,
}

/// What is to be installed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Operator {
    /// The name of the installation, which its objects carry.
    pub(crate) name: String,
    /// Where the control plane is.
    pub(crate) namespace: String,
    /// The name of the profile.
    pub(crate) profile: String,
    /// The name of the control plane among several; empty: it has none.
    pub(crate) revision: String,
    /// The `spec`, with everything in its place.
    pub(crate) spec: Value,
}

/// The fields at the top of an IstioOperator's spec that mean the same as a value.
const ALIASES: [(&str, &str); 4] = [
    ("hub", "values.global.hub"),
    ("tag", "values.global.tag"),
    ("revision", "values.revision"),
    ("meshConfig", "values.meshConfig"),
];

/// Lists whose elements are merged by their name.
const NAMED: [&str; 2] = ["components.ingressGateways", "components.egressGateways"];

impl Operator {
    /// Puts everything together.
    ///
    /// # Errors
    /// With everything that is wrong, each with its file, line and column or its flag.
    pub(crate) fn read(inputs: &Inputs) -> anyhow::Result<Operator> {
        let mut told = Told { errors: Vec::new(), force: inputs.force };
        let mut over = json!({});
        let mut name = None;
        let mut namespace = None;
        for path in &inputs.files {
            let shown = path.display().to_string();
            let text = match shown.as_str() {
                "-" => std::io::read_to_string(std::io::stdin()).context("standard input")?,
                _ => std::fs::read_to_string(path).with_context(|| shown.clone())?,
            };
            let documents = parse(&text, Dialect::Kubernetes)
                .map_err(|error| anyhow::anyhow!("{}", error.in_file(&shown)))?;
            for node in documents.iter().filter(|node| !node.is_null()) {
                let file = File { shown: &shown, node };
                let Some(document) = told.document(&file) else { continue };
                name = non_empty(tree::text(&document, "metadata.name")).or(name);
                namespace = non_empty(tree::text(&document, "metadata.namespace")).or(namespace);
                let spec = document.get("spec").cloned().unwrap_or_default();
                tree::merge_named(&mut over, &expand(spec), &NAMED);
            }
        }
        for text in &inputs.set {
            if let Err(error) = set(&mut over, text, &mut told) {
                told.errors.push(format!("--set {text}: {error}"));
            }
        }
        if let Some(revision) = &inputs.revision {
            merge_at(&mut over, "values.revision", Value::from(revision.as_str()));
        }
        let profile = non_empty(tree::text(&over, "profile")).unwrap_or_else(|| "default".to_owned());
        let (mut spec, place) = with_profile(&profile).unwrap_or_else(|error| {
            told.errors.push(error.to_string());
            (json!({}), None)
        });
        tree::merge_named(&mut spec, &over, &NAMED);
        let said = namespace.or_else(|| non_empty(tree::text(&over, "namespace")));
        let said = said.or_else(|| non_empty(tree::text(&over, "values.global.istioNamespace")));
        let namespace = said.or_else(|| inputs.namespace.clone()).or(place);
        let namespace = namespace.unwrap_or_else(|| "istio-system".to_owned());
        merge_at(&mut spec, "values.global.istioNamespace", Value::from(namespace.as_str()));
        merge_at(&mut spec, "profile", Value::from(profile.as_str()));
        let revision = tree::text(&spec, "values.revision");
        let revision = if revision == "default" { String::new() } else { revision };
        for (what, text) in [("revision", &revision), ("namespace", &namespace)] {
            if !text.is_empty() && !is_label(text) {
                told.errors.push(format!("{what}: {text:?} is no name such as `1-2` or `canary`"));
            }
        }
        merge_at(&mut spec, "values.revision", Value::from(revision.as_str()));
        // What nobody checks comes last, so that it wins.
        if let Some(unvalidated) = tree::find(&spec, "unvalidatedValues").cloned() {
            merge_at(&mut spec, "values", unvalidated);
        }
        if !told.errors.is_empty() {
            bail!("{}", told.errors.join("\n"));
        }
        let suffix = if revision.is_empty() { String::new() } else { format!("-{revision}") };
        let name = name.unwrap_or_else(|| format!("installed-state{suffix}"));
        Ok(Operator { name, namespace, profile, revision, spec })
    }

    /// The `spec` of the charts' values.
    pub(crate) fn values(&self) -> &Value {
        self.spec.get("values").unwrap_or(&Value::Null)
    }

    /// The revision as labels have it.
    pub(crate) fn revision_label(&self) -> &str {
        if self.revision.is_empty() { "default" } else { &self.revision }
    }

    /// It as an object again.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "apiVersion": "install.istio.io/v1alpha1",
            "kind": "IstioOperator",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": self.spec,
        })
    }

    /// Reads what [`Operator::to_json`] has written.
    pub(crate) fn from_json(object: &Value) -> Operator {
        Operator {
            name: tree::text(object, "metadata.name"),
            namespace: tree::text(object, "metadata.namespace"),
            profile: tree::text(object, "spec.profile"),
            revision: tree::text(object, "spec.values.revision"),
            spec: object.get("spec").cloned().unwrap_or_default(),
        }
    }
}

/// A profile's `spec` over that of the default profile, and the namespace it is for. The name of a file
/// is a profile too.
///
/// # Errors
/// If there is none of that name.
pub(crate) fn with_profile(name: &str) -> anyhow::Result<(Value, Option<String>)> {
    let base = charts::profile("default").unwrap_or_default();
    let chosen = match charts::profile(name) {
        Some(profile) => profile,
        None if name.contains('/') || name.ends_with(".yaml") => {
            let text = std::fs::read_to_string(name).with_context(|| format!("profile {name}"))?;
            let documents = parse(&text, Dialect::Kubernetes)
                .map_err(|error| anyhow::anyhow!("{}", error.in_file(name)))?;
            documents.first().map(Node::to_json).unwrap_or_default()
        }
        None => {
            let known: Vec<&str> = charts::profiles().collect();
            bail!("profile {name:?} is not known, use one of {}", known.join(", "));
        }
    };
    let mut spec = expand(base.get("spec").cloned().unwrap_or_default());
    tree::merge_named(&mut spec, &expand(chosen.get("spec").cloned().unwrap_or_default()), &NAMED);
    let namespace =
        [&chosen, &base].into_iter().find_map(|it| non_empty(tree::text(it, "metadata.namespace")));
    Ok((spec, namespace))
}

/// Everything that is wrong, as it is found.
struct Told {
    errors: Vec<String>,
    force: bool,
}

/// A document of a file.
struct File<'f> {
    shown: &'f str,
    node: &'f Node<'f>,
}

impl File<'_> {
    fn place(&self, path: &str) -> String {
        let position = self.node.locate_nearest(path);
        format!("{}:{}:{}", self.shown, position.line, position.column)
    }
}

impl Told {
    fn wrong(&mut self, place: &str, wrong: &[Wrong]) {
        for Wrong { path, words, is_inert } in wrong {
            let text = format!("{place}: {path}: {words}").trim_start_matches(": ").to_owned();
            if *is_inert || self.force {
                eprintln!("warning: {text}");
            } else {
                self.errors.push(text);
            }
        }
    }

    /// A document as an IstioOperator.
    fn document(&mut self, file: &File<'_>) -> Option<Value> {
        let document = file.node.to_json();
        let mut wrong = Vec::new();
        let kind = tree::text(&document, "kind");
        let is_values = kind.is_empty() && document.get("apiVersion").is_none();
        let document = if is_values {
            shape::check_values(&document, "", &mut wrong);
            json!({ "spec": { "values": document } })
        } else if kind == "IstioOperator" {
            let known = ["apiVersion", "kind", "metadata", "spec", "status"];
            for name in document.as_object().into_iter().flatten().map(|(name, _)| name) {
                if !known.contains(&name.as_str()) {
                    let words = format!("unknown field {name:?}");
                    wrong.push(Wrong { path: name.clone(), words, is_inert: false });
                }
            }
            let version = tree::text(&document, "apiVersion");
            if version != "install.istio.io/v1alpha1" {
                let words = format!("{version:?} must be install.istio.io/v1alpha1");
                wrong.push(Wrong { path: "apiVersion".to_owned(), words, is_inert: false });
            }
            shape::check_spec(document.get("spec").unwrap_or(&Value::Null), &mut wrong);
            document
        } else {
            let words = format!("{kind:?} is neither an IstioOperator nor values");
            wrong.push(Wrong { path: "kind".to_owned(), words, is_inert: false });
            Value::Null
        };
        for one in &wrong {
            let place = file.place(&one.path);
            self.wrong(&place, std::slice::from_ref(one));
        }
        document.is_object().then_some(document)
    }
}

/// Sets `path=value`.
fn set(over: &mut Value, text: &str, told: &mut Told) -> Result<(), String> {
    let (path, value) = text.split_once('=').ok_or("it is not PATH=VALUE")?;
    let path = Path::parse(path)?;
    let mut value = tree::scalar(value);
    // What looks like a number may be a name: revision=1, tag=1.2.
    if let [Step::Key(name)] = path.0.as_slice()
        && matches!(name.as_str(), "revision" | "tag")
        && value.is_number()
    {
        value = Value::from(text.split_once('=').map_or("", |(_, value)| value));
    }
    let path = match path.0.first() {
        Some(Step::Key(first)) => {
            let alias = ALIASES.iter().find(|(name, _)| name == first);
            let rest = path.0.iter().skip(1).cloned();
            let keys = |path: &str| path.split('.').map(|key| Step::Key(key.to_owned())).collect::<Vec<_>>();
            match alias {
                Some((_, place)) => Path(keys(place).into_iter().chain(rest).collect()),
                None => path.clone(),
            }
        }
        _ => return Err("it begins with no name".to_owned()),
    };
    // Checked alone, so that what is wrong is what was set here.
    let mut alone = json!({});
    tree::set(&mut alone, &path.0, Some(value.clone()))?;
    let mut wrong = Vec::new();
    shape::check_spec(&alone, &mut wrong);
    for one in &mut wrong {
        one.path = one.path.trim_start_matches("spec.").to_owned();
        if let Some(shorter) = shape_hint(&one.path) {
            one.words = format!("{}; did you mean values.{shorter}?", one.words);
        }
    }
    told.wrong(&format!("--set {text}"), &wrong);
    if value.is_null() {
        return tree::set(over, &path.0, Some(Value::Null));
    }
    tree::set(over, &path.0, Some(value))
}

/// The path among the values that was meant by one that is none of the spec's.
fn shape_hint(path: &str) -> Option<&str> {
    let known = ["global", "pilot", "cni", "gateways", "sidecarInjectorWebhook", "base", "defaultRevision"];
    let first = path.split(['.', '[']).next().unwrap_or_default();
    known.contains(&first).then_some(path)
}

/// Moves what has a value of the same meaning there.
fn expand(mut spec: Value) -> Value {
    for (name, place) in ALIASES {
        let Some(value) = spec.as_object_mut().and_then(|spec| spec.shift_remove(name)) else { continue };
        let value = match value {
            Value::Number(number) if name != "meshConfig" => Value::from(number.to_string()),
            other => other,
        };
        merge_at(&mut spec, place, value);
    }
    spec
}

/// Merges a value over what is at a path of plain names.
pub(crate) fn merge_at(tree: &mut Value, path: &str, value: Value) {
    let mut over = value;
    for key in path.rsplit('.') {
        let mut object = Map::new();
        object.insert(key.to_owned(), over);
        over = Value::Object(object);
    }
    tree::merge(tree, &over);
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Whether it is a DNS label (RFC 1123).
pub(crate) fn is_label(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(|first| good(*first))
        && bytes.last().is_some_and(|last| good(*last))
        && bytes.iter().all(|byte| good(*byte) || *byte == b'-')
}

#[cfg(test)]
mod tests;
