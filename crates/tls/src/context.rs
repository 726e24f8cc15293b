//! Contexts: everything that a handshake needs, made into rustls' configurations.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, KeyLog, NoKeyLog, ServerConfig};

use crate::identity::{Identity, OneIdentity, Selector};
use crate::ocsp::StaplePolicy;
use crate::params::Parameters;
use crate::session::{AutomaticTickets, ClientSessions, NoTickets, ServerSessions, TicketKeys, Tickets};
use crate::verify::{PeerVerifier, Trust, ValidationRules, sha256};

/// A server's side (DownstreamTlsContext).
#[derive(Debug)]
pub struct ServerSettings {
    /// Versions, suites, curves.
    pub parameters: Parameters,
    /// `alpn_protocols` in order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// Our certificates.
    pub identities: Vec<Arc<Identity>>,
    /// What clients must show.
    pub rules: Arc<ValidationRules>,
    /// `require_client_certificate`.
    pub require_client_certificate: bool,
    /// `require_sni`.
    pub require_name: bool,
    /// `full_scan_certs_on_sni_mismatch`.
    pub full_scan: bool,
    /// `ocsp_staple_policy`.
    pub staple_policy: StaplePolicy,
    /// Session tickets.
    pub tickets: TicketKeys,
    /// Sessions are kept for clients without tickets
    /// (not `disable_stateful_session_resumption`).
    pub stateful: bool,
    /// `session_timeout`, 2 h by default.
    pub session_timeout: Duration,
    /// `prefer_client_ciphers`.
    pub prefer_client_suites: bool,
    /// `key_log`.
    pub key_log: Option<Arc<dyn KeyLog>>,
}

/// What a server's handshakes are made from. The two differ only in ALPN.
#[derive(Clone, Debug)]
pub struct ServerContext {
    /// With ALPN.
    pub config: Arc<ServerConfig>,
    /// Without: for clients that offer protocols of which we have none. rustls would refuse
    /// them, Envoy does not.
    pub without_alpn: Arc<ServerConfig>,
}

/// A client's side (UpstreamTlsContext).
#[derive(Debug)]
pub struct ClientSettings {
    /// Versions, suites, curves.
    pub parameters: Parameters,
    /// `alpn_protocols`.
    pub alpn: Vec<Vec<u8>>,
    /// The certificate to show.
    pub identity: Option<Arc<Identity>>,
    /// What servers must show.
    pub rules: Arc<ValidationRules>,
    /// `auto_sni_san_validation`: the server's certificate must be for the name it is called by.
    pub match_server_name: bool,
    /// `enforce_rsa_key_usage`, true by default.
    pub enforce_rsa_key_usage: bool,
    /// `max_session_keys`, 1 by default; 0: no resumption.
    pub max_session_keys: u32,
    /// `key_log`.
    pub key_log: Option<Arc<dyn KeyLog>>,
}

impl ServerSettings {
    /// Makes the configurations.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn build(&self) -> Result<ServerContext, String> {
        if self.identities.is_empty() {
            return Err("No TLS certificates found for server context".to_owned());
        }
        self.parameters.check()?;
        let provider = self.parameters.provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.parameters.versions())
            .map_err(|error| error.to_string())?;
        let verifier =
            PeerVerifier::of_clients(Arc::clone(&self.rules), self.require_client_certificate, &provider);
        let verifier = verifier.map(|verifier| verifier.limited(self.parameters.schemes()));
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
            None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
        };
        let identities = match self.parameters.schemes() {
            None => self.identities.clone(),
            Some(schemes) => {
                self.identities.iter().map(|identity| Arc::new(identity.limited(schemes))).collect()
            }
        };
        let selector = Selector::new(&identities, self.full_scan, self.require_name, self.staple_policy)?;
        let mut config = builder.with_cert_resolver(Arc::new(selector));
        config.alpn_protocols.clone_from(&self.alpn);
        config.ignore_client_order = !self.prefer_client_suites;
        config.key_log = self.key_log.clone().unwrap_or_else(|| Arc::new(NoKeyLog));
        // A resumed session would not say that its client was not trusted: there are none then.
        let resumes = !self.rules.accept_untrusted;
        config.session_storage = if self.stateful && resumes {
            Arc::new(ServerSessions::new(self.session_timeout))
        } else {
            Arc::new(NoServerSessionStorage {})
        };
        config.ticketer = match &self.tickets {
            TicketKeys::Automatic if resumes => Arc::new(AutomaticTickets {
                inner: rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?,
                lifetime: self.session_timeout,
            }),
            TicketKeys::Given(keys) if resumes => Arc::new(
                Tickets::new(keys, &self.digest(), self.session_timeout)
                    .ok_or("Failed to initialize session ticket keys")?,
            ),
            _ => {
                // TLS 1.3 resumes by tickets only, in Envoy.
                config.send_tls13_tickets = 0;
                Arc::new(NoTickets)
            }
        };
        let mut without_alpn = config.clone();
        without_alpn.alpn_protocols.clear();
        Ok(ServerContext { config: Arc::new(config), without_alpn: Arc::new(without_alpn) })
    }

    /// Says of two contexts whether one may resume sessions of the other: only if they show and
    /// ask for the same.
    fn digest(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut add = |bytes: &[u8]| {
            all.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
            all.extend_from_slice(bytes);
        };
        for identity in &self.identities {
            // Names rather than the certificate, so that sessions outlive its rotation.
            for name in identity.certificate().alt_names() {
                add(format!("{name:?}").as_bytes());
            }
            add(&identity.certificate().issuer);
        }
        let rules = &self.rules;
        let bundles: Vec<(&str, &crate::trust::TrustBundle)> = match &rules.trust {
            Trust::Nobody => Vec::new(),
            Trust::Bundle(bundle) => vec![("", bundle)],
            Trust::Spiffe(domains) => domains.iter().map(|(name, bundle)| (&**name, bundle)).collect(),
        };
        for (domain, bundle) in bundles {
            add(domain.as_bytes());
            bundle.certificates().iter().for_each(|certificate| add(certificate.der()));
        }
        let flags =
            (self.require_client_certificate, self.require_name, rules.allow_expired, rules.max_depth);
        let pins = (&rules.hashes, &rules.spki_hashes, rules.accept_untrusted);
        add(format!("{flags:?} {:?} {pins:?} {:?}", rules.names, self.alpn).as_bytes());
        sha256(&all).as_ref().to_vec()
    }
}

impl ClientSettings {
    /// Makes the configuration.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn build(&self) -> Result<Arc<ClientConfig>, String> {
        self.parameters.check()?;
        let provider = self.parameters.provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.parameters.versions())
            .map_err(|error| error.to_string())?;
        let verifier = PeerVerifier::of_servers(
            Arc::clone(&self.rules),
            self.match_server_name,
            self.enforce_rsa_key_usage,
            &provider,
        )
        .limited(self.parameters.schemes());
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            Some(identity) => {
                let identity = match self.parameters.schemes() {
                    None => Arc::clone(identity),
                    Some(schemes) => Arc::new(identity.limited(schemes)),
                };
                builder.with_client_cert_resolver(Arc::new(OneIdentity(identity)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.key_log = self.key_log.clone().unwrap_or_else(|| Arc::new(NoKeyLog));
        config.resumption = match self.max_session_keys {
            0 => Resumption::disabled(),
            limit => Resumption::store(Arc::new(ClientSessions::new(limit))),
        };
        Ok(Arc::new(config))
    }
}
