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
use crate::config::store::{Extension, Store};
use crate::http::route::RouteTable;
use crate::http::route::discovered::Coming;
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
    /// Configurations that are there and of a type that filters of a new listener do not take.
    pub(crate) conflicts: Vec<ResourceKey>,
    /// Route tables that virtual hosts came for, or went from.
    pub(crate) tables: Vec<HostsTaken>,
}

/// What virtual hosts did to a route table.
#[derive(Debug)]
pub(crate) struct HostsTaken {
    /// The table.
    pub(crate) table: ResourceKey,
    /// It is another one now.
    pub(crate) changed: bool,
    /// One of the virtual hosts was refused.
    pub(crate) refused: bool,
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
        let Update { type_url, version, added, removed, answered, receipt, full: _ } = update;
        let applied = match type_url {
            TypeUrl::VirtualHost => self.take_hosts(&version, added, removed, answered, store),
            _ => self.take(&type_url, &version, added, removed, store, sockets),
        };
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

    /// Takes resources whose time to live is over out of the store.
    pub(crate) fn outlive(
        &mut self,
        type_url: &TypeUrl,
        names: Vec<Name>,
        store: &mut Store,
        sockets: &mut Sockets,
    ) -> Applied {
        let version = Name::default();
        match type_url {
            TypeUrl::VirtualHost => self.take_hosts(&version, Vec::new(), names, Vec::new(), store),
            _ => self.take(type_url, &version, Vec::new(), names, store, sockets),
        }
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
                let removed = store.remove_cluster(name);
                if removed && let Some(known) = &self.scope.xds_clusters {
                    known.remove(name);
                }
                removed
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
            TypeUrl::ExtensionConfig => {
                store.remove_extension(&self.key(name), &self.scope);
                true
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
            tables: Vec::new(),
            conflicts: Vec::new(),
        };
        for resource in added {
            let Resource { name, version, body } = resource;
            let version = version.to_string();
            let source = Any { type_url: type_url.as_str().to_owned(), value: body.to_vec() };
            let scope = Scope { added_via_api: true, version: version.clone(), ..self.scope.clone() };
            let key = self.key(&name);
            let outcome = match type_url {
                TypeUrl::Cluster => put_cluster(&name, &source, scope, store),
                TypeUrl::Listener => {
                    put_listener(&name, &source, &scope, store, sockets, &mut applied.conflicts)
                }
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
                TypeUrl::ExtensionConfig => put_extension(key, &source, &scope, store),
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
        applied.warn();
        applied
    }

    /// Brings virtual hosts into the route tables that they are for, and out of them. Those who wait
    /// for one go on even if it is refused: what there was stays. Who has which domain is judged when all
    /// that came before under the same names is out, so that a domain may go from one to another.
    ///
    /// Deviation: good virtual hosts are taken, whatever else came with them; Envoy refuses all that
    /// came for the table, and who waits for one of them waits on.
    fn take_hosts(
        &mut self,
        version: &Name,
        added: Vec<Resource>,
        removed: Vec<Name>,
        answered: Vec<(Name, Name)>,
        store: &mut Store,
    ) -> Applied {
        let type_url = TypeUrl::VirtualHost;
        let mut changes = TableChanges::default();
        for name in &removed {
            for key in store.tables_of(name, &self.origin) {
                changes.with(key, store, |table, change| change.changed |= table.remove_discovered(name));
            }
        }
        let mut outcomes = Vec::with_capacity(added.len());
        let mut places: BTreeMap<ResourceKey, Vec<usize>> = BTreeMap::new();
        for (place, Resource { name, version, body }) in added.iter().enumerate() {
            outcomes.push(Outcome {
                name: name.clone(),
                version: version.to_string(),
                source: Any { type_url: type_url.as_str().to_owned(), value: body.to_vec() },
                refused: None,
                changed: false,
            });
            for key in store.tables_of(name, &self.origin) {
                places.entry(key).or_default().push(place);
            }
        }
        for (key, places) in places {
            changes.with(key, store, |table, change| {
                let coming = places.iter().filter_map(|place| added.get(*place)).map(|host| Coming {
                    name: &host.name,
                    wire: &host.body,
                    scope: Scope {
                        added_via_api: true,
                        version: host.version.to_string(),
                        ..self.scope.clone()
                    },
                });
                let became = table.put_discovered(&coming.collect::<Vec<_>>());
                for (place, became) in places.iter().zip(became) {
                    let Some(outcome) = outcomes.get_mut(*place) else { continue };
                    match became {
                        Ok(changed) => {
                            outcome.changed |= changed;
                            change.changed |= changed;
                        }
                        Err(error) => {
                            outcome.refused = Some(error.to_string());
                            change.refused = true;
                        }
                    }
                }
            });
        }
        let tables = changes.put(store);
        let came = added.into_iter().map(|resource| resource.name).chain(removed);
        store.answer_hosts(came.map(|name| (name.clone(), name)).chain(answered), &self.origin);
        store.hosts_came(&self.origin);
        let applied = Applied {
            type_url,
            version: version.clone(),
            outcomes,
            removed: Vec::new(),
            endpoints: Vec::new(),
            refilled: Vec::new(),
            conflicts: Vec::new(),
            tables,
        };
        applied.warn();
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
            TypeUrl::VirtualHost => store.hosts_came(&self.origin),
            TypeUrl::Secret => store.expire_secret(self.key(name)),
            TypeUrl::ExtensionConfig => store.expire_extension(self.key(name)),
            _ => {}
        }
    }

    /// Asks for what is wanted now and was not, and no more for what is not; true: something new is
    /// among it.
    fn follow(&mut self, moves: Moves) -> bool {
        let mut gone: BTreeMap<TypeUrl, Vec<Name>> = BTreeMap::new();
        let mut tables_gone = false;
        for of in moves.gone {
            if self.asked.remove(&of).is_some() {
                match interest(&of) {
                    Interest::Wildcard => tables_gone = true,
                    Interest::Names(_) => gone.entry(of.0).or_default().push(of.1),
                }
            }
        }
        // One wildcard serves all tables. With the last of them it ends first: a new one waits for an
        // answer of its own.
        if tables_gone
            && let Some(commander) = &self.commander
            && !self.asked.keys().any(|of| matches!(interest(of), Interest::Wildcard))
        {
            commander.unsubscribe(TypeUrl::VirtualHost, Interest::Wildcard);
        }
        let mut news = false;
        for (of, timeout) in moves.wanted {
            if self.asked.contains_key(&of) {
                continue;
            }
            news = true;
            if let Some(commander) = &self.commander {
                commander.subscribe(of.0.clone(), interest(&of), timeout);
            }
            self.asked.insert(of, timeout);
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

impl Applied {
    fn warn(&self) {
        let Applied { type_url, version, .. } = self;
        for outcome in &self.outcomes {
            if let Some(error) = &outcome.refused {
                let name = &outcome.name;
                tracing::warn!(target: "config", kind = type_url.short(), %name, %version, "rejected: {error}");
            }
        }
    }
}

/// Tables that virtual hosts are put into, and taken out of.
#[derive(Default)]
struct TableChanges(BTreeMap<ResourceKey, (RouteTable, HostsTaken)>);

impl TableChanges {
    /// Changes a table, as far as there is one.
    fn with(
        &mut self,
        key: ResourceKey,
        store: &Store,
        change: impl FnOnce(&mut RouteTable, &mut HostsTaken),
    ) {
        let Some(routes) = store.routes(&key) else { return };
        let (table, taken) = self.0.entry(key).or_insert_with_key(|key| {
            let taken = HostsTaken { table: key.clone(), changed: false, refused: false };
            (RouteTable::clone(routes), taken)
        });
        change(table, taken);
    }

    /// Puts those that have changed into the store.
    fn put(self, store: &mut Store) -> Vec<HostsTaken> {
        let taken = self.0.into_iter().map(|(key, (table, taken))| {
            if taken.changed {
                store.put_hosts(key, Arc::new(table));
            }
            taken
        });
        taken.collect()
    }
}

/// How to ask for what is wanted. Virtual hosts of a table as a whole have no name on the wire: a
/// wildcard stands for those of all tables, as in Envoy.
fn interest((type_url, name): &(TypeUrl, Name)) -> Interest {
    if *type_url == TypeUrl::VirtualHost && name.ends_with('/') {
        return Interest::Wildcard;
    }
    Interest::name(name.clone())
}

/// These say whether anything has changed.
fn put_cluster(name: &str, source: &Any, scope: Scope, store: &mut Store) -> Result<bool, Rejected> {
    if !store.takes_cluster(name, &source.value) {
        return Ok(false);
    }
    let known = scope.xds_clusters.clone();
    let cluster = Lower::resource_in(scope, |at| crate::cluster::config::lower(source, at))?;
    fill_cluster(&cluster, store.secrets()).map_err(Rejected::because)?;
    let cluster = Arc::new(cluster);
    let put = store.put_cluster(Arc::clone(&cluster));
    if put && let Some(known) = known {
        known.put(cluster);
    }
    Ok(put)
}

fn put_listener(
    name: &str,
    source: &Any,
    scope: &Scope,
    store: &mut Store,
    sockets: &mut Sockets,
    conflicts: &mut Vec<ResourceKey>,
) -> Result<bool, Rejected> {
    if !store.takes_listener(name, &source.value) {
        return Ok(false);
    }
    let previous = store.newest_listener(name);
    let listener = Lower::resource_in(scope.clone(), |at| {
        crate::listener::config::lower(source, previous.map(|listener| &**listener), at)
    })?;
    fill_listener(&listener, store.secrets()).map_err(Rejected::because)?;
    let listener = store.extend(listener, scope, conflicts).map_err(Rejected::because)?;
    sockets.bind(&listener).map_err(|error| Rejected::because(error.to_string()))?;
    Ok(store.put_listener(Arc::new(listener)))
}

fn put_routes(key: ResourceKey, source: &Any, scope: Scope, store: &mut Store) -> Result<(), Rejected> {
    let previous = store.routes(&key);
    let table = Lower::resource_in(scope, |at| {
        let previous = previous.map(|table| &**table);
        let mut table = crate::http::route::config::lower(source, previous, at)?;
        if let Some(previous) = previous {
            table.keep_discovered(previous, at);
        }
        Some(table)
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

/// Returns whether it is another one than there was.
fn put_extension(key: ResourceKey, source: &Any, scope: &Scope, store: &mut Store) -> Result<bool, Rejected> {
    let lower = |at: &mut Lower| Extension::lower(&key.name, source, SystemTime::now(), at);
    let lowered = Lower::resource_in(scope.clone(), lower);
    let put = lowered
        .and_then(|extension| store.put_extension(key.clone(), extension, scope).map_err(Rejected::because));
    if put.is_err() {
        // Nothing waits for one that is refused: so it is in Envoy.
        store.expire_extension(key);
    }
    put
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
