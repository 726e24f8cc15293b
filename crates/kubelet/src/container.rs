//! The life of one container, as a task of its own: environment and files, process, hooks, probes, restarts,
//! end. `Life::run` is the story; when it begins and ends is `pod.rs`'s to say.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1 as core;
use leno_node::{Bind, Capabilities, Exit, Process, ProcessSpec, Restart, Root};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::environment::{Environment, Fault};
use crate::image::Image;
use crate::pod::Shared;
use crate::probe::{self, Check, Probe, Target};

/// What a hook that starts with the container may take; Kubernetes sets no limit.
const HOOK_LIMIT: Duration = Duration::from_secs(3600);
/// What is left for a process whose preStop hook has used up the time.
const LEAST: Duration = Duration::from_secs(2);

/// How a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub state: State,
    /// How it ended before.
    pub last: Option<Ended>,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether its postStart hook and its startup probe have succeeded.
    pub started: bool,
    /// Whether it can be called.
    pub ready: bool,
    /// Whether the next container may start: its hook is done, well or not.
    pub(crate) launched: bool,
    /// Whether it has ended for good.
    pub over: bool,
    /// What it refers to and waits for.
    pub faults: Vec<Fault>,
    /// How long from its last end to its next start.
    pub delay: Option<Duration>,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not running yet, or again.
    Waiting {
        /// As `CrashLoopBackOff`.
        reason: String,
        /// In words.
        message: String,
    },
    /// It runs.
    Running {
        /// Since when.
        since: SystemTime,
        /// Its process, in the pid namespace of who runs this.
        pid: u32,
    },
    /// It has ended.
    Terminated(Ended),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// `Completed`, `Error` or another word.
    pub reason: String,
    /// In words, if there are some.
    pub message: String,
    /// How its process ended; `None`: it could not be started.
    pub exit: Option<Exit>,
    /// When it began.
    pub since: SystemTime,
    /// When it ended.
    pub until: SystemTime,
}

impl Ended {
    /// Whether it ended well.
    pub fn success(&self) -> bool {
        self.exit.is_some_and(Exit::success)
    }

    /// The code as a shell has it: 128 and the number for a signal.
    pub fn code(&self) -> i32 {
        match self.exit {
            Some(Exit::Code(code)) => code,
            Some(Exit::Signal(signal)) => 128 + signal,
            Some(Exit::Unknown) => 137,
            None => 128,
        }
    }
}

impl Status {
    /// One that waits for its turn.
    pub(crate) fn waiting(reason: &str) -> Status {
        let state = State::Waiting { reason: reason.to_owned(), message: String::new() };
        Status {
            state,
            last: None,
            restarts: 0,
            started: false,
            ready: false,
            launched: false,
            over: false,
            faults: Vec::new(),
            delay: None,
        }
    }

    /// How it ended, if it has for good.
    pub fn end(&self) -> Option<&Ended> {
        match &self.state {
            State::Terminated(ended) if self.over => Some(ended),
            _ => None,
        }
    }
}

/// A container that was started. Dropping it kills its process.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) status: watch::Receiver<Status>,
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<()>,
}

impl Container {
    /// Starts it.
    pub(crate) fn start(shared: Arc<Shared>, container: core::Container, restart: Restart) -> Container {
        let (sender, status) = watch::channel(Status::waiting("ContainerCreating"));
        let (stop, stopped) = watch::channel(None);
        let name = container.name.clone();
        let life = Life { shared, container, restart, status: sender, stop: stopped, root: None };
        Container { name, status, stop, task: tokio::spawn(life.run()) }
    }

    /// Asks it to end; at the given time it is killed.
    pub(crate) fn stop(&self, deadline: Instant) {
        let _ = self.stop.send(Some(deadline));
    }

    /// Waits until it has ended for good.
    pub(crate) async fn ended(&self) {
        let _ = self.status.clone().wait_for(|status| status.over).await;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.task.abort(); // which drops, and so kills, the process
    }
}

struct Life {
    shared: Arc<Shared>,
    container: core::Container,
    restart: Restart,
    status: watch::Sender<Status>,
    stop: watch::Receiver<Option<Instant>>,
    /// Its files, once made.
    root: Option<(Vec<Bind>, Root)>,
}

/// Why a process is not waited for any more.
enum Outcome {
    Exited(Exit),
    /// It was ended to be started again: why.
    Failed(Exit, String),
    /// It was asked to end for good.
    Stopped(Exit),
}

impl Life {
    async fn run(mut self) {
        let mut delay = None;
        let mut stop = self.stop.clone();
        loop {
            let begun = Instant::now();
            let since = SystemTime::now();
            let spec = tokio::select! {
                spec = self.prepare() => spec,
                _ = asked(&mut stop) => return self.never_ran(since),
            };
            let lines = self.shared.lines.clone();
            let outcome = match Process::spawn(self.shared.place.pod(), &spec, &lines).await {
                Ok(process) => {
                    let pid = process.pid();
                    self.set(|status| status.state = State::Running { since, pid });
                    Some(self.attend(&process, &spec).await)
                }
                Err(e) => {
                    let message = e.to_string();
                    self.ended("StartError", message, None, since);
                    None
                }
            };
            let stopped = matches!(outcome, Some(Outcome::Stopped(_)));
            let good = match outcome {
                Some(Outcome::Exited(exit) | Outcome::Stopped(exit)) => {
                    let reason = if exit.success() { "Completed" } else { "Error" };
                    let message = if exit.success() { String::new() } else { exit.to_string() };
                    self.ended(reason, message, Some(exit), since);
                    exit.success()
                }
                Some(Outcome::Failed(exit, message)) => {
                    self.ended("Error", message, Some(exit), since);
                    false
                }
                None => false,
            };
            let again = match self.restart {
                Restart::Always => true,
                Restart::OnFailure => !good,
                Restart::Never => false,
            };
            if stopped || !again {
                return self.set(|status| status.over = true);
            }
            let next = self.shared.settings.backoff.next(delay, begun.elapsed());
            delay = Some(next);
            self.set(|status| {
                status.delay = Some(next);
                let before = std::mem::replace(
                    &mut status.state,
                    State::Waiting {
                        reason: "CrashLoopBackOff".to_owned(),
                        message: format!("back-off {next:?} restarting failed container"),
                    },
                );
                if let State::Terminated(ended) = before {
                    status.last = Some(ended);
                }
            });
            if timeout(next, asked(&mut stop)).await.is_ok() {
                return self.set(|status| {
                    if let Some(last) = status.last.take() {
                        status.state = State::Terminated(last);
                    }
                    status.over = true;
                });
            }
            self.set(|status| {
                status.restarts += 1;
                status.delay = None;
            });
        }
    }

    /// What to run, once everything that it refers to is there.
    async fn prepare(&mut self) -> ProcessSpec {
        let mut changes = self.shared.sources.changes();
        loop {
            changes.borrow_and_update();
            match self.try_prepare().await {
                Ok(spec) => {
                    self.set(|status| status.faults.clear());
                    return spec;
                }
                Err((reason, faults)) => self.set(|status| {
                    let words: Vec<_> = faults.iter().map(Fault::to_string).collect();
                    status.state = State::Waiting { reason: reason.to_owned(), message: words.join("; ") };
                    status.faults = faults;
                }),
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn try_prepare(&mut self) -> Result<ProcessSpec, (&'static str, Vec<Fault>)> {
        const CONFIG: &str = "CreateContainerConfigError";
        let (shared, container) = (self.shared.clone(), &self.container);
        let name = container.image.as_deref().unwrap_or_default();
        let image = shared.images.find(name).cloned();
        let has_command = container.command.as_ref().is_some_and(|it| !it.is_empty());
        let image = match image {
            Some(image) => image,
            // A command of this machine needs no image.
            None if has_command && shared.settings.bare_commands => Image::default(),
            None => {
                let message = format!("nothing stands for the image {name:?} here");
                return Err(("ErrImagePull", vec![Fault { path: "image".to_owned(), message }]));
            }
        };
        let mut environment = Environment::default();
        environment.extend(image.environment.iter().cloned());
        environment.set("HOSTNAME", &shared.host_name);
        let namespace = shared.pod.metadata.namespace.as_deref().unwrap_or("default");
        let links = shared.pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
        let mut services = shared.sources.services(namespace);
        services.retain(|_| links);
        environment.add_services(&services);
        environment.extend(shared.settings.variables.iter().cloned());
        let faults =
            environment.add_container(&shared.pod, container, &shared.facts, shared.sources.as_ref());
        if !faults.is_empty() {
            return Err((CONFIG, faults));
        }
        let other = |message| vec![Fault { path: "securityContext".to_owned(), message }];
        let mut binds = image.files.clone();
        let volumes = shared.volumes.lock().await;
        binds.extend(volumes.binds(container, &environment).map_err(|faults| (CONFIG, faults))?);
        drop(volumes);
        let argv = argv(container, &image, &environment);
        let Identity { uid, gid, capabilities } =
            identity(&shared, container, &image).map_err(|it| (CONFIG, other(it)))?;
        let root = self.root(binds).await.map_err(|message| {
            ("CreateContainerError", vec![Fault { path: "volumeMounts".to_owned(), message }])
        })?;
        let directory = self.container.working_dir.clone().filter(|it| !it.is_empty()).or(image.directory);
        Ok(ProcessSpec {
            name: format!("{}/{}", shared.name(), self.container.name),
            argv,
            environment: environment.into_variables(),
            directory: directory.map(PathBuf::from),
            uid,
            gid,
            capabilities,
            root,
        })
    }

    /// Its files, which stay what they are over restarts.
    async fn root(&mut self, binds: Vec<Bind>) -> Result<Option<Root>, String> {
        let context = self.container.security_context.as_ref();
        let read_only = context.and_then(|it| it.read_only_root_filesystem) == Some(true);
        let Some(pod) = self.shared.place.pod().cloned() else {
            return match self.container.volume_mounts.as_ref().is_some_and(|it| !it.is_empty()) {
                true => Err("volumes can only be mounted in namespaces".to_owned()),
                false => Ok(None),
            };
        };
        if !self.shared.settings.own_files && self.container.volume_mounts.iter().flatten().next().is_none() {
            return Ok(None);
        }
        if let Some((before, root)) = &self.root
            && *before == binds
        {
            return Ok(Some(root.clone()));
        }
        let scratch = self.shared.folder.join("roots").join(&self.container.name);
        let given = binds.clone();
        let make = move || {
            std::fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
            Root::create(&pod, &scratch, &given, read_only).map_err(|e| e.to_string())
        };
        let root = tokio::task::spawn_blocking(make).await.map_err(|e| e.to_string())??;
        self.root = Some((binds, root.clone()));
        Ok(Some(root))
    }

    /// From the start of a process to its end.
    async fn attend(&self, process: &Process, spec: &ProcessSpec) -> Outcome {
        let mut stop = self.stop.clone();
        let target = self.target(spec);
        let tending = async {
            if let Err(message) = self.post_start(&target).await {
                self.set(|status| status.launched = true);
                return (message, None);
            }
            self.set(|status| status.launched = true);
            self.probe(&target).await
        };
        let (message, grace) = tokio::select! {
            biased;
            deadline = asked(&mut stop) => {
                return Outcome::Stopped(self.end_sooner(process, &target, deadline, stop).await);
            }
            exit = process.wait() => return Outcome::Exited(exit),
            failure = tending => failure,
        };
        let deadline = Instant::now() + grace.unwrap_or(self.shared.grace);
        let exit = tokio::select! {
            exit = self.end(process, &target, deadline) => exit,
            sooner = asked(&mut stop) => {
                let limit = sooner.min(deadline).saturating_duration_since(Instant::now());
                return Outcome::Stopped(process.stop(limit).await);
            }
        };
        Outcome::Failed(exit, message)
    }

    fn target<'a>(&'a self, spec: &'a ProcessSpec) -> Target<'a> {
        Target {
            address: self.shared.facts.address,
            from: &self.shared.probes_from,
            place: &self.shared.place,
            process: spec,
        }
    }

    async fn post_start(&self, target: &Target<'_>) -> Result<(), String> {
        let hook = self.container.lifecycle.as_ref().and_then(|it| it.post_start.as_ref());
        let Some(hook) = hook else { return Ok(()) };
        let failed = |message| format!("PostStartHook failed: {message}");
        probe::hook(hook, &self.container).map_err(failed)?.run(target, HOOK_LIMIT).await.map_err(failed)
    }

    /// Probes it for as long as it is well. Returns what was wrong, and what time that gives it to end.
    async fn probe(&self, target: &Target<'_>) -> (String, Option<Duration>) {
        let begun = Instant::now();
        let declared = |probe: &Option<core::Probe>| {
            // Those that cannot be done were refused with the pod.
            probe.as_ref().and_then(|it| Probe::declared(it, &self.container).ok())
        };
        let look = self.shared.settings.look;
        if let Some(probe) = declared(&self.container.startup_probe) {
            let mut startup = Watch::new(probe, begun, look);
            loop {
                sleep_until(startup.next).await;
                let result = startup.probe.run(target).await;
                match startup.judge(&result, false) {
                    Verdict::Good => break,
                    Verdict::Bad => {
                        let message = result.err().unwrap_or_default();
                        return (format!("Startup probe failed: {message}"), startup.probe.grace);
                    }
                    Verdict::Open => {}
                }
            }
        }
        self.set(|status| status.started = true);
        let mut liveness = declared(&self.container.liveness_probe).map(|it| Watch::new(it, begun, None));
        let readiness = declared(&self.container.readiness_probe).or_else(|| {
            let ports = self.shared.settings.wait_for_ports;
            ports.then(|| Probe::of_ports(&self.container, &self.shared.service_ports()))
        });
        let mut readiness =
            readiness.filter(|probe| probe.check != Check::Lives).map(|probe| Watch::new(probe, begun, look));
        if readiness.is_none() {
            self.set(|status| status.ready = true);
        }
        loop {
            let of = |watch: &Option<Watch>| watch.as_ref().map(|watch| watch.next);
            let Some(next) = [of(&liveness), of(&readiness)].into_iter().flatten().min() else {
                return std::future::pending().await;
            };
            sleep_until(next).await;
            if let Some(watch) = liveness.as_mut().filter(|watch| watch.next <= next) {
                let result = watch.probe.run(target).await;
                if let Verdict::Bad = watch.judge(&result, true) {
                    let message = result.err().unwrap_or_default();
                    return (format!("Liveness probe failed: {message}"), watch.probe.grace);
                }
            }
            if let Some(watch) = readiness.as_mut().filter(|watch| watch.next <= next) {
                let result = watch.probe.run(target).await;
                let ready = self.status.borrow().ready;
                match watch.judge(&result, ready) {
                    Verdict::Good => self.set(|status| status.ready = true),
                    Verdict::Bad => self.set(|status| status.ready = false),
                    Verdict::Open => {}
                }
            }
        }
    }

    /// preStop, SIGTERM, and SIGKILL at the deadline.
    async fn end(&self, process: &Process, target: &Target<'_>, deadline: Instant) -> Exit {
        let left = || deadline.saturating_duration_since(Instant::now());
        let hook = self.container.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref());
        let hook = hook.and_then(|it| probe::hook(it, &self.container).ok());
        let Some(hook) = hook.filter(|_| !left().is_zero()) else { return process.stop(left()).await };
        let both = async {
            tokio::select! {
                result = hook.run(target, HOOK_LIMIT) => result,
                _ = process.wait() => Ok(()),
            }
        };
        if let Ok(Err(message)) = timeout_at(deadline, both).await {
            tracing::warn!("{}: PreStopHook failed: {message}", target.process.name);
        }
        process.stop(left().max(LEAST)).await
    }

    /// [`Life::end`], unless it is asked again and given less time.
    async fn end_sooner(
        &self,
        process: &Process,
        target: &Target<'_>,
        deadline: Instant,
        mut stop: watch::Receiver<Option<Instant>>,
    ) -> Exit {
        let sooner = async {
            loop {
                if stop.changed().await.is_err() {
                    return Instant::now();
                }
                match *stop.borrow_and_update() {
                    Some(sooner) if sooner < deadline => return sooner,
                    _ => {}
                }
            }
        };
        tokio::select! {
            exit = self.end(process, target, deadline) => exit,
            sooner = sooner => process.stop(sooner.saturating_duration_since(Instant::now())).await,
        }
    }

    fn ended(&self, reason: &str, message: String, exit: Option<Exit>, since: SystemTime) {
        self.set(|status| {
            let ended = Ended { reason: reason.to_owned(), message, exit, since, until: SystemTime::now() };
            status.state = State::Terminated(ended);
            (status.started, status.ready, status.launched) = (false, false, true);
        });
    }

    fn never_ran(&self, since: SystemTime) {
        self.ended("ContainerStatusUnknown", String::new(), None, since);
        self.set(|status| status.over = true);
    }

    fn set(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }
}

/// Waits until it is asked to end: when it is killed at the latest.
async fn asked(stop: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match stop.wait_for(Option::is_some).await {
        Ok(deadline) => deadline.unwrap_or_else(Instant::now),
        Err(_) => Instant::now(), // the pod is gone
    }
}

/// The program with its arguments.
fn argv(container: &core::Container, image: &Image, environment: &Environment) -> Vec<String> {
    let expand = |words: &Vec<String>| words.iter().map(|word| environment.expand(word)).collect::<Vec<_>>();
    let command = container.command.as_ref().filter(|it| !it.is_empty() && !image.keeps_entrypoint);
    let args = container.args.as_ref().filter(|it| !it.is_empty());
    let mut argv = command.map_or_else(|| image.entrypoint.clone(), expand);
    match (args, command) {
        (Some(args), _) => argv.extend(expand(args)),
        (None, Some(_)) => {}
        (None, None) => argv.extend(image.arguments.iter().cloned()),
    }
    argv
}

/// Who a process is.
#[derive(Default)]
struct Identity {
    uid: Option<u32>,
    gid: Option<u32>,
    capabilities: Option<Capabilities>,
}

/// User, group and capabilities.
fn identity(shared: &Shared, container: &core::Container, image: &Image) -> Result<Identity, String> {
    let of_pod = shared.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let number = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    let uid = own.and_then(|it| it.run_as_user).or(of_pod.and_then(|it| it.run_as_user));
    let gid = own.and_then(|it| it.run_as_group).or(of_pod.and_then(|it| it.run_as_group));
    let uid = number(uid).or(image.user);
    let not_root = own.and_then(|it| it.run_as_non_root).or(of_pod.and_then(|it| it.run_as_non_root));
    if not_root == Some(true) && uid.unwrap_or(0) == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    if shared.place.pod().is_none() {
        return Ok(Identity::default());
    }
    if !shared.settings.users {
        return Ok(Identity { capabilities: Some(Capabilities::NONE), ..Identity::default() });
    }
    if own.and_then(|it| it.privileged) == Some(true) {
        return Ok(Identity { uid, gid: number(gid), capabilities: None });
    }
    // As with container runtimes only root has any.
    let mut kept = if uid.unwrap_or(0) == 0 { Capabilities::CONTAINER } else { Capabilities::NONE };
    if uid.unwrap_or(0) == 0
        && let Some(changes) = own.and_then(|it| it.capabilities.as_ref())
    {
        let named = |names: &Option<Vec<String>>| {
            let names = names.iter().flatten().filter_map(|name| Capabilities::named(name));
            names.fold(Capabilities::NONE, Capabilities::and)
        };
        kept = kept.without(named(&changes.drop)).and(named(&changes.add));
    }
    // Without an entry in a user database the group is root's.
    let gid = number(gid).or(uid.map(|_| 0));
    Ok(Identity { uid, gid, capabilities: Some(kept) })
}

/// A probe over time.
struct Watch {
    probe: Probe,
    next: Instant,
    /// How often to look while it has not succeeded; `None`: as often as ever.
    look: Option<Duration>,
    failures: u32,
    successes: u32,
    /// When a failure last counted, for looking more often must not make it fail sooner.
    counted: Option<Instant>,
}

enum Verdict {
    Good,
    Bad,
    /// Neither has been seen often enough.
    Open,
}

impl Watch {
    fn new(probe: Probe, begun: Instant, look: Option<Duration>) -> Watch {
        let next = (begun + probe.delay).max(Instant::now());
        Watch { probe, next, look, failures: 0, successes: 0, counted: None }
    }

    /// What a result means. `good`: whether it has been good before.
    fn judge(&mut self, result: &Result<(), String>, good: bool) -> Verdict {
        let now = Instant::now();
        let far = Duration::from_secs(24 * 3600);
        let period = self.probe.period.min(far);
        let often = self.look.map_or(period, |look| look.min(period));
        if result.is_ok() {
            self.failures = 0;
            self.counted = None;
            self.successes += 1;
            let enough = good || self.successes >= self.probe.successes;
            self.next = now + if enough { period } else { often };
            return if enough { Verdict::Good } else { Verdict::Open };
        }
        self.successes = 0;
        if self.counted.is_none_or(|before| now.duration_since(before) >= period) {
            self.failures += 1;
            self.counted = Some(now);
        }
        self.next = now + if good { period } else { often };
        if self.failures < self.probe.failures {
            return Verdict::Open;
        }
        self.failures = 0;
        self.next = now + often;
        Verdict::Bad
    }
}
