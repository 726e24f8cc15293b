//! JSON web tokens (RFC 7519) in the compact form, and what can be wrong with one.
//!
//! A token is taken apart and its registered claims are read; nothing is verified here. Numbers of
//! claims are doubles, as they are in Envoy, which reads them into a `google.protobuf.Struct`.

use serde_json::{Map, Value};

use leno_base::base64;

/// Declares the verdicts in the order of their numbers, which dynamic metadata tells.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a request is refused. Numbers and texts are Envoy's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status { $($(#[$doc])* $name = $code,)* }

        impl Status {
            /// What the client is told.
            pub fn text(self) -> &'static str {
                match self { $(Status::$name => $text,)* }
            }
        }
    };
}

statuses! {
    /// No token is there.
    Missing = 1, "Jwt is missing";
    /// `nbf` lies in the future.
    NotYetValid = 2, "Jwt not yet valid";
    /// `exp` lies in the past.
    Expired = 3, "Jwt is expired";
    /// Not three parts.
    BadFormat = 4, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    /// The first part is no base64.
    HeaderBadBase64 = 5, "Jwt header is an invalid Base64url encoded";
    /// The first part is no JSON object.
    HeaderBadJson = 6, "Jwt header is an invalid JSON";
    /// `alg` is no string.
    HeaderBadAlg = 7, "Jwt header [alg] field is required and must be a string";
    /// `alg` is none of those that are known.
    AlgNotImplemented = 8, "Jwt header [alg] is not supported";
    /// `kid` is no string.
    HeaderBadKid = 9, "Jwt header [kid] field is not a string";
    /// The second part is no base64.
    PayloadBadBase64 = 10, "Jwt payload is an invalid Base64url encoded";
    /// The second part is no JSON object.
    PayloadBadJson = 11, "Jwt payload is an invalid JSON";
    /// `iss` is no string.
    IssNotString = 12, "Jwt payload [iss] field is not a string";
    /// `sub` is no string.
    SubNotString = 13, "Jwt payload [sub] field is not a string";
    /// `iat` is no number.
    IatNotInteger = 14, "Jwt payload [iat] field is not an integer";
    /// `iat` is negative or too large.
    IatOutOfRange = 15, "Jwt payload [iat] field is not a positive 64 bit integer";
    /// `nbf` is no number.
    NbfNotInteger = 16, "Jwt payload [nbf] field is not an integer";
    /// `nbf` is negative or too large.
    NbfOutOfRange = 17, "Jwt payload [nbf] field is not a positive 64 bit integer";
    /// `exp` is no number.
    ExpNotInteger = 18, "Jwt payload [exp] field is not an integer";
    /// `exp` is negative or too large.
    ExpOutOfRange = 19, "Jwt payload [exp] field is not a positive 64 bit integer";
    /// `jti` is no string.
    JtiNotString = 20, "Jwt payload [jti] field is not a string";
    /// `aud` is neither a string nor a list of strings.
    AudNotString = 21, "Jwt payload [aud] field is not a string or string list";
    /// The third part is no base64.
    SignatureBadBase64 = 22, "Jwt signature is an invalid Base64url encoded";
    /// An EdDSA signature that is not 64 bytes long.
    Ed25519WrongLength = 23, "Jwt ED25519 signature is wrong length";
    /// Nobody trusts `iss` at this place of a request.
    UnknownIssuer = 24, "Jwt issuer is not configured";
    /// None of `aud` is wanted.
    AudienceNotAllowed = 25, "Audiences in Jwt are not allowed";
    /// The signature, the subject or the lifetime is wrong.
    VerificationFailed = 26, "Jwt verification fails";
    /// There are no keys to verify with.
    NoValidKeys = 31, "Jwks doesn't have any valid public key";
    /// None of the keys has the token's `kid` and `alg`.
    KidAlgMismatch = 32, "Jwks doesn't have key to match kid or alg from Jwt";
    /// The keys could not be fetched.
    FetchFailed = 40, "Jwks remote fetch is failed";
}

/// How a token is signed (RFC 7518 section 3, RFC 8037).
#[allow(missing_docs, reason = "the names are those of the RFC")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    EdDsa,
}

impl Algorithm {
    /// The algorithm of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Algorithm::Es256,
            "ES384" => Algorithm::Es384,
            "ES512" => Algorithm::Es512,
            "HS256" => Algorithm::Hs256,
            "HS384" => Algorithm::Hs384,
            "HS512" => Algorithm::Hs512,
            "RS256" => Algorithm::Rs256,
            "RS384" => Algorithm::Rs384,
            "RS512" => Algorithm::Rs512,
            "PS256" => Algorithm::Ps256,
            "PS384" => Algorithm::Ps384,
            "PS512" => Algorithm::Ps512,
            "EdDSA" => Algorithm::EdDsa,
            _ => return None,
        })
    }
}

/// A token that was taken apart.
#[derive(Debug)]
pub struct Token {
    /// The header.
    pub header: Map<String, Value>,
    /// All claims.
    pub claims: Map<String, Value>,
    /// The claims as they are written, in base64 without padding.
    pub payload: Box<str>,
    /// What is signed: header and payload as they are written.
    pub signed: Box<str>,
    /// The signature.
    pub signature: Vec<u8>,
    /// `alg`.
    pub algorithm: Algorithm,
    /// `kid`; empty: none.
    pub key_id: Box<str>,
    /// `iss`; empty: none.
    pub issuer: Box<str>,
    /// `sub`; empty: none.
    pub subject: Box<str>,
    /// `aud`.
    pub audiences: Vec<String>,
    /// `nbf`, seconds since the epoch; 0: none.
    pub not_before: u64,
    /// `exp`, seconds since the epoch; 0: none.
    pub expires: u64,
}

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// What is wrong with it first.
    pub fn parse(text: &str) -> Result<Self, Status> {
        // Empty parts do not count, as in Envoy.
        let mut parts = text.split('.').filter(|part| !part.is_empty());
        let (Some(head), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::BadFormat);
        };
        let header = object(head, Status::HeaderBadBase64, Status::HeaderBadJson)?;
        let Some(Value::String(algorithm)) = header.get("alg") else { return Err(Status::HeaderBadAlg) };
        let algorithm = Algorithm::of(algorithm).ok_or(Status::AlgNotImplemented)?;
        let key_id = string(&header, "kid", Status::HeaderBadKid)?;
        let claims = object(payload, Status::PayloadBadBase64, Status::PayloadBadJson)?;
        let issuer = string(&claims, "iss", Status::IssNotString)?;
        let subject = string(&claims, "sub", Status::SubNotString)?;
        time(&claims, "iat", Status::IatNotInteger, Status::IatOutOfRange)?;
        let not_before = time(&claims, "nbf", Status::NbfNotInteger, Status::NbfOutOfRange)?;
        let expires = time(&claims, "exp", Status::ExpNotInteger, Status::ExpOutOfRange)?;
        string(&claims, "jti", Status::JtiNotString)?;
        let audiences = match claims.get("aud") {
            None => Vec::new(),
            Some(Value::String(audience)) => vec![audience.clone()],
            Some(Value::Array(list)) => {
                let audiences = list.iter().map(|audience| audience.as_str().map(str::to_owned));
                audiences.collect::<Option<_>>().ok_or(Status::AudNotString)?
            }
            Some(_) => return Err(Status::AudNotString),
        };
        let signed = format!("{head}.{payload}").into();
        let payload = payload.trim_end_matches('=').into();
        let signature = decode(signature).ok_or(Status::SignatureBadBase64)?;
        Ok(Self {
            header,
            claims,
            payload,
            signed,
            signature,
            algorithm,
            key_id,
            issuer,
            subject,
            audiences,
            not_before,
            expires,
        })
    }

    /// Whether the token's time has come and is not over. `now` and `skew` in seconds.
    ///
    /// # Errors
    /// Which of the two is wrong.
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), Status> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Status::NotYetValid);
        }
        if self.expires > 0 && now > self.expires.saturating_add(skew) {
            return Err(Status::Expired);
        }
        Ok(())
    }
}

/// Bytes from base64 in the URL alphabet, with or without padding.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    // The other alphabet is none of a token's.
    if text.contains(['+', '/']) { None } else { base64::decode_json(text.as_bytes()) }
}

fn object(text: &str, bad_base64: Status, bad_json: Status) -> Result<Map<String, Value>, Status> {
    let json = decode(text).ok_or(bad_base64)?;
    match serde_json::from_slice(&json) {
        Ok(Value::Object(mut object)) => {
            object.values_mut().for_each(double);
            Ok(object)
        }
        _ => Err(bad_json),
    }
}

/// Numbers that a double does not hold exactly become the next that it holds.
fn double(value: &mut Value) {
    const EXACT: u64 = 1 << 53;
    match value {
        Value::Number(number) => {
            let magnitude = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
            if magnitude.is_some_and(|magnitude| magnitude > EXACT)
                && let Some(double) = number.as_f64()
            {
                // Printed without an exponent as long as it is an integer.
                *value = if double < 1e18 { Value::from(double as i64) } else { Value::from(double) };
            }
        }
        Value::Array(list) => list.iter_mut().for_each(double),
        Value::Object(object) => object.values_mut().for_each(double),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn string(object: &Map<String, Value>, name: &str, bad: Status) -> Result<Box<str>, Status> {
    match object.get(name) {
        None => Ok(Box::default()),
        Some(Value::String(text)) => Ok(text.as_str().into()),
        Some(_) => Err(bad),
    }
}

fn time(object: &Map<String, Value>, name: &str, bad: Status, out_of_range: Status) -> Result<u64, Status> {
    let Some(value) = object.get(name) else { return Ok(0) };
    let seconds = value.as_f64().ok_or(bad)?;
    if seconds < 0.0 || seconds >= u64::MAX as f64 {
        return Err(out_of_range);
    }
    Ok(seconds as u64)
}
