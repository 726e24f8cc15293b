//! Tokens, keys, locations and requirements without a proxy; `tests/filters` has the rest.

use std::time::Instant;

use expect_test::{Expect, expect};
use leno_base::base64::encode_url as base64;
use leno_tls::jwt::{KeySet, Status, Token};
use serde_json::{Value, json};

use super::locations::padded;

fn token(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| base64(value.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), base64(signature))
}

fn why(text: &str) -> &'static str {
    Token::parse(text).map_or_else(Status::text, |_| "good")
}

#[test]
fn what_can_be_wrong_with_a_token() {
    let header = json!({"alg": "HS256"});
    let claims = |claims: Value| why(&token(&header, &claims, b"s"));
    let headed = |header: Value| why(&token(&header, &json!({}), b"s"));
    let rows = [
        why("a.b"),
        why("a.b.c.d"),
        why("+.b.c"),
        why("YQ.b.c"),
        why(&format!("{}..{}.{}", base64(b"{\"alg\": \"ES512\"}"), base64(b"{}"), "AA")),
        why(&format!("{}.{}.{}", base64(b"{\"alg\": \"EdDSA\"}"), "***", "AA")),
        why(&format!("{}.{}.{}", base64(b"{\"alg\": \"EdDSA\"}"), base64(b"[]"), "AA")),
        why(&format!("{}.{}.{}", base64(b"{\"alg\": \"EdDSA\"}"), base64(b"{}"), "*")),
        headed(json!({})),
        headed(json!({"alg": 1})),
        headed(json!({"alg": "none"})),
        headed(json!({"alg": "PS384", "kid": 1})),
        claims(json!({"iss": 1})),
        claims(json!({"sub": null})),
        claims(json!({"iat": "1"})),
        claims(json!({"nbf": -1})),
        claims(json!({"exp": 1e30})),
        claims(json!({"exp": 1.5, "aud": ["a", "b"]})),
        claims(json!({"jti": 5})),
        claims(json!({"aud": ["a", 5]})),
    ];
    let expected: Expect = expect![[r#"
        Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections
        Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections
        Jwt header is an invalid Base64url encoded
        Jwt header is an invalid JSON
        good
        Jwt payload is an invalid Base64url encoded
        Jwt payload is an invalid JSON
        Jwt signature is an invalid Base64url encoded
        Jwt header [alg] field is required and must be a string
        Jwt header [alg] field is required and must be a string
        Jwt header [alg] is not supported
        Jwt header [kid] field is not a string
        Jwt payload [iss] field is not a string
        Jwt payload [sub] field is not a string
        Jwt payload [iat] field is not an integer
        Jwt payload [nbf] field is not a positive 64 bit integer
        Jwt payload [exp] field is not a positive 64 bit integer
        good
        Jwt payload [jti] field is not a string
        Jwt payload [aud] field is not a string or string list"#]];
    expected.assert_eq(&rows.join("\n"));
}

#[test]
fn times_may_differ_by_the_skew() {
    let token = |claims: Value| Token::parse(&token(&json!({"alg": "HS256"}), &claims, b"s")).expect("good");
    let limits = token(json!({"nbf": 1000, "exp": 2000}));
    let checks = [939, 940, 2060, 2061].map(|now| limits.check_time(now, 60));
    assert_eq!(checks, [Err(Status::NotYetValid), Ok(()), Ok(()), Err(Status::Expired)]);
    assert_eq!(token(json!({"exp": 0})).check_time(u64::MAX, 0), Ok(()), "none is for ever");
}

#[test]
fn large_numbers_are_doubles() {
    let text = token(&json!({"alg": "HS256"}), &json!({"a": 9_007_199_254_740_993_u64, "b": [-1]}), b"s");
    let token = Token::parse(&text).expect("good");
    assert_eq!(Value::Object(token.claims), json!({"a": 9_007_199_254_740_992_u64, "b": [-1]}));
}

/// The examples of RFC 7515 appendix A and RFC 8037 appendix A.4.
#[test]
fn examples_of_the_rfcs() {
    let hs256 = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let secret = json!({"keys": [{"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}]});
    let es256 = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let curve = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]});
    let rs256 = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let rsa = json!({"keys": [{"kty": "RSA", "kid": "r", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}]});
    let eddsa = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let edwards = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]});
    let check = |text: &str, set: &Value, expected: Result<(), Status>| {
        let keys = KeySet::parse(set.to_string().as_bytes()).expect("keys");
        let token = Token::parse(text).expect("a token");
        assert_eq!(keys.verify(&token), expected, "{text}");
    };
    let good = [(hs256, &secret), (es256, &curve), (rs256, &rsa)];
    for (text, set) in good {
        check(text, set, Ok(()));
        let (_, other) = if text == es256 { (hs256, &secret) } else { (es256, &curve) };
        check(text, other, Err(Status::VerificationFailed));
    }
    // Its payload is no JSON: only the signature can be looked at.
    assert_eq!(Token::parse(eddsa).err(), Some(Status::PayloadBadJson));
    KeySet::parse(edwards.to_string().as_bytes()).expect("a key");
    let mut named = rsa.clone();
    named["keys"][0]["alg"] = "RS512".into();
    check(rs256, &named, Err(Status::KidAlgMismatch));
}

#[test]
fn what_can_be_wrong_with_keys() {
    let check = |set: Value, expected: &str| {
        let outcome = KeySet::parse(set.to_string().as_bytes()).map_or_else(|why| why, |_| "good");
        assert_eq!(outcome, expected, "{set}");
    };
    let none = "Jwks doesn't have any valid public key";
    let secret = json!({"kty": "oct", "k": "YQ"});
    check(json!([]), "Jwks is an invalid JSON");
    check(json!({}), "Jwks does not have [keys] field");
    check(json!({"keys": 1}), "[keys] in Jwks is not an array");
    check(json!({"keys": []}), none);
    check(json!({"keys": [{"kty": "oct", "k": "+/+/"}]}), none);
    check(json!({"keys": [{"kty": "oct", "k": "YQ", "alg": "RS256"}]}), none);
    check(json!({"keys": [{"kty": "x"}, 5, secret]}), "good");
    check(json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}]}), none);
    check(json!({"keys": [{"kty": "OKP", "crv": "Ed448", "x": "AQ"}]}), none);
    check(
        json!({"k": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}),
        "X509 parse pubkey fails",
    );
}

#[test]
fn algorithms() {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair,
    };
    let random = SystemRandom::new();
    let begun = Instant::now();
    let text = |name: &str| {
        let part = |value: Value| base64(value.to_string().as_bytes());
        format!("{}.{}", part(json!({"alg": name})), part(json!({"iss": "a"})))
    };
    let check = |key: Value, name: &str, signature: &[u8]| {
        let keys = KeySet::parse(json!({"keys": [key]}).to_string().as_bytes()).expect("a key");
        let token = |signature: &[u8]| format!("{}.{}", text(name), base64(signature));
        let good = Token::parse(&token(signature)).expect("a token");
        assert_eq!(keys.verify(&good), Ok(()), "{name}");
        let mut wrong = signature.to_vec();
        wrong[7] ^= 1;
        let bad = Token::parse(&token(&wrong)).expect("a token");
        assert_eq!(keys.verify(&bad), Err(Status::VerificationFailed), "{name}");
    };
    let curves = [
        ("ES384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
        ("ES512", "P-521", &ECDSA_P521_SHA512_FIXED_SIGNING),
    ];
    for (name, curve, algorithm) in curves {
        let pair = EcdsaKeyPair::generate(algorithm).expect("a key");
        let signature = pair.sign(&random, text(name).as_bytes()).expect("signed");
        let point = pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(point.len() / 2);
        check(json!({"kty": "EC", "crv": curve, "x": base64(x), "y": base64(y)}), name, signature.as_ref());
    }
    let pair = Ed25519KeyPair::generate().expect("a key");
    let signature = pair.sign(text("EdDSA").as_bytes());
    check(
        json!({"kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key().as_ref())}),
        "EdDSA",
        signature.as_ref(),
    );
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn padding() {
    let padded = ["", "YQ", "YWI", "YWJj"].map(|text| padded(text).into_owned());
    assert_eq!(padded, ["", "YQ==", "YWI=", "YWJj"]);
}
