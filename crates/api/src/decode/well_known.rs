//! The types of `google.protobuf` that have a JSON form of their own.

use super::Decoder;
use crate::Error;
use crate::any::type_name;
use crate::duration::MAX_SECONDS;
use crate::error::{is_slip, nearest};
use crate::schema::{Kind, Message};
use crate::typed_struct::is_typed_struct;
use crate::wire::{Scalar, close_delimited, put_bytes, put_scalar, put_tag, wire_type};
use crate::yaml::{self, Entry, Node, Position, TYPE_KEY, Value};

/// The package of all of them.
const PACKAGE: &str = "google.protobuf.";

/// The type of messages that are written as a Struct.
const TYPED_STRUCT_URL: &str = "type.googleapis.com/xds.type.v3.TypedStruct";

/// Seconds of 0001-01-01 and 9999-12-31T23:59:59, between which timestamps lie.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Whether a type has a form of its own, which in an `Any` then stands under `value`.
pub(crate) fn has_own_form(message: Message) -> bool {
    message.full_name().strip_prefix(PACKAGE).is_some_and(|name| {
        matches!(name, "Any" | "Duration" | "Timestamp" | "FieldMask" | "Struct" | "Value" | "ListValue")
            || is_wrapper(name)
    })
}

fn is_wrapper(name: &str) -> bool {
    matches!(
        name,
        "DoubleValue"
            | "FloatValue"
            | "Int64Value"
            | "UInt64Value"
            | "Int32Value"
            | "UInt32Value"
            | "BoolValue"
            | "StringValue"
            | "BytesValue"
    )
}

impl Decoder {
    /// Writes the content of a message with a form of its own; `false` if it is not one, or is
    /// given in the form of an ordinary message (`{seconds: 5}`), which Envoy also takes.
    pub(super) fn well_known(&mut self, message: Message, node: &Node<'_>, position: Position) -> bool {
        let Some(name) = message.full_name().strip_prefix(PACKAGE) else { return false };
        match (name, &node.value) {
            ("Any", _) => self.any(node, position),
            ("Struct", _) => self.structure(node),
            ("Value", _) => self.value(node),
            ("ListValue", _) => self.list_value(node),
            (_, Value::Mapping(_)) => return false,
            _ if node.is_null() => {}
            ("Duration", _) => self.time(node, "a duration like 1.5s", parse_duration),
            ("Timestamp", _) => self.time(node, "a time like 2006-01-02T15:04:05Z", parse_timestamp),
            ("FieldMask", _) => self.field_mask(node),
            _ if is_wrapper(name) => {
                if let Some(field) = message.field(1) {
                    self.single(field, field.kind(), node, position);
                }
            }
            _ => return false,
        }
        true
    }

    fn any(&mut self, node: &Node<'_>, position: Position) {
        let entries = match &node.value {
            Value::Mapping(entries) => entries.as_slice(),
            _ if node.is_null() => &[],
            _ => {
                return self.error(
                    node.position,
                    format!("expected a mapping with '@type', found {}", node.describe()),
                );
            }
        };
        if entries.is_empty() {
            return;
        }
        let mut types = entries.iter().filter(|entry| entry.key == TYPE_KEY);
        let Some(entry) = types.next() else {
            return self.error(position, "missing '@type', which tells the type of this field");
        };
        if let Some(second) = types.next() {
            self.error(second.position, "duplicate '@type'");
        }
        let Some(url) = entry.value.as_str() else {
            return self.error(
                entry.value.position,
                format!("expected a type URL, found {}", entry.value.describe()),
            );
        };
        if url.rfind('/').is_none_or(|slash| slash == 0) {
            let message =
                format!("type URL {url:?} has no host, write type.googleapis.com/{}", type_name(url));
            return self.error(entry.value.position, message);
        }
        let Some(message) = Message::find(type_name(url)) else {
            let suggestion = nearest(type_name(url), Message::all().map(Message::full_name));
            let is_slip = suggestion.is_some_and(|suggestion| is_slip(type_name(url), suggestion));
            if !is_slip && self.pass_on(url, entries, entry.value.position) {
                return;
            }
            let text = format!("unknown type {url:?}");
            self.errors.push(Error::new(entry.value.position, self.path.clone(), text).suggest(suggestion));
            return;
        };
        if self.unknown.is_some() && is_typed_struct(message) && self.typed_struct(node) {
            return;
        }
        put_bytes(&mut self.out, 1, url.as_bytes());
        put_tag(&mut self.out, 2, wire_type(Kind::Bytes));
        let start = self.out.len();
        if has_own_form(message) {
            self.any_value(message, entries);
        } else {
            self.fields(message, entries, true);
        }
        close_delimited(&mut self.out, start);
    }

    /// Writes an `Any` of a type that is not known as a TypedStruct, which who knows it can read; false
    /// if that is not wanted, or if it is a type of Envoy's old API, which nobody knows any more.
    fn pass_on(&mut self, url: &str, entries: &[Entry<'_>], position: Position) -> bool {
        let Some(unknown) = self.unknown.as_mut() else { return false };
        if type_name(url).split('.').any(|part| part.starts_with("v2")) {
            return false;
        }
        let text = format!("the type {url:?} is not known here, and passed on as it is written");
        unknown.push(Error::new(position, self.path.clone(), text));
        put_bytes(&mut self.out, 1, TYPED_STRUCT_URL.as_bytes());
        put_tag(&mut self.out, 2, wire_type(Kind::Bytes));
        let any = self.out.len();
        put_bytes(&mut self.out, 1, url.as_bytes());
        put_tag(&mut self.out, 2, wire_type(Kind::Bytes));
        let content = self.out.len();
        let fields = entries.iter().filter(|entry| entry.key != TYPE_KEY).cloned().collect();
        self.structure(&Node { value: Value::Mapping(fields), position });
        close_delimited(&mut self.out, content);
        close_delimited(&mut self.out, any);
        true
    }

    /// Writes an `Any` of the type that a TypedStruct names; false if that is not known.
    fn typed_struct(&mut self, node: &Node<'_>) -> bool {
        let url = node.find("type_url").or_else(|| node.find("typeUrl")).and_then(Node::as_str);
        let Some((url, message)) = url.and_then(|url| Some((url, Message::find(type_name(url))?))) else {
            return false;
        };
        put_bytes(&mut self.out, 1, url.as_bytes());
        put_tag(&mut self.out, 2, wire_type(Kind::Bytes));
        let start = self.out.len();
        if let Some(value) = node.find("value") {
            self.within(
                |path| crate::wire::push_field(path, "value"),
                |decoder| decoder.message(message, value, value.position),
            );
        }
        close_delimited(&mut self.out, start);
        true
    }

    /// An `Any` of a type with a form of its own has that under `value`, and nothing else.
    fn any_value(&mut self, message: Message, entries: &[Entry<'_>]) {
        let mut found: Option<Position> = None;
        for entry in entries.iter().filter(|entry| entry.key != TYPE_KEY) {
            self.within(
                |path| crate::wire::push_field(path, &entry.key),
                |decoder| match (entry.key.as_ref(), found) {
                    ("value", None) => {
                        found = Some(entry.position);
                        decoder.message(message, &entry.value, entry.position);
                    }
                    ("value", Some(first)) => {
                        decoder.error(
                            entry.position,
                            format!("duplicate field, first set in line {}", first.line),
                        );
                    }
                    _ => {
                        let text = format!("unknown field, a {} stands under 'value'", message.full_name());
                        decoder.error(entry.position, text);
                    }
                },
            );
        }
    }

    /// Writes a Duration or Timestamp, which have the same fields.
    fn time(&mut self, node: &Node<'_>, wanted: &str, parse: fn(&str) -> Option<(i64, i32)>) {
        let Some(text) = node.as_str() else {
            return self.error(node.position, format!("expected {wanted}, found {}", node.describe()));
        };
        let Some((seconds, nanos)) = parse(text) else {
            return self.error(node.position, format!("expected {wanted}, found {}", node.describe()));
        };
        for (number, value) in [(1, seconds), (2, i64::from(nanos))] {
            if value != 0 {
                put_tag(&mut self.out, number, wire_type(Kind::Int64));
                put_scalar(&mut self.out, Kind::Int64, Scalar::Signed(value));
            }
        }
    }

    fn field_mask(&mut self, node: &Node<'_>) {
        let Some(text) = node.as_str() else {
            return self.error(node.position, format!("expected field paths, found {}", node.describe()));
        };
        for path in text.split(',').filter(|path| !path.is_empty()) {
            if path.contains('_') {
                self.error(node.position, format!("field path {path:?} must be in camelCase"));
                continue;
            }
            let mut name = String::with_capacity(path.len() + 4);
            for letter in path.chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_lowercase());
            }
            put_bytes(&mut self.out, 1, name.as_bytes());
        }
    }

    fn structure(&mut self, node: &Node<'_>) {
        let entries = match &node.value {
            Value::Mapping(entries) => entries,
            _ if node.is_null() => return,
            _ => return self.error(node.position, format!("expected a mapping, found {}", node.describe())),
        };
        self.duplicate_keys(entries);
        for entry in entries {
            self.within(
                |path| crate::wire::push_key(path, &entry.key),
                |decoder| {
                    put_tag(&mut decoder.out, 1, wire_type(Kind::Bytes));
                    let start = decoder.out.len();
                    if !entry.key.is_empty() {
                        put_bytes(&mut decoder.out, 1, entry.key.as_bytes());
                    }
                    decoder.nested(2, |decoder| decoder.value(&entry.value));
                    close_delimited(&mut decoder.out, start);
                },
            );
        }
    }

    fn list_value(&mut self, node: &Node<'_>) {
        match &node.value {
            Value::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.within(
                        |path| crate::wire::push_index(path, index),
                        |decoder| decoder.nested(1, |decoder| decoder.value(item)),
                    );
                }
            }
            _ if node.is_null() => {}
            _ => self.error(node.position, format!("expected a list, found {}", node.describe())),
        }
    }

    fn value(&mut self, node: &Node<'_>) {
        match &node.value {
            Value::Mapping(_) => self.nested(5, |decoder| decoder.structure(node)),
            Value::Sequence(_) => self.nested(6, |decoder| decoder.list_value(node)),
            Value::Scalar(scalar) => match scalar.kind {
                yaml::Kind::Null => {
                    put_tag(&mut self.out, 1, wire_type(Kind::Bool));
                    self.out.push(0);
                }
                yaml::Kind::Integer | yaml::Kind::Float => {
                    put_tag(&mut self.out, 2, wire_type(Kind::Double));
                    let value = scalar.float().unwrap_or(f64::NAN);
                    put_scalar(&mut self.out, Kind::Double, Scalar::Double(value));
                }
                yaml::Kind::String => put_bytes(&mut self.out, 3, scalar.text.as_bytes()),
                yaml::Kind::Bool(value) => {
                    put_tag(&mut self.out, 4, wire_type(Kind::Bool));
                    self.out.push(u8::from(value));
                }
            },
        }
    }

    fn nested(&mut self, number: u32, content: impl FnOnce(&mut Decoder)) {
        put_tag(&mut self.out, number, wire_type(Kind::Bytes));
        let start = self.out.len();
        content(self);
        close_delimited(&mut self.out, start);
    }
}

/// `-1.5s`: whole seconds, at most nine digits of fraction, and the unit.
fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number),
    };
    let (whole, nanos) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, parse_fraction(fraction)?),
        None => (digits, 0),
    };
    let seconds: i64 = all_digits(whole)?.parse().ok()?;
    if seconds > MAX_SECONDS {
        return None;
    }
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

fn all_digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

/// Nanoseconds of up to nine digits after a decimal point.
fn parse_fraction(digits: &str) -> Option<i32> {
    let value: i32 = all_digits(digits)?.parse().ok().filter(|_| digits.len() <= 9)?;
    Some(value * 10_i32.pow(9 - u32::try_from(digits.len()).ok()?))
}

/// RFC 3339: `2006-01-02T15:04:05.999Z` or with an offset as `+01:00`.
fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.split_once(['T', 't'])?;
    let field = |text: &str, length: usize| -> Option<i64> {
        (text.len() == length).then_some(all_digits(text)?)?.parse().ok()
    };
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (field(parts.next()?, 4)?, field(parts.next()?, 2)?, field(parts.next()?, 2)?);
    let end = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(end);
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let seconds = field(hours, 2)? * 3600 + field(minutes, 2)? * 60;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    let (clock, nanos) = match clock.split_once('.') {
        Some((clock, fraction)) => (clock, parse_fraction(fraction)?),
        None => (clock, 0),
    };
    let mut parts = clock.splitn(3, ':');
    let (hour, minute, second) =
        (field(parts.next()?, 2)?, field(parts.next()?, 2)?, field(parts.next()?, 2)?);
    if hour > 23
        || minute > 59
        || second > 59
        || !(1..=12).contains(&month)
        || !(1..=days_in(year, month)).contains(&day)
    {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    TIMESTAMPS.contains(&seconds).then_some((seconds, nanos))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar. Years count from March here, so that the leap
/// day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // From March on, five months have 153 days.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}
