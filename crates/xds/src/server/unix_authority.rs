//! Requests over Unix sockets whose authority is the socket's path.
//!
//! gRPC's own library (C++, Python, Ruby) says `:authority: var%2Frun%2Fsocket` there. Our HTTP/2 takes that for no
//! authority: the stream would be reset, and a client in these languages could ask for nothing. As nobody looks at
//! the authority on a Unix socket, a character that cannot be in a host is replaced by one that can: lengths, and so
//! what both sides remember of the headers (HPACK), stay the same.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::listen::Stream;

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE: usize = 24;
/// The header of a frame: length u24, type u8, flags u8, stream u32.
const FRAME: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Longer frames are refused by the server.
const MOST: usize = 16 << 10;
const NAME: &[u8] = b":authority";

/// A connection whose requests have authorities that can be read.
#[derive(Debug)]
pub struct Mended<S> {
    stream: S,
    /// What has come and was not looked at: less than a frame.
    raw: BytesMut,
    /// How much of what comes is of no interest.
    passing: usize,
    /// What can be read.
    mended: BytesMut,
}

impl<S> Mended<S> {
    /// One that begins.
    pub fn new(stream: S) -> Mended<S> {
        Mended { stream, raw: BytesMut::new(), passing: PREFACE, mended: BytesMut::new() }
    }

    fn advance(&mut self) {
        loop {
            let length = self.passing.min(self.raw.len());
            self.mended.extend_from_slice(&self.raw.split_to(length));
            self.passing -= length;
            let [a, b, c, kind, _, ..] = self.raw[..] else { return };
            let length = FRAME + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
            if kind != HEADERS || length > FRAME + MOST {
                self.passing = length;
            } else if self.raw.len() < length {
                return;
            } else {
                let mut frame = self.raw.split_to(length);
                mend(&mut frame);
                self.mended.extend_from_slice(&frame);
            }
        }
    }
}

/// Replaces what cannot be in an authority, in a frame of headers; one that is malformed is left as it is.
fn mend(frame: &mut [u8]) {
    let Some(&flags) = frame.get(4) else { return };
    let mut at = FRAME;
    if flags & PADDED != 0 {
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    while at < frame.len() {
        let Some((value, next)) = authority(frame, at) else { return };
        for byte in frame.get_mut(value).into_iter().flatten().filter(|byte| **byte == b'%') {
            *byte = b'-';
        }
        at = next;
    }
}

/// Where the value of an authority is in a field (RFC 7541 section 6), nowhere if it is another field; and where the
/// next one begins.
fn authority(block: &[u8], at: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let first = *block.get(at)?;
    let bits = match first {
        0x80.. => 7,
        0x40.. => 6,
        0x20.. => 5,
        _ => 4,
    };
    let (index, mut next) = integer(block, at, bits)?;
    if bits == 7 || bits == 5 {
        return Some((0..0, next));
    }
    // The first of the static table is it.
    let mut is_it = index == 1;
    if index == 0 {
        let (name, is_coded) = text(block, next)?;
        next = name.end;
        is_it = !is_coded && block.get(name) == Some(NAME);
    }
    let (value, is_coded) = text(block, next)?;
    let next = value.end;
    // The library that writes such authorities codes none.
    Some((if is_it && !is_coded { value } else { 0..0 }, next))
}

/// An integer in so many bits and what follows (section 5.1).
fn integer(block: &[u8], mut at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    at += 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(at)?;
        at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Where a string is, and whether it is in Huffman's code (section 5.2).
fn text(block: &[u8], at: usize) -> Option<(std::ops::Range<usize>, bool)> {
    let is_coded = block.get(at)? & 0x80 != 0;
    let (length, at) = integer(block, at, 7)?;
    (at + length <= block.len()).then_some((at..at + length, is_coded))
}

impl<S: Stream> AsyncRead for Mended<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.mended.is_empty() {
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // What was cut off is for the server to judge.
                if this.raw.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.mended = this.raw.split();
            }
            this.raw.extend_from_slice(read.filled());
            this.advance();
        }
        let length = this.mended.len().min(into.remaining());
        into.put_slice(&this.mended.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Mended<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::Mended;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    async fn through(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Mended::new(server);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let writing = async move {
            for piece in pieces {
                client.write_all(&piece).await.expect("it is read");
                tokio::task::yield_now().await;
            }
        };
        let mut out = Vec::new();
        let (_, read) = tokio::join!(writing, server.read_to_end(&mut out));
        read.expect("it is no error");
        out
    }

    #[tokio::test]
    async fn paths_in_authorities_are_mended_and_nothing_else() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let settings = frame(4, 0, b"\x00\x03%%%%");
        let field = |value: &str| {
            let head = [b"@\x05:path\x03/a%\x83@\x0a:authority".as_slice(), &[value.len() as u8]].concat();
            [&head, value.as_bytes(), b"@\x02te\x01%\xbf\x41\x03a%b\x3f\x81\x02\x00\x01x\x01%"].concat()
        };
        let long = format!("@\x0a:authority\x7f\x01{}", "%".repeat(128));
        let sent = [
            preface.to_vec(),
            settings.clone(),
            frame(1, 4, &field("tmp%2Fa")),
            frame(1, 4 | 8 | 0x20, &[b"\x02\x00\x00\x00\x00\x10".as_slice(), &field("%"), b"\0\0"].concat()),
            frame(0, 0, b"@\x0a:authority\x01%"),
            frame(1, 4, long.as_bytes()),
            // In Huffman's code, and cut off.
            frame(1, 4, b"@\x0a:authority\x81%"),
            frame(1, 0, b"@\x0a:authority\x09%"),
            b"\x00\x00\x09\x01".to_vec(),
        ]
        .concat();
        let mended = |value: &str| {
            let text = field(value);
            let at = text.windows(5).position(|five| five == b"a%b\x3f\x81").expect("it is there");
            let mut text = text;
            text[at + 1] = b'-';
            text
        };
        let expected = [
            preface.to_vec(),
            settings,
            frame(1, 4, &mended("tmp-2Fa")),
            frame(1, 4 | 8 | 0x20, &[b"\x02\x00\x00\x00\x00\x10".as_slice(), &mended("-"), b"\0\0"].concat()),
            frame(0, 0, b"@\x0a:authority\x01%"),
            frame(1, 4, long.replace('%', "-").as_bytes()),
            frame(1, 4, b"@\x0a:authority\x81%"),
            frame(1, 0, b"@\x0a:authority\x09%"),
            b"\x00\x00\x09\x01".to_vec(),
        ]
        .concat();
        assert_eq!(through(&[&sent]).await, expected);
        let bytes: Vec<&[u8]> = sent.chunks(1).collect();
        assert_eq!(through(&bytes).await, expected);
    }
}
