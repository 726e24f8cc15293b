//! Active health checks: hosts are asked how they are, on the main thread.
//!
//! A cluster has one [`Checkup`]: settings, and for each host its [`Vitals`], a word of flags
//! that all threads read and the main thread writes. `watch` runs one task per host, which asks
//! with a `probe` and lets a `session` draw the conclusions: the thresholds, and when to ask
//! again. Workers learn of a changed verdict as they do of ejections: they choose anew among the
//! hosts they have. A cluster warms after the first round of checks.
//! Reading order: this file, `session`, `watch`, `probe`, `event`, `config`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::cluster::health::config::Settings;
use crate::cluster::{Assignment, EndpointAddress, EndpointConfig, HealthStatus};

pub(crate) mod config;
mod event;
mod probe;
mod session;
#[cfg(test)]
mod tests;
pub(crate) mod watch;

/// What a cluster's checks have found, shared by all threads.
#[derive(Debug)]
pub(crate) struct Checkup {
    settings: Arc<Settings>,
    hosts: Mutex<HashMap<EndpointAddress, Arc<Vitals>>>,
    /// Whether the hosts of the first round are known.
    began: AtomicBool,
}

/// What is known of one host's health.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    flags: AtomicU32,
    /// The host itself said, in an answer to a request, that it fails.
    alarm: Notify,
}

/// Envoy's `Host::HealthFlag`, those that active health checks set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flag(u32);

impl Flag {
    /// `/failed_active_hc`
    pub(crate) const FAILED: Flag = Flag(1);
    /// `/degraded_active_hc`
    pub(crate) const DEGRADED: Flag = Flag(1 << 3);
    /// `/pending_dynamic_removal`: discovery has dropped it, but it passes its checks.
    pub(crate) const PENDING_REMOVAL: Flag = Flag(1 << 5);
    /// `/pending_active_hc`: not checked yet, and left out of all counts until then.
    pub(crate) const PENDING: Flag = Flag(1 << 6);
    /// `/excluded_via_immediate_hc_fail`
    pub(crate) const EXCLUDED: Flag = Flag(1 << 7);
    /// `/active_hc_timeout`
    pub(crate) const TIMED_OUT: Flag = Flag(1 << 8);
    /// Not of Envoy: the first round waits for this host.
    const AWAITED: Flag = Flag(1 << 30);
}

impl Checkup {
    /// A checkup that knows no hosts yet.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), hosts: Mutex::default(), began: AtomicBool::new(false) }
    }

    /// How a host is; `None`: it is not checked.
    pub(crate) fn vitals(&self, address: &EndpointAddress) -> Option<Arc<Vitals>> {
        self.hosts().get(address).cloned()
    }

    /// Whether the first round is over: every host that was there at the beginning has been
    /// checked once, or has left.
    pub(crate) fn is_warm(&self) -> bool {
        self.began.load(Ordering::Relaxed) && !self.hosts().values().any(|vitals| vitals.has(Flag::AWAITED))
    }

    /// Whether hosts are kept that discovery drops while they pass their checks.
    pub(crate) fn keeps_removed(&self) -> bool {
        !self.settings.ignore_health_on_removal
    }

    /// These are the hosts now. New ones have failed until they are checked. The main thread
    /// says so before it tells the workers. `before`: the same hosts as they were configured.
    fn follow(&self, assignment: &Assignment, stays: impl Fn(&EndpointConfig) -> bool) {
        let first = !self.began.swap(true, Ordering::Relaxed);
        let mut hosts = self.hosts();
        let mut before = std::mem::take(&mut *hosts);
        for endpoint in checked(assignment) {
            let known = before.remove(&endpoint.address).filter(|_| stays(endpoint));
            hosts.entry(endpoint.address.clone()).or_insert_with(|| {
                known.unwrap_or_else(|| {
                    let vitals = Vitals::default();
                    vitals.set(Flag::FAILED);
                    if self.settings.ignore_new_hosts {
                        vitals.set(Flag::PENDING);
                    }
                    if first {
                        vitals.set(Flag::AWAITED);
                    }
                    vitals.into()
                })
            });
        }
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<EndpointAddress, Arc<Vitals>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hosts of an assignment that are checked.
fn checked(assignment: &Assignment) -> impl Iterator<Item = &EndpointConfig> {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    endpoints.filter(|endpoint| !endpoint.check().disabled)
}

impl Vitals {
    /// Whether a flag is set.
    pub(crate) fn has(&self, flag: Flag) -> bool {
        self.flags.load(Ordering::Relaxed) & flag.0 != 0
    }

    fn set(&self, flag: Flag) {
        self.flags.fetch_or(flag.0, Ordering::Relaxed);
    }

    fn clear(&self, flag: Flag) {
        self.flags.fetch_and(!flag.0, Ordering::Relaxed);
    }

    /// An answer to a request said `x-envoy-immediate-health-check-fail`.
    pub(crate) fn fail_now(&self) {
        self.set(Flag::EXCLUDED);
        self.alarm.notify_one();
    }

    /// Health as balancers see it, given what discovery says.
    pub(crate) fn health(&self, discovered: HealthStatus) -> HealthStatus {
        match discovered {
            _ if self.has(Flag::FAILED) => HealthStatus::Unhealthy,
            HealthStatus::Healthy if self.has(Flag::DEGRADED) => HealthStatus::Degraded,
            other => other,
        }
    }

    /// Whether the host counts for nothing, not even as a host that is there
    /// (`membership_excluded`).
    pub(crate) fn is_excluded(&self) -> bool {
        self.has(Flag::PENDING) || self.has(Flag::EXCLUDED)
    }
}
