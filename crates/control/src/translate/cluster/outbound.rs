//! The clusters that lead to services.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dynamic;
use leno_api::proto::envoy::extensions::common::dynamic_forward_proxy::v3 as dns_cache;
use leno_api::proto::envoy::extensions::http::header_formatters::preserve_case::v3 as preserve_case;
use leno_api::proto::envoy::extensions::network::dns_resolver::cares::v3 as cares;
use leno_derive::{Cx, Query};

use super::draft::Draft;
use super::{ClusterKey, balancer, policy, service_of, tls};
use crate::model::destination_rule::ClientTlsMode;
use crate::model::mesh::MeshConfig;
use crate::model::{Key, Kind};
use crate::registry::protocol::Protocol;
use crate::registry::{Distribution, Mesh, Port, Resolution, Service};
use crate::scope::Families;
use crate::scope::locality::LocalitySetting;
use crate::scope::policy::{Effective, EffectivePolicy, Merged, MergedPolicy};
use crate::scope::proxy_config::MeshOf;
use crate::translate::proto::cluster::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbConfig,
    LbPolicy, OriginalDstLbConfig,
};
use crate::translate::proto::{core, ty};
use crate::translate::resource::{Resource, ads, istio_metadata, list, object, pack, text, truth};
use crate::translate::telemetry::upstream_filter;
use crate::translate::{endpoint, name};

/// Spreads the questions of many proxies over time.
const DNS_JITTER: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 100_000_000 };

/// How many questions are asked from one UDP port.
const DNS_QUERIES_OF_A_PORT: u32 = 100;

/// One outbound cluster; `None` if the service is no longer there.
pub(super) struct Outbound;

impl Query for Outbound {
    type Key = ClusterKey;
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "outbound-cluster";

    fn derive(cx: &Cx<'_>, key: &ClusterKey) -> Option<Arc<Resource>> {
        let service = service_of(cx, key)?;
        let port = service.port(key.port)?;
        let mesh = cx.get::<MeshOf>(&key.client.overrides);
        let merged = cx.get::<MergedPolicy>(&key.rules);
        let effective = cx.get::<EffectivePolicy>(&key.policy());
        let mut draft = start(cx, key, &service, &effective, &mesh);
        set_stat_name(&mut draft, key, &service, port, &mesh);
        speak(&mut draft, key, port.protocol, &mesh);
        apply(
            cx,
            &mut draft,
            Applied { key, service: &service, port, merged: &merged, effective: &effective },
        );
        draft.cluster.filters.extend(key.client.exchanges.then(upstream_filter));
        draft.cluster.metadata = Some(metadata(key, &service, merged.first.as_ref(), &effective));
        let message = draft.finish();
        let rules = key.rules.iter().map(|rule| rule.of(Kind::DestinationRule));
        let origins = rules.chain([key.service.object.clone()]).collect();
        let mut resource = Resource::new(&message.name, &message, origins);
        resource.needs_endpoints = message.eds_cluster_config.is_some();
        Some(Arc::new(resource))
    }
}

/// What a cluster is made of.
#[derive(Clone, Copy)]
pub(super) struct Applied<'a> {
    pub(super) key: &'a ClusterKey,
    pub(super) service: &'a Service,
    pub(super) port: &'a Port,
    pub(super) merged: &'a Merged,
    pub(super) effective: &'a Effective,
}

/// The cluster as far as it follows from how its endpoints are found.
#[allow(deprecated)] // Envoy would have a cluster extension for DNS by now; Istio has these fields
fn start(
    cx: &Cx<'_>,
    key: &ClusterKey,
    service: &Service,
    effective: &Effective,
    mesh: &MeshConfig,
) -> Draft {
    let name = key.name();
    match service.resolution {
        // Without capture nobody knows where the caller wanted to go, so endpoints must do.
        Resolution::OriginalDst if key.client.direct => {
            let mut draft = Draft::new(&name, DiscoveryType::OriginalDst);
            if let Some(port) = service.port(key.port).and_then(|port| port.passthrough) {
                draft.cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                    upstream_port_override: Some(u32::from(port)),
                    ..OriginalDstLbConfig::default()
                }));
            }
            draft
        }
        Resolution::OriginalDst | Resolution::Endpoints | Resolution::Alias => {
            Draft::new(&name, DiscoveryType::Eds)
        }
        Resolution::Dynamic => {
            let mut draft = Draft::new(&name, DiscoveryType::Static);
            let config = dynamic::ClusterConfig {
                allow_insecure_cluster_options: tls::is_insecure_dynamic(effective.tls.as_ref()),
                cluster_implementation_specifier: Some(
                    dynamic::cluster_config::ClusterImplementationSpecifier::DnsCacheConfig(dns_cache(
                        &service.id.host,
                        key.client.families,
                    )),
                ),
                ..dynamic::ClusterConfig::default()
            };
            draft.cluster.cluster_discovery_type =
                Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                    name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
                    typed_config: Some(pack(&config)),
                }));
            draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            draft
        }
        resolution @ (Resolution::Dns | Resolution::DnsRoundRobin) => {
            let assignment = endpoint::assignment(cx, &key.endpoints(), &key.client.view);
            // Deviation: where Istio makes no cluster, as nothing is known that could be resolved,
            // there is one without endpoints, so that no route leads to what does not exist.
            let empty = assignment.endpoints.iter().all(|locality| locality.lb_endpoints.is_empty());
            let one = (resolution == Resolution::DnsRoundRobin || service.race_connects) && !empty;
            let kind = if one { DiscoveryType::LogicalDns } else { DiscoveryType::StrictDns };
            let mut draft = Draft::new(&name, kind);
            let message = &mut draft.cluster;
            message.load_assignment = Some(assignment);
            message.dns_refresh_rate = Some(mesh.dns_refresh_rate.to_proto());
            message.dns_jitter = Some(DNS_JITTER);
            message.respect_dns_ttl = true;
            let families = if service.race_connects { Families::Both } else { key.client.families };
            message.dns_lookup_family = lookup_family(families) as i32;
            message.typed_dns_resolver_config = Some(core::TypedExtensionConfig {
                name: "envoy.network.dns_resolver.cares".to_owned(),
                typed_config: Some(pack(&cares::CaresDnsResolverConfig {
                    udp_max_queries: Some(DNS_QUERIES_OF_A_PORT),
                    ..cares::CaresDnsResolverConfig::default()
                })),
            });
            draft
        }
    }
}

/// The cache of names of a service whose endpoints are looked up for each request. Filters that
/// fill it must ask for it with the very same settings.
pub(crate) fn dns_cache(host: &str, families: Families) -> dns_cache::DnsCacheConfig {
    dns_cache::DnsCacheConfig {
        name: name::dns_cache(host),
        dns_lookup_family: lookup_family(families) as i32,
        ..dns_cache::DnsCacheConfig::default()
    }
}

/// Which addresses of names are looked up.
// Deviation: where a proxy has both families istiod wants IPv4 only unless ISTIO_DUAL_STACK is set.
pub(crate) fn lookup_family(families: Families) -> DnsLookupFamily {
    match families {
        Families::V4 => DnsLookupFamily::V4Only,
        Families::V6 => DnsLookupFamily::V6Only,
        Families::Both => DnsLookupFamily::All,
    }
}

/// Names the cluster in statistics as the mesh wants it.
fn set_stat_name(draft: &mut Draft, key: &ClusterKey, service: &Service, port: &Port, mesh: &MeshConfig) {
    if !mesh.outbound_cluster_stat_name.is_empty() {
        let counted = name::Counted {
            subset: &key.subset,
            target: Some(0),
            ..name::Counted::service(service, (port.number, &port.name))
        };
        draft.set_stat_name(&counted.name(&mesh.outbound_cluster_stat_name));
    }
}

/// Says which HTTP is spoken, as far as it follows from the protocol.
fn speak(draft: &mut Draft, key: &ClusterKey, protocol: Protocol, mesh: &MeshConfig) {
    speak_protocol(draft, protocol, !key.client.gateway, mesh);
}

/// Says which HTTP is spoken on a port. `sniffed`: whether clients' first bytes tell the protocol
/// where it is not declared.
pub(super) fn speak_protocol(draft: &mut Draft, protocol: Protocol, sniffed: bool, mesh: &MeshConfig) {
    if protocol.is_http2() {
        draft.speak_http2();
        return;
    }
    if protocol.is_http_or_auto() {
        preserve_case(draft, mesh);
    }
    if protocol == Protocol::Auto && sniffed {
        draft.speak_as_client();
    }
}

/// Keeps the case of header names in HTTP/1.1, where the mesh wants that.
pub(super) fn preserve_case(draft: &mut Draft, mesh: &MeshConfig) {
    let headers = mesh.default_config.proxy_headers.as_ref();
    if headers.and_then(|headers| headers.preserve_http1_header_case) != Some(true) {
        return;
    }
    use core::http1_protocol_options::{HeaderKeyFormat, header_key_format::HeaderFormat};
    draft.speak_http1(core::Http1ProtocolOptions {
        header_key_format: Some(HeaderKeyFormat {
            header_format: Some(HeaderFormat::StatefulFormatter(core::TypedExtensionConfig {
                name: "preserve_case".to_owned(),
                typed_config: Some(pack(&preserve_case::PreserveCaseFormatterConfig::default())),
            })),
        }),
        ..core::Http1ProtocolOptions::default()
    });
}

/// Applies the rules.
fn apply(cx: &Cx<'_>, draft: &mut Draft, applied: Applied<'_>) {
    let Applied { key, service, port, effective, .. } = applied;
    let mesh = cx.get::<Mesh>(&());
    let pool = effective.connection_pool.clone().unwrap_or_default();
    policy::upgrade(draft, &mesh, port.protocol, &pool);
    policy::connection_pool(draft, &mesh, &pool, effective.retry_budget.as_ref());
    let by_readiness = service.distribution != Distribution::Any;
    if let Some(outliers) = &effective.outlier_detection {
        policy::outlier_detection(draft, outliers, by_readiness);
    }
    if !draft.is_dynamic() {
        let common = draft.cluster.common_lb_config.get_or_insert_default();
        if by_readiness {
            // Endpoints that are not ready are sent too, and must not be used for lack of others.
            common.healthy_panic_threshold.get_or_insert(ty::v3::Percent { value: 0.0 });
        }
        if service.is_persistent() && key.subset.is_empty() {
            use core::HealthStatus::{Degraded, Draining, Healthy, Unknown};
            common.override_host_status = Some(core::HealthStatusSet {
                statuses: [Healthy, Draining, Unknown, Degraded].map(|status| status as i32).to_vec(),
            });
        }
        let balancing = effective.load_balancer.as_ref();
        let setting = LocalitySetting::of(&mesh, balancing, service);
        balancer::locality(draft, setting.as_ref());
        if draft.kind() == Some(DiscoveryType::OriginalDst) {
            draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        } else {
            balancer::apply(draft, balancing, key.client.direct);
        }
    }
    // Gateways between networks pass on what clients have encrypted.
    if !key.sni {
        tls::apply(cx, draft, applied);
        if let Some(settings) = &effective.proxy_protocol {
            tls::send_proxy_protocol(draft, settings);
        }
    }
    if draft.kind() == Some(DiscoveryType::Eds) {
        draft.cluster.eds_cluster_config =
            Some(EdsClusterConfig { eds_config: Some(ads()), service_name: draft.cluster.name.clone() });
    }
}

fn metadata(
    key: &ClusterKey,
    service: &Service,
    rule: Option<&Key>,
    effective: &Effective,
) -> core::Metadata {
    let reference = object([
        ("host", text(&service.id.host)),
        ("name", text(&service.name)),
        ("namespace", text(service.namespace())),
    ]);
    let mut fields = vec![("services", list(vec![reference]))];
    if let Some(rule) = rule {
        let path = name::config_path("destination-rule", &rule.namespace, &rule.name);
        fields.push(("config", text(path)));
        let mode = effective.tls.as_ref().and_then(|tls| tls.mode);
        if matches!(mode, Some(ClientTlsMode::Simple | ClientTlsMode::Mutual)) {
            fields.push(("alpn_override", text("false")));
        }
    }
    if !key.subset.is_empty() {
        fields.push(("subset", text(&key.subset)));
    }
    if service.external && key.subset.is_empty() {
        fields.push(("external", truth(true)));
    }
    istio_metadata(fields)
}
