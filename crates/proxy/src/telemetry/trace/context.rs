//! Identifiers of traces and spans, and their texts.

use std::num::NonZeroU64;

/// A span's place in its trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpanContext {
    /// The trace; those of 64 bits have nothing above.
    pub(crate) trace: u128,
    /// The span.
    pub(crate) span: u64,
    /// The span that caused it.
    pub(crate) parent: Option<NonZeroU64>,
    /// Whether it is reported.
    pub(crate) sampled: bool,
}

impl SpanContext {
    /// The context of a span that this one causes.
    pub(crate) fn child(self, random: u64) -> Self {
        Self { span: random.max(1), parent: NonZeroU64::new(self.span), ..self }
    }

    /// The trace's text: 32 digits if it has so many, or always has.
    pub(crate) fn trace_text(self, wide: bool) -> TraceText {
        TraceText { digits: hex(self.trace), from: if wide || self.trace >> 64 != 0 { 0 } else { 16 } }
    }
}

/// The text of a trace's identifier.
pub(crate) struct TraceText {
    digits: [u8; 32],
    from: usize,
}

impl TraceText {
    /// The digits.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.digits.get(self.from..).unwrap_or_default()
    }
}

/// The last `N` hexadecimal digits of a number.
pub(crate) fn hex<const N: usize>(number: u128) -> [u8; N] {
    std::array::from_fn(|index| {
        let digit = (number >> (4 * (N - 1 - index)) & 15) as u8;
        if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
    })
}

/// The number that hexadecimal digits are; none if there are none, others, or too many.
pub(crate) fn number(digits: &[u8]) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u128::from(digit))
    })
}

/// The same, of 64 bits.
pub(crate) fn number64(digits: &[u8]) -> Option<u64> {
    u64::try_from(number(digits)?).ok()
}
