//! From a listening socket to the network filters of one connection.
//!
//! `accept_loop` takes connections off one socket; `serve` is the story of one: listener
//! filters, hand-over to the listener of the original destination, filter chain, network
//! filters. Next: `inspect`, `filter_chain`, then `http::connection` or `tcp::tcp_proxy`.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use leno_base::drain::Phase;

use crate::drain::Drain;
use crate::io::{Accepted, Socket};
use crate::listener::counts::{Counts, ListenerStats, WorkerListenerStats};
use crate::listener::filter_chain::ConnectionFacts;
use crate::listener::inspect::{self, Inspected};
use crate::listener::{FilterChain, Listener, NetworkFilters, internal, network, original_dst};
use crate::overload::{Reaction, Timed};
use crate::telemetry::stats::ThreadStats;
use crate::telemetry::stream_info::{ConnectionInfo, Found, ResponseFlags, StreamInfo, next_connection_id};
use crate::tls::stats::TlsStats;
use crate::tls::{DownstreamTls, NoSession, Transport};
use crate::worker::Worker;

/// Downstream connections of the whole proxy, limited by the runtime key
/// `overload.global_downstream_max_connections`. Shared by all workers.
#[derive(Debug)]
pub(crate) struct GlobalConnections {
    open: AtomicU64,
    limit: u64,
}

/// One of the connections that may be open; given back on drop.
#[derive(Debug)]
pub(crate) struct Place(Option<Arc<GlobalConnections>>);

impl GlobalConnections {
    /// `None`: no limit.
    pub(crate) fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { open: AtomicU64::new(0), limit: limit.unwrap_or(u64::MAX) })
    }

    /// Whether this is the limit.
    pub(crate) fn is_limited_to(&self, limit: Option<u64>) -> bool {
        self.limit == limit.unwrap_or(u64::MAX)
    }

    /// Takes a place; `None`: all are taken. Without a limit nothing is counted.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        if self.limit == u64::MAX {
            return Some(Place(None));
        }
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place(Some(Arc::clone(self))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(connections) = &self.0 {
            connections.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A listener on one worker.
pub(crate) struct WorkerListener {
    /// Its configuration.
    pub(crate) config: Arc<Listener>,
    /// What it has counted: made by its first connection, or with the listener if it has sockets.
    counts: OnceCell<Counts>,
    /// Where it counts, and the worker's number.
    thread: (Arc<ThreadStats>, usize),
    /// Made by the first handshake, or with the listener if it has TLS.
    tls_stats: OnceCell<Rc<TlsStats>>,
    /// How the connections of each filter chain are asked to end, by the chain's identity.
    drains: RefCell<HashMap<*const FilterChain, Rc<Drain>>>,
    /// How far its connections, new ones too, are asked to end.
    phase: Cell<Phase>,
    /// Whether connections end after their next response because health checks fail.
    failing: Cell<bool>,
}

/// How long to wait after the system refused to accept (out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

impl WorkerListener {
    /// The worker's side of `config`. It takes over the filter chains that `previous` has too,
    /// with their connections; `previous` is left with the others.
    pub(crate) fn new(config: Arc<Listener>, worker: &Worker, previous: Option<&WorkerListener>) -> Self {
        let listener = Self {
            config,
            counts: OnceCell::new(),
            thread: (worker.shared_stats(), worker.index()),
            tls_stats: OnceCell::new(),
            drains: RefCell::default(),
            phase: Cell::new(Phase::Serving),
            failing: Cell::new(false),
        };
        // What a predecessor has counted goes on.
        if listener.config.bind_to_port || previous.is_some_and(|previous| previous.counts.get().is_some()) {
            listener.counts();
        }
        if listener.config.chains.all().any(|chain| chain.transport.tls().is_some()) {
            listener.tls_stats(worker);
        }
        listener.failing.set(worker.is_failing() && !listener.config.drain_modify_only);
        if let Some(previous) = previous {
            let mut drains = previous.drains.borrow_mut();
            let mut kept = listener.drains.borrow_mut();
            // Deviation: Envoy drains the connections of every chain of which anything changed.
            // Here they go on, HTTP with the new settings from the next request on, as long as
            // the new version has a chain with the same match or name that serves the same way.
            for (old, new) in previous.config.chains.successors(&listener.config.chains) {
                let Some(new) = new else { continue };
                let Some(drain) = drains.remove(&Arc::as_ptr(old)) else { continue };
                if let NetworkFilters::Http(manager) = &new.network
                    && !Arc::ptr_eq(old, new)
                {
                    drain.renew(Arc::clone(manager));
                }
                drain.set_failing(listener.failing.get());
                // Two that became one: the later connections watch one of them.
                if let Some(other) = kept.insert(Arc::as_ptr(new), drain) {
                    drains.insert(Arc::as_ptr(old), other);
                }
            }
            drop((drains, kept));
            listener.phase.set(previous.phase.get());
        }
        listener
    }

    /// Asks all connections to end, those that are still to come too.
    pub(crate) fn drain(&self, phase: Phase) {
        self.phase.set(self.phase.get().max(phase));
        self.drains.borrow().values().for_each(|drain| drain.advance(phase));
    }

    /// Asks all connections to end by and by; those that are still to come see it at once.
    pub(crate) fn drain_gradually(&self, over: Duration) {
        self.phase.set(self.phase.get().max(Phase::Draining));
        self.drains.borrow().values().for_each(|drain| drain.spread(over));
    }

    /// Has every connection look at its timers.
    pub(crate) fn wake(&self) {
        self.drains.borrow().values().for_each(|drain| drain.wake());
    }

    /// Health checks of the proxy fail, or no longer.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.failing.set(failing && !self.config.drain_modify_only);
        self.drains.borrow().values().for_each(|drain| drain.set_failing(self.failing.get()));
    }

    /// How many connections there are in its filter chains, and streams of them.
    pub(crate) fn connections(&self) -> usize {
        self.drains.borrow().values().map(|drain| drain.watches()).sum()
    }

    /// Whether a new connection may come in, with its places among all of them.
    fn admit(&self, worker: &Worker) -> Option<[Place; 2]> {
        let overload = worker.overload();
        if !overload.is_calm() && !self.config.bypass_overload {
            let random = || worker.random();
            if overload.calls_for(Reaction::RejectIncomingConnections, random)
                || overload.sheds(Reaction::ShedAccept, worker.stats(), random)
            {
                self.stats().downstream_cx_overload_reject().inc();
                return None;
            }
        }
        let global = match self.config.ignore_global_limit {
            true => Some(Place(None)),
            false => worker.connections().take(),
        };
        let Some(global) = global else {
            self.stats().downstream_global_cx_overflow().inc();
            return None;
        };
        let Some(own) = self.config.connections.take() else {
            self.stats().downstream_cx_overflow().inc();
            return None;
        };
        Some([global, own])
    }

    /// What it counts.
    fn counts(&self) -> &Counts {
        let (thread, worker) = &self.thread;
        self.counts.get_or_init(|| Counts::new(&self.config, thread, *worker))
    }

    fn stats(&self) -> &ListenerStats {
        &self.counts().listener
    }

    /// The counts of its handshakes.
    fn tls_stats(&self, worker: &Worker) -> Rc<TlsStats> {
        let new = || {
            let scope = format!("listener.{}.", self.config.stat_prefix);
            Rc::new(TlsStats::new(&worker.shared_stats(), &scope, true))
        };
        Rc::clone(self.tls_stats.get_or_init(new))
    }

    fn drain_of(&self, chain: &Arc<FilterChain>) -> Rc<Drain> {
        let mut drains = self.drains.borrow_mut();
        let drain = drains.entry(Arc::as_ptr(chain)).or_insert_with(|| {
            let drain = Drain::default();
            drain.advance(self.phase.get());
            drain.set_failing(self.failing.get());
            Rc::new(drain)
        });
        Rc::clone(drain)
    }
}

/// A listening socket of one worker.
pub(crate) enum ListenSocket {
    /// TCP.
    Tcp(tokio::net::TcpListener),
    /// Unix domain.
    Unix(tokio::net::UnixListener),
}

/// Takes connections until the task is dropped. The listener is looked up by name for each,
/// so that an update needs no new socket.
pub(crate) async fn accept_loop(worker: Rc<Worker>, listener: leno_base::Name, socket: ListenSocket) {
    loop {
        if !worker.overload().is_calm()
            && worker.listener(&listener).is_none_or(|listener| !listener.config.bypass_overload)
        {
            worker.overload().until_over(Reaction::StopAcceptingConnections).await;
        }
        let accepted = match &socket {
            ListenSocket::Tcp(socket) => match socket.accept().await {
                Ok((stream, remote)) => tcp_addresses(stream, remote),
                Err(error) => Err(error),
            },
            ListenSocket::Unix(socket) => match socket.accept().await {
                Ok((stream, _)) => Ok((Socket::Unix(stream), UNIX_PEER, UNIX_PEER)),
                Err(error) => Err(error),
            },
        };
        let (socket, remote, local) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_about_one_connection(&error) => continue,
            Err(error) => {
                tracing::warn!(target: "connection", %error, listener = %listener, "cannot accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(listener) = worker.listener(&listener) else { continue };
        let Some(places) = listener.admit(&worker) else { continue };
        let worker = Rc::clone(&worker);
        tokio::task::spawn_local(async move {
            serve(worker, listener, socket, remote, local, None).await;
            drop(places);
        });
    }
}

/// A Unix domain peer has no IP address; Envoy shows such addresses by their path, we as this.
const UNIX_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn tcp_addresses(
    stream: tokio::net::TcpStream,
    remote: SocketAddr,
) -> std::io::Result<(Socket, SocketAddr, SocketAddr)> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    Ok((Socket::Tcp(stream), unmapped(remote), unmapped(local)))
}

/// A v4-mapped v6 address as what it is.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The connection went away before it was accepted; the socket itself is fine.
fn is_about_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | NotConnected | InvalidInput)
}

/// Takes a connection of an internal listener; false: it may not come in.
pub(super) fn take_internal(
    worker: &Rc<Worker>,
    listener: &Rc<WorkerListener>,
    socket: Socket,
    found: Found,
) -> bool {
    let Some(places) = listener.admit(worker) else { return false };
    let (worker, listener) = (Rc::clone(worker), Rc::clone(listener));
    tokio::task::spawn_local(async move {
        serve_found(worker, listener, socket, Inspected { found, ..Inspected::new(UNIX_PEER, UNIX_PEER) })
            .await;
        drop(places);
    });
    true
}

/// The story of one connection up to its network filters. `original`: its original destination,
/// if that is known before any listener filter ran.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<WorkerListener>,
    socket: Socket,
    remote: SocketAddr,
    direct_local: SocketAddr,
    original: Option<SocketAddr>,
) {
    let mut found = Inspected::new(remote, direct_local);
    found.restored = original.is_some();
    found.local = original.unwrap_or(direct_local);
    serve_found(worker, listener, socket, found).await;
}

/// The same with what is known already.
async fn serve_found(
    worker: Rc<Worker>,
    mut listener: Rc<WorkerListener>,
    socket: Socket,
    mut found: Inspected,
) {
    let started = Instant::now();
    let (remote, direct_local) = (found.remote, found.direct_local);
    let mut accepted =
        Accepted { socket, buffered: BytesMut::new(), buffer_limit: listener.config.buffer_limit };
    match inspect(&listener, &mut accepted, &mut found).await {
        Inspection::Done => {}
        Inspection::Refused => {
            log_end(&listener, Rc::new(known(found, remote, direct_local, started)), started);
            return;
        }
        Inspection::Failed => return,
    }
    if listener.config.use_original_dst
        && found.restored
        && let Some(other) = worker.listener_for_destination(found.local)
        && other.config.name != listener.config.name
    {
        // Handed over once: the other listener's own filters run, then its chains match.
        listener = other;
        match inspect(&listener, &mut accepted, &mut found).await {
            Inspection::Done => {}
            Inspection::Refused => {
                log_end(&listener, Rc::new(known(found, remote, direct_local, started)), started);
                return;
            }
            Inspection::Failed => return,
        }
    }
    if let Some(updated) = worker.listener(&listener.config.name) {
        // It may have changed while its filters ran.
        listener = updated;
    }
    let facts = ConnectionFacts {
        destination: found.local,
        source: found.remote,
        direct_source: remote,
        server_name: found.server_name.as_deref().unwrap_or_default(),
        transport: if found.tls { "tls" } else { "raw_buffer" },
        application_protocols: &found.application_protocols,
    };
    let chain = listener.config.chains.find(&facts).cloned();
    let mut info = known(found, remote, direct_local, started);
    let Some(chain) = chain else {
        no_chain(&listener, &Rc::new(info));
        return;
    };
    let counted = Counted::new(&listener, started);
    let drain = listener.drain_of(&chain);
    let watch = drain.watch();
    if let Transport::Tls(tls) = &chain.transport {
        // Boxed: its state is large, and gone when the connection is served.
        let shaken = Box::pin(shake_hands(&worker, &listener, &chain, tls, accepted, &mut info));
        accepted = tokio::select! {
            shaken = shaken => match shaken {
                Some(accepted) => accepted,
                None => {
                    drop(counted);
                    log_end(&listener, Rc::new(info), started);
                    return;
                }
            },
            () = watch.reached(Phase::Closing) => return,
        };
    }
    let mut filters = network::open(&chain.filters, &worker);
    let passed = tokio::select! {
        passed = network::run(&mut filters, &mut accepted, &mut info) => passed,
        () = watch.reached(Phase::Closing) => Err("".into()),
    };
    let info = Rc::new(info);
    if let Err(why) = passed {
        drop(counted);
        let mut facts = StreamInfo::new(info, None, started, SystemTime::now() - started.elapsed());
        facts.termination_details = (!why.is_empty()).then_some(why);
        network::report(&mut filters, &facts, true);
        log(&listener, &facts);
        return;
    }
    match &chain.network {
        NetworkFilters::Http(manager)
            if worker.overload().sheds(Reaction::ShedCodec, worker.stats(), || worker.random()) =>
        {
            worker.http_stats(&manager.stat_prefix).downstream_rq_overload_close().inc();
        }
        NetworkFilters::Http(manager) => {
            let manager = Arc::clone(manager);
            crate::http::connection::serve(worker, manager, accepted, Rc::clone(&info), watch).await;
        }
        NetworkFilters::Tcp(proxy) => {
            // One story, told by the listener first.
            let info = Rc::clone(&info);
            let facts =
                crate::tcp::tcp_proxy::serve(&worker, proxy, accepted, info, watch, &mut filters).await;
            drop(counted);
            log(&listener, &facts);
            proxy.log(&facts);
            return;
        }
        NetworkFilters::Echo => tokio::select! {
            () = crate::tcp::simple::echo(accepted) => {}
            () = watch.reached(Phase::Closing) => {}
        },
        NetworkFilters::Direct(response) => crate::tcp::simple::respond(accepted, response).await,
        NetworkFilters::Close => {}
    }
    drop(counted);
    log_end(&listener, info, started);
}

/// What is known of a connection when its listener filters have run.
fn known(found: Inspected, remote: SocketAddr, direct_local: SocketAddr, started: Instant) -> ConnectionInfo {
    ConnectionInfo {
        id: next_connection_id(),
        remote: found.remote,
        direct_remote: remote,
        local: found.local,
        direct_local,
        local_restored: found.restored,
        server_name: found.server_name,
        tls: None,
        transport_failure: None,
        started,
        found: found.found,
    }
}

/// Makes a TLS session of an accepted connection; `None`: it is to be closed.
async fn shake_hands(
    worker: &Worker,
    listener: &WorkerListener,
    chain: &FilterChain,
    tls: &DownstreamTls,
    accepted: Accepted,
    info: &mut ConnectionInfo,
) -> Option<Accepted> {
    let stats = listener.tls_stats(worker);
    let Accepted { socket, buffered, buffer_limit } = accepted;
    let handshake = crate::tls::accept(tls, Some(&*stats), socket, buffered);
    let scaled = |limit| worker.overload().scaled(Timed::TransportConnect, limit);
    let outcome = match chain.handshake_timeout.map(scaled) {
        Some(limit) => match tokio::time::timeout(limit, handshake).await {
            Ok(outcome) => outcome,
            Err(_) => {
                listener.stats().downstream_cx_transport_socket_connect_timeout().inc();
                return None;
            }
        },
        None => handshake.await,
    };
    match outcome {
        Ok((socket, session)) => {
            info.tls = Some(Rc::new(session));
            Some(Accepted { socket, buffered: BytesMut::new(), buffer_limit })
        }
        Err(NoSession { reason, info: known }) => {
            info.transport_failure = reason;
            info.tls = known.map(|known| Rc::new(*known));
            None
        }
    }
}

/// Tells the listener's access logs of a connection that has ended.
fn log_end(listener: &WorkerListener, info: Rc<ConnectionInfo>, started: Instant) {
    if !listener.config.access_logs.is_empty() {
        let facts = StreamInfo::new(info, None, started, SystemTime::now() - started.elapsed());
        log(listener, &facts);
    }
}

/// What comes of listener filters.
enum Inspection {
    /// The connection goes on.
    Done,
    /// It is to be closed: its client or what it sent is to blame.
    Failed,
    /// It is to be closed, as a filter wants it.
    Refused,
}

/// Runs the listener filters within their time.
async fn inspect(listener: &WorkerListener, accepted: &mut Accepted, found: &mut Inspected) -> Inspection {
    if listener.config.listener_filters.is_empty() {
        return Inspection::Done;
    }
    let Counts { listener: stats, worker: _, filters } = listener.counts();
    stats.downstream_pre_cx_active().inc();
    let filters = inspect::run(&listener.config, filters, accepted, found);
    let outcome = match listener.config.listener_filters_timeout {
        Some(limit) => tokio::time::timeout(limit, filters).await,
        None => Ok(filters.await),
    };
    stats.downstream_pre_cx_active().dec();
    match outcome {
        Ok(Ok(())) => Inspection::Done,
        Ok(Err(error)) => match error.kind() {
            std::io::ErrorKind::PermissionDenied => Inspection::Refused,
            std::io::ErrorKind::InvalidData => {
                stats.downstream_listener_filter_error().inc();
                Inspection::Failed
            }
            _ => {
                stats.downstream_listener_filter_remote_close().inc();
                Inspection::Failed
            }
        },
        Err(_) => {
            stats.downstream_pre_cx_timeout().inc();
            if listener.config.continue_on_timeout { Inspection::Done } else { Inspection::Failed }
        }
    }
}

/// Closes and logs a connection that no filter chain wants.
fn no_chain(listener: &WorkerListener, info: &Rc<ConnectionInfo>) {
    listener.stats().no_filter_chain_match().inc();
    let now = Instant::now();
    let mut facts = StreamInfo::new(Rc::clone(info), None, now, SystemTime::now());
    facts.flags.insert(ResponseFlags::NO_ROUTE_FOUND);
    facts.response_code_details = Some("filter_chain_not_found".into());
    log(listener, &facts);
}

fn log(listener: &WorkerListener, facts: &StreamInfo) {
    for log in &listener.config.access_logs {
        log.connection(facts);
    }
}

/// Counts a connection while it lives.
struct Counted {
    stats: ListenerStats,
    worker_stats: WorkerListenerStats,
    started: Instant,
}

impl Counted {
    fn new(listener: &WorkerListener, started: Instant) -> Self {
        let counts = listener.counts();
        let (stats, worker_stats) = (counts.listener.clone(), counts.worker.clone());
        stats.downstream_cx_total().inc();
        stats.downstream_cx_active().inc();
        worker_stats.downstream_cx_total().inc();
        worker_stats.downstream_cx_active().inc();
        Self { stats, worker_stats, started }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.downstream_cx_active().dec();
        self.worker_stats.downstream_cx_active().dec();
        self.stats.downstream_cx_destroy().inc();
        self.stats.downstream_cx_length_ms().record_ms(self.started.elapsed());
    }
}

/// Restores the original destination, if the system knows one. It does also where nothing was changed, as soon as it
/// keeps records of connections: with TPROXY the address is the socket's own, and is the original one all the same.
/// Where it keeps none, a transparent socket's own address is taken for it, as Envoy does.
pub(super) fn restore(socket: &Socket, transparent: bool, found: &mut Inspected) {
    let Socket::Tcp(stream) = socket else { return internal::restore(found) };
    match original_dst::of(stream).map(unmapped) {
        Some(destination) => {
            found.local = destination;
            found.restored = true;
        }
        None => found.restored |= transparent,
    }
}
