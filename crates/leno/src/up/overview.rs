//! What runs, as `leno ps` and the live table show it.

use serde::{Deserialize, Serialize};

/// A running mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Overview {
    pub(crate) mesh: String,
    /// How replicas are kept apart, in words.
    pub(crate) mode: String,
    pub(crate) uptime_seconds: u64,
    /// The control plane's debug pages.
    pub(crate) control_plane: Option<String>,
    pub(crate) pods: Vec<PodRow>,
    pub(crate) published: Vec<PublishedRow>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) status: String,
    pub(crate) restarts: u32,
    pub(crate) address: String,
    /// Where the admin interface of its proxy is published.
    pub(crate) admin: Option<String>,
}

/// A published port of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PublishedRow {
    pub(crate) url: String,
    pub(crate) gateway: String,
}
