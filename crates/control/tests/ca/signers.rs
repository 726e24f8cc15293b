//! Signers of Kubernetes that sign in place of the authority, good ones and bad ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use leno_testkit::kube::{SigningRequest, Verdict};
use leno_tls::issue::CertificateRequest;

use super::*;

/// The domain of the signers that workloads name.
const DOMAIN: &str = "signers.example.com";

const API: (&str, &str) = ("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API");

/// The signer of those that name none.
const DEFAULT: (&str, &str) = ("K8S_SIGNER", "example.com/mesh");

const NAMED: (&str, &str) = ("CERT_SIGNER_DOMAIN", DOMAIN);

const CSRS: &str = "certificatesigningrequests";

fn seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
    i64::try_from(now.as_secs()).expect("not that late")
}

fn validity(from: i64, to: i64) -> Validity {
    Validity { not_before: seconds() + from, not_after: seconds() + to }
}

/// An authority, with an intermediate below its root if that is wanted.
fn authority(name: &str, has_intermediate: bool) -> Arc<Authority> {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let top = root(&key, name, validity(-3600, 7200)).expect("a root");
    let roots = certificates_to_pem([&top]).into_bytes();
    let pem = |key: &KeyPair| key.to_pem().expect("a key").into_bytes();
    let load = |material: &Material| Authority::load(material, seconds()).expect("an authority");
    let material =
        Material { certificate: roots.clone(), key: pem(&key), roots: roots.clone(), ..Material::default() };
    let top = load(&material);
    if !has_intermediate {
        return Arc::new(top);
    }
    let own = KeyPair::generate(KeyType::P256).expect("a key");
    let below = top.intermediate(own.public(), "below", 0, validity(-3600, 7200)).expect("it is signed");
    let certificate = certificates_to_pem([&below]).into_bytes();
    Arc::new(load(&Material { certificate, key: pem(&own), roots, ..Material::default() }))
}

fn chain(
    authority: &Authority,
    key: &leno_tls::issue::PublicKey,
    names: &[AltName],
    valid: Validity,
) -> String {
    let leaf = authority.issue(key, names, valid).expect("it is signed");
    certificates_to_pem(std::iter::once(&leaf).chain(authority.chain()))
}

/// Signs what is asked for, as signers do.
fn sign(authority: &Authority, seen: &SigningRequest) -> Option<Verdict> {
    let request = CertificateRequest::parse(&seen.request).expect("a request");
    Some(Verdict::Signed(chain(authority, request.key(), &request.names(), validity(-60, 3600))))
}

/// The root of an authority as the MeshConfig has it.
fn certificate(authority: &Authority, signers: &[&str]) -> Value {
    json!({ "pem": authority.roots_pem(), "certSigners": signers })
}

fn configure(cluster: &Cluster, certificates: &[Value]) {
    let mesh = json!({ "caCertificates": certificates }).to_string();
    cluster.api.put(json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "istio", "namespace": "istio-system" }, "data": { "mesh": mesh } }));
}

fn naming(mut request: IstioCertificateRequest, signer: &str) -> IstioCertificateRequest {
    let value = prost_types::Value { kind: Some(Kind::StringValue(signer.to_owned())) };
    request.metadata.get_or_insert_default().fields.insert("CertSigner".to_owned(), value);
    request
}

/// Until no request is left.
async fn cleaned_up(cluster: &Cluster) {
    until("the requests are deleted", async || {
        (cluster.api.count("certificates.k8s.io", CSRS) == 0).then_some(())
    })
    .await;
}

async fn channel(cluster: &Cluster, pilot: &Pilot) -> Channel {
    let roots = cluster.roots("default").await;
    until("a connection", async || connect(pilot.secure, &roots, None).await.ok()).await
}

/// The roots of signers come from the MeshConfig, or from what they answer.
#[tokio::test]
async fn signers_sign_for_workloads() {
    let cluster = Cluster::start(&[API, DEFAULT, NAMED]).await;
    let [mesh, a, unknown] =
        [("mesh", true), ("a", false), ("c", true)].map(|(name, below)| authority(name, below));
    configure(
        &cluster,
        &[certificate(&mesh, &["example.com/mesh"]), certificate(&a, &["signers.example.com/a", "x.y/z"])],
    );
    let (asked, seen) = std::sync::mpsc::channel();
    let all = [Arc::clone(&mesh), Arc::clone(&a), Arc::clone(&unknown)];
    cluster.api.sign_requests(move |request| {
        if request.approved {
            asked.send(request.clone()).expect("the test is there");
        }
        let [mesh, a, unknown] = &all;
        match request.signer.as_str() {
            "example.com/mesh" => sign(mesh, request),
            "signers.example.com/a" => sign(a, request),
            // It sends its root along.
            "signers.example.com/c" => match sign(unknown, request) {
                Some(Verdict::Signed(pem)) => Some(Verdict::Signed(pem + &unknown.roots_pem())),
                other => other,
            },
            _ => sign(unknown, request),
        }
    });
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;

    let (key, request) = csr(REVIEWS);
    let request = IstioCertificateRequest { validity_duration: 7200, ..request };
    let answer = ask(channel.clone(), Some("of reviews"), request).await.expect("a certificate");
    assert_eq!(names(&answer), [AltName::Uri(REVIEWS.to_owned())]);
    assert_eq!(answer.cert_chain.len(), 3, "it, the intermediate, and the root");
    assert_eq!(answer.cert_chain.last(), Some(&mesh.roots_pem()));
    let first = seen.try_recv().expect("it was approved");
    assert_eq!(first.signer, "example.com/mesh");
    let usages = json!(["digital signature", "key encipherment", "server auth", "client auth"]);
    assert_eq!((&first.spec["usages"], &first.spec["expirationSeconds"]), (&usages, &json!(7200)));
    assert_eq!(first.spec["username"], "kubernetes-admin");
    // Our own authority has signed nothing of it, and still says who the control plane is.
    assert_ne!(cluster.roots("default").await, mesh.roots_pem());

    // With what it was given it proves who it is.
    let roots = cluster.roots("default").await;
    let certified = connect(pilot.secure, &roots, Some(&own(&answer, &key))).await.expect("it is known");
    let (_, request) = csr(REVIEWS);
    let answer = ask(certified, None, naming(request, "a")).await.expect("a certificate");
    assert_eq!(answer.cert_chain.last(), Some(&a.roots_pem()));
    assert_eq!(answer.cert_chain.len(), 2);

    let (_, request) = csr(REVIEWS);
    let answer = ask(channel.clone(), Some("of reviews"), naming(request, "c")).await.expect("a certificate");
    assert_eq!(answer.cert_chain.last(), Some(&unknown.roots_pem()));
    assert_eq!(answer.cert_chain.len(), 3, "the root is there once");

    // The root that is to be trusted for a signer may become another.
    let other = authority("other", false);
    configure(
        &cluster,
        &[certificate(&mesh, &["example.com/mesh"]), certificate(&other, &["signers.example.com/a"])],
    );
    until("the new root", async || {
        let (_, request) = csr(REVIEWS);
        let answer = ask(channel.clone(), Some("of reviews"), naming(request, "a")).await;
        answer.err().filter(|status| status.message().contains("unable to get local issuer")).map(drop)
    })
    .await;
    cleaned_up(&cluster).await;
    assert!(metrics(&pilot).await["citadel_server_success_cert_issuance_count"] >= 3.0);
}

#[tokio::test]
async fn what_signers_get_wrong() {
    let cluster = Cluster::start(&[API, NAMED]).await;
    let [mesh, other] = ["mesh", "other"].map(|name| authority(name, false));
    let signers = [
        "good",
        "key",
        "identity",
        "more",
        "nameless",
        "root",
        "expired",
        "early",
        "authority",
        "denied",
        "failed",
        "words",
        "nothing",
    ];
    let full = signers.map(|signer| format!("{DOMAIN}/{signer}"));
    configure(&cluster, &[certificate(&mesh, &full.each_ref().map(String::as_str))]);
    let stranger = KeyPair::generate(KeyType::P256).expect("a key");
    cluster.api.sign_requests(move |seen| {
        let request = CertificateRequest::parse(&seen.request).expect("a request");
        let (key, names) = (request.key(), request.names());
        let valid = validity(-60, 3600);
        let with = |authority: &Authority, key, names: &[AltName], valid| {
            Some(Verdict::Signed(chain(authority, key, names, valid)))
        };
        let uri = |name: &str| AltName::Uri(name.to_owned());
        match seen.signer.split_once('/').expect("two parts").1 {
            "key" => with(&mesh, stranger.public(), &names, valid),
            "identity" => with(&mesh, key, &[uri("spiffe://cluster.local/ns/default/sa/admin")], valid),
            "more" => {
                with(&mesh, key, &[uri(REVIEWS), AltName::Dns("kubernetes.default.svc".to_owned())], valid)
            }
            "nameless" => with(&mesh, key, &[], valid),
            "root" | "unknown" => with(&other, key, &names, valid),
            "expired" => with(&mesh, key, &names, validity(-3000, -60)),
            "early" => with(&mesh, key, &names, validity(3000, 3600)),
            "authority" => {
                let der = mesh.intermediate(key, "x", 0, valid).expect("it is signed");
                Some(Verdict::Signed(certificates_to_pem([&der])))
            }
            "denied" => Some(Verdict::Denied("NotToday".to_owned())),
            "failed" => Some(Verdict::Failed("OutOfInk".to_owned())),
            "words" => Some(Verdict::Signed("signed, the authority".to_owned())),
            _ => with(&mesh, key, &names, valid),
        }
    });
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    let internal = |words| Err((Code::Internal, words));
    let invalid = |words| Err((Code::InvalidArgument, words));
    for (signer, expected) in [
        ("good", Ok(())),
        ("key", internal("the certificate is for another key")),
        ("identity", internal("the certificate is for other names")),
        ("more", internal("the certificate is for other names")),
        ("nameless", internal("the certificate is for other names")),
        ("root", internal("unable to get local issuer certificate")),
        ("expired", internal("certificate has expired")),
        ("early", internal("certificate is not yet valid")),
        ("authority", internal("the certificate is one of an authority")),
        ("denied", internal("was denied: NotToday")),
        ("failed", internal("was failed: OutOfInk")),
        ("words", internal("there is no certificate")),
        ("unknown", invalid("failed to find root cert from either signed cert-chain or mesh config")),
        ("", internal("no signer is named")),
        ("../mesh", invalid("cannot be the name of a signer")),
        ("good/x", invalid("cannot be the name of a signer")),
    ] {
        let request = naming(csr(REVIEWS).1, signer);
        let answer = ask(channel.clone(), Some("of reviews"), request).await;
        match (&answer, expected) {
            (Ok(_), Ok(())) => {}
            (Err(status), Err((code, words))) => {
                assert_eq!(status.code(), code, "{signer}: {status:?}");
                assert!(status.message().contains(words), "{signer}: {status:?}");
            }
            _ => panic!("{signer}: {answer:?}"),
        }
    }
    cleaned_up(&cluster).await;
    let counted = metrics(&pilot).await;
    assert_eq!(counted["citadel_server_csr_sign_err_count{error=\"CERT_GEN_ERROR\"}"], 12.0, "{counted:?}");
    assert_eq!(counted["citadel_server_csr_sign_err_count{error=\"CSR_ERROR\"}"], 3.0);
}

/// Signers sign what is in a request, so that nothing but the caller's name may be.
#[tokio::test]
async fn only_ones_own_name_is_passed_on() {
    let cluster = Cluster::start(&[API, DEFAULT, NAMED]).await;
    let mesh = authority("mesh", false);
    configure(&cluster, &[certificate(&mesh, &["example.com/mesh"])]);
    cluster.api.sign_requests(move |request| sign(&mesh, request));
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    let made = |edit: fn(&mut rcgen::CertificateParams)| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = |name: &str| rcgen::SanType::URI(name.try_into().expect("a name"));
        params.subject_alt_names = vec![uri(REVIEWS)];
        edit(&mut params);
        params.serialize_request(&key).and_then(|csr| csr.pem()).expect("a request")
    };
    fn uri(name: &str) -> rcgen::SanType {
        rcgen::SanType::URI(name.try_into().expect("a name"))
    }
    let cases = [
        ("its own name", made(|_| {}), true),
        (
            "no organization",
            made(|params| params.distinguished_name.push(rcgen::DnType::OrganizationName, "")),
            true,
        ),
        ("another identity", csr("spiffe://cluster.local/ns/default/sa/ratings").1.csr, false),
        ("another domain", csr("spiffe://other/ns/default/sa/reviews").1.csr, false),
        ("no name", made(|params| params.subject_alt_names.clear()), false),
        (
            "two names",
            made(|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/a/sa/b"))),
            false,
        ),
        ("its own twice", made(|params| params.subject_alt_names.push(uri(REVIEWS))), false),
        (
            "a host",
            made(|params| {
                params.subject_alt_names.push(rcgen::SanType::DnsName("a.b".try_into().expect("a name")));
            }),
            false,
        ),
        (
            "an address",
            made(|params| params.subject_alt_names.push(rcgen::SanType::IpAddress([10, 0, 0, 1].into()))),
            false,
        ),
        (
            "a subject",
            made(|params| params.distinguished_name.push(rcgen::DnType::CommonName, "admin")),
            false,
        ),
        (
            "a group",
            made(|params| params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters")),
            false,
        ),
        ("a use", made(|params| params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign]), false),
        (
            "an authority",
            made(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            false,
        ),
    ];
    drop(cluster.api.take_seen());
    for (what, text, is_good) in cases {
        let request = IstioCertificateRequest { csr: text, ..IstioCertificateRequest::default() };
        let answer = ask(channel.clone(), Some("of reviews"), request).await;
        let seen = cluster.api.take_seen();
        let created = seen.iter().filter(|it| it.method == "POST" && it.path.ends_with(CSRS)).count();
        assert_eq!((answer.is_ok(), created), (is_good, usize::from(is_good)), "{what}: {answer:?}");
        if let Err(status) = answer {
            assert_eq!(status.code(), Code::InvalidArgument, "{what}");
            assert!(
                status.message().contains("unable to validate SAN Identities in CSR"),
                "{what}: {status:?}"
            );
        }
    }
}

/// What the API server does not allow is said; where requests cannot be watched they are looked at.
#[tokio::test]
async fn signing_needs_permissions() {
    let cluster = Cluster::start(&[API, DEFAULT, NAMED]).await;
    let mesh = authority("mesh", false);
    configure(&cluster, &[certificate(&mesh, &["example.com/mesh"])]);
    cluster.api.sign_requests(move |request| sign(&mesh, request));
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    for (verb, plural, words) in [
        ("create", CSRS, Some("failed to create CSR: ")),
        ("approve", "signers", Some("failed to approve CSR request: user not permitted to approve requests")),
        ("update", CSRS, Some("failed to approve CSR request: ")),
        ("watch", CSRS, None),
    ] {
        cluster.api.deny("*", verb, "certificates.k8s.io", plural);
        let answer = ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1).await;
        cluster.api.allow_all();
        match (words, answer) {
            (None, Ok(_)) => {}
            (Some(words), Err(status)) => {
                assert_eq!(status.code(), Code::Internal, "{verb}: {status:?}");
                assert!(status.message().contains(words), "{verb}: {status:?}");
            }
            (_, answer) => panic!("{verb}: {answer:?}"),
        }
    }
    cleaned_up(&cluster).await;
}

/// A signer may take its time; who does not wait for it leaves nothing behind.
#[tokio::test]
async fn slow_signers() {
    let cluster = Cluster::start(&[API, DEFAULT, NAMED]).await;
    let mesh = authority("mesh", false);
    configure(&cluster, &[certificate(&mesh, &["example.com/mesh"])]);
    let awake = Arc::new(AtomicBool::new(false));
    let is_awake = Arc::clone(&awake);
    cluster.api.sign_requests(
        move |request| {
            if is_awake.load(Ordering::Acquire) { sign(&mesh, request) } else { None }
        },
    );
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    let approved = async || {
        until("an approved request", async || {
            let seen = cluster.api.take_seen();
            seen.iter().any(|it| it.query.contains("watch=true") && it.path.ends_with(CSRS)).then_some(())
        })
        .await;
    };
    let waiting = tokio::spawn(ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1));
    approved().await;
    // The watch ends, and another begins.
    cluster.api.drop_watches();
    approved().await;
    awake.store(true, Ordering::Release);
    cluster.api.look_at_requests();
    waiting.await.expect("no panic").expect("a certificate");
    cleaned_up(&cluster).await;

    awake.store(false, Ordering::Release);
    let waiting = tokio::spawn(ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1));
    approved().await;
    waiting.abort();
    cleaned_up(&cluster).await;

    // Nor does who has gone before it was made.
    drop(cluster.api.take_seen());
    cluster.api.slow_down(Duration::from_millis(300));
    let waiting = tokio::spawn(ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1));
    let seen = async |method: &str| {
        until("it is made and deleted", async || {
            let seen = cluster.api.take_seen();
            seen.iter().any(|it| it.method == method && it.path.contains(CSRS)).then_some(())
        })
        .await;
    };
    seen("POST").await;
    waiting.abort();
    seen("DELETE").await;
    cluster.api.slow_down(Duration::ZERO);
    cleaned_up(&cluster).await;

    let mut config = cluster.config.clone();
    let external = config.access.authority.as_mut().and_then(|ca| ca.external.as_mut());
    external.expect("there is one").patience = Duration::from_secs(1);
    let hasty = start(config).await;
    let channel = self::channel(&cluster, &hasty).await;
    let status = ask(channel, Some("of reviews"), csr(REVIEWS).1).await.expect_err("nobody signs");
    assert_eq!(status.code(), Code::Internal);
    cleaned_up(&cluster).await;
}

/// One identity cannot take all the room there is.
#[tokio::test]
async fn one_identity_takes_nothing_from_others() {
    let cluster = Cluster::start(&[API, DEFAULT, NAMED]).await;
    cluster.api.add_token("of ratings", service_account("default", "ratings"));
    let mesh = authority("mesh", false);
    configure(&cluster, &[certificate(&mesh, &["example.com/mesh"])]);
    cluster.api.sign_requests(move |seen| {
        let names = CertificateRequest::parse(&seen.request).expect("a request").names();
        if names == [AltName::Uri(REVIEWS.to_owned())] { None } else { sign(&mesh, seen) }
    });
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..33 {
        waiting.spawn(ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1));
    }
    let first = waiting.join_next().await.expect("one is too many").expect("no panic");
    let status = first.expect_err("there is no room");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let other = csr("spiffe://cluster.local/ns/default/sa/ratings").1;
    ask(channel.clone(), Some("of ratings"), other).await.expect("a certificate");
    waiting.shutdown().await;
    cleaned_up(&cluster).await;
}

/// With a file there is one root for all signers.
#[tokio::test]
async fn a_file_has_the_root_of_all_signers() {
    let mut cluster = Cluster::start(&[API, DEFAULT]).await;
    let mesh = authority("mesh", false);
    let folder = tempfile::tempdir().expect("a folder");
    let (file, cluster_file) = (folder.path().join("root-cert.pem"), folder.path().join("ca.crt"));
    let external = cluster.config.access.authority.as_mut().and_then(|ca| ca.external.as_mut());
    let external = external.expect("there is one");
    external.roots = file.clone();
    external.cluster_roots = cluster_file.clone();
    let refused = Server::bind(cluster.config.clone()).await.map(drop).expect_err("there is no root");
    assert!(refused.to_string().contains("ca.crt"), "{refused}");
    fs::write(&cluster_file, mesh.roots_pem()).expect("writable");
    let signer = Arc::clone(&mesh);
    cluster.api.sign_requests(move |request| sign(&signer, request));
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    let answer = ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1).await.expect("a certificate");
    assert_eq!(answer.cert_chain.last(), Some(&mesh.roots_pem()));
    let status = ask(channel.clone(), Some("of reviews"), naming(csr(REVIEWS).1, "a")).await;
    let status = status.expect_err("there is no domain");
    assert!(status.message().contains("certSignerDomain is required for signer a"), "{status:?}");
    // The other file counts once it is there.
    fs::write(&file, authority("other", false).roots_pem()).expect("writable");
    until("the other root", async || {
        let answer = ask(channel.clone(), Some("of reviews"), csr(REVIEWS).1).await;
        answer.err().filter(|status| status.message().contains("unable to get local issuer")).map(drop)
    })
    .await;
}

/// The control plane's own certificate is a signer's too, and there is no authority at all.
#[tokio::test]
async fn a_signer_says_who_the_control_plane_is() {
    let provider = ("PILOT_CERT_PROVIDER", "k8s.io/example.com/istiod");
    let cluster = Cluster::start(&[API, DEFAULT, NAMED, provider]).await;
    let [mesh, istiod] = [("mesh", false), ("istiod", true)].map(|(name, below)| authority(name, below));
    let signers = [Arc::clone(&mesh), Arc::clone(&istiod)];
    let [signer, own_signer] = signers;
    cluster.api.sign_requests(move |request| match request.signer.as_str() {
        "example.com/istiod" => sign(&own_signer, request),
        _ => sign(&signer, request),
    });
    let pilot = start(cluster.config.clone()).await;
    until("its answer", async || (!page(&pilot, "/ready").await.is_empty()).then_some(())).await;
    assert!(!is_ready(&pilot).await, "nobody knows the root");
    let [for_mesh, for_istiod] =
        [certificate(&mesh, &["example.com/mesh"]), certificate(&istiod, &["example.com/istiod"])];
    configure(&cluster, &[for_mesh.clone(), for_istiod]);
    until("a certificate", async || is_ready(&pilot).await.then_some(())).await;
    let published = cluster.roots("default").await;
    assert_eq!(published, istiod.roots_pem());
    let channel = channel(&cluster, &pilot).await;
    let (key, request) = csr(REVIEWS);
    let answer = ask(channel, Some("of reviews"), request).await.expect("a certificate");
    assert_eq!(answer.cert_chain.last(), Some(&mesh.roots_pem()));
    connect(pilot.secure, &published, Some(&own(&answer, &key))).await.expect("it is known");
    assert!(cluster.api.find("", "secrets", "istio-system", "istio-ca-secret").is_none());

    // Another root, and so another certificate.
    let next = authority("next", false);
    let signer = Arc::clone(&next);
    cluster.api.sign_requests(move |request| sign(&signer, request));
    configure(&cluster, &[for_mesh, certificate(&next, &["example.com/istiod"])]);
    until("the new certificate", async || connect(pilot.secure, &next.roots_pem(), None).await.ok()).await;
    until("the new root", async || (cluster.roots("default").await == next.roots_pem()).then_some(())).await;
    cleaned_up(&cluster).await;
}

/// `USE_CACERTS_FOR_SELF_SIGNED_CA`: the Secret has the name of those that people make, and is marked.
#[tokio::test]
async fn a_root_of_our_own_in_cacerts() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("text").to_owned();
    let variables = [("USE_CACERTS_FOR_SELF_SIGNED_CA", "true"), ("ROOT_CA_DIR", dir.as_str())];
    let cluster = Cluster::start(&variables).await;
    let _pilot = start(cluster.config.clone()).await;
    let roots = cluster.roots("default").await;
    let secret = cluster.api.find("", "secrets", "istio-system", "cacerts").expect("it is kept");
    assert!(secret["data"].get("istio-generated").is_some());
    assert!(cluster.api.find("", "secrets", "istio-system", "istio-ca-secret").is_none());
    // It is mounted when the next one starts, which knows that it is its own.
    for (name, value) in secret["data"].as_object().expect("an object") {
        let bytes = leno_base::base64::decode(value.as_str().expect("text").as_bytes()).expect("base64");
        fs::write(folder.path().join(name), bytes).expect("writable");
    }
    let next = start(cluster.config.clone()).await;
    until("the same root", async || connect(next.secure, &roots, None).await.ok()).await;
    assert_eq!(cluster.roots("default").await, roots);

    // What people have made is not taken for ours, and not written over.
    let other = Cluster::start(&variables[..1]).await;
    let theirs = json!({ "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "name": "cacerts", "namespace": "istio-system" }, "data": { "ca-cert.pem": "" } });
    other.api.put(theirs);
    let pilot = start(other.config.clone()).await;
    until("a look at it", async || {
        let seen = other.api.take_seen();
        seen.iter().any(|it| it.method == "GET" && it.path.ends_with("/secrets/cacerts")).then_some(())
    })
    .await;
    assert!(!is_ready(&pilot).await);
    let kept = other.api.find("", "secrets", "istio-system", "cacerts").expect("it is there");
    assert_eq!(kept["data"], json!({ "ca-cert.pem": "" }));
    // A root of before goes on.
    let before = cluster.api.find("", "secrets", "istio-system", "cacerts").expect("it is kept");
    other.api.put(json!({ "apiVersion": "v1", "kind": "Secret", "type": "istio.io/ca-root",
        "metadata": { "name": "istio-ca-secret", "namespace": "istio-system" }, "data": before["data"] }));
    assert_eq!(other.roots("default").await, roots);
}

/// What the charts let the control plane do is enough, and for no other signer.
#[tokio::test]
async fn the_charts_permissions_are_enough() {
    const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../leno/tests/install/signers.yaml");
    const ISSUERS: &str = "clusterissuers.cert-manager.io";
    let own = format!("k8s.io/{ISSUERS}/istio-system");
    let variables = [API, ("CERT_SIGNER_DOMAIN", ISSUERS), ("PILOT_CERT_PROVIDER", own.as_str())];
    let mut cluster = Cluster::start(&[&variables[..], &[DEFAULT]].concat()).await;
    let is_role = |text: &&str| {
        ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"]
            .iter()
            .any(|kind| text.lines().any(|line| line == format!("kind: {kind}")))
    };
    let manifests = fs::read_to_string(MANIFESTS).expect("they are recorded");
    manifests.split("---\n").filter(is_role).for_each(|text| cluster.api.put_yaml(text));
    cluster.api.add_token("of istiod", service_account("istio-system", "istiod"));
    let kubeconfig = cluster.api.kubeconfig().replace(cluster.api.token(), "of istiod");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kubeconfig");
    fs::write(&path, kubeconfig).expect("writable");
    cluster.config.kubernetes = Some(Kubernetes { kubeconfig: Some(path), ..Kubernetes::default() });
    cluster.api.authorize();
    let mesh = authority("mesh", false);
    configure(&cluster, &[certificate(&mesh, &[&own["k8s.io/".len()..], &format!("{ISSUERS}/workloads")])]);
    cluster.api.sign_requests(move |request| sign(&mesh, request));
    let pilot = start(cluster.config.clone()).await;
    let channel = channel(&cluster, &pilot).await;
    let request = naming(csr(REVIEWS).1, "workloads");
    ask(channel.clone(), Some("of reviews"), request).await.expect("a certificate");
    cleaned_up(&cluster).await;
    assert_eq!(cluster.api.take_refused(), Vec::<String>::new());
    let status = ask(channel, Some("of reviews"), csr(REVIEWS).1).await.expect_err("it is another's");
    assert!(status.message().contains("user not permitted to approve requests"), "{status:?}");
    cleaned_up(&cluster).await;
}
