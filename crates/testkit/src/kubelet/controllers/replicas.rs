//! What makes pods directly: ReplicaSets, StatefulSets, DaemonSets.

use serde_json::{Value, json};

use super::super::cache::{Objects, Write, text};
use super::{delete, is_active, is_deleted, is_ready, number, pod, pods_of, status, word};

const REVISION: &str = "controller-revision-hash";

pub(super) fn replica_sets(objects: &Objects, writes: &mut Vec<Write>) {
    for set in objects.all("replicasets").filter(|it| !is_deleted(it)) {
        let mut pods: Vec<&Value> = pods_of(objects, set).into_iter().filter(|it| is_active(it)).collect();
        let wanted = usize::try_from(number(set, "/spec/replicas", 1)).unwrap_or_default();
        for _ in pods.len()..wanted {
            writes.push(pod(set, None, &[]));
        }
        let ready = pods.iter().filter(|it| is_ready(it)).count();
        let there = pods.len();
        // Those that are not ready go first, and of the others the newest.
        pods.sort_by_key(|it| std::cmp::Reverse(is_ready(it)));
        for surplus in pods.iter().skip(wanted) {
            writes.push(delete("pods", surplus));
        }
        let new = json!({
            "replicas": there,
            "fullyLabeledReplicas": there,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "observedGeneration": set["metadata"]["generation"],
        });
        status("replicasets", set, &new, writes);
    }
}

/// One after the other, in both directions, unless `podManagementPolicy` is `Parallel`.
pub(super) fn stateful_sets(objects: &Objects, writes: &mut Vec<Write>) {
    for set in objects.all("statefulsets").filter(|it| !is_deleted(it)) {
        let name = text(set, "/metadata/name");
        let revision = format!("{name}-{}", word(&set["spec"]["template"], 10));
        let wanted = number(set, "/spec/replicas", 1);
        let pods = pods_of(objects, set);
        let parallel = text(set, "/spec/podManagementPolicy") == "Parallel";
        let of = |index: i64| pods.iter().find(|it| text(it, "/metadata/name") == format!("{name}-{index}"));
        let index = |it: &Value| text(it, "/metadata/name").rsplit('-').next()?.parse::<i64>().ok();
        let fine = |it: &Value| is_ready(it) && !is_deleted(it);
        let mut complete = true;
        for index in 0..wanted {
            match of(index) {
                Some(pod) if fine(pod) => continue,
                // One that has ended is made again.
                Some(pod) if !is_deleted(pod) && !is_active(pod) => writes.push(delete("pods", pod)),
                Some(_) => {}
                None => {
                    let (pod_name, index) = (format!("{name}-{index}"), index.to_string());
                    let labels = [
                        (REVISION, revision.as_str()),
                        ("statefulset.kubernetes.io/pod-name", pod_name.as_str()),
                        ("apps.kubernetes.io/pod-index", index.as_str()),
                    ];
                    let mut made = pod(set, Some(&pod_name), &labels);
                    if let Write::Create { object, .. } = &mut made {
                        object["spec"]["hostname"] = json!(pod_name);
                        object["spec"]["subdomain"] = set["spec"]["serviceName"].clone();
                    }
                    writes.push(made);
                }
            }
            complete = false;
            if !parallel {
                break;
            }
        }
        let label = format!("/metadata/labels/{REVISION}");
        if complete {
            let mut surplus: Vec<&&Value> =
                pods.iter().filter(|it| index(it).is_none_or(|it| it >= wanted)).collect();
            surplus.sort_by_key(|it| index(it));
            let mut outdated: Vec<&&Value> = pods.iter().filter(|it| text(it, &label) != revision).collect();
            outdated.sort_by_key(|it| index(it));
            let on_delete = text(set, "/spec/updateStrategy/type") == "OnDelete";
            let next = surplus.last().or(outdated.last().filter(|_| !on_delete));
            writes.extend(next.filter(|it| !is_deleted(it)).map(|it| delete("pods", it)));
        }
        let ready = pods.iter().filter(|it| fine(it)).count();
        let updated = pods.iter().filter(|it| text(it, &label) == revision).count();
        let is_updated = i64::try_from(updated).is_ok_and(|it| it == wanted);
        let current = text(set, "/status/currentRevision");
        let current = if is_updated || current.is_empty() { revision.as_str() } else { current };
        let new = json!({
            "observedGeneration": set["metadata"]["generation"],
            "replicas": pods.len(),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "updatedReplicas": updated,
            "currentReplicas": if is_updated { updated } else { pods.len() - updated },
            "currentRevision": current,
            "updateRevision": revision,
        });
        status("statefulsets", set, &new, writes);
    }
}

/// There is one node, so each has one pod.
pub(super) fn daemon_sets(objects: &Objects, writes: &mut Vec<Write>) {
    for set in objects.all("daemonsets").filter(|it| !is_deleted(it)) {
        let revision = word(&set["spec"]["template"], 10);
        let label = format!("/metadata/labels/{REVISION}");
        let pods = pods_of(objects, set);
        let ready = pods.iter().filter(|it| is_ready(it) && !is_deleted(it)).count();
        let updated = pods.iter().filter(|it| is_active(it) && text(it, &label) == revision).count();
        if pods.is_empty() {
            writes.push(pod(set, None, &[(REVISION, &revision)]));
        }
        let on_delete = text(set, "/spec/updateStrategy/type") == "OnDelete";
        for pod in pods.iter().filter(|it| !is_deleted(it)) {
            if !is_active(pod) || (text(pod, &label) != revision && !on_delete) {
                writes.push(delete("pods", pod));
            }
        }
        let new = json!({
            "observedGeneration": set["metadata"]["generation"],
            "currentNumberScheduled": pods.len().min(1),
            "desiredNumberScheduled": 1,
            "numberMisscheduled": 0,
            "numberReady": ready,
            "numberAvailable": ready,
            "updatedNumberScheduled": updated,
        });
        status("daemonsets", set, &new, writes);
    }
}
