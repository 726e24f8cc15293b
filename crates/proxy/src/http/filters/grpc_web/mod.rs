//! `envoy.filters.http.grpc_web`: lets browsers call gRPC services. What they send as gRPC-Web goes
//! on as gRPC; of the response the trailers come as a last frame of the body, and in text mode
//! everything is in base64.
//!
//! A response that is no gRPC becomes one: its body is `grpc-message`.

mod body;
mod config;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use self::body::{Decoder, Encoder, trailers_frame};
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::{Reply, grpc_status, percent_encode};
use crate::http::stream::Stream;
use crate::telemetry::stats::ThreadStats;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.grpc_web",
    config_type: "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    lower: config::lower,
    route_type: None,
    lower_route: None,
};

const WEB: &[u8] = b"application/grpc-web";
const WEB_PROTO: &[u8] = b"application/grpc-web+proto";
const WEB_TEXT: &[u8] = b"application/grpc-web-text";
const WEB_TEXT_PROTO: &[u8] = b"application/grpc-web-text+proto";

/// What of a body that is no gRPC becomes `grpc-message` at most, if it comes in pieces.
const LONGEST_MESSAGE: usize = 16 << 10;

/// GrpcWeb.
#[derive(Debug)]
struct GrpcWeb;

impl FilterConfig for GrpcWeb {
    fn on_request(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let kind = head.get(Known::ContentType).unwrap_or_default();
        if !kind.starts_with(WEB) || ![WEB, WEB_PROTO, WEB_TEXT, WEB_TEXT_PROTO].contains(&kind) {
            return Opening::PASS;
        }
        let text_request = kind == WEB_TEXT || kind == WEB_TEXT_PROTO;
        let accept = head.find("accept").unwrap_or_default();
        let text_response = accept == WEB_TEXT || accept == WEB_TEXT_PROTO;
        // It is the length of something else.
        head.remove(Known::ContentLength);
        let scope = scope(stream, head);
        head.set(Known::ContentType, b"application/grpc");
        head.set(Known::Te, b"trailers");
        if head.find("grpc-accept-encoding").is_none() {
            head.append(b"grpc-accept-encoding", b"identity");
        }
        Opening::Open(Box::new(Web {
            request: text_request.then(Decoder::default),
            response: text_response.then(Encoder::default),
            scope,
            message: None,
        }))
    }
}

/// Where a call is counted, with a dot at the end; `None`: it is not.
fn scope(stream: &Stream, head: &HeaderMap) -> Option<String> {
    let name = stream.selected.as_ref().and_then(|selected| selected.cluster(head))?;
    let cluster = stream.worker.cluster(name)?;
    let path = std::str::from_utf8(head.path()).ok()?.split('?').next()?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let (service, method) = (parts.next()?, parts.next()?);
    let whole = parts.next().is_none();
    whole.then(|| format!("cluster.{}.grpc-web.{service}.{method}.", cluster.config.stat_name))
}

/// The filter at work on one call.
struct Web {
    /// The request comes in base64.
    request: Option<Decoder>,
    /// The response is to go in base64.
    response: Option<Encoder>,
    scope: Option<String>,
    /// The response is no gRPC, and this is its body so far.
    message: Option<Vec<u8>>,
}

impl HttpStreamFilter for Web {
    fn on_request_data(&mut self, _stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        let Some(decoder) = &mut self.request else { return Step::Continue };
        match decoder.decode(data, end) {
            Ok(decoded) => {
                *data = decoded;
                Step::Continue
            }
            Err(details) => {
                Step::Reply(Reply::new(400, details, "Bad gRPC-web request, invalid base64 data."))
            }
        }
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut HeaderMap, end: bool) -> Step {
        self.count(head, stream.worker.stats());
        let foreign = !is_grpc(head, end) && !is_web(head);
        head.remove(Known::ContentLength);
        let kind = if self.response.is_some() { WEB_TEXT_PROTO } else { WEB_PROTO };
        head.set(Known::ContentType, kind);
        if end || !foreign {
            return Step::Continue;
        }
        self.message = Some(Vec::new());
        Step::Hold
    }

    fn on_response_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        if let Some(message) = &mut self.message {
            let room = if end && message.is_empty() { data.len() } else { LONGEST_MESSAGE - message.len() };
            message.extend_from_slice(data.get(..room).unwrap_or(data));
            data.clear();
            if !end {
                return Step::Hold;
            }
            self.explain(&mut stream.response);
            return Step::Continue;
        }
        if let Some(encoder) = &mut self.response {
            *data = encoder.encode(data);
        }
        Step::Continue
    }

    fn on_response_trailers(
        &mut self,
        stream: &mut Stream,
        trailers: &mut HeaderMap,
        data: &mut Bytes,
    ) -> Step {
        self.count(trailers, stream.worker.stats());
        if self.message.is_some() {
            self.explain(&mut stream.response);
            return Step::Continue;
        }
        let frame = trailers_frame(trailers);
        trailers.clear();
        *data = if self.response.is_some() { leno_base::base64::encode(&frame).into() } else { frame.into() };
        Step::Continue
    }
}

impl Web {
    /// Makes a gRPC response of one that is none.
    fn explain(&mut self, head: &mut HeaderMap) {
        let message = self.message.take().unwrap_or_default();
        head.set(Known::GrpcMessage, &percent_encode(&message));
        head.set(Known::GrpcStatus, grpc_status(head.status()).to_string().as_bytes());
        head.set(Known::ContentLength, b"0");
    }

    fn count(&self, headers: &HeaderMap, stats: &ThreadStats) {
        let (Some(scope), Some(status)) = (&self.scope, headers.get_str(Known::GrpcStatus)) else { return };
        // As in grpc_stats: nobody is to make names of counters.
        if status.len() <= 3 && status.bytes().all(|byte| byte.is_ascii_digit()) {
            stats.count(&format!("{scope}{status}"), 1);
        }
        stats.count(&format!("{scope}{}", if status == "0" { "success" } else { "failure" }), 1);
        stats.count(&format!("{scope}total"), 1);
    }
}

/// Whether a response is gRPC.
fn is_grpc(head: &HeaderMap, end: bool) -> bool {
    if end { head.contains(Known::GrpcStatus) } else { head.status() == 200 && head.is_grpc() }
}

/// Whether it is gRPC-Web already, not as text.
fn is_web(head: &HeaderMap) -> bool {
    let kind = head.get(Known::ContentType).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    head.status() == 200 && (kind.eq_ignore_ascii_case(WEB) || kind.eq_ignore_ascii_case(WEB_PROTO))
}
