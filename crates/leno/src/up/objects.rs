//! The objects that the runner itself needs, read from folders of YAML: what a kubelet and the
//! controllers of Kubernetes would act on. Everything else, and the validation of what proxies
//! are configured by, is the control plane's, which reads the same folders.
//!
//! Read next: `plan.rs`, which decides what is to run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use leno_api::yaml::{self, Dialect, Node};
use serde::de::DeserializeOwned;

use super::gateway_api;

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where an object was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Origin {
    pub(crate) file: Arc<str>,
    document: Arc<Node<'static>>,
}

impl Origin {
    /// A problem of a field, which need not exist: then its nearest parent is pointed to.
    pub(crate) fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        let position = self.document.locate_nearest(path);
        Problem {
            file: self.file.to_string(),
            line: position.line,
            column: position.column,
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

/// Something that the author of a file should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    pub(crate) file: String,
    /// Counted from 1; 0: the file as a whole.
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// The field, or empty.
    pub(crate) path: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// What makes pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum WorkloadKind {
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
    Pod,
}

impl WorkloadKind {
    pub(crate) fn api_version(self) -> &'static str {
        match self {
            WorkloadKind::Job => "batch/v1",
            WorkloadKind::Pod => "v1",
            _ => "apps/v1",
        }
    }

    /// The path of the pod's template in the object.
    pub(crate) fn template_path(self) -> &'static str {
        match self {
            WorkloadKind::Pod => "",
            _ => "spec.template.",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An object that makes pods.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    pub(crate) kind: WorkloadKind,
    pub(crate) key: Key,
    pub(crate) replicas: u32,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) spec: core::PodSpec,
    /// A StatefulSet's `serviceName`.
    pub(crate) service_name: String,
    pub(crate) origin: Origin,
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) key: Key,
    pub(crate) object: core::Service,
}

/// The part of a Gateway, be it Istio's or the Gateway API's, that says what to publish.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gateway {
    pub(crate) key: Key,
    pub(crate) selector: BTreeMap<String, String>,
    /// Where its gateways are; `None`: anywhere, and there is one in any case.
    pub(crate) namespace: Option<String>,
    pub(crate) ports: Vec<GatewayPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayPort {
    pub(crate) number: u16,
    /// In capitals.
    pub(crate) protocol: String,
    /// Where it is declared, without a message.
    pub(crate) place: Problem,
}

/// The part of Istio's ServiceEntry that says which names exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    pub(crate) key: Key,
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: Vec<String>,
    /// Whether addresses are looked up by clients themselves, so that no virtual one is given.
    pub(crate) passes_through: bool,
}

/// All objects of the folders.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Objects {
    /// Labels of the namespaces that are declared.
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) services: BTreeMap<Key, Service>,
    pub(crate) config_maps: BTreeMap<Key, BTreeMap<String, String>>,
    pub(crate) secrets: BTreeMap<Key, BTreeMap<String, String>>,
    pub(crate) gateways: Vec<Gateway>,
    /// As declared; what is made for it is among the rest.
    pub(crate) gateway_api: gateway_api::Declared,
    pub(crate) entries: Vec<ServiceEntry>,
    /// What could not be read, or is not run.
    pub(crate) problems: Vec<Problem>,
}

/// The folders, with what was good in them at last: what cannot be read now keeps running.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    /// The last text of each file that could be parsed.
    texts: BTreeMap<PathBuf, String>,
    last: Objects,
}

impl Folders {
    /// Reads files and, of folders, the files directly in them that end in .yaml, .yml or .json.
    pub(crate) fn read(&mut self, paths: &[PathBuf]) -> Objects {
        let mut reader = Reader { last: std::mem::take(&mut self.last), ..Reader::default() };
        let mut texts = BTreeMap::new();
        for path in paths {
            for file in files(path, &mut reader.objects.problems) {
                let text = match std::fs::read(&file) {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    // Gone since it was listed.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(e) => {
                        reader.objects.problems.push(of_file(&file, format!("cannot be read: {e}")));
                        continue;
                    }
                };
                // What is no YAML is the control plane's to report, which reads the same file.
                let good = yaml::parse(&text, Dialect::Kubernetes).is_ok();
                let text = if good { Some(text) } else { self.texts.remove(&file) };
                if let Some(text) = text {
                    reader.read_text(&file.display().to_string(), &text);
                    texts.insert(file, text);
                }
            }
        }
        self.texts = texts;
        self.last = reader.objects.clone();
        gateway_api::deploy(&mut reader.objects);
        reader.objects
    }

    /// Whether a file that had something in it is gone or empty: perhaps only for the moment, as
    /// editors save by truncating and writing, or by renaming twice.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.texts.iter().any(|(file, text)| {
            !text.trim().is_empty() && std::fs::metadata(file).map_or(true, |metadata| metadata.len() == 0)
        })
    }
}

fn of_file(file: &Path, message: String) -> Problem {
    Problem { file: file.display().to_string(), line: 0, column: 0, path: String::new(), message }
}

/// What of a policy cannot be met, as proxies have no certificates here.
fn without_identities(origin: &Origin) -> Vec<Problem> {
    let mut problems = Vec::new();
    let spec = origin.document.find("spec").into_iter();
    let mut places: Vec<_> = spec.map(|spec| ("spec".to_owned(), spec)).collect();
    while let Some((path, node)) = places.pop() {
        for entry in node.entries() {
            let (path, value) = (format!("{path}.{}", entry.key), &entry.value);
            match &*entry.key {
                "mode" if value.as_str() == Some("STRICT") => {
                    let message =
                        "leno up has no certificates yet: whoever has a sidecar refuses all requests";
                    problems.push(origin.problem(&path, message));
                }
                "principals" | "notPrincipals" | "namespaces" | "notNamespaces" | "serviceAccounts"
                | "notServiceAccounts" => {
                    let message = "leno up has no certificates yet: no caller has an identity";
                    problems.push(origin.problem(&path, message));
                }
                _ => places.push((path, value)),
            }
        }
        for (index, item) in node.items().iter().enumerate() {
            places.push((format!("{path}[{index}]"), item));
        }
    }
    problems.sort();
    problems
}

/// The files that a path stands for, in the order of their names.
fn files(path: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) => {
            problems.push(of_file(path, format!("cannot be read: {e}")));
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_manifest(path) && path.is_file())
        .collect();
    files.sort();
    files
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    !hidden && matches!(extension, "yaml" | "yml" | "json")
}

/// What an object is and what it is called, read apart from the rest, so that a faulty object is
/// still known to be the one that was good before.
struct Head {
    group: String,
    kind: String,
    key: Key,
}

impl Head {
    fn of(document: &Node<'_>) -> Head {
        let text = |node: Option<&Node<'_>>| node.and_then(Node::as_str).unwrap_or_default().to_owned();
        let metadata = document.find("metadata");
        let of_metadata = |name: &str| text(metadata.and_then(|metadata| metadata.find(name)));
        let namespace = Some(of_metadata("namespace")).filter(|name| !name.is_empty());
        let version = text(document.find("apiVersion"));
        Head {
            group: version.split_once('/').map_or("", |(group, _)| group).to_owned(),
            kind: text(document.find("kind")),
            key: Key::new(namespace.as_deref().unwrap_or("default"), &of_metadata("name")),
        }
    }
}

#[derive(Default)]
struct Reader {
    objects: Objects,
    /// The objects before.
    last: Objects,
    /// Which file an object that only the runner reads came from, to report a second one.
    seen: BTreeMap<(String, Key), (Arc<str>, serde_json::Value)>,
}

impl Reader {
    fn read_text(&mut self, file: &str, text: &str) {
        let file: Arc<str> = file.into();
        for document in yaml::parse(text, Dialect::Kubernetes).unwrap_or_default() {
            let document = document.into_owned();
            let is_list =
                document.find("kind").and_then(Node::as_str).is_some_and(|kind| kind.ends_with("List"));
            match document.find("items") {
                Some(items) if is_list => {
                    for item in items.items() {
                        self.read_object(&file, item.clone());
                    }
                }
                _ => self.read_object(&file, document),
            }
        }
    }

    fn read_object(&mut self, file: &Arc<str>, document: Node<'static>) {
        let Head { group, kind, key } = Head::of(&document);
        let origin = Origin { file: file.clone(), document: Arc::new(document) };
        match (group.as_str(), kind.as_str()) {
            ("", "Namespace") => {
                // A faulty one is the control plane's to report, here and below.
                let labels = match self.typed::<core::Namespace>(&origin, false) {
                    Some(namespace) => namespace.metadata.labels,
                    None => self.last.namespaces.get(&key.name).cloned(),
                };
                self.objects.namespaces.entry(key.name).or_default().extend(labels.unwrap_or_default());
            }
            ("", "Service") => {
                let service = match self.typed::<core::Service>(&origin, false) {
                    Some(object) => Some(Service { key: key.clone(), object }),
                    None => self.last.services.get(&key).cloned(),
                };
                self.objects.services.extend(service.map(|service| (key, service)));
            }
            ("", "ConfigMap") => {
                let data = match self.typed::<core::ConfigMap>(&origin, true) {
                    Some(map) => Some(map.data.unwrap_or_default()),
                    None => self.last.config_maps.get(&key).cloned(),
                };
                self.objects.config_maps.extend(data.map(|data| (key, data)));
            }
            ("", "Secret") => self.read_secret(key, &origin),
            ("networking.istio.io", "Gateway") => self.read_gateway(key, &origin),
            ("networking.istio.io", "ServiceEntry") => self.read_entry(key, &origin),
            ("security.istio.io", "PeerAuthentication" | "AuthorizationPolicy") => {
                self.objects.problems.extend(without_identities(&origin));
            }
            (group, "Gateway" | "GatewayClass" | "ListenerSet" | "XListenerSet")
                if gateway_api::GROUPS.contains(&group) =>
            {
                self.read_gateway_api(&kind, key, origin);
            }
            ("apps" | "batch", _) | ("", "Pod" | "ReplicationController") => {
                self.read_workload(&kind, key, origin);
            }
            _ => {}
        }
    }

    fn read_workload(&mut self, kind: &str, key: Key, origin: Origin) {
        if key.name.is_empty() {
            self.objects.problems.push(origin.problem("metadata.name", "a name is needed"));
            return;
        }
        if self.is_second(kind, &key, &origin) {
            return;
        }
        let workload = match kind {
            "Deployment" => self.typed::<apps::Deployment>(&origin, true).and_then(|object| {
                let spec = object.spec?;
                Some((WorkloadKind::Deployment, spec.replicas, spec.template, None))
            }),
            "ReplicaSet" => self.typed::<apps::ReplicaSet>(&origin, true).and_then(|object| {
                let spec = object.spec?;
                Some((WorkloadKind::ReplicaSet, spec.replicas, spec.template?, None))
            }),
            "StatefulSet" => self.typed::<apps::StatefulSet>(&origin, true).and_then(|object| {
                let spec = object.spec?;
                Some((WorkloadKind::StatefulSet, spec.replicas, spec.template, spec.service_name))
            }),
            "DaemonSet" => self.typed::<apps::DaemonSet>(&origin, true).and_then(|object| {
                let spec = object.spec?;
                Some((WorkloadKind::DaemonSet, Some(1), spec.template, None))
            }),
            "Job" => self.typed::<batch::Job>(&origin, true).and_then(|object| {
                let spec = object.spec?;
                let suspended = spec.suspend.unwrap_or_default();
                Some((WorkloadKind::Job, Some(i32::from(!suspended)), spec.template, None))
            }),
            "Pod" => self.typed::<core::Pod>(&origin, true).and_then(|object| {
                // One with an address is somebody else's: a statement, not a wish.
                if object.status.as_ref().is_some_and(|status| status.pod_ip.is_some()) {
                    return None;
                }
                let template = core::PodTemplateSpec { metadata: Some(object.metadata), spec: object.spec };
                Some((WorkloadKind::Pod, Some(1), template, None))
            }),
            _ => {
                let message = format!("{kind} {key} is not run by leno up");
                self.objects.problems.push(origin.problem("kind", message));
                None
            }
        };
        let Some((read_kind, replicas, template, service_name)) = workload else {
            // A faulty one has been reported; what it made before keeps running.
            let before = self.last.workloads.iter().find(|it| it.key == key && it.kind.to_string() == kind);
            self.objects.workloads.extend(before.cloned());
            return;
        };
        let kind = read_kind;
        let metadata = template.metadata.unwrap_or_default();
        let Some(spec) = template.spec else {
            let path = format!("{}spec", kind.template_path());
            self.objects.problems.push(origin.problem(&path, "the pod's specification is missing"));
            return;
        };
        self.objects.workloads.push(Workload {
            kind,
            key,
            replicas: replicas.map_or(1, |replicas| u32::try_from(replicas).unwrap_or_default()),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            spec,
            service_name: service_name.unwrap_or_default(),
            origin,
        });
    }

    fn read_secret(&mut self, key: Key, origin: &Origin) {
        let Some(secret) = self.typed::<core::Secret>(origin, true) else {
            let before = self.last.secrets.get(&key).cloned();
            self.objects.secrets.extend(before.map(|before| (key, before)));
            return;
        };
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in secret.data.unwrap_or_default() {
            values.insert(name, String::from_utf8_lossy(&value.0).into_owned());
        }
        values.extend(secret.string_data.unwrap_or_default());
        self.objects.secrets.insert(key, values);
    }

    fn read_gateway(&mut self, key: Key, origin: &Origin) {
        let Some(object) = self.typed::<gateway::Object>(origin, false) else {
            let before = self.last.gateways.iter().find(|gateway| gateway.key == key);
            self.objects.gateways.extend(before.cloned());
            return;
        };
        let server = |(index, server): (usize, gateway::Server)| {
            let port = server.port?;
            let number = u16::try_from(port.number).ok().filter(|number| *number > 0)?;
            let place = origin.problem(&format!("spec.servers[{index}].port.number"), "");
            Some(GatewayPort { number, protocol: port.protocol.to_ascii_uppercase(), place })
        };
        let ports = object.spec.servers.into_iter().enumerate().filter_map(server).collect();
        let selector = object.spec.selector;
        self.objects.gateways.push(Gateway { key, selector, namespace: None, ports });
    }

    /// Faulty ones are the control plane's to report, and count as they were before.
    fn read_gateway_api(&mut self, kind: &str, key: Key, origin: Origin) {
        let last = std::mem::take(&mut self.last.gateway_api);
        match kind {
            "Gateway" => {
                let found = match self.typed::<gateway_api::GatewayObject>(&origin, false) {
                    Some(object) => Some(gateway_api::DeclaredGateway {
                        key,
                        annotations: object.metadata.annotations,
                        spec: object.spec,
                        origin,
                    }),
                    None => last.gateways.iter().find(|gateway| gateway.key == key).cloned(),
                };
                // Of two of the same name, the control plane says which counts.
                let gateways = &mut self.objects.gateway_api.gateways;
                let found = found.filter(|found| gateways.iter().all(|it| it.key != found.key));
                gateways.extend(found);
            }
            "GatewayClass" => {
                let found = match self.typed::<gateway_api::GatewayClassObject>(&origin, false) {
                    Some(object) => Some(object.spec.controller_name),
                    None => last.classes.get(&key.name).cloned(),
                };
                self.objects.gateway_api.classes.extend(found.map(|controller| (key.name, controller)));
            }
            _ => {
                let found = match self.typed::<gateway_api::ListenerSetObject>(&origin, false) {
                    Some(object) => Some(gateway_api::DeclaredSet { key, spec: object.spec, origin }),
                    None => last.sets.iter().find(|set| set.key == key).cloned(),
                };
                self.objects.gateway_api.sets.extend(found);
            }
        }
        self.last.gateway_api = last;
    }

    fn read_entry(&mut self, key: Key, origin: &Origin) {
        let Some(object) = self.typed::<entry::Object>(origin, false) else {
            let before = self.last.entries.iter().find(|entry| entry.key == key);
            self.objects.entries.extend(before.cloned());
            return;
        };
        if object.spec.resolution.starts_with("DNS") {
            let message = "in network namespaces pods have no way out of this machine yet, so what DNS knows \
                           of cannot be reached from them";
            self.objects.problems.push(origin.problem("spec.resolution", message));
        }
        let passes_through = matches!(object.spec.resolution.as_str(), "" | "NONE" | "DYNAMIC_DNS");
        self.objects.entries.push(ServiceEntry {
            key,
            hosts: object.spec.hosts,
            addresses: object.spec.addresses,
            passes_through,
        });
    }

    /// Reads a type; `ours` says whether faults are reported here or by the control plane.
    fn typed<T: DeserializeOwned>(&mut self, origin: &Origin, ours: bool) -> Option<T> {
        match yaml::from_node::<T>(&origin.document) {
            Ok((value, unknown)) => {
                if ours {
                    self.objects.problems.extend(unknown.into_iter().map(|field| {
                        let hint = field.suggestion.map(|name| format!(", did you mean '{name}'?"));
                        let message = format!("unknown field, has no effect{}", hint.unwrap_or_default());
                        origin.problem(&field.path, message)
                    }));
                }
                Some(value)
            }
            Err(error) => {
                if ours {
                    self.objects.problems.push(Problem {
                        file: origin.file.to_string(),
                        line: error.line,
                        column: error.column,
                        path: error.path,
                        message: error.message,
                    });
                }
                None
            }
        }
    }

    /// Whether there was another of the same name already; the same object twice is no problem.
    fn is_second(&mut self, kind: &str, key: &Key, origin: &Origin) -> bool {
        let json = origin.document.to_json();
        if let Some((file, other)) = self.seen.get(&(kind.to_owned(), key.clone())) {
            if *other != json {
                let message =
                    format!("there is another {kind} {key} in {file}, which is the one that counts");
                self.objects.problems.push(origin.problem("metadata.name", message));
            }
            return true;
        }
        self.seen.insert((kind.to_owned(), key.clone()), (origin.file.clone(), json));
        false
    }
}

/// Istio's Gateway, as far as it is needed here.
mod gateway {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Deserialize)]
    pub(super) struct Object {
        pub(super) spec: Spec,
    }

    #[derive(Deserialize)]
    pub(super) struct Spec {
        #[serde(default)]
        pub(super) selector: BTreeMap<String, String>,
        #[serde(default)]
        pub(super) servers: Vec<Server>,
    }

    #[derive(Deserialize)]
    pub(super) struct Server {
        pub(super) port: Option<Port>,
    }

    #[derive(Deserialize)]
    pub(super) struct Port {
        #[serde(default)]
        pub(super) number: u32,
        #[serde(default)]
        pub(super) protocol: String,
    }
}

/// Istio's ServiceEntry, as far as it is needed here.
mod entry {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub(super) struct Object {
        pub(super) spec: Spec,
    }

    #[derive(Deserialize)]
    pub(super) struct Spec {
        #[serde(default)]
        pub(super) hosts: Vec<String>,
        #[serde(default)]
        pub(super) addresses: Vec<String>,
        #[serde(default)]
        pub(super) resolution: String,
    }
}

#[cfg(test)]
pub(crate) fn read_text(text: &str) -> Objects {
    let mut reader = Reader::default();
    reader.read_text("mesh.yaml", text);
    gateway_api::deploy(&mut reader.objects);
    reader.objects
}

#[cfg(test)]
mod tests {
    use super::{Folders, Key, read_text};

    #[test]
    fn reads_what_makes_pods_and_reports_the_rest() {
        let objects = read_text(
            "kind: Namespace\napiVersion: v1\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\n\
             kind: Deployment\napiVersion: apps/v1\nmetadata: {name: web, namespace: shop}\nspec:\n  replicas: 2\n  \
             selector: {}\n  template:\n    spec:\n      containers: [{name: web, imag: x}]\n---\n\
             kind: CronJob\napiVersion: batch/v1\nmetadata: {name: nightly}\n---\n\
             kind: Deployment\napiVersion: apps/v1\nmetadata: {name: web, namespace: shop}\nspec: {selector: {}}\n",
        );
        assert_eq!(objects.namespaces["shop"]["istio-injection"], "enabled");
        assert_eq!(objects.workloads.len(), 1);
        assert_eq!(objects.workloads[0].key, Key::new("shop", "web"));
        let problems: Vec<String> = objects.problems.iter().map(ToString::to_string).collect();
        expect_test::expect![[r#"
            mesh.yaml:13:32: spec.template.spec.containers[0].imag: unknown field, has no effect, did you mean 'image'?
            mesh.yaml:15:1: kind: CronJob default/nightly is not run by leno up
            mesh.yaml:21:12: metadata.name: there is another Deployment shop/web in mesh.yaml, which is the one that counts"#]]
        .assert_eq(&problems.join("\n"));
    }

    #[test]
    fn says_what_needs_identities() {
        let objects = read_text(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, labels: {namespaces: x}}\n\
             spec:\n  mtls: {mode: STRICT}\n  portLevelMtls: {8080: {mode: PERMISSIVE}, 9090: {mode: STRICT}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: b}\nspec:\n  rules:\n  \
             - from: [{source: {ipBlocks: [10.0.0.0/8]}}, {source: {principals: ['*']}}]\n    to: [{operation: {methods: [GET]}}]\n",
        );
        let problems: Vec<String> = objects.problems.iter().map(ToString::to_string).collect();
        expect_test::expect![[r#"
            mesh.yaml:5:10: spec.mtls.mode: leno up has no certificates yet: whoever has a sidecar refuses all requests
            mesh.yaml:6:52: spec.portLevelMtls.9090.mode: leno up has no certificates yet: whoever has a sidecar refuses all requests
            mesh.yaml:13:58: spec.rules[0].from[1].source.principals: leno up has no certificates yet: no caller has an identity"#]].assert_eq(&problems.join("\n"));
    }

    #[test]
    fn reads_only_manifests_directly_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let service =
            |name: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{}}\n");
        std::fs::create_dir(folder.path().join("rules")).unwrap();
        for (file, name) in
            [("a.yaml", "a"), (".b.yaml", "b"), ("c.txt", "c"), ("rules/d.yaml", "d"), ("e.yml~", "e")]
        {
            std::fs::write(folder.path().join(file), service(name)).unwrap();
        }
        let objects = Folders::default().read(&[folder.path().to_owned()]);
        assert_eq!(objects.services.keys().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(objects.problems, []);
    }

    #[test]
    fn what_breaks_keeps_its_last_good_version() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 2, selector: {}, \
                    template: {spec: {containers: []}}}\n";
        let mut folders = Folders::default();
        for (text, doubtful) in
            [(text, false), ("kind: [", false), (&text.replace("2", "many"), false), ("", true)]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(folders.is_doubtful(), doubtful, "{text}");
            if !doubtful {
                let objects = folders.read(&[folder.path().to_owned()]);
                assert_eq!(objects.workloads.len(), 1, "{text}");
                assert_eq!(objects.workloads[0].replicas, 2, "{text}");
            }
        }
        assert_eq!(folders.read(&[folder.path().to_owned()]).workloads, []);
    }

    #[test]
    fn a_faulty_label_keeps_the_object_of_every_kind() {
        let folder = tempfile::tempdir().unwrap();
        let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {x: a}}\n---\n\
                    apiVersion: v1\nkind: Service\nmetadata: {name: s, labels: {x: a}}\nspec: {ports: [{port: 80}]}\n---\n\
                    apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, labels: {x: a}}\ndata: {k: v}\n---\n\
                    apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, labels: {x: a}}\n\
                    spec: {selector: {}, template: {spec: {containers: []}}}\n";
        let mut folders = Folders::default();
        let mut read = |text: &str| {
            std::fs::write(folder.path().join("a.yaml"), text).unwrap();
            folders.read(&[folder.path().to_owned()])
        };
        let before = read(good);
        assert_eq!((before.services.len(), before.config_maps.len(), before.workloads.len()), (1, 1, 1));
        let after = read(&good.replace("x: a", "x: 1"));
        assert_eq!(after.namespaces, before.namespaces);
        assert_eq!(after.services, before.services);
        assert_eq!(after.config_maps, before.config_maps);
        assert_eq!(after.workloads.len(), 1);
        assert!(!after.problems.is_empty());
    }
}
