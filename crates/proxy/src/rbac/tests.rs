use std::net::SocketAddr;

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::rbac::v3::Rbac;
use leno_api::proto::xds::r#type::matcher::v3::Matcher;

use super::lower::template;
use super::{Engine, Labels, from_matcher, from_rules};
use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::matching::facts::PeerName;
use crate::matching::{Facts, Place};
use crate::telemetry::metadata::DynamicMetadata;
use crate::telemetry::stream_info::FilterState;

/// A request with a certificate.
#[derive(Default)]
struct Request {
    head: HeaderMap,
    metadata: DynamicMetadata,
    upstream: Option<FilterState>,
    uris: Vec<&'static str>,
    dns: Vec<&'static str>,
    subject: &'static str,
    certificate: bool,
    remote: Option<SocketAddr>,
}

impl Facts for Request {
    fn destination(&self) -> Option<SocketAddr> {
        "10.1.2.3:8080".parse().ok()
    }
    fn source(&self) -> Option<SocketAddr> {
        self.remote
    }
    fn direct_source(&self) -> Option<SocketAddr> {
        "192.0.2.9:7".parse().ok()
    }
    fn server_name(&self) -> &str {
        "a.test"
    }
    fn request(&self) -> Option<&HeaderMap> {
        Some(&self.head)
    }
    fn metadata(&self) -> Option<&DynamicMetadata> {
        Some(&self.metadata)
    }
    fn filter_state(&self, key: &str) -> Option<&FilterState> {
        self.upstream.as_ref().filter(|_| key == "envoy.stream.upstream_address")
    }
    fn is_secure(&self) -> bool {
        self.certificate
    }
    fn is_verified(&self) -> bool {
        self.certificate
    }
    fn find_peer_name(&self, kind: PeerName, accept: &mut dyn FnMut(&str) -> bool) -> bool {
        match kind {
            PeerName::Uri => self.uris.iter().any(|name| accept(name)),
            PeerName::Dns => self.dns.iter().any(|name| accept(name)),
            PeerName::Subject => accept(self.subject),
        }
    }
}

fn labels() -> Labels {
    Labels { namespace: "rbac", policy: "policy".into(), result: "result".into(), hints: true }
}

fn engine(rules: &str) -> Result<Engine, String> {
    let proto: Rbac = leno_api::decode_text(rules, "rules").map_err(|errors| errors.to_string())?;
    Lower::resource(|at| from_rules(proto, &labels(), at)).map_err(|rejected| rejected.to_string())
}

fn request(method: &str, path: &str) -> Request {
    let mut request = Request { remote: "198.51.100.1:5".parse().ok(), ..Request::default() };
    request.head.append(b":method", method.as_bytes());
    request.head.append(b":path", path.as_bytes());
    request
}

fn shown(engine: &Engine, request: &Request) -> String {
    let outcome = engine.judge(request);
    let verdict = if outcome.allowed { "allowed" } else { "denied" };
    let hint = outcome.log_hint.as_ref().map(|hint| format!(" {:?}", hint.values().values().next()));
    let policy = outcome.policy.as_deref().unwrap_or("-");
    format!("{verdict} by {policy}{}", hint.unwrap_or_default())
}

/// The verdict of one policy's permission and principal in flow style, for one request.
fn holds(permission: &str, principal: &str, request: &Request) -> bool {
    let rules =
        format!("{{policies: {{p: {{permissions: [{{{permission}}}], principals: [{{{principal}}}]}}}}}}");
    engine(&rules).unwrap_or_else(|error| panic!("{error}")).judge(request).allowed
}

#[test]
fn actions() {
    let policies = "policies: {b: {permissions: [{url_path: {path: {prefix: /b}}}], principals: [{any: true}]}, \
                    a: {permissions: [{any: true}], principals: [{header: {name: x-a, present_match: true}}]}}";
    let check = |action: &str, expected: &Expect| {
        let engine =
            engine(&format!("{{action: {action}, {policies}}}")).unwrap_or_else(|error| panic!("{error}"));
        let mut both = request("GET", "/b?q");
        both.head.append(b"x-a", b"");
        let shown =
            [request("GET", "/"), request("GET", "/b?q"), both].map(|request| shown(&engine, &request));
        expected.assert_eq(&shown.join(", "));
    };
    check("ALLOW", &expect!["denied by -, allowed by b, allowed by a"]);
    check("DENY", &expect!["allowed by -, denied by b, denied by a"]);
    check(
        "LOG",
        &expect![
            "allowed by - Some(Bool(false)), allowed by b Some(Bool(true)), allowed by a Some(Bool(true))"
        ],
    );
    assert_eq!(
        shown(&engine("{}").unwrap_or_else(|error| panic!("{error}")), &request("GET", "/")),
        "denied by -"
    );
}

#[test]
fn permissions() {
    let mut get = request("GET", "/a/b?c=/x");
    get.metadata.values_mut("jwt").insert("iss".into(), "me".into());
    get.upstream = Some(FilterState { text: "10.7.0.1:443".into(), typed: None, peer: None });
    let cases = [
        ("any: true", true),
        ("header: {name: ':method', string_match: {exact: GET}}", true),
        ("url_path: {path: {suffix: /b}}", true),
        ("url_path: {path: {contains: '?'}}", false),
        ("destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}", true),
        ("destination_port: 8080", true),
        ("destination_port_range: {start: 8000, end: 8080}", false),
        ("destination_port_range: {start: 8080, end: 8081}", true),
        ("metadata: {filter: jwt, path: [{key: iss}], value: {string_match: {exact: me}}}", true),
        ("metadata: {filter: jwt, path: [{key: sub}], value: {present_match: true}, invert: true}", true),
        (
            "sourced_metadata: {metadata_matcher: {filter: jwt, path: [{key: iss}], value: {present_match: true}}, metadata_source: ROUTE}",
            false,
        ),
        ("requested_server_name: {exact: a.test}", true),
        ("not_rule: {destination_port: 8080}", false),
        (
            "and_rules: {rules: [{any: true}, {destination_port: 8080}, {url_path: {path: {exact: /a/b}}}]}",
            true,
        ),
        (
            "or_rules: {rules: [{url_path: {path: {exact: /x}}}, {url_path: {path: {exact: /a/b}}}, {url_path: {path: {prefix: /y}}}]}",
            true,
        ),
        ("or_rules: {rules: [{url_path: {path: {exact: /x}}}, {destination_port: 1}]}", false),
        (
            "uri_template: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/{x}/*'}}",
            true,
        ),
        (
            "matcher: {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher, upstream_ip: {address_prefix: 10.7.0.0, prefix_len: 16}, upstream_port_range: {start: 80, end: 443}}}",
            true,
        ),
    ];
    for (permission, expected) in cases {
        assert_eq!(holds(permission, "any: true", &get), expected, "{permission}");
    }
}

#[test]
fn principals() {
    let plain = request("GET", "/");
    let with = |uris: &[&'static str], dns: &[&'static str]| Request {
        certificate: true,
        uris: uris.to_vec(),
        dns: dns.to_vec(),
        subject: "CN=s",
        ..request("GET", "/")
    };
    let (spiffe, dns, subject) =
        (with(&["spiffe://td/ns/a/sa/b"], &["d"]), with(&[], &["d"]), with(&[], &[]));
    let name = |name: &str| format!("authenticated: {{principal_name: {{exact: '{name}'}}}}");
    let cases = [
        ("authenticated: {}".to_owned(), [false, true, true, true]),
        (name("spiffe://td/ns/a/sa/b"), [false, true, false, false]),
        (name("d"), [false, true, true, false]),
        (name("CN=s"), [false, true, true, true]),
        ("authenticated: {principal_name: {safe_regex: {regex: '.*/ns/a/.*'}}}".to_owned(), [false, true, false, false]),
        (format!("or_ids: {{ids: [{{{}}}, {{{}}}]}}", name("x"), name("d")), [false, true, true, false]),
        (format!("not_id: {{{}}}", name("d")), [true, false, false, true]),
        ("remote_ip: {address_prefix: 198.51.100.0, prefix_len: 24}".to_owned(), [true; 4]),
        ("direct_remote_ip: {address_prefix: 198.51.100.0, prefix_len: 24}".to_owned(), [false; 4]),
        ("or_ids: {ids: [{remote_ip: {address_prefix: 1.0.0.0, prefix_len: 8}}, {remote_ip: {address_prefix: 198.0.0.0, prefix_len: 8}}]}".to_owned(), [true; 4]),
        ("custom: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config, san_matcher: {san_type: DNS, matcher: {exact: d}}}}".to_owned(), [false, true, true, false]),
        ("filter_state: {key: envoy.stream.upstream_address, string_match: {prefix: '1'}}".to_owned(), [false; 4]),
    ];
    for (principal, expected) in cases {
        let held = [&plain, &spiffe, &dns, &subject].map(|request| holds("any: true", &principal, request));
        assert_eq!(held, expected, "{principal}");
    }
}

#[test]
fn refused() {
    let check = |policy: &str, expected: &Expect| {
        let text = engine(&format!("{{policies: {{p: {{{policy}}}}}}}")).map(drop).expect_err("refused");
        expected.assert_eq(&text);
    };
    check(
        "permissions: [{destination_port_range: {start: 5, end: 5}}], principals: [{custom: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config}}}]",
        &expect![[
            r#"policies["p"].permissions[0].destination_port_range: range start 5 cannot be greater or equal than range end 5; policies["p"].principals[0].custom.typed_config: envoy.rbac.principals.mtls_authenticated did not have any configured validation"#
        ]],
    );
    check(
        "permissions: [{any: true}], principals: [{any: true}], condition: {select_expr: {operand: {ident_expr: {name: xds}}, field: filter_chain_name}}",
        &expect![[r#"policies["p"].condition.select_expr.field 'filter_chain_name': not supported yet"#]],
    );
    check(
        "permissions: [{any: true}], principals: [{any: true}], condition: {comprehension_expr: {}}",
        &expect![[
            r#"policies["p"].condition: failed to create an expression: Comprehension support is disabled"#
        ]],
    );
}

#[test]
fn templates() {
    let check = |text: &str, paths: &[&str], expected: &Expect| {
        let shown = match template(text).and_then(|pattern| crate::config::re2::compile_full(&pattern)) {
            Ok(regex) => paths
                .iter()
                .filter(|path| regex.is_match(path.as_bytes()))
                .copied()
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error,
        };
        expected.assert_eq(&shown);
    };
    check("/v/*/*.m4s", &["/v/1/a.m4s", "/v/1/2/a.m4s", "/v/1/am4s"], &expect!["/v/1/a.m4s"]);
    check("/api/v{version}/{id}.json", &["/api/v2/4.json", "/api/v/4.json"], &expect!["/api/v2/4.json"]);
    check("/a/{rest=**}", &["/a/", "/a/b/c", "/b"], &expect!["/a/ /a/b/c"]);
    check("/**.mpd", &["/x/y.mpd", "/x/y"], &expect!["/x/y.mpd"]);
    check("/**/a", &[], &expect!["'**' must be the last operator of a path template"]);
    check("/{a}/{a}", &[], &expect!["variable 'a' is there twice"]);
    check("a", &[], &expect!["a path template begins with '/'"]);
}

#[test]
fn match_trees() {
    let action = |name: &str, action: &str| {
        format!(
            "action: {{name: a, typed_config: {{'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action}}}}}"
        )
    };
    let text = format!(
        "{{matcher_tree: {{input: {{name: i, typed_config: {{'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: ':method'}}}}, \
         exact_match_map: {{map: {{GET: {{{}}}, POST: {{{}}}, PUT: {{{}}}}}}}}}}}",
        action("reads", "ALLOW"),
        action("writes", "DENY"),
        action("puts", "LOG")
    );
    let proto: Matcher = leno_api::decode_text(&text, "matcher").unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Lower::resource(|at| from_matcher(proto, Place::REQUEST, &labels(), at));
    let engine = engine.unwrap_or_else(|rejected| panic!("{rejected}"));
    let shown = ["GET", "POST", "PUT", "DELETE"].map(|method| shown(&engine, &request(method, "/")));
    expect!["allowed by reads, denied by writes, allowed by puts Some(Bool(true)), denied by -"]
        .assert_eq(&shown.join(", "));
}
