use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use expect_test::expect;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    Authority, CertificateRequest, KeyPair, KeyType, Material, PublicKey, RequestError, SpiffeId, Validity,
    certificates_to_pem, request, root,
};
use crate::certificate::{AltName, Certificate, KeyKind};
use crate::der::{Reader, SEQUENCE, element};

/// 2026-11-22 11:34:56
const NOW: i64 = 1_795_347_296;
const DAY: i64 = 86_400;
const LONG: Validity = Validity { not_before: NOW - 120, not_after: NOW + 3650 * DAY };

static RSA: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeyType::Rsa2048).expect("a key"));

fn workload() -> AltName {
    AltName::Uri("spiffe://cluster.local/ns/default/sa/reviews".to_owned())
}

fn self_signed(key: &KeyPair) -> Material {
    let certificate = root(key, "cluster.local", LONG).expect("a root");
    let pem = certificates_to_pem([&certificate]).into_bytes();
    let key = key.to_pem().expect("a key").into_bytes();
    Material { certificate: pem.clone(), key, roots: pem, ..Material::default() }
}

fn pem(der: &CertificateDer<'_>) -> Vec<u8> {
    certificates_to_pem([der]).into_bytes()
}

/// An authority below a root, over one more in between.
fn plugged(own: &KeyPair) -> Material {
    let [top, middle] = [(), ()].map(|()| KeyPair::generate(KeyType::P384).expect("a key"));
    let top = Authority::load(&self_signed(&top), NOW).expect("a root");
    let between = top.intermediate(middle.public(), "between", 1, LONG).expect("signed");
    let between_material = Material {
        certificate: pem(&between),
        key: middle.to_pem().expect("a key").into_bytes(),
        roots: top.roots_pem().into_bytes(),
        ..Material::default()
    };
    let middle = Authority::load(&between_material, NOW).expect("an authority");
    let certificate = middle.intermediate(own.public(), "own", 0, LONG).expect("signed");
    Material {
        certificate: pem(&certificate),
        key: own.to_pem().expect("a key").into_bytes(),
        chain: [pem(&certificate), pem(&between), top.roots_pem().into_bytes()].concat(),
        roots: top.roots_pem().into_bytes(),
        revocations: Vec::new(),
    }
}

/// What `openssl` prints; `None` if it is not installed.
fn openssl(folder: &Path, arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output();
    let Ok(output) = output else {
        println!("skipped: openssl is not installed");
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn what_is_signed_is_an_svid() {
    for key in [&*RSA, &KeyPair::generate(KeyType::P256).unwrap(), &KeyPair::generate(KeyType::P384).unwrap()]
    {
        let authority = Authority::load(&self_signed(key), NOW).expect("an authority");
        let leaf = KeyPair::generate(KeyType::P256).expect("a key");
        let validity = Validity { not_before: NOW - 120, not_after: NOW + DAY };
        let der = authority.issue(leaf.public(), &[workload()], validity).expect("signed");
        let (rest, parsed) = X509Certificate::from_der(&der).expect("a certificate");
        assert!(rest.is_empty());
        let extensions: Vec<String> = parsed
            .extensions()
            .iter()
            .map(|one| format!("{} {} {:?}", one.oid, one.critical, one.parsed_extension()))
            .filter(|text| !text.starts_with("2.5.29.35"))
            .collect();
        expect![[r#"
            2.5.29.15 true KeyUsage(KeyUsage { flags: 1 })
            2.5.29.37 false ExtendedKeyUsage(ExtendedKeyUsage { any: false, server_auth: true, client_auth: true, code_signing: false, email_protection: false, time_stamping: false, ocsp_signing: false, other: [] })
            2.5.29.19 true BasicConstraints(BasicConstraints { ca: false, path_len_constraint: None })
            2.5.29.17 true SubjectAlternativeName(SubjectAlternativeName { general_names: [URI("spiffe://cluster.local/ns/default/sa/reviews")] })"#]]
        .assert_eq(&extensions.join("\n"));
        assert!(parsed.tbs_certificate.subject.iter().next().is_none());
        assert_eq!(parsed.tbs_certificate.raw_serial().len(), 16);
        assert_eq!(parsed.issuer().to_string(), "O=cluster.local");
        assert_eq!(parsed.validity().not_after.timestamp(), NOW + DAY);
        let own = authority.certificate();
        let certificate = Certificate::parse(&der).expect("a certificate");
        assert_eq!(certificate.authority_key_id, own.subject_key_id);
    }
}

#[test]
fn openssl_agrees() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("writable");
    let own = KeyPair::generate(KeyType::P256).unwrap();
    for (material, key) in [
        (self_signed(&RSA), KeyType::P256),
        (self_signed(&own), KeyType::P384),
        (plugged(&own), KeyType::Rsa2048),
        (plugged(&RSA), KeyType::P256),
    ] {
        let authority = Authority::load(&material, NOW).expect("an authority");
        let leaf = KeyPair::generate(key).expect("a key");
        let identity = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").expect("an identity");
        write("key.pem", leaf.to_pem().expect("a key").as_bytes());
        let csr = request(&leaf, &identity).expect("a request");
        write("request.pem", csr.as_bytes());
        let Some((good, text)) =
            openssl(folder.path(), &["req", "-in", "request.pem", "-verify", "-noout", "-text"])
        else {
            return;
        };
        assert!(good && text.contains("URI:spiffe://cluster.local/ns/a/sa/b"), "{text}");
        let read = CertificateRequest::parse(csr.as_bytes()).expect("a good request");
        let validity = Validity { not_before: NOW - 120, not_after: NOW + DAY };
        let der = authority.issue(read.key(), &[workload()], validity).expect("signed");
        write("leaf.pem", &pem(&der));
        write("roots.pem", authority.roots_pem().as_bytes());
        write("chain.pem", certificates_to_pem(authority.chain()).as_bytes());
        let time = NOW.to_string();
        let mut arguments = vec!["verify", "-x509_strict", "-attime", &time, "-CAfile", "roots.pem"];
        if !authority.chain().is_empty() {
            arguments.extend(["-untrusted", "chain.pem"]);
        }
        for purpose in ["sslserver", "sslclient"] {
            let all = [&arguments[..], &["-purpose", purpose, "leaf.pem"]].concat();
            let (good, text) = openssl(folder.path(), &all).expect("it was there");
            assert!(good, "{text}");
        }
        let (_, text) =
            openssl(folder.path(), &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]).expect("it is there");
        let (_, public) =
            openssl(folder.path(), &["pkey", "-in", "key.pem", "-pubout"]).expect("it is there");
        assert_eq!(text, public);
    }
}

#[test]
fn requests_of_strangers() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| openssl(folder.path(), arguments);
    let config = "[req]\ndistinguished_name=dn\nreq_extensions=ext\n[dn]\n[ext]\nbasicConstraints=critical,CA:TRUE\n\
        keyUsage=keyCertSign\nsubjectAltName=URI:spiffe://cluster.local/ns/kube-system/sa/admin,DNS:*,DNS:*.com,IP:1.2.3.4\n";
    std::fs::write(folder.path().join("config"), config).expect("writable");
    let mut found = Vec::new();
    for (name, key) in [
        ("P-256", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..]),
        ("P-521", &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"]),
        ("secp256k1", &["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"]),
        ("explicit", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"]),
        ("RSA 2048", &["rsa", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("RSA 1024", &["rsa", "-pkeyopt", "rsa_keygen_bits:1024"]),
        ("RSA exponent 3", &["rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_pubexp:3"]),
        ("Ed25519", &["ed25519"]),
    ] {
        let all = [&["genpkey", "-out", "key.pem", "-algorithm"], key].concat();
        let Some((good, text)) = run(&all) else { return };
        assert!(good, "{text}");
        let all = [
            "req",
            "-new",
            "-key",
            "key.pem",
            "-config",
            "config",
            "-subj",
            "/CN=evil/O=x",
            "-out",
            "request.pem",
        ];
        assert!(run(&all).is_some_and(|(good, _)| good), "{name}");
        let text = std::fs::read(folder.path().join("request.pem")).expect("a request");
        found.push(match CertificateRequest::parse(&text) {
            Ok(request) => {
                let authority = Authority::load(&self_signed(&RSA), NOW).expect("an authority");
                let der = authority.issue(request.key(), &[workload()], LONG).expect("signed");
                let certificate = Certificate::parse(&der).expect("a certificate");
                assert_eq!(certificate.alt_names(), [workload()], "only what we say is in it");
                assert!(!certificate.ca && certificate.common_names.is_empty());
                format!("{name}: {:?}", certificate.key_kind())
            }
            Err(error) => format!("{name}: {error}"),
        });
    }
    expect![[r#"
        P-256: P256
        P-521: P521
        secp256k1: the key is neither RSA nor ECDSA on P-256, P-384 or P-521
        explicit: the key is neither RSA nor ECDSA on P-256, P-384 or P-521
        RSA 2048: Rsa(2048)
        RSA 1024: the RSA key has less than 2048 bits
        RSA exponent 3: Rsa(2048)
        Ed25519: the key is neither RSA nor ECDSA on P-256, P-384 or P-521"#]]
    .assert_eq(&found.join("\n"));
}

fn good_request() -> (Vec<u8>, String) {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let text =
        request(&key, &SpiffeId::parse("spiffe://d/ns/a/sa/b").expect("an identity")).expect("a request");
    let lines: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    (leno_base::base64::decode(lines.as_bytes()).expect("base64"), text)
}

#[test]
fn requests_that_were_tampered_with() {
    let (der, text) = good_request();
    assert!(CertificateRequest::from_der(&der).is_ok());
    // Whatever octet is changed, it is refused: most are signed, the rest is the signature and lengths.
    for at in 0..der.len() {
        let mut bad = der.clone();
        bad[at] ^= 1;
        assert!(CertificateRequest::from_der(&bad).is_err(), "octet {at}");
        assert!(CertificateRequest::from_der(&der[..at]).is_err(), "the first {at} octets");
    }
    let more = |octets: &[u8]| [&der[..], octets].concat();
    let inner = Reader::new(&der).next().expect("a sequence").content.to_vec();
    for (bad, expected) in [
        (more(&[0]), RequestError::Malformed),
        (more(&der), RequestError::Malformed),
        (element(SEQUENCE, &[&inner, &[5, 0]]), RequestError::Malformed),
        (vec![0x30; 1000], RequestError::Malformed),
        (vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff], RequestError::Malformed),
        (vec![0x30, 0x80, 0, 0], RequestError::Malformed),
        (vec![0; super::MOST_BYTES + 1], RequestError::Long),
        (Vec::new(), RequestError::Malformed),
    ] {
        assert_eq!(CertificateRequest::from_der(&bad), Err(expected));
    }
    // The key of another in a request that is signed by our own.
    let other = KeyPair::generate(KeyType::P256).expect("a key");
    let own = CertificateRequest::from_der(&der).expect("good").key().spki().to_vec();
    let at = der.windows(own.len()).position(|window| window == own).expect("it is in it");
    let mut stolen = der.clone();
    stolen[at..at + own.len()].copy_from_slice(other.public().spki());
    assert_eq!(CertificateRequest::from_der(&stolen), Err(RequestError::Signature));
    // A point that is not on the curve.
    let mut off = der.clone();
    off[at + own.len() - 1] ^= 1;
    assert_eq!(CertificateRequest::from_der(&off), Err(RequestError::Signature));

    assert!(CertificateRequest::parse(text.as_bytes()).is_ok());
    assert!(CertificateRequest::parse(format!("\nwords\n{text}\n\n").as_bytes()).is_ok());
    for (bad, expected) in [
        (String::new(), RequestError::Pem),
        (format!("{text}{text}"), RequestError::Pem),
        (text.replace("CERTIFICATE REQUEST", "CERTIFICATE"), RequestError::Pem),
        (text.replace("CERTIFICATE REQUEST", "PRIVATE KEY"), RequestError::Pem),
        (text.replacen("-----END", "-----", 1), RequestError::Pem),
        (format!("{text}{}", "\n".repeat(super::MOST_BYTES)), RequestError::Long),
    ] {
        assert_eq!(CertificateRequest::parse(bad.as_bytes()), Err(expected), "{bad:?}");
    }
}

#[test]
fn keys_are_written_anew() {
    let own = KeyPair::generate(KeyType::P256).expect("a key");
    assert_eq!(PublicKey::from_spki(own.public().spki()).as_ref(), Ok(own.public()));
    // The same key with a length in the long form, which is BER and not DER.
    let spki = own.public().spki();
    let long = [&[0x30, 0x81, (spki.len() - 2) as u8], &spki[2..]].concat();
    assert_eq!(PublicKey::from_spki(&long).as_ref(), Ok(own.public()));
    let rsa = RSA.public();
    assert_eq!((rsa.kind(), PublicKey::from_spki(rsa.spki()).as_ref()), (KeyKind::Rsa(2048), Ok(rsa)));
    let mut compressed = spki.to_vec();
    let at = compressed.len() - 65;
    compressed[at] = 2;
    assert!(PublicKey::from_spki(&compressed).is_err());
    for key in [&own, &*RSA] {
        let again = KeyPair::from_pem(key.to_pem().expect("a key").as_bytes()).expect("a key");
        assert_eq!(again.public(), key.public());
    }
    assert!(KeyPair::from_pem(b"x").is_err());
    assert!(!format!("{own:?}").contains("BEGIN"));
}

#[test]
fn keys_of_other_makers() {
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [
        &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key"][..],
        &["genrsa", "-traditional", "-out", "key", "2048"],
        &["genrsa", "-out", "key", "2048"],
        &["genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "key"],
    ] {
        let Some((good, text)) = openssl(folder.path(), arguments) else { return };
        assert!(good, "{text}");
        let text = std::fs::read(folder.path().join("key")).expect("a key");
        let key = KeyPair::from_pem(&text).expect("a key");
        let authority = Authority::load(&self_signed(&key), NOW);
        assert!(authority.is_ok(), "{arguments:?}: {authority:?}");
    }
}

#[test]
fn authorities_that_are_of_no_use() {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let (good, other) = (plugged(&key), plugged(&RSA));
    let own = Authority::load(&good, NOW).expect("an authority");
    assert_eq!(own.chain().len(), 2, "without the root");
    assert_eq!(own.not_after(), LONG.not_after);
    let leaf = own.issue(key.public(), &[workload()], LONG).expect("signed");
    let full = own.intermediate(key.public(), "too deep", 0, LONG).expect("signed");
    let expired = {
        let key = KeyPair::generate(KeyType::P256).expect("a key");
        let validity = Validity { not_before: NOW - 10, not_after: NOW - 1 };
        let pem = pem(&root(&key, "x", validity).expect("a root"));
        let key = key.to_pem().expect("a key").into_bytes();
        Material { certificate: pem.clone(), key, roots: pem, ..Material::default() }
    };
    let but = |change: &dyn Fn(&mut Material)| {
        let mut material = good.clone();
        change(&mut material);
        material
    };
    let cases: [(&str, Material, i64); 13] = [
        ("no certificate", but(&|it| it.certificate.clear()), NOW),
        ("two", but(&|it| it.certificate = it.chain.clone()), NOW),
        ("no key", but(&|it| it.key.clear()), NOW),
        ("another's key", but(&|it| it.key = other.key.clone()), NOW),
        ("no roots", but(&|it| it.roots.clear()), NOW),
        ("another's roots", but(&|it| it.roots = other.roots.clone()), NOW),
        ("no chain", but(&|it| it.chain.clear()), NOW),
        ("no authority", but(&|it| it.certificate = pem(&leaf)), NOW),
        ("an authority too many", but(&|it| it.certificate = pem(&full)), NOW),
        (
            "malformed",
            but(&|it| it.chain = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec()),
            NOW,
        ),
        ("not yet", good.clone(), NOW - DAY),
        ("not any more", good.clone(), LONG.not_after + 1),
        ("expired", expired, NOW),
    ];
    let mut found = Vec::new();
    for (name, material, now) in cases {
        found.push(match Authority::load(&material, now) {
            Ok(_) => format!("{name}: fine"),
            Err(error) => format!("{name}: {error}"),
        });
    }
    expect![[r#"
        no certificate: the CA certificate: there are 0 certificates instead of one
        two: the CA certificate: there are 3 certificates instead of one
        no key: the CA key: there is no key in it
        another's key: the CA key is not that of the CA certificate
        no roots: the roots: there is no certificate in it
        another's roots: what the CA signs cannot be verified with its roots: certificate signature failure
        no chain: what the CA signs cannot be verified with its roots: unable to get local issuer certificate
        no authority: what the CA signs cannot be verified with its roots: invalid CA certificate
        an authority too many: what the CA signs cannot be verified with its roots: path length constraint exceeded
        malformed: the chain: not a certificate: Parsing Error: Der(UnexpectedTag { expected: Some(Tag(16)), actual: Tag(0) })
        not yet: what the CA signs cannot be verified with its roots: certificate is not yet valid
        not any more: the CA certificate has expired
        expired: the CA certificate has expired"#]].assert_eq(&found.join("\n"));
}

#[test]
fn nothing_outlives_its_authority() {
    let key = KeyPair::generate(KeyType::P256).expect("a key");
    let authority = Authority::load(&self_signed(&key), NOW).expect("an authority");
    let validity = Validity { not_before: NOW, not_after: i64::MAX };
    let der = authority.issue(key.public(), &[workload()], validity).expect("signed");
    assert_eq!(Certificate::parse(&der).expect("a certificate").validity().1, LONG.not_after);
    let late = Validity { not_before: LONG.not_after + 1, not_after: LONG.not_after + DAY };
    let refused = authority.issue(key.public(), &[workload()], late);
    assert_eq!(refused, Err("the CA certificate has expired".to_owned()));
}

/// With the roots of both, what either has signed is worth something.
#[test]
fn roots_overlap() {
    let keys = [(), ()].map(|()| KeyPair::generate(KeyType::P256).expect("a key"));
    let [old, new] = keys.each_ref().map(self_signed);
    let both = [&old.roots[..], &new.roots].concat();
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("writable");
    write("both.pem", &both);
    write("old.pem", &old.roots);
    for (material, by_old) in [(&old, true), (&new, false)] {
        let authority =
            Authority::load(&Material { roots: both.clone(), ..material.clone() }, NOW).expect("fine");
        assert_eq!(authority.roots().len(), 2);
        assert!(authority.chain().is_empty());
        let der = authority.issue(keys[0].public(), &[workload()], LONG).expect("signed");
        write("leaf.pem", &pem(&der));
        for (roots, expected) in [("both.pem", true), ("old.pem", by_old)] {
            let time = NOW.to_string();
            let arguments = ["verify", "-x509_strict", "-attime", &time, "-CAfile", roots, "leaf.pem"];
            let Some((good, text)) = openssl(folder.path(), &arguments) else { return };
            assert_eq!(good, expected, "{roots}: {text}");
        }
    }
}
