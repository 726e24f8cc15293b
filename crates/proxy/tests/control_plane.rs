//! What the control plane emits must be what the proxy can do: the clusters and endpoints of its
//! goldens, all in one bootstrap.
//!
//! The goldens are read as files: neither crate knows the other.

use std::fs;
use std::path::Path;

use expect_test::expect;
use leno_api::yaml::{self, Dialect};
use leno_proxy::{Options, validate};
use serde_json::{Map, Value, json};

/// Clusters of the goldens that the proxy cannot carry yet, with the reason: to be deleted here by
/// whoever changes that.
#[test]
fn clusters_of_the_goldens_are_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control/tests/golden");
    let mut clusters = Vec::new();
    let mut names = Vec::new();
    let mut cases: Vec<_> =
        fs::read_dir(&folder).expect("the goldens").map(|entry| entry.expect("an entry").path()).collect();
    cases.sort();
    for case in cases {
        let case_name = case.file_name().expect("a name").to_string_lossy().into_owned();
        let mut files: Vec<_> =
            fs::read_dir(&case).expect("a case").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        for file in files {
            let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_output = file.extension().is_some_and(|extension| extension == "yaml");
            if !is_output || stem == "input" || stem == "proxies" {
                continue;
            }
            let text = fs::read_to_string(&file).expect("readable");
            let documents = yaml::parse(&text, Dialect::Kubernetes).expect("YAML");
            let (output, _) = yaml::from_node::<Value>(&documents[0]).expect("JSON");
            let list = |field: &str| output.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
            let assignments = list("endpoints");
            for cluster in list("clusters") {
                let Value::Object(mut cluster) = cluster else { panic!("{case_name}/{stem}: no object") };
                let name = cluster["name"].as_str().expect("a name").to_owned();
                fix_endpoints(&mut cluster, &assignments);
                // All cases are in one configuration, where names are unique.
                let unique = format!("{case_name}/{stem}/{name}");
                if let Some(cache) = cluster
                    .get_mut("cluster_type")
                    .and_then(|kind| kind.pointer_mut("/typed_config/dns_cache_config/name"))
                {
                    *cache = Value::from(format!("{case_name}/{stem}"));
                }
                cluster.insert("name".to_owned(), Value::from(unique.clone()));
                names.push(unique);
                clusters.push(Value::Object(cluster));
            }
        }
    }
    assert!(clusters.len() > 300, "only {} clusters", clusters.len());
    let http2 = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    // Where secrets come from.
    for name in ["sds-grpc", "xds-grpc"] {
        names.push(name.to_owned());
        clusters.push(json!({ "name": name, "type": "STATIC", "typed_extension_protocol_options": http2 }));
    }
    let bootstrap = json!({
        "node": { "id": "golden", "cluster": "golden" },
        "dynamic_resources": { "ads_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
        }},
        "static_resources": { "clusters": clusters },
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bootstrap.json");
    fs::write(&path, bootstrap.to_string()).expect("writable");
    let faults =
        validate(&Options { config_path: Some(path), ..Options::default() }).err().unwrap_or_default();
    let mut refused: Vec<String> = faults.iter().map(|fault| named(fault, &names)).collect();
    refused.sort();
    refused.dedup();
    expect![[r#"
        dr-proxy-protocol/mutual/outbound|80|one|a.default.svc.cluster.local.transport_socket_matches[0].transport_socket.typed_config: extension 'envoy.transport_sockets.upstream_proxy_protocol' (type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport) is not supported yet
        dr-proxy-protocol/mutual/outbound|80|one|a.default.svc.cluster.local.transport_socket_matches[1].transport_socket.typed_config: extension 'envoy.transport_sockets.upstream_proxy_protocol' (type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport) is not supported yet
        dr-proxy-protocol/mutual/outbound|80||a.default.svc.cluster.local.transport_socket_matches[0].transport_socket.typed_config: extension 'envoy.transport_sockets.upstream_proxy_protocol' (type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport) is not supported yet
        dr-proxy-protocol/mutual/outbound|80||a.default.svc.cluster.local.transport_socket_matches[1].transport_socket.typed_config: extension 'envoy.transport_sockets.upstream_proxy_protocol' (type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport) is not supported yet
        dr-retry-budget/client/outbound|80||a.default.svc.cluster.local.circuit_breakers.thresholds[0].retry_budget.budget_interval: not supported yet
        dr-tls-simple/client/outbound|443||b.example.com.transport_socket.typed_config.common_tls_context.combined_validation_context.default_validation_context.crl.filename: cannot read '/etc/certs/crl.pem': No such file or directory (os error 2)"#]].assert_eq(&refused.join("\n"));
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

/// A fault with the name of its cluster in place of its number and position.
fn named(fault: &str, names: &[String]) -> String {
    let Some((_, rest)) = fault.split_once("static_resources.clusters[") else { return fault.to_owned() };
    let Some((index, rest)) = rest.split_once(']') else { return fault.to_owned() };
    let name = index.parse::<usize>().ok().and_then(|index| names.get(index));
    format!("{}{rest}", name.map_or(index, String::as_str))
}
