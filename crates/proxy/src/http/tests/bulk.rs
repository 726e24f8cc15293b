//! Large bodies, which pass from socket to socket inside the kernel where nobody looks at them.

use leno_testkit::http::{Action, Client, Scripted};

use super::{Proxy, cluster, run, until};
use crate::splice;

const ALL: &str = "[{match: {prefix: /}, route: {cluster: up}}]";
const MANY: usize = 3 << 20;

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// An upstream that answers each request with its body and a content-length.
async fn mirror() -> Scripted {
    let upstream = Scripted::start(|request| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len());
        Action::Send([head.into_bytes(), request.body.clone()].concat())
    });
    upstream.await.expect("an upstream")
}

async fn post(client: &mut Client, body: &[u8]) -> (String, Vec<u8>) {
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(head).await.expect("sent");
    client.send(body).await.expect("sent");
    client.message().await.expect("an answer")
}

#[test]
fn bodies_of_known_length_pass_both_ways_and_are_counted() {
    run(async {
        let upstream = mirror().await;
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        // Each is followed by a short message on the same connections: nothing is left behind.
        let mut all = 0;
        for size in [MANY, 10, (64 << 10) + 1, 3, 16 << 10, (16 << 10) + 1, 400_000, 0] {
            let body = pattern(size);
            let (_, echoed) = post(&mut client, &body).await;
            assert!(echoed == body, "{size}");
            all += size as u64;
        }
        assert!(splice::idle_pipes() > 0, "nothing was spliced");
        drop(client);
        until(|| proxy.stat("http.t.downstream_cx_active") == 0).await;
        assert!(upstream.seen().iter().all(|request| request.connection == 0), "one connection serves all");
        assert_eq!(proxy.stat("cluster.up.upstream_rq_2xx"), 8);
        let names = [
            "http.t.downstream_cx_rx_bytes_total",
            "http.t.downstream_cx_tx_bytes_total",
            "cluster.up.upstream_cx_tx_bytes_total",
            "cluster.up.upstream_cx_rx_bytes_total",
        ];
        for name in names {
            // Eight heads are less than 8 KiB.
            let heads = proxy.stat(name) - all;
            assert!((200..8000).contains(&heads), "{name}: {heads}");
        }
    });
}

#[test]
fn filters_that_see_bodies_still_do() {
    run(async {
        let upstream = mirror().await;
        let filter = "- name: buffer\n  typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 1000000}";
        let proxy = Proxy::start_with(filter, ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let body = pattern(400_000);
        let (_, echoed) = post(&mut client, &body).await;
        assert!(echoed == body);
        let (head, _) = post(&mut client, &pattern(1_000_001)).await;
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    });
}

#[test]
fn bodies_without_length_pass_until_the_end() {
    run(async {
        let upstream = Scripted::start(|_| {
            Action::SendAndClose([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), pattern(MANY)].concat())
        });
        let upstream = upstream.await.expect("an upstream");
        // As in HTTP/1.0, the connection's end is the body's.
        let proxy = Proxy::start(
            ALL,
            "http_protocol_options: {accept_http_10: true, default_host_for_http_10: h}",
            &[cluster("up", upstream.address, "")],
        )
        .await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send("GET / HTTP/1.0\r\n\r\n").await.expect("sent");
        let all = client.rest().await;
        let body = all.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &all[at + 4..]);
        assert!(body == Some(&pattern(MANY)[..]), "{} bytes", all.len());
    });
}

#[test]
fn a_body_that_breaks_off_breaks_the_answer_off() {
    run(async {
        let upstream = Scripted::start(|_| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {MANY}\r\n\r\n");
            Action::SendAndClose([head.into_bytes(), pattern(MANY - 1)].concat())
        });
        let upstream = upstream.await.expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        let all = client.rest().await;
        let body = all.windows(4).position(|window| window == b"\r\n\r\n").map(|at| all.len() - at - 4);
        assert_eq!(body, Some(MANY - 1), "all that came is passed on");
        until(|| proxy.stat("http.t.downstream_cx_active") == 0).await;
        assert_eq!(proxy.stat("cluster.up.upstream_cx_destroy_remote_with_active_rq"), 1);
    });
}

#[test]
fn a_client_that_does_not_read_holds_the_server_up() {
    run(async {
        let upstream = Scripted::start(|_| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 32 << 20);
            Action::Send([head.into_bytes(), vec![7; 32 << 20]].concat())
        });
        let upstream = upstream.await.expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        // A second client is served meanwhile.
        until(|| proxy.stat("cluster.up.upstream_rq_2xx") == 1).await;
        let mut other = Client::connect(proxy.address).await.expect("a connection");
        other.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        let (_, body) = other.message().await.expect("an answer");
        assert_eq!(body.len(), 32 << 20);
        assert_eq!(proxy.stat("http.t.downstream_cx_active"), 2);
        drop(client);
        until(|| proxy.stat("http.t.downstream_cx_active") == 1).await;
        assert_eq!(proxy.stat("cluster.up.upstream_rq_active"), 0);
    });
}

#[test]
fn filters_that_want_a_responses_head_only_leave_bodies_alone() {
    const PEERS: &str = r#"
- name: peers
  typed_config:
    "@type": type.googleapis.com/io.istio.http.peer_metadata.Config
    downstream_discovery: [{istio_headers: {}}]
    downstream_propagation: [{istio_headers: {}}]
"#;
    run(async {
        let upstream = mirror().await;
        let proxy = Proxy::start_with(PEERS, ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let body = pattern(MANY);
        let head = format!(
            "POST / HTTP/1.1\r\nhost: h\r\nx-envoy-peer-metadata: a\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client.send(head).await.expect("sent");
        client.send(&body).await.expect("sent");
        let (head, echoed) = client.message().await.expect("an answer");
        assert!(echoed == body && head.contains("\nx-envoy-peer-metadata: "), "{head}");
        assert!(splice::idle_pipes() > 0, "nothing was spliced");
    });
}
