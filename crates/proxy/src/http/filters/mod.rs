//! The HTTP filter seam: hooks over a stream's messages, synchronous first.
//!
//! # How a filter sees a stream
//!
//! A chain is a list of [`FilterConfig`]s made when lowering. Each is shown the head of every
//! request and says how much more it wants to see ([`Opening`]): nothing, so that a filter that
//! only looks at heads costs neither memory nor a call later; the response's head, and its
//! trailers, which it handles without state of its own; or everything, with an object for this
//! stream ([`HttpStreamFilter`]). Request hooks run in the order of the chain, response hooks in
//! reverse: head, then data in pieces, then trailers, each hook once per piece. The end comes as
//! `end` of the last head or piece, or as trailers. Interim responses are shown too. The terminal
//! `router` is no filter: a chain ends in `forward`, a plain function.
//!
//! # What a hook decides
//!
//! A [`Step`]. *Continue*. *Hold*: what it has waits until it has seen more; a held head may be
//! changed in `Stream::request` or `Stream::response` by the later hooks of whoever holds it.
//! *Reply*: the stream ends with an answer of our own. *Wait*: for I/O or time, and its
//! [`Outcome`] says how it goes on; `Outcome::Again` calls the hook once more. A hook may replace
//! data, swallow it (leave it empty), or append to it.
//!
//! What is kept is bounded by `Stream::{request_buffer_limit, response_buffer_limit}`: beyond, the
//! answer is 413 to requests and 500 in place of responses. A hook that waits with
//! [`Step::wait`] has nothing kept: what follows is not read, so that the peer is held back by
//! flow control. With [`Step::wait_buffering`] it is read and kept.
//!
//! While a hook of one direction waits or holds, the other direction goes on: a response that has
//! begun flows while a later piece of its request waits. Deadlines and resets are noticed
//! meanwhile, and a client that goes away; then what is waited for is dropped. A response cannot
//! begin before the request's head has passed all filters.
//!
//! # Answers of our own
//!
//! Any hook may answer, and so may the connection manager and the router (no route, no host, late).
//! If no response has begun its way through the filters, the answer takes the response's way
//! through all of them, those included that have not seen the request: they are asked by
//! `FilterConfig::{on_response, on_response_trailers}`. It can be changed, held and waited with like
//! a response. An answer in place of a response that has begun its way is shown to no filter
//! (Envoy's direct local reply), and when the response's head is gone, the stream is cut off.
//!
//! # Facts
//!
//! Per-route settings are resolved when lowering, by [`FilterId`]: no name is looked up per
//! request. Filters leave facts for those behind them, for routes and for access logs in
//! `StreamInfo::{metadata, filter_state}`; one that changed what the route depends on calls
//! `Stream::refresh_route` (`clear_route_cache`). A filter that asks a service uses `http::client`.
//! Stats are found once per worker by `PerThread`. A filter that only counts what became of
//! requests looks at none of their messages, but is told at their ends (`FilterConfig::observes`).
//!
//! To add one: a folder with the filter's Envoy name, and a line in `REGISTRY`.
//! Reading order: this file (what a filter sees), `chain` (how hooks are called), `lane` (how parts
//! of a message move).

mod buffer;
mod chain;
mod compressor;
mod cors;
mod csrf;
mod decompressor;
mod dynamic_forward_proxy;
pub(crate) mod ext_authz;
mod fault;
pub(crate) mod grpc_stats;
mod grpc_web;
mod header_mutation;
mod health_check;
mod istio_alpn;
mod istio_stats;
mod jwt_authn;
mod lane;
mod local_ratelimit;
pub(crate) mod missing;
mod on_demand;
mod peer_metadata;
#[cfg(test)]
pub(crate) mod probe;
mod rbac;
pub(crate) mod set_filter_state;
mod set_metadata;
mod stateful_session;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

pub(crate) use self::chain::{Attend, Chain};
pub(crate) use self::lane::Part;
use crate::cluster::pool::via::AlpnOverrides;
use crate::config::filter_id::FilterId;
use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::route::Selected;
use crate::http::stream::Stream;
use crate::telemetry::stream_info::StreamInfo;
use crate::worker::Worker;

/// A filter's place in a chain.
#[derive(Clone, Debug)]
pub(crate) struct ChainedFilter {
    /// `name`, which per-route settings refer to.
    pub(crate) id: FilterId,
    /// `disabled`: it runs only for routes that have settings for it (and do not disable it).
    pub(crate) disabled: bool,
    /// The filter.
    pub(crate) config: Arc<dyn FilterConfig>,
}

/// A filter as configured in one chain. `settings` are the most specific per-route settings of
/// this filter.
pub(crate) trait FilterConfig: fmt::Debug + Send + Sync {
    /// A request's head, before routing is final.
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Opening;

    /// The request's trailers, for filters that said `Opening::Watch`; data that they are to
    /// follow may be put into `data`.
    fn on_request_trailers(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        Step::Continue
    }

    /// The response's head, for filters that said `Opening::Watch`, and the head of an answer of
    /// our own to a request that the filter has not seen.
    fn on_response(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Step {
        self.on_response_head(stream, settings, [false; 2], head);
        Step::Continue
    }

    /// The response's head, for filters that said `Opening::Head`, with what they have noted, and in
    /// place of `on_response` where that is not there.
    fn on_response_head(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _noted: [bool; 2],
        _head: &mut HeaderMap,
    ) {
    }

    /// The response's trailers, for filters that said `Opening::Watch`.
    fn on_response_trailers(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        Step::Continue
    }

    /// What goes on beside requests as long as the filter is configured.
    fn background(&self) -> Vec<Arc<dyn Background>> {
        Vec::new()
    }

    /// What connections for requests that it runs for offer by ALPN, if it is about that. It is the
    /// same for all requests: connection managers know their last filter that says so.
    fn alpn(&self) -> Option<&AlpnOverrides> {
        None
    }

    /// What it compresses by, if it is about that: the compressors of a chain know of each other.
    fn compressor(&self) -> Option<&Arc<compressor::Compressor>> {
        None
    }

    /// Whether it wants to be told of every request that its chain is for, whatever becomes of it,
    /// when it has ended (`on_report`), and of gRPC streams that go on every so often.
    fn observes(&self) -> Option<Duration> {
        None
    }

    /// A stream has ended, or a gRPC stream goes on (`end` is `None`). `messages`: requests and
    /// responses of gRPC since it was last told and said that it counted them; `None`: they are
    /// not known.
    fn on_report(&self, _stream: &Stream, _messages: Option<[u64; 2]>, _end: Option<Instant>) -> bool {
        false
    }
}

/// Whether a filter runs for a route.
pub(crate) fn runs(filter: &ChainedFilter, selected: Option<&Selected>) -> bool {
    lane::settings_of(filter, selected).is_ok()
}

/// Something that goes on beside requests as long as a filter is configured, on one worker of the
/// proxy; e.g. keys are kept fresh. A listener is not in force before all of it is ready.
pub(crate) trait Background: fmt::Debug + Send + Sync {
    /// Whether it is the caller who is to start it: true once.
    fn claim(&self) -> bool;

    /// Whether a listener need not wait for it, or no longer.
    fn is_ready(&self) -> bool;

    /// Starts it on a worker. `stat_prefix` is the connection manager's; `ready` is called when
    /// listeners need not wait any longer. It ends by itself when the filter is gone.
    fn start(self: Arc<Self>, worker: &Rc<Worker>, stat_prefix: &str, ready: Box<dyn FnOnce() + Send>);
}

/// How much of a stream a filter wants to see, and what happens next.
pub(crate) enum Opening {
    /// No more of it.
    Done(Step),
    /// The response's head, which it may change (`FilterConfig::on_response_head`). Nothing is held
    /// up by it: bodies pass unseen. It is told then what it notes here of the request.
    Head([bool; 2]),
    /// The response's head and the trailers; the hooks of the `FilterConfig` are called.
    Watch(Step),
    /// All of it; the filter's own `on_request` is called at once.
    Open(Box<dyn HttpStreamFilter>),
}

impl Opening {
    /// The request is of no interest.
    pub(crate) const PASS: Opening = Opening::Done(Step::Continue);
}

/// A filter at work on one request. While a data or trailers hook runs, the head is in
/// `stream.request` or `stream.response`, and may be changed there as long as the filter holds it.
pub(crate) trait HttpStreamFilter {
    /// The request's head, before routing is final. `end`: there is no body.
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        Step::Continue
    }
    /// A piece of the request's body; the filter may change it. `end`: it is the last, and there
    /// are no trailers; an end without data comes as an empty piece.
    fn on_request_data(&mut self, _stream: &mut Stream, _data: &mut Bytes, _end: bool) -> Step {
        Step::Continue
    }
    /// The request's trailers; data that they are to follow may be put into `data`.
    fn on_request_trailers(
        &mut self,
        _stream: &mut Stream,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        Step::Continue
    }
    /// An interim response (1xx) that is passed on; it can be changed only.
    fn on_informational(&mut self, _stream: &mut Stream, _head: &mut HeaderMap) {}
    /// The response's head, also that of an answer of our own.
    fn on_response(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        Step::Continue
    }
    /// A piece of the response's body; the filter may change it.
    fn on_response_data(&mut self, _stream: &mut Stream, _data: &mut Bytes, _end: bool) -> Step {
        Step::Continue
    }
    /// The response's trailers; data that they are to follow may be put into `data`.
    fn on_response_trailers(
        &mut self,
        _stream: &mut Stream,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        Step::Continue
    }
    /// The stream has ended, however it ended.
    fn on_finish(&mut self, _info: &StreamInfo) {}
}

/// What happens next. Envoy's names in brackets.
pub(crate) enum Step {
    /// The next filter; what was held goes on too (`Continue`).
    Continue,
    /// What the hook was called with, and what follows it, waits here until a later hook of this
    /// filter goes on; pieces of the body are kept up to the stream's limit (`StopIteration` of a
    /// head, `StopIterationAndBuffer` of data). At the end of the message it cannot wait any
    /// longer: there this is `Continue`.
    Hold,
    /// The stream ends here with this answer; if a response has begun, it is cut off.
    Reply(Reply),
    /// The filter waits for I/O or time; its outcome decides. No further hook of this direction
    /// is called meanwhile, and nothing is read that would have to be kept
    /// (`StopAllIterationAndWatermark`). Made by [`Step::wait`].
    Await(Waiting),
    /// The same, but what comes meanwhile is read and kept, up to the stream's limit
    /// (`StopAllIterationAndBuffer`). Made by [`Step::wait_buffering`].
    AwaitBuffering(Waiting),
}

impl Step {
    /// See [`Step::Await`].
    pub(crate) fn wait(until: impl Future<Output = Outcome> + 'static) -> Self {
        Step::Await(Waiting(Box::pin(until)))
    }

    /// See [`Step::AwaitBuffering`].
    #[cfg_attr(not(test), expect(dead_code, reason = "for filters that need the body at once afterwards"))]
    pub(crate) fn wait_buffering(until: impl Future<Output = Outcome> + 'static) -> Self {
        Step::AwaitBuffering(Waiting(Box::pin(until)))
    }
}

/// What a filter waits for. It is dropped, and so cancelled, when the stream ends first.
pub(crate) struct Waiting(Pin<Box<dyn Future<Output = Outcome>>>);

impl Future for Waiting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.0.as_mut().poll(cx)
    }
}

/// The outcome of an awaited step.
pub(crate) enum Outcome {
    /// The next filter.
    Continue,
    /// The hook that waited is called once more, to use what its filter knows now.
    Again,
    /// The stream ends here with this answer.
    Reply(Reply),
}

/// One filter's lowered settings for a route, virtual host, weighted cluster or table.
#[derive(Clone, Debug)]
pub(crate) struct RouteSettings {
    /// `FilterConfig.disabled`, or `is_optional` handled when lowering.
    pub(crate) disabled: bool,
    /// The filter's own type; it downcasts to what its `lower_route` made.
    pub(crate) settings: Arc<dyn Any + Send + Sync>,
    /// The settings of the next less specific level that has some.
    pub(crate) above: Option<Arc<RouteSettings>>,
}

impl RouteSettings {
    /// The settings of all levels that have some, the most specific first.
    pub(crate) fn levels<T: Send + Sync + 'static>(&self) -> SmallVec<[Arc<T>; 2]> {
        let levels = std::iter::successors(Some(self), |level| level.above.as_deref());
        levels.filter_map(|level| Arc::clone(&level.settings).downcast().ok()).collect()
    }

    /// The settings of the most specific level that has some.
    pub(crate) fn first<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let mut levels = std::iter::successors(Some(self), |level| level.above.as_deref());
        levels.find_map(|level| level.settings.downcast_ref())
    }
}

/// Settings by filter (`typed_per_filter_config`), merged from the least to the most specific
/// level when lowering. Routes have settings for a few filters at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteOverrides(pub(crate) Vec<(FilterId, Arc<RouteSettings>)>);

impl RouteOverrides {
    /// The settings of the filters with this name in a chain.
    pub(crate) fn find(&self, id: FilterId) -> Option<&Arc<RouteSettings>> {
        self.0.iter().find(|(candidate, _)| *candidate == id).map(|(_, settings)| settings)
    }
}

/// A kind of filter that this proxy has.
pub(crate) struct Registration {
    /// Envoy's extension name, for messages only: the type URL decides.
    pub(crate) name: &'static str,
    /// Full name of its configuration message.
    pub(crate) config_type: &'static str,
    /// Lowers the configuration.
    pub(crate) lower: fn(&prost_types::Any, &mut Lower) -> Option<Arc<dyn FilterConfig>>,
    /// Full name of its per-route message, if it has one.
    pub(crate) route_type: Option<&'static str>,
    /// Lowers the per-route message.
    #[allow(clippy::type_complexity, reason = "a type alias would hide what is lowered")]
    pub(crate) lower_route: Option<fn(&prost_types::Any, &mut Lower) -> Option<Arc<dyn Any + Send + Sync>>>,
}

/// All HTTP filters, in alphabetic order of Envoy's names.
pub(crate) const REGISTRY: &[Registration] = &[
    buffer::REGISTRATION,
    compressor::REGISTRATION,
    cors::REGISTRATION,
    csrf::REGISTRATION,
    decompressor::REGISTRATION,
    dynamic_forward_proxy::REGISTRATION,
    ext_authz::REGISTRATION,
    fault::REGISTRATION,
    grpc_stats::REGISTRATION,
    grpc_web::REGISTRATION,
    header_mutation::REGISTRATION,
    health_check::REGISTRATION,
    istio_alpn::REGISTRATION,
    istio_stats::REGISTRATION,
    jwt_authn::REGISTRATION,
    local_ratelimit::REGISTRATION,
    on_demand::REGISTRATION,
    peer_metadata::REGISTRATION,
    #[cfg(test)]
    probe::REGISTRATION,
    rbac::REGISTRATION,
    set_filter_state::REGISTRATION,
    set_metadata::REGISTRATION,
    stateful_session::REGISTRATION,
];
