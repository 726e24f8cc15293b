//! Network filters in front of the one that serves a connection: the seam, and those that this
//! proxy has.
//!
//! A chain's filters are opened for each connection, after its transport is set up, and see it
//! in order; the last filter of a chain (`NetworkFilters`) is a plain function. Synchronous
//! first: only a filter that waits for something returns `NetworkStep::Await`, and only one that
//! talks to the client itself has something to `exchange`. What a filter finds out it leaves in
//! `ConnectionInfo::found`; what it holds for a connection it drops with it. Those that count TCP
//! sessions are told how they go on and end (`NetworkFilter::on_report`).
//!
//! To add one: a module of its own, and a line in `REGISTRY`.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;
use tokio::io::AsyncReadExt;

use crate::config::lower::Lower;
use crate::http::filters::Background;
use crate::io::Accepted;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata, StreamInfo};
use crate::worker::Worker;

mod connection_limit;
mod ext_authz;
mod istio_stats;
mod local_ratelimit;
pub(crate) mod metadata_exchange;
mod rbac;
mod set_filter_state;
mod sni_cluster;

/// A network filter as configured in one chain.
pub(crate) trait NetworkFilterConfig: fmt::Debug + Send + Sync {
    /// Opens the filter for one connection; `None`: it does not want to see this one.
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>>;
    /// Whether it makes sense in front of a TCP proxy only.
    fn counts_sessions(&self) -> bool {
        false
    }
    /// What goes on beside connections as long as the filter is configured.
    fn background(&self) -> Vec<Arc<dyn Background>> {
        Vec::new()
    }
}

/// A network filter at work on one connection.
pub(crate) trait NetworkFilter {
    /// The connection is there; nothing was read but what listener filters had to.
    fn on_new_connection(&mut self, _connection: &mut ConnectionInfo) -> NetworkStep {
        NetworkStep::Continue
    }
    /// What is to be said to the client, and read of it, before anything else; `None`: nothing.
    fn exchange<'a>(
        &'a mut self,
        _connection: &'a mut ConnectionInfo,
        _accepted: &'a mut Accepted,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + 'a>>> {
        None
    }
    /// How often it wants to be told of a TCP session that goes on; `None`: it counts none, or at
    /// their ends only.
    fn report_interval(&self) -> Option<Duration> {
        None
    }
    /// A session goes on, or has ended.
    fn on_report(&mut self, _info: &StreamInfo, _end: bool) {}
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
    Close(Cow<'static, str>),
    /// The filter waits.
    Await(Pin<Box<dyn Future<Output = Waited>>>),
}

/// What a filter has waited for.
pub(crate) struct Waited {
    /// What it leaves for those behind it.
    pub(crate) metadata: DynamicMetadata,
    /// The next filter, or the connection is closed for this reason.
    pub(crate) outcome: Result<(), Cow<'static, str>>,
}

/// A kind of network filter that this proxy has.
struct Registration {
    /// Envoy's extension name, for messages only: the type URL decides.
    name: &'static str,
    /// Full name of its configuration message.
    config_type: &'static str,
    /// Lowers the configuration.
    lower: fn(&Any, &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>>,
}

const REGISTRY: &[Registration] = &[
    Registration {
        name: "envoy.filters.network.connection_limit",
        config_type: "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        lower: connection_limit::lower,
    },
    Registration {
        name: "envoy.filters.network.ext_authz",
        config_type: "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
        lower: ext_authz::lower,
    },
    Registration {
        name: "envoy.filters.network.istio_stats",
        config_type: "stats.PluginConfig",
        lower: istio_stats::lower,
    },
    Registration {
        name: "envoy.filters.network.local_ratelimit",
        config_type: "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        lower: local_ratelimit::lower,
    },
    Registration {
        name: "envoy.filters.network.metadata_exchange",
        config_type: "envoy.tcp.metadataexchange.config.MetadataExchange",
        lower: metadata_exchange::lower,
    },
    Registration {
        name: "envoy.filters.network.rbac",
        config_type: "envoy.extensions.filters.network.rbac.v3.RBAC",
        lower: rbac::config::lower,
    },
    Registration {
        name: "envoy.filters.network.set_filter_state",
        config_type: "envoy.extensions.filters.network.set_filter_state.v3.Config",
        lower: set_filter_state::lower,
    },
    Registration {
        name: "envoy.filters.network.sni_cluster",
        config_type: "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
        lower: sni_cluster::lower,
    },
];

/// Names and types of all.
pub(crate) fn registered() -> impl Iterator<Item = (&'static str, &'static str)> {
    REGISTRY.iter().map(|registered| (registered.name, registered.config_type))
}

/// Lowers a filter that is not the last one of its chain; `None` inside: there is none of that
/// type.
#[allow(clippy::option_option, reason = "unknown and refused are different")]
pub(crate) fn lower(any: &Any, at: &mut Lower) -> Option<Option<Arc<dyn NetworkFilterConfig>>> {
    let name = leno_api::any::type_name(&any.type_url);
    let registered = REGISTRY.iter().find(|registered| registered.config_type == name)?;
    Some((registered.lower)(any, at))
}

/// Opens a chain's filters for a connection. They are to be kept while it lives.
pub(crate) fn open(
    configs: &[Arc<dyn NetworkFilterConfig>],
    worker: &Rc<Worker>,
) -> Vec<Box<dyn NetworkFilter>> {
    configs.iter().filter_map(|config| config.open(worker)).collect()
}

/// Runs filters on a new connection; the error is why it is to be closed.
pub(crate) async fn run(
    open: &mut [Box<dyn NetworkFilter>],
    accepted: &mut Accepted,
    connection: &mut ConnectionInfo,
) -> Result<(), Cow<'static, str>> {
    for filter in &mut *open {
        if let Some(exchange) = filter.exchange(connection, accepted) {
            exchange.await;
        }
        let step = filter.on_new_connection(connection);
        finish(step, connection).await?;
    }
    for filter in open.iter_mut().filter(|filter| filter.wants_data()) {
        while accepted.buffered.is_empty() {
            match accepted.socket.read_buf(&mut accepted.buffered).await {
                Ok(0) | Err(_) => return Err(Cow::Borrowed("")),
                Ok(_) => {}
            }
        }
        let step = filter.on_data(connection, &accepted.buffered);
        finish(step, connection).await?;
    }
    Ok(())
}

/// Tells filters that a session goes on, or has ended.
pub(crate) fn report(open: &mut [Box<dyn NetworkFilter>], info: &StreamInfo, end: bool) {
    open.iter_mut().for_each(|filter| filter.on_report(info, end));
}

/// How often they want to be told.
pub(crate) fn report_interval(open: &[Box<dyn NetworkFilter>]) -> Option<Duration> {
    open.iter().filter_map(|filter| filter.report_interval()).min()
}

async fn finish(step: NetworkStep, connection: &mut ConnectionInfo) -> Result<(), Cow<'static, str>> {
    match step {
        NetworkStep::Continue => Ok(()),
        NetworkStep::Close(why) => Err(why),
        NetworkStep::Await(waiting) => {
            let Waited { metadata, outcome } = waiting.await;
            metadata.shared().for_each(|namespace| connection.found.metadata.merge(namespace));
            outcome
        }
    }
}

/// The filter state that names a TCP proxy's cluster.
pub(crate) const TCP_PROXY_CLUSTER: &str = "envoy.tcp_proxy.cluster";
