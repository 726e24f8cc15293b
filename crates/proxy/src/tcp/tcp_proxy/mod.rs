//! envoy.filters.network.tcp_proxy: one upstream connection for each downstream connection.
//!
//! `serve` is the story of one session: choose a cluster, connect (again, up to
//! `max_connect_attempts`), copy, account. `tunnel` goes through an HTTP proxy instead of
//! connecting to the endpoint. `config` lowers.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use leno_base::drain::Phase;
use leno_base::{Backoff, Name, Rng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::aggregate::Picked;
use crate::cluster::lb::metadata::MetadataMatch;
use crate::cluster::on_demand::{Arrival, OnDemand};
use crate::cluster::outlier::Report;
use crate::cluster::pool;
use crate::cluster::pool::connect::{ConnectError, Peer, open};
use crate::cluster::pool::via::{Via, Wanted};
use crate::cluster::stats::{ClusterStats, Permit, Resource};
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::cluster::{EndpointConfig, PickContext};
use crate::drain::DrainWatch;
use crate::http::codec::ResetReason;
use crate::http::codec::side::Upstream;
use crate::http::headers::HeaderMap;
use crate::http::route::hash_policy::{hash_bytes, hash_ip};
use crate::io::{Accepted, Socket};
use crate::listener::network::metadata_exchange::Sides;
use crate::listener::network::{self, NetworkFilter, TCP_PROXY_CLUSTER};
use crate::overload::Reaction;
use crate::proxy_protocol::Tlv;
use crate::tcp::copy::{self, End, Moved, Who};
use crate::tcp::tcp_proxy::tunnel::{OpenStream, Refused, Tunneling};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::tls::Offer;
use crate::worker::Worker;

pub(crate) mod config;
mod tunnel;

/// A TCP proxy as configured, lowered.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    /// Scope of its stats: `tcp.STAT_PREFIX.`.
    pub(crate) stat_prefix: Name,
    /// `cluster` or `weighted_clusters`; never empty.
    pub(crate) clusters: Vec<Destination>,
    /// `hash_policy`, for hashing balancers.
    pub(crate) hash: Option<TcpHash>,
    /// `backoff_options`: how long to wait before another attempt to connect, and at most.
    pub(crate) backoff: Option<(Duration, Duration)>,
    /// `proxy_protocol_tlvs`.
    pub(crate) tlvs: Vec<Tlv>,
    /// `proxy_protocol_tlv_merge_policy`.
    pub(crate) tlv_merge: TlvMerge,
    /// `upstream_connect_mode: ON_DOWNSTREAM_DATA`: so many bytes are read at most before upstream
    /// is connected to.
    pub(crate) early_data: Option<usize>,
    /// `check_drain_close`.
    pub(crate) closes_on_drain: bool,
    /// `on_demand`: where unknown clusters are asked for.
    pub(crate) on_demand: Option<OnDemand>,
    /// `max_downstream_connection_duration_jitter_percentage`, as a share.
    pub(crate) duration_jitter: f64,
    /// `access_log_options.flush_access_log_on_start`.
    pub(crate) log_on_start: bool,
    /// `tunneling_config`.
    pub(crate) tunneling: Option<Tunneling>,
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

/// Where a session may go.
#[derive(Debug)]
pub(crate) struct Destination {
    /// The cluster.
    pub(crate) cluster: Name,
    /// Its weight among the others.
    pub(crate) weight: u64,
    /// `metadata_match`, with that of the whole proxy below it.
    pub(crate) metadata_match: Option<Box<MetadataMatch>>,
}

/// What a session's hash is computed of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TcpHash {
    /// The client's address without port.
    SourceIp,
    /// An object that a filter left.
    FilterState(Box<str>),
}

/// What becomes of configured values where the connection brought a PROXY protocol header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlvMerge {
    /// They are left out.
    AddIfAbsent,
    /// They replace those of their types.
    OverwriteByType,
    /// They come behind.
    Append,
}

stats_scope! {
    /// `tcp.STAT_PREFIX.`
    pub(crate) struct TcpStats {
        counter downstream_cx_overload_close;
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

/// Serves one connection until it ends; what is to be told of it is the caller's to log. `filters`
/// are told how it goes on, and ends.
pub(crate) async fn serve(
    worker: &Worker,
    proxy: &TcpProxy,
    accepted: Accepted,
    connection: Rc<ConnectionInfo>,
    drain: DrainWatch,
    filters: &mut [Box<dyn NetworkFilter>],
) -> StreamInfo {
    let stats = worker.tcp_stats(&proxy.stat_prefix);
    stats.downstream_cx_total().inc();
    let wall = SystemTime::now() - connection.started.elapsed();
    let info = StreamInfo::new(Rc::clone(&connection), None, connection.started, wall);
    if proxy.log_on_start {
        proxy.log(&info);
    }
    let session = Session { worker, proxy, stats: &stats, info: RefCell::new(info) };
    tokio::select! {
        () = session.run(accepted) => {}
        () = session.duration_limit() => {
            stats.max_downstream_connection_duration().inc();
            session.info.borrow_mut().flags.insert(ResponseFlags::DURATION_TIMEOUT);
        }
        () = drain.reached(if proxy.closes_on_drain { Phase::Draining } else { Phase::Closing }) => {}
        () = session.periodic_log() => {}
        () = session.periodic_report(filters) => {}
    }
    let info = session.info.into_inner();
    network::report(filters, &info, true);
    stats.downstream_cx_rx_bytes_total().add(info.bytes_received);
    stats.downstream_cx_tx_bytes_total().add(info.bytes_sent);
    info
}

impl TcpProxy {
    /// Writes a line to each access log.
    pub(crate) fn log(&self, info: &StreamInfo) {
        self.access_logs.iter().for_each(|log| log.connection(info));
    }
}

impl TcpHash {
    fn hash(&self, info: &StreamInfo) -> Option<u64> {
        match self {
            TcpHash::SourceIp => Some(hash_ip(info.connection.remote.ip())),
            TcpHash::FilterState(key) => {
                info.filter_state.get(key).map(|object| hash_bytes(object.text.as_bytes()))
            }
        }
    }
}

/// One session under way.
struct Session<'a> {
    worker: &'a Worker,
    proxy: &'a TcpProxy,
    stats: &'a TcpStats,
    info: RefCell<StreamInfo>,
}

impl Session<'_> {
    async fn run(&self, mut accepted: Accepted) {
        if let Some(limit) = self.proxy.early_data
            && !read_early(&mut accepted, limit).await
        {
            return;
        }
        if self.is_shed() {
            return;
        }
        let Some((cluster, to)) = self.connect(&mut accepted).await else { return };
        if self.proxy.log_on_connected {
            self.proxy.log(&self.info.borrow());
        }
        match to {
            To::Endpoint(open, upstream) => self.copy(accepted, &cluster, &open, upstream).await,
            To::Tunnel(open, upstream) => self.carry(accepted, &open, upstream).await,
        }
    }

    /// Bytes pass between two sockets.
    async fn copy(&self, mut accepted: Accepted, cluster: &WorkerCluster, open: &Open, mut upstream: Socket) {
        let mut early = std::mem::take(&mut accepted.buffered);
        let limit = accepted.buffer_limit;
        let mut begun = Moved::default();
        if let Some(exchange) = cluster.config.metadata_exchange() {
            let (mut states, tls) = {
                let upstream = &mut self.info.borrow_mut().upstream;
                (std::mem::take(&mut upstream.filter_state), upstream.tls.clone())
            };
            let mut rest = BytesMut::new();
            let (downstream, upstream) = (&mut accepted.socket, &mut upstream);
            let sides = Sides { downstream, upstream, early: &mut early, rest: &mut rest };
            let moved = |bytes| begun.sent += bytes;
            let outcome = exchange.with_server(self.worker, tls.as_deref(), &mut states, sides, moved).await;
            self.info.borrow_mut().upstream.filter_state = states;
            if outcome.is_none() || accepted.socket.write_all(&rest).await.is_err() {
                return;
            }
            begun.received += rest.len() as u64;
            cluster.stats.upstream_cx_tx_bytes_total().add(begun.sent);
            cluster.stats.upstream_cx_rx_bytes_total().add(begun.received);
            self.account(begun, (begun.sent, begun.received));
        }
        let mut counted = begun;
        let account = |moved: Moved| {
            let moved = Moved { sent: begun.sent + moved.sent, received: begun.received + moved.received };
            let (sent, received) = (moved.sent - counted.sent, moved.received - counted.received);
            counted = moved;
            cluster.stats.upstream_cx_tx_bytes_total().add(sent);
            cluster.stats.upstream_cx_rx_bytes_total().add(received);
            self.account(moved, (moved.sent, moved.received));
        };
        let idle = self.idle_timeout();
        let end = tokio::select! {
            end = copy::bidirectional(&mut accepted.socket, &mut upstream, early, limit, idle, account) => end,
            // `close_connections_on_host_health_failure`
            () = open.host.failed.notified() => return,
        };
        open.by_remote.set(matches!(end, End::Finished(Who::Upstream) | End::Upstream(_)));
        if matches!(end, End::Downstream) {
            // A reset is passed on as one.
            upstream.reset_on_close();
        }
        self.ended(&end, &accepted.socket);
    }

    /// Bytes pass between a socket and an HTTP stream.
    async fn carry(&self, mut accepted: Accepted, open: &OpenStream, mut upstream: Upstream) {
        let early = std::mem::take(&mut accepted.buffered);
        let trailers = |trailers: &HeaderMap| {
            if let Some(tunneling) = &self.proxy.tunneling {
                tunneling.note_trailers(trailers, &mut self.info.borrow_mut());
            }
        };
        let (sent, received) = {
            let earlier = &self.info.borrow().upstream;
            (earlier.wire_bytes_sent, earlier.wire_bytes_received)
        };
        // Deviation: Envoy counts the bytes of a tunnel twice here, as its HTTP stream's and as the
        // session's.
        let account = |moved, wire: (u64, u64)| self.account(moved, (sent + wire.0, received + wire.1));
        let idle = self.idle_timeout();
        let end = tokio::select! {
            end = tunnel::carry(&mut accepted.socket, early, &mut upstream, idle, account, trailers) => end,
            () = open.host.failed.notified() => End::Idle,
        };
        if !matches!(end, End::Finished(_)) {
            upstream.reset();
        }
        self.ended(&end, &accepted.socket);
    }

    /// Notes how many bytes have moved, and how many of upstream's were on the wire.
    fn account(&self, moved: Moved, (sent, received): (u64, u64)) {
        let mut info = self.info.borrow_mut();
        info.bytes_received = moved.sent;
        info.bytes_sent = moved.received;
        info.upstream.wire_bytes_sent = sent;
        info.upstream.wire_bytes_received = received;
    }

    /// `idle_timeout`, which filters may have set for this session.
    fn idle_timeout(&self) -> Option<Duration> {
        let info = self.info.borrow();
        let own = info.filter_state.get(IDLE_TIMEOUT).and_then(|state| state.text.parse().ok());
        own.map(Duration::from_millis).or(self.proxy.idle_timeout)
    }

    /// Notes how bytes stopped to pass.
    fn ended(&self, end: &End, downstream: &Socket) {
        match end {
            // Envoy sets no flag when either side just closes, nor when time is up.
            End::Finished(_) | End::Downstream => {}
            End::Idle => self.stats.idle_timeout().inc(),
            End::Upstream(error) => {
                if error.kind() == std::io::ErrorKind::ConnectionReset {
                    self.info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
                    downstream.reset_on_close();
                }
            }
        }
    }

    /// Whether overload lets it have no endpoint.
    fn is_shed(&self) -> bool {
        let (worker, overload) = (self.worker, self.worker.overload());
        if overload.is_calm() {
            return false;
        }
        let sheds = |point| overload.sheds(point, worker.stats(), || worker.random());
        if sheds(Reaction::ShedTcp) {
            self.stats.downstream_cx_overload_close().inc();
            return true;
        }
        sheds(Reaction::ShedUpstream)
    }

    /// Waits for a cluster that is not known.
    async fn fetch(&self, on_demand: &OnDemand, name: &str) {
        let awaited = self.worker.awaited();
        let stats = awaited.stats(self.worker.stats(), &self.proxy.stat_prefix);
        stats.on_demand_cluster_attempt().inc();
        match awaited.cluster(on_demand, name).await {
            Arrival::Found => stats.on_demand_cluster_success().inc(),
            Arrival::Missing => stats.on_demand_cluster_missing().inc(),
            Arrival::Late => stats.on_demand_cluster_timeout().inc(),
        }
    }

    /// Connects to a host of the chosen cluster, trying again up to `max_connect_attempts`.
    async fn connect(&self, accepted: &mut Accepted) -> Option<(Rc<WorkerCluster>, To)> {
        let chosen = self.info.borrow().filter_state.get(TCP_PROXY_CLUSTER).map(|state| state.text.clone());
        let destination = self.choose_cluster()?;
        let name = chosen.as_deref().unwrap_or(&destination.cluster);
        if let Some(on_demand) = &self.proxy.on_demand
            && self.worker.cluster(name).is_none()
        {
            self.fetch(on_demand, name).await;
        }
        let Some(cluster) = self.worker.cluster(name) else {
            self.stats.downstream_cx_no_route().inc();
            self.info.borrow_mut().flags.insert(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        {
            let upstream = &mut self.info.borrow_mut().upstream;
            upstream.cluster = Some(Rc::clone(&cluster.facts));
        }
        let tunneling = self.proxy.tunneling.as_ref().filter(|_| !self.goes_direct());
        let mut wait =
            self.proxy.backoff.map(|(base, max)| Backoff::new(base, max, Rng::new(self.worker.random())));
        // What it says of the session is what is known before a host is.
        let request = tunneling.map(|tunneling| tunneling.request(&self.info.borrow()));
        for attempt in 1..=self.proxy.max_connect_attempts {
            if let Some(backoff) = &mut wait
                && attempt > 1
            {
                tokio::time::sleep(backoff.next_wait()).await;
            }
            let Some(Picked { cluster: member, host, .. }) = self.pick(&cluster, destination, attempt - 1)
            else {
                cluster.stats.upstream_cx_none_healthy().inc();
                self.info.borrow_mut().flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            if let (Some(tunneling), Some(request)) = (tunneling, &request) {
                self.note_host(&host, attempt);
                match self.open_tunnel(tunneling, request, &member, &host, accepted).await {
                    Ok(to) => return Some((member, to)),
                    Err(Next::Attempt) => continue,
                    Err(Next::End) => return None,
                }
            }
            let Some(permit) = Permit::take(&member.config, Resource::Connections, false) else {
                member.stats.upstream_cx_overflow().inc();
                self.info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                return None;
            };
            self.note_host(&host, attempt);
            let started = Instant::now();
            let stats = &member.stats;
            stats.upstream_cx_total().inc();
            stats.upstream_rq_pending_total().inc();
            let via = self.via(&member);
            let EndpointConfig { address, others, metadata, hostname, .. } = &*host.config;
            let peer = Peer {
                cluster: &member.config,
                address,
                others,
                metadata,
                via: via.as_ref(),
                hostname: hostname.as_deref(),
                transport: &host.transport,
                offer: Offer::Configured,
                stats: member.tls_stats.as_deref(),
            };
            match open(peer).await {
                Ok((socket, tls)) => {
                    host.report(Report::ConnectedForGood);
                    stats.upstream_cx_connect_ms().record_ms(started.elapsed());
                    let upstream = &mut self.info.borrow_mut().upstream;
                    upstream.ready_at = Some(Instant::now());
                    upstream.local = socket.local_address();
                    upstream.tls = tls;
                    let open = Open::new(&member, host, permit);
                    return Some((member, To::Endpoint(open, socket)));
                }
                Err(error) => {
                    match error {
                        ConnectError::Timeout => host.report(Report::TimedOut),
                        // The host has no part in it.
                        ConnectError::Local(_) => {}
                        _ => host.report(Report::Failed),
                    }
                    host.counts.cx_connect_fail.set(host.counts.cx_connect_fail.get() + 1);
                    stats.upstream_cx_connect_fail().inc();
                    stats.upstream_rq_pending_failure_eject().inc();
                    stats.upstream_cx_destroy().inc();
                    if error == ConnectError::Timeout {
                        stats.upstream_cx_connect_timeout().inc();
                        stats.upstream_cx_destroy_local().inc();
                    } else {
                        stats.upstream_cx_destroy_remote().inc();
                    }
                    let words = error.to_string().replace(' ', "_");
                    self.info.borrow_mut().upstream.transport_failure = Some(words.into());
                }
            }
        }
        cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
        let mut info = self.info.borrow_mut();
        info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        None
    }

    fn note_host(&self, host: &Host, attempt: u32) {
        let upstream = &mut self.info.borrow_mut().upstream;
        upstream.host = host.address;
        upstream.endpoint = Some(Rc::clone(&host.config));
        upstream.attempts = attempt;
    }

    /// Whether a filter has this session go without its tunnel.
    fn goes_direct(&self) -> bool {
        self.info.borrow().filter_state.get(tunnel::DISABLE).is_some_and(|state| state.text == "true")
    }

    /// Asks the host for a tunnel.
    async fn open_tunnel(
        &self,
        tunneling: &Tunneling,
        request: &HeaderMap,
        member: &Rc<WorkerCluster>,
        host: &Rc<Host>,
        accepted: &mut Accepted,
    ) -> Result<To, Next> {
        let host = self
            .via(member)
            .map_or_else(|| Rc::clone(host), |via| host.via(Wanted { own: Some(via), alpn: None }));
        let mut upstream = match pool::acquire(member, &host, false, false).await {
            Ok(upstream) => upstream,
            Err(failure) if failure.reason == ResetReason::Overflow => {
                self.info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                return Err(Next::End);
            }
            Err(failure) => {
                let late = failure.reason == ResetReason::ConnectionTimeout;
                host.report(if late { Report::TimedOut } else { Report::Failed });
                let detail = failure.detail.map(|detail| detail.replace(' ', "_").into());
                self.info.borrow_mut().upstream.transport_failure = detail;
                return Err(Next::Attempt);
            }
        };
        let Some(open) = OpenStream::new(member, &host) else {
            member.stats.upstream_rq_active_overflow().inc();
            self.info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
            return Err(Next::End);
        };
        host.report(Report::Connected);
        let Accepted { socket, buffered, .. } = accepted;
        let (answer, outcome) =
            tunnel::establish(&mut upstream, request, socket, buffered, self.idle_timeout()).await;
        let mut info = self.info.borrow_mut();
        if answer.status() > 0 {
            tunneling.note_headers(&answer, &mut info);
        }
        match outcome {
            Ok(()) => {
                info.upstream.ready_at = Some(Instant::now());
                info.upstream.local = upstream.local_address();
                info.upstream.tls = upstream.tls().cloned();
                info.upstream.connection_id = upstream.connection_id();
                return Ok(To::Tunnel(open, upstream));
            }
            Err(Refused::Status(status)) => {
                // Of all attempts.
                let (sent, received) = upstream.wire_bytes();
                info.upstream.wire_bytes_sent += sent;
                info.upstream.wire_bytes_received += received;
                info.upstream.transport_failure = Some(format!("tunnel_response:{status}").into());
            }
            Err(Refused::Reset(reason)) => {
                info.upstream.transport_failure = Some(reason.text().replace(' ', "_").into());
            }
            Err(Refused::Downstream) => {
                upstream.reset();
                return Err(Next::End);
            }
            Err(Refused::Idle) => {
                upstream.reset();
                self.stats.idle_timeout().inc();
                return Err(Next::End);
            }
        }
        upstream.reset();
        Err(Next::Attempt)
    }

    fn choose_cluster(&self) -> Option<&Destination> {
        let clusters = &self.proxy.clusters;
        let total: u64 = clusters.iter().map(|one| one.weight).sum();
        let mut point = self.worker.random() % total.max(1);
        for one in clusters {
            if point < one.weight {
                return Some(one);
            }
            point -= one.weight;
        }
        clusters.first()
    }

    /// What the upstream connection takes over, with configured values for its header.
    fn via(&self, cluster: &WorkerCluster) -> Option<Via> {
        let info = self.info.borrow();
        let mut via = Via::of_session(&cluster.config, &info.connection)?;
        if let Some(origin) = &mut via.origin {
            let configured = &self.proxy.tlvs;
            match self.proxy.tlv_merge {
                TlvMerge::AddIfAbsent if info.connection.found.origin.is_some() => {}
                TlvMerge::OverwriteByType => {
                    origin.tlvs.retain(|tlv| configured.iter().all(|other| other.kind != tlv.kind));
                    origin.tlvs.extend_from_slice(configured);
                }
                TlvMerge::AddIfAbsent | TlvMerge::Append => origin.tlvs.extend_from_slice(configured),
            }
        }
        Some(via)
    }

    fn pick(&self, cluster: &Rc<WorkerCluster>, to: &Destination, earlier_picks: u32) -> Option<Picked> {
        let info = self.info.borrow();
        let hash = self.worker.with_hashing(cluster, |hashing| match &hashing.policy {
            Some(policies) => policies.hash(None, &info).hash,
            None => self.proxy.hash.as_ref()?.hash(&info),
        });
        let context = PickContext {
            original_dst: info.connection.local_restored.then_some(info.connection.local),
            metadata: Some(&info.metadata),
            hash,
            metadata_match: to.metadata_match.as_deref(),
            earlier_picks,
            ..PickContext::default()
        };
        self.worker.pick(cluster, &context)
    }

    async fn duration_limit(&self) {
        match self.proxy.max_duration {
            Some(limit) => {
                let share = (self.worker.random() >> 11) as f64 / (1u64 << 53) as f64;
                let jitter = limit.mul_f64(share * self.proxy.duration_jitter);
                tokio::time::sleep(limit + jitter).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Tells filters for ever that it goes on.
    async fn periodic_report(&self, filters: &mut [Box<dyn NetworkFilter>]) {
        let Some(interval) = network::report_interval(filters) else { return std::future::pending().await };
        loop {
            tokio::time::sleep(interval).await;
            network::report(filters, &self.info.borrow(), false);
        }
    }

    /// Writes `access_log_flush_interval` records for ever.
    async fn periodic_log(&self) {
        let Some(interval) = self.proxy.log_interval else { return std::future::pending().await };
        loop {
            tokio::time::sleep(interval).await;
            self.proxy.log(&self.info.borrow());
        }
    }
}

/// Waits for the first bytes, and reads no more than so many; false: the client is gone.
async fn read_early(accepted: &mut Accepted, limit: usize) -> bool {
    if accepted.buffered.is_empty() && limit > 0 {
        let mut early = (&mut accepted.socket).take(limit as u64);
        return matches!(early.read_buf(&mut accepted.buffered).await, Ok(1..));
    }
    !accepted.buffered.is_empty() || poll_fn(|cx| accepted.socket.poll_read_ready(cx)).await.is_ok()
}

/// Filter state: how long this session may be idle, instead of `idle_timeout`.
const IDLE_TIMEOUT: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";

/// Where a session's bytes go.
enum To {
    /// To the endpoint itself.
    Endpoint(Open, Socket),
    /// Through an HTTP stream.
    Tunnel(OpenStream, Upstream),
}

/// What follows an attempt to open a tunnel that failed.
enum Next {
    /// Another one, if there is one left.
    Attempt,
    /// The end of the session.
    End,
}

/// Counts a session with its cluster and host while it lives.
struct Open {
    stats: ClusterStats,
    host: Rc<Host>,
    started: Instant,
    /// Whether upstream ended it.
    by_remote: Cell<bool>,
    _permit: Permit,
}

impl Open {
    fn new(cluster: &WorkerCluster, host: Rc<Host>, permit: Permit) -> Self {
        let stats = cluster.stats.clone();
        stats.upstream_cx_active().inc();
        stats.upstream_rq_total().inc();
        host.active.set(host.active.get() + 1);
        host.counts.cx_total.set(host.counts.cx_total.get() + 1);
        host.counts.cx_active.set(host.counts.cx_active.get() + 1);
        host.counts.rq_total.set(host.counts.rq_total.get() + 1);
        Self { stats, host, started: Instant::now(), by_remote: Cell::new(false), _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stats.upstream_cx_active().dec();
        self.stats.upstream_cx_destroy().inc();
        self.stats.upstream_cx_destroy_with_active_rq().inc();
        if self.by_remote.get() {
            self.stats.upstream_cx_destroy_remote().inc();
            self.stats.upstream_cx_destroy_remote_with_active_rq().inc();
        } else {
            self.stats.upstream_cx_destroy_local().inc();
            self.stats.upstream_cx_destroy_local_with_active_rq().inc();
        }
        self.stats.upstream_cx_length_ms().record_ms(self.started.elapsed());
        self.host.active.set(self.host.active.get().saturating_sub(1));
        let active = &self.host.counts.cx_active;
        active.set(active.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
