//! The streams and files that resources come from: those that the bootstrap names, and those that
//! resources refer to, for as long as they do.
//!
//! The aggregated stream carries all types. Any other gRPC source has one stream for each type
//! that is asked of it, whoever asks; a file is watched. Everything that happens to them arrives
//! as [`Incoming`], in one queue.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use leno_api::proto::envoy::config::core::v3::Node;
use leno_base::{Name, Rng};
use leno_xds::client::grpc::ConnectError;
use leno_xds::client::{Client, Config, Interest, grpc};
use leno_xds::{Mode, TypeUrl};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::control_plane::{self, ControlPlane};
use super::file::{self, FileError};
use super::stats::{ControlPlaneScope, Counts, Ending};
use super::{Applied, Discovery, HostsTaken, Moves, Outcome};
use crate::config::lower::Scope;
use crate::config::source::{ConfigSource, FileSource, Origin, ResourceKey, XdsServer};
use crate::config::store::{Reference, Store};
use crate::config::watch::{Watched, Watches};
use crate::listener::sockets::Sockets;
use crate::telemetry::stats::ThreadStats;
use crate::tls::config::SecretFiles;
use crate::tls::secrets::KnownSecret;

/// A stream or a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feed {
    /// The aggregated stream.
    Ads,
    /// A stream for one type.
    Grpc(TypeUrl, Arc<XdsServer>),
    /// A file with resources of one type.
    File(TypeUrl, Arc<FileSource>),
}

impl Feed {
    fn new(type_url: &TypeUrl, origin: &Origin) -> Self {
        match origin {
            Origin::Ads => Self::Ads,
            Origin::Grpc(server) => Self::Grpc(type_url.clone(), Arc::clone(server)),
            Origin::File(file) => Self::File(type_url.clone(), Arc::clone(file)),
        }
    }

    fn origin(&self) -> Origin {
        match self {
            Self::Ads => Origin::Ads,
            Self::Grpc(_, server) => Origin::Grpc(Arc::clone(server)),
            Self::File(_, file) => Origin::File(Arc::clone(file)),
        }
    }

    /// The only type of resource that comes by it.
    fn type_url(&self) -> Option<&TypeUrl> {
        match self {
            Self::Ads => None,
            Self::Grpc(type_url, _) | Self::File(type_url, _) => Some(type_url),
        }
    }
}

/// Something that happened to a feed.
#[derive(Debug)]
pub(crate) struct Incoming {
    feed: Feed,
    what: What,
}

#[derive(Debug)]
enum What {
    Stream(grpc::Event),
    /// A file was read.
    File(Result<file::Content, FileError>),
    /// Files of this secret may have changed.
    SecretFiles(Name),
}

/// What has to be known of the bootstrap.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `ads_config`.
    pub(crate) ads: Option<XdsServer>,
    /// `cds_config`.
    pub(crate) clusters: Option<ConfigSource>,
    /// `lds_config`.
    pub(crate) listeners: Option<ConfigSource>,
    /// Who we are.
    pub(crate) node: Node,
    /// What resources are lowered in; its `xds_clusters` are what streams go to.
    pub(crate) scope: Scope,
}

/// All streams and files.
pub(crate) struct Sources {
    settings: Settings,
    running: BTreeMap<Feed, Running>,
    events: mpsc::Sender<Incoming>,
    /// Made when the first file is to be watched.
    watches: Option<Watches>,
    counts: Counts,
    control_plane: ControlPlaneScope,
    /// Secrets whose parts lie in files.
    secret_files: BTreeMap<ResourceKey, FollowedFiles>,
}

/// One of them.
struct Running {
    discovery: Discovery,
    /// Passes on what comes; ends with this.
    task: JoinHandle<()>,
    connected: bool,
    /// Of a file: has it read again.
    again: Option<Arc<Notify>>,
    _watched: Option<Watched>,
    /// Clusters or listeners of a file: what was in it last.
    held: BTreeSet<Name>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The files of a secret, as they were when they were read last.
struct FollowedFiles {
    files: SecretFiles,
    hash: u64,
    task: JoinHandle<()>,
    _watched: Vec<Watched>,
}

impl Drop for FollowedFiles {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Events that may wait for the main loop.
const QUEUE: usize = 16;

/// How often files that change while they are read are read again.
const READS: usize = 5;

impl Sources {
    /// Opens what the bootstrap names, and subscribes to clusters and listeners.
    ///
    /// # Errors
    /// Why a control plane cannot be reached by its cluster, with the field that refers to it.
    pub(crate) fn start(
        settings: Settings,
        thread: &Arc<ThreadStats>,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), Vec<String>> {
        let known = settings.scope.xds_clusters.clone().unwrap_or_default();
        let mut refused = Vec::new();
        let mut check = |field: &str, server: &XdsServer| {
            if let Err(error) = known.check(&server.cluster) {
                refused.push(format!("dynamic_resources.{field}: {error}"));
            }
        };
        if let Some(server) = &settings.ads {
            check("ads_config", server);
        }
        for (field, source) in [("cds_config", &settings.clusters), ("lds_config", &settings.listeners)] {
            if let Some(ConfigSource { origin: Origin::Grpc(server), .. }) = source {
                check(&format!("{field}.api_config_source"), server);
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        let (events, incoming) = mpsc::channel(QUEUE);
        let mut sources = Self {
            settings,
            running: BTreeMap::new(),
            events,
            watches: None,
            counts: Counts::new(thread),
            control_plane: ControlPlaneScope::new(thread, "control_plane."),
            secret_files: BTreeMap::new(),
        };
        if sources.settings.ads.is_some() {
            let running = sources.open(&Feed::Ads);
            sources.running.insert(Feed::Ads, running);
        }
        for (type_url, source) in sources.whole_types() {
            let key = ResourceKey { name: Name::default(), origin: source.origin.clone() };
            sources.counts.add(&type_url, &key, &BTreeSet::from([Name::default()]), false);
            let feed = Feed::new(&type_url, &source.origin);
            if !sources.running.contains_key(&feed) {
                let running = sources.open(&feed);
                sources.running.insert(feed.clone(), running);
            }
            let running = sources.running.get(&feed);
            if let Some(commander) = running.and_then(|running| running.discovery.commander.as_ref()) {
                commander.subscribe(type_url, Interest::Wildcard, source.initial_fetch_timeout);
            }
        }
        Ok((sources, incoming))
    }

    /// The types of which the bootstrap wants everything there is.
    fn whole_types(&self) -> Vec<(TypeUrl, ConfigSource)> {
        let Settings { clusters, listeners, .. } = &self.settings;
        let types = [(TypeUrl::Cluster, clusters), (TypeUrl::Listener, listeners)];
        types.into_iter().filter_map(|(type_url, source)| Some((type_url, source.clone()?))).collect()
    }

    /// Whether what the store refers to can be reached: for static resources, which were lowered
    /// when the clusters were not known yet.
    ///
    /// # Errors
    /// What cannot.
    pub(crate) fn check(&self, store: &Store) -> Result<(), Vec<String>> {
        let known = self.settings.scope.xds_clusters.clone().unwrap_or_default();
        let mut asked: BTreeMap<Feed, BTreeSet<(&TypeUrl, &Name)>> = BTreeMap::new();
        for Reference { type_url, key } in store.references() {
            asked.entry(Feed::new(type_url, &key.origin)).or_default().insert((type_url, &key.name));
        }
        let refused = asked.into_iter().filter_map(|(feed, asked)| {
            let Feed::Grpc(_, server) = feed else { return None };
            let error = known.check(&server.cluster).err()?;
            let names = asked.into_iter().map(|(type_url, name)| format!("{} '{name}'", type_url.short()));
            Some(format!("{}: {error}", names.collect::<Vec<_>>().join(", ")))
        });
        let refused: Vec<String> = refused.collect();
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    /// Asks for what the store refers to now, where it comes from, and for nothing else. Looks at
    /// what has changed since the last call.
    pub(crate) fn follow(&mut self, store: &mut Store) {
        let moved = store.take_moved();
        self.follow_counts(store, &moved);
        for (feed, moves) in moves(store, &moved) {
            let opened = !moves.wanted.is_empty() && !self.running.contains_key(&feed);
            if opened {
                let running = self.open(&feed);
                self.running.insert(feed.clone(), running);
            }
            let Some(running) = self.running.get_mut(&feed) else { continue };
            // One that was opened just now is read anyway.
            if running.discovery.follow(moves)
                && !opened
                && let Some(again) = &running.again
            {
                again.notify_one();
            }
            if running.discovery.asked.is_empty() && !self.is_permanent(&feed) {
                self.running.remove(&feed);
            }
        }
        self.secret_files.retain(|key, _| store.refers_to(&Reference::secret(key)));
    }

    /// Whether it stays open when nothing refers to it: it is the bootstrap's.
    fn is_permanent(&self, feed: &Feed) -> bool {
        let whole = || self.whole_types().into_iter().map(|(of, source)| Feed::new(&of, &source.origin));
        match feed {
            Feed::Ads => self.settings.ads.is_some(),
            Feed::Grpc(..) | Feed::File(..) => whole().any(|permanent| permanent == *feed),
        }
    }

    /// New subscriptions count before the others cease to, as they may share counters.
    fn follow_counts(&mut self, store: &Store, moved: &BTreeSet<Reference>) {
        let is_host = |reference: &&Reference| {
            reference.type_url == TypeUrl::VirtualHost && !reference.key.name.ends_with('/')
        };
        // Virtual hosts that are asked for by name count for their table.
        for Reference { type_url, key } in moved.iter().filter(is_host) {
            let table = key.name.rsplit_once('/').map(|(table, _)| Name::from(format!("{table}/")));
            let table = table.map(|name| ResourceKey { name, origin: key.origin.clone() });
            table.iter().for_each(|table| self.counts.begun(type_url, table));
        }
        let users = moved.iter().filter(|reference| !is_host(reference)).map(|reference| {
            let wants = store.wants(reference);
            // All users of a secret count as one, and those of a filter's configuration.
            let as_one = matches!(reference.type_url, TypeUrl::Secret | TypeUrl::ExtensionConfig);
            let most = if as_one { 1 } else { usize::MAX };
            (reference, wants.take(most).map(|want| want.user).collect())
        });
        let users: Vec<(&Reference, BTreeSet<Name>)> = users.collect();
        for (Reference { type_url, key }, users) in &users {
            let connected = || self.running.get(&Feed::new(type_url, &key.origin));
            let connected = connected().is_some_and(|running| running.connected);
            self.counts.add(type_url, key, users, connected);
        }
        for (Reference { type_url, key }, users) in &users {
            self.counts.retain(type_url, key, users);
        }
    }

    /// Opens a stream, or a file.
    fn open(&mut self, feed: &Feed) -> Running {
        match feed {
            Feed::File(type_url, source) => self.open_file(feed, type_url, source),
            Feed::Ads => {
                let server = self.settings.ads.clone();
                let delta = server.as_ref().is_some_and(|server| server.delta);
                self.open_stream(feed, server.as_ref(), mode(delta).path())
            }
            Feed::Grpc(type_url, server) => {
                let mode = mode(server.delta);
                let path = type_url.path(mode).unwrap_or_else(|| mode.path());
                self.open_stream(feed, Some(server), path)
            }
        }
    }

    /// Without a server nothing ever comes, and who waits for it gives up in time.
    fn open_stream(&self, feed: &Feed, server: Option<&XdsServer>, path: &'static str) -> Running {
        let known = self.settings.scope.xds_clusters.clone().unwrap_or_default();
        let served = server.cloned();
        let mut config =
            Config::new(mode(server.is_some_and(|server| server.delta)), self.settings.node.clone());
        config.node_on_first_message_only = server.is_some_and(|server| server.node_on_first_only);
        let client = Client::new(config, Rng::from_entropy());
        let attempts = Arc::new(AtomicUsize::new(0));
        let connector = move || {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            // Whatever refers to a cluster that was never there was refused; it may change, and go.
            let control_plane = served.as_ref().map(|server| {
                let cluster = known.find(&server.cluster);
                cluster.map(|cluster| ControlPlane::new(server, cluster)).map_err(ConnectError::Transport)
            });
            async move {
                match control_plane {
                    Some(control_plane) => control_plane?.connect(attempt).await,
                    None => std::future::pending().await,
                }
            }
        };
        let metadata = server.map(control_plane::metadata).unwrap_or_default();
        let (commander, commands) = grpc::commands();
        let (send, mut receive) = mpsc::channel(1);
        let (events, of) = (self.events.clone(), feed.clone());
        let task = tokio::spawn(async move {
            let run = grpc::run(connector, path, metadata, client, commands, send);
            let pass_on = async {
                while let Some(event) = receive.recv().await {
                    if events.send(Incoming { feed: of.clone(), what: What::Stream(event) }).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(run, pass_on);
        });
        let discovery = Discovery::new(Some(commander), feed.origin(), self.settings.scope.clone());
        Running { discovery, task, connected: false, again: None, _watched: None, held: BTreeSet::new() }
    }

    fn open_file(&mut self, feed: &Feed, type_url: &TypeUrl, source: &Arc<FileSource>) -> Running {
        let again = Arc::new(Notify::new());
        let watched = self.watches().and_then(|watches| file::watch(&watches, source, &again));
        if let Err(error) = &watched {
            tracing::error!(target: "config", "{error}");
        }
        let (events, of, moved) = (self.events.clone(), feed.clone(), Arc::clone(&again));
        let (source, type_url) = (Arc::clone(source), type_url.clone());
        let task = tokio::spawn(async move {
            loop {
                let content = file::read(&source.path, &type_url);
                if events.send(Incoming { feed: of.clone(), what: What::File(content) }).await.is_err() {
                    return;
                }
                moved.notified().await;
            }
        });
        Running {
            discovery: Discovery::new(None, feed.origin(), self.settings.scope.clone()),
            task,
            connected: false,
            again: Some(again),
            _watched: watched.ok(),
            held: BTreeSet::new(),
        }
    }

    fn watches(&mut self) -> Result<Watches, String> {
        if let Some(watches) = &self.watches {
            return Ok(watches.clone());
        }
        let watches = Watches::start().map_err(|error| format!("cannot watch files: {error}"))?;
        Ok(self.watches.insert(watches).clone())
    }

    /// Brings what has come into the store; what that did, if anything.
    pub(crate) fn handle(
        &mut self,
        incoming: Incoming,
        store: &mut Store,
        sockets: &mut Sockets,
    ) -> Option<Applied> {
        let Incoming { feed, what } = incoming;
        let begun = Instant::now();
        // It may have been closed meanwhile.
        let running = self.running.get_mut(&feed)?;
        let applied = match what {
            What::Stream(event) => match event {
                grpc::Event::Connected => {
                    self.connected(&feed, true);
                    return None;
                }
                grpc::Event::Disconnected { error, retry_in } => {
                    let origin = feed.origin();
                    tracing::warn!(target: "config", ?feed, error, ?retry_in, "the control plane is away");
                    self.connected(&feed, false);
                    self.counts.end_all(feed.type_url(), &origin, &Ending::Failed);
                    return None;
                }
                grpc::Event::Expired(expired) => {
                    let names = match &expired.interest {
                        Interest::Wildcard => vec![Name::default()],
                        Interest::Names(names) => names.clone(),
                    };
                    if expired.type_url == TypeUrl::VirtualHost {
                        self.counts.end_all(Some(&expired.type_url), &feed.origin(), &Ending::TimedOut);
                    }
                    for name in names {
                        let key = running.discovery.key(&name);
                        self.counts.end(&expired.type_url, &key, &Ending::TimedOut);
                    }
                    running.discovery.expire(expired, store);
                    return None;
                }
                grpc::Event::Outlived { type_url, names } => {
                    running.discovery.outlive(&type_url, names, store, sockets)
                }
                grpc::Event::Update(update) => running.discovery.apply(update, store, sockets),
            },
            What::File(content) => {
                let Feed::File(type_url, _) = &feed else { return None };
                running.file_came(type_url, content, &self.counts, store, sockets)?
            }
            What::SecretFiles(name) => {
                let key = running.discovery.key(&name);
                return self.secret_files_moved(&key, store);
            }
        };
        self.count(&feed, &applied, begun);
        if applied.type_url == TypeUrl::Secret {
            self.follow_files(&feed, &applied);
        }
        Some(applied)
    }

    fn connected(&mut self, feed: &Feed, connected: bool) {
        if let Some(running) = self.running.get_mut(feed) {
            running.connected = connected;
        }
        if *feed == Feed::Ads {
            self.control_plane.connected_state().set(u64::from(connected));
        } else {
            self.counts.connected(feed.type_url(), &feed.origin(), connected);
        }
    }

    fn count(&self, feed: &Feed, applied: &Applied, begun: Instant) {
        let took = begun.elapsed();
        applied.conflicts.iter().for_each(|key| self.counts.conflict(key));
        let key = |name: &Name| ResourceKey { name: name.clone(), origin: feed.origin() };
        let ending = |refused: bool, changed: bool| {
            if refused { Ending::Rejected } else { Ending::Accepted { took, changed } }
        };
        match applied.type_url {
            TypeUrl::Cluster | TypeUrl::Listener => {
                let refused = applied.outcomes.iter().any(|outcome| outcome.refused.is_some());
                let changed = applied.outcomes.iter().any(|outcome| outcome.changed);
                // What goes away alone does not count as a reload, in Envoy either.
                self.counts.end(&applied.type_url, &key(&Name::default()), &ending(refused, changed));
                // Of those that were asked for on demand.
                for outcome in &applied.outcomes {
                    let ending = ending(outcome.refused.is_some(), outcome.changed);
                    self.counts.end(&applied.type_url, &key(&outcome.name), &ending);
                }
            }
            TypeUrl::VirtualHost => {
                for HostsTaken { table, changed, refused } in &applied.tables {
                    let hosts = key(&Name::from(format!("{}/", table.name)));
                    self.counts.end(&applied.type_url, &hosts, &ending(*refused, *changed));
                    if *changed {
                        self.counts.reloaded(&TypeUrl::Route, table);
                    }
                }
            }
            _ => {
                for outcome in &applied.outcomes {
                    let ending = ending(outcome.refused.is_some(), outcome.changed);
                    self.counts.end(&applied.type_url, &key(&outcome.name), &ending);
                }
                for name in &applied.removed {
                    self.counts.end(&applied.type_url, &key(name), &ending(false, true));
                }
            }
        }
    }

    /// Follows the files of secrets that were taken.
    fn follow_files(&mut self, feed: &Feed, applied: &Applied) {
        for outcome in applied.outcomes.iter().filter(|outcome| outcome.refused.is_none()) {
            let key = ResourceKey { name: outcome.name.clone(), origin: feed.origin() };
            let files = crate::tls::config::secret_files(&outcome.source);
            let Some(files) = files else {
                self.secret_files.remove(&key);
                continue;
            };
            if self.secret_files.get(&key).is_some_and(|followed| followed.files == files) {
                continue;
            }
            let moved = Arc::new(Notify::new());
            let mut watched = Vec::new();
            for (folder, modify) in files.folders() {
                let watch = self.watches().and_then(|watches| {
                    let watch = watches.watch(&folder, None, modify, &moved);
                    watch.map_err(|error| format!("cannot watch {}: {error}", folder.display()))
                });
                match watch {
                    Ok(watch) => watched.push(watch),
                    Err(error) => tracing::error!(target: "config", secret = %key.name, "{error}"),
                }
            }
            let (events, of, name) = (self.events.clone(), feed.clone(), key.name.clone());
            let task = tokio::spawn(async move {
                loop {
                    moved.notified().await;
                    let what = What::SecretFiles(name.clone());
                    if events.send(Incoming { feed: of.clone(), what }).await.is_err() {
                        return;
                    }
                }
            });
            let hash = hash_of(&files.paths).unwrap_or_default();
            self.secret_files.insert(key, FollowedFiles { files, hash, task, _watched: watched });
        }
    }

    /// Reads a secret's files again if they have changed. If they cannot be used, what was there
    /// stays.
    fn secret_files_moved(&mut self, key: &ResourceKey, store: &mut Store) -> Option<Applied> {
        let followed = self.secret_files.get_mut(key)?;
        let known = store.secrets().known(key)?;
        let (source, version) = (known.source.clone(), known.version.clone());
        let mut refilled = None;
        // Files that are replaced one after the other may not fit together meanwhile.
        for _ in 0..READS {
            let Ok(hash) = hash_of(&followed.files.paths) else {
                refilled = Some(Err("a file cannot be read".to_owned()));
                break;
            };
            if hash == followed.hash {
                return None;
            }
            let scope =
                Scope { added_via_api: true, version: version.clone(), ..self.settings.scope.clone() };
            let lowered = crate::config::lower::Lower::resource_in(scope, |at| {
                crate::tls::config::dynamic_secret(&source, at)
            });
            if hash_of(&followed.files.paths).ok() != Some(hash) {
                continue;
            }
            refilled = Some(lowered.map_err(|rejected| rejected.to_string()).and_then(|secret| {
                let known = KnownSecret {
                    secret,
                    source: source.clone(),
                    version: version.clone(),
                    updated: SystemTime::now(),
                };
                store.put_secret(key.clone(), known)
            }));
            if let Some(Ok(_)) = &refilled {
                followed.hash = hash;
            }
            break;
        }
        match refilled? {
            Ok(refilled) => {
                let outcome =
                    Outcome { name: key.name.clone(), version, source, refused: None, changed: true };
                Some(Applied {
                    type_url: TypeUrl::Secret,
                    version: Name::default(),
                    outcomes: vec![outcome],
                    removed: Vec::new(),
                    endpoints: Vec::new(),
                    conflicts: Vec::new(),
                    refilled,
                    tables: Vec::new(),
                })
            }
            Err(error) => {
                tracing::warn!(target: "config", secret = %key.name, "its files have changed and are refused: {error}");
                self.counts.rotation_failed(key);
                None
            }
        }
    }
}

impl Running {
    /// Takes what lies in a file. Clusters and listeners are all of their type; of other types there
    /// must be one, of the name that is asked for.
    fn file_came(
        &mut self,
        type_url: &TypeUrl,
        content: Result<file::Content, FileError>,
        counts: &Counts,
        store: &mut Store,
        sockets: &mut Sockets,
    ) -> Option<Applied> {
        let whole = type_url.is_whole_in_sotw();
        let names: Vec<Name> = match whole {
            true => vec![Name::default()],
            false => self.discovery.asked.keys().map(|(_, name)| name.clone()).collect(),
        };
        let give_up = |ending: Ending, name: &Name, store: &mut Store| {
            counts.end(type_url, &self.discovery.key(name), &ending);
            self.discovery.give_up(type_url, name, store);
        };
        let content = match content {
            Ok(content) => content,
            Err(error) => {
                let (ending, error) = match error {
                    FileError::Unreadable(error) => (Ending::Failed, error),
                    FileError::Rejected(error) => (Ending::Rejected, error),
                };
                tracing::warn!(target: "config", kind = type_url.short(), "file refused: {error}");
                names.iter().for_each(|name| give_up(ending, name, store));
                return None;
            }
        };
        let file::Content { version, resources } = content;
        if whole {
            let held = resources.iter().map(|resource| resource.name.clone()).collect();
            let before = std::mem::replace(&mut self.held, held);
            let gone = before.difference(&self.held).cloned().collect();
            return Some(self.discovery.take(type_url, &version, resources, gone, store, sockets));
        }
        let mut taken = Vec::new();
        for name in &names {
            let error = match resources.as_slice() {
                [] if !matches!(type_url, TypeUrl::Secret | TypeUrl::ExtensionConfig) => {
                    give_up(Ending::Empty, name, store);
                    continue;
                }
                [one] if one.name == *name => {
                    taken.push(one.clone());
                    continue;
                }
                [one] => format!("the file has '{}'", one.name),
                all => format!("the file has {} resources, not one", all.len()),
            };
            tracing::warn!(target: "config", kind = type_url.short(), %name, "refused: {error}");
            give_up(Ending::Rejected, name, store);
        }
        Some(self.discovery.take(type_url, &version, taken, Vec::new(), store, sockets))
    }
}

/// What has become of these references, by where they point to.
pub(super) fn moves(store: &Store, moved: &BTreeSet<Reference>) -> BTreeMap<Feed, Moves> {
    let mut moves: BTreeMap<Feed, Moves> = BTreeMap::new();
    for reference in moved {
        let Reference { type_url, key } = reference;
        let moves = moves.entry(Feed::new(type_url, &key.origin)).or_default();
        let of = (type_url.clone(), key.name.clone());
        match store.wants(reference).next() {
            Some(want) => drop(moves.wanted.insert(of, want.timeout)),
            None => moves.gone.push(of),
        }
    }
    moves
}

fn mode(delta: bool) -> Mode {
    if delta { Mode::Delta } else { Mode::Sotw }
}

/// Says whether files are what they were.
fn hash_of(paths: &[PathBuf]) -> std::io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        let bytes = std::fs::read(path)?;
        hasher.write_usize(bytes.len());
        hasher.write(&bytes);
    }
    Ok(hasher.finish())
}
