//! envoy.filters.network.connection_limit: so many connections at once, over all workers.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leno_api::proto::envoy::extensions::filters::network::connection_limit::v3 as proto;
use leno_base::Name;
use prost_types::Any;

use super::{NetworkFilter, NetworkFilterConfig, NetworkStep, Waited};
use crate::config::lower::Lower;
use crate::config::runtime;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};
use crate::worker::Worker;

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
    /// `runtime_enabled`.
    enabled: bool,
}

/// One counted connection.
struct LimitedConnection {
    limit: u64,
    delay: Option<Duration>,
    open: Arc<AtomicU64>,
    stats: ConnectionLimitStats,
    counted: bool,
}

impl NetworkFilterConfig for ConnectionLimit {
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        if !self.enabled {
            return None;
        }
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
            None => NetworkStep::Close("over_connection_limit".into()),
            Some(delay) => NetworkStep::Await(Box::pin(async move {
                tokio::time::sleep(delay).await;
                Waited { metadata: DynamicMetadata::new(), outcome: Err("over_connection_limit".into()) }
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

/// Lowers a ConnectionLimit.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto::ConnectionLimit { stat_prefix, max_connections, delay, runtime_enabled } = at.unpack(any)?;
    Some(Arc::new(ConnectionLimit {
        stat_prefix: stat_prefix.into(),
        limit: max_connections.unwrap_or(0),
        delay: at.timeout("delay", delay, None),
        open: Arc::default(),
        enabled: runtime::flag(runtime_enabled, at),
    }))
}
