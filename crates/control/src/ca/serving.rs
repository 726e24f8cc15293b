//! The control plane's own certificate, for the port with TLS, where nobody has given it one.
//!
//! It is signed by the authority for the names that Istio's agents call istiod by, and made anew when
//! half of its life is over or the authority has changed. Clients may show a certificate of the mesh.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use leno_tls::issue::{Authority, KeyPair, KeyType, certificates_to_pem};
use leno_tls::{AltName, Identity, ServerContext, Source, Trust, TrustBundle};
use leno_xds::server::listen::{Handshake, Shaken, Stream};

use super::{Ca, now};
use crate::access::{WEBHOOKS, XDS, parameters, server_context, shake};

/// A server with a certificate of the authority.
pub(crate) struct OwnServer {
    ca: Arc<Ca>,
    protocols: &'static [&'static str],
    /// Whether clients are asked for certificates.
    asks: bool,
    made: Mutex<Option<Made>>,
}

struct Made {
    of: Arc<Authority>,
    /// When it is to be made anew, seconds since the epoch.
    until: i64,
    context: Arc<ServerContext>,
}

impl fmt::Debug for OwnServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnServer").field(&self.ca.settings.hosts).finish()
    }
}

impl OwnServer {
    pub(crate) fn new(ca: Arc<Ca>) -> OwnServer {
        OwnServer { ca, protocols: XDS, asks: true, made: Mutex::new(None) }
    }

    /// The same for API servers that ask webhooks.
    pub(crate) fn for_webhooks(ca: Arc<Ca>) -> OwnServer {
        OwnServer { ca, protocols: WEBHOOKS, asks: false, made: Mutex::new(None) }
    }

    fn context(&self) -> Result<Arc<ServerContext>, String> {
        let authority = self.ca.authority().ok_or("the certificate authority is not ready")?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref()
            && Arc::ptr_eq(&made.of, &authority)
            && now() < made.until
        {
            return Ok(Arc::clone(&made.context));
        }
        let new = self.make(authority)?;
        let context = Arc::clone(&new.context);
        *made = Some(new);
        Ok(context)
    }

    fn make(&self, authority: Arc<Authority>) -> Result<Made, String> {
        let key = KeyPair::generate(KeyType::P256)?;
        let names: Vec<AltName> = self.ca.settings.hosts.iter().map(|host| name(host)).collect();
        let now = now();
        let ttl = i64::try_from(self.ca.settings.default_ttl.as_secs()).unwrap_or(i64::MAX);
        let leaf = authority.issue(key.public(), &names, self.ca.validity(now, ttl))?;
        let chain = certificates_to_pem(std::iter::once(&leaf).chain(authority.chain()));
        let source = |text: String| Source { bytes: text.into_bytes(), place: "the CA".to_owned() };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let identity = Identity::load(&source(chain), &source(key.to_pem()?), None, None, &provider)
            .map_err(|error| error.to_string())?;
        let trusted = format!("{}{}", authority.roots_pem(), authority.revocations());
        let trust = match self.asks {
            true => Trust::Bundle(Arc::new(TrustBundle::parse(trusted.as_bytes())?)),
            false => Trust::Nobody,
        };
        let (_, last) = identity.certificate().validity();
        let until = now + (last - now) / 2;
        let parameters = parameters(self.ca.settings.only_1_3, &self.ca.settings.suites)?;
        let context = Arc::new(server_context(identity, trust, parameters, self.protocols)?);
        tracing::info!(names = ?self.ca.settings.hosts, expires = last, "our own certificate was made");
        Ok(Made { of: authority, until, context })
    }
}

fn name(host: &str) -> AltName {
    host.parse::<IpAddr>().map_or_else(|_| AltName::Dns(host.to_owned()), AltName::Ip)
}

impl Handshake for OwnServer {
    fn shake(&self, stream: Box<dyn Stream>) -> Shaken {
        match self.context() {
            Ok(context) => shake(&context, stream),
            Err(error) => Box::pin(std::future::ready(Err(io::Error::other(error)))),
        }
    }
}
