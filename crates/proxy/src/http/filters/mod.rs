//! The HTTP filter seam: five hooks, synchronous first.
//!
//! A chain is a list of `FilterConfig`s made when lowering; each request opens those that
//! want to see it. Request hooks run in order, response hooks in reverse. The terminal
//! `router` is no filter: a chain ends in `forward`. Only filters that do I/O return
//! `Step::Await`. Per-route settings are resolved when lowering, into slots by position in
//! the chain (`RouteOverrides`), so that no name is looked up per request.
//!
//! To add one: a folder with the filter's Envoy name, and a line in `REGISTRY`.

mod cors;
mod fault;
pub(crate) mod grpc_stats;
mod header_mutation;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::stream::{Ended, Stream};
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
    /// The settings of the next less specific level that has some.
    pub(crate) above: Option<Arc<RouteSettings>>,
}

impl RouteSettings {
    /// The settings of all levels that have some, the most specific first.
    pub(crate) fn levels<T: Send + Sync + 'static>(&self) -> SmallVec<[Arc<T>; 2]> {
        let levels = std::iter::successors(Some(self), |level| level.above.as_deref());
        levels.filter_map(|level| Arc::clone(&level.settings).downcast().ok()).collect()
    }
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
    #[allow(clippy::type_complexity, reason = "a type alias would hide what is lowered")]
    pub(crate) lower_route: Option<fn(&prost_types::Any, &mut Lower) -> Option<Arc<dyn Any + Send + Sync>>>,
}

/// The filters at work on one request, in the order of the chain.
#[derive(Default)]
pub(crate) struct Chain {
    filters: Vec<Box<dyn HttpStreamFilter>>,
}

/// What a step may wait for besides its own outcome: the stream knows deadlines and whether
/// the client is still there.
pub(crate) trait Attend {
    /// Waits for an awaited step.
    #[allow(clippy::type_complexity, reason = "a type alias would hide what is awaited")]
    fn attend(
        &mut self,
        stream: &mut Stream,
        step: Pin<Box<dyn Future<Output = Outcome>>>,
    ) -> impl Future<Output = Result<Outcome, Ended>>;
}

impl Chain {
    /// Opens the filters of the connection manager that want to see this request. The route
    /// decides which settings they get; a request without a route gets the chain's own.
    pub(crate) fn open(stream: &Stream) -> Self {
        let configured = &stream.manager.filters;
        if configured.is_empty() {
            return Self::default();
        }
        let overrides = stream.overrides();
        let mut filters = Vec::with_capacity(configured.len());
        for filter in configured {
            let settings = overrides.and_then(|overrides| overrides.find(&filter.name));
            let disabled = settings.map_or(filter.disabled, |settings| settings.disabled);
            if !disabled {
                filters.extend(filter.config.open(stream, settings));
            }
        }
        Self { filters }
    }

    /// Whether no filter sees this request.
    pub(crate) fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The request's head, first filter first. `Err`: the stream ends here.
    pub(crate) async fn on_request(
        &mut self,
        stream: &mut Stream,
        head: &mut HeaderMap,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        for filter in &mut self.filters {
            let step = filter.on_request(stream, head, end);
            settle(step, stream, attend).await?;
        }
        Ok(())
    }

    /// A piece of the request's body.
    pub(crate) async fn on_request_data(
        &mut self,
        stream: &mut Stream,
        data: &mut Bytes,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        for filter in &mut self.filters {
            let step = filter.on_request_data(stream, data, end);
            settle(step, stream, attend).await?;
        }
        Ok(())
    }

    /// The response's head, last filter first.
    pub(crate) async fn on_response(
        &mut self,
        stream: &mut Stream,
        head: &mut HeaderMap,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        for filter in self.filters.iter_mut().rev() {
            let step = filter.on_response(stream, head, end);
            settle(step, stream, attend).await?;
        }
        Ok(())
    }

    /// The head of an answer that the proxy makes itself: filters may change it, not replace it.
    pub(crate) fn on_reply(&mut self, stream: &mut Stream, head: &mut HeaderMap, end: bool) {
        for filter in self.filters.iter_mut().rev() {
            drop(filter.on_response(stream, head, end));
        }
    }

    /// A piece of the response's body.
    pub(crate) async fn on_response_data(
        &mut self,
        stream: &mut Stream,
        data: &mut Bytes,
        end: bool,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        for filter in self.filters.iter_mut().rev() {
            let step = filter.on_response_data(stream, data, end);
            settle(step, stream, attend).await?;
        }
        Ok(())
    }

    /// The response's trailers.
    pub(crate) async fn on_response_trailers(
        &mut self,
        stream: &mut Stream,
        trailers: &mut HeaderMap,
        attend: &mut impl Attend,
    ) -> Result<(), Ended> {
        for filter in self.filters.iter_mut().rev() {
            let step = filter.on_response_trailers(stream, trailers);
            settle(step, stream, attend).await?;
        }
        Ok(())
    }

    /// The stream has ended.
    pub(crate) fn on_finish(&mut self, info: &StreamInfo) {
        for filter in &mut self.filters {
            filter.on_finish(info);
        }
    }
}

async fn settle(step: Step, stream: &mut Stream, attend: &mut impl Attend) -> Result<(), Ended> {
    let outcome = match step {
        Step::Continue => return Ok(()),
        Step::Reply(reply) => Outcome::Reply(reply),
        Step::Await(step) => attend.attend(stream, step).await?,
    };
    match outcome {
        Outcome::Continue => Ok(()),
        Outcome::Reply(reply) => Err(Ended::Reply(Box::new(reply))),
    }
}

/// All HTTP filters, in alphabetic order of Envoy's names.
pub(crate) const REGISTRY: &[Registration] =
    &[cors::REGISTRATION, fault::REGISTRATION, grpc_stats::REGISTRATION, header_mutation::REGISTRATION];
