//! What follows from the results of one host's checks: thresholds, flags, stats, events, and the
//! time until the next check. No I/O, and no clock.

use std::sync::Arc;
use std::time::Duration;

use leno_base::rng::Rng;

use crate::cluster::health::config::Settings;
use crate::cluster::health::{Flag, Vitals};
use crate::telemetry::stats::stats_scope;

stats_scope! {
    /// `cluster.NAME.health_check.`
    pub(super) struct HealthStats {
        counter attempt;
        gauge degraded;
        counter failure;
        gauge healthy;
        counter network_failure;
        counter passive_failure;
        counter success;
        counter verify_cluster;
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Well, though perhaps `x-envoy-degraded`.
    Passed { degraded: bool },
    /// Not well. `retriable`: one such answer is not enough (`retriable_statuses`).
    Failed { failure: Failure, retriable: bool, status: u16 },
}

impl Outcome {
    /// No answer.
    pub(super) const NETWORK: Outcome =
        Outcome::Failed { failure: Failure::Network, retriable: false, status: 0 };
    /// No answer in time.
    pub(super) const TIMEOUT: Outcome =
        Outcome::Failed { failure: Failure::NetworkTimeout, retriable: false, status: 0 };
    /// The host failed a request.
    pub(super) const PASSIVE: Outcome =
        Outcome::Failed { failure: Failure::Passive, retriable: false, status: 0 };
    /// An answer that is none.
    pub(super) const REFUSED: Outcome =
        Outcome::Failed { failure: Failure::Active, retriable: false, status: 0 };
}

/// envoy.data.core.v3.HealthCheckFailureType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Active,
    Passive,
    Network,
    NetworkTimeout,
}

/// What the event log is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    AddHealthy { first: bool },
    EjectUnhealthy { failure: Failure, status: u16 },
    Successful,
    Failed { failure: Failure, first: bool, status: u16 },
    Degraded,
    NoLongerDegraded,
}

/// What a check has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    Unchanged,
    /// On its way: the threshold is not reached yet.
    Pending,
    Changed,
}

/// The memory of one host's checks.
pub(super) struct Session {
    settings: Arc<Settings>,
    vitals: Arc<Vitals>,
    stats: HealthStats,
    /// Good checks in a row while it has failed.
    healthy: u32,
    /// Bad checks in a row while it has not.
    unhealthy: u32,
    first: bool,
}

impl Session {
    pub(super) fn new(settings: Arc<Settings>, vitals: Arc<Vitals>, stats: HealthStats) -> Self {
        if !vitals.has(Flag::FAILED) {
            stats.healthy().inc();
        }
        if vitals.has(Flag::DEGRADED) {
            stats.degraded().inc();
        }
        Self { settings, vitals, stats, healthy: 0, unhealthy: 0, first: true }
    }

    /// Draws the conclusions of a check, and reports events in their order.
    pub(super) fn conclude(&mut self, outcome: Outcome, event: &mut dyn FnMut(Event)) -> Transition {
        let transition = match outcome {
            Outcome::Passed { degraded } => self.passed(degraded, event),
            Outcome::Failed { failure, retriable, status } => self.failed(failure, retriable, status, event),
        };
        self.first = false;
        self.vitals.clear(Flag::AWAITED);
        transition
    }

    fn passed(&mut self, degraded: bool, event: &mut dyn FnMut(Event)) -> Transition {
        self.unhealthy = 0;
        let vitals = &self.vitals;
        let mut transition = Transition::Unchanged;
        if vitals.has(Flag::FAILED) {
            self.healthy = self.healthy.saturating_add(1);
            // The first check decides alone, so that a start takes one round.
            if self.first || self.healthy == self.settings.healthy_threshold {
                vitals.clear(Flag::TIMED_OUT);
                vitals.clear(Flag::EXCLUDED);
                vitals.clear(Flag::FAILED);
                self.stats.healthy().inc();
                transition = Transition::Changed;
                event(Event::AddHealthy { first: self.first });
            } else {
                transition = Transition::Pending;
            }
        }
        if transition != Transition::Changed && self.settings.log_successes {
            event(Event::Successful);
        }
        transition = self.no_longer_pending(transition);
        if degraded != vitals.has(Flag::DEGRADED) {
            if degraded {
                vitals.set(Flag::DEGRADED);
                self.stats.degraded().inc();
                event(Event::Degraded);
            } else {
                event(Event::NoLongerDegraded);
                vitals.clear(Flag::DEGRADED);
                // Deviation: Envoy leaves the gauge `health_check.degraded` up when a host is no
                // longer degraded; ours counts the hosts that are.
                self.stats.degraded().dec();
            }
            if transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        }
        self.stats.success().inc();
        transition
    }

    fn failed(
        &mut self,
        failure: Failure,
        retriable: bool,
        status: u16,
        event: &mut dyn FnMut(Event),
    ) -> Transition {
        self.healthy = 0;
        let vitals = &self.vitals;
        let network = matches!(failure, Failure::Network | Failure::NetworkTimeout);
        let mut transition = Transition::Unchanged;
        if !vitals.has(Flag::FAILED) {
            // A host that says itself that it is not well is believed at once.
            let at_once = !network && !retriable;
            if !at_once {
                self.unhealthy = self.unhealthy.saturating_add(1);
            }
            if at_once || self.unhealthy == self.settings.unhealthy_threshold {
                vitals.set(Flag::FAILED);
                self.stats.healthy().dec();
                transition = Transition::Changed;
                event(Event::EjectUnhealthy { failure, status });
            } else {
                transition = Transition::Pending;
            }
        }
        if failure == Failure::NetworkTimeout && vitals.has(Flag::FAILED) {
            vitals.set(Flag::TIMED_OUT);
        } else {
            vitals.clear(Flag::TIMED_OUT);
        }
        transition = self.no_longer_pending(transition);
        if self.first || self.settings.log_failures {
            event(Event::Failed { failure, first: self.first, status });
        }
        self.stats.failure().inc();
        if network {
            self.stats.network_failure().inc();
        } else if failure == Failure::Passive {
            self.stats.passive_failure().inc();
        }
        transition
    }

    /// Being counted again is a change, whatever else is.
    fn no_longer_pending(&self, transition: Transition) -> Transition {
        if self.vitals.has(Flag::PENDING) {
            self.vitals.clear(Flag::PENDING);
            return Transition::Changed;
        }
        transition
    }

    /// How long to wait after a check. `traffic`: the cluster has ever had a connection.
    pub(super) fn wait(
        &self,
        passed: bool,
        transition: Transition,
        traffic: bool,
        rng: &mut Rng,
    ) -> Duration {
        let settings = &self.settings;
        let pending = transition == Transition::Pending;
        let base = match (traffic, passed) {
            (true, true) if pending => settings.healthy_edge_interval,
            (true, true) => settings.interval,
            (true, false) if pending => settings.unhealthy_edge_interval,
            (true, false) => settings.unhealthy_interval,
            (false, true) if !pending => settings.no_traffic_healthy_interval,
            (false, _) => settings.no_traffic_interval,
        };
        jittered(base, settings.interval_jitter, settings, rng)
    }
}

/// A time with the jitters that apply, within the bounds that the runtime sets.
pub(super) fn jittered(base: Duration, jitter: Duration, settings: &Settings, rng: &mut Rng) -> Duration {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let base = millis(base);
    let relative = base.saturating_mul(settings.interval_jitter_percent.into()) / 100;
    let mut wait = base;
    for jitter in [relative, millis(jitter)] {
        if jitter > 0 {
            wait = wait.saturating_add(rng.below(jitter));
        }
    }
    let (min, max) = settings.bounds;
    // Never at once: that would be a busy loop.
    Duration::from_millis(wait.min(max).max(min).max(1))
}

impl Drop for Session {
    /// The gauges count the hosts that are checked.
    fn drop(&mut self) {
        if !self.vitals.has(Flag::FAILED) {
            self.stats.healthy().dec();
        }
        if self.vitals.has(Flag::DEGRADED) {
            self.stats.degraded().dec();
        }
    }
}
