//! What another authority has signed for us: believed only as far as it was asked for.

use rustls::pki_types::CertificateDer;

use super::key::PublicKey;
use crate::certificate::{AltName, Certificate};
use crate::path::{self, PathRules};
use crate::trust::TrustBundle;

/// What a certificate is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Whose key.
    pub key: &'a PublicKey,
    /// All its names, in any order.
    pub names: &'a [AltName],
    /// Whether clients may show it too; servers may in any case.
    pub is_for_clients: bool,
}

impl Wanted<'_> {
    /// Whether a chain, its end first, is what was wanted: for this key and these names and no others, no
    /// authority, and good at this time (seconds since the epoch) to those who trust these roots. Gives the
    /// first certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(
        &self,
        chain: &[CertificateDer<'static>],
        trust: &TrustBundle,
        now: i64,
    ) -> Result<Certificate, String> {
        let all = chain.iter().map(Certificate::parse).collect::<Result<Vec<_>, _>>()?;
        let (leaf, others) = all.split_first().ok_or("there is no certificate in it")?;
        if PublicKey::from_spki(&leaf.spki).as_ref() != Ok(self.key) {
            return Err("the certificate is for another key".to_owned());
        }
        if leaf.ca {
            return Err("the certificate is one of an authority".to_owned());
        }
        let names = leaf.alt_names();
        let is_same = names.len() == self.names.len() && self.names.iter().all(|name| names.contains(name));
        if !is_same {
            let found: Vec<String> = names.iter().filter_map(AltName::text).collect();
            return Err(format!("the certificate is for other names: {found:?}"));
        }
        for server in [true, false] {
            if !server && !self.is_for_clients {
                continue;
            }
            let rules = PathRules {
                algorithms: &rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms,
                now: Some(now),
                max_depth: 100,
                server,
                revocations: &trust.revocations,
                leaf_crl_only: false,
            };
            path::find(leaf, others, trust, &rules)
                .map_err(|error| format!("the certificate cannot be verified: {}", error.problem.text()))?;
        }
        Ok(leaf.clone())
    }
}
