//! Protobuf to JSON and YAML text, by the proto3 JSON mapping, as Envoy's `/config_dump` prints.
//!
//! This file makes JSON values of wire bytes, `encode/text.rs` makes text of JSON values.

#[cfg(test)]
mod tests;
mod text;

use prost::Name;
use serde_json::{Map, Number, Value};

use crate::any::type_name;
use crate::decode::has_own_form;
use crate::schema::{Field, Kind, Message};
use crate::wire::{
    Fields, MAX_DEPTH, Malformed, Raw, Scalar, Set, join_message, push_field, push_index, push_key, scalars,
};
use crate::yaml::TYPE_KEY;
pub use text::{json_text, yaml_blocks, yaml_text};

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Put `[redacted]` in place of what fields marked sensitive hold, as `/config_dump` does.
    pub redact: bool,
    /// camelCase names instead of those of the proto files.
    pub json_names: bool,
    /// Also write fields that have their default value (not unset messages, oneofs, optionals).
    pub defaults: bool,
}

/// Why bytes cannot be written as text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The schema does not have the type.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// The bytes are not such a message.
    #[error("{path}{}malformed {type_name}", if path.is_empty() { "" } else { ": " })]
    Malformed {
        /// The field, as in [`crate::Error`].
        path: String,
        /// Full name of the type that it should be.
        type_name: String,
    },
}

/// A message in wire form as a JSON value. An `Any` of an unknown type becomes
/// `{"@type": ..., "value": <base64>}`.
///
/// # Errors
/// If the type is unknown or the bytes are malformed (also inside an `Any` of a known type).
pub fn to_value(type_name: &str, wire: &[u8], style: Style) -> Result<Value, EncodeError> {
    let Some(message) = Message::find(type_name) else {
        return Err(EncodeError::UnknownType(type_name.to_owned()));
    };
    let mut encoder = Encoder { style, path: String::new(), redacted: false, strict: true };
    encoder.message(message, wire, 0)
}

/// A message as a JSON value. Never fails: what cannot be read (an `Any` with bad bytes) is written
/// as base64.
pub fn value<T: prost::Message + Name>(message: &T, style: Style) -> Value {
    let Some(schema) = Message::find(&T::full_name()) else { return Value::Null };
    let mut encoder = Encoder { style, path: String::new(), redacted: false, strict: false };
    // Bytes made of a Rust value of this type are well-formed.
    encoder.message(schema, &message.encode_to_vec(), 0).unwrap_or(Value::Null)
}

/// A message as JSON text, indented by one space as Envoy's admin interface does.
pub fn json<T: prost::Message + Name>(message: &T, style: Style) -> String {
    json_text(&value(message, style))
}

/// A message as YAML text: block style, fields by number, stable, for golden files and people.
pub fn yaml<T: prost::Message + Name>(message: &T, style: Style) -> String {
    yaml_text(&value(message, style))
}

/// What stands in place of secrets.
const REDACTED: &str = "[redacted]";

struct Encoder {
    style: Style,
    path: String,
    /// Below a sensitive field.
    redacted: bool,
    /// Whether a malformed `Any` is an error rather than base64.
    strict: bool,
}

impl Encoder {
    fn within<T>(
        &mut self,
        extend: impl FnOnce(&mut String),
        step: impl FnOnce(&mut Encoder) -> Result<T, EncodeError>,
    ) -> Result<T, EncodeError> {
        let length = self.path.len();
        extend(&mut self.path);
        let result = step(self);
        self.path.truncate(length);
        result
    }

    fn message(&mut self, message: Message, wire: &[u8], depth: usize) -> Result<Value, EncodeError> {
        let malformed = |encoder: &Encoder| EncodeError::Malformed {
            path: encoder.path.clone(),
            type_name: message.full_name().to_owned(),
        };
        if depth > MAX_DEPTH {
            return Err(malformed(self));
        }
        let fields = Fields::read(message, wire).map_err(|Malformed| malformed(self))?;
        match message.full_name().strip_prefix("google.protobuf.") {
            Some("Any") => self.any(&fields, depth),
            Some("Struct") => {
                self.structure(&fields, depth).map_err(|error| error.unwrap_or(malformed(self)))
            }
            Some("Value") => {
                self.struct_value(&fields, depth).map_err(|error| error.unwrap_or(malformed(self)))
            }
            Some("ListValue") => {
                self.list_value(&fields, depth).map_err(|error| error.unwrap_or(malformed(self)))
            }
            Some(name) => match own_form(name, message, &fields) {
                Ok(Some(_)) if self.redacted => Ok(Value::String(REDACTED.to_owned())),
                Ok(Some(value)) => Ok(value),
                Ok(None) => self.fields(message, &fields, depth).map(Value::Object),
                Err(Malformed) => Err(malformed(self)),
            },
            None => self.fields(message, &fields, depth).map(Value::Object),
        }
    }

    fn name(&self, field: Field) -> &'static str {
        if self.style.json_names { field.json_name() } else { field.name() }
    }

    fn fields(
        &mut self,
        message: Message,
        fields: &Fields<'_>,
        depth: usize,
    ) -> Result<Map<String, Value>, EncodeError> {
        let mut object = Map::new();
        let mut next = fields.by_field().peekable();
        let mut put = |encoder: &mut Encoder, field: Field, sets: &[Set<'_>]| -> Result<(), EncodeError> {
            let outer = encoder.redacted;
            encoder.redacted |= encoder.style.redact && field.is_sensitive();
            let value = encoder
                .within(|path| push_field(path, field.name()), |encoder| encoder.field(field, sets, depth));
            encoder.redacted = outer;
            if let Some(value) = value? {
                object.insert(encoder.name(field).to_owned(), value);
            }
            Ok(())
        };
        if self.style.defaults {
            for field in message.fields() {
                let sets = next.next_if(|sets| sets.first().is_some_and(|first| first.field == field));
                put(self, field, sets.unwrap_or(&[]))?;
            }
        } else {
            for sets in next {
                if let Some(set) = sets.first() {
                    put(self, set.field, sets)?;
                }
            }
        }
        Ok(object)
    }

    /// A field's value; `None` if it is not to be written.
    fn field(&mut self, field: Field, sets: &[Set<'_>], depth: usize) -> Result<Option<Value>, EncodeError> {
        let malformed = |encoder: &Encoder| EncodeError::Malformed {
            path: encoder.path.clone(),
            type_name: field.name().to_owned(),
        };
        let read = |result: Result<Vec<u8>, Malformed>, encoder: &Encoder| {
            result.map_err(|Malformed| malformed(encoder))
        };
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let mut object = Map::new();
                for set in sets {
                    let bytes = set.raw.bytes().map_err(|Malformed| malformed(self))?;
                    self.entry(entry, bytes, &mut object, depth)?;
                }
                Ok((!sets.is_empty() || self.style.defaults).then_some(Value::Object(object)))
            }
            Kind::Message(message) if field.is_repeated() => {
                let mut items = Vec::with_capacity(sets.len());
                for (index, set) in sets.iter().enumerate() {
                    let bytes = set.raw.bytes().map_err(|Malformed| malformed(self))?;
                    let item = self.within(
                        |path| push_index(path, index),
                        |encoder| encoder.message(message, bytes, depth + 1),
                    )?;
                    items.push(item);
                }
                Ok((!sets.is_empty() || self.style.defaults).then_some(Value::Array(items)))
            }
            Kind::Message(_) if sets.is_empty() => Ok(None),
            Kind::Message(message) => {
                let bytes = read(join_message(sets).map(std::borrow::Cow::into_owned), self)?;
                self.message(message, &bytes, depth + 1).map(Some)
            }
            kind if field.is_repeated() => {
                let values = scalars(sets).map_err(|Malformed| malformed(self))?;
                let items: Vec<Value> =
                    values.into_iter().filter_map(|value| self.scalar(kind, value)).collect();
                Ok((!items.is_empty() || self.style.defaults).then_some(Value::Array(items)))
            }
            kind => {
                let value = match sets.last() {
                    Some(set) => set.raw.scalar(kind).map_err(|Malformed| malformed(self))?,
                    None if field.has_presence() => return Ok(None),
                    None => Scalar::default_of(kind),
                };
                if value.is_default() && !field.has_presence() && !self.style.defaults {
                    return Ok(None);
                }
                Ok(self.scalar(kind, value))
            }
        }
    }

    /// A scalar; `None` for a number below a sensitive field, which has no redacted form.
    fn scalar(&self, kind: Kind, value: Scalar<'_>) -> Option<Value> {
        if self.redacted {
            return match value {
                Scalar::String(_) => Some(Value::String(REDACTED.to_owned())),
                Scalar::Bytes(_) => Some(Value::String(encode_base64(REDACTED.as_bytes()))),
                _ => None,
            };
        }
        Some(scalar_value(kind, value))
    }

    fn entry(
        &mut self,
        entry: Message,
        wire: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), EncodeError> {
        let malformed = |encoder: &Encoder| EncodeError::Malformed {
            path: encoder.path.clone(),
            type_name: "map".to_owned(),
        };
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return Ok(()) };
        let fields = Fields::read(entry, wire).map_err(|Malformed| malformed(self))?;
        let of = |wanted: Field| {
            fields.by_field().find(move |sets| sets.first().is_some_and(|s| s.field == wanted))
        };
        let scalar = |wanted: Field| match of(wanted).and_then(<[_]>::last) {
            Some(set) => set.raw.scalar(wanted.kind()),
            None => Ok(Scalar::default_of(wanted.kind())),
        };
        let key = match scalar(key_field).map_err(|Malformed| malformed(self))? {
            Scalar::String(text) => text.to_owned(),
            Scalar::Bool(value) => value.to_string(),
            Scalar::Signed(value) => value.to_string(),
            Scalar::Unsigned(value) => value.to_string(),
            _ => return Err(malformed(self)),
        };
        let value = match value_field.kind() {
            Kind::Message(message) => {
                let bytes = of(value_field).map_or(Ok(Default::default()), join_message);
                let bytes = bytes.map_err(|Malformed| malformed(self))?;
                Some(self.within(
                    |path| push_key(path, &key),
                    |encoder| encoder.message(message, &bytes, depth + 2),
                )?)
            }
            kind => self.scalar(kind, scalar(value_field).map_err(|Malformed| malformed(self))?),
        };
        if let Some(value) = value {
            object.insert(key, value);
        }
        Ok(())
    }

    fn any(&mut self, fields: &Fields<'_>, depth: usize) -> Result<Value, EncodeError> {
        let (mut url, mut bytes): (&str, &[u8]) = ("", &[]);
        for set in &fields.known {
            match (set.field.number(), set.raw) {
                (1, Raw::Bytes(raw)) => url = std::str::from_utf8(raw).unwrap_or_default(),
                (2, Raw::Bytes(raw)) => bytes = raw,
                _ => {}
            }
        }
        let mut object = Map::new();
        if url.is_empty() && bytes.is_empty() {
            return Ok(Value::Object(object));
        }
        object.insert(TYPE_KEY.to_owned(), Value::String(url.to_owned()));
        let raw = |encoder: &Encoder| {
            let shown = if encoder.redacted { REDACTED.as_bytes() } else { bytes };
            Value::String(encode_base64(shown))
        };
        let Some(message) = Message::find(type_name(url)) else {
            object.insert("value".to_owned(), raw(self));
            return Ok(Value::Object(object));
        };
        match self.message(message, bytes, depth + 1) {
            Ok(Value::Object(fields)) if !has_own_form(message) => object.extend(fields),
            Ok(value) => {
                object.insert("value".to_owned(), value);
            }
            Err(error) if self.strict => return Err(error),
            Err(_) => {
                object.insert("value".to_owned(), raw(self));
            }
        }
        Ok(Value::Object(object))
    }

    fn structure(&mut self, fields: &Fields<'_>, depth: usize) -> Result<Value, Option<EncodeError>> {
        let mut object = Map::new();
        for set in &fields.known {
            let (Kind::Message(entry), Ok(bytes)) = (set.field.kind(), set.raw.bytes()) else {
                return Err(None);
            };
            self.entry(entry, bytes, &mut object, depth)?;
        }
        Ok(Value::Object(object))
    }

    fn list_value(&mut self, fields: &Fields<'_>, depth: usize) -> Result<Value, Option<EncodeError>> {
        let mut items = Vec::with_capacity(fields.known.len());
        for set in &fields.known {
            let (Kind::Message(value), Ok(bytes)) = (set.field.kind(), set.raw.bytes()) else {
                return Err(None);
            };
            items.push(self.message(value, bytes, depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn struct_value(&mut self, fields: &Fields<'_>, depth: usize) -> Result<Value, Option<EncodeError>> {
        let Some(set) = fields.known.last() else { return Ok(Value::Null) };
        match set.field.kind() {
            Kind::Message(message) => {
                let bytes = set.raw.bytes().map_err(|Malformed| None)?;
                Ok(self.message(message, bytes, depth + 1)?)
            }
            Kind::Enum(_) => Ok(Value::Null),
            kind => {
                let value = set.raw.scalar(kind).map_err(|Malformed| None)?;
                Ok(self.scalar(kind, value).unwrap_or(Value::String(REDACTED.to_owned())))
            }
        }
    }
}

/// Durations, timestamps, field masks and wrappers; `None` for other types.
fn own_form(name: &str, message: Message, fields: &Fields<'_>) -> Result<Option<Value>, Malformed> {
    let last = |number: u32| fields.known.iter().rev().find(|set| set.field.number() == number);
    let number = |number: u32| match last(number).map(|set| set.raw) {
        Some(Raw::Varint(value)) => Ok(value.cast_signed()),
        Some(_) => Err(Malformed),
        None => Ok(0),
    };
    let value = match name {
        "Duration" => Value::String(text::duration(number(1)?, number(2)?)),
        "Timestamp" => Value::String(text::timestamp(number(1)?, number(2)?)),
        "FieldMask" => {
            let paths = scalars(&fields.known)?;
            let names = paths.into_iter().map(|path| match path {
                Scalar::String(name) => text::camel_case(name),
                _ => String::new(),
            });
            Value::String(names.collect::<Vec<_>>().join(","))
        }
        _ if has_own_form(message) => {
            let Some(field) = message.field(1) else { return Ok(None) };
            let value = match last(1) {
                Some(set) => set.raw.scalar(field.kind())?,
                None => Scalar::default_of(field.kind()),
            };
            scalar_value(field.kind(), value)
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// A scalar as JSON has it: 64-bit integers as text, enums by name if they have one.
fn scalar_value(kind: Kind, value: Scalar<'_>) -> Value {
    let is_wide = matches!(kind, Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint64 | Kind::Fixed64);
    match value {
        Scalar::Signed(value) if is_wide => Value::String(value.to_string()),
        Scalar::Unsigned(value) if is_wide => Value::String(value.to_string()),
        Scalar::Signed(value) => Value::Number(value.into()),
        Scalar::Unsigned(value) => Value::Number(value.into()),
        Scalar::Double(value) => double(value),
        // By way of text, so that 0.1 stays 0.1 and gets no digits that a float does not have.
        Scalar::Float(value) => double(value.to_string().parse().unwrap_or(f64::from(value))),
        Scalar::Bool(value) => Value::Bool(value),
        Scalar::Enum(number) => match kind {
            Kind::Enum(descriptor) if descriptor.full_name() == "google.protobuf.NullValue" => Value::Null,
            Kind::Enum(descriptor) => match descriptor.value(number) {
                Some(value) => Value::String(value.name().to_owned()),
                None => Value::Number(number.into()),
            },
            _ => Value::Number(number.into()),
        },
        Scalar::String(value) => Value::String(value.to_owned()),
        Scalar::Bytes(value) => Value::String(encode_base64(value)),
    }
}

/// A double; whole ones without a fraction, and by name where JSON has no number.
fn double(value: f64) -> Value {
    if value.is_nan() {
        return Value::String("NaN".to_owned());
    }
    if value.is_infinite() {
        return Value::String(if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned());
    }
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let is_minus_zero = value == 0.0 && value.is_sign_negative();
    if value.fract() == 0.0 && value.abs() < EXACT && !is_minus_zero {
        return Value::Number(Number::from(value as i64));
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Base64 with the standard alphabet, padded.
fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * index) & 0x3f) as usize).copied().unwrap_or(b'=');
            text.push(if index <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
