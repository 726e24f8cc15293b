//! The main thread: starts everything, then one loop over a closed `Event`.
//!
//! It owns the configuration (`config::store`), the listening sockets, discovery by xDS and
//! DNS, and the admin interface; workers get what it publishes. `run` is the whole life of a
//! proxy; `Server::handle` is the loop's body.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use leno_base::Name;
use leno_xds::TypeUrl;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::admin::{self, DynamicResource, HostTable, ServerState, View};
use crate::cluster::membership::Membership;
use crate::cluster::on_demand::Demand;
use crate::cluster::{Assignment, Cluster, DnsDiscovery, health, outlier};
use crate::config::bootstrap::Bootstrap;
use crate::config::discovery::Applied;
use crate::config::discovery::control_plane::XdsClusters;
use crate::config::discovery::sources::{Incoming, Settings, Sources};
use crate::config::extensions;
use crate::config::lower::{Scope, UnknownFields};
use crate::config::source::ResourceKey;
use crate::config::store::Store;
use crate::http::filters::Background;
use crate::listener::Direction;
use crate::listener::accept::GlobalConnections;
use crate::listener::bind;
use crate::listener::counts::SilentListeners;
use crate::listener::sockets::Sockets;
use crate::logging::LogFilter;
use crate::memory::{self, Settling};
use crate::options::Options;
use crate::overload;
use crate::snapshot::Snapshot;
use crate::telemetry::access_log::Sink;
use crate::telemetry::access_log::sink::{LogFile, open};
use crate::telemetry::server_stats::{
    ClusterManagerStats, DrainingResources, ListenerManagerStats, Sampled, ServerStats,
};
use crate::telemetry::sinks::LastFlush;
use crate::telemetry::stats::{StatsStore, ThreadStats};
use crate::tls::expiry::Expirations;
use crate::tls::secrets::Refilled;
use crate::tls::stats::count_refill;
use crate::worker::{self, Command, DrainPolicy, Handle};

mod beside;
mod records;

use beside::watch_of;
use records::Records;

/// Why a proxy could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is refused, for all of these reasons.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The system refused something.
    #[error("{0}: {1}")]
    System(String, std::io::Error),
}

/// Everything that the main loop reacts to.
enum Event {
    /// From a control plane, or a file.
    Xds(Incoming),
    /// Hosts of a cluster were ejected, or let in again.
    Ejected(Name),
    /// A health check of this version of a cluster has changed something.
    Checked(Arc<Cluster>, health::watch::Report),
    /// DNS found addresses of a cluster.
    Resolved(Name, Arc<DnsDiscovery>, Arc<Assignment>),
    /// A worker waits for something.
    Demanded(Demand),
    /// What goes on beside this listener's requests is ready.
    Ready(Name),
    /// From the admin interface.
    Admin(admin::Command),
    /// End at once (SIGTERM, SIGINT).
    Terminate,
    /// Reopen log files (SIGUSR1).
    ReopenLogs,
    /// The drain time is over: stop to accept.
    StopListening {
        /// Only inbound listeners.
        inbound_only: bool,
    },
    /// Time to look how loaded resources are.
    SampleOverload,
    /// Once in a while: gauges that are sampled.
    Beat,
}

/// How often sampled gauges are brought up to date.
const BEAT: Duration = Duration::from_secs(1);

/// Starts the log before the proxy, for others in the process.
///
/// # Errors
/// If its file cannot be opened.
pub fn start_log(options: &Options) -> Result<(), RunError> {
    let failed = |error| RunError::System("cannot open the log file".to_owned(), error);
    crate::logging::start(options).map(drop).map_err(failed)
}

/// Runs a proxy until it is told to end. Blocks the calling thread.
pub fn run(options: Options) -> Result<(), RunError> {
    let system = |what: &str| {
        let what = what.to_owned();
        move |error| RunError::System(what, error)
    };
    let log = crate::logging::start(&options).map_err(system("cannot open the log file"))?;
    crate::telemetry::access_log::configure(options.file_flush_interval, options.file_flush_min_size);
    let bootstrap = crate::config::file::load(&options).map_err(RunError::Config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(system("cannot start the runtime"))?;
    runtime.block_on(async {
        let (server, events) = Server::start(options, bootstrap, log).await?;
        let ended = server.serve(events).await;
        // The workers are gone: no line comes after this.
        crate::telemetry::access_log::flush();
        ended
    })
}

/// The main thread's state.
struct Server {
    options: Options,
    store: Store,
    sockets: Sockets,
    workers: Vec<Handle>,
    /// What sinks of stats are told at the end.
    last_flush: Option<LastFlush>,
    /// Whether the workers have adopted what was configured at the start.
    adopted: Cell<bool>,
    /// Where resources come from that are not in the bootstrap.
    sources: Sources,
    /// DNS tasks by cluster, with the configuration that each works for.
    resolving: HashMap<Name, (Arc<Cluster>, crate::cluster::discovery::Task)>,
    /// Outlier detection by cluster.
    outliers: HashMap<Name, outlier::watch::Task>,
    /// Resolving for the DNS caches of dynamic forward proxies, by cluster.
    caches: HashMap<Name, crate::cluster::discovery::Task>,
    outlier_log: Option<Arc<LogFile>>,
    /// Health checks by cluster: of the version in force, and of the one that warms.
    health: HashMap<Name, Vec<(Arc<Cluster>, health::watch::Watch)>>,
    events: mpsc::UnboundedSender<Event>,
    thread_stats: Arc<ThreadStats>,
    stats: MainStats,
    log: LogFilter,
    records: Records,
    health_checks_fail: bool,
    draining: bool,
    /// Listeners and filter chains that are gone, whose connections may not be.
    draining_resources: DrainingResources,
    overload: Option<overload::monitor::Watch>,
    /// When memory is given back.
    settling: Settling,
    started: Instant,
}

/// The main thread's own stats.
struct MainStats {
    server: ServerStats,
    clusters: ClusterManagerStats,
    listeners: ListenerManagerStats,
    membership: Arc<Membership>,
    silent: Arc<SilentListeners>,
    expirations: Expirations,
    /// Unknown fields of xDS resources so far.
    unknown_fields: Arc<AtomicU64>,
}

/// The sources of events.
struct Events {
    main: mpsc::UnboundedReceiver<Event>,
    xds: mpsc::Receiver<Incoming>,
    demands: mpsc::UnboundedReceiver<Demand>,
    admin: mpsc::UnboundedReceiver<admin::Command>,
}

impl Server {
    /// Brings everything up: workers, static resources, admin, discovery.
    async fn start(
        options: Options,
        bootstrap: Bootstrap,
        log: LogFilter,
    ) -> Result<(Self, Events), RunError> {
        if let Some(format) = &bootstrap.log_format {
            crate::logging::format::set(format.clone());
        }
        let concurrency = options.concurrency.unwrap_or_else(processors).max(1);
        let all_stats = Arc::new(StatsStore::default());
        let main_stats = all_stats.thread();
        let stats = MainStats {
            server: ServerStats::new(&main_stats, "server."),
            clusters: ClusterManagerStats::new(&main_stats, "cluster_manager."),
            listeners: ListenerManagerStats::new(&main_stats, "listener_manager."),
            membership: Arc::default(),
            silent: Arc::new(SilentListeners::new(concurrency)),
            expirations: Expirations::new(Arc::clone(&main_stats)),
            unknown_fields: Arc::default(),
        };
        stats.server.concurrency().set(concurrency as u64);
        let membership: Arc<Membership> = Arc::clone(&stats.membership);
        let silent: Arc<SilentListeners> = Arc::clone(&stats.silent);
        all_stats.add(membership);
        all_stats.add(silent);
        let limit = GlobalConnections::new(bootstrap.max_connections);
        let policy = DrainPolicy::from(&options);
        let (demand, demands) = mpsc::unbounded_channel();
        let buffer = bootstrap.scope.internal_buffer;
        let workers =
            (0..concurrency).map(|index| worker::spawn(index, &all_stats, &limit, policy, buffer, &demand));
        let workers = workers.collect::<Result<Vec<_>, _>>();
        let workers = workers.map_err(|error| RunError::System("cannot start a worker".to_owned(), error))?;

        let mut store = Store::new(bootstrap.cds.is_some(), bootstrap.lds.is_some());
        let mut sockets = Sockets::new(concurrency);
        let mut refused = Vec::new();
        for cluster in bootstrap.clusters {
            store.put_cluster(cluster);
        }
        for listener in bootstrap.listeners {
            if let Err(error) = sockets.bind(&listener) {
                refused.push(format!("error adding listener named '{}': {error}", listener.name));
            }
            store.put_listener(Arc::new(listener));
        }
        let known = XdsClusters::new(store.newest_clusters());
        let unknown_fields = unknown_fields(&options, &stats.unknown_fields);
        let settings = Settings {
            ads: bootstrap.ads,
            clusters: bootstrap.cds,
            listeners: bootstrap.lds,
            node: extensions::announce(bootstrap.node),
            scope: Scope { unknown_fields, xds_clusters: Some(Arc::new(known)), ..bootstrap.scope },
        };
        let started = Sources::start(settings, &main_stats);
        let sources = started.and_then(|(sources, xds)| sources.check(&store).map(|()| (sources, xds)));
        let (sources, xds) = match sources {
            Ok(started) if refused.is_empty() => started,
            Ok(_) => return Err(RunError::Config(refused)),
            Err(more) => {
                refused.extend(more);
                return Err(RunError::Config(refused));
            }
        };

        let (events, main) = mpsc::unbounded_channel();
        let (commands, admin_commands) = mpsc::unbounded_channel();
        let started = Instant::now();
        let sampled = Arc::new(Sampled::new(&all_stats.thread()));
        let last_flush = bootstrap.sinks.and_then(|sinks| {
            let (couriers, last) =
                sinks.start(Arc::clone(&all_stats), Arc::clone(&main_stats), Arc::clone(&sampled));
            start_couriers(&workers, couriers);
            last
        });
        if let Some(admin) = bootstrap.admin {
            let address = admin.address.as_ref().map(ToString::to_string).unwrap_or_default();
            let context =
                admin::Context::new(&options, admin, all_stats, concurrency, commands, started, sampled);
            let socket = context.bind().map_err(|error| {
                RunError::Config(vec![format!("admin: cannot bind '{address}': {}", bind::describe(&error))])
            })?;
            tokio::spawn(admin::serve(socket, Arc::new(context)));
        }
        let overload = bootstrap.overload.map(|plan| {
            let (events, mut ticks) = (events.clone(), tokio::time::interval(plan.refresh));
            tokio::spawn(async move {
                while events.send(Event::SampleOverload).is_ok() {
                    ticks.tick().await;
                }
            });
            overload::monitor::Watch::new(plan, &main_stats)
        });
        let server = Self {
            options,
            store,
            sockets,
            workers,
            last_flush,
            sources,
            resolving: HashMap::new(),
            outliers: HashMap::new(),
            caches: HashMap::new(),
            health: HashMap::new(),
            outlier_log: bootstrap.outlier_log.map(|path| open(&Sink::File(path))),
            events,
            thread_stats: main_stats,
            stats,
            log,
            records: Records::default(),
            health_checks_fail: false,
            draining: false,
            draining_resources: DrainingResources::default(),
            overload,
            settling: Settling::default(),
            adopted: Cell::new(false),
            started,
        };
        Ok((server, Events { main, xds, demands, admin: admin_commands }))
    }

    /// The loop.
    async fn serve(mut self, mut events: Events) -> Result<(), RunError> {
        let signals =
            |kind| signal(kind).map_err(|error| RunError::System("signal handler".to_owned(), error));
        let mut terminate = signals(SignalKind::terminate())?;
        let mut interrupt = signals(SignalKind::interrupt())?;
        let ends_by_signals = !self.options.embedded;
        let mut reopen = signals(SignalKind::user_defined1())?;
        // Of a terminal that was closed, or of a supervisor that wants files read again: those are
        // watched anyway. As in Envoy it ends nothing.
        let mut hang_up = signals(SignalKind::hangup())?;
        let mut beat = tokio::time::interval(BEAT);
        self.publish();
        loop {
            let event = tokio::select! {
                Some(event) = events.main.recv() => event,
                Some(incoming) = events.xds.recv() => Event::Xds(incoming),
                Some(demand) = events.demands.recv() => Event::Demanded(demand),
                Some(command) = events.admin.recv() => Event::Admin(command),
                _ = terminate.recv(), if ends_by_signals => Event::Terminate,
                _ = interrupt.recv(), if ends_by_signals => Event::Terminate,
                _ = reopen.recv() => Event::ReopenLogs,
                _ = hang_up.recv() => {
                    tracing::warn!("caught and eating SIGHUP");
                    continue;
                }
                _ = beat.tick() => Event::Beat,
            };
            if let Flow::End = self.handle(event) {
                self.workers.clear();
                if let Some(last) = &self.last_flush {
                    last.flush();
                }
                return Ok(());
            }
        }
    }

    fn handle(&mut self, event: Event) -> Flow {
        match event {
            Event::Xds(incoming) => {
                if let Some(applied) = self.sources.handle(incoming, &mut self.store, &mut self.sockets) {
                    self.applied(applied);
                }
                self.publish();
            }
            Event::Ejected(cluster) => self.regroup(&cluster),
            Event::Checked(cluster, report) => self.checked(&cluster, report),
            Event::Resolved(cluster, settings, assignment) => {
                if self.store.put_resolved(&cluster, &settings, &assignment) {
                    self.publish_endpoints(&[cluster], &assignment);
                }
                self.publish();
            }
            Event::Demanded(demand) => {
                match demand {
                    Demand::Cluster(key) => self.store.demand(key),
                    Demand::Host { table, host } => self.store.demand_host(&table, &host),
                }
                self.publish();
            }
            Event::Ready(listener) => {
                self.store.background_ready(&listener);
                self.publish();
            }
            Event::Admin(command) => return self.administer(command),
            Event::Terminate => return Flow::End,
            Event::ReopenLogs => crate::telemetry::access_log::reopen(),
            Event::StopListening { inbound_only } => {
                let listeners = self.store.snapshot().listeners.values();
                let stopped =
                    listeners.filter(|listener| !inbound_only || listener.direction == Direction::Inbound);
                self.stats.listeners.stopped((stopped.count() * self.workers.len()) as u64);
                self.tell(|| Command::StopListening { inbound_only });
            }
            Event::SampleOverload => {
                if let Some(levels) = self.overload.as_mut().and_then(overload::monitor::Watch::sample) {
                    self.tell(|| Command::Overload(levels));
                }
            }
            Event::Beat => {
                self.sample();
                self.settle_down();
            }
        }
        Flow::Go
    }

    /// Gives the workers what has become warm, and follows new references.
    fn publish(&mut self) {
        if self.store.is_settled() {
            return;
        }
        let before = Arc::clone(self.store.snapshot());
        let news = self.store.news();
        self.check_health(&news);
        if let Some(snapshot) = self.store.settle() {
            self.settling.disturb();
            self.stats.clusters.published(&before, &snapshot);
            self.stats.listeners.published(&before, &snapshot, self.workers.len());
            self.draining_resources.follow(&before, &snapshot, self.options.drain_time);
            outlier::follow(&before, &snapshot);
            self.watch_outliers(&before, &snapshot);
            self.fill_caches(&before, &snapshot);
            let mut sockets =
                self.sockets.take(snapshot.listeners.values().map(|listener| &**listener)).into_iter();
            self.tell(|| Command::Adopt {
                snapshot: Arc::clone(&snapshot),
                sockets: sockets.next().unwrap_or_default(),
            });
            self.count(&before, &snapshot);
        }
        for cluster in self.store.take_missing() {
            self.tell(|| Command::Missing(cluster.clone()));
        }
        let answered = self.store.take_answered();
        if !answered.is_empty() {
            let answered: Arc<[ResourceKey]> = answered.into();
            self.tell(|| Command::Answered(Arc::clone(&answered)));
        }
        let (clusters, listeners) = self.store.count_warming();
        self.stats.clusters.warming_clusters().set(clusters as u64);
        self.stats.listeners.total_listeners_warming().set(listeners as u64);
        self.forget_checks(&news);
        news.iter().for_each(|name| self.resolve(name));
        self.start_background();
        self.sources.follow(&mut self.store);
    }

    /// The short cut for endpoints: one cluster, nothing else.
    fn publish_endpoints(&mut self, clusters: &[Name], assignment: &Arc<Assignment>) {
        let mut plain = Vec::new();
        for name in clusters {
            let cluster = self.store.snapshot().clusters.get(name);
            match cluster.and_then(|cluster| watch_of(&mut self.health, cluster)) {
                None => plain.push(name.clone()),
                Some(watch) => {
                    let in_force = watch.follow(assignment);
                    self.store.keep(name, assignment, &in_force);
                    self.tell_endpoints(std::slice::from_ref(name), &in_force);
                }
            }
        }
        if !plain.is_empty() {
            self.tell_endpoints(&plain, assignment);
        }
    }

    fn tell_endpoints(&mut self, clusters: &[Name], assignment: &Arc<Assignment>) {
        let known = clusters.iter().filter_map(|name| self.store.snapshot().clusters.get(name));
        known.filter_map(|cluster| cluster.outlier.as_ref()).for_each(|detector| detector.follow(assignment));
        for cluster in clusters {
            self.stats.membership.count(cluster, Some(assignment));
        }
        self.tell(|| Command::Endpoints { clusters: clusters.to_vec(), assignment: Arc::clone(assignment) });
    }

    /// Lets the workers choose anew among a cluster's hosts: verdicts on them have changed.
    fn regroup(&mut self, cluster: &Name) {
        self.tell(|| Command::Regroup(cluster.clone()));
    }

    fn tell(&self, mut command: impl FnMut() -> Command) {
        for worker in &self.workers {
            worker.tell(command());
        }
    }

    /// Follows what an update did.
    fn applied(&mut self, mut applied: Applied) {
        let refilled = std::mem::take(&mut applied.refilled);
        self.stats.expirations.refilled(&refilled, self.store.snapshot());
        for Refilled { scope, server, .. } in refilled {
            count_refill(&self.thread_stats, &scope, server);
        }
        for (clusters, assignment) in std::mem::take(&mut applied.endpoints) {
            self.publish_endpoints(&clusters, &assignment);
        }
        self.records.record(applied, SystemTime::now());
    }

    fn count(&mut self, before: &Snapshot, snapshot: &Snapshot) {
        self.stats.clusters.active_clusters().set(snapshot.clusters.len() as u64);
        self.stats.listeners.total_listeners_active().set(snapshot.listeners.len() as u64);
        self.records.keep_routes(snapshot);
        self.stats.membership.follow(before, snapshot);
        self.stats.silent.follow(snapshot);
        self.stats.expirations.follow(before, snapshot);
        self.sample();
    }

    fn sample(&mut self) {
        let state = self.state();
        self.stats.server.state().set(state as u64);
        let days = self.stats.expirations.days(SystemTime::now());
        self.stats.server.days_until_first_cert_expiring().set(days);
        self.stats.server.live().set(u64::from(state == ServerState::Live));
        self.stats.server.uptime().set(self.started.elapsed().as_secs());
        self.stats.server.dynamic_unknown_fields().set(self.stats.unknown_fields.load(Ordering::Relaxed));
        self.draining_resources.sample(&self.stats.listeners);
    }

    /// Gives back memory when it is time to.
    fn settle_down(&mut self) {
        if let Some(what) = self.settling.beat(self.store.is_live()) {
            memory::give_back(what);
        }
    }

    /// A request that comes when somebody has been told `LIVE` meets all of the configuration.
    fn has_been_adopted(&self) -> bool {
        if !self.adopted.get() {
            self.adopted.set(self.workers.iter().all(Handle::is_up_to_date));
        }
        self.adopted.get()
    }

    fn state(&self) -> ServerState {
        if self.draining || self.health_checks_fail {
            ServerState::Draining
        } else if self.store.is_live() && self.has_been_adopted() {
            ServerState::Live
        } else if self.store.awaits_listeners() {
            ServerState::PreInitializing
        } else {
            ServerState::Initializing
        }
    }

    fn administer(&mut self, command: admin::Command) -> Flow {
        match command {
            admin::Command::View(answer) => drop(answer.send(self.view())),
            admin::Command::Hosts(answer) => self.ask_hosts(answer),
            admin::Command::Quit => return Flow::End,
            admin::Command::DrainListeners { inbound_only, graceful, skip_exit } => {
                self.drain(inbound_only, graceful, skip_exit);
            }
            admin::Command::FailHealthChecks(fail) => {
                self.health_checks_fail = fail;
                self.tell(|| Command::FailHealthChecks(fail));
            }
            admin::Command::SetLogFilter(filter) => self.log.set(&filter),
        }
        Flow::Go
    }

    /// Asks all connections to end; unless `skip_exit`, listeners stop too, at once or after
    /// the drain time.
    fn drain(&mut self, inbound_only: bool, graceful: bool, skip_exit: bool) {
        self.draining |= !inbound_only;
        self.tell(|| Command::Drain { inbound_only, gradually: graceful });
        if skip_exit {
            return;
        }
        let delay = if graceful { self.options.drain_time } else { Duration::ZERO };
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = events.send(Event::StopListening { inbound_only });
        });
    }

    /// Sums the workers' answers beside the loop, which goes on.
    fn ask_hosts(&self, answer: oneshot::Sender<HostTable>) {
        let answers: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let (send, receive) = oneshot::channel();
                worker.tell(Command::Hosts(send));
                receive
            })
            .collect();
        tokio::spawn(async move {
            let mut table = HostTable::default();
            for reports in answers {
                table.add(&reports.await.unwrap_or_default());
            }
            let _ = answer.send(table);
        });
    }

    fn view(&self) -> View {
        let snapshot = Arc::clone(self.store.snapshot());
        let bound =
            snapshot.listeners.keys().map(|name| (name.clone(), self.sockets.addresses(name).to_vec()));
        View {
            state: self.state(),
            bound: bound.collect(),
            warming_clusters: self.store.warming_clusters().cloned().collect(),
            warming_listeners: self.store.warming_listeners().cloned().collect(),
            routes: self.records.routes(&snapshot),
            refused: self.records.refused(),
            cds_version: self.records.version(&TypeUrl::Cluster),
            lds_version: self.records.version(&TypeUrl::Listener),
            updated: self.records.updated().clone(),
            unready: self.store.unready(),
            secrets: self.secrets(),
            extensions: self.store.shown_extensions(),
            snapshot,
        }
    }
}

impl Server {
    /// The secrets that are wanted, with what has come of each.
    fn secrets(&self) -> Vec<(Name, Option<DynamicResource>)> {
        let wanted = self.store.wanted_secrets().into_iter();
        let shown = wanted.map(|key| {
            let known = self.store.secrets().known(key).map(|known| DynamicResource {
                source: known.source.clone(),
                version: known.version.clone(),
                updated: known.updated,
            });
            (key.name.clone(), known)
        });
        shown.collect()
    }
}

/// Starts what goes on beside requests and belongs to no listener.
fn start_couriers(workers: &[Handle], couriers: Vec<Arc<dyn Background>>) {
    let Some(worker) = workers.first() else { return };
    for work in couriers {
        worker.tell(Command::Start { work, stat_prefix: Name::default(), ready: Box::new(|| ()) });
    }
}

/// Whether the loop goes on.
enum Flow {
    Go,
    End,
}

/// What `--reject-unknown-dynamic-fields` and `--ignore-unknown-dynamic-fields` say.
fn unknown_fields(options: &Options, count: &Arc<AtomicU64>) -> UnknownFields {
    if options.reject_unknown_dynamic_fields {
        UnknownFields::Reject
    } else if options.ignore_unknown_dynamic_fields {
        UnknownFields::Ignore
    } else {
        UnknownFields::Warn(Arc::clone(count))
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
#[path = "server/tests.rs"]
mod tests;
