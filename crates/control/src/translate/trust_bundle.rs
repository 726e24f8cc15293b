//! PCDS: the roots that agents are told of, beside those that they were started with.
//!
//! As in istiod there is one resource, a ProxyConfig of which only the roots are filled in, and only
//! with `ISTIO_MULTIROOT_MESH`: those of the MeshConfig, and those that the authority's certificates come from,
//! which agents hear of by this before they ask for their next certificates.

use leno_derive::{Cx, Input, Query};
use leno_tls::issue::{certificates, certificates_to_pem};

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

/// The roots that the certificates of workloads come from, in PEM.
#[derive(Debug)]
pub(crate) struct RootsInput;

impl Input for RootsInput {
    type Key = ();
    type Value = String;
    const NAME: &'static str = "authority-roots";
}

/// The roots of the MeshConfig and of the authority, under an empty name as in Istio; `None` if the switch is off. A root.
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
        let own = cx.input::<RootsInput>(&()).and_then(|roots| certificates(roots.as_bytes()).ok());
        // Each for itself, as others are added and taken away.
        roots.extend(own.iter().flatten().map(|root| certificates_to_pem([root])));
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

#[cfg(test)]
mod tests {
    use leno_derive::{Batch, Graph};
    use leno_tls::issue::{KeyPair, KeyType, Validity, certificates_to_pem, root};

    use super::{RootsInput, TrustBundle, roots};
    use crate::model::switches::{SwitchInput, Switches};

    #[test]
    fn roots_of_the_authority() {
        let made = |name: &str| {
            let key = KeyPair::generate(KeyType::P256).expect("a key");
            let validity = Validity { not_before: 0, not_after: 4_000_000_000 };
            certificates_to_pem([&root(&key, name, validity).expect("a root")])
        };
        let (old, next) = (made("old"), made("next"));
        let mut graph = Graph::new();
        crate::scope::register(&mut graph);
        let mut told = |is_on: &str, given: String| {
            let mut batch = Batch::new();
            let variable = |name: &str| (name == "ISTIO_MULTIROOT_MESH").then(|| is_on.to_owned());
            batch.set::<SwitchInput>((), Switches::read(variable));
            batch.set::<RootsInput>((), given);
            graph.commit(batch);
            graph.get::<TrustBundle>(&()).as_ref().as_ref().map(roots)
        };
        assert_eq!(told("false", old.clone()), None);
        assert_eq!(told("true", String::new()), Some(Vec::new()));
        assert_eq!(told("true", old.clone()), Some(vec![old.clone()]));
        let mut both = vec![old.clone(), next.clone()];
        both.sort();
        assert_eq!(told("true", format!("{old}{next}{old}")), Some(both));
        assert_eq!(told("true", next.clone()), Some(vec![next]));
    }
}
