//! A proxy under everything at once: load, clients that come and go, endpoints that break off and
//! come back, and a control plane that changes something every second. No request may be lost
//! that a retry can save, and neither memory nor descriptors may grow.
//!
//! Runs a few seconds as a test. By hand: `SOAK_SECONDS=1800 cargo test --release -p leno-proxy
//! --test soak -- --nocapture`; with `SOAK_ENVOY=1` the real Envoy runs in place of ours.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leno_api::proto::envoy::config::cluster::v3::Cluster;
use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use leno_api::proto::envoy::config::listener::v3::Listener;
use leno_api::proto::envoy::config::route::v3::RouteConfiguration;
use leno_base::Name;
use leno_base::rng::Rng;
use leno_proxy::Options;
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use xds::ControlPlane;

#[path = "support/ads.rs"]
mod ads;
#[allow(dead_code, reason = "shared with the tests of the protocol, which use all of it")]
#[path = "../../xds/tests/support/mod.rs"]
mod xds;

/// Connections of clients.
const CLIENTS: usize = 32;
/// Endpoints; one of them is broken at a time.
const ENDPOINTS: usize = 4;
/// The file with the proxy's configuration, in the process that is to be the proxy.
const PROXY_CONFIG: &str = "SOAK_PROXY_CONFIG";

/// The proxy is a process of its own, so that its memory is: this executable, started again.
#[test]
fn proxy_process() {
    let Some(config) = std::env::var_os(PROXY_CONFIG) else { return };
    let options = Options {
        admin_address_path: Some(Path::new(&config).with_extension("admin")),
        config_path: Some(config.into()),
        concurrency: Some(1),
        log_level: "error".into(),
        drain_time: Duration::from_secs(5),
        ..Options::default()
    };
    leno_proxy::run(options).expect("it runs");
}

/// A process that does not outlive a test that fails.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    fn start(config: &Path) -> Self {
        let mut command = match (std::env::var_os("SOAK_ENVOY"), leno_testkit::envoy::binary()) {
            (Some(_), Some(envoy)) => {
                let mut command = Command::new(envoy);
                command.arg("-c").arg(config);
                command.arg("--admin-address-path").arg(config.with_extension("admin"));
                command.args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]);
                command.args(["--drain-time-s", "5"]);
                command
            }
            _ => {
                let mut command = Command::new(std::env::current_exe().expect("an executable"));
                command.args(["--exact", "proxy_process", "--nocapture"]).env(PROXY_CONFIG, config);
                command
            }
        };
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"))
    }

    /// Resident memory, KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().expect("the proxy runs")
    }

    /// Open descriptors.
    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).expect("the proxy runs").count()
    }
}

/// What clients have seen.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    /// Answers other than 200.
    refused: AtomicU64,
    /// Requests without an answer.
    lost: AtomicU64,
    connections: AtomicU64,
}

/// Answers all requests that come; cut: its connections are closed at once, and none accepted.
async fn serve(address: SocketAddr, body: usize, mut broken: tokio::sync::watch::Receiver<bool>) {
    let answer: Arc<[u8]> =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n{}", "x".repeat(body)).into_bytes().into();
    loop {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(address).expect("its port is its own");
        let listener = socket.listen(1024).expect("it listens");
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    connections.spawn(answer_all(stream, Arc::clone(&answer)));
                }
                _ = connections.join_next(), if !connections.is_empty() => {}
                changed = broken.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
            }
        }
        drop((listener, connections));
        while *broken.borrow_and_update() {
            if broken.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn answer_all(mut stream: TcpStream, answer: Arc<[u8]>) {
    let mut input = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut input).await {
        while let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            input.drain(..end + 4);
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// Asks again and again at a steady pace, on connections that last some requests each.
async fn ask(address: SocketAddr, number: u64, pace: Duration, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    let mut random = Rng::new(number);
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            tally.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        tally.connections.fetch_add(1, Ordering::Relaxed);
        for _ in 0..=random.next_u64() % 200 {
            ticks.tick().await;
            match exchange(&mut stream).await {
                Some((status, close)) => {
                    tally.answered.fetch_add(1, Ordering::Relaxed);
                    if status != 200 {
                        tally.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    if close {
                        break;
                    }
                }
                None => {
                    tally.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
    }
}

/// One request: its status, and whether the connection is to be closed. `None`: no whole answer.
async fn exchange(stream: &mut TcpStream) -> Option<(u16, bool)> {
    stream.write_all(b"GET /soak HTTP/1.1\r\nhost: soak.test\r\n\r\n").await.ok()?;
    let mut input = Vec::new();
    let head = loop {
        if stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(input.get(..head)?).to_ascii_lowercase();
    let status = text.get(9..12)?.parse().ok()?;
    let length: usize =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    while input.len() < head + length {
        if stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
    }
    Some((status, text.contains("connection: close")))
}

fn resource<T: Message + prost::Name + Default>(name: &str, text: &str) -> Resource {
    let message: T = leno_api::decode_text(text, name).unwrap_or_else(|errors| panic!("{errors}"));
    Resource::hashed(Name::new(name), Bytes::from(message.encode_to_vec()))
}

/// What is configured after so many changes.
fn configure(control: &ControlPlane, port: u16, endpoints: &[SocketAddr], step: u64) {
    let mut clusters = Vec::new();
    let mut assignments = Vec::new();
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        // Now and then a cluster is another one.
        let timeout = 1 + (step / 7) % 2;
        clusters.push(resource::<Cluster>(
            name,
            &format!(
                "{{name: {name}, type: EDS, connect_timeout: {timeout}s, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}, \
                 circuit_breakers: {{thresholds: [{{max_retries: 1000}}]}}}}"
            ),
        ));
        let mut hosts = String::new();
        for (number, address) in endpoints.iter().enumerate() {
            // One endpoint is left out, another one each time.
            if (number as u64) != (step + index as u64) % ENDPOINTS as u64 {
                let port = address.port();
                let _ = write!(
                    hosts,
                    "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}, "
                );
            }
        }
        let text = format!("{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{hosts}]}}]}}");
        assignments.push(resource::<ClusterLoadAssignment>(name, &text));
    }
    control.set(TypeUrl::Cluster, clusters);
    control.set(TypeUrl::Endpoint, assignments);
    let (a, b) = (step % 100, 100 - step % 100);
    let routes = format!(
        "{{name: r, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         response_headers_to_add: [{{header: {{key: x-step, value: '{step}'}}}}], \
         route: {{weighted_clusters: {{clusters: [{{name: a, weight: {a}}}, {{name: b, weight: {b}}}]}}, \
         retry_policy: {{retry_on: 'connect-failure,refused-stream,reset,retriable-4xx,5xx', num_retries: 5, \
         retry_host_predicate: [{{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}}}], \
         host_selection_retry_max_attempts: 5, \
         retry_back_off: {{base_interval: 0.002s, max_interval: 0.01s}}}}}}}}]}}]}}"
    );
    control.set(TypeUrl::Route, vec![resource::<RouteConfiguration>("r", &routes)]);
    let limit = 100 + (step / 5) % 2;
    let listener = format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: \
         [{{filters: [{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.\
         network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: l, \
         common_http_protocol_options: {{max_headers_count: {limit}}}, \
         rds: {{route_config_name: r, config_source: {{ads: {{}}}}}}, http_filters: [{{name: router, typed_config: \
         {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    );
    control.set(TypeUrl::Listener, vec![resource::<Listener>("l", &listener)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_lost_and_nothing_grows() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8_u64);
    let rate = std::env::var("SOAK_RATE").ok().and_then(|text| text.parse().ok()).unwrap_or(800_u64);
    let folder = tempfile::tempdir().expect("a folder");
    let mut endpoints = Vec::new();
    let mut breakers = Vec::new();
    for _ in 0..ENDPOINTS {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, leno_testkit::ports::free()));
        let (breaker, broken) = tokio::sync::watch::channel(false);
        tokio::spawn(serve(address, 1024, broken));
        endpoints.push(address);
        breakers.push(breaker);
    }
    let incoming = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let control_plane = incoming.local_addr().expect("an address");
    let (control, service) = ControlPlane::start();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(incoming)).await });
    let front = SocketAddr::from((Ipv4Addr::LOCALHOST, leno_testkit::ports::free()));
    configure(&control, front.port(), &endpoints, 0);
    let config = folder.path().join("bootstrap.yaml");
    let bootstrap = ads::bootstrap(Mode::Delta, &["cds", "lds"], control_plane, "");
    std::fs::write(&config, bootstrap).expect("written");
    let proxy = Proxy::start(&config);
    let listening = async { while TcpStream::connect(front).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(30), listening).await.expect("it listens");

    let tally = Arc::new(Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let pace =
        Duration::from_secs(1) * u32::try_from(CLIENTS).expect("few") / u32::try_from(rate).expect("few");
    let clients = (0..CLIENTS as u64)
        .map(|number| tokio::spawn(ask(front, number, pace, Arc::clone(&tally), Arc::clone(&over))));
    let clients: Vec<_> = clients.collect();
    let start = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    let mut memory = Vec::new();
    let mut descriptors = Vec::new();
    let mut step = 0_u64;
    while start.elapsed().as_secs() < seconds {
        beat.tick().await;
        step += 1;
        let index = usize::try_from((step - 1) / 2).expect("few") % ENDPOINTS;
        let breaker = breakers.get(index).expect("one of them");
        // Half a second broken, half a second whole.
        let _ = breaker.send(step % 2 == 1);
        if step.is_multiple_of(2) {
            configure(&control, front.port(), &endpoints, step / 2);
        }
        memory.push(proxy.memory());
        descriptors.push(proxy.descriptors());
        if step.is_multiple_of(120) {
            report(start, &tally, &memory, &descriptors);
        }
    }
    for breaker in &breakers {
        let _ = breaker.send(false);
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("it ends well");
    }
    report(start, &tally, &memory, &descriptors);
    assert_eq!(tally.lost.load(Ordering::Relaxed), 0, "requests without an answer");
    assert_eq!(tally.refused.load(Ordering::Relaxed), 0, "requests refused");
    assert!(tally.answered.load(Ordering::Relaxed) > seconds * rate / 4, "there was load");
    // Half a minute of warming up is not looked at, nor is a run that is hardly longer.
    if seconds >= 120 {
        let quarter = memory.len() / 4;
        let early = *memory.get(60..quarter.max(61)).and_then(|part| part.iter().max()).expect("samples");
        let late = *memory.get(3 * quarter..).and_then(|part| part.iter().max()).expect("samples");
        assert!(late <= early + early / 10, "memory grows: {early} KiB at first, {late} KiB in the end");
        let open = |part: &[usize]| part.iter().max().copied().expect("samples");
        let (early, late) = (open(&descriptors[..2 * quarter]), open(&descriptors[2 * quarter..]));
        assert!(late <= early + CLIENTS, "descriptors grow: {early} at first, {late} in the end");
    }
}

fn report(start: Instant, tally: &Tally, memory: &[u64], descriptors: &[usize]) {
    println!(
        "{:>5} s: {} answers on {} connections, {} refused, {} lost; {} KiB, {} descriptors",
        start.elapsed().as_secs(),
        tally.answered.load(Ordering::Relaxed),
        tally.connections.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
        tally.lost.load(Ordering::Relaxed),
        memory.last().copied().unwrap_or(0),
        descriptors.last().copied().unwrap_or(0),
    );
}
