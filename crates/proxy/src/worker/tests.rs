//! A worker with lowered listeners and clusters, and connections that really come in.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_base::drain::Phase;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::Worker;
use crate::cluster::{Cluster, Discovery};
use crate::fixtures::{assignment, at_port, cluster, listener, tcp_filters};
use crate::io::Socket;
use crate::listener::accept::{GlobalConnections, ListenSocket, accept_loop, serve};
use crate::listener::sockets::Sockets;
use crate::listener::{ListenAddress, Listener};
use crate::snapshot::Snapshot;
use crate::telemetry::stats::StatsStore;

/// A worker on the test's own thread.
struct Proxy {
    worker: Rc<Worker>,
    stats: Arc<StatsStore>,
    sockets: RefCell<Sockets>,
    snapshot: RefCell<Snapshot>,
}

impl Proxy {
    fn new(limit: Option<u64>) -> Self {
        let stats = Arc::new(StatsStore::default());
        let worker = Rc::new(Worker::new(stats.thread(), GlobalConnections::new(limit)));
        Self { worker, stats, sockets: RefCell::new(Sockets::new(1)), snapshot: RefCell::default() }
    }

    /// Changes the configuration and has the worker adopt it.
    fn adopt(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot.borrow_mut());
        let snapshot = self.snapshot.borrow().clone();
        let mut sockets = self.sockets.borrow_mut();
        for listener in snapshot.listeners.values() {
            sockets.bind(listener).expect("a port");
        }
        let taken = sockets.take(snapshot.listeners.values().map(|listener| &**listener)).remove(0);
        self.worker.adopt(Arc::new(snapshot), taken);
    }

    fn address(&self, listener: &str) -> SocketAddr {
        match self.sockets.borrow().addresses(listener) {
            [ListenAddress::Ip(address)] => *address,
            other => panic!("{other:?}"),
        }
    }

    /// The value of a counter or gauge, by full name.
    fn stat(&self, name: &str) -> u64 {
        let blocks = self.stats.blocks();
        let cells = blocks.iter().flat_map(|block| {
            let names = block.schema().0.iter().enumerate();
            let named = names.filter(|(_, (stat, _))| format!("{}{stat}", block.prefix()) == name);
            named.map(|(index, _)| block.cell(index).value())
        });
        cells.sum()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// Lets other tasks run until the condition holds; a test that hangs here has failed.
async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the condition comes true");
}

/// A server that says `name` to whoever connects and then echoes.
async fn upstream(name: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::task::spawn_local(async move {
                let (mut read, mut write) = stream.split();
                let _ = write.write_all(name.as_bytes()).await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

fn add_cluster(snapshot: &mut Snapshot, cluster: Cluster, address: SocketAddr) {
    assert!(matches!(cluster.discovery, Discovery::Static(_)));
    snapshot.endpoints.insert(cluster.name.clone(), assignment(&[&address.to_string()]));
    snapshot.clusters.insert(cluster.name.clone(), Arc::new(cluster));
}

fn add_listener(snapshot: &mut Snapshot, text: &str) {
    let name: &str =
        text.strip_prefix("name: ").and_then(|rest| rest.split(',').next()).expect("a name first");
    let listener = listener(text, snapshot.listeners.get(name).map(|previous| &**previous));
    snapshot.listeners.insert(listener.name.clone(), listener);
}

fn simple(name: &str, more: &str, chains: &str) -> String {
    format!("name: {name}, stat_prefix: {name}, {}, {more} filter_chains: [{chains}]", at_port(0))
}

/// A chain to a cluster, for connections from this source address.
fn chain(name: &str, cluster: &str, source: &str) -> String {
    let filters = tcp_filters(&format!("cluster: {cluster}"));
    format!(
        "{{name: {name}, filter_chain_match: {{source_prefix_ranges: [{{address_prefix: {source}, prefix_len: 32}}]}}, \
         {filters}}}"
    )
}

async fn said(stream: &mut TcpStream, bytes: usize) -> String {
    let mut text = vec![0; bytes];
    stream.read_exact(&mut text).await.expect("as many bytes");
    String::from_utf8(text).expect("text")
}

async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{source}:0").parse().expect("an address")).expect("a port");
    socket.connect(to).await.expect("a connection")
}

#[test]
fn an_update_drains_only_the_chains_that_it_removes() {
    run(async {
        let proxy = Proxy::new(None);
        let (one, two) = (upstream("one").await, upstream("two").await);
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            add_cluster(snapshot, cluster("name: two, connect_timeout: 1s"), two);
            let chains = [chain("a", "one", "127.0.0.1"), chain("b", "two", "127.0.0.2")].join(", ");
            add_listener(snapshot, &simple("l", "", &chains));
        });
        let address = proxy.address("l");
        let mut first = connect_from("127.0.0.1", address).await;
        let mut second = connect_from("127.0.0.2", address).await;
        assert_eq!(said(&mut first, 3).await, "one");
        assert_eq!(said(&mut second, 3).await, "two");
        let before = proxy.worker.listener("l").expect("the listener");
        assert_eq!(before.connections(), 2);

        proxy.adopt(|snapshot| {
            let chains = [chain("a", "one", "127.0.0.1"), chain("b", "one", "127.0.0.2")].join(", ");
            add_listener(snapshot, &simple("l", "", &chains));
        });
        assert_eq!(proxy.address("l"), address, "the socket stays");
        let changed = proxy.worker.listener("l").expect("the listener");
        assert_eq!((before.connections(), changed.connections()), (0, 2), "a changed chain goes on");
        // Its sessions keep their cluster, new ones go to the new one.
        let mut third = connect_from("127.0.0.2", address).await;
        assert_eq!(said(&mut third, 3).await, "one");
        drop(third);
        until(|| changed.connections() == 2).await;

        proxy.adopt(|snapshot| {
            let chains = [chain("a", "one", "127.0.0.1"), chain("c", "one", "127.0.0.3")].join(", ");
            add_listener(snapshot, &simple("l", "", &chains));
        });
        let after = proxy.worker.listener("l").expect("the listener");
        assert_eq!((changed.connections(), after.connections()), (1, 1));
        // TCP goes on while its chain drains, and ends with the drain time.
        second.write_all(b"still").await.expect("sent");
        assert_eq!(said(&mut second, 5).await, "still");
        proxy.worker.leaving.borrow().iter().for_each(|(_, old)| old.drain(Phase::Closing));
        assert_eq!(second.read(&mut [0]).await.expect("an orderly end"), 0);
        first.write_all(b"untouched").await.expect("sent");
        assert_eq!(said(&mut first, 9).await, "untouched");
        until(|| changed.connections() == 0).await;
        assert_eq!(after.connections(), 1);
    });
}

#[test]
fn connections_of_a_removed_listener_end_with_the_drain_time() {
    run(async {
        let worker = Worker::new(StatsStore::default().thread(), GlobalConnections::new(None));
        let at_once = super::DrainPolicy { time: Duration::ZERO, immediate: true };
        let proxy = Proxy { worker: Rc::new(worker.with_drain_policy(at_once)), ..Proxy::new(None) };
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            add_listener(snapshot, &simple("l", "", &chain("a", "one", "127.0.0.1")));
        });
        let address = proxy.address("l");
        let mut client = TcpStream::connect(address).await.expect("a connection");
        assert_eq!(said(&mut client, 3).await, "one");
        proxy.adopt(|snapshot| snapshot.listeners.clear());
        assert_eq!(client.read(&mut [0]).await.expect("an orderly end"), 0);
        assert!(proxy.worker.listener("l").is_none());
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), refused).await.expect("nobody listens");
    });
}

#[test]
fn a_changed_cluster_goes_on_counting() {
    run(async {
        let proxy = Proxy::new(None);
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            add_listener(snapshot, &simple("l", "", &chain("a", "one", "127.0.0.1")));
        });
        for (round, timeout) in [(1, 2), (2, 3)] {
            let mut client = TcpStream::connect(proxy.address("l")).await.expect("a connection");
            assert_eq!(said(&mut client, 3).await, "one");
            drop(client);
            until(|| proxy.stat("cluster.one.upstream_cx_active") == 0).await;
            proxy.adopt(|snapshot| {
                add_cluster(snapshot, cluster(&format!("name: one, connect_timeout: {timeout}s")), one);
            });
            assert_eq!(proxy.stat("cluster.one.upstream_cx_total"), round);
            assert_eq!(proxy.stat("tcp.t.downstream_cx_total"), round);
            assert_eq!(proxy.stat("listener.l.downstream_cx_total"), round);
        }
    });
}

#[test]
fn no_more_connections_than_the_global_limit() {
    run(async {
        let proxy = Proxy::new(Some(1));
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            add_listener(snapshot, &simple("l", "", &chain("a", "one", "127.0.0.1")));
        });
        let mut first = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(said(&mut first, 3).await, "one");
        let mut second = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "closed at once");
        assert_eq!(proxy.stat("listener.l.downstream_global_cx_overflow"), 1);
        drop(first);
        until(|| proxy.stat("listener.l.downstream_cx_active") == 0).await;
        let mut third = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(said(&mut third, 3).await, "one");
    });
}

#[test]
fn listeners_that_stopped_do_not_start_again_with_an_update() {
    run(async {
        let proxy = Proxy::new(None);
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            add_listener(
                snapshot,
                &simple("in", "traffic_direction: INBOUND,", &chain("a", "one", "127.0.0.1")),
            );
            add_listener(
                snapshot,
                &simple("out", "traffic_direction: OUTBOUND,", &chain("a", "one", "127.0.0.1")),
            );
        });
        let accepting = || {
            let accepting = proxy.worker.accepting.borrow();
            let mut names: Vec<Name> = accepting.keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(accepting(), ["in".into(), "out".into()] as [Name; 2]);
        proxy.worker.stop_listening(true);
        assert_eq!(accepting(), ["out".into()] as [Name; 1]);
        proxy.adopt(|snapshot| {
            let more = "traffic_direction: INBOUND, tcp_backlog_size: 5,";
            add_listener(snapshot, &simple("in", more, &chain("a", "one", "127.0.0.1")));
        });
        assert_eq!(accepting(), ["out".into()] as [Name; 1]);
        // One that does not bind any more stops too.
        proxy.adopt(|snapshot| {
            let more = "traffic_direction: OUTBOUND, bind_to_port: false,";
            add_listener(snapshot, &simple("out", more, &chain("a", "one", "127.0.0.1")));
        });
        assert_eq!(accepting(), [] as [Name; 0]);
    });
}

fn listener_at(name: &str, address: &str, port: u16) -> Arc<Listener> {
    let filters = tcp_filters("cluster: a");
    let text = format!(
        "name: {name}, bind_to_port: false, address: {{socket_address: {{address: '{address}', port_value: {port}}}}}, \
         filter_chains: [{{{filters}}}]"
    );
    listener(&text, None)
}

#[test]
fn a_destination_finds_its_very_address_before_any() {
    let worker = Rc::new(Worker::new(StatsStore::default().thread(), GlobalConnections::new(None)));
    let mut snapshot = Snapshot::default();
    for (name, address, port) in [
        ("any", "0.0.0.0", 80),
        ("exact", "10.0.0.1", 80),
        ("other port", "10.0.0.1", 81),
        ("any6", "::", 80),
    ] {
        snapshot.listeners.insert(name.into(), listener_at(name, address, port));
    }
    worker.adopt(Arc::new(snapshot), Vec::new());
    let check = |address: &str, expected: Option<&str>| {
        let found = worker.listener_for_destination(address.parse().expect("an address"));
        let found = found.map(|listener| listener.config.name.to_string());
        assert_eq!(found.as_deref(), expected, "{address}");
    };
    check("10.0.0.1:80", Some("exact"));
    check("10.0.0.2:80", Some("any"));
    check("10.0.0.1:81", Some("other port"));
    check("10.0.0.2:81", None);
    check("[fd00::1]:80", Some("any6"));
    worker.adopt(Arc::default(), Vec::new());
    check("10.0.0.1:80", None);
}

/// A connection that looks as if it had been redirected from `original`.
async fn redirected(proxy: &Proxy, listener: &str, original: &str) -> TcpStream {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    let client = TcpStream::connect(address).await.expect("a connection");
    let (stream, remote) = socket.accept().await.expect("it");
    let listener = proxy.worker.listener(listener).expect("the listener");
    let original = Some(original.parse().expect("an address"));
    tokio::task::spawn_local(serve(
        Rc::clone(&proxy.worker),
        listener,
        Socket::Tcp(stream),
        remote,
        address,
        original,
    ));
    client
}

const INSPECTOR: &str = "listener_filters: [{name: http, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}],";

#[test]
fn redirected_connections_are_handed_over_and_inspected_there() {
    run(async {
        let proxy = Proxy::new(None);
        let (one, two, http) = (upstream("one").await, upstream("two").await, upstream("http").await);
        proxy.adopt(|snapshot| {
            for (name, address) in [("one", one), ("two", two), ("http", http)] {
                add_cluster(snapshot, cluster(&format!("name: {name}, connect_timeout: 1s")), address);
            }
            add_listener(snapshot, &simple("capture", "use_original_dst: true,", &chain("a", "one", "127.0.0.1")));
            let tcp = |cluster: &str| tcp_filters(&format!("cluster: {cluster}"));
            let chains = format!(
                "{{name: h, filter_chain_match: {{application_protocols: [http/1.1]}}, {}}}, {{name: t, {}}}",
                tcp("http"),
                tcp("two")
            );
            let address = "address: {socket_address: {address: 10.9.9.9, port_value: 80}}";
            let text = format!(
                "name: target, stat_prefix: target, bind_to_port: false, {INSPECTOR} {address}, filter_chains: [{chains}]"
            );
            add_listener(snapshot, &text);
        });
        let mut client = redirected(&proxy, "capture", "10.9.9.9:80").await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        assert_eq!(said(&mut client, 4 + 18).await, "httpGET / HTTP/1.1\r\n\r\n");
        let mut client = redirected(&proxy, "capture", "10.9.9.9:80").await;
        client.write_all(b"plain\n").await.expect("sent");
        assert_eq!(said(&mut client, 9).await, "twoplain\n");
        // Nobody has this one: the capturing listener serves it itself.
        let mut client = redirected(&proxy, "capture", "10.9.9.8:80").await;
        assert_eq!(said(&mut client, 3).await, "one");
        assert_eq!(proxy.stat("listener.target.downstream_cx_total"), 2);
        assert_eq!(proxy.stat("listener.capture.downstream_cx_total"), 1);
    });
}

#[test]
fn a_connection_that_says_nothing_times_out_or_goes_on() {
    run(async {
        let proxy = Proxy::new(None);
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            let timeout = format!("{INSPECTOR} listener_filters_timeout: 0.02s,");
            add_listener(snapshot, &simple("closes", &timeout, &chain("a", "one", "127.0.0.1")));
            let goes_on = format!("{timeout} continue_on_listener_filters_timeout: true,");
            add_listener(snapshot, &simple("goes_on", &goes_on, &chain("a", "one", "127.0.0.1")));
        });
        let mut client = TcpStream::connect(proxy.address("closes")).await.expect("a connection");
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
        let mut client = TcpStream::connect(proxy.address("goes_on")).await.expect("a connection");
        assert_eq!(said(&mut client, 3).await, "one");
        assert_eq!(proxy.stat("listener.closes.downstream_pre_cx_timeout"), 1);
        assert_eq!(proxy.stat("listener.goes_on.downstream_pre_cx_timeout"), 1);
        assert_eq!(proxy.stat("listener.closes.downstream_cx_total"), 0);
        assert_eq!(proxy.stat("listener.goes_on.downstream_pre_cx_active"), 0);
    });
}

#[test]
fn an_accept_loop_serves_a_unix_socket() {
    run(async {
        let proxy = Proxy::new(None);
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            let filters = tcp_filters("cluster: one");
            add_listener(snapshot, &simple("l", "", &format!("{{{filters}}}")));
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let socket = tokio::net::UnixListener::bind(&path).expect("a socket");
        tokio::task::spawn_local(accept_loop(
            Rc::clone(&proxy.worker),
            "l".into(),
            ListenSocket::Unix(socket),
        ));
        let mut client = tokio::net::UnixStream::connect(&path).await.expect("a connection");
        let mut text = [0; 3];
        client.read_exact(&mut text).await.expect("three bytes");
        assert_eq!(&text, b"one");
    });
}

/// A server that sends back, behind a space, what came first.
async fn repeater() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::task::spawn_local(async move {
                let mut bytes = Vec::new();
                while !bytes.ends_with(b"!") && matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {}
                let _ = stream.write_all(bytes.escape_ascii().to_string().as_bytes()).await;
            });
        }
    });
    address
}

const PROXY_PROTOCOL: &str = "listener_filters: [{name: pp, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, \
    stat_prefix: p, pass_through_tlvs: {match_type: INCLUDE_ALL}, disallowed_versions: [V1]}}],";

fn with_header(version: &str) -> String {
    format!(
        "name: one, connect_timeout: 1s, transport_socket: {{name: pp, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, \
         config: {{version: {version}, pass_through_tlvs: {{match_type: INCLUDE, tlv_type: [224]}}, added_tlvs: [{{type: 238, value: b3du}}]}}, \
         transport_socket: {{name: raw, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}}}"
    )
}

#[test]
fn proxy_protocol_headers_are_read_and_written() {
    run(async {
        let proxy = Proxy::new(None);
        let one = repeater().await;
        let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02\xe0\0\x01x\xe1\0\x01y";
        for (version, expected) in [
            ("V1", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\\r\\nhello!"),
            (
                "V2",
                "\\r\\n\\r\\n\\x00\\r\\nQUIT\\n!\\x11\\x00\\x16\\x01\\x02\\x03\\x04\\x05\\x06\\x07\\x08\\x00\\x01\\x00\\x02\\xee\\x00\\x03own\\xe0\\x00\\x01xhello!",
            ),
        ] {
            proxy.adopt(|snapshot| {
                add_cluster(snapshot, cluster(&with_header(version)), one);
                add_listener(snapshot, &simple("l", PROXY_PROTOCOL, &chain("a", "one", "1.2.3.4")));
            });
            let mut client = TcpStream::connect(proxy.address("l")).await.expect("a connection");
            client.write_all(header).await.expect("sent");
            client.write_all(b"hello!").await.expect("sent");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("an answer");
            assert_eq!(answer, expected);
        }
        assert_eq!(proxy.stat("proxy_proto.p.versions.v2.found"), 2);
        for (bytes, stat) in [
            (&b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"[..], "proxy_proto.p.versions.v1.disallowed"),
            (b"GET / HTTP/1.1\r\n", "proxy_proto.p.not_found_disallowed"),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0", "proxy_proto.p.versions.v2.error"),
        ] {
            let mut client = TcpStream::connect(proxy.address("l")).await.expect("a connection");
            client.write_all(bytes).await.expect("sent");
            assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
            assert_eq!(proxy.stat(stat), 1, "{stat}");
        }
        assert_eq!(proxy.stat("listener.l.downstream_listener_filter_error"), 3);
    });
}

#[test]
fn network_filters_see_a_connection_in_front_of_the_last_one() {
    run(async {
        let proxy = Proxy::new(None);
        let filters = |last: &str| {
            format!(
                "{{filters: [{{name: limit, typed_config: {{'@type': \
                 type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: c, \
                 max_connections: 1}}}}, {{name: last, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.\
                 network.{last}}}}}]}}"
            )
        };
        proxy.adopt(|snapshot| {
            add_listener(snapshot, &simple("l", "", &filters("echo.v3.Echo")));
            let response = "direct_response.v3.Config, response: {inline_string: away}";
            add_listener(snapshot, &simple("d", "", &filters(response)));
        });
        let mut first = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        first.write_all(b"echo").await.expect("sent");
        assert_eq!(said(&mut first, 4).await, "echo");
        let mut second = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "one is the limit");
        assert_eq!(proxy.stat("connection_limit.c.limited_connections"), 1);
        drop(first);
        until(|| proxy.stat("connection_limit.c.active_connections") == 0).await;
        let mut third = TcpStream::connect(proxy.address("d")).await.expect("a connection");
        let mut answer = String::new();
        third.read_to_string(&mut answer).await.expect("an answer");
        assert_eq!(answer, "away");
    });
}

#[test]
fn an_overloaded_proxy_sheds_load() {
    run(async {
        let proxy = Proxy::new(None);
        let one = upstream("one").await;
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            add_listener(snapshot, &simple("l", "", &chain("a", "one", "127.0.0.1")));
            add_listener(
                snapshot,
                &simple("b", "bypass_overload_manager: true,", &chain("a", "one", "127.0.0.1")),
            );
        });
        let proto = leno_api::decode_text(
            "resource_monitors: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.resource_monitors.\
             injected_resource.v3.InjectedResourceConfig, filename: f}}]\nactions:\n- name: envoy.overload_actions.reject_incoming_connections\n  \
             triggers: [{name: a, threshold: {value: 0.5}}]\n- name: envoy.overload_actions.stop_accepting_connections\n  \
             triggers: [{name: a, threshold: {value: 0.9}}]",
            "overload",
        );
        let proto = proto.unwrap_or_else(|errors| panic!("{errors}"));
        let plan = crate::config::lower::Lower::resource(|at| crate::overload::Plan::lower(proto, at));
        let plan = plan.unwrap_or_else(|why| panic!("{why}"));
        let connect =
            async |listener: &str| TcpStream::connect(proxy.address(listener)).await.expect("a connection");
        proxy.worker.set_overload(plan.levels(&[0.6]));
        assert_eq!(connect("l").await.read(&mut [0]).await.unwrap_or(0), 0, "closed at once");
        assert_eq!(proxy.stat("listener.l.downstream_cx_overload_reject"), 1);
        assert_eq!(said(&mut connect("b").await, 3).await, "one");

        proxy.worker.set_overload(plan.levels(&[1.0]));
        // The accept that waited already still took one.
        let _ = connect("l").await.read(&mut [0]).await;
        let mut waiting = connect("l").await;
        let mut byte = [0];
        let mut early = Box::pin(waiting.read(&mut byte));
        for _ in 0..100 {
            assert!(futures_util::poll!(early.as_mut()).is_pending(), "it waits to be accepted");
            tokio::task::yield_now().await;
        }
        drop(early);
        proxy.worker.set_overload(plan.levels(&[0.0]));
        assert_eq!(said(&mut waiting, 3).await, "one");
    });
}

#[test]
fn a_listener_has_a_limit_of_its_own() {
    run(async {
        let proxy = Proxy::new(None);
        let one = upstream("one").await;
        let mut runtime = crate::config::runtime::Runtime::default();
        runtime.add_layer(serde_json::json!({"envoy.resource_limits.listener.l.connection_limit": 1}));
        let scope = crate::config::lower::Scope { runtime: Arc::new(runtime), ..Default::default() };
        let lowered = |previous: Option<&Listener>, more: &str| {
            let source =
                crate::fixtures::listener_message(&simple("l", more, &chain("a", "one", "127.0.0.1")));
            let lower =
                |at: &mut crate::config::lower::Lower| crate::listener::config::lower(&source, previous, at);
            let lowered = crate::config::lower::Lower::resource_in(scope.clone(), lower);
            Arc::new(lowered.unwrap_or_else(|why| panic!("{why}")))
        };
        proxy.adopt(|snapshot| {
            add_cluster(snapshot, cluster("name: one, connect_timeout: 1s"), one);
            snapshot.listeners.insert("l".into(), lowered(None, ""));
        });
        let mut first = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(said(&mut first, 3).await, "one");
        proxy.adopt(|snapshot| {
            let changed = lowered(snapshot.listeners.get("l").map(|old| &**old), "tcp_backlog_size: 5,");
            snapshot.listeners.insert("l".into(), changed);
        });
        let mut second = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "the next version goes on counting");
        assert_eq!(proxy.stat("listener.l.downstream_cx_overflow"), 1);
        assert_eq!(proxy.stat("listener.l.worker_0.downstream_cx_active"), 1);
    });
}

#[test]
fn internal_listeners_take_connections_of_clusters() {
    run(async {
        let proxy = Proxy::new(None);
        let (one, two) = (upstream("one").await, upstream("two").await);
        let mut scope = crate::config::lower::Scope { internal_buffer: Some(1 << 20), ..Default::default() };
        scope.added_via_api = true;
        let filters = tcp_filters("cluster: dst");
        let text = format!(
            "name: inside, internal_listener: {{}}, listener_filters: [{{name: dst, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}}}], filter_chains: [{{{filters}}}]"
        );
        let source = crate::fixtures::listener_message(&text);
        let inside = crate::config::lower::Lower::resource_in(scope, |at| {
            crate::listener::config::lower(&source, None, at)
        });
        let inside = inside.unwrap_or_else(|why| panic!("{why}"));
        let endpoint = |address: SocketAddr| {
            format!(
                "{{endpoint: {{address: {{envoy_internal_address: {{server_listener_name: inside, endpoint_id: '{address}'}}}}}}, \
                 metadata: {{filter_metadata: {{envoy.filters.listener.original_dst: {{local: '{address}'}}}}}}}}"
            )
        };
        let inner = format!(
            "name: inner, connect_timeout: 1s, load_assignment: {{cluster_name: inner, endpoints: [{{lb_endpoints: [{}, {}]}}]}}, \
             transport_socket: {{name: internal, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport, \
             passthrough_metadata: [{{kind: {{host: {{}}}}, name: envoy.filters.listener.original_dst}}], transport_socket: \
             {{name: raw, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}}}",
            endpoint(one),
            endpoint(two)
        );
        proxy.adopt(|snapshot| {
            let inner = cluster(&inner);
            if let Discovery::Static(assignment) = &inner.discovery {
                snapshot.endpoints.insert(inner.name.clone(), Arc::clone(assignment));
            }
            snapshot.clusters.insert(inner.name.clone(), Arc::new(inner));
            let dst =
                cluster("name: dst, connect_timeout: 1s, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED");
            snapshot.clusters.insert(dst.name.clone(), Arc::new(dst));
            snapshot.listeners.insert(inside.name.clone(), Arc::new(inside));
            add_listener(snapshot, &simple("l", "", &chain("a", "inner", "127.0.0.1")));
        });
        let mut answers = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(proxy.address("l")).await.expect("a connection");
            answers.push(said(&mut client, 3).await);
            client.write_all(b"echo").await.expect("sent");
            assert_eq!(said(&mut client, 4).await, "echo");
            client.shutdown().await.expect("half-closed");
            assert_eq!(client.read(&mut [0]).await.expect("an orderly end"), 0);
        }
        answers.sort();
        assert_eq!(answers, ["one", "two"]);
        proxy.adopt(|snapshot| drop(snapshot.listeners.remove("inside")));
        let mut client = TcpStream::connect(proxy.address("l")).await.expect("a connection");
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0, "nobody is inside");
    });
}

#[test]
fn the_system_is_asked_for_the_time_once_a_second() {
    let worker = Worker::new(StatsStore::default().thread(), GlobalConnections::new(None));
    let start = Instant::now();
    let wall = worker.wall(start);
    assert_eq!(worker.wall(start + Duration::from_millis(900)), wall + Duration::from_millis(900));
    // The clock of the test has not moved as far as that.
    let asked = worker.wall(start + Duration::from_secs(5));
    assert!(asked >= wall && asked < wall + Duration::from_secs(4), "{asked:?} {wall:?}");
    assert_eq!(worker.wall(start + Duration::from_millis(5500)), asked + Duration::from_millis(500));
}
