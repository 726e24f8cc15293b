//! What an IstioOperator says of a component's objects beside values: its `k8s` settings and overlays.
//!
//! They are laid over what the chart has rendered, as a strategic merge patch would: objects key by key,
//! lists of things with names (containers, variables, volumes) by their names, other lists as a whole.

use serde_json::{Map, Value, json};

use super::component::Component;
use super::tree::{self, Path};

/// The settings, the kind of object that they are of, and where in it they go. `*` in a path is the
/// component's container.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("affinity", "", "spec.template.spec.affinity"),
    ("env", "", "spec.template.spec.containers.*.env"),
    ("hpaSpec", "HorizontalPodAutoscaler", "spec"),
    ("imagePullPolicy", "", "spec.template.spec.containers.*.imagePullPolicy"),
    ("nodeSelector", "", "spec.template.spec.nodeSelector"),
    ("podAnnotations", "", "spec.template.metadata.annotations"),
    ("podDisruptionBudget", "PodDisruptionBudget", "spec"),
    ("priorityClassName", "", "spec.template.spec.priorityClassName"),
    ("readinessProbe", "", "spec.template.spec.containers.*.readinessProbe"),
    ("replicaCount", "", "spec.replicas"),
    ("resources", "", "spec.template.spec.containers.*.resources"),
    ("securityContext", "", "spec.template.spec.securityContext"),
    ("service", "Service", "spec"),
    ("serviceAnnotations", "Service", "metadata.annotations"),
    ("strategy", "", "spec.strategy"),
    ("tolerations", "", "spec.template.spec.tolerations"),
    ("volumeMounts", "", "spec.template.spec.containers.*.volumeMounts"),
    ("volumes", "", "spec.template.spec.volumes"),
];

/// By which field the elements of a list are the same.
fn key_of(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "ports" => Some("port"),
        _ => None,
    }
}

/// Lays the settings over the component's objects.
///
/// # Errors
/// With all settings that there is nothing for, each with its path.
pub(crate) fn apply(component: &Component, objects: &mut [Value]) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    for (name, value) in component.kubernetes.as_object().into_iter().flatten() {
        if value.is_null() || name == "overlays" {
            continue;
        }
        let Some((_, kind, place)) = SETTINGS.iter().find(|(known, ..)| known == name) else { continue };
        let (workload, object_name, container) = &component.workload;
        let kind = if kind.is_empty() { *workload } else { *kind };
        let is_it = |object: &&mut Value| {
            tree::text(object, "kind") == kind && tree::text(object, "metadata.name") == *object_name
        };
        match objects.iter_mut().find(is_it) {
            Some(object) if !kind.is_empty() => {
                over(object, &patch(place, container, value), "");
                if kind == "PodDisruptionBudget" {
                    one_limit(object, value);
                }
            }
            _ => {
                let what = if kind.is_empty() { "workload" } else { kind };
                errors.push(format!(
                    "{}.k8s.{name}: the component has no {what} that it is for",
                    component.path
                ));
            }
        }
    }
    let overlays = component.kubernetes.get("overlays").and_then(Value::as_array);
    for (at, overlay) in overlays.into_iter().flatten().enumerate() {
        let path = format!("{}.k8s.overlays[{at}]", component.path);
        if let Err(error) = apply_overlay(overlay, objects) {
            errors.push(format!("{path}{error}"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The patch that has a value at a place.
fn patch(place: &str, container: &str, value: &Value) -> Value {
    let mut patch = value.clone();
    for step in place.rsplit('.') {
        if step == "*" {
            if let Value::Object(object) = &mut patch {
                object.insert("name".to_owned(), Value::from(container));
            }
            patch = json!([patch]);
            continue;
        }
        let mut object = Map::new();
        object.insert(step.to_owned(), patch);
        patch = Value::Object(object);
    }
    patch
}

/// Merges a patch over what is the value of `field`.
fn over(below: &mut Value, patch: &Value, field: &str) {
    match (below, patch) {
        (Value::Object(below), Value::Object(patch)) => {
            for (name, value) in patch {
                match below.get_mut(name) {
                    _ if value.is_null() => drop(below.shift_remove(name)),
                    Some(there) => over(there, value, name),
                    None => drop(below.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(below), Value::Array(patch)) if key_of(field).is_some() => {
            let key = key_of(field).unwrap_or_default();
            for element in patch {
                let found =
                    below.iter_mut().find(|it| it.get(key).is_some() && it.get(key) == element.get(key));
                match found {
                    // One source of a variable takes the place of the other.
                    Some(there) if field == "env" => *there = element.clone(),
                    Some(there) => over(there, element, ""),
                    None => below.push(element.clone()),
                }
            }
        }
        (below, patch) => *below = patch.clone(),
    }
}

/// A budget has one limit: the one that was set takes the other's place.
fn one_limit(object: &mut Value, set: &Value) {
    let other = match (set.get("minAvailable"), set.get("maxUnavailable")) {
        (None, Some(_)) => "minAvailable",
        (Some(_), None) => "maxUnavailable",
        _ => return,
    };
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        spec.shift_remove(other);
    }
}

fn apply_overlay(overlay: &Value, objects: &mut [Value]) -> Result<(), String> {
    let (kind, name) = (tree::text(overlay, "kind"), tree::text(overlay, "name"));
    // The version is not compared, as in istioctl.
    let is_it = |object: &&mut Value| {
        tree::text(object, "kind") == kind && tree::text(object, "metadata.name") == name
    };
    let Some(object) = objects.iter_mut().find(is_it) else {
        return Err(format!(": the component has no {kind} {name}"));
    };
    for (at, patch) in overlay.get("patches").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let told = |error: String| format!(".patches[{at}]: {error}");
        let path = Path::parse(&tree::text(patch, "path")).map_err(told)?;
        let value = patch.get("value").filter(|value| !value.is_null()).cloned();
        tree::set(object, &path.0, value).map_err(told)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::apply;
    use crate::install::charts::Chart;
    use crate::install::component::{Component, Kind};

    fn component(kubernetes: Value) -> Component {
        Component {
            kind: Kind::Pilot,
            chart: Chart::Leno,
            namespace: "istio-system".to_owned(),
            values: Value::Null,
            kubernetes,
            path: "spec.components.pilot".to_owned(),
            workload: ("Deployment", "istiod".to_owned(), "discovery"),
        }
    }

    fn objects() -> Vec<Value> {
        let env = json!([{ "name": "A", "value": "1" }, { "name": "B", "valueFrom": { "x": 1 } }]);
        let container = json!({ "name": "discovery", "image": "i", "env": env, "args": ["--a", "--b=1"] });
        vec![
            json!({ "kind": "Deployment", "metadata": { "name": "istiod" },
                "spec": { "template": { "spec": { "containers": [container], "tolerations": [1] } } } }),
            json!({ "kind": "PodDisruptionBudget", "metadata": { "name": "istiod" }, "spec": { "minAvailable": 1 } }),
            json!({ "kind": "Service", "metadata": { "name": "istiod" },
                "spec": { "ports": [{ "name": "a", "port": 1 }, { "name": "b", "port": 2 }] } }),
        ]
    }

    #[test]
    fn settings() {
        let mut all = objects();
        let settings = json!({
            "env": [{ "name": "B", "value": "2" }, { "name": "C", "value": "3" }],
            "resources": { "limits": { "cpu": 1 } },
            "tolerations": [2],
            "replicaCount": 3,
            "podDisruptionBudget": { "maxUnavailable": 2 },
            "serviceAnnotations": { "x": "y" },
            "service": { "type": "NodePort", "ports": [{ "port": 2, "nodePort": 30000 }, { "port": 3 }] },
            "overlays": [{ "kind": "Deployment", "name": "istiod", "patches": [
                { "path": "spec.template.spec.containers.[name:discovery].args.[:--b]", "value": "--b=2" },
                { "path": "spec.template.spec.containers.[name:discovery].image" },
            ] }],
        });
        apply(&component(settings), &mut all).unwrap();
        let expected = json!([
            { "kind": "Deployment", "metadata": { "name": "istiod" }, "spec": { "replicas": 3,
                "template": { "spec": { "tolerations": [2], "containers": [{ "name": "discovery",
                    "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }, { "name": "C", "value": "3" }],
                    "args": ["--a", "--b=2"], "resources": { "limits": { "cpu": 1 } } }] } } } },
            { "kind": "PodDisruptionBudget", "metadata": { "name": "istiod" }, "spec": { "maxUnavailable": 2 } },
            { "kind": "Service", "metadata": { "name": "istiod", "annotations": { "x": "y" } }, "spec": { "type": "NodePort",
                "ports": [{ "name": "a", "port": 1 }, { "name": "b", "port": 2, "nodePort": 30000 }, { "port": 3 }] } },
        ]);
        assert_eq!(Value::from(all), expected);
    }

    #[test]
    fn what_there_is_nothing_for() {
        let settings = json!({
            "hpaSpec": { "maxReplicas": 3 },
            "overlays": [
                { "kind": "Deployment", "name": "other" },
                { "kind": "Service", "name": "istiod", "patches": [{ "path": "spec.ports[name:c]" }] },
            ],
        });
        let errors = apply(&component(settings), &mut objects()).unwrap_err();
        let expected = [
            "spec.components.pilot.k8s.hpaSpec: the component has no HorizontalPodAutoscaler that it is for",
            "spec.components.pilot.k8s.overlays[0]: the component has no Deployment other",
            "spec.components.pilot.k8s.overlays[1].patches[0]: there is no element [name:c]",
        ];
        assert_eq!(errors, expected);
    }
}
