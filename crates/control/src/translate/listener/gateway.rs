//! A gateway's listeners: one per address and port that its Gateways ask for, with a chain for all
//! servers of plain HTTP, and one for each of the others.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use leno_derive::{Cx, Query};

use super::chain::{Chain, merge};
use super::filters::{FilterScope, Side};
use super::http::{Routes, connection_manager, stat_prefix};
use super::tcp::Wanted;
use super::{Frame, bare, bound, listener_filter, proxy_config, tls, tls_inspector};
use crate::model::ObjectRef;
use crate::model::gateway::ServerTlsMode;
use crate::model::virtual_service::RouteDestination;
use crate::registry::Visible;
use crate::registry::protocol::Protocol;
use crate::registry::targets::Workload;
use crate::scope::gateways::{AttachedGateways, GatewayPort, GatewayServer, ServerKind};
use crate::scope::policy::MergedPolicy;
use crate::scope::rules::{GatewayRules, Rule, Semantics};
use crate::scope::security;
use crate::scope::{Viewer, fit};
use crate::translate::cluster::policies;
use crate::translate::name;
use crate::translate::proto::core;
use crate::translate::resource::Resource;
use crate::translate::route::gateway::hosts_of;
use crate::translate::route::rule::Place;
use crate::translate::telemetry::{self, access_log};

/// What the mesh's own mutual TLS offers as protocols, by which AUTO_PASSTHROUGH keeps everybody
/// else out.
const MESH_PROTOCOLS: &[&str] =
    &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// All listeners of a gateway workload, which binds the address given unless a Gateway says more.
pub(super) struct GatewayListeners;

impl Query for GatewayListeners {
    type Key = (Viewer, Workload, Option<IpAddr>);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "gateway-listeners";

    fn derive(cx: &Cx<'_>, (viewer, workload, own): &Self::Key) -> Vec<Arc<Resource>> {
        let frame = Frame::new(cx, &viewer.options);
        let attached = cx.get::<AttachedGateways>(workload);
        let Workload { namespace, labels } = workload;
        let (options, identity) = (&viewer.options, &viewer.identity);
        let scope = FilterScope::new(Side::Gateway, namespace, labels, options, identity);
        let maker = Maker { cx, frame: &frame, scope: &scope, viewer, workload };
        let ports = attached.ports.iter();
        ports.filter_map(|port| maker.listener(port, *own)).map(Arc::new).collect()
    }
}

struct Maker<'a, 'c> {
    cx: &'a Cx<'c>,
    frame: &'a Frame,
    scope: &'a FilterScope,
    viewer: &'a Viewer,
    workload: &'a Workload,
}

impl Maker<'_, '_> {
    /// The listener of a port; `None` if there is nothing that it could do with a connection.
    fn listener(&self, port: &GatewayPort, own: Option<IpAddr>) -> Option<Resource> {
        let wildcards = self.frame.wildcards(self.viewer.families);
        let hosts: Vec<String> = match port.bind.as_str() {
            "" => wildcards.iter().map(|&host| host.to_owned()).collect(),
            bind => vec![bind.to_owned()],
        };
        let name = name::listener(hosts.first().map_or("", String::as_str), port.port);
        let bound_to = own.filter(|_| port.bind.is_empty()).map_or(hosts, |own| vec![own.to_string()]);
        let mut origins: Vec<_> = port.servers.iter().map(|server| server.object.clone()).collect();
        let mut chains = Vec::new();
        let mut sni = HashSet::new();
        for server in &port.servers {
            let more = self.chains(server, &name, &mut sni, &mut origins);
            merge(&mut chains, more);
        }
        if chains.is_empty() {
            return None;
        }
        origins.extend(security::origins(self.cx, self.workload));
        origins.extend(telemetry::origins(self.cx, self.scope));
        let direction = core::TrafficDirection::Outbound;
        let mut message = bound(bare(&name, &bound_to, port.port, direction));
        if proxy_config::expects_proxy_protocol(&self.frame.mesh) {
            let config = ProxyProtocol::default();
            message.listener_filters.push(listener_filter(
                "envoy.filters.listener.proxy_protocol",
                &config,
                None,
            ));
        }
        message.per_connection_buffer_limit_bytes = proxy_config::buffer_limit(&self.frame.mesh);
        if chains.iter().any(Chain::needs_tls_inspector) {
            message.listener_filters.push(tls_inspector());
        }
        message.access_log = access_log::of_listener(self.cx, self.scope);
        message.filter_chains = chains.into_iter().map(Chain::build).collect();
        Some(Resource::new(&name, &message, origins))
    }

    /// The chains of a server. `sni` are the server names that rules have taken on the port.
    fn chains(
        &self,
        server: &GatewayServer,
        listener: &str,
        sni: &mut HashSet<String>,
        origins: &mut Vec<ObjectRef>,
    ) -> Vec<Chain> {
        let terminated = || Chain {
            sni: if server.kind == ServerKind::Http { Vec::new() } else { server.sni_hosts() },
            tls: tls::context(server, &self.frame.mesh, self.scope.abilities).map(Box::new),
            ..Chain::default()
        };
        match server.kind {
            ServerKind::Http | ServerKind::Https => {
                let own = &server.server.name;
                let named = server.kind == ServerKind::Https && !own.is_empty();
                let prefix = if named { own.clone() } else { stat_prefix(Side::Gateway, listener) };
                let protocol = server.server.port.as_ref().map(|port| Protocol::of_name(&port.protocol));
                let routes = Routes::Named(server.route.clone());
                let manager = connection_manager(self.cx, self.frame, self.scope, prefix, routes, protocol);
                vec![Chain { filters: vec![manager], ..terminated() }]
            }
            ServerKind::Tcp => {
                let Some((rule, targets)) = self.tcp_targets(server) else { return Vec::new() };
                origins.extend(rule.origins.iter().cloned());
                let place = self.place(server);
                let wanted = self.wanted(&place, port_name(server), is_of_mesh(server));
                let filters = wanted.to_targets(&targets, &rule.meta);
                // A server of plain bytes has nothing to tell its connections apart by.
                vec![Chain { sni: Vec::new(), filters, ..terminated() }]
            }
            ServerKind::Tls => {
                let with_tls = |chain| Chain { tls: terminated().tls, ..chain };
                self.ended(server, sni, origins).into_iter().map(with_tls).collect()
            }
            ServerKind::Passthrough => self.passed_on(server, sni, origins),
            ServerKind::AutoPassthrough => self.passed_on_by_name(server),
        }
    }

    fn place(&self, server: &GatewayServer) -> Place {
        Place {
            viewer: self.viewer.clone(),
            gateway: server.gateway_name(),
            port: server.number,
            tls: server.server.tls.is_some(),
        }
    }

    /// What chains are made with. `peers` says whether clients are of the mesh.
    fn wanted<'a>(&'a self, place: &'a Place, port_name: &'a str, peers: bool) -> Wanted<'a, 'a> {
        Wanted { cx: self.cx, frame: self.frame, place, scope: self.scope, port_name, peers }
    }

    /// The rules that are bound to a server's Gateway and have a host in common with it.
    fn rules(&self, server: &GatewayServer) -> Vec<Arc<Rule>> {
        let key = (self.viewer.namespace.clone(), server.gateway_name());
        let rules = self.cx.get::<GatewayRules>(&key);
        rules.iter().filter(|rule| !hosts_of(server, rule).is_empty()).cloned().collect()
    }

    /// Where a server of bytes leads: the first TCP rule for its port.
    fn tcp_targets(&self, server: &GatewayServer) -> Option<(Arc<Rule>, Vec<RouteDestination>)> {
        let gateway = server.gateway_name();
        let number = u32::from(server.number);
        let admits = |port: u32, gateways: &[String]| {
            (port == 0 || port == number) && (gateways.is_empty() || gateways.contains(&gateway))
        };
        self.rules(server).into_iter().find_map(|rule| {
            let found = rule.spec.tcp.iter().find(|tcp| {
                let mut matches = tcp.r#match.iter();
                !tcp.route.is_empty()
                    && (tcp.r#match.is_empty() || matches.any(|found| admits(found.port, &found.gateways)))
            });
            let targets = found?.route.clone();
            Some((rule, targets))
        })
    }

    /// The chains of TLS that ends here, still without it: where TLSRoutes say, each for its own names,
    /// and for all names that are left where the first TCP rule says.
    // Deviation: istiod sends all names of the listener to where the first TLSRoute leads, whatever its
    // hostnames; here a TLSRoute has those of its hostnames that are within the listener's.
    fn ended(
        &self,
        server: &GatewayServer,
        sni: &mut HashSet<String>,
        origins: &mut Vec<ObjectRef>,
    ) -> Vec<Chain> {
        let place = self.place(server);
        let wanted = self.wanted(&place, port_name(server), is_of_mesh(server));
        let of_bytes = self.tcp_targets(server);
        let mut chains = Vec::new();
        for rule in self.rules(server) {
            if let Some((_, targets)) = of_bytes.as_ref().filter(|(of_bytes, _)| of_bytes.id == rule.id) {
                let names = server.sni_hosts().into_iter();
                let names: Vec<String> = names.filter(|name| sni.insert(name.clone())).collect();
                if !names.is_empty() {
                    origins.extend(rule.origins.iter().cloned());
                    let filters = wanted.to_targets(targets, &rule.meta);
                    chains.push(Chain { sni: names, filters, ..Chain::default() });
                }
            }
            if rule.semantics == Semantics::GatewayApi {
                chains.extend(by_name(&wanted, &rule, server, sni, origins));
            }
        }
        chains
    }

    /// The chains of TLS that goes on to where TLS rules say.
    fn passed_on(
        &self,
        server: &GatewayServer,
        sni: &mut HashSet<String>,
        origins: &mut Vec<ObjectRef>,
    ) -> Vec<Chain> {
        let place = self.place(server);
        let wanted = self.wanted(&place, port_name(server), false);
        let rules = self.rules(server).into_iter();
        rules.flat_map(|rule| by_name(&wanted, &rule, server, sni, origins)).collect()
    }

    /// The chains of the mesh's own TLS that goes on to the cluster that its server name names:
    /// one for each port and subset of the services that the server exposes.
    fn passed_on_by_name(&self, server: &GatewayServer) -> Vec<Chain> {
        let hosts = server.sni_hosts();
        let place = self.place(server);
        let wanted = self.wanted(&place, port_name(server), false);
        let mut chains = Vec::new();
        let visible = self.cx.get::<Visible>(&self.viewer.namespace);
        let exposed = visible.values().filter(|service| {
            !service.external && hosts.iter().any(|host| fit(host, &service.id.host).is_some())
        });
        for service in exposed {
            let merged = self.cx.get::<MergedPolicy>(&policies(self.cx, self.viewer, service));
            let subsets = merged.subsets.iter().map(|subset| subset.name.as_str());
            let subsets: Vec<&str> = std::iter::once("").chain(subsets).collect();
            for port in service.ports.iter().filter(|port| port.protocol != Protocol::Datagram) {
                for subset in &subsets {
                    chains.push(Chain {
                        sni: vec![name::outbound_sni(port.number, subset, &service.id.host)],
                        application_protocols: MESH_PROTOCOLS,
                        filters: wanted.to_named((service, port), subset, &merged),
                        ..Chain::default()
                    });
                }
            }
        }
        chains
    }
}

/// The chains of a rule's parts about TLS. `sni` are the names that are taken on the port.
fn by_name(
    wanted: &Wanted<'_, '_>,
    rule: &Rule,
    server: &GatewayServer,
    sni: &mut HashSet<String>,
    origins: &mut Vec<ObjectRef>,
) -> Vec<Chain> {
    let gateway = server.gateway_name();
    let mut chains = Vec::new();
    for tls in rule.spec.tls.iter().filter(|tls| !tls.route.is_empty()) {
        for found in &tls.r#match {
            let here = (found.port == 0 || found.port == u32::from(server.number))
                && (found.gateways.is_empty() || found.gateways.contains(&gateway));
            // Envoy refuses two chains for one name: the older rule has it.
            if !here || found.sni_hosts.iter().any(|name| sni.contains(name)) {
                continue;
            }
            sni.extend(found.sni_hosts.iter().cloned());
            origins.extend(rule.origins.iter().cloned());
            chains.push(Chain {
                sni: found.sni_hosts.clone(),
                filters: wanted.to_targets(&tls.route, &rule.meta),
                ..Chain::default()
            });
        }
    }
    chains
}

/// What a server's author calls its port.
fn port_name(server: &GatewayServer) -> &str {
    server.server.port.as_ref().map_or("", |port| port.name.as_str())
}

/// Whether a server's clients are of the mesh.
fn is_of_mesh(server: &GatewayServer) -> bool {
    server.server.tls.as_ref().is_some_and(|tls| tls.mode == Some(ServerTlsMode::IstioMutual))
}
