//! `proxy_status_config`: what went wrong, in the response header `proxy-status` (RFC 9209).
//!
//! The error follows from the response flags, in the order in which Envoy looks at them; a response
//! without any of them has no such header.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as proto;
use proto::proxy_status_config::ProxyName;

use crate::http::headers::HeaderMap;
use crate::telemetry::access_log::command::short_flags;
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};

/// ProxyStatusConfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyStatus {
    /// The node's id, a literal name, or `server_name`.
    name: Arc<str>,
    details: bool,
    flags: bool,
    /// `set_recommended_response_code`
    recommended_code: bool,
}

/// A proxy error type of RFC 9209 section 2.3, as far as flags tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ErrorType {
    name: &'static str,
    /// The status that the RFC recommends, if any.
    status: Option<u16>,
}

const UNAVAILABLE: ErrorType = ErrorType { name: "destination_unavailable", status: Some(503) };
const LATE: ErrorType = ErrorType { name: "http_response_timeout", status: Some(504) };
const CONNECT_TIMEOUT: ErrorType = ErrorType { name: "connection_timeout", status: Some(504) };
const TERMINATED: ErrorType = ErrorType { name: "connection_terminated", status: Some(502) };
const REFUSED: ErrorType = ErrorType { name: "connection_refused", status: Some(502) };
const LIMIT: ErrorType = ErrorType { name: "connection_limit_reached", status: Some(503) };
const NOT_FOUND: ErrorType = ErrorType { name: "destination_not_found", status: Some(500) };
const REQUEST: ErrorType = ErrorType { name: "http_request_error", status: None };
const MISCONFIGURED: ErrorType = ErrorType { name: "proxy_configuration_error", status: Some(500) };
const PROTOCOL: ErrorType = ErrorType { name: "http_protocol_error", status: Some(502) };
const DNS: ErrorType = ErrorType { name: "dns_error", status: Some(502) };

/// Which flag means what; the first that is set counts.
const ERRORS: &[(ResponseFlags, ErrorType)] = &[
    (ResponseFlags::FAILED_LOCAL_HEALTH_CHECK, UNAVAILABLE),
    (ResponseFlags::NO_HEALTHY_UPSTREAM, UNAVAILABLE),
    (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, LATE),
    (ResponseFlags::LOCAL_RESET, CONNECT_TIMEOUT),
    (ResponseFlags::UPSTREAM_REMOTE_RESET, TERMINATED),
    (ResponseFlags::UPSTREAM_CONNECTION_FAILURE, REFUSED),
    (ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, TERMINATED),
    (ResponseFlags::UPSTREAM_OVERFLOW, LIMIT),
    (ResponseFlags::NO_ROUTE_FOUND, NOT_FOUND),
    (ResponseFlags::RATE_LIMITED, LIMIT),
    (ResponseFlags::RATE_LIMIT_SERVICE_ERROR, LIMIT),
    (ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED, UNAVAILABLE),
    (ResponseFlags::STREAM_IDLE_TIMEOUT, LATE),
    (ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS, REQUEST),
    (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, REQUEST),
    (ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED, LATE),
    (ResponseFlags::NO_FILTER_CONFIG_FOUND, MISCONFIGURED),
    (ResponseFlags::UPSTREAM_PROTOCOL_ERROR, PROTOCOL),
    (ResponseFlags::NO_CLUSTER_FOUND, UNAVAILABLE),
    (ResponseFlags::DNS_RESOLUTION_FAILED, DNS),
];

impl ProxyStatus {
    pub(super) fn lower(proto: proto::ProxyStatusConfig, node_id: &Arc<str>, server_name: &str) -> Box<Self> {
        let proto::ProxyStatusConfig {
            remove_details,
            // Why a downstream connection ends is not part of any response here.
            remove_connection_termination_details: _,
            remove_response_flags,
            set_recommended_response_code,
            proxy_name,
        } = proto;
        let name = match proxy_name {
            Some(ProxyName::UseNodeId(true)) => Arc::clone(node_id),
            Some(ProxyName::LiteralProxyName(name)) if !name.is_empty() => name.into(),
            _ => server_name.into(),
        };
        Box::new(Self {
            name,
            details: !remove_details,
            flags: !remove_response_flags,
            recommended_code: set_recommended_response_code,
        })
    }

    /// Says in a response what went wrong, if something did.
    pub(crate) fn apply(&self, info: &StreamInfo, head: &mut HeaderMap) {
        let found = ERRORS.iter().find(|(flag, _)| info.flags.intersects(*flag));
        let Some((_, error)) = found else { return };
        let mut value = format!("{}; error={}", self.name, error.name);
        if let Some(details) = info.response_code_details.as_deref().filter(|_| self.details) {
            let mut text = details.replace('\\', "\\\\").replace('"', "\\\"");
            if self.flags {
                text.push_str("; ");
                text.push_str(&short_flags(info));
            }
            value.push_str("; details=\"");
            value.push_str(&text);
            value.push('"');
        }
        let earlier = head.find_all("proxy-status").map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut all = earlier.join(&b", "[..]);
        if !earlier.is_empty() {
            all.extend_from_slice(b", ");
        }
        all.extend_from_slice(value.as_bytes());
        head.remove_named("proxy-status");
        head.append(b"proxy-status", &all);
        if let Some(status) = error.status.filter(|_| self.recommended_code) {
            head.set_status(status);
        }
    }
}
