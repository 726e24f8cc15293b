//! What is trusted: CA certificates and what they have revoked, read from PEM or DER.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::certificate::Certificate;

/// CA certificates (any of which ends a chain, be it self-signed or not) and their CRLs.
#[derive(Debug, Default)]
pub struct TrustBundle {
    pub(crate) anchors: Vec<Arc<Certificate>>,
    /// Indexes into `anchors` by subject.
    by_subject: HashMap<Vec<u8>, Vec<usize>>,
    pub(crate) revocations: Revocations,
}

/// CRLs by their issuer.
#[derive(Debug, Default)]
pub struct Revocations(HashMap<Vec<u8>, Vec<Arc<Crl>>>);

/// One certificate revocation list.
#[derive(Debug)]
pub(crate) struct Crl {
    pub(crate) der: Vec<u8>,
    pub(crate) this_update: i64,
    pub(crate) next_update: Option<i64>,
    /// Serial numbers without leading zeros.
    revoked: HashSet<Vec<u8>>,
    /// A critical extension is not understood: what it says cannot be relied on.
    pub(crate) unhandled_critical: bool,
}

impl TrustBundle {
    /// Reads CA certificates and CRLs, in PEM.
    ///
    /// # Errors
    /// What is wrong with it; the caller knows where it came from.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut bundle = Self::default();
        let mut found = HashSet::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|error| format!("malformed PEM: {error}"))?;
            match kind {
                SectionKind::Certificate => {
                    let certificate = Certificate::parse(&CertificateDer::from(der))?;
                    if found.insert(certificate.der().to_vec()) {
                        bundle.add(certificate);
                    }
                }
                SectionKind::Crl => bundle.revocations.add(&der)?,
                _ => {}
            }
        }
        if bundle.anchors.is_empty() {
            return Err("there is no certificate in it".to_owned());
        }
        Ok(bundle)
    }

    fn add(&mut self, certificate: Certificate) {
        self.by_subject.entry(certificate.subject.clone()).or_default().push(self.anchors.len());
        self.anchors.push(Arc::new(certificate));
    }

    /// The certificates.
    pub fn certificates(&self) -> &[Arc<Certificate>] {
        &self.anchors
    }

    /// Those with this subject.
    pub(crate) fn named(&self, subject: &[u8]) -> impl Iterator<Item = &Arc<Certificate>> {
        let indexes = self.by_subject.get(subject).map(Vec::as_slice).unwrap_or_default();
        indexes.iter().filter_map(|index| self.anchors.get(*index))
    }
}

impl Revocations {
    /// Reads CRLs, in PEM.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut revocations = Self::default();
        for crl in CertificateRevocationListDer::pem_slice_iter(pem) {
            revocations.add(&crl.map_err(|error| format!("malformed PEM: {error}"))?)?;
        }
        if revocations.0.is_empty() {
            return Err("there is no CRL in it".to_owned());
        }
        Ok(revocations)
    }

    fn add(&mut self, der: &[u8]) -> Result<(), String> {
        let (_, parsed) = CertificateRevocationList::from_der(der)
            .map_err(|error| format!("not a certificate revocation list: {error}"))?;
        let serial = |serial: &[u8]| strip(serial).to_vec();
        let crl = Crl {
            this_update: parsed.last_update().timestamp(),
            next_update: parsed.next_update().map(|time| time.timestamp()),
            revoked: parsed.iter_revoked_certificates().map(|entry| serial(entry.raw_serial())).collect(),
            unhandled_critical: parsed.extensions().iter().any(|extension| extension.critical),
            der: der.to_vec(),
        };
        let issuer = parsed.issuer().as_raw().to_vec();
        self.0.entry(issuer).or_default().push(Arc::new(crl));
        Ok(())
    }

    /// From when until when the list is good that is too old first, of those that say when they are (seconds since
    /// the epoch). Of several lists of an issuer the newest counts.
    pub fn first_outdated(&self) -> Option<(i64, i64)> {
        let newest = |lists: &Vec<Arc<Crl>>| {
            let ends = lists.iter().filter_map(|list| Some((list.this_update, list.next_update?)));
            ends.max_by_key(|(_, end)| *end)
        };
        self.0.values().filter_map(newest).min_by_key(|(_, end)| *end)
    }

    /// Adds those of another set.
    pub fn extend(&mut self, other: Revocations) {
        for (issuer, crls) in other.0 {
            self.0.entry(issuer).or_default().extend(crls);
        }
    }

    /// Whether there are none at all: then nothing is checked.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that this issuer made.
    pub(crate) fn of(&self, issuer: &[u8]) -> &[Arc<Crl>] {
        self.0.get(issuer).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Crl {
    /// Whether the certificate with this serial number is revoked.
    pub(crate) fn revokes(&self, serial: &[u8]) -> bool {
        self.revoked.contains(strip(serial))
    }
}

fn strip(serial: &[u8]) -> &[u8] {
    let start = serial.iter().position(|octet| *octet != 0).unwrap_or(serial.len());
    serial.get(start..).unwrap_or_default()
}
