//! What has become warm comes into force: clusters, then listeners, then the next snapshot.
//!
//! START HERE: [`Store::settle`].

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_base::Name;
use leno_xds::TypeUrl;

use crate::cluster::{Assignment, Cluster, Discovery, DnsDiscovery};
use crate::config::source::ResourceKey;
use crate::config::store::wants::{dns_settings, rds};
use crate::config::store::{Reference, Resolved, Store};
use crate::snapshot::Snapshot;
use crate::tls::secrets;

impl Store {
    /// Moves what has become warm into force; the next snapshot, if anything did.
    pub(crate) fn settle(&mut self) -> Option<Arc<Snapshot>> {
        self.unsettled = false;
        self.warm_clusters();
        self.clusters_ready |= !self.awaits_clusters && self.clusters.all_serve();
        if self.clusters_ready {
            self.warm_listeners();
            self.live |= !self.awaits_listeners && self.listeners.all_serve();
        }
        self.see_moved();
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.forget_unused();
        self.snapshot = self.build();
        Some(Arc::clone(&self.snapshot))
    }

    fn warm_clusters(&mut self) {
        for name in self.clusters.take_news() {
            let warming = self.clusters.slot(&name).and_then(|slot| slot.warming.as_ref());
            if warming.is_some_and(|cluster| self.is_warm(cluster)) {
                self.clusters.activate(&name);
                self.touched.insert(name.clone());
                self.changed = true;
            }
            self.forget_resolved(&name);
        }
    }

    fn is_warm(&self, cluster: &Cluster) -> bool {
        let has_endpoints = match &cluster.discovery {
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
        has_endpoints
            && self.secrets.has(secrets::of_cluster(cluster))
            && cluster.health.as_ref().is_none_or(|health| health.is_warm())
    }

    fn warm_listeners(&mut self) {
        let expired = &self.expired_routes;
        for name in self.listeners.take_news() {
            let warming = self.listeners.slot(&name).and_then(|slot| slot.warming.as_ref());
            let is_warm = warming.is_some_and(|listener| {
                rds(listener).all(|(table, _, _)| self.has_routes(table) || expired.contains(table))
                    && self.secrets.has(secrets::of_listener(listener))
                    && self.extensions.has(listener)
                    && listener.background.iter().all(|(work, _)| work.is_ready())
            });
            if is_warm {
                self.listeners.activate(&name);
                self.changed = true;
            }
        }
    }

    /// Whether a table that came by RDS may be in force.
    pub(super) fn has_routes(&self, table: &ResourceKey) -> bool {
        self.routes.contains_key(table) && !self.hosts.waits(table)
    }

    /// Drops what DNS found for versions of a cluster that are gone.
    fn forget_resolved(&mut self, name: &Name) {
        let Some(known) = self.resolved.get_mut(&**name) else { return };
        let Some(slot) = self.clusters.slot(name) else { return };
        known.retain(|known| slot.versions().any(|version| dns_settings(version) == Some(&known.settings)));
    }

    pub(super) fn see_moved(&mut self) {
        let moved = [self.clusters.take_moved(), self.listeners.take_moved()];
        for routes in moved.iter().flatten().filter(|moved| moved.type_url == TypeUrl::Route) {
            self.hosts.users_moved(&routes.key);
        }
        self.moved.append(&mut self.hosts.take_moved());
        for moved in moved {
            self.loose.extend(moved.iter().cloned());
            self.moved.extend(moved);
        }
    }

    /// Drops endpoints, routes, secrets and configurations of filters that nothing refers to.
    fn forget_unused(&mut self) {
        for reference in std::mem::take(&mut self.loose) {
            if self.refers_to(&reference) {
                continue;
            }
            let Reference { type_url, key } = reference;
            match type_url {
                TypeUrl::Endpoint => {
                    self.assignments.remove(&key);
                    self.expired_endpoints.remove(&key);
                }
                TypeUrl::Route => {
                    self.routes.remove(&key);
                    self.expired_routes.remove(&key);
                    self.hosts.forget(&key);
                }
                TypeUrl::ExtensionConfig => self.extensions.forget(&key),
                TypeUrl::Secret => self.secrets.forget(&key),
                // The others lie elsewhere: with those who refer to them, or by themselves.
                _ => {}
            }
        }
    }

    /// The next snapshot, which shares with this one whatever has not changed.
    fn build(&mut self) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::clone(&self.snapshot);
        for name in std::mem::take(&mut self.touched) {
            let Some(cluster) = self.clusters.slot(&name).and_then(|slot| slot.active.as_ref()) else {
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
            self.listeners.slots().filter_map(|(name, slot)| Some((name.clone(), slot.active.clone()?)));
        snapshot.listeners = listeners.collect();
        let routes = self.routes.iter().filter(|(key, _)| !self.hosts.waits(key));
        snapshot.routes = routes.map(|(key, table)| (key.clone(), Arc::clone(table))).collect();
        Arc::new(snapshot)
    }

    /// What discovery gave for a version of a cluster.
    pub(super) fn discovered(&self, cluster: &Cluster) -> Option<Arc<Assignment>> {
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
