//! What happens to a request's head before it is routed: validation, path normalization,
//! trust (`x-forwarded-for` and friends), request id. Follows Envoy's connection manager.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::rc::Rc;

use crate::http::client_cert;
use crate::http::codec::CodecError;
use crate::http::codec::h1::target::valid_authority;
use crate::http::config::{EscapedSlashes, HttpConnectionManager, StripPort, Underscores};
use crate::http::headers::{HeaderMap, Known, KnownSet};
use crate::http::reply::Reply;
use crate::io::is_localhost;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, StreamInfo};

/// Headers that are removed from requests of an edge's clients.
const NOT_FROM_OUTSIDE: KnownSet = KnownSet::of(&[
    Known::EnvoyDecoratorOperation,
    Known::EnvoyDownstreamServiceCluster,
    Known::EnvoyDownstreamServiceNode,
    Known::EnvoyOriginalHost,
    Known::EnvoyOriginalPath,
]);

/// Headers that only internal requests may have, on an edge or not.
const INTERNAL_ONLY: KnownSet = KnownSet::of(&[
    Known::EnvoyRetriableStatusCodes,
    Known::EnvoyRetriableHeaderNames,
    Known::EnvoyRetryOn,
    Known::EnvoyRetryGrpcOn,
    Known::EnvoyMaxRetries,
    Known::EnvoyUpstreamAltStatName,
    Known::EnvoyUpstreamRqTimeoutMs,
    Known::EnvoyUpstreamRqPerTryTimeoutMs,
    Known::EnvoyUpstreamRqTimeoutAltResponse,
    Known::EnvoyExpectedRqTimeoutMs,
    Known::EnvoyForceTrace,
    Known::EnvoyHedgeOnPerTryTimeout,
    Known::EnvoyIpTags,
    Known::EnvoyInternal,
]);

/// What normalization found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The request comes from inside (`x-envoy-internal`).
    pub(crate) internal: bool,
}

/// Validates and normalizes a request's head in place. `Err`: it is answered at once.
pub(crate) fn request(
    manager: &HttpConnectionManager,
    info: &mut StreamInfo,
    head: &mut HeaderMap,
    random: impl Fn() -> u64,
) -> Result<Origin, Reply> {
    underscores(manager, head)?;
    join_lists(head);
    if !manager.early_changes.is_empty() {
        let context = FormatContext::new(info);
        for change in &manager.early_changes {
            change.apply(head, &context);
        }
        join_lists(head);
    }
    if !head.contains(Known::Authority) {
        return Err(Reply::new(400, "missing_host_header", ""));
    }
    // The codec of HTTP/1 has looked at it already.
    let checked = matches!(info.protocol, Some(Protocol::Http10 | Protocol::Http11));
    if !checked && !valid_authority(head.authority()) {
        return Err(Reply::protocol_error(CodecError::bad("http.invalid_authority")));
    }
    let connect = head.method() == b"CONNECT";
    if !connect {
        if !head.path().starts_with(b"/") {
            return Err(Reply::new(404, "absolute_path_rejected", ""));
        }
        path(manager, head)?;
    }
    authority(manager, info, head);
    let origin = trust(manager, info, head)?;
    if manager.generate_request_id {
        let edge = manager.use_remote_address && !origin.internal;
        if !head.contains(Known::XRequestId) || (edge && !manager.preserve_external_request_id) {
            head.set(Known::XRequestId, &uuid([random(), random()]));
        }
    }
    info.request_id = head.get_str(Known::XRequestId).map(Into::into);
    Ok(origin)
}

/// The same for a request that follows an internal redirect.
pub(crate) fn again(
    manager: &HttpConnectionManager,
    info: &StreamInfo,
    head: &mut HeaderMap,
) -> Result<(), Reply> {
    path(manager, head)?;
    authority(manager, info, head);
    Ok(())
}

/// Lists that came in several lines become one, as in Envoy: each is read and extended as one.
fn join_lists(head: &mut HeaderMap) {
    const LISTS: KnownSet =
        KnownSet::of(&[Known::XForwardedFor, Known::XForwardedHost, Known::XForwardedClientCert, Known::Via]);
    for name in head.repeated(LISTS).iter() {
        let joined = head.find_all(name.text()).collect::<Vec<_>>().join(&b","[..]);
        head.set(name, &joined);
    }
}

fn underscores(manager: &HttpConnectionManager, head: &mut HeaderMap) -> Result<(), Reply> {
    if manager.underscores == Underscores::Allow || !head.iter().any(|(name, _)| name.contains(&b'_')) {
        return Ok(());
    }
    if manager.underscores == Underscores::Reject {
        return Err(Reply::protocol_error(CodecError::bad("http1.unexpected_underscore")));
    }
    head.retain(|name, _| !name.contains(&b'_'));
    Ok(())
}

/// Path normalization as the manager asks for it.
fn path(manager: &HttpConnectionManager, head: &mut HeaderMap) -> Result<(), Reply> {
    const FAILED: &str = "path_normalization_failed";
    let original = head.path();
    if original.contains(&b'#') {
        return Err(Reply::new(400, FAILED, ""));
    }
    let plain =
        !manager.normalize_path && !manager.merge_slashes && manager.escaped_slashes == EscapedSlashes::Keep;
    if plain {
        return Ok(());
    }
    let end = memchr::memchr(b'?', original).unwrap_or(original.len());
    let (path, query) = original.split_at(end);
    if is_normal(path) {
        return Ok(());
    }
    let mut normal = Cow::Borrowed(path);
    let mut redirect = false;
    if manager.escaped_slashes != EscapedSlashes::Keep {
        let unescaped = unescape_slashes(&normal);
        if let Cow::Owned(unescaped) = unescaped {
            match manager.escaped_slashes {
                EscapedSlashes::Reject => return Err(Reply::new(400, FAILED, "")),
                EscapedSlashes::UnescapeRedirect => redirect = true,
                EscapedSlashes::UnescapeForward | EscapedSlashes::Keep => {}
            }
            normal = Cow::Owned(unescaped);
        }
    }
    if manager.normalize_path {
        normal = Cow::Owned(remove_dots(&unescape_unreserved(&normal)));
    }
    if manager.merge_slashes {
        let mut merged = normal.into_owned();
        merged.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
        normal = Cow::Owned(merged);
    }
    if *normal != *path {
        let mut whole = normal.into_owned();
        whole.extend_from_slice(query);
        head.set(Known::Path, &whole);
        if redirect {
            return Err(Reply::new(307, FAILED, "").header("location", whole));
        }
    }
    Ok(())
}

/// Whether there is nothing in a path that normalization could change, whatever it is to do.
fn is_normal(path: &[u8]) -> bool {
    let mut previous = 0;
    path.iter().all(|byte| {
        let dull = match byte {
            b'%' | b'\\' => false,
            b'/' | b'.' => previous != b'/',
            _ => true,
        };
        previous = *byte;
        dull
    })
}

/// `%2F` and `%5C` to slashes.
fn unescape_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    unescape(path, |byte| matches!(byte, b'/' | b'\\'))
}

/// Escaped characters that need no escaping (RFC 3986 section 2.3) to themselves; backslashes
/// to slashes, as the WHATWG's URL parser and Envoy do.
fn unescape_unreserved(path: &[u8]) -> Vec<u8> {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let mut path = unescape(path, unreserved).into_owned();
    for byte in &mut path {
        if *byte == b'\\' {
            *byte = b'/';
        }
    }
    path
}

fn unescape(path: &[u8], which: impl Fn(u8) -> bool) -> Cow<'_, [u8]> {
    if !path.contains(&b'%') {
        return Cow::Borrowed(path);
    }
    let hex = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(path.len());
    let mut changed = false;
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        let decoded = match tail {
            [high, low, ..] if *first == b'%' => hex(high).zip(hex(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        if let Some(byte) = decoded.filter(|byte| which(*byte)) {
            out.push(byte);
            changed = true;
            rest = tail.get(2..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(path) }
}

/// Resolves `.` and `..` segments (RFC 3986 section 5.2.4).
fn remove_dots(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let body = path.strip_prefix(b"/").unwrap_or(path);
    let mut segments = body.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                }
                if last {
                    out.push(b'/');
                }
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// Port and trailing dot of `:authority`.
fn authority(manager: &HttpConnectionManager, info: &StreamInfo, head: &mut HeaderMap) {
    if manager.strip_port == StripPort::No && !manager.strip_trailing_dot {
        return;
    }
    let Some(text) = head.get_str(Known::Authority) else { return };
    let port_at = text.rfind(':').filter(|at| !text.get(*at..).unwrap_or_default().contains(']'));
    let (mut host, mut port) = port_at.map_or((text, ""), |at| text.split_at(at));
    let number: Option<u16> = port.get(1..).and_then(|port| port.parse().ok());
    let strip = match manager.strip_port {
        StripPort::No => false,
        StripPort::Any => number.is_some(),
        StripPort::Matching => number == Some(info.connection.local.port()),
    };
    if strip && head.method() != b"CONNECT" {
        port = "";
    }
    if manager.strip_trailing_dot {
        host = host.strip_suffix('.').unwrap_or(host);
    }
    let wanted = format!("{host}{port}");
    if wanted != text {
        head.set(Known::Authority, wanted.as_bytes());
    }
}

/// Who the client is and what it may say of itself.
fn trust(
    manager: &HttpConnectionManager,
    info: &mut StreamInfo,
    head: &mut HeaderMap,
) -> Result<Origin, Reply> {
    let peer = info.connection.remote;
    let by_port = manager.forward_proto.as_ref().and_then(|ports| ports.scheme(&info.connection));
    let own_scheme: &[u8] = by_port.unwrap_or(if info.connection.tls.is_some() { b"https" } else { b"http" });
    let forwarded = head.contains(Known::XForwardedFor);
    let mut client = peer.ip();
    let mut checkable;
    if manager.use_remote_address {
        checkable = !forwarded;
        if manager.xff_trusted_hops > 0
            && let Some((address, _)) = nth_last(head, manager.xff_trusted_hops - 1)
        {
            client = address;
        }
        if !manager.skip_xff_append {
            append_forwarded_for(
                head,
                if is_localhost(peer.ip()) { own_address(peer.ip()) } else { peer.ip() },
            );
        }
        let distrusted = manager.xff_trusted_hops == 0;
        if distrusted || !head.contains(Known::XForwardedProto) {
            head.set(Known::XForwardedProto, own_scheme);
        }
        if manager.append_forwarded_port && (distrusted || !head.contains(Known::XForwardedPort)) {
            head.set(Known::XForwardedPort, info.connection.local.port().to_string().as_bytes());
        }
    } else if !manager.detections.is_empty() {
        checkable = false;
        for detection in &manager.detections {
            let found = detection.detect(peer.ip(), head)?;
            if detection.appends() {
                append_forwarded_for(head, own_address(peer.ip()));
            }
            if let Some(found) = found {
                (client, checkable) = (found.address, found.checkable);
                break;
            }
        }
    } else if let Some((address, single)) = nth_last(head, manager.xff_trusted_hops) {
        client = address;
        checkable = single;
    } else {
        // Nobody says who the client is, and whoever sends it is not asked.
        checkable = false;
    }
    if !head.contains(Known::XForwardedProto) {
        head.set(Known::XForwardedProto, own_scheme);
    }
    if let Some(scheme) = &manager.scheme_overwrite {
        head.set(Known::Scheme, scheme.as_bytes());
    } else if !head.contains(Known::Scheme) {
        let https =
            head.get(Known::XForwardedProto).is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"));
        head.set(Known::Scheme, if https { b"https" } else { b"http" });
    }
    if client != peer.ip() {
        info.connection = with_remote(&info.connection, SocketAddr::new(client, 0));
    }
    client_cert::forward(&manager.client_cert, info.connection.tls.as_deref(), head);
    let internal = checkable && manager.internal_addresses.as_ref().is_some_and(|set| set.contains(client));
    let edge = manager.use_remote_address && !internal;
    if internal {
        head.set(Known::EnvoyInternal, b"true");
    } else {
        if edge {
            head.remove_set(NOT_FROM_OUTSIDE);
        }
        head.remove_set(INTERNAL_ONLY);
    }
    if manager.add_user_agent {
        head.set(Known::EnvoyDownstreamServiceCluster, manager.service_cluster.as_bytes());
        if head.get(Known::UserAgent).is_none_or(<[u8]>::is_empty) {
            head.set(Known::UserAgent, manager.service_cluster.as_bytes());
        }
        if !manager.service_node.is_empty() {
            head.set(Known::EnvoyDownstreamServiceNode, manager.service_node.as_bytes());
        }
    }
    if edge {
        with_text(client, |text| head.set(Known::EnvoyExternalAddress, text));
    }
    if !manager.via.is_empty() {
        append_list(head, Known::Via, manager.via.as_bytes(), b", ");
    }
    Ok(Origin { internal })
}

/// The address at position `skip` from the end of `x-forwarded-for`, and whether it is alone.
pub(crate) fn nth_last(head: &HeaderMap, skip: u32) -> Option<(IpAddr, bool)> {
    let values: Vec<&[u8]> = head.find_all(Known::XForwardedFor.text()).collect();
    let joined = values.join(&b","[..]);
    let text = std::str::from_utf8(&joined).ok()?;
    let address = text.rsplit(',').nth(skip as usize)?.trim();
    let parsed =
        address.parse::<IpAddr>().or_else(|_| address.parse::<SocketAddr>().map(|socket| socket.ip()));
    Some((parsed.ok()?, !text.contains(',')))
}

fn append_forwarded_for(head: &mut HeaderMap, address: IpAddr) {
    with_text(address, |text| append_list(head, Known::XForwardedFor, text, b","));
}

/// An address as text. Formatting by the standard library would take longer than parsing the
/// request's first line; IPv4 needs none of its care.
fn with_text(address: IpAddr, then: impl FnOnce(&[u8])) {
    let IpAddr::V4(address) = address else { return then(address.to_string().as_bytes()) };
    let mut text = [0; 16];
    let mut at = 0;
    for octet in address.octets() {
        let (digits, length) = OCTETS[usize::from(octet)];
        // Whole words: what is behind the dot is overwritten by the next octet.
        if let Some(place) = text.get_mut(at..at + 4) {
            place.copy_from_slice(&digits);
        }
        at += usize::from(length);
    }
    then(text.get(..at - 1).unwrap_or_default());
}

/// The digits of each octet with a dot behind them, and the length of that.
static OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([b'.'; 4], 2); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let length = if octet >= 100 {
            3
        } else if octet >= 10 {
            2
        } else {
            1
        };
        let mut at = 0;
        while at < length {
            octets[octet].0[at] = b'0' + digits[3 - length + at] as u8;
            at += 1;
        }
        octets[octet].1 = length as u8 + 1;
        octet += 1;
    }
    octets
};

/// Appends to a list-valued header, joining what is there.
pub(crate) fn append_list(head: &mut HeaderMap, name: Known, value: &[u8], separator: &[u8]) {
    if !head.contains(name) {
        head.append_known(name, value);
        return;
    }
    let mut joined = head.find_all(name.text()).collect::<Vec<_>>().join(separator);
    joined.extend_from_slice(separator);
    joined.extend_from_slice(value);
    head.set(name, &joined);
}

/// This machine's own address, which Envoy appends for clients on the loopback interface.
pub(crate) fn own_address(loopback: IpAddr) -> IpAddr {
    thread_local! {
        static OWN: RefCell<Option<IpAddr>> = const { RefCell::new(None) };
    }
    if loopback.is_ipv6() || !is_localhost(loopback) {
        return loopback;
    }
    OWN.with_borrow_mut(|own| {
        *own.get_or_insert_with(|| {
            // Connecting a datagram socket sends nothing; it asks the routing table.
            let find = || {
                let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
                socket.connect("192.0.2.1:9").ok()?;
                Some(socket.local_addr().ok()?.ip())
            };
            find().unwrap_or(loopback)
        })
    })
}

fn with_remote(connection: &ConnectionInfo, remote: SocketAddr) -> Rc<ConnectionInfo> {
    Rc::new(ConnectionInfo {
        id: connection.id,
        remote,
        direct_remote: connection.direct_remote,
        local: connection.local,
        direct_local: connection.direct_local,
        local_restored: connection.local_restored,
        server_name: connection.server_name.clone(),
        tls: connection.tls.clone(),
        transport_failure: connection.transport_failure.clone(),
        started: connection.started,
        found: crate::telemetry::stream_info::Found::default(),
    })
}

/// A random UUID, version 4. The version's nibble doubles as Envoy's trace reason: 4 says that
/// the request is not traced.
fn uuid(random: [u64; 2]) -> [u8; 36] {
    let [high, low] = random;
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let [a, b] = [hex((high >> 32) as u32), hex(high as u32)];
    let [c, d] = [hex((low >> 32) as u32), hex(low as u32)];
    let [b0, b1, b2, b3, b4, b5, b6, b7] = b;
    let [c0, c1, c2, c3, c4, c5, c6, c7] = c;
    let mut text = [b'-'; 36];
    put(&mut text, 0, a);
    put(&mut text, 9, [b0, b1, b2, b3]);
    put(&mut text, 14, [b4, b5, b6, b7]);
    put(&mut text, 19, [c0, c1, c2, c3]);
    put(&mut text, 24, [c4, c5, c6, c7]);
    put(&mut text, 28, d);
    text
}

/// Puts bytes in their place; one store, as their number is known.
#[inline(always)]
fn put<const N: usize>(text: &mut [u8; 36], at: usize, bytes: [u8; N]) {
    if let Some(place) = text.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = bytes;
    }
}

/// The eight digits of a number, all at once: each gets a byte of its own, to which `0` is added,
/// or what leads to the letters.
fn hex(number: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let spread = (spread | spread << 4) & (0x0f * EACH);
    let letters = (spread + 6 * EACH) >> 4 & EACH;
    let text = spread + u64::from(b'0') * EACH + letters * u64::from(b'a' - b'0' - 10);
    text.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::{is_normal, remove_dots, unescape_slashes, unescape_unreserved, uuid, with_text};

    #[test]
    fn dots_are_resolved() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../a", "/a"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/a//../b", "/a/b"),
            ("//a", "//a"),
            ("/a/", "/a/"),
            ("/..a/.b.", "/..a/.b."),
        ] {
            assert_eq!(String::from_utf8_lossy(&remove_dots(path.as_bytes())), expected, "{path}");
            assert_eq!(remove_dots(expected.as_bytes()), expected.as_bytes(), "idempotent: {path}");
            assert!(path == expected || !is_normal(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn only_what_needs_no_escape_is_unescaped() {
        let normal = |path: &str| String::from_utf8(unescape_unreserved(path.as_bytes())).unwrap_or_default();
        assert_eq!(normal("/%61%2e%2E%2f%zz%4"), "/a..%2f%zz%4");
        assert_eq!(normal("/a\\b"), "/a/b");
        assert_eq!(&*unescape_slashes(b"/a%2Fb%5cc%61"), b"/a/b\\c%61");
        for (path, normal) in [("/a.b/c-d/", true), ("/%61", false), ("/\\", false), ("/a//b", false)] {
            assert_eq!(is_normal(path.as_bytes()), normal, "{path}");
        }
    }

    #[test]
    fn addresses_read_as_the_standard_library_writes_them() {
        for text in ["0.0.0.0", "9.10.99.100", "127.0.0.1", "255.254.200.109", "::1", "2001:db8::a"] {
            let address: std::net::IpAddr = text.parse().expect("an address");
            with_text(address, |written| assert_eq!(String::from_utf8_lossy(written), text));
        }
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let text = uuid([u64::MAX, 0]);
        assert_eq!(String::from_utf8_lossy(&text), "ffffffff-ffff-4fff-8000-000000000000");
        let text = uuid([0x0123_4567_89ab_cdef, 0x89ab_cdef_0123_4567]);
        assert_eq!(String::from_utf8_lossy(&text), "01234567-89ab-4def-89ab-cdef01234567");
    }
}
