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
use super::{Frame, RAW_BUFFER, bare, http_inspector, tls_inspector};
use crate::model::ObjectRef;
use crate::model::duration::Span;
use crate::model::inputs::ServiceEntries;
use crate::model::virtual_service::MESH;
use crate::registry::instances::Instances;
use crate::registry::protocol::Protocol;
use crate::registry::{Port, Resolution, Service, Visible, VisibleOnPort};
use crate::scope::Viewer;
use crate::scope::rules::HostRules;
use crate::translate::name;
use crate::translate::proto::{core, listener};
use crate::translate::resource::Resource;
use crate::translate::route::rule::Place;
use crate::translate::telemetry;

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
        let frame = Frame::new(cx, &viewer.options);
        let mut services = cx.get::<VisibleOnPort>(&(viewer.namespace.clone(), *port)).as_ref().clone();
        services.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        let place = Place { viewer: viewer.clone(), gateway: MESH.to_owned(), port: *port, tls: false };
        let mut map = Map { cx, frame: &frame, place: &place, entries: BTreeMap::new() };
        for service in &services {
            if let Some(port) = service.port(*port) {
                map.add(service, port);
            }
        }
        let entries = std::mem::take(&mut map.entries);
        entries.into_values().map(|entry| Arc::new(map.build(entry))).collect()
    }
}

/// The listeners of a port as they come together, by their main addresses.
struct Map<'a, 'c> {
    cx: &'a Cx<'c>,
    frame: &'a Frame,
    place: &'a Place,
    entries: BTreeMap<String, Entry>,
}

/// A listener as it comes together.
struct Entry {
    /// Its addresses, the main one first.
    binds: Vec<String>,
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

impl Map<'_, '_> {
    fn add(&mut self, service: &Arc<Service>, port: &Port) {
        let object = service.id.object.clone();
        if port.protocol.is_http() {
            let binds = self.wildcards();
            let chains = vec![self.http_chain(None, &binds)];
            return self.insert(binds, port.protocol, chains, object);
        }
        if port.protocol == Protocol::Datagram {
            return;
        }
        let host = service.id.host.to_ascii_lowercase();
        let rules = self.cx.get::<HostRules>(&(self.place.viewer.namespace.clone(), host));
        for spot in self.spots(service, port) {
            let scope = self.place.viewer.filter_scope(Side::Outbound);
            let (cx, frame, place) = (self.cx, self.frame, self.place);
            let wanted = Wanted { cx, frame, place, scope: &scope, peers: false };
            let mut chains = service_chains(&wanted, service, &rules, &spot.ranges, spot.alone);
            // Of several services whose protocol is not declared only the first brings the chain for
            // HTTP, as the routes are those of the port.
            let main = spot.binds.first().map_or("", String::as_str);
            let first = self.entries.get(main).is_none_or(|entry| entry.only.is_some());
            if port.protocol == Protocol::Auto && first {
                let only = spot.alone.then_some(service);
                chains.push(self.http_chain(only, &spot.binds));
            }
            self.insert(spot.binds, port.protocol, chains, object.clone());
        }
    }

    /// Adds the chains of a service to the listener at an address.
    fn insert(&mut self, binds: Vec<String>, protocol: Protocol, chains: Vec<Chain>, origin: ObjectRef) {
        let Some(main) = binds.first().cloned() else { return };
        let only = protocol.is_tcp().then_some(protocol);
        let Some(entry) = self.entries.get_mut(&main) else {
            self.entries.insert(main, Entry { binds, only, chains, origins: vec![origin] });
            return;
        };
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
        let own = |binds: Vec<String>| Spot { binds, ranges: Vec::new(), alone: true };
        if service.addresses.is_empty() {
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
        let addresses: Vec<String> = service.vips_for(families).map(|address| address.to_string()).collect();
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
        let wildcards = self.frame.wildcards(self.place.viewer.families);
        wildcards.iter().map(|&address| address.to_owned()).collect()
    }

    fn selects_workloads(&self, service: &Service) -> bool {
        let entry = self.cx.input::<ServiceEntries>(&service.id.object.key());
        entry.is_some_and(|entry| entry.spec.workload_selector.is_some())
    }

    /// The chain for HTTP among other protocols: of a service that has its address to itself, or of
    /// all on the port.
    fn http_chain(&self, service: Option<&Arc<Service>>, binds: &[String]) -> Chain {
        let port = self.place.port;
        let routes = match service {
            Some(service) => name::virtual_host(&service.id.host, port),
            None => port.to_string(),
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

    fn build(&self, entry: Entry) -> Resource {
        let port = self.place.port;
        let name = name::listener(entry.binds.first().map_or("", String::as_str), port);
        let mut message = bare(&name, &entry.binds, port, core::TrafficDirection::Outbound);
        message.bind_to_port = Some(false);
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
        Resource::new(&name, &message, origins)
    }
}
