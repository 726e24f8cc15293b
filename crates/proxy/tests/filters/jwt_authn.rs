//! `envoy.filters.http.jwt_authn`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use leno_base::base64::encode_url as base64;
use serde_json::{Value, json};

use crate::{Answer, Suite, answer, compare, everything, filter, router, routes};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| base64(value.to_string().as_bytes());
    let text = format!("{}.{}", part(header), part(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
    format!("{text}.{}", base64(tag.as_ref()))
}

fn token(claims: &Value) -> String {
    signed(&json!({"alg": "HS256", "kid": "k"}), claims, SECRET)
}

fn set() -> Value {
    json!({"keys": [{"kty": "oct", "alg": "HS256", "kid": "k", "k": base64(SECRET)}]})
}

/// A provider with keys of its own.
fn local(mut provider: Value) -> Value {
    provider["local_jwks"] = json!({"inline_string": set().to_string()});
    provider
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A listener whose rules ask for what is called like the first part of the path.
fn listener(providers: &[(&str, Value)], requirements: &[(&str, Value)], more: Value) -> Value {
    let providers: serde_json::Map<String, Value> =
        providers.iter().map(|(name, provider)| ((*name).to_owned(), provider.clone())).collect();
    let map: serde_json::Map<String, Value> =
        requirements.iter().map(|(name, requirement)| ((*name).to_owned(), requirement.clone())).collect();
    let rules: Vec<Value> = requirements
        .iter()
        .map(|(name, _)| json!({"match": {"prefix": format!("/{name}/")}, "requirement_name": name}))
        .collect();
    let mut config = json!({"providers": providers, "requirement_map": map, "rules": rules});
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    json!({
        "route_config": everything(),
        "http_filters": [filter("jwt", "jwt_authn.v3.JwtAuthentication", config), router()],
    })
}

fn suite() -> Suite {
    Suite {
        listeners: Vec::new(),
        services: Vec::new(),
        grpc: Vec::new(),
        extra: Vec::new(),
        node: json!({}),
        log: "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn)%",
        stats: &["jwt_authn"],
        requests: Vec::new(),
    }
}

fn by(name: &str) -> Value {
    json!({"provider_name": name})
}

fn any<const N: usize>(of: [Value; N]) -> Value {
    json!({"requires_any": {"requirements": of.to_vec()}})
}

fn all<const N: usize>(of: [Value; N]) -> Value {
    json!({"requires_all": {"requirements": of.to_vec()}})
}

fn missing() -> Value {
    json!({"allow_missing": {}})
}

#[test]
fn claims_and_requirements() {
    let claims: [&str; 14] =
        ["sub", "n", "f", "neg", "t", "o", "o.p", "o.l", "arr", "nul", "big", "e", "iss", "none"];
    let to_headers: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"header_name": format!("x-{}", claim.replace('.', "-")), "claim_name": claim}))
        .chain([json!({"header_name": "x-path", "claim_path": [{"key": "a.b"}, {"key": "c"}]})])
        .collect();
    let providers = [
        (
            "full",
            json!({"issuer": "a", "payload_in_metadata": "pay", "header_in_metadata": "hdr", "forward_payload_header": "x-pay", "claim_to_headers": to_headers, "failed_status_in_metadata": "failed"}),
        ),
        ("subjects", json!({"issuer": "a", "subjects": {"prefix": "spiffe"}, "failed_status_in_metadata": "failed"})),
        ("mixed", json!({"issuer": "a", "subjects": {"prefix": "spiffe"}, "audiences": ["q"], "max_lifetime": "60s"})),
        ("lifetime", json!({"issuer": "a", "max_lifetime": "60s"})),
        ("long", json!({"issuer": "a", "max_lifetime": "100000000s"})),
        ("expiring", json!({"issuer": "a", "require_expiration": true})),
        ("audience", json!({"issuer": "a", "audiences": ["http://x/"]})),
        ("unwanted", json!({"issuer": "a", "audiences": ["q"]})),
        (
            "lists",
            json!({"issuer": "a", "payload_in_metadata": "pay", "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "n", "arr"]}, "forward": true, "pad_forward_payload_header": true, "forward_payload_header": "x-padded"}),
        ),
        ("other", json!({"issuer": "b"})),
        ("anybody", json!({"clock_skew_seconds": 7200})),
        (
            "places",
            json!({"issuer": "a", "from_headers": [{"name": "X-T", "value_prefix": "P "}, {"name": "x-u"}], "from_params": ["tk"], "from_cookies": ["ck"]}),
        ),
        ("cached", json!({"issuer": "a", "from_headers": [{"name": "x-c"}], "jwt_cache_config": {"jwt_cache_size": 2}})),
    ]
    .map(|(name, provider)| (name, local(provider)));
    let mut requirements: Vec<(&str, Value)> =
        providers.iter().map(|(name, _)| (*name, json!({"provider_name": name}))).collect();
    let of_any = vec![
        ("missing", missing()),
        ("failed", json!({"allow_missing_or_failed": {}})),
        ("extract", json!({"extract_only_without_validation": {}})),
        ("extract2", json!({"extract_only_without_validation": {"verification_status_header": "X-Ver"}})),
        ("anyfailed", any([by("other"), json!({"allow_missing_or_failed": {}}), missing()])),
    ];
    requirements.extend([
        ("any1", any([by("audience"), by("other")])),
        ("any2", any([by("other"), by("subjects")])),
        ("any3", any([by("anybody"), by("unwanted")])),
        ("any4", any([by("unwanted"), by("anybody")])),
        ("any5", any([by("cached"), by("other")])),
        ("anymissing", any([by("other"), missing()])),
        (
            "anyaudience",
            any([
                json!({"provider_and_audiences": {"provider_name": "full", "audiences": ["zz"]}}),
                missing(),
            ]),
        ),
        ("nested", any([all([by("other"), by("full")]), missing()])),
        ("all1", all([by("full"), by("expiring")])),
        ("all2", all([by("lists"), by("expiring")])),
        ("all3", all([any([by("other"), missing()]), any([by("anybody"), missing()])])),
        ("audiences", json!({"provider_and_audiences": {"provider_name": "full", "audiences": ["zz"]}})),
        ("nothing", json!({})),
    ]);
    // Where an issuer is looked for, there is one provider of it: it is a matter of chance which
    // of several Envoy takes.
    let distinct: Vec<(&str, Value)> =
        providers.iter().filter(|(name, _)| ["full", "other"].contains(name)).cloned().collect();
    let mut suite = suite();
    suite.listeners = vec![
        ("distinct", listener(&distinct, &of_any, json!({"stat_prefix": "distinct."}))),
        ("main", listener(&providers, &requirements, json!({"stat_prefix": "mine"}))),
        (
            "bare",
            listener(
                &providers,
                &requirements,
                json!({"strip_failure_response": true, "bypass_cors_preflight": true}),
            ),
        ),
    ];
    let expires = now() + 36000;
    let good = token(&json!({
        "iss": "a", "sub": "s", "aud": ["x", "https://y/"], "exp": expires, "n": 12, "f": 1.5, "neg": -3, "t": true,
        "o": {"p": ["q", 1, true]}, "arr": ["a", "b"], "scope": "a b  c", "nul": null,
        "big": 9_007_199_254_740_993_u64, "e": "", "a.b": {"c": "deep"},
    }));
    let bad = signed(&json!({"alg": "HS256"}), &json!({"iss": "a"}), b"another secret, as long as the one");
    let bearer = |token: &str| format!("Bearer {token}");
    for (name, _) in &requirements {
        for listener in ["main", "bare"] {
            suite.ask(listener, &format!("GET /{name}/?a=1"), &[("authorization", &bearer(&good))], "");
            suite.ask(listener, &format!("GET /{name}/"), &[("authorization", &bearer(&bad))], "");
            suite.ask(listener, &format!("GET /{name}/?q=%20"), &[], "");
        }
    }
    for (name, _) in &of_any {
        suite.ask("distinct", &format!("GET /{name}/?a=1"), &[("authorization", &bearer(&good))], "");
        suite.ask("distinct", &format!("GET /{name}/"), &[("authorization", &bearer(&bad))], "");
        suite.ask("distinct", &format!("GET /{name}/?q=%20"), &[("x-ver", "true")], "");
    }
    let header = |alg: &str| json!({"alg": alg});
    let tokens = [
        token(&json!({"iss": "a", "exp": now() - 3000})),
        token(&json!({"iss": "a", "exp": now() + 3000})),
        token(&json!({"iss": "a", "nbf": now() + 3000})),
        token(&json!({"iss": "c"})),
        token(&json!({})),
        token(&json!({"iss": 1})),
        token(&json!({"sub": 1})),
        token(&json!({"iss": "a", "exp": "1"})),
        token(&json!({"iss": "a", "exp": -1})),
        token(&json!({"iss": "a", "exp": expires as f64 + 0.5})),
        token(&json!({"iss": "a", "aud": 1})),
        token(&json!({"iss": "a", "jti": 1})),
        signed(&header("none"), &json!({"iss": "a"}), SECRET),
        signed(&header("HS384"), &json!({"iss": "a"}), SECRET),
        signed(&json!({"alg": "HS256", "kid": "z"}), &json!({"iss": "a"}), SECRET),
        signed(&json!({"alg": "HS256", "kid": 1}), &json!({"iss": "a"}), SECRET),
        signed(&json!({}), &json!({"iss": "a"}), SECRET),
        "a.b".into(),
        "a.b.c".into(),
        format!("{good}."),
        format!("{}.{}", good.rsplit_once('.').expect("a dot").0, "***"),
        String::new(),
    ];
    for token in &tokens {
        for name in ["full", "anybody", "expiring", "mixed"] {
            suite.ask("main", &format!("GET /{name}/"), &[("authorization", &bearer(token))], "");
        }
        for name in ["failed", "missing", "extract", "anyfailed"] {
            suite.ask("distinct", &format!("GET /{name}/"), &[("authorization", &bearer(token))], "");
        }
    }
    let others: [(&str, &[(&str, &str)]); 18] = [
        ("GET /full/", &[("authorization", &format!("bearer {good}"))]),
        ("GET /full/", &[("authorization", &format!("Basic x Bearer   {good}"))]),
        ("GET /full/", &[("authorization", &bearer(&good)), ("authorization", &bearer(&good))]),
        (&format!("GET /full/?access_token={good}&b=c&a="), &[]),
        (&format!("GET /full/?access_token={bad}"), &[("authorization", &bearer(&good))]),
        ("GET /places/", &[("x-t", &format!("zz P  {good}"))]),
        ("GET /places/", &[("x-t", "P ()")]),
        ("GET /places/", &[("x-u", &good), ("x-u", &bad)]),
        ("GET /places/", &[("x-u", &bad), ("x-u", &good)]),
        ("GET /places/", &[("cookie", &format!("a=b; ck=\"{good}\""))]),
        (&format!("GET /places/?z=1&tk={good}&b=2"), &[]),
        (&format!("GET /full/{}", "x".repeat(300)), &[]),
        ("GET /elsewhere", &[("authorization", &bearer(&bad)), ("x-sub", "evil"), ("x-pay", "evil")]),
        ("GET /full/", &[("authorization", &bearer(&good)), ("x-none", "evil"), ("x-pay", "evil")]),
        ("GET /other/", &[("x-sub", "evil")]),
        ("GET /cached/", &[("x-c", &good)]),
        ("GET /cached/", &[("x-c", &good)]),
        ("OPTIONS /full/", &[("origin", "http://o"), ("access-control-request-method", "GET")]),
    ];
    for (line, headers) in others {
        for listener in ["main", "bare"] {
            suite.ask(listener, line, headers, "");
        }
    }
    compare(&suite);
}

#[test]
fn routes_and_filter_state() {
    let providers = [
        (
            "p",
            local(
                json!({"issuer": "a", "claim_to_headers": [{"header_name": "x-to", "claim_name": "to"}], "clear_route_cache": true}),
            ),
        ),
        ("q", local(json!({"issuer": "a", "payload_in_metadata": "q"}))),
    ];
    let requirements = [("p", by("p")), ("q", by("q"))];
    let mut config = listener(
        &providers,
        &requirements,
        json!({
            "rules": [
                {"match": {"path": "/exact", "headers": [{"name": "x-a"}]}, "requires": {"provider_name": "p"}},
                {"match": {"safe_regex": {"regex": "/r.*x"}}},
                {"match": {"prefix": "/R", "case_sensitive": false, "query_parameters": [{"name": "q", "present_match": true}]}, "requirement_name": "q"},
                {"match": {"path_separated_prefix": "/sep"}, "requirement_name": "q"},
            ],
            "filter_state_rules": {"name": "wants", "requires": {"p": {"provider_name": "p"}, "no": {}}},
        }),
    );
    let state = filter(
        "state",
        "set_filter_state.v3.Config",
        json!({"on_request_headers": [{"object_key": "wants", "factory_key": "envoy.string", "format_string": {"text_format_source": {"inline_string": "%REQ(x-wants)%"}}}]}),
    );
    config["http_filters"].as_array_mut().expect("filters").insert(0, state);
    let route = |name: &str| json!({"jwt": {"@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", "requirement_name": name}});
    config["route_config"] = routes(&json!([
        {"match": {"prefix": "/", "headers": [{"name": "x-to", "string_match": {"exact": "second"}}]}, "direct_response": {"status": 200, "body": {"inline_string": "second"}}},
        {"match": {"prefix": "/per/p"}, "route": {"cluster": "up"}, "typed_per_filter_config": route("p")},
        {"match": {"prefix": "/per/x"}, "route": {"cluster": "up"}, "typed_per_filter_config": route("x y")},
        {"match": {"prefix": "/per/off"}, "route": {"cluster": "up"}, "typed_per_filter_config": {"jwt": {"@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", "disabled": true}}},
        {"match": {"prefix": "/"}, "route": {"cluster": "up"}},
    ]));
    let mut suite = suite();
    suite.listeners = vec![("main", config)];
    let bearer = format!("Bearer {}", token(&json!({"iss": "a", "to": "second"})));
    let plain = format!("Bearer {}", token(&json!({"iss": "a"})));
    for line in [
        "/exact",
        "/exact?x",
        "/rxx",
        "/rx?q=1",
        "/r?q",
        "/r",
        "/sep/x",
        "/separate",
        "/per/p",
        "/per/x",
        "/per/off",
        "/z",
    ] {
        for headers in [
            &[("x-a", "1")][..],
            &[("x-a", "1"), ("authorization", &bearer)][..],
            &[("x-a", "1"), ("authorization", &plain)][..],
            &[("x-wants", "p"), ("x-to", "first")][..],
            &[("x-wants", "no")][..],
            &[("x-wants", "p"), ("authorization", &bearer)][..],
        ] {
            suite.ask("main", &format!("GET {line}"), headers, "");
        }
    }
    compare(&suite);
}

#[test]
fn keys_that_a_service_publishes() {
    let remote = |path: &str, more: Value| {
        let mut remote = json!({"http_uri": {"uri": format!("http://keys.test:81{path}"), "cluster": "keys", "timeout": "5s"}});
        for (key, value) in more.as_object().expect("an object") {
            remote[key] = value.clone();
        }
        json!({"issuer": "a", "remote_jwks": remote})
    };
    let providers = [
        ("demand", remote("/demand?x=1", json!({}))),
        ("ahead", remote("/ahead", json!({"async_fetch": {}, "cache_duration": "1000s"}))),
        ("fails", remote("/fails", json!({}))),
        ("wrong", remote("/wrong", json!({}))),
        (
            "again",
            remote(
                "/fails",
                json!({
                    "http_uri": {"uri": "http://keys.test/fails", "cluster": "flaky", "timeout": "20s"},
                    "retry_policy": {"num_retries": 2, "retry_back_off": {"base_interval": "0.3s", "max_interval": "0.3s"}},
                }),
            ),
        ),
        (
            "nobody",
            json!({"issuer": "a", "remote_jwks": {"http_uri": {"uri": "https://keys.test/x", "cluster": "nobody", "timeout": "5s"}}}),
        ),
    ];
    let names = ["demand", "ahead", "fails", "wrong", "again", "nobody"];
    let mut requirements: Vec<(&str, Value)> = names.map(|name| (name, by(name))).into();
    requirements.push(("missing", missing()));
    let mut suite = suite();
    suite.stats = &["jwt_authn", "cluster.keys.internal", "async-client"];
    suite.listeners = vec![("main", listener(&providers, &requirements, json!({})))];
    let keys: Arc<Answer> = Arc::new(|head: &str, _: &[u8]| match head.split(' ').nth(1) {
        Some("/fails") => answer("503 No", &[], "no"),
        Some("/wrong") => answer("200 OK", &[], "{}"),
        _ => answer("200 OK", &[], &set().to_string()),
    });
    // How attempts are counted that are made again is not compared.
    suite.services = vec![("keys", Arc::clone(&keys)), ("flaky", keys)];
    let good = format!("Bearer {}", token(&json!({"iss": "a"})));
    let foreign = format!("Bearer {}", token(&json!({"iss": "b"})));
    for (name, _) in requirements.iter().filter(|(name, _)| *name != "missing") {
        for authorization in [None, Some(&foreign), Some(&good), Some(&good)] {
            let header = authorization.map(|value| [("authorization", value.as_str())]);
            suite.ask(
                "main",
                &format!("GET /{name}/"),
                header.as_ref().map_or(&[], |header| &header[..]),
                "",
            );
        }
    }
    compare(&suite);
}

/// As Istio has it: rbac judges by what tokens say.
#[test]
fn claims_for_rbac() {
    let provider = local(json!({
        "issuer": "a",
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
    }));
    let mut listener = listener(&[("one", provider)], &[("a", any([by("one"), missing()]))], json!({}));
    let claim = |path: &[&str], value: Value| {
        let path: Vec<Value> =
            std::iter::once(&"payload").chain(path).map(|key| json!({"key": key})).collect();
        json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value}})
    };
    let principals = json!([
        claim(&["sub"], json!({"string_match": {"prefix": "al"}})),
        claim(&["scope"], json!({"list_match": {"one_of": {"string_match": {"exact": "write"}}}})),
        claim(&["org", "level"], json!({"double_match": {"exact": 3}})),
        claim(&["admin"], json!({"bool_match": true})),
    ]);
    let policy = json!({"permissions": [{"any": true}], "principals": principals});
    let rbac = filter("rbac", "rbac.v3.RBAC", json!({"rules": {"policies": {"claims": policy}}}));
    listener["http_filters"].as_array_mut().expect("filters").insert(1, rbac);
    let mut suite = suite();
    suite.stats = &["jwt_authn", "rbac"];
    suite.listeners.push(("main", listener));
    suite.ask("main", "GET /a/x", &[], "");
    for claims in [
        json!({"sub": "alice"}),
        json!({"sub": "bob"}),
        json!({"scope": "read write"}),
        json!({"scope": ["write"]}),
        json!({"scope": "read"}),
        json!({"org": {"level": 3}}),
        json!({"org": {"level": "3"}}),
        json!({"admin": true}),
        json!({"admin": "true"}),
    ] {
        let mut claims = claims;
        claims["iss"] = "a".into();
        suite.ask("main", "GET /a/x", &[("authorization", &format!("Bearer {}", token(&claims)))], "");
        claims["iss"] = "b".into();
        suite.ask("main", "GET /a/x", &[("authorization", &format!("Bearer {}", token(&claims)))], "");
    }
    compare(&suite);
}
