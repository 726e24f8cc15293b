//! EDS: the addresses behind each cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::cluster::{self, ClusterKey};
use super::proto::{core, endpoint};
use super::resource::{Resource, address};
use crate::registry::instances::Instances;
use crate::scope::ProxyKey;
use crate::scope::policy::MergedPolicy;

/// The endpoints that a proxy asks for by a cluster's name; `None` if it has no such cluster. A root
/// for a proxy as a client, see [`crate::scope::client::ClientOf`].
pub(crate) struct Endpoints;

impl Query for Endpoints {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "endpoints";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        let key = cluster::find(cx, &proxy.viewer(cx), name)?;
        Some(cx.get::<LoadAssignment>(&key))
    }
}

/// The endpoints of one cluster, shared by all proxies that have it.
struct LoadAssignment;

impl Query for LoadAssignment {
    type Key = ClusterKey;
    type Value = Resource;
    const NAME: &'static str = "load-assignment";

    fn derive(cx: &Cx<'_>, key: &ClusterKey) -> Resource {
        let message = assignment(cx, key);
        Resource::new(&message.cluster_name, &message, vec![key.service.object.clone()])
    }
}

/// The endpoints of one cluster, by locality.
pub(crate) fn assignment(cx: &Cx<'_>, key: &ClusterKey) -> endpoint::ClusterLoadAssignment {
    let merged = cx.get::<MergedPolicy>(&key.rules);
    let wanted = merged.subset(&key.subset).map(|subset| &subset.labels);
    let instances = cx.get::<Instances>(&key.service);
    let mut localities: BTreeMap<&str, Vec<endpoint::LbEndpoint>> = BTreeMap::new();
    for instance in instances.iter().filter(|instance| wanted.is_none_or(|labels| instance.has(labels))) {
        let Some(port) = instance.ports.get(&key.port) else { continue };
        localities.entry(&instance.locality).or_default().push(endpoint::LbEndpoint {
            health_status: core::HealthStatus::Healthy as i32,
            load_balancing_weight: Some(instance.weight.max(1)),
            host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
                address: Some(address(&instance.address, *port)),
                ..endpoint::Endpoint::default()
            })),
            ..endpoint::LbEndpoint::default()
        });
    }
    let localities = localities.into_iter().map(|(name, endpoints)| {
        let weights = endpoints.iter().filter_map(|endpoint| endpoint.load_balancing_weight);
        let weight = weights.fold(0, u32::saturating_add);
        endpoint::LocalityLbEndpoints {
            locality: Some(locality(name)),
            lb_endpoints: endpoints,
            load_balancing_weight: Some(weight),
            ..endpoint::LocalityLbEndpoints::default()
        }
    });
    endpoint::ClusterLoadAssignment {
        cluster_name: key.name(),
        endpoints: localities.collect(),
        ..endpoint::ClusterLoadAssignment::default()
    }
}

/// `region/zone/subzone`, of which the end may be missing.
fn locality(name: &str) -> core::Locality {
    let mut parts = name.splitn(3, '/').map(str::to_owned);
    core::Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    }
}
