//! Tokens of people, signed by one key.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use serde_json::{Value, json};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The set of keys that the tokens' issuers publish.
pub(crate) fn keys() -> String {
    json!({"keys": [{"kty": "oct", "alg": "HS256", "kid": "k", "k": base64(SECRET)}]}).to_string()
}

/// Tokens from the names and claims of a document; those whose name begins with `forged` are signed
/// by somebody else.
pub(crate) fn read(documents: &[Value]) -> BTreeMap<String, String> {
    let claims = documents.iter().filter_map(Value::as_object).flatten();
    claims
        .map(|(name, claims)| {
            let secret = if name.starts_with("forged") { &SECRET[1..] } else { SECRET };
            (name.clone(), signed(claims, secret))
        })
        .collect()
}

fn signed(claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| base64(value.to_string().as_bytes());
    let text = format!("{}.{}", part(&json!({"alg": "HS256", "kid": "k", "typ": "JWT"})), part(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
    format!("{text}.{}", base64(tag.as_ref()))
}

/// Base64 of the URL alphabet, without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}
