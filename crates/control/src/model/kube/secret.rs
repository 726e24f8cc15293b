//! Secrets and ConfigMaps, reduced to the certificates, keys and lists that proxies are sent.
//!
//! What a Secret holds is never shown: its values print as their lengths, and errors about it do
//! not quote what was read.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use k8s_openapi::api::core::v1 as core;

use leno_tls::{Identity, IdentityError, Revocations, Source, TrustBundle};

use crate::model::Meta;
use crate::model::check::Check;
use crate::model::diagnostic::Finding;

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

/// Kubernetes' own type of Secrets for TLS.
const TLS: &str = "kubernetes.io/tls";

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

/// What an object holds for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Material {
    pub(crate) certificate: Option<Certificate>,
    pub(crate) roots: Option<Roots>,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) chain: Bytes,
    pub(crate) key: Hidden,
    /// An OCSP response.
    pub(crate) staple: Option<Bytes>,
    /// The names under which chain, key and staple were found.
    names: [&'static str; 3],
}

/// Roots, and what they have revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    pub(crate) certificates: Bytes,
    pub(crate) crl: Option<Bytes>,
    /// The names under which these were found.
    names: [&'static str; 2],
}

/// The names of certificate, key and staple; the first pair that is there counts.
const CERTIFICATES: [[&str; 3]; 2] = [["cert", "key", ""], ["tls.crt", "tls.key", "tls.ocsp-staple"]];

/// The names of roots and what they have revoked.
const ROOTS: [[&str; 2]; 2] = [["cacert", "crl"], ["ca.crt", "ca.crl"]];

impl Secret {
    /// One of its values; `None` if it is not there or empty.
    pub(crate) fn find(&self, key: &str) -> Option<&Bytes> {
        self.data.get(key).map(Hidden::reveal).filter(|bytes| !bytes.is_empty())
    }

    /// What it holds for TLS.
    pub(crate) fn material(&self) -> Material {
        Material::new(|key| self.find(key).cloned())
    }

    /// Checks what it holds for TLS; messages do not quote it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let material = self.material();
        let mut check = Check::default();
        if self.r#type == TLS && material.certificate.is_none() {
            check.at("data", |check| check.invalid("a Secret of this type has tls.crt and tls.key"));
        }
        check.at("data", |check| material.validate(check));
        check.into_findings()
    }
}

impl ConfigMap {
    /// What it holds for TLS: roots only.
    pub(crate) fn material(&self) -> Material {
        let find = |key: &str| {
            let text = self.data.get(key).filter(|text| !text.is_empty())?;
            Some(Bytes::copy_from_slice(text.as_bytes()))
        };
        Material { certificate: None, ..Material::new(find) }
    }

    /// Checks what it holds for TLS.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::default();
        check.at("data", |check| self.material().validate(check));
        check.into_findings()
    }
}

impl Certificate {
    /// The name under which the chain was found.
    pub(crate) fn chain_name(&self) -> &'static str {
        self.names[0]
    }
}

impl Roots {
    /// The name under which the certificates were found.
    pub(crate) fn certificates_name(&self) -> &'static str {
        self.names[0]
    }
}

impl Material {
    fn new(find: impl Fn(&str) -> Option<Bytes>) -> Material {
        let certificate = CERTIFICATES.iter().find_map(|names @ [chain, key, staple]| {
            let (chain, key) = (find(chain)?, Hidden(find(key)?));
            Some(Certificate { chain, key, staple: find(staple), names: *names })
        });
        let roots = ROOTS.iter().find_map(|names @ [certificates, crl]| {
            Some(Roots { certificates: find(certificates)?, crl: find(crl), names: *names })
        });
        Material { certificate, roots }
    }

    /// Reads it as proxies will.
    fn validate(&self, check: &mut Check) {
        if let Some(certificate) = &self.certificate {
            let [chain, key, staple] = certificate.names;
            let source = |bytes: &Bytes| Source { bytes: bytes.to_vec(), place: String::new() };
            let loaded = Identity::load(
                &source(&certificate.chain),
                &source(certificate.key.reveal()),
                None,
                certificate.staple.as_ref().map(source).as_ref(),
                &rustls::crypto::aws_lc_rs::default_provider(),
            );
            match loaded {
                Ok(_) => {}
                Err(IdentityError::Chain(_, why)) => check.key(chain, |check| check.invalid(why)),
                Err(IdentityError::Kind(_, why)) => check.key(chain, |check| check.invalid(why)),
                Err(IdentityError::Key(_, why)) => check.key(key, |check| check.invalid(why)),
                Err(IdentityError::Staple(_)) => {
                    check.key(staple, |check| check.invalid("no OCSP response for the certificate"));
                }
            }
        }
        if let Some(roots) = &self.roots {
            let [certificates, crl] = roots.names;
            if let Err(why) = TrustBundle::parse(&roots.certificates) {
                check.key(certificates, |check| check.invalid(why));
            }
            if let Some(Err(why)) = roots.crl.as_deref().map(Revocations::parse) {
                check.key(crl, |check| check.invalid(why));
            }
        }
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
