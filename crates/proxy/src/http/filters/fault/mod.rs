//! `envoy.filters.http.fault`: delays requests, answers them with errors and slows responses
//! down, to see how callers take it.
//!
//! Settings of the most specific level replace the chain's. Everything that is random is
//! decided when the request comes; an abort that follows a delay happens after it.

mod config;
mod pace;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use leno_base::Name;
use tokio::time::{Instant, sleep, sleep_until};

use self::pace::Pace;
use crate::config::runtime::Runtime;
use crate::http::filters::{
    FilterConfig, HttpStreamFilter, Opening, Outcome, Registration, RouteSettings, Step,
};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::matcher::HeaderMatcher;
use crate::http::stream::Stream;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::{Block, ThreadStats, stats_scope};
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: NAME,
    config_type: "envoy.extensions.filters.http.fault.v3.HTTPFault",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.fault.v3.HTTPFault"),
    lower_route: Some(config::lower_route),
};

const NAME: &str = "envoy.filters.http.fault";

stats_scope! {
    /// `http.STAT_PREFIX.fault.`
    struct FaultStats {
        counter aborts_injected;
        gauge active_faults;
        counter delays_injected;
        counter faults_overflow;
        counter response_rl_injected;
    }
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct FaultFilter {
    /// Its name in the chain.
    name: Name,
    fault: Arc<Fault>,
    /// Faults at work in all workers, for `max_active_faults`.
    active: Arc<AtomicU64>,
    stats: PerThread<FaultStats>,
}

/// HTTPFault, of the chain or of a route.
#[derive(Debug)]
struct Fault {
    delay: Option<Delay>,
    abort: Option<Abort>,
    /// `response_rate_limit`.
    rate_limit: Option<RateLimit>,
    /// `upstream_cluster`: only requests to this one.
    upstream_cluster: Option<Name>,
    /// Only requests that match all of them.
    headers: Vec<HeaderMatcher>,
    /// `downstream_nodes`: only requests from these; empty: from all.
    nodes: Vec<Box<str>>,
    /// `max_active_faults`.
    max_active: u64,
    /// Whether faults are counted by downstream cluster too.
    cluster_stats: bool,
    /// `filter_metadata`.
    metadata: serde_json::Map<String, serde_json::Value>,
    /// For keys that a request makes: those of its downstream cluster.
    runtime: Arc<Runtime>,
}

/// A share of requests.
#[derive(Debug)]
struct Share {
    /// `percentage`: (numerator, denominator).
    configured: (u32, u32),
    /// The header that may lower the numerator, if a header controls the fault.
    header: Option<&'static str>,
    /// What the runtime says instead.
    runtime: Option<(u32, u32)>,
}

/// FaultDelay.
#[derive(Debug)]
struct Delay {
    share: Share,
    /// `fixed_delay`; `None`: `x-envoy-fault-delay-request` says it.
    duration: Option<Duration>,
    /// What the runtime says instead.
    runtime: Option<Duration>,
}

/// FaultAbort.
#[derive(Debug)]
struct Abort {
    share: Share,
    status: AbortStatus,
    /// What the runtime says instead of an HTTP status, or of a gRPC status.
    runtime_http: Option<u64>,
    runtime_grpc: Option<u64>,
    body: Bytes,
}

/// `error_type`.
#[derive(Clone, Copy, Debug)]
enum AbortStatus {
    Http(u16),
    Grpc(u32),
    /// `x-envoy-fault-abort-request`, else `x-envoy-fault-abort-grpc-request`.
    Header,
}

/// FaultRateLimit.
#[derive(Debug)]
struct RateLimit {
    share: Share,
    /// `fixed_limit`; `None`: `x-envoy-fault-throughput-response` says it.
    kib_per_second: Option<u64>,
}

impl FilterConfig for FaultFilter {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let route = settings.and_then(RouteSettings::first::<FaultSettings>);
        let fault = route.map_or(&self.fault, |FaultSettings(fault)| fault);
        if fault.delay.is_none() && fault.abort.is_none() && fault.rate_limit.is_none() {
            return Opening::PASS;
        }
        if let Some(wanted) = &fault.upstream_cluster {
            let matched = stream.selected.as_ref().and_then(|selected| selected.cluster(head));
            if matched != Some(wanted) {
                return Opening::PASS;
            }
        }
        let worker = Rc::clone(&stream.worker);
        let Some(decided) = fault.decide(head, &mut || worker.random()) else { return Opening::PASS };
        let prefix = || format!("http.{}.fault.", stream.manager.stat_prefix);
        let thread = worker.stats();
        let stats = self.stats.of(thread, || FaultStats::kept(thread, &prefix()));
        let scope = Scope { thread, stats, name: &self.name };
        let mut filter = Injecting::new(Arc::clone(fault), Arc::clone(&self.active));
        let step = filter.begin(decided, head, &mut stream.info, &scope);
        filter.begun = Some(step);
        Opening::Open(Box::new(filter))
    }
}

/// HTTPFault of a route.
#[derive(Debug)]
struct FaultSettings(Arc<Fault>);

/// What happens to a request.
struct Decided {
    /// KiB/s.
    rate: Option<u64>,
    delay: Option<Duration>,
    abort: Option<Reply>,
}

/// The filter at work.
struct Injecting {
    fault: Arc<Fault>,
    in_all: Arc<AtomicU64>,
    /// Several faults of one request count as one; shared with the delay that is running.
    active: Rc<RefCell<Option<Active>>>,
    pace: Option<Pace>,
    /// What the request's head led to.
    begun: Option<Step>,
}

impl HttpStreamFilter for Injecting {
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        self.begun.take().unwrap_or(Step::Continue)
    }

    fn on_response_data(&mut self, _stream: &mut Stream, data: &mut Bytes, _end: bool) -> Step {
        let due = self.pace.as_mut().and_then(|pace| pace.pass(data.len(), Instant::now()));
        due.map_or(Step::Continue, |due| {
            Step::wait(async move {
                sleep_until(due).await;
                Outcome::Continue
            })
        })
    }
}

/// Where faults are counted.
struct Scope<'a> {
    thread: &'a ThreadStats,
    stats: &'a FaultStats,
    /// The filter's name in the chain, under which faults are told of in dynamic metadata.
    name: &'a str,
}

/// A fault at work: it counts as active until it is dropped.
struct Active {
    in_all: Arc<AtomicU64>,
    stats: FaultStats,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.in_all.fetch_sub(1, Ordering::Relaxed);
        self.stats.active_faults().dec();
    }
}

impl Injecting {
    fn new(fault: Arc<Fault>, in_all: Arc<AtomicU64>) -> Self {
        Self { fault, in_all, active: Rc::default(), pace: None, begun: None }
    }

    /// Begins with what was decided for a request.
    fn begin(
        &mut self,
        decided: Decided,
        head: &HeaderMap,
        info: &mut StreamInfo,
        scope: &Scope<'_>,
    ) -> Step {
        let fault = Arc::clone(&self.fault);
        let Decided { rate, delay, abort } = decided;
        let stats = scope.stats.clone();
        let prefix = scope.stats.block().prefix();
        let downstream = head.get_str(Known::EnvoyDownstreamServiceCluster);
        let cluster = downstream.filter(|cluster| fault.cluster_stats && !cluster.is_empty());
        // By downstream cluster, `http.STAT_PREFIX.fault.CLUSTER.` is counted too.
        let by_cluster =
            |name| cluster.map(|cluster| scope.thread.counter(&format!("{prefix}{cluster}.{name}")));
        let aborting =
            |abort| Aborting { abort, stats: stats.clone(), by_cluster: by_cluster("aborts_injected") };
        if let Some(rate) = rate.filter(|_| self.activate(&stats)) {
            stats.response_rl_injected().inc();
            self.pace = Some(Pace::new(rate, Instant::now()));
        }
        if let Some(delay) = delay.filter(|_| self.activate(&stats)) {
            stats.delays_injected().inc();
            if let Some(counter) = by_cluster("delays_injected") {
                counter.cell(0).inc();
            }
            info.flags.insert(ResponseFlags::DELAY_INJECTED);
            fault.note(info, scope.name);
            return self.delay(delay, abort.map(aborting));
        }
        if let Some(abort) = abort.filter(|_| self.activate(&stats)) {
            fault.note(info, scope.name);
            return Step::Reply(aborting(abort).reply());
        }
        Step::Continue
    }

    /// Whether one more fault may be at work, or this request has one already.
    fn activate(&self, stats: &FaultStats) -> bool {
        let mut active = self.active.borrow_mut();
        if active.is_some() {
            return true;
        }
        if self.in_all.load(Ordering::Relaxed) >= self.fault.max_active {
            stats.faults_overflow().inc();
            return false;
        }
        self.in_all.fetch_add(1, Ordering::Relaxed);
        stats.active_faults().inc();
        *active = Some(Active { in_all: Arc::clone(&self.in_all), stats: stats.clone() });
        true
    }

    /// Waits; then aborts, or lets the request go on.
    fn delay(&self, delay: Duration, abort: Option<Aborting>) -> Step {
        let active = Rc::clone(&self.active);
        let stays_active = self.fault.rate_limit.is_some();
        Step::wait(async move {
            sleep(delay).await;
            if let Some(abort) = abort {
                return Outcome::Reply(abort.reply());
            }
            if !stays_active {
                active.borrow_mut().take();
            }
            Outcome::Continue
        })
    }
}

/// An abort that was decided on.
struct Aborting {
    abort: Reply,
    stats: FaultStats,
    /// The counter of the downstream cluster's aborts.
    by_cluster: Option<Arc<Block>>,
}

impl Aborting {
    fn reply(self) -> Reply {
        self.stats.aborts_injected().inc();
        if let Some(counter) = &self.by_cluster {
            counter.cell(0).inc();
        }
        self.abort
    }
}

/// Runtime keys of the request's downstream cluster. If the request names one, its share takes
/// the place of the general one; if its key is absent, that is the configured share.
struct ClusterKeys<'a> {
    runtime: &'a Runtime,
    cluster: Option<&'a str>,
}

impl ClusterKeys<'_> {
    fn key(&self, name: &str) -> Option<String> {
        self.cluster.map(|cluster| format!("fault.http.{cluster}.{name}"))
    }

    fn integer(&self, name: &str) -> Option<u64> {
        self.runtime.integer(&self.key(name)?)
    }
}

impl Fault {
    fn matches(&self, head: &HeaderMap) -> bool {
        let node = || head.get_str(Known::EnvoyDownstreamServiceNode);
        let from_node =
            self.nodes.is_empty() || node().is_some_and(|node| self.nodes.iter().any(|n| **n == *node));
        from_node && self.headers.iter().all(|matcher| matcher.matches(head))
    }

    /// Decides what happens to a request; `None`: nothing.
    fn decide(&self, head: &HeaderMap, random: &mut dyn FnMut() -> u64) -> Option<Decided> {
        if !self.matches(head) {
            return None;
        }
        let downstream = head.get_str(Known::EnvoyDownstreamServiceCluster);
        let keys = ClusterKeys { runtime: &self.runtime, cluster: downstream };
        let rate = self.rate_limit.as_ref().and_then(|limit| limit.decide(head, random));
        let delay = self.delay.as_ref().and_then(|delay| delay.decide(head, &keys, random));
        let abort = self.abort.as_ref().and_then(|abort| abort.decide(head, &keys, random));
        (rate.is_some() || delay.is_some() || abort.is_some()).then_some(Decided { rate, delay, abort })
    }

    /// Tells access logs of a fault.
    fn note(&self, info: &mut StreamInfo, namespace: &str) {
        if !self.metadata.is_empty() {
            let values = self.metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
            info.metadata.values_mut(namespace).extend(values);
        }
    }
}

impl Share {
    /// Whether this request belongs to the share. `runtime` says so instead of the configuration.
    fn hit(&self, head: &HeaderMap, runtime: Option<(u32, u32)>, random: &mut dyn FnMut() -> u64) -> bool {
        let (numerator, denominator) = runtime.unwrap_or_else(|| {
            let (numerator, denominator) = self.configured;
            let asked =
                self.header.and_then(|name| number(head.find(name)?)).and_then(|n| u32::try_from(n).ok());
            (asked.map_or(numerator, |asked| asked.min(numerator)), denominator)
        });
        numerator > 0 && random() % u64::from(denominator.max(1)) < u64::from(numerator)
    }

    /// The same, with the key of the downstream cluster.
    fn hit_by(
        &self,
        head: &HeaderMap,
        keys: &ClusterKeys<'_>,
        name: &str,
        random: &mut dyn FnMut() -> u64,
    ) -> bool {
        let runtime = match keys.key(name) {
            Some(key) => keys.runtime.fraction(&key),
            None => self.runtime,
        };
        self.hit(head, runtime, random)
    }
}

impl Delay {
    fn decide(
        &self,
        head: &HeaderMap,
        keys: &ClusterKeys<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Duration> {
        if !self.share.hit_by(head, keys, "delay.fixed_delay_percent", random) {
            return None;
        }
        let asked = || number(head.find("x-envoy-fault-delay-request")?).map(Duration::from_millis);
        let duration = self.duration.or_else(asked)?;
        let general = self.runtime.unwrap_or(duration);
        let duration = keys.integer("delay.fixed_duration_ms").map_or(general, Duration::from_millis);
        (!duration.is_zero()).then_some(duration)
    }
}

impl Abort {
    fn decide(
        &self,
        head: &HeaderMap,
        keys: &ClusterKeys<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Reply> {
        if !self.share.hit_by(head, keys, "abort.abort_percent", random) {
            return None;
        }
        let asked = |name| number(head.find(name)?);
        let (http, grpc) = match self.status {
            AbortStatus::Http(status) => (Some(u64::from(status)), None),
            AbortStatus::Grpc(status) => (None, Some(u64::from(status))),
            AbortStatus::Header => {
                let http = asked("x-envoy-fault-abort-request").filter(|status| (200..600).contains(status));
                (http, asked("x-envoy-fault-abort-grpc-request"))
            }
        };
        // A request that names its downstream cluster does not read the general key, as in Envoy.
        let runtime = |configured: u64, general: Option<u64>, name| match keys.cluster {
            Some(_) => keys.integer(name).unwrap_or(configured),
            None => general.unwrap_or(configured),
        };
        let reply = |status| {
            Reply::new(status, "fault_filter_abort", self.body.clone()).flag(ResponseFlags::FAULT_INJECTED)
        };
        if let Some(configured) = http {
            let status = runtime(configured, self.runtime_http, "abort.http_status");
            let valid = |status: u64| u16::try_from(status).ok().filter(|status| (200..600).contains(status));
            return Some(reply(valid(status).or_else(|| valid(configured))?));
        }
        let status = runtime(grpc?, self.runtime_grpc, "abort.grpc_status");
        let grpc_status = Some(u32::try_from(status).unwrap_or(u32::MAX));
        Some(Reply { grpc_status, ..reply(200) })
    }
}

impl RateLimit {
    /// The rate in KiB/s.
    fn decide(&self, head: &HeaderMap, random: &mut dyn FnMut() -> u64) -> Option<u64> {
        if !self.share.hit(head, self.share.runtime, random) {
            return None;
        }
        let asked = || number(head.find("x-envoy-fault-throughput-response")?).filter(|rate| *rate > 0);
        self.kib_per_second.or_else(asked)
    }
}

/// A number in a header that anybody may send.
fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']).parse().ok()
}
