//! HTTP/1 on both sides.

use expect_test::expect;
use leno_testkit::http::{Action, Client, Scripted};

use super::{Proxy, cluster, run, until};
use crate::config::lower::Lower;
use crate::http::config::HttpConnectionManager;

const ALL: &str = "[{match: {prefix: /}, route: {cluster: up}}]";

#[test]
fn a_request_and_its_answer_pass_with_envoys_headers() {
    run(async {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: up\r\nDate: then\r\nConnection: keep-alive\r\n\r\nok";
        let upstream = Scripted::start(|_| Action::Send(answer.to_vec())).await.expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        for _ in 0..3 {
            client
                .send("GET /a?b HTTP/1.1\r\nHost: h\r\nX-Request-Id: 7\r\nAccept: */*\r\n\r\n")
                .await
                .expect("sent");
            let (head, body) = client.message().await.expect("an answer");
            assert_eq!(body, b"ok");
            // However long it took.
            let (told, taken) = head.trim_end().rsplit_once(' ').expect("a time");
            assert!(taken.parse::<u64>().is_ok(), "{head}");
            let head = format!("{told} 0\r\n\r\n");
            expect![[r#"
                HTTP/1.1 200 OK
                content-length: 2
                server: envoy
                date: then
                x-envoy-upstream-service-time: 0

            "#]]
            .assert_eq(&head.replace("\r\n", "\n"));
        }
        let seen = upstream.seen();
        expect![[r#"
            GET /a?b HTTP/1.1
            host: h
            x-request-id: 7
            accept: */*
            x-forwarded-proto: http
            x-envoy-expected-rq-timeout-ms: 15000
            x-envoy-attempt-count: 1

        "#]]
        .assert_eq(&seen[2].head.replace("\r\n", "\n"));
        assert!(seen.iter().all(|request| request.connection == 0), "one connection serves all");
        assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 1);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_2xx"), 3);
        assert_eq!(proxy.stat("http.t.downstream_rq_2xx"), 3);
        assert_eq!(proxy.stat("http.t.downstream_rq_active"), 0);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_active"), 0);
    });
}

#[test]
fn bodies_pass_whatever_their_size_and_framing() {
    run(async {
        let upstream = Scripted::start(|request| {
            let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for piece in request.body.chunks(50_000) {
                answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                answer.extend_from_slice(piece);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\nt: dropped\r\n\r\n");
            Action::Send(answer)
        })
        .await
        .expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        for size in [0usize, 1, 1000, 16_384, 70_000, 1 << 20] {
            let body: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            let known = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {size}\r\n\r\n");
            client.send(known).await.expect("sent");
            client.send(&body).await.expect("sent");
            let (_, echoed) = client.message().await.expect("an answer");
            assert!(echoed == body, "content-length {size}");
            client
                .send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
                .await
                .expect("sent");
            for piece in body.chunks(30_000) {
                client.send(format!("{:x}\r\n", piece.len())).await.expect("sent");
                client.send(piece).await.expect("sent");
                client.send("\r\n").await.expect("sent");
            }
            client.send("0\r\n\r\n").await.expect("sent");
            let (_, echoed) = client.message().await.expect("an answer");
            assert!(echoed == body, "chunked {size}");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let upstream =
            Scripted::start(|request| Action::ok(request.head.split(' ').nth(1).unwrap_or_default()))
                .await
                .expect("up");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let requests: String =
            (0..20).map(|number| format!("GET /{number} HTTP/1.1\r\nhost: h\r\n\r\n")).collect();
        client.send(requests).await.expect("sent");
        for number in 0..20 {
            assert_eq!(client.answer().await, Some((200, format!("/{number}"))));
        }
    });
}

#[test]
fn answers_without_length_end_with_the_connection() {
    run(async {
        let upstream =
            Scripted::start(|_| Action::SendAndClose(b"HTTP/1.1 200 OK\r\n\r\nuntil close".to_vec()))
                .await
                .expect("up");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        for _ in 0..2 {
            assert_eq!(
                client.call("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await,
                Some((200, "until close".to_owned()))
            );
        }
        assert_eq!(upstream.seen()[1].connection, 1);
    });
}

#[test]
fn heads_interim_answers_and_continue() {
    run(async {
        let upstream = Scripted::start(|request| {
            let head = request.head.starts_with("HEAD");
            let early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".to_vec();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n".to_vec();
            let body = if head { &b""[..] } else { b"ok" };
            Action::Send([early, answer, body.to_vec()].concat())
        })
        .await
        .expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send("HEAD / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.expect("sent");
        let all = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(all.starts_with("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n"), "{all}");
        assert!(all.ends_with("connection: close\r\n\r\n"), "{all}");
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client
            .send("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
            .await
            .expect("sent");
        assert!(
            client.message().await.expect("an interim answer").0.starts_with("HTTP/1.1 100 Continue\r\n")
        );
        client.send("abc").await.expect("sent");
        assert!(client.message().await.expect("hints").0.starts_with("HTTP/1.1 103"));
        assert_eq!(client.answer().await, Some((200, "ok".to_owned())));
        assert_eq!(upstream.seen()[1].body, b"abc");
        assert_eq!(upstream.seen()[1].header("expect"), None);
    });
}

#[test]
fn websockets_pass_where_they_are_allowed() {
    run(async {
        let upstream = Scripted::start(|request| match request.header("upgrade") {
            Some("websocket") => Action::Send(
                b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhello".to_vec(),
            ),
            _ => Action::ok("no"),
        })
        .await
        .expect("an upstream");
        let up = cluster("up", upstream.address, "");
        let request = "GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        let proxy =
            Proxy::start(ALL, "upgrade_configs: [{upgrade_type: websocket}]", std::slice::from_ref(&up))
                .await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send(request).await.expect("sent");
        let (head, _) = client.message().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"), "{head}");
        // The script reads the next "request" out of the tunnel and answers it.
        client.send("raw bytes\r\n\r\n").await.expect("sent");
        until(|| upstream.seen().len() == 2).await;
        assert_eq!(upstream.seen()[1].head, "raw bytes\r\n\r\n");
        drop(client);
        until(|| proxy.stat("cluster.up.upstream_cx_active") == 0).await;
        let refusing = Proxy::start(ALL, "", &[up]).await;
        let mut client = Client::connect(refusing.address).await.expect("a connection");
        client.send(request).await.expect("sent");
        assert!(String::from_utf8_lossy(&client.rest().await).starts_with("HTTP/1.1 403 Forbidden\r\n"));
    });
}

#[test]
fn connections_live_within_their_limits() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let limited = |limits: &str| {
            let options = format!(
                "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    '@type': \
                 type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    \
                 common_http_protocol_options: {{{limits}}}\n    explicit_http_config: {{http_protocol_options: {{}}}}"
            );
            cluster("up", upstream.address, &options)
        };
        let get = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        let proxy = Proxy::start(ALL, "", &[limited("max_requests_per_connection: 2")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        for _ in 0..5 {
            assert_eq!(client.call(get).await, Some((200, "ok".to_owned())));
        }
        assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 3);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_max_requests"), 2);
        let manager = "common_http_protocol_options: {idle_timeout: 0.1s}";
        let proxy = Proxy::start(ALL, manager, &[limited("idle_timeout: 0.03s")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        assert_eq!(client.call(get).await, Some((200, "ok".to_owned())));
        until(|| proxy.stat("cluster.up.upstream_cx_idle_timeout") == 1).await;
        assert_eq!(proxy.stat("cluster.up.upstream_cx_active"), 0);
        assert_eq!(client.rest().await, b"", "the idle client is sent away");
        assert_eq!(proxy.stat("http.t.downstream_cx_idle_timeout"), 1);
    });
}

#[test]
fn an_early_answer_says_that_it_closes() {
    run(async {
        let proxy = Proxy::start("[]", "", &[]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbo").await.expect("sent");
        let all = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(all.starts_with("HTTP/1.1 404 Not Found\r\n"), "{all}");
        assert!(all.contains("connection: close\r\n"), "{all}");
    });
}

#[test]
fn routes_rewrite_redirect_and_answer() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let routes = "[{match: {prefix: /direct}, direct_response: {status: 201, body: {inline_string: hi}}}, \
                      {match: {prefix: /moved}, redirect: {host_redirect: a.b, path_redirect: /x}}, \
                      {match: {prefix: /old}, route: {cluster: up, prefix_rewrite: /new, host_rewrite_literal: inner}}, \
                      {match: {prefix: /nowhere}, route: {cluster: missing}}]";
        let proxy =
            Proxy::start(routes, "normalize_path: true", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
        // A body that nobody reads costs the connection, even if it came with the head.
        client.send("POST /direct HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody").await.expect("sent");
        let all = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(
            all.starts_with("HTTP/1.1 201 Created\r\n") && all.contains("connection: close\r\n"),
            "{all}"
        );
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        assert_eq!(client.call(&get("/direct")).await, Some((201, "hi".to_owned())));
        client.send(get("/moved?q")).await.expect("sent");
        let (head, _) = client.message().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 301 Moved Permanently\r\nlocation: http://a.b/x?q\r\n"), "{head}");
        assert_eq!(client.call(&get("/x/../old/p?q")).await, Some((200, "ok".to_owned())));
        let seen = &upstream.seen()[0];
        assert!(seen.head.starts_with("GET /new/p?q HTTP/1.1\r\nhost: inner\r\n"), "{}", seen.head);
        assert_eq!(seen.header("x-envoy-original-path"), Some("/old/p?q"));
        assert_eq!(client.call(&get("/nowhere")).await, Some((503, String::new())));
        assert_eq!(client.call(&get("/")).await, Some((404, String::new())));
        let grpc =
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
        client.send(grpc).await.expect("sent");
        let (head, _) = client.message().await.expect("an answer");
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 12\r\n"),
            "{head}"
        );
    });
}

#[test]
fn an_edge_proxy_trusts_nobody() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let proxy =
            Proxy::start(ALL, "use_remote_address: true", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let request = "GET / HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\n\
                       x-envoy-internal: true\r\nx-request-id: abc\r\nx-envoy-retry-on: 5xx\r\n\
                       x-envoy-upstream-rq-timeout-ms: 100\r\n\r\n";
        assert_eq!(client.call(request).await, Some((200, "ok".to_owned())));
        let seen = &upstream.seen()[0];
        assert!(
            seen.header("x-forwarded-for").is_some_and(|value| value.starts_with("1.2.3.4,")),
            "{}",
            seen.head
        );
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
        assert_eq!(seen.header("x-envoy-internal"), None);
        assert_eq!(seen.header("x-envoy-retry-on"), None);
        assert_eq!(seen.header("x-envoy-external-address"), Some("127.0.0.1"));
        assert_eq!(seen.header("x-envoy-expected-rq-timeout-ms"), Some("15000"));
        assert_eq!(seen.header("x-request-id").map(str::len), Some(36));
    });
}

#[test]
fn a_shadow_cluster_gets_a_copy() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let shadow = Scripted::start(|_| Action::ok("ignored")).await.expect("an upstream");
        let routes =
            "[{match: {prefix: /}, route: {cluster: up, request_mirror_policies: [{cluster: shadow}]}}]";
        let clusters = [cluster("up", upstream.address, ""), cluster("shadow", shadow.address, "")];
        let proxy = Proxy::start(routes, "", &clusters).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let answer = client.call("POST /m HTTP/1.1\r\nhost: h:80\r\ncontent-length: 4\r\n\r\nbody").await;
        assert_eq!(answer, Some((200, "ok".to_owned())));
        until(|| !shadow.seen().is_empty()).await;
        let copy = &shadow.seen()[0];
        assert_eq!((copy.header("host"), &copy.body[..]), (Some("h-shadow:80"), &b"body"[..]));
    });
}

#[test]
fn draining_ends_connections_after_the_answer() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut idle = Client::connect(proxy.address).await.expect("a connection");
        let mut busy = Client::connect(proxy.address).await.expect("a connection");
        assert_eq!(idle.call("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await, Some((200, "ok".to_owned())));
        busy.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\n").await.expect("sent");
        until(|| proxy.stat("http.t.downstream_rq_active") == 1).await;
        proxy.drain.advance(leno_base::drain::Phase::Draining);
        idle.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        let (head, _) = idle.message().await.expect("one more answer");
        assert!(head.contains("connection: close\r\n"), "{head}");
        busy.send("x").await.expect("sent");
        let (head, _) = busy.message().await.expect("an answer");
        assert!(head.contains("connection: close\r\n"), "{head}");
        drop(busy);
        drop(idle);
        until(|| proxy.stat("http.t.downstream_cx_active") == 0).await;
        assert_eq!(proxy.drain.watches(), 0);
    });
}

#[test]
fn the_next_request_obeys_the_settings_of_an_updated_listener() {
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        let proxy = Proxy::start(ALL, "", &[cluster("up", upstream.address, "")]).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let request = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        assert_eq!(client.call(request).await, Some((200, "ok".to_owned())));
        let changed = "stat_prefix: changed\nroute_config:\n  virtual_hosts:\n  - {name: v, domains: ['*'], routes: \
                       [{match: {prefix: /}, direct_response: {status: 403}}]}\nhttp_filters:\n- name: router\n  typed_config: \
                       {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}\n";
        let proto = leno_api::decode_text(changed, "manager").unwrap_or_else(|errors| panic!("{errors}"));
        let lowered = Lower::resource(|at| HttpConnectionManager::lower(&proto, at));
        proxy.drain.renew(lowered.unwrap_or_else(|why| panic!("{why}")));
        assert_eq!(client.call(request).await, Some((403, String::new())));
        assert_eq!(proxy.stat("http.changed.downstream_rq_total"), 1);
        assert_eq!(
            (proxy.stat("http.t.downstream_rq_total"), proxy.stat("http.t.downstream_cx_total")),
            (1, 1)
        );
    });
}
