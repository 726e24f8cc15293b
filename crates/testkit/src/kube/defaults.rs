//! What the server fills in on its own, as far as clients of a mesh come to see it.

use serde_json::{Map, Value, json};

use super::object::text;
use super::resource::Resource;
use super::state::State;

/// Fills in what an object leaves out.
pub(super) fn fill(state: &mut State, resource: &Resource, object: &mut Value) {
    if resource.custom {
        return;
    }
    match resource.kind.as_str() {
        "Namespace" => namespace(object),
        "Service" => service(state, object),
        "Pod" => pod(object),
        "Deployment" | "ReplicaSet" | "StatefulSet" => workload(&resource.kind, object),
        "DaemonSet" | "Job" => {
            if let Some(spec) = object.pointer_mut("/spec/template/spec") {
                pod_spec(spec);
            }
        }
        "Secret" => secret(object),
        "CustomResourceDefinition" => definition(state, object),
        "EndpointSlice" => ports(object.get_mut("ports")),
        _ => {}
    }
}

/// Takes over from the live object what the server had chosen and a change leaves out.
pub(super) fn keep(resource: &Resource, live: &Value, object: &mut Value) {
    if resource.kind != "Service" || resource.custom {
        return;
    }
    let (Some(old), Some(Value::Object(spec))) = (live.get("spec"), object.get_mut("spec")) else { return };
    if text(&Value::from(spec.clone()), &["type"]) == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if let Some(value) = old.get(field) {
            spec.entry(field).or_insert_with(|| value.clone());
        }
    }
    let old_ports = old.get("ports").and_then(Value::as_array);
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = |it: &&Value| it.get("port") == port.get("port") && it.get("name") == port.get("name");
        let node_port = old_ports.and_then(|ports| ports.iter().find(same)).and_then(|it| it.get("nodePort"));
        if let (Some(node_port), Some(port)) = (node_port.cloned(), port.as_object_mut()) {
            port.entry("nodePort").or_insert(node_port);
        }
    }
}

fn set(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), value.into());
    }
}

fn child<'v>(object: &'v mut Value, key: &str) -> Option<&'v mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let value = map.entry(key.to_owned()).or_insert_with(|| Value::from(Map::new()));
    if value.is_null() {
        *value = Value::from(Map::new());
    }
    value.as_object_mut()
}

fn namespace(object: &mut Value) {
    let name = text(object, &["metadata", "name"]).to_owned();
    if let Some(metadata) = object.get_mut("metadata")
        && let Some(labels) = child(metadata, "labels")
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), Value::from(name));
    }
    if let Some(spec) = child(object, "spec") {
        set(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = child(object, "status") {
        set(status, "phase", "Active");
    }
}

fn service(state: &mut State, object: &mut Value) {
    if let Some(status) = child(object, "status") {
        set(status, "loadBalancer", json!({}));
    }
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        let given = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default();
        if given.is_empty() {
            state.next_address += 1;
            let [_, _, high, low] = state.next_address.to_be_bytes();
            spec.insert("clusterIP".to_owned(), Value::from(format!("10.96.{high}.{low}")));
        }
        let address = spec.get("clusterIP").cloned().unwrap_or_default();
        set(spec, "clusterIPs", json!([address]));
        set(spec, "internalTrafficPolicy", "Cluster");
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", "SingleStack");
    }
    ports(spec.get_mut("ports"));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        let number = port.get("port").cloned().unwrap_or_default();
        set(port, "targetPort", number);
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") && !port.contains_key("nodePort") {
            state.next_node_port += 1;
            port.insert("nodePort".to_owned(), Value::from(state.next_node_port));
        }
    }
}

fn ports(ports: Option<&mut Value>) {
    for port in ports.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            set(port, "protocol", "TCP");
        }
    }
}

fn pod(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        pod_spec(spec);
        if let Some(spec) = spec.as_object_mut() {
            set(spec, "serviceAccountName", "default");
            set(spec, "enableServiceLinks", true);
        }
    }
    let class = quality(&object["spec"]);
    if let Some(status) = child(object, "status") {
        set(status, "phase", "Pending");
        set(status, "qosClass", class);
    }
}

/// A Pod's class of quality of service: by what its containers ask for and are limited to. Quantities are the same if
/// they are written the same.
fn quality(spec: &Value) -> &'static str {
    let lists = ["containers", "initContainers"];
    let containers = lists.iter().filter_map(|it| spec.get(*it)?.as_array()).flatten();
    let (mut asks, mut guaranteed) = (false, true);
    for container in containers {
        let resources = container.get("resources").unwrap_or(&Value::Null);
        for name in ["cpu", "memory"] {
            let limit = resources.pointer(&format!("/limits/{name}"));
            let request = resources.pointer(&format!("/requests/{name}")).or(limit);
            asks |= request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (asks, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn pod_spec(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            ports(container.get_mut("ports"));
            if let Some(container) = container.as_object_mut() {
                set(container, "imagePullPolicy", "IfNotPresent");
                set(container, "resources", json!({}));
                set(container, "terminationMessagePath", "/dev/termination-log");
                set(container, "terminationMessagePolicy", "File");
            }
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        set(spec, "restartPolicy", "Always");
        set(spec, "dnsPolicy", "ClusterFirst");
        set(spec, "schedulerName", "default-scheduler");
        set(spec, "securityContext", json!({}));
        set(spec, "terminationGracePeriodSeconds", 30);
    }
}

fn workload(kind: &str, object: &mut Value) {
    if let Some(spec) = child(object, "spec") {
        set(spec, "replicas", 1);
        if kind == "Deployment" {
            set(spec, "progressDeadlineSeconds", 600);
            set(spec, "revisionHistoryLimit", 10);
            set(
                spec,
                "strategy",
                json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } }),
            );
        }
    }
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        pod_spec(spec);
    }
    let _ = child(object, "status");
}

fn secret(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    set(map, "type", "Opaque");
    let Some(Value::Object(plain)) = map.shift_remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| Value::from(Map::new()));
    for (key, value) in plain {
        if let (Some(data), Some(value)) = (data.as_object_mut(), value.as_str()) {
            data.insert(key, Value::from(leno_base::base64::encode(value.as_bytes())));
        }
    }
}

fn definition(state: &State, object: &mut Value) {
    let now = super::time::rfc3339(state.now());
    let names = object.pointer("/spec/names").cloned().unwrap_or_default();
    let versions = object.pointer("/spec/versions").and_then(Value::as_array);
    let stored: Vec<Value> = versions
        .into_iter()
        .flatten()
        .filter(|version| version.get("storage") == Some(&Value::Bool(true)))
        .filter_map(|version| version.get("name").cloned())
        .collect();
    if let Some(spec) = child(object, "spec") {
        set(spec, "conversion", json!({ "strategy": "None" }));
    }
    let condition = |kind: &str, reason: &str, message: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now });
    if let Some(status) = child(object, "status") {
        status.insert("acceptedNames".to_owned(), names);
        status.insert("storedVersions".to_owned(), Value::from(stored));
        set(
            status,
            "conditions",
            json!([
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ]),
        );
    }
}
