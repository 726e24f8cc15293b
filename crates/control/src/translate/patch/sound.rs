//! Whether a patched resource can be used: rules of Envoy's that its schema does not know and that
//! patches break easily.

use std::collections::HashSet;

use leno_api::any::{type_name, unpack};
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use prost::{Message, Name};

use crate::translate::proto::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use crate::translate::proto::{cluster, listener, route};

/// The types of network filters that end a chain.
const TERMINAL: [&str; 6] = [
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
    "envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy",
    "envoy.extensions.filters.network.echo.v3.Echo",
    "envoy.extensions.filters.network.direct_response.v3.Config",
];

/// The type of the HTTP filter that ends a chain.
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// Whether a filter ends its chain.
pub(super) fn is_terminal(filter: &listener::Filter) -> bool {
    config_of(filter).is_some_and(|config| TERMINAL.contains(&type_name(&config.type_url)))
}

/// Whether a filter is the router.
pub(super) fn is_router(filter: &hcm::HttpFilter) -> bool {
    use hcm::http_filter::ConfigType::TypedConfig;
    matches!(&filter.config_type, Some(TypedConfig(config)) if type_name(&config.type_url) == ROUTER)
}

fn config_of(filter: &listener::Filter) -> Option<&prost_types::Any> {
    match filter.config_type.as_ref()? {
        listener::filter::ConfigType::TypedConfig(config) => Some(config),
        listener::filter::ConfigType::ConfigDiscovery(_) => None,
    }
}

/// What is wrong with a listener.
pub(super) fn listener(message: &listener::Listener) -> Vec<String> {
    let mut faults = Vec::new();
    let chains = message.filter_chains.iter().enumerate();
    let chains = chains.map(|(index, chain)| (format!("filter_chains[{index}]"), chain));
    let default = message.default_filter_chain.iter().map(|chain| ("default_filter_chain".to_owned(), chain));
    for (path, chain) in chains.chain(default) {
        if let Some(fault) = chain_fault(chain) {
            faults.push(format!("{path}: {fault}"));
        }
    }
    if message.udp_listener_config.is_none()
        && message.api_listener.is_none()
        && message.filter_chains.is_empty()
        && message.default_filter_chain.is_none()
    {
        faults.push("no filter chain is left".to_owned());
    }
    let mut seen = HashSet::new();
    for (index, chain) in message.filter_chains.iter().enumerate() {
        let conditions = chain.filter_chain_match.clone().unwrap_or_default().encode_to_vec();
        if message.filter_chain_matcher.is_none() && !seen.insert(conditions) {
            faults.push(format!("filter_chains[{index}]: another chain has the same filter_chain_match"));
        }
    }
    faults
}

fn chain_fault(chain: &listener::FilterChain) -> Option<String> {
    let terminal = chain.filters.iter().position(is_terminal);
    if let Some(at) = terminal
        && at + 1 != chain.filters.len()
    {
        let name = chain.filters.get(at).map_or("", |filter| &filter.name);
        return Some(format!("the network filter {name} must be the last, and is not"));
    }
    chain.filters.iter().find_map(|filter| {
        let config = config_of(filter)?;
        if type_name(&config.type_url) != hcm::HttpConnectionManager::full_name() {
            return None;
        }
        let manager: hcm::HttpConnectionManager = unpack(config).ok()?;
        manager_fault(&manager)
    })
}

fn manager_fault(manager: &hcm::HttpConnectionManager) -> Option<String> {
    let filters = &manager.http_filters;
    match filters.iter().position(is_router) {
        Some(at) if at + 1 == filters.len() => None,
        Some(_) => Some("the router must be the last HTTP filter, and is not".to_owned()),
        None => filters.is_empty().then(|| "no HTTP filter is left".to_owned()),
    }
}

/// What is wrong with a route configuration.
pub(super) fn route(message: &route::RouteConfiguration) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut faults = Vec::new();
    for (index, host) in message.virtual_hosts.iter().enumerate() {
        for domain in &host.domains {
            if !seen.insert(domain.to_ascii_lowercase()) {
                faults.push(format!("virtual_hosts[{index}]: another virtual host has the domain {domain}"));
            }
        }
    }
    faults
}

/// What is wrong with a cluster.
pub(super) fn cluster(message: &cluster::Cluster) -> Vec<String> {
    let kind = match &message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
        Some(ClusterDiscoveryType::ClusterType(_)) => None,
        None => Some(DiscoveryType::Static),
    };
    let mut faults = Vec::new();
    if message.eds_cluster_config.is_some() && kind != Some(DiscoveryType::Eds) {
        faults.push("eds_cluster_config: only a cluster of the type EDS has one".to_owned());
    }
    let provides = matches!(kind, None | Some(DiscoveryType::OriginalDst));
    let is_provided = message.lb_policy == LbPolicy::ClusterProvided as i32;
    if is_provided && !provides {
        faults.push("lb_policy: CLUSTER_PROVIDED is for clusters that bring their own".to_owned());
    }
    if kind == Some(DiscoveryType::OriginalDst) && !is_provided {
        faults.push("lb_policy: a cluster of the type ORIGINAL_DST needs CLUSTER_PROVIDED".to_owned());
    }
    if message.transport_socket.is_some() && !message.transport_socket_matches.is_empty() {
        faults.push("transport_socket: cannot be beside transport_socket_matches".to_owned());
    }
    faults
}
