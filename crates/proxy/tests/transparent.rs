//! Addresses that only root may use, beside Envoy: upstream connections from the client's address
//! (original_src), connections to any address that the system hands over (TPROXY) or redirects
//! (SO_ORIGINAL_DST). All of it in a network namespace of its own; where that is not allowed, the
//! test says what it skips.
//!
//! The server behind tells who its peer is and what it was sent, up to `END`; a PROXY protocol
//! header in front of that tells what the proxy took for the connection's addresses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

mod support;

use support::{PATIENCE, Proxy};

/// Set in the process that runs in the namespace.
const INSIDE: &str = "TRANSPARENT_INSIDE";
/// Where no packet gets through without this mark.
const MARK: u32 = 123;

#[test]
fn in_a_namespace() {
    let own = std::env::current_exe().expect("an executable");
    let mut command = Command::new("unshare");
    command.arg("--net").arg(own).args(["--exact", "inside", "--nocapture"]).env(INSIDE, "1");
    let skipped = |reason: &str| println!("skipped: addresses of others: {}", reason.trim());
    if !rustix::process::geteuid().is_root() {
        return skipped("this is an ordinary user");
    }
    for program in [["unshare", "--version"], ["ip", "-V"], ["iptables", "--version"]] {
        let [name, argument] = program;
        if Command::new(name).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return skipped(&format!("there is no {name}"));
        }
    }
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        return skipped("no namespace can be made");
    }
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a line in the namespace; what it said if that fails.
fn sh(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).output();
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// What the namespace needs whatever is asked.
fn prepare() -> Result<(), String> {
    for line in [
        "ip link set lo up",
        "ip address add 10.9.0.1/32 dev lo",
        "ip route add 10.9.9.0/24 dev lo",
        // Packets to clients' addresses, and those that TPROXY has marked, come back here.
        "ip route add local 10.1.2.0/24 dev lo table 100",
        "ip rule add iif lo to 10.1.2.0/24 lookup 100",
        "ip route add local default dev lo table 101",
        "ip rule add fwmark 1 lookup 101",
    ] {
        sh(line)?;
    }
    sh(&format!("iptables -A OUTPUT -s 10.1.2.0/24 -m mark ! --mark {MARK} -j DROP"))
}

fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut buffer = [0; 1024];
                while !bytes.ends_with(b"END") {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => break,
                        Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                    }
                }
                let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
                let _ = write!(stream, "{peer} {}", bytes.escape_ascii());
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut buffer);
            });
        }
    });
    address
}

fn bootstrap(server: SocketAddr) -> String {
    let filter = |name: &str, kind: &str, more: Value| {
        let mut config = json!({"@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{kind}")});
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        json!({"name": name, "typed_config": config})
    };
    let proxy_protocol = || filter("proxy_protocol", "ProxyProtocol", json!({}));
    let original_src = |more: Value| filter("original_src", "OriginalSrc", more);
    let listener = |name: &str, filters: Vec<Value>, more: Value| {
        let mut listener = json!({
            "name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "listener_filters": filters,
            "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": name, "cluster": name,
            }}]}],
        });
        if let (Some(listener), Value::Object(more)) = (listener.as_object_mut(), more) {
            listener.extend(more);
        }
        listener
    };
    let listeners = [
        listener("source", vec![proxy_protocol(), original_src(json!({"mark": MARK}))], json!({})),
        listener(
            "port",
            vec![proxy_protocol(), original_src(json!({"mark": MARK, "bind_port": true}))],
            json!({}),
        ),
        listener("unmarked", vec![proxy_protocol(), original_src(json!({}))], json!({})),
        listener(
            "tproxy",
            vec![filter("original_dst", "OriginalDst", json!({}))],
            json!({"transparent": true}),
        ),
        listener("redirect", vec![filter("original_dst", "OriginalDst", json!({}))], json!({})),
    ];
    let told = json!({"name": "proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "config": {"version": "V1"},
        "transport_socket": {"name": "raw", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        }},
    }});
    let clusters = ["source", "port", "unmarked", "tproxy", "redirect"].map(|name| {
        let endpoint =
            json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server.port()}}}});
        json!({
            "name": name, "connect_timeout": "0.5s", "transport_socket": told,
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        })
    });
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
    .to_string()
}

/// Sends bytes from an address of this machine and reads the answer. A port of the system's
/// choice is left out of it.
fn ask(to: SocketAddr, bytes: &str) -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let from = Ipv4Addr::new(10, 9, 0, 1);
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address");
    if let Err(error) = socket.connect_timeout(&to.into(), PATIENCE) {
        return format!("no connection: {error}");
    }
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let own = stream.local_addr().expect("an address").port().to_string();
    let _ = stream.write_all(bytes.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).replace(&format!(" {own} "), " OWN ");
    // The port that the proxy's connection to the server has.
    let Some((peer, rest)) = answer.split_once(' ') else { return answer };
    let (ip, port) = peer.split_once(':').unwrap_or((peer, ""));
    let port = if port == "4096" { port } else { "PORT" };
    format!("{ip}:{port} {rest}")
}

/// What comes of all cases with one proxy.
fn run(name: &'static str, folder: &Path, envoy: Option<&Path>, server: SocketAddr) -> Vec<String> {
    let proxy = Proxy::start(name, folder, envoy, |_| bootstrap(server));
    let mut told = Vec::new();
    let header = "PROXY TCP4 10.1.2.3 5.6.7.8 4096 80\r\nhello END";
    for listener in ["source", "port", "unmarked"] {
        told.push(format!("{listener}: {}", ask(proxy.port(listener), header)));
    }
    let tproxy = format!(
        "iptables -t mangle -A PREROUTING -p tcp -d 10.9.9.9 -j TPROXY --on-ip 127.0.0.1 --on-port {} --tproxy-mark 1",
        proxy.port("tproxy").port()
    );
    let redirect = format!(
        "iptables -t nat -A OUTPUT -p tcp -d 10.9.9.8 -j REDIRECT --to-ports {}",
        proxy.port("redirect").port()
    );
    for (what, rule, to) in [("tproxy", tproxy, [10, 9, 9, 9]), ("redirect", redirect, [10, 9, 9, 8])] {
        match sh(&rule) {
            Ok(()) => told.push(format!("{what}: {}", ask((to, 80).into(), "hello END"))),
            Err(reason) => println!("skipped: {what}: {}", reason.trim()),
        }
        let _ = sh(&rule.replace(" -A ", " -D "));
    }
    proxy.stop();
    told
}

/// Runs in the namespace, and does nothing elsewhere.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    if let Err(reason) = prepare() {
        println!("skipped: addresses of others: {}", reason.trim());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let server = serve();
    let ours = run("ours", folder.path(), None, server);
    let Some(envoy) = leno_testkit::envoy::binary() else { return check(&ours) };
    let envoys = run("envoy", folder.path(), Some(&envoy), server);
    println!("{}", ours.join("\n"));
    // Deviation: Envoy has never implemented `bind_port`.
    let alike = |told: &[String]| -> Vec<String> {
        told.iter().filter(|line| !line.starts_with("port: ")).cloned().collect()
    };
    assert_eq!(alike(&ours), alike(&envoys));
    check(&ours);
}

/// What must come out whoever does it.
fn check(told: &[String]) {
    let wanted = [
        "source: 10.1.2.3:PORT PROXY TCP4 10.1.2.3 5.6.7.8 4096 80\\r\\nhello END",
        "port: 10.1.2.3:4096 PROXY TCP4 10.1.2.3 5.6.7.8 4096 80\\r\\nhello END",
        "unmarked: ",
        "tproxy: 127.0.0.1:PORT PROXY TCP4 10.9.0.1 10.9.9.9 OWN 80\\r\\nhello END",
        "redirect: 127.0.0.1:PORT PROXY TCP4 10.9.0.1 10.9.9.8 OWN 80\\r\\nhello END",
    ];
    for line in told {
        assert!(wanted.contains(&line.as_str()), "{line}");
    }
    assert!(told.len() >= 3);
}
