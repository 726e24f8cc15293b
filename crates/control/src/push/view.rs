//! What proxies have as clients, ready to be sent: nearly all of a namespace share one [`View`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;

use super::clearance::Clearance;
use super::named::{Named, Whole, origins};
use crate::model::ObjectRef;
use crate::scope::{ProxyKey, Role};
use crate::translate::cluster::SharedClusters;
use crate::translate::cluster::grpc::{GrpcCluster, GrpcEndpoints};
use crate::translate::cluster::lazy::{FixedClusters, NamedCluster};
use crate::translate::credential::{Given, GivenTo};
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::SharedListeners;
use crate::translate::listener::grpc::GrpcListener;
use crate::translate::name_table::{self, NameTable};
use crate::translate::patch::Extensions;
use crate::translate::resource::Resource;
use crate::translate::route::Route;
use crate::translate::route::grpc::GrpcRoute;
use crate::translate::route::on_demand::NamedHost;
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
    /// Those of which proxies get all.
    whole: BTreeMap<TypeUrl, Whole>,
    /// Those that are asked for one by one; of proxies that ask for the clusters they use these too,
    /// beside the fixed ones.
    named: BTreeMap<TypeUrl, Named>,
    /// Of the credentials those that any authenticated proxy may have.
    open_secrets: Named,
    /// The virtual hosts that are asked for one by one, by the names that they are learnt by; each is the
    /// answer to its name, and may be called otherwise.
    hosts: BTreeMap<Name, Arc<Resource>>,
    /// Newer routes and virtual hosts that lead to clusters that do not exist, where those before did not;
    /// and since when there are such.
    held: BTreeMap<(TypeUrl, Name), (Arc<Resource>, Instant)>,
    /// Clusters that are of no use before their endpoints have been asked for and sent.
    needing: HashSet<Name>,
    /// Clusters that must be there before what there is else is used; of proxies only that ask for
    /// clusters when they use them.
    needed: BTreeSet<Name>,
    /// For types of which there are no resources here.
    nothing: Resources,
}

/// How proxies ask for the resources of a type.
enum Asked {
    /// One by one.
    Named,
    /// For all.
    Whole,
    /// In vain.
    Nothing,
}

impl View {
    /// Asks the graph for what a session wants. The names do not matter for what everybody gets all
    /// of. True if there is something that was not there.
    pub(crate) fn load(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        type_url: &TypeUrl,
        names: &[Name],
        version: &Name,
    ) -> bool {
        match asked(client, type_url) {
            Asked::Named => self.load_named(graph, client, type_url, names, version),
            Asked::Whole if self.whole.entry(type_url.clone()).or_default().ask() => {
                let list = whole(graph, client, type_url);
                self.set_whole(type_url, list, version.clone());
                true
            }
            Asked::Whole => false,
            Asked::Nothing => {
                self.nothing.set_version(version.clone());
                false
            }
        }
    }

    /// The same for names of any type.
    pub(crate) fn load_named<'n>(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        type_url: &TypeUrl,
        names: impl IntoIterator<Item = &'n Name>,
        version: &Name,
    ) -> bool {
        let mut is_new = false;
        for name in names {
            if !self.named.entry(type_url.clone()).or_default().ask(name) {
                continue;
            }
            is_new = true;
            if *type_url == TypeUrl::Secret {
                let given = graph.get::<GivenTo>(&(client.clone(), name.to_string()));
                self.set_secret(client, name, &given, version.clone());
            } else {
                let found = derive(graph, client, type_url, name);
                let kept = self.named.entry(type_url.clone()).or_default();
                kept.set(name, found.as_ref(), version.clone());
            }
        }
        is_new
    }

    /// The resources of a type, shared ones only. Of types that this control plane knows nothing of
    /// there are none, and a proxy that asks for some is told so.
    pub(crate) fn resources(&self, type_url: &TypeUrl) -> &Resources {
        let whole = self.whole.get(type_url).map(Whole::resources);
        let named = || self.named.get(type_url).map(Named::resources);
        whole.or_else(named).unwrap_or(&self.nothing)
    }

    /// The resource of a type that was asked for by its name.
    pub(crate) fn find(&self, type_url: &TypeUrl, name: &str) -> Option<&Arc<Resource>> {
        self.named.get(type_url)?.find(name)
    }

    /// The credentials for a session.
    pub(crate) fn secrets(&self, clearance: Clearance) -> &Resources {
        match clearance {
            Clearance::Nothing | Clearance::Pending => &self.nothing,
            Clearance::Open => self.open_secrets.resources(),
            Clearance::All => self.named.get(&TypeUrl::Secret).map_or(&self.nothing, Named::resources),
        }
    }

    /// A new credential, or none.
    pub(crate) fn set_secret(&mut self, client: &ProxyKey, name: &str, given: &Given, version: Name) {
        if let Err(why) = &given.resource {
            tracing::warn!(namespace = client.namespace, name, why, "no credential for proxies that ask");
        }
        let resource = given.resource.as_ref().ok();
        self.open_secrets.set(name, resource.filter(|_| !given.guarded), version.clone());
        self.named.entry(TypeUrl::Secret).or_default().set(name, resource, version);
    }

    /// New resources of a type of which proxies get all.
    pub(crate) fn set_whole(&mut self, type_url: &TypeUrl, list: Arc<Vec<Arc<Resource>>>, version: Name) {
        if *type_url == TypeUrl::Cluster {
            let needing = list.iter().filter(|cluster| cluster.needs_endpoints);
            self.needing = needing.map(|cluster| cluster.wire.name.clone()).collect();
        }
        self.whole.entry(type_url.clone()).or_default().set(list, version);
    }

    /// New roots; false if nobody has asked for them.
    pub(crate) fn set_roots(&mut self, roots: &Arc<Option<Resource>>, version: Name) -> bool {
        let type_url = TypeUrl::from(trust_bundle::TYPE_URL);
        let is_asked = self.whole.get(&type_url).is_some_and(Whole::is_asked);
        if is_asked {
            self.set_whole(&type_url, single(roots), version);
        }
        is_asked
    }

    /// A new state of a resource that is asked for by its name. False if it is not to be told yet.
    pub(crate) fn set_named(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        type_url: &TypeUrl,
        (name, resource): (&str, Option<&Arc<Resource>>),
        version: &Name,
        now: Instant,
    ) -> bool {
        let is_proxy = client.role != Role::Grpc;
        if *type_url == TypeUrl::Route && is_proxy {
            return self.set_route(graph, client, name, resource, version, now);
        }
        let Some(kept) = self.named.get_mut(type_url) else { return false };
        match resource {
            // The endpoints of a cluster that is gone stay until nobody asks for them: a proxy that
            // still has the cluster may still have routes to it.
            None if *type_url == TypeUrl::Endpoint && is_proxy => kept.keep(version.clone()),
            _ => kept.set(name, resource, version.clone()),
        }
        true
    }

    /// A new route configuration. False if it is not to be told yet: it leads to a cluster that does
    /// not exist, and the one before leads nowhere worse.
    fn set_route(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        name: &str,
        route: Option<&Arc<Resource>>,
        version: &Name,
        now: Instant,
    ) -> bool {
        let key = (TypeUrl::Route, Name::new(name));
        if let Some(route) = route.filter(|route| self.is_worse(graph, client, &key, route)) {
            self.hold(key, route, now);
            return false;
        }
        self.held.remove(&key);
        self.named.entry(TypeUrl::Route).or_default().set(name, route, version.clone());
        true
    }

    fn hold(&mut self, key: (TypeUrl, Name), resource: &Arc<Resource>, now: Instant) {
        let (held, _) = self.held.entry(key).or_insert_with(|| (Arc::clone(resource), now));
        *held = Arc::clone(resource);
    }

    /// Asks the graph for virtual hosts by the names that they are learnt by.
    pub(crate) fn load_hosts(&mut self, graph: &Graph, client: &ProxyKey, names: &[Name]) {
        for name in names {
            if self.hosts.contains_key(name) {
                continue;
            }
            let found = graph.get::<NamedHost>(&(client.clone(), name.to_string()));
            let Some(host) = found.as_ref() else { continue };
            // One that is known by another name may have been held back.
            let mut known =
                (!self.held.is_empty()).then_some(&self.hosts).into_iter().flat_map(BTreeMap::values);
            let known = known.find(|known| known.wire.name == host.wire.name);
            let host = Arc::clone(known.unwrap_or(host));
            self.hosts.insert(name.clone(), host);
        }
    }

    /// The virtual host that is the answer to a name that it is learnt by.
    pub(crate) fn host(&self, name: &Name) -> Option<&Arc<Resource>> {
        self.hosts.get(name)
    }

    /// A new answer. False if it is not to be told yet, or nobody has learnt of it.
    pub(crate) fn set_host(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        name: &str,
        host: &Arc<Resource>,
        now: Instant,
    ) -> bool {
        if !self.hosts.contains_key(name) {
            return false;
        }
        let key = (TypeUrl::VirtualHost, Name::new(name));
        if self.is_worse(graph, client, &key, host) {
            self.hold(key, host, now);
            return false;
        }
        self.held.remove(&key);
        self.hosts.insert(key.1, Arc::clone(host));
        true
    }

    /// Names that virtual hosts are learnt by, without those that differ in their only domain.
    pub(crate) fn kinds_of_hosts(&self) -> Vec<String> {
        let mut kinds = HashSet::new();
        let hosts = self.hosts.iter().filter(|(name, host)| {
            let table = name.rsplit_once('/').map_or("", |(table, _)| table);
            let called = (!host.is_made_up).then_some(&host.wire.name);
            kinds.insert((table, called, &host.origins))
        });
        hosts.map(|(name, _)| name.to_string()).collect()
    }

    /// Lets go of virtual hosts that are not wanted any more, by the names that they are learnt by.
    pub(crate) fn release_hosts(
        &mut self,
        graph: &mut Graph,
        client: &ProxyKey,
        wanted: impl Fn(&Name) -> bool,
    ) {
        let unwanted: Vec<Name> = self.hosts.keys().filter(|name| !wanted(name)).cloned().collect();
        for name in unwanted {
            self.hosts.remove(&name);
            graph.release::<NamedHost>(&(client.clone(), name.to_string()));
            self.held.remove(&(TypeUrl::VirtualHost, name));
        }
    }

    /// Routes and virtual hosts that were held back and need not be any more; they are told from now on.
    pub(crate) fn release_held(
        &mut self,
        graph: &Graph,
        client: &ProxyKey,
        version: &Name,
        now: Instant,
    ) -> Vec<(TypeUrl, Name)> {
        let is_due = |key: &(TypeUrl, Name), (resource, since): &(Arc<Resource>, Instant)| {
            now.saturating_duration_since(*since) >= REFERENCE_PATIENCE
                || !self.is_worse(graph, client, key, resource)
        };
        let due = self.held.iter().filter(|(key, held)| is_due(key, held));
        let due: Vec<(TypeUrl, Name)> = due.map(|(key, _)| key.clone()).collect();
        for key in &due {
            let Some((resource, _)) = self.held.remove(key) else { continue };
            match key {
                (TypeUrl::VirtualHost, name) => drop(self.hosts.insert(name.clone(), resource)),
                (type_url, name) => {
                    let kept = self.named.entry(type_url.clone()).or_default();
                    kept.set(name, Some(&resource), version.clone());
                }
            }
        }
        due
    }

    /// Whether routes or virtual hosts are held back.
    pub(crate) fn holds_routes(&self) -> bool {
        !self.held.is_empty()
    }

    /// The routes that proxies are told of.
    fn routes(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.named.get(&TypeUrl::Route).into_iter().flat_map(Named::iter)
    }

    /// Whether a route that proxies are told of leads to a cluster.
    pub(crate) fn leads_to(&self, cluster: &Name) -> bool {
        let mut all = self.routes().chain(self.hosts.values());
        all.any(|route| route.clusters.binary_search(cluster).is_ok())
    }

    /// Whether a route leads to a cluster that does not exist, to which the one that proxies have
    /// does not lead.
    fn is_worse(
        &self,
        graph: &Graph,
        client: &ProxyKey,
        (type_url, name): &(TypeUrl, Name),
        route: &Resource,
    ) -> bool {
        let Some(clusters) = self.whole.get(&TypeUrl::Cluster).filter(|clusters| clusters.is_asked()) else {
            return false;
        };
        let before = match type_url {
            // One that takes another's place takes its domains too, at once.
            TypeUrl::VirtualHost => self.hosts.get(name).filter(|host| host.wire.name == route.wire.name),
            _ => self.find(type_url, name),
        };
        let Some(before) = before else { return false };
        let is_new = |name: &&Name| before.clusters.binary_search(name).is_err();
        // Proxies that ask for clusters need not have them, but there must be such.
        let is_there = |name: &Name| {
            clusters.resources().find(name).is_some()
                || (client.is_lazy()
                    && (self.find(&TypeUrl::Cluster, name).is_some()
                        || graph.peek::<NamedCluster>(&(client.clone(), name.to_string())).is_some()))
        };
        route.clusters.iter().filter(is_new).any(|name| !is_there(name))
    }

    /// Finds out which clusters must be there beforehand; true if these are others than before.
    pub(crate) fn refresh_needed(&mut self) -> bool {
        let whole = [TypeUrl::Listener, TypeUrl::ExtensionConfig];
        let whole = whole.iter().filter_map(|type_url| self.whole.get(type_url)).flat_map(Whole::iter);
        let all = whole.chain(self.routes());
        let needed: BTreeSet<Name> = all.flat_map(|resource| &resource.needs).cloned().collect();
        let changed = needed != self.needed;
        self.needed = needed;
        changed
    }

    /// The clusters that must be there beforehand, as last found out.
    pub(crate) fn needed(&self) -> &BTreeSet<Name> {
        &self.needed
    }

    /// What was asked for by name of a type, sorted.
    pub(crate) fn asked_names(&self, type_url: &TypeUrl) -> Vec<String> {
        let asked = self.named.get(type_url).into_iter().flat_map(Named::asked);
        let mut names: Vec<String> = asked.map(ToString::to_string).collect();
        names.sort();
        names
    }

    /// Whether a cluster is of no use before its endpoints have been asked for and sent.
    pub(crate) fn needs_endpoints(&self, cluster: &str) -> bool {
        let named = || self.find(&TypeUrl::Cluster, cluster).is_some_and(|found| found.needs_endpoints);
        self.needing.contains(cluster) || named()
    }

    /// The names of the resources of a type, and the objects that each comes from.
    pub(crate) fn origins(&self, type_url: &TypeUrl) -> Vec<(&str, &[ObjectRef])> {
        let named = self.named.get(type_url).into_iter().flat_map(Named::iter);
        let whole = self.whole.get(type_url).into_iter().flat_map(Whole::iter);
        origins(named.chain(whole)).collect()
    }

    /// Lets go of what was asked for by its name and is not wanted any more.
    pub(crate) fn release_unwanted(
        &mut self,
        graph: &mut Graph,
        client: &ProxyKey,
        wanted: impl Fn(&TypeUrl, &str) -> bool,
    ) {
        for (type_url, named) in &mut self.named {
            for name in named.release_unwanted(|name| wanted(type_url, name)) {
                release(graph, client, type_url, &name);
                match type_url {
                    TypeUrl::Route => drop(self.held.remove(&(TypeUrl::Route, name))),
                    TypeUrl::Secret => {
                        let version = self.open_secrets.resources().version().clone();
                        self.open_secrets.set(&name, None, version);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Lets go of everything.
    pub(crate) fn release(mut self, graph: &mut Graph, client: &ProxyKey) {
        self.release_unwanted(graph, client, |_, _| false);
        self.release_hosts(graph, client, |_| false);
        graph.release::<SharedClusters>(client);
        graph.release::<FixedClusters>(client);
        graph.release::<SharedListeners>(client);
        graph.release::<NameTable>(client);
        graph.release::<Extensions>(client);
    }
}

fn asked(client: &ProxyKey, type_url: &TypeUrl) -> Asked {
    match type_url {
        TypeUrl::Cluster | TypeUrl::Listener if client.role == Role::Grpc => Asked::Named,
        TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::ExtensionConfig => Asked::Whole,
        TypeUrl::Endpoint | TypeUrl::Route | TypeUrl::Secret => Asked::Named,
        TypeUrl::Other(url) if url == name_table::TYPE_URL || url == trust_bundle::TYPE_URL => Asked::Whole,
        _ => Asked::Nothing,
    }
}

/// All resources of a type.
fn whole(graph: &Graph, client: &ProxyKey, type_url: &TypeUrl) -> Arc<Vec<Arc<Resource>>> {
    match type_url {
        TypeUrl::Cluster if client.is_lazy() => graph.get::<FixedClusters>(client),
        TypeUrl::Cluster => graph.get::<SharedClusters>(client),
        TypeUrl::Listener => graph.get::<SharedListeners>(client),
        TypeUrl::ExtensionConfig => graph.get::<Extensions>(client),
        TypeUrl::Other(url) if url == name_table::TYPE_URL => single(&graph.get::<NameTable>(client)),
        TypeUrl::Other(url) if url == trust_bundle::TYPE_URL => single(&graph.get::<TrustBundle>(&())),
        _ => Arc::default(),
    }
}

/// A list of what there is only one of.
pub(crate) fn single(resource: &Arc<Option<Resource>>) -> Arc<Vec<Arc<Resource>>> {
    Arc::new(resource.iter().cloned().map(Arc::new).collect())
}

/// A resource that is asked for by its name.
fn derive(graph: &Graph, client: &ProxyKey, type_url: &TypeUrl, name: &Name) -> Option<Arc<Resource>> {
    let key = (client.clone(), name.to_string());
    let found = match (client.role, type_url) {
        (Role::Grpc, TypeUrl::Cluster) => graph.get::<GrpcCluster>(&key),
        (Role::Grpc, TypeUrl::Endpoint) => graph.get::<GrpcEndpoints>(&key),
        (Role::Grpc, TypeUrl::Listener) => graph.get::<GrpcListener>(&key),
        (Role::Grpc, TypeUrl::Route) => graph.get::<GrpcRoute>(&key),
        (_, TypeUrl::Cluster) => graph.get::<NamedCluster>(&key),
        (_, TypeUrl::Endpoint) => graph.get::<Endpoints>(&key),
        (_, TypeUrl::Route) => graph.get::<Route>(&key),
        _ => return None,
    };
    found.as_ref().clone()
}

/// Lets go of it.
fn release(graph: &mut Graph, client: &ProxyKey, type_url: &TypeUrl, name: &Name) {
    let key = (client.clone(), name.to_string());
    match (client.role, type_url) {
        (_, TypeUrl::Secret) => graph.release::<GivenTo>(&key),
        (Role::Grpc, TypeUrl::Cluster) => graph.release::<GrpcCluster>(&key),
        (Role::Grpc, TypeUrl::Endpoint) => graph.release::<GrpcEndpoints>(&key),
        (Role::Grpc, TypeUrl::Listener) => graph.release::<GrpcListener>(&key),
        (Role::Grpc, TypeUrl::Route) => graph.release::<GrpcRoute>(&key),
        (_, TypeUrl::Cluster) => graph.release::<NamedCluster>(&key),
        (_, TypeUrl::Endpoint) => graph.release::<Endpoints>(&key),
        (_, TypeUrl::Route) => graph.release::<Route>(&key),
        _ => {}
    }
}
