//! `RequestAuthentication`: which JSON web tokens are believed.

use serde::Deserialize;

use super::duration::Span;
use super::selector::{PolicyTargetReference, WorkloadSelector};

/// The `spec` of a RequestAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JwtRule {
    /// Expected iss claim.
    pub(crate) issuer: String,
    /// Accepted aud values.
    pub(crate) audiences: Vec<String>,
    /// URL of JWKS (istiod or Envoy fetches).
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
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JwtHeader {
    /// Header name.
    pub(crate) name: String,
    /// Prefix to strip, e.g. "Bearer ".
    pub(crate) prefix: String,
}

/// A claim that is copied into a header.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClaimToHeader {
    /// Header to set.
    pub(crate) header: String,
    /// Claim to copy (nested a.b).
    pub(crate) claim: String,
}
