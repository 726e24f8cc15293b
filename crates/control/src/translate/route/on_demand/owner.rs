//! Whose virtual host a domain belongs to in a table that is not made.
//!
//! The whole table (`route/sidecar.rs`) goes through all services and rules, and of several that have a
//! domain the first has it. Here those few are looked for that could have it, and are put into the same
//! order.

use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::Cx;

use super::super::rule::{Place, routes_of};
use super::super::sidecar::{self as tables, Routes, ServiceRoutes};
use super::Owner;
use super::standing::{Standing, StandingOf};
use crate::model::virtual_service::MESH;
use crate::registry::protocol::Protocol;
use crate::registry::{DOMAIN, Resolution, Service, spellings};
use crate::scope::rules::{Order, Rule, RuleId};
use crate::scope::sidecar::{Egress, EgressOf, Sight, host_rules, imported_host, imported_on_port};
use crate::scope::{Viewer, fit};
use crate::translate::proto::route;

/// A port of a listener of a client's sight.
pub(super) struct Here<'c, 'g> {
    cx: &'c Cx<'g>,
    viewer: &'c Viewer,
    sight: Sight,
    listener: usize,
    all_egress: Arc<Vec<Egress>>,
    port: u16,
}

/// Where somebody stands in the order of the whole table: virtual hosts of rules in the order of these,
/// then those of services with rules that bring no hosts of their own, then those without.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    kind: Kind,
    order: Option<Order>,
    rule: Option<RuleId>,
    /// What a rule brings itself comes before its services.
    is_service: bool,
    host: String,
}

/// The sorts of virtual hosts, in their order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ruled,
    RuledAlone,
    Plain,
}

impl<'c, 'g> Here<'c, 'g> {
    pub(super) fn new(
        cx: &'c Cx<'g>,
        viewer: &'c Viewer,
        listener: usize,
        port: u16,
    ) -> Option<Here<'c, 'g>> {
        let sight = viewer.sight();
        let all_egress = cx.get::<EgressOf>(&sight);
        all_egress.get(listener)?;
        Some(Here { cx, viewer, sight, listener, all_egress, port })
    }

    /// What is known of a service's host.
    pub(super) fn standing(&self, service: &Service) -> Standing {
        *self.cx.get::<StandingOf>(&service.id.host)
    }

    /// The service with a host that takes requests here.
    pub(super) fn service(&self, host: &str) -> Option<Arc<Service>> {
        self.any_service(host).filter(|service| tables::carries_http(service, self.port))
    }

    /// The service with a host that has the port, whatever it takes there.
    fn any_service(&self, host: &str) -> Option<Arc<Service>> {
        let service = imported_host(self.cx, &self.sight, self.listener, host)?;
        let carried = service.port(self.port).is_some_and(|port| port.protocol != Protocol::Datagram);
        (carried && service.resolution != Resolution::Alias).then_some(service)
    }

    /// All services that have the port.
    fn all_services(&self) -> Arc<Vec<Arc<Service>>> {
        imported_on_port(self.cx, &self.sight, self.listener, self.port)
    }

    /// The routes to a service with which nobody disputes its domains. Nobody else asks for them, so they are
    /// not kept.
    pub(super) fn undisputed_routes(&self, service: &Service, ruled: bool) -> Routes {
        tables::service_routes(self.cx, self.viewer, (self.listener, &service.id.host, self.port), ruled)
    }

    /// The routes to a service.
    pub(super) fn routes(&self, service: &Service) -> Arc<Routes> {
        let key = (self.viewer.clone(), self.listener, service.id.host.clone(), self.port);
        self.cx.get::<ServiceRoutes>(&key)
    }

    /// The routes of a rule.
    pub(super) fn routes_of(&self, rule: &Rule) -> Arc<Vec<route::Route>> {
        let place =
            Place { viewer: self.viewer.clone(), gateway: MESH.to_owned(), port: self.port, tls: false };
        routes_of(self.cx, rule, &place)
    }

    /// The domains of a service, whether or not others come before it.
    pub(super) fn domains(&self, service: &Service) -> Vec<String> {
        let is_taken = |host: &str| self.any_service(host).is_some();
        let Some(egress) = self.all_egress.get(self.listener) else { return Vec::new() };
        tables::own_domains(self.cx, service, self.viewer, egress, is_taken)
    }

    /// The same of a service with which nobody disputes any.
    pub(super) fn undisputed_domains(&self, service: &Service) -> Vec<String> {
        tables::domains(service, self.viewer)
    }

    /// The service that has a domain, if nobody disputes any with it.
    fn undisputed_owner(&self, domain: &str) -> Option<Owner> {
        let name = domain.strip_suffix('.').unwrap_or(domain);
        let full = if !name.contains('.') {
            format!("{name}.{}.svc.{DOMAIN}", self.sight.namespace)
        } else if name.ends_with(".svc") {
            format!("{name}.{DOMAIN}")
        } else {
            format!("{name}.svc.{DOMAIN}")
        };
        [name, &full].into_iter().find_map(|host| {
            let service = self.service(host)?;
            let has = || self.undisputed_domains(&service).iter().any(|own| own.eq_ignore_ascii_case(domain));
            let owner = Owner::Service { host: service.id.host.clone(), port: self.port };
            (self.standing(&service).alone && has()).then_some(owner)
        })
    }

    /// Whether an owner has a domain, and hides nobody who is told of it.
    pub(super) fn may_tell(&self, domain: &str, owner: &Owner) -> bool {
        let lower = domain.to_ascii_lowercase();
        self.owner(&lower).as_ref() == Some(owner)
            && (!lower.starts_with('*') || self.is_alone(&lower, owner))
    }

    /// Who has a domain, in lower case and without a port.
    pub(super) fn owner(&self, domain: &str) -> Option<Owner> {
        if let Some(owner) = self.undisputed_owner(domain) {
            return Some(owner);
        }
        let mut claims: Vec<(Rank, Owner)> = Vec::new();
        for service in self.services_of(domain) {
            if !self.domains(&service).iter().any(|own| own.eq_ignore_ascii_case(domain)) {
                continue;
            }
            let host = service.id.host.clone();
            let rank = self.rank_of(&service);
            claims.push((rank, Owner::Service { host, port: self.port }));
        }
        for rule in host_rules(self.cx, &self.sight, self.listener, unbracketed(domain)).iter() {
            let Some(host) = rule
                .spec
                .hosts
                .iter()
                .map(|host| host.to_ascii_lowercase())
                .find(|host| tables::bracketed(host) == domain)
            else {
                continue;
            };
            if self.brings(rule, &host) {
                let rank = Rank {
                    kind: Kind::Ruled,
                    order: Order::of(rule, &self.sight.namespace),
                    rule: Some(rule.id.clone()),
                    is_service: false,
                    host: host.clone(),
                };
                claims.push((rank, Owner::Rule { id: rule.id.clone(), host, port: self.port }));
            }
        }
        claims.into_iter().min().map(|(_, owner)| owner)
    }

    fn rank_of(&self, service: &Service) -> Rank {
        let plain = Rank {
            kind: Kind::Plain,
            order: None,
            rule: None,
            is_service: true,
            host: service.id.host.clone(),
        };
        let Some(id) = self.routes(service).rule.clone() else { return plain };
        if self.port == tables::PLAIN_HTTP && matches!(id, RuleId::Service { .. }) {
            return Rank { kind: Kind::RuledAlone, rule: Some(id), ..plain };
        }
        let rules = host_rules(self.cx, &self.sight, self.listener, &service.id.host);
        let rule = rules.iter().find(|rule| rule.id == id);
        let order = rule.and_then(|rule| Order::of(rule, &self.sight.namespace));
        Rank { kind: Kind::Ruled, order, rule: Some(id), ..plain }
    }

    /// Whether a rule brings a virtual host for one of its hosts, which is no service's.
    fn brings(&self, rule: &Rule, host: &str) -> bool {
        if rule.spec.http.is_empty() || self.is_known(host) {
            return false;
        }
        if self.port == tables::PLAIN_HTTP {
            if matches!(rule.id, RuleId::Service { .. }) {
                return false;
            }
        } else if !self.serves(rule) {
            return false;
        }
        !self.routes_of(rule).is_empty()
    }

    /// Whether a host is that of a service here, or a wildcard that includes one.
    fn is_known(&self, host: &str) -> bool {
        if host.starts_with('*') {
            let below = |service: &Arc<Service>| fit(host, &service.id.host.to_ascii_lowercase()).is_some();
            return self.all_services().iter().any(below);
        }
        spellings(self.cx, host).iter().any(|host| self.any_service(host).is_some())
    }

    /// Whether a rule is the one for a service here.
    fn serves(&self, rule: &Rule) -> bool {
        let is_its = |service: &Arc<Service>| {
            tables::carries_http(service, self.port) && self.routes(service).rule.as_ref() == Some(&rule.id)
        };
        rule.spec.hosts.iter().any(|host| {
            let host = host.to_ascii_lowercase();
            if host.starts_with('*') {
                let below =
                    |service: &&Arc<Service>| fit(&host, &service.id.host.to_ascii_lowercase()).is_some();
                self.all_services().iter().filter(below).any(is_its)
            } else {
                spellings(self.cx, &host)
                    .iter()
                    .filter_map(|host| self.service(host))
                    .any(|found| is_its(&found))
            }
        })
    }

    /// The services that may have a domain: all that have it, and few others.
    fn services_of(&self, domain: &str) -> Vec<Arc<Service>> {
        let mut hosts = Vec::new();
        let namespace = &self.sight.namespace;
        for name in [Some(domain), domain.strip_prefix("*.")].into_iter().flatten() {
            let name = name.strip_suffix('.').unwrap_or(name);
            hosts.push(name.to_owned());
            if unbracketed(name) != name {
                hosts.push(unbracketed(name).to_owned());
            }
            if !name.contains('.') {
                hosts.push(format!("{name}.{namespace}.svc.{DOMAIN}"));
            } else if name.ends_with(".svc") {
                hosts.push(format!("{name}.{DOMAIN}"));
            }
            if name.contains('.') {
                hosts.push(format!("{name}.svc.{DOMAIN}"));
            }
        }
        let mut found: Vec<Arc<Service>> = Vec::new();
        let hosts = hosts.iter().flat_map(|host| spellings(self.cx, host));
        for service in hosts.filter_map(|host| imported_host(self.cx, &self.sight, self.listener, &host)) {
            // Of one that is another name of another the other.
            let host = service.alias_of.as_deref().unwrap_or(&service.id.host);
            found.extend(self.service(host));
        }
        if let Ok(address) = unbracketed(domain).parse::<IpAddr>() {
            let (families, dns) = (self.viewer.families, self.viewer.options.dns_capture);
            let all = self.all_services();
            let here = |service: &&Arc<Service>| {
                tables::carries_http(service, self.port)
                    && service.vips_for(families, dns).any(|vip| vip == address)
            };
            found.extend(all.iter().filter(here).cloned());
        }
        found.sort_by(|a, b| a.id.host.cmp(&b.id.host));
        found.dedup_by(|a, b| a.id.host == b.id.host);
        found
    }

    /// The wildcards that include a host and may be domains here, longest first.
    pub(super) fn patterns(&self, host: &str) -> Vec<String> {
        let mut patterns: Vec<String> = host
            .match_indices('.')
            .map(|(at, _)| format!("*{}", host.get(at..).unwrap_or_default()))
            .collect();
        patterns.push("*".to_owned());
        for rule in host_rules(self.cx, &self.sight, self.listener, host).iter() {
            let wildcards = rule.spec.hosts.iter().filter(|host| host.starts_with('*'));
            patterns.extend(wildcards.map(|host| host.to_ascii_lowercase()));
        }
        patterns.retain(|pattern| fit(pattern, host).is_some());
        patterns.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        patterns.dedup();
        patterns
    }

    /// Whether nobody but the owner of a wildcard has a domain below it.
    pub(super) fn is_alone(&self, pattern: &str, owner: &Owner) -> bool {
        let others = host_rules(self.cx, &self.sight, self.listener, pattern);
        let is_below = |host: &str| host != pattern && fit(pattern, host).is_some();
        if others.iter().flat_map(|rule| &rule.spec.hosts).any(|host| is_below(&host.to_ascii_lowercase())) {
            return false;
        }
        self.all_services().iter().all(|service| {
            matches!(owner, Owner::Service { host, .. } if *host == service.id.host)
                || !self.domains(service).iter().any(|domain| is_below(&domain.to_ascii_lowercase()))
        })
    }
}

/// An address of version 6 without brackets.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
