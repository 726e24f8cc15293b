//! What Kubernetes' controllers do, as functions from all objects to the changes that they want. They are asked
//! again until there are none. Pure.

mod deployment;
mod endpoints;
mod others;
mod replicas;

pub(super) use self::endpoints::{proxied, slices};
pub(super) use self::others::balancers;

use serde_json::{Value, json};

use super::cache::{Objects, Write, text};

/// All changes that are due, but for those of [`slices`] and [`balancers`].
pub(super) fn due(objects: &Objects, bundle: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    others::bundles(objects, bundle, &mut writes);
    others::orphans(objects, &mut writes);
    deployment::deployments(objects, &mut writes);
    replicas::replica_sets(objects, &mut writes);
    replicas::stateful_sets(objects, &mut writes);
    replicas::daemon_sets(objects, &mut writes);
    others::jobs(objects, &mut writes);
    writes
}

/// Whether all labels that a selector asks for are there; an empty one chooses nothing.
fn selects(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let selector = selector.and_then(Value::as_object).filter(|it| !it.is_empty());
    selector
        .is_some_and(|it| it.iter().all(|(name, value)| labels.and_then(|it| it.get(name)) == Some(value)))
}

fn number(object: &Value, path: &str, default: i64) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(default)
}

fn is_deleted(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Whether a pod still has something to do.
fn is_active(pod: &Value) -> bool {
    !is_deleted(pod) && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let is = |it: &&Value| text(it, "/type") == "Ready" && text(it, "/status") == "True";
    conditions.into_iter().flatten().any(|it| is(&it))
}

fn is_owned(object: &Value, owner: &Value) -> bool {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let uid = text(owner, "/metadata/uid");
    owners
        .into_iter()
        .flatten()
        .any(|it| text(it, "/uid") == uid && it.get("controller") == Some(&json!(true)))
}

fn owner(object: &Value) -> Value {
    json!([{ "apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true }])
}

/// The pods of an owner, oldest first.
fn pods_of<'a>(objects: &'a Objects, owner: &Value) -> Vec<&'a Value> {
    let all = objects.of("pods", text(owner, "/metadata/namespace")).map(AsRef::as_ref);
    let mut pods: Vec<&Value> = all.filter(|pod| is_owned(pod, owner)).collect();
    pods.sort_by_key(|pod| (text(pod, "/metadata/creationTimestamp"), text(pod, "/metadata/name")));
    pods
}

/// A pod of a template. `name`: `None` lets the server find one.
fn pod(of: &Value, name: Option<&str>, labels: &[(&str, &str)]) -> Write {
    let template = &of["spec"]["template"];
    let mut metadata = json!({
        "namespace": of["metadata"]["namespace"],
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
        "ownerReferences": owner(of),
    });
    match name {
        Some(name) => metadata["name"] = json!(name),
        None => metadata["generateName"] = json!(format!("{}-", text(of, "/metadata/name"))),
    }
    for (name, value) in labels {
        metadata["labels"][*name] = json!(value);
    }
    if metadata["annotations"].is_null() {
        metadata["annotations"] = json!({});
    }
    let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] });
    Write::Create { plural: "pods", object }
}

fn delete(plural: &'static str, object: &Value) -> Write {
    Write::Delete {
        plural,
        namespace: text(object, "/metadata/namespace").to_owned(),
        name: text(object, "/metadata/name").to_owned(),
        uid: text(object, "/metadata/uid").to_owned(),
        grace: None,
    }
}

fn patch(plural: &'static str, object: &Value, subresource: &'static str, patch: Value) -> Write {
    Write::Patch {
        plural,
        namespace: text(object, "/metadata/namespace").to_owned(),
        name: text(object, "/metadata/name").to_owned(),
        subresource,
        patch,
    }
}

/// Makes a status be as given, if it is not.
fn status(plural: &'static str, object: &Value, status: &Value, writes: &mut Vec<Write>) {
    let fields = status.as_object();
    let differs = fields
        .into_iter()
        .flatten()
        .any(|(name, value)| object.pointer(&format!("/status/{name}")) != Some(value));
    if differs {
        writes.push(patch(plural, object, "status", json!({ "status": status })));
    }
}

/// A word that stands for a value.
fn word(value: &Value, length: usize) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    // FNV, which is the same in every process.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in value.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let letter = |_| {
        let letter = LETTERS.get(usize::try_from(hash % 27).unwrap_or_default()).copied().unwrap_or(b'b');
        hash /= 27;
        char::from(letter)
    };
    (0..length).map(letter).collect()
}

#[cfg(test)]
mod tests;
