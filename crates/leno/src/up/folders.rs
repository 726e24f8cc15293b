//! Watching the user's folders: tells of changes, after a moment in which nothing more happens.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::objects::{Folders, Objects};

/// How long nothing must happen for a change to be taken for complete.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a file may be gone or empty while an editor saves it.
const GRACE: Duration = Duration::from_millis(150);
/// How often to look without being told.
const POLL: Duration = Duration::from_secs(2);

/// Sends the objects of the folders: at once, and whenever they differ.
pub(crate) async fn watch(paths: Vec<PathBuf>, objects: mpsc::Sender<Objects>) {
    let (events, mut changed) = mpsc::channel(1);
    let mut watcher = watcher(events);
    let mut folders = Folders::default();
    let mut sent: Option<Objects> = None;
    loop {
        // Folders that were replaced or did not exist must be watched anew.
        if let Some(watcher) = &mut watcher {
            for path in &paths {
                let folder = if path.is_file() { path.parent() } else { Some(path.as_path()) };
                let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
            }
        }
        let read = folders.read(&paths);
        if sent.as_ref() != Some(&read) {
            if objects.send(read.clone()).await.is_err() {
                return;
            }
            sent = Some(read);
        }
        match timeout(POLL, changed.recv()).await {
            Ok(Some(())) => while let Ok(Some(())) = timeout(SETTLE, changed.recv()).await {},
            Ok(None) => tokio::time::sleep(POLL).await, // no notifications here
            Err(_) => {}
        }
        if folders.is_doubtful() {
            tokio::time::sleep(GRACE).await;
        }
        if objects.is_closed() {
            return;
        }
    }
}

fn watcher(events: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event, too, and not one to act on.
        if event.map_or(true, |event| !event.kind.is_access()) {
            // A full channel has been told already.
            let _ = events.try_send(());
        }
    });
    watcher.inspect_err(|e| tracing::warn!("no notifications of file changes, looking every 2 s: {e}")).ok()
}
