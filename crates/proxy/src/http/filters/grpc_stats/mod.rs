//! `envoy.filters.http.grpc_stats`: counts calls and messages of gRPC by upstream cluster, and
//! by service and method where that is wanted.
//!
//! Not here: the Connect protocol, which Envoy counts in the same stats.

mod config;
pub(crate) mod frames;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use self::frames::Frames;
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::stream::Stream;
use crate::telemetry::stats::ThreadStats;
use crate::telemetry::stream_info::{FilterState, StreamInfo};
use crate::worker::Worker;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: NAME,
    config_type: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    lower: config::lower,
    route_type: None,
    lower_route: None,
};

const NAME: &str = "envoy.filters.http.grpc_stats";

/// Messages of requests and of responses that the filter has counted so far, if it tells
/// (`emit_filter_state`).
pub(crate) fn counted(info: &StreamInfo) -> Option<[u64; 2]> {
    let (requests, responses) = info.filter_state.get(NAME)?.text.split_once(',')?;
    Some([requests.parse().ok()?, responses.parse().ok()?])
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct GrpcStats(Arc<Settings>);

/// FilterConfig.
#[derive(Debug)]
struct Settings {
    methods: Methods,
    /// `emit_filter_state`.
    emit_filter_state: bool,
    /// `enable_upstream_stats`.
    upstream_stats: bool,
    /// `replace_dots_in_grpc_service_name`, for `Methods::All`.
    replace_dots: bool,
}

/// Which methods are counted by name; all others are counted without.
#[derive(Debug)]
enum Methods {
    /// `stats_for_all_methods`.
    All,
    /// `individual_method_stats_allowlist`: service and method.
    Listed(Vec<(Box<str>, Box<str>)>),
}

impl FilterConfig for GrpcStats {
    fn on_request(
        &self,
        stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        if !stream.is_grpc() {
            return Opening::PASS;
        }
        Opening::Open(Box::new(InStream::new(&self.0, &stream.worker)))
    }
}

impl Settings {
    /// The scope in which a request to this cluster is counted, with a dot at the end; `None`:
    /// its path is not that of a call, and nothing is counted.
    fn scope(&self, cluster: &str, path: &[u8]) -> Option<String> {
        let (service, method) = service_and_method(path)?;
        let by_name = match &self.methods {
            Methods::All if self.replace_dots => format!("{}.{method}.", service.replace('.', "_")),
            Methods::All => format!("{service}.{method}."),
            Methods::Listed(listed) => match listed.iter().any(|(s, m)| **s == *service && **m == *method) {
                true => format!("{service}.{method}."),
                false => String::new(),
            },
        };
        Some(format!("cluster.{cluster}.grpc.{by_name}"))
    }
}

/// `/service/method`, without query.
fn service_and_method(path: &[u8]) -> Option<(&str, &str)> {
    let path = std::str::from_utf8(path).ok()?.split('?').next()?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let (service, method) = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some((service, method))
}

/// The filter at work.
struct InStream {
    worker: Rc<Worker>,
    call: Call,
}

impl InStream {
    fn new(settings: &Arc<Settings>, worker: &Rc<Worker>) -> Self {
        Self { worker: Rc::clone(worker), call: Call::new(Arc::clone(settings)) }
    }
}

impl HttpStreamFilter for InStream {
    fn on_request(&mut self, stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        let cluster =
            stream.selected.as_ref().and_then(|selected| self.worker.cluster(selected.cluster(head)?));
        self.call.request(head, cluster.as_ref().map(|cluster| &*cluster.config.stat_name));
        Step::Continue
    }

    fn on_request_data(&mut self, stream: &mut Stream, data: &mut Bytes, _end: bool) -> Step {
        self.call.request_data(data, &mut stream.info, self.worker.stats());
        Step::Continue
    }

    fn on_response(&mut self, _stream: &mut Stream, head: &mut HeaderMap, end: bool) -> Step {
        self.call.response(head, end, self.worker.stats());
        Step::Continue
    }

    fn on_response_data(&mut self, stream: &mut Stream, data: &mut Bytes, _end: bool) -> Step {
        self.call.response_data(data, &mut stream.info, self.worker.stats());
        Step::Continue
    }

    fn on_response_trailers(
        &mut self,
        _stream: &mut Stream,
        trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        self.call.response_trailers(trailers, self.worker.stats());
        Step::Continue
    }

    fn on_finish(&mut self, info: &StreamInfo) {
        self.call.finish(info, self.worker.stats());
    }
}

/// One call.
struct Call {
    settings: Arc<Settings>,
    /// See `Settings::scope`.
    scope: Option<String>,
    requests: Frames,
    responses: Frames,
    /// Whether the response is gRPC.
    grpc_response: bool,
    /// Whether the response came to its end.
    complete: bool,
}

impl Call {
    fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            scope: None,
            requests: Frames::default(),
            responses: Frames::default(),
            grpc_response: false,
            complete: false,
        }
    }

    /// `cluster`: the name of the upstream cluster in stats.
    fn request(&mut self, head: &HeaderMap, cluster: Option<&str>) {
        self.scope = cluster.and_then(|cluster| self.settings.scope(cluster, head.path()));
    }

    fn request_data(&mut self, data: &[u8], info: &mut StreamInfo, stats: &ThreadStats) {
        let begun = self.requests.inspect(data);
        self.count_messages("request_message_count", begun, info, stats);
    }

    fn response(&mut self, head: &HeaderMap, end: bool, stats: &ThreadStats) {
        // A response without body says its status in the head ("Trailers-Only").
        self.grpc_response =
            if end { head.contains(Known::GrpcStatus) } else { head.status() == 200 && head.is_grpc() };
        self.complete = end;
        self.count_status(head, stats);
    }

    fn response_data(&mut self, data: &[u8], info: &mut StreamInfo, stats: &ThreadStats) {
        if self.grpc_response {
            let begun = self.responses.inspect(data);
            self.count_messages("response_message_count", begun, info, stats);
        }
    }

    fn response_trailers(&mut self, trailers: &HeaderMap, stats: &ThreadStats) {
        self.complete = true;
        self.count_status(trailers, stats);
    }

    /// The time from the last byte of the request to the last of the response.
    fn finish(&self, info: &StreamInfo, stats: &ThreadStats) {
        let (Some(sent), Some(received)) = (info.upstream.last_tx, info.upstream.last_rx) else { return };
        if let Some(scope) = self.scope.as_ref().filter(|_| self.settings.upstream_stats && self.complete) {
            stats.record_ms(&format!("{scope}upstream_rq_time"), received.saturating_duration_since(sent));
        }
    }

    fn count_messages(&self, name: &str, begun: u64, info: &mut StreamInfo, stats: &ThreadStats) {
        if begun == 0 {
            return;
        }
        if self.settings.emit_filter_state {
            info.filter_state.insert(NAME.to_owned(), self.state());
        }
        if let Some(scope) = &self.scope {
            stats.count(&format!("{scope}{name}"), begun);
        }
    }

    /// The counts as `envoy.extensions.filters.http.grpc_stats.v3.FilterObject`: in JSON, 64-bit
    /// numbers are strings and zeros are left out.
    fn state(&self) -> FilterState {
        let counts = [self.requests.count, self.responses.count];
        let names = ["requestMessageCount", "responseMessageCount"];
        let fields = names.into_iter().zip(counts).filter(|(_, count)| *count > 0);
        let typed = fields.map(|(name, count)| (name.to_owned(), count.to_string().into())).collect();
        FilterState {
            text: counts.map(|count| count.to_string()).join(","),
            typed: Some(serde_json::Value::Object(typed)),
            peer: None,
        }
    }

    fn count_status(&self, headers: &HeaderMap, stats: &ThreadStats) {
        let (Some(scope), Some(status)) = (&self.scope, headers.get_str(Known::GrpcStatus)) else { return };
        // Deviation: what is no number gets no counter of its own, so that nobody can make more.
        if status.len() <= 3 && status.bytes().all(|byte| byte.is_ascii_digit()) {
            stats.count(&format!("{scope}{status}"), 1);
        }
        let outcome = if status == "0" { "success" } else { "failure" };
        stats.count(&format!("{scope}{outcome}"), 1);
        stats.count(&format!("{scope}total"), 1);
    }
}
