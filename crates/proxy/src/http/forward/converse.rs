//! One exchange with an endpoint: request and response move at the same time, in this one task.
//!
//! Each turn asks for the next thing that happened (`Event`), and what is buffered is written
//! only when nothing more can be moved, so that a message that is there goes out in one write.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

use super::bulk::{Bulk, Step};
use super::{Exchange, Failure, Leg, Outcome, Router, drain, internal_redirect, poll_hedged};
use crate::cluster::outlier::Report;
use crate::http::codec::h1::client::Answer;
use crate::http::codec::side::{Downstream, Untouched, Upstream};
use crate::http::codec::{Frame, ResetReason};
use crate::http::filters::{Chain, Part};
use crate::http::forward::head::set_number;
use crate::http::forward::mirror;
use crate::http::forward::retry::Verdict;
use crate::http::forward::upstream_log::AttemptLog;
use crate::http::headers::{HeaderMap, Known};
use crate::http::stream::{Ended, Interrupted, Stream, broken_off, now};
use crate::http::timer::Expired;
use crate::http::upgrade;
use crate::telemetry::access_log::LogType;
use crate::telemetry::stream_info::ResponseFlags;

/// What happened next in an attempt.
enum Event {
    Request(Frame),
    /// A part of the request that has passed the filters.
    Filtered(Frame),
    Response(Frame),
    /// A part of the response that has passed the filters.
    Passed(Part),
    /// A filter ends the stream.
    Ended(Ended),
    /// A part of the request's body passed by, and whether it was the last.
    RequestPassed(usize, bool),
    /// A part of the response's body passed by, and whether it was the last.
    ResponsePassed(usize, bool),
    Interim,
    Head {
        end: bool,
    },
    /// A parked attempt answered first.
    Hedge(Box<Leg>),
    Interrupted(Interrupted),
    Reset(ResetReason),
}

impl Router<'_, '_, '_> {
    /// Sends the request, as far as it is there; `resume` is what follows. `Some`: that failed.
    pub(super) fn set_out(&mut self, leg: &mut Leg) -> Option<Outcome> {
        let started = leg.started;
        let stream = &mut *self.exchange.stream;
        stream.info.upstream.ready_at = Some(started);
        stream.info.upstream.first_tx = Some(started);
        stream.deadlines.last = started;
        stream.deadlines.per_try =
            self.timeouts.per_try.filter(|_| self.body.complete).map(|limit| started + limit);
        stream.deadlines.per_try_idle = self.timeouts.per_try_idle;
        stream.deadlines.upstream = self.timeouts.upstream.map(|limit| started + limit);
        self.note_connection(&leg.up);
        self.exchange.stream.ready_attempt();
        let bodiless = self.body.complete && self.body.is_empty();
        if let Err(reason) = leg.up.send_head(&self.exchange.stream.request, bodiless) {
            // Nothing of it was sent: the connection ended while nobody looked.
            let untouched = Untouched::Surely;
            return Some(Outcome::Failed(Failure { reason, transport: None, untouched, started: false }));
        }
        if !bodiless {
            self.body.replay(&mut leg.up);
            let replayed = self.body.kept_len();
            self.exchange.stream.note_attempt(|log| log.sent(replayed));
        }
        if self.body.complete {
            self.exchange.stream.info.upstream.last_tx = Some(started);
        }
        None
    }

    fn note_connection(&mut self, up: &Upstream) {
        let info = &mut self.exchange.stream.info.upstream;
        info.protocol = up.protocol();
        info.local = up.local_address();
        info.tls = up.tls().cloned();
        info.connection_id = up.connection_id();
    }

    /// Forwards the response of a leg that has set out, and what is left of the request, both at
    /// once.
    pub(super) async fn resume(&mut self, leg: &mut Leg) -> Result<Outcome, Ended> {
        let mut answered = false;
        // Whether upstream's end of the response came, and whether it has passed the filters.
        let mut received = false;
        let mut ended = false;
        let mut bulk = (Bulk::default(), Bulk::default());
        let mut response = std::mem::take(&mut self.exchange.stream.response);
        while !ended {
            let event = match leg.answer.take() {
                Some((head, end)) => {
                    response = head;
                    Event::Head { end }
                }
                None => {
                    pin!(self.next_event(&mut leg.up, answered, received, &mut response, &mut bulk)).await
                }
            };
            match event {
                Event::Request(frame) => self.forward_request(frame, &mut leg.up)?,
                Event::Filtered(frame) => self.send_request(frame, &mut leg.up),
                Event::Passed(part) => ended = self.send_response_part(part),
                Event::Ended(ended) => {
                    if !received {
                        self.exchange.stream.note_attempt(AttemptLog::canceled);
                        leg.up.reset();
                        self.count_reset();
                    }
                    return Err(ended);
                }
                Event::Interim => {
                    let (stream, status) = (&*self.exchange.stream, response.status());
                    let host = Some(&*leg.host);
                    self.scopes.count_response(stream, &self.cluster, host, Some(&response), status);
                    if response.status() != 100 || self.exchange.stream.manager.proxy_100_continue {
                        let Exchange { stream, chain, down, .. } = &mut self.exchange;
                        chain.on_informational(stream, &mut response);
                        down.send_informational(&response);
                    }
                }
                Event::Hedge(mut winner) => {
                    std::mem::swap(leg, &mut *winner);
                    self.drop_leg(*winner);
                    self.exchange.stream.resume_attempt(leg.number);
                    let host = std::rc::Rc::clone(&leg.host);
                    self.note_host(&host);
                    self.note_connection(&leg.up);
                }
                Event::Head { end } => {
                    self.exchange.stream.note_attempt(|log| log.answered(&response));
                    if let Some(outcome) = self.on_head(leg, &response, end) {
                        self.exchange.stream.response = response;
                        return Ok(outcome);
                    }
                    if internal_redirect::wanted(self.route, &response)
                        && internal_redirect::set_up(self, &response)
                    {
                        if end {
                            leg.up.reset();
                        } else {
                            drain(&mut leg.up);
                        }
                        self.exchange.stream.info.response_code = response.status();
                        self.exchange.stream.response = response;
                        return Err(Ended::Redirected);
                    }
                    answered = true;
                    received = end;
                    self.body.forget();
                    ended = self.begin_response(leg, response, end);
                    response = HeaderMap::default();
                }
                Event::Response(frame) => {
                    received = frame.is_last();
                    ended = self.forward_response(frame)?;
                }
                Event::RequestPassed(count, end) => self.request_passed(count, end, &mut leg.up),
                Event::ResponsePassed(count, end) => {
                    (received, ended) = (end, end);
                    self.response_passed(count, end);
                }
                Event::Interrupted(Interrupted::Expired(Expired::PerTry))
                    if self.timeouts.hedge && !answered =>
                {
                    if let Some(outcome) = self.hedge(leg) {
                        self.exchange.stream.response = response;
                        return Ok(outcome);
                    }
                }
                Event::Interrupted(interrupted) => {
                    self.exchange.stream.note_attempt(AttemptLog::canceled);
                    leg.up.reset();
                    if !answered && interrupted.is_upstream_timeout() && !leg.hedged {
                        leg.host.report(Report::TimedOut);
                    }
                    self.exchange.stream.response =
                        if answered { std::mem::take(&mut self.exchange.stream.response) } else { response };
                    return self.interrupted(interrupted, answered);
                }
                Event::Reset(reason) => {
                    if answered {
                        self.count_broken(reason);
                        leg.host.report(Report::Failed);
                        broken_off(&mut self.exchange.stream.info, reason);
                        self.exchange.stream.note_attempt(|log| log.failed(reason));
                        return Err(Ended::Aborted);
                    }
                    self.exchange.stream.response = response;
                    let outcome = self.broken(&mut leg.up, reason);
                    if leg.hedged && !self.hedged.is_empty() {
                        leg.host.report(Report::Failed);
                        return Ok(Outcome::GivenUp);
                    }
                    return Ok(outcome);
                }
            }
        }
        let ended = self.exchange.stream.deadlines.last;
        self.exchange.stream.info.upstream.last_rx = Some(ended);
        if self.body.complete {
            let stream = &*self.exchange.stream;
            let time = ended.saturating_duration_since(self.begun);
            self.scopes.record_time(stream, &self.cluster, Some(&leg.host), &stream.response, time);
        } else {
            // The response is complete without the rest of the request.
            leg.up.reset();
        }
        Ok(Outcome::Done)
    }

    /// A response's head is here, and with `end` all of it: whether the attempt ends with it.
    fn on_head(&mut self, leg: &mut Leg, response: &HeaderMap, end: bool) -> Option<Outcome> {
        let errors = self.member.config.extras.as_ref().and_then(|extras| extras.errors.as_ref());
        leg.host.report_with(|| match errors {
            Some(errors) => errors.report(response),
            None => Report::answer(response, self.exchange.stream.is_grpc()),
        });
        if response.contains(Known::EnvoyDegraded) {
            leg.host.note_degraded();
        }
        self.affinity.answered(&self.member, &leg.host, response, leg.started);
        if response.contains(Known::EnvoyImmediateHealthCheckFail) {
            leg.host.fail_health_check();
        }
        if !self.retries.enabled() {
            return None;
        }
        if leg.hedged {
            // It was followed by another one already.
            if self.hedged.is_empty() || !self.retries.would_retry(response) {
                return None;
            }
            leg.up.reset();
            return Some(Outcome::GivenUp);
        }
        let info = &self.exchange.stream.info;
        let wall = || info.start_time + now().saturating_duration_since(info.started);
        let wanted = self.retries.on_response(response, wall);
        match self.take_retry(wanted) {
            verdict @ Verdict::Retry(..) => {
                let stream = &*self.exchange.stream;
                self.scopes.count_retried(stream, &self.cluster, response.status());
                if !end {
                    self.exchange.stream.note_attempt(AttemptLog::canceled);
                }
                drain(&mut leg.up);
                Some(Outcome::RetriableResponse(verdict))
            }
            Verdict::No => None,
            verdict => {
                self.flag_verdict(&verdict);
                if self.hedged.is_empty() {
                    return None;
                }
                leg.up.reset();
                Some(Outcome::GivenUp)
            }
        }
    }

    /// An attempt is late: the next one sets out beside it, if there are retries left.
    fn hedge(&mut self, leg: &mut Leg) -> Option<Outcome> {
        self.exchange.stream.deadlines.per_try = None;
        if leg.hedged {
            return None;
        }
        leg.host.report(Report::TimedOut);
        self.exchange.stream.note_attempt(|log| log.flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT));
        leg.hedged = true;
        if !self.retries.enabled() {
            return None;
        }
        match self.take_retry(true) {
            verdict @ Verdict::Retry(..) => Some(Outcome::Hedged(verdict)),
            verdict => {
                self.flag_verdict(&verdict);
                None
            }
        }
    }

    /// An attempt that lost against another one.
    pub(super) fn drop_leg(&mut self, mut leg: Leg) {
        leg.up.reset();
        self.count_reset();
        let bytes = self.count_wire_bytes(&mut leg);
        self.exchange.stream.end_parked_attempt(leg.number, bytes);
    }

    /// The next thing that happens; writes what waits if nothing does.
    async fn next_event(
        &mut self,
        up: &mut Upstream,
        answered: bool,
        received: bool,
        response: &mut HeaderMap,
        (bulk_up, bulk_down): &mut (Bulk, Bulk),
    ) -> Event {
        let Router { exchange, hedged, retries, body, turn, .. } = self;
        let Exchange { stream, chain, down, timer } = exchange;
        let complete = body.complete;
        poll_fn(|cx| {
            // A direction that is held up by a filter is not read.
            let mut held = [false, received];
            if !chain.is_empty() {
                if let Poll::Ready(event) = poll_filters(cx, chain, stream, up, down) {
                    return Poll::Ready(event);
                }
                held = [!chain.takes_request(), received || !chain.takes_response()];
            }
            let [request_held, response_held] = held;
            let mut watch_client = complete;
            if complete {
                // Nothing more is read.
            } else if request_held {
                if let Poll::Ready(error) = down.poll_gone(cx) {
                    return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                }
            } else if up.poll_room(cx).is_ready() {
                let unseen = chain.is_empty() && !body.keeps();
                let passed =
                    if unseen { bulk_up.poll_request(cx, down, up) } else { Poll::Ready(Step::Copy) };
                let frame = match passed {
                    Poll::Ready(Step::Copy) => down.poll_frame(cx),
                    Poll::Ready(Step::Passed { count, end }) => {
                        return Poll::Ready(Event::RequestPassed(count, end));
                    }
                    Poll::Ready(Step::Failed(error)) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                };
                match frame {
                    Poll::Ready(Ok(frame)) => return Poll::Ready(Event::Request(frame)),
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                    }
                    Poll::Pending => {}
                }
            } else {
                // The upload is held up: HTTP/2 tells all the same that the client is gone.
                watch_client = true;
            }
            if !answered {
                match up.poll_head(cx, response) {
                    Poll::Ready(Ok(Answer::Interim)) => return Poll::Ready(Event::Interim),
                    Poll::Ready(Ok(Answer::Final { end })) => return Poll::Ready(Event::Head { end }),
                    Poll::Ready(Err(reason)) => return Poll::Ready(Event::Reset(reason)),
                    Poll::Pending => {}
                }
                if !hedged.is_empty()
                    && let Some(leg) = poll_hedged(cx, hedged, retries, stream)
                {
                    return Poll::Ready(Event::Hedge(Box::new(leg)));
                }
            } else if !response_held && let Poll::Ready(room) = down.poll_room(cx) {
                if let Err(error) = room {
                    return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                }
                let passed = if chain.is_empty() {
                    bulk_down.poll_response(cx, up, down)
                } else {
                    Poll::Ready(Step::Copy)
                };
                let frame = match passed {
                    Poll::Ready(Step::Copy) => up.poll_frame(cx),
                    Poll::Ready(Step::Passed { count, end }) => {
                        return Poll::Ready(Event::ResponsePassed(count, end));
                    }
                    Poll::Ready(Step::Failed(Ok(reason))) => Poll::Ready(Err(reason)),
                    Poll::Ready(Step::Failed(Err(error))) => {
                        return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
                    }
                    Poll::Pending => Poll::Pending,
                };
                match frame {
                    Poll::Ready(Ok(frame)) => return Poll::Ready(Event::Response(frame)),
                    Poll::Ready(Err(reason)) => return Poll::Ready(Event::Reset(reason)),
                    Poll::Pending => {}
                }
            }
            // Nothing can be moved: now is the time to look after the client, and to write.
            if watch_client && let Poll::Ready(error) = down.poll_closed(cx) {
                return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
            }
            let _: Poll<()> = up.poll_flush(cx);
            if let Poll::Ready(Err(error)) = down.poll_flush(cx) {
                return Poll::Ready(Event::Interrupted(Interrupted::Downstream(error)));
            }
            *turn = None;
            stream.poll_deadlines(cx, timer).map(|expired| Event::Interrupted(Interrupted::Expired(expired)))
        })
        .await
    }

    /// A piece of the request goes up, or to the filters.
    fn forward_request(&mut self, frame: Frame, up: &mut Upstream) -> Result<(), Ended> {
        let now = self.now();
        let Exchange { stream, chain, .. } = &mut self.exchange;
        stream.deadlines.last = now;
        if let Frame::Data { data, .. } = &frame {
            stream.info.bytes_received += data.len() as u64;
        }
        if chain.is_empty() {
            self.send_request(frame, up);
            return Ok(());
        }
        chain.push_request(frame, stream)
    }

    /// A piece of the request that has passed the filters goes up.
    fn send_request(&mut self, frame: Frame, up: &mut Upstream) {
        if let Frame::Data { data, .. } = &frame {
            self.exchange.stream.note_attempt(|log| log.sent(data.len()));
        }
        self.body.forward(frame, Some(up));
        if self.body.complete {
            let now = self.now();
            let info = &mut self.exchange.stream.info;
            info.request_complete = info.request_complete.or(Some(now));
            info.upstream.last_tx = Some(now);
            self.request_completed(now);
            self.exchange.stream.deadlines.per_try = self.timeouts.per_try.map(|limit| now + limit);
        }
    }

    /// A part of the request's body went up unseen.
    fn request_passed(&mut self, count: usize, end: bool, up: &mut Upstream) {
        let now = self.now();
        let stream = &mut *self.exchange.stream;
        stream.deadlines.last = now;
        stream.info.bytes_received += count as u64;
        stream.note_attempt(|log| log.sent(count));
        self.body.passed();
        if end {
            self.send_request(Frame::End, up);
        }
    }

    /// A part of the response's body went down unseen.
    fn response_passed(&mut self, count: usize, end: bool) {
        let now = self.now();
        let stream = &mut *self.exchange.stream;
        stream.deadlines.last = now;
        stream.info.bytes_sent += count as u64;
        stream.note_attempt(|log| log.received(count));
        if end {
            self.send_response_frame(Frame::End);
        }
    }

    /// The request is complete: the route's timeout begins, copies are sent.
    pub(super) fn request_completed(&mut self, now: Instant) {
        if !self.body.complete {
            return;
        }
        let stream = &mut *self.exchange.stream;
        self.begun = now;
        stream.deadlines.request = None;
        if upgrade::requested(&stream.request).is_some() {
            // The client's half of a tunnel has ended; the other may go on.
            return;
        }
        stream.deadlines.route = self.timeouts.global.map(|limit| now + limit);
        if !self.mirrors.is_empty() {
            mirror::send(std::mem::take(&mut self.mirrors), stream, &self.body);
        }
    }

    /// The response's head goes down, or to the filters; says whether the response has ended.
    fn begin_response(&mut self, leg: &Leg, mut head: HeaderMap, end: bool) -> bool {
        // Whatever else is under way has lost.
        while let Some(other) = self.hedged.pop() {
            self.drop_leg(other);
        }
        let now = self.now();
        let Exchange { stream, chain, .. } = &mut self.exchange;
        stream.deadlines.last = now;
        stream.deadlines.per_try = None;
        stream.info.upstream.first_rx = Some(now);
        stream.info.response_code_details = Some("via_upstream".into());
        // Header rules and filters may ask for it before the head is sent.
        let (host, status) = (Some(&*leg.host), head.status());
        stream.info.response_code = status;
        self.scopes.count_response(stream, &self.cluster, host, Some(&head), status);
        if !stream.manager.router.suppress_envoy_headers && self.body.complete {
            let elapsed = now.saturating_duration_since(self.begun).as_millis();
            set_number(
                &mut head,
                Known::EnvoyUpstreamServiceTime,
                u64::try_from(elapsed).unwrap_or(u64::MAX),
            );
        }
        self.affinity.set_cookies(&mut head);
        stream.mutate_response(self.selected, &mut head);
        if chain.is_empty() {
            chain.on_response_head(stream, &mut head);
            self.send_response(head, end, now);
            return end;
        }
        chain.push_response(head, end, stream);
        false
    }

    /// The response's head goes down, filtered.
    fn send_response(&mut self, mut head: HeaderMap, end: bool, now: Instant) {
        let Exchange { stream, down, .. } = &mut self.exchange;
        stream.trace_response(&mut head);
        stream.finish_head(&mut head, now);
        if !self.body.complete && upgrade::requested(&stream.request).is_none() {
            // The client may stop in the middle of its request now; Envoy says so at once too.
            down.close_after_response();
        }
        stream.send_head(head, end, now, down);
        let status = stream.info.response_code;
        if status == 101 {
            stream.deadlines.route = None;
            stream.stats.downstream_cx_upgrades_total().inc();
        }
        let tunnel = status == 101 || stream.request.method() == b"CONNECT" && status / 100 == 2;
        if tunnel && stream.manager.log_tunnels {
            stream.log(LogType::DownstreamTunnelSuccessfullyEstablished, None);
        }
    }

    /// A piece of the response goes down, or to the filters; says whether the response has ended.
    fn forward_response(&mut self, frame: Frame) -> Result<bool, Ended> {
        let now = self.now();
        let Exchange { stream, chain, .. } = &mut self.exchange;
        stream.deadlines.last = now;
        match &frame {
            Frame::Data { data, .. } => stream.note_attempt(|log| log.received(data.len())),
            Frame::Trailers(trailers) => stream.note_attempt(|log| log.trailers(trailers)),
            Frame::End => {}
        }
        if let Frame::Trailers(trailers) = &frame {
            self.affinity.trailers(&self.member, self.host.as_ref(), trailers);
        }
        if chain.is_empty() {
            let last = frame.is_last();
            self.send_response_frame(frame);
            return Ok(last);
        }
        chain.push_response_frame(frame, stream)?;
        Ok(false)
    }

    /// A part of the response that has passed the filters goes down; says whether it is the last.
    fn send_response_part(&mut self, part: Part) -> bool {
        match part {
            Part::Head { end } => {
                let head = std::mem::take(&mut self.exchange.stream.response);
                let now = self.now();
                self.send_response(head, end, now);
                end
            }
            Part::Frame(frame) => {
                let last = frame.is_last();
                self.send_response_frame(frame);
                last
            }
        }
    }

    /// A piece of the response goes down, filtered.
    fn send_response_frame(&mut self, frame: Frame) {
        let Exchange { stream, down, .. } = &mut self.exchange;
        match frame {
            Frame::Data { data, end } => {
                stream.info.bytes_sent += data.len() as u64;
                down.send_data(data, end);
            }
            Frame::End => down.send_data(Bytes::new(), true),
            Frame::Trailers(trailers) => {
                down.send_trailers(&trailers);
                stream.trailers = Some(trailers);
            }
        }
    }
}

/// Moves on what the filters have of both directions; ready with what has passed all of them.
fn poll_filters(
    cx: &mut Context<'_>,
    chain: &mut Chain,
    stream: &mut Stream,
    up: &mut Upstream,
    down: &mut Downstream<'_>,
) -> Poll<Event> {
    match chain.advance_request(cx, stream) {
        Ok(true) if up.poll_room(cx).is_ready() => {
            if let Some(frame) = chain.take_request() {
                return Poll::Ready(Event::Filtered(frame));
            }
        }
        Ok(_) => {}
        Err(ended) => return Poll::Ready(Event::Ended(ended)),
    }
    match chain.advance_response(cx, stream) {
        Ok(true) => match down.poll_room(cx) {
            Poll::Ready(Ok(())) => {
                chain.take_response().map_or(Poll::Pending, |part| Poll::Ready(Event::Passed(part)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Event::Interrupted(Interrupted::Downstream(error))),
            Poll::Pending => Poll::Pending,
        },
        Ok(false) => Poll::Pending,
        Err(ended) => Poll::Ready(Event::Ended(ended)),
    }
}
