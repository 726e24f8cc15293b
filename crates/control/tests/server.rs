//! The control plane as its clients see it: over gRPC and HTTP, while files change.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use leno_api::proto::envoy::config::route::v3::RouteConfiguration;
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_api::proto::istio::networking::nds::v1::name_table::NameInfo;
use leno_control::server::{Config, Server};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.96.0.5, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";

fn pod(name: &str, version: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: reviews, version: {version}}}}}\n\
         spec: {{containers: []}}\nstatus: {{podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

fn rules(subsets: &[&str]) -> String {
    let defined: Vec<String> =
        subsets.iter().map(|name| format!("{{name: {name}, labels: {{version: {name}}}}}")).collect();
    let routes: Vec<String> = subsets
        .iter()
        .map(|name| format!("{{destination: {{host: reviews, subset: {name}}}, weight: 1}}"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\n\
         spec: {{host: reviews, subsets: [{}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\n\
         spec: {{hosts: [reviews], http: [{{route: [{}]}}]}}\n",
        defined.join(", "),
        routes.join(", ")
    )
}

/// A running control plane over a folder.
struct Pilot {
    folder: tempfile::TempDir,
    grpc: SocketAddr,
    http: SocketAddr,
    /// Where the same is served again.
    second_http: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Pilot {
    async fn start(files: &[(&str, &str)]) -> Pilot {
        let folder = tempfile::tempdir().expect("a folder");
        files.iter().for_each(|(name, text)| write(folder.path(), name, text));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(vec![folder.path().to_owned()]);
        config.grpc_addr = any;
        config.http_addr = any;
        config.second_http_addr = Some(any);
        let server = Server::bind(config).await.expect("free ports");
        let (grpc, http) = (server.grpc_addr().expect("an address"), server.http_addr().expect("an address"));
        let second_http = server.second_http_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Pilot { folder, grpc, http, second_http, stop: Some(stop), task }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        Pilot::get_at(self.http, path).await
    }

    async fn get_at(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("it answers");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    async fn stop(mut self) {
        self.stop.take().expect("it runs").send(()).expect("it runs");
        tokio::time::timeout(LIMIT, self.task).await.expect("it stops").expect("it does not panic");
    }
}

/// Replaces a file as careful editors do.
fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join("draft");
    fs::write(&draft, text).expect("writable");
    fs::rename(draft, folder.join(name)).expect("renamable");
}

/// A SotW client that does what it is told.
struct Client {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Client {
    async fn connect(pilot: &Pilot, id: &str, type_url: &str, names: &[&str]) -> Client {
        let node = Node { id: id.to_owned(), ..Node::default() };
        Client::start(pilot, DiscoveryRequest { node: Some(node), ..request(type_url, names) }).await
    }

    async fn start(pilot: &Pilot, first: DiscoveryRequest) -> Client {
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", pilot.grpc))
            .await
            .expect("it listens");
        let (requests, outgoing) = mpsc::channel(8);
        requests.send(first).await.expect("open");
        let responses = client.stream_aggregated_resources(ReceiverStream::new(outgoing)).await;
        Client { requests, responses: responses.expect("a stream").into_inner() }
    }

    async fn ask(&self, type_url: &str, names: &[&str]) {
        self.requests.send(request(type_url, names)).await.expect("open");
    }

    /// The next response, which must be of a type.
    async fn next(&mut self, type_url: &str) -> DiscoveryResponse {
        let response = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("in time");
        let response = response.expect("no error").expect("not the end");
        assert_eq!(response.type_url, type_url);
        response
    }

    async fn ack(&self, response: &DiscoveryResponse, names: &[&str]) {
        let request = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..request(&response.type_url, names)
        };
        self.requests.send(request).await.expect("open");
    }

    async fn nack(&self, response: &DiscoveryResponse, names: &[&str], message: &str) {
        let error =
            leno_api::proto::google::rpc::Status { message: message.to_owned(), ..Default::default() };
        let request = DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: Some(error),
            ..request(&response.type_url, names)
        };
        self.requests.send(request).await.expect("open");
    }
}

fn request(type_url: &str, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        ..DiscoveryRequest::default()
    }
}

/// The names of clusters in a response, without those that are always there.
fn clusters(response: &DiscoveryResponse) -> Vec<String> {
    use leno_api::proto::envoy::config::cluster::v3::Cluster;
    let clusters =
        response.resources.iter().map(|any| Cluster::decode(any.value.as_slice()).expect("a cluster"));
    let mut names: Vec<String> =
        clusters.map(|cluster| cluster.name).filter(|name| name.starts_with("outbound|")).collect();
    names.sort();
    names
}

/// The names of the clusters of some subsets.
fn names(subsets: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = subsets.iter().map(|subset| name(subset)).collect();
    names.sort();
    names
}

fn name(subset: &str) -> String {
    format!("outbound|9080|{subset}|reviews.default.svc.cluster.local")
}

const SIDECAR: &str = "sidecar~10.0.0.9~client.default~default.svc.cluster.local";

#[tokio::test]
async fn changes_reach_a_proxy_in_an_order_that_loses_nothing() {
    let pods = pod("a", "v1", "10.0.0.1") + &pod("b", "v2", "10.0.0.2");
    let pilot =
        Pilot::start(&[("service.yaml", SERVICE), ("pods.yaml", &pods), ("rules.yaml", &rules(&["v1"]))])
            .await;
    let mut client = Client::connect(&pilot, SIDECAR, CDS, &[]).await;

    let first = client.next(CDS).await;
    assert_eq!(clusters(&first), names(&["", "v1"]));
    client.ack(&first, &[]).await;
    let (all, v1, v2) = (name(""), name("v1"), name("v2"));
    client.ask(EDS, &[&all, &v1]).await;
    let endpoints = client.next(EDS).await;
    assert_eq!(endpoints.resources.len(), 2);
    client.ack(&endpoints, &[&all, &v1]).await;
    client.ask(LDS, &[]).await;
    let listeners = client.next(LDS).await;
    client.ack(&listeners, &[]).await;
    client.ask(RDS, &["9080"]).await;
    let routes = client.next(RDS).await;
    client.ack(&routes, &["9080"]).await;

    // A new subset: the route to it comes only after the cluster and its endpoints were taken.
    write(pilot.folder.path(), "rules.yaml", &rules(&["v2"]));
    let added = client.next(CDS).await;
    assert_eq!(clusters(&added), names(&["", "v1", "v2"]), "the old one lingers");
    client.ack(&added, &[]).await;
    client.ask(EDS, &[&all, &v1, &v2]).await;
    let endpoints = client.next(EDS).await;
    let found: Vec<ClusterLoadAssignment> = endpoints
        .resources
        .iter()
        .map(|any| ClusterLoadAssignment::decode(any.value.as_slice()).expect("endpoints"))
        .collect();
    assert!(found.iter().any(|found| found.cluster_name == v2 && found.endpoints.len() == 1), "{found:?}");
    client.ack(&endpoints, &[&all, &v1, &v2]).await;
    let routes = client.next(RDS).await;
    let route = RouteConfiguration::decode(routes.resources[0].value.as_slice()).expect("a route");
    assert!(format!("{route:?}").contains(&v2));
    client.ack(&routes, &["9080"]).await;
    // And the old cluster goes only after the route was taken.
    let removed = client.next(CDS).await;
    assert_eq!(clusters(&removed), names(&["", "v2"]));
    client.ack(&removed, &[]).await;
    pilot.stop().await;
}

/// How long proxies may take to connect to the service, by a response with clusters.
fn connect_timeout(response: &DiscoveryResponse) -> Option<i64> {
    use leno_api::proto::envoy::config::cluster::v3::Cluster;
    let mut clusters = response.resources.iter().filter_map(|any| Cluster::decode(any.value.as_slice()).ok());
    clusters.find(|cluster| cluster.name == name(""))?.connect_timeout.map(|timeout| timeout.seconds)
}

#[tokio::test]
async fn patches_ask_for_metadata_that_proxies_said_before() {
    let pilot = Pilot::start(&[("service.yaml", SERVICE)]).await;
    let connect = async |metadata: &[(&str, &str)]| {
        let text = |value: &str| prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
        };
        let fields = metadata.iter().map(|(name, value)| ((*name).to_owned(), text(value)));
        let metadata = prost_types::Struct { fields: fields.collect() };
        let node = Node { id: SIDECAR.to_owned(), metadata: Some(metadata), ..Node::default() };
        let first = DiscoveryRequest { node: Some(node), ..request(CDS, &[]) };
        let mut client = Client::start(&pilot, first).await;
        let clusters = client.next(CDS).await;
        assert_eq!(connect_timeout(&clusters), Some(10));
        client.ack(&clusters, &[]).await;
        client
    };
    let mut gold = connect(&[("TIER", "gold")]).await;
    let mut plain = connect(&[("TIER", "silver")]).await;
    let filter = |value: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {{name: f}}, spec: {{configPatches: \
             [{{applyTo: CLUSTER, match: {{cluster: {{portNumber: 9080}}, proxy: {{metadata: {{TIER: gold}}}}}}, \
             patch: {{operation: MERGE, value: {value}}}}}]}}}}"
        )
    };
    write(pilot.folder.path(), "filter.yaml", &filter("{connect_timeout: 7s}"));
    let clusters = gold.next(CDS).await;
    assert_eq!(connect_timeout(&clusters), Some(7));
    gold.ack(&clusters, &[]).await;
    // The other is not told anything before there is something for it.
    write(pilot.folder.path(), "other.yaml", &SERVICE.replace("reviews", "other").replace("0.5", "0.6"));
    assert_eq!(connect_timeout(&plain.next(CDS).await), Some(10));
    let clusters = gold.next(CDS).await;
    assert_eq!(connect_timeout(&clusters), Some(7));
    gold.ack(&clusters, &[]).await;
    // What would spoil the cluster is left out and said.
    write(pilot.folder.path(), "filter.yaml", &filter("{type: STATIC}"));
    assert_eq!(connect_timeout(&gold.next(CDS).await), Some(10));
    faults(&pilot, true).await;
    let (_, body) = pilot.get("/debug/diagnostics").await;
    assert!(body.contains("patch-failed") && body.contains("filter.yaml"), "{body}");
    pilot.stop().await;
}

/// Waits until there are faults, or none.
async fn faults(pilot: &Pilot, wanted: bool) {
    let search = async {
        loop {
            let (_, body) = pilot.get("/debug/diagnostics").await;
            let all: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            if all.as_array().is_some_and(|all| all.is_empty() != wanted) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, search).await.expect("in time");
}

#[tokio::test]
async fn routes_and_clusters_that_are_written_apart_come_together() {
    let pods = pod("a", "v1", "10.0.0.1") + &pod("b", "v2", "10.0.0.2");
    let parts = |subset: &str| {
        let both = rules(&[subset]);
        let (policy, routes) = both.split_once("---\n").expect("two objects");
        (policy.to_owned(), routes.to_owned())
    };
    let ((policy1, routes1), (policy2, routes2)) = (parts("v1"), parts("v2"));
    let files = [
        ("service.yaml", SERVICE),
        ("pods.yaml", &pods),
        ("policy.yaml", &policy1),
        ("routes.yaml", &routes1),
    ];
    let pilot = Pilot::start(&files).await;
    let mut client = Client::connect(&pilot, SIDECAR, CDS, &[]).await;
    let first = client.next(CDS).await;
    client.ack(&first, &[]).await;
    let (all, v1, v2) = (name(""), name("v1"), name("v2"));
    client.ask(EDS, &[&all, &v1]).await;
    let endpoints = client.next(EDS).await;
    client.ack(&endpoints, &[&all, &v1]).await;
    client.ask(RDS, &["9080"]).await;
    let routes = client.next(RDS).await;
    client.ack(&routes, &["9080"]).await;
    faults(&pilot, false).await;

    // A route to what is not there yet is not told before it is.
    write(pilot.folder.path(), "routes.yaml", &routes2);
    faults(&pilot, true).await;
    write(pilot.folder.path(), "policy.yaml", &policy2);
    let added = client.next(CDS).await;
    assert_eq!(clusters(&added), names(&["", "v1", "v2"]));
    client.ack(&added, &[]).await;
    client.ask(EDS, &[&all, &v1, &v2]).await;
    let endpoints = client.next(EDS).await;
    client.ack(&endpoints, &[&all, &v1, &v2]).await;
    let routes = client.next(RDS).await;
    assert!(String::from_utf8_lossy(&routes.resources[0].value).contains(&v2));
    client.ack(&routes, &["9080"]).await;
    let removed = client.next(CDS).await;
    assert_eq!(clusters(&removed), names(&["", "v2"]));
    client.ack(&removed, &[]).await;
    client.ask(EDS, &[&all, &v2]).await;
    let endpoints = client.next(EDS).await;
    client.ack(&endpoints, &[&all, &v2]).await;

    // A cluster that goes stays until the routes there have changed.
    write(pilot.folder.path(), "policy.yaml", &policy1);
    faults(&pilot, true).await;
    let added = client.next(CDS).await;
    assert_eq!(clusters(&added), names(&["", "v1", "v2"]));
    client.ack(&added, &[]).await;
    client.ask(EDS, &[&all, &v1, &v2]).await;
    let endpoints = client.next(EDS).await;
    client.ack(&endpoints, &[&all, &v1, &v2]).await;
    write(pilot.folder.path(), "routes.yaml", &routes1);
    let routes = client.next(RDS).await;
    assert!(String::from_utf8_lossy(&routes.resources[0].value).contains(&v1));
    client.ack(&routes, &["9080"]).await;
    let removed = client.next(CDS).await;
    assert_eq!(clusters(&removed), names(&["", "v1"]));
    pilot.stop().await;
}

#[tokio::test]
async fn proxies_of_one_namespace_have_their_own_listeners_whoever_asks_first() {
    let pods = pod("a", "v1", "10.0.0.1") + &pod("b", "v2", "10.0.0.2");
    let pilot = Pilot::start(&[("service.yaml", SERVICE), ("pods.yaml", &pods)]).await;
    let id = |name: &str, ip: &str| format!("sidecar~{ip}~{name}.default~default.svc.cluster.local");
    // Both are there before either asks for listeners.
    let mut late = Client::connect(&pilot, &id("b", "10.0.0.2"), CDS, &[]).await;
    late.next(CDS).await;
    let mut early = Client::connect(&pilot, &id("a", "10.0.0.1"), LDS, &[]).await;
    assert!(has_inbound(&early.next(LDS).await));
    late.ask(LDS, &[]).await;
    assert!(has_inbound(&late.next(LDS).await));
    pilot.stop().await;
}

fn has_inbound(response: &DiscoveryResponse) -> bool {
    use leno_api::proto::envoy::config::listener::v3::Listener;
    let names = response.resources.iter().map(|any| Listener::decode(any.value.as_slice()).expect("it").name);
    names.into_iter().any(|name| name == "virtualInbound")
}

#[tokio::test]
async fn a_refusal_is_told_with_the_object_to_blame() {
    let gateway = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ['*']
---
apiVersion: v1
kind: Pod
metadata: {name: gw, labels: {istio: ingressgateway}}
spec: {containers: []}
";
    let pilot = Pilot::start(&[("gateway.yaml", gateway)]).await;
    let id = "router~10.0.0.9~gw.default~default.svc.cluster.local";
    let mut client = Client::connect(&pilot, id, LDS, &[]).await;
    let response = client.next(LDS).await;
    assert_eq!(response.resources.len(), 1);
    client
        .nack(&response, &[], "Error adding listener(s) 0.0.0.0_8080: cannot bind: Address already in use")
        .await;
    // The answer to a question comes after the refusal, as both go through the loop.
    let told = loop {
        let (status, body) = pilot.get("/debug/diagnostics").await;
        assert_eq!(status, 200);
        let all: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        if all.as_array().is_some_and(|all| !all.is_empty()) {
            break all;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(told[0]["code"], "nack");
    assert_eq!(told[0]["kind"], "Gateway");
    assert_eq!(told[0]["path"], "spec.servers[0].port.number");
    assert_eq!(told[0]["line"], 8);
    let (_, sync) = pilot.get("/debug/syncz").await;
    assert!(sync.contains("\"ERROR\""), "{sync}");
    pilot.stop().await;
}

#[tokio::test]
async fn people_can_look_inside() {
    let pilot = Pilot::start(&[("service.yaml", SERVICE), ("pods.yaml", &pod("a", "v1", "10.0.0.1"))]).await;
    let mut client = Client::connect(&pilot, SIDECAR, CDS, &[]).await;
    let response = client.next(CDS).await;
    client.ack(&response, &[]).await;
    assert_eq!(pilot.get("/ready").await.0, 200);
    assert_eq!(Pilot::get_at(pilot.second_http, "/ready").await.0, 200);
    let (_, registry) = pilot.get("/debug/registryz").await;
    assert_eq!(Pilot::get_at(pilot.second_http, "/debug/registryz").await.1, registry);
    let registry: serde_json::Value = serde_json::from_str(&registry).expect("JSON");
    assert_eq!(registry[0]["hostname"], "reviews.default.svc.cluster.local");
    assert_eq!(registry[0]["addresses"][0], "10.96.0.5");
    assert_eq!(registry[0]["endpoints"][0]["address"], "10.0.0.1");
    let (_, config) = pilot.get("/debug/configz").await;
    assert!(config.contains("service.yaml"), "{config}");
    let (status, dump) = pilot.get("/debug/config_dump?proxyID=client.default").await;
    assert_eq!(status, 200);
    assert!(dump.contains("outbound|9080||reviews.default.svc.cluster.local"), "{dump}");
    assert_eq!(pilot.get("/debug/config_dump?proxyID=nobody.default").await.0, 404);
    assert_eq!(pilot.get("/debug/config_dump").await.0, 400);
    assert_eq!(pilot.get("/nothing").await.0, 404);
    pilot.stop().await;
}

#[tokio::test]
async fn all_pages_answer() {
    let pilot = Pilot::start(&[("service.yaml", SERVICE), ("pods.yaml", &pod("a", "v1", "10.0.0.1"))]).await;
    let mut client = Client::connect(&pilot, SIDECAR, CDS, &[]).await;
    let response = client.next(CDS).await;
    client.ack(&response, &[]).await;
    let (_, names) = pilot.get("/debug/list").await;
    let names: Vec<String> = serde_json::from_str(&names).expect("JSON");
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        let (status, body) = pilot.get(&format!("/debug/{name}?proxyID=client.default")).await;
        let expected = if ["inject", "mcsz"].contains(&name.as_str()) { 404 } else { 200 };
        assert_eq!(status, expected, "{name}: {body}");
    }
    let (_, index) = pilot.get("/debug").await;
    assert!(names.iter().all(|name| index.contains(&format!("\"/debug/{name}\""))), "{index}");
    for path in ["/version", "/healthz", "/metrics"] {
        assert_eq!(pilot.get(path).await.0, 200, "{path}");
    }
    let (status, known) = pilot.get("/debug/nothing").await;
    assert!(status == 404 && known.contains("/debug/syncz"), "{known}");
    // The shapes that istioctl decodes.
    let page = async |path: &str| -> serde_json::Value {
        serde_json::from_str(&pilot.get(path).await.1).expect("JSON")
    };
    let sync = page("/debug/syncz").await;
    assert_eq!((&sync[0]["proxy"], &sync[0]["proxy_type"]), (&"client.default".into(), &"sidecar".into()));
    assert_eq!(sync[0]["cluster_sent"], sync[0]["cluster_acked"]);
    assert_eq!(sync[0]["resources"][CDS]["acked"], response.nonce);
    assert_eq!(page("/debug/syncz?namespace=other").await, serde_json::json!([]));
    let endpoints = page("/debug/endpointShardz").await;
    let shard = &endpoints["reviews.default.svc.cluster.local"]["default"]["Shards"]["Kubernetes/Kubernetes"];
    assert_eq!((&shard[0]["Addresses"][0], &shard[0]["EndpointPort"]), (&"10.0.0.1".into(), &9080.into()));
    let dump = page("/debug/config_dump?proxyID=client").await;
    let kinds: Vec<&str> = dump["configs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|part| part["@type"].as_str())
        .collect();
    assert!(kinds.contains(&"type.googleapis.com/envoy.admin.v3.ClustersConfigDump"), "{kinds:?}");
    let cached = page("/debug/cachez").await;
    let clusters = cached[CDS].as_array().expect("a list");
    assert!(clusters.contains(&"outbound|9080||reviews.default.svc.cluster.local".into()), "{cached}");
    let sizes = page("/debug/cachez?sizes=true").await;
    assert_eq!(sizes["total"], sizes[CDS], "nothing else was asked for");
    assert_eq!(pilot.get("/debug/cachez?clear=true").await.0, 400);
    assert_eq!(page("/debug/krtz").await[0]["state"]["synced"], true);
    let clients = page("/debug/adsz").await;
    assert_eq!(clients["totalClients"], 1);
    assert_eq!(clients["clients"][0]["watches"][CDS], serde_json::json!([]));
    pilot.stop().await;
}

#[tokio::test]
async fn istioctl_asks_over_xds() {
    use prost_types::value::Kind;
    let pilot = Pilot::start(&[("service.yaml", SERVICE)]).await;
    let mut proxy = Client::connect(&pilot, SIDECAR, CDS, &[]).await;
    let response = proxy.next(CDS).await;
    proxy.ack(&response, &[]).await;
    let fields = [("GENERATOR", "event"), ("NAMESPACE", "istio-system")].map(|(name, value)| {
        (name.to_owned(), prost_types::Value { kind: Some(Kind::StringValue(value.to_owned())) })
    });
    let node = Node {
        id: "sidecar~10.0.0.1~test-1.default~default.svc.cluster.local".to_owned(),
        metadata: Some(prost_types::Struct { fields: fields.into_iter().collect() }),
        ..Node::default()
    };
    let asking = |type_url: &str, names: &[&str]| DiscoveryRequest {
        node: Some(node.clone()),
        response_nonce: "2026-11-22 10:00:00".to_owned(),
        ..request(type_url, names)
    };
    let mut looker = Client::start(&pilot, asking("istio.io/debug/syncz", &[])).await;
    let sync = looker.next("istio.io/debug/syncz").await;
    let who = sync.control_plane.clone().expect("it says who it is").identifier;
    assert!(who.contains("\"Component\":\"istiod\""), "{who}");
    let [config] = &sync.resources[..] else { panic!("one proxy, not the looker: {sync:?}") };
    assert_eq!(config.type_url, "type.googleapis.com/envoy.service.status.v3.ClientConfig");
    let words = String::from_utf8_lossy(&config.value).into_owned();
    assert!(words.contains("client.default") && words.contains(CDS), "{words}");
    looker.ack(&sync, &[]).await;
    looker.ask("istio.io/debug/config_dump", &["client.default"]).await;
    let dump = looker.next("istio.io/debug/config_dump").await;
    assert_eq!(dump.resources[1].type_url, "type.googleapis.com/envoy.admin.v3.ClustersConfigDump");
    looker.ask("istio.io/debug", &["syncz"]).await;
    let page = looker.next("istio.io/debug").await;
    assert_eq!(page.resources[0].type_url, "istio.io/debug");
    let page: serde_json::Value = serde_json::from_slice(&page.resources[0].value).expect("JSON");
    assert_eq!(page[0]["proxy"], "client.default");
    let (_, clients) = pilot.get("/debug/connections").await;
    assert!(clients.contains("\"totalClients\": 1"), "{clients}");
    looker.ask(CDS, &[]).await;
    assert!(looker.responses.message().await.is_err());
    // Whom a proxy on this machine speaks for may be anybody.
    let (requests, outgoing) = mpsc::channel(1);
    requests.send(asking("istio.io/debug/syncz", &[])).await.expect("open");
    let mut passed_on = tonic::Request::new(ReceiverStream::new(outgoing));
    passed_on.metadata_mut().insert("x-forwarded-for", "1.2.3.4".parse().expect("a value"));
    let client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", pilot.grpc)).await;
    let answer = client.expect("it listens").stream_aggregated_resources(passed_on).await;
    let error = match answer {
        Ok(mut answer) => answer.get_mut().message().await.expect_err("a refusal"),
        Err(error) => error,
    };
    assert_eq!(error.code(), tonic::Code::Unauthenticated, "{error}");
    pilot.stop().await;
}

#[tokio::test]
async fn what_happens_is_counted() {
    let pods = pod("a", "v1", "10.0.0.1") + &pod("b", "v2", "10.0.0.2");
    let files = [("service.yaml", SERVICE), ("pods.yaml", &*pods), ("rules.yaml", &*rules(&["v1"]))];
    let pilot = Pilot::start(&files).await;
    let mut client = Client::connect(&pilot, SIDECAR, CDS, &[]).await;
    let first = client.next(CDS).await;
    client.ack(&first, &[]).await;
    write(pilot.folder.path(), "rules.yaml", &rules(&["v1", "v2"]));
    let second = client.next(CDS).await;
    let value = async |name: &str| {
        let (_, page) = pilot.get("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {page}")).trim().to_owned()
    };
    assert_eq!(value("leno_changes_under_way").await, "1");
    client.ack(&second, &[]).await;
    while value("leno_changes_under_way").await != "0" {
        tokio::task::yield_now().await;
    }
    for (name, expected) in [
        ("pilot_xds{version=\"unknown\"}", "1"),
        ("pilot_xds_pushes{type=\"cds\"}", "2"),
        ("pilot_xds_push_time_count{type=\"cds\"}", "2"),
        ("pilot_xds_config_size_bytes_count{type=\"cds\"}", "2"),
        ("pilot_proxy_convergence_time_count", "1"),
        ("leno_propagation_seconds_count{kind=\"DestinationRule\"}", "1"),
        ("leno_propagation_seconds_count{kind=\"VirtualService\"}", "1"),
        ("pilot_services", "1"),
        ("pilot_virt_services", "1"),
        ("pilot_k8s_cfg_events{type=\"VirtualService\",event=\"add\"}", "1"),
        ("pilot_k8s_cfg_events{type=\"VirtualService\",event=\"update\"}", "1"),
        ("pilot_k8s_reg_events{type=\"Pod\",event=\"add\"}", "2"),
        ("pilot_inbound_updates{type=\"config\"}", "4"),
        ("pilot_inbound_updates{type=\"eds\"}", "2"),
        ("pilot_push_triggers{type=\"config\"}", "2"),
        ("endpoint_no_pod", "0"),
    ] {
        assert_eq!(value(name).await, expected, "{name}");
    }
    pilot.stop().await;
}

#[tokio::test]
async fn agents_are_told_names_as_they_change() {
    const NDS: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
    let headless = SERVICE.replace("name: reviews}", "name: db}").replace("10.96.0.5", "None");
    let external = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec: {hosts: [api.example.com], addresses: [240.0.0.9], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
";
    let files = [("service.yaml", SERVICE), ("db.yaml", &headless), ("outside.yaml", external)];
    let pilot = Pilot::start(&files).await;
    let mut client = Client::connect(&pilot, SIDECAR, NDS, &[]).await;
    let read = |response: &DiscoveryResponse| -> Vec<String> {
        let table = NameTable::decode(response.resources[0].value.as_slice()).expect("a table").table;
        let line = |(host, info): (&String, &NameInfo)| {
            format!("{host} {} {}/{} {}", info.ips.join(","), info.namespace, info.shortname, info.registry)
        };
        table.iter().map(line).collect()
    };
    let first = client.next(NDS).await;
    let outside = "api.example.com 240.0.0.9 / External";
    let reviews = "reviews.default.svc.cluster.local 10.96.0.5 default/reviews Kubernetes";
    assert_eq!(read(&first), [outside, reviews]);
    client.ack(&first, &[]).await;
    // The names of a headless service are those of its pods.
    write(pilot.folder.path(), "pods.yaml", &(pod("a", "v1", "10.0.0.1") + &pod("b", "v1", "10.0.0.2")));
    let second = client.next(NDS).await;
    let db = "db.default.svc.cluster.local 10.0.0.1,10.0.0.2 default/db Kubernetes";
    assert_eq!(read(&second), [outside, db, reviews]);
    client.ack(&second, &[]).await;
    // What there is nothing of is answered too.
    client.ask("type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig", &[]).await;
    let nothing = client.next("type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig").await;
    assert!(nothing.resources.is_empty());
    // Gateways resolve names as well (ENABLE_DNS_SERVER), and are not ready without a table.
    let gateway = SIDECAR.replace("sidecar~", "router~");
    let mut gateway = Client::connect(&pilot, &gateway, NDS, &[]).await;
    assert_eq!(read(&gateway.next(NDS).await), [outside, db, reviews]);
    pilot.stop().await;
}

#[tokio::test]
async fn a_stranger_is_sent_away() {
    let pilot = Pilot::start(&[]).await;
    let mut client = Client::connect(&pilot, "nobody", CDS, &[]).await;
    let error = tokio::time::timeout(LIMIT, client.responses.message()).await.expect("in time");
    let error = error.expect_err("a refusal");
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("nobody"), "{error}");
    pilot.stop().await;
}

/// What a stranger makes up is not remembered without an end.
#[tokio::test]
async fn who_asks_for_too_many_types_is_sent_away() {
    let pilot = Pilot::start(&[]).await;
    let long = format!("type.googleapis.com/{}", "x".repeat(300));
    let mut client = Client::connect(&pilot, SIDECAR, &long, &[]).await;
    let error = tokio::time::timeout(LIMIT, client.responses.message()).await.expect("in time");
    assert_eq!(error.expect_err("a refusal").code(), tonic::Code::InvalidArgument);
    let name = |index: usize| format!("type.googleapis.com/x{index}");
    let mut client = Client::connect(&pilot, SIDECAR, &name(0), &[]).await;
    client.next(&name(0)).await;
    for index in 1..32 {
        client.ask(&name(index), &[]).await;
        client.next(&name(index)).await;
    }
    let (_, page) = pilot.get("/metrics").await;
    assert!(page.contains("pilot_xds_pushes{type=\"other\"} 32"), "{page}");
    assert!(!page.contains("x31"), "{page}");
    client.ask(&name(32), &[]).await;
    let error = tokio::time::timeout(LIMIT, client.responses.message()).await.expect("in time");
    assert!(error.expect_err("a refusal").message().contains("too many types"));
    pilot.stop().await;
}
