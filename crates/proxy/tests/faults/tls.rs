//! Rows of the fault table with TLS between the proxy and the endpoint.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConnection, StreamOwned, SupportedProtocolVersion, version};

use crate::faults::rows::{Endpoint, OK, RETRY, Row, head_only, rest_is_cut, row, send_get};
use crate::support::{PATIENCE, Wire};

/// What an endpoint's TLS is like, and what it does in a session.
#[derive(Clone, Copy)]
pub(crate) struct Server {
    /// What it shows.
    shows: Shown,
    /// What it speaks: ALPN.
    protocols: &'static [&'static str],
    versions: &'static [&'static SupportedProtocolVersion],
    /// It wants a certificate of the client.
    demands: bool,
    then: fn(&mut Session),
}

type Session = StreamOwned<ServerConnection, TcpStream>;

static TLS12: &[&SupportedProtocolVersion] = &[&version::TLS12];
static TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// Certificates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// For `server.test`, by the CA that is trusted.
    Good,
    /// The same by another CA.
    OtherCa,
    /// For `other.test`.
    OtherName,
    /// No longer valid.
    Expired,
    /// Not valid yet.
    Early,
}

struct Certificates {
    ca: String,
    by_kind: Vec<(Shown, CertificateDer<'static>, Vec<u8>)>,
    roots: Arc<rustls::RootCertStore>,
}

static CERTIFICATES: LazyLock<Certificates> = LazyLock::new(|| {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
    };
    let (ca, other) = (authority("ca"), authority("other"));
    let kinds = [Shown::Good, Shown::OtherCa, Shown::OtherName, Shown::Expired, Shown::Early];
    let by_kind = kinds.map(|kind| {
        let name = if kind == Shown::OtherName { "other.test" } else { "server.test" };
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.use_authority_key_identifier_extension = true;
        match kind {
            Shown::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Shown::Early => params.not_before = date_time_ymd(4000, 1, 1),
            Shown::Good | Shown::OtherCa | Shown::OtherName => {}
        }
        let key = KeyPair::generate().expect("a key");
        let issuer = if kind == Shown::OtherCa { &other } else { &ca };
        let certificate = params.signed_by(&key, issuer).expect("signed");
        (kind, certificate.der().clone(), key.serialize_der())
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a CA");
    Certificates { ca: ca.pem(), by_kind: by_kind.into(), roots: Arc::new(roots) }
});

/// Writes the CA that is trusted.
pub(crate) fn write_ca(path: &Path) {
    std::fs::write(path, &CERTIFICATES.ca).expect("written");
}

impl Server {
    const GOOD: Self = Self {
        shows: Shown::Good,
        protocols: &[],
        versions: rustls::ALL_VERSIONS,
        demands: false,
        then: answers,
    };

    /// Has the session of one connection.
    pub(crate) fn serve(self, wire: &Wire) {
        let Ok(stream) = wire.stream.try_clone() else { return };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(self.versions).expect("versions");
        let builder = if self.demands {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&CERTIFICATES.roots), provider)
                    .build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let shown = CERTIFICATES.by_kind.iter().find(|(kind, ..)| *kind == self.shows);
        let (_, certificate, key) = shown.expect("all kinds are there");
        let key = PrivateKeyDer::Pkcs8(key.clone().into());
        let mut config = builder.with_single_cert(vec![certificate.clone()], key).expect("a key that fits");
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let session = ServerConnection::new(Arc::new(config)).expect("a session");
        let mut session = StreamOwned::new(session, stream);
        (self.then)(&mut session);
        let _ = session.flush();
        // Nothing may be reset because it was not read.
        let _ = session.sock.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut session.sock, &mut std::io::sink());
    }
}

/// Reads a head; false: there is none.
fn asked(session: &mut Session) -> bool {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(session.read(&mut byte), Ok(1)) {
            return false;
        }
        head.push(byte[0]);
    }
    true
}

fn answers(session: &mut Session) {
    while asked(session) && session.write_all(OK).is_ok() {}
}

fn says(session: &mut Session, bytes: &[u8]) {
    if asked(session) {
        let _ = session.write_all(bytes);
    }
}

/// Ends the session as one should.
fn ends(session: &mut Session) {
    session.conn.send_close_notify();
}

const HALF: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
const UNTIL_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nhello";

/// A cluster's transport socket with more of its context.
macro_rules! tls {
    ($context:literal) => {
        concat!(
            "transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.",
            "transport_sockets.tls.v3.UpstreamTlsContext, ",
            $context,
            "}}, "
        )
    };
}

const VERIFIES: &str =
    tls!("sni: server.test, common_tls_context: {validation_context: {trusted_ca: {filename: CA_FILE}}}");
const BY_NAME: &str = tls!(
    "sni: server.test, common_tls_context: {validation_context: {trusted_ca: {filename: CA_FILE}, \
     match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: server.test}}]}}"
);
const PINNED: &str = tls!(
    "common_tls_context: {validation_context: {verify_certificate_hash: \
     ['0000000000000000000000000000000000000000000000000000000000000000']}}"
);
const OLD: &str = tls!("common_tls_context: {tls_params: {tls_maximum_protocol_version: TLSv1_2}}");
const NEW: &str = tls!(
    "common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}"
);
const H2: &str = tls!("common_tls_context: {alpn_protocols: [h2]}");

const WORDS: &str = "rustls does not tell that the alert answered the ClientHello";

/// Rows with TLS.
pub(crate) fn rows() -> Vec<Row> {
    use Endpoint::{Dead, Secure, Serves};
    let good = Server::GOOD;
    let secure = |name, server| row(name, Secure(server)).cluster(VERIFIES);
    let shows = |shows| Server { shows, ..good };
    let then = |then| Server { then, ..good };
    vec![
        secure("tls", good),
        row("tls-refused", Dead).cluster(VERIFIES),
        // Certificates.
        secure("tls-other-ca", shows(Shown::OtherCa)),
        secure("tls-other-ca-retried", shows(Shown::OtherCa)).route(RETRY),
        secure("tls-other-name", shows(Shown::OtherName)).cluster(BY_NAME),
        secure("tls-expired", shows(Shown::Expired)),
        secure("tls-not-valid-yet", shows(Shown::Early)),
        secure("tls-not-pinned", good).cluster(PINNED),
        secure("tls-demands-12", Server { demands: true, ..good }).cluster(OLD),
        // Versions and protocols.
        secure("tls-server-too-old", Server { versions: TLS12, ..good }).cluster(NEW),
        secure("tls-server-too-new", Server { versions: TLS13, ..good }).cluster(OLD),
        secure("tls-no-common-protocol", Server { protocols: &["http/1.1"], ..good }).cluster(H2).http2(),
        secure("tls-other-protocol", good).cluster(H2).http2(),
        // Peers that speak something else.
        row(
            "tls-to-http",
            Serves(|mut wire, _, _| {
                wire.fill();
                let _ = wire.stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
                let _ = wire.stream.shutdown(Shutdown::Write);
                while wire.fill() {}
            }),
        )
        .cluster(VERIFIES),
        row(
            "tls-to-garbage",
            Serves(|mut wire, _, _| {
                wire.fill();
                let _ = wire.stream.write_all(b"220 mail.test ESMTP at your service\r\n");
                let _ = wire.stream.shutdown(Shutdown::Write);
                while wire.fill() {}
            }),
        )
        .cluster(VERIFIES),
        row(
            "tls-to-alert",
            Serves(|mut wire, _, _| {
                wire.fill();
                let _ = wire.stream.write_all(&[21, 3, 3, 0, 2, 2, 40]);
                let _ = wire.stream.shutdown(Shutdown::Write);
                while wire.fill() {}
            }),
        )
        .cluster(VERIFIES)
        .but(WORDS),
        row(
            "tls-closed-in-handshake",
            Serves(|mut wire, _, _| {
                wire.fill();
                let _ = wire.stream.shutdown(Shutdown::Write);
                while wire.fill() {}
            }),
        )
        .cluster(VERIFIES),
        row(
            "tls-reset-in-handshake",
            Serves(|mut wire, _, _| {
                wire.fill();
                wire.reset();
            }),
        )
        .cluster(VERIFIES),
        row("tls-silent", Serves(|mut wire, _, _| while wire.fill() {})).cluster(VERIFIES).connect_timeout(),
        row("plain-to-tls", Secure(good)),
        // Sessions that end.
        secure(
            "tls-closed-after-request",
            then(|session| {
                says(session, b"");
                ends(session);
            }),
        ),
        secure("tls-cut-after-request", then(|session| says(session, b""))),
        secure(
            "tls-closed-after-request-retried",
            then(|session| {
                says(session, b"");
                ends(session);
            }),
        )
        .route(RETRY),
        secure(
            "tls-half-body-closed",
            then(|session| {
                says(session, HALF);
                ends(session);
            }),
        )
        .client(cut),
        secure("tls-half-body-cut", then(|session| says(session, HALF))).client(cut),
        secure(
            "tls-until-close",
            then(|session| {
                says(session, UNTIL_CLOSE);
                ends(session);
            }),
        ),
        secure("tls-until-cut", then(|session| says(session, UNTIL_CLOSE))),
        secure(
            "tls-garbage-in-session",
            then(|session| {
                says(session, b"");
                let _ = session.sock.write_all(b"this is no record at all");
            }),
        ),
        secure(
            "tls-broken-record",
            then(|session| {
                says(session, b"");
                let _ = session.sock.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat());
            }),
        ),
        secure(
            "tls-broken-record-in-body",
            then(|session| {
                says(session, HALF);
                let _ = session.flush();
                let _ = session.sock.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat());
            }),
        )
        .client(cut),
    ]
}

fn cut(wire: &mut Wire, name: &str, seen: &mut String, _: &crate::support::Flag) {
    send_get(wire, name);
    head_only(wire, seen);
    rest_is_cut(wire, seen);
}
