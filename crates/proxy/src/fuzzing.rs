//! Entry points for fuzzing: one function of bytes for each parser of what comes from the network
//! or from configuration. No interface: `fuzz/` runs them, on random mutations in the tests and
//! under libFuzzer by hand.
//!
//! A target must not panic on any input, and its assertions hold for all of them: what arrives in
//! pieces parses as what arrives at once, what was refused stays refused, and what we write is
//! read by ourselves as exactly one message (the property that smuggling breaks).

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap;
use leno_api::proto::envoy::config::cluster::v3::Cluster;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use leno_api::proto::envoy::config::listener::v3::Listener;
use leno_api::proto::envoy::config::route::v3::RouteConfiguration;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as ManagerProto;
use leno_base::Rng;
use leno_xds::client::{Client, Config, Interest, grpc};
use leno_xds::wire::Received;
use leno_xds::{Mode, TypeUrl};
use prost_types::Any;

use crate::compression::decoder;
use crate::config::discovery::Discovery;
use crate::config::lower::{Lower, Scope};
use crate::config::re2;
use crate::config::source::Origin;
use crate::config::store::Store;
use crate::http::codec::h1::body::BodyReader;
use crate::http::codec::h1::head::{HeadLimits, parse_request, parse_response};
use crate::http::codec::h1::write::{WriteStyle, write_request};
use crate::http::codec::{BodyLength, Frame, h2};
use crate::http::config::HttpConnectionManager;
use crate::http::filters::grpc_stats::frames;
use crate::http::headers::HeaderMap;
use crate::http::normalize;
use crate::http::route::{MatchContext, RouteTable, mutation};
use crate::listener::sockets::Sockets;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo};

mod connection;

/// What can be fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Names it and its folder of the corpus.
    pub name: &'static str,
    /// Takes any bytes; panics if they show an error.
    pub run: fn(&[u8]),
    /// Texts that inputs are worth being made of.
    pub dictionary: &'static [&'static str],
}

/// All targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "h1_request", run: h1_request, dictionary: HTTP1 },
    Target { name: "h1_response", run: h1_response, dictionary: HTTP1 },
    Target { name: "h1_body", run: h1_body, dictionary: HTTP1 },
    Target { name: "h2_server", run: h2::fuzz::server, dictionary: HTTP2 },
    Target { name: "h2_client", run: h2::fuzz::client, dictionary: HTTP2 },
    Target { name: "hpack", run: h2::fuzz::hpack, dictionary: HTTP2 },
    Target { name: "normalize", run: normalize, dictionary: PATHS },
    Target { name: "route", run: route, dictionary: PATHS },
    Target {
        name: "tls_inspector",
        run: connection::tls_inspector,
        dictionary: &["\u{16}\u{3}\u{1}", "\u{0}\u{0}"],
    },
    Target { name: "http_inspector", run: connection::http_inspector, dictionary: HTTP1 },
    Target {
        name: "proxy_protocol",
        run: connection::proxy_protocol,
        dictionary: &["PROXY TCP4 ", "PROXY UNKNOWN\r\n", "\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{c}"],
    },
    Target {
        name: "certificate",
        run: connection::certificate,
        dictionary: &["0\u{3}", "\u{6}\u{3}U\u{1d}\u{11}", "\u{6}\u{3}U\u{1d}\u{1e}", "\u{17}\u{d}"],
    },
    Target {
        name: "load_report",
        run: connection::load_report,
        dictionary: &["JSON ", "BIN ", "TEXT ", "cpu_utilization", "named_metrics.", "rps_fractional", "="],
    },
    Target { name: "grpc_frames", run: grpc_frames, dictionary: &["\u{0}\u{0}\u{0}\u{0}\u{1}x"] },
    Target {
        name: "decompress",
        run: decoder::fuzz,
        dictionary: &["\0\u{10}\u{1f}", "\u{1}\u{1}\u{6}", "\0\0\u{9}", "\0\0\u{3}"],
    },
    Target { name: "access_log_format", run: access_log_format, dictionary: FORMATS },
    Target { name: "re2", run: regex, dictionary: REGEXES },
    Target { name: "header_rules", run: header_rules, dictionary: FORMATS },
    Target { name: "lower_wire", run: lower_wire, dictionary: &["type.googleapis.com/envoy."] },
    Target { name: "lower_text", run: lower_text, dictionary: YAML },
    Target { name: "xds_delta", run: xds_delta, dictionary: &["type.googleapis.com/envoy."] },
];

const HTTP2: &[&str] = &[
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    // Frames: SETTINGS, its acknowledgement, PING, GOAWAY, RST_STREAM, WINDOW_UPDATE, PRIORITY.
    "\0\0\0\x04\0\0\0\0\0",
    "\0\0\0\x04\x01\0\0\0\0",
    "\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0",
    "\0\0\x08\x06\0\0\0\0\x0012345678",
    "\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0",
    "\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    "\0\0\x04\x08\0\0\0\0\x01\0\0\x7f\x7f",
    "\0\0\x04\x08\0\0\0\0\0\0\0\x7f\x7f",
    "\0\0\x05\x02\0\0\0\0\x01\0\0\0\x03\x07",
    // A request, a response, DATA, trailers, a CONTINUATION.
    "\0\0\x0a\x01\x05\0\0\0\x01\0\x07:method\x03GET\0\x05:path\x01/",
    "\0\0\x0d\x01\x04\0\0\0\x01\0\x07:status\x03200",
    "\0\0\x03\0\x01\0\0\0\x01abc",
    "\0\0\x04\0\x08\0\0\0\x01\x02a\0\0",
    "\0\0\x06\x01\x05\0\0\0\x01\0\x01a\x01b\0",
    "\0\0\x06\x09\x04\0\0\0\x01\0\x01a\x01b\0",
    "\0\x0acontent-length\x013",
    "\0\x0atransfer-encoding\x07chunked",
    "@\x01a\x01b",
    "?\x20",
];

const HTTP1: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0",
    "\r\n",
    "\n",
    "\r\n\r\n",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "\0",
    "content-length: 5",
    "Content-Length: 0",
    "content-length: +1",
    "transfer-encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "connection: close, te",
    "connection: upgrade\r\nupgrade: websocket\r\n",
    "expect: 100-continue",
    "CONNECT a:1 HTTP/1.1\r\n",
    "http://host/",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "ffffffffffffffff\r\n",
    "1;ext=\"v\"\r\n",
];

const PATHS: &[&str] = &[
    "/",
    "//",
    "/./",
    "/../",
    "%2F",
    "%2f",
    "%5c",
    "%2e",
    "%",
    "%00",
    "?",
    "#",
    ";",
    "\\",
    ":80",
    "[::1]",
    ".",
    "a=b&",
    "x-forwarded-for: 1.2.3.4, ::1\n",
];

const FORMATS: &[&str] = &[
    "%",
    "%%",
    "%REQ(X?Y):5%",
    "%REQ(:PATH)%",
    "%RESP(A)%",
    "%START_TIME(%Y-%m-%dT%H:%M:%E3S)%",
    "%START_TIME(%s.%9f)%",
    "%PROTOCOL%",
    "%DYNAMIC_METADATA(a:b:c):9%",
    "%FILTER_STATE(a:PLAIN)%",
    "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
    "%PATH(WQ:ORIG)%",
    "%GRPC_STATUS(NUMBER)%",
    "%RESPONSE_FLAGS_LONG%",
    ":18446744073709551615%",
    "(",
    ")",
];

const REGEXES: &[&str] = &[
    "(?i)",
    "(?P<n>",
    "(?:",
    "[[:alpha:]]",
    "\\pL",
    "\\p{Greek}",
    "\\Q",
    "\\E",
    "\\C",
    "\\z",
    "{2,3}",
    "{1000}",
    "*?",
    "[^",
    "]",
    "\\x{10FFFF}",
    "\\1",
    "|",
    ")",
    "\\b",
];

const YAML: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ": ",
    ", ",
    "\n",
    "- ",
    "name: a",
    "address: ",
    "socket_address: ",
    "port_value: 1",
    "typed_config: {'@type': type.googleapis.com/",
    "match: {prefix: /}",
    "route: {cluster: c}",
    "regex: ",
    "0.1s",
    "cluster_name: c",
    "&a",
    "*a",
    "!!binary ",
    "'",
    "\"",
    "|\n",
    "lb_policy: ",
    "type: STATIC",
    "domains: ['*']",
];

/// Limits of ordinary heads.
pub(crate) const LIMITS: HeadLimits = HeadLimits {
    bytes: 60 * 1024,
    fields: 100,
    absolute_url: true,
    chunked_length: false,
    custom_methods: false,
    keep_case: None,
    ignored_upgrades: None,
};

/// Most of what `Debug` would show of a message, to compare two.
fn fields(map: &HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    map.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// A request and its body: whole and in pieces, and written for the next hop.
fn h1_request(input: &[u8]) {
    let mut map = HeaderMap::new();
    let whole = parse_request(input, &LIMITS, &mut map);
    // A prefix is incomplete or refused, but never a shorter request.
    let cut = input.len() / 2;
    let prefix = input.get(..cut).unwrap_or_default();
    let mut early = HeaderMap::new();
    match (parse_request(prefix, &LIMITS, &mut early), &whole) {
        (Ok(Some(first)), Ok(Some(second))) => {
            assert_eq!(first, *second, "a longer input is another request");
            assert_eq!(fields(&early), fields(&map));
        }
        (Ok(Some(_)), other) => panic!("complete, and with more behind it {other:?}"),
        (Err(_), Ok(Some(_))) => panic!("refused in part, accepted as a whole"),
        _ => {}
    }
    let Ok(Some(head)) = whole else { return };
    assert!(head.size <= input.len());
    let mut rest = BytesMut::from(input.get(head.size..).unwrap_or_default());
    let body = read_body(BodyReader::new(head.body), &mut rest);
    if head.body == BodyLength::UntilClose {
        return;
    }
    if map.path().is_empty() || map.authority().is_empty() {
        // `normalize` refuses these before they are written.
        return;
    }
    // What goes upstream must be read there as this request, framed as it was here.
    let mut written = Vec::new();
    let end = head.body == BodyLength::Empty;
    let framing = write_request(&mut written, &map, end, WriteStyle::default());
    let mut again = HeaderMap::new();
    let limits = HeadLimits { bytes: usize::MAX, fields: 200, ..LIMITS };
    match parse_request(&written, &limits, &mut again) {
        Ok(Some(second)) => {
            assert_eq!(second.size, written.len(), "bytes behind the head that was written");
            assert_eq!(again.method(), map.method());
            assert_eq!(again.path(), map.path());
            assert_eq!(again.authority(), map.authority());
            match framing {
                BodyLength::Empty => {
                    assert!(matches!(second.body, BodyLength::Empty | BodyLength::Known(0)), "{second:?}");
                }
                framing => assert_eq!(second.body, framing),
            }
        }
        other => panic!("what was written is no request: {other:?}\n{}", written.escape_ascii()),
    }
    drop(body);
}

/// A response's head and body.
fn h1_response(input: &[u8]) {
    for to_head in [false, true] {
        let mut map = HeaderMap::new();
        let Ok(Some(head)) = parse_response(input, &LIMITS, to_head, &mut map) else { continue };
        assert!(head.size <= input.len());
        assert!((100..600).contains(&head.status));
        let mut rest = BytesMut::from(input.get(head.size..).unwrap_or_default());
        drop(read_body(BodyReader::new(head.body), &mut rest));
    }
}

/// A chunked body at once and byte by byte.
fn h1_body(input: &[u8]) {
    let mut whole = BytesMut::from(input);
    let at_once = read_body(BodyReader::new(BodyLength::Chunked), &mut whole);
    let mut reader = BodyReader::new(BodyLength::Chunked);
    let mut pending = BytesMut::new();
    let mut bytewise = Body::default();
    for byte in input {
        pending.extend_from_slice(&[*byte]);
        if bytewise.step(&mut reader, &mut pending) {
            break;
        }
    }
    assert_eq!(at_once.data, bytewise.data, "the data depends on how it arrives");
    // A size that grows too long may be refused before its line is complete.
    let early = at_once.end.is_none() && bytewise.end == Some(false);
    assert!(at_once.end == bytewise.end || early, "the end depends on how it arrives");
}

/// What was read of a body.
#[derive(Debug, Default)]
struct Body {
    data: Vec<u8>,
    /// How it ended: complete or refused; `None`: not yet.
    end: Option<bool>,
}

impl Body {
    /// Reads what `input` has; whether that is the end.
    fn step(&mut self, reader: &mut BodyReader, input: &mut BytesMut) -> bool {
        loop {
            match reader.decode(input) {
                Err(_) => self.end = Some(false),
                Ok(None) => return false,
                Ok(Some(frame)) => {
                    let last = frame.is_last();
                    if let Frame::Data { data, .. } = frame {
                        self.data.extend_from_slice(&data);
                    }
                    if !last {
                        continue;
                    }
                    self.end = Some(true);
                }
            }
            return true;
        }
    }
}

fn read_body(mut reader: BodyReader, input: &mut BytesMut) -> Body {
    let mut body = Body::default();
    body.step(&mut reader, input);
    body
}

/// Splits a text input into lines: the path, the host, then headers.
pub(crate) fn head(input: &[u8]) -> HeaderMap {
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut map = HeaderMap::new();
    map.append(b":method", b"GET");
    map.append(b":path", lines.next().unwrap_or_default());
    map.append(b":authority", lines.next().unwrap_or(b"a.test"));
    for line in lines.take(90) {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(at);
        if !name.is_empty() {
            map.append(&name.to_ascii_lowercase(), value.get(1..).unwrap_or_default().trim_ascii());
        }
    }
    map
}

/// A stream of which nothing is known.
pub(crate) fn stream_info() -> StreamInfo {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let connection = ConnectionInfo::plain(1, address, address, Instant::now());
    StreamInfo::new(Rc::new(connection), None, Instant::now(), SystemTime::UNIX_EPOCH)
}

/// Connection managers with every option of path, host and trust that there is.
const MANAGERS: &[&str] = &[
    "normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD, strip_any_host_port: true, use_remote_address: true, xff_num_trusted_hops: 1",
    "normalize_path: true, path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT, strip_matching_host_port: true, xff_num_trusted_hops: 2, via: v",
    "merge_slashes: true, path_with_escaped_slashes_action: REJECT_REQUEST, strip_trailing_host_dot: true",
    "use_remote_address: true, skip_xff_append: true, add_user_agent: true",
];

thread_local! {
    static LOWERED: Vec<std::sync::Arc<HttpConnectionManager>> = MANAGERS.iter().map(|text| manager(text)).collect();
    static ROUTES: RouteTable = routes();
}

fn manager(more: &str) -> std::sync::Arc<HttpConnectionManager> {
    let text = format!(
        "{{stat_prefix: f, route_config: {{name: r}}, http_filters: [{{name: router, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], {more}}}"
    );
    let proto: ManagerProto =
        leno_api::decode_text(&text, "manager").unwrap_or_else(|errors| panic!("{errors}"));
    let any = leno_api::any::pack(&proto);
    let lowered = Lower::resource(|at| HttpConnectionManager::lower_wire(any, at));
    lowered.unwrap_or_else(|why| panic!("{why}"))
}

/// Normalization of a request: what comes out is stable and stays a path.
fn normalize(input: &[u8]) {
    LOWERED.with(|managers| {
        for manager in managers {
            let mut map = head(input);
            if !map.path().starts_with(b"/") {
                return;
            }
            if normalize::request(manager, &mut stream_info(), &mut map, || 1).is_err() {
                continue;
            }
            let path = map.path().to_vec();
            assert!(path.starts_with(b"/"), "{}", path.escape_ascii());
            let upto = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
            let plain = path.get(..upto).unwrap_or_default();
            if manager.normalize_path {
                assert!(!plain.split(|byte| *byte == b'/').any(|part| part == b".." || part == b"."));
            }
            if manager.merge_slashes {
                assert!(!plain.windows(2).any(|pair| pair == b"//"), "{}", path.escape_ascii());
            }
        }
    });
}

const ROUTE_TABLE: &str = r#"
name: r
virtual_hosts:
- name: a
  domains: [a.test, "*.a.test", "a.*"]
  routes:
  - {match: {path: /exact}, route: {cluster: c}}
  - {match: {path_separated_prefix: /sep}, route: {cluster: c, prefix_rewrite: /x}}
  - {match: {safe_regex: {regex: "/r(e+)g/.*"}}, route: {cluster: c}}
  - {match: {prefix: /h, headers: [{name: x-h, range_match: {start: 1, end: 5}}, {name: x-i, string_match: {suffix: z}, invert_match: true}]}, route: {cluster: c}}
  - {match: {prefix: /q, query_parameters: [{name: q, string_match: {contains: v}}]}, route: {cluster: c}}
  - {match: {prefix: /, grpc: {}}, route: {cluster: c}}
- name: any
  domains: ["*"]
  routes: [{match: {prefix: "/", case_sensitive: false}, route: {cluster_header: x-cluster}}]
"#;

fn routes() -> RouteTable {
    let proto: RouteConfiguration =
        leno_api::decode_text(ROUTE_TABLE, "routes").unwrap_or_else(|errors| panic!("{errors}"));
    let source = leno_api::any::pack(&proto);
    let lowered = Lower::resource(|at| RouteTable::lower(&source, None, false, at));
    lowered.unwrap_or_else(|why| panic!("{why}"))
}

/// Looking up the route of any request.
fn route(input: &[u8]) {
    ROUTES.with(|table| {
        let map = head(input);
        let context = MatchContext { random: input.len() as u64, ..MatchContext::default() };
        let first = table.find(&map, &context).map(|found| found.virtual_host.name.clone());
        let second = table.find(&map, &context).map(|found| found.virtual_host.name.clone());
        assert_eq!(first, second);
    });
}

/// gRPC messages counted at once and byte by byte.
fn grpc_frames(input: &[u8]) {
    let whole = frames::count([input]);
    let bytewise = frames::count(input.chunks(1));
    assert_eq!(whole, bytewise);
}

/// Substitution format strings, parsed and used.
fn access_log_format(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(format) = Format::parse(text) else { return };
    let info = stream_info();
    let request = head(b"/p?q=1\na.test\nx: y");
    let mut cx = FormatContext::new(&info);
    cx.request = Some(&request);
    format.format(&cx, "-", &mut Vec::new());
}

/// RE2's syntax translated: what compiles can match; a full match is a match.
fn regex(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (pattern, subject) = text.split_once('\n').unwrap_or((text, "some/path"));
    if pattern.len() > 256 {
        return;
    }
    let any = re2::compile(pattern);
    let full = re2::compile_full(pattern);
    assert!(full.is_err() || any.is_ok(), "compiles only as a full match");
    if let (Ok(any), Ok(full)) = (any, full) {
        let matched = full.is_match(subject.as_bytes());
        assert!(!matched || any.is_match(subject.as_bytes()));
        let substitution = re2::substitution(subject, &any);
        drop(any.replace_all(subject.as_bytes(), substitution.as_bytes()));
    }
}

/// `headers_to_add` and `headers_to_remove` of a route: one `name: value` a line, `-name` removes.
fn header_rules(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for (line, action) in text.lines().take(20).zip((0..4).cycle()) {
        if let Some(name) = line.strip_prefix('-') {
            remove.push(name.to_owned());
        } else if let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.is_empty()) {
            let header =
                core::HeaderValue { key: key.to_owned(), value: value.to_owned(), ..Default::default() };
            let option =
                core::HeaderValueOption { header: Some(header), append_action: action, ..Default::default() };
            // Decoding has checked names and values by then.
            if leno_api::validate::message(&option).is_ok() {
                add.push(option);
            }
        }
    }
    let lowered = Lower::resource(|at| Some(mutation::lower("request", add, remove, at)));
    let Ok(mutations) = lowered else { return };
    let mut map = head(b"/p?q=1\na.test\nx: y");
    let info = stream_info();
    mutations.apply(&mut map, &FormatContext::new(&info));
    for (name, value) in map.iter() {
        assert!(!name.is_empty(), "a header without a name");
        assert!(!value.contains(&b'\n') && !value.contains(&0), "{}", value.escape_ascii());
    }
}

/// Lowers the message of a kind.
fn lower_any(kind: u8, any: Any) {
    let scope = Scope { added_via_api: kind & 0x80 != 0, ..Scope::default() };
    match kind % 6 {
        0 => drop(Lower::resource_in(scope, |at| crate::listener::config::lower(&any, None, at)).is_ok()),
        1 => drop(Lower::resource_in(scope, |at| crate::cluster::config::lower(&any, at)).is_ok()),
        2 => drop(Lower::resource_in(scope, |at| RouteTable::lower(&any, None, true, at)).is_ok()),
        3 => drop(Lower::resource_in(scope, |at| crate::cluster::config::lower_assignment(&any, at)).is_ok()),
        4 => drop(Lower::resource_in(scope, |at| HttpConnectionManager::lower_wire(any, at)).is_ok()),
        _ => drop(
            Lower::resource_in(scope, |at| crate::config::bootstrap::lower(any.value.into(), at)).is_ok(),
        ),
    }
}

fn type_url(kind: u8) -> String {
    use prost::Name as _;
    match kind % 6 {
        0 => Listener::type_url(),
        1 => Cluster::type_url(),
        2 => RouteConfiguration::type_url(),
        3 => ClusterLoadAssignment::type_url(),
        4 => ManagerProto::type_url(),
        _ => Bootstrap::type_url(),
    }
}

/// A message in wire form; the first byte says which.
fn lower_wire(input: &[u8]) {
    let Some((kind, wire)) = input.split_first() else { return };
    lower_any(*kind, Any { type_url: type_url(*kind), value: wire.to_vec() });
}

/// A message in YAML; the first byte says which.
fn lower_text(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    fn packed<T: prost::Message + prost::Name + Default>(text: &str) -> Option<Any> {
        leno_api::decode_text::<T>(text, "fuzz").ok().map(|message| leno_api::any::pack(&message))
    }
    let any = match kind % 6 {
        0 => packed::<Listener>(text),
        1 => packed::<Cluster>(text),
        2 => packed::<RouteConfiguration>(text),
        3 => packed::<ClusterLoadAssignment>(text),
        4 => packed::<ManagerProto>(text),
        _ => packed::<Bootstrap>(text),
    };
    if let Some(any) = any {
        lower_any(*kind, any);
    }
}

/// A DeltaDiscoveryResponse on a stream that has subscriptions, into a store. Listeners are left
/// out: a store binds their sockets.
fn xds_delta(input: &[u8]) {
    let Ok(response) = Received::decode(Mode::Delta, Bytes::copy_from_slice(input)) else { return };
    let mut client = Client::new(Config::new(Mode::Delta, core::Node::default()), Rng::new(1));
    let now = Instant::now();
    client.subscribe(now, &TypeUrl::Cluster, &Interest::Wildcard, None);
    for (type_url, name) in [(TypeUrl::Route, "r"), (TypeUrl::Endpoint, "s")] {
        client.subscribe(now, &type_url, &Interest::name(name), None);
    }
    client.on_connected();
    while client.next_request().is_some() {}
    let Some(update) = client.on_response(now, response) else { return };
    let (commander, _commands) = grpc::commands();
    let mut discovery = Discovery::new(Some(commander), Origin::Ads, Scope::default());
    let mut store = Store::new(true, false);
    let applied = discovery.apply(update, &mut store, &mut Sockets::new(1));
    drop(applied);
    store.settle();
}
