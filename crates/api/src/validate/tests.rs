use expect_test::{Expect, expect};
use prost::Message as _;
use prost_types::Any;

use super::{inspect, validate};
use crate::any::pack;
use crate::decode::unchecked;
use crate::proto::envoy::config::cluster::v3::Cluster;
use crate::proto::envoy::config::core::v3::{Node, TypedExtensionConfig};
use crate::yaml::{Dialect, parse};

/// What is wrong with a message given as YAML, in the order found.
#[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
fn check(type_name: &str, yaml: &str, expected: Expect) {
    let documents = parse(yaml, Dialect::Envoy).unwrap();
    let wire = unchecked(type_name, &documents[0]).unwrap();
    let report = inspect(type_name, &wire);
    let lines = |mark: &str, found: &[super::Violation]| -> String {
        found.iter().map(|violation| format!("{mark}{violation}\n")).collect()
    };
    expected.assert_eq(&format!(
        "{}{}{}",
        lines("", &report.violations),
        lines("unknown: ", &report.unknown),
        lines("deprecated: ", &report.deprecated)
    ));
}

/// The wording is Envoy 1.40's.
#[test]
fn rules() {
    let cluster = "envoy.config.cluster.v3.Cluster";
    for (yaml, expected) in [
        ("{name: a, connect_timeout: 1s}", expect![[""]]),
        (
            "{connect_timeout: 0s}",
            expect![[r#"
            name: value length must be at least 1 characters
            connect_timeout: value must be greater than 0s
        "#]],
        ),
        (
            "{name: a, dns_refresh_rate: 0.0005s, type: 9}",
            expect![[r#"
            type: value must be one of the defined enum values
            dns_refresh_rate: value must be greater than 1ms
            deprecated: dns_refresh_rate: is deprecated since 3.0
        "#]],
        ),
        (
            "{name: a, ring_hash_lb_config: {minimum_ring_size: 99999999999}}",
            expect![[r#"
            ring_hash_lb_config.minimum_ring_size: value must be less than or equal to 8388608
        "#]],
        ),
        (
            "{name: a, outlier_detection: {max_ejection_percent: 101}}",
            expect![[r#"
            outlier_detection.max_ejection_percent: value must be less than or equal to 100
        "#]],
        ),
        (
            "{name: a, health_checks: [{}]}",
            expect![[r#"
            health_checks[0].timeout: value is required
            health_checks[0].interval: value is required
            health_checks[0].unhealthy_threshold: value is required
            health_checks[0].healthy_threshold: value is required
            health_checks[0].health_checker: is required
        "#]],
        ),
        (
            "{name: a, load_assignment: {cluster_name: b, policy: {overprovisioning_factor: 0}}}",
            expect![[r#"
            load_assignment.policy.overprovisioning_factor: value must be greater than 0
        "#]],
        ),
        (
            "{name: a, load_assignment: {cluster_name: b, endpoints: [{priority: 200, load_balancing_weight: 0}]}}",
            expect![[r#"
            load_assignment.endpoints[0].load_balancing_weight: value must be greater than or equal to 1
            load_assignment.endpoints[0].priority: value must be less than or equal to 128
        "#]],
        ),
        (
            "{name: a, upstream_bind_config: {source_address: {address: '', port_value: 70000}}}",
            expect![[r#"
            upstream_bind_config.source_address.address: value length must be at least 1 characters
            upstream_bind_config.source_address.port_value: value must be less than or equal to 65535
        "#]],
        ),
        ("{name: a, metadata: {typed_filter_metadata: {x: {}}}}", expect![[""]]),
        (
            "{name: a, max_requests_per_connection: 1, http2_protocol_options: {}}",
            expect![[r#"
            deprecated: max_requests_per_connection: is deprecated since 3.0
            deprecated: http2_protocol_options: is deprecated since 3.0
        "#]],
        ),
    ] {
        check(cluster, yaml, expected);
    }
    check(
        "envoy.config.bootstrap.v3.Bootstrap",
        "{stats_flush_interval: 0.0001s}",
        expect![[r#"
        stats_flush_interval: value must be inside range [1ms, 5m0s)
    "#]],
    );
    check(
        "envoy.config.bootstrap.v3.Bootstrap",
        "{stats_flush_interval: 600s}",
        expect![[r#"
        stats_flush_interval: value must be inside range [1ms, 5m0s)
    "#]],
    );
    check(
        "envoy.config.bootstrap.v3.Bootstrap",
        "{stats_flush_on_admin: false}",
        expect![[r#"
        stats_flush_on_admin: value must equal true
    "#]],
    );
    check(
        "envoy.config.core.v3.Address",
        "{}",
        expect![[r#"
        address: is required
    "#]],
    );
    check(
        "envoy.config.core.v3.HeaderValue",
        "{key: \"a\\nb\", value: \"c\\r\"}",
        expect![[r#"
        key: value does not match regex pattern "^[^\u0000\u000A\u000D]*$"
        value: value does not match regex pattern "^[^\u0000\u000A\u000D]*$"
    "#]],
    );
    check(
        "envoy.config.core.v3.HeaderValue",
        "{key: '', value: ''}",
        expect![[r#"
        key: value length must be at least 1 characters
    "#]],
    );
    check(
        "envoy.config.route.v3.VirtualHost",
        "{name: a, domains: []}",
        expect![[r#"
        domains: value must contain at least 1 item(s)
    "#]],
    );
    check(
        "envoy.config.route.v3.VirtualHost",
        "{name: a, domains: ['', \"x\\ny\"]}",
        expect![[r#"
        domains[1]: value does not match regex pattern "^[^\u0000\u000A\u000D]*$"
    "#]],
    );
    check("envoy.config.route.v3.RouteMatch", "{prefix: /}", expect![[""]]);
    check(
        "envoy.config.route.v3.RouteMatch",
        "{safe_regex: {}}",
        expect![[r#"
        safe_regex.regex: value length must be at least 1 characters
    "#]],
    );
    check(
        "envoy.config.route.v3.RouteAction",
        "{cluster: a, retry_policy: {retry_back_off: {base_interval: 0s}}}",
        expect![[r#"
        retry_policy.retry_back_off.base_interval: value must be greater than 0s
    "#]],
    );
    check(
        "envoy.config.route.v3.DirectResponseAction",
        "{status: 99}",
        expect![[r#"
        status: value must be inside range [200, 600)
    "#]],
    );
    check(
        "envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff",
        "{}",
        expect![[r#"
        reset_headers: value must contain at least 1 item(s)
    "#]],
    );
    check(
        "envoy.type.matcher.v3.StringMatcher",
        "{prefix: ''}",
        expect![[r#"
        prefix: value length must be at least 1 characters
    "#]],
    );
    check(
        "envoy.config.core.v3.GrpcService",
        "{envoy_grpc: {cluster_name: ''}}",
        expect![[r#"
        envoy_grpc.cluster_name: value length must be at least 1 characters
    "#]],
    );
    check(
        "envoy.config.metrics.v3.HistogramBucketSettings",
        "{match: {prefix: a}, buckets: [1, 1, 0]}",
        expect![[r#"
        buckets: repeated value must contain unique items
        buckets[2]: value must be greater than 0
    "#]],
    );
    check(
        "envoy.extensions.filters.http.set_metadata.v3.Config",
        "{metadata_namespace: a}",
        expect![[r#"
            deprecated: metadata_namespace: is deprecated since 3.0
        "#]],
    );
    check(
        "envoy.config.trace.v3.DynamicOtConfig",
        "{library: x, config: {a: 1}}",
        expect![[r#"
        library: is deprecated since 3.0 and refused by default
        config: is deprecated since 3.0 and refused by default
    "#]],
    );
}

#[test]
fn inside_any() {
    let cluster = Cluster { name: String::new(), ..Cluster::default() };
    let extension = TypedExtensionConfig { name: "x".to_owned(), typed_config: Some(pack(&cluster)) };
    let found =
        validate("envoy.config.core.v3.TypedExtensionConfig", &extension.encode_to_vec()).unwrap_err();
    expect!["typed_config.name: value length must be at least 1 characters"].assert_eq(&found[0].to_string());
    let unknown = Any { type_url: "type.googleapis.com/no.Such".to_owned(), value: vec![0xff] };
    let extension = TypedExtensionConfig { name: "x".to_owned(), typed_config: Some(unknown) };
    assert_eq!(validate("envoy.config.core.v3.TypedExtensionConfig", &extension.encode_to_vec()), Ok(()));
    let broken = Any { value: vec![0xff], ..pack(&cluster) };
    let found = validate("google.protobuf.Any", &broken.encode_to_vec()).unwrap_err();
    expect!["malformed envoy.config.cluster.v3.Cluster"].assert_eq(&found[0].to_string());
}

#[test]
fn wire_faults() {
    let mut wire = Node { id: "a".to_owned(), ..Node::default() }.encode_to_vec();
    // Field 100, a varint; and the same inside `locality` (4).
    wire.extend([0xa0, 0x06, 0x05, 0x22, 0x03, 0xa0, 0x06, 0x05]);
    let report = inspect("envoy.config.core.v3.Node", &wire);
    assert!(report.violations.is_empty());
    let unknown: Vec<String> = report.unknown.iter().map(ToString::to_string).collect();
    expect![[r#"
        [
            "100: unknown field of envoy.config.core.v3.Node",
            "locality.100: unknown field of envoy.config.core.v3.Locality",
        ]
    "#]]
    .assert_debug_eq(&unknown);
    // A string that is not UTF-8, and a string field as a number.
    for (wire, expected) in [
        (&[0x0a, 0x01, 0xff][..], expect!["id: malformed string"]),
        (&[0x08, 0x01][..], expect!["id: malformed string"]),
        (&[0x0a, 0x05, 0x61][..], expect!["malformed envoy.config.core.v3.Node"]),
        (&[0x0b][..], expect!["malformed envoy.config.core.v3.Node"]),
        (&[0x00, 0x01][..], expect!["malformed envoy.config.core.v3.Node"]),
    ] {
        let found = validate("envoy.config.core.v3.Node", wire).unwrap_err();
        expected.assert_eq(&found[0].to_string());
    }
    expect![[r#"unknown message type "no.Such""#]]
        .assert_eq(&validate("no.Such", &[]).unwrap_err()[0].to_string());
}

#[test]
fn split_and_overridden_fields() {
    // `load_assignment` (33) in two parts: each lacks something, together they are whole.
    let name = [0x8a, 0x02, 0x03, 0x0a, 0x01, b'a'];
    let empty = [0x8a, 0x02, 0x00];
    let wire = [&[0x0a, 0x01, b'x'][..], &empty, &name].concat();
    assert_eq!(validate("envoy.config.cluster.v3.Cluster", &wire), Ok(()));
    let wire = [&[0x0a, 0x01, b'x'][..], &empty].concat();
    assert!(validate("envoy.config.cluster.v3.Cluster", &wire).is_err());
    // A StringMatcher with `prefix: ""` (2), which is forbidden, then `exact: ""` (1), which is not.
    assert!(validate("envoy.type.matcher.v3.StringMatcher", &[0x12, 0x00]).is_err());
    assert_eq!(validate("envoy.type.matcher.v3.StringMatcher", &[0x12, 0x00, 0x0a, 0x00]), Ok(()));
}

#[test]
fn depth_is_bounded() {
    let mut any = Any::default();
    for _ in 0..300 {
        any = pack(&any);
    }
    let found = validate("google.protobuf.Any", &any.encode_to_vec()).unwrap_err();
    expect!["nested deeper than 100 messages"].assert_eq(&found[0].to_string());
    let shown = crate::encode::to_value("google.protobuf.Any", &any.encode_to_vec(), Default::default());
    expect!["malformed google.protobuf.Any"].assert_eq(&shown.unwrap_err().to_string().replace("value.", ""));
}
