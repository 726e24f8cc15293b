//! What proxies of one kind should have: what they share with others as clients, and what is theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;
use leno_xds::server::grpc::StreamId;

use super::learnt::Kin;
use super::named::origins;
use super::view::View;
use crate::model::ObjectRef;
use crate::scope::client::ClientOf;
use crate::scope::{ProxyKey, Role};
use crate::translate::cluster::OwnClusters;
use crate::translate::listener::OwnListeners;
use crate::translate::name;
use crate::translate::resource::Resource;

/// A virtual host that leads to no more clusters than this comes with all of them; those of others are
/// asked for.
const MOST_CLUSTERS: usize = 32;

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
    /// With whom it learns which clusters are used, if it is told of these only.
    pub(crate) kin: Option<Kin>,
    /// The clusters of services that it is told of then.
    picked: BTreeSet<Name>,
    /// Whether these were found out once.
    has_picked: bool,
    /// The virtual hosts that it is told of, by their names, if it is told only of those that are used.
    picked_hosts: BTreeMap<Name, Arc<Resource>>,
    hosts: Resources,
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
            kin: key.is_lazy().then(|| Kin::of(key)),
            picked: BTreeSet::new(),
            has_picked: false,
            picked_hosts: BTreeMap::new(),
            hosts: Resources::default(),
            empty_since: None,
        }
    }

    /// The resources of a type.
    pub(crate) fn resources<'r>(&'r self, view: &'r View, type_url: &TypeUrl) -> &'r Resources {
        match type_url {
            TypeUrl::Cluster if !self.is_grpc() => &self.clusters,
            TypeUrl::Listener if !self.is_grpc() => &self.listeners,
            TypeUrl::VirtualHost if self.client.asks_for_hosts() => &self.hosts,
            _ => view.resources(type_url),
        }
    }

    /// The names of the resources of a type, and the objects that each comes from.
    pub(crate) fn origins<'r>(
        &'r self,
        view: &'r View,
        type_url: &TypeUrl,
    ) -> Vec<(&'r str, &'r [ObjectRef])> {
        let mut all = view.origins(type_url);
        let own = match type_url {
            TypeUrl::Cluster => &self.own_clusters,
            TypeUrl::Listener => &self.own_listeners,
            _ => &None,
        };
        all.extend(origins(own.iter().flat_map(|list| list.iter())));
        if *type_url == TypeUrl::VirtualHost {
            all.extend(origins(self.picked_hosts.values()));
        }
        all
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

    /// New resources of its own of a type.
    pub(crate) fn set_own(&mut self, type_url: &TypeUrl, own: Arc<Vec<Arc<Resource>>>) {
        match type_url {
            TypeUrl::Cluster => self.own_clusters = Some(own),
            TypeUrl::Listener => self.own_listeners = Some(own),
            _ => {}
        }
    }

    /// Which of some clusters of services it is told of.
    pub(crate) fn picks(&self, name: &str) -> bool {
        self.picked.contains(name)
    }

    /// The virtual hosts that it is told of from now on, by the names that they are learnt by; false if
    /// they are the same as before.
    pub(crate) fn pick_hosts(&mut self, view: &View, learnt: &[Name], version: &Name) -> bool {
        let picked = learnt.iter().filter_map(|name| view.host(name));
        let picked = picked.map(|host| (host.wire.name.clone(), Arc::clone(host))).collect();
        if self.picked_hosts == picked && !self.hosts.version().is_empty() {
            return false;
        }
        self.picked_hosts = picked;
        self.hosts.replace(self.picked_hosts.values().map(|host| host.wire.clone()));
        self.hosts.set_version(version.clone());
        true
    }

    /// Virtual hosts that it is told of besides, by the names that they are learnt by: whether some are new
    /// or others than before, and the clusters that it is told of with them and was not before.
    pub(crate) fn pick_more_hosts(
        &mut self,
        view: &View,
        learnt: &[Name],
        version: &Name,
    ) -> (bool, Vec<Name>) {
        let (mut changed, mut clusters) = (false, Vec::new());
        for host in learnt.iter().filter_map(|name| view.host(name)) {
            let name = &host.wire.name;
            if self.picked_hosts.get(name) == Some(host) {
                continue;
            }
            changed = true;
            self.hosts.insert(host.wire.clone());
            self.picked_hosts.insert(name.clone(), Arc::clone(host));
            clusters.extend(led_to(host).cloned());
        }
        if changed {
            self.hosts.set_version(version.clone());
        }
        (changed, self.pick_clusters(&clusters))
    }

    /// Clusters of services that it is told of besides: those that it was not told of before.
    pub(crate) fn pick_clusters(&mut self, clusters: &[Name]) -> Vec<Name> {
        clusters.iter().filter(|name| self.picked.insert(Name::clone(name))).cloned().collect()
    }

    /// Takes in clusters that it is told of besides; true if there are any of them.
    pub(crate) fn combine_more(&mut self, view: &View, clusters: &[Name], version: &Name) -> bool {
        let found: Vec<_> = clusters.iter().filter_map(|name| view.find(&TypeUrl::Cluster, name)).collect();
        if found.is_empty() {
            return false;
        }
        for cluster in found {
            self.clusters.insert(cluster.wire.clone());
        }
        self.clusters.set_version(version.clone());
        true
    }

    /// Whether it was found out already what it is told of.
    pub(crate) fn has_picked(&self) -> bool {
        self.has_picked && (!self.client.asks_for_hosts() || !self.hosts.version().is_empty())
    }

    /// The clusters of services that it is told of from now on, with those that listeners and virtual
    /// hosts need, and those that the latter lead to; false if they are the same as before.
    pub(crate) fn pick(&mut self, view: &View, learnt: impl Iterator<Item = Name>) -> bool {
        let own = self.own_listeners.iter().flat_map(|list| list.iter());
        let needed = view.needed().iter().chain(own.flat_map(|listener| &listener.needs));
        let needed = needed.chain(self.picked_hosts.values().flat_map(led_to));
        let picked = learnt.chain(needed.cloned()).collect();
        self.has_picked = true;
        let changed = self.picked != picked;
        self.picked = picked;
        changed
    }

    /// Those.
    pub(crate) fn picked(&self) -> &BTreeSet<Name> {
        &self.picked
    }

    /// Takes in what has changed of a type, in the view or of its own.
    pub(crate) fn combine(&mut self, view: &View, type_url: &TypeUrl, version: &Name) {
        let (resources, own) = match type_url {
            TypeUrl::Cluster => (&mut self.clusters, &self.own_clusters),
            TypeUrl::Listener => (&mut self.listeners, &self.own_listeners),
            _ => return,
        };
        // This copies little of what is shared.
        *resources = view.resources(type_url).clone();
        let own = own.iter().flat_map(|list| list.iter());
        let picked = (*type_url == TypeUrl::Cluster).then_some(&self.picked).into_iter().flatten();
        for resource in own.chain(picked.filter_map(|name| view.find(type_url, name))) {
            resources.insert(resource.wire.clone());
        }
        resources.set_version(version.clone());
    }

    /// Lets go of everything.
    pub(crate) fn release(self, graph: &mut Graph, key: &ProxyKey) {
        graph.release::<ClientOf>(key);
        graph.release::<OwnClusters>(key);
        graph.release::<OwnListeners>(key);
    }
}

/// The clusters of services that come with a virtual host: those that it leads to unless they are many, and
/// those that it needs.
fn led_to(host: &Arc<Resource>) -> impl Iterator<Item = &Name> {
    let led_to = Some(&host.clusters).filter(|clusters| clusters.len() <= MOST_CLUSTERS);
    let led_to = led_to.into_iter().flatten().filter(|cluster| name::parse_outbound(cluster).is_some());
    led_to.chain(&host.needs)
}
