//! Where time enters: the machine's clock, or one that a test moves by hand.
//!
//! Cores take `now` as an argument; the shells around them hold a [`Clock`]. Nothing else in
//! the project asks the operating system for the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A source of time.
pub trait Clock: Send + Sync {
    /// Monotonic time, for timeouts and intervals.
    fn now(&self) -> Instant;
    /// Calendar time, for logs and certificates. May jump.
    fn wall(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

#[allow(clippy::disallowed_methods)] // the one place that asks the operating system
impl Clock for System {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that stands still until it is moved. Clones share the time.
#[derive(Clone, Debug)]
pub struct Manual {
    origin: Instant,
    wall_origin: SystemTime,
    elapsed_nanos: Arc<AtomicU64>,
}

impl Manual {
    /// A clock that shows `wall` as calendar time until it is advanced.
    pub fn new(wall: SystemTime) -> Self {
        Self { origin: System.now(), wall_origin: wall, elapsed_nanos: Arc::default() }
    }

    /// Moves both times forward. Saturates after about 584 years.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let add = |elapsed: u64| Some(elapsed.saturating_add(by));
        // The closure always returns Some, so the update cannot fail.
        let _ = self.elapsed_nanos.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_nanos.load(Ordering::SeqCst))
    }
}

impl Default for Manual {
    /// Starts at the Unix epoch.
    fn default() -> Self {
        Self::new(SystemTime::UNIX_EPOCH)
    }
}

impl Clock for Manual {
    fn now(&self) -> Instant {
        self.origin + self.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.wall_origin + self.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told_and_clones_share_it() {
        let clock = Manual::default();
        let other = clock.clone();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        other.advance(Duration::from_secs(5));
        assert_eq!(clock.now() - start, Duration::from_secs(5));
        assert_eq!(clock.wall(), SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let first = System.now();
        assert!(System.now() >= first);
        assert!(System.wall() > SystemTime::UNIX_EPOCH);
    }
}
