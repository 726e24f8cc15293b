//! The network namespaces of a node's pods, found by their addresses: runtimes keep them in places of their own,
//! but processes show them all.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use leno_node::intercept;

/// The namespace in which an address is, by the process that has been in it for longest: that of the sandbox, which
/// stays when containers crash.
///
/// # Errors
/// If processes cannot be listed, or none has the address.
pub(crate) fn namespace_of(procfs: &Path, address: IpAddr) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", procfs.display());
    let mut seen = BTreeSet::new();
    let mut inode = None;
    let mut oldest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(procfs).map_err(failed)?.map_while(Result::ok) {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        // Processes end at any time.
        let path = entry.path().join("ns/net");
        let Ok(number) = std::fs::metadata(&path).map(|file| file.ino()) else { continue };
        if inode.is_none() && seen.insert(number) {
            let here = intercept::within(&path, intercept::addresses);
            if here.is_ok_and(|addresses| addresses.is_ok_and(|list| list.contains(&address))) {
                inode = Some(number);
            }
        }
        if inode == Some(number) {
            let start = started(&entry.path()).unwrap_or(u64::MAX);
            if oldest.as_ref().is_none_or(|(other, _)| start < *other) {
                oldest = Some((start, path));
            }
        }
    }
    oldest.map(|(_, path)| path).ok_or_else(|| format!("no process of this node has the address {address}"))
}

/// When a process was started, in the kernel's ticks: field 22 of `/proc/PID/stat`, see proc(5). The second field may
/// have spaces and parentheses in it.
fn started(process: &Path) -> Option<u64> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn processes_have_a_start() {
        let own = super::started(Path::new("/proc/self")).expect("it has");
        let first = super::started(Path::new("/proc/1")).expect("it has");
        assert!(first <= own);
    }
}
