//! YAML as sigs.k8s.io/yaml writes and reads it: sorted keys, two blanks, lists under their key
//! without indent, quotes only where they are needed, texts of several lines as blocks.

use std::cmp::Ordering;

use leno_api::yaml::{Dialect, Kind, Node, Value as Part};
use serde_json::Value as Json;

/// Reads the first document of a text; nothing is null.
pub fn parse(text: &str) -> Result<Json, String> {
    let documents = leno_api::yaml::parse(text, Dialect::Kubernetes).map_err(|error| error.to_string())?;
    Ok(documents.first().map_or(Json::Null, Node::to_json))
}

/// Writes a value, a line break at the end.
pub fn text(value: &Json) -> String {
    let mut out = String::new();
    match value {
        Json::Object(object) if !object.is_empty() => write(&mut out, value, 0, false),
        Json::Array(items) if !items.is_empty() => write(&mut out, value, 0, false),
        other => {
            scalar(&mut out, other, 2, false);
            out.push('\n');
        }
    }
    out
}

/// Writes a collection that is not empty. `open`: its first line has begun (after `- `).
fn write(out: &mut String, value: &Json, indent: usize, open: bool) {
    let pad = " ".repeat(indent);
    let mut first = open;
    let mut start = |out: &mut String| {
        if !std::mem::take(&mut first) {
            out.push_str(&pad);
        }
    };
    match value {
        Json::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_by(|(a, _), (b, _)| key_order(a, b));
            for (key, value) in entries {
                start(out);
                plain_or_quoted(out, key, 0, true);
                out.push(':');
                match value {
                    Json::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        write(out, value, indent + 2, false);
                    }
                    Json::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        write(out, value, indent, false);
                    }
                    other => {
                        out.push(' ');
                        scalar(out, other, indent + 2, false);
                        out.push('\n');
                    }
                }
            }
        }
        Json::Array(items) => {
            for item in items {
                start(out);
                out.push_str("- ");
                match item {
                    Json::Object(inner) if !inner.is_empty() => write(out, item, indent + 2, true),
                    Json::Array(inner) if !inner.is_empty() => write(out, item, indent + 2, true),
                    other => {
                        scalar(out, other, indent + 2, false);
                        out.push('\n');
                    }
                }
            }
        }
        other => scalar(out, other, indent, false),
    }
}

fn scalar(out: &mut String, value: &Json, indent: usize, key: bool) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (None, None) => out.push_str(&crate::print::float(number.as_f64().unwrap_or(0.0))),
            _ => out.push_str(&number.to_string()),
        },
        Json::String(text) => plain_or_quoted(out, text, indent, key),
        Json::Array(_) => out.push_str("[]"),
        Json::Object(_) => out.push_str("{}"),
    }
}

/// What a text looks like to YAML's emitter.
#[derive(Default)]
struct Looks {
    plain: bool,
    single: bool,
    block: bool,
}

fn plain_or_quoted(out: &mut String, text: &str, indent: usize, key: bool) {
    let looks = looks(text);
    if text.contains('\n') && looks.block && !key {
        block(out, text, indent);
    } else if text.contains('\n') || (looks.plain && !resolves_to_text(text)) {
        // A key, or a block that could not be read back.
        quoted(out, text, indent, key);
    } else if looks.plain {
        folded(out, text, indent, key, |out, letter| out.push(letter));
    } else if looks.single {
        out.push('\'');
        folded(out, text, indent, key, |out, letter| match letter {
            '\'' => out.push_str("''"),
            other => out.push(other),
        });
        out.push('\'');
    } else {
        quoted(out, text, indent, key);
    }
}

/// The column after which lines are folded.
const WIDTH: usize = 80;

/// Writes text, going on in the next line at the first single blank beyond the width.
fn folded(out: &mut String, text: &str, indent: usize, key: bool, mut write: impl FnMut(&mut String, char)) {
    let line = out.rfind('\n').map_or(0, |at| at + 1);
    let mut column = out[line..].chars().count();
    let mut blank_before = false;
    let mut letters = text.chars().peekable();
    let mut first = true;
    while let Some(letter) = letters.next() {
        let single = letter == ' ' && !blank_before && letters.peek().is_some_and(|next| *next != ' ');
        if single && !key && !first && column > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            write(out, letter);
            column += 1;
        }
        blank_before = letter == ' ';
        first = false;
    }
}

/// Whether a reader of YAML 1.1 takes the plain text for text.
fn resolves_to_text(text: &str) -> bool {
    if text.is_empty() {
        return false;
    }
    // What these mean as keys they do not mean as values.
    if matches!(text, "=" | "<<") {
        return true;
    }
    let read = format!("- {text}");
    let plain = match leno_api::yaml::parse(&read, Dialect::Kubernetes) {
        Ok(documents) => match documents.first().map(|node| &node.value) {
            Some(Part::Sequence(items)) => match items.first().map(|node| &node.value) {
                Some(Part::Scalar(scalar)) => scalar.kind == Kind::String,
                _ => true,
            },
            _ => true,
        },
        Err(_) => true,
    };
    plain && !sexagesimal(text) && !date(text)
}

/// `1:20` is a number in base 60 to old readers.
fn sexagesimal(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some((first, rest)) = digits.split_once(':') else { return false };
    let (rest, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    let number =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    number(first)
        && fraction.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
        && rest.split(':').all(|part| {
            (part.len() == 1 || part.len() == 2 && part.starts_with(|c| ('0'..='5').contains(&c)))
                && part.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// `2001-01-01` is a time.
fn date(text: &str) -> bool {
    let Some((day, rest)) = text.split_at_checked(10).or_else(|| (text.len() >= 8).then_some((text, "")))
    else {
        return false;
    };
    let parts: Vec<_> = day.trim_end_matches(['T', 't', ' ']).split('-').collect();
    let [year, month, day] = parts.as_slice() else { return false };
    let number = |text: &str, sizes: &[usize]| {
        sizes.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    number(year, &[4])
        && number(month, &[1, 2])
        && number(day, &[1, 2])
        && rest.bytes().all(|byte| {
            byte.is_ascii_digit() || matches!(byte, b':' | b'.' | b'T' | b't' | b'Z' | b' ' | b'+' | b'-')
        })
}

/// libyaml's analysis of a scalar, as far as block style needs it.
fn looks(text: &str) -> Looks {
    if text.is_empty() {
        return Looks { plain: true, single: true, block: false };
    }
    let letters: Vec<char> = text.chars().collect();
    let is_break = |letter: char| matches!(letter, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut indicators = text.starts_with("---") || text.starts_with("...");
    let (mut special, mut breaks) = (false, false);
    let (mut leading_space, mut leading_break, mut trailing_space, mut trailing_break) =
        (false, false, false, false);
    let (mut break_space, mut space_break) = (false, false);
    let (mut was_space, mut was_break) = (false, false);
    let mut after_blank = true;
    for (index, letter) in letters.iter().copied().enumerate() {
        let next = letters.get(index + 1).copied();
        let blank_follows = next.is_none_or(|next| matches!(next, ' ' | '\t') || is_break(next));
        let first = index == 0;
        indicators |= match letter {
            '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@'
            | '`'
                if first =>
            {
                true
            }
            '?' | ':' | '-' if first => blank_follows,
            ':' => blank_follows,
            '#' => after_blank,
            _ => false,
        };
        special |= !printable(letter);
        breaks |= is_break(letter);
        if letter == ' ' {
            leading_space |= first;
            trailing_space |= next.is_none();
            break_space |= was_break;
            (was_space, was_break) = (true, false);
        } else if is_break(letter) {
            leading_break |= first;
            trailing_break |= next.is_none();
            space_break |= was_space;
            (was_space, was_break) = (false, true);
        } else {
            (was_space, was_break) = (false, false);
        }
        after_blank = matches!(letter, ' ' | '\t') || is_break(letter);
    }
    let edges = leading_space || leading_break || trailing_space || trailing_break;
    let bad = space_break || special;
    Looks {
        plain: !(edges || break_space || bad || breaks || indicators),
        single: !(break_space || bad),
        block: !(trailing_space || bad),
    }
}

fn printable(letter: char) -> bool {
    matches!(letter, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        && letter != '\u{feff}'
}

/// A block (`|`), with hints for its indent and end.
fn block(out: &mut String, text: &str, indent: usize) {
    out.push('|');
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    if !text.ends_with('\n') {
        out.push('-');
    } else if text == "\n" || text.ends_with("\n\n") {
        out.push('+');
    }
    let body = text.strip_suffix('\n').unwrap_or(text);
    let pad = " ".repeat(indent);
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&pad);
            out.push_str(line);
        }
    }
}

/// Double quotes, with escapes.
fn quoted(out: &mut String, text: &str, indent: usize, key: bool) {
    out.push('"');
    folded(out, text, indent, key, |out, letter| match letter {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\0' => out.push_str("\\0"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\t' => out.push_str("\\t"),
        '\n' => out.push_str("\\n"),
        '\x0b' => out.push_str("\\v"),
        '\x0c' => out.push_str("\\f"),
        '\r' => out.push_str("\\r"),
        '\x1b' => out.push_str("\\e"),
        '\u{85}' => out.push_str("\\N"),
        '\u{a0}' => out.push_str("\\_"),
        '\u{2028}' => out.push_str("\\L"),
        '\u{2029}' => out.push_str("\\P"),
        letter if printable(letter) => out.push(letter),
        letter => {
            let code = letter as u32;
            out.push_str(&match code {
                0..=0xff => format!("\\x{code:02X}"),
                0x100..=0xffff => format!("\\u{code:04X}"),
                _ => format!("\\U{code:08X}"),
            });
        }
    });
    out.push('"');
}

/// Keys as people sort them: numbers in texts by their value, letters after all else.
fn key_order(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut digits = false;
    for (index, (left, right)) in a.iter().zip(&b).enumerate() {
        if left == right {
            digits = left.is_numeric();
            continue;
        }
        match (left.is_alphabetic(), right.is_alphabetic()) {
            (true, true) => return left.cmp(right),
            (true, false) => return if digits { Ordering::Less } else { Ordering::Greater },
            (false, true) => return if digits { Ordering::Greater } else { Ordering::Less },
            (false, false) => {}
        }
        // Leading zeros count only where no other digit precedes them.
        let zeros = *left == '0' || *right == '0';
        let preceded = zeros && a[..index].iter().rev().take_while(|c| c.is_numeric()).any(|c| *c != '0');
        let number = |letters: &[char]| {
            let mut value = i64::from(preceded);
            let mut length = 0;
            for letter in letters.iter().skip(index).take_while(|letter| letter.is_ascii_digit()) {
                value = value.wrapping_mul(10).wrapping_add(i64::from(*letter as u32 - '0' as u32));
                length += 1;
            }
            (value, length)
        };
        let (left_number, right_number) = (number(&a), number(&b));
        return left_number.cmp(&right_number).then_with(|| left.cmp(right));
    }
    a.len().cmp(&b.len())
}
