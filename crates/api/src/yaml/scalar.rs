//! What plain scalars mean in each dialect, and the numbers that they stand for.

use std::borrow::Cow;

use super::{Dialect, Kind, Scalar};

impl Scalar<'_> {
    /// The whole number that a scalar of kind `Integer` is; `None` for other kinds and beyond i128.
    pub fn integer(&self) -> Option<i128> {
        match self.kind {
            Kind::Integer => parse_integer(&self.text),
            _ => None,
        }
    }

    /// The number that a scalar of kind `Integer` or `Float` is.
    pub fn float(&self) -> Option<f64> {
        match self.kind {
            // An integer beyond i128 can only be decimal.
            Kind::Integer => match parse_integer(&self.text) {
                Some(integer) => Some(integer as f64),
                None => self.text.parse().ok(),
            },
            Kind::Float => parse_float(&self.text),
            _ => None,
        }
    }

    /// The scalar as a JSON value, see [`super::Node::to_json`].
    pub(super) fn to_json(&self) -> serde_json::Value {
        let number = match self.kind {
            Kind::Null => return serde_json::Value::Null,
            Kind::Bool(value) => return serde_json::Value::Bool(value),
            Kind::String => None,
            Kind::Integer => self.integer().and_then(|integer| {
                i64::try_from(integer)
                    .map(serde_json::Number::from)
                    .or_else(|_| u64::try_from(integer).map(serde_json::Number::from))
                    .ok()
            }),
            Kind::Float => None,
        };
        let number = number.or_else(|| self.float().and_then(serde_json::Number::from_f64));
        match number {
            Some(number) => serde_json::Value::Number(number),
            None => serde_json::Value::String(self.text.to_string()),
        }
    }
}

/// The scalar that plain text is in a dialect; `Err` if the dialect does not have it.
pub(super) fn resolve(text: Cow<'_, str>, dialect: Dialect) -> Result<Scalar<'_>, &'static str> {
    let (text, kind) = match dialect {
        Dialect::Envoy => resolve_envoy(text),
        Dialect::Kubernetes => {
            let kind = resolve_kubernetes(&text);
            (text, kind)
        }
        Dialect::Json => {
            let kind = resolve_json(&text).ok_or("not JSON: text must be in double quotes")?;
            (text, kind)
        }
    };
    Ok(Scalar { text, kind, plain: true })
}

/// As Envoy converts YAML to JSON: yaml-cpp's booleans; whole numbers of 32 bits, also octal and
/// hexadecimal; longer ones (64 bits) become decimal text; fractions remain text.
fn resolve_envoy(text: Cow<'_, str>) -> (Cow<'_, str>, Kind) {
    if is_null(&text) {
        return (text, Kind::Null);
    }
    if let Some(value) = boolean(&text) {
        return (text, Kind::Bool(value));
    }
    match c_integer(&text) {
        Some(value) if i32::try_from(value).is_ok() => (text, Kind::Integer),
        // Text, since in JSON so large a number would lose digits.
        Some(value) => (Cow::Owned(value.to_string()), Kind::String),
        None => (text, Kind::String),
    }
}

/// As sigs.k8s.io/yaml: YAML 1.1 with Go's notation of integers.
fn resolve_kubernetes(text: &str) -> Kind {
    if is_null(text) {
        return Kind::Null;
    }
    if let Some(value) = boolean(text) {
        return Kind::Bool(value);
    }
    let Some(first) = text.bytes().next() else { return Kind::Null };
    if !matches!(first, b'0'..=b'9' | b'+' | b'-' | b'.') {
        return Kind::String;
    }
    match parse_integer(text) {
        Some(integer) if i64::try_from(integer).is_ok() || u64::try_from(integer).is_ok() => {
            return Kind::Integer;
        }
        _ => {}
    }
    if special_float(text).is_some() || is_decimal(text) { Kind::Float } else { Kind::String }
}

fn resolve_json(text: &str) -> Option<Kind> {
    match text {
        "null" | "" => return Some(Kind::Null),
        "true" => return Some(Kind::Bool(true)),
        "false" => return Some(Kind::Bool(false)),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = digits.bytes().take_while(u8::is_ascii_digit).count();
    if whole == 0 || (whole > 1 && digits.starts_with('0')) {
        return None;
    }
    if whole == digits.len() {
        return Some(Kind::Integer);
    }
    (is_decimal(text) && !text.ends_with('.')).then_some(Kind::Float)
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// YAML 1.1's booleans, which yaml-cpp and go-yaml both have.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A 64-bit integer as C++ streams read it: decimal, `0x1F`, `017`.
fn c_integer(text: &str) -> Option<i64> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'x' | b'X' | b'+' | b'-')) {
        return None;
    }
    let (_, digits) = split_sign(text);
    // Forms that Go and YAML 1.2 have, C++ not.
    if matches!(digits.as_bytes(), [b'0', b'b' | b'B', ..]) {
        return None;
    }
    parse_integer(text).and_then(|integer| i64::try_from(integer).ok())
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or("")),
        Some(b'+') => (false, text.get(1..).unwrap_or("")),
        _ => (false, text),
    }
}

/// An integer in any notation: decimal, `0x`, `0o`, `0b`, a leading zero for octal, `_` between
/// digits.
fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = split_sign(text);
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, digits.get(2..)?),
        [b'0', b'o' | b'O', ..] => (8, digits.get(2..)?),
        [b'0', b'b' | b'B', ..] => (2, digits.get(2..)?),
        [b'0', _, ..] => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    let mut value: i128 = 0;
    let mut any = false;
    for byte in digits.bytes() {
        if byte == b'_' && any {
            continue;
        }
        let digit = char::from(byte).to_digit(radix)?;
        value = value.checked_mul(i128::from(radix))?.checked_add(i128::from(digit))?;
        any = true;
    }
    any.then_some(if negative { -value } else { value })
}

/// YAML's names of infinity and NaN.
fn special_float(text: &str) -> Option<f64> {
    match text {
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Some(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Some(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Some(f64::NAN),
        _ => None,
    }
}

/// Whether this is a decimal number with or without fraction and exponent.
fn is_decimal(text: &str) -> bool {
    let (_, rest) = split_sign(text);
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(rest);
    let mut rest = rest.get(whole..).unwrap_or("");
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        fraction = digits(after);
        rest = after.get(fraction..).unwrap_or("");
    }
    if whole + fraction == 0 {
        return false;
    }
    match rest.strip_prefix(['e', 'E']) {
        None => rest.is_empty(),
        Some(exponent) => {
            let (_, exponent) = split_sign(exponent);
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
    }
}

fn parse_float(text: &str) -> Option<f64> {
    special_float(text).or_else(|| text.parse().ok())
}

/// Whether text can stand without quotes: every dialect reads it back as that text.
pub(crate) fn is_plain_text(text: &str) -> bool {
    let Some(first) = text.chars().next() else { return false };
    let is_simple =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '/' | '-' | ':' | '+');
    if !(first.is_ascii_alphanumeric() || matches!(first, '_' | '/')) || !text.chars().all(is_simple) {
        return false;
    }
    if text.ends_with(':') {
        return false;
    }
    // What looks like a number in any notation, or a date, is quoted; an address is not.
    let is_address = text.bytes().filter(|byte| *byte == b'.').count() == 3 && !text.contains('_');
    if first.is_ascii_digit()
        && !is_address
        && text.chars().all(|letter| letter.is_ascii_hexdigit() || "xXoO_.:+-".contains(letter))
    {
        return false;
    }
    matches!(resolve_envoy(Cow::Borrowed(text)).1, Kind::String) && resolve_kubernetes(text) == Kind::String
}
