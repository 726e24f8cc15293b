//! The conditions of an HTTP rule as Envoy's.

use crate::model::check::claim;
use crate::model::string_match::StringMatch;
use crate::model::virtual_service::HttpMatch;
use crate::scope::rules::Semantics;
use crate::translate::proto::{route, ty};

use ty::matcher::v3 as matcher;

/// What Envoy must find in a request; without conditions, anything.
pub(super) fn route_match(conditions: Option<&HttpMatch>, semantics: Semantics) -> route::RouteMatch {
    let Some(conditions) = conditions else { return everything() };
    let mut message = everything();
    if let Some(uri) = &conditions.uri {
        if let Some(path) = &uri.exact {
            message.path_specifier = Some(route::route_match::PathSpecifier::Path(path.clone()));
        } else if let Some(prefix) =
            uri.prefix.as_deref().filter(|prefix| semantics != Semantics::Istio && *prefix != "/")
        {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix).to_owned();
            message.path_specifier = Some(route::route_match::PathSpecifier::PathSeparatedPrefix(prefix));
        } else if let Some(prefix) = &uri.prefix {
            message.path_specifier = Some(route::route_match::PathSpecifier::Prefix(prefix.clone()));
        } else if let Some(pattern) = uri.regex.as_deref().filter(|pattern| *pattern != "*") {
            message.path_specifier = Some(route::route_match::PathSpecifier::SafeRegex(regex(pattern)));
        }
    }
    message.case_sensitive = Some(!conditions.ignore_uri_case);
    for (name, wanted) in &conditions.headers {
        match claim(name) {
            Some(claim) => message.dynamic_metadata.push(claim_value(claim, wanted)),
            None => message.headers.push(header(name, wanted)),
        }
    }
    for (name, unwanted) in &conditions.without_headers {
        if let Some(claim) = claim(name) {
            let matcher = claim_value(claim, unwanted);
            message.dynamic_metadata.push(matcher::MetadataMatcher { invert: true, ..matcher });
            continue;
        }
        message.headers.push(route::HeaderMatcher {
            invert_match: true,
            // A header that is not there does not have the value; Envoy would not look at it.
            treat_missing_header_as_empty: !unwanted.is_present_match(),
            ..header(name, unwanted)
        });
    }
    message.headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pseudo = [
        (":method", &conditions.method),
        (":authority", &conditions.authority),
        (":scheme", &conditions.scheme),
    ];
    for (name, wanted) in pseudo {
        if let Some(wanted) = wanted {
            message.headers.push(header(name, wanted));
        }
    }
    for (name, wanted) in &conditions.query_params {
        use route::query_parameter_matcher::QueryParameterMatchSpecifier;
        let specifier = match string(wanted) {
            Some(wanted) => QueryParameterMatchSpecifier::StringMatch(wanted),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        };
        message.query_parameters.push(route::QueryParameterMatcher {
            name: name.clone(),
            query_parameter_match_specifier: Some(specifier),
        });
    }
    message
}

/// Matches every request.
pub(crate) fn everything() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..route::RouteMatch::default()
    }
}

/// Whether a route catches all, so that none after it is ever reached.
pub(crate) fn is_catch_all(message: &route::RouteMatch) -> bool {
    let all_paths = match &message.path_specifier {
        Some(route::route_match::PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(route::route_match::PathSpecifier::SafeRegex(pattern)) => pattern.regex == ".*",
        _ => false,
    };
    all_paths
        && message.headers.is_empty()
        && message.query_parameters.is_empty()
        && message.dynamic_metadata.is_empty()
}

/// An RE2 pattern.
pub(crate) fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: pattern.to_owned(), ..matcher::RegexMatcher::default() }
}

fn header(name: &str, wanted: &StringMatch) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    let specifier = match string(wanted) {
        Some(wanted) => HeaderMatchSpecifier::StringMatch(wanted),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..route::HeaderMatcher::default()
    }
}

/// A claim's condition: on a text, or on one of a list of texts. The JWT filter leaves claims in
/// the request's metadata.
fn claim_value(claim: Vec<&str>, wanted: &StringMatch) -> matcher::MetadataMatcher {
    use matcher::value_matcher::MatchPattern;
    let value = |pattern| matcher::ValueMatcher { match_pattern: Some(pattern) };
    let value = match string(wanted) {
        None => value(MatchPattern::PresentMatch(true)),
        Some(text) => {
            let text = value(MatchPattern::StringMatch(text));
            let one_of = matcher::list_matcher::MatchPattern::OneOf(Box::new(text.clone()));
            let list = matcher::ListMatcher { match_pattern: Some(one_of) };
            let list = value(MatchPattern::ListMatch(Box::new(list)));
            value(MatchPattern::OrMatch(matcher::OrMatcher { value_matchers: vec![list, text] }))
        }
    };
    let key = |key: &str| matcher::metadata_matcher::PathSegment {
        segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(key.to_owned())),
    };
    matcher::MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: std::iter::once("payload").chain(claim).map(key).collect(),
        value: Some(value),
        ..matcher::MetadataMatcher::default()
    }
}

/// A text's condition; `None` if it must only be there.
pub(crate) fn string(wanted: &StringMatch) -> Option<matcher::StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    if wanted.is_present_match() {
        return None;
    }
    let pattern = if let Some(text) = &wanted.exact {
        MatchPattern::Exact(text.clone())
    } else if let Some(text) = wanted.prefix.as_deref().filter(|text| !text.is_empty()) {
        MatchPattern::Prefix(text.to_owned())
    } else if wanted.prefix.is_some() {
        // Every text begins with the empty one, and Envoy does not take an empty prefix.
        return None;
    } else {
        MatchPattern::SafeRegex(regex(wanted.regex.as_deref().unwrap_or_default()))
    };
    Some(matcher::StringMatcher { match_pattern: Some(pattern), ..matcher::StringMatcher::default() })
}
