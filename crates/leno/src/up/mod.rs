//! `leno up`: a mesh on one machine.
//!
//! The *outer* process (`outer.rs`) keeps the terminal, takes signals and binds ports of the host;
//! the *inner* one, first in the node's namespaces, does everything else. Where there are no
//! namespaces one process is both.
//!
//! ```text
//! folders.rs ─► objects.rs ─► plan.rs ─► cluster.rs ─► pod.rs (one task per pod): leno_node
//!  watches      YAML → typed   what is    the loop       bootstrap.rs hosts.rs, and
//!                              to run       │             leno_kubelet for its containers
//!                                           ├► state.rs ─► files ─► pilot.rs (leno pilot, a process)
//!                                           ├► publish.rs: ports of the host into pods
//!                                           └► display.rs, control.rs ◄─ client.rs (leno ps, logs, stop)
//! ```
//!
//! What a cluster has and this has not: volumes but for those of root, resource limits and quotas,
//! tokens of service accounts, host networks, UDP through the mesh, DNS (names are in each pod's /etc/hosts,
//! so that other servers' names do not resolve), and, in network namespaces, a way out of the machine.
//! What of it a manifest asks for is reported, apart from resources.
//!
//! START HERE, then `cluster.rs`.

mod address;
mod bootstrap;
pub(crate) mod client;
mod cluster;
mod control;
pub(crate) mod display;
mod folders;
mod gateway_api;
mod hosts;
mod image;
mod layout;
mod logs;
mod objects;
mod outer;
mod overview;
mod pilot;
mod plan;
mod pod;
mod publish;
mod runtime_dir;
mod services;
mod site;
mod sources;
mod state;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use leno_node::{Network, Node, Support};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::cluster::{Cluster, Sources};
use self::display::Display;
use self::image::{INHERITED, Images, Inherited};
use self::layout::Layout;
use self::logs::Logs;
use self::plan::Settings;
use self::runtime_dir::RuntimeDir;
use self::site::Site;
use self::state::StateFolder;
use crate::verb::up::{ProxyProgram, Up};

/// Runs a mesh until it is told to end.
pub(crate) fn run(up: Up) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    start_log();
    if Node::is_inner() {
        // First thing, and without a runtime: it changes the namespaces of this process.
        let node = Node::enter(Network::default())?;
        return runtime()?.block_on(inner(up, Some(node), None, started));
    }
    check(&up)?;
    let folder = RuntimeDir::take(&up.name, &up.dirs)?;
    let support = if up.no_namespaces {
        Support::None { reason: "--no-namespaces was given".to_owned() }
    } else {
        leno_node::support()
    };
    let code = match support {
        Support::Namespaces(mode) => runtime()?.block_on(outer::run(mode)),
        Support::None { reason } => runtime()?.block_on(inner(up, None, Some(reason), started)),
    };
    drop(folder);
    code
}

/// What is better said before anything is started.
fn check(up: &Up) -> anyhow::Result<()> {
    for path in &up.dirs {
        std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
    }
    if let ProxyProgram::Envoy(path) = &up.proxy {
        std::fs::metadata(path).with_context(|| format!("--proxy envoy={}", path.display()))?;
    }
    Images::new(&up.images)?;
    Ok(())
}

/// The process that runs the mesh; `reason`: why without namespaces.
async fn inner(
    up: Up,
    node: Option<Node>,
    reason: Option<String>,
    started: Instant,
) -> anyhow::Result<ExitCode> {
    let end = on_signals(node.is_none())?;
    let display = Display::start(up.plain);
    let proxy_is_open = match &up.proxy {
        // Reached by way of /proc, so that only the file itself counts.
        ProxyProgram::Leno => is_executable_by_all(Path::new("/proc/self/exe")),
        ProxyProgram::Envoy(path) => runtime_dir::is_open(path),
    };
    let (layout, mode) = match &node {
        Some(node) => {
            let owner = pod::owner(node.mode(), proxy_is_open);
            (Layout::Namespaces { mode: node.mode(), owner }, format!("network namespaces {}", node.mode()))
        }
        None => (Layout::Loopback { ports: free_ports()? }, "loopback addresses".to_owned()),
    };
    match &reason {
        None => display.line(format!("mesh {}: {mode}, traffic is redirected as Istio does it", up.name)),
        Some(reason) => {
            display.line(format!(
                "mesh {}: no network namespaces, so replicas get addresses 127.x.y.z, send by http_proxy, and \
                 are called without their own sidecar:",
                up.name,
            ));
            reason.lines().for_each(|line| display.line(format!("  {line}")));
        }
    }

    let folder = match &up.state_dir {
        Some(folder) => std::path::absolute(folder)?,
        None => runtime_dir::of(&up.name),
    };
    for name in ["hosts", "proxies"] {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let state = StateFolder::create(folder.join("state"))
        .with_context(|| format!("cannot create {}", folder.join("state").display()))?;
    let (lines, line_receiver) = mpsc::channel(1024);
    let site = Arc::new(Site {
        mesh: up.name.clone(),
        layout,
        node,
        folder_is_open: runtime_dir::is_open(&folder.join("proxies")),
        folder,
        proxy: absolute(up.proxy)?,
        proxy_log_level: up.proxy_log_level,
        inherited: inherited(),
        lines,
    });

    let logs = Arc::new(Logs::new());
    let (question_sender, questions) = mpsc::channel(16);
    let socket = runtime_dir::socket(&up.name);
    control::serve(&socket, logs.clone(), question_sender)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let (object_sender, objects) = mpsc::channel(1);
    tokio::spawn(folders::watch(up.dirs.clone(), object_sender));
    let (report_sender, reports) = mpsc::channel(1);
    tokio::spawn(pilot::watch(site.clone(), report_sender));

    let settings = Settings { images: Images::new(&up.images)?, mounts: site.layout.mounts() };
    let (cluster, news) = Cluster::new(site, settings, up.address, mode, state, logs, display, started);
    let sources = Sources { objects, lines: line_receiver, reports, questions, end };
    cluster.run(&up.dirs, sources, news).await;
    Ok(ExitCode::SUCCESS)
}

/// Becomes true when this process is asked to end. `alone`: without an outer process, which otherwise
/// takes the signals of the terminal, and kills who was asked twice.
fn on_signals(alone: bool) -> anyhow::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut asked: Option<Instant> = None;
        loop {
            let counts = tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => alone,
                _ = hang_up.recv() => alone,
            };
            if !counts {
                continue;
            }
            if alone && asked.is_some_and(|asked| asked.elapsed() >= outer::TOGETHER) {
                std::process::exit(1); // whoever asks twice does not want to wait
            }
            asked.get_or_insert_with(Instant::now);
            let _ = sender.send(true);
        }
    });
    Ok(receiver)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LENO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

fn inherited() -> Inherited {
    let variable = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
    Inherited {
        // The program that runs, also after another was built in its place.
        executable: "/proc/self/exe".to_owned(),
        variables: INHERITED.iter().filter_map(variable).collect(),
        directory: std::env::current_dir().ok().map(|folder| folder.display().to_string()),
    }
}

fn is_executable_by_all(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
}

/// Pods start their processes elsewhere, so a relative path must not stay one.
fn absolute(proxy: ProxyProgram) -> anyhow::Result<ProxyProgram> {
    Ok(match proxy {
        ProxyProgram::Leno => ProxyProgram::Leno,
        ProxyProgram::Envoy(path) => {
            let found: PathBuf = path.canonicalize().with_context(|| format!("{}", path.display()))?;
            ProxyProgram::Envoy(found)
        }
    })
}

/// Two ports that are free now.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let second = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok([first.local_addr()?.port(), second.local_addr()?.port()])
}
