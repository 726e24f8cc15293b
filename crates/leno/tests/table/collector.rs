//! The collector of spans among the back ends: Zipkin's over HTTP, OpenTelemetry's over gRPC.
//!
//! Which row a span belongs to its tag `row` says, which Telemetry has to ask for.

use std::collections::BTreeMap;

use crate::collect;

/// The tag that says which row a span belongs to.
pub(crate) const ROW: &str = "row";

const ZIPKIN: &str = "/api/v2/spans";
const OTLP: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The length of what precedes a message of gRPC.
const PREFIX: usize = 5;

/// A span: its tags, and its `name`, `kind` and `of` (whose it is) among them.
#[derive(Clone, Debug)]
pub(crate) struct Span(BTreeMap<String, String>);

impl Span {
    /// The value of a tag.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The spans in a request, if it is one to a collector.
pub(crate) fn read(path: &str, body: &[u8]) -> Option<Vec<Span>> {
    let (spans, of) = match path {
        ZIPKIN => (collect::zipkin(body), None),
        OTLP => {
            let (spans, of) = collect::otlp(body.get(PREFIX..)?);
            (spans, Some(of))
        }
        _ => return None,
    };
    let named = spans.into_iter().map(|span| {
        let mut all = span.tags;
        all.insert("name".to_owned(), span.name);
        all.insert("kind".to_owned(), span.kind);
        all.insert("of".to_owned(), of.clone().unwrap_or(span.more));
        Span(all)
    });
    Some(named.collect())
}
