//! CEL conditions of RBAC, ours beside the real Envoy's: each row is an expression that a route's
//! policy asks, and a request says whether it holds there.

#![allow(clippy::needless_pass_by_value, reason = "expressions are put together of expressions")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

mod support;

use support::{Proxy, Wire};

/// A text.
fn t(text: &str) -> Value {
    json!({"const_expr": {"string_value": text}})
}

/// A number.
fn n(number: i64) -> Value {
    json!({"const_expr": {"int64_value": number.to_string()}})
}

fn u(number: u64) -> Value {
    json!({"const_expr": {"uint64_value": number.to_string()}})
}

fn d(number: f64) -> Value {
    json!({"const_expr": {"double_value": number}})
}

fn b(value: bool) -> Value {
    json!({"const_expr": {"bool_value": value}})
}

/// `a.b.c`
fn a(path: &str) -> Value {
    let mut names = path.split('.');
    let first = json!({"ident_expr": {"name": names.next().expect("a name")}});
    names.fold(first, |operand, field| json!({"select_expr": {"operand": operand, "field": field}}))
}

/// `has(a.b.c)`
fn has(path: &str) -> Value {
    let mut select = a(path);
    select["select_expr"]["test_only"] = true.into();
    select
}

/// A function, of two or so.
fn f<const N: usize>(function: &str, args: [Value; N]) -> Value {
    json!({"call_expr": {"function": function, "args": args.to_vec()}})
}

/// A method.
fn m<const N: usize>(target: Value, function: &str, args: [Value; N]) -> Value {
    json!({"call_expr": {"target": target, "function": function, "args": args.to_vec()}})
}

fn list<const N: usize>(items: [Value; N]) -> Value {
    json!({"list_expr": {"elements": items.to_vec()}})
}

fn eq(left: Value, right: Value) -> Value {
    f("_==_", [left, right])
}

/// Expressions with the configuration of the language that they need.
fn rows() -> Vec<(&'static str, Value)> {
    let nothing = || a("request.nothing");
    let header = |name: &str| f("_[_]", [a("request.headers"), t(name)]);
    let null = || json!({"const_expr": {"null_value": "NULL_VALUE"}});
    let metadata = || f("_[_]", [a("metadata.filter_metadata"), t("ns")]);
    let map = || json!({"struct_expr": {"entries": [{"map_key": t("a"), "value": n(1)}]}});
    let time = || a("request.time");
    let at = |text: &str| json!({"const_expr": {"timestamp_value": text}});
    let long = |text: &str| json!({"const_expr": {"duration_value": text}});
    let attributes = [
        ("request.method", "GET"),
        ("request.url_path", "/r"),
        ("request.query", "q=1"),
        ("request.host", "host"),
        ("request.scheme", "http"),
        ("request.useragent", "agent"),
        ("request.referer", "from"),
        ("request.protocol", "HTTP/1.1"),
        ("connection.requested_server_name", ""),
        ("connection.tls_version", ""),
        ("connection.transport_failure_reason", ""),
        ("connection.subject_peer_certificate", ""),
        ("connection.termination_details", ""),
        ("upstream.address", ""),
        ("xds.virtual_host_name", "v"),
        ("xds.route_name", ""),
    ];
    let mut rows: Vec<(&str, Value)> =
        attributes.into_iter().map(|(name, value)| ("", eq(a(name), t(value)))).collect();
    let plain = [
        b(true),
        b(false),
        t("true"),
        n(1),
        null(),
        eq(null(), null()),
        a("nothing"),
        nothing(),
        f("!_", [nothing()]),
        f("_||_", [nothing(), b(true)]),
        f("_||_", [b(true), nothing()]),
        f("_||_", [nothing(), b(false)]),
        f("_||_", [b(false), nothing()]),
        f("!_", [f("_&&_", [nothing(), b(false)])]),
        f("!_", [f("_&&_", [b(false), nothing()])]),
        f("_&&_", [nothing(), b(true)]),
        f("_&&_", [t("a"), b(true)]),
        f("_||_", [t("a"), b(true)]),
        f("_?_:_", [b(true), b(true), nothing()]),
        f("_?_:_", [b(false), b(false), b(true)]),
        f("_?_:_", [nothing(), b(true), b(true)]),
        has("request.path"),
        has("request.nothing"),
        has("request.headers.x-a"),
        has("request.headers.X-A"),
        has("request.headers.none"),
        f("!_", [has("request.headers.none")]),
        eq(header("x-a"), t("1,2")),
        eq(header("X-A"), t("1,2")),
        eq(header(":method"), t("GET")),
        eq(header("none"), t("")),
        f("_!=_", [header("none"), t("")]),
        f("in", [t("x-a"), a("request.headers")]),
        f("@in", [t("none"), a("request.headers")]),
        f("!_", [f("_in_", [t("none"), a("request.headers")])]),
        f("in", [a("request.method"), list([t("GET"), t("POST")])]),
        f("in", [n(1), list([t("GET"), n(1)])]),
        f("in", [u(1), list([n(1)])]),
        f("in", [t("a"), map()]),
        f("in", [t("b"), map()]),
        eq(f("_[_]", [map(), t("a")]), n(1)),
        eq(f("_[_]", [map(), t("b")]), n(1)),
        eq(f("_[_]", [list([n(5), n(6)]), n(1)]), n(6)),
        eq(f("_[_]", [list([n(5), n(6)]), n(2)]), n(6)),
        eq(f("_[_]", [list([n(5), n(6)]), n(-1)]), n(6)),
        eq(list([n(1), t("a")]), list([n(1), t("a")])),
        eq(list([n(1)]), list([n(2)])),
        eq(map(), map()),
        f("_==_", [n(1), t("1")]),
        f("_!=_", [n(1), t("1")]),
        eq(n(1), u(1)),
        eq(n(1), d(1.0)),
        eq(u(1), d(1.5)),
        eq(t("a"), null()),
        f("_!=_", [t("a"), null()]),
        f("_<_", [n(1), n(2)]),
        f("_<_", [n(1), u(2)]),
        f("_<_", [n(1), d(1.5)]),
        f("_<=_", [d(1.5), d(1.5)]),
        f("_>_", [t("b"), t("a")]),
        f("_>=_", [t("a"), t("b")]),
        f("_<_", [t("a"), n(1)]),
        f("_<_", [b(false), b(true)]),
        eq(f("_+_", [n(1), n(2)]), n(3)),
        eq(f("_+_", [n(1), u(2)]), n(3)),
        eq(f("_+_", [n(i64::MAX), n(1)]), n(0)),
        f("_!=_", [f("_+_", [n(i64::MAX), n(1)]), n(0)]),
        eq(f("_-_", [n(1), n(2)]), n(-1)),
        eq(f("_-_", [u(1), u(2)]), u(0)),
        eq(f("_*_", [d(1.5), d(2.0)]), d(3.0)),
        eq(f("_/_", [n(7), n(2)]), n(3)),
        eq(f("_/_", [n(-7), n(2)]), n(-3)),
        eq(f("_/_", [n(7), n(0)]), n(3)),
        eq(f("_%_", [n(-7), n(2)]), n(-1)),
        eq(f("_%_", [n(7), n(0)]), n(1)),
        eq(f("-_", [n(7)]), n(-7)),
        eq(f("-_", [d(7.0)]), d(-7.0)),
        eq(f("_+_", [t("a"), t("b")]), t("ab")),
        eq(f("size", [t("héllo")]), n(5)),
        eq(f("size", [list([n(1), n(2)])]), n(2)),
        eq(f("size", [map()]), n(1)),
        m(a("request.path"), "startsWith", [t("/r")]),
        f("startsWith", [a("request.path"), t("/r")]),
        m(a("request.path"), "endsWith", [t("=1")]),
        m(a("request.path"), "contains", [t("?q")]),
        m(a("request.path"), "contains", [t("none")]),
        m(a("request.path"), "contains", [n(1)]),
        m(a("request.path"), "matches", [t("^/r.q=[0-9]$")]),
        m(a("request.path"), "matches", [t("q")]),
        m(a("request.path"), "matches", [t("^q")]),
        f("matches", [n(1), t("1")]),
        eq(f("int", [t("12")]), n(12)),
        eq(f("int", [t("x")]), n(12)),
        eq(f("int", [d(12.7)]), n(12)),
        eq(f("int", [d(-12.7)]), n(-12)),
        eq(f("uint", [n(12)]), u(12)),
        eq(f("uint", [n(-12)]), u(12)),
        eq(f("double", [n(2)]), d(2.0)),
        eq(f("double", [t("2.5")]), d(2.5)),
        f("_>_", [time(), at("2020-01-01T00:00:00Z")]),
        f("_<_", [time(), at("2020-01-01T00:00:00Z")]),
        f("_>_", [f("-_", [n(1)]), f("int", [time()])]),
        f("_>_", [f("int", [time()]), n(1_500_000_000)]),
        f("_>_", [f("_-_", [time(), at("2020-01-01T00:00:00Z")]), long("3600s")]),
        f("_>_", [f("_+_", [time(), long("1s")]), time()]),
        eq(f("_+_", [long("1s"), long("2s")]), long("3s")),
        eq(a("source.address"), t("")),
        m(a("source.address"), "startsWith", [t("127.0.0.1:")]),
        f("_>_", [a("source.port"), n(0)]),
        m(a("destination.address"), "startsWith", [t("127.0.0.1:")]),
        f("_>_", [a("destination.port"), n(0)]),
        f("_>=_", [a("connection.id"), u(0)]),
        f("_>=_", [a("connection.id"), n(0)]),
        a("connection.mtls"),
        f("!_", [a("connection.mtls")]),
        eq(a("request.size"), n(3)),
        f("_>_", [a("request.total_size"), n(60)]),
        has("request.duration"),
        has("request.time"),
        has("connection.tls_version"),
        has("metadata.filter_metadata"),
        f("in", [t("ns"), a("metadata.filter_metadata")]),
        f("in", [t("other"), a("metadata.filter_metadata")]),
        eq(f("_[_]", [metadata(), t("text")]), t("value")),
        eq(f("_[_]", [metadata(), t("number")]), d(5.0)),
        eq(f("_[_]", [metadata(), t("number")]), n(5)),
        eq(f("_[_]", [metadata(), t("none")]), n(5)),
        f("in", [t("a"), f("_[_]", [metadata(), t("list")])]),
        f("in", [t("c"), f("_[_]", [metadata(), t("list")])]),
        eq(f("size", [f("_[_]", [metadata(), t("list")])]), n(2)),
        f("_[_]", [metadata(), t("flag")]),
        eq(f("_[_]", [f("_[_]", [metadata(), t("deep")]), t("er")]), null()),
        has("filter_state.none"),
        f("dyn", [b(true)]),
    ];
    rows.extend(plain.map(|row| ("", row)));
    rows.extend([
        ("enable_string_concat", eq(f("_+_", [t("a"), t("b")]), t("ab"))),
        ("enable_string_conversion", eq(f("string", [n(12)]), t("12"))),
        ("enable_string_conversion", eq(f("string", [b(true)]), t("true"))),
        ("enable_string_conversion", eq(f("string", [u(12)]), t("12"))),
        ("enable_string_functions", eq(m(a("request.method"), "lowerAscii", []), t("get"))),
        ("enable_string_functions", eq(m(a("request.host"), "upperAscii", []), t("HOST"))),
    ]);
    rows
}

fn bootstrap(_: &Path) -> String {
    let mut routes = Vec::new();
    for (index, (language, condition)) in rows().into_iter().enumerate() {
        let mut policy =
            json!({"permissions": [{"any": true}], "principals": [{"any": true}], "condition": condition});
        if !language.is_empty() {
            policy["cel_config"] = json!({language: true});
        }
        routes.push(json!({
            "match": {"prefix": "/", "headers": [{"name": "row", "string_match": {"exact": index.to_string()}}]},
            "direct_response": {"status": 200},
            "typed_per_filter_config": {"rbac": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
                "rbac": {"rules": {"policies": {"p": policy}}}}}
        }));
    }
    let http = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.http.{name}");
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": [{
            "name": "l",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "s",
                "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
                "http_filters": [
                    {"name": "metadata", "typed_config": {"@type": http("set_metadata.v3.Config"), "metadata": [{
                        "metadata_namespace": "ns",
                        "value": {"text": "value", "number": 5, "list": ["a", "b"], "flag": true, "deep": {"er": null}}}]}},
                    {"name": "rbac", "typed_config": {"@type": http("rbac.v3.RBAC")}},
                    {"name": "router", "typed_config": {"@type": http("router.v3.Router")}}]}}]}]}]}
    })
    .to_string()
}

/// Which rows hold with one proxy.
fn ask(name: &'static str, folder: &Path, envoy: Option<&Path>) -> Vec<String> {
    let proxy = Proxy::start(name, folder, envoy, bootstrap);
    let port = proxy.port("l");
    let mut told = Vec::new();
    for (index, (language, condition)) in rows().into_iter().enumerate() {
        let mut wire = Wire::connect(port);
        let mut request = format!("GET /r?q=1 HTTP/1.1\r\nhost: host\r\nrow: {index}\r\n");
        request.push_str(
            "x-a: 1\r\nx-a: 2\r\nuser-agent: agent\r\nreferer: from\r\ncontent-length: 3\r\n\r\nabc",
        );
        wire.stream.write_all(request.as_bytes()).expect("sent");
        let answer = wire.until(b"\r\n");
        let mut row = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned();
        let _ = write!(row, " {language} {condition}");
        told.push(row);
    }
    proxy.stop();
    told
}

#[test]
fn same_as_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else {
        println!("skipped: there is no Envoy to compare with");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ours = ask("ours", folder.path(), None);
    let theirs = ask("envoy", folder.path(), Some(&envoy));
    let differing: Vec<_> = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().filter(|row| row.starts_with("200")).count() > 60, "{ours:#?}");
}
