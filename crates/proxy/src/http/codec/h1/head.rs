//! Heads of HTTP/1 messages, parsed strictly.
//!
//! One pass finds the lines, recognises the names and takes from them what the codec must know;
//! the entries of the map are spans of the head, which is copied as a whole when it is complete.
//! What HTTP forbids, or Envoy refuses, is refused. Headers that speak of this connection only
//! (`connection` and what it names, `transfer-encoding`, `keep-alive`, `proxy-connection`) stop
//! here; `upgrade` passes with an upgrade. `host` becomes `:authority`.
//!
//! Deviation: a line that ends in a bare LF, a folded header line and a second `host` are
//! refused with 400; Envoy 1.40 reads the first two and joins the third with a comma. Each has
//! been used to smuggle requests past a proxy (RFC 9112 sections 2.2, 5.2 and 3.2 allow refusing).

use std::ops::Range;
use std::sync::Arc;

use crate::http::codec::h1::fields::{Connection, Framing, MOST_TE, trailers_token};
use crate::http::codec::h1::scan;
use crate::http::codec::h1::target::{target, valid_authority};
use crate::http::codec::{BodyLength, CODEC_ERROR, CodecError};
use crate::http::headers::{HeaderMap, Known, OriginalCase};
use crate::http::route::matcher::StringMatcher;

/// Limits and options of one direction of a connection.
#[derive(Clone, Debug)]
pub(crate) struct HeadLimits {
    /// Most bytes of a head.
    pub(crate) bytes: usize,
    /// Most header fields.
    pub(crate) fields: usize,
    /// `allow_absolute_url`.
    pub(crate) absolute_url: bool,
    /// `allow_chunked_length`: transfer-encoding wins over content-length instead of an error.
    pub(crate) chunked_length: bool,
    /// `allow_custom_methods`.
    pub(crate) custom_methods: bool,
    /// `preserve_case`: how names were written is kept.
    pub(crate) keep_case: Option<KeepCase>,
    /// `ignore_http_11_upgrade`; `None`: every upgrade counts.
    pub(crate) ignored_upgrades: Option<Arc<Vec<StringMatcher>>>,
}

/// PreserveCaseFormatterConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeepCase {
    /// `forward_reason_phrase`.
    pub(crate) reason: bool,
    /// `formatter_type_on_envoy_headers: PROPER_CASE`.
    pub(crate) proper_others: bool,
}

impl KeepCase {
    /// How the names of a message are written, none being known yet.
    fn begin(self) -> OriginalCase {
        let mut case = OriginalCase::default();
        case.proper_others = self.proper_others;
        case
    }
}

/// What the codec needs to know of a request besides its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// Bytes of the head.
    pub(crate) size: usize,
    /// Bytes of its fields as Envoy counts them (`counted`).
    pub(crate) fields: u64,
    /// HTTP/1.0?
    pub(crate) http10: bool,
    /// How its body is framed.
    pub(crate) body: BodyLength,
    /// Whether the client lets the connection live on.
    pub(crate) keep_alive: bool,
    /// `expect: 100-continue`.
    pub(crate) expects_continue: bool,
    /// `connection: upgrade` with an `upgrade` header other than h2c.
    pub(crate) upgrade: bool,
}

/// What the codec needs to know of a response besides its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    /// Bytes of the head.
    pub(crate) size: usize,
    /// Status.
    pub(crate) status: u16,
    /// How its body is framed.
    pub(crate) body: BodyLength,
    /// Whether the server lets the connection live on.
    pub(crate) keep_alive: bool,
}

/// Methods that Envoy's HTTP/1 codec knows; it refuses others.
pub(super) const METHODS: &[&str] = &[
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "CONNECT",
    "TRACE",
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// However many are allowed.
const MOST_FIELDS: usize = 16 * 1024;

const TOO_LARGE: CodecError = CodecError { status: 431, details: "http1.headers_too_large" };
const TOO_MANY: CodecError = CodecError { status: 431, details: "http1.too_many_headers" };
const CONFLICT: CodecError = CodecError::bad("http1.content_length_and_chunked_not_allowed");

/// Why a head cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It is not complete.
    Incomplete,
    /// The first line is none.
    FirstLine,
    /// A line is none.
    Line,
    /// A value has what no value may have.
    Value,
    /// There are more fields than are taken.
    TooMany,
    /// What it says is refused.
    Refused(CodecError),
}

impl From<CodecError> for Stop {
    fn from(error: CodecError) -> Self {
        Stop::Refused(error)
    }
}

impl Stop {
    /// What it means: more is needed, or an error.
    #[cold]
    fn verdict<T>(self, input: &[u8], limits: &HeadLimits) -> Result<Option<T>, CodecError> {
        let too_large = input.len() > limits.bytes;
        match self {
            Stop::Incomplete if too_large => Err(TOO_LARGE),
            Stop::Incomplete => Ok(None),
            Stop::FirstLine if names_version(input) => {
                Err(CodecError { status: 426, details: "low_version" })
            }
            Stop::Value => Err(CodecError::bad("http1.invalid_characters")),
            Stop::TooMany => Err(TOO_MANY),
            Stop::FirstLine | Stop::Line if too_large => Err(TOO_LARGE),
            Stop::FirstLine | Stop::Line => Err(CODEC_ERROR),
            Stop::Refused(error) => Err(error),
        }
    }
}

/// Parses a request head at the start of `input` into `map`; `None`: it is not complete yet, and
/// the map is empty.
pub(crate) fn parse_request(
    input: &[u8],
    limits: &HeadLimits,
    map: &mut HeaderMap,
) -> Result<Option<RequestHead>, CodecError> {
    match request(input, limits, map) {
        Ok(head) => Ok(Some(head)),
        Err(stop) => {
            map.clear();
            stop.verdict(input, limits)
        }
    }
}

fn request(input: &[u8], limits: &HeadLimits, map: &mut HeaderMap) -> Result<RequestHead, Stop> {
    let start = skip_blank_lines(input)?;
    let method_end = method_end(input, start)?;
    let method = input.get(start..method_end).unwrap_or_default();
    let target_start = method_end + 1;
    let (target_end, ascii) = request_target(input, target_start)?;
    let (http10, mut at) = version(input, target_end + 1)?;
    at = line_end(input, at)?;

    let mut lines = map.lines();
    let mut case = limits.keep_case.map(KeepCase::begin);
    lines.push(Known::Method, start..method_end);
    let target = target(method, input.get(target_start..target_end).unwrap_or_default(), limits);
    let (authority, path) = match &target {
        Ok(target) => (target.authority.clone(), target.path.clone()),
        Err(_) => (None, None),
    };
    let within = |part: Range<usize>| part.start + target_start..part.end + target_start;
    if let Some(path) = path {
        lines.push(Known::Path, within(path));
    }
    let whole = authority.is_some();
    if let Some(authority) = authority {
        lines.push(Known::Authority, within(authority));
    }

    let mut connection = Connection::default();
    // No standard header, but clients of forward proxies send it, and Envoy obeys it.
    let mut proxy_connection = Connection::default();
    let mut framing = Framing::default();
    let mut host = false;
    let mut upgrade = None;
    let mut expects_continue = false;
    // The first thing that is refused of what the fields say; what they look like comes first.
    let mut wrong = None;
    let (mut fields, mut counted) = (0, 0);
    let mut oversized_te = false;
    while let Some(field) = next_field(input, at)? {
        at = field.next;
        fields += 1;
        counted += field.name.len() + field.value.len();
        if fields > limits.fields.min(MOST_FIELDS) {
            return Err(Stop::TooMany);
        }
        let name = input.get(field.name.clone()).unwrap_or_default();
        let value = input.get(field.value.clone()).unwrap_or_default();
        if let Some(case) = &mut case {
            case.remember(name);
        }
        match field.known {
            None if is_host(name) => {
                if std::mem::replace(&mut host, true) {
                    wrong = wrong.or(Some(CODEC_ERROR));
                } else if !valid_authority(value) {
                    wrong = wrong.or(Some(CodecError::bad("http.invalid_authority")));
                } else if !whole {
                    lines.push(Known::Authority, field.value);
                }
                continue;
            }
            Some(Known::ContentLength) => wrong = wrong.or(framing.length(value).err()),
            Some(Known::TransferEncoding) => {
                wrong = wrong.or(framing.encoding(value, true).err());
                continue;
            }
            Some(Known::Connection) => {
                connection.read(value, field.value);
                continue;
            }
            Some(Known::ProxyConnection) => {
                proxy_connection.read(value, field.value);
                continue;
            }
            Some(Known::KeepAlive | Known::Http2Settings) => continue,
            Some(Known::Upgrade) => {
                upgrade = Some(field.value);
                continue;
            }
            // Of all that it may ask for trailers alone concern the endpoint, even though
            // `connection` must name the field.
            Some(Known::Te) if !value.eq_ignore_ascii_case(b"trailers") => {
                oversized_te |= value.len() > MOST_TE;
                if let Some(token) = trailers_token(value) {
                    let start = field.value.start + token.start;
                    lines.push(Known::Te, start..start + token.len());
                }
                continue;
            }
            Some(Known::Expect) => expects_continue = value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        lines.push_line(field.known, field.name, field.value, field.plain, field.capitals);
    }
    let size = at + 2;
    check_size(size, limits)?;
    let known_method = limits.custom_methods || is_method(method);
    if !known_method || !ascii {
        return Err(CODEC_ERROR.into());
    }
    if connection.is_refused(oversized_te) {
        return Err(CodecError::bad("http1.connection_header_rejected").into());
    }
    let target = target?;
    if let Some(wrong) = wrong {
        return Err(wrong.into());
    }
    let kind = |span: &Range<usize>| input.get(span.clone()).unwrap_or_default();
    let upgrade = upgrade.filter(|span| connection.upgrade && !kind(span).eq_ignore_ascii_case(b"h2c"));
    let heeded = match (&limits.ignored_upgrades, &upgrade) {
        (Some(ignored), Some(span)) => Some(heeded_upgrades(kind(span), ignored)),
        _ => None,
    };
    let upgrade = upgrade.filter(|_| heeded.as_ref().is_none_or(|kinds| !kinds.is_empty()));
    if let Some(kind) = &upgrade {
        lines.push(Known::Upgrade, kind.clone());
        // Goes with it, as it was written.
        lines.push(Known::Connection, connection.text.clone());
    }
    lines.finish(input.get(..size).unwrap_or_default());
    drop(lines);
    if let Some(kinds) = heeded.filter(|_| upgrade.is_some()) {
        map.set(Known::Upgrade, &kinds);
    }
    if !connection.named.is_empty() {
        remove_named(map, &connection, whole);
    }
    if !target.rooted {
        let path = [b"/", map.path()].concat();
        map.set(Known::Path, &path);
    }
    if let Some(case) = case {
        map.set_case(case);
    }
    if framing.chunked && framing.length.is_some() {
        if !limits.chunked_length {
            return Err(CONFLICT.into());
        }
        map.remove(Known::ContentLength);
    }
    if framing.chunked && http10 {
        return Err(CODEC_ERROR.into());
    }
    let body = match framing.length {
        _ if method == b"CONNECT" || upgrade.is_some() => BodyLength::UntilClose,
        _ if framing.chunked => BodyLength::Chunked,
        Some(length) => BodyLength::Known(length),
        None => BodyLength::Empty,
    };
    let close = connection.close || proxy_connection.close;
    Ok(RequestHead {
        size,
        // Three for each field, and three if there is none.
        fields: (counted + 3 * fields.max(1)) as u64,
        http10,
        body,
        keep_alive: !close && (!http10 || connection.keep_alive),
        expects_continue,
        upgrade: upgrade.is_some(),
    })
}

/// Removes what `connection` names; `whole`: the target has the authority.
fn remove_named(map: &mut HeaderMap, connection: &Connection<'_>, whole: bool) {
    let kept = [Known::ContentLength, Known::Te, Known::Expect, Known::Upgrade, Known::Connection];
    for name in &connection.named {
        // Named by `connection` it stops here as all others do, and is missed then.
        if is_host(name) && !whole {
            map.remove(Known::Authority);
        }
        let known = Known::find_in_any_case(name).map(|(known, _)| known);
        if known.is_none_or(|known| !kept.contains(&known))
            && let Ok(name) = std::str::from_utf8(name)
        {
            map.remove_named(name);
        }
    }
}

/// What an `upgrade` header asks for besides what is ignored.
fn heeded_upgrades(kinds: &[u8], ignored: &[StringMatcher]) -> Vec<u8> {
    let kinds = kinds.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let heeded = kinds.filter(|kind| !ignored.iter().any(|matcher| matcher.matches(kind)));
    heeded.collect::<Vec<_>>().join(&b","[..])
}

/// Parses a response head at the start of `input` into `map`; `None`: it is not complete yet, and
/// the map is empty. `to_head`: the request was HEAD.
pub(crate) fn parse_response(
    input: &[u8],
    limits: &HeadLimits,
    to_head: bool,
    map: &mut HeaderMap,
) -> Result<Option<ResponseHead>, CodecError> {
    match response(input, limits, to_head, map) {
        Ok(head) => Ok(Some(head)),
        Err(stop) => {
            map.clear();
            // There is no version that would be answered differently.
            let stop = if stop == Stop::FirstLine { Stop::Line } else { stop };
            stop.verdict(input, limits).map_err(|error| match stop {
                Stop::Line | Stop::Value => CODEC_ERROR,
                _ => error,
            })
        }
    }
}

fn response(
    input: &[u8],
    limits: &HeadLimits,
    to_head: bool,
    map: &mut HeaderMap,
) -> Result<ResponseHead, Stop> {
    let start = skip_blank_lines(input)?;
    let (http10, at) = version(input, start)?;
    let code = status_code(input, at)?;
    let (reason, mut at) = reason_phrase(input, code.end)?;

    let mut lines = map.lines();
    let mut case = limits.keep_case.map(KeepCase::begin);
    let digits = input.get(code.clone()).unwrap_or_default();
    let status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    lines.push(Known::Status, code);
    let mut connection = Connection::default();
    let mut framing = Framing::default();
    let mut wrong = None;
    let mut fields = 0;
    while let Some(field) = next_field(input, at)? {
        at = field.next;
        fields += 1;
        if fields > limits.fields.min(MOST_FIELDS) {
            return Err(Stop::TooMany);
        }
        let value = input.get(field.value.clone()).unwrap_or_default();
        if let Some(case) = &mut case {
            case.remember(input.get(field.name.clone()).unwrap_or_default());
        }
        match field.known {
            Some(Known::ContentLength) => wrong = wrong.or(framing.length(value).err()),
            Some(Known::TransferEncoding) => {
                wrong = wrong.or(framing.encoding(value, false).err());
                continue;
            }
            Some(Known::Connection) => {
                connection.read(value, field.value.clone());
                if status != 101 {
                    continue;
                }
            }
            Some(Known::KeepAlive | Known::ProxyConnection) => continue,
            Some(Known::Upgrade) if status != 101 => continue,
            _ => {}
        }
        lines.push_line(field.known, field.name, field.value, field.plain, field.capitals);
    }
    let size = at + 2;
    check_size(size, limits)?;
    if !(100..=599).contains(&status) {
        return Err(CODEC_ERROR.into());
    }
    if let Some(wrong) = wrong {
        return Err(wrong.into());
    }
    lines.finish(input.get(..size).unwrap_or_default());
    drop(lines);
    if let (Some(mut case), Some(keep)) = (case, limits.keep_case) {
        // A phrase that is no text is forgotten.
        let phrase = input.get(reason).filter(|phrase| phrase.is_ascii());
        let phrase = phrase.and_then(|phrase| std::str::from_utf8(phrase).ok()).unwrap_or_default();
        case.reason = keep.reason.then(|| phrase.into());
        map.set_case(case);
    }
    if framing.chunked && framing.length.is_some() {
        if !limits.chunked_length {
            return Err(CONFLICT.into());
        }
        map.remove(Known::ContentLength);
    }
    let body = match framing.length {
        _ if status == 101 => BodyLength::UntilClose,
        _ if to_head || status < 200 || status == 204 || status == 304 => BodyLength::Empty,
        _ if framing.chunked => BodyLength::Chunked,
        Some(length) => BodyLength::Known(length),
        None => BodyLength::UntilClose,
    };
    let keep_alive = !connection.close && (!http10 || connection.keep_alive);
    Ok(ResponseHead { size, status, body, keep_alive: keep_alive && body != BodyLength::UntilClose })
}

/// Parses the trailer section that `input` is, into `map`.
pub(super) fn parse_trailers(input: &[u8], most: usize, map: &mut HeaderMap) -> Result<(), CodecError> {
    let mut read = || {
        let mut lines = map.lines();
        let (mut at, mut fields) = (0, 0);
        while let Some(field) = next_field(input, at)? {
            at = field.next;
            fields += 1;
            if fields > most {
                return Err(Stop::TooMany);
            }
            lines.push_line(field.known, field.name, field.value, field.plain, field.capitals);
        }
        lines.finish(input);
        Ok(())
    };
    read().map_err(|stop| match stop {
        Stop::TooMany => CodecError { status: 431, details: "http1.too_many_trailers" },
        _ => CODEC_ERROR,
    })
}

/// Empty lines in front of a message are ignored (RFC 9112 section 2.2), and one LF.
#[inline]
fn skip_blank_lines(input: &[u8]) -> Result<usize, Stop> {
    let mut at = usize::from(input.first() == Some(&b'\n'));
    loop {
        match input.get(at) {
            None => return Err(Stop::Incomplete),
            Some(b'\r') => at = line_end(input, at)?,
            Some(_) => return Ok(at),
        }
    }
}

/// Behind the CRLF that must be here. A bare LF is refused.
#[inline]
fn line_end(input: &[u8], at: usize) -> Result<usize, Stop> {
    match input.get(at..).unwrap_or_default() {
        [b'\r', b'\n', ..] => Ok(at + 2),
        [] | [b'\r'] => Err(Stop::Incomplete),
        _ => Err(Stop::Line),
    }
}

/// The space behind the method.
#[inline]
fn method_end(input: &[u8], start: usize) -> Result<usize, Stop> {
    let rest = input.get(start..).unwrap_or_default();
    if rest.starts_with(b"GET ") {
        return Ok(start + 3);
    }
    let length = rest.iter().position(|byte| !scan::token(&[*byte]).0).unwrap_or(rest.len());
    match rest.get(length) {
        Some(b' ') if length > 0 => Ok(start + length),
        None => Err(Stop::Incomplete),
        Some(_) => Err(Stop::FirstLine),
    }
}

/// The space behind the target, and whether the target is ASCII.
#[inline]
fn request_target(input: &[u8], start: usize) -> Result<(usize, bool), Stop> {
    let (mut at, mut ascii) = (start, true);
    loop {
        at = scan::target_end(input, at);
        match input.get(at) {
            None => return Err(Stop::Incomplete),
            Some(b' ') if at > start => return Ok((at, ascii)),
            // Refused when the head is complete.
            Some(0x80..) => ascii = false,
            Some(_) => return Err(Stop::FirstLine),
        }
        at += 1;
    }
}

/// Whether the version here is HTTP/1.0, and what is behind it.
#[inline]
fn version(input: &[u8], start: usize) -> Result<(bool, usize), Stop> {
    let rest = input.get(start..).unwrap_or_default();
    match rest.first_chunk::<8>() {
        Some(b"HTTP/1.1") => Ok((false, start + 8)),
        Some(b"HTTP/1.0") => Ok((true, start + 8)),
        Some(_) => Err(Stop::FirstLine),
        None if b"HTTP/1.".starts_with(rest) => Err(Stop::Incomplete),
        None => Err(Stop::FirstLine),
    }
}

/// The three digits of the status behind a space.
#[inline]
fn status_code(input: &[u8], start: usize) -> Result<Range<usize>, Stop> {
    for (offset, byte) in input.iter().skip(start).take(4).enumerate() {
        let valid = if offset == 0 { *byte == b' ' } else { byte.is_ascii_digit() };
        if !valid {
            return Err(Stop::FirstLine);
        }
    }
    if input.len() < start + 4 { Err(Stop::Incomplete) } else { Ok(start + 1..start + 4) }
}

/// The reason phrase, if there is one, and what is behind its line.
#[inline]
fn reason_phrase(input: &[u8], at: usize) -> Result<(Range<usize>, usize), Stop> {
    match input.get(at) {
        None => Err(Stop::Incomplete),
        Some(b' ') => {
            let end = scan::value_end(input, at + 1);
            Ok((at + 1..end, line_end(input, end)?))
        }
        Some(_) => Ok((at..at, line_end(input, at)?)),
    }
}

/// A field line.
struct Field {
    name: Range<usize>,
    known: Option<Known>,
    /// Without white space at its ends.
    value: Range<usize>,
    /// Where the next line begins.
    next: usize,
    /// Nothing but a colon and a space is between name and value, and nothing behind the value.
    plain: bool,
    /// The name has capitals.
    capitals: bool,
}

/// Reads the line that begins here (RFC 9112 section 5); `None`: it is the empty one, and its CRLF
/// is here.
#[inline(always)]
fn next_field(input: &[u8], start: usize) -> Result<Option<Field>, Stop> {
    if let Some(b'\r' | b'\n') = input.get(start) {
        return line_end(input, start).map(|_| None);
    }
    let colon = scan::name_end(input, start);
    let name = input.get(start..colon).unwrap_or_default();
    let (known, capitals) = match Known::find_in_any_case(name) {
        // A pseudo-header's colon would have ended the name.
        Some((known, capitals)) => (Some(known), capitals),
        None => {
            let (valid, capitals) = scan::token(name);
            if !valid {
                return Err(Stop::Line);
            }
            (None, capitals)
        }
    };
    match input.get(colon) {
        None => return Err(Stop::Incomplete),
        Some(b':') if colon > start => {}
        Some(_) => return Err(Stop::Line),
    }
    let mut from = colon + 1;
    // One space as a rule.
    from += usize::from(input.get(from) == Some(&b' '));
    while let Some(b' ' | b'\t') = input.get(from) {
        from += 1;
    }
    let stop = scan::value_end(input, from);
    match input.get(stop..).unwrap_or_default() {
        [b'\r', b'\n', ..] => {}
        [] | [b'\r'] => return Err(Stop::Incomplete),
        [b'\n', ..] => return Err(Stop::Line),
        _ => return Err(Stop::Value),
    }
    let mut end = stop;
    while end > from && matches!(input.get(end - 1), Some(b' ' | b'\t')) {
        end -= 1;
    }
    let plain = from == colon + 2 && end == stop && input.get(colon + 1) == Some(&b' ');
    Ok(Some(Field { name: start..colon, known, value: from..end, next: stop + 2, plain, capitals }))
}

/// Whether a name is `host`, in any case.
#[inline]
fn is_host(name: &[u8]) -> bool {
    name.len() == 4 && name.eq_ignore_ascii_case(b"host")
}

/// Whether Envoy's HTTP/1 codec knows a method.
#[inline]
fn is_method(method: &[u8]) -> bool {
    method == b"GET" || method == b"POST" || METHODS.iter().any(|known| known.as_bytes() == method)
}

#[inline]
fn check_size(size: usize, limits: &HeadLimits) -> Result<(), CodecError> {
    if size > limits.bytes { Err(TOO_LARGE) } else { Ok(()) }
}

/// Whether the request line is one of another version of HTTP: it says so in its third word, or
/// has none as in HTTP/0.9.
pub(super) fn names_version(input: &[u8]) -> bool {
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (version, more) = (words.next(), words.next());
    is_method(method)
        && target.starts_with(b"/")
        && target.iter().all(u8::is_ascii_graphic)
        && more.is_none()
        && version.is_none_or(|version| {
            matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit())
        })
}
