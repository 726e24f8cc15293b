//! `PeerAuthentication`: whether workloads take connections in plain text.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::selector::WorkloadSelector;

/// The `spec` of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MutualTls {
    /// UNSET inherit, DISABLE, PERMISSIVE, STRICT.
    pub(crate) mode: MutualTlsMode,
}

/// What is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum MutualTlsMode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}
