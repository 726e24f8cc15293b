//! What the agent beside a sidecar does for it: gives it its certificate and the mesh's root, by SDS.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use leno_base::Name;
use leno_xds::server::grpc::{DiscoveryService, Sender, StreamEvent, StreamId};
use leno_xds::server::listen::{Listen, Socket};
use leno_xds::server::{Resources, Scope, Stream};
use leno_xds::{Resource, TypeUrl};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::wire::tls;

/// Serves the secrets `default` and `ROOTCA`, made anew in `folder`, for as long as this process lives.
pub(super) fn start(folder: &Path) -> Result<SocketAddr> {
    tls::make(folder)?;
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let own = json!({"name": "default", "tls_certificate": {
        "certificate_chain": {"inline_string": read("client.pem")?},
        "private_key": {"inline_string": read("client.key")?},
    }});
    let root =
        json!({"name": "ROOTCA", "validation_context": {"trusted_ca": {"inline_string": read("ca.pem")?}}});
    let mut secrets: Resources = [secret("default", &own)?, secret("ROOTCA", &root)?].into_iter().collect();
    secrets.set_version(Name::from("1"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || runtime.block_on(serve(listener, secrets)));
    Ok(address)
}

fn secret(name: &str, value: &Value) -> Result<Resource> {
    let secret: Secret =
        leno_api::decode_text(&value.to_string(), name).map_err(|errors| anyhow!("{errors}"))?;
    Ok(Resource::hashed(Name::from(name), Bytes::from(secret.encode_to_vec())))
}

async fn serve(listener: TcpListener, secrets: Resources) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let (events, mut incoming) = mpsc::channel(8);
    // Kept, so that nothing ends before the process does.
    let (_end, ended) = watch::channel(false);
    tokio::spawn(Listen::new(DiscoveryService::new(events)).run(Socket::Tcp(listener), ended));
    let mut streams: BTreeMap<StreamId, (Stream, Sender)> = BTreeMap::new();
    while let Some(event) = incoming.recv().await {
        match event {
            StreamEvent::Connected(connected) => {
                let stream = Stream::new(connected.mode, Name::from("agent"));
                streams.insert(connected.id, (stream, connected.sender));
            }
            StreamEvent::Request { id, request } => {
                if let Some((stream, _)) = streams.get_mut(&id) {
                    stream.on_request(*request);
                }
            }
            StreamEvent::Ready { .. } => {}
            StreamEvent::Closed { id, .. } => drop(streams.remove(&id)),
        }
        for (stream, sender) in streams.values_mut().filter(|(_, sender)| sender.is_ready()) {
            if let Some(response) = stream.push(&TypeUrl::Secret, &secrets, Scope::All) {
                // One that has gone meanwhile needs no answer.
                let _ = sender.send(response);
            }
        }
    }
}
