//! Requests for certificates: PKCS #10 (RFC 2986), read from strangers and made by ourselves.
//!
//! All that is taken from a request is its key, once its signature has shown that the sender has the
//! private half. The names, extensions and uses that it asks for are not even looked at.

use rustls::pki_types::pem::{PemObject, SectionKind};

use super::key::{KeyPair, PublicKey};
use super::pem;
use super::spiffe::SpiffeId;
use crate::der::{INTEGER, OBJECT, OCTETS, Reader, SEQUENCE, SET, Signed, element, unsigned};
use crate::path::signed_by;

/// How long the text of a request may be, bytes: one with an RSA key of 8192 bits and many names has
/// a third of it.
pub const MOST_BYTES: usize = 16 << 10;

/// `extensionRequest` of PKCS #9.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];

/// A request whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    key: PublicKey,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Longer than [`MOST_BYTES`].
    #[error("the request has more than {MOST_BYTES} bytes")]
    Long,
    /// Not PEM, or not with one request in it.
    #[error("the request is not one PEM block CERTIFICATE REQUEST")]
    Pem,
    /// Not a PKCS #10 request.
    #[error("the request is malformed")]
    Malformed,
    /// The key is none that the mesh can use.
    #[error("{0}")]
    Key(&'static str),
    /// The signature is not by the key.
    #[error("the signature of the request is wrong, or its algorithm is not supported")]
    Signature,
}

impl CertificateRequest {
    /// Reads a request in PEM and checks its signature.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn parse(text: &[u8]) -> Result<CertificateRequest, RequestError> {
        if text.len() > MOST_BYTES {
            return Err(RequestError::Long);
        }
        let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
        match (sections.next(), sections.next()) {
            (Some(Ok((SectionKind::Csr, der))), None) => CertificateRequest::from_der(&der),
            _ => Err(RequestError::Pem),
        }
    }

    /// Reads a request in DER and checks its signature.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn from_der(der: &[u8]) -> Result<CertificateRequest, RequestError> {
        if der.len() > MOST_BYTES {
            return Err(RequestError::Long);
        }
        let spki = take_apart(der).ok_or(RequestError::Malformed)?;
        let key = PublicKey::from_spki(spki).map_err(RequestError::Key)?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        if !signed_by(der, key.spki(), &algorithms) {
            return Err(RequestError::Signature);
        }
        Ok(CertificateRequest { key })
    }

    /// The key that a certificate is wanted for.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// The SubjectPublicKeyInfo of a request that is well-formed.
fn take_apart(der: &[u8]) -> Option<&[u8]> {
    /// `[0]`, the attributes.
    const ATTRIBUTES: u8 = 0xa0;
    let mut outer = Reader::new(der);
    let whole = outer.expect(SEQUENCE)?;
    if outer.next().is_some() || whole.whole.len() != der.len() {
        return None;
    }
    let mut parts = Reader::new(whole.content);
    for _ in 0..3 {
        parts.next()?;
    }
    if !parts.is_empty() {
        return None;
    }
    let signed = Signed::parse(der)?;
    let mut information = Reader::new(signed.content).sequence()?;
    if information.expect(INTEGER)?.content != [0] {
        return None;
    }
    information.expect(SEQUENCE)?;
    let spki = information.expect(SEQUENCE)?.whole;
    // They are required, but some leave them out when there are none.
    if !information.is_empty() {
        information.expect(ATTRIBUTES)?;
    }
    information.is_empty().then_some(spki)
}

/// Makes a request as Istio's agents do: with the identity that is expected, which the authority is
/// free to overrule.
///
/// # Errors
/// If the key cannot sign.
pub fn request(key: &KeyPair, identity: &SpiffeId) -> Result<String, String> {
    const ALT_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
    const TRUE: &[u8] = &[0x01, 0x01, 0xff];
    const URI: u8 = 0x86;
    let names = element(SEQUENCE, &[&element(URI, &[identity.as_str().as_bytes()])]);
    let extension = element(SEQUENCE, &[&element(OBJECT, &[ALT_NAMES]), TRUE, &element(OCTETS, &[&names])]);
    let attribute = element(
        SEQUENCE,
        &[&element(OBJECT, &[EXTENSION_REQUEST]), &element(SET, &[&element(SEQUENCE, &[&extension])])],
    );
    let der = key.sign(|_| {
        let subject = element(SEQUENCE, &[]);
        element(SEQUENCE, &[&unsigned(&[0]), &subject, key.public().spki(), &element(0xa0, &[&attribute])])
    })?;
    Ok(pem::write("CERTIFICATE REQUEST", &der))
}
