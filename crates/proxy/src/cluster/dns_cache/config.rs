//! Lowering of DnsCacheConfig.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use leno_api::proto::envoy::extensions::common::dynamic_forward_proxy::v3 as proto;

use crate::cluster::config::dns;
use crate::cluster::{Assignment, DnsDiscovery};
use crate::config::lower::Lower;

const DEFAULT_REFRESH: Duration = Duration::from_secs(60);
const DEFAULT_MIN_REFRESH: Duration = Duration::from_secs(5);
const DEFAULT_HOST_TTL: Duration = Duration::from_secs(300);
const DEFAULT_QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX: u32 = 1024;

/// A cache as configured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `name`: clusters and filters with the same name belong together.
    pub(crate) name: Box<str>,
    /// Family, refresh rates and resolvers; its assignment is empty.
    pub(crate) dns: DnsDiscovery,
    /// `host_ttl`, 5 min by default: unused hosts are forgotten.
    pub(crate) host_ttl: Duration,
    /// `max_hosts`, 1024 by default.
    pub(crate) max_hosts: usize,
    /// `dns_cache_circuit_breaker.max_pending_requests`, 1024 by default.
    pub(crate) max_pending: u32,
    /// `disable_dns_refresh_on_failure`: a host that cannot be resolved is forgotten.
    pub(crate) forget_failed: bool,
    /// `preresolve_hostnames`
    pub(crate) preresolve: Vec<(Arc<str>, u16)>,
    /// `dns_query_timeout`, 5 s by default; `None`: the resolver's own.
    pub(crate) query_timeout: Option<Duration>,
}

/// Lowers a cache.
pub(crate) fn lower(proto: proto::DnsCacheConfig, at: &mut Lower) -> Option<Arc<Settings>> {
    let proto::DnsCacheConfig {
        name,
        dns_lookup_family,
        dns_refresh_rate,
        dns_min_refresh_rate,
        host_ttl,
        max_hosts,
        disable_dns_refresh_on_failure,
        dns_failure_refresh_rate,
        dns_cache_circuit_breaker,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        preresolve_hostnames,
        dns_query_timeout,
        key_value_config,
        resolved_address_filter,
    } = proto;
    at.unsupported("key_value_config", key_value_config.is_some());
    at.unsupported("resolved_address_filter", resolved_address_filter.is_some());
    let fields = dns::Fields {
        dns_refresh_rate,
        dns_jitter: None,
        dns_failure_refresh_rate,
        respect_dns_ttl: true,
        dns_lookup_family,
        dns_resolvers: Vec::new(),
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
    };
    let has_refresh = fields.dns_refresh_rate.is_some();
    let mut dns = dns::lower(fields, Assignment::default(), at)?;
    if !has_refresh {
        dns.refresh = DEFAULT_REFRESH;
    }
    dns.min_refresh =
        at.duration("dns_min_refresh_rate", dns_min_refresh_rate).unwrap_or(DEFAULT_MIN_REFRESH);
    let breaker = dns_cache_circuit_breaker
        .and_then(|proto::DnsCacheCircuitBreakers { max_pending_requests }| max_pending_requests);
    let preresolve = at.each("preresolve_hostnames", preresolve_hostnames, |socket, at| {
        let (host, port) = crate::config::address::socket_address(socket, at)?;
        Some((Arc::from(host), port))
    });
    let settings = Settings {
        name: name.into(),
        dns,
        host_ttl: at.duration("host_ttl", host_ttl).unwrap_or(DEFAULT_HOST_TTL),
        max_hosts: max_hosts.unwrap_or(DEFAULT_MAX) as usize,
        max_pending: breaker.unwrap_or(DEFAULT_MAX),
        forget_failed: disable_dns_refresh_on_failure,
        preresolve,
        query_timeout: at.timeout("dns_query_timeout", dns_query_timeout, Some(DEFAULT_QUERY_TIMEOUT)),
    };
    let known = Arc::clone(&at.scope().dns_caches);
    let agreed = known.agree(settings);
    if agreed.is_none() {
        at.error("config specified DNS cache with the name of another, but different settings");
    }
    agreed
}

/// The caches that are configured somewhere now, by name.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<Box<str>, Weak<Settings>>>);

impl Known {
    /// The settings of a cache, the same for all who use it; `None`: others say otherwise.
    fn agree(&self, settings: Settings) -> Option<Arc<Settings>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known.get(&settings.name).and_then(Weak::upgrade) {
            return (*there == settings).then_some(there);
        }
        let settings = Arc::new(settings);
        known.retain(|_, others| others.strong_count() > 0);
        known.insert(settings.name.clone(), Arc::downgrade(&settings));
        Some(settings)
    }
}
