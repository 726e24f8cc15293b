//! Nodes to Rust types by serde, for Kubernetes and Istio objects.
//!
//! Differs from a usual deserializer in what it tells: errors have the field's path and place,
//! and fields that a struct does not have are collected. To know a struct's fields it relies on
//! the list that `deserialize_struct` is given, so `#[serde(flatten)]` hides unknown fields.

use std::cell::RefCell;
use std::fmt::{self, Write};

use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::{Entry, Kind, Node, Position, Scalar, Unknown, Value};
use crate::Error;
use crate::error::nearest;

/// Reads a serde type from a node. Fields that the type does not know are collected, not errors.
/// A field that is null counts as absent, as Kubernetes has it.
///
/// # Errors
/// The first fault, with path (`spec.http[0].match[1].uri`) and place: wrong types, missing or
/// duplicate fields, whatever the type's own `Deserialize` refuses.
pub fn from_node<T: DeserializeOwned>(node: &Node<'_>) -> Result<(T, Vec<Unknown>), Error> {
    read(node, false)
}

/// As [`from_node`], for types that are protobuf messages and have come past no schema: numbers may be written as text
/// there (`port: "9000"`), which protobuf's JSON allows.
///
/// # Errors
/// As of [`from_node`].
pub fn from_message_node<T: DeserializeOwned>(node: &Node<'_>) -> Result<(T, Vec<Unknown>), Error> {
    read(node, true)
}

fn read<T: DeserializeOwned>(node: &Node<'_>, numerals: bool) -> Result<(T, Vec<Unknown>), Error> {
    let unknown = RefCell::new(Vec::new());
    let reader = Reader { node, trail: &Trail::Root, unknown: &unknown, lenient: false, numerals };
    let value = reader.read(|reader| T::deserialize(reader)).map_err(|failure| failure.error)?;
    Ok((value, unknown.into_inner()))
}

/// The way from the root to a node, on the stack.
enum Trail<'a> {
    Root,
    Key(&'a Trail<'a>, &'a str),
    Index(&'a Trail<'a>, usize),
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trail::Root => Ok(()),
            Trail::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Trail::Key(parent, key) => {
                parent.fmt(f)?;
                let plain = key
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'@'));
                match parent {
                    _ if !plain || key.is_empty() => write!(f, "[\"{key}\"]"),
                    Trail::Root => f.write_str(key),
                    _ => {
                        f.write_char('.')?;
                        f.write_str(key)
                    }
                }
            }
        }
    }
}

/// An error on its way up, which gets its place from the innermost node.
#[derive(Debug)]
struct Failure {
    error: Error,
    placed: bool,
}

impl Failure {
    fn at(position: Position, trail: &Trail<'_>, message: String) -> Failure {
        Failure { error: Error::new(position, trail.to_string(), message), placed: true }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<M: fmt::Display>(message: M) -> Failure {
        Failure { error: Error::new(Position::default(), "", message.to_string()), placed: false }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Failure {
        let mut message = format!("unknown value {variant:?}, expected ");
        for (index, name) in expected.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let _ = write!(message, "{separator}{name}");
        }
        let mut failure = Failure::custom(message);
        failure.error.suggestion = nearest(variant, expected.iter().copied()).map(str::to_owned);
        failure
    }

    fn missing_field(field: &'static str) -> Failure {
        Failure::custom(format_args!("missing field '{field}'"))
    }
}

#[derive(Clone, Copy)]
struct Reader<'a, 't> {
    node: &'a Node<'t>,
    trail: &'a Trail<'a>,
    unknown: &'a RefCell<Vec<Unknown>>,
    /// Take numbers for text, as Kubernetes quantities may be written.
    lenient: bool,
    /// Take text for numbers.
    numerals: bool,
}

impl<'a, 't> Reader<'a, 't> {
    /// Runs a step and gives its error this node's place unless it has a nearer one.
    fn read<T>(self, step: impl FnOnce(Self) -> Result<T, Failure>) -> Result<T, Failure> {
        step(self).map_err(|mut failure| {
            if !failure.placed {
                failure.error.line = self.node.position.line;
                failure.error.column = self.node.position.column;
                failure.error.path = self.trail.to_string();
                failure.placed = true;
            }
            failure
        })
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Sequence(items) => visitor.visit_seq(List { reader: self, items: items.iter(), next: 0 }),
            Value::Mapping(entries) => visitor.visit_map(Map::new(self, entries, None)?),
            Value::Scalar(scalar) => visit_scalar(scalar, visitor),
        }
    }

    /// A number.
    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.read(|reader| match &reader.node.value {
            Value::Scalar(Scalar { kind: Kind::String, text, .. }) if reader.numerals => {
                if let Ok(integer) = text.parse() {
                    return visitor.visit_i64(integer);
                }
                if let Ok(integer) = text.parse() {
                    return visitor.visit_u64(integer);
                }
                match text.parse() {
                    Ok(float) => visitor.visit_f64(float),
                    Err(_) => visitor.visit_str(text),
                }
            }
            _ => reader.any(visitor),
        })
    }

    fn is_null(self) -> bool {
        self.node.is_null()
    }
}

fn visit_scalar<'de, V: Visitor<'de>>(scalar: &Scalar<'_>, visitor: V) -> Result<V::Value, Failure> {
    match scalar.kind {
        Kind::Null => visitor.visit_unit(),
        Kind::Bool(value) => visitor.visit_bool(value),
        Kind::String => visitor.visit_str(&scalar.text),
        Kind::Integer | Kind::Float => {
            if let Some(integer) = scalar.integer() {
                if let Ok(integer) = i64::try_from(integer) {
                    return visitor.visit_i64(integer);
                }
                if let Ok(integer) = u64::try_from(integer) {
                    return visitor.visit_u64(integer);
                }
            }
            match scalar.float() {
                Some(float) => visitor.visit_f64(float),
                None => visitor.visit_str(&scalar.text),
            }
        }
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.read(|reader| reader.any(visitor))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_string(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.read(|reader| match &reader.node.value {
            Value::Scalar(Scalar { kind: Kind::Integer | Kind::Float, text, .. }) if reader.lenient => {
                visitor.visit_str(text)
            }
            _ => reader.any(visitor),
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() { visitor.visit_none() } else { self.read(|reader| visitor.visit_some(reader)) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let reader = Reader { lenient: self.lenient || name == "Quantity", ..self };
        reader.read(|reader| visitor.visit_newtype_struct(reader))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.read(|reader| match &reader.node.value {
            Value::Mapping(entries) => visitor.visit_map(Map::new(reader, entries, Some(fields))?),
            _ => reader.any(visitor),
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.read(|reader| match &reader.node.value {
            Value::Scalar(Scalar { kind: Kind::String, text, .. }) => {
                visitor.visit_enum(text.as_ref().into_deserializer())
            }
            Value::Mapping(entries) => match entries.as_slice() {
                [entry] => visitor.visit_enum(Variant { reader, entry }),
                _ => Err(de::Error::custom("expected exactly one field")),
            },
            _ => reader.any(visitor),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_string(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_string(visitor)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.number(visitor)
    }

    forward_to_deserialize_any! {
        bool i128 u128 char unit unit_struct seq tuple tuple_struct map identifier
    }
}

struct List<'a, 't> {
    reader: Reader<'a, 't>,
    items: std::slice::Iter<'a, Node<'t>>,
    next: usize,
}

impl<'de> de::SeqAccess<'de> for List<'_, '_> {
    type Error = Failure;

    fn next_element_seed<S: de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failure> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let trail = Trail::Index(self.reader.trail, self.next);
        self.next += 1;
        descend(self.reader, node, &trail, seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Map<'a, 't> {
    reader: Reader<'a, 't>,
    entries: std::slice::Iter<'a, Entry<'t>>,
    current: Option<&'a Entry<'t>>,
    fields: Option<&'static [&'static str]>,
}

impl<'a, 't> Map<'a, 't> {
    fn new(
        reader: Reader<'a, 't>,
        entries: &'a [Entry<'t>],
        fields: Option<&'static [&'static str]>,
    ) -> Result<Map<'a, 't>, Failure> {
        if let Some(duplicate) = find_duplicate(entries) {
            let trail = Trail::Key(reader.trail, &duplicate.key);
            return Err(Failure::at(duplicate.position, &trail, "duplicate field".to_owned()));
        }
        Ok(Map { reader, entries: entries.iter(), current: None, fields })
    }

    fn report_unknown(&self, entry: &Entry<'_>, fields: &'static [&'static str]) {
        self.reader.unknown.borrow_mut().push(Unknown {
            path: Trail::Key(self.reader.trail, &entry.key).to_string(),
            position: entry.position,
            suggestion: nearest(&entry.key, fields.iter().copied()).map(str::to_owned),
        });
    }
}

/// The first entry whose key an earlier one has.
pub(crate) fn find_duplicate<'n, 't>(entries: &'n [Entry<'t>]) -> Option<&'n Entry<'t>> {
    const FEW: usize = 16;
    if entries.len() <= FEW {
        return entries.iter().enumerate().find_map(|(index, entry)| {
            entries.iter().take(index).any(|earlier| earlier.key == entry.key).then_some(entry)
        });
    }
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    entries.iter().find(|entry| !seen.insert(entry.key.as_ref()))
}

impl<'de> de::MapAccess<'de> for Map<'_, '_> {
    type Error = Failure;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        while let Some(entry) = self.entries.next() {
            if let Some(fields) = self.fields {
                if !fields.contains(&entry.key.as_ref()) {
                    self.report_unknown(entry, fields);
                    continue;
                }
                if entry.value.is_null() {
                    continue;
                }
            }
            self.current = Some(entry);
            let key = KeyReader(&entry.key);
            return seed.deserialize(key).map(Some).map_err(|mut failure| {
                if !failure.placed {
                    let trail = Trail::Key(self.reader.trail, &entry.key);
                    failure = Failure::at(entry.position, &trail, failure.error.message);
                }
                failure
            });
        }
        Ok(None)
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let Some(entry) = self.current.take() else { return Err(de::Error::custom("a value without a key")) };
        let trail = Trail::Key(self.reader.trail, &entry.key);
        descend(self.reader, &entry.value, &trail, seed)
    }
}

/// Reads a child node.
fn descend<'de, S: de::DeserializeSeed<'de>>(
    parent: Reader<'_, '_>,
    node: &Node<'_>,
    trail: &Trail<'_>,
    seed: S,
) -> Result<S::Value, Failure> {
    let reader =
        Reader { node, trail, unknown: parent.unknown, lenient: parent.lenient, numerals: parent.numerals };
    reader.read(|reader| seed.deserialize(reader))
}

/// A key of a map: text that may also be wanted as a number or boolean.
struct KeyReader<'a>(&'a str);

impl<'de> de::Deserializer<'de> for KeyReader<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_str(self.0)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.0.parse() {
            Ok(number) => visitor.visit_i64(number),
            Err(_) => visitor.visit_str(self.0),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u64(number),
            Err(_) => visitor.visit_str(self.0),
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i128 u8 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// An enum written as a mapping with the variant's name as its only key.
struct Variant<'a, 't> {
    reader: Reader<'a, 't>,
    entry: &'a Entry<'t>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_, '_> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Failure> {
        let variant = seed.deserialize(KeyReader(&self.entry.key))?;
        Ok((variant, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        let trail = Trail::Key(self.reader.trail, &self.entry.key);
        if self.entry.value.is_null() {
            return Ok(());
        }
        Err(Failure::at(self.entry.position, &trail, "has no content".to_owned()))
    }

    fn newtype_variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        let trail = Trail::Key(self.reader.trail, &self.entry.key);
        descend(self.reader, &self.entry.value, &trail, seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Failure> {
        let trail = Trail::Key(self.reader.trail, &self.entry.key);
        Reader { node: &self.entry.value, trail: &trail, ..self.reader }.read(|reader| reader.any(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let trail = Trail::Key(self.reader.trail, &self.entry.key);
        let reader = Reader { node: &self.entry.value, trail: &trail, ..self.reader };
        de::Deserializer::deserialize_struct(reader, "", fields, visitor)
    }
}
