//! Things made of files, made anew when these change.
//!
//! The files are looked at when the thing is wanted: a connection is rare beside what it costs, and
//! nothing has to wait for a watch. What cannot be made leaves the last good one in use.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A thing, and the files that it is made of.
pub(super) struct Made<T> {
    paths: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// What the files looked like when they were last read.
    stamps: Vec<Option<Stamp>>,
    current: Arc<T>,
}

/// What tells a file from what it was: device, inode, length and time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, u64, i64, i64);

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let found = fs::metadata(path).ok()?;
        Some(Stamp(found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    }
}

impl<T> fmt::Debug for Made<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Made").field(&self.paths).finish()
    }
}

impl<T> Made<T> {
    /// Makes it for the first time.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub(super) fn new(
        paths: Vec<PathBuf>,
        make: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Made<T>, String> {
        // Looked at before they are read: what changes in between is seen the next time.
        let stamps = paths.iter().map(|path| Stamp::of(path)).collect();
        let state = State { stamps, current: Arc::new(make()?) };
        Ok(Made { paths, make: Box::new(make), state: Mutex::new(state) })
    }

    /// It, as the files are now.
    pub(super) fn current(&self) -> Arc<T> {
        let stamps: Vec<Option<Stamp>> = self.paths.iter().map(|path| Stamp::of(path)).collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps != state.stamps {
            match (self.make)() {
                Ok(made) => {
                    tracing::info!(files = ?self.paths, "read again");
                    state.current = Arc::new(made);
                }
                Err(error) => tracing::error!(error, "what was read before stays in use"),
            }
            state.stamps = stamps;
        }
        Arc::clone(&state.current)
    }
}

/// The content of a file.
///
/// # Errors
/// With its name.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Made, read};

    #[test]
    fn follows_its_file_as_long_as_it_is_good() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        let place = |text: &str| {
            let draft = folder.path().join("draft");
            std::fs::write(&draft, text).expect("writable");
            std::fs::rename(&draft, &path).expect("renamable");
        };
        let make = {
            let path = path.clone();
            move || {
                let text = String::from_utf8(read(&path)?).expect("text");
                text.parse::<u32>().map_err(|error| error.to_string())
            }
        };
        assert!(Made::new(vec![path.clone()], make.clone()).is_err());
        place("1");
        let made = Made::new(vec![path.clone()], make).expect("it is a number");
        assert_eq!(*made.current(), 1);
        place("x2");
        assert_eq!(*made.current(), 1);
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(*made.current(), 1);
        place("33");
        assert_eq!(*made.current(), 33);
    }
}
