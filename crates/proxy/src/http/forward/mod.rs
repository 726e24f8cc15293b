//! Envoy's router: a request goes to an endpoint of its route's cluster, again if it must.
//!
//! `forward` is the story: cluster, timeouts and retries, the head, then attempts. An attempt
//! (`Attempt`) moves request and response at the same time, in this one task: each turn asks for
//! the next thing that happened (`Event`), and what is buffered is written only when nothing
//! more can be moved, so that a message that is there goes out in one write.
//! Reading order: this file, `retry`, `head`, `body`, `mirror`.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::cluster::outlier::Report;
use crate::cluster::stats::Permit;
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::cluster::{PickContext, pool};
use crate::http::codec::h1::client::Answer;
use crate::http::codec::side::{Downstream, Untouched, Upstream};
use crate::http::codec::{Frame, ResetReason};
use crate::http::filters::Chain;
use crate::http::forward::active::Active;
use crate::http::forward::body::RequestBody;
use crate::http::forward::head::{Timeouts, announce_attempt, apply_stream_limits, set_number};
use crate::http::forward::retry::{Retries, Verdict};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::{ClusterChoice, Forward, Selected};
use crate::http::stream::{Attendant, Ended, Interrupted, Stream, broken_off, now};
use crate::http::timer::{Expired, Timer};
use crate::http::upgrade;
use crate::telemetry::stream_info::{Protocol, ResponseFlags};

mod active;
pub(crate) mod body;
pub(crate) mod head;
pub(crate) mod mirror;
pub(crate) mod retry;

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
    /// No response in `per_try_timeout`.
    TimedOut(Expired),
}

/// What happened next in an attempt.
enum Event {
    Request(Frame),
    /// A part of the request that has passed the filters.
    Filtered(Frame),
    Response(Frame),
    Interim,
    Head {
        end: bool,
    },
    Interrupted(Interrupted),
    Reset(ResetReason),
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
    let mut head = std::mem::take(&mut stream.request);
    let config = &stream.manager.router;
    let timeouts = Timeouts::read(route, config, &mut head);
    let retries = Retries::new(route.retry.as_ref(), config, &mut head);
    apply_stream_limits(stream, route, &head);
    announce_attempt(stream, selected, &timeouts, timeouts.global, 1, &mut head);
    head::prepare_request(stream, selected, route, &mut head);
    let mirrors = if route.mirrors.is_empty() {
        Vec::new()
    } else {
        mirror::chosen(&stream.worker, &route.mirrors, &head)
    };
    stream.request = head;
    let keep = if retries.enabled() || !mirrors.is_empty() {
        let limit = selected.route.buffer_limit.and_then(|limit| usize::try_from(limit).ok());
        limit.unwrap_or(cluster.config.buffer_limit)
    } else {
        REPLAY_LIMIT
    };
    // What filters held back of the body is still to be forwarded.
    let complete = exchange.down.request_complete() && !exchange.chain.has_ready();
    let body = RequestBody::new(keep, complete);
    let begun = now();
    let mut router = Router {
        exchange,
        selected,
        route,
        cluster,
        timeouts,
        retries,
        body,
        mirrors,
        begun,
        tried: SmallVec::new(),
        host: None,
    };
    router.request_completed();
    router.run().await
}

/// The cluster of a route; noted for the log. `None`: there is none of that name.
pub(crate) fn choose_cluster(
    stream: &mut Stream,
    selected: &Selected,
    route: &Forward,
) -> Option<Rc<WorkerCluster>> {
    let name = match &route.cluster {
        ClusterChoice::Name(name) => name,
        ClusterChoice::Weighted { clusters, .. } => &clusters.get(selected.weighted?)?.name,
        ClusterChoice::Header(name) => {
            let value = stream.request.find(name).and_then(|value| std::str::from_utf8(value).ok())?;
            let cluster = stream.worker.cluster(value)?;
            note_cluster(stream, &cluster);
            return Some(cluster);
        }
    };
    let cluster = stream.worker.cluster(name)?;
    note_cluster(stream, &cluster);
    Some(cluster)
}

fn note_cluster(stream: &mut Stream, cluster: &WorkerCluster) {
    stream.info.upstream.cluster = Some(cluster.config.stat_name.clone());
    stream.info.upstream.cluster_raw = Some(cluster.config.name.clone());
    stream.info.upstream.cluster_metadata = Some(std::sync::Arc::clone(&cluster.config.metadata));
}

/// One request being forwarded.
struct Router<'a, 'd, 'r> {
    exchange: Exchange<'a, 'd>,
    selected: &'r Selected,
    route: &'r Forward,
    cluster: Rc<WorkerCluster>,
    timeouts: Timeouts,
    retries: Retries,
    body: RequestBody,
    mirrors: Vec<Rc<WorkerCluster>>,
    begun: Instant,
    tried: SmallVec<[SocketAddr; 2]>,
    /// Who was tried last.
    host: Option<Rc<Host>>,
}

impl Router<'_, '_, '_> {
    /// Attempts, until one is the last.
    async fn run(&mut self) -> Result<(), Ended> {
        loop {
            let outcome = self.attempt().await?;
            self.exchange.stream.deadlines.per_try = None;
            self.exchange.stream.deadlines.per_try_idle = None;
            match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Failed(failure) => {
                    if self.body.can_replay() && self.retries.replay(failure.untouched) {
                        self.exchange.stream.info.upstream.attempts -= 1;
                        continue;
                    }
                    if let Some(host) = &self.host
                        && failure.reason != ResetReason::Overflow
                    {
                        host.report(Report::Failed);
                    }
                    let wanted = self.retries.on_reset(failure.reason, failure.started);
                    match self.take_retry(wanted) {
                        Verdict::Retry(wait, permit) => self.back_off(wait, permit).await?,
                        verdict => return Err(self.failed(&failure, &verdict)),
                    }
                }
                Outcome::RetriableResponse(verdict) => {
                    if let Verdict::Retry(wait, permit) = verdict {
                        self.back_off(wait, permit).await?;
                    }
                }
                Outcome::TimedOut(expired) => {
                    let wanted = self.retries.on_timeout();
                    match self.take_retry(wanted) {
                        Verdict::Retry(wait, permit) => self.back_off(wait, permit).await?,
                        verdict => {
                            self.flag_verdict(&verdict);
                            self.count_reply(504);
                            return Err(self.exchange.stream.expired(expired, self.exchange.down));
                        }
                    }
                }
            }
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
        let upstream = match pool::try_acquire(&self.cluster, &host, downstream_http2, fresh) {
            Some(upstream) => Ok(upstream),
            None => {
                let high_priority = self.route.high_priority;
                let wait = pool::wait(&self.cluster, &host, downstream_http2, high_priority, fresh);
                let Exchange { stream, down, timer, .. } = &mut self.exchange;
                match stream.attend(down, timer, wait).await {
                    Ok(acquired) => acquired,
                    Err(interrupted) => {
                        if matches!(interrupted, Interrupted::Downstream(_)) {
                            self.cluster.stats.upstream_rq_cancelled().inc();
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
        let Some(active) = Active::new(&self.cluster, &host, self.route.high_priority) else {
            self.cluster.stats.upstream_rq_active_overflow().inc();
            return Ok(Outcome::Failed(Failure {
                reason: ResetReason::Overflow,
                transport: None,
                untouched: Untouched::No,
                started: false,
            }));
        };
        host.report(Report::Connected);
        let mut upstream = upstream;
        let outcome = self.converse(&mut upstream, &host).await;
        let (sent, received) = upstream.wire_bytes();
        let info = &mut self.exchange.stream.info.upstream;
        // Of all attempts.
        info.wire_bytes_sent += sent;
        info.wire_bytes_received += received;
        drop(upstream);
        active.count(&outcome, self.exchange.stream.info.response_code);
        outcome
    }

    fn pick(&mut self) -> Option<Rc<Host>> {
        let stream = &mut *self.exchange.stream;
        stream.info.upstream.attempts += 1;
        let avoid_attempts = self.retries.avoid_attempts();
        let tried = |host: &Host| host.address.is_some_and(|address| self.tried.contains(&address));
        let context = PickContext {
            original_dst: stream.info.connection.local_restored.then_some(stream.info.connection.local),
            headers: Some(&stream.request),
            metadata: Some(&stream.info.metadata),
            rejects: if avoid_attempts.is_some() { Some(&tried) } else { None },
            attempts: avoid_attempts.unwrap_or(0),
            earlier_picks: stream.info.upstream.attempts - 1,
            ..PickContext::default()
        };
        let host = self.cluster.pick(&context)?;
        stream.info.upstream.host = host.address;
        stream.info.upstream.hostname = host.config.hostname.clone();
        stream.info.upstream.host_metadata = Some(std::sync::Arc::clone(&host.config.metadata));
        self.tried.extend(host.address);
        self.host = Some(Rc::clone(&host));
        let mut head = std::mem::take(&mut stream.request);
        let tell_original = !stream.manager.router.suppress_envoy_headers;
        head::rewrite_for_host(self.route, &host, tell_original, &mut head);
        let attempts = stream.info.upstream.attempts;
        if attempts > 1 {
            let spent = now().saturating_duration_since(self.begun);
            // In whole milliseconds, as Envoy counts.
            let spent = Duration::from_millis(u64::try_from(spent.as_millis()).unwrap_or(u64::MAX));
            let left = self.timeouts.global.map(|limit| limit.saturating_sub(spent));
            announce_attempt(stream, self.selected, &self.timeouts, left, attempts, &mut head);
        }
        stream.request = head;
        Some(host)
    }

    /// Sends the request and forwards the response, both at once.
    async fn converse(&mut self, up: &mut Upstream, host: &Host) -> Result<Outcome, Ended> {
        let started = now();
        let stream = &mut *self.exchange.stream;
        stream.info.upstream.protocol = Some(up.protocol());
        stream.info.upstream.ready_at = Some(started);
        stream.info.upstream.local = up.local_address();
        stream.info.upstream.connection_id = up.connection_id();
        stream.info.upstream.first_tx = Some(started);
        stream.deadlines.last = started;
        stream.deadlines.per_try =
            self.timeouts.per_try.filter(|_| self.body.complete).map(|limit| started + limit);
        stream.deadlines.per_try_idle = self.timeouts.per_try_idle;
        let bodiless = self.body.complete && self.body.is_empty();
        if let Err(reason) = up.send_head(&stream.request, bodiless) {
            return Ok(self.broken(up, reason));
        }
        if !bodiless {
            self.body.replay(up);
        }
        let mut answered = false;
        let mut ended = false;
        let mut response = std::mem::take(&mut self.exchange.stream.response);
        while !ended {
            match self.next_event(up, answered, &mut response).await {
                Event::Request(frame) => self.forward_request(frame, up).await?,
                Event::Filtered(frame) => self.send_request(frame, up),
                Event::Interim => {
                    if response.status() != 100 || self.exchange.stream.manager.proxy_100_continue {
                        self.exchange.down.send_informational(&response);
                    }
                }
                Event::Head { end } => {
                    host.report(Report::answer(&response, self.exchange.stream.is_grpc()));
                    if response.contains(Known::EnvoyImmediateHealthCheckFail) {
                        host.fail_health_check();
                    }
                    let retriable = self.retries.on_response(&response);
                    if retriable {
                        match self.take_retry(true) {
                            verdict @ Verdict::Retry(..) => {
                                drain(up);
                                self.exchange.stream.response = response;
                                return Ok(Outcome::RetriableResponse(verdict));
                            }
                            verdict => self.flag_verdict(&verdict),
                        }
                    } else if self.retries.done() > 0 && response.status() < 500 {
                        self.cluster.stats.upstream_rq_retry_success().inc();
                    }
                    answered = true;
                    ended = end;
                    self.body.forget();
                    self.begin_response(response, end).await?;
                    response = HeaderMap::default();
                }
                Event::Response(frame) => {
                    ended = frame.is_last();
                    self.forward_response(frame).await?;
                }
                Event::Interrupted(interrupted) => {
                    up.reset();
                    if !answered && interrupted.is_upstream_timeout() {
                        host.report(Report::TimedOut);
                    }
                    self.exchange.stream.response =
                        if answered { std::mem::take(&mut self.exchange.stream.response) } else { response };
                    return self.interrupted(interrupted, answered);
                }
                Event::Reset(reason) => {
                    if matches!(reason, ResetReason::RemoteReset | ResetReason::RemoteRefused) {
                        self.cluster.stats.upstream_rq_rx_reset().inc();
                    }
                    if reason == ResetReason::ProtocolError {
                        self.cluster.stats.upstream_cx_protocol_error().inc();
                    }
                    if answered {
                        host.report(Report::Failed);
                        broken_off(&mut self.exchange.stream.info, reason);
                        return Err(Ended::Aborted);
                    }
                    self.exchange.stream.response = response;
                    return Ok(self.broken(up, reason));
                }
            }
        }
        let ended = now();
        self.exchange.stream.info.upstream.last_rx = Some(ended);
        self.cluster.stats.upstream_rq_time().record_ms(ended.saturating_duration_since(started));
        if !self.body.complete {
            // The response is complete without the rest of the request.
            up.reset();
        }
        Ok(Outcome::Done)
    }

    /// The next thing that happens; writes what waits if nothing does.
    async fn next_event(&mut self, up: &mut Upstream, answered: bool, response: &mut HeaderMap) -> Event {
        let Exchange { stream, chain, down, timer } = &mut self.exchange;
        let complete = self.body.complete;
        poll_fn(|cx| {
            if complete {
                if let Poll::Ready(error) = down.poll_closed(cx) {
                    return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                }
            } else if up.poll_room(cx).is_ready() {
                if let Some(frame) = chain.take_ready() {
                    return Poll::Ready(Event::Filtered(frame));
                }
                match down.poll_frame(cx) {
                    Poll::Ready(Ok(frame)) => return Poll::Ready(Event::Request(frame)),
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                    }
                    Poll::Pending => {}
                }
            }
            if !answered {
                match up.poll_head(cx, response) {
                    Poll::Ready(Ok(Answer::Interim)) => return Poll::Ready(Event::Interim),
                    Poll::Ready(Ok(Answer::Final { end })) => return Poll::Ready(Event::Head { end }),
                    Poll::Ready(Err(reason)) => return Poll::Ready(Event::Reset(reason)),
                    Poll::Pending => {}
                }
            } else if let Poll::Ready(room) = down.poll_room(cx) {
                if let Err(error) = room {
                    return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                }
                match up.poll_frame(cx) {
                    Poll::Ready(Ok(frame)) => return Poll::Ready(Event::Response(frame)),
                    Poll::Ready(Err(reason)) => return Poll::Ready(Event::Reset(reason)),
                    Poll::Pending => {}
                }
            }
            // Nothing can be moved: now is the time to write.
            let _: Poll<()> = up.poll_flush(cx);
            if let Poll::Ready(Err(error)) = down.poll_flush(cx) {
                return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
            }
            stream.deadlines.poll(cx, timer).map(|expired| Event::Interrupted(Interrupted::Expired(expired)))
        })
        .await
    }

    /// A piece of the request goes through the filters and up.
    async fn forward_request(&mut self, frame: Frame, up: &mut Upstream) -> Result<(), Ended> {
        let Exchange { stream, chain, down, timer } = &mut self.exchange;
        stream.deadlines.last = now();
        if let Frame::Data { data, .. } = &frame {
            stream.info.bytes_received += data.len() as u64;
        }
        if chain.is_empty() {
            self.send_request(frame, up);
            return Ok(());
        }
        for frame in chain.on_request_frame(stream, frame, &mut Attendant { down, timer }).await? {
            self.send_request(frame, up);
        }
        Ok(())
    }

    /// A piece of the request that has passed the filters goes up.
    fn send_request(&mut self, frame: Frame, up: &mut Upstream) {
        self.body.forward(frame, Some(up));
        if self.body.complete {
            let now = now();
            let info = &mut self.exchange.stream.info;
            info.request_complete = info.request_complete.or(Some(now));
            info.upstream.last_tx = Some(now);
            self.request_completed();
            self.exchange.stream.deadlines.per_try = self.timeouts.per_try.map(|limit| now + limit);
        }
    }

    /// The request is complete: the route's timeout begins, copies are sent.
    fn request_completed(&mut self) {
        if !self.body.complete {
            return;
        }
        let stream = &mut *self.exchange.stream;
        self.begun = now();
        stream.deadlines.request = None;
        if upgrade::requested(&stream.request).is_some() {
            // The client's half of a tunnel has ended; the other may go on.
            return;
        }
        stream.deadlines.route = self.timeouts.global.map(|limit| self.begun + limit);
        if !self.mirrors.is_empty() {
            mirror::send(std::mem::take(&mut self.mirrors), &stream.request, &self.body);
        }
    }

    /// The response's head goes down.
    async fn begin_response(&mut self, mut head: HeaderMap, end: bool) -> Result<(), Ended> {
        let Exchange { stream, chain, down, timer } = &mut self.exchange;
        let now = now();
        stream.deadlines.last = now;
        stream.deadlines.per_try = None;
        stream.info.upstream.first_rx = Some(now);
        stream.info.response_code_details = Some("via_upstream".into());
        // Header rules and filters may ask for it before the head is sent.
        stream.info.response_code = head.status();
        self.cluster.stats.count_response(head.status());
        if !stream.manager.router.suppress_envoy_headers && self.body.complete {
            let elapsed = now.saturating_duration_since(self.begun).as_millis();
            set_number(
                &mut head,
                Known::EnvoyUpstreamServiceTime,
                u64::try_from(elapsed).unwrap_or(u64::MAX),
            );
        }
        stream.mutate_response(self.selected, &mut head);
        if !chain.is_empty() {
            match chain.on_response(stream, head, end, &mut Attendant { down, timer }).await? {
                Some(passed) => head = passed,
                // It comes with the body.
                None => return Ok(()),
            }
        }
        self.send_response(head, end);
        Ok(())
    }

    /// The response's head goes down, filtered.
    fn send_response(&mut self, mut head: HeaderMap, end: bool) {
        let Exchange { stream, down, .. } = &mut self.exchange;
        stream.finish_head(&mut head);
        if !self.body.complete && upgrade::requested(&stream.request).is_none() {
            // The client may stop in the middle of its request now; Envoy says so at once too.
            down.close_after_response();
        }
        if head.status() == 101 {
            stream.deadlines.route = None;
            stream.stats.downstream_cx_upgrades_total().inc();
        }
        stream.send_head(head, end, down);
    }

    /// A piece of the response goes through the filters and down.
    async fn forward_response(&mut self, frame: Frame) -> Result<(), Ended> {
        let Exchange { stream, chain, down, timer } = &mut self.exchange;
        stream.deadlines.last = now();
        if chain.is_empty() {
            self.send_response_frame(frame);
            return Ok(());
        }
        let released = chain.on_response_frame(stream, frame, &mut Attendant { down, timer }).await?;
        if let Some(head) = released.head {
            self.send_response(head, false);
        }
        for frame in released.frames {
            self.send_response_frame(frame);
        }
        Ok(())
    }

    /// A piece of the response goes down, filtered.
    fn send_response_frame(&mut self, frame: Frame) {
        let Exchange { stream, down, .. } = &mut self.exchange;
        match frame {
            Frame::Data { data, end } => {
                stream.info.bytes_sent += data.len() as u64;
                down.send_data(data, end);
            }
            Frame::End => down.send_data(bytes::Bytes::new(), true),
            Frame::Trailers(trailers) => {
                down.send_trailers(&trailers);
                stream.trailers = Some(trailers);
            }
        }
    }

    /// The client is gone, or time is up.
    fn interrupted(&mut self, interrupted: Interrupted, answered: bool) -> Result<Outcome, Ended> {
        let stats = &self.cluster.stats;
        match interrupted {
            Interrupted::Downstream(error) => {
                self.count_reset();
                Err(Ended::Downstream(error))
            }
            Interrupted::Expired(expired @ (Expired::PerTry | Expired::PerTryIdle)) => {
                self.count_reset();
                if expired == Expired::PerTry {
                    stats.upstream_rq_per_try_timeout().inc();
                } else {
                    stats.upstream_rq_per_try_idle_timeout().inc();
                }
                if answered {
                    return Err(self.exchange.stream.expired(expired, self.exchange.down));
                }
                Ok(Outcome::TimedOut(expired))
            }
            Interrupted::Expired(expired) => {
                self.count_reset();
                if expired == Expired::Route {
                    stats.upstream_rq_timeout().inc();
                    if !answered {
                        self.count_reply(504);
                    }
                }
                Err(self.exchange.stream.expired(expired, self.exchange.down))
            }
        }
    }

    /// Counts a reset that we send: an HTTP/1 connection is closed instead.
    fn count_reset(&self) {
        if self.exchange.stream.info.upstream.protocol == Some(Protocol::Http2) {
            self.cluster.stats.upstream_rq_tx_reset().inc();
        }
    }

    fn broken(&mut self, up: &mut Upstream, reason: ResetReason) -> Outcome {
        let untouched = if reason == ResetReason::RemoteRefused { Untouched::Surely } else { up.untouched() };
        up.reset();
        let started = untouched != Untouched::Surely;
        Outcome::Failed(Failure { reason, transport: None, untouched, started })
    }

    fn take_retry(&mut self, wanted: bool) -> Verdict {
        if wanted && !self.body.can_replay() {
            self.cluster.stats.retry_or_shadow_abandoned().inc();
            return Verdict::No;
        }
        let random = self.exchange.stream.worker.random();
        self.retries.take(wanted, &self.cluster.config, &self.cluster.stats, self.route.high_priority, random)
    }

    /// Waits before the next attempt; the client and the route's timeout are watched.
    async fn back_off(&mut self, wait: Duration, permit: Permit) -> Result<(), Ended> {
        if !wait.is_zero() {
            let Exchange { stream, down, timer, .. } = &mut self.exchange;
            if let Err(interrupted) = stream.attend(down, timer, tokio::time::sleep(wait)).await {
                self.interrupted(interrupted, false)?;
            }
        }
        drop(permit);
        Ok(())
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
        let reply = Reply::upstream_failure(failure.reason, failure.transport.as_deref(), retried);
        self.count_reply(reply.status);
        reply.into()
    }

    /// An answer of ours in place of the cluster's counts for the cluster.
    fn count_reply(&self, status: u16) {
        self.cluster.stats.count_response(status);
    }
}

/// A response that is not forwarded: if it is here to its end, its connection lives on.
fn drain(up: &mut Upstream) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Ok(frame)) = up.poll_frame(&mut cx) {
        if frame.is_last() {
            return;
        }
    }
    up.reset();
}
