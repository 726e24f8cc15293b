//! An OpenID Connect provider, as far as those who verify its tokens see it: it says where its keys are, has
//! keys, and signs.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use leno_base::base64::encode_url as base64;
use serde_json::{Value, json};

/// A key that signs tokens.
pub(crate) enum Key {
    Rs256(String, rsa::KeyPair),
    Es256(String, EcdsaKeyPair),
}

impl Key {
    pub(crate) fn rs256(id: &str) -> Key {
        Key::Rs256(id.to_owned(), rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("a key"))
    }

    pub(crate) fn es256(id: &str) -> Key {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Key::Es256(id.to_owned(), pair)
    }

    /// The public half, a JSON web key.
    fn public(&self) -> Value {
        match self {
            Key::Rs256(id, pair) => {
                let key = pair.public_key();
                let (n, e) = (key.modulus(), key.exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                json!({ "kty": "RSA", "alg": "RS256", "use": "sig", "kid": id, "n": base64(n), "e": base64(e) })
            }
            Key::Es256(id, pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
                json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": id, "x": x, "y": y })
            }
        }
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let (algorithm, id) = match self {
            Key::Rs256(id, _) => ("RS256", id),
            Key::Es256(id, _) => ("ES256", id),
        };
        let head = json!({ "alg": algorithm, "typ": "JWT", "kid": id }).to_string();
        let text = format!("{}.{}", base64(head.as_bytes()), base64(claims.to_string().as_bytes()));
        let signature = match self {
            Key::Rs256(_, pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let done =
                    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature);
                done.expect("a signature");
                signature
            }
            Key::Es256(_, pair) => {
                pair.sign(&SystemRandom::new(), text.as_bytes()).expect("a signature").as_ref().to_vec()
            }
        };
        format!("{text}.{}", base64(&signature))
    }
}

/// A server of an issuer.
pub(crate) struct Issuer {
    /// Its name, which is its address.
    pub(crate) name: String,
    /// What it answers, by path.
    pages: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Issuer {
    /// One over HTTP that has no keys yet.
    pub(crate) fn http() -> Issuer {
        Issuer::start("http://127.0.0.1", answer)
    }

    /// One over HTTPS. Whom to trust is written into a file.
    pub(crate) fn https(roots: &Path) -> Issuer {
        let mut params = rcgen::CertificateParams::default();
        // Roots of one name are taken for one another.
        params.distinguished_name.push(rcgen::DnType::CommonName, roots.display().to_string());
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertifiedIssuer::self_signed(params, key).expect("a root");
        std::fs::write(roots, root.pem()).expect("writable");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let leaf = params.signed_by(&key, &root).expect("signed");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a certificate");
        let config = Arc::new(config);
        Issuer::start("https://localhost", move |stream, pages| {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
            answer(rustls::StreamOwned::new(session, stream), pages);
        })
    }

    fn start(
        name: &str,
        serve: impl Fn(std::net::TcpStream, &Mutex<BTreeMap<String, String>>) + Send + Sync + 'static,
    ) -> Issuer {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let pages = Arc::<Mutex<BTreeMap<String, String>>>::default();
        let (served, serve) = (Arc::clone(&pages), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (served, serve) = (Arc::clone(&served), Arc::clone(&serve));
                std::thread::spawn(move || serve(stream, &served));
            }
        });
        Issuer { name: format!("{name}:{port}"), pages }
    }

    pub(crate) fn keys_uri(&self) -> String {
        format!("{}/keys", self.name)
    }

    /// From now on these are its keys, and it says so.
    pub(crate) fn publish(&self, keys: &[&Key]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
        let about = json!({
            "issuer": self.name,
            "jwks_uri": self.keys_uri(),
            "response_types_supported": ["id_token"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        });
        let mut pages = self.pages.lock().expect("no panic");
        pages.insert("/.well-known/openid-configuration".to_owned(), about.to_string());
        pages.insert("/keys".to_owned(), json!({ "keys": keys }).to_string());
    }

    /// The claims of a token that is good for an hour.
    pub(crate) fn claims(&self, subject: &str, audience: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        json!({ "iss": self.name, "sub": subject, "aud": audience, "iat": now, "exp": now + 3600 })
    }
}

fn answer(stream: impl Read + Write, pages: &Mutex<BTreeMap<String, String>>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if matches!(stream.read_line(&mut head), Ok(0) | Err(_)) {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let page = pages.lock().expect("no panic").get(path).cloned();
    let (status, body) = page.map_or(("404 Not Found", String::new()), |page| ("200 OK", page));
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    // Who has left needs no answer.
    let _ = stream.get_mut().write_all(text.as_bytes()).and_then(|()| stream.get_mut().flush());
}

/// How long ago a token may have expired and still be taken, with some to spare.
pub(crate) const SKEW: Duration = Duration::from_secs(90);
