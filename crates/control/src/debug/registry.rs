//! Pages about what exists: services, endpoints, networks, clusters.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Answer, Look, Question};
use crate::push::session::Session;
use crate::registry::instances::{Health, Instance, Instances};
use crate::registry::network::Networks;
use crate::registry::protocol::Protocol;
use crate::registry::targets::{Target, Targets};
use crate::registry::{AllServices, Port, Resolution, Service};
use crate::scope::locality::CLUSTER_ID;

/// Istiod's name of where Kubernetes' services come from.
const KUBERNETES: &str = "Kubernetes";
/// The same of ServiceEntries.
const EXTERNAL: &str = "External";

/// `/debug/registryz`: the services, with the addresses that DNS should give for them and the
/// endpoints behind them. Fields that begin with capitals, and those around them, are istiod's.
pub(super) fn registryz(look: Look<'_>, _: &Question) -> Answer {
    let all = with_instances(look);
    Answer::later(move || Answer::Json(all.iter().map(|(service, found)| entry(service, found)).collect()))
}

/// All services, with the endpoints behind each.
fn with_instances(look: Look<'_>) -> Vec<(Arc<Service>, Arc<Vec<Instance>>)> {
    let services = look.graph.peek::<AllServices>(&());
    services.iter().map(|service| (Arc::clone(service), look.graph.peek::<Instances>(&service.id))).collect()
}

fn entry(service: &Service, instances: &[Instance]) -> Value {
    let mut value = service_of(service);
    let endpoints: Vec<Value> = instances
        .iter()
        .map(|instance| {
            json!({
                "address": instance.address,
                "ports": instance.ports,
                "healthy": instance.health == Health::Healthy,
            })
        })
        .collect();
    let more = json!({
        "namespace": service.namespace(),
        "name": service.name,
        "kind": service.id.object.kind.to_string(),
        "addresses": service.addresses,
        "headless": service.is_kubernetes() && service.resolution == Resolution::OriginalDst,
        "resolution": format!("{:?}", service.resolution),
        "external": service.external,
        "endpoints": endpoints,
    });
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}

/// A service in istiod's form.
fn service_of(service: &Service) -> Value {
    let ports: Vec<Value> = service.ports.iter().map(port_of).collect();
    let registry = if service.is_kubernetes() { KUBERNETES } else { EXTERNAL };
    json!({
        "Attributes": {
            "ServiceRegistry": registry,
            "Name": service.name,
            "Namespace": service.namespace(),
            "Labels": service.labels,
        },
        "ports": ports,
        "creationTime": if service.created.is_empty() { "0001-01-01T00:00:00Z" } else { &service.created },
        "hostname": service.id.host,
        "clusterVIPs": { "Addresses": { CLUSTER_ID: service.addresses } },
        "defaultAddress": service.addresses.first().map_or("0.0.0.0", String::as_str),
        "Resolution": match service.resolution {
            Resolution::Endpoints => 0,
            Resolution::Dns => 1,
            Resolution::DnsRoundRobin => 2,
            Resolution::OriginalDst => 3,
            Resolution::Alias => 4,
            Resolution::Dynamic => 5,
        },
        "MeshExternal": service.external,
    })
}

fn port_of(port: &Port) -> Value {
    json!({
        "name": port.name,
        "port": port.number,
        "number": port.number,
        "protocol": protocol(port.protocol),
    })
}

/// Istiod's name of a protocol.
fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-Web",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Mongo => "Mongo",
        Protocol::Redis => "Redis",
        Protocol::MySql => "MySQL",
        Protocol::Auto => "UnsupportedProtocol",
        Protocol::Datagram => "UDP",
    }
}

/// `/debug/endpointShardz`: the endpoints by host, namespace and where they come from.
pub(super) fn endpointz(look: Look<'_>, _: &Question) -> Answer {
    let all = with_instances(look);
    Answer::later(move || Answer::Json(shards(&all)))
}

fn shards(all: &[(Arc<Service>, Arc<Vec<Instance>>)]) -> Value {
    let mut hosts: Map<String, Value> = Map::new();
    for (service, instances) in all {
        let endpoints: Vec<Value> =
            instances.iter().flat_map(|instance| endpoints_of(service, instance)).collect();
        let accounts: Map<String, Value> = instances
            .iter()
            .filter(|instance| !instance.identity.is_empty())
            .map(|instance| (instance.identity.clone(), json!({})))
            .collect();
        let registry = if service.is_kubernetes() { KUBERNETES } else { EXTERNAL };
        let shards = json!({
            "Shards": { format!("{registry}/{CLUSTER_ID}"): endpoints },
            "ServiceAccounts": accounts,
        });
        let host = hosts.entry(service.id.host.clone()).or_insert_with(|| json!({}));
        if let Some(host) = host.as_object_mut() {
            host.insert(service.namespace().to_owned(), shards);
        }
    }
    Value::from(hosts)
}

/// An endpoint in istiod's form, for each of its ports.
fn endpoints_of(service: &Arc<Service>, instance: &Instance) -> Vec<Value> {
    let mut addresses = vec![instance.address.clone()];
    addresses.extend(instance.more.iter().map(ToString::to_string));
    let of_port = |(number, target): (&u16, &u16)| {
        json!({
            "Labels": instance.labels(),
            "Addresses": addresses,
            "ServicePortName": service.port(*number).map(|port| port.name.as_str()).unwrap_or_default(),
            "ServiceAccount": instance.identity,
            "Network": instance.network,
            "Locality": { "Label": instance.locality, "ClusterID": CLUSTER_ID },
            "EndpointPort": target,
            "LbWeight": instance.weight,
            "TLSMode": if instance.mutual_tls { "istio" } else { "disabled" },
            "Namespace": instance.namespace,
            "WorkloadName": instance.workload,
            "HostName": instance.hostname,
            "HealthStatus": match instance.health {
                Health::Healthy => 1,
                Health::Unhealthy => 2,
                Health::Draining => 3,
            },
            "NodeName": instance.node,
        })
    };
    instance.ports.iter().map(of_port).collect()
}

/// `/debug/instancesz`: the services in front of each connected proxy's workload.
pub(super) fn instancesz(look: Look<'_>, _: &Question) -> Answer {
    let of_session =
        |session: &Session| (session.node.clone(), look.graph.peek::<Targets>(&session.key.workload()));
    let all: Vec<(String, Arc<Vec<Target>>)> = look.push.sessions().map(of_session).collect();
    Answer::later(move || Answer::Json(instances_of(&all)))
}

fn instances_of(all: &[(String, Arc<Vec<Target>>)]) -> Value {
    let mut proxies = Map::new();
    for (node, targets) in all {
        let targets = targets.iter().map(|target| {
            let port = target.service.port(target.port);
            json!({
                "Service": service_of(&target.service),
                "Port": {
                    "name": port.map(|port| port.name.as_str()).unwrap_or_default(),
                    "port": target.port,
                    "protocol": port.map(|port| protocol(port.protocol)).unwrap_or_default(),
                    "TargetPort": target.target,
                },
            })
        });
        proxies.insert(node.clone(), targets.collect());
    }
    Value::from(proxies)
}

/// `/debug/networkz`: the gateways between networks.
pub(super) fn networkz(look: Look<'_>, _: &Question) -> Answer {
    Answer::Json(gateways(look))
}

/// The gateways between networks in istiod's form.
pub(super) fn gateways(look: Look<'_>) -> Value {
    let networks = look.graph.peek::<Networks>(&());
    let gateways = networks.gateways().iter().map(|gateway| {
        json!({
            "Network": gateway.network,
            "Cluster": gateway.cluster,
            "Addr": gateway.address,
            "Port": gateway.port,
        })
    });
    gateways.collect()
}

/// `/debug/clusterz`: the clusters that are read. There is one.
pub(super) fn clusterz(look: Look<'_>, _: &Question) -> Answer {
    let status =
        if look.origins.values().any(|origin| origin.generation.is_some()) { "synced" } else { "none" };
    Answer::Json(json!([{ "id": CLUSTER_ID, "secretName": "", "syncStatus": status }]))
}

/// `/debug/mcsz`: what there is of Kubernetes' Multi-Cluster Services.
pub(super) fn mcsz(_: Look<'_>, _: &Question) -> Answer {
    let text = "one cluster is read, and ServiceExport and ServiceImport are not: there is nothing to tell\n";
    Answer::Fault(StatusCode::NOT_FOUND, text.to_owned())
}
