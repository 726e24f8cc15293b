//! Connections that are opened before a request needs them (`preconnect_policy`), counted as Envoy
//! counts: of one endpoint, as many streams are provided for as are open or wait, times the ratio;
//! of a cluster likewise, where the endpoints that the balancer will choose next get a connection.
//! TCP proxies open their connections when they have a session.

use std::rc::Rc;

use crate::cluster::HealthStatus;
use crate::cluster::pool::{Pool, Protocols, Target, open, pool_for};
use crate::cluster::stats::{Permit, Resource};
use crate::cluster::worker_cluster::{Host, WorkerCluster};

/// At most so many at once, as in Envoy.
const AT_ONCE: usize = 3;

/// `preconnect_policy`.
#[derive(Clone, Debug)]
pub(crate) struct Preconnect {
    /// `per_upstream_preconnect_ratio`, 1 by default.
    pub(crate) per_upstream: f64,
    /// `predictive_preconnect_ratio`, 1 by default.
    pub(crate) predictive: f64,
    /// `preconnect_enabled_metadata`: only endpoints with such metadata; `None`: all.
    pub(crate) endpoints: Option<crate::matching::value::MetadataMatcher>,
}

impl Preconnect {
    fn allows(&self, host: &Host) -> bool {
        let fits =
            self.endpoints.as_ref().is_none_or(|matcher| matcher.matches_configured(&host.config.metadata));
        fits && host.health() == HealthStatus::Healthy
    }
}

impl Pool {
    /// Streams under way, and how many more its connections could take, those being opened included.
    fn load(&self, each: usize) -> (usize, usize) {
        let streams: usize = self.streams.iter().map(|connection| connection.active()).sum();
        let leased = self.open.saturating_sub(self.idle.len() + self.streams.len());
        let room: usize = self.streams.iter().map(|connection| connection.room()).sum();
        (leased + streams, self.idle.len() + room + self.connecting * each)
    }
}

/// A request has got a connection of this endpoint, or waits for one: opens what the ratio asks for
/// besides.
pub(super) fn keep_ratio(cluster: &WorkerCluster, host: &Host, downstream_http2: bool, high_priority: bool) {
    let Some(settings) = cluster.config.preconnect() else { return };
    if settings.per_upstream <= 1.0 || !settings.allows(host) {
        return;
    }
    for _ in 0..AT_ONCE {
        if !open_one(cluster, host, downstream_http2, high_priority, settings.per_upstream, 0) {
            return;
        }
    }
}

/// A request is about to ask for a connection of its endpoint: the endpoints of those that will
/// follow get one now.
pub(crate) fn anticipate(cluster: &WorkerCluster, downstream_http2: bool, high_priority: bool) {
    let Some(settings) = cluster.config.preconnect() else { return };
    if settings.predictive <= 1.0 {
        return;
    }
    let each = Protocols::of(&cluster.config, downstream_http2).places(&cluster.config);
    // Deviation: Envoy compares a cluster's streams with the connections of all clusters of a worker;
    // here each cluster counts for itself.
    // Those that were just opened do not count themselves yet.
    for opened in 0..AT_ONCE {
        let stats = &cluster.stats;
        let wanted = stats.upstream_rq_pending_active().value() + stats.upstream_rq_active().value() + 1;
        let provided = (stats.upstream_cx_active().value() as usize + opened) * each;
        if wanted as f64 * settings.predictive <= provided as f64 {
            return;
        }
        let Some(host) = cluster.peek() else { return };
        if !settings.allows(&host)
            || !open_one(cluster, &host, downstream_http2, high_priority, settings.predictive, 1)
        {
            return;
        }
    }
}

/// Opens a connection if its pool has too few for the ratio and `more` streams; false: it has not.
fn open_one(
    cluster: &WorkerCluster,
    host: &Host,
    downstream_http2: bool,
    high_priority: bool,
    ratio: f64,
    more: usize,
) -> bool {
    let protocols = Protocols::of(&cluster.config, downstream_http2);
    let pool = pool_for(&cluster.config, host, downstream_http2);
    let mut state = pool.borrow_mut();
    let (active, room) = state.load(protocols.places(&cluster.config));
    if (state.waiters.len() + active + more) as f64 * ratio <= (room + active) as f64 {
        return false;
    }
    let Some(permit) = Permit::take(&cluster.config, Resource::Connections, high_priority) else {
        cluster.stats.upstream_cx_overflow().inc();
        return false;
    };
    state.connecting += 1;
    drop(state);
    let target = Rc::new(Target::new(cluster, host, &pool, protocols));
    tokio::task::spawn_local(open(pool, target, permit));
    true
}
