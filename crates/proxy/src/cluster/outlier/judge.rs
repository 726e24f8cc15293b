//! Who is ejected, and for how long. No I/O, and no clock: the time is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use leno_base::rng::Rng;

use crate::cluster::EndpointAddress;
use crate::cluster::outlier::config::Settings;
use crate::cluster::outlier::{Detector, Monitor, Notice, Origin, Streak};
use crate::telemetry::stats::{Cell, stats_scope};

stats_scope! {
    /// `cluster.NAME.outlier_detection.`
    pub(super) struct OutlierStats {
        gauge ejections_active;
        counter ejections_consecutive_5xx;
        counter ejections_detected_consecutive_5xx;
        counter ejections_detected_consecutive_gateway_failure;
        counter ejections_detected_consecutive_local_origin_failure;
        counter ejections_detected_degradation;
        counter ejections_detected_failure_percentage;
        counter ejections_detected_local_origin_failure_percentage;
        counter ejections_detected_local_origin_success_rate;
        counter ejections_detected_success_rate;
        counter ejections_enforced_consecutive_5xx;
        counter ejections_enforced_consecutive_gateway_failure;
        counter ejections_enforced_consecutive_local_origin_failure;
        counter ejections_enforced_failure_percentage;
        counter ejections_enforced_local_origin_failure_percentage;
        counter ejections_enforced_local_origin_success_rate;
        counter ejections_enforced_success_rate;
        counter ejections_enforced_total;
        counter ejections_overflow;
        counter ejections_success_rate;
        counter ejections_total;
    }
}

/// What a host is ejected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Streak(Streak),
    SuccessRate(Origin),
    FailurePercentage(Origin),
}

/// A verdict, as the event log has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) address: EndpointAddress,
    pub(super) action: Action,
    /// How often the host was ejected so far.
    pub(super) ejections: u32,
    /// Since it was let in (or, if it is let in now, ejected) the last time.
    pub(super) since: Option<Duration>,
}

/// What a verdict says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Leave the host out, unless this is not enforced.
    Eject { cause: Cause, evidence: Evidence, enforced: bool },
    /// Let it in again.
    Uneject,
    /// Prefer others, or no longer.
    Degrade(bool),
}

/// Percentages that led to an ejection.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Evidence {
    pub(super) host: f64,
    pub(super) mean: f64,
    pub(super) threshold: f64,
}

/// Decides for one cluster.
pub(super) struct Judge {
    detector: Arc<Detector>,
    stats: OutlierStats,
    random: Rng,
    records: HashMap<EndpointAddress, Record>,
}

/// What is remembered of a host.
#[derive(Clone, Debug, Default)]
struct Record {
    /// Ejections so far.
    ejections: u32,
    /// By how much the base ejection time is multiplied; every good interval takes one off.
    multiplier: u32,
    jitter: Duration,
    ejected_at: Option<Instant>,
    unejected_at: Option<Instant>,
    /// By how much the base ejection time is multiplied for its degradation.
    degradations: u32,
    degraded_at: Option<Instant>,
}

/// The rate of one host in the interval that ends.
struct Sample {
    address: EndpointAddress,
    monitor: Arc<Monitor>,
    rate: f64,
    volume: u64,
}

impl Record {
    fn verdict(&self, address: &EndpointAddress, action: Action) -> Verdict {
        Verdict { address: address.clone(), action, ejections: self.ejections, since: None }
    }
}

impl Judge {
    pub(super) fn new(detector: Arc<Detector>, stats: OutlierStats, random: Rng) -> Self {
        // A cluster that replaces one of its name inherits the name's stats.
        stats.ejections_active().set(0);
        Self { detector, stats, random, records: HashMap::new() }
    }

    /// Decides on what a worker has noticed.
    pub(super) fn notice(&mut self, notice: &Notice, now: Instant) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        if let Notice::Failing(address, streak) = notice
            && let Some(monitor) = self.detector.monitor(address)
            && !monitor.is_ejected()
        {
            let cause = Cause::Streak(*streak);
            self.detected(cause).inc();
            if *streak == Streak::ServerErrors {
                self.stats.ejections_consecutive_5xx().inc();
            }
            verdicts.extend(self.eject(address, &monitor, cause, Evidence::default(), now));
            // Enforced or not, the next streak counts from its beginning.
            monitor.end_streak(*streak);
        }
        if let Notice::Passed(address) = notice
            && let Some(monitor) = self.detector.monitor(address)
            && monitor.is_ejected()
        {
            verdicts.extend(self.release(address, &monitor, now));
        }
        if let Notice::Degraded(address) = notice
            && let Some(monitor) = self.detector.monitor(address)
            && !monitor.is_degraded()
        {
            self.stats.ejections_detected_degradation().inc();
            let record = self.records.entry(address.clone()).or_default();
            record.degradations = record.degradations.saturating_add(1);
            record.degraded_at = Some(now);
            monitor.degraded.store(true, Ordering::Relaxed);
            verdicts.push(record.verdict(address, Action::Degrade(true)));
        }
        self.count_ejected();
        verdicts
    }

    /// An interval ends.
    pub(super) fn interval(&mut self, now: Instant) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let mut hosts: Vec<_> = self
            .detector
            .hosts()
            .iter()
            .map(|(address, monitor)| (address.clone(), Arc::clone(monitor)))
            .collect();
        // Which hosts may be ejected within the limit must not depend on the map's order.
        hosts.sort_by_cached_key(|(address, _)| address.to_string());
        self.records.retain(|address, _| hosts.iter().any(|(host, _)| host == address));
        for (address, monitor) in &hosts {
            verdicts.extend(self.parole(address, monitor, now));
            verdicts.extend(self.recover(address, monitor, now));
        }
        for origin in [Origin::External, Origin::Local] {
            self.compare(&hosts, origin, now, &mut verdicts);
        }
        self.count_ejected();
        verdicts
    }

    /// Prefers a host again that was degraded for long enough.
    fn recover(&mut self, address: &EndpointAddress, monitor: &Monitor, now: Instant) -> Option<Verdict> {
        let settings = &self.detector.settings;
        let record = self.records.get_mut(address)?;
        if !monitor.is_degraded() {
            record.degradations = record.degradations.saturating_sub(1);
            return None;
        }
        let since = now.saturating_duration_since(record.degraded_at?);
        let base = settings.base_ejection_time.saturating_mul(record.degradations);
        if since < base.min(settings.max_ejection_time) {
            return None;
        }
        monitor.degraded.store(false, Ordering::Relaxed);
        Some(record.verdict(address, Action::Degrade(false)))
    }

    /// Lets a host in whose time is over.
    fn parole(&mut self, address: &EndpointAddress, monitor: &Monitor, now: Instant) -> Option<Verdict> {
        let settings = &self.detector.settings;
        let record = self.records.get_mut(address)?;
        if !monitor.is_ejected() {
            record.multiplier = record.multiplier.saturating_sub(1);
            return None;
        }
        let since = now.saturating_duration_since(record.ejected_at?);
        let sentence =
            settings.base_ejection_time.saturating_mul(record.multiplier).min(settings.max_ejection_time);
        if since < sentence.saturating_add(record.jitter) {
            return None;
        }
        self.release(address, monitor, now)
    }

    /// Lets a host in.
    fn release(&mut self, address: &EndpointAddress, monitor: &Monitor, now: Instant) -> Option<Verdict> {
        let record = self.records.get_mut(address)?;
        let since = now.saturating_duration_since(record.ejected_at?);
        record.unejected_at = Some(now);
        monitor.ejected.store(false, Ordering::Relaxed);
        for streak in [Streak::ServerErrors, Streak::GatewayFailures, Streak::LocalOrigin] {
            monitor.end_streak(streak);
        }
        let ejections = record.ejections;
        Some(Verdict { address: address.clone(), action: Action::Uneject, ejections, since: Some(since) })
    }

    /// Compares the hosts' success rates of the interval with each other and with the limit.
    fn compare(
        &mut self,
        hosts: &[(EndpointAddress, Arc<Monitor>)],
        origin: Origin,
        now: Instant,
        verdicts: &mut Vec<Verdict>,
    ) {
        let settings = self.detector.settings.clone();
        let [external, local] = &self.detector.averages;
        let average = if origin == Origin::External { external } else { local };
        average.mean.store(None);
        average.threshold.store(None);
        let mut samples = Vec::new();
        for (address, monitor) in hosts {
            let (good, volume) = monitor.volume(origin).take();
            let rate = (volume > 0).then(|| good as f64 * 100.0 / volume as f64);
            let rate = rate.filter(|_| !monitor.is_ejected());
            let enough = volume >= settings.success_rate_volume.min(settings.failure_volume).into();
            monitor.rate(origin).store(rate.filter(|_| enough));
            if let Some(rate) = rate {
                samples.push(Sample { address: address.clone(), monitor: Arc::clone(monitor), rate, volume });
            }
        }
        let of_volume = |least: u32| samples.iter().filter(move |sample| sample.volume >= least.into());

        let rates: Vec<f64> = of_volume(settings.success_rate_volume).map(|sample| sample.rate).collect();
        if !rates.is_empty() && rates.len() >= settings.success_rate_hosts as usize {
            let (mean, deviation) = mean_and_deviation(&rates);
            let threshold = mean - deviation * f64::from(settings.stdev_factor) / 1000.0;
            average.mean.store(Some(mean));
            average.threshold.store(Some(threshold));
            for sample in of_volume(settings.success_rate_volume).filter(|sample| sample.rate < threshold) {
                let cause = Cause::SuccessRate(origin);
                self.detected(cause).inc();
                self.stats.ejections_success_rate().inc();
                let evidence = Evidence { host: sample.rate, mean, threshold };
                verdicts.extend(self.eject(&sample.address, &sample.monitor, cause, evidence, now));
            }
        }

        let limit = f64::from(settings.failure_threshold);
        if of_volume(settings.failure_volume).count() >= settings.failure_hosts.max(1) as usize {
            for sample in of_volume(settings.failure_volume).filter(|sample| 100.0 - sample.rate >= limit) {
                let cause = Cause::FailurePercentage(origin);
                self.detected(cause).inc();
                let evidence = Evidence { host: sample.rate, ..Evidence::default() };
                verdicts.extend(self.eject(&sample.address, &sample.monitor, cause, evidence, now));
            }
        }
    }

    /// Ejects a host, if that is enforced and not too many are ejected already.
    fn eject(
        &mut self,
        address: &EndpointAddress,
        monitor: &Monitor,
        cause: Cause,
        evidence: Evidence,
        now: Instant,
    ) -> Option<Verdict> {
        if monitor.is_ejected() {
            return None;
        }
        let detector = Arc::clone(&self.detector);
        let settings: &Settings = &detector.settings;
        let (ejected, all) = self.census();
        let percent = 100.0 * (ejected + 1) as f64 / all.max(1) as f64;
        let within = percent <= f64::from(settings.max_ejection_percent.min(100));
        if !(within || settings.always_eject_one && ejected == 0) {
            self.stats.ejections_overflow().inc();
            return None;
        }
        if matches!(cause, Cause::Streak(Streak::ServerErrors) | Cause::SuccessRate(Origin::External)) {
            self.stats.ejections_total().inc();
        }
        let enforced = self.random.chance(settings.enforcing(cause).into(), 100);
        let record = self.records.entry(address.clone()).or_default();
        let since = record.unejected_at.map(|before| now.saturating_duration_since(before));
        if enforced {
            self.stats.ejections_enforced_total().inc();
            let longest = settings.max_ejection_time.saturating_add(settings.base_ejection_time);
            if settings.base_ejection_time.saturating_mul(record.multiplier) < longest {
                record.multiplier = record.multiplier.saturating_add(1);
            }
            let jitter = u64::try_from(settings.jitter.as_millis()).unwrap_or(u64::MAX);
            record.jitter = Duration::from_millis(self.random.below(jitter.saturating_add(1)));
            record.ejections = record.ejections.saturating_add(1);
            record.ejected_at = Some(now);
            monitor.ejected.store(true, Ordering::Relaxed);
        }
        let ejections = record.ejections;
        if enforced {
            self.enforced(cause).inc();
        }
        let action = Action::Eject { cause, evidence, enforced };
        Some(Verdict { address: address.clone(), action, ejections, since })
    }

    /// Hosts that are ejected, and all.
    fn census(&self) -> (usize, usize) {
        let hosts = self.detector.hosts();
        (hosts.values().filter(|monitor| monitor.is_ejected()).count(), hosts.len())
    }

    fn count_ejected(&self) {
        self.stats.ejections_active().set(self.census().0 as u64);
    }

    fn detected(&self, cause: Cause) -> Cell<'_> {
        let stats = &self.stats;
        match cause {
            Cause::Streak(Streak::ServerErrors) => stats.ejections_detected_consecutive_5xx(),
            Cause::Streak(Streak::GatewayFailures) => stats.ejections_detected_consecutive_gateway_failure(),
            Cause::Streak(Streak::LocalOrigin) => stats.ejections_detected_consecutive_local_origin_failure(),
            Cause::SuccessRate(Origin::External) => stats.ejections_detected_success_rate(),
            Cause::SuccessRate(Origin::Local) => stats.ejections_detected_local_origin_success_rate(),
            Cause::FailurePercentage(Origin::External) => stats.ejections_detected_failure_percentage(),
            Cause::FailurePercentage(Origin::Local) => {
                stats.ejections_detected_local_origin_failure_percentage()
            }
        }
    }

    fn enforced(&self, cause: Cause) -> Cell<'_> {
        let stats = &self.stats;
        match cause {
            Cause::Streak(Streak::ServerErrors) => stats.ejections_enforced_consecutive_5xx(),
            Cause::Streak(Streak::GatewayFailures) => stats.ejections_enforced_consecutive_gateway_failure(),
            Cause::Streak(Streak::LocalOrigin) => stats.ejections_enforced_consecutive_local_origin_failure(),
            Cause::SuccessRate(Origin::External) => stats.ejections_enforced_success_rate(),
            Cause::SuccessRate(Origin::Local) => stats.ejections_enforced_local_origin_success_rate(),
            Cause::FailurePercentage(Origin::External) => stats.ejections_enforced_failure_percentage(),
            Cause::FailurePercentage(Origin::Local) => {
                stats.ejections_enforced_local_origin_failure_percentage()
            }
        }
    }
}

/// Of all values, not of a sample of them.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
