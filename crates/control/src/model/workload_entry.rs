//! `WorkloadEntry`: one workload outside Kubernetes, such as a virtual machine; also the form of a
//! ServiceEntry's endpoints.

use std::collections::BTreeMap;

use serde::Deserialize;

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
}
