//! `DestinationRule`: policies for traffic to a service, and its subsets.
//!
//! All fields of the Istio API are here, in its order; `validate.rs` and `balancer.rs` have the rules.

pub(crate) mod balancer;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::duration::Span;
use super::selector::WorkloadSelector;
use super::virtual_service::PortSelector;

/// The `spec` of a DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DestinationRule {
    /// Service the policy applies to.
    pub(crate) host: String,
    /// Policy for all ports/subsets.
    pub(crate) traffic_policy: Option<TrafficPolicy>,
    /// Named label subsets.
    pub(crate) subsets: Vec<Subset>,
    /// Namespaces that may see it.
    pub(crate) export_to: Vec<String>,
    /// Client workloads this rule applies to.
    pub(crate) workload_selector: Option<WorkloadSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TrafficPolicy {
    /// LB algorithm.
    pub(crate) load_balancer: Option<LoadBalancer>,
    /// Pool limits.
    pub(crate) connection_pool: Option<ConnectionPool>,
    /// Passive health checks.
    pub(crate) outlier_detection: Option<OutlierDetection>,
    /// Client TLS.
    pub(crate) tls: Option<ClientTls>,
    /// Per port override.
    pub(crate) port_level_settings: Vec<PortPolicy>,
    /// CONNECT/POST tunnel through a proxy.
    pub(crate) tunnel: Option<Tunnel>,
    /// Send PROXY protocol upstream.
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    /// Retry budget instead of max retries.
    pub(crate) retry_budget: Option<RetryBudget>,
}

/// Overrides for one port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PortPolicy {
    /// Service port number.
    pub(crate) port: Option<PortSelector>,
    /// Overrides what is set for all ports.
    pub(crate) load_balancer: Option<LoadBalancer>,
    /// Overrides what is set for all ports.
    pub(crate) connection_pool: Option<ConnectionPool>,
    /// Overrides what is set for all ports.
    pub(crate) outlier_detection: Option<OutlierDetection>,
    /// Overrides what is set for all ports.
    pub(crate) tls: Option<ClientTls>,
}

/// The endpoints of a service that carry given labels.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Subset {
    /// Subset name.
    pub(crate) name: String,
    /// Pod labels selecting endpoints.
    pub(crate) labels: BTreeMap<String, String>,
    /// Override for the subset.
    pub(crate) traffic_policy: Option<TrafficPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LoadBalancer {
    /// UNSPECIFIED/LEAST_REQUEST(default)/RANDOM/ROUND_ROBIN/PASSTHROUGH.
    pub(crate) simple: Option<Simple>,
    /// Hash based affinity.
    pub(crate) consistent_hash: Option<ConsistentHash>,
    /// Locality distribute/failover override.
    pub(crate) locality_lb_setting: Option<LocalityLb>,
    /// Zone-aware LB override (2026).
    pub(crate) zone_aware_lb_setting: Option<ZoneAwareLb>,
    /// Deprecated: slow start window.
    pub(crate) warmup_duration_secs: Option<Span>,
    /// Slow start parameters.
    pub(crate) warmup: Option<Warmup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Simple {
    Unspecified,
    /// Deprecated spelling of least request.
    LeastConn,
    Random,
    Passthrough,
    RoundRobin,
    LeastRequest,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConsistentHash {
    /// Hash on header.
    pub(crate) http_header_name: Option<String>,
    /// Hash on cookie.
    pub(crate) http_cookie: Option<HttpCookie>,
    /// Hash on client IP.
    pub(crate) use_source_ip: Option<bool>,
    /// Hash on query parameter.
    pub(crate) http_query_parameter_name: Option<String>,
    /// Ring-hash algorithm.
    pub(crate) ring_hash: Option<RingHash>,
    /// Maglev algorithm.
    pub(crate) maglev: Option<Maglev>,
    /// Deprecated: ring size.
    pub(crate) minimum_ring_size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpCookie {
    /// Cookie name.
    pub(crate) name: String,
    /// Cookie path.
    pub(crate) path: String,
    /// Cookie lifetime; set => generated.
    pub(crate) ttl: Option<Span>,
    /// Extra attributes of generated cookie.
    pub(crate) attributes: Vec<CookieAttribute>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CookieAttribute {
    /// Cookie attribute name.
    pub(crate) name: String,
    /// Cookie attribute value.
    pub(crate) value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RingHash {
    /// Min virtual nodes, default 1024.
    pub(crate) minimum_ring_size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Maglev {
    /// Maglev table size (prime) default 65537.
    pub(crate) table_size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LocalityLb {
    /// Explicit weights.
    pub(crate) distribute: Vec<Distribute>,
    /// Region failover (needs outlierDetection).
    pub(crate) failover: Vec<Failover>,
    /// Ordered label list (label or label=value).
    pub(crate) failover_priority: Vec<String>,
    /// Override of mesh default.
    pub(crate) enabled: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Distribute {
    /// Client locality pattern region/zone/sub.
    pub(crate) from: String,
    /// Map locality.
    pub(crate) to: BTreeMap<String, u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Failover {
    /// Originating region.
    pub(crate) from: String,
    /// Failover region.
    pub(crate) to: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ZoneAwareLb {
    /// Turn zone-aware routing on.
    pub(crate) enabled: Option<bool>,
    /// Region failover list.
    pub(crate) failover: Vec<Failover>,
    /// Label based priority.
    pub(crate) failover_priority: Vec<String>,
    /// Min endpoints for zone routing.
    pub(crate) min_cluster_size: Option<u64>,
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Warmup {
    /// Ramp-up window.
    pub(crate) duration: Option<Span>,
    /// Starting weight %, default 10.
    pub(crate) minimum_percent: Option<f64>,
    /// Curve, default 1.0 linear.
    pub(crate) aggression: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConnectionPool {
    /// TCP settings.
    pub(crate) tcp: Option<TcpSettings>,
    /// HTTP settings.
    pub(crate) http: Option<HttpSettings>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpSettings {
    /// Max connections to the host.
    pub(crate) max_connections: i32,
    /// TCP connect timeout, default 10s.
    pub(crate) connect_timeout: Option<Span>,
    /// SO_KEEPALIVE.
    pub(crate) tcp_keepalive: Option<TcpKeepalive>,
    /// Max age of a connection.
    pub(crate) max_connection_duration: Option<Span>,
    /// Idle timeout TCP (default 1h).
    pub(crate) idle_timeout: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpKeepalive {
    /// Probes before dead.
    pub(crate) probes: u32,
    /// Idle before first probe.
    pub(crate) time: Option<Span>,
    /// Between probes.
    pub(crate) interval: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpSettings {
    /// Queue limit.
    pub(crate) http1_max_pending_requests: i32,
    /// Active request limit.
    pub(crate) http2_max_requests: i32,
    /// Recycle connection after N requests.
    pub(crate) max_requests_per_connection: i32,
    /// Concurrent retries limit.
    pub(crate) max_retries: i32,
    /// Idle timeout upstream.
    pub(crate) idle_timeout: Option<Span>,
    /// Upgrade HTTP/1 ports to h2.
    pub(crate) h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Use downstream protocol upstream.
    pub(crate) use_client_protocol: bool,
    /// H2 streams per connection.
    pub(crate) max_concurrent_streams: i32,
    /// H2 PING keepalive.
    pub(crate) http2_keep_alive: Option<Http2KeepAlive>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum H2UpgradePolicy {
    Default,
    DoNotUpgrade,
    Upgrade,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Http2KeepAlive {
    /// PING period.
    pub(crate) interval: Option<Span>,
    /// PING ack deadline.
    pub(crate) timeout: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OutlierDetection {
    /// Deprecated.
    pub(crate) consecutive_errors: i32,
    /// Separate local-origin errors.
    pub(crate) split_external_local_origin_errors: bool,
    /// Local-origin failures before ejection.
    pub(crate) consecutive_local_origin_failures: Option<u32>,
    /// 502/503/504 before ejection.
    pub(crate) consecutive_gateway_errors: Option<u32>,
    /// 5xx before ejection, default 5.
    #[serde(rename = "consecutive5xxErrors")]
    pub(crate) consecutive_5xx_errors: Option<u32>,
    /// Sweep interval, default 10s.
    pub(crate) interval: Option<Span>,
    /// Min ejection time, default 30s.
    pub(crate) base_ejection_time: Option<Span>,
    /// Max % ejected, default 10.
    pub(crate) max_ejection_percent: i32,
    /// Disable ejection under this %, default 0.
    pub(crate) min_health_percent: i32,
    /// Codes counted as failures (2026).
    pub(crate) outlier_detection_http_error_codes: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClientTls {
    /// DISABLE/SIMPLE/MUTUAL/ISTIO_MUTUAL.
    pub(crate) mode: Option<ClientTlsMode>,
    /// Path of client cert.
    pub(crate) client_certificate: String,
    /// Path of client key.
    pub(crate) private_key: String,
    /// Path of CA; `system` default.
    pub(crate) ca_certificates: String,
    /// Kubernetes secret name (gateway, or with selector).
    pub(crate) credential_name: String,
    /// Accepted server SANs.
    pub(crate) subject_alt_names: Vec<String>,
    /// SNI to send; default auto.
    pub(crate) sni: String,
    /// Skip server verification.
    pub(crate) insecure_skip_verify: Option<bool>,
    /// Path of CRL.
    pub(crate) ca_crl: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ClientTlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Tunnel {
    /// CONNECT (default) or POST.
    pub(crate) protocol: String,
    /// Host asked of the tunnel proxy.
    pub(crate) target_host: String,
    /// Port asked of the tunnel proxy.
    pub(crate) target_port: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyProtocol {
    /// V1 (default) or V2.
    pub(crate) version: Option<ProxyProtocolVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum ProxyProtocolVersion {
    V1,
    V2,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RetryBudget {
    /// Percent of active requests that may be retries (default 20).
    pub(crate) percent: Option<f64>,
    /// Floor of concurrent retries, default 3.
    pub(crate) min_retry_concurrency: u32,
    /// Window used to compute the budget.
    pub(crate) budget_interval: Option<Span>,
}
