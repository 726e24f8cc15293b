//! Faults of Gateways.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::Key;
use crate::model::diagnostic::Finding;
use crate::model::inputs::Gateways;
use crate::registry::targets::Workload;
use crate::scope::gateways::AttachedGateways;

/// Faults of a Gateway.
pub(super) struct GatewayFindings;

impl Query for GatewayFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "gateway-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(gateway) = cx.input::<Gateways>(key) else { return Vec::new() };
        // Whatever the selector chooses carries at least its labels.
        let workload = Workload { namespace: key.namespace.clone(), labels: gateway.spec.selector.clone() };
        let attached = cx.get::<AttachedGateways>(&workload);
        let own = attached.conflicts.iter().filter(|conflict| conflict.gateway == *key);
        own.map(|conflict| {
            let message = if conflict.winner == *key {
                format!("port {} is used by another server of this gateway in another way", conflict.port)
            } else {
                format!("port {} is used by the gateway {} in another way", conflict.port, conflict.winner)
            };
            let path = format!("spec.servers[{}].port.number", conflict.index);
            warning("port-conflict", path, format!("{message}, so this server is left out"))
        })
        .collect()
    }
}
