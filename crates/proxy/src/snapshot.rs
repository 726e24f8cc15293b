//! What a worker may see of the configuration: one immutable value that shares every
//! unchanged part with its predecessor. The main thread publishes, a worker adopts between
//! polls; requests in flight keep what they started with.

use std::collections::HashMap;
use std::sync::Arc;

use leno_base::{FastHash, Name};

use crate::cluster::{Assignment, Cluster};
use crate::config::source::ResourceKey;
use crate::http::route::RouteTable;
use crate::listener::Listener;

mod shared_map;

pub(crate) use shared_map::SharedMap;

/// The whole configuration that traffic depends on, warmed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// By name.
    pub(crate) listeners: HashMap<Name, Arc<Listener>>,
    /// By name.
    pub(crate) clusters: SharedMap<Cluster>,
    /// Current endpoints by cluster name (resolved addresses only).
    pub(crate) endpoints: SharedMap<Assignment>,
    /// RDS tables.
    pub(crate) routes: HashMap<ResourceKey, Arc<RouteTable>, FastHash>,
}
