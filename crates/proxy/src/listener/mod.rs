//! Listeners: where connections come in, how their filter chain is found.
//!
//! Reading order: this file (the types), `accept`, `inspect`, `original_dst`, `filter_chain`;
//! `config` lowers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;

use crate::cluster::TcpKeepalive;
use crate::http::config::HttpConnectionManager;
use crate::http::filters::Background;
use crate::tcp::tcp_proxy::TcpProxy;
use crate::telemetry::access_log::AccessLog;
use crate::tls::{DownstreamTls, Transport};

/// A listener as configured (envoy.config.listener.v3.Listener), lowered.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// `name`, never empty (Envoy invents one for static listeners without).
    pub(crate) name: Name,
    /// `stat_prefix`, else the address: scope `listener.ADDRESS.`.
    pub(crate) stat_prefix: Name,
    /// `address` and `additional_addresses`.
    pub(crate) addresses: Vec<ListenAddress>,
    /// `internal_listener`: only connections of this proxy's own clusters come in.
    pub(crate) internal: bool,
    /// `bind_to_port`, true by default; never for internal ones.
    pub(crate) bind_to_port: bool,
    /// `use_original_dst`: hand the connection to the listener of its original destination.
    pub(crate) use_original_dst: bool,
    /// Listener filters in order.
    pub(crate) listener_filters: Vec<ListenerFilter>,
    /// `listener_filters_timeout`, 15 s by default; `None`: never.
    pub(crate) listener_filters_timeout: Option<Duration>,
    /// `continue_on_listener_filters_timeout`.
    pub(crate) continue_on_timeout: bool,
    /// How a connection finds its chain.
    pub(crate) chains: filter_chain::FilterChains,
    /// `access_log` of connections that find no chain, and of all others at their end.
    pub(crate) access_logs: Vec<Arc<AccessLog>>,
    /// `per_connection_buffer_limit_bytes`, 1 MiB by default.
    pub(crate) buffer_limit: usize,
    /// `transparent`.
    pub(crate) transparent: bool,
    /// `ipv4_compat` of an IPv6 address: accept IPv4 too.
    pub(crate) ipv4_compatible: bool,
    /// `freebind`.
    pub(crate) freebind: bool,
    /// `socket_options`: (level, name, value), set before binding.
    pub(crate) options: Vec<(i32, i32, Vec<u8>)>,
    /// `tcp_backlog_size`, the system's by default.
    pub(crate) backlog: Option<u32>,
    /// `enable_reuse_port`, true by default.
    pub(crate) reuse_port: bool,
    /// `tcp_keepalive` by socket options is separate; this is `TcpKeepalive` of newer APIs.
    pub(crate) keepalive: Option<TcpKeepalive>,
    /// `traffic_direction`.
    pub(crate) direction: Direction,
    /// `bypass_overload_manager`: the overload manager stops and rejects nothing here.
    pub(crate) bypass_overload: bool,
    /// `ignore_global_conn_limit`.
    pub(crate) ignore_global_limit: bool,
    /// Its connections, limited by runtime key `envoy.resource_limits.listener.NAME.connection_limit`;
    /// the next version goes on counting.
    pub(crate) connections: Arc<accept::GlobalConnections>,
    /// `drain_type: MODIFY_ONLY`: failing health checks do not drain its connections.
    pub(crate) drain_modify_only: bool,
    /// What goes on beside requests for its HTTP filters, with the connection managers' `stat_prefix`.
    pub(crate) background: Vec<(Arc<dyn Background>, Name)>,
    /// Whether it came by LDS.
    pub(crate) added_via_api: bool,
    /// The message as received, for /config_dump and for finding what changed.
    pub(crate) source: bytes::Bytes,
    /// `version_info` of the update that brought it.
    pub(crate) version: String,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ListenAddress {
    /// IP and port; port 0 is chosen by the system.
    Ip(SocketAddr),
    /// A Unix socket: path (`@` = abstract) and mode.
    Pipe(Arc<str>, u32),
}

/// `traffic_direction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Not said.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// A listener filter, possibly disabled for some connections.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListenerFilter {
    /// Which.
    pub(crate) kind: ListenerFilterKind,
    /// `filter_disabled`.
    pub(crate) disabled: Option<ListenerPredicate>,
}

/// The listener filters that this proxy has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ListenerFilterKind {
    /// envoy.filters.listener.original_dst
    OriginalDst,
    /// envoy.filters.listener.http_inspector
    HttpInspector,
    /// envoy.filters.listener.tls_inspector
    TlsInspector(inspect::TlsInspection),
    /// envoy.filters.listener.proxy_protocol
    ProxyProtocol(Arc<proxy_protocol::ProxyProtocol>),
    /// envoy.filters.listener.original_src
    OriginalSrc(OriginalSource),
    /// envoy.filters.listener.local_ratelimit
    LocalRateLimit(Arc<ListenerRateLimit>),
}

/// `local_ratelimit`: sockets beyond the rate are closed.
#[derive(Debug, PartialEq)]
pub(crate) struct ListenerRateLimit {
    /// `listener_local_ratelimit.STAT_PREFIX.`
    pub(crate) prefix: Box<str>,
    /// Over all workers.
    pub(crate) bucket: crate::token_bucket::TokenBucket,
    /// `runtime_enabled`.
    pub(crate) enabled: bool,
}

/// How upstream connections take over the source address of the downstream one
/// (envoy.filters.listener.original_src).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OriginalSource {
    /// `mark` of their packets; 0: none.
    pub(crate) mark: u32,
    /// `bind_port`: the port too.
    // Deviation: `bind_port` of original_src is honoured; Envoy accepts it and has never done anything with it.
    pub(crate) port: bool,
}

/// ListenerFilterChainMatchPredicate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ListenerPredicate {
    /// Any of them.
    Or(Vec<ListenerPredicate>),
    /// All of them.
    And(Vec<ListenerPredicate>),
    /// Not it.
    Not(Box<ListenerPredicate>),
    /// Always.
    Any,
    /// `destination_port_range`: start inclusive, end exclusive.
    DestinationPort(u16, u16),
}

/// One filter chain.
#[derive(Clone, Debug)]
pub(crate) struct FilterChain {
    /// `name`.
    pub(crate) name: Name,
    /// `filter_chain_match` as received, by which the listener's next version is compared.
    pub(crate) criteria: Box<[u8]>,
    /// `filters` but the last, in order.
    pub(crate) filters: Vec<Arc<dyn network::NetworkFilterConfig>>,
    /// What lies below the filters.
    pub(crate) transport: Transport<DownstreamTls>,
    /// `transport_socket_connect_timeout`: how long a handshake may take; `None`: for ever.
    pub(crate) handshake_timeout: Option<Duration>,
    /// What serves the connection.
    pub(crate) network: NetworkFilters,
}

/// A chain of network filters; it always ends in one of these.
#[derive(Clone, Debug)]
pub(crate) enum NetworkFilters {
    /// HTTP connection manager.
    Http(Arc<HttpConnectionManager>),
    /// TCP proxy.
    Tcp(Arc<TcpProxy>),
    /// envoy.filters.network.echo: what comes is sent back.
    Echo,
    /// envoy.filters.network.direct_response: these bytes, then the end.
    Direct(bytes::Bytes),
    /// No filter: the connection is closed.
    Close,
}

impl NetworkFilters {
    /// Whether connections that these serve can go on under `other`.
    fn is_like(&self, other: &NetworkFilters) -> bool {
        match self {
            NetworkFilters::Http(_) => matches!(other, NetworkFilters::Http(_)),
            NetworkFilters::Tcp(_) => matches!(other, NetworkFilters::Tcp(_)),
            NetworkFilters::Echo => matches!(other, NetworkFilters::Echo),
            NetworkFilters::Direct(_) => matches!(other, NetworkFilters::Direct(_)),
            NetworkFilters::Close => matches!(other, NetworkFilters::Close),
        }
    }
}

pub(crate) mod accept;
pub(crate) mod bind;
pub(crate) mod config;
pub(crate) mod counts;
pub(crate) mod filter_chain;
pub(crate) mod inspect;
pub(crate) mod internal;
pub(crate) mod network;
pub(crate) mod original_dst;
pub(crate) mod proxy_protocol;
pub(crate) mod renew;
pub(crate) mod sockets;
