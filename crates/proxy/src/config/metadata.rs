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
use serde_json::Value as Json;

use crate::config::address;

/// Namespace → JSON object. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metadata(Option<Arc<Held>>);

struct Held {
    /// `filter_metadata` alone, in wire form; empty if it was made of JSON.
    wire: Box<[u8]>,
    read: OnceLock<BTreeMap<String, Json>>,
}

impl Metadata {
    /// Of a message whose other fields are of no interest.
    pub(super) fn new(filter_metadata: &core::Metadata) -> Self {
        if filter_metadata.filter_metadata.is_empty() {
            return Self::default();
        }
        let wire = filter_metadata.encode_to_vec().into();
        Self(Some(Arc::new(Held { wire, read: OnceLock::new() })))
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
        Self(Some(Arc::new(Held { wire: Box::default(), read: read.into() })))
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                Arc::ptr_eq(a, b) || (!a.wire.is_empty() && a.wire == b.wire) || a.read() == b.read()
            }
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
    use leno_api::proto::envoy::config::core::v3 as core;
    use serde_json::json;

    use super::Metadata;

    fn metadata(text: &str) -> Metadata {
        let proto: core::Metadata =
            leno_api::decode_text(text, "metadata").unwrap_or_else(|errors| panic!("{errors}"));
        Metadata::new(&proto)
    }

    #[test]
    fn it_is_read_when_somebody_looks() {
        let read = metadata("{filter_metadata: {istio: {workload: a, n: 1}}}");
        assert!(read.0.as_ref().is_some_and(|held| held.read.get().is_none()));
        assert_eq!(read, read.clone());
        assert_eq!(read, metadata("{filter_metadata: {istio: {n: 1, workload: a}}}"));
        assert!(read.0.as_ref().is_some_and(|held| held.read.get().is_none()), "bytes are compared first");
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
}
