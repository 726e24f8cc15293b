//! HTTP filters, ours beside the real Envoy's: what a client gets, what the services behind get,
//! what the access log says and what is counted must be the same.
//!
//! Each module is about one filter: a [`Suite`] of listeners, services and requests.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

#[allow(clippy::needless_pass_by_value, reason = "it is JSON, written where it is passed")]
mod filters {
    mod compressor;
    mod csrf;
    mod decompressor;
    mod ext_authz;
    mod grpc_web;
    mod jwt_authn;
    mod local_ratelimit;
    mod stateful_session;
}
mod support;

use support::{Proxy, Wire};

/// What a service answers to a head and a body.
type Answer = dyn Fn(&str, &[u8]) -> String + Send + Sync;

/// What a gRPC service answers to a message, and what is written down of it; no answer: an error.
type GrpcAnswer = dyn Fn(&[u8]) -> (Option<Vec<u8>>, String) + Send + Sync;

/// What is compared.
struct Suite {
    /// Listeners by name, with what their connection managers have beside the defaults.
    listeners: Vec<(&'static str, Value)>,
    /// Services that are clusters of this name, beside `up`, which answers `ok`.
    services: Vec<(&'static str, Arc<Answer>)>,
    /// Services that speak gRPC: what each answers to a message sent to a path, if it does.
    grpc: Vec<(&'static str, Arc<GrpcAnswer>)>,
    /// Services that are there already.
    extra: Vec<(&'static str, SocketAddr)>,
    /// `node.metadata`.
    node: Value,
    /// What the access log says beside the usual.
    log: &'static str,
    /// What the names of the stats that are compared contain.
    stats: &'static [&'static str],
    /// Requests: the listener, and the text.
    requests: Vec<(String, String)>,
}

impl Suite {
    /// Adds a request, by a name of its own.
    fn ask(&mut self, listener: &str, first_line: &str, headers: &[(&str, &str)], body: &str) {
        let number = self.requests.len();
        let mut text = format!("{first_line} HTTP/1.1\r\nhost: a.test\r\nx-case: {number}\r\n");
        for (name, value) in headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        if !body.is_empty() {
            let _ = write!(text, "content-length: {}\r\n", body.len());
        }
        let _ = write!(text, "connection: close\r\n\r\n{body}");
        self.requests.push((listener.to_owned(), text));
    }
}

/// A service, and what it was asked.
struct Service {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    fn grpc(name: &'static str, answer: Arc<GrpcAnswer>, asked: Arc<Mutex<Vec<String>>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("an option");
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(serve_grpc(name, stream, Arc::clone(&answer), Arc::clone(&log)));
                }
            });
        });
        Self { address, asked }
    }

    fn start(name: &'static str, answer: Arc<Answer>, asked: Arc<Mutex<Vec<String>>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || serve(name, stream, &*answer, &log));
            }
        });
        Self { address, asked }
    }
}

async fn serve_grpc(
    name: &'static str,
    stream: tokio::net::TcpStream,
    answer: Arc<GrpcAnswer>,
    log: Arc<Mutex<Vec<String>>>,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
        tokio::task::spawn_local(async move {
            let (parts, mut body) = request.into_parts();
            let mut message = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                message.extend_from_slice(&data);
            }
            let mut fields: Vec<String> = parts
                .headers
                .iter()
                .filter(|(name, _)| *name != "x-request-id")
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
                .collect();
            fields.sort_unstable();
            let (said, shown) = answer(message.get(5..).unwrap_or_default());
            let asked = format!(
                "{name} gets {} {} {:?}\n{}\n{shown}",
                parts.method,
                parts.uri.path(),
                parts.uri.authority().map(ToString::to_string),
                fields.join("\n")
            );
            log.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
            let head = http::Response::builder().header("content-type", "application/grpc");
            let Some(said) = said else {
                let head = head.header("grpc-status", "13").body(()).expect("a head");
                let _ = respond.send_response(head, true);
                return;
            };
            let Ok(mut stream) = respond.send_response(head.body(()).expect("a head"), false) else { return };
            let length = u32::try_from(said.len()).expect("short");
            let frame = [&[0][..], &length.to_be_bytes(), &said].concat();
            let _ = stream.send_data(frame.into(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = stream.send_trailers(trailers);
        });
    }
}

fn serve(name: &str, stream: TcpStream, answer: &Answer, log: &Mutex<Vec<String>>) {
    let mut wire = Wire::new(stream);
    loop {
        let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
        if head.is_empty() {
            return;
        }
        let body = wire.body(&head);
        let asked = format!("{name} gets {}", message(&head, &body));
        log.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        if wire.stream.write_all(answer(&head, &body).as_bytes()).is_err() {
            return;
        }
    }
}

/// An answer with a body.
fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text + "\r\n" + body
}

/// A message without what differs from run to run, and without the order of headers.
fn message(head: &str, body: &[u8]) -> String {
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    // Envoy has a chunked body, of nothing, when it makes a request without one again.
    let varies = ["date", "x-request-id", "x-envoy-upstream-service-time", "transfer-encoding"];
    let mut fields: Vec<&str> = lines
        .filter(|line| !varies.iter().any(|name| line.to_ascii_lowercase().starts_with(&format!("{name}:"))))
        .collect();
    fields.sort_unstable();
    let encoding = fields.iter().find_map(|field| field.strip_prefix("content-encoding: "));
    let (body, complete) = decoded(encoding.unwrap_or_default(), body);
    let mark = if complete { "" } else { " (cut off)" };
    format!("{first}\n{}\n{}{mark}", fields.join("\n"), String::from_utf8_lossy(&body))
}

/// The body behind a `content-encoding`, as far as it came, and whether it is complete.
fn decoded(encoding: &str, body: &[u8]) -> (Vec<u8>, bool) {
    let mut out = vec![0; 1 << 20];
    let (length, complete) = match encoding {
        "gzip" => {
            let mut inflate = zlib_rs::Inflate::new(true, 16 + 15);
            let status = inflate.decompress(body, &mut out, zlib_rs::InflateFlush::SyncFlush);
            let length = usize::try_from(inflate.total_out()).expect("short");
            (length, matches!(status, Ok(zlib_rs::Status::StreamEnd)))
        }
        "br" => {
            let (mut length, mut reader) = (0, brotli::Decompressor::new(body, 4096));
            loop {
                match reader.read(&mut out[length..]) {
                    Ok(0) => break (length, true),
                    Ok(count) => length += count,
                    Err(_) => break (length, false),
                }
            }
        }
        "zstd" => {
            let mut context = zstd_safe::DCtx::create();
            let mut output = zstd_safe::OutBuffer::around(&mut out[..]);
            let mut input = zstd_safe::InBuffer::around(body);
            let mut left = Ok(1);
            while matches!(left, Ok(1..)) && input.pos() < body.len() {
                left = context.decompress_stream(&mut output, &mut input);
            }
            (output.pos(), left == Ok(0))
        }
        _ => return (body.to_vec(), true),
    };
    out.truncate(length);
    (out, complete)
}

fn cluster(name: &str, address: SocketAddr) -> Value {
    let endpoint =
        json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": address.port()}}});
    json!({
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    })
}

/// A typed configuration.
fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.{kind}").into();
    config
}

/// An HTTP filter.
fn filter(name: &str, kind: &str, config: Value) -> Value {
    json!({"name": name, "typed_config": typed(&format!("filters.http.{kind}"), config)})
}

/// The terminal filter.
fn router() -> Value {
    filter("router", "router.v3.Router", json!({}))
}

/// Routes for all hosts.
fn routes(routes: &Value) -> Value {
    json!({"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]})
}

/// One route for everything.
fn everything() -> Value {
    routes(&json!([{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]))
}

fn bootstrap(suite: &Suite, folder: &Path, services: &[(&'static str, SocketAddr)]) -> String {
    let format = format!(
        "case=%REQ(X-CASE)% path=%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% cluster=%UPSTREAM_CLUSTER% {}\n",
        suite.log
    );
    let log = typed(
        "access_loggers.file.v3.FileAccessLog",
        json!({"path": folder.join("log"), "log_format": {"text_format_source": {"inline_string": format}}}),
    );
    let listeners = suite.listeners.iter().map(|(name, options)| {
        let mut manager =
            json!({"stat_prefix": "http", "access_log": [{"name": "log", "typed_config": log}]});
        for (key, value) in options.as_object().expect("an object") {
            manager[key] = value.clone();
        }
        let manager = typed("filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
        json!({
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        })
    });
    let clusters = services.iter().map(|(name, address)| {
        let mut cluster = cluster(name, *address);
        if suite.grpc.iter().any(|(grpc, _)| grpc == name) {
            cluster["typed_extension_protocol_options"] = json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                    "upstreams.http.v3.HttpProtocolOptions",
                    json!({"explicit_http_config": {"http2_protocol_options": {}}}),
                ),
            });
        }
        cluster
    });
    let clusters: Vec<Value> = clusters.collect();
    let listeners: Vec<Value> = listeners.collect();
    json!({
        "node": {"id": "node", "cluster": "group", "metadata": suite.node},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
    .to_string()
}

/// What all requests come to with one proxy.
fn run(suite: &Suite, name: &'static str, folder: &Path, envoy: Option<&Path>) -> String {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let up: (&'static str, Arc<Answer>) = ("up", Arc::new(|_, _| answer("200 OK", &[], "ok")));
    let services = std::iter::once(&up).chain(&suite.services);
    let services: Vec<(&'static str, Service)> = services
        .map(|(name, answer)| (*name, Service::start(name, Arc::clone(answer), Arc::clone(&asked))))
        .chain(
            suite
                .grpc
                .iter()
                .map(|(name, answer)| (*name, Service::grpc(name, Arc::clone(answer), Arc::clone(&asked)))),
        )
        .collect();
    let addresses = services.iter().map(|(name, service)| (*name, service.address));
    let addresses: Vec<_> = addresses.chain(suite.extra.iter().copied()).collect();
    let proxy = Proxy::start(name, folder, envoy, |folder| bootstrap(suite, folder, &addresses));
    let ports = proxy.ports();
    let mut told = String::new();
    for (number, (listener, request)) in suite.requests.iter().enumerate() {
        let first = request.lines().next().unwrap_or_default();
        let _ = writeln!(told, "=== {number} {listener} {first:.60}");
        let mut wire = Wire::connect(ports[listener.as_str()]);
        let _ = wire.stream.write_all(request.as_bytes());
        let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
        let body = wire.body(&head);
        let _ = writeln!(told, "{}", message(&head, &body));
        // What was asked before the answer that nothing could be asked may come late, or not at all.
        let asked = asked_now(&services);
        let refused = head.starts_with("HTTP/1.1 400");
        let own = format!("x-case: {number}\n");
        for asked in
            asked.iter().filter(|asked| !refused && (!asked.contains("x-case: ") || asked.contains(&own)))
        {
            let _ = writeln!(told, "{asked}");
        }
    }
    let stats = proxy.admin("GET", "/stats?usedonly");
    let mut stats: Vec<&str> =
        stats.lines().filter(|line| suite.stats.iter().any(|part| line.contains(part))).collect();
    stats.retain(|line| line.contains(": ") && !line.ends_with(": 0") && !line.contains("P0("));
    // How short a body becomes is the library's business.
    stats.retain(|line| !line.contains("total_compressed_bytes"));
    stats.sort_unstable();
    let _ = writeln!(told, "=== stats\n{}", stats.join("\n"));
    let folder = proxy.stop();
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    let _ = writeln!(told, "=== log\n{log}");
    told
}

fn asked_now(services: &[(&'static str, Service)]) -> Vec<String> {
    let Some((_, service)) = services.first() else { return Vec::new() };
    std::mem::take(&mut *service.asked.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a suite with both; `FILTERS_SHOW=1` prints both sides.
fn compare(suite: &Suite) {
    let Some(envoy) = leno_testkit::envoy::binary() else {
        println!("skipped: there is no Envoy to compare with");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let [ours, theirs] = std::thread::scope(|scope| {
        let sides = [("ours", None), ("envoy", Some(envoy.as_path()))].map(|(name, binary)| {
            let folder = folder.path();
            scope.spawn(move || run(suite, name, folder, binary))
        });
        sides.map(|side| side.join().expect("it ran"))
    });
    if std::env::var_os("FILTERS_SHOW").is_some() {
        println!("{ours}\n######## Envoy\n{theirs}");
    }
    let parts = |text: &str| -> Vec<String> { text.split("=== ").map(str::to_owned).collect() };
    let mut difference = String::new();
    for (ours, theirs) in parts(&ours).iter().zip(parts(&theirs)) {
        if *ours != theirs {
            let title = ours.lines().next().unwrap_or_default();
            let _ = writeln!(difference, "=== {title}");
            let missing = |of: &str, from: &str, sign: char| -> String {
                let lines = of.lines().filter(|line| !from.lines().any(|other| other == *line));
                lines.map(|line| format!("{sign} {line}\n")).collect()
            };
            difference += &missing(ours, &theirs, '+');
            difference += &missing(&theirs, ours, '-');
        }
    }
    assert!(difference.is_empty(), "+ ours, - Envoy's:\n{difference}");
    assert_eq!(ours, theirs);
}
