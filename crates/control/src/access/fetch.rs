//! Small documents of others, over HTTP: the keys of issuers of tokens, and where these are.
//!
//! `https` needs a certificate by the roots of the system, as for istiod: those of `SSL_CERT_FILE`, or of
//! the file where the system keeps them. Redirects are not followed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use leno_tls::issue::certificates;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::discovery::Blocked;
use super::made::{Made, read};
use crate::model::request_authentication::Place;

/// Files in which systems keep whom they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long one document may take, from connecting to its end.
const PATIENCE: Duration = Duration::from_secs(4);

/// What is larger is no set of keys.
const MOST: usize = 1 << 20;

/// Who fetches documents.
pub(super) struct Fetcher {
    tls: Made<Option<Arc<ClientConfig>>>,
    /// Where nothing is fetched.
    blocked: Blocked,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fetcher").field(&self.tls).finish()
    }
}

impl Fetcher {
    /// With roots of this file, or else of the system.
    ///
    /// # Errors
    /// If the file that was named cannot be read.
    pub(super) fn new(roots: Option<PathBuf>) -> Result<Fetcher, String> {
        let is_named = roots.is_some();
        let found = || SYSTEM_ROOTS.into_iter().map(PathBuf::from).find(|path| path.exists());
        let path = roots.or_else(found);
        let make = move || match &path {
            Some(path) => config(&read(path)?, is_named).map(|it| Some(Arc::new(it))),
            None => Ok(None),
        };
        // The paths are looked at when something is fetched, which is rare.
        Ok(Fetcher { tls: Made::new(Vec::new(), make)?, blocked: Blocked::default() })
    }

    /// One that fetches nothing from these addresses.
    pub(super) fn without(self, blocked: Blocked) -> Fetcher {
        Fetcher { blocked, ..self }
    }

    /// A document.
    ///
    /// # Errors
    /// Why it cannot be had, with its address.
    pub(super) async fn get(&self, uri: &str) -> Result<Bytes, String> {
        let fetched = tokio::time::timeout(PATIENCE, self.fetch(uri)).await;
        fetched.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(|why| format!("{uri}: {why}"))
    }

    async fn fetch(&self, uri: &str) -> Result<Bytes, String> {
        let place = Place::parse(uri).ok_or("it is no address of http or https")?;
        let stream = self.connect(&place).await?;
        if !place.secure {
            return exchange(stream, uri).await;
        }
        let config = self.tls.current();
        let config = config.as_ref().clone().ok_or("there are no roots of the system")?;
        let name = ServerName::try_from(place.host).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        exchange(stream.map_err(|error| error.to_string())?, uri).await
    }

    /// Connects to the first of a place's addresses that answers. Those are looked at that are connected to,
    /// whatever a name meant before.
    async fn connect(&self, place: &Place) -> Result<TcpStream, String> {
        let found = tokio::net::lookup_host((place.host.as_str(), place.port)).await;
        let mut why = "it has no address".to_owned();
        for address in found.map_err(|error| error.to_string())? {
            if self.blocked.has(address.ip()) {
                why = format!("{} may not be asked", address.ip());
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }
}

/// TLS by these roots. Of the system's those that cannot be used are passed over.
fn config(pem: &[u8], all: bool) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates(pem)? {
        match roots.add(root) {
            Err(error) if all => return Err(error.to_string()),
            Err(_) | Ok(()) => {}
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Asks over a connection of its own.
async fn exchange<S>(stream: S, uri: &str) -> Result<Bytes, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let words = |error: &dyn fmt::Display| error.to_string();
    let target: http::Uri = uri.parse().map_err(|error: http::uri::InvalidUri| words(&error))?;
    let authority = target.authority().map(|authority| authority.as_str()).unwrap_or_default();
    // What stands before an `@` is for nobody but us.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned();
    let path = target.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let request = http::Request::get(path).header(HOST, host).header(ACCEPT, "application/json");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| words(&error))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| words(&error))?;
    // It ends with the sender, or with its peer.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| words(&error))?;
    if answer.status() != http::StatusCode::OK {
        return Err(format!("status {}", answer.status().as_u16()));
    }
    let body = Limited::new(answer.into_body(), MOST).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
}
