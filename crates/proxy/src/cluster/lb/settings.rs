//! How a cluster's endpoints are chosen, lowered: `lb_policy` with its settings, or the first
//! known extension of `load_balancing_policy`. A cluster with Envoy's defaults allocates nothing
//! for it. `config/balancing` and `config/policies` lower; `build` makes a balancer of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;
use serde_json::Value;

use super::hashing::Shelf;
use crate::cluster::Locality;
use crate::http::route::hash_policy::HashPolicies;

/// How an endpoint is chosen.
#[derive(Clone, Debug)]
pub(crate) enum Balancing {
    /// By a policy among the hosts of one priority, or of one of its localities.
    Spread(Spread),
    /// By the request's hash, from a table (RING_HASH, MAGLEV).
    Hash(Arc<Hashing>),
    /// Among the hosts whose metadata the request asks for.
    Subset(Arc<Subsets>),
    /// The one that the request names.
    OverrideHost(Arc<OverrideHosts>),
    /// In the locality that has most room.
    LoadAware(Arc<LoadAware>),
    /// The discovery names the endpoint itself (ORIGINAL_DST).
    ClusterProvided,
}

/// A policy, and what localities mean to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The policy.
    pub(crate) policy: Policy,
    /// Localities.
    pub(crate) localities: Localities,
    /// `zone_aware_lb_config.fail_traffic_on_panic`: no host rather than an unhealthy one.
    pub(crate) fail_on_panic: bool,
}

/// A choice among a list of hosts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Policy {
    /// Weighted round robin.
    RoundRobin {
        /// `slow_start_config`, if its window is not zero.
        slow_start: Option<Arc<SlowStart>>,
    },
    /// The least busy host.
    LeastRequest(LeastRequest),
    /// Every host with the same probability.
    Random,
    /// Weighted round robin with weights from load reports (ORCA).
    ClientWeighted(Arc<ClientWeighted>),
    /// Least latency times load, of two random hosts.
    PeakEwma(Arc<PeakEwma>),
}

/// `least_request_lb_config`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LeastRequest {
    /// `choice_count`, 2 by default.
    pub(crate) choices: u32,
    /// `active_request_bias`, 1.0 by default.
    pub(crate) bias: f64,
    /// `selection_method: FULL_SCAN`: all hosts are looked at where weights are equal.
    pub(crate) full_scan: bool,
    /// `slow_start_config`, if its window is not zero.
    pub(crate) slow_start: Option<Arc<SlowStart>>,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self { choices: 2, bias: 1.0, full_scan: false, slow_start: None }
    }
}

/// `slow_start_config`: a host that is new gets less at first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SlowStart {
    /// `slow_start_window`.
    pub(crate) window: Duration,
    /// `aggression`, 1.0 by default; positive.
    pub(crate) aggression: f64,
    /// `min_weight_percent` as a fraction, 0.1 by default.
    pub(crate) min_weight: f64,
}

/// What localities mean.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Localities {
    /// Nothing.
    Ignored,
    /// `locality_weighted_lb_config`: load goes to them by their weights.
    Weighted,
    /// `zone_aware_lb_config` where there is a local cluster: load stays in this proxy's own.
    ZoneAware(Arc<ZoneAware>),
}

/// `zone_aware_lb_config`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZoneAware {
    /// `routing_enabled`, percent, 100 by default.
    pub(crate) routing_enabled: u64,
    /// `min_cluster_size`, 6 by default.
    pub(crate) min_cluster_size: u64,
    /// `force_local_zone.min_size`: all load stays if the local zone has so many healthy hosts.
    pub(crate) force_local: Option<u32>,
    /// `locality_basis: HEALTHY_HOSTS_WEIGHT`: hosts count by their weights.
    pub(crate) by_weight: bool,
}

/// Where this proxy is, for all clusters (`node.locality`, `cluster_manager.local_cluster_name`).
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Here {
    /// The cluster that this proxy itself belongs to.
    pub(crate) cluster: Option<Name>,
    /// Its locality.
    pub(crate) locality: Locality,
}

/// RING_HASH or MAGLEV.
#[derive(Debug)]
pub(crate) struct Hashing {
    /// Which table.
    pub(crate) table: TableKind,
    /// `use_hostname_for_hashing`.
    pub(crate) by_hostname: bool,
    /// `hash_balance_factor`, percent of the average load that a host may have; 0: no bound.
    pub(crate) balance_factor: u32,
    /// `locality_weighted_lb_config`.
    pub(crate) locality_weighted: bool,
    /// `consistent_hashing_lb_config.hash_policy`: in place of the route's.
    pub(crate) policy: Option<HashPolicies>,
    /// The tables that workers share.
    pub(crate) shelf: Shelf,
}

/// A table's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    /// `ring_hash`.
    Ring {
        /// `minimum_ring_size`, 1024 by default.
        min: u64,
        /// `maximum_ring_size`, 8 Mi by default.
        max: u64,
        /// `MURMUR_HASH_2` instead of XX_HASH.
        murmur: bool,
    },
    /// `maglev`, `table_size` (65537 by default), a prime number.
    Maglev(u64),
}

/// `lb_subset_config` or the subset extension.
#[derive(Debug)]
pub(crate) struct Subsets {
    /// What happens where no subset is found, or none asked for.
    pub(crate) fallback: Fallback,
    /// `default_subset`.
    pub(crate) default_subset: serde_json::Map<String, Value>,
    /// `subset_selectors`.
    pub(crate) selectors: Vec<Selector>,
    /// `allow_redundant_keys`.
    pub(crate) allow_redundant_keys: bool,
    /// `locality_weight_aware`.
    pub(crate) locality_weight_aware: bool,
    /// `scale_locality_weight`.
    pub(crate) scale_locality_weight: bool,
    /// `panic_mode_any`.
    pub(crate) panic_mode_any: bool,
    /// `list_as_any`.
    pub(crate) list_as_any: bool,
    /// `metadata_fallback_policy: FALLBACK_LIST`.
    pub(crate) fallback_list: bool,
    /// How a host of a subset is chosen.
    pub(crate) inner: Balancing,
}

/// `fallback_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// No host.
    None,
    /// Any host.
    Any,
    /// A host of the default subset.
    Default,
}

/// `subset_selectors[]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selector {
    /// `keys`.
    pub(crate) keys: BTreeSet<String>,
    /// `fallback_policy`; `None`: that of all selectors.
    pub(crate) fallback: Option<SelectorFallback>,
    /// `single_host_per_subset`.
    pub(crate) single_host: bool,
}

/// A selector's `fallback_policy`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SelectorFallback {
    /// As for all selectors.
    Common(Fallback),
    /// `KEYS_SUBSET`: once more with these criteria only.
    Keys(BTreeSet<String>),
}

/// The override_host extension.
#[derive(Debug)]
pub(crate) struct OverrideHosts {
    /// `override_host_sources`.
    pub(crate) sources: Vec<OverrideSource>,
    /// `selected_host_key`: namespace and path of the dynamic metadata that is told the host.
    pub(crate) selected_key: Option<(String, Vec<String>)>,
    /// `fallback_policy`.
    pub(crate) inner: Balancing,
}

/// Where the hosts are named.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OverrideSource {
    /// A request header.
    Header(Name),
    /// Dynamic metadata: namespace and path.
    Metadata(String, Vec<String>),
}

/// The client_side_weighted_round_robin extension.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClientWeighted {
    /// `blackout_period`, 10 s by default: reports of a host are not used before.
    pub(crate) blackout: Duration,
    /// `weight_expiration_period`, 3 min by default.
    pub(crate) expiration: Duration,
    /// `weight_update_period`, 1 s by default.
    pub(crate) update_period: Duration,
    /// `error_utilization_penalty`, 0 by default.
    pub(crate) error_penalty: f64,
    /// `metric_names_for_computing_utilization`.
    pub(crate) metrics: Vec<String>,
    /// `slow_start_config`.
    pub(crate) slow_start: Option<Arc<SlowStart>>,
}

/// The peak_ewma extension.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeakEwma {
    /// `decay_time`, 10 s by default.
    pub(crate) decay: Duration,
    /// `default_rtt`, 10 ms by default, seconds.
    pub(crate) default_rtt: f64,
    /// `penalty_value`, 1,000,000 by default.
    pub(crate) penalty: f64,
}

/// The load_aware_locality extension.
#[derive(Debug)]
pub(crate) struct LoadAware {
    /// How a host of a locality is chosen.
    pub(crate) inner: Balancing,
    /// `weight_update_period`, 1 s by default.
    pub(crate) update_period: Duration,
    /// `metric_names_for_computing_utilization`.
    pub(crate) metrics: Vec<String>,
    /// `utilization_variance_threshold`, 0.1 by default.
    pub(crate) variance: f64,
    /// `smoothing_time_constant`, 5 s by default.
    pub(crate) smoothing: Duration,
    /// `remote_probe_fraction`, 0.03 by default.
    pub(crate) probe: f64,
    /// `weight_expiration_period`, 3 min by default; `None`: reports do not age.
    pub(crate) expiration: Option<Duration>,
}

/// What load reports of endpoints are for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LoadReports<'a> {
    /// Weights of hosts.
    Weights(&'a ClientWeighted),
    /// Weights of localities.
    Localities(&'a LoadAware),
}

impl Balancing {
    /// Envoy's default.
    #[cfg(test)]
    pub(crate) fn round_robin() -> Self {
        Balancing::Spread(Spread::plain(Policy::RoundRobin { slow_start: None }))
    }

    /// The policy inside that chooses a host of what the others leave.
    pub(crate) fn innermost(&self) -> &Balancing {
        match self {
            Balancing::Subset(subsets) => subsets.inner.innermost(),
            Balancing::OverrideHost(overrides) => overrides.inner.innermost(),
            Balancing::LoadAware(aware) => aware.inner.innermost(),
            Balancing::Spread(_) | Balancing::Hash(_) | Balancing::ClusterProvided => self,
        }
    }

    /// The table that reads a request's hash, if there is one.
    pub(crate) fn hashing(&self) -> Option<&Hashing> {
        match self.innermost() {
            Balancing::Hash(hashing) => Some(hashing),
            _ => None,
        }
    }

    /// Who wants to know what endpoints report of their load.
    pub(crate) fn load_reports(&self) -> Option<LoadReports<'_>> {
        match self {
            Balancing::LoadAware(aware) => Some(LoadReports::Localities(aware)),
            Balancing::Subset(subsets) => subsets.inner.load_reports(),
            Balancing::OverrideHost(overrides) => overrides.inner.load_reports(),
            Balancing::Spread(Spread { policy: Policy::ClientWeighted(weighted), .. }) => {
                Some(LoadReports::Weights(weighted))
            }
            Balancing::Spread(_) | Balancing::Hash(_) | Balancing::ClusterProvided => None,
        }
    }

    /// Who wants to know how long endpoints take to answer.
    pub(crate) fn latencies(&self) -> Option<&PeakEwma> {
        match self.innermost() {
            Balancing::Spread(Spread { policy: Policy::PeakEwma(peak), .. }) => Some(peak),
            _ => None,
        }
    }

    /// Where the chosen host is told to the request.
    pub(crate) fn selected_key(&self) -> Option<&(String, Vec<String>)> {
        match self {
            Balancing::OverrideHost(overrides) => overrides.selected_key.as_ref(),
            Balancing::Subset(subsets) => subsets.inner.selected_key(),
            _ => None,
        }
    }
}

impl Spread {
    /// A policy to which localities mean nothing.
    #[cfg(test)]
    pub(crate) fn plain(policy: Policy) -> Self {
        Self { policy, localities: Localities::Ignored, fail_on_panic: false }
    }
}

impl Policy {
    /// How hosts start, if they start slowly.
    pub(crate) fn slow_start(&self) -> Option<&SlowStart> {
        match self {
            Policy::RoundRobin { slow_start } => slow_start.as_deref(),
            Policy::LeastRequest(least) => least.slow_start.as_deref(),
            Policy::ClientWeighted(weighted) => weighted.slow_start.as_deref(),
            Policy::Random | Policy::PeakEwma(_) => None,
        }
    }
}
