//! Private keys that sign, and public keys as certificates hold them.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{AlgorithmIdentifier, PrivateKeyDer, alg_id};

use super::pem;
use crate::certificate::{KeyKind, key_kind};
use crate::der::{SEQUENCE, bit_string, element, public_key};

/// What kind of key to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 3072 bits.
    Rsa3072,
    /// RSA of 4096 bits.
    Rsa4096,
}

impl KeyType {
    /// RSA of so many bits.
    pub fn rsa(bits: u32) -> Option<KeyType> {
        match bits {
            2048 => Some(KeyType::Rsa2048),
            3072 => Some(KeyType::Rsa3072),
            4096 => Some(KeyType::Rsa4096),
            _ => None,
        }
    }
}

/// A private key with its public half.
pub struct KeyPair {
    signer: Signer,
    public: PublicKey,
}

enum Signer {
    Ecdsa(EcdsaKeyPair, AlgorithmIdentifier),
    Rsa(rsa::KeyPair),
}

/// A public key of a kind that the mesh can use: RSA of 2048 to 8192 bits, or ECDSA on P-256, P-384
/// or P-521.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    kind: KeyKind,
    /// SubjectPublicKeyInfo, in DER as it must be, whatever it was read from.
    spki: Vec<u8>,
}

/// RSA keys that are accepted, bits. More cost those who verify too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The curves, and how each signs.
const CURVES: [(&EcdsaSigningAlgorithm, AlgorithmIdentifier); 3] = [
    (&ECDSA_P256_SHA256_ASN1_SIGNING, alg_id::ECDSA_SHA256),
    (&ECDSA_P384_SHA384_ASN1_SIGNING, alg_id::ECDSA_SHA384),
    (&ECDSA_P521_SHA512_ASN1_SIGNING, alg_id::ECDSA_SHA512),
];

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key itself.
        f.debug_tuple("KeyPair").field(&self.public.kind).finish()
    }
}

impl KeyPair {
    /// A new key.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn generate(kind: KeyType) -> Result<KeyPair, String> {
        let size = match kind {
            KeyType::P256 | KeyType::P384 => {
                let (algorithm, signs) = CURVES[usize::from(kind == KeyType::P384)];
                let pair = EcdsaKeyPair::generate(algorithm).map_err(|_| "no key can be made")?;
                return KeyPair::new(Signer::Ecdsa(pair, signs));
            }
            KeyType::Rsa2048 => rsa::KeySize::Rsa2048,
            KeyType::Rsa3072 => rsa::KeySize::Rsa3072,
            KeyType::Rsa4096 => rsa::KeySize::Rsa4096,
        };
        KeyPair::new(Signer::Rsa(rsa::KeyPair::generate(size).map_err(|_| "no key can be made")?))
    }

    /// Reads a key in PEM: PKCS #8, PKCS #1 or SEC 1.
    ///
    /// # Errors
    /// It is malformed, or of a kind that is not supported.
    pub fn from_pem(text: &[u8]) -> Result<KeyPair, String> {
        let der = PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => "there is no key in it".to_owned(),
            error => format!("malformed PEM: {error}"),
        })?;
        let rsa = match &der {
            PrivateKeyDer::Pkcs1(key) => rsa::KeyPair::from_der(key.secret_pkcs1_der()).ok(),
            PrivateKeyDer::Pkcs8(key) => rsa::KeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
            _ => None,
        };
        if let Some(rsa) = rsa {
            return KeyPair::new(Signer::Rsa(rsa));
        }
        for (algorithm, signs) in CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, der.secret_der()) {
                return KeyPair::new(Signer::Ecdsa(pair, signs));
            }
        }
        Err("it is no key that is supported: RSA from 2048 to 8192 bits, or ECDSA on P-256, P-384 or P-521"
            .to_owned())
    }

    fn new(signer: Signer) -> Result<KeyPair, String> {
        let spki = match &signer {
            Signer::Ecdsa(pair, _) => pair.public_key().as_der().map(|der| der.as_ref().to_vec()),
            Signer::Rsa(pair) => pair.public_key().as_der().map(|der| der.as_ref().to_vec()),
        };
        let public = PublicKey::from_spki(&spki.map_err(|_| "its public half cannot be told")?)?;
        Ok(KeyPair { signer, public })
    }

    /// The key in PEM, as PKCS #8.
    ///
    /// # Errors
    /// If the library cannot write it.
    pub fn to_pem(&self) -> Result<String, String> {
        let failed = |_| "the key cannot be written".to_owned();
        match &self.signer {
            Signer::Ecdsa(pair, _) => {
                pair.to_pkcs8v1().map(|der| pem::write("PRIVATE KEY", der.as_ref())).map_err(failed)
            }
            Signer::Rsa(pair) => AsDer::<Pkcs8V1Der<'static>>::as_der(pair)
                .map(|der| pem::write("PRIVATE KEY", der.as_ref()))
                .map_err(failed),
        }
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Makes a signed object (RFC 5280 section 4.1.1) of what is to be signed; `content` makes it of
    /// the algorithm, which is part of it in certificates.
    pub(super) fn sign(&self, content: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<Vec<u8>, String> {
        let algorithm = match &self.signer {
            Signer::Ecdsa(_, algorithm) => *algorithm,
            Signer::Rsa(_) => alg_id::RSA_PKCS1_SHA256,
        };
        let algorithm = element(SEQUENCE, &[algorithm.as_ref()]);
        let content = content(&algorithm);
        let (rng, failed) = (SystemRandom::new(), |_| "it cannot be signed".to_owned());
        let signature = match &self.signer {
            Signer::Ecdsa(pair, _) => pair.sign(&rng, &content).map_err(failed)?.as_ref().to_vec(),
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &rng, &content, &mut signature).map_err(failed)?;
                signature
            }
        };
        Ok(element(SEQUENCE, &[&content, &algorithm, &bit_string(&signature)]))
    }
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo. What is kept is written anew: an encoding that is not DER does not
    /// get into a certificate.
    ///
    /// # Errors
    /// What is wrong with the key.
    pub fn from_spki(spki: &[u8]) -> Result<PublicKey, &'static str> {
        let kind = key_kind(spki);
        let (_, key) = public_key(spki).ok_or("the public key is malformed")?;
        let (algorithm, key) = match kind {
            KeyKind::P256 => (alg_id::ECDSA_P256, point(key, 32)?.to_vec()),
            KeyKind::P384 => (alg_id::ECDSA_P384, point(key, 48)?.to_vec()),
            KeyKind::P521 => (alg_id::ECDSA_P521, point(key, 66)?.to_vec()),
            KeyKind::Rsa(bits) if bits < *RSA_BITS.start() => {
                return Err("the RSA key has less than 2048 bits");
            }
            KeyKind::Rsa(bits) if bits > *RSA_BITS.end() => {
                return Err("the RSA key has more than 8192 bits");
            }
            KeyKind::Rsa(_) => {
                let key = rsa::PublicKey::from_der(key).map_err(|_| "the RSA key is malformed")?;
                (alg_id::RSA_ENCRYPTION, key.as_ref().to_vec())
            }
            KeyKind::Other => {
                return Err("the key is neither RSA nor ECDSA on P-256, P-384 or P-521");
            }
        };
        let algorithm = element(SEQUENCE, &[algorithm.as_ref()]);
        Ok(PublicKey { kind, spki: element(SEQUENCE, &[&algorithm, &bit_string(&key)]) })
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The bits of the key alone.
    pub(super) fn bits(&self) -> &[u8] {
        public_key(&self.spki).map(|(_, bits)| bits).unwrap_or_default()
    }
}

/// A point of a curve in uncompressed form; whether it is on the curve shows when a signature is
/// checked with it.
fn point(key: &[u8], octets: usize) -> Result<&[u8], &'static str> {
    match key.split_first() {
        Some((4, coordinates)) if coordinates.len() == 2 * octets => Ok(key),
        _ => Err("the ECDSA key is not an uncompressed point of its curve"),
    }
}
