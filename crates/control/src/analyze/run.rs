//! `leno analyze`: everything that can be said about objects in files, in a cluster, or both.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use leno_api::yaml::{self, Dialect, Node};
use leno_base::clock::{Clock, System};
use leno_derive::{Batch, Graph};
use serde_json::{Value, json};

use super::Analysis;
use super::istio::{ANALYZERS, Analyzed};
use super::message::{Code, Level, Message, of_code, of_finding};
use super::raw::{Now, RawKey, Raws, RawsByKind, key_of};
use super::validity::{Validities, outdated};
use crate::model::diagnostic::{Finding, Severity};
use crate::model::duration::seconds;
use crate::model::read::{self, Read};
use crate::model::{Change, KUBERNETES, ObjectRef, inputs};
use crate::scope;
use crate::source::files::places;
use crate::source::kube::client::Kubernetes;
use crate::source::kube::snapshot;
use crate::source::{Origin, Places, object_node};

/// What messages about no object are about, as istioctl calls it.
const CLUSTER: &str = "Cluster";

/// The version of Kubernetes that there must be at least; Istio's.
const LOWEST_KUBERNETES: (u32, u32) = (1, 32);

/// A file's text.
#[derive(Clone, Debug)]
pub struct Text {
    /// What it is called in messages.
    pub name: String,
    /// YAML or JSON.
    pub text: String,
}

/// What to analyze, and what to say of it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files; their objects count before those of the cluster.
    pub files: Vec<Text>,
    /// A cluster.
    pub kubernetes: Option<Kubernetes>,
    /// The namespace of objects that name none, and the only one that is reported about; all are where
    /// it is absent.
    pub namespace: Option<String>,
    /// Settings of the mesh in place of those that are found.
    pub mesh_config: Option<Text>,
    /// Codes, each with the objects that it is not to be raised for, as `Pod *.testing`.
    pub suppress: Vec<(String, String)>,
    /// The analyzers to run; empty for all.
    pub analyzers: Vec<String>,
}

/// What is said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which sort of message.
    pub code: &'static Code,
    /// The object, as `VirtualService default/reviews`.
    pub object: String,
    /// Its namespace; empty if it has none.
    pub namespace: String,
    /// Where it was read; empty in a cluster.
    pub file: String,
    /// Line, counted from 1; 0 where unknown.
    pub line: u32,
    /// The field; empty for the whole object.
    pub path: String,
    /// What is said.
    pub text: String,
}

/// All that is said.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The messages, the worst first.
    pub messages: Vec<Found>,
    /// Files that are not YAML, and why.
    pub unreadable: Vec<String>,
}

/// The analyzers, with what each does.
pub fn analyzers() -> impl Iterator<Item = (&'static str, &'static str)> {
    ANALYZERS.iter().map(|analyzer| (analyzer.name, analyzer.help))
}

/// Analyzes.
///
/// # Errors
/// If the cluster cannot be read.
pub async fn run(options: &Options) -> io::Result<Outcome> {
    let mut world = World::new(options.namespace.as_deref().unwrap_or("default"));
    match &options.kubernetes {
        Some(kubernetes) => {
            let found = snapshot::read(kubernetes).await.map_err(io::Error::other)?;
            world.about_cluster = about_cluster(&found.denied, &found.version);
            for object in found.objects {
                world.add(object, Origin::object(0, Arc::from("")), false);
            }
        }
        None => world.add_defaults(),
    }
    for file in &options.files {
        world.add_file(file);
    }
    if let Some(mesh) = &options.mesh_config {
        world.add_mesh(mesh);
    }
    Ok(world.analyze(options))
}

/// All objects, and what the readers say of them.
struct World {
    /// The namespace of objects that name none.
    namespace: String,
    objects: BTreeMap<RawKey, (Value, Origin)>,
    /// What the readers say, by object.
    findings: BTreeMap<RawKey, Vec<Finding>>,
    unreadable: Vec<String>,
    /// What is to be said of the cluster itself: codes and texts.
    about_cluster: Vec<(&'static str, String)>,
}

impl World {
    fn new(namespace: &str) -> World {
        World {
            namespace: namespace.to_owned(),
            objects: BTreeMap::new(),
            findings: BTreeMap::new(),
            unreadable: Vec::new(),
            about_cluster: Vec::new(),
        }
    }

    fn add_file(&mut self, file: &Text) {
        let text: Arc<str> = Arc::from(file.text.as_str());
        let documents = match yaml::parse(&text, Dialect::Kubernetes) {
            Ok(documents) => documents,
            Err(error) => return self.unreadable.push(format!("{}: {error}", file.name)),
        };
        for (document, item) in places(&documents) {
            let Some(node) = object_node(&documents, document, item) else { continue };
            let (object, origin) =
                (node.to_json(), Origin::file(&file.name, Arc::clone(&text), document, item));
            // Nothing between two separators is nothing to complain of.
            if !object.is_null() && !self.add(object, origin, true) {
                let line = node.position.line;
                self.unreadable.push(format!("{}:{line}: an object without kind or name", file.name));
            }
        }
    }

    /// Adds an object, in the place of one of the same name unless that is of the same file; false if
    /// it is none.
    fn add(&mut self, mut object: Value, origin: Origin, from_file: bool) -> bool {
        let Some(key) = key_of(&object, &self.namespace) else { return false };
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
            && !key.namespace.is_empty()
        {
            metadata.insert("namespace".to_owned(), Value::from(key.namespace.as_str()));
        }
        if key.kind == "ConfigMap" && key.name == read::MESH_CONFIG_MAP {
            for (field, kind) in [("/data/mesh", "MeshConfig"), ("/data/meshNetworks", "MeshNetworks")] {
                let text = object.pointer(field).and_then(Value::as_str).unwrap_or_default();
                let documents = yaml::parse(text, Dialect::Kubernetes).unwrap_or_default();
                if let Some(settings) = documents.first().map(Node::to_json) {
                    // istioctl calls them so, wherever they were read.
                    let name = kind.to_ascii_lowercase();
                    let key = RawKey { kind: kind.to_owned(), name, ..key.clone() };
                    self.objects.insert(key, (settings, origin.clone()));
                }
            }
        }
        if from_file {
            self.findings.remove(&key);
        }
        self.objects.insert(key, (object, origin));
        true
    }

    /// What an installation brings: the ingress gateway that Gateways select.
    fn add_defaults(&mut self) {
        let meta = |name: &str| {
            let labels = json!({ "app": "istio-ingressgateway", "istio": "ingressgateway" });
            json!({ "name": name, "namespace": "istio-system", "labels": labels })
        };
        let name = "istio-ingressgateway";
        let ports = [(15021, 15021), (80, 8080), (443, 8443), (31400, 31400), (15443, 15443)];
        let ports = ports.map(|(port, target)| {
            json!({ "name": format!("tcp-{port}"), "port": port, "targetPort": target, "protocol": "TCP" })
        });
        let selector = json!({ "app": "istio-ingressgateway", "istio": "ingressgateway" });
        self.add(
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta(name),
                "spec": { "ports": ports, "selector": selector } }),
            Origin::nowhere(),
            false,
        );
        let container = json!({ "name": "istio-proxy", "image": "proxyv2" });
        self.add(
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": meta(name),
                "spec": { "containers": [container] } }),
            Origin::nowhere(),
            false,
        );
    }

    fn add_mesh(&mut self, mesh: &Text) {
        self.objects.retain(|key, _| key.kind != "MeshConfig");
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": read::MESH_CONFIG_MAP, "namespace": "istio-system" },
            "data": { "mesh": mesh.text } });
        self.add(map, Origin::nowhere(), true);
    }

    fn analyze(mut self, options: &Options) -> Outcome {
        let mut graph = Graph::new();
        scope::register(&mut graph);
        graph.register::<RawsByKind>();
        let mut batch = Batch::new();
        batch.set::<Now>((), seconds(System.wall()));
        let mut typed: BTreeMap<ObjectRef, RawKey> = BTreeMap::new();
        for (key, (object, origin)) in &self.objects {
            batch.set::<Raws>(key.clone(), object.clone());
            let text = object.to_string();
            let Ok(node) = yaml::from_json(&text) else { continue };
            let findings = match read::read(&node) {
                Read::Object { reference, object, findings } => {
                    typed.insert(reference.clone(), key.clone());
                    inputs::apply(Change::Set(reference, object, origin.clone()), &mut batch);
                    findings
                }
                Read::Rejected { findings, .. } | Read::Skipped { findings, .. } => findings,
            };
            self.findings.insert(key.clone(), findings);
        }
        graph.commit(batch);
        let mut messages = Vec::new();
        let chosen =
            |name: &str| options.analyzers.is_empty() || options.analyzers.iter().any(|it| it == name);
        for (place, _) in ANALYZERS.iter().enumerate().filter(|(_, analyzer)| chosen(analyzer.name)) {
            messages.extend(graph.get::<Analyzed>(&place).iter().cloned());
        }
        for (key, findings) in &self.findings {
            let runs = chosen(&format!("schema.ValidationAnalyzer.{}", key.kind));
            messages.extend(findings.iter().filter(|_| runs).map(|finding| message_of(key, finding)));
        }
        if options.analyzers.is_empty() {
            let now = graph.input::<Now>(&()).map_or(0, |now| *now);
            let (outdated, _) = outdated(&graph.get::<Validities>(&()), now);
            for (object, finding) in graph.get::<Analysis>(&()).iter().chain(&outdated) {
                let Some(key) = typed.get(object) else { continue };
                let message = message_of(key, finding);
                // istioctl's own analyzers have said the same.
                if message.code.starts_with("LENO") {
                    messages.push(message);
                }
            }
        }
        let mut found = self.located(&messages, options);
        if options.analyzers.is_empty() {
            found.extend(self.of_cluster(options));
        }
        let order = |it: &Found| (std::cmp::Reverse(it.code.level), it.code.code, it.object.clone(), it.line);
        found.sort_by_key(order);
        found.dedup();
        Outcome { messages: found, unreadable: self.unreadable }
    }

    /// What is said of the cluster itself.
    fn of_cluster(&self, options: &Options) -> Vec<Found> {
        let known = self.about_cluster.iter().filter_map(|(code, text)| Some((of_code(code)?, text)));
        let told = known.filter(|(code, _)| {
            let mut about = options.suppress.iter().filter(|(suppressed, _)| suppressed == code.code);
            !about.any(|(_, pattern)| fits(pattern, CLUSTER))
        });
        told.map(|(code, text)| Found {
            code,
            object: CLUSTER.to_owned(),
            namespace: String::new(),
            file: String::new(),
            line: 0,
            path: String::new(),
            text: text.clone(),
        })
        .collect()
    }

    /// Messages with their places, without those that are not to be shown.
    fn located(&self, messages: &[Message], options: &Options) -> Vec<Found> {
        let mut places = Places::default();
        let mut found = Vec::new();
        for message in messages {
            let Some(code) = of_code(message.code) else { continue };
            let key = &message.object;
            let namespace = if key.kind == "Namespace" { &key.name } else { &key.namespace };
            let elsewhere = options.namespace.as_ref().is_some_and(|wanted| wanted != namespace);
            let Some((object, origin)) = self.objects.get(key) else { continue };
            if (elsewhere && !namespace.is_empty())
                || KUBERNETES.contains(&namespace.as_str())
                || is_suppressed(code, key, object, options)
            {
                continue;
            }
            let position = places.locate(origin, &message.path);
            found.push(Found {
                code,
                object: key.to_string(),
                namespace: namespace.clone(),
                file: origin.file.to_string(),
                line: position.line,
                path: message.path.clone(),
                text: message.text.clone(),
            });
        }
        found
    }
}

/// What is not as it should be with a cluster: what may not be read there (IST0141), and its version
/// (IST0142).
fn about_cluster(denied: &[(String, String)], version: &str) -> Vec<(&'static str, String)> {
    let mut about: Vec<(&'static str, String)> = denied
        .iter()
        .map(|(path, why)| {
            let resource = path.rsplit('/').next().unwrap_or(path);
            ("IST0141", format!("Missing required permission to list resource {resource} ({why})"))
        })
        .collect();
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut number = || {
        let digits = numbers.next().unwrap_or_default();
        let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
        digits.get(..end).and_then(|digits| digits.parse::<u32>().ok())
    };
    let (lowest, lowest_minor) = LOWEST_KUBERNETES;
    if let (Some(major), Some(minor)) = (number(), number())
        && (major, minor) < LOWEST_KUBERNETES
    {
        let message = format!(
            "The Kubernetes Version {version:?} is lower than the minimum version: {lowest}.{lowest_minor}"
        );
        about.push(("IST0142", message));
    }
    about
}

fn message_of(key: &RawKey, finding: &Finding) -> Message {
    let code = of_finding(finding.code, &key.kind, finding.severity == Severity::Error);
    let path = if finding.path.is_empty() { String::new() } else { format!("{}: ", finding.path) };
    let start = match code.code {
        "IST0106" => "Schema validation error: ",
        "IST0133" => "Schema validation warning: ",
        _ => "",
    };
    Message::new(code.code, key, format!("{start}{path}{}", finding.message)).at(finding.path.clone())
}

/// Whether the object itself, or whoever asks, does not want to hear this.
fn is_suppressed(code: &Code, key: &RawKey, object: &Value, options: &Options) -> bool {
    let annotation =
        object.pointer("/metadata/annotations").and_then(|it| it.get("galley.istio.io/analyze-suppress"));
    let annotation = annotation.and_then(Value::as_str).unwrap_or_default();
    if annotation.split(',').any(|suppressed| suppressed == "*" || suppressed == code.code) {
        return true;
    }
    let names = [key.to_string(), format!("{} {}.{}", key.kind, key.name, key.namespace)];
    let wanted = options.suppress.iter().filter(|(suppressed, _)| suppressed == code.code);
    wanted.into_iter().any(|(_, pattern)| names.iter().any(|name| fits(pattern, name)))
}

/// Whether a text fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(after) = text.strip_prefix(first) else { return false };
    (0..=after.len()).filter(|at| after.is_char_boundary(*at)).any(|at| fits(rest, after.split_at(at).1))
}

/// The worst level of messages.
pub fn worst(messages: &[Found]) -> Option<Level> {
    messages.iter().map(|message| message.code.level).max()
}

#[cfg(test)]
mod tests {
    use super::{Options, Text, about_cluster, fits, run};

    async fn codes(options: Options) -> Vec<String> {
        let outcome = run(&options).await.unwrap();
        outcome
            .messages
            .iter()
            .map(|it| format!("{} {} {}:{}", it.code.code, it.object, it.file, it.line))
            .collect()
    }

    const TWO: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one}
spec:
  hosts: [x]
  http:
  - route:
    - destination:
        host: nowhere
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: two, namespace: b}
spec: {selector: {app: none}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
";

    #[tokio::test]
    async fn places_namespaces_and_suppression() {
        let file = |text: &str| vec![Text { name: "f.yaml".to_owned(), text: text.to_owned() }];
        let options = |namespace: Option<&str>, text: &str| Options {
            files: file(text),
            namespace: namespace.map(str::to_owned),
            ..Options::default()
        };
        assert_eq!(
            codes(options(Some("a"), TWO)).await,
            ["IST0101 VirtualService a/one f.yaml:14", "IST0102 Namespace a f.yaml:4"]
        );
        let all = codes(options(None, TWO)).await;
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all[0].starts_with("IST0101 Gateway b/two"), "{all:?}");
        for pattern in ["VirtualService *.a", "VirtualService a/one", "*"] {
            let suppress = vec![("IST0101".to_owned(), pattern.to_owned())];
            let left = codes(Options { suppress, ..options(Some("a"), TWO) }).await;
            assert_eq!(left, ["IST0102 Namespace a f.yaml:4"], "{pattern}");
        }
        let annotated = TWO.replace(
            "{name: one}",
            "{name: one, annotations: {galley.istio.io/analyze-suppress: 'IST0101'}}",
        );
        assert_eq!(codes(options(Some("a"), &annotated)).await, ["IST0102 Namespace a f.yaml:4"]);
        let analyzers = vec!["injection.Analyzer".to_owned()];
        assert_eq!(codes(Options { analyzers, ..options(Some("a"), TWO) }).await.len(), 1);
        let broken = run(&options(None, "a: [")).await.unwrap();
        assert_eq!(broken.unreadable.len(), 1);
    }

    #[test]
    fn clusters_that_are_too_old_or_closed() {
        for (version, expected) in [
            ("v1.31.9", &["IST0142"][..]),
            ("v1.9.0-gke.1", &["IST0142"]),
            ("v1.32.0", &[]),
            ("v1.34+", &[]),
            ("v2.0.0", &[]),
            ("", &[]),
            ("latest", &[]),
        ] {
            let found = about_cluster(&[], version);
            assert_eq!(found.iter().map(|(code, _)| *code).collect::<Vec<_>>(), expected, "{version}");
        }
        let denied = [("/apis/apps/v1/deployments".to_owned(), "no".to_owned())];
        let expected = "Missing required permission to list resource deployments (no)";
        assert_eq!(about_cluster(&denied, ""), [("IST0141", expected.to_owned())]);
    }

    #[test]
    fn patterns() {
        assert!(fits("Pod *.testing", "Pod a.testing"));
        assert!(!fits("Pod *.testing", "Pod a.other"));
        assert!(fits("*", "") && fits("a*b*c", "axxbyyc") && !fits("a*b", "axxc"));
    }
}
