//! What runs on the main thread beside the clusters: DNS, health checks, outlier detection, and
//! resolving for DNS caches. Each follows the clusters that have changed, and looks at no others.

use std::collections::HashMap;
use std::sync::Arc;

use leno_base::Name;

use super::{Event, Server};
use crate::cluster::{Cluster, Discovery as ClusterDiscovery, dns_cache, health, outlier};
use crate::snapshot::Snapshot;
use crate::worker::Command;

impl Server {
    /// Starts resolving for a cluster as it is now, and ends what it does not need any more.
    pub(super) fn resolve(&mut self, name: &Name) {
        let wanted = self.store.dns_cluster(name);
        let current = self.resolving.get(name).map(|(cluster, _)| &cluster.discovery);
        if current == wanted.map(|wanted| &wanted.discovery) {
            return;
        }
        self.resolving.remove(name);
        let Some(cluster) = wanted else { return };
        let (settings, logical) = match &cluster.discovery {
            ClusterDiscovery::StrictDns(settings) => (Arc::clone(settings), false),
            ClusterDiscovery::LogicalDns(settings) => (Arc::clone(settings), true),
            _ => return,
        };
        let (events, by) = (self.events.clone(), Arc::clone(&settings));
        let found = move |name, assignment| {
            // Nobody listens once the proxy ends.
            let _ = events.send(Event::Resolved(name, Arc::clone(&by), assignment));
        };
        let task = crate::cluster::discovery::start(name.clone(), settings, logical, found);
        self.resolving.insert(name.clone(), (Arc::clone(cluster), task));
    }

    /// Starts what is to go on beside requests, for filters that have come since the last time.
    pub(super) fn start_background(&self) {
        let Some(worker) = self.workers.first() else { return };
        for (listener, work, stat_prefix) in self.store.background() {
            if work.claim() {
                let (events, listener) = (self.events.clone(), listener.clone());
                // Nobody listens once the proxy ends.
                let ready = Box::new(move || drop(events.send(Event::Ready(listener))));
                let (work, stat_prefix) = (Arc::clone(work), stat_prefix.clone());
                worker.tell(Command::Start { work, stat_prefix, ready });
            }
        }
    }

    /// Checks the hosts of those of these clusters that have health checks, in force or warming.
    pub(super) fn check_health(&mut self, news: &[Name]) {
        let checked: Vec<_> = news.iter().flat_map(|name| self.store.checked(name)).collect();
        for (cluster, assignment) in checked {
            if watch_of(&mut self.health, &cluster).is_none() {
                let Some(watch) = self.watch_health(&cluster) else { continue };
                let watches = self.health.entry(cluster.name.clone()).or_default();
                watches.push((Arc::clone(&cluster), watch));
            }
            let (Some(watch), Some(assignment)) = (watch_of(&mut self.health, &cluster), assignment) else {
                continue;
            };
            let in_force = watch.follow(&assignment);
            if !self.store.is_warming(&cluster) {
                self.store.keep(&cluster.name, &assignment, &in_force);
            }
        }
    }

    /// Ends checks for versions of these clusters that are gone.
    pub(super) fn forget_checks(&mut self, news: &[Name]) {
        for name in news {
            let Some(watches) = self.health.get_mut(name) else { continue };
            watches.retain(|(cluster, _)| self.store.has(cluster));
            if watches.is_empty() {
                self.health.remove(name);
            }
        }
    }

    fn watch_health(&self, cluster: &Arc<Cluster>) -> Option<health::watch::Watch> {
        if let Some(before) = self.store.snapshot().clusters.get(&cluster.name) {
            cluster.gauges.inherit(&before.gauges);
        }
        let (events, of) = (self.events.clone(), Arc::clone(cluster));
        // Nobody listens once the proxy ends.
        let report = move |report| drop(events.send(Event::Checked(Arc::clone(&of), report)));
        health::watch::Watch::new(cluster, &self.thread_stats, report)
    }

    /// Follows a health check that has changed something.
    pub(super) fn checked(&mut self, cluster: &Arc<Cluster>, report: health::watch::Report) {
        if report == health::watch::Report::First {
            if self.store.is_warming(cluster) {
                self.store.unsettle(&cluster.name);
                self.publish();
            }
            return;
        }
        let in_force = self.store.snapshot().clusters.get(&cluster.name);
        if !in_force.is_some_and(|in_force| Arc::ptr_eq(in_force, cluster)) {
            return;
        }
        let dropped = watch_of(&mut self.health, cluster).and_then(health::watch::Watch::drop_failed);
        match dropped {
            Some((discovered, in_force)) => {
                self.store.keep(&cluster.name, &discovered, &in_force);
                self.tell_endpoints(std::slice::from_ref(&cluster.name), &in_force);
            }
            None => self.regroup(&cluster.name),
        }
    }

    /// Watches the hosts of clusters that have outlier detection, and no others.
    pub(super) fn watch_outliers(&mut self, before: &Snapshot, snapshot: &Snapshot) {
        for change in before.clusters.changes(&snapshot.clusters) {
            let name = change.name;
            self.outliers.remove(name);
            let Some(cluster) = change.after else { continue };
            let (events, of) = (self.events.clone(), name.clone());
            let changed = move || drop(events.send(Event::Ejected(of.clone())));
            if let Some(task) =
                outlier::watch::start(cluster, &self.thread_stats, self.outlier_log.clone(), changed)
            {
                self.outliers.insert(name.clone(), task);
            }
        }
    }

    /// Resolves for the DNS caches of the clusters in force, each of which has its own, and no others.
    pub(super) fn fill_caches(&mut self, before: &Snapshot, snapshot: &Snapshot) {
        for change in before.clusters.changes(&snapshot.clusters) {
            self.caches.remove(change.name);
            let Some(cluster) = change.after else { continue };
            let ClusterDiscovery::DynamicForwardProxy(cache) = &cluster.discovery else { continue };
            if let Some(task) = dns_cache::resolve::start(cache, &self.thread_stats) {
                self.caches.insert(change.name.clone(), task);
            }
        }
    }
}

/// The health checks of one version of a cluster.
pub(super) fn watch_of<'w>(
    watches: &'w mut HashMap<Name, Vec<(Arc<Cluster>, health::watch::Watch)>>,
    cluster: &Arc<Cluster>,
) -> Option<&'w mut health::watch::Watch> {
    let of_name = watches.get_mut(&cluster.name)?.iter_mut();
    of_name.filter(|(of, _)| Arc::ptr_eq(of, cluster)).map(|(_, watch)| watch).next()
}
