//! `envoy.filters.http.buffer`: a request is forwarded only when it is complete, and refused
//! with 413 if its body is too large. A request without `content-length` gets it.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use leno_api::proto::envoy::extensions::filters::http::buffer::v3 as proto;

use crate::config::lower::Lower;
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::stream::Stream;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.buffer",
    config_type: "envoy.extensions.filters.http.buffer.v3.Buffer",
    lower,
    route_type: Some("envoy.extensions.filters.http.buffer.v3.BufferPerRoute"),
    lower_route: Some(lower_route),
};

/// Buffer.
#[derive(Debug)]
struct Buffer {
    /// `max_request_bytes`.
    limit: usize,
}

/// BufferPerRoute; `None`: disabled.
#[derive(Debug)]
struct RouteBuffer(Option<usize>);

impl FilterConfig for Buffer {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        end: bool,
    ) -> Opening {
        let limit = match settings.and_then(RouteSettings::first::<RouteBuffer>) {
            Some(RouteBuffer(None)) => return Opening::PASS,
            Some(RouteBuffer(Some(limit))) => *limit,
            None => self.limit,
        };
        if end {
            return Opening::PASS;
        }
        stream.request_buffer_limit = limit;
        Opening::Open(Box::new(Buffering { length: 0 }))
    }
}

/// The filter at work.
struct Buffering {
    /// Bytes of the body so far.
    length: usize,
}

impl HttpStreamFilter for Buffering {
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        Step::Hold
    }

    fn on_request_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        self.length += data.len();
        if end { self.complete(stream) } else { Step::Hold }
    }

    fn on_request_trailers(
        &mut self,
        stream: &mut Stream,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        self.complete(stream)
    }
}

impl Buffering {
    fn complete(&self, stream: &mut Stream) -> Step {
        if self.length > stream.request_buffer_limit {
            return Step::Reply(stream.request_too_large());
        }
        if !stream.request.contains(Known::ContentLength) {
            stream.request.set(Known::ContentLength, self.length.to_string().as_bytes());
        }
        Step::Continue
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let buffer: proto::Buffer = at.unpack(any)?;
    Some(Arc::new(Buffer { limit: limit(buffer, at)? }))
}

fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::BufferPerRoute { r#override } = at.unpack(any)?;
    let limit = match r#override {
        Some(proto::buffer_per_route::Override::Disabled(disabled)) => {
            if !disabled {
                at.error_at("disabled", "value must equal true");
            }
            None
        }
        Some(proto::buffer_per_route::Override::Buffer(buffer)) => {
            Some(at.field("buffer", |at| limit(buffer, at))?)
        }
        None => {
            at.error("one of disabled and buffer is required");
            return None;
        }
    };
    Some(Arc::new(RouteBuffer(limit)))
}

fn limit(proto: proto::Buffer, at: &mut Lower) -> Option<usize> {
    let proto::Buffer { max_request_bytes } = proto;
    at.required("max_request_bytes", max_request_bytes, |limit, at| {
        if limit == 0 {
            at.error("value must be greater than 0");
        }
        usize::try_from(limit).ok()
    })
}
