//! The main thread's store of lowered configuration: what is in force, what still warms, and
//! what has to be published.
//!
//! A cluster is *warm* when its endpoints are known (EDS answered or timed out, DNS resolved
//! once), a listener when its routes are; both when their secrets are. A changed resource serves only when it is warm; the
//! one that it replaces serves until then. `settle` moves what has become warm into the next
//! `Snapshot`. The store does no I/O: it says what is wanted and is told what came.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;
use prost_types::Any;

use crate::cluster::{Assignment, Cluster, Discovery, DnsDiscovery};
use crate::config::source::ResourceKey;
use crate::http::config::RouteSource;
use crate::http::route::RouteTable;
use crate::listener::{Listener, NetworkFilters};
use crate::snapshot::Snapshot;
use crate::tls::secrets::{self, KnownSecret, Refilled, SecretRef, SecretTable};

/// All configuration, on the main thread.
#[derive(Debug, Default)]
pub(crate) struct Store {
    clusters: BTreeMap<Name, Slot<Cluster>>,
    listeners: BTreeMap<Name, Slot<Listener>>,
    /// That came by RDS.
    routes: BTreeMap<ResourceKey, Arc<RouteTable>>,
    /// That came by EDS.
    assignments: BTreeMap<ResourceKey, Arc<Assignment>>,
    secrets: SecretTable,
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
}

/// One resource: the version in force and the one that warms.
#[derive(Debug)]
struct Slot<T> {
    active: Option<Arc<T>>,
    warming: Option<Arc<T>>,
}

/// What DNS found for one version of a cluster.
#[derive(Debug)]
struct Resolved {
    settings: Arc<DnsDiscovery>,
    assignment: Arc<Assignment>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { active: None, warming: None }
    }
}

impl<T: Versioned> Slot<T> {
    fn newest(&self) -> Option<&Arc<T>> {
        self.warming.as_ref().or(self.active.as_ref())
    }

    /// Whether a version that comes by xDS is to be taken. What the bootstrap defines cannot be
    /// changed by xDS; Envoy accepts such an update and lets it lie.
    fn takes(&self, source: &[u8]) -> bool {
        self.newest().is_none_or(|newest| newest.added_via_api() && newest.source() != source)
    }

    /// Puts a version that is to be taken, unless it is the one in force: then nothing warms.
    fn put(&mut self, version: Arc<T>) {
        let in_force = self.active.as_ref().is_some_and(|active| active.source() == version.source());
        self.warming = (!in_force).then_some(version);
    }
}

/// What clusters and listeners have in common.
trait Versioned {
    fn source(&self) -> &[u8];
    fn added_via_api(&self) -> bool;
}

impl Versioned for Cluster {
    fn source(&self) -> &[u8] {
        &self.source
    }

    fn added_via_api(&self) -> bool {
        self.added_via_api
    }
}

impl Versioned for Listener {
    fn source(&self) -> &[u8] {
        &self.source
    }

    fn added_via_api(&self) -> bool {
        self.added_via_api
    }
}

impl Store {
    /// A store that waits for the first CDS and LDS updates if they are to come by xDS.
    pub(crate) fn new(awaits_clusters: bool, awaits_listeners: bool) -> Self {
        Self { awaits_clusters, awaits_listeners, unsettled: true, ..Self::default() }
    }

    /// Takes a new or changed cluster; false: it is what we have, or not to be changed.
    pub(crate) fn put_cluster(&mut self, cluster: impl Into<Arc<Cluster>>) -> bool {
        let cluster = cluster.into();
        if !self.takes_cluster(&cluster.name, &cluster.source) {
            return false;
        }
        self.clusters.entry(cluster.name.clone()).or_default().put(cluster);
        self.unsettled = true;
        true
    }

    /// Whether a cluster's message is news, so that it is worth lowering.
    pub(crate) fn takes_cluster(&self, name: &str, source: &[u8]) -> bool {
        self.clusters.get(name).is_none_or(|slot| slot.takes(source))
    }

    /// Forgets a cluster that came by xDS; false: there is none of that name.
    pub(crate) fn remove_cluster(&mut self, name: &str) -> bool {
        if !self.clusters.get(name).and_then(Slot::newest).is_some_and(|newest| newest.added_via_api) {
            return false;
        }
        if let Some(slot) = self.clusters.remove(name) {
            self.unsettled = true;
            if slot.active.is_some() {
                self.changed = true;
                self.touched.insert(name.into());
            }
            self.resolved.remove(name);
            self.kept.remove(name);
        }
        true
    }

    /// Takes a new or changed listener; false: it is what we have, or not to be changed.
    pub(crate) fn put_listener(&mut self, listener: Arc<Listener>) -> bool {
        if !self.takes_listener(&listener.name, &listener.source) {
            return false;
        }
        self.listeners.entry(listener.name.clone()).or_default().put(listener);
        self.unsettled = true;
        true
    }

    /// Whether a listener's message is news, so that it is worth lowering.
    pub(crate) fn takes_listener(&self, name: &str, source: &[u8]) -> bool {
        self.listeners.get(name).is_none_or(|slot| slot.takes(source))
    }

    /// The newest version of a listener, in force or warming.
    pub(crate) fn newest_listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(name)?.newest()
    }

    /// Forgets a listener that came by xDS; false: there is none of that name.
    pub(crate) fn remove_listener(&mut self, name: &str) -> bool {
        if !self.newest_listener(name).is_some_and(|newest| newest.added_via_api) {
            return false;
        }
        if let Some(slot) = self.listeners.remove(name) {
            self.unsettled = true;
            self.changed |= slot.active.is_some();
        }
        true
    }

    /// Takes a route table that came by RDS.
    pub(crate) fn put_routes(&mut self, key: ResourceKey, table: Arc<RouteTable>) {
        self.expired_routes.remove(&key);
        self.routes.insert(key, table);
        self.changed = true;
        self.unsettled = true;
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
        let awaited = self.warming_clusters().any(|cluster| eds(cluster).is_some_and(|(of, _)| *of == key));
        self.unsettled |= awaited;
        let users = self.active_clusters().filter(|cluster| eds(cluster).is_some_and(|(of, _)| *of == key));
        let users: Vec<Name> = users.map(|cluster| cluster.name.clone()).collect();
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
        let Some(slot) = self.clusters.get(&**cluster) else { return false };
        let by_these =
            |version: &Option<Arc<Cluster>>| version.as_deref().and_then(dns_settings) == Some(settings);
        let (active, warming) = (by_these(&slot.active), by_these(&slot.warming));
        if !active && !warming {
            return false;
        }
        self.unsettled |= warming;
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
            self.expired_endpoints.insert(key);
            self.unsettled = true;
        }
    }

    /// Routes did not come in time: their listeners start without (404).
    pub(crate) fn expire_routes(&mut self, key: ResourceKey) {
        if !self.routes.contains_key(&key) {
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
        let listeners = self.listeners.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        let clusters = self.clusters.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        let refilled = self.secrets.put(key, version, listeners, clusters)?;
        self.unsettled = true;
        Ok(refilled)
    }

    /// Whether this very secret is there already.
    pub(crate) fn has_secret(&mut self, key: &ResourceKey, source: &Any, version: &str) -> bool {
        self.secrets.seen(key, source, version)
    }

    /// This secret did not come in time, or was refused: its users start without, and refuse
    /// connections.
    pub(crate) fn expire_secret(&mut self, key: ResourceKey) {
        self.unsettled |= self.secrets.expire(key);
    }

    /// The secrets that came by SDS.
    pub(crate) fn secrets(&self) -> &SecretTable {
        &self.secrets
    }

    /// Secrets that listeners and clusters in force or warming refer to, with how long each is
    /// waited for.
    pub(crate) fn wanted_secrets(&self) -> BTreeMap<ResourceKey, Option<Duration>> {
        let listeners = self.listeners.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        let clusters = self.clusters.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        let of_listeners = listeners.flat_map(|listener| secrets::of_listener(listener));
        let of_clusters = clusters.flat_map(|cluster| secrets::of_cluster(cluster));
        of_listeners.chain(of_clusters).map(|wanted| (wanted.key.clone(), wanted.timeout)).collect()
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
        let clusters = self.clusters.iter().filter(|(_, slot)| slot.warming.is_some());
        let clusters: Vec<String> = clusters.map(|(name, _)| format!("Cluster {name}")).collect();
        if !clusters.is_empty() {
            unready.push(("init manager Server".to_owned(), clusters));
        }
        for (name, slot) in &self.clusters {
            let Some(cluster) = &slot.warming else { continue };
            let targets = self.missing_secrets(secrets::of_cluster(cluster)).collect();
            unready.push((format!("init manager Cluster {name}"), targets));
        }
        for (name, slot) in &self.listeners {
            let Some(listener) = &slot.warming else { continue };
            let missing = rds(listener).filter(|(table, _, _)| !self.routes.contains_key(table));
            let routes =
                missing.map(|(table, _, _)| format!("target RdsRouteConfigSubscription init {}", table.name));
            let targets = routes.chain(self.missing_secrets(secrets::of_listener(listener))).collect();
            unready.push((format!("init manager Listener-init-target {name}"), targets));
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

    /// Moves what has become warm into force; the next snapshot, if anything did.
    pub(crate) fn settle(&mut self) -> Option<Arc<Snapshot>> {
        self.unsettled = false;
        self.warm_clusters();
        self.clusters_ready |=
            !self.awaits_clusters && self.clusters.values().all(|slot| slot.active.is_some());
        if self.clusters_ready {
            self.warm_listeners();
            self.live |= !self.awaits_listeners && self.listeners.values().all(|slot| slot.active.is_some());
        }
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.forget_unused();
        self.snapshot = self.build();
        Some(Arc::clone(&self.snapshot))
    }

    fn warm_clusters(&mut self) {
        for slot in self.clusters.values_mut() {
            let Some(cluster) = &slot.warming else { continue };
            let warm = match &cluster.discovery {
                Discovery::Static(_)
                | Discovery::OriginalDst { .. }
                | Discovery::DynamicForwardProxy(_)
                | Discovery::Aggregate(_) => true,
                Discovery::StrictDns(settings) | Discovery::LogicalDns(settings) => {
                    resolved(&self.resolved, &cluster.name, settings).is_some() || !cluster.wait_for_warm
                }
                Discovery::Eds { service, .. } => {
                    self.assignments.contains_key(service) || self.expired_endpoints.contains(service)
                }
            };
            let warm = warm
                && self.secrets.has(secrets::of_cluster(cluster))
                && cluster.health.as_ref().is_none_or(|health| health.is_warm());
            if warm {
                self.touched.insert(cluster.name.clone());
                slot.active = slot.warming.take();
                self.changed = true;
            }
        }
    }

    fn warm_listeners(&mut self) {
        let (routes, expired) = (&self.routes, &self.expired_routes);
        for slot in self.listeners.values_mut() {
            let Some(listener) = &slot.warming else { continue };
            let has_routes =
                rds(listener).all(|(table, _, _)| routes.contains_key(table) || expired.contains(table));
            if has_routes && self.secrets.has(secrets::of_listener(listener)) {
                slot.active = slot.warming.take();
                self.changed = true;
            }
        }
    }

    /// Drops endpoints, routes and secrets that nothing refers to.
    fn forget_unused(&mut self) {
        let endpoints = self.wanted_endpoints();
        self.assignments.retain(|key, _| endpoints.contains(key));
        self.expired_endpoints.retain(|key| endpoints.contains(key));
        let routes = self.wanted_routes();
        self.routes.retain(|key, _| routes.contains(key));
        self.expired_routes.retain(|key| routes.contains(key));
        let secrets = self.wanted_secrets().into_keys().collect();
        self.secrets.retain(&secrets);
        let clusters = &self.clusters;
        for (name, known) in &mut self.resolved {
            let Some(slot) = clusters.get(name) else { continue };
            let versions = || slot.active.iter().chain(&slot.warming);
            known.retain(|known| versions().any(|version| dns_settings(version) == Some(&known.settings)));
        }
    }

    /// The next snapshot, which shares with this one whatever has not changed.
    fn build(&mut self) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::clone(&self.snapshot);
        for name in std::mem::take(&mut self.touched) {
            let Some(cluster) = self.clusters.get(&*name).and_then(|slot| slot.active.as_ref()) else {
                snapshot.clusters.remove(&name);
                snapshot.endpoints.remove(&name);
                continue;
            };
            let endpoints = self.discovered(cluster).map(|discovered| match self.kept.get(&name) {
                Some((of, kept)) if Arc::ptr_eq(of, &discovered) => Arc::clone(kept),
                _ => discovered,
            });
            match endpoints {
                Some(endpoints) => snapshot.endpoints.insert(name.clone(), endpoints),
                None => snapshot.endpoints.remove(&name),
            }
            snapshot.clusters.insert(name, Arc::clone(cluster));
        }
        let listeners =
            self.listeners.iter().filter_map(|(name, slot)| Some((name.clone(), slot.active.clone()?)));
        snapshot.listeners = listeners.collect();
        snapshot.routes = self.routes.iter().map(|(key, table)| (key.clone(), Arc::clone(table))).collect();
        Arc::new(snapshot)
    }

    /// What discovery gave for a version of a cluster.
    fn discovered(&self, cluster: &Cluster) -> Option<Arc<Assignment>> {
        match &cluster.discovery {
            Discovery::Static(assignment) => Some(Arc::clone(assignment)),
            Discovery::OriginalDst { .. } | Discovery::DynamicForwardProxy(_) | Discovery::Aggregate(_) => {
                None
            }
            Discovery::StrictDns(settings) | Discovery::LogicalDns(settings) => {
                resolved(&self.resolved, &cluster.name, settings).cloned()
            }
            Discovery::Eds { service, .. } => self.assignments.get(service).cloned(),
        }
    }

    /// Clusters with health checks, in force or warming, with what discovery gave for them.
    pub(crate) fn checked_clusters(&self) -> Vec<(Arc<Cluster>, Option<Arc<Assignment>>)> {
        let clusters = self.clusters.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        let checked = clusters.filter(|cluster| cluster.health.is_some());
        let discovered = |cluster: &Cluster| {
            // A cluster whose endpoints did not come in time warms without hosts.
            let expired = || eds(cluster).is_some_and(|(key, _)| self.expired_endpoints.contains(key));
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
        let in_snapshot = self.snapshot.endpoints.get(&**cluster);
        if in_snapshot.is_some_and(|before| !Arc::ptr_eq(before, in_force)) {
            self.set_endpoints(std::slice::from_ref(cluster), in_force);
        }
    }

    /// Whether this version of a cluster still warms.
    pub(crate) fn is_warming(&self, cluster: &Arc<Cluster>) -> bool {
        let slot = self.clusters.get(&*cluster.name);
        slot.and_then(|slot| slot.warming.as_ref()).is_some_and(|warming| Arc::ptr_eq(warming, cluster))
    }

    /// Something that the store does not see may have warmed a resource.
    pub(crate) fn unsettle(&mut self) {
        self.unsettled = true;
    }

    /// All clusters, each in its newest version.
    pub(crate) fn newest_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values().filter_map(Slot::newest)
    }

    fn active_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values().filter_map(|slot| slot.active.as_ref())
    }

    /// Endpoints that clusters in force or warming refer to.
    fn wanted_endpoints(&self) -> BTreeSet<ResourceKey> {
        self.eds_users().map(|(key, _, _)| key.clone()).collect()
    }

    /// Clusters whose endpoints come by EDS, in force or warming: what they ask for, how long they
    /// wait for it, and the scope of their stats.
    pub(crate) fn eds_users(&self) -> impl Iterator<Item = (&ResourceKey, Option<Duration>, &Name)> {
        let clusters = self.clusters.values().flat_map(|slot| slot.warming.iter().chain(&slot.active));
        clusters.filter_map(|cluster| eds(cluster).map(|(key, timeout)| (key, timeout, &cluster.stat_name)))
    }

    /// Routes that listeners in force or warming refer to.
    fn wanted_routes(&self) -> BTreeSet<ResourceKey> {
        self.rds_users().map(|(key, _, _)| key.clone()).collect()
    }

    /// Connection managers whose routes come by RDS, of listeners in force or warming: what they
    /// ask for, how long their listeners wait for it, and their `stat_prefix`.
    pub(crate) fn rds_users(&self) -> impl Iterator<Item = (&ResourceKey, Option<Duration>, &Name)> {
        let listeners = self.listeners.values().flat_map(|slot| slot.warming.iter().chain(&slot.active));
        listeners.flat_map(|listener| rds(listener))
    }

    /// Clusters whose endpoints DNS finds: those in force or warming, the newest of each name.
    pub(crate) fn dns_clusters(&self) -> HashMap<Name, Arc<Cluster>> {
        let newest = self.clusters.values().filter_map(|slot| slot.warming.as_ref().or(slot.active.as_ref()));
        let by_dns =
            newest.filter(|c| matches!(c.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_)));
        by_dns.map(|cluster| (cluster.name.clone(), Arc::clone(cluster))).collect()
    }

    /// What workers see.
    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Clusters that are not warm yet, for /config_dump.
    pub(crate) fn warming_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values().filter_map(|slot| slot.warming.as_ref())
    }

    /// Listeners that are not warm yet, for /config_dump.
    pub(crate) fn warming_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values().filter_map(|slot| slot.warming.as_ref())
    }
}

/// What DNS found for the version of a cluster that has these settings.
fn resolved<'a>(
    known: &'a BTreeMap<Name, Vec<Resolved>>,
    cluster: &str,
    settings: &Arc<DnsDiscovery>,
) -> Option<&'a Arc<Assignment>> {
    let known = known.get(cluster)?.iter().find(|known| known.settings == *settings)?;
    Some(&known.assignment)
}

fn dns_settings(cluster: &Cluster) -> Option<&Arc<DnsDiscovery>> {
    match &cluster.discovery {
        Discovery::StrictDns(settings) | Discovery::LogicalDns(settings) => Some(settings),
        Discovery::Static(_)
        | Discovery::Eds { .. }
        | Discovery::OriginalDst { .. }
        | Discovery::DynamicForwardProxy(_)
        | Discovery::Aggregate(_) => None,
    }
}

/// What a cluster asks of EDS, and how long it waits for it.
fn eds(cluster: &Cluster) -> Option<(&ResourceKey, Option<Duration>)> {
    match &cluster.discovery {
        Discovery::Eds { service, initial_fetch_timeout } => Some((service, *initial_fetch_timeout)),
        _ => None,
    }
}

/// What a listener's connection managers ask of RDS, how long each waits for it, and its
/// `stat_prefix`.
fn rds(listener: &Listener) -> impl Iterator<Item = (&ResourceKey, Option<Duration>, &Name)> {
    listener.chains.all().filter_map(|chain| match &chain.network {
        NetworkFilters::Http(manager) => match &manager.routes {
            RouteSource::Rds { table, initial_fetch_timeout } => {
                Some((table, *initial_fetch_timeout, &manager.stat_prefix))
            }
            RouteSource::Static(_) | RouteSource::Scoped(_) => None,
        },
        NetworkFilters::Tcp(_) | NetworkFilters::Echo | NetworkFilters::Direct(_) | NetworkFilters::Close => {
            None
        }
    })
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
