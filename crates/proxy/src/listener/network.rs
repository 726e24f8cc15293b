//! Network filters in front of the one that serves a connection: the seam, and those that this
//! proxy has.
//!
//! A chain's filters are opened for each connection, after its transport is set up, and see it
//! in order; the last filter of a chain (`NetworkFilters`) is a plain function. Synchronous
//! first: only a filter that waits for something returns `NetworkStep::Await`. What a filter
//! finds out it leaves in `ConnectionInfo::found`; what it holds for a connection it drops with it.
//!
//! To add one: a type here or in a module of its own, and a line in `REGISTRY`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leno_api::proto::envoy::extensions::filters::network as filters;
use leno_base::Name;
use prost_types::Any;
use tokio::io::AsyncReadExt;

use crate::config::lower::Lower;
use crate::io::Accepted;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, FilterState};
use crate::worker::Worker;

/// A network filter as configured in one chain.
pub(crate) trait NetworkFilterConfig: fmt::Debug + Send + Sync {
    /// Opens the filter for one connection; `None`: it does not want to see this one.
    fn open(&self, worker: &Worker) -> Option<Box<dyn NetworkFilter>>;
}

/// A network filter at work on one connection.
pub(crate) trait NetworkFilter {
    /// The connection is there; nothing was read but what listener filters had to.
    fn on_new_connection(&mut self, _connection: &mut ConnectionInfo) -> NetworkStep {
        NetworkStep::Continue
    }
    /// Whether `on_data` is to be called. It holds the connection until the client speaks, so a
    /// filter for protocols in which the server speaks first must not ask for it.
    fn wants_data(&self) -> bool {
        false
    }
    /// The first bytes, once, before the chain's last filter sees them.
    fn on_data(&mut self, _connection: &mut ConnectionInfo, _data: &[u8]) -> NetworkStep {
        NetworkStep::Continue
    }
}

/// What happens next.
pub(crate) enum NetworkStep {
    /// The next filter.
    Continue,
    /// The connection is closed, for this reason (`%CONNECTION_TERMINATION_DETAILS%`).
    Close(&'static str),
    /// The filter waits; true: the next filter, false: the connection is closed.
    Await(Pin<Box<dyn Future<Output = bool>>>),
}

/// A kind of network filter that this proxy has.
struct Registration {
    /// Full name of its configuration message.
    config_type: &'static str,
    /// Lowers the configuration.
    lower: fn(&Any, &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>>,
}

const REGISTRY: &[Registration] = &[
    Registration {
        config_type: "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        lower: ConnectionLimit::lower,
    },
    Registration {
        config_type: "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
        lower: SniCluster::lower,
    },
];

/// Lowers a filter that is not the last one of its chain; `None` inside: there is none of that
/// type.
#[allow(clippy::option_option, reason = "unknown and refused are different")]
pub(crate) fn lower(any: &Any, at: &mut Lower) -> Option<Option<Arc<dyn NetworkFilterConfig>>> {
    let name = leno_api::any::type_name(&any.type_url);
    let registered = REGISTRY.iter().find(|registered| registered.config_type == name)?;
    Some((registered.lower)(any, at))
}

/// Runs a chain's filters on a new connection; the error is why it is to be closed. The filters
/// are to be kept while the connection lives.
pub(crate) async fn run(
    configs: &[Arc<dyn NetworkFilterConfig>],
    worker: &Worker,
    accepted: &mut Accepted,
    connection: &mut ConnectionInfo,
) -> Result<Vec<Box<dyn NetworkFilter>>, &'static str> {
    let mut open: Vec<_> = configs.iter().filter_map(|config| config.open(worker)).collect();
    for filter in &mut open {
        finish(filter.on_new_connection(connection)).await?;
    }
    for filter in open.iter_mut().filter(|filter| filter.wants_data()) {
        while accepted.buffered.is_empty() {
            match accepted.socket.read_buf(&mut accepted.buffered).await {
                Ok(0) | Err(_) => return Err(""),
                Ok(_) => {}
            }
        }
        finish(filter.on_data(connection, &accepted.buffered)).await?;
    }
    Ok(open)
}

async fn finish(step: NetworkStep) -> Result<(), &'static str> {
    match step {
        NetworkStep::Continue => Ok(()),
        NetworkStep::Close(why) => Err(why),
        NetworkStep::Await(waiting) => waiting.await.then_some(()).ok_or(""),
    }
}

stats_scope! {
    /// `connection_limit.STAT_PREFIX.`
    struct ConnectionLimitStats {
        gauge active_connections;
        counter limited_connections;
    }
}

/// envoy.filters.network.connection_limit
#[derive(Debug)]
struct ConnectionLimit {
    stat_prefix: Name,
    limit: u64,
    /// Connections over the limit are closed after so long.
    delay: Option<Duration>,
    /// Over all workers.
    open: Arc<AtomicU64>,
}

/// One counted connection.
struct LimitedConnection {
    limit: u64,
    delay: Option<Duration>,
    open: Arc<AtomicU64>,
    stats: ConnectionLimitStats,
    counted: bool,
}

impl ConnectionLimit {
    fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
        let filters::connection_limit::v3::ConnectionLimit {
            stat_prefix,
            max_connections,
            delay,
            runtime_enabled,
        } = at.unpack(any)?;
        at.unsupported("runtime_enabled", runtime_enabled.is_some());
        Some(Arc::new(Self {
            stat_prefix: stat_prefix.into(),
            limit: max_connections.unwrap_or(0),
            delay: at.timeout("delay", delay, None),
            open: Arc::default(),
        }))
    }
}

impl NetworkFilterConfig for ConnectionLimit {
    fn open(&self, worker: &Worker) -> Option<Box<dyn NetworkFilter>> {
        let prefix = format!("connection_limit.{}.", self.stat_prefix);
        Some(Box::new(LimitedConnection {
            limit: self.limit,
            delay: self.delay,
            open: Arc::clone(&self.open),
            stats: ConnectionLimitStats::kept(worker.stats(), &prefix),
            counted: false,
        }))
    }
}

impl NetworkFilter for LimitedConnection {
    fn on_new_connection(&mut self, _: &mut ConnectionInfo) -> NetworkStep {
        let room = |open: u64| (open < self.limit).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
            self.counted = true;
            self.stats.active_connections().inc();
            return NetworkStep::Continue;
        }
        self.stats.limited_connections().inc();
        match self.delay {
            None => NetworkStep::Close("over_connection_limit"),
            Some(delay) => NetworkStep::Await(Box::pin(async move {
                tokio::time::sleep(delay).await;
                false
            })),
        }
    }
}

impl Drop for LimitedConnection {
    fn drop(&mut self) {
        if self.counted {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.stats.active_connections().dec();
        }
    }
}

/// The filter state that names a TCP proxy's cluster.
pub(crate) const TCP_PROXY_CLUSTER: &str = "envoy.tcp_proxy.cluster";

/// envoy.filters.network.sni_cluster: the server name is the TCP proxy's cluster.
#[derive(Debug)]
struct SniCluster;

impl SniCluster {
    fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
        let filters::sni_cluster::v3::SniCluster {} = at.unpack(any)?;
        Some(Arc::new(Self))
    }
}

impl NetworkFilterConfig for SniCluster {
    fn open(&self, _: &Worker) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Self))
    }
}

impl NetworkFilter for SniCluster {
    fn on_new_connection(&mut self, connection: &mut ConnectionInfo) -> NetworkStep {
        if let Some(name) = &connection.server_name {
            let state = FilterState { text: name.to_string(), typed: None };
            connection.found.filter_state.insert(TCP_PROXY_CLUSTER.to_owned(), state);
        }
        NetworkStep::Continue
    }
}
