//! What becomes of a client's traffic to destinations that the mesh does not know.

use leno_derive::{Cx, Query};

use super::{Role, Viewer};
use crate::model::inputs::Sidecars;
use crate::model::mesh::OutboundMode;
use crate::model::sidecar;
use crate::model::virtual_service::Destination;
use crate::registry::{Mesh, full_name};

/// What becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unknown {
    /// It goes where the caller wanted.
    Pass,
    /// Requests go where the name that they ask for is, all else as above.
    ByName,
    /// It goes to a service that knows more.
    Through(Destination),
    /// It is refused.
    Refuse,
}

/// The policy for a client: its Sidecar's, else the mesh's.
pub(crate) struct OutboundPolicy;

impl Query for OutboundPolicy {
    type Key = Viewer;
    type Value = Unknown;
    const NAME: &'static str = "outbound-policy";

    fn derive(cx: &Cx<'_>, viewer: &Viewer) -> Unknown {
        let sidecar = viewer.sidecar.as_ref().and_then(|key| cx.input::<Sidecars>(key));
        if let Some((sidecar, policy)) = sidecar
            .as_ref()
            .and_then(|sidecar| Some((sidecar, sidecar.spec.outbound_traffic_policy.as_ref()?)))
        {
            return match (policy.mode, &policy.egress_proxy) {
                (sidecar::OutboundMode::RegistryOnly, _) => Unknown::Refuse,
                (sidecar::OutboundMode::AllowAny, None) => Unknown::Pass,
                (sidecar::OutboundMode::AllowAny, Some(proxy)) => Unknown::Through(Destination {
                    host: full_name(&proxy.host, &sidecar.meta.namespace),
                    ..proxy.clone()
                }),
            };
        }
        match cx.get::<Mesh>(&()).outbound_traffic_policy.mode {
            OutboundMode::AllowAnyDynamicDns if viewer.role == Role::Sidecar => Unknown::ByName,
            OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns => Unknown::Pass,
            OutboundMode::RegistryOnly => Unknown::Refuse,
        }
    }
}
