//! The main thread's store of lowered configuration: what is in force, what still warms, and
//! what has to be published.
//!
//! A cluster is *warm* when its endpoints are known (EDS answered or timed out, DNS resolved
//! once), a listener when its routes and its filters' configurations are; both when their secrets
//! are. A changed resource serves only when it is warm; the one that it replaces serves until then.
//! `settle` moves what has become warm into the next `Snapshot`. The store does no I/O: it says what
//! is wanted and is told what came.
//!
//! An update costs what it changes, however many clusters there are: `table` finds those that it is
//! about, by what each `wants`. Reading order: this file, `wants`, `table`, `warm`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_base::Name;
use leno_xds::TypeUrl;
use prost_types::Any;

use crate::cluster::{Assignment, Cluster, DnsDiscovery};
use crate::config::source::{Origin, ResourceKey};
use crate::http::filters::Background;
use crate::http::route::RouteTable;
use crate::listener::Listener;
use crate::snapshot::Snapshot;
use crate::tls::secrets::{self, KnownSecret, Refilled, SecretRef, SecretTable};

mod extensions;
mod table;
mod virtual_hosts;
mod wants;
mod warm;

pub(crate) use extensions::Extension;
use extensions::ExtensionTable;
pub(crate) use table::{Reference, Want};
use table::{Slot, Table};
use virtual_hosts::HostDemands;
use wants::{dns_settings, eds, rds};

/// All configuration, on the main thread.
#[derive(Debug, Default)]
pub(crate) struct Store {
    clusters: Table<Cluster>,
    listeners: Table<Listener>,
    /// That came by RDS.
    routes: BTreeMap<ResourceKey, Arc<RouteTable>>,
    /// That came by EDS.
    assignments: BTreeMap<ResourceKey, Arc<Assignment>>,
    secrets: SecretTable,
    /// That came by ECDS.
    extensions: ExtensionTable,
    /// By cluster name, from DNS, with the settings that it was found by: a changed cluster must
    /// not serve what its predecessor's names resolved to.
    resolved: BTreeMap<Name, Vec<Resolved>>,
    /// What did not come within its initial fetch timeout: it holds up nothing.
    expired_endpoints: BTreeSet<ResourceKey>,
    expired_routes: BTreeSet<ResourceKey>,
    /// Whether listeners may start: clusters of the bootstrap and of the first CDS update are
    /// warm, as Envoy's init manager has it.
    clusters_ready: bool,
    /// Whether the first CDS update is still awaited.
    awaits_clusters: bool,
    /// Whether the first LDS update is still awaited.
    awaits_listeners: bool,
    /// Whether all that was configured at the start was in force once; it stays so while later
    /// resources warm.
    live: bool,
    /// Whether something came that may warm a resource, or change what is referred to.
    unsettled: bool,
    snapshot: Arc<Snapshot>,
    changed: bool,
    /// Clusters that have come into force or are gone since the last snapshot.
    touched: BTreeSet<Name>,
    /// By cluster: what discovery gave, and what is in force instead, as health checks keep hosts
    /// that discovery drops.
    kept: BTreeMap<Name, (Arc<Assignment>, Arc<Assignment>)>,
    /// Clusters that were asked for by name, on demand.
    demanded: BTreeSet<ResourceKey>,
    /// Those of them that there are not, since they were asked for last.
    missing: Vec<Name>,
    /// Of route tables: virtual hosts that come one by one.
    hosts: HostDemands,
    /// What came of these may have no user: to be forgotten, if so.
    loose: BTreeSet<Reference>,
    /// What may be wanted now and was not, or the other way round: for who asks for it.
    moved: BTreeSet<Reference>,
}

/// What DNS found for one version of a cluster.
#[derive(Debug)]
struct Resolved {
    settings: Arc<DnsDiscovery>,
    assignment: Arc<Assignment>,
}

impl Store {
    /// A store that waits for the first CDS and LDS updates if they are to come by xDS.
    pub(crate) fn new(awaits_clusters: bool, awaits_listeners: bool) -> Self {
        Self { awaits_clusters, awaits_listeners, unsettled: true, ..Self::default() }
    }

    /// Takes a new or changed cluster; false: it is what we have, or not to be changed.
    pub(crate) fn put_cluster(&mut self, cluster: impl Into<Arc<Cluster>>) -> bool {
        let news = self.clusters.put(cluster.into());
        self.unsettled |= news;
        news
    }

    /// Whether a cluster's message is news, so that it is worth lowering.
    pub(crate) fn takes_cluster(&self, name: &str, source: &[u8]) -> bool {
        self.clusters.takes(name, source)
    }

    /// Forgets a cluster that came by xDS; false: there is none of that name.
    pub(crate) fn remove_cluster(&mut self, name: &str) -> bool {
        let Some(slot) = self.clusters.remove(name) else { return false };
        self.unsettled = true;
        if slot.active.is_some() {
            self.changed = true;
            self.touched.insert(name.into());
        }
        self.resolved.remove(name);
        self.kept.remove(name);
        true
    }

    /// Somebody waits for a cluster that is not known: it is subscribed to by its name, from now on.
    pub(crate) fn demand(&mut self, key: ResourceKey) {
        let reference = Reference::cluster(&key);
        if self.demanded.insert(key) {
            self.moved.insert(reference);
            self.unsettled = true;
        }
    }

    /// The control plane says that there is no such cluster, or none any more. Who wants it later asks
    /// anew.
    pub(crate) fn miss_cluster(&mut self, key: &ResourceKey) {
        if self.demanded.remove(key) {
            self.moved.insert(Reference::cluster(key));
            self.missing.push(key.name.clone());
            self.unsettled = true;
        }
    }

    /// Clusters that were asked for and are not there, since the last call.
    pub(crate) fn take_missing(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.missing)
    }

    /// Takes a new or changed listener; false: it is what we have, or not to be changed.
    pub(crate) fn put_listener(&mut self, listener: Arc<Listener>) -> bool {
        let news = self.listeners.put(listener);
        self.unsettled |= news;
        news
    }

    /// Whether a listener's message is news, so that it is worth lowering.
    pub(crate) fn takes_listener(&self, name: &str, source: &[u8]) -> bool {
        self.listeners.takes(name, source)
    }

    /// The newest version of a listener, in force or warming.
    pub(crate) fn newest_listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.slot(name)?.newest()
    }

    /// Forgets a listener that came by xDS; false: there is none of that name.
    pub(crate) fn remove_listener(&mut self, name: &str) -> bool {
        let Some(slot) = self.listeners.remove(name) else { return false };
        self.unsettled = true;
        self.changed |= slot.active.is_some();
        true
    }

    /// Takes a route table that came by RDS.
    pub(crate) fn put_routes(&mut self, key: ResourceKey, table: Arc<RouteTable>) {
        self.came(Reference::routes(&key));
        self.expired_routes.remove(&key);
        self.hosts.put(&key, table.vhds(), !self.routes.contains_key(&key));
        self.put_hosts(key, table);
    }

    /// Takes a route table whose discovered virtual hosts have changed, and nothing else.
    pub(crate) fn put_hosts(&mut self, key: ResourceKey, table: Arc<RouteTable>) {
        self.changed |= !self.hosts.waits(&key);
        self.routes.insert(key, table);
        self.unsettled = true;
    }

    /// The tables that a virtual host from this place is for, by the name that it comes under.
    pub(crate) fn tables_of(&self, host: &str, origin: &Origin) -> Vec<ResourceKey> {
        self.hosts.tables_of(host, origin)
    }

    /// Somebody waits for a virtual host of a table: it is subscribed to, from now on.
    pub(crate) fn demand_host(&mut self, table: &ResourceKey, host: &str) {
        let routes = self.routes.get(table);
        let has = |name: &Name| routes.is_some_and(|routes| routes.has_discovered(name));
        if let Some(gone) = self.hosts.demand(table, host, has)
            && let Some(routes) = routes.filter(|routes| routes.has_discovered(&gone))
        {
            let mut routes = RouteTable::clone(routes);
            routes.remove_discovered(&gone);
            self.put_hosts(table.clone(), Arc::new(routes));
        }
        self.unsettled |= self.hosts.is_news();
    }

    /// These names of virtual hosts were answered from a place, whatever the answer was, each under a name.
    pub(crate) fn answer_hosts(&mut self, names: impl Iterator<Item = (Name, Name)>, origin: &Origin) {
        self.hosts.answer(names, origin);
        self.unsettled |= self.hosts.is_news();
    }

    /// The first answer about virtual hosts has come from a place, or did not come in time.
    pub(crate) fn hosts_came(&mut self, origin: &Origin) {
        for table in self.hosts.came(origin) {
            self.came(Reference::routes(&table));
            self.changed = true;
            self.unsettled = true;
        }
    }

    /// Virtual hosts ([`ResourceKey::host`]) that were answered since the last call.
    pub(crate) fn take_answered(&mut self) -> Vec<ResourceKey> {
        self.hosts.take_answered()
    }

    /// Something came of this: who waits for it may be warm.
    fn came(&mut self, reference: Reference) {
        let users = [self.clusters.note_users(&reference), self.listeners.note_users(&reference)];
        if users == [false; 2] {
            self.loose.insert(reference);
        }
    }

    /// A table that came by RDS.
    pub(crate) fn routes(&self, key: &ResourceKey) -> Option<&Arc<RouteTable>> {
        self.routes.get(key)
    }

    /// Takes endpoints that came by EDS; returns the clusters in force whose endpoints they are.
    pub(crate) fn put_assignment(&mut self, key: ResourceKey, assignment: Arc<Assignment>) -> Vec<Name> {
        self.expired_endpoints.remove(&key);
        if self.assignments.get(&key).is_some_and(|current| **current == *assignment) {
            return Vec::new();
        }
        let reference = Reference::endpoints(&key);
        let uses = |version: &Option<Arc<Cluster>>| {
            version.as_deref().and_then(eds).is_some_and(|service| *service == key)
        };
        let mut users = Vec::new();
        for name in self.clusters.users(&reference) {
            let Some(slot) = self.clusters.slot(name) else { continue };
            self.unsettled |= uses(&slot.warming);
            if uses(&slot.active) {
                users.push(name.clone());
            }
        }
        self.came(reference);
        self.set_endpoints(&users, &assignment);
        self.assignments.insert(key, assignment);
        users
    }

    /// Takes addresses that DNS found for a cluster with these settings; true: it is in force,
    /// and its workers are to be told.
    pub(crate) fn put_resolved(
        &mut self,
        cluster: &Name,
        settings: &Arc<DnsDiscovery>,
        assignment: &Arc<Assignment>,
    ) -> bool {
        let Some(slot) = self.clusters.slot(cluster) else { return false };
        let by_these =
            |version: &Option<Arc<Cluster>>| version.as_deref().and_then(dns_settings) == Some(settings);
        let (active, warming) = (by_these(&slot.active), by_these(&slot.warming));
        if !active && !warming {
            return false;
        }
        if warming {
            self.unsettled = true;
            self.clusters.note(cluster);
        }
        let known = self.resolved.entry(cluster.clone()).or_default();
        known.retain(|known| known.settings != *settings);
        known.push(Resolved { settings: Arc::clone(settings), assignment: Arc::clone(assignment) });
        if active {
            self.set_endpoints(std::slice::from_ref(cluster), assignment);
        }
        active
    }

    /// Keeps the snapshot true to what workers are told about endpoints apart from it.
    fn set_endpoints(&mut self, clusters: &[Name], assignment: &Arc<Assignment>) {
        if !clusters.is_empty() {
            let snapshot = Arc::make_mut(&mut self.snapshot);
            for cluster in clusters {
                snapshot.endpoints.insert(cluster.clone(), Arc::clone(assignment));
            }
        }
    }

    /// Endpoints did not come in time: their clusters start without.
    pub(crate) fn expire_endpoints(&mut self, key: ResourceKey) {
        if !self.assignments.contains_key(&key) {
            self.came(Reference::endpoints(&key));
            self.expired_endpoints.insert(key);
            self.unsettled = true;
        }
    }

    /// Routes did not come in time: their listeners start without (404).
    pub(crate) fn expire_routes(&mut self, key: ResourceKey) {
        if !self.routes.contains_key(&key) {
            self.came(Reference::routes(&key));
            self.expired_routes.insert(key);
            self.unsettled = true;
        }
    }

    /// Takes a secret that came by SDS, and gives it to those who refer to it; these.
    ///
    /// # Errors
    /// Why one of them cannot do with it: then all keep what they have.
    pub(crate) fn put_secret(
        &mut self,
        key: ResourceKey,
        version: KnownSecret,
    ) -> Result<Vec<Refilled>, String> {
        let reference = Reference::secret(&key);
        let listeners = self.listeners.users(&reference).filter_map(|name| self.listeners.slot(name));
        let clusters = self.clusters.users(&reference).filter_map(|name| self.clusters.slot(name));
        let refilled = self.secrets.put(
            key,
            version,
            listeners.flat_map(Slot::versions),
            clusters.flat_map(Slot::versions),
        )?;
        self.came(reference);
        self.unsettled = true;
        Ok(refilled)
    }

    /// What goes on beside requests for listeners in force or warming; none as long as the clusters
    /// are not there that it may need.
    pub(crate) fn background(&self) -> impl Iterator<Item = (&Name, &Arc<dyn Background>, &Name)> {
        let slots = self.listeners.slots().filter(|_| self.clusters_ready);
        slots.flat_map(|(_, slot)| slot.versions()).flat_map(|listener| {
            let background = listener.background.iter();
            background.map(|(work, stat_prefix)| (&listener.name, work, stat_prefix))
        })
    }

    /// What goes on beside a listener's requests has become ready.
    pub(crate) fn background_ready(&mut self, listener: &Name) {
        self.unsettled = true;
        self.listeners.note(listener);
    }

    /// Whether this very secret is there already.
    pub(crate) fn has_secret(&mut self, key: &ResourceKey, source: &Any, version: &str) -> bool {
        self.secrets.seen(key, source, version)
    }

    /// This secret did not come in time, or was refused: its users start without, and refuse
    /// connections.
    pub(crate) fn expire_secret(&mut self, key: ResourceKey) {
        self.came(Reference::secret(&key));
        self.unsettled |= self.secrets.expire(key);
    }

    /// The secrets that came by SDS.
    pub(crate) fn secrets(&self) -> &SecretTable {
        &self.secrets
    }

    /// Secrets that listeners and clusters in force or warming refer to.
    pub(crate) fn wanted_secrets(&self) -> BTreeSet<&ResourceKey> {
        let references = self.references().filter(|reference| reference.type_url == TypeUrl::Secret);
        references.map(|reference| &reference.key).collect()
    }

    /// The first CDS update was taken, or did not come in time.
    pub(crate) fn clusters_came(&mut self) {
        self.unsettled |= std::mem::take(&mut self.awaits_clusters);
    }

    /// The first LDS update was taken, or did not come in time.
    pub(crate) fn listeners_came(&mut self) {
        self.unsettled |= std::mem::take(&mut self.awaits_listeners);
    }

    /// Whether everything that was configured at the start is in force (`LIVE`).
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether the first LDS update is still awaited.
    pub(crate) fn awaits_listeners(&self) -> bool {
        self.awaits_listeners
    }

    /// What initialisation still waits for, as /init_dump shows it.
    pub(crate) fn unready(&self) -> Vec<(String, Vec<String>)> {
        let mut unready = Vec::new();
        let clusters: Vec<String> =
            self.clusters.warming().map(|cluster| format!("Cluster {}", cluster.name)).collect();
        if !clusters.is_empty() {
            unready.push(("init manager Server".to_owned(), clusters));
        }
        for cluster in self.clusters.warming() {
            let targets = self.missing_secrets(secrets::of_cluster(cluster)).collect();
            unready.push((format!("init manager Cluster {}", cluster.name), targets));
        }
        for listener in self.listeners.warming() {
            let missing = rds(listener).filter(|(table, _, _)| !self.has_routes(table));
            let routes =
                missing.map(|(table, _, _)| format!("target RdsRouteConfigSubscription init {}", table.name));
            let extensions = self.missing_extensions(listener);
            let secrets = self.missing_secrets(secrets::of_listener(listener));
            let targets = routes.chain(secrets).chain(extensions).collect();
            unready.push((format!("init manager Listener-init-target {}", listener.name), targets));
        }
        unready
    }

    fn missing_secrets<'s>(
        &'s self,
        wanted: impl Iterator<Item = &'s SecretRef>,
    ) -> impl Iterator<Item = String> {
        let missing = wanted.filter(|wanted| !self.secrets.has(std::iter::once(*wanted)));
        missing.map(|wanted| format!("target SdsApi {}", wanted.key.name))
    }

    /// Whether nothing came since the last `settle` that it could act on, nor anybody else who
    /// follows what is referred to: so it is when only endpoints of clusters in force changed.
    pub(crate) fn is_settled(&self) -> bool {
        !self.unsettled
    }

    /// The versions of a cluster that have health checks, in force or warming, with what discovery
    /// gave for them.
    pub(crate) fn checked(&self, name: &str) -> Vec<(Arc<Cluster>, Option<Arc<Assignment>>)> {
        let clusters = self.clusters.slot(name).into_iter().flat_map(Slot::versions);
        let checked = clusters.filter(|cluster| cluster.health.is_some());
        let discovered = |cluster: &Cluster| {
            // A cluster whose endpoints did not come in time warms without hosts.
            let expired = || eds(cluster).is_some_and(|key| self.expired_endpoints.contains(key));
            self.discovered(cluster).or_else(|| (expired() || !cluster.wait_for_warm).then(Arc::default))
        };
        checked.map(|cluster| (Arc::clone(cluster), discovered(cluster))).collect()
    }

    /// In place of what discovery gave for a cluster, this is in force.
    pub(crate) fn keep(&mut self, cluster: &Name, discovered: &Arc<Assignment>, in_force: &Arc<Assignment>) {
        if Arc::ptr_eq(discovered, in_force) {
            self.kept.remove(&**cluster);
        } else {
            self.kept.insert(cluster.clone(), (Arc::clone(discovered), Arc::clone(in_force)));
        }
        let in_snapshot = self.snapshot.endpoints.get(cluster);
        if in_snapshot.is_some_and(|before| !Arc::ptr_eq(before, in_force)) {
            self.set_endpoints(std::slice::from_ref(cluster), in_force);
        }
    }

    /// Whether this version of a cluster still warms.
    pub(crate) fn is_warming(&self, cluster: &Arc<Cluster>) -> bool {
        let slot = self.clusters.slot(&cluster.name);
        slot.and_then(|slot| slot.warming.as_ref()).is_some_and(|warming| Arc::ptr_eq(warming, cluster))
    }

    /// Whether this version of a cluster is in force, or warms.
    pub(crate) fn has(&self, cluster: &Arc<Cluster>) -> bool {
        let slot = self.clusters.slot(&cluster.name);
        slot.is_some_and(|slot| slot.versions().any(|version| Arc::ptr_eq(version, cluster)))
    }

    /// Something that the store does not see may have warmed this cluster.
    pub(crate) fn unsettle(&mut self, cluster: &Name) {
        self.unsettled = true;
        self.clusters.note(cluster);
    }

    /// The clusters that something came for since the last `settle`, gone ones among them. What
    /// alone came are endpoints of clusters in force: those are not.
    pub(crate) fn news(&self) -> Vec<Name> {
        self.clusters.news().iter().cloned().collect()
    }

    /// All clusters, each in its newest version.
    pub(crate) fn newest_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.slots().filter_map(|(_, slot)| slot.newest())
    }

    /// A cluster's newest version, if it is one whose endpoints DNS finds.
    pub(crate) fn dns_cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.slot(name)?.newest().filter(|cluster| dns_settings(cluster).is_some())
    }

    /// What clusters and listeners in force or warming refer to; some of it more than once.
    pub(crate) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.clusters.references().chain(self.listeners.references())
    }

    /// Whether one of them refers to this.
    pub(crate) fn refers_to(&self, reference: &Reference) -> bool {
        self.clusters.refers_to(reference) || self.listeners.refers_to(reference) || self.demands(reference)
    }

    fn demands(&self, reference: &Reference) -> bool {
        reference.type_url == TypeUrl::Cluster && self.demanded.contains(&reference.key)
            || self.hosts.users(reference).next().is_some()
    }

    /// How those that refer to this want it: of each kind, first those that warm.
    pub(crate) fn wants(&self, reference: &Reference) -> impl Iterator<Item = Want> {
        let is_demanded = reference.type_url == TypeUrl::Cluster && self.demands(reference);
        let demanded = is_demanded.then(|| Want {
            reference: reference.clone(),
            // Who waits has a time of its own.
            timeout: None,
            user: Name::default(),
        });
        let hosts = self.hosts.users(reference).flat_map(move |(table, timeout)| {
            let users = self.users_of_routes(table);
            users.into_iter().map(move |user| Want { reference: reference.clone(), timeout, user })
        });
        self.listeners.wants(reference).chain(self.clusters.wants(reference)).chain(demanded).chain(hosts)
    }

    /// The `stat_prefix`es of those who have this table.
    fn users_of_routes(&self, table: &ResourceKey) -> BTreeSet<Name> {
        self.listeners.wants(&Reference::routes(table)).map(|want| want.user).collect()
    }

    /// What has come to be referred to since the last call, or has ceased to be, or may have.
    pub(crate) fn take_moved(&mut self) -> BTreeSet<Reference> {
        self.see_moved();
        std::mem::take(&mut self.moved)
    }

    /// What workers see.
    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Clusters that are not warm yet, for /config_dump.
    pub(crate) fn warming_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.warming()
    }

    /// Listeners that are not warm yet, for /config_dump.
    pub(crate) fn warming_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.warming()
    }

    /// How many clusters and listeners are not warm yet.
    pub(crate) fn count_warming(&self) -> (usize, usize) {
        (self.clusters.count_warming(), self.listeners.count_warming())
    }

    /// How many clusters were looked at so far.
    #[cfg(test)]
    pub(crate) fn visits(&self) -> usize {
        self.clusters.visits()
    }
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
