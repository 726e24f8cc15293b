//! Servers of gRPC that do without a proxy: their TLS, and who may call what, come over xDS.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use leno_control::server::{Config, Server};
use leno_testkit::wheels;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Python, REQUIREMENTS, write};

/// How calls ended, and who the server took the caller for, or what was said of the failure.
#[derive(Debug, Default, Deserialize)]
struct Ends {
    ends: BTreeMap<String, u32>,
    peers: BTreeSet<String>,
}

impl Ends {
    /// Whether all ended so.
    fn all(&self, status: &str) -> bool {
        self.ends.keys().eq([status])
    }
}

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// The files of a workload: certificate, key, root and bootstrap.
fn bootstrap(
    folder: &Path,
    account: &str,
    labels: &Value,
    pilot: SocketAddr,
    authority: &CertifiedIssuer<'static, KeyPair>,
) -> PathBuf {
    let mut params = CertificateParams::default();
    // Another name than the authority's, or it counts as signed by itself.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity(account).try_into().expect("a name"))];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let file = |name: &str, text: &str| {
        let path = folder.join(format!("{account}-{name}"));
        fs::write(&path, text).expect("writable");
        path.display().to_string()
    };
    let content = json!({
        "xds_servers": [{
            "server_uri": pilot.to_string(),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": format!("sidecar~127.0.0.1~{account}.default~default.svc.cluster.local"),
            "metadata": {
                "GENERATOR": "grpc",
                "NAMESPACE": "default",
                "SERVICE_ACCOUNT": account,
                "INSTANCE_IPS": "127.0.0.1",
                "LABELS": labels,
            },
        },
        "certificate_providers": { "default": {
            "plugin_name": "file_watcher",
            "config": {
                "certificate_file": file("chain.pem", &certificate.pem()),
                "private_key_file": file("key.pem", &key.serialize_pem()),
                "ca_certificate_file": file("root.pem", &authority.pem()),
                "refresh_interval": "600s",
            },
        } },
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    });
    PathBuf::from(file("bootstrap.json", &content.to_string()))
}

/// The mesh: one server, its certificates and permissions as the rules say.
fn mesh(port: u16, rules: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: default}}
spec: {{clusterIP: 10.96.0.1, selector: {{app: echo}}, ports: [{{name: grpc, port: 9080, targetPort: {port}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: echo, namespace: default, labels: {{app: echo, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: echo, containers: [{{name: app, image: app}}]}}
status: {{phase: Running, podIP: 127.0.0.1, podIPs: [{{ip: 127.0.0.1}}], conditions: [{{type: Ready, status: 'True'}}]}}
---
"
    );
    for (kind, spec) in rules {
        let group = if *kind == "DestinationRule" { "networking" } else { "security" };
        text += &format!(
            "apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: echo, namespace: default}}\nspec: {spec}\n---\n"
        );
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_with_certificates_and_permissions() {
    let venv = match wheels::venv("grpcio-1.85.1", &REQUIREMENTS) {
        Ok(venv) => venv,
        Err(reason) => return println!("skipped: no grpcio: {reason}"),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let own = tempfile::tempdir().expect("a folder");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
    let port = leno_testkit::ports::free();
    let mut config = Config::new(vec![folder.path().to_owned()]);
    config.grpc_addr.set_port(0);
    config.http_addr.set_port(0);
    let server = Server::bind(config).await.expect("free ports");
    let pilot = server.grpc_addr().expect("an address");
    tokio::spawn(server.run(std::future::pending()));

    let tls = ("DestinationRule", "{host: echo, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    let plain = ("DestinationRule", "{host: echo}");
    let strict = ("PeerAuthentication", "{selector: {matchLabels: {app: echo}}, mtls: {mode: STRICT}}");
    let off = ("PeerAuthentication", "{selector: {matchLabels: {app: echo}}, mtls: {mode: DISABLE}}");
    write(folder.path(), &mesh(port, &[tls, strict]));
    let made = |account: &str, labels: Value| bootstrap(own.path(), account, &labels, pilot, &authority);
    let labels = json!({ "app": "echo", "security.istio.io/tlsMode": "istio" });
    let echo = made("echo", labels);
    let serving = Python::start(&venv, "secure.py", &echo, &["serve", &port.to_string()]).await;
    let mut friend = Python::start(&venv, "secure.py", &made("friend", json!({})), &["call"]).await;
    let mut stranger = Python::start(&venv, "secure.py", &made("stranger", json!({})), &["call"]).await;
    let calls = |method: &str| json!({ "target": "xds:///echo.default.svc.cluster.local:9080", "method": method, "count": 3 });

    // Mutual TLS: the server knows who calls.
    let is = |account: &'static str| {
        move |found: &Ends| found.all("OK") && found.peers.iter().eq([&identity(account)])
    };
    friend.until("mutual TLS", calls("/test.Echo/Call"), is("friend")).await;
    stranger.until("mutual TLS", calls("/test.Echo/Call"), is("stranger")).await;

    // Who may call what.
    let allow = (
        "AuthorizationPolicy",
        "{selector: {matchLabels: {app: echo}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/friend]}}], to: [{operation: {paths: [/test.Echo/Call]}}]}]}",
    );
    write(folder.path(), &mesh(port, &[tls, strict, allow]));
    let denied = |found: &Ends| found.all("PERMISSION_DENIED");
    stranger.until("not for strangers", calls("/test.Echo/Call"), denied).await;
    friend.until("not all", calls("/test.Echo/Other"), denied).await;
    friend.until("for friends", calls("/test.Echo/Call"), is("friend")).await;

    let deny = (
        "AuthorizationPolicy",
        "{selector: {matchLabels: {app: echo}}, action: DENY, rules: [{to: [{operation: {paths: [/test.Echo/Other]}}]}]}",
    );
    write(folder.path(), &mesh(port, &[tls, strict, deny]));
    friend.until("denied", calls("/test.Echo/Other"), denied).await;
    stranger.until("not denied", calls("/test.Echo/Call"), is("stranger")).await;

    // A server with certificates takes no plain text, and one without is called without.
    write(folder.path(), &mesh(port, &[plain, strict]));
    friend.until("plain text", calls("/test.Echo/Call"), |found: &Ends| found.all("UNAVAILABLE")).await;
    write(folder.path(), &mesh(port, &[plain, off]));
    let nobody = |found: &Ends| found.all("OK") && found.peers.iter().eq([""]);
    friend.until("without certificates", calls("/test.Echo/Call"), nobody).await;
    write(folder.path(), &mesh(port, &[tls, strict]));
    friend.until("mutual TLS again", calls("/test.Echo/Call"), is("friend")).await;
    drop(serving);
}
