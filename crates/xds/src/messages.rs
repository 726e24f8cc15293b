//! gRPC messages of one stream, read from the body of its call.
//!
//! gRPC puts a flag and a length in front of each message. A stream of xDS is silent for most of its
//! life, and what comes first may be a thousand times as large as what comes later: so nothing is kept
//! between messages.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tonic::body::Body;
use tonic::codegen::Body as _;
use tonic::{Code, Status};

/// Flag and length.
const PREFIX: usize = 5;

/// For how much of a message room is made at once, bytes: its length is only what the peer says.
const ROOM: usize = 4 << 20;

/// What the other side says.
#[derive(Debug)]
pub(crate) struct Messages {
    body: Body,
    /// The length of the largest, bytes.
    most: usize,
    /// The beginning of a message.
    buffer: BytesMut,
}

impl Messages {
    /// The messages of a body, none longer than `most` bytes.
    pub(crate) fn new(body: Body, most: usize) -> Self {
        Self { body, most, buffer: BytesMut::new() }
    }

    /// The next message; `None` if the other side has ended the stream. May be dropped and called again.
    ///
    /// # Errors
    /// If the body cannot be read or is not made of messages; what trailers say.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            match frame.transpose()?.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
                Some(Ok(data)) => self.buffer.put(data),
                Some(Err(Ok(trailers))) => match Status::from_header_map(&trailers) {
                    Some(status) if status.code() != Code::Ok => return Err(status),
                    _ => {}
                },
                Some(Err(Err(_))) => {}
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ends within a message")),
            }
        }
    }

    /// The next whole message, if it is there.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed messages are not understood"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.most {
            let most = self.most;
            return Err(Status::out_of_range(format!("a message of {length} bytes; {most} are the most")));
        }
        let missing = (PREFIX + length).saturating_sub(self.buffer.len());
        if missing > 0 {
            self.buffer.reserve(missing.min(ROOM));
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length).freeze();
        // Its memory goes with the message, and so does that of what is behind it.
        self.buffer = if self.buffer.is_empty() { BytesMut::new() } else { BytesMut::from(&*self.buffer) };
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Bytes>, Status> {
        let mut requests = Messages::new(Body::empty(), 64 << 20);
        let mut messages = Vec::new();
        for part in bytes.chunks(step) {
            requests.buffer.put_slice(part);
            while let Some(message) = requests.take()? {
                messages.push(message);
            }
        }
        assert!(!messages.is_empty() || requests.buffer.len() == bytes.len());
        Ok(messages)
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let bytes = b"\0\0\0\0\x03abc\0\0\0\0\0\0\0\0\0\x01d";
        for step in 1..=bytes.len() {
            assert_eq!(read(bytes, step).unwrap(), ["abc", "", "d"], "{step}");
        }
        assert!(read(b"\0\0\0\0\x03ab", 2).unwrap().is_empty());
    }

    #[test]
    fn what_is_compressed_or_too_long_is_refused() {
        assert_eq!(read(b"\x01\0\0\0\x03abc", 8).unwrap_err().code(), Code::Unimplemented);
        assert_eq!(read(b"\0\x7f\0\0\0", 5).unwrap_err().code(), Code::OutOfRange);
    }
}
