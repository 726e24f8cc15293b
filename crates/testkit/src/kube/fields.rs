//! Sets of fields, as `metadata.managedFields` holds them: who has set what.
//!
//! A path is a list of the steps that `fieldsV1` writes: `f:name` into a map, `k:{...}` and `v:...`
//! into a list. A set holds the paths of leaves, and those of the items of keyed lists.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::typing::{ListKind, Typing, item_key};

/// One step after the other into an object.
pub(super) type Path = Vec<String>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(pub(super) BTreeSet<Path>);

impl Fields {
    /// The fields that an object has.
    pub(super) fn of(object: &Value, typing: Typing<'_>) -> Fields {
        let mut fields = Fields::default();
        collect(object, typing, &mut Vec::new(), &mut fields.0);
        fields
    }

    /// As in `fieldsV1`.
    pub(super) fn from_value(value: &Value) -> Fields {
        let mut fields = Fields::default();
        read(value, &mut Vec::new(), &mut fields.0);
        fields
    }

    /// For `fieldsV1`.
    pub(super) fn to_value(&self) -> Value {
        let mut root = Map::new();
        for path in &self.0 {
            insert(&mut root, path);
        }
        Value::from(root)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a field or any inside it is in the set.
    pub(super) fn touches(&self, path: &[String]) -> bool {
        self.0.range(path.to_vec()..).next().is_some_and(|found| found.starts_with(path))
    }
}

fn insert(map: &mut Map<String, Value>, path: &[String]) {
    let Some((step, rest)) = path.split_first() else { return };
    let next = map.entry(step.clone()).or_insert_with(|| Value::from(Map::new()));
    let Value::Object(next) = next else { return };
    // Only items of lists are members beside their own fields.
    if rest.is_empty() && step.starts_with("k:") {
        next.insert(".".to_owned(), Value::from(Map::new()));
    }
    insert(next, rest);
}

fn collect(value: &Value, typing: Typing<'_>, path: &mut Path, out: &mut BTreeSet<Path>) {
    match value {
        Value::Object(map) if !typing.is_atomic_map() && (!map.is_empty() || path.is_empty()) => {
            for (key, value) in map {
                if path.is_empty() && matches!(key.as_str(), "apiVersion" | "kind") {
                    continue;
                }
                if path.len() == 1 && path.first().is_some_and(|it| it == "f:metadata") && is_system(key) {
                    continue;
                }
                path.push(format!("f:{key}"));
                collect(value, typing.field(key), path, out);
                path.pop();
            }
        }
        Value::Array(items) => match typing.list(items) {
            ListKind::Atomic => drop(out.insert(path.clone())),
            ListKind::Set => {
                for item in items {
                    path.push(format!("v:{item}"));
                    out.insert(path.clone());
                    path.pop();
                }
            }
            ListKind::Map(keys) => {
                for item in items {
                    let Some(key) = item_key(item, &keys) else { continue };
                    path.push(format!("k:{key}"));
                    out.insert(path.clone());
                    collect(item, typing.item(), path, out);
                    path.pop();
                }
            }
        },
        _ => drop(out.insert(path.clone())),
    }
}

/// Fields of the metadata that nobody owns.
fn is_system(key: &str) -> bool {
    matches!(
        key,
        "name"
            | "namespace"
            | "uid"
            | "resourceVersion"
            | "generation"
            | "creationTimestamp"
            | "managedFields"
            | "selfLink"
            | "deletionTimestamp"
            | "deletionGracePeriodSeconds"
    )
}

fn read(value: &Value, path: &mut Path, out: &mut BTreeSet<Path>) {
    let Value::Object(map) = value else { return };
    if map.is_empty() && !path.is_empty() {
        out.insert(path.clone());
    }
    for (step, inner) in map {
        if step == "." {
            out.insert(path.clone());
            continue;
        }
        path.push(step.clone());
        read(inner, path, out);
        path.pop();
    }
}

/// The value at a path.
pub(super) fn find<'v>(object: &'v Value, path: &[String]) -> Option<&'v Value> {
    let mut at = object;
    for step in path {
        at = if let Some(name) = step.strip_prefix("f:") {
            at.get(name)?
        } else {
            at.as_array()?.iter().find(|item| is_item(item, step))?
        };
    }
    Some(at)
}

/// Removes what is at a path.
pub(super) fn remove(object: &mut Value, path: &[String]) {
    let Some((last, way)) = path.split_last() else { return };
    let mut at = object;
    for step in way {
        let next = if let Some(name) = step.strip_prefix("f:") {
            at.get_mut(name)
        } else {
            at.as_array_mut().and_then(|items| items.iter_mut().find(|item| is_item(item, step)))
        };
        let Some(next) = next else { return };
        at = next;
    }
    match (at, last.strip_prefix("f:")) {
        (Value::Object(map), Some(name)) => drop(map.shift_remove(name)),
        (Value::Array(items), None) => items.retain(|item| !is_item(item, last)),
        _ => {}
    }
}

/// Whether a step leads to this item of a list.
fn is_item(item: &Value, step: &str) -> bool {
    if let Some(text) = step.strip_prefix("v:") {
        return serde_json::from_str::<Value>(text).is_ok_and(|value| value == *item);
    }
    let key = step.strip_prefix("k:").and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    key.is_some_and(|key| {
        key.iter().all(|(name, value)| match item.get(name) {
            Some(own) => own == value,
            None => name == "protocol" && value == "TCP",
        })
    })
}

/// A path as people write it: `.spec.containers[name="app"].image`.
pub(super) fn display(path: &[String]) -> String {
    let mut text = String::new();
    for step in path {
        if let Some(name) = step.strip_prefix("f:") {
            text.push('.');
            text.push_str(name);
        } else if let Some(value) = step.strip_prefix("v:") {
            text.push_str(&format!("[={value}]"));
        } else if let Some(key) = step.strip_prefix("k:") {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let parts: Vec<String> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            text.push_str(&format!("[{}]", parts.join(",")));
        }
    }
    text
}
