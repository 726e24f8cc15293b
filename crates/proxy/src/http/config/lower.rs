//! Lowering of HttpConnectionManager.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::accesslog::v3 as accesslog;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::route::v3::RouteConfiguration;
use leno_api::proto::envoy::extensions::filters::http::router::v3 as router;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyHeaderMutation;
use leno_api::proto::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use leno_api::proto::envoy::extensions::http::header_formatters::preserve_case::v3::preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders;
use prost::Name as _;
use prost_types::Any;

use super::discovered::DiscoveredFilter;
use super::filters::{self, LoweredChain};
pub(crate) use super::http2::http2_options;
use super::{
    CodecType, EscapedSlashes, ForwardProto, Http1Settings, HttpConnectionManager, ProxyStatus, RouteSource,
    RouterConfig, Scopes, ServerHeader, StripPort, Underscores, UpgradeType, detection, local_reply,
};
use crate::config::address;
use crate::config::lower::Lower;
use crate::config::source::{ResourceKey, config_source};
use crate::config::wire::split;
use crate::http::client_cert::{ClientCertDetails, Forward};
use crate::http::codec::h1::head::KeepCase;
use crate::http::filters::ChainedFilter;
use crate::http::forward::strict;
use crate::http::forward::upstream_log::UpstreamLog;
use crate::http::headers::Known;
use crate::http::route::RouteTable;
use crate::http::route::matcher::string;
use crate::http::route::mutation::{HeaderChange, change};
use crate::http::route::table::pack;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::trace;

const HOUR: Duration = Duration::from_secs(3600);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of the field `route_config`.
const ROUTE_CONFIG: u32 = 4;

impl HttpConnectionManager {
    /// Lowers an HttpConnectionManager from its wire form. A large route table is many times
    /// larger as messages, so it stays in wire form until its virtual hosts are lowered one by one.
    pub(crate) fn lower_wire(mut any: Any, at: &mut Lower) -> Option<Arc<HttpConnectionManager>> {
        let parts = split(&any.value, ROUTE_CONFIG);
        let mut table = None;
        if let Some((values, rest)) = parts
            && let [range] = values.as_slice()
        {
            table = any.value.get(range.clone()).map(<[u8]>::to_vec);
            any.value = rest;
        }
        let proto: hcm::HttpConnectionManager = at.unpack(&any)?;
        if table.is_some() && proto.route_specifier.is_some() {
            // Text cannot say this.
            at.error("only one of route_config, rds and scoped_routes may be set");
        }
        let table = table.map(|value| Any { type_url: RouteConfiguration::type_url(), value });
        Self::lower_with(proto, table, at)
    }

    /// Lowers a decoded HttpConnectionManager.
    #[cfg(test)]
    pub(crate) fn lower(
        proto: &hcm::HttpConnectionManager,
        at: &mut Lower,
    ) -> Option<Arc<HttpConnectionManager>> {
        Self::lower_wire(leno_api::any::pack(proto), at)
    }

    fn lower_with(
        proto: hcm::HttpConnectionManager,
        inline_table: Option<Any>,
        at: &mut Lower,
    ) -> Option<Arc<HttpConnectionManager>> {
        let hcm::HttpConnectionManager {
            codec_type,
            stat_prefix,
            http_filters,
            add_user_agent,
            tracing,
            common_http_protocol_options,
            http1_safe_max_connection_duration,
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            server_name,
            server_header_transformation,
            scheme_header_transformation,
            max_request_headers_kb,
            stream_idle_timeout,
            stream_flush_timeout,
            request_timeout,
            request_headers_timeout,
            drain_timeout,
            drain_timeout_jitter,
            delayed_close_timeout,
            access_log,
            access_log_flush_interval,
            flush_access_log_on_new_request,
            access_log_options,
            use_remote_address,
            xff_num_trusted_hops,
            original_ip_detection_extensions,
            early_header_mutation_extensions,
            internal_address_config,
            skip_xff_append,
            via,
            generate_request_id,
            preserve_external_request_id,
            always_set_request_id_in_response,
            forward_client_cert_details,
            // What it would set comes from a client certificate, and there is no TLS.
            set_current_client_cert_details,
            forward_client_cert_matcher,
            proxy_100_continue,
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            upgrade_configs,
            normalize_path,
            merge_slashes,
            path_with_escaped_slashes_action,
            request_id_extension,
            local_reply_config,
            strip_matching_host_port,
            stream_error_on_invalid_http_message,
            path_normalization_options,
            strip_trailing_host_dot,
            proxy_status_config,
            typed_header_validation_config,
            append_x_forwarded_port,
            append_local_overload,
            add_proxy_protocol_connection_state,
            forward_proto_config,
            route_specifier,
            strip_port_mode,
        } = proto;
        at.unsupported("http3_protocol_options", http3_protocol_options.is_some());
        // Deviation: a draining HTTP/2 connection gets its last GOAWAY after a ping's round trip, when
        // the client has seen the first; after `drain_timeout` at the latest.
        let drain_timeout = at.duration("drain_timeout", drain_timeout).unwrap_or(DRAIN_TIMEOUT);
        let request_ids = trace::config::request_ids(request_id_extension, at);
        at.unsupported("forward_client_cert_matcher", forward_client_cert_matcher.is_some());
        at.unsupported(
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        );
        at.unsupported("path_normalization_options", path_normalization_options.is_some());
        at.unsupported("typed_header_validation_config", typed_header_validation_config.is_some());
        let logging =
            logging(access_log_options, access_log_flush_interval, flush_access_log_on_new_request, at);
        let detections =
            at.each("original_ip_detection_extensions", original_ip_detection_extensions, detection::lower);
        if !detections.is_empty() && use_remote_address == Some(true) {
            at.error("Original IP detection extensions and use_remote_address may not be mixed");
        }
        if !detections.is_empty() && xff_num_trusted_hops > 0 {
            at.error("Original IP detection extensions and xff_num_trusted_hops may not be mixed");
        }
        let early_changes =
            at.each("early_header_mutation_extensions", early_header_mutation_extensions, early_changes);

        let common = common_options(common_http_protocol_options, at);
        let http1 = at.field("http_protocol_options", |at| {
            let options = http_protocol_options.unwrap_or_default();
            let overridden = options.override_stream_error_on_invalid_http_message;
            let mut http1 = http1_options(options, at)?;
            http1.stream_error = overridden.or(stream_error_on_invalid_http_message).unwrap_or(false);
            Some(http1)
        });
        let http2 = at.field("http2_protocol_options", |at| http2_options(http2_protocol_options, at));
        let LoweredChain { filters, router, discovered } = filters::lower("http_filters", http_filters, at);
        let router = router.unwrap_or_default();
        let mut discovered: Vec<_> =
            discovered.into_iter().map(|(place, filter)| filter.placed(None, place)).collect();
        let tracing = at.optional("tracing", tracing, |proto, at| {
            trace::config::lower(proto, request_ids, router.start_child_span, at).map(Arc::from)
        });
        let (upgrades, upgrade_filters) = upgrades(upgrade_configs, &router, &mut discovered, at);
        let routes = route_source(route_specifier, inline_table, at);
        let strip_any = matches!(
            strip_port_mode,
            Some(hcm::http_connection_manager::StripPortMode::StripAnyHostPort(true))
        );
        if strip_any && strip_matching_host_port {
            at.error("only one of strip_matching_host_port and strip_any_host_port can be set");
        }
        let scope = at.scope();
        let (service_node, service_cluster) = (Arc::clone(&scope.node_id), Arc::clone(&scope.node_cluster));
        use hcm::http_connection_manager as enums;
        let codec = match at.value::<enums::CodecType>("codec_type", codec_type)? {
            enums::CodecType::Auto => CodecType::Auto,
            enums::CodecType::Http1 => CodecType::Http1,
            enums::CodecType::Http2 => CodecType::Http2,
            enums::CodecType::Http3 => {
                at.unsupported("codec_type", true);
                return None;
            }
        };
        let transformation = at.value::<enums::ServerHeaderTransformation>(
            "server_header_transformation",
            server_header_transformation,
        );
        let server_header = match transformation? {
            enums::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            enums::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            enums::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        };
        use enums::PathWithEscapedSlashesAction as Slashes;
        let escaped_slashes = match at
            .value::<Slashes>("path_with_escaped_slashes_action", path_with_escaped_slashes_action)?
        {
            Slashes::ImplementationSpecificDefault | Slashes::KeepUnchanged => EscapedSlashes::Keep,
            Slashes::RejectRequest => EscapedSlashes::Reject,
            Slashes::UnescapeAndRedirect => EscapedSlashes::UnescapeRedirect,
            Slashes::UnescapeAndForward => EscapedSlashes::UnescapeForward,
        };
        use enums::ForwardClientCertDetails as Xfcc;
        let forward = match at.value::<Xfcc>("forward_client_cert_details", forward_client_cert_details)? {
            Xfcc::Sanitize => Forward::Sanitize,
            Xfcc::ForwardOnly => Forward::Keep,
            Xfcc::AppendForward => Forward::Append,
            Xfcc::SanitizeSet => Forward::Set,
            Xfcc::AlwaysForwardOnly => Forward::Always,
        };
        let enums::SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format } =
            set_current_client_cert_details.unwrap_or_default();
        at.unsupported("set_current_client_cert_details.format", format != 0);
        let subject = subject.unwrap_or(false);
        let client_cert = ClientCertDetails { forward, cert, chain, subject, uri, dns, issuer };
        let internal_addresses = internal_address_config.map(|config| {
            at.field("internal_address_config", |at| {
                let enums::InternalAddressConfig { unix_sockets, cidr_ranges } = config;
                at.unsupported("unix_sockets", unix_sockets);
                address::cidrs("cidr_ranges", cidr_ranges, at)
            })
        });
        let core::SchemeHeaderTransformation { match_upstream, transformation } =
            scheme_header_transformation.unwrap_or_default();
        let scheme_overwrite = transformation.map(
            |core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme)| scheme.into(),
        );
        let server_name: Arc<str> = if server_name.is_empty() { "envoy".into() } else { server_name.into() };
        Some(Arc::new(HttpConnectionManager {
            stat_prefix: stat_prefix.into(),
            codec,
            observers: filters::observers(&filters),
            alpn: filters::alpn(&filters),
            filters,
            discovered,
            router,
            access_logs: at.each("access_log", access_log, AccessLog::lower),
            tracing,
            local_replies: at.optional("local_reply_config", local_reply_config, local_reply::lower),
            proxy_status: proxy_status_config
                .map(|proto| ProxyStatus::lower(proto, &service_node, &server_name)),
            server_name,
            server_header,
            idle_timeout: common.idle_timeout,
            max_connection_duration: common.max_connection_duration,
            duration_jitter: common.duration_jitter,
            safe_max_duration: http1_safe_max_connection_duration,
            max_stream_duration: common.max_stream_duration,
            max_requests_per_connection: common.max_requests_per_connection,
            stream_idle_timeout: at.timeout(
                "stream_idle_timeout",
                stream_idle_timeout,
                Some(Duration::from_secs(300)),
            ),
            stream_flush_timeout: stream_flush_timeout
                .map(|limit| at.timeout("stream_flush_timeout", Some(limit), None)),
            request_timeout: at.timeout("request_timeout", request_timeout, None),
            request_headers_timeout: at.timeout("request_headers_timeout", request_headers_timeout, None),
            delayed_close_timeout: at
                .duration("delayed_close_timeout", delayed_close_timeout)
                .unwrap_or(Duration::from_secs(1)),
            max_request_head_bytes: max_request_headers_kb.unwrap_or(60) as usize * 1024,
            max_headers: common.max_headers,
            underscores: common.underscores,
            http1: http1?,
            http2: http2?,
            stream_errors: stream_error_on_invalid_http_message.unwrap_or(false),
            drain_timeout,
            drain_jitter: drain_timeout_jitter.map_or(0.0, |percent| percent.value),
            use_remote_address: use_remote_address.unwrap_or(false),
            xff_trusted_hops: xff_num_trusted_hops,
            detections,
            early_changes: early_changes.into_iter().flatten().collect(),
            log_new_requests: logging.new_requests,
            log_interval: logging.interval,
            log_tunnels: logging.tunnels,
            skip_xff_append,
            internal_addresses,
            via: via.into(),
            generate_request_id: generate_request_id.unwrap_or(true),
            preserve_external_request_id,
            request_id_in_response: always_set_request_id_in_response,
            normalize_path: normalize_path.unwrap_or(false),
            merge_slashes,
            escaped_slashes,
            strip_port: match (strip_any, strip_matching_host_port) {
                (true, _) => StripPort::Any,
                (false, true) => StripPort::Matching,
                (false, false) => StripPort::No,
            },
            strip_trailing_dot: strip_trailing_host_dot,
            proxy_100_continue,
            append_forwarded_port: append_x_forwarded_port,
            scheme_overwrite,
            upgrades,
            upgrade_filters,
            scheme_of_upstream: match_upstream,
            forward_proto: forward_proto_config.map(ForwardProto::lower),
            append_local_overload,
            announce_client: add_proxy_protocol_connection_state != Some(false),
            add_user_agent: add_user_agent.unwrap_or(false),
            client_cert,
            service_node,
            service_cluster,
            routes: routes?,
        }))
    }
}

/// HcmAccessLogOptions: when logs are written besides at a request's end.
struct Logging {
    new_requests: bool,
    interval: Option<Duration>,
    tunnels: bool,
}

fn logging(
    options: Option<hcm::http_connection_manager::HcmAccessLogOptions>,
    interval: Option<prost_types::Duration>,
    new_requests: bool,
    at: &mut Lower,
) -> Logging {
    let Some(options) = options else {
        let interval = at.duration("access_log_flush_interval", interval);
        return Logging { new_requests, interval, tunnels: false };
    };
    at.field("access_log_options", |at| {
        if interval.is_some() || new_requests {
            at.error("Only one of access_log_options and the fields that it replaces can be specified");
        }
        let hcm::http_connection_manager::HcmAccessLogOptions {
            access_log_flush_interval,
            flush_access_log_on_new_request,
            flush_log_on_tunnel_successfully_established,
        } = options;
        Logging {
            new_requests: flush_access_log_on_new_request,
            interval: at.duration("access_log_flush_interval", access_log_flush_interval),
            tunnels: flush_log_on_tunnel_successfully_established,
        }
    })
}

/// Lowers one of early_header_mutation_extensions.
fn early_changes(extension: core::TypedExtensionConfig, at: &mut Lower) -> Option<Vec<HeaderChange>> {
    let name = extension.name;
    let any = at.required("typed_config", extension.typed_config, |any, at| at.extension(any))?;
    at.field("typed_config", |at| {
        if !leno_api::any::is::<EarlyHeaderMutation>(&any) {
            at.unsupported_extension(&name, &any.type_url);
            return None;
        }
        let EarlyHeaderMutation { mutations } = at.unpack(&any)?;
        Some(at.each("mutations", mutations, change))
    })
}

#[allow(clippy::type_complexity, reason = "as they are in the connection manager")]
fn upgrades(
    protos: Vec<hcm::http_connection_manager::UpgradeConfig>,
    router: &RouterConfig,
    discovered: &mut Vec<DiscoveredFilter>,
    at: &mut Lower,
) -> (Vec<UpgradeType>, Vec<(Box<str>, Vec<ChainedFilter>)>) {
    let mut seen: Vec<Box<str>> = Vec::new();
    let mut own = Vec::new();
    let upgrades = at.each("upgrade_configs", protos, |proto, at| {
        let hcm::http_connection_manager::UpgradeConfig { upgrade_type, filters, enabled } = proto;
        let name: Box<str> = upgrade_type.to_ascii_lowercase().into();
        if seen.contains(&name) {
            at.error(format!("multiple upgrade configs with the same name: '{upgrade_type}'"));
        }
        seen.push(name.clone());
        if !filters.is_empty() {
            let LoweredChain { filters, router: its_router, discovered: its_discovered } =
                filters::lower("filters", filters, at);
            // One router serves all chains of a connection manager.
            let observed = !filters::observers(&filters).is_empty();
            at.unsupported("filters: one that counts requests", observed);
            at.unsupported("filters.router", its_router.is_some_and(|its| !its.is_like(router)));
            let upgrade = Some(own.len());
            let its_discovered = its_discovered.into_iter();
            discovered.extend(its_discovered.map(|(place, filter)| filter.placed(upgrade, place)));
            own.push((name.clone(), filters));
        }
        Some(UpgradeType { name, enabled: enabled.unwrap_or(true), connect: None })
    });
    (upgrades, own)
}

fn route_source(
    proto: Option<hcm::http_connection_manager::RouteSpecifier>,
    inline_table: Option<Any>,
    at: &mut Lower,
) -> Option<RouteSource> {
    use hcm::http_connection_manager::RouteSpecifier;
    if let Some(table) = inline_table {
        let table = at.field("route_config", |at| RouteTable::lower(&table, None, true, at))?;
        return Some(RouteSource::Static(Arc::new(table)));
    }
    match proto {
        Some(RouteSpecifier::RouteConfig(table)) => {
            let table = at.field("route_config", |at| RouteTable::lower(&pack(&table), None, true, at))?;
            Some(RouteSource::Static(Arc::new(table)))
        }
        Some(RouteSpecifier::Rds(hcm::Rds { config_source: source, route_config_name })) => {
            at.field("rds", |at| {
                let source = at.required("config_source", source, config_source)?;
                let initial_fetch_timeout = source.initial_fetch_timeout;
                let table = ResourceKey { name: route_config_name.into(), origin: source.origin };
                Some(RouteSource::Rds { table, initial_fetch_timeout })
            })
        }
        Some(RouteSpecifier::ScopedRoutes(scoped)) => {
            at.field("scoped_routes", |at| Scopes::lower(scoped, at)).map(RouteSource::Scoped)
        }
        None => {
            at.error("one of rds, route_config and scoped_routes is required");
            None
        }
    }
}

pub(super) fn lower_router(any: &Any, at: &mut Lower) -> Option<RouterConfig> {
    let router::Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = at.unpack(any)?;
    let upstream_log = lower_upstream_log(upstream_log, upstream_log_options, at);
    let strict_headers = at.each("strict_check_headers", strict_check_headers, |name, at| {
        let known = Known::find(name.as_bytes()).filter(|known| strict::checks(*known));
        if known.is_none() {
            at.error("value must be one of the headers that can be checked");
        }
        known
    });
    at.unsupported("reject_connect_request_early_data", reject_connect_request_early_data == Some(true));
    upstream_filters("upstream_http_filters", upstream_http_filters, at);
    Some(RouterConfig {
        start_child_span,
        suppress_envoy_headers,
        respect_expected_timeout: respect_expected_rq_timeout,
        dynamic_stats: dynamic_stats != Some(false),
        suppress_grpc_code_stats: suppress_grpc_request_failure_code_stats,
        strict_headers,
        upstream_log,
    })
}

/// Lowers `upstream_log` and `upstream_log_options`; `None`: there is nothing to write to.
fn lower_upstream_log(
    logs: Vec<accesslog::AccessLog>,
    options: Option<router::router::UpstreamAccessLogOptions>,
    at: &mut Lower,
) -> Option<Arc<UpstreamLog>> {
    let logs = at.each("upstream_log", logs, AccessLog::lower);
    let (when_ready, interval) = at.field("upstream_log_options", |at| {
        let router::router::UpstreamAccessLogOptions {
            flush_upstream_log_on_upstream_stream,
            upstream_log_flush_interval,
        } = options.unwrap_or_default();
        let interval = at.duration("upstream_log_flush_interval", upstream_log_flush_interval);
        (flush_upstream_log_on_upstream_stream, interval)
    });
    (!logs.is_empty()).then(|| Arc::new(UpstreamLog { logs, when_ready, interval }))
}

/// Upstream HTTP filters: only the codec, which is what an empty list means too.
pub(crate) fn upstream_filters(field: &str, protos: Vec<hcm::HttpFilter>, at: &mut Lower) {
    const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
    at.each(field, protos, |proto, at| {
        let hcm::HttpFilter { name, is_optional, disabled: _, config_type } = proto;
        match config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(any))
                if leno_api::any::type_name(&any.type_url) == CODEC => {}
            Some(hcm::http_filter::ConfigType::TypedConfig(any)) if !is_optional => {
                at.unsupported_extension(&name, &any.type_url);
            }
            Some(hcm::http_filter::ConfigType::TypedConfig(_)) => {}
            Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) => {
                at.unsupported("config_discovery", true);
            }
            None => at.error_at("typed_config", format!("filter '{name}' must have a typed config")),
        }
        None::<()>
    });
}

/// HttpProtocolOptions of a connection manager.
struct CommonOptions {
    idle_timeout: Option<Duration>,
    max_connection_duration: Option<Duration>,
    /// Percent.
    duration_jitter: f64,
    max_headers: usize,
    max_stream_duration: Option<Duration>,
    underscores: Underscores,
    max_requests_per_connection: u32,
}

fn common_options(proto: Option<core::HttpProtocolOptions>, at: &mut Lower) -> CommonOptions {
    at.field("common_http_protocol_options", |at| {
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter,
            max_headers_count,
            max_response_headers_kb,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection,
        } = proto.unwrap_or_default();
        if max_response_headers_kb.is_some() {
            at.error("Error: max_response_headers_kb cannot be set on http_connection_manager.");
        }
        use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
        let action = at.value::<Action>("headers_with_underscores_action", headers_with_underscores_action);
        CommonOptions {
            idle_timeout: at.timeout("idle_timeout", idle_timeout, Some(HOUR)),
            max_connection_duration: at.timeout("max_connection_duration", max_connection_duration, None),
            duration_jitter: max_connection_duration_jitter.map_or(0.0, |percent| percent.value),
            max_headers: max_headers_count.unwrap_or(100) as usize,
            max_stream_duration: at.timeout("max_stream_duration", max_stream_duration, None),
            underscores: match action {
                Some(Action::RejectRequest) => Underscores::Reject,
                Some(Action::DropHeader) => Underscores::Drop,
                Some(Action::Allow) | None => Underscores::Allow,
            },
            max_requests_per_connection: max_requests_per_connection.unwrap_or(0),
        }
    })
}

/// Lowers Http1ProtocolOptions, of a connection manager or of a cluster.
pub(crate) fn http1_options(proto: core::Http1ProtocolOptions, at: &mut Lower) -> Option<Http1Settings> {
    let core::Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        // The connection manager's: upstream connections never outlive an invalid message.
        override_stream_error_on_invalid_http_message: _,
        send_fully_qualified_url,
        // Which of Envoy's parsers is used.
        use_balsa_parser: _,
        allow_custom_methods,
        ignore_http_11_upgrade,
    } = proto;
    let ignored = at.each("ignore_http_11_upgrade", ignore_http_11_upgrade, string);
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let (mut proper_case, mut keep_case) = (false, None);
    match header_key_format.and_then(|format| format.header_format) {
        Some(HeaderFormat::ProperCaseWords(_)) => proper_case = true,
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            keep_case = at.field("header_key_format.stateful_formatter", |at| {
                let any = at.required("typed_config", extension.typed_config, |any, at| at.extension(any))?;
                if !leno_api::any::is::<PreserveCaseFormatterConfig>(&any) {
                    at.unsupported_extension(&extension.name, &any.type_url);
                    return None;
                }
                let PreserveCaseFormatterConfig { forward_reason_phrase, formatter_type_on_envoy_headers } =
                    at.unpack(&any)?;
                let kind = at.value::<FormatterTypeOnEnvoyHeaders>(
                    "formatter_type_on_envoy_headers",
                    formatter_type_on_envoy_headers,
                )?;
                let proper_others = kind == FormatterTypeOnEnvoyHeaders::ProperCase;
                Some(KeepCase { reason: forward_reason_phrase, proper_others })
            });
        }
        None => {}
    }
    Some(Http1Settings {
        accept_http_10,
        default_host: (!default_host_for_http_10.is_empty()).then(|| default_host_for_http_10.into()),
        allow_absolute_url: allow_absolute_url.unwrap_or(true),
        stream_error: false,
        enable_trailers,
        allow_chunked_length,
        proper_case,
        keep_case,
        whole_url: send_fully_qualified_url,
        custom_methods: allow_custom_methods,
        ignored_upgrades: (!ignored.is_empty()).then(|| Arc::new(ignored)),
    })
}
