//! The agent of a pod, as far as it gives its proxy the mesh's certificates (SDS).

use std::error::Error;

use bytes::Bytes;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use leno_base::Name;
use leno_xds::server::listen::{Listen, Socket};
use leno_xds::{Resource, TypeUrl};
use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::keys::Keys;
use crate::support::ControlPlane;

/// An agent; dropping it ends it.
pub(crate) struct Agent {
    _secrets: ControlPlane,
    _end: watch::Sender<bool>,
}

impl Agent {
    /// Serves the certificate of an identity and the mesh's root under the names of Istio's.
    pub(crate) fn start(listener: TcpListener, identity: &str, keys: &Keys) -> Result<Agent, Box<dyn Error>> {
        let own = keys.workload(identity)?;
        let own = json!({
            "name": "default",
            "tls_certificate": {
                "certificate_chain": {"inline_string": own.chain},
                "private_key": {"inline_string": own.key},
            },
        });
        let root = json!({
            "name": "ROOTCA",
            "validation_context": {"trusted_ca": {"inline_string": keys.mesh_root()}},
        });
        let (secrets, service) = ControlPlane::start();
        secrets.set(TypeUrl::Secret, vec![secret("default", &own)?, secret("ROOTCA", &root)?]);
        let (end, ended) = watch::channel(false);
        tokio::spawn(Listen::new(service).run(Socket::Tcp(listener), ended));
        Ok(Agent { _secrets: secrets, _end: end })
    }
}

fn secret(name: &str, value: &serde_json::Value) -> Result<Resource, String> {
    let secret: Secret =
        leno_api::decode_text(&value.to_string(), name).map_err(|errors| errors.to_string())?;
    Ok(Resource::hashed(Name::new(name), Bytes::from(secret.encode_to_vec())))
}
