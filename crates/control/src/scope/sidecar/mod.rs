//! Which Sidecar applies to a workload, and what its proxy knows by it: services and rules.
//!
//! [`SidecarOf`] chooses. A [`Sight`] is a namespace as narrowed by a Sidecar: all proxies with the
//! same one see the same. [`Egress`] is one of the listeners that it consists of, with what that
//! imports (`imports.rs`), and `ingress.rs` has what comes in; without a Sidecar there is one that imports everything. Nothing here
//! walks the services of the mesh unless a Sidecar imports from all namespaces by a wildcard, so that
//! what it does not import costs its proxies nothing.

mod imports;
pub(crate) mod ingress;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_derive::{Cx, Query};

pub(crate) use self::imports::Imports;
use super::Viewer;
use super::gateway_api::ServiceRules;
use super::rules::{self, Rule, mesh_rules};
use crate::model::inputs::{Sidecars, SidecarsByNamespace};
use crate::model::selector::selects;
use crate::model::sidecar::{CaptureMode, EgressListener, Sidecar};
use crate::model::virtual_service::Destination;
use crate::model::{Config, Key, Kind};
use crate::registry::protocol::Protocol;
use crate::registry::targets::Workload;
use crate::registry::{self, AllServices, Mesh, Resolution, Service, ServicesIn, Visible, VisibleOnPort};

/// What begins the address of a socket of the file system.
pub(crate) const UNIX: &str = "unix://";

/// The protocol of a port at which the workload finds an HTTP proxy.
const HTTP_PROXY: &str = "HTTP_PROXY";

/// The Sidecar that applies to a workload: of its namespace the oldest that selects it, else the
/// oldest without a selector, else that of the mesh's root namespace without one.
pub(crate) struct SidecarOf;

impl Query for SidecarOf {
    type Key = Workload;
    type Value = Option<Key>;
    const NAME: &'static str = "sidecar-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Option<Key> {
        let all = cx.get::<SidecarsIn>(&workload.namespace);
        let own = all.iter().find(|(selector, _)| match selector {
            Some(labels) => selects(labels, &workload.labels),
            None => true,
        });
        if let Some((_, key)) = own {
            return Some(key.clone());
        }
        let root = cx.get::<Mesh>(&()).root_namespace.clone();
        let all = cx.get::<SidecarsIn>(&root);
        all.iter().find(|(selector, _)| selector.is_none()).map(|(_, key)| key.clone())
    }
}

/// The Sidecars of a namespace with what they select, in the order in which they count.
struct SidecarsIn;

impl Query for SidecarsIn {
    type Key = String;
    type Value = Vec<(Option<BTreeMap<String, String>>, Key)>;
    const NAME: &'static str = "sidecars-in";

    fn derive(cx: &Cx<'_>, namespace: &String) -> Vec<(Option<BTreeMap<String, String>>, Key)> {
        let keys = cx.bucket::<SidecarsByNamespace>(namespace);
        let mut all: Vec<Arc<Config<Sidecar>>> =
            keys.iter().filter_map(|key| cx.input::<Sidecars>(key)).collect();
        all.sort_by(|a, b| {
            let rank = |sidecar: &Config<Sidecar>| sidecar.spec.workload_selector.is_none();
            (rank(a), a.meta.age()).cmp(&(rank(b), b.meta.age()))
        });
        let selector =
            |sidecar: &Sidecar| sidecar.workload_selector.as_ref().map(|selector| selector.labels.clone());
        all.iter().map(|sidecar| (selector(&sidecar.spec), sidecar.meta.key())).collect()
    }
}

/// The Sidecar itself that applies to a workload.
pub(crate) fn of_workload(cx: &Cx<'_>, workload: &Workload) -> Option<Arc<Config<Sidecar>>> {
    let key = cx.get::<SidecarOf>(workload);
    cx.input::<Sidecars>(key.as_ref().as_ref()?)
}

/// What a proxy knows of the mesh by: its namespace, and the Sidecar that narrows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sight {
    pub(crate) namespace: String,
    /// One that is about more than what comes in.
    pub(crate) sidecar: Option<Key>,
}

impl Sight {
    /// All that a namespace sees, as gateways do.
    pub(crate) fn whole(namespace: &str) -> Sight {
        Sight { namespace: namespace.to_owned(), sidecar: None }
    }

    /// What the sidecar of a workload sees.
    pub(crate) fn of(cx: &Cx<'_>, workload: &Workload) -> Sight {
        Sight { namespace: workload.namespace.clone(), sidecar: narrowing(cx, workload) }
    }
}

impl Viewer {
    /// What it sees.
    pub(crate) fn sight(&self) -> Sight {
        Sight { namespace: self.namespace.clone(), sidecar: self.sidecar.clone() }
    }
}

/// The Sidecar of a workload, if it makes a difference to what the workload calls.
pub(crate) fn narrowing(cx: &Cx<'_>, workload: &Workload) -> Option<Key> {
    cx.get::<NarrowingOf>(workload).as_ref().clone()
}

/// Finds it.
struct NarrowingOf;

impl Query for NarrowingOf {
    type Key = Workload;
    type Value = Option<Key>;
    const NAME: &'static str = "narrowing-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Option<Key> {
        let sidecar = of_workload(cx, workload)?;
        let narrows = !sidecar.spec.egress.is_empty() || sidecar.spec.outbound_traffic_policy.is_some();
        narrows.then(|| sidecar.meta.key())
    }
}

/// A listener for what a workload calls.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Egress {
    /// `None` for all ports that the others are not for.
    pub(crate) port: Option<EgressPort>,
    /// An address, or a path with `unix://`; empty if it follows from what is called.
    pub(crate) bind: String,
    /// Whether the workload connects to it by itself, whatever is captured.
    pub(crate) bound: bool,
    pub(crate) imports: Imports,
}

/// The port of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EgressPort {
    /// 0 for a socket of the file system.
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// Whether workloads use it as an HTTP proxy, for services on all ports.
    pub(crate) is_proxy: bool,
}

impl Egress {
    fn new(listener: &EgressListener, namespace: &str) -> Egress {
        let port = listener.port.as_ref().map(|port| EgressPort {
            number: u16::try_from(port.number).unwrap_or_default(),
            name: port.name.clone(),
            protocol: Protocol::of_name(&port.protocol),
            is_proxy: port.protocol.eq_ignore_ascii_case(HTTP_PROXY),
        });
        Egress {
            port,
            bind: listener.bind.clone(),
            bound: listener.capture_mode == CaptureMode::None || listener.bind.starts_with(UNIX),
            imports: Imports::new(&listener.hosts, namespace),
        }
    }

    /// The one that is there without any.
    fn everything() -> Egress {
        Egress { port: None, bind: String::new(), bound: false, imports: Imports::everything() }
    }

    /// Whether its routes tell services apart by host and port.
    pub(crate) fn serves_all_ports(&self) -> bool {
        self.port.as_ref().is_some_and(|port| port.number == 0 || port.is_proxy)
    }

    /// The only port of services that it is for.
    fn only_port(&self) -> Option<u16> {
        self.port.as_ref().filter(|port| port.number != 0 && !port.is_proxy).map(|port| port.number)
    }
}

/// The listeners of a sight.
pub(crate) struct EgressOf;

impl Query for EgressOf {
    type Key = Sight;
    type Value = Vec<Egress>;
    const NAME: &'static str = "egress-of";

    fn derive(cx: &Cx<'_>, sight: &Sight) -> Vec<Egress> {
        let sidecar = sight.sidecar.as_ref().and_then(|key| cx.input::<Sidecars>(key));
        match sidecar {
            Some(sidecar) if !sidecar.spec.egress.is_empty() => {
                sidecar.spec.egress.iter().map(|listener| Egress::new(listener, &sight.namespace)).collect()
            }
            _ => vec![Egress::everything()],
        }
    }
}

/// Which listener of a sight is for a port, by the order in which they are written; `None` if none is.
pub(crate) fn egress_on(egress: &[Egress], port: u16) -> Option<usize> {
    let explicit = |egress: &Egress| egress.port.as_ref().is_some_and(|own| own.number == port && port != 0);
    egress.iter().position(|egress| egress.port.is_none() || explicit(egress))
}

/// Services by host, one per host.
type ByHost = BTreeMap<String, Arc<Service>>;

/// The services that a listener of a sight imports, by host, perhaps with fewer ports than they have.
pub(crate) fn imported(cx: &Cx<'_>, sight: &Sight, listener: usize) -> Arc<ByHost> {
    match sight.sidecar {
        None => cx.get::<Visible>(&sight.namespace),
        Some(_) => cx.get::<Imported>(&(sight.clone(), listener)),
    }
}

/// One of them, without a look at the others if there is no Sidecar.
pub(crate) fn imported_host(cx: &Cx<'_>, sight: &Sight, listener: usize, host: &str) -> Option<Arc<Service>> {
    match sight.sidecar {
        None => registry::visible_host(cx, &sight.namespace, host),
        Some(_) => cx.get::<Imported>(&(sight.clone(), listener)).get(host).cloned(),
    }
}

/// Those of them that have a TCP port with a number, without those that are other names of others.
pub(crate) fn imported_on_port(
    cx: &Cx<'_>,
    sight: &Sight,
    listener: usize,
    port: u16,
) -> Arc<Vec<Arc<Service>>> {
    match sight.sidecar {
        None => cx.get::<VisibleOnPort>(&(sight.namespace.clone(), port)),
        Some(_) => cx.get::<ImportedOnPort>(&(sight.clone(), listener, port)),
    }
}

/// All services that a sight includes, by host: those that its listeners import, and those that rules
/// lead to from there.
pub(crate) fn visible(cx: &Cx<'_>, sight: &Sight) -> Arc<ByHost> {
    match sight.sidecar {
        None => cx.get::<Visible>(&sight.namespace),
        Some(_) => cx.get::<Seen>(sight),
    }
}

/// One of them, without a look at the others if there is no Sidecar.
pub(crate) fn visible_host(cx: &Cx<'_>, sight: &Sight, host: &str) -> Option<Arc<Service>> {
    match sight.sidecar {
        None => registry::visible_host(cx, &sight.namespace, host),
        Some(_) => cx.get::<Seen>(sight).get(host).cloned(),
    }
}

/// The rules that a listener of a sight imports, in the order in which they count; all for sidecars
/// of a namespace, without a Sidecar.
pub(crate) fn imported_rules(cx: &Cx<'_>, sight: &Sight, listener: usize) -> Arc<Vec<Arc<Rule>>> {
    match sight.sidecar {
        None => mesh_rules(cx, &sight.namespace),
        Some(_) => cx.get::<ImportedRules>(&(sight.clone(), listener)),
    }
}

/// Those of the rules for a host that a listener of a sight imports.
pub(crate) fn host_rules(cx: &Cx<'_>, sight: &Sight, listener: usize, host: &str) -> Arc<Vec<Arc<Rule>>> {
    let rules = cx.get::<rules::HostRules>(&(sight.namespace.clone(), host.to_ascii_lowercase()));
    if sight.sidecar.is_none() {
        return rules;
    }
    let egress = cx.get::<EgressOf>(sight);
    let Some(egress) = egress.get(listener) else { return Arc::default() };
    Arc::new(rules.iter().filter(|rule| egress.imports.has_rule(rule)).cloned().collect())
}

struct Imported;

impl Query for Imported {
    type Key = (Sight, usize);
    type Value = ByHost;
    const NAME: &'static str = "imported-services";

    fn derive(cx: &Cx<'_>, (sight, listener): &(Sight, usize)) -> ByHost {
        let egress = cx.get::<EgressOf>(sight);
        let Some(egress) = egress.get(*listener) else { return ByHost::new() };
        let mut services = candidates(cx, &egress.imports);
        services.retain(|service| {
            service.export_to.reaches(&sight.namespace) && egress.imports.has_service(service)
        });
        services.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        services.dedup_by(|a, b| a.id == b.id);
        let mut imported = ByHost::new();
        for service in services {
            let Some(service) = trimmed(&service, egress.only_port()) else { continue };
            // Of several with one host that of the client's namespace counts, then Kubernetes' own, then
            // the older.
            let rank = |service: &Service| (service.namespace() == sight.namespace, service.is_kubernetes());
            match imported.get(&service.id.host) {
                Some(present) if rank(&service) <= rank(present) => {}
                _ => drop(imported.insert(service.id.host.clone(), service)),
            }
        }
        imported
    }
}

struct ImportedOnPort;

impl Query for ImportedOnPort {
    type Key = (Sight, usize, u16);
    type Value = Vec<Arc<Service>>;
    const NAME: &'static str = "imported-services-on-port";

    fn derive(cx: &Cx<'_>, (sight, listener, port): &(Sight, usize, u16)) -> Vec<Arc<Service>> {
        let imported = imported(cx, sight, *listener);
        let all = imported.values().filter(|service| service.resolution != Resolution::Alias);
        let carried =
            |service: &Service| service.port(*port).is_some_and(|port| port.protocol != Protocol::Datagram);
        all.filter(|service| carried(service)).cloned().collect()
    }
}

/// The services among which are all that are imported.
fn candidates(cx: &Cx<'_>, imports: &Imports) -> Vec<Arc<Service>> {
    let mut services = Vec::new();
    for (namespace, host) in imports.wanted() {
        match (namespace, host.starts_with('*')) {
            (None, true) => return cx.get::<AllServices>(&()).as_ref().clone(),
            (Some(namespace), true) => {
                services.extend(cx.get::<ServicesIn>(&namespace.to_owned()).iter().cloned());
            }
            (namespace, false) => {
                let found = registry::of_host(cx, host);
                let here = |service: &Arc<Service>| namespace.is_none_or(|own| service.namespace() == own);
                services.extend(found.into_iter().filter(here));
            }
        }
    }
    services
}

/// A service with one of its ports only; `None` if it does not have that.
fn trimmed(service: &Arc<Service>, port: Option<u16>) -> Option<Arc<Service>> {
    match port {
        None => Some(Arc::clone(service)),
        Some(port) => with_ports(service, &BTreeSet::from([port])),
    }
}

/// A service with some of its ports; `None` if it has none of them.
fn with_ports(service: &Arc<Service>, ports: &BTreeSet<u16>) -> Option<Arc<Service>> {
    if service.ports.iter().all(|port| ports.contains(&port.number)) {
        return (!service.ports.is_empty()).then(|| Arc::clone(service));
    }
    let mut trimmed = Service::clone(service);
    trimmed.ports.retain(|port| ports.contains(&port.number));
    (!trimmed.ports.is_empty()).then(|| Arc::new(trimmed))
}

struct ImportedRules;

impl Query for ImportedRules {
    type Key = (Sight, usize);
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "imported-rules";

    fn derive(cx: &Cx<'_>, (sight, listener): &(Sight, usize)) -> Vec<Arc<Rule>> {
        let egress = cx.get::<EgressOf>(sight);
        let Some(Egress { imports, .. }) = egress.get(*listener) else { return Vec::new() };
        let mut found = if imports.wanted().any(|(namespace, host)| namespace.is_none() && host == "*") {
            mesh_rules(cx, &sight.namespace).as_ref().clone()
        } else {
            let mut hosts = BTreeSet::new();
            let mut namespaces = BTreeSet::new();
            for (namespace, host) in imports.wanted() {
                match namespace {
                    Some(namespace) if host.starts_with('*') => drop(namespaces.insert(namespace)),
                    _ => drop(hosts.insert(host)),
                }
            }
            rules::for_mesh(cx, &sight.namespace, &namespaces, &hosts)
        };
        found.retain(|rule| imports.has_rule(rule));
        found
    }
}

struct Seen;

impl Query for Seen {
    type Key = Sight;
    type Value = ByHost;
    const NAME: &'static str = "seen-services";

    fn derive(cx: &Cx<'_>, sight: &Sight) -> ByHost {
        let mut seen = ByHost::new();
        for (listener, egress) in cx.get::<EgressOf>(sight).iter().enumerate() {
            let imported = imported(cx, sight, listener);
            for service in imported.values() {
                add(&mut seen, service);
            }
            let mut rules = imported_rules(cx, sight, listener).as_ref().clone();
            for service in imported.values().filter(|service| service.is_kubernetes()) {
                let found = cx.get::<ServiceRules>(&service.id.object.key());
                rules.extend(found.iter().filter(|rule| counts(rule, service, sight)).cloned());
            }
            for (host, ports) in destinations(&rules, &sight.namespace) {
                let Some(service) = best_of_host(cx, sight, host) else { continue };
                let service = match egress.only_port() {
                    only @ Some(_) => trimmed(&service, only),
                    None if ports.contains(&0) => Some(service),
                    None => with_ports(&service, &ports),
                };
                if let Some(service) = service {
                    add(&mut seen, &service);
                }
            }
        }
        seen
    }
}

/// Whether rules of the Gateway API for a service count for clients with a sight.
fn counts(rule: &Rule, service: &Service, sight: &Sight) -> bool {
    rule.meta.namespace == sight.namespace || rule.meta.namespace == service.namespace()
}

/// Adds a service to others, or what it has more of ports than the one that is there.
fn add(seen: &mut ByHost, service: &Arc<Service>) {
    let Some(present) = seen.get_mut(&service.id.host) else {
        seen.insert(service.id.host.clone(), Arc::clone(service));
        return;
    };
    if !present.is_kubernetes() && service.is_kubernetes() {
        *present = Arc::clone(service);
    } else if present.id == service.id && present.ports != service.ports {
        let known = |number: u16| present.port(number).is_some();
        let more: Vec<_> = service.ports.iter().filter(|port| !known(port.number)).cloned().collect();
        if !more.is_empty() {
            let mut merged = Service::clone(present);
            merged.ports.extend(more);
            *present = Arc::new(merged);
        }
    }
}

/// The hosts that rules lead to for clients in a namespace, with the ports; 0 stands for all.
fn destinations<'r>(rules: &'r [Arc<Rule>], namespace: &str) -> BTreeMap<&'r str, BTreeSet<u16>> {
    let mut found: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
    let mut note = |destination: &'r Destination| {
        let port = destination.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
        found.entry(destination.host.as_str()).or_default().insert(port.unwrap_or(0));
    };
    for rule in rules {
        for http in &rule.spec.http {
            let sources = || http.r#match.iter().map(|found| found.source_namespace.as_str());
            let named = sources().any(|source| !source.is_empty());
            if named && !sources().any(|source| source == namespace || source.is_empty()) {
                continue;
            }
            http.route.iter().for_each(|target| note(&target.destination));
            http.mirror.iter().for_each(&mut note);
            http.mirrors.iter().for_each(|mirror| note(&mirror.destination));
        }
        rule.spec.tcp.iter().flat_map(|tcp| &tcp.route).for_each(|target| note(&target.destination));
        rule.spec.tls.iter().flat_map(|tls| &tls.route).for_each(|target| note(&target.destination));
    }
    found
}

/// The service with a host that a rule leads to: that of the client's namespace, else Kubernetes' own,
/// else the oldest.
fn best_of_host(cx: &Cx<'_>, sight: &Sight, host: &str) -> Option<Arc<Service>> {
    let mut services = registry::of_host(cx, host);
    services.retain(|service| service.export_to.reaches(&sight.namespace));
    services.into_iter().min_by(|a, b| {
        let rank = |service: &Service| (service.namespace() != sight.namespace, !service.is_kubernetes());
        (rank(a), &a.created, &a.id).cmp(&(rank(b), &b.created, &b.id))
    })
}

/// The object that narrows a sight, to be blamed for what comes of it.
pub(crate) fn origin(sight: &Sight) -> Option<crate::model::ObjectRef> {
    sight.sidecar.as_ref().map(|key| key.of(Kind::Sidecar))
}

#[cfg(test)]
mod tests;
