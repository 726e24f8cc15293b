//! B3 propagation: `x-b3-*`, or all of it in a single `b3`.

use std::num::NonZeroU64;

use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::trace::context::{SpanContext, hex, number, number64};
use crate::telemetry::trace::w3c::Invalid;

/// What a request says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The span that sent it; whether that is sampled is `sampled`.
    pub(crate) context: Option<SpanContext>,
    /// Whether it is to be sampled, if it says so.
    pub(crate) sampled: Option<bool>,
    /// It does so in a single header.
    pub(crate) single: bool,
}

/// Reads what a request says.
///
/// # Errors
/// There is something that makes no sense.
pub(crate) fn read(head: &HeaderMap) -> Result<Told, Invalid> {
    if let Some(text) = head.get(Known::B3) {
        return read_single(text).ok_or(Invalid);
    }
    let sampled = head.get(Known::XB3Sampled).map(|value| matches!(value, b"1" | b"true"));
    let (Some(trace), Some(span)) = (head.get(Known::XB3Traceid), head.get(Known::XB3Spanid)) else {
        return Ok(Told { context: None, sampled, single: false });
    };
    let parent = match head.get(Known::XB3Parentspanid).filter(|parent| !parent.is_empty()) {
        Some(parent) => NonZeroU64::new(number64(parent).ok_or(Invalid)?),
        None => None,
    };
    // Only what has all digits of a large one is a large one.
    let trace = if trace.len() == 32 { number(trace) } else { number64(trace).map(u128::from) };
    let (trace, span) = (trace.ok_or(Invalid)?, number64(span).ok_or(Invalid)?);
    let context = SpanContext { trace, span, parent, sampled: false };
    Ok(Told { context: Some(context), sampled, single: false })
}

/// `TRACE-SPAN[-FLAG[-PARENT]]`, or a flag alone.
fn read_single(text: &[u8]) -> Option<Told> {
    let flag = |text: &[u8]| match text {
        b"0" => Some(false),
        b"1" | b"d" => Some(true),
        _ => None,
    };
    if let [_] = text {
        return Some(Told { context: None, sampled: Some(flag(text)?), single: true });
    }
    let wide = text.get(32) == Some(&b'-');
    let (trace, [b'-', rest @ ..]) = text.split_at_checked(if wide { 32 } else { 16 })? else { return None };
    let (span, rest) = rest.split_at_checked(16)?;
    let (sampled, rest) = match rest {
        [] => (None, rest),
        [b'-', one, rest @ ..] => (Some(flag(std::slice::from_ref(one))?), rest),
        _ => return None,
    };
    let parent = match rest {
        [] => None,
        [b'-', parent @ ..] if parent.len() == 16 => NonZeroU64::new(number64(parent)?),
        _ => return None,
    };
    let context = SpanContext { trace: number(trace)?, span: number64(span)?, parent, sampled: false };
    Some(Told { context: Some(context), sampled, single: true })
}

/// Says to the next one where it is, in the form in which it came.
pub(crate) fn write(context: SpanContext, single: bool, head: &mut HeaderMap) {
    let (trace, span) = (context.trace_text(false), hex::<16>(context.span.into()));
    let sampled: &[u8] = if context.sampled { b"1" } else { b"0" };
    let parent = context.parent.map(|parent| hex::<16>(parent.get().into()));
    if single {
        let mut text = [trace.bytes(), &span, sampled].join(&b'-');
        if let Some(parent) = parent {
            text.push(b'-');
            text.extend_from_slice(&parent);
        }
        return head.set(Known::B3, &text);
    }
    head.set(Known::XB3Traceid, trace.bytes());
    head.set(Known::XB3Spanid, &span);
    if let Some(parent) = parent {
        head.set(Known::XB3Parentspanid, &parent);
    }
    head.set(Known::XB3Sampled, sampled);
}
