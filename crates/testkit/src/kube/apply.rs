//! Server-side apply: an object is what its managers each want of it.
//!
//! Who applies owns the fields that he names; what he named before and names no more goes, unless
//! another owns it too; what another owns with a different value is a conflict, unless it is forced.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::fields::{self, Fields, Path};
use super::status::Failure;
use super::time;
use super::typing::{ListKind, Typing, item_key};

/// Who changes an object, and how.
#[derive(Clone, Debug)]
pub(super) struct Manager {
    pub(super) name: String,
    /// Whether by server-side apply.
    pub(super) applies: bool,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) now: SystemTime,
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Fields,
}

impl Entry {
    fn is(&self, manager: &Manager) -> bool {
        let operation = if manager.applies { "Apply" } else { "Update" };
        self.manager == manager.name
            && self.operation == operation
            && self.subresource == manager.subresource
            && (manager.applies || self.api_version == manager.api_version)
    }

    fn new(manager: &Manager) -> Entry {
        Entry {
            manager: manager.name.clone(),
            operation: if manager.applies { "Apply" } else { "Update" }.to_owned(),
            api_version: manager.api_version.clone(),
            subresource: manager.subresource.clone(),
            time: time::rfc3339(manager.now),
            fields: Fields::default(),
        }
    }
}

/// The object that results from applying `config` to `live`.
///
/// # Errors
/// A conflict with other managers, unless forced.
pub(super) fn apply(
    live: &Value,
    config: &Value,
    typing: Typing<'_>,
    manager: &Manager,
    force: bool,
) -> Result<Value, Failure> {
    let mut config = config.clone();
    drop_nulls(&mut config);
    let wanted = Fields::of(&config, typing);
    let mut entries = entries(live);
    let mut conflicts: Vec<(String, Path)> = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.is(manager)) {
        for path in wanted.0.intersection(&entry.fields.0) {
            let is_item = path.last().is_some_and(|step| step.starts_with("k:"));
            let differs = fields::find(live, path) != fields::find(&config, path);
            if !is_item && differs {
                let place = match entry.subresource.as_str() {
                    "" => String::new(),
                    subresource => format!(" with subresource \"{subresource}\""),
                };
                let how = match entry.operation.as_str() {
                    "Update" => format!(" using {} at {}", entry.api_version, entry.time),
                    _ => String::new(),
                };
                let who = format!("\"{}\"{place}{how}", entry.manager);
                conflicts.push((who, path.clone()));
            }
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(refuse(&conflicts));
    }
    for entry in entries.iter_mut().filter(|entry| !entry.is(manager)) {
        for (_, path) in &conflicts {
            entry.fields.0.remove(path);
        }
    }
    let mut merged = live.clone();
    merge(&mut merged, &config, typing);
    let own = entries.iter().position(|entry| entry.is(manager));
    if let Some(own) = own.and_then(|own| entries.get(own)) {
        let others: Vec<&Fields> =
            entries.iter().filter(|entry| !entry.is(manager)).map(|entry| &entry.fields).collect();
        // An item comes before its fields, without whose key it could not be found.
        for path in own.fields.0.difference(&wanted.0) {
            if !others.iter().any(|fields| fields.touches(path)) && !wanted.touches(path) {
                fields::remove(&mut merged, path);
            }
        }
    }
    match own.and_then(|own| entries.get_mut(own)) {
        Some(entry) if entry.fields == wanted && entry.api_version == manager.api_version => {}
        Some(entry) => *entry = Entry { fields: wanted, ..Entry::new(manager) },
        None => entries.push(Entry { fields: wanted, ..Entry::new(manager) }),
    }
    write(&mut merged, &entries);
    Ok(merged)
}

/// Notes in `after` who has changed what since `before`.
pub(super) fn track(before: Option<&Value>, after: &mut Value, typing: Typing<'_>, manager: &Manager) {
    let mut entries = before.map(entries).unwrap_or_default();
    let old = before.map(|before| Fields::of(before, typing)).unwrap_or_default();
    let new = Fields::of(after, typing);
    let changed: Vec<&Path> = new
        .0
        .iter()
        .filter(|path| {
            let is_item = path.last().is_some_and(|step| step.starts_with("k:"));
            let was = before.and_then(|before| fields::find(before, path));
            if is_item { was.is_none() } else { was != fields::find(after, path) }
        })
        .collect();
    let gone: Vec<&Path> = old.0.difference(&new.0).collect();
    for entry in &mut entries {
        for path in &gone {
            entry.fields.0.remove(*path);
        }
        if !entry.is(manager) {
            for path in &changed {
                entry.fields.0.remove(*path);
            }
        }
    }
    if !changed.is_empty() {
        let place = entries.iter().position(|entry| entry.is(manager)).unwrap_or_else(|| {
            entries.push(Entry::new(manager));
            entries.len() - 1
        });
        if let Some(entry) = entries.get_mut(place) {
            entry.fields.0.extend(changed.into_iter().cloned());
            entry.time = time::rfc3339(manager.now);
        }
    }
    write(after, &entries);
}

/// Puts what is wanted into what is there.
fn merge(live: &mut Value, wanted: &Value, typing: Typing<'_>) {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) if !typing.is_atomic_map() => {
            for (key, value) in wanted {
                match live.get_mut(key) {
                    Some(own) => merge(own, value, typing.field(key)),
                    None => drop(live.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(live), Value::Array(wanted)) => match typing.list(wanted) {
            ListKind::Atomic => live.clone_from(wanted),
            ListKind::Set => {
                let fresh: Vec<Value> = wanted.iter().filter(|item| !live.contains(item)).cloned().collect();
                live.extend(fresh);
            }
            ListKind::Map(keys) => {
                for item in wanted {
                    let key = item_key(item, &keys);
                    let own = live.iter_mut().find(|own| key.is_some() && item_key(own, &keys) == key);
                    match own {
                        Some(own) => merge(own, item, typing.item()),
                        None => live.push(item.clone()),
                    }
                }
            }
        },
        (live, wanted) => live.clone_from(wanted),
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn refuse(conflicts: &[(String, Path)]) -> Failure {
    let each: Vec<String> = conflicts
        .iter()
        .map(|(who, path)| format!("conflict with {who}: {}", fields::display(path)))
        .collect();
    let message = match each.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {one}"),
        many => format!("Apply failed with {} conflicts: {}", many.len(), many.join("\n")),
    };
    let mut failure = Failure::new(409, "Conflict", message);
    failure.causes = conflicts
        .iter()
        .map(|(who, path)| (fields::display(path), format!("conflict with {who}"), "FieldManagerConflict"))
        .collect();
    failure
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let text =
        |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    list.into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(entry, "manager"),
            operation: text(entry, "operation"),
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
            time: text(entry, "time"),
            fields: entry.get("fieldsV1").map(Fields::from_value).unwrap_or_default(),
        })
        .collect()
}

fn write(object: &mut Value, entries: &[Entry]) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let list: Vec<Value> = entries
        .iter()
        .filter(|entry| !entry.fields.is_empty())
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager,
                "operation": entry.operation,
                "apiVersion": entry.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_value(),
            });
            if let (false, Some(map)) = (entry.subresource.is_empty(), value.as_object_mut()) {
                map.insert("subresource".to_owned(), Value::from(entry.subresource.as_str()));
            }
            value
        })
        .collect();
    metadata.insert("managedFields".to_owned(), Value::from(list));
}

/// An object without what tells who changed it: to find out whether it has changed.
pub(super) fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    object
}

/// Only its identity and one of its fields: what may be applied to a subresource.
pub(super) fn only(object: &Value, field: &str) -> Value {
    let mut kept = Map::new();
    for key in ["apiVersion", "kind", "metadata", field] {
        if let Some(value) = object.get(key) {
            kept.insert(key.to_owned(), value.clone());
        }
    }
    Value::from(kept)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use serde_json::{Value, json};

    use super::{Manager, apply, track, without_managers};
    use crate::kube::typing::Typing;

    fn manager(name: &str, applies: bool) -> Manager {
        Manager {
            name: name.to_owned(),
            applies,
            api_version: "v1".to_owned(),
            subresource: String::new(),
            now: UNIX_EPOCH,
        }
    }

    const TYPING: Typing<'static> = Typing::BuiltIn("");

    fn base() -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" } })
    }

    #[test]
    fn what_is_no_longer_applied_goes() {
        let one = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "labels": { "x": "1", "y": "2" } },
            "spec": { "containers": [{ "name": "app", "image": "one" }, { "name": "side", "image": "two" }] } });
        let live = apply(&base(), &one, TYPING, &manager("me", true), false).unwrap();
        let two = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "labels": { "x": "1" } },
            "spec": { "containers": [{ "name": "app", "image": "three" }] } });
        let live = apply(&live, &two, TYPING, &manager("me", true), false).unwrap();
        assert_eq!(
            without_managers(&live),
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "labels": { "x": "1" } },
                "spec": { "containers": [{ "name": "app", "image": "three" }] } })
        );
        let again = apply(&live, &two, TYPING, &manager("me", true), false).unwrap();
        assert_eq!(again, live);
    }

    #[test]
    fn others_fields_are_conflicts_unless_forced_or_equal() {
        let wanted = |value: &str| json!({ "metadata": { "name": "a" }, "data": { "k": value } });
        let live = apply(&base(), &wanted("1"), TYPING, &manager("one", true), false).unwrap();
        let same = apply(&live, &wanted("1"), TYPING, &manager("two", true), false).unwrap();
        let failure = apply(&same, &wanted("2"), TYPING, &manager("two", true), false).unwrap_err();
        assert_eq!(failure.message, "Apply failed with 1 conflict: conflict with \"one\": .data.k");
        let forced = apply(&same, &wanted("2"), TYPING, &manager("two", true), true).unwrap();
        assert_eq!(forced["data"]["k"], "2");
        // The first gives up what it has lost, so that applying nothing does not take it away.
        let empty = json!({ "metadata": { "name": "a" } });
        let left = apply(&forced, &empty, TYPING, &manager("one", true), false).unwrap();
        assert_eq!(left["data"]["k"], "2");
    }

    #[test]
    fn an_update_takes_what_it_changes() {
        let config = json!({ "metadata": { "name": "a" }, "data": { "k": "1", "l": "1" } });
        let live = apply(&base(), &config, TYPING, &manager("one", true), false).unwrap();
        let mut edited = live.clone();
        edited["data"]["k"] = Value::from("2");
        track(Some(&live), &mut edited, TYPING, &manager("editor", false));
        let owners: Vec<(&str, &Value)> = edited["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["manager"].as_str().unwrap(), &entry["fieldsV1"]["f:data"]))
            .collect();
        assert_eq!(owners, [("one", &json!({"f:l": {}})), ("editor", &json!({"f:k": {}}))]);
        assert!(apply(&edited, &config, TYPING, &manager("one", true), false).is_err());
    }
}
