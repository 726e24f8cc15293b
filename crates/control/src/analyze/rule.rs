//! Faults of VirtualServices.

use std::collections::BTreeMap;

use leno_derive::{Cx, Query};

use super::warning;
use crate::model::Key;
use crate::model::diagnostic::Finding;
use crate::model::inputs::Gateways;
use crate::model::virtual_service::{Destination, HttpMatch, MESH};
use crate::registry::{self, Visible};
use crate::scope::delegate::Missing;
use crate::scope::policy::{MergedPolicy, PolicyKey, find};
use crate::scope::rules::{Named, Rule, mesh_rules};
use crate::scope::{delegate, intersection};

/// Faults of a VirtualService.
pub(super) struct RuleFindings;

impl Query for RuleFindings {
    type Key = Key;
    type Value = Vec<Finding>;
    const NAME: &'static str = "rule-findings";

    fn derive(cx: &Cx<'_>, key: &Key) -> Vec<Finding> {
        let Some(rule) = cx.get::<Named>(key).as_ref().clone() else { return Vec::new() };
        let mut findings = Vec::new();
        for (path, destination) in rule.spec.destinations() {
            check_destination(cx, &rule, &path, destination, &mut findings);
        }
        check_delegates(cx, &rule, &mut findings);
        check_gateways(cx, &rule, &mut findings);
        check_hosts(cx, &rule, &mut findings);
        check_order(&rule, &mut findings);
        findings
    }
}

/// The service, its port and its subset must be there.
fn check_destination(
    cx: &Cx<'_>,
    rule: &Rule,
    path: &str,
    destination: &Destination,
    findings: &mut Vec<Finding>,
) {
    let namespace = &rule.meta.namespace;
    let host = &destination.host;
    let visible = cx.get::<Visible>(namespace);
    let Some(service) = visible.get(host) else {
        let why = if registry::is_declared(cx, host) {
            format!("the service {host} is not exported to the namespace {namespace}")
        } else {
            format!("there is no service {host}")
        };
        findings.push(warning("unknown-host", format!("{path}.host"), format!("{why}: requests get 503")));
        return;
    };
    if let Some(port) = &destination.port
        && !service.ports.iter().any(|known| u32::from(known.number) == port.number)
    {
        let known: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
        findings.push(warning(
            "unknown-port",
            format!("{path}.port.number"),
            format!("{host} has no port {}, only {}: requests get 503", port.number, known.join(", ")),
        ));
    }
    if destination.subset.is_empty() {
        return;
    }
    let key = PolicyKey { client: namespace, labels: &BTreeMap::new(), host, namespace: service.namespace() };
    let rules = find(cx, key);
    let merged = cx.get::<MergedPolicy>(&rules);
    if merged.subset(&destination.subset).is_none() {
        let known: Vec<&str> = merged.subsets.iter().map(|subset| subset.name.as_str()).collect();
        let hint = if known.is_empty() { String::new() } else { format!(", only {}", known.join(", ")) };
        findings.push(warning(
            "unknown-subset",
            format!("{path}.subset"),
            format!(
                "no DestinationRule defines the subset {:?} of {host}{hint}: requests get 503",
                destination.subset
            ),
        ));
    }
}

/// A delegate must be there, be one, and have rules that lie within its root's.
fn check_delegates(cx: &Cx<'_>, rule: &Rule, findings: &mut Vec<Finding>) {
    for (index, http) in rule.spec.http.iter().enumerate() {
        let Some(named) = &http.delegate else { continue };
        let path = format!("spec.http[{index}].delegate");
        let key = delegate::key(named, &rule.meta.namespace);
        let found = match delegate::find(cx, &key, &rule.meta.namespace) {
            Ok(found) => found,
            Err(missing) => {
                let why = match missing {
                    Missing::Absent => format!("there is no VirtualService {key}"),
                    Missing::Root => format!("{key} has hosts, so it is no delegate"),
                    Missing::Hidden => {
                        format!("{key} is not exported to the namespace {}", rule.meta.namespace)
                    }
                };
                findings.push(warning("unknown-delegate", path, format!("{why}: the rule is left out")));
                continue;
            }
        };
        for (own, other) in found.spec.http.iter().enumerate() {
            if delegate::merge(http, other).is_none() {
                let message = format!("http[{own}] of {key} matches more than this rule, so it is left out");
                findings.push(warning("conflicting-delegate", path.clone(), message));
            }
        }
    }
}

/// The gateways must be there and expose a host of the rule.
fn check_gateways(cx: &Cx<'_>, rule: &Rule, findings: &mut Vec<Finding>) {
    for (index, name) in rule.spec.gateways.iter().enumerate().filter(|(_, name)| *name != MESH) {
        let path = format!("spec.gateways[{index}]");
        let key = name
            .split_once('/')
            .map(|(namespace, name)| Key { namespace: namespace.to_owned(), name: name.to_owned() });
        let Some(gateway) = key.and_then(|key| cx.input::<Gateways>(&key)) else {
            findings.push(warning("unknown-gateway", path, format!("there is no Gateway {name}")));
            continue;
        };
        let exposed = gateway.spec.servers.iter().flat_map(|server| server.hosts());
        let exposed: Vec<&str> = exposed.map(|(_, host)| host).collect();
        for (index, host) in rule.spec.hosts.iter().enumerate() {
            if exposed.iter().all(|exposed| intersection(exposed, host).is_none()) {
                findings.push(warning(
                    "host-not-exposed",
                    format!("spec.hosts[{index}]"),
                    format!("no server of the Gateway {name} exposes {host}"),
                ));
            }
        }
    }
}

/// Of two rules for one host only one counts for sidecars, and HTTP rules need HTTP.
fn check_hosts(cx: &Cx<'_>, rule: &Rule, findings: &mut Vec<Finding>) {
    if !rule.applies_to(MESH) {
        return;
    }
    let rules = mesh_rules(cx, &rule.meta.namespace);
    let visible = cx.get::<Visible>(&rule.meta.namespace);
    for (index, host) in rule.spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        let alike = |other: &Rule| {
            other.spec.hosts.contains(host)
                && (other.spec.http.is_empty() == rule.spec.http.is_empty())
                && (other.spec.tcp.is_empty() == rule.spec.tcp.is_empty())
        };
        // They are ordered by age, so the first that is alike is the one that counts.
        if let Some(winner) = rules.iter().find(|other| alike(other))
            && winner.meta.key() != rule.meta.key()
        {
            let message =
                format!("{} has rules for {host} already, which count in place of these", winner.object());
            findings.push(warning("conflicting-host", path.clone(), message));
        }
        if let Some(service) = visible.get(host)
            && rule.spec.tcp.is_empty()
            && !rule.spec.http.is_empty()
            && !service.ports.iter().any(|port| port.protocol.is_http_or_auto())
        {
            let message = format!("{host} has no HTTP port, so the HTTP rules have no effect");
            findings.push(warning("no-effect", path, message));
        }
    }
}

/// What follows a rule that catches all is never reached.
fn check_order(rule: &Rule, findings: &mut Vec<Finding>) {
    let all = HttpMatch::default();
    let catches_all = |conditions: &HttpMatch| {
        let anything =
            HttpMatch { name: String::new(), stat_prefix: String::new(), uri: None, ..conditions.clone() };
        let path = conditions.uri.as_ref().is_none_or(|uri| uri.prefix.as_deref() == Some("/"));
        path && anything == all
    };
    let first = rule
        .spec
        .http
        .iter()
        .position(|http| http.r#match.is_empty() || http.r#match.iter().any(catches_all));
    let Some(first) = first else { return };
    for index in first + 1..rule.spec.http.len() {
        let message = format!("is never reached, as spec.http[{first}] matches every request");
        findings.push(warning("unreachable-rule", format!("spec.http[{index}]"), message));
    }
}
