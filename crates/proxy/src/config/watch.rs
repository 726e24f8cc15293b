//! Folders that files are moved into (inotify): how Envoy, and whoever configures it, replace files
//! atomically. One descriptor serves all watches.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// All watches. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Watches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    descriptor: AsyncFd<OwnedFd>,
    /// By watch descriptor: the kernel has one for each folder.
    folders: Mutex<HashMap<i32, Vec<Interest>>>,
}

#[derive(Debug)]
struct Interest {
    /// The only file of interest; `None`: any.
    file: Option<OsString>,
    /// Files that are written in place count too.
    modify: bool,
    moved: Arc<Notify>,
}

/// Ends a watch when it is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    watches: Watches,
    folder: i32,
    moved: Arc<Notify>,
}

impl Watches {
    /// Starts to watch, in a task of its own that ends with the last of the watches.
    ///
    /// # Errors
    /// The system's reason, e.g. too many users of inotify.
    pub(crate) fn start() -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "an OwnedFd stays the same descriptor as long as it lives")]
        let descriptor = AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)?;
        let watches = Self(Arc::new(Shared { descriptor, folders: Mutex::default() }));
        tokio::spawn(listen(watches.clone()));
        Ok(watches)
    }

    /// Notifies `moved` whenever this file, or any if there is none, has been moved into the folder,
    /// or with `modify` written in place.
    ///
    /// # Errors
    /// E.g. there is no such folder.
    pub(crate) fn watch(
        &self,
        folder: &Path,
        file: Option<&OsStr>,
        modify: bool,
        moved: &Arc<Notify>,
    ) -> io::Result<Watched> {
        let mut folders = self.0.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flags = WatchFlags::MOVED_TO | WatchFlags::MASK_ADD;
        flags.set(WatchFlags::MODIFY, modify);
        let id = inotify::add_watch(self.0.descriptor.get_ref(), folder, flags)?;
        let interest = Interest { file: file.map(OsStr::to_owned), modify, moved: Arc::clone(moved) };
        folders.entry(id).or_default().push(interest);
        Ok(Watched { watches: self.clone(), folder: id, moved: Arc::clone(moved) })
    }

    fn tell(&self, folder: i32, file: Option<&CStr>, moved: bool) {
        let folders = self.0.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let file = file.map(|file| OsStr::from_bytes(file.to_bytes()));
        for interest in folders.get(&folder).into_iter().flatten() {
            let of_interest = interest.file.is_none() || interest.file.as_deref() == file;
            if of_interest && (moved || interest.modify) {
                interest.moved.notify_one();
            }
        }
    }

    /// Tells of everything that has happened.
    fn read(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.0.descriptor.get_ref(), &mut buffer);
        loop {
            let event = reader.next()?;
            self.tell(event.wd(), event.file_name(), event.events().contains(ReadFlags::MOVED_TO));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut folders = self.watches.0.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(interests) = folders.get_mut(&self.folder) else { return };
        if let Some(position) = interests.iter().position(|other| Arc::ptr_eq(&other.moved, &self.moved)) {
            interests.swap_remove(position);
        }
        if interests.is_empty() {
            folders.remove(&self.folder);
            // It may be gone already, with the folder.
            let _ = inotify::remove_watch(self.watches.0.descriptor.get_ref(), self.folder);
        }
    }
}

async fn listen(watches: Watches) {
    loop {
        let Ok(mut ready) = watches.0.descriptor.readable().await else { return };
        match watches.read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(target: "config", %error, "files are not watched any more");
                return;
            }
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::Watches;

    #[tokio::test]
    async fn what_is_moved_into_place_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let watches = Watches::start().unwrap();
        let (one, any, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let _one = watches.watch(folder.path(), Some(OsStr::new("one")), false, &one).unwrap();
        let _any = watches.watch(folder.path(), None, false, &any).unwrap();
        drop(watches.watch(folder.path(), None, false, &gone).unwrap());
        let put = |name: &str| {
            let temporary = folder.path().join("temporary");
            std::fs::write(&temporary, "text").unwrap();
            std::fs::rename(temporary, folder.path().join(name)).unwrap();
        };
        put("two");
        any.notified().await;
        put("one");
        one.notified().await;
        any.notified().await;
        // Written in place: that may be half of it.
        std::fs::write(folder.path().join("one"), "more").unwrap();
        put("three");
        any.notified().await;
        let told = |notify: Arc<Notify>| async move {
            tokio::select! { biased; () = notify.notified() => true, () = std::future::ready(()) => false }
        };
        let modified = Arc::new(Notify::new());
        let _modified = watches.watch(folder.path(), None, true, &modified).unwrap();
        std::fs::write(folder.path().join("one"), "again").unwrap();
        modified.notified().await;
        assert!(!told(one).await && !told(any).await && !told(gone).await);
        assert!(watches.watch(&folder.path().join("none"), None, false, &Arc::new(Notify::new())).is_err());
    }
}
