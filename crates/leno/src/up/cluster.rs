//! The loop that runs a mesh: everything that happens arrives here, one [`Event`] at a time, and only
//! here is decided what starts and what ends. START HERE, at [`Cluster::run`].
//!
//! After each event `settle` compares the plan with what runs and carries out the difference, and
//! `publish` tells the control plane, the pods and the display.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_kubelet::Place;
use leno_node::Line;
use tokio::sync::{mpsc, watch};

use super::control::Question;
use super::display::Display;
use super::logs::Logs;
use super::objects::{Key, Objects, Problem};
use super::overview::{Overview, PodRow, PublishedRow};
use super::pilot::{self, Report};
use super::plan::{self, Given, Plan, PodPlan, Publication, Settings};
use super::pod::{self, Condition, Ending, Handle, News};
use super::publish::{Published, Target};
use super::services;
use super::site::Site;
use super::sources::{World, WorldSources};
use super::state::{Phase, StateFolder};

/// How long a replica that goes stays up after it was said to go, so that nobody calls it any more.
const DRAIN: Duration = Duration::from_secs(1);
/// The most that a replica's processes may take to end.
const LIMIT: Duration = Duration::from_secs(10);
/// The same when the whole mesh ends.
const LAST_LIMIT: Duration = Duration::from_secs(3);
/// How often ports that could not be bound are tried again.
const RETRY: Duration = Duration::from_secs(2);
/// A privileged port that may not be bound is published on this much higher.
const PORT_OFFSET: u16 = 8000;
/// How long the first configuration may take to reach all proxies before the mesh is called ready
/// all the same, which is then said.
const SPREAD: Duration = Duration::from_secs(20);

/// Everything that can happen.
#[derive(Debug)]
enum Event {
    /// The folders hold something else.
    Objects(Objects),
    /// A pod has news.
    Pod(Key, News),
    /// A process has printed a line.
    Line(Line),
    /// The control plane says something else of itself.
    Report(Report),
    /// Somebody asks by the control socket.
    Question(Question),
    /// Time has passed.
    Tick,
    /// It is to end.
    End,
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) objects: mpsc::Receiver<Objects>,
    pub(crate) lines: mpsc::Receiver<Line>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) questions: mpsc::Receiver<Question>,
    /// Becomes true when the mesh is to end.
    pub(crate) end: watch::Receiver<bool>,
}

/// A mesh that runs.
#[derive(Debug)]
pub(crate) struct Cluster {
    site: Arc<Site>,
    settings: Settings,
    given: Given,
    /// The address of the host that ports are published on.
    address: std::net::IpAddr,
    mode: String,
    objects: Objects,
    plan: Plan,
    pods: BTreeMap<Key, Running>,
    published: BTreeMap<u16, Port>,
    control_plane: Option<Published>,
    state: StateFolder,
    /// Services as the node leads to them.
    services: Vec<leno_node::Service>,
    world: watch::Sender<Arc<World>>,
    /// Counts the changes of the world.
    changes: watch::Sender<u64>,
    news: mpsc::UnboundedSender<(Key, News)>,
    report: Report,
    /// Problems that were printed and still hold.
    shown: BTreeSet<String>,
    /// What pods found wrong with their manifests.
    faults: BTreeMap<Key, BTreeSet<(String, String)>>,
    logs: Arc<Logs>,
    display: Display,
    started: Instant,
    /// When everything first was ready.
    complete: Option<Instant>,
    said_ready: bool,
}

/// A pod that runs, or is on its way.
#[derive(Debug)]
struct Running {
    plan: PodPlan,
    handle: Handle,
    place: Option<Place>,
    condition: Condition,
    admin: Option<Published>,
    leaving: bool,
}

/// A port of a gateway on the host.
#[derive(Debug)]
struct Port {
    publication: Publication,
    published: Option<Published>,
    problem: Option<Problem>,
}

impl Cluster {
    /// A cluster of which nothing runs yet, and where its pods' news arrive.
    pub(crate) fn new(
        site: Arc<Site>,
        settings: Settings,
        address: std::net::IpAddr,
        mode: String,
        state: StateFolder,
        logs: Arc<Logs>,
        display: Display,
        started: Instant,
    ) -> (Cluster, mpsc::UnboundedReceiver<(Key, News)>) {
        let (news, receiver) = mpsc::unbounded_channel();
        let cluster = Cluster {
            given: site.layout.ranges(),
            site,
            settings,
            address,
            mode,
            objects: Objects::default(),
            plan: Plan::default(),
            pods: BTreeMap::new(),
            published: BTreeMap::new(),
            control_plane: None,
            state,
            services: Vec::new(),
            world: watch::channel(Arc::default()).0,
            changes: watch::channel(0).0,
            news,
            report: Report::default(),
            shown: BTreeSet::new(),
            faults: BTreeMap::new(),
            logs,
            display,
            started,
            complete: None,
            said_ready: false,
        };
        (cluster, receiver)
    }

    /// Starts the control plane and runs until it is to end, and everything has.
    pub(crate) async fn run(
        mut self,
        folders: &[PathBuf],
        mut sources: Sources,
        mut news: mpsc::UnboundedReceiver<(Key, News)>,
    ) {
        // What is known from the start, so that the control plane's first answer is right.
        if let Some(objects) = sources.objects.recv().await {
            self.on_objects(objects);
            self.publish();
        }
        let control_plane = pilot::start(&self.site, folders, self.state.path());
        self.publish_control_plane().await;
        self.settle().await;
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let mut last_retry = Instant::now();
        loop {
            let event = tokio::select! {
                biased;
                _ = sources.end.wait_for(|end| *end) => Event::End,
                Some((key, news)) = news.recv() => Event::Pod(key, news),
                Some(objects) = sources.objects.recv() => Event::Objects(objects),
                Some(question) = sources.questions.recv() => Event::Question(question),
                Some(report) = sources.reports.recv() => Event::Report(report),
                Some(line) = sources.lines.recv() => Event::Line(line),
                _ = tick.tick() => Event::Tick,
            };
            match event {
                Event::Line(line) => {
                    self.on_line(line);
                    continue;
                }
                Event::Question(Question::Overview(reply)) => {
                    let _ = reply.send(self.overview());
                    continue;
                }
                Event::End | Event::Question(Question::Stop) => break,
                Event::Objects(objects) => {
                    self.on_objects(objects);
                    self.retry_ports().await;
                }
                Event::Pod(key, news) => self.on_news(&key, news).await,
                Event::Report(report) => self.report = report,
                Event::Tick => {
                    if last_retry.elapsed() >= RETRY {
                        last_retry = Instant::now();
                        self.retry_ports().await;
                    }
                }
            }
            self.settle().await;
            self.publish();
        }
        self.end(sources, news).await;
        control_plane.stop(LAST_LIMIT).await;
    }

    fn on_objects(&mut self, objects: Objects) {
        self.plan = plan::plan(&objects, &self.settings, &mut self.given);
        self.objects = objects;
        self.faults.clear();
        let (plan, pods) = (&self.plan, &self.pods);
        let names: BTreeSet<String> = plan.pods.keys().chain(pods.keys()).map(ToString::to_string).collect();
        self.given.pods.retain(|name| names.contains(name));
        let names: BTreeSet<String> = plan.services.keys().map(ToString::to_string).collect();
        self.given.services.retain(|name| names.contains(name));
    }

    async fn on_news(&mut self, key: &Key, news: News) {
        let Some(running) = self.pods.get_mut(key) else { return };
        match news {
            News::Condition(condition) => running.condition = condition,
            News::Fault(path, message) => {
                self.faults.entry(key.clone()).or_default().insert((path, message));
            }
            News::Gone => {
                self.pods.remove(key);
                self.faults.remove(key);
            }
            News::Placed(place) => {
                running.place = Some(place.clone());
                if running.plan.proxy != plan::ProxyRole::None {
                    let target = Target { place, address: self.site.layout.admin(&running.plan) };
                    let address = SocketAddr::new(self.address, 0);
                    match Published::start(&self.site, address, target).await {
                        Ok(published) => running.admin = Some(published),
                        Err(e) => {
                            self.display.line(format!("{key}: its admin interface is not published: {e}"));
                        }
                    }
                }
            }
        }
    }

    fn on_line(&self, line: Line) {
        self.display.line(format!("[{}] {}", line.source, line.text));
        self.logs.push(line);
    }

    /// Carries out the difference between the plan and what runs.
    async fn settle(&mut self) {
        for (key, pod) in &self.plan.pods {
            if !self.pods.contains_key(key) {
                let sources = WorldSources::new(self.world.subscribe(), self.changes.subscribe());
                let handle = pod::start(pod.clone(), self.site.clone(), sources, self.news.clone());
                let condition =
                    Condition { phase: Phase::NotReady, words: "starting".to_owned(), restarts: 0 };
                let running = Running {
                    plan: pod.clone(),
                    handle,
                    place: None,
                    condition,
                    admin: None,
                    leaving: false,
                };
                self.pods.insert(key.clone(), running);
            }
        }
        let superfluous: Vec<Key> =
            self.pods.values().filter(|it| self.is_superfluous(it)).map(|it| it.plan.key.clone()).collect();
        for key in superfluous {
            if let Some(running) = self.pods.get_mut(&key) {
                running.leaving = true;
                running.condition.phase = Phase::Terminating;
                "leaving".clone_into(&mut running.condition.words);
                running.handle.end(Ending { drain: DRAIN, limit: LIMIT });
            }
        }
        self.settle_ports().await;
    }

    /// Whether a pod is to end now: the plan has none like it, and those that replace it are ready.
    fn is_superfluous(&self, running: &Running) -> bool {
        if running.leaving || self.plan.pods.get(&running.plan.key) == Some(&running.plan) {
            return false;
        }
        const HASH: &str = "pod-template-hash";
        let hash = running.plan.labels.get(HASH);
        let mut replacements = self.plan.pods.values().filter(|pod| {
            hash.is_some()
                && pod.owner == running.plan.owner
                && pod.key.namespace == running.plan.key.namespace
                && pod.labels.get(HASH) != hash
        });
        replacements
            .all(|pod| self.pods.get(&pod.key).is_some_and(|running| running.condition.phase == Phase::Ready))
    }

    async fn settle_ports(&mut self) {
        let plan = &self.plan;
        self.published.retain(|number, _| plan.publications.contains_key(number));
        for (number, publication) in self.plan.publications.clone() {
            let Some(target) = self.target(&publication) else { continue };
            match self.published.get_mut(&number) {
                Some(port) if port.publication == publication => {
                    if let Some(published) = &port.published {
                        published.aim(target);
                    }
                }
                Some(port) => {
                    if let Some(published) = &port.published {
                        published.aim(target);
                    }
                    port.publication = publication;
                }
                None => {
                    let (published, problem) = self.bind(number, &publication, target).await;
                    if let Some(published) = published.as_ref().filter(|_| self.said_ready) {
                        let url = url(&publication, published.address);
                        self.display.line(format!("published {url} (gateway {})", publication.gateway));
                    }
                    self.published.insert(number, Port { publication, published, problem });
                }
            }
        }
    }

    /// Tries again to bind ports that could not be.
    async fn retry_ports(&mut self) {
        let missing: Vec<(u16, Publication)> = self
            .published
            .iter()
            .filter(|(_, port)| port.published.is_none())
            .map(|(number, port)| (*number, port.publication.clone()))
            .collect();
        for (number, publication) in missing {
            let Some(target) = self.target(&publication) else { continue };
            let (published, problem) = self.bind(number, &publication, target).await;
            if let Some(published) = &published {
                self.display.line(format!("published {}", url(&publication, published.address)));
            }
            if let Some(port) = self.published.get_mut(&number) {
                (port.published, port.problem) = (published, problem);
            }
        }
    }

    fn target(&self, publication: &Publication) -> Option<Target> {
        let running = self.pods.get(&publication.pod)?;
        // Straight to the pod's address: the node reaches all of them.
        running.place.as_ref()?;
        let address = SocketAddr::new(running.plan.address.into(), publication.target);
        Some(Target { place: Place::Here, address })
    }

    async fn bind(
        &self,
        number: u16,
        publication: &Publication,
        target: Target,
    ) -> (Option<Published>, Option<Problem>) {
        let first = SocketAddr::new(self.address, number);
        let mut result = Published::start(&self.site, first, target.clone()).await;
        let refused = result.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
        if refused && number < 1024 {
            let higher = SocketAddr::new(self.address, number + PORT_OFFSET);
            result = Published::start(&self.site, higher, target).await;
            if result.is_ok() {
                self.display.line(format!(
                    "port {number} takes root: published on {higher} instead (gateway {})",
                    publication.gateway,
                ));
            }
        }
        match result {
            Ok(published) => (Some(published), None),
            Err(e) => {
                let message = format!(
                    "Gateway {}: {first} cannot be published: {e}; everything else is served",
                    publication.gateway,
                );
                (None, Some(Problem { message, ..publication.place.clone() }))
            }
        }
    }

    async fn publish_control_plane(&mut self) {
        let [_, address] = self.site.layout.control_plane();
        let target = Target { place: Place::Here, address };
        match Published::start(&self.site, SocketAddr::new(self.address, 0), target).await {
            Ok(published) => self.control_plane = Some(published),
            Err(e) => self.display.line(format!("the control plane's debug pages are not published: {e}")),
        }
    }

    /// Tells the control plane, the pods, and the display.
    fn publish(&mut self) {
        let pods: BTreeMap<Key, (PodPlan, Phase)> = self
            .pods
            .iter()
            .map(|(key, running)| {
                let phase = if running.leaving { Phase::Terminating } else { running.condition.phase };
                (key.clone(), (running.plan.clone(), phase))
            })
            .collect();
        if let Err(e) = self.state.write(&pods, &self.plan, &self.objects, &self.site.layout) {
            self.display.line(format!("cannot write to {}: {e}", self.state.path().display()));
        }
        self.settle_services(&pods);
        let ready = pods.iter().filter(|(_, (_, phase))| *phase == Phase::Ready).map(|(key, _)| key.clone());
        let world = World {
            objects: self.objects.clone(),
            plan: self.plan.clone(),
            ready: ready.collect(),
            entries: self.entry_addresses(),
        };
        let changed = self.world.send_if_modified(|current| {
            let differs = **current != world;
            if differs {
                *current = Arc::new(world);
            }
            differs
        });
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
        self.show_problems();
        self.say_ready();
        self.display.table(self.overview());
    }

    /// Makes the addresses of Services lead to ready pods, for pods without a sidecar.
    fn settle_services(&mut self, pods: &BTreeMap<Key, (PodPlan, Phase)>) {
        let Some(node) = &self.site.node else { return };
        let services = services::of(&self.objects, &self.plan, pods);
        if services == self.services {
            return;
        }
        match node.services(&services) {
            Ok(()) => self.services = services,
            Err(e) => self.display.line(format!("services are not reachable without a sidecar: {e}")),
        }
    }

    /// The virtual addresses that the control plane has for hosts of ServiceEntries.
    fn entry_addresses(&self) -> BTreeMap<String, std::net::Ipv4Addr> {
        let services = self.report.services.iter();
        services
            .filter_map(|service| {
                let address = service.addresses.iter().find_map(|address| address.parse().ok())?;
                Some((service.hostname.clone(), address))
            })
            .collect()
    }

    fn show_problems(&mut self) {
        let mut now: BTreeSet<String> =
            self.plan.problems.iter().map(|it| format!("warning: {it}")).collect();
        now.extend(
            self.published.values().filter_map(|port| port.problem.as_ref()).map(|it| format!("error: {it}")),
        );
        now.extend(self.report.diagnostics.iter().map(ToString::to_string));
        for (key, faults) in &self.faults {
            let Some(pod) = self.plan.pods.get(key) else { continue };
            let owner = self.objects.workloads.iter().find(|workload| {
                (workload.kind, &workload.key.name) == (pod.owner.0, &pod.owner.1)
                    && workload.key.namespace == key.namespace
            });
            let Some(workload) = owner else { continue };
            now.extend(faults.iter().map(|(path, message)| {
                let path = format!("{}{path}", workload.kind.template_path());
                format!("warning: {}", workload.origin.problem(path.trim_end_matches('.'), message.clone()))
            }));
        }
        for problem in now.difference(&self.shown) {
            self.display.line(problem.clone());
        }
        for problem in self.shown.difference(&now) {
            self.display.line(format!("no longer: {problem}"));
        }
        self.shown = now;
    }

    /// Says once that everything is there, when the last pod's address has reached all proxies.
    fn say_ready(&mut self) {
        let is_done = |running: &Running| matches!(running.condition.phase, Phase::Ready | Phase::Succeeded);
        if self.said_ready || !self.plan.pods.keys().all(|key| self.pods.get(key).is_some_and(is_done)) {
            return;
        }
        let complete = *self.complete.get_or_insert_with(Instant::now);
        if !self.has_spread() {
            if complete.elapsed() < SPREAD {
                return;
            }
            let words = "not all proxies have taken their configuration yet: first requests may fail";
            self.display.line(words.to_owned());
        }
        self.said_ready = true;
        let urls: Vec<String> = self
            .published
            .values()
            .filter_map(|port| {
                let published = port.published.as_ref()?;
                Some(format!(
                    "{} (gateway {})",
                    url(&port.publication, published.address),
                    port.publication.gateway
                ))
            })
            .collect();
        let urls = if urls.is_empty() { "no gateway".to_owned() } else { urls.join(", ") };
        self.display.line(format!("ready in {:.1} s: {urls}", self.started.elapsed().as_secs_f64()));
    }

    /// Whether the control plane knows the endpoints of all ready pods, and all proxies have taken
    /// what it sent.
    fn has_spread(&self) -> bool {
        let known: BTreeSet<&str> = self
            .report
            .services
            .iter()
            .flat_map(|service| &service.endpoints)
            // Pods are known before they are ready.
            .filter(|endpoint| endpoint.healthy)
            .map(|endpoint| endpoint.address.as_str())
            .collect();
        let has_ended =
            |key: &Key| self.pods.get(key).is_some_and(|running| running.condition.phase == Phase::Succeeded);
        let with_proxy = |pod: &&PodPlan| pod.proxy != plan::ProxyRole::None && !has_ended(&pod.key);
        let proxies = self.plan.pods.values().filter(with_proxy).count();
        let is_served = |pod: &PodPlan| {
            self.objects.services.values().filter(|service| service.key.namespace == pod.key.namespace).any(
                |it| {
                    let selector = it.object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                    selector.is_some_and(|it| !it.is_empty() && plan::matches(it, &pod.labels))
                },
            )
        };
        let mut served = self.plan.pods.values().filter(|pod| is_served(pod));
        self.report.is_in_sync
            && self.report.proxies >= proxies
            && served.all(|pod| has_ended(&pod.key) || known.contains(pod.address.to_string().as_str()))
    }

    fn overview(&self) -> Overview {
        let pods = self.pods.values().map(|running| PodRow {
            namespace: running.plan.key.namespace.clone(),
            name: running.plan.key.name.clone(),
            ready: running.condition.phase == Phase::Ready,
            status: match running.condition.phase {
                Phase::Ready => "ready".to_owned(),
                Phase::Succeeded => "completed".to_owned(),
                _ => running.condition.words.clone(),
            },
            restarts: running.condition.restarts,
            address: running.plan.address.to_string(),
            admin: running.admin.as_ref().map(|published| format!("http://{}", published.address)),
        });
        let published = self.published.values().filter_map(|port| {
            let published = port.published.as_ref()?;
            Some(PublishedRow {
                url: url(&port.publication, published.address),
                gateway: port.publication.gateway.to_string(),
            })
        });
        Overview {
            mesh: self.site.mesh.clone(),
            mode: self.mode.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            control_plane: self
                .control_plane
                .as_ref()
                .map(|published| format!("http://{}/debug", published.address)),
            pods: pods.collect(),
            published: published.collect(),
        }
    }

    /// Ends all pods at the same time, printing what they have to say.
    async fn end(&mut self, mut sources: Sources, mut news: mpsc::UnboundedReceiver<(Key, News)>) {
        self.display.line("ending");
        self.published.clear();
        for running in self.pods.values() {
            running.handle.end(Ending { drain: Duration::ZERO, limit: LAST_LIMIT });
        }
        let all = async {
            while !self.pods.is_empty() {
                tokio::select! {
                    Some((key, news)) = news.recv() => {
                        if matches!(news, News::Gone) {
                            self.pods.remove(&key);
                        }
                    }
                    Some(line) = sources.lines.recv() => self.display.line(format!("[{}] {}", line.source, line.text)),
                }
            }
        };
        // Those that leave already have a longer limit, but not now.
        let _ = tokio::time::timeout(LAST_LIMIT * 2 + Duration::from_secs(1), all).await;
    }
}

fn url(publication: &Publication, address: SocketAddr) -> String {
    match publication.protocol.as_str() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => format!("http://{address}"),
        "HTTPS" => format!("https://{address}"),
        protocol => format!("{}://{address}", protocol.to_ascii_lowercase()),
    }
}
