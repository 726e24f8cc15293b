//! A sidecar's listener for what calls its workload: `virtualInbound` (by default 15006), with chains for all
//! other ports and some for each port of the workload that a service leads to, or that its Sidecar
//! declares: which ones depends on what PeerAuthentications say of the port, see [`peer`]. A Sidecar may
//! also ask for listeners that clients connect to themselves.
//!
//! A proxy without the mesh's certificates cannot end mutual TLS. Where that is all that a port takes
//! it takes nothing then; elsewhere it takes plain text.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use leno_api::proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use leno_derive::{Cx, Query};

use super::filters::{self, FilterScope, Side};
use super::http::{Routes, connection_manager, stat_prefix};
use super::tcp::{to_fixed, to_nowhere};
use super::{Frame, bare, bound, encode, http_inspector, listener_filter, tls, tls_inspector};
use crate::model::gateway::ServerTls;
use crate::model::mesh::MeshConfig;
use crate::model::sidecar::IngressListener;
use crate::model::{Kind, ObjectRef};
use crate::registry::protocol::Protocol;
use crate::registry::targets::{Target, Targets, Workload};
use crate::scope::security::{self as policies, PeerMode, Peers, PeersOf};
use crate::scope::sidecar::ingress::{Ingress, IngressOf};
use crate::scope::sidecar::narrowing;
use crate::scope::{Abilities, Families, Identity, ProxyOptions};
use crate::translate::name::{self, Counted};
use crate::translate::proto::{core, listener, route, ty};
use crate::translate::resource::{Resource, istio_metadata, pack, text};
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
    /// Whether connections arrive by iptables.
    pub(super) captures: bool,
    /// The proxy's own, where nothing is captured.
    pub(super) address: Option<IpAddr>,
    /// For TPROXY, which keeps the client's address.
    pub(super) transparent: bool,
    pub(super) families: Families,
    pub(super) options: ProxyOptions,
    /// Whether the proxy has the mesh's certificates.
    pub(super) certificates: bool,
    /// Who it is, if it says so in spans.
    pub(super) identity: Arc<Identity>,
}

/// The listeners of a workload: the one that captured connections arrive at, and those of its Sidecar
/// that clients connect to themselves.
pub(super) struct InboundListeners;

impl Query for InboundListeners {
    type Key = InboundKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "inbound-listeners";

    fn derive(cx: &Cx<'_>, key: &InboundKey) -> Vec<Arc<Resource>> {
        let ingress = cx.get::<IngressOf>(&key.workload);
        let ingress = ingress.as_ref().as_ref().filter(|ingress| !ingress.listeners.is_empty());
        if !key.captures && ingress.is_none() {
            return Vec::new();
        }
        let frame = Frame::new(cx, &key.options);
        let Workload { namespace, labels } = &key.workload;
        let scope = FilterScope::new(Side::Inbound, namespace, labels, &key.options, &key.identity);
        let scope = FilterScope { sidecar: narrowing(cx, &key.workload), ..scope };
        let maker = Maker {
            cx,
            frame: &frame,
            scope: &scope,
            wildcard: frame.wildcards(key.families),
            peers: cx.get::<PeersOf>(&key.workload),
            certificates: key.certificates,
        };
        let targets = cx.get::<Targets>(&key.workload);
        let mut origins = policies::origins(cx, &key.workload);
        origins.extend(maker.peers.origins.iter().cloned());
        origins.extend(telemetry::origins(cx, &scope));
        origins.extend(targets.iter().map(|target| target.service.id.object.clone()));
        let (mut inbounds, mut listeners) = (Vec::new(), Vec::new());
        match ingress {
            None => inbounds.extend(of_targets(&targets, &frame.mesh)),
            Some(ingress) => {
                origins.push(ingress.sidecar.of(Kind::Sidecar));
                for listener in &ingress.listeners {
                    let Some(inbound) = maker.of_listener(ingress, listener, key.address) else { continue };
                    if !listener.is_bound(key.captures) {
                        inbounds.push(inbound);
                    } else if inbound.port != frame.inbound_port() && inbound.port != frame.outbound_port() {
                        listeners.push(Arc::new(maker.bound(&inbound, origins.clone())));
                    }
                }
                inbounds.sort_by_key(|inbound| inbound.port);
            }
        }
        if key.captures {
            listeners.insert(0, Arc::new(maker.captured(&inbounds, key.transparent, origins)));
        }
        listeners
    }
}

/// The ports that services lead to.
fn of_targets(targets: &[Target], mesh: &MeshConfig) -> Vec<Inbound> {
    // Of two services on one port the older decides.
    let firsts = targets.chunk_by(|a, b| a.target == b.target).filter_map(<[Target]>::first);
    let inbounds = firsts.map(|first| {
        let port = first.service.port(first.port);
        let port_name = port.map_or("", |port| port.name.as_str());
        Inbound {
            port: first.target,
            passthrough: false,
            protocol: port.map_or(Protocol::Auto, |port| port.protocol),
            cluster: name::inbound(first.target),
            statistic: statistic(mesh, &Counted::service(&first.service, (first.port, port_name))),
            operation: format!("{}:{}/*", first.service.id.host, first.port),
            service_port: first.port,
            binds: Vec::new(),
            tls: None,
            metadata: None,
        }
    });
    inbounds.collect()
}

/// A name in statistics by the mesh's pattern for inbound clusters; `None` if it has none.
fn statistic(mesh: &MeshConfig, counted: &Counted<'_>) -> Option<String> {
    let pattern = &mesh.inbound_cluster_stat_name;
    (!pattern.is_empty()).then(|| counted.name(pattern))
}

/// A port of the workload.
struct Inbound {
    /// Its number; 0 for all that no other chain is for.
    port: u16,
    /// Whether no service leads to it.
    passthrough: bool,
    protocol: Protocol,
    cluster: String,
    /// What statistics of its connections are called, if not as the cluster.
    statistic: Option<String>,
    /// What a trace calls its requests.
    operation: String,
    /// The port of the service that leads to it.
    service_port: u16,
    /// Its own addresses; empty for all.
    binds: Vec<String>,
    /// TLS of others than the mesh's proxies.
    tls: Option<ServerTls>,
    /// The Sidecar that it comes from.
    metadata: Option<core::Metadata>,
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
    /// The listener that captured connections arrive at.
    fn captured(&self, inbounds: &[Inbound], transparent: bool, origins: Vec<ObjectRef>) -> Resource {
        let mut chains = vec![self.black_hole()];
        // Ports that policies mention and that are not declared differ from the others of these.
        let mentioned = self.peers.ports.keys().copied();
        let undeclared = mentioned.filter(|port| inbounds.iter().all(|inbound| inbound.port != *port));
        let undeclared_port = Counted { port: (0, name::VIRTUAL_INBOUND), ..Counted::default() };
        for port in std::iter::once(0).chain(undeclared) {
            chains.extend(self.port_chains(&Inbound {
                port,
                passthrough: true,
                protocol: Protocol::Auto,
                cluster: name::INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
                statistic: statistic(&self.frame.mesh, &undeclared_port),
                operation: ":0/*".to_owned(),
                service_port: 0,
                binds: Vec::new(),
                tls: None,
                metadata: None,
            }));
        }
        for inbound in inbounds {
            chains.extend(self.port_chains(inbound));
        }
        let port = self.frame.inbound_port();
        let message = bare(name::VIRTUAL_INBOUND, self.wildcard, port, core::TrafficDirection::Inbound);
        let mut message = self.complete(message, chains);
        message.transparent = transparent.then_some(true);
        let mut filters =
            vec![listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default(), None)];
        if transparent {
            let config = OriginalSrc { mark: TPROXY_MARK, ..OriginalSrc::default() };
            filters.push(listener_filter("envoy.filters.listener.original_src", &config, None));
        }
        message.listener_filters.splice(0..0, filters);
        encode(self.frame, name::VIRTUAL_INBOUND, &message, origins)
    }

    /// A listener that clients connect to themselves.
    fn bound(&self, inbound: &Inbound, origins: Vec<ObjectRef>) -> Resource {
        let name = self.listener_name(inbound);
        let binds: Vec<&str> = match inbound.binds.as_slice() {
            [] => self.wildcard.to_vec(),
            binds => binds.iter().map(String::as_str).collect(),
        };
        let message = bare(&name, &binds, inbound.port, core::TrafficDirection::Inbound);
        encode(self.frame, &name, &self.complete(message, self.port_chains(inbound)), origins)
    }

    fn complete(
        &self,
        message: listener::Listener,
        chains: Vec<listener::FilterChain>,
    ) -> listener::Listener {
        let mut message = bound(message);
        message.continue_on_listener_filters_timeout = true;
        message.listener_filters_timeout = Some(self.frame.mesh.protocol_detection_timeout.to_proto());
        message.listener_filters = inspectors(&chains);
        message.access_log = access_log::of_listener(self.cx, self.scope);
        message.filter_chains = chains;
        message
    }

    /// A port that a Sidecar declares; `own` is the proxy's address where nothing is captured.
    // Deviation: where a Sidecar names no address istiod writes the replica's own, which only shows in
    // the names of chains, unless nothing is captured.
    fn of_listener(
        &self,
        ingress: &Ingress,
        listener: &IngressListener,
        own: Option<IpAddr>,
    ) -> Option<Inbound> {
        let port = listener.number().filter(|_| listener.protocol() != Protocol::Datagram)?;
        let binds = match (listener.bind.as_str(), own) {
            ("", Some(own)) => vec![own.to_string()],
            ("", None) => Vec::new(),
            (bind, _) => vec![bind.to_owned()],
        };
        let host = ingress.host();
        let port_name = listener.port.as_ref().map_or("", |port| port.name.as_str());
        let counted = Counted { host: &host, port: (port, port_name), ..Counted::default() };
        let path = name::config_path("sidecar", &ingress.sidecar.namespace, &ingress.sidecar.name);
        Some(Inbound {
            port,
            passthrough: false,
            protocol: listener.protocol(),
            cluster: name::inbound(port),
            statistic: statistic(&self.frame.mesh, &counted),
            operation: format!("{host}:{port}/*"),
            service_port: port,
            binds,
            tls: listener.tls.clone(),
            metadata: Some(istio_metadata([("config", text(path))])),
        })
    }

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
        // Deviation: istiod ends the TLS that a Sidecar asks for only with ENABLE_TLS_ON_SIDECAR_INGRESS.
        // As there, it gives way to the mesh's own TLS where a port takes that.
        if let Some(settings) = inbound.tls.as_ref().filter(|_| mode == PeerMode::Disable) {
            return vec![self.tls_chain(inbound, settings)];
        }
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
            let prefix = inbound.statistic.as_ref().unwrap_or(&inbound.cluster);
            to_fixed(self.cx, self.frame, self.scope, prefix, &inbound.cluster)
        };
        listener::FilterChain {
            name: self.chain_name(inbound, chain.http),
            filter_chain_match: Some(found),
            filters,
            transport_socket: chain.mutual.then(|| {
                let exchanges = self.scope.abilities.has(Abilities::TCP_PEERS);
                peer::socket(&self.frame.mesh, chain.http, exchanges)
            }),
            metadata: inbound.metadata.clone(),
            ..listener::FilterChain::default()
        }
    }

    /// The chain of a port whose TLS is that of others than the mesh's proxies.
    fn tls_chain(&self, inbound: &Inbound, settings: &ServerTls) -> listener::FilterChain {
        let http = inbound.protocol.is_http();
        let chain = PortChain { http, mutual: false, transport: TLS, offered: Offered::Any };
        let context = tls::of_settings(settings, !http, &self.frame.mesh, self.scope.abilities.into());
        listener::FilterChain {
            transport_socket: context.map(|context| core::TransportSocket {
                name: "envoy.transport_sockets.tls".to_owned(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
            }),
            ..self.port_chain(inbound, &chain)
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
        let own = inbound.binds.first().map(String::as_str);
        name::listener(own.or(self.wildcard.first().copied()).unwrap_or_default(), inbound.port)
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

/// What must be known of a connection before its chain is: what it speaks, but not on ports where that
/// is declared: it costs, and servers may speak first.
fn inspectors(chains: &[listener::FilterChain]) -> Vec<listener::ListenerFilter> {
    let mut filters = Vec::new();
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
pub(super) fn on_ports(ports: &[u32]) -> Option<listener::ListenerFilterChainMatchPredicate> {
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
