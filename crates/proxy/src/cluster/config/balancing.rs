//! Lowering of how a cluster's endpoints are chosen: `lb_policy` with its settings, and what
//! `common_lb_config` says. `load_balancing_policy` is lowered in `policies`, subsets in
//! `subset`.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3 as proto;
use leno_api::proto::envoy::config::core::v3::{HealthStatus, HealthStatusSet, RuntimeDouble};
use leno_api::proto::envoy::r#type::v3::Percent;
use proto::cluster::common_lb_config::{
    ConsistentHashingLbConfig, LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use proto::cluster::ring_hash_lb_config::HashFunction;
use proto::cluster::{CommonLbConfig, LbConfig, LbPolicy, LbSubsetConfig};

use super::{policies, subset};
use crate::cluster::OverrideStatus;
use crate::cluster::lb::hashing::maglev::is_prime;
use crate::cluster::lb::settings::{
    Balancing, Hashing, LeastRequest, Localities, Policy, SlowStart, Spread, TableKind, ZoneAware,
};
use crate::config::lower::Lower;

/// The fields of a cluster that say how its endpoints are chosen.
pub(super) struct Fields {
    pub(super) policy: LbPolicy,
    pub(super) lb_config: Option<LbConfig>,
    pub(super) subset: Option<LbSubsetConfig>,
    pub(super) extensions: Option<proto::LoadBalancingPolicy>,
    pub(super) common: Option<CommonLbConfig>,
    /// The cluster's type names endpoints itself.
    pub(super) provided: bool,
}

/// What they come to.
pub(super) struct Lowered {
    pub(super) balancing: Balancing,
    /// Whole percent.
    pub(super) panic_threshold: f64,
    pub(super) override_status: OverrideStatus,
    pub(super) close_on_host_change: bool,
}

/// What `common_lb_config` says to policies.
struct Common {
    localities: Localities,
    fail_on_panic: bool,
    locality_weighted: bool,
    by_hostname: bool,
    balance_factor: u32,
}

/// Lowers all of them.
pub(super) fn lower(fields: Fields, at: &mut Lower) -> Option<Lowered> {
    let Fields { policy, lb_config, subset, extensions, common, provided } = fields;
    let CommonLbConfig {
        healthy_panic_threshold,
        // Updates are merged in our own way.
        update_merge_window: _,
        // Lowered with the health checks.
        ignore_new_hosts_until_first_hc: _,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = common.unwrap_or_default();
    let partial = locality_config_specifier.is_some() || consistent_hashing_lb_config.is_some();
    let common = common_settings(locality_config_specifier, consistent_hashing_lb_config, at);
    let balancing = if extensions.is_some() || policy == LbPolicy::LoadBalancingPolicyConfig {
        if partial {
            at.error_at(
                "load_balancing_policy",
                "cannot be combined with partial fields (zone_aware_lb_config, locality_weighted_lb_config, consistent_hashing_lb_config) of common_lb_config",
            );
        }
        match extensions {
            Some(extensions) => {
                at.field("load_balancing_policy", |at| policies::lower(extensions, provided, at))
            }
            None => {
                at.error_at("load_balancing_policy", "cluster: field load_balancing_policy need to be set");
                None
            }
        }
    } else {
        lower_policy(policy, lb_config, &common, provided, at)
            .and_then(|inner| subset::lower(subset, inner, common.locality_weighted, at))
    };
    Some(Lowered {
        balancing: balancing?,
        panic_threshold: healthy_panic_threshold.map_or(50.0, |percent| percent.value.round()),
        override_status: override_status(override_host_status),
        close_on_host_change: close_connections_on_host_set_change,
    })
}

fn lower_policy(
    policy: LbPolicy,
    lb_config: Option<LbConfig>,
    common: &Common,
    provided: bool,
    at: &mut Lower,
) -> Option<Balancing> {
    if provided != (policy == LbPolicy::ClusterProvided) {
        at.error_at(
            "lb_policy",
            if provided {
                format!(
                    "cluster: LB policy {} is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
                    policy.as_str_name()
                )
            } else {
                "cluster: LB policy CLUSTER_PROVIDED is allowed only with cluster types that choose endpoints themselves"
                    .to_owned()
            },
        );
        return None;
    }
    let spread = |policy: Policy| {
        let (localities, fail_on_panic) = (common.localities.clone(), common.fail_on_panic);
        Balancing::Spread(Spread { policy, localities, fail_on_panic })
    };
    let hashing = |table: TableKind| {
        Balancing::Hash(Arc::new(Hashing {
            table,
            by_hostname: common.by_hostname,
            balance_factor: common.balance_factor,
            locality_weighted: common.locality_weighted,
            policy: None,
            shelf: Default::default(),
        }))
    };
    // As in Envoy, what is said to another policy is not read.
    Some(match (policy, lb_config) {
        (LbPolicy::ClusterProvided, _) => Balancing::ClusterProvided,
        (LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
            let proto::cluster::RoundRobinLbConfig { slow_start_config } = config;
            spread(Policy::RoundRobin { slow_start: legacy_slow_start(slow_start_config, at) })
        }
        (LbPolicy::RoundRobin, _) => spread(Policy::RoundRobin { slow_start: None }),
        (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let proto::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } =
                config;
            spread(Policy::LeastRequest(LeastRequest {
                choices: choice_count.unwrap_or(2),
                bias: bias(active_request_bias, at),
                full_scan: false,
                slow_start: legacy_slow_start(slow_start_config, at),
            }))
        }
        (LbPolicy::LeastRequest, _) => spread(Policy::LeastRequest(LeastRequest::default())),
        (LbPolicy::Random, _) => spread(Policy::Random),
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            let proto::cluster::RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } =
                config;
            let function = at.value::<HashFunction>("ring_hash_lb_config.hash_function", hash_function)?;
            let murmur = function == HashFunction::MurmurHash2;
            hashing(ring(minimum_ring_size, maximum_ring_size, murmur, at)?)
        }
        (LbPolicy::RingHash, _) => hashing(ring(None, None, false, at)?),
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            let proto::cluster::MaglevLbConfig { table_size } = config;
            hashing(maglev(table_size, at)?)
        }
        (LbPolicy::Maglev, _) => hashing(maglev(None, at)?),
        (LbPolicy::LoadBalancingPolicyConfig, _) => return None,
    })
}

/// The shape of a ring.
pub(super) fn ring(min: Option<u64>, max: Option<u64>, murmur: bool, at: &mut Lower) -> Option<TableKind> {
    let (min, max) = (min.unwrap_or(1024), max.unwrap_or(8 << 20));
    if min > max {
        at.error(format!("ring hash: minimum_ring_size ({min}) > maximum_ring_size ({max})"));
        return None;
    }
    Some(TableKind::Ring { min, max, murmur })
}

/// The size of Maglev's table.
pub(super) fn maglev(size: Option<u64>, at: &mut Lower) -> Option<TableKind> {
    let size = size.unwrap_or(65537);
    if !is_prime(size) {
        at.error("The table size of maglev must be prime number");
        return None;
    }
    Some(TableKind::Maglev(size))
}

/// `active_request_bias`; what makes no sense counts as the default.
pub(super) fn bias(proto: Option<RuntimeDouble>, at: &Lower) -> f64 {
    runtime_double(proto, at).filter(|bias| *bias >= 0.0).unwrap_or(1.0)
}

fn runtime_double(proto: Option<RuntimeDouble>, at: &Lower) -> Option<f64> {
    let RuntimeDouble { default_value, runtime_key } = proto?;
    Some(at.scope().runtime.number(&runtime_key).unwrap_or(default_value))
}

fn legacy_slow_start(
    proto: Option<proto::cluster::SlowStartConfig>,
    at: &mut Lower,
) -> Option<Arc<SlowStart>> {
    let proto::cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = proto?;
    slow_start(slow_start_window, aggression, min_weight_percent.as_ref(), at)
}

/// `slow_start_config`; a window of zero switches it off.
pub(super) fn slow_start(
    window: Option<prost_types::Duration>,
    aggression: Option<RuntimeDouble>,
    min_weight: Option<&Percent>,
    at: &mut Lower,
) -> Option<Arc<SlowStart>> {
    let window = at.duration("slow_start_config.slow_start_window", window)?;
    let aggression = runtime_double(aggression, at).filter(|aggression| *aggression > 0.0);
    (window >= Duration::from_millis(1)).then(|| {
        Arc::new(SlowStart {
            window,
            aggression: aggression.unwrap_or(1.0),
            min_weight: min_weight.map_or(10.0, |percent| percent.value) / 100.0,
        })
    })
}

fn common_settings(
    specifier: Option<LocalityConfigSpecifier>,
    hashing: Option<ConsistentHashingLbConfig>,
    at: &mut Lower,
) -> Common {
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor } =
        hashing.unwrap_or_default();
    let mut common = Common {
        localities: Localities::Ignored,
        fail_on_panic: false,
        locality_weighted: false,
        by_hostname: use_hostname_for_hashing,
        balance_factor: hash_balance_factor.unwrap_or(0),
    };
    match specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})) => {
            common.localities = Localities::Weighted;
            common.locality_weighted = true;
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
            routing_enabled,
            min_cluster_size,
            fail_traffic_on_panic,
        })) => {
            common.localities = zone_aware(routing_enabled.as_ref(), min_cluster_size, None, false, at);
            common.fail_on_panic = fail_traffic_on_panic;
        }
        None => common.localities = zone_aware(None, None, None, false, at),
    }
    common
}

/// Zone-aware routing is the default, but nothing without a local cluster.
pub(super) fn zone_aware(
    routing_enabled: Option<&Percent>,
    min_cluster_size: Option<u64>,
    force_local: Option<u32>,
    by_weight: bool,
    at: &Lower,
) -> Localities {
    let runtime = &at.scope().runtime;
    if at.scope().here.cluster.is_none() {
        return Localities::Ignored;
    }
    let enabled = routing_enabled.map_or(100, |percent| percent.value.round() as u64);
    let forced = runtime.integer("upstream.zone_routing.force_local_zone_min_size").filter(|size| *size > 0);
    Localities::ZoneAware(Arc::new(ZoneAware {
        routing_enabled: runtime.integer("upstream.zone_routing.enabled").unwrap_or(enabled),
        min_cluster_size: runtime
            .integer("upstream.zone_routing.min_cluster_size")
            .unwrap_or(min_cluster_size.unwrap_or(6)),
        force_local: forced.and_then(|size| u32::try_from(size).ok()).or(force_local),
        by_weight,
    }))
}

fn override_status(proto: Option<HealthStatusSet>) -> OverrideStatus {
    let Some(HealthStatusSet { statuses }) = proto else {
        return OverrideStatus { healthy: true, degraded: true, unhealthy: false, draining: false };
    };
    let any = |wanted: &[HealthStatus]| wanted.iter().any(|status| statuses.contains(&(*status as i32)));
    OverrideStatus {
        healthy: any(&[HealthStatus::Unknown, HealthStatus::Healthy]),
        degraded: any(&[HealthStatus::Degraded]),
        unhealthy: any(&[HealthStatus::Unhealthy, HealthStatus::Timeout]),
        draining: any(&[HealthStatus::Draining]),
    }
}
