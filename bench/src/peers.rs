//! The proxies: which there are, and one of them running.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::machine;

/// Longest time until a proxy listens: Envoy with 10,000 clusters takes 15 s.
const PATIENCE: Duration = Duration::from_secs(120);

/// A proxy that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// In tables.
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
}

impl Peer {
    /// The real Envoy, the base of all ratios.
    pub(crate) fn envoy(program: PathBuf) -> Self {
        Self { name: "envoy", program, arguments: &["--use-dynamic-base-id", "--log-level", "error"] }
    }

    /// Ours.
    pub(crate) fn leno(program: PathBuf) -> Self {
        Self { name: "leno", program, arguments: &["proxy", "--log-level", "error"] }
    }

    /// Its name and what it says of its version.
    pub(crate) fn version(&self) -> String {
        let output = Command::new(&self.program).arg("--version").stdin(Stdio::null()).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("?");
        // Envoy: "…/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL".
        let version = line.split_once("version: ").map_or(line, |(_, version)| version);
        if version.starts_with(self.name) { version.to_owned() } else { format!("{} {version}", self.name) }
    }

    /// Starts it on `cores` with a configuration file, and waits until it listens.
    pub(crate) fn start(&self, config: &Path, port: u16, workers: usize, cores: &[usize]) -> Result<Running> {
        let log = config.with_extension("log");
        let output = File::create(&log)?;
        let mut command = Command::new(&self.program);
        command.args(self.arguments).arg("-c").arg(config).args(["--concurrency", &workers.to_string()]);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let started = Instant::now();
        // A child has the cores of the thread that starts it.
        let child = std::thread::scope(|scope| {
            let spawned = scope.spawn(|| -> Result<Child> {
                machine::pin(cores)?;
                command.spawn().with_context(|| self.program.display().to_string())
            });
            spawned.join().unwrap_or_else(|_| bail!("the thread that starts {} failed", self.name))
        })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut running = Running { child, address, started, log };
        while TcpStream::connect(address).is_err() {
            running.check()?;
            if started.elapsed() > PATIENCE {
                bail!("does not listen after {PATIENCE:?}");
            }
            machine::pause(Duration::from_millis(2));
        }
        Ok(running)
    }
}

/// A proxy that runs; it is ended when this is dropped.
pub(crate) struct Running {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// When it was started.
    pub(crate) started: Instant,
    log: PathBuf,
}

impl Running {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended, with its last words.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(5).collect();
            bail!("ended with {status}: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" | "));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        machine::end(&mut self.child);
    }
}

/// A port that is free now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
