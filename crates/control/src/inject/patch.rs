//! The difference of two JSON values as a JSON patch (RFC 6902).

use serde_json::{Value as Json, json};

/// The operations that make `to` of `from`; none if they are equal.
pub fn difference(from: &Json, to: &Json) -> Vec<Json> {
    let mut operations = Vec::new();
    compare(&mut operations, &mut String::new(), from, to);
    operations
}

fn compare(operations: &mut Vec<Json>, path: &mut String, from: &Json, to: &Json) {
    match (from, to) {
        (Json::Object(old), Json::Object(new)) => {
            for (key, old) in old {
                let length = descend(path, key);
                match new.get(key) {
                    Some(new) => compare(operations, path, old, new),
                    None => operations.push(json!({"op": "remove", "path": path})),
                }
                path.truncate(length);
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                let length = descend(path, key);
                operations.push(json!({"op": "add", "path": path, "value": value}));
                path.truncate(length);
            }
        }
        (Json::Array(old), Json::Array(new)) if old.len() <= new.len() && !old.is_empty() => {
            // If all that was is still there in its order, only what is new is said.
            let mut kept = new.iter();
            let in_order = old.iter().all(|item| kept.any(|other| other == item));
            if in_order {
                let mut rest = old.iter().peekable();
                for (index, item) in new.iter().enumerate() {
                    if rest.next_if_eq(&item).is_none() {
                        operations
                            .push(json!({"op": "add", "path": format!("{path}/{index}"), "value": item}));
                    }
                }
            } else if old.len() == new.len() {
                for (index, (old, new)) in old.iter().zip(new).enumerate() {
                    let length = descend(path, &index.to_string());
                    compare(operations, path, old, new);
                    path.truncate(length);
                }
            } else {
                operations.push(json!({"op": "replace", "path": path, "value": to}));
            }
        }
        (old, new) if old != new => operations.push(json!({"op": "replace", "path": path, "value": new})),
        _ => {}
    }
}

/// Appends a key to a JSON pointer; the length before.
fn descend(path: &mut String, key: &str) -> usize {
    let length = path.len();
    path.push('/');
    path.push_str(&key.replace('~', "~0").replace('/', "~1"));
    length
}

/// Applies such a patch (of `add`, `remove` and `replace`).
pub fn apply(target: &mut Json, operations: &[Json]) -> Result<(), String> {
    for operation in operations {
        let text = |name: &str| operation.get(name).and_then(Json::as_str).unwrap_or_default();
        let (kind, path) = (text("op"), text("path"));
        let value = || operation.get("value").cloned().unwrap_or_default();
        let Some((parent, key)) = path.rsplit_once('/') else {
            *target = value();
            continue;
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        let parent = target.pointer_mut(parent).ok_or_else(|| format!("{path}: there is nothing"))?;
        match (kind, parent) {
            ("remove", Json::Object(map)) => drop(map.shift_remove(&key)),
            ("add" | "replace", Json::Object(map)) => drop(map.insert(key, value())),
            (kind, Json::Array(items)) => {
                let index = key.parse().unwrap_or(items.len());
                match kind {
                    "add" if index <= items.len() => items.insert(index, value()),
                    "remove" if index < items.len() => drop(items.remove(index)),
                    "replace" if index < items.len() => items[index] = value(),
                    _ => return Err(format!("{path}: there is nothing")),
                }
            }
            _ => return Err(format!("{path}: {kind} is not possible")),
        }
    }
    Ok(())
}
