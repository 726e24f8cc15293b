//! The TCP proxy filter, and the TCP and TLS rules of VirtualServices for sidecars.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3 as proxy;
use leno_derive::Cx;

use super::chain::Chain;
use super::filters::{self, FilterScope, Side};
use super::{Frame, network_filter};
use crate::model::Meta;
use crate::model::selector::selects;
use crate::model::virtual_service::{L4Match, RouteDestination, TlsMatch};
use crate::registry::alias::AliasesOf;
use crate::registry::protocol::Protocol;
use crate::registry::{Port, Service};
use crate::scope::policy::{Merged, MergedPolicy};
use crate::scope::rules::Rule;
use crate::scope::{Viewer, sidecar};
use crate::translate::cluster::policies;
use crate::translate::name::{self, Counted};
use crate::translate::proto::{core, listener, ty};
use crate::translate::resource::{ads, istio_metadata, text};
use crate::translate::route::action;
use crate::translate::route::rule::Place;
use crate::translate::route::sidecar::short_names;
use crate::translate::telemetry::access_log;

/// Where chains of bytes are wanted.
pub(super) struct Wanted<'a, 'c> {
    pub(super) cx: &'a Cx<'c>,
    pub(super) frame: &'a Frame,
    pub(super) place: &'a Place,
    pub(super) scope: &'a FilterScope,
    /// What the port is called, for names in statistics.
    pub(super) port_name: &'a str,
    /// Whether clients are of the mesh, and may tell who they are.
    pub(super) peers: bool,
}

impl Wanted<'_, '_> {
    fn viewer(&self) -> &Viewer {
        &self.place.viewer
    }

    /// The filters that lead to where a rule says.
    pub(super) fn to_targets(&self, targets: &[RouteDestination], meta: &Meta) -> Vec<listener::Filter> {
        use proxy::tcp_proxy::weighted_cluster::ClusterWeight;
        use proxy::tcp_proxy::{ClusterSpecifier, WeightedCluster};
        let visible = sidecar::visible(self.cx, &self.viewer().sight());
        let cluster = |target: &RouteDestination| {
            let service = visible.get(&target.destination.host).map(AsRef::as_ref);
            action::cluster(&target.destination, service, self.place.port)
        };
        let first = targets.first().and_then(|target| visible.get(&target.destination.host));
        let policy = first.map(|service| self.policy(service));
        if let [only] = targets {
            let (name, subset) = (cluster(only), only.destination.subset.as_str());
            let prefix = first.and_then(|service| {
                let counted = Counted {
                    host: &only.destination.host,
                    subset,
                    ..Counted::service(service, (self.place.port, self.port_name))
                };
                self.statistic(&counted)
            });
            return self.to_cluster(name, prefix, subset, policy.as_deref());
        }
        let clusters = targets.iter().filter_map(|target| {
            let weight = u32::try_from(target.weight).ok().filter(|weight| *weight > 0)?;
            Some(ClusterWeight { name: cluster(target), weight, ..ClusterWeight::default() })
        });
        let clusters = WeightedCluster { clusters: clusters.collect() };
        let prefix = format!("{}.{}", meta.name, meta.namespace);
        let message = self.proxy(prefix, ClusterSpecifier::WeightedClusters(clusters), "", policy.as_deref());
        self.complete(&message)
    }

    /// The names by which clients ask for a service: its host and its aliases with their short forms.
    fn names(&self, service: &Service) -> Vec<String> {
        let mut names = vec![service.id.host.clone()];
        for (alias, _) in self.cx.get::<AliasesOf>(&service.id.host).iter() {
            names.push(alias.clone());
            names.extend(short_names(alias, &self.viewer().namespace));
        }
        names
    }

    /// The filters that lead to a port of a service.
    pub(super) fn to_service(&self, service: &Service) -> Vec<listener::Filter> {
        let cluster = name::outbound(self.place.port, "", &service.id.host);
        // As in Istio, the port has no name here.
        let prefix = self.statistic(&Counted::service(service, (self.place.port, "")));
        self.to_cluster(cluster, prefix, "", Some(&self.policy(service)))
    }

    /// A name in statistics by the mesh's pattern for clusters; `None` if it has none.
    fn statistic(&self, counted: &Counted<'_>) -> Option<String> {
        let pattern = &self.frame.mesh.outbound_cluster_stat_name;
        (!pattern.is_empty()).then(|| Counted { target: Some(0), ..*counted }.name(pattern))
    }

    /// The filters that lead to a cluster of a gateway with AUTO_PASSTHROUGH: TLS goes through it
    /// whole, so it is not wrapped into a tunnel.
    pub(super) fn to_named(
        &self,
        (service, port): (&Service, &Port),
        subset: &str,
        policy: &Merged,
    ) -> Vec<listener::Filter> {
        let cluster = name::outbound_sni(port.number, subset, &service.id.host);
        let counted = Counted { subset, ..Counted::service(service, (port.number, &port.name)) };
        let prefix = self.statistic(&counted).unwrap_or_else(|| cluster.clone());
        let specifier = proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster);
        let message = self.proxy(prefix, specifier, subset, Some(policy));
        self.complete(&proxy::TcpProxy { tunneling_config: None, ..message })
    }

    /// `prefix` is that of its statistics, if not the cluster's name.
    fn to_cluster(
        &self,
        cluster: String,
        prefix: Option<String>,
        subset: &str,
        policy: Option<&Merged>,
    ) -> Vec<listener::Filter> {
        let prefix = prefix.unwrap_or_else(|| cluster.clone());
        let specifier = proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster);
        self.complete(&self.proxy(prefix, specifier, subset, policy))
    }

    fn policy(&self, service: &Service) -> Arc<Merged> {
        self.cx.get::<MergedPolicy>(&policies(self.cx, self.viewer(), service))
    }

    /// The filter's configuration with what DestinationRules say of connections.
    fn proxy(
        &self,
        stat_prefix: String,
        specifier: proxy::tcp_proxy::ClusterSpecifier,
        subset: &str,
        policy: Option<&Merged>,
    ) -> proxy::TcpProxy {
        let general = policy.map(|merged| &merged.traffic_policy);
        let pool = general.and_then(|policy| policy.connection_pool.as_ref()?.tcp.as_ref());
        let own = policy.and_then(|merged| merged.subset(subset)?.traffic_policy.as_ref());
        let tunnel = if subset.is_empty() { general } else { own }.and_then(|policy| policy.tunnel.as_ref());
        let balancer =
            own.and_then(|policy| policy.load_balancer.as_ref()).or_else(|| general?.load_balancer.as_ref());
        let by_address = balancer
            .and_then(|balancer| balancer.consistent_hash.as_ref())
            .is_some_and(|hash| hash.use_source_ip == Some(true));
        let idle = pool.and_then(|tcp| tcp.idle_timeout).or(self.frame.options.idle_timeout);
        proxy::TcpProxy {
            stat_prefix,
            access_log: access_log::of_connections(self.cx, self.scope),
            on_demand: on_demand(self.scope),
            cluster_specifier: Some(specifier),
            idle_timeout: idle.map(crate::model::duration::Span::to_proto),
            max_downstream_connection_duration: pool
                .and_then(|tcp| tcp.max_connection_duration)
                .map(crate::model::duration::Span::to_proto),
            hash_policy: by_address.then(by_source).into_iter().collect(),
            tunneling_config: tunnel.map(|tunnel| proxy::tcp_proxy::TunnelingConfig {
                hostname: name::virtual_host(
                    &tunnel.target_host,
                    u16::try_from(tunnel.target_port).unwrap_or(0),
                ),
                use_post: tunnel.protocol == "POST",
                ..proxy::tcp_proxy::TunnelingConfig::default()
            }),
            ..proxy::TcpProxy::default()
        }
    }

    fn complete(&self, message: &proxy::TcpProxy) -> Vec<listener::Filter> {
        let mut filters = filters::network(self.cx, self.scope, self.peers);
        filters.push(network_filter("envoy.filters.network.tcp_proxy", message));
        filters
    }
}

/// The chains of a sidecar for a service whose port carries bytes: those of the rules for its host
/// and, where they leave something over, the one to the service itself. `ranges` are the addresses
/// that are the service's where it shares its listener, `alone` says that the listener's address
/// belongs to it.
pub(super) fn service_chains(
    wanted: &Wanted<'_, '_>,
    (service, protocol): (&Service, Protocol),
    rules: &[Arc<Rule>],
    ranges: &[String],
    alone: bool,
) -> Vec<Chain> {
    if protocol == Protocol::Tls {
        tls_chains(wanted, service, rules, ranges, alone)
    } else {
        tcp_chains(wanted, service, rules, ranges)
    }
}

fn tls_chains(
    wanted: &Wanted<'_, '_>,
    service: &Service,
    rules: &[Arc<Rule>],
    ranges: &[String],
    alone: bool,
) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut handled = Vec::new();
    for rule in rules {
        for tls in rule.spec.tls.iter().filter(|tls| !tls.route.is_empty()) {
            for found in tls.r#match.iter().filter(|found| admits_tls(found, wanted.place)) {
                // Of two conditions that a connection cannot tell apart the first counts.
                let condition = (&found.sni_hosts, &found.destination_subnets);
                if handled.contains(&condition) {
                    continue;
                }
                handled.push(condition);
                let own =
                    if found.destination_subnets.is_empty() { ranges } else { &found.destination_subnets };
                chains.push(Chain {
                    sni: found.sni_hosts.clone(),
                    ranges: own.to_vec(),
                    metadata: Some(metadata(&rule.meta)),
                    filters: wanted.to_targets(&tls.route, &rule.meta),
                    ..Chain::default()
                });
            }
        }
    }
    if chains.is_empty() {
        // Where the address does not tell the service, the name that is asked for must.
        let sni = if alone { Vec::new() } else { wanted.names(service) };
        let filters = wanted.to_service(service);
        chains.push(Chain { sni, ranges: ranges.to_vec(), filters, ..Chain::default() });
    }
    chains
}

fn tcp_chains(
    wanted: &Wanted<'_, '_>,
    service: &Service,
    rules: &[Arc<Rule>],
    ranges: &[String],
) -> Vec<Chain> {
    let mut chains = Vec::new();
    for rule in rules {
        for tcp in rule.spec.tcp.iter().filter(|tcp| !tcp.route.is_empty()) {
            let found: Vec<&L4Match> =
                tcp.r#match.iter().filter(|found| admits(found, wanted.place)).collect();
            if found.is_empty() && !tcp.r#match.is_empty() {
                continue;
            }
            let all = found.is_empty() || found.iter().any(|found| found.destination_subnets.is_empty());
            let subnets: Vec<String> =
                found.iter().flat_map(|found| found.destination_subnets.iter().cloned()).collect();
            chains.push(Chain {
                ranges: if all { ranges.to_vec() } else { subnets },
                metadata: all.then(|| metadata(&rule.meta)),
                filters: wanted.to_targets(&tcp.route, &rule.meta),
                ..Chain::default()
            });
            if all {
                return chains;
            }
        }
    }
    let own = Chain { ranges: ranges.to_vec(), filters: wanted.to_service(service), ..Chain::default() };
    // A rule for exactly the service's addresses leaves nothing over.
    super::chain::merge(&mut chains, vec![own]);
    chains
}

fn admits(conditions: &L4Match, place: &Place) -> bool {
    (conditions.port == 0 || conditions.port == u32::from(place.port))
        && (conditions.gateways.is_empty() || conditions.gateways.contains(&place.gateway))
        && selects(&conditions.source_labels, &place.viewer.labels)
        && (conditions.source_namespace.is_empty() || conditions.source_namespace == place.viewer.namespace)
}

fn admits_tls(conditions: &TlsMatch, place: &Place) -> bool {
    (conditions.port == 0 || conditions.port == u32::from(place.port))
        && (conditions.gateways.is_empty() || conditions.gateways.contains(&place.gateway))
        && selects(&conditions.source_labels, &place.viewer.labels)
        && (conditions.source_namespace.is_empty() || conditions.source_namespace == place.viewer.namespace)
}

/// Notes the rule that a chain comes from.
fn metadata(meta: &Meta) -> core::Metadata {
    let path = name::config_path("virtual-service", &meta.namespace, &meta.name);
    istio_metadata([("config", text(path))])
}

fn by_source() -> ty::v3::HashPolicy {
    use ty::v3::hash_policy::{PolicySpecifier, SourceIp};
    ty::v3::HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) }
}

/// Where the cluster is asked for if the proxy does not have it.
fn on_demand(scope: &FilterScope) -> Option<proxy::tcp_proxy::OnDemand> {
    scope.asks_on_demand().then(|| proxy::tcp_proxy::OnDemand {
        odcds_config: Some(ads()),
        timeout: Some(filters::ON_DEMAND_PATIENCE),
        ..proxy::tcp_proxy::OnDemand::default()
    })
}

/// The filters that lead to a cluster that is no service's, as the passthrough cluster.
pub(super) fn to_fixed(
    cx: &Cx<'_>,
    frame: &Frame,
    scope: &FilterScope,
    prefix: &str,
    cluster: &str,
) -> Vec<listener::Filter> {
    let message = proxy::TcpProxy {
        stat_prefix: prefix.to_owned(),
        access_log: access_log::of_connections(cx, scope),
        // Some lead to a service of the mesh.
        on_demand: on_demand(scope).filter(|_| name::parse_outbound(cluster).is_some()),
        cluster_specifier: Some(proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        idle_timeout: frame.options.idle_timeout.map(crate::model::duration::Span::to_proto),
        ..proxy::TcpProxy::default()
    };
    let mut filters = match scope.side {
        Side::Outbound => filters::counting(cx, scope),
        _ => filters::network(cx, scope, true),
    };
    filters.push(network_filter("envoy.filters.network.tcp_proxy", &message));
    filters
}

/// The filters that refuse a connection.
pub(super) fn to_nowhere(cx: &Cx<'_>, scope: &FilterScope) -> Vec<listener::Filter> {
    let cluster = name::BLACK_HOLE_CLUSTER.to_owned();
    let message = proxy::TcpProxy {
        stat_prefix: cluster.clone(),
        cluster_specifier: Some(proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster)),
        ..proxy::TcpProxy::default()
    };
    let mut filters = match scope.side {
        Side::Inbound => filters::peers(cx, scope),
        Side::Outbound | Side::Gateway => Vec::new(),
    };
    filters.extend(filters::counting(cx, scope));
    filters.push(network_filter("envoy.filters.network.tcp_proxy", &message));
    filters
}
