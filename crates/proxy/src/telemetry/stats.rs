//! Counters, gauges and histograms with Envoy's names.
//!
//! Each worker (and the main thread) owns a *block* of values per scope, e.g. one for
//! `cluster.NAME.`; it is the block's only writer, so an increment is a plain load, add and
//! store without a locked instruction. A scrape sums the blocks of one scope over all threads.
//! A block costs 8 bytes a stat and is made when its thread first uses the scope.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What a stat is, for rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down; blocks are summed.
    Gauge,
}

/// The stats of one kind of scope: names in a fixed order.
#[derive(Debug)]
pub(crate) struct Schema {
    /// (name below the scope's prefix, kind).
    pub(crate) stats: &'static [(&'static str, Kind)],
}

/// One thread's values of one scope.
#[derive(Debug)]
pub(crate) struct Block {
    schema: &'static Schema,
    /// Envoy's prefix with the trailing dot, e.g. `cluster.outbound|80||a.svc.`.
    prefix: Box<str>,
    values: Box<[AtomicU64]>,
}

impl Block {
    /// Adds to the stat at `index`. Only the owning thread may call this.
    fn add(&self, index: usize, delta: u64) {
        if let Some(value) = self.values.get(index) {
            value.store(value.load(Ordering::Relaxed).wrapping_add(delta), Ordering::Relaxed);
        }
    }
}
