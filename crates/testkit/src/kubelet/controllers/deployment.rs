//! Deployments: a ReplicaSet for each template, and the way from one to the next.

use serde_json::{Value, json};

use super::super::cache::{Objects, Write, text};
use super::{is_active, is_deleted, is_owned, is_ready, number, owner, patch, pods_of, status, word};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

pub(super) fn deployments(objects: &Objects, writes: &mut Vec<Write>) {
    for deployment in objects.all("deployments").filter(|it| !is_deleted(it)) {
        settle(objects, deployment, writes);
    }
}

fn settle(objects: &Objects, deployment: &Value, writes: &mut Vec<Write>) {
    let namespace = text(deployment, "/metadata/namespace");
    let sets = objects.of("replicasets", namespace).map(AsRef::as_ref);
    let sets: Vec<&Value> = sets.filter(|it| is_owned(it, deployment) && !is_deleted(it)).collect();
    let hash = word(&deployment["spec"]["template"], 10);
    let label = format!("/metadata/labels/{HASH}");
    let newest = sets.iter().find(|it| text(it, &label) == hash).copied();
    let old: Vec<&Value> = sets.iter().filter(|it| text(it, &label) != hash).copied().collect();
    let wanted = number(deployment, "/spec/replicas", 1);
    let of = |set: &Value| number(set, "/spec/replicas", 1);
    let active = |set: &Value| pods_of(objects, set).into_iter().filter(|it| is_active(it)).count();
    let available = |set: &Value| {
        count(pods_of(objects, set).into_iter().filter(|it| is_active(it) && is_ready(it)).count())
    };
    let recreates = text(deployment, "/spec/strategy/type") == "Recreate";
    let (surge, unavailable) = limits(deployment, wanted);
    let of_old: i64 = old.iter().map(|it| of(it)).sum();
    // A pod that is on its way out is still there.
    let left = old.iter().any(|it| !pods_of(objects, it).is_empty());
    let room = match (recreates, newest) {
        (true, _) if left => 0,
        (true, _) => wanted,
        (false, newest) => wanted.min(wanted + surge - of_old).max(newest.map_or(0, of).min(wanted)).max(0),
    };
    let Some(newest) = newest else {
        let revision = sets.iter().map(|it| revision(it)).max().unwrap_or_default() + 1;
        writes.push(replica_set(deployment, &hash, room, revision));
        return;
    };
    let mut scale = |set: &Value, replicas: i64| {
        if of(set) != replicas {
            writes.push(patch("replicasets", set, "", json!({ "spec": { "replicas": replicas } })));
        }
    };
    if of(newest) > wanted || of(newest) < room {
        scale(newest, if of(newest) > wanted { wanted } else { room });
    } else if recreates {
        old.iter().for_each(|it| scale(it, 0));
    } else {
        let least = (wanted - unavailable).max(0);
        let missing = (of(newest) - available(newest)).max(0);
        let mut down = (of(newest) + of_old - least - missing).max(0);
        // What does not work goes first, and then as many as are not needed.
        let all: i64 = sets.iter().map(|it| available(it)).sum();
        let mut spare = (all - least).max(0);
        for set in old.iter().filter(|it| of(it) > 0) {
            let broken = (of(set) - available(set)).max(0).min(down);
            down -= broken;
            let whole = (of(set) - broken).min(spare).min(down);
            (spare, down) = (spare - whole, down - whole);
            scale(set, of(set) - broken - whole);
        }
    }
    let revision = revision(newest);
    if text(deployment, &format!("/metadata/annotations/{}", REVISION.replace('/', "~1")))
        != revision.to_string()
    {
        let annotations = json!({ "metadata": { "annotations": { REVISION: revision.to_string() } } });
        writes.push(patch("deployments", deployment, "", annotations));
    }
    let everything: i64 = sets.iter().map(|it| count(active(it))).sum();
    let ready: i64 = sets.iter().map(|it| available(it)).sum();
    let is_enough = ready >= wanted - unavailable;
    let is_done = available(newest) >= wanted && everything == count(active(newest)) && !left;
    let condition = |kind: &str, holds: bool, reason: &str| json!({ "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason });
    let conditions = json!([
        condition(
            "Available",
            is_enough,
            if is_enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" }
        ),
        condition("Progressing", true, if is_done { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" }),
    ]);
    let new = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": everything,
        "updatedReplicas": active(newest),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": (wanted - ready).max(0),
        "conditions": conditions,
    });
    status("deployments", deployment, &new, writes);
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn revision(set: &Value) -> i64 {
    text(set, &format!("/metadata/annotations/{}", REVISION.replace('/', "~1"))).parse().unwrap_or_default()
}

fn replica_set(deployment: &Value, hash: &str, replicas: i64, revision: i64) -> Write {
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", text(deployment, "/metadata/name")),
            "namespace": deployment["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "annotations": { REVISION: revision.to_string() },
            "ownerReferences": owner(deployment),
        },
        "spec": { "replicas": replicas, "selector": selector, "template": template },
    });
    Write::Create { plural: "replicasets", object }
}

/// `maxSurge` and `maxUnavailable` in pods: the one rounded up, the other down, and not both 0.
fn limits(deployment: &Value, replicas: i64) -> (i64, i64) {
    let read = |name: &str, up: bool| {
        let value = deployment.pointer(&format!("/spec/strategy/rollingUpdate/{name}"));
        let percent = match value {
            Some(Value::Number(number)) => return number.as_i64().unwrap_or_default(),
            Some(Value::String(text)) => text.trim_end_matches('%').parse().unwrap_or(25),
            _ => 25,
        };
        let parts = replicas * percent;
        if up { (parts + 99) / 100 } else { parts / 100 }
    };
    match (read("maxSurge", true), read("maxUnavailable", false)) {
        (0, 0) => (0, 1),
        both => both,
    }
}
