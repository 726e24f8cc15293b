//! Whether a request is tried again: Envoy's retry conditions, limits and back-off.
//!
//! Deviation: besides the policy, a request is replayed once, at once and without counting as a
//! retry, if the endpoint cannot have acted on it (`Untouched`): a kept connection broke before
//! a byte of it was sent, HTTP/2 refused the stream, or, for methods that are safe (RFC 9110
//! section 9.2.1), a kept connection closed without a byte of an answer. The last is the race
//! of an idle timeout with a new request, which Envoy lets its users see as `503 UC`.
//!
//! The replay goes by a fresh connection: kept ones often close together, and it must suffice.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::cluster::stats::{ClusterStats, Permit, Resource};
use crate::http::codec::ResetReason;
use crate::http::codec::side::Untouched;
use crate::http::config::RouterConfig;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::policy::retry_on;
use crate::http::route::{RetryOn, RetryPolicy};

/// What a failed attempt leads to.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is tried again after this wait; the permit counts it as a retry under way.
    Retry(Duration, Permit),
    /// No condition covers it.
    No,
    /// All retries are used up (`URX`).
    LimitExceeded,
    /// Too many retries are under way in the cluster (`UO`).
    Overflow,
}

/// What can still be tried for one request.
#[derive(Debug)]
pub(crate) struct Retries {
    on: RetryOn,
    left: u32,
    done: u32,
    policy: Option<Arc<RetryPolicy>>,
    status_codes: Vec<u16>,
    header_names: Vec<Box<str>>,
    replayed: bool,
    safe: bool,
}

impl Retries {
    /// From the route's policy and the request's own headers, which are consumed.
    pub(crate) fn new(
        policy: Option<&Arc<RetryPolicy>>,
        config: &RouterConfig,
        head: &mut HeaderMap,
    ) -> Self {
        let safe = matches!(head.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE");
        let policy = policy.filter(|policy| {
            policy.request_headers.is_empty()
                || policy.request_headers.iter().any(|matcher| matcher.matches(head))
        });
        let mut retries = Self {
            on: policy.map(|policy| policy.on).unwrap_or_default(),
            left: policy.map_or(1, |policy| policy.max_retries),
            done: 0,
            policy: policy.cloned(),
            status_codes: Vec::new(),
            header_names: Vec::new(),
            replayed: false,
            safe,
        };
        if !config.suppress_envoy_headers {
            retries.read_headers(head);
        }
        retries
    }

    fn read_headers(&mut self, head: &mut HeaderMap) {
        for name in [Known::EnvoyRetryOn, Known::EnvoyRetryGrpcOn] {
            if let Some(text) = head.get_str(name) {
                self.on = self.on.union(retry_on(text));
                head.remove(name);
            }
        }
        if self.on != RetryOn::default()
            && let Some(limit) = head.get_str(Known::EnvoyMaxRetries).and_then(|text| text.parse().ok())
        {
            self.left = limit;
        }
        if let Some(text) = head.get_str(Known::EnvoyRetriableStatusCodes) {
            self.status_codes.extend(text.split(',').filter_map(|code| code.trim().parse::<u16>().ok()));
        }
        if let Some(text) = head.get_str(Known::EnvoyRetriableHeaderNames) {
            self.header_names.extend(text.split(',').map(|name| name.trim().to_ascii_lowercase().into()));
        }
        for name in [
            Known::EnvoyMaxRetries,
            Known::EnvoyRetriableStatusCodes,
            Known::EnvoyRetriableHeaderNames,
            Known::EnvoyHedgeOnPerTryTimeout,
        ] {
            head.remove(name);
        }
    }

    /// Whether there is any condition: only then is a body kept for retries.
    pub(crate) fn enabled(&self) -> bool {
        self.on != RetryOn::default()
    }

    /// Retries made so far.
    pub(crate) fn done(&self) -> u32 {
        self.done
    }

    /// Endpoints that were tried are avoided, with so many attempts to find another.
    pub(crate) fn avoid_attempts(&self) -> Option<u32> {
        let policy = self.policy.as_ref().filter(|policy| policy.previous_hosts)?;
        Some(policy.host_selection_attempts)
    }

    /// Whether a broken attempt is replayed at once; see the module's text.
    pub(crate) fn replay(&mut self, untouched: Untouched) -> bool {
        let replay = !self.replayed
            && match untouched {
                Untouched::Surely => true,
                Untouched::Likely => self.safe,
                Untouched::No => false,
            };
        self.replayed |= replay;
        replay
    }

    /// Whether the request was replayed; its attempts keep off kept connections from then on.
    pub(crate) fn replayed(&self) -> bool {
        self.replayed
    }

    /// After a reset; `started`: a byte of the request was sent.
    pub(crate) fn on_reset(&mut self, reason: ResetReason, started: bool) -> bool {
        if reason == ResetReason::Overflow {
            return false;
        }
        let any = RetryOn::RESET.union(RetryOn::SERVER_ERROR).union(RetryOn::GATEWAY_ERROR);
        self.on.intersects(any)
            || (reason == ResetReason::RemoteRefused && self.on.intersects(RetryOn::REFUSED_STREAM))
            || (!started && self.on.intersects(RetryOn::RESET_BEFORE_REQUEST))
            || (reason.is_connect_failure() && self.on.intersects(RetryOn::CONNECT_FAILURE))
    }

    /// After an attempt that took too long.
    pub(crate) fn on_timeout(&self) -> bool {
        let any = RetryOn::RESET.union(RetryOn::SERVER_ERROR).union(RetryOn::GATEWAY_ERROR);
        self.on.intersects(any)
    }

    /// After a response head.
    pub(crate) fn on_response(&self, head: &HeaderMap) -> bool {
        if !self.enabled() {
            return false;
        }
        if head.contains(Known::EnvoyRateLimited) {
            return self.on.intersects(RetryOn::ENVOY_RATELIMITED);
        }
        let status = head.status();
        let policy_codes = self.policy.as_ref().map(|policy| &policy.status_codes[..]).unwrap_or_default();
        let policy_headers = self.policy.as_ref().map(|policy| &policy.headers[..]).unwrap_or_default();
        (self.on.intersects(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (self.on.intersects(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (self.on.intersects(RetryOn::RETRIABLE_4XX) && status == 409)
            || (self.on.intersects(RetryOn::RETRIABLE_STATUS_CODES)
                && (policy_codes.contains(&status) || self.status_codes.contains(&status)))
            || (self.on.intersects(RetryOn::RETRIABLE_HEADERS)
                && (policy_headers.iter().any(|matcher| matcher.matches(head))
                    || self.header_names.iter().any(|name| head.find(name).is_some())))
            || self.on_grpc(head)
    }

    fn on_grpc(&self, head: &HeaderMap) -> bool {
        let condition = match head.get_str(Known::GrpcStatus) {
            Some("1") => RetryOn::GRPC_CANCELLED,
            Some("4") => RetryOn::GRPC_DEADLINE_EXCEEDED,
            Some("8") => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            Some("13") => RetryOn::GRPC_INTERNAL,
            Some("14") => RetryOn::GRPC_UNAVAILABLE,
            _ => return false,
        };
        self.on.intersects(condition)
    }

    /// Takes one retry, if the limits allow it. `wanted`: a condition covers the failure.
    pub(crate) fn take(
        &mut self,
        wanted: bool,
        cluster: &Arc<Cluster>,
        stats: &ClusterStats,
        high_priority: bool,
        random: u64,
    ) -> Verdict {
        if !wanted {
            return Verdict::No;
        }
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded().inc();
            return Verdict::LimitExceeded;
        }
        let Some(permit) = Permit::take(cluster, Resource::Retries, high_priority) else {
            stats.upstream_rq_retry_overflow().inc();
            return Verdict::Overflow;
        };
        self.left -= 1;
        let wait = self.back_off(random);
        self.done += 1;
        stats.upstream_rq_retry().inc();
        stats.upstream_rq_retry_backoff_exponential().inc();
        Verdict::Retry(wait, permit)
    }

    /// Full jitter: uniform below `base * 2^n`, at most `max`.
    fn back_off(&self, random: u64) -> Duration {
        let default = (Duration::from_millis(25), Duration::from_millis(250));
        let (base, max) = self.policy.as_ref().map_or(default, |policy| policy.back_off);
        let ceiling = base.saturating_mul(1 << self.done.min(20)).min(max);
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(random % millis)
    }
}
