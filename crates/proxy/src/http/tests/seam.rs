//! The filter seam on the way of real messages: holding heads and bodies back, changing them,
//! waiting. What filters do here, `filters::probe` says.

use expect_test::{Expect, expect};
use leno_testkit::http::{Action, Client, Scripted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Proxy, cluster, run, until};
use crate::http::filters::probe::open_gate;

/// A chain of probes.
fn probes(names: &[&str]) -> String {
    let filter = |name: &&str| {
        format!(
            "- {{name: '{name}', typed_config: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: '{name}'}}}}\n"
        )
    };
    names.iter().map(filter).collect()
}

/// What upstream sees of a request, and what the client gets.
async fn check(filters: &[&str], request: &str, answer: &'static str, expected: &Expect) {
    let upstream = Scripted::start(move |_| Action::Send(answer.as_bytes().to_vec()));
    let upstream = upstream.await.expect("an upstream");
    let routes = "[{match: {prefix: /small}, route: {cluster: up}, request_body_buffer_limit: 5}, {match: {prefix: /}, route: {cluster: up}}]";
    let proxy = Proxy::start_with(&probes(filters), routes, "", &[cluster("up", upstream.address, "")]).await;
    let mut client = Client::connect(proxy.address).await.expect("a connection");
    client.send(request).await.expect("sent");
    let (head, body) = client.message().await.expect("an answer");
    let mut shown = String::new();
    for seen in upstream.seen() {
        let ours = |line: &&str| {
            line.contains("HTTP/1.1") || line.starts_with("content-length") || line.starts_with("x-asked")
        };
        seen.head.lines().filter(ours).for_each(|line| shown.push_str(&format!("> {line}\n")));
        shown.push_str(&format!("> {:?}\n", String::from_utf8_lossy(&seen.body)));
    }
    let ours = |line: &&str| {
        line.starts_with("HTTP/1.1") || line.starts_with("content-length") || line.starts_with("x-marked")
    };
    head.lines().filter(ours).for_each(|line| shown.push_str(&format!("{line}\n")));
    shown.push_str(&format!("{:?}\n", String::from_utf8_lossy(&body)));
    expected.assert_eq(&shown);
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n world\n\r\n0\r\n\r\n";

#[test]
fn a_request_is_held_changed_and_goes_on() {
    run(async {
        check(
            &["mark", "upper request", "ask"],
            CHUNKED,
            OK,
            &expect![[r#"
            > POST / HTTP/1.1
            > content-length: 12
            > x-asked: 1
            > "HELLO WORLD\n"
            HTTP/1.1 200 OK
            content-length: 2
            x-marked: 1
            "ok"
        "#]],
        )
        .await;
        check(
            &["upper request", "upper request"],
            CHUNKED,
            OK,
            &expect![[r#"
            > POST / HTTP/1.1
            > content-length: 12
            > "HELLO WORLD\n"
            HTTP/1.1 200 OK
            content-length: 2
            "ok"
        "#]],
        )
        .await;
        check(
            &["ask"],
            "GET / HTTP/1.1\r\nhost: h\r\n\r\n",
            OK,
            &expect![[r#"
            > GET / HTTP/1.1
            > x-asked: 1
            > ""
            HTTP/1.1 200 OK
            content-length: 2
            "ok"
        "#]],
        )
        .await;
    });
}

#[test]
fn pieces_of_a_body_are_kept_back() {
    run(async {
        check(
            &["lines"],
            CHUNKED,
            OK,
            &expect![[r#"
            > POST / HTTP/1.1
            > "hello world\n"
            HTTP/1.1 200 OK
            content-length: 2
            "ok"
        "#]],
        )
        .await;
        let limited = CHUNKED.replace("POST /", "POST /small");
        check(
            &["lines"],
            &limited.replace(" world\n", " world "),
            OK,
            &expect![[r#"
            HTTP/1.1 413 Payload Too Large
            content-length: 17
            "Payload Too Large"
        "#]],
        )
        .await;
    });
}

#[test]
fn a_response_is_held_and_changed() {
    run(async {
        let get = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
        check(
            &["mark", "upper response"],
            get,
            answer,
            &expect![[r#"
            > GET / HTTP/1.1
            > ""
            HTTP/1.1 200 OK
            content-length: 6
            x-marked: 1
            "ABCDEF"
        "#]],
        )
        .await;
        check(
            &["upper response", "mark", "keep response"],
            get,
            answer,
            &expect![[r#"
            > GET / HTTP/1.1
            > ""
            HTTP/1.1 200 OK
            x-marked: 1
            content-length: 6
            "ABCDEF"
        "#]],
        )
        .await;
        check(
            &["upper response"],
            get,
            "HTTP/1.1 204 No Content\r\n\r\n",
            &expect![[r#"
            > GET / HTTP/1.1
            > ""
            HTTP/1.1 204 No Content
            ""
        "#]],
        )
        .await;
    });
}

/// Reads until the text has come.
async fn read_until(stream: &mut TcpStream, seen: &mut Vec<u8>, text: &str) {
    while !seen.windows(text.len()).any(|window| window == text.as_bytes()) {
        let read = stream.read_buf(seen).await.expect("readable");
        assert_ne!(read, 0, "closed before {text:?}: {:?}", String::from_utf8_lossy(seen));
    }
}

/// A proxy with this chain between a client and an upstream that the test plays itself.
async fn between(filters: &[&str]) -> (Proxy, TcpStream, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let routes = "[{match: {prefix: /direct}, direct_response: {status: 200, body: {inline_string: here}}}, {match: {prefix: /}, route: {cluster: up, timeout: 0s}}]";
    let proxy = Proxy::start_with(&probes(filters), routes, "", &[cluster("up", address, "")]).await;
    let client = TcpStream::connect(proxy.address).await.expect("a connection");
    (proxy, client, listener)
}

#[test]
fn a_request_that_waits_does_not_hold_up_the_response() {
    run(async {
        let (_proxy, mut client, listener) = between(&["mark", "wait for data"]).await;
        let post = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n";
        client.write_all(post.as_bytes()).await.expect("sent");
        let (mut upstream, _) = listener.accept().await.expect("a connection");
        let (mut seen, mut answer) = (Vec::new(), Vec::new());
        read_until(&mut upstream, &mut seen, "1\r\na\r\n").await;
        client.write_all(b"4\r\nwait\r\n0\r\n\r\n").await.expect("sent");
        let hints = b"HTTP/1.1 103 Early Hints\r\n\r\n";
        upstream.write_all(hints).await.expect("sent");
        read_until(&mut client, &mut answer, "x-marked: 1\r\n\r\n").await;
        assert!(answer.starts_with(b"HTTP/1.1 103"), "{:?}", String::from_utf8_lossy(&answer));
        answer.clear();
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none";
        upstream.write_all(head).await.expect("sent");
        // The response's head and its first bytes come while the request waits.
        read_until(&mut client, &mut answer, "\r\n\r\none").await;
        assert!(!String::from_utf8_lossy(&seen).contains("wait"));
        open_gate();
        read_until(&mut upstream, &mut seen, "wait\r\n0\r\n\r\n").await;
        upstream.write_all(b"two").await.expect("sent");
        read_until(&mut client, &mut answer, "onetwo").await;
    });
}

#[test]
fn a_response_that_waits_does_not_hold_up_the_request() {
    run(async {
        let (_proxy, mut client, listener) = between(&["wait for data"]).await;
        let post = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(post.as_bytes()).await.expect("sent");
        let (mut upstream, _) = listener.accept().await.expect("a connection");
        let (mut seen, mut answer) = (Vec::new(), Vec::new());
        read_until(&mut upstream, &mut seen, "\r\n\r\n").await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwait";
        upstream.write_all(head).await.expect("sent");
        read_until(&mut client, &mut answer, "\r\n\r\n").await;
        client.write_all(b"1\r\na\r\n0\r\n\r\n").await.expect("sent");
        read_until(&mut upstream, &mut seen, "1\r\na\r\n0\r\n\r\n").await;
        assert!(!answer.ends_with(b"wait"));
        open_gate();
        read_until(&mut client, &mut answer, "\r\n\r\nwait").await;
    });
}

#[test]
fn a_client_that_leaves_is_noticed_while_a_filter_waits() {
    run(async {
        for request in [
            "GET / HTTP/1.1\r\nhost: h\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nabc",
        ] {
            let (proxy, mut client, _listener) = between(&["wait for head"]).await;
            client.write_all(request.as_bytes()).await.expect("sent");
            until(|| proxy.stat("http.t.downstream_rq_active") == 1).await;
            drop(client);
            until(|| proxy.stat("http.t.downstream_rq_active") == 0).await;
            assert_eq!(proxy.stat("http.t.downstream_cx_destroy_remote_active_rq"), 1);
        }
    });
}

#[test]
fn a_waiting_hook_has_the_body_buffered_within_the_limit() {
    run(async {
        check(
            &["buffer"],
            &CHUNKED.replace("POST /", "POST /small"),
            OK,
            &expect![[r#"
                HTTP/1.1 413 Payload Too Large
                content-length: 17
                "Payload Too Large"
            "#]],
        )
        .await;
    });
    run(async {
        // Buffered all the same, it goes on when the gate opens.
        let (_proxy, mut client, listener) = between(&["buffer", "upper request"]).await;
        client.write_all(CHUNKED.as_bytes()).await.expect("sent");
        open_gate();
        let (mut upstream, _) = listener.accept().await.expect("a connection");
        let mut seen = Vec::new();
        read_until(&mut upstream, &mut seen, "HELLO WORLD\n").await;
    });
}

#[test]
fn any_hook_may_answer() {
    run(async {
        let refused = |marked: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 403 Forbidden\ncontent-length: {length}\n{marked}\"{body}\"\n")
        };
        let answer = async |filters: &[&str], request: &str| {
            let upstream = Scripted::start(|_| Action::Send(OK.as_bytes().to_vec()));
            let upstream = upstream.await.expect("an upstream");
            let routes = "[{match: {prefix: /}, route: {cluster: up}}]";
            let clusters = [cluster("up", upstream.address, "")];
            let proxy = Proxy::start_with(&probes(filters), routes, "", &clusters).await;
            let mut client = Client::connect(proxy.address).await.expect("a connection");
            client.send(request).await.expect("sent");
            let all = client.rest().await;
            let all = String::from_utf8_lossy(&all).into_owned();
            let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
            let ours = |line: &&str| {
                ["HTTP/1.1", "content-length", "x-marked"].iter().any(|start| line.starts_with(start))
            };
            let lines: String = head.lines().filter(ours).map(|line| format!("{line}\n")).collect();
            format!("{lines}{body:?}\n")
        };
        let get = "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let post = &CHUNKED.replace("host: h", "host: h\r\nconnection: close");
        // Of the request: all filters see it, in whichever state they are.
        assert_eq!(answer(&["mark", "refuse data"], post).await, refused("x-marked: 1\n", "no data"));
        assert_eq!(answer(&["refuse data", "mark"], post).await, refused("x-marked: 1\n", "no data"));
        // In place of a response that has begun its way: nobody sees it.
        assert_eq!(answer(&["mark", "refuse response"], get).await, refused("", "no response"));
        assert_eq!(answer(&["refuse response", "mark"], get).await, refused("", "no response"));
        // When it is too late, the response is cut off.
        let cut = answer(&["refuse response data"], get).await;
        assert_eq!(cut, "HTTP/1.1 200 OK\ncontent-length: 2\n\"\"\n");
    });
}

#[test]
fn an_answer_of_our_own_passes_the_filters() {
    run(async {
        let (_proxy, mut client, _listener) = between(&["mark", "upper response", "wait for response"]).await;
        client.write_all(b"GET /direct HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let nothing = client.try_read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock));
        open_gate();
        let mut answer = Vec::new();
        read_until(&mut client, &mut answer, "HERE").await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("x-marked: 1") && answer.contains("content-length: 4"), "{answer}");
    });
}

#[test]
fn an_upgrade_may_have_filters_of_its_own() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let routes = "[{match: {prefix: /}, route: {cluster: up, timeout: 0s}}]";
        let own = "upgrade_configs:\n- upgrade_type: websocket\n  filters:\n".to_owned()
            + &probes(&["ask"]).replace("- {", "  - {")
            + "  - {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
        let proxy = Proxy::start_with(&probes(&["mark"]), routes, &own, &[cluster("up", address, "")]).await;
        let mut client = TcpStream::connect(proxy.address).await.expect("a connection");
        let upgrade = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\n";
        client.write_all(upgrade.as_bytes()).await.expect("sent");
        let (mut upstream, _) = listener.accept().await.expect("a connection");
        let (mut seen, mut answer) = (Vec::new(), Vec::new());
        read_until(&mut upstream, &mut seen, "\r\n\r\n").await;
        assert!(String::from_utf8_lossy(&seen).contains("x-asked: 1"));
        let switching =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
        upstream.write_all(switching.as_bytes()).await.expect("sent");
        read_until(&mut client, &mut answer, "hello").await;
        assert!(!String::from_utf8_lossy(&answer).contains("x-marked"));
    });
}

#[test]
fn resets_and_deadlines_are_noticed_while_a_filter_waits() {
    run(async {
        let routes = "[{match: {prefix: /}, route: {cluster: up}}]";
        let up = [cluster("up", "127.0.0.1:1".parse().expect("an address"), "")];
        let proxy = Proxy::start_with(&probes(&["wait for head"]), routes, "", &up).await;
        let stream = TcpStream::connect(proxy.address).await.expect("a connection");
        let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::task::spawn_local(connection);
        let request = http::Request::post("http://h/").body(()).expect("a request");
        let mut send = send.ready().await.expect("ready");
        let (_response, mut body) = send.send_request(request, false).expect("sent");
        body.send_data(bytes::Bytes::from_static(b"a part"), false).expect("sent");
        until(|| proxy.stat("http.t.downstream_rq_active") == 1).await;
        body.send_reset(h2::Reason::CANCEL);
        until(|| proxy.stat("http.t.downstream_rq_rx_reset") == 1).await;
        assert_eq!(proxy.stat("http.t.downstream_rq_active"), 0);

        let idle = "stream_idle_timeout: 0.03s";
        let proxy = Proxy::start_with(&probes(&["mark", "wait for head"]), routes, idle, &up).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        let (head, body) = client.message().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 504") && head.contains("x-marked: 1"), "{head}");
        assert_eq!(body, b"stream timeout");
    });
}

#[test]
fn filters_that_want_the_response_s_head() {
    let filters = |places: &[usize], count: usize| -> Vec<String> {
        let what = |place| if places.contains(&place) { "head" } else { "pass" };
        (0..count).map(|place| format!("{} {place}", what(place))).collect()
    };
    let asks = "GET / HTTP/1.1\r\nhost: h\r\nx-second: 1\r\n\r\n";
    run(async {
        // Places from 64 on are not in a word; the last filter is first to see a response.
        let long = filters(&[0, 63, 64, 70], 71);
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        check(
            &long,
            asks,
            OK,
            &expect![[r#"
            > GET / HTTP/1.1
            > ""
            HTTP/1.1 200 OK
            content-length: 2
            x-marked: head 70 [false, true]
            x-marked: head 64 [false, true]
            x-marked: head 63 [false, true]
            x-marked: head 0 [false, true]
            "ok"
        "#]],
        )
        .await;
        // The same in a word alone, and once a filter sees all of the stream.
        check(
            &["head 0", "pass 1", "head 2"],
            asks,
            OK,
            &expect![[r#"
            > GET / HTTP/1.1
            > ""
            HTTP/1.1 200 OK
            content-length: 2
            x-marked: head 2 [false, true]
            x-marked: head 0 [false, true]
            "ok"
        "#]],
        )
        .await;
        check(
            &["head 0", "all", "head 2"],
            asks,
            OK,
            &expect![[r#"
            > GET / HTTP/1.1
            > ""
            HTTP/1.1 200 OK
            content-length: 2
            x-marked: head 2 [false, true]
            x-marked: head 0 [false, true]
            "ok"
        "#]],
        )
        .await;
    });
}
