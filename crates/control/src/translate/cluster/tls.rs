//! The transport sockets of clusters: TLS as rules ask for it, the mesh's own mutual TLS, and the
//! PROXY protocol in front of either.
//!
//! The mesh's own mutual TLS is for clients that have its certificates ([`Client::certificates`]):
//! where no rule says otherwise they use it with all endpoints that do so too.
//!
//! [`Client::certificates`]: super::Client

use leno_api::proto::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy_protocol;
use leno_api::proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_derive::Cx;
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};

use super::draft::Draft;
use super::outbound::Applied;
use crate::model::destination_rule::{ClientTls, ClientTlsMode, ProxyProtocol, ProxyProtocolVersion};
use crate::model::mesh::MeshConfig;
use crate::registry::Mesh;
use crate::registry::accounts::ServiceAccounts;
use crate::scope::mutual_tls;
use crate::translate::name;
use crate::translate::proto::cluster::cluster::{DiscoveryType, TransportSocketMatch};
use crate::translate::proto::core;
use crate::translate::proto::ty::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use crate::translate::resource::{object, pack, structure, text};
use crate::translate::secret::{self, Sockets};

/// What proxies of the mesh say that they speak, in TLS: something of the mesh's own, or HTTP/2
/// inside of it.
const IN_MESH: [&str; 2] = ["istio-peer-exchange", "istio"];
const IN_MESH_HTTP2: [&str; 3] = ["istio-peer-exchange", "istio", "h2"];

/// Applies what a rule says of TLS, or else the mesh's own.
pub(super) fn apply(cx: &Cx<'_>, draft: &mut Draft, applied: Applied<'_>) {
    let Applied { key, service, effective, .. } = applied;
    let mesh = cx.get::<Mesh>(&());
    match &effective.tls {
        None => {
            if draft.is_dynamic()
                || !key.client.certificates
                || !mutual_tls::is_automatic(cx, service, &key.policy())
            {
                return;
            }
            let socket = mutual(cx, draft, applied, None);
            if draft.kind() == Some(DiscoveryType::OriginalDst) {
                draft.cluster.transport_socket = Some(socket);
            } else {
                draft.cluster.transport_socket_matches = vec![
                    TransportSocketMatch {
                        name: "tlsMode-istio".to_owned(),
                        r#match: structure(object([("tlsMode", text("istio"))])),
                        transport_socket: Some(socket),
                    },
                    TransportSocketMatch {
                        name: "tlsMode-disabled".to_owned(),
                        r#match: Some(prost_types::Struct::default()),
                        transport_socket: Some(plain()),
                    },
                ];
            }
        }
        Some(settings) => match settings.mode {
            None | Some(ClientTlsMode::Disable) => {}
            // Whoever has no certificates cannot, and is not cut off for it.
            Some(ClientTlsMode::IstioMutual) if !key.client.certificates => {}
            Some(ClientTlsMode::IstioMutual) => {
                if draft.is_dynamic() {
                    set_automatic_names(draft, settings);
                }
                let socket = mutual(cx, draft, applied, Some(settings));
                draft.cluster.transport_socket = Some(socket);
            }
            Some(mode @ (ClientTlsMode::Simple | ClientTlsMode::Mutual)) => {
                // Secrets are for the workloads that a rule is for, not for all who see it.
                let shared = !key.client.gateway && !applied.merged.selects;
                if shared
                    && !settings.credential_name.is_empty()
                    && !secret::is_public(&settings.credential_name)
                {
                    return;
                }
                let names = if settings.subject_alt_names.is_empty() && !service.is_kubernetes() {
                    service.accounts.clone()
                } else {
                    settings.subject_alt_names.clone()
                };
                let socket = originated(draft, names, settings, mode, &mesh, key.client.sockets);
                draft.cluster.transport_socket = Some(socket);
            }
        },
    }
}

/// Whether a cluster whose endpoints are looked up by name leaves out some of the checks that
/// Envoy wants there.
pub(super) fn is_insecure_dynamic(settings: Option<&ClientTls>) -> bool {
    settings.is_some_and(|settings| {
        let tls = !matches!(settings.mode, None | Some(ClientTlsMode::Disable));
        tls && (settings.insecure_skip_verify == Some(true) || !settings.sni.is_empty())
    })
}

/// The mesh's own mutual TLS.
fn mutual(
    cx: &Cx<'_>,
    draft: &mut Draft,
    applied: Applied<'_>,
    settings: Option<&ClientTls>,
) -> core::TransportSocket {
    let Applied { key, service, port, .. } = applied;
    let given = settings.map(|settings| settings.subject_alt_names.as_slice()).unwrap_or_default();
    let names =
        if given.is_empty() { cx.get::<ServiceAccounts>(&service.id).to_vec() } else { given.to_vec() };
    let sni = settings.map(|settings| settings.sni.clone()).filter(|sni| !sni.is_empty());
    let sni = sni.unwrap_or_else(|| match draft.is_dynamic() {
        true => String::new(),
        false => name::outbound_sni(port.number, &key.subset, &service.id.host),
    });
    let http2 = draft.http2().is_some();
    let protocols: &[&str] = if http2 { &IN_MESH_HTTP2 } else { &IN_MESH };
    // Whoever does not tell who it is at the beginning of connections must not offer to.
    let protocols = if key.client.exchanges { protocols } else { protocols.get(1..).unwrap_or_default() };
    let context = tls::UpstreamTlsContext {
        sni,
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(parameters(None)),
            alpn_protocols: protocols.iter().map(|protocol| (*protocol).to_owned()).collect(),
            tls_certificate_sds_secret_configs: vec![secret::of_workload(secret::CERTIFICATE)],
            validation_context_type: Some(combined(names, None, secret::of_workload(secret::ROOT))),
            ..tls::CommonTlsContext::default()
        }),
        ..tls::UpstreamTlsContext::default()
    };
    socket(&context)
}

/// TLS to something that is not of the mesh, or does not use its certificates; `names` are those of
/// which its certificate must have one.
pub(super) fn originated(
    draft: &mut Draft,
    names: Vec<String>,
    settings: &ClientTls,
    mode: ClientTlsMode,
    mesh: &MeshConfig,
    sockets: Sockets,
) -> core::TransportSocket {
    set_automatic_names(draft, settings);
    let unchecked = settings.insecure_skip_verify == Some(true);
    let mut common = tls::CommonTlsContext {
        tls_params: Some(parameters(Some(mesh))),
        ..tls::CommonTlsContext::default()
    };
    if settings.credential_name.is_empty() {
        if mode == ClientTlsMode::Mutual {
            let name = format!("file-cert:{}~{}", settings.client_certificate, settings.private_key);
            common.tls_certificate_sds_secret_configs = vec![sockets.of_files(&name)];
        }
        common.validation_context_type = Some(if unchecked {
            ValidationContextType::ValidationContext(tls::CertificateValidationContext::default())
        } else {
            let roots = match settings.ca_certificates.as_str() {
                "" => "system",
                path => path,
            };
            let list = Some(settings.ca_crl.as_str()).filter(|path| !path.is_empty());
            combined(names, list, sockets.of_files(&format!("file-root:{roots}")))
        });
    } else {
        if mode == ClientTlsMode::Mutual {
            common.tls_certificate_sds_secret_configs =
                vec![sockets.of_credential(&settings.credential_name)];
        }
        if !unchecked {
            let name = format!("{}{}", settings.credential_name, secret::CA_SUFFIX);
            common.validation_context_type = Some(combined(names, None, sockets.of_credential(&name)));
        }
    }
    if draft.http2().is_some() {
        common.alpn_protocols = vec!["h2".to_owned()];
    }
    socket(&tls::UpstreamTlsContext {
        sni: settings.sni.clone(),
        common_tls_context: Some(common),
        ..tls::UpstreamTlsContext::default()
    })
}

/// Asks for the name in the request, and wants it in the certificate, where a rule gives none.
fn set_automatic_names(draft: &mut Draft, settings: &ClientTls) {
    let automatic = settings.sni.is_empty();
    let unnamed = draft.is_dynamic() || (automatic && settings.subject_alt_names.is_empty());
    if automatic {
        draft.upstream_http().auto_sni = true;
    }
    if unnamed && settings.insecure_skip_verify != Some(true) {
        draft.upstream_http().auto_san_validation = true;
    }
}

fn combined(names: Vec<String>, revoked: Option<&str>, roots: tls::SdsSecretConfig) -> ValidationContextType {
    #[allow(deprecated)] // Istio's configuration, which people and patches read, has this field
    let context = tls::CertificateValidationContext {
        match_subject_alt_names: names
            .into_iter()
            .map(|name| StringMatcher {
                match_pattern: Some(MatchPattern::Exact(name)),
                ..StringMatcher::default()
            })
            .collect(),
        crl: revoked.map(|path| core::DataSource {
            specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
            ..core::DataSource::default()
        }),
        ..tls::CertificateValidationContext::default()
    };
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(roots),
        ..CombinedCertificateValidationContext::default()
    })
}

/// Versions and algorithms; those that the mesh names are for TLS beyond the mesh.
fn parameters(mesh: Option<&MeshConfig>) -> tls::TlsParameters {
    use tls::tls_parameters::TlsProtocol::{TlSv12, TlSv13};
    let defaults = mesh.and_then(|mesh| mesh.tls_defaults.as_ref());
    tls::TlsParameters {
        tls_minimum_protocol_version: TlSv12 as i32,
        tls_maximum_protocol_version: TlSv13 as i32,
        ecdh_curves: defaults.map(|defaults| defaults.ecdh_curves.clone()).unwrap_or_default(),
        cipher_suites: defaults.map(|defaults| defaults.cipher_suites.clone()).unwrap_or_default(),
        ..tls::TlsParameters::default()
    }
}

/// Tells endpoints who the client is before anything else is said.
pub(super) fn send_proxy_protocol(draft: &mut Draft, settings: &ProxyProtocol) {
    let version = match settings.version {
        None | Some(ProxyProtocolVersion::V1) => core::proxy_protocol_config::Version::V1,
        Some(ProxyProtocolVersion::V2) => core::proxy_protocol_config::Version::V2,
    };
    let wrap = |inner: core::TransportSocket| {
        let transport = proxy_protocol::ProxyProtocolUpstreamTransport {
            config: Some(core::ProxyProtocolConfig {
                version: version as i32,
                ..core::ProxyProtocolConfig::default()
            }),
            transport_socket: Some(inner),
            ..proxy_protocol::ProxyProtocolUpstreamTransport::default()
        };
        core::TransportSocket {
            name: "envoy.transport_sockets.upstream_proxy_protocol".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&transport))),
        }
    };
    let message = &mut draft.cluster;
    for found in &mut message.transport_socket_matches {
        found.transport_socket = found.transport_socket.take().map(wrap);
    }
    if message.transport_socket_matches.is_empty() {
        message.transport_socket = Some(wrap(message.transport_socket.take().unwrap_or_else(plain)));
    }
}

fn socket(context: &tls::UpstreamTlsContext) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(context))),
    }
}

fn plain() -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&RawBuffer::default()))),
    }
}
