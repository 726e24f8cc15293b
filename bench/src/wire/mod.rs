//! What both ends of the proxy speak: streams with or without TLS (`stream`), HTTP/2 frames
//! (`http2`), certificates (`tls`), and the bodies that are sent.

pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod stream;
pub(crate) mod tls;

/// The first `length` bytes of an endless hexadecimal counter of 8 digits: a body in which no
/// piece can go missing or come twice unnoticed.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    for counter in 0_u32.. {
        if bytes.len() >= length {
            break;
        }
        bytes.extend_from_slice(format!("{counter:08x}").as_bytes());
    }
    bytes.truncate(length);
    bytes
}
