//! Sidecars that are told of the clusters only that they use: what they are told, learnt by asking, by
//! their like, and by what they hold when they come back; and a real proxy whose requests wait.

#[path = "../support/envoy.rs"]
mod configured;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3::{Extension, Node};
use leno_api::proto::envoy::config::route::v3::route::Action;
use leno_api::proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use leno_api::proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use leno_control::server::{Config, Server};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const VHDS: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

const SERVICES: usize = 50;

struct Pilot {
    address: SocketAddr,
    debug: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Pilot {
    async fn start(folder: &Path) -> Pilot {
        Pilot::start_at(folder, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    async fn start_at(folder: &Path, address: SocketAddr) -> Pilot {
        let mut config = Config::new(vec![folder.to_owned()]);
        config.grpc_addr = address;
        config.http_addr.set_port(0);
        let server = Server::bind(config).await.expect("free ports");
        let address = server.grpc_addr().expect("an address");
        let debug = server.http_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Pilot { address, debug, stop: Some(stop), task }
    }

    async fn stop(mut self) {
        self.stop.take().expect("it runs").send(()).expect("it runs");
        tokio::time::timeout(LIMIT, self.task).await.expect("it stops").expect("it does not panic");
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join("draft");
    fs::write(&draft, text).expect("writable");
    fs::rename(draft, folder.join(name)).expect("renamable");
}

fn host(index: usize) -> String {
    format!("s{index}.mesh")
}

fn cluster(index: usize) -> String {
    format!("outbound|80||{}", host(index))
}

fn service(index: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{index}}}
spec:
  hosts: [{}]
  addresses: [240.0.0.{index}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 3306, name: tcp-db, protocol: TCP}}]
  endpoints: [{{address: 10.0.0.{index}}}]
",
        host(index)
    )
}

fn mesh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    (0..SERVICES).for_each(|index| write(folder.path(), &format!("s{index}.yaml"), &service(index)));
    folder
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

/// A sidecar of an app, which can ask for clusters; `lazy` is what its metadata say of that.
fn node(app: &str, lazy: &str) -> Node {
    let labels = Struct { fields: BTreeMap::from([("app".to_owned(), text(app))]) };
    let fields = [
        ("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(labels)) }),
        ("LENO_LAZY".to_owned(), text(lazy)),
    ];
    Node {
        id: format!("sidecar~10.9.0.1~{app}.default~default.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.into() }),
        extensions: vec![Extension {
            category: "envoy.filters.http".to_owned(),
            name: "envoy.filters.http.on_demand".to_owned(),
            type_urls: vec!["envoy.extensions.filters.http.on_demand.v3.OnDemand".to_owned()],
            ..Extension::default()
        }],
        ..Node::default()
    }
}

/// A client that takes all it is told.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// What it has, by type and name, with versions.
    held: BTreeMap<(String, String), String>,
    /// Its virtual hosts.
    hosts: BTreeMap<String, VirtualHost>,
    /// The hosts for which it was given them.
    answered: BTreeSet<String>,
}

impl Client {
    /// Connects and asks for all clusters, and for `named` besides; `held` it has from before.
    async fn connect(pilot: &Pilot, node: Node, named: &[&str], held: BTreeMap<String, String>) -> Client {
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", pilot.address))
            .await
            .expect("it listens");
        let (requests, outgoing) = mpsc::channel(64);
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: CDS.to_owned(),
            resource_names_subscribe: ["*"].iter().chain(named).map(|&name| name.to_owned()).collect(),
            initial_resource_versions: held.clone().into_iter().collect(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.expect("open");
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
        let responses = responses.expect("a stream").into_inner();
        let held = held.into_iter().map(|(name, version)| ((CDS.to_owned(), name), version)).collect();
        Client { requests, responses, held, hosts: BTreeMap::new(), answered: BTreeSet::new() }
    }

    async fn ask(&self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.expect("open");
    }

    /// The next response, acknowledged. Endpoints of new clusters are asked for, as proxies do.
    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("in time");
        let response = response.expect("no error").expect("not the end");
        let type_url = response.type_url.clone();
        let mut fresh = Vec::new();
        for resource in &response.resources {
            let key = (type_url.clone(), resource.name.clone());
            if self.held.insert(key, resource.version.clone()).is_none()
                && type_url == CDS
                && resource.name.starts_with("outbound|")
            {
                fresh.push(resource.name.clone());
            }
        }
        for name in &response.removed_resources {
            self.held.remove(&(type_url.clone(), name.clone()));
        }
        if type_url == VHDS {
            self.take_hosts(&response);
        }
        let answer = DeltaDiscoveryRequest {
            type_url,
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.expect("open");
        if !fresh.is_empty() {
            self.ask(EDS, &fresh.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
        response
    }

    /// Takes virtual hosts as Envoy does, which all together must be a table without doubt.
    fn take_hosts(&mut self, response: &DeltaDiscoveryResponse) {
        for name in &response.removed_resources {
            self.hosts.remove(name);
        }
        for resource in &response.resources {
            let body = resource.resource.as_ref().expect("a body");
            let host = VirtualHost::decode(body.value.as_slice()).expect("a virtual host");
            assert_eq!(host.name, resource.name);
            // Where it leads to is there.
            for cluster in leads_to(&host).filter(|cluster| cluster.starts_with("outbound|")) {
                assert!(self.has(CDS, &cluster) && self.has(EDS, &cluster), "{cluster}");
            }
            self.answered.extend(resource.aliases.iter().chain([&resource.name]).cloned());
            self.hosts.insert(host.name.clone(), host);
        }
        let mut domains = BTreeSet::new();
        let all = self.hosts.values().flat_map(|host| &host.domains);
        assert!(all.into_iter().all(|domain| domains.insert(domain)), "twice: {:?}", self.hosts);
    }

    /// Reads until a virtual host leads to a cluster.
    async fn until_led(&mut self, name: &str, cluster: &str) {
        let leads = |client: &Client| {
            client.hosts.get(name).is_some_and(|host| leads_to(host).any(|found| found == cluster))
        };
        self.until(&format!("{name} to {cluster}"), leads).await;
    }

    /// Reads until something holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Client) -> bool) {
        let read = async {
            while !holds(self) {
                self.next().await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, read).await.is_ok(), "{what}: {:?}", self.clusters());
    }

    /// The clusters of services that it has.
    fn clusters(&self) -> BTreeSet<String> {
        let clusters =
            self.held.keys().filter(|(type_url, name)| type_url == CDS && name.starts_with("outbound|"));
        clusters.map(|(_, name)| name.clone()).collect()
    }

    fn has(&self, type_url: &str, name: &str) -> bool {
        self.held.contains_key(&(type_url.to_owned(), name.to_owned()))
    }

    /// All clusters that it holds with their versions, to come back with.
    fn holds(&self) -> BTreeMap<String, String> {
        let clusters = self.held.iter().filter(|((type_url, _), _)| type_url == CDS);
        clusters.map(|((_, name), version)| (name.clone(), version.clone())).collect()
    }
}

fn set(names: &[String]) -> BTreeSet<String> {
    names.iter().cloned().collect()
}

#[tokio::test]
async fn a_sidecar_has_what_its_workload_uses() {
    let folder = mesh();
    let pilot = Pilot::start(folder.path()).await;
    let mut web = Client::connect(&pilot, node("web", "true"), &[], BTreeMap::new()).await;
    web.until("the fixed clusters", |client| client.has(CDS, "PassthroughCluster")).await;
    assert_eq!(web.clusters(), BTreeSet::new());
    web.ask(LDS, &[]).await;
    let listeners = web.next().await;
    let body = |name: &str| {
        let found = listeners.resources.iter().find(|resource| resource.name == name).expect(name);
        found.resource.clone().expect("a body").value
    };
    // Requests and connections wait for what is not there; what comes in does not.
    let contains = |body: &[u8], text: &str| body.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(contains(&body("0.0.0.0_80"), "envoy.filters.http.on_demand"));
    assert!(!contains(&body("virtualInbound"), "on_demand"));
    web.ask(RDS, &["80"]).await;
    web.until("the routes", |client| client.has(RDS, "80")).await;
    // What is asked for comes, and its endpoints; what there is not is told so.
    web.ask(CDS, &[&cluster(1)]).await;
    web.until("endpoints", |client| client.has(EDS, &cluster(1))).await;
    web.ask(CDS, &[&cluster(1), "outbound|80||nowhere.mesh"]).await;
    while !web.next().await.removed_resources.contains(&"outbound|80||nowhere.mesh".to_owned()) {}
    assert_eq!(web.clusters(), set(&[cluster(1)]));
    // A replica of the same workload is told of it at once, another workload is not.
    let mut replica = Client::connect(&pilot, node("web", "true"), &[], BTreeMap::new()).await;
    replica.until("what its like use", |client| client.clusters() == set(&[cluster(1)])).await;
    let mut other = Client::connect(&pilot, node("other", "true"), &[], BTreeMap::new()).await;
    other.until("the fixed clusters", |client| client.has(CDS, "PassthroughCluster")).await;
    assert_eq!(other.clusters(), BTreeSet::new());
    // What one asks for later the other is told of too.
    replica.ask(CDS, &[&cluster(2)]).await;
    let both = set(&[cluster(1), cluster(2)]);
    replica.until("what it asks for", |client| client.clusters() == both).await;
    web.until("what the other asks for", |client| client.clusters() == both).await;
    // Copies of requests wait for nobody.
    write(
        folder.path(),
        "mirror.yaml",
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: s1}
spec:
  hosts: [s1.mesh]
  http: [{route: [{destination: {host: s1.mesh}}], mirror: {host: s7.mesh}}]
",
    );
    web.until("the mirror", |client| client.clusters() == set(&[cluster(1), cluster(2), cluster(7)])).await;
    // A cluster that changes has its endpoints told again, whom routes would wait for otherwise.
    write(
        folder.path(),
        "policy.yaml",
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: s1}
spec: {host: s1.mesh, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}}}
",
    );
    for type_url in [CDS, EDS] {
        let is_it = |response: &DeltaDiscoveryResponse| {
            let mut resources = response.resources.iter();
            response.type_url == type_url && resources.any(|resource| resource.name == cluster(1))
        };
        while !is_it(&web.next().await) {}
    }
    // What is not used changes without a word about clusters; what is goes when it is gone.
    fs::remove_file(folder.path().join("s30.yaml")).expect("there");
    fs::remove_file(folder.path().join("s2.yaml")).expect("there");
    let left = set(&[cluster(1), cluster(7)]);
    web.until("an end", |client| client.clusters() == left).await;
    replica.until("an end", |client| !client.clusters().contains(&cluster(2))).await;
    assert_eq!(other.clusters(), BTreeSet::new());
    // It comes again, and who has asked for it has it again.
    write(folder.path(), "s2.yaml", &service(2));
    replica.until("a return", |client| client.clusters().contains(&cluster(2))).await;
    pilot.stop().await;
}

#[tokio::test]
async fn who_comes_back_keeps_what_he_has() {
    let folder = mesh();
    let pilot = Pilot::start(folder.path()).await;
    let mut web = Client::connect(&pilot, node("web", "true"), &[], BTreeMap::new()).await;
    web.ask(CDS, &[&cluster(3), &cluster(4)]).await;
    let both = set(&[cluster(3), cluster(4)]);
    web.until("what it asks for", |client| client.clusters() == both).await;
    let held = web.holds();
    drop(web);
    pilot.stop().await;
    // The next control plane knows nothing but what it is told.
    let pilot = Pilot::start(folder.path()).await;
    let mut web = Client::connect(&pilot, node("web", "true"), &[&cluster(3)], held).await;
    web.ask(LDS, &[]).await;
    // Clusters are told of before listeners, if there is anything to tell.
    web.until("listeners", |client| client.has(LDS, "virtualOutbound")).await;
    assert_eq!(web.clusters(), both);
    let mut fresh = Client::connect(&pilot, node("web", "true"), &[], BTreeMap::new()).await;
    fresh.until("what its like use", |client| client.clusters() == both).await;
    // Who does not want it has all.
    for (lazy, count) in [("false", 2 * SERVICES), ("true", 2)] {
        let mut client = Client::connect(&pilot, node("web", lazy), &[], BTreeMap::new()).await;
        client.until(lazy, |client| client.clusters().len() == count).await;
    }
    let mut node = node("web", "");
    node.metadata.as_mut().expect("some").fields.remove("LENO_LAZY");
    let mut envoy = Client::connect(&pilot, node.clone(), &[], BTreeMap::new()).await;
    envoy.until("all", |client| client.clusters().len() == 2 * SERVICES).await;
    node.user_agent_name = "leno".to_owned();
    let mut ours = Client::connect(&pilot, node, &[], BTreeMap::new()).await;
    ours.until("what its like use", |client| client.clusters() == both).await;
    pilot.stop().await;
}

/// The clusters that a virtual host's routes name.
fn leads_to(host: &VirtualHost) -> impl Iterator<Item = String> {
    host.routes.iter().filter_map(|route| match route.action.as_ref()? {
        Action::Route(action) => match action.cluster_specifier.as_ref()? {
            ClusterSpecifier::Cluster(name) => Some(name.clone()),
            _ => None,
        },
        _ => None,
    })
}

/// A sidecar of an app that asks for virtual hosts too.
fn asking(app: &str) -> Node {
    let mut node = node(app, "true");
    let metadata = node.metadata.as_mut().expect("some");
    metadata.fields.insert("LENO_LAZY_ROUTES".to_owned(), text("true"));
    node
}

/// Connects one, up to where a listener's routes say that there are virtual hosts.
async fn connect(pilot: &Pilot, app: &str) -> Client {
    let mut client = Client::connect(pilot, asking(app), &[], BTreeMap::new()).await;
    client.until("the fixed clusters", |client| client.has(CDS, "PassthroughCluster")).await;
    client.ask(LDS, &[]).await;
    client.until("the listeners", |client| client.has(LDS, "0.0.0.0_80")).await;
    client.ask(RDS, &["80"]).await;
    let table = loop {
        let response = client.next().await;
        if let Some(table) = response.resources.into_iter().find(|_| response.type_url == RDS) {
            break RouteConfiguration::decode(table.resource.expect("a body").value.as_slice());
        }
    };
    let table = table.expect("a route configuration");
    assert!(table.vhds.is_some() && table.virtual_hosts.is_empty(), "{table:?}");
    client
}

#[tokio::test]
async fn a_sidecar_has_the_virtual_hosts_that_its_workload_uses() {
    let folder = mesh();
    let pilot = Pilot::start(folder.path()).await;
    let mut web = connect(&pilot, "web").await;
    web.ask(VHDS, &[]).await;
    let first = loop {
        let response = web.next().await;
        if response.type_url == VHDS {
            break response;
        }
    };
    assert!(first.resources.is_empty() && first.removed_resources.is_empty());
    // By whatever name and port: one answer, with its cluster and endpoints.
    web.ask(VHDS, &["80/s1.mesh:80", "80/240.0.0.1"]).await;
    web.until_led("80/s1.mesh", &cluster(1)).await;
    assert!(["80/s1.mesh:80", "80/240.0.0.1"].iter().all(|asked| web.answered.contains(*asked)));
    let domains = &web.hosts["80/s1.mesh"].domains;
    assert!(
        ["s1.mesh", "240.0.0.1"].iter().all(|domain| domains.iter().any(|own| own == domain)),
        "{domains:?}"
    );
    // A question is answered again by what there is already.
    web.answered.clear();
    web.ask(VHDS, &["80/s1.mesh."]).await;
    web.until("an answer", |client| client.answered.contains("80/s1.mesh.")).await;
    assert_eq!(web.clusters(), set(&[cluster(1)]));
    // Its like have it too, with the first answer; others have not.
    let mut replica = connect(&pilot, "web").await;
    replica.ask(VHDS, &[]).await;
    replica.until_led("80/s1.mesh", &cluster(1)).await;
    let mut other = connect(&pilot, "other").await;
    other.ask(VHDS, &["80/s2.mesh"]).await;
    other.until_led("80/s2.mesh", &cluster(2)).await;
    assert_eq!(other.hosts.len(), 1);
    // Unknown hosts go where they want, each by itself, until there is such a service.
    let name = format!("80/{}", host(SERVICES));
    web.ask(VHDS, &[&name, "80/nowhere.example:81", "80/*.example", "80/*"]).await;
    web.until_led(&name, "PassthroughCluster").await;
    web.until_led("80/nowhere.example", "PassthroughCluster").await;
    assert_eq!(web.hosts[&name].domains, [host(SERVICES)]);
    web.until("what no request can have", |client| client.hosts.contains_key("80/*")).await;
    for odd in ["80/*", "80/*.example"] {
        assert!(web.hosts[odd].routes.is_empty() && web.hosts[odd].domains == [odd], "{odd}");
    }
    write(folder.path(), "new.yaml", &service(SERVICES));
    web.until_led(&name, &cluster(SERVICES)).await;
    assert!(web.hosts[&name].domains.len() > 1);
    replica.until_led(&name, &cluster(SERVICES)).await;
    // A rule reaches those who have its virtual host.
    write(
        folder.path(),
        "rule.yaml",
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: s1}
spec: {hosts: [s1.mesh], http: [{route: [{destination: {host: s3.mesh}}]}]}
",
    );
    web.until_led("80/s1.mesh", &cluster(3)).await;
    // A service that goes leaves no host without an answer that was asked for.
    fs::remove_file(folder.path().join("rule.yaml")).expect("there");
    fs::remove_file(folder.path().join("s1.yaml")).expect("there");
    for asked in ["80/s1.mesh", "80/240.0.0.1"] {
        web.until_led(asked, "PassthroughCluster").await;
    }
    web.until("an end", |client| !client.has(CDS, &cluster(1)) && !client.has(CDS, &cluster(3))).await;
    write(folder.path(), "s1.yaml", &service(1));
    web.until_led("80/s1.mesh", &cluster(1)).await;
    web.until("one again", |client| !client.hosts.contains_key("80/240.0.0.1")).await;
    // What it does not use changes without a word to it.
    assert_eq!(other.hosts.len(), 1);
    // The next control plane knows what it is told.
    let hosts = web.held.iter().filter(|((type_url, _), _)| type_url == VHDS);
    let hosts: BTreeMap<String, String> =
        hosts.map(|((_, name), version)| (name.clone(), version.clone())).collect();
    drop((web, replica, other));
    pilot.stop().await;
    let pilot = Pilot::start(folder.path()).await;
    let mut web = connect(&pilot, "web").await;
    let again = DeltaDiscoveryRequest {
        type_url: VHDS.to_owned(),
        resource_names_subscribe: vec!["*".to_owned(), "80/240.0.0.1".to_owned()],
        initial_resource_versions: hosts.into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    web.requests.send(again).await.expect("open");
    web.until_led("80/s1.mesh", &cluster(1)).await;
    assert_eq!(web.hosts.len(), 1, "only what was asked for is told again: {:?}", web.hosts.keys());
    let mut fresh = connect(&pilot, "web").await;
    fresh.ask(VHDS, &[]).await;
    fresh.until_led(&name, &cluster(SERVICES)).await;
    assert_eq!(fresh.clusters(), set(&[cluster(1), cluster(SERVICES)]));
    pilot.stop().await;
}

/// What a proxy says that it has is looked at before it is learnt for good: of hosts that somebody has made
/// up there are no more than a limit. Those that are too long for a host are nobody's.
#[tokio::test]
async fn made_up_hosts_that_a_sidecar_brings_are_limited() {
    const BROUGHT: usize = 1100;
    let folder = mesh();
    let pilot = Pilot::start(folder.path()).await;
    let mut web = connect(&pilot, "web").await;
    let brought = (0..BROUGHT).map(|index| format!("80/x{index}.example"));
    let brought = brought.chain(["80/s1.mesh".to_owned(), format!("80/{}", "x".repeat(600))]);
    let request = DeltaDiscoveryRequest {
        type_url: VHDS.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        initial_resource_versions: brought.map(|name| (name, "1".to_owned())).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    web.requests.send(request).await.expect("open");
    web.until_led("80/s1.mesh", &cluster(1)).await;
    let made_up = |client: &Client| client.hosts.keys().filter(|name| name.ends_with(".example")).count();
    assert_eq!((web.hosts.len(), made_up(&web)), (1001, 1000));
    // What is asked for has room, unless it is too long; then it is said that there is none.
    let long = format!("80/{}.example", "y".repeat(600));
    web.ask(VHDS, &["80/one-more.example", &long]).await;
    web.until("one more", |client| client.answered.contains("80/one-more.example")).await;
    web.ask(VHDS, &[&long]).await;
    while !web.next().await.removed_resources.contains(&long) {}
    assert_eq!(made_up(&web), 1001);
    pilot.stop().await;
}

/// Make before break holds over the end of a stream: what routes may still lead to goes after they have
/// been told anew, though it is not known any more.
#[tokio::test]
async fn who_comes_back_keeps_what_has_gone_until_his_routes_do_without() {
    let folder = mesh();
    let pilot = Pilot::start(folder.path()).await;
    for lazy in ["true", "false"] {
        write(folder.path(), "s5.yaml", &service(5));
        let mut web = Client::connect(&pilot, node("web", lazy), &[&cluster(5)], BTreeMap::new()).await;
        web.until("what it asks for", |client| client.clusters().contains(&cluster(5))).await;
        let held = web.holds();
        drop(web);
        fs::remove_file(folder.path().join("s5.yaml")).expect("it is there");
        let mut fresh = Client::connect(&pilot, node("fresh", "false"), &[], BTreeMap::new()).await;
        fresh.until("an end", |client| client.has(CDS, "PassthroughCluster")).await;
        fresh.until("an end", |client| !client.clusters().contains(&cluster(5))).await;
        let mut web = Client::connect(&pilot, node("web", lazy), &[&cluster(5)], held).await;
        web.ask(EDS, &[&cluster(5)]).await;
        web.ask(LDS, &[]).await;
        web.ask(RDS, &["80"]).await;
        web.until("listeners", |client| client.has(LDS, "virtualOutbound")).await;
        assert!(web.clusters().contains(&cluster(5)), "{lazy}: before the routes");
        web.until("routes", |client| client.has(RDS, "80")).await;
        assert!(web.clusters().contains(&cluster(5)), "{lazy}: with the routes");
        web.until("an end", |client| !client.clusters().contains(&cluster(5))).await;
    }
    pilot.stop().await;
}
