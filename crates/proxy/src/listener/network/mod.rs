//! Network filters in front of the one that serves a connection: the seam, and those that this
//! proxy has.
//!
//! A chain's filters are opened for each connection, after its transport is set up, and see it
//! in order; the last filter of a chain (`NetworkFilters`) is a plain function. Synchronous
//! first: only a filter that waits for something returns `NetworkStep::Await`. What a filter
//! finds out it leaves in `ConnectionInfo::found`; what it holds for a connection it drops with it.
//!
//! To add one: a module of its own, and a line in `REGISTRY`.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use prost_types::Any;
use tokio::io::AsyncReadExt;

use crate::config::lower::Lower;
use crate::io::Accepted;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};
use crate::worker::Worker;

mod connection_limit;
mod ext_authz;
mod local_ratelimit;
mod rbac;
mod set_filter_state;
mod sni_cluster;

/// A network filter as configured in one chain.
pub(crate) trait NetworkFilterConfig: fmt::Debug + Send + Sync {
    /// Opens the filter for one connection; `None`: it does not want to see this one.
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>>;
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
    /// Full name of its configuration message.
    config_type: &'static str,
    /// Lowers the configuration.
    lower: fn(&Any, &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>>,
}

const REGISTRY: &[Registration] = &[
    Registration {
        config_type: "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        lower: connection_limit::lower,
    },
    Registration {
        config_type: "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
        lower: ext_authz::lower,
    },
    Registration {
        config_type: "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        lower: local_ratelimit::lower,
    },
    Registration { config_type: "envoy.extensions.filters.network.rbac.v3.RBAC", lower: rbac::config::lower },
    Registration {
        config_type: "envoy.extensions.filters.network.set_filter_state.v3.Config",
        lower: set_filter_state::lower,
    },
    Registration {
        config_type: "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
        lower: sni_cluster::lower,
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
    worker: &Rc<Worker>,
    accepted: &mut Accepted,
    connection: &mut ConnectionInfo,
) -> Result<Vec<Box<dyn NetworkFilter>>, Cow<'static, str>> {
    let mut open: Vec<_> = configs.iter().filter_map(|config| config.open(worker)).collect();
    for filter in &mut open {
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
    Ok(open)
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
