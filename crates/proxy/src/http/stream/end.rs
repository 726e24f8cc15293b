//! The end of a stream: an answer of our own, the response's head and its last bytes, then stats
//! and logs. Every stream comes through `Stream::finish`; one that is dropped in the middle is
//! accounted for too.

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use leno_base::drain::Phase;

use super::{Attendant, Ended, Stream, TOO_LARGE, now};
use crate::http::codec::side::Downstream;
use crate::http::codec::{DownstreamError, Frame, ResetReason};
use crate::http::config::ServerHeader;
use crate::http::filters::{self, Attend, Chain, Part, grpc_stats};
use crate::http::forward;
use crate::http::headers::{HeaderMap, Known};
use crate::http::normalize;
use crate::http::reply::Reply;
use crate::http::route::{Action, Selected};
use crate::http::timer::{Deadlines, Timer};
use crate::overload::{Reaction, Timed};
use crate::telemetry::access_log::LogType;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::stream_info::{Protocol, ResponseFlags, StreamInfo};

impl Stream {
    /// Ends with an answer of our own, or cuts off the one that has begun. Some: the answer is to
    /// go through the filters (`reply_through`).
    pub(super) fn end_early(
        &mut self,
        ended: Ended,
        chain: &Chain,
        down: &mut Downstream<'_>,
    ) -> Option<(HeaderMap, Bytes)> {
        let reply = match ended {
            Ended::Reply(reply) => reply,
            Ended::Downstream(DownstreamError::Protocol(error)) => {
                self.stats.downstream_cx_protocol_error().inc();
                down.close_after_response();
                Box::new(Reply::protocol_error(error))
            }
            Ended::Downstream(DownstreamError::Disconnected) => {
                self.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
                self.info.response_code_details = Some(Cow::Borrowed("downstream_remote_disconnect"));
                self.stats.downstream_cx_destroy_remote_active_rq().inc();
                self.stats.downstream_cx_destroy_active_rq().inc();
                down.reset();
                return None;
            }
            Ended::Downstream(DownstreamError::Reset) => {
                self.info.flags.insert(ResponseFlags::DOWNSTREAM_REMOTE_RESET);
                self.info.response_code_details = Some(Cow::Borrowed("http2.remote_reset"));
                self.stats.downstream_rq_rx_reset().inc();
                return None;
            }
            Ended::Aborted | Ended::Redirected => {
                self.cut_off(down);
                return None;
            }
        };
        if down.responded() {
            self.info.flags.insert(reply.flags);
            self.info.response_code_details = Some(reply.details);
            self.cut_off(down);
            return None;
        }
        let (head, body) = self.reply(&reply, down);
        if !chain.has_none(&self.manager) && !chain.is_responding() {
            return Some((head, body));
        }
        let end = body.is_empty();
        self.begin_reply(head, end, down);
        if !end {
            self.send_reply_data(body, true, down);
        }
        down.abandon_request();
        None
    }

    /// Sends an answer of our own as the filters let it pass.
    pub(super) async fn reply_through(
        &mut self,
        head: HeaderMap,
        body: Bytes,
        chain: &mut Chain,
        down: &mut Downstream<'_>,
        timer: &mut Timer,
    ) {
        chain.push_reply(head, body, self);
        // What was due to upstream and client is settled; a passed deadline does not end it again.
        let now = now();
        let Deadlines { idle, duration, flush, log, .. } = self.deadlines;
        let duration = duration.filter(|at| *at > now);
        self.deadlines = Deadlines { idle, duration, flush, log, ..Deadlines::new(now) };
        let sent = poll_fn(|cx| {
            if let Err(ended) = chain.advance_response(cx, self) {
                return Poll::Ready(Err(ended));
            }
            while let Some(part) = chain.take_response() {
                let last = match part {
                    Part::Head { end } => {
                        let head = std::mem::take(&mut self.response);
                        self.begin_reply(head, end, down);
                        end
                    }
                    Part::Frame(Frame::Data { data, end }) => {
                        self.send_reply_data(data, end, down);
                        end
                    }
                    Part::Frame(Frame::Trailers(trailers)) => {
                        down.send_trailers(&trailers);
                        self.trailers = Some(trailers);
                        true
                    }
                    Part::Frame(Frame::End) => {
                        down.send_data(Bytes::new(), true);
                        true
                    }
                };
                if last {
                    down.abandon_request();
                    return Poll::Ready(Ok(()));
                }
            }
            Attendant { down, timer }.poll_ended(cx, self).map(Err)
        })
        .await;
        if let Err(ended) = sent {
            // A second answer goes past the filters.
            let _: Option<_> = self.end_early(ended, chain, down);
        }
    }

    fn cut_off(&mut self, down: &mut Downstream<'_>) {
        self.stats.downstream_rq_tx_reset().inc();
        self.stats.rq_reset_after_downstream_response_started().inc();
        down.reset();
    }

    /// Makes the head and body of an answer of our own.
    fn reply(&mut self, reply: &Reply, down: &mut Downstream<'_>) -> (HeaderMap, Bytes) {
        self.info.flags.insert(reply.flags);
        self.info.response_code_details = Some(reply.details.clone());
        if reply.status == 400 && !self.manager.http1.stream_error {
            // What does not understand a request does not trust what follows it.
            down.close_after_response();
        }
        let mut head = std::mem::take(&mut self.response);
        reply.write_head(&mut head, self.grpc);
        if let Some(selected) = self.selected.clone() {
            if self.info.upstream.cluster.is_none()
                && let Action::Forward(route) = &selected.route.action
            {
                // Ended before it was forwarded: the log says where it would have gone.
                forward::choose_cluster(self, &selected, route);
            }
            self.mutate_response(&selected, &mut head);
        }
        if reply.details == TOO_LARGE {
            // Even if the rest of the request has come by now.
            down.close_after_response();
        }
        let body = match &self.manager.local_replies {
            None => reply.write_body(&mut head, self.grpc),
            Some(replies) => {
                let replies = Arc::clone(replies);
                let body = reply.body.clone();
                let new = replies.rewrite(&mut self.info, &self.request, &mut head, reply.status, body);
                reply.write_rewritten(new, &mut head, self.grpc)
            }
        };
        (head, body)
    }

    /// Sends the head of an answer of our own.
    fn begin_reply(&mut self, mut head: HeaderMap, end: bool, down: &mut Downstream<'_>) {
        let now = now();
        self.trace_response(&mut head);
        self.finish_head(&mut head, now);
        self.info.bytes_received += down.answer_early(self.info.upstream.host.is_some());
        self.send_head(head, end, now, down);
    }

    /// Sends a piece of its body.
    fn send_reply_data(&mut self, data: Bytes, end: bool, down: &mut Downstream<'_>) {
        if self.request.method() != b"HEAD" {
            self.info.bytes_sent += data.len() as u64;
        }
        down.send_data(data, end);
    }

    /// Header rules of the route, the attempt count.
    pub(crate) fn mutate_response(&self, selected: &Selected, head: &mut HeaderMap) {
        let route = &selected.route;
        let weighted = selected.weighted_cluster().map(|cluster| &cluster.response_headers);
        if weighted.is_some() || !route.response_headers.is_empty() {
            let context = FormatContext { request: Some(&self.request), ..FormatContext::new(&self.info) };
            for rules in weighted.into_iter().chain(&route.response_headers) {
                rules.apply(head, &context);
            }
        }
        if selected.virtual_host.include_attempt_count_in_response && self.info.upstream.attempts > 0 {
            head.set(Known::EnvoyAttemptCount, self.info.upstream.attempts.to_string().as_bytes());
        }
    }

    /// What the connection manager itself says in every response.
    pub(crate) fn finish_head(&self, head: &mut HeaderMap, now: Instant) {
        if (self.manager.request_id_in_response || self.request.contains(Known::EnvoyForceTrace))
            && let Some(id) = self.request.get(Known::XRequestId)
        {
            head.set(Known::XRequestId, id);
        }
        if !self.manager.via.is_empty() {
            normalize::append_list(head, Known::Via, self.manager.via.as_bytes(), b", ");
        }
        if !head.contains(Known::Date) {
            append_date(head, now, &self.info);
        }
        let own = self.manager.server_name.as_bytes();
        match self.manager.server_header {
            ServerHeader::Overwrite => head.set(Known::Server, own),
            ServerHeader::AppendIfAbsent if !head.contains(Known::Server) => {
                head.append_known(Known::Server, own);
            }
            ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
        }
        if let Some(status) = &self.manager.proxy_status
            // What could not be read as a request is answered by Envoy's codec, which says nothing.
            && !self.request.method().is_empty()
        {
            status.apply(&self.info, head);
        }
    }

    /// Sends a finished response head and keeps it for the log.
    pub(crate) fn send_head(&mut self, head: HeaderMap, end: bool, now: Instant, down: &mut Downstream<'_>) {
        if self.drain.phase() >= Phase::Draining && self.info.protocol != Some(Protocol::Http2) {
            self.stats.downstream_cx_drain_close().inc();
            down.close_after_response();
        } else if !self.worker.overload().is_calm()
            && self.info.protocol != Some(Protocol::Http2)
            && self.worker.overload().calls_for(Reaction::DisableHttpKeepalive, || self.worker.random())
        {
            self.stats.downstream_cx_overload_disable_keepalive().inc();
            self.stats.downstream_cx_drain_close().inc();
            down.close_after_response();
        }
        self.info.response_code = head.status();
        self.info.first_downstream_tx = Some(now);
        self.info.response_head = down.send_head(&head, end);
        self.response = head;
    }

    /// Writes what is left, as long as the client takes it; says when that was done: `at`, if that
    /// is known and the client takes all of it at once.
    pub(super) async fn flush(
        &mut self,
        down: &mut Downstream<'_>,
        timer: &mut Timer,
        at: Option<Instant>,
    ) -> Instant {
        let configured = self.deadlines.flush.or(self.manager.stream_flush_timeout);
        let limit = configured.unwrap_or(self.deadlines.idle);
        let overload = self.worker.overload();
        // Most clients take everything at once: no clock is read for them.
        let mut deadline = None;
        let flushed = poll_fn(|cx| match down.poll_finish(cx) {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => {
                let scaled = |limit| now() + overload.scaled(Timed::StreamFlush, limit);
                let deadline = *deadline.get_or_insert_with(|| limit.map(scaled));
                timer.poll(cx, deadline).map(|()| false)
            }
        })
        .await;
        let end = at.filter(|_| deadline.is_none()).unwrap_or_else(now);
        if flushed {
            self.info.last_downstream_tx = Some(end);
        } else {
            down.reset();
        }
        end
    }

    /// The end of every stream: filters, stats, access logs.
    pub(super) fn finish(&mut self, chain: &mut Chain, down: &mut Downstream<'_>, end: Instant) {
        if !down.request_complete() && down.responded() {
            self.stats.downstream_rq_response_before_rq_complete().inc();
        }
        down.abandon_request();
        self.info.stream_wire_bytes = down.wire_bytes();
        chain.on_finish(&self.info);
        self.account(end);
    }

    /// Writes access logs for something else than the request's end.
    pub(crate) fn log(&self, log_type: LogType, request: Option<&HeaderMap>) {
        let context = FormatContext {
            request: request.or(Some(&self.request)),
            response: Some(&self.response),
            trailers: self.trailers.as_deref(),
            log_type,
            ..FormatContext::new(&self.info)
        };
        for log in &self.manager.access_logs {
            log.log(&context);
        }
    }

    /// Tells filters of a stream that has ended, or goes on.
    pub(super) fn report(&mut self, end: Option<Instant>) {
        let counted = if self.grpc { grpc_stats::counted(&self.info) } else { None };
        let new = counted.map(|[requests, responses]| {
            let known = self.reports.as_ref().map_or([0; 2], |reports| reports.counted);
            let [known_requests, known_responses] = known;
            [requests.saturating_sub(known_requests), responses.saturating_sub(known_responses)]
        });
        let manager = self.manager.clone();
        let mut told = false;
        for (place, _) in &manager.observers {
            if let Some(filter) = manager.filters.get(*place)
                && filters::runs(filter, self.selected.as_deref())
            {
                told |= filter.config.on_report(self, new, end);
            }
        }
        if told && let (Some(counted), Some(reports)) = (counted, &mut self.reports) {
            reports.counted = counted;
        }
    }

    fn account(&mut self, end: Instant) {
        self.finished = true;
        self.end_attempts();
        self.finish_trace(end);
        self.stats.downstream_rq_active().dec();
        self.stats.downstream_rq_time().record_ms(end.saturating_duration_since(self.info.started));
        // Answers to health checks are not counted, as in Envoy.
        if self.info.response_code > 0 && !self.info.health_check {
            self.stats.count_response(self.info.response_code);
        }
        if !self.manager.observers.is_empty() {
            self.report(Some(end));
        }
        if self.manager.access_logs.is_empty() {
            return;
        }
        let context = FormatContext {
            request: Some(&self.request),
            response: Some(&self.response),
            trailers: self.trailers.as_deref(),
            end: Some(end),
            log_type: LogType::DownstreamEnd,
            ..FormatContext::new(&self.info)
        };
        for log in &self.manager.access_logs {
            log.log(&context);
        }
    }
}

impl Drop for Stream {
    /// A connection that is closed by us in the middle drops its streams: they end here.
    fn drop(&mut self) {
        if !self.finished {
            self.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            self.info.response_code_details = Some(Cow::Borrowed("downstream_local_disconnect"));
            self.account(now());
        }
    }
}

/// The flag and details of a response that upstream broke off.
pub(crate) fn broken_off(info: &mut StreamInfo, reason: ResetReason) {
    info.flags.insert(reason.flag());
    let reason = reason.text().replace(' ', "_");
    info.response_code_details = Some(format!("upstream_reset_after_response_started{{{reason}}}").into());
}

/// Appends `date`; its text is made once a second.
fn append_date(head: &mut HeaderMap, now: Instant, info: &StreamInfo) {
    thread_local! {
        /// The text, and from when to when it holds.
        static DATE: RefCell<Option<(String, Range<Instant>)>> = const { RefCell::new(None) };
    }
    DATE.with_borrow_mut(|made| {
        let (text, _) = match made {
            Some(made) if made.1.contains(&now) => made,
            made => made.insert(date(now, info)),
        };
        head.append_known(Known::Date, text.as_bytes());
    });
}

/// The date of now, and from when to when that is the second.
fn date(now: Instant, info: &StreamInfo) -> (String, Range<Instant>) {
    let wall = info.start_time + now.saturating_duration_since(info.started);
    let spent = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let end = now + (Duration::from_secs(1) - Duration::from_nanos(spent.into()));
    (httpdate::fmt_http_date(wall), now..end)
}
