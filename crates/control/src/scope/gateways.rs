//! Which servers a gateway proxy has: the Gateways that select it, merged by port.

use std::sync::Arc;

use leno_derive::{Cx, Query};

use crate::model::gateway::{Gateway, Server, ServerProtocol};
use crate::model::inputs::Gateways;
use crate::model::{Config, Key};
use crate::registry::instances::selects;
use crate::registry::targets::{Targets, Workload};

/// A port that a gateway proxy listens on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayPort {
    /// Where it listens; empty for all addresses.
    pub(crate) bind: String,
    /// The port of the proxy, after the translation that its Service does.
    pub(crate) port: u16,
    pub(crate) protocol: ServerProtocol,
    /// Those who share it, oldest Gateway first.
    pub(crate) servers: Vec<GatewayServer>,
}

/// One server of one Gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayServer {
    pub(crate) gateway: Key,
    /// Its place in the Gateway's list.
    pub(crate) index: usize,
    pub(crate) server: Arc<Server>,
    /// The port that its author wrote.
    pub(crate) number: u16,
}

impl GatewayServer {
    /// `namespace/name` of the Gateway.
    pub(crate) fn gateway_name(&self) -> String {
        self.gateway.to_string()
    }
}

/// A server that is left out, as it wants a port that another uses in another way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflict {
    pub(crate) gateway: Key,
    pub(crate) index: usize,
    pub(crate) port: u16,
    /// The Gateway that has the port.
    pub(crate) winner: Key,
}

/// The ports of a gateway proxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Attached {
    pub(crate) ports: Vec<GatewayPort>,
    pub(crate) conflicts: Vec<Conflict>,
}

/// What a gateway workload listens on.
pub(crate) struct AttachedGateways;

impl Query for AttachedGateways {
    type Key = Workload;
    type Value = Attached;
    const NAME: &'static str = "attached-gateways";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Attached {
        let mut gateways: Vec<Arc<Config<Gateway>>> = cx
            .all::<Gateways>()
            .iter()
            .filter_map(|key| cx.input::<Gateways>(key))
            .filter(|gateway| selects(&gateway.spec.selector, &workload.labels))
            .collect();
        gateways.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
        let targets = cx.get::<Targets>(workload);
        let mut attached = Attached::default();
        for gateway in gateways {
            for (index, server) in gateway.spec.servers.iter().enumerate() {
                let Some(number) = server.port.as_ref().and_then(|port| u16::try_from(port.number).ok())
                else {
                    continue;
                };
                let protocol = server.protocol();
                if !matches!(protocol, ServerProtocol::Http | ServerProtocol::Tcp) {
                    continue;
                }
                // The Service in front of the gateway leads port 80 to, say, 8080 of the pod.
                let port =
                    targets.iter().find(|target| target.port == number).map_or(number, |found| found.target);
                let server = GatewayServer {
                    gateway: gateway.meta.key(),
                    index,
                    server: Arc::new(server.clone()),
                    number,
                };
                attached.add(server, protocol, port);
            }
        }
        attached.ports.sort_by(|a, b| (a.port, &a.bind).cmp(&(b.port, &b.bind)));
        attached
    }
}

impl Attached {
    fn add(&mut self, server: GatewayServer, protocol: ServerProtocol, port: u16) {
        let bind = server.server.bind.clone();
        match self.ports.iter_mut().find(|present| present.port == port && present.bind == bind) {
            None => self.ports.push(GatewayPort { bind, port, protocol, servers: vec![server] }),
            // One TCP server owns its port: there is nothing to tell two of them apart by.
            Some(present) if present.protocol == ServerProtocol::Http && protocol == ServerProtocol::Http => {
                present.servers.push(server);
            }
            Some(present) => {
                let winner = present.servers.first().map(|first| first.gateway.clone()).unwrap_or_default();
                self.conflicts.push(Conflict { gateway: server.gateway, index: server.index, port, winner });
            }
        }
    }
}
