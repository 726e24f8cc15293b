//! JSON text as a tree, without places: for what comes from machines by the thousand.
//!
//! [`parse`](super::parse) reads JSON too, and knows the place of everything; this is faster, and
//! an object of it can be read while the text goes on ([`JsonNode`] is a serde seed).

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Entry, Kind, Node, Position, Scalar, Value};
use crate::Error;

/// Reads one JSON document.
///
/// # Errors
/// If it is not JSON, or something follows it.
pub fn from_json(text: &str) -> Result<Node<'_>, Error> {
    let fault = |error: serde_json::Error| {
        let [line, column] = [error.line(), error.column()].map(|it| u32::try_from(it).unwrap_or(0));
        Error::new(Position { line, column }, "", error.to_string())
    };
    let mut reader = serde_json::Deserializer::from_str(text);
    let node = JsonNode::default().deserialize(&mut reader).map_err(fault)?;
    reader.end().map_err(fault)?;
    Ok(node)
}

/// Reads a value as a [`Node`].
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonNode {
    /// Fields of objects that are passed over, wherever they are.
    pub skip: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for JsonNode {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn scalar(text: impl Into<Cow<'static, str>>, kind: Kind) -> Node<'static> {
    node(Value::Scalar(Scalar { text: text.into(), kind, plain: true }))
}

fn string(text: Cow<'_, str>) -> Node<'_> {
    node(Value::Scalar(Scalar { text, kind: Kind::String, plain: false }))
}

fn node(value: Value<'_>) -> Node<'_> {
    Node { value, position: Position::default() }
}

impl<'de> Visitor<'de> for JsonNode {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(scalar("null", Kind::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(scalar(if value { "true" } else { "false" }, Kind::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(scalar(value.to_string(), Kind::Integer))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(scalar(value.to_string(), Kind::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(scalar(value.to_string(), Kind::Float))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(string(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(string(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Node<'de>, E> {
        Ok(string(Cow::Owned(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Node<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(self)? {
            items.push(item);
        }
        Ok(node(Value::Sequence(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(self)? {
            let Value::Scalar(Scalar { text: key, .. }) = key.value else {
                return Err(A::Error::custom("a key is not text"));
            };
            if self.skip.contains(&key.as_ref()) {
                map.next_value::<serde::de::IgnoredAny>()?;
                continue;
            }
            let value = map.next_value_seed(self)?;
            entries.push(Entry { key, position: Position::default(), value });
        }
        Ok(node(Value::Mapping(entries)))
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeSeed;

    use super::{JsonNode, from_json};
    use crate::yaml::Node;

    #[test]
    fn is_what_the_text_says() {
        let text = r#"{"a": [1, -2, 1.5, true, null, "x\ny", "plain"], "b": {}, "c": 18446744073709551615}"#;
        let node = from_json(text).unwrap();
        assert_eq!(node.to_json(), serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert_eq!(node.find("a").and_then(|a| a.items().get(6)).and_then(Node::as_str), Some("plain"));
    }

    #[test]
    fn faults_have_places() {
        for text in ["{", "{\"a\": }", "[1] 2", "", "nul"] {
            assert!(from_json(text).unwrap_err().line > 0, "{text}");
        }
    }

    #[test]
    fn fields_can_be_passed_over() {
        let mut reader = serde_json::Deserializer::from_str(r#"{"m": {"big": [1, {}], "x": 1}, "big": 2}"#);
        let node = JsonNode { skip: &["big"] }.deserialize(&mut reader).unwrap();
        assert_eq!(node.to_json().to_string(), r#"{"m":{"x":1}}"#);
    }
}
