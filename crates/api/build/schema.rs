//! Writes the schema tables: all messages and enums of the descriptor pool, flattened.
//!
//! `schema.words` and `schema.txt` are read in place by src/schema.rs; `schema_index.rs` says at
//! which word each table begins. The layout is in src/schema/layout.rs.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage, Value,
};

use crate::layout::{self, Op};

/// Writes the tables of all types in a pool into `out`.
pub(crate) fn write(pool: &DescriptorPool, out: &Path) {
    let mut messages: Vec<MessageDescriptor> = pool.all_messages().collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut enums: Vec<EnumDescriptor> = pool.all_enums().collect();
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let index = |names: Vec<String>| names.into_iter().enumerate().map(|(i, name)| (name, word(i))).collect();
    let mut writer = Writer {
        message_index: index(messages.iter().map(|m| m.full_name().to_owned()).collect()),
        enum_index: index(enums.iter().map(|e| e.full_name().to_owned()).collect()),
        deep: deep(&messages),
        extensions: Extensions::new(pool),
        ..Writer::default()
    };
    for message in &messages {
        writer.message(message);
    }
    for descriptor in &enums {
        writer.enumeration(descriptor);
    }
    writer.finish(out);
}

/// The options that Envoy's protos extend, by name.
#[derive(Default)]
struct Extensions<'p> {
    pool: Option<&'p DescriptorPool>,
}

impl<'p> Extensions<'p> {
    fn new(pool: &'p DescriptorPool) -> Extensions<'p> {
        Extensions { pool: Some(pool) }
    }

    /// The value of an extension, if it is set.
    fn find(&self, options: &DynamicMessage, name: &str) -> Option<Value> {
        let extension =
            self.pool?.get_extension_by_name(name).unwrap_or_else(|| panic!("{name}: no such option"));
        options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
    }

    fn is_true(&self, options: &DynamicMessage, name: &str) -> bool {
        self.find(options, name) == Some(Value::Bool(true))
    }
}

#[derive(Default)]
struct Writer<'p> {
    message_index: HashMap<String, u32>,
    enum_index: HashMap<String, u32>,
    deep: HashMap<String, bool>,
    extensions: Extensions<'p>,
    text: String,
    interned: HashMap<String, u32>,
    messages: Vec<u32>,
    fields: Vec<u32>,
    by_name: Vec<u32>,
    oneofs: Vec<u32>,
    enums: Vec<u32>,
    values: Vec<u32>,
    rules: Vec<u32>,
}

fn word(number: usize) -> u32 {
    u32::try_from(number).expect("the tables are small")
}

impl Writer<'_> {
    /// Where a text is, as (offset, length), each text being kept once.
    fn text(&mut self, text: &str) -> (u32, u32) {
        let offset = match self.interned.get(text) {
            Some(offset) => *offset,
            None => {
                let offset = word(self.text.len());
                self.text.push_str(text);
                self.interned.insert(text.to_owned(), offset);
                offset
            }
        };
        (offset, word(text.len()))
    }

    /// A reference to a name, in one word.
    fn name(&mut self, name: &str) -> u32 {
        let (offset, length) = self.text(name);
        assert!(length < 1 << 8 && offset < 1 << 24, "{name}: too long");
        offset << 8 | length
    }

    fn message(&mut self, message: &MessageDescriptor) {
        let options = message.options();
        let mut flags = 0;
        if message.is_map_entry() {
            flags |= layout::MAP_ENTRY;
        }
        let unchecked = ["validate.disabled", "validate.ignored"];
        if unchecked.iter().any(|name| self.extensions.is_true(&options, name)) {
            flags |= layout::UNCHECKED;
        }
        if self.deep[message.full_name()] {
            flags |= layout::DEEP;
        }
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        // A proto3 optional field lies in a oneof of its own, which is no oneof to anyone else.
        let oneofs: Vec<_> = message.oneofs().filter(|oneof| !oneof.is_synthetic()).collect();
        let row = [
            self.name(message.full_name()),
            self.name(message.parent_file().name()),
            word(self.fields.len() / layout::FIELD_WORDS),
            word(fields.len()),
            word(self.oneofs.len() / layout::ONEOF_WORDS),
            word(oneofs.len()),
            flags,
        ];
        self.messages.extend(row);
        let mut names: Vec<(String, u32)> = Vec::new();
        for field in &fields {
            names.push((field.name().to_owned(), word(self.fields.len() / layout::FIELD_WORDS)));
            let oneof = field
                .containing_oneof()
                .and_then(|oneof| oneofs.iter().position(|other| *other == oneof))
                .map_or(layout::NONE, word);
            self.field(field, oneof);
        }
        names.sort();
        self.by_name.extend(names.into_iter().map(|(_, index)| index));
        for oneof in oneofs {
            let required = self.extensions.is_true(&oneof.options(), "validate.required");
            let row = [self.name(oneof.name()), u32::from(required)];
            self.oneofs.extend(row);
        }
    }

    fn field(&mut self, field: &FieldDescriptor, oneof: u32) {
        let options = field.options();
        let (kind, type_index) = self.kind(&field.kind());
        let mut flags = kind;
        if field.cardinality() == Cardinality::Repeated {
            flags |= layout::REPEATED;
        }
        if field.is_packed() {
            flags |= layout::PACKED;
        }
        if field.is_map() {
            flags |= layout::MAP;
        }
        if field.supports_presence() {
            flags |= layout::PRESENCE;
        }
        if self.extensions.is_true(&options, "udpa.annotations.sensitive") {
            flags |= layout::SENSITIVE;
        }
        if field.field_descriptor_proto().options.as_ref().is_some_and(|options| options.deprecated()) {
            flags |= layout::DEPRECATED;
        }
        if self.extensions.is_true(&options, "envoy.annotations.disallowed_by_default") {
            flags |= layout::DISALLOWED;
        }
        let deprecated_at =
            match self.extensions.find(&options, "envoy.annotations.deprecated_at_minor_version") {
                Some(Value::String(version)) => self.name(&version),
                _ => 0,
            };
        let rules = match self.extensions.find(&options, "validate.rules") {
            Some(Value::Message(rules)) => self.rules(&rules),
            _ => layout::NONE,
        };
        let row = [
            self.name(field.name()),
            self.name(field.json_name()),
            field.number(),
            flags,
            type_index,
            oneof,
            deprecated_at,
            rules,
        ];
        self.fields.extend(row);
    }

    /// The number of `FieldDescriptorProto.Type` and the index of the message or enum.
    fn kind(&self, kind: &Kind) -> (u32, u32) {
        let number = match kind {
            Kind::Double => 1,
            Kind::Float => 2,
            Kind::Int64 => 3,
            Kind::Uint64 => 4,
            Kind::Int32 => 5,
            Kind::Fixed64 => 6,
            Kind::Fixed32 => 7,
            Kind::Bool => 8,
            Kind::String => 9,
            Kind::Message(_) => 11,
            Kind::Bytes => 12,
            Kind::Uint32 => 13,
            Kind::Enum(_) => 14,
            Kind::Sfixed32 => 15,
            Kind::Sfixed64 => 16,
            Kind::Sint32 => 17,
            Kind::Sint64 => 18,
        };
        let index = match kind {
            Kind::Message(message) => self.message_index[message.full_name()],
            Kind::Enum(descriptor) => self.enum_index[descriptor.full_name()],
            _ => layout::NONE,
        };
        (number, index)
    }

    fn enumeration(&mut self, descriptor: &EnumDescriptor) {
        let values: Vec<_> = descriptor.values().collect();
        let row = [
            self.name(descriptor.full_name()),
            word(self.values.len() / layout::VALUE_WORDS),
            word(values.len()),
        ];
        self.enums.extend(row);
        for value in values {
            let mut flags = 0;
            let proto = value.enum_value_descriptor_proto();
            if proto.options.as_ref().is_some_and(|options| options.deprecated()) {
                flags |= layout::DEPRECATED;
            }
            if self.extensions.is_true(&value.options(), "envoy.annotations.disallowed_by_default_enum") {
                flags |= layout::DISALLOWED;
            }
            let row = [self.name(value.name()), value.number().cast_unsigned(), flags];
            self.values.extend(row);
        }
    }

    /// Flattens a `validate.FieldRules`; returns where its first word is.
    fn rules(&mut self, rules: &DynamicMessage) -> u32 {
        let mut flat: Vec<(Op, Vec<u32>)> = Vec::new();
        for (section, value) in rules.fields() {
            let Value::Message(section_rules) = value else { panic!("{section:?}: not a message") };
            self.section(section.name(), section_rules, &mut flat);
        }
        let start = word(self.rules.len());
        self.rules.push(word(flat.len()));
        for (op, payload) in flat {
            self.rules.push(op as u32 | word(payload.len()) << 8);
            self.rules.extend(payload);
        }
        start
    }

    /// One of the messages in `validate.FieldRules`, as `StringRules`.
    fn section(&mut self, section: &str, rules: &DynamicMessage, flat: &mut Vec<(Op, Vec<u32>)>) {
        let texts = matches!(section, "string" | "bytes" | "any");
        // `strict` tells how to read `well_known_regex` and is true unless given.
        let strict = rules.get_field_by_name("strict").is_none_or(|strict| *strict == Value::Bool(true));
        for (field, value) in rules.fields() {
            if *value == Value::Bool(false) && section != "bool" {
                continue;
            }
            let op = match field.name() {
                "strict" => continue,
                "required" => Op::Required,
                "skip" => Op::Skip,
                "ignore_empty" => Op::IgnoreEmpty,
                "const" if texts => Op::TextConst,
                "in" if texts => Op::TextIn,
                "not_in" if texts => Op::TextNotIn,
                "const" => Op::Const,
                "lt" => Op::Lt,
                "lte" => Op::Lte,
                "gt" => Op::Gt,
                "gte" => Op::Gte,
                "in" => Op::In,
                "not_in" => Op::NotIn,
                "defined_only" => Op::DefinedOnly,
                // Bytes count bytes whatever the rule is called.
                "len" if section == "bytes" => Op::LenBytes,
                "min_len" if section == "bytes" => Op::MinBytes,
                "max_len" if section == "bytes" => Op::MaxBytes,
                "len" => Op::Len,
                "min_len" => Op::MinLen,
                "max_len" => Op::MaxLen,
                "len_bytes" => Op::LenBytes,
                "min_bytes" => Op::MinBytes,
                "max_bytes" => Op::MaxBytes,
                "pattern" => Op::Pattern,
                "prefix" => Op::Prefix,
                "suffix" => Op::Suffix,
                "contains" => Op::Contains,
                "not_contains" => Op::NotContains,
                "well_known_regex" => match (value, strict) {
                    (Value::EnumNumber(1), true) => Op::HeaderName,
                    (Value::EnumNumber(1), false) => Op::LooseHeaderName,
                    (Value::EnumNumber(2), true) => Op::HeaderValue,
                    (Value::EnumNumber(2), false) => Op::LooseHeaderValue,
                    other => panic!("well_known_regex: {other:?}"),
                },
                "min_items" | "min_pairs" => Op::MinItems,
                "max_items" | "max_pairs" => Op::MaxItems,
                "unique" => Op::Unique,
                "items" => Op::Items,
                "keys" => Op::Keys,
                "values" => Op::Values,
                other => panic!("validate.rules: {section}.{other} is not supported"),
            };
            let marker =
                matches!(value, Value::Bool(_)) && op != Op::Const || field.name() == "well_known_regex";
            let payload = if marker { Vec::new() } else { self.payload(value) };
            flat.push((op, payload));
        }
    }

    fn payload(&mut self, value: &Value) -> Vec<u32> {
        let number = |bits: u64| vec![(bits & 0xffff_ffff) as u32, (bits >> 32) as u32];
        match value {
            Value::Bool(value) => number(u64::from(*value)),
            Value::I32(value) | Value::EnumNumber(value) => number(i64::from(*value).cast_unsigned()),
            Value::I64(value) => number(value.cast_unsigned()),
            Value::U32(value) => number(u64::from(*value)),
            Value::U64(value) => number(*value),
            Value::F32(value) => number(f64::from(*value).to_bits()),
            Value::F64(value) => number(value.to_bits()),
            Value::String(value) => {
                let (offset, length) = self.text(value);
                vec![offset, length]
            }
            Value::Bytes(value) => {
                let (offset, length) =
                    self.text(std::str::from_utf8(value).expect("rules on bytes are ASCII"));
                vec![offset, length]
            }
            Value::List(values) => values.iter().flat_map(|value| self.payload(value)).collect(),
            Value::Message(message) if message.descriptor().full_name() == "validate.FieldRules" => {
                vec![self.rules(message)]
            }
            // Durations and timestamps, in nanoseconds.
            Value::Message(message) => {
                let part = |name| match message.get_field_by_name(name).as_deref() {
                    Some(Value::I64(value)) => *value,
                    Some(Value::I32(value)) => i64::from(*value),
                    _ => panic!("{}: not a time", message.descriptor().full_name()),
                };
                number((part("seconds") * 1_000_000_000 + part("nanos")).cast_unsigned())
            }
            Value::Map(_) => panic!("validate.rules has no maps"),
        }
    }

    fn finish(self, out: &Path) {
        let tables: [(&str, &[u32], usize); 7] = [
            ("MESSAGES", &self.messages, layout::MESSAGE_WORDS),
            ("FIELDS", &self.fields, layout::FIELD_WORDS),
            ("FIELDS_BY_NAME", &self.by_name, 1),
            ("ONEOFS", &self.oneofs, layout::ONEOF_WORDS),
            ("ENUMS", &self.enums, layout::ENUM_WORDS),
            ("VALUES", &self.values, layout::VALUE_WORDS),
            ("RULES", &self.rules, 1),
        ];
        let mut words: Vec<u32> = Vec::new();
        let mut index = String::new();
        for (name, table, width) in tables {
            writeln!(
                index,
                "const {name}: Table = Table {{ start: {}, rows: {} }};",
                words.len(),
                table.len() / width
            )
            .expect("a String takes all");
            words.extend(table);
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        fs::write(out.join("schema.words"), bytes).expect("OUT_DIR is writable");
        fs::write(out.join("schema.txt"), self.text).expect("OUT_DIR is writable");
        fs::write(out.join("schema_index.rs"), index).expect("OUT_DIR is writable");
    }
}

/// For each message: whether a check can find anything in it: a rule, a deprecated field or enum
/// value, or an `Any`, in itself or in what it may contain.
fn deep(messages: &[MessageDescriptor]) -> HashMap<String, bool> {
    let mut deep: BTreeMap<String, bool> = messages
        .iter()
        .map(|message| {
            (message.full_name().to_owned(), message.full_name() == "google.protobuf.Any" || has_own(message))
        })
        .collect();
    loop {
        let mut changed = false;
        for message in messages.iter() {
            let reached = message.fields().any(|field| match field.kind() {
                Kind::Message(inner) => deep[inner.full_name()],
                _ => false,
            });
            let own = deep.get_mut(message.full_name()).expect("all messages are in");
            changed |= reached && !*own;
            *own |= reached;
        }
        if !changed {
            return deep.into_iter().collect();
        }
    }
}

fn has_own(message: &MessageDescriptor) -> bool {
    let set =
        |options: &DynamicMessage| options.fields().next().is_some() || options.extensions().next().is_some();
    message.fields().any(|field| {
        set(&field.options())
            || matches!(field.kind(), Kind::Enum(kind) if kind.values().any(|value| set(&value.options())))
    }) || message.oneofs().any(|oneof| set(&oneof.options()))
}
