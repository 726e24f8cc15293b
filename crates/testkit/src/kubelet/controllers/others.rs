//! Jobs, the addresses of load balancers, and the certificates that every namespace has.

use serde_json::{Value, json};

use super::super::cache::{Objects, Write, text};
use super::{delete, is_active, is_deleted, number, patch, pod, pods_of, status};

const BUNDLE: &str = "kube-root-ca.crt";

/// The certificates by which pods know the API server.
pub(super) fn bundles(objects: &Objects, bundle: &str, writes: &mut Vec<Write>) {
    for namespace in objects.all("namespaces").filter(|it| !is_deleted(it)) {
        let name = text(namespace, "/metadata/name");
        if let Some(map) = objects.find("configmaps", name, BUNDLE) {
            // The API server makes one that is empty.
            if text(map, "/data/ca.crt") != bundle {
                writes.push(patch("configmaps", map, "", json!({ "data": { "ca.crt": bundle } })));
            }
        } else {
            let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": BUNDLE, "namespace": name }, "data": { "ca.crt": bundle } });
            writes.push(Write::Create { plural: "configmaps", object });
        }
    }
}

/// What is left of owners that are gone, as the garbage collector finds it: a controller may have made it just as its
/// owner went.
pub(super) fn orphans(objects: &Objects, writes: &mut Vec<Write>) {
    let kinds = |kind: &str| match kind {
        "Deployment" => Some("deployments"),
        "ReplicaSet" => Some("replicasets"),
        "StatefulSet" => Some("statefulsets"),
        "DaemonSet" => Some("daemonsets"),
        "Job" => Some("jobs"),
        "Service" => Some("services"),
        _ => None,
    };
    for plural in ["replicasets", "pods", "endpointslices"] {
        for object in objects.all(plural).filter(|it| !is_deleted(it)) {
            let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
            let mut owners = owners.into_iter().flatten().filter(|it| it["controller"] == json!(true));
            let is_gone = |owner: &Value| {
                let namespace = text(object, "/metadata/namespace");
                let found =
                    kinds(text(owner, "/kind")).map(|of| objects.find(of, namespace, text(owner, "/name")));
                found.is_some_and(|it| it.is_none_or(|it| text(it, "/metadata/uid") != text(owner, "/uid")))
            };
            if owners.any(is_gone) {
                writes.push(delete(plural, object));
            }
        }
    }
}

/// The node is the load balancer.
pub(crate) fn balancers(objects: &Objects, node: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for service in objects.all("services").filter(|it| text(it, "/spec/type") == "LoadBalancer") {
        let balancer = json!({ "ingress": [{ "ip": node, "ipMode": "VIP" }] });
        status("services", service, &json!({ "loadBalancer": balancer }), &mut writes);
    }
    writes
}

pub(super) fn jobs(objects: &Objects, writes: &mut Vec<Write>) {
    for job in objects.all("jobs").filter(|it| !is_deleted(it)) {
        let pods = pods_of(objects, job);
        let count = |phase: &str| pods.iter().filter(|it| text(it, "/status/phase") == phase).count();
        let (succeeded, failed) = (count("Succeeded"), count("Failed"));
        let active: Vec<&&Value> = pods.iter().filter(|it| is_active(it)).collect();
        let size = |path: &str, default: i64| usize::try_from(number(job, path, default)).unwrap_or_default();
        let wanted = size("/spec/completions", 1);
        let suspended = job.pointer("/spec/suspend") == Some(&json!(true));
        let is_complete = succeeded >= wanted;
        let is_failed = !is_complete && failed > size("/spec/backoffLimit", 6);
        if is_failed || suspended {
            writes.extend(active.iter().map(|it| delete("pods", it)));
        } else if !is_complete {
            let room = size("/spec/parallelism", 1).min(wanted - succeeded);
            let name = text(job, "/metadata/name");
            let labels = [("job-name", name), ("batch.kubernetes.io/job-name", name)];
            for _ in active.len()..room {
                writes.push(pod(job, None, &labels));
            }
        }
        let condition = |kind: &str| json!([{ "type": kind, "status": "True" }]);
        let mut new = json!({ "active": active.len(), "succeeded": succeeded, "failed": failed });
        match (is_complete, is_failed) {
            (true, _) => new["conditions"] = condition("Complete"),
            (_, true) => new["conditions"] = condition("Failed"),
            _ => {}
        }
        status("jobs", job, &new, writes);
    }
}
