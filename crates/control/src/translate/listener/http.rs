//! The HTTP connection manager, as each kind of listener has it.

use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use leno_derive::Cx;

use super::filters::{self, FilterScope, Side};
use super::{Frame, network_filter, proxy_config};
use crate::registry::protocol::Protocol;
use crate::translate::proto::{core, listener, route};
use crate::translate::resource::{ads, pack};
use crate::translate::telemetry::access_log;
use crate::translate::telemetry::tracing::TracingOf;

/// Where routes come from.
#[derive(Debug)]
pub(super) enum Routes {
    /// From the stream, by name.
    Named(String),
    /// From the listener.
    Inline(Box<route::RouteConfiguration>),
}

/// The prefix of statistics for a listener's or a chain's name. The semicolon ends the address for
/// the rule that takes it out of the names of statistics.
pub(super) fn stat_prefix(side: Side, name: &str) -> String {
    let side = match side {
        Side::Inbound => "inbound",
        Side::Outbound | Side::Gateway => "outbound",
    };
    format!("{side}_{name};")
}

/// The network filter. `protocol` is what is declared of the port.
pub(super) fn connection_manager(
    cx: &Cx<'_>,
    frame: &Frame,
    scope: &FilterScope,
    stat_prefix: String,
    routes: Routes,
    protocol: Option<Protocol>,
) -> listener::Filter {
    use hcm::http_connection_manager as parts;
    let side = scope.side;
    let accept_http10 = frame.switches.http10 || frame.options.http10;
    let http1 =
        core::Http1ProtocolOptions { accept_http_10: accept_http10, ..core::Http1ProtocolOptions::default() };
    let http2 = side == Side::Inbound && protocol.is_some_and(Protocol::is_http2);
    let idle = frame.options.idle_timeout;
    let traced = cx.get::<TracingOf>(scope);
    let mut message = hcm::HttpConnectionManager {
        stat_prefix,
        route_specifier: Some(match routes {
            Routes::Named(name) => {
                parts::RouteSpecifier::Rds(hcm::Rds { config_source: Some(ads()), route_config_name: name })
            }
            Routes::Inline(configuration) => parts::RouteSpecifier::RouteConfig(*configuration),
        }),
        http_filters: filters::http(cx, &frame.mesh, scope, protocol),
        access_log: access_log::of_requests(cx, scope),
        tracing: traced.tracing.clone(),
        use_remote_address: Some(match side {
            Side::Gateway => true,
            Side::Outbound => frame.switches.sidecar_use_remote_address,
            Side::Inbound => false,
        }),
        // A gateway has its options even where they are Envoy's own.
        http_protocol_options: (side == Side::Gateway || accept_http10).then_some(http1),
        http2_protocol_options: http2.then(core::Http2ProtocolOptions::default),
        common_http_protocol_options: idle.map(|idle| core::HttpProtocolOptions {
            idle_timeout: Some(idle.to_proto()),
            ..core::HttpProtocolOptions::default()
        }),
        upgrade_configs: vec![parts::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..parts::UpgradeConfig::default()
        }],
        stream_idle_timeout: Some(prost_types::Duration::default()),
        proxy_100_continue: true,
        request_id_extension: Some(hcm::RequestIdExtension {
            typed_config: Some(pack(&UuidRequestIdConfig {
                use_request_id_for_trace_sampling: Some(traced.by_request_id),
                ..UuidRequestIdConfig::default()
            })),
        }),
        ..hcm::HttpConnectionManager::default()
    };
    proxy_config::apply(&mut message, &frame.mesh, side);
    network_filter("envoy.filters.network.http_connection_manager", &message)
}
