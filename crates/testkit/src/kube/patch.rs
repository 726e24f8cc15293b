//! JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386).

use serde_json::Value;

use super::status::Failure;

/// Carries out the operations of a JSON Patch.
///
/// # Errors
/// If an operation is malformed (400), or cannot be carried out (422).
pub(super) fn json_patch(object: &Value, patch: &Value) -> Result<Value, Failure> {
    let Some(operations) = patch.as_array() else {
        return Err(Failure::bad_request("a JSON patch is a list of operations"));
    };
    let mut object = object.clone();
    for operation in operations {
        one(&mut object, operation)?;
    }
    Ok(object)
}

fn one(object: &mut Value, operation: &Value) -> Result<(), Failure> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let (Some(op), Some(path)) = (text("op"), text("path")) else {
        return Err(Failure::bad_request("an operation needs op and path"));
    };
    let cannot = |why: &str| {
        let message =
            format!("the server rejected our request due to an error in our request: {op} {path}: {why}");
        Failure::new(422, "Invalid", message)
    };
    let absent = || cannot("no such path");
    let value = || operation.get("value").cloned().ok_or_else(|| Failure::bad_request("value is missing"));
    let from = || text("from").ok_or_else(|| Failure::bad_request("from is missing"));
    match op {
        "add" => add(object, path, value()?).ok_or_else(absent),
        "remove" => remove(object, path).map(drop).ok_or_else(absent),
        "replace" => {
            *object.pointer_mut(path).ok_or_else(absent)? = value()?;
            Ok(())
        }
        "move" => {
            let moved = remove(object, from()?).ok_or_else(absent)?;
            add(object, path, moved).ok_or_else(absent)
        }
        "copy" => {
            let copied = object.pointer(from()?).cloned().ok_or_else(absent)?;
            add(object, path, copied).ok_or_else(absent)
        }
        "test" if object.pointer(path) == Some(&value()?) => Ok(()),
        "test" => Err(cannot("the test failed")),
        _ => Err(Failure::bad_request(format!("{op:?} is no operation"))),
    }
}

fn split(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, last) = split(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(map) => drop(map.insert(last, value)),
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let index: usize = last.parse().ok()?;
            if index > items.len() {
                return None;
            }
            items.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(map) => map.shift_remove(&last),
        Value::Array(items) => {
            let index: usize = last.parse().ok()?;
            (index < items.len()).then(|| items.remove(index))
        }
        _ => None,
    }
}

/// Merges a patch: objects field by field, `null` removes, all else replaces.
pub(super) fn merge_patch(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        object.clone_from(patch);
        return;
    };
    if !object.is_object() {
        *object = Value::Object(serde_json::Map::new());
    }
    let Some(map) = object.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            merge_patch(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{json_patch, merge_patch};

    #[test]
    fn operations() {
        let object = json!({ "a": { "b/c": 1 }, "l": [1, 2] });
        for (patch, expected) in [
            (
                json!([{"op": "add", "path": "/l/1", "value": 9}]),
                Some(json!({ "a": { "b/c": 1 }, "l": [1, 9, 2] })),
            ),
            (
                json!([{"op": "add", "path": "/l/-", "value": 9}]),
                Some(json!({ "a": { "b/c": 1 }, "l": [1, 2, 9] })),
            ),
            (json!([{"op": "add", "path": "/l/4", "value": 9}]), None),
            (json!([{"op": "remove", "path": "/a/b~1c"}]), Some(json!({ "a": {}, "l": [1, 2] }))),
            (json!([{"op": "remove", "path": "/x"}]), None),
            (
                json!([{"op": "replace", "path": "/l", "value": 0}]),
                Some(json!({ "a": { "b/c": 1 }, "l": 0 })),
            ),
            (json!([{"op": "replace", "path": "/m", "value": 0}]), None),
            (
                json!([{"op": "move", "from": "/l", "path": "/a/l"}]),
                Some(json!({ "a": { "b/c": 1, "l": [1, 2] } })),
            ),
            (
                json!([{"op": "copy", "from": "/l/0", "path": "/m"}]),
                Some(json!({ "a": { "b/c": 1 }, "l": [1, 2], "m": 1 })),
            ),
            (json!([{"op": "test", "path": "/l/0", "value": 1}]), Some(object.clone())),
            (json!([{"op": "test", "path": "/l/0", "value": 2}]), None),
        ] {
            assert_eq!(json_patch(&object, &patch).ok(), expected, "{patch}");
        }
    }

    #[test]
    fn merging() {
        let mut object = json!({ "a": { "b": 1, "c": 2 }, "l": [1] });
        merge_patch(&mut object, &json!({ "a": { "b": Value::Null, "d": {"e": 1} }, "l": [2] }));
        assert_eq!(object, json!({ "a": { "c": 2, "d": {"e": 1} }, "l": [2] }));
    }
}
