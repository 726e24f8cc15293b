//! Structural schemas of CustomResourceDefinitions: defaults, pruning and validation.
//!
//! CEL rules (`x-kubernetes-validations`) are not evaluated.

use regex::Regex;
use serde_json::{Map, Value};

/// Fills in the defaults.
pub(super) fn default(value: &mut Value, schema: &Value) {
    if let (Value::Object(map), Some(properties)) = (&mut *value, properties(schema)) {
        for (name, property) in properties {
            if let Some(default) = property.get("default")
                && (!map.contains_key(name)
                    || (map.get(name) == Some(&Value::Null) && !is_nullable(property)))
            {
                map.insert(name.clone(), default.clone());
            }
        }
    }
    children(value, schema, default);
}

/// Removes fields that the schema does not have; their paths are added to `pruned`.
pub(super) fn prune(value: &mut Value, schema: &Value, path: &str, pruned: &mut Vec<String>) {
    let flag = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
    let preserves = flag("x-kubernetes-preserve-unknown-fields");
    match value {
        Value::Object(map) => {
            let additional = schema.get("additionalProperties").filter(|it| **it != Value::Bool(false));
            let embedded = flag("x-kubernetes-embedded-resource");
            let mut gone = Vec::new();
            for (name, inner) in map.iter_mut() {
                let here = join(path, name);
                let identity = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                if identity && (path.is_empty() || embedded) {
                    continue;
                }
                match (properties(schema).and_then(|all| all.get(name)), additional) {
                    (Some(property), _) => prune(inner, property, &here, pruned),
                    (None, Some(additional)) if additional.is_object() => {
                        prune(inner, additional, &here, pruned);
                    }
                    (None, Some(_)) => {}
                    (None, None) if preserves => {}
                    (None, None) => gone.push(name.clone()),
                }
            }
            for name in gone {
                pruned.push(join(path, &name));
                map.shift_remove(&name);
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter_mut().enumerate() {
                    prune(item, schema, &format!("{path}[{index}]"), pruned);
                }
            }
        }
        _ => {}
    }
}

/// What is wrong with a value: path and message.
pub(super) fn validate(value: &Value, schema: &Value, path: &str, faults: &mut Vec<(String, String)>) {
    if value.is_null() {
        if !is_nullable(schema) && schema.get("type").is_some() {
            faults.push((path.to_owned(), invalid(value, "must not be null")));
        }
        return;
    }
    if let Some(message) = type_fault(value, schema) {
        faults.push((path.to_owned(), message));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        faults.push((
            path.to_owned(),
            format!("Unsupported value: {value}: supported values: {}", list.join(", ")),
        ));
    }
    bounds(value, schema, path, faults);
    match value {
        Value::Object(map) => {
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                if let Some(name) = name.as_str().filter(|name| !map.contains_key(*name)) {
                    faults.push((join(path, name), "Required value".to_owned()));
                }
            }
            let additional = schema.get("additionalProperties").filter(|it| it.is_object());
            for (name, inner) in map {
                let property = properties(schema).and_then(|all| all.get(name));
                if let Some(schema) = property.or(additional) {
                    validate(inner, schema, &join(path, name), faults);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    validate(item, schema, &format!("{path}[{index}]"), faults);
                }
            }
            unique(items, schema, path, faults);
        }
        _ => {}
    }
    combinations(value, schema, path, faults);
}

fn type_fault(value: &Value, schema: &Value) -> Option<String> {
    if schema.get("x-kubernetes-int-or-string").and_then(Value::as_bool) == Some(true) {
        let good = value.is_string() || value.is_i64() || value.is_u64();
        return (!good).then(|| format!("Invalid value: {value}: must be an integer or a string"));
    }
    let wanted = schema.get("type")?.as_str()?;
    let good = match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|it| it.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    (!good).then(|| format!("Invalid value: \"{found}\": must be of type {wanted}: \"{found}\""))
}

fn bounds(value: &Value, schema: &Value, path: &str, faults: &mut Vec<(String, String)>) {
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    let flag = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
    let mut fault = |message: &str| faults.push((path.to_owned(), invalid(value, message)));
    if let Some(number) = value.as_f64() {
        if let Some(least) = limit("minimum")
            && (number < least || (number == least && flag("exclusiveMinimum")))
        {
            fault(&format!("should be greater than or equal to {least}"));
        }
        if let Some(most) = limit("maximum")
            && (number > most || (number == most && flag("exclusiveMaximum")))
        {
            fault(&format!("should be less than or equal to {most}"));
        }
    }
    let (length, what, least, most) = match value {
        Value::String(text) => (text.chars().count(), "chars long", "minLength", "maxLength"),
        Value::Array(items) => (items.len(), "items", "minItems", "maxItems"),
        Value::Object(map) => (map.len(), "properties", "minProperties", "maxProperties"),
        _ => return,
    };
    if let Some(least) = limit(least)
        && (length as f64) < least
    {
        fault(&format!("should be at least {least} {what}"));
    }
    if let Some(most) = limit(most)
        && (length as f64) > most
    {
        fault(&format!("may not be more than {most} {what}"));
    }
    if let (Value::String(text), Some(pattern)) = (value, schema.get("pattern").and_then(Value::as_str))
        && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
    {
        fault(&format!("should match '{pattern}'"));
    }
}

fn unique(items: &[Value], schema: &Value, path: &str, faults: &mut Vec<(String, String)>) {
    let keys: Vec<String> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Some("set") => Vec::new(),
        _ => return,
    };
    let identity = |item: &Value| -> Vec<Option<Value>> {
        if keys.is_empty() {
            return vec![Some(item.clone())];
        }
        keys.iter().map(|key| item.get(key).cloned()).collect()
    };
    let mut seen: Vec<Vec<Option<Value>>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let own = identity(item);
        if seen.contains(&own) {
            faults.push((format!("{path}[{index}]"), format!("Duplicate value: {item}")));
        }
        seen.push(own);
    }
}

fn combinations(value: &Value, schema: &Value, path: &str, faults: &mut Vec<(String, String)>) {
    let passes = |schema: &Value| {
        let mut found = Vec::new();
        validate(value, schema, path, &mut found);
        found.is_empty()
    };
    let all = |name: &str| schema.get(name).and_then(Value::as_array);
    if let Some(schemas) = all("allOf") {
        schemas.iter().for_each(|schema| validate(value, schema, path, faults));
    }
    if let Some(schemas) = all("anyOf")
        && !schemas.iter().any(passes)
    {
        faults.push((path.to_owned(), invalid(value, "must validate at least one schema (anyOf)")));
    }
    if let Some(schemas) = all("oneOf")
        && schemas.iter().filter(|schema| passes(schema)).count() != 1
    {
        faults.push((path.to_owned(), invalid(value, "must validate one and only one schema (oneOf)")));
    }
    if let Some(schema) = schema.get("not")
        && passes(schema)
    {
        faults.push((path.to_owned(), invalid(value, "must not validate the schema (not)")));
    }
}

fn invalid(value: &Value, message: &str) -> String {
    let shown = match value {
        Value::Object(_) => "{...}".to_owned(),
        other => other.to_string(),
    };
    format!("Invalid value: {shown}: {message}")
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

fn is_nullable(schema: &Value) -> bool {
    schema.get("nullable").and_then(Value::as_bool) == Some(true)
}

fn children(value: &mut Value, schema: &Value, visit: fn(&mut Value, &Value)) {
    match value {
        Value::Object(map) => {
            let additional = schema.get("additionalProperties").filter(|it| it.is_object());
            for (name, inner) in map {
                if let Some(schema) = properties(schema).and_then(|all| all.get(name)).or(additional) {
                    visit(inner, schema);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| visit(item, schema));
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{default, prune, validate};

    fn schema() -> Value {
        json!({ "type": "object", "required": ["spec"], "properties": { "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": { "type": "integer", "minimum": 1, "maximum": 9 },
                "mode": { "type": "string", "enum": ["A", "B"], "default": "A" },
                "port": { "x-kubernetes-int-or-string": true },
                "names": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string", "pattern": "^[a-z]+$" } },
                "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                "map": { "type": "object", "additionalProperties": { "type": "object", "properties": { "x": { "type": "string" } } } },
            },
            "oneOf": [{ "required": ["port"] }, { "required": ["names"] }],
        } } })
    }

    #[test]
    fn defaults_and_pruning() {
        let mut object = json!({ "kind": "X", "metadata": { "name": "a" }, "odd": 1,
            "spec": { "size": 1, "other": 2, "free": { "a": 1 }, "map": { "k": { "x": "1", "y": 2 } } } });
        default(&mut object, &schema());
        let mut pruned = Vec::new();
        prune(&mut object, &schema(), "", &mut pruned);
        pruned.sort();
        assert_eq!(pruned, ["odd", "spec.map.k.y", "spec.other"]);
        assert_eq!(
            object,
            json!({ "kind": "X", "metadata": { "name": "a" },
                "spec": { "size": 1, "free": { "a": 1 }, "map": { "k": { "x": "1" } }, "mode": "A" } })
        );
    }

    #[test]
    fn validation() {
        for (spec, expected) in [
            (json!({ "size": 3, "port": "http" }), vec![]),
            (json!({ "size": 0, "port": 1 }), vec!["spec.size"]),
            (json!({ "size": "1", "port": 1 }), vec!["spec.size"]),
            (json!({ "port": 1 }), vec!["spec.size"]),
            (
                json!({ "size": 1, "mode": "C", "names": ["a", "B", "a"] }),
                vec!["spec.mode", "spec.names[1]", "spec.names[2]"],
            ),
            (json!({ "size": 1 }), vec!["spec"]),
            (json!({ "size": 1, "port": true }), vec!["spec.port"]),
            (Value::Null, vec!["spec"]),
        ] {
            let mut faults = Vec::new();
            validate(&json!({ "spec": spec }), &schema(), "", &mut faults);
            let paths: Vec<&str> = faults.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, expected, "{spec} {faults:?}");
        }
    }
}
