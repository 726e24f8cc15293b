//! Credentials: who is given which, and that changes reach those who hold them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::config::core::v3::data_source::Specifier;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use leno_control::server::{Config, Server};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

const GATEWAY: &str = "router~10.0.0.9~gateway.default~default.svc.cluster.local";

/// A certificate and its key.
fn certificate(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn indented(pem: &str) -> String {
    pem.trim().replace('\n', "\n    ")
}

/// A Secret with values by name.
fn object(kind: &str, namespace: &str, name: &str, values: &[(&str, &str)]) -> String {
    let field = if kind == "Secret" { "stringData" } else { "data" };
    let values: String =
        values.iter().map(|(key, value)| format!("  {key}: |\n    {}\n", indented(value))).collect();
    format!(
        "---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{field}:\n{values}"
    )
}

/// A running control plane over a folder.
struct Pilot {
    folder: tempfile::TempDir,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Pilot {
    async fn start(believes_all: bool, mesh: &str) -> Pilot {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), mesh);
        let mut config = Config::new(vec![folder.path().to_owned()]);
        config.grpc_addr.set_port(0);
        config.http_addr.set_port(0);
        config.access.believes_all = believes_all;
        let server = Server::bind(config).await.expect("free ports");
        let (grpc, http) = (server.grpc_addr().expect("an address"), server.http_addr().expect("an address"));
        tokio::spawn(server.run(std::future::pending()));
        Pilot { folder, grpc, http }
    }

    /// A page for people.
    async fn page(&self, path: &str) -> String {
        self.page_for(path, "").await
    }

    async fn page_for(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("it answers");
        text
    }

    async fn client(&self) -> AggregatedDiscoveryServiceClient<tonic::transport::Channel> {
        AggregatedDiscoveryServiceClient::connect(format!("http://{}", self.grpc)).await.expect("it listens")
    }
}

/// Replaces a file as careful editors do.
fn write(folder: &Path, text: &str) {
    fs::write(folder.join("draft"), text).expect("writable");
    fs::rename(folder.join("draft"), folder.join("mesh.yaml")).expect("renamable");
}

/// A SotW stream that asks for credentials.
struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Sotw {
    async fn start(pilot: &Pilot, id: &str, names: &[&str]) -> Sotw {
        let (requests, outgoing) = mpsc::channel(8);
        let node = Node { id: id.to_owned(), ..Node::default() };
        let first = DiscoveryRequest { node: Some(node), ..request(names) };
        requests.send(first).await.expect("open");
        let responses = pilot.client().await.stream_aggregated_resources(ReceiverStream::new(outgoing)).await;
        Sotw { requests, responses: responses.expect("a stream").into_inner() }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let response = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("in time");
        response.expect("no error").expect("not the end")
    }

    /// The credentials of the next response, which is accepted.
    async fn secrets(&mut self, names: &[&str]) -> Vec<String> {
        let response = self.next().await;
        assert_eq!(response.type_url, SDS);
        let ack = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..request(names)
        };
        self.requests.send(ack).await.expect("open");
        let mut all: Vec<String> = response.resources.iter().map(|any| shown(&any.value)).collect();
        all.sort();
        all
    }
}

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: SDS.to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        ..DiscoveryRequest::default()
    }
}

/// A credential in few words: its name, and its parts with their lengths.
fn shown(bytes: &[u8]) -> String {
    let secret = Secret::decode(bytes).expect("a secret");
    let text = |source: Option<leno_api::proto::envoy::config::core::v3::DataSource>| match source {
        Some(source) => match source.specifier {
            Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.to_vec()).expect("text"),
            other => panic!("not inline: {other:?}"),
        },
        None => String::new(),
    };
    let parts = match secret.r#type.expect("a type") {
        secret::Type::TlsCertificate(found) => {
            format!("{}{}", text(found.certificate_chain), text(found.private_key))
        }
        secret::Type::ValidationContext(found) => text(found.trusted_ca),
        other => panic!("{other:?}"),
    };
    format!("{} {}", secret.name, parts.replace(['\n', '\r'], ""))
}

fn expected(name: &str, parts: &[&str]) -> String {
    format!("{name} {}", parts.concat().replace(['\n', '\r'], ""))
}

#[tokio::test]
async fn credentials_reach_those_who_may_have_them_and_follow_changes() {
    let ((web, web_key), (root, _), (other, other_key)) =
        (certificate("web"), certificate("root"), certificate("other"));
    let own = |chain: &str, key: &str| {
        object("Secret", "default", "web", &[("tls.crt", chain), ("tls.key", key), ("ca.crt", &root)])
    };
    let rest = object("Secret", "default", "old", &[("cert", &other), ("key", &other_key)])
        + &object("Secret", "default", "old-cacert", &[("cacert", &root)])
        + &object("Secret", "elsewhere", "web", &[("tls.crt", &other), ("tls.key", &other_key)])
        + &object("ConfigMap", "elsewhere", "roots", &[("ca.crt", &root)]);
    let pilot = Pilot::start(true, &(own(&web, &web_key) + &rest)).await;
    let names = [
        "kubernetes://web",
        "kubernetes://web-cacert",
        "kubernetes://old",
        "kubernetes://old-cacert",
        "kubernetes://elsewhere/web",
        "kubernetes-gateway://elsewhere/web",
        "configmap://elsewhere/roots",
        "kubernetes://absent",
    ];
    let mut stream = Sotw::start(&pilot, GATEWAY, &names).await;
    assert_eq!(
        stream.secrets(&names).await,
        [
            expected("configmap://elsewhere/roots", &[&root]),
            expected("kubernetes://old", &[&other, &other_key]),
            expected("kubernetes://old-cacert", &[&root]),
            expected("kubernetes://web", &[&web, &web_key]),
            expected("kubernetes://web-cacert", &[&root]),
        ]
    );
    // One that is bad is not told; the next good one is, and alone.
    write(pilot.folder.path(), &(own(&web, &other_key) + &rest));
    let (newer, newer_key) = certificate("newer");
    write(pilot.folder.path(), &(own(&newer, &newer_key) + &rest));
    assert_eq!(stream.secrets(&names).await, [expected("kubernetes://web", &[&newer, &newer_key])]);
    // One that appears is told without being asked for again.
    let late = object("Secret", "default", "absent", &[("tls.crt", &other), ("tls.key", &other_key)]);
    write(pilot.folder.path(), &(own(&newer, &newer_key) + &rest + &late));
    assert_eq!(stream.secrets(&names).await, [expected("kubernetes://absent", &[&other, &other_key])]);
}

#[tokio::test]
async fn certificates_that_have_ended_are_given_with_a_warning() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["web".to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2010, 1, 1);
    let (chain, key) = (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem());
    let mesh = object("Secret", "default", "web", &[("tls.crt", &chain), ("tls.key", &key)]);
    let pilot = Pilot::start(true, &mesh).await;
    let names = ["kubernetes://web"];
    let mut stream = Sotw::start(&pilot, GATEWAY, &names).await;
    assert_eq!(stream.secrets(&names).await, [expected(names[0], &[&chain, &key])]);
    let diagnostics = pilot.page("/debug/diagnostics").await;
    assert!(diagnostics.contains("outdated-certificate"), "{diagnostics}");
    assert!(diagnostics.contains("it ended on 2010-01-01T00:00:00Z"), "{diagnostics}");
    let metrics = pilot.page("/metrics").await;
    let sample = "leno_certificate_expiry_timestamp{kind=\"Secret\",namespace=\"default\",name=\"web\",\
                  key=\"tls.crt\"} 1262304000";
    assert!(metrics.contains(sample), "{metrics}");
    // Which credentials there are is no matter of who asks from elsewhere.
    let metrics = pilot.page_for("/metrics", "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(!metrics.contains("leno_certificate_expiry_timestamp") && !metrics.contains("web"), "{metrics}");
    let sample = "leno_first_certificate_expiry_timestamp{kind=\"Secret\"} 1262304000";
    assert!(metrics.contains(sample), "{metrics}");
    // It is said no more once there is one that can be used.
    let (newer, newer_key) = certificate("newer");
    let mesh = object("Secret", "default", "web", &[("tls.crt", &newer), ("tls.key", &newer_key)]);
    write(pilot.folder.path(), &mesh);
    assert_eq!(stream.secrets(&names).await, [expected(names[0], &[&newer, &newer_key])]);
    let diagnostics = pilot.page("/debug/diagnostics").await;
    assert!(!diagnostics.contains("outdated-certificate"), "{diagnostics}");
}

#[tokio::test]
async fn who_is_not_authenticated_is_given_no_credentials() {
    let (chain, key) = certificate("web");
    let mesh =
        object("Secret", "default", "web", &[("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &chain)]);
    let pilot = Pilot::start(false, &mesh).await;
    let names = ["kubernetes://web", "kubernetes://web-cacert"];
    let mut stream = Sotw::start(&pilot, GATEWAY, &names).await;
    // Everything else is given.
    let clusters = DiscoveryRequest { type_url: CDS.to_owned(), ..DiscoveryRequest::default() };
    stream.requests.send(clusters).await.expect("open");
    assert_eq!(stream.next().await.type_url, CDS);

    // In delta the stranger is told that there is none.
    let (requests, outgoing) = mpsc::channel(8);
    let node = Node { id: GATEWAY.to_owned(), ..Node::default() };
    let first = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: SDS.to_owned(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await.expect("open");
    let responses = pilot.client().await.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
    let mut responses = responses.expect("a stream").into_inner();
    let told: DeltaDiscoveryResponse = tokio::time::timeout(LIMIT, responses.message())
        .await
        .expect("in time")
        .expect("no error")
        .expect("not the end");
    assert_eq!((told.resources.len(), told.removed_resources.len()), (0, 2));
}

#[tokio::test]
async fn gateways_of_the_gateway_api_have_what_was_granted() {
    let (chain, key) = certificate("web");
    let values = [("tls.crt", chain.as_str()), ("tls.key", key.as_str())];
    let listener = |port: u16, namespace: &str, name: &str| {
        format!(
            "{{name: p{port}, port: {port}, protocol: HTTPS, hostname: p{port}.example.com, tls: {{certificateRefs: \
             [{{name: {name}, namespace: {namespace}}}]}}}}"
        )
    };
    let gateway = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: istio}}\n\
         spec: {{controllerName: istio.io/gateway-controller}}\n\
         ---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: web, namespace: default}}\n\
         spec: {{gatewayClassName: istio, listeners: [{}, {}, {}]}}\n",
        listener(443, "default", "own"),
        listener(444, "granted", "theirs"),
        listener(445, "secret", "hidden")
    );
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {name: grant, namespace: granted}\n\
         spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}], to: [{group: '', kind: Secret}]}\n";
    let secrets = object("Secret", "default", "own", &values)
        + &object("Secret", "default", "unnamed", &values)
        + &object("Secret", "granted", "theirs", &values)
        + &object("Secret", "secret", "hidden", &values)
        + &object("Pod", "default", "gateway", &[])
            .replace("metadata: {", "metadata: {labels: {gateway.networking.k8s.io/gateway-name: web}, ")
            .replace("data:\n", "spec: {containers: []}\n");
    let pilot = Pilot::start(true, &(gateway.clone() + grant + &secrets)).await;
    let names = ["default/own", "default/unnamed", "granted/theirs", "secret/hidden"]
        .map(|name| format!("kubernetes-gateway://{name}"));
    let names = names.each_ref().map(String::as_str);
    let mut stream = Sotw::start(&pilot, GATEWAY, &names).await;
    let own = expected("kubernetes-gateway://default/own", &[&chain, &key]);
    let theirs = expected("kubernetes-gateway://granted/theirs", &[&chain, &key]);
    assert_eq!(stream.secrets(&names).await, [own, theirs]);
    // Who has no Gateway that names it gets none.
    let stranger = "router~10.0.0.8~other.default~default.svc.cluster.local";
    let mut stream = Sotw::start(&pilot, stranger, &names).await;
    let clusters = DiscoveryRequest { type_url: CDS.to_owned(), ..DiscoveryRequest::default() };
    stream.requests.send(clusters).await.expect("open");
    assert_eq!(stream.next().await.type_url, CDS);
}
