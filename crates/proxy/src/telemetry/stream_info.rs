//! What is known of one stream (request) or one TCP session: the facts that access logs,
//! stats, spans and filters read. Filled along the way, read in `Stream::finish`.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use leno_base::Name;
use smallvec::SmallVec;

use crate::cluster::{Cluster, EndpointConfig, Metadata};
use crate::listener::OriginalSource;
use crate::proxy_protocol::Origin;
pub(crate) use crate::telemetry::metadata::DynamicMetadata;
use crate::telemetry::trace::TraceFacts;
use crate::telemetry::workload::Workload;
use crate::text;
use crate::tls::TlsInfo;

/// Envoy's response flags (`%RESPONSE_FLAGS%`), as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseFlags(u32);

macro_rules! response_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub(crate) const $name: ResponseFlags = ResponseFlags(1 << $bit);)*
            /// All flags in Envoy's order of printing, with `%RESPONSE_FLAGS%` and `%RESPONSE_FLAGS_LONG%` names.
            pub(crate) const ALL: &'static [(ResponseFlags, &'static str, &'static str)] =
                &[$((ResponseFlags::$name, $short, $long),)*];
        }
    };
}

response_flags! {
    /// Upstream retry limit exceeded. Envoy prints flags as they were set, and this one always is
    /// before the failure that it goes with.
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX", "UpstreamRetryLimitExceeded";
    /// Upstream overflow: a circuit breaker is open; likewise, where it is the one for retries.
    UPSTREAM_OVERFLOW = 7, "UO", "UpstreamOverflow";
    /// Local service failed its health check (with 503).
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH", "FailedLocalHealthCheck";
    /// No healthy upstream host (with 503).
    NO_HEALTHY_UPSTREAM = 1, "UH", "NoHealthyUpstream";
    /// Upstream request timeout (with 504).
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "UpstreamRequestTimeout";
    /// Connection local reset.
    LOCAL_RESET = 3, "LR", "LocalReset";
    /// Upstream remote reset.
    UPSTREAM_REMOTE_RESET = 4, "UR", "UpstreamRemoteReset";
    /// Upstream connection failure.
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "UpstreamConnectionFailure";
    /// Upstream connection termination.
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "UpstreamConnectionTermination";
    /// No route, or no filter chain.
    NO_ROUTE_FOUND = 8, "NR", "NoRouteFound";
    /// Delay was injected.
    DELAY_INJECTED = 9, "DI", "DelayInjected";
    /// Abort was injected.
    FAULT_INJECTED = 10, "FI", "FaultInjected";
    /// Rate limited.
    RATE_LIMITED = 11, "RL", "RateLimited";
    /// Denied by external authorization.
    UNAUTHORIZED_EXTERNAL_SERVICE = 12, "UAEX", "UnauthorizedExternalService";
    /// Rate limit service error.
    RATE_LIMIT_SERVICE_ERROR = 13, "RLSE", "RateLimitServiceError";
    /// Downstream connection termination.
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC", "DownstreamConnectionTermination";
    /// Stream idle timeout.
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    /// Invalid Envoy request headers.
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH", "InvalidEnvoyRequestHeaders";
    /// Downstream protocol error.
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE", "DownstreamProtocolError";
    /// Upstream request reached its maximum stream duration.
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    /// Response was served from a cache filter.
    RESPONSE_FROM_CACHE_FILTER = 20, "RFCF", "ResponseFromCacheFilter";
    /// No filter configuration (ECDS).
    NO_FILTER_CONFIG_FOUND = 21, "NFCF", "NoFilterConfigFound";
    /// Request or connection exceeded its maximum duration.
    DURATION_TIMEOUT = 22, "DT", "DurationTimeout";
    /// Upstream protocol error.
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE", "UpstreamProtocolError";
    /// Upstream cluster not found.
    NO_CLUSTER_FOUND = 24, "NC", "NoClusterFound";
    /// Overload manager.
    OVERLOAD_MANAGER = 25, "OM", "OverloadManagerTerminated";
    /// DNS resolution failed.
    DNS_RESOLUTION_FAILED = 26, "DF", "DnsResolutionFailed";
    /// Downstream remote reset.
    DOWNSTREAM_REMOTE_RESET = 27, "DR", "DownstreamRemoteReset";
    /// Unconditional drop by the endpoint's overload.
    UNCONDITIONAL_DROP_OVERLOAD = 28, "UDO", "UnconditionalDropOverload";
}

impl ResponseFlags {
    /// Adds a flag.
    pub(crate) fn insert(&mut self, flag: ResponseFlags) {
        self.0 |= flag.0;
    }

    /// Whether any of `flags` is set.
    pub(crate) fn intersects(self, flags: ResponseFlags) -> bool {
        self.0 & flags.0 != 0
    }

    /// Whether no flag is set.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as a number, to tell sets apart.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// `%PROTOCOL%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl Protocol {
    /// The text of `%PROTOCOL%`.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Protocol::Http10 => "HTTP/1.0",
            Protocol::Http11 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        }
    }
}

/// How long a head is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeadSize {
    /// Its bytes on the wire (HTTP/2: with the heads of its frames).
    pub(crate) wire: u64,
    /// `%DOWNSTREAM_HEADER_BYTES_...%`: as Envoy counts, without the first line and the last.
    pub(crate) fields: u64,
}

/// Numbers connections, downstream and upstream, over all workers: `%CONNECTION_ID%`.
pub(crate) fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The facts of one downstream connection, shared by its streams.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    /// Unique in the process: `%CONNECTION_ID%`.
    pub(crate) id: u64,
    /// The peer's address, as far as listener filters know better than the socket.
    pub(crate) remote: SocketAddr,
    /// The peer's address of the socket itself: `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`.
    pub(crate) direct_remote: SocketAddr,
    /// The local address, the original destination where restored.
    pub(crate) local: SocketAddr,
    /// The local address of the socket itself: `%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%`.
    pub(crate) direct_local: SocketAddr,
    /// Whether `local` was restored from the original destination (SO_ORIGINAL_DST).
    pub(crate) local_restored: bool,
    /// SNI, if TLS was inspected: `%REQUESTED_SERVER_NAME%`.
    pub(crate) server_name: Option<Box<str>>,
    /// The TLS session, if it is one.
    pub(crate) tls: Option<Rc<TlsInfo>>,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`: why there is no TLS session.
    pub(crate) transport_failure: Option<Box<str>>,
    /// When the connection was accepted.
    pub(crate) started: Instant,
    /// What listener and network filters found out.
    pub(crate) found: Found,
}

impl ConnectionInfo {
    /// The facts of a connection of which nothing but its addresses is known.
    pub(crate) fn plain(id: u64, remote: SocketAddr, local: SocketAddr, started: Instant) -> Self {
        Self {
            id,
            remote,
            direct_remote: remote,
            local,
            direct_local: local,
            local_restored: false,
            server_name: None,
            tls: None,
            transport_failure: None,
            started,
            found: Found::default(),
        }
    }
}

/// What listener and network filters leave for those behind them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Dynamic metadata of the connection. TCP sessions have it, requests do not (as in Envoy).
    pub(crate) metadata: DynamicMetadata,
    /// Filter state of the connection, which its requests see too.
    pub(crate) filter_state: FilterStates,
    /// The PROXY protocol header that the connection began with.
    pub(crate) origin: Option<Box<Origin>>,
    /// Upstream connections are to come from the downstream address.
    pub(crate) original_source: Option<OriginalSource>,
}

/// The endpoint that a request's session sticks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StickyHost {
    /// Its address as text.
    pub(crate) address: Box<str>,
    /// Whether no other will do.
    pub(crate) strict: bool,
}

/// What logs say of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterFacts {
    /// `%UPSTREAM_CLUSTER%`: alt_stat_name or name.
    pub(crate) stat_name: Name,
    /// `%UPSTREAM_CLUSTER_RAW%`: the name.
    pub(crate) name: Name,
    /// `%CLUSTER_METADATA(...)%`.
    pub(crate) metadata: Metadata,
    mesh: OnceCell<Option<Box<MeshFacts>>>,
}

/// What a control plane of Istio's says of a cluster, in its metadata `istio`.
#[derive(Debug)]
pub(crate) struct MeshFacts {
    /// The service that it stands for.
    pub(crate) service: Option<MeshService>,
    /// `external`: it is not of the mesh.
    pub(crate) external: bool,
    /// `disable_mx`: proxies do not tell it what they are.
    pub(crate) exchanges_nothing: bool,
    /// `alpn_override: "false"`: its connections offer what its transport socket says.
    pub(crate) keeps_alpn: bool,
}

/// The service of a mesh that a cluster stands for: the first of the field `services` of its
/// metadata `istio`, as the control plane says it.
#[derive(Debug)]
pub(crate) struct MeshService {
    /// `host`
    pub(crate) host: Box<str>,
    /// `name`, else the host up to its first dot.
    pub(crate) name: Box<str>,
    /// `namespace`
    pub(crate) namespace: Box<str>,
}

impl ClusterFacts {
    /// Of a cluster with these names.
    pub(crate) fn new(stat_name: Name, name: Name, metadata: Metadata) -> Self {
        Self { stat_name, name, metadata, mesh: OnceCell::new() }
    }

    /// What Istio's control plane says of it, if it does. Names are looked up once.
    pub(crate) fn mesh(&self) -> Option<&MeshFacts> {
        self.mesh.get_or_init(|| Some(Box::new(MeshFacts::of(self.metadata.get("istio")?)))).as_deref()
    }

    /// The service that it stands for, if the control plane has said so.
    pub(crate) fn service(&self) -> Option<&MeshService> {
        self.mesh()?.service.as_ref()
    }
}

impl MeshFacts {
    fn of(said: &serde_json::Value) -> Self {
        use serde_json::Value;
        let holds = |name: &str| said.get(name).and_then(Value::as_bool) == Some(true);
        let service = said.get("services").and_then(|services| services.get(0)).map(|service| {
            let text = |name: &str| service.get(name).and_then(Value::as_str);
            let host = text("host").unwrap_or_default();
            let name = text("name").unwrap_or_else(|| host.split('.').next().unwrap_or_default());
            let namespace = text("namespace").unwrap_or_default();
            MeshService { host: host.into(), name: name.into(), namespace: namespace.into() }
        });
        Self {
            service,
            external: holds("external"),
            exchanges_nothing: holds("disable_mx"),
            keeps_alpn: said.get("alpn_override").and_then(Value::as_str) == Some("false"),
        }
    }
}

impl From<&Cluster> for ClusterFacts {
    fn from(cluster: &Cluster) -> Self {
        Self::new(cluster.stat_name.clone(), cluster.name.clone(), cluster.metadata.clone())
    }
}

/// The facts about the upstream attempt that answered (or the last one).
#[derive(Clone, Debug, Default)]
pub(crate) struct UpstreamInfo {
    /// The chosen endpoint: `%UPSTREAM_HOST%`.
    pub(crate) host: Option<SocketAddr>,
    /// The endpoint that a filter wants the request to go to.
    pub(crate) override_host: Option<Box<StickyHost>>,
    /// `%UPSTREAM_LOCAL_ADDRESS%`.
    pub(crate) local: Option<SocketAddr>,
    /// The chosen cluster.
    pub(crate) cluster: Option<Rc<ClusterFacts>>,
    /// The endpoint's settings: its hostname, and its metadata (`%UPSTREAM_METADATA(...)%`).
    pub(crate) endpoint: Option<Rc<EndpointConfig>>,
    /// Number of the upstream connection: `%UPSTREAM_CONNECTION_ID%`.
    pub(crate) connection_id: Option<u64>,
    /// `%UPSTREAM_PROTOCOL%`.
    pub(crate) protocol: Option<Protocol>,
    /// The TLS session, if it is one.
    pub(crate) tls: Option<Rc<TlsInfo>>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub(crate) transport_failure: Option<Box<str>>,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`.
    pub(crate) attempts: u32,
    /// When the connection pool gave the stream (connected or reused).
    pub(crate) ready_at: Option<Instant>,
    /// First and last byte of the request sent upstream.
    pub(crate) first_tx: Option<Instant>,
    /// See `first_tx`.
    pub(crate) last_tx: Option<Instant>,
    /// First and last byte of the response received.
    pub(crate) first_rx: Option<Instant>,
    /// See `first_rx`.
    pub(crate) last_rx: Option<Instant>,
    /// Filter state of the upstream connection of a TCP session.
    pub(crate) filter_state: FilterStates,
    /// Wire bytes to and from upstream.
    pub(crate) wire_bytes_sent: u64,
    /// See `wire_bytes_sent`.
    pub(crate) wire_bytes_received: u64,
}

impl UpstreamInfo {
    /// Another attempt begins: what is known of the connection of the last one is not of it.
    pub(crate) fn begin_again(&mut self) {
        self.local = None;
        self.connection_id = None;
        self.protocol = None;
        self.transport_failure = None;
        self.ready_at = None;
        self.first_tx = None;
        self.last_tx = None;
        self.first_rx = None;
        self.last_rx = None;
    }
}

/// An object that a filter left for those behind it and for access logs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FilterState {
    /// `%FILTER_STATE(key:PLAIN)%`.
    pub(crate) text: String,
    /// `%FILTER_STATE(key:TYPED)%`: the message in proto3's JSON; `None`: the text, as a string.
    pub(crate) typed: Option<serde_json::Value>,
    /// The facts of a peer, if it stands for them.
    pub(crate) peer: Option<Box<Workload>>,
}

/// Objects by their keys. What is the same for many requests is shared: an object, and all of them
/// as long as none is added. There are a few at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterStates(Option<Rc<Objects>>);

#[derive(Clone, Debug, Default)]
struct Objects(SmallVec<[(Cow<'static, str>, Rc<FilterState>); 2]>);

impl FilterStates {
    /// The object of this key.
    pub(crate) fn get(&self, key: &str) -> Option<&FilterState> {
        self.shared(key).map(|state| &**state)
    }

    /// The same, to be shared.
    pub(crate) fn shared(&self, key: &str) -> Option<&Rc<FilterState>> {
        let Objects(all) = &**self.0.as_ref()?;
        all.iter().find(|(known, _)| *known == key).map(|(_, state)| state)
    }

    /// Leaves an object, in place of one of the same key.
    pub(crate) fn insert(&mut self, key: impl Into<Cow<'static, str>>, state: impl Into<Rc<FilterState>>) {
        let (key, state) = (key.into(), state.into());
        let Objects(all) = Rc::make_mut(self.0.get_or_insert_default());
        match all.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = state,
            None => all.push((key, state)),
        }
    }

    /// Whether there is an object of this key.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.shared(key).is_some()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All objects, in the order of their keys.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &FilterState)> {
        let mut all: Vec<_> = self.0.iter().flat_map(|all| &all.0).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all.into_iter().map(|(key, state)| (&**key, &**state))
    }

    /// Forgets all objects.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

impl FilterState {
    /// The IP address that the text is, with or without a port.
    pub(crate) fn ip(&self) -> Option<std::net::IpAddr> {
        let with_port = || self.text.parse().map(|address: SocketAddr| address.ip()).ok();
        self.text.parse().ok().or_else(with_port)
    }
}

/// What a route is called.
#[derive(Clone, Debug)]
pub(crate) struct RouteNames {
    /// `%ROUTE_NAME%`; may be empty.
    pub(crate) route: Name,
    /// The virtual host's name.
    pub(crate) virtual_host: Name,
}

/// The text of a request id. As a rule it is a UUID, which has room in it.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(SmallVec<[u8; 40]>);

impl From<&str> for RequestId {
    fn from(text: &str) -> Self {
        Self(SmallVec::from_slice(text.as_bytes()))
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        text::from_bytes(&self.0).unwrap_or_default()
    }
}

/// What is known of one stream or TCP session.
#[derive(Debug)]
pub(crate) struct StreamInfo {
    /// The downstream connection.
    pub(crate) connection: Rc<ConnectionInfo>,
    /// `%START_TIME%`.
    pub(crate) start_time: SystemTime,
    /// The monotonic start; durations count from here.
    pub(crate) started: Instant,
    /// `None` for TCP.
    pub(crate) protocol: Option<Protocol>,
    /// `%RESPONSE_CODE%`; 0: none sent.
    pub(crate) response_code: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub(crate) response_code_details: Option<Cow<'static, str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub(crate) termination_details: Option<Cow<'static, str>>,
    /// `%RESPONSE_FLAGS%`.
    pub(crate) flags: ResponseFlags,
    /// `%BYTES_RECEIVED%`: body bytes from downstream.
    pub(crate) bytes_received: u64,
    /// `%BYTES_SENT%`: body bytes to downstream.
    pub(crate) bytes_sent: u64,
    /// Bytes of the request and response heads as received or sent.
    pub(crate) request_head: HeadSize,
    /// See `request_head`.
    pub(crate) response_head: HeadSize,
    /// HTTP/2: bytes of the stream's frames, received and sent.
    pub(crate) stream_wire_bytes: Option<(u64, u64)>,
    /// Last byte of the request received (`%REQUEST_DURATION%`).
    pub(crate) request_complete: Option<Instant>,
    /// First byte of the response sent downstream.
    pub(crate) first_downstream_tx: Option<Instant>,
    /// Last byte of the response sent downstream.
    pub(crate) last_downstream_tx: Option<Instant>,
    /// What the route that was taken is called, and its virtual host.
    pub(crate) route: Option<Rc<RouteNames>>,
    /// `%VIRTUAL_CLUSTER_NAME%`
    pub(crate) virtual_cluster: Option<Name>,
    /// The upstream side.
    pub(crate) upstream: UpstreamInfo,
    /// `%DYNAMIC_METADATA(...)%`.
    pub(crate) metadata: DynamicMetadata,
    /// `%FILTER_STATE(...)%`.
    pub(crate) filter_state: FilterStates,
    /// `x-request-id`, as logged or traced.
    pub(crate) request_id: Option<RequestId>,
    /// The request passed the health check filter.
    pub(crate) health_check: bool,
    /// Its trace.
    pub(crate) trace: TraceFacts,
}

impl StreamInfo {
    /// `%ROUTE_NAME%`, if a route was taken that has a name.
    pub(crate) fn route_name(&self) -> Option<&str> {
        self.route.as_ref().map(|names| &*names.route).filter(|name| !name.is_empty())
    }

    /// Bytes received from and sent to downstream on the wire, as far as they are known
    /// (`%DOWNSTREAM_WIRE_BYTES_...%`).
    // Deviation: heads and bodies without the framing of HTTP/1's chunks.
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        let http1 = (self.request_head.wire + self.bytes_received, self.response_head.wire + self.bytes_sent);
        self.stream_wire_bytes.unwrap_or(http1)
    }

    /// The facts at the start of a stream on `connection`.
    #[inline]
    pub(crate) fn new(
        connection: Rc<ConnectionInfo>,
        protocol: Option<Protocol>,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let found = &connection.found;
        let metadata = if protocol.is_none() { found.metadata.clone() } else { DynamicMetadata::new() };
        Self {
            metadata,
            filter_state: found.filter_state.clone(),
            connection,
            start_time: wall,
            started: now,
            protocol,
            response_code: 0,
            response_code_details: None,
            termination_details: None,
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            request_head: HeadSize::default(),
            response_head: HeadSize::default(),
            stream_wire_bytes: None,
            request_complete: None,
            first_downstream_tx: None,
            last_downstream_tx: None,
            route: None,
            virtual_cluster: None,
            upstream: UpstreamInfo::default(),
            request_id: None,
            health_check: false,
            trace: TraceFacts::default(),
        }
    }
}
