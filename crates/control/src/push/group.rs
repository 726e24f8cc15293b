//! What proxies of one kind should have: what they share with others as clients, and what is theirs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;
use leno_xds::server::grpc::StreamId;

use super::view::{View, named};
use crate::model::ObjectRef;
use crate::scope::client::ClientOf;
use crate::scope::{ProxyKey, Role};
use crate::translate::cluster::OwnClusters;
use crate::translate::listener::OwnListeners;
use crate::translate::resource::Resource;

/// The resources for all proxies with one key, and who these are.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) members: BTreeSet<StreamId>,
    /// Which view it shares.
    pub(crate) client: Arc<ProxyKey>,
    own_clusters: Option<Arc<Vec<Arc<Resource>>>>,
    own_listeners: Option<Arc<Vec<Arc<Resource>>>>,
    /// Those of the view and its own.
    clusters: Resources,
    listeners: Resources,
    /// Since when it has no members.
    pub(crate) empty_since: Option<Instant>,
}

impl Group {
    /// A group without members.
    pub(crate) fn new(graph: &Graph, key: &ProxyKey) -> Group {
        Group {
            members: BTreeSet::new(),
            client: graph.get::<ClientOf>(key),
            own_clusters: None,
            own_listeners: None,
            clusters: Resources::default(),
            listeners: Resources::default(),
            empty_since: None,
        }
    }

    /// The resources of a type.
    pub(crate) fn resources<'r>(&'r self, view: &'r View, type_url: &TypeUrl) -> &'r Resources {
        match type_url {
            TypeUrl::Cluster if !self.is_grpc() => &self.clusters,
            TypeUrl::Listener if !self.is_grpc() => &self.listeners,
            _ => view.resources(type_url),
        }
    }

    /// The names of the resources of a type, and the objects that each comes from.
    pub(crate) fn origins<'r>(
        &'r self,
        view: &'r View,
        type_url: &TypeUrl,
    ) -> Vec<(&'r str, &'r [ObjectRef])> {
        let mut origins = view.origins(type_url);
        let own = match type_url {
            TypeUrl::Cluster => &self.own_clusters,
            TypeUrl::Listener => &self.own_listeners,
            _ => &None,
        };
        origins.extend(own.as_deref().map(|list| named(list)).unwrap_or_default());
        origins
    }

    /// Whether it is of gRPC applications, which share everything with the view.
    fn is_grpc(&self) -> bool {
        self.client.role == Role::Grpc
    }

    /// Asks the graph for what is its own of a type; true if that is new, and to be combined with what
    /// it shares.
    pub(crate) fn load(&mut self, graph: &Graph, key: &ProxyKey, type_url: &TypeUrl) -> bool {
        if self.is_grpc() {
            return false;
        }
        match type_url {
            TypeUrl::Cluster if self.own_clusters.is_none() => {
                self.own_clusters = Some(graph.get::<OwnClusters>(key));
                true
            }
            TypeUrl::Listener if self.own_listeners.is_none() => {
                self.own_listeners = Some(graph.get::<OwnListeners>(key));
                true
            }
            _ => false,
        }
    }

    /// New clusters of its own.
    pub(crate) fn set_clusters(&mut self, own: Arc<Vec<Arc<Resource>>>) {
        self.own_clusters = Some(own);
    }

    /// New listeners of its own.
    pub(crate) fn set_listeners(&mut self, own: Arc<Vec<Arc<Resource>>>) {
        self.own_listeners = Some(own);
    }

    /// Takes in what has changed of a type, in the view or of its own.
    pub(crate) fn combine(&mut self, view: &View, type_url: &TypeUrl, version: &Name) {
        match type_url {
            TypeUrl::Cluster => {
                self.clusters = combine(&view.clusters, self.own_clusters.as_deref(), version);
            }
            TypeUrl::Listener => {
                self.listeners = combine(&view.listeners, self.own_listeners.as_deref(), version);
            }
            _ => {}
        }
    }

    /// Lets go of everything.
    pub(crate) fn release(self, graph: &mut Graph, key: &ProxyKey) {
        graph.release::<ClientOf>(key);
        graph.release::<OwnClusters>(key);
        graph.release::<OwnListeners>(key);
    }
}

/// What is shared, and what is added to it: this copies little of the former.
fn combine(shared: &Resources, own: Option<&Vec<Arc<Resource>>>, version: &Name) -> Resources {
    let mut resources = shared.clone();
    for resource in own.into_iter().flatten() {
        resources.insert(resource.wire.clone());
    }
    resources.set_version(version.clone());
    resources
}
