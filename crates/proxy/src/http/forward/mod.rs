//! Envoy's router: a request goes to an endpoint of its route's cluster, again if it must.
//!
//! `forward` is the story: cluster, timeouts and retries, the head, then attempts. An attempt
//! is a `Leg`: an exchange with one endpoint. `converse` moves request and response of a leg at
//! the same time, in this one task. With `hedge_on_per_try_timeout` a leg that is late is parked
//! and the next one sets out; whichever answers first is taken.
//! Reading order: this file, `converse`, `retry`, `head`, `body`, `mirror`.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::cluster::aggregate::Picked;
use crate::cluster::outlier::Report;
use crate::cluster::pool;
use crate::cluster::pool::via::{self, Asking, Via};
use crate::cluster::stats::Permit;
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::http::codec::ResetReason;
use crate::http::codec::h1::client::Answer;
use crate::http::codec::side::{Downstream, Untouched, Upstream};
use crate::http::filters::Chain;
use crate::http::forward::active::Active;
use crate::http::forward::affinity::Affinity;
use crate::http::forward::body::RequestBody;
use crate::http::forward::count::Scopes;
use crate::http::forward::head::{Timeouts, announce_attempt, apply_stream_limits};
use crate::http::forward::retry::{Retries, Verdict};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::{ClusterChoice, Forward, RetryPolicy, Selected, WeightedTarget};
use crate::http::stream::{Ended, Interrupted, Stream, now};
use crate::http::timer::{Expired, Timer};
use crate::http::upgrade;
use crate::overload::Reaction;
use crate::telemetry::stream_info::{Protocol, ResponseFlags};

pub(crate) mod active;
mod affinity;
pub(crate) mod body;
mod bulk;
mod converse;
mod count;
pub(crate) mod head;
mod internal_redirect;
pub(crate) mod mirror;
pub(crate) mod retry;
pub(crate) mod strict;
pub(crate) mod upstream_log;

/// Bytes of a request that are kept for a replay when no retry policy asks for more.
const REPLAY_LIMIT: usize = 64 * 1024;

/// All that takes part in forwarding.
pub(crate) struct Exchange<'a, 'd> {
    /// The request.
    pub(crate) stream: &'a mut Stream,
    /// Its filters.
    pub(crate) chain: &'a mut Chain,
    /// The client.
    pub(crate) down: &'a mut Downstream<'d>,
    /// The clock.
    pub(crate) timer: &'a mut Timer,
}

/// How an attempt failed.
struct Failure {
    reason: ResetReason,
    transport: Option<Box<str>>,
    untouched: Untouched,
    /// A byte of the request was sent.
    started: bool,
}

/// How an attempt ended.
enum Outcome {
    /// The response was forwarded to its end.
    Done,
    /// No response has begun.
    Failed(Failure),
    /// The response's head is one that the policy retries.
    RetriableResponse(Verdict),
    /// The response's head is one that the policy would retry, but this attempt was followed by
    /// another one already, whose answer may be better.
    GivenUp,
    /// No response in `per_try_timeout`, or within the cluster's `max_stream_duration`.
    TimedOut(Expired),
    /// The same, but the attempt goes on beside the next one.
    Hedged(Verdict),
}

/// An exchange with one endpoint.
struct Leg {
    up: Upstream,
    /// Of all attempts, from 1.
    number: u32,
    host: Rc<Host>,
    active: Active,
    started: Instant,
    /// It was late, and another one was sent out beside it.
    hedged: bool,
    /// Its response, if its head was read while another attempt was waited for.
    answer: Option<(HeaderMap, bool)>,
}

/// What comes of waiting for the next attempt.
enum Waited<T> {
    /// What was waited for.
    Done(T),
    /// An attempt that goes on beside has answered.
    Answered(Box<Leg>),
}

/// What follows an attempt.
enum Next {
    /// Another one.
    Attempt,
    /// One that went on beside.
    Resume(Box<Leg>),
}

/// Forwards a request and its response.
pub(crate) async fn forward(
    exchange: Exchange<'_, '_>,
    selected: &Selected,
    route: &Forward,
) -> Result<(), Ended> {
    let stream = &mut *exchange.stream;
    stream.stats.rq_total().inc();
    let Some(cluster) = choose_cluster(stream, selected, route) else {
        stream.stats.no_cluster().inc();
        return Err(Reply::cluster_not_found(route.cluster_not_found_status).into());
    };
    // Whose retry policy is borrowed.
    let lender = Rc::clone(&cluster);
    let affinity = Affinity::new(&cluster, selected, route, stream);
    let mut head = std::mem::take(&mut stream.request);
    let prepared = prepare(stream, selected, route, &lender, &mut head);
    stream.request = head;
    let Prepared { scopes, timeouts, retries, mirrors } = prepared?;
    if cluster.drops.get() > 0 && stream.worker.random() % 1_000_000 < u64::from(cluster.drops.get()) {
        scopes.count_response(stream, &cluster, None, None, 503);
        return Err(Reply::dropped().into());
    }
    let keep = if retries.enabled() || !mirrors.is_empty() || route.redirects.is_some() {
        let limit = selected.route.buffer_limit.and_then(|limit| usize::try_from(limit).ok());
        limit.unwrap_or(cluster.config.buffer_limit)
    } else {
        REPLAY_LIMIT
    };
    // What filters held back of the body is still to be forwarded.
    let complete = exchange.down.request_complete() && !exchange.chain.has_request();
    let mut body = RequestBody::new(keep, complete);
    if let Some(again) = stream.redirected.as_mut() {
        body.begin_with(std::mem::take(&mut again.body));
    }
    // Unless a filter wanted to, nothing was waited for since the request came.
    let begun = if exchange.chain.has_waited() { now() } else { stream.deadlines.last };
    let mut router = Router {
        exchange,
        selected,
        route,
        member: Rc::clone(&cluster),
        cluster,
        scopes,
        timeouts,
        retries,
        body,
        mirrors,
        begun,
        turn: Some(begun),
        affinity,
        tried: SmallVec::new(),
        asked_for: None,
        host: None,
        hedged: Vec::new(),
    };
    router.request_completed(begun);
    let outcome = pin!(router.run()).await;
    if let Some(tracked) = router.cluster.tracked.as_ref().filter(|_| router.body.complete) {
        tracked.whole(now().saturating_duration_since(router.begun), router.timeouts.global);
    }
    while let Some(leg) = router.hedged.pop() {
        router.drop_leg(leg);
    }
    outcome
}

/// What a request's head says, and what became of it.
struct Prepared<'p> {
    scopes: Scopes,
    timeouts: Timeouts,
    retries: Retries<'p>,
    mirrors: Vec<mirror::Copy>,
}

/// Reads the router's own headers and rewrites the head.
fn prepare<'p>(
    stream: &mut Stream,
    selected: &Selected,
    route: &'p Forward,
    cluster: &'p WorkerCluster,
    head: &mut HeaderMap,
) -> Result<Prepared<'p>, Ended> {
    let scopes = Scopes::new(stream, selected, cluster, head);
    strict::check(&stream.manager.router.strict_headers, head)?;
    let policy = retry_policy(route, cluster);
    let grpc = stream.is_grpc();
    let timeouts = Timeouts::read(route, policy, &cluster.config.http, &stream.manager.router, grpc, head);
    let retries = Retries::new(policy, head);
    apply_stream_limits(stream, route, head);
    announce_attempt(stream, selected, route, &timeouts, timeouts.global, 1, head);
    head::prepare_request(stream, selected, route, head);
    let of_cluster = &cluster.config.http.mirrors;
    let mirrors = if of_cluster.is_empty() { &route.mirrors } else { of_cluster };
    let mirrors = if mirrors.is_empty() || head.method() == b"CONNECT" {
        Vec::new()
    } else {
        mirror::chosen(stream, mirrors, head)
    };
    Ok(Prepared { scopes, timeouts, retries, mirrors })
}

/// The cluster's retry policy replaces the route's.
fn retry_policy<'p>(route: &'p Forward, cluster: &'p WorkerCluster) -> Option<&'p RetryPolicy> {
    cluster.config.http.retry.as_deref().or(route.retry.as_deref())
}

/// The cluster of a route; noted for the log. `None`: there is none of that name.
pub(crate) fn choose_cluster(
    stream: &mut Stream,
    selected: &Selected,
    route: &Forward,
) -> Option<Rc<WorkerCluster>> {
    let named = |header: &str| {
        let value = stream.request.find(header).and_then(|value| std::str::from_utf8(value).ok())?;
        stream.worker.cluster(value)
    };
    let cluster = match &route.cluster {
        ClusterChoice::Name(name) => stream.worker.cluster_named(name)?,
        ClusterChoice::Header(name) => named(name)?,
        ClusterChoice::Weighted { clusters, .. } => match &clusters.get(selected.weighted?)?.cluster {
            WeightedTarget::Name(name) => stream.worker.cluster_named(name)?,
            WeightedTarget::Header(name) => named(name)?,
        },
    };
    note_cluster(stream, &cluster);
    Some(cluster)
}

fn note_cluster(stream: &mut Stream, cluster: &WorkerCluster) {
    stream.info.upstream.cluster = Some(Rc::clone(&cluster.facts));
}

/// One request being forwarded.
struct Router<'a, 'd, 'r> {
    exchange: Exchange<'a, 'd>,
    selected: &'r Selected,
    route: &'r Forward,
    cluster: Rc<WorkerCluster>,
    /// Whose endpoint was picked last: another one only of an aggregate cluster.
    member: Rc<WorkerCluster>,
    scopes: Scopes,
    timeouts: Timeouts,
    retries: Retries<'r>,
    body: RequestBody,
    mirrors: Vec<mirror::Copy>,
    begun: Instant,
    /// When what is done now began: as long as nothing is waited for, the clock need not be read.
    turn: Option<Instant>,
    affinity: Affinity,
    tried: SmallVec<[SocketAddr; 2]>,
    /// The host that endpoints are called by (`auto_sni`).
    asked_for: Option<Arc<str>>,
    /// Who was tried last.
    host: Option<Rc<Host>>,
    /// Attempts that were late and go on.
    hedged: Vec<Leg>,
}

impl Router<'_, '_, '_> {
    /// Attempts, until one is the last.
    async fn run(&mut self) -> Result<(), Ended> {
        let mut next = Next::Attempt;
        loop {
            let outcome = match next {
                Next::Attempt => pin!(self.attempt()).await,
                Next::Resume(leg) => Box::pin(self.take_leg(*leg)).await,
            };
            if let Ok(Outcome::Failed(failure)) = &outcome {
                let reason = failure.reason;
                self.exchange.stream.note_attempt(|log| log.failed(reason));
            }
            self.exchange.stream.end_attempt();
            let outcome = outcome?;
            self.exchange.stream.deadlines.per_try = None;
            self.exchange.stream.deadlines.per_try_idle = None;
            self.exchange.stream.deadlines.upstream = None;
            next = match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Failed(failure) => Box::pin(self.after_failure(failure)).await?,
                Outcome::RetriableResponse(Verdict::Retry(wait, permit)) => {
                    Box::pin(self.back_off(wait, permit, false)).await?
                }
                Outcome::Hedged(Verdict::Retry(wait, permit)) => {
                    Box::pin(self.back_off(wait, permit, true)).await?
                }
                Outcome::RetriableResponse(_) | Outcome::Hedged(_) => Next::Attempt,
                Outcome::GivenUp => self.resume_hedged(),
                Outcome::TimedOut(expired) => Box::pin(self.after_timeout(expired)).await?,
            };
        }
    }

    async fn after_failure(&mut self, failure: Failure) -> Result<Next, Ended> {
        if self.body.can_replay() && self.retries.replay(failure.untouched) {
            self.exchange.stream.info.upstream.attempts -= 1;
            return Ok(Next::Attempt);
        }
        if let Some(host) = &self.host
            && failure.reason != ResetReason::Overflow
        {
            host.report(Report::Failed);
        }
        let wanted = self.retries.on_reset(failure.reason, failure.started);
        match self.take_retry(wanted) {
            Verdict::Retry(wait, permit) => self.back_off(wait, permit, false).await,
            _ if !self.hedged.is_empty() => Ok(self.resume_hedged()),
            verdict => Err(self.failed(&failure, &verdict)),
        }
    }

    async fn after_timeout(&mut self, expired: Expired) -> Result<Next, Ended> {
        let wanted = self.retries.on_timeout();
        match self.take_retry(wanted) {
            Verdict::Retry(wait, permit) => self.back_off(wait, permit, expired != Expired::Upstream).await,
            verdict => {
                self.flag_verdict(&verdict);
                let status = if expired == Expired::Upstream { 0 } else { self.timeouts.late_status() };
                if status > 0 {
                    self.count_reply(status);
                }
                Err(self.expired(expired))
            }
        }
    }

    /// The answer to a passed deadline.
    fn expired(&mut self, expired: Expired) -> Ended {
        let ended = self.exchange.stream.expired(expired, self.exchange.down);
        match ended {
            Ended::Reply(mut reply) if expired.is_upstream_timeout() && self.timeouts.alternative => {
                // x-envoy-upstream-rq-timeout-alt-response
                reply.status = 204;
                reply.body = bytes::Bytes::new();
                Ended::Reply(reply)
            }
            ended => ended,
        }
    }

    /// One attempt, from picking an endpoint to the end of its response.
    async fn attempt(&mut self) -> Result<Outcome, Ended> {
        let Some(host) = self.pick() else {
            self.cluster.stats.upstream_cx_none_healthy().inc();
            self.count_reply(503);
            return Err(Reply::no_healthy_upstream().into());
        };
        let downstream_http2 = self.exchange.stream.info.protocol == Some(Protocol::Http2);
        let fresh = self.retries.replayed();
        if self.member.config.extras.is_some() {
            pool::preconnect::anticipate(&self.member, downstream_http2, self.route.high_priority);
        }
        let terminated = upgrade::terminated(&self.exchange.stream.request, self.route);
        let had = match terminated {
            Some(_) => None,
            None => pool::try_acquire(&self.member, &host, downstream_http2, fresh),
        };
        let upstream = match had {
            Some(upstream) => Ok(upstream),
            None if self.sheds_connection() => {
                Err(pool::PoolFailure { reason: ResetReason::Overflow, detail: None })
            }
            None => {
                let high_priority = self.route.high_priority;
                let cluster = Rc::clone(&self.member);
                let waited = if terminated.is_some() {
                    let wait = pool::tunnel::open(&cluster, &host, high_priority);
                    Box::pin(self.wait(async { wait.await.map(Upstream::Tunnel) })).await
                } else {
                    let wait = pool::wait(&cluster, &host, downstream_http2, high_priority, fresh);
                    Box::pin(self.wait(wait)).await
                };
                match waited {
                    Ok(Waited::Done(acquired)) => acquired,
                    Ok(Waited::Answered(leg)) => return Box::pin(self.take_leg(*leg)).await,
                    Err(interrupted) => {
                        if matches!(interrupted, Interrupted::Downstream(_)) {
                            self.member.stats.upstream_rq_cancelled().inc();
                        }
                        return self.interrupted(interrupted, false);
                    }
                }
            }
        };
        let upstream = match upstream {
            Ok(upstream) => upstream,
            Err(failure) => {
                if failure.reason == ResetReason::Overflow {
                    self.exchange.stream.info.upstream.host = None;
                }
                if let Some(detail) = &failure.detail {
                    let words = detail.replace(' ', "_");
                    self.exchange.stream.info.upstream.transport_failure = Some(words.into());
                }
                return Ok(Outcome::Failed(Failure {
                    reason: failure.reason,
                    transport: failure.detail,
                    untouched: Untouched::No,
                    started: false,
                }));
            }
        };
        let Some(active) = Active::new(&self.member, &host, self.route.high_priority) else {
            self.member.stats.upstream_rq_active_overflow().inc();
            return Ok(Outcome::Failed(Failure {
                reason: ResetReason::Overflow,
                transport: None,
                untouched: Untouched::No,
                started: false,
            }));
        };
        self.scopes.each(|stats| stats.upstream_rq_total().inc());
        host.report(Report::Connected);
        let mut upstream = upstream;
        if let Some(version) = terminated.and_then(|config| config.proxy_protocol) {
            let connection = &self.exchange.stream.info.connection;
            let announcement = upgrade::proxy_header(version, connection.remote, connection.local);
            upstream.send_data(announcement.into(), false);
        }
        let number = self.exchange.stream.info.upstream.attempts;
        let started = self.now();
        let mut leg = Leg { up: upstream, number, host, active, started, hedged: false, answer: None };
        let outcome = match self.set_out(&mut leg) {
            Some(outcome) => Ok(outcome),
            None => pin!(self.resume(&mut leg)).await,
        };
        self.settle(leg, outcome)
    }

    /// A leg that was parked is the one that counts from now on.
    async fn take_leg(&mut self, mut leg: Leg) -> Result<Outcome, Ended> {
        self.note_host(&leg.host);
        self.member = Rc::clone(leg.active.cluster());
        self.exchange.stream.end_attempt();
        self.exchange.stream.resume_attempt(leg.number);
        let outcome = self.resume(&mut leg).await;
        self.settle(leg, outcome)
    }

    /// Counts what became of a leg, or parks it.
    fn settle(&mut self, mut leg: Leg, outcome: Result<Outcome, Ended>) -> Result<Outcome, Ended> {
        if let Ok(Outcome::Hedged(_)) = outcome {
            leg.hedged = true;
            self.hedged.push(leg);
            self.exchange.stream.park_attempt();
            return outcome;
        }
        self.count_wire_bytes(&mut leg);
        if let Ok(Outcome::Done) = outcome {
            leg.up.ended(self.exchange.stream.deadlines.last);
        }
        if let Some(tracked) = &self.member.tracked {
            let stream = &*self.exchange.stream;
            let answered = matches!(outcome, Ok(Outcome::Done));
            let response = answered.then_some((&stream.response, stream.info.bytes_sent));
            tracked.attempt((&stream.request, stream.info.bytes_received), response);
            tracked.per_try(now().saturating_duration_since(leg.started), self.timeouts.per_try);
        }
        let Leg { up, active, .. } = leg;
        drop(up);
        active.count(&outcome, self.exchange.stream.info.response_code);
        outcome
    }

    fn count_wire_bytes(&mut self, leg: &mut Leg) -> (u64, u64) {
        let (sent, received) = leg.up.wire_bytes();
        let info = &mut self.exchange.stream.info.upstream;
        // Of all attempts.
        info.wire_bytes_sent += sent;
        info.wire_bytes_received += received;
        (sent, received)
    }

    /// The time of this turn.
    fn now(&mut self) -> Instant {
        *self.turn.get_or_insert_with(now)
    }

    /// Whether overload lets no connection be made for the request.
    fn sheds_connection(&self) -> bool {
        let worker = &self.exchange.stream.worker;
        let overload = worker.overload();
        !overload.is_calm() && overload.sheds(Reaction::ShedUpstream, worker.stats(), || worker.random())
    }

    fn pick(&mut self) -> Option<Rc<Host>> {
        let stream = &mut *self.exchange.stream;
        stream.info.upstream.attempts += 1;
        let attempts = stream.info.upstream.attempts;
        if attempts > 1 {
            let cluster = &self.cluster;
            self.retries.exclude_priorities(|| stream.worker.priorities(cluster));
        }
        let omitted = |host: &Host| self.retries.omits(host, &self.tried);
        let omits = attempts > 1 && self.retries.host_selection_attempts() > 0;
        let mut context = self.affinity.context(self.selected, stream);
        if attempts > 1 {
            context.rejects = if omits { Some(&omitted) } else { None };
            context.attempts = self.retries.host_selection_attempts();
            context.excluded_priorities = self.retries.excluded_priorities();
        }
        let Picked { cluster, mut host, priority } = stream.worker.pick(&self.cluster, &context)?;
        self.member = cluster;
        self.retries.attempted(priority);
        Affinity::chosen(&self.member, &host, &mut stream.info);
        if attempts == 1 {
            // Later attempts may find what the first one's endpoint made of it.
            self.asked_for = via::host(&self.member.config, &stream.request);
        }
        let asking = Asking {
            connection: &stream.info.connection,
            http2: stream.info.protocol == Some(Protocol::Http2),
            announce: stream.manager.announce_client,
            host: self.asked_for.as_ref(),
            alpn: host.transport.tls().and_then(|_| self.exchange.chain.alpn(stream)),
        };
        if let Some(wanted) = Via::of_request(&self.member.config, &self.member.facts, asking) {
            host = host.via(wanted);
        }
        if let Some(address) = host.address.filter(|_| self.retries.host_selection_attempts() > 0) {
            self.tried.push(address);
        }
        if attempts > 1 {
            self.exchange.stream.info.upstream.begin_again();
        }
        self.note_host(&host);
        let stream = &mut *self.exchange.stream;
        let mut head = std::mem::take(&mut stream.request);
        let tell_original = !stream.manager.router.suppress_envoy_headers;
        head::rewrite_for_host(self.route, &host, tell_original, &mut head);
        if stream.manager.scheme_of_upstream {
            let scheme: &[u8] = if host.transport.tls().is_some() { b"https" } else { b"http" };
            head.set(Known::Scheme, scheme);
        }
        if attempts > 1 {
            let spent = now().saturating_duration_since(self.begun);
            // In whole milliseconds, as Envoy counts.
            let spent = Duration::from_millis(u64::try_from(spent.as_millis()).unwrap_or(u64::MAX));
            let left = self.timeouts.global.map(|limit| limit.saturating_sub(spent));
            announce_attempt(stream, self.selected, self.route, &self.timeouts, left, attempts, &mut head);
        }
        stream.request = head;
        stream.begin_attempt();
        Some(host)
    }

    fn note_host(&mut self, host: &Rc<Host>) {
        let info = &mut self.exchange.stream.info.upstream;
        info.host = host.address;
        info.endpoint = Some(Rc::clone(&host.config));
        self.host = Some(Rc::clone(host));
    }

    /// Waits for something before the next attempt, while the client, the clock and the attempts
    /// that go on are watched.
    async fn wait<T>(&mut self, future: impl Future<Output = T>) -> Result<Waited<T>, Interrupted> {
        self.turn = None;
        let mut future = pin!(future);
        let Router { exchange, hedged, retries, .. } = self;
        let Exchange { stream, down, timer, .. } = exchange;
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(Waited::Done(value)));
            }
            if let Some(leg) = poll_hedged(cx, hedged, retries, stream) {
                return Poll::Ready(Ok(Waited::Answered(Box::new(leg))));
            }
            stream.poll_interrupted(cx, down, timer).map(Err)
        })
        .await
    }

    /// Waits for the attempts that go on: there will be no further one.
    fn resume_hedged(&mut self) -> Next {
        self.hedged.pop().map_or(Next::Attempt, |leg| Next::Resume(Box::new(leg)))
    }

    fn take_retry(&mut self, wanted: bool) -> Verdict {
        if wanted && !self.body.can_replay() {
            self.cluster.stats.retry_or_shadow_abandoned().inc();
            return Verdict::No;
        }
        let random = self.exchange.stream.worker.random();
        self.retries.take(
            wanted,
            &self.cluster.config,
            &self.cluster.stats,
            &self.scopes,
            self.route.high_priority,
            random,
        )
    }

    /// Waits before the next attempt; the client and the route's timeout are watched.
    async fn back_off(&mut self, wait: Duration, permit: Permit, late: bool) -> Result<Next, Ended> {
        if !wait.is_zero() {
            match self.wait(tokio::time::sleep(wait)).await {
                Ok(Waited::Done(())) => {}
                Ok(Waited::Answered(leg)) => return Ok(Next::Resume(leg)),
                Err(interrupted) => {
                    self.interrupted(interrupted, false)?;
                }
            }
        }
        drop(permit);
        if self.selected.virtual_host.include_is_timeout_retry {
            let value: &[u8] = if late { b"true" } else { b"false" };
            self.exchange.stream.request.set(Known::EnvoyIsTimeoutRetry, value);
        }
        Ok(Next::Attempt)
    }

    fn flag_verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::LimitExceeded => {
                self.exchange.stream.info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
            }
            Verdict::Overflow => self.exchange.stream.info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW),
            Verdict::Retry(..) | Verdict::No => {}
        }
    }

    fn failed(&mut self, failure: &Failure, verdict: &Verdict) -> Ended {
        self.flag_verdict(verdict);
        let retried = self.exchange.stream.info.upstream.attempts > 1;
        let mut reply = Reply::upstream_failure(failure.reason, failure.transport.as_deref(), retried);
        let tells = !self.exchange.stream.manager.router.suppress_envoy_headers;
        if tells && failure.reason == ResetReason::Overflow {
            reply = reply.header("x-envoy-overloaded", b"true".as_slice());
        }
        self.count_reply(reply.status);
        reply.into()
    }

    /// An answer of ours in place of the cluster's counts for the cluster.
    fn count_reply(&self, status: u16) {
        let host = self.host.as_deref();
        self.scopes.count_response(self.exchange.stream, &self.cluster, host, None, status);
    }

    /// The client is gone, or time is up.
    fn interrupted(&mut self, interrupted: Interrupted, answered: bool) -> Result<Outcome, Ended> {
        let stats = &self.cluster.stats;
        match interrupted {
            Interrupted::Downstream(error) => {
                self.count_reset();
                Err(Ended::Downstream(error))
            }
            Interrupted::Expired(expired @ (Expired::PerTry | Expired::PerTryIdle | Expired::Upstream)) => {
                self.count_reset();
                self.exchange.stream.note_attempt(|log| match expired {
                    Expired::PerTry => log.flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
                    Expired::PerTryIdle => log.flag(ResponseFlags::STREAM_IDLE_TIMEOUT),
                    _ => {}
                });
                match expired {
                    Expired::PerTry => stats.upstream_rq_per_try_timeout().inc(),
                    Expired::Upstream => stats.upstream_rq_max_duration_reached().inc(),
                    _ => stats.upstream_rq_per_try_idle_timeout().inc(),
                }
                if answered {
                    return Err(self.expired(expired));
                }
                Ok(Outcome::TimedOut(expired))
            }
            Interrupted::Expired(expired) => {
                self.count_reset();
                if expired == Expired::Route {
                    let late = self.hedged.len() + 1;
                    for _ in 0..late {
                        stats.upstream_rq_timeout().inc();
                        self.scopes.each(|stats| stats.upstream_rq_timeout().inc());
                    }
                }
                if !answered && expired == Expired::Route {
                    self.count_reply(self.timeouts.late_status());
                }
                Err(self.expired(expired))
            }
        }
    }

    /// Counts a reset that we send: an HTTP/1 connection is closed instead.
    fn count_reset(&self) {
        if self.exchange.stream.info.upstream.protocol == Some(Protocol::Http2) {
            self.member.stats.upstream_rq_tx_reset().inc();
        }
    }

    /// Counts the end of an HTTP/2 stream before its response's; of HTTP/1, connections are
    /// counted.
    fn count_broken(&self, reason: ResetReason) {
        let stats = &self.member.stats;
        if reason == ResetReason::ProtocolError {
            stats.upstream_cx_protocol_error().inc();
        }
        if self.exchange.stream.info.upstream.protocol == Some(Protocol::Http2) {
            match reason {
                ResetReason::RemoteReset => stats.upstream_rq_rx_reset().inc(),
                ResetReason::ProtocolError => stats.upstream_rq_tx_reset().inc(),
                // Envoy's name for it is older than its use here.
                ResetReason::ConnectionTermination => stats.upstream_rq_pending_failure_eject().inc(),
                _ => {}
            }
        }
    }

    fn broken(&mut self, up: &mut Upstream, reason: ResetReason) -> Outcome {
        let untouched = if reason == ResetReason::RemoteRefused { Untouched::Surely } else { up.untouched() };
        self.count_broken(reason);
        up.reset();
        let started = untouched != Untouched::Surely;
        Outcome::Failed(Failure { reason, transport: None, untouched, started })
    }
}

/// The first of the parked attempts that has answered well enough to be taken. Those that broke,
/// or whose answer another attempt may better, go.
fn poll_hedged(
    cx: &mut Context<'_>,
    hedged: &mut Vec<Leg>,
    retries: &Retries<'_>,
    stream: &mut Stream,
) -> Option<Leg> {
    let mut index = 0;
    while let Some(leg) = hedged.get_mut(index) {
        let mut head = HeaderMap::default();
        let _: Poll<()> = leg.up.poll_flush(cx);
        match leg.up.poll_head(cx, &mut head) {
            Poll::Pending => index += 1,
            Poll::Ready(Ok(Answer::Interim)) => {}
            Poll::Ready(Ok(Answer::Final { end })) => {
                let mut leg = hedged.remove(index);
                if !retries.would_retry(&head) {
                    leg.answer = Some((head, end));
                    return Some(leg);
                }
                leg.up.reset();
                leg.active.failed();
                stream.end_parked_attempt(leg.number, leg.up.wire_bytes());
            }
            Poll::Ready(Err(_)) => {
                let mut leg = hedged.remove(index);
                leg.host.report(Report::Failed);
                leg.up.reset();
                leg.active.failed();
                stream.end_parked_attempt(leg.number, leg.up.wire_bytes());
            }
        }
    }
    None
}

/// A response that is not forwarded: if it is here to its end, its connection lives on.
fn drain(up: &mut Upstream) {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Ok(frame)) = up.poll_frame(&mut cx) {
        if frame.is_last() {
            return;
        }
    }
    up.reset();
}
