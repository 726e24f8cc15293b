//! Strategic merge patches, for Kubernetes' own types: lists are merged item by item.

use serde_json::{Map, Value};

use super::status::Failure;

/// Merges a patch into an object.
///
/// # Errors
/// If the patch has items of a keyed list without their key.
pub(super) fn merge(object: &mut Value, patch: &Value) -> Result<(), Failure> {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => merge_map(object, patch),
        (object, patch) => {
            *object = clean(patch);
            Ok(())
        }
    }
}

fn merge_map(object: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), Failure> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            object.clear();
            if let Value::Object(clean) = clean(&Value::from(patch.clone())) {
                object.extend(clean);
            }
            return Ok(());
        }
        Some("delete") => {
            object.clear();
            return Ok(());
        }
        _ => {}
    }
    if let Some(retain) = patch.get("$retainKeys").and_then(Value::as_array) {
        object.retain(|key, _| retain.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (object.get_mut(list), value) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        match value {
            Value::Null => drop(object.shift_remove(key)),
            Value::Array(items) => {
                let own = object.entry(key.clone()).or_insert_with(|| Value::from(Vec::<Value>::new()));
                merge_list(key, own, items)?;
            }
            Value::Object(_) => {
                let own = object.entry(key.clone()).or_insert_with(|| Value::from(Map::new()));
                merge(own, value)?;
            }
            other => drop(object.insert(key.clone(), other.clone())),
        }
    }
    for (key, value) in patch {
        let ordered =
            key.strip_prefix("$setElementOrder/").and_then(|list| Some((list, object.get_mut(list)?)));
        if let (Some((list, Value::Array(items))), Value::Array(order)) = (ordered, value) {
            reorder(list, items, order);
        }
    }
    Ok(())
}

fn merge_list(name: &str, own: &mut Value, patch: &[Value]) -> Result<(), Failure> {
    let Value::Array(items) = own else {
        *own = patch.iter().map(clean).collect();
        return Ok(());
    };
    if name == "finalizers" {
        let fresh: Vec<Value> = patch.iter().filter(|item| !items.contains(item)).cloned().collect();
        items.extend(fresh);
        return Ok(());
    }
    let Some(key) = merge_key(name, patch, items) else {
        *own = patch.iter().map(clean).collect();
        return Ok(());
    };
    if patch.iter().any(|item| item.get("$patch").and_then(Value::as_str) == Some("replace")) {
        items.clear();
    }
    // New items go in front of what only the server has, in the order of the patch.
    let mut front = 0;
    for item in patch {
        let directive = item.get("$patch").and_then(Value::as_str);
        if directive == Some("replace") {
            continue;
        }
        let Some(wanted) = item.get(key) else {
            return Err(Failure::bad_request(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        let place = items.iter().position(|own| own.get(key) == Some(wanted));
        match (directive, place) {
            (Some("delete"), Some(place)) => drop(items.remove(place)),
            (Some("delete"), None) => {}
            (_, Some(place)) => {
                if let Some(own) = items.get_mut(place) {
                    merge(own, item)?;
                }
                front = front.max(place + 1);
            }
            (_, None) => {
                items.insert(front.min(items.len()), clean(item));
                front += 1;
            }
        }
    }
    Ok(())
}

/// By what the items of a list are told apart; `None` if the list is replaced as a whole.
fn merge_key(name: &str, patch: &[Value], items: &[Value]) -> Option<&'static str> {
    let have = |key: &str| patch.iter().chain(items).any(|item| item.get(key).is_some());
    match name {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "webhooks" => Some("name"),
        "secrets" if have("name") => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "conditions" | "addresses" if have("type") => Some("type"),
        "ownerReferences" => Some("uid"),
        "hostAliases" | "podIPs" => Some("ip"),
        "taints" => Some("key"),
        "ports" if have("containerPort") => Some("containerPort"),
        "ports" if have("port") && (have("targetPort") || have("nodePort")) => Some("port"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

/// The order that the patch asks for; others keep theirs, behind.
fn reorder(name: &str, items: &mut [Value], order: &[Value]) {
    let key = merge_key(name, order, items);
    let place = |item: &Value| {
        let own = key.map_or(Some(item), |key| item.get(key));
        let at = order.iter().position(|wanted| key.map_or(Some(wanted), |key| wanted.get(key)) == own);
        at.unwrap_or(usize::MAX)
    };
    items.sort_by_key(place);
}

/// A value without directives.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), clean(value))).collect())
        }
        Value::Array(items) => items.iter().map(clean).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::merge;

    #[test]
    fn lists_are_merged_by_their_keys() {
        let mut object = json!({ "spec": { "containers": [
            { "name": "a", "image": "1", "env": [{ "name": "X", "value": "1" }] },
            { "name": "b", "image": "1", "args": ["x", "y"] },
        ], "finalizers": ["f"] } });
        let patch = json!({ "spec": {
            "$setElementOrder/containers": [{ "name": "c" }, { "name": "a" }],
            "containers": [
                { "name": "a", "env": [{ "name": "Y", "value": "2" }] },
                { "name": "b", "$patch": "delete" },
                { "name": "c", "image": "3", "args": Value::Null },
            ],
            "finalizers": ["g"], "$deleteFromPrimitiveList/finalizers": ["f"],
        } });
        merge(&mut object, &patch).unwrap();
        assert_eq!(
            object,
            json!({ "spec": { "containers": [
                { "name": "c", "image": "3" },
                { "name": "a", "image": "1", "env": [{ "name": "Y", "value": "2" }, { "name": "X", "value": "1" }] },
            ], "finalizers": ["g"] } })
        );
        assert!(merge(&mut object, &json!({ "spec": { "containers": [{ "image": "x" }] } })).is_err());
    }
}
