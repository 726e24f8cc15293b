//! envoy.filters.network.sni_cluster: the server name is the TCP proxy's cluster.

use std::rc::Rc;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::network::sni_cluster::v3 as proto;
use prost_types::Any;

use super::{NetworkFilter, NetworkFilterConfig, NetworkStep, TCP_PROXY_CLUSTER};
use crate::config::lower::Lower;
use crate::telemetry::stream_info::{ConnectionInfo, FilterState};
use crate::worker::Worker;

/// SniCluster.
#[derive(Debug)]
struct SniCluster;

impl NetworkFilterConfig for SniCluster {
    fn open(&self, _: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Self))
    }
}

impl NetworkFilter for SniCluster {
    fn on_new_connection(&mut self, connection: &mut ConnectionInfo) -> NetworkStep {
        if let Some(name) = &connection.server_name {
            let state = FilterState { text: name.to_string(), typed: None, peer: None };
            connection.found.filter_state.insert(TCP_PROXY_CLUSTER.to_owned(), state);
        }
        NetworkStep::Continue
    }
}

/// Lowers a SniCluster.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto::SniCluster {} = at.unpack(any)?;
    Some(Arc::new(SniCluster))
}
