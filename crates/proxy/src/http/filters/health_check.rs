//! `envoy.filters.http.health_check`: answers load balancers that ask how this proxy is, by
//! itself, from the health of clusters, or from what the service said a moment ago.
//!
//! While the proxy is told to fail (`/healthcheck/fail`), requests of that kind get 503, and all
//! other responses say `x-envoy-immediate-health-check-fail`.
//! Deviation: a cached answer is kept for `cache_time` from when it came; Envoy drops it with
//! the next tick of a clock of that period.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leno_api::proto::envoy::extensions::filters::http::health_check::v3 as proto;
use leno_base::Name;

use crate::cluster::HealthStatus;
use crate::config::lower::Lower;
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::matcher::{HeaderMatcher, header};
use crate::http::stream::{Stream, now};
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::ResponseFlags;
use crate::worker::Worker;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.health_check",
    config_type: "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    lower,
    route_type: None,
    lower_route: None,
};

stats_scope! {
    /// `http.STAT_PREFIX.health_check.`
    struct HealthCheckStats {
        counter cached_response;
        counter degraded;
        counter failed;
        counter failed_cluster_empty;
        counter failed_cluster_not_found;
        counter failed_cluster_unhealthy;
        counter ok;
        counter request_total;
    }
}

/// HealthCheck.
#[derive(Debug)]
struct HealthCheck {
    /// `pass_through_mode`: the service is asked.
    pass_through: bool,
    /// What the service said, with `cache_time`.
    cache: Option<Arc<Cache>>,
    /// `cluster_min_healthy_percentages`, by name.
    clusters: Vec<(Name, u64)>,
    /// Requests that match all of them ask for health.
    headers: Vec<HeaderMatcher>,
    /// `node.cluster`.
    local_cluster: Arc<str>,
    stats: PerThread<HealthCheckStats>,
}

/// The last answer of the service, of all workers.
#[derive(Debug)]
struct Cache {
    /// When it was first asked for.
    begun: OnceLock<Instant>,
    time: Duration,
    /// When it came, in milliseconds since `begun`, shifted by what it was: status (16 bits) and
    /// whether it was degraded (1 bit). 0: there is none.
    answer: AtomicU64,
}

impl Cache {
    fn put(&self, status: u16, degraded: bool, now: Instant) {
        let begun = *self.begun.get_or_init(|| now);
        let came = u64::try_from(now.saturating_duration_since(begun).as_millis()).unwrap_or(0);
        self.answer.store(came << 17 | u64::from(degraded) << 16 | u64::from(status), Ordering::Relaxed);
    }

    /// Status and whether it is degraded, as long as it is fresh.
    fn fresh(&self, now: Instant) -> Option<(u16, bool)> {
        let answer = self.answer.load(Ordering::Relaxed);
        let came = *self.begun.get()? + Duration::from_millis(answer >> 17);
        let status = (answer & 0xffff) as u16;
        (status != 0 && now.saturating_duration_since(came) < self.time)
            .then_some((status, answer >> 16 & 1 == 1))
    }
}

impl FilterConfig for HealthCheck {
    fn on_request(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Opening {
        if !self.headers.iter().all(|matcher| matcher.matches(head)) {
            // Asked when the request comes, where Envoy asks when the response goes.
            let failing = stream.worker.is_failing();
            return if failing { Opening::Watch(Step::Continue) } else { Opening::PASS };
        }
        stream.info.health_check = true;
        stream.forgo_trace();
        let thread = stream.worker.stats();
        let stats = self.stats.of(thread, || {
            HealthCheckStats::kept(thread, &format!("http.{}.health_check.", stream.manager.stat_prefix))
        });
        stats.request_total().inc();
        let cached = self.cache.as_ref().and_then(|cache| cache.fresh(now()));
        if self.pass_through && cached.is_none() && !stream.worker.is_failing() {
            let (cache, local_cluster) = (self.cache.clone(), Arc::clone(&self.local_cluster));
            return Opening::Open(Box::new(Asking { cache, local_cluster }));
        }
        let reply = self.answer(cached, &stream.worker, stats);
        if end {
            return Opening::Done(Step::Reply(reply));
        }
        Opening::Open(Box::new(Answering { reply: Some(reply) }))
    }

    /// Of a request that does not ask for health, while the proxy fails.
    fn on_response(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Step {
        if stream.worker.is_failing() {
            head.set(Known::EnvoyImmediateHealthCheckFail, b"true");
        }
        Step::Continue
    }
}

impl HealthCheck {
    fn answer(&self, cached: Option<(u16, bool)>, worker: &Worker, stats: &HealthCheckStats) -> Reply {
        let mut degraded = false;
        let healthy =
            if self.clusters.is_empty() { "health_check_ok" } else { "health_check_ok_cluster_healthy" };
        let (status, details) = if worker.is_failing() {
            (503, "health_check_failed")
        } else if let Some((status, was_degraded)) = cached {
            stats.cached_response().inc();
            degraded = was_degraded;
            (status, "health_check_cached")
        } else {
            self.clusters
                .iter()
                .find_map(|(name, percent)| unhealthy(name, *percent, worker, stats))
                .map_or((200, healthy), |details| (503, details))
        };
        if degraded {
            stats.degraded().inc();
        }
        if status == 200 {
            stats.ok().inc();
        } else {
            stats.failed().inc();
        }
        let mut reply = Reply::new(status, details, "");
        if !(200..300).contains(&status) {
            reply = reply.flag(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK);
        }
        if degraded {
            reply = reply.header(Known::EnvoyDegraded.text(), b"".as_slice());
        }
        let cluster = Cow::Owned(self.local_cluster.as_bytes().to_vec());
        reply.header(Known::EnvoyUpstreamHealthCheckedCluster.text(), cluster)
    }
}

/// Why a cluster makes the proxy unhealthy; `None`: it does not.
fn unhealthy(name: &str, percent: u64, worker: &Worker, stats: &HealthCheckStats) -> Option<&'static str> {
    let Some(cluster) = worker.cluster(name) else {
        stats.failed_cluster_not_found().inc();
        return Some("health_check_failed_no_cluster_found");
    };
    let hosts = cluster.hosts();
    let total = hosts.len() as u64;
    if total == 0 {
        if percent == 0 {
            return None;
        }
        stats.failed_cluster_empty().inc();
        return Some("health_check_failed_cluster_empty");
    }
    let fit = |health| matches!(health, HealthStatus::Healthy | HealthStatus::Degraded);
    let available = hosts.iter().filter(|host| fit(host.health())).count() as u64;
    if 100 * available >= total * percent {
        return None;
    }
    stats.failed_cluster_unhealthy().inc();
    Some("health_check_failed_cluster_unhealthy")
}

/// The answer is given when the request is complete.
struct Answering {
    reply: Option<Reply>,
}

impl Answering {
    fn end(&mut self) -> Step {
        self.reply.take().map_or(Step::Continue, Step::Reply)
    }
}

impl HttpStreamFilter for Answering {
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        Step::Hold
    }

    fn on_request_data(&mut self, _stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        // Nobody reads it.
        *data = Bytes::new();
        if end { self.end() } else { Step::Hold }
    }

    fn on_request_trailers(
        &mut self,
        _stream: &mut Stream,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        self.end()
    }
}

/// The service is asked.
struct Asking {
    cache: Option<Arc<Cache>>,
    local_cluster: Arc<str>,
}

impl HttpStreamFilter for Asking {
    fn on_response(&mut self, _stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        if let Some(cache) = &self.cache {
            cache.put(head.status(), head.contains(Known::EnvoyDegraded), now());
        }
        head.set(Known::EnvoyUpstreamHealthCheckedCluster, self.local_cluster.as_bytes());
        Step::Continue
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::HealthCheck { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers } =
        at.unpack(any)?;
    if pass_through_mode.is_none() {
        at.error_at("pass_through_mode", "value is required");
    }
    let pass_through = pass_through_mode.unwrap_or(false);
    let cache_time = at.timeout("cache_time", cache_time, None);
    if cache_time.is_some() && !pass_through {
        at.error_at("cache_time", "cache_time_ms must not be set when path_through_mode is disabled");
    }
    let cache =
        cache_time.map(|time| Arc::new(Cache { begun: OnceLock::new(), time, answer: AtomicU64::new(0) }));
    let mut clusters: Vec<_> = cluster_min_healthy_percentages
        .into_iter()
        // A whole number, as in Envoy.
        .map(|(name, percent)| (Name::from(name), percent.value.max(0.0) as u64))
        .collect();
    clusters.sort();
    Some(Arc::new(HealthCheck {
        pass_through,
        cache,
        clusters,
        headers: at.each("headers", headers, header),
        local_cluster: Arc::clone(&at.scope().node_cluster),
        stats: PerThread::default(),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};

    use super::Cache;

    #[test]
    fn an_answer_is_kept_for_its_time() {
        let begun = Instant::now();
        let cache = Cache {
            begun: OnceLock::from(begun),
            time: Duration::from_millis(100),
            answer: AtomicU64::new(0),
        };
        let at = |millis| begun + Duration::from_millis(millis);
        assert_eq!(cache.fresh(at(0)), None);
        cache.put(503, true, at(5));
        assert_eq!(cache.fresh(at(104)), Some((503, true)));
        assert_eq!(cache.fresh(at(105)), None);
        cache.put(200, false, at(200));
        assert_eq!(cache.fresh(at(200)), Some((200, false)));
    }
}
