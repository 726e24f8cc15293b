//! What proxies report of the traffic that they carry.
//!
//! - `access_log.rs`: a line, or a message, for each request and connection;
//! - `tracing.rs`: spans, with `tracer.rs`, where they are sent;
//! - `stats.rs`: Istio's metrics, and `peers.rs`: who the peer is that these are about. Both are filters
//!   of Istio's own, which are sent to those proxies only that have them.
//!
//! What is wanted of whom is the matter of [`crate::scope::telemetry`].

pub(crate) mod access_log;
mod peers;
mod stats;
mod tracer;
pub(crate) mod tracing;

use leno_derive::Cx;

use super::listener::filters::{self, Filled, FilterScope, Slot};
use crate::model::ObjectRef;
use crate::registry::targets::Workload;
use crate::scope::telemetry::{self, Side};
pub(crate) use peers::upstream_filter;

/// What telemetry puts into a slot of a workload's chains.
pub(crate) fn filled(cx: &Cx<'_>, slot: Slot, scope: &FilterScope) -> Filled {
    match slot {
        Slot::PeerMetadata => peers::filled(cx, scope),
        Slot::Telemetry => stats::filled(cx, scope),
        Slot::CustomAuthorization | Slot::Authentication | Slot::Authorization => Filled::default(),
    }
}

/// The objects that have a say in what is reported in a scope, to be blamed for its listeners.
pub(crate) fn origins(cx: &Cx<'_>, scope: &FilterScope) -> Vec<ObjectRef> {
    telemetry::origins(cx, &observed(scope).0)
}

/// The side of the workload that is observed in a scope, as a key of what is said of it.
fn observed(scope: &FilterScope) -> (Workload, Side) {
    let side = match scope.side {
        filters::Side::Inbound => Side::Server,
        filters::Side::Outbound | filters::Side::Gateway => Side::Client,
    };
    (Workload { namespace: scope.namespace.clone(), labels: scope.labels.clone() }, side)
}
