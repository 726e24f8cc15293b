//! `envoy.filters.http.compressor`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, mpsc};

use serde_json::{Value, json};

use crate::support::{PATIENCE, Proxy, Wire};
use crate::{Suite, bootstrap, compare, decoded, filter, router, routes, run, typed};

const ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.CompressorPerRoute";

fn library(name: &str, kind: &str) -> Value {
    json!({"name": name, "typed_config": typed(&format!("compression.{kind}"), json!({}))})
}

fn brotli() -> Value {
    library("stats_brotli", "brotli.compressor.v3.Brotli")
}

fn zstd() -> Value {
    library("stats_zstd", "zstd.compressor.v3.Zstd")
}

fn gzip() -> Value {
    library("stats_gzip", "gzip.compressor.v3.Gzip")
}

fn compressor(name: &str, library: Value, mut config: Value) -> Value {
    config["compressor_library"] = library;
    filter(name, "compressor.v3.Compressor", config)
}

fn listener(mut filters: Vec<Value>) -> Value {
    filters.push(router());
    json!({
        "route_config": routes(&json!([{"match": {"prefix": "/"}, "route": {"cluster": "text"}}])),
        "http_filters": filters,
    })
}

/// What a service answers: `x-status`, `x-length` bytes, in chunks with `x-chunked`, with the headers
/// that `x-r-...` name.
fn echo(head: &str, _: &[u8]) -> String {
    let fields = || head.lines().filter_map(|line| line.split_once(": "));
    let find = |wanted: &str| fields().find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let status = find("x-status").unwrap_or("200");
    let length = find("x-length").map_or(200, |length| length.parse().expect("a number"));
    let mut text = format!("HTTP/1.1 {status} OK\r\n");
    for (name, value) in fields() {
        if let Some(name) = name.strip_prefix("x-r-") {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    let body: String = "some text, some text and more; ".chars().cycle().take(length).collect();
    if status == "204" || status == "304" {
        return text + "\r\n";
    }
    if find("x-chunked").is_some() {
        let (first, second) = body.split_at(length / 2);
        let _ = write!(text, "transfer-encoding: chunked\r\n\r\n");
        for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
            let _ = write!(text, "{:x}\r\n{piece}\r\n", piece.len());
        }
        return text + "0\r\n\r\n";
    }
    let _ = write!(text, "content-length: {length}\r\n\r\n");
    if head.starts_with("HEAD") { text } else { text + &body }
}

fn suite(listeners: Vec<(&'static str, Value)>) -> Suite {
    Suite {
        listeners,
        services: vec![("text", Arc::new(echo))],
        grpc: Vec::new(),
        extra: Vec::new(),
        node: json!({}),
        log: "%BYTES_RECEIVED%",
        stats: &["compressor"],
        requests: Vec::new(),
    }
}

/// Facts of a request and its response beside a content type of text.
const FACTS: &[&[(&str, &str)]] = &[
    &[],
    &[("x-chunked", "1")],
    &[("x-chunked", "1"), ("x-length", "5")],
    &[("x-chunked", "1"), ("x-length", "0")],
    &[("x-length", "0")],
    &[("x-length", "29")],
    &[("x-length", "30")],
    &[("x-length", "100000")],
    &[("x-r-etag", "\"a\"")],
    &[("x-r-etag", "W/\"a\"")],
    &[("x-r-etag", "w/a")],
    &[("x-r-etag", "\"\"")],
    &[("x-r-etag", "\"a\""), ("x-length", "20")],
    &[("x-r-etag", "\"a\""), ("x-status", "206")],
    &[("x-r-cache-control", "max-age=5, No-Transform")],
    &[("x-r-cache-control", "no-transforms")],
    &[("x-r-cache-control", "no-transform"), ("x-r-etag", "\"a\"")],
    &[("x-r-cache-control", "no-transform"), ("x-length", "20")],
    &[("x-r-cache-control", "no-transform"), ("x-r-etag", "\"a\""), ("x-r-content-encoding", "br")],
    &[("x-r-content-encoding", "deflate")],
    &[("x-r-content-encoding", "deflate"), ("x-r-etag", "\"a\"")],
    &[("x-r-content-encoding", "deflate"), ("x-length", "20")],
    &[("x-r-vary", "origin")],
    &[("x-r-vary", "Accept-Encoding , origin")],
    &[("x-r-vary", "accept-encoding")],
    &[("x-status", "204")],
    &[("x-status", "206")],
    &[("x-status", "206"), ("x-length", "20")],
    &[("x-status", "304")],
    &[("x-status", "404")],
    &[("x-status", "500")],
];

const ACCEPTED: &[&str] = &[
    "gzip",
    "br",
    "zstd",
    "gzip, deflate, br, zstd",
    "gzip;q=0.2, br;q=0.4, zstd ; q = 0.3",
    "gzip;q=0, *;q=0.1",
    "*",
    "br;q=0, *",
    "identity",
    "identity;q=0.1, gzip;q=0.01",
    "GZIP",
    "gzip;q=z",
    "gzip;level=1;q=0",
    "deflate",
    ";q=1,",
];

const TYPES: &[&str] = &[
    "text/plain; charset=utf-8",
    "TEXT/HTML",
    "application/json",
    "application/grpc-web+proto",
    "application/grpc",
    "application/openmetrics-text; version=1.0.0",
    "application/vnd.google.protobuf",
    "image/png",
    "text/markdown",
];

#[test]
fn responses() {
    let response = |config: Value| json!({"response_direction_config": config});
    let stock = || {
        let types = ["text/plain", "application/vnd.google.protobuf", "application/openmetrics-text"];
        response(json!({"common_config": {"content_type": types}}))
    };
    let told = |mut config: Value| {
        config["status_header_enabled"] = json!(true);
        response(config)
    };
    let off = json!({"default_value": false, "runtime_key": "none"});
    let mut suite = suite(vec![
        ("old", listener(vec![compressor("c", gzip(), json!({}))])),
        (
            "old-set",
            listener(vec![compressor(
                "c",
                gzip(),
                json!({
                    "content_length": 201, "content_type": ["image/png"], "disable_on_etag_header": true,
                    "remove_accept_encoding_header": true,
                }),
            )]),
        ),
        (
            "stock",
            listener(vec![
                compressor("b", brotli(), stock()),
                compressor("z", zstd(), stock()),
                compressor("g", gzip(), stock()),
            ]),
        ),
        (
            "told",
            listener(vec![
                compressor("b", brotli(), told(json!({}))),
                compressor(
                    "g",
                    gzip(),
                    told(
                        json!({"disable_on_etag_header": true, "uncompressible_response_codes": [206, 500]}),
                    ),
                ),
            ]),
        ),
        (
            "weak",
            listener(vec![compressor(
                "g",
                gzip(),
                response(json!({
                    "disable_on_etag_header": true, "weaken_etag_on_compress": true,
                    "uncompressible_response_codes": [206],
                    "common_config": {"content_type_matcher": [{"prefix": "text/"}], "min_content_length": 1},
                })),
            )]),
        ),
        ("off", listener(vec![compressor("g", gzip(), told(json!({"common_config": {"enabled": off}})))])),
        (
            "first",
            listener(vec![
                compressor("b", brotli(), json!({"choose_first": true})),
                compressor("z", zstd(), json!({"choose_first": true})),
                compressor("g", gzip(), json!({})),
                compressor(
                    "h",
                    library("other", "gzip.compressor.v3.Gzip"),
                    json!({"content_type": ["a/b"]}),
                ),
            ]),
        ),
    ]);
    let text = ("x-r-content-type", "text/plain");
    for listener in ["old", "old-set", "stock", "told", "weak", "off", "first"] {
        for facts in FACTS {
            for own in [&[text, ("accept-encoding", "gzip")][..], &[text]] {
                suite.ask(listener, "GET /", &[own, facts].concat(), "");
            }
        }
        for accepted in ACCEPTED {
            suite.ask(listener, "GET /", &[text, ("accept-encoding", accepted)], "");
        }
        for kind in TYPES {
            suite.ask(listener, "GET /", &[("accept-encoding", "gzip"), ("x-r-content-type", kind)], "");
        }
        suite.ask(listener, "GET /", &[("accept-encoding", "gzip")], "");
        for length in ["20", "200"] {
            suite.ask(listener, "HEAD /", &[text, ("accept-encoding", "gzip"), ("x-length", length)], "");
        }
        suite.ask(listener, "HEAD /", &[text, ("accept-encoding", "gzip"), ("x-r-etag", "\"a\"")], "");
    }
    compare(&suite);
}

#[test]
fn routes_have_settings_of_their_own() {
    let route = |path: &str, mut settings: Value| {
        settings["@type"] = ROUTE.into();
        json!({
            "match": {"prefix": path}, "route": {"cluster": "text"}, "typed_per_filter_config": {"g": settings},
        })
    };
    let body: String = "x".repeat(100);
    let table = json!([
        route("/disabled", json!({"disabled": true})),
        route("/enabled", json!({"overrides": {"response_direction_config": {}}})),
        route(
            "/hides",
            json!({"overrides": {"response_direction_config": {"remove_accept_encoding_header": true}}})
        ),
        route(
            "/shows",
            json!({"overrides": {"response_direction_config": {"remove_accept_encoding_header": false}}})
        ),
        route("/brotli", json!({"overrides": {"compressor_library": brotli()}})),
        {"match": {"prefix": "/own"}, "direct_response": {"status": 200, "body": {"inline_string": body}}},
        {"match": {"prefix": "/short"}, "direct_response": {"status": 200, "body": {"inline_string": "x"}}},
        {"match": {"prefix": "/plain"}, "route": {"cluster": "text"}},
    ]);
    let listener = |filters: Value| json!({"route_config": routes(&table), "http_filters": filters});
    let off = json!({"common_config": {"enabled": {"default_value": false, "runtime_key": "none"}}});
    let hides = json!({"response_direction_config": {"remove_accept_encoding_header": true}});
    let both = json!({"request_direction_config": {}});
    let mut suite = suite(vec![
        ("on", listener(json!([compressor("g", gzip(), both), router()]))),
        (
            "off",
            listener(json!([compressor("g", gzip(), json!({"response_direction_config": off})), router()])),
        ),
        (
            "two",
            listener(json!([compressor("z", zstd(), json!({})), compressor("g", gzip(), hides), router()])),
        ),
    ]);
    let text = ("x-r-content-type", "text/plain");
    for listener in ["on", "off", "two"] {
        for path in ["disabled", "enabled", "hides", "shows", "brotli", "own", "short", "plain", "nowhere"] {
            for accepted in ["gzip", "br", "gzip, br", "zstd", "*"] {
                suite.ask(listener, &format!("GET /{path}"), &[text, ("accept-encoding", accepted)], "");
            }
            suite.ask(listener, &format!("POST /{path}"), &[text], &"some text ".repeat(20));
        }
    }
    compare(&suite);
}

#[test]
fn requests() {
    let types = json!({"content_type": ["text/plain", "application/grpc"], "min_content_length": 50});
    let off = json!({"default_value": false, "runtime_key": "none"});
    let request = |common: Value| {
        json!({
            "request_direction_config": {"common_config": common},
            "response_direction_config": {"common_config": {"enabled": off}},
        })
    };
    let mut suite = suite(vec![
        ("gzip", listener(vec![compressor("g", gzip(), request(types.clone()))])),
        ("zstd", listener(vec![compressor("z", zstd(), request(types))])),
        ("default", listener(vec![compressor("b", brotli(), json!({"request_direction_config": {}}))])),
        ("off", listener(vec![compressor("g", gzip(), request(json!({"enabled": off})))])),
    ]);
    let body = "some text ".repeat(50);
    for listener in ["gzip", "zstd", "default", "off"] {
        for (headers, body) in [
            (&[][..], body.as_str()),
            (&[("content-type", "text/plain")], &body),
            (&[("content-type", "text/plain; a=b")], &body),
            (&[("content-type", "image/png")], &body),
            (&[("content-type", "text/plain"), ("content-encoding", "br")], &body),
            (&[("content-type", "text/plain")], &body[..49]),
            (&[("content-type", "text/plain"), ("content-encoding", "br")], &body[..9]),
            (&[("content-type", "text/plain")], ""),
            (&[("content-type", "text/plain"), ("etag", "\"a\""), ("cache-control", "no-transform")], &body),
        ] {
            suite.ask(listener, "POST /", headers, body);
        }
        // In chunks, the length is not known.
        let number = suite.requests.len();
        suite.requests.push((
            listener.to_owned(),
            format!(
                "POST / HTTP/1.1\r\nhost: a.test\r\nx-case: {number}\r\ntransfer-encoding: chunked\r\n\
                 connection: close\r\n\r\n5\r\nabcde\r\n20\r\n{}\r\n0\r\n\r\n",
                &body[..32]
            ),
        ));
    }
    compare(&suite);
}

/// A message ends with trailers: what is encoded is complete all the same.
#[test]
fn trailers() {
    let both = json!({
        "request_direction_config": {"common_config": {"content_type": ["application/grpc"]}},
        "response_direction_config": {"common_config": {"content_type": ["application/grpc"]}},
    });
    let filters = |library| {
        json!({
            "route_config": routes(&json!([{"match": {"prefix": "/"}, "route": {"cluster": "rpc"}}])),
            "http_filters": [compressor("g", library, both.clone()), router()],
        })
    };
    let mut suite =
        suite(vec![("gzip", filters(gzip())), ("br", filters(brotli())), ("zstd", filters(zstd()))]);
    let said = "a message that is long enough ".repeat(10);
    suite.grpc = vec![("rpc", Arc::new(move |_| (Some(said.clone().into_bytes()), String::new())))];
    for listener in ["gzip", "br", "zstd"] {
        let headers = [("content-type", "application/grpc"), ("accept-encoding", listener)];
        suite.ask(listener, "POST /a.B/c", &headers, &"0123456789".repeat(10));
    }
    compare(&suite);
}

/// Where we are not as Envoy: a part of a resource stays as it is, as its range counts the bytes of the
/// resource, and lists in several lines stay so on their way.
#[test]
fn ranges_and_lines() {
    let mut suite = suite(vec![("l", listener(vec![compressor("g", gzip(), json!({}))]))]);
    let text = ("x-r-content-type", "text/plain");
    let range = [text, ("accept-encoding", "gzip"), ("x-status", "206")];
    suite.ask("l", "GET /", &[&range[..], &[("x-r-content-range", "bytes 0-199/500")]].concat(), "");
    suite.ask("l", "GET /", &[text, ("accept-encoding", "br"), ("accept-encoding", "gzip;q=0.5")], "");
    suite.ask("l", "GET /", &[text, ("accept-encoding", "gzip;q=0"), ("accept-encoding", "*")], "");
    let folder = tempfile::tempdir().expect("a folder");
    let told = run(&suite, "ours", folder.path(), None);
    let answers: Vec<&str> = told.split("=== ").skip(1).take(3).collect();
    let encoded = answers.iter().map(|answer| answer.contains("content-encoding: gzip"));
    assert_eq!(encoded.collect::<Vec<_>>(), [false, true, false], "{told}");
    assert!(answers[0].contains("content-length: 200"), "{told}");
    assert!(told.contains("not_compressed: 2") && told.contains("stats_gzip.gzip.compressed: 1"), "{told}");
}

/// A client has each piece as soon as the service has sent it.
#[test]
fn pieces_are_not_kept_back() {
    for (encoding, library) in [("gzip", gzip()), ("br", brotli()), ("zstd", zstd())] {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = service.local_addr().expect("an address");
        let (seen, next) = mpsc::channel::<()>();
        let served = std::thread::spawn(move || {
            let mut wire = Wire::new(service.accept().expect("a connection").0);
            wire.until(b"\r\n\r\n");
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
            wire.stream.write_all(head.as_bytes()).expect("written");
            for number in 0..3 {
                let piece = format!("10\r\nthis is number {number}\r\n");
                wire.stream.write_all(piece.as_bytes()).expect("written");
                next.recv_timeout(PATIENCE).expect("the client has it");
            }
            wire.stream.write_all(b"0\r\n\r\n").expect("written");
        });
        let suite = suite(vec![("l", listener(vec![compressor("c", library, json!({}))]))]);
        let folder = tempfile::tempdir().expect("a folder");
        let proxy = Proxy::start("ours", folder.path(), None, |folder| {
            bootstrap(&suite, folder, &[("text", address)])
        });
        let mut wire = Wire::connect(proxy.port("l"));
        let request =
            format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\naccept-encoding: {encoding}\r\n\r\n");
        wire.stream.write_all(request.as_bytes()).expect("written");
        let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
        assert!(head.contains(&format!("content-encoding: {encoding}")), "{head}");
        let (mut encoded, mut expected) = (Vec::new(), String::new());
        for number in 0..3 {
            let _ = write!(expected, "this is number {number}");
            while decoded(encoding, &encoded).0 != expected.as_bytes() {
                let size = String::from_utf8_lossy(&wire.until(b"\r\n")).trim().to_owned();
                let size = usize::from_str_radix(&size, 16).expect("a chunk");
                assert!(size > 0, "{encoding}: it ended");
                encoded.extend_from_slice(&wire.exactly(size + 2)[..size]);
            }
            seen.send(()).expect("the service goes on");
        }
        while let Ok(size @ 1..) =
            usize::from_str_radix(String::from_utf8_lossy(&wire.until(b"\r\n")).trim(), 16)
        {
            encoded.extend_from_slice(&wire.exactly(size + 2)[..size]);
        }
        assert_eq!(decoded(encoding, &encoded), (expected.into_bytes(), true), "{encoding}");
        served.join().expect("it served");
        proxy.stop();
    }
}
