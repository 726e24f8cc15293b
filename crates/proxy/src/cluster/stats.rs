//! `cluster.NAME.` stats and the circuit breakers' gauges.
//!
//! Stats are worker-local blocks; the gauges that circuit breakers compare with their limits
//! are the one thing that all workers share, as their limits are meant for the whole proxy.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::budget::Begun;
use crate::cluster::{CircuitBreakers, Cluster};
use crate::telemetry::stats::stats_scope;

stats_scope! {
    /// `cluster.NAME.`: what the main thread counts of a cluster's discovery.
    pub(crate) struct UpdateStats {
        counter update_attempt;
        counter update_empty;
        counter update_failure;
        counter update_no_rebuild;
        counter update_success;
    }
}

stats_scope! {
    /// `cluster.NAME.`: one worker's counts of one cluster.
    pub(crate) struct ClusterStats {
        counter assignment_stale;
        counter bind_errors;
        counter lb_healthy_panic;
        counter lb_local_cluster_not_ok;
        counter lb_recalculate_zone_structures;
        gauge lb_subsets_active;
        counter lb_subsets_created;
        counter lb_subsets_fallback;
        counter lb_subsets_fallback_panic;
        counter lb_subsets_removed;
        counter lb_subsets_selected;
        gauge lb_subsets_single_host_per_subset_duplicate;
        counter lb_zone_cluster_too_small;
        counter lb_zone_no_capacity_left;
        counter lb_zone_routing_all_directly;
        counter lb_zone_routing_cross_zone;
        counter lb_zone_routing_sampled;
        counter original_dst_host_invalid;
        counter retry_or_shadow_abandoned;
        gauge upstream_cx_active;
        counter upstream_cx_close_notify;
        counter upstream_cx_connect_attempts_exceeded;
        counter upstream_cx_connect_fail;
        counter upstream_cx_connect_timeout;
        counter upstream_cx_destroy;
        counter upstream_cx_destroy_local;
        counter upstream_cx_destroy_local_with_active_rq;
        counter upstream_cx_destroy_remote;
        counter upstream_cx_destroy_remote_with_active_rq;
        counter upstream_cx_destroy_with_active_rq;
        counter upstream_cx_http1_total;
        counter upstream_cx_http2_total;
        counter upstream_cx_idle_timeout;
        counter upstream_cx_max_duration_reached;
        counter upstream_cx_max_requests;
        counter upstream_cx_none_healthy;
        counter upstream_cx_overflow;
        counter upstream_cx_pool_overflow;
        counter upstream_cx_protocol_error;
        counter upstream_cx_rx_bytes_total;
        counter upstream_cx_total;
        counter upstream_cx_tx_bytes_total;
        counter upstream_flow_control_paused_reading_total;
        counter upstream_flow_control_resumed_reading_total;
        counter upstream_internal_redirect_failed_total;
        counter upstream_internal_redirect_succeeded_total;
        gauge upstream_rq_active;
        counter upstream_rq_active_overflow;
        counter upstream_rq_cancelled;
        counter upstream_rq_completed;
        counter upstream_rq_1xx;
        counter upstream_rq_2xx;
        counter upstream_rq_3xx;
        counter upstream_rq_4xx;
        counter upstream_rq_5xx;
        counter upstream_rq_maintenance_mode;
        counter upstream_rq_max_duration_reached;
        gauge upstream_rq_pending_active;
        counter upstream_rq_pending_failure_eject;
        counter upstream_rq_pending_overflow;
        counter upstream_rq_pending_total;
        counter upstream_rq_per_try_idle_timeout;
        counter upstream_rq_per_try_timeout;
        counter upstream_rq_retry;
        counter upstream_rq_retry_backoff_exponential;
        counter upstream_rq_retry_backoff_ratelimited;
        counter upstream_rq_retry_limit_exceeded;
        counter upstream_rq_retry_overflow;
        counter upstream_rq_retry_success;
        counter upstream_rq_rx_reset;
        counter upstream_rq_timeout;
        counter upstream_rq_total;
        counter upstream_rq_tx_reset;
        histogram upstream_cx_connect_ms;
        histogram upstream_cx_length_ms;
        histogram upstream_rq_per_cx;
        histogram upstream_rq_time;
    }
}

stats_scope! {
    /// `cluster.NAME.internal.`, `.external.` and `.canary.`: answers by who asked whom, and
    /// `cluster.NAME.ALT.`, as `x-envoy-upstream-alt-stat-name` says.
    pub(crate) struct AnswerStats {
        counter upstream_rq_completed;
        counter upstream_rq_1xx;
        counter upstream_rq_2xx;
        counter upstream_rq_3xx;
        counter upstream_rq_4xx;
        counter upstream_rq_5xx;
        histogram upstream_rq_time;
    }
}

stats_scope! {
    /// `vhost.NAME.vcluster.NAME.` and `vhost.NAME.route.PREFIX.`
    pub(crate) struct RouteStats {
        counter upstream_rq_completed;
        counter upstream_rq_1xx;
        counter upstream_rq_2xx;
        counter upstream_rq_3xx;
        counter upstream_rq_4xx;
        counter upstream_rq_5xx;
        counter upstream_rq_retry;
        counter upstream_rq_retry_limit_exceeded;
        counter upstream_rq_retry_overflow;
        counter upstream_rq_retry_success;
        counter upstream_rq_timeout;
        counter upstream_rq_total;
        histogram upstream_rq_time;
    }
}

/// Counts of answers under their class and under their own status.
macro_rules! count_responses {
    ($($scope:ident)*) => { $(
        impl $scope {
            /// Counts a response under its class and under its own status; `coded`: not only as
            /// one.
            pub(crate) fn count_response(&self, status: u16, coded: bool) {
                self.upstream_rq_completed().inc();
                if !coded {
                    return;
                }
                match status / 100 {
                    1 => self.upstream_rq_1xx().inc(),
                    2 => self.upstream_rq_2xx().inc(),
                    3 => self.upstream_rq_3xx().inc(),
                    4 => self.upstream_rq_4xx().inc(),
                    5 => self.upstream_rq_5xx().inc(),
                    _ => {}
                }
                self.block().count_status(status);
            }
        }
    )* };
}

count_responses! { ClusterStats AnswerStats RouteStats }

/// What circuit breakers limit, counted over all workers, by routing priority.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    priorities: [PriorityGauges; 2],
    /// Whether a connection was ever asked for; health checks are rare before.
    traffic: AtomicBool,
    /// Requests that began lately, by priority, where a retry budget asks for them.
    begun: OnceLock<Box<Recent>>,
}

/// Requests that began lately.
#[derive(Debug)]
struct Recent {
    since: Instant,
    priorities: [Begun; 2],
}

impl Gauges {
    /// Whether any worker ever asked for a connection.
    pub(crate) fn had_traffic(&self) -> bool {
        self.traffic.load(Ordering::Relaxed)
    }

    /// Goes on with what a predecessor of the same cluster saw.
    pub(crate) fn inherit(&self, before: &Gauges) {
        if before.had_traffic() {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }
}

/// The gauges of one priority.
#[derive(Debug, Default)]
struct PriorityGauges {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// Which resource a circuit breaker limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// `max_connections`.
    Connections,
    /// `max_pending_requests`.
    Pending,
    /// `max_requests`.
    Requests,
    /// `max_retries` or `retry_budget`.
    Retries,
}

/// One unit of a resource, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    cluster: Arc<Cluster>,
    resource: Resource,
    priority: usize,
}

impl Permit {
    /// Takes one unit; `None`: the circuit breaker is open.
    pub(crate) fn take(cluster: &Arc<Cluster>, resource: Resource, high_priority: bool) -> Option<Permit> {
        let priority = usize::from(high_priority);
        cluster.take(resource, priority).then(|| Permit { cluster: Arc::clone(cluster), resource, priority })
    }

    /// Takes one unit without asking the circuit breaker.
    pub(crate) fn force(cluster: &Arc<Cluster>, resource: Resource, high_priority: bool) -> Permit {
        let priority = usize::from(high_priority);
        cluster.gauge(resource, priority).fetch_add(1, Ordering::Relaxed);
        cluster.saw(resource, priority);
        Permit { cluster: Arc::clone(cluster), resource, priority }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.give_back(self.resource, self.priority);
    }
}

impl Cluster {
    /// Takes one unit of a resource, which is to be given back: for those who hold the cluster
    /// anyway. False: the circuit breaker is open.
    pub(crate) fn take(&self, resource: Resource, priority: usize) -> bool {
        let gauge = self.gauge(resource, priority);
        // Two workers may overshoot the limit by one each, as Envoy's threads may.
        if gauge.load(Ordering::Relaxed) >= self.limit(resource, priority) {
            return false;
        }
        gauge.fetch_add(1, Ordering::Relaxed);
        self.saw(resource, priority);
        true
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, resource: Resource, priority: usize) {
        self.gauge(resource, priority).fetch_sub(1, Ordering::Relaxed);
    }

    fn gauge(&self, resource: Resource, priority: usize) -> &AtomicU32 {
        let [default, high] = &self.gauges.priorities;
        let gauges = if priority == 0 { default } else { high };
        match resource {
            Resource::Connections => &gauges.connections,
            Resource::Pending => &gauges.pending,
            Resource::Requests => &gauges.requests,
            Resource::Retries => &gauges.retries,
        }
    }

    fn saw(&self, resource: Resource, priority: usize) {
        if resource == Resource::Requests
            && let Some(interval) = self.breakers(priority).retry_budget.as_ref().and_then(|it| it.interval)
        {
            let (begun, now) = self.begun(priority);
            begun.note(now, interval);
        }
        if resource == Resource::Connections && !self.gauges.had_traffic() {
            self.gauges.traffic.store(true, Ordering::Relaxed);
        }
    }

    /// Units in use, of one priority (0: default, 1: high).
    pub(crate) fn in_use(&self, resource: Resource, priority: usize) -> u32 {
        self.gauge(resource, priority).load(Ordering::Relaxed)
    }

    /// The limit now; that of a retry budget follows the requests under way.
    pub(crate) fn limit(&self, resource: Resource, priority: usize) -> u32 {
        let limits = self.breakers(priority);
        match resource {
            Resource::Connections => limits.max_connections,
            Resource::Pending => limits.max_pending_requests,
            Resource::Requests => limits.max_requests,
            Resource::Retries => match &limits.retry_budget {
                None => limits.max_retries,
                Some(budget) => {
                    let requests = match budget.interval {
                        Some(interval) => {
                            let (begun, now) = self.begun(priority);
                            begun.count(now, interval)
                        }
                        None => {
                            let under_way = self.in_use(Resource::Requests, priority);
                            under_way + self.in_use(Resource::Pending, priority)
                        }
                    };
                    budget.limit(requests)
                }
            },
        }
    }

    fn breakers(&self, priority: usize) -> &CircuitBreakers {
        let [default, high] = &*self.circuit_breakers;
        if priority == 0 { default } else { high }
    }

    /// The counter of requests that began lately, and the time by it.
    fn begun(&self, priority: usize) -> (&Begun, Duration) {
        let new = || Box::new(Recent { since: Instant::now(), priorities: Default::default() });
        let Recent { since, priorities: [default, high] } = &**self.gauges.begun.get_or_init(new);
        (if priority == 0 { default } else { high }, since.elapsed())
    }
}
