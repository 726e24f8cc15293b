//! Simulated sidecars: many xDS clients in one thread, each with a connection of its own.
//!
//! Each does what a sidecar does: clusters first, then the endpoints of all that want some, then
//! listeners, then routes, and it acknowledges everything. One that asks for clusters or virtual hosts when
//! its workload uses them does so then, and at once when it comes back. They notice when what they were told contains
//! what the benchmark waits for.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use leno_xds::wire::Received;
use leno_xds::{Mode, TypeUrl};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// How much a stream may have in flight.
const WINDOW: u32 = 1 << 20;

/// Where a change is seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// When the proxy has everything that it asks for after connecting.
    Everything,
    Cluster,
    Endpoint,
    Route,
    /// Virtual hosts that come one by one.
    Host,
}

/// Who sees it.
#[derive(Clone, Debug)]
pub(super) enum Whom {
    All,
    /// Those that use this cluster.
    Users(String),
    /// The first proxy.
    First,
}

/// What a proxy's workload uses.
#[derive(Clone, Debug)]
pub(super) struct Used {
    /// Clusters that it asks for; empty: it takes all.
    pub(super) clusters: Arc<[String]>,
    /// What it asks for virtual hosts by, in place of the clusters, which come with them; empty: it takes
    /// all.
    pub(super) hosts: Arc<[String]>,
}

/// What every proxy must have acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub(super) sight: Sight,
    /// Bytes that occur in what has changed.
    pub(super) marker: Vec<u8>,
    /// How many resources or parts of them have it; the marker is followed by `-00`, `-01`, ...
    pub(super) count: usize,
    pub(super) whom: Whom,
}

impl Expectation {
    /// Everything that a proxy asks for.
    fn everything() -> Expectation {
        Expectation { sight: Sight::Everything, marker: Vec::new(), count: 1, whom: Whom::All }
    }

    /// Whether it is for a proxy.
    fn concerns(&self, index: usize, used: &Used) -> bool {
        match &self.whom {
            Whom::All => true,
            Whom::Users(cluster) => used.clusters.contains(cluster),
            Whom::First => index == 0,
        }
    }
}

/// The proxies.
pub(super) struct Fleet {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Runtime,
    proxies: JoinSet<()>,
    /// With what each workload uses.
    nodes: Vec<(Node, Used)>,
    /// Tells the first of further hosts to ask for.
    ask: Option<UnboundedSender<Vec<String>>>,
    /// Whether they were connected before.
    again: bool,
    seen: Receiver<Result<Instant, String>>,
}

struct Shared {
    address: SocketAddr,
    mode: Mode,
    routes: Vec<String>,
    /// What is waited for, and its number.
    expectation: Mutex<(u64, Arc<Expectation>)>,
    seen: Mutex<Sender<Result<Instant, String>>>,
}

impl Fleet {
    /// Proxies that are not connected yet.
    pub(super) fn new(
        address: SocketAddr,
        mode: Mode,
        nodes: Vec<(Node, Used)>,
        routes: Vec<String>,
    ) -> Result<Fleet> {
        let (sender, seen) = channel();
        let shared = Shared {
            address,
            mode,
            routes,
            expectation: Mutex::new((0, Arc::new(Expectation::everything()))),
            seen: Mutex::new(sender),
        };
        // One thread, which runs while the benchmark itself waits.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let proxies = JoinSet::new();
        Ok(Fleet { shared: Arc::new(shared), runtime, proxies, nodes, ask: None, again: false, seen })
    }

    /// Sets what [`Fleet::wait`] waits for.
    pub(super) fn expect(&mut self, expectation: Expectation) {
        let mut current = lock(&self.shared.expectation);
        *current = (current.0 + 1, Arc::new(expectation));
    }

    /// Connects all proxies; what is expected then is everything.
    pub(super) fn connect(&mut self) {
        self.expect(Expectation::everything());
        let again = std::mem::replace(&mut self.again, true);
        let (ask, asks) = unbounded_channel();
        self.ask = Some(ask);
        let mut asks = Some(asks);
        for (index, (node, used)) in self.nodes.iter().enumerate() {
            let shared = Arc::clone(&self.shared);
            let proxy = run(shared, (index, node.clone()), used.clone(), asks.take(), again);
            self.proxies.spawn_on(proxy, self.runtime.handle());
        }
    }

    /// The first proxy asks for virtual hosts besides those that its workload uses.
    pub(super) fn ask(&self, hosts: Vec<String>) {
        // A proxy that has failed is found when it is waited for.
        let _ = self.ask.as_ref().map(|ask| ask.send(hosts));
    }

    /// Ends all connections.
    pub(super) fn disconnect(&mut self) {
        let proxies = std::mem::take(&mut self.proxies);
        self.runtime.block_on(async move { { proxies }.shutdown().await });
        while self.seen.try_recv().is_ok() {}
    }

    /// Waits until every proxy has acknowledged what is expected; when the last has.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<Instant> {
        let end = Instant::now() + limit;
        let mut last = None;
        let expectation = Arc::clone(&lock(&self.shared.expectation).1);
        let nodes = self.nodes.iter().enumerate();
        let concerned = nodes.filter(|(index, (_, used))| expectation.concerns(*index, used)).count();
        for index in 0..concerned {
            match self.seen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Ok(seen)) => last = last.max(Some(seen)),
                Ok(Err(error)) => bail!("a proxy has failed: {error}"),
                Err(_) => bail!("{index} of {concerned} proxies have seen it"),
            }
        }
        last.context("no proxies")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One proxy, until its connection ends.
async fn run(
    shared: Arc<Shared>,
    node: (usize, Node),
    used: Used,
    asks: Option<UnboundedReceiver<Vec<String>>>,
    again: bool,
) {
    let error = match serve(&shared, node, used, asks, again).await {
        Ok(()) => "the stream has ended".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    // Nobody may be waiting.
    let _ = lock(&shared.seen).send(Err(error));
}

async fn serve(
    shared: &Arc<Shared>,
    (index, node): (usize, Node),
    used: Used,
    mut asks: Option<UnboundedReceiver<Vec<String>>>,
    again: bool,
) -> Result<()> {
    let tcp = TcpStream::connect(shared.address).await?;
    tcp.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(tcp)
        .await?;
    let stream = async {
        let mut sender = sender.ready().await?;
        let request = http::Request::post(format!("http://{}{}", shared.address, shared.mode.path()))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, body) = sender.send_request(request, false)?;
        let mut proxy = Proxy::new(Arc::clone(shared), body, index, used, again);
        proxy.connect(node, again)?;
        let mut body = response.await?.into_body();
        let mut buffer = BytesMut::new();
        loop {
            let data = tokio::select! {
                data = body.data() => data,
                asked = next_ask(&mut asks) => {
                    proxy.subscribe(&TypeUrl::VirtualHost, asked, Vec::new(), None)?;
                    continue;
                }
            };
            let Some(data) = data.transpose()? else { break };
            body.flow_control().release_capacity(data.len())?;
            buffer.extend_from_slice(&data);
            while let Some(message) = take_message(&mut buffer)? {
                proxy.on_response(Received::decode(shared.mode, message)?)?;
            }
            if buffer.is_empty() {
                // What the largest message took is not kept.
                buffer = BytesMut::new();
            }
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        bail!("{:?} {:?}", trailers.get("grpc-status"), trailers.get("grpc-message"))
    };
    tokio::select! {
        ended = connection => Ok(ended?),
        ended = stream => ended,
    }
}

/// What this proxy is told to ask for; never, if it is not the first.
async fn next_ask(asks: &mut Option<UnboundedReceiver<Vec<String>>>) -> Vec<String> {
    match asks {
        Some(asks) => match asks.recv().await {
            Some(hosts) => hosts,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// The next whole gRPC message.
fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(head) = buffer.first_chunk::<5>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    ensure!(compressed == 0, "a compressed message");
    let length = u32::from_be_bytes(length) as usize;
    if buffer.len() < 5 + length {
        buffer.reserve(5 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// What one proxy knows.
struct Proxy {
    shared: Arc<Shared>,
    body: h2::SendStream<Bytes>,
    index: usize,
    used: Used,
    again: bool,
    asked_used: bool,
    /// Clusters whose endpoints it has asked for, and those of them that it has been told.
    endpoints: HashSet<u64>,
    /// SotW repeats all names.
    endpoint_names: Vec<String>,
    missing_endpoints: HashSet<u64>,
    missing_routes: HashSet<u64>,
    missing_hosts: HashSet<u64>,
    asked: [bool; 4],
    /// The number of the expectation that `found` is about.
    number: u64,
    found: HashSet<u32>,
    told: bool,
}

/// One resource of a response.
struct Seen {
    name: String,
    body: Bytes,
}

impl Proxy {
    fn new(shared: Arc<Shared>, body: h2::SendStream<Bytes>, index: usize, used: Used, again: bool) -> Proxy {
        Proxy {
            shared,
            body,
            index,
            // What is asked for by a port is found without it.
            missing_hosts: used.hosts.iter().map(|host| fingerprint(without_port(host))).collect(),
            used,
            again,
            asked_used: false,
            endpoints: HashSet::new(),
            endpoint_names: Vec::new(),
            missing_endpoints: HashSet::new(),
            missing_routes: HashSet::new(),
            asked: [false; 4],
            number: 0,
            found: HashSet::new(),
            told: false,
        }
    }

    /// The first request; who was here before asks again for what he has asked for.
    fn connect(&mut self, node: Node, again: bool) -> Result<()> {
        let mut names = Vec::new();
        if again && !self.used.clusters.is_empty() && self.used.hosts.is_empty() {
            names.push("*".to_owned());
            names.extend(self.used.clusters.iter().cloned());
            self.asked_used = true;
        }
        self.subscribe(&TypeUrl::Cluster, names, Vec::new(), Some(node))
    }

    fn on_response(&mut self, received: Received) -> Result<()> {
        let (type_url, version, nonce, removed) = match &received {
            Received::Sotw(response) => (
                response.type_url.as_str(),
                response.version_info.clone(),
                response.nonce.clone(),
                Vec::new(),
            ),
            Received::Delta(response) => (
                response.type_url.as_str(),
                response.system_version_info.clone(),
                response.nonce.clone(),
                response.removed_resources.clone(),
            ),
        };
        let type_url = TypeUrl::from(type_url);
        let resources: Vec<Seen> = match received {
            Received::Sotw(response) => {
                let named = response.resources.into_iter().map(|any| {
                    let name = leno_xds::wire::peek_name(&any.value).map(String::from).unwrap_or_default();
                    Seen { name, body: any.value }
                });
                named.collect()
            }
            Received::Delta(response) => {
                let named = response.resources.into_iter().filter_map(|resource| {
                    Some(Seen { name: resource.name, body: resource.resource?.value })
                });
                named.collect()
            }
        };
        self.look(&type_url, &resources);
        match type_url {
            TypeUrl::Cluster => self.on_clusters(&resources, &removed, &version, &nonce)?,
            TypeUrl::Endpoint => {
                for resource in &resources {
                    self.missing_endpoints.remove(&fingerprint(&resource.name));
                }
                self.acknowledge(&type_url, version, nonce)?;
            }
            TypeUrl::VirtualHost => {
                for resource in &resources {
                    self.missing_hosts.remove(&fingerprint(&resource.name));
                }
                self.acknowledge(&type_url, version, nonce)?;
            }
            TypeUrl::Route => {
                for resource in &resources {
                    self.missing_routes.remove(&fingerprint(&resource.name));
                }
                self.acknowledge(&type_url, version, nonce)?;
            }
            _ => self.acknowledge(&type_url, version, nonce)?,
        }
        self.ask_next(&type_url)?;
        self.tell();
        Ok(())
    }

    fn on_clusters(
        &mut self,
        clusters: &[Seen],
        removed: &[String],
        version: &str,
        nonce: &str,
    ) -> Result<()> {
        let wanting: Vec<&Seen> = clusters.iter().filter(|cluster| is_eds(&cluster.body)).collect();
        let gone: Vec<String> = match self.shared.mode {
            Mode::Delta => removed.to_vec(),
            Mode::Sotw => {
                let now: HashSet<&str> = wanting.iter().map(|cluster| cluster.name.as_str()).collect();
                self.endpoint_names.iter().filter(|name| !now.contains(name.as_str())).cloned().collect()
            }
        };
        let mut fresh = Vec::new();
        for cluster in &wanting {
            if self.endpoints.insert(fingerprint(&cluster.name)) {
                self.missing_endpoints.insert(fingerprint(&cluster.name));
                fresh.push(cluster.name.clone());
            }
        }
        let gone: Vec<String> =
            gone.into_iter().filter(|name| self.endpoints.remove(&fingerprint(name))).collect();
        for name in &gone {
            self.missing_endpoints.remove(&fingerprint(name));
        }
        if self.shared.mode == Mode::Sotw {
            self.endpoint_names = wanting.iter().map(|cluster| cluster.name.clone()).collect();
        }
        self.acknowledge(&TypeUrl::Cluster, version.to_owned(), nonce.to_owned())?;
        if !fresh.is_empty() || !gone.is_empty() {
            self.asked[1] = true;
            self.subscribe(&TypeUrl::Endpoint, fresh, gone, None)?;
        }
        Ok(())
    }

    /// Asks for the next type when what comes before it is there.
    fn ask_next(&mut self, type_url: &TypeUrl) -> Result<()> {
        let [_, _, listeners, routes] = &mut self.asked;
        if matches!(type_url, TypeUrl::Cluster | TypeUrl::Endpoint)
            && self.missing_endpoints.is_empty()
            && !std::mem::replace(listeners, true)
        {
            return self.subscribe(&TypeUrl::Listener, Vec::new(), Vec::new(), None);
        }
        if *type_url == TypeUrl::Listener && !std::mem::replace(routes, true) {
            let names = self.shared.routes.clone();
            self.missing_routes = names.iter().map(|name| fingerprint(name)).collect();
            return self.subscribe(&TypeUrl::Route, names, Vec::new(), None);
        }
        if *routes
            && self.missing_routes.is_empty()
            && !self.used.clusters.is_empty()
            && !std::mem::replace(&mut self.asked_used, true)
        {
            // Its workload calls them all at once.
            if self.used.hosts.is_empty() {
                return self.subscribe(&TypeUrl::Cluster, self.used.clusters.to_vec(), Vec::new(), None);
            }
            let mut hosts = self.used.hosts.to_vec();
            if self.again {
                hosts.push("*".to_owned());
            } else {
                self.subscribe(&TypeUrl::VirtualHost, Vec::new(), Vec::new(), None)?;
            }
            return self.subscribe(&TypeUrl::VirtualHost, hosts, Vec::new(), None);
        }
        Ok(())
    }

    /// Notes what is waited for, if it is there.
    fn look(&mut self, type_url: &TypeUrl, resources: &[Seen]) {
        let (number, expectation) = lock(&self.shared.expectation).clone();
        if number != self.number {
            (self.number, self.told) = (number, false);
            self.found.clear();
        }
        let here = match expectation.sight {
            Sight::Everything => false,
            Sight::Cluster => *type_url == TypeUrl::Cluster,
            Sight::Endpoint => *type_url == TypeUrl::Endpoint,
            Sight::Route => *type_url == TypeUrl::Route,
            Sight::Host => *type_url == TypeUrl::VirtualHost,
        };
        if self.told || !here || !expectation.concerns(self.index, &self.used) {
            return;
        }
        for resource in resources {
            for at in memchr::memmem::find_iter(&resource.body, &expectation.marker) {
                let rest = resource.body.get(at + expectation.marker.len()..).unwrap_or_default();
                let digits = rest.strip_prefix(b"-").and_then(|rest| rest.first_chunk::<2>());
                let part = match digits {
                    Some([tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
                        u32::from(tens - b'0') * 10 + u32::from(ones - b'0')
                    }
                    _ => 0,
                };
                self.found.insert(part);
            }
        }
    }

    /// Tells that this proxy has what is waited for, once.
    fn tell(&mut self) {
        let expectation = Arc::clone(&lock(&self.shared.expectation).1);
        let done = match expectation.sight {
            Sight::Everything => {
                let [_, _, _, routes] = self.asked;
                let clusters = &self.used.clusters;
                let is_used_there =
                    || clusters.iter().all(|name| self.endpoints.contains(&fingerprint(name)));
                routes
                    && self.missing_hosts.is_empty()
                    && self.missing_endpoints.is_empty()
                    && self.missing_routes.is_empty()
                    && is_used_there()
            }
            Sight::Cluster | Sight::Endpoint | Sight::Route | Sight::Host => {
                self.found.len() >= expectation.count
            }
        };
        if done && !std::mem::replace(&mut self.told, true) {
            // Nobody may be waiting.
            let _ = lock(&self.shared.seen).send(Ok(Instant::now()));
        }
    }

    fn acknowledge(&mut self, type_url: &TypeUrl, version: String, nonce: String) -> Result<()> {
        match self.shared.mode {
            Mode::Delta => self.send(&DeltaDiscoveryRequest {
                type_url: type_url.to_string(),
                response_nonce: nonce,
                ..DeltaDiscoveryRequest::default()
            }),
            Mode::Sotw => self.send(&DiscoveryRequest {
                version_info: version,
                resource_names: self.names(type_url),
                type_url: type_url.to_string(),
                response_nonce: nonce,
                ..DiscoveryRequest::default()
            }),
        }
    }

    fn subscribe(
        &mut self,
        type_url: &TypeUrl,
        names: Vec<String>,
        gone: Vec<String>,
        node: Option<Node>,
    ) -> Result<()> {
        match self.shared.mode {
            Mode::Delta => self.send(&DeltaDiscoveryRequest {
                node,
                type_url: type_url.to_string(),
                resource_names_subscribe: names,
                resource_names_unsubscribe: gone,
                ..DeltaDiscoveryRequest::default()
            }),
            Mode::Sotw => self.send(&DiscoveryRequest {
                node,
                type_url: type_url.to_string(),
                resource_names: self.names(type_url),
                ..DiscoveryRequest::default()
            }),
        }
    }

    fn names(&self, type_url: &TypeUrl) -> Vec<String> {
        match type_url {
            TypeUrl::Endpoint => self.endpoint_names.clone(),
            TypeUrl::Route => self.shared.routes.clone(),
            _ => Vec::new(),
        }
    }

    fn send(&mut self, message: &impl prost::Message) -> Result<()> {
        let length = message.encoded_len();
        let mut frame = BytesMut::with_capacity(5 + length);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(length)?);
        message.encode(&mut frame)?;
        // Requests are small beside the window; what does not fit yet is kept by the transport.
        self.body.send_data(frame.freeze(), false)?;
        Ok(())
    }
}

/// Whether a cluster's endpoints are to be asked for: `type`, field 2, is EDS.
fn is_eds(body: &Bytes) -> bool {
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    struct Kind {
        #[prost(int32, optional, tag = "2")]
        kind: Option<i32>,
    }
    Kind::decode(body.clone()).is_ok_and(|cluster| cluster.kind == Some(3))
}

/// What a virtual host is called that is asked for with a port.
fn without_port(asked: &str) -> &str {
    asked.rsplit_once(':').map_or(asked, |(host, _)| host)
}

/// Stands for a name: a thousand proxies with a thousand names each would be large.
fn fingerprint(name: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
