//! Kubernetes' own kinds, reduced to what the mesh looks at.
//!
//! They are read with `k8s-openapi`'s types and kept in these: a Pod's full form is large, and every
//! field kept is one whose change disturbs what was derived from it.

pub(crate) mod secret;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(crate) use self::secret::{ConfigMap, Secret};
use super::Meta;
use super::check::Check;
use super::diagnostic::Finding;

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) meta: Meta,
    /// Virtual addresses; empty for headless and external services, and where none is assigned yet.
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub(crate) headless: bool,
    /// The DNS name that a Service of type ExternalName stands for.
    pub(crate) external_name: Option<String>,
    pub(crate) ports: Vec<ServicePort>,
    /// Labels of its pods; empty if endpoints are given by hand.
    pub(crate) selector: BTreeMap<String, String>,
    /// Whether pods that are not ready count.
    pub(crate) publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`: clients use endpoints on their own machine only.
    pub(crate) node_local: bool,
    /// `trafficDistribution`.
    pub(crate) distribution: Option<String>,
    /// Whether it has, or is to have, a load balancer.
    pub(crate) balanced: bool,
    /// Where it can be reached from outside the cluster: addresses of its load balancer, or names,
    /// and its `externalIPs`.
    pub(crate) external_addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) target: TargetPort,
    pub(crate) app_protocol: Option<String>,
    /// Whether it is a UDP or SCTP port, which proxies do not carry.
    pub(crate) datagram: bool,
    /// The port of all machines that leads here too.
    pub(crate) node_port: Option<u16>,
}

/// The port of the pods that a Service port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// A Pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pod {
    pub(crate) meta: Meta,
    /// Its addresses, the primary one first; empty until it has one.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// Whether it is being deleted or has run to its end.
    pub(crate) gone: bool,
    pub(crate) service_account: String,
    pub(crate) node: String,
    /// Container ports that have names.
    pub(crate) named_ports: BTreeMap<String, u16>,
    /// What it is a part of, as far as its name and owner tell; else its own name.
    pub(crate) workload: String,
    /// Its name below that of the headless service that it belongs to; empty if it has none.
    pub(crate) hostname: String,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EndpointSlice {
    pub(crate) meta: Meta,
    /// The Service that it belongs to, in the same namespace.
    pub(crate) service: String,
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub(crate) name: String,
    pub(crate) number: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// Whether it still answers, ready for new work or not.
    pub(crate) serving: bool,
    /// Whether it is on its way out; false if it is ready.
    pub(crate) terminating: bool,
    /// The machine that it runs on.
    pub(crate) node: Option<String>,
    /// The pod behind it, in the same namespace.
    pub(crate) pod: Option<String>,
}

/// A Namespace; its labels say how its pods take part in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) meta: Meta,
}

/// A Node; its labels say where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    /// Addresses inside the cluster.
    pub(crate) internal: Vec<IpAddr>,
    /// Addresses by which others reach it.
    pub(crate) external: Vec<IpAddr>,
}

/// Endpoints: what came before EndpointSlices, written by hand for Services without a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) meta: Meta,
    pub(crate) subsets: Vec<EndpointSubset>,
}

/// Addresses of which each serves all of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointSubset {
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

/// The label that names the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reduces a Service.
pub(crate) fn service(meta: Meta, service: core::Service) -> (Service, Vec<Finding>) {
    let mut check = Check::spec();
    let spec = service.spec.unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let kind = spec.type_.as_deref().unwrap_or_default();
    let balancer = service.status.and_then(|status| status.load_balancer).filter(|_| kind == "LoadBalancer");
    let balancer = balancer.and_then(|balancer| balancer.ingress).unwrap_or_default().into_iter();
    let balanced = kind == "LoadBalancer";
    let mut external_addresses: Vec<String> =
        balancer.filter_map(|ingress| ingress.ip.or(ingress.hostname)).collect();
    external_addresses.extend(spec.external_ips.unwrap_or_default());
    let mut ips = spec.cluster_ips.unwrap_or_default();
    if ips.is_empty() {
        ips.extend(spec.cluster_ip);
    }
    let external_name =
        (spec.type_.as_deref() == Some("ExternalName")).then_some(spec.external_name).flatten();
    let mut ports = Vec::new();
    check.each("ports", &spec.ports.unwrap_or_default(), |check, port| {
        let Ok(number @ 1..) = u16::try_from(port.port) else {
            return check.at("port", |check| check.invalid(format!("{} is no port", port.port)));
        };
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => match u16::try_from(*target) {
                Ok(target) => TargetPort::Number(target),
                Err(_) => {
                    return check.at("targetPort", |check| check.invalid(format!("{target} is no port")));
                }
            },
            Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
        };
        ports.push(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            number,
            target,
            app_protocol: port.app_protocol.clone(),
            datagram: port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP"),
            node_port: port.node_port.and_then(|number| u16::try_from(number).ok()),
        });
    });
    let service = Service {
        meta,
        cluster_ips: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        headless,
        external_name,
        ports,
        selector: spec.selector.unwrap_or_default(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        distribution: spec.traffic_distribution,
        balanced,
        external_addresses,
    };
    (service, check.into_findings())
}

/// Reduces a Pod.
pub(crate) fn pod(meta: Meta, pod: core::Pod) -> Pod {
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let workload = workload(&pod.metadata);
    let spec = pod.spec.unwrap_or_default();
    let hostname = spec.subdomain.filter(|name| !name.is_empty()).map(|_| match spec.hostname {
        Some(name) if !name.is_empty() => name,
        _ => meta.name.clone(),
    });
    let status = pod.status.unwrap_or_default();
    let mut ips: Vec<IpAddr> =
        status.pod_ips.unwrap_or_default().iter().filter_map(|ip| ip.ip.parse().ok()).collect();
    if let Some(primary) = status.pod_ip.and_then(|ip| ip.parse().ok())
        && !ips.contains(&primary)
    {
        ips.insert(0, primary);
    }
    // A pod written by hand may have an address and nothing more: it counts as ready.
    let ready = match &status.conditions {
        Some(conditions) => conditions
            .iter()
            .find(|condition| condition.type_ == "Ready")
            .is_some_and(|condition| condition.status == "True"),
        None => matches!(status.phase.as_deref(), None | Some("Running")),
    };
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let sidecars = spec.init_containers.unwrap_or_default();
    let containers = spec.containers.iter().chain(&sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named_ports = ports
        .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
        .collect();
    Pod {
        meta,
        ips,
        ready,
        gone: deleted || ended,
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        node: spec.node_name.unwrap_or_default(),
        named_ports,
        workload,
        hostname: hostname.unwrap_or_default(),
    }
}

/// What a pod is a part of: its controller, or that one's own where the name tells (as those of the
/// ReplicaSets of a Deployment and the Jobs of a CronJob do); Istio guesses in the same way.
fn workload(metadata: &ObjectMeta) -> String {
    let own = metadata.name.clone().unwrap_or_default();
    if metadata.generate_name.as_deref().unwrap_or_default().is_empty() {
        return own;
    }
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else { return own };
    let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let found = match owner.kind.as_str() {
        "ReplicaSet" => ["pod-template-hash", "rollouts-pod-template-hash"].into_iter().find_map(|hash| {
            let hash = label(hash).filter(|hash| !hash.is_empty())?;
            owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')
        }),
        "ReplicationController" => label("deploymentconfig").map(String::as_str),
        "Job" => owner.name.rsplit_once('-').and_then(|(name, time)| {
            let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
            is_time.then_some(name)
        }),
        _ => None,
    };
    found.unwrap_or(&owner.name).to_owned()
}

/// Reduces an EndpointSlice.
pub(crate) fn endpoint_slice(meta: Meta, slice: discovery::EndpointSlice) -> (EndpointSlice, Vec<Finding>) {
    let mut check = Check::default();
    let service = meta.labels.get(SERVICE_NAME).cloned().unwrap_or_default();
    if service.is_empty() {
        check.at("metadata", |check| {
            check.warn("no-effect", format!("belongs to no service, as it lacks the label {SERVICE_NAME}"));
        });
    }
    let ports = slice.ports.unwrap_or_default();
    let ports = ports.into_iter().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some(SlicePort { name: port.name.unwrap_or_default(), number })
    });
    let ports = ports.collect();
    let mut endpoints = Vec::new();
    check.each("endpoints", &slice.endpoints, |check, endpoint| {
        let addresses: Vec<IpAddr> = endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
        if slice.address_type != "FQDN" && addresses.len() < endpoint.addresses.len() {
            check.at("addresses", |check| check.invalid("not all are addresses"));
        }
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        endpoints.push(SliceEndpoint {
            addresses,
            // Not said means yes; a terminating endpoint that still serves is not given new work.
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.ready == Some(false) && conditions.terminating.unwrap_or(true),
            node: endpoint.node_name.clone(),
            pod: pod.and_then(|target| target.name.clone()),
        });
    });
    (EndpointSlice { meta, service, ports, endpoints }, check.into_findings())
}

/// Reduces a Node.
pub(crate) fn node(meta: Meta, node: core::Node) -> Node {
    let addresses = node.status.unwrap_or_default().addresses.unwrap_or_default();
    let of = |wanted: &str| {
        let chosen = addresses.iter().filter(|address| address.type_ == wanted);
        chosen.filter_map(|address| address.address.parse().ok()).collect()
    };
    Node { meta, internal: of("InternalIP"), external: of("ExternalIP") }
}

/// Reduces an Endpoints.
pub(crate) fn endpoints(meta: Meta, endpoints: core::Endpoints) -> (Endpoints, Vec<Finding>) {
    let mut check = Check::default();
    let mut subsets = Vec::new();
    check.each("subsets", &endpoints.subsets.unwrap_or_default(), |check, subset| {
        let ports = subset.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            Some(SlicePort { name: port.name.clone().unwrap_or_default(), number })
        });
        let mut found = Vec::new();
        for (field, list, ready) in [
            ("addresses", &subset.addresses, true),
            ("notReadyAddresses", &subset.not_ready_addresses, false),
        ] {
            check.each(field, list.as_deref().unwrap_or_default(), |check, address| {
                let Ok(ip) = address.ip.parse() else {
                    return check.at("ip", |check| check.invalid(format!("{:?} is no address", address.ip)));
                };
                let pod = address.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
                let pod = pod.and_then(|target| target.name.clone());
                found.push(SliceEndpoint {
                    addresses: vec![ip],
                    ready,
                    serving: ready,
                    terminating: false,
                    node: address.node_name.clone(),
                    pod,
                });
            });
        }
        subsets.push(EndpointSubset { ports: ports.collect(), endpoints: found });
    });
    (Endpoints { meta, subsets }, check.into_findings())
}
