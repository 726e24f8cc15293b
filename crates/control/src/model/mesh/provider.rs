//! `MeshConfig.extensionProviders`: who is sent logs, traces and metrics, and who authorizes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::MeshConfig;
use crate::model::duration::Span;

/// The names of the providers that are there without being configured.
pub(crate) const PROMETHEUS: &str = "prometheus";
const STACKDRIVER: &str = "stackdriver";
pub(crate) const ENVOY: &str = "envoy";

/// A provider of telemetry, authorization or secrets, by name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ExtensionProvider {
    /// Unique provider name.
    pub(crate) name: String,
    /// HTTP external authorizer.
    pub(crate) envoy_ext_authz_http: Option<HttpAuthz>,
    /// GRPC external authorizer.
    pub(crate) envoy_ext_authz_grpc: Option<GrpcAuthz>,
    /// Zipkin tracer.
    pub(crate) zipkin: Option<Zipkin>,
    /// Deprecated.
    pub(crate) lightstep: Option<Lightstep>,
    /// Datadog tracer.
    pub(crate) datadog: Option<Datadog>,
    /// Cloud Trace/metrics/logging.
    pub(crate) stackdriver: Option<Stackdriver>,
    /// Deprecated.
    pub(crate) opencensus: Option<OpenCensus>,
    /// SkyWalking tracer.
    pub(crate) skywalking: Option<SkyWalking>,
    /// OTLP tracer.
    pub(crate) opentelemetry: Option<OpenTelemetry>,
    /// Prometheus metrics.
    pub(crate) prometheus: Option<Prometheus>,
    /// File access log.
    pub(crate) envoy_file_access_log: Option<FileAccessLog>,
    /// GRPC HTTP access log.
    pub(crate) envoy_http_als: Option<HttpAls>,
    /// GRPC TCP access log.
    pub(crate) envoy_tcp_als: Option<TcpAls>,
    /// OTLP access log.
    pub(crate) envoy_otel_als: Option<OtelAls>,
    /// External SDS server.
    pub(crate) sds: Option<Sds>,
}

/// An authorizer spoken to by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpAuthz {
    /// Service of the authorizer, `host` or `namespace/host`.
    pub(crate) service: String,
    /// Service port.
    pub(crate) port: u32,
    /// Call timeout, 600s.
    pub(crate) timeout: Option<Span>,
    /// Prefix added to path.
    pub(crate) path_prefix: String,
    /// Allow when authorizer fails.
    pub(crate) fail_open: bool,
    /// Recompute route after allow.
    pub(crate) clear_route_cache: bool,
    /// Status when failing, 403.
    pub(crate) status_on_error: String,
    /// Deprecated: exact headers.
    pub(crate) include_headers_in_check: Vec<String>,
    /// Headers sent (exact/prefix/suffix).
    pub(crate) include_request_headers_in_check: Vec<String>,
    /// Fixed headers added.
    pub(crate) include_additional_headers_in_check: BTreeMap<String, String>,
    /// Body options.
    pub(crate) include_request_body_in_check: Option<AuthzRequestBody>,
    /// Authorizer headers copied upstream.
    pub(crate) headers_to_upstream_on_allow: Vec<String>,
    /// Headers returned on deny.
    pub(crate) headers_to_downstream_on_deny: Vec<String>,
    /// Headers returned on allow.
    pub(crate) headers_to_downstream_on_allow: Vec<String>,
}

/// How much of a body an authorizer is shown.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AuthzRequestBody {
    /// Buffer limit, 413 above.
    pub(crate) max_request_bytes: u32,
    /// Send truncated body.
    pub(crate) allow_partial_message: bool,
    /// Raw_body instead of body.
    pub(crate) pack_as_bytes: bool,
}

/// An authorizer spoken to by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcAuthz {
    /// Service, `host` or `namespace/host`.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Call timeout, 600s.
    pub(crate) timeout: Option<Span>,
    /// Fail open.
    pub(crate) fail_open: bool,
    /// Recompute route.
    pub(crate) clear_route_cache: bool,
    /// Status when failing.
    pub(crate) status_on_error: String,
    /// Body options.
    pub(crate) include_request_body_in_check: Option<AuthzRequestBody>,
}

/// Traces to Zipkin.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Zipkin {
    /// Collector service.
    pub(crate) service: String,
    /// Collector port.
    pub(crate) port: u32,
    /// Max path tag length, 256.
    pub(crate) max_tag_length: u32,
    /// 64-bit instead of 128-bit.
    pub(crate) enable_64bit_trace_id: bool,
    /// Collector path /api/v2/spans.
    pub(crate) path: String,
    /// USE_B3 / USE_B3_WITH_W3C_PROPAGATION.
    pub(crate) trace_context_option: TraceContextOption,
    /// Collector HTTP timeout.
    pub(crate) timeout: Option<Span>,
    /// Collector request headers.
    pub(crate) headers: Vec<HttpHeader>,
}

/// Which trace headers are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TraceContextOption {
    #[default]
    UseB3,
    UseB3WithW3cPropagation,
}

/// A header with a literal value or one from the environment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpHeader {
    /// Header name.
    pub(crate) name: String,
    /// Literal value.
    pub(crate) value: Option<String>,
    /// Environment variable holding value.
    pub(crate) env_name: Option<String>,
}

/// Traces to Lightstep.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Lightstep {
    /// Satellite service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Token.
    pub(crate) access_token: String,
    /// Path tag length.
    pub(crate) max_tag_length: u32,
}

/// Traces to Datadog.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Datadog {
    /// Agent service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Path tag length.
    pub(crate) max_tag_length: u32,
}

/// Traces, logs and metrics to Google Cloud.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Stackdriver {
    /// Deprecated: stdout exporter.
    pub(crate) debug: bool,
    /// Deprecated: span attribute limit.
    pub(crate) max_number_of_attributes: Option<i64>,
    /// Deprecated: annotation limit.
    pub(crate) max_number_of_annotations: Option<i64>,
    /// Deprecated: event limit.
    pub(crate) max_number_of_message_events: Option<i64>,
    /// Path tag length.
    pub(crate) max_tag_length: u32,
    /// Logging options.
    pub(crate) logging: Option<StackdriverLogging>,
}

/// Logs to Google Cloud.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StackdriverLogging {
    /// Log labels as CEL.
    pub(crate) labels: BTreeMap<String, String>,
}

/// Traces to an OpenCensus agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OpenCensus {
    /// Agent service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Trace header formats.
    pub(crate) context: Vec<TraceContext>,
    /// Path tag length.
    pub(crate) max_tag_length: u32,
}

/// A form of trace headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(clippy::enum_variant_names, reason = "Istio's names")]
pub(crate) enum TraceContext {
    #[default]
    Unspecified,
    W3cTraceContext,
    GrpcBin,
    CloudTraceContext,
    B3,
}

/// Traces to SkyWalking.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SkyWalking {
    /// OAP service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Backend token.
    pub(crate) access_token: String,
}

/// Traces by OTLP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OpenTelemetry {
    /// OTLP collector.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Path tag length.
    pub(crate) max_tag_length: u32,
    /// Use OTLP/HTTP.
    pub(crate) http: Option<HttpService>,
    /// GRPC options.
    pub(crate) grpc: Option<GrpcService>,
    /// Resource detectors.
    pub(crate) resource_detectors: Option<ResourceDetectors>,
    /// Service.* attributes from OTel semantic conventions.
    pub(crate) service_attribute_enrichment: ServiceAttributeEnrichment,
    /// Dynatrace adaptive sampler.
    pub(crate) dynatrace_sampler: Option<DynatraceSampler>,
}

/// How a provider is spoken to by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpService {
    /// URL path.
    pub(crate) path: String,
    /// Request timeout.
    pub(crate) timeout: Option<Span>,
    /// Request headers.
    pub(crate) headers: Vec<HttpHeader>,
}

/// How a provider is spoken to by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GrpcService {
    /// RPC timeout.
    pub(crate) timeout: Option<Span>,
    /// GRPC metadata.
    pub(crate) initial_metadata: Vec<HttpHeader>,
}

/// What finds out the attributes of the traced resource.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ResourceDetectors {
    /// OTEL_RESOURCE_ATTRIBUTES detector.
    pub(crate) environment: Option<EnvironmentResourceDetector>,
    /// Dynatrace enrichment files.
    pub(crate) dynatrace: Option<DynatraceResourceDetector>,
}

/// Attributes from `OTEL_RESOURCE_ATTRIBUTES`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EnvironmentResourceDetector {}

/// Attributes from Dynatrace's files.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DynatraceResourceDetector {}

/// Where the attributes of the service come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ServiceAttributeEnrichment {
    #[default]
    IstioCanonical,
    OtelSemanticConventions,
}

/// Dynatrace's sampling.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DynatraceSampler {
    /// Dynatrace tenant.
    pub(crate) tenant: String,
    /// Dynatrace cluster id.
    pub(crate) cluster_id: i32,
    /// Sampling budget.
    pub(crate) root_spans_per_minute: u32,
    /// Config API.
    pub(crate) http_service: Option<DynatraceApi>,
}

/// Where Dynatrace's sampler is configured from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DynatraceApi {
    /// API service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Path/timeout/headers.
    pub(crate) http: Option<HttpService>,
}

/// Metrics for Prometheus to collect.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Prometheus {}

/// Access logs into a file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FileAccessLog {
    /// File path.
    pub(crate) path: String,
    /// Text or labels.
    pub(crate) log_format: Option<FileLogFormat>,
    /// Empty values dropped instead of "-".
    pub(crate) omit_empty_values: bool,
}

/// The form of a line.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FileLogFormat {
    /// Text format string.
    pub(crate) text: Option<String>,
    /// JSON Struct format.
    pub(crate) labels: Option<serde_json::Map<String, Value>>,
}

/// Logs of requests by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpAls {
    /// ALS service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Log name, http_envoy_accesslog.
    pub(crate) log_name: String,
    /// Filter-state keys logged.
    pub(crate) filter_state_objects_to_log: Vec<String>,
    /// Extra request headers.
    pub(crate) additional_request_headers_to_log: Vec<String>,
    /// Extra response headers.
    pub(crate) additional_response_headers_to_log: Vec<String>,
    /// Extra trailers.
    pub(crate) additional_response_trailers_to_log: Vec<String>,
}

/// Logs of connections by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpAls {
    /// ALS service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Log name, tcp_envoy_accesslog.
    pub(crate) log_name: String,
    /// Filter-state keys logged.
    pub(crate) filter_state_objects_to_log: Vec<String>,
}

/// Logs by OTLP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OtelAls {
    /// OTLP service.
    pub(crate) service: String,
    /// Port.
    pub(crate) port: u32,
    /// Otel_envoy_accesslog.
    pub(crate) log_name: String,
    /// Body and attributes.
    pub(crate) log_format: Option<OtelLogFormat>,
}

/// The form of a log record.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OtelLogFormat {
    /// Body format string.
    pub(crate) text: String,
    /// Attribute Struct.
    pub(crate) labels: Option<serde_json::Map<String, Value>>,
}

/// A server of secrets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Sds {
    /// Provider name in credentialName sds://.
    pub(crate) name: String,
    /// SDS server host.
    pub(crate) service: String,
    /// SDS port.
    pub(crate) port: u32,
}

impl MeshConfig {
    /// The provider that telemetry means by a name, in which case does not matter: one of those that
    /// the mesh configures, or of the three that Istio has anyway.
    pub(crate) fn provider(&self, name: &str) -> Option<Cow<'_, ExtensionProvider>> {
        let own = |name: &str| self.extension_providers.iter().find(|provider| provider.name == name);
        let known =
            [PROMETHEUS, STACKDRIVER, ENVOY].into_iter().find(|known| known.eq_ignore_ascii_case(name));
        let Some(known) = known else {
            let mut all = self.extension_providers.iter();
            return all.find(|provider| provider.name.eq_ignore_ascii_case(name)).map(Cow::Borrowed);
        };
        if let Some(own) = own(known) {
            return Some(Cow::Borrowed(own));
        }
        let mut provider = ExtensionProvider { name: known.to_owned(), ..ExtensionProvider::default() };
        match known {
            PROMETHEUS => provider.prometheus = Some(Prometheus {}),
            STACKDRIVER => provider.stackdriver = Some(Stackdriver::default()),
            _ => {
                let path = "/dev/stdout".to_owned();
                provider.envoy_file_access_log = Some(FileAccessLog { path, ..FileAccessLog::default() });
            }
        }
        Some(Cow::Owned(provider))
    }
}

/// What telemetry may use a provider for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Tracing,
    Metrics,
    Logs,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Use::Tracing => "tracing",
            Use::Metrics => "metrics",
            Use::Logs => "access logs",
        })
    }
}

impl ExtensionProvider {
    /// Whether it can be used so.
    pub(crate) fn is_for(&self, wanted: Use) -> bool {
        match wanted {
            Use::Tracing => {
                self.zipkin.is_some()
                    || self.opentelemetry.is_some()
                    || self.datadog.is_some()
                    || self.skywalking.is_some()
            }
            Use::Metrics => self.prometheus.is_some(),
            Use::Logs => {
                self.envoy_file_access_log.is_some()
                    || self.envoy_http_als.is_some()
                    || self.envoy_tcp_als.is_some()
                    || self.envoy_otel_als.is_some()
            }
        }
    }

    /// The service, with a port, that telemetry is sent to, if it is to one.
    pub(crate) fn service(&self) -> Option<(&str, u32)> {
        let tracers = [
            self.zipkin.as_ref().map(|it| (&it.service, it.port)),
            self.opentelemetry.as_ref().map(|it| (&it.service, it.port)),
            self.datadog.as_ref().map(|it| (&it.service, it.port)),
            self.skywalking.as_ref().map(|it| (&it.service, it.port)),
            self.envoy_http_als.as_ref().map(|it| (&it.service, it.port)),
            self.envoy_tcp_als.as_ref().map(|it| (&it.service, it.port)),
            self.envoy_otel_als.as_ref().map(|it| (&it.service, it.port)),
        ];
        tracers.into_iter().flatten().next().map(|(service, port)| (service.as_str(), port))
    }
}
