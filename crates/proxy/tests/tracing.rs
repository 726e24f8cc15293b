//! Tracing, ours beside the real Envoy's: the same requests lead to the same spans (their tags,
//! kinds, names and parents), to the same headers for the endpoint and the client, and to the same
//! counts. Identifiers that proxies make are called by when they first occur.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

mod support;

mod tracing {
    pub(crate) mod collect;
    mod suite;
}

use support::{Proxy, Wire, dead_port, wait};
use tracing::collect::{Span, otlp, zipkin};

/// What the services of a run have seen.
#[derive(Default)]
struct Seen {
    /// Heads of requests that were forwarded.
    requests: Vec<String>,
    /// Reported spans.
    spans: Vec<Span>,
    /// Resources and scopes of OpenTelemetry's reports.
    origins: Vec<String>,
    /// Heads of reports.
    reports: Vec<String>,
}

/// An endpoint and collector for HTTP, and a collector for gRPC.
struct Services {
    http: SocketAddr,
    grpc: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Services {
    fn start() -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let http = listener.local_addr().expect("an address");
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &seen));
            }
        });
        let grpc = collect_grpc(Arc::clone(&seen));
        Self { http, grpc, seen }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Seen>) {
    let mut wire = Wire::new(stream);
    loop {
        let head = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
        let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { return };
        let body = wire.body(&head);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = if path.starts_with("/collect/zipkin") {
            seen.reports.push(head);
            seen.spans.extend(zipkin(&body));
            "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else if path.starts_with("/collect/otlp") {
            seen.reports.push(head);
            let (spans, origin) = otlp(&body);
            seen.spans.extend(spans);
            seen.origins.push(origin);
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else {
            let again = seen.requests.iter().any(|other| other.split(' ').nth(1) == Some(&path));
            seen.requests.push(head);
            answer(&path, again)
        };
        drop(seen);
        if wire.stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// What the endpoint answers: the path says it.
fn answer(path: &str, again: bool) -> String {
    let status = match path {
        _ if path.contains("fail") || path.contains("once") && !again => 503,
        _ if path.contains("c404") => 404,
        _ if path.contains("redir") && !path.contains("to") => 302,
        _ => 200,
    };
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n");
    if path.contains("decor") {
        head.push_str("x-envoy-decorator-operation: from-upstream\r\n");
    }
    if status == 302 {
        let _ = write!(head, "location: http://a.test{}\r\n", path.replace("redir", "redirto"));
    }
    if let Some((_, status)) = path.split_once("grpc") {
        let status = status.split('?').next().unwrap_or_default();
        let _ =
            write!(head, "content-type: application/grpc\r\ngrpc-status: {status}\r\ngrpc-message: no\r\n");
    }
    head + "\r\nok"
}

/// A collector that is spoken gRPC with.
fn collect_grpc(seen: Arc<Mutex<Seen>>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("an option");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(collect_stream(stream, Arc::clone(&seen)));
            }
        });
    });
    address
}

async fn collect_stream(stream: tokio::net::TcpStream, seen: Arc<Mutex<Seen>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let seen = Arc::clone(&seen);
        tokio::task::spawn_local(async move {
            let (parts, mut body) = request.into_parts();
            let mut message = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                message.extend_from_slice(&data);
            }
            let mut head = format!("{} {} HTTP/2\r\n", parts.method, parts.uri.path());
            for (name, value) in &parts.headers {
                let _ = write!(head, "{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
            }
            if parts.uri.path().ends_with("TraceService/Export") {
                let (spans, origin) = otlp(message.get(5..).unwrap_or_default());
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.reports.push(head);
                seen.spans.extend(spans);
                seen.origins.push(origin);
            } else {
                // Whoever asks for permission has it; the case is in the message.
                let text = String::from_utf8_lossy(&message).into_owned();
                let number = text.split("case=").nth(1).and_then(|rest| rest.split('.').next());
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.requests.push(format!("{head}x-case: {}\r\n", number.unwrap_or_default()));
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            let Ok(mut stream) = respond.send_response(head.body(()).expect("a head"), false) else { return };
            let _ = stream.send_data(vec![0; 5].into(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = stream.send_trailers(trailers);
        });
    }
}

/// A request: the listener, the path, the headers.
struct Case {
    listener: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

/// What the requests of a suite come to.
#[derive(PartialEq, Eq)]
struct Outcome {
    /// By request: what was seen of it.
    cases: Vec<String>,
    /// Resources, scopes and heads of reports.
    reports: Vec<String>,
    /// Access logs.
    log: String,
    /// Counts.
    stats: BTreeMap<String, String>,
}

/// A listener: its name, its direction, and what its connection manager has.
struct Listener {
    name: &'static str,
    direction: &'static str,
    manager: Value,
}

/// What is compared.
struct Suite {
    listeners: Vec<Listener>,
    routes: Value,
    cases: Vec<Case>,
    /// Beside these of the bootstrap.
    bootstrap: Value,
}

impl Suite {
    fn bootstrap(&self, services: &Services, dead: SocketAddr, folder: &Path) -> String {
        let address = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
        let cluster = |name: &str, at: SocketAddr, more: Value| {
            let endpoint = json!({"endpoint": {"address": address(at)}});
            let mut cluster = json!({"name": name, "load_assignment": {
                "cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}});
            merge(&mut cluster, more);
            cluster
        };
        let http2 = json!({"typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}}});
        let listeners = self.listeners.iter().map(|listener| {
            let log = "%REQ(x-case)% %TRACE_ID% %SPAN_ID%\n";
            let mut manager = json!({
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": listener.name,
                "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
                "access_log": [{"name": "log", "filter": {"traceable_filter": {}}, "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": folder.join("log").display().to_string(),
                    "log_format": {"text_format_source": {"inline_string": log}}}}],
                "http_filters": [router(json!({}))],
                "route_config": {"validate_clusters": false, "virtual_hosts": [
                    {"name": "v", "domains": ["*"], "routes": self.routes}]},
            });
            merge(&mut manager, listener.manager.clone());
            json!({"name": listener.name, "traffic_direction": listener.direction,
                "address": address((Ipv4Addr::LOCALHOST, 0).into()),
                "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]})
        });
        let metadata = json!({"metadata": {"filter_metadata": {"ns": {"c": "of the cluster"}}}});
        let mut named = metadata;
        merge(&mut named, json!({"alt_stat_name": "up_alt"}));
        let mut bootstrap = json!({
            "node": {"id": "node id", "cluster": "node cluster", "locality": {"zone": "zone 1"}},
            "layered_runtime": {"layers": [{"name": "l", "static_layer": {
                "tracing.zipkin.min_flush_spans": 1, "tracing.opentelemetry.min_flush_spans": 1}}]},
            "admin": {"address": address((Ipv4Addr::LOCALHOST, 0).into())},
            "static_resources": {
                "clusters": [
                    cluster("up", services.http, named),
                    cluster("dead", dead, json!({})),
                    cluster("collector", services.http, json!({})),
                    cluster("grpc", services.grpc, http2),
                ],
                "listeners": listeners.collect::<Vec<_>>(),
            },
        });
        merge(&mut bootstrap, self.bootstrap.clone());
        bootstrap.to_string()
    }

    fn run(&self, services: &Services, proxy: Proxy) -> Outcome {
        let ports = proxy.ports();
        let mut answers = Vec::new();
        for (number, case) in self.cases.iter().enumerate() {
            let mut head =
                format!("GET {} HTTP/1.1\r\nhost: a.test\r\nx-case: {number}\r\n", path(case, number));
            for (name, value) in case.headers {
                let _ = write!(head, "{name}: {}\r\n", fill(value, number));
            }
            head.push_str("connection: close\r\n\r\n");
            answers.push(ask(ports[case.listener], &head));
        }
        // All that has ended before this has ended is counted and under way.
        let last = "GET /last HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
        for listener in &self.listeners {
            ask(ports[listener.name], last);
        }
        let count = |what: &str| {
            let text = proxy.admin("GET", "/stats?filter=tracing");
            let counts = text.lines().filter(|line| line.starts_with("tracing.") && line.contains(what));
            counts.filter_map(|line| line.split_once(": ")?.1.trim().parse::<usize>().ok()).sum::<usize>()
        };
        let sent = || count("spans_sent");
        let answered = || count("zipkin.spans_sent") == count("reports_sent");
        let arrived = || services.with(|seen| seen.spans.len());
        let ended = || {
            let of_last = |head: &&String| head.starts_with("GET /last ");
            services.with(|seen| seen.requests.iter().filter(of_last).count()) == self.listeners.len()
        };
        let complete = wait(|| {
            let counted = sent();
            (ended() && counted == arrived() && counted == sent() && answered()).then_some(())
        });
        assert!(complete.is_some(), "{}: {} spans sent, {} came", proxy.name, sent(), arrived());
        let text = proxy.admin("GET", "/stats?filter=tracing");
        let stats = text.lines().filter_map(|line| line.split_once(": ")).filter(|(name, value)| {
            // How many of the last requests' spans have been sent by now is chance; those of the cases
            // are compared one by one.
            let of_time = ["timer_flushed", "spans_sent", "reports_sent"].iter().any(|it| name.contains(it));
            name.contains("tracing.") && !of_time && value.trim() != "0"
        });
        let stats = stats.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let folder = proxy.stop();
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        let seen = services.with(std::mem::take);
        let mut cases = Vec::new();
        let mut logged = String::new();
        for (number, case) in self.cases.iter().enumerate() {
            let mut names = Names::new(number);
            let mut text = format!("{} {}", case.listener, case.path);
            for header in case.headers {
                let _ = write!(text, " {header:?}");
            }
            let _ = writeln!(text, "\n  client: {}", names.answer(&answers[number]));
            let marker = format!("\r\nx-case: {number}\r\n");
            for head in seen.requests.iter().filter(|head| head.contains(&marker)) {
                let _ = writeln!(text, "  endpoint: {}", names.request(head));
            }
            for line in log.lines().filter(|line| line.starts_with(&format!("{number} "))) {
                let _ = writeln!(
                    logged,
                    "{}",
                    line.split(' ').map(|word| names.id(word)).collect::<Vec<_>>().join(" ")
                );
            }
            for span in of_case(&seen.spans, &path(case, number)) {
                let _ = writeln!(text, "  span: {}", names.span(span));
            }
            cases.push(text);
        }
        let mut reports: Vec<String> =
            seen.origins.iter().cloned().chain(seen.reports.iter().map(|head| report(head))).collect();
        reports.sort();
        reports.dedup();
        Outcome { cases, reports, log: logged, stats }
    }

    fn compare(&self, name: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let services = Services::start();
        let (_held, dead) = dead_port();
        let ours =
            Proxy::start("ours", folder.path(), None, |folder| self.bootstrap(&services, dead, folder));
        let ours = self.run(&services, ours);
        if std::env::var_os("SHOW").is_some() {
            println!("{}\n{:#?}\n{}{:#?}", ours.cases.join("\n"), ours.reports, ours.log, ours.stats);
        }
        let Some(envoy) = leno_testkit::envoy::binary() else { return };
        let theirs = Proxy::start("envoy", folder.path(), Some(&envoy), |folder| {
            self.bootstrap(&services, dead, folder)
        });
        let theirs = self.run(&services, theirs);
        let mut differences = String::new();
        for (ours, theirs) in ours.cases.iter().zip(&theirs.cases).filter(|(ours, theirs)| ours != theirs) {
            let _ = writeln!(differences, "{}", ours.lines().next().unwrap_or_default());
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
            let (ours, theirs) = (lines(ours), lines(theirs));
            for line in ours.iter().filter(|line| !theirs.contains(line)) {
                let _ = writeln!(differences, "  ours  {line}");
            }
            for line in theirs.iter().filter(|line| !ours.contains(line)) {
                let _ = writeln!(differences, "  Envoy {line}");
            }
            if ours.len() != theirs.len() {
                let _ = writeln!(differences, "  {} lines and {}", ours.len(), theirs.len());
            }
        }
        assert!(differences.is_empty(), "{name}:\n{differences}");
        assert_eq!(ours.log, theirs.log, "{name}: logs");
        assert_eq!(ours.reports, theirs.reports, "{name}: reports");
        assert_eq!(ours.stats, theirs.stats, "{name}: stats");
        assert!(ours == theirs);
    }
}

/// Sends a request and reads the answer, as long as it says that it is: Envoy takes its time to
/// close a connection.
fn ask(address: SocketAddr, head: &str) -> String {
    let mut wire = Wire::connect(address);
    wire.stream.write_all(head.as_bytes()).expect("it is read");
    let answer = String::from_utf8_lossy(&wire.until(b"\r\n\r\n")).into_owned();
    let body = wire.body(&answer);
    answer + &String::from_utf8_lossy(&body)
}

/// The path of a request, which no other has.
fn path(case: &Case, number: usize) -> String {
    let mark = if case.path.contains('?') { '&' } else { '?' };
    format!("{}{mark}case={number}.", case.path)
}

/// Identifiers of a request's own in place of `T`, `S` and `P`.
fn fill(value: &str, number: usize) -> String {
    let [trace, span, parent] = own(number);
    value.replace("{T}", &trace).replace("{t}", &trace[16..]).replace("{S}", &span).replace("{P}", &parent)
}

fn own(number: usize) -> [String; 3] {
    [
        format!("{:032x}", (0xa_u128 << 96) + number as u128 + 1),
        format!("b{number:015x}"),
        format!("c{number:015x}"),
    ]
}

/// The spans of a request, and those of their traces: who was asked before who asks.
fn of_case<'s>(spans: &'s [Span], path: &str) -> Vec<&'s Span> {
    let about = |span: &&Span| span.tags.get("http.url").is_some_and(|url| url.ends_with(path));
    let traces: Vec<&str> = spans.iter().filter(about).map(|span| &*span.trace).collect();
    let mut found: Vec<&Span> = spans.iter().filter(|span| traces.contains(&&*span.trace)).collect();
    found.sort_by_key(|span| (!span.tags.contains_key("http.url"), span.start));
    found
}

/// Calls identifiers by when they occur.
struct Names(HashMap<String, String>);

impl Names {
    fn new(number: usize) -> Self {
        let [trace, span, parent] = own(number);
        let short = trace[16..].to_owned();
        let known = [(trace, "T"), (short, "t"), (span, "S"), (parent, "P")];
        Self(known.into_iter().map(|(id, name)| (id, name.to_owned())).collect())
    }

    fn id(&mut self, id: &str) -> String {
        let digits = id.len();
        if !matches!(digits, 16 | 32) || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return id.to_owned();
        }
        if let Some(rest) = id.strip_prefix("0000000000000000") {
            return if rest.is_empty() { id.to_owned() } else { format!("0+{}", self.id(rest)) };
        }
        let count = self.0.len();
        self.0.entry(id.to_owned()).or_insert_with(|| format!("#{count}:{digits}")).clone()
    }

    fn header(&mut self, name: &str, value: &str) -> String {
        let value = match name {
            "x-request-id" if value.len() == 36 => format!("UUID {}", &value[14..15]),
            "traceparent" | "b3" => value.split('-').map(|part| self.id(part)).collect::<Vec<_>>().join("-"),
            _ if name.starts_with("x-b3-") => self.id(value),
            _ => value.to_owned(),
        };
        format!("{name}: {value}")
    }

    fn headers(&mut self, head: &str, keep: impl Fn(&str) -> bool) -> String {
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim()));
        let mut fields: Vec<_> = fields.filter(|(name, _)| keep(name)).collect();
        fields.sort();
        fields.iter().map(|(name, value)| self.header(name, value)).collect::<Vec<_>>().join(", ")
    }

    fn request(&mut self, head: &str) -> String {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let path = path.split(['?', '&']).next().unwrap_or_default();
        format!(
            "{path} {}",
            self.headers(head, |name| name.contains("b3")
                || name.contains("trace")
                || name == "x-request-id"
                || name.contains("decorator"))
        )
    }

    fn answer(&mut self, answer: &str) -> String {
        let (head, _) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let status = head.split(' ').nth(1).unwrap_or("none");
        format!(
            "{status} {}",
            self.headers(head, |name| name.contains("decorator") || name == "x-request-id")
        )
    }

    fn span(&mut self, span: &Span) -> String {
        let mut text = format!(
            "{} {:?} trace {} span {} parent {} {}",
            span.kind,
            span.name,
            self.id(&span.trace),
            self.id(&span.id),
            self.id(&span.parent),
            span.more
        );
        for (name, value) in &span.tags {
            let value = match &**name {
                "guid:x-request-id" if value.len() == 36 => format!("UUID {}", &value[14..15]),
                "of trace" => self.id(value),
                _ => value.split("?case").next().unwrap_or_default().to_owned(),
            };
            let _ = write!(text, "\n    {name}={value}");
        }
        text
    }
}

/// The head of a report, without what differs from run to run.
fn report(head: &str) -> String {
    let mut lines = head.lines().map(str::to_ascii_lowercase).filter(|line| {
        !line.is_empty() && !line.starts_with("content-length") && !line.starts_with("transfer-encoding")
    });
    let first = lines.next().unwrap_or_default();
    let mut fields: Vec<String> = lines
        .map(|line| match line.split_once("/") {
            // Each says which version it is.
            Some((name, _)) if name.starts_with("user-agent") => name.to_owned(),
            _ => line,
        })
        .collect();
    fields.sort();
    format!("{first}\n{}", fields.join("\n"))
}

fn router(settings: Value) -> Value {
    let mut config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    merge(&mut config, settings);
    json!({"name": "router", "typed_config": config})
}

/// Adds what another object has.
fn merge(to: &mut Value, from: Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                merge(to.entry(key).or_insert(Value::Null), value);
            }
        }
        (to, from) => *to = from,
    }
}
