//! What the mesh's `defaultConfig` says of how proxies treat HTTP connections: headers that they
//! add, what stands in front of gateways, limits and timeouts; and how far paths are normalised.

use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;

use super::filters::Side;
use crate::model::duration::Span;
use crate::model::mesh::proxy::{
    ConnectionSettings, ForwardClientCertDetails, HeadersWithUnderscoresAction, PathWithEscapedSlashesAction,
    Profile, ProxyConfig,
};
use crate::model::mesh::{MeshConfig, Normalization};
use crate::translate::proto::core;
use crate::translate::resource::pack;
use hcm::http_connection_manager as parts;

/// What Istio's proxies call themselves to clients; outbound they go by Envoy's own name.
const SERVER_NAME: &str = "istio-envoy";

/// Applies it to a connection manager.
pub(super) fn apply(message: &mut hcm::HttpConnectionManager, mesh: &MeshConfig, side: Side) {
    normalization(message, mesh);
    headers(message, &mesh.default_config, side);
    client_certificates(message, &mesh.default_config, side);
    if let Some(settings) = settings(&mesh.default_config, side) {
        limits(message, &settings);
    }
}

/// Whether headers that say how an answer came about are left out.
pub(super) fn hides_debug_headers(mesh: &MeshConfig) -> bool {
    let headers = mesh.default_config.proxy_headers.as_ref();
    headers
        .and_then(|headers| headers.envoy_debug_headers.as_ref())
        .is_some_and(|headers| headers.disabled == Some(true))
}

/// Whether connections to gateways begin with the PROXY protocol.
pub(super) fn expects_proxy_protocol(mesh: &MeshConfig) -> bool {
    mesh.default_config.gateway_topology.as_ref().is_some_and(|topology| topology.proxy_protocol.is_some())
}

/// How much a gateway's connections may have in their buffers, bytes.
pub(super) fn buffer_limit(mesh: &MeshConfig) -> Option<u32> {
    positive(settings(&mesh.default_config, Side::Gateway)?.listener_per_connection_buffer_limit_bytes)
}

fn normalization(message: &mut hcm::HttpConnectionManager, mesh: &MeshConfig) {
    let level = mesh.path_normalization.as_ref().map_or(Normalization::Default, |found| found.normalization);
    message.normalize_path = Some(level != Normalization::None);
    message.merge_slashes =
        matches!(level, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes);
    message.path_with_escaped_slashes_action = match level {
        Normalization::DecodeAndMergeSlashes => parts::PathWithEscapedSlashesAction::UnescapeAndForward,
        _ => parts::PathWithEscapedSlashesAction::KeepUnchanged,
    } as i32;
}

fn headers(message: &mut hcm::HttpConnectionManager, config: &ProxyConfig, side: Side) {
    if side != Side::Outbound {
        SERVER_NAME.clone_into(&mut message.server_name);
    }
    let Some(headers) = &config.proxy_headers else { return };
    if let Some(server) = &headers.server {
        if server.disabled == Some(true) {
            message.server_name = String::new();
            message.server_header_transformation = parts::ServerHeaderTransformation::PassThrough as i32;
        } else if !server.value.is_empty() {
            message.server_name.clone_from(&server.value);
        }
    }
    if headers.request_id.as_ref().is_some_and(|header| header.disabled == Some(true)) {
        message.generate_request_id = Some(false);
    }
    message.append_x_forwarded_port =
        headers.x_forwarded_port.as_ref().is_some_and(|header| header.enabled == Some(true));
    if headers.preserve_http1_header_case == Some(true) {
        let formatter = core::TypedExtensionConfig {
            name: "preserve_case".to_owned(),
            typed_config: Some(pack(&PreserveCaseFormatterConfig::default())),
        };
        let options = message.http_protocol_options.get_or_insert_default();
        options.header_key_format = Some(core::http1_protocol_options::HeaderKeyFormat {
            header_format: Some(
                core::http1_protocol_options::header_key_format::HeaderFormat::StatefulFormatter(formatter),
            ),
        });
    }
}

/// What becomes of `x-forwarded-client-cert`: inbound it is a matter of headers, at gateways of what
/// stands in front of them.
fn client_certificates(message: &mut hcm::HttpConnectionManager, config: &ProxyConfig, side: Side) {
    use parts::ForwardClientCertDetails as Details;
    let headers = config.proxy_headers.as_ref();
    let asked = match side {
        Side::Outbound => return,
        Side::Inbound => headers.map(|headers| headers.forwarded_client_cert),
        Side::Gateway => {
            let topology = config.gateway_topology.as_ref();
            message.xff_num_trusted_hops = topology.map_or(0, |topology| topology.num_trusted_proxies);
            topology.map(|topology| topology.forward_client_cert_details)
        }
    };
    let details = match (asked.unwrap_or_default(), side) {
        (ForwardClientCertDetails::Undefined, Side::Gateway) => Details::SanitizeSet,
        (ForwardClientCertDetails::Undefined, _) => Details::AppendForward,
        (ForwardClientCertDetails::Sanitize, _) => Details::Sanitize,
        (ForwardClientCertDetails::ForwardOnly, _) => Details::ForwardOnly,
        (ForwardClientCertDetails::AppendForward, _) => Details::AppendForward,
        (ForwardClientCertDetails::SanitizeSet, _) => Details::SanitizeSet,
        (ForwardClientCertDetails::AlwaysForwardOnly, _) => Details::AlwaysForwardOnly,
    };
    message.forward_client_cert_details = details as i32;
    if side == Side::Gateway {
        let writes = matches!(details, Details::AppendForward | Details::SanitizeSet);
        message.set_current_client_cert_details = writes.then(|| parts::SetCurrentClientCertDetails {
            subject: Some(true),
            cert: true,
            dns: true,
            uri: true,
            ..parts::SetCurrentClientCertDetails::default()
        });
        return;
    }
    let current = headers.and_then(|headers| headers.set_current_client_cert_details.clone());
    let current = current.unwrap_or_default();
    message.set_current_client_cert_details = Some(parts::SetCurrentClientCertDetails {
        subject: Some(current.subject.unwrap_or(true)),
        cert: current.cert.unwrap_or(false),
        chain: current.chain.unwrap_or(false),
        dns: current.dns.unwrap_or(true),
        uri: current.uri.unwrap_or(true),
        ..parts::SetCurrentClientCertDetails::default()
    });
}

/// The limits and timeouts that hold, those of the profile EDGE among them, which is for gateways.
fn settings(config: &ProxyConfig, side: Side) -> Option<ConnectionSettings> {
    let mut settings = config.connection_settings.clone()?;
    if settings.profile == Profile::Edge && side == Side::Gateway {
        let span = |seconds: u64| Some(Span(std::time::Duration::from_secs(seconds)));
        let own = &mut settings;
        own.listener_per_connection_buffer_limit_bytes.get_or_insert(32 << 10);
        own.http_idle_timeout = own.http_idle_timeout.or(span(3600));
        own.http_stream_idle_timeout = own.http_stream_idle_timeout.or(span(300));
        own.http_request_timeout = own.http_request_timeout.or(span(300));
        own.http_request_headers_timeout = own.http_request_headers_timeout.or(span(60));
        own.http_max_concurrent_streams.get_or_insert(100);
        own.http2_initial_stream_window_size.get_or_insert(64 << 10);
        own.http2_initial_connection_window_size.get_or_insert(1 << 20);
        own.http_merge_slashes.get_or_insert(true);
        if own.http_headers_with_underscores_action == HeadersWithUnderscoresAction::Unspecified {
            own.http_headers_with_underscores_action = HeadersWithUnderscoresAction::RejectRequest;
        }
        if own.http_path_with_escaped_slashes_action
            == PathWithEscapedSlashesAction::PathWithEscapedSlashesUnspecified
        {
            own.http_path_with_escaped_slashes_action = PathWithEscapedSlashesAction::UnescapeAndRedirect;
        }
    }
    Some(settings)
}

fn limits(message: &mut hcm::HttpConnectionManager, settings: &ConnectionSettings) {
    let proto = |span: Option<Span>| span.map(Span::to_proto);
    let mut common = message.common_http_protocol_options.take().unwrap_or_default();
    common.idle_timeout = proto(settings.http_idle_timeout).or(common.idle_timeout);
    common.max_connection_duration = proto(settings.http_max_connection_duration);
    common.max_stream_duration = proto(settings.http_max_stream_duration);
    common.headers_with_underscores_action = match settings.http_headers_with_underscores_action {
        HeadersWithUnderscoresAction::Unspecified | HeadersWithUnderscoresAction::Allow => {
            core::http_protocol_options::HeadersWithUnderscoresAction::Allow
        }
        HeadersWithUnderscoresAction::RejectRequest => {
            core::http_protocol_options::HeadersWithUnderscoresAction::RejectRequest
        }
        HeadersWithUnderscoresAction::DropHeader => {
            core::http_protocol_options::HeadersWithUnderscoresAction::DropHeader
        }
    } as i32;
    let is_default = common == core::HttpProtocolOptions::default();
    message.common_http_protocol_options = (!is_default).then_some(common);
    message.stream_idle_timeout = proto(settings.http_stream_idle_timeout).or(message.stream_idle_timeout);
    message.request_timeout = proto(settings.http_request_timeout);
    message.request_headers_timeout = proto(settings.http_request_headers_timeout);
    message.drain_timeout = proto(settings.http_drain_timeout);
    let mut http2 = message.http2_protocol_options.take();
    let streams = positive(settings.http_max_concurrent_streams);
    let stream_window = positive(settings.http2_initial_stream_window_size);
    let window = positive(settings.http2_initial_connection_window_size);
    if streams.or(stream_window).or(window).is_some() {
        let options = http2.get_or_insert_default();
        options.max_concurrent_streams = streams;
        options.initial_stream_window_size = stream_window;
        options.initial_connection_window_size = window;
    }
    message.http2_protocol_options = http2;
    message.merge_slashes = settings.http_merge_slashes.unwrap_or(message.merge_slashes);
    use PathWithEscapedSlashesAction as Given;
    use parts::PathWithEscapedSlashesAction as Action;
    message.path_with_escaped_slashes_action = match settings.http_path_with_escaped_slashes_action {
        Given::PathWithEscapedSlashesUnspecified => message.path_with_escaped_slashes_action,
        Given::KeepUnchanged => Action::KeepUnchanged as i32,
        Given::RejectRequest => Action::RejectRequest as i32,
        Given::UnescapeAndRedirect => Action::UnescapeAndRedirect as i32,
        Given::UnescapeAndForward => Action::UnescapeAndForward as i32,
    };
}

fn positive(value: Option<i32>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}
