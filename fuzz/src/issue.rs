//! Targets of the certificate authority: what strangers send to be signed.

use std::sync::LazyLock;

use leno_proxy::fuzzing::Target;
use leno_tls::issue::{
    Authority, CertificateRequest, KeyPair, KeyType, Material, SpiffeId, Validity, certificates_to_pem, root,
};
use leno_tls::{AltName, Certificate};

/// The targets of this file.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "certificate_request",
        run: certificate_request,
        dictionary: &[
            "\u{30}\u{0}",
            "\u{6}\u{7}\u{2a}",
            "\u{3}\u{42}\u{0}\u{4}",
            "-----BEGIN CERTIFICATE REQUEST-----\n",
            "-----END CERTIFICATE REQUEST-----\n",
        ],
    },
    Target {
        name: "spiffe_id",
        run: spiffe_id,
        dictionary: &["spiffe://", "/ns/", "/sa/", "..", ",", "%2f"],
    },
];

/// Some time in 2026, seconds since the epoch.
const NOW: i64 = 1_795_347_296;

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let validity = Validity { not_before: NOW, not_after: NOW + 1000 };
    let pem = certificates_to_pem([&root(&key, "fuzz", validity).expect("a root")]).into_bytes();
    let key = key.to_pem().expect("a key").into_bytes();
    let material = Material { certificate: pem.clone(), key, roots: pem, ..Material::default() };
    Authority::load(&material, NOW).expect("an authority")
});

/// Whatever is signed can be read, is for the key of the request and for nobody but whom we say.
fn certificate_request(input: &[u8]) {
    let _ = CertificateRequest::parse(input);
    let Ok(request) = CertificateRequest::from_der(input) else { return };
    let names = [AltName::Uri("spiffe://cluster.local/ns/a/sa/b".to_owned())];
    let validity = Validity { not_before: NOW, not_after: NOW + 10 };
    let signed = AUTHORITY.issue(request.key(), &names, validity).expect("it can be signed");
    let certificate = Certificate::parse(&signed).expect("it can be read");
    assert_eq!(certificate.alt_names(), names);
    assert_eq!(certificate.public_key(), request.key().spki());
}

/// What is taken for an identity has nothing in it that means something elsewhere.
fn spiffe_id(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.as_str(), text);
    assert!(!text.contains([',', '%', '*', ';', '"', '\\', ' ', '?', '#', '@', '\0']));
    if let Some((namespace, account)) = id.account() {
        let again = SpiffeId::of_account(id.domain(), namespace, account);
        assert_eq!(again, Ok(id.clone()));
    }
}
