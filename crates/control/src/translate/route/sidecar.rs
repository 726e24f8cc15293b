//! The route configurations of sidecars: one per outbound port, one per service whose protocol is
//! not declared, or the one of the explicit HTTP proxy.
//!
//! A virtual host is made of the routes of the rule that a service's host belongs to, or of the
//! route to the service itself ([`ServiceRoutes`], derived for each service). Rules also bring hosts
//! that are no services: on port 80 always, as Istio does, on other ports beside a service that the
//! same rule is for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::rule::{Place, operation, routes_of};
use super::{Hosts, action, hash, matcher, notes_host};
use crate::model::virtual_service::MESH;
use crate::registry::alias::AliasesOf;
use crate::registry::{DOMAIN, Mesh, Resolution, Service};
use crate::scope::outbound::{OutboundPolicy, Unknown};
use crate::scope::proxy_config::MeshOf;
use crate::scope::rules::{Order, Rule, RuleId, candidates};
use crate::scope::sidecar::{
    self, Egress, EgressOf, UNIX, egress_on, host_rules, imported, imported_host, imported_on_port,
    imported_rules,
};
use crate::scope::{Viewer, fit};
use crate::translate::proto::route;
use crate::translate::resource::Resource;
use crate::translate::{any_name, name};

/// The port on which rules for hosts that are no services apply, as in Istio.
pub(super) const PLAIN_HTTP: u16 = 80;

/// The route configuration of an outbound port (`9080`) or of one service on it
/// (`reviews.default.svc.cluster.local:9080`).
pub(in crate::translate) struct OutboundRoute;

impl Query for OutboundRoute {
    type Key = (Viewer, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "outbound-route";

    fn derive(cx: &Cx<'_>, (viewer, name): &(Viewer, String)) -> Option<Arc<Resource>> {
        let mut hosts = Hosts::new(&cx.get::<MeshOf>(&viewer.options.overrides));
        let sight = viewer.sight();
        hosts.origins.extend(sidecar::origin(&sight));
        let all = cx.get::<EgressOf>(&sight);
        if name.starts_with(UNIX) {
            let listener = all.iter().position(|egress| egress.bind == *name)?;
            hosts.add_all_ports(cx, viewer, listener);
            hosts.add_rest(cx, viewer, false);
            return Some(hosts.finish(name, false));
        }
        if let Some((host, port)) = name.rsplit_once(':') {
            let (service, found) = of_service(cx, viewer, host, port.parse().ok()?)?;
            hosts.origins.extend(found.origins.iter().cloned().chain([service.id.object.clone()]));
            // The listener is the service's own, so there is nothing to tell hosts apart for.
            hosts.add(name.clone(), vec!["*".to_owned()], found.routes.clone());
            return Some(hosts.finish(name, true));
        }
        let port: u16 = name.parse().ok()?;
        let listener = egress_on(&all, port)?;
        let egress = all.get(listener)?;
        if egress.serves_all_ports() {
            hosts.add_all_ports(cx, viewer, listener);
        } else {
            let services = imported_on_port(cx, &sight, listener, port);
            let taken: HashSet<&str> = services.iter().map(|service| service.id.host.as_str()).collect();
            for draft in drafts(cx, viewer, listener, &services, port) {
                hosts.origins.extend(draft.origins);
                let mut domains = draft.host.map_or_else(Vec::new, |host| vec![host]);
                if let Some(service) = &draft.service {
                    domains = own_domains(cx, service, viewer, egress, |host| taken.contains(host));
                }
                hosts.add(draft.name, domains, draft.routes);
            }
            hosts.sort();
        }
        hosts.add_rest(cx, viewer, viewer.captures && !egress.bound);
        Some(hosts.finish(name, !egress.serves_all_ports()))
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
        let mut hosts = Hosts::new(&cx.get::<MeshOf>(&viewer.options.overrides));
        // Listeners for certain ports are not for what goes through the proxy.
        let all = cx.get::<EgressOf>(&viewer.sight());
        if let Some(listener) = all.iter().position(|egress| egress.port.is_none()) {
            hosts.add_all_ports(cx, viewer, listener);
        }
        // Deviation: without the original destination there is nowhere to pass unknown hosts on to,
        // whatever the mesh allows.
        let (name, message) = block_all();
        hosts.add(name, vec!["*".to_owned()], vec![message]);
        Resource::clone(&hosts.finish(name::HTTP_PROXY, false))
    }
}

impl Hosts {
    /// Adds the virtual hosts of all services that a listener imports, on all their ports.
    fn add_all_ports(&mut self, cx: &Cx<'_>, viewer: &Viewer, listener: usize) {
        let sight = viewer.sight();
        let all = cx.get::<EgressOf>(&sight);
        let Some(egress) = all.get(listener) else { return };
        let ports: BTreeSet<u16> = imported(cx, &sight, listener)
            .values()
            .flat_map(|service| service.ports.iter())
            .filter(|port| port.protocol.is_http_or_auto())
            .map(|port| port.number)
            .chain([PLAIN_HTTP])
            .collect();
        for port in ports {
            let services = imported_on_port(cx, &sight, listener, port);
            let taken: HashSet<&str> = services.iter().map(|service| service.id.host.as_str()).collect();
            for draft in drafts(cx, viewer, listener, &services, port) {
                self.origins.extend(draft.origins);
                let mut domains = draft.host.map_or_else(Vec::new, |host| vec![host]);
                if let Some(service) = &draft.service {
                    domains = own_domains(cx, service, viewer, egress, |host| taken.contains(host));
                }
                let domains = domains.into_iter().flat_map(|domain| with_port(domain, port));
                self.add(draft.name, domains.collect(), draft.routes);
            }
        }
        self.sort();
    }
}

/// A domain as it stands in a table for all ports.
pub(super) fn with_port(domain: String, port: u16) -> Vec<String> {
    let with_port = name::virtual_host(domain.trim_matches(['[', ']']), port);
    if port == PLAIN_HTTP { vec![domain, with_port] } else { vec![with_port] }
}

/// A virtual host before its domains are known.
struct Draft {
    name: String,
    /// For a host that is no service.
    host: Option<String>,
    service: Option<Arc<Service>>,
    routes: Vec<route::Route>,
    origins: Vec<crate::model::ObjectRef>,
}

/// The virtual hosts of a port: those that rules bring in the order of the rules, then those of the
/// services that no rule is for.
fn drafts(cx: &Cx<'_>, viewer: &Viewer, listener: usize, services: &[Arc<Service>], port: u16) -> Vec<Draft> {
    let sight = viewer.sight();
    let place = Place { viewer: viewer.clone(), gateway: MESH.to_owned(), port, tls: false };
    let known: HashSet<String> =
        services.iter().map(|service| service.id.host.to_ascii_lowercase()).collect();
    let mut owned: BTreeMap<RuleId, Vec<Draft>> = BTreeMap::new();
    let mut rest = Vec::new();
    let mut rules: Vec<Arc<Rule>> = Vec::new();
    if port == PLAIN_HTTP {
        rules.extend(imported_rules(cx, &sight, listener).iter().cloned());
    }
    for service in services.iter().filter(|service| carries_http(service, port)) {
        let host = &service.id.host;
        if port != PLAIN_HTTP {
            rules.extend(host_rules(cx, &sight, listener, host).iter().cloned());
        }
        let found = cx.get::<ServiceRoutes>(&(viewer.clone(), listener, host.clone(), port));
        let draft = Draft {
            name: name::virtual_host(host, port),
            host: None,
            service: Some(Arc::clone(service)),
            routes: found.routes.clone(),
            origins: found.origins.iter().cloned().chain([service.id.object.clone()]).collect(),
        };
        match &found.rule {
            Some(rule) => owned.entry(rule.clone()).or_default().push(draft),
            None => rest.push(draft),
        }
    }
    let order = |rule: &Arc<Rule>| Order::of(rule, &viewer.namespace);
    rules.sort_by(|a, b| (order(a), &a.id).cmp(&(order(b), &b.id)));
    rules.dedup_by(|a, b| a.id == b.id);
    let mut drafts = Vec::new();
    for rule in rules.iter().filter(|rule| !rule.spec.http.is_empty()) {
        let services = owned.remove(&rule.id).unwrap_or_default();
        if port == PLAIN_HTTP || !services.is_empty() {
            let routes = routes_of(cx, rule, &place);
            let foreign = rule.spec.hosts.iter().filter(|host| !is_known(host, &known));
            drafts.extend(foreign.filter(|_| !routes.is_empty()).map(|host| Draft {
                name: name::virtual_host(&host.to_ascii_lowercase(), port),
                host: Some(bracketed(&host.to_ascii_lowercase())),
                service: None,
                routes: routes.as_ref().clone(),
                origins: rule.origins.clone(),
            }));
        }
        drafts.extend(services);
    }
    // Those of routes that name the services themselves and bring no other hosts.
    drafts.extend(owned.into_values().flatten());
    drafts.extend(rest);
    drafts
}

/// Whether a host of a rule is that of a service, or a wildcard that includes one.
fn is_known(host: &str, known: &HashSet<String>) -> bool {
    let host = host.to_ascii_lowercase();
    known.contains(&host) || (host.starts_with('*') && known.iter().any(|known| fit(&host, known).is_some()))
}

pub(super) fn carries_http(service: &Service, port: u16) -> bool {
    service.port(port).is_some_and(|port| port.protocol.is_http_or_auto())
}

/// What a client's requests to a service on a port go through.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Routes {
    /// The rule that they come from, if any.
    pub(super) rule: Option<RuleId>,
    pub(super) routes: Vec<route::Route>,
    pub(super) origins: Vec<crate::model::ObjectRef>,
}

/// A service that a client imports, and the routes to it.
pub(super) fn of_service(
    cx: &Cx<'_>,
    viewer: &Viewer,
    host: &str,
    port: u16,
) -> Option<(Arc<Service>, Arc<Routes>)> {
    let sight = viewer.sight();
    let all = cx.get::<EgressOf>(&sight);
    let (listener, service) = all.iter().enumerate().find_map(|(listener, egress)| {
        let here = egress.port.as_ref().is_none_or(|own| own.number == port);
        let imported = here.then(|| imported(cx, &sight, listener))?;
        imported.get(host).cloned().map(|service| (listener, service))
    })?;
    if !carries_http(&service, port) {
        return None;
    }
    let routes = cx.get::<ServiceRoutes>(&(viewer.clone(), listener, host.to_owned(), port));
    Some((service, routes))
}

/// The routes to a service that a listener imports: of the first rule for its host that has any here,
/// else the route to the service itself.
pub(super) struct ServiceRoutes;

impl Query for ServiceRoutes {
    type Key = (Viewer, usize, String, u16);
    type Value = Routes;
    const NAME: &'static str = "service-routes";

    fn derive(cx: &Cx<'_>, (viewer, listener, host, port): &(Viewer, usize, String, u16)) -> Routes {
        service_routes(cx, viewer, (*listener, host, *port), true)
    }
}

/// Makes them. `ruled`: whether there may be rules for the host.
pub(super) fn service_routes(
    cx: &Cx<'_>,
    viewer: &Viewer,
    (listener, host, port): (usize, &str, u16),
    ruled: bool,
) -> Routes {
    let sight = viewer.sight();
    if ruled {
        let place = Place { viewer: viewer.clone(), gateway: MESH.to_owned(), port, tls: false };
        let rules = host_rules(cx, &sight, listener, host);
        for rule in candidates(&rules, &host.to_ascii_lowercase()) {
            let routes = routes_of(cx, rule, &place);
            if !routes.is_empty() {
                let origins = rule.origins.clone();
                return Routes { rule: Some(rule.id.clone()), routes: routes.as_ref().clone(), origins };
            }
        }
    }
    let service = imported_host(cx, &sight, listener, host);
    let hash = service.and_then(|service| hash::of_service(cx, viewer, &service, port));
    let mesh = cx.get::<Mesh>(&());
    let cluster = name::outbound(port, "", host);
    let action = action::forward(cluster, mesh.default_http_retry_policy.as_ref(), hash);
    let mut message = route::Route {
        name: "default".to_owned(),
        r#match: Some(matcher::everything()),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    };
    let operation = operation(&message, host, port);
    message.decorator = Some(route::Decorator { operation, ..route::Decorator::default() });
    Routes { rule: None, routes: vec![message], origins: Vec::new() }
}

impl Hosts {
    /// Adds the virtual host for all other hosts. `captured`: whether it is known where these are.
    fn add_rest(&mut self, cx: &Cx<'_>, viewer: &Viewer, captured: bool) {
        let (name, message) = rest(cx, viewer, captured);
        self.add(name, vec!["*".to_owned()], vec![message]);
    }
}

/// The virtual host for hosts that are not known: its name, and its route.
pub(super) fn rest(cx: &Cx<'_>, viewer: &Viewer, captured: bool) -> (String, route::Route) {
    let cluster = match cx.get::<OutboundPolicy>(viewer).as_ref() {
        Unknown::Pass if captured => name::PASSTHROUGH_CLUSTER.to_owned(),
        Unknown::Through(proxy) => action::cluster(proxy, None, 0),
        Unknown::ByName => {
            let notes = notes_host(&cx.get::<MeshOf>(&viewer.options.overrides));
            return (any_name::NAME.to_owned(), any_name::route(notes));
        }
        // Deviation: Istio leads to the passthrough cluster what has not been captured too, where
        // nothing can come of it but a 503.
        Unknown::Pass | Unknown::Refuse => return block_all(),
    };
    let action = route::RouteAction {
        append_x_forwarded_host: notes_host(&cx.get::<MeshOf>(&viewer.options.overrides)),
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster)),
        ..action::unlimited()
    };
    let message = route::Route {
        name: "allow_any".to_owned(),
        r#match: Some(matcher::everything()),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    };
    ("allow_any".to_owned(), message)
}

/// One that refuses all requests.
pub(super) fn block_all() -> (String, route::Route) {
    let message = route::Route {
        name: "block_all".to_owned(),
        r#match: Some(matcher::everything()),
        action: Some(route::route::Action::DirectResponse(route::DirectResponseAction {
            status: 502,
            ..route::DirectResponseAction::default()
        })),
        ..route::Route::default()
    };
    ("block_all".to_owned(), message)
}

/// A service's domains but for short forms that are the full names of others on the port: a service
/// called `example.com.svc.cluster.local` must not take the requests to `example.com`. `is_taken`: whether
/// there is a service with a host on the port.
pub(super) fn own_domains(
    cx: &Cx<'_>,
    service: &Service,
    viewer: &Viewer,
    egress: &Egress,
    is_taken: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut domains = domains(service, viewer);
    // Other names of the service lead to it too, if they are imported.
    let aliases = cx.get::<AliasesOf>(&service.id.host);
    for (alias, _) in aliases.iter().filter(|(alias, _)| egress.imports.has(service.namespace(), alias)) {
        domains.push(alias.clone());
        domains.push(format!("{alias}."));
        domains.extend(short_names(alias, &viewer.namespace));
    }
    domains.retain(|domain| *domain == service.id.host || !is_taken(domain));
    domains
}

/// All spellings of a service's host that a client in a namespace may use, and its addresses.
pub(super) fn domains(service: &Service, viewer: &Viewer) -> Vec<String> {
    let host = &service.id.host;
    let mut domains = vec![bracketed(host)];
    if host.parse::<IpAddr>().is_err() {
        // The same name, made absolute for resolvers.
        domains.push(format!("{host}."));
    }
    domains.extend(short_names(host, &viewer.namespace));
    if service.is_kubernetes() && service.resolution == Resolution::OriginalDst {
        // The pods of a headless service have names of their own below that of the service.
        let pods: Vec<String> = domains.iter().map(|domain| format!("*.{domain}")).collect();
        domains.extend(pods);
    }
    let vips = service.vips_for(viewer.families, viewer.options.dns_capture);
    domains.extend(vips.map(|address| bracketed(&address.to_string())));
    domains
}

/// A host as it stands in a host header: addresses of version 6 in brackets.
pub(super) fn bracketed(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_owned(),
    }
}

/// The short forms of a Kubernetes Service's name.
pub(crate) fn short_names(host: &str, namespace: &str) -> Vec<String> {
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
