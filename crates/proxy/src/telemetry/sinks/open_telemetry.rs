//! `envoy.stat_sinks.open_telemetry`: all stats as OpenTelemetry's metrics.

use std::rc::Weak;
use std::time::SystemTime;

use leno_api::proto::envoy::extensions::stat_sinks::open_telemetry::v3 as proto;
use leno_api::proto::opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest;
use leno_api::proto::opentelemetry::proto::common::v1 as common;
use leno_api::proto::opentelemetry::proto::metrics::v1 as metrics;
use leno_api::proto::opentelemetry::proto::resource::v1::Resource;
use prost::Message as _;
use tokio::sync::mpsc;

use super::Message;
use super::snapshot::{Metric, Recorded, Snapshot};
use crate::config::lower::Lower;
use crate::telemetry::collector::Collector;
use crate::telemetry::trace::provider::{ResourceOptions, resource};
use crate::worker::Worker;

/// SinkConfig, lowered.
#[derive(Debug)]
pub(super) struct OpenTelemetry {
    collector: Collector,
    resource: Resource,
    counter_deltas: bool,
    histogram_deltas: bool,
    /// Labels are attributes, and parts of names no more.
    attributes: bool,
    short_names: bool,
    /// In front of names, with its dot.
    prefix: Box<str>,
    /// Metrics in one request at most; 0: all.
    most: usize,
}

impl OpenTelemetry {
    pub(super) fn lower(proto: proto::SinkConfig, at: &mut Lower) -> Option<Self> {
        use proto::sink_config::ProtocolSpecifier as Protocol;
        let proto::SinkConfig {
            resource_detectors,
            report_counters_as_deltas,
            report_histograms_as_deltas,
            emit_tags_as_attributes,
            use_tag_extracted_name,
            prefix,
            custom_metric_conversions,
            max_data_points_per_request,
            protocol_specifier,
        } = proto;
        at.unsupported("custom_metric_conversions", custom_metric_conversions.is_some());
        let collector = match protocol_specifier {
            Some(Protocol::GrpcService(service)) => {
                at.field("grpc_service", |at| Collector::grpc(service, at))?
            }
            Some(Protocol::HttpService(service)) => {
                at.field("http_service", |at| Collector::http(service, at))?
            }
            None => {
                at.error("one of grpc_service and http_service is required");
                return None;
            }
        };
        collector.check(at);
        // Which service it is, detectors only say.
        let options = ResourceOptions { service_name: false, sdk: true };
        let found = resource(String::new(), resource_detectors, options, at);
        let attributes = found.into_iter().map(|(name, value)| pair(name, value)).collect();
        Some(Self {
            collector,
            resource: Resource { attributes, dropped_attributes_count: 0 },
            counter_deltas: report_counters_as_deltas,
            histogram_deltas: report_histograms_as_deltas,
            attributes: emit_tags_as_attributes != Some(false),
            short_names: use_tag_extracted_name != Some(false),
            prefix: if prefix.is_empty() { Box::default() } else { format!("{prefix}.").into() },
            most: max_data_points_per_request as usize,
        })
    }

    /// What the collector is told.
    pub(super) fn messages(&self, snapshot: &Snapshot) -> Vec<Message> {
        use metrics::metric::Data;
        let (start, at) = (nanos(snapshot.before), nanos(snapshot.at));
        let number = |value: u64, attributes| metrics::NumberDataPoint {
            attributes,
            start_time_unix_nano: start,
            time_unix_nano: at,
            value: Some(metrics::number_data_point::Value::AsInt(i64::try_from(value).unwrap_or(i64::MAX))),
            flags: 0,
        };
        let mut all = Vec::new();
        for gauge in &snapshot.gauges {
            let data_points = vec![number(gauge.value, self.attributes(gauge))];
            all.push(self.metric(gauge, Data::Gauge(metrics::Gauge { data_points })));
        }
        for counter in &snapshot.counters {
            let value = if self.counter_deltas { counter.value.new } else { counter.value.all };
            let sum = metrics::Sum {
                data_points: vec![number(value, self.attributes(counter))],
                aggregation_temporality: temporality(self.counter_deltas),
                is_monotonic: true,
            };
            all.push(self.metric(counter, Data::Sum(sum)));
        }
        for histogram in &snapshot.histograms {
            let Recorded { all: total, new, bounds } = &histogram.value;
            let values = if self.histogram_deltas { new } else { total };
            let mut before = 0;
            let mut counts: Vec<u64> = Vec::with_capacity(bounds.len() + 1);
            for bound in bounds.iter() {
                let below = values.below(*bound);
                counts.push(below - before);
                before = below;
            }
            counts.push(values.count() - before);
            let point = metrics::HistogramDataPoint {
                attributes: self.attributes(histogram),
                start_time_unix_nano: start,
                time_unix_nano: at,
                count: values.count(),
                sum: Some(values.sum as f64),
                bucket_counts: counts,
                explicit_bounds: bounds.to_vec(),
                ..metrics::HistogramDataPoint::default()
            };
            let histogram_metric = metrics::Histogram {
                data_points: vec![point],
                aggregation_temporality: temporality(self.histogram_deltas),
            };
            all.push(self.metric(histogram, Data::Histogram(histogram_metric)));
        }
        let most = if self.most == 0 { all.len().max(1) } else { self.most };
        let mut messages = Vec::with_capacity(all.len().div_ceil(most));
        while !all.is_empty() {
            let rest = all.split_off(most.min(all.len()));
            let scope = metrics::ScopeMetrics { metrics: all, ..metrics::ScopeMetrics::default() };
            let resource = metrics::ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![scope],
                ..metrics::ResourceMetrics::default()
            };
            messages.push(ExportMetricsServiceRequest { resource_metrics: vec![resource] }.encode_to_vec());
            all = rest;
        }
        messages
    }

    fn metric<V>(&self, of: &Metric<V>, data: metrics::metric::Data) -> metrics::Metric {
        let name = if self.short_names { &of.tagged.name } else { &of.name };
        metrics::Metric {
            name: format!("{}{name}", self.prefix),
            data: Some(data),
            ..metrics::Metric::default()
        }
    }

    fn attributes<V>(&self, of: &Metric<V>) -> Vec<common::KeyValue> {
        let mut pairs: Vec<_> = of.tagged.tags.iter().filter(|_| self.attributes).collect();
        pairs.sort();
        pairs.into_iter().map(|(name, value)| pair(name.clone(), value.clone())).collect()
    }

    /// Sends messages as they come, one at a time.
    pub(super) async fn run(&self, mut messages: mpsc::Receiver<Message>, worker: Weak<Worker>) {
        const SERVICE: &str = "opentelemetry.proto.collector.metrics.v1.MetricsService";
        while let Some(message) = messages.recv().await {
            let Some(worker) = worker.upgrade() else { return };
            self.collector.export(&worker, SERVICE, message).await;
        }
    }
}

fn temporality(deltas: bool) -> i32 {
    use metrics::AggregationTemporality as Temporality;
    let temporality = if deltas { Temporality::Delta } else { Temporality::Cumulative };
    temporality.into()
}

fn pair(key: String, value: String) -> common::KeyValue {
    let value = common::AnyValue { value: Some(common::any_value::Value::StringValue(value)) };
    common::KeyValue { key, value: Some(value), ..common::KeyValue::default() }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
