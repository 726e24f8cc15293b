//! TLS of a gateway's servers, and of what a Sidecar takes in: certificates, what clients must show, versions and ciphers.

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;

use crate::model::gateway::{ServerTls, ServerTlsMode, TlsVersion};
use crate::model::mesh::{MeshConfig, TlsParameters, TlsProtocol};
use crate::scope::Abilities;
use crate::scope::gateways::{GatewayServer, ServerKind};
use crate::translate::proto::{core, ty};
use crate::translate::secret::{self, CA_SUFFIX, CERTIFICATE, ROOT, Sockets};

/// What a server of HTTP offers.
const HTTP: &[&str] = &["h2", "http/1.1"];

/// What a server of bytes inside of the mesh offers.
const MESH_BYTES: &[&str] = &["istio-peer-exchange", "h2", "http/1.1"];

/// The context of a server that ends TLS; `None` for others.
pub(super) fn context(
    server: &GatewayServer,
    mesh: &MeshConfig,
    abilities: Abilities,
) -> Option<tls::DownstreamTlsContext> {
    if !matches!(server.kind, ServerKind::Https | ServerKind::Tls) {
        return None;
    }
    let settings = server.server.tls.as_ref()?;
    // Whoever does not tell the other who it is must not agree to.
    let bytes = server.kind == ServerKind::Tls && abilities.has(Abilities::TCP_PEERS);
    of_settings(settings, bytes, mesh, abilities.into())
}

/// The context that ends TLS as settings say; `None` without a mode. `bytes`: whether what is inside is
/// anything but HTTP.
pub(super) fn of_settings(
    settings: &ServerTls,
    bytes: bool,
    mesh: &MeshConfig,
    sockets: Sockets,
) -> Option<tls::DownstreamTlsContext> {
    let mode = settings.mode?;
    let requires = matches!(mode, ServerTlsMode::Mutual | ServerTlsMode::IstioMutual);
    let validates = requires || mode == ServerTlsMode::OptionalMutual;
    let is_mesh_bytes = mode == ServerTlsMode::IstioMutual && bytes;
    let alpn = if is_mesh_bytes { MESH_BYTES } else { HTTP };
    let mut common = tls::CommonTlsContext {
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        ..tls::CommonTlsContext::default()
    };
    let (certificates, root) = if mode == ServerTlsMode::IstioMutual {
        (vec![secret::of_workload(CERTIFICATE)], secret::of_workload(ROOT))
    } else {
        credentials(settings, sockets)
    };
    common.tls_certificate_sds_secret_configs = certificates;
    if mode != ServerTlsMode::IstioMutual {
        common.tls_params = parameters(settings, mesh.tls_defaults.as_ref());
    }
    let validation = validation(settings);
    common.validation_context_type = if validates {
        Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            tls::common_tls_context::CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(root),
                ..tls::common_tls_context::CombinedCertificateValidationContext::default()
            },
        ))
    } else {
        let names = !settings.subject_alt_names.is_empty();
        names.then_some(tls::common_tls_context::ValidationContextType::ValidationContext(validation))
    };
    Some(tls::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(requires),
        ..tls::DownstreamTlsContext::default()
    })
}

/// A server's certificates, and the roots that its clients' must come from: credentials from the
/// control plane or whoever gives them beside the gateway, or files, which the gateway's agent serves so that they can be renewed.
fn credentials(settings: &ServerTls, sockets: Sockets) -> (Vec<tls::SdsSecretConfig>, tls::SdsSecretConfig) {
    let named = if settings.credential_names.is_empty() {
        std::slice::from_ref(&settings.credential_name)
    } else {
        &settings.credential_names
    };
    if let Some(first) = named.first().filter(|name| !name.is_empty()) {
        let certificates = named.iter().map(|name| sockets.of_credential(name)).collect();
        let root = if settings.ca_cert_credential_name.is_empty() {
            // Of several certificates the first brings the roots, as Envoy knows one set only.
            sockets.of_credential(&format!("{first}{CA_SUFFIX}"))
        } else {
            sockets.of_credential(&settings.ca_cert_credential_name)
        };
        return (certificates, root);
    }
    let file = |certificate: &str, key: &str| {
        if certificate.is_empty() || key.is_empty() {
            secret::of_workload(CERTIFICATE)
        } else {
            sockets.of_files(&format!("file-cert:{certificate}~{key}"))
        }
    };
    let certificates = if settings.tls_certificates.is_empty() {
        vec![file(&settings.server_certificate, &settings.private_key)]
    } else {
        let several = settings.tls_certificates.iter();
        several.map(|certificate| file(&certificate.server_certificate, &certificate.private_key)).collect()
    };
    let root = match settings.ca_certificates.as_str() {
        "" => secret::of_workload(ROOT),
        path => sockets.of_files(&format!("file-root:{path}")),
    };
    (certificates, root)
}

/// What a client's certificate must show besides coming from the roots.
// Deviation: istiod looks at verifyCertificateSpki and verifyCertificateHash only where the server has
// a credentialName, and at caCrl only where it has none; here all of them hold always.
#[allow(deprecated)] // Istio's configuration has the names without their kind
fn validation(settings: &ServerTls) -> tls::CertificateValidationContext {
    use tls::certificate_validation_context::TrustChainVerification;
    use ty::matcher::v3::string_matcher::MatchPattern;
    let name = |name: &String| ty::matcher::v3::StringMatcher {
        match_pattern: Some(MatchPattern::Exact(name.clone())),
        ..ty::matcher::v3::StringMatcher::default()
    };
    let insecure = settings.insecure_skip_verify == Some(true);
    tls::CertificateValidationContext {
        match_subject_alt_names: settings.subject_alt_names.iter().map(name).collect(),
        verify_certificate_spki: settings.verify_certificate_spki.clone(),
        verify_certificate_hash: settings.verify_certificate_hash.clone(),
        crl: (!settings.ca_crl.is_empty()).then(|| core::DataSource {
            specifier: Some(core::data_source::Specifier::Filename(settings.ca_crl.clone())),
            ..core::DataSource::default()
        }),
        trust_chain_verification: if insecure {
            TrustChainVerification::AcceptUntrusted
        } else {
            TrustChainVerification::VerifyTrustChain
        } as i32,
        ..tls::CertificateValidationContext::default()
    }
}

/// Versions and ciphers: the server's, where it says nothing the mesh's; `None` if neither does.
fn parameters(settings: &ServerTls, defaults: Option<&TlsParameters>) -> Option<tls::TlsParameters> {
    use tls::tls_parameters::TlsProtocol as Version;
    let version = |version: Option<TlsVersion>| match version {
        None | Some(TlsVersion::Auto) => None,
        Some(TlsVersion::V1_0) => Some(Version::TlSv10 as i32),
        Some(TlsVersion::V1_1) => Some(Version::TlSv11 as i32),
        Some(TlsVersion::V1_2) => Some(Version::TlSv12 as i32),
        Some(TlsVersion::V1_3) => Some(Version::TlSv13 as i32),
    };
    let default = match defaults.map_or(TlsProtocol::default(), |defaults| defaults.min_protocol_version) {
        TlsProtocol::Auto => Version::TlsAuto,
        TlsProtocol::V1_2 => Version::TlSv12,
        TlsProtocol::V1_3 => Version::TlSv13,
    };
    let ciphers = match defaults {
        Some(defaults) if settings.cipher_suites.is_empty() => &defaults.cipher_suites,
        _ => &settings.cipher_suites,
    };
    let parameters = tls::TlsParameters {
        tls_minimum_protocol_version: version(settings.min_protocol_version).unwrap_or(default as i32),
        tls_maximum_protocol_version: version(settings.max_protocol_version).unwrap_or_default(),
        cipher_suites: ciphers.clone(),
        ecdh_curves: defaults.map(|defaults| defaults.ecdh_curves.clone()).unwrap_or_default(),
        ..tls::TlsParameters::default()
    };
    (parameters != tls::TlsParameters::default()).then_some(parameters)
}
