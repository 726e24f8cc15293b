use std::fmt::Write;

use expect_test::{Expect, expect};
use serde::Deserialize;

use super::{Dialect, Kind, Node, Value, from_message_node, from_node, parse};

/// The tree of a text, one node a line.
fn tree(text: &str, dialect: Dialect) -> String {
    fn write(out: &mut String, node: &Node<'_>, indent: usize) {
        let pad = " ".repeat(indent);
        match &node.value {
            Value::Scalar(scalar) => {
                let quotes = if scalar.plain { "" } else { " quoted" };
                writeln!(out, " {:?} {:?}{quotes} @{}", scalar.kind, scalar.text, place(node)).unwrap();
            }
            Value::Sequence(items) => {
                writeln!(out, " list @{}", place(node)).unwrap();
                for item in items {
                    write!(out, "{pad}-").unwrap();
                    write(out, item, indent + 2);
                }
            }
            Value::Mapping(entries) => {
                writeln!(out, " mapping @{}", place(node)).unwrap();
                for entry in entries {
                    let position = entry.position;
                    write!(out, "{pad}{} @{}:{}:", entry.key, position.line, position.column).unwrap();
                    write(out, &entry.value, indent + 2);
                }
            }
        }
    }
    fn place(node: &Node<'_>) -> String {
        format!("{}:{}", node.position.line, node.position.column)
    }
    match parse(text, dialect) {
        Ok(documents) => {
            let mut out = String::new();
            for document in &documents {
                out.push_str("---");
                write(&mut out, document, 0);
            }
            out
        }
        Err(error) => format!("error: {error}\n"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
fn check(text: &str, dialect: Dialect, expected: Expect) {
    expected.assert_eq(&tree(text, dialect));
}

#[test]
fn structure_and_places() {
    let text = "# comment\na: 1\nb:\n  - x\n  - {c: 'd e', \"f\": [g]}\n  -\nh: |\n  two\n  lines\n---\n---\n\"j\": k\n";
    check(
        text,
        Dialect::Envoy,
        expect![[r#"
        --- mapping @2:1
        a @2:1: Integer "1" @2:4
        b @3:1: list @4:3
          - String "x" @4:5
          - mapping @5:5
            c @5:6: String "d e" quoted @5:9
            f @5:16: list @5:21
              - String "g" @5:22
          - Null "~" @6:4
        h @7:1: String "two\nlines\n" quoted @8:3
        --- mapping @12:1
        j @12:1: String "k" @12:6
    "#]],
    );
}

#[test]
fn anchors_and_merges() {
    let text = "base: &b {x: 1, y: 2}\nuse: *b\nmerged:\n  <<: *b\n  y: 3\nlist: &l [1]\nagain: [*l, *l]\n";
    check(
        text,
        Dialect::Kubernetes,
        expect![[r#"
        --- mapping @1:1
        base @1:1: mapping @1:10
          x @1:11: Integer "1" @1:14
          y @1:17: Integer "2" @1:20
        use @2:1: mapping @2:6
          x @1:11: Integer "1" @1:14
          y @1:17: Integer "2" @1:20
        merged @3:1: mapping @4:3
          y @5:3: Integer "3" @5:6
          x @4:3: Integer "1" @1:14
        list @6:1: list @6:10
          - Integer "1" @6:11
        again @7:1: list @7:8
          - list @7:9
            - Integer "1" @6:11
          - list @7:13
            - Integer "1" @6:11
    "#]],
    );
    check(
        "a: &a {x: 1}\nb: {<<: *a}\n",
        Dialect::Envoy,
        expect![[r#"
        --- mapping @1:1
        a @1:1: mapping @1:7
          x @1:8: Integer "1" @1:11
        b @2:1: mapping @2:4
          << @2:5: mapping @2:9
            x @1:8: Integer "1" @1:11
    "#]],
    );
    check(
        "!ignore a: &a 5\nb: *a\nb: again\n",
        Dialect::Envoy,
        expect![[r#"
        --- mapping @1:1
        b @2:1: Integer "5" @2:4
        b @3:1: String "again" @3:4
    "#]],
    );
}

#[test]
fn faults() {
    for (text, expected) in [
        (
            "a: [1",
            expect![[r#"
            error: 1:4: unclosed bracket '['
        "#]],
        ),
        (
            "a: b: c",
            expect![[r#"
            error: 1:5: mapping values are not allowed in this context
        "#]],
        ),
        (
            "? [1]\n: 2",
            expect![[r#"
            error: 1:3: a key must be text, not a list or mapping
        "#]],
        ),
        (
            "a: *nowhere",
            expect![[r#"
            error: 1:4: while parsing node, found unknown anchor
        "#]],
        ),
        (
            "a: &a [*a]",
            expect![[r#"
            error: 1:8: an alias cannot refer to a collection that contains it
        "#]],
        ),
        (
            "\tx: 1",
            expect![[r#"
            --- mapping @1:2
            x @1:2: Integer "1" @1:5
        "#]],
        ),
    ] {
        check(text, Dialect::Envoy, expected);
    }
    check(
        "{\"a\": yes}",
        Dialect::Json,
        expect![[r#"
        error: 1:7: not JSON: text must be in double quotes
    "#]],
    );
    check(
        &"[".repeat(101),
        Dialect::Envoy,
        expect![[r#"
        error: 1:101: unclosed bracket '['
    "#]],
    );
    let bomb: String = (0..30).fold("a0: &a0 [x]\n".to_owned(), |mut text, level| {
        writeln!(text, "a{0}: &a{0} [*a{level}, *a{level}, *a{level}]", level + 1).unwrap();
        text
    });
    check(
        &bomb,
        Dialect::Envoy,
        expect![[r#"
        error: 12:12: aliases expand to too many nodes
    "#]],
    );
    let deep: String = (0..60).fold("a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n".to_owned(), |mut text, level| {
        writeln!(text, "a{0}: &a{0} [[*a{level}]]", level + 1).unwrap();
        text
    });
    check(
        &deep,
        Dialect::Envoy,
        expect![[r#"
        error: 46:13: nested deeper than 100 levels
    "#]],
    );
}

/// The meaning of plain scalars in the three dialects; what Envoy does was seen with Envoy 1.40.
#[test]
fn scalars() {
    let words = [
        "yes",
        "y",
        "On",
        "NO",
        "true",
        "tRue",
        "null",
        "~",
        "nUll",
        "Null",
        "0777",
        "0o17",
        "08",
        "0x1F",
        "-0x10",
        "0b11",
        "1_000",
        "+5",
        "-0",
        "5 6",
        "1.5",
        "1e3",
        "1e",
        ".5",
        ".inf",
        "-.INF",
        ".NaN",
        "12345678901",
        "2147483648",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551616",
        "2001-01-01",
        "0x",
        "+",
        "12:30",
        "1.2.3",
        "x",
    ];
    let mut table = String::new();
    for word in words {
        write!(table, "{word:<20}").unwrap();
        for dialect in [Dialect::Envoy, Dialect::Kubernetes, Dialect::Json] {
            let meaning = match parse(&format!("[{word}]"), dialect) {
                Ok(documents) => match &documents[0].items()[0].value {
                    Value::Scalar(scalar) => match scalar.kind {
                        Kind::Integer => format!("integer {}", scalar.integer().unwrap()),
                        Kind::Float => format!("float {}", scalar.float().unwrap()),
                        Kind::String => format!("text {}", scalar.text),
                        Kind::Bool(value) => value.to_string(),
                        Kind::Null => "null".to_owned(),
                    },
                    other => format!("{other:?}"),
                },
                Err(_) => "error".to_owned(),
            };
            write!(table, " | {meaning:<28}").unwrap();
        }
        table.truncate(table.trim_end().len());
        table.push('\n');
    }
    expect![[r#"
        yes                  | true                         | true                         | error
        y                    | true                         | true                         | error
        On                   | true                         | true                         | error
        NO                   | false                        | false                        | error
        true                 | true                         | true                         | true
        tRue                 | text tRue                    | text tRue                    | error
        null                 | null                         | null                         | null
        ~                    | null                         | null                         | error
        nUll                 | text nUll                    | text nUll                    | error
        Null                 | null                         | null                         | error
        0777                 | integer 511                  | integer 511                  | error
        0o17                 | text 0o17                    | integer 15                   | error
        08                   | text 08                      | float 8                      | error
        0x1F                 | integer 31                   | integer 31                   | error
        -0x10                | integer -16                  | integer -16                  | error
        0b11                 | text 0b11                    | integer 3                    | error
        1_000                | text 1_000                   | integer 1000                 | error
        +5                   | integer 5                    | integer 5                    | error
        -0                   | integer 0                    | integer 0                    | integer 0
        5 6                  | text 5 6                     | text 5 6                     | error
        1.5                  | text 1.5                     | float 1.5                    | float 1.5
        1e3                  | text 1e3                     | float 1000                   | float 1000
        1e                   | text 1e                      | text 1e                      | error
        .5                   | text .5                      | float 0.5                    | error
        .inf                 | text .inf                    | float inf                    | error
        -.INF                | text -.INF                   | float -inf                   | error
        .NaN                 | text .NaN                    | float NaN                    | error
        12345678901          | text 12345678901             | integer 12345678901          | integer 12345678901
        2147483648           | text 2147483648              | integer 2147483648           | integer 2147483648
        9223372036854775807  | text 9223372036854775807     | integer 9223372036854775807  | integer 9223372036854775807
        9223372036854775808  | text 9223372036854775808     | integer 9223372036854775808  | integer 9223372036854775808
        18446744073709551616 | text 18446744073709551616    | float 18446744073709552000   | integer 18446744073709551616
        2001-01-01           | text 2001-01-01              | text 2001-01-01              | error
        0x                   | text 0x                      | text 0x                      | error
        +                    | text +                       | text +                       | error
        12:30                | text 12:30                   | text 12:30                   | error
        1.2.3                | text 1.2.3                   | text 1.2.3                   | error
        x                    | text x                       | text x                       | error
    "#]].assert_eq(&table);
    check(
        "[!!str 5, !!int \"5\", ! 7]",
        Dialect::Kubernetes,
        expect![[r#"
        --- list @1:1
        - String "5" @1:8
        - Integer "5" @1:17
        - String "7" @1:24
    "#]],
    );
    check(
        "[!!str 5, !!int \"5\", ! 7]",
        Dialect::Envoy,
        expect![[r#"
        --- list @1:1
        - Integer "5" @1:8
        - String "5" quoted @1:17
        - String "7" @1:24
    "#]],
    );
}

#[test]
fn locating() {
    let text = "spec:\n  http:\n  - match:\n    - uri: x\n  labels: {\"a.b/c\": 1}\n  virtualHosts: []\n  one: {x: 1}\n";
    let documents = parse(text, Dialect::Kubernetes).unwrap();
    let mut found = String::new();
    for path in [
        "spec.http[0].match[0].uri",
        "spec.http[0].match[0]",
        "spec.http[0].match[1].uri",
        "spec.labels[\"a.b/c\"]",
        "spec.virtual_hosts",
        "spec.one[0].x",
        "nothing.here",
        "",
        "][.\"",
    ] {
        let place = documents[0].locate(path).map(|at| format!("{}:{}", at.line, at.column));
        let nearest = documents[0].locate_nearest(path);
        writeln!(found, "{path:?} {place:?} {}:{}", nearest.line, nearest.column).unwrap();
    }
    expect![[r#"
        "spec.http[0].match[0].uri" Some("4:7") 4:7
        "spec.http[0].match[0]" Some("4:7") 4:7
        "spec.http[0].match[1].uri" None 3:5
        "spec.labels[\"a.b/c\"]" Some("5:12") 5:12
        "spec.virtual_hosts" Some("6:3") 6:3
        "spec.one[0].x" Some("7:9") 7:9
        "nothing.here" None 1:1
        "" Some("1:1") 1:1
        "][.\"" None 1:1
    "#]]
    .assert_eq(&found);
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "printed")]
struct Rule {
    name: String,
    #[serde(default)]
    port_number: Option<u16>,
    #[serde(default)]
    weights: Vec<i32>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    #[default]
    Simple,
    MutualTls,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "printed")]
enum Target {
    Host(String),
    Subset { name: String },
}

#[test]
fn typed() {
    let read = |text: &str| match from_node::<Vec<Rule>>(&parse(text, Dialect::Kubernetes).unwrap()[0]) {
        Ok((rules, unknown)) => {
            let mut out = format!("{rules:?}\n");
            for field in unknown {
                writeln!(out, "{}", field.into_error()).unwrap();
            }
            out
        }
        Err(error) => format!("{error}\n"),
    };
    for (text, expected) in [
        (
            "- {name: a, portNumber: 80, weights: [1, -2], mode: MUTUAL_TLS}",
            expect![[r#"
            [Rule { name: "a", port_number: Some(80), weights: [1, -2], mode: MutualTls, target: None, labels: {} }]
        "#]],
        ),
        (
            "- {name: a, target: {host: x}, labels: {a/b: c}}\n- {name: b, target: {subset: {name: v}}}",
            expect![[r#"
            [Rule { name: "a", port_number: None, weights: [], mode: Simple, target: Some(Host("x")), labels: {"a/b": "c"} }, Rule { name: "b", port_number: None, weights: [], mode: Simple, target: Some(Subset { name: "v" }), labels: {} }]
        "#]],
        ),
        (
            "- name: a\n  portNumbr: 80\n  target: {subset: {name: v, nme: w}}",
            expect![[r#"
                [Rule { name: "a", port_number: None, weights: [], mode: Simple, target: Some(Subset { name: "v" }), labels: {} }]
                2:3: [0].portNumbr: unknown field, did you mean 'portNumber'?
                3:30: [0].target.subset.nme: unknown field, did you mean 'name'?
            "#]],
        ),
        (
            "- {name: a, mode: null, weights: ~}",
            expect![[r#"
            [Rule { name: "a", port_number: None, weights: [], mode: Simple, target: None, labels: {} }]
        "#]],
        ),
        (
            "- {name: 5}",
            expect![[r#"
            1:10: [0].name: invalid type: integer `5`, expected a string
        "#]],
        ),
        (
            "- {portNumber: 80}",
            expect![[r#"
            1:3: [0]: missing field 'name'
        "#]],
        ),
        (
            "- name: a\n  portNumber: 70000",
            expect![[r#"
            2:15: [0].portNumber: invalid value: integer `70000`, expected u16
        "#]],
        ),
        (
            "- name: a\n  weights: [1, x]",
            expect![[r#"
            2:16: [0].weights[1]: invalid type: string "x", expected i32
        "#]],
        ),
        (
            "- name: a\n  weights: 5",
            expect![[r#"
            2:12: [0].weights: invalid type: integer `5`, expected a sequence
        "#]],
        ),
        (
            "- name: a\n  name: b",
            expect![[r#"
            2:3: [0].name: duplicate field
        "#]],
        ),
        (
            "- name: a\n  mode: MUTUAL_TLSS",
            expect![[r#"
            2:9: [0].mode: unknown value "MUTUAL_TLSS", expected SIMPLE, MUTUAL_TLS, did you mean 'MUTUAL_TLS'?
        "#]],
        ),
        (
            "- name: a\n  target: {hots: x}",
            expect![[r#"
            2:11: [0].target: unknown value "hots", expected host, subset, did you mean 'host'?
        "#]],
        ),
        (
            "- name: a\n  target: {host: x, subset: {name: y}}",
            expect![[r#"
            2:11: [0].target: expected exactly one field
        "#]],
        ),
        (
            "- name: a\n  labels: {a: yes}",
            expect![[r#"
            2:15: [0].labels.a: invalid type: boolean `true`, expected a string
        "#]],
        ),
        (
            "name: a",
            expect![[r#"
            1:1: invalid type: map, expected a sequence
        "#]],
        ),
    ] {
        expected.assert_eq(&read(text));
    }
}

#[test]
fn kubernetes_types() {
    use k8s_openapi::api::core::v1::{Pod, Service};
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: a, creationTimestamp: \"2024-05-01T10:00:00Z\", labels: {app: \"yes\"}}
spec:
  containers:
  - name: c
    resources: {limits: {cpu: 2, memory: 1Gi}}
    livenessProbe: {httpGet: {port: http, path: /}, periodSecond: 5}
    readinessProbe: {httpGet: {port: 8080}}
    env: [{name: A, value: \"5\"}]
";
    let documents = parse(text, Dialect::Kubernetes).unwrap();
    let (pod, unknown) = from_node::<Pod>(&documents[0]).unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    expect![[r#"
        (
            Some(
                Time(
                    2024-05-01T10:00:00Z,
                ),
            ),
            Some(
                {
                    "cpu": Quantity(
                        "2",
                    ),
                    "memory": Quantity(
                        "1Gi",
                    ),
                },
            ),
            String(
                "http",
            ),
            Int(
                8080,
            ),
        )
    "#]]
    .assert_debug_eq(&(
        &pod.metadata.creation_timestamp,
        &container.resources.as_ref().unwrap().limits,
        &container.liveness_probe.as_ref().unwrap().http_get.as_ref().unwrap().port,
        &container.readiness_probe.as_ref().unwrap().http_get.as_ref().unwrap().port,
    ));
    expect![[r#"
        [
            Unknown {
                path: "spec.containers[0].livenessProbe.periodSecond",
                position: Position {
                    line: 9,
                    column: 53,
                },
                suggestion: Some(
                    "periodSeconds",
                ),
            },
        ]
    "#]]
    .assert_debug_eq(&unknown);

    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: eighty\n";
    let error = from_node::<Service>(&parse(text, Dialect::Kubernetes).unwrap()[0]).unwrap_err();
    expect![[r#"6:11: spec.ports[0].port: invalid type: string "eighty", expected i32"#]]
        .assert_eq(&error.to_string());
    let text = "apiVersion: v1\nkind: Pod\nspec: {}\n";
    let error = from_node::<Service>(&parse(text, Dialect::Kubernetes).unwrap()[0]).unwrap_err();
    expect![[r#"1:1: invalid value: string "Pod", expected Service"#]].assert_eq(&error.to_string());
}

#[test]
fn json_values() {
    let text = "{a: 1, b: [1.5, -3, yes, null, \"x\"], c: 1e400, d: .nan, a: 18446744073709551615}";
    let json = parse(text, Dialect::Kubernetes).unwrap()[0].to_json();
    expect![[r#"{"a":18446744073709551615,"b":[1.5,-3,true,null,"x"],"c":"1e400","d":".nan"}"#]]
        .assert_eq(&json.to_string());
}

#[test]
fn numbers_as_text() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "shown by Debug")]
    struct Provider {
        port: u32,
        share: Option<f64>,
        least: Option<i64>,
    }
    let text = "{port: '9000', share: '0.5', least: '-3'}";
    let documents = parse(text, Dialect::Kubernetes).unwrap();
    let (provider, _) = from_message_node::<Provider>(&documents[0]).unwrap();
    assert_eq!((provider.port, provider.share, provider.least), (9000, Some(0.5), Some(-3)));
    // Objects of Kubernetes have a schema, which forbids it.
    assert!(from_node::<Provider>(&documents[0]).is_err());
    for wrong in ["{port: '-1'}", "{port: '9000x'}", "{port: ''}", "{port: '4294967296'}"] {
        let documents = parse(wrong, Dialect::Kubernetes).unwrap();
        assert!(from_message_node::<Provider>(&documents[0]).is_err(), "{wrong}");
    }
}
