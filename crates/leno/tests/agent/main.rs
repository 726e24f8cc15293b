//! `leno agent` under `leno pilot`, as processes: workloads with identities of their own, between which
//! only mTLS passes. The proxies are ours, inside the agents, or the real Envoy as their child.
//!
//! Nothing is redirected (`INTERCEPTION_MODE: NONE`): each workload has a loopback address of its own, its
//! sidecar listens there, and its application calls through it as an HTTP proxy.
//!
//! - `mesh.rs`: all of that set up;
//! - `certificates.rs`: who shows which, seen with `openssl`, and those that are refused;
//! - `credentials.rs`: those of gateways that somebody gives on a socket;
//! - `others.rs`: identities of another agent, and of who was there before;
//! - `policies.rs`: who may call whom, by identities;
//! - `tokens.rs`: tokens of an issuer (`issuer.rs`), and whose keys are found;
//! - `rotation.rs`: certificates and roots that are followed by others while requests are made (`load.rs`).

mod certificates;
mod credentials;
mod issuer;
mod load;
mod mesh;
mod others;
mod policies;
mod rotation;
mod tokens;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use leno_testkit::ports;
use leno_testkit::process::PATIENCE;
use serde_json::json;

use crate::mesh::{INBOUND, Mesh, ask};

/// Two workloads talk, and nobody else does.
fn talk(config: &serde_json::Value, meanwhile: impl FnOnce()) {
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
    let mut server = mesh.workload("server", config, &variables);
    let mut client = mesh.workload("client", config, &[]);
    mesh.until_ready(&server);
    mesh.until_ready(&client);

    let call = |path: &str| client.call("server", path, "");
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

    meanwhile();

    // A job is done, and a Pod is deleted.
    assert_eq!(ask(client.status(), "POST", "/quitquitquit", "").expect("an answer").0, 200);
    assert!(client.agent.ended().success(), "{}", mesh.logs());
    server.agent.terminate();
    assert!(server.agent.ended().success(), "{}", mesh.logs());
    assert!(ask((server.address, INBOUND).into(), "GET", "/", "").is_err(), "its proxy has ended with it");
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
    let server = mesh.workload("server", config, &[]);
    let dns = ports::free();
    let variables =
        [("ISTIO_META_ENABLE_DNS_SERVER", "true".to_owned()), ("DNS_PROXY_ADDR", format!("127.0.0.1:{dns}"))];
    let mut gateway = mesh.start_agent("router", "gateway", config, &variables);
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
    talk(&json!({}), || ());
}

#[test]
fn envoys_talk_over_mtls() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    talk(&json!({ "binaryPath": envoy }), || ());
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
    let config = json!({
        "binaryPath": envoy,
        "statsdUdpAddress": statsd.local_addr().expect("an address").to_string(),
        "tracing": { "zipkin": { "address": "127.0.0.1:1" } },
    });
    talk(&config, || {
        let mut datagram = [0; 1500];
        let length = statsd.recv(&mut datagram).expect("a datagram");
        let line = String::from_utf8_lossy(&datagram[..length]).into_owned();
        assert!(line.starts_with("envoy.") && (line.ends_with("|c") || line.ends_with("|g")), "{line}");
    });
}

/// If the proxy ends, so does the agent.
#[test]
fn an_agent_ends_with_its_proxy() {
    let mesh = Mesh::start();
    let mut workload = mesh.workload("client", &json!({ "binaryPath": "/bin/false" }), &[]);
    assert!(!workload.agent.ended().success(), "{}", mesh.logs());
}
