//! Earliest deadline first: weighted scheduling as Envoy does it. An entry that was chosen
//! is put back with a deadline 1/weight later, so it comes up in proportion to its weight.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A schedule over indexes.
#[derive(Debug, Default)]
pub(crate) struct Edf {
    heap: BinaryHeap<Entry>,
    /// Weights that do not change, for `next_fixed`.
    fixed: Box<[f64]>,
    now: f64,
    /// Breaks ties in order of insertion.
    order: u64,
}

#[derive(Debug)]
struct Entry {
    deadline: f64,
    order: u64,
    index: usize,
}

impl Edf {
    /// A schedule that holds `weights`, as if `skip` choices had been made already.
    pub(crate) fn new(weights: impl Iterator<Item = f64> + Clone, skip: u64) -> Self {
        let mut schedule = Self::default();
        for (index, weight) in weights.clone().enumerate() {
            schedule.insert(index, weight);
        }
        let weights: Vec<f64> = weights.collect();
        for _ in 0..skip.min(weights.len() as u64 * 2) {
            schedule.next(|index| weights.get(index).copied().unwrap_or(1.0));
        }
        schedule
    }

    /// A schedule by weights that stay as they are; those that are 0 are left out.
    pub(crate) fn fixed(weights: &[f64], skip: u64) -> Self {
        let mut schedule = Self { fixed: weights.into(), ..Self::default() };
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            schedule.insert(index, *weight);
        }
        for _ in 0..skip {
            schedule.next_fixed();
        }
        schedule
    }

    /// The next index of a schedule by fixed weights.
    pub(crate) fn next_fixed(&mut self) -> Option<usize> {
        let fixed = std::mem::take(&mut self.fixed);
        let next = self.next(|index| fixed.get(index).copied().unwrap_or(1.0));
        self.fixed = fixed;
        next
    }

    fn insert(&mut self, index: usize, weight: f64) {
        self.order += 1;
        let deadline = self.now + 1.0 / weight.max(f64::MIN_POSITIVE);
        self.heap.push(Entry { deadline, order: self.order, index });
    }

    /// The next index; it stays in with the weight that `weight` gives now.
    pub(crate) fn next(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let mut first = self.heap.peek_mut()?;
        let index = first.index;
        self.now = first.deadline;
        self.order += 1;
        first.deadline = self.now + 1.0 / weight(index).max(f64::MIN_POSITIVE);
        first.order = self.order;
        Some(index)
    }
}

// `BinaryHeap` pops the greatest: the order is reversed.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then_with(|| other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
