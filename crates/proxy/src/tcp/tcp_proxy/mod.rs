//! envoy.filters.network.tcp_proxy: one upstream connection for each downstream connection.
//!
//! `serve` is the story of one session: choose a cluster, connect (again, up to
//! `max_connect_attempts`), copy, account. `config` lowers.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use leno_base::Name;
use leno_base::drain::Phase;

use crate::cluster::PickContext;
use crate::cluster::pool::{ConnectError, connect};
use crate::cluster::stats::{ClusterStats, Permit, Resource};
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::drain::DrainWatch;
use crate::io::{Accepted, Socket};
use crate::tcp::copy::{self, End, Moved};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::worker::Worker;

pub(crate) mod config;

/// A TCP proxy as configured, lowered.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    /// Scope of its stats: `tcp.STAT_PREFIX.`.
    pub(crate) stat_prefix: Name,
    /// `cluster` or `weighted_clusters` with their weights; never empty.
    pub(crate) clusters: Vec<(Name, u64)>,
    /// `idle_timeout`, 1 h by default; `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// `max_connect_attempts`, 1 by default.
    pub(crate) max_connect_attempts: u32,
    /// `max_downstream_connection_duration`.
    pub(crate) max_duration: Option<Duration>,
    /// `access_log`.
    pub(crate) access_logs: Vec<Arc<AccessLog>>,
    /// `access_log_options.flush_access_log_on_connected`.
    pub(crate) log_on_connected: bool,
    /// `access_log_options.access_log_flush_interval`.
    pub(crate) log_interval: Option<Duration>,
}

stats_scope! {
    /// `tcp.STAT_PREFIX.`
    struct TcpStats {
        counter downstream_cx_total;
        counter downstream_cx_no_route;
        counter downstream_cx_rx_bytes_total;
        gauge downstream_cx_rx_bytes_buffered;
        counter downstream_cx_tx_bytes_total;
        gauge downstream_cx_tx_bytes_buffered;
        counter idle_timeout;
        counter max_downstream_connection_duration;
    }
}

/// Serves one connection until it ends.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    proxy: Arc<TcpProxy>,
    accepted: Accepted,
    connection: Rc<ConnectionInfo>,
    drain: DrainWatch,
) {
    let stats = TcpStats::new(worker.stats(), &format!("tcp.{}.", proxy.stat_prefix));
    stats.downstream_cx_total().inc();
    let wall = SystemTime::now() - connection.started.elapsed();
    let info = StreamInfo::new(Rc::clone(&connection), None, connection.started, wall);
    let session = Session { worker: &worker, proxy: &proxy, stats: &stats, info: RefCell::new(info) };
    session.run(accepted, &drain).await;
    let info = session.info.into_inner();
    stats.downstream_cx_rx_bytes_total().add(info.bytes_received);
    stats.downstream_cx_tx_bytes_total().add(info.bytes_sent);
    proxy.access_logs.iter().for_each(|log| log.connection(&info));
}

/// One session under way.
struct Session<'a> {
    worker: &'a Worker,
    proxy: &'a TcpProxy,
    stats: &'a TcpStats,
    info: RefCell<StreamInfo>,
}

impl Session<'_> {
    async fn run(&self, mut accepted: Accepted, drain: &DrainWatch) {
        let Some((cluster, _open, mut upstream)) = self.connect().await else { return };
        if self.proxy.log_on_connected {
            self.log();
        }
        let early = std::mem::take(&mut accepted.buffered);
        let mut counted = Moved::default();
        let account = |moved: Moved| {
            let (sent, received) = (moved.sent - counted.sent, moved.received - counted.received);
            counted = moved;
            cluster.stats.upstream_cx_tx_bytes_total().add(sent);
            cluster.stats.upstream_cx_rx_bytes_total().add(received);
            let mut info = self.info.borrow_mut();
            info.bytes_received = moved.sent;
            info.bytes_sent = moved.received;
            info.upstream.wire_bytes_sent = moved.sent;
            info.upstream.wire_bytes_received = moved.received;
        };
        let copying = copy::bidirectional(&mut accepted.socket, &mut upstream, early, self.proxy.idle_timeout, account);
        tokio::select! {
            end = copying => self.ended(end),
            () = self.duration_limit() => {
                self.stats.max_downstream_connection_duration().inc();
                self.info.borrow_mut().flags.insert(ResponseFlags::DURATION_TIMEOUT);
            }
            () = drain.reached(Phase::Closing) => {}
            () = self.periodic_log() => {}
        }
    }

    /// Connects to a host of the chosen cluster, trying again up to `max_connect_attempts`.
    async fn connect(&self) -> Option<(Rc<WorkerCluster>, Open, Socket)> {
        let name = self.choose_cluster();
        let Some(cluster) = self.worker.cluster(name) else {
            self.stats.downstream_cx_no_route().inc();
            self.info.borrow_mut().flags.insert(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        {
            let upstream = &mut self.info.borrow_mut().upstream;
            upstream.cluster = Some(cluster.config.stat_name.clone());
            upstream.cluster_raw = Some(cluster.config.name.clone());
            upstream.cluster_metadata = Some(Arc::clone(&cluster.config.metadata));
        }
        for attempt in 1..=self.proxy.max_connect_attempts {
            let Some(host) = cluster.pick(&self.pick_context()) else {
                cluster.stats.upstream_cx_none_healthy().inc();
                self.info.borrow_mut().flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            {
                let upstream = &mut self.info.borrow_mut().upstream;
                upstream.host = host.address;
                upstream.hostname = host.config.hostname.clone();
                upstream.host_metadata = Some(Arc::clone(&host.config.metadata));
                upstream.attempts = attempt;
            }
            let started = Instant::now();
            match connect(&cluster, &host).await {
                Ok(socket) => {
                    cluster.stats.upstream_cx_connect_ms().record_ms(started.elapsed());
                    let upstream = &mut self.info.borrow_mut().upstream;
                    upstream.ready_at = Some(Instant::now());
                    upstream.local = local_address(&socket);
                    return Some((Rc::clone(&cluster), Open::new(&cluster, host), socket));
                }
                Err(ConnectError::Overflow) => {
                    self.info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                    return None;
                }
                Err(error) => {
                    host.counts.cx_connect_fail.set(host.counts.cx_connect_fail.get() + 1);
                    self.info.borrow_mut().upstream.transport_failure = Some(error.to_string().into());
                }
            }
        }
        cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
        let mut info = self.info.borrow_mut();
        info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        if self.proxy.max_connect_attempts > 1 {
            info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        }
        None
    }

    fn choose_cluster(&self) -> &str {
        let clusters = &self.proxy.clusters;
        let total: u64 = clusters.iter().map(|(_, weight)| weight).sum();
        let mut point = self.worker.random() % total.max(1);
        for (name, weight) in clusters {
            if point < *weight {
                return name;
            }
            point -= weight;
        }
        clusters.first().map_or("", |(name, _)| name)
    }

    fn pick_context(&self) -> PickContext<'static> {
        let connection = &self.info.borrow().connection;
        PickContext {
            original_dst: Some(connection.local),
            headers: None,
            avoid: &[],
            avoid_attempts: 0,
        }
    }

    /// Notes how the session ended; Envoy sets no flag when either side just closes.
    fn ended(&self, end: End) {
        let mut info = self.info.borrow_mut();
        match end {
            End::Finished => {}
            End::Idle => {
                self.stats.idle_timeout().inc();
                info.flags.insert(ResponseFlags::STREAM_IDLE_TIMEOUT);
            }
            End::Downstream(error) => {
                info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
                info.termination_details = Some(format!("downstream: {error}").into());
            }
            End::Upstream(error) => {
                info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
                info.termination_details = Some(format!("upstream: {error}").into());
            }
        }
    }

    async fn duration_limit(&self) {
        match self.proxy.max_duration {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    }

    /// Writes `access_log_flush_interval` records for ever.
    async fn periodic_log(&self) {
        let Some(interval) = self.proxy.log_interval else { return std::future::pending().await };
        loop {
            tokio::time::sleep(interval).await;
            self.log();
        }
    }

    fn log(&self) {
        let info = self.info.borrow();
        self.proxy.access_logs.iter().for_each(|log| log.connection(&info));
    }
}

/// Counts a session with its cluster and host while it lives.
struct Open {
    stats: ClusterStats,
    host: Rc<Host>,
    started: Instant,
    _permit: Permit,
}

impl Open {
    fn new(cluster: &WorkerCluster, host: Rc<Host>) -> Self {
        let stats = cluster.stats.clone();
        stats.upstream_cx_active().inc();
        stats.upstream_rq_total().inc();
        host.active.set(host.active.get() + 1);
        host.counts.cx_total.set(host.counts.cx_total.get() + 1);
        host.counts.cx_active.set(host.counts.cx_active.get() + 1);
        host.counts.rq_total.set(host.counts.rq_total.get() + 1);
        // The limit was looked at when connecting.
        let permit = Permit::force(&cluster.config, Resource::Connections, false);
        Self { stats, host, started: Instant::now(), _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stats.upstream_cx_active().dec();
        self.stats.upstream_cx_destroy().inc();
        self.stats.upstream_cx_length_ms().record_ms(self.started.elapsed());
        self.host.active.set(self.host.active.get().saturating_sub(1));
        let active = &self.host.counts.cx_active;
        active.set(active.get().saturating_sub(1));
    }
}

fn local_address(socket: &Socket) -> Option<SocketAddr> {
    match socket {
        Socket::Tcp(stream) => stream.local_addr().ok(),
        Socket::Unix(_) => None,
    }
}
