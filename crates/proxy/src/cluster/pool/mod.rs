//! Connections to one endpoint, on one worker.
//!
//! A request asks with [`acquire`]: an idle HTTP/1 connection (last used first) or a place in an
//! HTTP/2 connection is had at once; otherwise the request waits in line, and as many
//! connections are opened as there are waiters, within the cluster's circuit breakers. Whichever
//! connection is ready first serves the first in line. A failed attempt to connect fails all who
//! wait, as in Envoy. What is acquired is a lease: dropping it gives the connection back, or
//! closes it if its exchange is not complete.
//!
//! Requests in one line all speak the same protocols: where a cluster follows its clients' protocol, those
//! over HTTP/2 have a pool of their own beside the other, as in Envoy.
//!
//! A request whose kept connection turned out to be dead asks for a fresh HTTP/1 connection, one
//! that was neither used nor kept: servers tend to close their idle connections together, so the
//! next idle one would be dead as well. Where the circuit breaker allows no further connection, a
//! kept one gives way to it.
//!
//! Nothing here is awaited while the pool is borrowed, and leases are never dropped meanwhile.
//! Reading order: this file, `h1`, `h2`, `connect`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

use crate::cluster::pool::via::Via;
use crate::cluster::stats::{ClusterStats, Permit, Resource};
use crate::cluster::worker_cluster::{Host, HostCounts, WorkerCluster};
use crate::cluster::{Cluster, EndpointAddress, Http2Settings, Metadata, UpstreamProtocol};
use crate::http::codec::ResetReason;
use crate::http::codec::h2::stats::Http2Stats;
use crate::http::codec::side::Upstream;
use crate::telemetry::stream_info::next_connection_id;
use crate::tls::stats::TlsStats;
use crate::tls::{Offer, TlsInfo, Transport, UpstreamTls};

pub(crate) mod connect;
mod eyeballs;
mod h1;
mod h2;
pub(crate) mod preconnect;
pub(crate) mod tunnel;
pub(crate) mod via;

pub(crate) use connect::ConnectError;
pub(crate) use h1::H1Lease;
pub(crate) use h2::H2Lease;

/// The connections to one endpoint and who waits for one.
#[derive(Default)]
pub(crate) struct Pool {
    /// What its connections take over of a downstream connection; `None`: they are for all.
    via: Option<Rc<Via>>,
    /// Where the cluster follows its clients' protocol: the pool for requests over HTTP/2, from the first of
    /// them on.
    multiplexed: Option<Rc<RefCell<Pool>>>,
    #[allow(clippy::vec_box, reason = "connections move between pool and lease for each request")]
    idle: Vec<Box<h1::H1Connection>>,
    streams: Vec<Rc<h2::H2Connection>>,
    waiters: VecDeque<Waiter>,
    /// Connections being opened.
    connecting: usize,
    /// Connections that are open, idle or leased.
    open: usize,
    /// Counts how often the pool was drained: connections of an earlier count are not kept.
    drained: u32,
    /// Wakes the task that looks after idle connections.
    keeper: Arc<AtomicWaker>,
    /// Whether there is such a task.
    kept: bool,
}

struct Waiter {
    ready: oneshot::Sender<Result<Upstream, PoolFailure>>,
    /// No HTTP/1 connection that was used or kept will do.
    fresh: bool,
}

/// Why a request got no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolFailure {
    /// Overflow or a failure to connect.
    pub(crate) reason: ResetReason,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub(crate) detail: Option<Box<str>>,
}

/// What all connections of a pool have in common, kept apart from the pool so that idle
/// connections do not keep it alive.
struct Target {
    cluster: Arc<Cluster>,
    stats: ClusterStats,
    address: EndpointAddress,
    others: Arc<[SocketAddr]>,
    metadata: Metadata,
    hostname: Option<Arc<str>>,
    transport: Transport<UpstreamTls>,
    tls_stats: Option<Rc<TlsStats>>,
    counts: Rc<HostCounts>,
    /// Where HTTP/2 connections count, if the cluster may have some.
    http2_stats: Option<Http2Stats>,
    /// Which protocols will do.
    protocols: Protocols,
    pool: Weak<RefCell<Pool>>,
}

/// The protocols that requests can be sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocols {
    http1: bool,
    /// With both, ALPN decides.
    http2: bool,
}

impl Protocols {
    /// For requests to a cluster that came by HTTP/2 or not.
    fn of(cluster: &Cluster, downstream_http2: bool) -> Self {
        let (http1, http2) = match &cluster.protocol {
            UpstreamProtocol::Http1 => (true, false),
            UpstreamProtocol::Http2(_) => (false, true),
            UpstreamProtocol::Downstream(_) => (!downstream_http2, downstream_http2),
            UpstreamProtocol::Auto(_) => (true, true),
        };
        Self { http1, http2 }
    }

    /// What they are called in ALPN.
    fn names(self) -> &'static [&'static [u8]] {
        match (self.http1, self.http2) {
            (true, true) => &[b"h2", b"http/1.1"],
            (false, true) => &[b"h2"],
            _ => &[b"http/1.1"],
        }
    }

    /// How many requests one connection takes at once. Where ALPN decides, HTTP/2 is assumed first; if it
    /// was not, more connections are opened then.
    fn places(self, cluster: &Cluster) -> usize {
        let settings = if self.http2 { http2_settings(cluster) } else { None };
        settings.map_or(1, |settings| settings.max_concurrent_streams.clamp(1, 1024) as usize)
    }
}

impl Target {
    fn new(cluster: &WorkerCluster, host: &Host, pool: &Rc<RefCell<Pool>>, protocols: Protocols) -> Self {
        Self {
            cluster: Arc::clone(&cluster.config),
            stats: cluster.stats.clone(),
            address: host.config.address.clone(),
            metadata: host.config.metadata.clone(),
            others: Arc::clone(&host.config.others),
            hostname: host.config.hostname.clone(),
            transport: host.transport.clone(),
            tls_stats: cluster.tls_stats.clone(),
            counts: Rc::clone(&host.counts),
            http2_stats: cluster.http2.clone(),
            protocols,
            pool: Rc::downgrade(pool),
        }
    }

    /// Whom a connection goes to.
    fn peer<'a>(&'a self, via: Option<&'a Via>) -> connect::Peer<'a> {
        connect::Peer {
            cluster: &self.cluster,
            address: &self.address,
            others: &self.others,
            metadata: &self.metadata,
            via,
            hostname: self.hostname.as_deref(),
            transport: &self.transport,
            offer: match via.and_then(|via| via.alpn.as_deref()) {
                Some(names) => Offer::Instead(names),
                None => Offer::Otherwise(self.protocols.names()),
            },
            stats: self.tls_stats.as_deref(),
        }
    }
}

/// Counts one open connection, from connect to close.
struct Count {
    /// `%UPSTREAM_CONNECTION_ID%`.
    id: u64,
    target: Rc<Target>,
    started: Instant,
    tls: Option<Rc<TlsInfo>>,
    _permit: Permit,
}

impl Count {
    fn new(target: &Rc<Target>, permit: Permit) -> Self {
        target.stats.upstream_cx_active().inc();
        target.counts.cx_active.set(target.counts.cx_active.get() + 1);
        target.counts.cx_total.set(target.counts.cx_total.get() + 1);
        Self {
            id: next_connection_id(),
            target: Rc::clone(target),
            started: now(),
            tls: None,
            _permit: permit,
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let stats = &self.target.stats;
        stats.upstream_cx_active().dec();
        let active = &self.target.counts.cx_active;
        active.set(active.get().saturating_sub(1));
        stats.upstream_cx_destroy().inc();
        stats.upstream_cx_length_ms().record_ms(now().saturating_duration_since(self.started));
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Pool {
    fn taking_over(via: Option<Rc<Via>>) -> Self {
        let mut pool = Self::default();
        pool.via = via;
        pool
    }

    /// Whether there is no connection, and nobody waits for one.
    pub(crate) fn is_unused(&self) -> bool {
        self.open == 0
            && self.connecting == 0
            && self.waiters.is_empty()
            && self.multiplexed.as_ref().is_none_or(|pool| pool.borrow().is_unused())
    }
}

/// Closes idle connections; those in use take no further requests.
pub(crate) fn drain(pool: &Rc<RefCell<Pool>>) {
    let mut state = pool.borrow_mut();
    state.drained = state.drained.wrapping_add(1);
    let idle = std::mem::take(&mut state.idle);
    let streams = std::mem::take(&mut state.streams);
    state.open = state.open.saturating_sub(idle.len() + streams.len());
    let multiplexed = state.multiplexed.clone();
    drop(state);
    streams.iter().for_each(|connection| connection.drain());
    if let Some(pool) = multiplexed {
        drain(&pool);
    }
}

/// The pool for requests that came by HTTP/2 or not.
fn pool_for(cluster: &Cluster, host: &Host, downstream_http2: bool) -> Rc<RefCell<Pool>> {
    if !(downstream_http2 && matches!(cluster.protocol, UpstreamProtocol::Downstream(_))) {
        return Rc::clone(&host.pool);
    }
    let mut state = host.pool.borrow_mut();
    let via = state.via.clone();
    let pool = state.multiplexed.get_or_insert_with(|| Rc::new(RefCell::new(Pool::taking_over(via))));
    Rc::clone(pool)
}

impl Drop for Pool {
    /// The task that looks after idle connections ends with them.
    fn drop(&mut self) {
        self.keeper.wake();
    }
}

/// How HTTP/2 is spoken to the cluster, if it may be.
fn http2_settings(cluster: &Cluster) -> Option<&Http2Settings> {
    match &cluster.protocol {
        UpstreamProtocol::Http1 => None,
        UpstreamProtocol::Http2(settings)
        | UpstreamProtocol::Auto(settings)
        | UpstreamProtocol::Downstream(settings) => Some(settings),
    }
}

/// A connection that can be had at once. `fresh`: no kept HTTP/1 connection will do; an HTTP/2
/// connection tells by itself when it takes no more, so it may be any.
pub(crate) fn try_acquire(
    cluster: &WorkerCluster,
    host: &Host,
    downstream_http2: bool,
    fresh: bool,
) -> Option<Upstream> {
    let Protocols { http1, http2 } = Protocols::of(&cluster.config, downstream_http2);
    let multiplexed = || {
        let lease = h2::take(&pool_for(&cluster.config, host, true))?;
        Some(Upstream::H2 { lease, stream: None })
    };
    let found = if http2 { multiplexed() } else { None };
    let found = found.or_else(|| if http1 && !fresh { h1::take(&host.pool).map(Upstream::H1) } else { None });
    if cluster.config.extras.is_some() && found.is_some() {
        preconnect::keep_ratio(cluster, host, downstream_http2, false);
    }
    found
}

/// A connection for one request, opened if need be. Dropping the future leaves the line; a
/// connection that is being opened then serves somebody else.
pub(crate) async fn acquire(
    cluster: &WorkerCluster,
    host: &Host,
    downstream_http2: bool,
    high_priority: bool,
) -> Result<Upstream, PoolFailure> {
    match try_acquire(cluster, host, downstream_http2, false) {
        Some(upstream) => Ok(upstream),
        None => wait(cluster, host, downstream_http2, high_priority, false).await,
    }
}

/// What [`acquire`] does when [`try_acquire`] has nothing; `fresh` as there.
pub(crate) async fn wait(
    cluster: &WorkerCluster,
    host: &Host,
    downstream_http2: bool,
    high_priority: bool,
    fresh: bool,
) -> Result<Upstream, PoolFailure> {
    let stats = &cluster.stats;
    let Some(_pending) = Permit::take(&cluster.config, Resource::Pending, high_priority) else {
        stats.upstream_rq_pending_overflow().inc();
        return Err(PoolFailure { reason: ResetReason::Overflow, detail: None });
    };
    stats.upstream_rq_pending_total().inc();
    stats.upstream_rq_pending_active().inc();
    let _active = Pending(stats.clone());
    let pool = pool_for(&cluster.config, host, downstream_http2);
    let protocols = Protocols::of(&cluster.config, downstream_http2);
    let target = Rc::new(Target::new(cluster, host, &pool, protocols));
    let (ready, waiting) = oneshot::channel();
    pool.borrow_mut().waiters.push_back(Waiter { ready, fresh });
    open_for_waiters(&pool, &target, high_priority);
    if cluster.config.extras.is_some() {
        preconnect::keep_ratio(cluster, host, downstream_http2, high_priority);
    }
    match waiting.await {
        Ok(result) => result,
        // Cannot happen while the pool lives, and the host keeps it.
        Err(_) => Err(PoolFailure { reason: ResetReason::LocalConnectionFailure, detail: None }),
    }
}

/// Counts one request in line.
struct Pending(ClusterStats);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.upstream_rq_pending_active().dec();
    }
}

/// Opens connections until there is one for everybody in line.
fn open_for_waiters(pool: &Rc<RefCell<Pool>>, target: &Rc<Target>, high_priority: bool) {
    let places = target.protocols.places(&target.cluster);
    loop {
        let mut state = pool.borrow_mut();
        state.waiters.retain(|waiter| !waiter.ready.is_closed());
        if state.connecting * places >= state.waiters.len() {
            return;
        }
        let permit = match Permit::take(&target.cluster, Resource::Connections, high_priority) {
            Some(permit) => permit,
            None => {
                // Those in line cannot use the kept connections: the oldest makes room.
                if !state.idle.is_empty() {
                    let oldest = state.idle.remove(0);
                    state.open = state.open.saturating_sub(1);
                    drop(state);
                    drop(oldest);
                    continue;
                }
                target.stats.upstream_cx_overflow().inc();
                // The first connection is always allowed, or the line would never move.
                if state.open + state.connecting > 0 {
                    return;
                }
                Permit::force(&target.cluster, Resource::Connections, high_priority)
            }
        };
        state.connecting += 1;
        drop(state);
        tokio::task::spawn_local(open(Rc::clone(pool), Rc::clone(target), permit));
    }
}

/// Opens one connection and gives it to whoever is first in line.
async fn open(pool: Rc<RefCell<Pool>>, target: Rc<Target>, permit: Permit) {
    target.stats.upstream_cx_total().inc();
    let started = now();
    let mut count = Count::new(&target, permit);
    let via = pool.borrow().via.clone();
    let opened = match connect::open(target.peer(via.as_deref())).await {
        Err(error) => Err(error),
        Ok((socket, tls)) => {
            let http2 = match target.protocols {
                Protocols { http1: true, http2: true } => tls.as_ref().is_some_and(|tls| tls.is_http2()),
                Protocols { http2, .. } => http2,
            };
            count.tls = tls;
            if http2 {
                h2::connect(socket, count, &target).map(Opened::H2)
            } else {
                let drained = pool.borrow().drained;
                Ok(Opened::H1(h1::H1Connection::new(socket, count, &target, drained)))
            }
        }
    };
    if opened.is_ok() {
        target.stats.upstream_cx_connect_ms().record_ms(now().saturating_duration_since(started));
    }
    pool.borrow_mut().connecting -= 1;
    match opened {
        Ok(opened) => {
            pool.borrow_mut().open += 1;
            match opened {
                Opened::H1(connection) => {
                    target.stats.upstream_cx_http1_total().inc();
                    h1::offer(&pool, connection);
                    // It may have been assumed that one connection is enough for all.
                    open_for_waiters(&pool, &target, false);
                }
                Opened::H2(connection) => {
                    target.stats.upstream_cx_http2_total().inc();
                    pool.borrow_mut().streams.push(connection);
                    h2::serve_waiters(&pool);
                    open_for_waiters(&pool, &target, false);
                }
            }
        }
        Err(error) => {
            target.stats.upstream_cx_connect_fail().inc();
            target.counts.cx_connect_fail.set(target.counts.cx_connect_fail.get() + 1);
            if error == ConnectError::Timeout {
                target.stats.upstream_cx_connect_timeout().inc();
            }
            let waiters = std::mem::take(&mut pool.borrow_mut().waiters);
            target.stats.upstream_rq_pending_failure_eject().add(waiters.len() as u64);
            let failure = PoolFailure { reason: error.reason(), detail: error.detail() };
            for waiter in waiters {
                let _ = waiter.ready.send(Err(failure.clone()));
            }
        }
    }
}

enum Opened {
    H1(Box<h1::H1Connection>),
    H2(Rc<h2::H2Connection>),
}
