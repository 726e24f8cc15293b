//! Pings that show whether the peer is still there (`connection_keepalive`).

use std::time::{Duration, Instant};

use leno_base::rng::Rng;

use crate::cluster::KeepaliveSettings;

/// The beginning of our pings; a number follows.
const MARK: [u8; 4] = *b"leno";

/// The pings of one connection.
#[derive(Debug)]
pub(super) struct Keepalive {
    settings: Option<KeepaliveSettings>,
    rng: Rng,
    number: u32,
    /// When the next one is due.
    next: Option<Instant>,
    /// When the one on its way was sent.
    sent: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// A ping.
    Ping([u8; 8]),
    /// The peer is gone.
    TimedOut,
}

impl Keepalive {
    pub(super) fn new(settings: Option<KeepaliveSettings>, now: Instant, seed: u64) -> Self {
        let mut keepalive = Self { settings, rng: Rng::new(seed), number: 0, next: None, sent: None };
        keepalive.schedule(now);
        keepalive
    }

    fn schedule(&mut self, now: Instant) {
        let Some(settings) = &self.settings else { return };
        let Some(interval) = settings.interval else { return };
        // As Envoy: up to `jitter` percent are added.
        let span = interval.as_secs_f64() * settings.jitter / 100.0;
        let more = Duration::try_from_secs_f64(span * self.rng.fraction()).unwrap_or_default();
        self.next = Some(now + interval + more);
    }

    fn ping(&mut self, now: Instant) -> [u8; 8] {
        self.number = self.number.wrapping_add(1);
        self.sent = Some(now);
        self.next = None;
        let [a, b, c, d] = MARK;
        let [e, f, g, h] = self.number.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// When `due` has something to say; `last_read`: any frame shows that the peer is there.
    pub(super) fn deadline(&self, last_read: Instant) -> Option<Instant> {
        match (self.sent, &self.settings) {
            (Some(sent), Some(settings)) => Some(sent.max(last_read) + settings.timeout),
            _ => self.next,
        }
    }

    /// What is due now.
    pub(super) fn due(&mut self, now: Instant, last_read: Instant) -> Due {
        if self.deadline(last_read).is_none_or(|deadline| now < deadline) {
            return Due::Nothing;
        }
        if self.sent.is_some() { Due::TimedOut } else { Due::Ping(self.ping(now)) }
    }

    /// A stream begins: after `connection_idle_interval` without a byte, a ping goes ahead of it.
    pub(super) fn before_stream(&mut self, now: Instant, last_read: Instant) -> Option<[u8; 8]> {
        let idle = self.settings.as_ref()?.idle_interval?;
        (self.sent.is_none() && now.saturating_duration_since(last_read) >= idle).then(|| self.ping(now))
    }

    /// The answer to a ping.
    pub(super) fn answered(&mut self, payload: [u8; 8], now: Instant) {
        let [mark @ .., e, f, g, h] = payload;
        if self.sent.is_some() && mark == MARK && u32::from_be_bytes([e, f, g, h]) == self.number {
            self.sent = None;
            self.schedule(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Due, Keepalive};
    use crate::cluster::KeepaliveSettings;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> KeepaliveSettings {
        KeepaliveSettings {
            interval: Some(10 * SECOND),
            timeout: 2 * SECOND,
            jitter: 50.0,
            idle_interval: None,
        }
    }

    #[test]
    fn pings_are_sent_answered_and_missed() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(Some(settings()), start, 7);
        let first = keepalive.deadline(start).expect("a ping is planned");
        assert!((10 * SECOND..15 * SECOND).contains(&(first - start)), "jitter of up to a half");
        assert_eq!(keepalive.due(start, start), Due::Nothing);
        let Due::Ping(payload) = keepalive.due(first, start) else { panic!("a ping is due") };
        assert_eq!(keepalive.deadline(start), Some(first + 2 * SECOND));
        keepalive.answered(*b"whatever", first);
        assert_eq!(keepalive.due(first + 2 * SECOND, first + SECOND), Due::Nothing, "something was read");
        keepalive.answered(payload, first + SECOND);
        let second = keepalive.deadline(start).expect("the next is planned");
        assert!(second >= first + 11 * SECOND);
        assert!(matches!(keepalive.due(second, start), Due::Ping(_)));
        assert_eq!(keepalive.due(second + 2 * SECOND, start), Due::TimedOut);
    }

    #[test]
    fn an_idle_connection_is_tried_before_it_is_used() {
        let start = Instant::now();
        let idle = KeepaliveSettings { interval: None, idle_interval: Some(SECOND), ..settings() };
        let mut keepalive = Keepalive::new(Some(idle), start, 7);
        assert_eq!(keepalive.deadline(start), None);
        assert_eq!(keepalive.before_stream(start, start), None);
        assert!(keepalive.before_stream(start + SECOND, start).is_some());
        assert_eq!(keepalive.before_stream(start + SECOND, start), None, "one at a time");
        assert_eq!(keepalive.due(start + 3 * SECOND, start), Due::TimedOut);
    }
}
