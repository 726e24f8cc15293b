//! Protocol versions, cipher suites and curves by the names that Envoy has for them.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite as suites, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2
    Tls12,
    /// TLS 1.3
    Tls13,
}

/// What is negotiated (TlsParameters).
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The lowest version.
    pub minimum: Version,
    /// The highest version.
    pub maximum: Version,
    /// Cipher suites of TLS 1.2 in order of preference; those of TLS 1.3 are fixed.
    suites: Vec<SupportedCipherSuite>,
    /// Those of TLS 1.3.
    suites13: &'static [SupportedCipherSuite],
    groups: Vec<&'static dyn SupportedKxGroup>,
    /// The only signatures that are made and accepted, in order of preference; `None`: all.
    schemes: Option<Arc<[SignatureScheme]>>,
}

/// Suites of TLS 1.3 in BoringSSL's order on machines that have AES instructions.
const TLS13: [SupportedCipherSuite; 3] = [
    suites::TLS13_AES_128_GCM_SHA256,
    suites::TLS13_AES_256_GCM_SHA384,
    suites::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Suites of TLS 1.2 by their names in OpenSSL, in Envoy's default order.
const TLS12: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

/// Suites that Envoy accepts and nobody should use: without forward secrecy, or with CBC.
const LEGACY: [&str; 9] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
];

/// Signature schemes by BoringSSL's names for them. SHA-1 is not accepted by anybody any more.
const SCHEMES: [(&str, Option<SignatureScheme>); 12] = [
    ("rsa_pkcs1_sha1", None),
    ("ecdsa_sha1", None),
    ("rsa_pkcs1_sha256", Some(SignatureScheme::RSA_PKCS1_SHA256)),
    ("rsa_pkcs1_sha384", Some(SignatureScheme::RSA_PKCS1_SHA384)),
    ("rsa_pkcs1_sha512", Some(SignatureScheme::RSA_PKCS1_SHA512)),
    ("ecdsa_secp256r1_sha256", Some(SignatureScheme::ECDSA_NISTP256_SHA256)),
    ("ecdsa_secp384r1_sha384", Some(SignatureScheme::ECDSA_NISTP384_SHA384)),
    ("ecdsa_secp521r1_sha512", Some(SignatureScheme::ECDSA_NISTP521_SHA512)),
    ("rsa_pss_rsae_sha256", Some(SignatureScheme::RSA_PSS_SHA256)),
    ("rsa_pss_rsae_sha384", Some(SignatureScheme::RSA_PSS_SHA384)),
    ("rsa_pss_rsae_sha512", Some(SignatureScheme::RSA_PSS_SHA512)),
    ("ed25519", Some(SignatureScheme::ED25519)),
];

const GROUPS: [(&str, NamedGroup, &dyn SupportedKxGroup); 4] = [
    ("X25519MLKEM768", NamedGroup::X25519MLKEM768, kx_group::X25519MLKEM768),
    ("X25519", NamedGroup::X25519, kx_group::X25519),
    ("P-256", NamedGroup::secp256r1, kx_group::SECP256R1),
    ("P-384", NamedGroup::secp384r1, kx_group::SECP384R1),
];

impl Default for Parameters {
    fn default() -> Self {
        Self {
            minimum: Version::Tls12,
            maximum: Version::Tls13,
            suites: TLS12.iter().map(|(_, suite)| *suite).collect(),
            suites13: &TLS13,
            groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            schemes: None,
        }
    }
}

impl Parameters {
    /// Those of a client that is not told otherwise: TLS 1.2 only, as in Envoy.
    pub fn of_client() -> Self {
        Self { maximum: Version::Tls12, ..Self::default() }
    }

    /// Sets `cipher_suites`. An element may be a group of equals, `[A|B]`.
    ///
    /// # Errors
    /// The names that are not known, or cannot be had.
    pub fn set_suites(&mut self, names: &[String]) -> Result<(), String> {
        let mut chosen = Vec::new();
        let mut unknown = Vec::new();
        let mut legacy = Vec::new();
        for element in names.iter().flat_map(|name| name.split(':')) {
            let group = element.strip_prefix('[').and_then(|group| group.strip_suffix(']'));
            for name in group.unwrap_or(element).split('|') {
                match TLS12.iter().find(|(known, suite)| *known == name || iana(*suite) == Some(name)) {
                    Some((_, suite)) if !chosen.contains(suite) => chosen.push(*suite),
                    Some(_) => {}
                    None if LEGACY.contains(&name) => legacy.push(name),
                    None => unknown.push(name),
                }
            }
        }
        if !unknown.is_empty() {
            return Err(format!(
                "Failed to initialize cipher suites {}. The following ciphers were rejected when tried individually: {}",
                names.join(":"),
                unknown.join(", ")
            ));
        }
        // Deviation: suites without forward secrecy or with CBC are known but never negotiated. A
        // list that has better ones works without them; one that has not is refused.
        if chosen.is_empty() && !legacy.is_empty() {
            return Err(format!("cipher suites are not supported: {}", legacy.join(", ")));
        }
        self.suites = chosen;
        Ok(())
    }

    /// Sets `ecdh_curves`.
    ///
    /// # Errors
    /// The names that are not known.
    pub fn set_curves(&mut self, names: &[String]) -> Result<(), String> {
        let mut groups: Vec<&'static dyn SupportedKxGroup> = Vec::new();
        for name in names.iter().flat_map(|name| name.split(':')) {
            match GROUPS.iter().find(|(known, ..)| *known == name) {
                Some((_, _, group)) => groups.push(*group),
                None => return Err(format!("Failed to initialize ECDH curves {}", names.join(":"))),
            }
        }
        self.groups = groups;
        Ok(())
    }

    /// Sets `signature_algorithms`.
    ///
    /// # Errors
    /// Some are not known, or none can be had.
    pub fn set_schemes(&mut self, names: &[String]) -> Result<(), String> {
        let mut schemes = Vec::new();
        for name in names.iter().flat_map(|name| name.split(':')) {
            match SCHEMES.iter().find(|(known, _)| *known == name) {
                Some((_, scheme)) => schemes.extend(*scheme),
                None => {
                    return Err(format!("Failed to initialize TLS signature algorithms {}", names.join(":")));
                }
            }
        }
        // Deviation: signatures by SHA-1 are known but neither made nor accepted. A list that has
        // better ones works without them; one that has not is refused.
        if schemes.is_empty() {
            return Err(format!("signature algorithms are not supported: {}", names.join(", ")));
        }
        self.schemes = Some(schemes.into());
        Ok(())
    }

    /// Follows the compliance policy `FIPS_202205`, whatever was set before: what BoringSSL's policy
    /// of this name lets pass.
    pub fn set_fips(&mut self) {
        const FIPS13: [SupportedCipherSuite; 2] =
            [suites::TLS13_AES_128_GCM_SHA256, suites::TLS13_AES_256_GCM_SHA384];
        self.minimum = Version::Tls12;
        self.maximum = Version::Tls13;
        self.suites13 = &FIPS13;
        self.suites = vec![
            suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ];
        self.groups = vec![kx_group::SECP256R1, kx_group::SECP384R1];
        self.schemes = Some(
            [
                SignatureScheme::RSA_PKCS1_SHA256,
                SignatureScheme::RSA_PKCS1_SHA384,
                SignatureScheme::RSA_PKCS1_SHA512,
                SignatureScheme::ECDSA_NISTP256_SHA256,
                SignatureScheme::ECDSA_NISTP384_SHA384,
                SignatureScheme::RSA_PSS_SHA256,
                SignatureScheme::RSA_PSS_SHA384,
                SignatureScheme::RSA_PSS_SHA512,
            ]
            .into(),
        );
    }

    /// The only signatures that are made and accepted, if not all are.
    pub(crate) fn schemes(&self) -> Option<&Arc<[SignatureScheme]>> {
        self.schemes.as_ref()
    }

    /// Checks that the range of versions is one.
    ///
    /// # Errors
    /// It is empty.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.minimum > self.maximum {
            return Err("Minimum protocol version exceeds the maximum");
        }
        Ok(())
    }

    pub(crate) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [(Version::Tls13, &rustls::version::TLS13), (Version::Tls12, &rustls::version::TLS12)];
        let wanted = all.into_iter().filter(|(version, _)| (self.minimum..=self.maximum).contains(version));
        wanted.map(|(_, version)| version).collect()
    }

    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        let cipher_suites = self.suites13.iter().chain(&self.suites).copied().collect();
        Arc::new(CryptoProvider { cipher_suites, kx_groups: self.groups.clone(), ..default_provider() })
    }
}

fn iana(suite: SupportedCipherSuite) -> Option<&'static str> {
    suite.suite().as_str()
}

/// Brings signature schemes into BoringSSL's order of preference: the shorter hashes first.
pub(crate) fn sort_schemes(schemes: &mut [SignatureScheme]) {
    const FIRST: [SignatureScheme; 8] = [
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PKCS1_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PSS_SHA512,
        SignatureScheme::RSA_PKCS1_SHA512,
    ];
    schemes.sort_by_key(|scheme| FIRST.iter().position(|first| first == scheme).unwrap_or(FIRST.len()));
}

/// The name of a cipher suite in stats and logs.
pub fn cipher_name(suite: CipherSuite) -> &'static str {
    if let Some((name, _)) = TLS12.iter().find(|(_, known)| known.suite() == suite) {
        return name;
    }
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        _ => "unknown",
    }
}

/// The name of a version in stats and logs.
pub fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "unknown",
    }
}

/// The name of a curve in stats.
pub fn group_name(group: NamedGroup) -> &'static str {
    GROUPS.iter().find(|(_, known, _)| *known == group).map_or("unknown", |(name, ..)| name)
}

/// The name of a signature scheme in stats.
pub fn scheme_name(scheme: SignatureScheme) -> &'static str {
    match scheme {
        SignatureScheme::RSA_PKCS1_SHA256 => "rsa_pkcs1_sha256",
        SignatureScheme::RSA_PKCS1_SHA384 => "rsa_pkcs1_sha384",
        SignatureScheme::RSA_PKCS1_SHA512 => "rsa_pkcs1_sha512",
        SignatureScheme::RSA_PSS_SHA256 => "rsa_pss_rsae_sha256",
        SignatureScheme::RSA_PSS_SHA384 => "rsa_pss_rsae_sha384",
        SignatureScheme::RSA_PSS_SHA512 => "rsa_pss_rsae_sha512",
        SignatureScheme::ECDSA_NISTP256_SHA256 => "ecdsa_secp256r1_sha256",
        SignatureScheme::ECDSA_NISTP384_SHA384 => "ecdsa_secp384r1_sha384",
        SignatureScheme::ECDSA_NISTP521_SHA512 => "ecdsa_secp521r1_sha512",
        SignatureScheme::ED25519 => "ed25519",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::Parameters;

    #[test]
    fn suites_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut parameters = Parameters::default();
        parameters
            .set_suites(&names(&["[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]", "AES128-SHA"]))
            .unwrap();
        assert_eq!(parameters.suites.len(), 2);
        let error = parameters.set_suites(&names(&["AES128-SHA"])).unwrap_err();
        assert_eq!(error, "cipher suites are not supported: AES128-SHA");
        let error = parameters.set_suites(&names(&["ECDHE-RSA-AES128-GCM-SHA256", "ROT13"])).unwrap_err();
        assert_eq!(
            error,
            "Failed to initialize cipher suites ECDHE-RSA-AES128-GCM-SHA256:ROT13. The following ciphers were rejected when tried individually: ROT13"
        );
        assert!(parameters.set_schemes(&names(&["rsa_pss_rsae_sha256:ecdsa_sha1"])).is_ok());
        assert_eq!(parameters.schemes().map(|schemes| schemes.len()), Some(1));
        assert!(parameters.set_schemes(&names(&["rsa_pkcs1_sha1"])).is_err());
        let error = parameters.set_schemes(&names(&["bogus"])).unwrap_err();
        assert_eq!(error, "Failed to initialize TLS signature algorithms bogus");
        assert!(parameters.set_curves(&names(&["P-256", "P-521"])).is_err());
        assert!(parameters.set_curves(&names(&["X25519MLKEM768", "P-384"])).is_ok());
    }
}
