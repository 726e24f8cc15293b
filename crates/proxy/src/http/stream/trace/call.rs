//! Spans of calls that filters make for a request.

use std::rc::Rc;
use std::time::{Instant, SystemTime};

use super::{Stream, now};
use crate::http::client::{Answer, Call, CallError};
use crate::http::config::Manager;
use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, ResponseFlags, StreamInfo};
use crate::telemetry::trace::context::SpanContext;
use crate::telemetry::trace::tags::{self, Tags};
use crate::telemetry::trace::{Ended, Kind};
use crate::worker::Worker;

/// The span of a call under way.
pub(crate) struct CallSpan {
    worker: Rc<Worker>,
    manager: Manager,
    connection: Rc<ConnectionInfo>,
    context: SpanContext,
    state: Option<Box<str>>,
    started: Instant,
    wall: SystemTime,
}

impl Stream {
    /// Makes the span of a call for the request with the head `request`, and tells the service of
    /// it in `head`. `None`: there is nothing to be reported. `emits`: whether there may be; else
    /// the service is told all the same, of a span that is not sampled.
    pub(crate) fn trace_call(
        &self,
        request: &HeaderMap,
        head: &mut HeaderMap,
        emits: bool,
    ) -> Option<CallSpan> {
        let (tracing, trace) = (self.manager.tracing.as_ref()?, self.trace.as_ref()?);
        let span = trace.span.as_ref()?;
        let mut context = tracing.tracer.child(span.context, Kind::Client, self.worker.random());
        context.sampled &= emits;
        if tracing.propagates {
            if let Some(state) = request.get(Known::Tracestate).filter(|_| span.remote_parent) {
                head.set(Known::Tracestate, state);
            }
            tracing.tracer.inject(context, span, head);
        }
        context.sampled.then(|| CallSpan {
            worker: Rc::clone(&self.worker),
            manager: self.manager.clone(),
            connection: Rc::clone(&self.info.connection),
            context,
            state: span.state.clone(),
            started: now(),
            wall: SystemTime::now(),
        })
    }

    /// Tells a shadow where in its trace the request is, in a copy of its head that is told that it
    /// is not sampled.
    pub(crate) fn trace_unsampled(&self, head: &mut HeaderMap) {
        let (Some(tracing), Some(trace)) = (&self.manager.tracing, &self.trace) else { return };
        if let Some(span) = trace.span.as_ref().filter(|_| tracing.propagates) {
            tracing.tracer.inject(SpanContext { sampled: false, ..span.context }, span, head);
        }
    }
}

impl CallSpan {
    /// A call by HTTP has ended; `own`: what its filter says of it.
    pub(crate) fn end(
        self,
        call: &Call,
        cluster: &str,
        outcome: &Result<Answer, CallError>,
        own: &[(&str, &str)],
    ) {
        let mut info =
            StreamInfo::new(Rc::clone(&self.connection), Some(Protocol::Http11), self.started, self.wall);
        info.upstream.host = call.host.get();
        info.upstream.cluster = self.worker.cluster(cluster).map(|cluster| Rc::clone(&cluster.facts));
        match outcome {
            Ok(answer) => info.response_code = answer.head.status(),
            Err(error) => {
                info.response_code = error.status();
                info.flags.insert(match error {
                    CallError::NoCluster => ResponseFlags::NO_CLUSTER_FOUND,
                    CallError::NoHost => ResponseFlags::NO_HEALTHY_UPSTREAM,
                    CallError::Failed(reason) | CallError::BrokenOff(reason) => reason.flag(),
                    CallError::Timeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
                    CallError::TooLong => ResponseFlags::default(),
                });
            }
        }
        self.report(&format!("async {cluster} egress"), |tags| {
            own.iter().for_each(|(name, value)| tags.add(name, value));
            tags::of_attempt(&info, tags);
            if let Ok(answer) = outcome {
                tags::grpc_status(&answer.head, tags);
            }
        });
    }

    /// A unary call by gRPC has ended with this status.
    pub(crate) fn end_unary(
        self,
        method: &str,
        cluster: &str,
        host: &str,
        status: u32,
        own: &[(&str, &str)],
    ) {
        self.report(&format!("async {method} egress"), |tags| {
            tags.add("upstream_cluster", cluster);
            tags.add("upstream_address", host);
            tags.add("component", "proxy");
            own.iter().for_each(|(name, value)| tags.add(name, value));
            tags.add("grpc.status_code", &status.to_string());
            if status != 0 {
                tags.add("error", "true");
            }
        });
    }

    fn report(&self, name: &str, fill: impl FnOnce(&mut Tags)) {
        let Some(tracing) = &self.manager.tracing else { return };
        let took = now().saturating_duration_since(self.started);
        self.manager.exporter(tracing, &self.worker).report(fill, |tags, report| {
            report(&Ended {
                context: self.context,
                kind: Kind::Client,
                name,
                remote_parent: false,
                state: self.state.as_deref().unwrap_or_default(),
                start: self.wall,
                end: self.wall + took,
                tags,
                events: &[],
            });
        });
    }
}
