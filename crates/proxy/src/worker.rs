//! A worker: one thread with a current-thread runtime, its own listening sockets, connection
//! pools, balancer state and stats. START HERE to follow a request:
//! `worker` → `listener::accept` → `listener::filter_chain` → `http::connection` →
//! `http::stream::serve_request` → `http::route` → `http::filters` → `http::forward` →
//! `cluster::worker_cluster` → `cluster::pool`, and back through the same calls to `finish`.
//!
//! Everything in here is `!Send` and reached through `Rc`. The main thread talks to a worker
//! through its mailbox only.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use leno_base::drain::Phase;
use leno_base::{FastHash, Name};
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::cluster::lb::zone::LocalHosts;
use crate::cluster::on_demand::{Awaited, Demand};
use crate::cluster::stats::{AnswerStats, RouteStats};
use crate::cluster::worker_cluster::WorkerCluster;
use crate::cluster::{Assignment, EndpointAddress};
use crate::config::source::ResourceKey;
use crate::http::codec::h2::stats::Http2Stats;
use crate::http::config::{HttpConnectionManager, Traced};
use crate::http::filters::Background;
use crate::http::route::{Found, RouteTable, Selected};
use crate::http::stats::{HttpScopes, HttpStats, RouteScopes};
use crate::listener::accept::{GlobalConnections, WorkerListener, accept_loop};
use crate::listener::bind::BoundSocket;
use crate::listener::{Direction, ListenAddress, Listener, internal};
use crate::overload::{Levels, Overload};
use crate::snapshot::Snapshot;
use crate::tcp::tcp_proxy::TcpStats;
use crate::telemetry::istio;
use crate::telemetry::stats::{StatsStore, ThreadStats};
use crate::telemetry::trace::export::Exporter;
use crate::telemetry::trace::tracer::Tracer;
use crate::turn;

/// What the main thread tells a worker.
pub(crate) enum Command {
    /// Adopt this configuration.
    Adopt {
        /// All of it.
        snapshot: Arc<Snapshot>,
        /// Sockets of listeners that begin to listen, or listen elsewhere now.
        sockets: Vec<(Name, Vec<BoundSocket>)>,
    },
    /// These clusters have these endpoints now; nothing else changed.
    Endpoints {
        /// The clusters.
        clusters: Vec<Name>,
        /// Their endpoints.
        assignment: Arc<Assignment>,
    },
    /// Hosts of this cluster were ejected, or let in again.
    Regroup(Name),
    /// Ask connections to end.
    Drain {
        /// Only those of inbound listeners.
        inbound_only: bool,
        /// Spread over the drain time, unless `--drain-strategy immediate`.
        gradually: bool,
    },
    /// The health checks of the proxy are to fail, or no longer (`/healthcheck/fail`).
    FailHealthChecks(bool),
    /// Take no new connections; those that are there go on.
    StopListening {
        /// Only inbound listeners.
        inbound_only: bool,
    },
    /// So overloaded the proxy is.
    Overload(Levels),
    /// There is no cluster of this name, which was asked for on demand.
    Missing(Name),
    /// These virtual hosts, which were asked for on demand, were answered.
    Answered(Arc<[ResourceKey]>),
    /// Start something that goes on beside requests.
    Start {
        /// What.
        work: Arc<dyn Background>,
        /// Of the connection manager that it is for.
        stat_prefix: Name,
        /// To be called when listeners need not wait for it any longer.
        ready: Box<dyn FnOnce() + Send>,
    },
    /// Say what is counted per host.
    Hosts(oneshot::Sender<Vec<HostReport>>),
    /// End.
    Stop,
}

/// How connections of removed listeners and filter chains end (`--drain-time-s`,
/// `--drain-strategy`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainPolicy {
    /// How long they have to end by themselves.
    pub(crate) time: Duration,
    /// They are all asked at the beginning, not spread over the time.
    pub(crate) immediate: bool,
}

impl Default for DrainPolicy {
    fn default() -> Self {
        Self::from(&crate::options::Options::default())
    }
}

impl From<&crate::options::Options> for DrainPolicy {
    fn from(options: &crate::options::Options) -> Self {
        Self { time: options.drain_time, immediate: options.drain_immediately }
    }
}

/// One worker's counts of one host.
#[derive(Clone, Debug)]
pub(crate) struct HostReport {
    /// The cluster.
    pub(crate) cluster: Name,
    /// The host.
    pub(crate) address: EndpointAddress,
    /// Open connections, all connections, failed connections.
    pub(crate) connections: [u64; 3],
    /// Requests: under way, all, good, failed, timed out.
    pub(crate) requests: [u64; 5],
}

/// The main thread's side of a worker. Dropping it ends the worker.
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    told: Cell<u64>,
    done: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Handle {
    /// Tells the worker something; one that has died is silent.
    pub(crate) fn tell(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.told.set(self.told.get() + 1);
        }
    }

    /// Whether the worker has done all that it was told.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.told.get()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts a worker thread.
pub(crate) fn spawn(
    index: usize,
    stats: &StatsStore,
    limit: &Arc<GlobalConnections>,
    policy: DrainPolicy,
    internal_buffer: Option<usize>,
    demands: &mpsc::UnboundedSender<Demand>,
) -> std::io::Result<Handle> {
    let limit = Arc::clone(limit);
    let demands = demands.clone();
    let stats = stats.thread();
    let (commands, mailbox) = mpsc::unbounded_channel();
    let (ready, readiness) = std::sync::mpsc::sync_channel(1);
    let done = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&done);
    let thread = std::thread::Builder::new().name(format!("worker_{index}")).spawn(move || {
        // A runtime of local tasks cannot leave its thread.
        let options = LocalOptions::default();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().on_thread_park(turn::end);
        let runtime = match builder.build_local(options) {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        turn::begin();
        let worker = Worker::new(stats, limit).with_drain_policy(policy);
        let worker = Rc::new(Worker { index, internal_buffer, awaited: Awaited::new(demands), ..worker });
        // A task of its own: what `block_on` is given itself would be polled in each turn of the
        // runtime, whoever was woken.
        let run = runtime.spawn_local(worker.run(mailbox, counted));
        if let Err(error) = runtime.block_on(run)
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    })?;
    let handle = Handle { commands, told: Cell::new(0), done, thread: Some(thread) };
    match readiness.recv() {
        Ok(ready) => ready.map(|()| handle),
        Err(_) => Err(std::io::Error::other("a worker ended at its start")),
    }
}

/// One worker's world.
pub(crate) struct Worker {
    stats: Arc<ThreadStats>,
    connections: Arc<GlobalConnections>,
    /// The adopted configuration.
    snapshot: RefCell<Arc<Snapshot>>,
    /// The worker's side of the clusters that it has used.
    clusters: RefCell<HashMap<Name, Rc<WorkerCluster>, FastHash>>,
    /// Some of them, by where the names lie that routes know them by: a request's cluster is found
    /// without a look at its name.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    recent: RefCell<[Option<(Name, Rc<WorkerCluster>)>; RECENT]>,
    /// Routes that were taken of late, by where they lie.
    selected: RefCell<[Option<Rc<Selected>>; RECENT]>,
    /// Aggregate clusters that refer to others of these.
    chained: RefCell<HashSet<Name>>,
    /// The hosts of the cluster that this proxy belongs to, for zone-aware routing.
    local_hosts: Rc<LocalHosts>,
    listeners: RefCell<HashMap<Name, Rc<WorkerListener>>>,
    /// Listeners by the address that connections may be handed over for.
    destinations: RefCell<HashMap<SocketAddr, Name>>,
    /// The tasks that accept, by listener.
    accepting: RefCell<HashMap<Name, Vec<AbortHandle>>>,
    /// Listeners that are gone or were replaced, whose connections are not, and when those are
    /// to be closed at the latest.
    leaving: RefCell<Vec<(Instant, Rc<WorkerListener>)>>,
    /// How such connections end.
    policy: DrainPolicy,
    /// Whether the health checks of the proxy are to fail.
    failing: Cell<bool>,
    /// Listeners that take no new connections, whatever updates come.
    stopped: Cell<Stopped>,
    /// How overloaded the proxy is.
    overload: Overload,
    /// Its number among the workers.
    index: usize,
    /// The size of internal connections' buffers.
    internal_buffer: Option<usize>,
    /// Stats of connection managers by prefix.
    http_scopes: HttpScopes,
    /// Stats of routes and virtual clusters by prefix.
    route_scopes: RouteScopes,
    /// Stats of downstream HTTP/2 connections, once there is one.
    http2_stats: OnceCell<Http2Stats>,
    /// Stats of TCP proxies by prefix.
    tcp_scopes: RefCell<HashMap<Name, Rc<TcpStats>>>,
    /// Who reports spans, by provider.
    exporters: RefCell<Vec<Rc<Exporter>>>,
    /// What tracing has here, by connection manager.
    traced: RefCell<Vec<(Weak<HttpConnectionManager>, Rc<Traced>)>>,
    /// State of the random generator (splitmix64).
    random: Cell<u64>,
    /// What both clocks said when they were last compared.
    clocks: Cell<(Instant, SystemTime)>,
    /// How often clusters or their hosts have changed.
    host_changes: Cell<u64>,
    /// What Istio's metrics and peers need.
    istio: istio::Tables,
    /// What is waited for, on demand.
    awaited: Rc<Awaited>,
}

impl Worker {
    /// The same with another way for connections of removed listeners and filter chains to end.
    pub(crate) fn with_drain_policy(self, policy: DrainPolicy) -> Self {
        Self { policy, ..self }
    }

    /// A worker without configuration.
    pub(crate) fn new(stats: Arc<ThreadStats>, connections: Arc<GlobalConnections>) -> Self {
        Self {
            stats,
            connections,
            snapshot: RefCell::default(),
            clusters: RefCell::default(),
            recent: RefCell::new([const { None }; RECENT]),
            selected: RefCell::new([const { None }; RECENT]),
            chained: RefCell::default(),
            local_hosts: Rc::default(),
            listeners: RefCell::default(),
            destinations: RefCell::default(),
            accepting: RefCell::default(),
            leaving: RefCell::default(),
            policy: DrainPolicy::default(),
            failing: Cell::new(false),
            overload: Overload::default(),
            index: 0,
            internal_buffer: None,
            stopped: Cell::new(Stopped::None),
            http_scopes: HttpScopes::default(),
            route_scopes: RouteScopes::default(),
            http2_stats: OnceCell::new(),
            tcp_scopes: RefCell::default(),
            exporters: RefCell::default(),
            traced: RefCell::default(),
            random: Cell::new(leno_base::rng::Rng::from_entropy().next_u64()),
            clocks: Cell::new((Instant::now(), SystemTime::now())),
            host_changes: Cell::new(0),
            istio: istio::Tables::default(),
            awaited: Rc::default(),
        }
    }

    /// Serves commands until told to stop; connections run as local tasks beside it.
    async fn run(self: Rc<Self>, mut mailbox: mpsc::UnboundedReceiver<Command>, done: Arc<AtomicU64>) {
        let mut cleanup = tokio::time::interval(CLEANUP);
        loop {
            let command = tokio::select! {
                command = mailbox.recv() => command,
                _ = cleanup.tick() => {
                    self.clean_up();
                    continue;
                }
            };
            match command {
                Some(Command::Adopt { snapshot, sockets }) => self.adopt(snapshot, sockets),
                Some(Command::Endpoints { clusters, assignment }) => {
                    self.adopt_endpoints(&clusters, &assignment);
                }
                Some(Command::Regroup(cluster)) => self.regroup(&cluster),
                Some(Command::Drain { inbound_only, gradually }) => self.drain(inbound_only, gradually),
                Some(Command::FailHealthChecks(fail)) => self.fail_health_checks(fail),
                Some(Command::Overload(levels)) => self.set_overload(levels),
                Some(Command::StopListening { inbound_only }) => self.stop_listening(inbound_only),
                Some(Command::Missing(cluster)) => self.awaited.missing(&cluster),
                Some(Command::Answered(hosts)) => self.awaited.answered(&hosts),
                Some(Command::Start { work, stat_prefix, ready }) => work.start(&self, &stat_prefix, ready),
                Some(Command::Hosts(answer)) => drop(answer.send(self.host_reports())),
                Some(Command::Stop) | None => return,
            }
            done.fetch_add(1, Ordering::Release);
        }
    }

    /// What Istio's metrics and peers need.
    pub(crate) fn istio(&self) -> &istio::Tables {
        &self.istio
    }

    /// This thread's stats.
    pub(crate) fn stats(&self) -> &ThreadStats {
        &self.stats
    }

    /// The same, for those whose stats' names come with what they count.
    pub(crate) fn shared_stats(&self) -> Arc<ThreadStats> {
        Arc::clone(&self.stats)
    }

    /// The stats of connection managers with this prefix.
    pub(crate) fn http_stats(&self, stat_prefix: &Name) -> Rc<HttpStats> {
        self.http_scopes.scope(&self.stats, stat_prefix)
    }

    /// The stats of a route or virtual cluster with this prefix.
    pub(crate) fn route_stats(&self, prefix: &Name) -> Rc<RouteStats> {
        self.route_scopes.route(&self.stats, prefix)
    }

    /// Counts of answers with this prefix.
    pub(crate) fn answer_stats(&self, prefix: Name) -> Rc<AnswerStats> {
        self.route_scopes.answers(&self.stats, prefix)
    }

    /// The stats of downstream HTTP/2 connections.
    pub(crate) fn http2_stats(&self) -> Http2Stats {
        self.http2_stats.get_or_init(|| Http2Stats::new(&self.stats, "http2.")).clone()
    }

    /// The stats of TCP proxies with this prefix.
    pub(crate) fn tcp_stats(&self, stat_prefix: &Name) -> Rc<TcpStats> {
        if let Some(stats) = self.tcp_scopes.borrow().get(&**stat_prefix) {
            return Rc::clone(stats);
        }
        let stats = Rc::new(TcpStats::new(&self.stats, &format!("tcp.{stat_prefix}.")));
        self.tcp_scopes.borrow_mut().insert(stat_prefix.clone(), Rc::clone(&stats));
        stats
    }

    /// Who reports the spans of a provider.
    pub(crate) fn exporter(self: &Rc<Self>, tracer: &Arc<Tracer>) -> Rc<Exporter> {
        let mut exporters = self.exporters.borrow_mut();
        if let Some(exporter) = exporters.iter().find(|exporter| exporter.is_of(tracer)) {
            return Rc::clone(exporter);
        }
        let exporter = Exporter::start(tracer, self);
        exporters.push(Rc::clone(&exporter));
        exporter
    }

    /// What tracing has here for a connection manager; it is made once.
    pub(crate) fn traced(
        &self,
        manager: &Arc<HttpConnectionManager>,
        make: impl FnOnce() -> Traced,
    ) -> Rc<Traced> {
        let known =
            |(of, _): &&(Weak<HttpConnectionManager>, Rc<Traced>)| of.as_ptr() == Arc::as_ptr(manager);
        if let Some((_, traced)) = self.traced.borrow().iter().find(known) {
            return Rc::clone(traced);
        }
        let traced = Rc::new(make());
        self.traced.borrow_mut().push((Arc::downgrade(manager), Rc::clone(&traced)));
        traced
    }

    /// The limit of connections of the whole proxy.
    pub(crate) fn connections(&self) -> &Arc<GlobalConnections> {
        &self.connections
    }

    /// The worker's side of a cluster; `None`: no such cluster (or not warm yet).
    pub(crate) fn cluster(&self, name: &str) -> Option<Rc<WorkerCluster>> {
        if let Some(cluster) = self.clusters.borrow().get(name) {
            return Some(Rc::clone(cluster));
        }
        let snapshot = self.snapshot.borrow();
        let config = snapshot.clusters.get(name)?;
        let cluster = WorkerCluster::new(Arc::clone(config), &self.stats, self.random(), &self.local_hosts);
        if let Some(assignment) = snapshot.endpoints.get(name) {
            cluster.update_hosts(assignment);
        }
        let cluster = Rc::new(cluster);
        self.clusters.borrow_mut().insert(config.name.clone(), Rc::clone(&cluster));
        let local = config.here.cluster.clone().filter(|local| *local != config.name);
        drop(snapshot);
        if let Some(local) = local {
            // From now on its hosts matter.
            self.cluster(&local);
        }
        Some(cluster)
    }

    /// The same by a name out of the configuration, which lies where it lay for the last request.
    pub(crate) fn cluster_named(&self, name: &Name) -> Option<Rc<WorkerCluster>> {
        // Allocations begin at multiples of 16 and more.
        let place = (name.as_ptr() as usize >> 4) % RECENT;
        if let Some(Some((known, cluster))) = self.recent.borrow().get(place)
            && known.same_storage(name)
        {
            return Some(Rc::clone(cluster));
        }
        let cluster = self.cluster(name)?;
        if let Some(place) = self.recent.borrow_mut().get_mut(place) {
            *place = Some((name.clone(), Rc::clone(&cluster)));
        }
        Some(cluster)
    }

    /// What it waits for, on demand.
    pub(crate) fn awaited(&self) -> &Rc<Awaited> {
        &self.awaited
    }

    /// How often clusters, their hosts or those hosts' health have changed.
    pub(crate) fn host_changes(&self) -> u64 {
        self.host_changes.get()
    }

    /// An aggregate cluster holds others from now on.
    pub(crate) fn note_chain(&self, cluster: &Name) {
        self.chained.borrow_mut().insert(cluster.clone());
    }

    fn note_host_change(&self) {
        self.host_changes.set(self.host_changes.get() + 1);
    }

    /// Gives the current RDS table of this name and origin to a function; `None`: not received yet.
    pub(crate) fn with_routes<T>(
        &self,
        table: &ResourceKey,
        then: impl FnOnce(&RouteTable) -> T,
    ) -> Option<T> {
        self.snapshot.borrow().routes.get(table).map(|table| then(table))
    }

    /// What was found in a route table, shared with the last requests that were served alike:
    /// counting who uses what all workers share takes locked instructions.
    pub(crate) fn select(&self, found: &Found<'_>) -> Rc<Selected> {
        let place =
            (Arc::as_ptr(found.route) as usize >> 4).wrapping_add(found.weighted.unwrap_or(0)) % RECENT;
        let mut kept = self.selected.borrow_mut();
        if let Some(Some(selected)) = kept.get(place)
            && found.is(selected)
        {
            return Rc::clone(selected);
        }
        let selected = Rc::new(found.select());
        if let Some(kept) = kept.get_mut(place) {
            *kept = Some(Rc::clone(&selected));
        }
        selected
    }

    /// The listener with this name.
    pub(crate) fn listener(&self, name: &str) -> Option<Rc<WorkerListener>> {
        self.listeners.borrow().get(name).cloned()
    }

    /// The listener for connections that were meant for this address: the one of that very
    /// address, else the one of its port on any address.
    pub(crate) fn listener_for_destination(&self, address: SocketAddr) -> Option<Rc<WorkerListener>> {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let destinations = self.destinations.borrow();
        let name =
            destinations.get(&address).or_else(|| destinations.get(&SocketAddr::new(any, address.port())))?;
        self.listener(name)
    }

    /// What the system's clock says at this time, just now: it is asked once a second, as each
    /// request would pay for it.
    pub(crate) fn wall(&self, now: std::time::Instant) -> SystemTime {
        let now = Instant::from_std(now);
        let (at, wall) = self.clocks.get();
        match now.checked_duration_since(at) {
            Some(since) if since < Duration::from_secs(1) => wall + since,
            _ => {
                let wall = SystemTime::now();
                self.clocks.set((now, wall));
                wall
            }
        }
    }

    /// A uniformly random number.
    pub(crate) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Takes over a new configuration. What did not change keeps its state; requests under way
    /// keep what they hold.
    pub(crate) fn adopt(self: &Rc<Self>, snapshot: Arc<Snapshot>, sockets: Vec<(Name, Vec<BoundSocket>)>) {
        internal::register(self);
        let replaced = self.adopt_clusters(&snapshot);
        self.adopt_listeners(&snapshot);
        self.awaited.arrived(|cluster| snapshot.clusters.get(cluster).is_some());
        *self.snapshot.borrow_mut() = snapshot;
        for old in &replaced {
            // Made anew while the old one still holds the counts, which go on.
            self.cluster(&old.config.name);
        }
        for (listener, sockets) in sockets {
            self.listen(listener, sockets);
        }
    }

    /// Takes out what changed or is gone, and returns it; the rest gets its new endpoints.
    fn adopt_clusters(&self, snapshot: &Snapshot) -> Vec<Rc<WorkerCluster>> {
        self.note_host_change();
        self.recent.replace([const { None }; RECENT]);
        self.selected.replace([const { None }; RECENT]);
        let before = self.snapshot.borrow();
        let mut clusters = self.clusters.borrow_mut();
        let changes = before.clusters.changes(&snapshot.clusters);
        let replaced = changes.filter_map(|change| clusters.remove(change.name)).collect();
        drop(clusters);
        let clusters = self.clusters.borrow();
        for name in self.chained.take() {
            if let Some(cluster) = clusters.get(&name) {
                // What it refers to may be gone, and is not kept alive.
                cluster.chain.take();
            }
        }
        for change in before.endpoints.changes(&snapshot.endpoints) {
            if let Some(cluster) = clusters.get(change.name) {
                cluster.update_hosts(change.after.map_or(&Assignment::default(), |new| new));
            }
        }
        replaced
    }

    fn adopt_listeners(&self, snapshot: &Snapshot) {
        let mut listeners = self.listeners.borrow_mut();
        let mut previous = std::mem::take(&mut *listeners);
        for (name, config) in &snapshot.listeners {
            let listener = match previous.remove(name) {
                Some(same) if Arc::ptr_eq(&same.config, config) => same,
                old => {
                    let listener = Rc::new(WorkerListener::new(Arc::clone(config), self, old.as_deref()));
                    old.into_iter().for_each(|old| self.leave(old));
                    listener
                }
            };
            if !config.bind_to_port {
                // It may have been bound before.
                self.stop_accepting(name);
            }
            listeners.insert(name.clone(), listener);
        }
        for (name, listener) in previous {
            self.stop_accepting(&name);
            self.leave(listener);
        }
        *self.destinations.borrow_mut() = destinations(listeners.values().map(|listener| &*listener.config));
    }

    /// Asks the connections that a listener still has to end, and remembers to close them.
    fn leave(&self, listener: Rc<WorkerListener>) {
        let DrainPolicy { time, immediate } = self.policy;
        if time.is_zero() {
            listener.drain(Phase::Closing);
        } else if immediate {
            listener.drain(Phase::Draining);
        } else {
            listener.drain_gradually(time);
        }
        self.leaving.borrow_mut().push((Instant::now() + time, listener));
    }

    fn adopt_endpoints(&self, clusters: &[Name], assignment: &Arc<Assignment>) {
        self.note_host_change();
        for name in clusters {
            if let Some(cluster) = self.clusters.borrow().get(name) {
                cluster.update_hosts(assignment);
            }
        }
        // Clusters that are used for the first time later read the snapshot.
        let mut snapshot = self.snapshot.borrow_mut();
        let snapshot = Arc::make_mut(&mut snapshot);
        for name in clusters {
            snapshot.endpoints.insert(name.clone(), Arc::clone(assignment));
        }
    }

    fn listen(self: &Rc<Self>, listener: Name, sockets: Vec<BoundSocket>) {
        self.stop_accepting(&listener);
        let config = self.listener(&listener).map(|listener| Arc::clone(&listener.config));
        if config.is_some_and(|config| self.stopped.get().covers(&config)) {
            return;
        }
        let mut tasks = Vec::new();
        for socket in sockets {
            match socket.into_listening() {
                Ok(socket) => {
                    let task = accept_loop(Rc::clone(self), listener.clone(), socket);
                    tasks.push(tokio::task::spawn_local(task).abort_handle());
                }
                Err(error) => tracing::error!(target: "config", %listener, %error, "cannot accept"),
            }
        }
        self.accepting.borrow_mut().insert(listener, tasks);
    }

    fn stop_accepting(&self, listener: &Name) {
        for task in self.accepting.borrow_mut().remove(listener).unwrap_or_default() {
            task.abort();
        }
    }

    /// Chooses among those hosts of a cluster from now on that are not ejected.
    pub(crate) fn regroup(&self, name: &Name) {
        self.note_host_change();
        let snapshot = self.snapshot.borrow();
        if let (Some(cluster), Some(hosts)) = (self.clusters.borrow().get(name), snapshot.endpoints.get(name))
        {
            cluster.update_hosts(hosts);
        }
    }

    fn drain(&self, inbound_only: bool, gradually: bool) {
        for listener in self.listeners.borrow().values() {
            if inbound_only && listener.config.direction != Direction::Inbound {
                continue;
            }
            if gradually && !self.policy.immediate {
                listener.drain_gradually(self.policy.time);
            } else {
                listener.drain(Phase::Draining);
            }
        }
    }

    fn fail_health_checks(&self, fail: bool) {
        self.failing.set(fail);
        self.listeners.borrow().values().for_each(|listener| listener.set_failing(fail));
    }

    fn set_overload(&self, levels: Levels) {
        self.overload.set(levels);
        // Timers that run already are to be as short as new ones.
        self.listeners.borrow().values().for_each(|listener| listener.wake());
    }

    /// How overloaded the proxy is.
    pub(crate) fn overload(&self) -> &Overload {
        &self.overload
    }

    /// The size of internal connections' buffers, if there may be any.
    pub(crate) fn internal_buffer(&self) -> Option<usize> {
        self.internal_buffer
    }

    /// Its number among the workers.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Whether the health checks of the proxy are to fail (`/healthcheck/fail`).
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.get()
    }

    fn stop_listening(&self, inbound_only: bool) {
        if self.stopped.get() != Stopped::All {
            self.stopped.set(if inbound_only { Stopped::Inbound } else { Stopped::All });
        }
        for (name, listener) in self.listeners.borrow().iter() {
            if self.stopped.get().covers(&listener.config) {
                self.stop_accepting(name);
            }
        }
    }

    fn clean_up(&self) {
        let now = Instant::now();
        self.istio.clean_up();
        self.leaving.borrow_mut().retain(|(deadline, listener)| {
            if *deadline <= now {
                listener.drain(Phase::Closing);
            }
            // A connection whose listener filters still run is in no chain yet, but holds it.
            listener.connections() > 0 || (now < *deadline && Rc::strong_count(listener) > 1)
        });
        self.traced.borrow_mut().retain(|(manager, _)| manager.strong_count() > 0);
        // Nobody makes spans for them any more, and all have been sent.
        self.exporters.borrow_mut().retain(|exporter| Rc::strong_count(exporter) > 1 || exporter.has_spans());
        for cluster in self.clusters.borrow().values() {
            if cluster.config.discovery.is_open_ended() {
                cluster.forget_unused_hosts(now);
            }
        }
    }

    fn host_reports(&self) -> Vec<HostReport> {
        let clusters = self.clusters.borrow();
        let reports = clusters.iter().flat_map(|(name, cluster)| {
            cluster.hosts().into_iter().map(|host| {
                let counts = &host.counts;
                HostReport {
                    cluster: name.clone(),
                    address: host.config.address.clone(),
                    connections: [
                        counts.cx_active.get(),
                        counts.cx_total.get(),
                        counts.cx_connect_fail.get(),
                    ],
                    requests: [
                        host.active.get().into(),
                        counts.rq_total.get(),
                        counts.rq_success.get(),
                        counts.rq_error.get(),
                        counts.rq_timeout.get(),
                    ],
                }
            })
        });
        reports.collect()
    }
}

/// Which listeners take no new connections (/drain_listeners).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    None,
    Inbound,
    All,
}

impl Stopped {
    fn covers(self, listener: &Listener) -> bool {
        match self {
            Stopped::None => false,
            Stopped::Inbound => listener.direction == Direction::Inbound,
            Stopped::All => true,
        }
    }
}

/// Clusters that are found by where their names lie.
const RECENT: usize = 64;

/// How often is looked whether hosts (`cleanup_interval`) and finished listeners are to be
/// forgotten. An unused host costs a few hundred bytes, so shorter intervals than this wait.
const CLEANUP: Duration = Duration::from_secs(5);

/// Addresses that connections may be handed over for (`use_original_dst`).
fn destinations<'a>(listeners: impl Iterator<Item = &'a Listener>) -> HashMap<SocketAddr, Name> {
    let addresses = listeners.flat_map(|listener| {
        listener.addresses.iter().filter_map(move |address| match address {
            ListenAddress::Ip(ip) => Some((*ip, listener.name.clone())),
            ListenAddress::Pipe(..) => None,
        })
    });
    addresses.collect()
}

#[cfg(test)]
#[path = "worker/tests.rs"]
mod tests;
