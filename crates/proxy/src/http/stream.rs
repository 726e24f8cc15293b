//! The story of one request. `serve_request` is all of it: normalize, route, filters, forward,
//! filters in reverse, finish. READ THIS SECOND (after `worker`).
//!
//! A stream ends exactly once, in `Stream::finish`, whatever happened: an answer from upstream,
//! one of our own (`Reply`), a client that went away. What ended it early travels as `Ended`; how
//! it ends is in `end`.

use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leno_base::Name;

use crate::config::source::ResourceKey;
use crate::drain::DrainWatch;
use crate::http::codec::side::Downstream;
use crate::http::codec::{DownstreamError, Frame};
use crate::http::config::{Manager, RouteSource};
use crate::http::filters::{Attend, Chain};
use crate::http::forward::upstream_log::AttemptLogs;
use crate::http::forward::{self, Exchange};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::{Action, BodyFormat, MatchContext, RouteTable, Selected};
use crate::http::stats::HttpStats;
use crate::http::timer::{Deadlines, Expired, Timer};
use crate::http::{normalize, redirect, upgrade};
use crate::overload::{Reaction, Timed};
use crate::telemetry::access_log::LogType;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::stream_info::{ConnectionInfo, HeadSize, ResponseFlags, StreamInfo};
use crate::telemetry::trace::ActiveTrace;
use crate::worker::Worker;

mod end;
pub(crate) mod trace;

pub(crate) use end::broken_off;
pub(crate) use trace::AttemptSpan;

/// Details of the answer to a request whose body filters cannot keep.
const TOO_LARGE: &str = "request_payload_too_large";

/// The longest host that a virtual host is asked for: a name and a port.
const LONGEST_HOST: usize = 255 + ":65535".len();

/// What all streams of a downstream connection have in common.
pub(crate) struct Connection {
    /// The worker.
    pub(crate) worker: Rc<Worker>,
    /// The connection manager as it was when the connection began.
    pub(crate) manager: Manager,
    /// Its stats on this worker.
    pub(crate) stats: Rc<HttpStats>,
    /// The connection's facts.
    pub(crate) info: Rc<ConnectionInfo>,
    /// Asks the connection to end.
    pub(crate) drain: DrainWatch,
    /// The listener's `per_connection_buffer_limit_bytes`: what filters may keep of a body.
    pub(crate) buffer_limit: usize,
}

impl Connection {
    /// The connection manager that the next request obeys: the filter chain's as it is now.
    /// What the codec was set up with stays as it was when the connection began.
    pub(crate) fn current(&self) -> Manager {
        self.drain.renewed().unwrap_or_else(|| self.manager.clone())
    }
}

/// Why a stream ends before its response was forwarded to its end.
pub(crate) enum Ended {
    /// With this answer, or, if one has begun already, cut off for this reason.
    Reply(Box<Reply>),
    /// The client broke the protocol, reset the stream or went away.
    Downstream(DownstreamError),
    /// The response is cut off; flags and details are set.
    Aborted,
    /// An internal redirect: the request goes its way again (`Stream::redirected`).
    Redirected,
}

impl From<Reply> for Ended {
    fn from(reply: Reply) -> Self {
        Ended::Reply(Box::new(reply))
    }
}

/// One request and what is known of it.
pub(crate) struct Stream {
    /// The worker.
    pub(crate) worker: Rc<Worker>,
    /// The connection manager.
    pub(crate) manager: Manager,
    /// Its stats on this worker.
    pub(crate) stats: Rc<HttpStats>,
    /// What logs, stats and filters read.
    pub(crate) info: StreamInfo,
    /// The request's head; empty while a request hook has it.
    pub(crate) request: HeaderMap,
    /// The response's head; empty while a response hook has it.
    pub(crate) response: HeaderMap,
    /// The response's trailers.
    pub(crate) trailers: Option<Box<HeaderMap>>,
    /// The route taken.
    pub(crate) selected: Option<Rc<Selected>>,
    /// Whether the request comes from inside.
    pub(crate) internal: bool,
    /// Random number of this request, for all its matches.
    pub(crate) random: u64,
    /// What is due when.
    pub(crate) deadlines: Deadlines,
    /// Bytes of the request's body that a filter may keep back; else 413.
    pub(crate) request_buffer_limit: usize,
    /// Likewise of the response's; else 500.
    pub(crate) response_buffer_limit: usize,
    /// Attempts to be logged (`upstream_log`).
    pub(crate) attempt_logs: AttemptLogs,
    /// Its trace, once it is known who serves the request. Boxed: most streams have none, and streams
    /// are moved.
    pub(crate) trace: Option<Box<ActiveTrace>>,
    /// What internal redirects have made of the request.
    pub(crate) redirected: Option<Box<Redirected>>,
    /// Asks the connection to end.
    drain: DrainWatch,
    /// When the access logs are written next; `Deadlines::log` is for those of attempts too.
    next_log: Option<Instant>,
    /// Of gRPC streams, if filters are told that they go on.
    reports: Option<Box<Reports>>,
    /// Counted and logged.
    finished: bool,
    /// Whether the request speaks gRPC, as it came in.
    grpc: bool,
}

/// What filters are told of a stream that goes on.
struct Reports {
    /// When they are told next.
    next: Instant,
    /// How many messages of requests and responses they know of.
    counted: [u64; 2],
}

/// A request that follows an internal redirect.
#[derive(Debug, Default)]
pub(crate) struct Redirected {
    /// Its head.
    pub(crate) head: HeaderMap,
    /// Its body.
    pub(crate) body: VecDeque<Bytes>,
    /// Redirects that it has followed.
    pub(crate) count: u32,
    /// The routes that they went from and to.
    pub(crate) routes: Vec<(Name, Name)>,
    /// See `Stream::internal`.
    pub(crate) internal: bool,
    /// The connection, as the first request made it known.
    pub(crate) connection: Option<Rc<ConnectionInfo>>,
}

/// Serves one request; the downstream side is flushed, or broken, when it returns: the time of that.
#[inline]
pub(crate) async fn serve_request(
    connection: &Connection,
    head: HeaderMap,
    size: HeadSize,
    mut down: Downstream<'_>,
    timer: &mut Timer,
) -> Instant {
    let mut stream = Stream::start(connection, head, size, &down);
    let mut chain = Chain::default();
    // Large futures are not moved but made where they stay: that is what `pin!` is for here.
    let mut ended = pin!(stream.run(&mut chain, &mut down, timer)).await;
    while let Err(Ended::Redirected) = ended {
        // Each of its ways is counted and logged as a request, as in Envoy.
        let mut redirected = stream.redirected.take().unwrap_or_default();
        stream.finish(&mut chain, &mut down, now());
        // Envoy counts the body of all ways.
        let received = stream.info.bytes_received + redirected.body_len();
        stream = Stream::start(connection, std::mem::take(&mut redirected.head), size, &down);
        stream.info.bytes_received = received;
        stream.redirected = Some(redirected);
        chain = Chain::default();
        ended = Box::pin(stream.run(&mut chain, &mut down, timer)).await;
    }
    // A response that was forwarded as it came has ended just now.
    let at = (ended.is_ok() && chain.is_empty()).then_some(stream.deadlines.last);
    if let Err(ended) = ended
        && let Some((head, body)) = stream.end_early(ended, &chain, &mut down)
    {
        Box::pin(stream.reply_through(head, body, &mut chain, &mut down, timer)).await;
    }
    let end = pin!(stream.flush(&mut down, timer, at)).await;
    stream.finish(&mut chain, &mut down, end);
    end
}

/// Answers what could not be read as a request; it is logged and counted like one.
pub(crate) async fn refuse_request(
    connection: &Connection,
    reply: Reply,
    mut down: Downstream<'_>,
    timer: &mut Timer,
) {
    let mut stream = Stream::start(connection, HeaderMap::default(), HeadSize::default(), &down);
    // What is no request never was complete.
    stream.info.request_complete = None;
    down.close_after_response();
    let mut chain = Chain::default();
    if let Some((head, body)) = stream.end_early(reply.into(), &chain, &mut down) {
        Box::pin(stream.reply_through(head, body, &mut chain, &mut down, timer)).await;
    }
    let end = stream.flush(&mut down, timer, None).await;
    stream.finish(&mut chain, &mut down, end);
}

impl Stream {
    fn start(connection: &Connection, head: HeaderMap, size: HeadSize, down: &Downstream<'_>) -> Self {
        let now = now();
        let manager = connection.current();
        let same = manager.is(&connection.manager);
        let stats = if same || manager.stat_prefix == connection.manager.stat_prefix {
            Rc::clone(&connection.stats)
        } else {
            connection.worker.http_stats(&manager.stat_prefix)
        };
        stats.downstream_rq_total().inc();
        stats.downstream_rq_active().inc();
        let complete = down.request_complete();
        let protocol = Some(down.protocol());
        let wall = connection.worker.wall(now);
        let grpc = head.is_grpc();
        let next_log = manager.log_interval.map(|interval| now + interval);
        let next_report = if grpc { report_interval(&manager) } else { None };
        let next_report = next_report.and_then(|every| now.checked_add(every));
        let deadlines = Deadlines {
            last: now,
            idle: manager
                .stream_idle_timeout
                .map(|limit| connection.worker.overload().scaled(Timed::StreamIdle, limit)),
            request: manager.request_timeout.filter(|_| !complete).map(|limit| now + limit),
            duration: manager.max_stream_duration.map(|limit| now + limit),
            log: [next_log, next_report].into_iter().flatten().min(),
            ..Deadlines::new(now)
        };
        let attempt_logs = AttemptLogs::new(&manager, &connection.info);
        // Written in place, as it is large.
        let mut stream = Self {
            info: StreamInfo::new(Rc::clone(&connection.info), protocol, now, wall),
            worker: Rc::clone(&connection.worker),
            random: connection.worker.random(),
            manager,
            stats,
            request: head,
            response: HeaderMap::new(),
            trailers: None,
            selected: None,
            attempt_logs,
            trace: None,
            redirected: None,
            internal: false,
            next_log,
            reports: next_report.map(|next| Box::new(Reports { next, counted: [0; 2] })),
            deadlines,
            request_buffer_limit: connection.buffer_limit,
            response_buffer_limit: connection.buffer_limit,
            drain: connection.drain.clone(),
            finished: false,
            grpc,
        };
        stream.info.request_head = size;
        stream.info.request_complete = complete.then_some(now);
        stream
    }

    /// The request's way: forward only.
    async fn run(
        &mut self,
        chain: &mut Chain,
        down: &mut Downstream<'_>,
        timer: &mut Timer,
    ) -> Result<(), Ended> {
        if self.is_shed() {
            // Nothing else is done for it.
            self.stats.downstream_rq_overload_close().inc();
            let mut reply = Reply::new(503, "overload", "envoy overloaded");
            if self.manager.append_local_overload {
                reply = reply.header(Known::EnvoyLocalOverloaded.text(), b"true".as_slice());
            }
            return Err(reply.flag(ResponseFlags::OVERLOAD_MANAGER).into());
        }
        let mut head = std::mem::take(&mut self.request);
        let outcome = pin!(self.prepare(chain, &mut head, down, timer)).await;
        self.request = head;
        outcome?;
        let Some(selected) = self.selected.clone() else {
            self.stats.no_route().inc();
            return Err(Reply::route_not_found().into());
        };
        match &selected.route.action {
            Action::Forward(route) => {
                let exchange = Exchange { stream: self, chain, down, timer };
                pin!(forward::forward(exchange, &selected, route)).await
            }
            Action::Redirect(rule) => {
                // As in Envoy, where `rq_redirect` counts nothing any more.
                self.stats.rq_direct_response().inc();
                let reply = redirect::reply(rule, &self.request, &FormatContext::new(&self.info));
                redirect::note_rewritten(rule, &mut self.request);
                Err(reply.into())
            }
            Action::Direct { status, body, format } => {
                self.stats.rq_direct_response().inc();
                Err(self.direct_response(*status, body, format.as_deref()).into())
            }
            Action::NonForwarding => Err(Reply::route_not_found().into()),
        }
    }

    fn direct_response(&self, status: u16, body: &Bytes, format: Option<&BodyFormat>) -> Reply {
        let Some(BodyFormat { format, content_type }) = format else {
            return self.located(Reply::new(status, "direct_response", body.clone()));
        };
        let context = FormatContext {
            request: Some(&self.request),
            local_reply_body: Some(body),
            ..FormatContext::new(&self.info)
        };
        let mut text = Vec::new();
        format.format(&context, &mut text);
        let reply = Reply::new(status, "direct_response", text);
        self.located(reply.header("content-type", content_type.as_bytes().to_vec()))
    }

    /// A direct response that creates or redirects says where: here (RFC 9110 section 10.2.2).
    fn located(&self, reply: Reply) -> Reply {
        if reply.status != 201 && reply.status / 100 != 3 {
            return reply;
        }
        reply.header("location", redirect::own_location(&self.request))
    }

    /// Whether the overload manager wants this request to be turned away.
    fn is_shed(&self) -> bool {
        let (overload, random) = (self.worker.overload(), || self.worker.random());
        !overload.is_calm()
            && (overload.calls_for(Reaction::StopAcceptingRequests, random)
                || overload.sheds(Reaction::ShedRequest, self.worker.stats(), random))
    }

    /// Whether the overload manager wants the request to be turned away before filters see it.
    fn check_filters_shed(&self) -> Result<(), Reply> {
        let overload = self.worker.overload();
        if overload.is_calm()
            || !overload.sheds(Reaction::ShedFilters, self.worker.stats(), || self.worker.random())
        {
            return Ok(());
        }
        self.stats.rq_overload_local_reply().inc();
        Err(Reply::new(503, "overload", "envoy overloaded").flag(ResponseFlags::OVERLOAD_MANAGER))
    }

    /// Normalizes, routes, and runs the request hooks.
    async fn prepare(
        &mut self,
        chain: &mut Chain,
        head: &mut HeaderMap,
        down: &mut Downstream<'_>,
        timer: &mut Timer,
    ) -> Result<(), Ended> {
        if self.redirected.is_some() {
            return Box::pin(self.prepare_again(chain, head, down, timer)).await;
        }
        if self.manager.proxy_100_continue {
            down.set_owes_continue(false);
        } else if head.contains(Known::Expect) {
            // Answered by us, whatever becomes of the request, as Envoy does.
            down.send_continue();
            head.remove(Known::Expect);
        }
        let random = || self.worker.random();
        let origin = match normalize::request(&self.manager, &mut self.info, head, random) {
            Ok(origin) => origin,
            Err(reply) => return Err(reply.into()),
        };
        self.internal = origin.internal;
        self.route(head);
        self.decide_trace(head);
        self.check_upgrade(head, chain, down)?;
        self.check_filters_shed()?;
        self.begin_trace(head);
        if self.manager.log_new_requests {
            self.note_target();
            self.log(LogType::DownstreamStart, Some(head));
        }
        if let Some(limit) = self.selected.as_ref().and_then(|selected| selected.route.buffer_limit) {
            self.request_buffer_limit = usize::try_from(limit).unwrap_or(usize::MAX);
        }
        if chain.has_none(&self.manager) {
            // The future that waits for filters is large.
            return Ok(());
        }
        let end = down.request_complete();
        pin!(chain.on_request(self, head, end, &mut Attendant { down, timer })).await
    }

    /// The same for a request that follows an internal redirect: it is known who sent it.
    async fn prepare_again(
        &mut self,
        chain: &mut Chain,
        head: &mut HeaderMap,
        down: &mut Downstream<'_>,
        timer: &mut Timer,
    ) -> Result<(), Ended> {
        let mut bodiless = true;
        if let Some(redirected) = &mut self.redirected {
            self.internal = redirected.internal;
            if let Some(connection) = redirected.connection.take() {
                self.info.connection = connection;
            }
            bodiless = redirected.body.is_empty();
        }
        self.info.request_id = head.get_str(Known::XRequestId).map(Into::into);
        normalize::again(&self.manager, &self.info, head)?;
        self.route(head);
        // Nothing is decided anew: it is not traced, as in Envoy.
        self.begin_trace(head);
        let mut attendant = Attendant { down, timer };
        chain.on_request(self, head, bodiless, &mut attendant).await?;
        if chain.is_empty() || bodiless {
            return Ok(());
        }
        // The body goes through the filters once more.
        let body = chain.pass_body(self, &mut attendant).await?;
        if let Some(redirected) = &mut self.redirected {
            redirected.body = body;
        }
        Ok(())
    }

    /// Looks the route up again, for a filter that changed what it depends on (`clear_route_cache`).
    pub(crate) fn refresh_route(&mut self, head: &mut HeaderMap) {
        self.route(head);
        self.refresh_trace(head);
    }

    /// The answer to a request of which more would have to be kept than may be; it is counted.
    pub(crate) fn request_too_large(&self) -> Reply {
        self.stats.downstream_rq_too_large().inc();
        Reply::new(413, TOO_LARGE, "Payload Too Large")
    }

    /// Looks the route up.
    pub(crate) fn route(&mut self, head: &HeaderMap) {
        let context =
            MatchContext { random: self.random, is_internal: self.internal, info: Some(&self.info) };
        let found = |table: &RouteTable| table.find(head, &context).map(|found| self.worker.select(&found));
        let selected = match &self.manager.routes {
            RouteSource::Static(table) => found(table),
            RouteSource::Scoped(scopes) => scopes.find(head).and_then(|table| found(table)),
            RouteSource::Rds { table, .. } => self.worker.with_routes(table, found).flatten(),
        };
        self.info.route = selected.as_ref().map(|selected| Rc::clone(&selected.names));
        self.selected = selected;
    }

    /// The route table that a virtual host for this request may be asked of, if it has no route, and
    /// the host.
    pub(crate) fn unknown_host(&self, head: &HeaderMap) -> Option<(ResourceKey, Name)> {
        let RouteSource::Rds { table, .. } = &self.manager.routes else { return None };
        let asks = self.selected.is_none()
            && self.worker.with_routes(table, |routes| routes.vhds().is_some()).unwrap_or(false);
        let host = std::str::from_utf8(head.authority()).ok().filter(|_| asks)?;
        // Deviation: Envoy asks for whatever a client makes up, here it must be a name that a host can
        // have, with its port.
        let may_be = !host.is_empty() && host.len() <= LONGEST_HOST && !host.contains('/');
        may_be.then(|| (table.clone(), Name::from(host.to_ascii_lowercase())))
    }

    /// The cluster that the route leads to, if it leads to one, for the log.
    pub(crate) fn note_target(&mut self) {
        self.info.upstream.cluster = None;
        let Some(selected) = self.selected.clone() else { return };
        if let Action::Forward(route) = &selected.route.action {
            forward::choose_cluster(self, &selected, route);
        }
    }

    fn check_upgrade(
        &mut self,
        head: &HeaderMap,
        chain: &mut Chain,
        down: &mut Downstream<'_>,
    ) -> Result<(), Ended> {
        let Some(kind) = upgrade::requested(head) else { return Ok(()) };
        let route = match self.selected.as_ref().map(|selected| &selected.route.action) {
            Some(Action::Forward(route)) => Some(&**route),
            _ => None,
        };
        if upgrade::allowed(kind, &self.manager, route) {
            chain.choose(kind, &self.manager);
            // What follows an upgrade is no request body: only idle timeouts apply.
            self.deadlines.request = None;
            return Ok(());
        }
        down.close_after_response();
        if head.method() == b"CONNECT" && self.selected.is_none() {
            return Ok(());
        }
        self.stats.downstream_rq_ws_on_non_ws_route().inc();
        Err(Reply::new(403, "upgrade_failed", "").into())
    }

    /// Whether the request speaks gRPC, as it came in.
    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// What a passed deadline ends the stream with.
    pub(crate) fn expired(&mut self, expired: Expired, down: &Downstream<'_>) -> Ended {
        let late = if down.request_complete() { 504 } else { 408 };
        let reply = match expired {
            Expired::Idle => {
                self.stats.downstream_rq_idle_timeout().inc();
                Reply::new(late, "stream_idle_timeout", "stream timeout")
                    .flag(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
            Expired::Request => {
                self.stats.downstream_rq_timeout().inc();
                Reply::new(408, "request_overall_timeout", "request timeout")
            }
            Expired::Duration => {
                self.stats.downstream_rq_max_duration_reached().inc();
                Reply::new(late, "max_duration_timeout", "downstream duration timeout").grpc(4)
            }
            Expired::Route => Reply::upstream_timeout("response_timeout"),
            Expired::PerTry => Reply::upstream_timeout("upstream_per_try_timeout"),
            Expired::PerTryIdle => Reply::upstream_timeout("upstream_per_try_idle_timeout"),
            // Whoever waits has logged, and gone on.
            Expired::Log => return Ended::Aborted,
            Expired::Upstream => Reply::new(
                late,
                "upstream_max_stream_duration_reached",
                "upstream max stream duration reached",
            )
            .flag(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        };
        reply.into()
    }

    /// Ready when a deadline has passed; writes the periodic logs meanwhile.
    pub(crate) fn poll_deadlines(&mut self, cx: &mut Context<'_>, timer: &mut Timer) -> Poll<Expired> {
        loop {
            match self.deadlines.poll(cx, timer) {
                Poll::Ready(Expired::Log) => {
                    let now = now();
                    if self.next_log.is_some_and(|next| next <= now) {
                        self.log(LogType::DownstreamPeriodic, None);
                        self.next_log = self.manager.log_interval.map(|interval| now + interval);
                    }
                    if self.reports.as_ref().is_some_and(|reports| reports.next <= now) {
                        self.report(None);
                        let next = report_interval(&self.manager).and_then(|every| now.checked_add(every));
                        if let (Some(reports), Some(next)) = (&mut self.reports, next) {
                            reports.next = next;
                        }
                    }
                    self.log_attempts(now);
                    let next_report = self.reports.as_ref().map(|reports| reports.next);
                    let next = [self.next_log, next_report, self.attempt_logs.next()];
                    self.deadlines.log = next.into_iter().flatten().min();
                }
                polled => return polled,
            }
        }
    }

    /// Ready when the client is gone or a deadline has passed.
    pub(crate) fn poll_interrupted(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream<'_>,
        timer: &mut Timer,
    ) -> Poll<Interrupted> {
        if let Poll::Ready(error) = down.poll_gone(cx) {
            return Poll::Ready(Interrupted::Downstream(error));
        }
        if let Poll::Ready(Err(error)) = down.poll_flush(cx) {
            return Poll::Ready(Interrupted::Downstream(error));
        }
        self.poll_deadlines(cx, timer).map(Interrupted::Expired)
    }
}

/// How often filters are told of gRPC streams that go on.
fn report_interval(manager: &Manager) -> Option<Duration> {
    manager.observers.iter().map(|(_, every)| *every).min()
}

/// What interrupts waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupted {
    /// The client is gone.
    Downstream(DownstreamError),
    /// A deadline has passed.
    Expired(Expired),
}

impl Interrupted {
    /// Whether the upstream took too long.
    pub(crate) fn is_upstream_timeout(&self) -> bool {
        matches!(self, Interrupted::Expired(expired) if expired.is_upstream_timeout())
    }
}

/// Waits for filters.
pub(crate) struct Attendant<'a, 'd> {
    /// The client.
    pub(crate) down: &'a mut Downstream<'d>,
    /// The clock.
    pub(crate) timer: &'a mut Timer,
}

impl Attend for Attendant<'_, '_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Result<Frame, Ended>> {
        if let Some(frame) = stream.redirected.as_mut().and_then(|redirected| redirected.next_frame()) {
            return Poll::Ready(Ok(frame));
        }
        let frame = match self.down.poll_frame(cx) {
            Poll::Ready(Ok(frame)) => frame,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Ended::Downstream(error))),
            Poll::Pending => {
                // What was promised to the client, e.g. that it may send its body.
                if let Poll::Ready(Err(error)) = self.down.poll_flush(cx) {
                    return Poll::Ready(Err(Ended::Downstream(error)));
                }
                let expired = stream.poll_deadlines(cx, self.timer);
                return expired.map(|expired| Err(stream.expired(expired, self.down)));
            }
        };
        let now = now();
        stream.deadlines.last = now;
        if let Frame::Data { data, .. } = &frame {
            stream.info.bytes_received += data.len() as u64;
        }
        if frame.is_last() {
            stream.info.request_complete = Some(now);
            stream.deadlines.request = None;
        }
        Poll::Ready(Ok(frame))
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Ended> {
        stream.poll_interrupted(cx, self.down, self.timer).map(|interrupted| match interrupted {
            Interrupted::Downstream(error) => Ended::Downstream(error),
            Interrupted::Expired(expired) => stream.expired(expired, self.down),
        })
    }
}

/// The time that all deadlines are counted in.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
