//! Clusters: who can answer a request, and how to reach them.
//!
//! `Cluster` is the lowered, immutable configuration, shared by all workers; `HostSet` is the
//! current set of endpoints, published apart from it so that endpoint changes touch nothing
//! else. What a worker keeps of a cluster (balancer state, connection pools, stats) is in
//! [`worker_cluster`]. Reading order: `endpoint`, `config`, `worker_cluster`, `lb`, `pool`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leno_base::Name;

pub(crate) use crate::config::metadata::Metadata;
use crate::config::source::ResourceKey;
use crate::http::config::Http1Settings;
use crate::http::headers::HeaderMap;
use crate::http::route::{Mirror, RetryPolicy};
use crate::listener::network::metadata_exchange::MetadataExchange;
use crate::proxy_protocol::UpstreamHeader;
use crate::telemetry::stream_info::DynamicMetadata;
use crate::tls::{Transport, UpstreamTls};

pub(crate) mod aggregate;
pub(crate) mod budget;
pub(crate) mod config;
pub(crate) mod discovery;
pub(crate) mod dns_cache;
pub(crate) mod extras;
pub(crate) mod health;
pub(crate) mod lb;
pub(crate) mod membership;
pub(crate) mod on_demand;
pub(crate) mod outlier;
pub(crate) mod pool;
pub(crate) mod stats;
pub(crate) mod worker_cluster;

pub(crate) use lb::settings::Balancing;

/// A cluster as configured (envoy.config.cluster.v3.Cluster), lowered.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The name that routes refer to.
    pub(crate) name: Name,
    /// `alt_stat_name`, else the name: the scope of its stats.
    pub(crate) stat_name: Name,
    /// Where endpoints come from.
    pub(crate) discovery: Discovery,
    /// How one is chosen.
    pub(crate) balancing: Balancing,
    /// Where this proxy is, for zone-aware routing.
    pub(crate) here: Arc<lb::settings::Here>,
    /// `common_lb_config.healthy_panic_threshold`, whole percent; 50 by default, 0: never panic.
    pub(crate) panic_threshold: f64,
    /// `common_lb_config.override_host_status`: of which health a host may be that a session
    /// sticks to.
    pub(crate) override_status: OverrideStatus,
    /// `common_lb_config.close_connections_on_host_set_change`.
    pub(crate) close_on_host_change: bool,
    /// `connect_timeout`, 5 s by default; a TLS handshake included.
    pub(crate) connect_timeout: Duration,
    /// `transport_socket`: what lies between the cluster and its endpoints.
    pub(crate) transport: Transport<UpstreamTls>,
    /// `transport_socket_matches` in order: for endpoints with such metadata.
    pub(crate) transport_matches: Vec<TransportMatch>,
    /// HTTP protocol towards its endpoints.
    pub(crate) protocol: UpstreamProtocol,
    /// What it says of requests beside the protocol.
    pub(crate) http: ClusterHttp,
    /// Limits by routing priority: default and high.
    pub(crate) circuit_breakers: Arc<[CircuitBreakers; 2]>,
    /// What the circuit breakers have counted so far, over all workers: `Gauges::default()`.
    pub(crate) gauges: stats::Gauges,
    /// `outlier_detection`, with what it knows of the hosts.
    pub(crate) outlier: Option<Arc<outlier::Detector>>,
    /// `health_checks`, with what they have found.
    pub(crate) health: Option<Arc<health::Checkup>>,
    /// `close_connections_on_host_health_failure`: TCP sessions too, not only idle connections.
    pub(crate) close_on_failure: bool,
    /// Connection pool limits and idle timeout.
    pub(crate) pool: PoolLimits,
    /// `per_connection_buffer_limit_bytes`, 1 MiB by default.
    pub(crate) buffer_limit: usize,
    /// Socket options and source address of upstream connections.
    pub(crate) bind: Arc<BindConfig>,
    /// In which order a host's several addresses are tried.
    pub(crate) eyeballs: HappyEyeballs,
    /// `passthrough_metadata` of its internal connections (envoy.transport_sockets.internal_upstream).
    pub(crate) passthrough: Vec<Passthrough>,
    /// The PROXY protocol header that its connections begin with, if any.
    pub(crate) proxy_header: Option<Arc<UpstreamHeader>>,
    /// TCP keep-alive of upstream connections, if configured.
    pub(crate) tcp_keepalive: Option<TcpKeepalive>,
    /// `wait_for_warm_on_init`: false for DNS clusters that serve before their names are resolved.
    pub(crate) wait_for_warm: bool,
    /// Whether this cluster came from CDS (`added_via_api`).
    pub(crate) added_via_api: bool,
    /// What few clusters have.
    pub(crate) extras: Option<Box<extras::Extras>>,
    /// `metadata`, for access logs and matching.
    pub(crate) metadata: Metadata,
    /// The message as received, for /config_dump. Static clusters share the bootstrap's memory.
    pub(crate) source: Bytes,
    /// `version_info` of the update that brought it; empty for static ones.
    pub(crate) version: Box<str>,
}

/// A transport socket for endpoints whose metadata below `envoy.transport_socket_match` has all
/// of these values.
#[derive(Debug)]
pub(crate) struct TransportMatch {
    /// The values.
    pub(crate) values: serde_json::Map<String, serde_json::Value>,
    /// What then lies in between.
    pub(crate) transport: Transport<UpstreamTls>,
    /// The PROXY protocol header that connections then begin with, if any.
    pub(crate) proxy_header: Option<Arc<UpstreamHeader>>,
}

impl Cluster {
    /// What lies between the cluster and an endpoint with this metadata.
    pub(crate) fn transport_to(&self, endpoint: &Metadata) -> &Transport<UpstreamTls> {
        // Metadata is read for those who look: not without need.
        if self.transport_matches.is_empty() {
            return &self.transport;
        }
        self.transport_matching(endpoint.get("envoy.transport_socket_match"))
    }

    /// The transport socket for these values of `envoy.transport_socket_match`.
    pub(crate) fn transport_matching(&self, values: Option<&serde_json::Value>) -> &Transport<UpstreamTls> {
        self.find_match(values).map_or(&self.transport, |found| &found.transport)
    }

    /// The PROXY protocol header that connections to an endpoint with this metadata begin with.
    pub(crate) fn proxy_header_to(&self, endpoint: &Metadata) -> Option<&Arc<UpstreamHeader>> {
        if self.transport_matches.is_empty() {
            return self.proxy_header.as_ref();
        }
        self.proxy_header_matching(endpoint.get("envoy.transport_socket_match"))
    }

    /// The header for these values of `envoy.transport_socket_match`.
    pub(crate) fn proxy_header_matching(
        &self,
        values: Option<&serde_json::Value>,
    ) -> Option<&Arc<UpstreamHeader>> {
        let found = self.find_match(values);
        found.map_or(&self.proxy_header, |found| &found.proxy_header).as_ref()
    }

    fn find_match(&self, values: Option<&serde_json::Value>) -> Option<&TransportMatch> {
        let has = |key: &String, value: &serde_json::Value| {
            values.and_then(|values| values.get(key)).is_some_and(|own| own == value)
        };
        let fits = |candidate: &&TransportMatch| candidate.values.iter().all(|(key, value)| has(key, value));
        self.transport_matches.iter().find(fits)
    }

    /// Whether connections to any endpoint begin with a PROXY protocol header.
    pub(crate) fn announces(&self) -> bool {
        self.proxy_header.is_some() || self.transport_matches.iter().any(|found| found.proxy_header.is_some())
    }

    /// `preconnect_policy`, if there is one.
    pub(crate) fn preconnect(&self) -> Option<&pool::preconnect::Preconnect> {
        self.extras.as_ref()?.preconnect.as_ref()
    }

    /// The metadata exchange among its `filters`, if it is there.
    pub(crate) fn metadata_exchange(&self) -> Option<&MetadataExchange> {
        self.extras.as_ref()?.metadata_exchange.as_deref()
    }

    /// Whether each downstream connection has its own connections to the endpoints.
    pub(crate) fn per_connection(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.per_connection)
    }

    /// All TLS settings towards its endpoints.
    pub(crate) fn tls(&self) -> impl Iterator<Item = &Arc<UpstreamTls>> {
        let matches = self.transport_matches.iter().map(|matching| &matching.transport);
        std::iter::once(&self.transport).chain(matches).filter_map(Transport::tls)
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Discovery {
    /// From `load_assignment`, IP addresses only.
    Static(Arc<Assignment>),
    /// From `load_assignment`, every name resolved again and again; all addresses are endpoints.
    StrictDns(Arc<DnsDiscovery>),
    /// From `load_assignment`'s one name; a new connection goes to the first address.
    LogicalDns(Arc<DnsDiscovery>),
    /// By EDS under this name.
    Eds {
        /// `service_name`, else the cluster's name.
        service: ResourceKey,
        /// How long a new cluster waits for its first assignment; `None`: for ever.
        initial_fetch_timeout: Option<Duration>,
    },
    /// The connection's original destination address (`CLUSTER_PROVIDED` balancing).
    OriginalDst {
        /// Endpoints unused for so long are forgotten (`cleanup_interval`).
        cleanup_interval: Duration,
        /// `upstream_port_override`.
        port_override: Option<u16>,
        /// `metadata_key`: where the request's dynamic metadata may name an address.
        metadata_key: Option<(String, Vec<String>)>,
        /// `use_http_header` with this header name, lower case.
        http_header: Option<Name>,
    },
    /// The host that the request names (envoy.clusters.dynamic_forward_proxy).
    DynamicForwardProxy(Arc<dns_cache::DnsCache>),
    /// The priorities of other clusters, one cluster after the other (envoy.clusters.aggregate).
    Aggregate(Arc<[Name]>),
}

impl PartialEq for dns_cache::DnsCache {
    /// Caches are equal that were configured alike.
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Discovery {
    /// Whether requests bring the hosts, and only workers know which there are.
    pub(crate) fn is_open_ended(&self) -> bool {
        matches!(self, Discovery::OriginalDst { .. } | Discovery::DynamicForwardProxy(_))
    }

    /// Whether hosts come and go one by one, so that those which pass their health checks may
    /// outlive what discovery says of them.
    pub(crate) fn may_drop_hosts(&self) -> bool {
        matches!(self, Discovery::Eds { .. } | Discovery::StrictDns(_))
    }
}

/// DNS discovery's settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DnsDiscovery {
    /// Names and ports to resolve, by locality and priority.
    pub(crate) assignment: Assignment,
    /// `dns_refresh_rate`, 5 s by default.
    pub(crate) refresh: Duration,
    /// `dns_failure_refresh_rate`, else `refresh`: (base, max).
    pub(crate) failure_refresh: Option<(Duration, Duration)>,
    /// `respect_dns_ttl`.
    pub(crate) respect_ttl: bool,
    /// `dns_min_refresh_rate`: what a shorter time to live counts as.
    pub(crate) min_refresh: Duration,
    /// The servers are asked by TCP only (`use_tcp_for_dns_lookups`).
    pub(crate) tcp: bool,
    /// `dns_jitter`.
    pub(crate) jitter: Duration,
    /// `dns_lookup_family`.
    pub(crate) family: DnsFamily,
    /// Cares resolvers of `typed_dns_resolver_config`; empty: the system's.
    pub(crate) resolvers: Vec<SocketAddr>,
}

/// `dns_lookup_family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsFamily {
    /// v6, else v4 (Envoy's default).
    Auto,
    /// IPv4 addresses only.
    V4Only,
    /// IPv6 addresses only.
    V6Only,
    /// v4, else v6.
    V4Preferred,
    /// Both.
    All,
}

/// A ClusterLoadAssignment, lowered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Assignment {
    /// Localities with their endpoints.
    pub(crate) localities: Vec<LocalityEndpoints>,
    /// `policy.overprovisioning_factor`, percent; 140 by default.
    pub(crate) overprovisioning_factor: u32,
    /// `policy.weighted_priority_health`: hosts count by their weights for their priority's health.
    pub(crate) weighted_priority_health: bool,
    /// `policy.drop_overloads`: of a million requests so many are turned away.
    pub(crate) drops: u32,
}

/// Endpoints of one locality and priority.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalityEndpoints {
    /// Where they are.
    pub(crate) locality: Locality,
    /// 0 is the highest.
    pub(crate) priority: u32,
    /// `load_balancing_weight` of the locality.
    pub(crate) weight: Option<u32>,
    /// The endpoints.
    pub(crate) endpoints: Vec<EndpointConfig>,
}

/// envoy.config.core.v3.Locality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Locality {
    /// Region.
    pub(crate) region: Name,
    /// Zone.
    pub(crate) zone: Name,
    /// Sub-zone.
    pub(crate) sub_zone: Name,
}

/// One endpoint as configured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EndpointConfig {
    /// Where it listens.
    pub(crate) address: EndpointAddress,
    /// `hostname`, for health checks and host rewriting.
    pub(crate) hostname: Option<Arc<str>>,
    /// `load_balancing_weight`, 1 by default.
    pub(crate) weight: u32,
    /// `health_status`.
    pub(crate) health: HealthStatus,
    /// `metadata`.
    pub(crate) metadata: Metadata,
    /// `health_check_config`, if it says anything.
    pub(crate) check: Option<Arc<EndpointCheck>>,
    /// `additional_addresses`, or what else DNS found for the name of a LOGICAL_DNS cluster: other
    /// ways to the same host, tried by happy eyeballs.
    pub(crate) others: Arc<[SocketAddr]>,
}

/// How an endpoint's health is checked, where that differs from the endpoint itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EndpointCheck {
    /// `port_value`, if not 0.
    pub(crate) port: Option<u16>,
    /// `address`.
    pub(crate) address: Option<EndpointAddress>,
    /// `hostname`.
    pub(crate) hostname: Option<Arc<str>>,
    /// `disable_active_health_check`.
    pub(crate) disabled: bool,
}

impl EndpointConfig {
    /// How its health is checked.
    pub(crate) fn check(&self) -> &EndpointCheck {
        static AS_IT_IS: EndpointCheck =
            EndpointCheck { port: None, address: None, hostname: None, disabled: false };
        self.check.as_deref().unwrap_or(&AS_IT_IS)
    }
}

/// Metadata that internal connections take along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passthrough {
    /// The namespace.
    pub(crate) namespace: Box<str>,
    /// The cluster's, not the endpoint's.
    pub(crate) of_cluster: bool,
}

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EndpointAddress {
    /// IP and port.
    Ip(SocketAddr),
    /// A name to be resolved (DNS clusters only) and a port.
    Name(Arc<str>, u16),
    /// A Unix socket's path; `@...` is abstract.
    Pipe(Arc<str>),
    /// An internal listener of this proxy, and `endpoint_id`, which tells its endpoints apart.
    Internal(Arc<str>, Arc<str>),
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Ip(address) => address.fmt(f),
            EndpointAddress::Name(name, port) => write!(f, "{name}:{port}"),
            EndpointAddress::Pipe(path) => f.write_str(path),
            EndpointAddress::Internal(listener, id) => write!(f, "envoy://{listener}/{id}"),
        }
    }
}

/// EDS health, as Envoy reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthStatus {
    /// UNKNOWN or HEALTHY.
    Healthy,
    /// Only chosen if nothing healthy is left.
    Degraded,
    /// UNHEALTHY or TIMEOUT.
    Unhealthy,
    /// DRAINING: as if unhealthy.
    Draining,
}

/// The HTTP protocol spoken to a cluster's endpoints (HttpProtocolOptions).
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2(Box<Http2Settings>),
    /// Whatever the downstream connection speaks.
    Downstream(Box<Http2Settings>),
    /// What ALPN says: HTTP/2 if it was agreed upon.
    Auto(Box<Http2Settings>),
}

/// What a cluster says of requests to it (HttpProtocolOptions).
#[derive(Debug, Default)]
pub(crate) struct ClusterHttp {
    /// `retry_policy`: replaces the route's.
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    /// `request_mirror_policies`: replace the route's, if there are some.
    pub(crate) mirrors: Vec<Arc<Mirror>>,
    /// How HTTP/1 is spoken to it.
    pub(crate) http1: Http1Settings,
    /// `common_http_protocol_options.max_stream_duration`.
    pub(crate) max_stream_duration: Option<Duration>,
    /// `upstream_http_protocol_options`: endpoints are called by what requests ask for.
    pub(crate) server_names: Option<ServerNames>,
}

/// How TLS servers are called by the host that requests ask for (UpstreamHttpProtocolOptions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerNames {
    /// `auto_sni`: their SNI is that host, unless it is an address.
    pub(crate) sni: bool,
    /// `auto_san_validation`: their certificate must be for it.
    pub(crate) san: bool,
    /// `override_auto_sni_header`: where the host is looked for before the authority.
    pub(crate) header: Option<Box<str>>,
}

/// Http2ProtocolOptions, as far as an endpoint of a connection sets them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Http2Settings {
    /// `max_concurrent_streams`: 1024 by default (Envoy 1.40).
    pub(crate) max_concurrent_streams: u32,
    /// `initial_stream_window_size`, 16 MiB by default (Envoy 1.40).
    pub(crate) stream_window: u32,
    /// `initial_connection_window_size`, 24 MiB by default (Envoy 1.40).
    pub(crate) connection_window: u32,
    /// `allow_connect`.
    pub(crate) allow_connect: bool,
    /// `hpack_table_size`, 4096 by default.
    pub(crate) hpack_table_size: u32,
    /// `enable_huffman_encoding`, true by default.
    pub(crate) huffman: bool,
    /// `disallow_obs_text`: values are ASCII.
    pub(crate) ascii_only: bool,
    /// `override_stream_error_on_invalid_http_message`: an invalid message ends its stream only;
    /// `None`: as the connection manager says.
    pub(crate) stream_errors: Option<bool>,
    /// `connection_keepalive`.
    pub(crate) keepalive: Option<KeepaliveSettings>,
    /// `custom_settings_parameters`: identifiers and values.
    pub(crate) custom: Vec<(u16, u32)>,
    /// Limits against abuse.
    pub(crate) flood: FloodLimits,
}

/// `connection_keepalive`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeepaliveSettings {
    /// `interval` between an answer and the next ping; `None`: no such pings.
    pub(crate) interval: Option<Duration>,
    /// `timeout` of an answer.
    pub(crate) timeout: Duration,
    /// `interval_jitter`: up to so many percent are added to the interval; 15 by default.
    pub(crate) jitter: f64,
    /// `connection_idle_interval`: after so long without a byte, a ping goes ahead of a stream.
    pub(crate) idle_interval: Option<Duration>,
}

/// Limits of Http2ProtocolOptions against peers that keep us busy for nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FloodLimits {
    /// `max_outbound_frames` that wait to be written, 10,000 by default.
    pub(crate) outbound_frames: u32,
    /// `max_outbound_control_frames` of those, 1,000 by default.
    pub(crate) outbound_control_frames: u32,
    /// `max_consecutive_inbound_frames_with_empty_payload`, 1 by default.
    pub(crate) consecutive_empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`, 100 by default.
    pub(crate) priority_frames_per_stream: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`, 10 by default.
    pub(crate) window_updates_per_data_frame: u32,
    /// `stream_reset_burst`, 1,000 by default.
    pub(crate) reset_burst: u64,
    /// `stream_reset_rate` a second, 33 by default.
    pub(crate) reset_rate: u64,
}

/// Thresholds of one priority; `u32::MAX` for no limit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CircuitBreakers {
    /// 1024 by default.
    pub(crate) max_connections: u32,
    /// 1024 by default.
    pub(crate) max_pending_requests: u32,
    /// 1024 by default.
    pub(crate) max_requests: u32,
    /// 3 by default.
    pub(crate) max_retries: u32,
    /// `retry_budget`; replaces `max_retries`.
    pub(crate) retry_budget: Option<budget::RetryBudget>,
    /// `track_remaining`.
    pub(crate) track_remaining: bool,
}

/// Limits of upstream connections (CommonHttpProtocolOptions).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolLimits {
    /// `max_requests_per_connection`; 0: none.
    pub(crate) max_requests_per_connection: u32,
    /// `idle_timeout`, 1 h by default; `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// `max_connection_duration`.
    pub(crate) max_connection_duration: Option<Duration>,
    /// `max_response_headers_kb`, bytes; 60 KiB by default.
    pub(crate) max_response_head_bytes: usize,
    /// `max_headers_count`, 100 by default.
    pub(crate) max_headers: usize,
}

/// `upstream_bind_config`, the cluster's or the bootstrap's.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BindConfig {
    /// Source address; `None`: any. A second one for the other family may follow.
    pub(crate) sources: Vec<SocketAddr>,
    /// Raw socket options: (level, name, value), set before connecting.
    pub(crate) options: Vec<(i32, i32, Vec<u8>)>,
}

/// `happy_eyeballs_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HappyEyeballs {
    /// `first_address_family_version` is V4; `None`: the family of the first address.
    pub(crate) v4_first: Option<bool>,
    /// `first_address_family_count`: so many addresses of the first family are tried for one of
    /// the other.
    pub(crate) first_count: usize,
}

impl Default for HappyEyeballs {
    fn default() -> Self {
        Self { v4_first: None, first_count: 1 }
    }
}

/// TCP keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpKeepalive {
    /// `keepalive_probes`.
    pub(crate) probes: Option<u32>,
    /// `keepalive_time`, seconds.
    pub(crate) time: Option<u32>,
    /// `keepalive_interval`, seconds.
    pub(crate) interval: Option<u32>,
}

/// What a balancer may know of the request or session. All of it is optional: the default is a
/// pick of which nothing is known.
#[derive(Clone, Copy, Default)]
pub(crate) struct PickContext<'a> {
    /// The downstream connection's (restored) local address, for ORIGINAL_DST.
    pub(crate) original_dst: Option<SocketAddr>,
    /// The request's headers, for `use_http_header` and `override_host_sources`.
    pub(crate) headers: Option<&'a HeaderMap>,
    /// The request's dynamic metadata, for `override_host_sources`.
    pub(crate) metadata: Option<&'a DynamicMetadata>,
    /// What the hash policies make of the request; hashing balancers take a random number
    /// instead of `None`. Only computed where the cluster's balancer asks for it.
    pub(crate) hash: Option<u64>,
    /// What the endpoint's metadata must be (`metadata_match`).
    pub(crate) metadata_match: Option<&'a lb::metadata::MetadataMatch>,
    /// The endpoint that a session sticks to.
    pub(crate) override_host: Option<OverrideHost<'a>>,
    /// Retries: whether another host is wanted than this one. What is rejected is picked all
    /// the same if `attempts` more tries find nothing better.
    pub(crate) rejects: Option<&'a dyn Fn(&worker_cluster::Host) -> bool>,
    /// `host_selection_retry_max_attempts`, with `rejects`.
    pub(crate) attempts: u32,
    /// Retries: priorities that get no load, as long as there are others (`previous_priorities`).
    pub(crate) excluded_priorities: &'a [u32],
    /// How many hosts were picked for this request before.
    pub(crate) earlier_picks: u32,
    /// Where an aggregate cluster has drawn already: the priority for a balancer that draws one.
    pub(crate) drawn: Option<Drawn>,
}

/// A priority that was drawn for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    /// Its index.
    pub(crate) priority: usize,
    /// Its degraded hosts are meant.
    pub(crate) degraded: bool,
}

/// `override_host_status`: DRAINING hosts are left out unless they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverrideStatus {
    /// UNKNOWN or HEALTHY.
    pub(crate) healthy: bool,
    /// DEGRADED.
    pub(crate) degraded: bool,
    /// UNHEALTHY or TIMEOUT, or ejected.
    pub(crate) unhealthy: bool,
    /// DRAINING.
    pub(crate) draining: bool,
}

/// The endpoint that a session sticks to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverrideHost<'a> {
    /// Its address as text.
    pub(crate) address: &'a str,
    /// Whether no other will do.
    pub(crate) strict: bool,
}
