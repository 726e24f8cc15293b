//! The clusters that lead from a sidecar to its own workload.

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::policy::{self, HttpVersion};
use super::{http_version, original_dst};
use crate::registry::targets::{Target, Targets, Workload};
use crate::scope::policy::Effective;
use crate::translate::name;
use crate::translate::proto::core;
use crate::translate::resource::{Resource, istio_metadata, list, object, socket_address, text};

/// The address that inbound connections come from: iptables tells by it that they have been
/// through the proxy, and leads them to the workload instead of back.
const INBOUND_SOURCE: &str = "127.0.0.6";

/// One cluster per port of the workload, and one for all other ports.
pub(crate) struct InboundClusters;

impl Query for InboundClusters {
    type Key = Workload;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "inbound-clusters";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Vec<Arc<Resource>> {
        let targets = cx.get::<Targets>(workload);
        let mut clusters = vec![passthrough()];
        for group in targets.chunk_by(|a, b| a.target == b.target) {
            clusters.push(Arc::new(inbound(group)));
        }
        clusters
    }
}

/// The cluster of one port, which may be behind several services.
fn inbound(targets: &[Target]) -> Resource {
    let first = targets.first();
    let port = first.map_or(0, |target| target.target);
    let mut message = original_dst(name::inbound(port));
    message.upstream_bind_config = Some(bind());
    let services = targets.iter().map(|target| {
        object([
            ("host", text(&target.service.id.host)),
            ("name", text(&target.service.name)),
            ("namespace", text(target.service.namespace())),
        ])
    });
    message.metadata = Some(istio_metadata([("services", list(services.collect()))]));
    let protocol = first.and_then(|target| target.service.port(target.port)).map(|port| port.protocol);
    let version = protocol.map_or(HttpVersion::None, http_version);
    policy::apply(&mut message, &Effective::default(), version);
    let origins = targets.iter().map(|target| target.service.id.object.clone()).collect();
    Resource::new(&message.name, &message, origins)
}

fn passthrough() -> Arc<Resource> {
    let mut message = original_dst(name::INBOUND_PASSTHROUGH_CLUSTER.to_owned());
    message.upstream_bind_config = Some(bind());
    policy::apply(&mut message, &Effective::default(), HttpVersion::Downstream);
    Arc::new(Resource::new(&message.name, &message, Vec::<_>::new()))
}

fn bind() -> core::BindConfig {
    core::BindConfig {
        source_address: Some(socket_address(INBOUND_SOURCE, 0)),
        ..core::BindConfig::default()
    }
}
