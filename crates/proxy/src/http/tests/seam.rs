//! The filter seam on the way of real messages: holding heads and bodies back, changing them,
//! waiting. What filters do here, `filters::probe` says.

use expect_test::{Expect, expect};
use leno_testkit::http::{Action, Client, Scripted};

use super::{Proxy, cluster, run};

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
