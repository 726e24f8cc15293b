//! The system calls that have no safe wrapper, the only `unsafe` code of this crate: `clone` into new
//! namespaces, preparing a child between `fork` and `exec`, taking over an inherited file, `waitid`.
//!
//! Between `clone`/`fork` and `exec` the child is a copy of one thread of a process that may have many: it must
//! not allocate, lock or panic, since another thread may have held the allocator's lock at that moment. What
//! runs there is marked *after fork* and uses prepared memory and plain system calls only.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, LinkNameSpaceType, Uid, UnshareFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The namespaces of a node's inner process, except for the user namespace.
pub(crate) const NODE_NAMESPACES: i32 =
    libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;

/// A child made by [`clone_child`].
pub(crate) struct Cloned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// Makes a child in the new namespaces of `flags` (`CLONE_NEW*`), which runs `body` and ends with the code that
/// it returns.
///
/// # Safety
///
/// `body` runs *after fork*: see the module's header.
pub(crate) unsafe fn clone_child(flags: i32, body: impl FnOnce() -> i32) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = i64::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with no stack given this is `fork`: the child runs on its own copy of this
    // stack. CLONE_PIDFD writes one file number to `pidfd`, which lives until after the call.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut pidfd, 0_usize, 0_usize) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if result == 0 {
        let code = body();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    // SAFETY: the kernel opened this file for us, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(result).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    Ok(Cloned { pid, pidfd })
}

/// The user and group maps of a new user namespace in which the caller is root.
pub(crate) struct IdMaps {
    users: String,
    groups: String,
}

impl IdMaps {
    pub(crate) fn of_caller() -> IdMaps {
        IdMaps {
            users: format!("0 {} 1\n", rustix::process::geteuid().as_raw()),
            groups: format!("0 {} 1\n", rustix::process::getegid().as_raw()),
        }
    }

    /// Writes the maps of the calling process. *After fork.*
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        // Groups can only be mapped once setgroups(2) is denied for good: user_namespaces(7).
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", self.users.as_bytes())?;
        write_file(c"/proc/self/gid_map", self.groups.as_bytes())
    }
}

/// Writes a file that exists. *After fork* safe.
pub(crate) fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, FileMode::empty())?;
    rustix::io::write(file, bytes).map(|_| ())
}

/// Makes all mounts private, so that what is mounted here is seen nowhere else. *After fork* safe.
pub(crate) fn make_mounts_private() -> Result<(), Errno> {
    rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Mounts the /proc of this process's pid namespace over the old one. *After fork* safe.
pub(crate) fn mount_proc() -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(c"proc", c"/proc", c"proc", flags, None::<&CStr>)
}

/// A program with its arguments and its whole environment, ready for `execve` without allocating.
pub(crate) struct Program {
    path: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    pub(crate) fn new(
        path: &OsStr,
        argv: &[OsString],
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> io::Result<Program> {
        let c = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::from);
        Ok(Program {
            path: c(path.as_bytes().to_vec())?,
            argv: argv.iter().map(|arg| c(arg.as_bytes().to_vec())).collect::<io::Result<_>>()?,
            environment: environment
                .into_iter()
                .map(|(name, value)| {
                    let mut entry = name.into_vec();
                    entry.push(b'=');
                    entry.extend(value.into_vec());
                    c(entry)
                })
                .collect::<io::Result<_>>()?,
        })
    }

    /// The arrays of pointers that `execve` takes; they must not outlive the program.
    pub(crate) fn pointers(&self) -> ProgramPointers<'_> {
        let list = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        ProgramPointers { path: &self.path, argv: list(&self.argv), environment: list(&self.environment) }
    }
}

/// See [`Program::pointers`].
pub(crate) struct ProgramPointers<'a> {
    path: &'a CStr,
    argv: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
}

impl ProgramPointers<'_> {
    /// Becomes the program; returns only if that fails. *After fork.*
    pub(crate) fn exec(&self) -> Errno {
        // SAFETY: an all-zero sigset_t is a valid, empty set on Linux; the call reads it and writes nothing.
        unsafe {
            let none: libc::sigset_t = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        }
        // SAFETY: three pointers to zero-terminated strings and arrays that the program owns.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.environment.as_ptr()) };
        Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
    }
}

/// Takes over a file that the parent process left open for this one, and closes it on `exec`.
///
/// # Safety
///
/// The caller must be the only one to take it, and the number must be of an open file.
pub(crate) unsafe fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: by contract this number is an open file that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Registers a pidfd with the runtime: it becomes readable when its process has ended.
pub(crate) fn watch(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the file is owned, and neither closed nor replaced while the registration holds it.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Whether a file with this number is open.
pub(crate) fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD reads the flags of whatever the number stands for, and fails on a closed one.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Waits until some child has ended, and says which, leaving it to be waited for. `ECHILD`: there is none.
pub(crate) fn await_ended_child() -> io::Result<Pid> {
    // SAFETY: siginfo_t is plain data for which zeroes are valid; waitid fills it in.
    let (result, pid) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let result = libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT);
        (result, info.si_pid())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Pid::from_raw(pid).ok_or_else(|| Errno::CHILD.into())
}

/// The namespaces of a pod, held open.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) net: OwnedFd,
    pub(crate) mount: OwnedFd,
    pub(crate) host_name: OwnedFd,
}

impl Namespaces {
    /// Makes the *calling thread* a member of new network, mount and UTS namespaces, and opens them. Only for
    /// a thread that ends soon after.
    pub(crate) fn unshare() -> io::Result<Namespaces> {
        // SAFETY: the table of open files is not among what is unshared.
        unsafe {
            rustix::thread::unshare_unsafe(
                UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::FS,
            )?;
        }
        let open = |path: &CStr| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty());
        Ok(Namespaces {
            net: open(c"/proc/thread-self/ns/net")?,
            mount: open(c"/proc/thread-self/ns/mnt")?,
            host_name: open(c"/proc/thread-self/ns/uts")?,
        })
    }

    /// Makes the *calling thread* a member of a new mount namespace that begins as this one. Only for a thread
    /// that ends soon after.
    pub(crate) fn fork_mounts(&self) -> Result<(), Errno> {
        // SAFETY: the table of open files is not among what is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
        setns(self.mount.as_fd(), LinkNameSpaceType::Mount)?;
        // SAFETY: as above.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
    }

    /// Makes the *calling thread* a member of the network namespace.
    pub(crate) fn join_network(&self) -> Result<(), Errno> {
        setns(self.net.as_fd(), LinkNameSpaceType::Network)
    }

    /// Makes the calling, single-threaded process a member of all, but of another mount namespace if one is
    /// given. *After fork.*
    fn join(&self, mount: Option<&OwnedFd>) -> Result<(), Errno> {
        // The mount namespace last: the others' files are open already, and it resets the working directory.
        setns(self.net.as_fd(), LinkNameSpaceType::Network)?;
        setns(self.host_name.as_fd(), LinkNameSpaceType::HostNameAndNISDomainName)?;
        setns(mount.unwrap_or(&self.mount).as_fd(), LinkNameSpaceType::Mount)
    }
}

/// Makes the *calling thread* a member of the network namespace that a file stands for.
pub(crate) fn join_network(file: BorrowedFd<'_>) -> Result<(), Errno> {
    setns(file, LinkNameSpaceType::Network)
}

/// Opens the mount namespace of the calling thread.
pub(crate) fn own_mounts() -> Result<OwnedFd, Errno> {
    rustix::fs::open(c"/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty())
}

fn setns(fd: BorrowedFd<'_>, kind: LinkNameSpaceType) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(fd, Some(kind))
}

/// What a child does with itself between `fork` and `exec`.
pub(crate) struct Preparation {
    pub(crate) namespaces: Option<Arc<Namespaces>>,
    /// A mount namespace instead of that of `namespaces`.
    pub(crate) mount: Option<Arc<OwnedFd>>,
    pub(crate) directory: Option<CString>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// `None`: as the parent has them.
    pub(crate) capabilities: Option<CapabilitySet>,
    /// Whether setgroups(2) is allowed: not in a user namespace.
    pub(crate) drop_groups: bool,
}

/// Makes a command do the preparation in the child.
pub(crate) fn prepare(command: &mut Command, preparation: Preparation) {
    let parent = rustix::process::getpid();
    // SAFETY: `Preparation::apply` is made for after `fork`.
    unsafe {
        command.pre_exec(move || preparation.apply(parent).map_err(io::Error::from));
    }
}

/// Lets a child be killed when the thread that starts it ends, and so when its process does, however that ends. The
/// thread has to stay for as long as the child may.
pub fn die_with_thread(command: &mut Command) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(Errno::SRCH.into()), // the parent was gone before it could be watched
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe {
        command.pre_exec(prepare);
    }
}

impl Preparation {
    /// *After fork.*
    fn apply(&self, parent: Pid) -> Result<(), Errno> {
        rustix::process::setsid()?;
        if let Some(namespaces) = &self.namespaces {
            namespaces.join(self.mount.as_deref())?;
        }
        if let Some(directory) = &self.directory {
            rustix::process::chdir(directory.as_c_str())?;
        }
        self.change_identity()?;
        // After the change of user, which clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(Errno::SRCH); // the parent was gone before it could be watched
        }
        Ok(())
    }

    fn change_identity(&self) -> Result<(), Errno> {
        if let Some(kept) = self.capabilities {
            for bit in 0..64 {
                let capability = CapabilitySet::from_bits_retain(1 << bit);
                if kept.contains(capability) {
                    continue;
                }
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // EINVAL: past the last capability of this kernel. EPERM: not ours to drop, as when the
                    // runner is an ordinary user in the host's namespaces; then there is none to keep either.
                    Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        let stays_root = self.uid.is_none_or(|uid| uid == 0);
        if self.uid.is_some() || self.gid.is_some() {
            if !stays_root && self.capabilities.is_some() {
                rustix::thread::set_keep_capabilities(true)?;
            }
            if self.drop_groups {
                rustix::thread::set_thread_groups(&[])?;
            }
            if let Some(gid) = self.gid {
                let gid = Gid::from_raw(gid);
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            }
            if let Some(uid) = self.uid {
                let uid = Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            }
        }
        if let Some(kept) = self.capabilities {
            let now = rustix::thread::capabilities(None)?;
            let kept = kept & now.permitted;
            let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
            rustix::thread::set_capabilities(None, sets)?;
            rustix::thread::clear_ambient_capability_set()?;
            if !stays_root {
                // Without root's privilege only ambient capabilities survive `exec`: capabilities(7).
                for bit in 0..64 {
                    let capability = CapabilitySet::from_bits_retain(1 << bit);
                    if kept.contains(capability) {
                        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Runs a closure on the one thread that lasts as long as this process, and waits for it. Children are made
/// there, because the "parent death" signal is sent when the *thread* that made a child ends.
pub(crate) fn on_lasting_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    static WORK: OnceLock<mpsc::Sender<Box<dyn FnOnce() + Send>>> = OnceLock::new();
    let queue = WORK.get_or_init(|| {
        let (queue, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        // If the thread cannot be started the receiver is gone, and each use reports it below.
        let _ = thread::Builder::new().name("spawner".into()).spawn(move || {
            for job in jobs {
                job();
            }
        });
        queue
    });
    let (answer, result) = mpsc::sync_channel(1);
    let job = Box::new(move || {
        let _ = answer.send(work());
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    queue.send(job).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())
}

/// Runs on a thread that ends with the work, since what the work does to its namespaces cannot be undone.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
