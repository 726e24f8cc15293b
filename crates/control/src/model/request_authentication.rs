//! `RequestAuthentication`: which JSON web tokens are believed.

use serde::Deserialize;
use serde_json::Value;

use super::check::{Check, is_header_name};
use super::diagnostic::Finding;
use super::duration::Span;
use super::selector::{PolicyTargetReference, WorkloadSelector};

/// The `spec` of a RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RequestAuthentication {
    /// Pods policy applies to.
    pub(crate) selector: Option<WorkloadSelector>,
    /// Attached gateway/service.
    pub(crate) target_ref: Option<PolicyTargetReference>,
    /// Several targets.
    pub(crate) target_refs: Vec<PolicyTargetReference>,
    /// Accepted issuers.
    pub(crate) jwt_rules: Vec<JwtRule>,
}

/// An issuer, and where its tokens are found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JwtRule {
    /// Expected iss claim.
    pub(crate) issuer: String,
    /// Accepted aud values.
    pub(crate) audiences: Vec<String>,
    /// URL of JWKS (istiod or Envoy fetches).
    #[serde(alias = "jwks_uri")]
    pub(crate) jwks_uri: String,
    /// Inline JWKS.
    pub(crate) jwks: String,
    /// Header locations of token.
    pub(crate) from_headers: Vec<JwtHeader>,
    /// Query parameter locations.
    pub(crate) from_params: Vec<String>,
    /// Header receiving base64url payload.
    pub(crate) output_payload_to_header: String,
    /// Cookie locations.
    pub(crate) from_cookies: Vec<String>,
    /// Keep the token upstream.
    pub(crate) forward_original_token: bool,
    /// Copy claims to headers.
    pub(crate) output_claim_to_headers: Vec<ClaimToHeader>,
    /// JWKS fetch timeout, default 5s.
    pub(crate) timeout: Option<Span>,
    /// Claims split on spaces (scope, permission default).
    pub(crate) space_delimited_claims: Vec<String>,
}

/// A header that holds a token.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JwtHeader {
    /// Header name.
    pub(crate) name: String,
    /// Prefix to strip, e.g. "Bearer ".
    pub(crate) prefix: String,
}

/// A claim that is copied into a header.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClaimToHeader {
    /// Header to set.
    pub(crate) header: String,
    /// Claim to copy (nested a.b).
    pub(crate) claim: String,
}

/// Members of a JSON web key that only its owner may know.
const PRIVATE_MEMBERS: [&str; 2] = ["d", "k"];

/// Where keys are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// Whether over TLS.
    pub(crate) secure: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Place {
    /// The place that a URI names; `None` if it is not of `http` or `https`.
    pub(crate) fn parse(uri: &str) -> Option<Place> {
        let (scheme, rest) = uri.split_once("://")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            None | Some("") => {
                if secure {
                    443
                } else {
                    80
                }
            }
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        };
        (!host.is_empty()).then(|| Place { secure, host: host.to_ascii_lowercase(), port })
    }
}

impl RequestAuthentication {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        check.target(self.selector.as_ref(), self.target_ref.as_ref(), &self.target_refs);
        check.each("jwtRules", &self.jwt_rules, jwt_rule);
        check.into_findings()
    }
}

fn jwt_rule(check: &mut Check, rule: &JwtRule) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        check.invalid("one of issuer and jwksUri is needed");
    }
    let is_asked = rule.jwks_uri.is_empty() && rule.jwks.is_empty() && !rule.issuer.is_empty();
    if is_asked && !is_jwks_uri(&rule.issuer) {
        check.at("issuer", |check| {
            check.warn(
                "no-keys",
                "without jwksUri and jwks the issuer is asked where its keys are, but this is no http or https URI: all its tokens are refused",
            );
        });
    }
    check.not_empty("audiences", &rule.audiences);
    if !rule.jwks_uri.is_empty() && !is_jwks_uri(&rule.jwks_uri) {
        check.invalid_at("jwksUri", format!("{:?} is no http or https URI with a host", rule.jwks_uri));
    }
    if !rule.jwks.is_empty() {
        check.at("jwks", |check| jwks(check, &rule.jwks));
    }
    check.each("fromHeaders", &rule.from_headers, |check, header| {
        check.at("name", |check| match header.name.as_str() {
            "" => check.invalid("must not be empty"),
            name if !is_header_name(name) => check.invalid(format!("{name:?} is no header name")),
            _ => {}
        });
    });
    check.not_empty("fromParams", &rule.from_params);
    check.not_empty("fromCookies", &rule.from_cookies);
    check.each("outputClaimToHeaders", &rule.output_claim_to_headers, |check, output| {
        if output.claim.is_empty() {
            check.invalid_at("claim", "must not be empty");
        }
        if output.header.is_empty() {
            check.invalid_at("header", "must not be empty");
        } else if !output
            .header
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        {
            check.invalid_at("header", format!("{:?} is no header that can be set", output.header));
        }
    });
    check.duration("timeout", rule.timeout);
}

/// Whether a text is an absolute URI of which a proxy can fetch keys.
fn is_jwks_uri(uri: &str) -> bool {
    uri.parse::<http::Uri>().is_ok() && Place::parse(uri).is_some()
}

/// A set of JSON web keys. Which of them are good is found out by who uses them; but a set of which
/// none can be makes a proxy refuse all that it is sent along with it.
fn jwks(check: &mut Check, text: &str) {
    let keys = match serde_json::from_str::<Value>(text) {
        // What the parser says may quote the keys.
        Err(error) => {
            return check.invalid(format!("no JSON (line {}, column {})", error.line(), error.column()));
        }
        Ok(value) => value,
    };
    let Some(keys) = keys.get("keys").and_then(Value::as_array) else {
        return check.invalid("an object with a list \"keys\" is needed");
    };
    if !keys.iter().any(is_key) {
        check.invalid("has no key that could verify a token");
    }
    for (index, key) in keys.iter().enumerate() {
        if key.get("kty").and_then(Value::as_str).is_none() {
            check.invalid(format!("key {index} has no \"kty\""));
        } else if PRIVATE_MEMBERS.iter().any(|member| key.get(member).is_some()) {
            check.warn(
                "private-key",
                format!("key {index} is a private one; only public keys are needed to verify tokens"),
            );
        }
    }
}

/// Whether a key has the parts that its type must have.
fn is_key(key: &Value) -> bool {
    let part = |name: &str| {
        let text = key.get(name).and_then(Value::as_str).unwrap_or_default();
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !text.is_empty() && text.trim_end_matches('=').bytes().all(good)
    };
    let curve = key.get("crv").and_then(Value::as_str).unwrap_or_default();
    match key.get("kty").and_then(Value::as_str).unwrap_or_default() {
        "RSA" => part("n") && part("e"),
        "EC" => matches!(curve, "P-256" | "P-384" | "P-521" | "") && part("x") && part("y"),
        "OKP" => curve == "Ed25519" && part("x"),
        "oct" => part("k"),
        _ => false,
    }
}
