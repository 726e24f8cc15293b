//! The functions of Go's text/template.

use std::cmp::Ordering;

use super::{ANY, Call, Row};
use crate::{Value, print};

pub(super) const TABLE: &[Row] = &[
    // Evaluated in `eval`, as they stop early.
    Row("and", 1, ANY, |call| Ok(call.arg(0).clone())),
    Row("or", 1, ANY, |call| Ok(call.arg(0).clone())),
    Row("not", 1, 1, |call| Ok(Value::Bool(!call.arg(0).truth()))),
    Row("call", 1, ANY, |call| Err(format!("non-function of type {}", call.arg(0).type_name()))),
    Row("html", 0, ANY, |call| call.reply(html(&print::sprint(call.args())?))),
    Row("js", 0, ANY, |call| call.reply(js(&print::sprint(call.args())?))),
    Row("urlquery", 0, ANY, |call| call.reply(urlquery(&print::sprint(call.args())?))),
    Row("index", 1, ANY, index),
    Row("slice", 1, ANY, slice),
    Row("len", 1, 1, |call| length(call.arg(0))),
    Row("print", 0, ANY, |call| call.reply(print::sprint(call.args())?)),
    Row("printf", 1, ANY, |call| call.reply(print::sprintf(call.text(0)?, call.rest(1))?)),
    Row("println", 0, ANY, |call| call.reply(print::sprintln(call.args())?)),
    Row("eq", 1, ANY, eq),
    Row("ne", 2, 2, |call| Ok(Value::Bool(!equal(call.arg(0), call.arg(1))?))),
    Row("lt", 2, 2, |call| ordered(call, &[Ordering::Less])),
    Row("le", 2, 2, |call| ordered(call, &[Ordering::Less, Ordering::Equal])),
    Row("gt", 2, 2, |call| ordered(call, &[Ordering::Greater])),
    Row("ge", 2, 2, |call| ordered(call, &[Ordering::Greater, Ordering::Equal])),
];

fn index(call: &mut Call<'_>) -> Result<Value, String> {
    let mut item = call.arg(0).clone();
    if matches!(item, Value::Nil) {
        return Err("index of untyped nil".to_owned());
    }
    for key in call.rest(1) {
        item = match (&item, key) {
            (Value::Nil, _) => return Err("index of nil pointer".to_owned()),
            (Value::Map(map), Value::String(key)) => map.value(key),
            (Value::Map(_), Value::Nil) => return Err("value is nil; should be of type string".to_owned()),
            (Value::Map(_), other) => {
                return Err(format!("value has type {}; should be string", other.type_name()));
            }
            (Value::List(list), Value::Int(index)) => {
                let found = usize::try_from(*index).ok().and_then(|index| list.items().get(index));
                found.cloned().ok_or_else(|| format!("index out of range: {index}"))?
            }
            (Value::String(text), Value::Int(index)) => {
                let found = usize::try_from(*index).ok().and_then(|index| text.as_bytes().get(index));
                Value::Int(i64::from(*found.ok_or_else(|| format!("index out of range: {index}"))?))
            }
            (Value::List(_) | Value::String(_), Value::Nil) => {
                return Err("cannot index slice/array with nil".to_owned());
            }
            (Value::List(_) | Value::String(_), other) => {
                return Err(format!("cannot index slice/array with type {}", other.type_name()));
            }
            (other, _) => return Err(format!("can't index item of type {}", other.type_name())),
        };
    }
    Ok(item)
}

fn slice(call: &mut Call<'_>) -> Result<Value, String> {
    let length = match call.arg(0) {
        Value::String(text) => text.len(),
        Value::List(list) => list.items().len(),
        Value::Nil => return Err("slice of untyped nil".to_owned()),
        other => return Err(format!("can't slice item of type {}", other.type_name())),
    };
    let bounds = call.rest(1);
    if bounds.len() > 3 {
        return Err(format!("too many slice indexes: {}", bounds.len()));
    }
    if bounds.len() == 3 && matches!(call.arg(0), Value::String(_)) {
        return Err("cannot 3-index slice a string".to_owned());
    }
    let mut at = Vec::new();
    for bound in bounds {
        let Value::Int(bound) = bound else {
            return Err(format!("cannot index slice/array with type {}", bound.type_name()));
        };
        match usize::try_from(*bound) {
            Ok(index) if index <= length => at.push(index),
            _ => return Err(format!("index out of range: {bound}")),
        }
    }
    let (from, to) = (at.first().copied().unwrap_or(0), at.get(1).copied().unwrap_or(length));
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    match call.arg(0) {
        // Bytes as in Go; a letter cut in the middle is replaced.
        Value::String(text) => call.reply(String::from_utf8_lossy(&text.as_bytes()[from..to])),
        Value::List(list) => call.reply_list(list.items()[from..to].to_vec()),
        _ => Ok(Value::Nil),
    }
}

fn length(value: &Value) -> Result<Value, String> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::List(list) => list.items().len(),
        Value::Map(map) => map.len(),
        Value::Nil => return Err("len of nil pointer".to_owned()),
        other => return Err(format!("len of type {}", other.type_name())),
    };
    Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
}

fn eq(call: &mut Call<'_>) -> Result<Value, String> {
    if call.args().len() < 2 {
        return Err("missing argument for comparison".to_owned());
    }
    for other in call.rest(1) {
        if equal(call.arg(0), other)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Int(a), Value::Int(b)) => Ok(a == b),
        (Value::Float(a), Value::Float(b)) => Ok(a == b),
        (Value::String(a), Value::String(b)) => Ok(a == b),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (
            Value::List(_) | Value::Map(_) | Value::Object(_),
            Value::List(_) | Value::Map(_) | Value::Object(_),
        ) => Err(format!("non-comparable type {}: {}", print::default(a)?, a.type_name())),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn ordered(call: &mut Call<'_>, wanted: &[Ordering]) -> Result<Value, String> {
    let ordering = match (call.arg(0), call.arg(1)) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (
            Value::Int(_) | Value::Float(_) | Value::String(_) | Value::Bool(_),
            Value::Int(_) | Value::Float(_) | Value::String(_) | Value::Bool(_),
        ) if call.arg(0).kind() != call.arg(1).kind() => {
            return Err("incompatible types for comparison".to_owned());
        }
        _ => return Err("invalid type for comparison".to_owned()),
    };
    Ok(Value::Bool(ordering.is_some_and(|ordering| wanted.contains(&ordering))))
}

/// Go's template.HTMLEscapeString.
fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            other => out.push(other),
        }
    }
    out
}

/// Go's template.JSEscapeString.
fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", letter as u32)),
            letter if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') => {
                out.push_str(&format!("\\u{:04X}", letter as u32));
            }
            other => out.push(other),
        }
    }
    out
}

/// Go's url.QueryEscape.
pub(super) fn urlquery(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
