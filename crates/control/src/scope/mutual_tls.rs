//! Where the mesh's own mutual TLS is used without any rule asking for it.
//!
//! A `PeerAuthentication` for a namespace or the mesh that says DISABLE switches it off for all
//! services there; those for workloads and ports are regarded endpoint by endpoint, see [`accepts`].

use leno_derive::Cx;

use crate::model::destination_rule::Simple;
use crate::registry::instances::{Instance, Instances};
use crate::registry::{Mesh, Resolution, Service};
use crate::scope::policy::{EffectiveKey, EffectivePolicy};
use crate::scope::security::{PeerMode, PeersOfNamespace};

/// Whether clients use mutual TLS with those endpoints of a cluster that can.
pub(crate) fn is_automatic(cx: &Cx<'_>, service: &Service, policy: &EffectiveKey) -> bool {
    if service.external || !cx.get::<Mesh>(&()).enable_auto_mtls {
        return false;
    }
    if cx.get::<PeersOfNamespace>(&service.namespace().to_owned()).mode == PeerMode::Disable {
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

/// Whether an endpoint that speaks the mesh's mutual TLS takes it on a port.
pub(crate) fn accepts(cx: &Cx<'_>, instance: &Instance, port: u16) -> bool {
    let peers = cx.get::<PeersOfNamespace>(&instance.namespace);
    !peers.may_disable() || peers.of(|labels| instance.has(labels)).mode(port) != PeerMode::Disable
}
