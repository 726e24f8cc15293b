//! `envoy.filters.http.grpc_web`.

use std::sync::Arc;

use serde_json::json;

use crate::{GrpcAnswer, Suite, answer, compare, filter, router, routes};

#[test]
fn calls_of_browsers() {
    let service: Arc<GrpcAnswer> =
        Arc::new(|message| (message.ends_with(b"ok").then(|| b"answer".to_vec()), format!("{message:?}")));
    let listener = json!({
        "route_config": routes(&json!([
            {"match": {"prefix": "/plain"}, "route": {"cluster": "plain"}},
            {"match": {"prefix": "/none"}, "direct_response": {"status": 404, "body": {"inline_string": "not 100% here"}}},
            {"match": {"prefix": "/empty"}, "direct_response": {"status": 503}},
            {"match": {"prefix": "/"}, "route": {"cluster": "calls"}},
        ])),
        "http_filters": [filter("web", "grpc_web.v3.GrpcWeb", json!({})), router()],
    });
    let mut suite = Suite {
        listeners: vec![("main", listener)],
        services: vec![(
            "plain",
            Arc::new(|head: &str, _: &[u8]| match head.contains("/plain/web") {
                true => answer(
                    "200 OK",
                    &[("content-type", "application/grpc-web+proto; a=b")],
                    "\0\0\0\0\x03raw",
                ),
                false => answer("500 No", &[("content-type", "text/html")], "<no ~>"),
            }),
        )],
        grpc: vec![("calls", service)],
        extra: Vec::new(),
        node: json!({}),
        log: "%GRPC_STATUS%",
        stats: &["grpc-web"],
        requests: Vec::new(),
    };
    // A message of two bytes, `ok`, and one of `no`; the same in base64.
    let bodies = ["\0\0\0\0\x02ok", "\0\0\0\0\x02no", "AAAAAAJvaw==", "AAAAAAJvaw=", "A***", "AAAAAAJv", ""];
    let kinds = [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpc-web-text+proto",
        "application/grpc-web+json",
        "text/plain",
    ];
    for kind in kinds {
        for body in bodies {
            suite.ask("main", "POST /s.S/M", &[("content-type", kind)], body);
        }
        let body = if kind.contains("text") { "AAAAAAJvaw==" } else { "\0\0\0\0\x02ok" };
        for path in ["/s.S/M?q", "/plain/web", "/plain/x", "/none", "/empty", "/a/b/c"] {
            let headers = [("content-type", kind), ("accept", "application/grpc-web-text"), ("te", "x")];
            // Envoy does not come to the end of such an answer in base64.
            if path != "/plain/web" {
                suite.ask("main", &format!("POST {path}"), &headers, body);
            }
            suite.ask("main", &format!("POST {path}"), &headers[..1], body);
        }
    }
    compare(&suite);
}
