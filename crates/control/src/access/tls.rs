//! The side of a TLS server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leno_tls::{
    Identity, Parameters, PeerCertificates, ServerContext, ServerSettings, Source, StaplePolicy, TicketKeys,
    Trust, TrustBundle, ValidationRules, Version,
};
use leno_xds::server::listen::{Handshake, Shaken, Stream};
use tokio_rustls::TlsAcceptor;

use super::made::{Made, read};

/// The files of a TLS server; when they change, new connections get what is in them.
#[derive(Clone, Debug, Default)]
pub struct Secure {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The roots that certificates of clients must come from; without them none is asked for.
    pub roots: Option<PathBuf>,
    /// Whether only TLS 1.3 is spoken; otherwise 1.2 too.
    pub only_1_3: bool,
    /// The suites of TLS 1.2 by their names in OpenSSL; empty for all.
    pub suites: Vec<String>,
}

/// A server that reads its files.
#[derive(Debug)]
pub(super) struct Server(Made<ServerContext>);

impl Server {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which.
    pub(super) fn read(secure: Secure, protocols: &'static [&'static str]) -> Result<Server, String> {
        let paths = [&secure.certificate, &secure.key].into_iter().chain(&secure.roots);
        let paths = paths.cloned().collect();
        Made::new(paths, move || secure.context(protocols)).map(Server)
    }
}

impl Secure {
    fn context(&self, protocols: &[&str]) -> Result<ServerContext, String> {
        let source = |path: &PathBuf| {
            Ok::<_, String>(Source { bytes: read(path)?, place: path.display().to_string() })
        };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let identity =
            Identity::load(&source(&self.certificate)?, &source(&self.key)?, None, None, &provider)
                .map_err(|error| error.to_string())?;
        let trust = match &self.roots {
            None => Trust::Nobody,
            Some(path) => {
                let bundle = TrustBundle::parse(&read(path)?);
                Trust::Bundle(Arc::new(bundle.map_err(|error| format!("{}: {error}", path.display()))?))
            }
        };
        server_context(identity, trust, parameters(self.only_1_3, &self.suites)?, protocols)
    }
}

/// Which TLS is spoken.
///
/// # Errors
/// A suite that is not known.
pub(crate) fn parameters(only_1_3: bool, suites: &[String]) -> Result<Parameters, String> {
    let mut parameters = Parameters::default();
    if only_1_3 {
        parameters.minimum = Version::Tls13;
    }
    if !suites.is_empty() {
        parameters.set_suites(suites)?;
    }
    Ok(parameters)
}

/// What proxies speak.
pub(crate) const XDS: &[&str] = &["h2"];

/// What API servers speak with webhooks.
pub(crate) const WEBHOOKS: &[&str] = &["h2", "http/1.1"];

/// What a server needs that shows this certificate and speaks these protocols, and asks clients for
/// one if it trusts anybody.
///
/// # Errors
/// What does not fit together.
pub(crate) fn server_context(
    identity: Identity,
    trust: Trust,
    parameters: Parameters,
    protocols: &[&str],
) -> Result<ServerContext, String> {
    let settings = ServerSettings {
        parameters,
        alpn: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
        identities: vec![Arc::new(identity)],
        rules: Arc::new(ValidationRules { trust, ..ValidationRules::default() }),
        // Who has none may show a token.
        require_client_certificate: false,
        require_name: false,
        full_scan: false,
        staple_policy: StaplePolicy::default(),
        // Connections last, and a certificate is verified for each.
        tickets: TicketKeys::None,
        stateful: false,
        session_timeout: Duration::ZERO,
        prefer_client_suites: false,
        key_log: None,
    };
    settings.build()
}

/// Begins a connection; with it come the identities in the client's certificate.
pub(crate) fn shake(context: &ServerContext, stream: Box<dyn Stream>) -> Shaken {
    let config = Arc::clone(&context.config);
    Box::pin(async move {
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = PeerCertificates::new(shown.to_vec());
        let own = shown.as_ref().and_then(PeerCertificates::own);
        let identities = own.map(|own| own.uris().map(str::to_owned).collect()).unwrap_or_default();
        Ok((Box::new(stream) as Box<dyn Stream>, identities))
    })
}

impl Handshake for Server {
    fn shake(&self, stream: Box<dyn Stream>) -> Shaken {
        shake(&self.0.current(), stream)
    }
}
