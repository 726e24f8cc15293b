//! The configuration that all proxies get: an Envoy v3 bootstrap in YAML. Only the ports differ.

use std::fmt::Write as _;
use std::path::Path;

use crate::backend::Backend;
use crate::cases::{Case, Kind, Mesh, Size, Traffic};

/// Virtual hosts of ordinary cases, beside the one for every other host.
const HOSTS: usize = 50;

/// Endpoints of clusters that are balanced by hash.
pub(crate) const ENDPOINTS: usize = 16;

/// What one proxy is given.
pub(crate) struct Site<'a> {
    pub(crate) port: u16,
    pub(crate) admin: u16,
    pub(crate) backend: &'a Backend,
    /// With certificates; the proxy may write here.
    pub(crate) folder: &'a Path,
    /// The case's size.
    pub(crate) size: usize,
}

const HTTP2_OPTIONS: &str = "{max_concurrent_streams: 1000, initial_stream_window_size: 1048576, \
                             initial_connection_window_size: 16777216}";

const ISTIO_FILTERS: &str = r#"          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules: {action: ALLOW, policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}
          - name: envoy.filters.http.fault
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
          - name: envoy.filters.http.cors
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
"#;

const PEERS: &str = r#"          - name: istio.metadata_exchange
            typed_config:
              "@type": type.googleapis.com/io.istio.http.peer_metadata.Config
              downstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}]
              downstream_propagation: [{istio_headers: {}}]
"#;

const STATS: &str = r#"          - name: istio.stats
            typed_config: {"@type": type.googleapis.com/stats.PluginConfig, disable_host_header_fallback: true}
"#;

/// The bootstrap of a case.
pub(crate) fn bootstrap(case: &Case, site: &Site<'_>) -> String {
    let mut text = format!(
        "admin: {{address: {}}}\nstatic_resources:\n  listeners:\n  - name: l0\n    address: {}\n{}    filter_chains:\n    - filters:\n",
        address(site.admin),
        address(site.port),
        if case.config.mesh == Mesh::None { "" } else { "    traffic_direction: INBOUND\n" },
    );
    if case.traffic == Traffic::Tcp {
        text += r#"      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: backend}
"#;
    } else {
        manager(&mut text, case, site);
    }
    if case.config.mtls {
        let folder = site.folder.display();
        let alpn = if case.traffic == Traffic::Http1 { "http/1.1" } else { "h2" };
        let _ = write!(
            text,
            r#"      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [{alpn}]
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
            tls_certificates: [{{certificate_chain: {{filename: "{folder}/server.pem"}}, private_key: {{filename: "{folder}/server.key"}}}}]
            validation_context: {{trusted_ca: {{filename: "{folder}/ca.pem"}}}}
"#
        );
    }
    text += "  clusters:\n";
    clusters(&mut text, case, site);
    text
}

fn address(port: u16) -> String {
    format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

fn manager(text: &mut String, case: &Case, site: &Site<'_>) {
    let _ = write!(
        text,
        r#"      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          codec_type: AUTO
          use_remote_address: true
          http2_protocol_options: {HTTP2_OPTIONS}
"#
    );
    if case.config.access_log {
        let _ = write!(
            text,
            r#"          access_log:
          - name: envoy.access_loggers.file
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}/access-{}.log"}}
"#,
            site.folder.display(),
            site.port
        );
    }
    text.push_str("          http_filters:\n");
    if case.config.mesh == Mesh::Peers {
        text.push_str(PEERS);
    }
    if case.config.istio_filters {
        text.push_str(ISTIO_FILTERS);
    }
    if case.config.mesh != Mesh::None {
        text.push_str(STATS);
    }
    text.push_str(
        r#"          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            name: local
            virtual_hosts:
"#,
    );
    let route = match (case.traffic, case.config.policy) {
        (Traffic::Grpc, _) => "route: {cluster: backend, timeout: 0s}",
        (_, Some(_)) => "route: {cluster: backend, hash_policy: [{header: {header_name: x-user}}]}",
        _ => "route: {cluster: backend}",
    };
    if case.size == Size::Clusters {
        for index in 0..site.size {
            let domains: Vec<String> = domains(index).iter().map(|domain| format!("\"{domain}\"")).collect();
            let _ = write!(
                text,
                r#"            - name: vh-{index}
              domains: [{}]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: "{}", timeout: 15s, retry_policy: {{retry_on: "connect-failure,refused-stream,unavailable", num_retries: 2}}}}}}]
"#,
                domains.join(", "),
                cluster_name(index)
            );
        }
        return;
    }
    for (index, host) in hosts(case, site.size).iter().enumerate() {
        let _ = write!(
            text,
            "            - name: vh-{index}\n              domains: [\"{host}\"]\n              routes: [{{match: {{prefix: \"/\"}}, {route}}}]\n"
        );
    }
    let _ = write!(
        text,
        "            - name: default\n              domains: [\"*\"]\n              routes: [{{match: {{prefix: \"/nope/\"}}, {route}}}, {{match: {{prefix: \"/\"}}, {route}}}]\n"
    );
}

/// Hosts with a virtual host of their own; all are asked for.
pub(crate) fn hosts(case: &Case, size: usize) -> Vec<String> {
    match case.size {
        Size::Clusters => (0..size).map(|index| domains(index)[2].clone()).collect(),
        Size::Hosts => (0..size).map(host).collect(),
        _ => (0..HOSTS).map(host).collect(),
    }
}

fn host(index: usize) -> String {
    format!("svc-{index}.default.svc.cluster.local")
}

/// The domains of a virtual host with a cluster of its own, named as Istio names them.
pub(crate) fn domains(index: usize) -> [String; 4] {
    let service = format!("svc-{index}.ns-{}", index % 100);
    let long = format!("{service}.svc.cluster.local");
    let with_port = format!("{long}:8080");
    [service.clone(), format!("{service}.svc"), long, with_port]
}

fn cluster_name(index: usize) -> String {
    format!("outbound|8080||{}", domains(index)[2])
}

fn clusters(text: &mut String, case: &Case, site: &Site<'_>) {
    let ports = match (case.traffic, case.config.policy) {
        (Traffic::Tcp, _) => vec![site.backend.echo],
        (Traffic::Http2 | Traffic::Grpc, _) => vec![site.backend.http2],
        (Traffic::Http1, Some(_)) => site.backend.http1.iter().copied().take(ENDPOINTS).collect(),
        (Traffic::Http1, None) => site.backend.http1.iter().copied().take(1).collect(),
    };
    let count = if case.size == Size::Clusters { site.size } else { 1 };
    for index in 0..count {
        let name = if case.size == Size::Clusters { cluster_name(index) } else { "backend".to_owned() };
        let endpoints: Vec<String> =
            ports.iter().map(|port| format!("{{endpoint: {{address: {}}}}}", address(*port))).collect();
        let _ = write!(
            text,
            r#"  - name: "{name}"
    connect_timeout: 1s
    type: STATIC
    lb_policy: {}
    load_assignment: {{cluster_name: "{name}", endpoints: [{{lb_endpoints: [{}]}}]}}
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]}}
"#,
            case.config.policy.unwrap_or("ROUND_ROBIN"),
            endpoints.join(", ")
        );
        if case.config.mesh != Mesh::None {
            text.push_str("    metadata: {filter_metadata: {istio: {services: [{host: backend.default.svc.cluster.local, name: backend, namespace: default}]}}}\n");
        }
        if matches!(case.traffic, Traffic::Http2 | Traffic::Grpc) {
            let _ = write!(
                text,
                r#"    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {HTTP2_OPTIONS}}}
"#
            );
        }
    }
}

/// Workers that a proxy gets.
pub(crate) fn workers(case: &Case, size: usize) -> usize {
    if case.size == Size::Cores { size } else { 1 }
}

/// Connections of the load, where the case's size does not say.
pub(crate) fn connections(case: &Case, size: usize) -> usize {
    match (case.size, case.kind) {
        (Size::Connections, _) => size,
        (_, Kind::Load { connections, .. }) => connections,
        _ => 1,
    }
}
