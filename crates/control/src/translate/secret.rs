//! Where secrets come from: what a workload's agent gives it, and credentials named by rules.

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::proto::core;
pub(crate) use crate::model::credential::CA_SUFFIX;
use crate::model::credential::{CONFIG_MAP, GATEWAY, SECRET};
use crate::scope::Abilities;

/// The workload's own certificate and key.
pub(crate) const CERTIFICATE: &str = "default";

/// The roots that the mesh trusts.
pub(crate) const ROOT: &str = "ROOTCA";

/// The cluster, of every bootstrap of Istio's, by which the agent is reached.
const AGENT_CLUSTER: &str = "sds-grpc";

/// The one by which it is reached where the first leads to another agent.
const FILES_CLUSTER: &str = "sds-files-grpc";

/// The cluster that leads to who gives credentials beside a proxy.
pub(crate) const CREDENTIALS_CLUSTER: &str = "sds-external";

/// Where he listens, as Istio has it, below the working directory of the proxy.
pub(crate) const CREDENTIALS_PATH: &str = "./var/run/secrets/credential-uds/socket";

/// What credentials begin with that are his, where he is, and else the control plane's.
const EXTERNAL: &str = "sds://";

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
    by_socket(name, AGENT_CLUSTER)
}

/// Who gives secrets beside a proxy, besides the one that gives its certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sockets {
    /// Its agent gives what is in files on a socket apart ([`Abilities::FILES_APART`]).
    files: bool,
    /// Somebody gives credentials ([`Abilities::CREDENTIALS`]).
    credentials: bool,
}

impl From<Abilities> for Sockets {
    fn from(abilities: Abilities) -> Sockets {
        Sockets {
            files: abilities.has(Abilities::FILES_APART),
            credentials: abilities.has(Abilities::CREDENTIALS),
        }
    }
}

impl Sockets {
    /// What is in files of the workload (`file-cert:`, `file-root:`).
    pub(crate) fn of_files(self, name: &str) -> tls::SdsSecretConfig {
        by_socket(name, if self.files { FILES_CLUSTER } else { AGENT_CLUSTER })
    }

    /// A credential that a rule names.
    pub(crate) fn of_credential(self, name: &str) -> tls::SdsSecretConfig {
        if self.credentials && name.starts_with(EXTERNAL) {
            // By its whole name, as they are used to.
            by_socket(name, CREDENTIALS_CLUSTER)
        } else {
            of_credential(name)
        }
    }
}

fn by_socket(name: &str, cluster: &str) -> tls::SdsSecretConfig {
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
    let name = name.strip_prefix(EXTERNAL).unwrap_or(name);
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
