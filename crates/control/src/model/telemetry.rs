//! `Telemetry`: access logs, metrics and traces of workloads.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Check;
use super::diagnostic::Finding;
use super::duration::Span;
use super::selector::{PolicyTargetReference, WorkloadSelector};

/// The `spec` of a Telemetry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TracingSelector {
    /// CLIENT, SERVER, CLIENT_AND_SERVER.
    pub(crate) mode: WorkloadMode,
}

/// Which side of a connection is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum WorkloadMode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

/// A provider of the mesh configuration's `extensionProviders`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProviderRef {
    /// Name in MeshConfig.extensionProviders.
    pub(crate) name: String,
}

/// Where the value of a tag comes from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LiteralTag {
    /// Tag value.
    pub(crate) value: String,
}

/// A tag from the proxy's environment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EnvironmentTag {
    /// Variable name.
    pub(crate) name: String,
    /// Value if unset.
    pub(crate) default_value: String,
}

/// A tag from a request header.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HeaderTag {
    /// Header name.
    pub(crate) name: String,
    /// Value if absent.
    pub(crate) default_value: String,
}

/// A tag from a format string.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FormatterTag {
    /// Format string.
    pub(crate) value: String,
}

/// How traffic is counted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TagOverride {
    /// UPSERT or REMOVE.
    pub(crate) operation: TagOperation,
    /// CEL expression.
    pub(crate) value: String,
}

/// What becomes of the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TagOperation {
    #[default]
    Upsert,
    Remove,
}

/// How traffic is logged.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LogSelector {
    /// CLIENT/SERVER/both.
    pub(crate) mode: WorkloadMode,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LogFilter {
    /// CEL boolean, e.g. response.code >= 400.
    pub(crate) expression: String,
}

impl Telemetry {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.target(self.selector.as_ref(), self.target_ref.as_ref(), &self.target_refs);
        if self.tracing.len() > 1 {
            check.warn_at(
                "tracing",
                "several",
                "Istio promises nothing of more than one; the later ones say over the earlier ones",
            );
        }
        check.each("tracing", &self.tracing, tracing);
        check.each("metrics", &self.metrics, metrics);
        check.each("accessLogging", &self.access_logging, |check, logging| {
            providers(check, &logging.providers);
            if let Some(filter) = &logging.filter
                && filter.expression.is_empty()
            {
                check.at("filter", |check| check.invalid_at("expression", "must not be empty"));
            }
        });
        check.into_findings()
    }
}

fn providers(check: &mut Check, providers: &[ProviderRef]) {
    check.each("providers", providers, |check, provider| {
        if provider.name.is_empty() {
            check.invalid_at("name", "must not be empty");
        }
    });
}

fn tracing(check: &mut Check, tracing: &Tracing) {
    providers(check, &tracing.providers);
    if tracing.providers.len() > 1 {
        check.warn_at("providers", "no-effect", "only the first one counts");
    }
    if let Some(percentage) = tracing.random_sampling_percentage
        && !(0.0..=100.0).contains(&percentage)
    {
        check.invalid_at("randomSamplingPercentage", format!("{percentage} is not between 0 and 100"));
    }
    check.at("customTags", |check| {
        for (name, tag) in &tracing.custom_tags {
            check.key(name, |check| custom_tag(check, name, tag));
        }
    });
}

fn custom_tag(check: &mut Check, name: &str, tag: &CustomTag) {
    if name.is_empty() {
        check.invalid("a tag must have a name");
    }
    check.exactly_one(&[
        ("literal", tag.literal.is_some()),
        ("environment", tag.environment.is_some()),
        ("header", tag.header.is_some()),
        ("formatter", tag.formatter.is_some()),
    ]);
    let texts = [
        ("literal", "value", tag.literal.as_ref().map(|tag| &tag.value)),
        ("environment", "name", tag.environment.as_ref().map(|tag| &tag.name)),
        ("header", "name", tag.header.as_ref().map(|tag| &tag.name)),
        ("formatter", "value", tag.formatter.as_ref().map(|tag| &tag.value)),
    ];
    for (kind, field, text) in texts {
        if text.is_some_and(String::is_empty) {
            check.at(kind, |check| check.invalid_at(field, "must not be empty"));
        }
    }
}

fn metrics(check: &mut Check, metrics: &Metrics) {
    providers(check, &metrics.providers);
    check.duration("reportingInterval", metrics.reporting_interval);
    check.each("overrides", &metrics.overrides, |check, change| {
        if let Some(selector) = &change.r#match {
            check.at("match", |check| {
                check.at_most_one(&[
                    ("metric", selector.metric.is_some()),
                    ("customMetric", selector.custom_metric.is_some()),
                ]);
                if selector.custom_metric.as_ref().is_some_and(String::is_empty) {
                    check.invalid_at("customMetric", "must not be empty");
                }
            });
        }
        check.at("tagOverrides", |check| {
            for (name, tag) in &change.tag_overrides {
                check.key(name, |check| {
                    if name.is_empty() {
                        check.warn("no-effect", "a tag must have a name");
                    }
                    match tag.operation {
                        TagOperation::Upsert if tag.value.is_empty() => {
                            check.invalid_at("value", "is needed unless the operation is REMOVE");
                        }
                        TagOperation::Remove if !tag.value.is_empty() => {
                            check.invalid_at("value", "a tag that is removed has no value");
                        }
                        TagOperation::Upsert | TagOperation::Remove => {}
                    }
                });
            }
        });
    });
}
