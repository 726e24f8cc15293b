//! Tests of the codec as a whole against prost-reflect, which implements the same mapping on its
//! own, and against random input.

use std::sync::LazyLock;

use expect_test::expect;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof};
use proptest::proptest;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage,
    SerializeOptions, Value,
};

use crate::decode::unchecked;
use crate::encode::{Style, json_text, to_value, yaml_text};
use crate::proto::envoy::config::bootstrap::v3::Bootstrap;
use crate::schema::Message;
use crate::validate::inspect;
use crate::yaml::{Dialect, from_node, parse};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    DescriptorPool::decode(bytes).expect("build.rs wrote it")
});

const TYPES: [&str; 8] = [
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.core.v3.Metadata",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.config.trace.v3.OpenTelemetryConfig",
    "google.protobuf.Any",
    "google.protobuf.Value",
];

/// Makes messages of any type out of random bytes; when these end, all choices are 0.
struct Maker<'b>(std::slice::Iter<'b, u8>);

impl Maker<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    fn word(&mut self) -> u64 {
        let edges =
            [0, 1, 127, 128, u64::from(u32::MAX), u64::MAX, i64::MAX as u64, i32::MAX as u64, 1 << 53];
        match self.below(2) {
            0 => edges[self.below(edges.len())],
            _ => (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte())),
        }
    }

    fn text(&mut self) -> String {
        let parts = [
            "a", "yes", "5", " ", "\"", "\n", "é", "\u{2028}", ":", "#", "{", "~", "0x1", "\u{1}", "<", "\\",
        ];
        (0..self.below(4)).map(|_| parts[self.below(parts.len())]).collect()
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let set = |message: &mut DynamicMessage, name: &str, value| message.set_field_by_name(name, value);
        match descriptor.full_name() {
            "google.protobuf.Any" => {
                // Not empty: prost-reflect has no JSON for that.
                let deep = depth < 5 && self.below(4) > 0;
                let name = if deep { TYPES[self.below(TYPES.len())] } else { "google.protobuf.Duration" };
                let inner = POOL.get_message_by_name(name).unwrap();
                let content = self.message(&inner, depth + 1).encode_to_vec();
                let url = format!("type.googleapis.com/{}", inner.full_name());
                set(&mut message, "type_url", Value::String(url));
                set(&mut message, "value", Value::Bytes(content.into()));
            }
            "google.protobuf.Duration" => {
                let (seconds, nanos) = (self.below(1 << 7) as i64, [0, 5, 5_000, 120_000_000][self.below(4)]);
                let sign = if self.below(3) == 0 { -1 } else { 1 };
                set(&mut message, "seconds", Value::I64(seconds * sign));
                set(&mut message, "nanos", Value::I32(nanos * sign as i32));
            }
            "google.protobuf.Timestamp" => {
                set(&mut message, "seconds", Value::I64((self.word() % 253_402_300_799) as i64 - 1_000_000));
                set(&mut message, "nanos", Value::I32([0, 7, 999_999_999][self.below(3)]));
            }
            "google.protobuf.FieldMask" => {
                let path = ["a", "foo_bar", "a.b_c"][self.below(3)].to_owned();
                set(&mut message, "paths", Value::List(vec![Value::String(path)]));
            }
            // prost-reflect writes an infinity in a wrapper as null.
            "google.protobuf.DoubleValue" => {
                set(&mut message, "value", Value::F64([0.0, 0.1, -1e30][self.below(3)]));
            }
            "google.protobuf.FloatValue" => {
                set(&mut message, "value", Value::F32([0.0, 0.1, -1e30][self.below(3)]));
            }
            "google.protobuf.Value" => {
                let fields: Vec<FieldDescriptor> = descriptor.fields().collect();
                // Without a kind it is no value; beyond some depth only scalars.
                let field = &fields[self.below(if depth < 5 { 6 } else { 4 })];
                let value = match field.kind() {
                    Kind::Double => {
                        Value::F64([0.0, -1.0, 2.5, 1e300, 1e-7, 9_007_199_254_740_993.0][self.below(6)])
                    }
                    kind => self.value(&kind, depth),
                };
                message.set_field(field, value);
            }
            _ => {
                let fields: Vec<FieldDescriptor> = descriptor.fields().collect();
                for _ in 0..self.below(6) {
                    if fields.is_empty() {
                        break;
                    }
                    let field = &fields[self.below(fields.len())];
                    if depth < 5 || !matches!(field.kind(), Kind::Message(_)) {
                        let value = self.field(field, depth);
                        message.set_field(field, value);
                    }
                }
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
            let entries = (0..self.below(3)).map(|_| {
                let key = match self.value(&entry.map_entry_key_field().kind(), depth) {
                    Value::Bool(key) => MapKey::Bool(key),
                    Value::U32(key) => MapKey::U32(key),
                    Value::U64(key) => MapKey::U64(key),
                    Value::I32(key) => MapKey::I32(key),
                    Value::I64(key) => MapKey::I64(key),
                    Value::String(key) => MapKey::String(key),
                    other => panic!("{other:?} is no key"),
                };
                (key, self.value(&entry.map_entry_value_field().kind(), depth))
            });
            return Value::Map(entries.collect());
        }
        if field.is_list() {
            return Value::List((0..self.below(3)).map(|_| self.value(&field.kind(), depth)).collect());
        }
        self.value(&field.kind(), depth)
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Value {
        let floats = [0.0, 1.0, -2.5, 0.1, f64::INFINITY, f64::NEG_INFINITY, 1e-30, 3e38, 16_777_217.0];
        match kind {
            Kind::Double => Value::F64(floats[self.below(floats.len())]),
            Kind::Float => Value::F32(floats[self.below(floats.len())] as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.word() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.word() as i64),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.word() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.word()),
            Kind::Bool => Value::Bool(self.byte() & 1 == 1),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.text().into_bytes().into()),
            Kind::Enum(descriptor) => {
                let values: Vec<i32> = descriptor.values().map(|value| value.number()).collect();
                match self.below(8) {
                    0 if descriptor.full_name() != "google.protobuf.NullValue" => {
                        Value::EnumNumber(self.word() as i32)
                    }
                    _ => Value::EnumNumber(values[self.below(values.len())]),
                }
            }
            Kind::Message(descriptor) => Value::Message(self.message(descriptor, depth + 1)),
        }
    }
}

fn reflect_json(message: &DynamicMessage, proto_names: bool) -> String {
    let mut serializer = serde_json::Serializer::new(Vec::new());
    let options = SerializeOptions::new().use_proto_field_name(proto_names);
    message.serialize_with_options(&mut serializer, &options).unwrap();
    String::from_utf8(serializer.into_inner()).unwrap()
}

/// Compares by what is printed on failure, since prost-reflect's Debug may not end.
fn assert_same(found: &DynamicMessage, expected: &DynamicMessage, text: &str) {
    assert!(found == expected, "{text}\n{found}\n{expected}");
}

/// The message that text decodes to, by way of the codec's wire bytes.
fn decoded(descriptor: &MessageDescriptor, text: &str, dialect: Dialect) -> DynamicMessage {
    let documents = parse(text, dialect).unwrap();
    let null = parse("[null]", Dialect::Json).unwrap();
    let node = documents.first().unwrap_or(&null[0].items()[0]);
    let wire = unchecked(descriptor.full_name(), node).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    normal(descriptor, &wire)
}

/// A message with the messages inside `Any` in one order of fields.
fn normal(descriptor: &MessageDescriptor, wire: &[u8]) -> DynamicMessage {
    let mut message = DynamicMessage::decode(descriptor.clone(), wire).unwrap();
    normalize(&mut message);
    message
}

fn normalize(message: &mut DynamicMessage) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let url = message.get_field_by_name("type_url").unwrap().as_str().unwrap().to_owned();
        let wire = message.get_field_by_name("value").unwrap().as_bytes().unwrap().clone();
        if let Some(inner) = POOL.get_message_by_name(crate::any::type_name(&url)) {
            let inner = DynamicMessage::decode(inner, wire).unwrap();
            let options = SerializeOptions::new();
            let mut content = inner.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
            content.sort_all_objects();
            message.set_field_by_name("value", Value::Bytes(content.to_string().into_bytes().into()));
        }
        return;
    }
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => normalize(inner),
            Value::List(items) => items.iter_mut().filter_map(Value::as_message_mut).for_each(normalize),
            Value::Map(entries) => entries.values_mut().filter_map(Value::as_message_mut).for_each(normalize),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Both directions agree with prost-reflect, and ours are inverse to each other.
    #[test]
    fn agrees_with_prost_reflect(which in 0..TYPES.len(), bytes in vec(any::<u8>(), 0..600)) {
        let descriptor = POOL.get_message_by_name(TYPES[which]).unwrap();
        let message = Maker(bytes.iter()).message(&descriptor, 0);
        let wire = message.encode_to_vec();
        let expected = normal(&descriptor, &wire);
        for proto_names in [true, false] {
            let text = reflect_json(&message, proto_names);
            assert_same(&decoded(&descriptor, &text, Dialect::Json), &expected, &text);
        }
        let value = to_value(TYPES[which], &wire, Style::default()).unwrap();
        let json = json_text(&value);
        // From the value, since serde_json reads some fractions of text imprecisely.
        let back = DynamicMessage::deserialize(descriptor.clone(), value.clone());
        let back = back.unwrap_or_else(|error| panic!("{error}\n{json}"));
        assert_same(&normal(&descriptor, &back.encode_to_vec()), &expected, &json);
        assert_same(&decoded(&descriptor, &json, Dialect::Json), &expected, &json);
        let yaml = yaml_text(&value);
        assert_same(&decoded(&descriptor, &yaml, Dialect::Kubernetes), &expected, &yaml);
    }

    /// Bytes from the network are judged, never a panic; and what passes can be shown.
    #[test]
    fn random_bytes(which in 0..TYPES.len(), bytes in vec(any::<u8>(), 0..200)) {
        let report = inspect(TYPES[which], &bytes);
        let shown = to_value(TYPES[which], &bytes, Style { redact: true, defaults: true, ..Style::default() });
        if report.violations.is_empty() {
            shown.unwrap();
        }
    }

    /// Bytes that began as a message and were damaged.
    #[test]
    fn damaged_bytes(which in 0..TYPES.len(), bytes in vec(any::<u8>(), 0..300), at in 0..2000_usize, with: u8) {
        let descriptor = POOL.get_message_by_name(TYPES[which]).unwrap();
        let mut wire = Maker(bytes.iter()).message(&descriptor, 0).encode_to_vec();
        if let Some(byte) = wire.get_mut(at) {
            *byte = with;
        }
        inspect(TYPES[which], &wire);
        let _ = to_value(TYPES[which], &wire, Style::default());
    }

    /// Text from a file gives nodes and errors, never a panic.
    #[test]
    fn random_yaml(text in yaml_like()) {
        for dialect in [Dialect::Envoy, Dialect::Kubernetes, Dialect::Json] {
            let Ok(documents) = parse(&text, dialect) else { continue };
            for node in &documents {
                let _ = crate::decode::decode::<Bootstrap>(node, "x");
                let _ = from_node::<k8s_openapi::api::core::v1::Pod>(node);
                let _ = from_node::<serde_json::Value>(node);
                node.to_json();
                node.locate(&text);
            }
        }
    }
}

/// Text of the tokens that YAML and Envoy's files are made of.
fn yaml_like() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        proptest::sample::select(vec![
            "a",
            "node",
            "id",
            "static_resources",
            "clusters",
            "name",
            "metadata",
            "@type",
            "spec",
            "containers",
            "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "connect_timeout",
            "1s",
            "-9",
            "1e3",
            "0x",
            "true",
            ": ",
            ":",
            "- ",
            "\n",
            "\n  ",
            "\n    ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"",
            "'",
            "|",
            ">",
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "! ",
            "!ignore ",
            "# ",
            "---\n",
            "...",
            "\t",
            "%YAML 1.2\n",
            "? ",
            "~",
            "é",
            "\u{feff}",
            "\0",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    vec(token, 0..60).prop_map(|tokens| tokens.concat())
}

/// The tables say of every message what the descriptors say.
#[test]
fn tables_are_the_descriptors() {
    let mut messages = 0;
    for descriptor in POOL.all_messages() {
        let message = Message::find(descriptor.full_name()).unwrap();
        assert_eq!(message.full_name(), descriptor.full_name());
        assert_eq!(message.file(), descriptor.parent_file().name());
        assert_eq!(message.is_map_entry(), descriptor.is_map_entry());
        assert_eq!(message.fields().count(), descriptor.fields().len());
        for field in descriptor.fields() {
            let found = message.field(field.number()).unwrap();
            assert_eq!(message.field_by_name(field.name()), Some(found));
            assert_eq!(message.field_by_name(field.json_name()), Some(found));
            assert_eq!(found.is_repeated(), field.is_list() || field.is_map());
            assert_eq!(found.is_packed(), field.is_packed());
            assert_eq!(found.has_presence(), field.supports_presence());
            let kind = match (found.kind(), field.kind()) {
                (crate::schema::Kind::Message(ours), Kind::Message(theirs)) => {
                    ours.full_name() == theirs.full_name()
                }
                (crate::schema::Kind::Enum(ours), Kind::Enum(theirs)) => {
                    ours.full_name() == theirs.full_name() && ours.values().count() == theirs.values().len()
                }
                (ours, theirs) => format!("{ours:?}").to_lowercase() == format!("{theirs:?}").to_lowercase(),
            };
            assert!(kind, "{}", field.full_name());
            let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
            let ours = found.oneof().map(|oneof| oneof.of(message).name());
            assert_eq!(ours, oneof.as_ref().map(|oneof| oneof.name()));
        }
        assert_eq!(message.field(0), None);
        assert_eq!(message.field(u32::MAX), None);
        messages += 1;
    }
    assert_eq!(Message::all().count(), messages);
    expect!["None"].assert_eq(&format!("{:?}", Message::find("envoy.Nothing")));
}
