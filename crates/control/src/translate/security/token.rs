//! RequestAuthentications as the filter `jwt_authn`.
//!
//! A request need not have a token, but one that it has must be good. The claims end up in the
//! filter's metadata under `payload`, where rules of AuthorizationPolicies and routes find them.

use jwt::jwt_requirement::RequiresType;
use leno_api::proto::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_derive::Cx;

use super::rule::{TOKEN_FILTER, TOKEN_PAYLOAD};
use super::{http_filter, keys};
use crate::model::request_authentication::JwtRule;
use crate::registry::targets::Workload;
use crate::scope::security::AuthenticationOf;
use crate::scope::sidecar::Sight;
use crate::translate::route::matcher::everything;

/// Claims that are lists of words in one text.
const WORDS: [&str; 2] = ["permission", "scope"];

/// The filter; `None` if no policy has rules. Gateways choose the route again once the claims are
/// known.
pub(super) fn filter(
    cx: &Cx<'_>,
    workload: &Workload,
    sight: &Sight,
    gateway: bool,
) -> Option<hcm::HttpFilter> {
    let policies = cx.get::<AuthenticationOf>(workload);
    let mut rules: Vec<&JwtRule> = policies.iter().flat_map(|policy| &policy.spec.jwt_rules).collect();
    // Stable, so that of rules for one issuer the older policy's come first.
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    if rules.is_empty() {
        return None;
    }
    let mut message =
        jwt::JwtAuthentication { bypass_cors_preflight: true, ..jwt::JwtAuthentication::default() };
    let mut valid = Vec::new();
    let mut valid_or_missing = Vec::new();
    for (index, rule) in rules.into_iter().enumerate() {
        let name = format!("origins-{index}");
        valid.push(requirement(RequiresType::ProviderName(name.clone())));
        valid_or_missing.push(any(vec![
            requirement(RequiresType::ProviderName(name.clone())),
            requirement(RequiresType::AllowMissing(())),
        ]));
        message.providers.insert(name, provider(cx, sight, rule, gateway));
    }
    let requires = if valid_or_missing.len() == 1 {
        valid_or_missing.remove(0)
    } else {
        // Any of the tokens will do, where several issuers share one place for them; otherwise each
        // that is there must be good.
        let all = jwt::JwtRequirementAndList { requirements: valid_or_missing };
        valid.push(requirement(RequiresType::RequiresAll(all)));
        any(valid)
    };
    message.rules.push(jwt::RequirementRule {
        r#match: Some(everything()),
        requirement_type: Some(jwt::requirement_rule::RequirementType::Requires(requires)),
    });
    Some(http_filter(TOKEN_FILTER, &message))
}

fn provider(cx: &Cx<'_>, sight: &Sight, rule: &JwtRule, gateway: bool) -> jwt::JwtProvider {
    let JwtRule {
        issuer,
        audiences,
        jwks_uri: _, // these three say where the keys are, see below
        jwks: _,
        timeout: _,
        from_headers,
        from_params,
        output_payload_to_header,
        from_cookies,
        forward_original_token,
        output_claim_to_headers,
        space_delimited_claims,
    } = rule;
    let mut words: Vec<String> = WORDS.iter().map(|&claim| claim.to_owned()).collect();
    words.extend(space_delimited_claims.iter().cloned());
    words.sort();
    words.dedup();
    let headers = from_headers
        .iter()
        .map(|header| jwt::JwtHeader { name: header.name.clone(), value_prefix: header.prefix.clone() });
    let claims = output_claim_to_headers.iter().map(|claim| jwt::JwtClaimToHeader {
        header_name: claim.header.clone(),
        claim_name: claim.claim.clone(),
        ..jwt::JwtClaimToHeader::default()
    });
    jwt::JwtProvider {
        issuer: issuer.clone(),
        audiences: audiences.clone(),
        forward: *forward_original_token,
        from_headers: headers.collect(),
        from_params: from_params.clone(),
        from_cookies: from_cookies.clone(),
        forward_payload_header: output_payload_to_header.clone(),
        payload_in_metadata: TOKEN_PAYLOAD.to_owned(),
        normalize_payload_in_metadata: Some(jwt::jwt_provider::NormalizePayload {
            space_delimited_claims: words,
        }),
        claim_to_headers: claims.collect(),
        clear_route_cache: gateway,
        jwks_source_specifier: Some(keys::source(cx, sight, rule)),
        ..jwt::JwtProvider::default()
    }
}

fn requirement(kind: RequiresType) -> jwt::JwtRequirement {
    jwt::JwtRequirement { requires_type: Some(kind) }
}

fn any(requirements: Vec<jwt::JwtRequirement>) -> jwt::JwtRequirement {
    requirement(RequiresType::RequiresAny(jwt::JwtRequirementOrList { requirements }))
}
