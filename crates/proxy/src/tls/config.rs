//! Lowering of DownstreamTlsContext, UpstreamTlsContext and Secret.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use leno_base::Name;
use leno_tls::{Identity, Parameters, StaplePolicy, TicketKeys, Trust, ValidationRules, Version};

use crate::config::lower::Lower;
use crate::tls::secrets::{NoSecrets, Secret, SecretRef};
use crate::tls::{DownstreamTls, Slot, Transport, UpstreamTls};

mod certificate;
mod fill;
mod key_log;
mod secret;
mod validation;

pub(crate) use fill::{Expires, Fill};
pub(crate) use secret::{SecretFiles, dynamic_secret, secret, secret_files};

use certificate::{certificate, ticket_keys};
use key_log::KeyLogFile;
use secret::{Reference, reference};
use validation::{check_rules, validation};

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
    /// What stats call its CA.
    name: Name,
}

/// DownstreamTlsContext, lowered.
#[derive(Debug)]
pub(crate) struct DownstreamSettings {
    parameters: Parameters,
    alpn: Vec<Vec<u8>>,
    certificates: Vec<Piece<Arc<Identity>>>,
    /// What stats call them.
    names: Vec<Name>,
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
    /// What stats call it.
    name: Option<Name>,
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
        names: common.names,
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
        name: common.names.into_iter().next(),
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
    names: Vec<Name>,
    validation: Validation,
    key_log: Option<Arc<KeyLogFile>>,
}

/// What Envoy's stats call certificates that are configured in place: a name with a hash of nothing.
const UNNAMED: &str = "unnamed_cert_e3b0c442";
const UNNAMED_CA: &str = "unnamed_ca_cert_e3b0c442";

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
    let mut names: Vec<Name> = certificates.iter().map(|_| UNNAMED.into()).collect();
    names.extend(tls_certificate_sds_secret_configs.iter().map(|secret| Name::new(&secret.name)));
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
    let awaited = |secret: proto::SdsSecretConfig, default: ValidationRules, at: &mut Lower| {
        let name = Name::new(&secret.name);
        match reference(secret, at)? {
            Reference::Static(Secret::Validation(rules)) => {
                Some(Validation { rules: default.merged(&rules), awaited: None, name })
            }
            Reference::Static(_) => {
                at.error("the static secret is not a validation context");
                None
            }
            Reference::Awaited(wanted) => Some(Validation { rules: default, awaited: Some(wanted), name }),
        }
    };
    let validation = match validation_context_type {
        None => Some(Validation::default()),
        Some(ValidationContextType::ValidationContext(context)) => {
            let rules = at.field("validation_context", |at| validation(context, at));
            rules.map(|rules| Validation { rules, awaited: None, name: UNNAMED_CA.into() })
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
        names,
        validation,
        key_log: at.optional("key_log", key_log, key_log::lower),
    })
}

fn lower_parameters(
    proto: proto::TlsParameters,
    mut parameters: Parameters,
    at: &mut Lower,
) -> Option<Parameters> {
    use proto::tls_parameters::{CompliancePolicy, TlsProtocol};
    let proto::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = proto;
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
    if !signature_algorithms.is_empty()
        && let Err(error) = parameters.set_schemes(&signature_algorithms)
    {
        at.error_at("signature_algorithms", error);
    }
    for policy in compliance_policies {
        match at.value::<CompliancePolicy>("compliance_policies", policy)? {
            CompliancePolicy::Fips202205 => parameters.set_fips(),
            CompliancePolicy::Cnsa1202603 | CompliancePolicy::Cnsa2202603 => {
                at.unsupported("compliance_policies", true);
            }
        }
    }
    Some(parameters)
}
