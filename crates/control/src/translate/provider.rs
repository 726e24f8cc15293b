//! Services that proxies ask or tell besides those that workloads call: what the `extensionProviders`
//! of the mesh name.

use leno_derive::Cx;

use super::name;
use super::proto::core;
use crate::registry::Resolution;
use crate::registry::protocol::Protocol;
use crate::scope::sidecar::{self, Sight};

/// A service of a provider, as proxies of some namespace reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) host: String,
    pub(crate) cluster: String,
}

/// Finds the service that a provider names, as `host` or `namespace/host`; or says why it cannot be
/// used by workloads that see so much.
// Deviation: Istio names the cluster of a provider that a Sidecar does not import too, which proxies
// refuse, or fail to find later. Here such a provider is as one that is not there.
pub(crate) fn find(cx: &Cx<'_>, sight: &Sight, service: &str, port: u32) -> Result<Service, String> {
    let (owner, host) = match service.split_once('/') {
        Some((owner, host)) => (Some(owner), host),
        None => (None, service),
    };
    let number = u16::try_from(port).ok().filter(|port| *port != 0);
    let number = number.ok_or_else(|| format!("the provider's port {port} is not between 1 and 65535"))?;
    let visible = sidecar::visible(cx, sight);
    let found = visible.get(host).filter(|found| owner.is_none_or(|owner| found.namespace() == owner));
    let found = found.ok_or_else(|| format!("there is no service {service}, which the provider names"))?;
    let served = found.port(number).is_some_and(|port| port.protocol != Protocol::Datagram);
    if !served || matches!(found.resolution, Resolution::Alias | Resolution::Dynamic) {
        return Err(format!(
            "the service {service}, which the provider names, cannot be asked on port {port}"
        ));
    }
    Ok(Service { host: host.to_owned(), cluster: name::outbound(number, "", host) })
}

impl Service {
    /// How it is spoken to by gRPC.
    pub(crate) fn grpc(&self) -> core::GrpcService {
        grpc(&self.cluster, &self.host)
    }

    /// How it is spoken to by HTTP, at a URL.
    pub(crate) fn http(&self, uri: String, timeout: prost_types::Duration) -> core::HttpUri {
        core::HttpUri {
            uri,
            timeout: Some(timeout),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(self.cluster.clone())),
        }
    }
}

/// A service behind a cluster that is spoken to by gRPC.
pub(crate) fn grpc(cluster: &str, authority: &str) -> core::GrpcService {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: cluster.to_owned(),
            authority: authority.to_owned(),
            ..EnvoyGrpc::default()
        })),
        ..core::GrpcService::default()
    }
}
