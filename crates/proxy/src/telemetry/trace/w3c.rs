//! `traceparent` and `tracestate` (W3C Trace Context).

use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::trace::context::{SpanContext, hex, number, number64};

/// A context that is there and makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// The context of the span that sent a request; `None`: it does not say.
///
/// # Errors
/// What it says is none. Like Envoy, whatever its version, it must be as long as version 00.
pub(crate) fn read(head: &HeaderMap) -> Result<Option<SpanContext>, Invalid> {
    match head.get(Known::Traceparent) {
        None => Ok(None),
        Some(text) => parse(text).map(Some).ok_or(Invalid),
    }
}

fn parse(text: &[u8]) -> Option<SpanContext> {
    let text: &[u8; 55] = text.try_into().ok()?;
    let (version, [b'-', rest @ ..]) = text.split_first_chunk::<2>()? else { return None };
    let (trace, [b'-', rest @ ..]) = rest.split_first_chunk::<32>()? else { return None };
    let (span, [b'-', flags @ ..]) = rest.split_first_chunk::<16>()? else { return None };
    number(version)?;
    let (trace, span, flags) = (number(trace)?, number64(span)?, number64(flags)?);
    (trace != 0 && span != 0).then_some(SpanContext { trace, span, parent: None, sampled: flags & 1 != 0 })
}

/// Says to the next one where it is.
pub(crate) fn write_parent(context: SpanContext, head: &mut HeaderMap) {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let [_, _, _, rest @ ..] = &mut text;
    let (trace, rest) = rest.split_at_mut(32);
    trace.copy_from_slice(&hex::<32>(context.trace));
    if let Some(span) = rest.get_mut(1..17) {
        span.copy_from_slice(&hex::<16>(context.span.into()));
    }
    if let Some(flag) = rest.last_mut().filter(|_| context.sampled) {
        *flag = b'1';
    }
    head.set(Known::Traceparent, &text);
}

/// Passes on `tracestate`: in one line, and nothing of it to whom no `traceparent` came.
pub(crate) fn write_state(with_parent: bool, head: &mut HeaderMap) {
    if !with_parent {
        head.set(Known::Tracestate, b"");
    } else if let Some(joined) = joined_state(head) {
        head.set(Known::Tracestate, &joined);
    } else if !head.contains(Known::Tracestate) {
        head.append_known(Known::Tracestate, b"");
    }
}

/// What `tracestate` says if it comes in several lines.
pub(crate) fn joined_state(head: &HeaderMap) -> Option<Vec<u8>> {
    let mut lines = head.find_all(Known::Tracestate.text());
    let first = lines.next()?;
    let mut joined = first.to_vec();
    let mut several = false;
    for line in lines {
        several = true;
        joined.push(b',');
        joined.extend_from_slice(line);
    }
    several.then_some(joined)
}
