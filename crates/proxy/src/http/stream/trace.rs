//! A stream's trace: what is decided when its request comes, what those are told that it goes to,
//! and the span that is reported when it ends. Nothing of this is done without `tracing`.

use std::rc::Rc;
use std::time::Instant;

use super::{Stream, now};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::Selected;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::trace::context::SpanContext;
use crate::telemetry::trace::sampling::decide;
use crate::telemetry::trace::tags::{self, TagContext, Tags};
use crate::telemetry::trace::{ActiveTrace, Decorator, Ended, Operation, RouteTracing, Tracing};

pub(crate) mod call;

/// The span of an attempt under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttemptSpan {
    /// Its place in the trace.
    pub(crate) context: SpanContext,
    /// The attempt was broken off by us.
    pub(crate) canceled: bool,
    /// Why it failed.
    pub(crate) error: Option<&'static str>,
}

impl Stream {
    /// Decides whether the request is traced, when its route is known; its id may change.
    pub(super) fn decide_trace(&mut self, head: &mut HeaderMap) {
        let Some(tracing) = &self.manager.tracing else { return };
        let route = self.selected.as_ref().and_then(|selected| selected.route.tracing.as_deref());
        let sampling = route.map_or(&tracing.sampling, |route| &route.sampling);
        let worker = &self.worker;
        self.info.trace.reason = decide(head, sampling, tracing.request_ids, || worker.random());
        if tracing.request_ids.pack && tracing.request_ids.decide {
            self.info.request_id = head.get_str(Known::XRequestId).map(Into::into);
        }
    }

    /// Makes the request's span.
    #[inline]
    pub(super) fn begin_trace(&mut self, head: &mut HeaderMap) {
        if self.manager.tracing.is_some() {
            self.begin_span(head);
        }
    }

    fn begin_span(&mut self, head: &mut HeaderMap) {
        let manager = self.manager.clone();
        let Some(tracing) = &manager.tracing else { return };
        let traced = self.info.trace.reason.is_traced();
        let span = tracing.tracer.start(head, tracing.kind(), traced, || self.worker.random()).ok();
        let wide = !tracing.tracer.is_zipkin();
        self.info.trace.span = span.as_ref().map(|span| Box::new((span.context, wide)));
        let mut trace = ActiveTrace { span, operation: Operation::Plain, told: None };
        if self.operation(tracing).is_none() {
            self.decorate(tracing, &mut trace, head);
        }
        self.trace = Some(Box::new(trace));
    }

    /// What operations are called, of both sides.
    fn decorate(&self, tracing: &Tracing, trace: &mut ActiveTrace, head: &mut HeaderMap) {
        let decorated = self.selected.as_ref().filter(|selected| selected.route.decorator.is_some());
        if let Some(selected) = decorated {
            trace.operation = Operation::Decorated(Rc::clone(selected));
        }
        let propagates =
            |selected: &&Rc<Selected>| selected.route.decorator.as_ref().is_some_and(|one| one.propagate);
        let propagated = decorated.filter(propagates);
        if tracing.outbound {
            if let Some(selected) = propagated {
                head.set(Known::EnvoyDecoratorOperation, Decorator::operation_of(selected).as_bytes());
            }
            return;
        }
        trace.told = propagated.map(Rc::clone);
        if let Some(operation) = head.get(Known::EnvoyDecoratorOperation) {
            if !operation.is_empty() {
                trace.operation = Operation::Told(String::from_utf8_lossy(operation).into());
                trace.told = None;
            }
            head.remove(Known::EnvoyDecoratorOperation);
        }
    }

    fn route_tracing(&self) -> Option<&RouteTracing> {
        self.selected.as_ref()?.route.tracing.as_deref()
    }

    /// The format of the span's name, if it has one: the most specific.
    fn operation<'a>(&'a self, tracing: &'a Tracing) -> Option<&'a Format> {
        self.route_tracing().and_then(|route| route.operation.as_ref()).or(tracing.operation.as_ref())
    }

    /// Follows a filter that has changed the route.
    pub(super) fn refresh_trace(&mut self, head: &mut HeaderMap) {
        let Some(mut trace) = self.trace.take() else { return };
        let manager = self.manager.clone();
        let Some(tracing) = &manager.tracing else { return };
        if let Some(span) = trace.span.as_mut().filter(|span| span.local) {
            self.decide_trace(head);
            span.context.sampled = self.info.trace.reason.is_traced();
            if span.context.sampled && span.host.is_none() {
                span.host = Some(String::from_utf8_lossy(head.authority()).into());
            }
        }
        if self.operation(tracing).is_none() && !matches!(trace.operation, Operation::Told(_)) {
            if tracing.outbound && trace.told.is_none() && matches!(trace.operation, Operation::Decorated(_))
            {
                head.remove(Known::EnvoyDecoratorOperation);
            }
            let before = std::mem::take(&mut trace.operation);
            trace.told = None;
            self.decorate(tracing, &mut trace, head);
            if let Operation::Plain = trace.operation {
                // What it was called stays, as in Envoy.
                trace.operation = before;
            }
        }
        self.trace = Some(trace);
    }

    /// A health check is not traced.
    pub(crate) fn forgo_trace(&mut self) {
        if let Some(span) = self.trace.as_mut().and_then(|trace| trace.span.as_mut()) {
            span.context.sampled = false;
        }
    }

    /// Tells the endpoint where in its trace the request is. Some: the attempt has a span of its
    /// own, which is to be reported.
    pub(crate) fn tell_endpoint(&mut self) -> Option<AttemptSpan> {
        let (Some(tracing), Some(trace)) = (&self.manager.tracing, &self.trace) else { return None };
        let span = trace.span.as_ref()?;
        let mut context = span.context;
        let mut own = None;
        if tracing.attempts {
            context = tracing.tracer.child(context, tracing.attempt_kind(), self.worker.random());
            own = Some(AttemptSpan { context, canceled: false, error: None });
        } else if self.info.upstream.attempts > 1 {
            // It was told to the first one.
            return None;
        }
        if tracing.propagates {
            tracing.tracer.inject(context, span, &mut self.request);
        }
        own.filter(|own| own.context.sampled)
    }

    /// Operations in a response's head on its way to the client.
    pub(crate) fn trace_response(&mut self, head: &mut HeaderMap) {
        let Some(tracing) = &self.manager.tracing else { return };
        if self.trace.is_none() || self.operation(tracing).is_some() {
            return;
        }
        let outbound = tracing.outbound;
        let Some(trace) = &mut self.trace else { return };
        if !outbound {
            if let Some(selected) = &trace.told {
                head.set(Known::EnvoyDecoratorOperation, Decorator::operation_of(selected).as_bytes());
            }
            return;
        }
        if let Some(operation) = head.get(Known::EnvoyDecoratorOperation) {
            let sampled = trace.span.as_ref().is_some_and(|span| span.context.sampled);
            if sampled && !operation.is_empty() {
                trace.operation = Operation::Told(String::from_utf8_lossy(operation).into());
            }
            head.remove(Known::EnvoyDecoratorOperation);
        }
    }

    /// The stream has ended: it is counted, and its span is reported.
    pub(super) fn finish_trace(&mut self, end: Instant) {
        let Some(tracing) = &self.manager.tracing else { return };
        let stats = self.manager.tracing_stats(tracing, &self.worker);
        stats.count(self.info.trace.reason, self.info.health_check);
        let Some(trace) = self.trace.take() else { return };
        let Some(span) = trace.span.filter(|span| span.context.sampled && !self.info.health_check) else {
            return;
        };
        let cx = FormatContext {
            request: Some(&self.request),
            response: Some(&self.response),
            trailers: self.trailers.as_deref(),
            end: Some(end),
            ..FormatContext::new(&self.info)
        };
        let host = span.host.as_deref().unwrap_or_default();
        let plain = tracing.tracer.plain_name(tracing.outbound, host);
        let formatted = self.operation(tracing).map(|format| named(format, &cx));
        let name = match (&formatted, &trace.operation) {
            (Some(name), _) => name,
            (None, Operation::Decorated(selected)) => Decorator::operation_of(selected),
            (None, Operation::Told(name)) => name,
            (None, Operation::Plain) => &plain,
        };
        let events = if tracing.verbose { tags::events(&self.info, true) } else { Vec::new() };
        let fill = |tags: &mut Tags| {
            tags::of_request(tracing, &cx, tags);
            self.custom_tags(tracing, cx, tags);
        };
        self.manager.exporter(tracing, &self.worker).report(fill, |tags, report| {
            report(&Ended {
                context: span.context,
                kind: tracing.kind(),
                name,
                remote_parent: span.remote_parent,
                state: span.state.as_deref().unwrap_or_default(),
                start: self.info.start_time,
                end: tags::wall(&self.info, end),
                tags,
                events: &events,
            });
        });
    }

    fn custom_tags(&self, tracing: &Tracing, format: FormatContext<'_>, tags: &mut Tags) {
        let route = self.selected.as_ref().and_then(|selected| selected.route.metadata.as_ref());
        tags::custom(tracing, self.route_tracing(), &TagContext { format, route }, tags);
    }

    /// An attempt has ended whose span is to be reported. `of` is about the attempt; names and
    /// configured tags are about the request as it is at that time, as in Envoy.
    pub(crate) fn report_attempt(&self, span: AttemptSpan, number: u32, of: FormatContext<'_>) {
        let Some(tracing) = &self.manager.tracing else { return };
        let info = of.info;
        let request = FormatContext { request: of.request, ..FormatContext::new(&self.info) };
        let route = self.route_tracing().and_then(|route| route.upstream_operation.as_ref());
        let name = match route.or(tracing.upstream_operation.as_ref()) {
            Some(format) => named(format, &request),
            None => {
                let cluster = info.upstream.cluster.as_ref();
                format!("router {} egress", cluster.map_or("", |cluster| &cluster.stat_name))
            }
        };
        let state = self.trace.as_ref().and_then(|trace| trace.span.as_ref()?.state.as_deref());
        let events = if tracing.verbose { tags::events(info, false) } else { Vec::new() };
        let end = of.end.unwrap_or_else(now);
        let fill = |tags: &mut Tags| {
            if number > 1 {
                tags.add("retry.count", &(number - 1).to_string());
            }
            if span.canceled {
                tags.add("canceled", "true");
            }
            if let Some(reason) = span.error {
                tags.add("error", "true");
                tags.add("error.reason", reason);
            }
            tags::of_attempt(info, tags);
            for block in [of.response, of.trailers].into_iter().flatten() {
                tags::grpc_status(block, tags);
            }
            self.custom_tags(tracing, request, tags);
        };
        self.manager.exporter(tracing, &self.worker).report(fill, |tags, report| {
            report(&Ended {
                context: span.context,
                kind: tracing.attempt_kind(),
                name: &name,
                remote_parent: false,
                state: state.unwrap_or_default(),
                start: info.start_time,
                end: tags::wall(info, end),
                tags,
                events: &events,
            });
        });
    }
}

/// A name by its format; what is absent is left out.
fn named(format: &Format, cx: &FormatContext<'_>) -> String {
    let mut text = Vec::new();
    format.format(cx, "", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
