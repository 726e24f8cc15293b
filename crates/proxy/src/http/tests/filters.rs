//! Filters on the way of real messages: what their hooks make of the wire.

use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use leno_testkit::http::{Action, Client, Scripted};

use super::{Proxy, cluster, run};

const FILTERS: &str = r#"
- name: envoy.filters.http.cors
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
- name: envoy.filters.http.grpc_stats
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig
    stats_for_all_methods: true
- name: envoy.filters.http.fault
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
- name: envoy.filters.http.header_mutation
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
    mutations:
      request_mutations: [{append: {header: {key: x-level, value: filter}}}]
      response_mutations: [{remove: x-up}, {append: {header: {key: x-asked, value: "%REQ(:path)% %RESPONSE_CODE%"}}}]
"#;

const ROUTES: &str = r#"[
    {match: {prefix: /abort}, route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.fault: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
        delay: {fixed_delay: 0.01s, percentage: {numerator: 100}},
        abort: {grpc_status: 14, percentage: {numerator: 100}},
        upstream_cluster: up}}},
    {match: {prefix: /elsewhere}, route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.fault: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
        abort: {http_status: 500, percentage: {numerator: 100}},
        upstream_cluster: other}}},
    {match: {prefix: /slow}, route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.fault: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
        response_rate_limit: {fixed_limit: {limit_kbps: 1}, percentage: {numerator: 100}}}}},
    {match: {prefix: /no-status}, route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.header_mutation: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute,
        mutations: {response_mutations: [{remove: ":status"}]}}}},
    {match: {prefix: /cors}, route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.cors: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy,
        allow_origin_string_match: [{prefix: "http://a"}],
        allow_methods: GET}}},
    {match: {prefix: /}, route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.header_mutation: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute,
        mutations: {
          request_mutations: [{append: {header: {key: x-level, value: route}}}],
          query_parameter_mutations: [{append: {record: {key: added, value: "1"}}}]}}}}
    ]"#;

/// Sends a request and shows its answer without `date`, and what upstream saw of it.
async fn check(request: &str, expected: &Expect) -> Proxy {
    let upstream = Scripted::start(|request| {
        if request.head.starts_with("GET /slow") {
            return Action::ok(&"x".repeat(120));
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx-up: 1\r\ngrpc-status: 0\r\ncontent-type: application/grpc\r\n\r\n";
        Action::Send([head.as_bytes(), b"\0\0\0\0\x03abc"].concat())
    });
    let upstream = upstream.await.expect("an upstream");
    let proxy = Proxy::start_with(FILTERS, ROUTES, "", &[cluster("up", upstream.address, "")]).await;
    let mut client = Client::connect(proxy.address).await.expect("a connection");
    client.send(request).await.expect("sent");
    let (head, body) = client.message().await.expect("an answer");
    let mut shown = String::new();
    let varies = |line: &str| line.starts_with("date") || line.starts_with("x-envoy-upstream-service-time");
    for line in head.lines().filter(|line| !varies(line) && !line.is_empty()) {
        shown.push_str(&format!("{line}\n"));
    }
    shown.push_str(&format!("{:?}\n", String::from_utf8_lossy(&body)));
    for seen in upstream.seen() {
        let ours = |line: &&str| line.starts_with("x-level") || line.contains("HTTP/1.1");
        seen.head.lines().filter(ours).for_each(|line| shown.push_str(&format!("> {line}\n")));
    }
    expected.assert_eq(&shown);
    proxy
}

#[test]
fn header_mutation() {
    run(async {
        check(
            "GET /x?b=1 HTTP/1.1\r\nhost: h\r\n\r\n",
            &expect![[r#"
                HTTP/1.1 200 OK
                content-length: 8
                grpc-status: 0
                content-type: application/grpc
                x-asked: /x?added=1&b=1 200
                server: envoy
                "\0\0\0\0\u{3}abc"
                > GET /x?added=1&b=1 HTTP/1.1
                > x-level: filter
                > x-level: route
            "#]],
        )
        .await;
    });
}

#[test]
fn a_response_without_status_is_none() {
    run(async {
        check(
            "GET /no-status HTTP/1.1\r\nhost: h\r\n\r\n",
            &expect![[r#"
            HTTP/1.1 502 Bad Gateway
            content-length: 32
            content-type: text/plain
            server: envoy
            "missing required header: :status"
            > GET /no-status HTTP/1.1
            > x-level: filter
        "#]],
        )
        .await;
    });
}

#[test]
fn cors() {
    run(async {
        let preflight = "OPTIONS /cors HTTP/1.1\r\nhost: h\r\norigin: http://a.b\r\naccess-control-request-method: GET\r\n\r\n";
        let proxy = check(
            preflight,
            &expect![[r#"
                HTTP/1.1 200 OK
                access-control-allow-origin: http://a.b
                access-control-allow-methods: GET
                x-asked: /cors 200
                server: envoy
                content-length: 0
                ""
            "#]],
        )
        .await;
        assert_eq!(proxy.stat("http.t.cors.origin_valid"), 1);
        check(
            "GET /cors HTTP/1.1\r\nhost: h\r\norigin: http://a.b\r\n\r\n",
            &expect![[r#"
                HTTP/1.1 200 OK
                content-length: 8
                grpc-status: 0
                content-type: application/grpc
                x-asked: /cors 200
                access-control-allow-origin: http://a.b
                server: envoy
                "\0\0\0\0\u{3}abc"
                > GET /cors HTTP/1.1
                > x-level: filter
            "#]],
        )
        .await;
    });
}

#[test]
fn faults() {
    run(async {
        let proxy = check(
            "GET /abort HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\n\r\n",
            &expect![[r#"
                HTTP/1.1 200 OK
                content-type: application/grpc
                grpc-status: 14
                grpc-message: fault filter abort
                x-asked: /abort 200
                server: envoy
                content-length: 0
                ""
            "#]],
        )
        .await;
        for (name, value) in [("delays_injected", 1), ("aborts_injected", 1), ("active_faults", 0)] {
            assert_eq!(proxy.stat(&format!("http.t.fault.{name}")), value, "{name}");
        }
        let proxy = check(
            "GET /elsewhere HTTP/1.1\r\nhost: h\r\n\r\n",
            &expect![[r#"
                HTTP/1.1 200 OK
                content-length: 8
                grpc-status: 0
                content-type: application/grpc
                x-asked: /elsewhere 200
                server: envoy
                "\0\0\0\0\u{3}abc"
                > GET /elsewhere HTTP/1.1
                > x-level: filter
            "#]],
        )
        .await;
        assert_eq!(proxy.stat("http.t.fault.aborts_injected"), 0);
        let begun = Instant::now();
        let proxy = check(
            "GET /slow HTTP/1.1\r\nhost: h\r\n\r\n",
            &expect![[r#"
                HTTP/1.1 200 OK
                content-length: 120
                x-asked: /slow 200
                server: envoy
                "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                > GET /slow HTTP/1.1
                > x-level: filter
            "#]],
        )
        .await;
        assert_eq!(proxy.stat("http.t.fault.response_rl_injected"), 1);
        // 51 bytes each 50 ms, the first at once.
        assert!(begun.elapsed() >= Duration::from_millis(100));
    });
}

#[test]
fn grpc_stats() {
    run(async {
        let request = "POST /s.S/M HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\ncontent-length: 6\r\n\r\n\0\0\0\0\x01a";
        let proxy = check(
            request,
            &expect![[r#"
                HTTP/1.1 200 OK
                content-length: 8
                grpc-status: 0
                content-type: application/grpc
                x-asked: /s.S/M?added=1 200
                server: envoy
                "\0\0\0\0\u{3}abc"
                > POST /s.S/M?added=1 HTTP/1.1
                > x-level: filter
                > x-level: route
            "#]],
        )
        .await;
        for name in ["0", "success", "total", "request_message_count", "response_message_count"] {
            assert_eq!(proxy.stat(&format!("cluster.up.grpc.s.S.M.{name}")), 1, "{name}");
        }
        assert_eq!(proxy.stat("cluster.up.grpc.s.S.M.failure"), 0);
    });
}

/// Filters that want to see the response's head only, beside those that want more.
#[test]
fn heads_are_shown_in_order() {
    const PEERS: &str = r#"
- name: peers
  typed_config:
    "@type": type.googleapis.com/io.istio.http.peer_metadata.Config
    downstream_discovery: [{istio_headers: {}}]
    downstream_propagation: [{istio_headers: {}}]
"#;
    const TAKES_BACK: &str = r#"
- name: takes_back
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
    mutations: {response_mutations: [{remove: x-envoy-peer-metadata}]}
"#;
    const ROUTES: &str = "[{match: {path: /direct}, direct_response: {status: 418}}, \
                          {match: {prefix: /}, route: {cluster: up}}]";
    run(async {
        let upstream = Scripted::start(|_| Action::ok("ok")).await.expect("an upstream");
        // The last filter sees a response first.
        for (filters, stays) in [
            (PEERS.to_owned(), true),
            ([PEERS, TAKES_BACK].concat(), true),
            ([TAKES_BACK, PEERS].concat(), false),
        ] {
            let clusters = [cluster("up", upstream.address, "")];
            let proxy = Proxy::start_with(&filters, ROUTES, "", &clusters).await;
            let mut client = Client::connect(proxy.address).await.expect("a connection");
            for path in ["/", "/direct"] {
                let request = |tells: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n{tells}\r\n");
                client.send(request("x-envoy-peer-metadata: a\r\n")).await.expect("sent");
                let (head, _) = client.message().await.expect("an answer");
                assert_eq!(head.contains("x-envoy-peer-metadata: "), stays, "{filters} {path} {head}");
                // Whoever tells nothing is told nothing.
                client.send(request("")).await.expect("sent");
                let (head, _) = client.message().await.expect("an answer");
                assert!(!head.contains("x-envoy-peer-metadata"), "{filters} {path} {head}");
            }
        }
    });
}
