//! The outer process: it stays in the host's namespaces, starts the inner process in new ones, binds host
//! ports for it, and takes it down with itself, however it ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use tokio::io::unix::AsyncFd;

use crate::control;
use crate::error::{During, NodeError};
use crate::process::Exit;
use crate::reaper;
use crate::support::{Failure, Mode, Step, report, reported};
use crate::sys::{self, IdMaps, Program};

/// The environment variable by which the inner process finds its control socket: number and mode.
pub(crate) const VARIABLE: &str = "LENO_NODE";

/// How to start the inner process: this executable, once more.
#[derive(Clone, Debug)]
pub struct InnerSpec {
    /// As [`crate::support()`] found it.
    pub mode: Mode,
    /// All arguments, beginning with the program's name. They must lead to a call of [`crate::Node::enter`].
    pub argv: Vec<OsString>,
    /// Environment variables besides those of this process.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running inner process. Dropping it kills the node and everything in it.
#[derive(Debug)]
pub struct Outer {
    pid: Pid,
    pidfd: AsyncFd<Arc<OwnedFd>>,
    exit: Option<Exit>,
}

impl Outer {
    /// Starts the inner process and waits until its [`crate::Node::enter`] has succeeded.
    ///
    /// The inner process shares the terminal, standard input and output, working directory and process group,
    /// so Ctrl-C reaches it, too; as pid 1 of its namespace it ignores SIGINT and SIGTERM unless it handles
    /// them. If this process ends, even by SIGKILL, the kernel kills the inner one and all its children.
    ///
    /// # Errors
    ///
    /// The step that failed, here or in the inner process. Then nothing is left running.
    pub async fn start(spec: InnerSpec) -> Result<Outer, NodeError> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .during(|| "cannot create the control socket".into())?;
        let cloned = sys::on_lasting_thread(move || clone_inner(&spec, &theirs))
            .during(|| "cannot start the inner process".into())??;
        let pidfd = sys::watch(Arc::new(cloned.pidfd)).during(|| "cannot watch the inner process".into())?;
        let mut outer = Outer { pid: cloned.pid, pidfd, exit: None };

        let ready = control::serve(ours).during(|| "cannot serve the inner process".into())?;
        match ready.await {
            Ok(Ok(())) => Ok(outer),
            Ok(Err(error)) => {
                outer.kill_and_wait().await;
                Err(NodeError::new(error.step, error.source))
            }
            Err(_) => {
                let exit = outer.kill_and_wait().await;
                let ended = exit.map_or_else(String::new, |exit| format!(" ({exit})"));
                let error = io::Error::other(format!("it ended before the node was ready{ended}"));
                Err(NodeError::new("the inner process failed", error))
            }
        }
    }

    /// The inner process, as the host numbers it.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends the inner process a signal. One that has ended already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the end of the inner process. May be cancelled and called again.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let _ = self.pidfd.readable().await?;
        let exit = reaper::reap(self.pidfd.get_ref().as_fd())?;
        self.exit = Some(exit);
        Ok(exit)
    }

    /// Asks the inner process to end (SIGTERM), and after the limit kills it and all within.
    pub async fn stop(&mut self, limit: Duration) -> io::Result<Exit> {
        self.signal(Signal::TERM)?;
        if let Ok(exit) = tokio::time::timeout(limit, self.wait()).await {
            return exit;
        }
        self.signal(Signal::KILL)?;
        self.wait().await
    }

    async fn kill_and_wait(&mut self) -> Option<Exit> {
        // An inner process that ended by itself keeps its own exit status.
        let _ = self.signal(Signal::KILL);
        self.wait().await.ok()
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        if self.exit.is_none() {
            let _ = self.signal(Signal::KILL);
            let _ = reaper::reap(self.pidfd.get_ref().as_fd());
        }
    }
}

/// Clones and executes; on return the child is the new program, or nothing.
fn clone_inner(spec: &InnerSpec, theirs: &OwnedFd) -> Result<sys::Cloned, NodeError> {
    let step = || "cannot start the inner process".to_owned();
    let mark = match spec.mode {
        Mode::Root => "root",
        Mode::User => "user",
    };
    let control = (OsString::from(VARIABLE), OsString::from(format!("{}:{mark}", theirs.as_raw_fd())));
    let added = |name: &OsStr| name == VARIABLE || spec.environment.iter().any(|(added, _)| added == name);
    let environment = std::env::vars_os()
        .filter(|(name, _)| !added(name))
        .chain(spec.environment.iter().cloned())
        .chain([control]);
    let program = Program::new(OsStr::new("/proc/self/exe"), &spec.argv, environment).during(step)?;
    let pointers = program.pointers();
    let maps = (spec.mode == Mode::User).then(IdMaps::of_caller);
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during(step)?;

    let prepare = || -> Result<(), Failure> {
        let at = |step: Step| move |errno: Errno| Failure { step, errno };
        if let Some(maps) = &maps {
            maps.apply().map_err(at(Step::MapUsers))?;
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(Step::Watch))?;
        rustix::io::fcntl_setfd(theirs, FdFlags::empty()).map_err(at(Step::PassFile))?;
        Err(Failure { step: Step::Execute, errno: pointers.exec() })
    };
    let body = || {
        if let Err(failure) = prepare() {
            report(writer.as_fd(), failure);
        }
        127
    };
    // SAFETY: `prepare` and `report` only make system calls on prepared memory.
    #[allow(unsafe_code)]
    let cloned = unsafe { sys::clone_child(spec.mode.flags(), body) }
        .map_err(|e| NodeError::new(format!("cannot create namespaces {}", spec.mode), e))?;
    drop(writer);
    match reported(reader) {
        None => Ok(cloned),
        Some(failure) => {
            let _ = reaper::reap(cloned.pidfd.as_fd());
            Err(NodeError::new("cannot start the inner process", io::Error::other(failure.to_string())))
        }
    }
}
