//! What is remembered of updates, for /config_dump: when each resource came, its version, and what was
//! refused and why.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use leno_base::Name;
use leno_xds::TypeUrl;

use crate::admin::{DynamicResource, RefusedResource, ResourceKind};
use crate::config::discovery::{Applied, HostsTaken, Outcome};
use crate::http::route::RouteTable;
use crate::snapshot::Snapshot;

/// The updates so far.
#[derive(Default)]
pub(super) struct Records {
    updated: HashMap<(ResourceKind, Name), SystemTime>,
    refused: BTreeMap<(TypeUrl, Name), RefusedResource>,
    routes: BTreeMap<Name, DynamicResource>,
    versions: HashMap<TypeUrl, String>,
}

impl Records {
    /// Remembers an update that came now.
    pub(super) fn record(&mut self, applied: Applied, now: SystemTime) {
        let Applied { type_url, version, outcomes, removed, endpoints: _, refilled: _, tables, conflicts: _ } =
            applied;
        for HostsTaken { table, changed, refused: _ } in tables {
            if let Some(routes) = self.routes.get_mut(&table.name).filter(|_| changed) {
                routes.version = version.to_string();
                routes.updated = now;
            }
        }
        let accepted = outcomes.iter().all(|outcome| outcome.refused.is_none());
        let kind = match type_url {
            TypeUrl::Cluster => Some(ResourceKind::Cluster),
            TypeUrl::Listener => Some(ResourceKind::Listener),
            TypeUrl::Route => Some(ResourceKind::Route),
            _ => None,
        };
        if let Some(kind) = kind {
            for name in removed {
                self.updated.remove(&(kind, name.clone()));
                self.refused.remove(&(type_url.clone(), name));
            }
            outcomes.into_iter().for_each(|outcome| self.take(&type_url, kind, outcome, now));
        }
        if accepted {
            self.versions.insert(type_url, version.to_string());
        }
    }

    fn take(&mut self, type_url: &TypeUrl, kind: ResourceKind, outcome: Outcome, now: SystemTime) {
        let Outcome { name, version, source, refused, changed: _ } = outcome;
        let key = (type_url.clone(), name.clone());
        if let Some(details) = refused {
            let refused = RefusedResource { kind, name, source: Some(source), version, details, at: now };
            self.refused.insert(key, refused);
            return;
        }
        self.refused.remove(&key);
        self.updated.insert((kind, name.clone()), now);
        if kind == ResourceKind::Route {
            self.routes.insert(name, DynamicResource { source, version, updated: now });
        }
    }

    /// Forgets route tables that nothing refers to any more.
    pub(super) fn keep_routes(&mut self, snapshot: &Snapshot) {
        let names: BTreeSet<&Name> = snapshot.routes.keys().map(|key| &key.name).collect();
        self.routes.retain(|name, _| names.contains(name));
    }

    /// When each resource came.
    pub(super) fn updated(&self) -> &HashMap<(ResourceKind, Name), SystemTime> {
        &self.updated
    }

    /// The route tables that came by RDS, with the virtual hosts that came for them beside.
    pub(super) fn routes(&self, snapshot: &Snapshot) -> Vec<DynamicResource> {
        let tables: BTreeMap<&Name, &Arc<RouteTable>> =
            snapshot.routes.iter().map(|(key, table)| (&key.name, table)).collect();
        let routes = self.routes.iter().map(|(name, resource)| {
            let mut resource = resource.clone();
            if let Some(table) = tables.get(name) {
                table.append_discovered(&mut resource.source.value);
            }
            resource
        });
        routes.collect()
    }

    /// What was refused, and has not come in a version that is good since.
    pub(super) fn refused(&self) -> Vec<RefusedResource> {
        self.refused.values().cloned().collect()
    }

    /// The last version of this type that was accepted as a whole; empty: there is none.
    pub(super) fn version(&self, type_url: &TypeUrl) -> String {
        self.versions.get(type_url).cloned().unwrap_or_default()
    }
}
