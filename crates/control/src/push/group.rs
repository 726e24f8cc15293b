//! What proxies of one kind should have, ready to be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;
use leno_xds::server::grpc::StreamId;

use crate::model::ObjectRef;
use crate::scope::ProxyKey;
use crate::translate::cluster::Clusters;
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::Listeners;
use crate::translate::resource::Resource;
use crate::translate::route::Route;

/// The resources for all proxies with one key, and who these are.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) members: BTreeSet<StreamId>,
    clusters: Resources,
    cluster_list: Arc<Vec<Arc<Resource>>>,
    listeners: Resources,
    listener_list: Arc<Vec<Arc<Resource>>>,
    endpoints: Resources,
    routes: Resources,
    route_origins: BTreeMap<Name, Vec<ObjectRef>>,
    /// What was asked of the graph, and is kept up to date there.
    roots: BTreeSet<(TypeUrl, Name)>,
}

impl Group {
    /// The resources of a type; `None` for types that this control plane does not serve.
    pub(crate) fn resources(&self, type_url: &TypeUrl) -> Option<&Resources> {
        match type_url {
            TypeUrl::Cluster => Some(&self.clusters),
            TypeUrl::Endpoint => Some(&self.endpoints),
            TypeUrl::Listener => Some(&self.listeners),
            TypeUrl::Route => Some(&self.routes),
            _ => None,
        }
    }

    /// All clusters as they were derived; the same `Arc` as long as they do not change.
    pub(crate) fn cluster_list(&self) -> &Arc<Vec<Arc<Resource>>> {
        &self.cluster_list
    }

    /// The names of the resources of a type, and the objects that each comes from.
    pub(crate) fn origins(&self, type_url: &TypeUrl) -> Vec<(&str, &[ObjectRef])> {
        match type_url {
            TypeUrl::Cluster => named(&self.cluster_list),
            TypeUrl::Listener => named(&self.listener_list),
            TypeUrl::Route => {
                self.route_origins.iter().map(|(name, origins)| (name.as_str(), origins.as_slice())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Asks the graph for what a session wants. The names only matter for endpoints and routes:
    /// everybody gets all clusters and listeners.
    pub(crate) fn load(
        &mut self,
        graph: &Graph,
        key: &ProxyKey,
        type_url: &TypeUrl,
        names: &[Name],
        version: &Name,
    ) {
        let version = || version.clone();
        match type_url {
            TypeUrl::Cluster if self.roots.insert((type_url.clone(), Name::default())) => {
                self.set_clusters(graph.get::<Clusters>(key), version());
            }
            TypeUrl::Listener if self.roots.insert((type_url.clone(), Name::default())) => {
                self.set_listeners(graph.get::<Listeners>(key), version());
            }
            TypeUrl::Endpoint => {
                for name in names {
                    if self.roots.insert((type_url.clone(), name.clone())) {
                        let endpoints = graph.get::<Endpoints>(&(key.clone(), name.to_string()));
                        self.set_endpoints(endpoints.as_deref(), version());
                    }
                }
            }
            TypeUrl::Route => {
                for name in names {
                    if self.roots.insert((type_url.clone(), name.clone())) {
                        let route = graph.get::<Route>(&(key.clone(), name.to_string()));
                        self.set_route(name, route.as_deref(), version());
                    }
                }
            }
            _ => {}
        }
    }

    /// New clusters.
    pub(crate) fn set_clusters(&mut self, list: Arc<Vec<Arc<Resource>>>, version: Name) {
        self.clusters = collect(&list, version);
        self.cluster_list = list;
    }

    /// New listeners.
    pub(crate) fn set_listeners(&mut self, list: Arc<Vec<Arc<Resource>>>, version: Name) {
        self.listeners = collect(&list, version);
        self.listener_list = list;
    }

    /// New endpoints of a cluster. Those of a cluster that is gone stay until nobody asks for them:
    /// a proxy that still has the cluster may still have routes to it.
    pub(crate) fn set_endpoints(&mut self, endpoints: Option<&Resource>, version: Name) {
        if let Some(endpoints) = endpoints {
            self.endpoints.insert(endpoints.wire.clone());
        }
        self.endpoints.set_version(version);
    }

    /// A new route configuration.
    pub(crate) fn set_route(&mut self, name: &str, route: Option<&Resource>, version: Name) {
        match route {
            Some(route) => {
                self.routes.insert(route.wire.clone());
                self.route_origins.insert(route.wire.name.clone(), route.origins.clone());
            }
            None => {
                self.routes.remove(name);
                self.route_origins.remove(name);
            }
        }
        self.routes.set_version(version);
    }

    /// Lets go of endpoints and routes that are not wanted any more.
    pub(crate) fn release(
        &mut self,
        graph: &mut Graph,
        key: &ProxyKey,
        wanted: impl Fn(&TypeUrl, &str) -> bool,
    ) {
        let unwanted: Vec<(TypeUrl, Name)> = self
            .roots
            .iter()
            .filter(|(type_url, name)| !name.is_empty() && !wanted(type_url, name))
            .cloned()
            .collect();
        for root in unwanted {
            self.release_root(graph, key, &root);
            self.roots.remove(&root);
        }
    }

    /// Lets go of everything.
    pub(crate) fn release_all(&mut self, graph: &mut Graph, key: &ProxyKey) {
        for root in std::mem::take(&mut self.roots) {
            self.release_root(graph, key, &root);
        }
    }

    fn release_root(&mut self, graph: &mut Graph, key: &ProxyKey, (type_url, name): &(TypeUrl, Name)) {
        match type_url {
            TypeUrl::Cluster => graph.release::<Clusters>(key),
            TypeUrl::Listener => graph.release::<Listeners>(key),
            TypeUrl::Endpoint => {
                graph.release::<Endpoints>(&(key.clone(), name.to_string()));
                self.endpoints.remove(name);
            }
            TypeUrl::Route => {
                graph.release::<Route>(&(key.clone(), name.to_string()));
                self.routes.remove(name);
                self.route_origins.remove(name);
            }
            _ => {}
        }
    }
}

fn collect(list: &[Arc<Resource>], version: Name) -> Resources {
    let mut resources: Resources = list.iter().map(|resource| resource.wire.clone()).collect();
    resources.set_version(version);
    resources
}

fn named(list: &[Arc<Resource>]) -> Vec<(&str, &[ObjectRef])> {
    list.iter().map(|resource| (resource.name(), resource.origins.as_slice())).collect()
}
