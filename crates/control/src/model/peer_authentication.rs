//! `PeerAuthentication`: whether workloads take connections in plain text.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Check;
use super::diagnostic::Finding;
use super::selector::WorkloadSelector;

/// The `spec` of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PeerAuthentication {
    /// Pods policy applies to; empty in root ns = mesh.
    pub(crate) selector: Option<WorkloadSelector>,
    /// Workload mTLS mode.
    pub(crate) mtls: Option<MutualTls>,
    /// Per workload port mode.
    pub(crate) port_level_mtls: BTreeMap<u32, MutualTls>,
}

/// Mutual TLS on the way in.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MutualTls {
    /// UNSET inherit, DISABLE, PERMISSIVE, STRICT.
    pub(crate) mode: MutualTlsMode,
}

/// What is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum MutualTlsMode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

impl PeerAuthentication {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.selector("selector", self.selector.as_ref().map(|selector| &selector.match_labels));
        let for_all = self.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty());
        check.at("portLevelMtls", |check| {
            if for_all && !self.port_level_mtls.is_empty() {
                check.invalid("needs a selector: a policy for all workloads cannot be for some ports");
            }
            for port in self.port_level_mtls.keys() {
                check.key(&port.to_string(), |check| check.port(*port));
            }
        });
        check.into_findings()
    }
}
