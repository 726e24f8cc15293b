//! Applies what DestinationRules say of the choice among endpoints to a cluster.

use super::draft::Draft;
use crate::model::destination_rule::{ConsistentHash, LoadBalancer, Simple, Warmup};
use crate::model::duration::Span;
use crate::scope::locality::LocalitySetting;
use crate::translate::proto::{cluster, core, ty};

/// The ring of a hash balancer whose author does not say how large it is to be.
const RING_SIZE: u64 = 1024;

/// Envoy wants a runtime key; Istio's is one that nobody can have set.
const NO_RUNTIME_KEY: &str = "(";

/// Applies a choice of balancer, or the default. `direct` says whether the address that the caller
/// wanted is known, without which PASSTHROUGH has no meaning.
// Deviation: istiod makes clusters with PASSTHROUGH of gateways and of proxies without capture lead to
// the address that clients connected to, which is the proxy's own. Here they choose among endpoints.
pub(super) fn apply(draft: &mut Draft, balancer: Option<&LoadBalancer>, direct: bool) {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy};
    let slow_start = balancer.and_then(slow_start);
    let message = &mut draft.cluster;
    let simple = balancer.and_then(|balancer| balancer.simple);
    let policy = match simple {
        Some(Simple::Random) => LbPolicy::Random,
        Some(Simple::Passthrough) if direct => {
            message.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
            message.load_assignment = None;
            LbPolicy::ClusterProvided
        }
        Some(Simple::RoundRobin) => {
            message.lb_config = slow_start.map(|slow_start_config| {
                LbConfig::RoundRobinLbConfig(cluster::cluster::RoundRobinLbConfig {
                    slow_start_config: Some(slow_start_config),
                })
            });
            LbPolicy::RoundRobin
        }
        None | Some(Simple::Unspecified | Simple::LeastConn | Simple::LeastRequest | Simple::Passthrough) => {
            message.lb_config = slow_start.map(|slow_start_config| {
                LbConfig::LeastRequestLbConfig(cluster::cluster::LeastRequestLbConfig {
                    slow_start_config: Some(slow_start_config),
                    ..cluster::cluster::LeastRequestLbConfig::default()
                })
            });
            LbPolicy::LeastRequest
        }
    };
    message.lb_policy = policy as i32;
    if let Some(hash) = balancer.and_then(|balancer| balancer.consistent_hash.as_ref()) {
        consistent_hash(message, hash);
    }
}

pub(super) fn consistent_hash(message: &mut cluster::Cluster, hash: &ConsistentHash) {
    use cluster::cluster::{LbConfig, LbPolicy};
    let ring = |size: u64| {
        LbConfig::RingHashLbConfig(cluster::cluster::RingHashLbConfig {
            minimum_ring_size: Some(size),
            ..cluster::cluster::RingHashLbConfig::default()
        })
    };
    let given = |size: u64| (size != 0).then_some(size);
    if let Some(maglev) = &hash.maglev {
        message.lb_policy = LbPolicy::Maglev as i32;
        message.lb_config = given(maglev.table_size).map(|table_size| {
            LbConfig::MaglevLbConfig(cluster::cluster::MaglevLbConfig { table_size: Some(table_size) })
        });
    } else {
        message.lb_policy = LbPolicy::RingHash as i32;
        message.lb_config = match &hash.ring_hash {
            Some(settings) => given(settings.minimum_ring_size).map(ring),
            None => Some(ring(given(hash.minimum_ring_size).unwrap_or(RING_SIZE))),
        };
    }
}

/// How new endpoints are spared at first.
fn slow_start(balancer: &LoadBalancer) -> Option<cluster::cluster::SlowStartConfig> {
    if let Some(Warmup { duration, minimum_percent, aggression }) = &balancer.warmup {
        return Some(cluster::cluster::SlowStartConfig {
            slow_start_window: duration.map(Span::to_proto),
            aggression: Some(core::RuntimeDouble {
                default_value: aggression.unwrap_or(1.0),
                runtime_key: NO_RUNTIME_KEY.to_owned(),
            }),
            min_weight_percent: Some(ty::v3::Percent { value: minimum_percent.unwrap_or(10.0) }),
        });
    }
    let window = balancer.warmup_duration_secs?;
    Some(cluster::cluster::SlowStartConfig {
        slow_start_window: Some(window.to_proto()),
        ..cluster::cluster::SlowStartConfig::default()
    })
}

/// Says whether places are told apart by weights or by Envoy itself.
pub(super) fn locality(draft: &mut Draft, setting: Option<&LocalitySetting>) {
    use cluster::cluster::common_lb_config::{
        LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
    };
    let specifier = match setting {
        None => None,
        Some(LocalitySetting::Places { setting, forced }) => {
            let failover = (*forced || draft.cluster.outlier_detection.is_some())
                && !(setting.failover.is_empty() && setting.failover_priority.is_empty());
            (failover || !setting.distribute.is_empty()).then(|| {
                LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default())
            })
        }
        Some(LocalitySetting::Zones(setting)) => {
            let off = setting.enabled == Some(false);
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
                routing_enabled: off.then_some(ty::v3::Percent { value: 0.0 }),
                min_cluster_size: setting.min_cluster_size,
                ..ZoneAwareLbConfig::default()
            }))
        }
    };
    if specifier.is_some() {
        draft.cluster.common_lb_config.get_or_insert_default().locality_config_specifier = specifier;
    }
}
