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
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use leno_control::server::{Config, Server};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
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
        Client { requests, responses, held }
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
