//! Checks messages in wire form as Envoy checks them before use.
//!
//! Three kinds of fault, all found in one walk that also enters `Any`s of known types:
//! violated `validate.rules` constraints (protoc-gen-validate), fields that the schema does not
//! know, and deprecated fields. What single rules mean is in `validate/rules.rs`.

mod rules;
#[cfg(test)]
mod tests;

use prost::Name;

use crate::any::type_name;
use crate::schema::{Field, Kind, Message, Op};
use crate::wire::{
    Fields, MAX_DEPTH, Malformed, Raw, Scalar, Set, join_message, push_field, push_index, push_key, scalars,
};
use crate::{Error, Errors};
use rules::Checker;

/// What a walk over one message found. Paths are as in [`crate::Error`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Constraints that do not hold, bytes that are no such message, and uses of fields and enum
    /// values that Envoy disallows by default: each makes Envoy reject the message.
    pub violations: Vec<Violation>,
    /// Fields on the wire that the schema does not know. Envoy accepts them from xDS by default
    /// and refuses them in files.
    pub unknown: Vec<Violation>,
    /// Deprecated fields and enum values in use that are still allowed.
    pub deprecated: Vec<Violation>,
}

/// A fault and the field that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as `virtual_hosts[1].domains`, with proto names.
    pub path: String,
    /// What is wrong, worded as Envoy words it (`value length must be at least 1 characters`).
    pub message: String,
}

/// Walks a message in wire form and reports all that is wrong with it. That the schema does not
/// know the type is a violation of the whole message.
pub fn inspect(type_name: &str, wire: &[u8]) -> Report {
    let mut walk = Walk::default();
    match Message::find(type_name) {
        Some(message) => walk.message(message, wire, 0),
        None => walk.violation(format!("unknown message type {type_name:?}")),
    }
    walk.report
}

/// [`inspect`], for callers that only want to accept or reject.
///
/// # Errors
/// All violations.
pub fn validate(type_name: &str, wire: &[u8]) -> Result<(), Vec<Violation>> {
    let report = inspect(type_name, wire);
    if report.violations.is_empty() { Ok(()) } else { Err(report.violations) }
}

/// [`validate`] for a message that is a Rust value.
///
/// # Errors
/// All violations, without places.
pub fn message<T: prost::Message + Name>(message: &T) -> Result<(), Errors> {
    validate(&T::full_name(), &message.encode_to_vec()).map_err(|violations| {
        let error = |violation: Violation| Error::new(Default::default(), violation.path, violation.message);
        Errors(violations.into_iter().map(error).collect())
    })
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// A walk through a message: where it is and what it found.
#[derive(Default)]
struct Walk {
    report: Report,
    path: String,
}

impl Walk {
    fn violation(&mut self, message: String) {
        self.report.violations.push(Violation { path: self.path.clone(), message });
    }

    /// Runs a step with a longer path.
    fn within(&mut self, extend: impl FnOnce(&mut String), step: impl FnOnce(&mut Walk)) {
        let length = self.path.len();
        extend(&mut self.path);
        step(self);
        self.path.truncate(length);
    }

    fn message(&mut self, message: Message, wire: &[u8], depth: usize) {
        if depth > MAX_DEPTH {
            return self.violation(format!("nested deeper than {MAX_DEPTH} messages"));
        }
        let Ok(fields) = Fields::read(message, wire) else { return self.malformed(message) };
        for number in &fields.unknown {
            let mut path = self.path.clone();
            push_field(&mut path, &number.to_string());
            let message = format!("unknown field of {}", message.full_name());
            self.report.unknown.push(Violation { path, message });
        }
        if message.full_name() == "google.protobuf.Any" {
            return self.any(&fields, depth);
        }
        if !message.is_deep() {
            return self.shallow(message, &fields, depth);
        }
        let mut set = fields.by_field().peekable();
        for field in message.fields() {
            let occurrences = set.next_if(|sets| sets.first().is_some_and(|first| first.field == field));
            self.within(
                |path| push_field(path, field.name()),
                |walk| {
                    let checked = !message.is_unchecked();
                    if walk.field(field, occurrences.unwrap_or(&[]), checked, depth).is_err() {
                        walk.violation(format!("malformed {}", describe(field.kind())));
                    }
                },
            );
        }
        for oneof in message.oneofs().filter(|oneof| oneof.is_required() && !message.is_unchecked()) {
            let is_set =
                fields.known.iter().any(|set| set.field.oneof().is_some_and(|of| of.of(message) == oneof));
            if !is_set {
                self.within(
                    |path| push_field(path, oneof.name()),
                    |walk| walk.violation("is required".to_owned()),
                );
            }
        }
    }

    fn malformed(&mut self, message: Message) {
        self.violation(format!("malformed {}", message.full_name()));
    }

    /// A message below which nothing is constrained: only form and unknown fields matter.
    fn shallow(&mut self, message: Message, fields: &Fields<'_>, depth: usize) {
        for sets in fields.by_field() {
            let Some(field) = sets.first().map(|set| set.field) else { continue };
            let Kind::Message(inner) = field.kind() else {
                if scalars(sets).is_err() {
                    self.malformed(message);
                }
                continue;
            };
            self.within(
                |path| push_field(path, field.name()),
                |walk| {
                    for set in sets {
                        match set.raw {
                            Raw::Bytes(wire) => walk.message(inner, wire, depth + 1),
                            _ => walk.malformed(message),
                        }
                    }
                },
            );
        }
    }

    /// Looks into an `Any` if its type is known. One that is not known is judged by whoever uses it.
    fn any(&mut self, fields: &Fields<'_>, depth: usize) {
        let (mut url, mut value): (&[u8], &[u8]) = (&[], &[]);
        for set in &fields.known {
            match (set.field.number(), set.raw) {
                (1, Raw::Bytes(bytes)) => url = bytes,
                (2, Raw::Bytes(bytes)) => value = bytes,
                _ => return self.violation("malformed google.protobuf.Any".to_owned()),
            }
        }
        let Ok(url) = std::str::from_utf8(url) else {
            return self.violation("malformed google.protobuf.Any".to_owned());
        };
        if let Some(message) = Message::find(type_name(url)) {
            self.message(message, value, depth + 1);
        }
    }

    /// One field with all its occurrences, of which there may be none.
    fn field(
        &mut self,
        field: Field,
        sets: &[Set<'_>],
        checked: bool,
        depth: usize,
    ) -> Result<(), Malformed> {
        self.deprecation(field, sets)?;
        let rules = field.rules().filter(|_| checked);
        let mut checker = Checker { found: Vec::new() };
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                if let Some(rules) = rules {
                    checker.count(rules, sets.len(), "pair");
                }
                self.take(checker);
                for set in sets {
                    self.entry(field, entry, set.raw.bytes()?, checked, depth)?;
                }
            }
            Kind::Message(inner) if field.is_repeated() => {
                let items = rules.and_then(|rules| rules.find(Op::Items)).map(|rule| rule.nested());
                if let Some(rules) = rules {
                    checker.count(rules, sets.len(), "item");
                }
                self.take(checker);
                for (index, set) in sets.iter().enumerate() {
                    let wire = set.raw.bytes()?;
                    self.within(
                        |path| push_index(path, index),
                        |walk| walk.element(inner, items, Some(wire), depth),
                    );
                }
            }
            Kind::Message(inner) => {
                // In a oneof, `required` speaks of the field's content if it is the one chosen.
                if sets.is_empty() && field.oneof().is_some() {
                    return Ok(());
                }
                let wire = if sets.is_empty() { None } else { Some(join_message(sets)?) };
                self.element(inner, rules, wire.as_deref(), depth);
            }
            kind if field.is_repeated() => {
                let values = scalars(sets)?;
                let Some(rules) = rules else { return Ok(()) };
                checker.count(rules, values.len(), "item");
                if rules.has(Op::Unique) {
                    checker.unique(&values);
                }
                self.take(checker);
                let Some(items) = rules.find(Op::Items) else { return Ok(()) };
                for (index, value) in values.into_iter().enumerate() {
                    let mut checker = Checker { found: Vec::new() };
                    checker.scalar(items.nested(), kind, value);
                    self.within(|path| push_index(path, index), |walk| walk.take(checker));
                }
            }
            kind => {
                let value = match sets.last() {
                    Some(set) => Some(set.raw.scalar(kind)?),
                    // An unset field without presence has its default, which rules may forbid.
                    None if !field.has_presence() => Some(Scalar::default_of(kind)),
                    None => None,
                };
                if let (Some(rules), Some(value)) = (rules, value) {
                    checker.scalar(rules, kind, value);
                }
                self.take(checker);
            }
        }
        Ok(())
    }

    fn take(&mut self, checker: Checker) {
        for message in checker.found {
            self.violation(message);
        }
    }

    /// A message in a field or list, or the lack of it.
    fn element(
        &mut self,
        message: Message,
        rules: Option<crate::schema::Rules>,
        wire: Option<&[u8]>,
        depth: usize,
    ) {
        let mut skip = false;
        if let Some(rules) = rules {
            let mut checker = Checker { found: Vec::new() };
            if checker.well_known(rules, message, wire).is_err() {
                return self.malformed(message);
            }
            self.take(checker);
            skip = rules.has(Op::Skip);
        }
        // `skip` is about this message's constraints only, but those of its parts belong to it.
        if let Some(wire) = wire
            && !skip
        {
            self.message(message, wire, depth + 1);
        }
    }

    /// One entry of a map.
    fn entry(
        &mut self,
        field: Field,
        entry: Message,
        wire: &[u8],
        checked: bool,
        depth: usize,
    ) -> Result<(), Malformed> {
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else {
            return Err(Malformed);
        };
        let fields = Fields::read(entry, wire)?;
        let of = |wanted: Field| {
            fields.by_field().find(move |sets| sets.first().is_some_and(|s| s.field == wanted))
        };
        let scalar = |wanted: Field| match of(wanted).and_then(<[_]>::last) {
            Some(set) => set.raw.scalar(wanted.kind()),
            None => Ok(Scalar::default_of(wanted.kind())),
        };
        let key = scalar(key_field)?;
        let rules = field.rules().filter(|_| checked);
        let mut checker = Checker { found: Vec::new() };
        if let Some(keys) = rules.and_then(|rules| rules.find(Op::Keys)) {
            checker.scalar(keys.nested(), key_field.kind(), key);
        }
        let values = rules.and_then(|rules| rules.find(Op::Values)).map(|rule| rule.nested());
        let wire = match value_field.kind() {
            Kind::Message(_) => Some(of(value_field).map_or(Ok(Default::default()), join_message)?),
            kind => {
                let value = scalar(value_field)?;
                if let Some(values) = values {
                    checker.scalar(values, kind, value);
                }
                None
            }
        };
        self.within(
            |path| push_key(path, &rules::show(key)),
            |walk| {
                walk.take(checker);
                if let (Kind::Message(inner), Some(wire)) = (value_field.kind(), wire) {
                    walk.element(inner, values, Some(&wire), depth + 1);
                }
            },
        );
        Ok(())
    }

    /// Deprecated fields in use, and deprecated enum values, also by default.
    fn deprecation(&mut self, field: Field, sets: &[Set<'_>]) -> Result<(), Malformed> {
        if field.is_deprecated() && !sets.is_empty() {
            let since = match field.deprecated_at() {
                "" => String::new(),
                version => format!(" since {version}"),
            };
            self.report_deprecated(field.is_disallowed(), format!("is deprecated{since}"));
        }
        let Kind::Enum(kind) = field.kind() else { return Ok(()) };
        if field.is_repeated() || (sets.is_empty() && field.has_presence()) {
            return Ok(());
        }
        let number = match sets.last() {
            Some(set) => match set.raw.scalar(field.kind())? {
                Scalar::Enum(number) => number,
                _ => return Ok(()),
            },
            None => 0,
        };
        if let Some(value) = kind.value(number)
            && value.is_deprecated()
        {
            let default = if sets.is_empty() { "default " } else { "" };
            // Envoy lets a default pass in files; where it makes no sense its use fails later.
            let disallowed = value.is_disallowed() && !sets.is_empty();
            self.report_deprecated(disallowed, format!("{default}value {} is deprecated", value.name()));
        }
        Ok(())
    }

    fn report_deprecated(&mut self, disallowed: bool, message: String) {
        if disallowed {
            self.violation(format!("{message} and refused by default"));
        } else {
            self.report.deprecated.push(Violation { path: self.path.clone(), message });
        }
    }
}

fn describe(kind: Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(descriptor) => descriptor.full_name().to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}
