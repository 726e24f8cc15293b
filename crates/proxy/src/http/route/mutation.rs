//! Header rules: what is added to, overwritten in and removed from a message's headers
//! (HeaderValueOption).

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use leno_api::proto::envoy::config::common::mutation_rules::v3 as rules;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::Name;
use smallvec::SmallVec;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::route::matcher::{StringMatcher, header_name, string};
use crate::telemetry::access_log::format::{Command, Format, Piece};

/// Removals and additions of one level (route, virtual host, table, weighted cluster).
#[derive(Clone, Debug, Default)]
pub(crate) struct HeaderMutations {
    /// Removed first; lower case.
    remove: Vec<Name>,
    add: Vec<HeaderRule>,
}

/// One HeaderValueOption.
#[derive(Clone, Debug)]
pub(crate) struct HeaderRule {
    /// Lower case.
    name: Name,
    value: Format,
    action: AppendAction,
    /// `keep_empty_value`: set it even if the value comes out empty.
    keep_empty: bool,
}

/// `append_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AppendAction {
    Append,
    AddIfAbsent,
    OverwriteOrAdd,
    OverwriteIfExists,
}

/// One HeaderMutation: a change that sees those before it.
#[derive(Clone, Debug)]
pub(crate) enum HeaderChange {
    /// `append`.
    Add(HeaderRule),
    /// `remove`; lower case.
    Remove(Name),
    /// `remove_on_match`, of names.
    RemoveOnMatch(StringMatcher),
}

impl HeaderChange {
    /// Makes the change.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, substitution: &dyn Substitution) {
        match self {
            HeaderChange::Add(rule) => rule.apply(headers, substitution),
            HeaderChange::Remove(name) => {
                headers.remove_named(name);
            }
            HeaderChange::RemoveOnMatch(matcher) => headers.retain(|name, _| !matcher.matches(name)),
        }
    }
}

/// What the commands in header values yield: appends the command's value for this message, and
/// nothing if there is none.
pub(crate) trait Substitution {
    /// Appends the value of one command. `headers` are those of the message being changed.
    fn substitute(&self, command: &Command, headers: &HeaderMap, out: &mut Vec<u8>);
}

/// Where there is no message: no command has a value.
impl Substitution for () {
    fn substitute(&self, _: &Command, _: &HeaderMap, _: &mut Vec<u8>) {}
}

impl HeaderMutations {
    /// These rules, without removals.
    pub(crate) fn of(add: Vec<HeaderRule>) -> Self {
        Self { remove: Vec::new(), add }
    }

    /// Whether nothing would be changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Changes a message's headers. As in Envoy, all values are computed on the headers as they
    /// are after removal; then overwriting comes before adding.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, substitution: &dyn Substitution) {
        for name in &self.remove {
            headers.remove_named(name);
        }
        if self.add.is_empty() {
            return;
        }
        let mut values: SmallVec<[(&HeaderRule, Vec<u8>); 4]> = SmallVec::new();
        for rule in &self.add {
            values.extend(rule.evaluate(headers, substitution).map(|value| (rule, value)));
        }
        for (rule, value) in values.iter().filter(|(rule, _)| rule.overwrites()) {
            rule.write(headers, value);
        }
        for (rule, value) in values.iter().filter(|(rule, _)| !rule.overwrites()) {
            rule.write(headers, value);
        }
    }
}

impl HeaderRule {
    /// Changes a message's headers by this rule alone.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, substitution: &dyn Substitution) {
        if let Some(value) = self.evaluate(headers, substitution) {
            self.write(headers, &value);
        }
    }

    /// The value for a message; `None`: the rule changes nothing.
    fn evaluate(&self, headers: &HeaderMap, substitution: &dyn Substitution) -> Option<Vec<u8>> {
        let value = evaluate(&self.value, headers, substitution);
        if value.is_empty() && !self.keep_empty {
            return None;
        }
        let wanted = match self.action {
            AppendAction::Append | AppendAction::OverwriteOrAdd => true,
            AppendAction::AddIfAbsent => headers.find(&self.name).is_none(),
            AppendAction::OverwriteIfExists => headers.find(&self.name).is_some(),
        };
        wanted.then_some(value)
    }

    fn overwrites(&self) -> bool {
        matches!(self.action, AppendAction::OverwriteOrAdd | AppendAction::OverwriteIfExists)
    }

    fn write(&self, headers: &mut HeaderMap, value: &[u8]) {
        if self.overwrites() {
            headers.set_named(&self.name, value);
        } else {
            headers.append(self.name.as_bytes(), value);
        }
    }
}

/// What a format yields for a message; commands without a value yield nothing.
pub(crate) fn evaluate(format: &Format, headers: &HeaderMap, substitution: &dyn Substitution) -> Vec<u8> {
    let mut value = Vec::new();
    for piece in &format.0 {
        match piece {
            Piece::Text(text) => value.extend_from_slice(text.as_bytes()),
            Piece::Command(command) => substitution.substitute(command, headers, &mut value),
        }
    }
    value
}

/// Lowers the two lists of one level; `prefix` is `request` or `response`.
pub(crate) fn lower(
    prefix: &str,
    add: Vec<core::HeaderValueOption>,
    remove: Vec<String>,
    at: &mut Lower,
) -> HeaderMutations {
    let add = at.each(&format!("{prefix}_headers_to_add"), add, rule);
    let remove = at.each(&format!("{prefix}_headers_to_remove"), remove, |name, at| {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            at.error(":-prefixed or host headers may not be removed");
            return None;
        }
        Some(name.to_ascii_lowercase().into())
    });
    HeaderMutations { remove, add }
}

/// Lowers a list of HeaderValueOptions that are added.
pub(crate) fn lower_added(field: &str, add: Vec<core::HeaderValueOption>, at: &mut Lower) -> HeaderMutations {
    HeaderMutations { remove: Vec::new(), add: at.each(field, add, rule) }
}

/// Lowers a HeaderMutation.
pub(crate) fn change(proto: rules::HeaderMutation, at: &mut Lower) -> Option<HeaderChange> {
    let rules::HeaderMutation { action } = proto;
    use rules::header_mutation::{Action, RemoveOnMatch};
    match action {
        Some(Action::Append(option)) => at.field("append", |at| rule(option, at)).map(HeaderChange::Add),
        Some(Action::Remove(name)) => Some(HeaderChange::Remove(header_name(&name))),
        Some(Action::RemoveOnMatch(RemoveOnMatch { key_matcher })) => at.field("remove_on_match", |at| {
            at.required("key_matcher", key_matcher, string).map(HeaderChange::RemoveOnMatch)
        }),
        None => {
            at.error_at("action", "value is required");
            None
        }
    }
}

/// Lowers a HeaderValueOption.
pub(crate) fn rule(proto: core::HeaderValueOption, at: &mut Lower) -> Option<HeaderRule> {
    let core::HeaderValueOption { header, append, append_action, keep_empty_value } = proto;
    use core::header_value_option::HeaderAppendAction as Action;
    let mut action = match at.value::<Action>("append_action", append_action)? {
        Action::AppendIfExistsOrAdd => AppendAction::Append,
        Action::AddIfAbsent => AppendAction::AddIfAbsent,
        Action::OverwriteIfExistsOrAdd => AppendAction::OverwriteOrAdd,
        Action::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    // The deprecated predecessor of append_action.
    if let Some(append) = append {
        if action != AppendAction::Append {
            at.error("both append and append_action are set and it's not allowed");
        }
        action = if append { AppendAction::Append } else { AppendAction::OverwriteOrAdd };
    }
    at.required("header", header, |header, at| {
        let core::HeaderValue { key, value, raw_value } = header;
        if key.starts_with(':') || key.eq_ignore_ascii_case("host") {
            at.error_at("key", ":-prefixed or host headers may not be modified");
            return None;
        }
        let (field, text) = if raw_value.is_empty() {
            ("value", value)
        } else {
            if !value.is_empty() {
                at.error_at("raw_value", "value and raw_value cannot both be set");
            }
            match String::from_utf8(raw_value.to_vec()) {
                Ok(text) => ("raw_value", text),
                Err(_) => {
                    at.error_at("raw_value", "bytes that are not UTF-8 are not supported yet");
                    return None;
                }
            }
        };
        match Format::parse(&text) {
            Ok(value) => {
                let name = key.to_ascii_lowercase().into();
                Some(HeaderRule { name, value, action, keep_empty: keep_empty_value })
            }
            Err(error) => {
                at.error_at(field, error);
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{Substitution, core, lower};
    use crate::config::lower::Lower;
    use crate::http::headers::HeaderMap;
    use crate::telemetry::access_log::format::Command;

    /// Yields the request header of `%REQ(...)%`.
    struct Requests;

    impl Substitution for Requests {
        fn substitute(&self, command: &Command, headers: &HeaderMap, out: &mut Vec<u8>) {
            let name = command.argument.as_deref().unwrap_or_default();
            out.extend_from_slice(headers.find(name).unwrap_or_default());
        }
    }

    fn check(rules: &[(&str, &str, i32)], remove: &[&str], expected: &Expect) {
        let add = rules.iter().map(|(key, value, action)| core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: (*key).into(),
                value: (*value).into(),
                ..Default::default()
            }),
            append_action: *action,
            ..Default::default()
        });
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        let lowered = Lower::resource(|at| Some(lower("request", add.collect(), remove, at)));
        let shown = match lowered {
            Ok(mutations) => {
                let mut headers = HeaderMap::new();
                for (name, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
                    headers.append(name.as_bytes(), value.as_bytes());
                }
                mutations.apply(&mut headers, &Requests);
                let text = String::from_utf8_lossy;
                let shown = headers.iter().map(|(name, value)| format!("{}={}", text(name), text(value)));
                shown.collect::<Vec<_>>().join(" ")
            }
            Err(rejected) => rejected.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn actions() {
        check(&[("A", "x", 0), ("c", "y", 0)], &[], &expect!["a=1 b=2 a=3 a=x c=y"]);
        check(&[("a", "x", 1), ("c", "y", 1)], &[], &expect!["a=1 b=2 a=3 c=y"]);
        check(&[("a", "x", 2), ("c", "y", 2)], &[], &expect!["a=x b=2 c=y"]);
        check(&[("a", "x", 3), ("c", "y", 3)], &[], &expect!["a=x b=2"]);
        check(&[("c", "<%REQ(b)%>", 0), ("d", "%REQ(none)%", 0)], &["A"], &expect!["b=2 c=<2>"]);
    }

    #[test]
    fn refused() {
        check(
            &[(":path", "x", 0)],
            &["Host"],
            &expect![
                "request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified; request_headers_to_remove[0]: :-prefixed or host headers may not be removed"
            ],
        );
        check(
            &[("a", "%NOPE%", 0)],
            &[],
            &expect!["request_headers_to_add[0].header.value: Not supported field in StreamInfo: NOPE"],
        );
    }
}
