//! YAML and JSON to protobuf, by the proto3 JSON mapping, as Envoy reads its files.

use bytes::Bytes;
use prost::{Message, Name};

use crate::yaml::Node;
use crate::{Error, Errors};

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
pub fn decode<T: Message + Name + Default>(node: &Node<'_>, source: &str) -> Result<T, Errors> {
    decode_with_warnings(node, source).map(|decoded| decoded.message)
}

/// [`decode`], with the warnings.
///
/// # Errors
/// As [`decode`].
pub fn decode_with_warnings<T: Message + Name + Default>(
    node: &Node<'_>,
    source: &str,
) -> Result<Decoded<T>, Errors> {
    let _ = (node, source);
    todo!()
}

/// Reads one message from the text of a file: JSON if `source` ends in `.json`, else YAML in
/// Envoy's dialect. An empty document is an empty message.
///
/// # Errors
/// As [`decode`], or if the text is no YAML or has several documents.
pub fn decode_text<T: Message + Name + Default>(text: &str, source: &str) -> Result<T, Errors> {
    let _ = (text, source);
    todo!()
}

/// [`decode`] for a type known by name only: gives the wire form.
///
/// # Errors
/// As [`decode`]; also if the schema does not know the type.
pub fn to_wire(type_name: &str, node: &Node<'_>, source: &str) -> Result<Bytes, Errors> {
    let _ = (type_name, node, source);
    todo!()
}
