//! How the control plane and the authority are spoken to: TLS by roots in a file, and who we are.
//!
//! What is mounted is read anew for each connection, as it is replaced by whoever mounts it. Of what
//! shows who we are, a certificate that somebody has put there counts first (machines: `PROV_CERT`),
//! then the token of the service account. A token that is no JWT is a join token, which is good once:
//! from then on the certificate speaks that was got by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use leno_tls::Certificate;
use leno_tls::issue::certificates;
use leno_xds::client::grpc::{Connection, over};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use crate::environment::Roots;
use crate::identity::Secret;

/// Files in which systems keep whom they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A server of the control plane, and how we show who we are.
#[derive(Clone, Debug, Default)]
pub struct ControlPlane {
    /// `HOST:PORT`.
    pub address: String,
    /// The name that its certificate must be for; the host of the address unless it is given.
    pub name: Option<String>,
    /// Whom its certificate comes from; absent: it is spoken to in plain text.
    pub roots: Option<Roots>,
    /// The file with our token, if we have one.
    pub token: Option<PathBuf>,
    /// The files with a certificate of ours and its key, if we have one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The certificate that we have been given meanwhile.
    pub held: Option<watch::Receiver<Option<Secret>>>,
    /// Whether it takes join tokens: the authority does. Nobody else is shown one, as it would be used up;
    /// connecting waits for the certificate then.
    pub takes_join_tokens: bool,
    /// The name of our cluster, which istiod wants to know.
    pub cluster: String,
    /// Headers of each call.
    pub headers: BTreeMap<String, String>,
    /// How long connecting may take.
    pub timeout: Duration,
}

/// What shows who we are.
enum Shown {
    Nothing,
    Token(String),
    /// A token that is good once.
    Joins(String),
    /// A certificate and its key, in PEM.
    Certificate(Vec<u8>, Vec<u8>),
}

impl ControlPlane {
    /// Connects. With the channel come the headers that each call needs.
    ///
    /// # Errors
    /// Why it cannot be reached, or believed, or why we have nothing to show.
    pub async fn connect(&self) -> Result<(Channel, HeaderMap), String> {
        let late = |_| format!("{}: no connection within {:?}", self.address, self.timeout);
        tokio::time::timeout(self.timeout, Box::pin(self.reach())).await.map_err(late)?
    }

    async fn reach(&self) -> Result<(Channel, HeaderMap), String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.address);
        let (host, _) = self.address.rsplit_once(':').ok_or_else(|| failed(&"it is not HOST:PORT"))?;
        let shown = self.show().await?;
        let headers = self.headers(&shown)?;
        let stream = TcpStream::connect(&self.address).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let connection = Connection {
            authority: host.to_owned(),
            connect_timeout: self.timeout,
            keepalive: Some((Duration::from_secs(30), Duration::from_secs(10))),
        };
        let Some(roots) = &self.roots else {
            let channel = over(stream, &connection).await.map_err(|error| failed(&error))?;
            return Ok((channel, headers));
        };
        let name = match (&self.name, host) {
            (Some(name), _) => name.as_str(),
            // By a forwarded port.
            (None, "localhost") => "istiod.istio-system.svc",
            (None, host) => host.trim_matches(['[', ']']),
        };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(&error))?;
        let config = client_config(roots, &shown)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let channel = over(stream.map_err(|error| failed(&error))?, &connection).await;
        Ok((channel.map_err(|error| failed(&error))?, headers))
    }

    /// What shows who we are; waits for a certificate if nothing else does.
    async fn show(&self) -> Result<Shown, String> {
        let mut held = self.held.clone();
        loop {
            let seen = held.as_mut().map(|held| drop(held.borrow_and_update()));
            match (self.shown()?, held.as_mut(), seen) {
                (Shown::Joins(_), Some(held), _) if !self.takes_join_tokens => {
                    held.changed().await.map_err(|_| "there will be no certificate".to_owned())?;
                }
                (shown, ..) => return Ok(shown),
            }
        }
    }

    fn shown(&self) -> Result<Shown, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if let Some((chain, key)) = &self.certificate
            && chain.exists()
            && key.exists()
        {
            let pem = read(chain)?;
            // One that has expired shows nothing; the token may.
            if validity(&pem).map_err(|error| format!("{}: {error}", chain.display()))?.1 > now {
                return Ok(Shown::Certificate(pem, read(key)?));
            }
        }
        let token = match self.token.as_deref().filter(|path| path.exists()) {
            None => None,
            Some(path) => {
                let text = String::from_utf8(read(path)?);
                Some(text.map_err(|_| format!("{}: no text", path.display()))?.trim().to_owned())
            }
        };
        if let Some(token) = token.as_deref().filter(|token| is_account_token(token)) {
            return Ok(Shown::Token(token.to_owned()));
        }
        let held = self.held.as_ref().and_then(|held| held.borrow().clone());
        if let Some(secret) = held.filter(|secret| secret.expires > now) {
            return Ok(Shown::Certificate(secret.chain.into_bytes(), secret.key.into_bytes()));
        }
        Ok(token.map_or(Shown::Nothing, Shown::Joins))
    }

    fn headers(&self, shown: &Shown) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        if let Shown::Token(token) | Shown::Joins(token) = shown {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| "there is no token in the token's file".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let cluster = Some(("clusterid", self.cluster.as_str())).filter(|(_, name)| !name.is_empty());
        let given = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in cluster.into_iter().chain(given) {
            let (name, value) = header(name, value)?;
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Whether a token is a JWT, as those of service accounts are, and no join token.
pub(crate) fn is_account_token(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// A header, whose value is in no log: it may show who we are.
///
/// # Errors
/// If it cannot be one.
pub(crate) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let found = HeaderName::try_from(name.to_ascii_lowercase());
    let found = found.map_err(|_| format!("{name} cannot be the name of a header"))?;
    let mut value =
        HeaderValue::try_from(value).map_err(|_| format!("the value of {name} cannot be a header's"))?;
    value.set_sensitive(true);
    Ok((found, value))
}

fn client_config(roots: &Roots, shown: &Shown) -> Result<ClientConfig, String> {
    let path = match roots {
        Roots::File(path) => path.as_path(),
        Roots::System => &system_roots()?,
    };
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut store = RootCertStore::empty();
    for root in certificates(&read(path)?).map_err(|error| at(&error))? {
        match store.add(root) {
            Ok(()) => {}
            // Systems trust some that are strange.
            Err(error) if *roots == Roots::System => tracing::debug!(%error, "a root of the system"),
            Err(error) => return Err(at(&error)),
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store);
    let mut config = match shown {
        Shown::Nothing | Shown::Token(_) | Shown::Joins(_) => builder.with_no_client_auth(),
        Shown::Certificate(chain, key) => {
            let failed = |error: &dyn std::fmt::Display| format!("our certificate: {error}");
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| failed(&error))?;
            let chain = certificates(chain).map_err(|error| failed(&error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The file with whom the system trusts: that of `SSL_CERT_FILE`, or where systems keep it.
///
/// # Errors
/// If there is none.
pub(crate) fn system_roots() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        return Ok(named.into());
    }
    let known = SYSTEM_ROOTS.map(PathBuf::from).into_iter().find(|path| path.exists());
    known.ok_or_else(|| format!("the system's roots are in none of {SYSTEM_ROOTS:?}"))
}

/// The first and the last second of a certificate.
pub(crate) fn validity(chain: &[u8]) -> Result<(i64, i64), String> {
    let all = certificates(chain)?;
    let leaf = Certificate::parse(all.first().ok_or("there is no certificate in it")?)?;
    Ok(leaf.validity())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
