//! All stats with their full names, summed over threads: what `/stats` shows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::telemetry::stats::{Block, Kind, Labels, StatsStore, total};

/// One stat.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stat {
    /// Its full name.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: Sample,
    /// Whether it was ever written.
    pub(crate) used: bool,
    /// Its labels, if they are not parts of its name.
    pub(crate) labels: Option<Arc<Labels>>,
}

/// A stat's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sample {
    /// Since the last reset.
    Counter(u64),
    /// Now.
    Gauge(u64),
    /// All values ever recorded.
    Histogram(Distribution),
}

/// A histogram, summed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Distribution {
    /// Lower bound → (width, count).
    buckets: BTreeMap<u64, (u64, u64)>,
    /// Sum of all values.
    pub(crate) sum: u64,
}

/// The quantiles that Envoy computes.
pub(crate) const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

/// The bounds that histograms are shown with where nothing else is configured.
pub(crate) const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Ends of names of clusters, virtual clusters and routes that Envoy makes when the first such
/// answer comes, or only for clusters of subsets. Stats with labels of their own are all made so.
const ON_DEMAND: [&str; 7] = [
    ".upstream_rq_1xx",
    ".upstream_rq_2xx",
    ".upstream_rq_3xx",
    ".upstream_rq_4xx",
    ".upstream_rq_5xx",
    ".upstream_rq_time",
    ".lb_subsets_single_host_per_subset_duplicate",
];

/// Sums all stats whose full name `wanted` accepts, in the order of names.
pub(crate) fn scrape(store: &StatsStore, wanted: impl Fn(&str) -> bool) -> Vec<Stat> {
    let mut scopes: HashMap<(String, usize), Vec<Arc<Block>>> = HashMap::new();
    for block in store.blocks() {
        let schema = std::ptr::from_ref(block.schema()).addr();
        scopes.entry((block.prefix().to_owned(), schema)).or_default().push(block);
    }
    let mut stats = Vec::new();
    for ((prefix, _), blocks) in &scopes {
        let Some(first) = blocks.first() else { continue };
        for (index, (name, kind)) in first.schema().0.iter().enumerate() {
            let name = format!("{prefix}{name}");
            let on_demand = (name.starts_with("cluster.") || name.starts_with("vhost."))
                && ON_DEMAND.iter().any(|end| name.ends_with(end));
            if wanted(&name) {
                let stat = sum(name, *kind, index, blocks);
                if stat.used || !on_demand && stat.labels.is_none() {
                    stats.push(stat);
                }
            }
        }
        let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
        for (status, count) in blocks.iter().flat_map(|block| block.statuses_since_reset()) {
            *statuses.entry(status).or_default() += count;
        }
        for (status, count) in statuses {
            let name = format!("{prefix}upstream_rq_{status}");
            if wanted(&name) {
                stats.push(Stat { name, value: Sample::Counter(count), used: true, labels: None });
            }
        }
    }
    stats.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    stats
}

fn sum(name: String, kind: Kind, index: usize, blocks: &[Arc<Block>]) -> Stat {
    let written = || blocks.iter().any(|block| block.cell(index).is_used());
    let labels = blocks.first().and_then(|block| block.labels()).cloned();
    match kind {
        Kind::Counter => {
            let value = total(blocks.iter().map(|block| block.since_reset(index)));
            Stat { name, value: Sample::Counter(value), used: written(), labels }
        }
        Kind::Gauge => {
            let values = blocks.iter().map(|block| block.cell(index).value());
            let value = if labels.is_some() { values.max().unwrap_or(0) } else { total(values) };
            Stat { name, value: Sample::Gauge(value), used: written(), labels }
        }
        Kind::Histogram => {
            let mut all = Distribution::default();
            for buckets in blocks.iter().filter_map(|block| block.recorded(index)) {
                all.sum = all.sum.wrapping_add(buckets.sum());
                for (lower, width, count) in buckets.iter() {
                    all.buckets.entry(lower).or_insert((width, 0)).1 += count;
                }
            }
            let used = !all.is_empty();
            Stat { name, value: Sample::Histogram(all), used, labels }
        }
    }
}

impl Distribution {
    /// Whether nothing was recorded.
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// What was recorded since it was like this.
    pub(crate) fn since(&self, before: &Distribution) -> Distribution {
        let new = self.buckets.iter().filter_map(|(lower, (width, count))| {
            let known = before.buckets.get(lower).map_or(0, |(_, count)| *count);
            // Whoever counted before may be gone.
            let new = count.checked_sub(known).unwrap_or(*count);
            (new > 0).then_some((*lower, (*width, new)))
        });
        Distribution { buckets: new.collect(), sum: self.sum.checked_sub(before.sum).unwrap_or(self.sum) }
    }

    /// How many values were recorded.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.values().map(|(_, count)| count).sum()
    }

    /// How many values are at most `bound`; values of a wider bucket count once all may be.
    pub(crate) fn below(&self, bound: f64) -> u64 {
        let within =
            self.buckets.iter().take_while(|(lower, (width, _))| (*lower + width - 1) as f64 <= bound);
        within.map(|(_, (_, count))| count).sum()
    }

    /// All buckets: (lower bound, width, count). Widths are those that Envoy's histogram has
    /// for whole numbers: two significant digits, of which ours drop the fractions.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, f64, u64)> {
        self.buckets.iter().map(|(lower, (width, count))| match lower {
            0 => (0, 0.0, *count),
            1..=9 => (*lower, 0.1, *count),
            _ => (*lower, *width as f64, *count),
        })
    }

    /// The value that a share of all values does not exceed, as Envoy's histogram estimates
    /// it: the values of a bucket are taken to be spread evenly. NaN if there is none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.count() as f64).ceil().max(1.0);
        let mut before = 0.0;
        for (lower, width, count) in self.buckets() {
            let count = count as f64;
            if before + count >= rank {
                return lower as f64 + width * (rank - before) / (count + 1.0);
            }
            before += count;
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{QUANTILES, Sample, scrape};
    use crate::telemetry::stats::{StatsStore, stats_scope};

    stats_scope! {
        struct Scope { counter total; gauge active; histogram time; counter untouched; }
    }

    #[test]
    fn scopes_of_all_threads_are_summed() {
        let store = StatsStore::default();
        let (first, second) = (Scope::new(&store.thread(), "b."), Scope::new(&store.thread(), "b."));
        let other = Scope::new(&store.thread(), "a.");
        first.total().add(2);
        second.total().add(3);
        first.active().inc();
        first.active().dec();
        second.block().count_status(404);
        other.total().inc();
        first.time().record(1);
        second.time().record(1);
        let stats = scrape(&store, |name| !name.ends_with("untouched") && !name.starts_with("a.ti"));
        let shown: Vec<_> = stats
            .iter()
            .map(|stat| {
                let value = match &stat.value {
                    Sample::Counter(value) => format!("c{value}"),
                    Sample::Gauge(value) => format!("g{value}"),
                    Sample::Histogram(all) => {
                        format!("h{} of {} {:?}", all.sum, all.count(), QUANTILES.map(|q| all.quantile(q)))
                    }
                };
                format!("{} {value} {}", stat.name, stat.used)
            })
            .collect();
        // The quantiles are those that Envoy shows for two recorded ones.
        expect![[r#"
            a.active g0 false
            a.total c1 true
            b.active g0 true
            b.time h2 of 2 [1.0333333333333334, 1.0333333333333334, 1.0333333333333334, 1.0666666666666667, 1.0666666666666667, 1.0666666666666667, 1.0666666666666667, 1.0666666666666667, 1.0666666666666667, 1.0666666666666667] true
            b.total c5 true
            b.upstream_rq_404 c1 true"#]]
        .assert_eq(&shown.join("\n"));
    }

    #[test]
    fn counts_below_bounds() {
        let store = StatsStore::default();
        let scope = Scope::new(&store.thread(), "");
        for value in [0, 3, 5, 250, 259, 300] {
            scope.time().record(value);
        }
        let stats = scrape(&store, |name| name == "time");
        let [super::Stat { value: Sample::Histogram(all), .. }] = stats.as_slice() else {
            panic!("{stats:?}")
        };
        assert_eq!([0.5, 4.9, 5.0, 250.0, 500.0].map(|bound| all.below(bound)), [1, 2, 3, 3, 6]);
        assert!((all.quantile(1.0) - 305.0).abs() < 1e-9);
    }
}
