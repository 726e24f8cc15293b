//! The folder of a running mesh: its lock, its control socket, its files. It is gone when the mesh is.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// What the lock file says about its holder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) folders: Vec<String>,
}

/// The folder of all meshes.
pub(crate) fn base() -> PathBuf {
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    match of_user.filter(|path| path.is_dir()) {
        Some(path) => path.join("leno"),
        // A folder that others may write into: users must not meet in it.
        None => std::env::temp_dir().join(format!("leno-{}", user())),
    }
}

/// Who runs the mesh, as the host knows them: in a user namespace of the mesh they are root, and
/// the folder must be found from inside and outside.
fn user() -> u32 {
    let own = rustix::process::getuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(own, &map).unwrap_or(own)
}

/// The id outside of a user namespace of an id inside, by its map: lines of first id inside, first
/// id outside, how many.
fn outside(own: u32, map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = own.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

/// The folder of one mesh.
pub(crate) fn of(mesh: &str) -> PathBuf {
    base().join(mesh)
}

/// The control socket of one mesh.
pub(crate) fn socket(mesh: &str) -> PathBuf {
    of(mesh).join("control.sock")
}

/// The names of meshes that run: whose lock is held, for one that was killed leaves its folder.
pub(crate) fn running() -> Vec<String> {
    let is_held = |name: &String| {
        File::open(of(name).join("lock"))
            .is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
    };
    let entries = std::fs::read_dir(base()).into_iter().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(is_held).collect();
    names.sort();
    names
}

/// The folder of this mesh, held against others. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct RuntimeDir {
    path: PathBuf,
    _lock: File,
}

impl RuntimeDir {
    /// Makes the folder, or takes over what one that was killed has left.
    ///
    /// # Errors
    /// When a mesh of this name runs: which.
    pub(crate) fn take(mesh: &str, folders: &[PathBuf]) -> anyhow::Result<RuntimeDir> {
        let base = base();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711);
        builder.create(&base).with_context(|| format!("cannot create {}", base.display()))?;
        check_owner(&base)?;
        let path = base.join(mesh);
        builder.create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let file = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&file)
            .with_context(|| format!("cannot open {}", file.display()))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            lock.read_to_string(&mut text)?;
            match serde_json::from_str::<Holder>(&text) {
                Ok(holder) => bail!(
                    "mesh {mesh} runs already: process {}, on {}; end it with `leno stop`, or choose another --name",
                    holder.pid,
                    holder.folders.join(" "),
                ),
                Err(_) => bail!("mesh {mesh} is just being started by another leno up"),
            }
        }
        for entry in std::fs::read_dir(&path)?.flatten().filter(|entry| entry.file_name() != "lock") {
            let path = entry.path();
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
        let folders = folders.iter().map(|path| path.display().to_string()).collect();
        let holder = Holder { pid: std::process::id(), folders };
        lock.set_len(0)?;
        lock.rewind()?;
        lock.write_all(serde_json::to_string(&holder)?.as_bytes())?;
        Ok(RuntimeDir { path, _lock: lock })
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        // What cannot be removed is taken over by the next of this name.
        let _ = std::fs::remove_dir_all(&self.path);
        if let Some(base) = self.path.parent() {
            let _ = std::fs::remove_dir(base); // unless there are others
        }
    }
}

/// Refuses a folder that somebody else has put in our place.
fn check_owner(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::getuid().as_raw() {
        bail!("{} is not a folder of this user", path.display());
    }
    Ok(())
}

/// Whether any user may read (or execute) a file: it and all folders above it allow it.
pub(crate) fn is_open(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let mode = |path: &Path| -> io::Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode()) };
    path.ancestors().all(|path| mode(path).is_ok_and(|mode| mode & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::is_open;

    #[test]
    fn ids_are_those_of_the_host() {
        assert_eq!(super::outside(0, "         0      65534          1\n"), Some(65534));
        assert_eq!(super::outside(1000, "         0          0 4294967295\n"), Some(1000));
        assert_eq!(super::outside(5, "0 100 5\n5 7 1\n"), Some(7));
        assert_eq!(super::outside(6, "0 100 5\n"), None);
    }

    #[test]
    fn a_closed_folder_closes_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(!is_open(&inner));
        assert!(is_open("/".as_ref()));
    }
}
