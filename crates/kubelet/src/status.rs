//! How a pod is, as the `status` of its object says it. Pure.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::jiff::Timestamp;
use leno_node::Exit;
use serde_json::{Map, Value, json};

use crate::container::{Ended, State, Status};
use crate::pod::PodState;

/// The status of a pod. `before` is the status that was written last, from which conditions that have not
/// changed keep their times.
pub fn status(
    pod: &core::Pod,
    state: &PodState,
    address: Option<Ipv4Addr>,
    node_address: Ipv4Addr,
    before: &Value,
    now: SystemTime,
) -> Value {
    let spec = pod.spec.clone().unwrap_or_default();
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let ended = matches!(state.phase, "Succeeded" | "Failed");
    let unready = state.all().filter(|(name, status)| !status.ready && counts(&spec, name));
    let unready: Vec<&str> = unready.map(|(name, _)| name.as_str()).collect();
    let why = match (ended, state.ready) {
        (_, true) => None,
        (true, false) => Some(("PodCompleted", String::new())),
        (false, false) => {
            Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
        }
    };
    let ready = state.ready && !deleted;
    let initialized = match (state.initialized, state.phase) {
        (true, "Succeeded") => (true, Some(("PodCompleted", String::new()))),
        (true, _) => (true, None),
        (false, _) => {
            let open = state.init_containers.iter().filter(|(_, it)| !it.end().is_some_and(Ended::success));
            let names = open.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
            let message = format!("containers with incomplete status: [{names}]");
            (false, Some(("ContainersNotInitialized", message)))
        }
    };
    let conditions = [
        ("PodReadyToStartContainers", address.is_some(), None),
        ("Initialized", initialized.0, initialized.1),
        ("Ready", ready, why.clone()),
        ("ContainersReady", state.ready, why),
        ("PodScheduled", true, None),
    ];
    let conditions = conditions.map(|(kind, holds, why)| condition(kind, holds, why, before, now));
    let mut status = json!({
        "phase": state.phase,
        "conditions": conditions,
        "startTime": time(state.since),
        "hostIP": node_address.to_string(),
        "hostIPs": [{ "ip": node_address.to_string() }],
        "containerStatuses": statuses(&spec.containers, &state.containers),
    });
    let init = spec.init_containers.as_deref().unwrap_or_default();
    if !init.is_empty() {
        status["initContainerStatuses"] = statuses(init, &state.init_containers);
    }
    // The API server has said it, for good.
    if let Some(class) = pod.status.as_ref().and_then(|it| it.qos_class.as_ref()) {
        status["qosClass"] = json!(class);
    }
    if let Some(address) = address {
        status["podIP"] = json!(address.to_string());
        status["podIPs"] = json!([{ "ip": address.to_string() }]);
    }
    if let Some((reason, message)) = &state.reason {
        status["reason"] = json!(reason);
        status["message"] = json!(message);
    }
    status
}

/// Whether a container that is not ready keeps its pod from being so.
fn counts(spec: &core::PodSpec, name: &str) -> bool {
    let mut init = spec.init_containers.iter().flatten();
    init.find(|it| it.name == name).is_none_or(|it| it.restart_policy.as_deref() == Some("Always"))
}

fn condition(kind: &str, holds: bool, why: Option<(&str, String)>, before: &Value, now: SystemTime) -> Value {
    let status = if holds { "True" } else { "False" };
    let known = before.get("conditions").and_then(Value::as_array);
    let known = known.and_then(|it| it.iter().find(|it| it.get("type").is_some_and(|it| it == kind)));
    let same = known.filter(|it| it.get("status").is_some_and(|it| it == status));
    let since = same.and_then(|it| it.get("lastTransitionTime")).cloned().unwrap_or_else(|| time(now));
    let mut condition = Map::new();
    condition.insert("type".to_owned(), json!(kind));
    condition.insert("status".to_owned(), json!(status));
    condition.insert("lastProbeTime".to_owned(), Value::Null);
    condition.insert("lastTransitionTime".to_owned(), since);
    if let Some((reason, message)) = why {
        condition.insert("reason".to_owned(), json!(reason));
        if !message.is_empty() {
            condition.insert("message".to_owned(), json!(message));
        }
    }
    Value::Object(condition)
}

fn statuses(containers: &[core::Container], states: &[(String, Status)]) -> Value {
    let status = |container: &core::Container| {
        let (_, status) = states.iter().find(|(name, _)| *name == container.name)?;
        let image = container.image.as_deref().unwrap_or_default();
        // What initialises is ready once it has done so.
        let done = status.end().is_some_and(Ended::success);
        let id = match status.state {
            State::Running { pid, .. } => format!("process://{pid}"),
            _ => String::new(),
        };
        Some(json!({
            "name": container.name,
            "containerID": id,
            "image": image,
            "imageID": image,
            "restartCount": status.restarts,
            "ready": status.ready || done && container.restart_policy.is_none(),
            "started": status.started,
            "state": state_of(&status.state),
            "lastState": status.last.as_ref().map_or_else(|| json!({}), |it| json!({ "terminated": ended(it) })),
        }))
    };
    Value::Array(containers.iter().filter_map(status).collect())
}

fn state_of(state: &State) -> Value {
    match state {
        State::Waiting { reason, message } if message.is_empty() => {
            json!({ "waiting": { "reason": reason } })
        }
        State::Waiting { reason, message } => {
            json!({ "waiting": { "reason": reason, "message": message } })
        }
        State::Running { since, .. } => json!({ "running": { "startedAt": time(*since) } }),
        State::Terminated(it) => json!({ "terminated": ended(it) }),
    }
}

fn ended(ended: &Ended) -> Value {
    let mut value = json!({
        "exitCode": ended.code(),
        "reason": ended.reason,
        "startedAt": time(ended.since),
        "finishedAt": time(ended.until),
    });
    if let Some(Exit::Signal(signal)) = ended.exit {
        value["signal"] = json!(signal);
    }
    if !ended.message.is_empty() {
        value["message"] = json!(ended.message);
    }
    value
}

/// A time in whole seconds, as Kubernetes writes it.
fn time(time: SystemTime) -> Value {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let stamp = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    json!(stamp.unwrap_or_default().to_string())
}
