//! Outlier detection: hosts that fail again and again are left out for a while.
//!
//! Workers report how exchanges end ([`Watched::report`], a few relaxed atomics). What only
//! one place may decide, the main thread does: a counter that reaches its limit becomes a
//! `Notice`, on which `judge` passes a verdict at once; success rates and the end of ejections
//! are looked at each interval. `watch` is the task that runs a cluster's judge and says when
//! workers have to choose anew. An ejected host counts as unhealthy
//! (`worker_cluster::update_hosts`). Hosts of ORIGINAL_DST clusters are not watched: there the
//! client has chosen, and nothing would follow from an ejection.
//! Reading order: this file, `judge`, `watch`, `config`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::cluster::outlier::config::Settings;
use crate::cluster::{Assignment, EndpointAddress};
use crate::http::headers::{HeaderMap, Known};
use crate::snapshot::Snapshot;

pub(crate) mod config;
mod judge;
#[cfg(test)]
mod tests;
pub(crate) mod watch;

/// How a cluster's hosts do, shared by all threads.
#[derive(Debug)]
pub(crate) struct Detector {
    settings: Settings,
    hosts: Mutex<HashMap<EndpointAddress, Arc<Monitor>>>,
    notices: mpsc::UnboundedSender<Notice>,
    /// For the one task that watches.
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Notice>>>,
    /// Of the last interval; for /clusters.
    averages: [Average; 2],
}

/// How one host does.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    ejected: AtomicBool,
    /// It said so itself (`detect_degraded_hosts`).
    degraded: AtomicBool,
    /// Failures in a row, by [`Streak`].
    streaks: [AtomicU32; 3],
    /// This interval's answers, by [`Origin`].
    volumes: [Volume; 2],
    /// Success rates of the last interval, by [`Origin`]; `None`: too few answers.
    rates: [Rate; 2],
}

/// A host of a cluster that has a detector.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    detector: Arc<Detector>,
    monitor: Arc<Monitor>,
    address: EndpointAddress,
}

/// What happened at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It answered with this HTTP status (for gRPC: the one that its status corresponds to).
    Answered(u16),
    /// A connection for requests is there; each is still to be answered.
    Connected,
    /// A connection is there, and nothing else will be known of it (TCP proxy).
    ConnectedForGood,
    /// No connection, or one that broke before the answer was complete.
    Failed,
    /// No connection or answer in time.
    TimedOut,
}

impl Report {
    /// A response's head. A gRPC status that comes with the trailers is not waited for.
    pub(crate) fn answer(head: &HeaderMap, grpc: bool) -> Self {
        let status = if grpc { head.get_str(Known::GrpcStatus) } else { None };
        Report::Answered(status.map_or(head.status(), http_status))
    }
}

/// The HTTP status that a gRPC status corresponds to (google.rpc.Code).
fn http_status(grpc: &str) -> u16 {
    match grpc {
        "0" => 200,
        "1" => 499,
        "3" | "9" | "11" => 400,
        "4" => 504,
        "5" => 404,
        "6" | "10" => 409,
        "7" => 403,
        "8" => 429,
        "12" => 501,
        "14" => 503,
        "16" => 401,
        _ => 500,
    }
}

/// What the main thread is told.
#[derive(Debug)]
enum Notice {
    /// A host has failed as often in a row as is allowed.
    Failing(EndpointAddress, Streak),
    /// A host has said that it is degraded.
    Degraded(EndpointAddress),
    /// A host has passed an active health check.
    Passed(EndpointAddress),
    /// Hosts have left the cluster.
    Left,
}

/// Kinds of failures that are counted in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streak {
    ServerErrors,
    GatewayFailures,
    LocalOrigin,
}

/// Who says that something failed: the host's answers, or our connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    External,
    Local,
}

/// Answers of an interval.
#[derive(Debug, Default)]
struct Volume {
    good: AtomicU64,
    all: AtomicU64,
}

/// A percentage or nothing.
#[derive(Debug)]
struct Rate(AtomicU64);

/// What the success rates of all hosts come to.
#[derive(Debug, Default)]
struct Average {
    mean: Rate,
    threshold: Rate,
}

impl Detector {
    /// A detector that knows no hosts yet.
    pub(crate) fn new(settings: Settings) -> Self {
        let (notices, inbox) = mpsc::unbounded_channel();
        Self {
            settings,
            hosts: Mutex::default(),
            notices,
            inbox: Mutex::new(Some(inbox)),
            averages: Default::default(),
        }
    }

    /// These are the hosts now. The main thread says so before it tells the workers.
    pub(crate) fn follow(&self, assignment: &Assignment) {
        let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
        let mut hosts = self.hosts();
        let mut before = std::mem::take(&mut *hosts);
        for endpoint in endpoints {
            let monitor = before.remove(&endpoint.address);
            hosts.entry(endpoint.address.clone()).or_insert_with(|| monitor.unwrap_or_default());
        }
        if !before.is_empty() {
            // Nobody may listen yet; then there is nothing to correct either.
            let _ = self.notices.send(Notice::Left);
        }
    }

    /// A host to report on; `None`: it has left the cluster.
    pub(crate) fn watched(self: &Arc<Self>, address: &EndpointAddress) -> Option<Watched> {
        let monitor = self.monitor(address)?;
        Some(Watched { detector: Arc::clone(self), monitor, address: address.clone() })
    }

    /// A host has passed an active health check: it is let in, if it was ejected.
    pub(crate) fn passed_check(&self, address: &EndpointAddress) {
        let ejected = || self.monitor(address).is_some_and(|monitor| monitor.is_ejected());
        if self.settings.uneject_on_passed_check && ejected() {
            // Nobody listens when the cluster is gone, and so is the host.
            let _ = self.notices.send(Notice::Passed(address.clone()));
        }
    }

    /// How a host does.
    pub(crate) fn monitor(&self, address: &EndpointAddress) -> Option<Arc<Monitor>> {
        self.hosts().get(address).cloned()
    }

    /// Mean success rate and the threshold below which hosts were ejected, in percent, as of
    /// the last interval: of answers, then of local origin.
    pub(crate) fn averages(&self) -> [Option<f64>; 4] {
        let [external, local] = &self.averages;
        [external.mean.load(), external.threshold.load(), local.mean.load(), local.threshold.load()]
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<EndpointAddress, Arc<Monitor>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The detectors of clusters that have changed from one snapshot to the next, or whose hosts have,
/// learn the hosts.
pub(crate) fn follow(before: &Snapshot, snapshot: &Snapshot) {
    let clusters = before.clusters.changes(&snapshot.clusters).map(|change| change.name);
    let endpoints = before.endpoints.changes(&snapshot.endpoints).map(|change| change.name);
    for name in clusters.chain(endpoints) {
        let detector = snapshot.clusters.get(name).and_then(|cluster| cluster.outlier.as_ref());
        if let (Some(detector), Some(assignment)) = (detector, snapshot.endpoints.get(name)) {
            detector.follow(assignment);
        }
    }
}

impl Monitor {
    /// Whether it is left out now.
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Whether it has lately said that it is degraded.
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// Success rate of the last interval in percent, of answers and of local origin; `None`:
    /// there were too few, or it was ejected.
    pub(crate) fn success_rates(&self) -> [Option<f64>; 2] {
        [self.rate(Origin::External).load(), self.rate(Origin::Local).load()]
    }

    fn streak(&self, streak: Streak) -> &AtomicU32 {
        let [errors, gateway, local] = &self.streaks;
        match streak {
            Streak::ServerErrors => errors,
            Streak::GatewayFailures => gateway,
            Streak::LocalOrigin => local,
        }
    }

    fn end_streak(&self, streak: Streak) {
        let count = self.streak(streak);
        // Most hosts are well most of the time: do not dirty a line that all workers read.
        if count.load(Ordering::Relaxed) != 0 {
            count.store(0, Ordering::Relaxed);
        }
    }

    fn volume(&self, origin: Origin) -> &Volume {
        let [external, local] = &self.volumes;
        if origin == Origin::External { external } else { local }
    }

    fn rate(&self, origin: Origin) -> &Rate {
        let [external, local] = &self.rates;
        if origin == Origin::External { external } else { local }
    }
}

impl Watched {
    /// Whether the host has lately said that it is degraded.
    pub(crate) fn is_degraded(&self) -> bool {
        self.monitor.is_degraded()
    }

    /// The host has said that it is degraded.
    pub(crate) fn note_degraded(&self) {
        if self.detector.settings.detect_degraded && !self.is_degraded() {
            // Nobody listens when the cluster is gone, and so is the host.
            let _ = self.detector.notices.send(Notice::Degraded(self.address.clone()));
        }
    }

    /// Whether the host is left out now.
    pub(crate) fn is_ejected(&self) -> bool {
        self.monitor.is_ejected()
    }

    /// Notes how an exchange or an attempt to connect ended.
    pub(crate) fn report(&self, report: Report) {
        if self.detector.settings.split_local_origin {
            match report {
                Report::Answered(status) => self.answered(status),
                Report::Connected | Report::ConnectedForGood => {
                    self.monitor.volume(Origin::Local).count(true);
                    self.monitor.end_streak(Streak::LocalOrigin);
                }
                Report::Failed | Report::TimedOut => {
                    self.monitor.volume(Origin::Local).count(false);
                    self.extend(Streak::LocalOrigin);
                }
            }
            return;
        }
        match report {
            Report::Answered(status) => self.answered(status),
            Report::ConnectedForGood => self.answered(200),
            Report::Failed => self.answered(503),
            Report::TimedOut => self.answered(504),
            Report::Connected => {}
        }
    }

    fn answered(&self, status: u16) {
        let failed = (500..600).contains(&status);
        self.monitor.volume(Origin::External).count(!failed);
        if matches!(status, 502..=504) {
            self.extend(Streak::GatewayFailures);
        } else {
            self.monitor.end_streak(Streak::GatewayFailures);
        }
        if failed {
            self.extend(Streak::ServerErrors);
        } else {
            self.monitor.end_streak(Streak::ServerErrors);
        }
    }

    /// One failure more; whoever makes it the last that is allowed tells the main thread.
    fn extend(&self, streak: Streak) {
        let before = self.monitor.streak(streak).fetch_add(1, Ordering::Relaxed);
        if before.wrapping_add(1) == self.detector.settings.limit(streak) {
            // Nobody listens when the cluster is gone, and so is the host.
            let _ = self.detector.notices.send(Notice::Failing(self.address.clone(), streak));
        }
    }
}

impl Volume {
    fn count(&self, good: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if good {
            self.good.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins a new interval: (good, all) of the last.
    fn take(&self) -> (u64, u64) {
        // An answer that comes between the two is good in the next interval, at worst.
        let good = self.good.swap(0, Ordering::Relaxed);
        let all = self.all.swap(0, Ordering::Relaxed);
        (good.min(all), all)
    }
}

impl Rate {
    fn store(&self, rate: Option<f64>) {
        self.0.store(rate.unwrap_or(f64::NAN).to_bits(), Ordering::Relaxed);
    }

    fn load(&self) -> Option<f64> {
        let rate = f64::from_bits(self.0.load(Ordering::Relaxed));
        (!rate.is_nan()).then_some(rate)
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self(AtomicU64::new(f64::NAN.to_bits()))
    }
}
