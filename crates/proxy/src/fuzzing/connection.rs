//! What peers send before, beside or instead of HTTP: first bytes, PROXY protocol headers,
//! certificates, load reports.

use leno_tls::{Certificate, PeerCertificates};

use crate::cluster::lb::orca::LoadReport;
use crate::http::headers::HeaderMap;
use crate::listener::inspect::{self, Verdict};
use crate::proxy_protocol::read::{Header, Reading, read};
use crate::proxy_protocol::{Origin, PassThrough, UpstreamHeader, Version, write};

/// A verdict once given holds however much more comes.
fn settled<T: PartialEq + std::fmt::Debug>(input: &[u8], inspect: impl Fn(&[u8]) -> Verdict<T>) {
    let whole = inspect(input);
    let part = inspect(input.get(..input.len() / 2).unwrap_or_default());
    assert!(part == Verdict::NeedMore || part == whole, "{part:?}, then {whole:?}");
}

/// ClientHellos.
pub(super) fn tls_inspector(input: &[u8]) {
    settled(input, inspect::tls::inspect);
}

/// First bytes of plain connections.
pub(super) fn http_inspector(input: &[u8]) {
    settled(input, inspect::http::inspect);
}

/// PROXY protocol headers, at once and byte by byte; what is passed on says the same.
pub(super) fn proxy_protocol(input: &[u8]) {
    let whole = read(input);
    let parts = (0..input.len().min(700)).map(|end| read(input.get(..end).unwrap_or_default()));
    if let Some(early) = parts.into_iter().find(|part| *part != Reading::NeedMore) {
        assert_eq!(early, whole, "the header depends on how it arrives");
    }
    let Reading::Header(header) = whole else { return };
    assert!(header.length <= input.len(), "longer than all there is");
    let Some((source, destination)) = header.addresses else { return };
    let origin = Origin { source, destination, tlvs: header.tlvs };
    for version in [Version::V1, Version::V2] {
        let settings = UpstreamHeader { version, pass_through: PassThrough::All, added: Vec::new() };
        let bytes = write::header(&settings, Some(&origin), destination, source);
        let tlvs = if version == Version::V2 { origin.tlvs.clone() } else { Vec::new() };
        let expected = Header { version, length: bytes.len(), addresses: Some((source, destination)), tlvs };
        assert_eq!(read(&bytes), Reading::Header(expected));
    }
}

/// Certificates that peers show, before anybody has verified them.
pub(super) fn certificate(input: &[u8]) {
    let der = rustls::pki_types::CertificateDer::from(input.to_vec());
    if let Ok(certificate) = Certificate::parse(&der) {
        let _ = (certificate.validity(), certificate.key_kind());
        certificate.alt_names().iter().for_each(|name| drop(name.text()));
        drop(certificate.serial());
    }
    let Some(peer) = PeerCertificates::new(vec![der]) else { return };
    drop((peer.pem(), peer.sha256(), peer.chain_pem()));
    drop((peer.each(PeerCertificates::serial_of), peer.of_issuer(PeerCertificates::sha256_of)));
}

/// Load reports of endpoints, in each of their forms; the first byte says which.
pub(super) fn load_report(input: &[u8]) {
    let Some((kind, value)) = input.split_first() else { return };
    let name: &[u8] = match kind % 3 {
        0 => b"endpoint-load-metrics",
        1 => b"endpoint-load-metrics-json",
        _ => b"endpoint-load-metrics-bin",
    };
    let mut head = HeaderMap::new();
    head.append(name, value);
    let Some(report) = LoadReport::read(&head) else { return };
    let names = ["named_metrics.*".to_owned(), "utilization.a".to_owned()];
    let _ = (report.utilization(&names), report.weight(&names, 1.5));
}
