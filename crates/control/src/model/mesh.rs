//! Settings of the whole mesh: Istio's `MeshConfig`, from the ConfigMap `istio` (key `mesh`).

use serde::Deserialize;
use serde_json::Value;

use super::check::Check;
use super::diagnostic::Finding;

/// The part of `MeshConfig` that Leno honours. Other fields are reported.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MeshConfig {
    /// Where proxies write their access log, as `/dev/stdout`; empty for none.
    pub(crate) access_log_file: String,
    /// Envoy's format string; empty for Istio's.
    pub(crate) access_log_format: String,
    pub(crate) access_log_encoding: AccessLogEncoding,
    pub(crate) outbound_traffic_policy: OutboundTrafficPolicy,
    /// Where policies for the whole mesh live.
    pub(crate) root_namespace: String,
    /// Namespaces that see a Service, VirtualService or DestinationRule without `exportTo`.
    pub(crate) default_service_export_to: Vec<String>,
    pub(crate) default_virtual_service_export_to: Vec<String>,
    pub(crate) default_destination_rule_export_to: Vec<String>,
    /// The retries of routes whose rules say nothing of them.
    pub(crate) default_http_retry_policy: Option<crate::model::virtual_service::Retries>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

/// What becomes of traffic to destinations that the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OutboundTrafficPolicy {
    pub(crate) mode: OutboundMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum OutboundMode {
    /// It is refused.
    RegistryOnly,
    /// It passes.
    #[default]
    AllowAny,
}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig {
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            root_namespace: "istio-system".to_owned(),
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
            default_http_retry_policy: None,
        }
    }
}

impl MeshConfig {
    /// Everything that is wrong or has no effect.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::default();
        if self.access_log_encoding == AccessLogEncoding::Json
            && !self.access_log_format.is_empty()
            && serde_json::from_str::<serde_json::Map<String, Value>>(&self.access_log_format).is_err()
        {
            check.at("accessLogFormat", |check| {
                check.invalid("must be a JSON object when the encoding is JSON");
            });
        }
        check.into_findings()
    }
}
