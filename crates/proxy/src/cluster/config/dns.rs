//! Lowering of how a cluster's host names are resolved.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::net::SocketAddr;
use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3 as proto;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as ClusterFamily;
use leno_api::proto::envoy::extensions::clusters::dns::v3 as extension;
use leno_api::proto::envoy::extensions::network::dns_resolver as resolver;
use proto::cluster::DnsLookupFamily;

use crate::cluster::{Assignment, DnsDiscovery, DnsFamily};
use crate::config::address;
use crate::config::lower::Lower;

const DEFAULT_REFRESH: Duration = Duration::from_secs(5);

/// The fields of a Cluster that concern DNS.
pub(in crate::cluster) struct Fields {
    pub(in crate::cluster) dns_refresh_rate: Option<prost_types::Duration>,
    pub(in crate::cluster) dns_jitter: Option<prost_types::Duration>,
    pub(in crate::cluster) dns_failure_refresh_rate: Option<proto::cluster::RefreshRate>,
    pub(in crate::cluster) respect_dns_ttl: bool,
    pub(in crate::cluster) dns_lookup_family: i32,
    pub(in crate::cluster) dns_resolvers: Vec<core::Address>,
    pub(in crate::cluster) use_tcp_for_dns_lookups: bool,
    pub(in crate::cluster) dns_resolution_config: Option<core::DnsResolutionConfig>,
    pub(in crate::cluster) typed_dns_resolver_config: Option<core::TypedExtensionConfig>,
}

/// Lowers a DNS cluster's fields.
pub(in crate::cluster) fn lower(
    fields: Fields,
    assignment: Assignment,
    at: &mut Lower,
) -> Option<DnsDiscovery> {
    let mut tcp = fields.use_tcp_for_dns_lookups;
    let mut resolvers = at.each("dns_resolvers", fields.dns_resolvers, resolver_address);
    if let Some(config) = fields.dns_resolution_config {
        let core::DnsResolutionConfig { resolvers: list, dns_resolver_options } = config;
        at.field("dns_resolution_config", |at| {
            let servers = !list.is_empty();
            tcp |= dns_resolver_options.is_some_and(|options| resolver_options(options, servers, at));
            resolvers.extend(at.each("resolvers", list, resolver_address));
        });
    }
    let typed = typed_resolver(fields.typed_dns_resolver_config, at);
    resolvers.extend(typed.servers);
    tcp |= typed.tcp;
    // The system is asked in its own way.
    at.unsupported("use_tcp_for_dns_lookups without resolvers", tcp && resolvers.is_empty());
    let failure = fields
        .dns_failure_refresh_rate
        .map(|proto::cluster::RefreshRate { base_interval, max_interval }| (base_interval, max_interval));
    let family = match at.value::<DnsLookupFamily>("dns_lookup_family", fields.dns_lookup_family)? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    Some(DnsDiscovery {
        assignment,
        refresh: at.duration("dns_refresh_rate", fields.dns_refresh_rate).unwrap_or(DEFAULT_REFRESH),
        failure_refresh: failure_refresh(failure, at),
        respect_ttl: fields.respect_dns_ttl,
        min_refresh: Duration::ZERO,
        tcp,
        jitter: at.duration("dns_jitter", fields.dns_jitter).unwrap_or_default(),
        family,
        resolvers,
    })
}

/// Lowers a DnsCluster; the flag says that all addresses are one endpoint (LOGICAL_DNS).
pub(super) fn lower_cluster(
    proto: extension::DnsCluster,
    assignment: Assignment,
    at: &mut Lower,
) -> Option<(DnsDiscovery, bool)> {
    let extension::DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = proto;
    let typed = typed_resolver(typed_dns_resolver_config, at);
    at.unsupported("use_tcp_for_dns_lookups without resolvers", typed.tcp && typed.servers.is_empty());
    let failure = dns_failure_refresh_rate.map(
        |extension::dns_cluster::RefreshRate { base_interval, max_interval }| (base_interval, max_interval),
    );
    let family = match at.value::<ClusterFamily>("dns_lookup_family", dns_lookup_family)? {
        ClusterFamily::Unspecified | ClusterFamily::Auto => DnsFamily::Auto,
        ClusterFamily::V4Only => DnsFamily::V4Only,
        ClusterFamily::V6Only => DnsFamily::V6Only,
        ClusterFamily::V4Preferred => DnsFamily::V4Preferred,
        ClusterFamily::All => DnsFamily::All,
    };
    let discovery = DnsDiscovery {
        assignment,
        refresh: at.duration("dns_refresh_rate", dns_refresh_rate).unwrap_or(DEFAULT_REFRESH),
        failure_refresh: failure_refresh(failure, at),
        respect_ttl: respect_dns_ttl,
        min_refresh: at.duration("dns_min_refresh_rate", dns_min_refresh_rate).unwrap_or_default(),
        tcp: typed.tcp,
        jitter: at.duration("dns_jitter", dns_jitter).unwrap_or_default(),
        family,
        resolvers: typed.servers,
    };
    Some((discovery, all_addresses_in_single_endpoint))
}

type Interval = Option<prost_types::Duration>;

fn failure_refresh(proto: Option<(Interval, Interval)>, at: &mut Lower) -> Option<(Duration, Duration)> {
    let (base, max) = proto?;
    at.field("dns_failure_refresh_rate", |at| {
        let base = at.duration("base_interval", base)?;
        let max = at.duration("max_interval", max).unwrap_or(base * 10);
        if max < base {
            at.error_at("max_interval", "must be greater than or equal to the base_interval");
        }
        Some((base, max))
    })
}

fn resolver_address(proto: core::Address, at: &mut Lower) -> Option<SocketAddr> {
    match address::address(proto, at)? {
        address::Address::Ip(ip) if ip.port() == 0 => Some(SocketAddr::new(ip.ip(), 53)),
        address::Address::Ip(ip) => Some(ip),
        address::Address::Name(..) | address::Address::Pipe(..) => {
            at.error("a resolver must be an IP address");
            None
        }
    }
}

/// Lowers DnsResolverOptions: whether only TCP is to be used. `servers`: some are given.
fn resolver_options(proto: core::DnsResolverOptions, servers: bool, at: &mut Lower) -> bool {
    let core::DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain } = proto;
    // Given servers are asked for names as they are; the system is asked in its own way.
    at.unsupported("dns_resolver_options.no_default_search_domain", no_default_search_domain && !servers);
    use_tcp_for_dns_lookups
}

/// The servers to ask for names.
#[derive(Default)]
pub(crate) struct TypedResolver {
    /// Empty: the system's.
    pub(crate) servers: Vec<SocketAddr>,
    /// By TCP only.
    pub(crate) tcp: bool,
}

/// Lowers `typed_dns_resolver_config`.
pub(crate) fn typed_resolver(proto: Option<core::TypedExtensionConfig>, at: &mut Lower) -> TypedResolver {
    let Some(core::TypedExtensionConfig { name, typed_config }) = proto else {
        return TypedResolver::default();
    };
    at.field("typed_dns_resolver_config.typed_config", |at| {
        let any = at.extension(typed_config?)?;
        match leno_api::any::type_name(&any.type_url) {
            "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" => {
                let resolver::cares::v3::CaresDnsResolverConfig {
                    resolvers,
                    use_resolvers_as_fallback,
                    filter_unroutable_families,
                    dns_resolver_options,
                    // How many queries c-ares may send from one port.
                    udp_max_queries: _,
                    query_timeout_seconds,
                    query_tries,
                    rotate_nameservers,
                    edns0_max_payload_size,
                    max_udp_channel_duration,
                    reinit_channel_on_timeout,
                    qcache_max_ttl,
                } = at.unpack(&any)?;
                at.unsupported("use_resolvers_as_fallback", use_resolvers_as_fallback);
                at.unsupported("filter_unroutable_families", filter_unroutable_families);
                let servers = !resolvers.is_empty();
                let tcp = dns_resolver_options.is_some_and(|options| resolver_options(options, servers, at));
                at.unsupported("query_timeout_seconds", query_timeout_seconds.is_some());
                at.unsupported("query_tries", query_tries.is_some());
                at.unsupported("rotate_nameservers", rotate_nameservers);
                at.unsupported("edns0_max_payload_size", edns0_max_payload_size.is_some());
                at.unsupported("max_udp_channel_duration", max_udp_channel_duration.is_some());
                at.unsupported("reinit_channel_on_timeout", reinit_channel_on_timeout);
                at.unsupported("qcache_max_ttl", qcache_max_ttl.is_some());
                Some(TypedResolver { servers: at.each("resolvers", resolvers, resolver_address), tcp })
            }
            "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig" => {
                // The system's resolver, with threads and retries of its own.
                let resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig {
                    num_retries: _,
                    num_resolver_threads: _,
                } = at.unpack(&any)?;
                Some(TypedResolver::default())
            }
            _ => {
                at.unsupported_extension(&name, &any.type_url);
                None
            }
        }
    })
    .unwrap_or_default()
}
