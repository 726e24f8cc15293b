//! What the single constraints of `validate.rules` mean, in the words of Envoy's checks.

use std::cell::RefCell;
use std::cmp::Ordering;

use regex::Regex;

use crate::schema::{Kind, Message, Op, Rule, Rules};
use crate::wire::{Fields, Malformed, Raw, Scalar};

/// Collects the constraints that a value does not meet.
pub(super) struct Checker {
    /// What is wrong, one text for each.
    pub(super) found: Vec<String>,
}

/// A number in the type that its rules are in.
#[derive(Clone, Copy, PartialEq)]
enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    /// A duration in nanoseconds.
    Duration(i64),
}

impl Number {
    fn of(scalar: Scalar<'_>) -> Option<Number> {
        match scalar {
            Scalar::Signed(value) => Some(Number::Signed(value)),
            Scalar::Enum(value) => Some(Number::Signed(i64::from(value))),
            Scalar::Unsigned(value) => Some(Number::Unsigned(value)),
            Scalar::Bool(value) => Some(Number::Unsigned(u64::from(value))),
            Scalar::Double(value) => Some(Number::Float(value)),
            Scalar::Float(value) => Some(Number::Float(f64::from(value))),
            Scalar::String(_) | Scalar::Bytes(_) => None,
        }
    }

    /// A limit of the tables, in the type of this number.
    fn limit(self, bits: u64) -> Number {
        match self {
            Number::Signed(_) => Number::Signed(bits.cast_signed()),
            Number::Unsigned(_) => Number::Unsigned(bits),
            Number::Float(_) => Number::Float(f64::from_bits(bits)),
            Number::Duration(_) => Number::Duration(bits.cast_signed()),
        }
    }

    /// `None` for NaN, which meets no limit.
    fn compare(self, other: Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Signed(a), Number::Signed(b)) | (Number::Duration(a), Number::Duration(b)) => {
                Some(a.cmp(&b))
            }
            (Number::Unsigned(a), Number::Unsigned(b)) => Some(a.cmp(&b)),
            (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b),
            _ => None,
        }
    }

    fn show(self) -> String {
        match self {
            Number::Signed(value) => value.to_string(),
            Number::Unsigned(value) => value.to_string(),
            Number::Float(value) => value.to_string(),
            Number::Duration(nanos) => show_duration(nanos),
        }
    }
}

/// A duration as Go writes it, which is how the messages have it: `1ms`, `5m0s`.
fn show_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let in_unit = |unit: u64, name: &str| {
        let value = nanos as f64 / unit as f64;
        format!("{sign}{value}{name}")
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => in_unit(1, "ns"),
        1_000..1_000_000 => in_unit(1_000, "us"),
        1_000_000..1_000_000_000 => in_unit(1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let seconds = rest as f64 / 1e9;
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// A scalar for messages and paths.
pub(super) fn show(scalar: Scalar<'_>) -> String {
    match scalar {
        Scalar::String(text) => text.to_owned(),
        Scalar::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Scalar::Bool(value) => value.to_string(),
        number => Number::of(number).map(Number::show).unwrap_or_default(),
    }
}

impl Checker {
    fn fail(&mut self, message: impl Into<String>) {
        self.found.push(message.into());
    }

    /// A scalar against its rules.
    pub(super) fn scalar(&mut self, rules: Rules, kind: Kind, value: Scalar<'_>) {
        if value.is_default() && rules.has(Op::IgnoreEmpty) {
            return;
        }
        match value {
            Scalar::String(text) => self.text(rules, text.as_bytes(), Some(text)),
            Scalar::Bytes(bytes) => self.text(rules, bytes, None),
            number => {
                if let Some(number) = Number::of(number) {
                    self.number(rules, number);
                }
                if let (Kind::Enum(descriptor), Scalar::Enum(number)) = (kind, value)
                    && rules.has(Op::DefinedOnly)
                    && descriptor.value(number).is_none()
                {
                    self.fail("value must be one of the defined enum values");
                }
            }
        }
    }

    /// The rules that speak of a message as such: required, and those of well-known types.
    pub(super) fn well_known(
        &mut self,
        rules: Rules,
        message: Message,
        wire: Option<&[u8]>,
    ) -> Result<(), Malformed> {
        let Some(wire) = wire else {
            if rules.has(Op::Required) {
                self.fail("value is required");
            }
            return Ok(());
        };
        let Some(name) = message.full_name().strip_prefix("google.protobuf.") else { return Ok(()) };
        let fields = Fields::read(message, wire)?;
        let last = |number: u32| fields.known.iter().rev().find(|set| set.field.number() == number);
        match name {
            "Duration" | "Timestamp" => {
                let part = |number: u32| match last(number).map(|set| set.raw) {
                    Some(Raw::Varint(value)) => value.cast_signed(),
                    _ => 0,
                };
                let nanos = part(1).saturating_mul(1_000_000_000).saturating_add(part(2));
                self.number(rules, Number::Duration(nanos));
            }
            "Any" => {
                let url = last(1).map_or(Ok(&[][..]), |set| set.raw.bytes())?;
                for rule in rules.iter() {
                    let listed = rule.texts().any(|text| text.as_bytes() == url);
                    match rule.op {
                        Op::TextIn if !listed => {
                            self.fail(format!("type URL must be in list {}", show_texts(rule)));
                        }
                        Op::TextNotIn if listed => {
                            self.fail(format!("type URL must not be in list {}", show_texts(rule)));
                        }
                        _ => {}
                    }
                }
            }
            _ if name.ends_with("Value") => {
                // Wrappers: the rules speak of what they wrap.
                if let Some(field) = message.field(1)
                    && message.fields().nth(1).is_none()
                    && !field.is_repeated()
                    && !matches!(field.kind(), Kind::Message(_))
                {
                    let value = match last(1) {
                        Some(set) => set.raw.scalar(field.kind())?,
                        None => Scalar::default_of(field.kind()),
                    };
                    self.scalar(rules, field.kind(), value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Number of elements of a list or pairs of a map.
    pub(super) fn count(&mut self, rules: Rules, count: usize, noun: &str) {
        if count == 0 && rules.has(Op::IgnoreEmpty) {
            return;
        }
        let limit = |op| rules.find(op).map(Rule::bits);
        let count = count as u64;
        match (limit(Op::MinItems), limit(Op::MaxItems)) {
            (Some(min), Some(max)) if min == max && count != min => {
                self.fail(format!("value must contain exactly {min} {noun}(s)"));
            }
            (Some(min), Some(max)) if count < min || count > max => {
                self.fail(format!("value must contain between {min} and {max} {noun}s, inclusive"));
            }
            (Some(min), None) if count < min => {
                self.fail(format!("value must contain at least {min} {noun}(s)"));
            }
            (None, Some(max)) if count > max => {
                self.fail(format!("value must contain no more than {max} {noun}(s)"));
            }
            _ => {}
        }
    }

    pub(super) fn unique(&mut self, values: &[Scalar<'_>]) {
        let mut seen = std::collections::HashSet::new();
        if !values.iter().all(|value| seen.insert(show(*value))) {
            self.fail("repeated value must contain unique items");
        }
    }

    fn number(&mut self, rules: Rules, value: Number) {
        self.range(rules, value);
        for rule in rules.iter() {
            let listed = || rule.list().any(|bits| value.limit(bits) == value);
            let list = || rule.list().map(|bits| value.limit(bits).show()).collect::<Vec<_>>().join(" ");
            match rule.op {
                Op::Const if value.limit(rule.bits()) != value => {
                    let expected = match value {
                        Number::Unsigned(_) if rules.iter().count() == 1 && rule.bits() < 2 => {
                            bool_name(rule.bits())
                        }
                        _ => value.limit(rule.bits()).show(),
                    };
                    self.fail(format!("value must equal {expected}"));
                }
                Op::In if !listed() => self.fail(format!("value must be in list [{}]", list())),
                Op::NotIn if listed() => self.fail(format!("value must not be in list [{}]", list())),
                _ => {}
            }
        }
    }

    fn range(&mut self, rules: Rules, value: Number) {
        let limit = |op: Op| rules.find(op).map(|rule| value.limit(rule.bits()));
        let low = limit(Op::Gt).map(|low| (low, false)).or_else(|| limit(Op::Gte).map(|low| (low, true)));
        let high =
            limit(Op::Lt).map(|high| (high, false)).or_else(|| limit(Op::Lte).map(|high| (high, true)));
        let above = |(low, inclusive): (Number, bool)| match value.compare(low) {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => inclusive,
            _ => false,
        };
        let below = |(high, inclusive): (Number, bool)| match value.compare(high) {
            Some(Ordering::Less) => true,
            Some(Ordering::Equal) => inclusive,
            _ => false,
        };
        let or_equal = |inclusive| if inclusive { " or equal to" } else { "" };
        match (low, high) {
            (Some(low), Some(high)) => {
                let open = if low.1 { '[' } else { '(' };
                let close = if high.1 { ']' } else { ')' };
                let (first, last) = (low.0.show(), high.0.show());
                // With the lower limit above the upper one, what lies between them is forbidden.
                if low.0.compare(high.0) == Some(Ordering::Greater) {
                    if !above(low) && !below(high) {
                        self.fail(format!("value must be outside range {open}{last}, {first}{close}"));
                    }
                } else if !above(low) || !below(high) {
                    self.fail(format!("value must be inside range {open}{first}, {last}{close}"));
                }
            }
            (Some(low), None) if !above(low) => {
                self.fail(format!("value must be greater than{} {}", or_equal(low.1), low.0.show()));
            }
            (None, Some(high)) if !below(high) => {
                self.fail(format!("value must be less than{} {}", or_equal(high.1), high.0.show()));
            }
            _ => {}
        }
    }

    /// Text or bytes against their rules. `text` is given where lengths count characters.
    fn text(&mut self, rules: Rules, bytes: &[u8], text: Option<&str>) {
        let limit = |op| rules.find(op).map(Rule::bits);
        let characters = text.map_or(bytes.len(), |text| text.chars().count()) as u64;
        self.length(characters, limit(Op::MinLen), limit(Op::MaxLen), "characters");
        self.length(bytes.len() as u64, limit(Op::MinBytes), limit(Op::MaxBytes), "bytes");
        for rule in rules.iter() {
            self.text_rule(rule, bytes, text, characters);
        }
    }

    fn length(&mut self, length: u64, min: Option<u64>, max: Option<u64>, unit: &str) {
        match (min, max) {
            (Some(min), Some(max)) if length < min || length > max => {
                self.fail(format!("value length must be between {min} and {max} {unit}, inclusive"));
            }
            (Some(min), None) if length < min => {
                self.fail(format!("value length must be at least {min} {unit}"));
            }
            (None, Some(max)) if length > max => {
                self.fail(format!("value length must be at most {max} {unit}"));
            }
            _ => {}
        }
    }

    fn text_rule(&mut self, rule: Rule, bytes: &[u8], text: Option<&str>, characters: u64) {
        let wanted = rule.text().as_bytes();
        let listed = || rule.texts().any(|text| text.as_bytes() == bytes);
        match rule.op {
            Op::Len if characters != rule.bits() => {
                self.fail(format!("value length must be {} characters", rule.bits()));
            }
            Op::LenBytes if bytes.len() as u64 != rule.bits() => {
                self.fail(format!("value length must be {} bytes", rule.bits()));
            }
            Op::TextConst if bytes != wanted => self.fail(format!("value must equal {:?}", rule.text())),
            Op::TextIn if !listed() => self.fail(format!("value must be in list {}", show_texts(rule))),
            Op::TextNotIn if listed() => self.fail(format!("value must not be in list {}", show_texts(rule))),
            Op::Prefix if !bytes.starts_with(wanted) => {
                self.fail(format!("value does not have prefix {:?}", rule.text()));
            }
            Op::Suffix if !bytes.ends_with(wanted) => {
                self.fail(format!("value does not have suffix {:?}", rule.text()));
            }
            Op::Contains if !contains(bytes, wanted) => {
                self.fail(format!("value does not contain substring {:?}", rule.text()));
            }
            Op::NotContains if contains(bytes, wanted) => {
                self.fail(format!("value contains substring {:?}", rule.text()));
            }
            Op::Pattern if !matches(rule.text(), text.unwrap_or_default()) => {
                self.fail(format!("value does not match regex pattern {:?}", rule.text()));
            }
            Op::HeaderName if !is_header_name(bytes) => self.fail("value is not a valid HTTP header name"),
            Op::HeaderValue if !bytes.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)) => {
                self.fail("value is not a valid HTTP header value");
            }
            Op::LooseHeaderName | Op::LooseHeaderValue
                if bytes.iter().any(|byte| matches!(byte, b'\0' | b'\n' | b'\r')) =>
            {
                self.fail("value does not match regex pattern \"^[^\\u0000\\u000A\\u000D]*$\"");
            }
            _ => {}
        }
    }
}

fn bool_name(bits: u64) -> String {
    (bits != 0).to_string()
}

fn show_texts(rule: Rule) -> String {
    format!("[{}]", rule.texts().collect::<Vec<_>>().join(" "))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// A token (RFC 9110 section 5.6.2) as PGV has it, with a colon in front for pseudo headers.
fn is_header_name(name: &[u8]) -> bool {
    let token = name.strip_prefix(b":").unwrap_or(name);
    !token.is_empty()
        && token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(byte))
}

/// Matches one of the few patterns in the protos, which are compiled when first met.
fn matches(pattern: &'static str, text: &str) -> bool {
    thread_local! {
        static COMPILED: RefCell<Vec<(&'static str, Option<Regex>)>> = const { RefCell::new(Vec::new()) };
    }
    COMPILED.with_borrow_mut(|compiled| {
        if !compiled.iter().any(|(known, _)| *known == pattern) {
            compiled.push((pattern, Regex::new(pattern).ok()));
        }
        let regex =
            compiled.iter().find(|(known, _)| *known == pattern).and_then(|(_, regex)| regex.as_ref());
        regex.is_some_and(|regex| regex.is_match(text))
    })
}
