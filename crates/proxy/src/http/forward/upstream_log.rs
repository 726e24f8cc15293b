//! The router's `upstream_log`: a line for each attempt, of what went to its endpoint and came back.
//!
//! An attempt has facts of its own, which are what Envoy writes: `%RESPONSE_CODE%` is the
//! endpoint's, `%BYTES_SENT%` counts the request's body and `%BYTES_RECEIVED%` the response's,
//! `%PROTOCOL%` is the upstream connection's, times count from the attempt's beginning. The
//! request's headers are as the endpoint gets them. An attempt is begun when its endpoint is
//! picked, and ends once: when it is through (`Router::run`), when another one is better
//! (`Router::drop_leg`), or at the latest with its stream.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::http::codec::ResetReason;
use crate::http::config::HttpConnectionManager;
use crate::http::headers::HeaderMap;
use crate::http::stream::{AttemptSpan, Stream, now};
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::{AccessLog, LogType};
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, ResponseFlags, StreamInfo, UpstreamInfo};

/// `upstream_log` and `upstream_log_options`.
#[derive(Debug)]
pub(crate) struct UpstreamLog {
    /// Where lines go; there is at least one.
    pub(crate) logs: Vec<Arc<AccessLog>>,
    /// `flush_upstream_log_on_upstream_stream`: a line when the connection is there, too.
    pub(crate) when_ready: bool,
    /// `upstream_log_flush_interval`: a line that often meanwhile.
    pub(crate) interval: Option<Duration>,
}

/// The attempts of a stream that are under way and to be logged or to be reported as spans: none,
/// unless there is an `upstream_log`, or attempts are traced.
#[derive(Debug)]
pub(crate) struct AttemptLogs {
    open: Vec<AttemptLog>,
    /// With one of both: the downstream connection as its listener sees it, whoever the
    /// request's headers say that it comes from.
    connection: Option<Rc<ConnectionInfo>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct AttemptLog {
    settings: Option<Arc<UpstreamLog>>,
    /// Its span, if that is to be reported.
    span: Option<AttemptSpan>,
    /// Of all attempts of the stream, from 1.
    number: u32,
    /// It goes on beside another one; `info.upstream` is its own then, else the stream's is.
    parked: bool,
    info: StreamInfo,
    first_rx: Option<Instant>,
    response: HeaderMap,
    trailers: Option<Box<HeaderMap>>,
    next: Option<Instant>,
}

impl AttemptLogs {
    /// For a new stream.
    pub(crate) fn new(manager: &HttpConnectionManager, connection: &Rc<ConnectionInfo>) -> Self {
        let traced = manager.tracing.as_ref().is_some_and(|tracing| tracing.attempts);
        let wanted = traced || manager.router.upstream_log.is_some();
        let connection = wanted.then(|| Rc::clone(connection));
        Self { open: Vec::new(), connection }
    }

    /// The attempt that the stream's upstream facts are about.
    fn current(&mut self) -> Option<&mut AttemptLog> {
        self.open.iter_mut().find(|attempt| !attempt.parked)
    }

    /// When the next line is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.open.iter().filter_map(|attempt| attempt.next).min()
    }
}

impl AttemptLog {
    /// What is gone wrong.
    pub(super) fn flag(&mut self, flag: ResponseFlags) {
        self.info.flags.insert(flag);
    }

    /// It has failed.
    pub(super) fn failed(&mut self, reason: ResetReason) {
        self.flag(reason.flag());
        if let Some(span) = &mut self.span {
            span.error = Some(reason.text());
        }
    }

    /// We break it off.
    pub(super) fn canceled(&mut self) {
        if let Some(span) = &mut self.span {
            span.canceled = true;
        }
    }

    /// Bytes of the request's body went up.
    pub(super) fn sent(&mut self, count: usize) {
        self.info.bytes_sent += count as u64;
    }

    /// Bytes of the response's body came.
    pub(super) fn received(&mut self, count: usize) {
        self.info.bytes_received += count as u64;
    }

    /// The response's head came.
    pub(super) fn answered(&mut self, head: &HeaderMap) {
        self.first_rx = Some(now());
        self.info.response_code = head.status();
        self.response = head.clone();
    }

    /// Trailers came.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        self.trailers = Some(Box::new(trailers.clone()));
    }

    /// Takes over what the stream knows of it.
    fn update(&mut self, down: &StreamInfo) {
        let info = &mut self.info;
        if !self.parked {
            info.upstream = upstream_facts(&info.upstream, self.first_rx, &down.upstream);
        }
        info.protocol = info.upstream.protocol;
        if info.protocol.is_some() {
            info.request_head = down.request_head;
            info.response_head = down.response_head;
            info.stream_wire_bytes = Some(down.wire_bytes());
        }
    }

    fn context<'a>(&'a self, request: &'a HeaderMap, log_type: LogType, end: Instant) -> FormatContext<'a> {
        FormatContext {
            request: Some(request),
            response: Some(&self.response),
            trailers: self.trailers.as_deref(),
            log_type,
            end: Some(end),
            ..FormatContext::new(&self.info)
        }
    }

    fn write(&mut self, down: &StreamInfo, request: &HeaderMap, log_type: LogType, end: Instant) {
        self.update(down);
        let Some(settings) = &self.settings else { return };
        let context = self.context(request, log_type, end);
        for log in &settings.logs {
            log.log(&context);
        }
    }
}

/// The stream's upstream facts as those of an attempt at the cluster that `own` names: the
/// stream may have been routed anew meanwhile.
fn upstream_facts(own: &UpstreamInfo, first_rx: Option<Instant>, of: &UpstreamInfo) -> UpstreamInfo {
    UpstreamInfo { attempts: 0, first_rx, cluster: own.cluster.clone(), ..of.clone() }
}

impl Stream {
    /// An attempt begins: its endpoint is chosen.
    pub(super) fn begin_attempt(&mut self) {
        if self.trace.is_some() || self.manager.router.upstream_log.is_some() {
            self.begin_told_attempt();
        }
    }

    fn begin_told_attempt(&mut self) {
        let span = self.tell_endpoint();
        let settings = &self.manager.router.upstream_log;
        if settings.is_none() && span.is_none() {
            return;
        }
        let started = now();
        let Some(connection) = self.attempt_logs.connection.clone() else { return };
        let of_http = Some(Protocol::Http11);
        let mut info = StreamInfo::new(connection, of_http, started, SystemTime::now());
        info.filter_state.clear();
        info.route.clone_from(&self.info.route);
        info.health_check = self.info.health_check;
        info.upstream.cluster.clone_from(&self.info.upstream.cluster);
        info.trace.clone_from(&self.info.trace);
        let next =
            settings.as_ref().and_then(|settings| settings.interval).map(|interval| started + interval);
        self.attempt_logs.open.push(AttemptLog {
            settings: settings.clone(),
            span,
            number: self.info.upstream.attempts,
            parked: false,
            info,
            first_rx: None,
            response: HeaderMap::new(),
            trailers: None,
            next,
        });
        self.deadlines.log = [self.deadlines.log, next].into_iter().flatten().min();
    }

    /// Notes something of the attempt under way, if it is logged.
    pub(super) fn note_attempt(&mut self, note: impl FnOnce(&mut AttemptLog)) {
        if let Some(attempt) = self.attempt_logs.current() {
            note(attempt);
        }
    }

    /// The connection is there.
    pub(super) fn ready_attempt(&mut self) {
        if let Some(attempt) = self.attempt_logs.current()
            && attempt.settings.as_ref().is_some_and(|settings| settings.when_ready)
        {
            attempt.write(&self.info, &self.request, LogType::UpstreamPoolReady, now());
        }
    }

    /// The attempt under way goes on beside others.
    pub(super) fn park_attempt(&mut self) {
        if let Some(attempt) = self.attempt_logs.current() {
            attempt.info.upstream =
                upstream_facts(&attempt.info.upstream, attempt.first_rx, &self.info.upstream);
            attempt.parked = true;
        }
    }

    /// An attempt that went on beside is the one that counts.
    pub(super) fn resume_attempt(&mut self, number: u32) {
        if let Some(attempt) = self.attempt_logs.open.iter_mut().find(|attempt| attempt.number == number) {
            attempt.parked = false;
        }
    }

    /// The attempt under way is over.
    pub(super) fn end_attempt(&mut self) {
        if let Some(index) = self.attempt_logs.open.iter().position(|attempt| !attempt.parked) {
            self.end_attempt_at(index);
        }
    }

    /// An attempt that went on beside is over; so many bytes it has sent and received.
    pub(super) fn end_parked_attempt(&mut self, number: u32, (sent, received): (u64, u64)) {
        if let Some(index) = self.attempt_logs.open.iter().position(|attempt| attempt.number == number) {
            if let Some(attempt) = self.attempt_logs.open.get_mut(index) {
                attempt.info.upstream.wire_bytes_sent += sent;
                attempt.info.upstream.wire_bytes_received += received;
                attempt.canceled();
            }
            self.end_attempt_at(index);
        }
    }

    /// All are over.
    pub(crate) fn end_attempts(&mut self) {
        while !self.attempt_logs.open.is_empty() {
            self.end_attempt_at(0);
        }
    }

    fn end_attempt_at(&mut self, index: usize) {
        let mut attempt = self.attempt_logs.open.remove(index);
        let end = now();
        attempt.write(&self.info, &self.request, LogType::UpstreamEnd, end);
        if let Some(span) = attempt.span {
            self.report_attempt(
                span,
                attempt.number,
                attempt.context(&self.request, LogType::UpstreamEnd, end),
            );
        }
    }

    /// Writes the periodic lines that are due.
    pub(crate) fn log_attempts(&mut self, now: Instant) {
        for attempt in &mut self.attempt_logs.open {
            if attempt.next.is_some_and(|next| next <= now) {
                let interval = attempt.settings.as_ref().and_then(|settings| settings.interval);
                attempt.next = interval.map(|interval| now + interval);
                attempt.write(&self.info, &self.request, LogType::UpstreamPeriodic, now);
            }
        }
    }
}
