//! Frames: their heads, and how each kind is written (RFC 9113 sections 4 and 6).

/// Bytes of a frame's head.
pub(crate) const HEAD: usize = 9;
/// The largest payload that everybody takes (`SETTINGS_MAX_FRAME_SIZE`'s initial value).
pub(crate) const DEFAULT_MAX_FRAME: usize = 16_384;

/// Kinds of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Parameters of SETTINGS (RFC 9113 section 6.5.2, RFC 8441 section 3).
pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// An error code (RFC 9113 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reason(pub(crate) u32);

impl Reason {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const INTERNAL_ERROR: Self = Self(2);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const STREAM_CLOSED: Self = Self(5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Bytes of the payload.
    pub(crate) len: usize,
    /// See `kind`.
    pub(crate) kind: u8,
    /// See `flag`.
    pub(crate) flags: u8,
    /// The stream; 0: the connection.
    pub(crate) stream: u32,
}

impl FrameHead {
    /// Reads the head at the beginning of `bytes`, if all of it is there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, rest @ ..] = bytes.first_chunk::<HEAD>()?;
        Some(Self {
            len: u32::from_be_bytes([0, *a, *b, *c]) as usize,
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes(*rest) & 0x7fff_ffff,
        })
    }

    /// Whether a flag is set.
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> [u8; HEAD] {
        let [_, a, b, c] = (self.len as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }
}

/// A payload without its padding (RFC 9113 section 6.1); `None`: there is more padding than
/// payload.
pub(crate) fn unpad(payload: &[u8], padded: bool) -> Option<&[u8]> {
    if !padded {
        return Some(payload);
    }
    let (padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*padding))?)
}

/// The number at the beginning of a payload.
pub(crate) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&FrameHead { len: payload.len(), kind, flags, stream }.bytes());
    out.extend_from_slice(payload);
}

/// Writes DATA.
pub(crate) fn data(out: &mut Vec<u8>, stream: u32, data: &[u8], end: bool) {
    write(out, kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, data);
}

/// Writes RST_STREAM.
pub(crate) fn rst_stream(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    write(out, kind::RST_STREAM, 0, stream, &reason.0.to_be_bytes());
}

/// Writes SETTINGS.
pub(crate) fn settings(out: &mut Vec<u8>, parameters: &[(u16, u32)]) {
    let len = parameters.len() * 6;
    out.extend_from_slice(&FrameHead { len, kind: kind::SETTINGS, flags: 0, stream: 0 }.bytes());
    for (identifier, value) in parameters {
        out.extend_from_slice(&identifier.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Acknowledges SETTINGS.
pub(crate) fn settings_ack(out: &mut Vec<u8>) {
    write(out, kind::SETTINGS, flag::ACK, 0, &[]);
}

/// Writes PING, or answers one.
pub(crate) fn ping(out: &mut Vec<u8>, payload: [u8; 8], ack: bool) {
    write(out, kind::PING, if ack { flag::ACK } else { 0 }, 0, &payload);
}

/// Writes GOAWAY.
pub(crate) fn goaway(out: &mut Vec<u8>, last: u32, reason: Reason) {
    let mut payload = [0; 8];
    let (first, second) = payload.split_at_mut(4);
    first.copy_from_slice(&last.to_be_bytes());
    second.copy_from_slice(&reason.0.to_be_bytes());
    write(out, kind::GOAWAY, 0, 0, &payload);
}

/// Writes WINDOW_UPDATE.
pub(crate) fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    write(out, kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
}

/// Writes a header block behind `start`, where room for a frame's head was left in front of it, as
/// HEADERS and as many CONTINUATIONs as it takes. Gives the number of frames.
pub(crate) fn finish_headers(out: &mut Vec<u8>, start: usize, stream: u32, end: bool, max: usize) -> usize {
    let len = out.len() - start - HEAD;
    let end_stream = if end { flag::END_STREAM } else { 0 };
    if len <= max {
        patch(
            out,
            start,
            FrameHead { len, kind: kind::HEADERS, flags: end_stream | flag::END_HEADERS, stream },
        );
        return 1;
    }
    let rest = out.split_off(start + HEAD + max);
    patch(out, start, FrameHead { len: max, kind: kind::HEADERS, flags: end_stream, stream });
    let chunks = rest.chunks(max);
    let count = chunks.len();
    for (index, chunk) in chunks.enumerate() {
        let flags = if index + 1 == count { flag::END_HEADERS } else { 0 };
        write(out, kind::CONTINUATION, flags, stream, chunk);
    }
    1 + count
}

fn patch(out: &mut [u8], start: usize, head: FrameHead) {
    if let Some(place) = out.get_mut(start..start + HEAD) {
        place.copy_from_slice(&head.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameHead, HEAD, finish_headers, kind, unpad};

    #[test]
    fn heads_survive() {
        let head = FrameHead { len: 0x0001_0203, kind: kind::PING, flags: 0x5a, stream: 0x7fff_fffe };
        assert_eq!(FrameHead::parse(&head.bytes()), Some(head));
        assert_eq!(FrameHead::parse(&head.bytes()[..8]), None);
        let mut reserved = head.bytes();
        reserved[5] |= 0x80;
        assert_eq!(FrameHead::parse(&reserved), Some(head), "the reserved bit is ignored");
    }

    #[test]
    fn padding_is_taken_off() {
        assert_eq!(unpad(&[2, 7, 0, 0], true), Some(&[7][..]));
        assert_eq!(unpad(&[2, 0, 0], true), Some(&[][..]));
        assert_eq!(unpad(&[3, 0, 0], true), None);
        assert_eq!(unpad(&[], true), None);
        assert_eq!(unpad(&[3, 0], false), Some(&[3, 0][..]));
    }

    #[test]
    fn long_blocks_are_continued() {
        let mut out = vec![9; 3];
        out.resize(3 + HEAD + 25, 1);
        assert_eq!(finish_headers(&mut out, 3, 5, true, 10), 3);
        let mut rest = &out[3..];
        let mut seen = Vec::new();
        while let Some(head) = FrameHead::parse(rest) {
            seen.push((head.len, head.kind, head.flags));
            rest = &rest[HEAD + head.len..];
        }
        assert_eq!(seen, [(10, 1, 1), (10, 9, 0), (5, 9, 4)]);
    }
}
