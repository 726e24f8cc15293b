//! How many hosts each cluster has, and how full its circuit breakers are: gauges that the main
//! thread alone sets, since workers would count the same hosts once each.

use std::collections::HashMap;
use std::sync::Arc;

use leno_base::Name;

use crate::cluster::stats::Resource;
use crate::cluster::{Assignment, Cluster, EndpointConfig, HealthStatus};
use crate::snapshot::Snapshot;
use crate::telemetry::stats::{ThreadStats, stats_scope};

stats_scope! {
    /// `cluster.NAME.`
    struct MembershipStats {
        counter membership_change;
        gauge membership_degraded;
        gauge membership_excluded;
        gauge membership_healthy;
        gauge membership_total;
    }
}

stats_scope! {
    /// `cluster.NAME.circuit_breakers.PRIORITY.`
    struct BreakerStats {
        gauge cx_open;
        gauge cx_pool_open;
        gauge rq_open;
        gauge rq_pending_open;
        gauge rq_retry_open;
    }
}

stats_scope! {
    /// The same with `track_remaining`.
    struct RemainingStats {
        gauge remaining_cx;
        gauge remaining_cx_pools;
        gauge remaining_pending;
        gauge remaining_retries;
        gauge remaining_rq;
    }
}

/// The gauges of all clusters in force.
pub(crate) struct Membership {
    thread: Arc<ThreadStats>,
    clusters: HashMap<Name, Entry>,
}

struct Entry {
    config: Arc<Cluster>,
    /// What was counted last; held so that an equal pointer means the same endpoints.
    counted: Option<Arc<Assignment>>,
    stats: MembershipStats,
    breakers: [BreakerStats; 2],
    remaining: [Option<RemainingStats>; 2],
}

impl Membership {
    /// Counts in this thread's blocks.
    pub(crate) fn new(thread: Arc<ThreadStats>) -> Self {
        Self { thread, clusters: HashMap::new() }
    }

    /// Follows the clusters and endpoints of a snapshot.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        self.clusters.retain(|name, _| snapshot.clusters.contains_key(name));
        for (name, config) in &snapshot.clusters {
            if self.clusters.get(name).is_none_or(|entry| !Arc::ptr_eq(&entry.config, config)) {
                let counted = self.clusters.get(name).and_then(|entry| entry.counted.clone());
                let entry = Entry::new(&self.thread, Arc::clone(config), counted);
                self.clusters.insert(name.clone(), entry);
            }
            self.count(name, snapshot.endpoints.get(name));
        }
    }

    /// Counts a cluster's hosts again after verdicts on them have changed.
    pub(crate) fn recount(&mut self, cluster: &str) {
        if let Some(entry) = self.clusters.get_mut(cluster) {
            let endpoints = entry.counted.clone();
            entry.gauge(endpoints.as_deref());
        }
    }

    /// Counts the endpoints that a cluster has now.
    pub(crate) fn count(&mut self, cluster: &str, endpoints: Option<&Arc<Assignment>>) {
        let Some(entry) = self.clusters.get_mut(cluster) else { return };
        let same = match (&entry.counted, endpoints) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now) && entry.stats.membership_total().is_used(),
            _ => false,
        };
        if !same {
            entry.count(endpoints);
        }
    }

    /// Samples the circuit breakers.
    pub(crate) fn sample(&self) {
        self.clusters.values().for_each(Entry::sample);
    }
}

impl Cluster {
    /// A host's health by all that is known of it.
    fn health_of(&self, endpoint: &EndpointConfig) -> HealthStatus {
        let ejected = self.outlier.as_ref().and_then(|detector| detector.monitor(&endpoint.address));
        if ejected.is_some_and(|monitor| monitor.is_ejected()) {
            return HealthStatus::Unhealthy;
        }
        let vitals = self.health.as_ref().and_then(|health| health.vitals(&endpoint.address));
        vitals.map_or(endpoint.health, |vitals| vitals.health(endpoint.health))
    }

    /// Whether a host counts for nothing in balancing.
    fn excludes(&self, endpoint: &EndpointConfig) -> bool {
        let vitals = self.health.as_ref().and_then(|health| health.vitals(&endpoint.address));
        endpoint.health == HealthStatus::Draining || vitals.is_some_and(|vitals| vitals.is_excluded())
    }
}

impl Entry {
    fn new(thread: &ThreadStats, config: Arc<Cluster>, counted: Option<Arc<Assignment>>) -> Self {
        let scope = format!("cluster.{}.", config.stat_name);
        let prefix = |priority: &str| format!("{scope}circuit_breakers.{priority}.");
        let remaining = |priority: usize, name: &str| {
            let tracked = config.circuit_breakers.get(priority).is_some_and(|limits| limits.track_remaining);
            tracked.then(|| RemainingStats::new(thread, &prefix(name)))
        };
        Self {
            stats: MembershipStats::new(thread, &scope),
            breakers: [
                BreakerStats::new(thread, &prefix("default")),
                BreakerStats::new(thread, &prefix("high")),
            ],
            remaining: [remaining(0, "default"), remaining(1, "high")],
            counted,
            config,
        }
    }

    fn count(&mut self, endpoints: Option<&Arc<Assignment>>) {
        let addresses = |assignment: &Assignment| {
            let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
            endpoints.map(|endpoint| endpoint.address.clone()).collect::<std::collections::HashSet<_>>()
        };
        self.gauge(endpoints.map(|endpoints| &**endpoints));
        let before = self.counted.as_deref().map(addresses).unwrap_or_default();
        let now = endpoints.map(|now| addresses(now)).unwrap_or_default();
        if before != now {
            self.stats.membership_change().inc();
        }
        self.counted = endpoints.cloned();
    }

    fn gauge(&self, endpoints: Option<&Assignment>) {
        let localities = endpoints.map(|endpoints| endpoints.localities.as_slice()).unwrap_or_default();
        let (mut total, mut healthy, mut degraded, mut excluded) = (0, 0, 0, 0);
        for endpoint in localities.iter().flat_map(|locality| &locality.endpoints) {
            total += 1;
            match self.config.health_of(endpoint) {
                HealthStatus::Healthy => healthy += 1,
                HealthStatus::Degraded => degraded += 1,
                HealthStatus::Unhealthy | HealthStatus::Draining => {}
            }
            excluded += u64::from(self.config.excludes(endpoint));
        }
        self.stats.membership_total().set(total);
        self.stats.membership_healthy().set(healthy);
        self.stats.membership_degraded().set(degraded);
        self.stats.membership_excluded().set(excluded);
    }

    fn sample(&self) {
        for (priority, breakers) in self.breakers.iter().enumerate() {
            let left = |resource| {
                self.config.limit(resource, priority).saturating_sub(self.config.in_use(resource, priority))
            };
            let [cx, rq, pending, retries] =
                [Resource::Connections, Resource::Requests, Resource::Pending, Resource::Retries].map(left);
            breakers.cx_open().set(u64::from(cx == 0));
            // There is no limit of pools.
            breakers.cx_pool_open().set(0);
            breakers.rq_open().set(u64::from(rq == 0));
            breakers.rq_pending_open().set(u64::from(pending == 0));
            breakers.rq_retry_open().set(u64::from(retries == 0));
            if let Some(Some(remaining)) = self.remaining.get(priority) {
                remaining.remaining_cx().set(cx.into());
                remaining.remaining_cx_pools().set(u64::from(u32::MAX));
                remaining.remaining_rq().set(rq.into());
                remaining.remaining_pending().set(pending.into());
                remaining.remaining_retries().set(retries.into());
            }
        }
    }
}
