//! Contexts, made of their settings and of the secrets that these refer to.
//!
//! In two steps: `prepare` makes a context or says why not, `adopt` puts it where handshakes find
//! it. So a secret that does not fit one of its users can be refused before any has it.

use std::sync::Arc;

use leno_base::Name;
use leno_tls::{
    Certificate, ClientSettings, Identity, ServerContext, ServerSettings, TicketKeys, ValidationRules,
};
use rustls::{ClientConfig, KeyLog};

use super::validation::check_rules;
use super::{Piece, Validation};
use crate::tls::secrets::{Secret, SecretRef, Secrets};
use crate::tls::{DownstreamTls, Shown, Slot, UpstreamTls};

/// A context and what it was made of.
pub(crate) struct Prepared<T> {
    context: Arc<T>,
    shown: Shown,
}

/// Both sides' TLS, as the store sees it.
pub(crate) trait Fill {
    /// What handshakes are made from.
    type Context;

    /// Makes what handshakes need of the secrets that are there; `None`: one is missing.
    ///
    /// # Errors
    /// What does not fit together.
    fn prepare(&self, secrets: &dyn Secrets) -> Result<Option<Prepared<Self::Context>>, String>;

    /// New handshakes use this from now on.
    fn adopt(&self, prepared: Prepared<Self::Context>);

    /// The secrets that are referred to.
    fn awaited(&self) -> Vec<&SecretRef>;

    /// Both steps. While a secret is missing, connections are refused.
    ///
    /// # Errors
    /// What does not fit together; handshakes go on with what was there.
    fn fill(&self, secrets: &dyn Secrets) -> Result<(), String> {
        if let Some(prepared) = self.prepare(secrets)? {
            self.adopt(prepared);
        }
        Ok(())
    }
}

impl Piece<Arc<Identity>> {
    fn resolve(&self, secrets: &dyn Secrets) -> Result<Option<Arc<Identity>>, String> {
        match self {
            Piece::Here(identity) => Ok(Some(Arc::clone(identity))),
            Piece::Awaited(wanted) => match secrets.find(&wanted.key) {
                None => Ok(None),
                Some(Secret::Certificate(identity)) => Ok(Some(identity)),
                Some(_) => Err(format!("secret '{}' is not a TLS certificate", wanted.key.name)),
            },
        }
    }
}

impl Validation {
    fn resolve(&self, secrets: &dyn Secrets) -> Result<Option<Arc<ValidationRules>>, String> {
        let Some(wanted) = &self.awaited else { return Ok(Some(Arc::new(self.rules.clone()))) };
        let merged = match secrets.find(&wanted.key) {
            None => return Ok(None),
            Some(Secret::Validation(rules)) => self.rules.merged(&rules),
            Some(_) => return Err(format!("secret '{}' is not a validation context", wanted.key.name)),
        };
        check_rules(&merged)?;
        Ok(Some(Arc::new(merged)))
    }
}

impl Piece<TicketKeys> {
    fn resolve(&self, secrets: &dyn Secrets) -> Result<Option<TicketKeys>, String> {
        match self {
            Piece::Here(keys) => Ok(Some(keys.clone())),
            Piece::Awaited(wanted) => match secrets.find(&wanted.key) {
                None => Ok(None),
                Some(Secret::TicketKeys(keys)) => Ok(Some(keys)),
                Some(_) => Err(format!("secret '{}' is not session ticket keys", wanted.key.name)),
            },
        }
    }
}

impl<T> Piece<T> {
    fn awaited(&self) -> Option<&SecretRef> {
        match self {
            Piece::Here(_) => None,
            Piece::Awaited(wanted) => Some(wanted),
        }
    }
}

impl Fill for DownstreamTls {
    type Context = ServerContext;

    fn prepare(&self, secrets: &dyn Secrets) -> Result<Option<Prepared<ServerContext>>, String> {
        let settings = &self.settings;
        let mut identities = Vec::with_capacity(settings.certificates.len());
        let mut complete = true;
        for certificate in &settings.certificates {
            match certificate.resolve(secrets)? {
                Some(identity) => identities.push(identity),
                None => complete = false,
            }
        }
        // All are looked at even so: a secret of the wrong kind is refused whatever is missing.
        let (rules, tickets) = (settings.validation.resolve(secrets)?, settings.tickets.resolve(secrets)?);
        let (true, Some(rules), Some(tickets)) = (complete, rules, tickets) else { return Ok(None) };
        let server = ServerSettings {
            parameters: settings.parameters.clone(),
            alpn: settings.alpn.clone(),
            identities: identities.clone(),
            rules: Arc::clone(&rules),
            require_client_certificate: settings.require_client_certificate,
            require_name: settings.require_sni,
            full_scan: settings.full_scan,
            staple_policy: settings.staple_policy,
            tickets,
            stateful: settings.stateful,
            session_timeout: settings.session_timeout,
            prefer_client_suites: settings.prefer_client_ciphers,
            key_log: settings.key_log.clone().map(|log| log as Arc<dyn KeyLog>),
        };
        Ok(Some(Prepared { context: Arc::new(server.build()?), shown: Shown { identities, rules } }))
    }

    fn adopt(&self, prepared: Prepared<ServerContext>) {
        self.context.set(Some(prepared.context));
        self.shown.set(Some(Arc::new(prepared.shown)));
    }

    fn awaited(&self) -> Vec<&SecretRef> {
        let settings = &self.settings;
        let certificates = settings.certificates.iter().filter_map(Piece::awaited);
        certificates.chain(&settings.validation.awaited).chain(settings.tickets.awaited()).collect()
    }
}

impl DownstreamTls {
    /// Our certificates, for /certs.
    pub(crate) fn identities(&self) -> Vec<Arc<Identity>> {
        identities(&self.shown)
    }

    /// The CA certificates, for /certs.
    pub(crate) fn trusted(&self) -> Vec<Arc<Certificate>> {
        trusted(&self.shown)
    }
}

impl Fill for UpstreamTls {
    type Context = ClientConfig;

    fn prepare(&self, secrets: &dyn Secrets) -> Result<Option<Prepared<ClientConfig>>, String> {
        let settings = &self.settings;
        let certificate = settings.certificate.as_ref().map(|piece| piece.resolve(secrets)).transpose()?;
        let Some(rules) = settings.validation.resolve(secrets)? else { return Ok(None) };
        let identity = match certificate {
            None => None,
            Some(None) => return Ok(None),
            Some(identity) => identity,
        };
        let client = ClientSettings {
            parameters: settings.parameters.clone(),
            alpn: settings.alpn.clone(),
            identity: identity.clone(),
            rules: Arc::clone(&rules),
            match_server_name: settings.match_server_name,
            enforce_rsa_key_usage: settings.enforce_rsa_key_usage,
            max_session_keys: settings.max_session_keys,
            key_log: settings.key_log.clone().map(|log| log as Arc<dyn KeyLog>),
        };
        let identities = identity.into_iter().collect();
        Ok(Some(Prepared { context: client.build()?, shown: Shown { identities, rules } }))
    }

    fn adopt(&self, prepared: Prepared<ClientConfig>) {
        self.context.set(Some(prepared.context));
        self.shown.set(Some(Arc::new(prepared.shown)));
    }

    fn awaited(&self) -> Vec<&SecretRef> {
        let certificate = self.settings.certificate.iter().filter_map(Piece::awaited);
        certificate.chain(&self.settings.validation.awaited).collect()
    }
}

impl UpstreamTls {
    /// Our certificate, for /certs.
    pub(crate) fn identities(&self) -> Vec<Arc<Identity>> {
        identities(&self.shown)
    }

    /// The CA certificates, for /certs.
    pub(crate) fn trusted(&self) -> Vec<Arc<Certificate>> {
        trusted(&self.shown)
    }
}

/// When the certificates of a context expire, by what stats call them: seconds since the epoch.
pub(crate) trait Expires {
    /// Of each name the first; the names may repeat.
    fn expirations(&self) -> Vec<(Name, i64)>;
}

impl Expires for DownstreamTls {
    fn expirations(&self) -> Vec<(Name, i64)> {
        expirations(&self.shown, &self.settings.names, &self.settings.validation)
    }
}

impl Expires for UpstreamTls {
    fn expirations(&self) -> Vec<(Name, i64)> {
        expirations(&self.shown, self.settings.name.as_slice(), &self.settings.validation)
    }
}

fn expirations(shown: &Slot<Shown>, names: &[Name], validation: &Validation) -> Vec<(Name, i64)> {
    let Some(shown) = shown.current() else { return Vec::new() };
    let own = names.iter().zip(&shown.identities);
    let own = own.map(|(name, identity)| (name.clone(), identity.certificate().validity().1));
    let trusted = shown.rules.trusted();
    let ca = trusted.iter().map(|certificate| certificate.validity().1).min();
    own.chain(ca.map(|expires| (validation.name.clone(), expires))).collect()
}

fn identities(shown: &Slot<Shown>) -> Vec<Arc<Identity>> {
    shown.current().map(|shown| shown.identities.clone()).unwrap_or_default()
}

fn trusted(shown: &Slot<Shown>) -> Vec<Arc<Certificate>> {
    shown.current().map(|shown| shown.rules.trusted()).unwrap_or_default()
}
