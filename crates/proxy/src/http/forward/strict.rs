//! `strict_check_headers`: request headers of the router's that must be valid, or the request is
//! answered with 400 (`IH`).

use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::policy::{is_grpc_retry_on, is_http_retry_on};
use crate::telemetry::stream_info::ResponseFlags;

/// Whether a header can be checked.
pub(crate) fn checks(name: Known) -> bool {
    matches!(
        name,
        Known::EnvoyUpstreamRqTimeoutMs
            | Known::EnvoyUpstreamRqPerTryTimeoutMs
            | Known::EnvoyMaxRetries
            | Known::EnvoyRetryOn
            | Known::EnvoyRetryGrpcOn
    )
}

/// Checks a request; `Err`: it is answered so.
pub(super) fn check(names: &[Known], head: &HeaderMap) -> Result<(), Reply> {
    for name in names {
        let Some(value) = head.get(*name) else { continue };
        let text = std::str::from_utf8(value).unwrap_or_default();
        let valid = match name {
            Known::EnvoyRetryOn => text.split(',').all(|condition| is_http_retry_on(condition.trim())),
            Known::EnvoyRetryGrpcOn => text.split(',').all(|condition| is_grpc_retry_on(condition.trim())),
            _ => text.parse::<u64>().is_ok(),
        };
        if !valid {
            let (name, value) = (name.text(), String::from_utf8_lossy(value));
            let details = format!("request_headers_failed_strict_check{{{name}}}");
            let reply = Reply::new(400, details, format!("invalid header '{name}' with value '{value}'"));
            return Err(reply.flag(ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS));
        }
    }
    Ok(())
}
