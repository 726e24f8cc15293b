//! The certificate of a workload: renewed, kept, and given to proxies, and to other programs (`workload_api.rs`).

mod workload_api;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use leno_agent::authority::{Authority, Signed};
use leno_agent::files::{self, Mounted};
use leno_agent::identity::{Renewal, Secret, Settings, keep};
use leno_agent::sds;
use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::service::discovery::v3::DiscoveryRequest;
use leno_api::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_base::Rng;
use leno_tls::AltName;
use leno_tls::issue::{
    self, CertificateRequest, KeyPair, KeyType, Material, SpiffeId, Validity, certificates,
    certificates_to_pem, root,
};
use leno_xds::client::grpc::{Connection, Target, connect};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::watch;

const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/reviews";

const LIMIT: Duration = Duration::from_secs(60);

fn root_of(now: i64) -> issue::Authority {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let validity = Validity { not_before: now - 600, not_after: now + 400 * 86_400 };
    let pem = certificates_to_pem([&root(&key, "test", validity).expect("a root")]).into_bytes();
    let key = key.to_pem().expect("a key").into_bytes();
    let material = Material { certificate: pem.clone(), key, roots: pem, ..Material::default() };
    issue::Authority::load(&material, now).expect("an authority")
}

/// An authority that can be away.
struct Local<N> {
    signer: issue::Authority,
    asked: Arc<AtomicUsize>,
    away: Arc<AtomicBool>,
    /// What becomes of its answers.
    spoil: fn(&mut Signed),
    now: N,
}

impl<N: Fn() -> i64 + Send + Sync> Authority for Local<N> {
    async fn sign(&self, request: String, seconds: i64) -> Result<Signed, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Err("away".to_owned());
        }
        let request = CertificateRequest::parse(request.as_bytes()).map_err(|error| error.to_string())?;
        let now = (self.now)();
        let validity = Validity { not_before: now - 120, not_after: now + seconds };
        let names = [AltName::Uri(IDENTITY.to_owned()), AltName::Dns("reviews".to_owned())];
        let leaf = self.signer.issue(request.key(), &names, validity)?;
        let mut signed = Signed { chain: certificates_to_pem([&leaf]), roots: self.signer.roots_pem() };
        (self.spoil)(&mut signed);
        Ok(signed)
    }
}

fn settings() -> Settings {
    Settings::new(SpiffeId::parse(IDENTITY).expect("an identity"))
}

#[test]
fn certificates_are_renewed_at_half_of_their_life() {
    let life = Duration::from_secs(24 * 3600);
    let mut waits = BTreeSet::new();
    for seed in 0..100 {
        let mut renewal = Renewal::new(&settings(), Rng::new(seed));
        waits.extend((0..10).map(|_| renewal.on_signed(life).as_secs()));
    }
    let (least, most) = (waits.first().expect("some"), waits.last().expect("some"));
    assert!(*least >= 43_200 - 864 && *most <= 43_200 + 864, "{least} {most}");
    assert!(waits.len() > 500, "not all at the same moment: {}", waits.len());
}

#[test]
fn who_is_away_is_asked_less_and_less() {
    let mut renewal = Renewal::new(&settings(), Rng::new(7));
    let waits: Vec<Duration> = (0..1000).map(|_| renewal.on_failed()).collect();
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)));
    let total: Duration = waits.iter().sum();
    assert!(total > Duration::from_secs(1000), "{total:?}");
    assert!(waits.iter().take(5).sum::<Duration>() < Duration::from_secs(30), "soon at first");
    // As soon as it has answered once, it is asked soon again when it fails.
    assert_eq!(renewal.on_signed(Duration::ZERO), settings().retry.0);
    assert!(renewal.on_failed() <= Duration::from_secs(1));
}

struct Running {
    secrets: watch::Receiver<Option<Secret>>,
    asked: Arc<AtomicUsize>,
    away: Arc<AtomicBool>,
}

impl Running {
    /// With certificates that live for a second or two.
    fn start(spoil: fn(&mut Signed)) -> Running {
        let (asked, away) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let signer = root_of(wall());
        let authority =
            Local { signer, asked: Arc::clone(&asked), away: Arc::clone(&away), spoil, now: wall };
        let (say, secrets) = watch::channel(None);
        let settings = Settings {
            ttl: Duration::from_secs(2),
            retry: (Duration::from_millis(1), Duration::from_millis(20)),
            ..settings()
        };
        tokio::spawn(keep(authority, settings, say, Rng::new(7), wall));
        Running { secrets, asked, away }
    }

    async fn next(&mut self) -> Secret {
        tokio::time::timeout(LIMIT, self.secrets.changed()).await.expect("in time").expect("it goes on");
        self.secrets.borrow_and_update().clone().expect("a certificate")
    }

    async fn until_asked(&self, times: usize) {
        let asking = async {
            while self.asked.load(Ordering::Relaxed) < times {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, asking).await.expect("it is asked in time");
    }
}

#[tokio::test]
async fn the_last_one_is_kept_while_nobody_signs() {
    let mut running = Running::start(|_| {});
    let (first, second) = (running.next().await, running.next().await);
    assert!(second.expires > first.expires && second.key != first.key);
    running.away.store(true, Ordering::Relaxed);
    running.until_asked(running.asked.load(Ordering::Relaxed) + 20).await;
    let kept = running.secrets.borrow_and_update().clone().expect("a certificate");
    running.until_asked(running.asked.load(Ordering::Relaxed) + 20).await;
    assert_eq!(running.secrets.borrow().as_ref(), Some(&kept));
    running.away.store(false, Ordering::Relaxed);
    assert!(running.next().await.key != kept.key);
}

#[tokio::test]
async fn what_is_of_no_use_is_not_taken() {
    let spoils: [fn(&mut Signed); 5] = [
        |signed| signed.chain.clear(),
        |signed| signed.chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        |signed| signed.roots.clear(),
        // A certificate for another key.
        |signed| signed.chain = signed.roots.clone(),
        |signed| signed.roots = "no roots".to_owned(),
    ];
    for spoil in spoils {
        let running = Running::start(spoil);
        running.until_asked(5).await;
        assert!(running.secrets.borrow().is_none());
    }
}

/// A certificate of now.
fn made(signer: &issue::Authority) -> Secret {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let now = wall();
    let names = [AltName::Uri(IDENTITY.to_owned()), AltName::Dns("reviews".to_owned())];
    let validity = Validity { not_before: now - 120, not_after: now + 3600 };
    let leaf = signer.issue(key.public(), &names, validity).expect("signed");
    Secret {
        chain: certificates_to_pem([&leaf]),
        key: key.to_pem().expect("a key"),
        roots: signer.roots_pem(),
        expires: now + 3600,
    }
}

fn wall() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("before the end of time")
}

fn serve(folder: &Path) -> (watch::Sender<Option<Secret>>, watch::Sender<bool>) {
    let socket = sds::bind(&folder.join("uds/socket")).expect("it can be bound");
    let (say, secrets) = watch::channel(None);
    let (end, ended) = watch::channel(false);
    tokio::spawn(sds::serve(socket, secrets, vec!["other.example".to_owned()], ended));
    (say, end)
}

#[tokio::test]
async fn proxies_wait_and_are_told_of_what_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (say, _end) = serve(folder.path());
    let connection = Connection { authority: "sds-grpc".to_owned(), connect_timeout: LIMIT, keepalive: None };
    let target = Target::Unix(folder.path().join("uds/socket"));
    let channel = connect(&target, &connection).await.expect("it listens");
    let (requests, outgoing) = tokio::sync::mpsc::channel(4);
    let request = |nonce: &str, version: &str| DiscoveryRequest {
        node: Some(Node { id: "proxy".to_owned(), ..Node::default() }),
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
        resource_names: vec!["default".to_owned(), "ROOTCA".to_owned()],
        response_nonce: nonce.to_owned(),
        version_info: version.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(request("", "")).await.expect("open");
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.stream_aggregated_resources(outgoing).await.expect("a stream").into_inner();
    let silent = tokio::time::timeout(Duration::from_millis(200), responses.message()).await;
    assert!(silent.is_err(), "nothing is said before there is something");
    let signer = root_of(wall());
    for expected in [2, 1] {
        // The second has the same roots, which are not sent again.
        say.send_replace(Some(made(&signer)));
        let response = tokio::time::timeout(LIMIT, responses.message()).await.expect("in time");
        let response = response.expect("no error").expect("not the end");
        assert_eq!(response.resources.len(), expected);
        requests.send(request(&response.nonce, &response.version_info)).await.expect("open");
    }
}

/// Files are secrets too, as they are now.
#[tokio::test]
async fn secrets_in_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_say, _end) = serve(folder.path());
    let signer = root_of(wall());
    let mounted = Mounted::in_folder(folder.path());
    let write = |secret: &Secret| {
        std::fs::write(&mounted.key, &secret.key).expect("writable");
        std::fs::write(&mounted.roots, &secret.roots).expect("writable");
        // The last one: what does not fit yet is not taken.
        std::fs::write(&mounted.chain, &secret.chain).expect("writable");
    };
    let first = made(&signer);
    write(&first);
    let connection = Connection { authority: "sds-grpc".to_owned(), connect_timeout: LIMIT, keepalive: None };
    let target = Target::Unix(folder.path().join("uds/socket"));
    let channel = connect(&target, &connection).await.expect("it listens");
    let (requests, outgoing) = tokio::sync::mpsc::channel(4);
    let own = format!("file-cert:{}~{}", mounted.chain.display(), mounted.key.display());
    let roots = format!("file-root:{}", mounted.roots.display());
    let request = |nonce: &str, version: &str| DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
        resource_names: vec![own.clone(), roots.clone()],
        response_nonce: nonce.to_owned(),
        version_info: version.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(request("", "")).await.expect("open");
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.stream_aggregated_resources(outgoing).await.expect("a stream").into_inner();
    let mut next = async |count: usize| {
        let response = tokio::time::timeout(LIMIT, responses.message()).await.expect("in time");
        let response = response.expect("no error").expect("not the end");
        assert_eq!(response.resources.len(), count);
        response
    };
    let response = next(2).await;
    requests.send(request(&response.nonce, &response.version_info)).await.expect("open");
    write(&made(&signer));
    // The roots are the same.
    next(1).await;
}

/// Certificates that somebody else renews, and that we write for others.
#[tokio::test]
async fn certificates_in_files() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mounted = Mounted::in_folder(from.path());
    let (say, mut secrets) = watch::channel(None);
    tokio::spawn(files::follow(mounted.clone(), say, wall));
    tokio::spawn(files::write(to.path().join("certs"), secrets.clone()));
    let signer = root_of(wall());
    for secret in [made(&signer), made(&signer)] {
        // Half a certificate is none.
        std::fs::write(&mounted.chain, "-----BEGIN CERTIFICATE-----").expect("writable");
        std::fs::write(&mounted.key, &secret.key).expect("writable");
        std::fs::write(&mounted.roots, &secret.roots).expect("writable");
        std::fs::write(&mounted.chain, &secret.chain).expect("writable");
        let is_it = |known: &Option<Secret>| known.as_ref().is_some_and(|known| known.chain == secret.chain);
        let told = tokio::time::timeout(LIMIT, secrets.wait_for(is_it)).await.expect("in time");
        assert_eq!(told.expect("it goes on").as_ref().map(|told| &told.key), Some(&secret.key));
        let written = Mounted::in_folder(&to.path().join("certs"));
        let writing = async {
            while std::fs::read_to_string(&written.roots).ok().as_ref() != Some(&secret.roots)
                || std::fs::read_to_string(&written.chain).ok().as_ref() != Some(&secret.chain)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, writing).await.expect("it is written in time");
        assert!(written.exist());
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The serial number of what a server shows, to one who trusts these roots.
async fn shown(port: u16, roots: &str) -> Result<Vec<u8>, String> {
    let mut store = RootCertStore::empty();
    for root in certificates(roots.as_bytes())? {
        store.add(root).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from("reviews").expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).ok_or("nothing")?;
    Ok(shown.to_vec())
}

async fn until_shown(port: u16, secret: &Secret) {
    let wanted = certificates(secret.chain.as_bytes()).expect("PEM").swap_remove(0).to_vec();
    let looking = async {
        while shown(port, &secret.roots).await.as_ref() != Ok(&wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.expect("it is shown in time");
}

/// The real Envoy takes its certificate from the socket, and each new one.
#[tokio::test]
async fn envoy_is_served() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (say, _end) = serve(folder.path());
    let bootstrap = format!(
        r#"
node: {{id: proxy, cluster: proxy}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: tls
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs: [{{name: default, sds_config: &sds {{
              resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: {{
                api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true,
                grpc_services: [{{envoy_grpc: {{cluster_name: sds-grpc}}}}]}}}}}}]
            validation_context_sds_secret_config: {{name: ROOTCA, sds_config: *sds}}
      filters:
      - name: echo
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}
  clusters:
  - name: sds-grpc
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: sds-grpc
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {}}}}}}}}}]}}]
"#,
        folder.path().join("uds/socket").display()
    );
    let (config, admin) = (folder.path().join("envoy.yaml"), folder.path().join("admin"));
    std::fs::write(&config, bootstrap).expect("writable");
    let child = Command::new(envoy)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warn", "-c"])
        .arg(&config)
        .arg("--admin-address-path")
        .arg(&admin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Killed(child.expect("it starts"));
    let log = child.0.stderr.take().expect("it is piped");
    std::thread::spawn(move || {
        BufReader::new(log).lines().map_while(Result::ok).for_each(|line| eprintln!("{line}"));
    });
    let signer = root_of(wall());
    let first = made(&signer);
    say.send_replace(Some(first.clone()));
    let port = listening(&admin).await;
    until_shown(port, &first).await;
    // Of another root, with both trusted as long as it lasts.
    for signer in [&signer, &root_of(wall())] {
        let next = made(signer);
        say.send_replace(Some(next.clone()));
        until_shown(port, &next).await;
    }
}

/// The port of Envoy's listener.
async fn listening(admin: &Path) -> u16 {
    let looking = async {
        loop {
            if let Ok(address) = std::fs::read_to_string(admin)
                && let Some(port) = port_of(address.trim())
            {
                return port;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.expect("it listens in time")
}

fn port_of(admin: &str) -> Option<u16> {
    let mut stream = std::net::TcpStream::connect(admin).ok()?;
    let asked = b"GET /listeners HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut stream, asked).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    // `tls::127.0.0.1:40000`
    text.lines().find_map(|line| line.strip_prefix("tls::")?.rsplit(':').next()?.trim().parse().ok())
}
