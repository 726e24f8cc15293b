//! The route configurations of gateways: one for all servers of plain HTTP on a port, one for each
//! server of HTTP over TLS, with the hosts that Gateways expose there and the rules that are bound
//! to them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::rule::{Place, routes_of};
use super::{Hosts, matcher};
use crate::registry::targets::Workload;
use crate::scope::gateways::{AttachedGateways, GatewayServer, ServerKind};
use crate::scope::proxy_config::MeshOf;
use crate::scope::rules::{GatewayRules, Rule, RuleId};
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
        let servers: Vec<&GatewayServer> = attached.servers_of(&key.name).collect();
        let first = servers.first()?;
        Some(configuration(cx, &key.viewer, &servers, first.number, &key.name))
    }
}

/// A host as it is gathered from several servers and rules.
#[derive(Default)]
struct Exposed {
    port: u16,
    routes: Vec<route::Route>,
    /// Whose routes these are, in order. Hosts that agree in this share a virtual host.
    sources: Vec<(RuleId, String)>,
    require_tls: bool,
}

fn configuration(
    cx: &Cx<'_>,
    viewer: &Viewer,
    servers: &[&GatewayServer],
    port: u16,
    name: &str,
) -> Arc<Resource> {
    let mut exposed: BTreeMap<Rank, Exposed> = BTreeMap::new();
    let mut hosts = Hosts::new(&cx.get::<MeshOf>(&viewer.options.overrides));
    for server in servers {
        hosts.origins.push(server.object.clone());
        let gateway = server.gateway_name();
        let tls = server.kind == ServerKind::Https || server.redirects();
        let place = Place { viewer: viewer.clone(), gateway: gateway.clone(), port: server.number, tls };
        let rules = cx.get::<GatewayRules>(&(viewer.namespace.clone(), gateway.clone()));
        for rule in rules.iter() {
            let meeting = hosts_of(server, rule);
            if meeting.is_empty() {
                continue;
            }
            let routes = routes_of(cx, rule, &place);
            if routes.is_empty() {
                continue;
            }
            hosts.origins.extend(rule.origins.iter().cloned());
            for host in meeting {
                let entry = exposed.entry(Rank::of(&host)).or_default();
                entry.port = server.number;
                entry.require_tls |= server.redirects();
                let source = (rule.id.clone(), gateway.clone());
                // One rule may be bound to several servers that share the port and the host.
                if entry.sources.contains(&source) {
                    continue;
                }
                entry.sources.push(source);
                for route in routes.iter() {
                    if !entry.routes.contains(route) {
                        entry.routes.push(route.clone());
                    }
                }
            }
        }
        if server.redirects() {
            // Deviation: where no rule is for a host `namespace/host` istiod writes both as the domain,
            // which no request has, and redirects none. Here the host is redirected.
            for (_, host) in server.hosts() {
                let entry = exposed.entry(Rank::of(&host.to_ascii_lowercase())).or_default();
                entry.port = server.number;
                entry.require_tls = true;
            }
        }
    }
    let is_empty = exposed.is_empty();
    for (domains, mut entry) in collapsed(exposed) {
        // Of several rules for one host, what catches all must come last.
        entry.routes.sort_by_key(|route| route.r#match.as_ref().is_some_and(matcher::is_catch_all));
        let Some(primary) = domains.first() else { continue };
        let added = hosts.add(name::virtual_host(primary, entry.port), domains, entry.routes);
        if let Some(added) = added.filter(|_| entry.require_tls) {
            added.require_tls = route::virtual_host::TlsRequirementType::All as i32;
        }
    }
    hosts.sort();
    if is_empty {
        // Without any route every request is answered 404.
        if let Some(added) = hosts.add(format!("blackhole:{port}"), vec!["*".to_owned()], Vec::new()) {
            added.include_request_attempt_count = false;
        }
    }
    hosts.finish(name, true)
}

/// A host in the order in which Istio names virtual hosts: exact ones first, then the longest, then
/// by the alphabet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(bool, Reverse<usize>, String);

impl Rank {
    fn of(host: &str) -> Rank {
        Rank(host.starts_with('*'), Reverse(host.len()), host.to_owned())
    }
}

/// Makes hosts with the same routes share a virtual host, as a rule with many hosts would else be
/// sent as many times.
fn collapsed(exposed: BTreeMap<Rank, Exposed>) -> Vec<(Vec<String>, Exposed)> {
    let mut collapsed: Vec<(Vec<String>, Exposed)> = Vec::new();
    let mut places: HashMap<(Vec<(RuleId, String)>, bool), usize> = HashMap::new();
    for (Rank(_, _, host), entry) in exposed {
        let key = (entry.sources.clone(), entry.require_tls);
        let place = *places.entry(key).or_insert(collapsed.len());
        match collapsed.get_mut(place) {
            Some((domains, present)) if present.routes == entry.routes => domains.push(host),
            _ => collapsed.push((vec![host], entry)),
        }
    }
    collapsed
}

/// The hosts on which a rule and a server meet, in lower case.
pub(crate) fn hosts_of(server: &GatewayServer, rule: &Rule) -> Vec<String> {
    let mut found = Vec::new();
    for exposed in server.hosts_for(&rule.meta.namespace) {
        let exposed = exposed.to_ascii_lowercase();
        for host in &rule.spec.hosts {
            if let Some(host) = intersection(&exposed, &host.to_ascii_lowercase())
                && !found.iter().any(|present| present == host)
            {
                found.push(host.to_owned());
            }
        }
    }
    found
}
