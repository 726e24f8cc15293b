//! The headers that a service hands on from the request it serves to the requests it makes.
//!
//! A mesh makes a trace out of single hops only if the applications in between copy these: the
//! proxy cannot know which incoming request caused which outgoing one.

use http::{HeaderMap, HeaderName};

/// Tracing contexts of the usual systems, and what says on whose behalf the request is made.
const PROPAGATED: &[&str] = &[
    "x-request-id",
    // W3C trace context
    "traceparent",
    "tracestate",
    // Zipkin, as one header and as several
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    // Lightstep, Datadog, Google Cloud, gRPC, SkyWalking
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "sw8",
    // The caller: routing rules and policies deeper in the mesh may look at these
    "end-user",
    "user-agent",
    "authorization",
    "jwt",
    "cookie",
];

/// The part of `incoming` that goes out again, every value of it.
pub(crate) fn propagated(incoming: &HeaderMap) -> HeaderMap {
    let mut outgoing = HeaderMap::new();
    for &name in PROPAGATED {
        for value in incoming.get_all(name) {
            outgoing.append(HeaderName::from_static(name), value.clone());
        }
    }
    outgoing
}

#[cfg(test)]
mod tests {
    use super::{PROPAGATED, propagated};
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn keeps_every_value_of_the_listed_names_only() {
        let mut incoming = HeaderMap::new();
        for &name in PROPAGATED {
            incoming.append(name, HeaderValue::from_static("first"));
        }
        incoming.append("cookie", HeaderValue::from_static("second"));
        for name in ["host", "content-length", "accept", "x-forwarded-for"] {
            incoming.append(name, HeaderValue::from_static("stays"));
        }
        let outgoing = propagated(&incoming);
        assert_eq!(outgoing.keys_len(), PROPAGATED.len());
        assert_eq!(outgoing.len(), PROPAGATED.len() + 1);
        assert_eq!(outgoing.get_all("cookie").iter().count(), 2);
    }
}
