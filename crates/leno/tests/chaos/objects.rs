//! Objects of the mesh in the test, as JSON.

use serde_json::{Value, json};

/// The definition of a kind of Istio's, without a schema.
pub(crate) fn definition(kind: &str, plural: &str) -> Value {
    let group = "networking.istio.io";
    let schema =
        json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": { "plural": plural, "kind": kind },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": schema }],
        },
    })
}

fn istio(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": "shop" },
        "spec": spec,
    })
}

pub(crate) fn service(name: &str, number: u64, port: u64) -> Value {
    let address = format!("10.0.0.{}", number + 1);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": port, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

pub(crate) fn slice(service: &str, last: u64) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": service, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [format!("10.1.0.{}", last % 250)], "conditions": { "ready": true } }],
    })
}

/// A rule for a service; one whose number is odd cannot be used.
pub(crate) fn rule(name: &str, host: &str, number: u64) -> Value {
    let timeout = if number % 2 == 1 { "soon".to_owned() } else { format!("{}s", number + 1) };
    let route = json!({ "route": [{ "destination": { "host": host } }], "timeout": timeout });
    istio("VirtualService", name, &json!({ "hosts": [host], "http": [route] }))
}

pub(crate) fn gateway(name: &str, port: u16, host: &str) -> Value {
    let server = json!({
        "port": { "number": port, "name": "http", "protocol": "HTTP" },
        "hosts": [host],
    });
    istio("Gateway", name, &json!({ "selector": { "istio": name }, "servers": [server] }))
}

/// What the server stores and nobody can read, or only in part: of the wrong types, with unknown fields,
/// without what there must be.
pub(crate) fn malformed(number: u64) -> Value {
    let name = format!("malformed-{number}");
    let metadata = json!({ "name": name, "namespace": "shop" });
    let of = |kind: &str, spec: Value| istio(kind, &name, &spec);
    match number {
        0 => of("VirtualService", json!("words")),
        1 => of("VirtualService", json!({ "hosts": { "a": 1 }, "http": [{ "route": 7 }], "unheard": true })),
        2 => of("Gateway", json!({ "selector": ["istio"], "servers": { "port": "eighty" } })),
        3 => of(
            "ServiceEntry",
            json!({ "hosts": [7, null], "ports": [{ "number": -1 }], "resolution": "MAYBE" }),
        ),
        4 => of("DestinationRule", json!(null)),
        _ => json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": metadata,
            "spec": { "host": "web.internal", "trafficPolicy": { "loadBalancer": { "simple": "NEVER_HEARD_OF" } } },
        }),
    }
}

/// Two servers on this machine, each a version of one service.
pub(crate) fn web(ports: [u16; 2]) -> Value {
    let [one, two] = ports;
    let endpoint = |port: u16, version| json!({ "address": "127.0.0.1", "ports": { "http": port }, "labels": { "version": version } });
    let spec = json!({
        "hosts": ["web.internal"],
        "resolution": "STATIC",
        "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }],
        "endpoints": [endpoint(one, "one"), endpoint(two, "two")],
    });
    istio("ServiceEntry", "web", &spec)
}

/// Both versions. They stay: who defines what others refer to does so before, and for as long.
pub(crate) fn versions() -> Value {
    let subset = |version| json!({ "name": version, "labels": { "version": version } });
    let spec = json!({ "host": "web.internal", "subsets": [subset("one"), subset("two")] });
    istio("DestinationRule", "web", &spec)
}

/// Sends all to one version.
pub(crate) fn choose(version: &str) -> Value {
    let route = json!({ "destination": { "host": "web.internal", "subset": version } });
    let rule = json!({
        "hosts": ["*"],
        "gateways": ["ours", "envoy"],
        "http": [{ "route": [route] }],
    });
    istio("VirtualService", "web", &rule)
}
