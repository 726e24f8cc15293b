//! Answers that the proxy makes itself: the only place where a failure becomes a status.
//!
//! A `Reply` says status, body, response flag and details as Envoy's local replies do. For a
//! gRPC request the codec layer turns it into `200` with `grpc-status` (see `for_grpc`).

use std::borrow::Cow;

use bytes::Bytes;

use crate::http::codec::{CodecError, ResetReason};
use crate::http::config::local_reply::Rewritten;
use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::stream_info::ResponseFlags;

/// A local reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// HTTP status.
    pub(crate) status: u16,
    /// Text body; empty: none.
    pub(crate) body: Bytes,
    /// gRPC status to use instead of the one that follows from `status`.
    pub(crate) grpc_status: Option<u32>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub(crate) details: Cow<'static, str>,
    /// Response flags that it sets.
    pub(crate) flags: ResponseFlags,
    /// Headers added to it.
    pub(crate) headers: Vec<(Cow<'static, str>, Cow<'static, [u8]>)>,
}

impl Reply {
    /// A reply with a plain-text body.
    pub(crate) fn new(status: u16, details: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            body: body.into(),
            grpc_status: None,
            details: details.into(),
            flags: ResponseFlags::default(),
            headers: Vec::new(),
        }
    }

    /// The same with a response flag.
    #[must_use]
    pub(crate) fn flag(mut self, flag: ResponseFlags) -> Self {
        self.flags.insert(flag);
        self
    }

    /// The same with a header.
    #[must_use]
    pub(crate) fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with a gRPC status of its own.
    #[must_use]
    pub(crate) fn grpc(mut self, status: u32) -> Self {
        self.grpc_status = Some(status);
        self
    }

    /// The answer to a message that breaks the protocol.
    pub(crate) fn protocol_error(error: CodecError) -> Self {
        let reason = crate::http::codec::h1::write::reason(error.status);
        Reply::new(error.status, error.details, reason).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR)
    }

    /// No route (`NR`).
    pub(crate) fn route_not_found() -> Self {
        Reply::new(404, "route_not_found", "").flag(ResponseFlags::NO_ROUTE_FOUND)
    }

    /// The route names a cluster that does not exist (`NC`).
    pub(crate) fn cluster_not_found(status: u16) -> Self {
        Reply::new(status, "cluster_not_found", "").flag(ResponseFlags::NO_CLUSTER_FOUND)
    }

    /// The cluster has no host to offer (`UH`).
    pub(crate) fn no_healthy_upstream() -> Self {
        Reply::new(503, "no_healthy_upstream", "no healthy upstream").flag(ResponseFlags::NO_HEALTHY_UPSTREAM)
    }

    /// The cluster's endpoints are to be spared (`UDO`).
    pub(crate) fn dropped() -> Self {
        let reply = Reply::new(503, "unconditional_drop_overload", "unconditional drop overload");
        reply
            .flag(ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD)
            .header("x-envoy-unconditional-drop-overload", b"true".as_slice())
    }

    /// The upstream side failed before it answered.
    pub(crate) fn upstream_failure(reason: ResetReason, transport: Option<&str>, retried: bool) -> Self {
        let status = if reason == ResetReason::ProtocolError { 502 } else { 503 };
        let retried = if retried { "retried and the latest " } else { "" };
        // The transport's words go to the log only: they would tell clients about the inside.
        let body = format!(
            "upstream connect error or disconnect/reset before headers. {retried}reset reason: {}",
            reason.text()
        );
        let mut details = format!("upstream_reset_before_response_started{{{}", underscored(reason.text()));
        if let Some(transport) = transport {
            details.push('|');
            details.push_str(&underscored(transport));
        }
        details.push('}');
        Reply::new(status, details, body).flag(reason.flag())
    }

    /// No answer in time (`UT`).
    pub(crate) fn upstream_timeout(details: &'static str) -> Self {
        Reply::new(504, details, "upstream request timeout").flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
    }

    /// Writes status and the reply's own headers; the body's headers follow with `write_body`.
    pub(crate) fn write_head(&self, map: &mut HeaderMap, grpc: bool) {
        map.clear();
        map.set_status(if grpc { 200 } else { self.status });
        for (name, value) in &self.headers {
            map.append(name.as_bytes(), value);
        }
    }

    /// Writes the headers that describe the body and gives the body itself; for gRPC the status
    /// goes to `grpc-status` and the body to `grpc-message`.
    pub(crate) fn write_body(&self, map: &mut HeaderMap, grpc: bool) -> Bytes {
        if grpc {
            map.set(Known::ContentType, b"application/grpc");
            let status = self.grpc_status.unwrap_or_else(|| grpc_status(self.status));
            map.set(Known::GrpcStatus, status.to_string().as_bytes());
            if !self.body.is_empty() {
                map.set(Known::GrpcMessage, &percent_encode(&self.body));
            }
            return Bytes::new();
        }
        if !self.body.is_empty() {
            map.set(Known::ContentLength, self.body.len().to_string().as_bytes());
            if !map.contains(Known::ContentType) {
                map.set(Known::ContentType, b"text/plain");
            }
        }
        self.body.clone()
    }
}

impl Reply {
    /// `write_body` for a reply that `local_reply_config` has changed.
    pub(crate) fn write_rewritten(&self, new: Rewritten, map: &mut HeaderMap, grpc: bool) -> Bytes {
        let changed = new.content_type.is_some() || new.body != self.body;
        let content_type = new.content_type;
        let status = new.status;
        let reply = Reply { status, body: new.body, headers: Vec::new(), ..self.clone() };
        if grpc {
            map.set_status(200);
            let mut reply = reply;
            if content_type.as_deref() == Some("application/json") && reply.body.last() == Some(&b'\n') {
                reply.body.truncate(reply.body.len() - 1);
            }
            return reply.write_body(map, grpc);
        }
        // Deviation: Envoy gives a body to a 204 too, which clients read as their next answer.
        let reply = if matches!(status, 204 | 304) { Reply { body: Bytes::new(), ..reply } } else { reply };
        if changed && reply.body != self.body {
            let kind = content_type.as_deref().unwrap_or("text/plain");
            map.set(Known::ContentType, kind.as_bytes());
        }
        reply.write_body(map, grpc)
    }
}

/// Spaces would break the fields of a log line.
fn underscored(text: &str) -> String {
    text.replace(' ', "_")
}

/// The gRPC status that stands for an HTTP status (the gRPC specification's table).
pub(crate) fn grpc_status(http: u16) -> u32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// `grpc-message` coding: printable ASCII but `%` and, as with Envoy, `~` stays.
pub(crate) fn percent_encode(text: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text {
        if matches!(byte, b' '..=b'}') && *byte != b'%' {
            encoded.push(*byte);
        } else {
            let digit = |value: u8| b"0123456789ABCDEF".get(usize::from(value)).copied().unwrap_or(b'0');
            encoded.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::{Reply, grpc_status};
    use crate::http::codec::ResetReason;
    use crate::http::headers::HeaderMap;

    #[test]
    fn failures_read_as_envoys_do() {
        let reply = Reply::upstream_failure(
            ResetReason::RemoteConnectionFailure,
            Some("delayed connect error: Connection refused"),
            true,
        );
        assert_eq!(
            reply.details,
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        assert_eq!(
            reply.body,
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote \
             connection failure"
        );
        assert_eq!(Reply::upstream_failure(ResetReason::ProtocolError, None, false).status, 502);
    }

    #[test]
    fn a_grpc_client_gets_its_status_in_headers() {
        let reply = Reply::new(503, "x", "50% \n");
        let mut map = HeaderMap::new();
        reply.write_head(&mut map, true);
        assert!(reply.write_body(&mut map, true).is_empty());
        assert_eq!(
            format!("{map:?}"),
            r#"{":status": "200", "content-type": "application/grpc", "grpc-status": "14", "grpc-message": "50%25 %0A"}"#
        );
        assert_eq!([400, 404, 429, 500].map(grpc_status), [13, 12, 14, 2]);
    }
}
