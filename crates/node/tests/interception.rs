//! Redirection with the rules of a real kernel: two network namespaces, a pod and its neighbour, connections of both
//! families by users that are the proxy's and others', with each back end and in both modes.
//!
//! It takes root, `ip`, and for iptables its programs; what is missing is said.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use leno_node::intercept::validate::{Probe, validate};
use leno_node::intercept::{self, Applied, Choice, Options, Variant};
use leno_node::rules::Family;
use leno_node::{Dns, InboundMode, Redirect};
use rustix::net::sockopt;
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};
use socket2::{Domain, Protocol, Socket, Type};

const PROXY: u32 = 1337;
const APP: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(10);
const TPROXY: InboundMode = InboundMode::Tproxy { mark: 1337, table: 133 };

/// Two network namespaces, linked: the pod has the address .2 (::2), its neighbour .1 (::1), which is its gateway.
struct Net {
    pod: String,
    other: String,
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [&self.pod, &self.other] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// The namespaces; without them the reason is printed.
fn net() -> Option<Net> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !rustix::process::geteuid().is_root() {
        println!("skipped: redirection in network namespaces takes root");
        return None;
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = |what: &str| format!("leno{}-{number}-{what}", std::process::id());
    let net = Net { pod: name("pod"), other: name("other") };
    let (pod, other) = (&net.pod, &net.other);
    let lines = [
        format!("netns add {pod}"),
        format!("netns add {other}"),
        format!("-n {pod} link add eth0 type veth peer name eth0 netns {other}"),
        format!("-n {pod} link set lo up"),
        format!("-n {other} link set lo up"),
        format!("-n {pod} addr add 10.77.0.2/24 dev eth0"),
        format!("-n {other} addr add 10.77.0.1/24 dev eth0"),
        format!("-n {pod} addr add fd77::2/64 dev eth0 nodad"),
        format!("-n {other} addr add fd77::1/64 dev eth0 nodad"),
        format!("-n {pod} link set eth0 up"),
        format!("-n {other} link set eth0 up"),
        format!("-n {pod} route add default via 10.77.0.1"),
        format!("-n {pod} route add default via fd77::1"),
    ];
    for line in lines {
        match Command::new("ip").args(line.split(' ')).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                println!("skipped: ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
                return None;
            }
            Err(error) => {
                println!("skipped: ip: {error}");
                return None;
            }
        }
    }
    Some(net)
}

fn path(namespace: &str) -> PathBuf {
    Path::new("/var/run/netns").join(namespace)
}

/// Runs a closure in a namespace as a user (and the group of that number).
fn inside<T: Send>(namespace: &str, user: u32, work: impl FnOnce() -> T + Send) -> T {
    let done = intercept::within(&path(namespace), || {
        if user != 0 {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            set_thread_res_gid(gid, gid, gid).expect("root may");
            set_thread_res_uid(uid, uid, uid).expect("root may");
        }
        work()
    });
    done.expect("the namespace is there")
}

/// A server that tells each client its own name, where the connection was meant to go, and from where it came.
fn serve(namespace: &str, user: u32, address: &str, name: &'static str, transparent: bool) {
    let address: SocketAddr = address.parse().expect("an address");
    let listener: TcpListener = inside(namespace, user, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        if transparent {
            // It holds for both families.
            socket.set_ip_transparent_v4(true).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket.listen(128).unwrap();
        socket.into()
    });
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let local = stream.local_addr().expect("an address");
            let original = if local.is_ipv4() {
                sockopt::ip_original_dst(&stream).map(SocketAddr::V4)
            } else {
                sockopt::ipv6_original_dst(&stream).map(SocketAddr::V6)
            };
            let meant = original.unwrap_or(local);
            let from =
                stream.peer_addr().map_or_else(|error| error.to_string(), |peer| peer.ip().to_string());
            let _ = stream.read(&mut [0]);
            let _ = write!(stream, "{name}, meant for {meant}, from {from}");
        }
    });
}

/// The same for datagrams.
fn serve_datagrams(namespace: &str, user: u32, address: &str, name: &'static str) {
    let address: SocketAddr = address.parse().expect("an address");
    let socket: UdpSocket = inside(namespace, user, || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP)).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket.into()
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name}, from {}", peer.ip()).as_bytes(), peer);
        }
    });
}

fn connect(namespace: &str, user: u32, source: Option<&str>, address: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address");
    let connected = inside(namespace, user, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = source {
            let source: IpAddr = source.parse().expect("an address");
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Ok::<_, std::io::Error>(TcpStream::from(socket))
    });
    let told = connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        Ok(told)
    });
    told.unwrap_or_else(|error| error.to_string())
}

fn ask(namespace: &str, user: u32, address: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address");
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let told = inside(namespace, user, || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        Ok::<_, std::io::Error>(socket)
    })
    .and_then(|socket| {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"x")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    told.unwrap_or_else(|error| error.to_string())
}

/// What addresses are called, of each family.
struct Names {
    pod: &'static str,
    other: &'static str,
    service: &'static str,
    name_server: &'static str,
    loopback: &'static str,
    inbound_source: &'static str,
    any: &'static str,
    excluded: &'static str,
}

const V4: Names = Names {
    pod: "10.77.0.2",
    other: "10.77.0.1",
    service: "10.96.0.10",
    name_server: "10.96.0.53",
    loopback: "127.0.0.1",
    inbound_source: "127.0.0.6",
    any: "0.0.0.0",
    excluded: "10.77.1.1",
};

const V6: Names = Names {
    pod: "[fd77::2]",
    other: "[fd77::1]",
    service: "[fd96::10]",
    name_server: "[fd96::53]",
    loopback: "[::1]",
    inbound_source: "::6",
    any: "[::]",
    excluded: "[fd77:1::1]",
};

fn redirect(mode: InboundMode) -> Redirect {
    Redirect {
        mode,
        exclude_outbound_ports: vec![5432],
        exclude_outbound_cidrs: vec!["10.77.1.0/24".parse().unwrap(), "fd77:1::/64".parse().unwrap()],
        dns: Dns::All,
        ipv6: true,
        ..Redirect::default()
    }
}

fn apply(net: &Net, redirect: &Redirect, options: Options) -> Result<Applied, String> {
    inside(&net.pod, 0, || intercept::apply(redirect, &options)).map_err(|error| error.to_string())
}

/// An excluded range needs somebody in it.
fn more_addresses(net: &Net) {
    for line in ["addr add 10.77.1.1/32 dev eth0", "addr add fd77:1::1/128 dev eth0 nodad"] {
        let arguments = ["-n", &net.other].into_iter().chain(line.split(' '));
        assert!(Command::new("ip").args(arguments).status().expect("ip is there").success());
    }
}

fn servers(net: &Net, mode: InboundMode) {
    for names in [&V4, &V6] {
        let (any, loopback) = (names.any, names.loopback);
        serve(&net.pod, PROXY, &format!("{any}:15001"), "outbound", false);
        serve(&net.pod, 0, &format!("{any}:15006"), "inbound", mode != InboundMode::Redirect);
        serve(&net.pod, APP, &format!("{any}:9080"), "app", false);
        serve(&net.pod, PROXY, &format!("{any}:15021"), "status", false);
        serve(&net.pod, APP, &format!("{loopback}:7000"), "local", false);
        serve(&net.pod, PROXY, &format!("{loopback}:15053"), "agent", false);
        serve_datagrams(&net.pod, PROXY, &format!("{loopback}:15053"), "agent");
        serve(&net.other, APP, &format!("{any}:9080"), "other", false);
        serve(&net.other, APP, &format!("{any}:5432"), "other", false);
        serve_datagrams(&net.other, 0, &format!("{any}:53"), "other");
        serve_datagrams(&net.other, 0, &format!("{any}:1234"), "other");
    }
}

/// All that is to be so when the rules are in place.
fn check_all(net: &Net, names: &Names, label: &str) {
    let &Names { pod, other, service, name_server, loopback, inbound_source, any: _, excluded } = names;
    let bare = |address: &str| address.trim_matches(['[', ']']).to_owned();
    let (pod_ip, other_ip) = (bare(pod), bare(other));
    let check = |what: &str, told: String, expected: String| assert_eq!(told, expected, "{label}: {what}");
    let from_pod = |user: u32, to: &str| connect(&net.pod, user, None, to);

    check(
        "the application to a service",
        from_pod(APP, &format!("{service}:80")),
        format!("outbound, meant for {service}:80, from {pod_ip}"),
    );
    check(
        "the application to another pod",
        from_pod(APP, &format!("{other}:9080")),
        format!("outbound, meant for {other}:9080, from {pod_ip}"),
    );
    check(
        "the proxy to another pod",
        from_pod(PROXY, &format!("{other}:9080")),
        format!("other, meant for {other}:9080, from {pod_ip}"),
    );
    check(
        "over loopback",
        from_pod(APP, &format!("{loopback}:7000")),
        format!("local, meant for {loopback}:7000, from {}", bare(loopback)),
    );
    check(
        "the proxy over loopback",
        from_pod(PROXY, &format!("{loopback}:7000")),
        format!("local, meant for {loopback}:7000, from {}", bare(loopback)),
    );
    check(
        "the application to itself",
        from_pod(APP, &format!("{pod}:9080")),
        format!("app, meant for {pod}:9080, from {pod_ip}"),
    );
    check(
        "the proxy to its own pod, on the inbound side",
        from_pod(PROXY, &format!("{pod}:9080")),
        format!("inbound, meant for {pod}:9080, from {pod_ip}"),
    );
    check(
        "what is handed over to the application",
        connect(&net.pod, PROXY, Some(inbound_source), &format!("{pod}:9080")),
        format!("app, meant for {pod}:9080, from {inbound_source}"),
    );
    check(
        "another pod to the application",
        connect(&net.other, APP, None, &format!("{pod}:9080")),
        format!("inbound, meant for {pod}:9080, from {other_ip}"),
    );
    check(
        "an inbound port that is excluded",
        connect(&net.other, APP, None, &format!("{pod}:15021")),
        format!("status, meant for {pod}:15021, from {other_ip}"),
    );
    check(
        "an outbound port that is excluded",
        from_pod(APP, &format!("{other}:5432")),
        format!("other, meant for {other}:5432, from {pod_ip}"),
    );
    check(
        "a range that is excluded",
        from_pod(APP, &format!("{excluded}:9080")),
        format!("other, meant for {excluded}:9080, from {pod_ip}"),
    );
    check("datagrams", ask(&net.pod, APP, &format!("{other}:1234")), format!("other, from {pod_ip}"));
    check(
        "a question for a name",
        ask(&net.pod, APP, &format!("{name_server}:53")),
        format!("agent, from {pod_ip}"),
    );
    check(
        "a question for a name over TCP",
        from_pod(APP, &format!("{name_server}:53")),
        format!("agent, meant for {name_server}:53, from {pod_ip}"),
    );
    check(
        "the agent's question",
        ask(&net.pod, PROXY, &format!("{other}:53")),
        format!("other, from {pod_ip}"),
    );
}

/// The back ends that are there.
fn backends() -> Vec<Choice> {
    let found = |name: &str| {
        let there = Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
        if !there {
            println!("skipped: redirection by {name}: there is no such program");
        }
        there
    };
    let mut backends = vec![Choice::Nftables];
    if found("iptables-nft") {
        backends.push(Choice::Iptables(Some(Variant::Nft)));
    }
    if found("iptables-legacy") {
        backends.push(Choice::Iptables(Some(Variant::Legacy)));
    }
    backends
}

fn everything(mode: InboundMode) {
    for backend in backends() {
        let Some(net) = net() else { return };
        let label = format!("{backend:?}, {mode:?}");
        more_addresses(&net);
        servers(&net, mode);
        let redirect = redirect(mode);
        let options = Options { backend, ..Options::default() };
        match apply(&net, &redirect, options) {
            Ok(applied) => assert!(applied.changed, "{label}"),
            Err(error) if backend != Choice::Nftables => {
                println!("skipped: redirection by {backend:?}: {error}");
                continue;
            }
            Err(error) => panic!("{label}: {error}"),
        }
        for names in [&V4, &V6] {
            check_all(&net, names, &label);
        }
        assert!(!apply(&net, &redirect, options).expect("again").changed, "{label}: once is enough");
        inside(&net.pod, 0, || intercept::check(&redirect, backend)).expect("they are there");

        let other = Redirect { exclude_outbound_ports: vec![5433], ..redirect.clone() };
        inside(&net.pod, 0, || intercept::check(&other, backend)).expect_err("others are not");
        let replaced = apply(&net, &other, Options { reconcile: true, ..options }).expect("replaced");
        assert!(replaced.changed, "{label}");
        let told = connect(&net.pod, APP, None, "10.77.0.1:5432");
        assert_eq!(told, "outbound, meant for 10.77.0.1:5432, from 10.77.0.2", "{label}");

        inside(&net.pod, 0, || intercept::remove(&other, backend)).expect("removed");
        inside(&net.pod, 0, || intercept::check(&other, backend)).expect_err("nothing is there");
        for names in [&V4, &V6] {
            let told = connect(&net.pod, APP, None, &format!("{}:9080", names.other));
            assert!(told.starts_with("other, "), "{label}: {told}");
        }
        for family in ["-4", "-6"] {
            let rules =
                Command::new("ip").args([family, "-n", &net.pod, "rule"]).output().expect("ip is there");
            assert!(!String::from_utf8_lossy(&rules.stdout).contains("fwmark"), "{label}: rules of routes");
        }
        inside(&net.pod, 0, || intercept::remove(&other, backend)).expect("twice is fine");
    }
}

#[test]
fn redirect_mode() {
    everything(InboundMode::Redirect);
}

#[test]
fn tproxy_mode() {
    everything(TPROXY);
}

/// While rules are put in place again and again, and replaced by others, nothing gets past the proxy.
#[test]
fn rules_are_replaced_without_a_gap() {
    // The two of iptables differ in nothing that matters here.
    for backend in backends().into_iter().take(2) {
        let Some(net) = net() else { return };
        servers(&net, InboundMode::Redirect);
        let redirect = redirect(InboundMode::Redirect);
        let other = Redirect { exclude_outbound_ports: vec![1], ..redirect.clone() };
        let options = Options { backend, force: true, reconcile: true };
        if let Err(error) = apply(&net, &redirect, options) {
            assert_ne!(backend, Choice::Nftables, "{error}");
            println!("skipped: redirection by {backend:?}: {error}");
            continue;
        }
        let over = Arc::new(AtomicBool::new(false));
        let ways = [
            (&net.pod, "10.77.0.1:9080", "outbound, ", "other"),
            (&net.pod, "[fd77::1]:9080", "outbound, ", "other"),
            (&net.other, "10.77.0.2:9080", "inbound, ", "app"),
            (&net.other, "[fd77::2]:9080", "inbound, ", "app"),
        ];
        let clients: Vec<_> = ways
            .map(|(from, address, proxy, past)| {
                let (over, from) = (Arc::clone(&over), from.clone());
                thread::spawn(move || {
                    let mut connections = 0;
                    while !over.load(Ordering::Relaxed) {
                        let told = connect(&from, APP, None, address);
                        // With iptables nothing at all passes for a moment.
                        let fine = told.starts_with(proxy)
                            || (backend != Choice::Nftables && !told.starts_with(past));
                        assert!(fine, "{backend:?}: {told}");
                        connections += 1;
                    }
                    connections
                })
            })
            .into_iter()
            .collect();
        let rounds = if backend == Choice::Nftables { 50 } else { 1 };
        for _ in 0..rounds {
            apply(&net, &other, options).expect("others");
            apply(&net, &redirect, options).expect("and back");
        }
        over.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().expect("no connection got past the proxy") > 0);
        }
    }
}

/// With nobody listening where TPROXY leads, connections do not come to the application instead.
#[test]
fn no_proxy_no_connection() {
    for mode in [InboundMode::Redirect, TPROXY] {
        for backend in backends() {
            let Some(net) = net() else { return };
            serve(&net.pod, APP, "0.0.0.0:9080", "app", false);
            let options = Options { backend, ..Options::default() };
            if let Err(error) = apply(&net, &redirect(mode), options) {
                assert_ne!(backend, Choice::Nftables, "{error}");
                println!("skipped: redirection by {backend:?}: {error}");
                continue;
            }
            let refused = inside(&net.other, APP, || {
                let address: SocketAddr = "10.77.0.2:9080".parse().expect("an address");
                TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err()
            });
            assert!(refused, "{backend:?}, {mode:?}: it came to the application");
        }
    }
}

/// As `istio-validation` does it: as the proxy's user, without any rights.
#[test]
fn validation_tells_whether_rules_are_there() {
    let Some(net) = net() else { return };
    let redirect = redirect(InboundMode::Redirect);
    for family in Family::ALL {
        let probe = |patience| Probe { port: 15002, patience, family };
        let short = Duration::from_millis(300);
        inside(&net.pod, PROXY, || validate(&redirect, probe(short))).expect_err("there are no rules");
    }
    apply(&net, &redirect, Options::default()).expect("applied");
    for family in Family::ALL {
        let probe = Probe { port: 15002, patience: PATIENCE, family };
        inside(&net.pod, PROXY, || validate(&redirect, probe)).expect("there are rules");
    }
}
