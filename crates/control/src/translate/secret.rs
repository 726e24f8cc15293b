//! Where secrets come from: what a workload's agent gives it, and credentials named by rules.

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::proto::core;
pub(crate) use crate::model::credential::CA_SUFFIX;
use crate::model::credential::{CONFIG_MAP, GATEWAY, SECRET};

/// The workload's own certificate and key.
pub(crate) const CERTIFICATE: &str = "default";

/// The roots that the mesh trusts.
pub(crate) const ROOT: &str = "ROOTCA";

/// The cluster, of every bootstrap of Istio's, by which the agent is reached.
const AGENT_CLUSTER: &str = "sds-grpc";

/// The one by which it is reached where the first leads to another agent.
const FILES_CLUSTER: &str = "sds-files-grpc";

/// Certificates of the gateway itself, as a credential.
const BUILTIN: &str = "builtin://";

/// Spellings of credentials that say where they come from.
const SCHEMES: [&str; 4] = [SECRET, GATEWAY, CONFIG_MAP, BUILTIN];

/// Whether a credential holds nothing that must be kept secret.
pub(crate) fn is_public(credential: &str) -> bool {
    credential.starts_with(CONFIG_MAP)
}

/// The workload's own certificate, or its roots.
pub(crate) fn of_workload(name: &str) -> tls::SdsSecretConfig {
    by_agent(name, AGENT_CLUSTER)
}

/// What is in files of the workload (`file-cert:`, `file-root:`). `apart`: another agent gives the workload's own
/// certificate ([`Abilities::FILES_APART`](crate::scope::Abilities::FILES_APART)).
pub(crate) fn of_files(name: &str, apart: bool) -> tls::SdsSecretConfig {
    by_agent(name, if apart { FILES_CLUSTER } else { AGENT_CLUSTER })
}

fn by_agent(name: &str, cluster: &str) -> tls::SdsSecretConfig {
    // Nothing can be done without the workload's own, so it is waited for.
    let own = name == CERTIFICATE || name == ROOT;
    let agent = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        set_node_on_first_message_only: true,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc {
                    cluster_name: cluster.to_owned(),
                    ..core::grpc_service::EnvoyGrpc::default()
                },
            )),
            ..core::GrpcService::default()
        }],
        ..core::ApiConfigSource::default()
    };
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(core::ConfigSource {
            initial_fetch_timeout: own.then(prost_types::Duration::default),
            resource_api_version: core::ApiVersion::V3 as i32,
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(agent)),
            ..core::ConfigSource::default()
        }),
    }
}

/// A credential that a rule names, from the control plane.
pub(crate) fn of_credential(name: &str) -> tls::SdsSecretConfig {
    if name == BUILTIN {
        return of_workload(CERTIFICATE);
    }
    if name.strip_suffix(CA_SUFFIX) == Some(BUILTIN) {
        return of_workload(ROOT);
    }
    let name = name.strip_prefix("sds://").unwrap_or(name);
    let known = SCHEMES.iter().any(|scheme| name.starts_with(scheme));
    let name = if known { name.to_owned() } else { format!("{SECRET}{name}") };
    tls::SdsSecretConfig {
        name,
        // The secret may not exist: that must not hold up everything else, so Envoy's own limit to
        // its patience holds.
        sds_config: Some(core::ConfigSource {
            resource_api_version: core::ApiVersion::V3 as i32,
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
                core::AggregatedConfigSource::default(),
            )),
            ..core::ConfigSource::default()
        }),
    }
}
