//! `xds.type.v3.TypedStruct` and its `udpa` twin: a message named by URL and written as a Struct.

use std::borrow::Cow;

use prost::Message as _;
use prost_types::value::Kind as StructKind;
use prost_types::{Any, Struct};

use crate::any::type_name;
use crate::decode::to_wire;
use crate::schema::Message;
use crate::wire::{Raw, Reader};
use crate::yaml::{Entry, Kind, Node, Position, Scalar, Value};
use crate::{Error, Errors};

/// The types that name and hold another one.
const TYPED_STRUCTS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// Turns an `Any` that holds a TypedStruct into an `Any` of the message that it names. Any other
/// `Any`, and a TypedStruct that names a type not in the schema, come back as they are.
///
/// # Errors
/// If the Struct is not such a message by the proto3 JSON mapping; paths start inside it.
pub fn resolve(any: &Any) -> Result<Any, Errors> {
    if !TYPED_STRUCTS.contains(&type_name(&any.type_url)) {
        return Ok(any.clone());
    }
    let malformed = || Errors::from(Error::new(Position::default(), "", "malformed TypedStruct"));
    let (mut type_url, mut content) = (String::new(), Vec::new());
    let mut reader = Reader(&any.value);
    while let Some(field) = reader.next().map_err(|_| malformed())? {
        match field {
            (1, Raw::Bytes(url)) => type_url = String::from_utf8(url.to_vec()).map_err(|_| malformed())?,
            // Two occurrences of a message are its parts.
            (2, Raw::Bytes(part)) => content.extend_from_slice(part),
            _ => {}
        }
    }
    if Message::find(type_name(&type_url)).is_none() {
        return Ok(any.clone());
    }
    let content = Struct::decode(content.as_slice()).map_err(|_| malformed())?;
    let wire = to_wire(type_name(&type_url), &struct_node(&content), "")?;
    Ok(Any { type_url, value: wire.to_vec() })
}

/// A Struct as a node without a place.
fn struct_node(content: &Struct) -> Node<'_> {
    let entries = content.fields.iter().map(|(key, value)| Entry {
        key: Cow::Borrowed(key),
        position: Position::default(),
        value: value_node(value),
    });
    Node { value: Value::Mapping(entries.collect()), position: Position::default() }
}

fn value_node(value: &prost_types::Value) -> Node<'_> {
    let scalar = |text: Cow<'static, str>, kind| Value::Scalar(Scalar { text, kind, plain: true });
    let value = match &value.kind {
        None | Some(StructKind::NullValue(_)) => scalar("".into(), Kind::Null),
        Some(StructKind::BoolValue(value)) => scalar(if *value { "true" } else { "false" }.into(), Kind::Bool(*value)),
        Some(StructKind::NumberValue(number)) => {
            let kind = if number.fract() == 0.0 && number.abs() < 1e15 { Kind::Integer } else { Kind::Float };
            scalar(number.to_string().into(), kind)
        }
        Some(StructKind::StringValue(text)) => {
            Value::Scalar(Scalar { text: Cow::Borrowed(text), kind: Kind::String, plain: false })
        }
        Some(StructKind::StructValue(inner)) => return struct_node(inner),
        Some(StructKind::ListValue(list)) => Value::Sequence(list.values.iter().map(value_node).collect()),
    };
    Node { value, position: Position::default() }
}
