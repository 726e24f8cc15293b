//! `filter_metadata` of clusters, endpoints and routes, as JSON when somebody looks.
//!
//! A sidecar knows ten thousand endpoints and uses few. As maps of JSON their metadata would be half of
//! all that is known of them; so it stays in its wire form until it is asked for the first time.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock, OnceLock};

use leno_api::proto::envoy::config::core::v3 as core;
use prost::Message as _;
use prost_types::value::Kind;
use serde_json::Value as Json;

use crate::config::address;

/// The namespace of what balancers read.
const LB: &str = "envoy.lb";
/// The value there that makes an endpoint a canary.
const CANARY: &str = "canary";

/// Namespace → JSON object. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metadata(Option<Arc<Held>>);

struct Held {
    /// `filter_metadata` alone, in wire form; empty if it was made of JSON.
    wire: Box<[u8]>,
    /// `envoy.lb: {canary: true}`, which is asked of every endpoint.
    canary: bool,
    read: OnceLock<BTreeMap<String, Json>>,
}

impl Metadata {
    /// Of a message whose other fields are of no interest.
    pub(super) fn new(filter_metadata: &core::Metadata) -> Self {
        if filter_metadata.filter_metadata.is_empty() {
            return Self::default();
        }
        let wire = filter_metadata.encode_to_vec().into();
        let labels = filter_metadata.filter_metadata.get(LB);
        let canary = labels.and_then(|labels| labels.fields.get(CANARY)?.kind.as_ref());
        let canary = canary == Some(&Kind::BoolValue(true));
        Self(Some(Arc::new(Held { wire, canary, read: OnceLock::new() })))
    }

    /// Whether it calls an endpoint a canary (`envoy.lb: {canary: true}`).
    pub(crate) fn is_canary(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.canary)
    }

    /// Whether somebody has looked.
    #[cfg(test)]
    pub(crate) fn was_read(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.read.get().is_some())
    }

    /// Whether both share their storage, if they have some.
    #[cfg(test)]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Held {
    fn read(&self) -> &BTreeMap<String, Json> {
        self.read.get_or_init(|| {
            // What was encoded here can be decoded.
            let core::Metadata { filter_metadata, typed_filter_metadata: _ } =
                core::Metadata::decode(&*self.wire).unwrap_or_default();
            let namespaces = filter_metadata.into_iter().map(|(key, value)| (key, address::object(value)));
            namespaces.collect()
        })
    }
}

impl Deref for Metadata {
    type Target = BTreeMap<String, Json>;

    fn deref(&self) -> &BTreeMap<String, Json> {
        static NONE: LazyLock<BTreeMap<String, Json>> = LazyLock::new(BTreeMap::new);
        self.0.as_ref().map_or(&NONE, |held| held.read())
    }
}

impl From<BTreeMap<String, Json>> for Metadata {
    fn from(read: BTreeMap<String, Json>) -> Self {
        let canary = read.get(LB).and_then(|labels| labels.get(CANARY)) == Some(&Json::Bool(true));
        Self(Some(Arc::new(Held { wire: Box::default(), canary, read: read.into() })))
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => true,
            // Maps are encoded in order: what is the same has the same bytes.
            (Some(a), Some(b)) if !a.wire.is_empty() && !b.wire.is_empty() => a.wire == b.wire,
            (Some(a), Some(b)) => a.read() == b.read(),
            _ => self.is_empty() && other.is_empty(),
        }
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use leno_api::proto::envoy::config::cluster::v3 as cluster;
    use leno_api::proto::envoy::config::core::v3 as core;
    use serde_json::json;

    use super::Metadata;
    use crate::cluster::config::lower_proto;
    use crate::cluster::worker_cluster::Host;
    use crate::cluster::{EndpointAddress, EndpointConfig};
    use crate::config::lower::Lower;

    fn metadata(text: &str) -> Metadata {
        let proto: core::Metadata =
            leno_api::decode_text(text, "metadata").unwrap_or_else(|errors| panic!("{errors}"));
        Metadata::new(&proto)
    }

    #[test]
    fn it_is_read_when_somebody_looks() {
        let read = metadata("{filter_metadata: {istio: {workload: a, n: 1}}}");
        assert!(!read.was_read());
        assert_eq!(read, read.clone());
        assert_eq!(read, metadata("{filter_metadata: {istio: {n: 1, workload: a}}}"));
        let other = metadata("{filter_metadata: {istio: {workload: b, n: 1}}}");
        assert_ne!(read, other);
        assert!(!read.was_read() && !other.was_read(), "bytes are compared");
        assert_eq!(read.get("istio"), Some(&json!({"workload": "a", "n": 1})));
        let made: Metadata = [("istio".to_owned(), json!({"n": 1, "workload": "a"}))]
            .into_iter()
            .collect::<std::collections::BTreeMap<_, _>>()
            .into();
        assert_eq!(read, made);
        assert_ne!(read, metadata("{filter_metadata: {istio: {workload: b}}}"));
    }

    #[test]
    fn nothing_needs_no_storage() {
        assert_eq!(metadata("{}"), Metadata::default());
        assert!(metadata("{}").0.is_none() && metadata("{}").is_empty());
    }

    #[test]
    fn canaries_are_known_without_a_look() {
        let check = |text: &str, expected| {
            let wire = metadata(text);
            assert_eq!((wire.is_canary(), wire.was_read()), (expected, false), "{text}");
            assert_eq!(Metadata::from((*wire).clone()).is_canary(), expected, "{text}");
        };
        check("{filter_metadata: {envoy.lb: {canary: true}}}", true);
        check("{filter_metadata: {envoy.lb: {canary: false}}}", false);
        check("{filter_metadata: {envoy.lb: {canary: 'true'}}}", false);
        check("{filter_metadata: {other: {canary: true}}}", false);
        // Nobody else looks either when a cluster takes an endpoint over.
        let address = EndpointAddress::Ip("10.1.1.1:80".parse().expect("an address"));
        let metadata = metadata("{filter_metadata: {envoy.lb: {canary: true}}}");
        let host = Host::new(EndpointConfig { metadata: metadata.clone(), ..EndpointConfig::plain(address) });
        assert!(host.is_canary() && !metadata.was_read());
        let cluster: cluster::Cluster = leno_api::decode_text(
            "{name: c, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: c}}",
            "cluster",
        )
        .unwrap_or_else(|errors| panic!("{errors}"));
        let cluster = Lower::resource(|at| lower_proto(cluster, Bytes::new(), at)).expect("a cluster");
        assert!(
            cluster.transport_to(&metadata).tls().is_none() && cluster.proxy_header_to(&metadata).is_none()
        );
        assert!(!metadata.was_read());
    }
}
