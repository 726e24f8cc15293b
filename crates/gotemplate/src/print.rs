//! Values as text, as Go's fmt prints them.

use crate::value::{MAX_DEPTH, Value, too_deep};

/// What an action writes: `fmt.Fprint`, and `<no value>` for nil.
pub fn value(value: &Value) -> Result<String, String> {
    match value {
        Value::Nil => Ok("<no value>".to_owned()),
        other => default(other),
    }
}

/// `%v`.
pub fn default(value: &Value) -> Result<String, String> {
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: u16) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value {
        Value::Nil => out.push_str("<nil>"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::String(text) => out.push_str(text),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.items().iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                write(out, item, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push_str("map[");
            for (index, (key, item)) in map.entries().iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                write(out, item, depth + 1)?;
            }
            out.push(']');
        }
        // What Go prints of structs is for nobody's eyes; JSON says the same.
        Value::Object(object) => out.push_str(&object.text().unwrap_or_else(|| object.to_json().to_string())),
    }
    if out.len() > 64 << 20 {
        return Err("the text is too long".to_owned());
    }
    Ok(())
}

/// A float as `%v` prints it: the shortest text that reads the same, `1e+06` from a million on.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    exponential(value, None, 6)
}

/// `%g`: exponents below -4 and from `threshold` on are written as such.
fn exponential(value: f64, precision: Option<usize>, threshold: i32) -> String {
    let text = match precision {
        Some(digits) => format!("{:.*e}", digits.max(1) - 1, value),
        None => format!("{value:e}"),
    };
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = match mantissa.contains('.') && precision.is_some() {
        true => mantissa.trim_end_matches('0').trim_end_matches('.'),
        false => mantissa,
    };
    if exponent < -4 || exponent >= threshold {
        return format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    // Digits moved by hand: no second rounding.
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let point = exponent + 1;
    let text = if point <= 0 {
        format!("0.{}{digits}", "0".repeat(usize::try_from(-point).unwrap_or(0)))
    } else {
        let point = usize::try_from(point).unwrap_or(0);
        match digits.len() {
            length if length <= point => format!("{digits}{}", "0".repeat(point - length)),
            _ => format!("{}.{}", &digits[..point], &digits[point..]),
        }
    };
    format!("{sign}{text}")
}

/// `fmt.Sprint`: blanks between operands of which neither is text.
pub fn sprint(values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut text_before = true;
    for (index, value) in values.iter().enumerate() {
        let text = matches!(value, Value::String(_));
        if index > 0 && !text && !text_before {
            out.push(' ');
        }
        out.push_str(&default(value)?);
        text_before = text;
    }
    Ok(out)
}

/// `fmt.Sprintln`.
pub fn sprintln(values: &[Value]) -> Result<String, String> {
    let texts = values.iter().map(default).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("{}\n", texts.join(" ")))
}

/// Flags, width and precision of a verb.
#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Widths and precisions beyond this are refused.
const MAX_WIDTH: usize = 10_000;

/// `fmt.Sprintf`.
pub fn sprintf(format: &str, args: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut letters = format.chars().peekable();
    let mut next = 0;
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = letters.peek() {
            match flag {
                '-' => {
                    spec.minus = true;
                    spec.zero = false;
                }
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                '0' => spec.zero = !spec.minus,
                _ => break,
            }
            letters.next();
        }
        let mut number =
            |letters: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<Option<usize>, String> {
                if letters.peek() == Some(&'*') {
                    letters.next();
                    let width = args.get(next);
                    next += 1;
                    return match width {
                        Some(Value::Int(width)) => match usize::try_from(width.unsigned_abs()) {
                            Ok(size) if size <= MAX_WIDTH => Ok(Some(size)),
                            _ => Err("printf: width too large".to_owned()),
                        },
                        _ => Err("printf: %!(BADWIDTH)".to_owned()),
                    };
                }
                let mut number = None;
                while let Some(digit) = letters.peek().and_then(|letter| letter.to_digit(10)) {
                    letters.next();
                    number = Some(number.unwrap_or(0) * 10 + digit as usize);
                    if number > Some(MAX_WIDTH) {
                        return Err("printf: width too large".to_owned());
                    }
                }
                Ok(number)
            };
        spec.width = number(&mut letters)?;
        if letters.peek() == Some(&'.') {
            letters.next();
            spec.precision = Some(number(&mut letters)?.unwrap_or(0));
        }
        let Some(verb) = letters.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(arg) = args.get(next) else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        next += 1;
        out.push_str(&verb_text(&spec, verb, arg)?);
    }
    if let Some(extra) = args.get(next..).filter(|extra| !extra.is_empty()) {
        let extra: Vec<_> = extra.iter().map(typed).collect::<Result<_, _>>()?;
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

/// `type=value`, as in what fmt says of bad verbs.
fn typed(value: &Value) -> Result<String, String> {
    Ok(match value {
        Value::Nil => "<nil>".to_owned(),
        other => format!("{}={}", other.type_name(), default(other)?),
    })
}

fn verb_text(spec: &Spec, verb: char, arg: &Value) -> Result<String, String> {
    let bad = || Ok(format!("%!{verb}({})", typed(arg)?));
    let text = match (verb, arg) {
        ('v', Value::Int(number)) => {
            return Ok(pad_number(spec, &sign(spec, *number < 0, &number.unsigned_abs().to_string())));
        }
        ('v', Value::String(text)) if spec.sharp => quote(text),
        ('v', Value::Float(number)) => {
            let text = match spec.precision {
                Some(digits) => {
                    exponential(*number, Some(digits), i32::try_from(digits.max(1)).unwrap_or(21))
                }
                None => float(*number),
            };
            return Ok(pad_number(spec, &signed(spec, &text)));
        }
        ('v', other) => truncate(spec, default(other)?),
        ('T', other) => other.type_name(),
        ('t', Value::Bool(value)) => value.to_string(),
        ('d', Value::Int(number)) => {
            let mut digits = number.unsigned_abs().to_string();
            if let Some(precision) = spec.precision {
                digits = format!("{digits:0>precision$}");
            }
            return Ok(pad_number(spec, &sign(spec, *number < 0, &digits)));
        }
        ('b' | 'o' | 'x' | 'X', Value::Int(number)) => {
            let size = number.unsigned_abs();
            let digits = match verb {
                'b' => format!("{size:b}"),
                'o' => format!("{size:o}"),
                'x' => format!("{size:x}"),
                _ => format!("{size:X}"),
            };
            let prefix = match (spec.sharp, verb) {
                (false, _) => "",
                (_, 'b') => "0b",
                (_, 'o') => "0",
                (_, 'x') => "0x",
                _ => "0X",
            };
            return Ok(pad_number(spec, &sign(spec, *number < 0, &format!("{prefix}{digits}"))));
        }
        ('c', Value::Int(number)) => u32::try_from(*number)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or(char::REPLACEMENT_CHARACTER)
            .to_string(),
        ('q', Value::Int(number)) => {
            let letter = u32::try_from(*number).ok().and_then(char::from_u32);
            format!("'{}'", letter.unwrap_or(char::REPLACEMENT_CHARACTER).escape_debug())
        }
        ('U', Value::Int(number)) => format!("U+{number:04X}"),
        ('f' | 'F' | 'e' | 'E' | 'g' | 'G', Value::Float(number)) => {
            let text = match verb {
                'f' | 'F' => format!("{:.*}", spec.precision.unwrap_or(6), number),
                'e' | 'E' => {
                    let text = format!("{:.*e}", spec.precision.unwrap_or(6), number);
                    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                    let exponent: i32 = exponent.parse().unwrap_or(0);
                    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
                }
                _ => match spec.precision {
                    Some(digits) => {
                        exponential(*number, Some(digits), i32::try_from(digits.max(1)).unwrap_or(21))
                    }
                    None => float(*number),
                },
            };
            let text = if verb.is_ascii_uppercase() { text.to_uppercase() } else { text };
            return Ok(pad_number(spec, &signed(spec, &text)));
        }
        ('s', Value::String(_)) => truncate(spec, default(arg)?),
        ('q', Value::String(text)) => match spec.sharp && !text.contains('`') {
            true => format!("`{text}`"),
            false => quote(text),
        },
        ('x' | 'X', Value::String(text)) => {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            if verb == 'X' { hex.to_uppercase() } else { hex }
        }
        // Verbs go to the elements of collections.
        ('s' | 'q' | 'd' | 'x' | 'f' | 'g' | 't', Value::List(list)) => {
            let items = list.items().iter().map(|item| verb_text(spec, verb, item));
            return Ok(format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(" ")));
        }
        ('s' | 'q' | 'd', Value::Map(map)) => {
            let mut items = Vec::new();
            for (key, item) in map.entries() {
                let key = verb_text(spec, verb, &Value::String(key))?;
                items.push(format!("{key}:{}", verb_text(spec, verb, &item)?));
            }
            return Ok(format!("map[{}]", items.join(" ")));
        }
        ('s' | 'q' | 'd' | 'x' | 'f' | 't' | 'g', Value::Nil) => return Ok(format!("%!{verb}(<nil>)")),
        _ => return bad(),
    };
    Ok(pad(spec, &text))
}

fn truncate(spec: &Spec, text: String) -> String {
    match spec.precision {
        Some(limit) => text.chars().take(limit).collect(),
        None => text,
    }
}

fn sign(spec: &Spec, negative: bool, digits: &str) -> String {
    let sign = match (negative, spec.plus, spec.space) {
        (true, ..) => "-",
        (_, true, _) => "+",
        (.., true) => " ",
        _ => "",
    };
    format!("{sign}{digits}")
}

fn signed(spec: &Spec, text: &str) -> String {
    match text.strip_prefix('-') {
        Some(digits) => sign(spec, true, digits),
        None => sign(spec, false, text),
    }
}

fn pad(spec: &Spec, text: &str) -> String {
    let Some(missing) = spec.width.and_then(|width| width.checked_sub(text.chars().count())) else {
        return text.to_owned();
    };
    match (spec.minus, spec.zero) {
        (true, _) => format!("{text}{}", " ".repeat(missing)),
        (_, true) => format!("{}{text}", "0".repeat(missing)),
        _ => format!("{}{text}", " ".repeat(missing)),
    }
}

/// As `pad`, but zeros go between sign and digits.
fn pad_number(spec: &Spec, text: &str) -> String {
    let sign = text.starts_with(['-', '+', ' ']);
    match (spec.zero && spec.precision.is_none() && sign, spec.width) {
        (true, Some(width)) => {
            let (sign, digits) = text.split_at(1);
            let width = width.saturating_sub(1);
            format!("{sign}{digits:0>width$}")
        }
        _ => pad(spec, text),
    }
}

/// Go's strconv.Quote.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\x0b' => out.push_str("\\v"),
            letter if letter.is_control() && (letter as u32) < 0x80 => {
                out.push_str(&format!("\\x{:02x}", letter as u32));
            }
            letter
                if letter.is_control()
                    || matches!(letter, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{a0}') =>
            {
                out.push_str(&format!("\\u{:04x}", letter as u32));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}
