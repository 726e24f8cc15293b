//! The life of one pod, as a task of its own: namespaces, sidecar, applications, readiness, end.
//! `Life::run` is the story. What it learns it tells the cluster (`cluster.rs`), which alone decides
//! what is to run.

use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leno_base::Cidr;
use leno_kubelet::{Facts, Place, PodState};
use leno_node::{Backoff, Mode, Pod, PodSpec, ProcessSpec, Redirect, Restart, State, Status, Supervisor};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::bootstrap::bootstrap;
use super::hosts;
use super::layout::{HTTP_PROXY_PORT, Layout, Owner, STATUS_PORT};
use super::objects::Key;
use super::plan::{ContainerPlan, PodPlan, ProxyRole, matches};
use super::site::Site;
use super::sources::WorldSources;
use super::state::{NODE_NAME, Phase};

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
    sources: WorldSources,
    news: mpsc::UnboundedSender<(Key, News)>,
) -> Handle {
    let (ending, receiver) = watch::channel(None);
    let condition = Condition { phase: Phase::NotReady, words: String::new(), restarts: 0 };
    let life = Life {
        place: Place::Here,
        hosts_file: site.folder.join("hosts").join(format!("{}-{}", plan.key.namespace, plan.key.name)),
        hosts: String::new(),
        proxy: None,
        containers: None,
        state: None,
        condition,
        plan,
        site,
        sources,
        news,
    };
    tokio::spawn(life.run(receiver));
    Handle { ending }
}

struct Life {
    plan: PodPlan,
    site: Arc<Site>,
    sources: WorldSources,
    news: mpsc::UnboundedSender<(Key, News)>,
    place: Place,
    hosts_file: PathBuf,
    /// What the file holds.
    hosts: String,
    proxy: Option<Proxy>,
    containers: Option<leno_kubelet::Handle>,
    /// Of the containers.
    state: Option<watch::Receiver<PodState>>,
    condition: Condition,
}

/// The proxy's process.
struct Proxy {
    supervisor: Supervisor,
    status: watch::Receiver<Status>,
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
        self.start_containers();
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
                redirect.exclude_outbound_cidrs.push(Cidr::host(self.site.layout.node().into()));
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
        let answer =
            leno_kubelet::http::get(stream, "localhost", "/healthz/ready", &[], Duration::from_secs(1)).await;
        answer.is_ok_and(|(status, _)| status == 200)
    }

    /// Hands them over to the kubelet.
    fn start_containers(&mut self) {
        if self.plan.containers.is_empty() {
            return;
        }
        let mut images = leno_kubelet::Images::default();
        for it in self.plan.init_containers.iter().chain(&self.plan.containers) {
            let name = it.container.image.as_deref().unwrap_or_default();
            images.add(name, it.program.image(&self.site.inherited));
        }
        let mounts = self.site.layout.mounts();
        let (loopback, folder) = (self.site.layout.is_loopback(), &self.site.folder);
        let name = format!("{}-{}", self.plan.key.namespace, self.plan.key.name);
        self.containers = Some(leno_kubelet::start(leno_kubelet::Start {
            pod: object(&self.plan, mounts),
            place: self.place.clone(),
            // Past its sidecar.
            probes_from: self.place.clone(),
            facts: Facts {
                address: self.plan.address,
                node: NODE_NAME.to_owned(),
                node_address: self.site.layout.node(),
                capacity: leno_kubelet::capacity(),
            },
            images: Arc::new(images),
            sources: Arc::new(self.sources.clone()),
            folder: folder.join("pods").join(name),
            service_ports: self.service_ports(),
            settings: leno_kubelet::Settings {
                look: Some(LOOK),
                wait_for_ports: true,
                users: mounts,
                own_files: false,
                bare_commands: false,
                variables: if loopback { of_loopback(&self.plan) } else { Vec::new() },
                ..leno_kubelet::Settings::default()
            },
            lines: self.site.lines.clone(),
        }));
        self.state = self.containers.as_ref().map(leno_kubelet::Handle::state);
    }

    /// The ports that services lead to at this pod, by number.
    fn service_ports(&self) -> Vec<u16> {
        use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
        let world = self.sources.world.borrow();
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
            if let Some(state) = &mut self.state {
                state.borrow_and_update();
            }
            self.tell_faults();
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

    fn judge(&mut self, proxy_ready: bool) -> (Phase, String) {
        let state = self.containers.as_ref().map(|it| it.state().borrow().clone());
        if let Some(state) = &state
            && matches!(state.phase, "Succeeded" | "Failed")
        {
            let phase = if state.phase == "Failed" { Phase::Failed } else { Phase::Succeeded };
            return (phase, why_ended(state));
        }
        for (name, status) in state.iter().flat_map(PodState::all) {
            if let Some(words) = hindrance(name, status) {
                return (Phase::NotReady, words);
            }
        }
        if let Some((_, words)) = state.as_ref().and_then(|state| state.reason.clone()) {
            return (Phase::NotReady, words);
        }
        if let Some(proxy) = &self.proxy
            && !proxy_ready
        {
            let words = words("istio-proxy", &proxy.status.borrow());
            return (Phase::NotReady, words.unwrap_or("waits for its proxy".to_owned()));
        }
        let Some(state) = state else { return (Phase::Ready, String::new()) };
        if state.ready {
            return (Phase::Ready, String::new());
        }
        let open = state.all().find(|(_, status)| !status.ready && !status.over);
        match open {
            Some((name, _)) if !state.initialized => (Phase::NotReady, format!("{name} runs")),
            Some((name, _)) => (Phase::NotReady, format!("{name} is not ready yet")),
            None => (Phase::NotReady, "starting".to_owned()),
        }
    }

    /// What containers wait for, at its place in the manifest.
    fn tell_faults(&mut self) {
        let Some(state) = self.containers.as_ref().map(|it| it.state().borrow().clone()) else { return };
        for (list, containers) in
            [("initContainers", &state.init_containers), ("containers", &state.containers)]
        {
            for (index, (_, status)) in containers.iter().enumerate() {
                for fault in &status.faults {
                    let path = format!("spec.{list}[{index}].{}", fault.path);
                    self.tell(News::Fault(path, format!("{}; the pod waits for it", fault.message)));
                }
            }
        }
    }

    /// Until a process, the world or the clock has something new.
    async fn wait_for_change(&mut self, next: Option<Instant>) {
        let proxy = self.proxy.as_ref().map(|proxy| proxy.status.clone());
        let of_proxy = changed(proxy);
        let of_containers = changed(self.state.as_mut());
        let clock = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = of_proxy => {}
            () = of_containers => {}
            () = clock => {}
            world = self.sources.world.changed() => if world.is_err() {
                pending::<()>().await;
            }
        }
    }

    async fn end(&mut self, ending: Ending) {
        self.condition(Phase::Terminating, "is asked to end".to_owned());
        let grace = self.plan.spec.termination_grace_period_seconds.and_then(|it| u64::try_from(it).ok());
        let limit = Duration::from_secs(grace.unwrap_or(30)).min(ending.limit);
        tokio::time::sleep(ending.drain).await;
        if let Some(containers) = self.containers.take() {
            containers.end(Some(limit));
            let _ = containers.state().wait_for(|state| state.gone).await;
        }
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
        let world = self.sources.world.borrow().clone();
        let text = hosts::hosts(&self.plan, &world.plan, &world.objects, &world.ready, &world.entries);
        if text != self.hosts {
            std::fs::write(&self.hosts_file, &text)?;
            self.hosts = text;
        }
        Ok(())
    }

    fn condition(&mut self, phase: Phase, words: String) {
        let of_proxy = self.proxy.as_ref().map(|proxy| proxy.status.borrow().restarts);
        let state = self.containers.as_ref().map(|it| it.state().borrow().clone());
        let of_containers = state.iter().flat_map(PodState::all).map(|(_, status)| status.restarts);
        let condition = Condition { phase, words, restarts: of_containers.chain(of_proxy).sum() };
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

/// Until something says something new, if it ever does.
async fn changed<T>(of: Option<impl std::borrow::BorrowMut<watch::Receiver<T>>>) {
    if let Some(mut receiver) = of
        && receiver.borrow_mut().changed().await.is_ok()
    {
        return;
    }
    // One that has ended says nothing more.
    pending::<()>().await;
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

/// What keeps a container from running, in words; `None` if it runs, or waits for its turn.
fn hindrance(name: &str, status: &leno_kubelet::Status) -> Option<String> {
    if let Some(fault) = status.faults.first() {
        return Some(format!("{name}: {}", fault.message));
    }
    let (last, delay) = (status.last.as_ref()?, status.delay?);
    Some(format!("{name}: {}, again in {delay:?}", how_ended(last)))
}

fn how_ended(ended: &leno_kubelet::Ended) -> String {
    match (ended.exit, ended.message.is_empty()) {
        (Some(exit), true) => exit.to_string(),
        _ => ended.message.clone(),
    }
}

/// How a pod came to its end.
fn why_ended(state: &PodState) -> String {
    if let Some((_, words)) = &state.reason {
        return words.clone();
    }
    if !state.initialized {
        return "an init container failed".to_owned();
    }
    let failed = state.containers.iter().filter_map(|(_, it)| it.end()).find(|it| !it.success());
    let last = failed.or(state.containers.iter().find_map(|(_, it)| it.end()));
    last.map_or_else(String::new, how_ended)
}

/// The pod's object as the kubelet reads it.
fn object(plan: &PodPlan, mounts: bool) -> core::Pod {
    let mut spec = plan.spec.clone();
    // Reported by the plan.
    spec.host_network = None;
    spec.automount_service_account_token = Some(false);
    spec.service_account_name = Some(plan.service_account().to_owned());
    let declared = |list: &[ContainerPlan]| list.iter().map(|it| it.container.clone()).collect::<Vec<_>>();
    spec.containers = declared(&plan.containers);
    spec.init_containers = Some(declared(&plan.init_containers));
    if !mounts {
        spec.volumes = None;
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.volume_mounts = None;
        }
    }
    let metadata = ObjectMeta {
        name: Some(plan.key.name.clone()),
        namespace: Some(plan.key.namespace.clone()),
        uid: Some(plan.uid()),
        labels: Some(plan.labels.clone()),
        annotations: Some(plan.annotations.clone()),
        ..ObjectMeta::default()
    };
    core::Pod { metadata, spec: Some(spec), status: None }
}

/// Where traffic is not redirected: which address to listen on, and where to send requests to.
fn of_loopback(pod: &PodPlan) -> Vec<(String, String)> {
    let mut variables = vec![("LISTEN_ADDRESS".to_owned(), pod.address.to_string())];
    if pod.proxy == ProxyRole::Sidecar {
        variables.push(("http_proxy".to_owned(), format!("http://{}:{HTTP_PROXY_PORT}", pod.address)));
        variables.push(("no_proxy".to_owned(), "localhost,127.0.0.1".to_owned()));
    }
    variables
}

/// How redirection can tell proxies from applications: by their user, where any user may run them.
pub(crate) fn owner(mode: Mode, proxy_is_open: bool) -> Owner {
    match mode {
        Mode::Root if proxy_is_open => Owner::User,
        Mode::Root | Mode::User => Owner::Mark,
    }
}
