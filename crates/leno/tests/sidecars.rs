//! Unmodified programs in two pods, each a network namespace with redirection and a sidecar (`leno agent`), under a
//! control plane: what they say to each other goes through both sidecars, by mTLS, although they know nothing of it.
//!
//! It takes root, `ip` and `curl`; what is missing is said.

#![cfg(target_os = "linux")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use leno_node::intercept;
use serde_json::json;

/// Nothing takes that long unless it hangs; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
const PROXY: u32 = 1337;
/// The machine that both pods are on.
const NODE: &str = "10.80.0.1";

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Network namespaces of a node and two pods on it.
struct Net(Vec<String>);

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(line: &str) -> Result<(), String> {
    let output = Command::new("ip").args(line.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn net() -> Result<Net, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces take root".to_owned());
    }
    Command::new("curl").arg("--version").output().map_err(|error| format!("curl: {error}"))?;
    let names = ["node", "client", "server"].map(|what| format!("leno{}-{what}", std::process::id()));
    let net = Net(names.to_vec());
    let [node, ..] = &names;
    for name in &names {
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link set lo up"))?;
    }
    ip(&format!("-n {node} addr add {NODE}/32 dev lo"))?;
    for (number, name) in names.iter().enumerate().skip(1) {
        ip(&format!("-n {name} link add eth0 type veth peer name pod{number} netns {node}"))?;
        ip(&format!("-n {name} addr add 10.80.{number}.2/24 dev eth0"))?;
        ip(&format!("-n {node} addr add 10.80.{number}.1/24 dev pod{number}"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {node} link set pod{number} up"))?;
        ip(&format!("-n {name} route add default via 10.80.{number}.1"))?;
    }
    // What is under /proc/sys/net is that of the thread.
    let forward = within(node, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    forward.map_err(|error| format!("forwarding: {error}"))?;
    Ok(net)
}

fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    intercept::within(&Path::new("/var/run/netns").join(name), work).expect("the namespace is there")
}

fn accept(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + Copy + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
}

/// Answers with the head of the request.
fn http(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        head.push(byte[0]);
    }
    let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", head.len());
    let _ = stream.write_all(&head);
}

/// Speaks first, as MySQL does.
fn greet(mut stream: TcpStream) {
    let _ = stream.write_all(b"welcome\n");
    let _ = stream.read(&mut [0]);
}

struct Mesh {
    folder: tempfile::TempDir,
    net: Net,
    running: Vec<Killed>,
}

impl Mesh {
    fn start_in(&mut self, namespace: usize, user: Option<u32>, mut command: Command, log: &str) {
        let log = std::fs::File::create(self.folder.path().join(log)).expect("writable");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let child = within(&self.net.0[namespace], || command.spawn()).expect("it starts");
        self.running.push(Killed(child));
    }

    fn program(&self) -> Command {
        Command::new(self.folder.path().join("leno"))
    }

    fn pilot(&mut self) {
        let mesh = self.folder.path().join("mesh");
        std::fs::create_dir(&mesh).expect("a folder");
        let pod = |name: &str, address: &str| {
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": format!("{name}-0"),
                    "namespace": "default",
                    "labels": { "app": name, "security.istio.io/tlsMode": "istio" },
                },
                "spec": { "serviceAccountName": name, "containers": [{ "name": "app", "image": "app" }] },
                "status": {
                    "phase": "Running",
                    "podIP": address,
                    "podIPs": [{ "ip": address }],
                    "conditions": [{ "type": "Ready", "status": "True" }],
                },
            })
        };
        let objects = [
            pod("client", "10.80.1.2"),
            pod("server", "10.80.2.2"),
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": "server", "namespace": "default" },
                "spec": {
                    "selector": { "app": "server" },
                    "clusterIP": "10.96.0.9",
                    "ports": [
                        { "name": "http", "port": 80, "targetPort": 8080 },
                        { "name": "tcp-first", "port": 3306, "targetPort": 3306 },
                    ],
                },
            }),
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "ServiceEntry",
                "metadata": { "name": "legacy", "namespace": "default" },
                "spec": {
                    "hosts": ["legacy.example"],
                    "addresses": ["10.96.0.50"],
                    "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }],
                    "resolution": "STATIC",
                    "location": "MESH_EXTERNAL",
                    "endpoints": [{ "address": NODE, "ports": { "http": 8081 } }],
                },
            }),
            json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": { "name": "default", "namespace": "default" },
                "spec": { "mtls": { "mode": "STRICT" } },
            }),
        ];
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        std::fs::write(mesh.join("mesh.yaml"), text).expect("writable");
        let mut command = self.program();
        command.args(["pilot", "--grpcAddr=", "--monitoringAddr=127.0.0.1:0", "--dir"]).arg(&mesh);
        command.arg(format!("--secureGRPCAddr={NODE}:15012"));
        command.arg("--joinTokens").arg(self.folder.path().join("tokens"));
        command.env("ROOT_CA_DIR", self.folder.path().join("ca"));
        self.start_in(0, None, command, "pilot.log");
        self.until("there are roots", || self.folder.path().join("ca/roots.pem").exists());
    }

    /// What kubelet and injection do for a pod: its files, its rules, its sidecar.
    fn sidecar(&mut self, namespace: usize, name: &str) {
        let folder = self.folder.path().join(name);
        for part in ["var/run/secrets/istio", "var/run/secrets/tokens", "etc/istio/pod"] {
            std::fs::create_dir_all(folder.join(part)).expect("a folder");
        }
        let secrets = folder.join("var/run/secrets");
        std::fs::copy(self.folder.path().join("ca/roots.pem"), secrets.join("istio/root-cert.pem"))
            .expect("roots");
        let mut token = self.program();
        token
            .args(["token", "create", "--service-account", name, "--dir"])
            .arg(self.folder.path().join("tokens"));
        let token = token.output().expect("it runs");
        assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
        std::fs::write(secrets.join("tokens/istio-token"), token.stdout).expect("writable");
        std::fs::write(folder.join("etc/istio/pod/labels"), format!("app=\"{name}\"\n")).expect("writable");
        own(&folder);

        let mut init = self.program();
        init.args(["agent", "istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"]);
        init.args([
            "-i",
            "*",
            "-x",
            "",
            "-b",
            "*",
            "-d",
            "15090,15021,15020",
            "--redirect-dns",
            "--capture-all-dns",
        ]);
        let done = within(&self.net.0[namespace], || init.output()).expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

        let config = json!({
            "discoveryAddress": format!("{NODE}:15012"),
            "concurrency": 1,
            "terminationDrainDuration": "1s",
        });
        let mut command = self.program();
        command
            .args(["agent", "proxy", "sidecar", "--domain", "default.svc.cluster.local"])
            .current_dir(&folder);
        for (variable, value) in [
            ("POD_NAME", format!("{name}-0")),
            ("POD_NAMESPACE", "default".to_owned()),
            ("INSTANCE_IP", format!("10.80.{namespace}.2")),
            ("SERVICE_ACCOUNT", name.to_owned()),
            ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT".to_owned()),
            ("ISTIO_META_DNS_CAPTURE", "true".to_owned()),
            ("ISTIO_META_WORKLOAD_NAME", name.to_owned()),
            ("ISTIOD_SAN", "istiod.istio-system.svc".to_owned()),
            ("PROXY_CONFIG", config.to_string()),
        ] {
            command.env(variable, value);
        }
        self.start_in(namespace, Some(PROXY), command, &format!("{name}.log"));
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "{what}: it does not come\n{}", self.logs());
            pause();
        }
    }

    fn logs(&self) -> String {
        ["pilot.log", "client.log", "server.log"]
            .map(|name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default())
            .join("\n---\n")
    }

    /// `curl` in a namespace; what it prints, or the code that it ends with. Names are asked of a server that there
    /// is not: questions go to the agent.
    fn curl(&self, namespace: usize, arguments: &[&str]) -> Result<String, i32> {
        let folder = PathBuf::from("/etc/netns").join(&self.net.0[namespace]);
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.net.0[namespace], "curl", "-sS", "--max-time", "10"])
            .args(arguments);
        assert!(folder.join("resolv.conf").exists());
        let output = command.output().expect("it runs");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(output.status.code().unwrap_or(-1))
    }
}

/// What other processes do is looked at again and again.
#[expect(clippy::disallowed_methods, reason = "there is no event to wait for")]
fn pause() {
    thread::sleep(Duration::from_millis(50));
}

/// The proxy's user may write what is in a folder.
fn own(folder: &Path) {
    std::os::unix::fs::chown(folder, Some(PROXY), Some(PROXY)).expect("root may");
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        if entry.path().is_dir() {
            own(&entry.path());
        } else {
            std::os::unix::fs::chown(entry.path(), Some(PROXY), Some(PROXY)).expect("root may");
        }
    }
}

/// Files by which `ip netns exec` gives a namespace its own resolv.conf.
struct Resolvers(Vec<PathBuf>);

impl Resolvers {
    fn new(net: &Net) -> Resolvers {
        let folders = net.0.iter().map(|name| Path::new("/etc/netns").join(name));
        let made = Resolvers(folders.collect());
        for folder in &made.0 {
            std::fs::create_dir_all(folder).expect("root may");
            let text = "nameserver 10.96.0.53\nsearch default.svc.cluster.local svc.cluster.local\n";
            std::fs::write(folder.join("resolv.conf"), text).expect("root may");
        }
        made
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

#[test]
fn programs_that_know_nothing_of_it() {
    let net = match net() {
        Ok(net) => net,
        Err(why) => return println!("skipped: sidecars in network namespaces: {why}"),
    };
    let _resolvers = Resolvers::new(&net);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("ours");
    // Where everybody may run it.
    std::fs::copy(env!("CARGO_BIN_EXE_leno"), folder.path().join("leno")).expect("copied");
    let mut mesh = Mesh { folder, net, running: Vec::new() };

    let (node, client, server) = (mesh.net.0[0].clone(), mesh.net.0[1].clone(), mesh.net.0[2].clone());
    accept(within(&server, || TcpListener::bind("0.0.0.0:8080")).expect("free"), http);
    accept(within(&server, || TcpListener::bind("0.0.0.0:3306")).expect("free"), greet);
    accept(within(&node, || TcpListener::bind("0.0.0.0:8081")).expect("free"), http);
    let datagrams = within(&server, || UdpSocket::bind("0.0.0.0:9999")).expect("free");
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], peer);
        }
    });
    mesh.pilot();
    mesh.sidecar(1, "client");
    mesh.sidecar(2, "server");
    for namespace in [1, 2] {
        let ready = ["-o", "/dev/null", "-f", "http://127.0.0.1:15021/healthz/ready"];
        mesh.until("a sidecar is ready", || mesh.curl(namespace, &ready).is_ok());
    }

    // By name, which the agent knows, through both sidecars: the server's application sees who asks.
    let asked = || mesh.curl(1, &["-f", "http://server/hello"]).unwrap_or_default();
    mesh.until("a request is answered", || asked().starts_with("GET /hello"));
    let head = asked();
    assert!(head.contains("spiffe://cluster.local/ns/default/sa/client"), "{head}");
    assert!(mesh.curl(1, &["-f", "http://server.default.svc.cluster.local/"]).is_ok());
    // Of the address of the pod itself the client's sidecar knows nothing: plain text, which is refused.
    assert!(mesh.curl(1, &["http://10.80.2.2:8080/"]).is_err());

    // One that speaks first.
    let told = within(&client, || {
        let to: SocketAddr = "10.96.0.9:3306".parse().expect("an address");
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting)?;
        Ok::<_, std::io::Error>(greeting)
    });
    assert_eq!(&told.expect("it speaks"), b"welcome\n");

    // Plain text is refused, whether or not the server speaks first.
    assert!(mesh.curl(0, &["http://10.80.2.2:8080/"]).is_err());

    // A name of a ServiceEntry, and what is outside.
    let head = mesh.curl(1, &["-f", "http://legacy.example/out"]).expect("it is answered");
    assert!(head.starts_with("GET /out") && !head.contains("/sa/client"), "{head}");

    // Datagrams are none of the mesh's business.
    let echoed = within(&client, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.send_to(b"ping", "10.80.2.2:9999")?;
        let mut buffer = [0; 8];
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok::<_, std::io::Error>((buffer[..length].to_vec(), from.to_string()))
    });
    assert_eq!(echoed.expect("it comes back"), (b"ping".to_vec(), "10.80.2.2:9999".to_owned()));
}
