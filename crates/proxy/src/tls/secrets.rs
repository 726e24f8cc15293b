//! Secrets that come by SDS and change: what is there, and who is waiting for what.
//!
//! The main thread's store owns the table. A new version of a secret is tried on all its users
//! first; if one of them cannot do with it, it is refused and the last good one stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_base::Name;
use leno_tls::{Identity, TicketKeys, ValidationRules};
use prost_types::Any;

use crate::cluster::Cluster;
use crate::config::source::ResourceKey;
use crate::listener::Listener;
use crate::tls::DownstreamTls;
use crate::tls::config::Fill;

/// A secret, lowered.
#[derive(Clone, Debug)]
pub(crate) enum Secret {
    /// A certificate with its key.
    Certificate(Arc<Identity>),
    /// What peers must show.
    Validation(Arc<ValidationRules>),
    /// Keys of session tickets.
    TicketKeys(TicketKeys),
}

/// A secret as it is referred to (SdsSecretConfig).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SecretRef {
    /// Which.
    pub(crate) key: ResourceKey,
    /// `initial_fetch_timeout`: how long to wait for it before going on without; `None`: for ever.
    pub(crate) timeout: Option<Duration>,
}

/// Finds secrets.
pub(crate) trait Secrets {
    /// The secret, if it is there.
    fn find(&self, wanted: &ResourceKey) -> Option<Secret>;
}

/// No secrets: what is configured in place is all there is.
pub(crate) struct NoSecrets;

impl Secrets for NoSecrets {
    fn find(&self, _wanted: &ResourceKey) -> Option<Secret> {
        None
    }
}

/// A version of a secret.
#[derive(Clone, Debug)]
pub(crate) struct KnownSecret {
    /// What it is.
    pub(crate) secret: Secret,
    /// The message.
    pub(crate) source: Any,
    /// `version_info`.
    pub(crate) version: String,
    /// When it came.
    pub(crate) updated: SystemTime,
}

/// A context that was made anew: the name of its stats, and whether it is a server's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refilled {
    /// E.g. `cluster.a.`
    pub(crate) scope: String,
    /// Of a listener.
    pub(crate) server: bool,
    /// The listener's or the cluster's name.
    pub(crate) owner: Name,
}

/// The secrets that came by SDS.
#[derive(Debug, Default)]
pub(crate) struct SecretTable {
    known: BTreeMap<ResourceKey, KnownSecret>,
    /// Those that did not come in time, or were refused: nothing waits for them.
    expired: BTreeSet<ResourceKey>,
}

impl Secrets for SecretTable {
    fn find(&self, wanted: &ResourceKey) -> Option<Secret> {
        self.known.get(wanted).map(|known| known.secret.clone())
    }
}

/// The table with one secret replaced.
struct Trial<'t> {
    table: &'t SecretTable,
    key: &'t ResourceKey,
    secret: &'t Secret,
}

impl Secrets for Trial<'_> {
    fn find(&self, wanted: &ResourceKey) -> Option<Secret> {
        if wanted == self.key { Some(self.secret.clone()) } else { self.table.find(wanted) }
    }
}

impl SecretTable {
    /// Takes a version of a secret, and fills the contexts of those `listeners` and `clusters`
    /// that refer to it. They may come more than once, and share contexts.
    ///
    /// # Errors
    /// Why a context cannot be made with it: then nothing has changed.
    pub(crate) fn put<'c>(
        &mut self,
        key: ResourceKey,
        version: KnownSecret,
        listeners: impl Iterator<Item = &'c Arc<Listener>>,
        clusters: impl Iterator<Item = &'c Arc<Cluster>>,
    ) -> Result<Vec<Refilled>, String> {
        let trial = Trial { table: self, key: &key, secret: &version.secret };
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        // Ten thousand clusters may refer to one secret: what was seen is looked up.
        let (mut seen_servers, mut seen_clients) = (HashSet::new(), HashSet::new());
        let mut refilled = Vec::new();
        for listener in listeners {
            for tls in server_side(listener) {
                if wants(&**tls, &key) && seen_servers.insert(Arc::as_ptr(tls)) {
                    servers.push((tls, tls.prepare(&trial)?));
                    let scope = format!("listener.{}.", listener.stat_prefix);
                    refilled.push(Refilled { scope, server: true, owner: listener.name.clone() });
                }
            }
        }
        for cluster in clusters {
            for tls in cluster.tls() {
                if wants(&**tls, &key) && seen_clients.insert(Arc::as_ptr(tls)) {
                    clients.push((tls, tls.prepare(&trial)?));
                    let scope = format!("cluster.{}.", cluster.stat_name);
                    refilled.push(Refilled { scope, server: false, owner: cluster.name.clone() });
                }
            }
        }
        for (tls, prepared) in servers {
            prepared.into_iter().for_each(|prepared| tls.adopt(prepared));
        }
        for (tls, prepared) in clients {
            prepared.into_iter().for_each(|prepared| tls.adopt(prepared));
        }
        self.expired.remove(&key);
        self.known.insert(key, version);
        Ok(refilled)
    }

    /// The version that is there, if its message is this: it is only seen again.
    pub(crate) fn seen(&mut self, key: &ResourceKey, source: &Any, version: &str) -> bool {
        let Some(known) = self.known.get_mut(key).filter(|known| known.source == *source) else {
            return false;
        };
        version.clone_into(&mut known.version);
        true
    }

    /// Nothing waits for this secret any longer; true: something may have.
    pub(crate) fn expire(&mut self, key: ResourceKey) -> bool {
        !self.known.contains_key(&key) && self.expired.insert(key)
    }

    /// Whether all of these are there, or not waited for.
    pub(crate) fn has<'r>(&self, mut wanted: impl Iterator<Item = &'r SecretRef>) -> bool {
        wanted.all(|wanted| self.known.contains_key(&wanted.key) || self.expired.contains(&wanted.key))
    }

    /// Forgets a secret that nothing refers to.
    pub(crate) fn forget(&mut self, key: &ResourceKey) {
        self.known.remove(key);
        self.expired.remove(key);
    }

    /// The version that is there.
    pub(crate) fn known(&self, key: &ResourceKey) -> Option<&KnownSecret> {
        self.known.get(key)
    }
}

/// The secrets that a listener's filter chains refer to.
pub(crate) fn of_listener(listener: &Listener) -> impl Iterator<Item = &SecretRef> {
    server_side(listener).flat_map(|tls| tls.awaited())
}

/// The secrets that a cluster's transport sockets refer to.
pub(crate) fn of_cluster(cluster: &Cluster) -> impl Iterator<Item = &SecretRef> {
    cluster.tls().flat_map(|tls| tls.awaited())
}

/// Gives a new listener the secrets that are there already.
///
/// # Errors
/// What does not fit together.
pub(crate) fn fill_listener(listener: &Listener, secrets: &SecretTable) -> Result<(), String> {
    let mut waiting = server_side(listener).filter(|tls| !tls.awaited().is_empty());
    waiting.try_for_each(|tls| tls.fill(secrets))
}

/// Gives a new cluster the secrets that are there already.
///
/// # Errors
/// Likewise.
pub(crate) fn fill_cluster(cluster: &Cluster, secrets: &SecretTable) -> Result<(), String> {
    let mut waiting = cluster.tls().filter(|tls| !tls.awaited().is_empty());
    waiting.try_for_each(|tls| tls.fill(secrets))
}

fn server_side(listener: &Listener) -> impl Iterator<Item = &Arc<DownstreamTls>> {
    listener.chains.all().filter_map(|chain| chain.transport.tls())
}

fn wants(tls: &impl Fill, key: &ResourceKey) -> bool {
    tls.awaited().iter().any(|wanted| wanted.key == *key)
}
