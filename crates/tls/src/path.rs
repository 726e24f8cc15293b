//! Certification paths (RFC 5280 section 6): from a peer's certificate to one that is trusted.
//!
//! Written for this proxy, because Envoy's rules are BoringSSL's: any certificate of the trust
//! bundle ends a chain (partial chains), a CA may be the peer itself, URI name constraints hold
//! (SPIFFE), expiry and chains may be let pass. webpki refuses each of these. What is not
//! understood is refused: unknown critical extensions, constraints of unknown kinds.

use rustls::CertificateError;
use rustls::crypto::WebPkiSupportedAlgorithms;

use crate::certificate::{Certificate, key_usage};
use crate::der::{Signed, public_key};
use crate::names::Violation;
use crate::trust::{Crl, Revocations, TrustBundle};

/// What a chain is checked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathRules<'a> {
    pub(crate) algorithms: &'a WebPkiSupportedAlgorithms,
    /// Seconds since the epoch; `None`: whatever the time is (`allow_expired_certificate`).
    pub(crate) now: Option<i64>,
    /// Certificates between the peer's and the trusted one, at most.
    pub(crate) max_depth: usize,
    /// The peer is a server, else a client.
    pub(crate) server: bool,
    /// CRLs apart from those of the bundle.
    pub(crate) revocations: &'a Revocations,
    /// CRLs are asked for the peer's certificate only.
    pub(crate) leaf_crl_only: bool,
}

/// Why there is no path, and at which certificate (0: the peer's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathError {
    pub(crate) depth: usize,
    pub(crate) problem: Problem,
}

/// Envoy's words in front of BoringSSL's.
macro_rules! revocation {
    ($text:literal) => {
        concat!("certificate revocation check against provided CRLs failed: ", $text)
    };
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The chain ends, and its end is not trusted.
    NoIssuer,
    /// The only certificate signed itself and is not trusted.
    SelfSigned,
    /// The last certificate signed itself and is not trusted.
    SelfSignedInChain,
    BadSignature,
    NotYetValid,
    Expired,
    TooLong,
    NotCa,
    PathLength,
    Purpose,
    CriticalExtension,
    NotPermitted,
    Excluded,
    UnsupportedConstraint,
    NoCrl,
    CrlSignature,
    CrlNotYetValid,
    CrlExpired,
    Revoked,
}

impl Problem {
    /// BoringSSL's words, which reach users in logs and failure reasons.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Problem::NoIssuer => "unable to get local issuer certificate",
            Problem::SelfSigned => "self signed certificate",
            Problem::SelfSignedInChain => "self signed certificate in certificate chain",
            Problem::BadSignature => "certificate signature failure",
            Problem::NotYetValid => "certificate is not yet valid",
            Problem::Expired => "certificate has expired",
            Problem::TooLong => "certificate chain too long",
            Problem::NotCa => "invalid CA certificate",
            Problem::PathLength => "path length constraint exceeded",
            Problem::Purpose => "unsupported certificate purpose",
            Problem::CriticalExtension => "unhandled critical extension",
            Problem::NotPermitted => "permitted subtree violation",
            Problem::Excluded => "excluded subtree violation",
            Problem::UnsupportedConstraint => "unsupported name constraint type",
            Problem::NoCrl => revocation!("unable to get certificate CRL"),
            Problem::CrlSignature => revocation!("CRL signature failure"),
            Problem::CrlNotYetValid => revocation!("CRL is not yet valid"),
            Problem::CrlExpired => revocation!("CRL has expired"),
            Problem::Revoked => revocation!("certificate revoked"),
        }
    }

    /// What makes rustls send the alert that BoringSSL would send.
    pub(crate) fn alert(self) -> CertificateError {
        match self {
            Problem::NoIssuer
            | Problem::SelfSigned
            | Problem::SelfSignedInChain
            | Problem::TooLong
            | Problem::NotCa
            | Problem::PathLength
            | Problem::NoCrl => CertificateError::UnknownIssuer,
            Problem::BadSignature | Problem::CrlSignature => CertificateError::BadSignature,
            Problem::NotYetValid | Problem::CrlNotYetValid => CertificateError::BadEncoding,
            Problem::Expired | Problem::CrlExpired => CertificateError::Expired,
            Problem::Purpose => CertificateError::InvalidPurpose,
            Problem::Revoked => CertificateError::Revoked,
            Problem::CriticalExtension
            | Problem::NotPermitted
            | Problem::Excluded
            | Problem::UnsupportedConstraint => {
                CertificateError::Other(rustls::OtherError(std::sync::Arc::new(Refused(self.text()))))
            }
        }
    }
}

/// A refusal that has no name in rustls.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) &'static str);

/// Signatures that are checked for one chain, at most: whoever sends many certificates with the
/// same name must not make us work for ever.
const MAX_SIGNATURES: usize = 100;

/// Finds a path from `peer` over `others` to a certificate of `trust`.
pub(crate) fn find(
    peer: &Certificate,
    others: &[Certificate],
    trust: &TrustBundle,
    rules: &PathRules<'_>,
) -> Result<(), PathError> {
    let mut search = Search { others, trust, rules, signatures: 0, worst: None, complete: false };
    let mut chain = vec![peer];
    if search.extend(&mut chain) {
        return Ok(());
    }
    Err(search.worst.unwrap_or(PathError { depth: 0, problem: Problem::NoIssuer }))
}

struct Search<'a> {
    others: &'a [Certificate],
    trust: &'a TrustBundle,
    rules: &'a PathRules<'a>,
    signatures: usize,
    /// The failure that got furthest.
    worst: Option<PathError>,
    /// It is that of a chain that reached a trusted certificate, and so says more than others.
    complete: bool,
}

impl<'a> Search<'a> {
    /// Goes on from the last certificate of the chain; true: there is a path.
    fn extend(&mut self, chain: &mut Vec<&'a Certificate>) -> bool {
        let Some(last) = chain.last().copied() else { return false };
        let trust: &'a TrustBundle = self.trust;
        // What is trusted comes first, then what the peer has sent.
        if trust.named(&last.subject).any(|anchor| anchor.der() == last.der()) {
            return self.complete(chain);
        }
        for anchor in trust.named(&last.issuer) {
            if self.may_issue(anchor, last, chain.len()) {
                chain.push(anchor);
                let done = self.complete(chain);
                chain.pop();
                if done {
                    return true;
                }
            }
        }
        let others: &'a [Certificate] = self.others;
        let mut longer = false;
        for issuer in others.iter().filter(|other| other.subject == last.issuer) {
            if chain.iter().any(|known| known.der() == issuer.der()) {
                continue;
            }
            if chain.len() > self.rules.max_depth {
                self.fail(chain.len(), Problem::TooLong);
                return false;
            }
            if self.may_issue(issuer, last, chain.len()) {
                longer = true;
                chain.push(issuer);
                let done = self.extend(chain);
                chain.pop();
                if done {
                    return true;
                }
            }
        }
        if !longer {
            let problem = match (last.self_issued(), chain.len()) {
                (true, 1) => Problem::SelfSigned,
                (true, _) => Problem::SelfSignedInChain,
                (false, _) => Problem::NoIssuer,
            };
            self.fail(chain.len() - 1, problem);
        }
        false
    }

    /// Whether a certificate has signed another one, and looks like the one that is meant.
    fn may_issue(&mut self, issuer: &Certificate, subject: &Certificate, depth: usize) -> bool {
        if let (Some(wanted), Some(id)) = (&subject.authority_key_id, &issuer.subject_key_id)
            && wanted != id
        {
            return false;
        }
        if self.signatures >= MAX_SIGNATURES {
            return false;
        }
        self.signatures += 1;
        let signed = signed_by(subject.der(), &issuer.spki, self.rules.algorithms);
        if !signed {
            self.fail(depth - 1, Problem::BadSignature);
        }
        signed
    }

    fn fail(&mut self, depth: usize, problem: Problem) {
        let further = |worst: PathError| {
            worst.depth < depth || (worst.depth == depth && worst.problem != Problem::BadSignature)
        };
        if !self.complete && self.worst.is_none_or(further) {
            self.worst = Some(PathError { depth, problem });
        }
    }

    /// Checks a chain whose last certificate is trusted.
    fn complete(&mut self, chain: &[&Certificate]) -> bool {
        match self.check(chain) {
            Ok(()) => true,
            Err(error) => {
                self.worst = Some(error);
                self.complete = true;
                false
            }
        }
    }

    fn check(&self, chain: &[&Certificate]) -> Result<(), PathError> {
        let fail = |depth, problem| Err(PathError { depth, problem });
        let mut below = 0;
        for (depth, certificate) in chain.iter().enumerate() {
            if certificate.unhandled_critical {
                return fail(depth, Problem::CriticalExtension);
            }
            if depth > 0 {
                // Trusted certificates from before X.509 v3 cannot say that they are a CA's.
                let old = certificate.old && certificate.self_issued() && depth + 1 == chain.len();
                let may_sign =
                    certificate.key_usage.is_none_or(|usage| usage & key_usage::KEY_CERT_SIGN != 0);
                if !(certificate.ca || old) || !may_sign {
                    return fail(depth, Problem::NotCa);
                }
                if certificate.path_length.is_some_and(|limit| below > limit) {
                    return fail(depth, Problem::PathLength);
                }
                if !certificate.self_issued() {
                    below += 1;
                }
            }
            if !self.has_purpose(certificate, depth == 0) {
                return fail(depth, Problem::Purpose);
            }
        }
        for (depth, certificate) in chain.iter().enumerate() {
            let Some(constraints) = &certificate.name_constraints else { continue };
            for (at, lower) in chain.iter().enumerate().take(depth) {
                if at > 0 && lower.self_issued() {
                    continue;
                }
                match constraints.check(lower) {
                    Ok(()) => {}
                    Err(Violation::NotPermitted) => return fail(at, Problem::NotPermitted),
                    Err(Violation::Excluded) => return fail(at, Problem::Excluded),
                    Err(Violation::Unsupported) => return fail(depth, Problem::UnsupportedConstraint),
                }
            }
        }
        self.check_revocation(chain)?;
        let Some(now) = self.rules.now else { return Ok(()) };
        for (depth, certificate) in chain.iter().enumerate().rev() {
            if now < certificate.not_before {
                return fail(depth, Problem::NotYetValid);
            }
            if now > certificate.not_after {
                return fail(depth, Problem::Expired);
            }
        }
        Ok(())
    }

    fn has_purpose(&self, certificate: &Certificate, leaf: bool) -> bool {
        let extended = certificate
            .extended_key_usage
            .is_none_or(|usage| usage.any || if self.rules.server { usage.server } else { usage.client });
        let usages = if self.rules.server {
            key_usage::DIGITAL_SIGNATURE | key_usage::KEY_ENCIPHERMENT | key_usage::KEY_AGREEMENT
        } else {
            key_usage::DIGITAL_SIGNATURE | key_usage::KEY_AGREEMENT
        };
        extended && (!leaf || certificate.key_usage.is_none_or(|usage| usage & usages != 0))
    }

    /// Once there is any CRL, each certificate needs one of its issuer's.
    fn check_revocation(&self, chain: &[&Certificate]) -> Result<(), PathError> {
        if self.rules.revocations.is_empty() && self.trust.revocations.is_empty() {
            return Ok(());
        }
        let count = if self.rules.leaf_crl_only { 1 } else { chain.len() };
        for (depth, certificate) in chain.iter().enumerate().take(count) {
            let issuer = match chain.get(depth + 1) {
                Some(issuer) => issuer,
                // A root's own CRL may list it; one that is trusted without being a root has
                // nobody that could be asked.
                None if certificate.self_issued() => certificate,
                None => continue,
            };
            let fail = |problem| PathError { depth, problem };
            let own = self.rules.revocations.of(&certificate.issuer);
            let of_bundle = self.trust.revocations.of(&certificate.issuer);
            let mut verdict = Err(Problem::NoCrl);
            for crl in own.iter().chain(of_bundle) {
                match self.check_crl(crl, issuer) {
                    Ok(()) if crl.revokes(&certificate.serial) => return Err(fail(Problem::Revoked)),
                    Ok(()) => verdict = Ok(()),
                    Err(problem) if verdict.is_err() => verdict = Err(problem),
                    Err(_) => {}
                }
            }
            verdict.map_err(fail)?;
        }
        Ok(())
    }

    fn check_crl(&self, crl: &Crl, issuer: &Certificate) -> Result<(), Problem> {
        if crl.unhandled_critical {
            return Err(Problem::CriticalExtension);
        }
        if issuer.key_usage.is_some_and(|usage| usage & key_usage::CRL_SIGN == 0)
            || !signed_by(&crl.der, &issuer.spki, self.rules.algorithms)
        {
            return Err(Problem::CrlSignature);
        }
        match self.rules.now {
            Some(now) if now < crl.this_update => Err(Problem::CrlNotYetValid),
            Some(now) if crl.next_update.is_some_and(|next| now > next) => Err(Problem::CrlExpired),
            _ => Ok(()),
        }
    }
}

/// Whether a certificate, CRL or request is signed with this key (SubjectPublicKeyInfo).
pub(crate) fn signed_by(der: &[u8], spki: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> bool {
    let (Some(signed), Some((key_algorithm, key))) = (Signed::parse(der), public_key(spki)) else {
        return false;
    };
    let fitting = algorithms.all.iter().filter(|algorithm| {
        algorithm.signature_alg_id().as_ref() == signed.algorithm
            && algorithm.public_key_alg_id().as_ref() == key_algorithm
    });
    fitting
        .into_iter()
        .any(|algorithm| algorithm.verify_signature(key, signed.content, signed.signature).is_ok())
}
