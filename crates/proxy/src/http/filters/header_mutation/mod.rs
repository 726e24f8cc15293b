//! `envoy.filters.http.header_mutation`: adds, changes and removes headers, trailers and query
//! parameters.
//!
//! The filter's own changes come first, then those of all levels of the route's settings: the
//! most specific first, or last with `most_specific_header_mutations_wins`. Unlike a route's
//! header rules, changes are made one after the other, each seeing those before it.

mod config;
pub(super) mod query;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::mutation::{HeaderChange, Substitution, evaluate};
use crate::http::stream::Stream;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::{Command, Format};
use crate::telemetry::stream_info::ResponseFlags;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.header_mutation",
    config_type: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"),
    lower_route: Some(config::lower_route),
};

/// HeaderMutation.
#[derive(Debug)]
struct HeaderMutation {
    mutations: Arc<Mutations>,
    /// `most_specific_header_mutations_wins`.
    most_specific_wins: bool,
}

/// Mutations of the filter or of one level of a route's settings.
#[derive(Debug, Default)]
struct Mutations {
    request: Vec<HeaderChange>,
    query: Vec<QueryChange>,
    response: Vec<HeaderChange>,
    response_trailers: Vec<HeaderChange>,
    request_trailers: Vec<HeaderChange>,
}

/// One KeyValueMutation.
#[derive(Debug)]
enum QueryChange {
    /// `append`.
    Set { key: Box<str>, value: Format, action: QueryAction },
    /// `remove`.
    Remove(Box<str>),
}

/// KeyValueAppendAction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueryAction {
    Append,
    AddIfAbsent,
    OverwriteOrAdd,
    OverwriteIfExists,
}

impl HeaderMutation {
    /// All mutations for a request, in the order of application.
    fn levels(&self, settings: Option<&RouteSettings>) -> SmallVec<[Arc<Mutations>; 4]> {
        let mut levels: SmallVec<[Arc<Mutations>; 4]> = SmallVec::new();
        levels.push(Arc::clone(&self.mutations));
        let route = settings.map(RouteSettings::levels::<Mutations>).unwrap_or_default();
        if self.most_specific_wins {
            levels.extend(route.into_iter().rev());
        } else {
            levels.extend(route);
        }
        levels
    }
}

impl FilterConfig for HeaderMutation {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let context = FormatContext::new(&stream.info);
        for level in self.levels(settings) {
            level.change_request(head, &context);
        }
        Opening::Watch(missing(head, false).map_or(Step::Continue, Step::Reply))
    }

    fn on_request_trailers(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        let context = FormatContext { request: Some(&stream.request), ..FormatContext::new(&stream.info) };
        for level in self.levels(settings) {
            change_headers(&level.request_trailers, trailers, &context);
        }
        Step::Continue
    }

    fn on_response(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Step {
        // `%RESPONSE_CODE%` is known to values.
        stream.info.response_code = head.status();
        let context = FormatContext { request: Some(&stream.request), ..FormatContext::new(&stream.info) };
        for level in self.levels(settings) {
            change_headers(&level.response, head, &context);
        }
        let Some(reply) = missing(head, true) else { return Step::Continue };
        // The head of an answer of our own is not replaced: it needs a status at least.
        head.set_status(reply.status);
        Step::Reply(reply)
    }

    fn on_response_trailers(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        let context = FormatContext {
            request: Some(&stream.request),
            response: Some(&stream.response),
            ..FormatContext::new(&stream.info)
        };
        for level in self.levels(settings) {
            change_headers(&level.response_trailers, trailers, &InTrailers(context));
        }
        Step::Continue
    }
}

impl Mutations {
    fn change_request(&self, head: &mut HeaderMap, substitution: &dyn Substitution) {
        change_headers(&self.request, head, substitution);
        if self.query.is_empty() {
            return;
        }
        let Some(path) = head.get(Known::Path) else { return };
        let path = query::change(path, &self.query, |value| evaluate(value, head, substitution));
        head.set(Known::Path, &path);
    }
}

fn change_headers(changes: &[HeaderChange], headers: &mut HeaderMap, substitution: &dyn Substitution) {
    for change in changes {
        change.apply(headers, substitution);
    }
}

/// The answer to a message that has lost a header without which it is none.
fn missing(head: &HeaderMap, response: bool) -> Option<Reply> {
    let required = if response {
        [Known::Status].as_slice()
    } else if head.method() == b"CONNECT" {
        [Known::Method, Known::Authority].as_slice()
    } else {
        [Known::Method, Known::Path].as_slice()
    };
    let name = required.iter().find(|name| !head.contains(**name))?.text();
    let body = format!("missing required header: {name}");
    let kind = if response { "response" } else { "request" };
    let details = format!("filter_removed_required_{kind}_headers{{missing_required_header:_{name}}}");
    if response {
        return Some(Reply::new(502, details, body));
    }
    Some(Reply::new(503, details, body).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
}

/// The context of values in trailers: the headers being changed are the trailers.
struct InTrailers<'a>(FormatContext<'a>);

impl Substitution for InTrailers<'_> {
    fn substitute(&self, command: &Command, headers: &HeaderMap, out: &mut Vec<u8>) {
        let context = FormatContext { trailers: Some(headers), ..self.0 };
        command.operator.value(&context).append(command.max_length, out);
    }
}
