//! Waiting until what was installed runs, and saying why it does not.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::manifest::Id;
use super::tree;

/// How long to wait between looks: at first, and in the end.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Waits until all objects are ready; `notice` is told what is still waited for.
///
/// # Errors
/// After `patience`, with each object that is not ready and why, as far as its Pods and events tell; and
/// if the cluster cannot be asked.
pub(crate) async fn until_ready(
    cluster: &Cluster,
    objects: &[Value],
    patience: Duration,
    mut notice: impl FnMut(&[Id]),
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let mut pause = LOOK.0;
    loop {
        let mut waiting = Vec::new();
        for object in objects {
            let id = Id::of(object);
            if !matters(&id.kind) {
                continue;
            }
            let found = cluster.find(&tree::text(object, "apiVersion"), &id).await?;
            if let Err(why) = state(found.as_ref()) {
                waiting.push((id, why));
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        notice(&waiting.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
        if Instant::now() >= deadline {
            let mut words = Vec::new();
            for (id, why) in &waiting {
                words.push(format!("{id}: {why}"));
                words.extend(reasons(cluster, id).await.into_iter().map(|reason| format!("  {reason}")));
            }
            anyhow::bail!("not ready after {}s:\n{}", patience.as_secs(), words.join("\n"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

/// Whether objects of the kind become ready in their own time.
fn matters(kind: &str) -> bool {
    matches!(kind, "Deployment" | "DaemonSet" | "CustomResourceDefinition" | "Namespace")
}

/// Whether an object is ready.
///
/// # Errors
/// With what is missing.
pub(crate) fn state(object: Option<&Value>) -> Result<(), String> {
    let Some(object) = object else { return Err("it is not there".to_owned()) };
    let number = |path: &str| tree::find(object, path).and_then(Value::as_i64);
    let condition = |kind: &str| {
        let all = tree::find(object, "status.conditions").and_then(Value::as_array);
        all.into_iter().flatten().find(|it| tree::text(it, "type") == kind).cloned()
    };
    let is_true = |kind: &str| condition(kind).is_some_and(|it| tree::text(&it, "status") == "True");
    let seen = number("status.observedGeneration").unwrap_or(0) >= number("metadata.generation").unwrap_or(0);
    match tree::text(object, "kind").as_str() {
        "Deployment" => {
            let wanted = number("spec.replicas").unwrap_or(1);
            let [updated, available, all] = ["updatedReplicas", "availableReplicas", "replicas"]
                .map(|name| number(&format!("status.{name}")).unwrap_or(0));
            if let Some(failed) = condition("Progressing").filter(|it| tree::text(it, "status") == "False") {
                return Err(tree::text(&failed, "message"));
            }
            if seen && updated >= wanted && available >= wanted && all <= updated {
                return Ok(());
            }
            Err(format!("{available} of {wanted} replicas are available"))
        }
        "DaemonSet" => {
            let [wanted, updated, available] =
                ["desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable"]
                    .map(|name| number(&format!("status.{name}")).unwrap_or(0));
            if seen && updated >= wanted && available >= wanted && object.get("status").is_some() {
                return Ok(());
            }
            Err(format!("{available} of {wanted} Pods are available"))
        }
        "CustomResourceDefinition" if is_true("Established") => Ok(()),
        "CustomResourceDefinition" => Err("it is not established".to_owned()),
        "Namespace" if tree::text(object, "status.phase") == "Terminating" => Err("it is ending".to_owned()),
        _ => Ok(()),
    }
}

/// What Pods and events tell of why a workload does not run.
async fn reasons(cluster: &Cluster, id: &Id) -> Vec<String> {
    let mut words = Vec::new();
    let found = cluster.find("apps/v1", id).await.ok().flatten().unwrap_or_default();
    let labels = tree::find(&found, "spec.selector.matchLabels").and_then(Value::as_object).cloned();
    let Some(labels) = labels else { return words };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let selector: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    let pods = cluster.list("v1", "Pod", &id.namespace, &selector.join(",")).await.unwrap_or_default();
    for pod in &pods {
        words.extend(pod_reasons(pod));
    }
    // Events are of the workload, of its ReplicaSets or of its Pods, whose names all begin alike.
    let events = cluster.list("v1", "Event", &id.namespace, "").await.unwrap_or_default();
    for event in events {
        let name = tree::text(&event, "involvedObject.name");
        let rest = name.strip_prefix(&id.name);
        let is_of_it = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if is_of_it && tree::text(&event, "type") == "Warning" {
            let kind = tree::text(&event, "involvedObject.kind");
            let (reason, message) = (tree::text(&event, "reason"), tree::text(&event, "message"));
            let line = format!("{kind} {name}: {reason}: {message}");
            if !words.contains(&line) {
                words.push(line);
            }
        }
    }
    if words.is_empty() && pods.is_empty() {
        words.push("no Pod was made for it".to_owned());
    }
    words.truncate(10);
    words
}

/// What the state of a Pod tells.
fn pod_reasons(pod: &Value) -> Vec<String> {
    let name = tree::text(pod, "metadata.name");
    let mut words = Vec::new();
    for list in ["initContainerStatuses", "containerStatuses"] {
        let statuses = tree::find(pod, &format!("status.{list}")).and_then(Value::as_array);
        for status in statuses.into_iter().flatten() {
            let container = tree::text(status, "name");
            for state in ["state.waiting", "lastState.terminated"] {
                let reason = tree::text(status, &format!("{state}.reason"));
                if !reason.is_empty() && reason != "Completed" && reason != "PodInitializing" {
                    let message = tree::text(status, &format!("{state}.message"));
                    let colon = if message.is_empty() { "" } else { ": " };
                    words.push(format!("Pod {name}: container {container}: {reason}{colon}{message}"));
                }
            }
        }
    }
    let conditions = tree::find(pod, "status.conditions").and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        if tree::text(condition, "type") == "PodScheduled" && tree::text(condition, "status") == "False" {
            words.push(format!("Pod {name}: not scheduled: {}", tree::text(condition, "message")));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{pod_reasons, state};

    #[test]
    fn what_is_ready() {
        let deployment = |status| json!({ "kind": "Deployment", "metadata": { "generation": 2 }, "spec": { "replicas": 2 }, "status": status });
        let good =
            json!({ "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2 });
        assert_eq!(state(Some(&deployment(good))), Ok(()));
        for (status, expected) in [
            (
                json!({ "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2 }),
                "2 of 2",
            ),
            (
                json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2 }),
                "2 of 2",
            ),
            (
                json!({ "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1 }),
                "1 of 2",
            ),
            (
                json!({ "conditions": [{ "type": "Progressing", "status": "False", "message": "too late" }] }),
                "too late",
            ),
        ] {
            let told = state(Some(&deployment(status))).unwrap_err();
            assert!(told.starts_with(expected), "{told}");
        }
        let daemons = |status| state(Some(&json!({ "kind": "DaemonSet", "status": status })));
        assert_eq!(daemons(json!({ "desiredNumberScheduled": 0 })), Ok(()));
        assert!(daemons(json!({ "desiredNumberScheduled": 1, "updatedNumberScheduled": 1 })).is_err());
        assert!(state(None).is_err());
        assert!(state(Some(&json!({ "kind": "CustomResourceDefinition" }))).is_err());
    }

    #[test]
    fn why_a_pod_does_not_run() {
        let pod = json!({ "metadata": { "name": "p" }, "status": {
            "conditions": [{ "type": "PodScheduled", "status": "False", "message": "no nodes" }],
            "containerStatuses": [{ "name": "discovery",
                "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } },
                "lastState": { "terminated": { "reason": "Error" } } }] } });
        let expected = [
            "Pod p: container discovery: CrashLoopBackOff: back-off",
            "Pod p: container discovery: Error",
            "Pod p: not scheduled: no nodes",
        ];
        assert_eq!(pod_reasons(&pod), expected);
    }
}
