use expect_test::{Expect, expect};
use prost_types::Any;

use super::{EncodeError, Style, json_text, text, to_value, yaml, yaml_text};
use crate::any::pack;
use crate::decode::{decode_text, to_wire};
use crate::proto::envoy::config::bootstrap::v3::Bootstrap;
use crate::proto::envoy::config::core::v3::Metadata;
use crate::yaml::{Dialect, parse};

const BOOTSTRAP: &str = r#"
node:
  id: "x<y>&\"'/é\u2028"
  cluster: "a\tb\x01"
  metadata: {a: 1.5, b: {}, l: [1, -5, null, true], e: []}
static_resources:
  clusters:
  - name: a
    connect_timeout: 1.5s
    type: STATIC
    lb_policy: 0
    per_connection_buffer_limit_bytes: 5
    common_lb_config: {healthy_panic_threshold: {value: 33.3}}
    circuit_breakers: {thresholds: [{priority: HIGH, retry_budget: {budget_percent: {value: 0}}}]}
    ring_hash_lb_config: {minimum_ring_size: 2000}
    metadata: {filter_metadata: {zz: {a: 1}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
  secrets:
  - name: q
    generic_secret: {secret: {inline_string: foo}}
  - name: q2
    tls_certificate: {private_key: {inline_bytes: "aGVsbG8="}, certificate_chain: {filename: /x}}
"#;

/// As Envoy 1.40 prints it in `/config_dump`.
#[test]
fn like_envoy() {
    let bootstrap: Bootstrap = decode_text(BOOTSTRAP, "envoy.yaml").unwrap();
    let style = Style { redact: true, ..Style::default() };
    expect![[r#"
        {
         "node": {
          "id": "x\u003cy\u003e&\"'/é\u2028",
          "cluster": "a\tb\u0001",
          "metadata": {
           "a": "1.5",
           "b": {},
           "e": [],
           "l": [
            1,
            -5,
            null,
            true
           ]
          }
         },
         "static_resources": {
          "clusters": [
           {
            "name": "a",
            "type": "STATIC",
            "connect_timeout": "1.500s",
            "per_connection_buffer_limit_bytes": 5,
            "circuit_breakers": {
             "thresholds": [
              {
               "priority": "HIGH",
               "retry_budget": {
                "budget_percent": {}
               }
              }
             ]
            },
            "ring_hash_lb_config": {
             "minimum_ring_size": "2000"
            },
            "metadata": {
             "filter_metadata": {
              "zz": {
               "a": 1
              }
             }
            },
            "common_lb_config": {
             "healthy_panic_threshold": {
              "value": 33.3
             }
            },
            "typed_extension_protocol_options": {
             "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
              "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
              "explicit_http_config": {
               "http2_protocol_options": {}
              }
             }
            }
           }
          ],
          "secrets": [
           {
            "name": "q",
            "generic_secret": {
             "secret": {
              "inline_string": "[redacted]"
             }
            }
           },
           {
            "name": "q2",
            "tls_certificate": {
             "certificate_chain": {
              "filename": "/x"
             },
             "private_key": {
              "inline_bytes": "W3JlZGFjdGVkXQ=="
             }
            }
           }
          ]
         }
        }
    "#]]
    .assert_eq(&super::json(&bootstrap, style));
}

#[test]
fn as_yaml() {
    let bootstrap: Bootstrap = decode_text(BOOTSTRAP, "envoy.yaml").unwrap();
    expect![[r#"
        node:
          id: "x<y>&\"'/é\u2028"
          cluster: "a\tb\u0001"
          metadata:
            a: "1.5"
            b: {}
            e: []
            l:
            - 1
            - -5
            - null
            - true
        static_resources:
          clusters:
          - name: a
            type: STATIC
            connect_timeout: 1.500s
            per_connection_buffer_limit_bytes: 5
            circuit_breakers:
              thresholds:
              - priority: HIGH
                retry_budget:
                  budget_percent: {}
            ring_hash_lb_config:
              minimum_ring_size: "2000"
            metadata:
              filter_metadata:
                zz:
                  a: 1
            common_lb_config:
              healthy_panic_threshold:
                value: 33.3
            typed_extension_protocol_options:
              envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
                "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
                explicit_http_config:
                  http2_protocol_options: {}
          secrets:
          - name: q
            generic_secret:
              secret:
                inline_string: foo
          - name: q2
            tls_certificate:
              certificate_chain:
                filename: /x
              private_key:
                inline_bytes: "aGVsbG8="
    "#]]
    .assert_eq(&yaml(&bootstrap, Style::default()));
}

#[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
fn check(type_name: &str, yaml: &str, style: Style, expected: Expect) {
    let documents = parse(yaml, Dialect::Json).unwrap();
    let wire = to_wire(type_name, &documents[0], "").unwrap();
    expected.assert_eq(&to_value(type_name, &wire, style).unwrap().to_string());
}

#[test]
fn styles() {
    let style = Style { defaults: true, ..Style::default() };
    check(
        "envoy.config.core.v3.SocketAddress",
        r#"{"address": "x", "port_value": 0}"#,
        style,
        expect![[
            r#"{"protocol":"TCP","address":"x","port_value":0,"resolver_name":"","ipv4_compat":false,"network_namespace_filepath":""}"#
        ]],
    );
    let style = Style { json_names: true, ..Style::default() };
    check(
        "envoy.config.core.v3.SocketAddress",
        r#"{"address": "x", "port_value": 0}"#,
        style,
        expect![[r#"{"address":"x","portValue":0}"#]],
    );
}

#[test]
fn well_known_forms() {
    for (type_name, json, expected) in [
        ("google.protobuf.Duration", r#""-1.05s""#, expect![[r#""-1.050s""#]]),
        ("google.protobuf.Duration", r#""0.000000001s""#, expect![[r#""0.000000001s""#]]),
        (
            "google.protobuf.Timestamp",
            r#""2024-02-29T23:59:59.5+01:00""#,
            expect![[r#""2024-02-29T22:59:59.500Z""#]],
        ),
        ("google.protobuf.Timestamp", r#""0001-01-01T00:00:00Z""#, expect![[r#""0001-01-01T00:00:00Z""#]]),
        ("google.protobuf.FieldMask", r#""fooBar,baz.quxX""#, expect![[r#""fooBar,baz.quxX""#]]),
        ("google.protobuf.Value", "[1, 2.5, null, {\"a\": false}]", expect![[r#"[1,2.5,null,{"a":false}]"#]]),
        ("google.protobuf.UInt64Value", "18446744073709551615", expect![[r#""18446744073709551615""#]]),
        ("google.protobuf.FloatValue", "0.1", expect!["0.1"]),
        ("google.protobuf.DoubleValue", "\"-Infinity\"", expect![[r#""-Infinity""#]]),
        ("google.protobuf.BytesValue", r#""_-8""#, expect![[r#""/+8=""#]]),
        ("google.protobuf.Empty", "{}", expect!["{}"]),
        (
            "google.protobuf.Any",
            r#"{"@type": "a/google.protobuf.Duration", "value": "5s"}"#,
            expect![[r#"{"@type":"a/google.protobuf.Duration","value":"5s"}"#]],
        ),
        ("google.protobuf.Any", "{}", expect!["{}"]),
    ] {
        check(type_name, json, Style::default(), expected);
    }
}

#[test]
fn what_cannot_be_read() {
    let metadata = Metadata {
        typed_filter_metadata: [
            ("unknown".to_owned(), Any { type_url: "x/y.Z".to_owned(), value: vec![1, 2, 3] }),
            (
                "broken".to_owned(),
                Any { value: vec![0xff], ..pack(&prost_types::Duration { seconds: 1, nanos: 0 }) },
            ),
        ]
        .into(),
        ..Metadata::default()
    };
    let mut value = super::value(&metadata, Style::default());
    value["typed_filter_metadata"].as_object_mut().unwrap().sort_keys();
    expect![[r#"{"typed_filter_metadata":{"broken":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"/w=="},"unknown":{"@type":"x/y.Z","value":"AQID"}}}"#]].assert_eq(&value.to_string());
    let wire = prost::Message::encode_to_vec(&metadata);
    let error = to_value("envoy.config.core.v3.Metadata", &wire, Style::default()).unwrap_err();
    assert!(matches!(error, EncodeError::Malformed { .. }));
    expect![[r#"typed_filter_metadata["broken"]: malformed google.protobuf.Duration"#]]
        .assert_eq(&error.to_string());
    expect![[r#"unknown message type "no.Such""#]]
        .assert_eq(&to_value("no.Such", &[], Style::default()).unwrap_err().to_string());
}

#[test]
fn yaml_quotes_what_could_be_misread() {
    let value = serde_json::json!({
        "words": ["yes", "0x1F", "1_000", "12:30", "2001-01-01", "null", "~", "", "a: b", "a:", "# c", "-", "*", "x y",
            "a\nb", "http://x/y", "10.0.0.1", "v1.2", "1.5", ".5", "tRue", "<<", "é"],
        "nested": [[1, [2]], {"a": [{"b": {}}]}],
        "on": true,
    });
    let text = yaml_text(&value);
    expect![[r##"
        words:
        - "yes"
        - "0x1F"
        - "1_000"
        - "12:30"
        - "2001-01-01"
        - "null"
        - "~"
        - ""
        - "a: b"
        - "a:"
        - "# c"
        - "-"
        - "*"
        - "x y"
        - "a\nb"
        - http://x/y
        - 10.0.0.1
        - v1.2
        - "1.5"
        - ".5"
        - tRue
        - "<<"
        - "é"
        nested:
        - - 1
          - - 2
        - a:
          - b: {}
        "on": true
    "##]]
    .assert_eq(&text);
    for dialect in [Dialect::Envoy, Dialect::Kubernetes] {
        assert_eq!(parse(&text, dialect).unwrap()[0].to_json(), value);
    }
    assert_eq!(parse(&json_text(&value), Dialect::Json).unwrap()[0].to_json(), value);
}

#[test]
fn times() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (-62_135_596_800, "0001-01-01T00:00:00Z"),
    ] {
        assert_eq!(text::timestamp(seconds, 0), expected);
    }
}

#[test]
fn text_of_several_lines_in_blocks() {
    let value = serde_json::json!({
        "a": { "one": "x\ny", "two": "x\n  y\n", "three": "x\n\ny\n\n\n" },
        "spaces first": " x\ny", "line": "x\n", "bell": "x\n\u{7}y", "list": ["x\ny"], "colon": "a: b # c\n- d",
    });
    let text = super::yaml_blocks(&value);
    expect_test::expect![[r#"
        a:
          one: |-
            x
            y
          two: |
            x
              y
          three: |+
            x

            y


        "spaces first": " x\ny"
        line: "x\n"
        bell: "x\n\u0007y"
        list:
        - "x\ny"
        colon: |-
          a: b # c
          - d
    "#]]
    .assert_eq(&text);
    let read = parse(&text, Dialect::Kubernetes).expect("it is YAML");
    assert_eq!(read[0].to_json(), value);
}
