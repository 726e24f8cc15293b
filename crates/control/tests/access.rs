//! The port with TLS: who is let in, as what, and that its certificate can be renewed.

#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use leno_control::server::{Config, Issuer, Secure, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer as Signer, KeyPair, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// Nothing here takes long; what does is a bug.
const LIMIT: Duration = Duration::from_secs(60);

/// A root and what it signs.
struct Authority {
    pem: String,
    signer: Signer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a root").pem();
        Authority { pem, signer: Signer::new(params, key) }
    }

    /// A certificate and its key.
    fn sign(&self, name: SanType) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.subject_alt_names.push(name);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.signer).expect("a certificate");
        (signed.pem(), key.serialize_pem())
    }

    fn server(&self, name: &str) -> (String, String) {
        self.sign(SanType::DnsName(name.try_into().expect("a name")))
    }

    fn identity(&self, identity: &str) -> (String, String) {
        self.sign(SanType::URI(identity.try_into().expect("a URI")))
    }
}

/// Connects over TLS, with a certificate and its key perhaps.
async fn connect(
    address: SocketAddr,
    roots: &str,
    name: &'static str,
    own: Option<(String, String)>,
) -> Result<Channel, tonic::transport::Error> {
    let own = own.as_ref().map(|(chain, key)| (chain.as_str(), key.as_str()));
    tls::connect(address, roots, name, own).await
}

/// What a proxy of `reviews` in the namespace `default` is answered.
async fn ask(channel: Channel, token: Option<&str>) -> Result<DiscoveryResponse, Status> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let fields = [("SERVICE_ACCOUNT", "reviews")].map(|(name, value)| {
        let kind = prost_types::value::Kind::StringValue(value.to_owned());
        (name.to_owned(), prost_types::Value { kind: Some(kind) })
    });
    let node = Node {
        id: "sidecar~10.0.0.9~reviews.default~default.svc.cluster.local".to_owned(),
        metadata: Some(prost_types::Struct { fields: fields.into() }),
        ..Node::default()
    };
    let first =
        DiscoveryRequest { node: Some(node), type_url: CDS.to_owned(), ..DiscoveryRequest::default() };
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    requests.send(first).await.expect("open");
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if let Some(token) = token {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("a value");
        request.metadata_mut().insert("authorization", value);
    }
    let asking = async {
        let mut responses = client.stream_aggregated_resources(request).await?.into_inner();
        responses.message().await?.ok_or_else(|| Status::aborted("the end"))
    };
    tokio::time::timeout(LIMIT, asking).await.expect("in time")
}

fn place(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join("draft"), text).expect("writable");
    fs::rename(folder.join("draft"), folder.join(name)).expect("renamable");
}

#[tokio::test]
async fn who_connects_by_tls_shows_who_he_is() {
    let (mesh, other) = (Authority::new("mesh"), Authority::new("other"));
    let files = tempfile::tempdir().expect("a folder");
    let (chain, key) = mesh.server("istiod");
    for (name, text) in [("chain", &chain), ("key", &key), ("roots", &mesh.pem)] {
        place(files.path(), name, text);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::new(vec![folder.path().to_owned()]);
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    let secure = Secure {
        certificate: files.path().join("chain"),
        key: files.path().join("key"),
        roots: Some(files.path().join("roots")),
        ..Secure::default()
    };
    config.access.plaintext = false;
    config.access.secure = Some((SocketAddr::from(([127, 0, 0, 1], 0)), secure));
    let server = Server::bind(config).await.expect("free ports");
    assert!(server.grpc_addr().is_err(), "there is none without TLS");
    let address = server.secure_grpc_addr().expect("an address");
    tokio::spawn(server.run(std::future::pending()));

    let own = |identity: &str| Some(mesh.identity(identity));
    for (certificate, token, expected) in [
        (own("spiffe://cluster.local/ns/default/sa/reviews"), None, Ok(())),
        (own("spiffe://cluster.local/ns/default/sa/ratings"), None, Err(Code::PermissionDenied)),
        (own("spiffe://cluster.local/ns/prod/sa/reviews"), None, Err(Code::PermissionDenied)),
        (own("spiffe://elsewhere/ns/default/sa/reviews"), None, Err(Code::Unauthenticated)),
        (None, None, Err(Code::Unauthenticated)),
        (None, Some("x.y.z"), Err(Code::Unauthenticated)),
    ] {
        let channel = connect(address, &mesh.pem, "istiod", certificate).await.expect("it listens");
        let found = ask(channel, token).await.map(|_| ()).map_err(|status| status.code());
        assert_eq!(found, expected);
    }
    // One that another root has signed does not get as far as that.
    let forged = Some(other.identity("spiffe://cluster.local/ns/default/sa/reviews"));
    let refused = match connect(address, &mesh.pem, "istiod", forged).await {
        Ok(channel) => ask(channel, None).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);

    // A pair that does not fit leaves the old one in use; one that does is used from now on.
    let (renewed, renewed_key) = mesh.server("renewed");
    place(files.path(), "chain", &renewed);
    let good = own("spiffe://cluster.local/ns/default/sa/reviews");
    connect(address, &mesh.pem, "istiod", good.clone()).await.expect("the old certificate");
    place(files.path(), "key", &renewed_key);
    let channel = connect(address, &mesh.pem, "renewed", good.clone()).await.expect("the new certificate");
    ask(channel, None).await.expect("it is let in");
    assert!(connect(address, &mesh.pem, "istiod", good).await.is_err());
}

#[tokio::test]
async fn bad_files_are_told_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let mesh = Authority::new("mesh");
    let ((chain, _), (_, key)) = (mesh.server("a"), mesh.server("b"));
    place(folder.path(), "chain", &chain);
    place(folder.path(), "key", &key);
    let files = |certificate: &str, key: &str| Secure {
        certificate: folder.path().join(certificate),
        key: folder.path().join(key),
        ..Secure::default()
    };
    for (secure, expected) in [
        (files("absent", "key"), "absent: No such file"),
        (files("chain", "key"), "it is not the certificate's"),
        (files("key", "key"), "there is no certificate in it"),
    ] {
        let mut config = Config::new(vec![folder.path().to_owned()]);
        config.grpc_addr.set_port(0);
        config.http_addr.set_port(0);
        config.access.secure = Some((SocketAddr::from(([127, 0, 0, 1], 0)), secure));
        let error = Server::bind(config).await.err().expect("it does not start").to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(Issuer::parse("x").is_err());
}

/// A token of an issuer, for a service account, and the issuer's keys.
fn token(pair: &EcdsaKeyPair, account: &str, more: &serde_json::Value) -> String {
    let part = |value: &serde_json::Value| leno_base::base64::encode_url(value.to_string().as_bytes());
    let mut claims = serde_json::json!({
        "iss": "me", "aud": ["istio-ca"], "exp": 4_000_000_000_u64, "sub": format!("system:serviceaccount:{account}"),
    });
    claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let signed = format!("{}.{}", part(&serde_json::json!({ "alg": "ES256" })), part(&claims));
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", leno_base::base64::encode_url(signature.as_ref()))
}

/// The status of a page, for somebody who says so in headers.
async fn look(address: SocketAddr, path: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

#[tokio::test]
async fn who_looks_from_elsewhere_shows_who_he_is() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let point = pair.public_key().as_ref();
    let coordinate = |range: std::ops::Range<usize>| leno_base::base64::encode_url(&point[range]);
    let key =
        serde_json::json!({ "kty": "EC", "crv": "P-256", "x": coordinate(1..33), "y": coordinate(33..65) });
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::new(vec![folder.path().to_owned()]);
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    config.access.issuer = Some(Issuer {
        issuer: "me".to_owned(),
        jwks: serde_json::json!({ "keys": [key] }).to_string(),
        ..Issuer::default()
    });
    let server = Server::bind(config).await.expect("free ports");
    let (plain, address) = (server.grpc_addr().expect("an address"), server.http_addr().expect("an address"));
    tokio::spawn(server.run(std::future::pending()));
    // It is served when the sources are known.
    let channel = Endpoint::from_shared(format!("http://{plain}")).expect("a URL").connect().await;
    ask(channel.expect("it listens"), None).await.expect("an answer");

    // A proxy on this machine may stand in front of us: then it matters for whom it speaks.
    let from = |account: &str, more: serde_json::Value| {
        let token = token(&pair, account, &more);
        format!("x-forwarded-for: 1.2.3.4\r\nauthorization: Bearer {token}\r\n")
    };
    let none = serde_json::json!({});
    for (path, headers, expected) in [
        ("/debug/configz", String::new(), 200),
        ("/debug/configz", "x-forwarded-for: 1.2.3.4\r\n".to_owned(), 401),
        ("/metrics", "x-forwarded-for: 1.2.3.4\r\n".to_owned(), 200),
        ("/debug/configz", from("istio-system:admin", none.clone()), 200),
        ("/debug/configz", from("default:reviews", none.clone()), 403),
        // A page that it may see, of a proxy that is not there.
        ("/debug/ndsz?proxyID=reviews.default", from("default:reviews", none.clone()), 404),
        ("/debug/configz", from("istio-system:admin", serde_json::json!({ "aud": "other" })), 401),
        ("/debug/configz", from("istio-system:admin", serde_json::json!({ "exp": 1 })), 401),
        ("/debug/configz", from("istio-system:admin", serde_json::json!({ "iss": "you" })), 401),
        ("/debug/configz", from("istio-system", none.clone()), 401),
    ] {
        assert_eq!(look(address, path, &headers).await, expected, "{path} {headers}");
    }
}
