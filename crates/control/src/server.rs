//! The control loop: everything that happens arrives at one place, one [`Event`] at a time.
//!
//! START HERE. A change's way: a source sends an update → [`Loop::on_changes`] commits it to the
//! graph as one revision → `push` asks the graph which resources of connected proxies that has
//! changed → each session is told, as fast as its proxy takes it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use leno_base::clock::{Clock, System};
use leno_derive::{Batch, Graph};
use leno_xds::TypeUrl;
use leno_xds::server::grpc::{DiscoveryService, StreamEvent};
use leno_xds::server::listen::{Listen, Socket};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use crate::access::{Access, Issuer, Secure, create_join_token};
use crate::access::{Blocked, Domains, Door, Refusals, discover};
use crate::analyze::Analysis;
use crate::analyze::validity::{Validities, outdated};
use crate::ca::{self, Ca};
pub use crate::ca::{CaSettings, CertProvider, ExternalSigners};
use crate::debug::stream::Lookers;
use crate::debug::{self, Answer, Look, Question};
use crate::deploy::{self, Desired};
use crate::inject::webhook::Webhook;
use crate::inject::{self, WebhookOptions};
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::model::duration::{Span, seconds};
use crate::model::identity::Account;
use crate::model::switches::{SwitchInput, Switches, VariableInput};
use crate::model::{Change, Kind, ObjectRef, inputs};
use crate::push::clearance::{Gate, Verdict};
use crate::push::{News, Push};
use crate::registry::Mesh;
use crate::scope::gateway_api::status::AllStatuses;
use crate::source::kube::book::{Book, Programmed};
pub use crate::source::kube::client::Kubernetes;
use crate::source::kube::writer::Statuses;
use crate::source::kube::{Cluster, Wanted};
use crate::source::located::Located;
use crate::source::{self, Origin, Update};
use crate::translate::security::keys::{IssuersToAsk, KeyAddressInput};
use crate::translate::trust_bundle::RootsInput;
pub use leno_xds::server::listen::Options;

/// How often things that wait are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How many events may wait for the loop before their senders do.
const QUEUE: usize = 1024;

/// How many connections may wait to be accepted: after a restart all proxies come at once.
const BACKLOG: u32 = 16_384;

/// How long to wait at least between two looks for faults.
const ANALYZE_EVERY: Duration = Duration::from_millis(200);

/// After how many ticks unused values are forgotten.
const COLLECT_EVERY: u32 = 40;

/// Addresses that issuers of tokens are not asked at.
const BLOCKED: &str = "BLOCKED_CIDRS_IN_JWKS_URIS";

/// How long those who write to the cluster may take to end.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the control plane is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folders of YAML; of an object in several, the one in the last counts.
    pub dirs: Vec<PathBuf>,
    /// A Kubernetes cluster; its objects count before those of folders.
    pub kubernetes: Option<Kubernetes>,
    /// Where proxies connect: xDS over gRPC without TLS, if [`Access::plaintext`] has it.
    pub grpc_addr: SocketAddr,
    /// A Unix socket that they can connect to as well.
    pub grpc_path: Option<PathBuf>,
    /// How connections of proxies are treated.
    pub connections: Options,
    /// Who may connect.
    pub access: Access,
    /// Where people look: `/ready` and `/debug/...` over HTTP.
    pub http_addr: SocketAddr,
    /// Where the same is served too.
    pub second_http_addr: Option<SocketAddr>,
    /// Where API servers ask for injection and validation, if anywhere.
    pub webhooks: Option<WebhookOptions>,
}

impl Config {
    /// The configuration for folders, with Istio's ports on the loopback address.
    pub fn new(dirs: Vec<PathBuf>) -> Config {
        Config {
            dirs,
            kubernetes: None,
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], 15010)),
            grpc_path: None,
            connections: Options::default(),
            access: Access::default(),
            http_addr: SocketAddr::from(([127, 0, 0, 1], 15014)),
            second_http_addr: None,
            webhooks: None,
        }
    }
}

/// A duration as Istio writes it, `1h30m`; `None` if it is none.
pub fn parse_duration(text: &str) -> Option<Duration> {
    Span::parse(text).map(|span| span.0)
}

/// A control plane whose ports are bound, so that their numbers are known.
pub struct Server {
    dirs: Vec<PathBuf>,
    cluster: Option<Cluster>,
    grpc: Option<TcpListener>,
    grpc_path: Option<Socket>,
    secure: Option<TcpListener>,
    door: Door,
    /// What happens on streams.
    streams: mpsc::Receiver<StreamEvent>,
    believes_all: bool,
    http: TcpListener,
    second_http: Option<TcpListener>,
    /// Where webhooks are served, and what answers.
    webhooks: Option<(TcpListener, Arc<Webhook>)>,
    /// Roots of a certificate that somebody else has made.
    roots: Option<PathBuf>,
    /// Whom to trust where something is fetched, instead of the system's.
    system_roots: Option<PathBuf>,
    /// Where nothing is fetched for those who write policies.
    blocked: Blocked,
}

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A source has something to say.
    Changes(Update),
    /// Something happened on a proxy's stream.
    Stream(StreamEvent),
    /// It was found out whether a service account may read the Secrets of its namespace.
    Reviewed(Account, Verdict),
    /// An issuer of tokens has said where its keys are.
    Discovered(String, String),
    /// Others are the roots that the authority's certificates come from, in PEM.
    Roots(String),
    /// Somebody wants to know something.
    Ask(Question, oneshot::Sender<Answer>),
    /// Time has passed.
    Tick,
    /// It is to end.
    Shutdown,
    /// All proxies have been sent away.
    Over,
}

/// Runs a control plane until `shutdown` is done.
///
/// # Errors
/// If a port cannot be bound.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    Server::bind(config).await?.run(shutdown).await;
    Ok(())
}

impl Server {
    /// Binds the ports.
    ///
    /// # Errors
    /// If that fails; the message names the address. If it is not known how the cluster is reached:
    /// there is no kubeconfig, or it cannot be read. If a file of certificates cannot be used.
    pub async fn bind(config: Config) -> io::Result<Server> {
        let cluster = match &config.kubernetes {
            Some(kubernetes) => {
                let cluster = Cluster::new(kubernetes).await;
                Some(cluster.map_err(|error| io::Error::other(format!("no way to a cluster: {error}")))?)
            }
            None => None,
        };
        let (events, streams) = mpsc::channel(QUEUE);
        let service = DiscoveryService::new(events);
        let door = Door::new(&config.access, &config.connections, service, cluster.clone());
        let own = config.access.authority.as_ref().and_then(|ca| ca.address);
        let secure = config.access.secure.as_ref().map(|(address, _)| *address).or(own);
        let door = door.map_err(io::Error::other)?;
        let blocked = Blocked::read(&std::env::var(BLOCKED).unwrap_or_default());
        let webhooks = config.webhooks.map(|options| {
            if door.webhooks.is_none() {
                let words = "webhooks need a certificate: neither files of one nor an authority is there";
                return Err(io::Error::other(words));
            }
            let listener = bind(options.address)?;
            Ok((listener, Arc::new(Webhook::new(options).map_err(io::Error::other)?)))
        });
        Ok(Server {
            webhooks: webhooks.transpose()?,
            roots: config.access.secure.as_ref().and_then(|(_, secure)| secure.roots.clone()),
            system_roots: config.access.system_roots,
            blocked: blocked.map_err(|error| io::Error::other(format!("{BLOCKED}: {error}")))?,
            dirs: config.dirs,
            cluster,
            grpc: config.access.plaintext.then(|| bind(config.grpc_addr)).transpose()?,
            grpc_path: config.grpc_path.map(bind_path).transpose()?,
            secure: secure.map(bind).transpose()?,
            door,
            streams,
            believes_all: config.access.believes_all,
            http: bind(config.http_addr)?,
            second_http: config.second_http_addr.map(bind).transpose()?,
        })
    }

    /// The address that proxies connect to without TLS.
    ///
    /// # Errors
    /// If there is none, or the operating system does not tell.
    pub fn grpc_addr(&self) -> io::Result<SocketAddr> {
        address_of(self.grpc.as_ref())
    }

    /// The address that proxies connect to with TLS.
    ///
    /// # Errors
    /// If there is none, or the operating system does not tell.
    pub fn secure_grpc_addr(&self) -> io::Result<SocketAddr> {
        address_of(self.secure.as_ref())
    }

    /// The address of the debug interface.
    ///
    /// # Errors
    /// If the operating system does not tell.
    pub fn http_addr(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// The address of the webhooks.
    ///
    /// # Errors
    /// If there is none, or the operating system does not tell.
    pub fn webhook_addr(&self) -> io::Result<SocketAddr> {
        address_of(self.webhooks.as_ref().map(|(listener, _)| listener))
    }

    /// Its second address.
    ///
    /// # Errors
    /// If there is none, or the operating system does not tell.
    pub fn second_http_addr(&self) -> io::Result<SocketAddr> {
        address_of(self.second_http.as_ref())
    }

    /// Serves until `shutdown` is done.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) {
        let (events, mut queue) = mpsc::channel(QUEUE);
        let ready = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let (want, wanted) = watch::channel(Wanted::default());
        self.spawn_sources(&events, wanted, &mut tasks);
        let gate = self.gate(&events, &mut tasks);
        let issuers = self.spawn_discovery(&events, &mut tasks);
        let shown = debug::http::Ready {
            known: Arc::clone(&ready),
            ca: self.door.ca.as_ref().map(|(ca, _)| Arc::clone(ca)),
            webhook: self.webhooks.as_ref().map(|(_, webhook)| Arc::clone(webhook)),
        };
        for http in std::iter::once(self.http).chain(self.second_http) {
            let callers = Some(Arc::clone(&self.door.callers));
            let refusals = Arc::clone(&self.door.refusals);
            tasks.spawn(debug::http::serve(http, events.clone(), shown.clone(), callers, refusals));
        }
        let webhook = self.webhooks.as_ref().map(|(_, webhook)| Arc::clone(webhook));
        if let (Some((listener, webhook)), Some(handshake)) = (self.webhooks, self.door.webhooks) {
            let (cluster, dirs) = (self.cluster.clone(), self.dirs.clone());
            tasks.spawn(inject::webhook::follow(Arc::clone(&webhook), cluster, dirs));
            if self.cluster.is_none() {
                webhook.needs_no_roots();
            }
            if let Some(cluster) = self.cluster.clone().filter(|_| webhook.options.registers) {
                let (files, ca) = (self.roots, self.door.ca.as_ref().map(|(ca, _)| Arc::clone(ca)));
                let roots = move || match &files {
                    Some(path) => std::fs::read_to_string(path).ok(),
                    None => ca.as_ref().and_then(|ca| ca.published_roots()),
                };
                tasks.spawn(inject::webhook::register(Arc::clone(&webhook), cluster, roots));
            }
            tasks.spawn(inject::webhook::serve(listener, handshake, webhook));
        }
        let (end, ended) = watch::channel(false);
        let domains = self.door.domains.clone();
        let refusals = Arc::clone(&self.door.refusals);
        let ca = self.door.ca;
        let plain = self.grpc.map(Socket::Tcp).into_iter().chain(self.grpc_path);
        let plain = plain.map(|socket| (socket, self.door.plain.clone())).collect::<Vec<_>>();
        let secure = self.secure.map(Socket::Tcp).zip(self.door.secure);
        let servers = plain.into_iter().chain(secure).collect();
        // What is left of the service goes, so that its channel ends with the servers.
        drop(self.door.plain);
        let (know, known) = watch::channel(false);
        let mut writers = JoinSet::new();
        let namespaces = ca.as_ref().and_then(|(ca, made_of)| {
            tasks.spawn(ca::follow_signers(Arc::clone(ca)));
            tasks.spawn(tell_roots(Arc::clone(ca), events.clone()));
            match made_of {
                _ if ca.is_external_only() => {}
                Some(made_of) => drop(tasks.spawn(ca::follow(Arc::clone(ca), made_of.clone()))),
                None => {
                    let cluster = self.cluster.clone();
                    tasks.spawn(keep_ca(Arc::clone(ca), cluster, known.clone(), domains.clone()));
                }
            }
            self.cluster.as_ref().map(|cluster| ca::spawn_publisher(cluster, ca, &mut writers))
        });
        tasks.spawn(serve_xds(servers, self.streams, events.clone(), known, ended));
        tasks.spawn(tick(events.clone()));
        let over = events.clone();
        tasks.spawn(async move {
            shutdown.await;
            // If the loop is gone, it is over already.
            let _ = over.send(Event::Shutdown).await;
        });
        drop(events);
        let statuses = self.cluster.as_ref().and_then(|cluster| cluster.spawn_writer(&mut writers));
        let switches = Switches::read(|name| std::env::var(name).ok());
        let gateways = self.cluster.as_ref().zip(webhook.as_ref());
        let gateways =
            gateways.and_then(|(cluster, webhook)| deploy::spawn(cluster, webhook, &switches, &mut writers));
        let mut control = Loop::new(ready, know, want, statuses, gate, domains);
        control.ca = ca.map(|(ca, _)| ca);
        control.webhook = webhook;
        control.strangers = refusals;
        control.namespaces = namespaces;
        control.issuers = issuers;
        control.gateways = gateways;
        while let Some(event) = queue.recv().await {
            match event {
                Event::Changes(update) => control.on_changes(update),
                Event::Stream(event) => control.on_stream(event),
                Event::Reviewed(account, verdict) => {
                    control.push.on_reviewed(&account, verdict, Instant::now());
                }
                Event::Discovered(issuer, uri) => control.on_discovered(issuer, uri),
                Event::Roots(roots) => {
                    let mut batch = Batch::new();
                    batch.set::<RootsInput>((), roots);
                    control.commit(batch);
                }
                // The asker may have left.
                Event::Ask(question, reply) => drop(reply.send(control.on_ask(&question))),
                Event::Tick => control.on_tick(),
                // Proxies are served until they have been sent away.
                Event::Shutdown => drop(end.send_replace(true)),
                Event::Over => break,
            }
            if queue.is_empty() {
                control.on_idle();
            }
        }
        drop(control);
        // They end with who told them, and give the lease back, so that another leads at once. If they
        // cannot, it runs out.
        let _ = tokio::time::timeout(FAREWELL, async { while writers.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
    }

    /// What decides who may have credentials.
    fn gate(&self, events: &mpsc::Sender<Event>, tasks: &mut JoinSet<()>) -> Gate {
        let reviews = self.cluster.as_ref().map(|cluster| {
            let (ask, mut answers) = cluster.spawn_reviewer(tasks);
            let events = events.clone();
            tasks.spawn(async move {
                while let Some((account, verdict)) = answers.recv().await {
                    if events.send(Event::Reviewed(account, verdict)).await.is_err() {
                        return;
                    }
                }
            });
            ask
        });
        let mut gate = Gate::new(self.believes_all, reviews);
        gate.proves = !self.believes_all && self.door.secure.is_some();
        gate.refusals = Arc::clone(&self.door.refusals);
        gate
    }

    /// What asks issuers of tokens where their keys are; where to say which.
    fn spawn_discovery(
        &self,
        events: &mpsc::Sender<Event>,
        tasks: &mut JoinSet<()>,
    ) -> watch::Sender<BTreeSet<String>> {
        let (ask, asked) = watch::channel(BTreeSet::new());
        let (say, mut said) = mpsc::channel(1);
        tasks.spawn(discover(self.system_roots.clone(), self.blocked.clone(), asked, say));
        let events = events.clone();
        tasks.spawn(async move {
            while let Some((issuer, uri)) = said.recv().await {
                if events.send(Event::Discovered(issuer, uri)).await.is_err() {
                    return;
                }
            }
        });
        ask
    }

    fn spawn_sources(
        &self,
        events: &mpsc::Sender<Event>,
        wanted: watch::Receiver<Wanted>,
        tasks: &mut JoinSet<()>,
    ) {
        let mut told = source::spawn(self.dirs.clone(), self.cluster.clone(), wanted, tasks);
        let events = events.clone();
        tasks.spawn(async move {
            while let Some(update) = told.recv().await {
                if events.send(Event::Changes(update)).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn bind_path(path: PathBuf) -> io::Result<Socket> {
    let words = path.display().to_string();
    Socket::unix(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {words}: {error}")))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// Serves proxies until `ended` is true and they have been sent away; then says that it is over.
///
/// Before the sources are `known` connections wait to be accepted: who was told of nothing then
/// would drop all that it has.
async fn serve_xds(
    sockets: Vec<(Socket, Listen)>,
    mut happened: mpsc::Receiver<StreamEvent>,
    events: mpsc::Sender<Event>,
    mut known: watch::Receiver<bool>,
    mut ended: watch::Receiver<bool>,
) {
    // An error is the end of everything, which the next step notices.
    tokio::select! {
        _ = known.wait_for(|known| *known) => {}
        _ = ended.wait_for(|ended| *ended) => {}
    }
    let mut servers = JoinSet::new();
    for (socket, listen) in sockets {
        servers.spawn(listen.run(socket, ended.clone()));
    }
    // The channel ends with the servers and their streams.
    while let Some(event) = happened.recv().await {
        if events.send(Event::Stream(event)).await.is_err() {
            return;
        }
    }
    // Nobody may be there to be told.
    let _ = events.send(Event::Over).await;
}

/// Keeps a certificate authority of our own, once it is known what the mesh is called. Runs for ever.
async fn keep_ca(ca: Arc<Ca>, cluster: Option<Cluster>, mut known: watch::Receiver<bool>, domains: Domains) {
    // An error is the end of everything.
    if known.wait_for(|known| *known).await.is_err() {
        return;
    }
    ca::keep(ca, cluster, domains.own()).await;
}

/// Tells of the roots of the authority whenever they are others. Runs for ever.
async fn tell_roots(ca: Arc<Ca>, events: mpsc::Sender<Event>) {
    let mut changes = ca.subscribe();
    let mut told = String::new();
    loop {
        changes.borrow_and_update();
        let roots = ca.workload_roots();
        if roots != told {
            told.clone_from(&roots);
            if events.send(Event::Roots(roots)).await.is_err() {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn address_of(listener: Option<&TcpListener>) -> io::Result<SocketAddr> {
    listener.ok_or(io::ErrorKind::AddrNotAvailable)?.local_addr()
}

async fn tick(events: mpsc::Sender<Event>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if events.send(Event::Tick).await.is_err() {
            return;
        }
    }
}

/// The state of the control plane.
struct Loop {
    graph: Graph,
    push: Push,
    /// Who only looks, over xDS.
    lookers: Lookers,
    /// Where each object was read.
    origins: BTreeMap<ObjectRef, Origin>,
    /// What the sources could not use.
    source_diagnostics: Arc<Vec<Diagnostic>>,
    /// Faults found by analysis, located.
    analysis: Vec<Diagnostic>,
    /// Where these are.
    faults_at: Located,
    /// What proxies have refused, located.
    refusals: Vec<Diagnostic>,
    /// Where these are.
    refusals_at: Located,
    /// All that is wrong, as last printed.
    diagnostics: Vec<Diagnostic>,
    /// Something has changed since faults were last looked for.
    unanalyzed: bool,
    analyzed_at: Instant,
    /// When the next certificate that proxies are given begins or ends, in seconds since the epoch.
    outdates_at: Option<i64>,
    ready: Arc<AtomicBool>,
    /// Says once that the sources are known, so that proxies are served.
    know: watch::Sender<bool>,
    /// Which Secrets and ConfigMaps the sources are to read.
    want: watch::Sender<Wanted>,
    /// Whether that may have changed.
    unwanted: bool,
    /// The trust domains of the mesh, for those who verify callers.
    domains: Domains,
    /// Where to say what the status of objects should be, and what was said.
    statuses: Option<(mpsc::UnboundedSender<Statuses>, Book)>,
    /// The certificate authority, to tell of it.
    ca: Option<Arc<Ca>>,
    /// The webhooks, if they are served.
    webhook: Option<Arc<Webhook>>,
    /// How often somebody was refused.
    strangers: Arc<Refusals>,
    /// Where to say which namespaces there are, for those who write into all.
    namespaces: Option<watch::Sender<ca::Namespaces>>,
    /// Where to say which issuers of tokens are to be asked where their keys are.
    issuers: watch::Sender<BTreeSet<String>>,
    /// Where to say which Gateways are to have gateways, for who deploys them.
    gateways: Option<watch::Sender<Desired>>,
    ticks: u32,
}

impl Loop {
    fn new(
        ready: Arc<AtomicBool>,
        know: watch::Sender<bool>,
        want: watch::Sender<Wanted>,
        statuses: Option<mpsc::UnboundedSender<Statuses>>,
        mut gate: Gate,
        domains: Domains,
    ) -> Loop {
        let mut graph = Graph::new();
        inputs::register(&mut graph);
        let mut batch = Batch::new();
        let switches = Switches::read(|name| std::env::var(name).ok());
        gate.checks_identity = switches.checks_identity;
        batch.set::<SwitchInput>((), switches);
        for (name, value) in std::env::vars_os() {
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                batch.set::<VariableInput>(name, value);
            }
        }
        graph.commit(batch);
        Loop {
            graph,
            push: Push::new(gate),
            lookers: Lookers::default(),
            origins: BTreeMap::new(),
            source_diagnostics: Arc::default(),
            analysis: Vec::new(),
            faults_at: Located::default(),
            refusals: Vec::new(),
            refusals_at: Located::default(),
            diagnostics: Vec::new(),
            unanalyzed: false,
            analyzed_at: Instant::now(),
            outdates_at: None,
            ready,
            know,
            want,
            unwanted: false,
            domains,
            statuses: statuses.map(|say| (say, Book::default())),
            ca: None,
            webhook: None,
            strangers: Arc::default(),
            namespaces: None,
            issuers: watch::Sender::default(),
            gateways: None,
            ticks: 0,
        }
    }

    fn on_changes(&mut self, update: Update) {
        let (before, now) = (self.graph.revision(), Instant::now());
        let count = update.changes.len();
        let at = update.since.unwrap_or(now);
        let known = |object: &ObjectRef| self.origins.contains_key(object);
        let waited = now.saturating_duration_since(at);
        self.push.counts_mut().on_changes(&update.changes, waited, known);
        let mut news = News { changed: Vec::new(), removed: Vec::new(), at };
        let mut batch = Batch::new();
        for change in update.changes {
            match &change {
                Change::Set(object, _, origin) => {
                    self.origins.insert(object.clone(), origin.clone());
                    news.changed.push(object.clone());
                }
                Change::Remove(object) => {
                    self.origins.remove(object);
                    news.removed.push(object.clone());
                }
            }
            inputs::apply(change, &mut batch);
        }
        let revision = self.graph.commit(batch);
        self.push.counts_mut().on_faults(&self.source_diagnostics, &update.diagnostics);
        self.source_diagnostics = update.diagnostics;
        if revision != before {
            tracing::info!(changes = count, %revision, "configuration changed");
            self.push.on_change(&self.graph, &news, Instant::now());
            let mesh = self.graph.get::<Mesh>(&());
            let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
            self.domains.set(domains.filter(|domain| !domain.is_empty()).cloned().collect());
            if let Some(ca) = &self.ca {
                let roots = mesh.ca_certificates.iter();
                ca.set_signers(roots.filter_map(|it| Some((it.pem.as_deref()?, it.cert_signers.as_slice()))));
            }
            self.ask_issuers();
        }
        let others = update.gone.iter().filter(|object| object.kind == Kind::Namespace);
        let others: BTreeSet<&str> = others.map(|object| object.name.as_str()).collect();
        let is_namespace = |object: &ObjectRef| object.kind == Kind::Namespace;
        if !others.is_empty() || news.changed.iter().chain(&news.removed).any(is_namespace) {
            self.tell_namespaces(&others);
        }
        if let Some(say) = &self.gateways
            && news.changed.iter().chain(&news.removed).any(Desired::concerns)
        {
            let desired = Desired::of(&self.graph, &self.origins);
            say.send_if_modified(|told| {
                let news = *told != desired;
                *told = desired;
                news
            });
        }
        if let Some((say, book)) = &mut self.statuses
            && !update.gone.is_empty()
        {
            // Who writes them ends with us.
            let _ = say.send(book.forget(&update.gone));
            update.gone.iter().for_each(|object| self.push.propagation_mut().retell(object));
        }
        // Proxies come first: what is wrong is found when they have been told.
        self.unanalyzed = true;
        if !self.ready.swap(true, Ordering::AcqRel) {
            self.know.send_replace(true);
            tracing::info!("ready");
        }
    }

    /// Has issuers of tokens asked where their keys are, and forgets what others have said.
    fn ask_issuers(&mut self) {
        let wanted = self.graph.get::<IssuersToAsk>(&());
        let changed = self.issuers.send_if_modified(|told| {
            let changed = *told != *wanted;
            told.clone_from(&wanted);
            changed
        });
        if changed {
            let mut batch = Batch::new();
            let known = self.graph.keys::<KeyAddressInput>().into_iter();
            known.filter(|issuer| !wanted.contains(issuer)).for_each(|issuer| {
                batch.remove::<KeyAddressInput>(&issuer);
            });
            // No policy asks for them any more, so nothing follows from that.
            self.graph.commit(batch);
        }
    }

    /// An issuer has said where its keys are.
    fn on_discovered(&mut self, issuer: String, uri: String) {
        let is_wanted = self.issuers.borrow().contains(&issuer);
        if !is_wanted {
            return;
        }
        tracing::info!(issuer, uri, "an issuer has said where its keys are");
        let mut batch = Batch::new();
        batch.set::<KeyAddressInput>(issuer, uri);
        self.commit(batch);
    }

    /// Takes up what comes from no source.
    fn commit(&mut self, batch: Batch) {
        let before = self.graph.revision();
        let at = Instant::now();
        if self.graph.commit(batch) != before {
            let news = News { changed: Vec::new(), removed: Vec::new(), at };
            self.push.on_change(&self.graph, &news, at);
        }
    }

    /// Says which namespaces there are; `others`: of those that have gone, should they be there again.
    fn tell_namespaces(&self, others: &BTreeSet<&str>) {
        if let Some(say) = &self.namespaces {
            let all = self.graph.keys::<inputs::Namespaces>();
            say.send_modify(|told| told.follow(all.into_iter().map(|key| key.name), others));
        }
    }

    fn on_stream(&mut self, event: StreamEvent) {
        if self.lookers.concerns(&event) {
            let mut lookers = std::mem::take(&mut self.lookers);
            lookers.on_stream(self.look(), event);
            self.lookers = lookers;
            return;
        }
        // Who leaves or changes his mind may have been the last to want a Secret.
        self.unwanted |= match &event {
            StreamEvent::Connected(_) | StreamEvent::Ready { .. } => false,
            StreamEvent::Request { request, .. } => request.type_url() == TypeUrl::Secret.as_str(),
            StreamEvent::Closed { .. } => !self.want.borrow().0.is_empty(),
        };
        self.push.on_stream(&self.graph, event, Instant::now());
    }

    fn on_tick(&mut self) {
        if std::mem::take(&mut self.unwanted) {
            self.want_credentials();
        }
        self.push.on_tick(&self.graph, Instant::now());
        self.unanalyzed |= self.outdates_at.is_some_and(|at| at <= seconds(System.wall()));
        self.tell_progress();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(COLLECT_EVERY) {
            self.tell_matches();
            self.push.tidy(&mut self.graph, Instant::now());
            self.graph.collect();
        }
    }

    /// Has the credentials read that proxies ask for.
    fn want_credentials(&self) {
        let mut wanted = Wanted::default();
        for session in self.push.asking_for_credentials() {
            for (_, subscription) in session.stream().subscriptions().filter(|it| *it.0 == TypeUrl::Secret) {
                subscription.names().for_each(|name| wanted.add(&session.key.namespace, name));
            }
        }
        self.want.send_if_modified(|told| {
            let news = *told != wanted;
            *told = wanted;
            news
        });
    }

    /// Nothing else is to be done at the moment.
    fn on_idle(&mut self) {
        // Looking takes long in a large mesh, and must not make everything else slow.
        if Instant::now().duration_since(self.analyzed_at) < ANALYZE_EVERY {
            return;
        }
        if self.unanalyzed {
            self.examine();
        } else if !self.hear_refusals() {
            return;
        }
        self.analyzed_at = Instant::now();
    }

    /// Tells what proxies refuse, if that may have changed: all else follows from the configuration.
    fn hear_refusals(&mut self) -> bool {
        let changed = self.push.take_refusals_changed();
        if changed {
            self.refusals = self.refused();
            self.tell_diagnostics();
        }
        changed
    }

    /// Looks for faults.
    fn examine(&mut self) {
        self.unanalyzed = false;
        self.push.take_refusals_changed();
        let (outdated, next) = outdated(&self.graph.get::<Validities>(&()), seconds(System.wall()));
        self.outdates_at = next;
        self.analysis = self.analyze(&outdated);
        self.refusals = self.refused();
        self.tell_diagnostics();
        if let Some((say, book)) = &mut self.statuses {
            let all = self.graph.get::<AllStatuses>(&());
            let all = all.iter().map(|(object, status)| (object.clone(), json!(status)));
            // Who writes them ends with us.
            let _ = say.send(book.derived(all, &self.origins, System.wall()));
        }
        self.tell_matches();
    }

    /// Has it written to EnvoyFilters what their patches have met with.
    fn tell_matches(&mut self) {
        let Some((say, book)) = &mut self.statuses else { return };
        let news =
            book.matched(self.push.patch_matches(&self.graph).into_iter(), &self.origins, System.wall());
        if !news.is_empty() {
            // Who writes them ends with us.
            let _ = say.send(news);
        }
    }

    /// Has it written to objects how far their changes have come.
    fn tell_progress(&mut self) {
        let news = self.push.propagation_mut().take_news(Instant::now());
        let Some((say, book)) = &mut self.statuses else { return };
        let reached = news.into_iter().filter_map(|object| {
            let reach = self.push.propagation().reach(&object)?;
            let sessions = reach.stragglers.iter().filter_map(|id| self.push.session(*id));
            let stragglers = sessions.map(|session| session.node.clone()).collect();
            Some((object, Programmed { concerned: reach.concerned, stragglers }))
        });
        let reached: Vec<(ObjectRef, Programmed)> = reached.collect();
        if !reached.is_empty() {
            // Who writes them ends with us.
            let _ = say.send(book.reached(reached, &self.origins, System.wall()));
        }
    }

    fn on_ask(&mut self, question: &Question) -> Answer {
        if debug::needs_analysis(question) {
            if self.unanalyzed {
                self.examine();
            } else {
                self.hear_refusals();
            }
        }
        debug::answer_over_http(self.look(), question)
    }

    /// What there is to be seen.
    fn look(&self) -> Look<'_> {
        Look {
            graph: &self.graph,
            push: &self.push,
            origins: &self.origins,
            diagnostics: &self.diagnostics,
            ca: self.ca.as_deref(),
            webhook: self.webhook.as_deref(),
            refusals: &self.strangers,
            now: Instant::now(),
            wall: System.wall(),
        }
    }

    /// The faults of the configuration; `outdated` are those that time has brought.
    fn analyze(&mut self, outdated: &[(ObjectRef, Finding)]) -> Vec<Diagnostic> {
        let found = self.graph.get::<Analysis>(&());
        let about = |(object, finding): &(ObjectRef, Finding)| {
            (Some(object.clone()), Diagnostic::about(object, finding))
        };
        self.faults_at.locate(&self.origins, found.iter().chain(outdated).map(about))
    }

    fn refused(&mut self) -> Vec<Diagnostic> {
        let mut all = Vec::new();
        for (object, finding) in self.push.patch_faults(&self.graph) {
            let diagnostic = Diagnostic::about(&object, &finding);
            all.push((Some(object), diagnostic));
        }
        for refusal in self.push.refusals(&self.graph) {
            all.push((refusal.object.clone(), refusal.diagnostic()));
        }
        self.refusals_at.locate(&self.origins, all)
    }

    /// Gathers all that is wrong, and prints what is new and what is mended.
    fn tell_diagnostics(&mut self) {
        let parts = [self.source_diagnostics.as_ref(), &self.analysis, &self.refusals];
        let now: Vec<Diagnostic> = parts.into_iter().flatten().cloned().collect();
        let is_due = self.statuses.as_ref().is_some_and(|(_, book)| book.is_due());
        if now == self.diagnostics && !is_due {
            return;
        }
        let (old, new): (HashSet<&Diagnostic>, HashSet<&Diagnostic>) =
            (self.diagnostics.iter().collect(), now.iter().collect());
        for diagnostic in now.iter().filter(|diagnostic| !old.contains(diagnostic)) {
            match diagnostic.severity {
                Severity::Error => tracing::error!("{diagnostic}"),
                Severity::Warning => tracing::warn!("{diagnostic}"),
            }
        }
        for diagnostic in self.diagnostics.iter().filter(|diagnostic| !new.contains(diagnostic)) {
            tracing::info!("no longer: {diagnostic}");
        }
        self.diagnostics = now;
        if let Some((say, book)) = &mut self.statuses {
            let news = book.review(&self.diagnostics, &self.origins, System.wall());
            // Who writes them ends with us.
            let _ = say.send(news);
        }
    }
}
