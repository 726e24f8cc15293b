//! The certificate for proxies: SDS on a Unix socket, as Istio's agent serves it, unless somebody else does. On the
//! same socket it is there for other programs ([`workload_api`](crate::workload_api)).
//!
//! `default` is the workload's certificate, `ROOTCA` the roots. Nothing is said before there is a
//! certificate, so that a proxy waits for it instead of being told that there is none.
//! `file-cert:CHAIN~KEY` and `file-root:ROOTS` are what is in these files, as it is now; `file-root:system` is
//! whom the system trusts. With the roots goes what their owner has revoked (`CA_CRL`), if that is mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3::DataSource;
use leno_api::proto::envoy::config::core::v3::data_source::Specifier;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as SecretMessage, TlsCertificate, secret,
};
use leno_base::Name;
use leno_xds::server::grpc::{DiscoveryService, Sender, StreamEvent, StreamId};
use leno_xds::server::listen::{Listen, Options, Socket};
use leno_xds::server::{Event, Resources, Scope, Stream, Subscription};
use leno_xds::{Resource, TypeUrl};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::identity::Secret;
use crate::workload_api::{Identity, Known, WorkloadApi};

/// The folder in which Istio's proxies look for it, below the working directory.
const FOLDER: &str = "./var/run/secrets/workload-spiffe-uds";

/// The name of our socket there.
pub const SOCKET_NAME: &str = "socket";

/// Our socket where somebody else gives the workload's certificate: for files alone.
const FILES: &str = "./var/run/secrets/credential-uds/files-socket";

/// The socket of somebody who gives credentials of gateways.
const CREDENTIALS: &str = "./var/run/secrets/credential-uds/socket";

/// How long somebody else has to answer on a socket.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the proxy gets secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The socket with the workload's certificate.
    pub workload: String,
    /// Our socket, if the other one is somebody else's (SPIRE's agent, say).
    pub files: Option<String>,
    /// Whether somebody gives credentials of gateways.
    pub has_credentials: bool,
}

impl Default for Sources {
    /// Ours alone.
    fn default() -> Self {
        Sources { workload: format!("{FOLDER}/{SOCKET_NAME}"), files: None, has_credentials: false }
    }
}

impl Sources {
    /// Looks who answers below a folder (`.`, as a rule). `name` is the socket's
    /// (`WORKLOAD_IDENTITY_SOCKET_FILE`).
    ///
    /// # Errors
    /// If nobody answers on a socket that is not to be ours.
    pub async fn find(folder: &Path, name: &str) -> Result<Sources, String> {
        let workload = format!("{FOLDER}/{name}");
        let files = answers(&folder.join(&workload)).await.then(|| FILES.to_owned());
        if files.is_none() && name != SOCKET_NAME {
            return Err(format!("WORKLOAD_IDENTITY_SOCKET_FILE={name}: nobody answers on {workload}"));
        }
        Ok(Sources { workload, files, has_credentials: answers(&folder.join(CREDENTIALS)).await })
    }

    /// Our socket.
    pub fn own(&self) -> &str {
        self.files.as_deref().unwrap_or(&self.workload)
    }
}

async fn answers(path: &Path) -> bool {
    matches!(tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await, Ok(Ok(_)))
}

/// The workload's certificate.
pub const CERTIFICATE: &str = "default";

/// The roots.
pub const ROOTS: &str = "ROOTCA";

/// The beginning of names that stand for files with a certificate and its key.
const FILE_CERTIFICATE: &str = "file-cert:";
/// The beginning of names that stand for a file with roots.
const FILE_ROOTS: &str = "file-root:";
/// The one that stands for the system's roots.
const SYSTEM: &str = "system";
/// Where the ConfigMap `istio-ca-crl` is mounted, with what the mesh's authority has revoked.
const CA_CRL: &str = "./var/run/secrets/istio/crl/ca-crl.pem";
/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The most connections at a time; others wait.
const MOST_CONNECTIONS: usize = 1024;

/// Binds the socket, with its folders, for ourselves alone.
///
/// # Errors
/// If that fails, or if a process answers there.
pub fn bind(path: &Path) -> io::Result<Socket> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Socket::unix_private(path)
}

/// Serves until `ended` is true. `aliases` are other names of the mesh's trust domain.
pub async fn serve(
    socket: Socket,
    secrets: watch::Receiver<Option<Secret>>,
    aliases: Vec<String>,
    ended: watch::Receiver<bool>,
) {
    let (events, happened) = mpsc::channel(64);
    let (say, identity) = watch::channel(Err("there is no certificate yet".to_owned()));
    let listen = Listen {
        beside: Some(Arc::new(WorkloadApi(identity))),
        options: Options { most_connections: MOST_CONNECTIONS, ..Options::default() },
        ..Listen::new(DiscoveryService::new(events))
    };
    let known = Loop {
        streams: BTreeMap::new(),
        resources: Resources::default(),
        secret: None,
        revoked: Vec::new(),
        fault: None,
        aliases,
        identity: say,
    };
    // The channel ends with the server and its streams.
    tokio::join!(listen.run(socket, ended), known.run(happened, secrets));
}

/// What proxies have asked for, and what there is.
#[derive(Debug)]
struct Loop {
    streams: BTreeMap<StreamId, (Stream, Sender)>,
    /// What can be given: nothing before there is a certificate.
    resources: Resources,
    /// The certificate.
    secret: Option<Secret>,
    /// What was revoked, in PEM; empty: nothing is known of it.
    revoked: Vec<u8>,
    /// What is wrong with the file of that.
    fault: Option<String>,
    /// Other names of the mesh's trust domain.
    aliases: Vec<String>,
    /// The same for the Workload API.
    identity: watch::Sender<Known>,
}

impl Loop {
    async fn run(
        mut self,
        mut happened: mpsc::Receiver<StreamEvent>,
        mut secrets: watch::Receiver<Option<Secret>>,
    ) {
        let mut is_kept = true;
        let mut looks = tokio::time::interval(LOOK);
        self.read_revoked(Path::new(CA_CRL));
        self.take(secrets.borrow_and_update().as_ref());
        loop {
            tokio::select! {
                event = happened.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                changed = secrets.changed(), if is_kept => match changed {
                    Ok(()) => self.take(secrets.borrow_and_update().as_ref()),
                    // Nobody renews it any more: what there is stays.
                    Err(_) => {
                        is_kept = false;
                        if self.secret.is_none() {
                            let why = "another agent gives the workload's certificate".to_owned();
                            self.say(Err(why));
                        }
                    }
                },
                _ = looks.tick() => {
                    self.look();
                    if self.read_revoked(Path::new(CA_CRL)) {
                        self.put_roots();
                    }
                }
            }
            self.push();
        }
    }

    fn take(&mut self, secret: Option<&Secret>) {
        let Some(secret) = secret else { return };
        self.put(resource(CERTIFICATE, certificate(secret.chain.as_bytes(), secret.key.as_bytes())));
        self.secret = Some(secret.clone());
        self.put_roots();
    }

    /// What is made of the certificate and of what was revoked.
    fn put_roots(&mut self) {
        let Some(secret) = &self.secret else { return };
        let identity = Identity::new(secret, &self.revoked, &self.aliases);
        if let Err(error) = &identity {
            tracing::warn!(error, "the certificate is for proxies only");
        }
        let value = roots(secret.roots.as_bytes(), &self.revoked);
        self.say(identity.map(Arc::new));
        self.put(resource(ROOTS, value));
    }

    fn say(&self, known: Known) {
        // Whether anybody wants to know does not matter.
        drop(self.identity.send_replace(known));
    }

    /// Reads what was revoked; whether that is something else than before. What cannot be read changes nothing,
    /// as a proxy would refuse the roots along with it.
    fn read_revoked(&mut self, path: &Path) -> bool {
        let found = match std::fs::read(path) {
            Ok(bytes) => leno_tls::Revocations::parse(&bytes).map(|_| bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
        let (news, fault) = match found {
            Ok(bytes) if bytes == self.revoked => (false, None),
            Ok(bytes) => {
                tracing::info!(path = %path.display(), bytes = bytes.len(), "what was revoked has changed");
                self.revoked = bytes;
                (true, None)
            }
            Err(error) => (false, Some(error)),
        };
        if let Some(error) = fault.as_ref().filter(|_| fault != self.fault) {
            tracing::error!(path = %path.display(), error, "what was revoked cannot be read; what is known stays");
        }
        self.fault = fault;
        news
    }

    fn put(&mut self, resource: Resource) {
        if self.resources.find(&resource.name).is_none_or(|known| known.version != resource.version) {
            let version = resource.version.clone();
            self.resources.insert(resource);
            self.resources.set_version(version);
        }
    }

    /// Reads the files again that are asked for.
    fn look(&mut self) {
        let names = self.streams.values().filter_map(|(stream, _)| stream.subscription(&TypeUrl::Secret));
        let names: BTreeSet<Name> =
            names.flat_map(Subscription::names).filter(|name| name.starts_with("file-")).cloned().collect();
        for name in names {
            match from_files(&name) {
                Ok(value) => self.put(resource(&name, value)),
                Err(error) if self.resources.find(&name).is_none() => {
                    tracing::warn!(name = &*name, error, "a secret cannot be read");
                }
                // What there is stays: somebody is writing the files.
                Err(error) => tracing::debug!(name = &*name, error, "a secret cannot be read"),
            }
        }
    }

    fn on_event(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Connected(connected) => {
                let stream = Stream::new(connected.mode, Name::new("leno-agent"));
                self.streams.insert(connected.id, (stream, connected.sender));
            }
            StreamEvent::Request { id, request } => {
                let Some((stream, _)) = self.streams.get_mut(&id) else { return };
                for event in stream.on_request(*request) {
                    if let Event::Nack { message, .. } = event {
                        tracing::warn!(message, "a proxy refuses a certificate");
                    }
                }
                self.look();
            }
            StreamEvent::Ready { .. } => {}
            StreamEvent::Closed { id, .. } => drop(self.streams.remove(&id)),
        }
    }

    fn push(&mut self) {
        for (stream, sender) in self.streams.values_mut().filter(|(_, sender)| sender.is_ready()) {
            let wanted = stream.subscription(&TypeUrl::Secret);
            let is_there = |name: &Name| self.secret.is_some() || self.resources.find(name).is_some();
            // What is not there yet must not look as if there were none.
            if !wanted.is_some_and(|wanted| wanted.names().all(is_there)) {
                continue;
            }
            if let Some(response) = stream.push(&TypeUrl::Secret, &self.resources, Scope::All) {
                // It was ready, and nobody else sends.
                let _ = sender.send(response);
            }
        }
    }
}

fn certificate(chain: &[u8], key: &[u8]) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key)),
        ..TlsCertificate::default()
    })
}

fn roots(pem: &[u8], revoked: &[u8]) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(pem)),
        crl: (!revoked.is_empty()).then(|| inline(revoked)),
        ..CertificateValidationContext::default()
    })
}

/// What the files are that a name stands for.
fn from_files(name: &str) -> Result<secret::Type, String> {
    let read = |path: &str| std::fs::read(path).map_err(|error| format!("{path}: {error}"));
    match name.strip_prefix(FILE_ROOTS) {
        Some(SYSTEM) => {
            let path = crate::control_plane::system_roots()?;
            let pem = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            return Ok(roots(&pem, b""));
        }
        Some(path) => return Ok(roots(&read(path)?, b"")),
        None => {}
    }
    let files = name.strip_prefix(FILE_CERTIFICATE).and_then(|files| files.split_once('~'));
    let (chain, key) = files.ok_or("it is neither file-cert:CHAIN~KEY nor file-root:ROOTS")?;
    let (chain, key) = (read(chain)?, read(key)?);
    crate::files::fit(&chain, &key)?;
    Ok(certificate(&chain, &key))
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(Bytes::copy_from_slice(bytes))),
        ..DataSource::default()
    }
}

fn resource(name: &str, value: secret::Type) -> Resource {
    let message = SecretMessage { name: name.to_owned(), r#type: Some(value) };
    Resource::hashed(Name::new(name), Bytes::from(message.encode_to_vec()))
}
