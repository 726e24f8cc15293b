//! Which servers a gateway proxy has: the Gateways that select it, merged by port as Istio does.
//!
//! Servers are taken oldest Gateway first. Servers of plain HTTP on one port share a route
//! configuration; servers of TLS on one port are told apart by SNI, so no host may occur twice; what
//! cannot share its port with an older server is left out, and reported as a [`Conflict`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_derive::{Cx, Query};

use crate::model::gateway::{Gateway, Server, ServerTlsMode};
use crate::model::inputs::Gateways;
use crate::model::selector::selects;
use crate::model::switches::SwitchInput;
use crate::model::{Config, Key, Kind, Meta, ObjectRef};
use crate::registry::targets::{Targets, Workload};
use crate::scope::gateway_api::listeners;
use crate::scope::ingress;
use crate::translate::name;

/// What a server does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// HTTP in plain text.
    Http,
    /// HTTP over TLS that ends here.
    Https,
    /// Bytes in plain text.
    Tcp,
    /// Bytes over TLS that ends here.
    Tls,
    /// TLS that goes on to where rules say.
    Passthrough,
    /// TLS that goes on to the cluster that its SNI names.
    AutoPassthrough,
}

impl ServerKind {
    /// What a server's port and TLS settings ask for; `None` for a protocol that is not known.
    pub(crate) fn of(server: &Server) -> Option<ServerKind> {
        let protocol = server.port.as_ref()?.protocol.to_ascii_uppercase();
        let tls = server.tls.as_ref();
        let through = match tls.map(|tls| tls.mode.unwrap_or(ServerTlsMode::Passthrough)) {
            Some(ServerTlsMode::Passthrough) => Some(ServerKind::Passthrough),
            Some(ServerTlsMode::AutoPassthrough) => Some(ServerKind::AutoPassthrough),
            _ => None,
        };
        match protocol.as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => Some(ServerKind::Http),
            "HTTPS" => {
                Some(through.unwrap_or(if tls.is_some() { ServerKind::Https } else { ServerKind::Tcp }))
            }
            "TLS" | "TCP" | "MONGO" | "REDIS" | "MYSQL" => {
                Some(through.unwrap_or(if tls.is_some() { ServerKind::Tls } else { ServerKind::Tcp }))
            }
            _ => None,
        }
    }

    /// Whether its connections are told apart by SNI.
    fn is_tls(self) -> bool {
        matches!(
            self,
            ServerKind::Https | ServerKind::Tls | ServerKind::Passthrough | ServerKind::AutoPassthrough
        )
    }
}

/// A port that a gateway proxy listens on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayPort {
    /// Where it listens; empty for all addresses.
    pub(crate) bind: String,
    /// The port of the proxy, after the translation that its Service does.
    pub(crate) port: u16,
    /// Those who share it, oldest Gateway first.
    pub(crate) servers: Vec<GatewayServer>,
}

/// One server of one Gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayServer {
    /// The object that it comes from.
    pub(crate) object: ObjectRef,
    /// Of a listener of the Gateway API the name of what is derived from it.
    pub(crate) gateway: Key,
    /// Its place in the Gateway's list.
    pub(crate) index: usize,
    pub(crate) kind: ServerKind,
    pub(crate) server: Arc<Server>,
    /// The port that its author wrote.
    pub(crate) number: u16,
    /// The name of its route configuration; empty where no HTTP is spoken.
    pub(crate) route: String,
}

impl GatewayServer {
    /// `namespace/name` of the Gateway.
    pub(crate) fn gateway_name(&self) -> String {
        self.gateway.to_string()
    }

    /// Its hosts, each with the namespace that a prefix restricts it to.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.server.hosts().map(|(namespace, host)| match namespace {
            Some(".") => (Some(self.gateway.namespace.as_str()), host),
            namespace => (namespace, host),
        })
    }

    /// The hosts that a rule of a namespace may use.
    pub(crate) fn hosts_for<'s>(&'s self, namespace: &'s str) -> impl Iterator<Item = &'s str> {
        self.hosts().filter(move |(only, _)| only.is_none_or(|only| only == namespace)).map(|(_, host)| host)
    }

    /// The server names that its connections ask for, sorted.
    pub(crate) fn sni_hosts(&self) -> Vec<String> {
        let hosts: BTreeSet<&str> = self.hosts().map(|(_, host)| host).collect();
        hosts.into_iter().map(str::to_owned).collect()
    }

    /// Whether requests in plain text are sent to the HTTPS port.
    pub(crate) fn redirects(&self) -> bool {
        self.server.tls.as_ref().is_some_and(|tls| tls.https_redirect)
    }
}

/// A server that is left out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflict {
    pub(crate) gateway: Key,
    pub(crate) index: usize,
    pub(crate) port: u16,
    pub(crate) why: Clash,
}

/// Why a server is left out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Clash {
    /// An older server, of the Gateway given, uses the port in another way.
    Port(Key),
    /// Older servers of TLS on the port have these hosts.
    Hosts(Vec<String>),
    /// Another server of the same Gateway and port has the same port name.
    PortName,
}

/// The ports of a gateway proxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Attached {
    /// In the order of their numbers and addresses.
    pub(crate) ports: Vec<GatewayPort>,
    pub(crate) conflicts: Vec<Conflict>,
}

impl Attached {
    /// Whether any server passes TLS on to the clusters that it names.
    pub(crate) fn passes_on(&self) -> bool {
        let mut servers = self.ports.iter().flat_map(|port| &port.servers);
        servers.any(|server| server.kind == ServerKind::AutoPassthrough)
    }

    /// All servers in a route configuration's name, in the order in which they count.
    pub(crate) fn servers_of<'a>(&'a self, route: &'a str) -> impl Iterator<Item = &'a GatewayServer> {
        self.ports.iter().flat_map(|port| &port.servers).filter(move |server| server.route == route)
    }
}

/// What a gateway workload listens on.
pub(crate) struct AttachedGateways;

impl Query for AttachedGateways {
    type Key = Workload;
    type Value = Attached;
    const NAME: &'static str = "attached-gateways";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Attached {
        let scoped = cx.input::<SwitchInput>(&()).is_some_and(|switches| switches.scope_gateway_to_namespace);
        let gateways: Vec<Arc<Config<Gateway>>> = cx
            .all::<Gateways>()
            .iter()
            .filter(|key| !scoped || key.namespace == workload.namespace)
            .filter_map(|key| cx.input::<Gateways>(key))
            .filter(|gateway| selects(&gateway.spec.selector, &workload.labels))
            .collect();
        let targets = cx.get::<Targets>(workload);
        let mut sources = Vec::new();
        for gateway in &gateways {
            let key = gateway.meta.key();
            for (index, server) in gateway.spec.servers.iter().enumerate() {
                let number = server.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
                let Some(number) = number else { continue };
                // The Service in front of the gateway leads port 80 to, say, 8080 of the pod.
                let found = targets.iter().find(|target| target.port == number);
                sources.push(Source {
                    age: Age::of(&gateway.meta),
                    object: key.of(Kind::Gateway),
                    key: key.clone(),
                    index,
                    server: Arc::new(server.clone()),
                    number,
                    ports: vec![found.map_or(number, |found| found.target)],
                });
            }
        }
        for derived in ingress::gateways_of(cx, &workload.labels) {
            if scoped && derived.key.namespace != workload.namespace {
                continue;
            }
            for (index, server) in derived.servers.into_iter().enumerate() {
                let number = server.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
                let Some(number) = number else { continue };
                let found = targets.iter().find(|target| target.port == number);
                sources.push(Source {
                    // As in Istio they are of no age, and so before all others.
                    age: Age(String::new(), derived.key.name.clone(), derived.key.namespace.clone()),
                    object: derived.ingress.of(Kind::Ingress),
                    key: derived.key.clone(),
                    index,
                    server: Arc::new(server),
                    number,
                    ports: vec![found.map_or(number, |found| found.target)],
                });
            }
        }
        for (meta, derived, ports) in listeners::of_workload(cx, workload, &targets) {
            sources.push(Source {
                age: Age::of(&meta),
                object: derived.object(),
                key: derived.key,
                index: 0,
                server: derived.server,
                number: derived.port,
                ports,
            });
        }
        sources.sort_by(|a, b| a.age.cmp(&b.age));
        let mut merge = Merge::default();
        for source in &sources {
            for port in &source.ports {
                merge.add(source, *port);
            }
        }
        merge.attached.ports.sort_by(|a, b| (a.port, &a.bind).cmp(&(b.port, &b.bind)));
        merge.attached
    }
}

/// A server before it is merged.
struct Source {
    age: Age,
    object: ObjectRef,
    key: Key,
    index: usize,
    server: Arc<Server>,
    /// The port that its author wrote, and those of the proxy that it leads to.
    number: u16,
    ports: Vec<u16>,
}

/// What Istio orders competing objects by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Age(String, String, String);

impl Age {
    fn of(meta: &Meta) -> Age {
        let (created, name, namespace) = meta.age();
        Age(created.to_owned(), name.to_owned(), namespace.to_owned())
    }
}

/// The state of merging.
#[derive(Default)]
struct Merge {
    attached: Attached,
    /// For each port, the first server of plain text: its address, its kind and its Gateway.
    plain: BTreeMap<u16, (String, ServerKind, Key)>,
    /// For each port, the hosts of servers with TLS settings and the address of each.
    hosts: BTreeMap<u16, BTreeMap<String, String>>,
    routes: BTreeSet<String>,
}

impl Merge {
    fn add(&mut self, source: &Source, port: u16) {
        let Source { key: gateway, index, server, number, .. } = source;
        let (index, number) = (*index, *number);
        let Some(kind) = ServerKind::of(server) else { return };
        let bind = server.bind.clone();
        let route = match kind {
            ServerKind::Http => name::gateway_route(port, &bind),
            ServerKind::Https => {
                let port_name = server.port.as_ref().map_or("", |port| &port.name);
                name::gateway_tls_route(number, port_name, &gateway.name, &gateway.namespace, &bind)
            }
            _ => String::new(),
        };
        let server = GatewayServer {
            object: source.object.clone(),
            gateway: gateway.clone(),
            index,
            kind,
            server: Arc::clone(server),
            number,
            route,
        };
        if let Some(why) = self.clash(&server, port, &bind) {
            let gateway = gateway.clone();
            self.attached.conflicts.push(Conflict { gateway, index, port, why });
            return;
        }
        if !kind.is_tls() {
            self.plain.entry(port).or_insert_with(|| (bind.clone(), kind, gateway.clone()));
        }
        if kind == ServerKind::Https {
            self.routes.insert(server.route.clone());
        }
        match self.attached.ports.iter_mut().find(|present| present.port == port && present.bind == bind) {
            Some(present) => present.servers.push(server),
            None => self.attached.ports.push(GatewayPort { bind, port, servers: vec![server] }),
        }
    }

    /// Why a server cannot be had beside those before it.
    fn clash(&mut self, server: &GatewayServer, port: u16, bind: &str) -> Option<Clash> {
        if server.server.tls.is_some() {
            let known = self.hosts.entry(port).or_default();
            // Whoever restricts a host to a namespace still asks for the same SNI.
            let hosts: Vec<String> = server.sni_hosts();
            let taken: Vec<String> = hosts
                .iter()
                .filter(|host| known.get(*host).is_some_and(|other| other == bind))
                .cloned()
                .collect();
            if !taken.is_empty() {
                return Some(Clash::Hosts(taken));
            }
            known.extend(hosts.into_iter().map(|host| (host, bind.to_owned())));
        }
        if let Some((other, kind, winner)) = self.plain.get(&port)
            && other == bind
            && !(*kind == ServerKind::Http && server.kind == ServerKind::Http)
        {
            return Some(Clash::Port(winner.clone()));
        }
        (server.kind == ServerKind::Https && self.routes.contains(&server.route)).then_some(Clash::PortName)
    }
}
