//! Changes to the query of a path.
//!
//! Envoy reads the query into a map: parameters come out in the order of their decoded names,
//! `a` as `a=`, and new values percent-encoded. So they do here.
//! Deviation: parameters that are not changed keep their percent-encoding, and characters of a
//! new name that a query cannot contain are encoded. Envoy writes both decoded, so that an
//! encoded `&` or space changes the meaning of the query or breaks the request line.

use super::{QueryAction, QueryChange};
use crate::telemetry::access_log::format::Format;

/// A parameter: its name decoded, and `name=value` as it is written.
struct Parameter {
    name: Vec<u8>,
    text: Vec<u8>,
}

/// The path with these parameters, and without those. Names and values are written as they are.
pub(in crate::http::filters) fn edited(path: &[u8], set: &[(String, String)], removed: &[String]) -> Vec<u8> {
    let mark = path.iter().position(|byte| *byte == b'?');
    let (base, query) = path.split_at(mark.unwrap_or(path.len()));
    let mut parameters = parse(query.get(1..).unwrap_or_default());
    for (key, value) in set {
        parameters.retain(|parameter| parameter.name != key.as_bytes());
        let text = format!("{key}={value}").into_bytes();
        parameters.push(Parameter { name: key.as_bytes().to_vec(), text });
    }
    parameters.retain(|parameter| !removed.iter().any(|key| parameter.name == key.as_bytes()));
    write(base, parameters)
}

/// The path without this parameter.
pub(in crate::http::filters) fn without(path: &[u8], name: &str) -> Vec<u8> {
    change(path, &[QueryChange::Remove(name.into())], |_| Vec::new())
}

/// The path with its query changed. `evaluate` yields the value of a format.
pub(super) fn change(path: &[u8], changes: &[QueryChange], evaluate: impl Fn(&Format) -> Vec<u8>) -> Vec<u8> {
    let mark = path.iter().position(|byte| *byte == b'?');
    let (base, query) = path.split_at(mark.unwrap_or(path.len()));
    let mut parameters = parse(query.get(1..).unwrap_or_default());
    for change in changes {
        match change {
            QueryChange::Remove(key) => parameters.retain(|parameter| parameter.name != key.as_bytes()),
            QueryChange::Set { key, value, action } => {
                let exists = parameters.iter().any(|parameter| parameter.name == key.as_bytes());
                let (wanted, overwrite) = match action {
                    QueryAction::Append => (true, false),
                    QueryAction::AddIfAbsent => (!exists, false),
                    QueryAction::OverwriteOrAdd => (true, true),
                    QueryAction::OverwriteIfExists => (exists, true),
                };
                if overwrite && wanted {
                    parameters.retain(|parameter| parameter.name != key.as_bytes());
                }
                if wanted {
                    parameters.push(Parameter::new(key, &evaluate(value)));
                }
            }
        }
    }
    write(base, parameters)
}

/// The path with these parameters.
fn write(base: &[u8], mut parameters: Vec<Parameter>) -> Vec<u8> {
    // Stable: values of one name stay in order.
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    let mut changed = base.to_vec();
    for (index, parameter) in parameters.iter().enumerate() {
        changed.push(if index == 0 { b'?' } else { b'&' });
        changed.extend_from_slice(&parameter.text);
    }
    changed
}

fn parse(query: &[u8]) -> Vec<Parameter> {
    // Nothing follows a `&` at the end.
    let query = query.strip_suffix(b"&").unwrap_or(query);
    if query.is_empty() {
        return Vec::new();
    }
    let pairs = query.split(|byte| *byte == b'&').map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=');
        let name = decode(&pair[..end.unwrap_or(pair.len())]);
        let mut text = pair.to_vec();
        if end.is_none() {
            text.push(b'=');
        }
        Parameter { name, text }
    });
    pairs.collect()
}

impl Parameter {
    fn new(key: &str, value: &[u8]) -> Self {
        let mut text = Vec::with_capacity(key.len() + 1 + value.len());
        encode(key.as_bytes(), |byte| byte.is_ascii_graphic() && !b"&=#%+".contains(&byte), &mut text);
        text.push(b'=');
        encode(value, |byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte), &mut text);
        Self { name: key.as_bytes().to_vec(), text }
    }
}

/// Appends the text; bytes that may not stay are percent-encoded.
fn encode(text: &[u8], stays: impl Fn(u8) -> bool, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        if stays(*byte) {
            out.push(*byte);
        } else {
            out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

/// Percent-decodes; what is no valid encoding stays.
fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut place = 0;
    while let Some(byte) = text.get(place) {
        let pair = (digit(text.get(place + 1)), digit(text.get(place + 2)));
        if let (b'%', (Some(high), Some(low))) = (byte, pair) {
            decoded.push((high * 16 + low) as u8);
            place += 3;
        } else {
            decoded.push(*byte);
            place += 1;
        }
    }
    decoded
}
