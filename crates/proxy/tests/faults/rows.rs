//! The rows of the fault table.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Shutdown;

use crate::faults::tls;
use crate::support::{Flag, Wire};

/// One thing that goes wrong.
pub(crate) struct Row {
    /// Its name, also the path's first segment and the cluster's name.
    pub(crate) name: &'static str,
    /// More of the cluster, in flow style.
    pub(crate) cluster: &'static str,
    /// More of the route's action.
    pub(crate) route: &'static str,
    /// Whether the endpoint speaks HTTP/2.
    pub(crate) http2: bool,
    /// The endpoint.
    pub(crate) endpoint: Endpoint,
    /// The client: gets its connection and the row's name, writes down what it sees.
    pub(crate) client: fn(&mut Wire, &str, &mut String, &Flag),
    /// Connecting is given up after 0.3 s; else there is time enough on the busiest machine.
    pub(crate) connect_timeout: bool,
    /// Only what the client sees is compared.
    pub(crate) answer_only: bool,
    /// Whether we differ on purpose.
    pub(crate) deviation: Deviation,
}

/// What is behind the cluster.
#[derive(Clone, Copy)]
pub(crate) enum Endpoint {
    /// Refuses connections.
    Dead,
    /// Neither accepts nor refuses them.
    Full,
    /// Does this with each connection, which have numbers from 0; may say that the request is here.
    Serves(fn(Wire, usize, &Flag)),
    /// Serves TLS.
    Secure(tls::Server),
}

/// Whether a row differs from Envoy.
#[derive(Clone, Copy)]
pub(crate) enum Deviation {
    /// It must not.
    None,
    /// It does, for this reason.
    Because(&'static str),
    /// It may, by chance: only the status is compared.
    Chance(&'static str),
}

const RACE: &str = "whether a connection or its end is noticed first";
const REPLAYED: &str = "a request that the endpoint has refused is replayed once without a policy";
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
pub(crate) const RETRY: &str = "retry_policy: {retry_on: \"5xx,reset,connect-failure\", num_retries: 2, retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}}";

pub(crate) fn row(name: &'static str, endpoint: Endpoint) -> Row {
    Row {
        name,
        cluster: "",
        route: "",
        http2: false,
        endpoint,
        client: get,
        connect_timeout: matches!(endpoint, Endpoint::Full),
        answer_only: false,
        deviation: Deviation::None,
    }
}

impl Row {
    pub(crate) fn cluster(self, cluster: &'static str) -> Self {
        Self { cluster, ..self }
    }

    pub(crate) fn route(self, route: &'static str) -> Self {
        Self { route, ..self }
    }

    pub(crate) fn http2(self) -> Self {
        Self { http2: true, ..self }
    }

    pub(crate) fn client(self, client: fn(&mut Wire, &str, &mut String, &Flag)) -> Self {
        Self { client, ..self }
    }

    pub(crate) fn connect_timeout(self) -> Self {
        Self { connect_timeout: true, ..self }
    }

    fn answer_only(self) -> Self {
        Self { answer_only: true, ..self }
    }

    fn chance(self, why: &'static str) -> Self {
        Self { deviation: Deviation::Chance(why), ..self }
    }

    pub(crate) fn but(self, why: &'static str) -> Self {
        Self { deviation: Deviation::Because(why), ..self }
    }
}

/// The whole table.
pub(crate) fn rows() -> Vec<Row> {
    use Endpoint::{Dead, Full, Serves};
    let mut rows = vec![
        // Connecting.
        row("refused", Dead),
        row("refused-retried", Dead).route(RETRY),
        row("connect-timeout", Full),
        row("connect-timeout-retried", Full).route(RETRY),
        row("closed-at-once", Serves(|_, _, _| {})),
        row("reset-at-once", Serves(|wire, _, _| wire.reset())).chance(RACE),
        row("dns-strict", Dead).cluster(
            "type: STRICT_DNS, load_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: no-such-host.invalid, port_value: 1}}}}]}]}, ",
        ),
        row("dns-logical", Dead).cluster(
            "type: LOGICAL_DNS, load_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: no-such-host.invalid, port_value: 1}}}}]}]}, ",
        ),
        row("no-endpoints", Dead).cluster("load_assignment: {cluster_name: x}, "),
        row("unhealthy", Dead).cluster(
            "common_lb_config: {healthy_panic_threshold: {value: 0}}, load_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{health_status: UNHEALTHY, endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}, ",
        ),
        row("draining-panics", Dead).cluster(
            "load_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{health_status: DRAINING, endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}, ",
        ),
        row("ejected", Serves(|wire, _, _| answer_each(wire, b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")))
            .cluster("common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {consecutive_5xx: 2, max_ejection_percent: 100, base_ejection_time: 60s}, ")
            .client(|wire, name, seen, flag| {
                // How many are answered before the ejection is known to all is a matter of time.
                let ejected = crate::support::wait(|| {
                    seen.clear();
                    get(wire, name, seen, flag);
                    seen.contains("no healthy upstream").then_some(())
                });
                assert!(ejected.is_some(), "never ejected");
            })
            .answer_only(),
        // Limits.
        row("max-requests-0", Serves(serve_ok)).cluster("circuit_breakers: {thresholds: [{max_requests: 0}]}, "),
        row("max-pending-0", Serves(serve_ok)).cluster("circuit_breakers: {thresholds: [{max_pending_requests: 0}]}, "),
        row("max-connections-0", Serves(serve_ok)).cluster("circuit_breakers: {thresholds: [{max_connections: 0}]}, "),
        row("max-retries-0", Dead).route(RETRY).cluster("circuit_breakers: {thresholds: [{max_retries: 0}]}, "),
        // Before the response.
        row("closed-after-request", Serves(|mut wire, _, _| drop(wire.until(b"\r\n\r\n")))),
        row("reset-after-request", Serves(|mut wire, _, _| { wire.until(b"\r\n\r\n"); wire.reset(); })),
        row("closed-after-request-retried", Serves(|mut wire, _, _| drop(wire.until(b"\r\n\r\n")))).route(RETRY),
        row("closed-once-retried", Serves(|mut wire, index, _| {
            if index == 0 { wire.until(b"\r\n\r\n"); } else { answer_each(wire, OK); }
        })).route(RETRY),
        row("stalls", Serves(|mut wire, _, _| while wire.fill() {})).route("timeout: 0.4s"),
        row("stalls-retried", Serves(|mut wire, _, _| while wire.fill() {}))
            .route("timeout: 5s, retry_policy: {retry_on: 5xx, num_retries: 1, per_try_timeout: 0.3s, retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}}"),
        row("stalls-idle", Serves(|mut wire, _, _| while wire.fill() {})).route("timeout: 0s, idle_timeout: 0.4s"),
        row("error-retried", Serves(|wire, _, _| answer_each(wire, b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"))).route(RETRY),
        row("interim-then-close", Serves(|mut wire, _, _| { wire.until(b"\r\n\r\n"); let _ = wire.stream.write_all(b"HTTP/1.1 103 Hints\r\n\r\n"); })).but("what comes before the end is passed on; Envoy drops it when both arrive at once"),
        // The response's head.
        row("half-head-closed", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ncontent-"))),
        row("half-head-reset", Serves(|wire, _, _| answer_and_reset(wire, b"HTTP/1.1 200 OK\r\ncontent-"))),
        row("half-head-stalls", Serves(|wire, _, _| answer_and_stall(wire, b"HTTP/1.1 200 OK\r\ncontent-"))).route("timeout: 0.4s"),
        row("garbage", Serves(|wire, _, _| answer(wire, b"\x00\x01\x02garbage\r\n\r\n"))),
        row("garbage-retried", Serves(|wire, _, _| answer(wire, b"nonsense\r\n\r\n"))).route(RETRY),
        row("not-http", Serves(|wire, _, _| answer(wire, b"220 mail.test ESMTP\r\n"))),
        row("http-0.9", Serves(|wire, _, _| answer(wire, b"<html>hello</html>"))),
        row("http-3.0", Serves(|wire, _, _| answer(wire, b"HTTP/3.0 200 OK\r\ncontent-length: 2\r\n\r\nok"))).but("a stricter parser: Envoy passes it on"),
        row("status-0", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n"))).but("a stricter parser: Envoy passes it on"),
        row("status-99", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 99 OK\r\ncontent-length: 0\r\n\r\n"))).but("a stricter parser: Envoy passes it on"),
        row("status-1000", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 1000 OK\r\ncontent-length: 0\r\n\r\n"))).but("a stricter parser: Envoy passes it on"),
        row("bad-length", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok"))),
        row("two-lengths", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!"))),
        row("length-and-chunked", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))),
        row("unknown-encoding", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok"))),
        row("head-too-large", Serves(|wire, _, _| {
            let mut head = b"HTTP/1.1 200 OK\r\nx-a: ".to_vec();
            head.resize(90 * 1024, b'a');
            head.extend_from_slice(b"\r\ncontent-length: 0\r\n\r\n");
            answer(wire, &head);
        })),
        row("too-many-headers", Serves(|wire, _, _| {
            let fields: String = (0..150).map(|index| format!("x-{index}: a\r\n")).collect();
            answer(wire, format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n").as_bytes());
        })),
        row("bad-header-name", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\nx y: a\r\ncontent-length: 0\r\n\r\n"))),
        row("nul-in-header", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 0\r\n\r\n"))),
        row("switching-unasked", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"))).but("Envoy passes on an upgrade that nobody asked for"),
        // The response's body.
        row("half-body-closed", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"))),
        row("half-body-reset", Serves(|wire, _, _| answer_and_reset(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")))
            .client(|wire, name, seen, _| { send_get(wire, name); head_only(wire, seen); rest_is_cut(wire, seen); }),
        row("half-body-stalls", Serves(|wire, _, _| answer_and_stall(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"))).route("timeout: 0.4s"),
        row("half-body-stalls-idle", Serves(|wire, _, _| answer_and_stall(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"))).route("timeout: 0s, idle_timeout: 0.4s"),
        row("half-chunks-closed", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"))),
        row("bad-chunk", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n"))).but("what came before the bad chunk is passed on; Envoy parses what it has read at once"),
        row("chunk-too-long", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n"))).but("Envoy cuts a chunk that is longer than it says, and passes on the rest as if it had ended well"),
        row("body-after-204", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 204 No\r\n\r\nhello"))),
        row("until-close", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\n\r\nhello"))),
        row("extra-bytes", Serves(|wire, _, _| answer(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n"))),
        // Kept connections.
        row("idle-closed", Serves(|mut wire, _, flag| {
            wire.until(b"\r\n\r\n");
            let _ = wire.stream.write_all(OK);
            let _ = wire.stream.shutdown(Shutdown::Write);
            // The proxy closes once it has heard of it.
            while wire.fill() {}
            flag.raise();
        })).client(|wire, name, seen, flag| {
            get(wire, name, seen, flag);
            flag.wait();
            get(wire, name, seen, flag);
        }),
        // Requests that the endpoint does not want to hear to the end.
        row("early-answer", Serves(|mut wire, _, _| {
            wire.until(b"\r\n\r\n");
            let _ = wire.stream.write_all(b"HTTP/1.1 413 Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            while wire.fill() {}
        })).client(|wire, name, seen, _| {
            let _ = write!(wire.stream, "POST /{name}/ HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nhello");
            whole(wire, seen);
        }),
        row("closed-mid-upload", Serves(|mut wire, _, _| {
            wire.until(b"\r\n\r\n");
            wire.exactly(5);
        })).client(|wire, name, seen, _| {
            let _ = write!(wire.stream, "POST /{name}/ HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nhello");
            whole(wire, seen);
        }),
        row("closed-mid-upload-retried", Serves(|mut wire, _, _| {
            wire.until(b"\r\n\r\n");
            wire.exactly(5);
        })).route(RETRY).client(|wire, name, seen, _| {
            let _ = write!(wire.stream, "POST /{name}/ HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
            whole(wire, seen);
        }),
        // Clients that go away, or stop.
        row("client-stops-in-body", Serves(|mut wire, _, _| while wire.fill() {})).client(|wire, name, seen, _| {
            send_half(wire, name);
            whole(wire, seen);
        }),
        row("client-resets-in-body", Serves(hears_body)).client(|wire, name, _, flag| {
            send_half(wire, name);
            flag.wait();
            reset_when_sent(wire);
        }),
        row("client-closes-in-body", Serves(hears_body)).client(|wire, name, _, flag| {
            send_half(wire, name);
            flag.wait();
            let _ = wire.stream.shutdown(Shutdown::Both);
        }),
        row("client-closes-waiting", Serves(|mut wire, _, flag| {
            wire.until(b"\r\n\r\n");
            flag.raise();
            while wire.fill() {}
        })).client(|wire, name, _, flag| {
            send_get(wire, name);
            flag.wait();
            let _ = wire.stream.shutdown(Shutdown::Both);
        }),
        row("client-resets-waiting", Serves(|mut wire, _, flag| {
            wire.until(b"\r\n\r\n");
            flag.raise();
            while wire.fill() {}
        })).client(|wire, name, _, flag| {
            send_get(wire, name);
            flag.wait();
            reset_when_sent(wire);
        }),
        row("client-resets-in-response", Serves(|wire, _, _| answer_and_stall(wire, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"))).client(|wire, name, seen, _| {
            send_get(wire, name);
            head_only(wire, seen);
            reset_when_sent(wire);
        }),
        row("client-sends-half-a-head", Serves(serve_ok)).client(|wire, name, seen, _| {
            let _ = write!(wire.stream, "GET /{name}/ HTTP/1.1\r\nhost: ");
            whole(wire, seen);
        }),
        row("client-sends-garbage", Serves(serve_ok)).client(|wire, name, seen, _| {
            let _ = write!(wire.stream, "\x01\x02 /{name}/ garbage\r\n\r\n");
            whole(wire, seen);
        }),
        row("client-bad-chunk", Serves(|mut wire, _, _| while wire.fill() {})).client(|wire, name, seen, _| {
            let _ = write!(wire.stream, "POST /{name}/ HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n");
            whole(wire, seen);
        }).but("what came before the bad chunk is passed on; Envoy parses what it has read at once"),
    ];
    rows.extend(http2_rows());
    rows.extend(tls::rows());
    rows
}

fn http2_rows() -> Vec<Row> {
    use Endpoint::{Dead, Serves};
    vec![
        row("h2-refused", Dead).http2(),
        row("h2-closed-at-once", Serves(|_, _, _| {})).http2().chance(RACE),
        row("h2-speaks-http1", Serves(|wire, _, _| answer(wire, OK))).http2(),
        row("h2-garbage", Serves(|wire, _, _| answer(wire, b"garbage garbage garbage garbage"))).http2(),
        row("h2-refuses-stream", Serves(|wire, _, _| frames(wire, &[rst(7)]))).http2().but(REPLAYED),
        row("h2-refuses-stream-retried", Serves(|wire, _, _| frames(wire, &[rst(7)])))
            .http2()
            .route("retry_policy: {retry_on: refused-stream, num_retries: 2, retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}}")
            .but(REPLAYED),
        row("h2-resets-stream", Serves(|wire, _, _| frames(wire, &[rst(2)]))).http2(),
        row("h2-cancels-stream", Serves(|wire, _, _| frames(wire, &[rst(8)]))).http2(),
        row("h2-resets-after-head", Serves(|wire, _, _| frames(wire, &[headers(false), rst(2)])))
            .http2()
            .client(|wire, name, seen, _| { send_get(wire, name); head_only(wire, seen); rest_is_cut(wire, seen); }),
        row("h2-no-error-reset-after-end", Serves(|wire, _, _| frames(wire, &[headers(true), rst(0)]))).http2(),
        row("h2-goaway-refuses", Serves(|wire, _, _| frames(wire, &[goaway(0, 0)]))).http2().but(REPLAYED),
        row("h2-goaway-error", Serves(|wire, _, _| frames(wire, &[goaway(1, 2)]))).http2(),
        row("h2-closes-before-head", Serves(|wire, _, _| frames(wire, &[]))).http2(),
        row("h2-closes-mid-body", Serves(|wire, _, _| frames(wire, &[headers(false), frame(0, 0, b"hello")])))
            .http2()
            .client(|wire, name, seen, _| { send_get(wire, name); head_only(wire, seen); rest_is_cut(wire, seen); }),
        row("h2-stalls", Serves(|wire, _, _| frames_and_stall(wire, &[]))).http2().route("timeout: 0.4s"),
        row("h2-body-stalls", Serves(|wire, _, _| frames_and_stall(wire, &[headers(false), frame(0, 0, b"hello")])))
            .http2()
            .route("timeout: 0.4s")
            .client(|wire, name, seen, _| { send_get(wire, name); head_only(wire, seen); rest_is_cut(wire, seen); }),
        row("h2-data-before-headers", Serves(|wire, _, _| frames(wire, &[frame(0, 0, b"hello")]))).http2(),
        row("h2-bad-hpack", Serves(|wire, _, _| frames(wire, &[frame(1, 5, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])]))).http2(),
        row("h2-no-status", Serves(|wire, _, _| frames(wire, &[frame(1, 5, &[0x00, 1, b'a', 1, b'b'])]))).http2(),
        row("h2-upper-case-name", Serves(|wire, _, _| frames(wire, &[frame(1, 5, &[0x88, 0x00, 1, b'A', 1, b'b'])]))).http2(),
        row("h2-push", Serves(|wire, _, _| frames(wire, &[frame(5, 4, &[0, 0, 0, 2, 0x82])]))).http2().but("a push is a protocol error (RFC 9113 section 8.4); Envoy calls it a lost connection"),
        row("h2-window-overflow", Serves(|wire, _, _| frames(wire, &[frame(8, 0, &0x7fff_ffff_u32.to_be_bytes())]))).http2(),
    ]
}

// Clients.

pub(crate) fn send_get(wire: &mut Wire, name: &str) {
    let _ = write!(wire.stream, "GET /{name}/ HTTP/1.1\r\nhost: a\r\n\r\n");
}

/// A request whose body lacks its other half.
fn send_half(wire: &mut Wire, name: &str) {
    let _ = write!(wire.stream, "POST /{name}/ HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello");
}

fn get(wire: &mut Wire, name: &str, seen: &mut String, _: &Flag) {
    send_get(wire, name);
    whole(wire, seen);
}

/// The status line and what of the head tells something; gives the body's length.
pub(crate) fn head_only(wire: &mut Wire, seen: &mut String) -> Option<usize> {
    let head = wire.until(b"\r\n\r\n");
    let head = String::from_utf8_lossy(&head);
    let mut length = None;
    if head.is_empty() {
        *seen += "--- the connection ends\n";
    }
    let mut chunked = false;
    for line in head.lines().filter(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or_default();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().ok();
        }
        chunked |= line.starts_with("transfer-encoding");
        if !matches!(name, "date" | "server" | "x-envoy-upstream-service-time") {
            let _ = writeln!(seen, "{line}");
        }
    }
    if chunked { Some(usize::MAX) } else { length }
}

/// A response.
fn whole(wire: &mut Wire, seen: &mut String) {
    *seen += "--- the client gets\n";
    match head_only(wire, seen) {
        Some(usize::MAX) => {
            let body = wire.until(b"0\r\n\r\n");
            let _ = writeln!(seen, "{}", String::from_utf8_lossy(&body).escape_debug());
        }
        Some(length) => {
            let body = wire.exactly(length);
            let _ = writeln!(seen, "{}", String::from_utf8_lossy(&body).escape_debug());
        }
        None => {}
    }
}

/// What is left of a response that is cut off: how much of it comes may differ.
pub(crate) fn rest_is_cut(wire: &mut Wire, seen: &mut String) {
    while wire.fill() {}
    *seen += if wire.input.ends_with(b"0\r\n\r\n") { "complete\n" } else { "cut\n" };
}

fn reset_when_sent(wire: &mut Wire) {
    let _ = socket2::SockRef::from(&wire.stream).set_linger(Some(std::time::Duration::ZERO));
    if let Ok(stream) = std::net::TcpStream::connect(wire.stream.peer_addr().expect("a peer")) {
        // Closes the first connection.
        wire.stream = stream;
    }
}

// Endpoints.

fn serve_ok(wire: Wire, _: usize, _: &Flag) {
    answer_each(wire, OK);
}

/// Says when half of a body is here.
fn hears_body(mut wire: Wire, _: usize, flag: &Flag) {
    wire.until(b"\r\n\r\n");
    wire.exactly(5);
    flag.raise();
    while wire.fill() {}
}

fn answer_each(mut wire: Wire, answer: &[u8]) {
    while !wire.until(b"\r\n\r\n").is_empty() && wire.stream.write_all(answer).is_ok() {}
}

/// Answers once, and closes in order: what the client still sends is read first.
fn answer(mut wire: Wire, answer: &[u8]) {
    wire.until(b"\r\n\r\n");
    let _ = wire.stream.write_all(answer);
    let _ = wire.stream.shutdown(Shutdown::Write);
    while wire.fill() {}
}

fn answer_and_reset(mut wire: Wire, answer: &[u8]) {
    wire.until(b"\r\n\r\n");
    let _ = wire.stream.write_all(answer);
    wire.reset();
}

fn answer_and_stall(mut wire: Wire, answer: &[u8]) {
    wire.until(b"\r\n\r\n");
    let _ = wire.stream.write_all(answer);
    while wire.fill() {}
}

/// A frame of stream 1.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    on_stream(1, kind, flags, payload)
}

fn on_stream(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn headers(end: bool) -> Vec<u8> {
    frame(1, if end { 5 } else { 4 }, &[0x88])
}

fn rst(code: u32) -> Vec<u8> {
    frame(3, 0, &code.to_be_bytes())
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
    on_stream(0, 7, 0, &payload)
}

/// Sends settings, waits for a request, sends these frames.
fn answer_in_frames(wire: &mut Wire, frames: &[Vec<u8>]) {
    if wire.exactly(24).len() < 24 {
        return;
    }
    let _ = wire.stream.write_all(&on_stream(0, 4, 0, &[]));
    loop {
        let head = wire.exactly(9);
        let [a, b, c, kind, ..] = head[..] else { return };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        wire.exactly(length);
        if kind == 1 {
            break;
        }
    }
    let _ = wire.stream.write_all(&frames.concat());
}

fn frames(mut wire: Wire, frames: &[Vec<u8>]) {
    answer_in_frames(&mut wire, frames);
    let _ = wire.stream.shutdown(Shutdown::Write);
    while wire.fill() {}
}

fn frames_and_stall(mut wire: Wire, frames: &[Vec<u8>]) {
    answer_in_frames(&mut wire, frames);
    while wire.fill() {}
}
