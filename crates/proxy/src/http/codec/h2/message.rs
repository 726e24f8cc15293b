//! Header blocks as messages: what RFC 9113 section 8 demands of requests, responses and trailers,
//! and how each side writes them.
//!
//! A block is decoded to its end whatever is wrong with it, as the compression state must stay in
//! step; what is wrong is found out on the way.

use super::hpack::decoder::{CompressionError, Decoder, Field, Validity};
use super::hpack::encoder::Encoder;
use crate::http::headers::{HeaderMap, Known};

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRules {
    /// Bytes of names and values.
    pub(crate) max_bytes: usize,
    /// Number of fields.
    pub(crate) max_fields: usize,
    /// `disallow_obs_text`: no bytes above ASCII in values.
    pub(crate) ascii_only: bool,
    /// We have allowed extended CONNECT (RFC 8441).
    pub(crate) extended_connect: bool,
}

/// What kind of message a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    /// A request's head.
    Request,
    /// A response's head.
    Response,
    /// What ends either.
    Trailers,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It breaks the rules of RFC 9113 section 8.
    Messaging(&'static str),
    /// It is larger than we take.
    TooLarge,
}

/// Facts of a message that its stream needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MessageFacts {
    /// `content-length`.
    pub(crate) content_length: Option<u64>,
    /// An extended CONNECT: reads as GET with `upgrade`.
    pub(crate) upgrade: bool,
}

/// Reads a block into `map`. The outer error ends the connection.
pub(crate) fn read(
    decoder: &mut Decoder,
    block: &[u8],
    kind: MessageKind,
    rules: &HeadRules,
    map: &mut HeaderMap,
) -> Result<Result<MessageFacts, Malformed>, CompressionError> {
    let mut reader = Reader::new(kind, rules, map);
    decoder.decode(block, |field| reader.field(&field))?;
    Ok(reader.finish())
}

struct Reader<'a> {
    kind: MessageKind,
    rules: &'a HeadRules,
    map: &'a mut HeaderMap,
    wrong: Option<Malformed>,
    /// A field that is no pseudo-header has come.
    regular: bool,
    /// Pseudo-headers that have come, by `Known`.
    seen: u8,
    connect: bool,
    host: bool,
    bytes: usize,
    fields: usize,
    cookie: Vec<u8>,
    protocol: Vec<u8>,
    facts: MessageFacts,
}

const METHOD: u8 = 1;
const PATH: u8 = 2;
const AUTHORITY: u8 = 4;
const SCHEME: u8 = 8;
const STATUS: u8 = 16;
const PROTOCOL: u8 = 32;

impl<'a> Reader<'a> {
    fn new(kind: MessageKind, rules: &'a HeadRules, map: &'a mut HeaderMap) -> Self {
        Self {
            kind,
            rules,
            map,
            wrong: None,
            regular: false,
            seen: 0,
            connect: false,
            host: false,
            bytes: 0,
            fields: 0,
            cookie: Vec::new(),
            protocol: Vec::new(),
            facts: MessageFacts::default(),
        }
    }

    fn field(&mut self, field: &Field<'_>) {
        self.bytes += field.name.len() + field.value.len();
        self.fields += 1;
        if self.bytes > self.rules.max_bytes || self.fields > self.rules.max_fields {
            self.wrong.get_or_insert(Malformed::TooLarge);
        }
        if self.wrong.is_some() {
            return;
        }
        if let Err(details) = self.take(field) {
            self.wrong = Some(Malformed::Messaging(details));
        }
    }

    fn take(&mut self, field: &Field<'_>) -> Result<(), &'static str> {
        match field.validity {
            Validity::Valid => {}
            Validity::Name => return Err("http2.invalid.header.field"),
            Validity::Value => return Err("http2.invalid.header.field"),
        }
        if self.rules.ascii_only && !field.value.is_ascii() {
            return Err("http2.invalid.header.field");
        }
        if field.name.first() == Some(&b':') {
            return self.pseudo(field);
        }
        self.regular = true;
        match field.known {
            Some(
                Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade,
            ) => return Err("http2.violation.of.messaging.rule"),
            Some(Known::Te) if !field.value.eq_ignore_ascii_case(b"trailers") => {
                return Err("http2.violation.of.messaging.rule");
            }
            Some(Known::ContentLength) if self.kind != MessageKind::Trailers => {
                let length = length(field.value).ok_or("http2.violation.of.messaging.rule")?;
                if self.facts.content_length.replace(length).is_some() {
                    return Err("http2.violation.of.messaging.rule");
                }
            }
            Some(Known::Cookie) if self.kind == MessageKind::Request => {
                // RFC 9113 section 8.2.3: crumbs are joined for recipients other than HTTP/2.
                if !self.cookie.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(field.value);
                return Ok(());
            }
            None if self.kind == MessageKind::Request && field.name == b"host" => {
                self.host = true;
                if self.seen & AUTHORITY == 0 && !self.map.contains(Known::Authority) {
                    self.map.append_known(Known::Authority, field.value);
                }
                return Ok(());
            }
            _ => {}
        }
        self.map.append_found(field.known, field.name, field.value);
        Ok(())
    }

    fn pseudo(&mut self, field: &Field<'_>) -> Result<(), &'static str> {
        const VIOLATION: &str = "http2.violation.of.messaging.rule";
        let (bit, side) = match field.known {
            Some(Known::Method) => (METHOD, MessageKind::Request),
            Some(Known::Path) => (PATH, MessageKind::Request),
            Some(Known::Authority) => (AUTHORITY, MessageKind::Request),
            Some(Known::Scheme) => (SCHEME, MessageKind::Request),
            Some(Known::Protocol) => (PROTOCOL, MessageKind::Request),
            Some(Known::Status) => (STATUS, MessageKind::Response),
            _ => return Err(VIOLATION),
        };
        if side != self.kind || self.regular || self.seen & bit != 0 {
            return Err(VIOLATION);
        }
        self.seen |= bit;
        let valid = match bit {
            METHOD => {
                self.connect = field.value == b"CONNECT";
                is_token(field.value)
            }
            PATH => !field.value.is_empty() && field.value.iter().all(|byte| *byte > b' '),
            AUTHORITY => is_authority(field.value),
            SCHEME => is_scheme(field.value),
            STATUS => field.value.len() == 3 && field.value.iter().all(u8::is_ascii_digit),
            _ => {
                self.protocol.extend_from_slice(field.value);
                return if self.rules.extended_connect { Ok(()) } else { Err(VIOLATION) };
            }
        };
        if !valid {
            return Err("http2.invalid.header.field");
        }
        self.map.append_found(field.known, field.name, field.value);
        Ok(())
    }

    fn finish(mut self) -> Result<MessageFacts, Malformed> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let complete = match self.kind {
            MessageKind::Trailers => true,
            MessageKind::Response => self.seen == STATUS,
            MessageKind::Request => self.finish_request(),
        };
        if complete { Ok(self.facts) } else { Err(Malformed::Messaging("http2.violation.of.messaging.rule")) }
    }

    fn finish_request(&mut self) -> bool {
        const ORDINARY: u8 = METHOD | PATH | SCHEME;
        if !self.cookie.is_empty() {
            self.map.append_known(Known::Cookie, &self.cookie);
        }
        if self.connect && self.seen & PROTOCOL == 0 {
            // RFC 9113 section 8.5.
            return self.seen == METHOD | AUTHORITY;
        }
        if self.seen & ORDINARY != ORDINARY || !(self.seen & AUTHORITY != 0 || self.host) {
            return false;
        }
        let path = self.map.path();
        let http = matches!(self.map.get(Known::Scheme), Some(b"http" | b"https"));
        if http && path.first() != Some(&b'/') && !(path == b"*" && self.map.method() == b"OPTIONS") {
            return false;
        }
        if self.seen & PROTOCOL != 0 {
            if !self.connect || self.seen & AUTHORITY == 0 {
                return false;
            }
            self.map.set(Known::Method, b"GET");
            self.map.append_known(Known::Upgrade, &self.protocol);
            self.facts.upgrade = true;
        }
        true
    }
}

fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|length| *length <= i64::MAX as u64)
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(byte))
}

fn is_authority(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:%[]".contains(byte))
}

fn is_scheme(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

/// Writes a request's head; `upgrade`: as an extended CONNECT.
pub(crate) fn write_request(encoder: &mut Encoder, out: &mut Vec<u8>, map: &HeaderMap) {
    encoder.begin(out);
    let protocol = map.get(Known::Upgrade);
    let method = if protocol.is_some() { b"CONNECT" } else { map.method() };
    pseudo(encoder, out, Known::Method, method);
    if protocol.is_some() || method != b"CONNECT" {
        pseudo(encoder, out, Known::Scheme, map.get(Known::Scheme).unwrap_or(b"http"));
        pseudo(encoder, out, Known::Path, map.path());
    }
    pseudo(encoder, out, Known::Authority, map.authority());
    if let Some(protocol) = protocol {
        pseudo(encoder, out, Known::Protocol, protocol);
    }
    write_fields(encoder, out, map);
}

/// Writes a response's head.
pub(crate) fn write_response(encoder: &mut Encoder, out: &mut Vec<u8>, map: &HeaderMap, status: u16) {
    encoder.begin(out);
    let digits =
        [b'0' + (status / 100 % 10) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
    pseudo(encoder, out, Known::Status, &digits);
    write_fields(encoder, out, map);
}

/// Writes trailers.
pub(crate) fn write_trailers(encoder: &mut Encoder, out: &mut Vec<u8>, map: &HeaderMap) {
    encoder.begin(out);
    write_fields(encoder, out, map);
}

fn pseudo(encoder: &mut Encoder, out: &mut Vec<u8>, name: Known, value: &[u8]) {
    encoder.field(out, Some(name), name.text().as_bytes(), value);
}

/// All fields but pseudo-headers and those that HTTP/2 forbids (RFC 9113 section 8.2.2).
fn write_fields(encoder: &mut Encoder, out: &mut Vec<u8>, map: &HeaderMap) {
    for (known, name, value) in map.iter_known() {
        match known {
            Some(
                Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade
                | Known::Http2Settings,
            ) => continue,
            Some(Known::Te) if !value.eq_ignore_ascii_case(b"trailers") => continue,
            _ if name.first() == Some(&b':') => continue,
            _ => {}
        }
        encoder.field(out, known, name, value);
    }
}
