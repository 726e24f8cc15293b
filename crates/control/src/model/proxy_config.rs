//! `ProxyConfig`, the kind: what a proxy is started with, for a workload or a namespace.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Check;
use super::diagnostic::Finding;
use super::selector::WorkloadSelector;

/// The `spec` of a ProxyConfig.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyImage {
    /// Default/debug/distroless.
    pub(crate) image_type: String,
}

impl ProxyConfig {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.selector("selector", self.selector.as_ref().map(|selector| &selector.match_labels));
        check.not_negative("concurrency", self.concurrency.unwrap_or_default());
        check.into_findings()
    }
}
