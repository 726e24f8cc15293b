//! `MeshConfig.defaultConfig` and the annotation `proxy.istio.io/config`: what a proxy is started
//! with. Not the kind of the same name, which is in `model/proxy_config.rs`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::provider::TraceContext;
use super::seconds;
use crate::model::destination_rule::{ClientTls, TcpKeepalive};
use crate::model::duration::Span;
use crate::model::proxy_config::ProxyImage;
use crate::model::telemetry::{EnvironmentTag, HeaderTag, LiteralTag};
use crate::model::workload_group::ReadinessProbe;

/// How requests are traced, as older configurations write it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Tracing {
    /// Zipkin.
    pub(crate) zipkin: Option<Zipkin>,
    /// Lightstep.
    pub(crate) lightstep: Option<Lightstep>,
    /// Datadog.
    pub(crate) datadog: Option<Datadog>,
    /// Stackdriver.
    pub(crate) stackdriver: Option<Stackdriver>,
    /// OpenCensus.
    pub(crate) open_census_agent: Option<OpenCensusAgent>,
    /// Span tags.
    pub(crate) custom_tags: BTreeMap<String, CustomTag>,
    /// Path tag limit.
    pub(crate) max_path_tag_length: u32,
    /// Percent, default 1.0.
    pub(crate) sampling: f64,
    /// TLS to collector.
    pub(crate) tls_settings: Option<ClientTls>,
    /// Istio.* tags.
    pub(crate) enable_istio_tags: Option<bool>,
}

/// Traces to Zipkin.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Zipkin {
    /// Host:port of collector.
    pub(crate) address: String,
}

/// Traces to Lightstep.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Lightstep {
    /// Satellite address.
    pub(crate) address: String,
    /// Token.
    pub(crate) access_token: String,
}

/// Traces to Datadog.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Datadog {
    /// Agent address.
    pub(crate) address: String,
}

/// Traces to Google Cloud.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Stackdriver {
    /// Stdout.
    pub(crate) debug: bool,
    /// Limit.
    pub(crate) max_number_of_attributes: Option<i64>,
    /// Limit.
    pub(crate) max_number_of_annotations: Option<i64>,
    /// Limit.
    pub(crate) max_number_of_message_events: Option<i64>,
}

/// Traces to an OpenCensus agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OpenCensusAgent {
    /// Agent address.
    pub(crate) address: String,
    /// Header formats.
    pub(crate) context: Vec<TraceContext>,
}

/// Where the value of a tag comes from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CustomTag {
    /// Fixed value.
    pub(crate) literal: Option<LiteralTag>,
    /// Env variable.
    pub(crate) environment: Option<EnvironmentTag>,
    /// Request header.
    pub(crate) header: Option<HeaderTag>,
}

/// Unused.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Sds {
    /// Use SDS.
    pub(crate) enabled: bool,
    /// Token path.
    pub(crate) k8s_sa_jwt_path: String,
}

/// What stands in front of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Topology {
    /// Trusted hops before gateway.
    pub(crate) num_trusted_proxies: u32,
    /// XFCC handling.
    pub(crate) forward_client_cert_details: ForwardClientCertDetails,
    /// Accept PROXY protocol.
    pub(crate) proxy_protocol: Option<ProxyProtocolSettings>,
}

/// What becomes of the header `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ForwardClientCertDetails {
    #[default]
    Undefined,
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

/// That connections begin with the PROXY protocol.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyProtocolSettings {}

/// Hardware that computes with private keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PrivateKeyProvider {
    /// AVX-512 CryptoMB.
    pub(crate) cryptomb: Option<CryptoMb>,
    /// Intel QAT.
    pub(crate) qat: Option<Qat>,
}

/// CryptoMB.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CryptoMb {
    /// Batch poll delay.
    pub(crate) poll_delay: Option<Span>,
    /// Software fallback.
    pub(crate) fallback: Option<bool>,
}

/// QuickAssist.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Qat {
    /// Poll delay.
    pub(crate) poll_delay: Option<Span>,
    /// Software fallback.
    pub(crate) fallback: Option<bool>,
}

/// What a proxy is started with. What is not written has Istio's default.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyConfig {
    /// Generated config dir ./etc/istio/proxy.
    pub(crate) config_path: String,
    /// Envoy binary path.
    pub(crate) binary_path: String,
    /// Bootstrap cluster name.
    pub(crate) service_cluster: Option<String>,
    /// APP_LABEL_AND_NAMESPACE / CANONICAL_NAME_*.
    pub(crate) tracing_service_name: Option<TracingServiceName>,
    /// Old listener drain, 45s.
    pub(crate) drain_duration: Span,
    /// Istiod address, istiod.istio-system.svc:15012.
    pub(crate) discovery_address: String,
    /// Deprecated.
    pub(crate) discovery_refresh_delay: Option<Span>,
    /// Deprecated.
    pub(crate) zipkin_address: String,
    /// Statsd sink.
    pub(crate) statsd_udp_address: String,
    /// Deprecated.
    pub(crate) envoy_metrics_service_address: String,
    /// Admin port 15000.
    pub(crate) proxy_admin_port: i32,
    /// Deprecated.
    pub(crate) availability_zone: String,
    /// NONE / MUTUAL_TLS.
    pub(crate) control_plane_auth_policy: AuthenticationPolicy,
    /// Static Envoy bootstrap.
    pub(crate) custom_config_file: String,
    /// Deprecated-ish stat name limit, 189.
    pub(crate) stat_name_length: i32,
    /// Worker threads; 0 = all/CPU limit.
    pub(crate) concurrency: Option<i32>,
    /// Bootstrap template.
    pub(crate) proxy_bootstrap_template_path: String,
    /// REDIRECT / TPROXY / NONE.
    pub(crate) interception_mode: InboundInterceptionMode,
    /// Tracing backend.
    pub(crate) tracing: Option<Tracing>,
    /// Deprecated.
    pub(crate) sds: Option<Sds>,
    /// ALS address.
    pub(crate) envoy_access_log_service: Option<RemoteService>,
    /// Metrics service address.
    pub(crate) envoy_metrics_service: Option<RemoteService>,
    /// Env ISTIO_META_*/agent settings.
    pub(crate) proxy_metadata: BTreeMap<String, String>,
    /// Runtime overrides.
    pub(crate) runtime_values: BTreeMap<String, String>,
    /// Agent health port 15020.
    pub(crate) status_port: i32,
    /// Extra tags extracted.
    pub(crate) extra_stat_tags: Vec<String>,
    /// Trusted proxies.
    pub(crate) gateway_topology: Option<Topology>,
    /// Wait after SIGTERM, 5s.
    pub(crate) termination_drain_duration: Span,
    /// Mesh id.
    pub(crate) mesh_id: String,
    /// VM app readiness probe.
    pub(crate) readiness_probe: Option<ReadinessProbe>,
    /// Extra stats kept.
    pub(crate) proxy_stats_matcher: Option<ProxyStatsMatcher>,
    /// Start proxy before app container.
    pub(crate) hold_application_until_proxy_starts: Option<bool>,
    /// Extra roots for workload mTLS.
    pub(crate) ca_certificates_pem: Vec<String>,
    /// Image type default/debug/distroless.
    pub(crate) image: Option<ProxyImage>,
    /// TLS accelerator.
    pub(crate) private_key_provider: Option<PrivateKeyProvider>,
    /// Headers added by proxy.
    pub(crate) proxy_headers: Option<ProxyHeaders>,
    /// Log flush interval.
    pub(crate) file_flush_interval: Option<Span>,
    /// Log flush size.
    pub(crate) file_flush_min_size_kb: u32,
    /// Compress metrics endpoint.
    pub(crate) stats_compression: Option<bool>,
    /// Edge/custom connection limits.
    pub(crate) connection_settings: Option<ConnectionSettings>,
}

/// How the service of a trace is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TracingServiceName {
    #[default]
    AppLabelAndNamespace,
    CanonicalNameOnly,
    CanonicalNameAndNamespace,
}

/// How the control plane is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum AuthenticationPolicy {
    #[default]
    None,
    MutualTls,
    Inherit,
}

/// How traffic gets to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum InboundInterceptionMode {
    #[default]
    Redirect,
    Tproxy,
    None,
}

/// A service that proxies send to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RemoteService {
    /// Host:port.
    pub(crate) address: String,
    /// TLS.
    pub(crate) tls_settings: Option<ClientTls>,
    /// Keepalive.
    pub(crate) tcp_keepalive: Option<TcpKeepalive>,
}

/// Which of Envoy's stats are kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyStatsMatcher {
    /// Prefixes.
    pub(crate) inclusion_prefixes: Vec<String>,
    /// Suffixes.
    pub(crate) inclusion_suffixes: Vec<String>,
    /// Regexes.
    pub(crate) inclusion_regexps: Vec<String>,
}

/// Headers that a proxy adds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyHeaders {
    /// XFCC mode.
    pub(crate) forwarded_client_cert: ForwardClientCertDetails,
    /// XFCC fields.
    pub(crate) set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
    /// Request id switch.
    pub(crate) request_id: Option<RequestIdHeader>,
    /// Server header.
    pub(crate) server: Option<ServerHeader>,
    /// Attempt header.
    pub(crate) attempt_count: Option<AttemptCountHeader>,
    /// Debug headers.
    pub(crate) envoy_debug_headers: Option<EnvoyDebugHeaders>,
    /// X-envoy-peer-metadata(-id).
    pub(crate) metadata_exchange_headers: Option<MetadataExchangeHeaders>,
    /// Keep HTTP/1 header case.
    pub(crate) preserve_http1_header_case: Option<bool>,
    /// XFH.
    pub(crate) x_forwarded_host: Option<XForwardedHost>,
    /// XFP.
    pub(crate) x_forwarded_port: Option<XForwardedPort>,
}

/// What is written into `x-forwarded-client-cert`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SetCurrentClientCertDetails {
    /// XFCC Subject.
    pub(crate) subject: Option<bool>,
    /// XFCC Cert.
    pub(crate) cert: Option<bool>,
    /// XFCC Chain.
    pub(crate) chain: Option<bool>,
    /// XFCC DNS.
    pub(crate) dns: Option<bool>,
    /// XFCC URI.
    pub(crate) uri: Option<bool>,
}

/// The header `x-request-id`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RequestIdHeader {
    /// No x-request-id.
    pub(crate) disabled: Option<bool>,
}

/// The header `server`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServerHeader {
    /// Drop server header.
    pub(crate) disabled: Option<bool>,
    /// Server name.
    pub(crate) value: String,
}

/// The header `x-envoy-attempt-count`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AttemptCountHeader {
    /// No x-envoy-attempt-count.
    pub(crate) disabled: Option<bool>,
}

/// Headers such as `x-envoy-upstream-service-time`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EnvoyDebugHeaders {
    /// Suppress x-envoy-* headers.
    pub(crate) disabled: Option<bool>,
}

/// The headers `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MetadataExchangeHeaders {
    /// IN_MESH: not to external services.
    pub(crate) mode: MetadataExchangeMode,
}

/// Who is sent these headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum MetadataExchangeMode {
    #[default]
    Undefined,
    InMesh,
}

/// The header `x-forwarded-host`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct XForwardedHost {
    /// Append x-forwarded-host.
    pub(crate) enabled: Option<bool>,
}

/// The header `x-forwarded-port`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct XForwardedPort {
    /// Append x-forwarded-port.
    pub(crate) enabled: Option<bool>,
}

/// Limits and timeouts of connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConnectionSettings {
    /// Preset (EDGE hardening).
    pub(crate) profile: Profile,
    /// Downstream buffer.
    pub(crate) listener_per_connection_buffer_limit_bytes: Option<i32>,
    /// Upstream buffer.
    pub(crate) cluster_per_connection_buffer_limit_bytes: Option<i32>,
    /// Downstream idle.
    pub(crate) http_idle_timeout: Option<Span>,
    /// Max connection age.
    pub(crate) http_max_connection_duration: Option<Span>,
    /// Drain timeout.
    pub(crate) http_drain_timeout: Option<Span>,
    /// Whole request receive timeout.
    pub(crate) http_request_timeout: Option<Span>,
    /// Headers receive timeout.
    pub(crate) http_request_headers_timeout: Option<Span>,
    /// Stream idle.
    pub(crate) http_stream_idle_timeout: Option<Span>,
    /// Max stream age.
    pub(crate) http_max_stream_duration: Option<Span>,
    /// H2 streams.
    pub(crate) http_max_concurrent_streams: Option<i32>,
    /// H2 stream window.
    pub(crate) http2_initial_stream_window_size: Option<i32>,
    /// H2 connection window.
    pub(crate) http2_initial_connection_window_size: Option<i32>,
    /// Allow/reject/drop.
    pub(crate) http_headers_with_underscores_action: HeadersWithUnderscoresAction,
    /// Merge slashes.
    pub(crate) http_merge_slashes: Option<bool>,
    /// %2F handling.
    pub(crate) http_path_with_escaped_slashes_action: PathWithEscapedSlashesAction,
    /// Connections per listener.
    pub(crate) listener_connection_limit: Option<i32>,
    /// Connections per proxy.
    pub(crate) global_downstream_connection_limit: Option<i32>,
}

/// A set of defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Profile {
    #[default]
    Sidecar,
    Edge,
}

/// What becomes of headers with underscores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum HeadersWithUnderscoresAction {
    #[default]
    #[serde(rename = "HEADERS_WITH_UNDERSCORES_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "HEADERS_WITH_UNDERSCORES_ALLOW")]
    Allow,
    #[serde(rename = "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST")]
    RejectRequest,
    #[serde(rename = "HEADERS_WITH_UNDERSCORES_DROP_HEADER")]
    DropHeader,
}

/// What becomes of paths with escaped slashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum PathWithEscapedSlashesAction {
    #[default]
    PathWithEscapedSlashesUnspecified,
    KeepUnchanged,
    RejectRequest,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

impl Default for ProxyConfig {
    /// Istio's defaults (`DefaultProxyConfig`).
    fn default() -> ProxyConfig {
        ProxyConfig {
            config_path: "./etc/istio/proxy".to_owned(),
            binary_path: "/usr/local/bin/envoy".to_owned(),
            service_cluster: Some("istio-proxy".to_owned()),
            tracing_service_name: None,
            drain_duration: seconds(45),
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            discovery_refresh_delay: None,
            zipkin_address: String::new(),
            statsd_udp_address: String::new(),
            envoy_metrics_service_address: String::new(),
            proxy_admin_port: 15000,
            availability_zone: String::new(),
            control_plane_auth_policy: AuthenticationPolicy::MutualTls,
            custom_config_file: String::new(),
            stat_name_length: 189,
            concurrency: None,
            proxy_bootstrap_template_path: String::new(),
            interception_mode: InboundInterceptionMode::default(),
            tracing: None,
            sds: None,
            envoy_access_log_service: None,
            envoy_metrics_service: None,
            proxy_metadata: BTreeMap::new(),
            runtime_values: BTreeMap::new(),
            status_port: 15020,
            extra_stat_tags: Vec::new(),
            gateway_topology: None,
            termination_drain_duration: seconds(5),
            mesh_id: String::new(),
            readiness_probe: None,
            proxy_stats_matcher: None,
            hold_application_until_proxy_starts: None,
            ca_certificates_pem: Vec::new(),
            image: None,
            private_key_provider: None,
            proxy_headers: None,
            file_flush_interval: None,
            file_flush_min_size_kb: 0,
            stats_compression: None,
            connection_settings: None,
        }
    }
}
