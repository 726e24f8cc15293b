//! Entries of Envoy's access log service: what a request or session was, as messages of
//! envoy.data.accesslog.v3.

#![allow(deprecated, reason = "deprecated fields are left empty by name")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::data::accesslog::v3 as data;
use leno_tls::Certificate;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, ListValue, Struct, Timestamp, Value};
use serde_json::{Map, Value as Json};

use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::access_log::LogType;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::stream_info::{FilterState, Protocol, ResponseFlags, StreamInfo};
use crate::tls::TlsInfo;

/// What entries look like.
#[derive(Debug)]
pub(super) struct Shape {
    /// Sessions, not requests.
    pub(super) tcp: bool,
    /// `filter_state_objects_to_log`
    pub(super) objects: Vec<Box<str>>,
    /// `additional_request_headers_to_log`
    pub(super) request_headers: Vec<Box<str>>,
    /// `additional_response_headers_to_log`
    pub(super) response_headers: Vec<Box<str>>,
    /// `additional_response_trailers_to_log`
    pub(super) response_trailers: Vec<Box<str>>,
}

impl Shape {
    /// An entry in wire form.
    pub(super) fn encode(&self, cx: &FormatContext<'_>) -> Vec<u8> {
        match self.tcp {
            true => self.session(cx).encode_to_vec(),
            false => self.request(cx).encode_to_vec(),
        }
    }

    fn session(&self, cx: &FormatContext<'_>) -> data::TcpAccessLogEntry {
        data::TcpAccessLogEntry {
            common_properties: Some(self.common(cx)),
            connection_properties: Some(data::ConnectionProperties {
                received_bytes: cx.info.bytes_received,
                sent_bytes: cx.info.bytes_sent,
            }),
        }
    }

    // Deviation: how long heads were towards upstream is not known (`upstream_header_bytes_...`).
    fn request(&self, cx: &FormatContext<'_>) -> data::HttpAccessLogEntry {
        use data::http_access_log_entry::HttpVersion;
        let empty = HeaderMap::new();
        let head = cx.request.unwrap_or(&empty);
        let text = |name: Known| head.get(name).map(text).unwrap_or_default();
        let version = match cx.info.protocol {
            None => HttpVersion::ProtocolUnspecified,
            Some(Protocol::Http10) => HttpVersion::Http10,
            Some(Protocol::Http11) => HttpVersion::Http11,
            Some(Protocol::Http2) => HttpVersion::Http2,
        };
        let method = std::str::from_utf8(head.method()).ok().and_then(core::RequestMethod::from_str_name);
        let request = data::HttpRequestProperties {
            request_method: method.unwrap_or_default().into(),
            scheme: text(Known::Scheme),
            authority: text(Known::Authority),
            path: text(Known::Path),
            user_agent: text(Known::UserAgent),
            referer: head.find("referer").map(self::text).unwrap_or_default(),
            forwarded_for: text(Known::XForwardedFor),
            request_id: text(Known::XRequestId),
            original_path: text(Known::EnvoyOriginalPath),
            request_headers_bytes: head.byte_size() as u64,
            request_body_bytes: cx.info.bytes_received,
            request_headers: chosen(&self.request_headers, Some(head)),
            downstream_header_bytes_received: cx.info.request_head.fields,
            ..data::HttpRequestProperties::default()
        };
        let code = cx.info.response_code;
        let response = data::HttpResponseProperties {
            response_code: (code > 0).then(|| code.into()),
            response_headers_bytes: cx.response.map_or(0, HeaderMap::byte_size) as u64,
            response_body_bytes: cx.info.bytes_sent,
            response_headers: chosen(&self.response_headers, cx.response),
            response_trailers: chosen(&self.response_trailers, cx.trailers),
            response_code_details: cx.info.response_code_details.as_deref().unwrap_or_default().to_owned(),
            downstream_header_bytes_sent: cx.info.response_head.fields,
            ..data::HttpResponseProperties::default()
        };
        data::HttpAccessLogEntry {
            common_properties: Some(self.common(cx)),
            protocol_version: version.into(),
            request: Some(request),
            response: Some(response),
        }
    }

    fn common(&self, cx: &FormatContext<'_>) -> data::AccessLogCommon {
        let info = cx.info;
        let (connection, upstream) = (&info.connection, &info.upstream);
        let since = |at: Option<Instant>| at.map(|at| duration(at.saturating_duration_since(info.started)));
        let mut objects: Vec<(String, Any)> = Vec::new();
        for key in &self.objects {
            let found = info.filter_state.get(key).or_else(|| upstream.filter_state.get(key));
            objects.extend(found.map(|state| (key.to_string(), object(state))));
        }
        let metadata: HashMap<String, Struct> =
            info.metadata.iter().map(|(name, values)| (name.to_owned(), structure(values))).collect();
        let metadata = (!metadata.is_empty()).then(|| core::Metadata {
            filter_metadata: metadata.into_iter().collect(),
            ..core::Metadata::default()
        });
        let (received, sent) = info.wire_bytes();
        data::AccessLogCommon {
            sample_rate: 0.0,
            downstream_remote_address: Some(address(connection.remote)),
            downstream_local_address: Some(address(connection.local)),
            tls_properties: connection.tls.as_deref().map(|session| tls(session, info)),
            start_time: Some(timestamp(info.start_time)),
            time_to_last_rx_byte: since(info.request_complete),
            time_to_first_upstream_tx_byte: since(upstream.first_tx),
            time_to_last_upstream_tx_byte: since(upstream.last_tx),
            time_to_first_upstream_rx_byte: since(upstream.first_rx),
            time_to_last_upstream_rx_byte: since(upstream.last_rx),
            time_to_first_downstream_tx_byte: since(info.first_downstream_tx),
            time_to_last_downstream_tx_byte: since(info.last_downstream_tx),
            upstream_remote_address: upstream.host.map(address),
            upstream_local_address: upstream.local.map(address),
            upstream_cluster: upstream
                .cluster
                .as_ref()
                .map(|facts| facts.name.to_string())
                .unwrap_or_default(),
            response_flags: (!info.flags.is_empty()).then(|| flags(info.flags)),
            metadata,
            upstream_transport_failure_reason: words(upstream.transport_failure.as_deref()),
            route_name: owned(info.route_name()),
            downstream_direct_remote_address: Some(address(connection.direct_remote)),
            filter_state_objects: objects.into_iter().collect(),
            custom_tags: HashMap::default(),
            duration: since(cx.end),
            upstream_request_attempt_count: upstream.attempts,
            connection_termination_details: owned(info.termination_details.as_deref()),
            stream_id: owned(info.request_id.as_deref()),
            intermediate_log_entry: false,
            downstream_transport_failure_reason: owned(connection.transport_failure.as_deref()),
            downstream_wire_bytes_sent: sent,
            downstream_wire_bytes_received: received,
            upstream_wire_bytes_sent: upstream.wire_bytes_sent,
            upstream_wire_bytes_received: upstream.wire_bytes_received,
            access_log_type: match cx.log_type {
                // It has no number in this version of the API.
                LogType::TcpConnectionStart => LogType::NotSet as i32,
                log_type => log_type as i32,
            },
        }
    }
}

fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

/// Why a connection failed, in words, of which text formats have made one. Those of TLS are one
/// already.
fn words(reason: Option<&str>) -> String {
    match reason {
        Some(reason) if !reason.contains("TLS_error") => reason.replace('_', " "),
        reason => owned(reason),
    }
}

/// Text as protobuf takes it.
fn text(bytes: &[u8]) -> String {
    // Envoy writes a sign in place of what is no UTF-8.
    String::from_utf8_lossy(bytes).replace(char::REPLACEMENT_CHARACTER, "!")
}

/// The values of these headers, by name; several of one name are joined.
fn chosen(names: &[Box<str>], block: Option<&HeaderMap>) -> HashMap<String, String> {
    let Some(block) = block else { return HashMap::new() };
    let all = names.iter().map(|name| {
        let values: Vec<String> = block.find_all(name).map(text).collect();
        (name.to_string(), values)
    });
    let there = all.filter(|(_, values)| !values.is_empty());
    there.map(|(name, values)| (name, values.join(","))).collect()
}

fn address(address: SocketAddr) -> core::Address {
    use core::socket_address::PortSpecifier;
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
}

fn tls(session: &TlsInfo, info: &StreamInfo) -> data::TlsProperties {
    use data::tls_properties::TlsVersion;
    use rustls::ProtocolVersion;
    let version = match session.version {
        Some(ProtocolVersion::TLSv1_2) => TlsVersion::TlSv12,
        Some(ProtocolVersion::TLSv1_3) => TlsVersion::TlSv13,
        _ => TlsVersion::VersionUnspecified,
    };
    let peer = session.peer.as_ref().and_then(|peer| peer.own());
    let own = session.local.as_ref().map(|own| own.certificate());
    data::TlsProperties {
        tls_version: version.into(),
        tls_cipher_suite: session.cipher.map(|suite| u16::from(suite).into()),
        tls_sni_hostname: owned(info.connection.server_name.as_deref()),
        local_certificate_properties: Some(own.map(|own| certificate(own, false)).unwrap_or_default()),
        peer_certificate_properties: Some(peer.map(|peer| certificate(peer, true)).unwrap_or_default()),
        ..data::TlsProperties::default()
    }
}

fn certificate(certificate: &Certificate, issuer: bool) -> data::tls_properties::CertificateProperties {
    use data::tls_properties::certificate_properties::SubjectAltName;
    use data::tls_properties::certificate_properties::subject_alt_name::San;
    let uris = certificate.uris().map(|uri| San::Uri(uri.to_owned()));
    let names = uris.chain(certificate.dns_names().map(|name| San::Dns(name.to_owned())));
    data::tls_properties::CertificateProperties {
        subject_alt_name: names.map(|san| SubjectAltName { san: Some(san) }).collect(),
        subject: certificate.subject_text(),
        issuer: if issuer { certificate.issuer_text() } else { String::new() },
    }
}

fn flags(set: ResponseFlags) -> data::ResponseFlags {
    use data::response_flags::Unauthorized;
    use data::response_flags::unauthorized::Reason;
    let has = |flag| set.intersects(flag);
    let unauthorized = has(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
    data::ResponseFlags {
        failed_local_healthcheck: has(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK),
        no_healthy_upstream: has(ResponseFlags::NO_HEALTHY_UPSTREAM),
        upstream_request_timeout: has(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        local_reset: has(ResponseFlags::LOCAL_RESET),
        upstream_remote_reset: has(ResponseFlags::UPSTREAM_REMOTE_RESET),
        upstream_connection_failure: has(ResponseFlags::UPSTREAM_CONNECTION_FAILURE),
        upstream_connection_termination: has(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION),
        upstream_overflow: has(ResponseFlags::UPSTREAM_OVERFLOW),
        no_route_found: has(ResponseFlags::NO_ROUTE_FOUND),
        delay_injected: has(ResponseFlags::DELAY_INJECTED),
        fault_injected: has(ResponseFlags::FAULT_INJECTED),
        rate_limited: has(ResponseFlags::RATE_LIMITED),
        unauthorized_details: unauthorized.then(|| Unauthorized { reason: Reason::ExternalService.into() }),
        rate_limit_service_error: has(ResponseFlags::RATE_LIMIT_SERVICE_ERROR),
        downstream_connection_termination: has(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION),
        upstream_retry_limit_exceeded: has(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED),
        stream_idle_timeout: has(ResponseFlags::STREAM_IDLE_TIMEOUT),
        invalid_envoy_request_headers: has(ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS),
        downstream_protocol_error: has(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR),
        upstream_max_stream_duration_reached: has(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        response_from_cache_filter: has(ResponseFlags::RESPONSE_FROM_CACHE_FILTER),
        no_filter_config_found: has(ResponseFlags::NO_FILTER_CONFIG_FOUND),
        duration_timeout: has(ResponseFlags::DURATION_TIMEOUT),
        upstream_protocol_error: has(ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
        no_cluster_found: has(ResponseFlags::NO_CLUSTER_FOUND),
        overload_manager: has(ResponseFlags::OVERLOAD_MANAGER),
        dns_resolution_failure: has(ResponseFlags::DNS_RESOLUTION_FAILED),
        downstream_remote_reset: has(ResponseFlags::DOWNSTREAM_REMOTE_RESET),
    }
}

/// An object of the filter state: the facts of a peer, or other messages, as a `Struct`.
fn object(state: &FilterState) -> Any {
    let typed = state.typed.as_ref().and_then(Json::as_object);
    let (name, value) = match typed {
        Some(typed) => ("google.protobuf.Struct", structure(typed).encode_to_vec()),
        // A StringValue, whose only field has number 1.
        None => ("google.protobuf.StringValue", state.text.encode_to_vec()),
    };
    Any { type_url: format!("type.googleapis.com/{name}"), value }
}

/// JSON as protobuf's message for it.
pub(super) fn structure(object: &Map<String, Json>) -> Struct {
    fn value(json: &Json) -> Value {
        let kind = match json {
            Json::Null => Kind::NullValue(0),
            Json::Bool(value) => Kind::BoolValue(*value),
            Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
            Json::String(text) => Kind::StringValue(text.clone()),
            Json::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(value).collect() }),
            Json::Object(object) => Kind::StructValue(structure(object)),
        };
        Value { kind: Some(kind) }
    }
    Struct { fields: object.iter().map(|(name, json)| (name.clone(), value(json))).collect() }
}
