//! What goes wrong, and what the client gets to see of it.

use std::net::SocketAddr;

use leno_testkit::http::{Action, Client, Scripted, Seen};

use super::{Proxy, cluster, run, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
const UNREACHABLE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

fn route(more: &str) -> String {
    format!("[{{match: {{prefix: /}}, route: {{cluster: up, {more}}}}}]")
}

/// What a client gets from an upstream with this script, and what the upstream saw.
async fn through(
    more: &str,
    script: impl Fn(&Seen) -> Action + Send + Sync + 'static,
    requests: &[&str],
) -> (Vec<Option<(u16, String)>>, Scripted, Proxy) {
    let upstream = Scripted::start(script).await.expect("an upstream");
    let proxy = Proxy::start(&route(more), "", &[cluster("up", upstream.address, "")]).await;
    let mut client = Client::connect(proxy.address).await.expect("a connection");
    let mut answers = Vec::new();
    for request in requests {
        answers.push(client.call(request).await);
    }
    (answers, upstream, proxy)
}

fn reset(reason: &str) -> String {
    format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}")
}

#[test]
fn a_broken_upstream_is_told_apart() {
    run(async {
        let close = |_: &Seen| Action::SendAndClose(Vec::new());
        let (answers, ..) = through("", close, &[GET]).await;
        assert_eq!(answers, [Some((503, reset("connection termination")))]);
        let garbage = |_: &Seen| Action::Send(b"xxxx\r\n\r\n".to_vec());
        let (answers, _, proxy) = through("", garbage, &[GET]).await;
        assert_eq!(answers, [Some((502, reset("protocol error")))]);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_5xx"), 1);
        let switch = |_: &Seen| Action::Send(b"HTTP/1.1 101 X\r\nupgrade: x\r\n\r\n".to_vec());
        let (answers, ..) = through("", switch, &[GET]).await;
        assert_eq!(answers, [Some((502, reset("protocol error")))], "nobody asked for an upgrade");
        let flood = |_: &Seen| Action::Send(b"HTTP/1.1 100 X\r\n\r\n".repeat(100));
        let (answers, ..) = through("", flood, &[GET]).await;
        assert_eq!(answers, [Some((502, reset("protocol error")))]);
        let half =
            |_: &Seen| Action::SendAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec());
        let (answers, ..) = through("", half, &[GET]).await;
        assert_eq!(answers, [None], "the answer is cut off, and the connection with it");
    });
}

#[test]
fn no_connection_and_no_host() {
    run(async {
        let up = cluster("up", UNREACHABLE, "");
        let proxy = Proxy::start(&route("retry_policy: {retry_on: connect-failure, num_retries: 2, retry_back_off: {base_interval: 0.001s}}"), "", &[up]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let text = "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: \
                    remote connection failure";
        assert_eq!(client.call(GET).await, Some((503, text.to_owned())));
        assert_eq!(proxy.stat("cluster.up.upstream_cx_connect_fail"), 3);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_retry"), 2);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_retry_limit_exceeded"), 1);
        let empty = "name: up\ntype: STATIC\nload_assignment: {cluster_name: up}\n".to_owned();
        let proxy = Proxy::start(&route(""), "", &[empty]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        assert_eq!(client.call(GET).await, Some((503, "no healthy upstream".to_owned())));
    });
}

#[test]
fn circuit_breakers_overflow() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let breakers = "circuit_breakers: {thresholds: [{max_pending_requests: 0}]}";
        let proxy = Proxy::start(&route(""), "", &[cluster("up", upstream.address, breakers)]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send(GET).await.expect("sent");
        let (head, body) = client.message().await.expect("an answer");
        assert!(
            head.starts_with("HTTP/1.1 503 Service Unavailable\r\nx-envoy-overloaded: true\r\n"),
            "{head}"
        );
        assert_eq!(String::from_utf8_lossy(&body), reset("overflow"));
        assert_eq!(proxy.stat("cluster.up.upstream_rq_pending_overflow"), 1);
    });
}

#[test]
fn requests_wait_in_line_for_the_only_connection() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let breakers = "circuit_breakers: {thresholds: [{max_connections: 1}]}";
        let proxy = Proxy::start(&route(""), "", &[cluster("up", upstream.address, breakers)]).await;
        let calls = (0..10).map(|_| async {
            let mut client = Client::connect(proxy.address).await.expect("a connection");
            client.call(GET).await
        });
        let answers = futures_util::future::join_all(calls).await;
        assert!(answers.iter().all(|answer| *answer == Some((200, "ok".to_owned()))), "{answers:?}");
        assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 1);
        assert!(upstream.seen().iter().all(|request| request.connection == 0));
        assert_eq!(proxy.stat("cluster.up.upstream_rq_pending_active"), 0);
    });
}

#[test]
fn retries_by_status() {
    run(async {
        let flaky = |request: &Seen| {
            if request.number < 2 { Action::status(503, "no") } else { Action::ok("yes") }
        };
        let policy = "retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}}";
        let post = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";
        let (answers, upstream, proxy) = through(policy, flaky, &[post]).await;
        assert_eq!(answers, [Some((200, "yes".to_owned()))]);
        let seen = upstream.seen();
        assert!(seen.iter().all(|request| request.body == b"body"));
        assert_eq!(seen[2].header("x-envoy-attempt-count"), Some("3"));
        assert_eq!(proxy.stat("cluster.up.upstream_rq_retry_success"), 1);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_5xx"), 0, "retried answers are not the cluster's");
        let never = |_: &Seen| Action::status(503, "no");
        let (answers, upstream, _) = through(policy, never, &[GET]).await;
        assert_eq!((answers, upstream.seen().len()), (vec![Some((503, "no".to_owned()))], 3));
        let (answers, upstream, _) =
            through("", never, &["GET / HTTP/1.1\r\nhost: h\r\nx-envoy-retry-on: gateway-error\r\n\r\n"])
                .await;
        let once = (vec![Some((503, "no".to_owned()))], 1);
        assert_eq!((answers, upstream.seen().len()), once, "only internal requests may ask for retries");
    });
}

#[test]
fn a_kept_connection_that_closes_costs_no_request() {
    run(async {
        let fickle = |request: &Seen| match (request.number, request.connection) {
            (0, _) => Action::ok("first"),
            (_, 0) => Action::SendAndClose(Vec::new()),
            _ => Action::ok("second"),
        };
        let (answers, upstream, _) = through("", fickle, &[GET, GET]).await;
        assert_eq!(answers, [Some((200, "first".to_owned())), Some((200, "second".to_owned()))]);
        assert_eq!(upstream.seen()[2].connection, 1);
        assert_eq!(upstream.seen()[2].header("x-envoy-attempt-count"), Some("1"));
        // A POST may have been acted on: it is not sent again.
        let post = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx";
        let (answers, upstream, _) = through("", fickle, &[GET, post]).await;
        assert_eq!(answers[1], Some((503, reset("connection termination"))));
        assert_eq!(upstream.seen().len(), 2);
    });
}

#[test]
fn kept_connections_that_close_together_cost_no_request() {
    /// Answers the first request of each connection; a later one meets its end.
    fn once_each() -> impl Fn(&Seen) -> Action + Send + Sync + 'static {
        let used = std::sync::Mutex::new(std::collections::HashSet::new());
        move |request| match used.lock().expect("no panic").insert(request.connection) {
            true => Action::ok("ok"),
            false => Action::SendAndClose(Vec::new()),
        }
    }
    /// Keep-alive is promised, and not kept.
    fn closing(_: &Seen) -> Action {
        Action::SendAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
    }
    async fn check(upstream: &Scripted, breakers: &str) {
        let proxy = Proxy::start(&route(""), "", &[cluster("up", upstream.address, breakers)]).await;
        let mut clients = Vec::new();
        for _ in 0..16 {
            clients.push(Client::connect(proxy.address).await.expect("a connection"));
        }
        for round in 0..8 {
            let calls = clients.iter_mut().map(|client| client.call(GET));
            let answers = futures_util::future::join_all(calls).await;
            let good = answers.iter().all(|answer| *answer == Some((200, "ok".to_owned())));
            assert!(good, "round {round}, {breakers}: {answers:?}");
        }
        assert_eq!(proxy.stat("cluster.up.upstream_rq_retry"), 0, "a replay is no retry");
        assert_eq!(proxy.stat("cluster.up.upstream_rq_pending_active"), 0);
    }
    run(async {
        let breaker =
            |limit: u32| format!("circuit_breakers: {{thresholds: [{{max_connections: {limit}}}]}}");
        for breakers in [String::new(), breaker(1), breaker(3)] {
            check(&Scripted::start(once_each()).await.expect("an upstream"), &breakers).await;
            check(&Scripted::start(closing).await.expect("an upstream"), &breakers).await;
        }
        // With other connections to choose from, a POST is still not sent again.
        let upstream = Scripted::start(once_each()).await.expect("an upstream");
        let proxy = Proxy::start(&route(""), "", &[cluster("up", upstream.address, "")]).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(Client::connect(proxy.address).await.expect("a connection"));
        }
        let calls = clients.iter_mut().map(|client| client.call(GET));
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(answers, vec![Some((200, "ok".to_owned())); 3]);
        let post = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx";
        assert_eq!(clients[0].call(post).await, Some((503, reset("connection termination"))));
        assert_eq!(upstream.seen().len(), 4);
    });
}

#[test]
fn timeouts() {
    run(async {
        let hang = |_: &Seen| Action::Hang;
        let (answers, _, proxy) = through("timeout: 0.05s", hang, &[GET]).await;
        assert_eq!(answers, [Some((504, "upstream request timeout".to_owned()))]);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_timeout"), 1);
        let once = |request: &Seen| {
            if request.number == 0 { Action::Hang } else { Action::ok("late") }
        };
        let policy =
            "retry_policy: {retry_on: 5xx, per_try_timeout: 0.05s, retry_back_off: {base_interval: 0.001s}}";
        let (answers, upstream, proxy) = through(policy, once, &[GET]).await;
        assert_eq!(answers, [Some((200, "late".to_owned()))]);
        assert_eq!(upstream.seen()[0].header("x-envoy-expected-rq-timeout-ms"), Some("50"));
        assert_eq!(proxy.stat("cluster.up.upstream_rq_per_try_timeout"), 1);
        let (answers, ..) = through("timeout: 0s, idle_timeout: 0.05s", hang, &[GET]).await;
        assert_eq!(answers, [Some((504, "stream timeout".to_owned()))]);
        let slow = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nabc";
        let (answers, ..) = through("timeout: 0s, idle_timeout: 0.05s", hang, &[slow]).await;
        assert_eq!(answers, [Some((408, "stream timeout".to_owned()))]);
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    run(async {
        let upstream = Scripted::start(|_| Action::Hang).await.expect("an upstream");
        let proxy = Proxy::start(&route(""), "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send(GET).await.expect("sent");
        until(|| upstream.seen().len() == 1).await;
        assert_eq!(proxy.stat("cluster.up.upstream_rq_active"), 1);
        drop(client);
        until(|| proxy.stat("cluster.up.upstream_rq_active") == 0).await;
        until(|| proxy.stat("cluster.up.upstream_cx_active") == 0).await;
        assert_eq!(proxy.stat("http.t.downstream_cx_destroy_remote_active_rq"), 1);
        assert_eq!(proxy.stat("http.t.downstream_rq_active"), 0);
    });
}

#[test]
fn what_is_no_request_is_refused() {
    run(async {
        let (_, _, proxy) = through("", |_| Action::ok("ok"), &[]).await;
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request"),
            ("GET / HTTP/1.0\r\nhost: h\r\n\r\n", "426 Upgrade Required"),
            ("GET / HTTP/1.1\r\nhost: h\r\na b: c\r\n\r\n", "400 Bad Request"),
            ("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n", "501 Not Implemented"),
            ("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "400 Bad Request"),
        ] {
            let mut client = Client::connect(proxy.address).await.expect("a connection");
            client.send(request).await.expect("sent");
            let all = String::from_utf8_lossy(&client.rest().await).into_owned();
            assert!(all.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {all}");
            assert!(all.contains("connection: close\r\n"), "{all}");
        }
    });
}
