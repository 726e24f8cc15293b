//! Protobuf to JSON and YAML text, by the proto3 JSON mapping, as Envoy's `/config_dump` prints.

use prost::{Message, Name};
use serde_json::Value;

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
    #[error("{path}: malformed {type_name}")]
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
    let _ = (type_name, wire, style);
    todo!()
}

/// A message as a JSON value. Never fails: what cannot be read (an `Any` with bad bytes) is written
/// as base64.
pub fn value<T: Message + Name>(message: &T, style: Style) -> Value {
    let _ = (message, style);
    todo!()
}

/// A message as JSON text, indented by one space as Envoy's admin interface does.
pub fn json<T: Message + Name>(message: &T, style: Style) -> String {
    json_text(&value(message, style))
}

/// A message as YAML text: block style, fields by number, stable, for golden files and people.
pub fn yaml<T: Message + Name>(message: &T, style: Style) -> String {
    yaml_text(&value(message, style))
}

/// JSON text of a value, indented by one space as Envoy's admin interface does.
pub fn json_text(value: &Value) -> String {
    let _ = value;
    todo!()
}

/// YAML text of a value, ending in a line break.
pub fn yaml_text(value: &Value) -> String {
    let _ = value;
    todo!()
}
