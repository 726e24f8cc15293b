//! Delegation: a rule of a VirtualService hands its requests to the rules of another one.
//!
//! A rule with `delegate` is replaced by those of the delegate, each narrowed by what the root
//! matches and completed by what the root says and it does not. A delegate cannot delegate further.

use std::collections::BTreeMap;

use leno_derive::Cx;

use super::rules::{Named, Rule};
use crate::model::string_match::StringMatch;
use crate::model::virtual_service::{Delegate, HttpMatch, HttpRoute};
use crate::model::{Key, Kind};

/// A root with the rules of its delegates in the places of those that delegate. A delegate that is
/// not there, or not visible, leaves nothing behind; requests go on to the rules that follow.
pub(super) fn merged(cx: &Cx<'_>, root: &Rule) -> Rule {
    let mut whole = root.clone();
    let mut http = Vec::new();
    for rule in std::mem::take(&mut whole.spec.http) {
        let Some(delegate) = &rule.delegate else {
            http.push(rule);
            continue;
        };
        let key = key(delegate, &root.meta.namespace);
        let Ok(found) = find(cx, &key, &root.meta.namespace) else { continue };
        whole.origins.push(key.of(Kind::VirtualService));
        http.extend(found.spec.http.iter().filter_map(|own| merge(&rule, own)));
    }
    whole.spec.http = http;
    whole
}

/// Why a delegate has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There is no such object.
    Absent,
    /// It has hosts, so it is a root.
    Root,
    /// It is not exported to the root's namespace.
    Hidden,
}

/// The VirtualService that a delegate's name stands for.
pub(crate) fn key(delegate: &Delegate, namespace: &str) -> Key {
    let namespace = if delegate.namespace.is_empty() { namespace } else { &delegate.namespace };
    Key { namespace: namespace.to_owned(), name: delegate.name.clone() }
}

/// A delegate as seen from its root's namespace.
pub(crate) fn find(cx: &Cx<'_>, key: &Key, namespace: &str) -> Result<std::sync::Arc<Rule>, Missing> {
    let found = cx.get::<Named>(key).as_ref().clone().ok_or(Missing::Absent)?;
    if !found.spec.hosts.is_empty() {
        Err(Missing::Root)
    } else if !found.export_to.reaches(namespace) {
        Err(Missing::Hidden)
    } else {
        Ok(found)
    }
}

/// A delegate's rule within its root's; `None` if the two cannot both match, or if it delegates.
pub(crate) fn merge(root: &HttpRoute, own: &HttpRoute) -> Option<HttpRoute> {
    if own.delegate.is_some() {
        return None;
    }
    let mut merged = own.clone();
    merged.r#match = merge_matches(&root.r#match, &own.r#match)?;
    merged.name = joined(&root.name, &own.name);
    let HttpRoute {
        name: _,
        r#match: _,
        // A rule that delegates has none of these.
        route: _,
        redirect: _,
        delegate: _,
        direct_response,
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirrors,
        mirror_percent,
        mirror_percentage,
        cors_policy,
        headers,
    } = root.clone();
    merged.direct_response = merged.direct_response.or(direct_response);
    merged.rewrite = merged.rewrite.or(rewrite);
    merged.timeout = merged.timeout.or(timeout);
    merged.retries = merged.retries.or(retries);
    merged.fault = merged.fault.or(fault);
    merged.mirror = merged.mirror.or(mirror);
    merged.mirror_percent = merged.mirror_percent.or(mirror_percent);
    merged.mirror_percentage = merged.mirror_percentage.or(mirror_percentage);
    merged.cors_policy = merged.cors_policy.or(cors_policy);
    merged.headers = merged.headers.or(headers);
    if merged.mirrors.is_empty() {
        merged.mirrors = mirrors;
    }
    Some(merged)
}

/// `root-own`, where both have a name.
fn joined(root: &str, own: &str) -> String {
    match (root.is_empty(), own.is_empty()) {
        (_, true) => root.to_owned(),
        (true, false) => own.to_owned(),
        (false, false) => format!("{root}-{own}"),
    }
}

/// Each condition of the delegate with each of the root's that it lies within; `None` if one of
/// them lies within none.
fn merge_matches(root: &[HttpMatch], own: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || own.is_empty() {
        return Some(if root.is_empty() { own.to_vec() } else { root.to_vec() });
    }
    let mut merged = Vec::new();
    for narrow in own {
        let before = merged.len();
        let wider = root.iter().filter(|wide| !conflict(wide, narrow));
        merged.extend(wider.map(|wide| merge_match(wide, narrow)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatch, own: &HttpMatch) -> HttpMatch {
    fn both<V: Clone>(root: &BTreeMap<String, V>, own: &BTreeMap<String, V>) -> BTreeMap<String, V> {
        root.iter().chain(own).map(|(name, value)| (name.clone(), value.clone())).collect()
    }
    let text = |own: &String, root: &String| if own.is_empty() { root.clone() } else { own.clone() };
    HttpMatch {
        name: joined(&root.name, &own.name),
        uri: own.uri.clone().or_else(|| root.uri.clone()),
        scheme: own.scheme.clone().or_else(|| root.scheme.clone()),
        method: own.method.clone().or_else(|| root.method.clone()),
        authority: own.authority.clone().or_else(|| root.authority.clone()),
        headers: both(&root.headers, &own.headers),
        port: if own.port == 0 { root.port } else { own.port },
        source_labels: both(&root.source_labels, &own.source_labels),
        gateways: if own.gateways.is_empty() { root.gateways.clone() } else { own.gateways.clone() },
        query_params: both(&root.query_params, &own.query_params),
        ignore_uri_case: own.ignore_uri_case,
        without_headers: both(&root.without_headers, &own.without_headers),
        source_namespace: text(&own.source_namespace, &root.source_namespace),
        stat_prefix: text(&own.stat_prefix, &root.stat_prefix),
    }
}

/// Whether a delegate's condition does not lie within its root's.
fn conflict(root: &HttpMatch, own: &HttpMatch) -> bool {
    let pairs = [
        (&root.uri, &own.uri),
        (&root.scheme, &own.scheme),
        (&root.method, &own.method),
        (&root.authority, &own.authority),
    ];
    let maps = [
        (&root.headers, &own.headers),
        (&root.without_headers, &own.without_headers),
        (&root.query_params, &own.query_params),
    ];
    let in_maps = |(root, own): &(&BTreeMap<String, StringMatch>, &BTreeMap<String, StringMatch>)| {
        own.iter().any(|(name, narrow)| text_conflict(root.get(name), Some(narrow)))
    };
    pairs.iter().any(|(root, own)| text_conflict(root.as_ref(), own.as_ref()))
        || maps.iter().any(in_maps)
        || root.ignore_uri_case != own.ignore_uri_case
        || (root.port != 0 && own.port != 0 && root.port != own.port)
        || (!root.source_namespace.is_empty() && root.source_namespace != own.source_namespace)
        || own
            .source_labels
            .iter()
            .any(|(name, value)| root.source_labels.get(name).is_some_and(|wanted| wanted != value))
        || (!root.gateways.is_empty() && own.gateways.iter().any(|name| !root.gateways.contains(name)))
}

/// Whether a text that meets the delegate's condition may fail the root's.
fn text_conflict(root: Option<&StringMatch>, own: Option<&StringMatch>) -> bool {
    let (Some(root), Some(own)) = (root, own) else { return false };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let parts =
        |matcher: &StringMatch| (given(&matcher.exact), given(&matcher.prefix), given(&matcher.regex));
    match (parts(root), parts(own)) {
        // Nothing can be said of what two patterns have in common.
        ((_, _, Some(_)), _) | (_, (_, _, Some(_))) => true,
        ((Some(wide), _, _), (exact, None, None)) => exact.as_ref() != Some(&wide),
        ((None, Some(wide), _), (None, Some(narrow), None) | (Some(narrow), None, None)) => {
            !narrow.starts_with(&wide)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::text_conflict;
    use crate::model::string_match::StringMatch;

    #[test]
    fn a_delegate_may_only_narrow() {
        let exact = |text: &str| StringMatch { exact: Some(text.to_owned()), ..StringMatch::default() };
        let prefix = |text: &str| StringMatch { prefix: Some(text.to_owned()), ..StringMatch::default() };
        let regex = |text: &str| StringMatch { regex: Some(text.to_owned()), ..StringMatch::default() };
        let check = |root: StringMatch, own: StringMatch, conflict| {
            assert_eq!(text_conflict(Some(&root), Some(&own)), conflict, "{root:?} {own:?}");
        };
        check(prefix("/a"), prefix("/a/b"), false);
        check(prefix("/a/b"), prefix("/a"), true);
        check(prefix("/a"), exact("/a/b"), false);
        check(prefix("/a"), exact("/b"), true);
        check(exact("/a"), exact("/a"), false);
        check(exact("/a"), exact("/b"), true);
        check(exact("/a"), prefix("/a"), true);
        check(regex("a.*"), exact("ab"), true);
        check(prefix("/a"), regex("/a.*"), true);
        assert!(!text_conflict(None, Some(&regex("x"))));
        assert!(!text_conflict(Some(&regex("x")), None));
    }
}
