//! The main thread's side of one cluster's checks: a task per host, and the hosts that stay
//! although discovery has dropped them.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use leno_base::rng::Rng;
use tokio::sync::watch;

use crate::cluster::health::config::Settings;
use crate::cluster::health::event::{self, Subject};
use crate::cluster::health::probe::{Probe, Target, Verdicts};
use crate::cluster::health::session::{HealthStats, Outcome, Session, Transition, jittered};
use crate::cluster::health::{Checkup, Flag, Vitals, checked};
use crate::cluster::{
    Assignment, Cluster, EndpointAddress, EndpointCheck, EndpointConfig, LocalityEndpoints,
};
use crate::telemetry::stats::ThreadStats;

/// The checks of one cluster; they end when this is dropped.
pub(crate) struct Watch {
    cluster: Arc<Cluster>,
    checkup: Arc<Checkup>,
    thread: Arc<ThreadStats>,
    tasks: HashMap<EndpointAddress, Task>,
    report: Arc<dyn Fn(Report) + Send + Sync>,
    /// The endpoints that discovery gave last, and those in force.
    discovered: Option<(Arc<Assignment>, Arc<Assignment>)>,
}

/// What the main loop is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A host's verdict has changed: workers have to choose anew.
    Changed,
    /// A host was checked for the first time: the cluster may be warm now.
    First,
}

struct Task {
    check: Option<Arc<EndpointCheck>>,
    subject: watch::Sender<Subject>,
    handle: tokio::task::JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Watch {
    /// The checks of a cluster that has some, without hosts yet.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        thread: &Arc<ThreadStats>,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Option<Self> {
        let checkup = Arc::clone(cluster.health.as_ref()?);
        // The stats are there before the first host is.
        let stats = stats(cluster, thread);
        stats.healthy().add(0);
        stats.degraded().add(0);
        Some(Self {
            cluster: Arc::clone(cluster),
            checkup,
            thread: Arc::clone(thread),
            tasks: HashMap::new(),
            report: Arc::new(report),
            discovered: None,
        })
    }

    /// Discovery gave these endpoints. Returns those to be in force: hosts that it dropped stay
    /// as long as they pass their checks, unless `ignore_health_on_host_removal`.
    pub(crate) fn follow(&mut self, assignment: &Arc<Assignment>) -> Arc<Assignment> {
        if let Some((discovered, in_force)) = &self.discovered
            && Arc::ptr_eq(discovered, assignment)
        {
            return Arc::clone(in_force);
        }
        let in_force = match &self.discovered {
            Some((_, before)) if self.checkup.keeps_removed() && self.cluster.discovery.may_drop_hosts() => {
                self.with_healthy(assignment, before)
            }
            _ => Arc::clone(assignment),
        };
        self.adopt(assignment, &in_force);
        in_force
    }

    /// What discovery gave, and the endpoints in force after hosts that were kept have failed;
    /// `None`: as before.
    pub(crate) fn drop_failed(&mut self) -> Option<(Arc<Assignment>, Arc<Assignment>)> {
        let (discovered, before) = self.discovered.clone()?;
        if Arc::ptr_eq(&discovered, &before) {
            return None;
        }
        let in_force = self.with_healthy(&discovered, &before);
        if in_force == before {
            return None;
        }
        self.adopt(&discovered, &in_force);
        Some((discovered, in_force))
    }

    fn adopt(&mut self, discovered: &Arc<Assignment>, in_force: &Arc<Assignment>) {
        let tasks = &self.tasks;
        let stays = |endpoint: &EndpointConfig| {
            tasks.get(&endpoint.address).is_some_and(|task| task.check == endpoint.check)
        };
        self.checkup.follow(in_force, stays);
        let listed: HashMap<&EndpointAddress, ()> = checked(discovered).map(|e| (&e.address, ())).collect();
        let mut before = std::mem::take(&mut self.tasks);
        for locality in &in_force.localities {
            for endpoint in locality.endpoints.iter().filter(|endpoint| !endpoint.check().disabled) {
                let Some(vitals) = self.checkup.vitals(&endpoint.address) else { continue };
                if listed.contains_key(&endpoint.address) {
                    vitals.clear(Flag::PENDING_REMOVAL);
                } else {
                    vitals.set(Flag::PENDING_REMOVAL);
                }
                let subject = Subject {
                    cluster: self.cluster.name.clone(),
                    endpoint: endpoint.clone(),
                    locality: locality.locality.clone(),
                };
                let task = match before.remove(&endpoint.address) {
                    Some(task) if task.check == endpoint.check => {
                        task.subject.send_replace(subject);
                        task
                    }
                    _ => self.start(endpoint, vitals, subject),
                };
                self.tasks.insert(endpoint.address.clone(), task);
            }
        }
        self.discovered = Some((Arc::clone(discovered), Arc::clone(in_force)));
    }

    fn start(&self, endpoint: &EndpointConfig, vitals: Arc<Vitals>, subject: Subject) -> Task {
        let settings = Arc::clone(&self.checkup.settings);
        let target = Target::new(Arc::clone(&self.cluster), Arc::clone(&settings), endpoint);
        let stats = stats(&self.cluster, &self.thread);
        let session = Session::new(settings, Arc::clone(&vitals), stats.clone());
        let (subject, events) = watch::channel(subject);
        let report = Arc::clone(&self.report);
        let checker = Checker { target, vitals, stats, session, events, report, rng: Rng::from_entropy() };
        Task { check: endpoint.check.clone(), subject, handle: tokio::spawn(checker.run()) }
    }

    /// `discovered` with those hosts of `before` that it lacks and that pass their checks.
    fn with_healthy(&self, discovered: &Arc<Assignment>, before: &Assignment) -> Arc<Assignment> {
        let endpoints = |assignment: &Assignment| {
            let all = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
            all.map(|endpoint| endpoint.address.clone()).collect::<std::collections::HashSet<_>>()
        };
        let listed = endpoints(discovered);
        let passes = |endpoint: &EndpointConfig| {
            endpoint.health != crate::cluster::HealthStatus::Unhealthy
                && self.checkup.vitals(&endpoint.address).is_some_and(|vitals| !vitals.has(Flag::FAILED))
        };
        let mut merged: Option<Assignment> = None;
        for locality in &before.localities {
            let kept = locality.endpoints.iter().filter(|one| !listed.contains(&one.address) && passes(one));
            let kept: Vec<EndpointConfig> = kept.cloned().collect();
            if kept.is_empty() {
                continue;
            }
            let merged = merged.get_or_insert_with(|| Assignment::clone(discovered));
            let place = |other: &&mut LocalityEndpoints| {
                other.locality == locality.locality && other.priority == locality.priority
            };
            match merged.localities.iter_mut().find(place) {
                Some(there) => there.endpoints.extend(kept),
                None => {
                    merged.localities.push(LocalityEndpoints { endpoints: kept, ..locality.clone() });
                }
            }
        }
        merged.map_or_else(|| Arc::clone(discovered), Arc::new)
    }
}

fn stats(cluster: &Cluster, thread: &ThreadStats) -> HealthStats {
    HealthStats::new(thread, &format!("cluster.{}.health_check.", cluster.stat_name))
}

/// One host's task.
struct Checker {
    target: Target,
    vitals: Arc<Vitals>,
    stats: HealthStats,
    session: Session,
    events: watch::Receiver<Subject>,
    report: Arc<dyn Fn(Report) + Send + Sync>,
    rng: Rng,
}

impl Checker {
    async fn run(mut self) {
        let settings = Arc::clone(&self.target.settings);
        let mut probe = Probe::new(&settings.check);
        if !settings.initial_jitter.is_zero() {
            let wait = jittered(std::time::Duration::ZERO, settings.initial_jitter, &settings, &mut self.rng);
            self.wait(&mut probe, wait).await;
        }
        loop {
            let outcome = self.check(&mut probe).await;
            let mut wait = self.conclude(outcome);
            // Whatever breaks while waiting begins the wait anew.
            while let Some(outcome) = self.wait(&mut probe, wait).await {
                wait = self.conclude(outcome);
            }
        }
    }

    /// One check, within its timeout.
    async fn check(&mut self, probe: &mut Probe) -> Outcome {
        self.stats.attempt().inc();
        let timeout = self.target.settings.timeout;
        let percentile = self.rng.below(100);
        let vitals = Arc::clone(&self.vitals);
        let asked = {
            // Stats are counted after the check: this task alone writes them.
            let verified = std::sync::atomic::AtomicBool::new(false);
            let verdicts = Verdicts {
                exclude: &|| vitals.set(Flag::EXCLUDED),
                verified: &|| verified.store(true, std::sync::atomic::Ordering::Relaxed),
                percentile,
            };
            let outcome = {
                let mut asking = pin!(tokio::time::timeout(timeout, probe.check(&self.target, &verdicts)));
                loop {
                    tokio::select! {
                        outcome = &mut asking => break outcome,
                        () = vitals.alarm.notified() => {
                            let transition = conclude(&mut self.session, Outcome::PASSIVE, &self.events, &self.target.settings);
                            report(&*self.report, false, transition);
                        }
                    }
                }
            };
            if verified.into_inner() {
                self.stats.verify_cluster().inc();
            }
            outcome
        };
        asked.unwrap_or_else(|_| {
            probe.timed_out(&self.target);
            Outcome::TIMEOUT
        })
    }

    /// Waits; `Some`: a kept connection broke meanwhile.
    async fn wait(&mut self, probe: &mut Probe, wait: std::time::Duration) -> Option<Outcome> {
        let mut sleep = pin!(tokio::time::sleep(wait));
        let vitals = Arc::clone(&self.vitals);
        loop {
            tokio::select! {
                () = &mut sleep => return None,
                () = vitals.alarm.notified() => {
                    // The time of the next check stays as it is.
                    self.conclude(Outcome::PASSIVE);
                }
                () = probe.broken() => return Some(Outcome::NETWORK),
            }
        }
    }

    /// Tells everybody how a check ended; how long to wait for the next.
    fn conclude(&mut self, outcome: Outcome) -> std::time::Duration {
        let first = self.vitals.has(Flag::AWAITED);
        let transition = conclude(&mut self.session, outcome, &self.events, &self.target.settings);
        let passed = matches!(outcome, Outcome::Passed { .. });
        if passed
            && !self.vitals.has(Flag::FAILED)
            && let Some(detector) = &self.target.cluster.outlier
        {
            detector.passed_check(&self.target.host);
        }
        report(&*self.report, first, transition);
        let traffic = self.target.cluster.gauges.had_traffic();
        self.session.wait(passed, transition, traffic, &mut self.rng)
    }
}

fn conclude(
    session: &mut Session,
    outcome: Outcome,
    events: &watch::Receiver<Subject>,
    settings: &Settings,
) -> Transition {
    session.conclude(outcome, &mut |event| {
        let subject = events.borrow();
        tracing::debug!(target: "hc", cluster = %subject.cluster, host = %subject.endpoint.address, ?event, "health check");
        if settings.logs.is_empty() {
            return;
        }
        let line = format!("{}\n", event::line(&subject, &settings.check, event, SystemTime::now()));
        settings.logs.iter().for_each(|log| log.write(line.as_bytes()));
    })
}

fn report(report: &(dyn Fn(Report) + Send + Sync), first: bool, transition: Transition) {
    if transition == Transition::Changed {
        report(Report::Changed);
    }
    if first {
        report(Report::First);
    }
}
