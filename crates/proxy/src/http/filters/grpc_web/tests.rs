//! Bodies in pieces; `tests/filters` has the rest.

use super::body::{Decoder, Encoder, trailers_frame};
use crate::http::headers::HeaderMap;

#[test]
fn base64_in_pieces() {
    let check = |pieces: &[&str], expected: Result<&[u8], &str>| {
        let mut decoder = Decoder::default();
        let mut decoded = Vec::new();
        let mut outcome = Ok(());
        for (index, piece) in pieces.iter().enumerate() {
            match decoder.decode(piece.as_bytes(), index + 1 == pieces.len()) {
                Ok(bytes) => decoded.extend_from_slice(&bytes),
                Err(details) => outcome = outcome.and(Err(details)),
            }
        }
        assert_eq!(outcome.map(|()| decoded.as_slice()), expected, "{pieces:?}");
    };
    check(&["YWJj"], Ok(b"abc"));
    check(&["YW", "JjZ", "A==", ""], Ok(b"abcd"));
    check(&[""], Ok(b""));
    check(&["YWJjZ"], Err("grpc_base_64_decode_failed_bad_size"));
    check(&["YW**"], Err("grpc_base_64_decode_failed"));
    check(&["YQ==YQ=="], Err("grpc_base_64_decode_failed"));
}

#[test]
fn frames_are_encoded_one_by_one() {
    let mut encoder = Encoder::default();
    let body = b"\0\0\0\0\x01a\0\0\0\0\0\0\0\0\0\x02bc";
    let mut text = Vec::new();
    for piece in body.chunks(4) {
        text.extend_from_slice(&encoder.encode(piece));
    }
    assert_eq!(String::from_utf8_lossy(&text), "AAAAAAFhAAAAAAA=AAAAAAJiYw==");
    assert!(encoder.encode(b"\0\xff\xff\xff\xff").is_empty());
}

#[test]
fn trailers_are_a_frame() {
    let mut trailers = HeaderMap::new();
    trailers.append(b"grpc-status", b"0");
    trailers.append(b"x-a", b"b");
    assert_eq!(trailers_frame(&trailers), b"\x80\0\0\0\x16grpc-status:0\r\nx-a:b\r\n");
}
