//! The HTTP connection manager's configuration, lowered
//! (envoy.extensions.filters.network.http_connection_manager.v3).

use std::cell::OnceCell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;

use crate::cluster::Http2Settings;
use crate::config::source::ResourceKey;
use crate::http::client_cert::ClientCertDetails;
use crate::http::codec::h1::head::KeepCase;
use crate::http::config::detection::Detection;
use crate::http::config::local_reply::LocalReplies;
use crate::http::filters::{Background, ChainedFilter};
use crate::http::forward::upstream_log::UpstreamLog;
use crate::http::headers::Known;
use crate::http::route::RouteTable;
use crate::http::route::matcher::StringMatcher;
use crate::http::route::mutation::HeaderChange;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::trace::export::Exporter;
use crate::telemetry::trace::{Tracing, TracingStats};
use crate::worker::Worker;

pub(crate) mod detection;
pub(crate) mod discovered;
mod filters;
mod forward_proto;
mod http2;
pub(crate) mod local_reply;
pub(crate) mod lower;
mod proxy_status;
mod scoped;

pub(crate) use discovered::DiscoveredFilter;
pub(crate) use forward_proto::ForwardProto;
pub(crate) use proxy_status::ProxyStatus;
pub(crate) use scoped::Scopes;

/// A connection manager as a worker's connections and streams hold it: counting who uses it takes
/// no locked instruction.
#[derive(Clone, Debug)]
pub(crate) struct Manager(Rc<Held>);

#[derive(Debug)]
struct Held {
    manager: Arc<HttpConnectionManager>,
    /// What its tracing has on the worker, since it was first needed.
    traced: OnceCell<Rc<Traced>>,
}

/// What tracing has on a worker.
pub(crate) struct Traced {
    exporter: Rc<Exporter>,
    stats: TracingStats,
}

impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traced")
    }
}

impl Manager {
    /// Who reports spans.
    pub(crate) fn exporter(&self, tracing: &Tracing, worker: &Rc<Worker>) -> &Rc<Exporter> {
        &self.traced(tracing, worker).exporter
    }

    /// Stats of tracing.
    pub(crate) fn tracing_stats(&self, tracing: &Tracing, worker: &Rc<Worker>) -> &TracingStats {
        &self.traced(tracing, worker).stats
    }

    fn traced(&self, tracing: &Tracing, worker: &Rc<Worker>) -> &Traced {
        let make = || {
            let prefix = format!("http.{}.tracing.", self.stat_prefix);
            let stats = TracingStats::kept(worker.stats(), &prefix);
            Traced { exporter: worker.exporter(&tracing.tracer), stats }
        };
        self.0.traced.get_or_init(|| worker.traced(&self.0.manager, make))
    }

    /// Whether this is the same one.
    pub(crate) fn is(&self, other: &Manager) -> bool {
        Arc::ptr_eq(&self.0.manager, &other.0.manager)
    }
}

impl From<Arc<HttpConnectionManager>> for Manager {
    fn from(manager: Arc<HttpConnectionManager>) -> Self {
        Self(Rc::new(Held { manager, traced: OnceCell::new() }))
    }
}

impl Deref for Manager {
    type Target = HttpConnectionManager;

    #[inline]
    fn deref(&self) -> &HttpConnectionManager {
        &self.0.manager
    }
}

/// One HTTP connection manager: everything that a downstream HTTP connection obeys.
#[derive(Clone, Debug)]
pub(crate) struct HttpConnectionManager {
    /// Scope of its stats: `http.STAT_PREFIX.`.
    pub(crate) stat_prefix: Name,
    /// `codec_type`.
    pub(crate) codec: CodecType,
    /// Where routes come from.
    pub(crate) routes: RouteSource,
    /// The chain in order, without the terminal router.
    pub(crate) filters: Vec<ChainedFilter>,
    /// Which of them, and of `upgrade_filters`, have their configuration by ECDS.
    pub(crate) discovered: Vec<DiscoveredFilter>,
    /// Which of them want to be told of every request, and how often of those that go on.
    pub(crate) observers: Vec<(usize, Duration)>,
    /// The last of them that says what connections offer by ALPN.
    pub(crate) alpn: Option<usize>,
    /// The terminal router's settings.
    pub(crate) router: RouterConfig,
    /// `access_log`.
    pub(crate) access_logs: Vec<Arc<AccessLog>>,
    /// `tracing`, if it has a provider.
    pub(crate) tracing: Option<Arc<Tracing>>,
    /// `local_reply_config`.
    pub(crate) local_replies: Option<Arc<LocalReplies>>,
    /// `server_name`, "envoy" by default.
    pub(crate) server_name: Arc<str>,
    /// `server_header_transformation`.
    pub(crate) server_header: ServerHeader,
    /// `common_http_protocol_options.idle_timeout`, 1 h by default; `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_connection_duration`.
    pub(crate) max_connection_duration: Option<Duration>,
    /// `max_connection_duration_jitter`: up to so many percent are added to it.
    pub(crate) duration_jitter: f64,
    /// `http1_safe_max_connection_duration`: an HTTP/1 connection that is too old ends with its next
    /// response, and is not closed while it is idle.
    pub(crate) safe_max_duration: bool,
    /// `common_http_protocol_options.max_stream_duration`.
    pub(crate) max_stream_duration: Option<Duration>,
    /// `common_http_protocol_options.max_requests_per_connection`; 0: none.
    pub(crate) max_requests_per_connection: u32,
    /// `stream_idle_timeout`, 5 min by default; `None`: never.
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// `stream_flush_timeout`; `None`: as `stream_idle_timeout`; `Some(None)`: never.
    pub(crate) stream_flush_timeout: Option<Option<Duration>>,
    /// `request_timeout`; `None`: never.
    pub(crate) request_timeout: Option<Duration>,
    /// `request_headers_timeout`; `None`: never.
    pub(crate) request_headers_timeout: Option<Duration>,
    /// `delayed_close_timeout`, 1 s by default.
    pub(crate) delayed_close_timeout: Duration,
    /// `max_request_headers_kb`, bytes; 60 KiB by default.
    pub(crate) max_request_head_bytes: usize,
    /// `max_headers_count`, 100 by default.
    pub(crate) max_headers: usize,
    /// `headers_with_underscores_action`.
    pub(crate) underscores: Underscores,
    /// HTTP/1 settings.
    pub(crate) http1: Http1Settings,
    /// HTTP/2 settings.
    pub(crate) http2: Http2Settings,
    /// `stream_error_on_invalid_http_message`: an invalid HTTP/2 message ends its stream only.
    pub(crate) stream_errors: bool,
    /// `drain_timeout`, 5 s by default: between the two GOAWAYs of an HTTP/2 connection.
    pub(crate) drain_timeout: Duration,
    /// `drain_timeout_jitter`: up to so many percent are added to it.
    pub(crate) drain_jitter: f64,
    /// `use_remote_address`.
    pub(crate) use_remote_address: bool,
    /// `xff_num_trusted_hops`.
    pub(crate) xff_trusted_hops: u32,
    /// `original_ip_detection_extensions`: the first that knows decides.
    pub(crate) detections: Vec<Detection>,
    /// `early_header_mutation_extensions`.
    pub(crate) early_changes: Vec<HeaderChange>,
    /// `flush_access_log_on_new_request`.
    pub(crate) log_new_requests: bool,
    /// `access_log_flush_interval`.
    pub(crate) log_interval: Option<Duration>,
    /// `flush_log_on_tunnel_successfully_established`.
    pub(crate) log_tunnels: bool,
    /// `skip_xff_append`.
    pub(crate) skip_xff_append: bool,
    /// `internal_address_config`; `None`: RFC 1918, RFC 4193 and loopback as Envoy 1.40 defaults.
    pub(crate) internal_addresses: Option<leno_base::CidrSet>,
    /// `via`; empty: none.
    pub(crate) via: Arc<str>,
    /// `generate_request_id`.
    pub(crate) generate_request_id: bool,
    /// `preserve_external_request_id`.
    pub(crate) preserve_external_request_id: bool,
    /// `always_set_request_id_in_response`.
    pub(crate) request_id_in_response: bool,
    /// `normalize_path`.
    pub(crate) normalize_path: bool,
    /// `merge_slashes`.
    pub(crate) merge_slashes: bool,
    /// `path_with_escaped_slashes_action`.
    pub(crate) escaped_slashes: EscapedSlashes,
    /// `strip_matching_host_port` / `strip_any_host_port`.
    pub(crate) strip_port: StripPort,
    /// `strip_trailing_host_dot`.
    pub(crate) strip_trailing_dot: bool,
    /// `proxy_100_continue`.
    pub(crate) proxy_100_continue: bool,
    /// `append_x_forwarded_port`.
    pub(crate) append_forwarded_port: bool,
    /// `scheme_header_transformation.scheme_to_overwrite`.
    pub(crate) scheme_overwrite: Option<Arc<str>>,
    /// `scheme_header_transformation.match_upstream`: `:scheme` is what the endpoint is spoken to with.
    pub(crate) scheme_of_upstream: bool,
    /// `forward_proto_config`.
    pub(crate) forward_proto: Option<Box<ForwardProto>>,
    /// `proxy_status_config`.
    pub(crate) proxy_status: Option<Box<ProxyStatus>>,
    /// `append_local_overload`: answers of the overload manager say so.
    pub(crate) append_local_overload: bool,
    /// `add_proxy_protocol_connection_state`: PROXY protocol headers upstream speak of the client.
    pub(crate) announce_client: bool,
    /// `upgrade_configs`: upgrade types allowed, lower case; `CONNECT` too.
    pub(crate) upgrades: Vec<UpgradeType>,
    /// Those among them that have `filters` of their own, which take the place of the chain's.
    pub(crate) upgrade_filters: Vec<(Box<str>, Vec<ChainedFilter>)>,
    /// `add_user_agent`: set it and the downstream service cluster/node headers.
    pub(crate) add_user_agent: bool,
    /// `forward_client_cert_details` and `set_current_client_cert_details`.
    pub(crate) client_cert: ClientCertDetails,
    /// The node's id and cluster, for the headers above.
    pub(crate) service_node: Arc<str>,
    /// See `service_node`.
    pub(crate) service_cluster: Arc<str>,
}

/// `codec_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodecType {
    /// By ALPN, else by the HTTP/2 preface.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where a connection manager's routes come from.
#[derive(Clone, Debug)]
pub(crate) enum RouteSource {
    /// Inline.
    Static(Arc<RouteTable>),
    /// Inline, by what the request's headers say.
    Scoped(Arc<Scopes>),
    /// By RDS; looked up in the snapshot for each request.
    Rds {
        /// What to ask for, and where.
        table: ResourceKey,
        /// How long a listener waits for it before it serves without; `None`: for ever.
        initial_fetch_timeout: Option<Duration>,
    },
}

/// envoy.extensions.filters.http.router.v3.Router.
#[derive(Clone, Debug)]
pub(crate) struct RouterConfig {
    /// `start_child_span`: traced attempts have spans of their own.
    pub(crate) start_child_span: bool,
    /// Do not add or honour `x-envoy-*` headers.
    pub(crate) suppress_envoy_headers: bool,
    /// `respect_expected_rq_timeout`.
    pub(crate) respect_expected_timeout: bool,
    /// `dynamic_stats`: answers are counted by code, true by default.
    pub(crate) dynamic_stats: bool,
    /// `suppress_grpc_request_failure_code_stats`.
    pub(crate) suppress_grpc_code_stats: bool,
    /// `strict_check_headers`: these must be valid where they are present.
    pub(crate) strict_headers: Vec<Known>,
    /// `upstream_log`.
    pub(crate) upstream_log: Option<Arc<UpstreamLog>>,
}

impl HttpConnectionManager {
    /// What goes on beside requests for its filters, with its `stat_prefix`.
    pub(crate) fn background(&self) -> Vec<(Arc<dyn Background>, Name)> {
        let upgrades = self.upgrade_filters.iter().flat_map(|(_, filters)| filters);
        let work = self.filters.iter().chain(upgrades).flat_map(|filter| filter.config.background());
        let attempts = self.router.upstream_log.iter().flat_map(|log| &log.logs);
        let logs = self.access_logs.iter().chain(attempts).filter_map(|log| log.sender());
        let work = work.chain(logs.map(|log| -> Arc<dyn Background> { log }));
        work.map(|work| (work, self.stat_prefix.clone())).collect()
    }
}

impl RouterConfig {
    /// Whether it does the same as the other; with logs of their own, two never do.
    fn is_like(&self, other: &RouterConfig) -> bool {
        let facts = |router: &RouterConfig| {
            let RouterConfig {
                start_child_span,
                suppress_envoy_headers,
                respect_expected_timeout,
                dynamic_stats,
                suppress_grpc_code_stats,
                strict_headers,
                upstream_log,
            } = router.clone();
            let flags = [
                start_child_span,
                suppress_envoy_headers,
                respect_expected_timeout,
                dynamic_stats,
                suppress_grpc_code_stats,
            ];
            upstream_log.is_none().then_some((flags, strict_headers))
        };
        facts(self).is_some() && facts(self) == facts(other)
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            start_child_span: false,
            suppress_envoy_headers: false,
            respect_expected_timeout: false,
            dynamic_stats: true,
            suppress_grpc_code_stats: false,
            strict_headers: Vec::new(),
            upstream_log: None,
        }
    }
}

/// `server_header_transformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerHeader {
    /// Always `server_name`.
    Overwrite,
    /// `server_name` unless upstream sent one.
    AppendIfAbsent,
    /// As upstream sent it, or none.
    PassThrough,
}

/// `headers_with_underscores_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underscores {
    /// As any other.
    Allow,
    /// 400.
    Reject,
    /// Removed.
    Drop,
}

/// `path_with_escaped_slashes_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EscapedSlashes {
    /// Untouched (also IMPLEMENTATION_SPECIFIC_DEFAULT).
    Keep,
    /// 400.
    Reject,
    /// Unescaped, and 307 to the new path.
    UnescapeRedirect,
    /// Unescaped and forwarded.
    UnescapeForward,
}

/// Port stripping from `:authority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StripPort {
    /// Kept.
    No,
    /// Removed if it is the listener's.
    Matching,
    /// Removed always.
    Any,
}

/// One entry of `upgrade_configs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpgradeType {
    /// Lower case, e.g. `websocket`, `connect`.
    pub(crate) name: Box<str>,
    /// `enabled`, true by default.
    pub(crate) enabled: bool,
    /// `connect_config` of a route: a CONNECT ends here, its bytes go to the endpoint.
    pub(crate) connect: Option<ConnectConfig>,
}

/// ConnectConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectConfig {
    /// `proxy_protocol_config.version`.
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    /// `allow_post`: POST too.
    pub(crate) allow_post: bool,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyProtocol {
    /// The text.
    V1,
    /// The bytes.
    V2,
}

/// Http1ProtocolOptions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Http1Settings {
    /// `accept_http_10`.
    pub(crate) accept_http_10: bool,
    /// `default_host_for_http_10`.
    pub(crate) default_host: Option<Arc<str>>,
    /// `allow_absolute_url`, true by default.
    pub(crate) allow_absolute_url: bool,
    /// `enable_trailers`.
    pub(crate) enable_trailers: bool,
    /// `override_stream_error_on_invalid_http_message`, else the connection manager's
    /// `stream_error_on_invalid_http_message`: 400 does not close the connection.
    pub(crate) stream_error: bool,
    /// `allow_chunked_length`.
    pub(crate) allow_chunked_length: bool,
    /// `header_key_format.proper_case_words`.
    pub(crate) proper_case: bool,
    /// `stateful_formatter` preserve_case.
    pub(crate) keep_case: Option<KeepCase>,
    /// `send_fully_qualified_url`, of a cluster.
    pub(crate) whole_url: bool,
    /// `allow_custom_methods`.
    pub(crate) custom_methods: bool,
    /// `ignore_http_11_upgrade`: upgrades to these are not asked for; `None`: none.
    pub(crate) ignored_upgrades: Option<Arc<Vec<StringMatcher>>>,
}
