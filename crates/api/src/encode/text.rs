//! JSON and YAML text of JSON values, and the text forms of times.

use std::fmt::Write;

use serde_json::Value;

use crate::yaml::is_plain_text;

/// JSON text of a value, indented by one space as Envoy's admin interface does.
pub fn json_text(value: &Value) -> String {
    let mut text = String::new();
    write_json(&mut text, value, 0);
    text.push('\n');
    text
}

fn write_json(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            out.push('{');
            for (index, (key, value)) in object.iter().enumerate() {
                out.push_str(if index > 0 { ",\n" } else { "\n" });
                spaces(out, indent + 1);
                write_quoted(out, key, true);
                out.push_str(": ");
                write_json(out, value, indent + 1);
            }
            out.push('\n');
            spaces(out, indent);
            out.push('}');
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ",\n" } else { "\n" });
                spaces(out, indent + 1);
                write_json(out, item, indent + 1);
            }
            out.push('\n');
            spaces(out, indent);
            out.push(']');
        }
        Value::String(text) => write_quoted(out, text, true),
        other => write_short(out, other),
    }
}

/// What takes the same form in JSON and YAML: empty collections, numbers, booleans, null.
fn write_short(out: &mut String, value: &Value) {
    // Writing to a String cannot fail.
    let _ = match value {
        Value::Object(_) => write!(out, "{{}}"),
        Value::Array(_) => write!(out, "[]"),
        other => write!(out, "{other}"),
    };
}

fn spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Text in double quotes. `<` and `>` are escaped in JSON, as protobuf does it.
fn write_quoted(out: &mut String, text: &str, in_json: bool) {
    out.push('"');
    for letter in text.chars() {
        let _ = match letter {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '<' | '>' if in_json => write!(out, "\\u{:04x}", u32::from(letter)),
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'..='\u{ffff}' => {
                write!(out, "\\u{:04x}", u32::from(letter))
            }
            other => write!(out, "{other}"),
        };
    }
    out.push('"');
}

/// YAML text of a value, ending in a line break. Block style, two spaces; text is quoted where any
/// dialect could take it for something else.
pub fn yaml_text(value: &Value) -> String {
    yaml(value, false)
}

/// As [`yaml_text`], where text of several lines is written line by line, as people do it in ConfigMaps.
pub fn yaml_blocks(value: &Value) -> String {
    yaml(value, true)
}

fn yaml(value: &Value, blocks: bool) -> String {
    let mut text = String::new();
    match value {
        Value::Object(object) if !object.is_empty() => write_yaml(&mut text, value, 0, blocks),
        Value::Array(items) if !items.is_empty() => write_yaml(&mut text, value, 0, blocks),
        other => {
            write_yaml_scalar(&mut text, other);
            text.push('\n');
        }
    }
    text
}

/// Writes a collection that is not empty; the cursor stands where its first line begins.
fn write_yaml(out: &mut String, value: &Value, indent: usize, blocks: bool) {
    match value {
        Value::Object(object) => {
            for (index, (key, value)) in object.iter().enumerate() {
                if index > 0 {
                    spaces(out, indent);
                }
                write_yaml_text(out, key);
                out.push(':');
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        spaces(out, indent + 2);
                        write_yaml(out, value, indent + 2, blocks);
                    }
                    // A list stands under its key, not further in.
                    Value::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        spaces(out, indent);
                        write_yaml(out, value, indent, blocks);
                    }
                    Value::String(text) if blocks && is_block(text) => write_block(out, text, indent + 2),
                    other => {
                        out.push(' ');
                        write_yaml_scalar(out, other);
                        out.push('\n');
                    }
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    spaces(out, indent);
                }
                out.push_str("- ");
                match item {
                    Value::Object(inner) if !inner.is_empty() => write_yaml(out, item, indent + 2, blocks),
                    Value::Array(inner) if !inner.is_empty() => write_yaml(out, item, indent + 2, blocks),
                    other => {
                        write_yaml_scalar(out, other);
                        out.push('\n');
                    }
                }
            }
        }
        other => write_yaml_scalar(out, other),
    }
}

/// Whether text can be written line by line.
fn is_block(text: &str) -> bool {
    let is_printable = |letter: char| letter == '\n' || letter == '\t' || !letter.is_control();
    let strange = ['\u{2028}', '\u{2029}', '\u{feff}', '\u{85}'];
    text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|letter| is_printable(letter) && !strange.contains(&letter))
}

/// Text line by line; the cursor stands behind its key's colon.
fn write_block(out: &mut String, text: &str, indent: usize) {
    let body = text.trim_end_matches('\n');
    out.push_str(match text.len() - body.len() {
        0 => " |-\n",
        1 => " |\n",
        _ => " |+\n",
    });
    for line in body.split('\n') {
        if !line.is_empty() {
            spaces(out, indent);
            out.push_str(line);
        }
        out.push('\n');
    }
    // Of several line breaks at the end the first is that of the last line.
    (body.len() + 1..text.len()).for_each(|_| out.push('\n'));
}

fn write_yaml_scalar(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => write_yaml_text(out, text),
        other => write_short(out, other),
    }
}

fn write_yaml_text(out: &mut String, text: &str) {
    if is_plain_text(text) {
        out.push_str(text);
    } else {
        write_quoted(out, text, false);
    }
}

/// `1.500s`: none, three, six or nine digits of fraction, as protobuf prints.
pub(super) fn duration(seconds: i64, nanos: i64) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos.unsigned_abs()))
}

fn fraction(nanos: u64) -> String {
    match nanos {
        0 => String::new(),
        _ if nanos.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => format!(".{:06}", nanos / 1_000),
        _ => format!(".{nanos:09}"),
    }
}

/// RFC 3339 in UTC: `2006-01-02T15:04:05.123Z`.
pub(super) fn timestamp(seconds: i64, nanos: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = fraction(nanos.unsigned_abs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of a number of days from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Counted from 0000-03-01, in cycles of 400 years, so that leap days end a year.
    let days = days + 719_468;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + cycle * 400 + i64::from(month <= 2), month, day)
}

/// A field path of a FieldMask in camelCase.
pub(super) fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for letter in name.chars() {
        match letter {
            '_' => upper = true,
            letter if upper => {
                camel.push(letter.to_ascii_uppercase());
                upper = false;
            }
            letter => camel.push(letter),
        }
    }
    camel
}
