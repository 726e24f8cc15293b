//! Certificates made: keys, requests for certificates (PKCS #10), and the authority that answers
//! them with SPIFFE X.509 SVIDs.
//!
//! Nothing here decides *who* gets a certificate: whoever calls [`Authority::issue`] knows whose key
//! it is, and names go into a certificate only from there, never from the request. Certificates are
//! written by hand (`der`): what must be in them is little, and then nothing is in them that nobody
//! has chosen; an issuer's name is copied octet by octet from the authority's certificate.
//!
//! Reading order: `spiffe` (names), `key`, `request` (what strangers send), `authority`, `signed` (what
//! another authority answers).

mod authority;
mod key;
mod pem;
mod request;
mod signed;
mod spiffe;
#[cfg(test)]
mod tests;

pub use authority::{Authority, Material, Validity, root};
pub use key::{KeyPair, KeyType, PublicKey};
pub use pem::{certificates, certificates_to_pem};
pub use request::{CertificateRequest, MOST_BYTES, RequestError, request, request_for};
pub use signed::Wanted;
pub use spiffe::SpiffeId;
