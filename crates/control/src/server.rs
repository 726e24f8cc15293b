//! The control loop: everything that happens arrives at one place, one [`Event`] at a time.
//!
//! START HERE. A change's way: a source sends an update → [`Loop::on_changes`] commits it to the
//! graph as one revision → `push` asks the graph which resources of connected proxies that has
//! changed → each session is told, as fast as its proxy takes it.
//!
//! Here are the ports and the tasks around the loop; what it knows and does is in `control_loop`.

mod control_loop;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use leno_xds::server::grpc::{DiscoveryService, StreamEvent};
use leno_xds::server::listen::{Listen, Socket};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::control_loop::Loop;
pub use crate::access::{Access, Issuer, Secure, create_join_token};
use crate::access::{Blocked, Domains, Door, discover};
use crate::ca::{self, Ca};
pub use crate::ca::{CaSettings, CertProvider, ExternalSigners};
use crate::debug::{self, Answer, Question};
use crate::deploy::{self};
use crate::inject::webhook::Webhook;
use crate::inject::{self, WebhookOptions};
use crate::model::duration::Span;
use crate::model::identity::Account;
use crate::model::switches::Switches;
use crate::push::clearance::{Gate, Verdict};
pub use crate::source::kube::client::Kubernetes;
use crate::source::kube::{Cluster, Wanted};
use crate::source::{self, Update};
pub use leno_xds::server::listen::Options;

/// How often things that wait are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How many events may wait for the loop before their senders do.
const QUEUE: usize = 1024;

/// How many connections may wait to be accepted: after a restart all proxies come at once.
const BACKLOG: u32 = 16_384;

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
                Event::Reviewed(account, verdict) => control.on_reviewed(&account, verdict),
                Event::Discovered(issuer, uri) => control.on_discovered(issuer, uri),
                Event::Roots(roots) => control.on_roots(roots),
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
