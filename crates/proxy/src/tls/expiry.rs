//! When certificates expire: `SCOPE.ssl.certificate.NAME.expiration_unix_time_seconds`, and
//! `server.days_until_first_cert_expiring`. The main thread counts, as it fills the contexts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::snapshot::Snapshot;
use crate::telemetry::stats::{ThreadStats, stats_scope};
use crate::tls::config::Expires;

stats_scope! {
    /// `SCOPE.ssl.certificate.NAME.`
    struct CertificateScope {
        gauge expiration_unix_time_seconds;
    }
}

/// The gauges of all contexts in force.
pub(crate) struct Expirations {
    thread: Arc<ThreadStats>,
    scopes: HashMap<String, CertificateScope>,
    /// The first of all, seconds since the epoch.
    first: Option<i64>,
}

/// Envoy's number of days where there is no certificate.
const NEVER: u64 = u32::MAX as u64;

const SECONDS_PER_DAY: i64 = 24 * 3600;

impl Expirations {
    pub(crate) fn new(thread: Arc<ThreadStats>) -> Self {
        Self { thread, scopes: HashMap::new(), first: None }
    }

    /// Follows what is in force.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.scopes);
        self.first = None;
        let mut expires = |scope: &str, context: &dyn Expires| {
            for (name, at) in context.expirations() {
                self.first = Some(self.first.map_or(at, |first| first.min(at)));
                let prefix = format!("{scope}ssl.certificate.{name}.").replace(':', "_");
                let known = before.remove(&prefix).or_else(|| self.scopes.remove(&prefix));
                let scope = known.unwrap_or_else(|| CertificateScope::new(&self.thread, &prefix));
                scope.expiration_unix_time_seconds().set(u64::try_from(at).unwrap_or(0));
                self.scopes.insert(prefix, scope);
            }
        };
        for listener in snapshot.listeners.values() {
            let scope = format!("listener.{}.", listener.stat_prefix);
            for tls in listener.chains.all().filter_map(|chain| chain.transport.tls()) {
                expires(&scope, &**tls);
            }
        }
        for cluster in snapshot.clusters.values() {
            for tls in cluster.tls() {
                expires(&format!("cluster.{}.", cluster.stat_name), &**tls);
            }
        }
    }

    /// Whole days until the first certificate expires; 0 if one has.
    pub(crate) fn days(&self, now: SystemTime) -> u64 {
        let Some(first) = self.first else { return NEVER };
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let left = first.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
        u64::try_from(left / SECONDS_PER_DAY).unwrap_or(0)
    }
}
