//! HTTP/2 frame by frame: what a client that breaks a rule, or just uses one, is answered, section
//! by section of RFC 9113. The same table is run against the real Envoy, with the differences named.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::h2::echo;
use super::{HTTP2, Proxy, cluster, run};
use crate::http::codec::h2::PREFACE;
use crate::http::codec::h2::frame::{FrameHead, HEAD, flag, kind};
use crate::http::codec::h2::hpack::decoder::Decoder;

/// One request to each of these: answered at once, and by an upstream that echoes.
const ROUTES: &str = "[{match: {path: /up}, route: {cluster: up, timeout: 0s}}, {match: {connect_matcher: {}}, route: {cluster: up}}, \
                      {match: {prefix: /}, direct_response: {status: 200}}]";

const END: u8 = flag::END_STREAM | flag::END_HEADERS;
const OPEN: u8 = flag::END_HEADERS;

fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = FrameHead { len: payload.len(), kind, flags, stream }.bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// A block of literals that change no table.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            let mut length = text.len();
            if length < 127 {
                out.push(length as u8);
            } else {
                out.push(127);
                length -= 127;
                while length >= 128 {
                    out.push(length as u8 | 128);
                    length >>= 7;
                }
                out.push(length as u8);
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, flags, stream, block(fields))
}

/// A request's pseudo-headers and these fields.
fn with<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", "h")];
    fields.extend_from_slice(more);
    fields
}

fn get(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, END, &with("GET", "/", more))
}

fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, OPEN, &with("POST", "/up", more))
}

fn data(stream: u32, flags: u8, payload: &str) -> Vec<u8> {
    frame(kind::DATA, flags, stream, payload)
}

fn setting(identifier: u16, value: u32) -> Vec<u8> {
    let payload = [&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(kind::SETTINGS, 0, 0, payload)
}

fn update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
}

fn repeat(times: usize, bytes: &[u8]) -> Vec<u8> {
    bytes.repeat(times)
}

/// What a client sends behind its preface and SETTINGS, what we answer, and what Envoy does if
/// that is something else.
struct Row {
    name: &'static str,
    sends: Vec<u8>,
    expected: &'static str,
    envoy: Option<&'static str>,
}

fn row(name: &'static str, sends: &[Vec<u8>], expected: &'static str) -> Row {
    Row { name, sends: sends.concat(), expected, envoy: None }
}

impl Row {
    /// Envoy does this instead.
    fn unlike(self, envoy: &'static str) -> Self {
        Self { envoy: Some(envoy), ..self }
    }
}

const PROTOCOL: &str = "GOAWAY 1";
const FLOW: &str = "GOAWAY 3";
const CLOSED: &str = "GOAWAY 5";
const SIZE: &str = "GOAWAY 6";
const COMPRESSION: &str = "GOAWAY 9";
const OK: &str = "1:200";

fn framing() -> Vec<Row> {
    let long = "x".repeat(16_385);
    let split = block(&with("GET", "/", &[]));
    let (first, second) = split.split_at(10);
    vec![
        row("3.4 a request", &[get(1, &[])], OK),
        row(
            "4.1 unknown frames are ignored",
            &[frame(0x20, 0xff, 0, "x"), frame(0x21, 0, 7, ""), get(1, &[])],
            OK,
        ),
        row("4.1 undefined flags are ignored", &[headers(1, END | 0x42, &with("GET", "/", &[]))], OK),
        row("4.2 a frame above the limit", &[post(1, &[]), data(1, 0, &long)], SIZE),
        row("4.3 a block that cannot be decoded", &[frame(1, END, 1, [0xff; 20])], COMPRESSION),
        row("4.3 a block cut off", &[frame(1, END, 1, [0x40, 3, b'a'])], COMPRESSION),
        row("5.1 DATA on an idle stream", &[data(1, 0, "x")], PROTOCOL),
        row("5.1 RST_STREAM on an idle stream", &[frame(3, 0, 1, [0; 4])], PROTOCOL),
        row("5.1 WINDOW_UPDATE on an idle stream", &[update(1, 1)], PROTOCOL),
        row("5.1 CONTINUATION without HEADERS", &[frame(9, 4, 1, second)], PROTOCOL),
        row("5.1 DATA behind the end", &[headers(1, END, &with("GET", "/up", &[])), data(1, 0, "x")], CLOSED),
        row(
            "5.1 HEADERS behind the end",
            &[headers(1, END, &with("GET", "/up", &[])), headers(1, END, &[("a", "b")])],
            CLOSED,
        ),
        row(
            "5.1 frames behind a reset are ignored",
            &[post(1, &[]), frame(3, 0, 1, [0, 0, 0, 8]), data(1, 0, "x"), update(1, 1), get(3, &[])],
            "3:200",
        ),
        row("5.1.1 an even stream", &[get(2, &[])], PROTOCOL),
        row("5.1.1 an earlier stream", &[get(3, &[]), get(1, &[])], "3:200"),
        row("5.3 PRIORITY is ignored", &[frame(2, 0, 1, [0, 0, 0, 3, 7]), get(1, &[])], OK),
        row(
            "5.3 HEADERS with a priority",
            &[frame(1, END | 0x20, 1, [&[0, 0, 0, 3, 7][..], &split].concat())],
            OK,
        ),
        row("6.1 DATA on stream 0", &[data(0, 0, "x")], PROTOCOL),
        row("6.1 padding longer than the payload", &[post(1, &[]), frame(0, 8, 1, [9, 0, 0])], PROTOCOL),
        row(
            "6.1 padded DATA",
            &[post(1, &[("content-length", "2")]), frame(0, 9, 1, [3, b'o', b'k', 0, 0, 0])],
            "1:200 1:trailers",
        ),
        row("6.2 HEADERS on stream 0", &[get(0, &[])], PROTOCOL),
        row("6.2 padding longer than the payload", &[frame(1, END | 8, 1, [200, 0x82])], PROTOCOL),
        row("6.2 padded HEADERS", &[frame(1, END | 8, 1, [&[2][..], &split, &[0, 0]].concat())], OK),
        row("6.3 PRIORITY on stream 0", &[frame(2, 0, 0, [0; 5])], PROTOCOL).unlike(""),
        row("6.3 PRIORITY of a wrong length", &[frame(2, 0, 1, [0; 4])], SIZE),
        row("6.4 RST_STREAM on stream 0", &[frame(3, 0, 0, [0; 4])], PROTOCOL),
        row("6.4 RST_STREAM of a wrong length", &[post(1, &[]), frame(3, 0, 1, [0; 3])], SIZE),
        row("6.5 SETTINGS on a stream", &[frame(4, 0, 1, "")], PROTOCOL),
        row("6.5 an acknowledgement with a payload", &[frame(4, 1, 0, [0; 6])], SIZE),
        row("6.5 SETTINGS of a wrong length", &[frame(4, 0, 0, [0; 5])], SIZE),
        row("6.5.2 ENABLE_PUSH of 2", &[setting(2, 2)], PROTOCOL),
        row("6.5.2 INITIAL_WINDOW_SIZE above the limit", &[setting(4, 1 << 31)], FLOW),
        row("6.5.2 MAX_FRAME_SIZE below the limit", &[setting(5, 16_383)], PROTOCOL),
        row("6.5.2 MAX_FRAME_SIZE above the limit", &[setting(5, 1 << 24)], PROTOCOL),
        row("6.5.2 unknown parameters are ignored", &[setting(0x7777, 1), get(1, &[])], OK),
        row("6.6 PUSH_PROMISE from a client", &[frame(5, 4, 1, [0, 0, 0, 2, 0x82])], PROTOCOL),
        row("6.7 PING on a stream", &[frame(6, 0, 1, [0; 8])], PROTOCOL),
        row("6.7 PING of a wrong length", &[frame(6, 0, 0, [0; 7])], SIZE),
        row("6.8 GOAWAY on a stream", &[frame(7, 0, 1, [0; 8])], PROTOCOL),
        row("6.8 GOAWAY of a wrong length", &[frame(7, 0, 0, [0; 7])], SIZE),
        row("6.9 WINDOW_UPDATE of 0", &[update(0, 0)], PROTOCOL),
        row("6.9 WINDOW_UPDATE of 0 on a stream", &[post(1, &[]), update(1, 0)], PROTOCOL),
        row("6.9 WINDOW_UPDATE of a wrong length", &[frame(8, 0, 0, [0; 3])], SIZE),
        row("6.9.1 too much window", &[update(0, 0x7fff_ffff)], FLOW),
        row(
            "6.9.1 too much window of a stream",
            &[post(1, &[]), update(1, 0x7fff_ffff), get(3, &[])],
            "1:RST 3 3:200",
        )
        .unlike("closed"),
        row(
            "6.9.2 SETTINGS that overflow a window",
            &[post(1, &[]), update(1, 0x7fff_ffff - 65_535), setting(4, 65_536)],
            FLOW,
        )
        .unlike("1:RST 3"),
        row("6.10 a block in two frames", &[frame(1, 1, 1, first), frame(9, 4, 1, second)], OK),
        row(
            "6.10 CONTINUATION on another stream",
            &[frame(1, 1, 1, first), frame(9, 4, 3, second)],
            PROTOCOL,
        ),
        row("6.10 another frame in a block", &[frame(1, 1, 1, first), frame(6, 0, 0, [0; 8])], PROTOCOL),
        row("6.10 another HEADERS in a block", &[frame(1, 1, 1, first), get(3, &[])], PROTOCOL),
    ]
}

fn messages() -> Vec<Row> {
    let pairs: Vec<(String, String)> =
        (0..101).map(|number| (format!("x-{number}"), "v".to_owned())).collect();
    let many: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let long = "v".repeat(8 * 1024);
    let large: Vec<(&str, &str)> = (0..8).map(|_| ("x-large", long.as_str())).collect();
    let large = block(&with("GET", "/", &large));
    let mut pieces = large.chunks(16_384);
    let mut large = frame(1, 1, 1, pieces.next().unwrap_or_default());
    let count = pieces.len();
    for (index, piece) in pieces.enumerate() {
        large.extend(frame(9, if index + 1 == count { 4 } else { 0 }, 1, piece));
    }
    let request = |fields: &[(&str, &str)]| headers(1, END, fields);
    let missing = |name: &str| {
        let mut fields = with("GET", "/", &[]);
        fields.retain(|(other, _)| *other != name);
        request(&fields)
    };
    vec![
        row(
            "8.1 trailers",
            &[post(1, &[]), data(1, 0, "x"), headers(1, END, &[("sum", "7")])],
            "1:200 1:trailers",
        ),
        row(
            "8.1 trailers that do not end the stream",
            &[post(1, &[]), headers(1, OPEN, &[("sum", "7")])],
            PROTOCOL,
        ),
        row(
            "8.1 trailers with a pseudo-header",
            &[post(1, &[]), headers(1, END, &[(":path", "/")])],
            PROTOCOL,
        ),
        row(
            "8.1.1 less than content-length",
            &[post(1, &[("content-length", "3")]), data(1, 1, "xx")],
            "1:RST 1",
        ),
        row(
            "8.1.1 more than content-length",
            &[post(1, &[("content-length", "3")]), data(1, 0, "xxxx")],
            "1:RST 1",
        ),
        row(
            "8.1.1 less than content-length, and trailers",
            &[post(1, &[("content-length", "3")]), headers(1, END, &[("a", "b")])],
            PROTOCOL,
        ),
        row("8.1.1 no body in spite of content-length", &[get(1, &[("content-length", "3")])], PROTOCOL),
        row(
            "8.1.1 content-length as told",
            &[post(1, &[("content-length", "3")]), data(1, 1, "xxx")],
            "1:200 1:trailers",
        ),
        row(
            "8.1.1 two content-lengths",
            &[get(1, &[("content-length", "0"), ("content-length", "0")])],
            PROTOCOL,
        ),
        row("8.1.1 content-length that is no number", &[get(1, &[("content-length", "+0")])], PROTOCOL),
        row("8.2 a name in upper case", &[get(1, &[("X-A", "b")])], PROTOCOL),
        row("8.2.1 a name that is no token", &[get(1, &[("x a", "b")])], PROTOCOL),
        row("8.2.1 an empty name", &[get(1, &[("", "b")])], PROTOCOL),
        row("8.2.1 a line break in a value", &[get(1, &[("x-a", "b\nc")])], PROTOCOL),
        row("8.2.1 NUL in a value", &[get(1, &[("x-a", "b\0c")])], PROTOCOL),
        row("8.2.1 a control character in a value", &[get(1, &[("x-a", "b\u{1}c")])], PROTOCOL),
        row("8.2.1 DEL in a value", &[get(1, &[("x-a", "b\u{7f}c")])], PROTOCOL),
        row("8.2.1 a tab and bytes above ASCII", &[get(1, &[("x-a", "b\tä")])], OK),
        row("8.2.1 blanks around a value", &[get(1, &[("x-a", " b ")])], OK),
        row("8.2.2 connection", &[get(1, &[("connection", "close")])], PROTOCOL),
        row("8.2.2 keep-alive", &[get(1, &[("keep-alive", "1")])], PROTOCOL),
        row("8.2.2 proxy-connection", &[get(1, &[("proxy-connection", "close")])], PROTOCOL),
        row("8.2.2 transfer-encoding", &[get(1, &[("transfer-encoding", "chunked")])], PROTOCOL),
        row("8.2.2 upgrade", &[get(1, &[("upgrade", "websocket")])], PROTOCOL),
        row("8.2.2 te: gzip", &[get(1, &[("te", "gzip")])], PROTOCOL),
        row("8.2.2 te: trailers", &[get(1, &[("te", "trailers")])], OK),
        row(
            "8.3 a pseudo-header behind a field",
            &[request(&[
                (":method", "GET"),
                (":scheme", "http"),
                ("a", "b"),
                (":path", "/"),
                (":authority", "h"),
            ])],
            PROTOCOL,
        ),
        row(
            "8.3 an unknown pseudo-header",
            &[request(&[
                (":a", "b"),
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "h"),
            ])],
            PROTOCOL,
        ),
        row(
            "8.3 a pseudo-header of responses",
            &[request(&[
                (":status", "200"),
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "h"),
            ])],
            PROTOCOL,
        ),
        row(
            "8.3.1 two paths",
            &[request(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":path", "/"),
                (":authority", "h"),
            ])],
            PROTOCOL,
        ),
        row("8.3.1 no method", &[missing(":method")], PROTOCOL),
        row("8.3.1 no scheme", &[missing(":scheme")], PROTOCOL),
        row("8.3.1 no path", &[missing(":path")], PROTOCOL),
        row("8.3.1 neither authority nor host", &[missing(":authority")], PROTOCOL),
        row("8.3.1 an empty path", &[headers(1, END, &with("GET", "", &[]))], PROTOCOL),
        row("8.3.1 a path without a slash", &[headers(1, END, &with("GET", "a", &[]))], PROTOCOL),
        row("8.3.1 OPTIONS *", &[headers(1, END, &with("OPTIONS", "*", &[]))], "1:404"),
        row("8.3.1 GET *", &[headers(1, END, &with("GET", "*", &[]))], PROTOCOL),
        row(
            "8.3.1 host in place of authority",
            &[request(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "h")])],
            OK,
        ),
        row("8.3.1 host and authority", &[get(1, &[("host", "h")])], OK),
        row("8.3.1 host unlike authority", &[get(1, &[("host", "other")])], OK),
        row("8.3.1 a method that is no token", &[headers(1, END, &with("G T", "/", &[]))], PROTOCOL),
        row("8.3.1 an unknown method", &[headers(1, END, &with("FROB", "/", &[]))], OK),
        row("8.3.1 a path with a blank", &[headers(1, END, &with("GET", "/a b", &[]))], PROTOCOL),
        row(
            "8.3.1 userinfo in the authority",
            &[request(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "u@h")])],
            PROTOCOL,
        ),
        row(
            "8.3.1 an authority with a slash",
            &[request(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "h/x")])],
            PROTOCOL,
        ),
        row(
            "8.3.1 an unknown scheme",
            &[request(&[(":method", "GET"), (":scheme", "ftp"), (":path", "/"), (":authority", "h")])],
            OK,
        ),
        row(
            "8.5 CONNECT with a path",
            &[request(&[(":method", "CONNECT"), (":path", "/"), (":authority", "h:1")])],
            PROTOCOL,
        ),
        row("8.5 CONNECT without an authority", &[request(&[(":method", "CONNECT")])], PROTOCOL),
        row(
            "RFC 8441 :protocol that was not allowed",
            &[headers(
                1,
                OPEN,
                &[
                    (":method", "CONNECT"),
                    (":protocol", "websocket"),
                    (":scheme", "http"),
                    (":path", "/up"),
                    (":authority", "h"),
                ],
            )],
            PROTOCOL,
        ),
        row("too many fields", &[get(1, &many), get(3, &[])], "1:RST 2 3:200"),
        row("too large a head", &[large, get(3, &[])], "1:RST 2 3:200"),
    ]
}

fn floods() -> Vec<Row> {
    let split = block(&with("GET", "/", &[]));
    vec![
        row("an empty DATA frame", &[post(1, &[]), data(1, 0, ""), data(1, 1, "x")], "1:200 1:trailers"),
        row("empty DATA frames", &[post(1, &[]), data(1, 0, ""), data(1, 0, "")], "GOAWAY 11"),
        row(
            "empty CONTINUATIONs",
            &[frame(1, 1, 1, &split), frame(9, 0, 1, ""), frame(9, 0, 1, "")],
            "GOAWAY 11",
        ),
        row(
            "CONTINUATIONs without end",
            &[frame(1, 1, 1, &split), repeat(200, &frame(9, 0, 1, [0x82]))],
            "GOAWAY 11",
        ),
        row("PRIORITY frames", &[repeat(101, &frame(2, 0, 1, [0, 0, 0, 3, 7]))], "GOAWAY 11"),
        row("WINDOW_UPDATE frames", &[repeat(6, &update(0, 1))], "GOAWAY 11"),
        row(
            "tiny messages",
            &[post(1, &[]), repeat(50, &data(1, 0, "x")), data(1, 1, "")],
            "1:200 1:trailers",
        ),
    ]
}

/// Sends a row's frames and tells what comes back, without what is of no matter: SETTINGS, window
/// updates, body bytes.
async fn probe(address: SocketAddr, row: &Row) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let ping = |number: u8| frame(kind::PING, 0, 0, [0, 0, 0, 0, 0, 0, 1, number]);
    let mut sends = PREFACE.to_vec();
    sends.extend(frame(kind::SETTINGS, 0, 0, ""));
    sends.extend_from_slice(&row.sends);
    let waits = row.expected.contains("trailers");
    if !waits {
        sends.extend(ping(1));
    }
    // One that is refused early may break off.
    let _ = stream.write_all(&sends).await;
    let mut seen = String::new();
    let mut input: Vec<u8> = Vec::new();
    let mut decoder = Decoder::default();
    loop {
        while let Some(head) = FrameHead::parse(&input) {
            if input.len() < HEAD + head.len {
                break;
            }
            let payload = input[HEAD..HEAD + head.len].to_vec();
            input.drain(..HEAD + head.len);
            let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
            match head.kind {
                kind::HEADERS => {
                    let mut status = "trailers".to_owned();
                    decoder
                        .decode(&payload, |field| {
                            if field.name == b":status" {
                                status = String::from_utf8_lossy(field.value).into_owned();
                            }
                        })
                        .expect("a valid block");
                    let _ = write!(seen, "{}:{status} ", head.stream);
                }
                kind::RST_STREAM => {
                    let _ = write!(seen, "{}:RST {} ", head.stream, code(0));
                }
                kind::GOAWAY => {
                    let _ = write!(seen, "GOAWAY {} ", code(4));
                    return seen.trim_end().to_owned();
                }
                // The second one is answered when all that came before the first was dealt with.
                kind::PING if head.has(flag::ACK) && payload[6] == 1 && payload[7] < 3 => {
                    let _ = stream.write_all(&ping(payload[7] + 1)).await;
                }
                kind::PING if head.has(flag::ACK) && payload[6] == 1 => return seen.trim_end().to_owned(),
                _ => {}
            }
            if waits && (seen.contains("trailers") || seen.contains("RST")) {
                return seen.trim_end().to_owned();
            }
        }
        let mut buffer = [0; 4096];
        match tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer)).await {
            Err(_) => return seen + "nothing",
            Ok(Ok(0) | Err(_)) => return seen + "closed",
            Ok(Ok(count)) => input.extend_from_slice(&buffer[..count]),
        }
    }
}

/// All rows, each on a connection of its own, and what came back.
async fn probe_all(address: SocketAddr) -> Vec<(Row, String)> {
    let rows = framing().into_iter().chain(messages()).chain(floods());
    let probes = rows.map(|row| async move {
        let seen = probe(address, &row).await;
        (row, seen)
    });
    futures_util::future::join_all(probes).await
}

#[test]
fn every_rule_has_its_answer() {
    run(async {
        let proxy = Proxy::start(ROUTES, "codec_type: HTTP2", &[cluster("up", echo().await, HTTP2)]).await;
        let mut wrong = String::new();
        for (row, seen) in probe_all(proxy.address).await {
            if seen != row.expected {
                let _ = writeln!(wrong, "{}: {seen}, not {}", row.name, row.expected);
            }
        }
        assert!(wrong.is_empty(), "\n{wrong}");
        assert_eq!(proxy.stat("http2.streams_active"), 0);
    });
}

#[test]
fn an_invalid_message_may_end_its_stream_only() {
    run(async {
        for setting in [
            "stream_error_on_invalid_http_message: true",
            "http2_protocol_options: {override_stream_error_on_invalid_http_message: true}",
        ] {
            let manager = format!("codec_type: HTTP2\n{setting}");
            let proxy = Proxy::start(ROUTES, &manager, &[cluster("up", echo().await, HTTP2)]).await;
            for (name, sends) in [
                ("a field", get(1, &[("connection", "close")])),
                ("a length", [post(1, &[("content-length", "3")]), data(1, 1, "x")].concat()),
            ] {
                let sends = [sends, get(3, &[])].concat();
                let row = Row { name, sends, expected: "1:RST 1 3:200", envoy: None };
                assert_eq!(probe(proxy.address, &row).await, row.expected, "{name}");
            }
            assert_eq!(proxy.stat("http2.rx_messaging_error"), 2);
        }
    });
}

/// An Envoy that serves the same; killed when dropped.
struct Envoy {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Envoy {
    async fn start(up: SocketAddr) -> Option<Self> {
        let binary = leno_testkit::envoy::binary()?;
        let folder = tempfile::tempdir().expect("a folder");
        let indent = |text: &str, by: usize| text.replace('\n', &format!("\n{}", " ".repeat(by)));
        let text = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources:\n  clusters:\n  - \
             {}\n  listeners:\n  - name: l\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    \
             filter_chains:\n    - filters:\n      - name: hcm\n        typed_config:\n          '@type': \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
             stat_prefix: t\n          codec_type: HTTP2\n          route_config: {{virtual_hosts: [{{name: v, domains: ['*'], \
             routes: {ROUTES}}}]}}\n          http_filters: [{{name: router, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n",
            indent(&cluster("up", up, HTTP2), 4)
        );
        let config = folder.path().join("envoy.yaml");
        std::fs::write(&config, text).expect("written");
        let admin_path = folder.path().join("admin");
        let process = Command::new(binary)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "error", "-c"])
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .stdin(Stdio::null())
            .spawn()
            .expect("Envoy starts");
        let mut envoy = Self { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), _folder: folder };
        let found = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let Ok(admin) = std::fs::read_to_string(&admin_path) else { continue };
                let Ok(admin) = admin.trim().parse::<SocketAddr>() else { continue };
                let Ok(mut stream) = TcpStream::connect(admin).await else { continue };
                let request = "GET /listeners HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                let mut answer = String::new();
                if stream.write_all(request.as_bytes()).await.is_err() {
                    continue;
                }
                let _ = stream.read_to_string(&mut answer).await;
                let line = answer.lines().find_map(|line| line.strip_prefix("l::"));
                if let Some(address) = line.and_then(|line| line.trim().parse().ok()) {
                    return address;
                }
            }
        };
        envoy.address = tokio::time::timeout(Duration::from_secs(30), found).await.expect("Envoy listens");
        Some(envoy)
    }
}

#[test]
fn envoy_answers_the_same() {
    run(async {
        let Some(envoy) = Envoy::start(echo().await).await else { return };
        let mut wrong = String::new();
        for (row, seen) in probe_all(envoy.address).await {
            let expected = row.envoy.unwrap_or(row.expected);
            // Envoy ends connections without a word in most cases.
            let silent = seen == "closed" && expected.starts_with("GOAWAY");
            if seen != expected && !silent {
                let _ = writeln!(wrong, "{}: {seen}, not {expected}", row.name);
            }
        }
        assert!(wrong.is_empty(), "\n{wrong}");
    });
}
