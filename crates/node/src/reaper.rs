//! Waiting for children. Each [`crate::Process`] waits for its own through a pidfd; the inner process, being
//! pid 1, also inherits every orphan of its node, and a thread here buries those.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions};

use crate::process::Exit;
use crate::sys;

/// The children that somebody waits for, and a count of changes to wait for the next one.
#[derive(Default)]
struct Children {
    own: Option<HashSet<Pid>>,
    changes: u64,
}

static CHILDREN: Mutex<Children> = Mutex::new(Children { own: None, changes: 0 });
static CHANGED: Condvar = Condvar::new();

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a child that its maker will wait for. The orphans' thread is held off until it knows the child, or it
/// could bury one that ends at once.
pub(crate) fn make_own<T>(make: impl FnOnce() -> io::Result<(Pid, T)>) -> io::Result<(Pid, T)> {
    let mut children = children();
    let (pid, value) = make()?;
    children.own.get_or_insert_default().insert(pid);
    children.changes += 1;
    CHANGED.notify_all();
    Ok((pid, value))
}

/// Says that a child of [`make_own`] has been waited for.
pub(crate) fn forget_own(pid: Pid) {
    let mut children = children();
    if let Some(own) = &mut children.own {
        own.remove(&pid);
    }
    children.changes += 1;
    CHANGED.notify_all();
}

/// Waits for the end of a child, and takes its status.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let signal = status.terminating_signal().map(Exit::Signal);
                return Ok(signal.or(status.exit_status().map(Exit::Code)).unwrap_or(Exit::Unknown));
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Starts the thread that buries orphans. Only for pid 1: it also takes the status of children that were made
/// in other ways than [`make_own`], such as `std::process::Command`.
pub(crate) fn bury_orphans() -> io::Result<()> {
    thread::Builder::new().name("orphans".into()).spawn(|| {
        loop {
            let seen = children().changes;
            match sys::await_ended_child() {
                Ok(pid) => {
                    let children = children();
                    if children.own.as_ref().is_some_and(|own| own.contains(&pid)) {
                        wait_for_change(children, seen); // it hides others until its owner has taken it
                    } else {
                        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::ECHILD) => wait_for_change(children(), seen),
                Err(_) => {}
            }
        }
    })?;
    Ok(())
}

fn wait_for_change(children: MutexGuard<'_, Children>, seen: u64) {
    let _unused = CHANGED.wait_while(children, |children| children.changes == seen);
}
