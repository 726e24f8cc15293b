use expect_test::{Expect, expect};

use super::{decode_text, decode_text_with_warnings, to_wire};
use crate::encode::{Style, json_text, to_value};
use crate::proto::envoy::config::bootstrap::v3::Bootstrap;
use crate::yaml::{Dialect, parse};

/// Reads a message of any type and shows it as compact JSON, or what is wrong with it.
fn read(type_name: &str, text: &str) -> String {
    let documents = match parse(text, Dialect::Envoy) {
        Ok(documents) => documents,
        Err(error) => return error.in_file("t.yaml").to_string(),
    };
    match to_wire(type_name, &documents[0], "t.yaml") {
        Ok(wire) => to_value(type_name, &wire, Style::default()).unwrap().to_string(),
        Err(errors) => errors.to_string(),
    }
}

fn table(type_name: &str, cases: &[(&str, Expect)]) {
    for (text, expected) in cases {
        expected.assert_eq(&read(type_name, text));
    }
}

const NODE: &str = "envoy.config.core.v3.Node";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

#[test]
fn text_and_booleans() {
    table(
        NODE,
        &[
            (
                "{id: a, cluster: 'yes', client_features: [b, \"5\"]}",
                expect![[r#"{"id":"a","cluster":"yes","client_features":["b","5"]}"#]],
            ),
            ("{id: 5}", expect!["t.yaml:1:6: id: expected text, found the number 5; put it in quotes"]),
            ("{id: 1.5}", expect![[r#"{"id":"1.5"}"#]]),
            ("{id: yes}", expect!["t.yaml:1:6: id: expected text, found the boolean true; put it in quotes"]),
            ("{id: 12345678901}", expect![[r#"{"id":"12345678901"}"#]]),
            ("{id: ~, cluster: null, metadata: null}", expect!["{}"]),
            ("{id: [a]}", expect!["t.yaml:1:6: id: expected text, found a list"]),
            ("{client_features: a}", expect![[r#"{"client_features":["a"]}"#]]),
            (
                "{client_features: [a, {}]}",
                expect!["t.yaml:1:23: client_features[1]: expected text, found a mapping"],
            ),
            ("{userAgentName: x}", expect![[r#"{"user_agent_name":"x"}"#]]),
            (
                "{user_agent_name: x, userAgentName: y}",
                expect!["t.yaml:1:22: userAgentName: duplicate field, first set in line 1"],
            ),
            ("{id: x, id: y}", expect!["t.yaml:1:9: id: duplicate field, first set in line 1"]),
            (
                "{user_agent_nme: x}",
                expect!["t.yaml:1:2: user_agent_nme: unknown field, did you mean 'user_agent_name'?"],
            ),
            ("{foo: x}", expect!["t.yaml:1:2: foo: unknown field"]),
            ("[]", expect!["t.yaml:1:1: expected a mapping (envoy.config.core.v3.Node), found a list"]),
        ],
    );
    table(
        "google.protobuf.BoolValue",
        &[
            ("true", expect!["true"]),
            ("off", expect!["false"]),
            ("'true'", expect!["true"]),
            ("'yes'", expect!["true"]),
            ("1", expect!["t.yaml:1:1: expected true or false, found the number 1"]),
            ("{value: on}", expect!["true"]),
        ],
    );
}

#[test]
fn numbers() {
    table(
        "google.protobuf.UInt32Value",
        &[
            ("5", expect!["5"]),
            ("'5'", expect!["5"]),
            ("5.0", expect!["5"]),
            ("1e3", expect!["1000"]),
            ("0x10", expect!["16"]),
            ("'0x10'", expect!["16"]),
            ("'010'", expect!["10"]),
            ("010", expect!["8"]),
            ("'+5'", expect!["5"]),
            ("4294967295", expect!["4294967295"]),
            ("4294967296", expect!["t.yaml:1:1: 4294967296 is out of range for uint32"]),
            ("-1", expect!["t.yaml:1:1: -1 is out of range for uint32"]),
            ("5.5", expect!["t.yaml:1:1: expected a whole number, found 5.5"]),
            ("''", expect![[r#"t.yaml:1:1: expected a number, found """#]]),
            ("' 5'", expect![[r#"t.yaml:1:1: expected a number, found " 5""#]]),
            ("x", expect![[r#"t.yaml:1:1: expected a number, found "x""#]]),
            ("true", expect!["t.yaml:1:1: expected a number, found the boolean true"]),
            ("[5]", expect!["t.yaml:1:1: expected a number, found a list"]),
        ],
    );
    table(
        "google.protobuf.Int64Value",
        &[
            ("-9223372036854775808", expect![[r#""-9223372036854775808""#]]),
            ("'9223372036854775807'", expect![[r#""9223372036854775807""#]]),
            ("9223372036854775808", expect!["t.yaml:1:1: 9223372036854775808 is out of range for int64"]),
            ("1e30", expect!["t.yaml:1:1: 1e30 is out of range for int64"]),
        ],
    );
    table(
        "google.protobuf.UInt64Value",
        &[
            ("18446744073709551615", expect![[r#""18446744073709551615""#]]),
            ("-1", expect!["t.yaml:1:1: -1 is out of range for uint64"]),
        ],
    );
    table(
        "google.protobuf.Int32Value",
        &[
            ("-2147483648", expect!["-2147483648"]),
            ("2147483648", expect!["t.yaml:1:1: 2147483648 is out of range for int32"]),
        ],
    );
    table(
        "google.protobuf.DoubleValue",
        &[
            ("1.5", expect!["1.5"]),
            ("'1.5'", expect!["1.5"]),
            ("3", expect!["3"]),
            ("-1.5e-7", expect!["-1.5e-7"]),
            ("NaN", expect![[r#""NaN""#]]),
            ("'Infinity'", expect![[r#""Infinity""#]]),
            ("-Infinity", expect![[r#""-Infinity""#]]),
            (".inf", expect![[r#"t.yaml:1:1: expected a number, found ".inf""#]]),
            ("1e999", expect!["t.yaml:1:1: 1e999 is out of range for double"]),
            ("infinity", expect![[r#"t.yaml:1:1: expected a number, found "infinity""#]]),
            ("1.5x", expect![[r#"t.yaml:1:1: expected a number, found "1.5x""#]]),
        ],
    );
    table(
        "google.protobuf.FloatValue",
        &[("0.1", expect!["0.1"]), ("3.5e38", expect!["t.yaml:1:1: 3.5e38 is out of range for float"])],
    );
}

#[test]
fn bytes() {
    table(
        "google.protobuf.BytesValue",
        &[
            ("aGVsbG8=", expect![[r#""aGVsbG8=""#]]),
            ("aGVsbG8", expect![[r#""aGVsbG8=""#]]),
            ("'-_-_'", expect![[r#""+/+/""#]]),
            ("'+/+/'", expect![[r#""+/+/""#]]),
            ("a", expect!["t.yaml:1:1: invalid base64"]),
            ("a!!", expect!["t.yaml:1:1: invalid base64"]),
            ("a===", expect!["t.yaml:1:1: invalid base64"]),
            ("5", expect!["t.yaml:1:1: expected bytes in base64, found the number 5"]),
        ],
    );
}

#[test]
fn enums() {
    let case = |value: &str| read(CLUSTER, &format!("{{name: a, lb_policy: {value}}}"));
    for (value, expected) in [
        ("RANDOM", expect![[r#"{"name":"a","lb_policy":"RANDOM"}"#]]),
        ("random", expect![[r#"{"name":"a","lb_policy":"RANDOM"}"#]]),
        ("3", expect![[r#"{"name":"a","lb_policy":"RANDOM"}"#]]),
        ("'3'", expect![[r#"{"name":"a","lb_policy":"RANDOM"}"#]]),
        ("77", expect!["t.yaml:1:11: lb_policy: value must be one of the defined enum values"]),
        (
            "RNDOM",
            expect![[
                r#"t.yaml:1:22: lb_policy: unknown value "RNDOM" of envoy.config.cluster.v3.Cluster.LbPolicy, did you mean 'RANDOM'?"#
            ]],
        ),
        ("null", expect![[r#"{"name":"a"}"#]]),
        (
            "1.5",
            expect![[
                r#"t.yaml:1:22: lb_policy: unknown value "1.5" of envoy.config.cluster.v3.Cluster.LbPolicy"#
            ]],
        ),
        (
            "{}",
            expect![
                "t.yaml:1:22: lb_policy: expected a value of envoy.config.cluster.v3.Cluster.LbPolicy, found a mapping"
            ],
        ),
    ] {
        expected.assert_eq(&case(value));
    }
}

#[test]
fn times_and_masks() {
    table(
        "google.protobuf.Duration",
        &[
            ("5s", expect![[r#""5s""#]]),
            ("-1.5s", expect![[r#""-1.500s""#]]),
            ("0.000000001s", expect![[r#""0.000000001s""#]]),
            (
                "1.0123456789s",
                expect![[r#"t.yaml:1:1: expected a duration like 1.5s, found "1.0123456789s""#]],
            ),
            ("5", expect!["t.yaml:1:1: expected a duration like 1.5s, found the number 5"]),
            ("5ms", expect![[r#"t.yaml:1:1: expected a duration like 1.5s, found "5ms""#]]),
            ("1.s", expect![[r#"t.yaml:1:1: expected a duration like 1.5s, found "1.s""#]]),
            (".5s", expect![[r#"t.yaml:1:1: expected a duration like 1.5s, found ".5s""#]]),
            ("+1s", expect![[r#"t.yaml:1:1: expected a duration like 1.5s, found "+1s""#]]),
            ("315576000000s", expect![[r#""315576000000s""#]]),
            (
                "315576000001s",
                expect![[r#"t.yaml:1:1: expected a duration like 1.5s, found "315576000001s""#]],
            ),
            ("{seconds: 5, nanos: 1}", expect![[r#""5.000000001s""#]]),
            ("{second: 5}", expect!["t.yaml:1:2: second: unknown field, did you mean 'seconds'?"]),
        ],
    );
    table(
        "google.protobuf.Timestamp",
        &[
            ("2024-02-29T12:00:00Z", expect![[r#""2024-02-29T12:00:00Z""#]]),
            (
                "2023-02-29T12:00:00Z",
                expect![[
                    r#"t.yaml:1:1: expected a time like 2006-01-02T15:04:05Z, found "2023-02-29T12:00:00Z""#
                ]],
            ),
            ("2024-01-01T00:00:00.123456789-08:00", expect![[r#""2024-01-01T08:00:00.123456789Z""#]]),
            (
                "0000-01-01T00:00:00Z",
                expect![[
                    r#"t.yaml:1:1: expected a time like 2006-01-02T15:04:05Z, found "0000-01-01T00:00:00Z""#
                ]],
            ),
            (
                "2024-01-01",
                expect![[r#"t.yaml:1:1: expected a time like 2006-01-02T15:04:05Z, found "2024-01-01""#]],
            ),
        ],
    );
    table(
        "google.protobuf.FieldMask",
        &[
            ("fooBar,a.b", expect![[r#""fooBar,a.b""#]]),
            ("foo_bar", expect![[r#"t.yaml:1:1: field path "foo_bar" must be in camelCase"#]]),
            ("{paths: [foo_bar]}", expect![[r#""fooBar""#]]),
        ],
    );
}

#[test]
fn structs() {
    table(
        "google.protobuf.Struct",
        &[
            (
                "{a: 1, b: [x, {c: null}], d: yes, e: 1.5, f: 0x10}",
                expect![[r#"{"a":1,"b":["x",{"c":null}],"d":true,"e":"1.5","f":16}"#]],
            ),
            ("{a: 1, a: 2}", expect![[r#"t.yaml:1:8: ["a"]: duplicate key, set before in line 1"#]]),
            ("[1]", expect!["t.yaml:1:1: expected a mapping, found a list"]),
        ],
    );
    table(
        "google.protobuf.ListValue",
        &[
            ("[1, [2], {}]", expect!["[1,[2],{}]"]),
            ("{}", expect!["t.yaml:1:1: expected a list, found a mapping"]),
        ],
    );
    table("google.protobuf.Value", &[("text", expect![[r#""text""#]])]);
}

#[test]
fn lists_maps_and_oneofs() {
    table(
        CLUSTER,
        &[
            (
                "{name: a, health_checks: null, metadata: {filter_metadata: {a: null, b: {c: 1}}}}",
                expect![[r#"{"name":"a","metadata":{"filter_metadata":{"a":{},"b":{"c":1}}}}"#]],
            ),
            (
                "{name: a, metadata: {filter_metadata: {a: {}, a: {}}}}",
                expect![[
                    r#"t.yaml:1:47: metadata.filter_metadata["a"]: duplicate key, set before in line 1"#
                ]],
            ),
            (
                "{name: a, metadata: {filter_metadata: [1]}}",
                expect!["t.yaml:1:39: metadata.filter_metadata: expected a mapping, found a list"],
            ),
            (
                "{name: a, type: STATIC, cluster_type: {name: x}}",
                expect![
                    "t.yaml:1:25: cluster_type: only one field of the oneof 'cluster_discovery_type' may be set, and 'type' is set in line 1"
                ],
            ),
            ("{name: a, type: STATIC, cluster_type: null}", expect![[r#"{"name":"a","type":"STATIC"}"#]]),
            (
                "{name: a, transport_socket_matches: {name: single}}",
                expect![[r#"{"name":"a","transport_socket_matches":[{"name":"single"}]}"#]],
            ),
            (
                "{name: a, transport_socket_matches: [null]}",
                expect![
                    "t.yaml:1:38: transport_socket_matches[0].name: value length must be at least 1 characters"
                ],
            ),
        ],
    );
    table(
        "envoy.type.matcher.v3.DoubleMatcher",
        &[
            ("{exact: 0}", expect![[r#"{"exact":0}"#]]),
            ("{range: {start: 0, end: 1.5}}", expect![[r#"{"range":{"end":1.5}}"#]]),
        ],
    );
    table(
        "envoy.config.core.v3.HealthCheck.HttpHealthCheck",
        &[(
            "{path: /, expected_statuses: [{start: 200, end: 201}], codec_client_type: HTTP2}",
            expect![[
                r#"{"path":"/","expected_statuses":[{"start":"200","end":"201"}],"codec_client_type":"HTTP2"}"#
            ]],
        )],
    );
}

#[test]
fn lists_in_lists() {
    table(
        NODE,
        &[
            ("{client_features: [a, [b, [c]], []]}", expect![[r#"{"client_features":["a","b","c"]}"#]]),
            (
                "{client_features: [a, [b, 5]]}",
                expect![
                    "t.yaml:1:27: client_features[1][1]: expected text, found the number 5; put it in quotes"
                ],
            ),
        ],
    );
    table(
        CLUSTER,
        &[(
            "{name: a, transport_socket_matches: [{name: b}, [{name: c}, x]]}",
            expect![[r#"
        t.yaml:1:11: transport_socket_matches[2].name: value length must be at least 1 characters
        t.yaml:1:61: transport_socket_matches[1][1]: expected a mapping (envoy.config.cluster.v3.Cluster.TransportSocketMatch), found "x""#]],
        )],
    );
    table("google.protobuf.ListValue", &[("[[1], [[]]]", expect!["[[1],[[]]]"])]);
}

#[test]
fn any() {
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    table(
        "google.protobuf.Any",
        &[
            (
                &format!("{{explicit_http_config: {{http2_protocol_options: {{}}}}, '@type': {options}}}"),
                expect![[
                    r#"{"@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions","explicit_http_config":{"http2_protocol_options":{}}}"#
                ]],
            ),
            (
                &format!("{{'@type': {options}, explicit_htp_config: {{}}}}"),
                expect![
                    "t.yaml:1:87: explicit_htp_config: unknown field, did you mean 'explicit_http_config'?"
                ],
            ),
            (
                &format!("{{'@type': {options}}}"),
                expect!["t.yaml:1:1: upstream_protocol_options: is required"],
            ),
            ("{a: 1}", expect!["t.yaml:1:1: missing '@type', which tells the type of this field"]),
            ("{}", expect!["{}"]),
            ("5", expect!["t.yaml:1:1: expected a mapping with '@type', found the number 5"]),
            ("{'@type': 5}", expect!["t.yaml:1:11: expected a type URL, found the number 5"]),
            (
                "{'@type': type.googleapis.com/envoy.config.cluster.v3.Clustr}",
                expect![[
                    r#"t.yaml:1:11: unknown type "type.googleapis.com/envoy.config.cluster.v3.Clustr", did you mean 'envoy.config.cluster.v3.Cluster'?"#
                ]],
            ),
            (
                "{'@type': envoy.config.cluster.v3.Cluster}",
                expect![[
                    r#"t.yaml:1:11: type URL "envoy.config.cluster.v3.Cluster" has no host, write type.googleapis.com/envoy.config.cluster.v3.Cluster"#
                ]],
            ),
            (
                "{'@type': a/google.protobuf.Duration, value: 5s}",
                expect![[r#"{"@type":"a/google.protobuf.Duration","value":"5s"}"#]],
            ),
            (
                "{'@type': a/google.protobuf.Duration, seconds: 5}",
                expect![
                    "t.yaml:1:39: seconds: unknown field, a google.protobuf.Duration stands under 'value'"
                ],
            ),
            ("{'@type': a/google.protobuf.Empty}", expect![[r#"{"@type":"a/google.protobuf.Empty"}"#]]),
            (
                "{'@type': a/google.protobuf.Struct, value: {a: b}}",
                expect![[r#"{"@type":"a/google.protobuf.Struct","value":{"a":"b"}}"#]],
            ),
            (
                "{'@type': a/google.protobuf.Any, value: {'@type': b/google.protobuf.BoolValue, value: on}}",
                expect![[
                    r#"{"@type":"a/google.protobuf.Any","value":{"@type":"b/google.protobuf.BoolValue","value":true}}"#
                ]],
            ),
            (
                "{'@type': a/xds.type.v3.TypedStruct, type_url: a/google.protobuf.Empty, value: {x: [1]}}",
                expect![[
                    r#"{"@type":"a/xds.type.v3.TypedStruct","type_url":"a/google.protobuf.Empty","value":{"x":[1]}}"#
                ]],
            ),
            (
                "{'@type': a/envoy.config.cluster.v3.Cluster, '@type': a/google.protobuf.Empty, name: b}",
                expect!["t.yaml:1:46: duplicate '@type'"],
            ),
        ],
    );
}

#[test]
fn all_errors_with_places() {
    let text = r#"
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 70000}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ""
          route_config:
            virtual_hosts:
            - name: a
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: c, timeout: 5}
              - match: {path: /x}
            - name: b
              domain: ["*"]
              require_tls: ALL_OF_IT
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Routr}
  clusters:
  - connect_timeout: 0s
    lb_policy: [RANDOM]
  - name: c
    connect_timeout: 1s
    connectTimeout: 2s
    load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {}}], priority: 200}]}
"#;
    let errors = decode_text::<Bootstrap>(text, "envoy.yaml").unwrap_err();
    expect![[r#"
        envoy.yaml:5:52: static_resources.listeners[0].address.socket_address.port_value: value must be less than or equal to 65535
        envoy.yaml:11:11: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefix: value length must be at least 1 characters
        envoy.yaml:18:46: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.timeout: expected a duration like 1.5s, found the number 5
        envoy.yaml:19:17: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[1].action: is required
        envoy.yaml:21:15: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[1].domain: unknown field, did you mean 'domains'?
        envoy.yaml:22:28: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[1].require_tls: unknown value "ALL_OF_IT" of envoy.config.route.v3.VirtualHost.TlsRequirementType
        envoy.yaml:25:37: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: unknown type "type.googleapis.com/envoy.extensions.filters.http.router.v3.Routr", did you mean 'envoy.extensions.filters.http.router.v3.Router'?
        envoy.yaml:27:5: static_resources.clusters[0].connect_timeout: value must be greater than 0s
        envoy.yaml:28:16: static_resources.clusters[0].lb_policy: expected a value of envoy.config.cluster.v3.Cluster.LbPolicy, found a list
        envoy.yaml:31:5: static_resources.clusters[1].connectTimeout: duplicate field, first set in line 30
        envoy.yaml:32:5: static_resources.clusters[1].load_assignment.cluster_name: value length must be at least 1 characters
        envoy.yaml:32:68: static_resources.clusters[1].load_assignment.endpoints[0].priority: value must be less than or equal to 128"#]].assert_eq(&errors.to_string());
}

#[test]
fn files() {
    let node = |text: &str, name: &str| match decode_text::<Bootstrap>(text, name) {
        Ok(bootstrap) => format!("{:?}", bootstrap.node.map(|node| node.id)),
        Err(errors) => errors.to_string(),
    };
    expect!["None"].assert_eq(&node("", "a.yaml"));
    expect!["a.yaml:3:1: only one document is read from a file"]
        .assert_eq(&node("node: {id: a}\n---\nnode: {id: b}\n", "a.yaml"));
    expect![[r#"Some("a")"#]].assert_eq(&node("{\"node\": {\"id\": \"a\"}}", "a.json"));
    expect!["a.json:1:17: not JSON: text must be in double quotes"]
        .assert_eq(&node("{\"node\": {\"id\": a}}", "a.json"));
    expect!["a.yaml:2:7: unclosed bracket '['"].assert_eq(&node("node:\n  id: [", "a.yaml"));
}

#[test]
fn deprecation() {
    let text = "
static_resources:
  clusters:
  - name: a
    http2_protocol_options: {}
";
    let warnings = decode_text_with_warnings::<Bootstrap>(text, "a.yaml").unwrap().warnings;
    let lines: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    expect!["a.yaml:5:5: static_resources.clusters[0].http2_protocol_options: is deprecated since 3.0"]
        .assert_eq(&lines.join("\n"));
    // A field and a value that Envoy refuses; as a default it lets the value pass.
    table(
        "envoy.config.route.v3.RateLimit.Action",
        &[(
            "{dynamic_metadata: {descriptor_key: a, metadata_key: {key: k, path: [{key: p}]}}}",
            expect!["t.yaml:1:2: dynamic_metadata: is deprecated since 3.0 and refused by default"],
        )],
    );
    table(
        "envoy.config.core.v3.ApiConfigSource",
        &[
            ("{transport_api_version: V3}", expect![[r#"{"transport_api_version":"V3"}"#]]),
            ("{api_type: DEPRECATED_AND_UNAVAILABLE_DO_NOT_USE}", expect![[r#"{}"#]]),
        ],
    );
}

#[test]
fn json_text_is_read_back() {
    let text =
        "{name: a, connect_timeout: 1.5s, type: EDS, metadata: {filter_metadata: {a: {b: [1, x, null]}}}}";
    let documents = parse(text, Dialect::Envoy).unwrap();
    let wire = to_wire(CLUSTER, &documents[0], "").unwrap();
    let json = json_text(&to_value(CLUSTER, &wire, Style::default()).unwrap());
    let again = parse(&json, Dialect::Json).unwrap();
    // Compared as JSON, since fields come by number there and in the order of the text here.
    let wire = to_wire(CLUSTER, &again[0], "").unwrap();
    assert_eq!(json_text(&to_value(CLUSTER, &wire, Style::default()).unwrap()), json);
}

/// As deep as YAML may be is deeper than protobuf may be: an error, and no stack overflows.
#[test]
fn depth_is_bounded() {
    let nested =
        |levels: usize| format!("node: {{metadata: {{a: {}1{}}}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(decode_text::<Bootstrap>(&nested(20), "a.yaml").is_ok());
    let error = decode_text::<Bootstrap>(&nested(90), "a.yaml").unwrap_err();
    assert!(error.to_string().ends_with("nested deeper than 100 messages"), "{error}");
    let error = decode_text::<Bootstrap>(&nested(200), "a.yaml").unwrap_err();
    expect!["a.yaml:1:121: recursion limit exceeded"].assert_eq(&error.to_string());
}

#[test]
fn fragments_are_parts() {
    let check = |text: &str, expected: Expect| {
        let documents = parse(text, Dialect::Kubernetes).unwrap();
        let read = super::fragment("envoy.config.listener.v3.Filter", &documents[0]);
        let mut all: Vec<String> = read.errors.iter().map(|error| format!("error {error}")).collect();
        all.extend(read.unknown.iter().map(|error| format!("unknown {error}")));
        let value = to_value("envoy.config.listener.v3.Filter", &read.wire, Style::default());
        all.push(value.unwrap().to_string());
        expected.assert_eq(&all.join("\n"));
    };
    // A name is needed in a whole one.
    let proxy = "'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    check(
        &format!("typed_config: {{{proxy}, idle_timeout: 5s, colour: red}}"),
        expect![[r#"
        unknown 1:119: typed_config.colour: unknown field
        {"typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","idle_timeout":"5s"}}"#]],
    );
    check(
        &format!("typed_config: {{{proxy}, idle_timeout: soon}}"),
        expect![[r#"
        error 1:115: typed_config.idle_timeout: expected a duration like 1.5s, found "soon"
        {"typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","idle_timeout":"0s"}}"#]],
    );
    check(
        "typed_config: {'@type': type.googleapis.com/com.example.Unknown, a: [1]}",
        expect![[r#"
        unknown 1:25: typed_config: the type "type.googleapis.com/com.example.Unknown" is not known here, and passed on as it is written
        {"typed_config":{"@type":"type.googleapis.com/xds.type.v3.TypedStruct","type_url":"type.googleapis.com/com.example.Unknown","value":{"a":[1]}}}"#]],
    );
    check(
        "typed_config: {'@type': type.googleapis.com/envoy.config.filter.http.lua.v2.Lua}",
        expect![[r#"
        error 1:25: typed_config: unknown type "type.googleapis.com/envoy.config.filter.http.lua.v2.Lua", did you mean 'envoy.extensions.filters.http.lua.v3.Lua'?
        {"typed_config":{}}"#]],
    );
    check(
        "typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpPorxy}",
        expect![[r#"
            error 1:25: typed_config: unknown type "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpPorxy", did you mean 'envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy'?
            {"typed_config":{}}"#]],
    );
    let inner = "type_url: type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, value: {cluster: a}";
    check(
        &format!("typed_config: {{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, {inner}}}"),
        expect![[
            r#"{"typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","cluster":"a"}}"#
        ]],
    );
}
