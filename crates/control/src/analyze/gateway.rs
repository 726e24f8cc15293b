//! Faults of Gateways.

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::Key;
use crate::model::diagnostic::Finding;
use crate::model::inputs::Gateways;
use crate::registry::targets::Workload;
use crate::scope::gateways::{AttachedGateways, Clash};

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
            let path = format!("spec.servers[{}]", conflict.index);
            let (path, message) = match &conflict.why {
                Clash::Port(winner) if winner == key => (
                    format!("{path}.port.number"),
                    format!(
                        "port {} is used by another server of this gateway in another way",
                        conflict.port
                    ),
                ),
                Clash::Port(winner) => (
                    format!("{path}.port.number"),
                    format!("port {} is used by the gateway {winner} in another way", conflict.port),
                ),
                Clash::Hosts(hosts) => (
                    format!("{path}.hosts"),
                    format!("{} on port {} belong to older servers", hosts.join(", "), conflict.port),
                ),
                Clash::PortName => (
                    format!("{path}.port.name"),
                    format!("another server on port {} has the same name", conflict.port),
                ),
            };
            warning("port-conflict", path, format!("{message}, so this server is left out"))
        })
        .collect()
    }
}
