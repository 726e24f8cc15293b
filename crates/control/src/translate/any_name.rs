//! Destinations that the mesh does not know, by the names that requests ask for: what becomes of them
//! with `outboundTrafficPolicy.mode: ALLOW_ANY_DYNAMIC_DNS`.
//!
//! Requests go to one cluster, [`CLUSTER`], whose endpoints are looked up by the host of each request;
//! the HTTP filter of the same cache does so in front of it. Connections of other protocols pass to
//! where they wanted, as with ALLOW_ANY.
//!
//! Deviation: where an agent proxies DNS (`DNS_CAPTURE`) istiod lets these names be asked of the agent;
//! here they are asked of whom the proxy asks anyway.

use leno_api::proto::envoy::extensions::common::dynamic_forward_proxy::v3 as cache;
use leno_api::proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as filter;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

use super::listener::filters::http_filter;
use super::proto::route;
use super::route::{action, matcher};
use crate::scope::Families;
use crate::translate::cluster::lookup_family;

/// The cluster.
pub(crate) const CLUSTER: &str = "AllowAnyDynamicDNSCluster";

/// The virtual host, its route, and the configuration of those in `virtualOutbound`.
pub(crate) const NAME: &str = "allow_any_dynamic_dns";

/// The cache that the cluster and the filters share.
const CACHE: &str = "allow_any_dfp_dns_cache";

/// How many names it remembers; Istio's.
const MAX_HOSTS: u32 = 1024;

/// The cache: the same for all who use it, as it must be.
pub(crate) fn dns_cache(families: Families) -> cache::DnsCacheConfig {
    cache::DnsCacheConfig {
        name: CACHE.to_owned(),
        dns_lookup_family: lookup_family(families) as i32,
        max_hosts: Some(MAX_HOSTS),
        ..cache::DnsCacheConfig::default()
    }
}

/// The filter that looks names up before requests go to the cluster.
pub(crate) fn lookup(families: Families) -> hcm::HttpFilter {
    use filter::filter_config::ImplementationSpecifier;
    let config = filter::FilterConfig {
        implementation_specifier: Some(ImplementationSpecifier::DnsCacheConfig(dns_cache(families))),
        ..filter::FilterConfig::default()
    };
    http_filter("envoy.filters.http.dynamic_forward_proxy", &config)
}

/// The route to the cluster.
pub(crate) fn route(notes_host: bool) -> route::Route {
    let action = route::RouteAction {
        append_x_forwarded_host: notes_host,
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(CLUSTER.to_owned())),
        ..action::unlimited()
    };
    route::Route {
        name: NAME.to_owned(),
        r#match: Some(matcher::everything()),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    }
}
