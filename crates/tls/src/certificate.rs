//! A certificate with everything that verification, selection and logs read of it (RFC 5280).

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::der::{Reader, Signed, public_key, text};

/// An entry of the subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AltName {
    /// dNSName.
    Dns(String),
    /// uniformResourceIdentifier.
    Uri(String),
    /// rfc822Name.
    Email(String),
    /// iPAddress.
    Ip(IpAddr),
    /// otherName: the type's OID in dots, and the value as text.
    Other(String, String),
    /// directoryName, DER of the Name.
    Directory(Vec<u8>),
    /// Any other kind, or one that is malformed.
    Unknown,
}

impl AltName {
    /// The name as text, if it has one.
    pub fn text(&self) -> Option<String> {
        match self {
            AltName::Dns(name) | AltName::Uri(name) | AltName::Email(name) | AltName::Other(_, name) => {
                Some(name.clone())
            }
            AltName::Ip(address) => Some(address.to_string()),
            AltName::Directory(_) | AltName::Unknown => None,
        }
    }
}

/// What one name constraint is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Constraint {
    Dns(String),
    Uri(String),
    Email(String),
    /// Address and mask.
    Ip(Vec<u8>),
    /// The DER of a Name; those below it are meant.
    Directory(Vec<u8>),
    /// A kind of name that is not known: nothing may be below such a certificate.
    Unknown,
}

/// The name constraints extension.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameConstraints {
    pub(crate) permitted: Vec<Constraint>,
    pub(crate) excluded: Vec<Constraint>,
}

/// Bits of the key usage extension (RFC 5280 section 4.2.1.3).
pub(crate) mod key_usage {
    pub(crate) const DIGITAL_SIGNATURE: u16 = 1;
    pub(crate) const KEY_ENCIPHERMENT: u16 = 1 << 2;
    pub(crate) const KEY_AGREEMENT: u16 = 1 << 4;
    pub(crate) const KEY_CERT_SIGN: u16 = 1 << 5;
    pub(crate) const CRL_SIGN: u16 = 1 << 6;
}

/// The extended key usage extension, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtendedKeyUsage {
    pub(crate) server: bool,
    pub(crate) client: bool,
    pub(crate) any: bool,
}

/// The kind of a certificate's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, with the modulus' bits.
    Rsa(usize),
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// Anything else (Ed25519, other curves).
    Other,
}

/// A parsed certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: CertificateDer<'static>,
    /// The issuer's Name, DER.
    pub(crate) issuer: Vec<u8>,
    /// The subject's Name, DER.
    pub(crate) subject: Vec<u8>,
    /// The subject's common names.
    pub(crate) common_names: Vec<String>,
    /// The serial number's content octets.
    pub(crate) serial: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
    /// Kind of the key.
    pub(crate) key: KeyKind,
    /// Seconds since the epoch.
    pub(crate) not_before: i64,
    /// Seconds since the epoch.
    pub(crate) not_after: i64,
    /// Below X.509 v3: there are no extensions.
    pub(crate) old: bool,
    pub(crate) ca: bool,
    pub(crate) path_length: Option<u32>,
    pub(crate) key_usage: Option<u16>,
    pub(crate) extended_key_usage: Option<ExtendedKeyUsage>,
    pub(crate) alt_names: Vec<AltName>,
    pub(crate) name_constraints: Option<NameConstraints>,
    pub(crate) subject_key_id: Option<Vec<u8>>,
    pub(crate) authority_key_id: Option<Vec<u8>>,
    /// An extension is critical that nothing here understands, or is malformed.
    pub(crate) unhandled_critical: bool,
    /// RFC 7633: the server must staple an OCSP response.
    pub(crate) must_staple: bool,
}

/// RFC 7633 (TLS feature).
const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";

impl Certificate {
    /// Parses one certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| format!("not a certificate: {error}"))?;
        if !rest.is_empty() || Signed::parse(der).is_none() {
            return Err("not a certificate: bytes behind it, or a malformed signature".to_owned());
        }
        let tbs = &parsed.tbs_certificate;
        let text =
            |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
        let mut certificate = Self {
            der: CertificateDer::from(der.to_vec()),
            issuer: tbs.issuer.as_raw().to_vec(),
            subject: tbs.subject.as_raw().to_vec(),
            common_names: tbs.subject.iter_common_name().filter_map(text).collect(),
            serial: tbs.raw_serial().to_vec(),
            spki: tbs.subject_pki.raw.to_vec(),
            key: key_kind(tbs.subject_pki.raw),
            not_before: tbs.validity.not_before.timestamp(),
            not_after: tbs.validity.not_after.timestamp(),
            old: tbs.version.0 < 2,
            ca: false,
            path_length: None,
            key_usage: None,
            extended_key_usage: None,
            alt_names: Vec::new(),
            name_constraints: None,
            subject_key_id: None,
            authority_key_id: None,
            unhandled_critical: false,
            must_staple: false,
        };
        for extension in tbs.extensions() {
            certificate.add(extension);
        }
        Ok(certificate)
    }

    fn add(&mut self, extension: &x509_parser::extensions::X509Extension<'_>) {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                self.ca = constraints.ca;
                self.path_length = constraints.path_len_constraint;
            }
            ParsedExtension::KeyUsage(usage) => self.key_usage = Some(usage.flags),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                self.extended_key_usage = Some(ExtendedKeyUsage {
                    server: usage.server_auth,
                    client: usage.client_auth,
                    any: usage.any,
                });
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                self.alt_names.extend(names.general_names.iter().map(alt_name));
            }
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = |subtrees: &Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| {
                    subtrees.iter().flatten().map(|subtree| constraint(&subtree.base)).collect()
                };
                self.name_constraints = Some(NameConstraints {
                    permitted: subtrees(&constraints.permitted_subtrees),
                    excluded: subtrees(&constraints.excluded_subtrees),
                });
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            // Policies restrict nothing as long as nobody asks for one.
            ParsedExtension::CertificatePolicies(_) | ParsedExtension::PolicyMappings(_) => {}
            _ if extension.oid.to_id_string() == TLS_FEATURE => self.must_staple = true,
            _ => self.unhandled_critical |= extension.critical,
        }
    }

    /// The certificate as it came.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its public key: SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// What its key is.
    pub fn key_kind(&self) -> KeyKind {
        self.key
    }

    /// Subject alternative names, in order.
    pub fn alt_names(&self) -> &[AltName] {
        &self.alt_names
    }

    /// Start and end of its validity, seconds since the epoch.
    pub fn validity(&self) -> (i64, i64) {
        (self.not_before, self.not_after)
    }

    /// The serial number, lower-case hexadecimal.
    pub fn serial(&self) -> String {
        let digits = self.serial.iter().skip_while(|octet| **octet == 0);
        let text: String = digits.map(|octet| format!("{octet:02x}")).collect();
        if text.is_empty() { "0".to_owned() } else { text }
    }

    /// Whether issuer and subject are the same.
    pub fn self_issued(&self) -> bool {
        self.issuer == self.subject
    }
}

pub(crate) fn alt_name(name: &GeneralName<'_>) -> AltName {
    match name {
        GeneralName::DNSName(name) => AltName::Dns((*name).to_owned()),
        GeneralName::URI(name) => AltName::Uri((*name).to_owned()),
        GeneralName::RFC822Name(name) => AltName::Email((*name).to_owned()),
        GeneralName::IPAddress(octets) => ip(octets).map_or(AltName::Unknown, AltName::Ip),
        GeneralName::OtherName(oid, value) => {
            // The value is wrapped in an explicit tag.
            let inner = Reader::new(value).next().and_then(|element| match element.tag {
                0xa0 => Reader::new(element.content).next(),
                _ => Some(element),
            });
            let value = inner.and_then(text);
            value.map_or(AltName::Unknown, |value| AltName::Other(oid.to_id_string(), value))
        }
        GeneralName::DirectoryName(name) => AltName::Directory(name.as_raw().to_vec()),
        _ => AltName::Unknown,
    }
}

fn constraint(name: &GeneralName<'_>) -> Constraint {
    match name {
        GeneralName::DNSName(name) => Constraint::Dns((*name).to_owned()),
        GeneralName::URI(name) => Constraint::Uri((*name).to_owned()),
        GeneralName::RFC822Name(name) => Constraint::Email((*name).to_owned()),
        GeneralName::IPAddress(octets) if matches!(octets.len(), 8 | 32) => Constraint::Ip(octets.to_vec()),
        GeneralName::DirectoryName(name) => Constraint::Directory(name.as_raw().to_vec()),
        _ => Constraint::Unknown,
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

pub(crate) fn key_kind(spki: &[u8]) -> KeyKind {
    use rustls::pki_types::alg_id;
    let Some((algorithm, key)) = public_key(spki) else { return KeyKind::Other };
    let is = |known: rustls::pki_types::AlgorithmIdentifier| algorithm == known.as_ref();
    if is(alg_id::ECDSA_P256) {
        KeyKind::P256
    } else if is(alg_id::ECDSA_P384) {
        KeyKind::P384
    } else if is(alg_id::ECDSA_P521) {
        KeyKind::P521
    } else if is(alg_id::RSA_ENCRYPTION) {
        let modulus = Reader::new(key).sequence().and_then(|mut parts| parts.next());
        let octets = modulus.map_or(&[][..], |modulus| modulus.content);
        let significant = octets.iter().position(|octet| *octet != 0).and_then(|start| octets.get(start..));
        let bits = significant.map_or(0, |octets| {
            octets.len() * 8 - octets.first().map_or(0, |first| first.leading_zeros() as usize)
        });
        KeyKind::Rsa(bits)
    } else {
        KeyKind::Other
    }
}
