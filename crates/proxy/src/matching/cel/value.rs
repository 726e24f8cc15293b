//! Values of expressions.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value as Json};

use super::Operator;
use super::attributes::Root;
use crate::http::headers::HeaderMap;
use crate::http::route::matcher::joined;
use crate::matching::facts::Facts;
use crate::telemetry::access_log::time::TimeFormat;
use crate::telemetry::stream_info::DynamicMetadata;

/// An expression cannot be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// A value. What attributes show is borrowed.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, [u8]>),
    Bytes(Cow<'a, [u8]>),
    /// In ns since 1970.
    Timestamp(i128),
    /// In ns.
    Duration(i128),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// A list of metadata.
    Items(&'a [Json]),
    /// An object of metadata.
    Object(&'a Map<String, Json>),
    Headers(&'a HeaderMap),
    /// `metadata.filter_metadata`
    Namespaces(&'a DynamicMetadata),
    /// The metadata of a route, a cluster or an endpoint.
    Message(&'a BTreeMap<String, Json>),
    /// `filter_metadata` of these.
    Fixed(&'a BTreeMap<String, Json>),
    Root(Root),
}

/// A value that an expression names.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<[u8]>),
    Bytes(Box<[u8]>),
    /// As those of `Value`.
    Timestamp(i128),
    Duration(i128),
}

impl Constant {
    /// As a value.
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Constant::Null => Value::Null,
            Constant::Bool(value) => Value::Bool(*value),
            Constant::Int(value) => Value::Int(*value),
            Constant::Uint(value) => Value::Uint(*value),
            Constant::Double(value) => Value::Double(*value),
            Constant::Text(text) => Value::Text(Cow::Borrowed(text)),
            Constant::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
            Constant::Timestamp(at) => Value::Timestamp(*at),
            Constant::Duration(nanos) => Value::Duration(*nanos),
        }
    }
}

impl<'a> Value<'a> {
    /// Text that lives elsewhere.
    pub(super) fn text_of(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Value::Text(Cow::Borrowed(text.as_ref()))
    }

    pub(super) fn json(json: &'a Json) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
            Json::String(text) => Value::text_of(text),
            Json::Array(items) => Value::Items(items),
            Json::Object(object) => Value::Object(object),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, Failed> {
        if let Value::Bool(value) = self { Ok(*value) } else { Err(Failed) }
    }

    pub(super) fn text(&self) -> Result<&[u8], Failed> {
        if let Value::Text(text) = self { Ok(text) } else { Err(Failed) }
    }

    /// As Envoy prints values.
    pub(super) fn print(&self) -> String {
        match self {
            Value::Null => "NULL".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Uint(number) => number.to_string(),
            Value::Double(number) => number.to_string(),
            Value::Text(text) | Value::Bytes(text) => String::from_utf8_lossy(text).into_owned(),
            Value::Timestamp(nanos) => {
                let since = Duration::from_nanos(u64::try_from(*nanos).unwrap_or_default());
                TimeFormat::rfc3339_exact().format(UNIX_EPOCH + since)
            }
            Value::Duration(nanos) => {
                let sign = if *nanos < 0 { "-" } else { "" };
                let nanos = u64::try_from(nanos.unsigned_abs()).unwrap_or(u64::MAX);
                format!("{sign}{:?}", Duration::from_nanos(nanos)).replace('µ', "u")
            }
            Value::List(_) | Value::Items(_) => "list value".to_owned(),
            Value::Map(_) | Value::Object(_) | Value::Headers(_) | Value::Namespaces(_) | Value::Fixed(_) => {
                "map value".to_owned()
            }
            Value::Message(_) | Value::Root(_) => "message value".to_owned(),
        }
    }

    fn name(&self) -> Result<&str, Failed> {
        std::str::from_utf8(self.text()?).map_err(|_| Failed)
    }

    /// `self.name`
    pub(super) fn field(self, name: &str, facts: &'a impl Facts) -> Result<Value<'a>, Failed> {
        match self {
            Value::Root(root) => root.attribute(name, facts),
            Value::Object(object) => object.get(name).map(Value::json).ok_or(Failed),
            Value::Namespaces(namespaces) => namespaces.get(name).map(Value::Object).ok_or(Failed),
            Value::Message(all) if name == "filter_metadata" => Ok(Value::Fixed(all)),
            Value::Fixed(all) => all.get(name).map(Value::json).ok_or(Failed),
            Value::Headers(headers) => header(headers, name).ok_or(Failed),
            Value::Map(entries) => {
                let name = Value::Text(Cow::Borrowed(name.as_bytes()));
                entries.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).ok_or(Failed)
            }
            _ => Err(Failed),
        }
    }

    /// `self[index]`
    pub(super) fn index(self, index: &Value<'_>, facts: &'a impl Facts) -> Result<Value<'a>, Failed> {
        let place = || match index {
            Value::Int(place) => usize::try_from(*place).map_err(|_| Failed),
            Value::Uint(place) => usize::try_from(*place).map_err(|_| Failed),
            _ => Err(Failed),
        };
        match &self {
            Value::List(items) => items.get(place()?).cloned().ok_or(Failed),
            Value::Items(items) => items.get(place()?).map(Value::json).ok_or(Failed),
            Value::Map(entries) => {
                entries.iter().find(|(key, _)| key == index).map(|(_, value)| value.clone()).ok_or(Failed)
            }
            _ => self.field(index.name()?, facts),
        }
    }

    /// `item in self`
    pub(super) fn contains(&self, item: &Value<'_>) -> Result<bool, Failed> {
        Ok(match self {
            Value::List(items) => items.iter().any(|other| other == item),
            Value::Items(items) => items.iter().any(|other| Value::json(other) == *item),
            Value::Map(entries) => entries.iter().any(|(key, _)| key == item),
            Value::Object(object) => object.contains_key(item.name()?),
            Value::Namespaces(namespaces) => namespaces.get(item.name()?).is_some(),
            Value::Fixed(all) => all.contains_key(item.name()?),
            Value::Headers(headers) => header(headers, item.name()?).is_some(),
            _ => return Err(Failed),
        })
    }

    /// `size(self)`: characters, bytes, items.
    pub(super) fn size(&self) -> Result<i64, Failed> {
        let size = match self {
            Value::Text(text) => String::from_utf8_lossy(text).chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(items) => items.len(),
            Value::Map(entries) => entries.len(),
            Value::Items(items) => items.len(),
            Value::Object(object) => object.len(),
            Value::Namespaces(namespaces) => namespaces.iter().count(),
            Value::Fixed(all) => all.len(),
            Value::Headers(headers) => headers.iter().count(),
            _ => return Err(Failed),
        };
        i64::try_from(size).map_err(|_| Failed)
    }
}

/// All values of a header, joined.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Value<'a>> {
    let name = name.to_ascii_lowercase();
    let mut values = headers.find_all(&name);
    let first = values.next()?;
    Some(Value::Text(joined(first, values)))
}

/// What is of different kinds is not equal; numbers are compared by what they stand for.
impl PartialEq<Value<'_>> for Value<'_> {
    fn eq(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b),
            (Value::Items(a), Value::Items(b)) => a == b,
            (Value::Items(a), Value::List(b)) | (Value::List(b), Value::Items(a)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Value::json(a) == *b)
            }
            (Value::Object(a), Value::Object(b)) => a == b,
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, value)| b.iter().any(|(other, of)| key == other && value == of))
            }
            (a, b) => a.partial_cmp(b) == Some(Ordering::Equal),
        }
    }
}

impl<'b> PartialOrd<Value<'b>> for Value<'_> {
    fn partial_cmp(&self, other: &Value<'b>) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.partial_cmp(b),
            (Value::Int(a), Value::Int(b)) => a.partial_cmp(b),
            (Value::Uint(a), Value::Uint(b)) => a.partial_cmp(b),
            (Value::Int(a), Value::Uint(b)) => i128::from(*a).partial_cmp(&i128::from(*b)),
            (Value::Uint(a), Value::Int(b)) => i128::from(*a).partial_cmp(&i128::from(*b)),
            (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Value::Double(a), Value::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::Uint(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::Text(a), Value::Text(b)) | (Value::Bytes(a), Value::Bytes(b)) => a.partial_cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) | (Value::Duration(a), Value::Duration(b)) => {
                a.partial_cmp(b)
            }
            _ => None,
        }
    }
}

/// An operator's result; numbers of different kinds do not mix.
pub(super) fn calculate<'a>(
    operator: Operator,
    left: Value<'a>,
    right: Value<'a>,
) -> Result<Value<'a>, Failed> {
    use Operator::{Add, Divide, Modulo, Multiply, Subtract};
    Ok(match (left, right) {
        (Value::Int(a), Value::Int(b)) => Value::Int(
            match operator {
                Add { .. } => a.checked_add(b),
                Subtract => a.checked_sub(b),
                Multiply => a.checked_mul(b),
                Divide => a.checked_div(b),
                Modulo => a.checked_rem(b),
            }
            .ok_or(Failed)?,
        ),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(
            match operator {
                Add { .. } => a.checked_add(b),
                Subtract => a.checked_sub(b),
                Multiply => a.checked_mul(b),
                Divide => a.checked_div(b),
                Modulo => a.checked_rem(b),
            }
            .ok_or(Failed)?,
        ),
        (Value::Double(a), Value::Double(b)) => Value::Double(match operator {
            Add { .. } => a + b,
            Subtract => a - b,
            Multiply => a * b,
            Divide => a / b,
            Modulo => return Err(Failed),
        }),
        (Value::Text(a), Value::Text(b)) if operator == (Add { texts: true }) => {
            Value::Text(Cow::Owned([a, b].concat()))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) if operator == Subtract => Value::Duration(a - b),
        (Value::Timestamp(at), Value::Duration(by)) => match operator {
            Add { .. } => Value::Timestamp(at + by),
            Subtract => Value::Timestamp(at - by),
            _ => return Err(Failed),
        },
        (Value::Duration(a), Value::Duration(b)) => match operator {
            Add { .. } => Value::Duration(a + b),
            Subtract => Value::Duration(a - b),
            _ => return Err(Failed),
        },
        _ => return Err(Failed),
    })
}
