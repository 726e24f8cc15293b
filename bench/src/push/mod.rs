//! The control plane under load: how long a change takes to reach all proxies, and what it costs.
//!
//! The control plane runs as a process of its own on a core of its own, over a folder that `mesh`
//! writes; the proxies are simulated by `fleet` on the other cores: real gRPC streams that subscribe
//! as a sidecar does. For each kind of change a JSON line says the time from the change to the last
//! proxy's acknowledgement (`p50_ms`, `p99_ms` over the repetitions), the time on the processor that
//! one change has cost the control plane (`cpu_ms`), and its memory afterwards (`rss_mb`).

mod fleet;
mod mesh;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use leno_xds::Mode;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::fleet::{Expectation, Fleet, Sight, Used, Whom};
use self::mesh::{Mesh, Size};
use crate::machine::{self, Cores};

/// How long the control plane must do nothing for a change to be over.
const QUIET: Duration = Duration::from_millis(300);

/// What does not come in this time does not come.
const LIMIT: Duration = Duration::from_secs(300);

/// How many services a new namespace has.
const NAMESPACE: usize = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Services of the mesh, a hundred in each namespace
    #[arg(long, default_value_t = 100, value_name = "N")]
    services: usize,
    /// Endpoints of all services together
    #[arg(long, default_value_t = 1000, value_name = "N")]
    endpoints: usize,
    /// Connected proxies
    #[arg(long, default_value_t = 200, value_name = "N")]
    proxies: usize,
    /// Ports that the services use, each a route configuration
    #[arg(long, default_value_t = 20, value_name = "N")]
    ports: usize,
    /// How often each change is made
    #[arg(long, default_value_t = 10, value_name = "N")]
    repeat: usize,
    /// Proxies ask for clusters when they use them, and each workload calls so many services; 0: proxies
    /// take everything
    #[arg(long, default_value_t = 0, value_name = "N")]
    used: usize,
    /// With --used: proxies are told of all virtual hosts, and ask for clusters only
    #[arg(long)]
    whole_tables: bool,
    /// What the proxies speak: delta or sotw
    #[arg(long, default_value = "delta", value_parser = ["delta", "sotw"])]
    mode: String,
    /// Only these kinds of change, with commas
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    only: Vec<String>,
    /// Keep the mesh's files and the control plane's log in this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

/// What the control plane's own process is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct ControlArguments {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    core: Option<usize>,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Endpoint,
    VirtualService,
    DestinationRule,
    NewService,
    Namespace,
    Reconnect,
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::Endpoint,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::NewService,
        Kind::Namespace,
        Kind::Reconnect,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Endpoint => "endpoint",
            Kind::VirtualService => "virtual_service",
            Kind::DestinationRule => "destination_rule",
            Kind::NewService => "new_service",
            Kind::Namespace => "namespace",
            Kind::Reconnect => "reconnect",
        }
    }

    /// Changes that cost much are made less often.
    fn repeat(self, wanted: usize) -> usize {
        match self {
            Kind::Namespace => wanted.div_ceil(4),
            Kind::Reconnect => wanted.div_ceil(10),
            _ => wanted,
        }
    }
}

/// Measures; prints a JSON line for each kind of change.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    for name in &arguments.only {
        ensure!(Kind::ALL.iter().any(|kind| kind.name() == name), "--only {name}: no such kind of change");
    }
    ensure!(arguments.services > 0 && arguments.proxies > 0 && arguments.ports > 0, "at least one of each");
    let cores = machine::cores()?;
    machine::raise_file_limit()?;
    let split = Cores::split(&cores, 1);
    machine::pin(&split.load)?;
    let temporary = tempfile::tempdir()?;
    let folder = arguments.keep.as_deref().unwrap_or(temporary.path());
    let mode = if arguments.mode == "sotw" { Mode::Sotw } else { Mode::Delta };
    ensure!(arguments.used == 0 || mode == Mode::Delta, "clusters are asked for one by one in delta only");
    let size = Size {
        services: arguments.services,
        endpoints: arguments.endpoints,
        ports: arguments.ports,
        used: arguments.used,
        proxies: arguments.proxies,
    };
    let mesh = Mesh::write(&folder.join("mesh"), size)?;
    let started = Instant::now();
    let hosts = arguments.used > 0 && !arguments.whole_tables;
    let control = Control::start(folder, mesh.folder(), split.proxy.first().copied(), hosts)?;
    let nodes = mesh.nodes(arguments.proxies, hosts).into_iter().enumerate();
    let used = |index| {
        let hosts = if hosts { mesh.used_hosts(index) } else { Vec::new() };
        Used { clusters: mesh.used(index).into(), hosts: hosts.into() }
    };
    let nodes = nodes.map(|(index, node)| (node, used(index))).collect();
    let mut fleet = Fleet::new(control.address, mode, nodes, mesh.route_names())?;
    let read = started.elapsed();
    let mut bench = Bench { mesh, control, hosts, mark: 0 };
    // The first time everything is derived; what it costs is a figure of its own.
    let (first, cpu) = bench.connect(&mut fleet)?;
    let facts = json!({
        "services": arguments.services, "endpoints": arguments.endpoints, "proxies": arguments.proxies,
        "ports": arguments.ports, "used": arguments.used, "whole_tables": !hosts, "mode": arguments.mode, "machine": machine::facts(&cores),
    });
    println!("{facts}");
    println!("{}", bench.line("start", &[read], 0.0, 1));
    println!("{}", bench.line("connect", &[first], cpu, 1));
    let is_wanted =
        |kind: &Kind| arguments.only.is_empty() || arguments.only.iter().any(|name| name == kind.name());
    for kind in Kind::ALL.into_iter().filter(is_wanted) {
        let repeat = kind.repeat(arguments.repeat);
        let (mut times, mut cpu) = (Vec::new(), 0.0);
        // Once more than is counted: the first of a kind may find what the others do not.
        for round in 0..=repeat {
            let (time, spent) = bench.change(kind, &mut fleet)?;
            if round > 0 || repeat == 1 {
                times.push(time);
                cpu += spent;
            }
            if kind == Kind::Reconnect && repeat == 1 {
                break;
            }
        }
        println!("{}", bench.line(kind.name(), &times, cpu, times.len()));
    }
    Ok(true)
}

/// The control plane's own process; ends with the one that started it.
pub(crate) fn control(arguments: ControlArguments) -> Result<bool> {
    if let Some(core) = arguments.core {
        machine::pin(&[core])?;
    }
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = leno_control::server::Config::new(vec![arguments.dir]);
    (config.grpc_addr, config.http_addr) = (any, any);
    // As `leno pilot`, but that there is no second core for a second thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let server = leno_control::server::Server::bind(config).await?;
        println!("{} {}", server.grpc_addr()?, server.http_addr()?);
        let mut ended = signal(SignalKind::terminate())?;
        server.run(async move { _ = ended.recv().await }).await;
        Ok(true)
    })
}

/// The running control plane.
pub(crate) struct Control {
    child: Child,
    /// Where it serves proxies.
    pub(crate) address: SocketAddr,
}

impl Control {
    /// Starts it and waits until it is ready. `hosts`: virtual hosts come when they are asked for.
    pub(crate) fn start(folder: &Path, mesh: &Path, core: Option<usize>, hosts: bool) -> Result<Control> {
        let log = std::fs::File::create(folder.join("control.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("control").arg("--dir").arg(mesh).stdout(Stdio::piped()).stderr(log);
        command.env("LENO_LAZY_ROUTES", hosts.to_string());
        if let Some(core) = core {
            command.arg("--core").arg(core.to_string());
        }
        let mut child = command.spawn()?;
        let output = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let (grpc, http) = line.trim().split_once(' ').context("the control plane does not start")?;
        let (address, http): (SocketAddr, SocketAddr) = (grpc.parse()?, http.parse()?);
        let control = Control { child, address };
        let end = Instant::now() + LIMIT;
        while !is_ready(http) {
            ensure!(Instant::now() < end, "the control plane does not become ready");
            machine::pause(Duration::from_millis(5));
        }
        Ok(control)
    }

    fn cpu(&self) -> Duration {
        machine::processor_time(self.child.id())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        machine::end(&mut self.child);
    }
}

fn is_ready(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}

struct Bench {
    mesh: Mesh,
    control: Control,
    /// Whether proxies ask for virtual hosts.
    hosts: bool,
    mark: u32,
}

impl Bench {
    /// Makes one change: the time to the last acknowledgement, and the milliseconds of processor time.
    fn change(&mut self, kind: Kind, fleet: &mut Fleet) -> Result<(Duration, f64)> {
        if kind == Kind::Reconnect {
            return self.connect(fleet);
        }
        self.mark += 1;
        let number = self.mark;
        let expect = |sight, marker: String, count| Expectation {
            sight,
            marker: marker.into_bytes(),
            count,
            whom: match sight {
                Sight::Endpoint | Sight::Cluster | Sight::Host => {
                    self.mesh.concerned(number, kind != Kind::Endpoint).map_or(Whom::All, Whom::Users)
                }
                Sight::Everything | Sight::Route => Whom::All,
            },
        };
        let new = match kind {
            Kind::NewService => 1,
            Kind::Namespace => NAMESPACE,
            _ => 0,
        };
        let one = |marker: String| Expectation { whom: Whom::First, ..expect(Sight::Host, marker, new) };
        if self.hosts && new > 0 {
            // Nobody hears of services that nobody uses: one proxy has asked for them before there are any.
            fleet.expect(one(mesh::mark(number)));
            fleet.ask(self.mesh.coming(number, new));
            fleet.wait(LIMIT).with_context(|| format!("asking for {} {number}", kind.name()))?;
            self.settle();
        }
        let before = self.control.cpu();
        let is_lazy = self.mesh.concerned(number, false).is_some();
        let expectation = match kind {
            Kind::Endpoint => expect(Sight::Endpoint, mesh::address_mark(number), 1),
            Kind::VirtualService if self.hosts => expect(Sight::Host, mesh::mark(number), 1),
            Kind::NewService | Kind::Namespace if self.hosts => one(format!("||{}", mesh::mark(number))),
            Kind::VirtualService => expect(Sight::Route, mesh::mark(number), 1),
            Kind::DestinationRule if is_lazy => expect(Sight::Cluster, mesh::mark(number), 1),
            // The subset's endpoints come last.
            Kind::DestinationRule => expect(Sight::Endpoint, mesh::mark(number), 1),
            Kind::NewService => expect(Sight::Route, mesh::mark(number), 1),
            Kind::Namespace | Kind::Reconnect => expect(Sight::Route, mesh::mark(number), NAMESPACE),
        };
        let files = match kind {
            Kind::Endpoint => self.mesh.move_endpoint(number),
            Kind::VirtualService => self.mesh.change_rule(number),
            Kind::DestinationRule => self.mesh.change_policy(number),
            Kind::NewService => self.mesh.add_services(number, 1),
            Kind::Namespace | Kind::Reconnect => self.mesh.add_services(number, NAMESPACE),
        };
        fleet.expect(expectation);
        let start = Instant::now();
        files.write()?;
        let last = fleet.wait(LIMIT).with_context(|| format!("{} {number}", kind.name()))?;
        self.settle();
        Ok((last.duration_since(start), milliseconds(self.control.cpu().saturating_sub(before))))
    }

    /// All proxies connect anew.
    fn connect(&mut self, fleet: &mut Fleet) -> Result<(Duration, f64)> {
        fleet.disconnect();
        self.settle();
        let before = self.control.cpu();
        let start = Instant::now();
        fleet.connect();
        let last = fleet.wait(LIMIT).context("connecting")?;
        self.settle();
        Ok((last.duration_since(start), milliseconds(self.control.cpu().saturating_sub(before))))
    }

    /// Waits until the control plane has nothing to do.
    fn settle(&self) {
        let mut last = self.control.cpu();
        loop {
            machine::pause(QUIET);
            let now = self.control.cpu();
            // Its clock ticks cost a little all the time.
            if now.saturating_sub(last) < QUIET / 100 {
                return;
            }
            last = now;
        }
    }

    fn line(&self, kind: &str, times: &[Duration], cpu: f64, count: usize) -> serde_json::Value {
        let mut sorted: Vec<f64> = times.iter().copied().map(milliseconds).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        let round = |value: f64| (value * 100.0).round() / 100.0;
        json!({
            "kind": kind,
            "count": count,
            "p50_ms": round(at(0.5)),
            "p99_ms": round(at(0.99)),
            "cpu_ms": round(cpu / count.max(1) as f64),
            "rss_mb": round(machine::memory(self.control.child.id(), "VmRSS")),
        })
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
