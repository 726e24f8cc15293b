//! `DestinationRule`: policies for traffic to a service, and its subsets.
//!
//! All fields of the Istio API are here, in its order; `validate.rs` says which have no effect yet.

mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::duration::Span;
use super::virtual_service::PortSelector;

/// The `spec` of a DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DestinationRule {
    pub(crate) host: String,
    pub(crate) traffic_policy: Option<TrafficPolicy>,
    pub(crate) subsets: Vec<Subset>,
    pub(crate) export_to: Vec<String>,
    pub(crate) workload_selector: Option<WorkloadSelector>,
}

/// Which workloads a rule is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WorkloadSelector {
    pub(crate) match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TrafficPolicy {
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) connection_pool: Option<ConnectionPool>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) port_level_settings: Vec<PortPolicy>,
    pub(crate) tunnel: Option<Tunnel>,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) retry_budget: Option<RetryBudget>,
}

/// Overrides for one port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PortPolicy {
    pub(crate) port: Option<PortSelector>,
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) connection_pool: Option<ConnectionPool>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) tls: Option<ClientTls>,
}

/// The endpoints of a service that carry given labels.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Subset {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) traffic_policy: Option<TrafficPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LoadBalancer {
    pub(crate) simple: Option<Simple>,
    pub(crate) consistent_hash: Option<ConsistentHash>,
    pub(crate) locality_lb_setting: Option<LocalityLb>,
    pub(crate) zone_aware_lb_setting: Option<ZoneAwareLb>,
    pub(crate) warmup_duration_secs: Option<Span>,
    pub(crate) warmup: Option<Warmup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConsistentHash {
    pub(crate) http_header_name: Option<String>,
    pub(crate) http_cookie: Option<HttpCookie>,
    pub(crate) use_source_ip: Option<bool>,
    pub(crate) http_query_parameter_name: Option<String>,
    pub(crate) ring_hash: Option<RingHash>,
    pub(crate) maglev: Option<Maglev>,
    pub(crate) minimum_ring_size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpCookie {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) ttl: Option<Span>,
    pub(crate) attributes: Vec<CookieAttribute>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CookieAttribute {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RingHash {
    pub(crate) minimum_ring_size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Maglev {
    pub(crate) table_size: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LocalityLb {
    pub(crate) distribute: Vec<Distribute>,
    pub(crate) failover: Vec<Failover>,
    pub(crate) failover_priority: Vec<String>,
    pub(crate) enabled: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Distribute {
    pub(crate) from: String,
    pub(crate) to: BTreeMap<String, u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Failover {
    pub(crate) from: String,
    pub(crate) to: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ZoneAwareLb {
    pub(crate) enabled: Option<bool>,
    pub(crate) failover: Vec<Failover>,
    pub(crate) failover_priority: Vec<String>,
    pub(crate) min_cluster_size: Option<u64>,
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Warmup {
    pub(crate) duration: Option<Span>,
    pub(crate) minimum_percent: Option<f64>,
    pub(crate) aggression: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConnectionPool {
    pub(crate) tcp: Option<TcpSettings>,
    pub(crate) http: Option<HttpSettings>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpSettings {
    pub(crate) max_connections: i32,
    pub(crate) connect_timeout: Option<Span>,
    pub(crate) tcp_keepalive: Option<TcpKeepalive>,
    pub(crate) max_connection_duration: Option<Span>,
    pub(crate) idle_timeout: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TcpKeepalive {
    pub(crate) probes: u32,
    pub(crate) time: Option<Span>,
    pub(crate) interval: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpSettings {
    pub(crate) http1_max_pending_requests: i32,
    pub(crate) http2_max_requests: i32,
    pub(crate) max_requests_per_connection: i32,
    pub(crate) max_retries: i32,
    pub(crate) idle_timeout: Option<Span>,
    pub(crate) h2_upgrade_policy: Option<H2UpgradePolicy>,
    pub(crate) use_client_protocol: bool,
    pub(crate) max_concurrent_streams: i32,
    pub(crate) http2_keep_alive: Option<Http2KeepAlive>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum H2UpgradePolicy {
    Default,
    DoNotUpgrade,
    Upgrade,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Http2KeepAlive {
    pub(crate) interval: Option<Span>,
    pub(crate) timeout: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OutlierDetection {
    pub(crate) consecutive_errors: i32,
    pub(crate) split_external_local_origin_errors: bool,
    pub(crate) consecutive_local_origin_failures: Option<u32>,
    pub(crate) consecutive_gateway_errors: Option<u32>,
    #[serde(rename = "consecutive5xxErrors")]
    pub(crate) consecutive_5xx_errors: Option<u32>,
    pub(crate) interval: Option<Span>,
    pub(crate) base_ejection_time: Option<Span>,
    pub(crate) max_ejection_percent: i32,
    pub(crate) min_health_percent: i32,
    pub(crate) outlier_detection_http_error_codes: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClientTls {
    pub(crate) mode: Option<ClientTlsMode>,
    pub(crate) client_certificate: String,
    pub(crate) private_key: String,
    pub(crate) ca_certificates: String,
    pub(crate) credential_name: String,
    pub(crate) subject_alt_names: Vec<String>,
    pub(crate) sni: String,
    pub(crate) insecure_skip_verify: Option<bool>,
    pub(crate) ca_crl: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ClientTlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Tunnel {
    pub(crate) protocol: String,
    pub(crate) target_host: String,
    pub(crate) target_port: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyProtocol {
    pub(crate) version: Option<ProxyProtocolVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum ProxyProtocolVersion {
    V1,
    V2,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RetryBudget {
    pub(crate) percent: Option<f64>,
    pub(crate) min_retry_concurrency: u32,
    pub(crate) budget_interval: Option<Span>,
}
