//! What balancers learn of one host on one worker: since when it is healthy, what it reports of
//! its load (ORCA), how long it takes to answer. An update of the host's settings keeps it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::orca::LoadReport;
use super::settings::{ClientWeighted, LoadAware, LoadReports, PeakEwma, SlowStart};

/// The facts of one host.
#[derive(Debug, Default)]
pub(crate) struct HostFacts {
    healthy_since: Cell<Option<Instant>>,
    weight: Cell<Option<ReportedWeight>>,
    /// The weight in force with client-side weights.
    pub(super) client_weight: Cell<u32>,
    utilization: Cell<Option<(f64, Instant)>>,
    /// Seconds, and when they were brought up to date.
    latency: Cell<Option<(f64, Instant)>>,
}

/// A weight that a host's reports come to.
#[derive(Clone, Copy, Debug)]
struct ReportedWeight {
    weight: u32,
    /// Reports have come without a long pause since then.
    since: Instant,
    /// The last one.
    last: Instant,
}

impl HostFacts {
    /// The host is healthy; the first time counts, unless it is to start slowly once more
    /// (`again`: it was found healthy after it had failed a health check).
    pub(crate) fn healthy(&self, now: Instant, again: bool) {
        if again || self.healthy_since.get().is_none() {
            self.healthy_since.set(Some(now));
        }
    }

    /// Whether the host is new enough to start slowly.
    pub(super) fn is_starting(&self, slow: &SlowStart, now: Instant) -> bool {
        self.healthy_since.get().is_some_and(|since| now.saturating_duration_since(since) < slow.window)
    }

    /// By what a new host's weight is multiplied.
    pub(super) fn slow_start_factor(&self, slow: &SlowStart, now: Instant) -> f64 {
        let Some(since) = self.healthy_since.get() else { return 1.0 };
        let age = now.saturating_duration_since(since);
        if age >= slow.window {
            return 1.0;
        }
        // As Envoy, whose clocks count milliseconds here.
        let part = (age.as_millis().max(1) as f64) / (slow.window.as_millis().max(1) as f64);
        let factor = if slow.aggression == 1.0 { part } else { part.powf(1.0 / slow.aggression) };
        factor.max(slow.min_weight)
    }

    /// A report of the host's load.
    pub(crate) fn report(&self, report: &LoadReport, wanted: LoadReports<'_>, now: Instant) {
        match wanted {
            LoadReports::Weights(settings) => {
                if let Some(weight) = report.weight(&settings.metrics, settings.error_penalty) {
                    let since = self.weight.get().map_or(now, |before| before.since);
                    self.weight.set(Some(ReportedWeight { weight, since, last: now }));
                }
            }
            LoadReports::Localities(settings) => {
                let utilization = report.utilization(&settings.metrics);
                self.utilization.set(Some((utilization, now)));
            }
        }
    }

    /// The weight that reports come to; `None`: there are none, not for long enough, or not any
    /// more.
    pub(super) fn reported_weight(&self, settings: &ClientWeighted, now: Instant) -> Option<u32> {
        let reported = self.weight.get()?;
        if now.saturating_duration_since(reported.since) < settings.blackout {
            return None;
        }
        if now.saturating_duration_since(reported.last) > settings.expiration {
            self.weight.set(None);
            return None;
        }
        Some(reported.weight)
    }

    /// The utilization that was reported last, if it is not too old.
    pub(super) fn utilization(&self, settings: &LoadAware, now: Instant) -> Option<f64> {
        let (utilization, at) = self.utilization.get()?;
        let fresh = settings.expiration.is_none_or(|limit| now.saturating_duration_since(at) <= limit);
        (fresh && utilization > 0.0).then_some(utilization)
    }

    /// The host took so long to answer. A peak counts at once, what is better only with time.
    pub(crate) fn answered_after(&self, latency: Duration, settings: &PeakEwma, now: Instant) {
        let latency = latency.as_secs_f64();
        let averaged = match self.latency.get() {
            Some((before, at)) if latency < before => {
                let age = now.saturating_duration_since(at).as_secs_f64();
                let keep = (-age / settings.decay.as_secs_f64()).exp();
                before * keep + latency * (1.0 - keep)
            }
            _ => latency,
        };
        self.latency.set(Some((averaged, now)));
    }

    /// What a request to the host costs: its latency times what it is busy with.
    pub(super) fn cost(&self, settings: &PeakEwma, active: u32) -> f64 {
        let active = f64::from(active);
        match self.latency.get() {
            Some((latency, _)) if latency > 0.0 => latency * (active + 1.0),
            // Nothing is known of it: it gets one request to be known by.
            _ if active == 0.0 => settings.default_rtt,
            _ => settings.penalty + active,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::HostFacts;
    use crate::cluster::lb::settings::{PeakEwma, SlowStart};

    #[test]
    fn a_new_host_starts_slowly() {
        let facts = HostFacts::default();
        let start = Instant::now();
        let check = |aggression: f64, seconds: u64| {
            let slow = SlowStart { window: Duration::from_secs(10), aggression, min_weight: 0.1 };
            (facts.slow_start_factor(&slow, start + Duration::from_secs(seconds)) * 1000.0).round()
        };
        assert_eq!(check(1.0, 0), 1000.0, "nothing is known of it");
        facts.healthy(start, false);
        facts.healthy(start + Duration::from_secs(5), false);
        assert_eq!(
            [0, 1, 5, 9, 10, 11].map(|at| check(1.0, at)),
            [100.0, 100.0, 500.0, 900.0, 1000.0, 1000.0]
        );
        // 0.25^(1/2), 0.5^2.
        assert_eq!(check(2.0, 5), 707.0);
        assert_eq!(check(0.5, 5), 250.0);
        facts.healthy(start + Duration::from_secs(20), true);
        assert_eq!(check(1.0, 25), 500.0);
    }

    #[test]
    fn peaks_count_at_once_and_fade() {
        let settings = PeakEwma { decay: Duration::from_secs(10), default_rtt: 0.01, penalty: 1e6 };
        let facts = HostFacts::default();
        let start = Instant::now();
        assert_eq!((facts.cost(&settings, 0), facts.cost(&settings, 3)), (0.01, 1e6 + 3.0));
        facts.answered_after(Duration::from_millis(100), &settings, start);
        facts.answered_after(Duration::from_millis(500), &settings, start);
        assert_eq!((facts.cost(&settings, 0), facts.cost(&settings, 1)), (0.5, 1.0));
        facts.answered_after(Duration::from_millis(100), &settings, start + Duration::from_secs(10));
        // 0.1 + 0.4 / e.
        assert_eq!((facts.cost(&settings, 0) * 1000.0).round(), 247.0);
    }
}
