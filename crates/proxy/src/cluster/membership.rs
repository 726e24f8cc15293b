//! How many hosts each cluster has, and how full its circuit breakers are. The main thread alone
//! knows (workers would count the same hosts once each), and computes it when somebody looks: kept
//! as blocks of counters, that of 10,000 clusters would be 14 MB.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leno_base::Name;

use crate::cluster::lb::settings::TableKind;
use crate::cluster::stats::{Resource, UpdateStats};
use crate::cluster::{
    Assignment, Balancing, Cluster, Discovery, EndpointAddress, EndpointConfig, HealthStatus,
};
use crate::snapshot::Snapshot;
use crate::telemetry::stats::{Block, Computed, stats_scope};

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

stats_scope! {
    /// `cluster.NAME.ring_hash_lb.`
    struct RingStats {
        gauge max_hashes_per_host;
        gauge min_hashes_per_host;
        gauge size;
    }
}

stats_scope! {
    /// `cluster.NAME.maglev_lb.`
    struct MaglevStats {
        gauge max_entries_per_host;
        gauge min_entries_per_host;
    }
}

stats_scope! {
    /// `dns_cache.NAME.circuit_breakers.`
    struct CacheBreakerStats {
        gauge rq_pending_open;
        gauge rq_pending_remaining;
    }
}

/// What is known of all clusters in force. The lock is never waited for: both sides that take it,
/// the main loop and the admin interface, are on the main thread.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    clusters: Mutex<HashMap<Name, Entry>>,
}

#[derive(Debug)]
struct Entry {
    config: Arc<Cluster>,
    /// The endpoints; held so that an equal pointer means the same ones.
    endpoints: Option<Arc<Assignment>>,
    /// `membership_change`.
    changes: u64,
}

impl Membership {
    /// Follows the clusters and endpoints from one snapshot to the next.
    pub(crate) fn follow(&self, before: &Snapshot, snapshot: &Snapshot) {
        let mut clusters = self.clusters();
        for change in before.clusters.changes(&snapshot.clusters) {
            let Some(config) = change.after else {
                clusters.remove(change.name);
                continue;
            };
            let new = || Entry { config: Arc::clone(config), endpoints: None, changes: 0 };
            let entry = clusters.entry(change.name.clone()).or_insert_with(new);
            entry.config = Arc::clone(config);
        }
        for change in before.endpoints.changes(&snapshot.endpoints) {
            if let Some(entry) = clusters.get_mut(change.name) {
                entry.follow(change.after);
            }
        }
    }

    /// Follows the endpoints of a cluster.
    pub(crate) fn count(&self, cluster: &str, endpoints: Option<&Arc<Assignment>>) {
        if let Some(entry) = self.clusters().get_mut(cluster) {
            entry.follow(endpoints);
        }
    }

    fn clusters(&self) -> MutexGuard<'_, HashMap<Name, Entry>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Computed for Membership {
    fn blocks(&self) -> Vec<Arc<Block>> {
        let clusters = self.clusters();
        let mut blocks = Vec::with_capacity(clusters.len() * 3);
        clusters.values().for_each(|entry| entry.show(&mut blocks));
        blocks
    }

    fn reset(&self) {
        self.clusters().values_mut().for_each(|entry| entry.changes = 0);
    }
}

impl Cluster {
    /// A host's health by all that is known of it.
    fn health_of(&self, endpoint: &EndpointConfig) -> HealthStatus {
        let monitor = self.outlier.as_ref().and_then(|detector| detector.monitor(&endpoint.address));
        if monitor.as_ref().is_some_and(|monitor| monitor.is_ejected()) {
            return HealthStatus::Unhealthy;
        }
        let vitals = self.health.as_ref().and_then(|health| health.vitals(&endpoint.address));
        match vitals.map_or(endpoint.health, |vitals| vitals.health(endpoint.health)) {
            HealthStatus::Healthy if monitor.is_some_and(|monitor| monitor.is_degraded()) => {
                HealthStatus::Degraded
            }
            other => other,
        }
    }

    /// Whether a host counts for nothing in balancing.
    fn excludes(&self, endpoint: &EndpointConfig) -> bool {
        let vitals = self.health.as_ref().and_then(|health| health.vitals(&endpoint.address));
        endpoint.health == HealthStatus::Draining || vitals.is_some_and(|vitals| vitals.is_excluded())
    }
}

impl Entry {
    fn follow(&mut self, endpoints: Option<&Arc<Assignment>>) {
        let same = match (&self.endpoints, endpoints) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        let before = self.endpoints.as_deref().map(addresses).unwrap_or_default();
        let now = endpoints.map(|now| addresses(now)).unwrap_or_default();
        self.changes += u64::from(before != now);
        self.endpoints = endpoints.cloned();
    }

    fn show(&self, blocks: &mut Vec<Arc<Block>>) {
        let scope = format!("cluster.{}.", self.config.stat_name);
        let hosts = MembershipStats::detached(&scope);
        hosts.membership_change().set(self.changes);
        self.count_hosts(&hosts);
        blocks.push(hosts.into_block());
        self.show_kind(&scope, blocks);
        // Those that count more are `config::discovery`'s.
        blocks.push(UpdateStats::detached(&scope).into_block());
        for (priority, (name, limits)) in
            ["default", "high"].into_iter().zip(&*self.config.circuit_breakers).enumerate()
        {
            let prefix = format!("{scope}circuit_breakers.{name}.");
            let left = |resource| {
                self.config.limit(resource, priority).saturating_sub(self.config.in_use(resource, priority))
            };
            let [cx, rq, pending, retries] =
                [Resource::Connections, Resource::Requests, Resource::Pending, Resource::Retries].map(left);
            let breakers = BreakerStats::detached(&prefix);
            breakers.cx_open().set(u64::from(cx == 0));
            // There is no limit of pools.
            breakers.cx_pool_open().set(0);
            breakers.rq_open().set(u64::from(rq == 0));
            breakers.rq_pending_open().set(u64::from(pending == 0));
            breakers.rq_retry_open().set(u64::from(retries == 0));
            blocks.push(breakers.into_block());
            if limits.track_remaining {
                let remaining = RemainingStats::detached(&prefix);
                remaining.remaining_cx().set(cx.into());
                remaining.remaining_cx_pools().set(u64::from(u32::MAX));
                remaining.remaining_rq().set(rq.into());
                remaining.remaining_pending().set(pending.into());
                remaining.remaining_retries().set(retries.into());
                blocks.push(remaining.into_block());
            }
        }
    }

    /// Gauges of certain kinds of clusters.
    fn show_kind(&self, scope: &str, blocks: &mut Vec<Arc<Block>>) {
        if let Discovery::DynamicForwardProxy(cache) = &self.config.discovery {
            let prefix = format!("dns_cache.{}.circuit_breakers.", cache.settings.name);
            let stats = CacheBreakerStats::detached(&prefix);
            let left = cache.pending_left();
            stats.rq_pending_open().set(u64::from(left == 0));
            stats.rq_pending_remaining().set(left);
            blocks.push(stats.into_block());
        }
        let Balancing::Hash(hashing) = self.config.balancing.innermost() else { return };
        let places = hashing.shelf.places();
        match hashing.table {
            TableKind::Ring { .. } => {
                let stats = RingStats::detached(&format!("{scope}ring_hash_lb."));
                stats.size().set(places.all);
                stats.min_hashes_per_host().set(places.least);
                stats.max_hashes_per_host().set(places.most);
                blocks.push(stats.into_block());
            }
            TableKind::Maglev(_) => {
                let stats = MaglevStats::detached(&format!("{scope}maglev_lb."));
                stats.min_entries_per_host().set(places.least);
                stats.max_entries_per_host().set(places.most);
                blocks.push(stats.into_block());
            }
        }
    }

    fn count_hosts(&self, stats: &MembershipStats) {
        let localities = self.endpoints.as_deref().map(|endpoints| endpoints.localities.as_slice());
        let (mut total, mut healthy, mut degraded, mut excluded) = (0, 0, 0, 0);
        for endpoint in localities.unwrap_or_default().iter().flat_map(|locality| &locality.endpoints) {
            total += 1;
            match self.config.health_of(endpoint) {
                HealthStatus::Healthy => healthy += 1,
                HealthStatus::Degraded => degraded += 1,
                HealthStatus::Unhealthy | HealthStatus::Draining => {}
            }
            excluded += u64::from(self.config.excludes(endpoint));
        }
        stats.membership_total().set(total);
        stats.membership_healthy().set(healthy);
        stats.membership_degraded().set(degraded);
        stats.membership_excluded().set(excluded);
    }
}

/// The addresses of all endpoints.
fn addresses(assignment: &Assignment) -> HashSet<&EndpointAddress> {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    endpoints.map(|endpoint| &endpoint.address).collect()
}
