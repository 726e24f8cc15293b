//! `WorkloadEntry`: one workload outside Kubernetes, such as a virtual machine; also the form of a
//! ServiceEntry's endpoints.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The `spec` of a WorkloadEntry, or an endpoint of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadEntry {
    /// IP, DNS or unix path (or empty + network).
    pub(crate) address: String,
    /// Port name.
    pub(crate) ports: BTreeMap<String, u32>,
    /// Workload labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Network id.
    pub(crate) network: String,
    /// Region/zone/subzone.
    pub(crate) locality: String,
    /// LB weight.
    pub(crate) weight: u32,
    /// Identity of the workload.
    pub(crate) service_account: String,
    /// Whether its probe, if it has one, has succeeded: the condition `Healthy` of the object's
    /// status, which `read.rs` notes here.
    #[serde(skip)]
    pub(crate) healthy: bool,
}

/// The `status` of a WorkloadEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    /// What has been found out.
    pub(crate) conditions: Vec<Condition>,
    /// Analysis messages.
    pub(crate) validation_messages: Vec<Value>,
    /// Generation seen.
    pub(crate) observed_generation: Value,
}

/// One thing that has been found out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Condition {
    /// What.
    pub(crate) r#type: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    /// Why, in one word.
    pub(crate) reason: String,
    /// Why, in words.
    pub(crate) message: String,
    /// When it was last looked at.
    pub(crate) last_probe_time: Value,
    /// When it changed.
    pub(crate) last_transition_time: Value,
    /// Generation seen.
    pub(crate) observed_generation: Value,
}

impl Status {
    /// Whether the workload has been found well.
    pub(crate) fn is_healthy(&self) -> bool {
        self.conditions.iter().any(|condition| condition.r#type == "Healthy" && condition.status == "True")
    }
}
