//! CDS: what each proxy can send traffic to.
//!
//! A cluster is derived once per service port, subset and set of rules, and shared by all proxies
//! to which the same rules apply. `policy.rs` applies the rules; `inbound.rs` has the clusters that
//! lead to the workload itself.

mod inbound;
mod policy;

use std::sync::Arc;

use leno_derive::{Cx, Query};

use self::policy::HttpVersion;
use super::endpoint;
use super::name;
use super::proto::{cluster, core};
use super::resource::{Resource, ads, istio_metadata, list, number, object, text, truth};
use crate::model::destination_rule::Simple;
use crate::model::{Key, Kind};
use crate::registry::protocol::Protocol;
use crate::registry::{self, Resolution, Service, ServiceId, Visible};
#[cfg(test)]
use crate::scope::client::ClientOf;
use crate::scope::policy::{Effective, MergedPolicy, Policies, PolicyKey};
use crate::scope::{ProxyKey, Viewer};

/// How long a connection may take to come up by default.
const CONNECT_TIMEOUT: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };

/// How often an address that nobody uses any more is forgotten by clusters without endpoints.
const CLEANUP_INTERVAL: prost_types::Duration = prost_types::Duration { seconds: 60, nanos: 0 };

/// All that an outbound cluster depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClusterKey {
    pub(crate) service: ServiceId,
    pub(crate) port: u16,
    /// Empty for the whole service.
    pub(crate) subset: String,
    /// The DestinationRules that apply, in the order of merging.
    pub(crate) rules: Vec<Key>,
    /// Whether it may lead to the caller's original destination. Always true where that makes no
    /// difference, so that more proxies share the cluster.
    pub(crate) direct: bool,
}

impl ClusterKey {
    /// The cluster's name.
    pub(crate) fn name(&self) -> String {
        name::outbound(self.port, &self.subset, &self.service.host)
    }
}

/// The outbound clusters of a client, in the order of their names.
pub(crate) struct ClusterKeys;

impl Query for ClusterKeys {
    type Key = Viewer;
    type Value = Vec<ClusterKey>;
    const NAME: &'static str = "cluster-keys";

    fn derive(cx: &Cx<'_>, viewer: &Viewer) -> Vec<ClusterKey> {
        let mut keys = Vec::new();
        for service in cx.get::<Visible>(&viewer.namespace).values() {
            let rules = policies(cx, viewer, service);
            let merged = cx.get::<MergedPolicy>(&rules);
            let direct = is_direct(viewer, service);
            for port in service.ports.iter().filter(|port| port.protocol != Protocol::Datagram) {
                let subsets = merged.subsets.iter().map(|subset| subset.name.clone());
                for subset in std::iter::once(String::new()).chain(subsets) {
                    let rules = rules.clone();
                    keys.push(ClusterKey {
                        service: service.id.clone(),
                        port: port.number,
                        subset,
                        rules,
                        direct,
                    });
                }
            }
        }
        keys
    }
}

/// The rules that apply when a client calls a service.
pub(crate) fn policies(cx: &Cx<'_>, viewer: &Viewer, service: &Service) -> Vec<Key> {
    let key = PolicyKey {
        viewer: viewer.clone(),
        host: service.id.host.clone(),
        namespace: service.namespace().to_owned(),
    };
    cx.get::<Policies>(&key).as_ref().clone()
}

/// A client's cluster by its name.
pub(crate) fn find(cx: &Cx<'_>, viewer: &Viewer, name: &str) -> Option<ClusterKey> {
    let parsed = name::parse_outbound(name)?;
    let visible = cx.get::<Visible>(&viewer.namespace);
    let service = visible.get(parsed.host)?;
    service.port(parsed.port).filter(|port| port.protocol != Protocol::Datagram)?;
    let rules = policies(cx, viewer, service);
    if !parsed.subset.is_empty() {
        cx.get::<MergedPolicy>(&rules).subset(parsed.subset)?;
    }
    Some(ClusterKey {
        service: service.id.clone(),
        port: parsed.port,
        subset: parsed.subset.to_owned(),
        rules,
        direct: is_direct(viewer, service),
    })
}

fn is_direct(viewer: &Viewer, service: &Service) -> bool {
    viewer.captures || service.resolution != Resolution::OriginalDst
}

/// All clusters of a proxy.
#[cfg(test)] // proxies are told of the two parts one by one
pub(crate) struct Clusters;

#[cfg(test)]
impl Query for Clusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "clusters";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        let mut clusters = cx.get::<SharedClusters>(&cx.get::<ClientOf>(proxy)).as_ref().clone();
        clusters.extend(cx.get::<OwnClusters>(proxy).iter().cloned());
        clusters
    }
}

/// The clusters that a proxy has as a client, see [`crate::scope::client::ClientOf`]. A root.
pub(crate) struct SharedClusters;

impl Query for SharedClusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "shared-clusters";

    fn derive(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
        let outbound = cx.get::<ClusterKeys>(&client.viewer(cx));
        let mut clusters: Vec<Arc<Resource>> =
            outbound.iter().filter_map(|key| cx.get::<Outbound>(key).as_ref().clone()).collect();
        clusters.push(Arc::new(encode(&black_hole())));
        if client.captures() {
            clusters.push(Arc::new(encode(&passthrough())));
        }
        clusters
    }
}

/// The clusters that lead to a proxy's own workload. A root.
pub(crate) struct OwnClusters;

impl Query for OwnClusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "own-clusters";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        if !proxy.captures() {
            return Vec::new();
        }
        cx.get::<inbound::InboundClusters>(&proxy.workload()).as_ref().clone()
    }
}

/// One outbound cluster; `None` if the service is no longer there.
struct Outbound;

impl Query for Outbound {
    type Key = ClusterKey;
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "outbound-cluster";

    fn derive(cx: &Cx<'_>, key: &ClusterKey) -> Option<Arc<Resource>> {
        let service = registry::find(cx, &key.service)?;
        let port = service.port(key.port)?;
        let merged = cx.get::<MergedPolicy>(&key.rules);
        let subset = merged.subset(&key.subset);
        let effective = merged.effective(key.port, subset);
        let mut message = outbound(cx, key, &service, &effective);
        message.metadata = Some(metadata(key, &service, merged.first.as_ref()));
        policy::apply(&mut message, &effective, http_version(port.protocol));
        let rules = key.rules.iter().map(|rule| rule.of(Kind::DestinationRule));
        let origins = rules.chain([key.service.object.clone()]).collect();
        let mut resource = Resource::new(&message.name, &message, origins);
        resource.needs_endpoints = message.eds_cluster_config.is_some();
        Some(Arc::new(resource))
    }
}

/// The cluster before rules are applied.
#[allow(deprecated)] // Envoy would have a cluster extension for DNS by now; Istio has these fields
fn outbound(cx: &Cx<'_>, key: &ClusterKey, service: &Service, effective: &Effective) -> cluster::Cluster {
    let name = key.name();
    let simple = effective.load_balancer.as_ref().and_then(|balancer| balancer.simple);
    let mut message =
        cluster::Cluster { connect_timeout: Some(CONNECT_TIMEOUT), ..cluster::Cluster::default() };
    // PASSTHROUGH asks to go where the caller wanted to, whatever is known of the service. Without
    // capture nobody knows where that is, so the endpoints must do.
    let resolution = match service.resolution {
        Resolution::OriginalDst if !key.direct => Resolution::Endpoints,
        _ if key.direct && simple == Some(Simple::Passthrough) => Resolution::OriginalDst,
        resolution => resolution,
    };
    let kind = match resolution {
        Resolution::Endpoints => {
            message.eds_cluster_config = Some(cluster::cluster::EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: name.clone(),
            });
            cluster::cluster::DiscoveryType::Eds
        }
        Resolution::OriginalDst => {
            message.cleanup_interval = Some(CLEANUP_INTERVAL);
            cluster::cluster::DiscoveryType::OriginalDst
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            message.load_assignment = Some(endpoint::assignment(cx, key));
            message.dns_refresh_rate = Some(prost_types::Duration { seconds: 60, nanos: 0 });
            message.respect_dns_ttl = true;
            message.dns_lookup_family = cluster::cluster::DnsLookupFamily::V4Only as i32;
            if resolution == Resolution::Dns {
                cluster::cluster::DiscoveryType::StrictDns
            } else {
                cluster::cluster::DiscoveryType::LogicalDns
            }
        }
    };
    message.cluster_discovery_type = Some(cluster::cluster::ClusterDiscoveryType::Type(kind as i32));
    message.lb_policy = match (kind, simple) {
        (cluster::cluster::DiscoveryType::OriginalDst, _) => cluster::cluster::LbPolicy::ClusterProvided,
        (_, Some(Simple::RoundRobin)) => cluster::cluster::LbPolicy::RoundRobin,
        (_, Some(Simple::Random)) => cluster::cluster::LbPolicy::Random,
        _ => cluster::cluster::LbPolicy::LeastRequest,
    } as i32;
    message.name = name;
    message
}

fn metadata(key: &ClusterKey, service: &Service, rule: Option<&Key>) -> core::Metadata {
    let reference = object([
        ("host", text(&service.id.host)),
        ("name", text(&service.name)),
        ("namespace", text(service.namespace())),
    ]);
    let mut fields = vec![("default_original_port", number(key.port)), ("services", list(vec![reference]))];
    if let Some(rule) = rule {
        let path = name::config_path("destination-rule", &rule.namespace, &rule.name);
        fields.push(("config", text(path)));
    }
    if !key.subset.is_empty() {
        fields.push(("subset", text(&key.subset)));
    }
    if service.external {
        fields.push(("external", truth(true)));
    }
    istio_metadata(fields)
}

fn http_version(protocol: Protocol) -> HttpVersion {
    match protocol {
        Protocol::Http => HttpVersion::One,
        Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => HttpVersion::Two,
        Protocol::Auto => HttpVersion::Downstream,
        Protocol::Tcp
        | Protocol::Tls
        | Protocol::Mongo
        | Protocol::Redis
        | Protocol::MySql
        | Protocol::Datagram => HttpVersion::None,
    }
}

/// The cluster without endpoints: whatever is sent there is refused.
fn black_hole() -> cluster::Cluster {
    cluster::Cluster {
        name: name::BLACK_HOLE_CLUSTER.to_owned(),
        connect_timeout: Some(CONNECT_TIMEOUT),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Static as i32,
        )),
        ..cluster::Cluster::default()
    }
}

/// The cluster that leads where the caller wanted to go.
fn passthrough() -> cluster::Cluster {
    let mut message = original_dst(name::PASSTHROUGH_CLUSTER.to_owned());
    policy::apply(&mut message, &Effective::default(), HttpVersion::Downstream);
    message
}

/// A cluster that leads to the connection's original destination.
fn original_dst(name: String) -> cluster::Cluster {
    cluster::Cluster {
        name,
        connect_timeout: Some(CONNECT_TIMEOUT),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided as i32,
        cleanup_interval: Some(CLEANUP_INTERVAL),
        ..cluster::Cluster::default()
    }
}

fn encode(message: &cluster::Cluster) -> Resource {
    Resource::new(&message.name, message, Vec::new())
}
