//! YAML and JSON text as a tree of nodes that know their place in the text.
//!
//! The tree borrows scalars from the text, keeps duplicate keys, and has its plain scalars
//! resolved by a [`Dialect`], since Envoy and Kubernetes read the same text differently.
//! From a tree go on to [`crate::decode`] for protobuf messages or [`from_node`] for serde types.
//! How a tree comes about is in `yaml/parse.rs` (`yaml/json.rs` for JSON without places), what scalars mean in `yaml/scalar.rs`.

mod from_node;
mod json;
mod locate;
mod parse;
mod scalar;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::Error;
pub use from_node::{from_message_node, from_node};
pub use json::{JsonNode, from_json};
pub use parse::{MAX_DEPTH, parse};
pub(crate) use scalar::is_plain_text;

/// The name that `Any` has for its type in JSON and YAML.
pub(crate) const TYPE_KEY: &str = "@type";

/// A place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, counted from 1; 0 if unknown.
    pub line: u32,
    /// Column in characters, counted from 1; 0 if unknown.
    pub column: u32,
}

/// Whose reading of plain (unquoted) scalars to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Envoy's (yaml-cpp): `yes`, `on` are booleans, `0777` is octal, fractions stay text.
    Envoy,
    /// That of sigs.k8s.io/yaml, as kubectl and istioctl read: YAML 1.1 with merge keys.
    Kubernetes,
    /// JSON's.
    Json,
}

/// One value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<'t> {
    /// What it is.
    pub value: Value<'t>,
    /// Where it begins.
    pub position: Position,
}

/// What a node can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'t> {
    /// Text, a number, a boolean or null.
    Scalar(Scalar<'t>),
    /// A list.
    Sequence(Vec<Node<'t>>),
    /// Keys and values in the order of the text, duplicates included.
    Mapping(Vec<Entry<'t>>),
}

/// A scalar: its text, after unquoting, and what its dialect takes it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar<'t> {
    /// The text, after unquoting and folding.
    pub text: Cow<'t, str>,
    /// What the dialect takes it for; `String` whenever it is quoted or a block.
    pub kind: Kind,
    /// Whether it was written without quotes.
    pub plain: bool,
}

/// What a scalar means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number; read it with [`Scalar::integer`].
    Integer,
    /// A number with fraction or exponent, infinity or NaN; read it with [`Scalar::float`].
    Float,
    /// Text.
    String,
}

/// One key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'t> {
    /// The key, always text.
    pub key: Cow<'t, str>,
    /// Where the key begins.
    pub position: Position,
    /// The value.
    pub value: Node<'t>,
}

/// A field in the text that the Rust type does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The field, as `spec.http[0].matches`.
    pub path: String,
    /// Where its key is.
    pub position: Position,
    /// The field that was probably meant.
    pub suggestion: Option<String>,
}

impl<'t> Node<'t> {
    /// A copy that no longer borrows the text.
    pub fn into_owned(self) -> Node<'static> {
        let value = match self.value {
            Value::Scalar(Scalar { text, kind, plain }) => {
                Value::Scalar(Scalar { text: Cow::Owned(text.into_owned()), kind, plain })
            }
            Value::Sequence(items) => Value::Sequence(items.into_iter().map(Node::into_owned).collect()),
            Value::Mapping(entries) => Value::Mapping(entries.into_iter().map(Entry::into_owned).collect()),
        };
        Node { value, position: self.position }
    }

    /// The value under a key (the last of duplicates), if this is a mapping that has it.
    pub fn find(&self, key: &str) -> Option<&Node<'t>> {
        self.entries().iter().rev().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// The keys and values, if this is a mapping; else none.
    pub fn entries(&self) -> &[Entry<'t>] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The elements, if this is a list; else none.
    pub fn items(&self) -> &[Node<'t>] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The text, if this is a scalar of kind `String`.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(Scalar { text, kind: Kind::String, .. }) => Some(text),
            _ => None,
        }
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { kind: Kind::Null, .. }))
    }

    /// What this is, for messages: `a list`, `the number 5`.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Scalar(Scalar { kind: Kind::Null, .. }) => "null".to_owned(),
            Value::Scalar(Scalar { kind: Kind::Bool(value), .. }) => format!("the boolean {value}"),
            Value::Scalar(Scalar { kind: Kind::Integer | Kind::Float, text, .. }) => {
                format!("the number {}", shorten(text))
            }
            Value::Scalar(Scalar { kind: Kind::String, text, .. }) => format!("{:?}", shorten(text)),
        }
    }

    /// The same tree as a JSON value. Of duplicate keys the last counts; numbers that JSON does
    /// not have (infinity, NaN, beyond 64 bits and the range of a double) become text.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Sequence(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Mapping(entries) => Json::Object(
                entries.iter().map(|entry| (entry.key.to_string(), entry.value.to_json())).collect(),
            ),
            Value::Scalar(scalar) => scalar.to_json(),
        }
    }
}

impl Unknown {
    /// The same as an error, for those who refuse unknown fields.
    pub fn into_error(self) -> Error {
        Error::new(self.position, self.path, "unknown field").suggest(self.suggestion.as_deref())
    }
}

impl Entry<'_> {
    /// A copy that no longer borrows the text.
    pub fn into_owned(self) -> Entry<'static> {
        let key = Cow::Owned(self.key.into_owned());
        Entry { key, position: self.position, value: self.value.into_owned() }
    }
}

/// The beginning of a text, for messages.
fn shorten(text: &str) -> Cow<'_, str> {
    const LIMIT: usize = 60;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
