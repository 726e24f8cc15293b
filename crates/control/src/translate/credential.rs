//! SDS: Secrets and ConfigMaps as proxies are sent them.
//!
//! [`Credential`] is what an object holds, shared by all who ask for it; [`GivenTo`] is what of it a
//! proxy may have as far as the mesh's configuration decides that. Who the proxy has proven to be is
//! not known here: `push` gives nothing to strangers, and what is `guarded` only to those whose
//! service account may read Secrets.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_derive::{Cx, Query};

use super::proto::core;
use super::resource::Resource;
use super::secret;
use crate::model::credential::{CA_SUFFIX, Place, Reference};
use crate::model::gateway::ServerTlsMode;
use crate::model::inputs::{ConfigMaps, Secrets};
use crate::model::kube::secret::Material;
use crate::model::{Key, Kind};
use crate::registry::targets::Workload;
use crate::scope::gateways::AttachedGateways;
use crate::scope::{ProxyKey, Role};

/// A credential, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    pub(crate) resource: Result<Arc<Resource>, String>,
    /// Whether the proxy's service account must be allowed to read Secrets.
    pub(crate) guarded: bool,
}

/// What a proxy gets under the name of an SDS resource. A root, for the proxy as
/// [`crate::scope::client::ClientOf`] sees it.
pub(crate) struct GivenTo;

impl Query for GivenTo {
    type Key = (ProxyKey, String);
    type Value = Given;
    const NAME: &'static str = "credential-for";

    fn derive(cx: &Cx<'_>, (client, name): &(ProxyKey, String)) -> Given {
        let refused = |why: String| Given { resource: Err(why), guarded: false };
        let Some(reference) = Reference::parse(name, &client.namespace) else {
            return refused("it is no name of a Secret or ConfigMap".to_owned());
        };
        let guarded = match reference.place {
            Place::ConfigMap => false,
            Place::Gateway => {
                if client.role != Role::Router || !cx.get::<Verified>(&client.workload()).contains(name) {
                    return refused(format!(
                        "no Gateway of the proxy refers to the Secret {} and may do so",
                        reference.key
                    ));
                }
                false
            }
            Place::Secret => {
                if reference.key.namespace != client.namespace {
                    return refused(format!("the Secret {} is in another namespace", reference.key));
                }
                !reference.is_roots()
            }
        };
        let found = cx.get::<Credential>(&(reference, name.clone()));
        Given { resource: found.as_ref().clone(), guarded }
    }
}

/// The names of credentials that Gateways of the Gateway API have, which a gateway proxy may therefore
/// have too: whether a grant is needed was looked at when the listeners were derived.
struct Verified;

impl Query for Verified {
    type Key = Workload;
    type Value = BTreeSet<String>;
    const NAME: &'static str = "verified-credentials";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let attached = cx.get::<AttachedGateways>(workload);
        for server in attached.ports.iter().flat_map(|port| &port.servers) {
            let Some(settings) = server.server.tls.as_ref() else { continue };
            // Whoever writes a Gateway of Istio's names what is his own and the proxy's.
            let is_own = |name: &str| {
                server.object.kind != Kind::Gateway
                    || (server.gateway.namespace == workload.namespace
                        && Reference::parse(name, &workload.namespace)
                            .is_some_and(|reference| reference.key.namespace == workload.namespace))
            };
            let validates =
                matches!(settings.mode, Some(ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual));
            let certificates = settings.credential_names.iter().chain([&settings.credential_name]);
            for written in certificates.filter(|name| !name.is_empty() && is_own(name)) {
                names.insert(secret::of_credential(written).name);
                if validates {
                    names.insert(secret::of_credential(&format!("{written}{CA_SUFFIX}")).name);
                }
            }
            let roots = &settings.ca_cert_credential_name;
            if !roots.is_empty() && is_own(roots) {
                names.insert(secret::of_credential(roots).name);
            }
        }
        names
    }
}

/// What an object holds, as the resource of a name; or why it holds nothing of use. What cannot be
/// read in it has been refused when it came in.
struct Credential;

impl Query for Credential {
    type Key = (Reference, String);
    type Value = Result<Arc<Resource>, String>;
    const NAME: &'static str = "credential";

    fn derive(cx: &Cx<'_>, (reference, name): &(Reference, String)) -> Result<Arc<Resource>, String> {
        let kind = reference.kind();
        let found = reference.objects().find_map(|key| {
            let material = match reference.place {
                Place::ConfigMap => cx.input::<ConfigMaps>(&key)?.material(),
                Place::Secret | Place::Gateway => cx.input::<Secrets>(&key)?.material(),
            };
            Some((key, material))
        });
        let Some((key, material)) = found else {
            return Err(format!("there is no {kind} {}", reference.key));
        };
        let kept = content(&material, reference);
        let content = kept.ok_or_else(|| lacking(kind, &key, reference))?;
        let message = tls::Secret { name: name.clone(), r#type: Some(content) };
        Ok(Arc::new(Resource::new(name, &message, vec![key.of(kind)])))
    }
}

// Deviation: a Secret with roots and no certificate is given as roots under its own name too, as
// caCertCredentialName can name such a one; istiod finds no certificate in it.
fn content(material: &Material, reference: &Reference) -> Option<tls::secret::Type> {
    if let Some(certificate) = material.certificate.as_ref().filter(|_| !reference.is_roots()) {
        return Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: Some(inline(&certificate.chain)),
            private_key: Some(inline(certificate.key.reveal())),
            ocsp_staple: certificate.staple.as_ref().map(inline),
            ..tls::TlsCertificate::default()
        }));
    }
    let roots = material.roots.as_ref()?;
    Some(tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
        trusted_ca: Some(inline(&roots.certificates)),
        crl: roots.crl.as_ref().map(inline),
        ..tls::CertificateValidationContext::default()
    }))
}

fn lacking(kind: Kind, key: &Key, reference: &Reference) -> String {
    let wanted = if reference.is_roots() {
        "neither cacert nor ca.crt"
    } else {
        "neither cert and key nor tls.crt and tls.key"
    };
    format!("the {kind} {key} has {wanted}")
}

fn inline(bytes: &Bytes) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(bytes.clone())),
        ..core::DataSource::default()
    }
}
