//! `envoy.stat_sinks.metrics_service`: all stats as Prometheus' messages, in a stream of Envoy's metrics
//! service.

use std::rc::Weak;
use std::time::SystemTime;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::metrics::v3 as proto;
use leno_api::proto::envoy::service::metrics::v3 as messages;
use leno_api::proto::io::prometheus::client::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as MetricProto, MetricFamily, MetricType, Quantile,
    Summary,
};
use prost::Message as _;
use tokio::sync::mpsc;

use super::Message;
use super::snapshot::{Metric, Recorded, Snapshot};
use crate::config::lower::Lower;
use crate::http::client::stream::{LastingStream, Service};
use crate::telemetry::access_log::service::config::node;
use crate::telemetry::scrape::QUANTILES;
use crate::worker::Worker;

/// MetricsServiceConfig, lowered.
#[derive(Debug)]
pub(super) struct MetricsService {
    service: Service,
    /// StreamMetricsMessage that says who we are, which the first message of a stream begins with.
    identity: Vec<u8>,
    /// Counters are told by what is new.
    deltas: bool,
    /// Labels are apart from the name.
    labels: bool,
    summaries: bool,
    histograms: bool,
    /// Families in one message at most; 0: all.
    batch: usize,
}

impl MetricsService {
    pub(super) fn lower(proto: proto::MetricsServiceConfig, at: &mut Lower) -> Option<Self> {
        let proto::MetricsServiceConfig {
            grpc_service,
            transport_api_version,
            report_counters_as_deltas,
            emit_tags_as_labels,
            histogram_emit_mode,
            batch_size,
        } = proto;
        const PATH: &str = "/envoy.service.metrics.v3.MetricsService/StreamMetrics";
        // There is no other version any more.
        at.value::<core::ApiVersion>("transport_api_version", transport_api_version)?;
        let mode = at.value::<proto::HistogramEmitMode>("histogram_emit_mode", histogram_emit_mode)?;
        let service =
            at.required("grpc_service", grpc_service, |proto, at| Service::lower(proto, PATH, at))?;
        service.check(at);
        let identifier = messages::stream_metrics_message::Identifier { node: Some(node(at)) };
        let identity =
            messages::StreamMetricsMessage { identifier: Some(identifier), envoy_metrics: Vec::new() };
        use proto::HistogramEmitMode as Mode;
        Some(Self {
            service,
            identity: identity.encode_to_vec(),
            deltas: report_counters_as_deltas == Some(true),
            labels: emit_tags_as_labels,
            summaries: matches!(mode, Mode::SummaryAndHistogram | Mode::Summary),
            histograms: matches!(mode, Mode::SummaryAndHistogram | Mode::Histogram),
            batch: batch_size as usize,
        })
    }

    /// What the service is told.
    pub(super) fn messages(&self, snapshot: &Snapshot) -> Vec<Message> {
        let mut families = Vec::new();
        let time = millis(snapshot.at);
        for counter in &snapshot.counters {
            let value = if self.deltas { counter.value.new } else { counter.value.all };
            let counted = Counter { value: Some(value as f64), ..Counter::default() };
            let metric = MetricProto { counter: Some(counted), ..MetricProto::default() };
            families.push(self.family(counter, MetricType::Counter, metric, time));
        }
        for gauge in &snapshot.gauges {
            let value = Gauge { value: Some(gauge.value as f64) };
            let metric = MetricProto { gauge: Some(value), ..MetricProto::default() };
            families.push(self.family(gauge, MetricType::Gauge, metric, time));
        }
        for histogram in &snapshot.histograms {
            if self.summaries {
                let metric =
                    MetricProto { summary: Some(summary(&histogram.value)), ..MetricProto::default() };
                families.push(self.family(histogram, MetricType::Summary, metric, time));
            }
            if self.histograms {
                let metric =
                    MetricProto { histogram: Some(buckets(&histogram.value)), ..MetricProto::default() };
                families.push(self.family(histogram, MetricType::Histogram, metric, time));
            }
        }
        let batch = if self.batch == 0 { families.len().max(1) } else { self.batch };
        let mut messages = Vec::with_capacity(families.len().div_ceil(batch));
        while !families.is_empty() {
            let rest = families.split_off(batch.min(families.len()));
            let message = messages::StreamMetricsMessage { identifier: None, envoy_metrics: families };
            messages.push(message.encode_to_vec());
            families = rest;
        }
        messages
    }

    fn family<V>(
        &self,
        of: &Metric<V>,
        kind: MetricType,
        mut metric: MetricProto,
        time: i64,
    ) -> MetricFamily {
        metric.timestamp_ms = Some(time);
        let name = if self.labels {
            let pairs = of.tagged.tags.iter();
            let pair = |(name, value): &(String, String)| LabelPair {
                name: Some(name.clone()),
                value: Some(value.clone()),
            };
            metric.label = pairs.map(pair).collect();
            &of.tagged.name
        } else {
            &of.name
        };
        MetricFamily {
            name: Some(name.clone()),
            r#type: Some(kind.into()),
            metric: vec![metric],
            ..MetricFamily::default()
        }
    }

    /// Sends messages as they come.
    pub(super) async fn run(&self, mut messages: mpsc::Receiver<Message>, worker: Weak<Worker>) {
        let mut stream = LastingStream::new(&self.service);
        loop {
            let message = tokio::select! {
                () = stream.ended() => continue,
                message = messages.recv() => message,
            };
            let (Some(message), Some(worker)) = (message, worker.upgrade()) else { return };
            stream.send(&worker, &self.identity, &message).await;
        }
    }
}

fn summary(recorded: &Recorded) -> Summary {
    let quantile = |share: f64| Quantile { quantile: Some(share), value: Some(recorded.new.quantile(share)) };
    Summary {
        sample_count: Some(recorded.new.count()),
        sample_sum: Some(recorded.new.sum as f64),
        quantile: QUANTILES.map(quantile).into(),
        ..Summary::default()
    }
}

fn buckets(recorded: &Recorded) -> Histogram {
    let bucket = |bound: &f64| Bucket {
        cumulative_count: Some(recorded.new.below(*bound)),
        upper_bound: Some(*bound),
        ..Bucket::default()
    };
    Histogram {
        sample_count: Some(recorded.new.count()),
        sample_sum: Some(recorded.new.sum as f64),
        bucket: recorded.bounds.iter().map(bucket).collect(),
        ..Histogram::default()
    }
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
