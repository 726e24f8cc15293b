//! Which workloads, namespaces or objects a resource is for; shared by many kinds.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Workloads by their labels, all of which must be there (`type/v1beta1`). Without any it selects all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadSelector {
    /// Equality labels, ANDed.
    pub(crate) match_labels: BTreeMap<String, String>,
}

/// An object that a policy attaches to: a Gateway, GatewayClass, Service or ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PolicyTargetReference {
    /// API group.
    pub(crate) group: String,
    /// Gateway, GatewayClass, Service, ServiceEntry.
    pub(crate) kind: String,
    /// Object name.
    pub(crate) name: String,
    /// Must be empty or same namespace.
    pub(crate) namespace: String,
}

/// Workloads by their labels, as older kinds write it (`networking/v1alpha3`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadLabels {
    /// Label equality map.
    pub(crate) labels: BTreeMap<String, String>,
}

/// Kubernetes' selector over labels.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    /// Equality.
    pub(crate) match_labels: BTreeMap<String, String>,
    /// Set expressions.
    pub(crate) match_expressions: Vec<LabelSelectorRequirement>,
}

/// One condition on a label.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LabelSelectorRequirement {
    /// Label key.
    pub(crate) key: String,
    /// In/NotIn/Exists/DoesNotExist.
    pub(crate) operator: Operator,
    /// Values.
    pub(crate) values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum Operator {
    /// It has one of the values.
    #[default]
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether labels fit; a selector without conditions fits all.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|condition| {
                let value = labels.get(&condition.key);
                match condition.operator {
                    Operator::In => value.is_some_and(|value| condition.values.contains(value)),
                    Operator::NotIn => value.is_none_or(|value| !condition.values.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

impl WorkloadSelector {
    /// Whether a workload with these labels is meant; all are, if no label is asked for.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        selects(&self.match_labels, labels)
    }
}

impl WorkloadLabels {
    /// Likewise.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        selects(&self.labels, labels)
    }
}

/// Whether something with these labels has all that a selector asks for.
pub(crate) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}
