//! Where the mesh's own mutual TLS is used without any rule asking for it.
//!
//! `PeerAuthentication` does not narrow this yet: everything inside of the mesh counts as
//! permissive, which is what it is without one.

use leno_derive::Cx;

use crate::model::destination_rule::Simple;
use crate::registry::instances::Instances;
use crate::registry::{Mesh, Resolution, Service};
use crate::scope::policy::{EffectiveKey, EffectivePolicy};

/// Whether clients use mutual TLS with those endpoints of a cluster that can.
pub(crate) fn is_automatic(cx: &Cx<'_>, service: &Service, policy: &EffectiveKey) -> bool {
    if service.external || !cx.get::<Mesh>(&()).enable_auto_mtls {
        return false;
    }
    let effective = cx.get::<EffectivePolicy>(policy);
    let simple = effective.load_balancer.as_ref().and_then(|balancer| balancer.simple);
    if service.resolution == Resolution::OriginalDst || simple == Some(Simple::Passthrough) {
        // Where the endpoint is not known beforehand all of them must be able to.
        let instances = cx.get::<Instances>(&service.id);
        let mut served =
            instances.iter().filter(|instance| instance.ports.contains_key(&policy.port)).peekable();
        return served.peek().is_some() && served.all(|instance| instance.mutual_tls);
    }
    true
}
