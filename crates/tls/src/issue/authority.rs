//! The authority: a certificate with its key that signs others, and those above it.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;

use super::key::{KeyPair, PublicKey};
use super::pem;
use crate::certificate::{AltName, Certificate, KeyKind, key_usage};
use crate::der::{BIT_STRING, INTEGER, OBJECT, OCTETS, SEQUENCE, SET, UTF8_STRING, element, time, unsigned};
use crate::path::{self, PathRules};
use crate::trust::{Revocations, TrustBundle};
use crate::verify::sha256;

/// What an authority is made of, in PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Material {
    /// Its certificate (`ca-cert.pem`).
    pub certificate: Vec<u8>,
    /// Its key (`ca-key.pem`).
    pub key: Vec<u8>,
    /// From its certificate to the root (`cert-chain.pem`); its certificate may be left out, and the
    /// root may be in it. Empty if it is a root itself.
    pub chain: Vec<u8>,
    /// Whom workloads are to trust (`root-cert.pem`): the root, and others, before or after it.
    pub roots: Vec<u8>,
    /// What was revoked (`ca-crl.pem`): with one list there must be one of every authority of the
    /// chain; empty: nothing.
    pub revocations: Vec<u8>,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Material")
            .field("certificate", &String::from_utf8_lossy(&self.certificate))
            .finish_non_exhaustive()
    }
}

/// From when until when, seconds since the epoch, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    key: KeyPair,
    certificate: Certificate,
    /// What is sent behind a certificate: our own and those above it, without roots at the end.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<Arc<Certificate>>,
    revocations: String,
    not_after: i64,
}

/// `id-ce`, in front of the numbers of extensions.
const EXTENSION: &[u8] = &[0x55, 0x1d];
const SUBJECT_KEY_ID: u8 = 14;
const KEY_USAGE: u8 = 15;
const ALT_NAMES: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;

/// `id-kp`, in front of serverAuth (1) and clientAuth (2).
const PURPOSE: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];

impl Authority {
    /// Reads an authority and tries whether what it signs is worth something to those who trust its
    /// roots at this time (seconds since the epoch).
    ///
    /// # Errors
    /// What is wrong with which of its parts.
    pub fn load(material: &Material, now: i64) -> Result<Authority, String> {
        let of = |part: &'static str| move |error: String| format!("{part}: {error}");
        let own = pem::certificates(&material.certificate)
            .and_then(|all| parse_all(&all))
            .map_err(of("the CA certificate"))?;
        let [certificate] = own.as_slice() else {
            return Err(format!("the CA certificate: there are {} certificates instead of one", own.len()));
        };
        let key = KeyPair::from_pem(&material.key).map_err(of("the CA key"))?;
        if PublicKey::from_spki(&certificate.spki).as_ref() != Ok(key.public()) {
            return Err("the CA key is not that of the CA certificate".to_owned());
        }
        let chain =
            pem::certificates(&material.chain).and_then(|all| parse_all(&all)).map_err(of("the chain"))?;
        let trust = TrustBundle::parse(&material.roots).map_err(of("the roots"))?;
        let revocations = match material.revocations.as_slice() {
            b"" => Revocations::default(),
            text => Revocations::parse(text).map_err(of("the revocation lists"))?,
        };
        let is_root = |one: &Certificate| trust.certificates().iter().any(|root| root.der() == one.der());
        let others = chain.iter().filter(|one| one.der() != certificate.der());
        let above: Vec<&Certificate> =
            std::iter::once(certificate).chain(others).filter(|one| !is_root(one)).collect();
        let authority = Authority {
            not_after: std::iter::once(certificate)
                .chain(above.iter().copied())
                .map(|one| one.not_after)
                .min()
                .unwrap_or_default(),
            chain: above.iter().map(|one| one.der().clone()).collect(),
            key,
            certificate: certificate.clone(),
            roots: trust.certificates().to_vec(),
            revocations: String::from_utf8_lossy(&material.revocations).into_owned(),
        };
        authority.try_out(&chain, &trust, &revocations, now)?;
        Ok(authority)
    }

    /// Signs a certificate for our own key, which nobody gets, and looks for the path from it to a root.
    fn try_out(
        &self,
        chain: &[Certificate],
        trust: &TrustBundle,
        revocations: &Revocations,
        now: i64,
    ) -> Result<(), String> {
        let trial = self.issue(self.key.public(), &[], Validity { not_before: now, not_after: now })?;
        let trial = Certificate::parse(&trial)?;
        let others: Vec<Certificate> = std::iter::once(&self.certificate).chain(chain).cloned().collect();
        for server in [true, false] {
            let rules = PathRules {
                algorithms: &rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms,
                now: Some(now),
                max_depth: 100,
                server,
                revocations,
                leaf_crl_only: false,
            };
            path::find(&trial, &others, trust, &rules).map_err(|error| {
                format!("what the CA signs cannot be verified with its roots: {}", error.problem.text())
            })?;
        }
        Ok(())
    }

    /// Signs a certificate that ends chains, for TLS on both sides.
    ///
    /// With one URI as its name it is a SPIFFE X.509 SVID. DNS names and addresses are for servers;
    /// names of other kinds are left out. It expires with the authority at the latest.
    ///
    /// # Errors
    /// If the authority would have expired before, or cannot sign.
    pub fn issue(
        &self,
        key: &PublicKey,
        names: &[AltName],
        validity: Validity,
    ) -> Result<CertificateDer<'static>, String> {
        let use_of_key = match key.kind() {
            KeyKind::Rsa(_) => key_usage::DIGITAL_SIGNATURE | key_usage::KEY_ENCIPHERMENT,
            _ => key_usage::DIGITAL_SIGNATURE,
        };
        let purposes = [1, 2].map(|purpose| element(OBJECT, &[PURPOSE, &[purpose]]));
        let mut extensions = vec![
            extension(KEY_USAGE, true, &bits(use_of_key)),
            extension(EXTENDED_KEY_USAGE, false, &element(SEQUENCE, &[&purposes.concat()])),
            extension(BASIC_CONSTRAINTS, true, &element(SEQUENCE, &[])),
        ];
        extensions.extend(self.authority_key_id());
        let names: Vec<u8> = names.iter().filter_map(general_name).flatten().collect();
        if !names.is_empty() {
            // Critical, as there is no subject (RFC 5280 section 4.2.1.6).
            extensions.push(extension(ALT_NAMES, true, &element(SEQUENCE, &[&names])));
        }
        self.sign(&element(SEQUENCE, &[]), key, validity, &extensions)
    }

    /// Signs a certificate of another authority below this one. `below`: how many authorities may
    /// follow below that one.
    ///
    /// # Errors
    /// If the authority would have expired before, or cannot sign.
    pub fn intermediate(
        &self,
        key: &PublicKey,
        organization: &str,
        below: u8,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, String> {
        let mut extensions = authority_extensions(key, Some(below));
        extensions.extend(self.authority_key_id());
        self.sign(&name(organization), key, validity, &extensions)
    }

    fn authority_key_id(&self) -> Option<Vec<u8>> {
        /// `[0]`, keyIdentifier.
        const KEY_ID: u8 = 0x80;
        let id = element(KEY_ID, &[self.certificate.subject_key_id.as_deref()?]);
        Some(extension(AUTHORITY_KEY_ID, false, &element(SEQUENCE, &[&id])))
    }

    fn sign(
        &self,
        subject: &[u8],
        key: &PublicKey,
        validity: Validity,
        extensions: &[Vec<u8>],
    ) -> Result<CertificateDer<'static>, String> {
        let not_after = validity.not_after.min(self.not_after);
        if not_after < validity.not_before {
            return Err("the CA certificate has expired".to_owned());
        }
        let validity = Validity { not_after, ..validity };
        certificate(&self.key, &self.certificate.subject, subject, key, validity, extensions)
    }

    /// What is to be sent behind a certificate: that of the authority and those above it, without
    /// roots.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom to trust.
    pub fn roots(&self) -> &[Arc<Certificate>] {
        &self.roots
    }

    /// Whom to trust, in PEM.
    pub fn roots_pem(&self) -> String {
        pem::certificates_to_pem(self.roots.iter().map(|root| root.der()))
    }

    /// What was revoked, in PEM; empty: nothing.
    pub fn revocations(&self) -> &str {
        &self.revocations
    }

    /// The certificate that signs.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The key that signs.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// The last second of all that it signs, seconds since the epoch.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
}

/// A new root: a certificate that a key has signed for itself. The organization is its whole name, as
/// Istio's roots have it.
///
/// # Errors
/// If the key cannot sign.
pub fn root(
    key: &KeyPair,
    organization: &str,
    validity: Validity,
) -> Result<CertificateDer<'static>, String> {
    let name = name(organization);
    certificate(key, &name, &name, key.public(), validity, &authority_extensions(key.public(), None))
}

fn certificate(
    signer: &KeyPair,
    issuer: &[u8],
    subject: &[u8],
    key: &PublicKey,
    validity: Validity,
    extensions: &[Vec<u8>],
) -> Result<CertificateDer<'static>, String> {
    /// `[0]` with version 3, which is 2.
    const VERSION: &[u8] = &[0xa0, 3, INTEGER, 1, 2];
    /// `[3]`
    const EXTENSIONS: u8 = 0xa3;
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| "there is no randomness")?;
    // Neither negative nor shorter.
    serial[0] = serial[0] & 0x7f | 0x40;
    let validity = element(SEQUENCE, &[&time(validity.not_before), &time(validity.not_after)]);
    let extensions = element(EXTENSIONS, &[&element(SEQUENCE, &[&extensions.concat()])]);
    let der = signer.sign(|algorithm| {
        let serial = unsigned(&serial);
        let parts = [VERSION, &serial, algorithm, issuer, &validity, subject, key.spki(), &extensions];
        element(SEQUENCE, &parts)
    })?;
    Ok(CertificateDer::from(der))
}

/// What is in every certificate of an authority.
fn authority_extensions(key: &PublicKey, below: Option<u8>) -> Vec<Vec<u8>> {
    const TRUE: &[u8] = &[0x01, 0x01, 0xff];
    let below = below.map(|below| unsigned(&[below])).unwrap_or_default();
    // RFC 7093 section 2, method 1.
    let digest = sha256(key.bits());
    let id = digest.as_ref().get(..20).unwrap_or_default();
    vec![
        extension(KEY_USAGE, true, &bits(key_usage::KEY_CERT_SIGN | key_usage::CRL_SIGN)),
        extension(BASIC_CONSTRAINTS, true, &element(SEQUENCE, &[TRUE, &below])),
        extension(SUBJECT_KEY_ID, false, &element(OCTETS, &[id])),
    ]
}

fn extension(number: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    element(SEQUENCE, &[&element(OBJECT, &[EXTENSION, &[number]]), critical, &element(OCTETS, &[value])])
}

/// A bit string of named bits, the first being the lowest of `flags`, without zeros at its end.
fn bits(flags: u16) -> Vec<u8> {
    let octet = (flags as u8).reverse_bits();
    element(BIT_STRING, &[&[octet.trailing_zeros() as u8, octet]])
}

/// A Name that is an organization.
fn name(organization: &str) -> Vec<u8> {
    const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
    let value = element(UTF8_STRING, &[organization.as_bytes()]);
    let attribute = element(SEQUENCE, &[&element(OBJECT, &[ORGANIZATION]), &value]);
    element(SEQUENCE, &[&element(SET, &[&attribute])])
}

pub(super) fn general_name(name: &AltName) -> Option<Vec<u8>> {
    match name {
        AltName::Dns(name) => Some(element(0x82, &[name.as_bytes()])),
        AltName::Uri(name) => Some(element(0x86, &[name.as_bytes()])),
        AltName::Ip(IpAddr::V4(address)) => Some(element(0x87, &[&address.octets()])),
        AltName::Ip(IpAddr::V6(address)) => Some(element(0x87, &[&address.octets()])),
        AltName::Email(_) | AltName::Other(..) | AltName::Directory(_) | AltName::Unknown => None,
    }
}

fn parse_all(all: &[CertificateDer<'static>]) -> Result<Vec<Certificate>, String> {
    all.iter().map(Certificate::parse).collect()
}
