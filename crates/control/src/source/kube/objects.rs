//! What is known of the objects of one resource, without I/O: lists and events in, changes out.
//!
//! A list replaces what is known in one step, when it is whole: nothing disappears because a list
//! had to be begun again. An object that cannot be used is reported, and its last good version
//! stays in use, as with files.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use leno_api::yaml::{Entry, Kind as Scalar, Node, Position, Value};

use super::discovery::Served;
use crate::model::diagnostic::{Diagnostic, Finding};
use crate::model::read::{self, Read};
use crate::model::{Change, Key, Kind, ObjectRef};
use crate::source::Origin;

#[derive(Debug, Default)]
pub(super) struct Objects {
    known: HashMap<Key, Known>,
    /// Counts the lists.
    epoch: u32,
    /// What lists and events have changed and was not told yet.
    pending: Vec<Change>,
    /// The objects that have gone since this was asked for, good or not; others of their name may have
    /// come.
    gone: Vec<Key>,
    diagnostics: BTreeMap<Key, Vec<Diagnostic>>,
    /// Whether the diagnostics have changed since they were asked for.
    fresh_diagnostics: bool,
    /// Configuration with the label of another revision is passed over.
    revision: Option<String>,
    /// What the one object that is read is called, whatever its name is.
    alias: Option<&'static str>,
}

/// The label by which an object is for the control plane of one revision.
const REVISION: &str = "istio.io/rev";

/// One object.
#[derive(Debug)]
struct Known {
    /// Its `resourceVersion`, by which it is known to be unchanged.
    version: Box<str>,
    /// A hash of its `uid`, by which it is known to be the same and not another of its name.
    incarnation: u64,
    /// In which list it was seen last.
    epoch: u32,
    /// Under which kind a version of it is in use; `None`: none was ever good.
    used: Option<Kind>,
}

impl Objects {
    /// With what is passed over, and renamed.
    pub(super) fn new(revision: Option<String>, alias: Option<&'static str>) -> Objects {
        let default = |name: String| if name.is_empty() { "default".to_owned() } else { name };
        Objects { revision: revision.map(default), alias, ..Objects::default() }
    }

    /// A list begins; what was read of one that did not end counts nevertheless.
    pub(super) fn begin(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// An object of the list, or one that was added or changed.
    pub(super) fn set(&mut self, served: &Served, node: Node<'_>) {
        let mut node = completed(served, node);
        if let Some(alias) = self.alias {
            rename(&mut node, alias);
        }
        if self.is_of_others(served, &node) {
            return self.remove(&node);
        }
        let text =
            |path: [&str; 2]| node.find(path[0]).and_then(|it| it.find(path[1])).and_then(Node::as_str);
        let name = text(["metadata", "name"]).unwrap_or_default();
        let key = Key {
            namespace: text(["metadata", "namespace"]).unwrap_or_default().to_owned(),
            name: name.to_owned(),
        };
        let version = text(["metadata", "resourceVersion"]).unwrap_or_default();
        let generation = node.find("metadata").and_then(|it| it.find("generation")).map(Node::to_json);
        let generation = generation.and_then(|generation| generation.as_i64()).unwrap_or(0);
        let epoch = self.epoch;
        if let Some(known) = self.known.get_mut(&key)
            && !version.is_empty()
            && *known.version == *version
        {
            known.epoch = epoch;
            return;
        }
        let incarnation = incarnation(text(["metadata", "uid"]).unwrap_or_default());
        // That the other was deleted may not have been seen: a list knows only what there is.
        if self.known.get(&key).is_some_and(|known| known.incarnation != incarnation) {
            self.forget(&key);
        }
        let used = self.known.get(&key).and_then(|known| known.used);
        let (now, found) = match read::read(&node) {
            Read::Object { reference, object, findings } => {
                let now = Some(reference.kind);
                let found = diagnostics(served, &reference.to_string(), &findings, |finding| {
                    Diagnostic::about(&reference, finding)
                });
                let origin = Origin::object(generation, kept_text(served, &node));
                self.pending.push(Change::Set(reference, object, origin));
                (now, found)
            }
            // Its last good version stays.
            Read::Rejected { reference, findings } => {
                let found = diagnostics(served, &reference.to_string(), &findings, |finding| {
                    Diagnostic::about(&reference, finding)
                });
                (used, found)
            }
            Read::Skipped { kind, namespace, name, findings } => {
                let found = diagnostics(served, &name, &findings, |finding| Diagnostic {
                    severity: finding.severity,
                    code: finding.code.to_owned(),
                    file: String::new(),
                    line: 0,
                    column: 0,
                    kind: if kind.is_empty() { served.kind.to_owned() } else { kind.clone() },
                    namespace: namespace.clone(),
                    name: if name.is_empty() { key.name.clone() } else { name.clone() },
                    path: finding.path.clone(),
                    message: finding.message.clone(),
                });
                (used, found)
            }
        };
        self.report(&key, found);
        self.known.insert(key, Known { version: version.into(), incarnation, epoch, used: now });
    }

    /// An object that was deleted.
    pub(super) fn remove(&mut self, node: &Node<'_>) {
        let text = |name| node.find("metadata").and_then(|it| it.find(name)).and_then(Node::as_str);
        let key = Key {
            namespace: text("namespace").unwrap_or_default().to_owned(),
            name: self.alias.or_else(|| text("name")).unwrap_or_default().to_owned(),
        };
        self.forget(&key);
    }

    /// Whether an object is for the control plane of another revision.
    fn is_of_others(&self, served: &Served, node: &Node<'_>) -> bool {
        let Some(revision) = self.revision.as_deref().filter(|_| is_config(served)) else { return false };
        let labels = node.find("metadata").and_then(|it| it.find("labels"));
        let label = labels.and_then(|it| it.find(REVISION)).and_then(Node::as_str).unwrap_or_default();
        !label.is_empty() && label != revision
    }

    /// The list is whole: what was not in it is gone.
    pub(super) fn finish(&mut self) {
        let epoch = self.epoch;
        let stale = self.known.iter().filter(|(_, known)| known.epoch != epoch);
        let stale: Vec<Key> = stale.map(|(key, _)| key.clone()).collect();
        stale.iter().for_each(|key| self.forget(key));
    }

    /// Everything is gone.
    pub(super) fn clear(&mut self) {
        self.begin();
        self.finish();
    }

    /// What has changed since this was asked last.
    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.pending)
    }

    /// The objects that have gone since this was asked last, whatever has come under their names.
    pub(super) fn take_gone(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.gone)
    }

    /// What is wrong with the objects, if that has changed since this was asked last.
    pub(super) fn take_diagnostics(&mut self) -> Option<Vec<Diagnostic>> {
        std::mem::take(&mut self.fresh_diagnostics)
            .then(|| self.diagnostics.values().flatten().cloned().collect())
    }

    fn forget(&mut self, key: &Key) {
        if let Some(known) = self.known.remove(key) {
            self.gone.push(key.clone());
            self.pending.extend(known.used.map(|kind| Change::Remove(reference(kind, key))));
        }
        self.report(key, Vec::new());
    }

    fn report(&mut self, key: &Key, found: Vec<Diagnostic>) {
        if found.is_empty() {
            self.fresh_diagnostics |= self.diagnostics.remove(key).is_some();
        } else if self.diagnostics.get(key) != Some(&found) {
            self.diagnostics.insert(key.clone(), found);
            self.fresh_diagnostics = true;
        }
    }
}

/// What tells an object from a later one of the same name.
fn incarnation(uid: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish()
}

/// The name of an object among all.
pub(super) fn reference(kind: Kind, key: &Key) -> ObjectRef {
    let mut reference = key.of(kind);
    if kind.is_cluster_scoped() {
        reference.namespace.clear();
    }
    reference
}

/// Findings as diagnostics. Fields that we do not know are nothing to report of objects whose types
/// the cluster itself checks: it is newer than we are.
fn diagnostics(
    served: &Served,
    about: &str,
    findings: &[Finding],
    locate: impl Fn(&Finding) -> Diagnostic,
) -> Vec<Diagnostic> {
    let group = served.api_version.split_once('/').map_or("", |(group, _)| group);
    let is_own = !group.contains("istio.io") && !group.starts_with("gateway.networking.");
    let told = findings.iter().filter(|finding| !(is_own && finding.code == "unknown-field"));
    let told: Vec<Diagnostic> = told.map(locate).collect();
    if !told.is_empty() {
        tracing::debug!(object = about, findings = told.len(), "read with findings");
    }
    told
}

/// The text of an object that people may want to look at: configuration, without what only machines
/// read. What there is very much of (pods and endpoints) and what is secret is not kept.
fn kept_text(served: &Served, node: &Node<'_>) -> Arc<str> {
    let is_mesh = served.kind == "ConfigMap"
        && node.find("metadata").and_then(|it| it.find("name")).and_then(Node::as_str)
            == Some(read::MESH_CONFIG_MAP);
    if !is_config(served) && !is_mesh {
        return Arc::from("");
    }
    let mut json = node.to_json();
    if let Some(object) = json.as_object_mut() {
        object.remove("status");
        if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    Arc::from(json.to_string())
}

/// Whether it is configuration of a mesh.
fn is_config(served: &Served) -> bool {
    let group = served.api_version.split_once('/').map_or("", |(group, _)| group);
    group.ends_with("istio.io") || group.starts_with("gateway.networking.")
}

/// Gives an object another name.
fn rename(node: &mut Node<'_>, name: &'static str) {
    let Value::Mapping(entries) = &mut node.value else { return };
    let metadata = entries.iter_mut().find(|entry| entry.key == "metadata");
    let Some(Entry { value: Node { value: Value::Mapping(entries), .. }, .. }) = metadata else { return };
    if let Some(entry) = entries.iter_mut().find(|entry| entry.key == "name")
        && let Value::Scalar(scalar) = &mut entry.value.value
    {
        scalar.text = name.into();
    }
}

/// An object with what the items of lists leave out.
fn completed<'t>(served: &'t Served, mut node: Node<'t>) -> Node<'t> {
    for (key, value) in [("kind", served.kind), ("apiVersion", served.api_version.as_str())] {
        if node.find(key).is_none()
            && let Value::Mapping(entries) = &mut node.value
        {
            let text = leno_api::yaml::Scalar { text: value.into(), kind: Scalar::String, plain: false };
            let value = Node { value: Value::Scalar(text), position: Position::default() };
            entries.insert(0, Entry { key: key.into(), position: Position::default(), value });
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use leno_api::yaml::from_json;
    use serde_json::{Value, json};

    use super::Objects;
    use crate::model::Change;
    use crate::source::kube::discovery::Served;

    fn served() -> Served {
        Served {
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "Gateway",
            plural: "gateways".to_owned(),
            namespaced: true,
        }
    }

    fn gateway(name: &str, version: u32, host: &str) -> Value {
        json!({ "metadata": { "name": name, "namespace": "n", "resourceVersion": version.to_string() },
            "spec": { "servers": [{ "port": { "number": 80, "name": "http", "protocol": "HTTP" }, "hosts": [host] }] } })
    }

    fn list(objects: &mut Objects, items: &[Value]) {
        objects.begin();
        for item in items {
            objects.set(&served(), from_json(&item.to_string()).unwrap());
        }
    }

    fn told(objects: &mut Objects) -> Vec<String> {
        objects
            .take()
            .iter()
            .map(|change| match change {
                Change::Set(reference, ..) => format!("set {reference}"),
                Change::Remove(reference) => format!("remove {reference}"),
            })
            .collect()
    }

    #[test]
    fn a_list_replaces_what_is_known_when_it_is_whole() {
        let mut objects = Objects::default();
        list(&mut objects, &[gateway("a", 1, "a.b"), gateway("b", 2, "a.b"), gateway("c", 3, "a.b")]);
        objects.finish();
        assert_eq!(told(&mut objects), ["set Gateway n/a", "set Gateway n/b", "set Gateway n/c"]);
        // One that breaks off removes nothing, and what it told is not lost.
        list(&mut objects, &[gateway("a", 5, "a.b")]);
        list(&mut objects, &[gateway("a", 5, "a.b"), gateway("c", 3, "a.b")]);
        objects.finish();
        assert_eq!(told(&mut objects), ["set Gateway n/a", "remove Gateway n/b"]);
    }

    #[test]
    fn what_is_for_another_revision_is_passed_over() {
        let of = |revision: &str, version| {
            let mut object = gateway("a", version, "a.b");
            object["metadata"]["labels"] = json!({ "istio.io/rev": revision });
            object
        };
        for (own, other) in [("", "canary"), ("default", "canary"), ("canary", "default")] {
            let mut objects = Objects::new(Some(own.to_owned()), None);
            let own = if own.is_empty() { "default" } else { own };
            list(&mut objects, &[of(other, 1), gateway("b", 2, "a.b")]);
            objects.finish();
            assert_eq!(told(&mut objects), ["set Gateway n/b"]);
            objects.set(&served(), from_json(&of(own, 3).to_string()).unwrap());
            assert_eq!(told(&mut objects), ["set Gateway n/a"]);
            // Its label is changed: it has gone to the other.
            objects.set(&served(), from_json(&of(other, 4).to_string()).unwrap());
            assert_eq!(told(&mut objects), ["remove Gateway n/a"]);
        }
        let mut all = Objects::new(None, None);
        list(&mut all, &[of("canary", 1)]);
        assert_eq!(told(&mut all), ["set Gateway n/a"]);
        // Labels of what is no configuration, as of Pods, are none of this.
        let pods = Served {
            api_version: "v1".to_owned(),
            kind: "ConfigMap",
            plural: "configmaps".to_owned(),
            namespaced: true,
        };
        let map = json!({ "metadata": { "name": "istio-canary", "namespace": "n", "resourceVersion": "1",
            "labels": { "istio.io/rev": "canary" } }, "data": { "mesh": "{}" } });
        let mut objects = Objects::new(Some("other".to_owned()), Some("istio"));
        objects.set(&pods, from_json(&map.to_string()).unwrap());
        objects.remove(&from_json(&map.to_string()).unwrap());
        assert_eq!(told(&mut objects), ["set MeshConfig n/istio", "remove MeshConfig n/istio"]);
    }

    #[test]
    fn another_of_the_same_name_is_another() {
        let gone = |objects: &mut Objects| -> Vec<String> {
            objects.take_gone().into_iter().map(|key| key.name).collect()
        };
        let of = |uid: &str, version, host| {
            let mut object = gateway("a", version, host);
            object["metadata"]["uid"] = uid.into();
            object
        };
        let mut objects = Objects::default();
        list(&mut objects, &[of("1", 1, "a.b")]);
        list(&mut objects, &[of("1", 2, "a.b")]);
        objects.finish();
        assert_eq!((told(&mut objects).len(), gone(&mut objects).len()), (2, 0));
        // The list tells of the second, and nothing of the end of the first.
        list(&mut objects, &[of("2", 3, "a.b")]);
        objects.finish();
        assert_eq!(told(&mut objects), ["remove Gateway n/a", "set Gateway n/a"]);
        assert_eq!(gone(&mut objects), ["a"]);
        // What was good of one is no version of the other.
        objects.set(&served(), from_json(&of("3", 4, "not a host").to_string()).unwrap());
        assert_eq!(told(&mut objects), ["remove Gateway n/a"]);
        assert_eq!((gone(&mut objects).len(), objects.take_diagnostics().unwrap().len()), (1, 1));
        objects.remove(&from_json(&of("3", 5, "not a host").to_string()).unwrap());
        assert_eq!((told(&mut objects).len(), gone(&mut objects)), (0, vec!["a".to_owned()]));
        assert!(objects.take_diagnostics().unwrap().is_empty());
    }

    #[test]
    fn the_last_good_version_stays_and_others_change() {
        let mut objects = Objects::default();
        list(&mut objects, &[gateway("a", 1, "a.b"), gateway("bad", 2, "not a host")]);
        objects.finish();
        assert_eq!(told(&mut objects), ["set Gateway n/a"]);
        let found = objects.take_diagnostics().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].name.as_str(), found[0].path.as_str()), ("bad", "spec.servers[0].hosts[0]"));
        let broken =
            json!({ "metadata": { "name": "a", "namespace": "n", "resourceVersion": "3" }, "spec": [1] });
        objects.set(&served(), from_json(&broken.to_string()).unwrap());
        let nameless = json!({ "metadata": 5 });
        objects.set(&served(), from_json(&nameless.to_string()).unwrap());
        assert!(told(&mut objects).is_empty());
        assert_eq!(objects.take_diagnostics().unwrap().len(), 3);
        assert!(objects.take_diagnostics().is_none());
        // Gone is gone, even where only a broken version was left.
        objects.remove(&from_json(&broken.to_string()).unwrap());
        assert_eq!(told(&mut objects), ["remove Gateway n/a"]);
        objects.clear();
        assert!(told(&mut objects).is_empty());
        assert!(objects.take_diagnostics().unwrap().is_empty());
    }
}
