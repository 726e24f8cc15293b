//! Which DestinationRules apply to a client's traffic to a service, merged.
//!
//! Looked for in the client's namespace, then in the service's, then in the root namespace; the
//! first that has one for the host decides. Within a namespace rules for the same host are merged:
//! the oldest gives the traffic policy, all give subsets. [`policies`] finds the rules,
//! [`MergedPolicy`] merges them, [`Effective`] is what holds for one port of a subset.

use std::collections::{BTreeMap, BTreeSet};

use leno_derive::{Cx, Index, Query};

use super::{Viewer, fit};
use crate::model::destination_rule::DestinationRule;
use crate::model::destination_rule::{
    ClientTls, ConnectionPool, LoadBalancer, OutlierDetection, ProxyProtocol, RetryBudget, Subset,
    TrafficPolicy, Tunnel,
};
use crate::model::inputs::DestinationRules;
use crate::model::selector::selects;
use crate::model::{Config, Key};
use crate::registry::{Export, Mesh, Service, full_name};

/// A question: which rules apply when this client calls this host of that namespace?
#[derive(Clone, Copy, Debug)]
pub(crate) struct PolicyKey<'k> {
    /// The namespace of the client.
    pub(crate) client: &'k str,
    /// Labels of the client; rules for clients with certain labels apply to those that have them.
    pub(crate) labels: &'k BTreeMap<String, String>,
    pub(crate) host: &'k str,
    /// Of the service.
    pub(crate) namespace: &'k str,
}

/// The rules that apply when a client calls a service, in the order of merging.
pub(crate) fn policies(cx: &Cx<'_>, viewer: &Viewer, service: &Service) -> Vec<Key> {
    let key = PolicyKey {
        client: &viewer.namespace,
        labels: &viewer.labels,
        host: &service.id.host,
        namespace: service.namespace(),
    };
    find(cx, key)
}

/// The names of the rules that apply, in the order of merging.
///
/// Not a query: there are as many answers as services and clients, and almost all are empty.
pub(crate) fn find(cx: &Cx<'_>, key: PolicyKey<'_>) -> Vec<Key> {
    let rules = cx.get::<HostRules>(&key.host.to_owned());
    if rules.is_empty() {
        return Vec::new();
    }
    let mesh = cx.get::<Mesh>(&());
    let root = mesh.root_namespace.as_str();
    let default = &mesh.default_destination_rule_export_to;
    let client = key.client;
    // Rules of the root namespace are meant for the mesh, so its own clients take only the private
    // ones for theirs.
    let own = best(&rules, client, |rule| match client == root {
        true => rule.is_private(default),
        false => Export::new(client, &rule.export_to, &[]).reaches(client),
    });
    if !own.is_empty() {
        return choose(consolidate(&own), key, |_| true);
    }
    for namespace in [key.namespace, root] {
        // As in Istio, a rule that others may see but not this client hides those behind it.
        let exported = best(&rules, namespace, |rule| !rule.is_private(default));
        let chosen = choose(consolidate(&exported), key, |rule| {
            let export_to: Vec<String> = rule.export_to.iter().cloned().collect();
            Export::new(namespace, &export_to, default).reaches(client)
        });
        if !chosen.is_empty() {
            return chosen;
        }
    }
    Vec::new()
}

/// DestinationRules by the host that they are for, in full; those with a wildcard all together.
pub(crate) struct RulesByHost;

impl Index for RulesByHost {
    type Of = DestinationRules;
    type Bucket = String;
    const NAME: &'static str = "destination-rules-by-host";

    fn buckets(key: &Key, rule: &Config<DestinationRule>) -> Vec<String> {
        let host = full_name(&rule.spec.host, &key.namespace);
        vec![if host.starts_with('*') { "*".to_owned() } else { host }]
    }
}

/// What is needed to choose a rule.
#[derive(Clone, Debug, PartialEq)]
struct Head {
    key: Key,
    /// How well its host fits.
    fit: usize,
    export_to: Vec<String>,
    selector: Option<BTreeMap<String, String>>,
    age: (String, String, String),
}

/// All rules that fit a host, in Istio's order: those for certain clients first, then by age.
struct HostRules;

impl Query for HostRules {
    type Key = String;
    type Value = Vec<Head>;
    const NAME: &'static str = "host-rules";

    fn derive(cx: &Cx<'_>, host: &String) -> Vec<Head> {
        // All rules whose host has a wildcard are in one bucket.
        let keys =
            [host.as_str(), "*"].into_iter().flat_map(|host| cx.bucket::<RulesByHost>(&host.to_owned()));
        let mut heads: Vec<Head> = keys
            .filter_map(|key| cx.input::<DestinationRules>(&key))
            .filter_map(|rule| {
                let (created, name, namespace) = rule.meta.age();
                Some(Head {
                    key: rule.meta.key(),
                    fit: fit(&full_name(&rule.spec.host, &rule.meta.namespace), host)?,
                    export_to: rule.spec.export_to.clone(),
                    selector: rule.spec.workload_selector.clone().map(|selector| selector.match_labels),
                    age: (created.to_owned(), name.to_owned(), namespace.to_owned()),
                })
            })
            .collect();
        heads.sort_by(|a, b| (a.selector.is_none(), &a.age).cmp(&(b.selector.is_none(), &b.age)));
        heads.dedup_by(|a, b| a.key == b.key);
        heads
    }
}

/// Of the usable rules of a namespace those that fit best.
fn best<'r>(rules: &'r [Head], namespace: &str, usable: impl Fn(&Head) -> bool) -> Vec<&'r Head> {
    let usable = |rule: &&Head| rule.key.namespace == namespace && usable(rule);
    let best = rules.iter().filter(usable).map(|rule| rule.fit).max();
    rules.iter().filter(usable).filter(|rule| Some(rule.fit) == best).collect()
}

impl Head {
    /// Whether nobody outside of its namespace sees the rule. Rules for certain clients never leave it.
    fn is_private(&self, default: &[String]) -> bool {
        if self.selector.is_some() {
            return true;
        }
        match self.export_to.as_slice() {
            [] => default.iter().any(|to| to == "."),
            [only] => only == "." || *only == self.key.namespace,
            _ => false,
        }
    }
}

/// Rules that are merged into one.
struct Consolidated {
    namespace: String,
    export_to: BTreeSet<String>,
    selector: Option<BTreeMap<String, String>>,
    rules: Vec<Key>,
}

/// Merges rules for one host: those with the same selector and the same audience become one, and
/// a rule adds its subsets to those with a smaller audience as well.
fn consolidate(rules: &[&Head]) -> Vec<Consolidated> {
    let mut merged: Vec<Consolidated> = Vec::new();
    for rule in rules {
        let export_to: BTreeSet<String> = rule.export_to.iter().cloned().collect();
        let mut separate = true;
        for present in merged.iter_mut().filter(|present| present.selector == rule.selector) {
            let equal = present.export_to == export_to;
            if equal || (!present.export_to.is_empty() && export_to.is_superset(&present.export_to)) {
                present.rules.push(rule.key.clone());
            }
            separate &= !equal;
        }
        if separate {
            let namespace = rule.key.namespace.clone();
            let selector = rule.selector.clone();
            merged.push(Consolidated { namespace, export_to, selector, rules: vec![rule.key.clone()] });
        }
    }
    merged
}

/// Of merged rules the one for a client: one for clients with its labels, else the last for all.
fn choose(
    merged: Vec<Consolidated>,
    key: PolicyKey<'_>,
    reaches: impl Fn(&Consolidated) -> bool,
) -> Vec<Key> {
    let mut chosen = Vec::new();
    for rule in merged {
        let own = rule.namespace == key.client;
        match &rule.selector {
            Some(labels) if own && selects(labels, key.labels) => return rule.rules,
            None if reaches(&rule) => chosen = rule.rules,
            Some(_) | None => {}
        }
    }
    chosen
}

/// Several DestinationRules as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Merged {
    pub(crate) traffic_policy: TrafficPolicy,
    pub(crate) subsets: Vec<Subset>,
    /// The first of the rules, whose name goes into the cluster's metadata.
    pub(crate) first: Option<Key>,
    /// Whether there is a policy for more than subsets.
    pub(crate) says_all: bool,
    /// Whether it is for clients with certain labels.
    pub(crate) selects: bool,
}

/// The rules of the given names, merged.
pub(crate) struct MergedPolicy;

impl Query for MergedPolicy {
    type Key = Vec<Key>;
    type Value = Merged;
    const NAME: &'static str = "merged-policy";

    fn derive(cx: &Cx<'_>, keys: &Vec<Key>) -> Merged {
        let mut merged = Merged::default();
        let mut policy = None;
        for key in keys {
            let Some(rule) = cx.input::<DestinationRules>(key) else { continue };
            if merged.first.is_none() {
                merged.first = Some(key.clone());
                merged.selects = rule.spec.workload_selector.is_some();
            }
            if policy.is_none() {
                policy.clone_from(&rule.spec.traffic_policy);
            }
            for subset in &rule.spec.subsets {
                if !merged.subsets.iter().any(|present| present.name == subset.name) {
                    merged.subsets.push(subset.clone());
                }
            }
        }
        merged.says_all = policy.is_some();
        merged.traffic_policy = policy.unwrap_or_default();
        merged
    }
}

impl Merged {
    /// The subset with a name.
    pub(crate) fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }
}

/// The policy for one cluster: of a port, perhaps of a subset.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Effective {
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) connection_pool: Option<ConnectionPool>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) tunnel: Option<Tunnel>,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) retry_budget: Option<RetryBudget>,
}

/// Names what holds for one port of the service, or of one of its subsets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EffectiveKey {
    /// As [`policies`] gives them.
    pub(crate) rules: Vec<Key>,
    pub(crate) port: u16,
    /// Empty for the whole service.
    pub(crate) subset: String,
}

/// What holds under given rules.
pub(crate) struct EffectivePolicy;

impl Query for EffectivePolicy {
    type Key = EffectiveKey;
    type Value = Effective;
    const NAME: &'static str = "effective-policy";

    fn derive(cx: &Cx<'_>, key: &EffectiveKey) -> Effective {
        let merged = cx.get::<MergedPolicy>(&key.rules);
        let mesh = cx.get::<Mesh>(&());
        let (mut effective, _) = for_port(&merged.traffic_policy, key.port);
        if let Some(default) = &mesh.default_traffic_policy {
            if effective.connection_pool.is_none() {
                effective.connection_pool.clone_from(&default.connection_pool);
            }
            if effective.outlier_detection.is_none() {
                effective.outlier_detection.clone_from(&default.outlier_detection);
            }
        }
        let subset = merged.subset(&key.subset).and_then(|subset| subset.traffic_policy.as_ref());
        let Some((own, by_port)) = subset.map(|policy| for_port(policy, key.port)) else { return effective };
        // Settings for a port of a subset replace all others, even by nothing.
        if by_port {
            effective.load_balancer = None;
            effective.connection_pool = None;
            effective.outlier_detection = None;
            effective.tls = None;
        }
        Effective {
            load_balancer: own.load_balancer.or(effective.load_balancer),
            connection_pool: own.connection_pool.or(effective.connection_pool),
            outlier_detection: own.outlier_detection.or(effective.outlier_detection),
            tls: own.tls.or(effective.tls),
            tunnel: own.tunnel.or(effective.tunnel),
            proxy_protocol: own.proxy_protocol.or(effective.proxy_protocol),
            retry_budget: own.retry_budget.or(effective.retry_budget),
        }
    }
}

/// A policy as it holds for one port, and whether that is by settings for the port. These replace
/// all others: what they leave out falls back to defaults, not to the general settings.
fn for_port(policy: &TrafficPolicy, port: u16) -> (Effective, bool) {
    let own = policy
        .port_level_settings
        .iter()
        .find(|setting| setting.port.as_ref().is_some_and(|number| number.number == u32::from(port)));
    match own {
        Some(own) => {
            let effective = Effective {
                load_balancer: own.load_balancer.clone(),
                connection_pool: own.connection_pool.clone(),
                outlier_detection: own.outlier_detection.clone(),
                tls: own.tls.clone(),
                ..Effective::default()
            };
            (effective, true)
        }
        None => {
            let effective = Effective {
                load_balancer: policy.load_balancer.clone(),
                connection_pool: policy.connection_pool.clone(),
                outlier_detection: policy.outlier_detection.clone(),
                tls: policy.tls.clone(),
                tunnel: policy.tunnel.clone(),
                proxy_protocol: policy.proxy_protocol.clone(),
                retry_budget: policy.retry_budget.clone(),
            };
            (effective, false)
        }
    }
}
