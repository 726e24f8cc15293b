//! Measuring one case: every proxy in every size, in turns and in random order.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::backend::{BODY, Backend};
use crate::cases::{Case, Kind, Size, Traffic, Wanted};
use crate::config::{self, Site};
use crate::load::{Load, Outcome, Plan, Speaks};
use crate::machine::{self, Cores};
use crate::peers::{Peer, Running, free_port};
use crate::verify;
use crate::wire::{pattern, tls};

/// What the command line sets.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// All that may be used.
    pub(crate) cores: Vec<usize>,
    pub(crate) rounds: usize,
    /// Seconds at full speed, and at the fixed rate.
    pub(crate) saturated: Duration,
    pub(crate) fixed: Duration,
    /// Time before anything is counted.
    pub(crate) warm_up: Duration,
    /// Time from the first answer until a proxy has given back what only its start needed.
    pub(crate) settle: Duration,
    /// Instead of the case's rate.
    pub(crate) rate: Option<f64>,
}

/// The figures of one proxy in one round, by name (see README.md).
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(pub(crate) BTreeMap<&'static str, f64>);

impl Figures {
    fn set(&mut self, name: &'static str, value: f64) {
        self.0.insert(name, value);
    }
}

/// One proxy in one size of the case.
#[derive(Clone, Debug)]
pub(crate) struct Taker {
    pub(crate) peer: &'static str,
    pub(crate) size: usize,
    /// One entry a round.
    pub(crate) rounds: Vec<Figures>,
    /// Why it gets no figures.
    pub(crate) refused: Option<String>,
}

/// What came of a case.
pub(crate) struct CaseResult {
    pub(crate) wanted: Wanted,
    pub(crate) takers: Vec<Taker>,
    pub(crate) notes: Vec<String>,
}

/// Measures a case.
pub(crate) fn run(
    wanted: &Wanted,
    peers: &[Peer],
    backend: &Backend,
    folder: &Path,
    options: &Options,
    random: &mut impl FnMut(usize) -> usize,
) -> Result<CaseResult> {
    let case = &wanted.case;
    let mut result = CaseResult { wanted: wanted.clone(), takers: Vec::new(), notes: Vec::new() };
    for peer in peers {
        let takers = wanted.sizes.iter().map(|size| Taker {
            peer: peer.name,
            size: *size,
            rounds: Vec::new(),
            refused: None,
        });
        result.takers.extend(takers);
    }
    for round in 0..options.rounds {
        eprintln!("{}: round {} of {}", case.name, round + 1, options.rounds);
        let mut order: Vec<usize> = (0..result.takers.len()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random(at + 1));
        }
        for index in order {
            let taker = &mut result.takers[index];
            let Some(peer) = peers.iter().find(|peer| peer.name == taker.peer) else { continue };
            if taker.refused.is_some() {
                continue;
            }
            let turn = Turn { case, size: taker.size, peer, backend, folder, options };
            match turn.take(round == 0, &mut result.notes) {
                Ok(figures) => taker.rounds.push(figures),
                Err(error) => {
                    taker.refused = Some(format!("{error:#}"));
                    taker.rounds.clear();
                }
            }
        }
    }
    result.notes.dedup();
    Ok(result)
}

/// About how long a case takes, for who waits: what is waited for in every turn, and what starting
/// and checking took on a machine of 2 cores.
pub(crate) fn estimate(wanted: &Wanted, peers: &[Peer], options: &Options) -> Duration {
    let case = &wanted.case;
    let mut all = Duration::ZERO;
    for (peer, size) in peers.iter().flat_map(|peer| wanted.sizes.iter().map(move |size| (peer, *size))) {
        let large = match case.size {
            Size::Clusters | Size::Hosts => u32::try_from(size).unwrap_or(u32::MAX),
            Size::None | Size::Connections | Size::Cores => 0,
        };
        let (start, each) = match peer.name {
            "envoy" => (Duration::from_millis(800), Duration::from_micros(1200)),
            _ => (Duration::from_millis(200), Duration::from_micros(60)),
        };
        let turn = match case.kind {
            Kind::Scale => options.settle,
            Kind::Idle => {
                let requests = Duration::from_millis(u64::try_from(size).unwrap_or(u64::MAX) / 2);
                options.warm_up + options.settle + (requests + Duration::from_millis(500)) * 2
            }
            Kind::Load { rate, .. } => {
                let fixed = rate > 0.0 && !options.fixed.is_zero();
                let fixed = if fixed { options.warm_up + options.fixed } else { Duration::ZERO };
                options.settle + options.warm_up + options.saturated + fixed
            }
        };
        let rounds = u32::try_from(options.rounds).unwrap_or(u32::MAX);
        let check = Duration::from_millis(500);
        all += (start + each * large + turn) * rounds + check;
    }
    all
}

/// One proxy's turn in a round.
struct Turn<'a> {
    case: &'a Case,
    size: usize,
    peer: &'a Peer,
    backend: &'a Backend,
    folder: &'a Path,
    options: &'a Options,
}

impl Turn<'_> {
    fn take(&self, verify: bool, notes: &mut Vec<String>) -> Result<Figures> {
        let workers = config::workers(self.case, self.size);
        let cores = Cores::split(&self.options.cores, workers);
        if cores.shared {
            notes.push(format!(
                "{workers} cores for the proxy leave none for the load: compare CPU us/req only"
            ));
        }
        machine::pin(&cores.load)?;
        // A port that was free may be taken meanwhile.
        let mut proxy = self.start(workers, &cores).or_else(|_| self.start(workers, &cores))?;
        let mut figures = Figures::default();
        let outcome = match self.case.kind {
            Kind::Scale => self.scale(&proxy, verify, &mut figures),
            Kind::Idle => self.idle(&proxy, verify, &mut figures),
            Kind::Load { .. } => self.load(&proxy, verify, &cores, &mut figures),
        };
        // That it has ended says more than a lost connection.
        proxy.check()?;
        outcome?;
        Ok(figures)
    }

    /// Starts the proxy on ports that are free.
    fn start(&self, workers: usize, cores: &Cores) -> Result<Running> {
        let site = Site {
            port: free_port()?,
            admin: free_port()?,
            backend: self.backend,
            folder: self.folder,
            size: self.size,
        };
        let path = self.folder.join(format!("{}-{}.yaml", self.peer.name, self.case.name));
        std::fs::write(&path, config::bootstrap(self.case, &site))?;
        self.peer.start(&path, site.port, workers, &cores.proxy)
    }

    fn plan(&self, proxy: &Running) -> Result<Plan> {
        let Kind::Load { slots, body, fresh, .. } = self.case.kind else {
            return Ok(Plan {
                target: proxy.address,
                speaks: Speaks::Http1(self.requests(BODY)),
                connections: config::connections(self.case, self.size),
                slots: 1,
                tls: None,
                fresh: false,
                body: BODY,
            });
        };
        let host = "svc-7.default.svc.cluster.local";
        let speaks = match self.case.traffic {
            Traffic::Http1 => Speaks::Http1(self.requests(body)),
            Traffic::Http2 => Speaks::Http2(verify::request_block(host, false)),
            Traffic::Grpc => {
                // Prefix and message together have `body` bytes.
                let text = pattern(body - 5);
                let mut message = vec![0];
                message.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
                message.extend_from_slice(&text);
                Speaks::Grpc { open: verify::request_block(host, true), message }
            }
            Traffic::Tcp => Speaks::Echo(pattern(body)),
        };
        let tls = verify::tls_options(self.case, !fresh);
        Ok(Plan {
            target: proxy.address,
            speaks,
            connections: config::connections(self.case, self.size),
            slots,
            tls: tls.map(|options| tls::client(self.folder, options)).transpose()?,
            fresh,
            body,
        })
    }

    /// HTTP/1.1 requests, one for each host that is asked for.
    fn requests(&self, body: usize) -> Vec<Vec<u8>> {
        let one = |(index, host): (usize, String)| {
            let user = if self.case.config.policy.is_some() {
                format!("x-user: {index}\r\n")
            } else {
                String::new()
            };
            format!(
                "GET /b/{body} HTTP/1.1\r\nHost: {host}\r\nuser-agent: bench/1.0\r\naccept: */*\r\n\
                 x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\n{user}\r\n"
            )
            .into_bytes()
        };
        config::hosts(self.case, self.size).into_iter().enumerate().map(one).collect()
    }

    fn load(&self, proxy: &Running, verify: bool, cores: &Cores, figures: &mut Figures) -> Result<()> {
        let Kind::Load { rate, .. } = self.case.kind else { return Ok(()) };
        let pid = proxy.pid();
        machine::pause(self.options.settle);
        figures.set("rss_mb", machine::memory(pid, "VmRSS"));
        if verify {
            verify::check(self.case, self.size, proxy, self.folder)?;
        }
        let load = Load::open(self.plan(proxy)?)?;
        let (outcome, load) = load.run(self.options.warm_up, None)?;
        fine(&outcome)?;
        let (sum, load) = self.measured(load, pid, cores, self.options.saturated, None)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            let seconds = sum.outcome.elapsed.as_secs_f64();
            figures.set("rps", sum.outcome.latency.total() as f64 / seconds);
            figures.set("mbps", sum.outcome.bytes as f64 / seconds / 1e6);
        }
        figures.set("cpu_sat", sum.cpu);
        figures.set("core", sum.core);
        figures.set("load_core", sum.load_core);
        let rate = self.options.rate.unwrap_or(rate);
        if rate > 0.0 && !self.options.fixed.is_zero() {
            let (outcome, load) = load.run(self.options.warm_up, Some(rate))?;
            fine(&outcome)?;
            let (sum, _load) = self.measured(load, pid, cores, self.options.fixed, Some(rate))?;
            figures.set("cpu_fixed", sum.cpu);
            figures.set("p50", sum.outcome.latency.quantile(0.5));
            figures.set("p99", sum.outcome.latency.quantile(0.99));
            figures.set("p999", sum.outcome.latency.quantile(0.999));
        }
        figures.set("rss_after_mb", machine::memory(pid, "VmRSS"));
        Ok(())
    }

    fn measured(
        &self,
        load: Load,
        pid: u32,
        cores: &Cores,
        duration: Duration,
        rate: Option<f64>,
    ) -> Result<(Sum, Load)> {
        let before = (machine::processor_time(pid), machine::busy(&cores.load));
        let (outcome, load) = load.run(duration, rate)?;
        let cpu = machine::processor_time(pid).saturating_sub(before.0).as_secs_f64();
        let load_busy = machine::busy(&cores.load) - before.1;
        fine(&outcome)?;
        let seconds = outcome.elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = |time: f64, count: u64| time / count as f64;
        let sum = Sum {
            cpu: each(cpu * 1e6, outcome.latency.total()),
            core: each(cpu / seconds, cores.proxy.len() as u64),
            load_core: each(load_busy / seconds, cores.load.len() as u64),
            outcome,
        };
        Ok((sum, load))
    }

    /// From the start to the first answer of the last virtual host.
    fn scale(&self, proxy: &Running, verify: bool, figures: &mut Figures) -> Result<()> {
        let last = config::domains(self.size - 1);
        let request = format!("GET /b/{BODY} HTTP/1.1\r\nHost: {}\r\n\r\n", last[2]).into_bytes();
        let plan = Plan { speaks: Speaks::Http1(vec![request]), ..self.plan(proxy)? };
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let (outcome, _) = Load::open(plan.clone())?.run(Duration::from_millis(3), None)?;
            if outcome.latency.total() > 0 {
                break;
            }
            ensure!(Instant::now() < limit, "no answer from the last virtual host: {:?}", outcome.problem);
        }
        figures.set("load_s", proxy.started.elapsed().as_secs_f64());
        let pid = proxy.pid();
        figures.set("load_cpu_s", machine::processor_time(pid).as_secs_f64());
        machine::pause(self.options.settle);
        figures.set("rss_mb", machine::memory(pid, "VmRSS"));
        figures.set("peak_mb", machine::memory(pid, "VmHWM"));
        if verify {
            verify::check(self.case, self.size, proxy, self.folder)?;
        }
        Ok(())
    }

    /// Memory of connections that had one answer each.
    fn idle(&self, proxy: &Running, verify: bool, figures: &mut Figures) -> Result<()> {
        let pid = proxy.pid();
        if verify {
            verify::check(self.case, self.size, proxy, self.folder)?;
        }
        // Pools of buffers and of connections to the back end are not what is counted.
        let one = Plan { connections: 1, ..self.plan(proxy)? };
        fine(&Load::open(one)?.run(self.options.warm_up, None)?.0)?;
        machine::pause(self.options.settle);
        let before = machine::memory(pid, "VmRSS");
        figures.set("rss_mb", before);
        let mut load = Load::open(self.plan(proxy)?)?;
        // One request each, a thousand or two a second.
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = self.size as f64;
        for _ in 0..2 {
            let (outcome, after) = load.run(Duration::from_secs_f64(count / 2000.0), Some(2000.0))?;
            fine(&outcome)?;
            load = after;
            machine::pause(Duration::from_millis(500));
            figures.set("kb_per_conn", (machine::memory(pid, "VmRSS") - before) * 1024.0 / count);
        }
        Ok(())
    }
}

/// A measured phase.
struct Sum {
    outcome: Outcome,
    /// Microseconds of processor time a request.
    cpu: f64,
    /// Shares of their cores that were busy.
    core: f64,
    load_core: f64,
}

/// Every answer under load must be right.
fn fine(outcome: &Outcome) -> Result<()> {
    ensure!(
        outcome.errors == 0,
        "{} wrong answers under load, the first: {}",
        outcome.errors,
        outcome.problem.as_deref().unwrap_or_default()
    );
    ensure!(outcome.latency.total() > 0, "no answer under load");
    Ok(())
}

/// The base of `growth`: the smallest size of the same case.
pub(crate) fn is_sized(case: &Case) -> bool {
    case.size != Size::None
}

/// Open files that a case needs, of the proxy and of us.
pub(crate) fn files(case: &Case, size: usize) -> u64 {
    let files = match case.size {
        Size::Connections => size * 3,
        Size::Clusters if case.kind != Kind::Scale => size * 2,
        Size::None | Size::Hosts | Size::Clusters | Size::Cores => 1000,
    };
    u64::try_from(files).unwrap_or(u64::MAX)
}

/// Fails early if the machine cannot hold what a case opens.
pub(crate) fn check_files(wanted: &[Wanted], limit: u64) -> Result<()> {
    let most = wanted.iter().flat_map(|wanted| wanted.sizes.iter().map(|size| files(&wanted.case, *size)));
    let most = most.max().unwrap_or(0);
    ensure!(most < limit, "{most} open files are needed, {limit} allowed (ulimit -n)");
    Ok(())
}
