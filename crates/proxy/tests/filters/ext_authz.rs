//! `envoy.filters.http.ext_authz`.

#![allow(deprecated, reason = "what is deprecated is compared too")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use auth::check_response::HttpResponse;
use core::header_value_option::HeaderAppendAction as Action;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::service::auth::v3 as auth;
use leno_api::proto::envoy::r#type::v3 as types;
use leno_api::proto::google::rpc;
use prost::Message;
use serde_json::{Value, json};

use crate::{GrpcAnswer, Suite, answer, compare, everything, filter, router, routes};

fn suite() -> Suite {
    Suite {
        listeners: Vec::new(),
        services: Vec::new(),
        grpc: Vec::new(),
        extra: Vec::new(),
        node: json!({"labels": {"app": "a", "version": "v1"}, "number": 5}),
        log: "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:a)%",
        stats: &["ext_authz", "cluster.up.upstream_rq_4", "cluster.up.internal"],
        requests: Vec::new(),
    }
}

/// The question without what differs from run to run.
fn shown(question: &auth::CheckRequest) -> String {
    let attributes = question.attributes.clone().unwrap_or_default();
    let auth::AttributeContext {
        source,
        destination,
        request,
        context_extensions,
        metadata_context,
        route_metadata_context,
        tls_session,
    } = attributes;
    let mut text = String::new();
    for (name, peer) in [("source", source), ("destination", destination)] {
        let mut peer = peer.unwrap_or_default();
        if let Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) }) =
            &mut peer.address
        {
            socket.port_specifier = None;
        }
        let labels: BTreeMap<_, _> = std::mem::take(&mut peer.labels).into_iter().collect();
        let _ = writeln!(text, "{name}: {peer:?} {labels:?}");
    }
    let request = request.unwrap_or_default();
    let _ = writeln!(text, "time: {}", request.time.is_some_and(|time| time.seconds > 1_600_000_000));
    let mut http = request.http.unwrap_or_default();
    let _ = writeln!(text, "id: {}", http.id.parse::<u64>().is_ok());
    http.id.clear();
    let mut headers: Vec<_> = std::mem::take(&mut http.headers).into_iter().collect();
    let map = http.header_map.take();
    let _ = writeln!(text, "map: {}", map.is_some());
    let raw = map.unwrap_or_default().headers.into_iter();
    headers.extend(raw.map(|header| (header.key, String::from_utf8_lossy(&header.raw_value).into_owned())));
    headers.sort();
    headers.retain(|(name, _)| name != "x-request-id");
    let _ = writeln!(text, "{http:?}\n{headers:?}");
    let extensions: BTreeMap<_, _> = context_extensions.into_iter().collect();
    let _ = writeln!(text, "{extensions:?} {metadata_context:?} {route_metadata_context:?} {tls_session:?}");
    text
}

fn option(key: &str, value: &str, action: Action) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
        append_action: action.into(),
        ..Default::default()
    }
}

fn old_option(key: &str, value: &str, append: bool) -> core::HeaderValueOption {
    core::HeaderValueOption { append: Some(append), ..option(key, value, Action::AppendIfExistsOrAdd) }
}

/// All kinds of changes of headers that are there (`x-there`) and that are not.
fn options() -> Vec<core::HeaderValueOption> {
    let actions = [
        Action::AppendIfExistsOrAdd,
        Action::AddIfAbsent,
        Action::OverwriteIfExistsOrAdd,
        Action::OverwriteIfExists,
    ];
    let mut options = Vec::new();
    for (index, action) in actions.into_iter().enumerate() {
        options.push(option(&format!("x-there-{index}"), &format!("v{index}"), action));
        options.push(option(&format!("X-New-{index}"), &format!("v{index}"), action));
    }
    for append in [true, false] {
        options.push(old_option(&format!("x-there-{append}"), "old", append));
        options.push(old_option(&format!("x-new-{append}"), "old", append));
    }
    options
}

const THERE: &[(&str, &str)] = &[
    ("x-there-0", "0"),
    ("x-there-1", "0"),
    ("x-there-2", "0"),
    ("x-there-3", "0"),
    ("x-there-true", "0"),
    ("x-there-false", "0"),
    ("x-gone", "0"),
    ("x-envoy-auth-partial-body", "spoof"),
    ("authorization", "basic"),
    ("x-twice", "1"),
    ("x-twice", "2"),
];

/// What the service says by the path.
fn service() -> Arc<GrpcAnswer> {
    Arc::new(|message| {
        let question = auth::CheckRequest::decode(message).expect("a question");
        let shown = shown(&question);
        let attributes = question.attributes.unwrap_or_default();
        let path = attributes.request.and_then(|request| request.http).unwrap_or_default().path;
        let status = |code| Some(rpc::Status { code, ..Default::default() });
        let denied = |code, headers, body: &str| auth::DeniedHttpResponse {
            status: Some(types::HttpStatus { code }),
            headers,
            body: body.to_owned(),
        };
        let metadata = |key: &str| {
            let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("m".into())) };
            Some(prost_types::Struct { fields: [(key.to_owned(), value)].into() })
        };
        let (code, response, dynamic_metadata) = match path.split('?').next().unwrap_or_default() {
            "/denied" => (7, None, None),
            "/denied/more" => {
                (7, Some(HttpResponse::DeniedResponse(denied(401, options(), "you may not"))), metadata("a"))
            }
            "/denied/bad" => (
                7,
                Some(HttpResponse::DeniedResponse(denied(
                    0,
                    vec![option("x-a", "a\nb", Action::AddIfAbsent)],
                    "b",
                ))),
                None,
            ),
            "/failed" => (7, Some(HttpResponse::ErrorResponse(denied(418, options(), "an error"))), None),
            "/failed/plain" => (7, Some(HttpResponse::ErrorResponse(denied(0, Vec::new(), ""))), None),
            "/ok/denied" => {
                (7, Some(HttpResponse::OkResponse(auth::OkHttpResponse::default())), metadata("a"))
            }
            "/changes" => {
                let ok = auth::OkHttpResponse {
                    headers: options(),
                    headers_to_remove: ["X-Gone", ":path", "host", "x-none"].map(Into::into).into(),
                    response_headers_to_add: options(),
                    query_parameters_to_set: vec![
                        core::QueryParameter { key: "q".into(), value: "new".into() },
                        core::QueryParameter { key: "z".into(), value: "1%20".into() },
                    ],
                    query_parameters_to_remove: vec!["r".into()],
                    dynamic_metadata: None,
                };
                (0, Some(HttpResponse::OkResponse(ok)), metadata("a"))
            }
            "/system" => {
                let names = [":path", ":method", "x-envoy-a", ":scheme", "x-allowed"];
                let values = ["/other", "PUT", "1", "https", "1"];
                let headers = names.iter().zip(values);
                let headers = headers
                    .map(|(name, value)| option(name, value, Action::OverwriteIfExistsOrAdd))
                    .collect();
                let ok = auth::OkHttpResponse { headers, ..Default::default() };
                (0, Some(HttpResponse::OkResponse(ok)), None)
            }
            "/bad" => {
                let headers = vec![option("x a", "1", Action::AddIfAbsent)];
                (
                    0,
                    Some(HttpResponse::OkResponse(auth::OkHttpResponse { headers, ..Default::default() })),
                    None,
                )
            }
            "/unknown" => {
                let headers = vec![core::HeaderValueOption {
                    append_action: 77,
                    ..option("x-u", "1", Action::AddIfAbsent)
                }];
                (
                    0,
                    Some(HttpResponse::OkResponse(auth::OkHttpResponse { headers, ..Default::default() })),
                    None,
                )
            }
            "/reroute" => {
                let headers = vec![option("x-route", "second", Action::AddIfAbsent)];
                (
                    0,
                    Some(HttpResponse::OkResponse(auth::OkHttpResponse { headers, ..Default::default() })),
                    None,
                )
            }
            "/breaks" => return (None, shown),
            _ => (0, None, None),
        };
        let said = auth::CheckResponse { status: status(code), dynamic_metadata, http_response: response };
        (Some(said.encode_to_vec()), shown)
    })
}

/// A listener with the filter behind one that sets metadata.
fn listener(config: Value, routes: Value) -> Value {
    let metadata = filter(
        "metadata",
        "set_metadata.v3.Config",
        json!({"metadata": [{"metadata_namespace": "ns", "value": {"k": "v", "n": 1, "l": [true, null]}}]}),
    );
    json!({
        "route_config": routes,
        "http_filters": [metadata, filter("authz", "ext_authz.v3.ExtAuthz", config), router()],
    })
}

fn grpc(mut config: Value) -> Value {
    config["grpc_service"] = json!({
        "envoy_grpc": {"cluster_name": "authz"},
        "timeout": "5s",
        "initial_metadata": [{"key": "X-Init", "value": "%REQ(x-twice)%"}],
    });
    config["transport_api_version"] = "V3".into();
    config
}

fn per_route(settings: Value) -> Value {
    let mut settings = settings;
    settings["@type"] =
        "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute".into();
    json!({"authz": settings})
}

#[test]
fn grpc_services() {
    let mut suite = suite();
    suite.grpc = vec![("authz", service()), ("other", service())];
    let table = routes(&json!([
        {"match": {"prefix": "/", "headers": [{"name": "x-route", "string_match": {"exact": "second"}}]}, "direct_response": {"status": 200, "body": {"inline_string": "second"}}},
        {"match": {"prefix": "/off"}, "route": {"cluster": "up"}, "typed_per_filter_config": per_route(json!({"disabled": true}))},
        {"match": {"prefix": "/settings"}, "route": {"cluster": "up"}, "metadata": {"filter_metadata": {"rm": {"x": "y"}}},
         "typed_per_filter_config": per_route(json!({"check_settings": {"context_extensions": {"a": "b", "c": "d"}, "disable_request_body_buffering": true}}))},
        {"match": {"prefix": "/body"}, "route": {"cluster": "up"}, "typed_per_filter_config": per_route(json!({"check_settings": {"with_request_body": {"max_request_bytes": 4, "allow_partial_message": true}}}))},
        {"match": {"prefix": "/elsewhere"}, "route": {"cluster": "up"}, "typed_per_filter_config": per_route(json!({"check_settings": {"grpc_service": {"envoy_grpc": {"cluster_name": "other", "authority": "auth.test"}, "timeout": "3s"}}}))},
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 201}},
        {"match": {"prefix": "/"}, "route": {"cluster": "up"}},
    ]));
    let namespaces = json!({
        "metadata_context_namespaces": ["ns", "none"],
        "route_metadata_context_namespaces": ["rm"],
        "bootstrap_metadata_labels_key": "labels",
        "include_peer_certificate": true,
        "include_tls_session": true,
        "clear_route_cache": true,
    });
    suite.listeners = vec![
        ("plain", listener(grpc(json!({})), table.clone())),
        ("told", listener(grpc(namespaces), table.clone())),
        (
            "body",
            listener(
                grpc(json!({"with_request_body": {"max_request_bytes": 8}, "stat_prefix": "mine"})),
                table.clone(),
            ),
        ),
        (
            "partial",
            listener(
                grpc(
                    json!({"with_request_body": {"max_request_bytes": 8, "allow_partial_message": true, "pack_as_bytes": true}, "encode_raw_headers": true}),
                ),
                table.clone(),
            ),
        ),
        (
            "lenient",
            listener(
                grpc(
                    json!({"failure_mode_allow": true, "failure_mode_allow_header_add": true, "charge_cluster_response_stats": false}),
                ),
                table.clone(),
            ),
        ),
        (
            "strict",
            listener(
                grpc(
                    json!({"validate_mutations": true, "status_on_error": {"code": "ServiceUnavailable"}, "max_denied_response_body_bytes": 3, "enable_dynamic_metadata_ingestion": false, "allowed_headers": {"patterns": [{"prefix": "x-t"}]}, "disallowed_headers": {"patterns": [{"exact": "x-twice"}]}}),
                ),
                table.clone(),
            ),
        ),
        ("rules", listener(grpc(json!({"decoder_header_mutation_rules": {}})), table.clone())),
        (
            "ruled",
            listener(
                grpc(
                    json!({"decoder_header_mutation_rules": {"disallow_all": true, "allow_expression": {"regex": "x-(new|allowed).*"}, "disallow_expression": {"regex": "x-new-1"}}}),
                ),
                table.clone(),
            ),
        ),
        (
            "routing",
            listener(
                grpc(
                    json!({"decoder_header_mutation_rules": {"allow_all_routing": true, "allow_envoy": true, "disallow_is_error": true}}),
                ),
                table.clone(),
            ),
        ),
        (
            "off",
            listener(grpc(json!({"filter_enabled": {"default_value": {"numerator": 0}}})), table.clone()),
        ),
        (
            "off_denied",
            listener(
                grpc(
                    json!({"filter_enabled": {"default_value": {"numerator": 0}}, "deny_at_disable": {"default_value": true, "runtime_key": "a"}}),
                ),
                table.clone(),
            ),
        ),
        (
            "by_metadata",
            listener(
                grpc(
                    json!({"filter_enabled_metadata": {"filter": "ns", "path": [{"key": "k"}], "value": {"string_match": {"exact": "x"}}}}),
                ),
                table.clone(),
            ),
        ),
        (
            "nobody",
            listener(
                json!({"grpc_service": {"envoy_grpc": {"cluster_name": "nobody"}}, "transport_api_version": "V3"}),
                table,
            ),
        ),
    ];
    let paths = [
        "/ok?q=1&r=2",
        "/denied",
        "/denied/more",
        "/failed",
        "/failed/plain",
        "/ok/denied",
        "/changes?q=old&r=2&a=%20b",
        "/system",
        "/bad",
        "/unknown",
        "/reroute",
        "/breaks",
        "/off",
        "/settings",
        "/elsewhere",
        "/direct",
    ];
    let names: Vec<&str> = suite.listeners.iter().map(|(name, _)| *name).collect();
    for listener in names {
        for path in paths {
            suite.ask(listener, &format!("GET {path}"), THERE, "");
        }
        if listener == "strict" {
            // Elsewhere Envoy writes what is no header.
            suite.ask(listener, "GET /denied/bad", THERE, "");
        }
        for body in ["a", "12345678", "123456789"] {
            suite.ask(listener, "POST /ok", &[], body);
            suite.ask(listener, "POST /settings", &[], body);
            suite.ask(listener, "POST /body", &[], body);
            suite.ask(listener, "POST /denied", &[], body);
        }
    }
    compare(&suite);
}

#[test]
fn http_services() {
    let mut suite = suite();
    let service = |head: &str, body: &[u8]| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let headers = [
            ("x-a", "1"),
            ("x-b", "2"),
            ("x-c", "3"),
            ("X-Twice", "9"),
            ("x-envoy-auth-headers-to-remove", "x-gone, X-There-0"),
            ("www-authenticate", "Basic"),
            ("content-type", "text/html"),
        ];
        let body = format!("<{}>", String::from_utf8_lossy(body));
        match path.rsplit('/').next() {
            Some("denied") => answer("401 No", &headers, &body),
            Some("redirected") => answer("302 Found", &[("location", "http://x/")], ""),
            Some("failed") => answer("503 No", &headers, "no"),
            _ => answer("200 OK", &headers, &body),
        }
    };
    suite.services = vec![("authz", Arc::new(service))];
    let http = |mut config: Value, service: Value| {
        let mut all = json!({"server_uri": {"uri": "http://authz.test:1/ignored", "cluster": "authz", "timeout": "5s"}});
        for (key, value) in service.as_object().expect("an object") {
            all[key] = value.clone();
        }
        config["http_service"] = all;
        listener(config, everything())
    };
    let names = |names: &[&str]| json!({"patterns": names.iter().map(|name| json!({"exact": name})).collect::<Vec<_>>()});
    suite.listeners = vec![
        ("plain", http(json!({}), json!({}))),
        (
            "prefix",
            http(
                json!({"allowed_headers": names(&["x-twice", "x-envoy-auth-partial-body"])}),
                json!({"path_prefix": "/pre"}),
            ),
        ),
        (
            "told",
            http(
                json!({"with_request_body": {"max_request_bytes": 8, "allow_partial_message": true}, "disallowed_headers": names(&["authorization"]), "failure_mode_allow": true, "encode_raw_headers": true}),
                json!({
                    "path_override": "/over/denied",
                    "authorization_request": {"allowed_headers": names(&["x-twice"]), "headers_to_add": [{"key": "x-added", "value": "%REQ(x-gone)%"}, {"key": "x-twice", "value": "z"}]},
                    "authorization_response": {"allowed_client_headers": names(&["x-a"])},
                }),
            ),
        ),
        (
            "answers",
            http(
                json!({}),
                json!({"authorization_response": {
                    "allowed_upstream_headers": names(&["x-a", "x-twice"]),
                    "allowed_upstream_headers_to_append": names(&["x-b"]),
                    "allowed_client_headers_on_success": names(&["x-c", "server"]),
                    "dynamic_metadata_from_headers": {"patterns": [{"exact": "a"}, {"prefix": "x-"}]},
                }}),
            ),
        ),
        (
            "nobody",
            http(json!({}), json!({"server_uri": {"uri": "http://x", "cluster": "nobody", "timeout": "1s"}})),
        ),
    ];
    let listeners: Vec<&str> = suite.listeners.iter().map(|(name, _)| *name).collect();
    for listener in listeners {
        for path in ["/ok?a=b", "/denied", "/redirected", "/failed"] {
            suite.ask(listener, &format!("GET {path}"), THERE, "");
        }
        suite.ask(listener, "POST /ok", &[], "12345678");
        suite.ask(listener, "POST /denied", &[], "123456789");
    }
    compare(&suite);
}
