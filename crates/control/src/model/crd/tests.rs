//! The definitions are up to date, take what is good and refuse what is not.

use std::fs;
use std::path::{Path, PathBuf};

use leno_api::encode::yaml_text;
use leno_api::yaml::{self, Dialect, Node};
use regex::Regex;
use serde_json::Value;

use super::{DEFINITIONS, Definition};
use crate::model::read::{Read, read};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn files_are_up_to_date() {
    let folder = root().join("deploy/charts/base/files/crds");
    let mut stale = Vec::new();
    for definition in &DEFINITIONS {
        let text = yaml_text(&definition.render());
        let path = folder.join(definition.file());
        if std::env::var_os("UPDATE_CRDS").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "run `cargo xtask crds`: {stale:?}");
}

/// Every place has a type, as Kubernetes demands of a structural schema, and no references.
#[test]
fn schemas_are_structural() {
    fn check(schema: &Value, path: &str) {
        let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
        assert!(
            ["object", "array", "string", "integer", "number", "boolean"].contains(&kind),
            "{path}: {schema}"
        );
        for key in ["$ref", "$defs", "const", "patternProperties", "default", "title"] {
            assert!(schema.get(key).is_none(), "{path} has {key}");
        }
        for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            check(schema, &format!("{path}.{name}"));
        }
        for (key, sign) in [("items", "[]"), ("additionalProperties", "{}")] {
            if let Some(schema) = schema.get(key) {
                check(schema, &format!("{path}{sign}"));
            }
        }
    }
    for definition in &DEFINITIONS {
        check(&definition.spec(), &definition.kind().to_string());
    }
}

/// What the readers find good, the schemas take.
#[test]
fn goldens_and_samples_are_taken() {
    let mut files = Vec::new();
    for folder in ["crates/control/tests/golden", "samples"] {
        collect(&root().join(folder), &mut files);
    }
    let specs: Vec<(&Definition, Value)> =
        DEFINITIONS.iter().map(|definition| (definition, definition.spec())).collect();
    let mut taken = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for node in yaml::parse(&text, Dialect::Kubernetes).unwrap_or_default() {
            let Read::Object { reference, .. } = read(&node) else { continue };
            let found = specs.iter().find(|(definition, _)| definition.kind() == reference.kind);
            let (Some((_, schema)), Some(spec)) = (found, node.find("spec")) else { continue };
            let faults = faults(schema, &spec.to_json(), "spec");
            assert!(faults.is_empty(), "{}: {reference}: {faults:#?}", file.display());
            taken += 1;
        }
    }
    assert!(taken > 50, "only {taken} objects");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
}

#[test]
fn what_is_wrong_is_refused() {
    let check = |kind: &str, spec: &str, wanted: &str| {
        let definition = DEFINITIONS.iter().find(|it| it.kind().to_string() == kind).unwrap();
        let documents = yaml::parse(spec, Dialect::Kubernetes).unwrap();
        let value = documents.first().map(Node::to_json).unwrap_or_default();
        let found = faults(&definition.spec(), &value, "spec").join("; ");
        assert!(found.contains(wanted), "{kind} {spec}: {found:?}");
    };
    check("VirtualService", "{hosts: a}", "spec.hosts: not of type array");
    check("VirtualService", "{http: [{match: [{uri: {exact: a, prefix: b}}]}]}", "uri: no single choice");
    check("VirtualService", "{http: [{route: [{weight: 1}]}]}", "route[0]: destination is missing");
    check("VirtualService", "{http: [{match: [{port: -1}]}]}", "port: out of bounds");
    check("DestinationRule", "{}", "spec: host is missing");
    check("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: NONE}}}", "mode: none of the values");
    check(
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {}}}}",
        "no single choice",
    );
    check("Gateway", "{servers: [{port: {number: 80}}]}", "protocol is missing");
    check("ServiceEntry", "{hosts: []}", "spec.hosts: out of bounds");
    check("ServiceEntry", "{hosts: [a], ports: [{number: 70000, name: a}]}", "number: out of bounds");
    check("WorkloadGroup", "{}", "template is missing");
    check("Sidecar", "{egress: [{}]}", "hosts is missing");
    check("EnvoyFilter", "{configPatches: [{applyTo: NOTHING}]}", "none of the values");
    check("PeerAuthentication", "{portLevelMtls: {80: {mode: ON_}}}", "none of the values");
    check(
        "RequestAuthentication",
        "{jwtRules: [{outputClaimToHeaders: [{header: 'a:b', claim: c}]}]}",
        "no match",
    );
    check("AuthorizationPolicy", "{targetRefs: [{kind: '', name: a}]}", "kind: out of bounds");
    check(
        "Telemetry",
        "{tracing: [{customTags: {a: {literal: {value: b}, header: {name: c}}}}]}",
        "no single choice",
    );
    check("Telemetry", "{tracing: [{randomSamplingPercentage: 101}]}", "out of bounds");
    check("ProxyConfig", "{concurrency: many}", "not of type integer");
    check("WorkloadEntry", "{ports: {http: 0}}", "out of bounds");
}

/// What a schema finds wrong with a value; rules in CEL are left to the API server.
fn faults(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    if value.is_null() {
        // The API server drops nulls where they are not allowed.
        return Vec::new();
    }
    let mut found = choices(schema, value, path);
    let kind = schema.get("type").and_then(Value::as_str);
    let fits = match kind {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some(other) => panic!("{other}"),
    };
    if !fits {
        found.push(format!("{path}: not of type {}", kind.unwrap_or_default()));
        return found;
    }
    let (size, least, most) = match value {
        Value::Array(items) => (items.len() as f64, "minItems", "maxItems"),
        Value::Object(fields) => (fields.len() as f64, "minProperties", "maxProperties"),
        Value::String(text) => (text.chars().count() as f64, "minLength", "maxLength"),
        other => (other.as_f64().unwrap_or_default(), "minimum", "maximum"),
    };
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
    if limit(least).is_some_and(|limit| size < limit) || limit(most).is_some_and(|limit| size > limit) {
        found.push(format!("{path}: out of bounds"));
    }
    if let (Some(pattern), Some(text)) = (schema.get("pattern").and_then(Value::as_str), value.as_str())
        && !Regex::new(pattern).unwrap().is_match(text)
    {
        found.push(format!("{path}: no match"));
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array)
        && !values.contains(value)
    {
        found.push(format!("{path}: none of the values"));
    }
    let fields = schema.get("properties").and_then(Value::as_object);
    for (name, value) in value.as_object().into_iter().flatten() {
        let below = format!("{path}.{name}");
        match (fields.and_then(|fields| fields.get(name)), schema.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema)) => found.extend(faults(schema, value, &below)),
            // Unknown fields are dropped, with a warning.
            (None, None) => {}
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(faults(&schema["items"], item, &format!("{path}[{index}]")));
    }
    found
}

fn choices(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let list = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
    let holds = |schema: &&Value| faults(schema, value, path).is_empty();
    for name in list("required").filter_map(Value::as_str) {
        if value.as_object().is_some_and(|fields| !fields.contains_key(name)) {
            found.push(format!("{path}: {name} is missing"));
        }
    }
    if schema.get("oneOf").is_some() && list("oneOf").filter(holds).count() != 1 {
        found.push(format!("{path}: no single choice"));
    }
    if schema.get("anyOf").is_some() && !list("anyOf").any(|schema| holds(&schema)) {
        found.push(format!("{path}: no choice"));
    }
    if let Some(not) = schema.get("not")
        && holds(&not)
    {
        found.push(format!("{path}: must not be so"));
    }
    for schema in list("allOf") {
        found.extend(faults(schema, value, path));
    }
    found
}
