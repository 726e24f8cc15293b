//! Nodes and pods for real. This binary is the test's runner (outer process), the node (inner process) and the
//! programs that run in pods, depending on its arguments; hence its own `main`.
//!
//! Each scenario runs once per way of owning namespaces that the machine allows: as root, in a user namespace,
//! and as an ordinary user. What it does not allow is printed as `skipped: ...`.

#![cfg(target_os = "linux")]

mod inside;
mod programs;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use leno_node::{Exit, InnerSpec, Mode, Node, Outer, Support, support};

/// Tells the runner that it has become an ordinary user.
const UNPRIVILEGED: &str = "LENO_NODE_TEST_UNPRIVILEGED";
/// A folder for sockets and files that the outer and inner processes share.
const FOLDER: &str = "LENO_NODE_TEST_FOLDER";
/// A host port that is taken.
const TAKEN: &str = "LENO_NODE_TEST_TAKEN";
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments {
        ["program", ref rest @ ..] => programs::run(rest),
        ["linger", "outer", mode] => linger_outer(if mode == "root" { Mode::Root } else { Mode::User }),
        [scenario] if Node::is_inner() => inside::run(scenario),
        ["--list", ..] => Ok(()),
        _ => run_all(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// The runner: all scenarios in all modes.
fn run_all() -> Result<(), Box<dyn Error>> {
    let unprivileged = std::env::var_os(UNPRIVILEGED).is_some();
    let root = rustix::process::geteuid().is_root();
    let modes = match support() {
        Support::None { reason } => {
            println!("skipped: namespaces: {}", reason.replace('\n', "; "));
            Vec::new()
        }
        Support::Namespaces(Mode::Root) => vec![Mode::Root, Mode::User],
        Support::Namespaces(Mode::User) => {
            println!("skipped: namespaces owned by root: this is an ordinary user");
            vec![Mode::User]
        }
    };
    for mode in modes {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let label = if unprivileged { format!("{mode}, unprivileged") } else { mode.to_string() };
        scenario(&label, "pods and redirection", || runtime.block_on(inner_scenario(mode, "pods")))?;
        scenario(&label, "host ports", || runtime.block_on(host_ports(mode)))?;
        scenario(&label, "a failing inner process", || runtime.block_on(failing(mode)))?;
        scenario(&label, "a stopped node", || runtime.block_on(stopped(mode)))?;
        scenario(&label, "kill -9 of the outer process", || killed(mode))?;
    }
    if root && !unprivileged {
        // The same once more as an ordinary user, who must be able to find this very file.
        let status = Command::new("/proc/self/exe").uid(65534).gid(65534).env(UNPRIVILEGED, "1").status()?;
        if !status.success() {
            return Err(format!("as an ordinary user: {status}").into());
        }
    }
    Ok(())
}

fn scenario(
    label: &str,
    name: &str,
    run: impl FnOnce() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    run().map_err(|e| format!("{name} ({label}): FAILED: {e}"))?;
    println!("{name} ({label}): ok");
    Ok(())
}

fn spec(mode: Mode, scenario: &str, environment: &[(&str, String)]) -> InnerSpec {
    InnerSpec {
        mode,
        argv: vec!["test".into(), scenario.into()],
        environment: environment.iter().map(|(name, value)| ((*name).into(), value.into())).collect(),
    }
}

async fn inner_scenario(mode: Mode, name: &str) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let environment = [(FOLDER, folder.path().display().to_string())];
    let mut outer = Outer::start(spec(mode, name, &environment)).await?;
    expect_success(tokio::time::timeout(LIMIT, outer.wait()).await??)
}

fn expect_success(exit: Exit) -> Result<(), Box<dyn Error>> {
    if exit.success() { Ok(()) } else { Err(format!("the inner process: {exit}").into()) }
}

/// The inner process publishes a port, which must be reachable from here, and asks for one that is taken.
async fn host_ports(mode: Mode) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = UnixListener::bind(folder.path().join("socket"))?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let environment =
        [(FOLDER, folder.path().display().to_string()), (TAKEN, taken.local_addr()?.to_string())];
    let mut outer = Outer::start(spec(mode, "ports", &environment)).await?;

    let mut published = BufReader::new(socket.accept()?.0);
    let mut addresses = Vec::new();
    for expected in ["from the node", "from a pod"] {
        let mut line = String::new();
        published.read_line(&mut line)?;
        let address: SocketAddr = line.trim().parse()?;
        let mut answer = String::new();
        TcpStream::connect(address)?.read_to_string(&mut answer)?;
        if answer != expected {
            return Err(format!("{address} answered {answer:?} instead of {expected:?}").into());
        }
        addresses.push(address);
    }
    drop(published);
    expect_success(tokio::time::timeout(LIMIT, outer.wait()).await??)?;
    for address in addresses {
        TcpListener::bind(address)?; // free again
    }
    Ok(())
}

/// What goes wrong inside is reported outside, and nothing is left.
async fn failing(mode: Mode) -> Result<(), Box<dyn Error>> {
    let Err(error) = Outer::start(spec(mode, "refuse", &[])).await else { return Err("it started".into()) };
    let expected = "bad network: 10.244.0.1/99 has no room for pods";
    if error.to_string() != expected {
        return Err(format!("unexpected error: {error}").into());
    }
    let Err(error) = Outer::start(spec(mode, "leave", &[])).await else { return Err("it started".into()) };
    let expected = "the inner process failed: it ended before the node was ready (exit code 1)";
    if error.to_string() != expected {
        return Err(format!("unexpected error: {error}").into());
    }
    Ok(())
}

/// An inner process that does not handle SIGTERM is killed after the limit, with all that runs in it.
async fn stopped(mode: Mode) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = UnixListener::bind(folder.path().join("socket"))?;
    let environment = [(FOLDER, folder.path().display().to_string())];
    let mut outer = Outer::start(spec(mode, "linger", &environment)).await?;
    let alive = lingering(&socket)?;
    let exit = outer.stop(Duration::from_millis(50)).await?;
    if exit != Exit::Signal(9) {
        return Err(format!("unexpected end: {exit}").into());
    }
    all_gone(alive)
}

/// The outer process, in a process of its own, is killed; then nothing of the node is left.
fn killed(mode: Mode) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = UnixListener::bind(folder.path().join("socket"))?;
    let argument = if mode == Mode::Root { "root" } else { "user" };
    let mut outer = Command::new("/proc/self/exe")
        .args(["linger", "outer", argument])
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .spawn()?;
    let alive = lingering(&socket)?;
    outer.kill()?;
    outer.wait()?;
    all_gone(alive)
}

/// The outer process of [`killed`].
fn linger_outer(mode: Mode) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let environment = [(FOLDER, std::env::var(FOLDER)?)];
        let mut outer = Outer::start(spec(mode, "linger", &environment)).await?;
        expect_success(outer.wait().await?)
    })
}

/// Connections of the processes of the scenario `linger`, each of which has said who it is.
fn lingering(socket: &UnixListener) -> Result<Vec<UnixStream>, Box<dyn Error>> {
    let mut names = Vec::new();
    let mut alive = Vec::new();
    for _ in 0..3 {
        let mut stream = socket.accept()?.0;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut name = [0; 8];
        stream.read_exact(&mut name)?;
        names.push(String::from_utf8_lossy(&name).trim().to_owned());
        alive.push(stream);
    }
    names.sort();
    if names != ["app", "daemon", "inner"] {
        return Err(format!("unexpected processes: {names:?}").into());
    }
    Ok(alive)
}

/// A connection ends when its process does.
fn all_gone(alive: Vec<UnixStream>) -> Result<(), Box<dyn Error>> {
    for mut stream in alive {
        if stream.read(&mut [0])? != 0 {
            return Err("a process said something instead of dying".into());
        }
    }
    Ok(())
}

/// Says to the runner that this process lives; the connection must be kept.
fn say_alive(name: &str) -> Result<UnixStream, Box<dyn Error>> {
    let mut stream = UnixStream::connect(Path::new(&std::env::var(FOLDER)?).join("socket"))?;
    stream.write_all(format!("{name:8}").as_bytes())?;
    Ok(stream)
}

/// Blocks until the other end of a connection is closed.
fn until_closed(mut stream: &UnixStream) {
    let _ = stream.read(&mut [0]);
}

/// Lets everybody read a file, whoever the pod's user is.
fn publish_file(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))
}
