//! Writing heads of HTTP/1 messages.
//!
//! Most of a head that passes through is written as it came, several lines at once
//! (`HeaderMap::write_lines`); only where names are written in another case each line is made.

use crate::http::codec::BodyLength;
use crate::http::headers::{HeaderMap, Known, KnownSet, OriginalCase};
use crate::telemetry::stream_info::HeadSize;
use crate::text::append;

/// More than the first line and what is added to the fields take as a rule.
const ROOM: usize = 256;

/// How heads are written on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WriteStyle {
    /// `proper_case_words`: `Content-Type` instead of `content-type`.
    pub(crate) proper_case: bool,
    /// `send_fully_qualified_url`: the request line has a whole URL.
    pub(crate) whole_url: bool,
}

/// How names are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Case<'m> {
    /// As they are stored.
    Lower,
    /// Words begin with a capital.
    Proper,
    /// As the message had them when it came.
    Original(&'m OriginalCase),
}

impl<'m> Case<'m> {
    /// A message knows better than its connection.
    fn of(map: &'m HeaderMap, style: WriteStyle) -> Self {
        match map.case() {
            Some(case) => Case::Original(case),
            None if style.proper_case => Case::Proper,
            None => Case::Lower,
        }
    }
}

/// Writes a request head. Says how its body is to be written.
pub(crate) fn write_request(
    bytes: &mut Vec<u8>,
    map: &HeaderMap,
    end: bool,
    style: WriteStyle,
) -> BodyLength {
    let method = map.method();
    let connect = method == b"CONNECT" && !map.contains(Known::Protocol);
    let upgrade = map.contains(Known::Upgrade);
    let case = Case::of(map, style);
    bytes.reserve(ROOM + map.written_size());
    let authority = map.authority();
    let target = if connect { authority } else { map.path() };
    if style.whole_url && !connect {
        let scheme = map.get(Known::Scheme).unwrap_or(b"http");
        append(bytes, [method, b" ", scheme, b"://", authority, target]);
    } else {
        append(bytes, [method, b" ", target]);
    }
    if let Case::Lower = case {
        append(bytes, [b" HTTP/1.1\r\nhost: ", authority, b"\r\n"]);
    } else {
        append(bytes, [b" HTTP/1.1\r\n"]);
        write_field(bytes, b"host", authority, case);
    }
    write_fields(bytes, map, KnownSet::EMPTY, case);
    let length = map.get(Known::ContentLength);
    let body = if connect || upgrade {
        BodyLength::UntilClose
    } else if end {
        let bodiless = matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT");
        if length.is_none() && !bodiless {
            write_field(bytes, b"content-length", b"0", case);
        }
        BodyLength::Empty
    } else if let Some(length) = length {
        BodyLength::Known(number(length))
    } else {
        write_field(bytes, b"transfer-encoding", b"chunked", case);
        BodyLength::Chunked
    };
    if upgrade && !map.contains(Known::Connection) {
        write_field(bytes, b"connection", b"upgrade", case);
    }
    append(bytes, [b"\r\n"]);
    body
}

/// What a response head must take into account.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseShape {
    /// The response has no body behind its head.
    pub(crate) end: bool,
    /// The request was HEAD.
    pub(crate) to_head: bool,
    /// The request was CONNECT or an upgrade: a success has bytes both ways behind it.
    pub(crate) tunnel: bool,
    /// The client speaks HTTP/1.0: no chunks.
    pub(crate) http10: bool,
    /// The connection closes behind the response.
    pub(crate) close: bool,
}

/// Writes a response head. Says how its body is to be written, and how long it is.
pub(crate) fn write_response(
    bytes: &mut Vec<u8>,
    map: &HeaderMap,
    shape: ResponseShape,
    style: WriteStyle,
) -> (BodyLength, HeadSize) {
    let begin = bytes.len();
    let status = map.status();
    bytes.reserve(ROOM + map.written_size());
    let version: &[u8; 9] = if shape.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " };
    let case = Case::of(map, style);
    let phrase = map.case().and_then(|case| case.reason.as_deref()).unwrap_or_else(|| reason(status));
    let code = map.get(Known::Status).unwrap_or(b"500");
    append(bytes, [version, code, b" ", phrase.as_bytes(), b"\r\n"]);
    let fields = bytes.len();
    // A length that there is no body of, and the end of an upgrade that was refused.
    let mut without = KnownSet::EMPTY;
    if status < 200 || status == 204 {
        without.insert(Known::ContentLength);
    }
    if status != 101 {
        without.insert(Known::Upgrade);
    }
    write_fields(bytes, map, without, case);
    let length = map.get(Known::ContentLength).filter(|_| !without.contains(Known::ContentLength));
    let bodiless = shape.to_head || status < 200 || status == 204 || status == 304;
    let told = length.map(number);
    let body = if status == 101 || (shape.tunnel && (200..300).contains(&status)) {
        BodyLength::UntilClose
    } else if shape.end || bodiless {
        BodyLength::Empty
    } else {
        match told {
            Some(length) => BodyLength::Known(length),
            None if shape.http10 => BodyLength::UntilClose,
            None => BodyLength::Chunked,
        }
    };
    let tunnel = body == BodyLength::UntilClose && (status == 101 || shape.tunnel);
    if status == 101 {
        if !map.contains(Known::Connection) {
            write_field(bytes, b"connection", b"upgrade", case);
        }
    } else if (shape.close || body == BodyLength::UntilClose) && !tunnel {
        write_field(bytes, b"connection", b"close", case);
    } else if shape.http10 && status >= 200 {
        write_field(bytes, b"connection", b"keep-alive", case);
    }
    // What a GET would get, as Envoy says it: a body of unknown length.
    let told_to_head =
        shape.to_head && length.is_none() && status >= 200 && !matches!(status, 204 | 304) && !shape.http10;
    if body == BodyLength::Chunked || (told_to_head && body == BodyLength::Empty) {
        write_field(bytes, b"transfer-encoding", b"chunked", case);
    } else if shape.end && length.is_none() && !bodiless && body == BodyLength::Empty {
        write_field(bytes, b"content-length", b"0", case);
    }
    let end = bytes.len();
    append(bytes, [b"\r\n"]);
    let size = HeadSize { wire: (bytes.len() - begin) as u64, fields: (end - fields) as u64 };
    (body, size)
}

/// All but pseudo-headers and `without`.
fn write_fields(bytes: &mut Vec<u8>, map: &HeaderMap, without: KnownSet, case: Case<'_>) {
    if let Case::Lower = case {
        map.write_lines(bytes, without);
        return;
    }
    for (known, name, value) in map.iter_known() {
        if name.first() != Some(&b':') && known.is_none_or(|known| !without.contains(known)) {
            write_field(bytes, name, value, case);
        }
    }
}

/// A length; what is none reads as 0.
fn number(digits: &[u8]) -> u64 {
    // Of so many digits none is too large.
    if digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Writes one field line.
pub(crate) fn write_field(bytes: &mut Vec<u8>, name: &[u8], value: &[u8], case: Case<'_>) {
    match case {
        Case::Lower => bytes.extend_from_slice(name),
        Case::Proper => write_proper(bytes, name),
        Case::Original(original) => match original.find(name) {
            Some(written) => bytes.extend_from_slice(written),
            None if original.proper_others => write_proper(bytes, name),
            None => bytes.extend_from_slice(name),
        },
    }
    append(bytes, [b": ", value, b"\r\n"]);
}

/// A capital at the beginning and behind all that is neither letter nor digit.
fn write_proper(bytes: &mut Vec<u8>, name: &[u8]) {
    let mut first = true;
    for byte in name {
        bytes.push(if first { byte.to_ascii_uppercase() } else { *byte });
        first = !byte.is_ascii_alphanumeric();
    }
}

/// The reason phrase of a status.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        // What Envoy writes differently from the registry.
        203 => "Non-Authoritative Information",
        413 => "Payload Too Large",
        418 | 451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => http::StatusCode::from_u16(status)
            .ok()
            .and_then(|code| code.canonical_reason())
            .unwrap_or("Unknown"),
    }
}
