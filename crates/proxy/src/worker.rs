//! A worker: one thread with a current-thread runtime, its own listening sockets, connection
//! pools, balancer state and stats. START HERE to follow a request:
//! `worker` → `listener::accept` → `listener::filter_chain` → `http::connection` →
//! `http::stream::serve_request` → `http::route` → `http::filters` → `http::forward` →
//! `cluster::worker_cluster` → `cluster::pool`, and back through the same calls to `finish`.
//!
//! Everything in here is `!Send` and reached through `Rc`. The main thread talks to a worker
//! through its mailbox only.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use leno_base::Name;

use crate::cluster::worker_cluster::WorkerCluster;
use crate::http::route::RouteTable;
use crate::snapshot::Snapshot;

/// One worker's world.
pub(crate) struct Worker {
    /// The adopted configuration.
    snapshot: RefCell<Arc<Snapshot>>,
    /// The worker's side of each cluster.
    clusters: RefCell<HashMap<Name, Rc<WorkerCluster>>>,
    /// State of the random generator (splitmix64).
    random: Cell<u64>,
}

impl Worker {
    /// The worker's side of a cluster; `None`: no such cluster (or not warm yet).
    pub(crate) fn cluster(&self, name: &str) -> Option<Rc<WorkerCluster>> {
        self.clusters.borrow().get(name).cloned()
    }

    /// The current RDS table with this name; `None`: not received yet.
    pub(crate) fn routes(&self, name: &str) -> Option<Arc<RouteTable>> {
        self.snapshot.borrow().routes.get(name).cloned()
    }

    /// A uniformly random number.
    pub(crate) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
