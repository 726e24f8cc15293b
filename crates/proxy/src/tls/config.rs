//! Lowering of DownstreamTlsContext, UpstreamTlsContext and Secret.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use leno_base::Name;
use leno_tls::{
    Identity, NameKind, NameMatcher, Parameters, Revocations, Source, StaplePolicy, TextMatcher, TicketKey,
    TicketKeys, Trust, TrustBundle, ValidationRules, Version,
};
use prost_types::Any;
use rustls::KeyLog;

use crate::config::lower::Lower;
use crate::config::source::{Origin, config_source};
use crate::http::route::matcher::{self, StringMatcher};
use crate::tls::secrets::{NoSecrets, Secret, SecretKey, SecretRef};
use crate::tls::{DownstreamTls, Slot, Transport, UpstreamTls};

mod fill;

pub(crate) use fill::Fill;

/// Part of a context: there, or a secret to come.
#[derive(Clone, Debug)]
pub(crate) enum Piece<T> {
    /// There.
    Here(T),
    /// To come.
    Awaited(SecretRef),
}

/// What a context asks of peers: configured rules and those of a secret, merged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Validation {
    rules: ValidationRules,
    awaited: Option<SecretRef>,
}

/// DownstreamTlsContext, lowered.
#[derive(Debug)]
pub(crate) struct DownstreamSettings {
    parameters: Parameters,
    alpn: Vec<Vec<u8>>,
    certificates: Vec<Piece<Arc<Identity>>>,
    validation: Validation,
    require_client_certificate: bool,
    require_sni: bool,
    full_scan: bool,
    staple_policy: StaplePolicy,
    tickets: Piece<TicketKeys>,
    stateful: bool,
    session_timeout: Duration,
    prefer_client_ciphers: bool,
    key_log: Option<Arc<KeyLogFile>>,
}

/// UpstreamTlsContext, lowered.
#[derive(Debug)]
pub(crate) struct UpstreamSettings {
    parameters: Parameters,
    alpn: Vec<Vec<u8>>,
    certificate: Option<Piece<Arc<Identity>>>,
    validation: Validation,
    /// `sni`.
    pub(crate) sni: Option<Box<str>>,
    /// `auto_host_sni`: the endpoint's host name, if it has one, instead of `sni`.
    pub(crate) auto_host_sni: bool,
    match_server_name: bool,
    enforce_rsa_key_usage: bool,
    max_session_keys: u32,
    key_log: Option<Arc<KeyLogFile>>,
}

/// Lowers the transport socket of a filter chain.
pub(crate) fn downstream(
    socket: Option<core::TransportSocket>,
    at: &mut Lower,
) -> Option<Transport<DownstreamTls>> {
    transport(socket, downstream_context, at)
}

/// Lowers a transport socket towards endpoints.
pub(crate) fn upstream(
    socket: Option<core::TransportSocket>,
    at: &mut Lower,
) -> Option<Transport<UpstreamTls>> {
    transport(socket, upstream_context, at)
}

fn transport<P: prost::Message + prost::Name + Default, T>(
    socket: Option<core::TransportSocket>,
    lower: fn(P, &mut Lower) -> Option<T>,
    at: &mut Lower,
) -> Option<Transport<T>> {
    let Some(core::TransportSocket { name, config_type }) = socket else { return Some(Transport::Raw) };
    at.field("transport_socket", |at| {
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = config_type else {
            // Without a type the name decides, and Envoy refuses that by default.
            at.error_at("typed_config", format!("transport socket '{name}' must have a typed config"));
            return None;
        };
        let any = at.extension(any)?;
        at.field("typed_config", |at| {
            if leno_api::any::is::<P>(&any) {
                let context = at.unpack(&any)?;
                return lower(context, at).map(|tls| Transport::Tls(Arc::new(tls)));
            }
            if any.type_url.ends_with("/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer") {
                return Some(Transport::Raw);
            }
            at.unsupported_extension(&name, &any.type_url);
            None
        })
    })
}

fn downstream_context(proto: proto::DownstreamTlsContext, at: &mut Lower) -> Option<DownstreamTls> {
    use proto::downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType};
    let proto::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        disable_stateful_session_resumption,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = proto;
    let common = at.field("common_tls_context", |at| {
        common(common_tls_context.unwrap_or_default(), Parameters::default(), at)
    })?;
    let tickets = match session_ticket_keys_type {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => {
            Piece::Here(TicketKeys::Automatic)
        }
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => Piece::Here(TicketKeys::None),
        Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
            Piece::Here(at.field("session_ticket_keys", |at| ticket_keys(keys, at))?)
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(secret)) => {
            at.field("session_ticket_keys_sds_secret_config", |at| match reference(secret, at)? {
                Reference::Static(Secret::TicketKeys(keys)) => Some(Piece::Here(keys)),
                Reference::Static(_) => {
                    at.error("the static secret is not session ticket keys");
                    None
                }
                Reference::Awaited(wanted) => Some(Piece::Awaited(wanted)),
            })?
        }
    };
    if common.certificates.is_empty() {
        at.error_at("common_tls_context", "No TLS certificates found for server context");
    }
    let settings = DownstreamSettings {
        parameters: common.parameters,
        alpn: common.alpn,
        certificates: common.certificates,
        validation: common.validation,
        require_client_certificate: require_client_certificate.unwrap_or(false),
        require_sni: require_sni.unwrap_or(false),
        full_scan: full_scan_certs_on_sni_mismatch.unwrap_or(false),
        staple_policy: match at.value::<OcspStaplePolicy>("ocsp_staple_policy", ocsp_staple_policy)? {
            OcspStaplePolicy::LenientStapling => StaplePolicy::Lenient,
            OcspStaplePolicy::StrictStapling => StaplePolicy::Strict,
            OcspStaplePolicy::MustStaple => StaplePolicy::Must,
        },
        tickets,
        stateful: !disable_stateful_session_resumption,
        session_timeout: at
            .duration("session_timeout", session_timeout)
            .unwrap_or(Duration::from_secs(2 * 3600)),
        prefer_client_ciphers,
        key_log: common.key_log,
    };
    let tls = DownstreamTls { settings, context: Slot::new(None), shown: Slot::new(None) };
    if let Err(error) = tls.fill(&NoSecrets) {
        at.error(error);
    }
    Some(tls)
}

fn upstream_context(proto: proto::UpstreamTlsContext, at: &mut Lower) -> Option<UpstreamTls> {
    let proto::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        enforce_rsa_key_usage,
    } = proto;
    // rustls has none, nor has TLS 1.3.
    at.unsupported("allow_renegotiation", allow_renegotiation);
    let common = at.field("common_tls_context", |at| {
        common(common_tls_context.unwrap_or_default(), Parameters::of_client(), at)
    })?;
    let mut certificates = common.certificates.into_iter();
    let certificate = certificates.next();
    if certificates.next().is_some() {
        at.error_at(
            "common_tls_context.tls_certificates",
            "Multiple TLS certificates are not supported for client contexts",
        );
    }
    if !sni.is_empty() && rustls::pki_types::DnsName::try_from(sni.as_str()).is_err() {
        at.error_at("sni", format!("'{sni}' is not a DNS name"));
    }
    let trusts =
        common.validation.awaited.is_some() || !matches!(common.validation.rules.trust, Trust::Nobody);
    if auto_sni_san_validation && !trusts {
        at.error_at(
            "auto_sni_san_validation",
            "'auto_sni_san_validation' was configured without configuring a trusted CA",
        );
    }
    let settings = UpstreamSettings {
        parameters: common.parameters,
        alpn: common.alpn,
        certificate,
        validation: common.validation,
        sni: (!sni.is_empty()).then(|| sni.into()),
        auto_host_sni,
        match_server_name: auto_sni_san_validation,
        enforce_rsa_key_usage: enforce_rsa_key_usage.unwrap_or(true),
        max_session_keys: max_session_keys.unwrap_or(1),
        key_log: common.key_log,
    };
    let tls = UpstreamTls { settings, context: Slot::new(None), shown: Slot::new(None) };
    if let Err(error) = tls.fill(&NoSecrets) {
        at.error(error);
    }
    Some(tls)
}

/// CommonTlsContext, lowered.
struct Common {
    parameters: Parameters,
    alpn: Vec<Vec<u8>>,
    certificates: Vec<Piece<Arc<Identity>>>,
    validation: Validation,
    key_log: Option<Arc<KeyLogFile>>,
}

fn common(proto: proto::CommonTlsContext, default: Parameters, at: &mut Lower) -> Option<Common> {
    use proto::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let proto::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = proto;
    at.unsupported("tls_certificate_provider_instance", tls_certificate_provider_instance.is_some());
    at.unsupported("custom_tls_certificate_selector", custom_tls_certificate_selector.is_some());
    at.unsupported("tls_certificate_certificate_provider", tls_certificate_certificate_provider.is_some());
    at.unsupported(
        "tls_certificate_certificate_provider_instance",
        tls_certificate_certificate_provider_instance.is_some(),
    );
    at.unsupported("custom_handshaker", custom_handshaker.is_some());
    if !tls_certificates.is_empty() && !tls_certificate_sds_secret_configs.is_empty() {
        // Envoy takes those in place and forgets the others.
        at.error("tls_certificates and tls_certificate_sds_secret_configs exclude each other");
    }
    let parameters = match tls_params {
        Some(params) => at.field("tls_params", |at| lower_parameters(params, default, at)),
        None => Some(default),
    };
    let mut certificates =
        at.each("tls_certificates", tls_certificates, |proto, at| certificate(proto, at).map(Piece::Here));
    certificates.extend(at.each(
        "tls_certificate_sds_secret_configs",
        tls_certificate_sds_secret_configs,
        |secret, at| match reference(secret, at)? {
            Reference::Static(Secret::Certificate(identity)) => Some(Piece::Here(identity)),
            Reference::Static(_) => {
                at.error("the static secret is not a TLS certificate");
                None
            }
            Reference::Awaited(wanted) => Some(Piece::Awaited(wanted)),
        },
    ));
    let awaited = |secret: proto::SdsSecretConfig, default: ValidationRules, at: &mut Lower| match reference(
        secret, at,
    )? {
        Reference::Static(Secret::Validation(rules)) => {
            Some(Validation { rules: default.merged(&rules), awaited: None })
        }
        Reference::Static(_) => {
            at.error("the static secret is not a validation context");
            None
        }
        Reference::Awaited(wanted) => Some(Validation { rules: default, awaited: Some(wanted) }),
    };
    let validation = match validation_context_type {
        None => Some(Validation::default()),
        Some(ValidationContextType::ValidationContext(context)) => {
            let rules = at.field("validation_context", |at| validation(context, at));
            rules.map(|rules| Validation { rules, awaited: None })
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => at
            .field("validation_context_sds_secret_config", |at| {
                awaited(secret, ValidationRules::default(), at)
            }),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            at.field("combined_validation_context", |at| {
                let CombinedCertificateValidationContext {
                    default_validation_context,
                    validation_context_sds_secret_config,
                    validation_context_certificate_provider,
                    validation_context_certificate_provider_instance,
                } = combined;
                at.unsupported(
                    "validation_context_certificate_provider",
                    validation_context_certificate_provider.is_some(),
                );
                at.unsupported(
                    "validation_context_certificate_provider_instance",
                    validation_context_certificate_provider_instance.is_some(),
                );
                let default =
                    at.required("default_validation_context", default_validation_context, validation)?;
                at.required(
                    "validation_context_sds_secret_config",
                    validation_context_sds_secret_config,
                    |secret, at| awaited(secret, default, at),
                )
            })
        }
        Some(
            ValidationContextType::ValidationContextCertificateProvider(_)
            | ValidationContextType::ValidationContextCertificateProviderInstance(_),
        ) => {
            at.unsupported("validation_context_certificate_provider", true);
            None
        }
    };
    let validation = validation?;
    if validation.awaited.is_none()
        && let Err(error) = check_rules(&validation.rules)
    {
        at.error(error);
    }
    for protocol in &alpn_protocols {
        if protocol.is_empty() || protocol.len() > 255 {
            at.error_at("alpn_protocols", "Invalid ALPN protocol string");
        }
    }
    Some(Common {
        parameters: parameters?,
        // A list in one text is known too.
        alpn: alpn_protocols.iter().flat_map(|text| text.split(',')).map(|text| text.into()).collect(),
        certificates,
        validation,
        key_log: at.optional("key_log", key_log, lower_key_log),
    })
}

fn lower_parameters(
    proto: proto::TlsParameters,
    mut parameters: Parameters,
    at: &mut Lower,
) -> Option<Parameters> {
    use proto::tls_parameters::TlsProtocol;
    let proto::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = proto;
    at.unsupported("signature_algorithms", !signature_algorithms.is_empty());
    at.unsupported("compliance_policies", !compliance_policies.is_empty());
    let minimum = at.value::<TlsProtocol>("tls_minimum_protocol_version", tls_minimum_protocol_version)?;
    match minimum {
        TlsProtocol::TlSv13 => parameters.minimum = Version::Tls13,
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => {}
        // Deviation: versions below 1.2 are not negotiated even where they are allowed (RFC 8996).
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {}
    }
    match at.value::<TlsProtocol>("tls_maximum_protocol_version", tls_maximum_protocol_version)? {
        TlsProtocol::TlSv12 => parameters.maximum = Version::Tls12,
        TlsProtocol::TlSv13 => parameters.maximum = Version::Tls13,
        // Deviation: a client's default of 1.2 gives way to a minimum of 1.3; in Envoy no
        // handshake succeeds then.
        TlsProtocol::TlsAuto => parameters.maximum = parameters.maximum.max(parameters.minimum),
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => at.unsupported("tls_maximum_protocol_version", true),
    }
    if !cipher_suites.is_empty()
        && let Err(error) = parameters.set_suites(&cipher_suites)
    {
        at.error_at("cipher_suites", error);
    }
    if !ecdh_curves.is_empty()
        && let Err(error) = parameters.set_curves(&ecdh_curves)
    {
        at.error_at("ecdh_curves", error);
    }
    Some(parameters)
}

/// Bytes and where they came from.
fn source(field: &str, proto: Option<core::DataSource>, at: &mut Lower) -> Option<Source> {
    let mut proto = proto?;
    // It only concerns secrets that come by SDS: see `refers_to_files`.
    proto.watched_directory = None;
    let place = match &proto.specifier {
        Some(core::data_source::Specifier::Filename(path)) => path.clone(),
        _ => "<inline>".to_owned(),
    };
    let bytes = at.field(field, |at| crate::config::address::data_source(proto, at))?;
    Some(Source { bytes: bytes.to_vec(), place })
}

fn certificate(proto: proto::TlsCertificate, at: &mut Lower) -> Option<Arc<Identity>> {
    let proto::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        // It only concerns secrets that come by SDS: see `refers_to_files`.
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = proto;
    at.unsupported("pkcs12", pkcs12.is_some());
    at.unsupported("private_key_provider", private_key_provider.is_some());
    at.unsupported("password", password.is_some());
    at.unsupported("signed_certificate_timestamp", !signed_certificate_timestamp.is_empty());
    at.unsupported("tls_params", tls_params.is_some());
    if pkcs12.is_some() || private_key_provider.is_some() || password.is_some() {
        return None;
    }
    if certificate_chain.is_none() && private_key.is_none() {
        at.error("either a certificate chain with a private key, or pkcs12, is required");
        return None;
    }
    if certificate_chain.is_none() {
        at.error_at("certificate_chain", "Failed to load incomplete certificate: certificate chain not set");
        return None;
    }
    if private_key.is_none() {
        at.error_at("private_key", "Failed to load incomplete private key: private key not set");
        return None;
    }
    let chain = source("certificate_chain", certificate_chain, at);
    let key = source("private_key", private_key, at);
    let staple = match ocsp_staple {
        Some(staple) => Some(source("ocsp_staple", Some(staple), at)?),
        None => None,
    };
    let (chain, key) = (chain?, key?);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    match Identity::load(&chain, &key, staple.as_ref(), &provider) {
        Ok(identity) => Some(Arc::new(identity)),
        Err(error) => {
            at.error(error.to_string());
            None
        }
    }
}

fn ticket_keys(proto: proto::TlsSessionTicketKeys, at: &mut Lower) -> Option<TicketKeys> {
    let proto::TlsSessionTicketKeys { keys } = proto;
    let count = keys.len();
    let mut index = 0;
    let keys: Vec<TicketKey> = at.each("keys", keys, |key, at| {
        let key = source("", Some(key), at)?;
        index += 1;
        match TicketKey::new(&key.bytes, &key.place) {
            Ok(key) => Some(key),
            Err(error) => {
                at.error(error);
                None
            }
        }
    });
    (keys.len() == count).then_some(TicketKeys::Given(keys))
}

fn validation(proto: proto::CertificateValidationContext, at: &mut Lower) -> Option<ValidationRules> {
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
fn check_rules(rules: &ValidationRules) -> Result<(), String> {
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

/// A reference to a secret: one of the bootstrap's is there already.
enum Reference {
    Static(Secret),
    Awaited(SecretRef),
}

fn reference(proto: proto::SdsSecretConfig, at: &mut Lower) -> Option<Reference> {
    let proto::SdsSecretConfig { name, sds_config } = proto;
    match sds_config {
        None => {
            let secret = at.scope().secrets.get(name.as_str()).cloned();
            if secret.is_none() {
                at.error_at("name", format!("Unknown static secret: {name}"));
            }
            secret.map(Reference::Static)
        }
        Some(source) => at.field("sds_config", |at| {
            let source = config_source(source, at)?;
            match &source.origin {
                Origin::Ads => {}
                Origin::Grpc(server) => {
                    at.field("api_config_source", |at| {
                        at.unsupported("grpc_services[0].initial_metadata", !server.metadata.is_empty());
                        if let Some(Err(error)) =
                            at.scope().xds_clusters.as_ref().map(|known| known.check(&server.cluster))
                        {
                            at.error_at("grpc_services[0].envoy_grpc.cluster_name", error);
                        }
                    });
                }
                Origin::File(_) => {
                    at.unsupported("path_config_source", true);
                    return None;
                }
            }
            let key = SecretKey { name: name.into(), origin: source.origin };
            Some(Reference::Awaited(SecretRef { key, timeout: source.initial_fetch_timeout }))
        }),
    }
}

/// Lowers a Secret that comes by SDS.
pub(crate) fn dynamic_secret(source: &Any, at: &mut Lower) -> Option<Secret> {
    let proto: proto::Secret = at.unpack(source)?;
    if refers_to_files(&proto) {
        at.error("files of secrets that come by SDS are not supported yet");
        return None;
    }
    secret(proto, at).map(|(_, secret)| secret)
}

/// Whether parts of a secret lie in files, which would have to be watched.
fn refers_to_files(secret: &proto::Secret) -> bool {
    use proto::secret::Type;
    let is_file = |source: &Option<core::DataSource>| {
        let specifier = source.as_ref().and_then(|source| source.specifier.as_ref());
        matches!(specifier, Some(core::data_source::Specifier::Filename(_)))
    };
    match &secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            certificate.watched_directory.is_some()
                || [&certificate.certificate_chain, &certificate.private_key, &certificate.ocsp_staple]
                    .into_iter()
                    .any(is_file)
        }
        Some(Type::ValidationContext(context)) => {
            context.watched_directory.is_some() || is_file(&context.trusted_ca) || is_file(&context.crl)
        }
        Some(Type::SessionTicketKeys(keys)) => keys.keys.iter().cloned().any(|key| is_file(&Some(key))),
        Some(Type::GenericSecret(_)) | None => false,
    }
}

/// Lowers a Secret.
pub(crate) fn secret(proto: proto::Secret, at: &mut Lower) -> Option<(Name, Secret)> {
    use proto::secret::Type;
    let proto::Secret { name, r#type } = proto;
    let secret = match r#type {
        Some(Type::TlsCertificate(proto)) => {
            Secret::Certificate(at.field("tls_certificate", |at| certificate(proto, at))?)
        }
        Some(Type::ValidationContext(proto)) => {
            let rules = at.field("validation_context", |at| validation(proto, at))?;
            Secret::Validation(Arc::new(rules))
        }
        Some(Type::SessionTicketKeys(proto)) => {
            Secret::TicketKeys(at.field("session_ticket_keys", |at| ticket_keys(proto, at))?)
        }
        Some(Type::GenericSecret(_)) => {
            at.unsupported("generic_secret", true);
            return None;
        }
        None => {
            at.error("Secret type not implemented");
            return None;
        }
    };
    Some((name.into(), secret))
}

fn lower_key_log(proto: proto::TlsKeyLog, at: &mut Lower) -> Option<Arc<KeyLogFile>> {
    let proto::TlsKeyLog { path, local_address_range, remote_address_range } = proto;
    at.unsupported("local_address_range", !local_address_range.is_empty());
    at.unsupported("remote_address_range", !remote_address_range.is_empty());
    Some(Arc::new(KeyLogFile { path: path.into() }))
}

/// Writes the secrets of sessions to a file (NSS key log format), to decrypt recorded traffic.
#[derive(Debug)]
struct KeyLogFile {
    path: std::path::PathBuf,
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        use std::io::Write;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
        // It is for debugging: opening the file each time is no matter, and one that cannot be
        // written must not end the connection.
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            tracing::warn!(target: "connection", path = %self.path.display(), %error, "cannot write the key log");
        }
    }
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
