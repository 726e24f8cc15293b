use std::net::SocketAddr;
use std::rc::Rc;

use expect_test::{Expect, expect};
use leno_api::proto::xds::r#type::matcher::v3::Matcher as Proto;

use super::facts::RequestFacts;
use super::{Facts, Matcher, Place, lower};
use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::listener::filter_chain::ConnectionFacts;
use crate::telemetry::stream_info::{ConnectionInfo, FilterState, StreamInfo};

const INPUT: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3";

/// A matcher whose actions are StringValues. `$NET` stands for the package of network inputs.
fn build(text: &str, place: Place) -> Result<Matcher<String>, String> {
    let text = text.replace("$NET", INPUT).replace("$HTTP", "type.googleapis.com/envoy.type.matcher.v3");
    let text = text.replace("$IN", "type.googleapis.com/envoy.extensions.matching.input_matchers");
    let proto: Proto = leno_api::decode_text(&text, "matcher").map_err(|errors| errors.to_string())?;
    let lowered = Lower::resource(|at| {
        lower(proto, place, at, &mut |action, _| {
            let any = action.typed_config?;
            // StringValue: field 1.
            let text = any.value.get(2..).map(<[u8]>::to_vec).and_then(|text| String::from_utf8(text).ok());
            Some(text.unwrap_or_default())
        })
    });
    lowered.map_err(|rejected| rejected.to_string())
}

fn shown(matcher: &Matcher<String>, facts: &impl Facts) -> String {
    matcher.find(facts).cloned().unwrap_or_else(|| "-".to_owned())
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Actions for connections: destination, SNI, protocol.
fn check(text: &str, connections: &[(&str, &str, &str)], expected: &Expect) {
    let out = match build(text, Place::CONNECTION) {
        Ok(matcher) => {
            let found = connections.iter().map(|(destination, name, protocol)| {
                let protocols: Vec<Box<str>> = protocol.split(',').map(Into::into).collect();
                let facts = ConnectionFacts {
                    destination: address(destination),
                    source: address("10.9.0.1:5000"),
                    direct_source: address("10.9.0.2:5000"),
                    server_name: name,
                    transport: "tls",
                    application_protocols: if protocol.is_empty() { &[] } else { &protocols },
                };
                shown(&matcher, &facts)
            });
            found.collect::<Vec<_>>().join(" ")
        }
        Err(error) => error,
    };
    expected.assert_eq(&out);
}

const A: &str =
    "action: {name: a, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: a}}";

fn action(name: &str) -> String {
    A.replace("value: a", &format!("value: {name}"))
}

#[test]
fn exact_maps_and_what_they_do_not_decide() {
    let [a, b, c] = ["a", "b", "c"].map(action);
    let text = format!(
        "{{matcher_tree: {{input: {{name: i, typed_config: {{'@type': $NET.DestinationPortInput}}}}, exact_match_map: {{map: {{
            '80': {{{a}}},
            '443': {{matcher: {{matcher_tree: {{input: {{name: i, typed_config: {{'@type': $NET.ServerNameInput}}}},
                exact_match_map: {{map: {{x.test: {{{b}}}}}}}}}}}}}}}}}}}, on_no_match: {{{c}}}}}"
    );
    let connections = [
        ("1.1.1.1:80", "", ""),
        ("1.1.1.1:443", "x.test", ""),
        ("1.1.1.1:443", "y.test", ""),
        ("1.1.1.1:1", "", ""),
    ];
    check(&text, &connections, &expect!["a b c c"]);
}

#[test]
fn ranges_the_most_specific_first() {
    let [a, b, c] = ["a", "b", "c"].map(action);
    let text = format!(
        "{{matcher_tree: {{input: {{name: i, typed_config: {{'@type': $NET.DestinationIPInput}}}}, custom_match: {{name: ip, typed_config: {{
            '@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher, range_matchers: [
            {{ranges: [{{address_prefix: 10.0.0.0, prefix_len: 8}}], {on}: {{{a}}}}},
            {{ranges: [{{address_prefix: 10.1.0.0, prefix_len: 16}}, {{address_prefix: '::', prefix_len: 0}}], exclusive: true, {on}: {{{b}}}}},
            {{ranges: [{{address_prefix: 10.1.2.3, prefix_len: 32}}], {on}: {{matcher: {{matcher_tree: {{
                input: {{name: i, typed_config: {{'@type': $NET.SourcePortInput}}}}, exact_match_map: {{map: {{'1': {{{c}}}}}}}}}}}}}}}
        ]}}}}}}}}",
        on = "on_match"
    );
    // 10.1.2.3's subtree does not decide, the exclusive range around it is passed over.
    let connections = [
        ("10.2.0.1:1", "", ""),
        ("10.1.0.1:1", "", ""),
        ("10.1.2.3:1", "", ""),
        ("[::1]:1", "", ""),
        ("9.9.9.9:1", "", ""),
    ];
    check(&text, &connections, &expect!["a b a b -"]);
}

#[test]
fn names_prefixes_and_protocols() {
    let [a, b, c] = ["a", "b", "c"].map(action);
    let names = format!(
        "{{matcher_tree: {{input: {{name: i, typed_config: {{'@type': $NET.ServerNameInput}}}}, custom_match: {{name: names, typed_config: {{
            '@type': type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher, domain_matchers: [
            {{domains: [a.test, '*'], on_match: {{{a}}}}}, {{domains: ['*.b.test'], on_match: {{{b}}}}}, {{domains: ['*.c.b.test'], on_match: {{{c}}}}}]}}}}}}}}"
    );
    let connections = [
        ("1.1.1.1:1", "A.test", ""),
        ("1.1.1.1:1", "x.b.test", ""),
        ("1.1.1.1:1", "x.y.c.b.test", ""),
        ("1.1.1.1:1", "b.test", ""),
        ("1.1.1.1:1", "", ""),
    ];
    check(&names, &connections, &expect!["a b c a -"]);
    let protocols = format!(
        "{{matcher_tree: {{input: {{name: i, typed_config: {{'@type': $NET.ApplicationProtocolInput}}}}, exact_match_map: {{map: {{\"'h2c'\": {{{a}}}, \"'h2','http/1.1'\": {{{b}}}}}}}}}}}"
    );
    let connections = [("1.1.1.1:1", "", "h2c"), ("1.1.1.1:1", "", "h2,http/1.1"), ("1.1.1.1:1", "", "")];
    check(&protocols, &connections, &expect!["a b -"]);
    let prefixes = format!(
        "{{matcher_tree: {{input: {{name: i, typed_config: {{'@type': $NET.ServerNameInput}}}}, prefix_match_map: {{map: {{a: {{{a}}}, a.b: {{matcher: {{}}}}, b: {{{b}}}}}}}}}}}"
    );
    let connections = [("1.1.1.1:1", "a.b.c", ""), ("1.1.1.1:1", "b", ""), ("1.1.1.1:1", "c", "")];
    check(&prefixes, &connections, &expect!["a b -"]);
}

#[test]
fn refused() {
    let a = action("a");
    let input =
        "input: {name: i, typed_config: {'@type': $HTTP.HttpRequestHeaderMatchInput, header_name: x}}";
    check(
        &format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{{input}, value_match: {{exact: a}}}}}}, on_match: {{keep_matching: true, {a}}}}}]}}}}"
        ),
        &[],
        &expect![
            "matcher_list.matchers[0].predicate.single_predicate.input.typed_config: is no input of a connection; matcher_list.matchers[0].on_match.keep_matching: keep_matching is not supported in this context"
        ],
    );
    let hashing = "custom_match: {name: h, typed_config: {'@type': $IN.consistent_hashing.v3.ConsistentHashing, threshold: 3, modulo: 2}}";
    check(
        &format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $NET.SourceIPInput}}}}, {hashing}}}}}, on_match: {{{a}}}}}]}}}}"
        ),
        &[],
        &expect![
            "matcher_list.matchers[0].predicate.single_predicate.custom_match.typed_config: threshold cannot be greater than modulo: 3 > 2"
        ],
    );
    let metadata = "input: {name: i, typed_config: {'@type': $NET.SourceIPInput}}, custom_match: {name: m, typed_config: {'@type': $IN.metadata.v3.Metadata, value: {present_match: true}}}";
    check(
        &format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{{metadata}}}}}, on_match: {{{a}}}}}]}}}}"
        ),
        &[],
        &expect![
            "matcher_list.matchers[0].predicate.single_predicate: Unsupported data input type for this matcher"
        ],
    );
    let unknown = "input: {name: i, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: a}}, value_match: {exact: a}";
    check(
        &format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{{unknown}}}}}, on_match: {{{a}}}}}]}}}}"
        ),
        &[],
        &expect![
            "matcher_list.matchers[0].predicate.single_predicate.input.typed_config: extension 'i' (type.googleapis.com/google.protobuf.StringValue) is not supported yet"
        ],
    );
}

#[test]
fn requests() {
    let [a, b, c] = ["a", "b", "c"].map(action);
    let text = format!(
        "{{matcher_list: {{matchers: [
          {{predicate: {{and_matcher: {{predicate: [
            {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $HTTP.HttpRequestHeaderMatchInput, header_name: X-A}}}}, value_match: {{exact: 'one,two'}}}}}},
            {{not_matcher: {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $HTTP.HttpRequestQueryParamMatchInput, query_param: q}}}}, value_match: {{prefix: 'a b'}}}}}}}}]}}}}, on_match: {{{a}}}}},
          {{predicate: {{or_matcher: {{predicate: [
            {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $NET.DynamicMetadataInput, filter: f, path: [{{key: k}}]}}}}, custom_match: {{name: m, typed_config: {{'@type': $IN.metadata.v3.Metadata, value: {{list_match: {{one_of: {{double_match: {{exact: 2}}}}}}}}}}}}}}}},
            {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $NET.SourceIPInput}}}}, custom_match: {{name: m, typed_config: {{'@type': $IN.ip.v3.Ip, stat_prefix: s, cidr_ranges: [{{address_prefix: 10.0.0.0, prefix_len: 8}}]}}}}}}}}]}}}}, on_match: {{{b}}}}},
          {{predicate: {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $NET.FilterStateInput, key: s}}}}, value_match: {{suffix: X, ignore_case: true}}}}}}, on_match: {{{c}}}}}
        ]}}}}"
    );
    let matcher = build(&text, Place::REQUEST).unwrap_or_else(|error| panic!("{error}"));
    let peer = address("192.0.2.1:1000");
    let connection =
        |remote| ConnectionInfo { remote, direct_remote: peer, ..crate::fixtures::connection(peer) };
    let mut info = crate::fixtures::stream_info(connection(peer));
    let mut head = HeaderMap::new();
    let check = |info: &StreamInfo, head: &HeaderMap, expected: &str| {
        assert_eq!(shown(&matcher, &RequestFacts { info, request: head, route: None }), expected);
    };
    head.append(b":path", b"/?p=1&q=a%20b");
    check(&info, &head, "-");
    head.append(b"x-a", b"one");
    head.append(b"x-a", b"two");
    check(&info, &head, "-");
    head.set_named(":path", b"/?q=c");
    check(&info, &head, "a");
    head.remove_named("x-a");
    info.filter_state.insert("s", FilterState { text: "ax".into(), typed: None, peer: None });
    check(&info, &head, "c");
    info.metadata.values_mut("f").insert("k".into(), serde_json::json!([1, 2]));
    check(&info, &head, "b");
    info.metadata.clear();
    info.connection = Rc::new(connection(address("10.1.1.1:1")));
    check(&info, &head, "b");
}

#[test]
fn shares_are_by_hash() {
    let a = action("a");
    let text = |custom: &str| {
        format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: {{'@type': $NET.ServerNameInput}}}}, custom_match: {{name: h, typed_config: {{{custom}}}}}}}}}, on_match: {{{a}}}}}]}}}}"
        )
    };
    let count = |text: &str| {
        let matcher = build(text, Place::CONNECTION).unwrap_or_else(|error| panic!("{error}"));
        let hits = (0..1000).filter(|index| {
            let name = format!("host{index}");
            let facts = ConnectionFacts {
                destination: address("1.1.1.1:1"),
                source: address("1.1.1.1:1"),
                direct_source: address("1.1.1.1:1"),
                server_name: &name,
                transport: "",
                application_protocols: &[],
            };
            matcher.find(&facts).is_some()
        });
        hits.count()
    };
    let half = count(&text(
        "'@type': $IN.consistent_hashing.v3.ConsistentHashing, threshold: 5, modulo: 10, seed: 7",
    ));
    let tenth = count(&text(
        "'@type': $IN.runtime_fraction.v3.RuntimeFraction, runtime_fraction: {default_value: {numerator: 10}}",
    ));
    assert!((400..600).contains(&half) && (50..150).contains(&tenth), "{half} {tenth}");
}
