//! Conversations with HTTP/2 on one side or both, beside Envoy: what one protocol says is told in
//! the other. The servers behind do what the request's path says; clients come by either protocol.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::sync::Notify;

use crate::support::{PATIENCE, Proxy, Wire, dead_port};
use crate::{difference, message, normalise};

/// What the servers were asked.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn note(&self, what: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Headers without their order and what differs from run to run.
fn fields(headers: &HeaderMap) -> String {
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| normalise(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    lines.sort();
    lines.iter().fold(String::new(), |text, line| text + line + "\n")
}

/// A body to its end: data, trailers, or why it ends.
async fn whole(mut body: RecvStream) -> String {
    let mut data = Vec::new();
    while let Some(piece) = body.data().await {
        match piece {
            Ok(piece) => {
                let _ = body.flow_control().release_capacity(piece.len());
                data.extend_from_slice(&piece);
            }
            Err(error) => {
                return format!("{}\nbroken off: {:?}\n", String::from_utf8_lossy(&data), error.reason());
            }
        }
    }
    let trailers = match body.trailers().await {
        Ok(Some(trailers)) => format!("trailers\n{}", fields(&trailers)),
        Ok(None) => String::new(),
        Err(error) => format!("broken off: {:?}\n", error.reason()),
    };
    format!("{}\n{trailers}", String::from_utf8_lossy(&data))
}

/// A server that speaks HTTP/2; its thread ends with the test's process.
fn serve_http2(asked: Asked) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("an option");
    std::thread::spawn(move || {
        run(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::task::spawn_local(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.enable_connect_protocol().max_header_list_size(1 << 20);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                    let over = Rc::new(Notify::new());
                    loop {
                        let next = tokio::select! {
                            next = connection.accept() => next,
                            () = over.notified() => return,
                        };
                        let Some(Ok((request, respond))) = next else { return };
                        tokio::task::spawn_local(answer(request, respond, asked.clone(), Rc::clone(&over)));
                    }
                });
            }
        });
    });
    address
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    asked: Asked,
    over: Rc<Notify>,
) {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    let protocol = parts.extensions.get::<Protocol>().map(|protocol| format!(" {}", protocol.as_str()));
    let protocol = protocol.unwrap_or_default();
    let head = format!("{}{protocol} {path} {authority}\n{}", parts.method, fields(&parts.headers));
    let tunnel = parts.method == http::Method::CONNECT;
    let (asked_body, tunneled) = if tunnel { (None, Some(body)) } else { (Some(body), None) };
    // A tunnel's bytes are not waited for; they are received as long as this is here.
    let _bytes = match asked_body {
        Some(body) => {
            asked.note(format!("{head}{}", whole(body).await));
            None
        }
        None => {
            asked.note(head);
            tunneled
        }
    };
    let response = |status: u16| Response::builder().status(status).header("x-from", "two");
    let flushed = || async {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    };
    let kind = path.rsplit('/').next().unwrap_or_default();
    let mut send = |builder: http::response::Builder, end: bool| {
        respond.send_response(builder.body(()).expect("a response"), end)
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    trailers.insert("x-two", "trailer".parse().expect("a value"));
    match kind {
        "trailers" | "trailers-limit" => {
            let Ok(mut stream) = send(response(200).header("content-type", "application/grpc"), false) else {
                return;
            };
            let _ = stream.send_data(Bytes::from_static(b"hello"), false);
            if kind == "trailers-limit" {
                trailers.insert("x-big", "a".repeat(70_000).parse().expect("a value"));
            }
            let _ = stream.send_trailers(trailers);
        }
        "only" => {
            let head = response(200).header("content-type", "application/grpc");
            let _ = send(head.header("grpc-status", "5").header("grpc-message", "not%20here"), true);
        }
        "204" | "304" | "205" => drop(send(response(kind.parse().expect("a status")), true)),
        "head" => drop(send(response(200).header("content-length", "12"), true)),
        "length" => {
            let Ok(mut stream) = send(response(200).header("content-length", "5"), false) else { return };
            let _ = stream.send_data(Bytes::from_static(b"hello"), true);
        }
        "lost" => {
            over.notify_one();
            std::future::pending::<()>().await;
        }
        "lost-head" | "lost-mid" | "lost-long" => {
            let head = response(200).header("content-type", "application/grpc");
            let head = if kind == "lost-long" { head.header("content-length", "10") } else { head };
            let Ok(mut stream) = send(head, false) else { return };
            if kind != "lost-head" {
                let _ = stream.send_data(Bytes::from_static(b"hello"), false);
            }
            flushed().await;
            over.notify_one();
            std::future::pending::<()>().await;
        }
        "reset" => respond.send_reset(Reason::INTERNAL_ERROR),
        "reset-cancel" => respond.send_reset(Reason::CANCEL),
        "reset-mid" => {
            let head = response(200).header("content-type", "application/grpc");
            let Ok(mut stream) = send(head, false) else { return };
            let _ = stream.send_data(Bytes::from_static(b"hello"), false);
            flushed().await;
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        "big" => drop(send(response(200).header("x-big", "a".repeat(70_000)), true)),
        "many" => {
            let head = (0..120).fold(response(200), |head, index| head.header(format!("x-{index}"), "a"));
            drop(send(head, true));
        }
        "hang" => std::future::pending().await,
        "hop" => drop(send(response(200).header("x-two", "b"), true)),
        "upgrade" => {
            let Ok(mut stream) = send(response(200), false) else { return };
            let _ = stream.send_data(Bytes::from_static(b"hello"), true);
        }
        _ => {
            let Ok(mut stream) = send(response(200), false) else { return };
            let _ = stream.send_data(Bytes::from_static(b"ok"), true);
        }
    }
}

/// A server that speaks HTTP/1.1.
fn serve_http1(asked: Asked) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let asked = asked.clone();
            std::thread::spawn(move || {
                let mut wire = Wire::new(stream);
                loop {
                    let head = wire.until(b"\r\n\r\n");
                    if head.is_empty() {
                        return;
                    }
                    let upgrade = head.windows(9).any(|bytes| bytes.eq_ignore_ascii_case(b"/upgrade "));
                    let request = message(&mut wire, &head, upgrade, false);
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    asked.note(request);
                    let (answer, close): (&[u8], bool) = match path.rsplit('/').next().unwrap_or_default() {
                        "trailers" => (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-two: trailer\r\ngrpc-status: 0\r\n\r\n", false),
                        "204" => (b"HTTP/1.1 204 No\r\n\r\n", false),
                        "304" => (b"HTTP/1.1 304 No\r\ncontent-length: 10\r\n\r\n", false),
                        "head" => (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", false),
                        "only" => (b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ngrpc-message: not%20here\r\ncontent-length: 0\r\n\r\n", false),
                        "lost" => (b"", true),
                        "lost-mid" => (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: application/grpc\r\n\r\n5\r\nhello\r\n", true),
                        "lost-long" => (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", true),
                        "until-close" => (b"HTTP/1.1 200 OK\r\n\r\nhello", true),
                        "hop" => (b"HTTP/1.1 200 OK\r\nconnection: keep-alive, x-two\r\nkeep-alive: timeout=5\r\nproxy-connection: a\r\nx-two: b\r\ncontent-length: 0\r\n\r\n", false),
                        "continue" => (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false),
                        "hints" => (b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false),
                        "upgrade" => (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello", true),
                        "refused-upgrade" => (b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno", false),
                        "500" => (b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno", false),
                        _ => (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
                    };
                    if wire.stream.write_all(answer).is_err() || close {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Where we differ on purpose.
const DEVIATIONS: &[(&str, &str)] = &[
    ("plain GET /h1/lost", "a safe request whose kept connection closes without an answer is sent again"),
    ("plain GET /h1/hints", "interim responses other than 100 are passed on"),
    ("grpc POST /h1/hints", "interim responses other than 100 are passed on"),
    ("extended CONNECT /h1/upgrade", "the end of a tunnel's bytes is no error (RFC 9113 section 8.5)"),
];

/// One conversation.
struct Case {
    name: String,
    client: Client,
}

enum Client {
    /// These bytes, by HTTP/1.1.
    One(String),
    /// Method, path, headers, body, trailers.
    Two(Ask),
}

#[derive(Clone, Default)]
struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<&'static str>,
    trailers: Vec<(&'static str, &'static str)>,
    protocol: Option<&'static str>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut two = |name: &str, ask: Ask| {
        cases.push(Case { name: format!("{name} {} {}", ask.method, ask.path), client: Client::Two(ask) });
    };
    let get = |path: &str| Ask { method: "GET", path: path.into(), ..Ask::default() };
    let grpc = |path: &str| Ask {
        method: "POST",
        path: path.into(),
        headers: vec![("content-type", "application/grpc".into()), ("te", "trailers".into())],
        body: Some("message"),
        ..Ask::default()
    };
    let kinds = [
        "ok",
        "trailers",
        "trailers-limit",
        "only",
        "204",
        "304",
        "205",
        "head",
        "length",
        "lost",
        "lost-head",
        "lost-mid",
        "lost-long",
        "reset",
        "reset-cancel",
        "reset-mid",
        "big",
        "many",
        "hop",
        "continue",
        "hints",
        "until-close",
        "500",
    ];
    for upstream in ["h2", "h1"] {
        for kind in kinds {
            let path = format!("/{upstream}/{kind}");
            two("plain", get(&path));
            two("grpc", grpc(&path));
        }
        for kind in ["head", "204", "304"] {
            two("head", Ask { method: "HEAD", ..get(&format!("/{upstream}/{kind}")) });
        }
        let path = format!("/{upstream}/ok");
        let trailers = vec![("x-two", "trailer"), ("x-three", "more")];
        two("trailers", Ask { method: "POST", body: Some("a"), trailers, ..get(&path) });
        let header = |name, value: &str| Ask { headers: vec![(name, value.into())], ..get(&path) };
        two(
            "cookies",
            Ask { headers: vec![("cookie", "a=1".into()), ("cookie", "b=2".into())], ..get(&path) },
        );
        two("te", header("te", "trailers"));
        two("expect", Ask { method: "POST", body: Some("a"), ..header("expect", "100-continue") });
        two("large head", header("x-a", &"a".repeat(61 * 1024)));
        two("many headers", Ask { headers: vec![("x-a", "a".into()); 120], ..get(&path) });
        two("length", Ask { method: "POST", body: Some("hello"), ..header("content-length", "5") });
        for kind in ["upgrade", "refused-upgrade"] {
            let protocol = Some("websocket");
            two("extended", Ask { method: "CONNECT", protocol, ..get(&format!("/{upstream}/{kind}")) });
        }
        let protocol = Some("other");
        two("unknown extended", Ask { method: "CONNECT", protocol, ..get(&format!("/{upstream}/upgrade")) });
    }
    for path in
        ["/dead/a", "/empty/a", "/late/hang", "/missing/a", "/nowhere", "/direct", "/limited/ok", "/try/hang"]
    {
        two("plain", get(path));
        two("grpc", grpc(path));
        two("grpc-web", Ask { headers: vec![("content-type", "application/grpc-web".into())], ..grpc(path) });
        two(
            "grpc+proto",
            Ask { headers: vec![("content-type", "application/grpc+proto".into())], ..grpc(path) },
        );
        two("head", Ask { method: "HEAD", ..get(path) });
    }
    let mut one =
        |name: &str, text: String| cases.push(Case { name: name.into(), client: Client::One(text) });
    for kind in kinds {
        one(&format!("one GET {kind}"), format!("GET /h2/{kind} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        one(
            &format!("one te GET {kind}"),
            format!("GET /h2/{kind} HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: te\r\n\r\n"),
        );
        one(
            &format!("one gRPC {kind}"),
            format!(
                "POST /h2/{kind} HTTP/1.1\r\nHost: a.test\r\ncontent-type: application/grpc\r\ncontent-length: 2\r\n\r\nhi"
            ),
        );
        one(&format!("one HEAD {kind}"), format!("HEAD /h2/{kind} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    }
    one("one trailers", "POST /h2/ok HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Two: a\r\n\r\n".into());
    one(
        "one expect",
        "POST /h2/ok HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi".into(),
    );
    one("one cookies", "GET /h2/ok HTTP/1.1\r\nHost: a.test\r\nCookie: a=1; b=2\r\n\r\n".into());
    one("one hop", "GET /h2/ok HTTP/1.1\r\nHost: a.test\r\nConnection: x-two, keep-alive\r\nX-Two: a\r\nKeep-Alive: 5\r\nProxy-Connection: a\r\nUpgrade-Insecure-Requests: 1\r\n\r\n".into());
    for kind in ["upgrade", "refused-upgrade", "204", "only"] {
        one(
            &format!("one websocket {kind}"),
            format!(
                "GET /h2/{kind} HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
            ),
        );
    }
    one(
        "one other upgrade",
        "GET /h2/ok HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n".into(),
    );
    let only = std::env::var("DIFFERENTIAL").unwrap_or_default();
    cases.retain(|case| case.name.contains(&only));
    cases
}

/// What the client sees.
fn converse(port: SocketAddr, case: &Case) -> String {
    match &case.client {
        Client::One(text) => {
            let mut wire = Wire::connect(port);
            let _ = wire.stream.write_all(text.as_bytes());
            let mut out = String::new();
            loop {
                let head = wire.until(b"\r\n\r\n");
                let status = head.get(9..12).unwrap_or_default().to_vec();
                let switched = status == b"101";
                let bodiless = status.starts_with(b"1") || status == b"204" || status == b"304";
                let bodiless = !switched && (bodiless || text.starts_with("HEAD "));
                let _ = writeln!(out, "--- the client gets\n{}", message(&mut wire, &head, bodiless, true));
                if switched || !status.starts_with(b"1") {
                    return out;
                }
            }
        }
        Client::Two(ask) => {
            let asked = async { tokio::time::timeout(PATIENCE, ask_http2(port, ask)).await };
            format!("--- the client gets\n{}", run(asked).unwrap_or_else(|_| "nothing".into()))
        }
    }
}

async fn ask_http2(port: SocketAddr, ask: &Ask) -> String {
    let stream = tokio::net::TcpStream::connect(port).await.expect("the proxy listens");
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(1 << 20);
    let (send, connection) = builder.handshake::<_, Bytes>(stream).await.expect("a handshake");
    tokio::task::spawn_local(connection);
    let mut send = send.ready().await.expect("it is ready");
    if ask.protocol.is_some() {
        // Known with the server's SETTINGS.
        while !send.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    }
    let mut request = Request::builder().method(ask.method).uri(format!("http://a.test{}", ask.path));
    for (name, value) in &ask.headers {
        request = request.header(*name, value);
    }
    let mut request = request.body(()).expect("a request");
    if let Some(protocol) = ask.protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    let end = ask.body.is_none() && ask.protocol.is_none();
    let (mut response, mut body) = match send.send_request(request, end) {
        Ok(sent) => sent,
        Err(error) => return format!("not sent: {:?}", error.reason()),
    };
    if let Some(text) = ask.body {
        let _ = body.send_data(Bytes::from_static(text.as_bytes()), ask.trailers.is_empty());
        if !ask.trailers.is_empty() {
            let mut trailers = HeaderMap::new();
            for (name, value) in &ask.trailers {
                trailers.insert(*name, value.parse().expect("a value"));
            }
            let _ = body.send_trailers(trailers);
        }
    }
    let mut out = String::new();
    while let Some(Ok(interim)) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
        let _ = writeln!(out, "{}\n{}", interim.status(), fields(interim.headers()));
    }
    match response.await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let _ = write!(out, "{}\n{}{}", parts.status, fields(&parts.headers), whole(body).await);
        }
        Err(error) => {
            let _ = write!(out, "broken off: {:?}", error.reason());
        }
    }
    out
}

fn bootstrap(folder: &Path, one: SocketAddr, two: SocketAddr, dead: SocketAddr) -> String {
    include_str!("http2.yaml")
        .replace("LOG_FILE", &folder.join("access.log").display().to_string())
        .replace("PORT_ONE", &one.port().to_string())
        .replace("PORT_TWO", &two.port().to_string())
        .replace("PORT_DEAD", &dead.port().to_string())
}

#[test]
fn http2_same_as_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (_socket, dead) = dead_port();
    let cases = cases();
    let both = std::thread::scope(|scope| {
        let sides = [("ours-h2", None), ("envoy-h2", Some(envoy.as_path()))].map(|(name, binary)| {
            let (folder, cases) = (folder.path(), &cases);
            scope.spawn(move || {
                let asked = Asked::default();
                let (one, two) = (serve_http1(asked.clone()), serve_http2(asked.clone()));
                let proxy = Proxy::start(name, folder, binary, |folder| bootstrap(folder, one, two, dead));
                let port = proxy.port("main");
                let results: Vec<String> = cases
                    .iter()
                    .map(|case| {
                        let mut text = converse(port, case);
                        for request in asked.take() {
                            let _ = write!(text, "\n--- the server gets\n{}", normalise(&request));
                        }
                        text
                    })
                    .collect();
                proxy.stop();
                results
            })
        });
        sides.map(|side| side.join().expect("it ran"))
    });
    let [ours, envoys] = both;
    let verbose = std::env::var_os("DIFFERENTIAL").is_some();
    let (mut failures, mut failed) = (String::new(), 0);
    for ((case, ours), envoys) in cases.iter().zip(&ours).zip(&envoys) {
        if let Some((_, reason)) = DEVIATIONS.iter().find(|(name, _)| *name == case.name) {
            if ours == envoys {
                failed += 1;
                let _ = writeln!(failures, "\n=== {}: no deviation any more ({reason})", case.name);
            }
            continue;
        }
        if verbose {
            println!("=== {}: ours\n{ours}\n=== Envoy\n{envoys}\n", case.name);
        }
        if ours != envoys {
            failed += 1;
            let _ = writeln!(failures, "\n=== {}\n{}", case.name, difference(ours, envoys));
        }
    }
    assert!(failed == 0, "{failed} of {} cases differ (- Envoy, + ours)\n{failures}", cases.len());
}
