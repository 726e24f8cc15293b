//! A gateway's listeners: one per port that its Gateways ask for.

use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::bare;
use super::http::{Routes, Side, connection_manager};
use super::tcp::{tcp_chains, tcp_proxy};
use crate::model::Kind;
use crate::model::gateway::ServerProtocol;
use crate::model::mesh::MeshConfig;
use crate::registry::Mesh;
use crate::registry::targets::Workload;
use crate::scope::Viewer;
use crate::scope::gateways::{AttachedGateways, GatewayPort};
use crate::scope::intersection;
use crate::scope::rules::VisibleRules;
use crate::translate::name;
use crate::translate::proto::{core, listener};
use crate::translate::resource::Resource;
use crate::translate::route::rule::Place;

/// All listeners of a gateway workload, which binds the address given unless a Gateway says more.
pub(super) struct GatewayListeners;

impl Query for GatewayListeners {
    type Key = (Viewer, Workload, Option<IpAddr>);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "gateway-listeners";

    fn derive(cx: &Cx<'_>, (viewer, workload, own): &Self::Key) -> Vec<Arc<Resource>> {
        let mesh = cx.get::<Mesh>(&());
        let attached = cx.get::<AttachedGateways>(workload);
        let ports = attached.ports.iter();
        ports.filter_map(|port| build(cx, &mesh, viewer, port, *own)).map(Arc::new).collect()
    }
}

/// The listener of a port; `None` if there is nothing that it could do with a connection.
fn build(
    cx: &Cx<'_>,
    mesh: &MeshConfig,
    viewer: &Viewer,
    port: &GatewayPort,
    own: Option<IpAddr>,
) -> Option<Resource> {
    let host = if port.bind.is_empty() { "0.0.0.0" } else { &port.bind };
    let name = name::listener(host, port.port);
    let bound = own.filter(|_| port.bind.is_empty()).map_or_else(|| host.to_owned(), |own| own.to_string());
    let mut message = bare(&name, &bound, port.port, core::TrafficDirection::Outbound);
    let mut origins: Vec<_> = port.servers.iter().map(|server| server.gateway.of(Kind::Gateway)).collect();
    if port.protocol == ServerProtocol::Http {
        let routes = Routes::Named(name::gateway_route(port.port, &port.bind));
        message.filter_chains.push(listener::FilterChain {
            filters: vec![connection_manager(mesh, Side::Gateway, &name, routes)],
            ..listener::FilterChain::default()
        });
        return Some(Resource::new(&name, &message, origins));
    }
    let rules = cx.get::<VisibleRules>(&viewer.namespace);
    for server in &port.servers {
        let gateway = server.gateway_name();
        let place = Place { viewer, gateway: &gateway, port: server.number };
        for rule in rules.iter().filter(|rule| rule.applies_to(&gateway)) {
            let meets = server
                .server
                .hosts()
                .any(|(_, exposed)| rule.spec.hosts.iter().any(|host| intersection(exposed, host).is_some()));
            if !meets {
                continue;
            }
            for chain in tcp_chains(cx, rule, place) {
                let all = chain.ranges.is_empty();
                if all && message.filter_chains.iter().any(|present| present.filter_chain_match.is_none()) {
                    // Nothing could tell the two apart: the older rule has the port.
                    continue;
                }
                origins.push(rule.object());
                message.filter_chains.push(listener::FilterChain {
                    filter_chain_match: (!all).then(|| listener::FilterChainMatch {
                        prefix_ranges: chain.ranges.clone(),
                        ..listener::FilterChainMatch::default()
                    }),
                    filters: vec![tcp_proxy(mesh, &name, &chain.upstream)],
                    ..listener::FilterChain::default()
                });
            }
        }
    }
    (!message.filter_chains.is_empty()).then(|| Resource::new(&name, &message, origins))
}
