//! `istio.stats`: counts requests and messages of gRPC by who talks to whom (`telemetry::istio`).
//!
//! It looks at no message: whatever became of a request, it is counted when the request has ended,
//! and while a gRPC stream goes on, its messages are now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_api::proto::stats as proto;

use crate::config::lower::Lower;
use crate::http::filters::{Background, FilterConfig, Opening, Registration, RouteSettings};
use crate::http::headers::HeaderMap;
use crate::http::stream::Stream;
use crate::matching::facts::LogFacts;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::grpc;
use crate::telemetry::istio::{Request, Seen, Settings, Spoken, config, knows_peer, since};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.istio_stats",
    config_type: "stats.PluginConfig",
    lower,
    route_type: None,
    lower_route: None,
};

/// PluginConfig.
#[derive(Debug)]
struct IstioStats(Arc<Settings>);

impl FilterConfig for IstioStats {
    fn on_request(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        Opening::PASS
    }

    fn background(&self) -> Vec<Arc<dyn Background>> {
        vec![self.0.background()]
    }

    fn observes(&self) -> Option<Duration> {
        Some(self.0.interval.unwrap_or(Duration::MAX))
    }

    fn on_report(&self, stream: &Stream, messages: Option<[u64; 2]>, end: Option<Instant>) -> bool {
        let info = &stream.info;
        // While a stream goes on, its messages wait until it is known who talks to whom.
        if end.is_none() && !knows_peer(self.0.side, info) {
            return false;
        }
        let grpc = stream.is_grpc();
        let spoken = if grpc { Spoken::Grpc } else { Spoken::Http };
        let seen = Seen::new(&self.0, info, Some(&stream.request), spoken, None);
        if let Some(messages) = messages {
            let facts = LogFacts { context: FormatContext::new(info), node: None };
            self.0.messages(&stream.worker, &seen, facts, messages);
        }
        let Some(end) = end else { return true };
        let context = FormatContext {
            request: Some(&stream.request),
            response: Some(&stream.response),
            trailers: stream.trailers.as_deref(),
            end: Some(end),
            ..FormatContext::new(info)
        };
        let status = if grpc { grpc::status(&context) } else { None };
        let (received, sent) = info.wire_bytes();
        let request = Request { duration: since(end, info.started), received, sent };
        self.0.request(&stream.worker, &seen.ended(status), LogFacts { context, node: None }, request);
        true
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto: proto::PluginConfig = at.unpack(any)?;
    Some(Arc::new(IstioStats(config::lower(proto, at)?)))
}
