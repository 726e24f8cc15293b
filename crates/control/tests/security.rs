//! What a hostile workload, or somebody in the network, tries at the ports of the control plane: to be
//! somebody else, to have what is another's, to see what is not for him, to take up all there is. Each is
//! refused, logged and counted. Webhooks are tried in `webhooks.rs`, requests for certificates and nodes
//! that ask for others in `ca.rs`, debug pages by tokens in `access.rs`.

#[allow(dead_code)] // each test file uses a part of it
#[path = "support/site.rs"]
mod site;
#[path = "support/tls.rs"]
mod tls;

use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use leno_api::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use leno_api::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use leno_control::server::Issuer;
use leno_testkit::kube::User;
use leno_tls::issue::certificates;
use leno_tls::{AltName, Certificate};
use prost::Message as _;
use serde_json::{Value, json};
use site::{ISTIOD, LIMIT, Pilot, Site, counted, exchange, log, metric, page, secure, status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn account(namespace: &str, name: &str) -> User {
    let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned).to_vec();
    User { name: format!("system:serviceaccount:{namespace}:{name}"), groups }
}

fn node(role: &str, namespace: &str, account: &str) -> Node {
    let text = |value: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
    };
    let fields = [("SERVICE_ACCOUNT", account), ("NAMESPACE", namespace)];
    let fields = fields.map(|(name, value)| (name.to_owned(), text(value)));
    Node {
        id: format!("{role}~10.0.0.9~{account}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(prost_types::Struct { fields: fields.into() }),
        ..Node::default()
    }
}

fn subscription(node: Node, type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node),
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// What is answered to a first request.
async fn discover(
    channel: Channel,
    token: Option<&str>,
    first: DeltaDiscoveryRequest,
) -> Result<DeltaDiscoveryResponse, Status> {
    let (_open, mut responses) = stream(channel, token, first).await?;
    let answer = tokio::time::timeout(LIMIT, responses.message()).await.expect("in time")?;
    answer.ok_or_else(|| Status::aborted("the end"))
}

type Requests = tokio::sync::mpsc::Sender<DeltaDiscoveryRequest>;

async fn stream(
    channel: Channel,
    token: Option<&str>,
    first: DeltaDiscoveryRequest,
) -> Result<(Requests, Streaming<DeltaDiscoveryResponse>), Status> {
    let (requests, outgoing) = tokio::sync::mpsc::channel(8);
    requests.send(first).await.expect("open");
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a value"));
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let asking = tokio::time::timeout(LIMIT, client.delta_aggregated_resources(request));
    Ok((requests, asking.await.expect("in time")?.into_inner()))
}

async fn certify(channel: Channel, token: &str, csr: String) -> Result<IstioCertificateResponse, Status> {
    let mut request = Request::new(IstioCertificateRequest { csr, ..IstioCertificateRequest::default() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a value"));
    let mut client = IstioCertificateServiceClient::new(channel);
    let asking = tokio::time::timeout(LIMIT, client.create_certificate(request));
    asking.await.expect("in time").map(tonic::Response::into_inner)
}

async fn plain(pilot: &Pilot) -> Channel {
    let endpoint = Endpoint::new(format!("http://{}", pilot.plain)).expect("an address");
    endpoint.connect().await.expect("it listens")
}

fn refused(port: &str, reason: &str) -> String {
    format!("leno_refused_total{{port=\"{port}\",reason=\"{reason}\"}}")
}

/// A part of a token.
fn part(value: &Value) -> String {
    leno_base::base64::encode_url(value.to_string().as_bytes())
}

fn sign(pair: &EcdsaKeyPair, signed: &str) -> String {
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", leno_base::base64::encode_url(signature.as_ref()))
}

#[tokio::test]
async fn nobody_is_somebody_else() {
    log();
    let mut site = Site::start(&[]).await;
    let [pair, stranger] =
        [(), ()].map(|()| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"));
    let point = pair.public_key().as_ref().to_vec();
    let coordinate = |range: std::ops::Range<usize>| leno_base::base64::encode_url(&point[range]);
    let jwks = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k", "x": coordinate(1..33), "y": coordinate(33..65) }] });
    site.config.access.issuer =
        Some(Issuer { issuer: "us".to_owned(), jwks: jwks.to_string(), ..Issuer::default() });
    let pilot = site.pilot().await;
    let roots = site.roots().await;
    site.api.add_token("of reviews", account("default", "reviews"));
    let kubernetes = |claims: Value| format!("{}.{}.x", part(&json!({ "alg": "RS256" })), part(&claims));
    let (elsewhere, expired) = (
        kubernetes(json!({ "aud": ["another-cluster"] })),
        kubernetes(json!({ "aud": ["istio-ca"], "exp": 1 })),
    );
    for token in [&elsewhere, &expired] {
        site.api.add_token(token, account("default", "reviews"));
    }
    let claims = |more: Value| {
        let mut claims = json!({ "iss": "us", "aud": ["istio-ca"], "exp": 4_000_000_000_u64,
            "sub": "system:serviceaccount:default:reviews" });
        claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        claims
    };
    let unsigned = |header: Value, more: Value| format!("{}.{}", part(&header), part(&claims(more)));
    let es256 = || json!({ "alg": "ES256", "kid": "k" });
    let good = sign(&pair, &unsigned(es256(), json!({})));
    let hmac_of_public = {
        let signed = unsigned(json!({ "alg": "HS256", "kid": "k" }), json!({}));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &point), signed.as_bytes());
        format!("{signed}.{}", leno_base::base64::encode_url(tag.as_ref()))
    };
    let (head, tail) = good.rsplit_once('.').expect("a signature");
    let channel = tls::connect(pilot.secure, &roots, ISTIOD, None).await.expect("its certificate is good");
    let csr = || {
        csr(&rcgen::KeyPair::generate().expect("a key"), &["spiffe://cluster.local/ns/kube-system/sa/admin"])
    };
    let mut count = 0.0;
    for (what, token) in [
        ("nothing", String::new()),
        ("alg none", format!("{}.", unsigned(json!({ "alg": "none" }), json!({})))),
        ("alg None", format!("{}.", unsigned(json!({ "alg": "None" }), json!({})))),
        ("alg none with a signature", format!("{}.{tail}", unsigned(json!({ "alg": "none" }), json!({})))),
        ("no signature", format!("{head}.")),
        ("half a signature", format!("{head}.{}", &tail[..tail.len() / 2])),
        ("another's signature", sign(&stranger, &unsigned(es256(), json!({})))),
        ("the public key as a secret", hmac_of_public),
        (
            "other claims",
            format!(
                "{}.{tail}",
                unsigned(es256(), json!({ "sub": "system:serviceaccount:istio-system:istiod" }))
            ),
        ),
        (
            "its own key",
            sign(&stranger, &unsigned(json!({ "alg": "ES256", "jwk": { "kty": "EC" } }), json!({}))),
        ),
        ("another audience", sign(&pair, &unsigned(es256(), json!({ "aud": ["other"] })))),
        ("no audience", sign(&pair, &unsigned(es256(), json!({ "aud": [] })))),
        ("expired", sign(&pair, &unsigned(es256(), json!({ "exp": 1 })))),
        ("not yet", sign(&pair, &unsigned(es256(), json!({ "nbf": 4_000_000_000_u64 })))),
        ("another issuer", sign(&pair, &unsigned(es256(), json!({ "iss": "them" })))),
        ("no service account", sign(&pair, &unsigned(es256(), json!({ "sub": "jane" })))),
        ("of another cluster", elsewhere.clone()),
        ("of the cluster, expired", expired.clone()),
        ("of nobody", "of somebody".to_owned()),
        ("too long", "x".repeat(60 << 10)),
    ] {
        let found = discover(
            channel.clone(),
            Some(&token),
            subscription(node("sidecar", "default", "reviews"), CDS, &["*"]),
        )
        .await;
        assert_eq!(found.map(drop).map_err(|status| status.code()), Err(Code::Unauthenticated), "{what}");
        let found = certify(channel.clone(), &token, csr()).await;
        assert_eq!(found.map(drop).map_err(|status| status.code()), Err(Code::Unauthenticated), "{what}");
        count += 2.0;
    }
    counted(&pilot, &refused("xds", "unauthenticated"), count).await;
    assert_eq!(metric(&pilot, "citadel_server_authentication_failure_count").await, count / 2.0);
    assert!(log().contains("a caller is not authenticated"), "{}", log());

    // Whoever he is, he is nobody else: not by what his node says, nor by what he wants a certificate for.
    let names = |answer: IstioCertificateResponse| {
        let all = certificates(answer.cert_chain[0].as_bytes()).expect("PEM");
        Certificate::parse(&all[0]).expect("a certificate").alt_names().to_vec()
    };
    let reviews = [AltName::Uri("spiffe://cluster.local/ns/default/sa/reviews".to_owned())];
    for token in ["of reviews", &good] {
        for (namespace, name, expected) in [
            ("default", "reviews", Ok(())),
            ("default", "ratings", Err(Code::PermissionDenied)),
            ("other", "reviews", Err(Code::PermissionDenied)),
            ("istio-system", "istiod", Err(Code::PermissionDenied)),
            ("default/../other", "reviews", Err(Code::PermissionDenied)),
        ] {
            let first = subscription(node("sidecar", namespace, name), CDS, &["*"]);
            let found = discover(channel.clone(), Some(token), first).await;
            assert_eq!(found.map(drop).map_err(|status| status.code()), expected, "{namespace}/{name}");
        }
        // A node's name says one namespace, its metadata another: none of them is believed alone.
        for (own, said) in [("default", "other"), ("other", "default")] {
            let mut mixed = node("router", said, "reviews");
            mixed.id = format!("router~10.0.0.9~x.{own}~{own}.svc.cluster.local");
            let found =
                discover(channel.clone(), Some(token), subscription(mixed, SDS, &["kubernetes://other/web"]))
                    .await;
            let given = found.map_or(0, |answer| answer.resources.len());
            assert_eq!(given, 0, "{own} {said}");
        }
        let answer = certify(channel.clone(), token, csr()).await.expect("a certificate");
        assert_eq!(names(answer), reviews);
    }
    assert!(metric(&pilot, &refused("xds", "identity")).await >= 8.0);
    assert!(log().contains("authorization failed: no identities"), "{}", log());
    // Many names, names of others of all kinds, and an odd key: it is the caller's only, or nothing.
    let key = rcgen::KeyPair::generate().expect("a key");
    let many: Vec<String> =
        (0..100).map(|index| format!("spiffe://cluster.local/ns/n{index}/sa/admin")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let answer = certify(channel.clone(), "of reviews", self::csr(&key, &many)).await.expect("a certificate");
    assert_eq!(names(answer), reviews);
    let too_many: Vec<&str> = many.iter().copied().cycle().take(1000).collect();
    let found =
        certify(channel.clone(), "of reviews", self::csr(&key, &too_many)).await.expect_err("it is too long");
    assert!([Code::InvalidArgument, Code::OutOfRange].contains(&found.code()), "{found}");
    let odd = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let found = certify(channel.clone(), "of reviews", self::csr(&odd, &[])).await.expect_err("an odd key");
    assert_eq!(found.code(), Code::InvalidArgument, "{found}");
    assert!(log().contains("a certificate was not signed"), "{}", log());
}

/// A request for a certificate, with names.
fn csr(key: &rcgen::KeyPair, names: &[&str]) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    let names = names.iter().map(|&name| rcgen::SanType::URI(name.try_into().expect("a URI")));
    params.subject_alt_names = names.collect();
    params.serialize_request(key).and_then(|csr| csr.pem()).expect("a request")
}

/// Certificates that were good once, or are of others, do not get as far as a request.
#[tokio::test]
async fn certificates_must_be_good() {
    log();
    let folder = tempfile::tempdir().expect("a folder");
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().expect("a key");
        let private = key.serialize_pem();
        let pem = params.self_signed(&key).expect("a root").pem();
        (pem, private, rcgen::Issuer::new(params, key))
    };
    let ((root, private, mesh), (_, _, other)) = (authority("mesh"), authority("other"));
    for (name, text) in [
        ("ca-cert.pem", &root),
        ("ca-key.pem", &private),
        ("cert-chain.pem", &String::new()),
        ("root-cert.pem", &root),
    ] {
        std::fs::write(folder.path().join(name), text).expect("writable");
    }
    let site = Site::start(&[("ROOT_CA_DIR", folder.path().to_str().expect("text"))]).await;
    let pilot = site.pilot().await;
    let certificate = |signer: &rcgen::Issuer<'static, rcgen::KeyPair>, identity: &str, years: (i32, i32)| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.subject_alt_names.push(rcgen::SanType::URI(identity.try_into().expect("a URI")));
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        (params.signed_by(&key, signer).expect("a certificate").pem(), key.serialize_pem())
    };
    let reviews = "spiffe://cluster.local/ns/default/sa/reviews";
    let tried = async |own: (String, String)| {
        let channel = tls::connect(pilot.secure, &root, ISTIOD, Some((&own.0, &own.1))).await;
        let first = subscription(node("sidecar", "default", "reviews"), CDS, &["*"]);
        match channel {
            Ok(channel) => discover(channel, None, first).await.map(drop).map_err(|status| status.code()),
            Err(_) => Err(Code::Unavailable),
        }
    };
    assert_eq!(tried(certificate(&mesh, reviews, (2020, 2120))).await, Ok(()));
    for (what, own) in [
        ("expired", certificate(&mesh, reviews, (2020, 2021))),
        ("not yet", certificate(&mesh, reviews, (2110, 2120))),
        ("of another root", certificate(&other, reviews, (2020, 2120))),
    ] {
        let code = tried(own).await.expect_err(what);
        assert!(![Code::PermissionDenied, Code::Unauthenticated].contains(&code), "{what}: {code:?}");
    }
    let elsewhere = certificate(&mesh, "spiffe://elsewhere/ns/default/sa/reviews", (2020, 2120));
    assert_eq!(tried(elsewhere).await, Err(Code::Unauthenticated));
    counted(&pilot, &refused("xds", "handshake"), 3.0).await;
    assert!(log().contains("a handshake has failed"), "{}", log());
}

fn secret(namespace: &str, name: &str) -> Value {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "name": name, "namespace": namespace },
        "data": {
            "tls.crt": leno_base::base64::encode(made.cert.pem().as_bytes()),
            "tls.key": leno_base::base64::encode(made.signing_key.serialize_pem().as_bytes()),
        },
    })
}

/// Over TLS, with the API server's word for who may read Secrets.
#[tokio::test]
async fn nobody_has_anothers_secrets() {
    let site = Site::start(&[]).await;
    for (namespace, name) in [("default", "web"), ("other", "web"), ("istio-system", "web")] {
        site.api.put(secret(namespace, name));
    }
    site.api.add_token("of the gateway", account("default", "gateway"));
    site.api.add_token("of a workload", account("default", "reviews"));
    site.api.deny("system:serviceaccount:default:reviews", "*", "", "secrets");
    let pilot = site.pilot().await;
    let roots = site.roots().await;
    let channel = tls::connect(pilot.secure, &roots, ISTIOD, None).await.expect("its certificate is good");
    let tricks = [
        "kubernetes://other/web",
        "kubernetes://../other/web",
        "kubernetes://default/../other/web",
        "kubernetes://..%2Fother%2Fweb",
        "kubernetes://other%2Fweb",
        "kubernetes://other//web",
        "kubernetes:///web",
        "kubernetes://other/web-cacert",
        "kubernetes://OTHER/web",
        "kubernetes://istio-system/web",
        "kubernetes://istio-system/istio-ca-secret",
        "kubernetes-gateway://other/web",
        "kubernetes-gateway://default/web",
        "kubernetes-gateway://../other/web",
        "configmap://other/web",
        "secret://other/web",
        "other/web",
        "file:///var/run/secrets/kubernetes.io/serviceaccount/token",
        "kubernetes://web\u{0}",
    ];
    // What is given of what was asked for, when something was said of all of it and so many were given.
    // Secrets are read when somebody wants one: the first to ask is told later.
    let given =
        async |channel: Channel, token: Option<&str>, role: &str, name: &str, asked: &[&str], most: usize| {
            let first = subscription(node(role, "default", name), SDS, asked);
            let (requests, mut responses) = stream(channel, token, first).await.expect("a stream");
            let (mut names, mut told) = (Vec::new(), 0);
            while told < asked.len() || names.len() < most {
                let answer = tokio::time::timeout(LIMIT, responses.message()).await.expect("in time");
                let answer = answer.expect("no error").expect("not the end");
                told += answer.resources.len() + answer.removed_resources.len();
                names.extend(answer.resources.iter().map(|resource| {
                    let any = resource.resource.as_ref().expect("a resource");
                    Secret::decode(&*any.value).expect("a secret").name
                }));
                let ack = DeltaDiscoveryRequest {
                    type_url: SDS.to_owned(),
                    response_nonce: answer.nonce,
                    ..DeltaDiscoveryRequest::default()
                };
                requests.send(ack).await.expect("open");
            }
            names
        };
    let mut asked = vec!["kubernetes://web"];
    asked.extend(tricks);
    for role in ["router", "sidecar"] {
        let found = given(channel.clone(), Some("of the gateway"), role, "gateway", &asked, 1).await;
        assert_eq!(found, ["kubernetes://web"], "{role}");
        // Who may not read the Secrets of his own namespace has none of them here either.
        let found = given(channel.clone(), Some("of a workload"), role, "reviews", &asked, 0).await;
        assert_eq!(found, [""; 0], "{role}");
    }
    // And in plain text nobody is believed, whatever he says.
    let found = given(plain(&pilot).await, None, "router", "gateway", &asked, 0).await;
    assert_eq!(found, [""; 0]);
}

/// What is too large, or no request at all, is refused at each port, and others are served.
#[tokio::test]
async fn nothing_is_taken_that_is_too_much() {
    log();
    let site = Site::start(&[]).await;
    let pilot = site.pilot().await;
    let first = |node| subscription(node, CDS, &["*"]);
    let good = || first(node("sidecar", "default", "reviews"));
    let mut huge = node("sidecar", "default", "reviews");
    huge.cluster = "x".repeat(2 << 20);
    let found = discover(plain(&pilot).await, None, first(huge)).await.expect_err("a huge node");
    assert_eq!(found.code(), Code::InvalidArgument, "{found}");
    assert!(found.message().contains("a node of"), "{found}");
    let many = DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".repeat(1 << 20); 5], ..good() };
    let found = discover(plain(&pilot).await, None, many).await.expect_err("a long request");
    assert_eq!(found.code(), Code::OutOfRange, "{found}");
    counted(&pilot, &refused("xds", "message"), 2.0).await;
    assert!(log().contains("refused a stream"), "{}", log());
    // Headers without end.
    let found = discover(plain(&pilot).await, Some(&"x".repeat(200 << 10)), good()).await;
    assert!(found.is_err());
    // What is not HTTP/2 at all.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", &[0xff; 4096]] {
        let stream = TcpStream::connect(pilot.plain).await.expect("it listens");
        let answer = exchange(stream, bytes).await;
        assert!(!answer.contains("200"), "{answer}");
    }
    let roots = site.roots().await;
    let stream = secure(pilot.secure, &roots, "h2").await.expect("its certificate is good");
    exchange(stream, &[0xff; 4096]).await;

    // The port for people: verbs, heads, bodies.
    let raw = async |text: String| {
        exchange(TcpStream::connect(pilot.http).await.expect("it listens"), text.as_bytes()).await
    };
    let with =
        |head: &str, more: &str| format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
    for (what, asked, expected) in [
        ("POST", with("POST /debug/configz", ""), 405),
        ("PUT", with("PUT /debug/configz", ""), 405),
        ("DELETE", with("DELETE /debug/syncz", ""), 405),
        ("a long head", with("GET /debug/syncz", &format!("x: {}\r\n", "y".repeat(1 << 20))), 431),
        ("many headers", with("GET /debug/syncz", &"x: y\r\n".repeat(1000)), 431),
        ("a long path", with(&format!("GET /{}", "x".repeat(100_000)), ""), 414),
        ("a body of 100 GB", with("POST /debug/syncz", "Content-Length: 100000000000\r\n"), 405),
        (
            "a body that a page has no use for",
            with("GET /debug/syncz", "Content-Length: 100000000000\r\n"),
            200,
        ),
    ] {
        let answer = raw(asked).await;
        assert_eq!(status(&answer), expected, "{what}: {}", &answer[..answer.len().min(300)]);
    }
    discover(plain(&pilot).await, None, good()).await.expect("others are served");
}

/// Many streams, many names, clients that read nothing and clients that say nothing.
#[tokio::test]
async fn floods_of_streams_hold_up_nobody() {
    log();
    let mut site = Site::start(&[]).await;
    site.config.connections.most_silence = Duration::from_millis(300);
    let pilot = site.pilot().await;
    let roots = site.roots().await;
    // Who says nothing, or only what he may not, goes.
    for port in [pilot.plain, pilot.secure] {
        let mut silent = TcpStream::connect(port).await.expect("it listens");
        if port == pilot.plain {
            silent
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await
                .expect("it is sent");
        }
        let mut rest = Vec::new();
        let ending = tokio::time::timeout(LIMIT, silent.read_to_end(&mut rest));
        let _ = ending.await.expect("it is closed");
    }
    let mut shaken = secure(pilot.secure, &roots, "h2").await.expect("its certificate is good");
    let ending = tokio::time::timeout(LIMIT, shaken.read_to_end(&mut Vec::new())).await;
    let _ = ending.expect("it is closed");
    counted(&pilot, &refused("xds", "silent"), 2.0).await;
    assert!(log().contains("has asked for nothing that it may have"), "{}", log());

    let names: Vec<String> = (0..500).map(|index| format!("outbound|80||made-up-{index}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut held = Vec::new();
    for _ in 0..8 {
        let channel = plain(&pilot).await;
        for index in 0..64 {
            let first = subscription(node("sidecar", "default", &format!("n{index}")), CDS, &names);
            // Nothing is read of what is answered.
            let opened = tokio::time::timeout(LIMIT, stream(channel.clone(), None, first)).await;
            held.push(opened.expect("in time").expect("a stream"));
        }
    }
    for _ in 0..3 {
        let first = subscription(node("sidecar", "default", "reviews"), CDS, &["*"]);
        discover(plain(&pilot).await, None, first).await.expect("others are served");
    }
    assert!(status(&page(pilot.http, "/debug/syncz", "").await) == 200);
    drop(held);
}

/// A page of the web in a browser on this machine, and paths that mean others.
#[tokio::test]
async fn debug_pages_are_closed_to_others() {
    log();
    let site = Site::start(&[]).await;
    let pilot = site.pilot().await;
    let debug = [
        "/debug/configz",
        "/debug/syncz",
        "/debug/config_dump",
        "/debug/inject",
        "/debug/registryz",
        "/debug",
    ];
    let mut count = 0.0;
    for path in debug {
        for headers in [
            "Host: example.com\r\n",
            "Host: localhost.example.com:15014\r\n",
            "Host: localhost\r\nOrigin: http://example.com\r\n",
            "Host: localhost\r\nOrigin: null\r\n",
            "Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n",
            "Host: localhost\r\nForwarded: for=127.0.0.1\r\n",
            "Host: localhost\r\nX-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/istio-system/sa/istiod\r\n",
            "Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\nAuthorization: Bearer x\r\n",
        ] {
            let answer = page(pilot.http, path, headers).await;
            assert_eq!(status(&answer), 401, "{path} {headers}: {answer}");
            count += 1.0;
        }
        assert_ne!(status(&page(pilot.http, path, "Host: localhost:15014\r\n").await), 401, "{path}");
    }
    counted(&pilot, &refused("debug", "unauthenticated"), count).await;
    assert!(log().contains("a debug page is refused"), "{}", log());
    // No other way to write a path leads around that.
    for path in [
        "/ready/../debug/configz",
        "/ready/%2e%2e/debug/configz",
        "/metrics/../debug/configz",
        "//debug/configz",
        "/%64ebug/configz",
        "/debug%2Fconfigz",
        "/debug/./configz",
        "/DEBUG/configz",
        "/ready?/debug/configz",
        "/debug/configz/../../ready",
        "http://localhost/debug/configz",
    ] {
        let answer = page(pilot.http, path, "Host: example.com\r\n").await;
        let is_ready = path.starts_with("/ready?");
        assert!(
            [401, 404].contains(&status(&answer)) || is_ready || path.starts_with("http://"),
            "{path}: {answer}"
        );
        assert!(!answer.contains("resourceVersion"), "{path}: {answer}");
    }
}
