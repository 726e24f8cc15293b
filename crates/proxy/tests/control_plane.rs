//! What the control plane emits must be what the proxy can do: each golden's clusters, endpoints,
//! listeners, routes and secrets, as one configuration for each proxy.
//!
//! The goldens are read as files: neither crate knows the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use leno_api::yaml::{self, Dialect};
use leno_proxy::{Options, validate};
use serde_json::{Map, Value, json};

/// What is refused of the goldens, as a part of the fault, with the reason. Whoever changes that
/// deletes it here.
const REFUSED: &[(&str, &str)] = &[
    ("cannot read '/", "the goldens name files that nobody has"),
    ("unknown cluster 'outbound|", "some goldens have listeners and no clusters"),
    ("tls_maximum_protocol_version: not supported yet", "there is no TLS older than 1.2"),
    ("REQ_WITHOUT_QUERY", "a formatter to come"),
    ("envoy.formatter.req_without_query", "a formatter to come"),
    ("envoy.access_loggers.http_grpc", "an access log to come"),
    ("envoy.tcp_grpc_access_log", "an access log to come"),
    ("envoy.access_loggers.open_telemetry", "an access log to come"),
    ("envoy.access_loggers.extension_filters.cel", "a filter of access logs to come"),
    ("extension 'istio.", "filters of Istio's own to come"),
    ("envoy.tracers.", "tracers that belong to vendors"),
];

/// The golden outputs: `CASE/PROXY` and the resources.
fn outputs() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control/tests/golden");
    let mut outputs = Vec::new();
    for case in sorted(&folder) {
        let case_name = case.file_name().expect("a name").to_string_lossy().into_owned();
        for file in sorted(&case) {
            let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_yaml = file.extension().is_some_and(|extension| extension == "yaml");
            let is_input = ["input", "proxies", "environment", "mesh"].contains(&stem.as_str());
            if !is_yaml || is_input {
                continue;
            }
            let text = fs::read_to_string(&file).expect("readable");
            let documents = yaml::parse(&text, Dialect::Kubernetes).expect("YAML");
            let (output, _) = yaml::from_node::<Value>(&documents[0]).expect("JSON");
            outputs.push((format!("{case_name}/{stem}"), output));
        }
    }
    outputs
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_goldens_are_accepted() {
    let outputs = outputs();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (kind, list) in outputs.iter().filter_map(|(_, output)| output.as_object()).flatten() {
        *counts.entry(kind.clone()).or_default() += list.as_array().map_or(0, Vec::len);
    }
    for (kind, least) in [("clusters", 300), ("listeners", 200), ("routes", 200), ("endpoints", 200)] {
        assert!(counts.get(kind).is_some_and(|count| *count >= least), "{kind}: {counts:?}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let half = outputs.len() / 2;
    let faults: Vec<String> = std::thread::scope(|scope| {
        let halves = outputs.split_at(half);
        let check = |part: &[(String, Value)], name: &str| -> Vec<String> {
            let path = folder.path().join(name);
            part.iter().flat_map(|(name, output)| faults(name, output, &path)).collect()
        };
        let first = scope.spawn(move || check(halves.0, "first.json"));
        let second = check(halves.1, "second.json");
        first.join().expect("no panic").into_iter().chain(second).collect()
    });
    let mut used = vec![false; REFUSED.len()];
    let mut told = String::new();
    // What users patch in (`ef-...`: EnvoyFilter) is theirs, and refused by name.
    let patched = |fault: &String| fault.starts_with("ef-") && fault.contains("not supported yet");
    for fault in faults.into_iter().filter(|fault| !patched(fault)) {
        match REFUSED.iter().position(|(part, _)| fault.contains(part)) {
            Some(known) => used[known] = true,
            None => writeln!(told, "{fault}").expect("a string"),
        }
    }
    assert!(told.is_empty(), "refused:\n{told}");
    for ((part, reason), _) in REFUSED.iter().zip(&used).filter(|(_, used)| !**used) {
        println!("no golden needs this any more: {part:?} ({reason})");
    }
}

/// What the proxy has against an output, each fault with the output's name.
fn faults(name: &str, output: &Value, path: &Path) -> Vec<String> {
    fs::write(path, bootstrap(output).to_string()).expect("writable");
    let options = Options { config_path: Some(path.to_owned()), ..Options::default() };
    let faults = validate(&options).err().unwrap_or_default();
    faults.iter().map(|fault| format!("{name}: {}", named(fault, output))).collect()
}

/// An output as a configuration without discovery.
fn bootstrap(output: &Value) -> Value {
    let list = |field: &str| output.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let assignments = list("endpoints");
    let mut clusters = list("clusters");
    clusters.iter_mut().filter_map(Value::as_object_mut).for_each(|it| fix_endpoints(it, &assignments));
    let routes = list("routes");
    let mut listeners = list("listeners");
    listeners.iter_mut().for_each(|listener| inline_routes(listener, &routes));
    // Routes that no listener of the output names are looked at as well.
    if listeners.is_empty() {
        listeners = routes.iter().map(listener_of).collect();
    }
    let http2 = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    // Where secrets come from, as far as the output does not say it.
    let is_there = |name: &str| clusters.iter().any(|cluster| cluster["name"] == name);
    let missing: Vec<&str> = ["sds-grpc", "sds-files-grpc", "sds-external", "xds-grpc"]
        .into_iter()
        .filter(|name| !is_there(name))
        .collect();
    clusters.extend(
        missing
            .iter()
            .map(|name| json!({ "name": name, "type": "STATIC", "typed_extension_protocol_options": http2 })),
    );
    json!({
        "node": { "id": "golden", "cluster": "golden" },
        "dynamic_resources": { "ads_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
        }},
        "static_resources": { "clusters": clusters, "listeners": listeners, "secrets": list("secrets") },
    })
}

/// Endpoints that would come by EDS, put where a static configuration has them.
fn fix_endpoints(cluster: &mut Map<String, Value>, assignments: &[Value]) {
    if cluster.remove("eds_cluster_config").is_none() {
        return;
    }
    cluster.insert("type".to_owned(), Value::from("STATIC"));
    let empty = json!({ "cluster_name": cluster["name"] });
    let found = assignments.iter().find(|one| one["cluster_name"] == cluster["name"]);
    cluster.insert("load_assignment".to_owned(), found.cloned().unwrap_or(empty));
}

/// Routes that would come by RDS, put where they are asked for.
fn inline_routes(value: &mut Value, routes: &[Value]) {
    match value {
        Value::Object(fields) => {
            let name = fields.get("rds").and_then(|rds| rds.get("route_config_name"));
            if let Some(found) = routes.iter().find(|route| Some(&route["name"]) == name) {
                let mut found = found.clone();
                // As with RDS; and not all outputs have clusters.
                found["validate_clusters"] = Value::from(false);
                fields.remove("rds");
                fields.insert("route_config".to_owned(), found);
            }
            fields.values_mut().for_each(|value| inline_routes(value, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| inline_routes(value, routes)),
        _ => {}
    }
}

/// A listener that has nothing but these routes.
fn listener_of(routes: &Value) -> Value {
    let mut routes = routes.clone();
    routes["validate_clusters"] = Value::from(false);
    let any = |kind: &str, mut config: Value| {
        config["@type"] = Value::from(format!("type.googleapis.com/{kind}"));
        config
    };
    let router = any("envoy.extensions.filters.http.router.v3.Router", json!({}));
    let manager = json!({
        "stat_prefix": "routes",
        "route_config": routes,
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": router }],
    });
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({
        "name": format!("of {}", routes["name"]),
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": any(kind, manager) }] }],
    })
}

/// A fault with the name of its cluster or listener in place of its number and position.
fn named(fault: &str, output: &Value) -> String {
    for kind in ["clusters", "listeners"] {
        let Some((_, rest)) = fault.split_once(&format!("static_resources.{kind}[")) else { continue };
        let Some((index, rest)) = rest.split_once(']') else { continue };
        let list = output.get(kind).and_then(Value::as_array);
        let name = index.parse::<usize>().ok().and_then(|index| list?.get(index)?["name"].as_str());
        return format!("{}{rest}", name.unwrap_or(index));
    }
    fault.to_owned()
}
