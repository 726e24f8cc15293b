//! Spans as Zipkin's collectors read them (version 2 of its API), in JSON and in protobuf.

use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use crate::http::normalize::own_address;
use crate::telemetry::trace::context::hex;
use crate::telemetry::trace::tracer::Zipkin;
use crate::telemetry::trace::wire::{bytes, fixed64, message, number};
use crate::telemetry::trace::{Ended, Kind};

/// Spans name the machine's address in place of this one.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Whether a span has its identifier from the one that caused it, or may have.
fn is_shared(zipkin: &Zipkin, span: &Ended<'_>) -> bool {
    zipkin.shared && span.kind == Kind::Server
}

/// What a span's end is called.
fn end_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "ss",
        Kind::Client => "cr",
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn duration(span: &Ended<'_>) -> u64 {
    let took = span.end.duration_since(span.start).unwrap_or_default();
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Appends a span to others in JSON.
pub(super) fn json(zipkin: &Zipkin, span: &Ended<'_>, out: &mut Vec<u8>) {
    if !out.is_empty() {
        out.push(b',');
    }
    let (context, address) = (&span.context, own_address(LOOPBACK));
    out.extend_from_slice(b"{\"traceId\":\"");
    out.extend_from_slice(context.trace_text(false).bytes());
    if let Some(parent) = context.parent {
        out.extend_from_slice(b"\",\"parentId\":\"");
        out.extend_from_slice(&hex::<16>(parent.get().into()));
    }
    out.extend_from_slice(b"\",\"id\":\"");
    out.extend_from_slice(&hex::<16>(context.span.into()));
    out.extend_from_slice(match span.kind {
        Kind::Server => b"\",\"kind\":\"SERVER\"".as_slice(),
        Kind::Client => b"\",\"kind\":\"CLIENT\"".as_slice(),
    });
    if !span.name.is_empty() {
        out.extend_from_slice(b",\"name\":");
        text(span.name, out);
    }
    out.extend_from_slice(
        format!(",\"timestamp\":{},\"duration\":{}", micros(span.start), duration(span)).as_bytes(),
    );
    out.extend_from_slice(match address {
        IpAddr::V4(_) => b",\"localEndpoint\":{\"ipv4\":\"".as_slice(),
        IpAddr::V6(_) => b",\"localEndpoint\":{\"ipv6\":\"".as_slice(),
    });
    out.extend_from_slice(address.to_string().as_bytes());
    out.extend_from_slice(b"\",\"port\":0");
    if !zipkin.service.is_empty() {
        out.extend_from_slice(b",\"serviceName\":");
        text(&zipkin.service, out);
    }
    out.extend_from_slice(b"},\"tags\":{");
    let tags = span.tags.iter().filter(|(_, value)| !value.is_empty());
    for (index, (name, value)) in tags.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        text(name, out);
        out.push(b':');
        text(value, out);
    }
    out.extend_from_slice(b"},\"annotations\":[");
    let end = (span.end, end_of(span.kind));
    for (index, (at, name)) in span.events.iter().copied().chain([end]).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(format!("{{\"timestamp\":{},\"value\":\"{name}\"}}", micros(at)).as_bytes());
    }
    out.push(b']');
    if is_shared(zipkin, span) {
        out.extend_from_slice(b",\"shared\":true");
    }
    out.push(b'}');
}

/// Appends a text in JSON.
fn text(text: &str, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// Appends a span as a field of ListOfSpans.
///
/// Deviation: identifiers of spans are written in network order, as the format says; Envoy
/// writes those of traces so, and those of spans the other way round.
pub(super) fn proto(zipkin: &Zipkin, span: &Ended<'_>, out: &mut Vec<u8>) {
    message(1, out, |out| {
        let (context, address) = (&span.context, own_address(LOOPBACK));
        let trace = context.trace.to_be_bytes();
        let from = if context.trace >> 64 == 0 { 8 } else { 0 };
        bytes(1, trace.get(from..).unwrap_or_default(), out);
        if let Some(parent) = context.parent {
            bytes(2, &parent.get().to_be_bytes(), out);
        }
        bytes(3, &context.span.to_be_bytes(), out);
        let kind = match span.kind {
            Kind::Client => 1,
            Kind::Server => 2,
        };
        number(4, kind, out);
        bytes(5, span.name.as_bytes(), out);
        fixed64(6, micros(span.start), out);
        number(7, duration(span), out);
        message(8, out, |out| {
            bytes(1, zipkin.service.as_bytes(), out);
            match address {
                IpAddr::V4(address) => bytes(2, &address.octets(), out),
                IpAddr::V6(address) => bytes(3, &address.octets(), out),
            }
        });
        let end = (span.end, end_of(span.kind));
        for (at, name) in span.events.iter().copied().chain([end]) {
            message(10, out, |out| {
                fixed64(1, micros(at), out);
                bytes(2, name.as_bytes(), out);
            });
        }
        for (name, value) in span.tags.iter().filter(|(_, value)| !value.is_empty()) {
            message(11, out, |out| {
                bytes(1, name.as_bytes(), out);
                bytes(2, value.as_bytes(), out);
            });
        }
        number(13, is_shared(zipkin, span).into(), out);
    });
}
