//! The pace of a response whose rate is limited (FaultRateLimit).
//!
//! As in Envoy, time is cut into ticks of 50 ms, each of which lets a twentieth of the rate
//! pass; ticks that were not used are saved up for one second.
//! Deviation: a piece of the body passes as a whole once its last tick has come, where Envoy
//! passes a part with each tick.

use std::time::Duration;

use tokio::time::Instant;

const TICK: Duration = Duration::from_millis(50);
const TICKS_PER_SECOND: u64 = 20;

/// A limited rate.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_tick: u64,
    /// When the next tick comes that is not used up.
    next: Instant,
}

impl Pace {
    /// A rate that begins now, with one tick.
    pub(super) fn new(kib_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_tick: (kib_per_second.saturating_mul(1024) / TICKS_PER_SECOND).max(1), next: now }
    }

    /// When a piece of this size may pass; `None`: now.
    pub(super) fn pass(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let ticks = (bytes as u64).div_ceil(self.bytes_per_tick);
        if ticks == 0 {
            return None;
        }
        let saved = TICK * (TICKS_PER_SECOND as u32 - 1);
        self.next = self.next.max(now.checked_sub(saved).unwrap_or(now));
        let span = |ticks: u64| TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
        let due = self.next + span(ticks - 1);
        self.next += span(ticks);
        (due > now).then_some(due)
    }
}
