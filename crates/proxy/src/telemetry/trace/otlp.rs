//! Spans as OpenTelemetry's collectors read them (opentelemetry.proto.trace.v1).

use std::time::SystemTime;

use crate::telemetry::trace::tracer::failed;
use crate::telemetry::trace::wire::{bytes, fixed32, fixed64, message, number, present};
use crate::telemetry::trace::{Ended, Kind};

/// Service and method that take reports.
pub(super) const SERVICE: (&str, &str) = ("opentelemetry.proto.collector.trace.v1.TraceService", "Export");

/// Appends a Span as a field of ScopeSpans.
pub(super) fn span(span: &Ended<'_>, out: &mut Vec<u8>) {
    const SPANS: u32 = 2;
    message(SPANS, out, |out| {
        let context = &span.context;
        bytes(1, &context.trace.to_be_bytes(), out);
        bytes(2, &context.span.to_be_bytes(), out);
        bytes(3, span.state.as_bytes(), out);
        if let Some(parent) = context.parent {
            bytes(4, &parent.get().to_be_bytes(), out);
        }
        bytes(5, span.name.as_bytes(), out);
        let kind = match span.kind {
            Kind::Server => 2,
            Kind::Client => 3,
        };
        number(6, kind, out);
        fixed64(7, nanos(span.start), out);
        fixed64(8, nanos(span.end), out);
        for (name, value) in span.tags.iter() {
            let value = if name == "http.method" { method(value) } else { value };
            message(9, out, |out| attribute(name, value, out));
        }
        for (at, name) in span.events {
            message(11, out, |out| {
                fixed64(1, nanos(*at), out);
                bytes(2, name.as_bytes(), out);
            });
        }
        if let Some(failed) = failed(span.kind, span.tags) {
            const ERROR: u64 = 2;
            message(15, out, |out| number(3, if failed { ERROR } else { 0 }, out));
        }
        // W3C's flags, that it is known where the parent is, and where it is.
        fixed32(16, u32::from(context.sampled) | 0x100 | u32::from(span.remote_parent) << 9, out);
    });
}

/// A method's name, if it is one that the conventions know.
fn method(name: &str) -> &str {
    match name {
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" => name,
        _ => "_OTHER",
    }
}

/// Appends a KeyValue's fields.
pub(super) fn attribute(name: &str, value: &str, out: &mut Vec<u8>) {
    bytes(1, name.as_bytes(), out);
    // An AnyValue; an empty text is one.
    message(2, out, |out| present(1, value.as_bytes(), out));
}

/// An ExportTraceServiceRequest.
pub(super) fn report(resource: &[u8], scope: &[u8], spans: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(resource.len() + scope.len() + spans.len() + 32);
    message(1, &mut out, |out| {
        present(1, resource, out);
        message(2, out, |out| {
            bytes(1, scope, out);
            out.extend_from_slice(spans);
        });
    });
    out
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
