//! The endpoints behind a service.
//!
//! A Kubernetes Service's come from its EndpointSlices; where there are none, from the Pods that
//! it selects, so that a folder with Pods needs no endpoint controller, or from Endpoints written by
//! hand. WorkloadEntries count like Pods, for Services and for ServiceEntries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::convert::{identity, of_host};
use super::network::Networks;
use super::{Mesh, ServiceId, ServicesOf};
use crate::model::inputs::{
    EndpointSlices, EndpointsObjects, Nodes, Pods, PodsByLabel, Services, SlicesByService, WorkloadEntries,
    WorkloadEntriesByLabel,
};
use crate::model::label::TLS_MODE;
use crate::model::mesh::MeshConfig;
use crate::model::selector::selects;
use crate::model::service_entry::{Resolution, ServiceEntry};
use crate::model::workload_entry::WorkloadEntry;
use crate::model::{Config, Key, Kind, kube};
use crate::scope::locality::{CLUSTER, CLUSTER_ID, NETWORK, NODE, REGION, SUBZONE, ZONE};

/// Labels of pods and entries that say where they are; the second is the older.
const LOCALITY: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];

/// Labels of nodes from before Kubernetes 1.17.
const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";

/// The label of a pod that is to get no new sessions.
const DRAINING: &str = "istio.io/draining";

/// Labels by which telemetry calls a workload, the first found counts.
pub(crate) const CANONICAL_NAME: [&str; 3] =
    ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
pub(crate) const CANONICAL_REVISION: [&str; 3] =
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/// The label of a workload with its name, and the annotation with that of its group.
const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
const WORKLOAD_GROUP: &str = "istio.io/autoRegistrationGroup";

/// The annotation of a WorkloadEntry whose health is probed, with the value `true`.
const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";

/// How addresses begin that are paths of sockets.
const UNIX: &str = "unix://";

/// One place where a service is served.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Instance {
    /// An address, a DNS name where the service is found by DNS, a path, or nothing, where it is
    /// only reached by a gateway of its network.
    pub(crate) address: String,
    /// Further addresses of the same endpoint.
    pub(crate) more: Vec<IpAddr>,
    /// From a port of the service to the port here; a port that is missing is not served here. A
    /// path has no ports: they are 0.
    pub(crate) ports: BTreeMap<u16, u16>,
    pub(crate) health: Health,
    /// Share among its peers; 0 means the default.
    pub(crate) weight: u32,
    /// `region/zone/subzone`, or empty.
    pub(crate) locality: String,
    /// The network that it can be reached in directly; empty if unknown.
    pub(crate) network: String,
    /// The machine; empty if unknown.
    pub(crate) node: String,
    /// `spiffe://...`, or empty if unknown.
    pub(crate) identity: String,
    /// Whether it speaks the mesh's mutual TLS.
    pub(crate) mutual_tls: bool,
    /// What telemetry calls the workload.
    pub(crate) workload: String,
    pub(crate) namespace: String,
    /// Its name below that of a headless service, if it has one.
    pub(crate) hostname: String,
    labels: Labels,
}

/// Whether new requests may be sent there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    #[default]
    Healthy,
    Unhealthy,
    /// Only requests of sessions that have begun there.
    Draining,
}

/// Labels, wherever they are kept.
#[derive(Clone, Debug, PartialEq)]
enum Labels {
    Pod(Arc<kube::Pod>),
    Own(BTreeMap<String, String>),
}

impl Instance {
    /// Somewhere without any properties.
    fn bare(address: String, ports: BTreeMap<u16, u16>) -> Instance {
        Instance {
            address,
            more: Vec::new(),
            ports,
            health: Health::Healthy,
            weight: 0,
            locality: String::new(),
            network: String::new(),
            node: String::new(),
            identity: String::new(),
            mutual_tls: false,
            workload: String::new(),
            namespace: String::new(),
            hostname: String::new(),
            labels: Labels::Own(BTreeMap::new()),
        }
    }

    /// A label, those included that follow from its place; empty if it has none.
    pub(crate) fn label(&self, name: &str) -> &str {
        let part = |index: usize| self.locality.split('/').nth(index).unwrap_or_default();
        let derived = match name {
            REGION => part(0),
            ZONE => part(1),
            SUBZONE => part(2),
            NODE => &self.node,
            CLUSTER => CLUSTER_ID,
            NETWORK => &self.network,
            _ => "",
        };
        if !derived.is_empty() {
            return derived;
        }
        let own = match &self.labels {
            Labels::Pod(pod) => &pod.meta.labels,
            Labels::Own(labels) => labels,
        };
        own.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Its own labels, without those that follow from its place.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        match &self.labels {
            Labels::Pod(pod) => &pod.meta.labels,
            Labels::Own(labels) => labels,
        }
    }

    /// Whether it carries all of the labels.
    pub(crate) fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == value)
    }

    /// What telemetry wants to know of it: `workload;namespace;service;revision;cluster`.
    pub(crate) fn telemetry(&self) -> String {
        let first =
            |names: &[&str]| names.iter().map(|name| self.label(name)).find(|value| !value.is_empty());
        let service = first(&CANONICAL_NAME).unwrap_or(&self.workload);
        // What goes without saying is not said.
        let revision =
            first(&CANONICAL_REVISION).filter(|revision| *revision != "latest").unwrap_or_default();
        format!("{};{};{service};{revision};{CLUSTER_ID}", self.workload, self.namespace)
    }
}

/// All instances of a service, in the order of their addresses.
pub(crate) struct Instances;

impl Query for Instances {
    type Key = ServiceId;
    type Value = Vec<Instance>;
    const NAME: &'static str = "instances";

    fn derive(cx: &Cx<'_>, id: &ServiceId) -> Vec<Instance> {
        let here = Here { cx, mesh: cx.get::<Mesh>(&()), networks: cx.get::<Networks>(&()) };
        let mut instances = match id.object.kind {
            Kind::Service => match cx.input::<Services>(&id.object.key()) {
                Some(service) => here.of_kubernetes(&service),
                None => Vec::new(),
            },
            Kind::ServiceEntry => here.of_host(id),
            _ => Vec::new(),
        };
        instances.sort_by(|a, b| (&a.address, &a.ports).cmp(&(&b.address, &b.ports)));
        instances.dedup_by(|a, b| a.address == b.address && a.ports == b.ports);
        instances
    }
}

/// What finding endpoints needs to know besides the service.
struct Here<'c, 'g> {
    cx: &'c Cx<'g>,
    mesh: Arc<MeshConfig>,
    networks: Arc<Networks>,
}

impl Here<'_, '_> {
    fn of_kubernetes(&self, service: &kube::Service) -> Vec<Instance> {
        let cx = self.cx;
        if let Some(name) = &service.external_name {
            let ports = service.ports.iter().map(|port| (port.number, port.number)).collect();
            return vec![Instance::bare(name.clone(), ports)];
        }
        let keeps = cx
            .get::<ServicesOf>(&service.meta.key().of(Kind::Service))
            .first()
            .is_some_and(|service| service.is_persistent());
        let slices = cx.bucket::<SlicesByService>(&service.meta.key());
        let mut instances: Vec<Instance> = if !slices.is_empty() {
            let slices = slices.iter().filter_map(|key| cx.input::<EndpointSlices>(key));
            slices.flat_map(|slice| self.of_slice(service, &slice, keeps)).collect()
        } else if service.selector.is_empty() {
            // Deviation: Endpoints count where there are no slices; Kubernetes makes slices of
            // them, but in a folder of manifests nobody does.
            let endpoints = cx.input::<EndpointsObjects>(&service.meta.key());
            endpoints.map(|endpoints| self.of_endpoints(service, &endpoints, keeps)).unwrap_or_default()
        } else {
            let pods = pods_selected(cx, &service.meta.namespace, &service.selector);
            let instance = |pod: &Arc<kube::Pod>| {
                let ports = service.ports.iter().filter_map(|port| Some((port.number, target(port, pod)?)));
                let ready = pod.ready || service.publish_not_ready;
                let health = if ready { Health::Healthy } else { Health::Unhealthy };
                self.pod(*pod.ips.first()?, ports.collect(), pod, health, service.cluster_ips.len() > 1)
            };
            pods.iter().filter_map(instance).collect()
        };
        if !service.headless {
            for entry in entries_selected(cx, &service.meta.namespace, &service.selector) {
                let ports = service.ports.iter().filter_map(|port| {
                    let target = match &port.target {
                        kube::TargetPort::Number(number) => *number,
                        kube::TargetPort::Name(name) => u16::try_from(*entry.spec.ports.get(name)?).ok()?,
                    };
                    Some((port.number, target))
                });
                let instance = self.entry(&entry, ports.collect());
                // A Service has addresses only.
                instances.extend(instance.filter(|one| one.address.is_empty() || is_address(&one.address)));
            }
        }
        instances
    }

    fn of_slice(&self, service: &kube::Service, slice: &kube::EndpointSlice, keeps: bool) -> Vec<Instance> {
        let mut instances = Vec::new();
        let ports = ports_by_name(service, &slice.ports);
        for endpoint in &slice.endpoints {
            let Some(health) = health(endpoint, service, keeps) else { continue };
            instances.extend(self.of_endpoint(
                service,
                slice.meta.namespace.as_str(),
                endpoint,
                &ports,
                health,
            ));
        }
        instances
    }

    fn of_endpoints(
        &self,
        service: &kube::Service,
        endpoints: &kube::Endpoints,
        keeps: bool,
    ) -> Vec<Instance> {
        let mut instances = Vec::new();
        for subset in &endpoints.subsets {
            let ports = ports_by_name(service, &subset.ports);
            for endpoint in &subset.endpoints {
                let Some(health) = health(endpoint, service, keeps) else { continue };
                instances.extend(self.of_endpoint(
                    service,
                    &endpoints.meta.namespace,
                    endpoint,
                    &ports,
                    health,
                ));
            }
        }
        instances
    }

    /// Deviation: where Istio waits for a pod that an endpoint names but that is not known yet, the
    /// endpoint counts without what the pod would say of it.
    fn of_endpoint(
        &self,
        service: &kube::Service,
        namespace: &str,
        endpoint: &kube::SliceEndpoint,
        ports: &BTreeMap<u16, u16>,
        health: Health,
    ) -> Vec<Instance> {
        let pod = endpoint.pod.as_ref().and_then(|name| {
            self.cx.input::<Pods>(&Key { namespace: namespace.to_owned(), name: name.clone() })
        });
        let both = service.cluster_ips.len() > 1;
        let instances = endpoint.addresses.iter().filter_map(|address| match &pod {
            // Deviation: a pod with addresses of both kinds is one endpoint without any switch
            // (`ISTIO_DUAL_STACK`); it comes from the slice of the kind that is its own first.
            Some(pod) if both && pod.ips.len() > 1 && pod.ips.first() != Some(address) => None,
            Some(pod) => self.pod(*address, ports.clone(), pod, health, both),
            None => {
                let mut instance = Instance::bare(address.to_string(), ports.clone());
                instance.network = self.networks.of(&instance.address, None);
                instance.health = health;
                instance.node = endpoint.node.clone().unwrap_or_default();
                // Deviation: istiod knows the place of pods only; here an endpoint that names a machine
                // and no pod is where the machine is.
                instance.locality = self.node_locality(&instance.node);
                (!ports.is_empty()).then_some(instance)
            }
        });
        instances.collect()
    }

    /// An endpoint that is a pod; `both`: whether addresses of both kinds are wanted.
    fn pod(
        &self,
        address: IpAddr,
        ports: BTreeMap<u16, u16>,
        pod: &Arc<kube::Pod>,
        health: Health,
        both: bool,
    ) -> Option<Instance> {
        let labels = &pod.meta.labels;
        let mut instance = Instance::bare(address.to_string(), ports);
        if both {
            instance.more = pod.ips.iter().filter(|ip| **ip != address).copied().collect();
        }
        instance.health = match labels.get(DRAINING) {
            Some(value) if !value.is_empty() => Health::Draining,
            _ => health,
        };
        instance.locality = match locality_label(labels) {
            Some(locality) => locality,
            None => self.node_locality(&pod.node),
        };
        instance.network = self.networks.of(&instance.address, labels.get(NETWORK).map(String::as_str));
        instance.node.clone_from(&pod.node);
        instance.identity = identity(&self.mesh, &pod.meta.namespace, &pod.service_account);
        instance.mutual_tls = labels.get(TLS_MODE).is_some_and(|mode| mode == "istio");
        instance.workload = labels.get(WORKLOAD_NAME).unwrap_or(&pod.workload).clone();
        instance.namespace.clone_from(&pod.meta.namespace);
        instance.hostname.clone_from(&pod.hostname);
        instance.labels = Labels::Pod(Arc::clone(pod));
        (!instance.ports.is_empty()).then_some(instance)
    }

    /// `region/zone/subzone` of a machine; empty if it does not say.
    fn node_locality(&self, name: &str) -> String {
        let key = Key { namespace: String::new(), name: name.to_owned() };
        let node = (!name.is_empty()).then(|| self.cx.input::<Nodes>(&key)).flatten();
        node.map(|node| locality_of_node(&node.meta.labels)).unwrap_or_default()
    }

    /// All endpoints of a host that a namespace's ServiceEntries declare: entries for one host add up.
    fn of_host(&self, id: &ServiceId) -> Vec<Instance> {
        let mut instances: Vec<Instance> = Vec::new();
        for entry in of_host(self.cx, &id.object.namespace, &id.host) {
            let single = entry.spec.resolution == Resolution::DnsRoundRobin && !instances.is_empty();
            // One name is all that such a service can have; the oldest entry gives it.
            if !single {
                instances.extend(self.of_entry(&entry, &id.host));
            }
        }
        instances
    }

    fn of_entry(&self, entry: &Config<ServiceEntry>, host: &str) -> Vec<Instance> {
        let spec = &entry.spec;
        let namespace = &entry.meta.namespace;
        let by_dns = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        if let Some(selector) = &spec.workload_selector {
            let pods = pods_selected(self.cx, namespace, &selector.labels);
            let none = BTreeMap::new();
            let pods = pods.iter().filter_map(|pod| {
                let health = if pod.ready { Health::Healthy } else { Health::Unhealthy };
                self.pod(*pod.ips.first()?, ports_of(spec, &none), pod, health, false)
            });
            let entries = entries_selected(self.cx, namespace, &selector.labels);
            let entries = entries.iter().filter_map(|one| self.entry(one, ports_of(spec, &one.spec.ports)));
            let usable = |one: &Instance| by_dns || one.address.is_empty() || is_address(&one.address);
            return pods.chain(entries).filter(usable).collect();
        }
        if spec.endpoints.is_empty() && by_dns {
            let mut instance = Instance::bare(host.to_owned(), ports_of(spec, &BTreeMap::new()));
            instance.workload.clone_from(&entry.meta.name);
            instance.namespace.clone_from(namespace);
            return vec![instance];
        }
        let endpoints = spec.endpoints.iter().enumerate().filter_map(|(index, endpoint)| {
            let name = format!("{}-{index}", entry.meta.name);
            let usable = by_dns
                || endpoint.address.is_empty()
                || endpoint.address.starts_with(UNIX)
                || is_address(&endpoint.address);
            usable.then(|| {
                self.workload(endpoint, &endpoint.labels, name, namespace, ports_of(spec, &endpoint.ports))
            })
        });
        endpoints.collect()
    }

    /// An endpoint that is an object of its own, unless it is found to be ill.
    fn entry(&self, entry: &Config<WorkloadEntry>, ports: BTreeMap<u16, u16>) -> Option<Instance> {
        let checked = entry.meta.annotations.get(HEALTH_CHECKED).is_some_and(|value| value == "true");
        if ports.is_empty() || (checked && !entry.spec.healthy) {
            return None;
        }
        let labels = entry_labels(entry);
        let name = entry.meta.annotations.get(WORKLOAD_GROUP).unwrap_or(&entry.meta.name);
        Some(self.workload(&entry.spec, &labels, name.clone(), &entry.meta.namespace, ports))
    }

    fn workload(
        &self,
        entry: &WorkloadEntry,
        labels: &BTreeMap<String, String>,
        name: String,
        namespace: &str,
        ports: BTreeMap<u16, u16>,
    ) -> Instance {
        let path = entry.address.strip_prefix(UNIX);
        let ports = match path {
            Some(_) => ports.into_keys().map(|port| (port, 0)).collect(),
            None => ports,
        };
        let mut instance = Instance::bare(path.unwrap_or(&entry.address).to_owned(), ports);
        instance.weight = entry.weight;
        instance.locality = match entry.locality.as_str() {
            "" => locality_label(labels).unwrap_or_default(),
            locality => locality.to_owned(),
        };
        instance.network = match entry.network.as_str() {
            "" => self.networks.of(&entry.address, labels.get(NETWORK).map(String::as_str)),
            network => network.to_owned(),
        };
        if !entry.service_account.is_empty() {
            instance.identity = identity(&self.mesh, namespace, &entry.service_account);
        }
        instance.mutual_tls = match labels.get(TLS_MODE) {
            Some(mode) => mode == "istio",
            None => !entry.service_account.is_empty(),
        };
        instance.workload = labels.get(WORKLOAD_NAME).cloned().unwrap_or(name);
        namespace.clone_into(&mut instance.namespace);
        instance.labels = Labels::Own(labels.clone());
        instance
    }
}

/// Whether an endpoint may be sent to; `None` if it is on its way out.
fn health(endpoint: &kube::SliceEndpoint, service: &kube::Service, keeps: bool) -> Option<Health> {
    if endpoint.ready || service.publish_not_ready {
        return Some(Health::Healthy);
    }
    if endpoint.terminating {
        return (keeps && endpoint.serving).then_some(Health::Draining);
    }
    Some(Health::Unhealthy)
}

/// From ports of a service to those of the same name.
fn ports_by_name(service: &kube::Service, ports: &[kube::SlicePort]) -> BTreeMap<u16, u16> {
    let ports = service.ports.iter().filter_map(|port| {
        let found = ports.iter().find(|candidate| candidate.name == port.name)?;
        Some((port.number, found.number))
    });
    ports.collect()
}

/// From ports of a ServiceEntry to those of an endpoint, some of which have been given by name.
fn ports_of(spec: &ServiceEntry, named: &BTreeMap<String, u32>) -> BTreeMap<u16, u16> {
    let ports = spec.ports.iter().filter_map(|port| {
        let target = named.get(&port.name).copied().filter(|target| *target != 0);
        let target = target.unwrap_or(if port.target_port == 0 { port.number } else { port.target_port });
        Some((u16::try_from(port.number).ok()?, u16::try_from(target).ok()?))
    });
    ports.collect()
}

/// The port of a pod that a port of a service leads to.
pub(crate) fn target(port: &kube::ServicePort, pod: &kube::Pod) -> Option<u16> {
    match &port.target {
        kube::TargetPort::Number(number) => Some(*number),
        kube::TargetPort::Name(name) => pod.named_ports.get(name).copied(),
    }
}

/// The pods of a namespace that a selector chooses and that are not on their way out. An empty
/// selector chooses none, as for a Service.
pub(crate) fn pods_selected(
    cx: &Cx<'_>,
    namespace: &str,
    selector: &BTreeMap<String, String>,
) -> Vec<Arc<kube::Pod>> {
    let Some((name, value)) = selector.first_key_value() else { return Vec::new() };
    let candidates = cx.bucket::<PodsByLabel>(&(namespace.to_owned(), name.clone(), value.clone()));
    let pods = candidates.iter().filter_map(|key| cx.input::<Pods>(key));
    pods.filter(|pod| !pod.gone && selects(selector, &pod.meta.labels)).collect()
}

/// The WorkloadEntries of a namespace that a selector chooses; an empty one chooses none.
pub(super) fn entries_selected(
    cx: &Cx<'_>,
    namespace: &str,
    selector: &BTreeMap<String, String>,
) -> Vec<Arc<Config<WorkloadEntry>>> {
    let Some((name, value)) = selector.first_key_value() else { return Vec::new() };
    let candidates =
        cx.bucket::<WorkloadEntriesByLabel>(&(namespace.to_owned(), name.clone(), value.clone()));
    let entries = candidates.iter().filter_map(|key| cx.input::<WorkloadEntries>(key));
    entries.filter(|entry| selects(selector, &entry_labels(entry))).collect()
}

/// The labels of a WorkloadEntry: those of the object count before those of its spec.
fn entry_labels(entry: &Config<WorkloadEntry>) -> BTreeMap<String, String> {
    let mut labels = entry.spec.labels.clone();
    labels.extend(entry.meta.labels.clone());
    labels
}

/// The place that labels name, as `region.zone.subzone` or with slashes.
pub(crate) fn locality_label(labels: &BTreeMap<String, String>) -> Option<String> {
    let text = LOCALITY.iter().find_map(|name| labels.get(*name)).filter(|text| !text.is_empty())?;
    Some(if text.contains('/') { text.clone() } else { text.replace('.', "/") })
}

/// The place that the labels of a machine name, as `region/zone/subzone`; empty if none.
pub(crate) fn locality_of_node(labels: &BTreeMap<String, String>) -> String {
    let first = |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).cloned().unwrap_or_default();
    let (region, zone) = (first(&[REGION, OLD_REGION]), first(&[ZONE, OLD_ZONE]));
    let subzone = first(&[SUBZONE]);
    if region.is_empty() && zone.is_empty() && subzone.is_empty() {
        return String::new();
    }
    format!("{region}/{zone}/{subzone}")
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}
