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

/// Whether a type is one of these.
pub(crate) fn is_typed_struct(message: Message) -> bool {
    TYPED_STRUCTS.contains(&message.full_name())
}

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
        Some(StructKind::BoolValue(value)) => {
            scalar(if *value { "true" } else { "false" }.into(), Kind::Bool(*value))
        }
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

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use prost_types::Any;

    use super::resolve;
    use crate::any::unpack;
    use crate::decode::to_wire;
    use crate::proto::envoy::config::cluster::v3::Cluster;
    use crate::yaml::{Dialect, parse};

    fn typed_struct(text: &str) -> Any {
        let documents = parse(text, Dialect::Json).unwrap();
        let wire = to_wire("xds.type.v3.TypedStruct", &documents[0], "").unwrap();
        Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: wire.to_vec() }
    }

    #[test]
    fn names_another_message() {
        let any = typed_struct(
            r#"{"type_url": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "value": {"name": "a", "connectTimeout": "1s", "lb_policy": 3, "max_requests_per_connection": 5}}"#,
        );
        let cluster: Cluster = unpack(&resolve(&any).unwrap()).unwrap();
        assert_eq!(
            (cluster.name.as_str(), cluster.lb_policy, cluster.connect_timeout.unwrap().seconds),
            ("a", 3, 1)
        );
        let any = typed_struct(
            r#"{"type_url": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "value": {"nme": "a", "lb_policy": 1.5}}"#,
        );
        let mut errors: Vec<String> = resolve(&any).unwrap_err().iter().map(ToString::to_string).collect();
        // A Struct has no order.
        errors.sort();
        expect![[r#"
            lb_policy: expected a value of envoy.config.cluster.v3.Cluster.LbPolicy, found the number 1.5
            nme: unknown field, did you mean 'name'?"#]]
        .assert_eq(&errors.join("\n"));
    }

    #[test]
    fn others_come_back() {
        let any = typed_struct(r#"{"type_url": "type.googleapis.com/no.Such", "value": {}}"#);
        assert_eq!(resolve(&any).unwrap(), any);
        let any = Any { type_url: "x/y".to_owned(), value: vec![0xff] };
        assert_eq!(resolve(&any).unwrap(), any);
        let any = Any { value: vec![0xff], ..typed_struct("{}") };
        expect!["malformed TypedStruct"].assert_eq(&resolve(&any).unwrap_err().to_string());
    }
}
