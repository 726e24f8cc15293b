//! Retry budgets: how many retries may be under way, as a share of the requests that are, or of
//! those that began lately (`CircuitBreakers.Thresholds.RetryBudget`).
//!
//! Requests are counted over all workers, as circuit breakers count. What began lately is counted
//! in slices of time, so that it costs the same however many there are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Into how many slices an interval is cut: how exactly requests are forgotten.
const SLICES: u64 = 16;

/// RetryBudget, lowered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RetryBudget {
    /// `budget_percent`, 20 by default.
    pub(crate) percent: f64,
    /// `min_retry_concurrency`, 3 by default.
    pub(crate) minimum: u32,
    /// `budget_interval`: how long a request counts from its beginning, whether it is over or not.
    /// `None`: it counts while it is under way or waits for a connection.
    pub(crate) interval: Option<Duration>,
}

impl RetryBudget {
    /// How many retries so many requests allow.
    pub(crate) fn limit(&self, requests: u32) -> u32 {
        ((f64::from(requests) * self.percent / 100.0) as u32).max(self.minimum)
    }
}

/// Counts what began lately.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// By the number of the slice modulo their count: that number and the count in it, 32 bits
    /// each. One slice more than an interval has, for the one that has just begun.
    slices: [AtomicU64; SLICES as usize + 1],
}

impl Begun {
    /// Something began, `now` after a moment that is always the same.
    pub(crate) fn note(&self, now: Duration, interval: Duration) {
        let number = number(now, interval);
        let slice = self.slice(number);
        let mut before = slice.load(Ordering::Relaxed);
        loop {
            let count = if before >> 32 == number { before & u64::from(u32::MAX) } else { 0 };
            let after = number << 32 | (count + 1).min(u64::from(u32::MAX));
            match slice.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => before = other,
            }
        }
    }

    /// How much began within the interval before `now`, give or take a slice of it.
    pub(crate) fn count(&self, now: Duration, interval: Duration) -> u32 {
        let number = number(now, interval);
        let counts = self.slices.iter().map(|slice| {
            let value = slice.load(Ordering::Relaxed);
            let is_late = number.wrapping_sub(value >> 32) & u64::from(u32::MAX) < SLICES;
            if is_late { value & u64::from(u32::MAX) } else { 0 }
        });
        u32::try_from(counts.sum::<u64>()).unwrap_or(u32::MAX)
    }

    fn slice(&self, number: u64) -> &AtomicU64 {
        let [first, ..] = &self.slices;
        self.slices.get((number % (SLICES + 1)) as usize).unwrap_or(first)
    }
}

/// The number of the slice that a time is in, modulo 2³². The first is never 0, which stands for
/// nothing at all.
fn number(now: Duration, interval: Duration) -> u64 {
    let slice = (interval.as_nanos() / u128::from(SLICES)).max(1);
    (now.as_nanos() / slice + u128::from(SLICES) + 1) as u64 & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Begun, RetryBudget};

    #[test]
    fn what_began_long_ago_is_forgotten() {
        let (begun, interval) = (Begun::default(), Duration::from_millis(1600));
        let at = Duration::from_millis;
        assert_eq!(begun.count(at(0), interval), 0);
        for now in [0, 0, 50, 700] {
            begun.note(at(now), interval);
        }
        let counts = [0, 60, 700, 1599, 1600, 2299, 2300, 9000].map(|now| begun.count(at(now), interval));
        assert_eq!(counts, [3, 3, 4, 4, 1, 1, 0, 0]);
        begun.note(at(9000), interval);
        assert_eq!(begun.count(at(9000), interval), 1);
    }

    #[test]
    fn a_share_and_at_least_the_minimum() {
        let budget = RetryBudget { percent: 25.0, minimum: 2, interval: None };
        assert_eq!([0, 4, 12, 100].map(|requests| budget.limit(requests)), [2, 2, 3, 25]);
    }
}
