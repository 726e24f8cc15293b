//! Lowering of `load_balancing_policy`: the first extension of the list that Envoy knows counts,
//! whatever follows. Some have such a list themselves.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3 as proto;
use leno_api::proto::envoy::extensions::load_balancing_policies as policies;
use leno_api::proto::envoy::r#type::metadata::v3::MetadataKey;
use leno_api::proto::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use policies::common::v3::locality_lb_config::zone_aware_lb_config::{ForceLocalZone, LocalityBasis};
use policies::common::v3::locality_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use policies::common::v3::{ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig};
use prost_types::Any;

use super::{balancing, subset};
use crate::cluster::lb::settings::{
    Balancing, ClientWeighted, Hashing, LeastRequest, LoadAware, Localities, OverrideHosts, OverrideSource,
    PeakEwma, Policy, SlowStart, Spread, Subsets, TableKind,
};
use crate::config::lower::Lower;
use crate::http::route::hash_policy::HashPolicies;
use crate::http::route::matcher::header_name;

/// Takes the first policy of the list that Envoy knows. `provided`: the cluster's type names
/// endpoints itself.
pub(super) fn lower(proto: proto::LoadBalancingPolicy, provided: bool, at: &mut Lower) -> Option<Balancing> {
    for (index, policy) in proto.policies.into_iter().enumerate() {
        let proto::load_balancing_policy::Policy { typed_extension_config } = policy;
        let Some(extension) = typed_extension_config else {
            at.error_at(&format!("policies[{index}].typed_extension_config"), "is required");
            return None;
        };
        let Some(any) = extension.typed_config else { continue };
        let field = format!("policies[{index}].typed_extension_config.typed_config");
        let any = at.field(&field, |at| at.extension(any))?;
        match at.field(&field, |at| lower_one(&extension.name, &any, provided, at)) {
            Known::Lowered(balancing) => return balancing.map(|balancing| *balancing),
            // Not known to Envoy either: the next one is tried.
            Known::No => {}
        }
    }
    at.error("cluster: didn't find a registered load balancer factory");
    None
}

/// What an extension comes to.
enum Known {
    /// Not an extension of Envoy's.
    No,
    /// Lowered, or refused.
    Lowered(Option<Box<Balancing>>),
}

fn lower_one(name: &str, any: &Any, provided: bool, at: &mut Lower) -> Known {
    let type_name = leno_api::any::type_name(&any.type_url);
    let Some(policy) = type_name.strip_prefix("envoy.extensions.load_balancing_policies.") else {
        return Known::No;
    };
    let lowered = match policy {
        "cluster_provided.v3.ClusterProvided" => {
            if !provided {
                at.error("cluster: LB policy CLUSTER_PROVIDED is allowed only with cluster types that choose endpoints themselves");
            }
            let config = at.unpack(any);
            config.map(|policies::cluster_provided::v3::ClusterProvided {}| Balancing::ClusterProvided)
        }
        "round_robin.v3.RoundRobin" => round_robin(any, at),
        "random.v3.Random" => random(any, at),
        "least_request.v3.LeastRequest" => least_request(any, at),
        "ring_hash.v3.RingHash" => ring_hash(any, at),
        "maglev.v3.Maglev" => maglev(any, at),
        "subset.v3.Subset" => subsets(any, at),
        "override_host.v3.OverrideHost" => override_host(any, at),
        "wrr_locality.v3.WrrLocality" => wrr_locality(any, at),
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => client_weighted(any, at),
        "load_aware_locality.v3.LoadAwareLocality" => load_aware(any, at),
        "peak_ewma.v3alpha.PeakEwma" => peak_ewma(any, at),
        "dynamic_modules.v3.DynamicModulesLoadBalancerConfig" => {
            at.unsupported_extension(name, &any.type_url);
            None
        }
        // pick_first and random_subsetting are in the API, but not in Envoy, which cannot even
        // read a file that has them, and passes over those that come by xDS.
        _ if at.scope().added_via_api => return Known::No,
        _ => {
            at.error(format!("extension '{name}' ({}) is not known", any.type_url));
            None
        }
    };
    Known::Lowered(lowered.map(Box::new))
}

fn round_robin(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } = at.unpack(any)?;
    let slow_start = slow_start(slow_start_config, at);
    Some(spread(Policy::RoundRobin { slow_start }, locality_lb_config, at))
}

fn random(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::random::v3::Random { locality_lb_config } = at.unpack(any)?;
    Some(spread(Policy::Random, locality_lb_config, at))
}

fn least_request(any: &Any, at: &mut Lower) -> Option<Balancing> {
    use policies::least_request::v3::least_request::SelectionMethod;
    let policies::least_request::v3::LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        // Replaced by `selection_method`.
        enable_full_scan,
        selection_method,
    } = at.unpack(any)?;
    let method = at.value::<SelectionMethod>("selection_method", selection_method)?;
    let policy = Policy::LeastRequest(LeastRequest {
        choices: choice_count.unwrap_or(2),
        bias: balancing::bias(active_request_bias, at),
        full_scan: method == SelectionMethod::FullScan || enable_full_scan == Some(true),
        slow_start: slow_start(slow_start_config, at),
    });
    Some(spread(policy, locality_lb_config, at))
}

fn ring_hash(any: &Any, at: &mut Lower) -> Option<Balancing> {
    use policies::ring_hash::v3::ring_hash::HashFunction;
    let policies::ring_hash::v3::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = at.unpack(any)?;
    let murmur = at.value::<HashFunction>("hash_function", hash_function)? == HashFunction::MurmurHash2;
    let table = balancing::ring(minimum_ring_size, maximum_ring_size, murmur, at)?;
    // The newer message replaces both.
    let hashing = consistent_hashing_lb_config.unwrap_or(ConsistentHashingLbConfig {
        use_hostname_for_hashing,
        hash_balance_factor,
        hash_policy: Vec::new(),
    });
    Some(consistent(table, hashing, locality_weighted_lb_config, at))
}

fn maglev(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::maglev::v3::Maglev {
        table_size,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = at.unpack(any)?;
    let table = balancing::maglev(table_size, at)?;
    let hashing = consistent_hashing_lb_config.unwrap_or_default();
    Some(consistent(table, hashing, locality_weighted_lb_config, at))
}

fn consistent(
    table: TableKind,
    proto: ConsistentHashingLbConfig,
    weighted: Option<LocalityWeightedLbConfig>,
    at: &mut Lower,
) -> Balancing {
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = proto;
    let policy =
        at.field("consistent_hashing_lb_config", |at| HashPolicies::lower("hash_policy", hash_policy, at));
    Balancing::Hash(Arc::new(Hashing {
        table,
        by_hostname: use_hostname_for_hashing,
        balance_factor: hash_balance_factor.unwrap_or(0),
        locality_weighted: weighted.is_some(),
        policy,
        shelf: Default::default(),
    }))
}

fn subsets(any: &Any, at: &mut Lower) -> Option<Balancing> {
    use policies::subset::v3::subset::{LbSubsetMetadataFallbackPolicy, LbSubsetSelector};
    let policies::subset::v3::Subset {
        fallback_policy,
        default_subset,
        subset_selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        subset_lb_policy,
    } = at.unpack(any)?;
    let inner = at.required("subset_lb_policy", subset_lb_policy, |inner, at| lower(inner, false, at));
    let metadata =
        at.value::<LbSubsetMetadataFallbackPolicy>("metadata_fallback_policy", metadata_fallback_policy)?;
    let selectors = at.each("subset_selectors", subset_selectors, |proto, at| {
        let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = proto;
        subset::selector(keys, single_host_per_subset, fallback_policy, fallback_keys_subset, at)
    });
    Some(Balancing::Subset(Arc::new(Subsets {
        fallback: subset::fallback(fallback_policy, at)?,
        default_subset: subset::object(default_subset),
        selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        fallback_list: metadata == LbSubsetMetadataFallbackPolicy::FallbackList,
        inner: inner?,
    })))
}

fn override_host(any: &Any, at: &mut Lower) -> Option<Balancing> {
    use policies::override_host::v3::override_host::OverrideHostSource;
    let policies::override_host::v3::OverrideHost {
        override_host_sources,
        selected_host_key,
        fallback_policy,
    } = at.unpack(any)?;
    let sources = at.each("override_host_sources", override_host_sources, |source, at| {
        let OverrideHostSource { header, metadata } = source;
        match (header.is_empty(), metadata) {
            (false, None) => Some(OverrideSource::Header(header_name(&header))),
            (true, Some(key)) => {
                let (namespace, path) = at.field("metadata", |at| metadata_key(key, at))?;
                Some(OverrideSource::Metadata(namespace, path))
            }
            (true, None) => {
                at.error("Empty override source");
                None
            }
            (false, Some(_)) => {
                at.error("Only one override source must be set");
                None
            }
        }
    });
    let selected_key = at.optional("selected_host_key", selected_host_key, metadata_key);
    let inner = at.required("fallback_policy", fallback_policy, |inner, at| lower(inner, false, at));
    Some(Balancing::OverrideHost(Arc::new(OverrideHosts { sources, selected_key, inner: inner? })))
}

fn metadata_key(proto: MetadataKey, at: &mut Lower) -> Option<(String, Vec<String>)> {
    let MetadataKey { key, path } = proto;
    let path = at.each("path", path, |segment, at| match segment.segment {
        Some(Segment::Key(key)) => Some(key),
        Some(_) => {
            at.unsupported("index", true);
            None
        }
        None => {
            at.error("a segment is required");
            None
        }
    });
    Some((key, path))
}

fn wrr_locality(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::wrr_locality::v3::WrrLocality { endpoint_picking_policy } = at.unpack(any)?;
    let field = "endpoint_picking_policy";
    match at.required(field, endpoint_picking_policy, |inner, at| lower(inner, false, at))? {
        Balancing::Spread(inner) if matches!(inner.policy, Policy::ClientWeighted(_)) => {
            Some(Balancing::Spread(Spread { localities: Localities::Weighted, ..inner }))
        }
        _ => {
            at.error_at(field, "only client_side_weighted_round_robin can be the endpoint picking policy");
            None
        }
    }
}

fn client_weighted(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin {
        enable_oob_load_report,
        // How often, if at all.
        oob_reporting_period: _,
        blackout_period,
        weight_expiration_period,
        weight_update_period,
        error_utilization_penalty,
        metric_names_for_computing_utilization,
        slow_start_config,
        oob_reporting_config,
    } = at.unpack(any)?;
    at.unsupported("enable_oob_load_report", enable_oob_load_report == Some(true));
    at.unsupported("oob_reporting_config", oob_reporting_config.is_some());
    let period = |field: &str, period, default, at: &mut Lower| {
        at.duration(field, period).unwrap_or(Duration::from_secs(default))
    };
    let settings = ClientWeighted {
        blackout: period("blackout_period", blackout_period, 10, at),
        expiration: period("weight_expiration_period", weight_expiration_period, 180, at),
        update_period: period("weight_update_period", weight_update_period, 1, at).max(SHORTEST_UPDATE),
        error_penalty: f64::from(error_utilization_penalty.unwrap_or(1.0)),
        metrics: metric_names_for_computing_utilization,
        slow_start: slow_start(slow_start_config, at),
    };
    Some(spread(Policy::ClientWeighted(Arc::new(settings)), None, at))
}

/// Envoy computes weights no more often.
const SHORTEST_UPDATE: Duration = Duration::from_millis(100);

fn load_aware(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::load_aware_locality::v3::LoadAwareLocality {
        endpoint_picking_policy,
        weight_update_period,
        metric_names_for_computing_utilization,
        utilization_variance_threshold,
        smoothing_time_constant,
        remote_probe_fraction,
        weight_expiration_period,
        enable_oob_load_report,
        // How often, if at all.
        oob_reporting_period: _,
    } = at.unpack(any)?;
    at.unsupported("enable_oob_load_report", enable_oob_load_report == Some(true));
    let field = "endpoint_picking_policy";
    let inner = at.required(field, endpoint_picking_policy, |inner, at| lower(inner, false, at));
    let expiration = at.duration("weight_expiration_period", weight_expiration_period);
    Some(Balancing::LoadAware(Arc::new(LoadAware {
        inner: inner?,
        update_period: at
            .duration("weight_update_period", weight_update_period)
            .unwrap_or(Duration::from_secs(1)),
        metrics: metric_names_for_computing_utilization,
        variance: utilization_variance_threshold.unwrap_or(0.1),
        smoothing: at
            .duration("smoothing_time_constant", smoothing_time_constant)
            .unwrap_or(Duration::from_secs(5)),
        probe: remote_probe_fraction.unwrap_or(0.03),
        expiration: Some(expiration.unwrap_or(Duration::from_secs(180))).filter(|limit| !limit.is_zero()),
    })))
}

fn peak_ewma(any: &Any, at: &mut Lower) -> Option<Balancing> {
    let policies::peak_ewma::v3alpha::PeakEwma {
        decay_time,
        // Observations count at once, on the worker that makes them: nothing is gathered.
        aggregation_interval: _,
        max_samples_per_host: _,
        default_rtt,
        penalty_value,
    } = at.unpack(any)?;
    let decay = at.duration("decay_time", decay_time).filter(|decay| !decay.is_zero());
    let default_rtt = at.duration("default_rtt", default_rtt).unwrap_or(Duration::from_millis(10));
    let settings = PeakEwma {
        decay: decay.unwrap_or(Duration::from_secs(10)),
        default_rtt: default_rtt.as_secs_f64(),
        penalty: penalty_value.unwrap_or(1e6),
    };
    Some(spread(Policy::PeakEwma(Arc::new(settings)), None, at))
}

fn slow_start(proto: Option<SlowStartConfig>, at: &mut Lower) -> Option<Arc<SlowStart>> {
    let SlowStartConfig { slow_start_window, aggression, min_weight_percent } = proto?;
    balancing::slow_start(slow_start_window, aggression, min_weight_percent.as_ref(), at)
}

/// A policy with what its configuration says of localities.
fn spread(policy: Policy, proto: Option<LocalityLbConfig>, at: &mut Lower) -> Balancing {
    let specifier =
        proto.and_then(|LocalityLbConfig { locality_config_specifier }| locality_config_specifier);
    let (localities, fail_on_panic) = match specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})) => {
            (Localities::Weighted, false)
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
            routing_enabled,
            min_cluster_size,
            fail_traffic_on_panic,
            force_locality_direct_routing,
            force_local_zone,
            locality_basis,
        })) => {
            let force = match force_local_zone {
                Some(ForceLocalZone { min_size }) => Some(min_size.unwrap_or(1)),
                None => force_locality_direct_routing.then_some(1),
            };
            let field = "locality_lb_config.zone_aware_lb_config.locality_basis";
            let basis = at.value::<LocalityBasis>(field, locality_basis);
            let by_weight = basis == Some(LocalityBasis::HealthyHostsWeight);
            let enabled = routing_enabled.as_ref();
            (balancing::zone_aware(enabled, min_cluster_size, force, by_weight, at), fail_traffic_on_panic)
        }
        None => (balancing::zone_aware(None, None, None, false, at), false),
    };
    Balancing::Spread(Spread { policy, localities, fail_on_panic })
}
