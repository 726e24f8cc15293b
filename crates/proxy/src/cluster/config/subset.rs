//! Lowering of `lb_subset_config`, and of what the subset extension has in common with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_api::proto::envoy::config::cluster::v3::cluster as proto;
use proto::LbSubsetConfig;
use proto::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as SelectorPolicy;
use proto::lb_subset_config::{LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector};

use crate::cluster::lb::settings::{Balancing, Fallback, Selector, SelectorFallback, Subsets};
use crate::config::address;
use crate::config::lower::Lower;

/// Lowers `lb_subset_config`, by which hosts are grouped before `inner` chooses.
pub(super) fn lower(
    proto: Option<LbSubsetConfig>,
    inner: Balancing,
    locality_weighted: bool,
    at: &mut Lower,
) -> Option<Balancing> {
    let Some(proto) = proto else { return Some(inner) };
    at.field("lb_subset_config", |at| {
        let LbSubsetConfig {
            fallback_policy,
            default_subset,
            subset_selectors,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
        } = proto;
        let fallback = fallback(fallback_policy, at);
        let metadata =
            at.value::<LbSubsetMetadataFallbackPolicy>("metadata_fallback_policy", metadata_fallback_policy);
        let selectors = at.each("subset_selectors", subset_selectors, |proto, at| {
            let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } =
                proto;
            selector(keys, single_host_per_subset, fallback_policy, fallback_keys_subset, at)
        });
        if selectors.is_empty() {
            // As in Envoy, there are no subsets then.
            return Some(inner);
        }
        if matches!(inner, Balancing::ClusterProvided) {
            at.error("cluster: LB policy CLUSTER_PROVIDED cannot be combined with lb_subset_config");
            return None;
        }
        if locality_weight_aware && !locality_weighted {
            at.error_at(
                "locality_weight_aware",
                "Locality weight aware subset LB requires that a locality_weighted_lb_config be set",
            );
        }
        Some(Balancing::Subset(Arc::new(Subsets {
            fallback: fallback?,
            default_subset: object(default_subset),
            selectors,
            allow_redundant_keys: false,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            fallback_list: metadata? == LbSubsetMetadataFallbackPolicy::FallbackList,
            inner,
        })))
    })
}

/// A Struct as an object.
pub(super) fn object(proto: Option<prost_types::Struct>) -> serde_json::Map<String, serde_json::Value> {
    match proto.map(address::object) {
        Some(serde_json::Value::Object(object)) => object,
        _ => serde_json::Map::new(),
    }
}

/// Lowers `fallback_policy`; the extension's has the same numbers.
pub(super) fn fallback(policy: i32, at: &mut Lower) -> Option<Fallback> {
    Some(match at.value::<LbSubsetFallbackPolicy>("fallback_policy", policy)? {
        LbSubsetFallbackPolicy::NoFallback => Fallback::None,
        LbSubsetFallbackPolicy::AnyEndpoint => Fallback::Any,
        LbSubsetFallbackPolicy::DefaultSubset => Fallback::Default,
    })
}

/// Lowers a selector; the extension's has the same numbers.
pub(super) fn selector(
    keys: Vec<String>,
    single_host: bool,
    policy: i32,
    fallback_keys: Vec<String>,
    at: &mut Lower,
) -> Option<Selector> {
    let keys: BTreeSet<String> = keys.into_iter().collect();
    let fallback_keys: BTreeSet<String> = fallback_keys.into_iter().collect();
    let policy = at.value::<SelectorPolicy>("fallback_policy", policy)?;
    if policy == SelectorPolicy::KeysSubset {
        if fallback_keys.is_empty() {
            at.error_at("fallback_keys_subset", "fallback_keys_subset cannot be empty");
        } else if !fallback_keys.is_subset(&keys) {
            at.error_at("fallback_keys_subset", "fallback_keys_subset must be a subset of selector keys");
        } else if fallback_keys == keys {
            at.error_at("fallback_keys_subset", "fallback_keys_subset cannot be equal to keys");
        }
    } else if !fallback_keys.is_empty() {
        at.error_at(
            "fallback_keys_subset",
            "fallback_keys_subset can be set only for KEYS_SUBSET fallback_policy",
        );
    }
    let fallback = match policy {
        SelectorPolicy::NotDefined => None,
        SelectorPolicy::NoFallback => Some(SelectorFallback::Common(Fallback::None)),
        SelectorPolicy::AnyEndpoint => Some(SelectorFallback::Common(Fallback::Any)),
        SelectorPolicy::DefaultSubset => Some(SelectorFallback::Common(Fallback::Default)),
        SelectorPolicy::KeysSubset => Some(SelectorFallback::Keys(fallback_keys)),
    };
    Some(Selector { keys, fallback, single_host })
}
