//! EDS: the addresses behind each cluster.
//!
//! An assignment is derived once per cluster and [`View`], and shared by all proxies for which both
//! are the same. `priority.rs` orders and weighs places; `network.rs` puts gateways in place of what
//! lies in other networks.

mod network;
mod priority;

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::cluster;
use super::proto::{core, endpoint};
use super::resource::{Resource, address, metadata_of, object, pipe, text};
use crate::model::Kind;
use crate::model::destination_rule::ClientTlsMode;
use crate::registry::instances::{Health, Instance, Instances};
use crate::registry::network::Networks;
use crate::registry::{self, Distribution, Mesh, Service};
use crate::scope::locality::{EndpointsOf, LocalitySetting, View};
use crate::scope::policy::{Effective, EffectivePolicy, MergedPolicy};
use crate::scope::{ProxyKey, mutual_tls};

/// The endpoints that a proxy asks for by a cluster's name; `None` if it has no such cluster. A root.
pub(crate) struct Endpoints;

impl Query for Endpoints {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "endpoints";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        let key = cluster::find(cx, &proxy.viewer(cx), name)?.endpoints();
        let view = proxy.view(cx, &key);
        Some(cx.get::<LoadAssignment>(&(key, view)))
    }
}

/// The endpoints of one cluster, shared by all proxies that have it and see it in the same way.
struct LoadAssignment;

impl Query for LoadAssignment {
    type Key = (EndpointsOf, View);
    type Value = Resource;
    const NAME: &'static str = "load-assignment";

    fn derive(cx: &Cx<'_>, (key, view): &(EndpointsOf, View)) -> Resource {
        let message = assignment(cx, key, view);
        let rules = key.policy.rules.iter().map(|rule| rule.of(Kind::DestinationRule));
        let origins = rules.chain([key.service.object.clone()]).collect();
        Resource::new(&message.cluster_name, &message, origins)
    }
}

/// Endpoints in one place, with what they were made of.
pub(super) struct Place<'i> {
    message: endpoint::LocalityLbEndpoints,
    /// What stands behind each endpoint.
    behind: Vec<Behind<'i>>,
}

/// What stands behind an endpoint.
enum Behind<'i> {
    Instance(&'i Instance),
    /// A gateway into a network.
    Gateway(String),
}

impl Behind<'_> {
    fn label(&self, name: &str) -> &str {
        use crate::scope::locality::{CLUSTER, CLUSTER_ID, NETWORK};
        match self {
            Behind::Instance(instance) => instance.label(name),
            Behind::Gateway(network) if name == NETWORK => network,
            Behind::Gateway(_) if name == CLUSTER => CLUSTER_ID,
            Behind::Gateway(_) => "",
        }
    }
}

/// The endpoints of one cluster, by place.
pub(crate) fn assignment(cx: &Cx<'_>, key: &EndpointsOf, view: &View) -> endpoint::ClusterLoadAssignment {
    let cluster_name = cluster::name_of(key.sni, key.policy.port, &key.policy.subset, &key.service.host);
    let empty = |cluster_name| endpoint::ClusterLoadAssignment {
        cluster_name,
        ..endpoint::ClusterLoadAssignment::default()
    };
    let Some(service) = registry::find(cx, &key.service) else { return empty(cluster_name) };
    let mesh = cx.get::<Mesh>(&());
    let effective = cx.get::<EffectivePolicy>(&key.policy);
    let instances = cx.get::<Instances>(&key.service);
    let mut places = places(cx, key, view, &service, &effective, &instances);
    let networks = cx.get::<Networks>(&());
    if networks.has_gateways() {
        network::substitute(&mut places, &networks, &view.network, service.resolution.is_dns());
    }
    let setting = LocalitySetting::of(&mesh, effective.load_balancer.as_ref(), &service);
    if let Some(setting) = &setting {
        priority::apply(&mut places, setting, view, effective.outlier_detection.is_some());
    }
    endpoint::ClusterLoadAssignment {
        endpoints: places.into_iter().map(|place| place.message).collect(),
        ..empty(cluster_name)
    }
}

/// The endpoints that a client may know of, by place.
fn places<'i>(
    cx: &Cx<'_>,
    key: &EndpointsOf,
    view: &View,
    service: &Service,
    effective: &Effective,
    instances: &'i [Instance],
) -> Vec<Place<'i>> {
    let merged = cx.get::<MergedPolicy>(&key.policy.rules);
    let wanted = merged.subset(&key.policy.subset).map(|subset| &subset.labels);
    let networks = cx.get::<Networks>(&());
    // Where the readiness of endpoints sends clients on to other places they have to know how many
    // are not ready. Elsewhere these would send them on too, which nobody has asked for.
    let unready = service.distribution != Distribution::Any;
    let usable = |instance: &&Instance| {
        let health = match instance.health {
            Health::Healthy => true,
            Health::Unhealthy => unready,
            Health::Draining => service.is_persistent(),
        };
        // What has no address can only be reached by the gateway of its network.
        let reachable = !instance.address.is_empty() || networks.has_gateways();
        health
            && reachable
            && wanted.is_none_or(|labels| instance.has(labels))
            && (!service.node_local || instance.node == view.node)
    };
    let mode = effective.tls.as_ref().map(|tls| tls.mode);
    let mut places: BTreeMap<&str, Place<'i>> = BTreeMap::new();
    for instance in instances.iter().filter(usable) {
        let Some(port) = instance.ports.get(&key.policy.port) else { continue };
        // What a rule says goes before what the endpoint would prefer.
        let mutual = instance.mutual_tls
            && match mode {
                Some(mode) => mode == Some(ClientTlsMode::IstioMutual),
                None => mutual_tls::accepts(cx, instance, *port),
            };
        if key.sni && !mutual {
            continue;
        }
        let place = places.entry(&instance.locality).or_insert_with(|| Place::at(&instance.locality));
        place.message.lb_endpoints.push(lb_endpoint(instance, *port, mutual));
        place.behind.push(Behind::Instance(instance));
    }
    let mut places: Vec<Place<'i>> = places.into_values().collect();
    places.iter_mut().for_each(|place| place.weigh());
    places
}

impl Place<'_> {
    /// A place without endpoints yet.
    fn at(locality: &str) -> Self {
        let mut parts = locality.splitn(3, '/').map(str::to_owned);
        let locality = core::Locality {
            region: parts.next().unwrap_or_default(),
            zone: parts.next().unwrap_or_default(),
            sub_zone: parts.next().unwrap_or_default(),
        };
        let message = endpoint::LocalityLbEndpoints {
            locality: Some(locality),
            ..endpoint::LocalityLbEndpoints::default()
        };
        Place { message, behind: Vec::new() }
    }

    /// Gives the place the weight of its endpoints.
    fn weigh(&mut self) {
        let weights = self.message.lb_endpoints.iter().filter_map(|one| one.load_balancing_weight);
        let weight = weights.fold(0, u32::saturating_add);
        self.message.load_balancing_weight = (!self.message.lb_endpoints.is_empty()).then_some(weight);
    }
}

fn lb_endpoint(instance: &Instance, port: u16, mutual: bool) -> endpoint::LbEndpoint {
    let status = match instance.health {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
        Health::Draining => core::HealthStatus::Draining,
    };
    let more = instance
        .more
        .iter()
        .map(|ip| endpoint::endpoint::AdditionalAddress { address: Some(address(&ip.to_string(), port)) });
    endpoint::LbEndpoint {
        health_status: status as i32,
        load_balancing_weight: Some(instance.weight.max(1)),
        metadata: Some(metadata(&instance.telemetry(), mutual)),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(if port == 0 { pipe(&instance.address) } else { address(&instance.address, port) }),
            additional_addresses: more.collect(),
            ..endpoint::Endpoint::default()
        })),
    }
}

/// What clients know of an endpoint: by what it is counted, and whether it speaks mutual TLS.
fn metadata(workload: &str, mutual: bool) -> core::Metadata {
    let mut namespaces = vec![("istio", object([("workload", text(workload))]))];
    if mutual {
        namespaces.push(("envoy.transport_socket_match", object([("tlsMode", text("istio"))])));
    }
    metadata_of(namespaces)
}
