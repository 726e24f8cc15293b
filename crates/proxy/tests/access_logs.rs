//! Access logs that go to services, ours beside the real Envoy's: the entries of Envoy's access log
//! service and OpenTelemetry's log records must be the same, apart from times and ports.
//!
//! The service is one of HTTP/2 (h2) that writes down what it is sent. `sinks` is about stats.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use expect_test::expect;
use leno_api::proto::envoy::data::accesslog::v3 as data;
use leno_api::proto::envoy::service::accesslog::v3 as service;
use leno_api::proto::opentelemetry::proto::collector::logs::v1 as collector;
use prost::Message;
use serde_json::{Value, json};
use service::stream_access_logs_message::LogEntries;

#[path = "access_logs/sinks.rs"]
mod sinks;
mod support;

use support::{Proxy, Wire, exchange, wait};

/// What a service was sent: path, body.
type Sent = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A service that answers each gRPC call with an empty message when it ends, and takes what comes.
fn collect() -> (SocketAddr, Sent) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("an option");
    let sent = Sent::default();
    let log = Arc::clone(&sent);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(stream, Arc::clone(&log)));
            }
        });
    });
    (address, sent)
}

async fn serve(stream: tokio::net::TcpStream, log: Sent) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let log = Arc::clone(&log);
        tokio::task::spawn_local(async move {
            let (parts, mut body) = request.into_parts();
            let mut path = parts.uri.path().to_owned();
            let mut left = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                left.extend_from_slice(&data);
                while let Some(length) = left.get(1..5) {
                    let length = 5 + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
                    if left.len() < length {
                        break;
                    }
                    let message: Vec<u8> = left.drain(..length).skip(5).collect();
                    if path.ends_with("StreamAccessLogs") {
                        // The first message of a stream says of which log it is.
                        let message = service::StreamAccessLogsMessage::decode(message.as_slice());
                        let identifier = message.expect("a message").identifier.expect("an identifier");
                        path = identifier.log_name;
                    }
                    log.lock().unwrap_or_else(PoisonError::into_inner).push((path.clone(), message));
                }
            }
            let head = http::Response::builder().header("content-type", "application/grpc").body(());
            let Ok(mut stream) = respond.send_response(head.expect("a head"), false) else { return };
            let _ = stream.send_data(vec![0; 5].into(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = stream.send_trailers(trailers);
        });
    }
}

/// A collector of HTTP/1.1.
fn collect_http() -> (SocketAddr, Sent) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let sent = Sent::default();
    let log = Arc::clone(&sent);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut wire = Wire::new(stream);
                loop {
                    let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).to_lowercase();
                    let field = |name: &str| {
                        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                        line.unwrap_or_default().to_owned()
                    };
                    if head.is_empty() {
                        return;
                    }
                    let mut body = Vec::new();
                    // It comes in chunks.
                    loop {
                        let size = String::from_utf8_lossy(&wire.until(b"\r\n")).trim().to_owned();
                        let size = usize::from_str_radix(&size, 16).expect("the size of a chunk");
                        let chunk = wire.exactly(size + 2);
                        body.extend_from_slice(&chunk[..size]);
                        if size == 0 {
                            break;
                        }
                    }
                    let first = head.lines().next().unwrap_or_default();
                    let what = format!("{first} {} {}", field("content-type"), field("x-token"));
                    log.lock().unwrap_or_else(PoisonError::into_inner).push((what, body));
                    if wire.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, sent)
}

fn typed(name: &str, kind: &str, mut value: Value) -> Value {
    value["@type"] = format!("type.googleapis.com/envoy.{kind}").into();
    json!({"name": name, "typed_config": value})
}

fn cluster(name: &str, address: SocketAddr, http2: bool) -> Value {
    let mut cluster = json!({"name": name, "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": address.port()}}}},
    ]}]}});
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}

fn listener(name: &str, filter: &Value) -> Value {
    json!({
        "name": name, "filter_chains": [{"filters": [filter]}],
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
    })
}

fn grpc(cluster: &str) -> Value {
    json!({"envoy_grpc": {"cluster_name": cluster}})
}

/// What all loggers send soon, and one by one.
fn common(name: &str) -> Value {
    json!({
        "log_name": name, "grpc_service": grpc("logs"), "transport_api_version": "V3",
        "buffer_flush_interval": "0.1s", "filter_state_objects_to_log": ["io.x", "nope"],
    })
}

fn text(text: &str) -> Value {
    json!({"string_value": text})
}

fn pairs(all: &[(&str, Value)]) -> Value {
    let values: Vec<Value> = all.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({"values": values})
}

fn bootstrap(up: SocketAddr, dead: SocketAddr, logs: SocketAddr, posts: SocketAddr) -> String {
    const LOGGERS: &str = "extensions.access_loggers";
    let http_log = typed(
        "http",
        &format!("{LOGGERS}.grpc.v3.HttpGrpcAccessLogConfig"),
        json!({
            "common_config": common("http"),
            "additional_request_headers_to_log": ["X-One", "x-two", "x-none"],
            "additional_response_headers_to_log": ["x-up"],
            "additional_response_trailers_to_log": ["x-trailer"],
        }),
    );
    let mut filtered = typed(
        "http",
        &format!("{LOGGERS}.grpc.v3.HttpGrpcAccessLogConfig"),
        json!({"common_config": common("filtered")}),
    );
    filtered["filter"] = json!({"extension_filter": typed("cel", &format!("{LOGGERS}.filters.cel.v3.ExpressionFilter"), json!({
        "expression": "response.code >= 500 || request.headers['x-one'] == 'b'",
    }))});
    let records = typed(
        "otel",
        &format!("{LOGGERS}.open_telemetry.v3.OpenTelemetryAccessLogConfig"),
        json!({
            "common_config": common("otel"), "stat_prefix": "mine",
            "buffer_flush_interval": "0.1s", "filter_state_objects_to_log": ["io.x", "none"],
            "resource_attributes": pairs(&[("own", text("%PROTOCOL%"))]),
            "body": {"kvlist_value": pairs(&[("path", text("%REQ(:PATH)%")), ("list", json!({"array_value": {"values": [text("a-%RESPONSE_CODE%")]}}))])},
            "attributes": pairs(&[
                ("code", text("%RESPONSE_CODE%")), ("none", text("%REQ(x-none)%")), ("mixed", text("<%REQ(x-one)%>")),
                ("plain", text("%REQ_WITHOUT_QUERY(:PATH)%")),
                ("cel", text("%CEL(request.method)%")),
            ]),
            "formatters": [typed("f", "extensions.formatter.req_without_query.v3.ReqWithoutQuery", json!({}))],
        }),
    );
    let posted = typed(
        "otel",
        &format!("{LOGGERS}.open_telemetry.v3.OpenTelemetryAccessLogConfig"),
        json!({
            "http_service": {
                "http_uri": {"uri": "http://collector.test/v1/logs", "cluster": "posts", "timeout": "5s"},
                "request_headers_to_add": [{"header": {"key": "x-token", "value": "secret"}}],
            },
            "log_name": "posted", "buffer_flush_interval": "0.1s", "disable_builtin_labels": true,
            "body": text("%REQ(:METHOD)% %RESPONSE_FLAGS%"),
        }),
    );
    let state = typed(
        "state",
        "extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [
            {"object_key": "io.x", "factory_key": "envoy.string", "format_string": {"text_format_source": {"inline_string": "%REQ(x-one)%!"}}},
        ]}),
    );
    let metadata = typed(
        "metadata",
        "extensions.filters.http.set_metadata.v3.Config",
        json!({"metadata": [
            {"metadata_namespace": "ns", "value": {"a": 1, "b": ["x", true]}},
        ]}),
    );
    let manager = |logs: &[&Value]| {
        typed(
            "http",
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            json!({
                "stat_prefix": "http", "access_log": logs,
                "http_protocol_options": {"accept_http_10": true, "enable_trailers": true},
                "http_filters": [state, metadata, typed("router", "extensions.filters.http.router.v3.Router", json!({}))],
                "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                    {"name": "here", "match": {"path": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "tea"}}},
                    {"match": {"path": "/dead"}, "route": {"cluster": "dead"}},
                    {"match": {"path": "/moved"}, "redirect": {"path_redirect": "/a"}},
                    {"name": "up", "match": {"prefix": "/up"}, "route": {"cluster": "up", "prefix_rewrite": "/else", "retry_policy": {"retry_on": "5xx", "num_retries": 1}}},
                ]}]},
            }),
        )
    };
    let session = |name: &str, cluster: &str| {
        typed(
            "tcp",
            "extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({"stat_prefix": "tcp", "cluster": cluster, "access_log": [
                typed("tcp", &format!("{LOGGERS}.grpc.v3.TcpGrpcAccessLogConfig"), json!({"common_config": common(name)})),
            ]}),
        )
    };
    json!({
        "node": {"id": "n", "cluster": "c", "locality": {"zone": "z"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [
                listener("entries", &manager(&[&http_log, &filtered])),
                listener("records", &manager(&[&records, &posted])),
                listener("tcp", &session("tcp", "up")),
                listener("tcp_dead", &session("tcp_dead", "dead")),
            ],
            "clusters": [
                cluster("up", up, false), cluster("dead", dead, false), cluster("logs", logs, true),
                cluster("posts", posts, false),
            ],
        },
    })
    .to_string()
}

/// Requests: (first line, headers, body).
const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET /up?a=b HTTP/1.1", "x-one: a\r\nuser-agent: me\r\nreferer: there\r\n", ""),
    ("POST /up HTTP/1.1", "x-one: b\r\nX-One: c\r\nx-two: \u{e9}\r\n", "hello"),
    ("GET /direct HTTP/1.1", "", ""),
    ("GET /dead HTTP/1.1", "x-forwarded-for: 1.2.3.4\r\n", ""),
    ("GET /nowhere HTTP/1.1", "", ""),
    ("PUT /moved HTTP/1.1", "", ""),
    ("GET /up/error HTTP/1.1", "", ""),
    ("OPTIONS /up HTTP/1.0", "", ""),
    ("BREW /direct HTTP/1.1", "", ""),
];

/// An endpoint that answers by path; `hello` over TCP.
fn endpoint() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut wire = Wire::new(stream);
                loop {
                    let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
                    if head.is_empty() {
                        return;
                    }
                    if head.contains("content-length: 5") {
                        wire.exactly(5);
                    }
                    let answer = match head.contains("/else/error") {
                        true => "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno",
                        false => "HTTP/1.1 200 OK\r\nx-up: 1\r\nx-up: 2\r\ncontent-length: 4\r\n\r\nbody",
                    };
                    if wire.stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// What a proxy has sent of all requests and sessions, by log, as text.
fn run(name: &'static str, folder: &Path, envoy: Option<&Path>) -> BTreeMap<String, String> {
    let (_socket, dead) = support::dead_port();
    let (logs, sent) = collect();
    let (posts, posted) = collect_http();
    let up = endpoint();
    let proxy = Proxy::start(name, folder, envoy, |_| bootstrap(up, dead, logs, posts));
    for listener in ["entries", "records"] {
        let address = proxy.port(listener);
        for (first, headers, body) in REQUESTS {
            let length =
                if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
            let id = "x-request-id: 12345678-1234-4123-8123-123456789012\r\n";
            exchange(
                address,
                &format!("{first}\r\nhost: a.test\r\nconnection: close\r\n{id}{headers}{length}\r\n{body}"),
            );
        }
    }
    for listener in ["tcp", "tcp_dead"] {
        let mut wire = Wire::connect(proxy.port(listener));
        let _ = wire.stream.write_all(b"ask\r\n\r\n");
        wire.until(b"body");
    }
    let wanted = 2 * REQUESTS.len() + 2;
    let arrived = wait(|| {
        let (entries, records) = (entries(&sent), records(&posted));
        (entries >= wanted && records >= REQUESTS.len()).then_some(())
    });
    let mut all = show(&sent);
    all.extend(show(&posted));
    assert!(arrived.is_some(), "{name}: {all:#?}");
    let stats = proxy.admin("GET", "/stats?filter=access_logs");
    let stats: Vec<&str> = stats.lines().filter(|line| line.starts_with("access_logs.")).collect();
    all.insert("stats".to_owned(), stats.join("\n"));
    proxy.stop();
    all
}

/// How many entries and records came, apart from those that a filter lets pass.
fn entries(sent: &Sent) -> usize {
    let text: Vec<String> =
        show(sent).into_iter().filter(|(log, _)| log != "filtered").map(|(_, text)| text).collect();
    text.iter().map(|text| text.matches("ENTRY").count()).sum()
}

fn records(sent: &Sent) -> usize {
    entries(sent)
}

/// By log: what was sent, with times and ports out of the way.
fn show(sent: &Sent) -> BTreeMap<String, String> {
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for (path, message) in sent.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if !path.contains('/') {
            let message = service::StreamAccessLogsMessage::decode(message.as_slice()).expect("a message");
            if let Some(identifier) = message.identifier {
                let node = identifier.node.unwrap_or_default();
                let text = format!(
                    "id={} cluster={} zone={}",
                    node.id,
                    node.cluster,
                    node.locality.unwrap_or_default().zone
                );
                shown.entry(format!("identifier {}", identifier.log_name)).or_default().push_str(&text);
            }
            match message.log_entries {
                Some(LogEntries::HttpLogs(logs)) => logs.log_entry.into_iter().for_each(|mut entry| {
                    entry.common_properties.iter_mut().for_each(settle);
                    let headers = entry.request.iter_mut().map(|request| {
                        // Not told by ours.
                        request.upstream_header_bytes_sent = 0;
                        format!(
                            "{:?}",
                            std::mem::take(&mut request.request_headers)
                                .into_iter()
                                .collect::<BTreeMap<_, _>>()
                        )
                    });
                    let mut more: String = headers.collect();
                    if let Some(response) = &mut entry.response {
                        response.upstream_header_bytes_received = 0;
                        // Dates and what we call ourselves.
                        response.response_headers_bytes = 0;
                        response.downstream_header_bytes_sent = 0;
                        let headers: BTreeMap<_, _> =
                            std::mem::take(&mut response.response_headers).into_iter().collect();
                        let _ = write!(more, " {headers:?} {:?}", response.response_trailers);
                    }
                    let _ = writeln!(shown.entry(path.clone()).or_default(), "ENTRY {entry:#?}\n{more}");
                }),
                Some(LogEntries::TcpLogs(logs)) => logs.log_entry.into_iter().for_each(|mut entry| {
                    entry.common_properties.iter_mut().for_each(|common| {
                        settle(common);
                        common.stream_id.clear();
                    });
                    let _ = writeln!(shown.entry(path.clone()).or_default(), "ENTRY {entry:#?}");
                }),
                None => {}
            }
        } else {
            let request = collector::ExportLogsServiceRequest::decode(message.as_slice()).expect("a message");
            for mut logs in request.resource_logs {
                let resource = logs.resource.take();
                for record in logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                    let mut record = record;
                    record.time_unix_nano = u64::from(record.time_unix_nano > 1_700_000_000_000_000_000);
                    let _ =
                        writeln!(shown.entry(path.clone()).or_default(), "ENTRY {resource:?} {record:#?}");
                }
            }
        }
    }
    shown
}

/// Times become 1 ns, ports 1 or 0; bytes on the wire depend on names and dates.
fn settle(common: &mut data::AccessLogCommon) {
    let there = |time: &mut Option<prost_types::Duration>| {
        if let Some(time) = time {
            *time = prost_types::Duration { seconds: 0, nanos: 1 };
        }
    };
    common.start_time = common.start_time.filter(|time| time.seconds < 1_700_000_000);
    [
        &mut common.time_to_last_rx_byte,
        &mut common.time_to_first_upstream_tx_byte,
        &mut common.time_to_last_upstream_tx_byte,
        &mut common.time_to_first_upstream_rx_byte,
        &mut common.time_to_last_upstream_rx_byte,
        &mut common.time_to_first_downstream_tx_byte,
        &mut common.time_to_last_downstream_tx_byte,
        &mut common.duration,
    ]
    .into_iter()
    .for_each(there);
    let addresses = [
        &mut common.downstream_remote_address,
        &mut common.downstream_local_address,
        &mut common.upstream_remote_address,
        &mut common.upstream_local_address,
        &mut common.downstream_direct_remote_address,
    ];
    for address in addresses.into_iter().flatten() {
        use leno_api::proto::envoy::config::core::v3::{address, socket_address};
        if let Some(address::Address::SocketAddress(socket)) = &mut address.address {
            let is_none = socket.port_specifier == Some(socket_address::PortSpecifier::PortValue(0));
            let port = socket_address::PortSpecifier::PortValue(u32::from(!is_none));
            socket.port_specifier = Some(port);
        }
    }
    if common.response_flags.is_some_and(|flags| flags.downstream_protocol_error) {
        // Of what is no request, ours does not know how long it was.
        common.downstream_wire_bytes_received = 0;
    }
    common.downstream_wire_bytes_sent = 0;
    common.upstream_wire_bytes_received = u64::from(common.upstream_wire_bytes_received > 0);
    common.upstream_wire_bytes_sent = u64::from(common.upstream_wire_bytes_sent > 0);
    common.downstream_wire_bytes_received = u64::from(common.downstream_wire_bytes_received > 0);
}

#[test]
fn services_are_told_the_same_as_by_envoy() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = run("leno", folder.path(), None);
    expect![[r#"
        access_logs.grpc_access_log.grpc_entries_flush_failed: 0
        access_logs.grpc_access_log.grpc_entries_flushed: 13
        access_logs.grpc_access_log.logs_dropped: 0
        access_logs.grpc_access_log.logs_written: 11
        access_logs.open_telemetry_access_log.logs_dropped: 0
        access_logs.open_telemetry_access_log.logs_written: 9
        access_logs.open_telemetry_access_log.mine.grpc_entries_flush_failed: 0
        access_logs.open_telemetry_access_log.mine.grpc_entries_flushed: 0
        access_logs.open_telemetry_access_log.mine.logs_dropped: 0
        access_logs.open_telemetry_access_log.mine.logs_written: 9"#]]
    .assert_eq(ours.get("stats").map(String::as_str).unwrap_or_default());
    let Some(envoy) = leno_testkit::envoy::binary() else {
        eprintln!("skipped: there is no Envoy to compare with");
        return;
    };
    let theirs = run("envoy", folder.path(), Some(&envoy));
    let mut differences = String::new();
    for (log, expected) in &theirs {
        let got = ours.get(log).map(String::as_str).unwrap_or_default();
        let (got, expected): (Vec<&str>, Vec<&str>) =
            (got.split("ENTRY").collect(), expected.split("ENTRY").collect());
        if got.len() != expected.len() {
            let _ = writeln!(differences, "{log}: {} instead of {} entries", got.len(), expected.len());
        }
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            for (got, expected) in got.lines().zip(expected.lines()).filter(|(got, expected)| got != expected)
            {
                let _ = writeln!(differences, "{log} {index}: {} instead of {}", got.trim(), expected.trim());
            }
            if got.lines().count() != expected.lines().count() {
                let _ = writeln!(differences, "{log} {index}: {got}\ninstead of {expected}");
            }
        }
    }
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    assert!(differences.is_empty(), "{differences}");
}
