//! What a container sees of the files: the machine's, with files and folders of its own put over them, and with
//! what it writes elsewhere kept from everybody else.
//!
//! It is a mount namespace below the pod's, whose root is an overlay: the machine's root below, memory above, so
//! that places to mount on can be made without touching the machine. Folders of the machine on file systems of
//! their own (/proc, /dev, a /home) are the same as outside.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{During, NodeError};
use crate::pod::Pod;
use crate::sys::{self, on_thread};

/// Where the machine's root is for as long as a root is made.
const OUTSIDE: &str = "/.leno-outside";

/// A file or folder of the machine, put at a path of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// What of the machine, or of the node, by its absolute path.
    pub source: PathBuf,
    /// Where the container sees it; it is made if it is not there. What was there is hidden.
    pub target: PathBuf,
    /// Whether it cannot be written to by this way.
    pub read_only: bool,
}

/// A container's own view of the files. Clones are the same; it ends with the last of them and of the processes
/// that have it.
#[derive(Clone, Debug)]
pub struct Root {
    mount: Arc<OwnedFd>,
}

impl Root {
    /// Makes one below a pod's. `scratch` is an empty folder of its own, in which nothing will be seen from
    /// outside. Later binds lie over earlier ones. `read_only`: whether files outside of what is bound cannot be
    /// written to. Blocks for some milliseconds; takes [`crate::Mode::Root`], or a kernel that lets users mount
    /// overlays.
    ///
    /// # Errors
    /// The step that failed; what it had made is gone again.
    pub fn create(pod: &Pod, scratch: &Path, binds: &[Bind], read_only: bool) -> Result<Root, NodeError> {
        let step = || format!("pod {}: cannot start a thread", pod.name());
        on_thread(|| make(pod, scratch, binds, read_only)).during(step)?
    }

    pub(crate) fn mount(&self) -> Arc<OwnedFd> {
        self.mount.clone()
    }
}

/// On a thread that ends with it.
fn make(pod: &Pod, scratch: &Path, binds: &[Bind], read_only: bool) -> Result<Root, NodeError> {
    let failed = |what: &str| format!("pod {}: {what}", pod.name());
    pod.namespaces().fork_mounts().during(|| failed("cannot create a mount namespace"))?;
    sys::make_mounts_private().during(|| failed("cannot make mounts private"))?;
    // Links are followed as they are outside, which they could not be later.
    let mut resolved = Vec::new();
    for bind in binds {
        let step = || failed(&format!("cannot find {}", bind.source.display()));
        resolved.push((bind.source.canonicalize().during(step)?, bind));
    }
    let binds = resolved;
    let submounts = submounts(scratch).during(|| failed("cannot read the table of mounts"))?;
    let root = overlay(scratch).during(|| failed("cannot mount an overlay for a container's files"))?;
    for path in submounts {
        let target = root.join(path.strip_prefix("/").unwrap_or(&path));
        // One that is hidden by another, or gone, is not missed.
        let _ = rustix::mount::mount_bind_recursive(&path, &target);
    }
    let outside = root.join(OUTSIDE.trim_start_matches('/'));
    std::fs::create_dir(&outside)
        .and_then(|()| Ok(rustix::process::pivot_root(&root, &outside)?))
        .and_then(|()| Ok(rustix::process::chdir("/")?))
        .during(|| failed("cannot change a container's root"))?;
    if read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        // Places to mount on are made first.
        for (source, bind) in &binds {
            place(&outside_of(source), &bind.target)
                .during(|| failed(&format!("cannot make {}", bind.target.display())))?;
        }
        rustix::mount::mount_remount("/", flags, "").during(|| failed("cannot make the root read-only"))?;
    }
    for (source, bind) in &binds {
        let step = || failed(&format!("cannot mount {} on {}", bind.source.display(), bind.target.display()));
        mount(&outside_of(source), bind).during(step)?;
    }
    rustix::mount::unmount(OUTSIDE, UnmountFlags::DETACH)
        .during(|| failed("cannot leave the machine's root"))?;
    let _ = std::fs::remove_dir(OUTSIDE);
    let mount = sys::own_mounts().during(|| failed("cannot open a mount namespace"))?;
    Ok(Root { mount: Arc::new(mount) })
}

fn outside_of(source: &Path) -> PathBuf {
    Path::new(OUTSIDE).join(source.strip_prefix("/").unwrap_or(source))
}

/// Mounts an overlay of the machine's root and memory; returns where.
fn overlay(scratch: &Path) -> io::Result<PathBuf> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", scratch, "tmpfs", flags, Some(c"mode=0755"))?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scratch.join(name));
    for folder in [&upper, &work, &root] {
        std::fs::create_dir(folder)?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str())?;
    Ok(root)
}

/// The file systems mounted on the machine's root, topmost only, but for what is ours.
fn submounts(scratch: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mut found: Vec<PathBuf> = Vec::new();
    for path in table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape) {
        if path != Path::new("/") && !path.starts_with(scratch) {
            found.push(path);
        }
    }
    found.sort();
    found.dedup();
    let mut topmost: Vec<PathBuf> = Vec::new();
    for path in found {
        if !topmost.iter().any(|above| path.starts_with(above)) {
            topmost.push(path);
        }
    }
    Ok(topmost)
}

/// The kernel writes spaces and the like of paths as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = (*first == b'\\').then(|| after.get(..3)).flatten();
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|number| u8::from_str_radix(number, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                path.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from(String::from_utf8_lossy(&path).into_owned()))
}

/// Makes a target that is missing: a folder for a folder, an empty file for a file.
fn place(source: &Path, target: &Path) -> io::Result<()> {
    let plain = target.is_absolute() && !target.components().any(|part| part == Component::ParentDir);
    if !plain {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not an absolute path"));
    }
    let is_folder = std::fs::metadata(source)?.is_dir();
    if target.exists() {
        return Ok(());
    }
    if is_folder {
        return std::fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(target).map(|_| ())
}

fn mount(source: &Path, bind: &Bind) -> io::Result<()> {
    place(source, &bind.target)?;
    rustix::mount::mount_bind_recursive(source, &bind.target)?;
    if bind.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_remount(&bind.target, flags, "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn paths_of_the_table() {
        assert_eq!(super::unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(super::unescape(r"/a\x"), Path::new(r"/a\x"));
    }
}
