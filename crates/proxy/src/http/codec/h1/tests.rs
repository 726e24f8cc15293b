//! What the HTTP/1 codec accepts and refuses, and that it does not matter how bytes arrive.

use std::sync::Arc;

use bytes::BytesMut;
use expect_test::{Expect, expect};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

use super::body::BodyReader;
use super::head::{HeadLimits, parse_request, parse_response};
use super::oracle;
use super::write::{ResponseShape, WriteStyle, write_request, write_response};
use crate::http::codec::{BodyLength, CodecError, Frame};
use crate::http::headers::HeaderMap;
use crate::http::route::matcher::StringMatcher;

const LIMITS: HeadLimits = HeadLimits {
    bytes: 4096,
    fields: 20,
    absolute_url: true,
    chunked_length: false,
    custom_methods: false,
    keep_case: None,
    ignored_upgrades: None,
};

fn request(head: &str, expected: &Expect) {
    let mut map = HeaderMap::new();
    let shown = match parse_request(head.as_bytes(), &LIMITS, &mut map) {
        Err(error) => format!("{} {}", error.status, error.details),
        Ok(None) => "incomplete".to_owned(),
        Ok(Some(parsed)) => {
            let fields = map.iter().map(|(name, value)| {
                format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
            });
            let fields = fields.collect::<Vec<_>>().join(" ");
            let close = if parsed.keep_alive { "" } else { " close" };
            format!("{:?}{close} {fields}", parsed.body)
        }
    };
    expected.assert_eq(&shown);
}

fn get(fields: &str) -> String {
    format!("GET /s HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

#[test]
fn targets() {
    request("GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["Empty :method=GET :path=/a?b :authority=h"]);
    request(
        "GET http://f.c/s?x HTTP/1.1\r\nHost: h\r\n\r\n",
        &expect!["Empty :method=GET :path=/s?x :authority=f.c"],
    );
    request(
        "GET http://f.c?x HTTP/1.1\r\nHost: h\r\n\r\n",
        &expect!["Empty :method=GET :path=/?x :authority=f.c"],
    );
    request("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["Empty :method=OPTIONS :path=* :authority=h"]);
    request("GET * HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["400 http1.invalid_url"]);
    request(
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        &expect!["UntilClose :method=CONNECT :authority=a:80"],
    );
    request("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", &expect!["400 http1.invalid_url"]);
    request("GET s HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["400 http1.codec_error"]);
    request("GET /s x HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["400 http1.codec_error"]);
    request("FOO /s HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["400 http1.codec_error"]);
    request("G@T /s HTTP/1.1\r\nHost: h\r\n\r\n", &expect!["400 http1.codec_error"]);
    request("GET /s HTTP/2.0\r\nHost: h\r\n\r\n", &expect!["426 low_version"]);
    for line in ["GET /s HTTP/01.1", "GET /\x7f HTTP/1.1", "GET  /s HTTP/1.1", "GET /s  HTTP/1.1"] {
        request(&format!("{line}\r\nHost: h\r\n\r\n"), &expect!["400 http1.codec_error"]);
    }
    request("GET /s HTTP/1.0\r\nHost: h\r\n\r\n", &expect!["Empty close :method=GET :path=/s :authority=h"]);
    request("\x16\x03\x01\r\n\r\n", &expect!["400 http1.codec_error"]);
}

#[test]
fn what_connection_and_te_may_say() {
    let names = |count: usize| (0..count).map(|at| at.to_string()).collect::<Vec<_>>().join(", ");
    request(
        &get(&format!("connection: {}\r\n3: x\r\n", names(9))),
        &expect!["Empty :method=GET :path=/s :authority=h"],
    );
    for fields in [
        format!("connection: {}\r\n", names(10)),
        format!("connection: {}\r\nconnection: a, b, c, d, e\r\n", names(5)),
        format!("te: {}\r\nconnection: te\r\n", "x".repeat(257)),
        "connection: x-forwarded-for\r\n".to_owned(),
    ] {
        request(&get(&fields), &expect!["400 http1.connection_header_rejected"]);
    }
    request(
        &get("te: gzip;q=0.5 , Trailers,x\r\n"),
        &expect!["Empty :method=GET :path=/s :authority=h te=Trailers"],
    );
    request(&get("te: gzip, trailers2\r\n"), &expect!["Empty :method=GET :path=/s :authority=h"]);
}

#[test]
fn framing() {
    request(
        &get("content-length: 3\r\n"),
        &expect!["Known(3) :method=GET :path=/s :authority=h content-length=3"],
    );
    request(&get("transfer-encoding: Chunked\r\n"), &expect!["Chunked :method=GET :path=/s :authority=h"]);
    for fields in [
        "content-length: 3\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3, 3\r\n",
        "content-length: +3\r\n",
        "content-length: \r\n",
        "content-length: 99999999999999999999\r\n",
        "a: b\r\n c\r\n",
        "a b: c\r\n",
        "a : c\r\n",
        ": c\r\n",
    ] {
        request(&get(fields), &expect!["400 http1.codec_error"]);
    }
    let conflict = "content-length: 3\r\ntransfer-encoding: chunked\r\n";
    request(&get(conflict), &expect!["400 http1.content_length_and_chunked_not_allowed"]);
    for coding in ["gzip", "gzip, chunked", "identity", "chunked, chunked"] {
        request(
            &get(&format!("transfer-encoding: {coding}\r\n")),
            &expect!["501 http1.invalid_transfer_encoding"],
        );
    }
    let twice = "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n";
    request(&get(twice), &expect!["501 http1.invalid_transfer_encoding"]);
}

#[test]
fn fields() {
    request(&get("a: c\x01d\r\n"), &expect!["400 http1.invalid_characters"]);
    request(&get("a: c\0d\r\n"), &expect!["400 http1.invalid_characters"]);
    request("GET /s HTTP/1.1\r\nHost: h\r\nhost: z\r\n\r\n", &expect!["400 http1.codec_error"]);
    request("GET /s HTTP/1.1\r\nHost: a b\r\n\r\n", &expect!["400 http.invalid_authority"]);
    request("GET /s HTTP/1.1\nHost: h\n\n", &expect!["400 http1.codec_error"]);
    request("GET /s HTTP/1.1\r\nHost: h\n", &expect!["400 http1.codec_error"]);
    request("GET /s HTTP/1.1\r\nHost: h\r\n", &expect!["incomplete"]);
    request(&get(&"a: b\r\n".repeat(30)), &expect!["431 http1.too_many_headers"]);
    request(&get(&format!("a: {}\r\n", "x".repeat(5000))), &expect!["431 http1.headers_too_large"]);
    request(&format!("GET /{}", "x".repeat(5000)), &expect!["431 http1.headers_too_large"]);
    let hop =
        "x-a: 1\r\nConnection: keep-alive, X-A\r\nte: trailers\r\nkeep-alive: 3\r\nproxy-connection: x\r\n";
    request(&get(hop), &expect!["Empty :method=GET :path=/s :authority=h te=trailers"]);
    request(
        &get("connection: close\r\nte: gzip\r\n"),
        &expect!["Empty close :method=GET :path=/s :authority=h"],
    );
    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n";
    request(
        &get(upgrade),
        &expect!["UntilClose :method=GET :path=/s :authority=h upgrade=websocket connection=Upgrade"],
    );
    let h2c = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: a\r\n";
    request(&get(h2c), &expect!["Empty :method=GET :path=/s :authority=h"]);
}

fn response(head: &str, to_head: bool, expected: &Expect) {
    let mut map = HeaderMap::new();
    let shown = match parse_response(head.as_bytes(), &LIMITS, to_head, &mut map) {
        Err(error) => error.details.to_owned(),
        Ok(None) => "incomplete".to_owned(),
        Ok(Some(parsed)) => format!("{:?} keep={} {map:?}", parsed.body, parsed.keep_alive),
    };
    expected.assert_eq(&shown);
}

#[test]
fn responses() {
    response("HTTP/1.1 200 OK\r\n\r\n", false, &expect![[r#"UntilClose keep=false {":status": "200"}"#]]);
    response("HTTP/1.1 200 OK\r\n\r\n", true, &expect![[r#"Empty keep=true {":status": "200"}"#]]);
    response(
        "HTTP/1.1 304 X\r\ncontent-length: 5\r\n\r\n",
        false,
        &expect![[r#"Empty keep=true {":status": "304", "content-length": "5"}"#]],
    );
    response(
        "HTTP/1.1 200\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
        false,
        &expect![[r#"Known(5) keep=false {":status": "200", "content-length": "5"}"#]],
    );
    response(
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n",
        false,
        &expect![[r#"Known(5) keep=false {":status": "200", "content-length": "5"}"#]],
    );
    let conflict = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
    response(conflict, false, &expect!["http1.content_length_and_chunked_not_allowed"]);
    response("xxxx\r\n\r\n", false, &expect!["http1.codec_error"]);
    response("HTTP/1.1 99 X\r\n\r\n", false, &expect!["http1.codec_error"]);
}

/// Feeds `input` in pieces and shows what comes out.
fn read_body(length: BodyLength, input: &[u8], cuts: &[usize]) -> String {
    let mut reader = BodyReader::new(length);
    let mut buffer = BytesMut::new();
    let mut shown = (Vec::new(), String::new());
    let mut start = 0;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    ends.push(input.len());
    ends.sort_unstable();
    for end in ends {
        buffer.extend_from_slice(&input[start..end]);
        start = end;
        while !reader.is_done() {
            match reader.decode(&mut buffer) {
                Err(error) => return format!("{} {}", error.status, error.details),
                Ok(None) => break,
                Ok(Some(Frame::Data { data, .. })) => shown.0.extend_from_slice(&data),
                Ok(Some(Frame::Trailers(trailers))) => shown.1 = format!(" {trailers:?}"),
                Ok(Some(Frame::End)) => {}
            }
        }
    }
    let state = if reader.is_done() { "" } else { " ..." };
    let left = if buffer.is_empty() { String::new() } else { format!(" left={}", buffer.len()) };
    format!("{}{}{state}{left}", String::from_utf8_lossy(&shown.0), shown.1)
}

#[test]
fn chunks() {
    let check = |input: &str, expected: Expect| {
        expected.assert_eq(&read_body(BodyLength::Chunked, input.as_bytes(), &[]));
    };
    check("3\r\nabc\r\n0\r\n\r\nGET", expect!["abc left=3"]);
    check("3;a=b\r\nabc\r\n2 ; x\r\nde\r\n0\r\n\r\n", expect!["abcde"]);
    check("A\r\n0123456789\r\n0\r\nT: v\r\n\r\n", expect![[r#"0123456789 {"t": "v"}"#]]);
    check("3\r\nab", expect!["ab ..."]);
    for wrong in [
        "zz\r\n",
        "\r\n",
        "3\nabc\n",
        "3 \nabc",
        "3\r\nabcd\r\n",
        "+3\r\nabc",
        "0x3\r\nabc",
        "11111111111111111\r\n",
        "3\rx",
        "0\r\n\nx",
        "0\r\na b: c\r\n\r\n",
    ] {
        assert_eq!(
            read_body(BodyLength::Chunked, wrong.as_bytes(), &[]),
            "400 http1.codec_error",
            "{wrong:?}"
        );
    }
}

#[test]
fn written_heads() {
    let mut map = HeaderMap::new();
    for (name, value) in
        [(":method", "POST"), (":path", "/p"), (":authority", "h"), (":scheme", "http"), ("x-a", "1")]
    {
        map.append(name.as_bytes(), value.as_bytes());
    }
    let mut bytes = Vec::new();
    assert_eq!(write_request(&mut bytes, &map, true, WriteStyle::default()), BodyLength::Empty);
    assert_eq!(
        write_request(&mut bytes, &map, false, WriteStyle { proper_case: true, whole_url: false }),
        BodyLength::Chunked
    );
    expect![[r#"
        POST /p HTTP/1.1
        host: h
        x-a: 1
        content-length: 0

        POST /p HTTP/1.1
        Host: h
        X-A: 1
        Transfer-Encoding: chunked

    "#]]
    .assert_eq(&String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
    let mut map = HeaderMap::new();
    map.set_status(204);
    let shape = ResponseShape { end: false, to_head: false, tunnel: false, http10: false, close: true };
    let mut bytes = Vec::new();
    assert_eq!(write_response(&mut bytes, &map, shape, WriteStyle::default()).0, BodyLength::Empty);
    map.set_status(200);
    let shape = ResponseShape { close: false, ..shape };
    assert_eq!(write_response(&mut bytes, &map, shape, WriteStyle::default()).0, BodyLength::Chunked);
    let shape = ResponseShape { http10: true, ..shape };
    let before = bytes.len();
    let (body, size) = write_response(&mut bytes, &map, shape, WriteStyle::default());
    assert_eq!(body, BodyLength::UntilClose);
    // As Envoy counts fields: without the first line and the last.
    let fields = "connection: close\r\n".len() as u64;
    assert_eq!((size.wire, size.fields), ((bytes.len() - before) as u64, fields));
    expect![[r#"
        HTTP/1.1 204 No Content
        connection: close

        HTTP/1.1 200 OK
        transfer-encoding: chunked

        HTTP/1.0 200 OK
        connection: close

    "#]]
    .assert_eq(&String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
}

/// Lines of heads, good and bad, and pieces of such.
fn head_text(first: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    const FIELDS: &[&str] = &[
        "Host: h.test:80",
        "host: other",
        "HOST:x y",
        "Content-Length: 3",
        "content-length:4",
        "content-length: +4",
        "Transfer-Encoding: chunked",
        "transfer-encoding: gzip",
        "Connection: close",
        "connection: keep-alive, X-A, host",
        "connection: upgrade, te",
        "Connection: x-forwarded-for",
        "proxy-connection: close",
        "keep-alive: timeout=3",
        "Upgrade: websocket",
        "upgrade: h2c",
        "http2-settings: x",
        "TE: trailers",
        "te: gzip",
        "expect: 100-continue",
        "X-A: 1",
        "x-a:2  ",
        "x-b:",
        "x-c: \t ",
        "x-c: a\tb \x7f",
        "user-agent: Mozilla/5.0 (X11; Linux x86_64) and much more of the kind, to the end",
        "x-envoy-upstream-rq-timeout-alt-response: 204",
        "X_Under.Score~1: \u{e9}",
        " folded",
        "a b: c",
        "a : c",
        ": c",
        "no colon",
        "\0: x",
        "",
    ];
    let line = prop_oneof![40 => prop::sample::select(FIELDS).prop_map(str::as_bytes).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..20)];
    let end = prop_oneof![60 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("")];
    let lines = prop::collection::vec((line, end), 0..9);
    (prop::sample::select(first), lines, any::<usize>(), 0..4u8).prop_map(|(first, lines, cut, kind)| {
        let mut text = first.as_bytes().to_vec();
        for (line, end) in lines {
            text.extend_from_slice(&line);
            text.extend_from_slice(end.as_bytes());
        }
        text.extend_from_slice(b"\r\nrest");
        match kind {
            0 => text.truncate(cut % (text.len() + 1)),
            1 => {
                let at = cut % text.len();
                text[at] = (cut >> 32) as u8;
            }
            _ => {}
        }
        text
    })
}

/// What was read, or only that and how it was refused: of several things that are wrong, which one
/// is told is not compared.
fn verdict<T: std::fmt::Debug>(read: &Result<Option<T>, CodecError>, map: &HeaderMap) -> String {
    match read {
        Ok(Some(head)) => format!("{head:?} {:?}", map.iter().collect::<Vec<_>>()),
        Ok(None) => "incomplete".to_owned(),
        Err(_) => "refused".to_owned(),
    }
}

fn chunked_text() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5).prop_map(|chunks| {
        let mut text = Vec::new();
        for chunk in chunks {
            text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(&chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\nt: v\r\n\r\nrest");
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn requests_read_as_by_httparse(text in head_text(&[
        "GET /s HTTP/1.1\r\n",
        "GET /a-rather-long/path?with=query HTTP/1.1\r\n",
        "\r\nPOST / HTTP/1.0\r\n",
        "\nPURGE / HTTP/1.1\r\n",
        "CONNECT h:80 HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "GET http://u@h.test:80?x HTTP/1.1\r\n",
        "GET HTTPS://h.test/x HTTP/1.1\r\n",
        "GET ftp://h.test/x HTTP/1.1\r\n",
        "GET /\u{e9} HTTP/1.1\r\n",
        "GET /s HTTP/1.2\r\n",
        "GET  /s HTTP/1.1\r\n",
        "G(T /s HTTP/1.1\r\n",
        "GET /s\r\n",
    ])) {
        let (mut own, mut other) = (HeaderMap::new(), HeaderMap::new());
        let (first, second) =
            (parse_request(&text, &LIMITS, &mut own), oracle::parse_request(&text, &LIMITS, &mut other));
        // Of a head that is not finished httparse has looked at more: whether its target is UTF-8.
        if !matches!((&first, &second), (Ok(None), Err(_))) || std::str::from_utf8(&text).is_ok() {
            prop_assert_eq!(verdict(&first, &own), verdict(&second, &other));
        }
        if let (Err(first), Err(second)) = (first, second)
            && text.is_ascii()
        {
            prop_assert_eq!(first.status == 426, second.status == 426);
        }
    }

    #[test]
    fn responses_read_as_by_httparse(to_head in any::<bool>(), text in head_text(&[
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 404\r\n",
        "HTTP/1.1 101 Switching\r\n",
        "HTTP/1.1 204 \r\n",
        "\r\nHTTP/1.1 600 x\r\n",
        "HTTP/1.1 20 x\r\n",
        "HTTP/1.1  200 x\r\n",
        "HTTP/1.1 200 \u{e9}\u{1}\r\n",
        "HTTP/1.1 200x\r\n",
    ])) {
        let (mut own, mut other) = (HeaderMap::new(), HeaderMap::new());
        let first = parse_response(&text, &LIMITS, to_head, &mut own);
        let second = oracle::parse_response(&text, &LIMITS, to_head, &mut other);
        prop_assert_eq!(verdict(&first, &own), verdict(&second, &other));
    }
}

proptest! {
    #[test]
    fn chunked_bodies_parse_the_same_however_they_are_cut(text in chunked_text(), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
        prop_assert_eq!(read_body(BodyLength::Chunked, &text, &cuts), read_body(BodyLength::Chunked, &text, &[]));
    }

    #[test]
    fn no_prefix_of_a_good_head_is_refused(cut in any::<usize>()) {
        let head = get("connection: keep-alive, x-a\r\nx-a: 1\r\ncontent-length: 12\r\n");
        let cut = cut % head.len();
        let mut map = HeaderMap::new();
        prop_assert_eq!(parse_request(&head.as_bytes()[..cut], &LIMITS, &mut map), Ok(None));
    }

    #[test]
    fn no_input_makes_the_codec_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut map = HeaderMap::new();
        let _ = parse_request(&input, &LIMITS, &mut map);
        let _ = parse_response(&input, &LIMITS, false, &mut map);
        let _ = read_body(BodyLength::Chunked, &input, &[3, 50]);
    }
}

#[test]
fn authorities_of_urls_are_as_strict_as_envoys() {
    let accepted = [
        ("evil.test", "evil.test"),
        ("A-b.C:80", "A-b.C:80"),
        ("user:pw@h:080", "h:080"),
        ("[::1]", "[::1]"),
        ("[::1]:65535", "[::1]:65535"),
        (".a..b", ".a..b"),
    ];
    for (authority, host) in accepted {
        assert_eq!(super::target::url_authority(authority), Some(host), "{authority}");
    }
    let refused = [
        "", "h:", "http:", "a*b", "a_b", "a%41b", "::1", "a:b", "a:65536", "a:+8", "@", "user@", "u@h@x",
        "a@:80", ":80", "[a]", "[::1", "a]", "[::1]x",
    ];
    for authority in refused {
        assert_eq!(super::target::url_authority(authority), None, "{authority}");
    }
}

#[test]
fn ignored_upgrades_are_not_asked_for() {
    let ignored =
        vec![StringMatcher::Prefix("TLS/".into(), false), StringMatcher::Exact("Foo".into(), false)];
    let limits = HeadLimits { ignored_upgrades: Some(Arc::new(ignored)), ..LIMITS };
    let upgrade = |kinds: &str| {
        let head = get(&format!("connection: upgrade\r\nupgrade: {kinds}\r\n"));
        let mut map = HeaderMap::new();
        let parsed = parse_request(head.as_bytes(), &limits, &mut map).unwrap().unwrap();
        (parsed.upgrade, map.find("upgrade").map(|kind| String::from_utf8_lossy(kind).into_owned()))
    };
    assert_eq!(upgrade("TLS/1.0, Foo"), (false, None));
    assert_eq!(upgrade("TLS/1.0, websocket"), (true, Some("websocket".to_owned())));
    assert_eq!(upgrade("foo"), (true, Some("foo".to_owned())));
}
