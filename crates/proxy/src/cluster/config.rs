//! Lowering of envoy.config.cluster.v3.Cluster. Endpoints are lowered in `assignment`, how to
//! speak HTTP in `protocol`, how to choose in `balancing`, DNS in `dns`.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::config::cluster::v3 as proto;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use leno_api::proto::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateCluster;
use leno_api::proto::envoy::extensions::clusters::dns::v3::DnsCluster;
use leno_api::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig as DynamicCluster;
use leno_api::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use leno_api::proto::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use leno_api::proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use leno_api::proto::envoy::r#type::metadata::v3::MetadataKey;
use leno_api::proto::envoy::r#type::metadata::v3::metadata_key::{PathSegment, path_segment};
use leno_base::Name;
use prost_types::Any;
use proto::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};

use crate::cluster::budget::RetryBudget;
use crate::cluster::extras::Extras;
use crate::cluster::stats::Gauges;
use crate::cluster::{
    Assignment, CircuitBreakers, Cluster, Discovery, EndpointAddress, HappyEyeballs, Passthrough,
    TransportMatch, UpstreamProtocol, dns_cache, health, outlier,
};
use crate::config::address;
use crate::config::lower::Lower;
use crate::config::source::{ResourceKey, config_source};
use crate::proxy_protocol::UpstreamHeader;
use crate::tls::config::upstream;

mod assignment;
mod balancing;
pub(crate) mod dns;
mod extras;
mod policies;
pub(crate) use dns::typed_resolver;
mod protocol;
mod subset;

/// Lowers a cluster from its wire form.
pub(crate) fn lower(source: &Any, at: &mut Lower) -> Option<Cluster> {
    let proto = at.decode(source)?;
    lower_proto(proto, Bytes::copy_from_slice(&source.value), at)
}

/// Lowers a ClusterLoadAssignment from its wire form, as EDS brings it.
pub(crate) fn lower_assignment(source: &Any, at: &mut Lower) -> Option<Assignment> {
    let proto = at.decode::<ClusterLoadAssignment>(source)?;
    let assignment = assignment::lower(proto, at)?;
    assignment::refuse_names(&assignment, at);
    Some(assignment)
}

/// Lowers a decoded cluster; `source` is its wire form.
pub(crate) fn lower_proto(proto: proto::Cluster, source: Bytes, at: &mut Lower) -> Option<Cluster> {
    let proto::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = proto;
    at.unsupported("transport_socket_matcher", transport_socket_matcher.is_some());
    at.unsupported("stats_matcher", stats_matcher.is_some());
    at.unsupported(
        "per_connection_buffer_high_watermark_timeout",
        per_connection_buffer_high_watermark_timeout.is_some(),
    );
    let metadata_exchange = extras::filters(filters, at);
    at.unsupported("lrs_server", lrs_server.is_some());
    at.unsupported("lrs_report_endpoint_metrics", !lrs_report_endpoint_metrics.is_empty());
    at.unsupported("upstream_config", upstream_config.is_some());
    let (budgets, sizes) = extras::tracked(track_cluster_stats, at);
    let preconnect = at.optional("preconnect_policy", preconnect_policy, extras::preconnect);
    if let Some(proto::cluster::QueuingPolicies { pending_rq_policy }) = queuing_policies {
        at.unsupported("queuing_policies.pending_rq_policy", pending_rq_policy.is_some());
    }
    let mut names = HashSet::new();
    let transport_matches = at.each("transport_socket_matches", transport_socket_matches, |matching, at| {
        let proto::cluster::TransportSocketMatch { name, r#match, transport_socket } = matching;
        if !names.insert(name.clone()) {
            at.error_at("name", format!("Multiple transport sockets have the name '{name}'"));
        }
        let values = match address::object(r#match.unwrap_or_default()) {
            serde_json::Value::Object(values) => values,
            _ => serde_json::Map::new(),
        };
        let (proxy_header, transport_socket) = proxy_header(transport_socket, at);
        Some(TransportMatch { values, transport: upstream(transport_socket, at)?, proxy_header })
    });
    let (passthrough, transport_socket) = internal_upstream(transport_socket, at);
    let (proxy_header, transport_socket) = proxy_header(transport_socket, at);
    let transport = upstream(transport_socket, at);

    let dns = dns::Fields {
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
    };
    let assignment = at.optional("load_assignment", load_assignment, assignment::lower);
    let kind = discovery_type(cluster_discovery_type, at);
    let original_dst = match (&kind, &lb_config) {
        (
            Some(Kind::Plain(DiscoveryType::OriginalDst)),
            Some(proto::cluster::LbConfig::OriginalDstLbConfig(config)),
        ) => Some(config.clone()),
        _ => None,
    };
    let provided =
        matches!(kind, Some(Kind::Plain(DiscoveryType::OriginalDst) | Kind::Dynamic(_) | Kind::Aggregate(_)));
    let discovery = kind.and_then(|kind| {
        let parts =
            Parts { name: &name, assignment, eds: eds_cluster_config, dns, cleanup_interval, original_dst };
        lower_discovery(kind, parts, at)
    });
    let by_hostname = common_lb_config
        .as_ref()
        .and_then(|common| common.consistent_hashing_lb_config)
        .is_some_and(|hashing| hashing.use_hostname_for_hashing);
    if by_hostname && !matches!(discovery, None | Some(Discovery::StrictDns(_))) {
        at.error_at(
            "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing",
            "Cannot use hostname for consistent hashing loadbalancing for clusters that are not of type STRICT_DNS",
        );
    }
    let policy = at.value::<LbPolicy>("lb_policy", lb_policy);
    let ignore_new_hosts =
        common_lb_config.as_ref().is_some_and(|common| common.ignore_new_hosts_until_first_hc);
    let balancing = policy.and_then(|policy| {
        let fields = balancing::Fields {
            policy,
            lb_config,
            subset: lb_subset_config,
            extensions: load_balancing_policy,
            common: common_lb_config,
            provided,
        };
        balancing::lower(fields, at)
    });
    let tls = transport.iter().chain(transport_matches.iter().map(|matching| &matching.transport));
    let tls = tls.into_iter().any(|transport| transport.tls().is_some());
    let http = protocol::Fields {
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        protocol_selection,
        max_requests_per_connection,
        typed_extension_protocol_options,
        upstream_http_protocol_options,
        tls,
    };
    let http = protocol::lower(http, at);
    let circuit_breakers = at.field("circuit_breakers", |at| {
        at.shared(circuit_breakers.unwrap_or_default(), |proto, at| Some(lower_circuit_breakers(proto, at)))
    });
    let outlier = at.optional("outlier_detection", outlier_detection, outlier::config::lower);
    let connection_options =
        at.optional("upstream_connection_options", upstream_connection_options, |proto, at| {
            let proto::UpstreamConnectionOptions {
                tcp_keepalive,
                set_local_interface_name_on_upstream_connections,
                happy_eyeballs_config,
            } = proto;
            at.unsupported(
                "set_local_interface_name_on_upstream_connections",
                set_local_interface_name_on_upstream_connections,
            );
            let eyeballs = at.optional("happy_eyeballs_config", happy_eyeballs_config, happy_eyeballs);
            Some((tcp_keepalive.map(address::keepalive), eyeballs.unwrap_or_default()))
        });
    let (tcp_keepalive, eyeballs) = connection_options.unwrap_or_default();
    let bind = match upstream_bind_config {
        Some(bind) => at.field("upstream_bind_config", |at| address::bind_config(bind, at)).map(Arc::new),
        None => Some(at.scope().bind.clone().unwrap_or_default()),
    };
    let connect_timeout = at.duration("connect_timeout", connect_timeout).unwrap_or(Duration::from_secs(5));
    let metadata = address::metadata("metadata", metadata, at);
    let http = http?;
    let extras = Extras {
        preconnect,
        per_connection: connection_pool_per_downstream_connection,
        sizes,
        timeout_budgets: budgets || track_timeout_budgets,
        errors: http.errors,
        hashing: http.hashing.map(Arc::new),
        metadata_exchange,
    };
    let balancing = balancing?;
    let around = health::config::Surroundings {
        ignore_new_hosts,
        ignore_health_on_removal: ignore_health_on_host_removal,
        http2: !matches!(http.protocol, UpstreamProtocol::Http1),
    };
    let health = health::config::lower(health_checks, &name, around, at);
    let name = at.cluster_name(name);
    Some(Cluster {
        stat_name: address::name(alt_stat_name).unwrap_or_else(|| name.clone()),
        name,
        discovery: discovery?,
        balancing: balancing.balancing,
        here: Arc::clone(&at.scope().here),
        panic_threshold: balancing.panic_threshold,
        override_status: balancing.override_status,
        close_on_host_change: balancing.close_on_host_change,
        connect_timeout,
        transport: transport?,
        transport_matches,
        protocol: http.protocol,
        http: http.overrides,
        circuit_breakers: circuit_breakers?,
        gauges: Gauges::default(),
        outlier: outlier.map(|settings| Arc::new(outlier::Detector::new(settings))),
        health: health.map(|settings| Arc::new(health::Checkup::new(settings))),
        close_on_failure: close_connections_on_host_health_failure,
        pool: http.pool,
        buffer_limit: per_connection_buffer_limit_bytes.map_or(1 << 20, |limit| limit as usize),
        bind: bind.unwrap_or_default(),
        eyeballs,
        passthrough,
        proxy_header,
        tcp_keepalive,
        wait_for_warm: wait_for_warm_on_init != Some(false),
        added_via_api: at.scope().added_via_api,
        extras: extras.any().then(|| Box::new(extras)),
        metadata,
        source,
        version: at.scope().version.as_str().into(),
    })
}

fn happy_eyeballs(
    proto: proto::upstream_connection_options::HappyEyeballsConfig,
    at: &mut Lower,
) -> Option<HappyEyeballs> {
    use proto::upstream_connection_options::FirstAddressFamilyVersion as Version;
    let proto::upstream_connection_options::HappyEyeballsConfig {
        first_address_family_version,
        first_address_family_count,
    } = proto;
    let v4_first = match at.value::<Version>("first_address_family_version", first_address_family_version)? {
        Version::Default => None,
        Version::V4 => Some(true),
        Version::V6 => Some(false),
        Version::Pipe | Version::Internal => {
            at.unsupported("first_address_family_version", true);
            return None;
        }
    };
    Some(HappyEyeballs { v4_first, first_count: first_address_family_count.unwrap_or(1) as usize })
}

/// Looks for an internal upstream transport socket, which is around another one.
fn internal_upstream(
    proto: Option<core::TransportSocket>,
    at: &mut Lower,
) -> (Vec<Passthrough>, Option<core::TransportSocket>) {
    let Some(core::TransportSocket {
        name,
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any)),
    }) = proto
    else {
        return (Vec::new(), proto);
    };
    let found = at.field("transport_socket.typed_config", |at| {
        let any = at.extension(any)?;
        if !leno_api::any::is::<InternalUpstreamTransport>(&any) {
            let config_type = Some(core::transport_socket::ConfigType::TypedConfig(any));
            return Some((Vec::new(), Some(core::TransportSocket { name, config_type })));
        }
        let InternalUpstreamTransport { passthrough_metadata, transport_socket } = at.unpack(&any)?;
        if transport_socket.is_none() {
            at.error_at("transport_socket", "value is required");
        }
        let passthrough = at.each("passthrough_metadata", passthrough_metadata, |source, at| {
            use leno_api::proto::envoy::r#type::metadata::v3::metadata_kind::Kind;
            let of_cluster = match source.kind.and_then(|kind| kind.kind) {
                Some(Kind::Host(_)) => false,
                Some(Kind::Cluster(_)) => true,
                Some(Kind::Request(_) | Kind::Route(_)) => {
                    at.error_at("kind", "type is not supported");
                    return None;
                }
                None => {
                    at.error_at("kind", "value is required");
                    return None;
                }
            };
            Some(Passthrough { namespace: source.name.into(), of_cluster })
        });
        Some((passthrough, transport_socket))
    });
    found.unwrap_or_default()
}

/// Looks for a PROXY protocol transport socket, which is around another one.
fn proxy_header(
    proto: Option<core::TransportSocket>,
    at: &mut Lower,
) -> (Option<Arc<UpstreamHeader>>, Option<core::TransportSocket>) {
    let Some(core::TransportSocket {
        name,
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any)),
    }) = proto
    else {
        return (None, proto);
    };
    let Some(any) = at.field("transport_socket.typed_config", |at| at.extension(any)) else {
        return (None, None);
    };
    if !leno_api::any::is::<ProxyProtocolUpstreamTransport>(&any) {
        let config_type = Some(core::transport_socket::ConfigType::TypedConfig(any));
        return (None, Some(core::TransportSocket { name, config_type }));
    }
    let lowered = at.field("transport_socket.typed_config", |at| UpstreamHeader::lower(at.unpack(&any)?, at));
    lowered.map_or((None, None), |(header, inner)| (Some(Arc::new(header)), inner))
}

/// What a cluster's type says.
enum Kind {
    Plain(DiscoveryType),
    /// envoy.clusters.dns with settings of its own; true: all addresses are one logical endpoint.
    Dns(Box<DnsCluster>),
    /// envoy.clusters.dynamic_forward_proxy.
    Dynamic(Box<DynamicCluster>),
    /// envoy.clusters.aggregate.
    Aggregate(AggregateCluster),
}

fn discovery_type(proto: Option<ClusterDiscoveryType>, at: &mut Lower) -> Option<Kind> {
    match proto {
        None => Some(Kind::Plain(DiscoveryType::Static)),
        Some(ClusterDiscoveryType::Type(value)) => at.value("type", value).map(Kind::Plain),
        Some(ClusterDiscoveryType::ClusterType(proto::cluster::CustomClusterType { name, typed_config })) => {
            at.field("cluster_type", |at| {
                let any = match typed_config {
                    Some(any) => at.field("typed_config", |at| at.extension(any))?,
                    None => Any::default(),
                };
                if leno_api::any::is::<DnsCluster>(&any) {
                    return Some(Kind::Dns(Box::new(at.field("typed_config", |at| at.unpack(&any))?)));
                }
                if leno_api::any::is::<DynamicCluster>(&any) {
                    return Some(Kind::Dynamic(Box::new(at.field("typed_config", |at| at.unpack(&any))?)));
                }
                if leno_api::any::is::<AggregateCluster>(&any) {
                    return Some(Kind::Aggregate(at.field("typed_config", |at| at.unpack(&any))?));
                }
                // The plain types have names as extensions too.
                let plain = match name.as_str() {
                    "envoy.cluster.static" => DiscoveryType::Static,
                    "envoy.cluster.strict_dns" => DiscoveryType::StrictDns,
                    "envoy.cluster.logical_dns" => DiscoveryType::LogicalDns,
                    "envoy.cluster.eds" => DiscoveryType::Eds,
                    "envoy.cluster.original_dst" => DiscoveryType::OriginalDst,
                    _ => {
                        at.unsupported_extension(&name, &any.type_url);
                        return None;
                    }
                };
                Some(Kind::Plain(plain))
            })
        }
    }
}

/// What the different kinds of discovery are made of.
struct Parts<'a> {
    name: &'a str,
    assignment: Option<Assignment>,
    eds: Option<proto::cluster::EdsClusterConfig>,
    dns: dns::Fields,
    cleanup_interval: Option<prost_types::Duration>,
    original_dst: Option<proto::cluster::OriginalDstLbConfig>,
}

fn lower_discovery(kind: Kind, parts: Parts<'_>, at: &mut Lower) -> Option<Discovery> {
    let Parts { name, assignment, eds, dns, cleanup_interval, original_dst } = parts;
    if eds.is_some() && !matches!(kind, Kind::Plain(DiscoveryType::Eds)) {
        at.error_at("eds_cluster_config", "cannot set EDS config for a cluster that is not of type EDS");
    }
    match kind {
        Kind::Plain(DiscoveryType::Static) => {
            let assignment = assignment.unwrap_or_default();
            at.field("load_assignment", |at| assignment::refuse_names(&assignment, at));
            Some(Discovery::Static(assignment.into()))
        }
        Kind::Plain(DiscoveryType::StrictDns) => {
            let dns = dns::lower(dns, assignment.unwrap_or_default(), at)?;
            at.field("load_assignment", |at| assignment::refuse_pipes(&dns.assignment, at));
            assignment::refuse_others(&dns.assignment, at);
            Some(Discovery::StrictDns(dns.into()))
        }
        Kind::Plain(DiscoveryType::LogicalDns) => {
            let dns = dns::lower(dns, assignment.unwrap_or_default(), at)?;
            refuse_many(&dns.assignment, at);
            assignment::refuse_others(&dns.assignment, at);
            Some(Discovery::LogicalDns(dns.into()))
        }
        Kind::Dns(settings) => {
            let (dns, single) = at.field("cluster_type.typed_config", |at| {
                dns::lower_cluster(*settings, assignment.unwrap_or_default(), at)
            })?;
            if single {
                refuse_many(&dns.assignment, at);
                assignment::refuse_others(&dns.assignment, at);
                return Some(Discovery::LogicalDns(dns.into()));
            }
            at.field("load_assignment", |at| assignment::refuse_pipes(&dns.assignment, at));
            assignment::refuse_others(&dns.assignment, at);
            Some(Discovery::StrictDns(dns.into()))
        }
        Kind::Aggregate(AggregateCluster { clusters }) => {
            at.unsupported("load_assignment of an aggregate cluster", assignment.is_some());
            Some(Discovery::Aggregate(clusters.into_iter().map(Name::from).collect()))
        }
        Kind::Dynamic(settings) => {
            at.unsupported("load_assignment of a dynamic forward proxy", assignment.is_some());
            at.field("cluster_type.typed_config", |at| dynamic_cluster(*settings, at))
        }
        Kind::Plain(DiscoveryType::Eds) => {
            let Some(proto::cluster::EdsClusterConfig { eds_config, service_name }) = eds else {
                at.error_at("eds_cluster_config", "cannot create an EDS cluster without an EDS config");
                return None;
            };
            // Envoy ignores a load_assignment here, so it is no error, and EDS decides.
            at.field("eds_cluster_config", |at| {
                let source = match eds_config {
                    Some(source) => at.field("eds_config", |at| config_source(source, at))?,
                    None => {
                        at.error_at("eds_config", "is required");
                        return None;
                    }
                };
                let service = address::name(service_name).unwrap_or_else(|| Name::new(name));
                Some(Discovery::Eds {
                    service: ResourceKey { name: service, origin: source.origin },
                    initial_fetch_timeout: source.initial_fetch_timeout,
                })
            })
        }
        Kind::Plain(DiscoveryType::OriginalDst) => {
            if assignment.is_some() {
                at.error_at(
                    "load_assignment",
                    "ORIGINAL_DST clusters must have no load assignment configured",
                );
            }
            let proto::cluster::OriginalDstLbConfig {
                use_http_header,
                http_header_name,
                upstream_port_override,
                metadata_key,
            } = original_dst.unwrap_or_default();
            let metadata_key = at.optional("original_dst_lb_config.metadata_key", metadata_key, |key, at| {
                let MetadataKey { key, path } = key;
                let path = at.each("path", path, |PathSegment { segment }, at| match segment {
                    Some(path_segment::Segment::Key(key)) => Some(key),
                    Some(path_segment::Segment::Index(_)) => {
                        at.unsupported("index", true);
                        None
                    }
                    None => None,
                });
                Some((key, path))
            });
            let http_header = if http_header_name.is_empty() {
                Name::new("x-envoy-original-dst-host")
            } else {
                crate::http::route::matcher::header_name(&http_header_name)
            };
            if !use_http_header && !http_header_name.is_empty() {
                at.error_at(
                    "original_dst_lb_config.http_header_name",
                    format!("ORIGINAL_DST cluster: invalid config http_header_name={http_header_name} and use_http_header is false. Set use_http_header to true if http_header_name is desired."),
                );
            }
            let port_override = match upstream_port_override {
                Some(port) => Some(at.narrow("original_dst_lb_config.upstream_port_override", port)?),
                None => None,
            };
            Some(Discovery::OriginalDst {
                cleanup_interval: at
                    .duration("cleanup_interval", cleanup_interval)
                    .unwrap_or(Duration::from_secs(5)),
                port_override,
                metadata_key,
                http_header: use_http_header.then_some(http_header),
            })
        }
    }
}

fn dynamic_cluster(proto: DynamicCluster, at: &mut Lower) -> Option<Discovery> {
    let DynamicCluster {
        // It concerns names in certificates.
        allow_insecure_cluster_options: _,
        allow_coalesced_connections,
        cluster_implementation_specifier,
    } = proto;
    at.unsupported("allow_coalesced_connections", allow_coalesced_connections);
    match cluster_implementation_specifier {
        Some(ClusterImplementationSpecifier::DnsCacheConfig(config)) => {
            let settings = at.field("dns_cache_config", |at| dns_cache::config::lower(config, at))?;
            Some(Discovery::DynamicForwardProxy(Arc::new(dns_cache::DnsCache::new(settings))))
        }
        Some(ClusterImplementationSpecifier::SubClustersConfig(_)) => {
            at.unsupported("sub_clusters_config", true);
            None
        }
        None => {
            at.unsupported("cluster_implementation_specifier that is not set", true);
            None
        }
    }
}

fn refuse_many(assignment: &Assignment, at: &mut Lower) {
    let single = matches!(assignment.localities.as_slice(), [locality] if locality.endpoints.len() == 1);
    if !single {
        at.error_at(
            "load_assignment",
            "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
        );
    }
    let pipe = |address: &EndpointAddress| matches!(address, EndpointAddress::Pipe(_));
    if assignment.localities.iter().flat_map(|locality| &locality.endpoints).any(|one| pipe(&one.address)) {
        at.error_at("load_assignment", "LOGICAL_DNS clusters cannot have Unix sockets");
    }
}

/// Lowers a CircuitBreakers, by priority.
fn lower_circuit_breakers(proto: proto::CircuitBreakers, at: &mut Lower) -> [CircuitBreakers; 2] {
    let default = CircuitBreakers {
        max_connections: 1024,
        max_pending_requests: 1024,
        max_requests: 1024,
        max_retries: 3,
        retry_budget: None,
        track_remaining: false,
    };
    let mut both = [default.clone(), default];
    let proto::CircuitBreakers { thresholds, per_host_thresholds } = proto;
    let mut seen = [false; 2];
    at.unsupported("per_host_thresholds", !per_host_thresholds.is_empty());
    at.each("thresholds", thresholds, |proto, at| {
        let proto::circuit_breakers::Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = proto;
        at.unsupported("max_connection_pools", max_connection_pools.is_some());
        let index = usize::from(
            at.value::<core::RoutingPriority>("priority", priority)? == core::RoutingPriority::High,
        );
        let (Some(breakers), Some(seen)) = (both.get_mut(index), seen.get_mut(index)) else {
            return None;
        };
        // The first entry of a priority counts.
        if std::mem::replace(seen, true) {
            return None;
        }
        breakers.max_connections = max_connections.unwrap_or(1024);
        breakers.max_pending_requests = max_pending_requests.unwrap_or(1024);
        breakers.max_requests = max_requests.unwrap_or(1024);
        breakers.max_retries = max_retries.unwrap_or(3);
        breakers.track_remaining = track_remaining;
        breakers.retry_budget = at.optional("retry_budget", retry_budget, |budget, at| {
            let proto::circuit_breakers::thresholds::RetryBudget {
                budget_percent,
                budget_interval,
                min_retry_concurrency,
            } = budget;
            let interval = at.duration("budget_interval", budget_interval);
            Some(RetryBudget {
                percent: budget_percent.map_or(20.0, |percent| percent.value),
                minimum: min_retry_concurrency.unwrap_or(3),
                interval: interval.filter(|interval| !interval.is_zero()),
            })
        });
        None::<()>
    });
    both
}
