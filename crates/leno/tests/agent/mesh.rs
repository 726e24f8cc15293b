//! A control plane and workloads as processes on loopback addresses.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leno_testkit::mesh::{self, pod};
use leno_testkit::ports::free;
use leno_testkit::process::Killed;
use serde_json::{Value, json};

/// Where sidecars take requests.
pub(crate) const INBOUND: u16 = 9080;
/// Where sidecars are HTTP proxies.
pub(crate) const OUTBOUND: u16 = 15080;
/// Where the server has something that is no sidecar.
pub(crate) const BARE: u16 = 9443;
/// The workloads, by their service accounts, and the last part of their addresses.
const WORKLOADS: [(&str, u8); 6] = [
    ("default/client", 1),
    ("default/server", 2),
    ("default/gateway", 3),
    ("elsewhere/other", 4),
    ("default/second", 5),
    ("default/third", 6),
];

/// Loopback addresses that nobody uses.
fn network() -> (u8, u8) {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let seed = std::process::id().wrapping_mul(2_246_822_519);
    let is_free = |a, b, last| TcpListener::bind((Ipv4Addr::new(127, a, b, last), INBOUND)).is_ok();
    for _ in 0..256 {
        let [_, _, a, b] = seed.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)).to_be_bytes();
        let a = a.max(1);
        if WORKLOADS.iter().all(|(_, last)| is_free(a, b, *last)) {
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

pub(crate) struct Mesh {
    mesh: mesh::Mesh,
    network: (u8, u8),
    /// Replicas of the control plane, which share a folder with their authority.
    pilots: Vec<u16>,
    /// Where these tell of themselves.
    pub(crate) monitors: Vec<u16>,
    pub(crate) application: u16,
    /// The port of the gateway.
    pub(crate) gateway: u16,
    _pilots: Vec<Killed>,
}

impl Deref for Mesh {
    type Target = mesh::Mesh;

    fn deref(&self) -> &mesh::Mesh {
        &self.mesh
    }
}

/// A workload with an agent.
pub(crate) struct Workload {
    pub(crate) address: Ipv4Addr,
    status: u16,
    pub(crate) admin: u16,
    pub(crate) health: u16,
    /// Where the proxy's own metrics are.
    pub(crate) metrics: u16,
    pub(crate) agent: Killed,
    pub(crate) folder: PathBuf,
}

impl Mesh {
    pub(crate) fn start() -> Mesh {
        Mesh::start_with(1, &[])
    }

    /// With so many replicas of a control plane whose authority follows these variables.
    pub(crate) fn start_with(replicas: usize, variables: &[(&str, &str)]) -> Mesh {
        Mesh::prepared(replicas, variables, |_| {})
    }

    /// One whose authority has something in its folder from the beginning.
    pub(crate) fn prepared(replicas: usize, variables: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Mesh {
        let (network, application, gateway) = (network(), application(), free());
        let address = |last| [Ipv4Addr::new(127, network.0, network.1, last).to_string()];
        let pods = WORKLOADS.iter().map(|(account, last)| pod(account, &address(*last)));
        let objects: Vec<Value> = pods.chain(objects(application, gateway)).collect();
        let mesh = mesh::Mesh::new(Path::new(env!("CARGO_BIN_EXE_leno")), &objects);
        mesh.write_as("rules.yaml", &rules());
        let authority = mesh.folder().join("ca");
        std::fs::create_dir(&authority).expect("a folder");
        prepare(&authority);
        let pilots: Vec<u16> = (0..replicas).map(|_| free()).collect();
        let monitors: Vec<u16> = (0..replicas).map(|_| free()).collect();
        let started = pilots.iter().zip(&monitors).map(|(pilot, monitor)| {
            let (address, monitoring) = (format!("127.0.0.1:{pilot}"), format!("127.0.0.1:{monitor}"));
            let mut command = mesh.monitored_pilot(&address, &monitoring);
            mesh.start(command.envs(variables.iter().copied()), &format!("pilot-{pilot}"))
        });
        let _pilots = started.collect();
        mesh.until_rooted();
        Mesh { mesh, network, pilots, monitors, application, gateway, _pilots }
    }

    /// Starts a sidecar's agent. `config` is added to its ProxyConfig.
    pub(crate) fn workload(&self, name: &str, config: &Value, variables: &[(&str, String)]) -> Workload {
        self.start_agent("sidecar", name, config, variables)
    }

    pub(crate) fn start_agent(
        &self,
        role: &str,
        name: &str,
        config: &Value,
        variables: &[(&str, String)],
    ) -> Workload {
        let is_it = |(account, _): &&(&str, u8)| account.split_once('/').is_some_and(|it| it.1 == name);
        let (account, last) = WORKLOADS.iter().find(is_it).expect("a workload");
        let (namespace, _) = account.split_once('/').expect("an account");
        let folder = self.mesh.workload(account);
        let address = Ipv4Addr::new(127, self.network.0, self.network.1, *last);
        let (status, admin, health, metrics) = (free(), free(), free(), free());
        let mut all = json!({
            "discoveryAddress": format!("127.0.0.1:{}", self.pilots[usize::from(*last) % self.pilots.len()]),
            "proxyAdminPort": admin,
            "statusPort": status,
            "concurrency": 1,
            "terminationDrainDuration": "1s",
        });
        for (name, value) in config.as_object().expect("an object") {
            all[name] = value.clone();
        }
        let mut command = self.mesh.program();
        command.args(["agent", "proxy", role, "--domain", &format!("{namespace}.svc.cluster.local")]);
        command.args(["--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error"]);
        command.args(["--log_output_level=default:info", "--of-a-later-release=true"]).current_dir(&folder);
        command.envs(self.mesh.environment(account, &address.to_string(), &all));
        command.env("ISTIO_META_INTERCEPTION_MODE", "NONE");
        command.env("ENVOY_STATUS_PORT", health.to_string());
        command.env("ENVOY_PROMETHEUS_PORT", metrics.to_string());
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        let agent = self.mesh.start(&mut command, name);
        Workload { address, status, admin, health, metrics, agent, folder }
    }

    pub(crate) fn until_ready(&self, workload: &Workload) {
        self.until("it is ready", || {
            matches!(ask(workload.status(), "GET", "/healthz/ready", ""), Ok((200, _)))
        });
    }
}

/// What there is beside Pods in any case.
fn objects(application: u16, gateway: u16) -> Vec<Value> {
    let service = |name: &str, address: &str, app: &str, port: u16| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "selector": { "app": app },
                "clusterIP": address,
                "ports": [{ "name": "http", "port": port, "targetPort": port }],
            },
        })
    };
    let sidecar = |namespace: &str, ingress: Value| {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "Sidecar",
            "metadata": { "name": "default", "namespace": namespace },
            "spec": { "ingress": ingress, "egress": [{ "hosts": ["default/*"] }] },
        })
    };
    let ingress = json!([{
        "port": { "number": INBOUND, "name": "http", "protocol": "HTTP" },
        "defaultEndpoint": format!("0.0.0.0:{application}"),
    }]);
    vec![
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
        service("server", "10.96.0.9", "server", INBOUND),
        // The same workload under names whose connections are used otherwise.
        service("kept", "10.96.0.10", "server", INBOUND),
        service("multiplexed", "10.96.0.11", "server", INBOUND),
        service("bare", "10.96.0.12", "server", BARE),
        service("second", "10.96.0.13", "second", INBOUND),
        service("third", "10.96.0.14", "third", INBOUND),
        sidecar("default", ingress.clone()),
        sidecar("elsewhere", ingress),
    ]
}

/// Only the client and the gateway may call the server, and only under one path; each request to it has a
/// handshake of its own.
fn rules() -> Vec<Value> {
    let principals =
        ["cluster.local/ns/default/sa/client", "cluster.local/ns/default/sa/gateway"].map(str::to_owned);
    vec![
        destination("server", &json!({ "http": { "maxRequestsPerConnection": 1 } })),
        mutual("STRICT"),
        policy(
            "server",
            "ALLOW",
            &json!([{
                "from": [{ "source": { "principals": principals } }],
                "to": [{ "operation": { "paths": ["/for-client"] } }],
            }]),
        ),
    ]
}

/// How connections to a Service are used.
pub(crate) fn destination(host: &str, pool: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": host, "namespace": "default" },
        "spec": {
            "host": format!("{host}.default.svc.cluster.local"),
            "trafficPolicy": { "connectionPool": pool },
        },
    })
}

/// Whether plain text is taken.
pub(crate) fn mutual(mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": "default" },
        "spec": { "mtls": { "mode": mode } },
    })
}

/// Who may call the server.
pub(crate) fn policy(name: &str, action: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "app": "server" } }, "action": action, "rules": rules },
    })
}

impl Workload {
    pub(crate) fn status(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.status).into()
    }

    /// Calls a Service of the namespace `default` through the sidecar.
    pub(crate) fn call(&self, service: &str, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
        let port = if service == "bare" { BARE } else { INBOUND };
        let host = format!("{service}.default.svc.cluster.local:{port}");
        let headers = format!("Host: {host}\r\n{headers}");
        ask((self.address, OUTBOUND).into(), "GET", &format!("http://{host}{path}"), &headers)
    }

    /// The sum of the agent's metrics that begin like this.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(self.status(), "/metrics", name)
    }

    /// The sum of the proxy's stats that match.
    pub(crate) fn stats(&self, matches: impl Fn(&str) -> bool) -> u64 {
        let admin = (Ipv4Addr::LOCALHOST, self.admin).into();
        let Ok((200, text)) = ask(admin, "GET", "/stats", "") else { return 0 };
        let found = text.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| matches(name));
        found.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
    }
}

/// The sum of what a page of metrics says under names that begin like this.
pub(crate) fn metric(of: SocketAddr, page: &str, name: &str) -> u64 {
    let Ok((200, text)) = ask(of, "GET", page, "") else { return 0 };
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// One request; the status, and the body.
pub(crate) fn ask(to: SocketAddr, method: &str, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
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
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if is_chunked { whole(body) } else { body.to_owned() }))
}

/// A body without the sizes of its chunks.
fn whole(chunks: &str) -> String {
    let (mut out, mut rest) = (String::new(), chunks);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = after.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        out.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    out
}
