//! A cluster with a control plane that serves all its ports, and raw connections to them.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use leno_control::inject::WebhookOptions;
use leno_control::server::{CaSettings, Config, Kubernetes, Server};
use leno_testkit::kube::ApiServer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing here takes long; what does is a bug.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The name of the control plane's certificate.
pub(crate) const ISTIOD: &str = "istiod.istio-system.svc";

/// A cluster, and how a control plane of it is started.
pub(crate) struct Site {
    pub(crate) api: ApiServer,
    pub(crate) config: Config,
    _folder: tempfile::TempDir,
}

/// A running control plane.
#[derive(Clone, Copy)]
pub(crate) struct Pilot {
    pub(crate) plain: SocketAddr,
    pub(crate) secure: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) webhooks: SocketAddr,
}

impl Site {
    /// The authority follows these variables.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Site {
        let api = ApiServer::start().await.expect("a free port");
        for namespace in ["istio-system", "default", "other"] {
            api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig).expect("writable");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(Vec::new());
        (config.grpc_addr, config.http_addr) = (any, any);
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let mut settings = CaSettings::read(find).expect("good variables").expect("an authority");
        settings.address = Some(any);
        settings.hosts = vec![ISTIOD.to_owned(), "127.0.0.1".to_owned()];
        config.access.authority = Some(settings);
        config.kubernetes = Some(Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() });
        config.webhooks = Some(WebhookOptions {
            address: any,
            revision: "default".to_owned(),
            namespace: "istio-system".to_owned(),
            native: Some(false),
            registers: true,
        });
        Site { api, config, _folder: folder }
    }

    /// Starts a control plane, and waits until it is ready.
    pub(crate) async fn pilot(&self) -> Pilot {
        let server = Server::bind(self.config.clone()).await.expect("free ports");
        let pilot = Pilot {
            plain: server.grpc_addr().expect("an address"),
            secure: server.secure_grpc_addr().expect("an address"),
            http: server.http_addr().expect("an address"),
            webhooks: server.webhook_addr().expect("an address"),
        };
        tokio::spawn(server.run(std::future::pending()));
        until("a control plane that is ready", async || {
            page(pilot.http, "/ready", "").await.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
        pilot
    }

    /// The roots as agents find them.
    pub(crate) async fn roots(&self) -> String {
        until("the roots", async || {
            let map = self.api.find("", "configmaps", "default", "istio-ca-root-cert")?;
            map.pointer("/data/root-cert.pem").and_then(Value::as_str).map(str::to_owned)
        })
        .await
    }
}

/// What a test waits for.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
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

/// A page of a port without TLS, with its head; `headers` end with a line's end.
pub(crate) async fn page(address: SocketAddr, path: &str, headers: &str) -> String {
    let host = if headers.to_ascii_lowercase().contains("host:") { "" } else { "Host: x\r\n" };
    let asked = format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n");
    let stream = TcpStream::connect(address).await.expect("it listens");
    exchange(stream, asked.as_bytes()).await
}

/// All that comes back for some bytes, until the other side ends the connection or cuts it.
pub(crate) async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, asked: &[u8]) -> String {
    let exchanging = async {
        // It may hang up before it has read all.
        let _ = stream.write_all(asked).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    };
    tokio::time::timeout(LIMIT, exchanging).await.expect("in time")
}

/// The status of an answer, 0 if there is none.
pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

/// A sample of the page of metrics, 0 if it is not there.
pub(crate) async fn metric(pilot: &Pilot, name: &str) -> f64 {
    let text = page(pilot.http, "/metrics", "").await;
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines.find(|(found, _)| *found == name).map_or(0.0, |(_, value)| value.parse().expect("a number"))
}

/// Waits until something was counted as often, or more often.
pub(crate) async fn counted(pilot: &Pilot, name: &str, least: f64) {
    until(name, async || (metric(pilot, name).await >= least).then_some(())).await;
}

/// A connection over TLS to who has the control plane's name by some roots.
pub(crate) async fn secure(
    address: SocketAddr,
    roots: &str,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.expect("PEM")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(ISTIOD).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// All that this process has logged, from the first call on.
pub(crate) fn log() -> String {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Arc::clone(&log);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
            .with_writer(move || Sink(Arc::clone(&sink)));
        subscriber.init();
        log
    });
    String::from_utf8_lossy(&log.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
