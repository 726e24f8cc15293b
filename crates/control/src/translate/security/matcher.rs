//! Conditions on texts, headers and metadata, as Istio writes them: exact, `prefix*`, `*suffix`, or
//! `*` for anything that is there.

use crate::translate::proto::{route, ty};
use ty::matcher::v3::string_matcher::MatchPattern;
use ty::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher, ValueMatcher, list_matcher,
    metadata_matcher, value_matcher,
};

/// A text that is there.
const ANYTHING: &str = ".+";

/// A text as a policy writes it.
pub(super) fn string(text: &str) -> StringMatcher {
    string_after("", text)
}

/// A text that begins with `prefix`, and goes on as a policy writes it. `*` is anything at all, with
/// the prefix or without.
pub(super) fn string_after(prefix: &str, text: &str) -> StringMatcher {
    if text == "*" {
        anything()
    } else if let Some(suffix) = text.strip_prefix('*') {
        match prefix {
            "" => pattern(MatchPattern::Suffix(suffix.to_owned())),
            prefix => regex(format!("{prefix}.*{}", quote(suffix))),
        }
    } else if let Some(begin) = text.strip_suffix('*') {
        pattern(MatchPattern::Prefix(format!("{prefix}{begin}")))
    } else {
        pattern(MatchPattern::Exact(format!("{prefix}{text}")))
    }
}

pub(super) fn anything() -> StringMatcher {
    regex(ANYTHING.to_owned())
}

pub(super) fn exact(text: &str) -> StringMatcher {
    pattern(MatchPattern::Exact(text.to_owned()))
}

pub(super) fn prefix(text: &str) -> StringMatcher {
    pattern(MatchPattern::Prefix(text.to_owned()))
}

pub(super) fn suffix(text: &str) -> StringMatcher {
    pattern(MatchPattern::Suffix(text.to_owned()))
}

/// An RE2 pattern for the whole text.
pub(super) fn regex(regex: String) -> StringMatcher {
    pattern(MatchPattern::SafeRegex(RegexMatcher { regex, ..RegexMatcher::default() }))
}

fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

/// A text in which no character has a special meaning in a regular expression.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

/// A header with a value as a policy writes it.
pub(super) fn header(name: &str, value: &str, ignore_case: bool) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    let specifier = match value {
        "*" => HeaderMatchSpecifier::PresentMatch(true),
        value => HeaderMatchSpecifier::StringMatch(StringMatcher { ignore_case, ..string(value) }),
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..route::HeaderMatcher::default()
    }
}

/// A value in a filter's metadata.
pub(super) fn metadata<S: AsRef<str>>(filter: &str, path: &[S], value: ValueMatcher) -> MetadataMatcher {
    let segment = |key: &S| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key(key.as_ref().to_owned())),
    };
    MetadataMatcher {
        filter: filter.to_owned(),
        path: path.iter().map(segment).collect(),
        value: Some(value),
        ..MetadataMatcher::default()
    }
}

/// A value that is a text.
pub(super) fn text(matcher: StringMatcher) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::StringMatch(matcher)) }
}

/// A value that is a list with such an element.
pub(super) fn element(value: ValueMatcher) -> ValueMatcher {
    let list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(value))) };
    ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::ListMatch(Box::new(list))) }
}

/// A value that fits one of several conditions.
pub(super) fn one_of(mut conditions: Vec<ValueMatcher>) -> ValueMatcher {
    match conditions.len() {
        1 => conditions.remove(0),
        _ => ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::OrMatch(OrMatcher {
                value_matchers: conditions,
            })),
        },
    }
}
