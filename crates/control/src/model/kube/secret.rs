//! Secrets and ConfigMaps, reduced to the certificates, keys and lists that proxies are sent.
//!
//! What a Secret holds is never shown: its values print as their lengths, and errors about it do
//! not quote what was read.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use k8s_openapi::api::core::v1 as core;

use crate::model::Meta;

/// Keys that hold something for TLS: those of Kubernetes' own type, then Istio's older ones.
const KEYS: [&str; 10] = [
    "tls.crt",
    "tls.key",
    "ca.crt",
    "ca.crl",
    "tls.ocsp-staple",
    "cert",
    "key",
    "cacert",
    "crl",
    "root-cert.pem",
];

/// The label of Secrets that hold how other clusters are reached.
const REMOTE_CLUSTER: &str = "istio/multiCluster";

/// A Secret; of its keys only those that matter to a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Secret {
    pub(crate) meta: Meta,
    /// Its type, as `kubernetes.io/tls`.
    pub(crate) r#type: String,
    pub(crate) data: BTreeMap<String, Hidden>,
}

/// A ConfigMap; of its keys only those that matter to a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigMap {
    pub(crate) meta: Meta,
    pub(crate) data: BTreeMap<String, String>,
}

/// Bytes that must not be shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Hidden(Bytes);

impl Hidden {
    /// The bytes, for what is sent to proxies.
    pub(crate) fn reveal(&self) -> &Bytes {
        &self.0
    }
}

impl From<Vec<u8>> for Hidden {
    fn from(bytes: Vec<u8>) -> Hidden {
        Hidden(bytes.into())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Secret {
    /// One of its values; `None` if it is not there or empty.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the secrets' server, which is to come"))]
    pub(crate) fn find(&self, key: &str) -> Option<&Bytes> {
        self.data.get(key).map(Hidden::reveal).filter(|bytes| !bytes.is_empty())
    }
}

/// Reduces a Secret. As in Kubernetes, `stringData` wins over `data`.
pub(crate) fn secret(meta: Meta, secret: core::Secret) -> Secret {
    let all = meta.labels.get(REMOTE_CLUSTER).is_some_and(|value| value == "true");
    let keep = |key: &str| all || KEYS.contains(&key);
    let mut data = BTreeMap::new();
    for (key, value) in secret.data.unwrap_or_default() {
        if keep(&key) {
            data.insert(key, Hidden::from(value.0));
        }
    }
    for (key, value) in secret.string_data.unwrap_or_default() {
        if keep(&key) {
            data.insert(key, Hidden::from(value.into_bytes()));
        }
    }
    Secret { meta, r#type: secret.type_.unwrap_or_default(), data }
}

/// Reduces a ConfigMap.
pub(crate) fn config_map(meta: Meta, map: core::ConfigMap) -> ConfigMap {
    let mut data = map.data.unwrap_or_default();
    data.retain(|key, _| KEYS.contains(&key.as_str()));
    ConfigMap { meta, data }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::{core, secret};
    use crate::model::Meta;

    #[test]
    fn a_secret_shows_nothing_and_keeps_what_is_for_tls() {
        let given = core::Secret {
            data: Some(
                [("tls.key", "private"), ("password", "hunter2")]
                    .map(|(key, value)| (key.to_owned(), ByteString(value.into())))
                    .into(),
            ),
            string_data: Some([("tls.crt".to_owned(), "public".to_owned())].into()),
            type_: Some("kubernetes.io/tls".to_owned()),
            ..core::Secret::default()
        };
        let kept = secret(Meta::default(), given);
        assert_eq!(kept.find("tls.key").map(|bytes| bytes.as_ref()), Some(&b"private"[..]));
        assert_eq!(kept.data.keys().collect::<Vec<_>>(), ["tls.crt", "tls.key"]);
        let shown = format!("{kept:?}");
        assert!(shown.contains("[7 bytes]") && !shown.contains("private"), "{shown}");
    }
}
