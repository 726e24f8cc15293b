//! What heads say, found out in the plainest way: httparse splits the lines, and each rule looks at
//! them anew. The codec did it so once; what it does now is compared with this.

use std::mem::MaybeUninit;

use super::fields::Framing;
use super::head::{HeadLimits, METHODS, RequestHead, ResponseHead, names_version};
use super::target::{url_authority, valid_authority};
use crate::http::codec::{BodyLength, CODEC_ERROR, CodecError};
use crate::http::headers::{HeaderMap, Known};

const TOO_LARGE: CodecError = CodecError { status: 431, details: "http1.headers_too_large" };
const TOO_MANY: CodecError = CodecError { status: 431, details: "http1.too_many_headers" };
const CONFLICT: CodecError = CodecError::bad("http1.content_length_and_chunked_not_allowed");

/// Parses a request head at the start of `input` into `map`; `None`: it is not complete yet.
pub(super) fn parse_request(
    input: &[u8],
    limits: &HeadLimits,
    map: &mut HeaderMap,
) -> Result<Option<RequestHead>, CodecError> {
    with_fields(|fields| {
        let mut request = httparse::Request::new(&mut []);
        let size = match request.parse_with_uninit_headers(input, fields) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return incomplete(input, limits),
            Err(error) => return Err(request_error(error, input, limits)),
        };
        check_size(input, size, request.headers.len(), limits)?;
        let method = request.method.unwrap_or_default();
        let target = request.path.unwrap_or_default();
        let known_method = limits.custom_methods || METHODS.contains(&method);
        if !known_method || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CODEC_ERROR);
        }
        map.clear();
        map.append_known(Known::Method, method.as_bytes());
        let http10 = request.version == Some(0);
        let mut connection = Connection::default();
        let mut framing = Framing::default();
        let mut host = None;
        let mut upgrade = None;
        let mut expects_continue = false;
        // `connection` may stand behind what it names, so it is read first.
        for field in request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("connection")) {
            connection.read(field.value);
        }
        if connection.names_forwarding() || connection.words > 9 {
            return Err(CodecError::bad("http1.connection_header_rejected"));
        }
        // No standard header, but clients of forward proxies send it, and Envoy obeys it.
        let mut proxy_connection = Connection::default();
        let named = |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case("proxy-connection");
        for field in request.headers.iter().filter(named) {
            proxy_connection.read(field.value);
        }
        connection.close |= proxy_connection.close;
        let authority = target_authority(method, target, limits, map)?;
        if let Some(authority) = authority {
            map.append_known(Known::Authority, authority.as_bytes());
        }
        for field in request.headers.iter() {
            if !valid_value(field.value) {
                return Err(CodecError::bad("http1.invalid_characters"));
            }
            let name = field.name;
            match known(name) {
                Some(Known::ContentLength) => {
                    framing.length(field.value)?;
                    map.append_known(Known::ContentLength, field.value);
                }
                Some(Known::TransferEncoding) => framing.encoding(field.value, true)?,
                Some(
                    Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Http2Settings,
                ) => {}
                Some(Known::Upgrade) => upgrade = Some(field.value),
                // Of all that it may ask for trailers alone concern the endpoint, even though
                // `connection` must name the field.
                Some(Known::Te) if field.value.eq_ignore_ascii_case(b"trailers") => {
                    map.append_known(Known::Te, field.value);
                }
                Some(Known::Te) if has_trailers(field.value) => {
                    map.append_known(Known::Te, b"trailers");
                }
                Some(Known::Te) => {}
                Some(Known::Expect) => {
                    expects_continue = field.value.eq_ignore_ascii_case(b"100-continue");
                    map.append_known(Known::Expect, field.value);
                }
                None if name.eq_ignore_ascii_case("host") => {
                    if host.replace(field.value).is_some() {
                        return Err(CODEC_ERROR);
                    }
                    if !valid_authority(field.value) {
                        return Err(CodecError::bad("http.invalid_authority"));
                    }
                    // Named by `connection` it stops here as all others do, and is missed then.
                    if authority.is_none() && !connection.names("host") {
                        map.append_known(Known::Authority, field.value);
                    }
                }
                Some(known) if !connection.names(name) => map.append_known(known, field.value),
                None if !connection.names(name) => map.append(name.as_bytes(), field.value),
                _ => {}
            }
        }
        let upgrade = upgrade.filter(|kind| connection.upgrade && !kind.eq_ignore_ascii_case(b"h2c"));
        if let Some(kind) = upgrade {
            map.append_known(Known::Upgrade, kind);
            // Goes with it, as it was written.
            map.append_known(Known::Connection, connection.text);
        }
        if framing.chunked && framing.length.is_some() {
            if !limits.chunked_length {
                return Err(CONFLICT);
            }
            map.remove(Known::ContentLength);
        }
        if framing.chunked && http10 {
            return Err(CODEC_ERROR);
        }
        let body = match framing.length {
            _ if method == "CONNECT" || upgrade.is_some() => BodyLength::UntilClose,
            _ if framing.chunked => BodyLength::Chunked,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Empty,
        };
        Ok(Some(RequestHead {
            size,
            fields: counted(request.headers),
            http10,
            body,
            keep_alive: if http10 { connection.keep_alive && !connection.close } else { !connection.close },
            expects_continue,
            upgrade: upgrade.is_some(),
        }))
    })
}

/// Parses a response head at the start of `input` into `map`; `None`: it is not complete yet.
/// `to_head`: the request was HEAD.
pub(super) fn parse_response(
    input: &[u8],
    limits: &HeadLimits,
    to_head: bool,
    map: &mut HeaderMap,
) -> Result<Option<ResponseHead>, CodecError> {
    with_fields(|fields| {
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let size = match config.parse_response_with_uninit_headers(&mut response, input, fields) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return incomplete(input, limits),
            Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY),
            Err(_) => return Err(CODEC_ERROR),
        };
        check_size(input, size, response.headers.len(), limits)?;
        let status = response.code.unwrap_or(0);
        if !(100..=599).contains(&status) {
            return Err(CODEC_ERROR);
        }
        map.clear();
        map.set_status(status);
        let http10 = response.version == Some(0);
        let mut connection = Connection::default();
        let mut framing = Framing::default();
        for field in response.headers.iter() {
            if !valid_value(field.value) {
                return Err(CodecError::bad("http1.invalid_characters"));
            }
            match known(field.name) {
                Some(Known::ContentLength) => {
                    framing.length(field.value)?;
                    map.append_known(Known::ContentLength, field.value);
                }
                Some(Known::TransferEncoding) => framing.encoding(field.value, false)?,
                Some(Known::Connection) => {
                    connection.read(field.value);
                    if status == 101 {
                        map.append_known(Known::Connection, field.value);
                    }
                }
                Some(Known::KeepAlive | Known::ProxyConnection) => {}
                Some(Known::Upgrade) if status != 101 => {}
                Some(known) => map.append_known(known, field.value),
                None => map.append(field.name.as_bytes(), field.value),
            }
        }
        if framing.chunked && framing.length.is_some() {
            if !limits.chunked_length {
                return Err(CONFLICT);
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
        let keep_alive = if http10 { connection.keep_alive && !connection.close } else { !connection.close };
        Ok(Some(ResponseHead {
            size,
            status,
            body,
            keep_alive: keep_alive && body != BodyLength::UntilClose,
        }))
    })
}

/// The bytes of all names and values, and three for each field; three if there is none.
fn counted(fields: &[httparse::Header<'_>]) -> u64 {
    let texts: usize = fields.iter().map(|field| field.name.len() + field.value.len()).sum();
    (texts + 3 * fields.len().max(1)) as u64
}

/// Runs `parse` with room for header fields.
fn with_fields<'b, T>(parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> T) -> T {
    parse(&mut [const { MaybeUninit::uninit() }; 128])
}

fn incomplete<T>(input: &[u8], limits: &HeadLimits) -> Result<Option<T>, CodecError> {
    let bare = memchr::memchr_iter(b'\n', input).any(|at| at > 0 && input.get(at - 1) != Some(&b'\r'));
    if bare {
        return Err(CODEC_ERROR);
    }
    if input.len() > limits.bytes { Err(TOO_LARGE) } else { Ok(None) }
}

fn check_size(input: &[u8], size: usize, fields: usize, limits: &HeadLimits) -> Result<(), CodecError> {
    if size > limits.bytes {
        return Err(TOO_LARGE);
    }
    if fields > limits.fields {
        return Err(TOO_MANY);
    }
    let head = input.get(..size).unwrap_or_default();
    if memchr::memchr_iter(b'\n', head).any(|at| at > 0 && head.get(at - 1) != Some(&b'\r')) {
        return Err(CODEC_ERROR);
    }
    Ok(())
}

/// Whether `trailers` is in a list.
fn has_trailers(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn request_error(error: httparse::Error, input: &[u8], limits: &HeadLimits) -> CodecError {
    match error {
        httparse::Error::TooManyHeaders => TOO_MANY,
        httparse::Error::Version | httparse::Error::Token if names_version(input) => {
            CodecError { status: 426, details: "low_version" }
        }
        httparse::Error::HeaderValue => CodecError::bad("http1.invalid_characters"),
        _ if input.len() > limits.bytes => TOO_LARGE,
        _ => CODEC_ERROR,
    }
}

/// Reads the request target; gives the authority of an absolute or authority form.
fn target_authority<'t>(
    method: &str,
    target: &'t str,
    limits: &HeadLimits,
    map: &mut HeaderMap,
) -> Result<Option<&'t str>, CodecError> {
    const INVALID: CodecError = CodecError::bad("http1.invalid_url");
    if method == "CONNECT" {
        // Authority form: host and port, no path (RFC 9112 section 3.2.3).
        let port = target.rsplit_once(':').map(|(_, port)| port).ok_or(INVALID)?;
        if port.parse::<u16>().is_err() || !valid_authority(target.as_bytes()) {
            return Err(INVALID);
        }
        return Ok(Some(target));
    }
    if target.starts_with('/') {
        map.append_known(Known::Path, target.as_bytes());
        return Ok(None);
    }
    if target == "*" {
        if method != "OPTIONS" {
            return Err(INVALID);
        }
        map.append_known(Known::Path, b"*");
        return Ok(None);
    }
    let scheme = target.get(..8).unwrap_or(target);
    let rest = if scheme.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
        target.get(7..)
    } else if scheme.eq_ignore_ascii_case("https://") {
        target.get(8..)
    } else {
        None
    };
    if rest.is_none() && limits.absolute_url && target.contains("://") {
        return Err(CodecError::bad("http1.invalid_scheme"));
    }
    let (Some(rest), true) = (rest, limits.absolute_url) else { return Err(CODEC_ERROR) };
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let authority = url_authority(authority).ok_or(INVALID)?;
    if path.starts_with('/') {
        map.append_known(Known::Path, path.as_bytes());
    } else {
        map.append_known(Known::Path, format!("/{path}").as_bytes());
    }
    Ok(Some(authority))
}

/// Looks a name up in any case without allocating.
fn known(name: &str) -> Option<Known> {
    let mut lower = [0u8; 48];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    Known::find(lower)
}

/// No control characters but tab; httparse has refused most already.
fn valid_value(value: &[u8]) -> bool {
    // Counted to the end, so that the compiler makes one comparison of many bytes at a time.
    let control = |byte: &&u8| **byte < 0x20 && **byte != b'\t' || **byte == 0x7f;
    value.iter().filter(control).count() == 0
}

/// What a `connection` header says.
#[derive(Default)]
struct Connection<'a> {
    /// The last value as it was written.
    text: &'a [u8],
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    /// Names of other headers that speak of this connection only.
    named: smallvec::SmallVec<[&'a [u8]; 2]>,
    words: usize,
}

impl<'a> Connection<'a> {
    fn read(&mut self, value: &'a [u8]) {
        self.text = value;
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.words += usize::from(!token.is_empty());
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                self.named.push(token);
            }
        }
    }

    fn names(&self, name: &str) -> bool {
        self.named.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Whether it would take off what says where the request comes from or goes to: no honest
    /// client asks for that, and Envoy refuses it too.
    fn names_forwarding(&self) -> bool {
        const FORWARDING: [&[u8]; 3] = [b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];
        self.named.iter().any(|named| {
            named.contains(&b':') || FORWARDING.iter().any(|name| named.eq_ignore_ascii_case(name))
        })
    }
}
