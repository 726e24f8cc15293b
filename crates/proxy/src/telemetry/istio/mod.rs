//! Istio's standard metrics (`istio.stats`): requests, their durations and sizes, messages of gRPC
//! and TCP connections, by who talks to whom. The HTTP filter (`http::filters::istio_stats`) and
//! the network filter (`listener::network::istio_stats`) say what has happened; here it is counted.
//!
//! Requests with the same labels share objects (the peer, the cluster, the TLS session), whose
//! addresses find the blocks to count in. Where they meet for the first time, or a text of the
//! client's is a label, all that the labels depend on is a run of bytes, which finds the same
//! ([`tables`]); labels are made when the first of their kind is counted only. Names, labels and the
//! rules for what is not known are those of Istio's proxy.
//! Reading order: this file, `labels`, `tables`, `rotation`, `config`.

pub(crate) mod config;
mod labels;
mod rotation;
mod tables;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use self::labels::Facts;
pub(crate) use self::labels::{Seen, Side, Spoken, knows_peer};
use self::rotation::Rotation;
pub(crate) use self::tables::Tables;
use crate::http::filters::Background;
use crate::matching::cel::Expression;
use crate::matching::facts::LogFacts;
use crate::telemetry::stats::{Block, Kind, Labels};
use crate::worker::Worker;

/// What Envoy calls the names of these stats; Prometheus does not see it.
const NAMESPACE: &str = "istiocustom.";
/// What is not known.
const UNKNOWN: &str = "unknown";

/// PluginConfig, lowered; listeners that say the same share it.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Tells it from all others.
    number: u64,
    /// Whose view is reported.
    pub(crate) side: Side,
    /// Whether the host header stands for a service that the control plane has not named.
    pub(crate) host_fallback: bool,
    /// `tcp_reporting_duration`; `None`: at the end only.
    pub(crate) interval: Option<Duration>,
    /// What this proxy is.
    own: Own,
    /// The node, for expressions.
    node: Arc<serde_json::Value>,
    /// The standard metrics, by [`Standard`].
    metrics: Vec<Metric>,
    /// `definitions`
    custom: Vec<Custom>,
    /// Expressions that labels are made of.
    expressions: Vec<Expression>,
    /// What goes on beside requests.
    rotation: Arc<Rotation>,
}

/// What this proxy is, as labels say it. What it has not been told is empty.
#[derive(Debug, Default)]
struct Own {
    workload: Box<str>,
    namespace: Box<str>,
    canonical_name: Box<str>,
    canonical_revision: Box<str>,
    app: Box<str>,
    version: Box<str>,
    cluster: Box<str>,
    /// `ISTIO_VERSION`
    istio_version: Box<str>,
}

/// The standard metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standard {
    RequestsTotal,
    RequestDuration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

impl Standard {
    /// In their order, with their names behind `istio_`.
    const ALL: [(Standard, &'static str, Kind); 10] = [
        (Standard::RequestsTotal, "requests_total", Kind::Counter),
        (Standard::RequestDuration, "request_duration_milliseconds", Kind::Histogram),
        (Standard::RequestBytes, "request_bytes", Kind::Histogram),
        (Standard::ResponseBytes, "response_bytes", Kind::Histogram),
        (Standard::RequestMessages, "request_messages_total", Kind::Counter),
        (Standard::ResponseMessages, "response_messages_total", Kind::Counter),
        (Standard::TcpOpened, "tcp_connections_opened_total", Kind::Counter),
        (Standard::TcpClosed, "tcp_connections_closed_total", Kind::Counter),
        (Standard::TcpSent, "tcp_sent_bytes_total", Kind::Counter),
        (Standard::TcpReceived, "tcp_received_bytes_total", Kind::Counter),
    ];
}

/// What becomes of one metric.
#[derive(Clone, Debug, Default)]
struct Metric {
    /// `drop`
    dropped: bool,
    /// Standard labels that are left out (`None`) or are the value of an expression.
    changed: Vec<(&'static str, Option<usize>)>,
    /// Further labels.
    added: Vec<(Arc<str>, usize)>,
}

/// A metric of the user's.
#[derive(Debug)]
struct Custom {
    name: Box<str>,
    kind: Kind,
    /// How much a request or session counts.
    amount: Expression,
    added: Vec<(Arc<str>, usize)>,
}

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// A request that has ended.
    Request,
    /// Messages of a gRPC stream that may go on.
    Messages,
    /// A TCP session.
    Session,
}

impl Family {
    /// The standard metrics of the family, in the order of its blocks.
    fn metrics(self) -> &'static [(Standard, &'static str, Kind)] {
        let all = &Standard::ALL;
        match self {
            Family::Request => &all[..4],
            Family::Messages => &all[4..6],
            Family::Session => &all[6..],
        }
    }
}

/// The blocks of one label set of a family: those of its metrics (`None`: dropped), then those of
/// the user's.
#[derive(Debug)]
pub(crate) struct Series {
    standard: SmallVec<[Option<Arc<Block>>; 4]>,
    custom: Vec<Arc<Block>>,
}

impl Series {
    /// Whether nobody sees any more what is counted here.
    pub(crate) fn is_retired(&self) -> bool {
        self.standard.iter().flatten().chain(&self.custom).any(|block| block.is_retired())
    }

    fn count(&self, index: usize, amount: u64) {
        if let Some(Some(block)) = self.standard.get(index) {
            block.cell(0).add(amount);
        }
    }

    fn record(&self, index: usize, value: u64) {
        if let Some(Some(block)) = self.standard.get(index) {
            block.histogram(0).record(value);
        }
    }
}

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// How long it took.
    pub(crate) duration: Duration,
    /// Bytes of it on the wire.
    pub(crate) received: u64,
    /// Bytes of its response on the wire.
    pub(crate) sent: u64,
}

impl Settings {
    /// What goes on beside requests.
    pub(crate) fn background(&self) -> Arc<dyn Background> {
        Arc::<Rotation>::clone(&self.rotation)
    }

    /// The values of the expressions for labels; `unknown` where they have none, or one that is longer
    /// than labels should be.
    fn values(&self, facts: LogFacts<'_>) -> Vec<String> {
        let facts = LogFacts { node: Some(&self.node), ..facts };
        // Deviation: a value of more than 259 bytes is "unknown"; Istio's proxy shows it at any length.
        let value = |one: &Expression| one.text(&facts).filter(|value| value.len() <= labels::TEXT);
        self.expressions.iter().map(|one| value(one).unwrap_or_else(|| UNKNOWN.to_owned())).collect()
    }

    /// Whether there is something among what labels depend on that anybody can choose.
    fn are_of_client(&self, facts: &Facts<'_>, values: &[String]) -> bool {
        let mut expressions = self.expressions.iter().zip(values);
        facts.are_of_client() || expressions.any(|(one, value)| !one.is_configured() && value != UNKNOWN)
    }

    /// Counts a request that has ended.
    pub(crate) fn request(
        self: &Arc<Self>,
        worker: &Worker,
        seen: &Seen<'_>,
        facts: LogFacts<'_>,
        request: Request,
    ) {
        let series = worker.istio().series(self, Family::Request, seen, facts, worker);
        series.count(0, 1);
        series.record(1, u64::try_from(request.duration.as_millis()).unwrap_or(u64::MAX));
        series.record(2, request.received);
        series.record(3, request.sent);
        self.count_custom(&series, facts);
    }

    /// Counts messages of a gRPC stream: of requests, of responses.
    pub(crate) fn messages(
        self: &Arc<Self>,
        worker: &Worker,
        seen: &Seen<'_>,
        facts: LogFacts<'_>,
        [requests, responses]: [u64; 2],
    ) {
        let series = worker.istio().series(self, Family::Messages, seen, facts, worker);
        series.count(0, requests);
        series.count(1, responses);
    }

    /// The blocks of a TCP session, which is counted as opened.
    pub(crate) fn open_session(
        self: &Arc<Self>,
        worker: &Worker,
        seen: &Seen<'_>,
        facts: LogFacts<'_>,
    ) -> Rc<Series> {
        let series = self.session(worker, seen, facts);
        series.count(0, 1);
        series
    }

    /// The blocks of a session that has been counted as opened.
    pub(crate) fn session(
        self: &Arc<Self>,
        worker: &Worker,
        seen: &Seen<'_>,
        facts: LogFacts<'_>,
    ) -> Rc<Series> {
        worker.istio().series(self, Family::Session, seen, facts, worker)
    }

    /// Counts bytes of a session: to the client, and from it.
    pub(crate) fn session_bytes(&self, series: &Series, sent: u64, received: u64) {
        series.count(2, sent);
        series.count(3, received);
    }

    /// Counts the end of a session.
    pub(crate) fn close_session(&self, series: &Series, facts: LogFacts<'_>) {
        series.count(1, 1);
        self.count_custom(series, facts);
    }

    fn count_custom(&self, series: &Series, facts: LogFacts<'_>) {
        let facts = LogFacts { node: Some(&self.node), ..facts };
        for (custom, block) in self.custom.iter().zip(&series.custom) {
            let amount = custom.amount.text(&facts).and_then(|text| text.parse().ok()).unwrap_or(0);
            match custom.kind {
                Kind::Counter => block.cell(0).add(amount),
                Kind::Gauge => block.cell(0).set(amount),
                Kind::Histogram => block.histogram(0).record(amount),
            }
        }
    }

    /// Makes the blocks of a label set that is counted for the first time.
    fn make(&self, family: Family, seen: &Facts<'_>, values: &[String], worker: &Worker) -> Series {
        let labels = seen.labels(family, self);
        let added = |added: &[(Arc<str>, usize)]| -> Vec<(Arc<str>, Box<str>)> {
            let values = added.iter().filter_map(|(label, index)| Some((label, values.get(*index)?)));
            values.map(|(label, value)| (Arc::clone(label), value.as_str().into())).collect()
        };
        let block = |kind, name: &str, pairs| {
            let name = format!("{NAMESPACE}istio_{name}").into();
            worker.stats().labelled(kind, Labels { name, pairs })
        };
        let standard = family.metrics().iter().map(|(metric, name, kind)| {
            let Metric { dropped, changed, added: further } = self.metrics.get(*metric as usize)?;
            if *dropped {
                return None;
            }
            let mut pairs: Vec<(Arc<str>, Box<str>)> = Vec::new();
            for (label, value) in &labels {
                let value = match changed.iter().find(|(changed, _)| changed == label) {
                    None => value.as_ref(),
                    Some((_, None)) => continue,
                    Some((_, Some(index))) => values.get(*index).map(String::as_str).unwrap_or_default(),
                };
                pairs.push((labels::name(label), value.into()));
            }
            pairs.extend(added(further));
            Some(block(*kind, name, pairs))
        });
        let standard = standard.collect();
        let custom: Vec<Arc<Block>> = match family {
            Family::Messages => Vec::new(),
            Family::Request | Family::Session => {
                let custom = self.custom.iter();
                custom.map(|custom| block(custom.kind, &custom.name, added(&custom.added))).collect()
            }
        };
        Series { standard, custom }
    }
}

/// The time between two moments of a stream.
pub(crate) fn since(end: Instant, started: Instant) -> Duration {
    end.saturating_duration_since(started)
}
