//! PCDS: the roots that agents are told of, beside those that they were started with.
//!
//! As in istiod there is one resource, a ProxyConfig of which only the roots are filled in, and only
//! with `ISTIO_MULTIROOT_MESH`.

use leno_derive::{Cx, Query};

use super::resource::Resource;
use crate::model::switches::SwitchInput;
use crate::registry::Mesh;

/// The type of the resource.
pub(crate) const TYPE_URL: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";

/// The part of `istio.mesh.v1alpha1.ProxyConfig` that is sent.
#[derive(Clone, PartialEq, prost::Message)]
struct ProxyConfig {
    #[prost(string, repeated, tag = "34")]
    ca_certificates_pem: Vec<String>,
}

/// The roots of the MeshConfig, under an empty name as in Istio; `None` if the switch is off. A root.
pub(crate) struct TrustBundle;

impl Query for TrustBundle {
    type Key = ();
    type Value = Option<Resource>;
    const NAME: &'static str = "trust-bundle";

    fn derive(cx: &Cx<'_>, (): &()) -> Option<Resource> {
        cx.input::<SwitchInput>(&()).filter(|switches| switches.multi_root)?;
        let mesh = cx.get::<Mesh>(&());
        let pems = mesh.ca_certificates.iter().filter_map(|root| root.pem.clone());
        // What cannot be read was reported with the MeshConfig.
        let mut roots: Vec<String> =
            pems.filter(|pem| leno_tls::TrustBundle::parse(pem.as_bytes()).is_ok()).collect();
        roots.sort();
        roots.dedup();
        Some(Resource::new("", &ProxyConfig { ca_certificates_pem: roots }, Vec::new()))
    }
}

/// The roots in a resource.
#[cfg(test)]
pub(super) fn roots(resource: &Resource) -> Vec<String> {
    use prost::Message as _;
    ProxyConfig::decode(resource.wire.body.clone()).expect("it was encoded here").ca_certificates_pem
}
