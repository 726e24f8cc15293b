//! What the cluster's node belongs to: the API server of `crate::kube`, whose controllers are in this folder, or
//! Kubernetes' own programs.
//!
//! The variable [`VARIABLE`] names a folder with the programs `etcd`, `kube-apiserver` and
//! `kube-controller-manager`. They run in the namespaces of the node, each cluster has its own. What is still played
//! then is what a node does, the scheduler, and the load balancer of a cloud.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::kube::Client;
use http::Request;
use leno_node::{Line, Process, ProcessSpec};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::kube::{ApiServer, Options, kubeconfig};

/// Names the folder of Kubernetes' own programs.
pub const VARIABLE: &str = "LENO_TEST_KUBERNETES";

/// How long Kubernetes may take to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(200);

/// Where the API server listens, on the node's address.
const PORT: u16 = 6443;
/// Its administrator, among the users of [`Kubernetes`].
const TOKEN: &str = "administrator";

/// The API server, and who plays the controllers.
pub(super) enum Plane {
    /// The server of this crate; controllers are played.
    Own {
        server: ApiServer,
        bundle: String,
    },
    Real(Kubernetes),
}

impl Plane {
    /// Starts what is to be had, whose files are in `folder`.
    pub(super) async fn start(
        address: Ipv4Addr,
        folder: &Path,
        lines: &mpsc::Sender<Line>,
    ) -> Result<Plane, Box<dyn Error>> {
        let certificates = Certificates::make(address)?;
        if let Some(programs) = std::env::var_os(VARIABLE) {
            let started = Kubernetes::start(Path::new(&programs), address, &certificates, folder, lines);
            return Ok(Plane::Real(started.await?));
        }
        let options = Options {
            tls: Some((certificates.chain, certificates.key)),
            authenticate: true,
            address: Some(SocketAddr::new(address.into(), PORT)),
        };
        let server = ApiServer::start_with(options).await?;
        server.expect_kubelet();
        server.authorize();
        server.put(own_endpoints(address));
        Ok(Plane::Own { server, bundle: certificates.bundle })
    }

    /// For its administrator.
    pub(super) fn kubeconfig(&self) -> String {
        match self {
            Plane::Own { server, bundle } => server.kubeconfig_for(bundle),
            Plane::Real(kubernetes) => kubernetes.kubeconfig.clone(),
        }
    }

    /// Waits until it serves, and makes the node known.
    pub(super) async fn ready(&self, client: &Client, node: &Value) -> Result<(), Box<dyn Error>> {
        if let Plane::Real(kubernetes) = self {
            let ready = kubernetes.ready(client);
            let ready = tokio::time::timeout(PATIENCE, ready).await;
            ready.map_err(|_| "Kubernetes does not start")??;
        }
        let request = Request::post("/api/v1/nodes").header("content-type", "application/json");
        client.request::<Value>(request.body(node.to_string().into_bytes())?).await?;
        Ok(())
    }

    /// Paths with queries of the requests since the start or since this was asked last.
    pub(super) fn take_requests(&self) -> Vec<String> {
        match self {
            Plane::Own { server, .. } => {
                let seen = server.take_seen().into_iter();
                seen.map(|it| format!("{}?{}", it.path, it.query)).collect()
            }
            Plane::Real(kubernetes) => {
                let events = kubernetes.events().into_iter();
                let uri = |it: &Value| it["requestURI"].as_str().map(str::to_owned);
                let mut read = kubernetes.read.lock().unwrap_or_else(PoisonError::into_inner);
                let all: Vec<String> = events.filter_map(|it| uri(&it)).collect();
                let new = all.get(*read..).unwrap_or_default().to_vec();
                *read = all.len();
                new
            }
        }
    }

    /// The requests that service accounts of users were forbidden since the start.
    pub(super) fn refused(&self) -> Vec<String> {
        match self {
            Plane::Own { server, .. } => server.take_refused(),
            Plane::Real(kubernetes) => {
                let mut events = kubernetes.events();
                events.retain(|it| {
                    let user = it["user"]["username"].as_str().unwrap_or_default();
                    let account = user.strip_prefix("system:serviceaccount:").unwrap_or_default();
                    // 403 is also what is allowed and cannot be done now.
                    it["annotations"]["authorization.k8s.io/decision"] == json!("forbid")
                        && !account.is_empty()
                        && !account.starts_with("kube-system:")
                });
                let words =
                    |it: &Value| format!("{} {} {}", it["user"]["username"], it["verb"], it["requestURI"]);
                events.iter().map(words).collect()
            }
        }
    }
}

/// Kubernetes' own programs. Dropping it kills them.
pub(super) struct Kubernetes {
    kubeconfig: String,
    audit: PathBuf,
    /// How many lines of the audit log were taken.
    read: Mutex<usize>,
    processes: Vec<(&'static str, Process)>,
}

impl Kubernetes {
    async fn start(
        programs: &Path,
        address: Ipv4Addr,
        certificates: &Certificates,
        folder: &Path,
        lines: &mpsc::Sender<Line>,
    ) -> Result<Kubernetes, Box<dyn Error>> {
        std::fs::create_dir_all(folder)?;
        let url = format!("https://{address}:{PORT}");
        let kubeconfig = kubeconfig(&url, Some(&certificates.bundle), TOKEN);
        let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\n\
            rules: [{level: Metadata}]\n";
        let accounts = KeyPair::generate()?;
        for (name, text) in [
            ("ca.crt", certificates.bundle.as_str()),
            ("api.crt", &certificates.chain),
            ("api.key", &certificates.key),
            ("accounts.key", &accounts.serialize_pem()),
            ("accounts.pub", &accounts.public_key_pem()),
            ("users.csv", &format!("{TOKEN},administrator,administrator,system:masters\n")),
            ("audit.yaml", policy),
            ("kubeconfig", &kubeconfig),
        ] {
            std::fs::write(folder.join(name), text)?;
        }
        let advertised = format!("--advertise-address={address}");
        let api = [
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            "--secure-port=6443",
            &advertised,
            "--cert-dir=.",
            "--tls-cert-file=api.crt",
            "--tls-private-key-file=api.key",
            "--token-auth-file=users.csv",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--service-account-key-file=accounts.pub",
            "--service-account-signing-key-file=accounts.key",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--audit-policy-file=audit.yaml",
            "--audit-log-path=audit.log",
        ];
        let controllers = [
            "--kubeconfig=kubeconfig",
            "--cert-dir=.",
            "--service-account-private-key-file=accounts.key",
            "--root-ca-file=ca.crt",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            // The node says nothing of itself, which one that is well does every few seconds.
            "--controllers=*,-node-lifecycle-controller",
        ];
        let mut processes = Vec::new();
        for (name, arguments) in [
            ("etcd", ["--data-dir=etcd", "--unsafe-no-fsync", "--log-level=error"].as_slice()),
            ("kube-apiserver", &api),
            ("kube-controller-manager", &controllers),
        ] {
            let program = programs.join(name).display().to_string();
            let spec = ProcessSpec {
                name: name.to_owned(),
                argv: std::iter::once(program).chain(arguments.iter().map(|&it| it.to_owned())).collect(),
                directory: Some(folder.to_owned()),
                ..ProcessSpec::default()
            };
            processes.push((name, Process::spawn(None, &spec, lines).await?));
        }
        let audit = folder.join("audit.log");
        Ok(Kubernetes { kubeconfig, audit, read: Mutex::default(), processes })
    }

    /// Waits until the API server serves and controllers have begun.
    async fn ready(&self, client: &Client) -> Result<(), Box<dyn Error>> {
        for path in ["/readyz", "/api/v1/namespaces/default/serviceaccounts/default"] {
            while client.request_text(Request::get(path).body(Vec::new())?).await.is_err() {
                for (name, process) in &self.processes {
                    if let Ok(exit) = tokio::time::timeout(Duration::ZERO, process.wait()).await {
                        return Err(format!("{name} has ended: {exit}").into());
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// The requests that were answered, as the audit log has them.
    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.audit).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// The API server's certificates.
struct Certificates {
    /// The root.
    bundle: String,
    /// Its own, with the root.
    chain: String,
    key: String,
}

impl Certificates {
    fn make(address: Ipv4Addr) -> Result<Certificates, Box<dyn Error>> {
        let root_key = KeyPair::generate()?;
        let mut root = CertificateParams::new(Vec::<String>::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "kubernetes");
        let bundle = root.self_signed(&root_key)?.pem();
        let issuer = Issuer::new(root, root_key);
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let mut names: Vec<String> = names.map(str::to_owned).to_vec();
        names.extend([address.to_string(), "10.96.0.1".to_owned()]);
        let key = KeyPair::generate()?;
        let chain = CertificateParams::new(names)?.signed_by(&key, &issuer)?.pem() + &bundle;
        Ok(Certificates { bundle, chain, key: key.serialize_pem() })
    }
}

/// Those of the API server, which no controller makes.
fn own_endpoints(address: Ipv4Addr) -> Value {
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "kubernetes", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": PORT, "protocol": "TCP" }] })
}
