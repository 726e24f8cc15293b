//! One request under way: what it counts for its cluster, its host and the circuit breakers.

use std::rc::Rc;

use crate::cluster::stats::Resource;
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::http::forward::Outcome;
use crate::http::stream::Ended;
use crate::telemetry::stream_info::ResponseFlags;

/// Counts one request under way at a host.
pub(crate) struct Active {
    cluster: Rc<WorkerCluster>,
    host: Rc<Host>,
    /// Of the circuit breaker: 0 default, 1 high.
    priority: usize,
}

impl Active {
    /// `None`: the circuit breaker for requests is open.
    pub(crate) fn new(cluster: &Rc<WorkerCluster>, host: &Rc<Host>, high_priority: bool) -> Option<Self> {
        let priority = usize::from(high_priority);
        if !cluster.config.take(Resource::Requests, priority) {
            return None;
        }
        cluster.stats.upstream_rq_total().inc();
        cluster.stats.upstream_rq_active().inc();
        host.active.set(host.active.get() + 1);
        increment(&host.counts.rq_total);
        Some(Self { cluster: Rc::clone(cluster), host: Rc::clone(host), priority })
    }

    /// Counts how the attempt went for its host.
    pub(super) fn count(&self, outcome: &Result<Outcome, Ended>, status: u16) {
        let counts = &self.host.counts;
        match outcome {
            Ok(Outcome::Done) if status < 500 => increment(&counts.rq_success),
            Ok(Outcome::TimedOut(_)) => increment(&counts.rq_timeout),
            Ok(_) | Err(Ended::Aborted) => increment(&counts.rq_error),
            Err(Ended::Reply(reply)) if reply.flags.intersects(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT) => {
                increment(&counts.rq_timeout);
            }
            Err(Ended::Redirected) => increment(&counts.rq_success),
            Err(Ended::Reply(_) | Ended::Downstream(_)) => {}
        }
    }
}

impl Active {
    /// Whose host it is.
    pub(super) fn cluster(&self) -> &Rc<WorkerCluster> {
        &self.cluster
    }

    /// The answer to a call of our own is complete.
    pub(crate) fn answered(&self, status: u16) {
        let counts = &self.host.counts;
        increment(if status < 500 { &counts.rq_success } else { &counts.rq_error });
    }

    /// The attempt broke, or was given up for another one.
    pub(crate) fn failed(&self) {
        increment(&self.host.counts.rq_error);
    }
}

fn increment(count: &std::cell::Cell<u64>) {
    count.set(count.get() + 1);
}

impl Drop for Active {
    fn drop(&mut self) {
        self.cluster.config.give_back(Resource::Requests, self.priority);
        self.cluster.stats.upstream_rq_active().dec();
        self.host.active.set(self.host.active.get().saturating_sub(1));
    }
}
