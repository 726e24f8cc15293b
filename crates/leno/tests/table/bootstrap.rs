//! The bootstrap of a proxy, as an agent of Istio's renders it.

use std::net::Ipv4Addr;

use leno_agent::bootstrap::ISTIO_VERSION;
use leno_node::Mode;
use serde_json::{Value, json};

use crate::mesh::{Pod, Role};
use crate::place::{ADMIN, OWNER};

/// Where a proxy gets its configuration and its secrets.
pub(crate) struct Servers {
    pub(crate) address: Ipv4Addr,
    pub(crate) xds: u16,
    pub(crate) secrets: u16,
    pub(crate) delta: bool,
}

/// The bootstrap of a pod's proxy.
pub(crate) fn bootstrap(pod: &Pod, servers: &Servers, mode: Mode) -> Value {
    let source = json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
    let mut bootstrap = json!({
        "node": node(pod),
        "layered_runtime": { "layers": [{
            "name": "global config",
            "static_layer": { "re2.max_program_size.error_level": "32768" },
        }] },
        "admin": { "address": socket(Ipv4Addr::LOCALHOST, ADMIN) },
        "dynamic_resources": {
            "lds_config": source,
            "cds_config": source,
            "ads_config": {
                "api_type": if servers.delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
        },
        "static_resources": { "clusters": [
            cluster("xds-grpc", servers.address, servers.xds),
            cluster("sds-grpc", servers.address, servers.secrets),
        ] },
    });
    if mode == Mode::User {
        bootstrap["cluster_manager"] = json!({ "upstream_bind_config": { "socket_options": [{
            "description": "SO_MARK, by which redirection knows the proxy",
            "level": libc::SOL_SOCKET,
            "name": libc::SO_MARK,
            "int_value": OWNER,
            "state": "STATE_PREBIND",
        }] } });
    }
    bootstrap
}

fn node(pod: &Pod) -> Value {
    let Pod { name, namespace, address, .. } = pod;
    let role = if pod.proxy == Some(Role::Gateway) { "router" } else { "sidecar" };
    let app = pod.labels.get("app").unwrap_or(name);
    json!({
        "id": format!("{role}~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        "cluster": format!("{app}.{namespace}"),
        "metadata": {
            "CLUSTER_ID": "Kubernetes",
            "INSTANCE_IPS": pod.addresses().join(","),
            "INTERCEPTION_MODE": "REDIRECT",
            "ISTIO_VERSION": ISTIO_VERSION,
            "LABELS": pod.labels,
            "MESH_CERTIFICATES": pod.certificates,
            "MESH_ID": "cluster.local",
            "NAME": name,
            "NAMESPACE": namespace,
            "NODE_NAME": pod.node,
            "SERVICE_ACCOUNT": pod.account,
            "WORKLOAD_NAME": app,
        },
    })
}

fn socket(address: Ipv4Addr, port: u16) -> Value {
    json!({ "socket_address": { "address": address.to_string(), "port_value": port } })
}

fn cluster(name: &str, address: Ipv4Addr, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(address, port) } }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
    })
}
