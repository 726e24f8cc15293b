//! The cluster of all destinations that the mesh does not know, by the names that requests ask for; see
//! [`crate::translate::any_name`].

use leno_api::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dynamic;
use leno_derive::Cx;

use super::draft::Draft;
use super::{policy, tls};
use crate::model::destination_rule::{ClientTls, ClientTlsMode, ConnectionPool};
use crate::model::mesh::MeshConfig;
use crate::scope::Viewer;
use crate::scope::outbound::{OutboundPolicy, Unknown};
use crate::translate::any_name::{CLUSTER, dns_cache};
use crate::translate::proto::cluster::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, LbPolicy,
};
use crate::translate::resource::pack;
use crate::translate::telemetry::upstream_filter;

/// The cluster, if a client may ask for any name.
pub(super) fn cluster(cx: &Cx<'_>, viewer: &Viewer, mesh: &MeshConfig, exchanges: bool) -> Option<Draft> {
    if *cx.get::<OutboundPolicy>(viewer) != Unknown::ByName {
        return None;
    }
    let settings = mesh.outbound_traffic_policy.tls.as_ref().filter(|tls| is_tls(tls));
    let mut draft = Draft::new(CLUSTER, DiscoveryType::Static);
    // In plain text there is no certificate that could have the name.
    let insecure = settings.is_none() || tls::is_insecure_dynamic(settings);
    let config = dynamic::ClusterConfig {
        allow_insecure_cluster_options: insecure,
        cluster_implementation_specifier: Some(
            dynamic::cluster_config::ClusterImplementationSpecifier::DnsCacheConfig(dns_cache(
                viewer.families,
            )),
        ),
        ..dynamic::ClusterConfig::default()
    };
    draft.cluster.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
        typed_config: Some(pack(&config)),
    }));
    draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    super::speak_to_any(&mut draft, mesh);
    policy::connection_pool(&mut draft, mesh, &ConnectionPool::default(), None);
    if let Some((settings, mode)) = settings.and_then(|settings| Some((settings, settings.mode?))) {
        let names = settings.subject_alt_names.clone();
        let sockets = viewer.options.abilities.into();
        let socket = tls::originated(&mut draft, names, settings, mode, mesh, sockets);
        draft.cluster.transport_socket = Some(socket);
    }
    draft.cluster.filters.extend(exchanges.then(upstream_filter));
    Some(draft)
}

/// Whether settings ask for TLS of the kind that servers outside of the mesh speak.
fn is_tls(settings: &ClientTls) -> bool {
    matches!(settings.mode, Some(ClientTlsMode::Simple | ClientTlsMode::Mutual))
}
