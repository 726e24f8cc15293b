//! Which certificates are shown and seen, told by `openssl`, and which are refused: by our proxies and by
//! Envoy. The authority is one that was plugged in, so that a test can sign what it likes.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use serde_json::{Value, json};

use leno_testkit::process::Killed;

use crate::mesh::{BARE, INBOUND, Mesh, Workload, ask, destination, mutual};

/// A root, and an authority below it that signs for workloads.
pub(crate) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    below: CertifiedIssuer<'static, KeyPair>,
}

/// From when until when a certificate is valid, in years.
pub(crate) type Years = (i32, i32);

pub(crate) const GOOD: Years = (2020, 2090);
const EXPIRED: Years = (2020, 2022);

impl Authority {
    /// One with names of its own.
    pub(crate) fn new(name: &str) -> Authority {
        let params = |part: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, format!("{part} of {name}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2095, 1, 1));
            params
        };
        let key = || KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(params("root"), key()).expect("a root");
        let below = CertifiedIssuer::signed_by(params("below"), key(), &root).expect("an authority");
        Authority { root, below }
    }

    /// Whom those trust who trust it, in PEM.
    pub(crate) fn roots(&self) -> String {
        self.root.pem()
    }

    /// A mesh whose authority this is.
    fn mesh(&self) -> Mesh {
        let mesh = Mesh::prepared(1, &[], |folder| {
            for (name, text) in [
                ("ca-cert.pem", self.below.pem()),
                ("ca-key.pem", self.below.key().serialize_pem()),
                ("cert-chain.pem", self.below.pem()),
                ("root-cert.pem", self.root.pem()),
            ] {
                std::fs::write(folder.join(name), text).expect("writable");
            }
        });
        let once = destination("server", &json!({ "http": { "maxRequestsPerConnection": 1 } }));
        mesh.write_as("rules.yaml", &[once, mutual("STRICT")]);
        mesh
    }

    /// Writes a certificate of a service account with its key; where they are.
    pub(crate) fn sign(
        &self,
        folder: &Path,
        name: &str,
        account: &str,
        (from, to): Years,
    ) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        let identity = format!("spiffe://cluster.local/ns/{}", account.replace('/', "/sa/"));
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().expect("ASCII"))];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.below).expect("signed");
        let (chain, own) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&chain, leaf.pem() + &self.below.pem()).expect("writable");
        std::fs::write(&own, key.serialize_pem()).expect("writable");
        (chain, own)
    }

    /// The lists of both authorities; that of workloads names this one.
    fn revocations(&self, serial: &[u8]) -> String {
        let list = |issuer: &CertifiedIssuer<'static, KeyPair>, serials: &[&[u8]]| {
            let revoked = serials.iter().map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2024, 1, 1),
                next_update: date_time_ymd(2090, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(issuer).expect("signed").pem().expect("PEM")
        };
        list(&self.root, &[]) + &list(&self.below, &[serial])
    }
}

/// Whether there is `openssl`.
pub(crate) fn has_openssl() -> bool {
    let found = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: there is no openssl");
    }
    found
}

/// What `openssl` says, given something to read.
fn openssl(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    // It may have ended before it has read all.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A request by `openssl s_client` with a certificate.
pub(crate) fn s_client(to: SocketAddr, roots: &Path, shown: Option<&(PathBuf, PathBuf)>) -> String {
    let to = to.to_string();
    let mut arguments = vec!["s_client", "-connect", &to, "-alpn", "istio,http/1.1", "-CAfile", text(roots)];
    arguments.extend(["-verify_return_error", "-ign_eof"]);
    if let Some((chain, key)) = shown {
        arguments.extend(["-cert", text(chain), "-cert_chain", text(chain), "-key", text(key)]);
    }
    openssl(&arguments, "GET /x HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
}

/// Answers whoever shows a certificate of the mesh with a page about it.
fn s_server(workload: &Workload, roots: &Path, (chain, key): &(PathBuf, PathBuf), log: &Path) -> Killed {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &format!("{}:{BARE}", workload.address), "-www"]);
    command.args(["-alpn", "istio-http/1.1,istio,http/1.1", "-Verify", "3", "-verify_return_error"]);
    command.arg("-CAfile").arg(roots).arg("-cert").arg(chain).arg("-cert_chain").arg(chain);
    command.arg("-key").arg(key);
    Killed::start(&mut command, log)
}

fn seen(config: &Value) {
    if !has_openssl() {
        return;
    }
    let authority = Authority::new("the mesh");
    let mesh = authority.mesh();
    let server = mesh.workload("server", &counting(config), &[]);
    let client = mesh.workload("client", &counting(config), &[]);
    mesh.until_ready(&server);
    mesh.until_ready(&client);
    mesh.until("they talk", || matches!(client.call("server", "/x", ""), Ok((200, _))));
    let (folder, roots) = (mesh.folder(), mesh.folder().join("ca/root-cert.pem"));
    let inbound = SocketAddr::from((server.address, INBOUND));

    // What a server shows, and what it sees of a client.
    let good = authority.sign(folder, "good", "default/client", GOOD);
    let said = s_client(inbound, &roots, Some(&good));
    for words in [
        "Verify return code: 0 (ok)",
        "ALPN protocol: http/1.1",
        "HTTP/1.1 200 OK",
        "By=spiffe://cluster.local/ns/default/sa/server",
        "URI=spiffe://cluster.local/ns/default/sa/client",
    ] {
        assert!(said.contains(words), "{words}: {said}\n{}", mesh.logs());
    }
    let names =
        openssl(&["x509", "-noout", "-ext", "subjectAltName,extendedKeyUsage,basicConstraints"], &said);
    let names: Vec<&str> = names.lines().map(str::trim).collect();
    assert!(names.contains(&"URI:spiffe://cluster.local/ns/default/sa/server"), "{names:?}");
    assert!(names.contains(&"CA:FALSE"), "{names:?}");

    // Whom a server refuses.
    let stranger = Authority::new("strangers");
    for (what, shown, alert) in [
        ("nobody", None, "certificate required"),
        (
            "one that has expired",
            Some(authority.sign(folder, "old", "default/client", EXPIRED)),
            "certificate expired",
        ),
        (
            "one that comes later",
            Some(authority.sign(folder, "new", "default/client", (2080, 2090))),
            "alert",
        ),
        ("a stranger", Some(stranger.sign(folder, "stranger", "default/client", GOOD)), "unknown ca"),
    ] {
        let said = s_client(inbound, &roots, shown.as_ref());
        assert!(!said.contains("HTTP/1.1 200"), "{what}: {said}");
        assert!(said.contains(alert), "{what}: {alert}: {said}");
    }
    assert!(ask(inbound, "GET", "/x", "").is_err(), "plaintext must be refused");

    // What a client shows, and whom it refuses.
    let log = folder.join("openssl.log");
    {
        let own = authority.sign(folder, "own", "default/server", GOOD);
        let _server = s_server(&server, &roots, &own, &log);
        let mut page = String::new();
        mesh.until("the bare server answers", || {
            let answer = client.call("bare", "/", "");
            let (status, text) = answer.unwrap_or_else(|error| (0, error.to_string()));
            page = text;
            status == 200
        });
        assert!(page.contains("URI:spiffe://cluster.local/ns/default/sa/client"), "{page}");
    }
    for (what, shown, counted) in [
        (
            "one that has expired",
            authority.sign(folder, "own-old", "default/server", EXPIRED),
            "fail_verify_error",
        ),
        ("somebody else", authority.sign(folder, "somebody", "default/client", GOOD), "fail_verify_san"),
        ("a stranger", stranger.sign(folder, "own-stranger", "default/server", GOOD), "fail_verify_error"),
    ] {
        let _server = s_server(&server, &roots, &shown, &log);
        let before = failures(&client, counted);
        mesh.until(what, || {
            let (status, page) = client.call("bare", "/", "").unwrap_or_else(|error| (0, error.to_string()));
            assert_ne!(status, 200, "{what}: {page}");
            status == 503 && failures(&client, counted) > before
        });
    }
}

/// How often a workload's proxy has refused a certificate.
fn failures(workload: &Workload, stat: &str) -> u64 {
    workload.stats(|name| name.ends_with(&format!(".ssl.{stat}")))
}

/// A ProxyConfig with which that is counted.
fn counting(config: &Value) -> Value {
    let mut config = config.clone();
    config["proxyStatsMatcher"] = json!({ "inclusionRegexps": [".*ssl.*"] });
    config
}

#[test]
fn our_proxies_show_identities_to_openssl() {
    seen(&json!({}));
}

#[test]
fn envoys_show_identities_to_openssl() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    seen(&json!({ "binaryPath": envoy }));
}

/// The serial number of the certificate that a workload has now.
fn serial(workload: &Workload) -> Vec<u8> {
    let chain = std::fs::read(workload.folder.join("certs/cert-chain.pem")).expect("a certificate");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&chain).expect("PEM");
    pem.parse_x509().expect("a certificate").raw_serial().to_vec()
}

fn revoked(config: &Value) {
    let authority = Authority::new("the mesh");
    let mesh = authority.mesh();
    let variables = [("OUTPUT_CERTS", "certs".to_owned())];
    let config = counting(config);
    let [server, client, other] = ["server", "client", "other"].map(|name| {
        let workload = mesh.workload(name, &config, &variables);
        mesh.until_ready(&workload);
        workload
    });
    let status = |from: &Workload| from.call("server", "/x", "").map_or(0, |(status, _)| status);
    mesh.until("they talk", || [&client, &other].into_iter().all(|from| status(from) == 200));

    // What a kubelet does with the ConfigMap that the control plane writes.
    let tell = |lists: &str| {
        std::fs::write(mesh.folder().join("ca/ca-crl.pem"), lists).expect("writable");
        for workload in [&server, &client, &other] {
            let place = workload.folder.join("var/run/secrets/istio/crl");
            std::fs::create_dir_all(&place).expect("a folder");
            std::fs::write(place.join("draft"), lists).expect("writable");
            std::fs::rename(place.join("draft"), place.join("ca-crl.pem")).expect("writable");
        }
    };
    tell(&authority.revocations(&serial(&client)));
    mesh.until("the client is refused", || status(&client) == 503);
    assert_eq!(status(&other), 200, "nobody else is\n{}", mesh.logs());
    assert!(failures(&server, "fail_verify_error") > 0, "it is counted");

    tell(&authority.revocations(&serial(&server)));
    let before = failures(&client, "fail_verify_error");
    mesh.until("the server is refused", || {
        status(&client) == 503 && failures(&client, "fail_verify_error") > before
    });
    mesh.until("others refuse it too", || status(&other) == 503);
    // What cannot be read changes nothing.
    tell("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    mesh.until("it is said", || mesh.logs().matches("what was revoked cannot be read").count() >= 3);
    assert_eq!(status(&other), 503, "{}", mesh.logs());
    // One that names nobody else's.
    tell(&authority.revocations(&[1]));
    mesh.until("they talk again", || [&client, &other].into_iter().all(|from| status(from) == 200));
}

#[test]
fn our_proxies_refuse_what_was_revoked() {
    revoked(&json!({}));
}

#[test]
fn envoys_refuse_what_was_revoked() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    revoked(&json!({ "binaryPath": envoy }));
}
