use std::sync::Arc;

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::cors::v3 as proto;
use leno_api::proto::envoy::r#type::matcher::v3 as matcher;
use leno_api::proto::envoy::r#type::v3::FractionalPercent;
use prost_types::Any;

use super::{CorsStats, Policies, Policy, Sharing, config};
use crate::config::lower::Lower;
use crate::config::runtime::Runtime;
use crate::http::filters::RouteSettings;
use crate::http::headers::HeaderMap;
use crate::telemetry::scrape::scrape;
use crate::telemetry::stats::StatsStore;

fn exact(origin: &str) -> matcher::StringMatcher {
    let match_pattern = Some(matcher::string_matcher::MatchPattern::Exact(origin.into()));
    matcher::StringMatcher { match_pattern, ..Default::default() }
}

fn share(numerator: u32, key: &str) -> Option<core::RuntimeFractionalPercent> {
    let default_value = Some(FractionalPercent { numerator, denominator: 0 });
    Some(core::RuntimeFractionalPercent { default_value, runtime_key: key.into() })
}

fn lower(proto: &proto::CorsPolicy, runtime: serde_json::Value) -> Result<Arc<Policy>, String> {
    let any = Any::from_msg(proto).unwrap();
    let mut layers = Runtime::default();
    layers.add_layer(runtime);
    let mut at = Lower::default();
    at.scope_mut().runtime = Arc::new(layers);
    let policy = config::lower_route(&any, &mut at);
    let policy = at.finish(policy).map_err(|rejected| rejected.to_string())?;
    Ok(policy.downcast().unwrap())
}

/// Policies from the most to the least specific level.
fn policies(protos: &[proto::CorsPolicy]) -> Policies {
    let settings = protos.iter().rev().fold(None, |above, proto| {
        let settings = lower(proto, serde_json::json!({})).unwrap();
        Some(RouteSettings { disabled: false, settings, above: above.map(Arc::new) })
    });
    Policies(settings.unwrap().levels())
}

/// Shows what becomes of a request: the answer to a preflight, or the headers that a response
/// gets; and what was counted.
fn check(protos: &[proto::CorsPolicy], request: &[(&str, &str)], expected: &Expect) {
    let mut head = HeaderMap::new();
    for (name, value) in request {
        head.append(name.as_bytes(), value.as_bytes());
    }
    let store = StatsStore::default();
    let mut sharing = Sharing { policies: policies(protos), origin: None, reply: None };
    let stats = CorsStats::kept(&store.thread(), "http.in.cors.");
    let reply = sharing.request(&head, 50, &stats);
    let mut response = HeaderMap::new();
    let mut shown = match reply {
        Some(reply) => {
            reply.write_head(&mut response, false);
            format!("{} ", reply.details)
        }
        None => String::from("forwarded "),
    };
    sharing.response(&mut response);
    shown.push_str(&format!("{response:?}"));
    for stat in scrape(&store, |_| true).iter().filter(|stat| stat.used) {
        shown.push_str(&format!(" {}", stat.name));
    }
    expected.assert_eq(&shown);
}

fn preflight<'a>(origin: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut head = vec![(":method", "OPTIONS"), ("origin", origin), ("access-control-request-method", "PUT")];
    head.extend(more);
    head
}

fn host() -> proto::CorsPolicy {
    proto::CorsPolicy {
        allow_origin_string_match: vec![exact("http://a")],
        allow_methods: "GET,PUT".into(),
        expose_headers: "x-e".into(),
        max_age: "100".into(),
        ..Default::default()
    }
}

#[test]
fn preflights() {
    check(
        &[host()],
        &preflight("http://a", &[]),
        &expect![[
            r#"cors_response {":status": "200", "access-control-allow-origin": "http://a", "access-control-allow-methods": "GET,PUT", "access-control-max-age": "100", "access-control-expose-headers": "x-e"} http.in.cors.origin_valid"#
        ]],
    );
    check(&[host()], &preflight("http://b", &[]), &expect!["forwarded {} http.in.cors.origin_invalid"]);
    let route = proto::CorsPolicy {
        allow_headers: "*".into(),
        allow_credentials: Some(true),
        allow_private_network_access: Some(true),
        forward_not_matching_preflights: Some(false),
        ..Default::default()
    };
    let levels = [route, host()];
    let asks =
        [("access-control-request-headers", "x-q"), ("access-control-request-private-network", "true")];
    check(
        &levels,
        &preflight("http://a", &asks),
        &expect![[
            r#"cors_response {":status": "200", "access-control-allow-origin": "http://a", "access-control-allow-credentials": "true", "access-control-allow-methods": "GET,PUT", "access-control-allow-headers": "x-q", "access-control-max-age": "100", "access-control-allow-private-network": "true", "access-control-expose-headers": "x-e"} http.in.cors.origin_valid"#
        ]],
    );
    check(
        &levels,
        &preflight("http://b", &[]),
        &expect![[
            r#"cors_response {":status": "200", "access-control-allow-credentials": "true", "access-control-allow-methods": "GET,PUT", "access-control-allow-headers": "", "access-control-max-age": "100"} http.in.cors.origin_invalid"#
        ]],
    );
    let any = proto::CorsPolicy {
        allow_origin_string_match: vec![exact("*")],
        allow_methods: "*".into(),
        ..Default::default()
    };
    check(
        &[any],
        &preflight("http://c", &[]),
        &expect![[
            r#"cors_response {":status": "200", "access-control-allow-origin": "http://c", "access-control-allow-methods": "PUT"} http.in.cors.origin_valid"#
        ]],
    );
}

#[test]
fn requests() {
    let get = [(":method", "GET"), ("origin", "http://a")];
    check(
        &[host()],
        &get,
        &expect![[
            r#"forwarded {"access-control-allow-origin": "http://a", "access-control-expose-headers": "x-e"} http.in.cors.origin_valid"#
        ]],
    );
    check(&[host()], &[(":method", "GET")], &expect!["forwarded {}"]);
    check(
        &[host()],
        &[(":method", "OPTIONS"), ("origin", "http://a")],
        &expect![[
            r#"forwarded {"access-control-allow-origin": "http://a", "access-control-expose-headers": "x-e"} http.in.cors.origin_valid"#
        ]],
    );
    check(&[proto::CorsPolicy::default()], &get, &expect!["forwarded {} http.in.cors.origin_invalid"]);
}

#[test]
fn shares() {
    let policy =
        |enabled, shadow| proto::CorsPolicy { filter_enabled: enabled, shadow_enabled: shadow, ..host() };
    let get = [(":method", "GET"), ("origin", "http://a")];
    // The random number is 50.
    check(&[policy(share(50, ""), None)], &get, &expect!["forwarded {}"]);
    check(
        &[policy(share(51, ""), None)],
        &get,
        &expect![[
            r#"forwarded {"access-control-allow-origin": "http://a", "access-control-expose-headers": "x-e"} http.in.cors.origin_valid"#
        ]],
    );
    check(&[policy(share(0, ""), share(100, ""))], &get, &expect!["forwarded {} http.in.cors.origin_valid"]);
    // The most specific level decides alone.
    check(
        &[policy(None, None), policy(share(0, ""), None)],
        &get,
        &expect![[
            r#"forwarded {"access-control-allow-origin": "http://a", "access-control-expose-headers": "x-e"} http.in.cors.origin_valid"#
        ]],
    );
    let lowered = lower(&policy(share(0, "cors.on"), None), serde_json::json!({"cors.on": 30})).unwrap();
    assert_eq!(lowered.enabled, Some((30, 100)));
}

#[test]
fn refused() {
    let refuse = |proto: &proto::CorsPolicy| lower(proto, serde_json::json!({})).map(drop).unwrap_err();
    let empty = proto::CorsPolicy {
        allow_origin_string_match: vec![exact("http://a"), matcher::StringMatcher::default()],
        filter_enabled: Some(core::RuntimeFractionalPercent::default()),
        ..Default::default()
    };
    expect![
        "allow_origin_string_match[1]: a pattern is required; filter_enabled.default_value: value is required"
    ]
    .assert_eq(&refuse(&empty));
    let other = Any::from_msg(&proto::Cors {}).unwrap();
    let refused = Lower::resource(|at| config::lower_route(&other, at)).map(drop).unwrap_err().to_string();
    expect!["expected envoy.extensions.filters.http.cors.v3.CorsPolicy, got type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"].assert_eq(&refused);
    let registered = Lower::resource(|at| config::lower(&other, at)).map(drop);
    assert_eq!(registered, Ok(()));
}
