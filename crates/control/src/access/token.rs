//! Tokens of service accounts, verified with the keys of their issuer: where there is no API server to
//! ask, and for issuers that it does not know.
//!
//! Keys stand in the rule, in a file, or with the issuer. Those are fetched when the first token comes,
//! again when they have become old, and when a token comes that they do not verify, as issuers sign with
//! new keys at any time; but not more often than every few seconds, whoever asks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use leno_base::clock::{Clock, System};
use leno_tls::jwt::{KeySet, Token};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::discovery;
use super::fetch::Fetcher;
use super::made::{Made, read};
use crate::model::duration::seconds;
use crate::model::identity::Account;
use crate::model::request_authentication::Place;

/// Seconds that clocks may differ.
const CLOCK_SKEW: u64 = 30;

/// After how long keys are fetched again, as istiod has it for those of proxies.
const LIFETIME: Duration = Duration::from_secs(20 * 60);

/// How long not to fetch again what was just fetched, or could not be.
const PAUSE: Duration = Duration::from_secs(5);

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
    /// Where its keys are instead: `https://...`, `http://...` or `file:///PATH`. Without either the
    /// issuer is asked (OpenID Connect).
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: String,
}

/// Where the keys of an issuer are.
enum Where {
    File(PathBuf),
    Uri(String),
    /// It is to be asked at this address.
    Asked(String),
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
            issuer.keys()?;
        } else if !issuer.jwks_uri.is_empty() {
            return Err("only one of jwks and jwksUri may be given".to_owned());
        }
        Ok(issuer)
    }

    /// Where its keys are.
    fn keys(&self) -> Result<Where, String> {
        let uri = &self.jwks_uri;
        if uri.is_empty() {
            let issuer = &self.issuer;
            let asked = discovery::address(issuer).ok_or_else(|| {
                format!("jwks or jwksUri is needed, as {issuer:?} is no address to be asked at")
            });
            return asked.map(Where::Asked);
        }
        match uri.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Ok(Where::File(PathBuf::from(path))),
            None if Place::parse(uri).is_some() => Ok(Where::Uri(uri.clone())),
            _ => Err(format!("jwksUri: {uri:?} is none of https://, http:// and file:///PATH")),
        }
    }
}

/// An issuer with its keys.
#[derive(Debug)]
pub(super) struct Keys {
    issuer: Issuer,
    /// Of `aud` one must be among these.
    audiences: Vec<String>,
    keys: Source,
}

#[derive(Debug)]
enum Source {
    Here(Made<KeySet>),
    Fetched(Fetched),
}

/// Keys that are fetched when they are needed.
#[derive(Debug)]
struct Fetched {
    issuer: String,
    /// Where they are; `None`: where the issuer says.
    uri: Option<String>,
    /// Where the issuer is asked.
    asked: String,
    fetcher: Fetcher,
    /// Held while they are fetched, so that all who wait get what one has asked for.
    state: Mutex<Held>,
}

/// The keys of the moment.
#[derive(Debug, Default)]
struct Held {
    keys: Option<Arc<KeySet>>,
    /// When they were fetched, and when somebody has tried to.
    fetched: Option<Instant>,
    tried: Option<Instant>,
    /// Why they could not be fetched.
    fault: String,
}

impl Keys {
    /// Reads the keys that are here; others are fetched when they are needed, by the roots of a file or
    /// else of the system. `audiences`: whom tokens must be for if the issuer's rule does not say.
    ///
    /// # Errors
    /// Why they cannot be read; or that tokens for anybody would be taken.
    // Deviation: a rule without audiences takes tokens with those of TOKEN_AUDIENCES; istiod refuses all
    // then. Neither takes one that was given out for another purpose.
    pub(super) fn read(issuer: Issuer, audiences: &[String], roots: Option<PathBuf>) -> Result<Keys, String> {
        let audiences =
            if issuer.audiences.is_empty() { audiences.to_vec() } else { issuer.audiences.clone() };
        if audiences.is_empty() {
            return Err(format!("tokens of {} could be for anybody: audiences must be given", issuer.issuer));
        }
        let keys = if issuer.jwks.is_empty() {
            match issuer.keys()? {
                Where::File(path) => Source::Here(Made::new(vec![path.clone()], move || {
                    KeySet::parse(&read(&path)?).map_err(|why| format!("{}: {why}", path.display()))
                })?),
                Where::Uri(uri) => Source::Fetched(Fetched::new(&issuer, Some(uri), String::new(), roots)?),
                Where::Asked(asked) => Source::Fetched(Fetched::new(&issuer, None, asked, roots)?),
            }
        } else {
            let text = issuer.jwks.clone();
            let make = move || KeySet::parse(text.as_bytes()).map_err(str::to_owned);
            Source::Here(Made::new(Vec::new(), make)?)
        };
        Ok(Keys { keys, audiences, issuer })
    }

    /// Whose a token is; `None` if it is another issuer's.
    pub(super) async fn account(&self, text: &str) -> Option<Result<Account, String>> {
        let now = seconds(System.wall()).unsigned_abs();
        let token = Token::parse(text).ok().filter(|token| *token.issuer == *self.issuer.issuer)?;
        Some(self.verify(&token, now).await)
    }

    async fn verify(&self, token: &Token, now: u64) -> Result<Account, String> {
        let refused = |status: leno_tls::jwt::Status| status.text().to_owned();
        // Nobody is to make us fetch keys with what would be refused anyway.
        token.check_time(now, CLOCK_SKEW).map_err(refused)?;
        if token.expires == 0 {
            return Err("the token does not expire".to_owned());
        }
        if !token.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err("the token is for somebody else".to_owned());
        }
        let account = Account::of_user(&token.subject)
            .ok_or_else(|| "the token is not a service account's".to_owned())?;
        match &self.keys {
            Source::Here(keys) => keys.current().verify(token).map_err(refused)?,
            Source::Fetched(keys) => {
                let known = keys.current(LIFETIME).await?;
                if known.verify(token).is_err() {
                    // It may be signed with a key that is newer than what we have.
                    keys.current(PAUSE).await?.verify(token).map_err(refused)?;
                }
            }
        }
        Ok(account)
    }
}

impl Fetched {
    fn new(
        issuer: &Issuer,
        uri: Option<String>,
        asked: String,
        roots: Option<PathBuf>,
    ) -> Result<Fetched, String> {
        let fetcher = Fetcher::new(roots)?;
        Ok(Fetched { issuer: issuer.issuer.clone(), uri, asked, fetcher, state: Mutex::default() })
    }

    /// The keys, fetched if they are older than this; old ones if there are no others.
    ///
    /// # Errors
    /// Why there are none.
    async fn current(&self, age: Duration) -> Result<Arc<KeySet>, String> {
        let mut held = self.state.lock().await;
        let within = |at: Option<Instant>, time: Duration| at.is_some_and(|at| at.elapsed() < time);
        if !within(held.fetched, age) && !within(held.tried, PAUSE) {
            held.tried = Some(Instant::now());
            match self.fetch().await {
                Ok(keys) => {
                    held.keys = Some(Arc::new(keys));
                    held.fetched = held.tried;
                    held.fault.clear();
                }
                Err(error) => {
                    tracing::warn!(issuer = self.issuer, error, "its keys cannot be fetched");
                    held.fault = error;
                }
            }
        }
        held.keys.clone().ok_or_else(|| format!("the keys of the issuer cannot be fetched: {}", held.fault))
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let uri = match &self.uri {
            Some(uri) => uri.clone(),
            None => {
                let found = discovery::ask(&self.fetcher, &self.asked).await?;
                // Whoever is asked speaks for itself (OpenID Connect Discovery 1.0, section 4.3).
                if found.issuer != self.issuer {
                    return Err(format!("{}: it is of the issuer {:?}", self.asked, found.issuer));
                }
                found.jwks_uri
            }
        };
        let keys = self.fetcher.get(&uri).await?;
        KeySet::parse(&keys).map_err(|why| format!("{uri}: {why}"))
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
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use leno_base::base64::encode_url as base64;
    use leno_tls::jwt::Token;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::{Issuer, Keys, LIFETIME, PAUSE};

    const DISCOVERY: &str = "/.well-known/openid-configuration";
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

    #[tokio::test]
    async fn whose_a_token_is() {
        let (pair, jwks) = pair();
        let issuer = Issuer {
            issuer: "me".to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            jwks,
            ..Issuer::default()
        };
        let keys = Keys::read(issuer.clone(), &[], None).expect("keys");
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
            match (keys.verify(&parsed, NOW).await, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
                (Err(words), Err(expected)) => assert!(words.contains(expected), "{words}"),
                (found, expected) => panic!("{claims}: {found:?}, not {expected:?}"),
            }
        }
        // A rule that does not say whom tokens are for takes those that all tokens must be for.
        let open = Issuer { audiences: Vec::new(), ..issuer };
        let others = Keys::read(open.clone(), &["y".to_owned()], None).expect("keys");
        let parsed = |claims: &Value| Token::parse(&token(&pair, claims)).expect("a token");
        assert!(others.verify(&parsed(&but("aud", json!("y"))), NOW).await.is_ok());
        assert!(others.verify(&parsed(&good), NOW).await.is_err());
        assert!(Keys::read(open, &[], None).is_err_and(|why| why.contains("audiences must be given")));
        let (stranger, _) = self::pair();
        let forged = Token::parse(&token(&stranger, &good)).expect("a token");
        assert!(keys.verify(&forged, NOW).await.is_err());
        assert!(keys.account(&token(&pair, &but("iss", json!("you")))).await.is_none(), "another issuer's");
        assert!(keys.account("x").await.is_none());
    }

    /// What an issuer answers, by path, and how often it was asked.
    struct Remote {
        address: std::net::SocketAddr,
        pages: Arc<Mutex<BTreeMap<String, String>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Remote {
        async fn start() -> Remote {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let (pages, asked) =
                (Arc::<Mutex<BTreeMap<String, String>>>::default(), Arc::<AtomicUsize>::default());
            let (served, counted) = (Arc::clone(&pages), Arc::clone(&asked));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                            break;
                        }
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let page = served.lock().expect("no panic").get(path).cloned();
                    let (status, body) =
                        page.map_or(("404 Not Found", String::new()), |page| ("200 OK", page));
                    let length = body.len();
                    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                    let _ = stream.write_all(text.as_bytes()).await;
                }
            });
            Remote { address, pages, asked }
        }

        fn set(&self, path: &str, text: &(impl ToString + ?Sized)) {
            self.pages.lock().expect("no panic").insert(path.to_owned(), text.to_string());
        }

        fn asked(&self) -> usize {
            self.asked.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn keys_are_fetched_where_the_issuer_says() {
        let remote = Remote::start().await;
        let ((old, first), (new, second)) = (pair(), pair());
        let name = format!("http://{}", remote.address);
        let issuer =
            Issuer { issuer: name.clone(), audiences: vec!["istio-ca".to_owned()], ..Issuer::default() };
        let keys = Keys::read(issuer, &[], None).expect("they are not fetched yet");
        let claims =
            json!({ "iss": name, "aud": "istio-ca", "exp": NOW + 60, "sub": "system:serviceaccount:a:b" });
        let verify = async |pair: &EcdsaKeyPair| {
            let parsed = Token::parse(&token(pair, &claims)).expect("a token");
            keys.verify(&parsed, NOW).await.map(|account| account.to_string())
        };
        let fault = |found: Result<String, String>| found.expect_err("it is refused");
        assert_eq!(remote.asked(), 0);
        assert!(fault(verify(&old).await).contains("status 404"));
        // Who cannot be had is not asked again at once.
        assert!(fault(verify(&old).await).contains("status 404"));
        assert_eq!(remote.asked(), 1);
        let later = async || {
            tokio::time::pause();
            tokio::time::advance(PAUSE).await;
            tokio::time::resume();
        };
        remote.set(DISCOVERY, &json!({ "issuer": "another", "jwks_uri": format!("{name}/keys") }));
        later().await;
        assert!(fault(verify(&old).await).contains("it is of the issuer \"another\""));
        remote.set(DISCOVERY, &json!({ "issuer": name, "jwks_uri": format!("{name}/keys"), "more": [] }));
        remote.set("/keys", &first);
        later().await;
        assert_eq!(verify(&old).await, Ok("a/b".to_owned()));
        remote.asked();
        assert_eq!(verify(&old).await, Ok("a/b".to_owned()));
        assert_eq!(remote.asked(), 0, "they are known");
        // The issuer signs with another key: whoever comes with it waits until that is known, but not
        // whoever comes too often.
        remote.set("/keys", &second);
        assert!(fault(verify(&new).await).contains("Jwt verification fails"));
        later().await;
        assert_eq!(verify(&new).await, Ok("a/b".to_owned()));
        // What there was stays while there is nothing else.
        remote.set("/keys", "{}");
        tokio::time::pause();
        tokio::time::advance(LIFETIME).await;
        tokio::time::resume();
        assert_eq!(verify(&new).await, Ok("a/b".to_owned()));
        assert_eq!(remote.asked(), 4);
    }

    #[tokio::test]
    async fn an_issuer_over_tls_must_be_the_one_that_is_named() {
        let root = rcgen::CertifiedIssuer::self_signed(
            {
                let mut params = rcgen::CertificateParams::default();
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                params
            },
            rcgen::KeyPair::generate().expect("a key"),
        )
        .expect("a root");
        let folder = tempfile::tempdir().expect("a folder");
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, root.pem()).expect("writable");
        let (pair, keys) = pair();
        for (named, expected) in [("localhost", true), ("elsewhere.test", false)] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new(vec![named.to_owned()]).expect("a name");
            let leaf = params.signed_by(&key, &root).expect("signed");
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], key)
                .expect("a certificate");
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("localhost:0").await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let body = keys.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                    let _ = stream.read_buf(&mut Vec::new()).await;
                    let length = body.len();
                    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                    let _ = stream.write_all(text.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
            let issuer = Issuer {
                issuer: "me".to_owned(),
                jwks_uri: format!("https://localhost:{port}/keys"),
                ..Issuer::default()
            };
            let keys = Keys::read(issuer, &["y".to_owned()], Some(roots.clone())).expect("roots");
            let claims =
                json!({ "iss": "me", "aud": "y", "exp": NOW + 60, "sub": "system:serviceaccount:a:b" });
            let parsed = Token::parse(&token(&pair, &claims)).expect("a token");
            let found = keys.verify(&parsed, NOW).await;
            assert_eq!(found.is_ok(), expected, "{named}: {found:?}");
        }
    }

    #[test]
    fn rules_are_read() {
        for (json, expected) in [
            (r#"{"issuer": "a", "jwks": "{}"}"#, None),
            (r#"{"issuer": "a", "jwks_uri": "file:///keys"}"#, None),
            (r#"{"issuer": "a"}"#, Some("no address to be asked at")),
            (r#"{"issuer": "https://a"}"#, None),
            (r#"{"issuer": "a", "jwksUri": "https://a"}"#, None),
            (r#"{"issuer": "a", "jwksUri": "ftp://a"}"#, Some("none of https://")),
            (r#"{"issuer": "a", "jwksUri": "file://a"}"#, Some("none of https://")),
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
