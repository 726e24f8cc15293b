//! What exists: services, where they come from, and who may see them.
//!
//! A [`Service`] is the mesh's view of a Kubernetes Service or of one host of a ServiceEntry, made
//! in `convert.rs`. `instances.rs` finds the endpoints behind it and `accounts.rs` their identities,
//! `targets.rs` the services in front of a workload, `address.rs` gives virtual addresses to those
//! that have none, `alias.rs` knows which are other names of others, `network.rs` what lies between
//! endpoints and clients.

pub(crate) mod accounts;
pub(crate) mod address;
pub(crate) mod alias;
mod convert;
pub(crate) mod instances;
pub(crate) mod network;
pub(crate) mod protocol;
pub(crate) mod targets;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Graph, Query};

use self::protocol::Protocol;
use crate::model::inputs::{
    EntriesByFoldedHost, EntriesByHost, MeshConfigs, ServiceEntries, ServiceEntriesByNamespace, Services,
    ServicesByNamespace,
};
use crate::model::mesh::MeshConfig;
use crate::model::{Key, Kind, ObjectRef, inputs};
use crate::scope::Families;
use crate::scope::sidecar::{self, Sight};

/// Tells a graph of the secondary orders of this layer and of those below.
pub(crate) fn register(graph: &mut Graph) {
    inputs::register(graph);
    graph.register::<alias::EntriesByName>();
    graph.register::<alias::ServicesByExternalName>();
    graph.register::<network::NetworkServices>();
}

/// The DNS suffix of the cluster.
pub(crate) const DOMAIN: &str = "cluster.local";

/// Labels of services whose sessions stay at the endpoint that they began at, even while it drains.
const PERSISTENT: [&str; 2] = ["istio.io/persistent-session", "istio.io/persistent-session-header"];

/// Names a service: its host and the object that declares it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServiceId {
    pub(crate) host: String,
    pub(crate) object: ObjectRef,
}

/// A service as the mesh sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    /// The name that Istio shows: a Service's own, else the host.
    pub(crate) name: String,
    pub(crate) ports: Vec<Port>,
    /// Virtual addresses and ranges, as `10.96.0.5` or `10.0.0.0/8`.
    pub(crate) addresses: Vec<String>,
    /// The address of version 6 that it was given as it has none, for clients that can reach it.
    pub(crate) given_v6: Option<std::net::Ipv6Addr>,
    pub(crate) resolution: Resolution,
    /// Whether it lies outside the mesh.
    pub(crate) external: bool,
    /// The labels of the object that declares it.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) distribution: Distribution,
    /// Whether only endpoints on the client's own machine count (`internalTrafficPolicy: Local`).
    pub(crate) node_local: bool,
    /// Whether all addresses of a name are tried at once.
    pub(crate) race_connects: bool,
    /// Identities that its certificates may show, besides those of its endpoints.
    pub(crate) accounts: Vec<String>,
    /// The host that it is another name of.
    pub(crate) alias_of: Option<String>,
    pub(crate) export_to: Export,
    pub(crate) created: String,
}

/// Which endpoints clients prefer (`trafficDistribution`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Distribution {
    #[default]
    Any,
    SameZone,
    SameNode,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// The port that callers of this one are sent to, where they choose the address themselves.
    pub(crate) passthrough: Option<u16>,
}

/// How a client finds the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Resolution {
    /// The control plane lists them.
    Endpoints,
    /// DNS lists them.
    Dns,
    /// DNS names one.
    DnsRoundRobin,
    /// The caller has chosen an address already.
    OriginalDst,
    /// Each request or connection names what DNS is to look up.
    Dynamic,
    /// It is another name of another service and has no endpoints of its own.
    Alias,
}

impl Resolution {
    /// Whether clusters contain names that DNS resolves.
    pub(crate) fn is_dns(self) -> bool {
        matches!(self, Resolution::Dns | Resolution::DnsRoundRobin)
    }
}

/// Which namespaces may see an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    namespace: String,
    to: Vec<String>,
}

impl Export {
    /// What an object of `namespace` with such an `exportTo` says; an empty one means `default`, and
    /// that being empty too, everybody.
    pub(crate) fn new(namespace: &str, to: &[String], default: &[String]) -> Export {
        let to = if to.is_empty() { default } else { to };
        Export { namespace: namespace.to_owned(), to: to.to_vec() }
    }

    /// Whether a namespace may see the object.
    pub(crate) fn reaches(&self, namespace: &str) -> bool {
        self.to.is_empty()
            || self.to.iter().any(|to| match to.as_str() {
                "*" => true,
                "." => self.namespace == namespace,
                "~" => false,
                to => to == namespace,
            })
    }

    /// Which of competing objects that a namespace sees counts first: 0 for one that is exported to
    /// its own namespace by name, 1 for one that names another's, 2 for one that all see; `None` if
    /// the namespace does not see it.
    pub(crate) fn rank(&self, namespace: &str) -> Option<u8> {
        if self.to.is_empty() || self.to.iter().any(|to| to == "*") {
            return Some(2);
        }
        if self.to.iter().any(|to| to == "~") || !self.reaches(namespace) {
            return None;
        }
        Some(u8::from(self.namespace != namespace))
    }
}

impl Service {
    /// The namespace of the object that declares it.
    pub(crate) fn namespace(&self) -> &str {
        &self.id.object.namespace
    }

    /// Whether it is a Kubernetes Service.
    pub(crate) fn is_kubernetes(&self) -> bool {
        self.id.object.kind == Kind::Service
    }

    /// The port with a number.
    pub(crate) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether sessions stay at their endpoints even while these drain.
    pub(crate) fn is_persistent(&self) -> bool {
        PERSISTENT.iter().any(|label| self.labels.get(*label).is_some_and(|value| !value.is_empty()))
    }

    /// Whether a client may connect to a virtual address of it. Those that a ServiceEntry is given are
    /// known only to clients who ask the agent for names.
    pub(crate) fn has_address(&self, dns_capture: bool) -> bool {
        let given = self.given_v6.is_some() && !self.is_kubernetes();
        !self.addresses.is_empty() && (dns_capture || !given)
    }

    /// Its virtual addresses that are single addresses and that a client can reach.
    pub(crate) fn vips_for(&self, families: Families, dns_capture: bool) -> impl Iterator<Item = IpAddr> {
        let given = self.given_v6.map(IpAddr::V6);
        let known = self.has_address(dns_capture);
        self.vips().chain(given).filter(move |address| known && families.includes(*address))
    }

    /// Its virtual addresses that are single addresses.
    pub(crate) fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter_map(|address| address.parse().ok())
    }
}

/// The settings of the mesh: those of the ConfigMap in Istio's namespace, else of any other.
pub(crate) struct Mesh;

impl Query for Mesh {
    type Key = ();
    type Value = MeshConfig;
    const NAME: &'static str = "mesh-config";

    fn derive(cx: &Cx<'_>, (): &()) -> MeshConfig {
        let keys = cx.all::<MeshConfigs>();
        let default = MeshConfig::default();
        let preferred = keys.iter().find(|key| key.namespace == default.root_namespace).or(keys.first());
        preferred
            .and_then(|key| cx.input::<MeshConfigs>(key))
            .map_or(default, |config| MeshConfig::clone(&config))
    }
}

/// The services that an object declares: one for a Service, one per host for a ServiceEntry.
pub(crate) struct ServicesOf;

impl Query for ServicesOf {
    type Key = ObjectRef;
    type Value = Vec<Arc<Service>>;
    const NAME: &'static str = "services-of";

    fn derive(cx: &Cx<'_>, object: &ObjectRef) -> Vec<Arc<Service>> {
        let mesh = cx.get::<Mesh>(&());
        match object.kind {
            Kind::Service => {
                let Some(service) = cx.input::<Services>(&object.key()) else { return Vec::new() };
                vec![Arc::new(convert::of_kubernetes(cx, &service, &mesh))]
            }
            Kind::ServiceEntry => {
                let Some(entry) = cx.input::<ServiceEntries>(&object.key()) else { return Vec::new() };
                entry
                    .spec
                    .hosts
                    .iter()
                    .map(|host| Arc::new(convert::of_entry(cx, &entry, host, &mesh)))
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}

/// One service by its name.
pub(crate) fn find(cx: &Cx<'_>, id: &ServiceId) -> Option<Arc<Service>> {
    cx.get::<ServicesOf>(&id.object).iter().find(|service| service.id == *id).cloned()
}

/// The services with a host, in all namespaces.
pub(crate) fn of_host(cx: &Cx<'_>, host: &str) -> Vec<Arc<Service>> {
    let kubernetes = kubernetes_name(host).map(|(name, namespace)| {
        Key { namespace: namespace.to_owned(), name: name.to_owned() }.of(Kind::Service)
    });
    let entries = cx.bucket::<EntriesByHost>(&host.to_owned());
    let entries = entries.into_iter().map(|key| key.of(Kind::ServiceEntry));
    let mut services = Vec::new();
    for object in kubernetes.into_iter().chain(entries) {
        let declared = cx.get::<ServicesOf>(&object);
        services.extend(declared.iter().filter(|service| service.id.host == host).cloned());
    }
    services
}

/// A host, and other spellings of it by which services are declared.
pub(crate) fn spellings(cx: &Cx<'_>, host: &str) -> Vec<String> {
    let mut all = vec![host.to_owned()];
    for key in cx.bucket::<EntriesByFoldedHost>(&host.to_ascii_lowercase()) {
        let Some(entry) = cx.input::<ServiceEntries>(&key) else { continue };
        all.extend(entry.spec.hosts.iter().filter(|other| other.eq_ignore_ascii_case(host)).cloned());
    }
    all.dedup();
    all
}

/// The service that a namespace sees under a host: what [`Visible`] has there, without a look at others.
pub(crate) fn visible_host(cx: &Cx<'_>, namespace: &str, host: &str) -> Option<Arc<Service>> {
    let mut services = of_host(cx, host);
    services.retain(|service| service.export_to.reaches(namespace));
    services.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    services.into_iter().reduce(|best, next| if is_better(&next, &best, namespace) { next } else { best })
}

/// The services that objects of a namespace declare.
pub(crate) struct ServicesIn;

impl Query for ServicesIn {
    type Key = String;
    type Value = Vec<Arc<Service>>;
    const NAME: &'static str = "services-in";

    fn derive(cx: &Cx<'_>, namespace: &String) -> Vec<Arc<Service>> {
        let kubernetes = cx.bucket::<ServicesByNamespace>(namespace);
        let kubernetes = kubernetes.into_iter().map(|key| key.of(Kind::Service));
        let entries = cx.bucket::<ServiceEntriesByNamespace>(namespace);
        let entries = entries.into_iter().map(|key| key.of(Kind::ServiceEntry));
        let all = kubernetes.chain(entries);
        all.flat_map(|object| cx.get::<ServicesOf>(&object).as_ref().clone()).collect()
    }
}

/// All services of the mesh, oldest first.
pub(crate) struct AllServices;

impl Query for AllServices {
    type Key = ();
    type Value = Vec<Arc<Service>>;
    const NAME: &'static str = "all-services";

    fn derive(cx: &Cx<'_>, (): &()) -> Vec<Arc<Service>> {
        let kubernetes = cx.all::<Services>().into_iter().map(|key| key.of(Kind::Service));
        let entries = cx.all::<ServiceEntries>().into_iter().map(|key| key.of(Kind::ServiceEntry));
        let mut services: Vec<Arc<Service>> = Vec::new();
        for object in kubernetes.chain(entries) {
            services.extend(cx.get::<ServicesOf>(&object).iter().cloned());
        }
        services.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        services
    }
}

/// The services that a namespace sees, by host, one per host.
pub(crate) struct Visible;

impl Query for Visible {
    type Key = String;
    type Value = BTreeMap<String, Arc<Service>>;
    const NAME: &'static str = "visible-services";

    fn derive(cx: &Cx<'_>, namespace: &String) -> BTreeMap<String, Arc<Service>> {
        let mut visible: BTreeMap<String, Arc<Service>> = BTreeMap::new();
        for service in cx.get::<AllServices>(&()).iter() {
            if !service.export_to.reaches(namespace) {
                continue;
            }
            match visible.get(&service.id.host) {
                Some(present) if !is_better(service, present, namespace) => {}
                _ => drop(visible.insert(service.id.host.clone(), Arc::clone(service))),
            }
        }
        visible
    }
}

/// Into how many parts the services that a namespace sees are divided: what is derived of all of
/// them is derived by part, so that a change of one service or rule costs one part.
pub(crate) const PARTS: u8 = 32;

/// The services that are in sight, by part.
struct VisibleParts;

impl Query for VisibleParts {
    type Key = Sight;
    type Value = Vec<Arc<Vec<Arc<Service>>>>;
    const NAME: &'static str = "visible-parts";

    fn derive(cx: &Cx<'_>, sight: &Sight) -> Vec<Arc<Vec<Arc<Service>>>> {
        let mut parts = vec![Vec::new(); usize::from(PARTS)];
        for (host, service) in sidecar::visible(cx, sight).iter() {
            // A hash that stays, so that a service stays in its part.
            let part = address::fnv(host.as_bytes()) % u64::from(PARTS);
            if let Some(part) = usize::try_from(part).ok().and_then(|part| parts.get_mut(part)) {
                part.push(Arc::clone(service));
            }
        }
        parts.into_iter().map(Arc::new).collect()
    }
}

/// One part, less than [`PARTS`], of the services that are in sight.
pub(crate) struct VisiblePart;

impl Query for VisiblePart {
    type Key = (Sight, u8);
    type Value = Arc<Vec<Arc<Service>>>;
    const NAME: &'static str = "visible-part";

    fn derive(cx: &Cx<'_>, (sight, part): &(Sight, u8)) -> Arc<Vec<Arc<Service>>> {
        cx.get::<VisibleParts>(sight).get(usize::from(*part)).cloned().unwrap_or_default()
    }
}

/// Whether, of two services with the same host, the later one is the one to use: Kubernetes' own
/// before all, then one of the client's namespace, then the older.
fn is_better(later: &Service, earlier: &Service, namespace: &str) -> bool {
    let rank = |service: &Service| (service.is_kubernetes(), service.namespace() == namespace);
    rank(later) > rank(earlier)
}

/// Those of the visible services that have a TCP port with a number, by host.
pub(crate) struct VisibleOnPort;

impl Query for VisibleOnPort {
    type Key = (String, u16);
    type Value = Vec<Arc<Service>>;
    const NAME: &'static str = "visible-services-on-port";

    fn derive(cx: &Cx<'_>, (namespace, port): &(String, u16)) -> Vec<Arc<Service>> {
        let visible = cx.get::<Visible>(namespace);
        visible
            .values()
            .filter(|service| service.resolution != Resolution::Alias)
            .filter(|service| service.port(*port).is_some_and(|port| port.protocol != Protocol::Datagram))
            .cloned()
            .collect()
    }
}

/// Whether any object declares a host, visible or not; for diagnostics.
pub(crate) fn is_declared(cx: &Cx<'_>, host: &str) -> bool {
    if !cx.bucket::<EntriesByHost>(&host.to_owned()).is_empty() {
        return true;
    }
    let Some((name, namespace)) = kubernetes_name(host) else { return false };
    cx.input::<Services>(&Key { namespace: namespace.to_owned(), name: name.to_owned() }).is_some()
}

/// The name and the namespace of the Kubernetes Service that has a host.
pub(crate) fn kubernetes_name(host: &str) -> Option<(&str, &str)> {
    host.strip_suffix(DOMAIN)?.strip_suffix(".svc.")?.split_once('.')
}

/// The host of a Kubernetes Service.
pub(crate) fn kubernetes_host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.{DOMAIN}")
}

/// Istio's rule for a name in an object of a namespace: without a dot it is a Service there.
pub(crate) fn full_name(host: &str, namespace: &str) -> String {
    if host.contains('.') || host.contains('*') || host.contains(':') || host.is_empty() {
        host.to_owned()
    } else {
        kubernetes_host(host, namespace)
    }
}
