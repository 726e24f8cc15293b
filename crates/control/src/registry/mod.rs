//! What exists: services, where they come from, and who may see them.
//!
//! A [`Service`] is the mesh's view of a Kubernetes Service or of one host of a ServiceEntry.
//! `instances.rs` finds the endpoints behind it, `targets.rs` the services in front of a workload,
//! `address.rs` gives virtual addresses to those that have none.

pub(crate) mod address;
pub(crate) mod instances;
pub(crate) mod protocol;
pub(crate) mod targets;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use self::address::AutoAddress;
use self::protocol::Protocol;
use crate::model::inputs::{EntriesByHost, MeshConfigs, ServiceEntries, Services};
use crate::model::mesh::MeshConfig;
use crate::model::service_entry::{self, ServiceEntry};
use crate::model::{Config, Key, Kind, ObjectRef, kube};
use crate::scope::Families;

/// The DNS suffix of the cluster.
pub(crate) const DOMAIN: &str = "cluster.local";

/// The annotation of a Service that plays the part of `exportTo`.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

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
    pub(crate) resolution: Resolution,
    /// Whether it lies outside the mesh.
    pub(crate) external: bool,
    pub(crate) export_to: Export,
    pub(crate) created: String,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
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

    /// Its virtual addresses that are single addresses and that a client can reach.
    pub(crate) fn vips_for(&self, families: Families) -> impl Iterator<Item = IpAddr> {
        self.vips().filter(move |address| families.includes(*address))
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
                vec![Arc::new(of_kubernetes(cx, &service, &mesh))]
            }
            Kind::ServiceEntry => {
                let Some(entry) = cx.input::<ServiceEntries>(&object.key()) else { return Vec::new() };
                entry.spec.hosts.iter().map(|host| Arc::new(of_entry(cx, &entry, host, &mesh))).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// One service by its name.
pub(crate) fn find(cx: &Cx<'_>, id: &ServiceId) -> Option<Arc<Service>> {
    cx.get::<ServicesOf>(&id.object).iter().find(|service| service.id == *id).cloned()
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
    let suffix = format!(".svc.{DOMAIN}");
    let Some((name, namespace)) = host.strip_suffix(&suffix).and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    cx.input::<Services>(&Key { namespace: namespace.to_owned(), name: name.to_owned() }).is_some()
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

fn of_kubernetes(cx: &Cx<'_>, service: &kube::Service, mesh: &MeshConfig) -> Service {
    let meta = &service.meta;
    let id = ServiceId {
        host: kubernetes_host(&meta.name, &meta.namespace),
        object: meta.key().of(Kind::Service),
    };
    let resolution = if service.external_name.is_some() {
        Resolution::Dns
    } else if service.headless {
        Resolution::OriginalDst
    } else {
        Resolution::Endpoints
    };
    let mut addresses: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
    if resolution == Resolution::Endpoints && addresses.is_empty() {
        addresses.extend(cx.get::<AutoAddress>(&id).map(|address| address.to_string()));
    }
    let export: Vec<String> = meta
        .annotations
        .get(EXPORT_TO)
        .map(|targets| targets.split(',').map(|target| target.trim().to_owned()).collect())
        .unwrap_or_default();
    let ports = service.ports.iter().map(|port| Port {
        number: port.number,
        name: port.name.clone(),
        protocol: if port.datagram {
            Protocol::Datagram
        } else {
            Protocol::of_kubernetes(port.number, &port.name, port.app_protocol.as_deref())
        },
    });
    Service {
        ports: ports.collect(),
        name: meta.name.clone(),
        addresses,
        resolution,
        // An ExternalName stands for something else that is not known to carry a sidecar.
        external: service.external_name.is_some(),
        export_to: Export::new(&meta.namespace, &export, &mesh.default_service_export_to),
        created: meta.created.clone(),
        id,
    }
}

fn of_entry(cx: &Cx<'_>, entry: &Config<ServiceEntry>, host: &str, mesh: &MeshConfig) -> Service {
    let meta = &entry.meta;
    let id = ServiceId { host: host.to_owned(), object: meta.key().of(Kind::ServiceEntry) };
    let mut addresses = entry.spec.addresses.clone();
    if needs_address(&entry.spec, host) {
        addresses.extend(cx.get::<AutoAddress>(&id).map(|address| address.to_string()));
    }
    let ports = entry.spec.ports.iter().filter_map(|port| {
        Some(Port {
            number: u16::try_from(port.number).ok()?,
            name: port.name.clone(),
            protocol: Protocol::of_name(&port.protocol),
        })
    });
    Service {
        ports: ports.collect(),
        name: host.to_owned(),
        addresses,
        resolution: match entry.spec.resolution {
            service_entry::Resolution::Static => Resolution::Endpoints,
            service_entry::Resolution::Dns => Resolution::Dns,
            service_entry::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            service_entry::Resolution::None | service_entry::Resolution::DynamicDns => {
                Resolution::OriginalDst
            }
        },
        external: entry.spec.location == service_entry::Location::MeshExternal,
        export_to: Export::new(&meta.namespace, &entry.spec.export_to, &mesh.default_service_export_to),
        created: meta.created.clone(),
        id,
    }
}

/// Whether a host of a ServiceEntry is to be given a virtual address.
pub(crate) fn needs_address(entry: &ServiceEntry, host: &str) -> bool {
    entry.addresses.is_empty()
        && !matches!(
            entry.resolution,
            service_entry::Resolution::None | service_entry::Resolution::DynamicDns
        )
        && !host.starts_with('*')
        && host.parse::<IpAddr>().is_err()
}
