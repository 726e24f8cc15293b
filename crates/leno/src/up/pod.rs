//! The life of one pod, as a task of its own: namespaces, sidecar, applications, readiness, end.
//! `Life::run` is the story. What it learns it tells the cluster (`cluster.rs`), which alone decides
//! what is to run.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::{join_all, select_all};
use leno_node::{
    Backoff, Capabilities, Ipv4Net, Mode, Pod, PodSpec, ProcessSpec, Redirect, Restart, State, Status,
    Supervisor,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::bootstrap::bootstrap;
use super::environment;
use super::hosts;
use super::http;
use super::layout::{Layout, Owner, STATUS_PORT};
use super::objects::{Key, Objects};
use super::plan::{ContainerPlan, Plan, PodPlan, ProxyRole, RestartPolicy, matches};
use super::probe::Probe;
use super::site::{Place, Site};
use super::state::Phase;

/// What pods may look at: replaced as a whole when something changes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct World {
    pub(crate) objects: Objects,
    pub(crate) plan: Plan,
    /// The pods that can be called.
    pub(crate) ready: BTreeSet<Key>,
    /// Virtual addresses of ServiceEntry hosts.
    pub(crate) entries: BTreeMap<String, Ipv4Addr>,
}

/// What a pod tells the cluster.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// It has a place: ports into it can be published.
    Placed(Place),
    /// Its condition has changed.
    Condition(Condition),
    /// Something in its manifest cannot be done: field path within the pod, and message.
    Fault(String, String),
    /// It has ended, and nothing is left of it.
    Gone,
}

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) phase: Phase,
    /// The phase in more words: `waits for its proxy`, `app: exit code 1, again in 200ms`.
    pub(crate) words: String,
    /// How often its processes were started again.
    pub(crate) restarts: u32,
}

/// How a pod is to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Between saying so and asking processes to end, so that nobody calls it any more.
    pub(crate) drain: Duration,
    /// The most that a process may take to end.
    pub(crate) limit: Duration,
}

/// A pod that runs. Dropping it kills its processes.
#[derive(Debug)]
pub(crate) struct Handle {
    ending: watch::Sender<Option<Ending>>,
}

impl Handle {
    /// Asks it to end; it tells when it has.
    pub(crate) fn end(&self, ending: Ending) {
        let _ = self.ending.send(Some(ending));
    }
}

/// How often to look whether something that starts is ready.
const LOOK: Duration = Duration::from_millis(50);
/// Kubernetes' default time for a process to end, cut to what a person waits for.
const PROXY_LIMIT: Duration = Duration::from_secs(3);

/// Starts a pod.
pub(crate) fn start(
    plan: PodPlan,
    site: Arc<Site>,
    world: watch::Receiver<Arc<World>>,
    news: mpsc::UnboundedSender<(Key, News)>,
) -> Handle {
    let (ending, receiver) = watch::channel(None);
    let condition = Condition { phase: Phase::NotReady, words: String::new(), restarts: 0 };
    let life = Life {
        place: Place::Here,
        hosts_file: site.folder.join("hosts").join(format!("{}-{}", plan.key.namespace, plan.key.name)),
        hosts: String::new(),
        proxy: None,
        apps: Vec::new(),
        condition,
        plan,
        site,
        world,
        news,
    };
    tokio::spawn(life.run(receiver));
    Handle { ending }
}

struct Life {
    plan: PodPlan,
    site: Arc<Site>,
    world: watch::Receiver<Arc<World>>,
    news: mpsc::UnboundedSender<(Key, News)>,
    place: Place,
    hosts_file: PathBuf,
    /// What the file holds.
    hosts: String,
    proxy: Option<Proxy>,
    apps: Vec<App>,
    condition: Condition,
}

/// The proxy's process.
struct Proxy {
    supervisor: Supervisor,
    status: watch::Receiver<Status>,
}

/// An application's process, and how its readiness stands.
struct App {
    supervisor: Supervisor,
    status: watch::Receiver<Status>,
    environment: Vec<(String, String)>,
    probe: Probe,
    ready: bool,
    failures: u32,
    /// The number of restarts that `ready` is about.
    checked: Option<u32>,
    next: Instant,
}

impl Life {
    async fn run(mut self, mut ending: watch::Receiver<Option<Ending>>) {
        let ending = tokio::select! {
            never = self.live() => match never {},
            ending = ending.wait_for(Option::is_some) => match ending {
                Ok(ending) => *ending,
                Err(_) => None, // the cluster is gone
            },
        };
        if let Some(ending) = ending {
            self.end(ending).await;
        }
        self.tell(News::Gone);
    }

    /// Everything until it is to end.
    async fn live(&mut self) -> std::convert::Infallible {
        if let Err(error) = self.set_up().await {
            self.condition(Phase::NotReady, format!("{error:#}"));
            return pending().await;
        }
        if self.plan.proxy != ProxyRole::None {
            self.start_proxy().await;
        }
        if !self.run_init_containers().await {
            self.condition(Phase::Failed, "an init container failed".to_owned());
            return pending().await;
        }
        self.start_apps().await;
        self.watch().await
    }

    async fn set_up(&mut self) -> anyhow::Result<()> {
        self.condition(Phase::NotReady, "starting".to_owned());
        if let Some(node) = self.site.node.clone() {
            self.write_hosts().context("cannot write its hosts file")?;
            let spec = PodSpec {
                name: self.plan.key.name.clone(),
                address: self.plan.address,
                hosts: Some(self.hosts_file.clone()),
                resolv_conf: None,
            };
            let redirect = (self.plan.proxy == ProxyRole::Sidecar).then(|| {
                let defaults = match self.site.layout {
                    Layout::Namespaces { owner: Owner::User, .. } => Redirect::default(),
                    _ => Redirect::by_mark(),
                };
                let mut redirect = self.plan.capture.redirect(defaults);
                // The node has nothing but the control plane, which the proxy must reach before it can
                // know of anything.
                redirect
                    .exclude_outbound_cidrs
                    .push(Ipv4Net { address: self.site.layout.node(), prefix: 32 });
                redirect
            });
            let create = move || {
                let pod = Pod::create(&node, &spec)?;
                if let Some(redirect) = redirect {
                    pod.redirect(&redirect)?;
                }
                Ok::<_, leno_node::NodeError>(pod)
            };
            self.place = Place::Namespace(tokio::task::spawn_blocking(create).await??);
        }
        self.tell(News::Placed(self.place.clone()));
        Ok(())
    }

    /// Starts the proxy, and waits until it is ready.
    async fn start_proxy(&mut self) {
        let text = bootstrap(&self.plan, &self.site.layout, &self.site.mesh).to_string();
        let name = format!("{}-{}.json", self.plan.key.namespace, self.plan.key.name);
        let file = self.site.folder.join("proxies").join(name);
        if let Err(e) = std::fs::write(&file, &text) {
            self.condition(Phase::NotReady, format!("cannot write {}: {e}", file.display()));
            return pending().await;
        }
        let spec = self.site.proxy(&self.plan.key.name, &text, &file);
        let supervisor = self.supervise(spec, Restart::Always);
        let mut status = supervisor.status();
        self.proxy = Some(Proxy { supervisor, status: status.clone() });
        loop {
            let state = status.borrow_and_update().clone();
            self.condition(
                Phase::NotReady,
                words("istio-proxy", &state).unwrap_or("waits for its proxy".to_owned()),
            );
            if self.proxy_is_ready().await {
                return;
            }
            tokio::select! {
                _ = status.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn proxy_is_ready(&self) -> bool {
        let address = SocketAddr::new(self.plan.address.into(), STATUS_PORT);
        let Ok(stream) = self.place.connect(address).await else { return false };
        let answer = http::get(stream, "localhost", "/healthz/ready", &[], Duration::from_secs(1)).await;
        answer.is_ok_and(|(status, _)| status == 200)
    }

    /// Runs them one after the other; whether all have succeeded.
    async fn run_init_containers(&mut self) -> bool {
        let restart =
            if self.plan.restart == RestartPolicy::Never { Restart::Never } else { Restart::OnFailure };
        for container in self.plan.init_containers.clone() {
            let stays = container.container.restart_policy.as_deref() == Some("Always");
            let (spec, environment) = self.command(&container).await;
            if stays {
                self.add_app(&container, spec, environment, Restart::Always);
                continue;
            }
            let supervisor = self.supervise(spec, restart);
            let mut status = supervisor.status();
            loop {
                let state = status.borrow_and_update().clone();
                if state.state == State::Ended {
                    if !state.last_exit.is_some_and(leno_node::Exit::success) {
                        return false;
                    }
                    break;
                }
                let words = words(&container.name, &state);
                self.condition(Phase::NotReady, words.unwrap_or(format!("{} runs", container.name)));
                if status.changed().await.is_err() && status.borrow().state != State::Ended {
                    return false;
                }
            }
        }
        true
    }

    async fn start_apps(&mut self) {
        let restart = match self.plan.restart {
            RestartPolicy::Always => Restart::Always,
            RestartPolicy::OnFailure => Restart::OnFailure,
            RestartPolicy::Never => Restart::Never,
        };
        for container in self.plan.containers.clone() {
            let (spec, environment) = self.command(&container).await;
            self.add_app(&container, spec, environment, restart);
        }
    }

    fn add_app(
        &mut self,
        container: &ContainerPlan,
        spec: ProcessSpec,
        environment: Vec<(String, String)>,
        restart: Restart,
    ) {
        let probe = Probe::of(container, &self.service_ports()).unwrap_or_else(|message| {
            self.tell(News::Fault(String::new(), format!("{}: {message}, its port counts", container.name)));
            Probe::of_ports(container, &self.service_ports())
        });
        let supervisor = self.supervise(spec, restart);
        self.apps.push(App {
            status: supervisor.status(),
            supervisor,
            environment,
            probe,
            ready: false,
            failures: 0,
            checked: None,
            next: Instant::now(),
        });
    }

    /// The ports that services lead to at this pod, by number.
    fn service_ports(&self) -> Vec<u16> {
        use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
        let world = self.world.borrow();
        let services =
            world.objects.services.values().filter(|it| it.key.namespace == self.plan.key.namespace);
        let specs = services.filter_map(|service| service.object.spec.as_ref()).filter(|spec| {
            spec.selector.as_ref().is_some_and(|it| !it.is_empty() && matches(it, &self.plan.labels))
        });
        let ports = specs.flat_map(|spec| spec.ports.iter().flatten());
        ports
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| match &port.target_port {
                Some(IntOrString::Int(target)) if *target != 0 => u16::try_from(*target).ok(),
                Some(IntOrString::String(_)) => None,
                _ => u16::try_from(port.port).ok(),
            })
            .collect()
    }

    /// The command of a container, once everything that it refers to is there.
    async fn command(&mut self, container: &ContainerPlan) -> (ProcessSpec, Vec<(String, String)>) {
        let mut world = self.world.clone();
        loop {
            let now = world.borrow_and_update().clone();
            let made = environment::command(
                &self.plan,
                container,
                &now.objects,
                &now.plan,
                &self.site.layout,
                &self.site.inherited,
            );
            let faults = match made {
                Ok(command) => {
                    let directory = container.container.working_dir.clone().map(PathBuf::from);
                    let directory = directory.filter(|directory| directory.is_dir());
                    let spec = ProcessSpec {
                        name: format!("{}/{}", self.plan.key.name, container.name),
                        argv: command.argv,
                        environment: command.environment.clone(),
                        directory: directory.or(command.directory.map(PathBuf::from)),
                        capabilities: self.site.node.is_some().then_some(Capabilities::NONE),
                        ..ProcessSpec::default()
                    };
                    return (spec, command.environment);
                }
                Err(faults) => faults,
            };
            let index = self.plan.containers.iter().position(|it| it.name == container.name);
            let prefix = index.map_or_else(String::new, |index| format!("spec.containers[{index}]."));
            for (path, message) in &faults {
                self.tell(News::Fault(format!("{prefix}{path}"), format!("{message}; the pod waits for it")));
            }
            let message = faults.first().map(|(_, message)| message.clone()).unwrap_or_default();
            self.condition(Phase::NotReady, format!("{}: {message}", container.name));
            if world.changed().await.is_err() {
                return pending().await;
            }
        }
    }

    fn supervise(&self, spec: ProcessSpec, restart: Restart) -> Supervisor {
        let pod = self.place.pod().cloned();
        Supervisor::start(pod, spec, restart, Backoff::default(), self.site.lines.clone())
    }

    /// Keeps an eye on everything.
    async fn watch(&mut self) -> std::convert::Infallible {
        let mut proxy_ready = self.proxy.is_some();
        loop {
            let mut next = None;
            if let Some(proxy) = &mut self.proxy {
                let runs = matches!(proxy.status.borrow_and_update().state, State::Running { .. });
                if !runs {
                    proxy_ready = false;
                } else if !proxy_ready {
                    proxy_ready = self.proxy_is_ready().await;
                }
                if !proxy_ready {
                    next = Some(Instant::now() + LOOK);
                }
            }
            self.check_apps().await;
            let of_apps = self.apps.iter().filter_map(App::next_check).min();
            next = next.into_iter().chain(of_apps).min();
            let (phase, words) = self.judge(proxy_ready);
            self.condition(phase, words);
            if matches!(phase, Phase::Succeeded | Phase::Failed)
                && let Some(proxy) = self.proxy.take()
            {
                // As Kubernetes does it with sidecars of pods that run to their end.
                proxy.supervisor.stop(PROXY_LIMIT).await;
            }
            self.wait_for_change(next).await;
            // A hosts file that cannot be written now is written with the next change.
            let _ = self.write_hosts();
        }
    }

    async fn check_apps(&mut self) {
        for app in &mut self.apps {
            let status = app.status.borrow_and_update().clone();
            if !matches!(status.state, State::Running { .. }) {
                app.ready = false;
                app.checked = None;
                continue;
            }
            if app.checked != Some(status.restarts) {
                app.checked = Some(status.restarts);
                app.ready = false;
                app.failures = 0;
                app.next = Instant::now();
            }
            if app.next_check().is_none_or(|next| Instant::now() < next) {
                continue;
            }
            if app.probe.run(&self.plan, &self.place, &app.environment).await {
                app.ready = true;
                app.failures = 0;
                app.next = Instant::now() + app.probe.period.min(Duration::from_secs(3600));
            } else {
                app.failures += 1;
                app.ready &= app.failures < app.probe.failures;
                app.next = Instant::now() + if app.ready { app.probe.period } else { LOOK };
            }
        }
    }

    fn judge(&self, proxy_ready: bool) -> (Phase, String) {
        let states: Vec<Status> = self.apps.iter().map(|app| app.status.borrow().clone()).collect();
        if !states.is_empty() && states.iter().all(|status| status.state == State::Ended) {
            let failed = states.iter().any(|status| !status.last_exit.is_some_and(leno_node::Exit::success));
            let last = states.iter().find_map(|status| status.last_exit);
            let words = last.map_or_else(|| "cannot be started".to_owned(), |exit| exit.to_string());
            return (if failed { Phase::Failed } else { Phase::Succeeded }, words);
        }
        for (app, status) in self.apps.iter().zip(&states) {
            let name = app.supervisor.name().rsplit('/').next().unwrap_or_default();
            if let Some(words) = words(name, status) {
                return (Phase::NotReady, words);
            }
        }
        if let Some(proxy) = &self.proxy
            && !proxy_ready
        {
            let words = words("istio-proxy", &proxy.status.borrow());
            return (Phase::NotReady, words.unwrap_or("waits for its proxy".to_owned()));
        }
        if let Some(app) =
            self.apps.iter().find(|app| !app.ready && app.status.borrow().state != State::Ended)
        {
            let name = app.supervisor.name().rsplit('/').next().unwrap_or_default();
            return (Phase::NotReady, format!("{name} is not ready yet"));
        }
        (Phase::Ready, String::new())
    }

    /// Until a process, the world or the clock has something new.
    async fn wait_for_change(&mut self, next: Option<Instant>) {
        let proxy = self.proxy.as_ref().map(|proxy| proxy.status.clone());
        let statuses = self.apps.iter().map(|app| app.status.clone()).chain(proxy);
        let changes: Vec<_> = statuses
            .map(|mut status| {
                Box::pin(async move {
                    // One that has ended says nothing more.
                    if status.changed().await.is_err() {
                        pending::<()>().await;
                    }
                })
            })
            .collect();
        let changed = async {
            if changes.is_empty() {
                return pending().await;
            }
            select_all(changes).await;
        };
        let clock = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = clock => {}
            world = self.world.changed() => if world.is_err() {
                pending::<()>().await;
            }
        }
    }

    async fn end(&mut self, ending: Ending) {
        self.condition(Phase::Terminating, "is asked to end".to_owned());
        let grace = self.plan.spec.termination_grace_period_seconds.and_then(|it| u64::try_from(it).ok());
        let limit = Duration::from_secs(grace.unwrap_or(30)).min(ending.limit);
        tokio::time::sleep(ending.drain).await;
        join_all(std::mem::take(&mut self.apps).into_iter().map(|app| app.supervisor.stop(limit))).await;
        if let Some(proxy) = self.proxy.take() {
            proxy.supervisor.stop(PROXY_LIMIT.min(ending.limit)).await;
        }
        if let Place::Namespace(pod) = std::mem::replace(&mut self.place, Place::Here) {
            let _ = tokio::task::spawn_blocking(move || pod.remove()).await;
        }
        let _ = std::fs::remove_file(&self.hosts_file);
    }

    /// Rewrites the hosts file in place, if it is to be different: it is mounted, so a new file of
    /// the same name would not be seen.
    fn write_hosts(&mut self) -> std::io::Result<()> {
        if self.site.node.is_none() {
            return Ok(());
        }
        let world = self.world.borrow().clone();
        let text = hosts::hosts(&self.plan, &world.plan, &world.objects, &world.ready, &world.entries);
        if text != self.hosts {
            std::fs::write(&self.hosts_file, &text)?;
            self.hosts = text;
        }
        Ok(())
    }

    fn condition(&mut self, phase: Phase, words: String) {
        let of_proxy = self.proxy.as_ref().map(|proxy| proxy.status.borrow().restarts);
        let of_apps = self.apps.iter().map(|app| app.status.borrow().restarts);
        let condition = Condition { phase, words, restarts: of_apps.chain(of_proxy).sum() };
        if condition != self.condition {
            self.condition = condition.clone();
            self.tell(News::Condition(condition));
        }
    }

    fn tell(&self, news: News) {
        // Nobody listens when the mesh is ending.
        let _ = self.news.send((self.plan.key.clone(), news));
    }
}

impl App {
    /// When to check again; `None`: when something changes.
    fn next_check(&self) -> Option<Instant> {
        let runs = matches!(self.status.borrow().state, State::Running { .. });
        (runs && !(self.ready && self.probe.period == Duration::MAX)).then_some(self.next)
    }
}

/// What keeps a process from running, in words; `None` if it runs.
fn words(name: &str, status: &Status) -> Option<String> {
    match &status.state {
        State::Running { .. } | State::Ended => None,
        State::Starting => Some(format!("{name} starts")),
        State::BackOff { reason, delay } => Some(format!("{name}: {reason}, again in {delay:?}")),
        State::Stopped => Some(format!("{name} is stopped")),
    }
}

/// How redirection can tell proxies from applications: by their user, where any user may run them.
pub(crate) fn owner(mode: Mode, proxy_is_open: bool) -> Owner {
    match mode {
        Mode::Root if proxy_is_open => Owner::User,
        Mode::Root | Mode::User => Owner::Mark,
    }
}
