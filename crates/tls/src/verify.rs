//! Verification of peers, as Envoy's contexts describe it: the chain, then names, then pins.
//!
//! [`PeerVerifier`] is both of rustls' verifiers. What rustls cannot carry (the words of a
//! refusal, which rule refused, the peer's signature scheme) is left for the driver of the
//! handshake in [`take_findings`]: handshakes run synchronously on their thread.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use crate::certificate::{AltName, Certificate, KeyKind, key_usage};
use crate::identity::Identity;
use crate::names::{NameMatcher, names_host};
use crate::params::sort_schemes;
use crate::path::{self, PathRules, Problem, Refused};
use crate::trust::{Revocations, TrustBundle};

/// What a peer must show (envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext).
#[derive(Clone, Debug, Default)]
pub struct ValidationRules {
    /// Whom to trust; `Trust::Nobody`: chains are not checked.
    pub trust: Trust,
    /// CRLs apart from those of the trust bundle.
    pub revocations: Arc<Revocations>,
    /// `only_verify_leaf_cert_crl`.
    pub leaf_crl_only: bool,
    /// `allow_expired_certificate`.
    pub allow_expired: bool,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`: chains, names and pins are checked, but a
    /// failure refuses nobody.
    pub accept_untrusted: bool,
    /// `max_verify_depth`, 100 by default.
    pub max_depth: Option<u32>,
    /// `match_typed_subject_alt_names`: one of them must match.
    pub names: Vec<NameMatcher>,
    /// `verify_certificate_hash`: SHA-256 of the certificate, one of them.
    pub hashes: Vec<[u8; 32]>,
    /// `verify_certificate_spki`: SHA-256 of its SubjectPublicKeyInfo, one of them or of `hashes`.
    pub spki_hashes: Vec<[u8; 32]>,
    /// `suppress_client_ca_list`.
    pub suppress_ca_list: bool,
}

/// Whom to trust.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Chains are not checked.
    #[default]
    Nobody,
    /// `trusted_ca`.
    Bundle(Arc<TrustBundle>),
    /// envoy.tls.cert_validator.spiffe: the bundle of the trust domain that the peer's SPIFFE ID
    /// names.
    Spiffe(Arc<Vec<(String, TrustBundle)>>),
}

/// Which rule refused a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Its chain (`fail_verify_error`).
    Chain,
    /// Its names (`fail_verify_san`).
    Names,
    /// Its hash or key (`fail_verify_cert_hash`).
    Pins,
    /// The use that its key may be put to.
    KeyUsage,
}

/// A refused peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// By which rule.
    pub rule: Rule,
    /// Envoy's words.
    pub text: String,
}

/// What verification found out in a handshake.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Why the peer was refused, or would have been (`accept_untrusted`).
    pub failure: Option<Failure>,
    /// The scheme of the peer's signature.
    pub scheme: Option<SignatureScheme>,
    /// The certificate that a server chose to show.
    pub local: Option<Arc<Identity>>,
    /// The name that the client called for (SNI).
    pub server_name: Option<Box<str>>,
    /// What a refused peer has shown.
    pub refused: Option<Vec<CertificateDer<'static>>>,
}

impl Findings {
    /// Takes over what later ones know.
    pub fn add(&mut self, later: Findings) {
        let Findings { failure, scheme, local, server_name, refused } = later;
        self.failure = failure.or(self.failure.take());
        self.scheme = scheme.or(self.scheme);
        self.local = local.or(self.local.take());
        self.server_name = server_name.or(self.server_name.take());
        self.refused = refused.or(self.refused.take());
    }
}

thread_local! {
    static FINDINGS: RefCell<Findings> = RefCell::default();
    static EXPECTED: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

/// Until the next call, servers that are verified on this thread must show a certificate for this
/// host, a DNS name or an address, beside what their rules ask for. Rules that trust nobody ask for
/// nothing, and then it is not looked at.
pub fn expect_name(name: Option<Arc<str>>) {
    EXPECTED.set(name);
}

/// What verification has found out on this thread since the last call.
pub fn take_findings() -> Findings {
    FINDINGS.with_borrow_mut(std::mem::take)
}

pub(crate) fn record_local(identity: &Arc<Identity>, server_name: Option<&str>) {
    FINDINGS.with_borrow_mut(|findings| {
        findings.local = Some(Arc::clone(identity));
        findings.server_name = server_name.map(Into::into);
    });
}

/// Verifies peers.
#[derive(Debug)]
pub struct PeerVerifier {
    rules: Arc<ValidationRules>,
    algorithms: WebPkiSupportedAlgorithms,
    /// A client must show a certificate (`require_client_certificate`, or rules that need one).
    mandatory: bool,
    /// `auto_sni_san_validation`: the server's certificate must be for the name it is called by.
    match_server_name: bool,
    /// `enforce_rsa_key_usage`.
    enforce_key_usage: bool,
    hints: Vec<DistinguishedName>,
    /// The only signatures that peers may make, if not all are (`signature_algorithms`).
    schemes: Option<Arc<[SignatureScheme]>>,
}

impl ValidationRules {
    /// These rules with others merged into them, as protobuf merges messages
    /// (`combined_validation_context`): lists are joined, other settings replaced if the other
    /// ones set them.
    #[must_use]
    pub fn merged(&self, other: &ValidationRules) -> ValidationRules {
        let join = |own: &[[u8; 32]], theirs: &[[u8; 32]]| [own, theirs].concat();
        ValidationRules {
            trust: match &other.trust {
                Trust::Nobody => self.trust.clone(),
                trust => trust.clone(),
            },
            revocations: Arc::clone(if other.revocations.is_empty() {
                &self.revocations
            } else {
                &other.revocations
            }),
            leaf_crl_only: self.leaf_crl_only | other.leaf_crl_only,
            allow_expired: self.allow_expired | other.allow_expired,
            accept_untrusted: self.accept_untrusted | other.accept_untrusted,
            max_depth: other.max_depth.or(self.max_depth),
            names: self.names.iter().chain(&other.names).cloned().collect(),
            hashes: join(&self.hashes, &other.hashes),
            spki_hashes: join(&self.spki_hashes, &other.spki_hashes),
            suppress_ca_list: self.suppress_ca_list | other.suppress_ca_list,
        }
    }

    /// Whether a certificate is asked for at all.
    fn wants_certificate(&self) -> bool {
        !matches!(self.trust, Trust::Nobody) || self.has_checks()
    }

    /// All CA certificates.
    pub fn trusted(&self) -> Vec<Arc<Certificate>> {
        match &self.trust {
            Trust::Nobody => Vec::new(),
            Trust::Bundle(bundle) => bundle.certificates().to_vec(),
            Trust::Spiffe(domains) => {
                domains.iter().flat_map(|(_, bundle)| bundle.certificates().to_vec()).collect()
            }
        }
    }

    /// Whether there are CRLs apart from those of the trust bundle.
    pub fn has_revocations(&self) -> bool {
        !self.revocations.is_empty()
    }

    fn has_checks(&self) -> bool {
        !self.names.is_empty() || !self.hashes.is_empty() || !self.spki_hashes.is_empty()
    }
}

impl PeerVerifier {
    /// A verifier of clients; `None`: no certificate is asked for.
    pub fn of_clients(
        rules: Arc<ValidationRules>,
        required: bool,
        provider: &CryptoProvider,
    ) -> Option<Self> {
        if !required && !rules.wants_certificate() {
            return None;
        }
        let hints = match &rules.trust {
            Trust::Bundle(bundle) if !rules.suppress_ca_list => {
                let subjects = bundle.anchors.iter().map(|anchor| anchor.subject.clone());
                subjects.map(DistinguishedName::from).collect()
            }
            _ => Vec::new(),
        };
        let mandatory = required || rules.has_checks();
        let algorithms = provider.signature_verification_algorithms;
        Some(Self {
            rules,
            algorithms,
            mandatory,
            match_server_name: false,
            enforce_key_usage: false,
            hints,
            schemes: None,
        })
    }

    /// A verifier of servers.
    pub fn of_servers(
        rules: Arc<ValidationRules>,
        match_server_name: bool,
        enforce_key_usage: bool,
        provider: &CryptoProvider,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        let hints = Vec::new();
        Self {
            rules,
            algorithms,
            mandatory: true,
            match_server_name,
            enforce_key_usage,
            hints,
            schemes: None,
        }
    }

    /// The same, for peers that may sign by these schemes only; `None`: by any.
    pub(crate) fn limited(self, schemes: Option<&Arc<[SignatureScheme]>>) -> Self {
        Self { schemes: schemes.cloned(), ..self }
    }

    /// Whether a peer may sign by this scheme.
    fn allows(&self, scheme: SignatureScheme) -> Result<(), Error> {
        if self.schemes.as_ref().is_none_or(|schemes| schemes.contains(&scheme)) {
            return Ok(());
        }
        Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify(
        &self,
        peer: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        server: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let outcome = self.check(peer, others, server, now);
        let Err((failure, error)) = outcome else { return Ok(()) };
        let shown = std::iter::once(peer).chain(others).map(|der| der.clone().into_owned()).collect();
        FINDINGS.with_borrow_mut(|findings| {
            findings.failure = Some(failure);
            findings.refused = Some(shown);
        });
        if self.rules.accept_untrusted { Ok(()) } else { Err(Error::InvalidCertificate(error)) }
    }

    fn check(
        &self,
        peer: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        server: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), (Failure, CertificateError)> {
        let malformed = |error: String| {
            let text = format!("verify cert failed: {error}");
            (Failure { rule: Rule::Chain, text }, CertificateError::BadEncoding)
        };
        let peer = Certificate::parse(peer).map_err(malformed)?;
        self.check_chain(&peer, others, server.is_some(), now)?;
        let refused = |rule, text: &'static str| {
            let mut words = format!("verify cert failed: {text}");
            if rule == Rule::Names {
                let names: Vec<String> = peer.alt_names.iter().filter_map(AltName::text).collect();
                words.push_str(&format!(", certificate SANs are [{}]", names.join(", ")));
            }
            (Failure { rule, text: words }, CertificateError::Other(OtherError(Arc::new(Refused(text)))))
        };
        let rules = &self.rules;
        let signs = peer.key_usage.is_none_or(|usage| usage & key_usage::DIGITAL_SIGNATURE != 0);
        if self.enforce_key_usage && matches!(peer.key_kind(), KeyKind::Rsa(_)) && !signs {
            return Err(refused(Rule::KeyUsage, "KEY_USAGE_BIT_INCORRECT"));
        }
        let expected = server.and_then(|_| EXPECTED.with_borrow(Clone::clone));
        if let Some(name) = expected.filter(|_| !matches!(rules.trust, Trust::Nobody)) {
            let is_for = match name.parse() {
                Ok(address) => peer.alt_names.contains(&AltName::Ip(address)),
                Err(_) => names_host(&peer, &name),
            };
            if !is_for {
                let names: Vec<String> = peer.alt_names.iter().filter_map(AltName::text).collect();
                let text = format!(
                    "verify cert failed: verify SAN list, expected SANs: [{name}], certificate SANs: [{}]",
                    names.join(", ")
                );
                let error = CertificateError::Other(OtherError(Arc::new(Refused("verify SAN list"))));
                return Err((Failure { rule: Rule::Names, text }, error));
            }
        }
        match server.filter(|_| self.match_server_name) {
            // It takes the place of the configured names.
            Some(ServerName::DnsName(name)) if names_host(&peer, name.as_ref()) => {}
            Some(ServerName::DnsName(_)) => return Err(refused(Rule::Names, "SAN matcher")),
            _ if !rules.names.is_empty() && !rules.names.iter().any(|matcher| matcher.matches(&peer)) => {
                return Err(refused(Rule::Names, "SAN matcher"));
            }
            _ => {}
        }
        if !rules.hashes.is_empty() || !rules.spki_hashes.is_empty() {
            let pinned = |pins: &[[u8; 32]], bytes: &[u8]| {
                !pins.is_empty() && pins.iter().any(|pin| pin[..] == *sha256(bytes).as_ref())
            };
            if !pinned(&rules.hashes, peer.der()) && !pinned(&rules.spki_hashes, &peer.spki) {
                return Err(refused(Rule::Pins, "cert hash and spki"));
            }
        }
        Ok(())
    }

    fn check_chain(
        &self,
        peer: &Certificate,
        others: &[CertificateDer<'_>],
        server: bool,
        now: UnixTime,
    ) -> Result<(), (Failure, CertificateError)> {
        let chain = |text: String, error| (Failure { rule: Rule::Chain, text }, error);
        let rules = &self.rules;
        let bundle = match &rules.trust {
            Trust::Nobody => return Ok(()),
            Trust::Bundle(bundle) => bundle,
            Trust::Spiffe(domains) => spiffe_bundle(peer, domains.as_slice()).map_err(|text| {
                chain(format!("verify cert failed: {text}"), CertificateError::UnknownIssuer)
            })?,
        };
        // Certificates that cannot be parsed cannot be part of a path either.
        let others: Vec<Certificate> =
            others.iter().filter_map(|other| Certificate::parse(other).ok()).collect();
        let path_rules = PathRules {
            algorithms: &self.algorithms,
            now: (!rules.allow_expired).then(|| i64::try_from(now.as_secs()).unwrap_or(i64::MAX)),
            // 0 limits nothing in Envoy.
            max_depth: rules.max_depth.filter(|depth| *depth > 0).map_or(100, |depth| depth as usize),
            server,
            revocations: &rules.revocations,
            leaf_crl_only: rules.leaf_crl_only,
        };
        path::find(peer, &others, bundle, &path_rules).map_err(|error| {
            let text = format!(
                "verify cert failed: X509_verify_cert: certificate verification error at depth {}: {}",
                error.depth,
                Problem::text(error.problem)
            );
            chain(text, error.problem.alert())
        })
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.algorithms.supported_schemes();
        sort_schemes(&mut schemes);
        if let Some(allowed) = &self.schemes {
            schemes = allowed.iter().copied().filter(|scheme| schemes.contains(scheme)).collect();
        }
        schemes
    }

    fn tls12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        FINDINGS.with_borrow_mut(|findings| findings.scheme = Some(signed.scheme));
        self.allows(signed.scheme)?;
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        FINDINGS.with_borrow_mut(|findings| findings.scheme = Some(signed.scheme));
        self.allows(signed.scheme)?;
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }
}

/// The bundle of the trust domain that a certificate belongs to (X.509-SVID, sections 4 and 5).
fn spiffe_bundle<'a>(
    peer: &Certificate,
    domains: &'a [(String, TrustBundle)],
) -> Result<&'a TrustBundle, &'static str> {
    let signs =
        peer.key_usage.is_some_and(|usage| usage & (key_usage::KEY_CERT_SIGN | key_usage::CRL_SIGN) != 0);
    if peer.ca || signs {
        return Err("SPIFFE: the certificate must not be a CA's");
    }
    let ids = peer.alt_names.iter().filter_map(|name| match name {
        AltName::Uri(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    let domain_of = |id: &'_ str| id.split('/').next().unwrap_or_default().to_owned();
    let bundle = ids.map(domain_of).find_map(|wanted| domains.iter().find(|(domain, _)| *domain == wanted));
    bundle.map(|(_, bundle)| bundle).ok_or("no trust bundle store")
}

pub(crate) fn sha256(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, None, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, Some(server_name), now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
