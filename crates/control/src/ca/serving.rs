//! The control plane's own certificate, for the port with TLS, where nobody has given it one.
//!
//! It is signed by the authority, or by a signer of Kubernetes (`ra.rs`), for the names that Istio's agents call
//! istiod by, and made anew when half of its life is over or the authority has changed. Clients may show a
//! certificate of the mesh.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use leno_tls::issue::{Authority, KeyPair, KeyType, certificates_to_pem};
use leno_tls::{AltName, Identity, ServerContext, Source, Trust, TrustBundle};
use leno_xds::server::listen::{Handshake, Shaken, Stream};

use super::{Ca, State, now};
use crate::access::{WEBHOOKS, XDS, parameters, server_context, shake};

/// A server with a certificate of the authority.
pub(crate) struct OwnServer {
    ca: Arc<Ca>,
    protocols: &'static [&'static str],
    /// Whether clients are asked for certificates.
    asks: bool,
    made: Mutex<Option<Made>>,
}

/// A certificate with its key, and those above it, in PEM.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) chain: String,
    pub(super) key: String,
    /// When it is to be made anew, seconds since the epoch.
    pub(super) until: i64,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Shown").field("until", &self.until).finish_non_exhaustive()
    }
}

struct Made {
    /// The version of the authority's state.
    of: u64,
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
        let state = self.ca.state.borrow().clone();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref()
            && made.of == state.version
            && now() < made.until
        {
            return Ok(Arc::clone(&made.context));
        }
        let new = self.make(&state)?;
        let context = Arc::clone(&new.context);
        *made = Some(new);
        Ok(context)
    }

    fn make(&self, state: &State) -> Result<Made, String> {
        let not_ready = || "the certificate authority is not ready".to_owned();
        let (shown, until) = match self.ca.is_external_only() {
            // It is renewed beside us; until then it is shown as long as it is there.
            true => (Shown::clone(state.own.as_ref().ok_or_else(not_ready)?), i64::MAX),
            false => {
                let shown = self.sign(state.authority.as_ref().ok_or_else(not_ready)?)?;
                let until = shown.until;
                (shown, until)
            }
        };
        let source = |text: String| Source { bytes: text.into_bytes(), place: "the CA".to_owned() };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let identity = Identity::load(&source(shown.chain), &source(shown.key), None, None, &provider)
            .map_err(|error| error.to_string())?;
        // They are of what the authority has signed, which is nothing that workloads show if others sign for it.
        let authority = state.authority.as_ref().filter(|_| self.ca.ra.is_none());
        let revocations = authority.map(|authority| authority.revocations());
        let trusted = format!("{}{}", self.ca.workload_roots(), revocations.unwrap_or_default());
        let trust = match self.asks {
            true => Trust::Bundle(Arc::new(TrustBundle::parse(trusted.as_bytes())?)),
            false => Trust::Nobody,
        };
        let (_, expires) = identity.certificate().validity();
        let parameters = parameters(self.ca.settings.only_1_3, &self.ca.settings.suites)?;
        let context = Arc::new(server_context(identity, trust, parameters, self.protocols)?);
        tracing::info!(names = ?self.ca.settings.hosts, expires, "our own certificate is in use");
        Ok(Made { of: state.version, until, context })
    }

    /// Signs one.
    fn sign(&self, authority: &Authority) -> Result<Shown, String> {
        let key = KeyPair::generate(KeyType::P256)?;
        let names: Vec<AltName> = self.ca.settings.hosts.iter().map(|host| name(host)).collect();
        let now = now();
        let ttl = i64::try_from(self.ca.settings.default_ttl.as_secs()).unwrap_or(i64::MAX);
        let leaf = authority.issue(key.public(), &names, self.ca.validity(now, ttl))?;
        let (_, last) = leno_tls::Certificate::parse(&leaf)?.validity();
        let chain = certificates_to_pem(std::iter::once(&leaf).chain(authority.chain()));
        Ok(Shown { chain, key: key.to_pem()?, until: now + (last - now) / 2 })
    }
}

/// The name in a certificate for a host, which may be an address.
pub(super) fn name(host: &str) -> AltName {
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
