//! What proxies have as clients, ready to be sent: nearly all of a namespace share one [`View`].

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;

use super::clearance::Clearance;
use super::named::Named;
use crate::model::ObjectRef;
use crate::scope::{ProxyKey, Role};
use crate::translate::cluster::SharedClusters;
use crate::translate::cluster::grpc::{GrpcCluster, GrpcEndpoints};
use crate::translate::credential::{Given, GivenTo};
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::SharedListeners;
use crate::translate::listener::grpc::GrpcListener;
use crate::translate::name_table::{self, NameTable};
use crate::translate::patch::Extensions;
use crate::translate::resource::Resource;
use crate::translate::route::Route;
use crate::translate::route::grpc::GrpcRoute;
use crate::translate::trust_bundle::{self, TrustBundle};

/// How long a route waits for a cluster that does not exist, and a cluster that has gone for the
/// routes that lead there to change. What is written in two pieces comes together by then; what does
/// not is a mistake, which must not hold up all else for ever.
pub(crate) const REFERENCE_PATIENCE: Duration = Duration::from_secs(15);

/// The resources for all proxies that are the same client, as far as any of them has asked for
/// them; and the groups of these proxies.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) groups: HashSet<Arc<ProxyKey>>,
    pub(crate) clusters: Resources,
    cluster_list: Arc<Vec<Arc<Resource>>>,
    /// Clusters that are of no use before their endpoints have been asked for and sent.
    needing: HashSet<Name>,
    pub(crate) listeners: Resources,
    listener_list: Arc<Vec<Arc<Resource>>>,
    endpoints: Resources,
    routes: Resources,
    /// The routes that proxies are told of, as they were derived.
    route_list: BTreeMap<Name, Arc<Resource>>,
    /// Newer routes that lead to clusters that do not exist, where those before did not; and since
    /// when there are such.
    held: BTreeMap<Name, (Arc<Resource>, Instant)>,
    /// What the agent's DNS server answers.
    names: Resources,
    /// Configurations of extensions.
    extensions: Resources,
    /// The roots that its agent is told of.
    roots: Resources,
    /// Credentials: those that any authenticated proxy may have, and all.
    open_secrets: Named,
    secrets: Named,
    /// What gRPC applications ask for one by one.
    grpc: BTreeMap<TypeUrl, Named>,
    /// For types of which there are no resources here.
    nothing: Resources,
    /// What was asked of the graph, and is kept up to date there.
    clusters_asked: bool,
    names_asked: bool,
    extensions_asked: bool,
    roots_asked: bool,
    listeners_asked: bool,
    endpoints_asked: HashSet<Name>,
    routes_asked: HashSet<Name>,
}

impl View {
    /// Asks the graph for what a session wants. The names do not matter for clusters and listeners:
    /// everybody gets all clusters and listeners. True if there is something that was not there.
    pub(crate) fn load(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        type_url: &TypeUrl,
        names: &[Name],
        version: &Name,
    ) -> bool {
        if client.role == Role::Grpc
            && matches!(type_url, TypeUrl::Cluster | TypeUrl::Endpoint | TypeUrl::Listener | TypeUrl::Route)
        {
            let kept = self.grpc.entry(type_url.clone()).or_default();
            for name in names {
                if kept.ask(name) {
                    let key = (client.clone(), name.to_string());
                    let found = match type_url {
                        TypeUrl::Cluster => graph.get::<GrpcCluster>(&key),
                        TypeUrl::Endpoint => graph.get::<GrpcEndpoints>(&key),
                        TypeUrl::Listener => graph.get::<GrpcListener>(&key),
                        _ => graph.get::<GrpcRoute>(&key),
                    };
                    kept.set(name, found.as_ref().as_ref(), version.clone());
                }
            }
            return true;
        }
        match type_url {
            TypeUrl::Cluster if !std::mem::replace(&mut self.clusters_asked, true) => {
                self.set_clusters(graph.get::<SharedClusters>(client), version.clone());
                true
            }
            TypeUrl::Listener if !std::mem::replace(&mut self.listeners_asked, true) => {
                self.set_listeners(graph.get::<SharedListeners>(client), version.clone());
                true
            }
            TypeUrl::Endpoint => {
                for name in names {
                    if !self.endpoints_asked.contains(name) {
                        self.endpoints_asked.insert(name.clone());
                        let endpoints = graph.get::<Endpoints>(&(client.clone(), name.to_string()));
                        self.set_endpoints(endpoints.as_deref(), version.clone());
                    }
                }
                true
            }
            TypeUrl::Route => {
                for name in names {
                    if !self.routes_asked.contains(name) {
                        self.routes_asked.insert(name.clone());
                        let route = graph.get::<Route>(&(client.clone(), name.to_string()));
                        if let Some(route) = route.as_ref() {
                            self.publish(route, version.clone());
                        }
                        self.routes.set_version(version.clone());
                    }
                }
                true
            }
            TypeUrl::Secret => {
                for name in names {
                    if self.secrets.ask(name) {
                        let given = graph.get::<GivenTo>(&(client.clone(), name.to_string()));
                        self.set_secret(client, name, &given, version.clone());
                    }
                }
                true
            }
            TypeUrl::Other(url)
                if url == name_table::TYPE_URL && !std::mem::replace(&mut self.names_asked, true) =>
            {
                self.set_names(graph.get::<NameTable>(client).as_ref().as_ref(), version.clone());
                true
            }
            TypeUrl::ExtensionConfig if !std::mem::replace(&mut self.extensions_asked, true) => {
                self.set_extensions(&graph.get::<Extensions>(client), version.clone());
                true
            }
            TypeUrl::ExtensionConfig => false,
            TypeUrl::Other(url)
                if url == trust_bundle::TYPE_URL && !std::mem::replace(&mut self.roots_asked, true) =>
            {
                self.set_roots(graph.get::<TrustBundle>(&()).as_ref().as_ref(), version.clone());
                true
            }
            _ => {
                self.nothing.set_version(version.clone());
                false
            }
        }
    }

    /// The resources of a type, shared ones only. Of types that this control plane knows nothing of
    /// there are none, and a proxy that asks for some is told so.
    pub(crate) fn resources(&self, type_url: &TypeUrl) -> &Resources {
        if let Some(named) = self.grpc.get(type_url) {
            return named.resources();
        }
        match type_url {
            TypeUrl::Cluster => &self.clusters,
            TypeUrl::Endpoint => &self.endpoints,
            TypeUrl::Listener => &self.listeners,
            TypeUrl::Route => &self.routes,
            TypeUrl::ExtensionConfig => &self.extensions,
            TypeUrl::Other(url) if url == name_table::TYPE_URL => &self.names,
            TypeUrl::Other(url) if url == trust_bundle::TYPE_URL => &self.roots,
            _ => &self.nothing,
        }
    }

    /// The credentials for a proxy with a clearance.
    pub(crate) fn secrets(&self, clearance: Clearance) -> &Resources {
        match clearance {
            Clearance::Nothing | Clearance::Pending => &self.nothing,
            Clearance::Open => self.open_secrets.resources(),
            Clearance::All => self.secrets.resources(),
        }
    }

    /// A new credential, or none.
    pub(crate) fn set_secret(&mut self, client: &ProxyKey, name: &str, given: &Given, version: Name) {
        if let Err(why) = &given.resource {
            tracing::warn!(namespace = client.namespace, name, why, "no credential for proxies that ask");
        }
        let resource = given.resource.as_ref().ok();
        self.open_secrets.set(name, resource.filter(|_| !given.guarded), version.clone());
        self.secrets.set(name, resource, version);
    }

    /// Something that a gRPC application has asked for has changed.
    pub(crate) fn set_grpc(
        &mut self,
        type_url: &TypeUrl,
        name: &str,
        resource: Option<&Arc<Resource>>,
        version: Name,
    ) {
        if let Some(named) = self.grpc.get_mut(type_url) {
            named.set(name, resource, version);
        }
    }

    /// New names.
    pub(crate) fn set_names(&mut self, table: Option<&Resource>, version: Name) {
        self.names.replace(table.map(|table| table.wire.clone()));
        self.names.set_version(version);
    }

    /// New configurations of extensions.
    pub(crate) fn set_extensions(&mut self, list: &[Arc<Resource>], version: Name) {
        replace(&mut self.extensions, list, version);
    }

    /// New roots; false if nobody has asked for them.
    pub(crate) fn set_roots(&mut self, roots: Option<&Resource>, version: Name) -> bool {
        self.roots.replace(roots.map(|roots| roots.wire.clone()));
        self.roots.set_version(version);
        self.roots_asked
    }

    /// New clusters.
    pub(crate) fn set_clusters(&mut self, list: Arc<Vec<Arc<Resource>>>, version: Name) {
        replace(&mut self.clusters, &list, version);
        let needing = list.iter().filter(|cluster| cluster.needs_endpoints);
        self.needing = needing.map(|cluster| cluster.wire.name.clone()).collect();
        self.cluster_list = list;
    }

    /// New listeners.
    pub(crate) fn set_listeners(&mut self, list: Arc<Vec<Arc<Resource>>>, version: Name) {
        replace(&mut self.listeners, &list, version);
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

    /// A new route configuration. False if it is not to be told yet: it leads to a cluster that does
    /// not exist, and the one before leads nowhere worse.
    pub(crate) fn set_route(
        &mut self,
        name: &str,
        route: Option<&Arc<Resource>>,
        version: Name,
        now: Instant,
    ) -> bool {
        let Some(route) = route else {
            self.held.remove(name);
            self.route_list.remove(name);
            self.routes.remove(name);
            self.routes.set_version(version);
            return true;
        };
        if self.is_worse(route) {
            let (held, _) =
                self.held.entry(route.wire.name.clone()).or_insert_with(|| (Arc::clone(route), now));
            *held = Arc::clone(route);
            return false;
        }
        self.held.remove(name);
        self.publish(route, version);
        true
    }

    /// Routes that were held back and need not be any more; they are told from now on.
    pub(crate) fn release_held(&mut self, version: &Name, now: Instant) -> Vec<Name> {
        let due = |(route, since): &(Arc<Resource>, Instant)| {
            now.saturating_duration_since(*since) >= REFERENCE_PATIENCE || !self.is_worse(route)
        };
        let due: Vec<Name> =
            self.held.iter().filter(|(_, held)| due(held)).map(|(name, _)| name.clone()).collect();
        for name in &due {
            if let Some((route, _)) = self.held.remove(name) {
                self.publish(&route, version.clone());
            }
        }
        due
    }

    /// Whether routes are held back.
    pub(crate) fn holds_routes(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether a route that proxies are told of leads to a cluster.
    pub(crate) fn leads_to(&self, cluster: &Name) -> bool {
        self.route_list.values().any(|route| route.clusters.binary_search(cluster).is_ok())
    }

    /// Whether a route leads to a cluster that does not exist, to which the one that proxies have
    /// does not lead.
    fn is_worse(&self, route: &Resource) -> bool {
        let Some(before) = self.route_list.get(&route.wire.name).filter(|_| self.clusters_asked) else {
            return false;
        };
        let missing = |name: &&Name| self.clusters.find(name).is_none();
        route.clusters.iter().filter(missing).any(|name| before.clusters.binary_search(name).is_err())
    }

    fn publish(&mut self, route: &Arc<Resource>, version: Name) {
        self.routes.insert(route.wire.clone());
        self.routes.set_version(version);
        self.route_list.insert(route.wire.name.clone(), Arc::clone(route));
    }

    /// The route configurations that were asked for.
    pub(crate) fn route_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.routes_asked.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    /// Whether a cluster is of no use before its endpoints have been asked for and sent.
    pub(crate) fn needs_endpoints(&self, cluster: &str) -> bool {
        self.needing.contains(cluster)
    }

    /// The names of the resources of a type, and the objects that each comes from.
    pub(crate) fn origins(&self, type_url: &TypeUrl) -> Vec<(&str, &[ObjectRef])> {
        if let Some(named) = self.grpc.get(type_url) {
            return named.origins();
        }
        match type_url {
            TypeUrl::Cluster => named(&self.cluster_list),
            TypeUrl::Listener => named(&self.listener_list),
            TypeUrl::Route => {
                self.route_list.values().map(|route| (route.name(), route.origins.as_slice())).collect()
            }
            TypeUrl::Secret => self.secrets.origins(),
            _ => Vec::new(),
        }
    }

    /// Lets go of endpoints, routes and credentials that are not wanted any more.
    pub(crate) fn release_unwanted(
        &mut self,
        graph: &mut Graph,
        client: &ProxyKey,
        wanted: impl Fn(&TypeUrl, &str) -> bool,
    ) {
        self.endpoints_asked.retain(|name| {
            let keep = wanted(&TypeUrl::Endpoint, name);
            if !keep {
                graph.release::<Endpoints>(&(client.clone(), name.to_string()));
                self.endpoints.remove(name);
            }
            keep
        });
        self.routes_asked.retain(|name| {
            let keep = wanted(&TypeUrl::Route, name);
            if !keep {
                graph.release::<Route>(&(client.clone(), name.to_string()));
                self.routes.remove(name);
                self.route_list.remove(name);
                self.held.remove(name);
            }
            keep
        });
        for (type_url, named) in &mut self.grpc {
            for name in named.release_unwanted(|name| wanted(type_url, name)) {
                let key = (client.clone(), name.to_string());
                match type_url {
                    TypeUrl::Cluster => graph.release::<GrpcCluster>(&key),
                    TypeUrl::Endpoint => graph.release::<GrpcEndpoints>(&key),
                    TypeUrl::Listener => graph.release::<GrpcListener>(&key),
                    _ => graph.release::<GrpcRoute>(&key),
                }
            }
        }
        let is_wanted = |name: &str| wanted(&TypeUrl::Secret, name);
        for name in self.secrets.release_unwanted(is_wanted) {
            self.open_secrets.set(&name, None, self.secrets.resources().version().clone());
            graph.release::<GivenTo>(&(client.clone(), name.to_string()));
        }
    }

    /// Lets go of everything.
    pub(crate) fn release(mut self, graph: &mut Graph, client: &ProxyKey) {
        self.release_unwanted(graph, client, |_, _| false);
        graph.release::<SharedClusters>(client);
        graph.release::<SharedListeners>(client);
        graph.release::<NameTable>(client);
        graph.release::<Extensions>(client);
    }
}

/// Puts a new list in the place of the old one.
fn replace(resources: &mut Resources, list: &[Arc<Resource>], version: Name) {
    resources.replace(list.iter().map(|resource| resource.wire.clone()));
    resources.set_version(version);
}

/// The names of the resources of a list, and the objects that each comes from.
pub(crate) fn named(list: &[Arc<Resource>]) -> Vec<(&str, &[ObjectRef])> {
    list.iter().map(|resource| (resource.name(), resource.origins.as_slice())).collect()
}
