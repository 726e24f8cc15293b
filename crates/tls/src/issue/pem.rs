//! Certificates in PEM, read and written (RFC 7468).

use leno_base::base64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// All certificates of a text, in its order.
///
/// # Errors
/// It is malformed.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    all.map_err(|error| format!("malformed PEM: {error}"))
}

/// Certificates as text.
pub fn certificates_to_pem<'c>(certificates: impl IntoIterator<Item = &'c CertificateDer<'c>>) -> String {
    certificates.into_iter().map(|der| write("CERTIFICATE", der)).collect()
}

/// One object as text.
pub(super) fn write(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let digits = base64::encode(der);
    let mut rest = digits.as_str();
    while let Some((line, after)) = rest.split_at_checked(64) {
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
