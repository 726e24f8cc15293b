//! What templates cannot do: variables of the webhook's path, annotations of Prometheus, the
//! status, the order of containers.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{INIT, MeshSettings, PROXY, Refused, Settings, VALIDATION, pod, proxy};

/// Variables of the path take the place of those of the template.
pub(crate) fn variables(merged: &mut Json, variables: &BTreeMap<String, String>) {
    if variables.is_empty() {
        return;
    }
    let Some(container) = pod::find_anywhere_mut(merged, PROXY) else { return };
    let environment = pod::environment(container);
    environment.retain(|variable| !variables.contains_key(pod::name(variable)));
    // In front of what is appended after them, so that injecting again has the same order.
    let appended = ["ISTIO_PROMETHEUS_ANNOTATIONS", "ISTIO_KUBE_APP_PROBERS"];
    let at = environment.iter().position(|variable| appended.contains(&pod::name(variable)));
    let at = at.unwrap_or(environment.len());
    let new = variables.iter().map(|(name, value)| json!({"name": name, "value": value}));
    environment.splice(at..at, new.collect::<Vec<_>>());
}

/// A name as Prometheus writes it.
fn sanitized(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '_' })
        .collect()
}

/// The value of an annotation of Prometheus, however it is written.
fn prometheus_annotation(pod: &Json, wanted: &str) -> Option<String> {
    pod::annotations(pod).find(|(name, _)| sanitized(name) == wanted).map(|(_, value)| value.to_owned())
}

pub(crate) fn prometheus_port(pod: &Json) -> Option<String> {
    prometheus_annotation(pod, "prometheus_io_port")
}

pub(crate) fn clear_prometheus(pod: &mut Json) {
    let names: Vec<String> = pod::annotations(pod)
        .map(|(name, _)| name.to_owned())
        .filter(|name| {
            matches!(
                sanitized(name).as_str(),
                "prometheus_io_port" | "prometheus_io_path" | "prometheus_io_scrape"
            )
        })
        .collect();
    for name in names {
        pod::remove_annotation(pod, &name);
    }
}

/// Prometheus is led to the agent, which merges the application's metrics with the proxy's.
pub(crate) fn prometheus(merged: &mut Json, mesh: &MeshSettings) -> Result<(), Refused> {
    let scrapes =
        prometheus_annotation(merged, "prometheus_io_scrape").and_then(|text| pod::parse_bool(&text));
    let asked = pod::annotation(merged, "prometheus.istio.io/merge-metrics").and_then(pod::parse_bool);
    let merges =
        asked.or_else(|| mesh.json().get("enablePrometheusMerge").and_then(Json::as_bool)).unwrap_or(true);
    if scrapes == Some(false) || !merges {
        return Ok(());
    }
    let port = mesh.status_port().to_string();
    if prometheus_port(merged).as_ref() == Some(&port) {
        return Ok(());
    }
    let value = |name: &str| prometheus_annotation(merged, name).unwrap_or_default();
    let (scrape, path, own) =
        (value("prometheus_io_scrape"), value("prometheus_io_path"), value("prometheus_io_port"));
    if !(scrape.is_empty() && path.is_empty() && own.is_empty())
        && let Some(container) = pod::find_anywhere_mut(merged, PROXY)
    {
        let found = json!({"scrape": scrape, "path": path, "port": own}).to_string();
        pod::environment(container).push(json!({"name": "ISTIO_PROMETHEUS_ANNOTATIONS", "value": found}));
    }
    clear_prometheus(merged);
    pod::set_annotation(merged, "prometheus.io/port", &port);
    pod::set_annotation(merged, "prometheus.io/path", "/stats/prometheus");
    pod::set_annotation(merged, "prometheus.io/scrape", "true");
    Ok(())
}

/// Says what was injected, in the annotation `sidecar.istio.io/status`.
pub(crate) fn status(merged: &mut Json, injected: &Json, settings: &Settings) {
    let names = |list: &str| {
        let names: Vec<_> = pod::containers(injected, list).iter().map(pod::name).collect();
        if names.is_empty() { Json::Null } else { json!(names) }
    };
    let revision = if settings.revision.is_empty() { "default" } else { &settings.revision };
    let status = json!({
        "initContainers": names("initContainers"),
        "containers": names("containers"),
        "volumes": names("volumes"),
        "imagePullSecrets": names("imagePullSecrets"),
        "revision": revision,
    });
    pod::set_annotation(merged, "sidecar.istio.io/status", &status.to_string());
    for (name, value) in &settings.config.injected_annotations {
        pod::set_annotation(merged, name, value);
    }
    pod::object(pod::object(merged, "metadata"), "labels");
}

/// The order of containers: the proxy last, or first if applications wait for it; redirection
/// before or after the other init containers.
pub(crate) fn order(
    merged: &mut Json,
    original: &Json,
    mesh: &MeshSettings,
    values: &Json,
) -> Result<(), Refused> {
    use pod::Place::{First, Last};
    let is_on = |value: Option<&Json>| value == Some(&Json::Bool(true));
    let mut holds = is_on(mesh.json().pointer("/defaultConfig/holdApplicationUntilProxyStarts"));
    if let Some(own) = proxy::annotated(original)?
        && let Some(value) = own.get("holdApplicationUntilProxyStarts")
    {
        holds = is_on(Some(value));
    }
    holds |= is_on(values.pointer("/global/proxy/holdApplicationUntilProxyStarts"));
    pod::place(merged, "containers", PROXY, if holds { First } else { Last });
    const CORE_DUMP: &str = "enable-core-dump";
    let moves = if pod::find(merged, "initContainers", PROXY).is_some() {
        // A native sidecar: redirection, the proxy, and then what is redirected.
        [(CORE_DUMP, First), (PROXY, First), (VALIDATION, First), (INIT, First)]
    } else {
        // Other init containers run before there is a proxy: not redirected yet.
        [(VALIDATION, First), (INIT, Last), (CORE_DUMP, Last), (PROXY, Last)]
    };
    for (name, place) in moves {
        pod::place(merged, "initContainers", name, place);
    }
    Ok(())
}
