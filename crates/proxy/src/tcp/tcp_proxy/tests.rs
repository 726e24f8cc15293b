//! Sessions between a scripted client and upstream; flags and stats as Envoy 1.40 has them.

#![allow(clippy::needless_pass_by_value, reason = "expectations are written in place")]

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use expect_test::{Expect, expect};
use leno_base::drain::Phase;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet};

use super::TcpProxy;
use crate::config::lower::Lower;
use crate::drain::Drain;
use crate::fixtures::{assignment, cluster};
use crate::io::{Accepted, Socket};
use crate::listener::accept::GlobalConnections;
use crate::snapshot::Snapshot;
use crate::telemetry::stats::StatsStore;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::worker::Worker;

struct Proxy {
    worker: Rc<Worker>,
    stats: Arc<StatsStore>,
    drain: Drain,
}

impl Proxy {
    /// With these clusters: name, further YAML, endpoints.
    fn new(clusters: &[(&str, &str, &[SocketAddr])]) -> Self {
        let stats = Arc::new(StatsStore::default());
        let worker = Rc::new(Worker::new(stats.thread(), GlobalConnections::new(None)));
        let mut snapshot = Snapshot::default();
        for (name, more, endpoints) in clusters {
            let lowered = cluster(&format!("name: {name}, connect_timeout: 1s, {more}"));
            let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            snapshot.endpoints.insert(lowered.name.clone(), assignment(&endpoints));
            snapshot.clusters.insert(lowered.name.clone(), Arc::new(lowered));
        }
        worker.adopt(Arc::new(snapshot), Vec::new());
        Self { worker, stats, drain: Drain::default() }
    }

    /// A client's connection that a proxy of this YAML serves, and what it tells in the end.
    async fn session(&self, proxy: &str, early: &str) -> (TcpStream, JoinHandle<StreamInfo>) {
        let proto = leno_api::decode_text(&format!("{{stat_prefix: t, {proxy}}}"), "proxy");
        let proto = proto.unwrap_or_else(|errors| panic!("{errors}"));
        let proxy = Lower::resource(|at| TcpProxy::lower(proto, at)).unwrap_or_else(|why| panic!("{why}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let local = listener.local_addr().expect("an address");
        let client = TcpStream::connect(local).await.expect("a connection");
        let (stream, remote) = listener.accept().await.expect("it");
        let info = Rc::new(ConnectionInfo::plain(1, remote, local, Instant::now()));
        let accepted =
            Accepted { socket: Socket::Tcp(stream), buffered: BytesMut::from(early), buffer_limit: 1 << 20 };
        let (worker, watch) = (Rc::clone(&self.worker), self.drain.watch());
        let serving = tokio::task::spawn_local(async move {
            super::serve(&worker, &proxy, accepted, info, watch, &mut []).await
        });
        (client, serving)
    }

    /// All stats that are not 0, one a line; times are left out.
    fn stats(&self) -> String {
        let mut lines = Vec::new();
        for block in self.stats.blocks() {
            for (index, (stat, kind)) in block.schema().0.iter().enumerate() {
                if *kind == crate::telemetry::stats::Kind::Histogram {
                    continue;
                }
                let value = block.cell(index).value();
                if value > 0 {
                    lines.push(format!("{}{stat}: {value}", block.prefix()));
                }
            }
        }
        lines.sort();
        lines.join("\n")
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

async fn ended(serving: JoinHandle<StreamInfo>) -> StreamInfo {
    let ended = tokio::time::timeout(Duration::from_secs(60), serving).await;
    ended.expect("it ends").expect("without a panic")
}

fn check(info: &StreamInfo, expected: Expect) {
    let upstream = &info.upstream;
    let flags = ResponseFlags::ALL.iter().filter(|(flag, ..)| info.flags.intersects(*flag));
    let flags = flags.map(|(_, short, _)| *short).collect::<Vec<_>>().join(",");
    let told = format!(
        "flags {} cluster {} host {} attempts {} failure {:?} received {} sent {}",
        if flags.is_empty() { "-" } else { &flags },
        upstream.cluster.as_ref().map_or("-", |facts| &facts.stat_name),
        if upstream.host.is_some() { "some" } else { "none" },
        upstream.attempts,
        upstream.transport_failure.as_deref(),
        info.bytes_received,
        info.bytes_sent
    );
    expected.assert_eq(&told);
}

/// A listener, and the next connection that comes to it.
async fn upstream() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, leno_testkit::ports::free()).into()
}

#[test]
fn bytes_go_both_ways_and_ends_are_passed_on() {
    run(async {
        let (listener, address) = upstream().await;
        let proxy = Proxy::new(&[("up", "", &[address])]);
        let (mut client, serving) = proxy.session("cluster: up", "early ").await;
        let (mut server, _) = listener.accept().await.expect("a connection");
        client.write_all(b"late").await.expect("sent");
        client.shutdown().await.expect("a half-close");
        let mut text = String::new();
        server.read_to_string(&mut text).await.expect("up to the end");
        assert_eq!(text, "early late");
        server.write_all(b"answer").await.expect("sent");
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.expect("up to the end");
        assert_eq!(text, "answer");
        check(
            &ended(serving).await,
            expect![[r#"flags - cluster up host some attempts 1 failure None received 10 sent 6"#]],
        );
        expect![[r#"
            cluster.up.upstream_cx_destroy: 1
            cluster.up.upstream_cx_destroy_local: 1
            cluster.up.upstream_cx_destroy_local_with_active_rq: 1
            cluster.up.upstream_cx_destroy_with_active_rq: 1
            cluster.up.upstream_cx_rx_bytes_total: 6
            cluster.up.upstream_cx_total: 1
            cluster.up.upstream_cx_tx_bytes_total: 10
            cluster.up.upstream_rq_pending_total: 1
            cluster.up.upstream_rq_total: 1
            tcp.t.downstream_cx_rx_bytes_total: 10
            tcp.t.downstream_cx_total: 1
            tcp.t.downstream_cx_tx_bytes_total: 6"#]]
        .assert_eq(&proxy.stats());
    });
}

#[test]
fn resets_are_passed_on() {
    run(async {
        let (listener, address) = upstream().await;
        let proxy = Proxy::new(&[("up", "", &[address])]);
        let (mut client, serving) = proxy.session("cluster: up", "").await;
        let (mut server, _) = listener.accept().await.expect("a connection");
        // The session is under way for sure.
        client.write_all(b"x").await.expect("sent");
        server.read_exact(&mut [0]).await.expect("a byte");
        Socket::Tcp(server).reset_on_close();
        check(
            &ended(serving).await,
            expect![[r#"flags UR cluster up host some attempts 1 failure None received 1 sent 0"#]],
        );
        let error = client.read(&mut [0]).await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        let (mut client, serving) = proxy.session("cluster: up", "").await;
        let (mut server, _) = listener.accept().await.expect("a connection");
        client.write_all(b"x").await.expect("sent");
        server.read_exact(&mut [0]).await.expect("a byte");
        Socket::Tcp(client).reset_on_close();
        check(
            &ended(serving).await,
            expect![[r#"flags - cluster up host some attempts 1 failure None received 1 sent 0"#]],
        );
        let error = server.read(&mut [0]).await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let stats = proxy.stats();
        assert!(
            stats.contains("upstream_cx_destroy_remote: 1") && stats.contains("upstream_cx_destroy_local: 1")
        );
    });
}

#[test]
fn sessions_end_when_their_time_is_up() {
    run(async {
        let (_listener, address) = upstream().await;
        let proxy = Proxy::new(&[("up", "", &[address])]);
        let (_client, serving) = proxy.session("cluster: up, idle_timeout: 0.01s", "").await;
        check(
            &ended(serving).await,
            expect![[r#"flags - cluster up host some attempts 1 failure None received 0 sent 0"#]],
        );
        let (_client, serving) =
            proxy.session("cluster: up, max_downstream_connection_duration: 0.01s", "").await;
        check(
            &ended(serving).await,
            expect![[r#"flags DT cluster up host some attempts 1 failure None received 0 sent 0"#]],
        );
        let stats = proxy.stats();
        assert!(
            stats.contains("tcp.t.idle_timeout: 1")
                && stats.contains("max_downstream_connection_duration: 1")
        );
        let (_client, serving) = proxy.session("cluster: up", "").await;
        proxy.drain.advance(Phase::Draining);
        tokio::task::yield_now().await;
        assert!(!serving.is_finished(), "draining lets TCP go on");
        proxy.drain.advance(Phase::Closing);
        ended(serving).await;
    });
}

#[test]
fn failures_to_connect() {
    run(async {
        let (_listener, open) = upstream().await;
        let down = nobody();
        let full = "circuit_breakers: {thresholds: [{max_connections: 0}]}";
        let proxy = Proxy::new(&[
            ("down", "", &[down]),
            ("empty", "", &[]),
            ("full", full, &[open]),
            ("odst", ODST, &[]),
        ]);
        let check = async |cluster: &str, expected: Expect| {
            let (mut client, serving) = proxy.session(cluster, "").await;
            assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
            check(&ended(serving).await, expected);
        };
        check(
            "cluster: down, max_connect_attempts: 2",
            expect![[r#"flags URX,UF cluster down host some attempts 2 failure Some("delayed_connect_error:_Connection_refused") received 0 sent 0"#]],
        )
        .await;
        check(
            "cluster: empty",
            expect![[r#"flags UH cluster empty host none attempts 0 failure None received 0 sent 0"#]],
        )
        .await;
        check(
            "cluster: full",
            expect![[r#"flags UO cluster full host none attempts 0 failure None received 0 sent 0"#]],
        )
        .await;
        check(
            "cluster: nope",
            expect![[r#"flags NC cluster - host none attempts 0 failure None received 0 sent 0"#]],
        )
        .await;
        // A connection that was not redirected has no original destination: going to its own
        // address would come back for ever.
        check(
            "cluster: odst",
            expect![[r#"flags UH cluster odst host none attempts 0 failure None received 0 sent 0"#]],
        )
        .await;
        expect![[r#"
            cluster.down.upstream_cx_connect_attempts_exceeded: 1
            cluster.down.upstream_cx_connect_fail: 2
            cluster.down.upstream_cx_destroy: 2
            cluster.down.upstream_cx_destroy_remote: 2
            cluster.down.upstream_cx_total: 2
            cluster.down.upstream_rq_pending_failure_eject: 2
            cluster.down.upstream_rq_pending_total: 2
            cluster.empty.lb_healthy_panic: 1
            cluster.empty.upstream_cx_none_healthy: 1
            cluster.full.upstream_cx_overflow: 1
            cluster.odst.upstream_cx_none_healthy: 1
            tcp.t.downstream_cx_no_route: 1
            tcp.t.downstream_cx_total: 5"#]]
        .assert_eq(&proxy.stats());
    });
}

const ODST: &str = "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED";

#[test]
fn clusters_are_chosen_by_weight() {
    run(async {
        let proxy = Proxy::new(&[("a", "", &[]), ("b", "", &[]), ("never", "", &[])]);
        let weighted = "weighted_clusters: {clusters: [{name: a, weight: 3}, {name: b, weight: 1}]}";
        let mut chosen = [0, 0];
        for _ in 0..200 {
            let (_client, serving) = proxy.session(weighted, "").await;
            let info = ended(serving).await;
            match info.upstream.cluster.as_ref().map(|facts| &*facts.stat_name) {
                Some("a") => chosen[0] += 1,
                Some("b") => chosen[1] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!((115..=185).contains(&chosen[0]), "{chosen:?}");
    });
}

#[test]
fn upstream_may_wait_for_the_first_bytes() {
    run(async {
        let (upstream, mut accepted) = scripted().await;
        let proxy = Proxy::new(&[("up", "", &[upstream])]);
        let lazy = "cluster: up, upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 3";
        let (mut client, serving) = proxy.session(lazy, "").await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(accepted.try_recv().is_err(), "nobody asked for it yet");
        client.write_all(b"hello").await.expect("sent");
        client.shutdown().await.expect("half-closed");
        let mut stream = accepted.recv().await.expect("a connection");
        let mut seen = String::new();
        stream.read_to_string(&mut seen).await.expect("all of it");
        assert_eq!(seen, "hello");
        drop(stream);
        ended(serving).await;
    });
}

/// A listener whose connections the test takes itself.
async fn scripted() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = send.send(stream);
        }
    });
    (address, receive)
}

#[test]
fn a_drain_ends_a_session_that_asks_for_it() {
    run(async {
        let (upstream, mut accepted) = scripted().await;
        let proxy = Proxy::new(&[("up", "", &[upstream])]);
        let (_client, serving) = proxy.session("cluster: up, check_drain_close: true", "").await;
        let _stream = accepted.recv().await.expect("a connection");
        proxy.drain.advance(Phase::Draining);
        ended(serving).await;
    });
}
