//! Routes: which virtual host and route a request takes, and what the route says.
//!
//! `RouteTable::find` is the only entry. Tables are lowered once (`config`), immutable and
//! shared by all workers. Reading order: this file (the types), `table` (finding), `domains`,
//! `discovered` (hosts that come one by one), `matcher`, `mutation` (header rules), `config` (lowering).

use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;
use regex::bytes::Regex;

use crate::cluster::Metadata;
use crate::cluster::lb::metadata::MetadataMatch;
use crate::http::filters::RouteOverrides;
use crate::http::headers::HeaderMap;
use crate::http::route::hash_policy::HashPolicies;
use crate::http::route::mutation::{HeaderChange, HeaderMutations};
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::stream_info::RouteNames;
use crate::telemetry::trace::{Decorator, RouteTracing};

pub(crate) mod config;
pub(crate) mod discovered;
mod domains;
mod filters;
pub(crate) mod hash_policy;
pub(crate) mod matcher;
pub(crate) mod mutation;
pub(crate) mod policy;
pub(crate) mod rate_limit;
pub(crate) mod table;

pub(crate) use table::{MatchContext, RouteTable};

/// A matched route with what weighted choices were made for this request.
/// A worker shares it between the requests that are served alike (`Worker::select`).
#[derive(Debug)]
pub(crate) struct Selected {
    /// The virtual host.
    pub(crate) virtual_host: Arc<VirtualHost>,
    /// The route.
    pub(crate) route: Arc<Route>,
    /// Index into the route's weighted clusters, if it has some.
    pub(crate) weighted: Option<usize>,
    /// What both are called, for logs.
    pub(crate) names: Rc<RouteNames>,
}

/// The same as it is found: in the route table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'t> {
    /// See `Selected::virtual_host`.
    pub(crate) virtual_host: &'t Arc<VirtualHost>,
    /// See `Selected::route`.
    pub(crate) route: &'t Arc<Route>,
    /// See `Selected::weighted`.
    pub(crate) weighted: Option<usize>,
}

impl Found<'_> {
    /// Whether this is what was selected there.
    pub(crate) fn is(&self, selected: &Selected) -> bool {
        Arc::ptr_eq(self.route, &selected.route)
            && Arc::ptr_eq(self.virtual_host, &selected.virtual_host)
            && self.weighted == selected.weighted
    }

    /// Takes it out of the table.
    pub(crate) fn select(&self) -> Selected {
        let names =
            RouteNames { route: self.route.name.clone(), virtual_host: self.virtual_host.name.clone() };
        Selected {
            virtual_host: Arc::clone(self.virtual_host),
            route: Arc::clone(self.route),
            weighted: self.weighted,
            names: Rc::new(names),
        }
    }
}

impl Selected {
    /// Per-route filter settings, the most specific ones.
    pub(crate) fn overrides(&self) -> &RouteOverrides {
        self.weighted_cluster().map_or(&self.route.overrides, |cluster| &cluster.overrides)
    }

    /// The weighted cluster that was chosen, if the route has some.
    pub(crate) fn weighted_cluster(&self) -> Option<&WeightedCluster> {
        let Action::Forward(forward) = &self.route.action else { return None };
        let ClusterChoice::Weighted { clusters, .. } = &forward.cluster else { return None };
        clusters.get(self.weighted?)
    }

    /// The name of the cluster that a request with this head goes to, if it goes to one.
    pub(crate) fn cluster<'a>(&'a self, head: &'a HeaderMap) -> Option<&'a str> {
        let Action::Forward(forward) = &self.route.action else { return None };
        match &forward.cluster {
            ClusterChoice::Name(name) => Some(name),
            ClusterChoice::Weighted { clusters, .. } => match &clusters.get(self.weighted?)?.cluster {
                WeightedTarget::Name(name) => Some(name),
                WeightedTarget::Header(name) => std::str::from_utf8(head.find(name)?).ok(),
            },
            ClusterChoice::Header(name) => std::str::from_utf8(head.find(name)?).ok(),
        }
    }

    /// What the endpoint's metadata must be, as far as the route says.
    pub(crate) fn metadata_match(&self) -> Option<&MetadataMatch> {
        let Action::Forward(forward) = &self.route.action else { return None };
        match (&forward.cluster, self.weighted) {
            (ClusterChoice::Weighted { clusters, .. }, Some(index)) => {
                clusters.get(index)?.metadata_match.as_deref()
            }
            _ => forward.metadata_match.as_deref(),
        }
    }
}

/// What virtual host, route and redirect levels have in common: a virtual host's settings.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    /// `name`.
    pub(crate) name: Name,
    /// `require_tls`.
    pub(crate) require_tls: RequireTls,
    /// `include_request_attempt_count`.
    pub(crate) include_request_attempt_count: bool,
    /// `include_attempt_count_in_response`.
    pub(crate) include_attempt_count_in_response: bool,
    /// `include_is_timeout_retry_header`.
    pub(crate) include_is_timeout_retry: bool,
    /// `rate_limits`
    pub(crate) rate_limits: Vec<rate_limit::RateLimit>,
    /// `virtual_clusters`, and the one for all other requests; empty: there are none.
    pub(crate) virtual_clusters: Vec<VirtualCluster>,
}

/// A VirtualCluster: requests whose answers are counted on their own.
#[derive(Debug)]
pub(crate) struct VirtualCluster {
    /// `name`; `None`: what no other matches.
    pub(crate) name: Option<Name>,
    /// All must match.
    pub(crate) headers: Vec<matcher::HeaderMatcher>,
    /// `vhost.NAME.vcluster.NAME.`
    pub(crate) scope: Name,
}

impl VirtualHost {
    /// The virtual cluster of a request; `None`: there are none.
    pub(crate) fn virtual_cluster(&self, head: &HeaderMap) -> Option<&VirtualCluster> {
        self.virtual_clusters.iter().find(|cluster| cluster.headers.iter().all(|header| header.matches(head)))
    }
}

/// `require_tls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequireTls {
    /// No.
    None,
    /// Requests from outside only.
    ExternalOnly,
    /// All requests.
    All,
}

/// One route.
#[derive(Debug)]
pub(crate) struct Route {
    /// `name`.
    pub(crate) name: Name,
    /// What is done with a request that matches.
    pub(crate) action: Action,
    /// Request header rules of route, virtual host and table, in the order of application
    /// (most specific first unless `most_specific_header_mutations_wins`).
    pub(crate) request_headers: Vec<Arc<HeaderMutations>>,
    /// Response header rules, likewise.
    pub(crate) response_headers: Vec<Arc<HeaderMutations>>,
    /// Filter settings of this route, on top of the virtual host's and the table's.
    pub(crate) overrides: RouteOverrides,
    /// `per_request_buffer_limit_bytes` / `request_body_buffer_limit`.
    pub(crate) buffer_limit: Option<u64>,
    /// `metadata`.
    pub(crate) metadata: Option<Metadata>,
    /// `stat_prefix`: `vhost.NAME.route.PREFIX.`
    pub(crate) stat_scope: Option<Name>,
    /// `tracing`
    pub(crate) tracing: Option<Box<RouteTracing>>,
    /// `decorator`
    pub(crate) decorator: Option<Box<Decorator>>,
}

/// What is done with a matched request.
#[derive(Debug)]
pub(crate) enum Action {
    /// Forwarded to a cluster.
    Forward(Box<Forward>),
    /// Answered with a redirect.
    Redirect(Redirect),
    /// Answered by the proxy.
    Direct {
        /// Status code.
        status: u16,
        /// Body.
        body: bytes::Bytes,
        /// `body_format`: how the body is made.
        format: Option<Box<BodyFormat>>,
    },
    /// `non_forwarding_action`: answered by a filter; else 404.
    NonForwarding,
}

/// RouteAction, lowered.
#[derive(Debug)]
pub(crate) struct Forward {
    /// Which cluster.
    pub(crate) cluster: ClusterChoice,
    /// `cluster_not_found_response_code`, 503 by default.
    pub(crate) cluster_not_found_status: u16,
    /// `prefix_rewrite` with the matched length, `regex_rewrite`, or `path_rewrite`.
    pub(crate) path_rewrite: PathRewrite,
    /// Host rewriting.
    pub(crate) host_rewrite: HostRewrite,
    /// `append_x_forwarded_host`.
    pub(crate) append_forwarded_host: bool,
    /// `rate_limits`
    pub(crate) rate_limits: Vec<rate_limit::RateLimit>,
    /// `include_vh_rate_limits`
    pub(crate) include_host_rate_limits: bool,
    /// `timeout`, 15 s by default; `None`: none. With `max_stream_duration` there is none.
    pub(crate) timeout: Option<Duration>,
    /// The deprecated `max_grpc_timeout`, without `max_stream_duration`: `grpc-timeout` stands in
    /// for `timeout`; `Some(None)`: unlimited.
    pub(crate) max_grpc_timeout: Option<Option<Duration>>,
    /// The deprecated `grpc_timeout_offset`.
    pub(crate) grpc_timeout_offset: Duration,
    /// `idle_timeout`: `Some(None)` switches the stream idle timeout off.
    pub(crate) idle_timeout: Option<Option<Duration>>,
    /// `flush_timeout`; `Some(None)`: no limit.
    pub(crate) flush_timeout: Option<Option<Duration>>,
    /// `max_stream_duration.max_stream_duration`; `Some(None)`: no limit.
    pub(crate) max_stream_duration: Option<Option<Duration>>,
    /// `max_stream_duration.grpc_timeout_header_max`; `Some(None)`: header taken as it is.
    pub(crate) grpc_timeout_max: Option<Option<Duration>>,
    /// `max_stream_duration.grpc_timeout_header_offset`.
    pub(crate) grpc_header_offset: Duration,
    /// `hash_policy`, for hashing balancers.
    pub(crate) hash: Option<HashPolicies>,
    /// `metadata_match`: what the endpoint's metadata must be.
    pub(crate) metadata_match: Option<Box<MetadataMatch>>,
    /// The route's retry policy, else the virtual host's.
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    /// `request_mirror_policies` of the route, else of the virtual host, else of the table.
    pub(crate) mirrors: Vec<Arc<Mirror>>,
    /// `internal_redirect_policy`.
    pub(crate) redirects: Option<Box<InternalRedirects>>,
    /// `hedge_policy.hedge_on_per_try_timeout` of the route, else of the virtual host.
    pub(crate) hedge_on_per_try_timeout: bool,
    /// `priority`: high?
    pub(crate) high_priority: bool,
    /// `upgrade_configs` of the route: lower-case type → enabled.
    pub(crate) upgrades: Vec<crate::http::config::UpgradeType>,
}

/// Which cluster a request goes to.
#[derive(Debug)]
pub(crate) enum ClusterChoice {
    /// Always this one.
    Name(Name),
    /// By weight.
    Weighted {
        /// The clusters.
        clusters: Vec<WeightedCluster>,
        /// Sum of weights, at least 1.
        total: u64,
        /// `header_name`: the request header whose number chooses, instead of a random one.
        random_header: Option<Name>,
    },
    /// The value of this (lower-case) request header.
    Header(Name),
}

/// One weighted cluster.
#[derive(Debug)]
pub(crate) struct WeightedCluster {
    /// The cluster.
    pub(crate) cluster: WeightedTarget,
    /// Its share of `total`.
    pub(crate) weight: u64,
    /// `metadata_match`, on top of the route's.
    pub(crate) metadata_match: Option<Box<MetadataMatch>>,
    /// Header rules that apply before the route's.
    pub(crate) request_headers: Arc<HeaderMutations>,
    /// Likewise for responses.
    pub(crate) response_headers: Arc<HeaderMutations>,
    /// `host_rewrite_literal`.
    pub(crate) host_rewrite: Option<Box<str>>,
    /// Filter settings of this cluster on top of the route's: they replace the route's overrides.
    pub(crate) overrides: RouteOverrides,
}

/// Which cluster a weighted cluster is.
#[derive(Debug)]
pub(crate) enum WeightedTarget {
    /// Always this one.
    Name(Name),
    /// The value of this (lower-case) request header.
    Header(Name),
}

/// SubstitutionFormatString of a body.
#[derive(Debug)]
pub(crate) struct BodyFormat {
    /// The format.
    pub(crate) format: LogFormat,
    /// `content_type`, else what the format is.
    pub(crate) content_type: Box<str>,
}

/// How the path is rewritten when forwarding.
#[derive(Debug)]
pub(crate) enum PathRewrite {
    /// Not at all.
    None,
    /// The matched prefix (or path) of `matched` bytes is replaced.
    Prefix {
        /// Length of what the route matched; `usize::MAX`: the whole path, without query.
        matched: usize,
        /// What replaces it.
        with: Box<str>,
    },
    /// All matches in the path (without query) are replaced.
    Regex {
        /// Pattern.
        pattern: Regex,
        /// Substitution in RE2 syntax, translated (`\1` → `${1}`).
        with: Box<str>,
    },
    /// `path_rewrite`: what this format yields, query included.
    Format(Format),
}

/// How `:authority` is rewritten when forwarding.
#[derive(Debug)]
pub(crate) enum HostRewrite {
    /// Not at all.
    None,
    /// To this text.
    Literal(Box<str>),
    /// To the endpoint's hostname (`auto_host_rewrite`).
    Auto,
    /// To the value of this header.
    Header(Name),
    /// From the path (without query) by a regex.
    PathRegex {
        /// Pattern.
        pattern: Regex,
        /// Substitution.
        with: Box<str>,
    },
    /// `host_rewrite`: what this format yields.
    Format(Format),
}

/// RedirectAction, lowered.
#[derive(Debug)]
pub(crate) struct Redirect {
    /// `https_redirect` or `scheme_redirect`.
    pub(crate) scheme: Option<Box<str>>,
    /// `host_redirect`.
    pub(crate) host: Option<Box<str>>,
    /// `port_redirect`.
    pub(crate) port: Option<u16>,
    /// `path_redirect` (which may carry a query).
    pub(crate) path: Option<Box<str>>,
    /// `prefix_rewrite` or `regex_rewrite`.
    pub(crate) rewrite: PathRewrite,
    /// 301, 302, 303, 307 or 308.
    pub(crate) status: u16,
    /// `strip_query`.
    pub(crate) strip_query: bool,
}

/// RequestMirrorPolicy.
#[derive(Debug)]
pub(crate) struct Mirror {
    /// Shadow cluster by name, or by request header.
    pub(crate) cluster: ClusterChoice,
    /// `runtime_fraction`: (numerator, denominator); all by default.
    pub(crate) fraction: (u32, u32),
    /// Whether `-shadow` is appended to the host.
    pub(crate) host_suffix: bool,
    /// `host_rewrite_literal`.
    pub(crate) host_rewrite: Option<Box<str>>,
    /// `trace_sampled`: the shadow is told that it is sampled if the request is.
    pub(crate) sampled: bool,
    /// `request_headers_mutations`.
    pub(crate) changes: Vec<HeaderChange>,
}

/// RetryPolicy, lowered.
#[derive(Debug)]
pub(crate) struct RetryPolicy {
    /// HTTP and gRPC conditions.
    pub(crate) on: RetryOn,
    /// `num_retries`, 1 by default.
    pub(crate) max_retries: u32,
    /// `per_try_timeout`.
    pub(crate) per_try_timeout: Option<Duration>,
    /// `per_try_idle_timeout`.
    pub(crate) per_try_idle_timeout: Option<Duration>,
    /// `retriable_status_codes`.
    pub(crate) status_codes: Vec<u16>,
    /// `retriable_headers` of the response.
    pub(crate) headers: Vec<matcher::HeaderMatcher>,
    /// `retriable_request_headers`: one must match, if any is given.
    pub(crate) request_headers: Vec<matcher::HeaderMatcher>,
    /// `retry_back_off`: base (25 ms by default) and max (10 × base).
    pub(crate) back_off: (Duration, Duration),
    /// `rate_limited_retry_back_off`.
    pub(crate) rate_limited: Option<RateLimited>,
    /// `retry_host_predicate`.
    pub(crate) omit: Vec<OmitHost>,
    /// `host_selection_retry_max_attempts`, 1 by default.
    pub(crate) host_selection_attempts: u32,
    /// `retry_priority`: previous_priorities, with its `update_frequency`.
    pub(crate) previous_priorities: Option<NonZeroU32>,
}

/// Which endpoints a retry keeps off.
#[derive(Debug)]
pub(crate) enum OmitHost {
    /// previous_hosts: those that were tried.
    Previous,
    /// omit_canary_hosts: those with `canary` in their metadata.
    Canary,
    /// omit_host_metadata: those whose `envoy.lb` metadata has all of these.
    Metadata(Vec<(String, serde_json::Value)>),
}

/// RateLimitedRetryBackOff.
#[derive(Debug)]
pub(crate) struct RateLimited {
    /// Response headers that say how long to wait, the first that does decides.
    pub(crate) headers: Vec<ResetHeader>,
    /// Longer waits are not believed; 5 min by default.
    pub(crate) max: Duration,
}

/// ResetHeader.
#[derive(Debug)]
pub(crate) struct ResetHeader {
    /// Lower case.
    pub(crate) name: Name,
    /// Seconds since 1970 instead of seconds from now.
    pub(crate) unix_timestamp: bool,
}

/// InternalRedirectPolicy.
#[derive(Debug)]
pub(crate) struct InternalRedirects {
    /// `max_internal_redirects`, 1 by default.
    pub(crate) max: u32,
    /// `redirect_response_codes`, 302 alone by default.
    pub(crate) codes: Vec<u16>,
    /// `allow_cross_scheme_redirect`.
    pub(crate) cross_scheme: bool,
    /// `predicates`, all of which must accept.
    pub(crate) predicates: Vec<RedirectPredicate>,
    /// `response_headers_to_copy`; lower case.
    pub(crate) copied: Vec<Name>,
}

/// What a target route of an internal redirect must be.
#[derive(Debug)]
pub(crate) enum RedirectPredicate {
    /// previous_routes: none that a redirect has come by.
    Previous,
    /// allow_listed_routes: one of these.
    Listed(Vec<Name>),
    /// safe_cross_scheme: https does not become http or the other way round, unless safely.
    SafeCrossScheme,
}

/// `retry_on`, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryOn(pub(crate) u32);

#[allow(missing_docs, reason = "the names are Envoy's retry_on conditions")]
impl RetryOn {
    pub(crate) const SERVER_ERROR: RetryOn = RetryOn(1);
    pub(crate) const GATEWAY_ERROR: RetryOn = RetryOn(1 << 1);
    pub(crate) const RESET: RetryOn = RetryOn(1 << 2);
    pub(crate) const RESET_BEFORE_REQUEST: RetryOn = RetryOn(1 << 3);
    pub(crate) const CONNECT_FAILURE: RetryOn = RetryOn(1 << 4);
    pub(crate) const ENVOY_RATELIMITED: RetryOn = RetryOn(1 << 5);
    pub(crate) const RETRIABLE_4XX: RetryOn = RetryOn(1 << 6);
    pub(crate) const REFUSED_STREAM: RetryOn = RetryOn(1 << 7);
    pub(crate) const RETRIABLE_STATUS_CODES: RetryOn = RetryOn(1 << 8);
    pub(crate) const RETRIABLE_HEADERS: RetryOn = RetryOn(1 << 9);
    pub(crate) const HTTP3_POST_CONNECT_FAILURE: RetryOn = RetryOn(1 << 10);
    pub(crate) const GRPC_CANCELLED: RetryOn = RetryOn(1 << 11);
    pub(crate) const GRPC_DEADLINE_EXCEEDED: RetryOn = RetryOn(1 << 12);
    pub(crate) const GRPC_INTERNAL: RetryOn = RetryOn(1 << 13);
    pub(crate) const GRPC_RESOURCE_EXHAUSTED: RetryOn = RetryOn(1 << 14);
    pub(crate) const GRPC_UNAVAILABLE: RetryOn = RetryOn(1 << 15);

    /// Whether any condition of `other` is in the set.
    pub(crate) fn intersects(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }

    /// The conditions that are in both sets.
    pub(crate) fn intersection(self, other: RetryOn) -> RetryOn {
        RetryOn(self.0 & other.0)
    }

    /// What `x-envoy-retry-grpc-on` can ask for; `x-envoy-retry-on` all else.
    pub(crate) const GRPC: RetryOn = RetryOn(0b11111 << 11);
    pub(crate) const HTTP: RetryOn = RetryOn((1 << 11) - 1);

    /// Both sets together.
    pub(crate) fn union(self, other: RetryOn) -> RetryOn {
        RetryOn(self.0 | other.0)
    }
}
