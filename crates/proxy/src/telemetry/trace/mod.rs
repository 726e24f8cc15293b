//! Tracing: which requests are traced, how their spans fit into traces, what spans say, and where
//! they are reported.
//!
//! A request's life with it: `sampling` decides from its headers and writes the decision into its
//! id; `Tracer::start` reads the context that came along and makes one for the request; the router
//! tells the endpoint ([`Tracer::inject`]); at the end `tags` says what is known and `export` keeps
//! the encoded span until it is sent. What of this a stream does when is in `http::stream::trace`.
//!
//! A request that is not sampled costs its context, which is a few numbers in its stream, and the
//! headers that pass it on; nothing is allocated for it. Where no tracing is configured nothing is
//! done at all.
//!
//! Reading order: this file, `sampling`, `context` (identifiers), `w3c` and `b3` (headers),
//! `tracer` (what of both a provider wants), `tags`, `otlp` and `zipkin` (encodings), `export`
//! (buffers and sending), `config` and `provider` (lowering).

pub(crate) mod b3;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod export;
mod otlp;
pub(crate) mod provider;
pub(crate) mod sampling;
pub(crate) mod tags;
#[cfg(test)]
mod tests;
pub(crate) mod tracer;
pub(crate) mod w3c;
pub(crate) mod wire;
mod zipkin;

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use leno_base::Name;

use crate::http::route::Selected;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::trace::context::SpanContext;
use crate::telemetry::trace::sampling::{Reason, RequestIds, Sampling};
use crate::telemetry::trace::tags::{CustomTag, Tags};
use crate::telemetry::trace::tracer::Tracer;

/// `tracing` of a connection manager with a provider.
#[derive(Debug)]
pub(crate) struct Tracing {
    /// Who makes and reports spans.
    pub(crate) tracer: Arc<Tracer>,
    /// How many requests are traced.
    pub(crate) sampling: Sampling,
    /// `request_id_extension`: how a request's id takes part in that.
    pub(crate) request_ids: RequestIds,
    /// `verbose`: spans have events.
    pub(crate) verbose: bool,
    /// `max_path_tag_length`, 256 by default.
    pub(crate) max_path: usize,
    /// `custom_tags`
    pub(crate) custom_tags: Vec<CustomTag>,
    /// `operation`
    pub(crate) operation: Option<Format>,
    /// `upstream_operation`
    pub(crate) upstream_operation: Option<Format>,
    /// `spawn_upstream_span`: the proxy is a hop of its own, with a span for each attempt.
    pub(crate) own_hop: bool,
    /// Attempts have spans of their own: `own_hop`, or the router's `start_child_span`.
    pub(crate) attempts: bool,
    /// Not `no_context_propagation`.
    pub(crate) propagates: bool,
    /// The listener's `traffic_direction` is OUTBOUND.
    pub(crate) outbound: bool,
    /// `node.id`
    pub(crate) node: Arc<str>,
    /// `node.locality.zone`
    pub(crate) zone: Name,
}

/// `Route.tracing`
#[derive(Debug)]
pub(crate) struct RouteTracing {
    /// In place of the connection manager's.
    pub(crate) sampling: Sampling,
    /// On top of the connection manager's.
    pub(crate) custom_tags: Vec<CustomTag>,
    /// In place of the connection manager's.
    pub(crate) operation: Option<Format>,
    /// In place of the connection manager's.
    pub(crate) upstream_operation: Option<Format>,
}

/// `Route.decorator`
#[derive(Debug)]
pub(crate) struct Decorator {
    /// `operation`
    pub(crate) operation: Name,
    /// `propagate`: the other side is told.
    pub(crate) propagate: bool,
}

/// Which side of an exchange a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who was asked.
    Server,
    /// Who asks.
    Client,
}

impl Decorator {
    /// What a route calls its requests; nothing if it does not.
    pub(crate) fn operation_of(selected: &Selected) -> &str {
        selected.route.decorator.as_ref().map_or("", |decorator| &decorator.operation)
    }
}

impl Tracing {
    /// What the span of a request is about.
    pub(crate) fn kind(&self) -> Kind {
        let hop = self.own_hop || self.tracer.splits();
        if self.outbound && !hop { Kind::Client } else { Kind::Server }
    }

    /// What the span of an attempt is about: with Zipkin a sidecar and its workload may be one hop.
    pub(crate) fn attempt_kind(&self) -> Kind {
        let hop = self.own_hop || self.tracer.splits() || self.outbound;
        if hop || !self.tracer.is_zipkin() { Kind::Client } else { Kind::Server }
    }
}

/// The trace of a stream.
#[derive(Debug)]
pub(crate) struct ActiveTrace {
    /// The span; `None`: the context that came with the request makes no sense, so there is none,
    /// and nobody is told of one.
    pub(crate) span: Option<ActiveSpan>,
    /// What the span is to be called, if something says so.
    pub(crate) operation: Operation,
    /// What the response is to tell the client: this route's operation.
    pub(crate) told: Option<Rc<Selected>>,
}

/// The span of a request under way.
#[derive(Debug)]
pub(crate) struct ActiveSpan {
    /// Its place in the trace.
    pub(crate) context: SpanContext,
    /// Whether it is sampled was decided here, and changes with the route.
    pub(crate) local: bool,
    /// Its parent is a span of somebody else.
    pub(crate) remote_parent: bool,
    /// The context came as a single `b3` header, and goes on as such.
    pub(crate) single: bool,
    /// `tracestate` that came along, of a span that is sampled.
    pub(crate) state: Option<Box<str>>,
    /// The host that was asked for, of a span that is sampled.
    pub(crate) host: Option<Box<str>>,
}

/// What a span is called.
#[derive(Clone, Debug, Default)]
pub(crate) enum Operation {
    /// By the tracer.
    #[default]
    Plain,
    /// As this route says (`decorator`).
    Decorated(Rc<Selected>),
    /// As the other side said (`x-envoy-decorator-operation`).
    Told(Box<str>),
}

/// What logs say of a stream's trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceFacts {
    /// Why it is traced, or not.
    pub(crate) reason: Reason,
    /// Its span, if it has one, and whether its trace always has 128 bits.
    pub(crate) span: Option<Box<(SpanContext, bool)>>,
}

/// A span that has ended.
pub(crate) struct Ended<'a> {
    /// Its place in the trace.
    pub(crate) context: SpanContext,
    /// What it is about.
    pub(crate) kind: Kind,
    /// What it is called.
    pub(crate) name: &'a str,
    /// Its parent is a span of somebody else.
    pub(crate) remote_parent: bool,
    /// `tracestate`
    pub(crate) state: &'a str,
    /// When it began.
    pub(crate) start: SystemTime,
    /// When it ended.
    pub(crate) end: SystemTime,
    /// What is known.
    pub(crate) tags: &'a Tags,
    /// What happened when.
    pub(crate) events: &'a [(SystemTime, &'static str)],
}

stats_scope! {
    /// `http.STAT_PREFIX.tracing.`
    pub(crate) struct TracingStats {
        counter client_enabled;
        counter health_check;
        counter not_traceable;
        counter random_sampling;
        counter service_forced;
    }
}

impl TracingStats {
    /// Counts a request that has ended.
    pub(crate) fn count(&self, reason: Reason, health_check: bool) {
        if health_check {
            // Both, as in Envoy.
            self.health_check().inc();
            return self.not_traceable().inc();
        }
        match reason {
            Reason::NotTraceable => self.not_traceable().inc(),
            Reason::Sampling => self.random_sampling().inc(),
            Reason::ServiceForced => self.service_forced().inc(),
            Reason::ClientForced => self.client_enabled().inc(),
        }
    }
}
