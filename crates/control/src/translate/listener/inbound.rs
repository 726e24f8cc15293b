//! A sidecar's listener for what calls its workload: `virtualInbound` (by default 15006), with chains for all
//! other ports and some for each port of the workload that a service leads to: which ones depends on
//! what PeerAuthentications say of the port, see [`peer`].
//!
//! A proxy without the mesh's certificates cannot end mutual TLS. Where that is all that a port takes
//! it takes nothing then; elsewhere it takes plain text.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::filters::{self, FilterScope, Side};
use super::http::{Routes, connection_manager, stat_prefix};
use super::tcp::{to_fixed, to_nowhere};
use super::{Frame, bare, bound, http_inspector, listener_filter, tls_inspector};
use crate::registry::protocol::Protocol;
use crate::registry::targets::{Targets, Workload};
use crate::scope::security::{self as policies, PeerMode, Peers, PeersOf};
use crate::scope::{Abilities, Families, Identity, ProxyOptions};
use crate::translate::name;
use crate::translate::proto::{core, listener, route, ty};
use crate::translate::resource::Resource;
use crate::translate::route::{matcher, retry};
use crate::translate::security::peer::{self, Offered, PortChain};
use crate::translate::telemetry::{self, access_log};

/// The transport of connections in TLS.
const TLS: &str = "tls";

/// Protocols that only the http inspector finds.
const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];

/// The mark of connections with their client's address, by which iptables knows them.
const TPROXY_MARK: u32 = 1337;

/// What the inbound listener depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct InboundKey {
    pub(super) workload: Workload,
    /// For TPROXY, which keeps the client's address.
    pub(super) transparent: bool,
    pub(super) families: Families,
    pub(super) options: ProxyOptions,
    /// Whether the proxy has the mesh's certificates.
    pub(super) certificates: bool,
    /// Who it is, if it says so in spans.
    pub(super) identity: Arc<Identity>,
}

/// The listener of a workload.
pub(super) struct VirtualInbound;

impl Query for VirtualInbound {
    type Key = InboundKey;
    type Value = Resource;
    const NAME: &'static str = "virtual-inbound";

    fn derive(cx: &Cx<'_>, key: &InboundKey) -> Resource {
        let frame = Frame::new(cx, &key.options);
        let Workload { namespace, labels } = &key.workload;
        let scope = FilterScope::new(Side::Inbound, namespace, labels, &key.options, &key.identity);
        let maker = Maker {
            cx,
            frame: &frame,
            scope: &scope,
            wildcard: frame.wildcards(key.families),
            peers: cx.get::<PeersOf>(&key.workload),
            certificates: key.certificates,
        };
        let targets = cx.get::<Targets>(&key.workload);
        let mut chains = vec![maker.black_hole()];
        // Ports that policies mention and no service leads to differ from the others of these.
        let mentioned = maker.peers.ports.keys().copied();
        let undeclared = mentioned.filter(|port| targets.iter().all(|target| target.target != *port));
        for port in std::iter::once(0).chain(undeclared) {
            chains.extend(maker.port_chains(&Inbound {
                port,
                passthrough: true,
                protocol: Protocol::Auto,
                cluster: name::INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
                operation: ":0/*".to_owned(),
                service_port: 0,
            }));
        }
        for group in targets.chunk_by(|a, b| a.target == b.target) {
            // Of two services on one port the older decides.
            let Some(first) = group.first() else { continue };
            chains.extend(maker.port_chains(&Inbound {
                port: first.target,
                passthrough: false,
                protocol: first.service.port(first.port).map_or(Protocol::Auto, |port| port.protocol),
                cluster: name::inbound(first.target),
                operation: format!("{}:{}/*", first.service.id.host, first.port),
                service_port: first.port,
            }));
        }
        let direction = core::TrafficDirection::Inbound;
        let message = bare(name::VIRTUAL_INBOUND, maker.wildcard, frame.inbound_port(), direction);
        let mut message = bound(message);
        message.transparent = key.transparent.then_some(true);
        message.continue_on_listener_filters_timeout = true;
        message.listener_filters_timeout = Some(frame.mesh.protocol_detection_timeout.to_proto());
        message.listener_filters = listener_filters(&chains, key.transparent);
        message.access_log = access_log::of_listener(cx, &scope);
        message.filter_chains = chains;
        let mut origins = policies::origins(cx, &key.workload);
        origins.extend(maker.peers.origins.iter().cloned());
        origins.extend(telemetry::origins(cx, &scope));
        origins.extend(targets.iter().map(|target| target.service.id.object.clone()));
        Resource::new(name::VIRTUAL_INBOUND, &message, origins)
    }
}

/// A port of the workload.
struct Inbound {
    /// Its number; 0 for all that no other chain is for.
    port: u16,
    /// Whether no service leads to it.
    passthrough: bool,
    protocol: Protocol,
    cluster: String,
    /// What a trace calls its requests.
    operation: String,
    /// The port of the service that leads to it.
    service_port: u16,
}

struct Maker<'a, 'c> {
    cx: &'a Cx<'c>,
    frame: &'a Frame,
    scope: &'a FilterScope,
    wildcard: &'static [&'static str],
    /// What the ports take.
    peers: Arc<Peers>,
    certificates: bool,
}

impl Maker<'_, '_> {
    /// A connection made to the proxy itself would be sent to the proxy again, for ever.
    fn black_hole(&self) -> listener::FilterChain {
        listener::FilterChain {
            name: "virtualInbound-blackhole".to_owned(),
            filter_chain_match: Some(port_match(self.frame.inbound_port())),
            filters: to_nowhere(self.cx, self.scope),
            ..listener::FilterChain::default()
        }
    }

    /// The chains of one port: for HTTP, for bytes, or for both, over TLS and in plain text.
    fn port_chains(&self, inbound: &Inbound) -> Vec<listener::FilterChain> {
        let mode = self.peers.mode(inbound.port);
        let mode = match mode {
            _ if self.certificates => mode,
            PeerMode::Strict => return vec![self.closed(inbound)],
            PeerMode::Permissive | PeerMode::Disable => PeerMode::Disable,
        };
        peer::chains(mode, inbound.protocol).iter().map(|chain| self.port_chain(inbound, chain)).collect()
    }

    fn port_chain(&self, inbound: &Inbound, chain: &PortChain) -> listener::FilterChain {
        let mut found = port_match(inbound.port);
        chain.transport.clone_into(&mut found.transport_protocol);
        let offered = match chain.offered {
            Offered::Any => &[][..],
            Offered::PlainHttp => self.frame.plain_http(),
            Offered::These(protocols) => protocols,
        };
        found.application_protocols = offered.iter().map(|&protocol| protocol.to_owned()).collect();
        let filters = if chain.http {
            let cluster = &inbound.cluster;
            let prefix = match inbound.passthrough {
                true => format!("{cluster};"),
                false => stat_prefix(Side::Inbound, &self.listener_name(inbound)),
            };
            let routes = Routes::Inline(Box::new(self.routes(inbound)));
            let protocol = Some(inbound.protocol);
            let mut filters = filters::peers(self.cx, self.scope);
            filters.push(connection_manager(self.cx, self.frame, self.scope, prefix, routes, protocol));
            filters
        } else {
            to_fixed(self.cx, self.frame, self.scope, &inbound.cluster, &inbound.cluster)
        };
        listener::FilterChain {
            name: self.chain_name(inbound, chain.http),
            filter_chain_match: Some(found),
            filters,
            transport_socket: chain.mutual.then(|| {
                let exchanges = self.scope.abilities.has(Abilities::TCP_PEERS);
                peer::socket(&self.frame.mesh, chain.http, exchanges)
            }),
            ..listener::FilterChain::default()
        }
    }

    /// The chain of a port that would take mutual TLS only, which the proxy cannot end. Without it
    /// connections to the port would find the chains for all ports.
    fn closed(&self, inbound: &Inbound) -> listener::FilterChain {
        listener::FilterChain {
            name: self.chain_name(inbound, false),
            filter_chain_match: Some(port_match(inbound.port)),
            filters: to_nowhere(self.cx, self.scope),
            ..listener::FilterChain::default()
        }
    }

    /// What the port's listener would be called if it had one.
    fn listener_name(&self, inbound: &Inbound) -> String {
        name::listener(self.wildcard.first().copied().unwrap_or_default(), inbound.port)
    }

    fn chain_name(&self, inbound: &Inbound, http: bool) -> String {
        match (inbound.passthrough, http) {
            (true, true) => "virtualInbound-catchall-http".to_owned(),
            (true, false) => name::VIRTUAL_INBOUND.to_owned(),
            (false, _) => self.listener_name(inbound),
        }
    }

    /// The routes of a port: everything to the workload.
    fn routes(&self, inbound: &Inbound) -> route::RouteConfiguration {
        // "reset-before-request" does not go well with streams of gRPC.
        let retries = (!inbound.protocol.is_grpc()).then(retry::inbound);
        let action = route::RouteAction {
            timeout: Some(prost_types::Duration::default()),
            max_stream_duration: Some(route::route_action::MaxStreamDuration {
                max_stream_duration: Some(prost_types::Duration::default()),
                grpc_timeout_header_max: Some(prost_types::Duration::default()),
                ..route::route_action::MaxStreamDuration::default()
            }),
            retry_policy: retries,
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(inbound.cluster.clone())),
            ..route::RouteAction::default()
        };
        let operation = inbound.operation.clone();
        let message = route::Route {
            name: "default".to_owned(),
            r#match: Some(matcher::everything()),
            decorator: Some(route::Decorator { operation, ..route::Decorator::default() }),
            action: Some(route::route::Action::Route(action)),
            ..route::Route::default()
        };
        route::RouteConfiguration {
            name: inbound.cluster.clone(),
            virtual_hosts: vec![route::VirtualHost {
                name: format!("inbound|http|{}", inbound.service_port),
                domains: vec!["*".to_owned()],
                routes: vec![message],
                ..route::VirtualHost::default()
            }],
            validate_clusters: Some(false),
            ..route::RouteConfiguration::default()
        }
    }
}

/// What must be known of a connection before its chain is: where it was meant to go, and what it
/// speaks, but not on ports where that is declared: it costs, and servers may speak first.
fn listener_filters(chains: &[listener::FilterChain], transparent: bool) -> Vec<listener::ListenerFilter> {
    use leno_api::proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
    use leno_api::proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
    let mut filters =
        vec![listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default(), None)];
    if transparent {
        let config = OriginalSrc { mark: TPROXY_MARK, ..OriginalSrc::default() };
        filters.push(listener_filter("envoy.filters.listener.original_src", &config, None));
    }
    let mut looks: BTreeMap<u32, Looks> = BTreeMap::new();
    for found in chains.iter().filter_map(|chain| chain.filter_chain_match.as_ref()) {
        let looks = looks.entry(found.destination_port.unwrap_or(0)).or_default();
        looks.tls |= found.transport_protocol == TLS;
        looks.http |=
            found.application_protocols.iter().any(|protocol| PLAIN_HTTP.contains(&protocol.as_str()));
    }
    // Port 0 stands for all that have no chain of their own.
    let ports = |wanted: &dyn Fn(&Looks) -> bool| -> Vec<u32> {
        looks.iter().filter(|(_, looks)| wanted(looks)).map(|(port, _)| *port).collect()
    };
    let others_tls = looks.get(&0).is_some_and(|looks| looks.tls);
    if looks.values().any(|looks| looks.tls) {
        let disabled = if others_tls {
            on_ports(&ports(&|looks| !looks.tls))
        } else {
            on_ports(&ports(&|looks| looks.tls)).map(not)
        };
        filters.push(listener::ListenerFilter { filter_disabled: disabled, ..tls_inspector() });
    }
    // After the other, so that it does not look into TLS.
    if looks.values().any(|looks| looks.http) {
        filters.push(http_inspector(on_ports(&ports(&|looks| !looks.http))));
    }
    filters
}

/// What must be looked at to choose among the chains of a port.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    tls: bool,
    http: bool,
}

/// Holds where another condition does not.
fn not(
    condition: listener::ListenerFilterChainMatchPredicate,
) -> listener::ListenerFilterChainMatchPredicate {
    use listener::listener_filter_chain_match_predicate::Rule;
    listener::ListenerFilterChainMatchPredicate { rule: Some(Rule::NotMatch(Box::new(condition))) }
}

/// Holds for connections to certain ports; `None` for none.
fn on_ports(ports: &[u32]) -> Option<listener::ListenerFilterChainMatchPredicate> {
    use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let range = |port: &u32| {
        let start = i32::try_from(*port).unwrap_or(i32::MAX - 1);
        listener::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::DestinationPortRange(ty::v3::Int32Range { start, end: start + 1 })),
        }
    };
    let mut rules: Vec<_> = ports.iter().map(range).collect();
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(listener::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules })),
        }),
    }
}

fn port_match(port: u16) -> listener::FilterChainMatch {
    listener::FilterChainMatch {
        destination_port: (port != 0).then(|| u32::from(port)),
        ..listener::FilterChainMatch::default()
    }
}
