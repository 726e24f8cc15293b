//! Tokens of service accounts, verified with the keys of their issuer: where there is no API server to
//! ask, and for issuers that it does not know.

use std::path::PathBuf;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use leno_base::clock::{Clock, System};
use leno_tls::jwt::{KeySet, Token};
use serde::Deserialize;

use super::made::{Made, read};
use crate::model::duration::seconds;
use crate::model::identity::Account;

/// Seconds that clocks may differ.
const CLOCK_SKEW: u64 = 30;

/// An issuer of tokens, as istiod's `JWT_RULE` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Issuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// Of `aud` one must be among these; empty: among those of all tokens
    /// ([`super::Access::audiences`]).
    pub audiences: Vec<String>,
    /// Its keys, a JSON web key set.
    pub jwks: String,
    /// Where its keys are instead: `file:///PATH`.
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: String,
}

impl Issuer {
    /// Reads a `JWT_RULE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &str) -> Result<Issuer, String> {
        let issuer: Issuer = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if issuer.issuer.is_empty() {
            return Err("issuer must not be empty".to_owned());
        }
        if issuer.jwks.is_empty() {
            issuer.path()?;
        } else if !issuer.jwks_uri.is_empty() {
            return Err("only one of jwks and jwksUri may be given".to_owned());
        }
        Ok(issuer)
    }

    /// The file with its keys.
    fn path(&self) -> Result<PathBuf, String> {
        match self.jwks_uri.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ if self.jwks_uri.is_empty() => {
                Err("jwks or jwksUri is needed: OIDC discovery is not supported yet".to_owned())
            }
            _ => {
                Err(format!("jwksUri: {:?} is not file:///PATH; others are not supported yet", self.jwks_uri))
            }
        }
    }
}

/// An issuer with its keys.
#[derive(Debug)]
pub(super) struct Keys {
    issuer: Issuer,
    /// Of `aud` one must be among these.
    audiences: Vec<String>,
    keys: Made<KeySet>,
}

impl Keys {
    /// Reads the keys. `audiences`: whom tokens must be for if the issuer's rule does not say.
    ///
    /// # Errors
    /// Why they cannot be read; or that tokens for anybody would be taken.
    // Deviation: a rule without audiences takes tokens with those of TOKEN_AUDIENCES; istiod refuses all
    // then. Neither takes one that was given out for another purpose.
    pub(super) fn read(issuer: Issuer, audiences: &[String]) -> Result<Keys, String> {
        let audiences =
            if issuer.audiences.is_empty() { audiences.to_vec() } else { issuer.audiences.clone() };
        if audiences.is_empty() {
            return Err(format!("tokens of {} could be for anybody: audiences must be given", issuer.issuer));
        }
        let keys = if issuer.jwks.is_empty() {
            let path = issuer.path()?;
            Made::new(vec![path.clone()], move || {
                KeySet::parse(&read(&path)?).map_err(|why| format!("{}: {why}", path.display()))
            })
        } else {
            let text = issuer.jwks.clone();
            Made::new(Vec::new(), move || KeySet::parse(text.as_bytes()).map_err(str::to_owned))
        };
        Ok(Keys { keys: keys?, audiences, issuer })
    }

    /// Whose a token is; `None` if it is another issuer's.
    pub(super) fn account(&self, text: &str) -> Option<Result<Account, String>> {
        let now = seconds(System.wall());
        let token = Token::parse(text).ok().filter(|token| *token.issuer == *self.issuer.issuer)?;
        Some(self.verify(&token, now))
    }

    fn verify(&self, token: &Token, now: u64) -> Result<Account, String> {
        let refused = |status: leno_tls::jwt::Status| status.text().to_owned();
        self.keys.current().verify(token).map_err(refused)?;
        token.check_time(now, CLOCK_SKEW).map_err(refused)?;
        if token.expires == 0 {
            return Err("the token does not expire".to_owned());
        }
        if !token.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err("the token is for somebody else".to_owned());
        }
        Account::of_user(&token.subject).ok_or_else(|| "the token is not a service account's".to_owned())
    }
}

/// The token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use leno_base::base64::encode_url as base64;
    use leno_tls::jwt::Token;
    use serde_json::{Value, json};

    use super::{Issuer, Keys};

    const NOW: u64 = 1_000_000;

    fn pair() -> (EcdsaKeyPair, String) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": x, "y": y }] });
        (pair, keys.to_string())
    }

    fn token(pair: &EcdsaKeyPair, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            base64(json!({ "alg": "ES256" }).to_string().as_bytes()),
            base64(claims.to_string().as_bytes())
        );
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", base64(signature.as_ref()))
    }

    #[test]
    fn whose_a_token_is() {
        let (pair, jwks) = pair();
        let issuer = Issuer {
            issuer: "me".to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            jwks,
            ..Issuer::default()
        };
        let keys = Keys::read(issuer.clone(), &[]).expect("keys");
        let good = json!({ "iss": "me", "aud": ["x", "istio-ca"], "exp": NOW + 60, "sub": "system:serviceaccount:a:b" });
        let but = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            claims
        };
        for (claims, expected) in [
            (good.clone(), Ok("a/b")),
            (but("exp", json!(NOW - 60)), Err("Jwt is expired")),
            (but("exp", json!(0)), Err("does not expire")),
            (but("nbf", json!(NOW + 60)), Err("Jwt not yet valid")),
            (but("aud", json!("y")), Err("somebody else")),
            (but("aud", json!([])), Err("somebody else")),
            (but("sub", json!("somebody")), Err("not a service account's")),
            (but("sub", json!("system:serviceaccount::b")), Err("not a service account's")),
        ] {
            let parsed = Token::parse(&token(&pair, &claims)).expect("a token");
            match (keys.verify(&parsed, NOW), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
                (Err(words), Err(expected)) => assert!(words.contains(expected), "{words}"),
                (found, expected) => panic!("{claims}: {found:?}, not {expected:?}"),
            }
        }
        // A rule that does not say whom tokens are for takes those that all tokens must be for.
        let open = Issuer { audiences: Vec::new(), ..issuer };
        let others = Keys::read(open.clone(), &["y".to_owned()]).expect("keys");
        let parsed = |claims: &Value| Token::parse(&token(&pair, claims)).expect("a token");
        assert!(others.verify(&parsed(&but("aud", json!("y"))), NOW).is_ok());
        assert!(others.verify(&parsed(&good), NOW).is_err());
        assert!(Keys::read(open, &[]).is_err_and(|why| why.contains("audiences must be given")));
        let (stranger, _) = self::pair();
        let forged = Token::parse(&token(&stranger, &good)).expect("a token");
        assert!(keys.verify(&forged, NOW).is_err());
        assert!(keys.account(&token(&pair, &but("iss", json!("you")))).is_none(), "another issuer's");
        assert!(keys.account("x").is_none());
    }

    #[test]
    fn rules_are_read() {
        for (json, expected) in [
            (r#"{"issuer": "a", "jwks": "{}"}"#, None),
            (r#"{"issuer": "a", "jwks_uri": "file:///keys"}"#, None),
            (r#"{"issuer": "a"}"#, Some("OIDC discovery is not supported yet")),
            (r#"{"issuer": "a", "jwksUri": "https://a"}"#, Some("others are not supported yet")),
            (r#"{"issuer": "a", "jwksUri": "file:///a", "jwks": "{}"}"#, Some("only one")),
            (r#"{"jwks": "{}"}"#, Some("issuer must not be empty")),
            (r#"{"issuer": "a", "jwks": "{}", "more": 1}"#, Some("unknown field")),
        ] {
            let found = Issuer::parse(json);
            match expected {
                None => assert!(found.is_ok(), "{found:?}"),
                Some(words) => assert!(found.clone().is_err_and(|why| why.contains(words)), "{found:?}"),
            }
        }
    }
}
