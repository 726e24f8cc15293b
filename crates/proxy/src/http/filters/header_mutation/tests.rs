use std::sync::Arc;

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::common::mutation_rules::v3 as rules;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::header_mutation::v3 as proto;
use leno_api::proto::envoy::r#type::matcher::v3 as matcher;
use prost_types::Any;

use super::{HeaderMutation, InTrailers, Mutations, change_headers, config, missing};
use crate::config::lower::Lower;
use crate::fixtures::local_stream;
use crate::http::filters::RouteSettings;
use crate::http::headers::HeaderMap;
use crate::telemetry::access_log::command::FormatContext;

fn head(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut head = HeaderMap::new();
    for (name, value) in pairs {
        head.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn append(key: &str, value: &str, append_action: i32) -> rules::HeaderMutation {
    let header = core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() };
    let option = core::HeaderValueOption { header: Some(header), append_action, ..Default::default() };
    rules::HeaderMutation { action: Some(rules::header_mutation::Action::Append(option)) }
}

fn remove(key: &str) -> rules::HeaderMutation {
    rules::HeaderMutation { action: Some(rules::header_mutation::Action::Remove(key.into())) }
}

fn remove_prefix(prefix: &str) -> rules::HeaderMutation {
    let match_pattern = Some(matcher::string_matcher::MatchPattern::Prefix(prefix.into()));
    let key_matcher = Some(matcher::StringMatcher { match_pattern, ..Default::default() });
    let remove = rules::header_mutation::RemoveOnMatch { key_matcher };
    rules::HeaderMutation { action: Some(rules::header_mutation::Action::RemoveOnMatch(remove)) }
}

fn set_query(key: &str, value: &str, action: i32) -> core::KeyValueMutation {
    let value = Some(prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.into())) });
    let record = Some(core::KeyValuePair { key: key.into(), value });
    let append = core::KeyValueAppend { record, action, ..Default::default() };
    core::KeyValueMutation { append: Some(append), remove: String::new() }
}

fn remove_query(key: &str) -> core::KeyValueMutation {
    core::KeyValueMutation { append: None, remove: key.into() }
}

fn lower_route(mutations: proto::Mutations) -> Result<Arc<Mutations>, String> {
    let any = Any::from_msg(&proto::HeaderMutationPerRoute { mutations: Some(mutations) }).unwrap();
    let lowered = Lower::resource(|at| config::lower_route(&any, at));
    Ok(lowered.map_err(|rejected| rejected.to_string())?.downcast().unwrap())
}

fn check_request(mutations: proto::Mutations, request: &[(&str, &str)], expected: &Expect) {
    let mut head = head(request);
    let info = local_stream();
    lower_route(mutations).unwrap().change_request(&mut head, &FormatContext::new(&info));
    let mut shown = format!("{head:?}");
    if let Some(reply) = missing(&head, false) {
        shown.push_str(&format!(" {} {}", reply.status, reply.details));
    }
    expected.assert_eq(&shown);
}

#[test]
fn changes_are_made_in_order() {
    let mutations = proto::Mutations {
        request_mutations: vec![
            append("X-A", "%REQ(x-b)%", 0),
            append("x-b", "1", 0),
            append("x-c", "%REQ(x-b)%", 0),
            append("x-none", "%REQ(x-none)%", 0),
            append("x-d", "new", 1),
            append("x-e", "new", 3),
            remove("X-Rm"),
            remove_prefix("x-pre"),
        ],
        ..Default::default()
    };
    let request = [
        (":method", "GET"),
        (":path", "/"),
        ("x-rm", "1"),
        ("x-pre-1", "1"),
        ("x-pre-2", "2"),
        ("x-d", "old"),
    ];
    check_request(
        mutations,
        &request,
        &expect![[r#"{":method": "GET", ":path": "/", "x-d": "old", "x-b": "1", "x-c": "1"}"#]],
    );
}

#[test]
fn a_message_needs_its_pseudo_headers() {
    let without = |name| proto::Mutations { request_mutations: vec![remove(name)], ..Default::default() };
    let request = [(":method", "GET"), (":authority", "a"), (":path", "/")];
    check_request(
        without(":path"),
        &request,
        &expect![[
            r#"{":method": "GET", ":authority": "a"} 503 filter_removed_required_request_headers{missing_required_header:_:path}"#
        ]],
    );
    check_request(without("host"), &request, &expect![[r#"{":method": "GET", ":path": "/"}"#]]);
    check_request(
        without(":path"),
        &[(":method", "CONNECT"), (":authority", "a:1")],
        &expect![[r#"{":method": "CONNECT", ":authority": "a:1"}"#]],
    );
    let reply = missing(&head(&[("server", "x")]), true).unwrap();
    assert_eq!((reply.status, &*reply.body), (502, &b"missing required header: :status"[..]));
}

#[test]
fn queries() {
    let mutations = || proto::Mutations {
        query_parameter_mutations: vec![
            set_query("k", "v v%REQ(x-b)%", 0),
            set_query("o", "new", 3),
            set_query("p", "%REQ(x-zz)%", 1),
            set_query("a", "no", 1),
            remove_query("gone"),
            remove_query("a b"),
        ],
        ..Default::default()
    };
    let check = |path, expected: &Expect| {
        let mut head = head(&[(":path", path), ("x-b", "0")]);
        let info = local_stream();
        lower_route(mutations()).unwrap().change_request(&mut head, &FormatContext::new(&info));
        expected.assert_eq(std::str::from_utf8(head.path()).unwrap());
    };
    check(
        "/hm?z=1&a&o=1&o=2&gone=1&e=%20x%26y&a=2&b+c=d",
        &expect!["/hm?a=&a=2&b+c=d&e=%20x%26y&k=v%20v0&o=new&p=&z=1"],
    );
    check("/hm", &expect!["/hm?a=no&k=v%20v0&p="]);
    check("/hm?", &expect!["/hm?a=no&k=v%20v0&p="]);
    check("/hm?a%20b=1&x=%41&%78=2&=5&&y&", &expect!["/hm?=5&=&a=no&k=v%20v0&p=&x=%41&%78=2&y="]);
    let odd = proto::Mutations {
        query_parameter_mutations: vec![set_query("k k/", "a/b?c&d=e~+%%20\"", 2), set_query("k k/", "é", 0)],
        ..Default::default()
    };
    check_request(
        odd,
        &[(":method", "GET"), (":path", "/?k%20k/=0")],
        &expect![[
            r#"{":method": "GET", ":path": "/?k%20k/=a%2Fb%3Fc%26d%3De%7E%2B%2520%22&k%20k/=%C3%A9"}"#
        ]],
    );
}

#[test]
fn responses_and_trailers_see_the_request() {
    let mutations = lower_route(proto::Mutations {
        response_mutations: vec![append("x-up", "9", 2), append("x-rq", "%REQ(x-b)%/%RESP(x-up)%", 0)],
        response_trailers_mutations: vec![append("x-t", "%REQ(x-b)%/%RESP(x-up)%/%TRAILER(grpc-status)%", 0)],
        ..Default::default()
    })
    .unwrap();
    let (request, info) = (head(&[("x-b", "q")]), local_stream());
    let mut response = head(&[(":status", "200"), ("x-up", "1"), ("x-up", "2")]);
    let context = FormatContext { request: Some(&request), ..FormatContext::new(&info) };
    change_headers(&mutations.response, &mut response, &context);
    expect![[r#"{":status": "200", "x-up": "9", "x-rq": "q/9"}"#]].assert_eq(&format!("{response:?}"));
    let mut trailers = head(&[("grpc-status", "0")]);
    let context = FormatContext { response: Some(&response), ..context };
    change_headers(&mutations.response_trailers, &mut trailers, &InTrailers(context));
    expect![[r#"{"grpc-status": "0", "x-t": "q/9/0"}"#]].assert_eq(&format!("{trailers:?}"));
}

#[test]
fn levels_come_after_the_filter() {
    let level = |name: &str| {
        let request_mutations = vec![append("x-lvl", name, 0)];
        lower_route(proto::Mutations { request_mutations, ..Default::default() }).unwrap()
    };
    let host = RouteSettings { disabled: false, settings: level("host"), above: None };
    // A level that only enables the filter has no mutations.
    let weighted = RouteSettings { disabled: false, settings: Arc::new(()), above: Some(Arc::new(host)) };
    let route = RouteSettings { disabled: false, settings: level("route"), above: Some(Arc::new(weighted)) };
    let check = |most_specific_wins, expected: Expect| {
        let filter = HeaderMutation { mutations: level("filter"), most_specific_wins };
        let mut head = HeaderMap::new();
        let info = local_stream();
        for level in filter.levels(Some(&route)) {
            level.change_request(&mut head, &FormatContext::new(&info));
        }
        expected.assert_eq(&format!("{head:?}"));
    };
    check(false, expect![[r#"{"x-lvl": "filter", "x-lvl": "route", "x-lvl": "host"}"#]]);
    check(true, expect![[r#"{"x-lvl": "filter", "x-lvl": "host", "x-lvl": "route"}"#]]);
}

#[test]
fn refused() {
    let no_value = core::KeyValueAppend {
        record: Some(core::KeyValuePair { key: "k".into(), value: None }),
        ..Default::default()
    };
    let mut both = set_query("k", "v", 0);
    both.remove = "k".into();
    let mutations = proto::Mutations {
        request_mutations: vec![append(":path", "/", 0), rules::HeaderMutation::default()],
        query_parameter_mutations: vec![
            both,
            core::KeyValueMutation::default(),
            core::KeyValueMutation { append: Some(no_value), remove: String::new() },
            core::KeyValueMutation { append: Some(core::KeyValueAppend::default()), remove: String::new() },
            set_query("k", "%NOPE%", 0),
        ],
        request_trailers_mutations: vec![remove("x")],
        ..Default::default()
    };
    let filter =
        proto::HeaderMutation { mutations: Some(mutations), most_specific_header_mutations_wins: false };
    let any = Any::from_msg(&filter).unwrap();
    let refused = Lower::resource(|at| config::lower(&any, at)).map(drop).unwrap_err();
    let lines: Vec<_> = refused.0.iter().map(ToString::to_string).collect();
    expect![[r#"
        mutations.request_mutations[0].append.header.key: :-prefixed or host headers may not be modified
        mutations.request_mutations[1].action: value is required
        mutations.query_parameter_mutations[0]: only one of 'append'/'remove' can be specified
        mutations.query_parameter_mutations[1]: one of 'append'/'remove' must be specified
        mutations.query_parameter_mutations[2].append.record.value: only string value is allowed for record value
        mutations.query_parameter_mutations[3].append.record: value is required
        mutations.query_parameter_mutations[4].append.record.value: Not supported field in StreamInfo: NOPE"#]]
    .assert_eq(&lines.join("\n"));
}
