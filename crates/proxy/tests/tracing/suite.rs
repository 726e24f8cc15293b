//! The requests, and the proxies that they are sent through.

use serde_json::{Value, json};

use crate::{Case, Listener, Suite, router};

fn routes() -> Value {
    let up = json!({"cluster": "up"});
    let route = |prefix: &str, more: Value| {
        let mut route = json!({"match": {"prefix": prefix}});
        crate::merge(&mut route, more);
        route
    };
    json!([
        route("/redirect", json!({"redirect": {"path_redirect": "/x"}})),
        route("/direct", json!({"direct_response": {"status": 200, "body": {"inline_string": "hi"}}})),
        route("/dec", json!({"route": up, "decorator": {"operation": "my-op"}})),
        route("/nop", json!({"route": up, "decorator": {"operation": "my-op", "propagate": false}})),
        route(
            "/retry",
            json!({"route": {"cluster": "up", "retry_policy": {"retry_on": "5xx", "num_retries": 2}}})
        ),
        route("/dead", json!({"route": {"cluster": "dead"}})),
        route("/nocluster", json!({"route": {"cluster": "missing"}})),
        route(
            "/tags",
            json!({"route": up, "tracing": {"custom_tags": [
            {"tag": "lit", "literal": {"value": "of the route"}},
            {"tag": "fmt", "value": "%PROTOCOL%-%REQ(x-absent)%"}]}})
        ),
        route(
            "/op",
            json!({"route": up, "decorator": {"operation": "my-op"},
            "tracing": {"operation": "%REQ(x-h)% %RESPONSE_CODE%", "upstream_operation": "up %UPSTREAM_CLUSTER%"}})
        ),
        route("/off", json!({"route": up, "tracing": {"random_sampling": {"numerator": 0}}})),
        route("/overall", json!({"route": up, "tracing": {"overall_sampling": {"numerator": 0}}})),
        route(
            "/million",
            json!({"route": up, "tracing": {"random_sampling": {"numerator": 10_000, "denominator": "MILLION"}}})
        ),
        route(
            "/rewrite",
            json!({"route": {"cluster": "up", "prefix_rewrite": "/new", "host_rewrite_literal": "b.test"}})
        ),
        route("/redir", json!({"route": {"cluster": "up", "internal_redirect_policy": {}}})),
        route(
            "/meta",
            json!({"route": up, "metadata": {"filter_metadata": {"ns": {
            "k": {"a": [1, true, "s"]}, "t": "text", "num": 5, "b": true}}}})
        ),
        route("/ok", json!({"route": up})),
        route("/last", json!({"route": up})),
    ])
}

fn zipkin(more: Value) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "collector", "collector_endpoint": "/collect/zipkin",
        "collector_endpoint_version": "HTTP_JSON"});
    crate::merge(&mut config, more);
    json!({"name": "envoy.tracers.zipkin", "typed_config": config})
}

fn otlp(more: Value) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "http_service": {"http_uri": {"uri": "http://collector.test/collect/otlp", "cluster": "collector", "timeout": "1s"}},
        "service_name": "a service"});
    crate::merge(&mut config, more);
    json!({"name": "envoy.tracers.opentelemetry", "typed_config": config})
}

fn sampler(name: &str, more: Value) -> Value {
    let mut config = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.{name}SamplerConfig")});
    crate::merge(&mut config, more);
    json!({"name": name, "typed_config": config})
}

#[allow(clippy::needless_pass_by_value, reason = "literals are written in place")]
fn listener(name: &'static str, direction: &'static str, provider: Value, more: Value) -> Listener {
    let mut manager = json!({"tracing": {"provider": provider}});
    crate::merge(&mut manager, more);
    Listener { name, direction, manager }
}

const IN: &str = "INBOUND";
const OUT: &str = "OUTBOUND";

type Headers = &'static [(&'static str, &'static str)];

const B3: Headers =
    &[("x-b3-traceid", "{T}"), ("x-b3-spanid", "{S}"), ("x-b3-parentspanid", "{P}"), ("x-b3-sampled", "1")];
const SHORT_B3: Headers = &[("x-b3-traceid", "{t}"), ("x-b3-spanid", "{S}")];
const PARENT: Headers = &[("traceparent", "00-{T}-{S}-01"), ("tracestate", "a=b")];
const UNSAMPLED: Headers = &[("traceparent", "00-{T}-{S}-00")];

/// What any tracer does alike.
fn common(listener: &'static str) -> Vec<Case> {
    let paths: &[(&'static str, Headers)] = &[
        ("/ok?a=b", &[("x-h", "of the header"), ("user-agent", "me")]),
        ("/ok", &[("x-request-id", "12345678-1111-4111-8111-111111111111")]),
        ("/off", &[("x-request-id", "12345678-1111-9111-8111-111111111111")]),
        ("/off", &[("x-request-id", "12345678-1111-a111-8111-111111111111")]),
        ("/ok", &[("x-request-id", "short")]),
        ("/ok", &[("x-request-id", "12345678abc")]),
        ("/dec", &[]),
        ("/nop", &[]),
        ("/dec/decor", &[]),
        ("/ok/decor", &[]),
        ("/dec", &[("x-envoy-decorator-operation", "of the request")]),
        ("/dec", &[("x-envoy-decorator-operation", "")]),
        ("/op/decor", &[("x-h", "operation"), ("x-envoy-decorator-operation", "of the request")]),
        ("/retry/once", &[]),
        ("/retry/fail", &[]),
        ("/dead", &[]),
        ("/nocluster", &[]),
        ("/redirect", &[]),
        ("/direct", &[]),
        ("/nowhere", &[]),
        ("/tags", &[]),
        ("/rewrite", &[]),
        ("/off", &[]),
        ("/overall", &[]),
        ("/off", &[("x-client-trace-id", "client")]),
        ("/overall", &[("x-client-trace-id", "client")]),
        ("/off", &[("x-envoy-force-trace", "1")]),
        ("/off", &[("x-envoy-force-trace", "1"), ("x-forwarded-for", "127.0.0.1")]),
        ("/million", &[("x-request-id", "00002710-1111-4111-8111-111111111111")]),
        ("/ok/fail", &[]),
        ("/ok/c404", &[]),
        ("/ok/grpc0", &[("content-type", "application/grpc"), ("grpc-timeout", "1S")]),
        ("/ok/grpc5", &[("content-type", "application/grpc")]),
        ("/ok/grpc14", &[("content-type", "application/grpc")]),
        ("/ok/grpc14", &[]),
    ];
    paths.iter().map(|(path, headers)| Case { listener, path, headers }).collect()
}

#[test]
fn zipkin_spans() {
    let spawn = json!({"tracing": {"spawn_upstream_span": true}});
    let child = json!({"http_filters": [router(json!({"start_child_span": true}))]});
    let listeners = vec![
        listener("plain", "UNSPECIFIED", zipkin(json!({})), json!({"tracing": {"verbose": true}})),
        listener("in", IN, zipkin(json!({"shared_span_context": false, "trace_id_128bit": true})), json!({})),
        listener("out", OUT, zipkin(json!({})), json!({})),
        listener(
            "w3c",
            IN,
            zipkin(json!({"trace_context_option": "USE_B3_WITH_W3C_PROPAGATION"})),
            json!({}),
        ),
        listener(
            "w3c_out",
            OUT,
            zipkin(json!({"trace_context_option": "USE_B3_WITH_W3C_PROPAGATION", "trace_id_128bit": true})),
            json!({}),
        ),
        listener("spawn", OUT, zipkin(json!({})), spawn.clone()),
        listener("spawn_in", IN, zipkin(json!({"shared_span_context": false})), spawn),
        listener("split", OUT, zipkin(json!({"split_spans_for_request": true})), child.clone()),
        listener("child", IN, zipkin(json!({})), child.clone()),
        listener("child_unshared", IN, zipkin(json!({"shared_span_context": false})), child.clone()),
        listener("child_out", OUT, zipkin(json!({})), child),
        listener(
            "service",
            IN,
            zipkin(json!({"collector_cluster": "missing", "collector_service": {
                "http_uri": {"uri": "http://z.test:99/collect/zipkin?x=y", "cluster": "collector", "timeout": "2s"},
                "request_headers_to_add": [{"header": {"key": "X-Tok", "value": "abc"}}]}})),
            json!({}),
        ),
    ];
    let mut cases = common("plain");
    for listener in listeners.iter().map(|listener| listener.name) {
        for headers in [&[][..], B3, SHORT_B3, PARENT, UNSAMPLED, &[("b3", "{T}-{S}-1-{P}")]] {
            cases.push(Case { listener, path: "/ok", headers });
        }
    }
    let told: &[(&'static str, Headers)] = &[
        ("/ok", &[("b3", "0")]),
        ("/off", &[("b3", "1")]),
        ("/off", &[("b3", "d")]),
        ("/ok", &[("b3", "{t}-{S}")]),
        ("/ok", &[("b3", "{T}-{S}-d")]),
        ("/ok", &[("b3", "{T}-{S}-0-{P}")]),
        ("/ok", &[("b3", "")]),
        ("/ok", &[("b3", "x")]),
        ("/ok", &[("b3", "0000")]),
        ("/ok", &[("b3", "{T}-{S}-x")]),
        ("/ok", &[("b3", "{T}-{S}-1-")]),
        ("/ok", &[("b3", "{T}-{S}-1-{P}0")]),
        ("/ok", &[("x-b3-sampled", "0")]),
        ("/off", &[("x-b3-sampled", "1")]),
        ("/off", &[("x-b3-sampled", "true")]),
        ("/off", SHORT_B3),
        ("/off", B3),
        ("/ok", &[("x-b3-traceid", "zz"), ("x-b3-spanid", "b")]),
        ("/ok", &[("x-b3-traceid", "{T}"), ("x-b3-spanid", "zz")]),
        ("/ok", &[("x-b3-traceid", "{T}"), ("x-b3-spanid", "{S}"), ("x-b3-parentspanid", "zz")]),
        ("/ok", &[("x-b3-traceid", "{T}"), ("x-b3-spanid", "{S}"), ("x-b3-parentspanid", "")]),
        ("/ok", &[("x-b3-traceid", "{T}")]),
        ("/ok", &[("x-b3-traceid", "{t}"), ("x-b3-spanid", "{S}"), ("x-b3-sampled", "")]),
        ("/ok", &[("x-b3-traceid", "{t}"), ("x-b3-spanid", "{S}"), ("x-b3-flags", "1")]),
    ];
    for listener in ["plain", "out", "w3c"] {
        cases.extend(told.iter().map(|(path, headers)| Case { listener, path, headers }));
    }
    for headers in [
        &[("traceparent", "00-{T}-{S}-01"), ("x-b3-sampled", "0")][..],
        &[("traceparent", "00-{T}-{S}-01"), ("b3", "{t}-{P}-0")],
        &[("traceparent", "00-{T}-{S}"), ("tracestate", "a=b")],
    ] {
        cases.push(Case { listener: "w3c", path: "/ok", headers });
    }
    for listener in ["spawn", "child"] {
        for path in [
            "/retry/once",
            "/retry/fail",
            "/dead",
            "/nowhere",
            "/ok/c404",
            "/ok/grpc14",
            "/dec/decor",
            "/op",
            "/off",
        ] {
            cases.push(Case { listener, path, headers: &[] });
        }
    }
    Suite { listeners, routes: routes(), cases, bootstrap: json!({}) }.compare("Zipkin");
}

#[test]
fn opentelemetry_spans() {
    let tags = json!([
        {"tag": "lit", "literal": {"value": "of the manager"}},
        {"tag": "env", "environment": {"name": "LENO_TEST_NO_SUCH_VARIABLE", "default_value": "default"}},
        {"tag": "no env", "environment": {"name": "LENO_TEST_NO_SUCH_VARIABLE"}},
        {"tag": "hdr", "request_header": {"name": "X-H"}},
        {"tag": "no hdr", "request_header": {"name": "x-absent"}},
        {"tag": "default", "request_header": {"name": "x-absent", "default_value": "default"}},
        {"tag": "fm", "value": "%REQ(x-h)%"},
        {"tag": "http.method", "literal": {"value": "replaced"}},
        {"tag": "of trace", "value": "%TRACE_ID%"},
        {"tag": "m1", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "ns", "path": [{"key": "k"}]}}},
        {"tag": "m2", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "ns", "path": [{"key": "t"}]}}},
        {"tag": "m3", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "ns", "path": [{"key": "num"}]}}},
        {"tag": "m4", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "ns", "path": [{"key": "b"}]}}},
        {"tag": "m5", "metadata": {"kind": {"cluster": {}}, "metadata_key": {"key": "ns", "path": [{"key": "c"}]}, "default_value": "none"}},
        {"tag": "m6", "metadata": {"kind": {"request": {}}, "metadata_key": {"key": "ns", "path": [{"key": "c"}]}}},
        {"tag": "m7", "metadata": {"kind": {"host": {}}, "metadata_key": {"key": "ns", "path": [{"key": "c"}]}, "default_value": "none"}},
    ]);
    let ids = |config: Value| {
        let mut typed =
            json!({"@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"});
        crate::merge(&mut typed, config);
        json!({"request_id_extension": {"typed_config": typed}})
    };
    let unsampled = json!({"tracing": {"random_sampling": {"value": 0}}});
    let with = |first: &Value, second: Value| {
        let mut both = first.clone();
        crate::merge(&mut both, second);
        both
    };
    let health = |through: bool| {
        json!({"http_filters": [{"name": "health", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck",
            "pass_through_mode": through, "headers": [{"name": "x-health", "present_match": true}]}},
            router(json!({}))]})
    };
    let asks = |service: Value| {
        let mut config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", "transport_api_version": "V3"});
        crate::merge(&mut config, service);
        json!({"http_filters": [{"name": "authz", "typed_config": config}, router(json!({}))]})
    };
    let resources = json!({"set_telemetry_sdk_resource_attributes": false, "resource_detectors": [{"name": "static", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig",
        "attributes": {"k1": "v1", "service.name": "another", "empty": ""}}}]});
    let bare = json!({"set_service_name_resource_attribute": false, "set_instrumentation_scope": false, "service_name": "",
        "http_service": {"request_headers_to_add": [{"header": {"key": "X-Tok", "value": "abc"}}]}});
    let grpc = json!({"name": "envoy.tracers.opentelemetry", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "grpc_service": {"envoy_grpc": {"cluster_name": "grpc"}, "timeout": "1s",
            "initial_metadata": [{"key": "x-tok", "value": "abc"}]}}});
    let ratio = sampler("TraceIdRatioBased", json!({"sampling_percentage": {"numerator": 30}}));
    let parent = sampler("ParentBased", json!({"wrapped_sampler": sampler("AlwaysOn", json!({}))}));
    let spawn = json!({"tracing": {"spawn_upstream_span": true, "verbose": true, "custom_tags": [{"tag": "lit", "literal": {"value": "of the manager"}}]}});
    let listeners = vec![
        listener("in", IN, otlp(json!({})), json!({"tracing": {"verbose": true, "custom_tags": tags}})),
        listener("out", OUT, otlp(resources), json!({"always_set_request_id_in_response": true})),
        listener("spawn", OUT, otlp(bare), spawn.clone()),
        listener("spawn_in", IN, otlp(json!({})), spawn),
        listener(
            "child",
            IN,
            otlp(json!({})),
            json!({"http_filters": [router(json!({"start_child_span": true}))]}),
        ),
        listener("grpc", IN, grpc, json!({})),
        listener(
            "silent",
            IN,
            otlp(json!({})),
            json!({"tracing": {"no_context_propagation": true, "spawn_upstream_span": true}}),
        ),
        listener(
            "named",
            OUT,
            otlp(json!({})),
            json!({"tracing": {"operation": "op %REQ(x-h)%", "upstream_operation": "up %REQ(x-h)% %RESPONSE_CODE%", "spawn_upstream_span": true}}),
        ),
        listener("unpacked", IN, otlp(json!({})), ids(json!({"pack_trace_reason": false}))),
        listener(
            "undecided",
            IN,
            otlp(json!({})),
            with(&unsampled, ids(json!({"use_request_id_for_trace_sampling": false}))),
        ),
        listener("always", IN, otlp(json!({"sampler": sampler("AlwaysOn", json!({}))})), json!({})),
        listener("ratio", IN, otlp(json!({"sampler": ratio})), json!({})),
        listener("parent", IN, otlp(json!({"sampler": parent})), json!({})),
        listener(
            "edge",
            IN,
            otlp(json!({})),
            with(
                &unsampled,
                json!({"use_remote_address": true, "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0"}]}}),
            ),
        ),
        listener("inside", IN, otlp(json!({})), with(&unsampled, json!({"use_remote_address": true}))),
        listener("short", IN, otlp(json!({})), json!({"tracing": {"max_path_tag_length": 5}})),
        listener(
            "asks",
            IN,
            otlp(json!({})),
            asks(json!({"http_service": {"server_uri": {
            "uri": "http://authz.test/", "cluster": "up", "timeout": "5s"}}})),
        ),
        listener(
            "asks_nobody",
            IN,
            otlp(json!({})),
            asks(json!({"http_service": {"server_uri": {
            "uri": "http://authz.test/", "cluster": "dead", "timeout": "5s"}}})),
        ),
        listener(
            "asks_grpc",
            OUT,
            otlp(json!({})),
            asks(json!({"grpc_service": {"envoy_grpc": {
            "cluster_name": "grpc"}, "timeout": "5s"}})),
        ),
        listener(
            "asks_quietly",
            IN,
            otlp(json!({})),
            // What it is told is compared, too.
            asks(json!({"emit_client_span": false, "http_service": {
                "server_uri": {"uri": "http://authz.test/", "cluster": "up", "timeout": "5s"}, "path_prefix": "/authz",
                "authorization_request": {"allowed_headers": {"patterns": [{"exact": "x-case"}]}}}})),
        ),
        listener(
            "asks_grpc_quietly",
            OUT,
            otlp(json!({})),
            asks(json!({"emit_client_span": false, "grpc_service": {"envoy_grpc": {
            "cluster_name": "grpc"}, "timeout": "5s"}})),
        ),
        listener("health", IN, otlp(json!({})), health(false)),
        listener("health_through", IN, otlp(json!({})), health(true)),
    ];
    let mut cases = common("in");
    cases.extend(common("out"));
    for listener in listeners.iter().map(|listener| listener.name) {
        for headers in [PARENT, UNSAMPLED] {
            cases.push(Case { listener, path: "/ok", headers });
        }
        for path in ["/off", "/overall"] {
            cases.push(Case { listener, path, headers: PARENT });
        }
        if listener == "ratio" {
            // Identifiers that are made by chance are sampled by chance.
            continue;
        }
        for headers in [&[][..], B3] {
            cases.push(Case { listener, path: "/ok", headers });
        }
        cases.push(Case {
            listener,
            path: "/off",
            headers: &[("x-request-id", "12345678-1111-9111-8111-111111111111")],
        });
        cases.push(Case {
            listener,
            path: "/ok",
            headers: &[("x-request-id", "short"), ("x-client-trace-id", "client")],
        });
        cases.push(Case { listener, path: "/off", headers: &[("x-envoy-force-trace", "1")] });
        cases.push(Case {
            listener,
            path: "/dec",
            headers: &[("x-h", "q"), ("x-envoy-decorator-operation", "of the request")],
        });
    }
    for headers in [
        &[("traceparent", "01-{T}-{S}-03")][..],
        &[("traceparent", "00-00000000000000000000000000000000-{S}-01")],
        &[("traceparent", "00-{T}-0000000000000000-01")],
        &[("traceparent", "00-{T}-{S}-01-more")],
        &[("traceparent", "garbage")],
        &[("traceparent", "")],
        &[("traceparent", "00-{T}-{S}-01"), ("tracestate", "a=1"), ("tracestate", "b=2")],
        &[("tracestate", "a=1")],
        &[("traceparent", "garbage"), ("x-envoy-decorator-operation", "of the request")],
    ] {
        cases.push(Case { listener: "in", path: "/dec", headers });
    }
    for headers in [
        &[("traceparent", "00-b8a1abcd1a6916c74da4f9fc3c6da5d7-{S}-01")][..],
        &[("traceparent", "00-8ca5996666ceab360512bd1311072231-{S}-01")],
        &[("traceparent", "00-8534f45738d048ec0f1099c6c3e1b258-{S}-00")],
        &[("traceparent", "00-fd724452ccea71ff4a14876aeaff1a09-{S}-00")],
        &[("traceparent", "00-06905269ed6f0b09f165c8ce36e2f24b-{S}-01")],
        &[("traceparent", "00-634f806fabf4a07c566002249b191bf4-{S}-01")],
    ] {
        cases.push(Case { listener: "ratio", path: "/ok", headers });
    }
    for listener in ["spawn", "spawn_in", "child", "named"] {
        for path in [
            "/retry/once",
            "/retry/fail",
            "/dead",
            "/nowhere",
            "/direct",
            "/ok/c404",
            "/ok/fail",
            "/ok/grpc5",
            "/ok/grpc14",
            "/dec/decor",
            "/op",
            "/tags",
            "/off",
        ] {
            cases.push(Case { listener, path, headers: &[] });
        }
    }
    cases.push(Case { listener: "in", path: "/meta", headers: &[] });
    cases.push(Case {
        listener: "short",
        path: "/ok/long?and=more",
        headers: &[("x-forwarded-proto", "https")],
    });
    for path in ["/ok/fail", "/ok/c404", "/off"] {
        cases.push(Case { listener: "asks", path, headers: &[] });
    }
    for listener in ["health", "health_through"] {
        cases.push(Case { listener, path: "/ok", headers: &[("x-health", "1")] });
    }
    Suite { listeners, routes: routes(), cases, bootstrap: json!({}) }.compare("OpenTelemetry");
}

#[test]
fn the_provider_of_the_bootstrap() {
    let listeners = vec![
        Listener { name: "default", direction: IN, manager: json!({"tracing": {}}) },
        Listener { name: "none", direction: IN, manager: json!({}) },
        listener("own", IN, otlp(json!({})), json!({})),
    ];
    let names = ["default", "none", "own"];
    let cases = names.map(|listener| Case { listener, path: "/ok", headers: &[] }).into();
    let bootstrap = json!({"tracing": {"http": zipkin(json!({}))}});
    Suite { listeners, routes: routes(), cases, bootstrap }.compare("the bootstrap's");
}
