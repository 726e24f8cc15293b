//! Our own certificates: a chain, its key, and which of several is shown to whom.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::certificate::{AltName, Certificate, KeyKind};
use crate::ocsp::{self, StaplePolicy};
use crate::params::sort_schemes;
use crate::pkcs8;

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    /// The parsed chain, our own certificate first; never empty.
    chain: Vec<Certificate>,
    /// When the stapled OCSP response expires, seconds since the epoch.
    staple_until: Option<i64>,
}

/// What is wrong with a certificate or key. The places are those that it was read from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The chain.
    #[error("Failed to load certificate chain from {0}: {1}")]
    Chain(String, String),
    /// The chain's key is not acceptable.
    #[error("Failed to load certificate chain from {0}, {1}")]
    Kind(String, &'static str),
    /// The key.
    #[error("Failed to load private key from {0}, Cause: {1}")]
    Key(String, String),
    /// The OCSP response.
    #[error("{0}")]
    Staple(String),
}

/// Bytes and where they came from: a path, or `<inline>`.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The bytes, PEM or (OCSP) DER.
    pub bytes: Vec<u8>,
    /// For error messages.
    pub place: String,
}

impl Identity {
    /// Reads a chain and its key, in PEM, and an OCSP response, in DER. The password is for a key
    /// that is encrypted.
    ///
    /// # Errors
    /// What is wrong with which.
    pub fn load(
        chain: &Source,
        key: &Source,
        password: Option<&[u8]>,
        staple: Option<&Source>,
        provider: &CryptoProvider,
    ) -> Result<Self, IdentityError> {
        let bad_chain = |text: String| IdentityError::Chain(chain.place.clone(), text);
        let bad_key = |text: String| IdentityError::Key(key.place.clone(), text);
        let ders = CertificateDer::pem_slice_iter(&chain.bytes).collect::<Result<Vec<_>, _>>();
        let ders = ders.map_err(|error| bad_chain(format!("malformed PEM: {error}")))?;
        let parsed = ders.iter().map(Certificate::parse).collect::<Result<Vec<_>, _>>();
        let parsed = parsed.map_err(bad_chain)?;
        let Some(own) = parsed.first() else {
            return Err(bad_chain("there is no certificate in it".to_owned()));
        };
        let refused = match own.key_kind() {
            KeyKind::Rsa(bits) if bits < 2048 => {
                Some("only RSA certificates with 2048-bit or larger keys are supported")
            }
            KeyKind::Other => Some("only RSA and ECDSA (P-256, P-384, P-521) certificates are supported"),
            _ => None,
        };
        if let Some(refused) = refused {
            return Err(IdentityError::Kind(chain.place.clone(), refused));
        }
        let private = match password.filter(|_| pkcs8::is_encrypted(&key.bytes)) {
            Some(password) => {
                pkcs8::decrypt(&key.bytes, password).map_err(|error| bad_key(error.to_owned()))?
            }
            None => PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| match error {
                rustls::pki_types::pem::Error::NoItemsFound if pkcs8::is_encrypted(&key.bytes) => {
                    bad_key("the key is encrypted".to_owned())
                }
                rustls::pki_types::pem::Error::NoItemsFound => bad_key("there is no key in it".to_owned()),
                error => bad_key(format!("malformed PEM: {error}")),
            })?,
        };
        let signer = provider.key_provider.load_private_key(private);
        let signer = signer.map_err(|error| bad_key(error.to_string()))?;
        let mut certified = CertifiedKey::new(ders, Arc::new(Signer(signer)));
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(bad_key("KEY_VALUES_MISMATCH: it is not the certificate's".to_owned())),
        }
        let mut staple_until = None;
        if let Some(staple) = staple {
            let response = ocsp::parse(&staple.bytes, &own.serial).map_err(|error| {
                IdentityError::Staple(format!("Failed to load OCSP response from {}: {error}", staple.place))
            })?;
            staple_until = Some(response.next_update);
            certified.ocsp = Some(staple.bytes.clone());
        }
        Ok(Self { key: Arc::new(certified), chain: parsed, staple_until })
    }

    /// The parsed chain, our own certificate first.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// Our own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// What rustls signs with.
    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The same, signing by these schemes only, in this order of preference.
    pub(crate) fn limited(&self, schemes: &Arc<[SignatureScheme]>) -> Self {
        let mut key = CertifiedKey::clone(&self.key);
        key.key = Arc::new(Limited { signer: Arc::clone(&key.key), schemes: Arc::clone(schemes) });
        Self { key: Arc::new(key), chain: self.chain.clone(), staple_until: self.staple_until }
    }

    fn is_ecdsa(&self) -> bool {
        matches!(self.certificate().key_kind(), KeyKind::P256 | KeyKind::P384 | KeyKind::P521)
    }

    /// DNS names that it is for, lower case; `*.` shortened to `.`.
    fn names(&self) -> Vec<String> {
        let own = self.certificate();
        let names: Vec<&String> = own
            .alt_names()
            .iter()
            .filter_map(|name| if let AltName::Dns(name) = name { Some(name) } else { None })
            .collect();
        let names = if own.alt_names().is_empty() { own.common_names.iter().collect() } else { names };
        names
            .into_iter()
            .map(|name| {
                let name = name.to_ascii_lowercase();
                if name.starts_with("*.") && name.len() > 2 { name[1..].to_owned() } else { name }
            })
            .collect()
    }
}

/// Signs as BoringSSL would: by the first of its schemes that the peer knows, which has the
/// shorter hash; rustls takes the longest.
#[derive(Debug)]
struct Signer(Arc<dyn SigningKey>);

impl SigningKey for Signer {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let mut offered = offered.to_vec();
        sort_schemes(&mut offered);
        offered.iter().find_map(|scheme| self.0.choose_scheme(&[*scheme]))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

/// Signs by some schemes only (`signature_algorithms`).
#[derive(Debug)]
struct Limited {
    signer: Arc<dyn SigningKey>,
    schemes: Arc<[SignatureScheme]>,
}

impl SigningKey for Limited {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let common = self.schemes.iter().filter(|scheme| offered.contains(scheme));
        common.into_iter().find_map(|scheme| self.signer.choose_scheme(&[*scheme]))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.signer.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.signer.algorithm()
    }
}

/// Chooses among a server's certificates.
#[derive(Debug)]
pub(crate) struct Selector {
    identities: Vec<Chosen>,
    full_scan: bool,
    require_name: bool,
    policy: StaplePolicy,
}

#[derive(Debug)]
struct Chosen {
    identity: Arc<Identity>,
    /// The same without a stapled response.
    bare: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl Selector {
    /// # Errors
    /// Two certificates of a kind are for the same name, or a response is missing.
    pub(crate) fn new(
        identities: &[Arc<Identity>],
        full_scan: bool,
        require_name: bool,
        policy: StaplePolicy,
    ) -> Result<Self, String> {
        let identities: Vec<Chosen> = identities
            .iter()
            .map(|identity| {
                let mut bare = CertifiedKey::clone(identity.certified());
                bare.ocsp = None;
                Chosen { identity: Arc::clone(identity), bare: Arc::new(bare), names: identity.names() }
            })
            .collect();
        for (index, one) in identities.iter().enumerate() {
            if policy == StaplePolicy::Must && one.identity.staple_until.is_none() {
                return Err("Required OCSP response is missing from TLS context".to_owned());
            }
            if policy != StaplePolicy::Must
                && one.identity.certificate().must_staple
                && one.identity.staple_until.is_none()
            {
                return Err("OCSP response is required for must-staple certificate".to_owned());
            }
            for other in identities.iter().take(index) {
                let twice = one.names.iter().find(|name| other.names.contains(name));
                if let Some(name) = twice.filter(|_| one.identity.is_ecdsa() == other.identity.is_ecdsa()) {
                    let name = if name.starts_with('.') { format!("*{name}") } else { name.clone() };
                    return Err(format!(
                        "at most one certificate of a given type may be specified for each DNS name in SAN or Subject CN: {name}"
                    ));
                }
            }
        }
        Ok(Self { identities, full_scan, require_name, policy })
    }

    /// The best of those that the filter lets pass: ECDSA if the client can, else RSA.
    fn best(&self, hello: &ClientHello<'_>, of: impl Fn(&Chosen) -> bool) -> Option<&Chosen> {
        let can = |chosen: &&Chosen| {
            chosen.identity.certified().key.choose_scheme(hello.signature_schemes()).is_some()
                && (!chosen.identity.is_ecdsa() || ecdsa_suites(hello))
        };
        let fitting = || self.identities.iter().filter(|chosen| of(chosen)).filter(can);
        fitting().find(|chosen| chosen.identity.is_ecdsa()).or_else(|| fitting().next())
    }

    fn choose(&self, hello: &ClientHello<'_>) -> Option<&Chosen> {
        let name = hello.server_name().unwrap_or_default();
        if name.is_empty() {
            if self.require_name {
                return None;
            }
            return self.best(hello, |_| true).or_else(|| self.identities.first());
        }
        let name = name.to_ascii_lowercase();
        let exact = self.best(hello, |chosen| chosen.names.contains(&name));
        let suffix = name.find('.').and_then(|dot| name.get(dot..)).unwrap_or_default();
        let found = exact.or_else(|| {
            self.best(hello, |chosen| !suffix.is_empty() && chosen.names.iter().any(|name| name == suffix))
        });
        let scanned = || if self.full_scan { self.best(hello, |_| true) } else { None };
        found.or_else(scanned).or_else(|| self.identities.first())
    }
}

/// Whether the client can do ECDSA at all: any cipher suite of TLS 1.3, or one with ECDSA.
fn ecdsa_suites(hello: &ClientHello<'_>) -> bool {
    hello.cipher_suites().iter().any(|suite| match u16::from(*suite) {
        0x1301..=0x1305 => true,
        // ECDHE-ECDSA with AES-GCM and ChaCha20.
        0xc02b | 0xc02c | 0xcca9 => true,
        _ => false,
    })
}

impl ResolvesServerCert for Selector {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.choose(&hello)?;
        crate::verify::record_local(&chosen.identity, hello.server_name());
        let Some(until) = chosen.identity.staple_until else { return Some(Arc::clone(&chosen.bare)) };
        if until >= crate::now() {
            return Some(Arc::clone(chosen.identity.certified()));
        }
        match self.policy {
            StaplePolicy::Lenient => Some(Arc::clone(&chosen.bare)),
            // An expired response refuses the handshake.
            StaplePolicy::Strict | StaplePolicy::Must => None,
        }
    }
}

/// A client shows its one certificate, to whoever asks.
#[derive(Debug)]
pub(crate) struct OneIdentity(pub(crate) Arc<Identity>);

impl rustls::client::ResolvesClientCert for OneIdentity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let key = self.0.certified();
        key.key.choose_scheme(schemes)?;
        crate::verify::record_local(&self.0, None);
        Some(Arc::clone(key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
