//! `envoy.filters.http.local_ratelimit`: answers 429 to requests beyond a rate.
//!
//! Settings of the most specific level replace the chain's, buckets included. Descriptors are made
//! of a request only where there are limits for descriptors (`http::route::rate_limit`).
//! Reading order: this file, `buckets`, `config`.

mod buckets;
mod config;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use leno_base::FastHash;
use smallvec::SmallVec;

use self::buckets::{Buckets, Plan};
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::route::Action;
use crate::http::route::mutation::HeaderMutations;
use crate::http::route::rate_limit::{Descriptor, RateLimit};
use crate::http::stream::{Stream, now};
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::ResponseFlags;
use crate::token_bucket::TokenBucket;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.local_ratelimit",
    config_type: "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"),
    lower_route: Some(config::lower_route),
};

const DETAILS: &str = "local_rate_limited";

stats_scope! {
    /// `STAT_PREFIX.http_local_rate_limit.`
    struct LimitStats {
        counter enabled;
        counter enforced;
        counter ok;
        counter rate_limited;
    }
}

/// LocalRateLimit, of the chain or of a route.
#[derive(Debug)]
struct LocalRateLimit(Arc<Settings>);

#[derive(Debug)]
struct Settings {
    /// Tells it from others in the workers' memories.
    number: u64,
    stat_prefix: Box<str>,
    status: u16,
    plan: Plan,
    /// Of all connections; with `per_connection` each has its own.
    shared: Buckets,
    per_connection: bool,
    /// `filter_enabled` and `filter_enforced`: numerator and denominator.
    enabled: (u32, u32),
    enforced: (u32, u32),
    /// `request_headers_to_add_when_not_enforced`
    request_headers: HeaderMutations,
    response_headers: HeaderMutations,
    stage: u32,
    /// `rate_limits`, instead of the route's.
    rate_limits: Vec<RateLimit>,
    /// `vh_rate_limits`
    host_limits: HostLimits,
    /// `enable_x_ratelimit_headers`, `enable_retry_after_header`
    tells_limits: bool,
    tells_wait: bool,
    as_resource_exhausted: bool,
    stats: PerThread<LimitStats>,
}

/// What counts of the virtual host's rate limits beside the route's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostLimits {
    /// They count where the route has none.
    Override,
    Include,
    Ignore,
}

impl FilterConfig for LocalRateLimit {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let route = settings.and_then(RouteSettings::first::<LocalRateLimit>);
        let config = &route.unwrap_or(self).0;
        let hit = |(share, of): (u32, u32)| {
            share > 0 && stream.worker.random() % u64::from(of.max(1)) < u64::from(share)
        };
        if !hit(config.enabled) {
            return Opening::PASS;
        }
        let thread = stream.worker.stats();
        let stats = config.stats.of(thread, || LimitStats::kept(thread, &config.stat_prefix));
        stats.enabled().inc();
        let descriptors = config.descriptors(stream, head);
        let decision = match config.per_connection {
            false => config.shared.take(&config.plan, &descriptors, now()),
            true => config.of_connection(stream.info.connection.id).take(&config.plan, &descriptors, now()),
        };
        let telling = |bucket: Option<Arc<TokenBucket>>| {
            bucket.filter(|_| config.tells_limits).map(|bucket| Telling { bucket, step: None })
        };
        if decision.allowed {
            stats.ok().inc();
            return telling(decision.bucket)
                .map_or(Opening::PASS, |telling| Opening::Open(Box::new(telling)));
        }
        stats.rate_limited().inc();
        if !hit(config.enforced) {
            let context = FormatContext::new(&stream.info);
            config.request_headers.apply(head, &context);
            return telling(decision.bucket)
                .map_or(Opening::PASS, |telling| Opening::Open(Box::new(telling)));
        }
        stats.enforced().inc();
        let reply = config.refusal(stream, head, decision.bucket.as_deref());
        match telling(decision.bucket) {
            Some(telling) => Opening::Open(Box::new(Telling { step: Some(Step::Reply(reply)), ..telling })),
            None => Opening::Done(Step::Reply(reply)),
        }
    }
}

impl Settings {
    /// What a request is counted as.
    fn descriptors(&self, stream: &Stream, head: &HeaderMap) -> SmallVec<[Descriptor; 2]> {
        let mut descriptors = SmallVec::new();
        if self.plan.limits.is_empty() {
            return descriptors;
        }
        if !self.rate_limits.is_empty() {
            let limits = self.rate_limits.iter().filter(|limit| !limit.at_end);
            descriptors.extend(limits.filter_map(|limit| limit.descriptor(stream, head)));
            return descriptors;
        }
        let mut add = |limits: &[RateLimit]| {
            let limits = limits.iter().filter(|limit| !limit.at_end && limit.stage == self.stage);
            let made = limits.filter_map(|limit| limit.descriptor(stream, head));
            // Routes' addends are for services that are asked, as in Envoy.
            descriptors.extend(made.map(|descriptor| Descriptor { hits: 1, ..descriptor }));
        };
        let Some(selected) = &stream.selected else { return descriptors };
        let Action::Forward(route) = &selected.route.action else { return descriptors };
        add(&route.rate_limits);
        let with_host = match self.host_limits {
            _ if route.include_host_rate_limits => true,
            HostLimits::Include => true,
            HostLimits::Override => route.rate_limits.is_empty(),
            HostLimits::Ignore => false,
        };
        if with_host {
            add(&selected.virtual_host.rate_limits);
        }
        descriptors
    }

    /// The buckets of one connection. Those that are full are forgotten once in a while: new ones
    /// do as well.
    fn of_connection(&self, id: u64) -> Rc<Buckets> {
        thread_local! {
            #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
            static BUCKETS: RefCell<(HashMap<(u64, u64), Rc<Buckets>, FastHash>, usize)> = RefCell::default();
        }
        BUCKETS.with_borrow_mut(|(all, limit)| {
            if let Some(buckets) = all.get(&(self.number, id)) {
                return Rc::clone(buckets);
            }
            if all.len() >= *limit {
                let now = now();
                all.retain(|_, buckets| !buckets.are_full(now));
                *limit = (all.len() * 2).max(1024);
            }
            let buckets = Rc::new(self.plan.buckets());
            all.insert((self.number, id), Rc::clone(&buckets));
            buckets
        })
    }

    fn refusal(&self, stream: &Stream, head: &HeaderMap, bucket: Option<&TokenBucket>) -> Reply {
        let mut reply =
            Reply::new(self.status, DETAILS, "local_rate_limited").flag(ResponseFlags::RATE_LIMITED);
        if self.as_resource_exhausted {
            reply = reply.grpc(8);
        }
        let mut added = HeaderMap::new();
        if let Some(bucket) = bucket.filter(|_| self.tells_wait) {
            added.append(b"retry-after", seconds(bucket).to_string().as_bytes());
        }
        if !self.response_headers.is_empty() {
            let context = FormatContext { request: Some(head), ..FormatContext::new(&stream.info) };
            self.response_headers.apply(&mut added, &context);
        }
        for (name, value) in added.iter() {
            reply = reply.header(String::from_utf8_lossy(name).into_owned(), value.to_vec());
        }
        reply
    }
}

/// Whole seconds until there is a token.
fn seconds(bucket: &TokenBucket) -> u64 {
    let wait = bucket.until_token(now());
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Tells the client of the limit (draft-polli-ratelimit-headers, version 3).
struct Telling {
    bucket: Arc<TokenBucket>,
    /// What becomes of the request.
    step: Option<Step>,
}

impl HttpStreamFilter for Telling {
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        self.step.take().unwrap_or(Step::Continue)
    }

    fn on_response(&mut self, _stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        let fields = [
            ("x-ratelimit-limit", u64::from(self.bucket.max())),
            ("x-ratelimit-remaining", self.bucket.remaining(now())),
            ("x-ratelimit-reset", seconds(&self.bucket)),
        ];
        for (name, value) in fields {
            head.set_named(name, value.to_string().as_bytes());
        }
        Step::Continue
    }
}
