//! The clusters of proxies that ask for each when they first use it.
//!
//! Of a mesh's thousands a workload calls a handful. Such a proxy is told of those that are no service's
//! ([`FixedClusters`]), and of each other one that it or its like has asked for by its name
//! ([`NamedCluster`]); what is derived for it grows with what it uses, not with the mesh.

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::outbound::Outbound;
use super::{find, service_of};
use crate::scope::ProxyKey;
use crate::translate::patch::{self, Family, Subject};
use crate::translate::resource::Resource;

/// The clusters of a client that are no service's, and what patches add. A root.
pub(crate) struct FixedClusters;

impl Query for FixedClusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "fixed-clusters";

    fn derive(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
        let context = client.client_context();
        let (patches, clusters) = (&client.patching.patches, fixed(cx, client));
        patch::all(cx, patches, Family::Cluster, context, clusters, |_| Subject::of(context))
    }
}

/// A service's cluster that a client asks for by its name; `None` if there is none. A root.
pub(crate) struct NamedCluster;

impl Query for NamedCluster {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "named-cluster";

    fn derive(cx: &Cx<'_>, (client, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        let cluster = named(cx, client, name)?;
        let subject = Subject::of(client.client_context());
        patch::one(cx, &client.patching.patches, Family::Cluster, subject, cluster)
    }
}

/// The clusters of [`FixedClusters`] before EnvoyFilters.
pub(in crate::translate) fn fixed(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
    super::fixed(cx, client, &client.viewer(cx))
}

/// The cluster of [`NamedCluster`] before EnvoyFilters.
pub(in crate::translate) fn named(cx: &Cx<'_>, client: &ProxyKey, name: &str) -> Option<Arc<Resource>> {
    let mut key = find(cx, client.known_viewer(), name).filter(|key| !key.sni)?;
    if service_of(cx, &key)?.resolution.is_dns() {
        // It contains its endpoints, which may depend on the client's place.
        key.client.view = client.view(cx, &key.endpoints());
    }
    cx.get::<Outbound>(&key).as_ref().clone()
}
