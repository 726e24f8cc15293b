//! The HTTP connection manager, as each kind of listener has it.

use leno_api::proto::envoy::extensions::filters::http as filters;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use prost::{Message, Name};

use super::access_log::access_log;
use super::filter;
use crate::model::mesh::MeshConfig;
use crate::translate::proto::{listener, route};
use crate::translate::resource::{ads, pack};

/// What Istio's proxies call themselves to clients; outbound they go by Envoy's own name.
const SERVER_NAME: &str = "istio-envoy";

/// On which side of the mesh an HTTP connection manager works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Inbound,
    Outbound,
    Gateway,
}

/// Where its routes come from.
#[derive(Debug)]
pub(super) enum Routes {
    /// From the stream, by name.
    Named(String),
    /// From the listener.
    Inline(Box<route::RouteConfiguration>),
}

/// The network filter.
pub(super) fn connection_manager(
    mesh: &MeshConfig,
    side: Side,
    address: &str,
    routes: Routes,
) -> listener::Filter {
    use hcm::http_connection_manager as parts;
    let prefix = match side {
        Side::Inbound => "inbound",
        Side::Outbound | Side::Gateway => "outbound",
    };
    let mut message = hcm::HttpConnectionManager {
        // The semicolon ends the address for the rule that takes it out of the names of statistics.
        stat_prefix: format!("{prefix}_{address};"),
        route_specifier: Some(match routes {
            Routes::Named(name) => {
                parts::RouteSpecifier::Rds(hcm::Rds { config_source: Some(ads()), route_config_name: name })
            }
            Routes::Inline(configuration) => parts::RouteSpecifier::RouteConfig(*configuration),
        }),
        http_filters: http_filters(),
        access_log: access_log(mesh),
        use_remote_address: Some(side == Side::Gateway),
        upgrade_configs: vec![parts::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..parts::UpgradeConfig::default()
        }],
        stream_idle_timeout: Some(prost_types::Duration::default()),
        normalize_path: Some(true),
        path_with_escaped_slashes_action: parts::PathWithEscapedSlashesAction::KeepUnchanged as i32,
        request_id_extension: Some(hcm::RequestIdExtension {
            typed_config: Some(pack(&UuidRequestIdConfig {
                use_request_id_for_trace_sampling: Some(true),
                ..UuidRequestIdConfig::default()
            })),
        }),
        ..hcm::HttpConnectionManager::default()
    };
    if side != Side::Outbound {
        SERVER_NAME.clone_into(&mut message.server_name);
        message.forward_client_cert_details = match side {
            Side::Gateway => parts::ForwardClientCertDetails::SanitizeSet,
            Side::Inbound | Side::Outbound => parts::ForwardClientCertDetails::AppendForward,
        } as i32;
        message.set_current_client_cert_details = Some(parts::SetCurrentClientCertDetails {
            subject: Some(true),
            cert: side == Side::Gateway,
            dns: true,
            uri: true,
            ..parts::SetCurrentClientCertDetails::default()
        });
    }
    filter("envoy.filters.network.http_connection_manager", &message)
}

/// The HTTP filters, in Istio's order.
///
/// Deviation: `istio.metadata_exchange`, `istio.alpn` and `istio.stats` are left out, as an Envoy
/// that was not built by Istio refuses them.
fn http_filters() -> Vec<hcm::HttpFilter> {
    let stats = filters::grpc_stats::v3::FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(
            filters::grpc_stats::v3::filter_config::PerMethodStatSpecifier::StatsForAllMethods(false),
        ),
        ..filters::grpc_stats::v3::FilterConfig::default()
    };
    vec![
        http_filter("envoy.filters.http.grpc_stats", &stats),
        http_filter("envoy.filters.http.fault", &filters::fault::v3::HttpFault::default()),
        http_filter("envoy.filters.http.cors", &filters::cors::v3::Cors::default()),
        http_filter("envoy.filters.http.router", &filters::router::v3::Router::default()),
    ]
}

fn http_filter<T: Message + Name>(name: &str, config: &T) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(config))),
        ..hcm::HttpFilter::default()
    }
}
