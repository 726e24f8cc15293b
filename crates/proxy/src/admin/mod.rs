//! The admin interface: how people, agents and scrapers look into the proxy and steer it.
//!
//! One file per endpoint, listed in [`ENDPOINTS`]; paths, parameters and texts are Envoy's. The
//! main loop owns the configuration, so an endpoint that needs it *asks* with a [`Command`] and
//! gets a [`View`], a consistent copy of shared parts; counters are read without asking.
//! Reading order: this file, `http` (serving), `respond`, then any endpoint.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use leno_base::Name;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::admin::logging::Levels;
use crate::admin::respond::{Query, Response};
use crate::cluster::{Cluster, EndpointAddress};
use crate::config::address::Address;
use crate::listener::{ListenAddress, Listener};
use crate::options::Options;
use crate::snapshot::Snapshot;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::server_stats::Sampled;
use crate::telemetry::stats::StatsStore;
use crate::telemetry::tags::StatsConfig;
use crate::worker::HostReport;

mod certs;
mod clusters;
pub(crate) mod config;
mod config_dump;
mod drain_listeners;
mod healthcheck;
mod help;
mod hot_restart_version;
mod http;
mod init_dump;
mod json;
mod listeners;
pub(crate) mod logging;
mod memory;
mod prometheus;
mod quitquitquit;
mod ready;
mod reopen_logs;
mod reset_counters;
mod respond;
mod runtime;
pub(crate) mod server_info;
mod stats;
#[cfg(test)]
mod tests;

pub(crate) use config::AdminConfig;
pub(crate) use http::serve;

/// What the admin interface knows without asking.
pub(crate) struct Context {
    /// All counters.
    pub(crate) stats: Arc<StatsStore>,
    /// `stats_config` of the bootstrap.
    pub(crate) stats_config: StatsConfig,
    /// Where questions and orders go.
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    /// Facts that do not change.
    pub(crate) server: ServerFacts,
    /// Log levels as last set.
    pub(crate) levels: Mutex<Levels>,
    /// `admin.access_log`.
    pub(crate) access_logs: Vec<Arc<AccessLog>>,
    /// Where to listen.
    pub(crate) address: Option<Address>,
    /// Stats that are brought up to date when somebody looks.
    sampled: Arc<Sampled>,
    /// Whom to tell when somebody looks at stats (`stats_flush_on_admin`).
    flush: Option<Arc<Notify>>,
}

/// What is fixed when the proxy starts.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    /// When it started.
    pub(crate) started: Instant,
    /// The same on the wall clock: `last_updated` of static resources.
    pub(crate) started_at: SystemTime,
    /// Worker threads.
    pub(crate) concurrency: usize,
    /// The bootstrap as read, an envoy.config.bootstrap.v3.Bootstrap in wire form.
    pub(crate) bootstrap: bytes::Bytes,
    /// `layered_runtime`, lowest layer first: name, values.
    pub(crate) runtime_layers: Vec<(String, serde_json::Value)>,
    /// The command line.
    pub(crate) options: Options,
}

/// What the admin interface asks or orders the main loop to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Show the configuration.
    View(oneshot::Sender<View>),
    /// Sum the counts of all endpoints over all workers.
    Hosts(oneshot::Sender<HostTable>),
    /// Shut down at once (`/quitquitquit`).
    Quit,
    /// `/drain_listeners`.
    DrainListeners {
        /// Only those with `traffic_direction: INBOUND`.
        inbound_only: bool,
        /// Drain for the drain time before the listeners stop.
        graceful: bool,
        /// Drain connections and never stop the listeners.
        skip_exit: bool,
    },
    /// `/healthcheck/fail` (true) and `/healthcheck/ok` (false).
    FailHealthChecks(bool),
    /// Install this filter, in the syntax of `tracing_subscriber::EnvFilter`.
    SetLogFilter(String),
}

/// A consistent look at the configuration, made by the main loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The server's state.
    pub(crate) state: ServerState,
    /// What is in force.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Clusters that are not warm yet.
    pub(crate) warming_clusters: Vec<Arc<Cluster>>,
    /// Listeners that are not warm yet.
    pub(crate) warming_listeners: Vec<Arc<Listener>>,
    /// Tables that came by RDS.
    pub(crate) routes: Vec<DynamicResource>,
    /// Updates that were refused and not replaced since.
    pub(crate) refused: Vec<RefusedResource>,
    /// `version_info` of the last CDS response taken.
    pub(crate) cds_version: String,
    /// `version_info` of the last LDS response taken.
    pub(crate) lds_version: String,
    /// When dynamic resources were taken, by kind and name.
    pub(crate) updated: HashMap<(ResourceKind, Name), SystemTime>,
    /// Addresses that listeners really have (port 0 chosen by the system), by listener name.
    pub(crate) bound: BTreeMap<Name, Vec<ListenAddress>>,
    /// What initialisation still waits for: `/init_dump`, by init manager.
    pub(crate) unready: Vec<(String, Vec<String>)>,
    /// Secrets that are to come by SDS, by name, with those that did.
    pub(crate) secrets: Vec<(Name, Option<DynamicResource>)>,
    /// Configurations of filters that came by ECDS, by name; `None`: none is to come.
    pub(crate) extensions: Option<Vec<(Name, DynamicResource)>>,
}

/// A resource as it came by xDS.
#[derive(Clone, Debug)]
pub(crate) struct DynamicResource {
    /// The message.
    pub(crate) source: prost_types::Any,
    /// `version_info`.
    pub(crate) version: String,
    /// When it was taken.
    pub(crate) updated: SystemTime,
}

/// An update that was refused.
#[derive(Clone, Debug)]
pub(crate) struct RefusedResource {
    /// Of which kind.
    pub(crate) kind: ResourceKind,
    /// The resource's name.
    pub(crate) name: Name,
    /// The message, if it could be read.
    pub(crate) source: Option<prost_types::Any>,
    /// `version_info`.
    pub(crate) version: String,
    /// Why.
    pub(crate) details: String,
    /// When.
    pub(crate) at: SystemTime,
}

/// Kinds of dynamic resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ResourceKind {
    /// By CDS.
    Cluster,
    /// By LDS.
    Listener,
    /// By RDS.
    Route,
}

/// envoy.admin.v3.ServerInfo.State; the numbers are those of `server.state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ServerState {
    /// Serving.
    Live = 0,
    /// Draining, or health checks were failed by hand.
    Draining = 1,
    /// Clusters are not warm yet.
    #[default]
    PreInitializing = 2,
    /// Listeners are not warm yet.
    Initializing = 3,
}

impl ServerState {
    /// The name in the API.
    pub(crate) fn text(self) -> &'static str {
        match self {
            ServerState::Live => "LIVE",
            ServerState::Draining => "DRAINING",
            ServerState::PreInitializing => "PRE_INITIALIZING",
            ServerState::Initializing => "INITIALIZING",
        }
    }
}

/// Counts of all endpoints: by cluster name and address.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostTable(pub(crate) HashMap<Name, HashMap<EndpointAddress, HostCounts>>);

/// What is counted per endpoint, summed over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostCounts {
    /// Connections open.
    pub(crate) cx_active: u64,
    /// Connections that could not be made.
    pub(crate) cx_connect_fail: u64,
    /// Connections made or tried.
    pub(crate) cx_total: u64,
    /// Requests under way.
    pub(crate) rq_active: u64,
    /// Requests that failed (5xx or no answer).
    pub(crate) rq_error: u64,
    /// Requests answered without error.
    pub(crate) rq_success: u64,
    /// Requests that took too long.
    pub(crate) rq_timeout: u64,
    /// All requests.
    pub(crate) rq_total: u64,
}

impl HostTable {
    /// Adds one worker's counts.
    pub(crate) fn add(&mut self, reports: &[HostReport]) {
        for HostReport { cluster, address, connections, requests } in reports {
            let hosts = self.0.entry(cluster.clone()).or_default();
            let sum = hosts.entry(address.clone()).or_default();
            let [open, all, failed] = *connections;
            sum.cx_active += open;
            sum.cx_total += all;
            sum.cx_connect_fail += failed;
            let [active, all, good, failed, late] = *requests;
            sum.rq_active += active;
            sum.rq_total += all;
            sum.rq_success += good;
            sum.rq_error += failed;
            sum.rq_timeout += late;
        }
    }

    fn find(&self, cluster: &str, address: &EndpointAddress) -> HostCounts {
        self.0.get(cluster).and_then(|hosts| hosts.get(address)).copied().unwrap_or_default()
    }
}

/// One endpoint of the admin interface.
struct Endpoint {
    /// The exact path.
    path: &'static str,
    /// What /help says of it.
    help: &'static str,
    /// Query parameters and what /help says of them.
    parameters: &'static [(&'static str, &'static str)],
    /// Whether it changes something, and thus wants POST.
    mutates: bool,
    /// Answers.
    answer: Answer,
}

/// The code of an endpoint.
enum Answer {
    /// From what is known.
    Now(fn(&Context, &Query) -> Response),
    /// From what the main loop knows.
    Asking(for<'a> fn(&'a Context, &'a Query) -> Asking<'a>),
}

/// An answer on its way.
type Asking<'a> = Pin<Box<dyn Future<Output = Response> + Send + 'a>>;

/// All endpoints, in the order of /help.
const ENDPOINTS: &[&Endpoint] = &[
    &help::HOME,
    &certs::ENDPOINT,
    &clusters::ENDPOINT,
    &config_dump::ENDPOINT,
    &drain_listeners::ENDPOINT,
    &healthcheck::FAIL,
    &healthcheck::OK,
    &help::ENDPOINT,
    &hot_restart_version::ENDPOINT,
    &init_dump::ENDPOINT,
    &listeners::ENDPOINT,
    &logging::ENDPOINT,
    &memory::ENDPOINT,
    &quitquitquit::ENDPOINT,
    &ready::ENDPOINT,
    &reopen_logs::ENDPOINT,
    &reset_counters::ENDPOINT,
    &runtime::ENDPOINT,
    &server_info::ENDPOINT,
    &stats::ENDPOINT,
    &prometheus::ENDPOINT,
];

impl Context {
    /// Asks the main loop for a look at the configuration; `None`: it is gone.
    async fn view(&self) -> Option<View> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::View(reply)).ok()?;
        answer.await.ok()
    }

    /// Asks the workers for the counts of their endpoints.
    async fn hosts(&self) -> Option<HostTable> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Hosts(reply)).ok()?;
        answer.await.ok()
    }

    /// Gives an order; says `OK`, or that the proxy shuts down.
    fn order(&self, command: Command) -> Response {
        match self.commands.send(command) {
            Ok(()) => Response::text("OK\n"),
            Err(_) => Response::gone(),
        }
    }
}
