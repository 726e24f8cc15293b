//! What is known of a connected proxy beside what translation may read: for people who look.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use prost::Message;
use prost_types::value::Kind;

/// One proxy.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// `CLUSTER_ID` of its metadata.
    pub(crate) cluster: String,
    /// `ISTIO_VERSION` of its metadata.
    pub(crate) version: String,
    /// Where it comes from; absent for Unix sockets.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) connected: Instant,
    /// Its node, encoded: it is large, and seldom looked at.
    node: Bytes,
}

impl About {
    /// What a node says of itself.
    pub(crate) fn new(node: &core::Node, peer: Option<SocketAddr>, now: Instant) -> About {
        let field = |name: &str| {
            let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(name));
            match value.and_then(|value| value.kind.as_ref()) {
                Some(Kind::StringValue(text)) => text.clone(),
                _ => String::new(),
            }
        };
        // The list of Envoy's extensions is long and the same everywhere.
        let kept = core::Node {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            metadata: node.metadata.clone(),
            locality: node.locality.clone(),
            user_agent_name: node.user_agent_name.clone(),
            ..core::Node::default()
        };
        About {
            cluster: field("CLUSTER_ID"),
            version: field("ISTIO_VERSION"),
            peer,
            connected: now,
            node: Bytes::from(kept.encode_to_vec()),
        }
    }

    /// Its node, without the list of its extensions.
    pub(crate) fn node(&self) -> core::Node {
        // What was encoded here can be read.
        core::Node::decode(self.node.clone()).unwrap_or_default()
    }
}
