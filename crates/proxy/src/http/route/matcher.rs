//! Matchers of strings, headers, query parameters and cookies (envoy.config.route.v3 and
//! envoy.type.matcher.v3), and how they are lowered.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::borrow::Cow;

use leno_api::proto::envoy::config::route::v3 as proto;
use leno_api::proto::envoy::r#type::matcher::v3 as matcher;
use leno_base::Name;
use memchr::memmem;
use regex::bytes::Regex;

use crate::config::lower::Lower;
use crate::config::re2;
use crate::http::headers::{HeaderMap, Known};

/// StringMatcher.
#[derive(Clone, Debug)]
pub(crate) enum StringMatcher {
    /// The whole text; lower case if the flag is set.
    Exact(Box<str>, bool),
    /// Its beginning.
    Prefix(Box<str>, bool),
    /// Its end.
    Suffix(Box<str>, bool),
    /// Some part of it.
    Contains(Box<str>, bool),
    /// All of it, by a regex.
    Regex(Regex),
}

impl StringMatcher {
    /// Whether the text matches.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self {
            StringMatcher::Exact(pattern, false) => text == pattern.as_bytes(),
            StringMatcher::Exact(pattern, true) => text.eq_ignore_ascii_case(pattern.as_bytes()),
            StringMatcher::Prefix(pattern, ignore) => starts_with(text, pattern.as_bytes(), *ignore),
            StringMatcher::Suffix(pattern, ignore) => {
                let part = text.len().checked_sub(pattern.len()).and_then(|start| text.get(start..));
                part.is_some_and(|part| same(part, pattern.as_bytes(), *ignore))
            }
            StringMatcher::Contains(pattern, false) => memmem::find(text, pattern.as_bytes()).is_some(),
            StringMatcher::Contains(pattern, true) => {
                memmem::find(&text.to_ascii_lowercase(), pattern.as_bytes()).is_some()
            }
            StringMatcher::Regex(regex) => regex.is_match(text),
        }
    }
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// Whether the text begins with the pattern.
pub(crate) fn starts_with(text: &[u8], pattern: &[u8], ignore_case: bool) -> bool {
    text.get(..pattern.len()).is_some_and(|part| same(part, pattern, ignore_case))
}

/// HeaderMatcher.
#[derive(Clone, Debug)]
pub(crate) struct HeaderMatcher {
    /// Lower case.
    name: Name,
    rule: HeaderRule,
    /// `invert_match`.
    invert: bool,
    /// `treat_missing_header_as_empty`.
    missing_as_empty: bool,
}

#[derive(Clone, Debug)]
enum HeaderRule {
    /// Whether the header is there.
    Present(bool),
    /// A decimal number in start..end.
    Range(i64, i64),
    /// All values, joined by commas.
    Text(StringMatcher),
}

impl HeaderMatcher {
    /// Whether the message's headers match.
    pub(crate) fn matches(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.find_all(&self.name);
        let first = values.next();
        let matched = match (&self.rule, first) {
            (HeaderRule::Present(present), first) => first.is_some() == *present,
            // A header that is missing does not match, inverted or not.
            (_, None) if !self.missing_as_empty => return false,
            (HeaderRule::Range(start, end), first) => {
                let text = joined(first.unwrap_or_default(), values);
                number(&text).is_some_and(|value| (*start..*end).contains(&value))
            }
            (HeaderRule::Text(text), first) => text.matches(&joined(first.unwrap_or_default(), values)),
        };
        matched != self.invert
    }
}

/// All values of a header in one text; borrowed if there is one only.
pub(crate) fn joined<'v>(first: &'v [u8], rest: impl Iterator<Item = &'v [u8]>) -> Cow<'v, [u8]> {
    let mut text = Cow::Borrowed(first);
    for value in rest {
        let text = text.to_mut();
        text.push(b',');
        text.extend_from_slice(value);
    }
    text
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']).parse().ok()
}

/// QueryParameterMatcher.
#[derive(Clone, Debug)]
pub(crate) struct QueryMatcher {
    name: Box<str>,
    rule: QueryRule,
}

#[derive(Clone, Debug)]
enum QueryRule {
    Present(bool),
    Text(StringMatcher),
}

impl QueryMatcher {
    /// Whether the query of a path (all behind `?`, without fragment) matches. Only the first
    /// value of a parameter counts, as it is written: without percent-decoding, as in Envoy.
    pub(crate) fn matches(&self, query: &[u8]) -> bool {
        let value = query_value(query, self.name.as_bytes());
        match (&self.rule, value) {
            (QueryRule::Present(present), value) => value.is_some() == *present,
            (QueryRule::Text(text), Some(value)) => text.matches(value),
            (QueryRule::Text(_), None) => false,
        }
    }
}

/// The first value of a query parameter, not decoded.
pub(crate) fn query_value<'q>(query: &'q [u8], name: &[u8]) -> Option<&'q [u8]> {
    query.split(|byte| *byte == b'&').find_map(|pair| {
        let rest = pair.strip_prefix(name)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"=") }
    })
}

/// CookieMatcher.
#[derive(Clone, Debug)]
pub(crate) struct CookieMatcher {
    name: Box<str>,
    text: StringMatcher,
    invert: bool,
}

impl CookieMatcher {
    /// Whether the request's cookies match; a cookie that is missing matches only inverted.
    pub(crate) fn matches(&self, headers: &HeaderMap) -> bool {
        let found = cookie(headers, &self.name);
        found.is_some_and(|value| self.text.matches(value)) != self.invert
    }
}

/// The value of a request cookie, without quotes.
pub(crate) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.find_all(Known::Cookie.text()).find_map(|line| {
        line.split(|byte| *byte == b';').find_map(|pair| {
            let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
        })
    })
}

/// Lowers a StringMatcher.
pub(crate) fn string(proto: matcher::StringMatcher, at: &mut Lower) -> Option<StringMatcher> {
    let matcher::StringMatcher { ignore_case, match_pattern } = proto;
    use matcher::string_matcher::MatchPattern as Pattern;
    // Lower case once, so that Contains need not.
    let text = |text: String| -> Box<str> {
        if ignore_case { text.to_ascii_lowercase().into() } else { text.into() }
    };
    Some(match match_pattern {
        Some(Pattern::Exact(pattern)) => StringMatcher::Exact(text(pattern), ignore_case),
        Some(Pattern::Prefix(pattern)) => StringMatcher::Prefix(text(pattern), ignore_case),
        Some(Pattern::Suffix(pattern)) => StringMatcher::Suffix(text(pattern), ignore_case),
        Some(Pattern::Contains(pattern)) => StringMatcher::Contains(text(pattern), ignore_case),
        Some(Pattern::SafeRegex(pattern)) => {
            if ignore_case {
                at.error_at("ignore_case", "ignore_case has no effect for safe_regex");
            }
            StringMatcher::Regex(at.field("safe_regex", |at| full_regex(pattern, at))?)
        }
        Some(Pattern::Custom(custom)) => {
            let type_url = custom.typed_config.map(|any| any.type_url).unwrap_or_default();
            at.field("custom", |at| at.unsupported_extension(&custom.name, &type_url));
            return None;
        }
        None => {
            at.error("a pattern is required");
            return None;
        }
    })
}

/// Lowers a RegexMatcher that must match all of the text.
pub(crate) fn full_regex(proto: matcher::RegexMatcher, at: &mut Lower) -> Option<Regex> {
    regex(proto, re2::compile_full, at)
}

fn regex(
    proto: matcher::RegexMatcher,
    compile: fn(&str) -> Result<Regex, String>,
    at: &mut Lower,
) -> Option<Regex> {
    // max_program_size limits RE2's representation, which we do not have; ours is limited anyway.
    let matcher::RegexMatcher { regex, engine_type: _ } = proto;
    match compile(&regex) {
        Ok(regex) => Some(regex),
        Err(error) => {
            at.error_at("regex", error);
            None
        }
    }
}

/// Lowers a RegexMatchAndSubstitute to the pattern and the crate's replacement text.
pub(crate) fn substitution(
    proto: matcher::RegexMatchAndSubstitute,
    at: &mut Lower,
) -> Option<(Regex, Box<str>)> {
    let matcher::RegexMatchAndSubstitute { pattern, substitution } = proto;
    let regex = at.required("pattern", pattern, |pattern, at| regex(pattern, re2::compile, at))?;
    let with = re2::substitution(&substitution, &regex);
    Some((regex, with.into()))
}

/// Lowers a HeaderMatcher.
pub(crate) fn header(proto: proto::HeaderMatcher, at: &mut Lower) -> Option<HeaderMatcher> {
    let proto::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } =
        proto;
    use proto::header_matcher::HeaderMatchSpecifier as Specifier;
    let rule = match header_match_specifier {
        None => HeaderRule::Present(true),
        Some(Specifier::PresentMatch(present)) => HeaderRule::Present(present),
        Some(Specifier::RangeMatch(range)) => HeaderRule::Range(range.start, range.end),
        Some(Specifier::StringMatch(text)) => {
            HeaderRule::Text(at.field("string_match", |at| string(text, at))?)
        }
        // The rest is deprecated.
        Some(Specifier::ExactMatch(text)) => HeaderRule::Text(StringMatcher::Exact(text.into(), false)),
        Some(Specifier::PrefixMatch(text)) => HeaderRule::Text(StringMatcher::Prefix(text.into(), false)),
        Some(Specifier::SuffixMatch(text)) => HeaderRule::Text(StringMatcher::Suffix(text.into(), false)),
        Some(Specifier::ContainsMatch(text)) => HeaderRule::Text(StringMatcher::Contains(text.into(), false)),
        Some(Specifier::SafeRegexMatch(pattern)) => HeaderRule::Text(StringMatcher::Regex(
            at.field("safe_regex_match", |at| full_regex(pattern, at))?,
        )),
    };
    let name = header_name(&name);
    Some(HeaderMatcher { name, rule, invert: invert_match, missing_as_empty: treat_missing_header_as_empty })
}

/// A header's name as it is stored: lower case, `host` as `:authority`.
pub(crate) fn header_name(name: &str) -> Name {
    let lower = name.to_ascii_lowercase();
    if lower == "host" { Name::new(Known::Authority.text()) } else { lower.into() }
}

/// Lowers a QueryParameterMatcher.
pub(crate) fn query(proto: proto::QueryParameterMatcher, at: &mut Lower) -> Option<QueryMatcher> {
    let proto::QueryParameterMatcher { name, query_parameter_match_specifier } = proto;
    use proto::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let rule = match query_parameter_match_specifier {
        None => QueryRule::Present(true),
        Some(Specifier::PresentMatch(present)) => QueryRule::Present(present),
        Some(Specifier::StringMatch(text)) => {
            QueryRule::Text(at.field("string_match", |at| string(text, at))?)
        }
    };
    Some(QueryMatcher { name: name.into(), rule })
}

/// Lowers a CookieMatcher.
pub(crate) fn cookie_matcher(proto: proto::CookieMatcher, at: &mut Lower) -> Option<CookieMatcher> {
    let proto::CookieMatcher { name, string_match, invert_match } = proto;
    let text = at.required("string_match", string_match, string)?;
    Some(CookieMatcher { name: name.into(), text, invert: invert_match })
}
