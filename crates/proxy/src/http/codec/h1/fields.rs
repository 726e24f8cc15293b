//! Fields that speak of this connection only (`connection`, `te`) or of how the message is framed
//! (`content-length`, `transfer-encoding`): what they say together.

use std::ops::Range;

use crate::http::codec::{CODEC_ERROR, CodecError};

/// Most words of a request's `connection` headers, as in Envoy.
const MOST_WORDS: usize = 9;

/// Most bytes of a `te` that `connection` names, as in Envoy.
pub(super) const MOST_TE: usize = 256;

/// Where `trailers` stands in a list of what a client takes.
pub(super) fn trailers_token(value: &[u8]) -> Option<Range<usize>> {
    let mut start = 0;
    for part in value.split(|byte| *byte == b',') {
        let leading = part.len() - part.trim_ascii_start().len();
        let token = part.trim_ascii();
        if token.eq_ignore_ascii_case(b"trailers") {
            return Some(start + leading..start + leading + token.len());
        }
        start += part.len() + 1;
    }
    None
}

/// What a `connection` header says.
#[derive(Default)]
pub(super) struct Connection<'a> {
    /// Where the last value is, as it was written.
    pub(super) text: Range<usize>,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Names of other headers that speak of this connection only, as far as they may go.
    pub(super) named: smallvec::SmallVec<[&'a [u8]; 2]>,
    /// Words of all values.
    words: usize,
}

impl<'a> Connection<'a> {
    pub(super) fn read(&mut self, value: &'a [u8], text: Range<usize>) {
        self.text = text;
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.is_empty() {
                continue;
            }
            self.words += 1;
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if self.words <= MOST_WORDS {
                self.named.push(token);
            }
        }
    }

    /// Whether it would take off what says where the request comes from or goes to, or a `te` as
    /// large as no honest one, or names more than it has reason to: Envoy refuses these too.
    pub(super) fn is_refused(&self, oversized_te: bool) -> bool {
        const FORWARDING: [&[u8]; 3] = [b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];
        self.words > MOST_WORDS
            || self.named.iter().any(|named| {
                named.contains(&b':')
                    || FORWARDING.iter().any(|name| named.eq_ignore_ascii_case(name))
                    || (oversized_te && named.eq_ignore_ascii_case(b"te"))
            })
    }
}

/// What content-length and transfer-encoding say.
#[derive(Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    pub(super) fn length(&mut self, value: &[u8]) -> Result<(), CodecError> {
        // A list of equal lengths is legal to accept; Envoy refuses it, and so do we.
        if value.is_empty()
            || value.len() > 19
            || !value.iter().all(u8::is_ascii_digit)
            || self.length.is_some()
        {
            return Err(CODEC_ERROR);
        }
        self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    pub(super) fn encoding(&mut self, value: &[u8], request: bool) -> Result<(), CodecError> {
        if value.eq_ignore_ascii_case(b"chunked") && !self.chunked {
            self.chunked = true;
            return Ok(());
        }
        let status = if request { 501 } else { 502 };
        Err(CodecError { status, details: "http1.invalid_transfer_encoding" })
    }
}
