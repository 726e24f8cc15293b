//! HTTP/2 on one side or both.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use leno_testkit::http::{Action, Client, Scripted, read_message};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::{HTTP2, Proxy, cluster, run, until};
use crate::cluster::{PickContext, pool};
use crate::http::codec::side::Upstream;

const ALL: &str = "[{match: {prefix: /}, route: {cluster: up, timeout: 0s}}]";

/// An upstream that sends back each piece of a request as it comes, then trailers. Paths say
/// otherwise: `/refuse` refuses the first stream, `/reset` resets.
pub(super) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::task::spawn_local(async move {
        let refused = Rc::new(Cell::new(false));
        while let Ok((stream, _)) = listener.accept().await {
            let refused = Rc::clone(&refused);
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.expect("a handshake");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    match request.uri().path() {
                        "/refuse" if !refused.replace(true) => respond.send_reset(Reason::REFUSED_STREAM),
                        "/reset" => respond.send_reset(Reason::INTERNAL_ERROR),
                        _ => drop(tokio::task::spawn_local(answer(request, respond))),
                    }
                }
            });
        }
    });
    address
}

async fn answer(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let response =
        Response::builder().header("x-authority", parts.uri.authority().map_or("", |a| a.as_str()));
    let Ok(mut send) = respond.send_response(response.body(()).expect("a response"), false) else { return };
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        let _ = send.send_data(data, false);
    }
    let sent = body.trailers().await.ok().flatten().and_then(|trailers| trailers.get("sum").cloned());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", sent.unwrap_or_else(|| "0".parse().expect("a value")));
    let _ = send.send_trailers(trailers);
}

async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::task::spawn_local(connection);
    send
}

async fn read(mut body: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    (all, body.trailers().await.expect("trailers or none"))
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://h{path}"))
        .header("content-type", "application/grpc")
        .body(())
        .expect("a request")
}

#[test]
fn streams_pass_in_both_directions_at_once_with_trailers() {
    run(async {
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let mut client = connect(proxy.address).await.ready().await.expect("ready");
        let (response, mut send) = client.send_request(post("/s"), false).expect("sent");
        let response = response.await.expect("an answer before the request ends");
        assert_eq!(response.headers()["x-authority"], "h");
        assert_eq!(response.headers()["server"], "envoy");
        let mut body = response.into_body();
        for number in 0..5u8 {
            send.send_data(vec![number; 10].into(), false).expect("sent");
            assert_eq!(body.data().await.expect("an echo").expect("data"), vec![number; 10]);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("sum", "9".parse().expect("a value"));
        send.send_trailers(trailers).expect("sent");
        let (rest, trailers) = read(body).await;
        assert!(rest.is_empty());
        assert_eq!(trailers.expect("trailers")["grpc-status"], "9");
        assert_eq!(proxy.stat("http.t.downstream_rq_http2_total"), 1);
    });
}

#[test]
fn large_bodies_pass_under_flow_control() {
    run(async {
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let client = connect(proxy.address).await;
        let calls = (0..4).map(|_| async {
            let mut client = client.clone().ready().await.expect("ready");
            let (response, mut send) = client.send_request(post("/s"), false).expect("sent");
            send.send_data(vec![7; 3 << 20].into(), true).expect("sent");
            let (body, _) = read(response.await.expect("an answer").into_body()).await;
            body.len()
        });
        assert_eq!(futures_util::future::join_all(calls).await, [3 << 20; 4]);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 1);
    });
}

#[test]
fn versions_are_translated() {
    run(async {
        // HTTP/2 to HTTP/1.
        let upstream =
            Scripted::start(|request| Action::ok(&String::from_utf8_lossy(&request.body))).await.expect("up");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = connect(proxy.address).await.ready().await.expect("ready");
        let request = Request::post("http://h/p?q")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(())
            .expect("one");
        let (response, mut send) = client.send_request(request, false).expect("sent");
        send.send_data("abc".into(), true).expect("sent");
        let (body, _) = read(response.await.expect("an answer").into_body()).await;
        assert_eq!(body, b"abc");
        let seen = &upstream.seen()[0];
        assert!(seen.head.starts_with("POST /p?q HTTP/1.1\r\nhost: h\r\n"), "{}", seen.head);
        assert_eq!((seen.header("cookie"), &seen.body[..]), (Some("a=1; b=2"), &b"abc"[..]));
        // HTTP/1 to HTTP/2.
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let answer = client.call("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc").await;
        assert_eq!(answer, Some((200, "abc".to_owned())));
        let answer = client.call("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(answer, Some((200, String::new())));
    });
}

/// A cluster that follows its clients' protocol, with one connection.
const DOWNSTREAM: &str = r#"circuit_breakers: {thresholds: [{max_connections: 1}]}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}
"#;

/// An upstream of both protocols whose HTTP/1 connections wait for `release` before each answer. `asked`
/// counts what came over HTTP/1.
async fn of_both(release: Rc<Notify>, asked: Rc<Cell<usize>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (release, asked) = (Rc::clone(&release), Rc::clone(&asked));
            tokio::task::spawn_local(async move {
                // HTTP/2 begins with PRI, what is asked over HTTP/1 with GET.
                let mut start = [0];
                let _ = stream.peek(&mut start).await;
                if start == *b"P" {
                    let mut connection = h2::server::handshake(stream).await.expect("a handshake");
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::task::spawn_local(answer(request, respond));
                    }
                    return;
                }
                let mut buffer = Vec::new();
                while read_message(&mut stream, &mut buffer).await.is_some() {
                    asked.set(asked.get() + 1);
                    release.notified().await;
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("sent");
                }
            });
        }
    });
    address
}

#[test]
fn requests_of_one_protocol_do_not_wait_for_connections_of_the_other() {
    run(async {
        let (release, asked) = (Rc::<Notify>::default(), Rc::<Cell<usize>>::default());
        let address = of_both(Rc::clone(&release), Rc::clone(&asked)).await;
        let proxy = Proxy::start(ALL, "", &[cluster("up", address, DOWNSTREAM)]).await;
        let mut over_http1 = Client::connect(proxy.address).await.expect("a connection");
        over_http1.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        until(|| asked.get() == 1).await;
        // The circuit breaker's only connection is in use, and each protocol may have its first.
        let client = connect(proxy.address).await;
        let calls = (0..3).map(|_| async {
            let mut client = client.clone().ready().await.expect("ready");
            let (response, _) = client.send_request(post("/"), true).expect("sent");
            response.await.expect("an answer").status()
        });
        assert_eq!(futures_util::future::join_all(calls).await, [200; 3]);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_http1_total"), 1);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_http2_total"), 1);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_overflow"), 1);
        // One over HTTP/1 waits for one of its own.
        let mut another = Client::connect(proxy.address).await.expect("a connection");
        another.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        until(|| proxy.stat("cluster.up.upstream_rq_pending_active") == 1).await;
        release.notify_one();
        assert_eq!(over_http1.answer().await, Some((200, String::new())));
        until(|| asked.get() == 2).await;
        release.notify_one();
        assert_eq!(another.answer().await, Some((200, String::new())));
        assert_eq!(proxy.stat("cluster.up.upstream_cx_http1_total"), 1);
    });
}

#[test]
fn resets_are_mapped_and_refused_streams_replayed() {
    run(async {
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let (status, body) = client.call("GET /reset HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("an answer");
        assert_eq!(status, 503);
        assert!(body.ends_with("reset reason: remote reset"), "{body}");
        let (status, _) = client.call("GET /refuse HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("an answer");
        assert_eq!(status, 200);
        let mut client = connect(proxy.address).await.ready().await.expect("ready");
        let (response, _) = client.send_request(post("/reset"), true).expect("sent");
        let response = response.await.expect("an answer");
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.into_body().is_end_stream());
    });
}

#[test]
fn a_client_that_resets_ends_its_stream_only() {
    run(async {
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let mut client = connect(proxy.address).await.ready().await.expect("ready");
        let (response, mut send) = client.send_request(post("/s"), false).expect("sent");
        let _body = response.await.expect("an answer").into_body();
        send.send_reset(Reason::CANCEL);
        until(|| proxy.stat("http.t.downstream_rq_rx_reset") == 1).await;
        until(|| proxy.stat("cluster.up.upstream_rq_active") == 0).await;
        let (response, _) = client.send_request(post("/s"), true).expect("sent");
        assert_eq!(response.await.expect("an answer").status(), 200);
    });
}

#[test]
fn connections_that_go_are_replaced() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        // Each connection serves one request; every other one says so by GOAWAY.
        tokio::task::spawn_local(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let mut connection = h2::server::handshake(stream).await.expect("a handshake");
                let Some(Ok((request, respond))) = connection.accept().await else { continue };
                tokio::task::spawn_local(answer(request, respond));
                if number % 2 == 0 {
                    connection.graceful_shutdown();
                }
                tokio::task::spawn_local(async move {
                    // Another request would be answered by nobody.
                    while let Some(Ok(_)) = connection.accept().await {}
                });
            }
        });
        let limits = HTTP2.replace(
            "explicit_http_config",
            "common_http_protocol_options: {max_requests_per_connection: 1}\n    explicit_http_config",
        );
        for more in [HTTP2, &limits] {
            let proxy = Proxy::start(ALL, "", &[cluster("up", address, more)]).await;
            let mut client = Client::connect(proxy.address).await.expect("a connection");
            let calls = if more == HTTP2 { 1 } else { 6 };
            for _ in 0..calls {
                let answer = client.call("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx").await;
                assert_eq!(answer, Some((200, "x".to_owned())));
            }
            assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), calls);
        }
    });
}

/// A cluster that follows its clients' protocol: a connection that is being opened for one of them is
/// of no use to who needs the other protocol.
#[test]
fn both_protocols_may_be_waited_for_at_once() {
    run(async {
        let address = of_both(Rc::default(), Rc::default()).await;
        let follows = HTTP2.replace("explicit_http_config", "use_downstream_protocol_config");
        for http2_first in [false, true] {
            let proxy = Proxy::start(ALL, "", &[cluster("up", address, &follows)]).await;
            let up = proxy.worker.cluster("up").expect("the cluster");
            let host = proxy.worker.pick(&up, &PickContext::default()).expect("its endpoint").host;
            // Both are in line before any connection is open.
            let both = async {
                tokio::join!(
                    pool::acquire(&up, &host, http2_first, false),
                    pool::acquire(&up, &host, !http2_first, false)
                )
            };
            let both = tokio::time::timeout(std::time::Duration::from_secs(30), both).await;
            let (first, second) = both.expect("nobody waits for ever");
            for (upstream, http2) in [(first, http2_first), (second, !http2_first)] {
                let is_http2 = matches!(upstream, Ok(Upstream::H2 { .. }));
                assert!(upstream.is_ok() && is_http2 == http2, "HTTP/2 first: {http2_first}");
            }
            assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 2);
        }
    });
}

#[test]
fn draining_sends_goaway() {
    run(async {
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let mut client = connect(proxy.address).await.ready().await.expect("ready");
        let (response, mut send) = client.send_request(post("/s"), false).expect("sent");
        let body = response.await.expect("an answer").into_body();
        proxy.drain.advance(leno_base::drain::Phase::Draining);
        send.send_data("late".into(), true).expect("sent");
        assert_eq!(read(body).await.0, b"late");
        until(|| proxy.stat("http.t.downstream_cx_active") == 0).await;
    });
}

#[test]
fn many_streams_of_many_connections_pass_at_once() {
    run(async {
        let proxy = Proxy::start(ALL, "", &[cluster("up", echo().await, HTTP2)]).await;
        let calls = (0..3).map(|_| async {
            let client = connect(proxy.address).await;
            for _ in 0..2 {
                let calls = (0..100).map(|number: usize| {
                    let mut client = client.clone();
                    async move {
                        let (response, mut send) = client.send_request(post("/s"), false).expect("sent");
                        send.send_data(vec![7; number * 50].into(), true).expect("sent");
                        let response = response.await.expect("an answer");
                        assert_eq!(response.status(), 200);
                        assert_eq!(read(response.into_body()).await.0.len(), number * 50);
                    }
                });
                futures_util::future::join_all(calls).await;
            }
        });
        futures_util::future::join_all(calls).await;
        until(|| proxy.stat("cluster.up.upstream_rq_active") == 0).await;
        until(|| proxy.stat("http2.streams_active") == 0).await;
        assert_eq!(proxy.stat("cluster.up.http2.streams_active"), 0);
        assert_eq!(proxy.stat("http.t.downstream_rq_2xx"), 600);
    });
}

#[test]
fn streams_wait_for_an_upstream_that_takes_few() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    let mut server = h2::server::Builder::new();
                    let handshake = server.max_concurrent_streams(2).handshake(stream).await;
                    let mut connection = handshake.expect("a handshake");
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::task::spawn_local(answer(request, respond));
                    }
                });
            }
        });
        let limits = format!("circuit_breakers: {{thresholds: [{{max_connections: 1}}]}}\n{HTTP2}");
        let proxy = Proxy::start(ALL, "", &[cluster("up", address, &limits)]).await;
        let client = connect(proxy.address).await;
        for _ in 0..2 {
            let calls = (0..7).map(|_| {
                let mut client = client.clone();
                async move {
                    let (response, mut send) = client.send_request(post("/s"), false).expect("sent");
                    send.send_data("abc".into(), true).expect("sent");
                    let response = response.await.expect("an answer");
                    (response.status().as_u16(), read(response.into_body()).await.0)
                }
            });
            for answer in futures_util::future::join_all(calls).await {
                assert_eq!(answer, (200, b"abc".to_vec()));
            }
        }
        assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 1);
    });
}
