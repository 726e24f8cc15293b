//! The requests of one stream, read from the body of its call.
//!
//! gRPC puts a flag and a length in front of each message. A stream of xDS is silent for most of its
//! life, and thousands of them are open: so nothing is kept between messages.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Body as _;

use crate::types::Mode;
use crate::wire::Request;

/// Largest request. A delta client that resumes states a name and a version per resource.
const MOST: usize = 64 << 20;

/// Flag and length.
const PREFIX: usize = 5;

/// What a client says.
#[derive(Debug)]
pub(super) struct Requests {
    mode: Mode,
    body: Body,
    /// The beginning of a message.
    buffer: BytesMut,
}

impl Requests {
    pub(super) fn new(mode: Mode, body: Body) -> Self {
        Self { mode, body, buffer: BytesMut::new() }
    }

    /// The next request; `None` if the client has ended its side. May be dropped and called again.
    ///
    /// # Errors
    /// If the body cannot be read, or is not made of requests.
    pub(super) async fn next(&mut self) -> Result<Option<Request>, Status> {
        loop {
            if let Some(message) = self.take()? {
                let request = Request::decode(self.mode, message);
                return request.map(Some).map_err(|error| Status::internal(error.to_string()));
            }
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            match frame.transpose()? {
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.put(data);
                    }
                }
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
        if length > MOST {
            return Err(Status::out_of_range(format!("a message of {length} bytes; {MOST} are the most")));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // Its memory goes with the message.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Bytes>, Status> {
        let mut requests = Requests::new(Mode::Delta, Body::empty());
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
        assert_eq!(read(b"\x01\0\0\0\x03abc", 8).unwrap_err().code(), tonic::Code::Unimplemented);
        assert_eq!(read(b"\0\x7f\0\0\0", 5).unwrap_err().code(), tonic::Code::OutOfRange);
    }
}
