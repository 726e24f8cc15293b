//! Lowering of Config (of peer_metadata).

use std::sync::Arc;

use leno_api::proto::io::istio::http::peer_metadata as proto;
use prost::Message;
use proto::config::discovery_method::MethodSpecifier as Discover;
use proto::config::propagation_method::MethodSpecifier as Propagate;

use super::{Discovery, PeerMetadata, Propagation};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::telemetry::workload::Workload;

/// Lowers Config.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    Some(Arc::new(config(at.unpack(any)?, at)))
}

/// The same, not boxed.
pub(super) fn config(proto: proto::Config, at: &mut Lower) -> PeerMetadata {
    let proto::Config {
        downstream_discovery,
        upstream_discovery,
        downstream_propagation,
        upstream_propagation,
        shared_with_upstream,
        additional_labels,
    } = proto;
    at.unsupported("shared_with_upstream", shared_with_upstream);
    let labels: Vec<Box<str>> = additional_labels.into_iter().map(Into::into).collect();
    let scope = at.scope();
    let own = Workload::of_node(&scope.node_metadata, &scope.here.locality, &labels);
    let (id, own) =
        (Arc::clone(&scope.node_id), leno_base::base64::encode(&own.to_struct().encode_to_vec()).into());
    PeerMetadata {
        downstream_discovery: at
            .each("downstream_discovery", downstream_discovery, |way, at| discovery(way, true, at)),
        upstream_discovery: at
            .each("upstream_discovery", upstream_discovery, |way, at| discovery(way, false, at)),
        downstream_propagation: at.each("downstream_propagation", downstream_propagation, propagation),
        upstream_propagation: at.each("upstream_propagation", upstream_propagation, propagation),
        labels: labels.into(),
        id,
        own,
    }
}

fn discovery(proto: proto::config::DiscoveryMethod, downstream: bool, at: &mut Lower) -> Option<Discovery> {
    let Some(method) = proto.method_specifier else {
        without_effect("a discovery without a method");
        return None;
    };
    match method {
        Discover::IstioHeaders(proto::config::IstioHeaders { skip_external_clusters }) => {
            if skip_external_clusters {
                // Where headers are not sent is of no interest to those who read them.
                without_effect("skip_external_clusters of a discovery");
            }
            Some(Discovery::Headers)
        }
        Discover::WorkloadDiscovery(proto::config::WorkloadDiscovery {}) => Some(Discovery::Workloads),
        Discover::Baggage(proto::config::Baggage {}) => {
            // Of the server Istio's proxy says that it has no effect.
            at.unsupported("baggage", downstream);
            None
        }
        Discover::UpstreamFilterState(proto::config::UpstreamFilterState { peer_metadata_key }) => {
            if downstream {
                without_effect("upstream_filter_state of a client");
                return None;
            }
            Some(Discovery::UpstreamState(peer_metadata_key.into()))
        }
    }
}

/// Says that something is configured which does nothing, as in Istio's proxy.
fn without_effect(what: &str) {
    tracing::warn!(target: "config", "peer_metadata: {what} has no effect");
}

fn propagation(proto: proto::config::PropagationMethod, at: &mut Lower) -> Option<Propagation> {
    let Some(method) = proto.method_specifier else {
        without_effect("a propagation without a method");
        return None;
    };
    match method {
        Propagate::IstioHeaders(proto::config::IstioHeaders { skip_external_clusters }) => {
            Some(Propagation { skip_external: skip_external_clusters })
        }
        Propagate::Baggage(proto::config::Baggage {}) => {
            at.unsupported("baggage", true);
            None
        }
    }
}
