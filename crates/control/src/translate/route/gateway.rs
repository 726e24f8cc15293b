//! The route configurations of gateways: one per port, with the hosts that Gateways expose there
//! and the rules that are bound to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::rule::{Place, http_routes};
use super::{Hosts, matcher};
use crate::model::Kind;
use crate::model::gateway::ServerProtocol;
use crate::registry::targets::Workload;
use crate::scope::gateways::{AttachedGateways, GatewayPort, GatewayServer};
use crate::scope::rules::{Rule, VisibleRules};
use crate::scope::{Viewer, intersection};
use crate::translate::name;
use crate::translate::proto::route;
use crate::translate::resource::Resource;

/// Which route configuration of which gateway workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct GatewayRouteKey {
    pub(super) viewer: Viewer,
    pub(super) workload: Workload,
    pub(super) name: String,
}

/// A gateway's route configuration; `None` if it has no such port.
pub(super) struct GatewayRoute;

impl Query for GatewayRoute {
    type Key = GatewayRouteKey;
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "gateway-route";

    fn derive(cx: &Cx<'_>, key: &GatewayRouteKey) -> Option<Arc<Resource>> {
        let attached = cx.get::<AttachedGateways>(&key.workload);
        let port = attached.ports.iter().find(|port| {
            port.protocol == ServerProtocol::Http && name::gateway_route(port.port, &port.bind) == key.name
        })?;
        Some(configuration(cx, &key.viewer, port, &key.name))
    }
}

/// A host as it is gathered from several servers and rules.
#[derive(Default)]
struct Exposed {
    port: u16,
    routes: Vec<route::Route>,
    require_tls: bool,
}

fn configuration(cx: &Cx<'_>, viewer: &Viewer, port: &GatewayPort, name: &str) -> Arc<Resource> {
    let rules = cx.get::<VisibleRules>(&viewer.namespace);
    let mut exposed: BTreeMap<String, Exposed> = BTreeMap::new();
    let mut hosts = Hosts::default();
    for server in &port.servers {
        hosts.origins.push(server.gateway.of(Kind::Gateway));
        let gateway = server.gateway_name();
        let place = Place { viewer, gateway: &gateway, port: server.number };
        let redirect = server.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
        for rule in rules.iter().filter(|rule| rule.applies_to(&gateway)) {
            let routes = http_routes(cx, rule, place);
            if routes.is_empty() {
                continue;
            }
            for host in hosts_of(server, rule) {
                hosts.origins.push(rule.object());
                let entry = exposed.entry(host).or_default();
                entry.port = server.number;
                entry.require_tls |= redirect;
                // One rule may be bound to several gateways that share the port and the host.
                for route in &routes {
                    if !entry.routes.contains(route) {
                        entry.routes.push(route.clone());
                    }
                }
            }
        }
        if redirect {
            for (_, host) in server.server.hosts() {
                let entry = exposed.entry(host.to_owned()).or_default();
                entry.port = server.number;
                entry.require_tls = true;
            }
        }
    }
    for (host, mut entry) in exposed {
        // Of several rules for one host, what catches all must come last.
        entry.routes.sort_by_key(|route| route.r#match.as_ref().is_some_and(matcher::is_catch_all));
        let added = hosts.add(name::virtual_host(&host, entry.port), vec![host], entry.routes);
        if let Some(added) = added.filter(|_| entry.require_tls) {
            added.require_tls = route::virtual_host::TlsRequirementType::All as i32;
        }
    }
    if hosts.hosts.is_empty() {
        // Without any route every request is answered 404.
        let number = port.servers.first().map_or(port.port, |server| server.number);
        if let Some(added) = hosts.add(format!("blackhole:{number}"), vec!["*".to_owned()], Vec::new()) {
            added.include_request_attempt_count = false;
        }
    }
    hosts.finish(name, true)
}

/// The hosts on which a rule and a server meet.
pub(crate) fn hosts_of(server: &GatewayServer, rule: &Rule) -> Vec<String> {
    let mut found = Vec::new();
    for (namespace, exposed) in server.server.hosts() {
        let allowed = match namespace {
            None => true,
            Some(".") => rule.meta.namespace == server.gateway.namespace,
            Some(namespace) => rule.meta.namespace == namespace,
        };
        if !allowed {
            continue;
        }
        for host in &rule.spec.hosts {
            if let Some(host) = intersection(exposed, host)
                && !found.iter().any(|present| present == host)
            {
                found.push(host.to_owned());
            }
        }
    }
    found
}
