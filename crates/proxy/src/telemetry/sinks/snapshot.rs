//! What sinks are told: all stats that were ever written, and what is new of them since the last time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::telemetry::scrape::{Distribution, Sample, Stat};
use crate::telemetry::tags::{StatsConfig, Tagged};

/// All stats at one time, in the order of their names.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// When, and when the one before was.
    pub(super) at: SystemTime,
    pub(super) before: SystemTime,
    pub(super) counters: Vec<Metric<Count>>,
    pub(super) gauges: Vec<Metric<u64>>,
    pub(super) histograms: Vec<Metric<Recorded>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Metric<V> {
    /// The full name.
    pub(super) name: String,
    /// The name without labels, and those.
    pub(super) tagged: Arc<Tagged>,
    pub(super) value: V,
}

/// A counter's value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) all: u64,
    pub(super) new: u64,
}

/// A histogram's values.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) all: Distribution,
    pub(super) new: Distribution,
    /// The bounds that it is shown with.
    pub(super) bounds: Arc<[f64]>,
}

/// What was told before.
#[derive(Debug)]
pub(super) struct Told {
    at: SystemTime,
    /// By full names; only of what there is.
    stats: HashMap<String, Before>,
}

impl Default for Told {
    fn default() -> Self {
        Self { at: SystemTime::now(), stats: HashMap::new() }
    }
}

#[derive(Debug)]
struct Before {
    tagged: Arc<Tagged>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Gauge,
    Histogram(Distribution, Arc<[f64]>),
}

impl Told {
    /// What is to be told now.
    pub(super) fn snapshot(&mut self, stats: Vec<Stat>, config: &StatsConfig) -> Snapshot {
        let at = SystemTime::now();
        let before = std::mem::replace(&mut self.at, at);
        let mut known = std::mem::take(&mut self.stats);
        let mut snapshot =
            Snapshot { at, before, counters: Vec::new(), gauges: Vec::new(), histograms: Vec::new() };
        for Stat { name, value, used, labels } in stats {
            if !used {
                continue;
            }
            let before = known.remove(&name);
            let tagged = match &before {
                Some(before) => Arc::clone(&before.tagged),
                None => Arc::new(match &labels {
                    Some(labels) => Tagged {
                        name: labels.name.to_string(),
                        tags: labels
                            .pairs
                            .iter()
                            .map(|(tag, value)| (tag.to_string(), value.to_string()))
                            .collect(),
                    },
                    None => config.tag(&name),
                }),
            };
            let before = before.map(|before| before.value);
            let kept = match value {
                Sample::Counter(all) => {
                    let told = if let Some(Value::Counter(told)) = before { told } else { 0 };
                    // After a reset it counts from 0 again.
                    let value = Count { all, new: all.checked_sub(told).unwrap_or(all) };
                    snapshot.counters.push(Metric { name: name.clone(), tagged: Arc::clone(&tagged), value });
                    Value::Counter(all)
                }
                Sample::Gauge(value) => {
                    snapshot.gauges.push(Metric { name: name.clone(), tagged: Arc::clone(&tagged), value });
                    Value::Gauge
                }
                Sample::Histogram(all) => {
                    let (new, bounds) = match before {
                        Some(Value::Histogram(told, bounds)) => (all.since(&told), bounds),
                        _ => (
                            all.clone(),
                            config.bounds(&name).unwrap_or(&crate::telemetry::scrape::BOUNDS).into(),
                        ),
                    };
                    let value = Recorded { all: all.clone(), new, bounds: Arc::clone(&bounds) };
                    snapshot.histograms.push(Metric {
                        name: name.clone(),
                        tagged: Arc::clone(&tagged),
                        value,
                    });
                    Value::Histogram(all, bounds)
                }
            };
            self.stats.insert(name, Before { tagged, value: kept });
        }
        snapshot
    }
}
