//! A worker's side of a cluster: current hosts, balancer, connection pools, stats.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::pool::Pool;
use crate::cluster::{Cluster, EndpointConfig, PickContext};

/// One cluster on one worker.
pub(crate) struct WorkerCluster {
    /// Its configuration.
    pub(crate) config: Arc<Cluster>,
}

/// One endpoint on one worker: what pools and balancers count per host.
pub(crate) struct Host {
    /// As configured, address resolved.
    pub(crate) config: EndpointConfig,
    /// Its IP address, or `None` for a pipe.
    pub(crate) address: Option<SocketAddr>,
    /// Connections to it.
    pub(crate) pool: RefCell<Pool>,
}

impl WorkerCluster {
    /// Picks an endpoint; `None`: none can be had (`UH`).
    pub(crate) fn pick(&self, _context: &PickContext<'_>) -> Option<Rc<Host>> {
        None
    }
}
