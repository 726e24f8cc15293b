//! The bootstrap of a proxy under a control plane of the tests, over one aggregated stream.

use std::net::SocketAddr;

use leno_xds::Mode;

/// What it takes from the control plane as a whole: `cds`, `lds`.
pub(crate) fn bootstrap(mode: Mode, wholes: &[&str], control_plane: SocketAddr, more: &str) -> String {
    let api_type = if mode == Mode::Delta { "DELTA_GRPC" } else { "GRPC" };
    let wholes: String = wholes
        .iter()
        .map(|whole| format!("  {whole}_config: {{ads: {{}}, resource_api_version: V3}}\n"))
        .collect();
    format!(
        r#"
node: {{id: proxy, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  ads_config: {{api_type: {api_type}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}
{wholes}static_resources:
{}{more}"#,
        cluster(control_plane, "")
    )
}

/// `clusters` of static resources: the control plane, with further fields of it in a line.
pub(crate) fn cluster(control_plane: SocketAddr, more: &str) -> String {
    let (ip, port) = (control_plane.ip(), control_plane.port());
    format!(
        r#"  clusters:
  - name: xds
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}
    {more}
"#
    )
}
