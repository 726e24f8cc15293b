//! What this proxy tells control planes of itself: its extensions (`Node.extensions`), by which
//! they know what they may configure, and its version.
//!
//! What has a registry is listed by it; the rest is here by name.

use leno_api::proto::envoy::config::core::v3::{BuildVersion, Extension, Node, node::UserAgentVersionType};
use leno_api::proto::envoy::r#type::v3::SemanticVersion;

use crate::http::filters;
use crate::listener::network;

/// Extensions without a registry: category, name, full name of the configuration message below
/// `envoy.extensions.`.
const FIXED: &[(&str, &str, &str)] = &[
    ("envoy.access_loggers", "envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog"),
    (
        "envoy.access_loggers",
        "envoy.access_loggers.http_grpc",
        "access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    ),
    (
        "envoy.access_loggers",
        "envoy.access_loggers.open_telemetry",
        "access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
    ),
    (
        "envoy.access_loggers",
        "envoy.access_loggers.tcp_grpc",
        "access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
    ),
    (
        "envoy.access_loggers.extension_filters",
        "envoy.access_loggers.extension_filters.cel",
        "access_loggers.filters.cel.v3.ExpressionFilter",
    ),
    ("envoy.access_loggers", "envoy.access_loggers.stderr", "access_loggers.stream.v3.StderrAccessLog"),
    ("envoy.access_loggers", "envoy.access_loggers.stdout", "access_loggers.stream.v3.StdoutAccessLog"),
    (
        "envoy.bootstrap",
        "envoy.bootstrap.internal_listener",
        "bootstrap.internal_listener.v3.InternalListener",
    ),
    ("envoy.clusters", "envoy.clusters.aggregate", "clusters.aggregate.v3.ClusterConfig"),
    ("envoy.clusters", "envoy.cluster.dns", "clusters.dns.v3.DnsCluster"),
    (
        "envoy.clusters",
        "envoy.clusters.dynamic_forward_proxy",
        "clusters.dynamic_forward_proxy.v3.ClusterConfig",
    ),
    (
        "envoy.compression.compressor",
        "envoy.compression.brotli.compressor",
        "compression.brotli.compressor.v3.Brotli",
    ),
    (
        "envoy.compression.compressor",
        "envoy.compression.gzip.compressor",
        "compression.gzip.compressor.v3.Gzip",
    ),
    (
        "envoy.compression.compressor",
        "envoy.compression.zstd.compressor",
        "compression.zstd.compressor.v3.Zstd",
    ),
    ("envoy.filters.http", "envoy.filters.http.router", "filters.http.router.v3.Router"),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.http_inspector",
        "filters.listener.http_inspector.v3.HttpInspector",
    ),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.local_ratelimit",
        "filters.listener.local_ratelimit.v3.LocalRateLimit",
    ),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.original_dst",
        "filters.listener.original_dst.v3.OriginalDst",
    ),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.original_src",
        "filters.listener.original_src.v3.OriginalSrc",
    ),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.proxy_protocol",
        "filters.listener.proxy_protocol.v3.ProxyProtocol",
    ),
    (
        "envoy.filters.listener",
        "envoy.filters.listener.tls_inspector",
        "filters.listener.tls_inspector.v3.TlsInspector",
    ),
    (
        "envoy.filters.network",
        "envoy.filters.network.direct_response",
        "filters.network.direct_response.v3.Config",
    ),
    ("envoy.filters.network", "envoy.filters.network.echo", "filters.network.echo.v3.Echo"),
    (
        "envoy.filters.network",
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    ("envoy.filters.network", "envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy"),
    ("envoy.formatter", "envoy.formatter.cel", "formatter.cel.v3.Cel"),
    ("envoy.formatter", "envoy.formatter.metadata", "formatter.metadata.v3.Metadata"),
    (
        "envoy.formatter",
        "envoy.formatter.req_without_query",
        "formatter.req_without_query.v3.ReqWithoutQuery",
    ),
    (
        "envoy.http.stateful_session",
        "envoy.http.stateful_session.cookie",
        "http.stateful_session.cookie.v3.CookieBasedSessionState",
    ),
    (
        "envoy.http.stateful_session",
        "envoy.http.stateful_session.header",
        "http.stateful_session.header.v3.HeaderBasedSessionState",
    ),
    (
        "envoy.transport_sockets.downstream",
        "envoy.transport_sockets.raw_buffer",
        "transport_sockets.raw_buffer.v3.RawBuffer",
    ),
    (
        "envoy.transport_sockets.downstream",
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
    ),
    (
        "envoy.transport_sockets.upstream",
        "envoy.transport_sockets.internal_upstream",
        "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
    ),
    (
        "envoy.transport_sockets.upstream",
        "envoy.transport_sockets.raw_buffer",
        "transport_sockets.raw_buffer.v3.RawBuffer",
    ),
    (
        "envoy.transport_sockets.upstream",
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
    ),
    (
        "envoy.transport_sockets.upstream",
        "envoy.transport_sockets.upstream_proxy_protocol",
        "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
    ),
    (
        "envoy.upstream_options",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "upstreams.http.v3.HttpProtocolOptions",
    ),
];

/// A node that says what this proxy is and can do, where its configuration does not.
pub(crate) fn announce(mut node: Node) -> Node {
    if node.user_agent_name.is_empty() {
        node.user_agent_name = "leno".to_owned();
    }
    if node.user_agent_version_type.is_none() {
        let number = |text: &str| text.parse().unwrap_or_default();
        let version = SemanticVersion {
            major_number: number(env!("CARGO_PKG_VERSION_MAJOR")),
            minor_number: number(env!("CARGO_PKG_VERSION_MINOR")),
            patch: number(env!("CARGO_PKG_VERSION_PATCH")),
        };
        let build = BuildVersion { version: Some(version), metadata: None };
        node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(build));
    }
    if node.extensions.is_empty() {
        node.extensions = extensions();
    }
    node
}

/// All extensions, by category and name.
fn extensions() -> Vec<Extension> {
    let extension = |category: &str, name: &str, types: Vec<&str>| Extension {
        name: name.to_owned(),
        category: category.to_owned(),
        type_urls: types.into_iter().map(str::to_owned).collect(),
        ..Extension::default()
    };
    let fixed = FIXED.iter().map(|(category, name, kind)| Extension {
        type_urls: vec![format!("envoy.extensions.{kind}")],
        ..extension(category, name, vec![])
    });
    let http = filters::REGISTRY.iter().map(|filter| {
        let mut types = vec![filter.config_type];
        types.extend(filter.route_type.filter(|route| *route != filter.config_type));
        extension("envoy.filters.http", filter.name, types)
    });
    let network =
        network::registered().map(|(name, kind)| extension("envoy.filters.network", name, vec![kind]));
    let exchange = network::registered().filter(|(name, _)| name.ends_with(".metadata_exchange"));
    let upstream = exchange.map(|(_, kind)| {
        let name = "envoy.filters.network.upstream.metadata_exchange";
        extension("envoy.filters.upstream_network", name, vec![kind])
    });
    let mut all: Vec<Extension> = fixed.chain(http).chain(network).chain(upstream).collect();
    all.sort_by(|a, b| (&a.category, &a.name).cmp(&(&b.category, &b.name)));
    all
}

#[cfg(test)]
mod tests {
    use leno_api::proto::envoy::config::core::v3::Node;

    use super::announce;

    #[test]
    fn a_node_lists_what_there_is() {
        let node = announce(Node::default());
        let find = |category: &str, name: &str| {
            let all = node.extensions.iter();
            let mut found = all.filter(|one| one.category == category && one.name == name);
            found.next().map(|one| one.type_urls.join(" ")).unwrap_or_default()
        };
        assert_eq!(find("envoy.filters.http", "envoy.filters.http.istio_stats"), "stats.PluginConfig");
        assert_eq!(
            find("envoy.filters.http", "envoy.filters.http.cors"),
            "envoy.extensions.filters.http.cors.v3.Cors envoy.extensions.filters.http.cors.v3.CorsPolicy"
        );
        assert_eq!(
            find("envoy.filters.upstream_network", "envoy.filters.network.upstream.metadata_exchange"),
            "envoy.tcp.metadataexchange.config.MetadataExchange"
        );
        // Each type is one that the codec knows.
        let known = |kind: &&String| leno_api::schema::Message::find(kind).is_none();
        let unknown: Vec<_> = node.extensions.iter().flat_map(|one| &one.type_urls).filter(known).collect();
        assert_eq!(unknown, Vec::<&String>::new());
        // What the configuration says is not replaced.
        let told = Node { user_agent_name: "x".into(), ..Node::default() };
        assert_eq!(announce(told).user_agent_name, "x");
    }
}
