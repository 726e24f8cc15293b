//! A worker with lowered listeners and clusters, and connections that really come in.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the condition comes true");
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
        tokio::time::timeout(Duration::from_secs(10), refused).await.expect("nobody listens");
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
        client.write_all(b"plain").await.expect("sent");
        assert_eq!(said(&mut client, 8).await, "twoplain");
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
