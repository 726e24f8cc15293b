//! `envoy.filters.http.decompressor`.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};

use crate::support::Wire;
use crate::{Suite, compare, filter, router, routes, typed};

fn library(name: &str, kind: &str, config: Value) -> Value {
    json!({"name": name, "typed_config": typed(&format!("compression.{kind}"), config)})
}

fn gzip(config: Value) -> Value {
    library("g", "gzip.decompressor.v3.Gzip", config)
}

fn brotli() -> Value {
    library("b", "brotli.decompressor.v3.Brotli", json!({}))
}

fn zstd() -> Value {
    library("z", "zstd.decompressor.v3.Zstd", json!({}))
}

fn decompressor(library: Value, mut config: Value) -> Value {
    config["decompressor_library"] = library;
    filter("d", "decompressor.v3.Decompressor", config)
}

/// Bytes as hexadecimal digits, which headers and answers can carry.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().map(|digit| (digit as char).to_digit(16).expect("a digit") as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn encoded(encoding: &str, text: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut deflate = zlib_rs::Deflate::new_with_config(zlib_rs::DeflateConfig {
                level: 9,
                window_bits: 31,
                ..zlib_rs::DeflateConfig::default()
            });
            let mut out = vec![0; text.len() + 1000];
            deflate.compress(text, &mut out, zlib_rs::DeflateFlush::Finish).expect("room");
            out.truncate(usize::try_from(deflate.total_out()).expect("short"));
            out
        }
        "br" => {
            let mut writer = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 18);
            writer.write_all(text).expect("room");
            writer.into_inner()
        }
        _ => {
            let mut out = vec![0; text.len() + 1000];
            let length = zstd_safe::compress(&mut out[..], text, 3).expect("room");
            out.truncate(length);
            out
        }
    }
}

/// Answers with the bytes that `x-body` has in hexadecimal digits, with the headers that `x-r-...` name.
///
/// The suite's answers are text: bytes above 127 would not survive, so that this one serves by itself.
struct Server;

impl Server {
    fn start() -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || Self::serve(Wire::new(stream)));
            }
        });
        address
    }

    fn serve(mut wire: Wire) {
        loop {
            let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
            if head.is_empty() {
                return;
            }
            let asked = wire.body(&head);
            let fields = || head.lines().filter_map(|line| line.split_once(": "));
            let find = |wanted: &str| fields().find(|(name, _)| *name == wanted).map(|(_, value)| value);
            // What came, where nothing else is to be answered.
            let seen = ["accept-encoding", "content-encoding", "content-length"]
                .map(|name| find(name).unwrap_or("-"));
            let body = find("x-body").map_or(asked, unhex);
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-seen: {}\r\n",
                body.len(),
                seen.join(" ")
            );
            for (name, value) in fields() {
                if let Some(name) = name.strip_prefix("x-r-") {
                    let _ = write!(answer, "{name}: {value}\r\n");
                }
            }
            let all = [answer.as_bytes(), b"\r\n", &body].concat();
            if wire.stream.write_all(&all).is_err() {
                return;
            }
        }
    }
}

fn listener(library: Value, config: Value) -> Value {
    json!({
        "route_config": routes(&json!([
            {"match": {"path": "/own"}, "direct_response": {"status": 200, "body": {"inline_string": "own"}}},
            {"match": {"prefix": "/"}, "route": {"cluster": "bytes"}},
        ])),
        "http_filters": [decompressor(library, config), router()],
    })
}

fn suite(listeners: Vec<(&'static str, Value)>) -> Suite {
    Suite {
        listeners,
        services: Vec::new(),
        grpc: Vec::new(),
        extra: vec![("bytes", Server::start())],
        node: json!({}),
        log: "%BYTES_SENT%",
        stats: &["decompressor"],
        requests: Vec::new(),
    }
}

#[test]
fn messages() {
    let off = json!({"default_value": false, "runtime_key": "none"});
    let direction = |common: Value| json!({"common_config": common});
    let mut suite = suite(vec![
        ("gzip", listener(gzip(json!({})), json!({}))),
        ("brotli", listener(brotli(), json!({}))),
        ("zstd", listener(zstd(), json!({}))),
        (
            "always",
            listener(
                gzip(json!({"chunk_size": 8192, "max_inflate_ratio": 10})),
                json!({
                    "request_direction_config": {
                        "advertise_accept_encoding": false, "common_config": {"ignore_no_transform_header": true},
                    },
                    "response_direction_config": direction(json!({"ignore_no_transform_header": true})),
                }),
            ),
        ),
        (
            "off",
            listener(
                gzip(json!({})),
                json!({
                    "request_direction_config": direction(json!({"enabled": off})),
                    "response_direction_config": direction(json!({"enabled": off})),
                }),
            ),
        ),
    ]);
    let text = "some text, some text and more; ".repeat(30);
    let long: String = (0..3000).map(|number| format!("line {number}\n")).collect();
    // Some 100 and 1,000 times as long as they are when they are encoded.
    let (dense, bomb) = ("abcdefgh".repeat(2000), "0".repeat(200_000));
    for (listener, encoding) in
        [("gzip", "gzip"), ("brotli", "br"), ("zstd", "zstd"), ("always", "gzip"), ("off", "gzip")]
    {
        let whole = encoded(encoding, text.as_bytes());
        let body = hex(&whole);
        let said = ("x-r-content-encoding", encoding);
        for accepted in ["", "gzip;q=0.5, br", "identity", "zstd;q=0,gzip , br;q=1", "GZIP"] {
            let accepted = ("accept-encoding", accepted);
            let headers: &[(&str, &str)] = if accepted.1.is_empty() { &[] } else { &[accepted] };
            suite.ask(listener, "GET /", &[headers, &[said, ("x-body", &body)]].concat(), "");
        }
        for facts in [
            &[][..],
            &[("x-r-content-encoding", "identity")],
            &[("x-r-content-encoding", &encoding.to_uppercase())],
            &[("x-r-content-encoding", &format!(" {encoding} , deflate"))],
            &[("x-r-content-encoding", &format!("deflate, {encoding}"))],
            &[said, ("x-r-cache-control", "max-age=1, No-Transform")],
            &[said, ("x-r-cache-control", "no-transforms")],
            &[said, ("x-r-etag", "\"a\"")],
        ] {
            suite.ask(listener, "GET /", &[facts, &[("x-body", body.as_str())]].concat(), "");
        }
        suite.ask(listener, "GET /own", &[], "");
        suite.ask(listener, "HEAD /", &[said], "");
        let mut broken = whole.clone();
        broken[whole.len() / 2] ^= 0x55;
        let behind = [&whole[..], b"more of it"].concat();
        let many = encoded(encoding, long.as_bytes());
        for bytes in [&broken[..], b"no such thing at all", &whole[..whole.len() - 9], &many] {
            // Envoy counts what brotli does not understand with every further piece, the empty one at the
            // end too; ours counts it once.
            if encoding == "br" && (bytes == broken || bytes.starts_with(b"no")) {
                continue;
            }
            suite.ask(listener, "GET /", &[said, ("x-body", &hex(bytes))], "");
        }
        if encoding == "gzip" {
            for bytes in
                [&behind[..], &encoded(encoding, dense.as_bytes()), &encoded(encoding, bomb.as_bytes())]
            {
                suite.ask(listener, "GET /", &[said, ("x-body", &hex(bytes))], "");
            }
        }
        // A request is ASCII here: one that is not encoded, whatever it says.
        for headers in [&[][..], &[("content-encoding", encoding)], &[("content-encoding", "deflate")]] {
            if encoding == "br" && headers.iter().any(|(_, value)| *value == "br") {
                continue;
            }
            suite.ask(listener, "POST /", headers, "not encoded");
        }
    }
    compare(&suite);
}
