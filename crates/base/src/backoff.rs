//! How long to wait before trying again: exponential growth with full jitter, as Envoy's
//! `JitteredExponentialBackOffStrategy` does it.
//!
//! The n-th wait is uniform in `[0, min(base * 2^n, max))`. Full jitter spreads a thousand
//! proxies that lost the same control plane over the whole interval.

use std::time::Duration;

use crate::rng::Rng;

/// The state of one series of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    interval: Duration,
    rng: Rng,
}

impl Backoff {
    /// A series that starts at `base` (at least 1 ms) and grows to `max` (at least `base`).
    pub fn new(base: Duration, max: Duration, rng: Rng) -> Self {
        let base = base.max(Duration::from_millis(1));
        Self { base, max: max.max(base), interval: base, rng }
    }

    /// The next wait, with a resolution of one millisecond; doubles the interval behind it.
    pub fn next_wait(&mut self) -> Duration {
        let millis = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        self.interval = self.interval.saturating_mul(2).min(self.max);
        Duration::from_millis(self.rng.below(millis))
    }

    /// The exclusive upper bound of the next wait.
    pub fn ceiling(&self) -> Duration {
        self.interval
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.interval = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn the_interval_doubles_up_to_the_maximum_and_resets() {
        let mut backoff = Backoff::new(millis(500), millis(30_000), Rng::new(1));
        let mut ceilings = Vec::new();
        for _ in 0..9 {
            let ceiling = backoff.ceiling();
            assert!(backoff.next_wait() < ceiling);
            ceilings.push(ceiling.as_millis());
        }
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.ceiling(), millis(500));
    }

    #[test]
    fn jitter_covers_the_interval() {
        let mut rng = Rng::new(4);
        let waits: Vec<Duration> =
            (0..2000).map(|_| Backoff::new(millis(1000), millis(1000), rng.fork()).next_wait()).collect();
        assert!(waits.iter().any(|wait| *wait < millis(50)));
        assert!(waits.iter().any(|wait| *wait > millis(950)));
    }

    #[test]
    fn odd_configuration_does_not_panic() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO, Rng::new(1));
        assert_eq!(backoff.next_wait(), Duration::ZERO);
        let mut backoff = Backoff::new(millis(10), Duration::MAX, Rng::new(1));
        for _ in 0..200 {
            backoff.next_wait();
        }
        assert_eq!(backoff.ceiling(), Duration::MAX);
    }
}
