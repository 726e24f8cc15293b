//! `ProxyConfig`, the kind: what a proxy is started with, for a workload or a namespace.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::selector::WorkloadSelector;

/// The `spec` of a ProxyConfig.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyConfig {
    /// Workloads.
    pub(crate) selector: Option<WorkloadSelector>,
    /// Worker threads (0 = all cores).
    pub(crate) concurrency: Option<i32>,
    /// Extra env of istio-proxy.
    pub(crate) environment_variables: BTreeMap<String, String>,
    /// Proxy image variant.
    pub(crate) image: Option<ProxyImage>,
}

/// Which image a proxy runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyImage {
    /// Default/debug/distroless.
    pub(crate) image_type: String,
}
