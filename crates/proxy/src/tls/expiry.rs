//! When certificates expire: `SCOPE.ssl.certificate.NAME.expiration_unix_time_seconds`, and
//! `server.days_until_first_cert_expiring`. The main thread counts, as it fills the contexts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use leno_base::Name;

use crate::cluster::Cluster;
use crate::listener::Listener;
use crate::snapshot::Snapshot;
use crate::telemetry::stats::{ThreadStats, stats_scope};
use crate::tls::config::Expires;
use crate::tls::secrets::Refilled;

stats_scope! {
    /// `SCOPE.ssl.certificate.NAME.`
    struct CertificateScope {
        gauge expiration_unix_time_seconds;
    }
}

/// The gauges of all contexts in force. Costs what changes: of ten thousand clusters, those that
/// are new or have new certificates.
pub(crate) struct Expirations {
    thread: Arc<ThreadStats>,
    /// By listener and by cluster: names of gauges, and when what they are about expires, in
    /// seconds since the epoch.
    listeners: HashMap<Name, Vec<(String, i64)>>,
    clusters: HashMap<Name, Vec<(String, i64)>>,
    /// By name, with how many refer to it.
    scopes: HashMap<String, (CertificateScope, usize)>,
    /// How many expire when.
    times: BTreeMap<i64, usize>,
}

/// Envoy's number of days where there is no certificate.
const NEVER: u64 = u32::MAX as u64;

const SECONDS_PER_DAY: i64 = 24 * 3600;

impl Expirations {
    pub(crate) fn new(thread: Arc<ThreadStats>) -> Self {
        let (listeners, clusters) = (HashMap::new(), HashMap::new());
        Self { thread, listeners, clusters, scopes: HashMap::new(), times: BTreeMap::new() }
    }

    /// Follows what is in force from one snapshot to the next.
    pub(crate) fn follow(&mut self, before: &Snapshot, snapshot: &Snapshot) {
        let gone = before.listeners.keys().filter(|name| !snapshot.listeners.contains_key(*name));
        gone.for_each(|name| self.see_listener(name, None));
        for (name, listener) in &snapshot.listeners {
            if !before.listeners.get(name).is_some_and(|before| Arc::ptr_eq(before, listener)) {
                self.see_listener(name, Some(listener));
            }
        }
        for change in before.clusters.changes(&snapshot.clusters) {
            self.see_cluster(change.name, change.after.map(|cluster| &**cluster));
        }
    }

    /// Contexts of these were made anew.
    pub(crate) fn refilled(&mut self, refilled: &[Refilled], snapshot: &Snapshot) {
        for Refilled { server, owner, .. } in refilled {
            match server {
                true => self.see_listener(owner, snapshot.listeners.get(owner).map(|listener| &**listener)),
                false => self.see_cluster(owner, snapshot.clusters.get(owner).map(|cluster| &**cluster)),
            }
        }
    }

    fn see_listener(&mut self, name: &Name, listener: Option<&Listener>) {
        let now = listener.into_iter().flat_map(|listener| {
            let scope = format!("listener.{}.", listener.stat_prefix);
            let contexts = listener.chains.all().filter_map(|chain| chain.transport.tls());
            contexts.flat_map(move |tls| expirations(&scope, &**tls))
        });
        let now: Vec<_> = now.collect();
        now.iter().for_each(|gauge| self.add(gauge));
        let before = if now.is_empty() {
            self.listeners.remove(name)
        } else {
            self.listeners.insert(name.clone(), now)
        };
        before.into_iter().flatten().for_each(|gauge| self.remove(&gauge));
    }

    fn see_cluster(&mut self, name: &Name, cluster: Option<&Cluster>) {
        let now = cluster.into_iter().flat_map(|cluster| {
            cluster.tls().flat_map(|tls| expirations(&format!("cluster.{}.", cluster.stat_name), &**tls))
        });
        let now: Vec<_> = now.collect();
        now.iter().for_each(|gauge| self.add(gauge));
        let before =
            if now.is_empty() { self.clusters.remove(name) } else { self.clusters.insert(name.clone(), now) };
        before.into_iter().flatten().for_each(|gauge| self.remove(&gauge));
    }

    fn add(&mut self, (name, at): &(String, i64)) {
        *self.times.entry(*at).or_default() += 1;
        let new = || (CertificateScope::new(&self.thread, name), 0);
        let (scope, users) = self.scopes.entry(name.clone()).or_insert_with(new);
        *users += 1;
        scope.expiration_unix_time_seconds().set(u64::try_from(*at).unwrap_or(0));
    }

    fn remove(&mut self, (name, at): &(String, i64)) {
        if let Some(count) = self.times.get_mut(at) {
            *count -= 1;
            if *count == 0 {
                self.times.remove(at);
            }
        }
        if let Some((_, users)) = self.scopes.get_mut(name) {
            *users -= 1;
            if *users == 0 {
                self.scopes.remove(name);
            }
        }
    }

    /// Whole days until the first certificate expires; 0 if one has.
    pub(crate) fn days(&self, now: SystemTime) -> u64 {
        let Some((first, _)) = self.times.first_key_value() else { return NEVER };
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let left = first.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
        u64::try_from(left / SECONDS_PER_DAY).unwrap_or(0)
    }
}

/// The gauges of a context's certificates.
fn expirations(scope: &str, context: &dyn Expires) -> Vec<(String, i64)> {
    let named = context.expirations().into_iter();
    named.map(|(name, at)| (format!("{scope}ssl.certificate.{name}.").replace(':', "_"), at)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use super::{Expirations, NEVER, SECONDS_PER_DAY};
    use crate::telemetry::stats::StatsStore;

    #[test]
    fn the_first_to_expire_is_known_as_certificates_come_and_go() {
        let mut expirations = Expirations::new(Arc::new(StatsStore::default()).thread());
        let days = |expirations: &Expirations| expirations.days(UNIX_EPOCH + Duration::from_secs(1));
        let gauge = |name: &str, days: i64| (name.to_owned(), days * SECONDS_PER_DAY + 1);
        assert_eq!(days(&expirations), NEVER);
        // Two share a gauge, and two expire at the same time.
        let all = [gauge("a", 9), gauge("a", 9), gauge("b", 5), gauge("c", 9)];
        all.iter().for_each(|gauge| expirations.add(gauge));
        assert_eq!((days(&expirations), expirations.scopes.len()), (5, 3));
        expirations.remove(&all[2]);
        assert_eq!((days(&expirations), expirations.scopes.len()), (9, 2));
        expirations.remove(&all[0]);
        expirations.remove(&all[3]);
        assert_eq!((days(&expirations), expirations.scopes.len()), (9, 1));
        expirations.remove(&all[1]);
        assert_eq!((days(&expirations), expirations.scopes.len()), (NEVER, 0));
        expirations.add(&("expired".to_owned(), -1));
        assert_eq!(days(&expirations), 0);
    }
}
