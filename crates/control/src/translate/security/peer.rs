//! What a port takes, as filter chains of the inbound listener: by the transport, and by the protocols
//! that clients of the mesh offer in TLS.

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};

use crate::model::mesh::{MeshConfig, TlsProtocol};
use crate::registry::protocol::Protocol;
use crate::scope::security::PeerMode;
use crate::translate::proto::{core, ty};
use crate::translate::resource::pack;
use crate::translate::secret::{self, CERTIFICATE, ROOT};
use ty::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

/// Transports, as the inspectors of listeners name them.
const TLS: &str = "tls";
const RAW: &str = "raw_buffer";

/// What clients of the mesh offer whose proxies know that it is HTTP.
const MESH_HTTP: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// What they offer for all else.
const MESH_BYTES: &[&str] = &["istio-peer-exchange", "istio"];

/// All of these.
const MESH_ALL: &[&str] = &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// What is agreed on inside of TLS.
const HTTP_INSIDE: &[&str] = &["h2", "http/1.1"];
const BYTES_INSIDE: &[&str] = &["istio-peer-exchange", "h2", "http/1.1"];

/// The ciphers for TLS 1.2 between proxies, unless the mesh names others; Istio's.
const CIPHERS: &[&str] = &[
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// One chain of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortChain {
    /// Whether it is for HTTP, otherwise for bytes.
    pub(crate) http: bool,
    /// Whether it ends the mesh's TLS.
    pub(crate) mutual: bool,
    pub(crate) transport: &'static str,
    pub(crate) offered: Offered,
}

/// What a client offers to speak, in TLS, or is seen to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It does not matter.
    Any,
    /// HTTP in plain text.
    PlainHttp,
    /// One of these.
    These(&'static [&'static str]),
}

const fn mutual(http: bool, offered: Offered) -> PortChain {
    PortChain { http, mutual: true, transport: TLS, offered }
}

const fn plain(http: bool, transport: &'static str, offered: Offered) -> PortChain {
    PortChain { http, mutual: false, transport, offered }
}

/// The chains of a port with a protocol, in Istio's order.
pub(crate) fn chains(mode: PeerMode, protocol: Protocol) -> &'static [PortChain] {
    match (mode, protocol) {
        (PeerMode::Disable, Protocol::Auto) => {
            const { &[plain(true, RAW, Offered::PlainHttp), plain(false, RAW, Offered::Any)] }
        }
        (PeerMode::Permissive, Protocol::Auto) => {
            const {
                &[
                    mutual(true, Offered::These(MESH_HTTP)),
                    plain(true, RAW, Offered::PlainHttp),
                    mutual(false, Offered::These(MESH_BYTES)),
                    plain(false, RAW, Offered::Any),
                    // The workload's own TLS.
                    plain(false, TLS, Offered::Any),
                ]
            }
        }
        (PeerMode::Strict, Protocol::Auto) => {
            const { &[mutual(true, Offered::These(MESH_HTTP)), mutual(false, Offered::Any)] }
        }
        (PeerMode::Disable, http) if http.is_http() => const { &[plain(true, RAW, Offered::Any)] },
        (PeerMode::Permissive, http) if http.is_http() => {
            const { &[mutual(true, Offered::These(MESH_ALL)), plain(true, RAW, Offered::Any)] }
        }
        (PeerMode::Strict, http) if http.is_http() => const { &[mutual(true, Offered::Any)] },
        (PeerMode::Disable, _) => const { &[plain(false, RAW, Offered::Any)] },
        (PeerMode::Permissive, _) => {
            const {
                &[
                    mutual(false, Offered::These(MESH_ALL)),
                    plain(false, TLS, Offered::Any),
                    plain(false, RAW, Offered::Any),
                ]
            }
        }
        (PeerMode::Strict, _) => const { &[mutual(false, Offered::Any)] },
    }
}

/// The transport socket that ends the mesh's mutual TLS. `exchanges`: whether the proxy tells clients
/// who it is; if not it must not agree to.
pub(crate) fn socket(mesh: &MeshConfig, http: bool, exchanges: bool) -> core::TransportSocket {
    let settings = mesh.mesh_mtls.as_ref();
    let minimum = match settings.map(|settings| settings.min_protocol_version) {
        Some(TlsProtocol::V1_3) => tls::tls_parameters::TlsProtocol::TlSv13,
        _ => tls::tls_parameters::TlsProtocol::TlSv12,
    };
    let ciphers = match settings.map(|settings| settings.cipher_suites.as_slice()) {
        Some(given @ [_, ..]) => given.to_vec(),
        _ => owned(CIPHERS),
    };
    #[expect(deprecated, reason = "Istio's configuration, which people and patches read, has this field")]
    let validation = tls::CertificateValidationContext {
        match_subject_alt_names: trust_domains(mesh).into_iter().map(identity).collect(),
        ..tls::CertificateValidationContext::default()
    };
    let context = tls::DownstreamTlsContext {
        require_client_certificate: Some(true),
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: owned(if http || !exchanges { HTTP_INSIDE } else { BYTES_INSIDE }),
            tls_params: Some(tls::TlsParameters {
                tls_minimum_protocol_version: minimum as i32,
                tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
                cipher_suites: ciphers,
                ..tls::TlsParameters::default()
            }),
            tls_certificate_sds_secret_configs: vec![secret::of_workload(CERTIFICATE)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    validation_context_sds_secret_config: Some(secret::of_workload(ROOT)),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..tls::CommonTlsContext::default()
        }),
        ..tls::DownstreamTlsContext::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

/// The trust domains that clients may be of, each once.
fn trust_domains(mesh: &MeshConfig) -> Vec<&str> {
    let roots = mesh.ca_certificates.iter().flat_map(|root| &root.trust_domains);
    let all = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).chain(roots);
    let mut found: Vec<&str> = Vec::new();
    for domain in all.filter(|domain| !domain.is_empty()) {
        if !found.contains(&domain.as_str()) {
            found.push(domain);
        }
    }
    found
}

/// All identities of a trust domain.
fn identity(domain: &str) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::Prefix(format!("spiffe://{domain}/"))),
        ..StringMatcher::default()
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}
