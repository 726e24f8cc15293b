//! A token bucket that all workers share, without locks (local rate limits).
//!
//! As in Envoy, tokens come continuously, not in fills: the one number that is kept is the time
//! at which the bucket would have been empty. Taking a token moves that time on by what a token
//! takes to come; there is none if that lies in the future.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    /// What a token takes to come, in ns.
    interval: u64,
    /// What it takes to fill the bucket, in ns.
    span: u64,
    /// `span` before its beginning: times are counted from here, in ns.
    origin: Instant,
    /// When it would have been empty, in ns since `origin` and `span`.
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// A full bucket of `max` tokens, of which `per_fill` come in each `fill_interval`.
    pub(crate) fn new(max: u32, per_fill: u32, fill_interval: Duration, now: Instant) -> Self {
        let interval =
            u64::try_from(fill_interval.as_nanos()).unwrap_or(u64::MAX) / u64::from(per_fill.max(1));
        // Half of what a u64 holds, so that sums do not overflow: 292 years.
        let interval = interval.clamp(1, u64::MAX / 4);
        let span = interval.saturating_mul(u64::from(max)).min(u64::MAX / 4);
        Self { interval, span, origin: now, empty_at: AtomicU64::new(0) }
    }

    /// Takes a token; false: there is none.
    pub(crate) fn take(&self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes so many tokens; false: there are not so many, and none is taken.
    pub(crate) fn take_many(&self, count: u64, now: Instant) -> bool {
        let now = self.time(now);
        let taken = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let next = empty_at.max(now - self.span).checked_add(self.interval.checked_mul(count)?)?;
            (next <= now).then_some(next)
        });
        taken.is_ok()
    }

    /// How many tokens it can hold.
    pub(crate) fn max(&self) -> u32 {
        u32::try_from(self.span / self.interval).unwrap_or(u32::MAX)
    }

    /// How many tokens there are.
    pub(crate) fn remaining(&self, now: Instant) -> u64 {
        self.left(now) / self.interval
    }

    /// How long it takes until there is a token.
    pub(crate) fn until_token(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.interval.saturating_sub(self.left(now)))
    }

    /// Whether it is as full as it can be.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.left(now) == self.span
    }

    /// What is in it, in ns.
    fn left(&self, now: Instant) -> u64 {
        let now = self.time(now);
        now.saturating_sub(self.empty_at.load(Ordering::Relaxed).max(now - self.span))
    }

    /// The bucket holds no more than `span` of time, and at first it is full.
    fn time(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(elapsed).unwrap_or(u64::MAX).min(u64::MAX / 4) + self.span
    }
}

/// Settings are compared, not how full it is.
impl PartialEq for TokenBucket {
    fn eq(&self, other: &Self) -> bool {
        (self.interval, self.span) == (other.interval, other.span)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::TokenBucket;

    #[test]
    fn tokens_come_at_their_rate_up_to_the_maximum() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let bucket = TokenBucket::new(3, 2, Duration::from_secs(1), start);
        let takes = |millis: u64| (0..5).filter(|_| bucket.take(at(millis))).count();
        assert_eq!([0, 0, 499, 500, 900, 1000].map(takes), [3, 0, 0, 1, 0, 1]);
        assert_eq!(takes(100_000), 3, "no more than it holds");
    }

    #[test]
    fn it_says_what_is_left() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let bucket = TokenBucket::new(3, 1, Duration::from_secs(10), start);
        assert!(bucket.is_full(start) && bucket.max() == 3);
        assert!(!bucket.take_many(4, start) && bucket.take_many(3, start) && bucket.take_many(0, start));
        assert_eq!((bucket.remaining(at(9)), bucket.until_token(at(9))), (0, Duration::from_secs(1)));
        assert_eq!((bucket.remaining(at(25)), bucket.until_token(at(25))), (2, Duration::ZERO));
        assert!(!bucket.take_many(u64::MAX, start));
        assert!(bucket.is_full(at(30)));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let start = Instant::now();
        let bucket = TokenBucket::new(u32::MAX, 1, Duration::MAX, start);
        assert!(bucket.take(start));
        let bucket = TokenBucket::new(1, u32::MAX, Duration::from_nanos(1), start);
        assert!(bucket.take(start));
    }
}
