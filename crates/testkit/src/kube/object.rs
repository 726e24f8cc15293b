//! What creating, changing and deleting an object means.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::apply::without_managers;
use super::defaults;
use super::resource::Resource;
use super::schema;
use super::state::State;
use super::status::Failure;
use super::store::{Key, ResourceName};
use super::time;

/// What a request is about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) resource: Arc<Resource>,
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) subresource: String,
}

impl Target {
    pub(super) fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }

    pub(super) fn api_version(&self) -> String {
        self.resource.api_version(&self.version)
    }

    pub(super) fn schema(&self) -> Option<&Value> {
        self.resource.version(&self.version)?.schema.as_deref()
    }

    pub(super) fn has_status(&self) -> bool {
        self.resource.version(&self.version).is_some_and(|version| version.status)
    }

    pub(super) fn not_found(&self) -> Failure {
        Failure::not_found(&self.resource.group, &self.resource.plural, &self.name)
    }

    pub(super) fn conflict(&self, why: &str) -> Failure {
        Failure::conflict(&self.resource.group, &self.resource.plural, &self.name, why)
    }

    pub(super) fn invalid(&self, faults: &[(String, String)]) -> Failure {
        Failure::invalid(&self.resource.group, &self.resource.kind, &self.name, faults)
    }

    /// An object in the version that was asked for.
    pub(super) fn present(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".to_owned(), Value::from(self.api_version()));
            map.insert("kind".to_owned(), Value::from(self.resource.kind.as_str()));
        }
        object
    }
}

/// What a deletion asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct DeleteOptions {
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) orphan: bool,
    pub(super) dry_run: bool,
    /// How many seconds a Pod may take; `None` leaves it to the Pod.
    pub(super) grace: Option<u64>,
}

/// The text at a path of fields; empty if there is none.
pub(super) fn text<'v>(object: &'v Value, path: &[&str]) -> &'v str {
    let found = path.iter().try_fold(object, |at, key| at.get(key));
    found.and_then(Value::as_str).unwrap_or_default()
}

/// The metadata, made an object if it is none.
pub(super) fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let metadata = map.entry("metadata").or_insert(Value::Null);
    if !metadata.is_object() {
        *metadata = Value::from(Map::new());
    }
    metadata.as_object_mut()
}

fn finalizers(object: &Value) -> bool {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.is_some_and(|list| !list.is_empty())
}

fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|it| !it.is_null())
}

impl State {
    /// Identifier and time of creation, where they are missing.
    pub(super) fn fill_metadata(&mut self, object: &mut Value) {
        let (uid, now) = (self.uid(), time::rfc3339(self.now()));
        let Some(metadata) = metadata(object) else { return };
        metadata.entry("uid").or_insert_with(|| Value::from(uid));
        metadata.entry("creationTimestamp").or_insert_with(|| Value::from(now));
    }

    /// The object that a request to create it would make, before admission.
    pub(super) fn prepare_create(
        &mut self,
        target: &mut Target,
        mut object: Value,
    ) -> Result<Value, Failure> {
        identify(target, &mut object)?;
        let suffix = self.suffix();
        let namespaced = target.resource.namespaced;
        let Some(metadata) = metadata(&mut object) else {
            return Err(Failure::bad_request("the body is not an object"));
        };
        let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
        let name = if name.is_empty() && !prefix.is_empty() { format!("{prefix}{suffix}") } else { name };
        metadata.insert("name".to_owned(), Value::from(name.as_str()));
        for (field, reserved) in [
            ("resourceVersion", true),
            ("uid", false),
            ("deletionTimestamp", false),
            ("creationTimestamp", false),
            ("managedFields", false),
            ("generation", false),
        ] {
            let old = metadata.shift_remove(field);
            if reserved && old.as_ref().and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
                return Err(Failure::bad_request(
                    "resourceVersion should not be set on objects to be created",
                ));
            }
        }
        metadata.shift_remove("namespace");
        if namespaced {
            metadata.insert("namespace".to_owned(), Value::from(target.namespace.as_str()));
        }
        target.name = name;
        if let Some(fault) = name_fault(&target.name, &target.resource.group) {
            return Err(target.invalid(&[("metadata.name".to_owned(), fault)]));
        }
        if namespaced {
            self.check_namespace(&target.namespace)?;
        }
        if self.store.find(&target.resource.name(), &target.key()).is_some() {
            return Err(Failure::exists(&target.resource.group, &target.resource.plural, &target.name));
        }
        if target.has_status()
            && !matches!(target.resource.kind.as_str(), "Node" | "CustomResourceDefinition")
            && let Some(map) = object.as_object_mut()
        {
            map.shift_remove("status");
        }
        if target.resource.counts_generations()
            && let Some(metadata) = self::metadata(&mut object)
        {
            metadata.insert("generation".to_owned(), Value::from(1));
        }
        self.fill_metadata(&mut object);
        defaults::fill(self, &target.resource, &mut object);
        Ok(object)
    }

    fn check_namespace(&self, name: &str) -> Result<(), Failure> {
        let namespaces = (String::new(), "namespaces".to_owned());
        let Some(namespace) = self.store.find(&namespaces, &(String::new(), name.to_owned())) else {
            return Err(Failure::not_found("", "namespaces", name));
        };
        if is_deleting(namespace) {
            let message =
                format!("unable to create new content in namespace {name} because it is being terminated");
            let mut failure = Failure::new(403, "Forbidden", message);
            let cause = format!("namespace {name} is being terminated");
            failure.causes = vec![("metadata.namespace".to_owned(), cause, "NamespaceTerminating")];
            return Err(failure);
        }
        Ok(())
    }

    /// The object that a change of a live one would make, before admission.
    pub(super) fn prepare_update(
        &mut self,
        target: &Target,
        live: &Value,
        mut object: Value,
    ) -> Result<Value, Failure> {
        identify(target, &mut object)?;
        if text(&object, &["metadata", "name"]) != target.name {
            let message = format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                text(&object, &["metadata", "name"]),
                target.name
            );
            return Err(Failure::bad_request(message));
        }
        let given = text(&object, &["metadata", "resourceVersion"]);
        if !given.is_empty() && given != text(live, &["metadata", "resourceVersion"]) {
            return Err(target.conflict(
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        let given = text(&object, &["metadata", "uid"]);
        if !given.is_empty() && given != text(live, &["metadata", "uid"]) {
            return Err(target.conflict("Precondition failed: the UID is another"));
        }
        let whole_status = matches!(target.subresource.as_str(), "status" | "approval");
        if whole_status {
            let mut changed = live.clone();
            if let (Some(map), Some(status)) = (changed.as_object_mut(), object.get("status")) {
                map.insert("status".to_owned(), status.clone());
            }
            // Of Pods and Nodes, kubelets change labels and annotations together with the status.
            let kubelets = target.resource.group.is_empty()
                && matches!(target.resource.plural.as_str(), "pods" | "nodes");
            let more: &[&str] = if kubelets { &["labels", "annotations"] } else { &[] };
            if let Some(metadata) = metadata(&mut changed) {
                for &field in ["managedFields"].iter().chain(more) {
                    if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
                        metadata.insert(field.to_owned(), value.clone());
                    }
                }
            }
            return Ok(changed);
        }
        if target.has_status()
            && let Some(map) = object.as_object_mut()
        {
            match live.get("status") {
                Some(status) => drop(map.insert("status".to_owned(), status.clone())),
                None => drop(map.shift_remove("status")),
            }
        }
        if let Some(metadata) = metadata(&mut object) {
            if target.resource.namespaced {
                metadata.insert("namespace".to_owned(), Value::from(target.namespace.as_str()));
            }
            for field in [
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "generation",
                "resourceVersion",
            ] {
                match live.get("metadata").and_then(|live| live.get(field)) {
                    Some(value) => drop(metadata.insert(field.to_owned(), value.clone())),
                    None => drop(metadata.shift_remove(field)),
                }
            }
        }
        defaults::keep(&target.resource, live, &mut object);
        defaults::fill(self, &target.resource, &mut object);
        if target.resource.counts_generations() && desired(&object) != desired(live) {
            let generation = live.pointer("/metadata/generation").and_then(Value::as_u64).unwrap_or(0);
            if let Some(metadata) = metadata(&mut object) {
                metadata.insert("generation".to_owned(), Value::from(generation + 1));
            }
        }
        Ok(object)
    }

    /// Stores an object.
    pub(super) fn commit(&mut self, resource: &Resource, key: &Key, object: Value) -> Arc<Value> {
        let is_new = self.store.find(&resource.name(), key).is_none();
        let stored = self.store.set(&resource.name(), key, object);
        if is_deleting(&stored)
            && !finalizers(&stored)
            && !is_new
            && resource.kind != "Namespace"
            && !is_graceful(&stored)
        {
            return self.commit_removal(resource, key).unwrap_or(stored);
        }
        match resource.kind.as_str() {
            "CustomResourceDefinition" => self.define(&stored, true),
            "Namespace" if is_new => self.furnish(&key.1),
            _ => {}
        }
        stored
    }

    /// Every namespace has a service account and the root certificate.
    fn furnish(&mut self, namespace: &str) {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": "default", "namespace": namespace } });
        let root = json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "kube-root-ca.crt", "namespace": namespace }, "data": { "ca.crt": "" } });
        for object in [account, root] {
            // Both kinds are built in.
            self.put_raw(object).unwrap_or_else(|failure| panic!("{}", failure.message));
        }
    }

    /// Removes an object and what goes with it; returns it as it was.
    pub(super) fn commit_removal(&mut self, resource: &Resource, key: &Key) -> Option<Arc<Value>> {
        let last = self.store.remove(&resource.name(), key)?;
        if resource.kind == "CustomResourceDefinition" {
            let instances = (
                text(&last, &["spec", "group"]).to_owned(),
                text(&last, &["spec", "names", "plural"]).to_owned(),
            );
            for key in self.keys(&instances, "") {
                self.store.remove(&instances, &key);
            }
            self.define(&last, false);
        }
        self.collect(text(&last, &["metadata", "uid"]));
        self.end_namespace(&key.0);
        Some(last)
    }

    fn keys(&self, resource: &ResourceName, namespace: &str) -> Vec<Key> {
        let key = |object: &Arc<Value>| {
            (
                text(object, &["metadata", "namespace"]).to_owned(),
                text(object, &["metadata", "name"]).to_owned(),
            )
        };
        self.store.list(resource, namespace).map(key).collect()
    }

    /// Deletes what belonged to an object that is gone.
    fn collect(&mut self, owner: &str) {
        let owners = |object: &Value| -> Vec<String> {
            let list = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
            list.into_iter().flatten().map(|it| text(it, &["uid"]).to_owned()).collect()
        };
        let living: std::collections::HashSet<String> = self
            .store
            .everything()
            .map(|(_, _, object)| text(object, &["metadata", "uid"]).to_owned())
            .collect();
        let orphans: Vec<(ResourceName, Key)> = self
            .store
            .everything()
            .filter(|(_, _, object)| {
                let owners = owners(object);
                owners.iter().any(|uid| uid == owner) && owners.iter().all(|uid| !living.contains(uid))
            })
            .map(|(resource, key, _)| (resource.clone(), key.clone()))
            .collect();
        for (name, key) in orphans {
            let resource = self.resources.iter().find(|it| it.name() == name).cloned();
            if let Some(resource) = resource {
                // Gone meanwhile is as good.
                let _ = self.delete(&resource, &key, &DeleteOptions::default());
            }
        }
    }

    /// Ends a namespace that is being deleted and has become empty.
    fn end_namespace(&mut self, namespace: &str) {
        let namespaces = (String::new(), "namespaces".to_owned());
        let key = (String::new(), namespace.to_owned());
        let ends = self.store.find(&namespaces, &key).is_some_and(|it| is_deleting(it) && !finalizers(it));
        let is_empty = !self.store.everything().any(|(_, key, _)| key.0 == namespace);
        if !namespace.is_empty() && ends && is_empty {
            self.store.remove(&namespaces, &key);
        }
    }

    /// Deletes an object, or begins to: with finalizers it lives on until they are done. Returns it,
    /// and whether it is gone.
    pub(super) fn delete(
        &mut self,
        resource: &Arc<Resource>,
        key: &Key,
        options: &DeleteOptions,
    ) -> Result<(Arc<Value>, bool), Failure> {
        let (group, plural) = (&resource.group, &resource.plural);
        let Some(live) = self.store.find(&resource.name(), key).cloned() else {
            return Err(Failure::not_found(group, plural, &key.1));
        };
        for (wanted, path) in [(&options.uid, "uid"), (&options.resource_version, "resourceVersion")] {
            let own = text(&live, &["metadata", path]);
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != own) {
                let why =
                    format!("Precondition failed: {path} in precondition: {wanted}, in object meta: {own}");
                return Err(Failure::conflict(group, plural, &key.1, &why));
            }
        }
        if options.dry_run {
            return Ok((live, true));
        }
        if options.orphan {
            self.orphan(text(&live, &["metadata", "uid"]));
        }
        if finalizers(&live) || resource.kind == "Namespace" {
            if is_deleting(&live) {
                return Ok((live, false));
            }
            let mut dying = Value::clone(&live);
            let now = time::rfc3339(self.now());
            if let Some(metadata) = metadata(&mut dying) {
                metadata.insert("deletionTimestamp".to_owned(), Value::from(now));
                metadata.insert("deletionGracePeriodSeconds".to_owned(), Value::from(0));
            }
            if resource.kind == "Namespace" {
                dying["status"] = json!({ "phase": "Terminating" });
            }
            let dying = self.store.set(&resource.name(), key, dying);
            if resource.kind == "Namespace" {
                self.empty_namespace(&key.1);
                let gone = self.store.find(&resource.name(), key).is_none();
                return Ok((dying, gone));
            }
            return Ok((dying, false));
        }
        if let Some(seconds) = self.grace(resource, &live, options.grace) {
            let now = time::rfc3339(self.now());
            let mut dying = Value::clone(&live);
            if let Some(metadata) = metadata(&mut dying) {
                metadata.entry("deletionTimestamp").or_insert_with(|| Value::from(now));
                metadata.insert("deletionGracePeriodSeconds".to_owned(), Value::from(seconds));
            }
            return Ok((self.store.set(&resource.name(), key, dying), false));
        }
        let last = self.commit_removal(resource, key).unwrap_or(live);
        Ok((last, true))
    }

    /// How long a Pod has to end, if there is a kubelet that ends it.
    fn grace(&self, resource: &Resource, pod: &Value, asked: Option<u64>) -> Option<u64> {
        let runs = self.kubelet && resource.kind == "Pod" && !text(pod, &["spec", "nodeName"]).is_empty();
        let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(30);
        Some(asked.unwrap_or(own)).filter(|seconds| runs && *seconds > 0)
    }

    fn empty_namespace(&mut self, namespace: &str) {
        let all: Vec<(ResourceName, Key)> = self
            .store
            .everything()
            .filter(|(_, key, _)| key.0 == namespace)
            .map(|(resource, key, _)| (resource.clone(), key.clone()))
            .collect();
        for (name, key) in all {
            let resource = self.resources.iter().find(|it| it.name() == name).cloned();
            if let Some(resource) = resource {
                // Gone meanwhile, with its owner, is as good.
                let _ = self.delete(&resource, &key, &DeleteOptions::default());
            }
        }
        self.end_namespace(namespace);
    }

    /// Lets what belongs to an object belong to nobody.
    fn orphan(&mut self, owner: &str) {
        let is_owner = |it: &Value| text(it, &["uid"]) == owner;
        let all: Vec<(ResourceName, Key, Value)> = self
            .store
            .everything()
            .filter(|(_, _, object)| {
                let list = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
                list.into_iter().flatten().any(is_owner)
            })
            .map(|(resource, key, object)| (resource.clone(), key.clone(), Value::clone(object)))
            .collect();
        for (resource, key, mut object) in all {
            if let Some(Value::Array(list)) = object.pointer_mut("/metadata/ownerReferences") {
                list.retain(|it| !is_owner(it));
            }
            self.store.set(&resource, &key, object);
        }
    }
}

/// Whether it is a Pod that its node ends.
fn is_graceful(object: &Value) -> bool {
    let seconds = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64);
    seconds.is_some_and(|seconds| seconds > 0)
}

/// Whether a change is none.
pub(super) fn is_same(live: &Value, object: &Value) -> bool {
    without_managers(live) == without_managers(object)
}

/// All but metadata and status.
fn desired(object: &Value) -> Vec<(&String, &Value)> {
    let map = object.as_object().into_iter().flatten();
    let mut fields: Vec<(&String, &Value)> = map
        .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
        .collect();
    fields.sort_by_key(|(key, _)| *key);
    fields
}

/// Checks that a body is of the kind that the path names, and fills in what it leaves out.
fn identify(target: &Target, object: &mut Value) -> Result<(), Failure> {
    let (api_version, kind) = (target.api_version(), target.resource.kind.clone());
    let Some(map) = object.as_object_mut() else {
        return Err(Failure::bad_request("the body is not an object"));
    };
    for (field, expected) in [("apiVersion", api_version), ("kind", kind)] {
        let given = map.get(field).and_then(Value::as_str).unwrap_or_default();
        if !given.is_empty() && given != expected {
            let message =
                format!("the {field} in the data ({given}) does not match the expected {field} ({expected})");
            return Err(Failure::bad_request(message));
        }
        map.insert(field.to_owned(), Value::from(expected));
    }
    let own = text(object, &["metadata", "namespace"]);
    if !own.is_empty() && target.resource.namespaced && own != target.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Fills in what a custom resource's schema says, removes what it does not know, and checks the
/// rest. Returns the paths of what was removed.
pub(super) fn conform(target: &Target, object: &mut Value) -> Result<Vec<String>, Failure> {
    let Some(rules) = target.schema() else { return Ok(Vec::new()) };
    let mut pruned = Vec::new();
    schema::prune(object, rules, "", &mut pruned);
    schema::default(object, rules);
    let mut faults = Vec::new();
    schema::validate(object, rules, "", &mut faults);
    if faults.is_empty() { Ok(pruned) } else { Err(target.invalid(&faults)) }
}

/// What is wrong with a name.
fn name_fault(name: &str, group: &str) -> Option<String> {
    if name.is_empty() {
        return Some("Required value: name or generateName is required".to_owned());
    }
    let good = if group == "rbac.authorization.k8s.io" {
        !name.contains(['/', '%']) && name != "." && name != ".."
    } else {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = name.as_bytes();
        bytes.iter().all(|byte| inner(*byte) || matches!(byte, b'-' | b'.'))
            && bytes.first().is_some_and(|byte| inner(*byte))
            && bytes.last().is_some_and(|byte| inner(*byte))
            && bytes.len() <= 253
    };
    (!good).then(|| {
        format!(
            "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
             characters, '-' or '.', and must start and end with an alphanumeric character"
        )
    })
}
