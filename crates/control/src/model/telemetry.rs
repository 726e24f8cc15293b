//! `Telemetry`: access logs, metrics and traces of workloads.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::duration::Span;
use super::selector::{PolicyTargetReference, WorkloadSelector};

/// The `spec` of a Telemetry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Telemetry {
    /// Pods it applies to.
    pub(crate) selector: Option<WorkloadSelector>,
    /// Attached gateway/service.
    pub(crate) target_ref: Option<PolicyTargetReference>,
    /// Several targets.
    pub(crate) target_refs: Vec<PolicyTargetReference>,
    /// Tracing rules.
    pub(crate) tracing: Vec<Tracing>,
    /// Metric rules.
    pub(crate) metrics: Vec<Metrics>,
    /// Access-log rules.
    pub(crate) access_logging: Vec<AccessLogging>,
}

/// How requests are traced.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Tracing {
    /// Which side applies.
    pub(crate) r#match: Option<TracingSelector>,
    /// Provider (only first used).
    pub(crate) providers: Vec<ProviderRef>,
    /// 0.00-100.00 sampling rate.
    pub(crate) random_sampling_percentage: Option<f64>,
    /// Stop reporting; still propagate.
    pub(crate) disable_span_reporting: Option<bool>,
    /// Tags added to spans.
    pub(crate) custom_tags: BTreeMap<String, CustomTag>,
    /// Sampling decision from x-request-id.
    pub(crate) use_request_id_for_trace_sampling: Option<bool>,
    /// Add istio.* tags.
    pub(crate) enable_istio_tags: Option<bool>,
    /// No trace header injection.
    pub(crate) disable_context_propagation: Option<bool>,
}

/// Which traffic is traced so.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TracingSelector {
    /// CLIENT, SERVER, CLIENT_AND_SERVER.
    pub(crate) mode: WorkloadMode,
}

/// Which side of a connection is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum WorkloadMode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

/// A provider of the mesh configuration's `extensionProviders`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProviderRef {
    /// Name in MeshConfig.extensionProviders.
    pub(crate) name: String,
}

/// Where the value of a tag comes from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CustomTag {
    /// Fixed value.
    pub(crate) literal: Option<LiteralTag>,
    /// Proxy environment variable.
    pub(crate) environment: Option<EnvironmentTag>,
    /// Request header.
    pub(crate) header: Option<HeaderTag>,
    /// Envoy substitution format.
    pub(crate) formatter: Option<FormatterTag>,
}

/// A tag with a fixed value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LiteralTag {
    /// Tag value.
    pub(crate) value: String,
}

/// A tag from the proxy's environment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EnvironmentTag {
    /// Variable name.
    pub(crate) name: String,
    /// Value if unset.
    pub(crate) default_value: String,
}

/// A tag from a request header.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HeaderTag {
    /// Header name.
    pub(crate) name: String,
    /// Value if absent.
    pub(crate) default_value: String,
}

/// A tag from a format string.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FormatterTag {
    /// Format string.
    pub(crate) value: String,
}

/// How traffic is counted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metrics {
    /// Providers (prometheus, stackdriver).
    pub(crate) providers: Vec<ProviderRef>,
    /// Per metric/tag changes.
    pub(crate) overrides: Vec<MetricsOverride>,
    /// TCP/stream report interval, default 5s.
    pub(crate) reporting_interval: Option<Span>,
}

/// A change to metrics.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MetricsOverride {
    /// Metric + mode.
    pub(crate) r#match: Option<MetricSelector>,
    /// Drop the metric.
    pub(crate) disabled: Option<bool>,
    /// Tag edits.
    pub(crate) tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metrics of which traffic.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MetricSelector {
    /// Standard metric enum.
    pub(crate) metric: Option<IstioMetric>,
    /// Free metric name.
    pub(crate) custom_metric: Option<String>,
    /// CLIENT/SERVER/both.
    pub(crate) mode: WorkloadMode,
}

/// The standard metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum IstioMetric {
    #[default]
    AllMetrics,
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
    GrpcRequestMessages,
    GrpcResponseMessages,
}

/// A change to a tag.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TagOverride {
    /// UPSERT or REMOVE.
    pub(crate) operation: TagOperation,
    /// CEL expression.
    pub(crate) value: String,
}

/// What becomes of the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TagOperation {
    #[default]
    Upsert,
    Remove,
}

/// How traffic is logged.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AccessLogging {
    /// Which side.
    pub(crate) r#match: Option<LogSelector>,
    /// Log providers.
    pub(crate) providers: Vec<ProviderRef>,
    /// Turn off for match.
    pub(crate) disabled: Option<bool>,
    /// CEL filter.
    pub(crate) filter: Option<LogFilter>,
}

/// Which traffic is logged so.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LogSelector {
    /// CLIENT/SERVER/both.
    pub(crate) mode: WorkloadMode,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LogFilter {
    /// CEL boolean, e.g. response.code >= 400.
    pub(crate) expression: String,
}
