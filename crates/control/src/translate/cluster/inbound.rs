//! The clusters that lead from a sidecar to its own workload.

use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::draft::Draft;
use super::{outbound, passthrough, policy};
use crate::model::destination_rule::ConnectionPool;
use crate::model::mesh::{InboundMode, MeshConfig};
use crate::model::sidecar::IngressListener;
use crate::model::{Key, Kind, ObjectRef};
use crate::registry::protocol::Protocol;
use crate::registry::targets::{Target, Targets, Workload};
use crate::registry::{Port, Service};
use crate::scope::Families;
use crate::scope::policy::{EffectiveKey, EffectivePolicy, MergedPolicy, PolicyKey, find};
use crate::scope::proxy_config::{MeshOf, Overrides};
use crate::scope::sidecar::ingress::{Endpoint, Ingress, IngressOf};
use crate::translate::name;
use crate::translate::proto::cluster::cluster::{DiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig};
use crate::translate::proto::{core, endpoint};
use crate::translate::resource::{
    Resource, address, istio_metadata, list, object, pipe, socket_address, text,
};

/// The addresses that inbound connections come from: iptables tells by them that they have been
/// through the proxy, and leads them to the workload instead of back.
const INBOUND_SOURCE: &str = "127.0.0.6";
const INBOUND_SOURCE_V6: &str = "::6";

/// Addresses of a workload are used for as long as the proxy lives: this is as long as a duration
/// can be in Envoy.
const NO_CLEANUP: prost_types::Duration = prost_types::Duration { seconds: 9_223_372_035, nanos: 0 };

/// What the clusters to a workload depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InboundKey {
    pub(crate) workload: Workload,
    pub(crate) families: Families,
    /// The proxy's own, where nothing is captured.
    pub(crate) address: Option<IpAddr>,
    pub(crate) overrides: Overrides,
}

/// One cluster per port of the workload, and one for all other ports. Where nothing is captured there
/// are only those that a Sidecar declares.
pub(crate) struct InboundClusters;

impl Query for InboundClusters {
    type Key = InboundKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "inbound-clusters";

    fn derive(cx: &Cx<'_>, key: &InboundKey) -> Vec<Arc<Resource>> {
        let mesh = cx.get::<MeshOf>(&key.overrides);
        let captures = key.address.is_none();
        let mut clusters = Vec::new();
        if captures {
            // Deviation: it has a name of its own in statistics, where Istio counts it with the outbound
            // PassthroughCluster.
            let mut rest = passthrough(&mesh, name::INBOUND_PASSTHROUGH_CLUSTER);
            rest.cluster.upstream_bind_config = Some(source(key.families));
            clusters.push(Arc::new(super::encode(rest)));
        }
        let targets = cx.get::<Targets>(&key.workload);
        let ingress = cx.get::<IngressOf>(&key.workload);
        match ingress.as_ref().as_ref().filter(|ingress| !ingress.listeners.is_empty()) {
            Some(ingress) => {
                let maker = Maker { cx, mesh: &mesh, key, ingress: Some(ingress) };
                let listeners = ingress.listeners.iter();
                clusters.extend(
                    listeners
                        .filter_map(|listener| maker.of_listener(ingress, listener, &targets))
                        .map(Arc::new),
                );
            }
            None if captures => {
                let maker = Maker { cx, mesh: &mesh, key, ingress: ingress.as_ref().as_ref() };
                let groups = targets.chunk_by(|a, b| a.target == b.target);
                clusters.extend(groups.filter_map(|group| maker.of_port(group)).map(Arc::new));
            }
            None => {}
        }
        clusters
    }
}

struct Maker<'a, 'c> {
    cx: &'a Cx<'c>,
    mesh: &'a MeshConfig,
    key: &'a InboundKey,
    /// What the workload's Sidecar says.
    ingress: Option<&'a Ingress>,
}

impl Maker<'_, '_> {
    /// The cluster of one port, which may be behind several services: the first decides what is
    /// spoken, and its policy how much is let through, unless a Sidecar says.
    fn of_port(&self, targets: &[Target]) -> Option<Resource> {
        let first = targets.first()?;
        let local = self.mesh.inbound_traffic_policy.mode == InboundMode::Localhost;
        let port = first.service.port(first.port)?;
        let endpoint = match local {
            true => Endpoint::Address(loopback(self.key.families), first.target),
            false => Endpoint::Destination,
        };
        let mut seen: Vec<&str> = Vec::new();
        let services = targets.iter().filter(|target| {
            // Only those that lead to the port by the same number of theirs, as in Istio.
            let new = target.port == first.port && !seen.contains(&target.service.id.host.as_str());
            seen.push(&target.service.id.host);
            new
        });
        let services: Vec<[String; 3]> = services.map(|target| names(&target.service)).collect();
        let origins = targets.iter().map(|target| target.service.id.object.clone());
        let found = Found { service: Some(&first.service), number: first.port, port, target: first.target };
        self.finish(&found, endpoint, services, origins.collect())
    }

    /// The cluster of a port that a Sidecar declares.
    fn of_listener(
        &self,
        ingress: &Ingress,
        listener: &IngressListener,
        targets: &[Target],
    ) -> Option<Resource> {
        let number = listener.number()?;
        let endpoint = listener.endpoint(self.key.families, self.key.address.is_none(), self.key.address);
        let service = targets.iter().find(|target| target.target == number).map(|target| &target.service);
        let port = Port {
            number,
            name: listener.port.as_ref().map(|port| port.name.clone()).unwrap_or_default(),
            protocol: Protocol::of_name(listener.port.as_ref().map_or("", |port| port.protocol.as_str())),
            passthrough: None,
        };
        // As in Istio, telemetry knows of no service where none leads to the port.
        let names = service.map(|service| names(service));
        let mut origins = vec![ingress.sidecar.of(Kind::Sidecar)];
        origins.extend(service.map(|service| service.id.object.clone()));
        let found = Found { service, number, port: &port, target: number };
        self.finish(&found, endpoint, names.into_iter().collect(), origins)
    }

    fn finish(
        &self,
        found: &Found<'_>,
        endpoint: Endpoint,
        services: Vec<[String; 3]>,
        mut origins: Vec<ObjectRef>,
    ) -> Option<Resource> {
        let Maker { cx, mesh, key, ingress } = *self;
        let rules = found.service.map_or_else(Vec::new, |service| {
            find(
                cx,
                PolicyKey {
                    client: &key.workload.namespace,
                    // Rules for certain clients are about what these send, not about what they receive.
                    labels: &std::collections::BTreeMap::new(),
                    host: &service.id.host,
                    namespace: service.namespace(),
                },
            )
        });
        let effective = cx.get::<EffectivePolicy>(&EffectiveKey {
            rules: rules.clone(),
            port: found.number,
            subset: String::new(),
        });
        let stat_name = (!mesh.inbound_cluster_stat_name.is_empty()).then(|| {
            let port = (found.port.number, found.port.name.as_str());
            let declared = ingress.map(Ingress::host).unwrap_or_default();
            let counted = match found.service {
                Some(service) => name::Counted::service(service, port),
                None => name::Counted { host: &declared, port, ..name::Counted::default() },
            };
            let counted = name::Counted { target: Some(found.target), ..counted };
            counted.name(&mesh.inbound_cluster_stat_name)
        });
        let declared = ingress.and_then(|ingress| ingress.pool(found.target));
        if let (Some(_), Some(ingress)) = (declared, ingress) {
            origins.push(ingress.sidecar.of(Kind::Sidecar));
        }
        let mut draft = build(
            mesh,
            &Inbound {
                port: found.target,
                endpoint,
                protocol: found.port.protocol,
                pool: declared.or(effective.connection_pool.as_ref()),
                stat_name,
                families: key.families,
            },
        );
        let services = services.into_iter().map(|[host, name, namespace]| {
            object([("host", text(host)), ("name", text(name)), ("namespace", text(namespace))])
        });
        let services: Vec<_> = services.collect();
        let mut fields = Vec::new();
        if !services.is_empty() {
            fields.push(("services", list(services)));
        }
        // A rule about subsets only says nothing about what comes in.
        let heeded = rules.first().filter(|_| cx.get::<MergedPolicy>(&rules).says_all);
        if let Some(Key { namespace, name }) = heeded {
            fields.push(("config", text(name::config_path("destination-rule", namespace, name))));
        }
        draft.cluster.metadata = (!fields.is_empty()).then(|| istio_metadata(fields));
        origins.extend(rules.iter().map(|rule| rule.of(Kind::DestinationRule)));
        let message = draft.finish();
        Some(Resource::new(&message.name, &message, origins))
    }
}

/// A port of the workload, and what leads to it.
struct Found<'a> {
    service: Option<&'a Arc<Service>>,
    /// The number of the service's port.
    number: u16,
    port: &'a Port,
    /// The number of the workload's port.
    target: u16,
}

/// A service's host, name and namespace.
fn names(service: &Service) -> [String; 3] {
    [service.id.host.clone(), service.name.clone(), service.namespace().to_owned()]
}

/// What a cluster to the workload is made of.
pub(crate) struct Inbound<'a> {
    /// The port that clients come in on, which names the cluster.
    pub(crate) port: u16,
    /// Where the workload listens.
    pub(crate) endpoint: Endpoint,
    pub(crate) protocol: Protocol,
    pub(crate) pool: Option<&'a ConnectionPool>,
    /// Its name in statistics, if not its own.
    pub(crate) stat_name: Option<String>,
    pub(crate) families: Families,
}

/// A cluster to the workload.
pub(crate) fn build(mesh: &MeshConfig, inbound: &Inbound<'_>) -> Draft {
    let name = name::inbound(inbound.port);
    let place = match &inbound.endpoint {
        Endpoint::Destination | Endpoint::DestinationPort(_) => None,
        Endpoint::Address(host, port) => Some(address(&host.to_string(), *port)),
        Endpoint::Path(path) => Some(pipe(path)),
    };
    let mut draft = match place {
        Some(place) => {
            let mut draft = Draft::new(&name, DiscoveryType::Static);
            draft.cluster.load_assignment = Some(single(&name, place));
            draft
        }
        None => {
            let mut draft = Draft::new(&name, DiscoveryType::OriginalDst);
            draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            draft.cluster.cleanup_interval = Some(NO_CLEANUP);
            draft
        }
    };
    if let Endpoint::DestinationPort(port) = inbound.endpoint {
        draft.cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: Some(u32::from(port)),
            ..OriginalDstLbConfig::default()
        }));
    }
    if let Some(name) = &inbound.stat_name {
        draft.set_stat_name(name);
    }
    outbound::speak_protocol(&mut draft, inbound.protocol, true, mesh);
    policy::connection_pool(&mut draft, mesh, inbound.pool.unwrap_or(&ConnectionPool::default()), None);
    // Connections to itself need no mark by which iptables would let them through.
    // Deviation: istiod asks for the mark on sockets of the file system too, which cannot have one.
    let to_itself = match &inbound.endpoint {
        Endpoint::Destination | Endpoint::DestinationPort(_) => false,
        Endpoint::Address(host, _) => host.is_loopback(),
        Endpoint::Path(_) => true,
    };
    if !to_itself {
        draft.cluster.upstream_bind_config = Some(source(inbound.families));
    }
    draft
}

pub(super) fn single(cluster: &str, address: core::Address) -> endpoint::ClusterLoadAssignment {
    let endpoint = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address),
            ..endpoint::Endpoint::default()
        })),
        ..endpoint::LbEndpoint::default()
    };
    endpoint::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..endpoint::LocalityLbEndpoints::default()
        }],
        ..endpoint::ClusterLoadAssignment::default()
    }
}

/// The workload's own address for itself.
fn loopback(families: Families) -> IpAddr {
    match families {
        Families::V4 | Families::Both => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        Families::V6 => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    }
}

/// The addresses to connect from, of which the proxy takes the one of the right kind.
// Deviation: istiod names that of IPv6 beside the other only with ISTIO_DUAL_STACK, and without it what
// came in by IPv6 is lost.
fn source(families: Families) -> core::BindConfig {
    let (first, more) = match families {
        Families::V4 => (INBOUND_SOURCE, None),
        Families::V6 => (INBOUND_SOURCE_V6, None),
        Families::Both => (INBOUND_SOURCE, Some(INBOUND_SOURCE_V6)),
    };
    core::BindConfig {
        source_address: Some(socket_address(first, 0)),
        extra_source_addresses: more
            .map(|host| core::ExtraSourceAddress {
                address: Some(socket_address(host, 0)),
                ..core::ExtraSourceAddress::default()
            })
            .into_iter()
            .collect(),
        ..core::BindConfig::default()
    }
}
