//! Lowering of CertificateValidationContext: what peers must show.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use leno_tls::{NameKind, NameMatcher, Revocations, TextMatcher, Trust, TrustBundle, ValidationRules};

use super::certificate::source;
use crate::config::lower::Lower;
use crate::http::route::matcher::{self, StringMatcher};

/// Lowers a CertificateValidationContext.
pub(super) fn validation(
    proto: proto::CertificateValidationContext,
    at: &mut Lower,
) -> Option<ValidationRules> {
    use proto::certificate_validation_context::TrustChainVerification;
    let proto::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        // It only concerns secrets that come by SDS: see `refers_to_files`.
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = proto;
    at.unsupported("ca_certificate_provider_instance", ca_certificate_provider_instance.is_some());
    at.unsupported("system_root_certs", system_root_certs.is_some());
    at.unsupported("require_signed_certificate_timestamp", require_signed_certificate_timestamp.is_some());
    let mut trust = Trust::Nobody;
    if let Some(ca) = trusted_ca {
        let ca = source("trusted_ca", Some(ca), at)?;
        match TrustBundle::parse(&ca.bytes) {
            Ok(bundle) => trust = Trust::Bundle(Arc::new(bundle)),
            Err(error) => at.error_at(
                "trusted_ca",
                format!("Failed to load trusted CA certificates from {}: {error}", ca.place),
            ),
        }
    }
    if let Some(custom) = custom_validator_config {
        trust = at.field("custom_validator_config", |at| custom_validator(custom, at))?;
    }
    let mut revocations = Arc::default();
    if let Some(crl) = crl {
        let crl = source("crl", Some(crl), at)?;
        match Revocations::parse(&crl.bytes) {
            Ok(parsed) => revocations = Arc::new(parsed),
            Err(error) => at.error_at("crl", format!("Failed to load CRL from {}: {error}", crl.place)),
        }
    }
    let mut names = at.each("match_typed_subject_alt_names", match_typed_subject_alt_names, name_matcher);
    let untyped = at.each("match_subject_alt_names", match_subject_alt_names, |matcher, at| {
        matcher::string(matcher, at).map(text_matcher)
    });
    for matcher in untyped {
        let kinds = [NameKind::Dns, NameKind::Uri, NameKind::Email, NameKind::Ip];
        names.extend(kinds.map(|kind| NameMatcher { kind, matcher: matcher.clone() }));
    }
    let hashes = at.each("verify_certificate_hash", verify_certificate_hash, |text, at| {
        let hash = sha256_hex(&text);
        if hash.is_none() {
            at.error(format!("Invalid hex-encoded SHA-256 {text}"));
        }
        hash
    });
    let spki_hashes = at.each("verify_certificate_spki", verify_certificate_spki, |text, at| {
        let hash = sha256_base64(&text);
        if hash.is_none() {
            at.error(format!("Invalid base64-encoded SHA-256 {text}"));
        }
        hash
    });
    let verification =
        at.value::<TrustChainVerification>("trust_chain_verification", trust_chain_verification)?;
    Some(ValidationRules {
        trust,
        revocations,
        leaf_crl_only: only_verify_leaf_cert_crl,
        allow_expired: allow_expired_certificate,
        accept_untrusted: verification == TrustChainVerification::AcceptUntrusted,
        max_depth: max_verify_depth,
        names,
        hashes,
        spki_hashes,
        suppress_ca_list: suppress_client_ca_list,
    })
}

/// What makes no sense without knowing whom to trust.
pub(super) fn check_rules(rules: &ValidationRules) -> Result<(), String> {
    if !matches!(rules.trust, Trust::Nobody) {
        return Ok(());
    }
    if rules.has_revocations() {
        return Err("Failed to load CRL without trusted CA".to_owned());
    }
    if !rules.names.is_empty() {
        return Err(
            "SAN-based verification of peer certificates without trusted CA is insecure and not allowed"
                .to_owned(),
        );
    }
    if rules.allow_expired {
        return Err("Certificate validity period is always ignored without trusted CA".to_owned());
    }
    Ok(())
}

fn custom_validator(custom: core::TypedExtensionConfig, at: &mut Lower) -> Option<Trust> {
    let core::TypedExtensionConfig { name, typed_config } = custom;
    let any = at.extension(typed_config.unwrap_or_default())?;
    if !leno_api::any::is::<proto::SpiffeCertValidatorConfig>(&any) {
        at.field("typed_config", |at| at.unsupported_extension(&name, &any.type_url));
        return None;
    }
    at.field("typed_config", |at| {
        let proto::SpiffeCertValidatorConfig { trust_domains, trust_bundles } = at.unpack(&any)?;
        at.unsupported("trust_bundles", trust_bundles.is_some());
        let mut seen = std::collections::HashSet::new();
        let domains = at.each("trust_domains", trust_domains, |domain, at| {
            let proto::spiffe_cert_validator_config::TrustDomain {
                name,
                trust_bundle,
                workload_trust_domain,
            } = domain;
            at.unsupported("workload_trust_domain", !workload_trust_domain.is_empty());
            if !seen.insert(name.clone()) {
                at.error(format!("Multiple trust bundles are given for one trust domain for {name}"));
            }
            let Some(bundle) = source("trust_bundle", trust_bundle, at) else {
                at.error_at("trust_bundle", "a trust bundle is required");
                return None;
            };
            match TrustBundle::parse(&bundle.bytes) {
                Ok(bundle) => Some((name, bundle)),
                Err(error) => {
                    at.error_at(
                        "trust_bundle",
                        format!("Failed to load trusted CA certificate for {name}: {error}"),
                    );
                    None
                }
            }
        });
        Some(Trust::Spiffe(Arc::new(domains)))
    })
}

fn name_matcher(proto: proto::SubjectAltNameMatcher, at: &mut Lower) -> Option<NameMatcher> {
    use proto::subject_alt_name_matcher::SanType;
    let proto::SubjectAltNameMatcher { san_type, matcher, oid } = proto;
    let kind = match at.value::<SanType>("san_type", san_type)? {
        SanType::Dns => NameKind::Dns,
        SanType::Uri => NameKind::Uri,
        SanType::Email => NameKind::Email,
        SanType::IpAddress => NameKind::Ip,
        SanType::OtherName if oid.is_empty() => {
            at.error_at("oid", "Failed to create string SAN matcher: OTHER_NAME requires an OID");
            return None;
        }
        SanType::OtherName => NameKind::Other(oid),
        SanType::Unspecified => {
            at.error_at("san_type", "value must not be in list [0]");
            return None;
        }
    };
    let matcher = at.required("matcher", matcher, matcher::string)?;
    Some(NameMatcher { kind, matcher: text_matcher(matcher) })
}

fn text_matcher(matcher: StringMatcher) -> TextMatcher {
    match matcher {
        StringMatcher::Exact(text, ignore_case) => TextMatcher::Exact(text.into(), ignore_case),
        StringMatcher::Prefix(text, ignore_case) => TextMatcher::Prefix(text.into(), ignore_case),
        StringMatcher::Suffix(text, ignore_case) => TextMatcher::Suffix(text.into(), ignore_case),
        StringMatcher::Contains(text, ignore_case) => TextMatcher::Contains(text.into(), ignore_case),
        StringMatcher::Regex(regex) => TextMatcher::Regex(regex),
    }
}

/// 64 hexadecimal digits, or pairs of them with colons between.
fn sha256_hex(text: &str) -> Option<[u8; 32]> {
    let digits = if text.len() == 95 {
        text.split(':').map(|pair| (pair.len() == 2).then_some(pair)).collect::<Option<String>>()?
    } else {
        text.to_owned()
    };
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (index, octet) in hash.iter_mut().enumerate() {
        *octet = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// 44 digits of base64.
fn sha256_base64(text: &str) -> Option<[u8; 32]> {
    leno_base::base64::decode(text.strip_suffix('=')?.as_bytes())?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{sha256_base64, sha256_hex};

    #[test]
    fn pins() {
        let hex = "ab".repeat(32);
        assert_eq!(sha256_hex(&hex), Some([0xab; 32]));
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(sha256_hex(&colons), Some([0xab; 32]));
        assert_eq!(sha256_hex(&"zz".repeat(32)), None);
        assert_eq!(sha256_base64("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="), Some([0xab; 32]));
        assert_eq!(sha256_base64("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s"), None);
    }
}
