//! The certificate authority: who gets which certificate, and where it is kept.

#[path = "ca/replicas.rs"]
mod replicas;
#[path = "ca/signers.rs"]
mod signers;
#[path = "support/tls.rs"]
mod tls;
#[path = "ca/ztunnel.rs"]
mod ztunnel;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use leno_api::proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use leno_api::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use leno_control::server::{CaSettings, Config, Kubernetes, Server, create_join_token};
use leno_testkit::kube::{ApiServer, User};
use leno_tls::issue::{
    Authority, KeyPair, KeyType, Material, SpiffeId, Validity, certificates, certificates_to_pem, request,
    root,
};
use leno_tls::{AltName, Certificate};
use prost_types::value::Kind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

const ISTIOD: &str = "istiod.istio-system.svc";

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

/// A control plane with an authority.
struct Pilot {
    secure: SocketAddr,
    http: SocketAddr,
}

/// How a control plane is started whose authority follows these variables.
fn config(variables: &[(&str, &str)]) -> Config {
    let mut config = Config::new(Vec::new());
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    let find =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let mut settings = CaSettings::read(find).expect("good variables").expect("an authority");
    settings.address = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    settings.hosts = vec![ISTIOD.to_owned(), "127.0.0.1".to_owned()];
    config.access.authority = Some(settings);
    config
}

async fn start(config: Config) -> Pilot {
    let server = Server::bind(config).await.expect("free ports");
    let pilot = Pilot {
        secure: server.secure_grpc_addr().expect("an address"),
        http: server.http_addr().expect("an address"),
    };
    tokio::spawn(server.run(std::future::pending()));
    pilot
}

/// What a test waits for.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
struct Own {
    chain: String,
    key: String,
}

async fn connect(
    address: SocketAddr,
    roots: &str,
    own: Option<&Own>,
) -> Result<Channel, tonic::transport::Error> {
    tls::connect(address, roots, ISTIOD, own.map(|own| (own.chain.as_str(), own.key.as_str()))).await
}

/// Asks for a certificate.
async fn ask(
    channel: Channel,
    token: Option<&str>,
    asked: IstioCertificateRequest,
) -> Result<IstioCertificateResponse, Status> {
    let mut client = IstioCertificateServiceClient::new(channel);
    let mut request = Request::new(asked);
    if let Some(token) = token {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("a value");
        request.metadata_mut().insert("authorization", value);
    }
    let answer = tokio::time::timeout(LIMIT, client.create_certificate(request)).await.expect("in time");
    answer.map(tonic::Response::into_inner)
}

/// Begins a stream of xDS with a token.
async fn discover(channel: Channel, token: &str) -> Result<(), Status> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut request = Request::new(tokio_stream::pending::<DeltaDiscoveryRequest>());
    let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("a value");
    request.metadata_mut().insert("authorization", value);
    let answer = tokio::time::timeout(LIMIT, client.delta_aggregated_resources(request)).await;
    answer.expect("in time").map(drop)
}

/// A new key, and a request for it that asks for this identity.
fn csr(identity: &str) -> (KeyPair, IstioCertificateRequest) {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let csr = request(&key, &SpiffeId::parse(identity).expect("an identity")).expect("a request");
    (key, IstioCertificateRequest { csr, ..IstioCertificateRequest::default() })
}

fn impersonating(mut request: IstioCertificateRequest, identity: &str) -> IstioCertificateRequest {
    let value = prost_types::Value { kind: Some(Kind::StringValue(identity.to_owned())) };
    let fields = BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]);
    request.metadata = Some(prost_types::Struct { fields });
    request
}

fn names(answer: &IstioCertificateResponse) -> Vec<AltName> {
    let all = certificates(answer.cert_chain.first().expect("a certificate").as_bytes()).expect("PEM");
    Certificate::parse(all.first().expect("a certificate")).expect("a certificate").alt_names().to_vec()
}

fn own(answer: &IstioCertificateResponse, key: &KeyPair) -> Own {
    let (_, chain) = answer.cert_chain.split_last().expect("roots at the end");
    Own { chain: chain.concat(), key: key.to_pem().expect("a key") }
}

fn service_account(namespace: &str, name: &str) -> User {
    let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned).to_vec();
    User { name: format!("system:serviceaccount:{namespace}:{name}"), groups }
}

/// A page of the port for people, with its head.
async fn page(pilot: &Pilot, path: &str) -> String {
    let mut stream = TcpStream::connect(pilot.http).await.expect("it listens");
    let asked = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    text
}

async fn metrics(pilot: &Pilot) -> BTreeMap<String, f64> {
    let text = page(pilot, "/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with("citadel_"));
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

async fn is_ready(pilot: &Pilot) -> bool {
    page(pilot, "/ready").await.starts_with("HTTP/1.1 200")
}

/// A cluster with a control plane, and the roots as agents find them.
struct Cluster {
    api: ApiServer,
    config: Config,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start(variables: &[(&str, &str)]) -> Cluster {
        let api = ApiServer::start().await.expect("a free port");
        for namespace in ["istio-system", "default"] {
            api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        }
        api.add_token("of reviews", service_account("default", "reviews"));
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig).expect("writable");
        let mut config = config(variables);
        config.kubernetes = Some(Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() });
        Cluster { api, config, _folder: folder }
    }

    /// Two nodes with a ztunnel each, and workloads of theirs.
    fn fill(&self) {
        for (namespace, name, uid, node, account, phase) in [
            ("istio-system", "ztunnel-1", "1", "node-1", "ztunnel", "Running"),
            ("istio-system", "ztunnel-2", "2", "node-2", "ztunnel", "Running"),
            ("default", "reviews-1", "3", "node-1", "reviews", "Running"),
            ("default", "ratings-1", "4", "node-2", "ratings", "Running"),
            ("default", "details-1", "5", "node-1", "details", "Failed"),
        ] {
            self.api.put(json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "namespace": namespace, "name": name, "uid": uid },
                "spec": { "nodeName": node, "serviceAccountName": account, "containers": [] },
                "status": { "phase": phase },
            }));
        }
    }

    /// A token as the API server issues them to Pods, of a name and a UID.
    fn bound_token(&self, user: User, pod: Option<(&str, &str)>) -> String {
        let claims =
            json!({ "kubernetes.io": { "pod": pod.map(|(name, uid)| json!({ "name": name, "uid": uid })) } });
        let token =
            format!("x.{}.{}", leno_base::base64::encode_url(claims.to_string().as_bytes()), user.name.len());
        self.api.add_token(&token, user);
        token
    }

    async fn roots(&self, namespace: &str) -> String {
        until("the roots", async || {
            let map = self.api.find("", "configmaps", namespace, "istio-ca-root-cert")?;
            map.pointer("/data/root-cert.pem").and_then(Value::as_str).map(str::to_owned)
        })
        .await
    }
}

#[tokio::test]
async fn an_agent_gets_its_identity() {
    let cluster = Cluster::start(&[]).await;
    let pilot = start(cluster.config.clone()).await;
    let roots = cluster.roots("default").await;
    assert!(cluster.api.find("", "configmaps", "kube-system", "istio-ca-root-cert").is_none());
    let secret = cluster.api.find("", "secrets", "istio-system", "istio-ca-secret").expect("it is kept");
    assert_eq!(secret["type"], "istio.io/ca-root");

    let channel = connect(pilot.secure, &roots, None).await.expect("its certificate is good");
    // Whatever is asked for: it is the token that counts.
    let (key, asked) = csr("spiffe://cluster.local/ns/kube-system/sa/admin");
    let answer = ask(channel.clone(), Some("of reviews"), asked).await.expect("a certificate");
    assert_eq!(names(&answer), [AltName::Uri(REVIEWS.to_owned())]);
    assert_eq!(answer.cert_chain.len(), 2);
    assert_eq!(answer.cert_chain.last(), Some(&roots));
    let leaf = certificates(answer.cert_chain[0].as_bytes()).expect("PEM");
    let (from, to) = Certificate::parse(&leaf[0]).expect("a certificate").validity();
    assert_eq!(to - from, 86_400 + 120);

    // With the certificate it gets the next one, for the same identity.
    let certified =
        connect(pilot.secure, &roots, Some(&own(&answer, &key))).await.expect("it is of the mesh");
    let (_, asked) = csr("spiffe://cluster.local/ns/default/sa/ratings");
    let asked = IstioCertificateRequest { validity_duration: 600, ..asked };
    let next = ask(certified, None, asked).await.expect("a certificate");
    assert_eq!(names(&next), [AltName::Uri(REVIEWS.to_owned())]);

    // A second control plane signs with what is kept.
    let other = start(cluster.config.clone()).await;
    let channel = until("the other", async || connect(other.secure, &roots, None).await.ok()).await;
    let (_, asked) = csr(REVIEWS);
    let answer = ask(channel, Some("of reviews"), asked).await.expect("a certificate");
    assert_eq!(answer.cert_chain.last(), Some(&roots));

    let counted = metrics(&pilot).await;
    assert_eq!(counted.get("citadel_server_csr_count"), Some(&2.0), "{counted:?}");
    assert_eq!(counted.get("citadel_server_success_cert_issuance_count"), Some(&2.0));
    assert!(counted["citadel_server_root_cert_expiry_seconds"] > 3600.0 * 24.0 * 3649.0);
    assert!(!counted.contains_key("citadel_server_cert_chain_expiry_seconds"));

    // A new namespace is told of the roots too, and of those that were deleted.
    cluster.api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "new" } }));
    assert_eq!(cluster.roots("new").await, roots);
}

#[tokio::test]
async fn what_strangers_are_told() {
    let cluster =
        Cluster::start(&[("MAX_WORKLOAD_CERT_TTL", "1h"), ("DEFAULT_WORKLOAD_CERT_TTL", "30m")]).await;
    let pilot = start(cluster.config.clone()).await;
    let roots = cluster.roots("default").await;
    cluster.api.add_token("of nobody", User { name: "jane".to_owned(), groups: Vec::new() });
    // A name that would be two.
    cluster.api.add_token("of two", service_account("default", "reviews,x"));
    let channel = connect(pilot.secure, &roots, None).await.expect("its certificate is good");
    let good = csr(REVIEWS).1;
    let with = |csr: String| IstioCertificateRequest { csr, ..IstioCertificateRequest::default() };
    let mut forged = good.csr.clone().into_bytes();
    let at = forged.len() - 40;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    let weak = {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.serialize_request(&key).and_then(|csr| csr.pem()).expect("a request")
    };
    let ca = {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params =
            rcgen::CertificateParams::new(vec!["*".to_owned(), "*.com".to_owned()]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "kubernetes");
        params.serialize_request(&key).and_then(|csr| csr.pem())
    };
    let reviews = Some("of reviews");
    let mut cases = vec![
        ("nobody", None, good.clone(), Err((Code::Unauthenticated, "request authenticate failure"))),
        (
            "a wrong token",
            Some("x"),
            good.clone(),
            Err((Code::Unauthenticated, "request authenticate failure")),
        ),
        (
            "not a workload",
            Some("of nobody"),
            good.clone(),
            Err((Code::Unauthenticated, "request authenticate failure")),
        ),
        (
            "two in one name",
            Some("of two"),
            good.clone(),
            Err((Code::PermissionDenied, "cannot be in a certificate")),
        ),
        (
            "no request",
            reviews,
            with(String::new()),
            Err((Code::InvalidArgument, "CSR signing error (the request is not one PEM")),
        ),
        ("long", reviews, with("x".repeat(17 << 10)), Err((Code::InvalidArgument, "more than 16384 bytes"))),
        ("huge", reviews, with("x".repeat(1 << 20)), Err((Code::OutOfRange, ""))),
        ("forged", reviews, with(String::from_utf8(forged).expect("text")), Err((Code::InvalidArgument, ""))),
        ("weak", reviews, with(weak), Err((Code::InvalidArgument, "neither RSA nor ECDSA"))),
        (
            "too long a life",
            reviews,
            IstioCertificateRequest { validity_duration: 3601, ..good.clone() },
            Err((Code::InvalidArgument, "requested TTL 3601s is greater than the max allowed TTL 3600s")),
        ),
        (
            "for ever",
            reviews,
            IstioCertificateRequest { validity_duration: i64::MAX, ..good.clone() },
            Err((Code::InvalidArgument, "max allowed")),
        ),
        (
            "negative",
            reviews,
            IstioCertificateRequest { validity_duration: i64::MIN, ..good.clone() },
            Ok(1800),
        ),
        (
            "as long as may be",
            reviews,
            IstioCertificateRequest { validity_duration: 3600, ..good.clone() },
            Ok(3600),
        ),
        (
            "in another's name",
            reviews,
            impersonating(good.clone(), "spiffe://cluster.local/ns/default/sa/ratings"),
            Err((Code::Unauthenticated, "request impersonation authentication failure")),
        ),
        (
            "in one's own name",
            reviews,
            impersonating(good.clone(), REVIEWS),
            Err((Code::Unauthenticated, "request impersonation authentication failure")),
        ),
    ];
    // rcgen may refuse to ask for an authority's certificate itself.
    cases.extend(ca.ok().map(|csr| ("an authority", reviews, with(csr), Ok(1800))));
    for (name, token, asked, expected) in cases {
        match (ask(channel.clone(), token, asked).await, expected) {
            (Ok(answer), Ok(life)) => {
                assert_eq!(names(&answer), [AltName::Uri(REVIEWS.to_owned())], "{name}");
                let leaf = certificates(answer.cert_chain[0].as_bytes()).expect("PEM");
                let (from, to) = Certificate::parse(&leaf[0]).expect("a certificate").validity();
                assert_eq!(to - from, life + 120, "{name}");
            }
            (Err(status), Err((code, words))) => {
                assert_eq!(status.code(), code, "{name}: {status}");
                assert!(status.message().contains(words), "{name}: {status}");
            }
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
    let counted = metrics(&pilot).await;
    assert_eq!(counted.get("citadel_server_authentication_failure_count"), Some(&5.0), "{counted:?}");
    assert_eq!(counted.get("citadel_server_csr_sign_err_count{error=\"TTL_ERROR\"}"), Some(&2.0));
    assert_eq!(counted.get("citadel_server_csr_sign_err_count{error=\"CSR_ERROR\"}"), Some(&4.0));
    assert_eq!(counted.get("citadel_server_csr_parsing_err_count"), Some(&4.0));
}

#[tokio::test]
async fn who_comes_in_plain_text_gets_nothing() {
    let cluster = Cluster::start(&[]).await;
    let mut config = cluster.config.clone();
    config.access.believes_all = true;
    let server = Server::bind(config).await.expect("free ports");
    let plain = server.grpc_addr().expect("an address");
    tokio::spawn(server.run(std::future::pending()));
    let _ = cluster.roots("default").await;
    let channel =
        Endpoint::new(format!("http://{plain}")).expect("an address").connect().await.expect("it listens");
    let refused = ask(channel, Some("of reviews"), csr(REVIEWS).1).await.expect_err("not here");
    assert_eq!(refused.code(), Code::Unimplemented);
}

/// ztunnel asks for the workloads of its node.
#[tokio::test]
async fn a_node_asks_for_its_own_workloads() {
    let cluster = Cluster::start(&[("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel")]).await;
    cluster.fill();
    let token = |user: User, pod: Option<(&str, &str)>| cluster.bound_token(user, pod);
    let ztunnel = || service_account("istio-system", "ztunnel");
    let good = token(ztunnel(), Some(("ztunnel-1", "1")));
    let gone = token(ztunnel(), Some(("ztunnel-1", "0")));
    let unbound = token(ztunnel(), None);
    let reviews = token(service_account("default", "reviews"), Some(("reviews-1", "3")));
    let pilot = start(cluster.config.clone()).await;
    let roots = cluster.roots("default").await;
    let channel = connect(pilot.secure, &roots, None).await.expect("its certificate is good");
    let id = |rest: &str| format!("spiffe://cluster.local/ns/{rest}");
    for (name, token, wanted, expected) in [
        ("of its node", &good, id("default/sa/reviews"), true),
        ("of another node", &good, id("default/sa/ratings"), false),
        ("that has failed", &good, id("default/sa/details"), false),
        ("of another domain", &good, "spiffe://x/ns/default/sa/reviews".to_owned(), false),
        ("that is none", &good, "reviews".to_owned(), false),
        ("by a Pod that is gone", &gone, id("default/sa/reviews"), false),
        ("by a token of no Pod", &unbound, id("default/sa/reviews"), false),
        ("by one that is not trusted", &reviews, id("default/sa/details"), false),
    ] {
        let asked = impersonating(csr("spiffe://cluster.local/ns/a/sa/b").1, &wanted);
        let found = ask(channel.clone(), Some(token), asked).await;
        match &found {
            Ok(answer) if expected => assert_eq!(names(answer), [AltName::Uri(wanted)], "{name}"),
            Err(status) if !expected => assert_eq!(status.code(), Code::Unauthenticated, "{name}"),
            _ => panic!("{name}: {found:?}"),
        }
    }
    let (_, asked) = csr(REVIEWS);
    let answer = ask(channel, Some(&good), asked).await.expect("its own");
    assert_eq!(names(&answer), [AltName::Uri(id("istio-system/sa/ztunnel"))]);
}

/// Replicas that begin at the same moment agree.
#[tokio::test]
async fn replicas_agree() {
    let cluster = Cluster::start(&[]).await;
    let all = [
        start(cluster.config.clone()).await,
        start(cluster.config.clone()).await,
        start(cluster.config.clone()).await,
    ];
    let roots = cluster.roots("default").await;
    assert_eq!(certificates(roots.as_bytes()).expect("PEM").len(), 1);
    for pilot in &all {
        until("a replica", async || connect(pilot.secure, &roots, None).await.ok()).await;
    }
}

fn place(folder: &Path, name: &str, text: &[u8]) {
    fs::write(folder.join("draft"), text).expect("writable");
    fs::rename(folder.join("draft"), folder.join(name)).expect("renamable");
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("before the end of time")
}

/// A root, and an authority below it.
fn intermediate(top: &KeyPair, roots: &[u8]) -> Material {
    let validity = Validity { not_before: now() - 60, not_after: now() + 86_400 };
    let pem = certificates_to_pem([&root(top, "root", validity).expect("a root")]).into_bytes();
    let own = KeyPair::generate(KeyType::P256).expect("a key");
    let material = Material {
        certificate: pem.clone(),
        key: top.to_pem().expect("a key").into_bytes(),
        roots: pem.clone(),
        ..Material::default()
    };
    let signer = Authority::load(&material, now()).expect("an authority");
    let below = signer.intermediate(own.public(), "below", 0, validity).expect("signed");
    let below = certificates_to_pem([&below]).into_bytes();
    Material {
        certificate: below.clone(),
        key: own.to_pem().expect("a key").into_bytes(),
        chain: [below, pem.clone()].concat(),
        roots: [roots, &pem].concat(),
        revocations: Vec::new(),
    }
}

fn plug(folder: &Path, material: &Material) {
    // The roots last: until then the files do not fit together, and the last good ones are used.
    place(folder, "ca-cert.pem", &material.certificate);
    place(folder, "ca-key.pem", &material.key);
    place(folder, "cert-chain.pem", &material.chain);
    place(folder, "root-cert.pem", &material.roots);
}

/// An authority that somebody else makes, and its roots that overlap.
#[tokio::test]
async fn files_are_followed() {
    let keys = [(), ()].map(|()| KeyPair::generate(KeyType::P256).expect("a key"));
    let folder = tempfile::tempdir().expect("a folder");
    let [first, mut second] = keys.each_ref().map(|key| intermediate(key, b""));
    second.roots = [&first.roots[..], &second.roots].concat();
    plug(folder.path(), &first);
    let variables = [("ROOT_CA_DIR", folder.path().to_str().expect("text"))];
    let configuration = tempfile::tempdir().expect("a folder");
    let mut config = config(&variables);
    config.dirs = vec![configuration.path().to_owned()];
    let pilot = start(config.clone()).await;
    let counted = until("the authority", async || {
        let counted = metrics(&pilot).await;
        counted.contains_key("citadel_server_cert_chain_expiry_seconds").then_some(counted)
    })
    .await;
    assert!(counted["citadel_server_root_cert_expiry_seconds"] <= 86_400.0);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    connect(pilot.secure, &text(&first.roots), None).await.expect("signed below the root");
    // Another authority whose roots hold the old ones takes over.
    plug(folder.path(), &second);
    let only_new = text(&second.roots[first.roots.len()..]);
    until("the second", async || connect(pilot.secure, &only_new, None).await.ok()).await;
    // And files that do not fit together are told at the start.
    place(folder.path(), "ca-key.pem", &first.key);
    let error = Server::bind(config).await.err().expect("it does not start").to_string();
    assert!(error.contains("not that of the CA certificate"), "{error}");
}

/// A machine joins a mesh without Kubernetes by a token, and stays by its certificate.
#[tokio::test]
async fn a_machine_joins() {
    let [kept, tokens, configuration] = [(), (), ()].map(|()| tempfile::tempdir().expect("a folder"));
    let mut config = config(&[("ROOT_CA_DIR", kept.path().to_str().expect("text"))]);
    config.dirs = vec![configuration.path().to_owned()];
    config.access.join_tokens = Some(tokens.path().to_owned());
    let pilot = start(config).await;
    let roots = until("the roots", async || fs::read_to_string(kept.path().join("roots.pem")).ok()).await;
    let channel = until("the authority", async || connect(pilot.secure, &roots, None).await.ok()).await;
    let create = |ttl| create_join_token(tokens.path(), "vms", "legacy", ttl).expect("a token");
    let (token, expired) = (create(LIMIT), create(Duration::ZERO));
    // Whatever comes to nothing uses it up no more than what it is not for.
    let bad = IstioCertificateRequest { csr: "x".to_owned(), ..IstioCertificateRequest::default() };
    let long = IstioCertificateRequest { validity_duration: i64::MAX, ..csr(REVIEWS).1 };
    for asked in [bad, long] {
        let refused = ask(channel.clone(), Some(&token), asked).await.expect_err("it cannot be signed");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let refused = discover(channel.clone(), &token).await.expect_err("it is for a certificate only");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("for nothing else"), "{refused}");
    let (key, asked) = csr("spiffe://cluster.local/ns/vms/sa/other");
    let answer = ask(channel.clone(), Some(&token), asked).await.expect("a certificate");
    let legacy = [AltName::Uri("spiffe://cluster.local/ns/vms/sa/legacy".to_owned())];
    assert_eq!(names(&answer), legacy);
    for token in [&token, &expired] {
        let refused = ask(channel.clone(), Some(token), csr(REVIEWS).1).await.expect_err("of no use");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let certified =
        connect(pilot.secure, &roots, Some(&own(&answer, &key))).await.expect("it is of the mesh");
    assert_eq!(names(&ask(certified, None, csr(REVIEWS).1).await.expect("the next one")), legacy);
}

/// Who may not make its authority is not ready, whatever else it knows.
#[tokio::test]
async fn without_an_authority_nobody_is_ready() {
    let cluster = Cluster::start(&[]).await;
    cluster.api.deny("*", "create", "", "secrets");
    let pilot = start(cluster.config.clone()).await;
    until("the sources", async || {
        page(&pilot, "/metrics").await.contains("pilot_k8s_reg_events{").then_some(())
    })
    .await;
    assert!(!is_ready(&pilot).await);
    cluster.api.allow_all();
    until("the authority", async || is_ready(&pilot).await.then_some(())).await;
}

/// An authority that somebody else makes, with a list of what it has revoked.
fn revoking() -> (Material, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let key = rcgen::KeyPair::generate().expect("a key");
    let private = key.serialize_pem().into_bytes();
    let issuer = rcgen::CertifiedIssuer::self_signed(params, key).expect("a root");
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2120, 1, 1),
        crl_number: rcgen::SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).expect("signed").pem().expect("text");
    let pem = issuer.pem().into_bytes();
    (Material { certificate: pem.clone(), key: private, roots: pem, ..Material::default() }, list)
}

/// What was revoked is told to all namespaces, as long as there is something.
#[tokio::test]
async fn revocations_come_and_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let (material, list) = revoking();
    plug(folder.path(), &material);
    place(folder.path(), "ca-crl.pem", list.as_bytes());
    let cluster = Cluster::start(&[("ROOT_CA_DIR", folder.path().to_str().expect("text"))]).await;
    let map = |namespace: &str, text: &str| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "other": text },
            "metadata": { "name": "istio-ca-crl", "namespace": namespace } })
    };
    let found = |namespace: &str| cluster.api.find("", "configmaps", namespace, "istio-ca-crl");
    let told = |namespace: &str| {
        found(namespace)?.pointer("/data/ca-crl.pem").and_then(Value::as_str).map(str::to_owned)
    };
    cluster.api.put(map("istio-system", "theirs"));
    let pilot = start(cluster.config.clone()).await;
    for namespace in ["default", "istio-system"] {
        assert_eq!(until("the list", async || told(namespace)).await, list);
    }
    fs::remove_file(folder.path().join("ca-crl.pem")).expect("it is there");
    until("no map", async || found("default").is_none().then_some(())).await;
    until("no list", async || told("istio-system").is_none().then_some(())).await;
    // What others have put there stays, before and after.
    let theirs = found("istio-system").expect("it is theirs too");
    assert_eq!(theirs.pointer("/data/other"), Some(&json!("theirs")));
    cluster.api.put(map("later", "theirs"));
    cluster.api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "later" } }));
    cluster.roots("later").await;
    assert!(found("later").is_some());
    assert!(is_ready(&pilot).await);
}

/// A permission that is missing hides nothing for ever, and does not keep others from being told.
#[tokio::test]
async fn roots_are_written_where_they_may_be() {
    let cluster = Cluster::start(&[]).await;
    cluster.api.deny("*", "patch", "", "configmaps");
    let pilot = start(cluster.config.clone()).await;
    until("the authority", async || is_ready(&pilot).await.then_some(())).await;
    cluster.api.allow_all();
    // What could not be written is tried again with the next repair, and what is new at once.
    cluster.api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "new" } }));
    cluster.roots("new").await;
}
