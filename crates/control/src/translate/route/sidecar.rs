//! The route configurations of sidecars: one per outbound port, one per service whose protocol is
//! not declared, or the one of the explicit HTTP proxy.

use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::rule::{Place, http_routes, operation};
use super::{Hosts, action, matcher};
use crate::model::mesh::OutboundMode;
use crate::model::virtual_service::MESH;
use crate::registry::{DOMAIN, Mesh, Resolution, Service, Visible, VisibleOnPort};
use crate::scope::Viewer;
use crate::scope::rules::{MeshRules, Rule, owner};
use crate::translate::name;
use crate::translate::proto::route;
use crate::translate::resource::Resource;

/// The port on which rules for hosts that are no services apply, as in Istio.
const PLAIN_HTTP: u16 = 80;

/// The route configuration of an outbound port (`9080`) or of one service on it
/// (`reviews.default.svc.cluster.local:9080`).
pub(super) struct OutboundRoute;

impl Query for OutboundRoute {
    type Key = (Viewer, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "outbound-route";

    fn derive(cx: &Cx<'_>, (viewer, name): &(Viewer, String)) -> Option<Arc<Resource>> {
        let (only, port) = match name.rsplit_once(':') {
            Some((host, port)) => (Some(host), port.parse().ok()?),
            None => (None, name.parse().ok()?),
        };
        let rules = cx.get::<MeshRules>(&viewer.namespace);
        let services = cx.get::<VisibleOnPort>(&(viewer.namespace.clone(), port));
        let mut hosts = Hosts::default();
        let wanted = |service: &&Arc<Service>| {
            only.is_none_or(|only| service.id.host == only)
                && service.port(port).is_some_and(|port| port.protocol.is_http_or_auto())
        };
        for service in services.iter().filter(wanted) {
            add_service(cx, &mut hosts, viewer, &rules, service, port, |domain| vec![domain]);
        }
        if only.is_none() && port == PLAIN_HTTP {
            add_foreign_hosts(cx, &mut hosts, viewer, &rules, &services);
        }
        add_rest(cx, &mut hosts);
        Some(hosts.finish(name, true))
    }
}

/// The route configuration of the explicit proxy: all services on all ports, told apart by the
/// port in the host header.
pub(super) struct HttpProxyRoute;

impl Query for HttpProxyRoute {
    type Key = Viewer;
    type Value = Resource;
    const NAME: &'static str = "http-proxy-route";

    fn derive(cx: &Cx<'_>, viewer: &Viewer) -> Resource {
        let rules = cx.get::<MeshRules>(&viewer.namespace);
        let mut hosts = Hosts::default();
        for service in cx.get::<Visible>(&viewer.namespace).values() {
            for port in service.ports.iter().filter(|port| port.protocol.is_http_or_auto()) {
                let number = port.number;
                add_service(cx, &mut hosts, viewer, &rules, service, number, |domain| {
                    let with_port = name::virtual_host(domain.trim_matches(['[', ']']), number);
                    if number == PLAIN_HTTP { vec![domain, with_port] } else { vec![with_port] }
                });
            }
        }
        let services = cx.get::<VisibleOnPort>(&(viewer.namespace.clone(), PLAIN_HTTP));
        add_foreign_hosts(cx, &mut hosts, viewer, &rules, &services);
        // Deviation: without the original destination there is nowhere to pass unknown hosts on to,
        // whatever the mesh allows.
        hosts.add("block_all".to_owned(), vec!["*".to_owned()], vec![block_all()]);
        Resource::clone(&hosts.finish(name::HTTP_PROXY, false))
    }
}

/// Adds a service's virtual host, with the routes of the rule that owns its host, if there is one.
fn add_service(
    cx: &Cx<'_>,
    hosts: &mut Hosts,
    viewer: &Viewer,
    rules: &[Arc<Rule>],
    service: &Service,
    port: u16,
    spell: impl Fn(String) -> Vec<String>,
) {
    let host = &service.id.host;
    let place = Place { viewer, gateway: MESH, port };
    let mut routes = Vec::new();
    if let Some(rule) = owner(rules, host, |rule| !rule.spec.http.is_empty()) {
        routes = http_routes(cx, rule, place);
        hosts.origins.push(rule.object());
    }
    if routes.is_empty() {
        routes.push(default_route(host, port));
    }
    hosts.origins.push(service.id.object.clone());
    let domains = domains(service, &viewer.namespace).into_iter().flat_map(spell).collect();
    hosts.add(name::virtual_host(host, port), domains, routes);
}

/// Adds virtual hosts for what rules name that is no service on the port.
fn add_foreign_hosts(
    cx: &Cx<'_>,
    hosts: &mut Hosts,
    viewer: &Viewer,
    rules: &[Arc<Rule>],
    services: &[Arc<Service>],
) {
    let place = Place { viewer, gateway: MESH, port: PLAIN_HTTP };
    for rule in rules.iter().filter(|rule| !rule.spec.http.is_empty()) {
        for host in &rule.spec.hosts {
            if services.iter().any(|service| service.id.host == *host) {
                continue;
            }
            let routes = http_routes(cx, rule, place);
            if routes.is_empty() {
                continue;
            }
            let mut domains = vec![host.clone()];
            domains.extend(short_names(host, &viewer.namespace));
            hosts.origins.push(rule.object());
            hosts.add(name::virtual_host(host, PLAIN_HTTP), domains, routes);
        }
    }
}

/// Adds the virtual host for all other hosts.
fn add_rest(cx: &Cx<'_>, hosts: &mut Hosts) {
    let all = vec!["*".to_owned()];
    match cx.get::<Mesh>(&()).outbound_traffic_policy.mode {
        OutboundMode::AllowAny => {
            let action = route::RouteAction {
                cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
                    name::PASSTHROUGH_CLUSTER.to_owned(),
                )),
                ..action::unlimited()
            };
            let message = route::Route {
                name: "allow_any".to_owned(),
                r#match: Some(matcher::everything()),
                action: Some(route::route::Action::Route(action)),
                ..route::Route::default()
            };
            hosts.add("allow_any".to_owned(), all, vec![message]);
        }
        OutboundMode::RegistryOnly => {
            hosts.add("block_all".to_owned(), all, vec![block_all()]);
        }
    }
}

fn block_all() -> route::Route {
    route::Route {
        name: "block_all".to_owned(),
        r#match: Some(matcher::everything()),
        action: Some(route::route::Action::DirectResponse(route::DirectResponseAction {
            status: 502,
            ..route::DirectResponseAction::default()
        })),
        ..route::Route::default()
    }
}

/// The route to a service that no rule speaks of.
fn default_route(host: &str, port: u16) -> route::Route {
    let mut message = route::Route {
        name: "default".to_owned(),
        r#match: Some(matcher::everything()),
        action: Some(route::route::Action::Route(action::forward(name::outbound(port, "", host)))),
        ..route::Route::default()
    };
    let operation = operation(&message, host, port);
    message.decorator = Some(route::Decorator { operation, ..route::Decorator::default() });
    message
}

/// All spellings of a service's host that a client in a namespace may use, and its addresses.
fn domains(service: &Service, namespace: &str) -> Vec<String> {
    let host = &service.id.host;
    let mut domains = vec![host.clone()];
    domains.extend(short_names(host, namespace));
    if service.is_kubernetes() && service.resolution == Resolution::OriginalDst {
        // The pods of a headless service have names of their own below that of the service.
        let pods: Vec<String> = domains.iter().map(|domain| format!("*.{domain}")).collect();
        domains.extend(pods);
    }
    domains.extend(service.vips().map(|address| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }));
    domains
}

/// The short forms of a Kubernetes Service's name.
fn short_names(host: &str, namespace: &str) -> Vec<String> {
    let suffix = format!(".svc.{DOMAIN}");
    let Some(base) = host.strip_suffix(&suffix) else { return Vec::new() };
    match base.split_once('.') {
        Some((name, own)) if own == namespace => {
            vec![name.to_owned(), format!("{base}.svc"), base.to_owned()]
        }
        Some(_) => vec![base.to_owned(), format!("{base}.svc")],
        None => Vec::new(),
    }
}
