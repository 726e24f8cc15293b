//! `leno agent` under `leno pilot`, as processes: two workloads with identities of their own, between
//! which only mTLS passes. The proxies are ours, inside the agents, or the real Envoy as their child.
//!
//! Nothing is redirected (`INTERCEPTION_MODE: NONE`): each workload has a loopback address of its own, its
//! sidecar listens there, and its application calls through it as an HTTP proxy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use leno_testkit::mesh::{self, pod};
use leno_testkit::process::{Killed, PATIENCE, pause};
use serde_json::json;

/// Where sidecars take requests.
const INBOUND: u16 = 9080;
/// Where sidecars are HTTP proxies.
const OUTBOUND: u16 = 15080;

/// A port that nobody has now. Somebody may take it; then the test fails and says so.
fn free() -> u16 {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Loopback addresses that nobody uses.
fn network() -> (u8, u8) {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let seed = std::process::id().wrapping_mul(2_246_822_519);
    for _ in 0..256 {
        let [_, _, a, b] = seed.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)).to_be_bytes();
        let a = a.max(1);
        if (1..=3).all(|last| TcpListener::bind((Ipv4Addr::new(127, a, b, last), INBOUND)).is_ok()) {
            return (a, b);
        }
    }
    panic!("all loopback networks are in use")
}

/// An application that answers with the head of what it was asked.
fn application() -> u16 {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || echo(stream));
        }
    });
    port
}

fn echo(mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().expect("a handle"));
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if matches!(lines.read_line(&mut head), Ok(0) | Err(_)) {
                return;
            }
        }
        let body = if head.starts_with("GET /metrics") { "app_requests 7\n".to_owned() } else { head };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

struct Mesh {
    mesh: mesh::Mesh,
    network: (u8, u8),
    /// Replicas of the control plane, which share a folder with their authority.
    pilots: Vec<u16>,
    application: u16,
    /// The port of the gateway.
    gateway: u16,
    _pilots: Vec<Killed>,
}

/// A workload with an agent.
struct Workload {
    address: Ipv4Addr,
    status: u16,
    admin: u16,
    health: u16,
    /// Where the proxy's own metrics are.
    metrics: u16,
    agent: Killed,
    folder: PathBuf,
}

impl Mesh {
    fn start() -> Mesh {
        Mesh::start_with(1, &[])
    }

    /// With so many replicas of a control plane whose authority follows these variables.
    fn start_with(replicas: usize, variables: &[(&str, &str)]) -> Mesh {
        let (network, application, gateway) = (network(), application(), free());
        let address = |last| [Ipv4Addr::new(127, network.0, network.1, last).to_string()];
        let objects = [
            pod("client", &address(1)),
            pod("server", &address(2)),
            pod("gateway", &address(3)),
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "Gateway",
                "metadata": { "name": "gateway", "namespace": "default" },
                "spec": {
                    "selector": { "app": "gateway" },
                    "servers": [{
                        "port": { "number": gateway, "name": "http", "protocol": "HTTP" },
                        "hosts": ["shop.example.com"],
                    }],
                },
            }),
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": { "name": "shop", "namespace": "default" },
                "spec": {
                    "hosts": ["shop.example.com"],
                    "gateways": ["gateway"],
                    "http": [{ "route": [{ "destination": { "host": "server" } }] }],
                },
            }),
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": "server", "namespace": "default" },
                "spec": {
                    "selector": { "app": "server" },
                    "clusterIP": "10.96.0.9",
                    "ports": [{ "name": "http", "port": INBOUND, "targetPort": INBOUND }],
                },
            }),
            // A handshake for each request.
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "DestinationRule",
                "metadata": { "name": "server", "namespace": "default" },
                "spec": {
                    "host": "server",
                    "trafficPolicy": { "connectionPool": { "http": { "maxRequestsPerConnection": 1 } } },
                },
            }),
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "Sidecar",
                "metadata": { "name": "default", "namespace": "default" },
                "spec": {
                    "ingress": [{
                        "port": { "number": INBOUND, "name": "http", "protocol": "HTTP" },
                        "defaultEndpoint": format!("0.0.0.0:{application}"),
                    }],
                    "egress": [{ "hosts": ["./*"] }],
                },
            }),
            json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": { "name": "default", "namespace": "default" },
                "spec": { "mtls": { "mode": "STRICT" } },
            }),
            json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": { "name": "server", "namespace": "default" },
                "spec": {
                    "selector": { "matchLabels": { "app": "server" } },
                    "action": "ALLOW",
                    "rules": [{
                        "from": [{ "source": { "principals": [
                            "cluster.local/ns/default/sa/client",
                            "cluster.local/ns/default/sa/gateway",
                        ] } }],
                        "to": [{ "operation": { "paths": ["/for-client"] } }],
                    }],
                },
            }),
        ];
        let mesh = mesh::Mesh::new(Path::new(env!("CARGO_BIN_EXE_leno")), &objects);
        let pilots: Vec<u16> = (0..replicas).map(|_| free()).collect();
        let started = pilots.iter().map(|pilot| {
            let mut command = mesh.pilot(&format!("127.0.0.1:{pilot}"));
            mesh.start(command.envs(variables.iter().copied()), &format!("pilot-{pilot}"))
        });
        let _pilots = started.collect();
        mesh.until_rooted();
        Mesh { mesh, network, pilots, application, gateway, _pilots }
    }

    fn until(&self, what: &str, is_so: impl FnMut() -> bool) {
        self.mesh.until(what, is_so);
    }

    fn logs(&self) -> String {
        self.mesh.logs()
    }

    /// Starts a workload's agent. `config` is added to its ProxyConfig.
    fn workload(
        &self,
        name: &str,
        last: u8,
        config: &serde_json::Value,
        variables: &[(&str, String)],
    ) -> Workload {
        self.start_agent("sidecar", name, last, config, variables)
    }

    fn start_agent(
        &self,
        role: &str,
        name: &str,
        last: u8,
        config: &serde_json::Value,
        variables: &[(&str, String)],
    ) -> Workload {
        let folder = self.mesh.workload(name);
        let address = Ipv4Addr::new(127, self.network.0, self.network.1, last);
        let (status, admin, health, metrics) = (free(), free(), free(), free());
        let mut all = json!({
            "discoveryAddress": format!("127.0.0.1:{}", self.pilots[usize::from(last) % self.pilots.len()]),
            "proxyAdminPort": admin,
            "statusPort": status,
            "concurrency": 1,
            "terminationDrainDuration": "1s",
        });
        for (name, value) in config.as_object().expect("an object") {
            all[name] = value.clone();
        }
        let mut command = self.mesh.program();
        command.args(["agent", "proxy", role, "--domain", "default.svc.cluster.local"]);
        command.args(["--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error"]);
        command.args(["--log_output_level=default:info", "--of-a-later-release=true"]).current_dir(&folder);
        command.envs(self.mesh.environment(name, &address.to_string(), &all));
        command.env("ISTIO_META_INTERCEPTION_MODE", "NONE");
        command.env("ENVOY_STATUS_PORT", health.to_string());
        command.env("ENVOY_PROMETHEUS_PORT", metrics.to_string());
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        let agent = self.mesh.start(&mut command, name);
        Workload { address, status, admin, health, metrics, agent, folder }
    }

    fn until_ready(&self, workload: &Workload) {
        self.until("it is ready", || {
            matches!(ask(workload.status(), "GET", "/healthz/ready", ""), Ok((200, _)))
        });
    }
}

impl Workload {
    fn status(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.status).into()
    }
}

/// One request; the status, and the body.
fn ask(to: SocketAddr, method: &str, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let head = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("{text:?} is no answer")))?;
    Ok((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Two workloads talk, and nobody else does.
fn talk(config: &serde_json::Value) {
    let mesh = Mesh::start();
    let probes = json!({
        "/app-health/app/readyz": { "httpGet": { "path": "/ready", "port": mesh.application, "scheme": "HTTP" } },
        "/app-health/app/livez": { "tcpSocket": { "port": mesh.application } },
        "/app-health/app/startupz": { "tcpSocket": { "port": 1 } },
    });
    let variables = [
        ("ISTIO_KUBE_APP_PROBERS", probes.to_string()),
        (
            "ISTIO_PROMETHEUS_ANNOTATIONS",
            json!({ "scrape": "true", "port": mesh.application.to_string() }).to_string(),
        ),
        ("OUTPUT_CERTS", "certs".to_owned()),
    ];
    let mut server = mesh.workload("server", 2, config, &variables);
    let mut client = mesh.workload("client", 1, config, &[]);
    mesh.until_ready(&server);
    mesh.until_ready(&client);

    let proxy = SocketAddr::from((client.address, OUTBOUND));
    let host = format!("Host: server.default.svc.cluster.local:{INBOUND}\r\n");
    let call = |path: &str| {
        let absolute = format!("http://server.default.svc.cluster.local:{INBOUND}{path}");
        ask(proxy, "GET", &absolute, &host)
    };
    mesh.until("they talk", || {
        let answer = call("/for-client");
        if !matches!(answer, Ok((200, _))) {
            eprintln!("not yet: {answer:?}");
        }
        matches!(answer, Ok((200, _)))
    });
    let (_, head) = call("/for-client").expect("an answer");
    let head = head.to_ascii_lowercase();
    for words in
        ["by=spiffe://cluster.local/ns/default/sa/server", "uri=spiffe://cluster.local/ns/default/sa/client"]
    {
        assert!(head.contains(words), "{words}: {head}");
    }
    let (status, body) = call("/for-nobody").expect("an answer");
    assert_eq!((status, body.as_str()), (403, "RBAC: access denied"));
    let plain = ask((server.address, INBOUND).into(), "GET", "/for-client", "");
    assert!(plain.is_err(), "plaintext must be refused: {plain:?}");

    // The status port, and 15021 through the proxy.
    let get = |path: &str| ask(server.status(), "GET", path, "").expect("an answer");
    assert_eq!(
        ask((Ipv4Addr::LOCALHOST, server.health).into(), "GET", "/healthz/ready", "").expect("an answer").0,
        200
    );
    let (status, body) = get("/app-health/app/readyz");
    assert!(status == 200 && body.starts_with("GET /ready HTTP/1.1"), "{status} {body}");
    assert_eq!(get("/app-health/app/livez").0, 200);
    assert_eq!(get("/app-health/app/startupz").0, 500);
    assert_eq!(get("/app-health/other/livez").0, 400);
    let (_, metrics) = get("/stats/prometheus");
    for words in [
        "app_requests 7",
        "istio_agent_cert_expiry_seconds{resource_name=\"default\"}",
        "istio_agent_startup_duration_seconds",
        "envoy_server_live",
    ] {
        assert!(metrics.contains(words), "{words}: {metrics}");
    }
    // The proxy's own, compressed for who takes that.
    for (accepted, plain) in [("identity", true), ("gzip", false), ("zstd, br", false)] {
        let accepted = format!("Accept-Encoding: {accepted}\r\n");
        let to = (Ipv4Addr::LOCALHOST, server.metrics).into();
        let (status, metrics) = ask(to, "GET", "/stats/prometheus", &accepted).expect("an answer");
        assert_eq!((status, metrics.contains("envoy_server_live")), (200, plain), "{accepted}");
    }
    assert_eq!(get("/quitquitquit").0, 405);
    assert!(server.folder.join("certs/cert-chain.pem").exists());

    // What pilot-agent's other verbs do.
    let mut wait = Command::new(env!("CARGO_BIN_EXE_leno"));
    wait.args(["agent", "wait", "--url"]).arg(format!("http://localhost:{}/healthz/ready", client.health));
    assert!(wait.status().expect("it runs").success());
    let mut request = Command::new(env!("CARGO_BIN_EXE_leno"));
    request.args(["agent", "request", "GET", "/ready", "--debug-port", &client.admin.to_string()]);
    let answer = request.output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "LIVE");

    // A job is done, and a Pod is deleted.
    assert_eq!(ask(client.status(), "POST", "/quitquitquit", "").expect("an answer").0, 200);
    assert!(client.agent.ended().success(), "{}", mesh.logs());
    server.agent.terminate();
    assert!(server.agent.ended().success(), "{}", mesh.logs());
    assert!(ask((server.address, INBOUND).into(), "GET", "/", "").is_err(), "its proxy has ended with it");
}

/// Two workloads whose certificates come from a replica each go on talking, with a handshake for each
/// request, while the root of the mesh is followed by another.
#[test]
fn a_root_is_followed_by_another_while_workloads_talk() {
    let mesh = Mesh::start_with(
        2,
        &[
            ("CITADEL_SELF_SIGNED_CA_CERT_TTL", "60s"),
            // Counted from two minutes before, so it is announced after 14 s, signs after 26, and is alone
            // after 38.
            ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "46"),
            ("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "1s"),
            ("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", "false"),
            ("MAX_WORKLOAD_CERT_TTL", "10s"),
        ],
    );
    let first =
        mesh.mesh.roots().lines().take_while(|line| !line.contains("END")).collect::<Vec<_>>().join("\n");
    let short = [("SECRET_TTL", "10s".to_owned())];
    let server = mesh.workload("server", 2, &json!({}), &short);
    let client = mesh.workload("client", 1, &json!({}), &short);
    mesh.until_ready(&server);
    mesh.until_ready(&client);
    let proxy = SocketAddr::from((client.address, OUTBOUND));
    let host = format!("Host: server.default.svc.cluster.local:{INBOUND}\r\n");
    let absolute = format!("http://server.default.svc.cluster.local:{INBOUND}/for-client");
    let call = || ask(proxy, "GET", &absolute, &host);
    mesh.until("they talk", || matches!(call(), Ok((200, _))));
    let (mut told, mut most, mut answered, mut since) = (mesh.mesh.roots(), 0, 0, None);
    let start = Instant::now();
    // Until the first root is gone, and whatever is left of it must have gone too.
    while since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(4)) {
        let answer = call();
        assert!(
            matches!(answer, Ok((200, _))),
            "after {:?} and {answered} answers: {answer:?}\n{}",
            start.elapsed(),
            mesh.logs()
        );
        answered += 1;
        let roots = mesh.mesh.roots();
        most = most.max(roots.matches("BEGIN CERTIFICATE").count());
        if roots != told {
            mesh.mesh.hand_out_roots(&server.folder);
            mesh.mesh.hand_out_roots(&client.folder);
            told = roots;
        }
        if since.is_none() && !told.contains(&first) {
            since = Some(Instant::now());
        }
        assert!(start.elapsed() < PATIENCE, "the first root stays\n{}", mesh.logs());
        pause();
    }
    assert!(most > 1 && answered > 100, "{most} roots at a time, {answered} answers");
}

/// The address that a DNS server has for a name.
fn look_up(server: u16, name: &str) -> std::io::Result<Vec<u8>> {
    let mut query = vec![0x12, 0x67, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("short"));
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.send_to(&query, (Ipv4Addr::LOCALHOST, server))?;
    let mut answer = vec![0; 512];
    let length = socket.recv(&mut answer)?;
    // The last four bytes of an answer with one address.
    Ok(answer[length.saturating_sub(4)..length].to_vec())
}

/// From outside, through a gateway, to a workload that takes mTLS only.
fn enter(config: &serde_json::Value) {
    let mesh = Mesh::start();
    let server = mesh.workload("server", 2, config, &[]);
    let dns = free();
    let variables =
        [("ISTIO_META_ENABLE_DNS_SERVER", "true".to_owned()), ("DNS_PROXY_ADDR", format!("127.0.0.1:{dns}"))];
    let mut gateway = mesh.start_agent("router", "gateway", 3, config, &variables);
    mesh.until_ready(&server);
    // With names, which a gateway gets as well.
    mesh.until_ready(&gateway);
    // Where nothing is redirected a proxy listens on its own address.
    let to = SocketAddr::from((gateway.address, mesh.gateway));
    let call = |host: &str, path: &str| ask(to, "GET", path, &format!("Host: {host}\r\n"));
    mesh.until("the gateway is open", || {
        let answer = call("shop.example.com", "/for-client");
        if !matches!(answer, Ok((200, _))) {
            eprintln!("not yet: {answer:?}");
        }
        matches!(answer, Ok((200, _)))
    });
    let (_, head) = call("shop.example.com", "/for-client").expect("an answer");
    let words = "uri=spiffe://cluster.local/ns/default/sa/gateway";
    assert!(head.to_ascii_lowercase().contains(words), "{head}");
    assert_eq!(call("shop.example.com", "/for-nobody").expect("an answer").0, 403);
    assert_eq!(call("other.example.com", "/for-client").expect("an answer").0, 404);
    assert_eq!(look_up(dns, "server.default.svc.cluster.local").expect("an answer"), [10, 96, 0, 9]);
    gateway.agent.terminate();
    assert!(gateway.agent.ended().success(), "{}", mesh.logs());
}

#[test]
fn our_gateway_lets_requests_in() {
    enter(&json!({}));
}

#[test]
fn envoys_gateway_lets_requests_in() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    enter(&json!({ "binaryPath": envoy }));
}

#[test]
fn our_proxies_talk_over_mtls() {
    talk(&json!({}));
}

#[test]
fn envoys_talk_over_mtls() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    talk(&json!({ "binaryPath": envoy }));
}

/// Called as `envoy`, with pilot-agent's command line and bootstrap, ours is an Envoy to the agent; it
/// reaches everything by Unix sockets, and tells a statsd server what it counts.
#[test]
fn our_proxies_talk_as_envoys() {
    let folder = tempfile::tempdir().expect("a folder");
    let envoy = folder.path().join("envoy");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_leno"), &envoy).expect("a link");
    let statsd = UdpSocket::bind("127.0.0.1:0").expect("a port");
    statsd.set_read_timeout(Some(PATIENCE)).expect("an option");
    talk(&json!({
        "binaryPath": envoy,
        "statsdUdpAddress": statsd.local_addr().expect("an address").to_string(),
        "tracing": { "zipkin": { "address": "127.0.0.1:1" } },
    }));
    let mut datagram = [0; 1500];
    let length = statsd.recv(&mut datagram).expect("a datagram");
    let line = String::from_utf8_lossy(&datagram[..length]).into_owned();
    assert!(line.starts_with("envoy.") && (line.ends_with("|c") || line.ends_with("|g")), "{line}");
}

/// If the proxy ends, so does the agent.
#[test]
fn an_agent_ends_with_its_proxy() {
    let mesh = Mesh::start();
    let mut workload = mesh.workload("client", 1, &json!({ "binaryPath": "/bin/false" }), &[]);
    assert!(!workload.agent.ended().success(), "{}", mesh.logs());
}
