//! xDS: what the proxy subscribes to, and how updates get into the store.
//!
//! `sources` keeps a stream or a watched file for each place that configuration refers to;
//! `Discovery` is what is known of one of them. `Discovery::apply` is the story of one update:
//! decode, lower, bind, put into the store, acknowledge or reject with every reason. A resource
//! that is refused leaves its last good version serving. `Discovery::follow` asks for what the store
//! refers to now.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_base::Name;
use leno_xds::client::grpc::Commander;
use leno_xds::client::{Expired, Interest, Rejection, Update};
use leno_xds::{Resource, TypeUrl};
use prost_types::Any;

use crate::cluster::Assignment;
use crate::config::lower::{Lower, Rejected, Scope};
use crate::config::source::{Origin, ResourceKey};
use crate::config::store::Store;
use crate::listener::sockets::Sockets;
use crate::tls::secrets::{KnownSecret, Refilled, fill_cluster, fill_listener};

pub(crate) mod control_plane;
mod file;
pub(crate) mod sources;
mod stats;

/// Resources by type and name, with how long each is waited for (`None`: for ever).
type Wanted = BTreeMap<(TypeUrl, Name), Option<Duration>>;

/// What is wanted of one place, as far as that may have changed.
#[derive(Default)]
struct Moves {
    wanted: Wanted,
    gone: Vec<(TypeUrl, Name)>,
}

/// What is known of one place that resources come from.
pub(crate) struct Discovery {
    /// Takes requests; `None`: a file, which cannot be asked.
    commander: Option<Commander>,
    scope: Scope,
    /// What its resources are known by.
    origin: Origin,
    /// What was asked for by name.
    asked: Wanted,
    /// Hashes of the route tables in force: one that is sent again is not made anew.
    tables: HashMap<Name, u64>,
}

/// What an update did, for stats and for the caller to publish.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The type of the update.
    pub(crate) type_url: TypeUrl,
    /// Its version.
    pub(crate) version: Name,
    /// Each resource that came.
    pub(crate) outcomes: Vec<Outcome>,
    /// Names of resources that are gone.
    pub(crate) removed: Vec<Name>,
    /// Clusters in force whose endpoints alone changed, with these endpoints.
    pub(crate) endpoints: Vec<(Vec<Name>, Arc<Assignment>)>,
    /// TLS contexts that were made anew.
    pub(crate) refilled: Vec<Refilled>,
}

/// What became of one resource.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) name: Name,
    /// Its version.
    pub(crate) version: String,
    /// The message.
    pub(crate) source: Any,
    /// Why it was refused, if it was.
    pub(crate) refused: Option<String>,
    /// It is in force, and is not what was there before.
    pub(crate) changed: bool,
}

impl Discovery {
    /// A subscription whose requests go to `commander`. `scope` is what lowering needs to know of
    /// the bootstrap.
    pub(crate) fn new(commander: Option<Commander>, origin: Origin, scope: Scope) -> Self {
        Self { commander, scope, origin, asked: Wanted::new(), tables: HashMap::new() }
    }

    /// Brings an update into the store and answers it.
    pub(crate) fn apply(&mut self, update: Update, store: &mut Store, sockets: &mut Sockets) -> Applied {
        let Update { type_url, version, added, removed, receipt, .. } = update;
        let applied = self.take(&type_url, &version, added, removed, store, sockets);
        if let Some(commander) = &self.commander {
            let refused = applied.outcomes.iter();
            let refused =
                refused.filter_map(|outcome| Some((outcome.name.clone(), outcome.refused.clone()?)));
            let refused: Vec<_> = refused.collect();
            if refused.is_empty() {
                commander.ack(receipt);
            } else {
                commander.nack(receipt, Rejection::of_resources(refused));
            }
        }
        applied
    }

    /// Brings resources into the store, and out of it.
    fn take(
        &mut self,
        type_url: &TypeUrl,
        version: &Name,
        added: Vec<Resource>,
        mut removed: Vec<Name>,
        store: &mut Store,
        sockets: &mut Sockets,
    ) -> Applied {
        removed.retain(|name| match type_url {
            TypeUrl::Cluster => {
                store.miss_cluster(&self.key(name));
                store.remove_cluster(name)
            }
            TypeUrl::Listener => {
                let removed = store.remove_listener(name);
                if removed {
                    sockets.remove(name);
                }
                removed
            }
            TypeUrl::Secret => {
                // One that is there stays.
                // Deviation: a control plane that says that there is none is not waited for; in
                // Envoy the listener warms for ever, as the answer ends `initial_fetch_timeout`.
                store.expire_secret(self.key(name));
                false
            }
            // Endpoints and routes are forgotten when nothing refers to them (as Envoy does).
            _ => false,
        });
        let mut applied = Applied {
            type_url: type_url.clone(),
            version: version.clone(),
            outcomes: Vec::new(),
            removed,
            endpoints: Vec::new(),
            refilled: Vec::new(),
        };
        for resource in added {
            let Resource { name, version, body } = resource;
            let version = version.to_string();
            let source = Any { type_url: type_url.as_str().to_owned(), value: body.to_vec() };
            let scope = Scope { added_via_api: true, version: version.clone(), ..self.scope.clone() };
            let key = self.key(&name);
            let outcome = match type_url {
                TypeUrl::Cluster => put_cluster(&name, &source, scope, store),
                TypeUrl::Listener => put_listener(&name, &source, scope, store, sockets),
                TypeUrl::Route => {
                    let mut hasher = DefaultHasher::new();
                    hasher.write(&source.value);
                    let hash = hasher.finish();
                    if store.routes(&key).is_some() && self.tables.get(&name) == Some(&hash) {
                        Ok(false)
                    } else {
                        let put = put_routes(key, &source, scope, store);
                        if put.is_ok() {
                            self.tables.insert(name.clone(), hash);
                        }
                        put.map(|()| true)
                    }
                }
                TypeUrl::Endpoint => put_endpoints(key, &source, scope, store).map(|changed| {
                    applied.endpoints.extend(changed);
                    true
                }),
                TypeUrl::Secret => put_secret(key, &source, scope, store).map(|refilled| {
                    applied.refilled.extend(refilled);
                    true
                }),
                _ => Err(Rejected::because(format!("{type_url} was never subscribed"))),
            };
            let changed = outcome.as_ref().is_ok_and(|changed| *changed);
            let refused = outcome.err().map(|rejected| rejected.to_string());
            applied.outcomes.push(Outcome { name, version, source, refused, changed });
        }
        match type_url {
            TypeUrl::Cluster => store.clusters_came(),
            TypeUrl::Listener => store.listeners_came(),
            _ => {}
        }
        for outcome in &applied.outcomes {
            if let Some(error) = &outcome.refused {
                let name = &outcome.name;
                tracing::warn!(target: "config", kind = type_url.short(), %name, %version, "rejected: {error}");
            }
        }
        applied
    }

    fn key(&self, name: &Name) -> ResourceKey {
        ResourceKey { name: name.clone(), origin: self.origin.clone() }
    }

    /// A subscription had no answer in time: what waits for it goes on without.
    pub(crate) fn expire(&mut self, expired: Expired, store: &mut Store) {
        let Expired { type_url, interest } = expired;
        tracing::warn!(target: "config", kind = type_url.short(), ?interest, "initial fetch timed out");
        match interest {
            Interest::Wildcard => self.give_up(&type_url, &Name::default(), store),
            Interest::Names(names) => names.iter().for_each(|name| self.give_up(&type_url, name, store)),
        }
    }

    /// What waits for this resource, or for the first state of this type, goes on without.
    fn give_up(&self, type_url: &TypeUrl, name: &Name, store: &mut Store) {
        match type_url {
            TypeUrl::Cluster => store.clusters_came(),
            TypeUrl::Listener => store.listeners_came(),
            TypeUrl::Endpoint => store.expire_endpoints(self.key(name)),
            TypeUrl::Route => store.expire_routes(self.key(name)),
            TypeUrl::Secret => store.expire_secret(self.key(name)),
            _ => {}
        }
    }

    /// Asks for what is wanted now and was not, and no more for what is not; true: something new is
    /// among it.
    fn follow(&mut self, moves: Moves) -> bool {
        let mut news = false;
        for (of, timeout) in moves.wanted {
            if self.asked.contains_key(&of) {
                continue;
            }
            news = true;
            if let Some(commander) = &self.commander {
                commander.subscribe(of.0.clone(), Interest::name(of.1.clone()), timeout);
            }
            self.asked.insert(of, timeout);
        }
        let mut gone: BTreeMap<TypeUrl, Vec<Name>> = BTreeMap::new();
        for of in moves.gone {
            if self.asked.remove(&of).is_some() {
                gone.entry(of.0).or_default().push(of.1);
            }
        }
        if let Some(commander) = &self.commander {
            for (type_url, names) in gone {
                commander.unsubscribe(type_url, Interest::Names(names));
            }
        }
        self.tables.retain(|name, _| self.asked.contains_key(&(TypeUrl::Route, name.clone())));
        news
    }
}

/// These say whether anything has changed.
fn put_cluster(name: &str, source: &Any, scope: Scope, store: &mut Store) -> Result<bool, Rejected> {
    if !store.takes_cluster(name, &source.value) {
        return Ok(false);
    }
    let cluster = Lower::resource_in(scope, |at| crate::cluster::config::lower(source, at))?;
    fill_cluster(&cluster, store.secrets()).map_err(Rejected::because)?;
    Ok(store.put_cluster(cluster))
}

fn put_listener(
    name: &str,
    source: &Any,
    scope: Scope,
    store: &mut Store,
    sockets: &mut Sockets,
) -> Result<bool, Rejected> {
    if !store.takes_listener(name, &source.value) {
        return Ok(false);
    }
    let previous = store.newest_listener(name);
    let listener = Lower::resource_in(scope, |at| {
        crate::listener::config::lower(source, previous.map(|listener| &**listener), at)
    })?;
    fill_listener(&listener, store.secrets()).map_err(Rejected::because)?;
    sockets.bind(&listener).map_err(|error| Rejected::because(error.to_string()))?;
    Ok(store.put_listener(Arc::new(listener)))
}

fn put_routes(key: ResourceKey, source: &Any, scope: Scope, store: &mut Store) -> Result<(), Rejected> {
    let previous = store.routes(&key);

    let table = Lower::resource_in(scope, |at| {
        crate::http::route::config::lower(source, previous.map(|table| &**table), at)
    })?;
    store.put_routes(key, Arc::new(table));
    Ok(())
}

/// Returns the clusters in force that use the endpoints, with the endpoints.
#[allow(clippy::type_complexity, reason = "a name for it would say no more")]
fn put_endpoints(
    key: ResourceKey,
    source: &Any,
    scope: Scope,
    store: &mut Store,
) -> Result<Option<(Vec<Name>, Arc<Assignment>)>, Rejected> {
    let assignment = Lower::resource_in(scope, |at| crate::cluster::config::lower_assignment(source, at))?;
    let assignment = Arc::new(assignment);
    let users = store.put_assignment(key, Arc::clone(&assignment));
    Ok((!users.is_empty()).then_some((users, assignment)))
}

/// Returns the contexts that were made anew.
fn put_secret(
    key: ResourceKey,
    source: &Any,
    scope: Scope,
    store: &mut Store,
) -> Result<Vec<Refilled>, Rejected> {
    if store.has_secret(&key, source, &scope.version) {
        return Ok(Vec::new());
    }
    let version = scope.version.clone();
    let lowered = Lower::resource_in(scope, |at| crate::tls::config::dynamic_secret(source, at));
    let put = lowered.and_then(|secret| {
        let known = KnownSecret { secret, source: source.clone(), version, updated: SystemTime::now() };
        store.put_secret(key.clone(), known).map_err(Rejected::because)
    });
    if put.is_err() {
        // Nothing waits for a secret that is refused: so it is in Envoy.
        store.expire_secret(key);
    }
    put
}

#[cfg(test)]
#[path = "discovery/tests.rs"]
mod tests;
