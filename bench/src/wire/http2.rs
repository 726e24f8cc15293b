//! HTTP/2 as cheaply as two known ends can speak it (RFC 9113): frames in and out of byte
//! buffers, flow control kept, header blocks prepared once and never decoded.
//!
//! A proxy costs a few microseconds a request, so both ends must cost less. The price: of a
//! response only the status is read, which every encoder writes first and as one byte (RFC 7541,
//! static table), and requests are told apart by their END_STREAM flag.

use std::collections::HashMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Window that we give each stream, and how much of it may be used up before it is renewed.
const STREAM_WINDOW: u32 = 1 << 20;
const STREAM_RENEW: u32 = STREAM_WINDOW / 4;
/// The same of the connection.
const CONNECTION_WINDOW: u32 = 64 << 20;
const CONNECTION_RENEW: u32 = CONNECTION_WINDOW / 4;
/// Largest frame that is sent: what every peer must take.
const MAX_FRAME: usize = 16 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// What a frame says to the user of an endpoint.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A head or trailers.
    Head {
        /// Of this stream.
        stream: u32,
        /// A response with status 200 (meaningless for requests and trailers).
        ok: bool,
        /// The message ends with it.
        end: bool,
    },
    /// A piece of a body.
    Data {
        /// Of this stream.
        stream: u32,
        /// The bytes.
        data: &'a [u8],
        /// The message ends with it.
        end: bool,
    },
    /// The stream was reset.
    Reset {
        /// This one.
        stream: u32,
    },
    /// The peer accepts no more streams.
    GoAway,
}

/// A header block, as written first on a connection and as written from then on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    first: Vec<u8>,
    again: Vec<u8>,
    /// For peers without a dynamic table.
    plain: Vec<u8>,
}

impl Block {
    /// A block of entries of the static table and of literal fields, which go into the dynamic
    /// table at their first use. Only one block of a connection may do that.
    pub(crate) fn new(indexed: &[u8], fields: &[(&str, &str)]) -> Self {
        let mut block = Self::default();
        for part in [&mut block.first, &mut block.again, &mut block.plain] {
            part.extend(indexed.iter().map(|index| 0x80 | index));
        }
        for (number, (name, value)) in fields.iter().enumerate() {
            literal(&mut block.first, 0x40, name, value);
            literal(&mut block.plain, 0x00, name, value);
            // The newest entry is 62.
            block.again.push(0x80 | (62 + u8::try_from(fields.len() - 1 - number).unwrap_or(0)));
        }
        block
    }

    /// A block that leaves the dynamic table alone.
    pub(crate) fn unindexed(indexed: &[u8], fields: &[(&str, &str)]) -> Self {
        let plain = Self::new(indexed, fields).plain;
        Self { first: plain.clone(), again: plain.clone(), plain }
    }
}

fn literal(out: &mut Vec<u8>, kind: u8, name: &str, value: &str) {
    out.push(kind);
    for text in [name, value] {
        // Plain octets; lengths below 127 are one byte.
        out.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text"));
        out.extend_from_slice(text.as_bytes());
    }
}

/// A stream that has something to send, or has had.
#[derive(Debug)]
struct Outgoing {
    window: i64,
    pending: Vec<u8>,
    sent: usize,
    ends: Option<End>,
    /// Bytes received since the window was last renewed.
    consumed: u32,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its last byte.
    Data,
    /// With `grpc-status: 0`.
    Trailers,
}

/// One end of a connection. It reads from a buffer and writes to a buffer.
pub(crate) struct Endpoint {
    server: bool,
    started: bool,
    /// Send window of the connection.
    window: i64,
    /// Send window that new streams get.
    initial: i64,
    /// The peer has no dynamic table.
    tableless: bool,
    first_used: bool,
    streams: HashMap<u32, Outgoing>,
    consumed: u32,
    next_stream: u32,
    /// A header block goes on in CONTINUATION frames: its stream, whether it is a 200, whether
    /// the message ends.
    open_block: Option<(u32, bool, bool)>,
    trailers: Vec<u8>,
}

impl Endpoint {
    /// A client writes its preface at once, a server when it has the client's.
    pub(crate) fn new(server: bool, out: &mut Vec<u8>) -> Self {
        let mut trailers = Vec::new();
        literal(&mut trailers, 0, "grpc-status", "0");
        let endpoint = Self {
            server,
            started: !server,
            window: 65_535,
            initial: 65_535,
            tableless: false,
            first_used: false,
            streams: HashMap::new(),
            consumed: 0,
            next_stream: 1,
            open_block: None,
            trailers,
        };
        if !server {
            out.extend_from_slice(PREFACE);
        }
        frame(out, 12, SETTINGS, 0, 0);
        // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE
        out.extend_from_slice(&[0, 3, 0, 1, 0, 0, 0, 4]);
        out.extend_from_slice(&STREAM_WINDOW.to_be_bytes());
        frame(out, 4, WINDOW_UPDATE, 0, 0);
        out.extend_from_slice(&(CONNECTION_WINDOW - 65_535).to_be_bytes());
        endpoint
    }

    /// Opens a stream (client).
    pub(crate) fn open(&mut self, out: &mut Vec<u8>, block: &Block, end: bool) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.head(out, stream, block, end);
        stream
    }

    /// Writes a head.
    pub(crate) fn head(&mut self, out: &mut Vec<u8>, stream: u32, block: &Block, end: bool) {
        let bytes = if self.tableless {
            &block.plain
        } else if self.first_used {
            &block.again
        } else {
            self.first_used = true;
            &block.first
        };
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        frame(out, bytes.len(), HEADERS, flags, stream);
        out.extend_from_slice(bytes);
    }

    /// Sends a piece of a body, as far as the windows allow; the rest follows when they do.
    pub(crate) fn data(&mut self, out: &mut Vec<u8>, stream: u32, data: &[u8], end: Option<End>) {
        let known = self.streams.contains_key(&stream);
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let small = data.len() <= MAX_FRAME && length <= self.initial && length <= self.window;
        if !known && small && end == Some(End::Data) {
            // The ordinary case: a whole body in one frame.
            self.window -= length;
            frame(out, data.len(), DATA, END_STREAM, stream);
            out.extend_from_slice(data);
            return;
        }
        let outgoing = self.outgoing(stream);
        outgoing.pending.extend_from_slice(data);
        outgoing.ends = outgoing.ends.or(end);
        self.pump(out, stream);
    }

    fn outgoing(&mut self, stream: u32) -> &mut Outgoing {
        let window = self.initial;
        self.streams.entry(stream).or_insert_with(|| Outgoing {
            window,
            pending: Vec::new(),
            sent: 0,
            ends: None,
            consumed: 0,
        })
    }

    /// Sends what a stream's windows allow.
    fn pump(&mut self, out: &mut Vec<u8>, stream: u32) {
        let Some(outgoing) = self.streams.get_mut(&stream) else { return };
        loop {
            let waiting = outgoing.pending.len() - outgoing.sent;
            let room = usize::try_from(self.window.min(outgoing.window)).unwrap_or(0);
            let count = waiting.min(room).min(MAX_FRAME);
            let last = count == waiting && outgoing.ends == Some(End::Data);
            if count > 0 || (last && waiting == 0) {
                frame(out, count, DATA, if last { END_STREAM } else { 0 }, stream);
                out.extend_from_slice(
                    outgoing.pending.get(outgoing.sent..outgoing.sent + count).unwrap_or_default(),
                );
                outgoing.sent += count;
                self.window -= i64::try_from(count).unwrap_or(0);
                outgoing.window -= i64::try_from(count).unwrap_or(0);
            }
            if outgoing.sent == outgoing.pending.len() {
                outgoing.pending.clear();
                outgoing.sent = 0;
                if outgoing.ends == Some(End::Trailers) {
                    frame(out, self.trailers.len(), HEADERS, END_HEADERS | END_STREAM, stream);
                    out.extend_from_slice(&self.trailers);
                }
                if outgoing.ends.is_some() {
                    self.streams.remove(&stream);
                }
                return;
            }
            if count == 0 {
                return;
            }
        }
    }

    /// Takes all whole frames at the start of `input`; gives how many bytes that was.
    ///
    /// # Errors
    /// What the peer did wrong.
    pub(crate) fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut on_event: impl FnMut(&mut Self, &mut Vec<u8>, Event<'_>),
    ) -> Result<usize, String> {
        let mut at = 0;
        if !self.started {
            let Some(start) = input.get(..PREFACE.len()) else { return Ok(0) };
            if start != PREFACE {
                return Err("no HTTP/2 preface".to_owned());
            }
            self.started = true;
            at = PREFACE.len();
        }
        while let Some([a, b, c, kind, flags, s0, s1, s2, s3]) = input.get(at..at + 9) {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]) & 0x7fff_ffff;
            let Some(payload) = input.get(at + 9..at + 9 + length) else { break };
            at += 9 + length;
            self.frame(*kind, *flags, stream, payload, out, &mut on_event)?;
        }
        Ok(at)
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
        on_event: &mut impl FnMut(&mut Self, &mut Vec<u8>, Event<'_>),
    ) -> Result<(), String> {
        let end = flags & END_STREAM != 0;
        match kind {
            DATA => {
                let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                let data = unpadded(payload, flags)?;
                self.consumed += length;
                if self.consumed >= CONNECTION_RENEW {
                    window_update(out, 0, self.consumed);
                    self.consumed = 0;
                }
                // Whole bodies in one frame need no window of their own.
                if !end {
                    let outgoing = self.outgoing(stream);
                    outgoing.consumed += length;
                    if outgoing.consumed >= STREAM_RENEW {
                        window_update(out, stream, outgoing.consumed);
                        outgoing.consumed = 0;
                    }
                } else if !self.server {
                    self.streams.remove(&stream);
                }
                on_event(self, out, Event::Data { stream, data, end });
            }
            HEADERS => {
                let block = unpadded(payload, flags)?;
                let block = if flags & PRIORITY == 0 { block } else { block.get(5..).unwrap_or_default() };
                // Changes of the table's size may stand in front.
                let status = block.iter().find(|byte| *byte & 0xe0 != 0x20);
                self.block(stream, flags, status == Some(&0x88), end, out, on_event);
            }
            CONTINUATION => {
                let Some((_, ok, end)) = self.open_block.take() else {
                    return Err("CONTINUATION without HEADERS".to_owned());
                };
                self.block(stream, flags, ok, end, out, on_event);
            }
            RST_STREAM => {
                self.streams.remove(&stream);
                on_event(self, out, Event::Reset { stream });
            }
            SETTINGS if flags & ACK == 0 => self.settings(payload, out),
            PING if flags & ACK == 0 => {
                frame(out, payload.len(), PING, ACK, 0);
                out.extend_from_slice(payload);
            }
            GOAWAY => on_event(self, out, Event::GoAway),
            WINDOW_UPDATE => {
                let Some(bytes) = payload.first_chunk() else { return Err("short WINDOW_UPDATE".to_owned()) };
                let more = i64::from(u32::from_be_bytes(*bytes) & 0x7fff_ffff);
                if stream == 0 {
                    self.window += more;
                    let waiting: Vec<u32> = self.streams.keys().copied().collect();
                    for stream in waiting {
                        self.pump(out, stream);
                    }
                } else if let Some(outgoing) = self.streams.get_mut(&stream) {
                    outgoing.window += more;
                    self.pump(out, stream);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn block(
        &mut self,
        stream: u32,
        flags: u8,
        ok: bool,
        end: bool,
        out: &mut Vec<u8>,
        on_event: &mut impl FnMut(&mut Self, &mut Vec<u8>, Event<'_>),
    ) {
        if flags & END_HEADERS == 0 {
            self.open_block = Some((stream, ok, end));
            return;
        }
        if end && !self.server {
            self.streams.remove(&stream);
        }
        on_event(self, out, Event::Head { stream, ok, end });
    }

    fn settings(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let (settings, _) = payload.as_chunks::<6>();
        for [i0, i1, v0, v1, v2, v3] in settings {
            let value = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
            match u16::from_be_bytes([*i0, *i1]) {
                1 => self.tableless = value < 4096,
                4 => {
                    let change = i64::from(value) - self.initial;
                    self.initial = i64::from(value);
                    for outgoing in self.streams.values_mut() {
                        outgoing.window += change;
                    }
                }
                _ => {}
            }
        }
        frame(out, 0, SETTINGS, ACK, 0);
        let waiting: Vec<u32> = self.streams.keys().copied().collect();
        for stream in waiting {
            self.pump(out, stream);
        }
    }
}

/// A frame's payload without padding.
fn unpadded(payload: &[u8], flags: u8) -> Result<&[u8], String> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or("padded and empty")?;
    let length = rest.len().checked_sub(usize::from(*padding)).ok_or("more padding than payload")?;
    Ok(rest.get(..length).unwrap_or_default())
}

fn window_update(out: &mut Vec<u8>, stream: u32, more: u32) {
    frame(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&more.to_be_bytes());
}

fn frame(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}
