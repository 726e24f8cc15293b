//! Reporting: encoded spans wait on the worker that made them until there are enough, or long
//! enough, and are sent from there.
//!
//! Nobody waits for a report, and a span that cannot be reported is lost. While as many reports as
//! are allowed are under way, spans wait for the next; those beyond `max_cache_size` are dropped.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::http::client::grpc::{Unary, unary};
use crate::http::client::{Answer, Call, CallError, Wanted, call};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::mutation::Substitution;
use crate::telemetry::access_log::command::Operator;
use crate::telemetry::access_log::format::Command;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::trace::tags::Tags;
use crate::telemetry::trace::tracer::{Dialect, HttpCollector, Target, Tracer};
use crate::telemetry::trace::{Ended, otlp};
use crate::worker::Worker;

/// Reports of one worker to one collector that are under way at the same time.
const UNDER_WAY: u32 = 8;

/// How long a report may take that nothing else limits: it would be in the way of others for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// What reports of OpenTelemetry's call who sends them.
pub(super) const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-Envoy/", env!("CARGO_PKG_VERSION"));

/// Reports are made in the name of the proxy.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

stats_scope! {
    /// `tracing.opentelemetry.`
    struct OpenTelemetryStats {
        counter spans_dropped;
        counter spans_sent;
        counter timer_flushed;
    }
}

stats_scope! {
    /// `tracing.zipkin.`
    struct ZipkinStats {
        counter reports_dropped;
        counter reports_failed;
        counter reports_sent;
        counter reports_skipped_no_cluster;
        counter spans_sent;
        counter timer_flushed;
    }
}

/// What is counted.
#[derive(Clone)]
enum Stats {
    OpenTelemetry(OpenTelemetryStats),
    Zipkin(ZipkinStats),
}

/// A worker's side of a provider.
pub(crate) struct Exporter {
    tracer: Arc<Tracer>,
    worker: Weak<Worker>,
    stats: Stats,
    batch: RefCell<Batch>,
    tags: RefCell<Tags>,
    under_way: Cell<u32>,
}

/// Spans that wait.
#[derive(Default)]
struct Batch {
    encoded: Vec<u8>,
    spans: usize,
}

impl Exporter {
    /// Begins to work on a worker, for as long as somebody holds it.
    pub(crate) fn start(tracer: &Arc<Tracer>, worker: &Rc<Worker>) -> Rc<Self> {
        let stats = match tracer.dialect {
            Dialect::OpenTelemetry { .. } => {
                Stats::OpenTelemetry(OpenTelemetryStats::kept(worker.stats(), "tracing.opentelemetry."))
            }
            Dialect::Zipkin(_) => Stats::Zipkin(ZipkinStats::kept(worker.stats(), "tracing.zipkin.")),
        };
        let exporter = Rc::new(Self {
            tracer: Arc::clone(tracer),
            worker: Rc::downgrade(worker),
            stats,
            batch: RefCell::default(),
            tags: RefCell::default(),
            under_way: Cell::new(0),
        });
        tokio::task::spawn_local(flush_in_time(Rc::downgrade(&exporter), tracer.interval));
        exporter
    }

    /// Whether it is the one of a provider.
    pub(crate) fn is_of(&self, tracer: &Tracer) -> bool {
        self.tracer.key == tracer.key
    }

    /// Whether spans wait.
    pub(crate) fn has_spans(&self) -> bool {
        self.batch.borrow().spans > 0
    }

    /// Reports a span: `fill` says what is known, `make` what it is.
    pub(crate) fn report(
        self: &Rc<Self>,
        fill: impl FnOnce(&mut Tags),
        make: impl FnOnce(&Tags, &mut dyn FnMut(&Ended<'_>)),
    ) {
        if self.batch.borrow().spans >= self.tracer.most {
            if let Stats::OpenTelemetry(stats) = &self.stats {
                stats.spans_dropped().inc();
            }
            return;
        }
        let mut tags = self.tags.borrow_mut();
        tags.clear();
        fill(&mut tags);
        let mut batch = self.batch.borrow_mut();
        make(&tags, &mut |span| {
            self.tracer.encode(span, &mut batch.encoded);
            batch.spans += 1;
        });
        let enough = batch.spans >= self.tracer.batch;
        drop((tags, batch));
        if enough {
            self.flush();
        }
    }

    /// Sends what waits, unless too much is under way.
    fn flush(self: &Rc<Self>) {
        let Some(worker) = self.worker.upgrade() else { return };
        if self.under_way.get() >= UNDER_WAY || !self.has_spans() {
            return;
        }
        let Batch { encoded, spans } = self.batch.take();
        match &self.stats {
            Stats::OpenTelemetry(stats) => stats.spans_sent().add(spans as u64),
            Stats::Zipkin(stats) => stats.spans_sent().add(spans as u64),
        }
        self.under_way.set(self.under_way.get() + 1);
        let report = Bytes::from(self.tracer.report(encoded));
        let exporter = Rc::clone(self);
        tokio::task::spawn_local(async move {
            exporter.send(&worker, report).await;
            exporter.under_way.set(exporter.under_way.get() - 1);
            if exporter.batch.borrow().spans >= exporter.tracer.batch {
                exporter.flush();
            }
        });
    }

    async fn send(&self, worker: &Worker, report: Bytes) {
        match &self.tracer.target {
            Target::Grpc(target) => {
                let mut metadata = target.metadata(&HeaderMap::new(), &Alone);
                metadata.push((Known::UserAgent.text().into(), USER_AGENT.into()));
                let (service, method) = otlp::SERVICE;
                let request = Unary {
                    service,
                    method,
                    authority: target.authority.as_deref(),
                    metadata: &metadata,
                    message: report,
                    // The collector is not told, as in Envoy.
                    timeout: None,
                    local: LOCAL,
                };
                let limit = target.timeout.unwrap_or(LIMIT);
                let sent = tokio::time::timeout(limit, unary(worker, &target.cluster, &request)).await;
                if !matches!(sent, Ok(Ok(_))) {
                    tracing::debug!(target: "tracing", outcome = ?sent, "a report of spans failed");
                }
            }
            Target::Http(collector) => {
                let outcome = call(worker, &collector.cluster, &collector.request(report)).await;
                self.count(&outcome);
            }
        }
    }

    fn count(&self, outcome: &Result<Answer, CallError>) {
        if let Err(error) = outcome {
            tracing::debug!(target: "tracing", ?error, "a report of spans failed");
        }
        let Stats::Zipkin(stats) = &self.stats else { return };
        match outcome {
            // What a collector accepts, it does later.
            Ok(answer) if answer.head.status() == 202 => stats.reports_sent().inc(),
            Ok(_) => stats.reports_dropped().inc(),
            Err(CallError::NoCluster) => stats.reports_skipped_no_cluster().inc(),
            Err(_) => stats.reports_failed().inc(),
        }
    }
}

impl HttpCollector {
    fn request(&self, report: Bytes) -> Call {
        let mut request = Call::new("POST", &self.authority, &self.path, LOCAL);
        request.head.append_known(Known::ContentType, self.content_type.as_bytes());
        request.head.append_known(Known::ContentLength, report.len().to_string().as_bytes());
        if let Some(name) = self.user_agent {
            request.head.append_known(Known::UserAgent, name.as_bytes());
        }
        self.headers.apply(&mut request.head, &Alone);
        request.limit(self.timeout.unwrap_or(LIMIT));
        request.answer = Wanted::Nothing;
        request.body = vec![report];
        request
    }
}

/// Sends what waits again and again, as long as the exporter is there.
async fn flush_in_time(exporter: Weak<Exporter>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(exporter) = exporter.upgrade() else { return };
        match &exporter.stats {
            Stats::OpenTelemetry(stats) => stats.timer_flushed().inc(),
            Stats::Zipkin(stats) => stats.timer_flushed().inc(),
        }
        exporter.flush();
    }
}

/// What commands yield where there is no request: only what is known beforehand.
struct Alone;

impl Substitution for Alone {
    fn substitute(&self, command: &Command, _: &HeaderMap, out: &mut Vec<u8>) {
        if let Operator::Constant(Some(text)) = &command.operator {
            let end = command.max_length.unwrap_or(text.len()).min(text.len());
            out.extend_from_slice(text.as_bytes().get(..end).unwrap_or_default());
        }
    }
}
