//! RDS: which request goes where.
//!
//! - `sidecar.rs`: a route configuration per outbound port, or the one of the explicit proxy;
//! - `on_demand.rs`: their virtual hosts one by one, for those that ask for them so;
//! - `gateway.rs`: one per port of a gateway;
//! - `rule.rs`: an HTTP rule of a VirtualService as Envoy routes, with `matcher.rs`, `action.rs`,
//!   `retry.rs`, `hash.rs` (what decides on the endpoint) and `filter.rs` (faults and CORS).

pub(crate) mod action;
mod filter;
pub(crate) mod gateway;
pub(crate) mod grpc;
mod hash;
pub(crate) mod matcher;
pub(crate) mod on_demand;
pub(crate) mod retry;
pub(crate) mod rule;
pub(crate) mod sidecar;

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::any_name;
use super::patch::{self, Family, Subject};
use super::proto::route;
use super::resource::Resource;
use crate::model::ObjectRef;
use crate::model::mesh::MeshConfig;
use crate::scope::gateways::AttachedGateways;
use crate::scope::{Interception, ProxyKey, Role};

/// Istio's limit for the body of a direct response.
const MOST_DIRECT_RESPONSE: u32 = 1 << 20;

/// A route configuration that a proxy asks for by name; `None` if it has none of that name. A root
/// for a proxy as a client, see [`crate::scope::client::ClientOf`].
pub(crate) struct Route;

impl Query for Route {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "route";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        let found = unpatched(cx, proxy, name)?;
        let patches = &proxy.patching.patches;
        if patches.is_empty() {
            return Some(found);
        }
        patch::one(cx, patches, Family::Route, subject(cx, proxy, name), found)
    }
}

/// What patches may ask of a route configuration.
pub(super) fn subject(cx: &Cx<'_>, proxy: &ProxyKey, name: &str) -> Subject {
    let mut subject = Subject::of(proxy.client_context());
    if proxy.role == Role::Router {
        let attached = cx.get::<AttachedGateways>(&proxy.workload());
        subject.ports = attached.servers_of(name).map(|server| server.number).collect();
        subject.ports.sort_unstable();
        subject.ports.dedup();
    }
    subject
}

/// A route configuration before EnvoyFilters.
pub(super) fn unpatched(cx: &Cx<'_>, proxy: &ProxyKey, name: &str) -> Option<Arc<Resource>> {
    on_demand(cx, proxy, name).or_else(|| whole(cx, proxy, name))
}

/// One whose virtual hosts are asked for one by one.
fn on_demand(cx: &Cx<'_>, proxy: &ProxyKey, name: &str) -> Option<Arc<Resource>> {
    if !proxy.asks_for_hosts() {
        return None;
    }
    cx.get::<on_demand::Table>(&(proxy.viewer(cx), name.to_owned())).as_ref().clone()
}

/// One with all of its virtual hosts.
fn whole(cx: &Cx<'_>, proxy: &ProxyKey, name: &str) -> Option<Arc<Resource>> {
    match (proxy.role, proxy.interception) {
        (Role::Router, _) => {
            let key = gateway::GatewayRouteKey {
                viewer: proxy.viewer(cx),
                workload: proxy.workload(),
                name: name.to_owned(),
            };
            cx.get::<gateway::GatewayRoute>(&key).as_ref().clone()
        }
        // These ask by other names, see `grpc.rs`.
        (Role::Grpc, _) => None,
        (Role::Sidecar, _) if name == super::name::HTTP_PROXY => {
            Some(cx.get::<sidecar::HttpProxyRoute>(&proxy.viewer(cx)))
        }
        (Role::Sidecar, interception) => {
            let viewer = proxy.viewer(cx);
            // Where nothing is captured there are no other listeners but those of a Sidecar.
            if matches!(interception, Interception::Explicit { .. }) && viewer.sidecar.is_none() {
                return None;
            }
            cx.get::<sidecar::OutboundRoute>(&(viewer, name.to_owned())).as_ref().clone()
        }
    }
}

/// Whether a request whose host is changed says what it was.
fn notes_host(mesh: &MeshConfig) -> bool {
    let headers = mesh.default_config.proxy_headers.as_ref();
    headers.and_then(|headers| headers.x_forwarded_host.as_ref()?.enabled) == Some(true)
}

/// The routes of a listener for all hosts that the mesh does not know.
pub(crate) fn any_name_routes(mesh: &MeshConfig) -> route::RouteConfiguration {
    let mut hosts = Hosts::new(mesh);
    hosts.add(any_name::NAME.to_owned(), vec!["*".to_owned()], vec![any_name::route(notes_host(mesh))]);
    hosts.configuration(any_name::NAME, true)
}

/// Virtual hosts as they are gathered, and the objects that they come from.
#[derive(Debug)]
struct Hosts {
    /// Whether servers are told how often a request has been tried.
    attempt_count: bool,
    hosts: Vec<route::VirtualHost>,
    origins: Vec<ObjectRef>,
    domains: std::collections::HashSet<String>,
}

impl Hosts {
    fn new(mesh: &MeshConfig) -> Hosts {
        let headers = mesh.default_config.proxy_headers.as_ref();
        let disabled = headers.and_then(|headers| headers.attempt_count.as_ref()?.disabled);
        Hosts {
            attempt_count: disabled != Some(true),
            hosts: Vec::new(),
            origins: Vec::new(),
            domains: std::collections::HashSet::new(),
        }
    }

    /// Adds a virtual host with those of its domains that no earlier one has: Envoy refuses a
    /// configuration in which a domain occurs twice.
    fn add(
        &mut self,
        name: String,
        domains: Vec<String>,
        routes: Vec<route::Route>,
    ) -> Option<&mut route::VirtualHost> {
        let domains: Vec<String> =
            domains.into_iter().filter(|domain| self.domains.insert(domain.to_ascii_lowercase())).collect();
        if domains.is_empty() {
            return None;
        }
        self.hosts.push(route::VirtualHost {
            name,
            domains,
            routes,
            include_request_attempt_count: self.attempt_count,
            ..route::VirtualHost::default()
        });
        self.hosts.last_mut()
    }

    /// Puts the virtual hosts in the order of their names.
    fn sort(&mut self) {
        self.hosts.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// The finished configuration.
    fn finish(mut self, name: &str, ignore_port: bool) -> Arc<Resource> {
        let origins = std::mem::take(&mut self.origins);
        let message = self.configuration(name, ignore_port);
        let mut resource = Resource::new(name, &message, origins);
        (resource.clusters, resource.needs) = (clusters(&message), mirrors(&message));
        Arc::new(resource)
    }
}

impl Hosts {
    /// The message.
    fn configuration(self, name: &str, ignore_port: bool) -> route::RouteConfiguration {
        route::RouteConfiguration {
            name: name.to_owned(),
            virtual_hosts: self.hosts,
            // A route to a cluster that does not exist answers 503 instead of being refused.
            validate_clusters: Some(false),
            max_direct_response_body_size_bytes: Some(MOST_DIRECT_RESPONSE),
            ignore_port_in_host_matching: ignore_port,
            ..route::RouteConfiguration::default()
        }
    }
}

/// The clusters that copies of requests go to, sorted: a copy for which there is no cluster is
/// dropped without a word.
pub(super) fn mirrors(message: &route::RouteConfiguration) -> Vec<leno_base::Name> {
    let routes = message.virtual_hosts.iter().flat_map(|host| &host.routes);
    let mirrors = routes.flat_map(|route| match &route.action {
        Some(route::route::Action::Route(action)) => action.request_mirror_policies.as_slice(),
        _ => &[],
    });
    let hosts = message.virtual_hosts.iter().flat_map(|host| &host.request_mirror_policies);
    let all = mirrors.chain(hosts).chain(&message.request_mirror_policies);
    let mut names: Vec<_> = all
        .filter(|mirror| !mirror.cluster.is_empty())
        .map(|mirror| leno_base::Name::new(&mirror.cluster))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The clusters that routes name, sorted.
pub(super) fn clusters(message: &route::RouteConfiguration) -> Vec<leno_base::Name> {
    use route::route_action::ClusterSpecifier;
    let mut names = Vec::new();
    let routes = message.virtual_hosts.iter().flat_map(|host| &host.routes);
    for action in routes.filter_map(|route| match &route.action {
        Some(route::route::Action::Route(action)) => Some(action),
        _ => None,
    }) {
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => names.push(name.as_str()),
            Some(ClusterSpecifier::WeightedClusters(all)) => {
                names.extend(all.clusters.iter().map(|cluster| cluster.name.as_str()));
            }
            _ => {}
        }
        names.extend(action.request_mirror_policies.iter().map(|mirror| mirror.cluster.as_str()));
    }
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(leno_base::Name::new).collect()
}
