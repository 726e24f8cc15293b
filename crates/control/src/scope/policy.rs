//! Which DestinationRules apply to a client's traffic to a service, merged.
//!
//! Looked for in the client's namespace, then in the service's, then in the root namespace; the
//! first that has one for the host decides. Within a namespace rules for the same host are merged:
//! the oldest gives the traffic policy, all give subsets.

use leno_derive::{Cx, Query};

use super::{Viewer, fit};
use crate::model::destination_rule::{
    ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, RetryBudget, Subset, TrafficPolicy,
};
use crate::model::inputs::DestinationRules;
use crate::model::{Config, Key};
use crate::registry::instances::selects;
use crate::registry::{Export, Mesh, full_name};

/// A question: which rules apply when this client calls this host of that namespace?
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PolicyKey {
    pub(crate) viewer: Viewer,
    pub(crate) host: String,
    /// Of the service.
    pub(crate) namespace: String,
}

/// The names of the rules that apply, in the order of merging.
pub(crate) struct Policies;

impl Query for Policies {
    type Key = PolicyKey;
    type Value = Vec<Key>;
    const NAME: &'static str = "policies";

    fn derive(cx: &Cx<'_>, key: &PolicyKey) -> Vec<Key> {
        let mesh = cx.get::<Mesh>(&());
        let client = &key.viewer.namespace;
        for namespace in [client, &key.namespace, &mesh.root_namespace] {
            let rules = cx.get::<RulesOf>(namespace);
            let usable = |rule: &&RuleHead| {
                // A rule is at the service of its own namespace whatever it exports.
                (namespace == client || rule.export_to.reaches(client))
                    && (rule.selector.is_empty()
                        || (namespace == client && selects(&rule.selector, &key.viewer.labels)))
            };
            let best = rules.iter().filter(usable).filter_map(|rule| fit(&rule.host, &key.host)).max();
            let Some(best) = best else { continue };
            let matching =
                rules.iter().filter(usable).filter(|rule| fit(&rule.host, &key.host) == Some(best));
            let (selected, general): (Vec<_>, Vec<_>) = matching.partition(|rule| !rule.selector.is_empty());
            // A rule for these very clients replaces those for all.
            let chosen = if selected.is_empty() { general } else { selected };
            return chosen.into_iter().map(|rule| rule.key.clone()).collect();
        }
        Vec::new()
    }
}

/// What is needed to choose a rule.
#[derive(Clone, Debug, PartialEq)]
struct RuleHead {
    key: Key,
    host: String,
    export_to: Export,
    selector: std::collections::BTreeMap<String, String>,
}

/// The rules of a namespace, oldest first.
struct RulesOf;

impl Query for RulesOf {
    type Key = String;
    type Value = Vec<RuleHead>;
    const NAME: &'static str = "destination-rules-of";

    fn derive(cx: &Cx<'_>, namespace: &String) -> Vec<RuleHead> {
        let mesh = cx.get::<Mesh>(&());
        let keys = cx.all::<DestinationRules>().into_iter().filter(|key| key.namespace == *namespace);
        let mut rules: Vec<_> = keys.filter_map(|key| cx.input::<DestinationRules>(&key)).collect();
        rules.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
        let head = |rule: &Config<DestinationRule>| RuleHead {
            key: rule.meta.key(),
            host: full_name(&rule.spec.host, namespace),
            export_to: Export::new(namespace, &rule.spec.export_to, &mesh.default_destination_rule_export_to),
            selector: rule.spec.workload_selector.clone().unwrap_or_default().match_labels,
        };
        rules.iter().map(|rule| head(rule)).collect()
    }
}

/// Several DestinationRules as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Merged {
    pub(crate) traffic_policy: TrafficPolicy,
    pub(crate) subsets: Vec<Subset>,
    /// The first of the rules, whose name goes into the cluster's metadata.
    pub(crate) first: Option<Key>,
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
            merged.first.get_or_insert_with(|| key.clone());
            if policy.is_none() {
                policy.clone_from(&rule.spec.traffic_policy);
            }
            for subset in &rule.spec.subsets {
                if !merged.subsets.iter().any(|present| present.name == subset.name) {
                    merged.subsets.push(subset.clone());
                }
            }
        }
        merged.traffic_policy = policy.unwrap_or_default();
        merged
    }
}

/// The policy for one cluster: of a port, perhaps of a subset.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Effective {
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) connection_pool: Option<ConnectionPool>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) retry_budget: Option<RetryBudget>,
}

impl Merged {
    /// The subset with a name.
    pub(crate) fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// What holds for a port of the service, or of one of its subsets.
    pub(crate) fn effective(&self, port: u16, subset: Option<&Subset>) -> Effective {
        let general = for_port(&self.traffic_policy, port);
        let Some(own) = subset.and_then(|subset| subset.traffic_policy.as_ref()) else { return general };
        let own = for_port(own, port);
        Effective {
            load_balancer: own.load_balancer.or(general.load_balancer),
            connection_pool: own.connection_pool.or(general.connection_pool),
            outlier_detection: own.outlier_detection.or(general.outlier_detection),
            retry_budget: own.retry_budget.or(general.retry_budget),
        }
    }
}

/// A policy as it holds for one port: settings for the port replace all others, as in Istio, where
/// what a port's settings leave out falls back to defaults, not to the general settings.
fn for_port(policy: &TrafficPolicy, port: u16) -> Effective {
    let own = policy
        .port_level_settings
        .iter()
        .find(|setting| setting.port.as_ref().is_some_and(|number| number.number == u32::from(port)));
    match own {
        Some(own) => Effective {
            load_balancer: own.load_balancer.clone(),
            connection_pool: own.connection_pool.clone(),
            outlier_detection: own.outlier_detection.clone(),
            retry_budget: policy.retry_budget.clone(),
        },
        None => Effective {
            load_balancer: policy.load_balancer.clone(),
            connection_pool: policy.connection_pool.clone(),
            outlier_detection: policy.outlier_detection.clone(),
            retry_budget: policy.retry_budget.clone(),
        },
    }
}
