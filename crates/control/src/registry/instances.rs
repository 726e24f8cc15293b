//! The endpoints behind a service.
//!
//! A Kubernetes Service's come from its EndpointSlices; where there are none, from the Pods that
//! it selects, so that a folder with Pods needs no endpoint controller.

use std::collections::BTreeMap;
use std::net::IpAddr;

use leno_derive::{Cx, Query};

use super::ServiceId;
use crate::model::inputs::{EndpointSlices, Pods, PodsByLabel, ServiceEntries, Services, SlicesByService};
use crate::model::service_entry::{Resolution, ServiceEntry};
use crate::model::{Config, Key, Kind, kube};

/// One place where a service is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// An address, or a DNS name where the service is found by DNS.
    pub(crate) address: String,
    /// From a port of the service to the port here; a port that is missing is not served here.
    pub(crate) ports: BTreeMap<u16, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Share among its peers; 0 means the default.
    pub(crate) weight: u32,
    /// `region/zone/subzone`, or empty.
    pub(crate) locality: String,
}

impl Instance {
    /// Whether it carries all of the labels.
    pub(crate) fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        selects(labels, &self.labels)
    }
}

/// Whether a selector chooses something with these labels.
pub(crate) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// All ready instances of a service, in the order of their addresses.
pub(crate) struct Instances;

impl Query for Instances {
    type Key = ServiceId;
    type Value = Vec<Instance>;
    const NAME: &'static str = "instances";

    fn derive(cx: &Cx<'_>, id: &ServiceId) -> Vec<Instance> {
        let mut instances = match id.object.kind {
            Kind::Service => match cx.input::<Services>(&id.object.key()) {
                Some(service) => of_kubernetes(cx, &service),
                None => Vec::new(),
            },
            Kind::ServiceEntry => match cx.input::<ServiceEntries>(&id.object.key()) {
                Some(entry) => of_entry(cx, &entry, &id.host),
                None => Vec::new(),
            },
            _ => Vec::new(),
        };
        instances.sort_by(|a, b| (&a.address, &a.ports).cmp(&(&b.address, &b.ports)));
        instances.dedup_by(|a, b| a.address == b.address && a.ports == b.ports);
        instances
    }
}

fn of_kubernetes(cx: &Cx<'_>, service: &kube::Service) -> Vec<Instance> {
    if let Some(name) = &service.external_name {
        let ports = service.ports.iter().map(|port| (port.number, port.number)).collect();
        return vec![Instance {
            address: name.clone(),
            ports,
            labels: BTreeMap::new(),
            weight: 0,
            locality: String::new(),
        }];
    }
    let slices = cx.bucket::<SlicesByService>(&service.meta.key());
    if !slices.is_empty() {
        return slices
            .iter()
            .filter_map(|key| cx.input::<EndpointSlices>(key))
            .flat_map(|slice| of_slice(cx, service, &slice))
            .collect();
    }
    let pods = pods_selected(cx, &service.meta.namespace, &service.selector);
    let pods = pods.into_iter().filter(|pod| pod.ready || service.publish_not_ready);
    pods.filter_map(|pod| {
        let ports = service.ports.iter().filter_map(|port| Some((port.number, target(port, &pod)?)));
        instance(pod.ips.first()?, ports.collect(), Some(&pod))
    })
    .collect()
}

fn of_slice(cx: &Cx<'_>, service: &kube::Service, slice: &kube::EndpointSlice) -> Vec<Instance> {
    let ports: BTreeMap<u16, u16> = service
        .ports
        .iter()
        .filter_map(|port| {
            let found = slice.ports.iter().find(|candidate| candidate.name == port.name)?;
            Some((port.number, found.number))
        })
        .collect();
    let endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.ready || service.publish_not_ready);
    endpoints
        .filter_map(|endpoint| {
            let pod = endpoint.pod.as_ref().and_then(|name| {
                cx.input::<Pods>(&Key { namespace: slice.meta.namespace.clone(), name: name.clone() })
            });
            instance(endpoint.addresses.first()?, ports.clone(), pod.as_deref())
        })
        .collect()
}

fn instance(address: &IpAddr, ports: BTreeMap<u16, u16>, pod: Option<&kube::Pod>) -> Option<Instance> {
    let labels = pod.map(|pod| pod.meta.labels.clone()).unwrap_or_default();
    let locality = labels.get("topology.istio.io/locality").map(|locality| locality.replace('.', "/"));
    (!ports.is_empty()).then(|| Instance {
        address: address.to_string(),
        ports,
        labels,
        weight: 0,
        locality: locality.unwrap_or_default(),
    })
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
) -> Vec<std::sync::Arc<kube::Pod>> {
    let Some((name, value)) = selector.first_key_value() else { return Vec::new() };
    let candidates = cx.bucket::<PodsByLabel>(&(namespace.to_owned(), name.clone(), value.clone()));
    let pods = candidates.iter().filter_map(|key| cx.input::<Pods>(key));
    pods.filter(|pod| !pod.gone && selects(selector, &pod.meta.labels)).collect()
}

fn of_entry(cx: &Cx<'_>, entry: &Config<ServiceEntry>, host: &str) -> Vec<Instance> {
    let spec = &entry.spec;
    let ports_of = |named: &BTreeMap<String, u32>| -> BTreeMap<u16, u16> {
        let ports = spec.ports.iter().filter_map(|port| {
            let target = named.get(&port.name).copied().filter(|target| *target != 0);
            let target = target.unwrap_or(if port.target_port == 0 { port.number } else { port.target_port });
            Some((u16::try_from(port.number).ok()?, u16::try_from(target).ok()?))
        });
        ports.collect()
    };
    if let Some(selector) = &spec.workload_selector {
        let pods = pods_selected(cx, &entry.meta.namespace, &selector.labels);
        let pods = pods.into_iter().filter(|pod| pod.ready);
        return pods
            .filter_map(|pod| instance(pod.ips.first()?, ports_of(&BTreeMap::new()), Some(&pod)))
            .collect();
    }
    if spec.endpoints.is_empty() && matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
        return vec![Instance {
            address: host.to_owned(),
            ports: ports_of(&BTreeMap::new()),
            labels: BTreeMap::new(),
            weight: 0,
            locality: String::new(),
        }];
    }
    let endpoints = spec.endpoints.iter().map(|endpoint| Instance {
        address: endpoint.address.clone(),
        ports: ports_of(&endpoint.ports),
        labels: endpoint.labels.clone(),
        weight: endpoint.weight,
        locality: endpoint.locality.clone(),
    });
    endpoints.collect()
}
