//! What listeners count.
//!
//! A sidecar has thousands of listeners without sockets, and uses few of them. Those count in blocks
//! that their first connection makes; until then their zeros are made when somebody looks.

use std::sync::{Arc, Mutex, PoisonError};

use crate::listener::Listener;
use crate::listener::inspect::FilterStats;
use crate::snapshot::Snapshot;
use crate::telemetry::stats::{Block, Computed, ThreadStats, stats_scope};

stats_scope! {
    /// `listener.ADDRESS.worker_N.`
    pub(crate) struct WorkerListenerStats {
        counter downstream_cx_total;
        gauge downstream_cx_active;
    }
}

stats_scope! {
    /// `listener.ADDRESS.`
    pub(crate) struct ListenerStats {
        counter downstream_cx_total;
        counter downstream_cx_destroy;
        counter downstream_cx_overflow;
        counter downstream_cx_overload_reject;
        gauge downstream_cx_active;
        counter downstream_listener_filter_error;
        counter downstream_listener_filter_remote_close;
        counter downstream_global_cx_overflow;
        counter downstream_pre_cx_timeout;
        gauge downstream_pre_cx_active;
        counter downstream_cx_transport_socket_connect_timeout;
        counter no_filter_chain_match;
        histogram downstream_cx_length_ms;
    }
}

/// What one worker counts of a listener.
pub(super) struct Counts {
    /// Over all of them.
    pub(super) listener: ListenerStats,
    /// Its own.
    pub(super) worker: WorkerListenerStats,
    /// Of its listener filters, in order.
    pub(super) filters: Vec<FilterStats>,
}

impl Counts {
    /// Of a listener, by the worker with this number.
    pub(super) fn new(listener: &Listener, thread: &ThreadStats, worker: usize) -> Self {
        let [prefix, of_worker] = scopes(listener, worker);
        Self {
            listener: ListenerStats::new(thread, &prefix),
            worker: WorkerListenerStats::new(thread, &of_worker),
            filters: FilterStats::all(listener, thread),
        }
    }
}

/// `listener.ADDRESS.` and `listener.ADDRESS.worker_N.`
fn scopes(listener: &Listener, worker: usize) -> [String; 2] {
    let prefix = format!("listener.{}.", listener.stat_prefix);
    let of_worker = format!("{prefix}worker_{worker}.");
    [prefix, of_worker]
}

/// Listeners without sockets, which count nothing before their first connection: their stats are made
/// when somebody looks. A sidecar has thousands of them, and uses few. The lock is never waited for:
/// both sides are on the main thread.
#[derive(Debug)]
pub(crate) struct SilentListeners {
    workers: usize,
    all: Mutex<Vec<Arc<Listener>>>,
}

impl SilentListeners {
    /// None of them; there are so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, all: Mutex::default() }
    }

    /// Follows the listeners of a snapshot.
    pub(crate) fn follow(&self, snapshot: &Snapshot) {
        let silent = snapshot.listeners.values().filter(|listener| !listener.bind_to_port);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.clear();
        all.extend(silent.cloned());
        all.shrink_to_fit();
    }
}

impl Computed for SilentListeners {
    fn blocks(&self) -> Vec<Arc<Block>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = Vec::with_capacity(all.len() * (1 + self.workers));
        for listener in &*all {
            for worker in 0..self.workers {
                let [prefix, of_worker] = scopes(listener, worker);
                if worker == 0 {
                    blocks.push(ListenerStats::detached(&prefix).into_block());
                }
                blocks.push(WorkerListenerStats::detached(&of_worker).into_block());
            }
        }
        blocks
    }

    /// They have counted nothing.
    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leno_api::proto::envoy::config::listener::v3 as proto;

    use super::{Counts, SilentListeners};
    use crate::config::lower::{Lower, Scope};
    use crate::snapshot::Snapshot;
    use crate::telemetry::scrape::{Sample, scrape};
    use crate::telemetry::stats::StatsStore;

    #[test]
    fn zeros_are_shown_of_listeners_without_sockets_until_they_count() {
        let text = "{name: a, address: {socket_address: {address: 10.96.0.1, port_value: 80}}, bind_to_port: false, \
                    filter_chains: [{}]}";
        let proto: proto::Listener =
            leno_api::decode_text(text, "listener").unwrap_or_else(|errors| panic!("{errors}"));
        let lowered = Lower::resource_in(Scope::default(), |at| {
            crate::listener::config::lower_proto(proto, bytes::Bytes::new(), None, at)
        });
        let listener = Arc::new(lowered.unwrap_or_else(|rejected| panic!("{rejected}")));
        let (store, silent) = (StatsStore::default(), Arc::new(SilentListeners::new(2)));
        store.add(Arc::<SilentListeners>::clone(&silent));
        let shown = || {
            let stats = scrape(&store, |name| name.ends_with(".downstream_cx_total"));
            let shown = stats.iter().map(|stat| match stat.value {
                Sample::Counter(count) => format!("{} {count}", stat.name),
                _ => stat.name.clone(),
            });
            shown.collect::<Vec<_>>()
        };
        let snapshot =
            Snapshot { listeners: [("a".into(), Arc::clone(&listener))].into(), ..Snapshot::default() };
        silent.follow(&snapshot);
        let names =
            ["", "worker_0.", "worker_1."].map(|of| format!("listener.10.96.0.1_80.{of}downstream_cx_total"));
        assert_eq!(shown(), names.each_ref().map(|name| format!("{name} 0")));
        let counts = Counts::new(&listener, &store.thread(), 1);
        counts.listener.downstream_cx_total().inc();
        assert_eq!(shown()[0], format!("{} 1", names[0]));
        silent.follow(&Snapshot::default());
        assert_eq!(shown().len(), 2, "what counts goes on");
    }
}
