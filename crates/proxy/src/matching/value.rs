//! Matchers of single values (envoy.type.matcher.v3): metadata, filter state, numbers, paths.

use leno_api::proto::envoy::r#type::matcher::v3 as proto;
use leno_base::{Cidr, CidrSet};
use serde_json::Value as Json;

use crate::config::lower::Lower;
use crate::http::route::matcher::{StringMatcher, string};
use crate::telemetry::stream_info::{DynamicMetadata, FilterState};

/// ValueMatcher.
#[derive(Clone, Debug)]
pub(crate) enum ValueMatcher {
    /// A null that is there.
    Null,
    /// A number in start..end.
    Range(f64, f64),
    /// Exactly this number.
    Number(f64),
    /// A text.
    Text(StringMatcher),
    /// This truth value.
    Bool(bool),
    /// Whether there is a value at all.
    Present(bool),
    /// A list with such a value.
    OneOf(Box<ValueMatcher>),
    /// Any of them.
    Or(Vec<ValueMatcher>),
}

impl ValueMatcher {
    /// Whether the value matches; `None`: there is none.
    pub(crate) fn matches(&self, value: Option<&Json>) -> bool {
        match self {
            ValueMatcher::Null => value == Some(&Json::Null),
            ValueMatcher::Range(start, end) => {
                value.and_then(Json::as_f64).is_some_and(|value| *start <= value && value < *end)
            }
            #[allow(clippy::float_cmp, reason = "as Envoy compares them")]
            ValueMatcher::Number(number) => value.and_then(Json::as_f64) == Some(*number),
            ValueMatcher::Text(matcher) => {
                value.and_then(Json::as_str).is_some_and(|text| matcher.matches(text.as_bytes()))
            }
            ValueMatcher::Bool(wanted) => value.and_then(Json::as_bool) == Some(*wanted),
            ValueMatcher::Present(wanted) => value.is_some() == *wanted,
            ValueMatcher::OneOf(matcher) => value
                .and_then(Json::as_array)
                .is_some_and(|list| list.iter().any(|value| matcher.matches(Some(value)))),
            ValueMatcher::Or(any) => any.iter().any(|matcher| matcher.matches(value)),
        }
    }
}

/// What lies at a path below a namespace.
pub(crate) fn find_path<'m>(
    metadata: &'m DynamicMetadata,
    namespace: &str,
    path: &[Box<str>],
) -> Option<&'m Json> {
    let (first, rest) = path.split_first()?;
    let value = metadata.get(namespace)?.get(&**first)?;
    rest.iter().try_fold(value, |value, key| value.get(&**key))
}

/// MetadataMatcher.
#[derive(Clone, Debug)]
pub(crate) struct MetadataMatcher {
    namespace: Box<str>,
    path: Vec<Box<str>>,
    value: ValueMatcher,
    invert: bool,
}

impl MetadataMatcher {
    /// Whether dynamic metadata match.
    pub(crate) fn matches(&self, metadata: &DynamicMetadata) -> bool {
        self.value.matches(find_path(metadata, &self.namespace, &self.path)) != self.invert
    }

    /// Whether it matches where there are no metadata at all.
    pub(crate) fn matches_nothing(&self) -> bool {
        self.value.matches(None) != self.invert
    }

    /// Whether metadata of the configuration match.
    pub(crate) fn matches_configured(&self, metadata: &crate::cluster::Metadata) -> bool {
        let root = metadata.get(&*self.namespace);
        let value = self.path.iter().try_fold(root, |value, key| Some(value?.get(&**key)));
        self.value.matches(value.flatten()) != self.invert
    }
}

/// FilterStateMatcher.
#[derive(Clone, Debug)]
pub(crate) struct FilterStateMatcher {
    /// The object's key.
    pub(crate) key: Box<str>,
    rule: FilterStateRule,
}

#[derive(Clone, Debug)]
enum FilterStateRule {
    Text(StringMatcher),
    /// Its IP address is in one of these; inverted.
    Address(CidrSet, bool),
}

impl FilterStateMatcher {
    /// Whether the object matches; one that is missing does not.
    pub(crate) fn matches(&self, object: Option<&FilterState>) -> bool {
        let Some(object) = object else { return false };
        match &self.rule {
            FilterStateRule::Text(matcher) => matcher.matches(object.text.as_bytes()),
            FilterStateRule::Address(ranges, invert) => {
                object.ip().is_some_and(|ip| ranges.contains(ip) != *invert)
            }
        }
    }
}

/// Lowers a ValueMatcher.
pub(crate) fn value(proto: proto::ValueMatcher, at: &mut Lower) -> Option<ValueMatcher> {
    let proto::ValueMatcher { match_pattern } = proto;
    use proto::value_matcher::{MatchPattern as Pattern, NullMatch};
    Some(match match_pattern {
        Some(Pattern::NullMatch(NullMatch {})) => ValueMatcher::Null,
        Some(Pattern::DoubleMatch(proto::DoubleMatcher { match_pattern })) => {
            use proto::double_matcher::MatchPattern as Double;
            match match_pattern {
                Some(Double::Range(range)) => ValueMatcher::Range(range.start, range.end),
                Some(Double::Exact(number)) => ValueMatcher::Number(number),
                None => {
                    at.error_at("double_match", "a pattern is required");
                    return None;
                }
            }
        }
        Some(Pattern::StringMatch(text)) => {
            ValueMatcher::Text(at.field("string_match", |at| string(text, at))?)
        }
        Some(Pattern::BoolMatch(wanted)) => ValueMatcher::Bool(wanted),
        Some(Pattern::PresentMatch(wanted)) => ValueMatcher::Present(wanted),
        Some(Pattern::ListMatch(list)) => {
            let proto::ListMatcher { match_pattern } = *list;
            let one_of = match_pattern.map(|proto::list_matcher::MatchPattern::OneOf(value)| *value);
            let one_of = at.field("list_match", |at| at.required("one_of", one_of, value))?;
            ValueMatcher::OneOf(Box::new(one_of))
        }
        Some(Pattern::OrMatch(proto::OrMatcher { value_matchers })) => {
            ValueMatcher::Or(at.field("or_match", |at| at.each("value_matchers", value_matchers, value)))
        }
        None => {
            at.error("a pattern is required");
            return None;
        }
    })
}

/// Lowers a MetadataMatcher.
pub(crate) fn metadata(proto: proto::MetadataMatcher, at: &mut Lower) -> Option<MetadataMatcher> {
    let proto::MetadataMatcher { filter, path, value: wanted, invert } = proto;
    use proto::metadata_matcher::path_segment::Segment;
    let keys = path.into_iter().filter_map(|segment| segment.segment);
    let path = keys.map(|Segment::Key(key)| key.into()).collect();
    let value = at.required("value", wanted, value)?;
    Some(MetadataMatcher { namespace: filter.into(), path, value, invert })
}

/// Lowers a FilterStateMatcher.
pub(crate) fn filter_state(proto: proto::FilterStateMatcher, at: &mut Lower) -> Option<FilterStateMatcher> {
    let proto::FilterStateMatcher { key, matcher } = proto;
    use proto::filter_state_matcher::Matcher;
    let rule = match matcher {
        Some(Matcher::StringMatch(text)) => {
            FilterStateRule::Text(at.field("string_match", |at| string(text, at))?)
        }
        Some(Matcher::AddressMatch(proto::AddressMatcher { ranges, invert_match })) => {
            let ranges = at.field("address_match", |at| at.each("ranges", ranges, range));
            FilterStateRule::Address(ranges.into_iter().collect(), invert_match)
        }
        None => {
            at.error("a matcher is required");
            return None;
        }
    };
    Some(FilterStateMatcher { key: key.into(), rule })
}

/// Lowers xds.core.v3.CidrRange.
pub(super) fn range(proto: leno_api::proto::xds::core::v3::CidrRange, at: &mut Lower) -> Option<Cidr> {
    let leno_api::proto::xds::core::v3::CidrRange { address_prefix, prefix_len } = proto;
    let range = leno_api::proto::envoy::config::core::v3::CidrRange { address_prefix, prefix_len };
    crate::config::address::cidr(range, at)
}
