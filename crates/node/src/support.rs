//! What this machine allows: a real attempt, in a child that ends at once, at everything that a node needs.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::link::Peer;
use crate::netlink::{Request, Socket};
use crate::redirect::Redirect;
use crate::rules::Family;
use crate::sys::{self, IdMaps};
use crate::{link, nft};

/// How the namespaces of a node are owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By root. Pods may use any user; a proxy is known by its user (1337).
    Root,
    /// By an ordinary user, as root of a user namespace of its own. Only the user 0 exists in it, so a proxy is
    /// known by the mark (1337) of its sockets, and processes must not ask for another user.
    User,
}

/// Whether [`crate::Outer::start`] can work here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It can, this way.
    Namespaces(Mode),
    /// It cannot.
    None {
        /// What failed and why, for people: one attempt per line.
        reason: String,
    },
}

/// Tries what a node needs: namespaces, mounts, a veth pair, nf_tables. Takes some milliseconds and
/// leaves nothing behind. As root it prefers to do without a user namespace.
pub fn support() -> Support {
    let mut reasons = Vec::new();
    for mode in [Mode::Root, Mode::User] {
        match probe(mode) {
            Ok(()) => return Support::Namespaces(mode),
            Err(failure) => reasons.push(format!("{mode}: {failure}")),
        }
    }
    Support::None { reason: reasons.join("\n") }
}

/// What a child was doing when it failed; it goes to the parent as one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Clone,
    MapUsers,
    PrivateMounts,
    MountProc,
    OpenSocket,
    AddVeth,
    Redirect,
    Forward,
    Watch,
    PassFile,
    Execute,
}

impl Step {
    const ALL: [Step; 11] = [
        Step::Clone,
        Step::MapUsers,
        Step::PrivateMounts,
        Step::MountProc,
        Step::OpenSocket,
        Step::AddVeth,
        Step::Redirect,
        Step::Forward,
        Step::Watch,
        Step::PassFile,
        Step::Execute,
    ];

    fn words(self) -> &'static str {
        match self {
            Step::Clone => "cannot create namespaces",
            Step::MapUsers => "cannot become root of a user namespace",
            Step::PrivateMounts => "cannot make mounts private",
            Step::MountProc => "cannot mount /proc",
            Step::OpenSocket => "cannot open a netlink socket",
            Step::AddVeth => "cannot add a veth pair",
            Step::Redirect => "cannot install redirection rules (nf_tables)",
            Step::Forward => "cannot turn on forwarding",
            Step::Watch => "cannot tie the child's life to its parent's",
            Step::PassFile => "cannot pass the control socket",
            Step::Execute => "cannot execute the inner process",
        }
    }
}

/// A step with what the kernel answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step.words(), std::io::Error::from(self.errno))?;
        match (self.step, self.errno) {
            (Step::Clone, Errno::NOSPC) => write!(f, "; /proc/sys/user/max_*_namespaces allows no more"),
            // Debian's and Ubuntu's switches; the latter grants the namespace, but nothing in it.
            (Step::MapUsers | Step::PrivateMounts, Errno::PERM | Errno::ACCESS) => write!(
                f,
                "; user namespaces are restricted here, see the sysctls kernel.unprivileged_userns_clone and \
                 kernel.apparmor_restrict_unprivileged_userns"
            ),
            (Step::MountProc, Errno::PERM | Errno::ACCESS) => {
                write!(f, "; inside a container that hides parts of /proc, run it privileged")
            }
            (Step::Redirect, Errno::OPNOTSUPP | Errno::NOENT | Errno::PROTONOSUPPORT) => {
                write!(f, "; the kernel has no nf_tables with NAT, or may not load its modules")
            }
            _ => Ok(()),
        }
    }
}

/// The message of a failure from a child to its parent: step, errno. *After fork* safe.
pub(crate) fn report(to: BorrowedFd<'_>, failure: Failure) {
    let [a, b, c, d] = failure.errno.raw_os_error().to_ne_bytes();
    let _ = rustix::io::write(to, &[failure.step as u8, a, b, c, d]);
}

/// The failure that a child reported, if it did, once it has closed its end.
pub(crate) fn reported(from: std::os::fd::OwnedFd) -> Option<Failure> {
    let mut message = [0; 5];
    std::fs::File::from(from).read_exact(&mut message).ok()?;
    let [step, a, b, c, d] = message;
    let step = *Step::ALL.get(usize::from(step))?;
    Some(Failure { step, errno: Errno::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])) })
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Root => write!(f, "as root"),
            Mode::User => write!(f, "in a user namespace"),
        }
    }
}

impl Mode {
    /// The `CLONE_NEW*` flags of the inner process.
    pub(crate) fn flags(self) -> i32 {
        match self {
            Mode::Root => sys::NODE_NAMESPACES,
            Mode::User => sys::NODE_NAMESPACES | libc::CLONE_NEWUSER,
        }
    }
}

fn probe(mode: Mode) -> Result<(), Failure> {
    let outside = |errno: Errno| Failure { step: Step::Clone, errno };
    let trial = Trial {
        maps: (mode == Mode::User).then(IdMaps::of_caller),
        veth: link::add_veth("leno1", &Peer { name: "eth0", namespace: None }),
        rules: nft::replace(&[Family::V4], &Redirect::by_mark().rules()),
    };
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(outside)?;
    let body = || match trial.run() {
        Ok(()) => 0,
        Err(failure) => {
            report(writer.as_fd(), failure);
            1
        }
    };
    // SAFETY: `Trial::run` and `report` only make system calls on prepared memory.
    #[allow(unsafe_code)]
    let cloned = unsafe { sys::clone_child(mode.flags(), body) }
        .map_err(|e| outside(Errno::from_io_error(&e).unwrap_or(Errno::INVAL)))?;
    drop(writer);
    let failure = reported(reader);
    let ended = loop {
        match rustix::process::waitid(WaitId::PidFd(cloned.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    };
    match (failure, ended) {
        (Some(failure), _) => Err(failure),
        (None, Ok(Some(status))) if status.exit_status() == Some(0) => Ok(()),
        (None, Ok(_)) => Err(outside(Errno::INTR)),
        (None, Err(errno)) => Err(outside(errno)),
    }
}

struct Trial {
    maps: Option<IdMaps>,
    veth: Request,
    rules: Request,
}

impl Trial {
    /// *After fork.*
    fn run(&self) -> Result<(), Failure> {
        let at = |step: Step| move |errno: Errno| Failure { step, errno };
        if let Some(maps) = &self.maps {
            maps.apply().map_err(at(Step::MapUsers))?;
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(Step::Watch))?;
        sys::make_mounts_private().map_err(at(Step::PrivateMounts))?;
        sys::mount_proc().map_err(at(Step::MountProc))?;
        let route = Socket::route().map_err(at(Step::OpenSocket))?;
        route.transact(&self.veth).map_err(at(Step::AddVeth))?;
        let netfilter = Socket::netfilter().map_err(at(Step::Redirect))?;
        netfilter.transact(&self.rules).map_err(at(Step::Redirect))?;
        sys::write_file(c"/proc/sys/net/ipv4/ip_forward", b"1").map_err(at(Step::Forward))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::Errno;

    use super::{Failure, Step, report, reported};

    #[test]
    fn every_step_survives_the_pipe() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index);
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            report(writer.as_fd(), Failure { step, errno: Errno::PERM });
            drop(writer);
            let failure = reported(reader).unwrap();
            assert_eq!((failure.step, failure.errno), (step, Errno::PERM));
        }
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(writer);
        assert!(reported(reader).is_none());
    }
}
