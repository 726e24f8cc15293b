//! What is told of certificates in access logs, `x-forwarded-client-cert` and `/certs`. Parsed
//! when first asked for: most connections are never asked.

use std::cell::OnceCell;

use rustls::pki_types::CertificateDer;

use crate::certificate::{AltName, Certificate};
use crate::names::{hex, rfc2253};
use crate::verify::sha256;

/// The certificates that a peer has shown, its own first.
#[derive(Debug)]
pub struct PeerCertificates {
    chain: Vec<CertificateDer<'static>>,
    own: OnceCell<Option<Box<Certificate>>>,
}

impl PeerCertificates {
    /// `None`: there are none.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Option<Self> {
        (!chain.is_empty()).then(|| Self { chain, own: OnceCell::new() })
    }

    /// All of them.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Its own, parsed; `None`: it is malformed, and nobody has verified it.
    pub fn own(&self) -> Option<&Certificate> {
        let parse = || Certificate::parse(self.chain.first()?).ok().map(Box::new);
        self.own.get_or_init(parse).as_deref()
    }

    /// What is told of each certificate, joined by commas.
    pub fn each(&self, tell: fn(&CertificateDer<'static>) -> String) -> String {
        self.chain.iter().map(tell).collect::<Vec<_>>().join(",")
    }

    /// What is told of the issuer's certificate, if the peer has shown that too.
    pub fn of_issuer(&self, tell: fn(&CertificateDer<'static>) -> String) -> String {
        self.chain.get(1).map(tell).unwrap_or_default()
    }

    /// SHA-256 of a certificate, lower-case hexadecimal.
    pub fn sha256_of(der: &CertificateDer<'static>) -> String {
        hex(sha256(der).as_ref())
    }

    /// SHA-1 of a certificate, lower-case hexadecimal.
    pub fn sha1_of(der: &CertificateDer<'static>) -> String {
        use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
        hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
    }

    /// The serial number of a certificate, lower-case hexadecimal.
    pub fn serial_of(der: &CertificateDer<'static>) -> String {
        Certificate::parse(der).map(|certificate| certificate.serial()).unwrap_or_default()
    }

    /// SHA-256 of its own, lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        self.chain.first().map(Self::sha256_of).unwrap_or_default()
    }

    /// SHA-1 of its own, lower-case hexadecimal.
    pub fn sha1(&self) -> String {
        self.chain.first().map(Self::sha1_of).unwrap_or_default()
    }

    /// Its own in PEM, URL-encoded as in `x-forwarded-client-cert`.
    pub fn pem(&self) -> String {
        self.chain.first().map(url_encoded_pem).unwrap_or_default()
    }

    /// All of them in PEM, URL-encoded.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(url_encoded_pem).collect()
    }
}

impl Certificate {
    /// The subject as RFC 2253 has it.
    pub fn subject_text(&self) -> String {
        rfc2253(&self.subject)
    }

    /// The issuer as RFC 2253 has it.
    pub fn issuer_text(&self) -> String {
        rfc2253(&self.issuer)
    }

    /// Its DNS names.
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.alt_names().iter().filter_map(|name| match name {
            AltName::Dns(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Its URIs.
    pub fn uris(&self) -> impl Iterator<Item = &str> {
        self.alt_names().iter().filter_map(|name| match name {
            AltName::Uri(uri) => Some(uri.as_str()),
            _ => None,
        })
    }

    /// Its IP addresses.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.alt_names().iter().filter_map(|name| match name {
            AltName::Ip(address) => Some(*address),
            _ => None,
        })
    }

    /// Its e-mail addresses.
    pub fn emails(&self) -> impl Iterator<Item = &str> {
        self.alt_names().iter().filter_map(|name| match name {
            AltName::Email(email) => Some(email.as_str()),
            _ => None,
        })
    }

    /// Its other names, as text.
    pub fn other_names(&self) -> impl Iterator<Item = &str> {
        self.alt_names().iter().filter_map(|name| match name {
            AltName::Other(_, value) => Some(value.as_str()),
            _ => None,
        })
    }
}

fn url_encoded_pem(der: &CertificateDer<'static>) -> String {
    let mut out = String::with_capacity(der.len() * 3 / 2 + 100);
    out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
    for line in leno_base::base64::encode(der).as_bytes().chunks(64) {
        for byte in line {
            match byte {
                b'+' => out.push_str("%2B"),
                b'/' => out.push_str("%2F"),
                b'=' => out.push_str("%3D"),
                byte => out.push(char::from(*byte)),
            }
        }
        out.push_str("%0A");
    }
    out.push_str("-----END%20CERTIFICATE-----%0A");
    out
}
