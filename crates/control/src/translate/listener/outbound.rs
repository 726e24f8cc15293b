//! A sidecar's listeners for what its workload calls.
//!
//! Connections arrive at `virtualOutbound` by iptables and are handed to the listener of their
//! original destination, which does not bind: `0.0.0.0_9080` for HTTP, which tells services apart by
//! the host header, and `10.96.0.5_3306` for the rest, which must go by the address. Services that
//! meet at one address and port share its listener: HTTP and bytes by looking at the first bytes,
//! bytes and bytes by addresses and server names; where nothing tells them apart the older counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::capture::to_unknown;
use super::chain::{Chain, merge};
use super::filters::Side;
use super::http::{Routes, connection_manager, stat_prefix};
use super::tcp::{Wanted, service_chains};
use super::{Frame, RAW_BUFFER, bare, bound, encode, http_inspector, localhosts, tls_inspector, wildcards};
use crate::model::ObjectRef;
use crate::model::duration::Span;
use crate::model::inputs::ServiceEntries;
use crate::model::virtual_service::MESH;
use crate::registry::instances::Instances;
use crate::registry::protocol::Protocol;
use crate::registry::{Port, Resolution, Service};
use crate::scope::Viewer;
use crate::scope::sidecar::{
    self, Egress, EgressOf, EgressPort, Sight, UNIX, host_rules, imported, imported_on_port,
};
use crate::translate::name;
use crate::translate::proto::{core, listener};
use crate::translate::resource::Resource;
use crate::translate::route::rule::Place;
use crate::translate::telemetry;

/// The listeners that `virtualOutbound` hands connections to, and those that workloads connect to
/// themselves where a Sidecar says so.
pub(super) struct OutboundListeners;

impl Query for OutboundListeners {
    type Key = Viewer;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "outbound-listeners";

    fn derive(cx: &Cx<'_>, viewer: &Viewer) -> Vec<Arc<Resource>> {
        let sight = viewer.sight();
        let mut listeners = Vec::new();
        for port in cx.get::<Ports>(&sight).iter() {
            listeners.extend(cx.get::<PortListeners>(&(viewer.clone(), *port)).iter().cloned());
        }
        let all = cx.get::<EgressOf>(&sight);
        let is_socket = |egress: &Egress| egress.port.as_ref().is_some_and(|port| port.number == 0);
        let sockets = all.iter().enumerate().filter(|(_, egress)| is_socket(egress));
        for (listener, _) in sockets {
            listeners.extend(cx.get::<SocketListeners>(&(viewer.clone(), listener)).iter().cloned());
        }
        listeners
    }
}

/// The ports that services have which are seen, or that a Sidecar declares.
pub(super) struct Ports;

impl Query for Ports {
    type Key = Sight;
    type Value = BTreeSet<u16>;
    const NAME: &'static str = "outbound-ports";

    fn derive(cx: &Cx<'_>, sight: &Sight) -> BTreeSet<u16> {
        let mut ports = BTreeSet::new();
        for (listener, egress) in cx.get::<EgressOf>(sight).iter().enumerate() {
            match &egress.port {
                // That is a socket of the file system.
                Some(port) if port.number == 0 => {}
                Some(port) => drop(ports.insert(port.number)),
                None => {
                    let services = imported(cx, sight, listener);
                    let all = services.values().flat_map(|service| &service.ports);
                    let carried = all.filter(|port| port.protocol != Protocol::Datagram);
                    ports.extend(carried.map(|port| port.number));
                }
            }
        }
        ports
    }
}

/// The listeners for one port: those of the Sidecar's listener for it, then, at other addresses, those
/// for all ports.
struct PortListeners;

impl Query for PortListeners {
    type Key = (Viewer, u16);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "port-listeners";

    fn derive(cx: &Cx<'_>, (viewer, port): &(Viewer, u16)) -> Vec<Arc<Resource>> {
        let frame = Frame::new(cx, &viewer.options);
        let sight = viewer.sight();
        let all = cx.get::<EgressOf>(&sight);
        let mut map = Map::new(cx, &frame, viewer);
        let here = |egress: &Egress| egress.port.as_ref().is_none_or(|own| own.number == *port);
        for (listener, egress) in all.iter().enumerate().filter(|(_, egress)| here(egress)) {
            map.enter(listener, egress);
            let Some(own) = &egress.port else {
                for service in by_age(&imported_on_port(cx, &sight, listener, *port)) {
                    if let Some(port) = service.port(*port) {
                        map.add(&service, port);
                    }
                }
                continue;
            };
            let port = own_port(own, *port);
            let services = match own.is_proxy {
                true => Arc::new(imported(cx, &sight, listener).values().cloned().collect()),
                false => imported_on_port(cx, &sight, listener, own.number),
            };
            for service in by_age(&services) {
                map.add(&service, &port);
            }
        }
        map.finish()
    }
}

/// The listeners of a Sidecar's listener at a socket of the file system.
struct SocketListeners;

impl Query for SocketListeners {
    type Key = (Viewer, usize);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "socket-listeners";

    fn derive(cx: &Cx<'_>, (viewer, listener): &(Viewer, usize)) -> Vec<Arc<Resource>> {
        let frame = Frame::new(cx, &viewer.options);
        let sight = viewer.sight();
        let all = cx.get::<EgressOf>(&sight);
        let Some(egress) = all.get(*listener) else { return Vec::new() };
        let Some(own) = &egress.port else { return Vec::new() };
        let mut map = Map::new(cx, &frame, viewer);
        map.enter(*listener, egress);
        for service in by_age(&imported(cx, &sight, *listener).values().cloned().collect::<Vec<_>>()) {
            // Nothing but a rule says which of several ports is meant.
            let number = match service.ports.as_slice() {
                [only] => only.number,
                _ => 0,
            };
            map.add(&service, &own_port(own, number));
        }
        map.finish()
    }
}

/// The port that a Sidecar declares, as if it were that of each service.
fn own_port(port: &EgressPort, number: u16) -> Port {
    Port { number, name: port.name.clone(), protocol: port.protocol, passthrough: None }
}

/// Services without those that are other names of others, oldest first.
fn by_age(services: &[Arc<Service>]) -> Vec<Arc<Service>> {
    let mut services = services.to_vec();
    services.retain(|service| service.resolution != Resolution::Alias);
    services.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    services
}

/// The listeners of a port as they come together, by their main addresses.
struct Map<'a, 'c> {
    cx: &'a Cx<'c>,
    frame: &'a Frame,
    place: Place,
    sight: Sight,
    /// Which of the sight's listeners brings what is added, and what is special about it.
    listener: usize,
    settings: Settings,
    entries: BTreeMap<String, Entry>,
}

/// How a listener of a Sidecar differs from what follows from services.
#[derive(Debug, Default)]
struct Settings {
    /// The addresses of all that it brings; empty if they follow from services.
    binds: Vec<String>,
    /// Whether workloads connect there themselves.
    bound: bool,
    /// Whether it is an HTTP proxy.
    is_proxy: bool,
    /// The route configuration of a socket of the file system.
    routes: Option<String>,
}

/// A listener as it comes together.
struct Entry {
    /// Its addresses, the main one first.
    binds: Vec<String>,
    /// Its port.
    port: u16,
    bound: bool,
    /// Which of the sight's listeners it comes from: others must leave it alone.
    listener: usize,
    /// What it carries, while it carries only one protocol of bytes; `None` once it looks at the
    /// first bytes.
    only: Option<Protocol>,
    chains: Vec<Chain>,
    origins: Vec<ObjectRef>,
}

/// Where a service of bytes listens.
struct Spot {
    binds: Vec<String>,
    /// The addresses that are the service's, if it shares the listener.
    ranges: Vec<String>,
    /// Whether the listener's address belongs to the service.
    alone: bool,
}

impl<'a, 'c> Map<'a, 'c> {
    fn new(cx: &'a Cx<'c>, frame: &'a Frame, viewer: &Viewer) -> Map<'a, 'c> {
        let place = Place { viewer: viewer.clone(), gateway: MESH.to_owned(), port: 0, tls: false };
        let settings = Settings::default();
        Map { cx, frame, sight: viewer.sight(), place, listener: 0, settings, entries: BTreeMap::new() }
    }

    /// What is added from now on comes from this listener of the sight.
    fn enter(&mut self, listener: usize, egress: &Egress) {
        let bound = egress.bound || !self.place.viewer.captures;
        let binds = if !egress.bind.is_empty() {
            vec![egress.bind.clone()]
        } else if bound {
            let hosts = localhosts(self.place.viewer.families);
            hosts.iter().map(|&host| host.to_owned()).collect()
        } else {
            Vec::new()
        };
        self.listener = listener;
        self.settings = Settings {
            binds,
            bound,
            is_proxy: egress.port.as_ref().is_some_and(|port| port.is_proxy),
            routes: egress.bind.starts_with(UNIX).then(|| egress.bind.clone()),
        };
    }

    /// Adds a service to the listeners of a port, which says how it is spoken to there.
    fn add(&mut self, service: &Arc<Service>, port: &Port) {
        // Where the proxy itself listens nothing else can.
        let reserved = [self.frame.outbound_port(), self.frame.inbound_port()];
        if self.settings.bound && reserved.contains(&port.number) {
            return;
        }
        self.place.port = port.number;
        let object = service.id.object.clone();
        if port.protocol.is_http() {
            let binds =
                if self.settings.binds.is_empty() { self.wildcards() } else { self.settings.binds.clone() };
            let mut chain = self.http_chain(None, &binds);
            // At an address of the Sidecar's there is nothing but HTTP.
            if self.settings.is_proxy || binds.first() != self.wildcards().first() {
                chain.application_protocols = &[];
                chain.transport_protocol = "";
            }
            return self.insert(binds, port.protocol, vec![chain], object);
        }
        if port.protocol == Protocol::Datagram {
            return;
        }
        let host = service.id.host.to_ascii_lowercase();
        let rules = host_rules(self.cx, &self.sight, self.listener, &host);
        for spot in self.spots(service, port) {
            let scope = self.place.viewer.filter_scope(Side::Outbound);
            let (cx, frame, place) = (self.cx, self.frame, &self.place);
            let wanted = Wanted { cx, frame, place, scope: &scope, port_name: &port.name, peers: false };
            let spoken = (service.as_ref(), port.protocol);
            let mut chains = service_chains(&wanted, spoken, &rules, &spot.ranges, spot.alone);
            // Of several services whose protocol is not declared only the first brings the chain for
            // HTTP, as the routes are those of the port.
            let main = spot.binds.first().map_or("", String::as_str);
            let first = self.entries.get(main).is_none_or(|entry| entry.only.is_some());
            if port.protocol == Protocol::Auto && first {
                let only = (spot.alone && self.settings.binds.is_empty()).then_some(service);
                chains.push(self.http_chain(only, &spot.binds));
            }
            self.insert(spot.binds, port.protocol, chains, object.clone());
        }
    }

    /// Adds the chains of a service to the listener at an address.
    fn insert(&mut self, binds: Vec<String>, protocol: Protocol, chains: Vec<Chain>, origin: ObjectRef) {
        let Some(main) = binds.first().cloned() else { return };
        let only = protocol.is_tcp().then_some(protocol);
        let (listener, bound) = (self.listener, self.settings.bound);
        // A socket of the file system has no port, whatever that of the service.
        let port = if self.settings.routes.is_some() { 0 } else { self.place.port };
        let Some(entry) = self.entries.get_mut(&main) else {
            let mut origins = vec![origin];
            origins.extend(sidecar::origin(&self.sight));
            self.entries.insert(main, Entry { binds, port, bound, listener, only, chains, origins });
            return;
        };
        if entry.listener != listener {
            return;
        }
        // Looking at the first bytes would hold up a server that speaks first.
        let waits = |protocol: Option<Protocol>| protocol.is_some_and(Protocol::is_server_first);
        if (waits(only) || waits(entry.only)) && only != entry.only {
            return;
        }
        entry.origins.push(origin);
        if protocol.is_http() && entry.only.is_none() {
            // Its routes are found by the chain for HTTP that is there.
            return;
        }
        merge(&mut entry.chains, chains);
        if only.is_none() {
            entry.only = None;
        }
    }

    /// Where a service of bytes, or of what is found by looking, listens.
    fn spots(&self, service: &Service, port: &Port) -> Vec<Spot> {
        let families = self.place.viewer.families;
        let dns_capture = self.place.viewer.options.dns_capture;
        let has_address = service.has_address(dns_capture);
        let own = |binds: Vec<String>| Spot { binds, ranges: Vec::new(), alone: true };
        if !self.settings.binds.is_empty() {
            let shared = self.settings.binds.first() == self.wildcards().first();
            let alone = !shared || has_address;
            return vec![Spot { binds: self.settings.binds.clone(), ranges: Vec::new(), alone }];
        }
        if !has_address {
            if service.resolution == Resolution::OriginalDst {
                let instances = self.cx.get::<Instances>(&service.id);
                let served = instances.iter().filter(|instance| instance.ports.contains_key(&port.number));
                let addresses: BTreeSet<IpAddr> =
                    served.filter_map(|instance| instance.address.parse().ok()).collect();
                // A headless service without pods has nobody to talk to, and may get some soon.
                if !addresses.is_empty() || service.is_kubernetes() || self.selects_workloads(service) {
                    // Deviation: istiod leaves out the address of the workload itself, which costs
                    // it a configuration per replica; what a workload calls at its own address does
                    // not come here.
                    return addresses.iter().map(|address| own(vec![address.to_string()])).collect();
                }
            }
            return vec![Spot { binds: self.wildcards(), ranges: Vec::new(), alone: false }];
        }
        let (ranges, _): (Vec<&String>, Vec<&String>) =
            service.addresses.iter().partition(|address| address.contains('/'));
        let addresses: Vec<String> =
            service.vips_for(families, dns_capture).map(|address| address.to_string()).collect();
        let mut spots = Vec::new();
        if service.is_kubernetes() {
            // The addresses of a Service are one address in several families.
            let binds = if self.frame.switches.dual_stack {
                addresses
            } else {
                addresses.into_iter().take(1).collect()
            };
            spots.extend((!binds.is_empty()).then(|| own(binds)));
        } else {
            spots.extend(addresses.into_iter().map(|address| own(vec![address])));
        }
        spots.extend(ranges.into_iter().map(|range| Spot {
            binds: self.wildcards(),
            ranges: vec![range.clone()],
            alone: false,
        }));
        spots
    }

    fn wildcards(&self) -> Vec<String> {
        let wildcards = wildcards(self.place.viewer.families);
        wildcards.iter().map(|&address| address.to_owned()).collect()
    }

    fn selects_workloads(&self, service: &Service) -> bool {
        let entry = self.cx.input::<ServiceEntries>(&service.id.object.key());
        entry.is_some_and(|entry| entry.spec.workload_selector.is_some())
    }

    /// The chain for HTTP among other protocols: of a service that has its address to itself, or of
    /// all on the port.
    fn http_chain(&self, service: Option<&Arc<Service>>, binds: &[String]) -> Chain {
        let port = if self.settings.routes.is_some() { 0 } else { self.place.port };
        let routes = match (&self.settings.routes, service) {
            (Some(routes), _) => routes.clone(),
            (None, Some(service)) => name::virtual_host(&service.id.host, port),
            (None, None) => port.to_string(),
        };
        let name = name::listener(binds.first().map_or("", String::as_str), port);
        let prefix = stat_prefix(Side::Outbound, &name);
        let scope = self.place.viewer.filter_scope(Side::Outbound);
        let manager = connection_manager(self.cx, self.frame, &scope, prefix, Routes::Named(routes), None);
        Chain {
            application_protocols: self.frame.plain_http(),
            transport_protocol: RAW_BUFFER,
            filters: vec![manager],
            ..Chain::default()
        }
    }

    /// All of them.
    fn finish(mut self) -> Vec<Arc<Resource>> {
        let entries = std::mem::take(&mut self.entries);
        entries.into_values().map(|entry| Arc::new(self.build(entry))).collect()
    }

    fn build(&self, entry: Entry) -> Resource {
        let port = entry.port;
        let name = name::listener(entry.binds.first().map_or("", String::as_str), port);
        let mut message = bare(&name, &entry.binds, port, core::TrafficDirection::Outbound);
        if entry.bound {
            message = bound(message);
        } else {
            message.bind_to_port = Some(false);
        }
        message.continue_on_listener_filters_timeout = true;
        if entry.chains.iter().any(Chain::needs_tls_inspector) {
            message.listener_filters.push(tls_inspector());
        }
        let sniffs = entry.chains.iter().any(|chain| !chain.application_protocols.is_empty());
        if sniffs {
            message.listener_filters.push(http_inspector(None));
        }
        // Without looking at HTTP there is nothing to wait for but a handshake.
        let wait = if sniffs { self.frame.mesh.protocol_detection_timeout } else { Span::default() };
        message.listener_filters_timeout = Some(wait.to_proto());
        // What matches everything is the default, so that a connection that matches one condition of
        // a chain and not another is not dropped.
        let (all, some): (Vec<Chain>, Vec<Chain>) = entry.chains.into_iter().partition(Chain::is_match_all);
        message.filter_chains = some.into_iter().map(Chain::build).collect();
        let default = all.into_iter().next().map(Chain::build);
        match default {
            Some(only) if message.filter_chains.is_empty() => message.filter_chains.push(only),
            Some(default) => message.default_filter_chain = Some(default),
            None => {
                let viewer = &self.place.viewer;
                let scope = viewer.filter_scope(Side::Outbound);
                message.default_filter_chain = Some(listener::FilterChain {
                    name: "PassthroughFilterChain".to_owned(),
                    filter_chain_match: Some(listener::FilterChainMatch::default()),
                    filters: to_unknown(self.cx, self.frame, viewer, &scope),
                    ..listener::FilterChain::default()
                });
            }
        }
        let mut origins = entry.origins;
        origins.extend(telemetry::origins(self.cx, &self.place.viewer.filter_scope(Side::Outbound)));
        encode(self.frame, &name, &message, origins)
    }
}
