//! Objects as rows: what `kubectl get` asks the server for.

use serde_json::{Value, json};

use super::object::{Target, text};
use super::state::State;
use super::time;

/// An object's metadata alone.
pub(super) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// Objects as a `Table`; `headed`: with the definitions of its columns.
pub(super) fn render(
    state: &State,
    target: &Target,
    objects: &[&Value],
    metadata: &Value,
    include: &str,
    headed: bool,
) -> Value {
    let columns = columns(target);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            json!({ "name": column.name, "type": column.kind, "format": if column.name == "Name" { "name" } else { "" },
                "description": "", "priority": column.priority })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| cell(state, column, object)).collect();
            let shown = match include {
                "None" => Value::Null,
                "Object" => Value::clone(object),
                _ => partial(object),
            };
            json!({ "cells": cells, "object": shown })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if headed { Value::from(definitions) } else { json!([]) },
        "rows": rows,
    })
}

struct Column {
    name: String,
    kind: String,
    priority: i64,
    from: From,
}

enum From {
    Path(String),
    Age,
    Call(fn(&Value) -> Value),
}

fn columns(target: &Target) -> Vec<Column> {
    let column = |name: &str, kind: &str, from| Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        priority: 0,
        from,
    };
    let path = |name: &str, path: &str| column(name, "string", From::Path(path.to_owned()));
    let call = |name: &str, call: fn(&Value) -> Value| column(name, "string", From::Call(call));
    let age = || column("Age", "string", From::Age);
    let mut all = vec![path("Name", ".metadata.name")];
    let version = target.resource.version(&target.version);
    let custom = version.and_then(|version| version.columns.as_array()).filter(|it| !it.is_empty());
    if let Some(custom) = custom {
        all.extend(custom.iter().map(|it| {
            let is_date = text(it, &["type"]) == "date";
            let path = text(it, &["jsonPath"]).to_owned();
            let from =
                if is_date && path == ".metadata.creationTimestamp" { From::Age } else { From::Path(path) };
            let priority = it.get("priority").and_then(Value::as_i64).unwrap_or(0);
            Column {
                name: text(it, &["name"]).to_owned(),
                kind: text(it, &["type"]).to_owned(),
                priority,
                from,
            }
        }));
        return all;
    }
    match target.resource.kind.as_str() {
        "Pod" => all.extend([
            call("Ready", pod_ready),
            call("Status", pod_status),
            call("Restarts", |pod| {
                Value::from(containers(pod).filter_map(|it| it.get("restartCount")?.as_u64()).sum::<u64>())
            }),
        ]),
        "Service" => all.extend([
            path("Type", ".spec.type"),
            path("Cluster-IP", ".spec.clusterIP"),
            call("External-IP", |_| Value::from("<none>")),
            call("Port(s)", service_ports),
        ]),
        "Namespace" => all.push(path("Status", ".status.phase")),
        "Deployment" | "StatefulSet" | "ReplicaSet" => all.extend([
            call("Ready", |it| {
                let number = |path: &str| it.pointer(path).and_then(Value::as_u64).unwrap_or(0);
                Value::from(format!("{}/{}", number("/status/readyReplicas"), number("/spec/replicas")))
            }),
            call("Up-to-date", |it| it.pointer("/status/updatedReplicas").cloned().unwrap_or(Value::from(0))),
            call("Available", |it| {
                it.pointer("/status/availableReplicas").cloned().unwrap_or(Value::from(0))
            }),
        ]),
        "ConfigMap" | "Secret" => all.extend([call("Data", |it| {
            Value::from(it.get("data").and_then(Value::as_object).map_or(0, serde_json::Map::len))
        })]),
        "EndpointSlice" => all.push(path("AddressType", ".addressType")),
        "Lease" => all.push(path("Holder", ".spec.holderIdentity")),
        "CustomResourceDefinition" => {
            all.push(path("Created At", ".metadata.creationTimestamp"));
            return all;
        }
        _ => {}
    }
    all.push(age());
    all
}

fn cell(state: &State, column: &Column, object: &Value) -> Value {
    match &column.from {
        From::Call(call) => call(object),
        From::Age => {
            let created = time::parse(text(object, &["metadata", "creationTimestamp"]));
            let span = created.and_then(|created| state.now().duration_since(created).ok());
            Value::from(span.map_or_else(|| "<unknown>".to_owned(), time::age))
        }
        From::Path(path) => match find(object, path) {
            Some(value @ (Value::Array(_) | Value::Object(_))) => Value::from(value.to_string()),
            Some(value) => value.clone(),
            None => Value::Null,
        },
    }
}

/// What a simple JSONPath leads to: fields, `[0]` and `[?(@.type=="Ready")]`.
fn find<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut at = object;
    let mut rest = path.trim_start_matches(['$', '{']).trim_end_matches('}');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (step, after) = inner.split_once(']')?;
            rest = after;
            at = if let Some(filter) = step.strip_prefix("?(@.").and_then(|it| it.strip_suffix(')')) {
                let (key, wanted) = filter.split_once("==")?;
                let wanted = wanted.trim().trim_matches(['"', '\'']);
                at.as_array()?.iter().find(|item| text(item, &[key.trim()]) == wanted)?
            } else if let Ok(index) = step.parse::<usize>() {
                at.get(index)?
            } else {
                at.get(step.trim_matches(['"', '\'']))?
            };
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (step, after) = rest.split_at(end);
            rest = after;
            at = at.get(step)?;
        }
    }
    Some(at)
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten()
}

fn pod_ready(pod: &Value) -> Value {
    let total = pod.pointer("/spec/containers").and_then(Value::as_array).map_or(0, Vec::len);
    let ready = containers(pod).filter(|it| it.get("ready") == Some(&Value::Bool(true))).count();
    Value::from(format!("{ready}/{total}"))
}

fn pod_status(pod: &Value) -> Value {
    if pod.pointer("/metadata/deletionTimestamp").is_some_and(|it| !it.is_null()) {
        return Value::from("Terminating");
    }
    let waits = containers(pod).find_map(|it| it.pointer("/state/waiting/reason").cloned());
    waits.unwrap_or_else(|| Value::from(text(pod, &["status", "phase"])))
}

fn service_ports(service: &Value) -> Value {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let ports: Vec<String> = ports
        .map(|port| {
            let number = |key: &str| port.get(key).and_then(Value::as_u64);
            let node = number("nodePort").map(|node| format!(":{node}")).unwrap_or_default();
            format!("{}{node}/{}", number("port").unwrap_or(0), text(port, &["protocol"]))
        })
        .collect();
    Value::from(if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::find;

    #[test]
    fn json_paths() {
        let object = json!({ "spec": { "hosts": ["a", "b"] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        for (path, expected) in [
            (".spec.hosts[1]", Some(json!("b"))),
            (".spec.hosts", Some(json!(["a", "b"]))),
            (".status.conditions[?(@.type==\"Ready\")].status", Some(json!("True"))),
            (".status.conditions[?(@.type=='Other')].status", None),
            (".spec['hosts'][0]", Some(json!("a"))),
            (".x", None),
        ] {
            assert_eq!(find(&object, path).cloned(), expected, "{path}");
        }
    }
}
