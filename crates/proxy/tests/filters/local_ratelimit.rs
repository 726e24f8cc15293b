//! `envoy.filters.http.local_ratelimit`.

use serde_json::{Value, json};

use crate::{Suite, compare, filter, router, routes};

/// A bucket that does not fill while the test runs.
fn bucket(max: u32) -> Value {
    json!({"max_tokens": max, "tokens_per_fill": 1, "fill_interval": "100000s"})
}

fn always() -> Value {
    json!({"default_value": {"numerator": 100}})
}

/// The filter's settings, in force.
fn limit(mut settings: Value) -> Value {
    for (key, value) in
        [("filter_enabled", always()), ("filter_enforced", always()), ("stat_prefix", "lim".into())]
    {
        if settings.get(key).is_none() {
            settings[key] = value;
        }
    }
    settings
}

fn per_route(settings: Value) -> Value {
    let mut settings = limit(settings);
    settings["@type"] =
        "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit".into();
    json!({"limit": settings})
}

fn key(value: &str) -> Value {
    json!({"actions": [{"generic_key": {"descriptor_value": value}}]})
}

fn entry(entries: &[(&str, &str)], max: u32) -> Value {
    let entries: Vec<Value> =
        entries.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({"entries": entries, "token_bucket": bucket(max)})
}

fn listener(settings: Value, table: Value) -> Value {
    let metadata = filter(
        "metadata",
        "set_metadata.v3.Config",
        json!({"metadata": [{"metadata_namespace": "ns", "value": {"k": {"l": "deep"}, "e": ""}}]}),
    );
    json!({
        "route_config": table,
        "http_filters": [metadata, filter("limit", "local_ratelimit.v3.LocalRateLimit", limit(settings)), router()],
    })
}

fn table(rate_limits: Value, host_limits: Value) -> Value {
    let mut table = routes(&json!([
        {"match": {"prefix": "/own"}, "route": {"cluster": "up"},
         "typed_per_filter_config": per_route(json!({"token_bucket": bucket(1), "status": {"code": "ServiceUnavailable"}, "stat_prefix": "own"}))},
        {"match": {"prefix": "/off"}, "route": {"cluster": "up"},
         "typed_per_filter_config": per_route(json!({"filter_enabled": {"default_value": {"numerator": 0}}, "token_bucket": bucket(1)}))},
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 200}},
        {"match": {"prefix": "/plain"}, "route": {"cluster": "up"}},
        {"match": {"prefix": "/with"}, "route": {"cluster": "up", "rate_limits": rate_limits, "include_vh_rate_limits": true}},
        {"match": {"prefix": "/"}, "route": {"cluster": "up", "rate_limits": rate_limits}, "metadata": {"filter_metadata": {"rm": {"x": "route"}}}},
    ]));
    table["virtual_hosts"][0]["rate_limits"] = host_limits;
    table
}

fn suite() -> Suite {
    Suite {
        listeners: Vec::new(),
        services: Vec::new(),
        grpc: Vec::new(),
        extra: Vec::new(),
        node: json!({}),
        log: "-",
        stats: &["rate_limit"],
        requests: Vec::new(),
    }
}

#[test]
fn buckets_of_the_filter_and_of_routes() {
    let mut suite = suite();
    let none = || table(json!([]), json!([]));
    suite.listeners = vec![
        ("two", listener(json!({"token_bucket": bucket(2)}), none())),
        (
            "told",
            listener(
                json!({
                    "token_bucket": bucket(2), "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
                    "enable_retry_after_header": true,
                    "response_headers_to_add": [{"header": {"key": "x-limited", "value": "%REQ(x-case)%"}}],
                }),
                none(),
            ),
        ),
        (
            "shadow",
            listener(
                json!({
                    "token_bucket": bucket(1), "filter_enforced": {"default_value": {"numerator": 0}},
                    "request_headers_to_add_when_not_enforced": [{"header": {"key": "x-over", "value": "1"}}],
                    "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
                }),
                none(),
            ),
        ),
        ("status", listener(json!({"token_bucket": bucket(1), "status": {"code": "OK"}}), none())),
        (
            "grpc",
            listener(json!({"token_bucket": bucket(1), "rate_limited_as_resource_exhausted": true}), none()),
        ),
        (
            "each",
            listener(
                json!({"token_bucket": bucket(1), "local_rate_limit_per_downstream_connection": true}),
                none(),
            ),
        ),
        (
            "default",
            listener(
                json!({"token_bucket": bucket(1), "filter_enabled": {"default_value": {"numerator": 0}}}),
                none(),
            ),
        ),
        ("nothing", listener(json!({}), none())),
    ];
    let names: Vec<&str> = suite.listeners.iter().map(|(name, _)| *name).collect();
    for listener in names {
        for path in ["/", "/", "/", "/own", "/own", "/off", "/off", "/direct", "/direct"] {
            suite.ask(listener, &format!("GET {path}"), &[], "");
        }
        suite.ask(listener, "POST /", &[("content-type", "application/grpc")], "");
        suite.ask(listener, "POST /", &[("content-type", "application/grpc")], "");
    }
    compare(&suite);
}

#[test]
fn descriptors() {
    let mut suite = suite();
    let limits = |limits: Value| table(limits, json!([key("host")]));
    let actions = [
        (
            "header",
            json!([{"request_headers": {"header_name": "x-h", "descriptor_key": "h"}}]),
            vec![("h", "1")],
        ),
        (
            "skipped",
            json!([{"request_headers": {"header_name": "x-h", "descriptor_key": "h", "skip_if_absent": true}}, {"generic_key": {"descriptor_value": "g"}}]),
            vec![("generic_key", "g")],
        ),
        ("address", json!([{"remote_address": {}}]), vec![("remote_address", "127.0.0.1")]),
        (
            "masked",
            json!([{"masked_remote_address": {"v4_prefix_mask_len": 8}}]),
            vec![("masked_remote_address", "127.0.0.0/8")],
        ),
        (
            "keyed",
            json!([{"generic_key": {"descriptor_value": "v", "descriptor_key": "k"}}, {"source_cluster": {}}, {"destination_cluster": {}}]),
            vec![("k", "v"), ("source_cluster", "group"), ("destination_cluster", "up")],
        ),
        (
            "matched",
            json!([{"header_value_match": {"descriptor_value": "m", "headers": [{"name": "x-h", "string_match": {"exact": "1"}}]}}]),
            vec![("header_match", "m")],
        ),
        (
            "unmatched",
            json!([{"header_value_match": {"descriptor_value": "m", "descriptor_key": "n", "expect_match": false, "headers": [{"name": "x-h"}]}}]),
            vec![("n", "m")],
        ),
        (
            "query",
            json!([{"query_parameter_value_match": {"descriptor_value": "q", "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}]}}]),
            vec![("query_match", "q")],
        ),
        (
            "parameter",
            json!([{"query_parameters": {"query_parameter_name": "q", "descriptor_key": "p"}}]),
            vec![("p", "1")],
        ),
        (
            "metadata",
            json!([{"metadata": {"descriptor_key": "d", "metadata_key": {"key": "ns", "path": [{"key": "k"}, {"key": "l"}]}}}]),
            vec![("d", "deep")],
        ),
        (
            "absent",
            json!([{"metadata": {"descriptor_key": "d", "metadata_key": {"key": "ns", "path": [{"key": "e"}]}, "default_value": "def"}}]),
            vec![("d", "def")],
        ),
        (
            "route",
            json!([{"metadata": {"descriptor_key": "r", "source": "ROUTE_ENTRY", "metadata_key": {"key": "rm", "path": [{"key": "x"}]}}}]),
            vec![("r", "route")],
        ),
        ("stage", json!([{"generic_key": {"descriptor_value": "s"}}]), vec![("generic_key", "t")]),
        ("any", json!([{"request_headers": {"header_name": "x-h", "descriptor_key": "h"}}]), vec![("h", "")]),
    ];
    for (name, actions, entries) in &actions {
        let settings = json!({"token_bucket": bucket(4), "descriptors": [entry(entries, 1), entry(&[("generic_key", "host")], 2)]});
        suite.listeners.push((name, listener(settings, limits(json!([{"actions": actions}])))));
    }
    let two = json!({"token_bucket": bucket(2), "descriptors": [entry(&[("generic_key", "a")], 3)]});
    let mut spared = two.clone();
    spared["always_consume_default_token_bucket"] = false.into();
    let mut ignoring = two.clone();
    ignoring["vh_rate_limits"] = "IGNORE".into();
    let mut own = two.clone();
    own["rate_limits"] = json!([key("a"), {"actions": [{"generic_key": {"descriptor_value": "b"}}], "hits_addend": {"number": 2}}]);
    let mut staged = two.clone();
    staged["stage"] = 3.into();
    suite.listeners.extend([
        ("two", listener(two, limits(json!([key("a")])))),
        ("spared", listener(spared, limits(json!([key("a")])))),
        ("ignoring", listener(ignoring, limits(json!([])))),
        ("own", listener(own, limits(json!([])))),
        ("staged", listener(staged, limits(json!([{"stage": 3, "actions": [{"generic_key": {"descriptor_value": "a"}}]}, key("b")])))),
        (
            "own_hits",
            listener(
                json!({"descriptors": [entry(&[("generic_key", "a")], 5)], "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "a"}}], "hits_addend": {"number": 2}}]}),
                limits(json!([])),
            ),
        ),
        (
            "hits",
            listener(
                json!({"descriptors": [entry(&[("generic_key", "a")], 5)]}),
                limits(json!([{"actions": [{"generic_key": {"descriptor_value": "a"}}], "hits_addend": {"number": 2}}])),
            ),
        ),
    ]);
    let names: Vec<&str> = suite.listeners.iter().map(|(name, _)| *name).collect();
    for listener in names {
        for path in ["/?q=1", "/?q=1", "/?q=2", "/plain", "/plain", "/plain", "/with", "/with"] {
            suite.ask(listener, &format!("GET {path}"), &[("x-h", "1")], "");
        }
        suite.ask(listener, "GET /", &[], "");
        suite.ask(listener, "GET /", &[("x-h", "2")], "");
        suite.ask(listener, "GET /", &[("x-h", "2")], "");
    }
    compare(&suite);
}
