//! Pages about what is kept: resources made for proxies, and the graph that they are derived in.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use ::http::StatusCode;
use leno_xds::server::Resources;
use leno_xds::{Resource, TypeUrl};
use serde_json::{Value, json};

use super::{Answer, Look, Question, parameter};
use crate::scope::ProxyKey;
use crate::translate::{name_table, trust_bundle};

/// `/debug/cachez[?sizes=true]`: the resources that were made for connected proxies, by type, each
/// once, however many share it. What istiod keeps in a cache beside its configuration is here all that
/// there is.
pub(super) fn cachez(look: Look<'_>, question: &Question) -> Answer {
    if parameter(&question.query, "clear").is_some_and(|wanted| !wanted.is_empty()) {
        let text = "there is no cache to clear: what proxies have is derived, and kept up to date\n";
        return Answer::Fault(StatusCode::BAD_REQUEST, text.to_owned());
    }
    let with_sizes = parameter(&question.query, "sizes").is_some_and(|wanted| !wanted.is_empty());
    let kept = kept(look);
    Answer::later(move || Answer::Json(if with_sizes { sizes(&kept) } else { names(&kept) }))
}

/// What proxies share, by type.
fn kept(look: Look<'_>) -> Vec<(TypeUrl, Resources)> {
    let others = [name_table::TYPE_URL, trust_bundle::TYPE_URL].map(TypeUrl::from);
    let types: Vec<TypeUrl> = TypeUrl::KNOWN.into_iter().chain(others).collect();
    // Proxies that are alike have the same.
    let mut seen: BTreeSet<*const ProxyKey> = BTreeSet::new();
    let mut kept: Vec<(TypeUrl, Resources)> = Vec::new();
    for session in look.push.sessions().filter(|session| seen.insert(Arc::as_ptr(&session.key))) {
        for type_url in &types {
            let Some(resources) = look.push.resources(session, type_url).filter(|all| !all.is_empty()) else {
                continue;
            };
            kept.push((type_url.clone(), resources.clone()));
        }
    }
    kept
}

/// Each resource once.
fn each(kept: &[(TypeUrl, Resources)]) -> impl Iterator<Item = (&TypeUrl, &Resource)> {
    let all = kept.iter().flat_map(|(type_url, resources)| resources.iter().map(move |one| (type_url, one)));
    let mut seen = HashSet::new();
    all.filter(move |(type_url, resource)| seen.insert((*type_url, &resource.name, resource.body.as_ptr())))
}

fn names(kept: &[(TypeUrl, Resources)]) -> Value {
    let mut page: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (type_url, resource) in each(kept) {
        page.entry(type_url.as_str()).or_default().push(&resource.name);
    }
    page.values_mut().for_each(|names| names.sort_unstable());
    json!(page)
}

fn sizes(kept: &[(TypeUrl, Resources)]) -> Value {
    let mut page: BTreeMap<&str, usize> = BTreeMap::new();
    for (type_url, resource) in each(kept) {
        *page.entry(type_url.as_str()).or_default() += resource.body.len();
        *page.entry("total").or_default() += resource.body.len();
    }
    let page: BTreeMap<&str, String> = page.into_iter().map(|(name, size)| (name, bytes(size))).collect();
    json!(page)
}

/// A number of bytes as istiod writes it: `1.5kB`.
fn bytes(count: usize) -> String {
    let mut units = ["kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    let (mut size, mut unit) = (count as f64, "B");
    while size >= 1000.0
        && let Some(larger) = units.next()
    {
        (size, unit) = (size / 1000.0, larger);
    }
    if unit == "B" { format!("{count}B") } else { format!("{size:.1}{unit}") }
}

/// `/debug/krtz`: the state of what everything is derived in. Istiod shows its collections; here it is
/// one graph of facts and of values derived from them.
pub(super) fn krtz(look: Look<'_>, _: &Question) -> Answer {
    let stats = look.graph.stats();
    Answer::Json(json!([{
        "uid": "1",
        "name": "graph",
        "state": {
            "synced": true,
            "revision": look.graph.revision().to_string(),
            "inputs": stats.inputs,
            "values": stats.memos,
            "roots": stats.roots,
            "dependencies": stats.edges,
            "derivations": stats.recomputations,
            "verifications": stats.verifications,
            "hits": stats.hits,
        },
    }]))
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_written_as_istiod_does() {
        for (count, expected) in
            [(0, "0B"), (999, "999B"), (1000, "1.0kB"), (1550, "1.6kB"), (2_000_000, "2.0MB")]
        {
            assert_eq!(bytes(count), expected);
        }
    }
}
