//! Certificates of a run (ECDSA P-256, made anew each time) and the TLS configurations for them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore};

/// Writes `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key` into `folder`.
pub(crate) fn make(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "bench CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), ca.pem())?;
    for name in ["server", "client"] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        let id = format!("spiffe://cluster.local/ns/bench/sa/{name}");
        params.subject_alt_names.push(SanType::URI(id.try_into()?));
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?;
        fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// A client of TLS 1.3 that trusts the CA in `folder`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientOptions {
    /// Presents the client certificate.
    pub(crate) certificate: bool,
    /// Offers this protocol by ALPN.
    pub(crate) alpn: &'static str,
    /// Resumes sessions; without, every connection makes a full handshake.
    pub(crate) resume: bool,
}

/// The client's configuration.
pub(crate) fn client(folder: &Path, options: ClientOptions) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).context("ca.pem")?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = if options.certificate {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(folder.join("client.pem"))?.collect();
        builder.with_client_auth_cert(chain?, PrivateKeyDer::from_pem_file(folder.join("client.key"))?)?
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![options.alpn.as_bytes().to_vec()];
    if !options.resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// A session with the proxy.
pub(crate) fn session(config: &Arc<ClientConfig>) -> Result<Connection> {
    let name = ServerName::try_from("localhost")?;
    Ok(ClientConnection::new(Arc::clone(config), name)?.into())
}
