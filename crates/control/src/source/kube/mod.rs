//! A Kubernetes cluster as a source: what an API server tells of the kinds that mean something to a
//! mesh.
//!
//! START HERE: [`run`] is the task that keeps it all together. Each kind that is served has a
//! `reflector.rs`, which lists and watches it and keeps its `objects.rs`; which kinds are served,
//! and in which versions, is asked again now and then and whenever a CustomResourceDefinition
//! changes (`discovery.rs`). `client.rs` has the requests. `lease.rs` decides which of several
//! replicas leads, `writer.rs` writes status for the one that does.
//!
//! The first update holds everything: nothing is served before the cluster is known. Afterwards
//! nothing that fails takes anything away: what was known last stays in use, and a diagnostic says
//! why. Secrets and ConfigMaps are read one by one as they are wanted (`wanted.rs`), so that neither
//! memory nor permissions need hold those of others.

pub(crate) mod book;
pub(crate) mod client;
pub(crate) mod discovery;
pub(crate) mod lease;
mod objects;
mod reflector;
mod review;
pub(crate) mod snapshot;
#[cfg(test)]
mod tests;
mod wanted;
#[cfg(test)]
mod wire;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::client::{Api, Fault, Kubernetes};
use self::discovery::{Catalog, Served, watched};
use self::objects::Objects;
use self::reflector::{Reflector, Scope, State, Told, diagnostic};
pub(crate) use self::wanted::Wanted;
use self::writer::Statuses;
use super::Update;
use super::fold::Fold;
use crate::model::diagnostic::Diagnostic;
use crate::model::read::{self, Known};
use crate::model::{Change, Key, Kind, ObjectRef};

/// How often what is served is asked for without a reason.
const DISCOVER: Duration = Duration::from_secs(30);

/// How long to wait after a CustomResourceDefinition has changed: it takes a moment to be served.
const DISCOVER_SOON: Duration = Duration::from_millis(100);

/// Waits after faults are short at first, as most faults are, and half a minute in the end.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The lease of the replica that writes status.
const STATUS_LEASE: &str = "leno-status-leader";

/// How many times in a row a kind must be missing to be taken for gone.
const MISSING: u32 = 2;

/// A cluster that can be read and written.
#[derive(Clone)]
pub(crate) struct Cluster {
    api: Api,
    root_namespace: String,
    /// What is served, as found out last.
    catalog: Arc<watch::Sender<Catalog>>,
    /// How long to wait after a fault: at first, and in the end.
    retry: (Duration, Duration),
    identity: String,
    writes_status: bool,
    /// As in [`Kubernetes`].
    revision: Option<String>,
    mesh_config_map: String,
}

impl Cluster {
    /// Reads the configuration; nothing is asked of the cluster yet.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub(crate) async fn new(config: &Kubernetes) -> Result<Cluster, String> {
        Ok(Cluster {
            api: Api::new(config).await?,
            root_namespace: config.root_namespace().to_owned(),
            catalog: Arc::new(watch::channel(Catalog::default()).0),
            retry: RETRY,
            identity: match config.identity.as_str() {
                "" => format!("leno-{:016x}", Rng::from_entropy().next_u64()),
                name => name.to_owned(),
            },
            writes_status: config.write_status,
            revision: config.revision.clone(),
            mesh_config_map: config.mesh_config_map(),
        })
    }

    /// Where requests go.
    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// The root namespace.
    pub(crate) fn root_namespace(&self) -> &str {
        &self.root_namespace
    }

    /// What is served, as it was found out last.
    pub(crate) fn served(&self) -> watch::Receiver<Catalog> {
        self.catalog.subscribe()
    }

    /// Starts what writes status, if that is wanted: where to say what it should be.
    pub(crate) fn spawn_writer(&self, tasks: &mut JoinSet<()>) -> Option<mpsc::UnboundedSender<Statuses>> {
        if !self.writes_status {
            return None;
        }
        let (leads, leading) = watch::channel(false);
        let (say, statuses) = mpsc::unbounded_channel();
        let (candidate, writer) = (self.clone(), self.clone());
        tasks.spawn(async move { lease::run(candidate, STATUS_LEASE, leads).await });
        tasks.spawn(writer::run(writer, leading, statuses));
        Some(say)
    }

    /// A series of waits, for one that tries again and again.
    fn backoff(&self, rng: Rng) -> Backoff {
        Backoff::new(self.retry.0, self.retry.1, rng)
    }
}

/// Runs until the receiver of the updates is gone. The first update is sent when everything is
/// known, however long that takes.
pub(crate) async fn run(
    cluster: Cluster,
    mut wanted: watch::Receiver<Wanted>,
    updates: mpsc::Sender<Update>,
) {
    let (tell, mut told) = mpsc::channel(64);
    let mut watcher = Watcher::new(cluster.clone(), tell);
    let (defined, mut definitions) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_definitions(cluster.clone(), defined));
    let mut discovering: JoinSet<Result<Catalog, Fault>> = JoinSet::new();
    let mut retry = cluster.backoff(watcher.rng.fork());
    let mut next_discovery = tokio::time::Instant::now();
    loop {
        let due = watcher.fold.due().map(tokio::time::Instant::from_std);
        tokio::select! {
            Some(heard) = told.recv() => {
                watcher.on_told(heard);
                // What else has come belongs together.
                while let Ok(heard) = told.try_recv() {
                    watcher.on_told(heard);
                }
            }
            () = tokio::time::sleep_until(next_discovery), if discovering.is_empty() => {
                next_discovery = tokio::time::Instant::now() + DISCOVER;
                let api = cluster.api.clone();
                discovering.spawn(async move { Catalog::fetch(&api).await });
            }
            Some(found) = discovering.join_next() => {
                if let Some(again) = watcher.on_discovery(found.unwrap_or_else(|error| Err(Fault::broken(&error))), &mut retry) {
                    next_discovery = tokio::time::Instant::now() + again;
                }
            }
            Some(()) = definitions.recv() => {
                next_discovery = next_discovery.min(tokio::time::Instant::now() + DISCOVER_SOON);
            }
            Ok(()) = wanted.changed() => {
                let now = wanted.borrow_and_update().clone();
                watcher.want(&now);
            }
            () = sleep_until(due) => {}
            () = updates.closed() => return,
        }
        if std::mem::take(&mut watcher.in_doubt) {
            next_discovery = next_discovery.min(tokio::time::Instant::now() + DISCOVER_SOON);
        }
        if let Some(update) = watcher.update(Instant::now())
            && updates.send(update).await.is_err()
        {
            return;
        }
    }
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// One kind, or one object of it, that is watched.
struct Row {
    known: Known,
    scope: Scope,
    served: watch::Sender<Option<Served>>,
    /// `None` until the reflector has said something.
    state: Option<State>,
    diagnostics: Vec<Diagnostic>,
    /// In how many discoveries in a row it was missing.
    missing: u32,
    /// Nobody wants it any more: it goes as soon as its objects have been told to be gone.
    retired: bool,
}

impl Row {
    /// Whether its objects are known, or it is known that they cannot be had.
    fn is_settled(&self) -> bool {
        match &self.state {
            None => false,
            Some(State::Watching | State::Idle) => true,
            // Without services and endpoints nothing would be right; other kinds may be none of ours
            // to read.
            Some(State::Failing(fault)) => {
                let needed =
                    matches!(self.known.reads, Some(Kind::Service | Kind::EndpointSlice | Kind::Pod));
                !needed && matches!(fault.code(), 403 | 404)
            }
        }
    }
}

/// What is watched, and what of it was told.
struct Watcher {
    cluster: Cluster,
    tell: mpsc::Sender<Told>,
    rows: BTreeMap<usize, Row>,
    next: usize,
    reflectors: JoinSet<()>,
    /// Those that wait for the first discovery.
    waiting: Vec<Reflector>,
    rng: Rng,
    /// What was told before everything was known.
    early: Option<Vec<Change>>,
    discovered: bool,
    discovery_fault: Option<Fault>,
    wanted: Wanted,
    urgent: Vec<Change>,
    /// Told with the changes of the same objects.
    gone: Vec<ObjectRef>,
    fold: Fold,
    /// The diagnostics as told last, and whether they may have changed.
    diagnostics: Arc<Vec<Diagnostic>>,
    stale: bool,
    /// Whether a kind seems to be gone.
    in_doubt: bool,
}

impl Watcher {
    fn new(cluster: Cluster, tell: mpsc::Sender<Told>) -> Watcher {
        let mut watcher = Watcher {
            rows: BTreeMap::new(),
            next: 0,
            reflectors: JoinSet::new(),
            waiting: Vec::new(),
            rng: Rng::from_entropy(),
            early: Some(Vec::new()),
            discovered: false,
            discovery_fault: None,
            wanted: Wanted::default(),
            urgent: Vec::new(),
            gone: Vec::new(),
            fold: Fold::default(),
            diagnostics: Arc::default(),
            stale: false,
            in_doubt: false,
            tell,
            cluster,
        };
        let root = watcher.cluster.root_namespace.clone();
        let mesh = watcher.cluster.mesh_config_map.clone();
        for known in watched() {
            match known.reads {
                // Those that are wanted come later.
                Some(Kind::Secret) => {}
                Some(Kind::ConfigMap) => {
                    watcher.add(known, Scope { namespace: root.clone(), name: mesh.clone() });
                }
                _ => watcher.add(known, Scope::default()),
            }
        }
        watcher
    }

    /// Begins to watch something.
    fn add(&mut self, known: Known, scope: Scope) {
        let found = self.cluster.catalog.borrow().find(&known).cloned();
        let (served, receiver) = watch::channel(found);
        let is_mesh = known.reads == Some(Kind::ConfigMap)
            && scope.name == self.cluster.mesh_config_map
            && scope.namespace == self.cluster.root_namespace;
        let revision = self.cluster.revision.clone();
        let objects = Objects::new(revision, is_mesh.then_some(read::MESH_CONFIG_MAP));
        let reflector = Reflector {
            index: self.next,
            api: self.cluster.api.clone(),
            scope: scope.clone(),
            tells: known.reads.filter(|kind| *kind == Kind::Namespace || book::tells(&known)),
            served: receiver,
            tell: self.tell.clone(),
            backoff: self.cluster.backoff(self.rng.fork()),
            objects,
            failing: false,
        };
        if self.discovered {
            self.reflectors.spawn(reflector.run());
        } else {
            // It would tell that its kind is not served, which is not known yet.
            self.waiting.push(reflector);
        }
        let row =
            Row { known, scope, served, state: None, diagnostics: Vec::new(), missing: 0, retired: false };
        self.rows.insert(self.next, row);
        self.next += 1;
    }

    /// Watches what is wanted now, and no longer what is not.
    fn want(&mut self, wanted: &Wanted) {
        // Those that have ended.
        while self.reflectors.try_join_next().is_some() {}
        let scope_of = |key: &Key| Scope { namespace: key.namespace.clone(), name: key.name.clone() };
        for (kind, key) in self.wanted.0.difference(&wanted.0) {
            let scope = scope_of(key);
            let gone =
                self.rows.values_mut().filter(|row| row.known.reads == Some(*kind) && row.scope == scope);
            for row in gone {
                row.retired = true;
                row.served.send_replace(None);
            }
        }
        let fresh: Vec<(Kind, Key)> = wanted.0.difference(&self.wanted.0).cloned().collect();
        for (kind, key) in fresh {
            let scope = scope_of(&key);
            let mut retired = self.rows.values_mut().filter(|row| row.retired);
            if let Some(row) = retired.find(|row| row.known.reads == Some(kind) && row.scope == scope) {
                // It goes on: a second reflector might speak before the first has told of its end.
                row.retired = false;
                row.missing = 0;
                row.served.send_replace(self.cluster.catalog.borrow().find(&row.known).cloned());
                continue;
            }
            if let Some(known) = watched().find(|known| known.reads == Some(kind)) {
                self.add(known, scope);
            }
        }
        self.wanted.clone_from(wanted);
    }

    fn on_told(&mut self, told: Told) {
        let Some(row) = self.rows.get_mut(&told.from) else { return };
        if let Some(diagnostics) = told.diagnostics {
            row.diagnostics = diagnostics;
            self.stale = true;
        }
        if row.state.as_ref() != Some(&told.state) {
            if let State::Failing(fault) = &told.state {
                tracing::debug!(kind = row.known.kind, %fault, "a watch fails");
                self.in_doubt |= fault.code() == 404;
            }
            row.state = Some(told.state);
            self.stale = true;
        }
        if row.retired && row.state == Some(State::Idle) {
            self.rows.remove(&told.from);
        }
        self.gone.extend(told.gone);
        match &mut self.early {
            Some(early) => early.extend(told.changes),
            None => self.urgent.extend(self.fold.push(told.changes, Instant::now())),
        }
    }

    /// Takes in what is served; when to ask again if that is sooner than usual.
    fn on_discovery(&mut self, found: Result<Catalog, Fault>, retry: &mut Backoff) -> Option<Duration> {
        let catalog = match found {
            Ok(catalog) => catalog,
            Err(fault) => {
                if self.discovery_fault.as_ref() != Some(&fault) {
                    tracing::warn!(%fault, "cannot ask the cluster what it serves");
                    self.discovery_fault = Some(fault);
                    self.stale = true;
                }
                return Some(retry.next_wait());
            }
        };
        retry.reset();
        self.stale |= self.discovery_fault.take().is_some();
        let mut again = None;
        for row in self.rows.values_mut().filter(|row| !row.retired) {
            let now = catalog.find(&row.known).cloned();
            let was = row.served.borrow().clone();
            row.missing = if now.is_none() { row.missing + 1 } else { 0 };
            if now.is_none() && was.is_some() && row.missing < MISSING {
                // A server that has just started may not know all of its kinds yet.
                again = Some(DISCOVER / 10);
                continue;
            }
            if now != was {
                if let (Some(served), true) = (&now, self.discovered) {
                    tracing::info!(kind = served.kind, version = served.api_version, "is served now");
                }
                row.served.send_replace(now);
            }
        }
        self.discovered = true;
        for reflector in self.waiting.drain(..) {
            self.reflectors.spawn(reflector.run());
        }
        self.cluster.catalog.send_replace(catalog);
        again
    }

    /// What there is to tell, if anything.
    fn update(&mut self, now: Instant) -> Option<Update> {
        if let Some(early) = &mut self.early {
            if !self.discovered || !self.rows.values().all(Row::is_settled) {
                return None;
            }
            let changes = std::mem::take(early);
            self.early = None;
            self.refresh();
            tracing::info!(objects = changes.len(), "the cluster is known");
            // Nobody was told of any object before.
            self.gone.clear();
            let diagnostics = Arc::clone(&self.diagnostics);
            return Some(Update { changes, diagnostics, ..Update::default() });
        }
        let mut changes = std::mem::take(&mut self.urgent);
        let since = self.fold.since();
        let waited = self.fold.take(now);
        let since = since.filter(|_| !waited.is_empty());
        changes.extend(waited);
        // What is wrong is told with the changes that it comes from, not before.
        let waits = self.fold.due().is_some();
        let news = !waits && std::mem::take(&mut self.stale) && self.refresh();
        let gone = if waits { Vec::new() } else { std::mem::take(&mut self.gone) };
        (news || !changes.is_empty() || !gone.is_empty()).then(|| Update {
            changes,
            gone,
            diagnostics: Arc::clone(&self.diagnostics),
            since,
        })
    }

    /// Gathers what is wrong; whether that is something else than before.
    fn refresh(&mut self) -> bool {
        let mut all: Vec<Diagnostic> = Vec::new();
        let mut unreachable = self.discovery_fault.clone();
        for row in self.rows.values() {
            all.extend(row.diagnostics.iter().cloned());
            if let Some(State::Failing(fault)) = &row.state {
                // That the server is away is one fault, not one for each kind.
                if matches!(fault.code(), 400..=499) {
                    all.push(diagnostic(row.known.kind, &row.scope, fault));
                } else {
                    unreachable.get_or_insert_with(|| fault.clone());
                }
            }
        }
        if let Some(fault) = unreachable {
            all.push(diagnostic("", &Scope::default(), &fault));
        }
        all.sort_by(|a, b| {
            (&a.kind, &a.namespace, &a.name, &a.path).cmp(&(&b.kind, &b.namespace, &b.name, &b.path))
        });
        let news = *self.diagnostics != all;
        if news {
            self.diagnostics = Arc::new(all);
        }
        news
    }
}

/// Says so whenever a CustomResourceDefinition comes, changes or goes. Where that may not be watched
/// there is the look every now and then.
async fn watch_definitions(cluster: Cluster, defined: mpsc::Sender<()>) {
    const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=true&timeoutSeconds=300&resourceVersion=0";
    const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
    let mut wait = cluster.backoff(Rng::from_entropy());
    while !defined.is_closed() {
        let since = Instant::now();
        if let Ok(mut lines) = cluster.api.lines(PATH, METADATA).await {
            while let Ok(Some(_)) = lines.next().await {
                // A full channel has been told already.
                let _ = defined.try_send(());
            }
        }
        if since.elapsed() > Duration::from_secs(1) {
            wait.reset();
        }
        tokio::time::sleep(wait.next_wait()).await;
    }
}
