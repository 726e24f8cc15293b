//! What becomes of a client's traffic to destinations that the mesh does not know.

use leno_derive::{Cx, Query};

use super::Viewer;
use crate::model::mesh::OutboundMode;
use crate::registry::Mesh;

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It goes where the caller wanted.
    Pass,
    /// It is refused.
    Refuse,
}

/// The policy for a client. One place for all who ask, so that Sidecars can narrow it.
pub(crate) struct OutboundPolicy;

impl Query for OutboundPolicy {
    type Key = Viewer;
    type Value = Unknown;
    const NAME: &'static str = "outbound-policy";

    fn derive(cx: &Cx<'_>, _: &Viewer) -> Unknown {
        match cx.get::<Mesh>(&()).outbound_traffic_policy.mode {
            OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns => Unknown::Pass,
            OutboundMode::RegistryOnly => Unknown::Refuse,
        }
    }
}
