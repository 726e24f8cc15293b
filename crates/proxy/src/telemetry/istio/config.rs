//! Lowering of PluginConfig (of istio.stats).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leno_api::proto::stats as proto;
use serde_json::{Value as Json, json};

use super::labels::{LABELS, Side};
use super::{Custom, Metric, Own, Rotation, Settings, Standard};
use crate::config::lower::Lower;
use crate::listener::Direction;
use crate::matching::cel::{self, Expression};
use crate::telemetry::stats::Kind;

/// Lowers PluginConfig, which is the same in all listeners of a sidecar that look in one direction,
/// and in their next versions: what was counted under it goes on there.
pub(crate) fn lower(proto: proto::PluginConfig, at: &mut Lower) -> Option<Arc<Settings>> {
    at.shared_with(at.scope().direction as u8, proto, settings)
}

fn settings(proto: proto::PluginConfig, at: &mut Lower) -> Option<Settings> {
    let proto::PluginConfig {
        // Without effect in Istio's proxy.
        debug: _,
        max_peer_cache_size: _,
        stat_prefix: _,
        field_separator: _,
        value_separator: _,
        disable_host_header_fallback,
        tcp_reporting_duration,
        metrics,
        definitions,
        reporter,
        rotation_interval,
        graceful_deletion_interval,
    } = proto;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let side = match at.value::<proto::Reporter>("reporter", reporter)? {
        proto::Reporter::ServerGateway => Side::Gateway,
        proto::Reporter::Unspecified if at.scope().direction == Direction::Inbound => Side::Server,
        proto::Reporter::Unspecified => Side::Client,
    };
    let interval = at.timeout("tcp_reporting_duration", tcp_reporting_duration, Some(Duration::from_secs(5)));
    let rotation = at.timeout("rotation_interval", rotation_interval, None);
    let grace = at.duration("graceful_deletion_interval", graceful_deletion_interval);
    let grace = grace.unwrap_or(Duration::from_secs(300));
    if grace < Duration::from_secs(1) {
        at.error_at("graceful_deletion_interval", "value must be greater than or equal to 1s");
    }
    let mut rules = Rules { metrics: vec![Metric::default(); Standard::ALL.len()], ..Rules::default() };
    rules.custom = at.each("definitions", definitions, definition);
    at.each("metrics", metrics, |metric, at| {
        rules.add(metric, at);
        None::<()>
    });
    let Rules { metrics, custom, expressions, texts: _ } = rules;
    let metadata = Json::clone(&at.scope().node_metadata);
    let own = Own::new(&metadata);
    let rotation = Rotation::shared(&own.istio_version, rotation.map(|interval| (interval, grace)), at);
    let node = json!({
        "id": &*at.scope().node_id,
        "cluster": &*at.scope().node_cluster,
        "metadata": metadata,
        "locality": {
            "region": &*at.scope().here.locality.region,
            "zone": &*at.scope().here.locality.zone,
            "sub_zone": &*at.scope().here.locality.sub_zone,
        },
    });
    Some(Settings {
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        side,
        host_fallback: !disable_host_header_fallback,
        interval,
        rotation,
        own,
        node: Arc::new(node),
        metrics,
        custom,
        expressions,
    })
}

impl Own {
    fn new(metadata: &Json) -> Self {
        let text = |value: Option<&Json>| value.and_then(Json::as_str).map(Box::from).unwrap_or_default();
        let field = |name: &str| text(metadata.get(name));
        let label = |name: &str| text(metadata.get("LABELS").and_then(|labels| labels.get(name)));
        Self {
            workload: field("WORKLOAD_NAME"),
            namespace: field("NAMESPACE"),
            canonical_name: label("service.istio.io/canonical-name"),
            canonical_revision: label("service.istio.io/canonical-revision"),
            app: label("app"),
            version: label("version"),
            cluster: field("CLUSTER_ID"),
            istio_version: field("ISTIO_VERSION"),
        }
    }
}

/// What is counted how.
#[derive(Default)]
struct Rules {
    metrics: Vec<Metric>,
    custom: Vec<Custom>,
    expressions: Vec<Expression>,
    /// Their texts.
    texts: Vec<String>,
}

/// Which metrics a rule is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    All,
    Standard(usize),
    Custom(usize),
}

impl Rules {
    fn add(&mut self, proto: proto::MetricConfig, at: &mut Lower) {
        let proto::MetricConfig {
            dimensions,
            name,
            tags_to_remove,
            // Without effect in Istio's proxy.
            r#match: _,
            drop: dropped,
        } = proto;
        let standard = Standard::ALL.iter().position(|(_, known, _)| **known == name);
        let custom = self.custom.iter().position(|custom| *custom.name == *name);
        let of = match (standard, custom) {
            _ if name.is_empty() => Of::All,
            (Some(index), _) => Of::Standard(index),
            (None, Some(index)) => Of::Custom(index),
            (None, None) => {
                tracing::warn!(target: "config", metric = name, "istio.stats: there is no such metric");
                return;
            }
        };
        if dropped {
            if let Of::Standard(index) = of
                && let Some(metric) = self.metrics.get_mut(index)
            {
                metric.dropped = true;
            }
            return;
        }
        for tag in tags_to_remove {
            match LABELS.into_iter().find(|label| **label == tag) {
                Some(label) => self.change(of, label, None),
                None => tracing::warn!(target: "config", tag, "istio.stats: no such label to remove"),
            }
        }
        for (tag, text) in dimensions {
            let expression = self.expression(&text, at);
            match (LABELS.into_iter().find(|label| **label == tag), expression) {
                (None, Some(index)) => self.append(of, &tag.into(), index),
                (None, None) => {}
                // As in Istio's proxy, one that is no expression removes the label.
                (Some(label), index) => {
                    self.change(of, label, index);
                    if let Some(index) = index {
                        self.append_custom(of, &label.into(), index);
                    }
                }
            }
        }
    }

    /// Standard labels of standard metrics: the last rule counts.
    fn change(&mut self, of: Of, label: &'static str, index: Option<usize>) {
        for (place, metric) in self.metrics.iter_mut().enumerate() {
            if of == Of::All || of == Of::Standard(place) {
                metric.changed.retain(|(known, _)| *known != label);
                metric.changed.push((label, index));
            }
        }
    }

    fn append(&mut self, of: Of, label: &Arc<str>, index: usize) {
        for (place, metric) in self.metrics.iter_mut().enumerate() {
            if of == Of::All || of == Of::Standard(place) {
                metric.added.push((Arc::clone(label), index));
            }
        }
        self.append_custom(of, label, index);
    }

    fn append_custom(&mut self, of: Of, label: &Arc<str>, index: usize) {
        for (place, custom) in self.custom.iter_mut().enumerate() {
            if of == Of::All || of == Of::Custom(place) {
                custom.added.push((Arc::clone(label), index));
            }
        }
    }

    /// The number of an expression; `None`: the text is none, which the log says.
    fn expression(&mut self, text: &str, at: &mut Lower) -> Option<usize> {
        if let Some(known) = self.texts.iter().position(|known| known == text) {
            return Some(known);
        }
        let expression = expression("dimensions", text, at)?;
        self.expressions.push(expression);
        self.texts.push(text.to_owned());
        Some(self.texts.len() - 1)
    }
}

/// Lowers an expression. A text that is none is let go with a warning, as in Istio's proxy: one
/// wrong Telemetry object would keep all listeners from being updated. What cannot be evaluated yet
/// is refused.
fn expression(field: &str, text: &str, at: &mut Lower) -> Option<Expression> {
    match cel::parse(text) {
        Ok(proto) => at.field(field, |at| cel::expression(proto, at)),
        Err(error) => {
            tracing::warn!(target: "config", text, error, "istio.stats: this is no expression");
            None
        }
    }
}

fn definition(proto: proto::MetricDefinition, at: &mut Lower) -> Option<Custom> {
    let proto::MetricDefinition { name, value, r#type } = proto;
    let kind = match at.value::<proto::MetricType>("type", r#type)? {
        proto::MetricType::Counter => Kind::Counter,
        proto::MetricType::Gauge => Kind::Gauge,
        proto::MetricType::Histogram => Kind::Histogram,
    };
    if Standard::ALL.iter().any(|(_, known, _)| **known == name) {
        tracing::warn!(target: "config", metric = name, "istio.stats: a standard metric stays what it is");
        return None;
    }
    let amount = expression("value", &value, at)?;
    Some(Custom { name: name.into(), kind, amount, added: Vec::new() })
}
