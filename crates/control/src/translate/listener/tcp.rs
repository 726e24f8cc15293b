//! The TCP proxy filter, and the TCP rules of VirtualServices.

use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use leno_derive::Cx;

use super::access_log::access_log;
use super::filter;
use crate::model::mesh::MeshConfig;
use crate::model::virtual_service::{L4Match, RouteDestination};
use crate::registry::Visible;
use crate::registry::instances::selects;
use crate::scope::rules::Rule;
use crate::translate::proto::{core, listener};
use crate::translate::resource::cidr;
use crate::translate::route::action;
use crate::translate::route::rule::Place;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    Cluster(String),
    /// With weights, of which at least one is not 0.
    Weighted(Vec<(String, u32)>),
}

/// A TCP rule at a place: the addresses that it is for (all, if empty) and where it leads.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TcpChain {
    pub(super) ranges: Vec<core::CidrRange>,
    pub(super) upstream: Upstream,
}

/// The network filter. `prefix` names it in statistics.
pub(super) fn tcp_proxy(mesh: &MeshConfig, prefix: &str, upstream: &Upstream) -> listener::Filter {
    use tcp_proxy::tcp_proxy::ClusterSpecifier;
    use tcp_proxy::tcp_proxy::WeightedCluster;
    use tcp_proxy::tcp_proxy::weighted_cluster::ClusterWeight;
    let specifier = match upstream {
        Upstream::Cluster(name) => ClusterSpecifier::Cluster(name.clone()),
        Upstream::Weighted(clusters) => {
            let clusters = clusters.iter().map(|(name, weight)| ClusterWeight {
                name: name.clone(),
                weight: *weight,
                ..ClusterWeight::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
        }
    };
    let message = tcp_proxy::TcpProxy {
        stat_prefix: prefix.to_owned(),
        access_log: access_log(mesh),
        cluster_specifier: Some(specifier),
        ..tcp_proxy::TcpProxy::default()
    };
    filter("envoy.filters.network.tcp_proxy", &message)
}

/// A chain that matches everything and leads to one cluster.
pub(super) fn plain_chain(mesh: &MeshConfig, name: &str, cluster: &str) -> listener::FilterChain {
    listener::FilterChain {
        name: name.to_owned(),
        filters: vec![tcp_proxy(mesh, cluster, &Upstream::Cluster(cluster.to_owned()))],
        ..listener::FilterChain::default()
    }
}

/// The TCP rules of a VirtualService at a place, up to the first that catches all.
pub(super) fn tcp_chains(cx: &Cx<'_>, rule: &Rule, place: Place<'_>) -> Vec<TcpChain> {
    let mut chains = Vec::new();
    for tcp in &rule.spec.tcp {
        let matches: Vec<&L4Match> = tcp.r#match.iter().filter(|found| admits(found, place)).collect();
        if matches.is_empty() && !tcp.r#match.is_empty() {
            continue;
        }
        let upstream = upstream(cx, &tcp.route, place);
        let all = matches.is_empty() || matches.iter().any(|found| found.destination_subnets.is_empty());
        let subnets = matches.iter().flat_map(|found| &found.destination_subnets);
        let ranges = if all { Vec::new() } else { subnets.filter_map(|subnet| cidr(subnet)).collect() };
        chains.push(TcpChain { ranges, upstream });
        if all {
            break;
        }
    }
    chains
}

fn admits(conditions: &L4Match, place: Place<'_>) -> bool {
    if conditions.port != 0 && conditions.port != u32::from(place.port) {
        return false;
    }
    if !conditions.gateways.is_empty() {
        return conditions.gateways.iter().any(|gateway| gateway == place.gateway);
    }
    selects(&conditions.source_labels, &place.viewer.labels)
        && (conditions.source_namespace.is_empty() || conditions.source_namespace == place.viewer.namespace)
}

fn upstream(cx: &Cx<'_>, targets: &[RouteDestination], place: Place<'_>) -> Upstream {
    let visible = cx.get::<Visible>(&place.viewer.namespace);
    let cluster = |target: &RouteDestination| {
        let service = visible.get(&target.destination.host).map(AsRef::as_ref);
        action::cluster(&target.destination, service, place.port)
    };
    if let [only] = targets {
        return Upstream::Cluster(cluster(only));
    }
    let weighted = targets.iter().filter_map(|target| {
        let weight = u32::try_from(target.weight).ok().filter(|weight| *weight > 0)?;
        Some((cluster(target), weight))
    });
    Upstream::Weighted(weighted.collect())
}
