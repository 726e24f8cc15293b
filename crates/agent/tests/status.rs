//! The status port: what kubelet and Prometheus get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leno_agent::lifecycle::Order;
use leno_agent::metrics::Metrics;
use leno_agent::status::{Probes, Readiness, Scrape, Status, serve};
use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_api::proto::istio::networking::nds::v1::name_table::NameInfo;
use leno_tls::issue::{self, KeyPair, KeyType, Validity, certificates_to_pem, root};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const LIMIT: Duration = Duration::from_secs(60);

/// A server that answers each request with a status, headers and a body that are made of its head.
async fn server(answer: fn(&str) -> (u16, String, String)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let (status, headers, body) = answer(&String::from_utf8(head).expect("text"));
                let length = body.len();
                let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    port
}

struct Running {
    address: SocketAddr,
    orders: mpsc::Receiver<Order>,
    names: watch::Sender<Option<Arc<NameTable>>>,
    terminate: watch::Sender<bool>,
}

/// With probes, the annotations of the application, and the proxy's admin and metrics port.
async fn start(probes: &str, annotations: Option<&str>, proxy: u16) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (order, orders) = mpsc::channel(4);
    let (names, known) = watch::channel(None);
    let (terminate, terminated) = watch::channel(false);
    let status = Status {
        readiness: Readiness::new("127.0.0.1", proxy),
        probes: Probes::read(probes, "127.0.0.1", address.port(), true, true).expect("good probes"),
        scrape: Scrape::read(Some(proxy), annotations, address.port(), "127.0.0.1")
            .expect("good annotations"),
        metrics: Arc::<Metrics>::default(),
        names: Some(known),
        orders: order,
        metrics_are_local: false,
        terminated,
    };
    tokio::spawn(serve(listener, Arc::new(status)));
    Running { address, orders, names, terminate }
}

impl Running {
    async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String, String) {
        let asking = async {
            let mut stream = TcpStream::connect(self.address).await.expect("it accepts");
            let named = headers.to_ascii_lowercase().contains("host:");
            let host = if named { String::new() } else { format!("Host: pod:{}\r\n", self.address.port()) };
            let head = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n");
            stream.write_all(head.as_bytes()).await.expect("it is sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("an answer");
            let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            (status, head.to_ascii_lowercase(), body.to_owned())
        };
        tokio::time::timeout(LIMIT, asking).await.expect("an answer in time")
    }
}

fn application(head: &str) -> (u16, String, String) {
    let path = head.split(' ').nth(1).unwrap_or_default();
    match path {
        "/away" => (302, "location: http://elsewhere/x\r\n".to_owned(), String::new()),
        "/moved" => (302, "location: /ready\r\n".to_owned(), String::new()),
        "/long" => (200, String::new(), "x".repeat(20 << 20)),
        "/coded" => (200, "content-encoding: gzip\r\n".to_owned(), "nonsense 1\n".to_owned()),
        "/round" => (302, "location: /round\r\n".to_owned(), String::new()),
        "/bad" => (503, String::new(), "not now".to_owned()),
        "/metrics" => {
            let kind = "content-type: application/openmetrics-text; version=1.0.0\r\n";
            (200, kind.to_owned(), "app 1\n# EOF\n".to_owned())
        }
        _ => (200, String::new(), head.to_ascii_lowercase()),
    }
}

#[tokio::test]
async fn probes() {
    let port = server(application).await;
    let probes = [
        ("readyz", format!("{{\"httpGet\":{{\"path\":\"ready\",\"port\":{port}}}}}")),
        ("livez", format!("{{\"httpGet\":{{\"path\":\"/bad\",\"port\":{port}}}}}")),
        ("startupz", format!("{{\"tcpSocket\":{{\"port\":{port}}}}}")),
    ];
    let moved = ["away", "moved", "round", "long"]
        .map(|path| (path, "readyz", format!("{{\"httpGet\":{{\"path\":\"/{path}\",\"port\":{port}}}}}")));
    let first = probes.iter().map(|(kind, probe)| format!("\"/app-health/app/{kind}\":{probe}"));
    let rest = moved.iter().map(|(name, kind, probe)| format!("\"/app-health/{name}/{kind}\":{probe}"));
    let tls = format!(
        "\"/app-health/tls/livez\":{{\"httpGet\":{{\"path\":\"/\",\"port\":{port},\"scheme\":\"HTTPS\"}}}}"
    );
    let grpc = format!("\"/app-health/grpc/livez\":{{\"grpc\":{{\"port\":{port}}},\"timeoutSeconds\":5}}");
    let all: Vec<String> = first.chain(rest).chain([tls, grpc]).collect();
    let running = start(&format!("{{{}}}", all.join(",")), None, 1).await;

    let (status, _, body) = running.ask("GET", "/app-health/app/readyz", "X-Probe: a\r\n").await;
    assert_eq!(status, 200);
    assert!(body.starts_with("get /ready http/1.1"), "{body}");
    assert!(body.contains("x-probe: a") && body.contains(&format!("host: pod:{port}\r\n")), "{body}");
    for (path, expected) in [
        ("/app-health/app/livez", (503, "not now")),
        ("/app-health/app/startupz", (200, "")),
        ("/app-health/away/readyz", (200, "")),
        ("/app-health/round/readyz", (500, "")),
        // It speaks neither TLS nor HTTP/2.
        ("/app-health/tls/livez", (500, "")),
        ("/app-health/grpc/livez", (500, "")),
        ("/app-health/none/livez", (400, "app prober config does not exists for /app-health/none/livez")),
        ("/nothing", (404, "404 page not found\n")),
    ] {
        let (status, _, body) = running.ask("GET", path, "").await;
        assert_eq!((status, body.as_str()), expected, "{path}");
    }
    // As much as kubelet would read.
    let (status, _, body) = running.ask("GET", "/app-health/long/readyz", "").await;
    assert_eq!((status, body.len()), (200, 10 << 10));
    let (status, _, body) = running.ask("GET", "/app-health/moved/readyz", "").await;
    assert!(status == 200 && body.starts_with("get /ready"), "{status} {body}");
    for bad in [
        "nonsense",
        "{\"/app-health/app\":{\"tcpSocket\":{\"port\":1}}}",
        "{\"/app-health/app/livez\":{}}",
        "{\"/app-health/app/livez\":{\"tcpSocket\":{\"port\":1},\"grpc\":{\"port\":1}}}",
        "{\"/app-health/app/livez\":{\"tcpSocket\":{\"port\":\"http\"}}}",
    ] {
        assert!(Probes::read(bad, "127.0.0.1", 15020, true, true).is_err(), "{bad}");
    }
}

fn proxy(head: &str) -> (u16, String, String) {
    let body = if head.contains("update_success") {
        "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n"
    } else if head.contains("server") {
        "server.state: 0\nlistener_manager.workers_started: 1\n"
    } else {
        "envoy_x 2"
    };
    (200, String::new(), body.to_owned())
}

/// A server over TLS that says which protocol it was asked in, and by which host.
async fn secure_server() -> u16 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs().cast_signed();
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let validity = Validity { not_before: now - 600, not_after: now + 86_400 };
    let chain = certificates_to_pem([&root(&key, "test", validity).expect("a root")]);
    let chain = issue::certificates(chain.as_bytes()).expect("it is one");
    let pem = key.to_pem().expect("a key");
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.expect("a handshake");
                let service = hyper::service::service_fn(|request: http::Request<_>| async move {
                    let _: &hyper::body::Incoming = request.body();
                    let host = request.uri().authority().map(ToString::to_string);
                    let host =
                        host.or_else(|| Some(request.headers().get("host")?.to_str().ok()?.to_owned()));
                    let words = format!("{:?} {}", request.version(), host.unwrap_or_default());
                    Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(
                        bytes::Bytes::from(words),
                    )))
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                let server = hyper_util::server::conn::auto::Builder::new(executor);
                let _ = server.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn probes_by_https_are_http2_and_lead_elsewhere_on_the_host() {
    let secure = secure_server().await;
    // Another port, and another scheme, of the same host; Go's client and kubelet go there.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let moved = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = format!("location: https://127.0.0.1:{secure}/there\r\ncontent-length: 0\r\n");
            let answer = format!("HTTP/1.1 307 X\r\n{head}connection: close\r\n\r\n");
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let probe = |port: u16, scheme: &str| {
        format!(
            "{{\"httpGet\":{{\"path\":\"/\",\"port\":{port},\"scheme\":\"{scheme}\"}},\"timeoutSeconds\":30}}"
        )
    };
    let probes = format!(
        "{{\"/app-health/a/livez\":{},\"/app-health/a/readyz\":{}}}",
        probe(secure, "HTTPS"),
        probe(moved, "HTTP")
    );
    let running = start(&probes, None, 1).await;
    let (status, _, body) = running.ask("GET", "/app-health/a/livez", "").await;
    assert_eq!((status, body), (200, format!("HTTP/2.0 pod:{secure}")));
    let (status, _, body) = running.ask("GET", "/app-health/a/readyz", "").await;
    assert_eq!((status, body), (200, format!("HTTP/2.0 127.0.0.1:{secure}")));
}

#[tokio::test]
async fn scrapes_are_answered_one_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let running = start("", None, port).await;
    let first = tokio::spawn(async move {
        let mut stream = TcpStream::connect(running.address).await.expect("it accepts");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    });
    let (mut scraped, _) =
        tokio::time::timeout(LIMIT, listener.accept()).await.expect("in time").expect("it connects");
    // While the proxy takes its time nobody else is served, and waits no longer than he says.
    let other = Running { address: running.address, ..running };
    let waiting = "X-Prometheus-Scrape-Timeout-Seconds: 0.05\r\n";
    assert_eq!(other.ask("GET", "/metrics", waiting).await.0, 503);
    scraped.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nx 1").await.expect("it is read");
    let text = tokio::time::timeout(LIMIT, first).await.expect("in time").expect("it ends");
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("x 1\n"), "{text}");
}

/// Who takes long takes it from himself only.
#[tokio::test]
async fn scrapes_of_one_caller_hold_up_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let running = start("", None, port).await;
    let mut held = Vec::new();
    for last in 2..5 {
        for _ in 0..20 {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, last], 0).into()).expect("an address of ours");
            let mut stream = socket.connect(running.address).await.expect("it accepts");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
            held.push(stream);
        }
        // One of each has its turn, and does not end.
        let scraped = tokio::time::timeout(LIMIT, listener.accept()).await.expect("in time");
        held.push(scraped.expect("it connects").0);
        // Of those that wait some are too many.
        let refused = async {
            let mut bytes = [0; 12];
            let first = held.len() - 21;
            let mut waiting: Vec<_> = held.drain(first..first + 20).collect();
            loop {
                for stream in &mut waiting {
                    if let Ok(length) = stream.try_read(&mut bytes) {
                        assert_eq!(&bytes[..length], b"HTTP/1.1 503");
                        return waiting;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waiting = tokio::time::timeout(LIMIT, refused).await.expect("some are refused");
        held.extend(waiting);
    }
    let asked = tokio::spawn(async move { running.ask("GET", "/metrics", "").await });
    let (mut scraped, _) =
        tokio::time::timeout(LIMIT, listener.accept()).await.expect("in time").expect("it connects");
    scraped.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nx 1").await.expect("it is read");
    let (status, _, body) = asked.await.expect("no panic");
    assert!(status == 200 && body.ends_with("x 1\n"), "{status} {body}");
    drop(held);
}

#[tokio::test]
async fn metrics_in_gzip() {
    let port = server(|_| (200, String::new(), "x 1\n".repeat(100_000))).await;
    let running = start("", None, port).await;
    for (accepted, is_gzip) in
        [("gzip", true), ("zstd, gzip;q=0.1", true), ("gzip;q=0", false), ("br", false)]
    {
        let mut stream = TcpStream::connect(running.address).await.expect("it accepts");
        let asked = format!(
            "GET /stats/prometheus HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: {accepted}\r\n\r\n"
        );
        stream.write_all(asked.as_bytes()).await.expect("it is sent");
        let mut bytes = Vec::new();
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes))
            .await
            .expect("in time")
            .expect("an answer");
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(head.contains("content-encoding: gzip"), is_gzip, "{head}");
        let text = if is_gzip {
            let (mut body, mut rest) = (Vec::new(), &bytes[end..]);
            loop {
                let line = rest.windows(2).position(|two| two == b"\r\n").expect("the size of a chunk");
                let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).expect("a number"), 16);
                let size = size.expect("a number");
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&rest[line + 2..line + 2 + size]);
                rest = &rest[line + 4 + size..];
            }
            assert!(body.len() < 100_000, "{}", body.len());
            let mut inflate = zlib_rs::Inflate::new(true, 16 + 15);
            let mut text = vec![0; 1 << 20];
            let status = inflate.decompress(&body, &mut text, zlib_rs::InflateFlush::Finish).expect("gzip");
            assert!(matches!(status, zlib_rs::Status::StreamEnd), "all of it");
            text.truncate(usize::try_from(inflate.total_out()).expect("short"));
            text
        } else {
            bytes[end..].to_vec()
        };
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text.matches("\nx 1").count(), 100_000, "{accepted}");
    }
}

#[tokio::test]
async fn readiness_and_orders() {
    let mut running = start("", None, server(proxy).await).await;
    assert_eq!(running.ask("GET", "/healthz/ready", "").await.0, 503, "names have not come");
    assert_eq!(running.ask("GET", "/debug/ndsz", "").await.0, 404);
    let info =
        NameInfo { ips: vec!["10.0.0.1".to_owned()], registry: "External".to_owned(), ..NameInfo::default() };
    let table = NameTable { table: [("a.example".to_owned(), info)].into() };
    running.names.send_replace(Some(Arc::new(table)));
    assert_eq!(running.ask("GET", "/healthz/ready", "").await.0, 200);
    let names = running.ask("GET", "/debug/ndsz", "").await.2;
    assert_eq!(names, r#"{"table":{"a.example":{"ips":["10.0.0.1"],"registry":"External"}}}"#);

    assert_eq!(running.ask("GET", "/drain", "").await.0, 405);
    assert_eq!(running.ask("POST", "/drain", "").await.2, "OK");
    assert_eq!(running.ask("POST", "/quitquitquit", "").await.2, "OK");
    assert_eq!(running.orders.recv().await, Some(Order::Drain));
    assert_eq!(running.orders.recv().await, Some(Order::Quit));

    running.terminate.send_replace(true);
    assert_eq!(running.ask("GET", "/healthz/ready", "").await.0, 503, "it is about to end");
    let nobody = start("", None, 1).await;
    nobody.names.send_replace(Some(Arc::default()));
    assert_eq!(nobody.ask("GET", "/healthz/ready", "").await.0, 503, "there is no proxy");
}

#[tokio::test]
async fn metrics() {
    let (proxy, port) = (server(proxy).await, server(application).await);
    let one = format!("{{\"scrape\":\"true\",\"port\":\"{port}\"}}");
    let running = start("", Some(&one), proxy).await;
    let (status, head, body) = running.ask("GET", "/stats/prometheus", "").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(body.ends_with("envoy_x 2\napp 1\n# EOF\n"), "{body}");
    assert!(body.contains("istio_agent_scrapes_total 1\n"), "{body}");

    // Half of the metrics are better than none.
    let both = format!("{{\"targets\":[{{\"port\":\"1\"}},{{\"port\":\"{port}\",\"path\":\"/text\"}}]}}");
    let running = start("", Some(&both), 1).await;
    let (status, head, body) = running.ask("GET", "/metrics", "").await;
    assert!(
        status == 200 && head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{head}"
    );
    assert!(body.contains("get /text http/1.1") && !body.contains("# EOF"), "{body}");
    let again = running.ask("GET", "/metrics", "").await.2;
    for words in ["scrape_failures_total{type=\"envoy\"} 2", "scrape_failures_total{type=\"application\"} 2"]
    {
        assert!(again.contains(words), "{words}: {again}");
    }
}

/// Who does not answer, or not in what was asked for, takes nothing from the others.
#[tokio::test]
async fn bad_applications_are_left_out() {
    let (proxy, port) = (server(proxy).await, server(application).await);
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let number = silent.local_addr().expect("an address").port();
    let all = format!(
        "{{\"targets\":[{{\"port\":\"{number}\"}},{{\"port\":\"{port}\",\"path\":\"/coded\"}},{{\"port\":\"{port}\",\"path\":\"/text\"}}]}}"
    );
    let running = start("", Some(&all), proxy).await;
    // It comes before Prometheus goes.
    let waiting = "X-Prometheus-Scrape-Timeout-Seconds: 15\r\n";
    let (status, _, body) = running.ask("GET", "/metrics", waiting).await;
    assert_eq!(status, 200);
    assert!(body.contains("envoy_x 2\n") && body.contains("get /text http/1.1"), "{body}");
    assert!(!body.contains("nonsense"), "{body}");
    assert!(body.contains("scrape_failures_total{type=\"application\"} 2"), "{body}");
    drop(silent);
}

/// Orders are for who is on the machine himself, written as they are.
#[tokio::test]
async fn orders_of_others_are_refused() {
    let mut running = start("", None, 1).await;
    running.names.send_replace(Some(Arc::default()));
    let mut refused = 0;
    for headers in [
        "Host: example.com:15020\r\n",
        "Host: localhost.example.com\r\n",
        "Host: localhost\r\nOrigin: https://example.com\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
    ] {
        for (method, path) in [("POST", "/quitquitquit"), ("POST", "/drain"), ("GET", "/debug/ndsz")] {
            assert_eq!(running.ask(method, path, headers).await.0, 403, "{path} {headers}");
            refused += 1;
        }
    }
    let counted = format!("istio_agent_refused_requests_total {refused}\n");
    let metrics = running.ask("GET", "/metrics", "").await.2;
    assert!(metrics.contains(&counted), "{metrics}");
    for path in [
        "/healthz/../quitquitquit",
        "/healthz/%2e%2e/quitquitquit",
        "//quitquitquit",
        "/%71uitquitquit",
        "/app-health/../quitquitquit",
        "/app-health/x/../../../quitquitquit",
        "/quitquitquit/",
        "/QUITQUITQUIT",
    ] {
        let status = running.ask("POST", path, "").await.0;
        assert!([400, 404].contains(&status), "{path}: {status}");
    }
    for method in ["GET", "HEAD", "PUT", "OPTIONS", "DELETE"] {
        let mut stream = TcpStream::connect(running.address).await.expect("it accepts");
        let asked = format!("{method} /quitquitquit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.expect("it is sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        assert!(text.starts_with("HTTP/1.1 405"), "{method}: {text}");
    }
    // Heads that are too much, and bodies that nobody has a use for.
    for (headers, expected) in [
        (format!("x: {}\r\n", "y".repeat(1 << 20)), 431),
        ("x: y\r\n".repeat(1000), 431),
        ("Content-Length: 100000000000\r\n".to_owned(), 404),
    ] {
        let mut stream = TcpStream::connect(running.address).await.expect("it accepts");
        let asked = format!("POST /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        let _ = stream.write_all(asked.as_bytes()).await;
        let mut bytes = Vec::new();
        let reading = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
        let _ = reading.expect("in time");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with(&format!("HTTP/1.1 {expected}")), "{expected}: {text}");
    }
    assert!(running.orders.try_recv().is_err(), "none was an order");
    assert_eq!(running.ask("POST", "/drain", "Host: localhost:15020\r\n").await.0, 200);
    assert_eq!(running.orders.recv().await, Some(Order::Drain));
}
