//! YAML and JSON text as a tree of nodes that know their place in the text.
//!
//! The tree borrows scalars from the text, keeps duplicate keys, and has its plain scalars
//! resolved by a [`Dialect`], since Envoy and Kubernetes read the same text differently.
//! From a tree go on to [`crate::decode`] for protobuf messages or [`from_node`] for serde types.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

use crate::Error;

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

/// Reads all documents of a stream. Empty documents are left out.
///
/// # Errors
/// If the text is not YAML, nests deeper than 100 levels, has keys that are not scalars, or its
/// aliases multiply beyond reason.
pub fn parse(text: &str, dialect: Dialect) -> Result<Vec<Node<'_>>, Error> {
    let _ = (text, dialect);
    todo!()
}

/// Reads a serde type from a node. Fields that the type does not know are collected, not errors.
///
/// # Errors
/// The first fault, with path (`spec.http[0].match[1].uri`) and place: wrong types, missing or
/// duplicate fields, whatever the type's own `Deserialize` refuses.
pub fn from_node<T: DeserializeOwned>(node: &Node<'_>) -> Result<(T, Vec<Unknown>), Error> {
    let _ = node;
    todo!()
}

impl<'t> Scalar<'t> {
    /// The whole number that a scalar of kind `Integer` is; `None` for other kinds and beyond i128.
    pub fn integer(&self) -> Option<i128> {
        todo!()
    }

    /// The number that a scalar of kind `Integer` or `Float` is.
    pub fn float(&self) -> Option<f64> {
        todo!()
    }
}

impl<'t> Node<'t> {
    /// A copy that no longer borrows the text.
    pub fn into_owned(self) -> Node<'static> {
        todo!()
    }

    /// The value under a key (the last of duplicates), if this is a mapping that has it.
    pub fn find(&self, key: &str) -> Option<&Node<'t>> {
        let _ = key;
        todo!()
    }

    /// The text, if this is a scalar of kind `String`.
    pub fn as_str(&self) -> Option<&str> {
        todo!()
    }

    /// Where the field of a path begins, as `spec.http[0].match[1].uri` or `labels["a.b/c"]`:
    /// the place of its key, or of the element for an index. Proto names find camelCase keys.
    /// `None` if the text does not have the field.
    pub fn locate(&self, path: &str) -> Option<Position> {
        let _ = path;
        todo!()
    }

    /// [`Node::locate`], or else the place of the nearest enclosing field that the text has.
    pub fn locate_nearest(&self, path: &str) -> Position {
        let _ = path;
        todo!()
    }

    /// The same tree as a JSON value; numbers stay numbers as far as JSON has them.
    pub fn to_json(&self) -> serde_json::Value {
        todo!()
    }
}
