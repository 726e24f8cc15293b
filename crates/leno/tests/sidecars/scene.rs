//! The scene: a node, five pods with sidecars, a control plane, applications.
//!
//! | pod | addresses | redirection |
//! |---|---|---|
//! | client | both families | but port 5432 and 10.81.0.0/16 (fd81::/16) outbound |
//! | server | both families | but port 9000 inbound |
//! | kept | both families | TPROXY; inbound port 8080 only, outbound ranges of Services only |
//! | six | IPv6 | everything, by iptables' programs if they are there |
//! | stock | both families | everything; its proxy is the real Envoy |
//!
//! Where there is no Envoy the fifth pod is not there.

use std::path::{Path, PathBuf};
use std::process::Command;

use leno_testkit::mesh::{Mesh, pod, shared};
use leno_testkit::process::Killed;
use serde_json::{Value, json};

use super::net::{Addresses, NODE, NODE_V6, Namespace, Said, has, net, possible, v4, v6};
use super::servers;

/// The user that sidecars run as, and are known by.
pub(crate) const PROXY: u32 = 1337;

/// Pods by their numbers; 0 is the node.
pub(crate) const CLIENT: usize = 1;
pub(crate) const SERVER: usize = 2;
pub(crate) const KEPT: usize = 3;
pub(crate) const SIX: usize = 4;
pub(crate) const STOCK: usize = 5;

const PODS: [(&str, Addresses); 5] = [
    ("client", Addresses::Both),
    ("server", Addresses::Both),
    ("kept", Addresses::Both),
    ("six", Addresses::V6),
    ("stock", Addresses::Both),
];

/// Flags of `istio-iptables` beside those that all have.
const RULES: [&[&str]; 5] = [
    &["-m", "REDIRECT", "-i", "*", "-x", "10.81.0.0/16,fd81::/16", "-b", "*", "-o", "5432"],
    &["-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020,9000"],
    &["-m", "TPROXY", "-i", "10.96.0.0/16,fd96::/16", "-x", "", "-b", "8080"],
    &["-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"],
    &["-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"],
];

pub(crate) struct Scene {
    pub(crate) net: Vec<Namespace>,
    pub(crate) mesh: Mesh,
    /// The pods that there are.
    pub(crate) pods: Vec<usize>,
    envoy: Option<PathBuf>,
    /// Sidecars by the numbers of their pods, less one.
    pub(crate) sidecars: Vec<Killed>,
    _pilot: Killed,
    _program: tempfile::TempDir,
}

impl Scene {
    /// Starts everything, and waits until all sidecars are ready and have each other's endpoints.
    pub(crate) fn start() -> Result<Scene, String> {
        possible()?;
        let leno = Path::new(env!("CARGO_BIN_EXE_leno"));
        let envoy = leno_testkit::envoy::binary();
        let program = shared([leno].into_iter().chain(envoy.as_deref()));
        let envoy = envoy.and_then(|envoy| Some(program.path().join(envoy.file_name()?)));
        let pods: Vec<usize> = (1..=PODS.len()).filter(|pod| *pod != STOCK || envoy.is_some()).collect();
        let net = net("", &PODS[..pods.len()])?;
        let mesh = Mesh::new(&program.path().join("leno"), &objects());
        applications(&net);
        let mut pilot = net[0].command(&program.path().join("leno").display().to_string());
        let asked = mesh.pilot("[::]:15012");
        pilot.args(asked.get_args()).env("ISTIO_DUAL_STACK", "true");
        pilot.envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let _pilot = mesh.start(&mut pilot, "pilot");
        mesh.until_rooted();
        let mut scene = Scene { net, mesh, pods, envoy, sidecars: Vec::new(), _pilot, _program: program };
        for pod in scene.pods.clone() {
            scene.redirect(pod);
            let sidecar = scene.sidecar(pod);
            scene.sidecars.push(sidecar);
        }
        for &pod in &scene.pods {
            let host = if pod == SIX { "[::1]" } else { "127.0.0.1" };
            let ready = format!("http://{host}:15021/healthz/ready");
            scene.mesh.until("a sidecar is ready", || scene.net[pod].curl(&["-f", &ready]).code == 0);
        }
        for &pod in &scene.pods {
            for (host, _) in scene.pods.iter().map(|&pod| PODS[pod - 1]) {
                scene.mesh.until(&format!("{} reaches {host}", PODS[pod - 1].0), || {
                    scene.net[pod].curl(&["-f", &format!("http://{host}/")]).text.starts_with("from")
                });
            }
        }
        Ok(scene)
    }

    /// Pods with all servers, by their Services.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &'static str> {
        self.pods.iter().filter(|pod| [SERVER, STOCK].contains(pod)).map(|&pod| PODS[pod - 1].0)
    }

    pub(crate) fn client(&self) -> &Namespace {
        &self.net[CLIENT]
    }

    /// What the init container does.
    fn redirect(&self, pod: usize) {
        let mut command = self.net[pod].command(&self.program());
        command.args(["agent", "istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337"]);
        if pod != SERVER && pod != KEPT {
            command.args(["-d", "15090,15021,15020"]);
        }
        command.args(RULES[pod - 1]).args(["--redirect-dns", "--capture-all-dns", "--dual-stack"]);
        if pod == SIX && has("iptables-nft") {
            command.args(["--force-iptables-binary", "nft"]);
        }
        let done = command.output().expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn program(&self) -> String {
        self.mesh.program().get_program().to_string_lossy().into_owned()
    }

    /// What the sidecar's container does: as the proxy's user, or for TPROXY as root in the proxy's group.
    fn sidecar(&self, number: usize) -> Killed {
        let (name, addresses) = PODS[number - 1];
        let folder = self.mesh.workload(name);
        own(&folder);
        let discovery =
            if addresses == Addresses::V6 { format!("[{NODE_V6}]:15012") } else { format!("{NODE}:15012") };
        let mut config = json!({
            "discoveryAddress": discovery,
            "concurrency": 1,
            "proxyStatsMatcher": { "inclusionRegexps": ["listener\\..*"] },
            "terminationDrainDuration": "1s",
        });
        if let Some(envoy) = self.envoy.as_ref().filter(|_| number == STOCK) {
            config["binaryPath"] = json!(envoy);
        }
        let address = if addresses == Addresses::V6 { v6(number) } else { v4(number) };
        let mode = if number == KEPT { "TPROXY" } else { "REDIRECT" };
        let mut command = self.net[number].command("setpriv");
        if number != KEPT {
            command.arg(format!("--reuid={PROXY}"));
        }
        command.arg(format!("--regid={PROXY}")).args(["--clear-groups", &self.program()]);
        command.args(["agent", "proxy", "sidecar", "--domain", "default.svc.cluster.local"]);
        command.envs(self.mesh.environment(name, &address, &config));
        for (variable, value) in [
            ("ISTIO_META_INTERCEPTION_MODE", mode),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("ISTIO_DUAL_STACK", "true"),
        ] {
            command.env(variable, value);
        }
        self.mesh.start(command.current_dir(&folder), name)
    }

    /// What a program in a pod is told, again and again until it is right: the first connection to a service
    /// waits for its cluster, on a busy machine longer than it may.
    pub(crate) fn told(&self, what: &str, mut ask: impl FnMut() -> Said, holds: impl Fn(&str) -> bool) {
        let mut last = None;
        let come = leno_testkit::process::eventually(what, || {
            let said = ask();
            let is_so = holds(&said.text);
            last = Some(said);
            is_so
        });
        if let Err(late) = come {
            panic!("{late}: {last:?}");
        }
    }

    /// A figure of a sidecar's proxy; 0 if it has none of that name.
    pub(crate) fn figure(&self, pod: usize, name: &str) -> u64 {
        let host = if pod == SIX { "[::1]" } else { "127.0.0.1" };
        let said = self.net[pod].curl(&["-f", &format!("http://{host}:15000/stats?filter={name}")]);
        assert_eq!(said.code, 0, "{said:?}");
        said.text.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum()
    }

    /// A program of Python's.
    pub(crate) fn python(&self, pod: usize, program: &str, arguments: &[&str]) -> Said {
        let all: Vec<&str> = ["-c", program].iter().chain(arguments).copied().collect();
        self.net[pod].run("python3", &all)
    }
}

/// The proxy's user may write what is in a folder.
fn own(folder: &Path) {
    let owner = format!("{PROXY}:{PROXY}");
    let done = Command::new("chown").args(["-R", &owner]).arg(folder).status().expect("it runs");
    assert!(done.success(), "root may");
}

fn applications(net: &[Namespace]) {
    for pod in &net[1..] {
        servers::accept(pod, 8080, servers::http);
        servers::accept(pod, 3308, servers::greet);
    }
    for number in [SERVER, STOCK] {
        let Some(server) = net.get(number) else { continue };
        servers::accept(server, 3306, servers::mysql);
        servers::accept(server, 3309, servers::greet);
        servers::accept(server, 7000, servers::count);
        servers::accept(server, 9000, servers::http);
        servers::echo(server, &format!("{}:9999", v4(number)));
        servers::echo(server, &format!("[{}]:9999", v6(number)));
    }
    servers::accept(&net[KEPT], 8082, servers::http);
    let node = &net[0];
    for port in [80, 5432, 8081] {
        servers::accept(node, port, servers::http);
    }
    servers::accept(node, 7001, |stream| servers::greet_as(stream, "one"));
    servers::accept(node, 7002, |stream| servers::greet_as(stream, "two"));
    servers::names(node, &format!("{NODE}:53"), NODE, NODE_V6);
    servers::names(node, &format!("[{NODE_V6}]:53"), NODE, NODE_V6);
}

fn service(name: &str, addresses: &[&str], ports: &Value) -> Value {
    let families: Vec<&str> =
        addresses.iter().map(|address| if address.contains(':') { "IPv6" } else { "IPv4" }).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "selector": { "app": if name == "db" { "server" } else { name } },
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": families,
            "ipFamilyPolicy": if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": ports,
        },
    })
}

/// A host outside the mesh whose port is another one at the node.
fn entry(name: &str, addresses: &[&str], protocol: &str, port: u16, target: u16) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "hosts": [format!("{name}.example")],
            "addresses": addresses,
            "ports": [{ "number": port, "name": protocol.to_lowercase(), "protocol": protocol }],
            "resolution": "STATIC",
            "location": "MESH_EXTERNAL",
            "endpoints": [
                { "address": NODE, "ports": { protocol.to_lowercase(): target } },
                { "address": NODE_V6, "ports": { protocol.to_lowercase(): target } },
            ],
        },
    })
}

/// Of a server's ports, those that take plain text as well.
fn open_ports(name: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "portLevelMtls": {
                "3309": { "mode": "PERMISSIVE" },
                // So that others get as far as the proxy's own port.
                "15001": { "mode": "PERMISSIVE" },
            },
        },
    })
}

fn objects() -> Vec<Value> {
    let http = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    let all = json!([
        { "name": "http", "port": 80, "targetPort": 8080 },
        { "name": "mysql", "port": 3316, "targetPort": 3306 },
        { "name": "detected", "port": 3308, "targetPort": 3308 },
        { "name": "open", "port": 3309, "targetPort": 3309 },
        { "name": "tcp-count", "port": 7000, "targetPort": 7000 },
    ]);
    let both = |number| [v4(number), v6(number)];
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "istio", "namespace": "istio-system" },
            // For servers that speak first on ports whose protocol is not declared.
            "data": { "mesh": "protocolDetectionTimeout: 3s\n" },
        }),
        pod("client", &both(CLIENT)),
        pod("server", &both(SERVER)),
        pod("kept", &both(KEPT)),
        pod("six", &[v6(SIX)]),
        pod("stock", &both(STOCK)),
        service("server", &["10.96.0.9", "fd96::9"], &all),
        service("stock", &["10.96.0.14", "fd96::14"], &all),
        service("db", &["10.96.0.10"], &json!([{ "port": 3306, "targetPort": 3306 }])),
        service("client", &["10.96.0.11", "fd96::11"], &http),
        service("kept", &["10.96.0.12", "fd96::12"], &http),
        service(
            "six",
            &["fd96::13"],
            &json!([
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "tcp-greet", "port": 3308, "targetPort": 3308 },
            ]),
        ),
        entry("legacy", &["10.96.0.50", "fd96::50"], "HTTP", 80, 8081),
        // By it requests on this port are in the proxy's hands, whatever their host.
        entry("queue", &["10.96.0.51"], "HTTP", 5432, 8081),
        // Of one port, and without addresses of their own.
        entry("one", &[], "TCP", 7000, 7001),
        entry("two", &[], "TCP", 7000, 7002),
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": { "name": "default", "namespace": "default" },
            "spec": { "mtls": { "mode": "STRICT" } },
        }),
        open_ports("server"),
        open_ports("stock"),
    ]
}

/// What an answer says if a request came by the client's sidecar and the server's.
pub(crate) fn by_both(text: &str, account: &str) -> bool {
    let loopback = text.starts_with("from 127.0.0.6\n") || text.starts_with("from ::6\n");
    loopback && is_from(text, account)
}

/// What it says if the server's sidecar knows who the client is.
pub(crate) fn is_from(text: &str, account: &str) -> bool {
    text.contains(&format!("URI=spiffe://cluster.local/ns/default/sa/{account}"))
}

/// Whether the client's sidecar, or the server's, has had a request in its hands.
pub(crate) fn by_any(text: &str) -> bool {
    text.to_ascii_lowercase().contains("x-request-id:")
}

/// Whether two are the addresses that text says a request comes from.
pub(crate) fn says_from(text: &str, address: &str) -> bool {
    text.lines().next() == Some(&format!("from {address}"))
}
