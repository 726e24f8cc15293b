//! The kubelet's probes are led to the agent, as they have no certificate of the mesh: each becomes
//! an HTTP request to the status port, and what it was is told to the agent in a variable.

use serde_json::{Map, Value as Json, json};

use super::{PROXY, pod};

const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
const LISTS: [&str; 2] = ["initContainers", "containers"];

/// Where probes and lifecycle handlers stand in a container, and the agent's path for them.
const PROBES: [(&str, &str); 5] = [
    ("/readinessProbe", "/app-health/{}/readyz"),
    ("/livenessProbe", "/app-health/{}/livez"),
    ("/startupProbe", "/app-health/{}/startupz"),
    ("/lifecycle/preStop", "/app-lifecycle/{}/prestopz"),
    ("/lifecycle/postStart", "/app-lifecycle/{}/poststartz"),
];

/// Rewrites the probes of all containers but the proxy's.
pub(crate) fn rewrite(merged: &mut Json, values: &Json, status_port: i64) {
    if pod::find_anywhere(merged, PROXY).is_none() {
        return;
    }
    let default = values.pointer("/sidecarInjectorWebhook/rewriteAppHTTPProbe").and_then(Json::as_bool);
    let asked = pod::annotation(merged, "sidecar.istio.io/rewriteAppHTTPProbers").and_then(pod::parse_bool);
    if !asked.or(default).unwrap_or(false) {
        return;
    }
    let port = pod::annotation(merged, "status.sidecar.istio.io/port");
    let port = port.and_then(|text| text.parse().ok()).unwrap_or(status_port);
    let probers = probers(merged, &[status_port, port]);
    if !probers.is_empty() {
        tell(merged, probers);
    }
    for_each(merged, |container, place, path| {
        if let Some(probe) = container.pointer_mut(place) {
            convert(probe, path, port, place.starts_with("/lifecycle"));
        }
    });
}

/// Goes through the places of probes in all containers but the proxy's, with the agent's path for each.
fn for_each(merged: &mut Json, mut each: impl FnMut(&mut Json, &str, &str)) {
    for list in LISTS {
        // What is not there is not to be made.
        if pod::containers(merged, list).is_empty() {
            continue;
        }
        for container in pod::containers_mut(merged, list) {
            let name = pod::name(container).to_owned();
            if name == PROXY {
                continue;
            }
            for (place, path) in PROBES {
                each(container, place, &path.replace("{}", &name));
            }
        }
    }
}

/// What the probes were, by the agent's paths; ports with names become numbers. Those that lead to the
/// agent (`ours`) already were rewritten before.
fn probers(merged: &mut Json, ours: &[i64]) -> Map<String, Json> {
    let mut found = Map::new();
    for_each(merged, |container, place, path| {
        let is_handler = place.starts_with("/lifecycle");
        let probe = container.pointer(place);
        if let Some(probe) = probe.and_then(|probe| prober(probe, container, is_handler, ours)) {
            found.insert(path.to_owned(), probe);
        }
    });
    found.sort_keys();
    found
}

/// One probe as the agent reads it; `None` if it is none of those that the agent can do.
fn prober(probe: &Json, container: &Json, is_handler: bool, ours: &[i64]) -> Option<Json> {
    let mut out = Map::new();
    let kinds: &[&str] =
        if is_handler { &["httpGet", "tcpSocket"] } else { &["httpGet", "tcpSocket", "grpc"] };
    let (kind, mut action) = kinds.iter().find_map(|kind| {
        probe.get(*kind).filter(|action| !action.is_null()).map(|action| (*kind, action.clone()))
    })?;
    if kind != "grpc" {
        match action.get("port") {
            Some(Json::String(wanted)) => {
                let ports = container.get("ports").and_then(Json::as_array)?;
                let port = ports.iter().find(|port| pod::name(port) == wanted && !wanted.is_empty())?;
                action["port"] = port.get("containerPort")?.clone();
            }
            Some(Json::Number(number)) if number.as_i64().is_some_and(|port| ours.contains(&port)) => {
                return None;
            }
            Some(_) => {}
            None => return None,
        }
    }
    // In the order of Kubernetes' types.
    let order = ["path", "port", "host", "scheme", "httpHeaders", "service"];
    let action: Map<String, Json> = order
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), action.get(*name)?.clone())))
        .filter(|(name, value)| {
            !value.is_null()
                && (name == "port" || name == "service" || *value != json!("") && *value != json!([]))
        })
        .collect();
    out.insert(kind.to_owned(), Json::Object(action));
    if !is_handler
        && let Some(timeout) = probe.get("timeoutSeconds").filter(|it| it.as_i64().unwrap_or(0) != 0)
    {
        out.insert("timeoutSeconds".to_owned(), timeout.clone());
    }
    Some(Json::Object(out))
}

/// Tells the agent; what it was told when the Pod was injected before stays.
fn tell(merged: &mut Json, mut probers: Map<String, Json>) {
    let was_injected = pod::annotation(merged, "sidecar.istio.io/status").is_some();
    let Some(container) = pod::find_anywhere_mut(merged, PROXY) else { return };
    let environment = pod::environment(container);
    if was_injected
        && let Some(variable) = environment.iter_mut().find(|variable| pod::name(variable) == VARIABLE)
    {
        let old =
            variable.get("value").and_then(Json::as_str).and_then(|text| serde_json::from_str(text).ok());
        let Some(Json::Object(old)) = old else { return };
        probers.extend(old);
        probers.sort_keys();
        *variable = json!({"name": VARIABLE, "value": Json::Object(probers).to_string()});
        return;
    }
    environment.push(json!({"name": VARIABLE, "value": Json::Object(probers).to_string()}));
}

fn convert(probe: &mut Json, path: &str, port: i64, is_handler: bool) {
    let Json::Object(map) = probe else { return };
    let present = |map: &Map<String, Json>, kind: &str| map.get(kind).is_some_and(Json::is_object);
    if present(map, "httpGet") {
        let action = &mut map["httpGet"];
        action["path"] = Json::from(path);
        action["port"] = Json::from(port);
        if action.get("scheme").and_then(Json::as_str) == Some("HTTPS") {
            action["scheme"] = Json::from("HTTP");
        }
    } else if present(map, "tcpSocket") {
        map.shift_remove("tcpSocket");
        map.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
    } else if present(map, "grpc") && !is_handler {
        map.shift_remove("grpc");
        map.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
    }
}
