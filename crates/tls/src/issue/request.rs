//! Requests for certificates: PKCS #10 (RFC 2986), read from strangers and made by ourselves.
//!
//! All that an authority of our own takes from a request is its key, once its signature has shown that
//! the sender has the private half. The names, extensions and uses that it asks for are looked at only
//! when the request is handed on to somebody who signs what it asks for.

use rustls::pki_types::pem::{PemObject, SectionKind};

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::authority::general_name;
use super::key::{KeyPair, PublicKey};
use super::pem;
use super::spiffe::SpiffeId;
use crate::certificate::{AltName, alt_name};
use crate::der::{
    BOOLEAN, INTEGER, OBJECT, OCTETS, Reader, SEQUENCE, SET, Signed, UTF8_STRING, element, unsigned,
};
use crate::path::signed_by;

/// How long the text of a request may be, bytes: one with an RSA key of 8192 bits and many names has
/// a third of it.
pub const MOST_BYTES: usize = 16 << 10;

/// `extensionRequest` of PKCS #9.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];

/// `subjectAltName`.
const ALT_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// `organizationName`.
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

const PRINTABLE_STRING: u8 = 0x13;

/// `[0]`, the attributes of a request.
const ATTRIBUTES: u8 = 0xa0;

/// A request whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    key: PublicKey,
    der: Vec<u8>,
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
        let spki = take_apart(der).ok_or(RequestError::Malformed)?.spki;
        let key = PublicKey::from_spki(spki).map_err(RequestError::Key)?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        if !signed_by(der, key.spki(), &algorithms) {
            return Err(RequestError::Signature);
        }
        Ok(CertificateRequest { key, der: der.to_vec() })
    }

    /// The names that a certificate is wanted for; those of kinds that are not known are
    /// [`AltName::Unknown`].
    pub fn names(&self) -> Vec<AltName> {
        let Ok((_, request)) = X509CertificationRequest::from_der(&self.der) else { return Vec::new() };
        let extensions = request.requested_extensions().into_iter().flatten();
        let names = extensions.filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.iter().map(alt_name)),
            _ => None,
        });
        names.flatten().collect()
    }

    /// Whether a certificate with all that is asked for has this identity and nothing else: for whoever
    /// hands a request on to an authority that signs what is in it. Octets are compared, so that nobody can
    /// read them in another way than we did. The subject is empty or, as Istio's agents write it, an
    /// organization without a name.
    ///
    /// # Errors
    /// What it asks for besides, or leaves out.
    pub fn asks_only_for(&self, identity: &SpiffeId) -> Result<(), &'static str> {
        let parts = take_apart(&self.der).ok_or("it is malformed")?;
        let nameless = [PRINTABLE_STRING, UTF8_STRING].map(|string| {
            let attribute = element(SEQUENCE, &[&element(OBJECT, &[ORGANIZATION]), &element(string, &[])]);
            element(SEQUENCE, &[&element(SET, &[&attribute])])
        });
        if parts.subject != element(SEQUENCE, &[]) && !nameless.iter().any(|name| name == parts.subject) {
            return Err("it asks for a subject");
        }
        let mut attributes = Reader::new(parts.attributes);
        let mut attribute = attributes.sequence().ok_or("it asks for no name")?;
        if !attributes.is_empty() {
            return Err("it asks for more than extensions");
        }
        if attribute.expect(OBJECT).is_none_or(|id| id.content != EXTENSION_REQUEST) {
            return Err("it asks for something that is no extension");
        }
        let mut values =
            attribute.expect(SET).map(|set| Reader::new(set.content)).ok_or("it is malformed")?;
        let mut extensions = values.sequence().ok_or("it asks for no name")?;
        let mut extension = extensions.sequence().ok_or("it asks for no name")?;
        if !attribute.is_empty() || !values.is_empty() || !extensions.is_empty() {
            return Err("it asks for more than a name");
        }
        if extension.expect(OBJECT).is_none_or(|id| id.content != ALT_NAMES) {
            return Err("it asks for an extension that is no name");
        }
        let mut value = extension.next();
        if value.is_some_and(|value| value.tag == BOOLEAN) {
            value = extension.next();
        }
        let names = [AltName::Uri(identity.as_str().to_owned())];
        match value {
            Some(value)
                if value.tag == OCTETS && extension.is_empty() && value.content == alt_names(&names) =>
            {
                Ok(())
            }
            _ => Err("it asks for another name"),
        }
    }

    /// The request in PEM, as we write it: for whoever hands it on, so that nobody reads another one in the text
    /// that it came in.
    pub fn to_pem(&self) -> String {
        pem::write("CERTIFICATE REQUEST", &self.der)
    }

    /// The key that a certificate is wanted for.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// What is in a request.
struct Parts<'a> {
    /// Its subject, a whole element.
    subject: &'a [u8],
    /// Its SubjectPublicKeyInfo, a whole element.
    spki: &'a [u8],
    /// The content of its attributes.
    attributes: &'a [u8],
}

/// The parts of a request that is well-formed.
fn take_apart(der: &[u8]) -> Option<Parts<'_>> {
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
    let subject = information.expect(SEQUENCE)?.whole;
    let spki = information.expect(SEQUENCE)?.whole;
    // They are required, but some leave them out when there are none.
    let attributes = match information.is_empty() {
        true => &[],
        false => information.expect(ATTRIBUTES)?.content,
    };
    information.is_empty().then_some(Parts { subject, spki, attributes })
}

/// The value of the extension with names.
fn alt_names(names: &[AltName]) -> Vec<u8> {
    element(SEQUENCE, &[&names.iter().filter_map(general_name).flatten().collect::<Vec<u8>>()])
}

/// Makes a request as Istio's agents do: with the identity that is expected, which the authority is
/// free to overrule.
///
/// # Errors
/// If the key cannot sign.
pub fn request(key: &KeyPair, identity: &SpiffeId) -> Result<String, String> {
    request_for(key, &[AltName::Uri(identity.as_str().to_owned())])
}

/// Makes a request for these names.
///
/// # Errors
/// If the key cannot sign.
pub fn request_for(key: &KeyPair, names: &[AltName]) -> Result<String, String> {
    const TRUE: &[u8] = &[0x01, 0x01, 0xff];
    let names = element(OCTETS, &[&alt_names(names)]);
    let extension = element(SEQUENCE, &[&element(OBJECT, &[ALT_NAMES]), TRUE, &names]);
    let attribute = element(
        SEQUENCE,
        &[&element(OBJECT, &[EXTENSION_REQUEST]), &element(SET, &[&element(SEQUENCE, &[&extension])])],
    );
    let der = key.sign(|_| {
        let subject = element(SEQUENCE, &[]);
        let attributes = element(ATTRIBUTES, &[&attribute]);
        element(SEQUENCE, &[&unsigned(&[0]), &subject, key.public().spki(), &attributes])
    })?;
    Ok(pem::write("CERTIFICATE REQUEST", &der))
}
