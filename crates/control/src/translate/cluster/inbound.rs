//! The clusters that lead from a sidecar to its own workload.

use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::draft::Draft;
use super::{outbound, passthrough, policy};
use crate::model::destination_rule::ConnectionPool;
use crate::model::mesh::{InboundMode, MeshConfig};
use crate::model::{Key, Kind};
use crate::registry::protocol::Protocol;
use crate::registry::targets::{Target, Targets, Workload};
use crate::scope::Families;
use crate::scope::policy::{EffectiveKey, EffectivePolicy, PolicyKey, find};
use crate::scope::proxy_config::{MeshOf, Overrides};
use crate::translate::name;
use crate::translate::proto::cluster::cluster::{DiscoveryType, LbPolicy};
use crate::translate::proto::{core, endpoint};
use crate::translate::resource::{Resource, address, istio_metadata, list, object, socket_address, text};

/// The addresses that inbound connections come from: iptables tells by them that they have been
/// through the proxy, and leads them to the workload instead of back.
const INBOUND_SOURCE: &str = "127.0.0.6";
const INBOUND_SOURCE_V6: &str = "::6";

/// Addresses of a workload are used for as long as the proxy lives: this is as long as a duration
/// can be in Envoy.
const NO_CLEANUP: prost_types::Duration = prost_types::Duration { seconds: 9_223_372_035, nanos: 0 };

/// One cluster per port of the workload, and one for all other ports.
pub(crate) struct InboundClusters;

impl Query for InboundClusters {
    /// The flag as for [`passthrough`].
    type Key = (Workload, Families, bool, Overrides);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "inbound-clusters";

    fn derive(cx: &Cx<'_>, (workload, families, exchanges, overrides): &Self::Key) -> Vec<Arc<Resource>> {
        let mesh = cx.get::<MeshOf>(overrides);
        // Deviation: it has a name of its own in statistics, where Istio counts it with the outbound
        // PassthroughCluster.
        let mut rest = passthrough(&mesh, name::INBOUND_PASSTHROUGH_CLUSTER, *exchanges);
        rest.cluster.upstream_bind_config = Some(source(*families));
        let mut clusters = vec![Arc::new(super::encode(rest))];
        let targets = cx.get::<Targets>(workload);
        for group in targets.chunk_by(|a, b| a.target == b.target) {
            clusters.extend(of_port(cx, &mesh, workload, *families, group).map(Arc::new));
        }
        clusters
    }
}

/// The cluster of one port, which may be behind several services: the first decides what is
/// spoken, and its policy how much is let through.
fn of_port(
    cx: &Cx<'_>,
    mesh: &MeshConfig,
    workload: &Workload,
    families: Families,
    targets: &[Target],
) -> Option<Resource> {
    let first = targets.first()?;
    let local = mesh.inbound_traffic_policy.mode == InboundMode::Localhost;
    let rules = find(
        cx,
        PolicyKey {
            client: &workload.namespace,
            // Rules for certain clients are about what these send, not about what they receive.
            labels: &std::collections::BTreeMap::new(),
            host: &first.service.id.host,
            namespace: first.service.namespace(),
        },
    );
    let effective = cx.get::<EffectivePolicy>(&EffectiveKey {
        rules: rules.clone(),
        port: first.port,
        subset: String::new(),
    });
    let port = first.service.port(first.port)?;
    let stat_name = (!mesh.inbound_cluster_stat_name.is_empty())
        .then(|| name::statistic(&mesh.inbound_cluster_stat_name, &first.service, port, "", first.target));
    let mut draft = build(
        mesh,
        &Inbound {
            port: first.target,
            bind: if local { Bind::Address(loopback(families), first.target) } else { Bind::Destination },
            protocol: port.protocol,
            pool: effective.connection_pool.as_ref(),
            stat_name,
            families,
        },
    );
    let mut seen: Vec<&str> = Vec::new();
    let services = targets.iter().filter(|target| {
        // Only those that lead to the port by the same number of theirs, as in Istio.
        let new = target.port == first.port && !seen.contains(&target.service.id.host.as_str());
        seen.push(&target.service.id.host);
        new
    });
    let services = services.map(|target| {
        object([
            ("host", text(&target.service.id.host)),
            ("name", text(&target.service.name)),
            ("namespace", text(target.service.namespace())),
        ])
    });
    let mut fields = vec![("services", list(services.collect()))];
    if let Some(Key { namespace, name }) = rules.first() {
        fields.push(("config", text(name::config_path("destination-rule", namespace, name))));
    }
    draft.cluster.metadata = Some(istio_metadata(fields));
    let origins = targets.iter().map(|target| target.service.id.object.clone());
    let origins = origins.chain(rules.iter().map(|rule| rule.of(Kind::DestinationRule)));
    let message = draft.finish();
    Some(Resource::new(&message.name, &message, origins.collect()))
}

/// What a cluster to the workload is made of.
pub(crate) struct Inbound<'a> {
    /// The port that clients come in on, which names the cluster.
    pub(crate) port: u16,
    pub(crate) bind: Bind,
    pub(crate) protocol: Protocol,
    pub(crate) pool: Option<&'a ConnectionPool>,
    /// Its name in statistics, if not its own.
    pub(crate) stat_name: Option<String>,
    pub(crate) families: Families,
}

/// Where the workload listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    /// Where clients wanted to go.
    Destination,
    Address(IpAddr, u16),
}

/// A cluster to the workload.
pub(crate) fn build(mesh: &MeshConfig, inbound: &Inbound<'_>) -> Draft {
    let name = name::inbound(inbound.port);
    let place = match &inbound.bind {
        Bind::Destination => None,
        Bind::Address(host, port) => Some(address(&host.to_string(), *port)),
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
    if let Some(name) = &inbound.stat_name {
        draft.set_stat_name(name);
    }
    outbound::speak_protocol(&mut draft, inbound.protocol, true, mesh);
    policy::connection_pool(&mut draft, mesh, inbound.pool.unwrap_or(&ConnectionPool::default()), None);
    // Connections to itself need no mark by which iptables would let them through.
    let to_itself = match &inbound.bind {
        Bind::Destination => false,
        Bind::Address(host, _) => host.is_loopback(),
    };
    if !to_itself {
        draft.cluster.upstream_bind_config = Some(source(inbound.families));
    }
    draft
}

fn single(cluster: &str, address: core::Address) -> endpoint::ClusterLoadAssignment {
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
