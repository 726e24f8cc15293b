//! The certificate for proxies: SDS on a Unix socket, as Istio's agent serves it.
//!
//! `default` is the workload's certificate, `ROOTCA` the roots. Nothing is said before there is a
//! certificate, so that a proxy waits for it instead of being told that there is none.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3::DataSource;
use leno_api::proto::envoy::config::core::v3::data_source::Specifier;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as SecretMessage, TlsCertificate, secret,
};
use leno_base::Name;
use leno_xds::server::grpc::{DiscoveryService, Sender, StreamEvent, StreamId};
use leno_xds::server::listen::{Listen, Socket};
use leno_xds::server::{Event, Resources, Scope, Stream};
use leno_xds::{Resource, TypeUrl};
use prost::Message;
use tokio::sync::{mpsc, watch};

use crate::identity::Secret;

/// Where Istio's proxies look for it, below the working directory.
pub const SOCKET: &str = "./var/run/secrets/workload-spiffe-uds/socket";

/// The workload's certificate.
pub const CERTIFICATE: &str = "default";

/// The roots.
pub const ROOTS: &str = "ROOTCA";

/// Binds the socket, with its folders, for ourselves alone.
///
/// # Errors
/// If that fails, or if a process answers there.
pub fn bind(path: &Path) -> io::Result<Socket> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let socket = Socket::unix(path.to_owned())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Serves until `ended` is true.
pub async fn serve(socket: Socket, secrets: watch::Receiver<Option<Secret>>, ended: watch::Receiver<bool>) {
    let (events, happened) = mpsc::channel(64);
    let server = Listen::new(DiscoveryService::new(events)).run(socket, ended);
    // The channel ends with the server and its streams.
    tokio::join!(server, Loop::default().run(happened, secrets));
}

/// What proxies have asked for, and what there is.
#[derive(Debug, Default)]
struct Loop {
    streams: BTreeMap<StreamId, (Stream, Sender)>,
    /// Absent before there is a certificate.
    resources: Option<Resources>,
}

impl Loop {
    async fn run(
        mut self,
        mut happened: mpsc::Receiver<StreamEvent>,
        mut secrets: watch::Receiver<Option<Secret>>,
    ) {
        let mut is_kept = true;
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
                    Err(_) => is_kept = false,
                },
            }
            self.push();
        }
    }

    fn take(&mut self, secret: Option<&Secret>) {
        let Some(secret) = secret else { return };
        let mut resources: Resources =
            [resource(CERTIFICATE, certificate(secret)), resource(ROOTS, roots(secret))]
                .into_iter()
                .collect();
        resources.set_version(Name::from(secret.expires.to_string()));
        self.resources = Some(resources);
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
            }
            StreamEvent::Ready { .. } => {}
            StreamEvent::Closed { id, .. } => drop(self.streams.remove(&id)),
        }
    }

    fn push(&mut self) {
        let Some(resources) = &self.resources else { return };
        for (stream, sender) in self.streams.values_mut().filter(|(_, sender)| sender.is_ready()) {
            if let Some(response) = stream.push(&TypeUrl::Secret, resources, Scope::All) {
                // It was ready, and nobody else sends.
                let _ = sender.send(response);
            }
        }
    }
}

fn certificate(secret: &Secret) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(&secret.chain)),
        private_key: Some(inline(&secret.key)),
        ..TlsCertificate::default()
    })
}

fn roots(secret: &Secret) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(&secret.roots)),
        ..CertificateValidationContext::default()
    })
}

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(Bytes::copy_from_slice(text.as_bytes()))),
        ..DataSource::default()
    }
}

fn resource(name: &str, value: secret::Type) -> Resource {
    let message = SecretMessage { name: name.to_owned(), r#type: Some(value) };
    Resource::hashed(Name::new(name), Bytes::from(message.encode_to_vec()))
}
