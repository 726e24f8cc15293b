//! The task that keeps [`Files`] up to date: it is told of changes by the operating system, and
//! looks by itself now and then in case it was not told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Update;
use super::files::{Files, Look};
use super::fold::Fold;
use crate::model::ObjectRef;

/// How long the file system must be quiet before a scan, so that a file is seen when it is whole.
const SETTLE: Duration = Duration::from_millis(10);

/// How long a scan waits for that at most.
const MOST_SETTLE: Duration = Duration::from_millis(50);

/// How often to look without being told.
const POLL: Duration = Duration::from_secs(2);

/// How often to look where nothing tells: on file systems without notifications.
const POLL_ONLY: Duration = Duration::from_millis(300);

/// From so many changed files on all are looked at.
const MANY: usize = 1000;

/// How soon to look again at a file that seems to be gone or empty.
const DOUBT: Duration = Duration::from_millis(110);

/// Runs until the receiver of the updates is gone. The first update is sent at once, changes or not.
/// Objects that are asked for are told again.
pub(crate) async fn run(
    mut files: Files,
    mut retell: mpsc::UnboundedReceiver<ObjectRef>,
    updates: mpsc::Sender<Update>,
) {
    let (events, mut changed) = mpsc::channel(1);
    let mut watcher = Watch::new(files.roots(), events);
    let mut fold = Fold::default();
    // The first read is whole: nothing is served before it, so nothing is gained by waiting.
    let changes = files.scan(Look::Inside, Instant::now());
    let mut told = files.diagnostics();
    let mut took = Duration::ZERO;
    let update = Update { changes, diagnostics: files.diagnostics(), ..Update::default() };
    if updates.send(update).await.is_err() {
        return;
    }
    loop {
        // Looking at many files takes long, and is not worth much where notifications work.
        let poll = if watcher.works() { POLL.max(took * 100) } else { POLL_ONLY };
        let poll = if files.is_doubtful() { DOUBT.min(poll) } else { poll };
        let due = fold.due().map(tokio::time::Instant::from_std);
        let found = tokio::select! {
            Some(reference) = retell.recv() => {
                let change = files.retell(&reference);
                let changes = change.into_iter().collect();
                let update = Update { changes, diagnostics: files.diagnostics(), ..Update::default() };
                if updates.send(update).await.is_err() {
                    return;
                }
                continue;
            }
            Some(()) = changed.recv() => {
                settle(&mut changed).await;
                match watcher.take() {
                    Changed::All => files.scan(Look::Inside, Instant::now()),
                    Changed::Some(paths) => files.scan_some(&paths, Instant::now()),
                }
            }
            () = tokio::time::sleep(poll) => {
                watcher.retry(files.roots());
                let start = Instant::now();
                let found = files.scan(Look::Outside, start);
                took = start.elapsed();
                found
            }
            () = sleep_until(due) => Vec::new(),
            () = updates.closed() => return,
        };
        let now = Instant::now();
        let mut changes = fold.push(found, now);
        let since = fold.since();
        let waited = fold.take(now);
        let since = since.filter(|_| !waited.is_empty());
        changes.extend(waited);
        let diagnostics = files.diagnostics();
        if changes.is_empty() && diagnostics == told {
            continue;
        }
        told.clone_from(&diagnostics);
        if updates.send(Update { changes, diagnostics, since, ..Update::default() }).await.is_err() {
            return;
        }
    }
}

/// Waits until no event has come for a moment, or too long.
async fn settle(changed: &mut mpsc::Receiver<()>) {
    let most = tokio::time::Instant::now() + MOST_SETTLE;
    loop {
        let quiet = tokio::time::Instant::now() + SETTLE;
        match tokio::time::timeout_at(quiet.min(most), changed.recv()).await {
            Ok(Some(())) if tokio::time::Instant::now() < most => {}
            _ => return,
        }
    }
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Which files are to be looked at.
#[derive(Debug)]
enum Changed {
    All,
    Some(BTreeSet<PathBuf>),
}

impl Changed {
    fn note(&mut self, event: notify::Result<notify::Event>) {
        match (&mut *self, event) {
            (Changed::All, _) => {}
            // Such as that more has happened than could be told.
            (_, Err(_)) => *self = Changed::All,
            (_, Ok(event)) if event.need_rescan() || event.paths.is_empty() => *self = Changed::All,
            (Changed::Some(paths), Ok(event)) => {
                paths.extend(event.paths);
                if paths.len() > MANY {
                    *self = Changed::All;
                }
            }
        }
    }
}

/// The operating system's notifications, for folders that may not be there yet.
struct Watch {
    watcher: Option<RecommendedWatcher>,
    changed: Arc<Mutex<Changed>>,
    missing: Vec<PathBuf>,
    /// Keeps the channel open where there is no watcher.
    _open: mpsc::Sender<()>,
}

impl Watch {
    fn new(roots: &[PathBuf], events: mpsc::Sender<()>) -> Watch {
        let tell = events.clone();
        let changed = Arc::new(Mutex::new(Changed::Some(BTreeSet::new())));
        let note = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and not one to act on: the scan itself reads.
            if event.as_ref().map_or(true, |event| !event.kind.is_access()) {
                note.lock().unwrap_or_else(PoisonError::into_inner).note(event);
                // A full channel has been told already.
                let _ = tell.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "no notifications of file changes, polling instead"))
            .ok();
        let mut watch = Watch { watcher, changed, missing: roots.to_vec(), _open: events };
        watch.retry(roots);
        watch
    }

    /// What has changed since the last time.
    fn take(&self) -> Changed {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut changed, Changed::Some(BTreeSet::new()))
    }

    /// Whether all folders are watched.
    fn works(&self) -> bool {
        self.watcher.is_some() && self.missing.is_empty()
    }

    /// Watches folders that are not watched yet, and again those that have been replaced.
    fn retry(&mut self, roots: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        self.missing.extend(roots.iter().filter(|root| !root.exists()).cloned());
        self.missing.sort();
        self.missing.dedup();
        self.missing.retain(|root| {
            // A file is watched by way of its folder, as editors replace files.
            let folder = if root.is_file() { root.parent().unwrap_or(Path::new(".")) } else { root };
            watcher.watch(folder, RecursiveMode::NonRecursive).is_err()
        });
    }
}
