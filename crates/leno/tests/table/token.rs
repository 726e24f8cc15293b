//! Tokens of people, signed by one of two keys.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use leno_base::base64::encode_url as base64;
use serde_json::{Value, json};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// What comes after it.
const NEXT: &[u8] = b"fedcba9876543210fedcba9876543210";

/// The set of keys that the tokens' issuers publish.
pub(crate) fn keys() -> String {
    json!({"keys": [key("k", SECRET)]}).to_string()
}

/// The set after a rotation.
pub(crate) fn next_keys() -> String {
    json!({"keys": [key("next", NEXT)]}).to_string()
}

fn key(id: &str, secret: &[u8]) -> Value {
    json!({"kty": "oct", "alg": "HS256", "kid": id, "k": base64(secret)})
}

/// Tokens from the names and claims of a document; those whose name begins with `forged` are signed
/// by somebody else, and those whose name begins with `next` by the key that comes next.
pub(crate) fn read(documents: &[Value]) -> BTreeMap<String, String> {
    let claims = documents.iter().filter_map(Value::as_object).flatten();
    claims
        .map(|(name, claims)| {
            let (id, secret) = match name.as_str() {
                name if name.starts_with("forged") => ("k", &SECRET[1..]),
                name if name.starts_with("next") => ("next", NEXT),
                _ => ("k", SECRET),
            };
            (name.clone(), signed(claims, id, secret))
        })
        .collect()
}

fn signed(claims: &Value, id: &str, secret: &[u8]) -> String {
    let part = |value: &Value| base64(value.to_string().as_bytes());
    let text = format!("{}.{}", part(&json!({"alg": "HS256", "kid": id, "typ": "JWT"})), part(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
    format!("{text}.{}", base64(tag.as_ref()))
}
