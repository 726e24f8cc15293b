//! The bootstrap of a proxy, as Istio's pilot-agent renders it, so that Envoy takes it too. Pure.

use std::net::SocketAddr;

use leno_agent::bootstrap::{ISTIO_VERSION, STATS_TAGS};
use serde_json::{Value, json};

use super::layout::{ADMIN_PORT, HTTP_PROXY_PORT, Layout, METRICS_PORT, PROXY_ID, STATUS_PORT};
use super::plan::{PodPlan, ProxyRole};
use super::state::NODE_NAME;

/// The bootstrap of a pod's proxy.
pub(crate) fn bootstrap(pod: &PodPlan, layout: &Layout, mesh: &str) -> Value {
    let admin = layout.admin(pod);
    let [xds, ..] = layout.control_plane();
    let source = json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
    let mut bootstrap = json!({
        "node": node(pod, layout, mesh),
        "layered_runtime": { "layers": [{
            "name": "global config",
            "static_layer": {
                "re2.max_program_size.error_level": "32768",
            },
        }] },
        "stats_config": {
            "use_all_default_tags": false,
            "stats_tags": STATS_TAGS.map(|(name, regex)| json!({ "tag_name": name, "regex": regex })),
        },
        "admin": {
            "profile_path": "/dev/null",
            "address": socket_address(admin),
        },
        "dynamic_resources": {
            "lds_config": source,
            "cds_config": source,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
        },
        "static_resources": {
            "clusters": [
                static_cluster("prometheus_stats", admin),
                static_cluster("agent", admin),
                xds_cluster(xds),
            ],
            "listeners": [
                listener(pod, layout, METRICS_PORT, "stats", "/stats/prometheus", None, "prometheus_stats"),
                listener(pod, layout, STATUS_PORT, "agent", "/healthz/ready", Some("/ready"), "agent"),
            ],
        },
    });
    if layout.marks() {
        bootstrap["cluster_manager"] = json!({
            "upstream_bind_config": { "socket_options": [mark()] },
        });
    }
    bootstrap
}

/// `SO_MARK` on connections, by which redirection knows the proxy.
fn mark() -> Value {
    json!({
        "description": "SO_MARK, by which redirection knows the proxy",
        "level": libc::SOL_SOCKET,
        "name": libc::SO_MARK,
        "int_value": PROXY_ID,
        "state": "STATE_PREBIND",
    })
}

fn node(pod: &PodPlan, layout: &Layout, mesh: &str) -> Value {
    let (kind, name) = &pod.owner;
    let namespace = &pod.key.namespace;
    let app = pod.labels.get("app").unwrap_or(name);
    let role = if pod.proxy == ProxyRole::Gateway { "router" } else { "sidecar" };
    let version = kind.api_version();
    let plural = format!("{}s", kind.to_string().to_ascii_lowercase());
    let ports = pod.containers.iter().flat_map(|container| container.container.ports.iter().flatten());
    let ports: Vec<Value> = ports
        .map(|port| {
            let mut value = json!({ "containerPort": port.container_port });
            if let Some(name) = &port.name {
                value["name"] = json!(name);
            }
            value["protocol"] = json!(port.protocol.as_deref().unwrap_or("TCP"));
            value
        })
        .collect();
    let containers: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
    let mut metadata = json!({
        "ANNOTATIONS": pod.annotations,
        "APP_CONTAINERS": containers.join(","),
        "CLUSTER_ID": "Kubernetes",
        // Pods look up names in a file of ours, which has the addresses that names are given.
        "DNS_CAPTURE": "true",
        "ENVOY_PROMETHEUS_PORT": METRICS_PORT,
        "ENVOY_STATUS_PORT": STATUS_PORT,
        "INSTANCE_IPS": pod.address.to_string(),
        "INTERCEPTION_MODE": if layout.is_loopback() { "NONE" } else { "REDIRECT" },
        "ISTIO_VERSION": ISTIO_VERSION,
        "LABELS": pod.labels,
        // There is no agent that could give any.
        "MESH_CERTIFICATES": false,
        "MESH_ID": mesh,
        "NAME": pod.key.name,
        "NAMESPACE": namespace,
        "NODE_NAME": NODE_NAME,
        "OWNER": format!("kubernetes://apis/{version}/namespaces/{namespace}/{plural}/{name}"),
        "PILOT_SAN": ["istiod.istio-system.svc"],
        "POD_PORTS": Value::Array(ports).to_string(),
        "PROXY_CONFIG": {
            "concurrency": 1,
            "discoveryAddress": layout.control_plane()[0].to_string(),
            "proxyAdminPort": ADMIN_PORT,
            "serviceCluster": "istio-proxy",
            "statNameLength": 189,
        },
        "SERVICE_ACCOUNT": pod.service_account(),
        "WORKLOAD_NAME": name,
    });
    if layout.is_loopback() {
        metadata["HTTP_PROXY_PORT"] = json!(HTTP_PROXY_PORT.to_string());
    }
    json!({
        "id": format!("{role}~{}~{}.{namespace}~{namespace}.svc.cluster.local", pod.address, pod.key.name),
        "cluster": format!("{app}.{namespace}"),
        "locality": {},
        "metadata": metadata,
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn static_cluster(name: &str, address: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.250s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket_address(address) } }] }],
        },
    })
}

fn xds_cluster(address: SocketAddr) -> Value {
    let mut cluster = static_cluster("xds-grpc", address);
    cluster["connect_timeout"] = json!("1s");
    cluster["circuit_breakers"] = json!({ "thresholds": [
        { "priority": "DEFAULT", "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 },
        { "priority": "HIGH", "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 },
    ] });
    cluster["upstream_connection_options"] = json!({ "tcp_keepalive": { "keepalive_time": 300 } });
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    cluster
}

/// A listener that leads one path to the admin interface.
fn listener(
    pod: &PodPlan,
    layout: &Layout,
    port: u16,
    stat_prefix: &str,
    path: &str,
    rewritten: Option<&str>,
    cluster: &str,
) -> Value {
    let mut action = json!({ "cluster": cluster });
    if let Some(rewritten) = rewritten {
        action["prefix_rewrite"] = json!(rewritten);
    }
    json!({
        "address": socket_address(SocketAddr::new(layout.own_address(pod).into(), port)),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "codec_type": "AUTO",
                "stat_prefix": stat_prefix,
                "route_config": { "virtual_hosts": [{
                    "name": "backend",
                    "domains": ["*"],
                    "routes": [{ "match": { "prefix": path }, "route": action }],
                }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    },
                }],
            },
        }] }],
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;
    use leno_node::Mode;

    use super::bootstrap;
    use crate::up::image::Images;
    use crate::up::layout::{Layout, Owner};
    use crate::up::objects::read_text;
    use crate::up::plan::{ProxyRole, Settings, plan};

    const MESH: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web, sidecar.istio.io/inject: 'true'}}
spec:
  serviceAccountName: shop
  containers:
  - {name: web, image: lenomesh/samples, ports: [{name: http, containerPort: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: way}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80}}]}
";

    fn check(layout: &Layout, role: ProxyRole, expected: &expect_test::ExpectFile) {
        let objects = read_text(MESH);
        let plan =
            plan(&objects, &Settings { images: Images::default(), mounts: true }, &mut layout.ranges());
        let pod = plan.pods.values().find(|pod| pod.proxy == role).unwrap();
        let text = serde_json::to_string_pretty(&bootstrap(pod, layout, "mesh")).unwrap();
        expected.assert_eq(&(text + "\n"));
    }

    #[test]
    fn goldens() {
        let by_user = Layout::Namespaces { mode: Mode::Root, owner: Owner::User };
        let by_mark = Layout::Namespaces { mode: Mode::User, owner: Owner::Mark };
        let loopback = Layout::Loopback { ports: [15010, 15014] };
        check(&by_user, ProxyRole::Sidecar, &expect_file!["goldens/sidecar.json"]);
        check(&by_mark, ProxyRole::Gateway, &expect_file!["goldens/gateway-marked.json"]);
        check(&loopback, ProxyRole::Sidecar, &expect_file!["goldens/sidecar-loopback.json"]);
    }
}
