//! The life of one pod, as a task of its own: volumes, containers that initialise, sidecars, applications, end.
//! `Life::run` is the story. Its place (namespaces, address, redirection) is made by whoever starts it.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{join_all, select_all};
use k8s_openapi::api::core::v1 as core;
use leno_node::{Backoff, Line, Restart};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::check;
use crate::container::{Container, State, Status};
use crate::environment::Facts;
use crate::image::Images;
use crate::place::Place;
use crate::sources::Sources;
use crate::volume::Volumes;

/// How pods are run here.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The delays before restarts.
    pub backoff: Backoff,
    /// How often to look whether something that starts is ready, if more often than its probe says.
    pub look: Option<Duration>,
    /// Whether a container without readiness probe is ready only once one of its ports accepts.
    pub wait_for_ports: bool,
    /// Whether there are other users than the one that runs this.
    pub users: bool,
    /// Whether containers without volumes have files of their own, too.
    pub own_files: bool,
    /// Whether a container whose image is not known may run, if it has a `command`.
    pub bare_commands: bool,
    /// Variables that all containers have, unless they declare them.
    pub variables: Vec<(String, String)>,
    /// The most that a pod may take to end, whatever it asks for.
    pub longest_end: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            backoff: Backoff::default(),
            look: None,
            wait_for_ports: false,
            users: true,
            own_files: true,
            bare_commands: true,
            variables: Vec::new(),
            longest_end: Duration::MAX,
        }
    }
}

/// What a pod is started with.
pub struct Start {
    /// The pod, with uid, name and namespace.
    pub pod: core::Pod,
    /// Where it lives.
    pub place: Place,
    /// Where its probes connect from.
    pub probes_from: Place,
    /// What its containers are told of it.
    pub facts: Facts,
    /// What stands for images.
    pub images: Arc<Images>,
    /// What its containers may read.
    pub sources: Arc<dyn Sources>,
    /// A folder of its own, for volumes. It is removed in the end.
    pub folder: PathBuf,
    /// Ports that count besides those that containers name, where [`Settings::wait_for_ports`].
    pub service_ports: Vec<u16>,
    /// How pods are run here.
    pub settings: Settings,
    /// Where output goes.
    pub lines: mpsc::Sender<Line>,
}

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: &'static str,
    /// Why, if there is something to say, and in words.
    pub reason: Option<(String, String)>,
    /// When it was taken up.
    pub since: SystemTime,
    /// Whether those that initialise have all done so.
    pub initialized: bool,
    /// Whether all containers can be called.
    pub ready: bool,
    /// Its containers that initialise, sidecars among them, in their order.
    pub init_containers: Vec<(String, Status)>,
    /// Its containers, in their order.
    pub containers: Vec<(String, Status)>,
    /// Whether it has ended as it was asked to, and nothing is left of it.
    pub gone: bool,
}

impl PodState {
    /// All containers.
    pub fn all(&self) -> impl Iterator<Item = &(String, Status)> {
        self.init_containers.iter().chain(&self.containers)
    }
}

/// A pod that runs. Dropping it kills its processes.
#[derive(Debug)]
pub struct Handle {
    state: watch::Receiver<PodState>,
    end: watch::Sender<Option<Duration>>,
    task: JoinHandle<()>,
}

impl Handle {
    /// How it is, now and whenever that changes.
    pub fn state(&self) -> watch::Receiver<PodState> {
        self.state.clone()
    }

    /// Asks it to end within a time, instead of what it declares; a later shorter one counts.
    pub fn end(&self, grace: Option<Duration>) {
        let declared = grace.unwrap_or(Duration::MAX);
        self.end.send_if_modified(|end| {
            let sooner = end.is_none_or(|before| declared < before);
            if sooner {
                *end = Some(declared);
            }
            sooner
        });
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the containers of a pod share.
pub(crate) struct Shared {
    pub(crate) pod: core::Pod,
    pub(crate) host_name: String,
    pub(crate) place: Place,
    pub(crate) probes_from: Place,
    pub(crate) facts: Facts,
    pub(crate) images: Arc<Images>,
    pub(crate) sources: Arc<dyn Sources>,
    pub(crate) folder: PathBuf,
    pub(crate) volumes: Mutex<Volumes>,
    pub(crate) settings: Settings,
    pub(crate) lines: mpsc::Sender<Line>,
    pub(crate) grace: Duration,
    service_ports: Vec<u16>,
}

impl Shared {
    pub(crate) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn service_ports(&self) -> Vec<u16> {
        self.service_ports.clone()
    }

    fn spec(&self) -> core::PodSpec {
        self.pod.spec.clone().unwrap_or_default()
    }
}

/// The host name of a pod.
pub fn host_name(pod: &core::Pod) -> String {
    let declared = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|it| !it.is_empty());
    declared.or_else(|| pod.metadata.name.clone()).unwrap_or_default()
}

/// Starts a pod's containers.
pub fn start(start: Start) -> Handle {
    let Start { pod, place, probes_from, facts, images, sources, folder, settings, lines, service_ports } =
        start;
    let seconds = pod.metadata.deletion_grace_period_seconds;
    let seconds = seconds.or(pod.spec.as_ref().and_then(|it| it.termination_grace_period_seconds));
    let grace = Duration::from_secs(seconds.and_then(|it| u64::try_from(it).ok()).unwrap_or(30));
    let shared = Arc::new(Shared {
        host_name: host_name(&pod),
        volumes: Mutex::new(Volumes::new(&pod, folder.join("volumes"))),
        grace: grace.min(settings.longest_end),
        pod,
        place,
        probes_from,
        facts,
        images,
        sources,
        folder,
        settings,
        lines,
        service_ports,
    });
    let spec = shared.spec();
    let waiting = |containers: &[core::Container]| -> Vec<(String, Status)> {
        let waiting = |it: &core::Container| (it.name.clone(), Status::waiting("PodInitializing"));
        containers.iter().map(waiting).collect()
    };
    let state = PodState {
        phase: "Pending",
        reason: None,
        since: SystemTime::now(),
        initialized: false,
        ready: false,
        init_containers: waiting(spec.init_containers.as_deref().unwrap_or_default()),
        containers: waiting(&spec.containers),
        gone: false,
    };
    let (sender, state) = watch::channel(state);
    let (end, asked) = watch::channel(None);
    let life = Life { shared, state: sender, init: Vec::new(), containers: Vec::new(), initialized: false };
    Handle { state, end, task: tokio::spawn(life.run(asked)) }
}

struct Life {
    shared: Arc<Shared>,
    state: watch::Sender<PodState>,
    /// Those that were started: sidecars, and what initialises and was not dropped.
    init: Vec<(Container, bool)>,
    containers: Vec<Container>,
    initialized: bool,
}

impl Life {
    async fn run(mut self, mut asked: watch::Receiver<Option<Duration>>) {
        tokio::select! {
            never = self.live() => match never {},
            result = asked.wait_for(Option::is_some) => if result.is_err() {
                return;
            },
        }
        self.end(asked).await;
        self.publish();
        self.state.send_modify(|state| state.gone = true);
    }

    /// Everything until it is to end.
    async fn live(&mut self) -> std::convert::Infallible {
        let refused = check::refused(&self.shared.pod);
        if !refused.is_empty() {
            let words = refused.iter().map(|it| format!("{}: {}", it.path, it.message)).collect::<Vec<_>>();
            return self.fail("Unsupported", words.join("; ")).await;
        }
        self.fill().await;
        let volumes = tokio::spawn(refresh(self.shared.clone()));
        let volumes = Abort(volumes);
        if !self.initialize().await {
            return self.settle_failure().await;
        }
        self.initialized = true;
        let restart = match self.shared.spec().restart_policy.as_deref() {
            Some("OnFailure") => Restart::OnFailure,
            Some("Never") => Restart::Never,
            _ => Restart::Always,
        };
        for container in self.shared.spec().containers {
            // As kubelet: the next one starts when the hook of this one is done, well or not.
            self.containers.push(Container::start(self.shared.clone(), container, restart));
            let index = self.containers.len() - 1;
            self.until(|life| {
                life.containers.get(index).is_some_and(|it| {
                    let status = it.status.borrow();
                    // One that waits for something that is missing keeps nobody waiting.
                    status.launched || matches!(&status.state, State::Waiting { reason, .. } if reason != "ContainerCreating")
                })
            })
            .await;
        }
        self.until(|life| life.containers.iter().all(|it| it.status.borrow().over)).await;
        self.end_sidecars(Instant::now() + self.shared.grace).await;
        self.publish();
        drop(volumes);
        pending().await
    }

    /// Makes the volumes, once everything that they are made of is there.
    async fn fill(&mut self) {
        let mut changes = self.shared.sources.changes();
        loop {
            changes.borrow_and_update();
            let shared = &self.shared;
            let mut volumes = shared.volumes.lock().await;
            let filled = volumes.fill(&shared.pod, &shared.facts, shared.sources.as_ref()).await;
            drop(volumes);
            match filled {
                Ok(_) => {
                    self.state.send_if_modified(|state| state.reason.take().is_some());
                    return;
                }
                Err(fault) => self.state.send_modify(|state| {
                    let words = format!("{}: {}", fault.path, fault.message);
                    state.reason = Some(("FailedMount".to_owned(), words));
                }),
            }
            // What was asked of the API server and failed is asked again.
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Runs what initialises, one after the other; whether all have succeeded.
    async fn initialize(&mut self) -> bool {
        let never = self.shared.spec().restart_policy.as_deref() == Some("Never");
        for container in self.shared.spec().init_containers.unwrap_or_default() {
            let is_sidecar = container.restart_policy.as_deref() == Some("Always");
            let restart = match (is_sidecar, never) {
                (true, _) => Restart::Always,
                (false, true) => Restart::Never,
                (false, false) => Restart::OnFailure,
            };
            self.init.push((Container::start(self.shared.clone(), container, restart), is_sidecar));
            let index = self.init.len() - 1;
            let status = |life: &Life| life.init.get(index).map(|(it, _)| it.status.borrow().clone());
            self.until(|life| status(life).is_some_and(|it| if is_sidecar { it.started } else { it.over }))
                .await;
            let good = status(self).is_some_and(|it| is_sidecar || it.end().is_some_and(|it| it.success()));
            if !good {
                return false;
            }
        }
        true
    }

    /// An init container has failed for good.
    async fn settle_failure(&mut self) -> std::convert::Infallible {
        self.end_sidecars(Instant::now() + self.shared.grace).await;
        self.state.send_modify(|state| state.phase = "Failed");
        pending().await
    }

    async fn fail(&mut self, reason: &str, message: String) -> std::convert::Infallible {
        self.state.send_modify(|state| {
            state.phase = "Failed";
            state.reason = Some((reason.to_owned(), message));
        });
        pending().await
    }

    /// Publishes what changes until something holds.
    async fn until(&self, holds: impl Fn(&Life) -> bool) {
        loop {
            let started = self.init.iter().map(|(it, _)| it).chain(&self.containers);
            let mut statuses: Vec<_> = started.map(|it| it.status.clone()).collect();
            statuses.iter_mut().for_each(|status| {
                status.borrow_and_update();
            });
            // What makes it hold must not come between telling and looking.
            let holds = holds(self);
            self.publish();
            if holds {
                return;
            }
            let changes = statuses.into_iter().map(|mut status| {
                Box::pin(async move {
                    // One that has ended says nothing more.
                    if status.changed().await.is_err() {
                        pending::<()>().await;
                    }
                })
            });
            let changes: Vec<_> = changes.collect();
            if changes.is_empty() {
                return;
            }
            select_all(changes).await;
        }
    }

    /// Ends sidecars, the last one first, each when the one before is gone.
    async fn end_sidecars(&self, deadline: Instant) {
        while let Some((container, _)) = self.init.iter().rev().find(|(it, _)| !it.status.borrow().over) {
            container.stop(deadline);
            let name = container.name.clone();
            let over = |life: &Life| {
                life.init.iter().filter(|(it, _)| it.name == name).all(|(it, _)| it.status.borrow().over)
            };
            self.until(over).await;
        }
    }

    async fn end(&self, mut asked: watch::Receiver<Option<Duration>>) {
        let grace = |asked: &watch::Receiver<Option<Duration>>, shared: &Shared| {
            let asked = asked.borrow().unwrap_or(Duration::MAX);
            // No limit of the caller's means what the pod declares.
            if asked == Duration::MAX { shared.grace } else { asked.min(shared.settings.longest_end) }
        };
        let begun = Instant::now();
        let first = begun + grace(&asked, &self.shared);
        let mut deadline = first;
        asked.borrow_and_update();
        let shared = self.shared.clone();
        let ending = async {
            self.containers.iter().for_each(|it| it.stop(first));
            self.until(|life| life.containers.iter().all(|it| it.status.borrow().over)).await;
            self.end_sidecars(first).await;
        };
        tokio::pin!(ending);
        // Who is asked again is given the shorter time.
        let sooner = async {
            loop {
                tokio::select! {
                    changed = asked.changed() => if changed.is_err() {
                        return;
                    },
                    () = sleep_until(deadline + Duration::from_secs(4)) => return,
                }
                deadline = deadline.min(Instant::now() + grace(&asked, &shared));
                if deadline <= Instant::now() {
                    return;
                }
            }
        };
        tokio::select! {
            () = &mut ending => {}
            () = sooner => {}
        }
        let now = Instant::now();
        let everything = self.init.iter().map(|(it, _)| it).chain(&self.containers);
        join_all(everything.map(|it| async move {
            it.stop(now);
            it.ended().await;
        }))
        .await;
    }

    /// Tells how it is.
    fn publish(&self) {
        let spec = self.shared.spec();
        let started: BTreeMap<&str, Status> = self
            .init
            .iter()
            .map(|(it, _)| it)
            .chain(&self.containers)
            .map(|it| (it.name.as_str(), it.status.borrow().clone()))
            .collect();
        let statuses = |containers: &[core::Container]| -> Vec<(String, Status)> {
            let status = |it: &core::Container| {
                let status = started.get(it.name.as_str()).cloned();
                (it.name.clone(), status.unwrap_or_else(|| Status::waiting("PodInitializing")))
            };
            containers.iter().map(status).collect()
        };
        let init_containers = statuses(spec.init_containers.as_deref().unwrap_or_default());
        let containers = statuses(&spec.containers);
        let sidecars_ready = self.init.iter().filter(|(_, is)| *is).all(|(it, _)| it.status.borrow().ready);
        let ends: Vec<bool> = containers.iter().filter_map(|(_, it)| Some(it.end()?.success())).collect();
        let all_ended = !containers.is_empty() && ends.len() == containers.len();
        let phase = match (self.initialized, all_ended) {
            (true, true) if ends.iter().all(|good| *good) => "Succeeded",
            (true, true) => "Failed",
            // Until one has run at least once.
            (true, false) if containers.iter().any(|(_, it)| has_run(it)) => "Running",
            _ => "Pending",
        };
        let ready =
            self.initialized && !all_ended && sidecars_ready && containers.iter().all(|(_, it)| it.ready);
        self.state.send_if_modified(|state| {
            let before = state.clone();
            let ended = matches!(state.phase, "Failed" | "Succeeded");
            if !ended {
                state.phase = phase;
            }
            state.initialized = self.initialized;
            state.ready = ready;
            state.init_containers = init_containers;
            state.containers = containers;
            *state != before
        });
    }
}

fn has_run(status: &Status) -> bool {
    status.last.is_some() || !matches!(status.state, State::Waiting { .. })
}

/// Ends a task with itself.
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the volumes up to date.
async fn refresh(shared: Arc<Shared>) {
    /// After something failed.
    const AGAIN: Duration = Duration::from_secs(5);
    let mut changes = shared.sources.changes();
    loop {
        changes.borrow_and_update();
        let mut volumes = shared.volumes.lock().await;
        let filled = volumes.fill(&shared.pod, &shared.facts, shared.sources.as_ref()).await;
        drop(volumes);
        let next = match filled {
            Ok(next) => next,
            Err(fault) => {
                tracing::warn!("pod {}: {}: {}", shared.name(), fault.path, fault.message);
                Some(AGAIN)
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = async {
                match next {
                    Some(next) => sleep(next).await,
                    None => pending().await,
                }
            } => {}
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
