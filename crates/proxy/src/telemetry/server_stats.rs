//! Stats of the proxy as a whole: `server.`, `cluster_manager.`, `listener_manager.`,
//! `filesystem.`. The main thread counts them; their names are Envoy's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;

use crate::snapshot::Snapshot;
use crate::telemetry::access_log::sink;
use crate::telemetry::stats::{Cell, StatsStore, ThreadStats, stats_scope, total};

stats_scope! {
    /// `server.`
    pub(crate) struct ServerStats {
        gauge concurrency;
        gauge days_until_first_cert_expiring;
        counter dynamic_unknown_fields;
        gauge hot_restart_epoch;
        gauge live;
        gauge memory_allocated;
        gauge memory_heap_size;
        gauge memory_physical_size;
        gauge parent_connections;
        gauge state;
        gauge total_connections;
        gauge uptime;
    }
}

stats_scope! {
    /// `cluster_manager.`
    struct ClusterScope {
        gauge active_clusters;
        gauge warming_clusters;
        counter cluster_added;
        counter cluster_modified;
        counter cluster_removed;
    }
}

stats_scope! {
    /// `listener_manager.`
    struct ListenerScope {
        counter listener_added;
        counter listener_create_failure;
        counter listener_create_success;
        counter listener_in_place_updated;
        counter listener_modified;
        counter listener_removed;
        counter listener_stopped;
        gauge total_filter_chains_draining;
        gauge total_listeners_active;
        gauge total_listeners_draining;
        gauge total_listeners_warming;
        gauge workers_started;
    }
}

stats_scope! {
    /// `filesystem.`
    pub(crate) struct FileStats {
        counter flushed_by_timer;
        counter reopen_failed;
        counter write_buffered;
        counter write_completed;
        counter write_failed;
        gauge write_total_buffered;
        counter lines_dropped;
    }
}

/// `cluster_manager.`
#[derive(Clone, Debug)]
pub(crate) struct ClusterManagerStats {
    clusters: ClusterScope,
}

impl ClusterManagerStats {
    /// The calling thread's stats.
    pub(crate) fn new(thread: &ThreadStats, prefix: &str) -> Self {
        Self { clusters: ClusterScope::new(thread, prefix) }
    }

    /// Clusters in force.
    pub(crate) fn active_clusters(&self) -> Cell<'_> {
        self.clusters.active_clusters()
    }

    /// Clusters that are not warm yet.
    pub(crate) fn warming_clusters(&self) -> Cell<'_> {
        self.clusters.warming_clusters()
    }

    /// Counts what one snapshot changes in another.
    pub(crate) fn published(&self, before: &Snapshot, after: &Snapshot) {
        let [mut added, mut modified, mut removed] = [0; 3];
        for change in before.clusters.changes(&after.clusters) {
            match (change.before, change.after) {
                (None, _) => added += 1,
                (Some(_), Some(_)) => modified += 1,
                (Some(_), None) => removed += 1,
            }
        }
        self.clusters.cluster_added().add(added);
        self.clusters.cluster_modified().add(modified);
        self.clusters.cluster_removed().add(removed);
    }
}

/// `listener_manager.`
#[derive(Clone, Debug)]
pub(crate) struct ListenerManagerStats {
    listeners: ListenerScope,
}

impl ListenerManagerStats {
    /// The calling thread's stats.
    pub(crate) fn new(thread: &ThreadStats, prefix: &str) -> Self {
        let listeners = ListenerScope::new(thread, prefix);
        listeners.workers_started().set(1);
        Self { listeners }
    }

    /// Listeners in force.
    pub(crate) fn total_listeners_active(&self) -> Cell<'_> {
        self.listeners.total_listeners_active()
    }

    /// Listeners that are not warm yet.
    pub(crate) fn total_listeners_warming(&self) -> Cell<'_> {
        self.listeners.total_listeners_warming()
    }

    /// Counts what one snapshot changes in another, for so many workers.
    pub(crate) fn published(&self, before: &Snapshot, after: &Snapshot, workers: usize) {
        // What came by ECDS alone makes no other version of a listener.
        let [added, modified, removed] =
            changes(&before.listeners, &after.listeners, |then, now| then.is_same_version(now));
        self.listeners.listener_create_success().add((added + modified) * workers as u64);
        self.listeners.listener_added().add(added);
        self.listeners.listener_modified().add(modified);
        self.listeners.listener_in_place_updated().add(modified);
        self.listeners.listener_removed().add(removed);
    }

    /// Counts listeners that stopped to accept, on all workers.
    pub(crate) fn stopped(&self, count: u64) {
        self.listeners.listener_stopped().add(count);
    }
}

/// Listeners and filter chains that updates removed, for as long as their connections may live.
#[derive(Debug, Default)]
pub(crate) struct DrainingResources(Vec<DrainingUntil>);

#[derive(Debug)]
struct DrainingUntil {
    deadline: Instant,
    listeners: u64,
    chains: u64,
}

impl DrainingResources {
    /// Notes what one snapshot lacks of another.
    pub(crate) fn follow(&mut self, before: &Snapshot, after: &Snapshot, drain_time: Duration) {
        let mut gone = DrainingUntil { deadline: Instant::now() + drain_time, listeners: 0, chains: 0 };
        for (name, old) in &before.listeners {
            match after.listeners.get(name) {
                None => gone.listeners += 1,
                Some(new) if Arc::ptr_eq(old, new) => {}
                Some(new) => {
                    let successors = old.chains.successors(&new.chains);
                    gone.chains += successors.iter().filter(|(_, next)| next.is_none()).count() as u64;
                }
            }
        }
        if gone.listeners + gone.chains > 0 {
            self.0.push(gone);
        }
    }

    /// Brings the gauges up to date.
    pub(crate) fn sample(&mut self, stats: &ListenerManagerStats) {
        let now = Instant::now();
        self.0.retain(|gone| now < gone.deadline);
        stats.listeners.total_listeners_draining().set(self.0.iter().map(|gone| gone.listeners).sum());
        stats.listeners.total_filter_chains_draining().set(self.0.iter().map(|gone| gone.chains).sum());
    }
}

/// Stats that are sampled when somebody looks.
#[derive(Debug)]
pub(crate) struct Sampled {
    server: ServerStats,
    files: FileStats,
}

impl Sampled {
    /// Blocks of their own, which are summed with the main thread's.
    pub(crate) fn new(thread: &ThreadStats) -> Self {
        Self { server: ServerStats::new(thread, "server."), files: FileStats::new(thread, "filesystem.") }
    }

    /// Brings them up to date; `store` is where all listeners count.
    pub(crate) fn sample(&self, store: &StatsStore) {
        let active = store.counted().into_iter().filter(|block| block.prefix().starts_with("listener."));
        let active = active.filter_map(|block| {
            let index = block.schema().0.iter().position(|(name, _)| *name == "downstream_cx_active")?;
            Some(block.cell(index).value())
        });
        self.server.total_connections().set(total(active));
        let memory = Memory::sample();
        self.server.memory_allocated().set(memory.allocated);
        self.server.memory_heap_size().set(memory.heap);
        self.server.memory_physical_size().set(memory.resident);
        let counts = sink::counts();
        self.files.flushed_by_timer().set(counts.flushed_by_timer);
        self.files.reopen_failed().set(counts.reopen_failed);
        self.files.write_buffered().set(counts.write_buffered);
        self.files.write_completed().set(counts.write_completed);
        self.files.write_failed().set(counts.write_failed);
        self.files.write_total_buffered().set(counts.write_total_buffered);
        self.files.lines_dropped().set(counts.dropped);
    }
}

/// How much memory the process has, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Anonymous resident memory, which is what the allocator holds.
    pub(crate) allocated: u64,
    /// Data segments, resident or not.
    pub(crate) heap: u64,
    /// Everything resident.
    pub(crate) resident: u64,
}

impl Memory {
    /// Asks the system; zeros where it does not tell.
    pub(crate) fn sample() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Self { allocated: field("RssAnon"), heap: field("VmData"), resident: field("VmRSS") }
    }
}

/// How many are new, another version, gone.
fn changes<T>(
    before: &HashMap<Name, Arc<T>>,
    after: &HashMap<Name, Arc<T>>,
    same: impl Fn(&T, &T) -> bool,
) -> [u64; 3] {
    let mut counts = [0; 3];
    let [added, modified, removed] = &mut counts;
    for (name, now) in after {
        match before.get(name) {
            None => *added += 1,
            Some(then) if !same(then, now) => *modified += 1,
            Some(_) => {}
        }
    }
    *removed = before.keys().filter(|name| !after.contains_key(*name)).count() as u64;
    counts
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn changes_between_two_versions() {
        let map = |items: &[(&str, &std::sync::Arc<u8>)]| {
            items.iter().map(|(name, item)| ((*name).into(), std::sync::Arc::clone(item))).collect()
        };
        let (one, two) = (std::sync::Arc::new(1), std::sync::Arc::new(2));
        let before = map(&[("same", &one), ("changed", &one), ("gone", &one)]);
        let after = map(&[("same", &one), ("changed", &two), ("new", &one), ("newer", &one)]);
        assert_eq!(super::changes(&before, &after, |then, now| then == now), [2, 1, 1]);
    }

    #[test]
    fn a_process_has_memory() {
        let memory = Memory::sample();
        assert!(memory.allocated > 0 && memory.resident >= memory.allocated);
    }
}
