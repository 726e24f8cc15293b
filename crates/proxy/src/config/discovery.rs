//! xDS: what the proxy subscribes to, and how updates get into the store.
//!
//! `Discovery::apply` is the story of one update: decode, lower, bind, put into the store,
//! acknowledge or reject with every reason. A resource that is refused leaves its last good
//! version serving. `Discovery::follow` asks for what the store refers to now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use leno_base::{Name, Rng};
use leno_xds::client::grpc::{self, Commander, ConnectError, Connection, Event, Target};
use leno_xds::client::{Client, Config, Expired, Interest, Rejection, Update};
use leno_xds::{Mode, Resource, TypeUrl};
use prost_types::Any;
use tokio::sync::mpsc;

use crate::cluster::{Assignment, EndpointAddress};
use crate::config::lower::{Lower, Rejected, Scope};
use crate::config::source::Origin;
use crate::config::store::Store;
use crate::listener::sockets::Sockets;
use crate::tls::secrets::{KnownSecret, Refilled, SecretKey, fill_cluster, fill_listener};

/// Clusters of the bootstrap by which xDS servers can be reached, or why not.
#[derive(Debug, Default)]
pub(crate) struct XdsClusters(pub(crate) HashMap<Name, Result<XdsCluster, String>>);

/// A cluster as the xDS client, which has connections of its own, sees it.
#[derive(Clone, Debug)]
pub(crate) struct XdsCluster {
    /// Endpoints in order of trial.
    pub(crate) endpoints: Vec<EndpointAddress>,
    /// `connect_timeout`.
    pub(crate) connect_timeout: Duration,
    /// HTTP/2 keep-alive: interval and timeout.
    pub(crate) keepalive: Option<(Duration, Duration)>,
}

impl XdsClusters {
    /// The cluster of this name.
    ///
    /// # Errors
    /// Why there is none that an xDS server can be reached by.
    pub(crate) fn find(&self, name: &str) -> Result<&XdsCluster, String> {
        match self.0.get(name) {
            Some(Ok(cluster)) => Ok(cluster),
            Some(Err(error)) => Err(error.clone()),
            None => Err(format!("unknown gRPC client cluster '{name}'")),
        }
    }

    /// Whether there is one.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        self.find(name).map(|_| ())
    }
}

/// The aggregated stream as the bootstrap describes it, or one for secrets alone.
#[derive(Clone, Debug)]
pub(crate) struct Ads {
    /// `api_type`.
    pub(crate) mode: Mode,
    /// Who we are.
    pub(crate) node: leno_api::proto::envoy::config::core::v3::Node,
    /// `set_node_on_first_message_only`.
    pub(crate) node_on_first_message_only: bool,
    /// The cluster that the stream goes to.
    pub(crate) cluster: XdsCluster,
    /// `:authority` of the stream.
    pub(crate) authority: String,
    /// Whether clusters come by it, with their initial fetch timeout (`None`: wait for ever).
    pub(crate) clusters: Option<Option<Duration>>,
    /// Whether listeners come by it, likewise.
    pub(crate) listeners: Option<Option<Duration>>,
}

/// The running subscription.
pub(crate) struct Discovery {
    commander: Commander,
    scope: Scope,
    /// What secrets of this stream are known by.
    origin: Origin,
    endpoints: BTreeSet<Name>,
    routes: BTreeSet<Name>,
    secrets: BTreeSet<Name>,
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
}

/// Updates that may wait for the main loop.
const QUEUE: usize = 16;

impl Discovery {
    /// Opens the stream and subscribes to what the bootstrap wants. `scope` is what lowering
    /// needs to know of the bootstrap.
    pub(crate) fn start(ads: Ads, origin: Origin, scope: Scope) -> (Self, mpsc::Receiver<Event>) {
        let (commander, commands) = grpc::commands();
        let (send, events) = mpsc::channel(QUEUE);
        let mut config = Config::new(ads.mode, ads.node.clone());
        config.node_on_first_message_only = ads.node_on_first_message_only;
        let client = Client::new(config, Rng::from_entropy());
        for (type_url, wanted) in [(TypeUrl::Cluster, &ads.clusters), (TypeUrl::Listener, &ads.listeners)] {
            if let Some(timeout) = wanted {
                commander.subscribe(type_url, Interest::Wildcard, *timeout);
            }
        }
        let alone = (origin != Origin::Ads).then(|| TypeUrl::Secret.path(ads.mode)).flatten();
        let path = alone.unwrap_or_else(|| ads.mode.path());
        let ads = Arc::new(ads);
        let next = Arc::new(AtomicUsize::new(0));
        let connector = move || connect(Arc::clone(&ads), next.fetch_add(1, Ordering::Relaxed));
        tokio::spawn(grpc::run(connector, path, client, commands, send));
        (Self { origin, ..Self::new(commander, scope) }, events)
    }

    /// An aggregated subscription whose requests go to `commander`.
    pub(crate) fn new(commander: Commander, scope: Scope) -> Self {
        Self {
            commander,
            scope,
            origin: Origin::Ads,
            endpoints: BTreeSet::new(),
            routes: BTreeSet::new(),
            secrets: BTreeSet::new(),
        }
    }

    /// Brings an update into the store and answers it.
    pub(crate) fn apply(&mut self, update: Update, store: &mut Store, sockets: &mut Sockets) -> Applied {
        let Update { type_url, version, added, mut removed, receipt, .. } = update;
        removed.retain(|name| match type_url {
            TypeUrl::Cluster => store.remove_cluster(name),
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
                store.expire_secret(SecretKey { name: name.clone(), origin: self.origin.clone() });
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
            let outcome = match type_url {
                TypeUrl::Cluster => put_cluster(&name, &source, scope, store),
                TypeUrl::Listener => put_listener(&name, &source, scope, store, sockets),
                TypeUrl::Route => put_routes(&name, &source, scope, store),
                TypeUrl::Endpoint => put_endpoints(&name, &source, scope, store)
                    .map(|changed| applied.endpoints.extend(changed)),
                TypeUrl::Secret => put_secret(&name, &source, &self.origin, scope, store)
                    .map(|refilled| applied.refilled.extend(refilled)),
                _ => Err(Rejected::because(format!("{type_url} was never subscribed"))),
            };
            let refused = outcome.err().map(|rejected| rejected.to_string());
            applied.outcomes.push(Outcome { name, version, source, refused });
        }
        match type_url {
            TypeUrl::Cluster => store.clusters_came(),
            TypeUrl::Listener => store.listeners_came(),
            _ => {}
        }
        let refused = applied
            .outcomes
            .iter()
            .filter_map(|outcome| Some((outcome.name.clone(), outcome.refused.clone()?)));
        let refused: Vec<_> = refused.collect();
        if refused.is_empty() {
            self.commander.ack(receipt);
        } else {
            for (name, error) in &refused {
                tracing::warn!(target: "config", kind = type_url.short(), %name, %version, "rejected: {error}");
            }
            self.commander.nack(receipt, Rejection::of_resources(refused));
        }
        applied
    }

    /// A subscription had no answer in time: what waits for it goes on without.
    pub(crate) fn expire(&mut self, expired: Expired, store: &mut Store) {
        let Expired { type_url, interest } = expired;
        tracing::warn!(target: "config", kind = type_url.short(), ?interest, "initial fetch timed out");
        match (type_url, interest) {
            (TypeUrl::Cluster, _) => store.clusters_came(),
            (TypeUrl::Listener, _) => store.listeners_came(),
            (TypeUrl::Endpoint, Interest::Names(names)) => {
                names.into_iter().for_each(|name| store.expire_endpoints(name));
            }
            (TypeUrl::Route, Interest::Names(names)) => {
                names.into_iter().for_each(|name| store.expire_routes(name));
            }
            (TypeUrl::Secret, Interest::Names(names)) => {
                let key = |name| SecretKey { name, origin: self.origin.clone() };
                names.into_iter().for_each(|name| store.expire_secret(key(name)));
            }
            _ => {}
        }
    }

    /// Asks for the endpoints, routes and secrets that the store refers to now, and for no others.
    pub(crate) fn follow(&mut self, store: &Store) {
        self.follow_secrets(store);
        if self.origin != Origin::Ads {
            return;
        }
        let (endpoints, routes) = (store.wanted_endpoints(), store.wanted_routes());
        for name in endpoints.difference(&self.endpoints) {
            let timeout = store.endpoints_timeout(name);
            self.commander.subscribe(TypeUrl::Endpoint, Interest::name(name.clone()), timeout);
        }
        self.unsubscribe(TypeUrl::Endpoint, self.endpoints.difference(&endpoints).cloned().collect());
        for name in routes.difference(&self.routes) {
            let timeout = store.routes_timeout(name);
            self.commander.subscribe(TypeUrl::Route, Interest::name(name.clone()), timeout);
        }
        self.unsubscribe(TypeUrl::Route, self.routes.difference(&routes).cloned().collect());
        (self.endpoints, self.routes) = (endpoints, routes);
    }

    fn follow_secrets(&mut self, store: &Store) {
        let secrets = store.wanted_secrets().into_iter().filter(|(key, _)| key.origin == self.origin);
        let secrets: BTreeMap<Name, _> = secrets.map(|(key, timeout)| (key.name, timeout)).collect();
        for (name, timeout) in secrets.iter().filter(|(name, _)| !self.secrets.contains(*name)) {
            self.commander.subscribe(TypeUrl::Secret, Interest::name(name.clone()), *timeout);
        }
        let gone = self.secrets.iter().filter(|name| !secrets.contains_key(*name));
        self.unsubscribe(TypeUrl::Secret, gone.cloned().collect());
        self.secrets = secrets.into_keys().collect();
    }

    fn unsubscribe(&self, type_url: TypeUrl, names: Vec<Name>) {
        if !names.is_empty() {
            self.commander.unsubscribe(type_url, Interest::Names(names));
        }
    }
}

fn put_cluster(name: &str, source: &Any, scope: Scope, store: &mut Store) -> Result<(), Rejected> {
    if !store.takes_cluster(name, &source.value) {
        return Ok(());
    }
    let cluster = Lower::resource_in(scope, |at| crate::cluster::config::lower(source, at))?;
    fill_cluster(&cluster, store.secrets()).map_err(Rejected::because)?;
    store.put_cluster(cluster);
    Ok(())
}

fn put_listener(
    name: &str,
    source: &Any,
    scope: Scope,
    store: &mut Store,
    sockets: &mut Sockets,
) -> Result<(), Rejected> {
    if !store.takes_listener(name, &source.value) {
        return Ok(());
    }
    let previous = store.newest_listener(name);
    let listener = Lower::resource_in(scope, |at| {
        crate::listener::config::lower(source, previous.map(|listener| &**listener), at)
    })?;
    fill_listener(&listener, store.secrets()).map_err(Rejected::because)?;
    sockets.bind(&listener).map_err(|error| Rejected::because(error.to_string()))?;
    store.put_listener(Arc::new(listener));
    Ok(())
}

fn put_routes(name: &Name, source: &Any, scope: Scope, store: &mut Store) -> Result<(), Rejected> {
    let previous = store.routes(name);
    let table = Lower::resource_in(scope, |at| {
        crate::http::route::config::lower(source, previous.map(|table| &**table), at)
    })?;
    store.put_routes(name.clone(), Arc::new(table));
    Ok(())
}

/// Returns the clusters in force that use the endpoints, with the endpoints.
#[allow(clippy::type_complexity, reason = "a name for it would say no more")]
fn put_endpoints(
    name: &Name,
    source: &Any,
    scope: Scope,
    store: &mut Store,
) -> Result<Option<(Vec<Name>, Arc<Assignment>)>, Rejected> {
    let assignment = Lower::resource_in(scope, |at| crate::cluster::config::lower_assignment(source, at))?;
    let assignment = Arc::new(assignment);
    let users = store.put_assignment(name.clone(), Arc::clone(&assignment));
    Ok((!users.is_empty()).then_some((users, assignment)))
}

/// Returns the contexts that were made anew.
fn put_secret(
    name: &Name,
    source: &Any,
    origin: &Origin,
    scope: Scope,
    store: &mut Store,
) -> Result<Vec<Refilled>, Rejected> {
    let key = SecretKey { name: name.clone(), origin: origin.clone() };
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

/// Connects to the next endpoint of the cluster.
async fn connect(ads: Arc<Ads>, attempt: usize) -> Result<tonic::transport::Channel, ConnectError> {
    let unavailable = |text: &str| ConnectError::Transport(text.to_owned());
    let endpoints = &ads.cluster.endpoints;
    let endpoint =
        endpoints.get(attempt % endpoints.len().max(1)).ok_or_else(|| unavailable("no endpoint"))?;
    let target = match endpoint {
        EndpointAddress::Ip(address) => Target::Tcp(*address),
        EndpointAddress::Pipe(path) => Target::Unix(std::path::PathBuf::from(&**path)),
        EndpointAddress::Internal(..) => {
            return Err(unavailable("the control plane cannot be reached by an internal listener"));
        }
        EndpointAddress::Name(name, port) => {
            let found = tokio::net::lookup_host((&**name, *port)).await;
            let address = found.map_err(|error| unavailable(&format!("{name}: {error}")))?.next();
            Target::Tcp(address.ok_or_else(|| unavailable(&format!("{name}: no address")))?)
        }
    };
    let connection = Connection {
        authority: ads.authority.clone(),
        connect_timeout: ads.cluster.connect_timeout,
        keepalive: ads.cluster.keepalive,
    };
    grpc::connect(&target, &connection).await
}

#[cfg(test)]
#[path = "discovery/tests.rs"]
mod tests;
