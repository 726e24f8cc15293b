//! JSON, YAML, TOML and base64.

use leno_base::base64;
use serde_json::Value as Json;

use super::{Call, Row};
use crate::{
    Map, Numbers, Value, print,
    value::{MAX_DEPTH, too_deep},
    yaml,
};

/// What sprig has.
pub(super) const SPRIG: &[Row] = &[
    Row("b64enc", 1, 1, |call| call.reply(base64::encode(call.text(0)?.as_bytes()))),
    Row("b64dec", 1, 1, |call| {
        let text = call.text(0)?;
        match base64::decode(text.as_bytes()) {
            Some(bytes) => call.reply(String::from_utf8_lossy(&bytes)),
            None => {
                let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
                let at = text.bytes().position(|byte| !is_digit(&byte)).unwrap_or(text.len());
                call.reply(format!("illegal base64 data at input byte {at}"))
            }
        }
    }),
    Row("toJson", 1, 1, |call| call.reply(json(call.arg(0)).unwrap_or_default())),
    Row("mustToJson", 1, 1, |call| call.reply(json(call.arg(0))?)),
    Row("toRawJson", 1, 1, |call| call.reply(raw_json(&call.arg(0).to_json()?))),
    Row("mustToRawJson", 1, 1, |call| call.reply(raw_json(&call.arg(0).to_json()?))),
    Row("toPrettyJson", 1, 1, |call| call.reply(pretty_json(call.arg(0))?)),
    Row("mustToPrettyJson", 1, 1, |call| call.reply(pretty_json(call.arg(0))?)),
    Row("fromJson", 1, 1, |call| match serde_json::from_str::<Json>(call.text(0)?) {
        Ok(json) => call.heap().json(&json, Numbers::Floats),
        Err(_) => call.reply(""),
    }),
    Row("mustFromJson", 1, 1, |call| {
        let json = serde_json::from_str::<Json>(call.text(0)?).map_err(|error| error.to_string())?;
        call.heap().json(&json, Numbers::Floats)
    }),
    Row("urlquery", 0, super::ANY, |call| call.reply(super::builtin::urlquery(&print::sprint(call.args())?))),
];

/// What Helm adds, or has differently.
pub(super) const HELM: &[Row] = &[
    Row("toYaml", 1, 1, |call| call.reply(yaml::text(&call.arg(0).to_json()?).trim_end_matches('\n'))),
    Row("mustToYaml", 1, 1, |call| call.reply(yaml::text(&call.arg(0).to_json()?).trim_end_matches('\n'))),
    Row("fromYaml", 1, 1, |call| read(call, yaml::parse(call.text(0)?), Json::is_object, false)),
    Row("fromYamlArray", 1, 1, |call| read(call, yaml::parse(call.text(0)?), Json::is_array, true)),
    Row("fromJson", 1, 1, |call| {
        let json = serde_json::from_str(call.text(0)?).map_err(|error| error.to_string());
        read(call, json, Json::is_object, false)
    }),
    Row("fromJsonArray", 1, 1, |call| {
        let json = serde_json::from_str(call.text(0)?).map_err(|error| error.to_string());
        read(call, json, Json::is_array, true)
    }),
    Row("toToml", 1, 1, |call| {
        let mut out = String::new();
        match call.arg(0) {
            Value::Map(map) => toml_table(&mut out, &mut Vec::new(), map)?,
            Value::Nil => {}
            other => return Err(format!("toToml: {} is no map", other.type_name())),
        }
        call.reply(out)
    }),
];

/// What Helm makes of text that should be a map (or a list): errors become part of the value.
fn read(
    call: &Call<'_>,
    parsed: Result<Json, String>,
    fits: fn(&Json) -> bool,
    list: bool,
) -> Result<Value, String> {
    let error = match parsed {
        Ok(json) if fits(&json) => return call.heap().json(&json, Numbers::Floats),
        Ok(Json::Null) => None,
        Ok(_) => Some(format!(
            "json: cannot unmarshal into Go value of type {}",
            if list { "[]interface {}" } else { "map[string]interface {}" }
        )),
        Err(error) => Some(error),
    };
    match (error, list) {
        (None, true) => call.reply_list(Vec::new()),
        (None, false) => call.reply_map([]),
        (Some(error), true) => call.reply_list(vec![Value::text(&error)]),
        (Some(error), false) => call.reply_map([("Error".into(), Value::text(&error))]),
    }
}

/// encoding/json: sorted keys, and what HTML minds is escaped.
fn json(value: &Value) -> Result<String, String> {
    Ok(escape(&raw_json(&value.to_json()?)))
}

/// What encoding/json does to text that could stand in HTML.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", letter as u32)),
            other => out.push(other),
        }
    }
    out
}

fn raw_json(value: &Json) -> String {
    value.to_string()
}

fn pretty_json(value: &Value) -> Result<String, String> {
    Ok(escape(&serde_json::to_string_pretty(&value.to_json()?).unwrap_or_default()))
}

fn toml_table(out: &mut String, path: &mut Vec<String>, table: &Map) -> Result<(), String> {
    if path.len() > usize::from(MAX_DEPTH) {
        return Err(too_deep());
    }
    let nested = |value: &Value| match value {
        Value::Map(_) => true,
        Value::List(list) => {
            !list.items().is_empty() && list.items().iter().all(|it| matches!(it, Value::Map(_)))
        }
        _ => false,
    };
    let pad = "  ".repeat(path.len());
    let entries = table.entries();
    for (key, value) in entries.iter().filter(|(_, value)| !nested(value) && !matches!(value, Value::Nil)) {
        out.push_str(&format!("{pad}{} = {}\n", toml_key(key), toml_value(value, 0)?));
    }
    for (key, value) in entries.iter().filter(|(_, value)| nested(value)) {
        path.push(toml_key(key));
        let name = path.join(".");
        // An empty line before each table of the top, and before each element of lists.
        let gap = if path.len() == 1 && !out.is_empty() { "\n" } else { "" };
        match value {
            Value::Map(inner) => {
                out.push_str(&format!("{gap}{pad}[{name}]\n"));
                toml_table(out, path, inner)?;
            }
            Value::List(list) => {
                for item in list.items() {
                    if let Value::Map(inner) = item {
                        out.push_str(&format!("\n{pad}[[{name}]]\n"));
                        toml_table(out, path, inner)?;
                    }
                }
            }
            _ => {}
        }
        path.pop();
    }
    Ok(())
}

fn toml_key(key: &str) -> String {
    let bare = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare { key.to_owned() } else { print::quote(key) }
}

fn toml_value(value: &Value, depth: u16) -> Result<String, String> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    Ok(match value {
        Value::Nil => return Err("toToml: nil in a list".to_owned()),
        Value::Float(number) if number.fract() == 0.0 => format!("{number:.1}"),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => print::default(value)?,
        Value::String(text) => print::quote(text),
        Value::List(list) => {
            let items = list.items().iter().map(|item| toml_value(item, depth + 1));
            format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(", "))
        }
        Value::Map(map) => {
            let entries = map.entries().into_iter().map(|(key, value)| {
                Ok::<_, String>(format!("{} = {}", toml_key(&key), toml_value(&value, depth + 1)?))
            });
            format!("{{{}}}", entries.collect::<Result<Vec<_>, _>>()?.join(", "))
        }
        Value::Object(object) => print::quote(&object.to_json().to_string()),
    })
}
