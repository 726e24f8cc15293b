//! Bodies of HTTP/1 messages: what is left to read of one (RFC 9112 section 6 and 7), and how
//! one is written.

use bytes::{Buf, Bytes, BytesMut};

use crate::http::codec::buffer::Output;
use crate::http::codec::{BodyLength, CODEC_ERROR, CodecError, Frame};
use crate::http::headers::{HeaderMap, KnownSet};

/// Longest chunk-size line with extensions; Envoy limits extensions likewise.
const MAX_CHUNK_LINE: usize = 4096;
/// Longest trailer section.
const MAX_TRAILERS: usize = 60 * 1024;
/// Most fields of it.
const MAX_TRAILER_FIELDS: usize = 64;

/// What is left to read of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyReader {
    /// Nothing: the message is complete.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// All until the peer closes.
    UntilClose,
}

/// Where the reader is in chunked coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Before a chunk-size line.
    Size,
    /// Inside chunk data.
    Data(u64),
    /// Before the CRLF behind chunk data.
    DataEnd,
    /// Behind the last chunk.
    Trailers,
}

impl BodyReader {
    /// A reader for a body of this length.
    pub(crate) fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::Empty | BodyLength::Known(0) => BodyReader::Done,
            BodyLength::Known(length) => BodyReader::Length(length),
            BodyLength::Chunked => BodyReader::Chunked(Chunk::Size),
            BodyLength::UntilClose => BodyReader::UntilClose,
        }
    }

    /// Whether the message is complete.
    pub(crate) fn is_done(self) -> bool {
        self == BodyReader::Done
    }

    /// Bytes that follow with no framing among them: they may pass without being looked at. 0: there
    /// are none such.
    pub(crate) fn unframed(self) -> u64 {
        match self {
            BodyReader::Length(left) => left,
            BodyReader::UntilClose => u64::MAX,
            BodyReader::Done | BodyReader::Chunked(_) => 0,
        }
    }

    /// So many of the bytes without framing have passed.
    pub(crate) fn pass(&mut self, count: u64) {
        if let BodyReader::Length(left) = self {
            *left = left.saturating_sub(count);
            if *left == 0 {
                *self = BodyReader::Done;
            }
        }
    }

    /// The next piece in `input`; `None`: more input is needed.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        loop {
            match *self {
                BodyReader::Done => return Ok(Some(Frame::End)),
                BodyReader::Length(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let data = split(input, left);
                    let left = left - data.len() as u64;
                    *self = if left == 0 { BodyReader::Done } else { BodyReader::Length(left) };
                    return Ok(Some(Frame::Data { data, end: left == 0 }));
                }
                BodyReader::UntilClose => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    return Ok(Some(Frame::Data { data: split(input, u64::MAX), end: false }));
                }
                BodyReader::Chunked(Chunk::Size) => match chunk_size(input)? {
                    None => return Ok(None),
                    Some(0) => *self = BodyReader::Chunked(Chunk::Trailers),
                    Some(size) => *self = BodyReader::Chunked(Chunk::Data(size)),
                },
                BodyReader::Chunked(Chunk::Data(left)) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let data = split(input, left);
                    let left = left - data.len() as u64;
                    *self = BodyReader::Chunked(if left == 0 { Chunk::DataEnd } else { Chunk::Data(left) });
                    return Ok(Some(Frame::Data { data, end: false }));
                }
                BodyReader::Chunked(Chunk::DataEnd) => match input.as_ref() {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        *self = BodyReader::Chunked(Chunk::Size);
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(CODEC_ERROR),
                },
                BodyReader::Chunked(Chunk::Trailers) => {
                    let Some(trailers) = trailers(input)? else { return Ok(None) };
                    *self = BodyReader::Done;
                    return Ok(Some(trailers.map_or(Frame::End, Frame::Trailers)));
                }
            }
        }
    }
}

fn split(input: &mut BytesMut, limit: u64) -> Bytes {
    let count = usize::try_from(limit).unwrap_or(usize::MAX).min(input.len());
    // Copying small pieces was measured to cost more: buffers that come back are shared for good.
    input.split_to(count).freeze()
}

/// Reads a chunk-size line: hexadecimal digits, extensions ignored, CRLF.
fn chunk_size(input: &mut BytesMut) -> Result<Option<u64>, CodecError> {
    let Some(end) = memchr::memchr(b'\n', input.get(..input.len().min(MAX_CHUNK_LINE)).unwrap_or_default())
    else {
        // A size that is wrong already need not be complete.
        let digits = input.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let wrong = match input.get(digits) {
            Some(b';' | b' ' | b'\t') => digits == 0,
            Some(b'\r') => digits == 0 || input.len() > digits + 1,
            Some(_) => true,
            None => digits > 16,
        };
        return if wrong || input.len() >= MAX_CHUNK_LINE { Err(CODEC_ERROR) } else { Ok(None) };
    };
    let line = input.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(CODEC_ERROR)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, rest) = line.split_at(digits);
    if size.is_empty() || size.len() > 16 {
        return Err(CODEC_ERROR);
    }
    let extension = rest.iter().skip_while(|byte| matches!(byte, b' ' | b'\t')).copied();
    let mut extension = extension.peekable();
    if extension.peek().is_some_and(|first| *first != b';')
        || rest.iter().any(|byte| matches!(byte, b'\r' | 0))
    {
        return Err(CODEC_ERROR);
    }
    let size = size.iter().fold(0u64, |size, digit| {
        let value = char::from(*digit).to_digit(16).unwrap_or(0);
        size << 4 | u64::from(value)
    });
    input.advance(end + 1);
    Ok(Some(size))
}

/// Reads the trailer section: `Some(None)` for an empty one.
#[allow(clippy::option_option, reason = "incomplete, empty, present")]
fn trailers(input: &mut BytesMut) -> Result<Option<Option<Box<HeaderMap>>>, CodecError> {
    match input.as_ref() {
        [b'\r', b'\n', ..] => {
            input.advance(2);
            return Ok(Some(None));
        }
        [] | [b'\r'] => return Ok(None),
        [b'\r' | b'\n', ..] => return Err(CODEC_ERROR),
        _ => {}
    }
    let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else {
        return if input.len() > MAX_TRAILERS {
            Err(CodecError { status: 431, details: "http1.trailers_too_large" })
        } else {
            Ok(None)
        };
    };
    let section = input.split_to(end + 4);
    let mut map = Box::new(HeaderMap::default());
    super::head::parse_trailers(&section, MAX_TRAILER_FIELDS, &mut map)?;
    Ok(Some(Some(map)))
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyWriter {
    /// The message is complete, or has no body: bytes are dropped.
    Done,
    /// As it is; the length was told, or the connection's end tells it.
    Plain,
    /// In chunks.
    Chunked,
}

impl BodyWriter {
    /// A writer for a body of this length.
    pub(crate) fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::Empty => BodyWriter::Done,
            BodyLength::Known(_) | BodyLength::UntilClose => BodyWriter::Plain,
            BodyLength::Chunked => BodyWriter::Chunked,
        }
    }

    /// Writes body bytes.
    pub(crate) fn data(&mut self, output: &mut Output, data: Bytes, end: bool) {
        match self {
            BodyWriter::Done => {}
            BodyWriter::Plain => output.push(data),
            BodyWriter::Chunked => {
                if !data.is_empty() {
                    hex_line(output.text().bytes(), data.len());
                    output.push(data);
                    output.text().bytes().extend_from_slice(b"\r\n");
                }
                if end {
                    output.text().bytes().extend_from_slice(b"0\r\n\r\n");
                }
            }
        }
        if end {
            *self = BodyWriter::Done;
        }
    }

    /// Ends the body with trailers; they are dropped where the framing has no place for them.
    pub(crate) fn trailers(&mut self, output: &mut Output, trailers: Option<&HeaderMap>) {
        if *self == BodyWriter::Chunked {
            let mut text = output.text();
            let bytes = text.bytes();
            bytes.extend_from_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                trailers.write_lines(bytes, KnownSet::EMPTY);
            }
            bytes.extend_from_slice(b"\r\n");
        }
        *self = BodyWriter::Done;
    }
}

fn hex_line(bytes: &mut Vec<u8>, value: usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut value = value;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[value & 15];
        value >>= 4;
        if value == 0 {
            break;
        }
    }
    bytes.extend_from_slice(&digits[at..]);
    bytes.extend_from_slice(b"\r\n");
}
