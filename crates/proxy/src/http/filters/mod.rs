//! The HTTP filter seam: five hooks, synchronous first.
//!
//! A chain is a list of `FilterConfig`s made when lowering; each request opens those that
//! want to see it. Request hooks run in order, response hooks in reverse. The terminal
//! `router` is no filter: a chain ends in `forward`. Only filters that do I/O return
//! `Step::Await`. Per-route settings are resolved when lowering, into slots by position in
//! the chain (`RouteOverrides`), so that no name is looked up per request.
//!
//! To add one: a folder with the filter's Envoy name, and a line in `REGISTRY`.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::stream::Stream;
use crate::telemetry::stream_info::StreamInfo;

/// A filter's place in a chain.
#[derive(Debug)]
pub(crate) struct ChainedFilter {
    /// `name`, which per-route settings refer to.
    pub(crate) name: leno_base::Name,
    /// `disabled`: it runs only for routes that have settings for it (and do not disable it).
    pub(crate) disabled: bool,
    /// The filter.
    pub(crate) config: Arc<dyn FilterConfig>,
}

/// A filter as configured in one chain.
pub(crate) trait FilterConfig: fmt::Debug + Send + Sync {
    /// Opens the filter for one request; `None`: it does not want to see this one.
    /// `settings` are the most specific per-route settings of this filter.
    fn open(&self, stream: &Stream, settings: Option<&RouteSettings>) -> Option<Box<dyn HttpStreamFilter>>;
}

/// A filter at work on one request.
pub(crate) trait HttpStreamFilter {
    /// The request's head, before routing is final.
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        Step::Continue
    }
    /// A piece of the request's body; the filter may change it.
    fn on_request_data(&mut self, _stream: &mut Stream, _data: &mut Bytes, _end: bool) -> Step {
        Step::Continue
    }
    /// The response's head.
    fn on_response(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        Step::Continue
    }
    /// A piece of the response's body; the filter may change it.
    fn on_response_data(&mut self, _stream: &mut Stream, _data: &mut Bytes, _end: bool) -> Step {
        Step::Continue
    }
    /// The response's trailers.
    fn on_response_trailers(&mut self, _stream: &mut Stream, _trailers: &mut HeaderMap) -> Step {
        Step::Continue
    }
    /// The stream has ended, however it ended.
    fn on_finish(&mut self, _info: &StreamInfo) {}
}

/// What happens next.
pub(crate) enum Step {
    /// The next filter.
    Continue,
    /// The stream ends here with this answer.
    Reply(Reply),
    /// The filter waits for I/O or time; its outcome decides.
    Await(Pin<Box<dyn Future<Output = Outcome>>>),
}

/// The outcome of an awaited step.
pub(crate) enum Outcome {
    /// The next filter.
    Continue,
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
}

/// Settings by filter name (`typed_per_filter_config`), merged from the least to the most
/// specific level when lowering.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteOverrides(pub(crate) Vec<(leno_base::Name, RouteSettings)>);

impl RouteOverrides {
    /// The settings of the filter with this name in the chain.
    pub(crate) fn find(&self, name: &str) -> Option<&RouteSettings> {
        self.0.iter().find(|(candidate, _)| &**candidate == name).map(|(_, settings)| settings)
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
    pub(crate) lower_route: Option<fn(&prost_types::Any, &mut Lower) -> Option<Arc<dyn Any + Send + Sync>>>,
}

/// All HTTP filters, in alphabetic order of Envoy's names.
pub(crate) const REGISTRY: &[Registration] = &[];
