//! Counters, gauges and histograms with Envoy's names.
//!
//! Each thread (the main one and every worker) owns a *block* of values per scope, e.g. one for
//! `cluster.NAME.`; it is the block's only writer, so an increment is a plain load, add and
//! store without a locked instruction. A scrape sums the blocks of one scope over all threads.
//! A block costs 8 bytes a counter or gauge; histograms and per-status counters are allocated
//! when first used. A scope's values live as long as somebody holds its block.
//!
//! A kind of scope is declared with `stats_scope!`; summing is in `scrape`, rendering in
//! `admin::stats` and `admin::prometheus`. Stats whose labels are given with them, instead of being
//! taken out of their names, are blocks of their own (`ThreadStats::labelled`).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use smallvec::SmallVec;

/// What a stat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down; blocks are summed.
    Gauge,
    /// A distribution of integers (milliseconds unless its name says otherwise).
    Histogram,
}

/// The stats of one kind of scope: (name below the prefix, kind), in index order; and the index of
/// the first histogram, before which a block has room for none.
#[derive(Debug)]
pub(crate) struct Schema(pub(crate) &'static [(&'static str, Kind)], usize);

impl Schema {
    /// Of these stats.
    pub(crate) const fn new(stats: &'static [(&'static str, Kind)]) -> Self {
        let mut first = 0;
        while first < stats.len() && !matches!(stats[first].1, Kind::Histogram) {
            first += 1;
        }
        Self(stats, first)
    }
}

/// One thread's values of one scope.
#[derive(Debug)]
pub(crate) struct Block {
    schema: &'static Schema,
    prefix: Box<str>,
    values: Box<[AtomicU64]>,
    /// From the schema's first histogram on.
    histograms: OnceLock<Box<[Buckets]>>,
    /// Counters by HTTP status (100..=599), for `upstream_rq_200` and the like; each class is
    /// allocated when its first status is counted.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    statuses: OnceLock<Box<[OnceLock<Box<[AtomicU64]>>; 5]>>,
    /// What the counters had at the last reset: only their owner may write them.
    baseline: Mutex<Option<Baseline>>,
    /// The labels, if they are not parts of the name.
    labels: Option<Arc<Labels>>,
    /// Not shown any more, as nothing was counted for long: whoever counts takes a new one.
    retired: AtomicBool,
}

/// The labels of a stat, and its name without them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    /// The name.
    pub(crate) name: Box<str>,
    /// Labels and values, in the order in which they are shown.
    pub(crate) pairs: Vec<(Arc<str>, Box<str>)>,
}

impl Labels {
    /// The whole name as `/stats` shows it: labels and values follow the name.
    fn full_name(&self) -> String {
        let mut name = self.name.to_string();
        for (label, value) in &self.pairs {
            name.extend([".", label, ".", value]);
        }
        name
    }
}

/// Values at a reset.
#[derive(Debug)]
struct Baseline {
    values: Box<[u64]>,
    statuses: HashMap<u16, u64>,
}

/// Set in a value once it was written, so that `usedonly` tells 0 from never. Values have 63
/// bits in two's complement, so that a gauge may fall below 0 on one thread and rise on another.
const USED: u64 = 1 << 63;

/// The sum of values of several blocks: a gauge that is negative for a moment reads 0.
pub(crate) fn total(values: impl Iterator<Item = u64>) -> u64 {
    let sum = values.fold(0, u64::wrapping_add) & !USED;
    if sum & (USED >> 1) == 0 { sum } else { 0 }
}

/// A counter or gauge of the calling thread's block.
#[derive(Clone, Copy)]
pub(crate) struct Cell<'a>(&'a AtomicU64);

impl Cell<'_> {
    /// Adds one.
    #[inline]
    pub(crate) fn inc(self) {
        self.add(1);
    }

    /// Takes one off (gauges only).
    #[inline]
    pub(crate) fn dec(self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1) | USED, Ordering::Relaxed);
    }

    /// Adds.
    #[inline]
    pub(crate) fn add(self, delta: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(delta) | USED, Ordering::Relaxed);
    }

    /// Sets (gauges that one thread owns).
    pub(crate) fn set(self, value: u64) {
        self.0.store(value | USED, Ordering::Relaxed);
    }

    /// This thread's value; add up those of several threads with [`total`].
    pub(crate) fn value(self) -> u64 {
        self.0.load(Ordering::Relaxed) & !USED
    }

    /// Whether it was ever written.
    pub(crate) fn is_used(self) -> bool {
        self.0.load(Ordering::Relaxed) & USED != 0
    }
}

/// A histogram of the calling thread's block.
#[derive(Clone, Copy)]
pub(crate) struct Histogram<'a>(&'a Buckets);

impl Histogram<'_> {
    /// Records one value.
    pub(crate) fn record(self, value: u64) {
        self.0.record(value);
    }

    /// Records a duration in milliseconds.
    pub(crate) fn record_ms(self, value: Duration) {
        self.record(u64::try_from(value.as_millis()).unwrap_or(u64::MAX));
    }
}

impl Block {
    /// A block of no thread, for [`Computed`] stats.
    pub(crate) fn detached(prefix: &str, schema: &'static Schema) -> Self {
        Self::new(schema, &shown(prefix))
    }

    fn new(schema: &'static Schema, prefix: &str) -> Self {
        let values = schema.0.iter().map(|_| AtomicU64::new(0)).collect();
        Self {
            schema,
            prefix: prefix.into(),
            values,
            histograms: OnceLock::new(),
            statuses: OnceLock::new(),
            baseline: Mutex::new(None),
            labels: None,
            retired: AtomicBool::new(false),
        }
    }

    /// Its labels, if they are not parts of its name.
    pub(crate) fn labels(&self) -> Option<&Arc<Labels>> {
        self.labels.as_ref()
    }

    /// Whether whoever counts is to take a new one.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// A number that changes when something is counted.
    fn activity(&self) -> u64 {
        let recorded = self.recorded(0).map_or(0, |buckets| buckets.iter().map(|(_, _, count)| count).sum());
        recorded + self.cell(0).value()
    }

    /// The value of a counter since the last reset, of a gauge now.
    pub(crate) fn since_reset(&self, index: usize) -> u64 {
        let value = self.cell(index).value();
        match &*self.baseline.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(baseline) => value.wrapping_sub(baseline.values.get(index).copied().unwrap_or(0)) & !USED,
            None => value,
        }
    }

    /// All statuses counted since the last reset: (status, count).
    pub(crate) fn statuses_since_reset(&self) -> Vec<(u16, u64)> {
        let baseline = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        let before = |status| baseline.as_ref().and_then(|baseline| baseline.statuses.get(&status)).copied();
        self.statuses().map(|(status, count)| (status, count - before(status).unwrap_or(0))).collect()
    }

    fn reset(&self) {
        let kinds = self.schema.0.iter().enumerate();
        let values = kinds.map(|(index, (_, kind))| match kind {
            Kind::Counter => self.cell(index).value(),
            Kind::Gauge | Kind::Histogram => 0,
        });
        let baseline = Baseline { values: values.collect(), statuses: self.statuses().collect() };
        *self.baseline.lock().unwrap_or_else(PoisonError::into_inner) = Some(baseline);
    }

    /// Envoy's prefix with the trailing dot, e.g. `cluster.outbound|80||a.svc.`.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Names and kinds, in the order of `value`.
    pub(crate) fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// The counter or gauge at a schema index (made by `stats_scope!`).
    #[inline]
    pub(crate) fn cell(&self, index: usize) -> Cell<'_> {
        Cell(&self.values[index])
    }

    /// The histogram at a schema index (made by `stats_scope!`).
    #[inline]
    pub(crate) fn histogram(&self, index: usize) -> Histogram<'_> {
        let Schema(stats, first) = self.schema;
        let all =
            self.histograms.get_or_init(|| stats[*first..].iter().map(|_| Buckets::default()).collect());
        Histogram(&all[index - first])
    }

    /// The recorded buckets of a histogram, if anything was recorded in this block.
    pub(crate) fn recorded(&self, index: usize) -> Option<&Buckets> {
        self.histograms.get().and_then(|all| all.get(index.checked_sub(self.schema.1)?))
    }

    /// Counts one HTTP status under its own name.
    #[inline]
    pub(crate) fn count_status(&self, status: u16) {
        let status = usize::from(status);
        let classes = self.statuses.get_or_init(Box::default);
        if let Some(class) = (status / 100).checked_sub(1).and_then(|class| classes.get(class)) {
            let class = class.get_or_init(|| (0..100).map(|_| AtomicU64::new(0)).collect());
            Cell(&class[status % 100]).inc();
        }
    }

    /// All statuses counted so far: (status, count).
    pub(crate) fn statuses(&self) -> impl Iterator<Item = (u16, u64)> {
        let classes = self.statuses.get().map(|classes| &classes[..]).unwrap_or_default();
        let counted = classes.iter().zip(1u16..).flat_map(|(class, first)| {
            let class = class.get().map(|class| &class[..]).unwrap_or_default();
            class.iter().zip(first * 100..).map(|(count, status)| (status, Cell(count).value()))
        });
        counted.filter(|(_, count)| *count > 0)
    }
}

/// Values up to this one have a bucket each; above, two significant decimal digits are kept,
/// as in the log-linear histograms that Envoy uses.
const LINEAR: u64 = 100;
/// Decades above `LINEAR` that have buckets of their own: values from 100 to 10^12.
const DECADES: usize = 10;
const PER_DECADE: usize = 90;

/// A log-linear histogram: relative error at most 5 %.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    linear: OnceLock<Box<[AtomicU64]>>,
    decades: [OnceLock<Box<[AtomicU64]>>; DECADES],
    sum: AtomicU64,
}

impl Buckets {
    fn record(&self, value: u64) {
        let cells = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect::<Box<[AtomicU64]>>();
        Cell(&self.sum).add(value);
        if value < LINEAR {
            Cell(&self.linear.get_or_init(|| cells(LINEAR as usize))[value as usize]).inc();
            return;
        }
        let mut decade = 0;
        let mut digits = value / 10;
        while digits >= 100 && decade + 1 < DECADES {
            digits /= 10;
            decade += 1;
        }
        let digits = digits.min(99) as usize;
        Cell(&self.decades[decade].get_or_init(|| cells(PER_DECADE))[digits - 10]).inc();
    }

    /// Sum of all recorded values.
    pub(crate) fn sum(&self) -> u64 {
        Cell(&self.sum).value()
    }

    /// All buckets that hold something: (lower bound, width, count), ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let linear = self.linear.get().map(|cells| &cells[..]).unwrap_or_default().iter();
        let linear = linear.enumerate().map(|(value, cell)| (value as u64, 1, Cell(cell).value()));
        let decades = self.decades.iter().enumerate().flat_map(|(decade, cells)| {
            let unit = 10u64.pow(decade as u32 + 1);
            let cells = cells.get().map(|cells| &cells[..]).unwrap_or_default().iter();
            cells.enumerate().map(move |(at, cell)| ((at as u64 + 10) * unit, unit, Cell(cell).value()))
        });
        linear.chain(decades).filter(|(_, _, count)| *count > 0)
    }
}

/// All blocks of all threads.
#[derive(Debug, Default)]
pub(crate) struct StatsStore {
    threads: Arc<Mutex<Vec<Arc<ThreadStats>>>>,
    computed: Mutex<Vec<Arc<dyn Computed>>>,
}

/// Stats that are computed when somebody looks, instead of being kept for each of many scopes.
pub(crate) trait Computed: fmt::Debug + Send + Sync {
    /// All of them now, in blocks made for the purpose (`detached`).
    fn blocks(&self) -> Vec<Arc<Block>>;

    /// Sets the counters among them to 0.
    fn reset(&self);
}

/// The blocks of one thread, by prefix.
#[derive(Debug, Default)]
pub(crate) struct ThreadStats {
    /// Its place among the threads of the store.
    index: usize,
    /// All threads of the store.
    threads: Weak<Mutex<Vec<Arc<ThreadStats>>>>,
    blocks: Mutex<HashMap<Box<str>, SamePrefix>>,
    /// Blocks that the thread itself holds.
    kept: Mutex<HashMap<Box<str>, Kept>>,
}

/// What was counted up to some time, by whole names.
#[derive(Debug)]
pub(crate) struct Activity(HashMap<Box<str>, u64>);

/// The blocks of one prefix that the thread itself holds, by and large one.
#[derive(Debug, Default)]
struct Kept(SmallVec<[Arc<Block>; 1]>);

/// The blocks of scopes with one prefix, by and large one.
#[derive(Debug, Default)]
struct SamePrefix(SmallVec<[Weak<Block>; 1]>);

/// Colons in the prefix become underscores, as in Envoy's names.
fn shown(prefix: &str) -> Cow<'_, str> {
    match prefix.contains(':') {
        true => Cow::Owned(prefix.replace(':', "_")),
        false => Cow::Borrowed(prefix),
    }
}

/// One counter whose whole name is the prefix.
static COUNTER: Schema = Schema::new(&[("", Kind::Counter)]);
/// One gauge whose whole name is the prefix.
static GAUGE: Schema = Schema::new(&[("", Kind::Gauge)]);
/// One histogram whose whole name is the prefix.
static HISTOGRAM: Schema = Schema::new(&[("", Kind::Histogram)]);

impl StatsStore {
    /// A new thread's stats; each thread calls it once.
    pub(crate) fn thread(&self) -> Arc<ThreadStats> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, all) = (threads.len(), Arc::downgrade(&self.threads));
        let thread = Arc::new(ThreadStats { index, threads: all, ..ThreadStats::default() });
        threads.push(Arc::clone(&thread));
        thread
    }

    /// From now on these are shown too.
    pub(crate) fn add(&self, computed: Arc<dyn Computed>) {
        self.computed.lock().unwrap_or_else(PoisonError::into_inner).push(computed);
    }

    /// Every living block of every thread, and what is computed; blocks of one scope share prefix
    /// and schema.
    pub(crate) fn blocks(&self) -> Vec<Arc<Block>> {
        let mut all = self.counted();
        let computed = self.computed.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(computed.iter().flat_map(|computed| computed.blocks()));
        all
    }

    /// Every living block of every thread.
    pub(crate) fn counted(&self) -> Vec<Arc<Block>> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for thread in threads.iter() {
            let mut blocks = thread.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            blocks.retain(|_, blocks| {
                blocks.0.retain(|block| block.strong_count() > 0);
                !blocks.0.is_empty()
            });
            all.extend(blocks.values().flat_map(|blocks| &blocks.0).filter_map(Weak::upgrade));
        }
        all
    }

    /// Sets all counters to 0, for those who look.
    pub(crate) fn reset_counters(&self) {
        self.counted().iter().for_each(|block| block.reset());
        let computed = self.computed.lock().unwrap_or_else(PoisonError::into_inner);
        computed.iter().for_each(|computed| computed.reset());
    }
}

impl ThreadStats {
    /// Its place among the threads of the store, for `PerThread`.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// This thread's block of a scope; the same one as long as somebody holds it, so counts
    /// survive an update of the cluster or listener that they belong to. Colons in the prefix
    /// become underscores, as in Envoy's names.
    pub(crate) fn block(&self, prefix: &str, schema: &'static Schema) -> Arc<Block> {
        let prefix = shown(prefix);
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if !blocks.contains_key(&*prefix) {
            blocks.insert((*prefix).into(), SamePrefix::default());
        }
        let Some(SamePrefix(same_prefix)) = blocks.get_mut(&*prefix) else {
            return Arc::new(Block::new(schema, &prefix));
        };
        let mut living = same_prefix.iter().filter_map(Weak::upgrade);
        if let Some(block) = living.find(|block| std::ptr::eq(block.schema, schema)) {
            return block;
        }
        let block = Arc::new(Block::new(schema, &prefix));
        same_prefix.push(Arc::downgrade(&block));
        block
    }

    /// The same, held for as long as the thread lives: for scopes that have no owner, such as
    /// those of HTTP filters, or names that come with requests.
    pub(crate) fn keep(&self, prefix: &str, schema: &'static Schema) -> Arc<Block> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept(same_prefix) = kept.entry(prefix.into()).or_default();
        if let Some(block) = same_prefix.iter().find(|block| std::ptr::eq(block.schema, schema)) {
            return Arc::clone(block);
        }
        let block = self.block(prefix, schema);
        same_prefix.push(Arc::clone(&block));
        block
    }

    /// The block of the stat with this name and these labels, which is its only one; it is kept
    /// until it is retired. One thread's gauge is shown, the highest, not the sum.
    pub(crate) fn labelled(&self, kind: Kind, labels: Labels) -> Arc<Block> {
        let schema = match kind {
            Kind::Counter => &COUNTER,
            Kind::Gauge => &GAUGE,
            Kind::Histogram => &HISTOGRAM,
        };
        let name = labels.full_name();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept(same_name) = kept.entry(name.as_str().into()).or_default();
        same_name.retain(|block| !block.is_retired());
        if let Some(block) = same_name.iter().find(|block| std::ptr::eq(block.schema, schema)) {
            return Arc::clone(block);
        }
        let block = Arc::new(Block { labels: Some(Arc::new(labels)), ..Block::new(schema, &name) });
        same_name.push(Arc::clone(&block));
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.entry(name.into()).or_default().0.push(Arc::downgrade(&block));
        block
    }

    /// What all threads have counted so far under names with labels, gauges apart.
    pub(crate) fn activity(&self) -> Activity {
        let mut all = HashMap::new();
        self.each_labelled(|name, block| *all.entry(name.into()).or_default() += block.activity());
        Activity(all)
    }

    /// Retires what has counted nothing since then, on no thread.
    pub(crate) fn retire_idle(&self, Activity(before): &Activity) {
        let Activity(now) = self.activity();
        let idle = |name: &str| before.get(name).is_some_and(|before| now.get(name) == Some(before));
        self.each_labelled(|name, block| {
            if idle(name) {
                block.retired.store(true, Ordering::Relaxed);
            }
        });
        for thread in self.all_threads() {
            let mut kept = thread.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|_, Kept(blocks)| {
                blocks.retain(|block| !block.is_retired());
                !blocks.is_empty()
            });
            let mut blocks = thread.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            for SamePrefix(blocks) in blocks.values_mut() {
                blocks.retain(|block| block.upgrade().is_some_and(|block| !block.is_retired()));
            }
        }
    }

    fn each_labelled(&self, mut show: impl FnMut(&str, &Block)) {
        for thread in self.all_threads() {
            let kept = thread.kept.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, Kept(blocks)) in &*kept {
                let counting = blocks
                    .iter()
                    .filter(|block| block.labels.is_some() && !std::ptr::eq(block.schema, &GAUGE));
                counting.for_each(|block| show(name, block));
            }
        }
    }

    fn all_threads(&self) -> Vec<Arc<ThreadStats>> {
        let threads = self.threads.upgrade();
        threads.map(|all| all.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// The block of the counter with this whole name, which is its only stat; it is kept.
    pub(crate) fn counter(&self, name: &str) -> Arc<Block> {
        self.keep(name, &COUNTER)
    }

    /// Adds to the counter with this whole name, which is kept (see `keep`).
    pub(crate) fn count(&self, name: &str, delta: u64) {
        self.counter(name).cell(0).add(delta);
    }

    /// Records a duration in the histogram of milliseconds with this whole name, likewise.
    pub(crate) fn record_ms(&self, name: &str, value: Duration) {
        self.keep(name, &HISTOGRAM).histogram(0).record_ms(value);
    }
}

/// Declares a kind of scope: a struct around a `Block` with a method for each stat.
macro_rules! stats_scope {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($kind:ident $stat:ident $(= $text:literal)?;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        $vis struct $name {
            block: std::sync::Arc<$crate::telemetry::stats::Block>,
        }

        const _: () = {
            /// Indexes into the block, in the order of declaration.
            #[allow(non_camel_case_types, dead_code, reason = "stat names are Envoy's")]
            enum Index { $($stat,)* }

            /// A static, not a constant: schemas are told apart by their addresses.
            static STATS: $crate::telemetry::stats::Schema = $crate::telemetry::stats::Schema::new(&[
                $((
                    $crate::telemetry::stats::stats_scope!(@name $stat $($text)?),
                    $crate::telemetry::stats::stats_scope!(@kind $kind),
                ),)*
            ]);

            #[allow(dead_code, missing_docs, reason = "stat names are Envoy's")]
            impl $name {
                $vis const SCHEMA: &'static $crate::telemetry::stats::Schema = &STATS;

                /// The calling thread's stats of the scope with this prefix (trailing dot included).
                $vis fn new(thread: &$crate::telemetry::stats::ThreadStats, prefix: &str) -> Self {
                    Self { block: thread.block(prefix, Self::SCHEMA) }
                }

                /// The same, for a scope that the thread itself holds (`ThreadStats::keep`).
                $vis fn kept(thread: &$crate::telemetry::stats::ThreadStats, prefix: &str) -> Self {
                    Self { block: thread.keep(prefix, Self::SCHEMA) }
                }

                /// A scope of no thread, for [`Computed`](crate::telemetry::stats::Computed) stats.
                $vis fn detached(prefix: &str) -> Self {
                    let block = $crate::telemetry::stats::Block::detached(prefix, Self::SCHEMA);
                    Self { block: std::sync::Arc::new(block) }
                }

                /// The block itself, to be shown.
                $vis fn into_block(self) -> std::sync::Arc<$crate::telemetry::stats::Block> {
                    self.block
                }

                /// The block itself, e.g. to count statuses.
                $vis fn block(&self) -> &$crate::telemetry::stats::Block {
                    &self.block
                }

                $($crate::telemetry::stats::stats_scope!(@method [$vis] $kind $stat);)*
            }
        };
    };
    (@name $stat:ident) => { stringify!($stat) };
    (@name $stat:ident $text:literal) => { $text };
    (@kind counter) => { $crate::telemetry::stats::Kind::Counter };
    (@kind gauge) => { $crate::telemetry::stats::Kind::Gauge };
    (@kind histogram) => { $crate::telemetry::stats::Kind::Histogram };
    (@method [$vis:vis] histogram $stat:ident) => {
        #[inline]
        $vis fn $stat(&self) -> $crate::telemetry::stats::Histogram<'_> {
            self.block.histogram(Index::$stat as usize)
        }
    };
    (@method [$vis:vis] $kind:ident $stat:ident) => {
        #[inline]
        $vis fn $stat(&self) -> $crate::telemetry::stats::Cell<'_> {
            self.block.cell(Index::$stat as usize)
        }
    };
}
pub(crate) use stats_scope;

#[cfg(test)]
mod tests {
    use super::{Kind, Labels, StatsStore};

    stats_scope! {
        struct Sample { counter total; gauge active; histogram time = "rq_time"; }
    }

    #[test]
    fn blocks_of_one_scope_keep_their_values_while_held() {
        let store = StatsStore::default();
        let (main, worker) = (store.thread(), store.thread());
        let (first, second) = (Sample::new(&main, "x."), Sample::new(&worker, "x."));
        first.total().inc();
        Sample::new(&main, "x.").total().add(2);
        second.total().inc();
        let sum: u64 = store.blocks().iter().map(|block| block.cell(0).value()).sum();
        assert_eq!(sum, 4);
        drop((first, second));
        assert!(store.blocks().is_empty());
    }

    #[test]
    fn a_reset_leaves_gauges_and_what_comes_after() {
        let store = StatsStore::default();
        let sample = Sample::new(&store.thread(), "a:b.");
        assert_eq!(sample.block().prefix(), "a_b.");
        sample.total().add(3);
        sample.active().inc();
        sample.block().count_status(200);
        store.reset_counters();
        sample.total().inc();
        assert_eq!((sample.block().since_reset(0), sample.block().since_reset(1)), (1, 1));
        assert_eq!(sample.block().statuses_since_reset(), [(200, 0)]);
    }

    #[test]
    fn a_gauge_may_fall_on_one_thread_and_rise_on_another() {
        let store = StatsStore::default();
        let (first, second) = (Sample::new(&store.thread(), "x."), Sample::new(&store.thread(), "x."));
        assert!(!first.active().is_used());
        first.active().dec();
        let sum = || super::total([&first, &second].iter().map(|sample| sample.active().value()));
        assert_eq!(sum(), 0);
        second.active().add(2);
        assert_eq!(sum(), 1);
        first.active().inc();
        assert_eq!((sum(), first.active().value()), (2, 0));
        assert!(first.active().is_used());
    }

    #[test]
    fn names_without_owner_are_kept() {
        let store = StatsStore::default();
        let thread = store.thread();
        thread.count("cluster.a.grpc.0", 2);
        thread.count("cluster.a.grpc.0", 1);
        thread.record_ms("cluster.a.grpc.upstream_rq_time", std::time::Duration::from_millis(7));
        Sample::kept(&thread, "x.").total().inc();
        Sample::kept(&thread, "x.").total().inc();
        let mut shown: Vec<_> = store
            .blocks()
            .iter()
            .map(|block| {
                let (name, _) = block.schema().0[0];
                let sum = block.recorded(0).map_or_else(|| block.cell(0).value(), super::Buckets::sum);
                format!("{}{name}={sum}", block.prefix())
            })
            .collect();
        shown.sort();
        assert_eq!(shown, ["cluster.a.grpc.0=3", "cluster.a.grpc.upstream_rq_time=7", "x.total=2"]);
    }

    #[test]
    fn labels_are_shown_apart_and_idle_ones_retired() {
        let store = StatsStore::default();
        let (main, worker) = (store.thread(), store.thread());
        let labels = |value: &str| Labels { name: "n".into(), pairs: vec![("l".into(), value.into())] };
        let a = main.labelled(Kind::Counter, labels("a"));
        a.cell(0).inc();
        worker.labelled(Kind::Counter, labels("a")).cell(0).inc();
        worker.labelled(Kind::Counter, labels("b")).cell(0).inc();
        main.labelled(Kind::Gauge, labels("g")).cell(0).set(1);
        worker.labelled(Kind::Gauge, labels("g")).cell(0).set(1);
        let shown = || {
            let stats = crate::telemetry::scrape::scrape(&store, |_| true);
            let shown = stats.iter().map(|stat| {
                let labels = stat.labels.as_ref().map(|labels| format!("{:?}", labels.pairs));
                format!("{} {:?} {}", stat.name, stat.value, labels.unwrap_or_default())
            });
            shown.collect::<Vec<_>>()
        };
        let expected = [
            r#"n.l.a Counter(2) [("l", "a")]"#,
            r#"n.l.b Counter(1) [("l", "b")]"#,
            r#"n.l.g Gauge(1) [("l", "g")]"#,
        ];
        assert_eq!(shown(), expected);
        let before = main.activity();
        // One thread counts, so that the other's count stays too.
        worker.labelled(Kind::Counter, labels("a")).cell(0).inc();
        main.retire_idle(&before);
        assert!(!a.is_retired());
        assert_eq!(shown(), [r#"n.l.a Counter(3) [("l", "a")]"#, expected[2]]);
        worker.labelled(Kind::Counter, labels("b")).cell(0).inc();
        assert_eq!(shown()[1], expected[1]);
    }

    #[test]
    fn histograms_keep_two_significant_digits() {
        let store = StatsStore::default();
        let sample = Sample::new(&store.thread(), "x.");
        for value in [0, 7, 99, 100, 104, 12_345, u64::MAX] {
            sample.time().record(value);
        }
        let buckets: Vec<_> = sample.block().recorded(2).into_iter().flat_map(super::Buckets::iter).collect();
        assert_eq!(buckets[..5], [(0, 1, 1), (7, 1, 1), (99, 1, 1), (100, 10, 2), (12_000, 1_000, 1)]);
        assert_eq!(buckets.len(), 6);
        assert_eq!(Sample::SCHEMA.0[2].0, "rq_time");
    }

    #[test]
    fn a_block_has_room_for_histograms_and_statuses_that_there_are() {
        let store = StatsStore::default();
        let sample = Sample::new(&store.thread(), "x.");
        sample.time().record(7);
        sample.block().count_status(204);
        assert_eq!(sample.block().histograms.get().map(|all| all.len()), Some(1));
        let classes = sample.block().statuses.get().map(|classes| classes.iter().map(|c| c.get().is_some()));
        assert_eq!(classes.map(Iterator::collect::<Vec<_>>), Some(vec![false, true, false, false, false]));
        assert!(sample.block().recorded(0).is_none() && sample.block().recorded(2).is_some());
    }

    #[test]
    fn statuses_are_counted_by_code() {
        let store = StatsStore::default();
        let sample = Sample::new(&store.thread(), "x.");
        for status in [200, 503, 200, 99, 600] {
            sample.block().count_status(status);
        }
        assert_eq!(sample.block().statuses().collect::<Vec<_>>(), [(200, 2), (503, 1)]);
    }
}
