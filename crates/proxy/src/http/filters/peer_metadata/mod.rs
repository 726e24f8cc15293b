//! `istio.metadata_exchange` of HTTP: proxies of a mesh tell each other what they are, in headers
//! of requests and responses, and leave what they are told in the filter state, for metrics, access
//! logs and conditions (`telemetry::workload`).
//!
//! Not here: workloads by address (`workload_discovery`) need the control plane's workloads, which
//! a bootstrap extension subscribes to. Without that, as here, Istio's proxy finds nothing this way
//! either, and goes on to the next.

mod config;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use leno_base::base64;
use prost::Message;
use prost_types::Struct;

use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings};
use crate::http::headers::{HeaderMap, Known};
use crate::http::stream::Stream;
use crate::telemetry::stream_info::{ClusterFacts, FilterState};
use crate::telemetry::workload::{DOWNSTREAM_PEER, UPSTREAM_PEER, Workload};
use crate::worker::Worker;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.peer_metadata",
    config_type: "io.istio.http.peer_metadata.Config",
    lower: config::lower,
    route_type: None,
    lower_route: None,
};

/// What a proxy is.
const METADATA: Known = Known::EnvoyPeerMetadata;
/// What it is called: what the same name says twice is the same.
const METADATA_ID: Known = Known::EnvoyPeerMetadataId;

/// Config.
#[derive(Debug)]
struct PeerMetadata {
    downstream_discovery: Vec<Discovery>,
    upstream_discovery: Vec<Discovery>,
    downstream_propagation: Vec<Propagation>,
    upstream_propagation: Vec<Propagation>,
    /// `additional_labels`
    labels: Arc<[Box<str>]>,
    /// The id of this node.
    id: Arc<str>,
    /// What it is, in base64.
    own: Box<str>,
}

/// DiscoveryMethod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Discovery {
    /// `istio_headers`
    Headers,
    /// `workload_discovery`: nothing is found.
    Workloads,
    /// `upstream_filter_state` with this key.
    UpstreamState(Box<str>),
}

/// PropagationMethod: `istio_headers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Propagation {
    /// `skip_external_clusters`
    skip_external: bool,
}

impl FilterConfig for PeerMetadata {
    fn on_request(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let asked = [head.contains(METADATA_ID), head.contains(METADATA)];
        self.discover(&self.downstream_discovery, DOWNSTREAM_PEER, stream, head);
        if !self.upstream_propagation.is_empty() {
            let cluster = target(stream, head);
            for way in &self.upstream_propagation {
                if cluster.as_deref().is_none_or(|cluster| !way.skips(cluster)) {
                    self.tell(head, [true, true]);
                }
            }
        }
        if self.upstream_discovery.is_empty() && self.downstream_propagation.is_empty() {
            return Opening::PASS;
        }
        // Whoever tells nothing is told nothing.
        Opening::Head(asked.map(|asked| asked && self.downstream_discovery.contains(&Discovery::Headers)))
    }

    fn on_response_head(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        asked: [bool; 2],
        head: &mut HeaderMap,
    ) {
        self.discover(&self.upstream_discovery, UPSTREAM_PEER, stream, head);
        for way in &self.downstream_propagation {
            if stream.info.upstream.cluster.as_deref().is_none_or(|cluster| !way.skips(cluster)) {
                self.tell(head, asked);
            }
        }
    }
}

impl PeerMetadata {
    /// Finds out who the peer is; the first way that succeeds counts.
    fn discover(&self, ways: &[Discovery], key: &'static str, stream: &mut Stream, head: &mut HeaderMap) {
        let found = ways.iter().find_map(|way| match way {
            Discovery::Headers => self.read(&stream.worker, head),
            Discovery::Workloads => None,
            Discovery::UpstreamState(key) => stream.info.upstream.filter_state.shared(key).map(Rc::clone),
        });
        if let Some(found) = found
            && !stream.info.filter_state.contains(key)
        {
            stream.info.filter_state.insert(key, found);
        }
        if ways.contains(&Discovery::Headers) {
            head.remove(METADATA_ID);
            head.remove(METADATA);
        }
    }

    /// What a peer's headers say.
    fn read(&self, worker: &Worker, head: &HeaderMap) -> Option<Rc<FilterState>> {
        let said = head.get(METADATA).filter(|said| !said.is_empty())?;
        let id = head.get(METADATA_ID).unwrap_or_default();
        worker.istio().peer(id, said, &self.labels, || {
            let metadata = Struct::decode(base64::decode(said)?.as_slice()).ok()?;
            Some(Workload::of_struct(&metadata, &self.labels))
        })
    }

    /// Tells what this proxy is: its name, its metadata.
    fn tell(&self, head: &mut HeaderMap, [id, metadata]: [bool; 2]) {
        if id {
            head.set(METADATA_ID, self.id.as_bytes());
        }
        if metadata {
            head.set(METADATA, self.own.as_bytes());
        }
    }
}

impl Propagation {
    /// Whether nothing is told to this cluster.
    fn skips(self, cluster: &ClusterFacts) -> bool {
        let mesh = cluster.mesh();
        let external = || &*cluster.name == "PassthroughCluster" || mesh.is_some_and(|mesh| mesh.external);
        mesh.is_some_and(|mesh| mesh.exchanges_nothing) || self.skip_external && external()
    }
}

/// The cluster that the request would go to now.
fn target(stream: &Stream, head: &HeaderMap) -> Option<Rc<ClusterFacts>> {
    let name = stream.selected.as_ref()?.cluster(head)?;
    Some(Rc::clone(&stream.worker.cluster(name)?.facts))
}
