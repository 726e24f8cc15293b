//! Bodies of gRPC-Web: base64 in both directions, and trailers as a frame.

use bytes::{Buf, Bytes, BytesMut};
use leno_base::base64;

use crate::http::headers::HeaderMap;

/// Bytes in front of each message: a flag and the length, big endian.
const PREFIX: usize = 5;
/// The flag of the frame of trailers.
const TRAILERS: u8 = 0x80;

/// Undoes base64 of a body that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Less than four digits.
    rest: BytesMut,
}

impl Decoder {
    /// The bytes that another piece brings; `end`: the last one.
    ///
    /// # Errors
    /// Details of the answer to a body that is no base64.
    pub(super) fn decode(&mut self, piece: &[u8], end: bool) -> Result<Bytes, &'static str> {
        self.rest.extend_from_slice(piece);
        let whole = self.rest.len() / 4 * 4;
        let digits = self.rest.split_to(whole);
        let bytes = base64::decode(&digits).filter(|bytes| whole == 0 || !bytes.is_empty());
        let bytes = bytes.ok_or("grpc_base_64_decode_failed")?;
        if end && !self.rest.is_empty() {
            return Err("grpc_base_64_decode_failed_bad_size");
        }
        Ok(bytes.into())
    }
}

/// Makes base64 of a body of frames, each on its own.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// The beginning of a frame.
    rest: BytesMut,
}

impl Encoder {
    /// What the frames that another piece completes become.
    pub(super) fn encode(&mut self, piece: &[u8]) -> Bytes {
        self.rest.extend_from_slice(piece);
        let mut text = String::new();
        while let Some(length) = self.length()
            && self.rest.len() >= length
        {
            text.push_str(&base64::encode(&self.rest[..length]));
            self.rest.advance(length);
        }
        text.into()
    }

    /// The length of the first frame, prefix included.
    fn length(&self) -> Option<usize> {
        let prefix: [u8; 4] = self.rest.get(1..PREFIX)?.try_into().ok()?;
        (u32::from_be_bytes(prefix) as usize).checked_add(PREFIX)
    }
}

/// Trailers as the last frame of a body.
pub(super) fn trailers_frame(trailers: &HeaderMap) -> Vec<u8> {
    let mut frame = vec![TRAILERS, 0, 0, 0, 0];
    for (name, value) in trailers.iter() {
        frame.extend_from_slice(name);
        frame.push(b':');
        frame.extend_from_slice(value);
        frame.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(frame.len() - PREFIX).unwrap_or(u32::MAX).to_be_bytes();
    frame[1..PREFIX].copy_from_slice(&length);
    frame
}
