//! A sidecar's listeners for what its workload calls.
//!
//! Connections arrive at `virtualOutbound` (15001) by iptables and are handed to the listener of
//! their original destination, which does not bind: `0.0.0.0_9080` for HTTP, which tells services
//! apart by the host header, and `10.96.0.5_3306` for the rest, which must go by the address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::http::{Routes, Side, connection_manager};
use super::tcp::{TcpChain, Upstream, plain_chain, tcp_chains, tcp_proxy};
use super::{bare, captured, inspect_http, plain_http_match};
use crate::model::ObjectRef;
use crate::model::mesh::{MeshConfig, OutboundMode};
use crate::model::virtual_service::MESH;
use crate::registry::instances::Instances;
use crate::registry::protocol::Protocol;
use crate::registry::{Mesh, Resolution, Service, Visible, VisibleOnPort};
use crate::scope::Viewer;
use crate::scope::rules::{MeshRules, owner};
use crate::translate::name;
use crate::translate::proto::{core, listener};
use crate::translate::resource::{Resource, cidr};
use crate::translate::route::rule::Place;

/// Where captured outbound connections arrive.
const OUTBOUND_PORT: u16 = 15001;

/// All addresses.
const WILDCARD: &str = "0.0.0.0";

/// The listeners that `virtualOutbound` hands connections to.
pub(super) struct OutboundListeners;

impl Query for OutboundListeners {
    type Key = Viewer;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "outbound-listeners";

    fn derive(cx: &Cx<'_>, viewer: &Viewer) -> Vec<Arc<Resource>> {
        let visible = cx.get::<Visible>(&viewer.namespace);
        let ports: BTreeSet<u16> = visible
            .values()
            .flat_map(|service| &service.ports)
            .filter(|port| port.protocol != Protocol::Datagram)
            .map(|port| port.number)
            .collect();
        let mut listeners = Vec::new();
        for port in ports {
            listeners.extend(cx.get::<PortListeners>(&(viewer.clone(), port)).iter().cloned());
        }
        listeners
    }
}

/// The listeners for one port.
struct PortListeners;

impl Query for PortListeners {
    type Key = (Viewer, u16);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "port-listeners";

    fn derive(cx: &Cx<'_>, (viewer, port): &(Viewer, u16)) -> Vec<Arc<Resource>> {
        let services = cx.get::<VisibleOnPort>(&(viewer.namespace.clone(), *port));
        let mesh = cx.get::<Mesh>(&());
        let mut wildcard = Wildcard::default();
        let mut listeners: Vec<(String, Resource)> = Vec::new();
        for service in services.iter() {
            let Some(protocol) = service.port(*port).map(|port| port.protocol) else { continue };
            let object = service.id.object.clone();
            let vips: Vec<IpAddr> = service.vips().collect();
            match protocol {
                Protocol::Http | Protocol::Http2 => {
                    wildcard.http = true;
                    wildcard.origins.push(object);
                }
                Protocol::Auto if vips.is_empty() && service.addresses.is_empty() => {
                    wildcard.http = true;
                    wildcard.origins.push(object);
                }
                Protocol::Auto | Protocol::Tcp => {
                    let chains = chains_of(cx, viewer, service, *port);
                    for address in addresses(cx, service) {
                        let name = name::listener(address, *port);
                        let message = if protocol == Protocol::Auto {
                            sniffed(&mesh, &name, address, *port, service, &chains)
                        } else {
                            let mut message = captured(&name, &address.to_string(), *port);
                            add_tcp(&mesh, &mut message, service, *port, &[], &chains);
                            message
                        };
                        listeners.push((name.clone(), Resource::new(&name, &message, vec![object.clone()])));
                    }
                    let ranges: Vec<_> = service
                        .addresses
                        .iter()
                        .filter(|text| text.contains('/'))
                        .filter_map(|text| cidr(text))
                        .collect();
                    let anywhere = service.addresses.is_empty()
                        && service.resolution == Resolution::OriginalDst
                        && !service.is_kubernetes();
                    if !ranges.is_empty() || anywhere {
                        wildcard.tcp.push(WildcardTcp { service: Arc::clone(service), ranges, chains });
                        wildcard.origins.push(object);
                    }
                }
                Protocol::Datagram => {}
            }
        }
        if wildcard.http || !wildcard.tcp.is_empty() {
            let name = name::listener(WILDCARD, *port);
            let message = wildcard.build(&mesh, &name, *port);
            listeners.push((name.clone(), Resource::new(&name, &message, wildcard.origins)));
        }
        // Two services may claim one address; the first keeps it.
        listeners.sort_by(|a, b| a.0.cmp(&b.0));
        listeners.dedup_by(|a, b| a.0 == b.0);
        listeners.into_iter().map(|(_, resource)| Arc::new(resource)).collect()
    }
}

/// What shares the listener for all addresses of a port.
#[derive(Default)]
struct Wildcard {
    http: bool,
    tcp: Vec<WildcardTcp>,
    origins: Vec<ObjectRef>,
}

/// A service of bytes without an address of its own.
struct WildcardTcp {
    service: Arc<Service>,
    /// The addresses that are the service's; all, if empty.
    ranges: Vec<core::CidrRange>,
    chains: Vec<TcpChain>,
}

impl Wildcard {
    fn build(&self, mesh: &MeshConfig, name: &str, port: u16) -> listener::Listener {
        let mut message = captured(name, WILDCARD, port);
        for tcp in self.tcp.iter().filter(|tcp| !tcp.ranges.is_empty()) {
            add_tcp(mesh, &mut message, &tcp.service, port, &tcp.ranges, &tcp.chains);
        }
        if self.http {
            // Anything might come to such a port, as calls to what is no service of the mesh.
            let address = name::listener(WILDCARD, port);
            let filter = connection_manager(mesh, Side::Outbound, &address, Routes::Named(port.to_string()));
            message.filter_chains.push(listener::FilterChain {
                filter_chain_match: Some(plain_http_match()),
                filters: vec![filter],
                ..listener::FilterChain::default()
            });
            message.default_filter_chain = Some(rest(mesh, "PassthroughFilterChain"));
            inspect_http(&mut message, None);
        } else if let Some(tcp) = self.tcp.iter().find(|tcp| tcp.ranges.is_empty()) {
            add_tcp(mesh, &mut message, &tcp.service, port, &[], &tcp.chains);
        } else {
            message.default_filter_chain = Some(rest(mesh, "PassthroughFilterChain"));
        }
        message
    }
}

/// A listener for a service whose protocol is found by looking.
fn sniffed(
    mesh: &MeshConfig,
    name: &str,
    address: IpAddr,
    port: u16,
    service: &Service,
    chains: &[TcpChain],
) -> listener::Listener {
    let mut message = captured(name, &address.to_string(), port);
    let route = name::virtual_host(&service.id.host, port);
    message.filter_chains.push(listener::FilterChain {
        filter_chain_match: Some(plain_http_match()),
        filters: vec![connection_manager(mesh, Side::Outbound, name, Routes::Named(route))],
        ..listener::FilterChain::default()
    });
    let cluster = name::outbound(port, "", &service.id.host);
    let upstream = chains.iter().find(|chain| chain.ranges.is_empty());
    let upstream =
        upstream.map_or_else(|| Upstream::Cluster(cluster.clone()), |chain| chain.upstream.clone());
    message.default_filter_chain = Some(listener::FilterChain {
        filters: vec![tcp_proxy(mesh, &cluster, &upstream)],
        ..listener::FilterChain::default()
    });
    inspect_http(&mut message, None);
    message
}

/// The TCP rules for a service, or none if no rule speaks of it.
fn chains_of(cx: &Cx<'_>, viewer: &Viewer, service: &Service, port: u16) -> Vec<TcpChain> {
    let rules = cx.get::<MeshRules>(&viewer.namespace);
    let rule = owner(&rules, &service.id.host, |rule| !rule.spec.tcp.is_empty());
    rule.map(|rule| tcp_chains(cx, rule, Place { viewer, gateway: MESH, port })).unwrap_or_default()
}

/// Adds a service's chains: those of its rules, and the one to the service itself where they leave
/// something over. `ranges` are the addresses that are the service's, if it shares the listener.
fn add_tcp(
    mesh: &MeshConfig,
    message: &mut listener::Listener,
    service: &Service,
    port: u16,
    ranges: &[core::CidrRange],
    chains: &[TcpChain],
) {
    let cluster = name::outbound(port, "", &service.id.host);
    let own = TcpChain { ranges: Vec::new(), upstream: Upstream::Cluster(cluster.clone()) };
    let complete = chains.iter().any(|chain| chain.ranges.is_empty());
    for chain in chains.iter().chain((!complete).then_some(&own)) {
        let ranges = if chain.ranges.is_empty() { ranges } else { &chain.ranges };
        let prefix = match &chain.upstream {
            Upstream::Cluster(name) => name,
            Upstream::Weighted(_) => &cluster,
        };
        message.filter_chains.push(listener::FilterChain {
            filter_chain_match: (!ranges.is_empty()).then(|| listener::FilterChainMatch {
                prefix_ranges: ranges.to_vec(),
                ..listener::FilterChainMatch::default()
            }),
            filters: vec![tcp_proxy(mesh, prefix, &chain.upstream)],
            ..listener::FilterChain::default()
        });
    }
}

/// The addresses that tell a service of bytes from others: its own, or those of the pods of a
/// headless one.
fn addresses(cx: &Cx<'_>, service: &Service) -> Vec<IpAddr> {
    if service.is_kubernetes() && service.resolution == Resolution::OriginalDst {
        let instances = cx.get::<Instances>(&service.id);
        return instances.iter().filter_map(|instance| instance.address.parse().ok()).collect();
    }
    service.vips().collect()
}

/// The listener that all captured outbound connections arrive at.
pub(super) fn virtual_outbound(cx: &Cx<'_>) -> Resource {
    let mesh = cx.get::<Mesh>(&());
    let mut message = bare(name::VIRTUAL_OUTBOUND, WILDCARD, OUTBOUND_PORT, core::TrafficDirection::Outbound);
    message.use_original_dst = Some(true);
    // A connection made to the proxy itself would be sent to the proxy again, for ever.
    let mut black_hole = plain_chain(&mesh, "virtualOutbound-blackhole", name::BLACK_HOLE_CLUSTER);
    black_hole.filter_chain_match = Some(listener::FilterChainMatch {
        destination_port: Some(u32::from(OUTBOUND_PORT)),
        ..listener::FilterChainMatch::default()
    });
    message.filter_chains = vec![black_hole, rest(&mesh, "virtualOutbound-catchall-tcp")];
    Resource::new(name::VIRTUAL_OUTBOUND, &message, Vec::new())
}

/// The chain for what is no service of the mesh.
fn rest(mesh: &MeshConfig, name: &str) -> listener::FilterChain {
    let cluster = match mesh.outbound_traffic_policy.mode {
        OutboundMode::AllowAny => name::PASSTHROUGH_CLUSTER,
        OutboundMode::RegistryOnly => name::BLACK_HOLE_CLUSTER,
    };
    plain_chain(mesh, name, cluster)
}

/// The listener of a sidecar that its workload uses as its HTTP proxy.
pub(super) fn explicit(cx: &Cx<'_>, address: IpAddr, port: u16) -> Resource {
    let mesh = cx.get::<Mesh>(&());
    let name = name::listener(address, port);
    let mut message = bare(&name, &address.to_string(), port, core::TrafficDirection::Outbound);
    let routes = Routes::Named(name::HTTP_PROXY.to_owned());
    message.filter_chains.push(listener::FilterChain {
        filters: vec![connection_manager(&mesh, Side::Outbound, &name, routes)],
        ..listener::FilterChain::default()
    });
    Resource::new(&name, &message, Vec::new())
}
