//! What few clusters have: settings of their own box, so that the others stay small, and the stats
//! that only they keep.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::outlier::Report;
use crate::cluster::pool::preconnect::Preconnect;
use crate::http::headers::HeaderMap;
use crate::http::route::hash_policy::HashPolicies;
use crate::http::route::matcher::HeaderMatcher;
use crate::listener::network::metadata_exchange::MetadataExchange;
use crate::telemetry::stats::{ThreadStats, stats_scope};

/// Settings that few clusters have.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    /// `preconnect_policy`.
    pub(crate) preconnect: Option<Preconnect>,
    /// `connection_pool_per_downstream_connection`.
    pub(crate) per_connection: bool,
    /// `track_cluster_stats.request_response_sizes`.
    pub(crate) sizes: bool,
    /// `track_cluster_stats.timeout_budgets`, `track_timeout_budgets`.
    pub(crate) timeout_budgets: bool,
    /// `HttpProtocolOptions.outlier_detection.error_matcher`: which answers are errors.
    pub(crate) errors: Option<AnswerMatch>,
    /// `HttpProtocolOptions.hash_policy`: replaces the route's.
    pub(crate) hashing: Option<Arc<HashPolicies>>,
    /// Of `filters`: for TCP sessions.
    pub(crate) metadata_exchange: Option<Arc<MetadataExchange>>,
}

impl Extras {
    /// Whether there is anything to keep.
    pub(crate) fn any(&self) -> bool {
        let Self { preconnect, per_connection, sizes, timeout_budgets, errors, hashing, metadata_exchange } =
            self;
        preconnect.is_some()
            || *per_connection
            || *sizes
            || *timeout_budgets
            || errors.is_some()
            || hashing.is_some()
            || metadata_exchange.is_some()
    }
}

/// Which responses match, by their heads (envoy.config.common.matcher.v3.MatchPredicate).
#[derive(Clone, Debug)]
pub(crate) enum AnswerMatch {
    /// Every one.
    Any,
    /// What concerns requests, trailers and bodies, at which Envoy does not look here.
    Never,
    /// One of them.
    Or(Vec<AnswerMatch>),
    /// All of them.
    And(Vec<AnswerMatch>),
    /// Not this one.
    Not(Box<AnswerMatch>),
    /// All of these headers.
    Headers(Vec<HeaderMatcher>),
}

impl AnswerMatch {
    fn matches(&self, head: &HeaderMap) -> bool {
        match self {
            AnswerMatch::Any => true,
            AnswerMatch::Never => false,
            AnswerMatch::Or(rules) => rules.iter().any(|rule| rule.matches(head)),
            AnswerMatch::And(rules) => rules.iter().all(|rule| rule.matches(head)),
            AnswerMatch::Not(rule) => !rule.matches(head),
            AnswerMatch::Headers(headers) => headers.iter().all(|header| header.matches(head)),
        }
    }

    /// What outlier detection is told of a response.
    pub(crate) fn report(&self, head: &HeaderMap) -> Report {
        Report::Answered(if self.matches(head) { 500 } else { 200 })
    }
}

stats_scope! {
    /// `cluster.NAME.` with `request_response_sizes`: bytes and fields of each attempt.
    pub(crate) struct SizeStats {
        histogram upstream_rq_body_size;
        histogram upstream_rq_headers_count;
        histogram upstream_rq_headers_size;
        histogram upstream_rs_body_size;
        histogram upstream_rs_headers_count;
        histogram upstream_rs_headers_size;
    }
}

stats_scope! {
    /// `cluster.NAME.` with `timeout_budgets`: how much of its time a request used, percent.
    pub(crate) struct BudgetStats {
        histogram upstream_rq_timeout_budget_per_try_percent_used;
        histogram upstream_rq_timeout_budget_percent_used;
    }
}

/// One worker's stats of a cluster that has more than others.
#[derive(Debug)]
pub(crate) struct Tracked {
    sizes: Option<SizeStats>,
    budgets: Option<BudgetStats>,
}

impl Tracked {
    /// `None`: there is nothing to track.
    pub(crate) fn new(extras: Option<&Extras>, thread: &Arc<ThreadStats>, scope: &str) -> Option<Box<Self>> {
        let extras = extras.filter(|extras| extras.sizes || extras.timeout_budgets)?;
        Some(Box::new(Self {
            sizes: extras.sizes.then(|| SizeStats::new(thread, scope)),
            budgets: extras.timeout_budgets.then(|| BudgetStats::new(thread, scope)),
        }))
    }

    /// An attempt is over: its heads and the bytes of its bodies.
    pub(crate) fn attempt(&self, request: (&HeaderMap, u64), response: Option<(&HeaderMap, u64)>) {
        let Some(stats) = &self.sizes else { return };
        let (head, body) = request;
        let (size, count) = measure(head);
        stats.upstream_rq_headers_size().record(size);
        stats.upstream_rq_headers_count().record(count);
        stats.upstream_rq_body_size().record(body);
        if let Some((head, body)) = response {
            let (size, count) = measure(head);
            stats.upstream_rs_headers_size().record(size);
            stats.upstream_rs_headers_count().record(count);
            stats.upstream_rs_body_size().record(body);
        }
    }

    /// An attempt took so long of `per_try_timeout`.
    pub(crate) fn per_try(&self, took: Duration, limit: Option<Duration>) {
        if let Some(stats) = &self.budgets {
            stats.upstream_rq_timeout_budget_per_try_percent_used().record(percent(took, limit));
        }
    }

    /// A request took so long of its route's timeout.
    pub(crate) fn whole(&self, took: Duration, limit: Option<Duration>) {
        if let Some(stats) = &self.budgets {
            stats.upstream_rq_timeout_budget_percent_used().record(percent(took, limit));
        }
    }
}

/// Bytes of names and values, and how many there are.
fn measure(head: &HeaderMap) -> (u64, u64) {
    head.iter()
        .fold((0, 0), |(bytes, count), (name, value)| (bytes + (name.len() + value.len()) as u64, count + 1))
}

/// Whole percent; 0 where there is no limit.
fn percent(took: Duration, limit: Option<Duration>) -> u64 {
    let millis = limit.map_or(0, |limit| limit.as_millis());
    took.as_millis().saturating_mul(100).checked_div(millis).map_or(0, |share| share as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AnswerMatch, percent};
    use crate::cluster::outlier::Report;
    use crate::http::headers::HeaderMap;

    #[test]
    fn shares_of_timeouts() {
        let ms = Duration::from_millis;
        assert_eq!(percent(ms(505), Some(ms(2000))), 25);
        assert_eq!(percent(ms(505), None), 0);
        assert_eq!(percent(ms(30), Some(ms(20))), 150);
    }

    #[test]
    fn what_is_not_a_response_head_never_matches() {
        let head = HeaderMap::new();
        let rule = AnswerMatch::Or(vec![AnswerMatch::Never, AnswerMatch::Not(Box::new(AnswerMatch::Any))]);
        assert_eq!(rule.report(&head), Report::Answered(200));
        let rule = AnswerMatch::And(vec![AnswerMatch::Headers(Vec::new()), AnswerMatch::Any]);
        assert_eq!(rule.report(&head), Report::Answered(500));
    }
}
