//! The agent of a pod, as far as it gives its proxy certificates (SDS): the mesh's, and those of files.

use std::error::Error;
use std::fs;
use std::path::Path;

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
    /// Serves the certificate of an identity and the mesh's root, and all files of a folder, under the
    /// names of Istio's.
    pub(crate) fn start(
        listener: TcpListener,
        identity: &str,
        keys: &Keys,
        folder: &Path,
    ) -> Result<Agent, Box<dyn Error>> {
        let own = keys.workload(identity)?;
        let mut all = vec![certificate("default", &own.chain, &own.key)?, root("ROOTCA", &keys.mesh_root())?];
        for entry in fs::read_dir(folder)? {
            let chain = entry?.path();
            if chain.extension().is_none_or(|extension| extension != "pem") {
                continue;
            }
            let text = fs::read_to_string(&chain)?;
            all.push(root(&format!("file-root:{}", chain.display()), &text)?);
            let key = chain.with_extension("key");
            if key.exists() {
                let name = format!("file-cert:{}~{}", chain.display(), key.display());
                all.push(certificate(&name, &text, &fs::read_to_string(&key)?)?);
            }
        }
        let (secrets, service) = ControlPlane::start();
        secrets.set(TypeUrl::Secret, all);
        let (end, ended) = watch::channel(false);
        tokio::spawn(Listen::new(service).run(Socket::Tcp(listener), ended));
        Ok(Agent { _secrets: secrets, _end: end })
    }
}

fn certificate(name: &str, chain: &str, key: &str) -> Result<Resource, String> {
    let certificate = json!({
        "certificate_chain": {"inline_string": chain},
        "private_key": {"inline_string": key},
    });
    secret(name, &json!({"name": name, "tls_certificate": certificate}))
}

fn root(name: &str, text: &str) -> Result<Resource, String> {
    secret(name, &json!({"name": name, "validation_context": {"trusted_ca": {"inline_string": text}}}))
}

fn secret(name: &str, value: &serde_json::Value) -> Result<Resource, String> {
    let secret: Secret =
        leno_api::decode_text(&value.to_string(), name).map_err(|errors| errors.to_string())?;
    Ok(Resource::hashed(Name::new(name), Bytes::from(secret.encode_to_vec())))
}
