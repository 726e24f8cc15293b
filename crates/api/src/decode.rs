//! YAML and JSON to protobuf, by the proto3 JSON mapping, as Envoy reads its files.
//!
//! One pass over the tree writes wire bytes, driven by the schema; then the bytes are checked
//! against `validate.rules`, and what that finds is located in the text. Both collect: an author
//! sees all that is wrong at once. This file has messages, maps, lists and oneofs;
//! `decode/scalar.rs` has scalars, `decode/well_known.rs` the types with a JSON form of their own.
//!
//! Deviation: Envoy takes the last of duplicate fields, also of `stat_prefix` and `statPrefix`, and
//! the first of several documents. Here both are errors, since the rest would be ignored silently.

mod scalar;
#[cfg(test)]
mod tests;
mod well_known;

use bytes::Bytes;
use prost::Name;

use crate::error::nearest;
use crate::schema::{Field, Kind, Message};
use crate::validate::{Report, Violation, inspect};
use crate::wire::{close_delimited, push_field, push_index, push_key, put_scalar, put_tag, wire_type};
use crate::yaml::{Dialect, Entry, Node, Position, TYPE_KEY, Value, parse};
use crate::{Error, Errors};
pub(crate) use well_known::has_own_form;

/// A message read from text, and what is questionable about it.
#[derive(Clone, Debug)]
pub struct Decoded<T> {
    /// The message.
    pub message: T,
    /// Deprecated fields in use, for the log.
    pub warnings: Vec<Error>,
}

/// Reads one message from a node. `source` names the file in errors.
///
/// # Errors
/// Everything that is wrong with it: unknown or duplicate fields, wrong types, values out of
/// range, unknown types in `Any`, violated `validate.rules`, fields disallowed by default.
pub fn decode<T: prost::Message + Name + Default>(node: &Node<'_>, source: &str) -> Result<T, Errors> {
    decode_with_warnings(node, source).map(|decoded| decoded.message)
}

/// [`decode`], with the warnings.
///
/// # Errors
/// As [`decode`].
pub fn decode_with_warnings<T: prost::Message + Name + Default>(
    node: &Node<'_>,
    source: &str,
) -> Result<Decoded<T>, Errors> {
    let (wire, warnings) = checked(&T::full_name(), node, source)?;
    match T::decode(wire.as_slice()) {
        Ok(message) => Ok(Decoded { message, warnings }),
        // Text that nests within its limit may still nest too deep as messages.
        Err(error) => Err(Error::new(node.position, "", error.to_string()).in_file(source).into()),
    }
}

/// Reads one message from the text of a file: JSON if `source` ends in `.json`, else YAML in
/// Envoy's dialect. An empty document is an empty message.
///
/// # Errors
/// As [`decode`], or if the text is no YAML or has several documents.
pub fn decode_text<T: prost::Message + Name + Default>(text: &str, source: &str) -> Result<T, Errors> {
    decode(&parse_single(text, source)?, source)
}

/// [`decode_text`], with the warnings.
///
/// # Errors
/// As [`decode_text`].
pub fn decode_text_with_warnings<T: prost::Message + Name + Default>(
    text: &str,
    source: &str,
) -> Result<Decoded<T>, Errors> {
    decode_with_warnings(&parse_single(text, source)?, source)
}

/// [`decode`] for a type known by name only: gives the wire form.
///
/// # Errors
/// As [`decode`]; also if the schema does not know the type.
pub fn to_wire(type_name: &str, node: &Node<'_>, source: &str) -> Result<Bytes, Errors> {
    checked(type_name, node, source).map(|(wire, _)| Bytes::from(wire))
}

/// [`to_wire`], with the warnings.
///
/// # Errors
/// As [`to_wire`].
pub fn to_wire_with_warnings(
    type_name: &str,
    node: &Node<'_>,
    source: &str,
) -> Result<Decoded<Bytes>, Errors> {
    let (wire, warnings) = checked(type_name, node, source)?;
    Ok(Decoded { message: Bytes::from(wire), warnings })
}

/// A part of a message, to be merged into another.
#[derive(Clone, Debug)]
pub struct Fragment {
    /// What could be read.
    pub wire: Bytes,
    /// What could not. With any the rest is of no use.
    pub errors: Vec<Error>,
    /// Fields that the schema does not have, which were left out.
    pub unknown: Vec<Error>,
}

/// Reads a part of a message, which need not hold on its own: constraints are not looked at, and
/// fields that the schema does not have are left out, as their author may know a newer one. A
/// `TypedStruct` that names a known type becomes an `Any` of it, and an `Any` of an unknown type a
/// `TypedStruct`.
pub fn fragment(type_name: &str, node: &Node<'_>) -> Fragment {
    let mut decoder = Decoder { unknown: Some(Vec::new()), ..Decoder::default() };
    match Message::find(type_name) {
        Some(message) => decoder.message(message, node, node.position),
        None => decoder.error(node.position, format!("unknown message type {type_name:?}")),
    }
    let Decoder { out, errors, unknown, .. } = decoder;
    Fragment { wire: Bytes::from(out), errors, unknown: unknown.unwrap_or_default() }
}

/// The only document of a text.
fn parse_single<'t>(text: &'t str, source: &str) -> Result<Node<'t>, Errors> {
    let dialect = if source.ends_with(".json") { Dialect::Json } else { Dialect::Envoy };
    let mut documents = parse(text, dialect).map_err(|error| error.in_file(source))?.into_iter();
    let node =
        documents.next().unwrap_or(Node { value: Value::Mapping(Vec::new()), position: Position::default() });
    match documents.next() {
        None => Ok(node),
        Some(second) => Err(Error::new(second.position, "", "only one document is read from a file")
            .in_file(source)
            .into()),
    }
}

/// Wire bytes without faults, and warnings.
fn checked(type_name: &str, node: &Node<'_>, source: &str) -> Result<(Vec<u8>, Vec<Error>), Errors> {
    let Some(message) = Message::find(type_name) else {
        let message = format!("unknown message type {type_name:?}");
        return Err(Error::new(node.position, "", message).in_file(source).into());
    };
    let mut decoder = Decoder::default();
    decoder.message(message, node, node.position);
    let Decoder { out, mut errors, .. } = decoder;
    let Report { violations, deprecated, .. } = inspect(type_name, &out);
    let place = |violation: Violation| {
        Error::new(node.locate_nearest(&violation.path), violation.path, violation.message)
    };
    let syntax = errors.len();
    for violation in violations {
        let is_consequence =
            errors.iter().take(syntax).any(|error| explains(&error.path, &violation.path, node));
        if !is_consequence {
            errors.push(place(violation));
        }
    }
    if errors.is_empty() {
        return Ok((out, deprecated.into_iter().map(|violation| place(violation).in_file(source)).collect()));
    }
    errors.sort_by_key(|error| (error.line, error.column));
    Err(Errors(errors.into_iter().map(|error| error.in_file(source)).collect()))
}

/// Wire bytes with their constraints unchecked, for tests that compare forms only.
#[cfg(test)]
pub(crate) fn unchecked(type_name: &str, node: &Node<'_>) -> Result<Vec<u8>, Errors> {
    let mut decoder = Decoder::default();
    decoder.message(Message::find(type_name).expect("a known type"), node, node.position);
    if decoder.errors.is_empty() { Ok(decoder.out) } else { Err(Errors(decoder.errors)) }
}

/// Whether a violation may be there only because a field could not be read: it is about that
/// field, its list or its content, or about a sibling that the text lacks (the field may be that one, misspelt).
fn explains(error: &str, violation: &str, node: &Node<'_>) -> bool {
    let parent = |path: &str| path.rfind(['.', '[']).unwrap_or(0);
    let is_within = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
    error.is_empty()
        || error.strip_prefix(violation).is_some_and(is_within)
        || violation.strip_prefix(error).is_some_and(is_within)
        || error.get(..parent(error)) == violation.get(..parent(violation))
            && node.locate(violation).is_none()
}

/// Writes wire bytes and collects errors.
#[derive(Default)]
struct Decoder {
    out: Vec<u8>,
    errors: Vec<Error>,
    path: String,
    /// The fields met so far in each of the messages being read.
    seen: Vec<(Field, Position)>,
    /// Where fields go that the schema does not have, if they are no errors; see [`fragment`].
    unknown: Option<Vec<Error>>,
}

impl Decoder {
    fn error(&mut self, position: Position, message: impl Into<String>) {
        self.errors.push(Error::new(position, self.path.clone(), message));
    }

    /// Runs a step with a longer path.
    fn within(&mut self, extend: impl FnOnce(&mut String), step: impl FnOnce(&mut Decoder)) {
        let length = self.path.len();
        extend(&mut self.path);
        step(self);
        self.path.truncate(length);
    }

    /// Writes the content of a message. `position` is that of its key, which is where a reader
    /// looks for it.
    fn message(&mut self, message: Message, node: &Node<'_>, position: Position) {
        if self.well_known(message, node, position) {
            return;
        }
        match &node.value {
            Value::Mapping(entries) => self.fields(message, entries, false),
            _ if node.is_null() => {}
            _ => self.error(
                node.position,
                format!("expected a mapping ({}), found {}", message.full_name(), node.describe()),
            ),
        }
    }

    /// Writes the fields of a message; in an `Any` its `@type` is passed over.
    fn fields(&mut self, message: Message, entries: &[Entry<'_>], in_any: bool) {
        let first = self.seen.len();
        for entry in entries {
            if in_any && entry.key == TYPE_KEY {
                continue;
            }
            self.within(
                |path| push_field(path, &entry.key),
                |decoder| match message.field_by_name(&entry.key) {
                    None => decoder.unknown_field(message, entry),
                    Some(field) => {
                        if decoder.admit(message, field, entry, first) {
                            decoder.field(field, &entry.value, entry.position);
                        }
                    }
                },
            );
        }
        self.seen.truncate(first);
    }

    fn unknown_field(&mut self, message: Message, entry: &Entry<'_>) {
        let suggestion = nearest(&entry.key, message.fields().map(Field::name));
        let error = Error::new(entry.position, self.path.clone(), "unknown field").suggest(suggestion);
        self.unknown.as_mut().unwrap_or(&mut self.errors).push(error);
    }

    /// Whether a field may be set: it is not null, was not set before, nor was another of its oneof.
    fn admit(&mut self, message: Message, field: Field, entry: &Entry<'_>, first: usize) -> bool {
        let before = |decoder: &Decoder, wanted: &dyn Fn(Field) -> bool| {
            decoder.seen.iter().skip(first).find(|(seen, _)| wanted(*seen)).copied()
        };
        if let Some((_, position)) = before(self, &|seen| seen == field) {
            let text = format!("duplicate field, first set in line {}", position.line);
            self.error(entry.position, text);
            return false;
        }
        if entry.value.is_null() && !takes_null(field.kind()) {
            return false;
        }
        let clash = field.oneof().and_then(|oneof| before(self, &|seen| seen.oneof() == Some(oneof)));
        self.seen.push((field, entry.position));
        let (Some((other, position)), Some(oneof)) = (clash, field.oneof()) else { return true };
        let text = format!(
            "only one field of the oneof '{}' may be set, and '{}' is set in line {}",
            oneof.of(message).name(),
            other.name(),
            position.line
        );
        self.error(entry.position, text);
        false
    }

    fn field(&mut self, field: Field, node: &Node<'_>, position: Position) {
        match (field.kind(), &node.value) {
            (Kind::Message(entry), Value::Mapping(entries)) if field.is_map() => {
                self.map(field, entry, entries);
            }
            _ if field.is_map() => {
                self.error(node.position, format!("expected a mapping, found {}", node.describe()));
            }
            (kind, Value::Sequence(items)) if field.is_repeated() => self.list(field, kind, items),
            // ListValue and Value are lists themselves; of these only a list of lists is repeated.
            (kind, _) => self.single(field, kind, node, position),
        }
    }

    /// A list. Null stands for an element with its default, as Envoy has it.
    fn list(&mut self, field: Field, kind: Kind, items: &[Node<'_>]) {
        let start = match field.is_packed() && !items.is_empty() {
            true => {
                put_tag(&mut self.out, field.number(), wire_type(Kind::Bytes));
                Some(self.out.len())
            }
            false => None,
        };
        self.elements(field, kind, items);
        if let Some(start) = start {
            close_delimited(&mut self.out, start);
        }
    }

    /// The elements of a list. Those of a list in the list count too, as Envoy has it: so can an
    /// alias stand for several elements.
    fn elements(&mut self, field: Field, kind: Kind, items: &[Node<'_>]) {
        for (index, item) in items.iter().enumerate() {
            self.within(
                |path| push_index(path, index),
                |decoder| match (kind, &item.value) {
                    (_, Value::Sequence(inner)) if !takes_list(kind) => decoder.elements(field, kind, inner),
                    (Kind::Message(message), _) => {
                        decoder.submessage(field.number(), message, item, item.position);
                    }
                    _ => {
                        let Some(scalar) = decoder.scalar(kind, item) else { return };
                        if !field.is_packed() {
                            put_tag(&mut decoder.out, field.number(), wire_type(kind));
                        }
                        put_scalar(&mut decoder.out, kind, scalar.borrow());
                    }
                },
            );
        }
    }

    /// A field that is not repeated, or the one element that Envoy lets stand for a list.
    fn single(&mut self, field: Field, kind: Kind, node: &Node<'_>, position: Position) {
        if let Kind::Message(message) = kind {
            return self.submessage(field.number(), message, node, position);
        }
        let Some(scalar) = self.scalar(kind, node) else { return };
        let scalar = scalar.borrow();
        if scalar.is_default() && !field.has_presence() && !field.is_repeated() {
            return;
        }
        put_tag(&mut self.out, field.number(), wire_type(kind));
        put_scalar(&mut self.out, kind, scalar);
    }

    fn submessage(&mut self, number: u32, message: Message, node: &Node<'_>, position: Position) {
        put_tag(&mut self.out, number, wire_type(Kind::Bytes));
        let start = self.out.len();
        self.message(message, node, position);
        close_delimited(&mut self.out, start);
    }

    fn map(&mut self, field: Field, entry_type: Message, entries: &[Entry<'_>]) {
        let (Some(key_field), Some(value_field)) = (entry_type.field(1), entry_type.field(2)) else { return };
        self.duplicate_keys(entries);
        for entry in entries {
            self.within(
                |path| push_key(path, &entry.key),
                |decoder| {
                    put_tag(&mut decoder.out, field.number(), wire_type(Kind::Bytes));
                    let start = decoder.out.len();
                    decoder.key(key_field.kind(), entry);
                    decoder.single(value_field, value_field.kind(), &entry.value, entry.position);
                    close_delimited(&mut decoder.out, start);
                },
            );
        }
    }

    /// Reports each key of a map that an earlier entry has.
    fn duplicate_keys(&mut self, entries: &[Entry<'_>]) {
        let mut first = std::collections::HashMap::with_capacity(entries.len());
        for entry in entries {
            let Some(line) = first.insert(entry.key.as_ref(), entry.position.line) else { continue };
            self.within(
                |path| push_key(path, &entry.key),
                |decoder| decoder.error(entry.position, format!("duplicate key, set before in line {line}")),
            );
        }
    }
}

/// Types whose values are lists themselves.
fn takes_list(kind: Kind) -> bool {
    matches!(kind, Kind::Message(message)
        if matches!(message.full_name(), "google.protobuf.Value" | "google.protobuf.ListValue"))
}

/// Types for which null is a value of its own.
fn takes_null(kind: Kind) -> bool {
    match kind {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}
