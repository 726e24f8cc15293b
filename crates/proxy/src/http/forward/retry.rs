//! Whether a request is tried again: Envoy's retry conditions, limits and back-off.
//!
//! Deviation: besides the policy, a request is replayed once, at once and without counting as a
//! retry, if the endpoint cannot have acted on it (`Untouched`): a kept connection broke before
//! a byte of it was sent, HTTP/2 refused the stream, or, for methods that are safe (RFC 9110
//! section 9.2.1), a kept connection closed without a byte of an answer. The last is the race
//! of an idle timeout with a new request, which Envoy lets its users see as `503 UC`.
//!
//! The replay goes by a fresh connection: kept ones often close together, and it must suffice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use crate::cluster::Cluster;
use crate::cluster::stats::{ClusterStats, Permit, Resource};
use crate::cluster::worker_cluster::Host;
use crate::http::codec::ResetReason;
use crate::http::codec::side::Untouched;
use crate::http::forward::count::Scopes;
use crate::http::headers::{HeaderMap, Known, KnownSet};
use crate::http::route::policy::retry_on;
use crate::http::route::{OmitHost, ResetHeader, RetryOn, RetryPolicy};

/// Request headers that are for retries alone.
const REQUEST_HEADERS: KnownSet = KnownSet::of(&[
    Known::EnvoyRetryOn,
    Known::EnvoyRetryGrpcOn,
    Known::EnvoyMaxRetries,
    Known::EnvoyRetriableStatusCodes,
    Known::EnvoyRetriableHeaderNames,
    Known::EnvoyHedgeOnPerTryTimeout,
]);

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
pub(crate) struct Retries<'p> {
    on: RetryOn,
    left: u32,
    done: u32,
    policy: Option<&'p RetryPolicy>,
    /// What the request itself adds to the policy.
    asked: Option<Box<Asked>>,
    /// How long the last response asks to wait.
    reset: Option<Duration>,
    replayed: bool,
    safe: bool,
    /// With previous_priorities: those of the hosts that were tried.
    attempted: SmallVec<[u32; 4]>,
    /// Of them, those that the next attempt keeps off.
    excluded: SmallVec<[u32; 4]>,
}

/// The request headers `x-envoy-retriable-...`.
#[derive(Debug, Default)]
struct Asked {
    status_codes: Vec<u16>,
    header_names: Vec<Box<str>>,
}

impl<'p> Retries<'p> {
    /// From the route's policy and the request's own headers, which are consumed.
    pub(crate) fn new(policy: Option<&'p RetryPolicy>, head: &mut HeaderMap) -> Self {
        let mut retries = Self {
            on: policy.map(|policy| policy.on).unwrap_or_default(),
            left: policy.map_or(1, |policy| policy.max_retries),
            done: 0,
            policy,
            asked: None,
            reset: None,
            replayed: false,
            safe: matches!(head.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE"),
            attempted: SmallVec::new(),
            excluded: SmallVec::new(),
        };
        // Few requests say anything of the kind.
        if head.contains_any(REQUEST_HEADERS) {
            retries.read_headers(head);
        }
        let wanted = |policy: &RetryPolicy| {
            policy.request_headers.is_empty()
                || policy.request_headers.iter().any(|matcher| matcher.matches(head))
        };
        if policy.is_some_and(|policy| !wanted(policy)) {
            retries.on = RetryOn::default();
        }
        retries
    }

    fn read_headers(&mut self, head: &mut HeaderMap) {
        for (name, of) in [(Known::EnvoyRetryOn, RetryOn::HTTP), (Known::EnvoyRetryGrpcOn, RetryOn::GRPC)] {
            if let Some(text) = head.get_str(name) {
                self.on = self.on.union(retry_on(text).intersection(of));
            }
        }
        if self.on != RetryOn::default()
            && let Some(limit) = head.get_str(Known::EnvoyMaxRetries).and_then(|text| text.parse().ok())
        {
            self.left = limit;
        }
        if let Some(text) = head.get_str(Known::EnvoyRetriableStatusCodes) {
            let codes = text.split(',').filter_map(|code| code.trim().parse::<u16>().ok());
            self.asked.get_or_insert_default().status_codes.extend(codes);
        }
        if let Some(text) = head.get_str(Known::EnvoyRetriableHeaderNames) {
            let names = text.split(',').map(|name| name.trim().to_ascii_lowercase().into());
            self.asked.get_or_insert_default().header_names.extend(names);
        }
        head.remove_set(REQUEST_HEADERS);
    }

    /// Whether there is any condition: only then is a body kept for retries.
    pub(crate) fn enabled(&self) -> bool {
        self.on != RetryOn::default()
    }

    /// Whether a retry keeps off this endpoint; `tried`: those that were.
    pub(crate) fn omits(&self, host: &Host, tried: &[SocketAddr]) -> bool {
        let Some(policy) = self.policy else { return false };
        let metadata = || host.config.metadata.get("envoy.lb");
        policy.omit.iter().any(|omit| match omit {
            OmitHost::Previous => host.address.is_some_and(|address| tried.contains(&address)),
            OmitHost::Canary => host.is_canary(),
            OmitHost::Metadata(labels) => {
                let has = |(key, value): &(String, _)| metadata().and_then(|of| of.get(key)) == Some(value);
                !labels.is_empty() && labels.iter().all(has)
            }
        })
    }

    /// `host_selection_retry_max_attempts`: further tries to find an endpoint that is not omitted.
    pub(crate) fn host_selection_attempts(&self) -> u32 {
        let policy = self.policy.filter(|policy| !policy.omit.is_empty());
        policy.map_or(0, |policy| policy.host_selection_attempts)
    }

    /// A host of this priority was chosen.
    pub(crate) fn attempted(&mut self, priority: u32) {
        if self.policy.is_some_and(|policy| policy.previous_priorities.is_some()) {
            self.attempted.push(priority);
        }
    }

    /// Before another attempt: with previous_priorities, what was tried is excluded after every
    /// `update_frequency` attempts. `available`: the priorities of hosts that can be had; when
    /// none is left, all begins anew.
    pub(crate) fn exclude_priorities(&mut self, available: impl FnOnce() -> Vec<u32>) {
        let Some(every) = self.policy.and_then(|policy| policy.previous_priorities) else { return };
        let count = u32::try_from(self.attempted.len()).unwrap_or(u32::MAX);
        if count == 0 || !count.is_multiple_of(every.get()) {
            return;
        }
        self.excluded.extend(self.attempted.iter().copied());
        self.excluded.sort_unstable();
        self.excluded.dedup();
        if available().iter().all(|priority| self.excluded.contains(priority)) {
            self.attempted.clear();
            self.excluded.clear();
        }
    }

    /// The priorities that the next attempt keeps off.
    pub(crate) fn excluded_priorities(&self) -> &[u32] {
        let count = u32::try_from(self.attempted.len()).unwrap_or(u32::MAX);
        let every = self.policy.and_then(|policy| policy.previous_priorities);
        if every.is_some_and(|every| count < every.get()) { &[] } else { &self.excluded }
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

    /// After a response head that came at `wall`.
    pub(crate) fn on_response(&mut self, head: &HeaderMap, wall: impl FnOnce() -> SystemTime) -> bool {
        let wanted = self.would_retry(head);
        self.reset = None;
        if wanted && let Some(limits) = self.policy.and_then(|policy| policy.rate_limited.as_ref()) {
            let wall = wall();
            let mut waits = limits.headers.iter().filter_map(|header| header.wait(head, wall));
            self.reset = waits.find(|wait| *wait <= limits.max);
            // As Envoy: a millisecond is no limit.
            self.reset = self.reset.filter(|wait| *wait > Duration::from_millis(1));
        }
        wanted
    }

    /// Whether a condition covers this response.
    pub(crate) fn would_retry(&self, head: &HeaderMap) -> bool {
        if !self.enabled() {
            return false;
        }
        if head.contains(Known::EnvoyRateLimited) {
            return self.on.intersects(RetryOn::ENVOY_RATELIMITED);
        }
        let status = head.status();
        let policy_codes = self.policy.map(|policy| &policy.status_codes[..]).unwrap_or_default();
        let policy_headers = self.policy.map(|policy| &policy.headers[..]).unwrap_or_default();
        let asked_codes = self.asked.as_ref().map(|asked| &asked.status_codes[..]).unwrap_or_default();
        let asked_names = self.asked.as_ref().map(|asked| &asked.header_names[..]).unwrap_or_default();
        (self.on.intersects(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (self.on.intersects(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (self.on.intersects(RetryOn::RETRIABLE_4XX) && status == 409)
            || (self.on.intersects(RetryOn::RETRIABLE_STATUS_CODES)
                && (policy_codes.contains(&status) || asked_codes.contains(&status)))
            || (self.on.intersects(RetryOn::RETRIABLE_HEADERS)
                && (policy_headers.iter().any(|matcher| matcher.matches(head))
                    || asked_names.iter().any(|name| head.find(name).is_some())))
            || self.on_grpc(head)
    }

    fn on_grpc(&self, head: &HeaderMap) -> bool {
        if !self.on.intersects(RetryOn::GRPC) {
            return false;
        }
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
        more: &Scopes,
        high_priority: bool,
        random: u64,
    ) -> Verdict {
        if !wanted {
            if self.done > 0 {
                // What was tried again is through.
                stats.upstream_rq_retry_success().inc();
                more.each(|stats| stats.upstream_rq_retry_success().inc());
            }
            return Verdict::No;
        }
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded().inc();
            more.each(|stats| stats.upstream_rq_retry_limit_exceeded().inc());
            return Verdict::LimitExceeded;
        }
        self.left -= 1;
        let Some(permit) = Permit::take(cluster, Resource::Retries, high_priority) else {
            stats.upstream_rq_retry_overflow().inc();
            more.each(|stats| stats.upstream_rq_retry_overflow().inc());
            return Verdict::Overflow;
        };
        let wait = match self.reset.take() {
            Some(reset) => {
                stats.upstream_rq_retry_backoff_ratelimited().inc();
                let millis = u64::try_from(reset.as_millis()).unwrap_or(u64::MAX);
                reset + Duration::from_millis(random % (millis / 2).max(1))
            }
            None => {
                stats.upstream_rq_retry_backoff_exponential().inc();
                self.back_off(random)
            }
        };
        self.done += 1;
        stats.upstream_rq_retry().inc();
        more.each(|stats| stats.upstream_rq_retry().inc());
        Verdict::Retry(wait, permit)
    }

    /// Full jitter: uniform below `base * 2^n`, at most `max`.
    fn back_off(&self, random: u64) -> Duration {
        let default = (Duration::from_millis(25), Duration::from_millis(250));
        let (base, max) = self.policy.map_or(default, |policy| policy.back_off);
        let ceiling = base.saturating_mul(1 << self.done.min(20)).min(max);
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(random % millis)
    }
}

impl ResetHeader {
    /// How long a response asks to wait.
    fn wait(&self, head: &HeaderMap, wall: SystemTime) -> Option<Duration> {
        let text = std::str::from_utf8(head.find(&self.name)?).ok()?;
        let seconds = Duration::from_secs(text.parse().ok()?);
        if !self.unix_timestamp {
            return Some(seconds);
        }
        let now = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        seconds.checked_sub(Duration::from_secs(now.as_secs())).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{Known, Retries};
    use crate::http::headers::HeaderMap;
    use crate::http::route::{ResetHeader, RetryOn};

    fn head(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.as_bytes(), value.as_bytes());
        }
        map
    }

    #[test]
    fn requests_ask_for_retries_by_headers_that_are_consumed() {
        let mut request = head(&[
            (":method", "GET"),
            ("x-envoy-retry-on", "5xx, unavailable, retriable-status-codes"),
            ("x-envoy-retry-grpc-on", "cancelled, reset"),
            ("x-envoy-max-retries", "7"),
            ("x-envoy-retriable-status-codes", "418, x, 425"),
        ]);
        let retries = Retries::new(None, &mut request);
        let http = RetryOn::SERVER_ERROR.union(RetryOn::RETRIABLE_STATUS_CODES);
        assert_eq!(retries.on, http.union(RetryOn::GRPC_CANCELLED));
        assert_eq!(retries.left, 7);
        assert_eq!(request.len(), 1);
        let answer = |status: &str| head(&[(":status", status)]);
        assert!(["500", "599", "418", "425"].iter().all(|status| retries.would_retry(&answer(status))));
        assert!(!retries.would_retry(&answer("404")));
        assert!(retries.would_retry(&head(&[(":status", "200"), ("grpc-status", "1")])));
        assert!(!retries.would_retry(&head(&[(":status", "200"), ("grpc-status", "14")])));
        assert!(!retries.would_retry(&head(&[(":status", "503"), (Known::EnvoyRateLimited.text(), "true")])));
    }

    #[test]
    fn limited_rates_say_when_to_come_again() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_700);
        let check = |unix_timestamp, value: &str, expected: Option<u64>| {
            let header = ResetHeader { name: "retry-after".into(), unix_timestamp };
            let wait = header.wait(&head(&[("retry-after", value)]), wall);
            assert_eq!(wait, expected.map(Duration::from_secs), "{value}");
        };
        check(false, "5", Some(5));
        check(false, "x", None);
        check(false, "-5", None);
        check(true, "1003", Some(3));
        check(true, "1000", None);
        check(true, "7", None);
    }
}
