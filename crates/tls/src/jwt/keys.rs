//! Sets of keys (JWKS, RFC 7517) and what they verify.
//!
//! A key that cannot be read is left out, as long as another one can. Besides JWKS there is the
//! form that some identity providers publish: an object of certificates by key id.
//!
//! Deviation: a key verifies the algorithms of its own kind only. Envoy also takes a token that
//! claims another algorithm, if the JWK names none and the key verifies its SHA-256; it also takes
//! RSA keys of less than 2048 bits.

use std::fmt;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use aws_lc_rs::{constant_time, hmac};
use serde_json::{Map, Value};

use super::token::{Algorithm, Status, Token, decode};
use crate::Certificate;

/// Keys that tokens are verified with.
#[derive(Debug)]
pub struct KeySet(Vec<Key>);

/// A key.
struct Key {
    /// `kid`; empty: none.
    id: Box<str>,
    /// `alg`; `None`: whatever its kind allows.
    algorithm: Option<Box<str>>,
    material: Material,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

enum Material {
    /// A public key, by algorithm.
    Public(Vec<(Algorithm, ParsedPublicKey)>),
    /// A shared secret.
    Secret(Box<[u8]>),
}

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// Why there is no key in it, in Envoy's words.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let Ok(Value::Object(set)) = serde_json::from_slice(text) else {
            return Err("Jwks is an invalid JSON");
        };
        let keys = match set.get("keys") {
            Some(Value::Array(keys)) => keys.iter().filter_map(|key| Key::parse(key.as_object()?)).collect(),
            Some(_) => return Err("[keys] in Jwks is not an array"),
            None => certificates(&set)?,
        };
        if keys.is_empty() { Err("Jwks doesn't have any valid public key") } else { Ok(Self(keys)) }
    }

    /// Whether one of the keys has signed the token.
    ///
    /// # Errors
    /// None has.
    pub fn verify(&self, token: &Token) -> Result<(), Status> {
        let mut failure = Status::KidAlgMismatch;
        for key in &self.0 {
            let other_id = !token.key_id.is_empty() && !key.id.is_empty() && key.id != token.key_id;
            let named = key.algorithm.as_deref();
            let other_algorithm = named.is_some_and(|name| Algorithm::of(name) != Some(token.algorithm));
            if other_id || other_algorithm {
                continue;
            }
            failure = Status::VerificationFailed;
            if key.material.verify(token)? {
                return Ok(());
            }
        }
        Err(failure)
    }
}

impl Material {
    /// `Err`: no key would do.
    fn verify(&self, token: &Token) -> Result<bool, Status> {
        let signed = token.signed.as_bytes();
        match self {
            Material::Public(keys) => {
                let Some((_, key)) = keys.iter().find(|(algorithm, _)| *algorithm == token.algorithm) else {
                    return Ok(false);
                };
                if token.algorithm == Algorithm::EdDsa && token.signature.len() != ED25519_SIGNATURE {
                    return Err(Status::Ed25519WrongLength);
                }
                Ok(key.verify_sig(signed, &token.signature).is_ok())
            }
            Material::Secret(secret) => {
                let algorithm = match token.algorithm {
                    Algorithm::Hs256 => hmac::HMAC_SHA256,
                    Algorithm::Hs384 => hmac::HMAC_SHA384,
                    Algorithm::Hs512 => hmac::HMAC_SHA512,
                    _ => return Ok(false),
                };
                let tag = hmac::sign(&hmac::Key::new(algorithm, secret), signed);
                Ok(constant_time::verify_slices_are_equal(tag.as_ref(), &token.signature).is_ok())
            }
        }
    }
}

const ED25519_SIGNATURE: usize = 64;
const ED25519_KEY: usize = 32;

/// What RSA keys verify.
const RSA: &[(Algorithm, &str, &dyn VerificationAlgorithm)] = &[
    (Algorithm::Rs256, "RS256", &signature::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::Rs384, "RS384", &signature::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::Rs512, "RS512", &signature::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::Ps256, "PS256", &signature::RSA_PSS_2048_8192_SHA256),
    (Algorithm::Ps384, "PS384", &signature::RSA_PSS_2048_8192_SHA384),
    (Algorithm::Ps512, "PS512", &signature::RSA_PSS_2048_8192_SHA512),
];

/// What EC keys verify: by `alg`, by `crv`, and the length of a coordinate.
#[allow(clippy::type_complexity, reason = "a name for it would say no more")]
const EC: &[(Algorithm, &str, &str, usize, &dyn VerificationAlgorithm)] = &[
    (Algorithm::Es256, "ES256", "P-256", 32, &signature::ECDSA_P256_SHA256_FIXED),
    (Algorithm::Es384, "ES384", "P-384", 48, &signature::ECDSA_P384_SHA384_FIXED),
    (Algorithm::Es512, "ES512", "P-521", 66, &signature::ECDSA_P521_SHA512_FIXED),
];

impl Key {
    /// `None`: it is none that is known, or malformed.
    fn parse(key: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let algorithm = text("alg").filter(|name| !name.is_empty());
        let material = match text("kty")? {
            "RSA" => rsa(algorithm, &decode(text("n")?)?, &decode(text("e")?)?)?,
            "EC" => {
                // One that is there is a string.
                let curve = key.get("crv").map_or(Some(""), Value::as_str)?;
                ec(algorithm, curve, &decode(text("x")?)?, &decode(text("y")?)?)?
            }
            "oct" => {
                let known = algorithm.is_none_or(|name| matches!(name, "HS256" | "HS384" | "HS512"));
                let secret = decode(text("k")?).filter(|secret| known && !secret.is_empty())?;
                Material::Secret(secret.into())
            }
            "OKP" => {
                let known = algorithm.is_none_or(|name| name == "EdDSA") && text("crv")? == "Ed25519";
                let key = decode(text("x")?).filter(|key| known && key.len() == ED25519_KEY)?;
                public([(Algorithm::EdDsa, &signature::ED25519 as &dyn VerificationAlgorithm)], &key)?
            }
            _ => return None,
        };
        Some(Self {
            id: text("kid").unwrap_or_default().into(),
            algorithm: algorithm.map(Into::into),
            material,
        })
    }
}

fn public(
    algorithms: impl IntoIterator<Item = (Algorithm, &'static dyn VerificationAlgorithm)>,
    key: &[u8],
) -> Option<Material> {
    let parse = |(algorithm, verifier)| Some((algorithm, ParsedPublicKey::new(verifier, key).ok()?));
    Some(Material::Public(algorithms.into_iter().map(parse).collect::<Option<_>>()?))
}

fn rsa(algorithm: Option<&str>, modulus: &[u8], exponent: &[u8]) -> Option<Material> {
    let exponent = unsigned(exponent);
    if !matches!(exponent, [3] | [1, 0, 1]) {
        return None;
    }
    let mut integers = Vec::with_capacity(modulus.len() + 16);
    der(0x02, &positive(unsigned(modulus)), &mut integers);
    der(0x02, &positive(exponent), &mut integers);
    let mut key = Vec::with_capacity(integers.len() + 4);
    der(0x30, &integers, &mut key);
    rsa_key(algorithm, &key)
}

fn rsa_key(algorithm: Option<&str>, der: &[u8]) -> Option<Material> {
    let wanted = RSA.iter().filter(|(_, name, _)| algorithm.is_none_or(|wanted| wanted == *name));
    let material = public(wanted.map(|(algorithm, _, verifier)| (*algorithm, *verifier)), der)?;
    // An `alg` of another kind, or of none.
    let Material::Public(keys) = &material else { return None };
    (!keys.is_empty()).then_some(material)
}

fn ec(algorithm: Option<&str>, curve: &str, x: &[u8], y: &[u8]) -> Option<Material> {
    let fits = |(_, name, crv, ..): &&(_, &str, &str, _, _)| match (algorithm, curve) {
        (None, "") => *crv == "P-256",
        (Some(wanted), "") => wanted == *name,
        (None, curve) => curve == *crv,
        (Some(wanted), curve) => wanted == *name && curve == *crv,
    };
    let (algorithm, _, _, length, verifier) = EC.iter().find(fits)?;
    // An uncompressed point (SEC 1 section 2.3.3).
    let mut point = vec![0x04];
    for coordinate in [x, y] {
        let coordinate = unsigned(coordinate);
        point.resize(point.len() + length.checked_sub(coordinate.len())?, 0);
        point.extend_from_slice(coordinate);
    }
    public([(*algorithm, *verifier)], &point)
}

/// Certificates by key id; all of them are of RSA keys.
fn certificates(set: &Map<String, Value>) -> Result<Vec<Key>, &'static str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
    const END: &str = "\n-----END CERTIFICATE-----\n";
    let texts: Option<Vec<(&String, &str)>> = set
        .iter()
        .map(|(id, value)| Some((id, value.as_str()?.strip_prefix(BEGIN)?.strip_suffix(END)?)))
        .collect();
    let texts = texts.filter(|texts| !texts.is_empty() && texts.iter().all(|(id, _)| !id.is_empty()));
    let texts = texts.ok_or("Jwks does not have [keys] field")?;
    let keys = texts.into_iter().map(|(id, text)| {
        let base64: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let der = leno_base::base64::decode(&base64)?;
        let certificate = Certificate::parse(&der.into()).ok()?;
        let material = rsa_key(None, certificate.public_key())?;
        Some(Key { id: id.as_str().into(), algorithm: None, material })
    });
    keys.collect::<Option<_>>().ok_or("X509 parse pubkey fails")
}

/// A number without leading zeros.
fn unsigned(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default()
}

/// A positive number as DER writes it: a zero in front of a first bit that would be a sign.
fn positive(bytes: &[u8]) -> Vec<u8> {
    let sign = bytes.first().is_none_or(|first| *first >= 0x80);
    let mut number = Vec::with_capacity(bytes.len() + 1);
    if sign {
        number.push(0);
    }
    number.extend_from_slice(bytes);
    number
}

/// Appends a value in DER.
fn der(tag: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    let length = content.len().to_be_bytes();
    let length = unsigned(&length);
    match length {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            // At most eight bytes.
            out.push(0x80 | long.len() as u8);
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(content);
}
