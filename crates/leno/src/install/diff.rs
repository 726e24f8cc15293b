//! Two manifests compared, object by object.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use leno_api::yaml::{Dialect, Node, parse};
use serde_json::Value;

use super::manifest::Id;

/// The objects of a file, or of all YAML files of a folder.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn read(path: &Path) -> anyhow::Result<BTreeMap<Id, Value>> {
    let mut objects = BTreeMap::new();
    if path.is_dir() {
        let mut entries: Vec<_> = std::fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::path);
        for entry in entries {
            let path = entry.path();
            let is_yaml = path.extension().is_some_and(|it| it == "yaml" || it == "yml");
            if path.is_dir() || is_yaml {
                objects.extend(read(&path)?);
            }
        }
        return Ok(objects);
    }
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
    let documents =
        parse(&text, Dialect::Kubernetes).map_err(|error| anyhow::anyhow!("{}", error.in_file(&shown)))?;
    for object in documents.iter().map(Node::to_json).filter(|object| !object.is_null()) {
        objects.insert(Id::of(&object), object);
    }
    Ok(objects)
}

/// What differs, line by line; empty: nothing.
pub(crate) fn compare(left: &BTreeMap<Id, Value>, right: &BTreeMap<Id, Value>) -> Vec<String> {
    let mut lines = Vec::new();
    let ids: BTreeSet<&Id> = left.keys().chain(right.keys()).collect();
    for id in ids {
        match (left.get(id), right.get(id)) {
            (Some(_), None) => lines.push(format!("- {id}: only in the first")),
            (None, Some(_)) => lines.push(format!("+ {id}: only in the second")),
            (Some(left), Some(right)) => {
                let mut found = Vec::new();
                values(left, right, "", &mut found);
                if !found.is_empty() {
                    lines.push(format!("{id}:"));
                    lines.extend(found.into_iter().map(|line| format!("  {line}")));
                }
            }
            (None, None) => {}
        }
    }
    lines
}

fn values(left: &Value, right: &Value, path: &str, out: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let name_in_path = if name.contains('.') { format!("[{name:?}]") } else { name.clone() };
                let dot = if path.is_empty() || name_in_path.starts_with('[') { "" } else { "." };
                let at = format!("{path}{dot}{name_in_path}");
                match (one.get(name), other.get(name)) {
                    (Some(one), Some(other)) => values(one, other, &at, out),
                    (Some(one), None) => out.push(format!("{at}: {one} -> (nothing)")),
                    (None, Some(other)) => out.push(format!("{at}: (nothing) -> {other}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (at, (one, other)) in one.iter().zip(other).enumerate() {
                values(one, other, &format!("{path}[{at}]"), out);
            }
        }
        // Numbers are numbers, however they are written.
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
        _ if left == right => {}
        _ => out.push(format!("{path}: {left} -> {right}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::{Id, compare};

    #[test]
    fn what_differs() {
        let all = |objects: Value| -> BTreeMap<Id, Value> {
            objects.as_array().unwrap().iter().map(|it| (Id::of(it), it.clone())).collect()
        };
        let left = all(json!([
            { "kind": "A", "metadata": { "name": "x", "labels": { "a.b/c": "1" } }, "spec": { "n": 1, "l": [1, { "y": 2 }] } },
            { "kind": "B", "metadata": { "name": "y", "namespace": "n" } },
        ]));
        let right = all(json!([
            { "kind": "A", "metadata": { "name": "x", "labels": { "a.b/c": "2" } }, "spec": { "n": 1.0, "l": [1, { "y": 3 }], "m": 1 } },
            { "kind": "C", "metadata": { "name": "z" } },
        ]));
        let told = compare(&left, &right).join("\n");
        expect_test::expect![[r#"
            A/x:
              metadata.labels["a.b/c"]: "1" -> "2"
              spec.l[1].y: 2 -> 3
              spec.m: (nothing) -> 1
            - B/n/y: only in the first
            + C/z: only in the second"#]]
        .assert_eq(&told);
        assert!(compare(&left, &left).is_empty());
    }
}
