//! Local processes, in a pod or not: output line by line, graceful stop, nothing left behind.
//!
//! Each is the leader of a session of its own; what else it started in that session is killed once it has
//! ended, as a container's processes end with its first. The kernel kills it when this process ends.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CapabilitySet;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use crate::error::{During, NodeError};
use crate::pod::Pod;
use crate::reaper;
use crate::root::Root;
use crate::sys::{self, Preparation};

/// As container runtimes give a process that has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A longer line is delivered in pieces.
const LONGEST_LINE: usize = 64 * 1024;

/// A process to run.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// Who it is in [`Line::source`] and errors, for example `reviews-v1-0/app`.
    pub name: String,
    /// The program and its arguments. One without a slash is looked up in the `PATH` of `environment`.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited. A missing `PATH` is the usual one.
    pub environment: Vec<(String, String)>,
    /// The working directory. `None`: this process's, or `/` in a pod.
    pub directory: Option<PathBuf>,
    /// The user to run as. `None`: this process's. Another one takes root, and [`crate::Mode::Root`] in a node.
    pub uid: Option<u32>,
    /// The group; supplementary groups are given up when a user or group is set.
    pub gid: Option<u32>,
    /// The capabilities to keep, also as another user than root. `None`: root keeps what this process has.
    pub capabilities: Option<Capabilities>,
    /// Its own view of the files, of one made for the same pod. `None`: the pod's.
    pub root: Option<Root>,
}

/// A set of Linux capabilities: capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None at all: right for applications.
    pub const NONE: Capabilities = Capabilities(0);
    /// Setting `SO_MARK`, which the proxy needs where it is known by its mark.
    pub const NET_ADMIN: Capabilities = Capabilities(CapabilitySet::NET_ADMIN.bits());
    /// Binding ports below 1024; pods do not need it.
    pub const NET_BIND_SERVICE: Capabilities = Capabilities(CapabilitySet::NET_BIND_SERVICE.bits());

    /// What container runtimes leave to root: what a program needs that handles files and users of its own.
    pub const CONTAINER: Capabilities = Capabilities(
        CapabilitySet::CHOWN.bits()
            | CapabilitySet::DAC_OVERRIDE.bits()
            | CapabilitySet::FOWNER.bits()
            | CapabilitySet::FSETID.bits()
            | CapabilitySet::KILL.bits()
            | CapabilitySet::SETGID.bits()
            | CapabilitySet::SETUID.bits()
            | CapabilitySet::SETPCAP.bits()
            | CapabilitySet::NET_BIND_SERVICE.bits()
            | CapabilitySet::SYS_CHROOT.bits()
            | CapabilitySet::MKNOD.bits()
            | CapabilitySet::AUDIT_WRITE.bits()
            | CapabilitySet::SETFCAP.bits()
            | CapabilitySet::NET_RAW.bits(),
    );

    /// The capability of a name as Kubernetes writes it: `NET_ADMIN`, `CAP_NET_ADMIN`, or `ALL`.
    pub fn named(name: &str) -> Option<Capabilities> {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Some(Capabilities(CapabilitySet::all().bits()));
        }
        CapabilitySet::from_name(name).map(|set| Capabilities(set.bits()))
    }

    /// This set but for another.
    #[must_use]
    pub const fn without(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }
}

/// A line of output, without its end. Bytes that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The [`ProcessSpec::name`].
    pub source: Arc<str>,
    /// Where it was written.
    pub stream: Stream,
    /// The text; of a line longer than 64 KiB, a piece.
    pub text: String,
}

/// One of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Somebody else took its status.
    Unknown,
}

impl Exit {
    /// Whether it ended by itself with code 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(libc::SIGKILL) => write!(f, "killed (SIGKILL)"),
            Exit::Signal(libc::SIGTERM) => write!(f, "terminated (SIGTERM)"),
            Exit::Signal(libc::SIGSEGV) => write!(f, "crashed (SIGSEGV)"),
            Exit::Signal(libc::SIGABRT) => write!(f, "aborted (SIGABRT)"),
            Exit::Signal(signal) => write!(f, "ended by signal {signal}"),
            Exit::Unknown => write!(f, "ended"),
        }
    }
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts a process, in a pod or beside this one. Its output goes to `lines`, which may be shared; a full
    /// channel makes the process wait when it writes. Standard input is empty. The last lines may arrive after
    /// [`Process::wait`] has returned. Needs a tokio runtime, which it must not outlive.
    ///
    /// # Errors
    ///
    /// What the kernel answered: no such program, no such user in this namespace (EINVAL), ...
    pub async fn spawn(
        pod: Option<&Pod>,
        spec: &ProcessSpec,
        lines: &mpsc::Sender<Line>,
    ) -> Result<Process, NodeError> {
        let step = || format!("{}: cannot start {}", spec.name, spec.argv.first().map_or("", String::as_str));
        let command = command(pod, spec).during(step)?;
        let child = tokio::task::spawn_blocking(move || sys::on_lasting_thread(move || start(command)))
            .await
            .map_err(|e| io::Error::other(e.to_string()))
            .and_then(|result| result.and_then(|result| result))
            .during(step)?;

        let source: Arc<str> = spec.name.as_str().into();
        let pipe = |fd: Option<OwnedFd>| fd.map(pipe::Receiver::from_owned_fd).transpose();
        if let Some(stdout) = pipe(child.stdout).during(step)? {
            tokio::spawn(forward(stdout, Stream::Stdout, source.clone(), lines.clone()));
        }
        if let Some(stderr) = pipe(child.stderr).during(step)? {
            tokio::spawn(forward(stderr, Stream::Stderr, source, lines.clone()));
        }
        let pidfd = Arc::new(child.pidfd);
        let (sender, exit) = watch::channel(None);
        let process = Process { pid: child.pid, pidfd: pidfd.clone(), exit };
        let watched = sys::watch(pidfd).during(step)?;
        tokio::spawn(await_end(child.pid, watched, sender));
        Ok(process)
    }

    /// Its number in the pid namespace of this process.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends it a signal; one that has ended is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for its end. May be cancelled and called again.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Unknown),
            Err(_) => Exit::Unknown, // the runtime is being shut down
        }
    }

    /// Asks it to end (SIGTERM), and kills it after the limit.
    pub async fn stop(&self, limit: Duration) -> Exit {
        // A signal can only fail on a process that has ended.
        let _ = self.signal(Signal::TERM);
        if let Ok(exit) = tokio::time::timeout(limit, self.wait()).await {
            return exit;
        }
        let _ = self.signal(Signal::KILL);
        self.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
    }
}

/// What [`start`] made.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn command(pod: Option<&Pod>, spec: &ProcessSpec) -> io::Result<Command> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    let (program, arguments) = spec.argv.split_first().ok_or_else(|| invalid("no program is given"))?;
    let directory = match &spec.directory {
        Some(directory) => Some(CString::new(directory.as_os_str().as_bytes())?),
        None => pod.map(|_| c"/".to_owned()),
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", DEFAULT_PATH);
    command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let preparation = Preparation {
        namespaces: pod.map(Pod::namespaces),
        mount: spec.root.as_ref().map(Root::mount),
        directory,
        uid: spec.uid,
        gid: spec.gid,
        capabilities: spec.capabilities.map(|kept| CapabilitySet::from_bits_retain(kept.0)),
        drop_groups: std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "allow")
            && rustix::process::geteuid().is_root(),
    };
    sys::prepare(&mut command, preparation);
    Ok(command)
}

fn start(mut command: Command) -> io::Result<Child> {
    let (pid, (mut child, pidfd)) = reaper::make_own(|| {
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok((pid, (child, pidfd))),
            Err(e) => {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                Err(e.into())
            }
        }
    })?;
    Ok(Child {
        pid,
        pidfd,
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
    })
}

async fn await_end(pid: Pid, pidfd: AsyncFd<Arc<OwnedFd>>, exit: watch::Sender<Option<Exit>>) {
    if let Err(e) = pidfd.readable().await {
        tracing::error!("cannot watch process {}: {e}", pid.as_raw_nonzero());
    }
    // Before its status is taken: until then its number, which is its group's, is not given to another.
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    let status = reaper::reap(pidfd.get_ref().as_fd()).unwrap_or(Exit::Unknown);
    reaper::forget_own(pid);
    let _ = exit.send(Some(status));
}

/// Sends what is read, line by line, until the end, or until nobody listens any more.
async fn forward(from: impl AsyncRead + Unpin, stream: Stream, source: Arc<str>, lines: mpsc::Sender<Line>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    let mut listened = true;
    while let Ok(buffer) = reader.fill_buf().await {
        if buffer.is_empty() {
            break;
        }
        let room = LONGEST_LINE - line.len();
        let end = buffer.iter().take(room).position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(buffer.len().min(room));
        line.extend_from_slice(buffer.get(..taken).unwrap_or_default());
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_none() && line.len() < LONGEST_LINE {
            continue;
        }
        // Without a listener the output is still read, or the process would stop at a full pipe.
        listened = listened && lines.send(to_line(&source, stream, &line)).await.is_ok();
        line.clear();
    }
    if !line.is_empty() && listened {
        let _ = lines.send(to_line(&source, stream, &line)).await;
    }
}

fn to_line(source: &Arc<str>, stream: Stream, bytes: &[u8]) -> Line {
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned();
    Line { source: source.clone(), stream, text }
}

#[cfg(test)]
mod tests;
