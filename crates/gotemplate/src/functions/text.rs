//! sprig's functions for text.

use aws_lc_rs::digest;
use regex::Regex;

use super::{ANY, Call, Row};
use crate::{Value, print, value::Value as V};

/// Patterns larger than this when compiled are refused.
const MAX_REGEX: usize = 1 << 20;

pub(super) const TABLE: &[Row] = &[
    Row("trim", 1, 1, |call| call.reply(call.text(0)?.trim())),
    Row("trimAll", 2, 2, |call| call.reply(trim_set(call.text(1)?, call.text(0)?, true, true))),
    Row("trimall", 2, 2, |call| call.reply(trim_set(call.text(1)?, call.text(0)?, true, true))),
    Row("trimPrefix", 2, 2, |call| {
        let text = call.text(1)?;
        call.reply(text.strip_prefix(call.text(0)?).unwrap_or(text))
    }),
    Row("trimSuffix", 2, 2, |call| {
        let text = call.text(1)?;
        call.reply(text.strip_suffix(call.text(0)?).unwrap_or(text))
    }),
    Row("upper", 1, 1, |call| call.reply(call.text(0)?.to_uppercase())),
    Row("lower", 1, 1, |call| call.reply(call.text(0)?.to_lowercase())),
    Row("title", 1, 1, |call| call.reply(words(call.text(0)?, |c| c.to_uppercase().collect()))),
    Row("untitle", 1, 1, |call| call.reply(words(call.text(0)?, |c| c.to_lowercase().collect()))),
    Row("repeat", 2, 2, |call| {
        let count = usize::try_from(whole(call.arg(0))).unwrap_or(0);
        let text = call.text(1)?;
        call.heap().spend(text.len().saturating_mul(count))?;
        Ok(Value::text(&text.repeat(count)))
    }),
    Row("substr", 3, 3, |call| {
        let (from, to, text) = (whole(call.arg(0)), whole(call.arg(1)), call.text(2)?);
        let place = |at: i64| usize::try_from(at).ok().map(|at| at.min(text.len()));
        let (from, to) = (place(from), place(to));
        let range = match (from, to) {
            (None, None) => 0..text.len(),
            (None, Some(to)) => 0..to,
            (Some(from), None) => from..text.len(),
            (Some(from), Some(to)) => from..to.max(from),
        };
        call.reply(String::from_utf8_lossy(text.as_bytes().get(range).unwrap_or_default()))
    }),
    Row("trunc", 2, 2, |call| {
        let (count, text) = (whole(call.arg(0)), call.text(1)?);
        let size = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        let bytes = match count {
            ..0 if size < text.len() => &text.as_bytes()[text.len() - size..],
            0.. if size < text.len() => &text.as_bytes()[..size],
            _ => text.as_bytes(),
        };
        call.reply(String::from_utf8_lossy(bytes))
    }),
    Row("replace", 3, 3, |call| {
        let (old, new, text) = (call.text(0)?, call.text(1)?, call.text(2)?);
        call.heap().spend(text.len().saturating_mul(new.len().max(1)).min(1 << 30) / 64)?;
        call.reply(text.replace(old, new))
    }),
    Row("contains", 2, 2, |call| Ok(Value::Bool(call.text(1)?.contains(call.text(0)?)))),
    Row("hasPrefix", 2, 2, |call| Ok(Value::Bool(call.text(1)?.starts_with(call.text(0)?)))),
    Row("hasSuffix", 2, 2, |call| Ok(Value::Bool(call.text(1)?.ends_with(call.text(0)?)))),
    Row("nospace", 1, 1, |call| call.reply(call.text(0)?.split_whitespace().collect::<String>())),
    Row("quote", 0, ANY, |call| quote(call, print::quote)),
    Row("squote", 0, ANY, |call| quote(call, |text| format!("'{text}'"))),
    Row("cat", 0, ANY, |call| {
        let texts = call.args().iter().filter(|arg| !matches!(arg, V::Nil)).map(print::default);
        call.reply(texts.collect::<Result<Vec<_>, _>>()?.join(" "))
    }),
    Row("indent", 2, 2, |call| indent(call, "")),
    Row("nindent", 2, 2, |call| indent(call, "\n")),
    Row("split", 2, 2, |call| {
        let parts = call.text(1)?.split(call.text(0)?);
        call.reply_map(parts.enumerate().map(|(index, part)| (format!("_{index}").into(), Value::text(part))))
    }),
    Row("splitn", 3, 3, |call| {
        let count = usize::try_from(whole(call.arg(1))).unwrap_or(usize::MAX);
        let parts = call.text(2)?.splitn(count, call.text(0)?);
        call.reply_map(parts.enumerate().map(|(index, part)| (format!("_{index}").into(), Value::text(part))))
    }),
    Row("splitList", 2, 2, |call| {
        let (separator, text) = (call.text(0)?, call.text(1)?);
        let parts = match separator.is_empty() {
            true => text.chars().map(|letter| Value::text(letter.encode_utf8(&mut [0; 4]))).collect(),
            false => text.split(separator).map(Value::text).collect(),
        };
        call.reply_list(parts)
    }),
    Row("join", 2, 2, |call| {
        let texts = strings(call.arg(1))?;
        call.reply(texts.join(call.text(0)?))
    }),
    Row("snakecase", 1, 1, |call| call.reply(cased(call.text(0)?, '_'))),
    Row("kebabcase", 1, 1, |call| call.reply(cased(call.text(0)?, '-'))),
    Row("plural", 3, 3, |call| {
        call.reply(if whole(call.arg(2)) == 1 { call.text(0)? } else { call.text(1)? })
    }),
    Row("sha256sum", 1, 1, |call| {
        call.reply(hex(digest::digest(&digest::SHA256, call.text(0)?.as_bytes()).as_ref()))
    }),
    Row("sha512sum", 1, 1, |call| {
        call.reply(hex(digest::digest(&digest::SHA512, call.text(0)?.as_bytes()).as_ref()))
    }),
    Row("regexMatch", 2, 2, |call| {
        let text = call.text(1)?;
        Ok(Value::Bool(regex(call.text(0)?).is_ok_and(|pattern| pattern.is_match(text))))
    }),
    Row("mustRegexMatch", 2, 2, |call| Ok(Value::Bool(regex(call.text(0)?)?.is_match(call.text(1)?)))),
    Row("regexFind", 2, 2, |call| {
        call.reply(regex(call.text(0)?)?.find(call.text(1)?).map_or("", |found| found.as_str()))
    }),
    Row("regexFindAll", 3, 3, |call| {
        let count = usize::try_from(call.int(2)?).unwrap_or(usize::MAX);
        let pattern = regex(call.text(0)?)?;
        call.reply_list(
            pattern.find_iter(call.text(1)?).take(count).map(|found| Value::text(found.as_str())).collect(),
        )
    }),
    Row("regexReplaceAll", 3, 3, |call| {
        let (pattern, text) = (regex(call.text(0)?)?, call.text(1)?);
        call.reply(pattern.replace_all(text, call.text(2)?))
    }),
    Row("regexReplaceAllLiteral", 3, 3, |call| {
        let (pattern, text) = (regex(call.text(0)?)?, call.text(1)?);
        call.reply(pattern.replace_all(text, regex::NoExpand(call.text(2)?)))
    }),
    Row("regexSplit", 3, 3, |call| {
        let (pattern, text, count) = (regex(call.text(0)?)?, call.text(1)?, call.int(2)?);
        let parts = match usize::try_from(count) {
            Ok(count) => pattern.splitn(text, count).map(Value::text).collect(),
            Err(_) => pattern.split(text).map(Value::text).collect(),
        };
        call.reply_list(parts)
    }),
    Row("regexQuoteMeta", 1, 1, |call| call.reply(regex::escape(call.text(0)?))),
];

fn regex(pattern: &str) -> Result<Regex, String> {
    let built = regex::RegexBuilder::new(pattern).size_limit(MAX_REGEX).build();
    built.map_err(|_| format!("error parsing regexp: {pattern}"))
}

/// A number as sprig reads one where it takes anything.
pub(super) fn whole(value: &Value) -> i64 {
    super::numbers::int(value)
}

fn trim_set(text: &str, set: &str, start: bool, end: bool) -> String {
    let mut text = text;
    if start {
        text = text.trim_start_matches(|letter| set.contains(letter));
    }
    if end {
        text = text.trim_end_matches(|letter| set.contains(letter));
    }
    text.to_owned()
}

fn words(text: &str, first: impl Fn(char) -> String) -> String {
    let mut out = String::new();
    let mut start = true;
    for letter in text.chars() {
        match start {
            true => out.push_str(&first(letter)),
            false => out.push(letter),
        }
        start = !letter.is_alphanumeric() && letter != '_' && letter != '\'';
    }
    out
}

fn cased(text: &str, separator: char) -> String {
    let mut out = String::new();
    let letters: Vec<char> = text.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|at| letters.get(at)).copied();
        let after = letters.get(index + 1).copied();
        if matches!(letter, '_' | '-' | ' ' | '.') {
            out.push(separator);
            continue;
        }
        let starts = letter.is_uppercase()
            && before.is_some_and(|before| {
                before.is_lowercase()
                    || before.is_numeric()
                    || (before.is_uppercase() && after.is_some_and(char::is_lowercase))
            });
        if starts && !out.ends_with(separator) {
            out.push(separator);
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// Arguments in quotes, with blanks between them; nil is left out.
fn quote(call: &mut Call<'_>, wrap: fn(&str) -> String) -> Result<Value, String> {
    let mut out = Vec::new();
    for arg in call.args() {
        if !matches!(arg, Value::Nil) {
            out.push(wrap(&print::default(arg)?));
        }
    }
    call.reply(out.join(" "))
}

fn indent(call: &mut Call<'_>, start: &str) -> Result<Value, String> {
    let blanks = usize::try_from(call.int(0)?).map_err(|_| "negative indent".to_owned())?;
    let text = call.text(1)?;
    let lines = text.matches('\n').count() + 1;
    call.heap().spend(blanks.saturating_mul(lines))?;
    let pad = " ".repeat(blanks);
    call.reply(format!("{start}{pad}{}", text.replace('\n', &format!("\n{pad}"))))
}

/// What sprig makes texts of: lists of anything, or one thing alone.
pub(super) fn strings(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(list) => {
            list.items().iter().filter(|item| !matches!(item, Value::Nil)).map(print::default).collect()
        }
        Value::Nil => Ok(Vec::new()),
        other => Ok(vec![print::default(other)?]),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
