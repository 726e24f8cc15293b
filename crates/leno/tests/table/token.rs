//! Tokens of people, signed by one key.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use leno_base::base64::encode_url as base64;
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
