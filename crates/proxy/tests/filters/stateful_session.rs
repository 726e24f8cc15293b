//! `envoy.filters.http.stateful_session`.
//!
//! What cookies and headers say of endpoints differs by port, and cookies by the clock: what is
//! compared is where requests go that bring along what we write ourselves, and what is counted.

use serde_json::{Value, json};

use crate::{Suite, compare, filter, router, routes, typed};

fn session(kind: &str, config: Value, strict: bool) -> Value {
    let state = json!({"name": format!("envoy.http.stateful_session.{kind}"), "typed_config": typed(&format!("http.stateful_session.{kind}.v3.{}", match kind {
        "cookie" => "CookieBasedSessionState",
        "header" => "HeaderBasedSessionState",
        _ => "EnvelopeSessionState",
    }), config)});
    json!({"session_state": state, "strict": strict, "stat_prefix": format!("{kind}{strict}")})
}

fn listener(config: Value) -> Value {
    let per_route = |mut settings: Value| {
        settings["@type"] =
            "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute"
                .into();
        json!({"session": settings})
    };
    let header = session("header", json!({"name": "x-route"}), true);
    // The client is told another header than the endpoint's address.
    let hidden = json!([{"match": {"prefix": "/off"}, "route": {"cluster": "up"}, "typed_per_filter_config": per_route(json!({"disabled": true}))},
        {"match": {"prefix": "/route"}, "route": {"cluster": "up"}, "typed_per_filter_config": per_route(json!({"stateful_session": header}))},
        {"match": {"prefix": "/"}, "route": {"cluster": "up"}}]);
    let mut table = routes(&hidden);
    table["response_headers_to_remove"] = json!(["set-cookie", "x-s", "x-route"]);
    json!({
        "route_config": table,
        "http_filters": [
            filter("hide", "header_mutation.v3.HeaderMutation", json!({"mutations": {"response_mutations": [{"remove": "set-cookie"}, {"remove": "x-s"}, {"remove": "x-route"}]}})),
            filter("session", "stateful_session.v3.StatefulSession", config),
            router(),
        ],
    })
}

#[test]
fn sessions() {
    let mut suite = Suite {
        listeners: Vec::new(),
        services: Vec::new(),
        grpc: Vec::new(),
        extra: Vec::new(),
        node: json!({}),
        log: "%RESP(x-s)%",
        stats: &["stateful_session", "cluster.up.upstream_cx_none_healthy"],
        requests: Vec::new(),
    };
    for (name, strict) in [("lenient", false), ("strict", true)] {
        let suffix = |kind: &'static str| -> &'static str {
            match (kind, name) {
                ("cookie", "lenient") => "cookie_lenient",
                ("cookie", _) => "cookie_strict",
                ("header", "lenient") => "header_lenient",
                ("header", _) => "header_strict",
                (_, "lenient") => "envelope_lenient",
                _ => "envelope_strict",
            }
        };
        let cookie = json!({"cookie": {"name": "s", "path": "/p", "ttl": "0s"}});
        suite.listeners.push((suffix("cookie"), listener(session("cookie", cookie, strict))));
        suite.listeners.push((suffix("header"), listener(session("header", json!({"name": "x-s"}), strict))));
        let envelope = json!({"header": {"name": "x-s"}});
        suite.listeners.push((suffix("envelope"), listener(session("envelope", envelope, strict))));
    }
    let mut status = session("header", json!({"name": "x-s"}), true);
    status["status_on_strict_destination_not_found"] = 410.into();
    suite.listeners.push(("status", listener(status)));
    suite.listeners.push(("nothing", listener(json!({"stat_prefix": "none"}))));
    let names: Vec<&str> = suite.listeners.iter().map(|(name, _)| *name).collect();
    // `127.0.0.1:1`, where nobody is: as text, and as a cookie of protobuf.
    let gone = "MTI3LjAuMC4xOjE=";
    let cookie = "s=\"CgsxMjcuMC4wLjE6MQ==\"";
    for listener in names {
        for path in ["/p/a", "/q", "/off", "/route"] {
            suite.ask(listener, &format!("GET {path}"), &[], "");
            suite.ask(listener, &format!("GET {path}"), &[("cookie", cookie)], "");
            suite.ask(listener, &format!("GET {path}"), &[("cookie", "s=***"), ("x-s", "***")], "");
            suite.ask(listener, &format!("GET {path}"), &[("x-s", gone)], "");
            suite.ask(listener, &format!("GET {path}"), &[("x-route", gone)], "");
            suite.ask(listener, &format!("GET {path}"), &[("x-s", &format!("{gone};UV:aW5uZXI="))], "");
        }
    }
    compare(&suite);
}
