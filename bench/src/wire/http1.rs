//! HTTP/1.1 messages in a buffer: as much of it as a benchmark's two ends need of a proxy.

use memchr::memmem;

/// A head in a buffer and the body behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// More is needed.
    Partial,
    /// A message of these many bytes, with its body decoded.
    Complete {
        /// Bytes of head and body.
        size: usize,
        /// Bytes of the head.
        head: usize,
        /// The body without framing.
        body: Vec<u8>,
    },
    /// The framing is wrong.
    Invalid,
}

/// The value of a field, by lower-case name, in a head.
pub(crate) fn field<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let (field, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        field.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

/// A number in a field.
pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    std::str::from_utf8(field(head, "content-length")?).ok()?.parse().ok()
}

/// Where the head ends.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The message at the start of `bytes`, with its body.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let Some(head) = head_end(bytes) else { return Parsed::Partial };
    let (text, rest) = bytes.split_at(head);
    if field(text, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case(b"chunked")) {
        return chunks(head, rest);
    }
    let length = content_length(text).unwrap_or(0);
    match rest.get(..length) {
        Some(body) => Parsed::Complete { size: head + length, head, body: body.to_vec() },
        None => Parsed::Partial,
    }
}

fn chunks(head: usize, bytes: &[u8]) -> Parsed {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(line) = memmem::find(rest, b"\r\n") else { return Parsed::Partial };
        let digits =
            rest.get(..line).unwrap_or_default().split(|byte| *byte == b';').next().unwrap_or_default();
        let Some(size) =
            std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok())
        else {
            return Parsed::Invalid;
        };
        let start = line + 2;
        let Some(chunk) = rest.get(start..start + size + 2) else { return Parsed::Partial };
        let Some(data) = chunk.strip_suffix(b"\r\n") else { return Parsed::Invalid };
        body.extend_from_slice(data);
        at += start + size + 2;
        if size == 0 {
            return Parsed::Complete { size: head + at, head, body };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Parsed, parse};

    #[test]
    fn bodies_are_framed_both_ways() {
        let complete = |size, head, body: &[u8]| Parsed::Complete { size, head, body: body.to_vec() };
        let by_length = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef";
        assert_eq!(parse(by_length), complete(41, 38, b"abc"));
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\nmore";
        assert_eq!(parse(chunked), complete(chunked.len() - 4, 47, b"abc"));
        assert_eq!(parse(&chunked[..60]), Parsed::Partial);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), Parsed::Invalid);
    }
}
