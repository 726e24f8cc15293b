//! Leno beside Envoy: the project's benchmark. README.md says what is measured and how to read it.
//!
//! The proxies run on cores of their own, load generator (`load`) and back end (`backend`) on the
//! others, as threads of this program. `session` has the order of things: start a proxy, ask
//! whether it answers rightly (`verify`), load it, read what the kernel counted (`machine`).
//! `report` makes medians and ratios. `micro` counts instructions under callgrind instead.

mod backend;
mod cases;
mod config;
mod histogram;
mod load;
mod machine;
mod micro;
mod peers;
mod poll;
mod push;
mod record;
mod report;
mod session;
mod sidecar;
mod summary;
mod verify;
mod wire;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;

use crate::backend::Backend;
use crate::peers::Peer;
use crate::session::{CaseResult, Options};

/// As in `leno`: figures of its own code mean something only with its allocator.
#[global_allocator]
static ALLOCATOR: leno_proxy::Allocator = leno_proxy::Allocator;

/// Measures Leno beside Envoy on the same configuration
#[derive(Debug, clap::Parser)]
#[command(name = "leno-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Cases with commas (h1,idle:500,hosts:10:1000) or `all`
    #[arg(default_value = "h1")]
    cases: String,
    /// Rounds, in each of which every proxy has its turn
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Seconds at full speed in each turn
    #[arg(long, default_value_t = 2.5, value_name = "SECONDS")]
    saturated: f64,
    /// Seconds at the fixed rate in each turn
    #[arg(long, default_value_t = 2.5, value_name = "SECONDS")]
    fixed: f64,
    /// Requests a second at the fixed rate, instead of the case's
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,
    /// The `leno` to measure; by default it is built
    #[arg(long, value_name = "PATH")]
    proxy: Option<PathBuf>,
    /// Measure ours alone
    #[arg(long)]
    alone: bool,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the goals with what was measured, and how figures grow with size, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Take cases that are in the file of --json already from there
    #[arg(long, requires = "json")]
    resume: bool,
    /// Compare with goals; the status is 1 if one is missed
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = GOALS)]
    check: Option<PathBuf>,
    /// Every case for an instant and in small sizes, ours alone: does the harness work?
    #[arg(long)]
    quick: bool,
    /// Keep configurations and logs in this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Count instructions of parts of the proxy under callgrind
    Micro(micro::Arguments),
    /// How long changes take to reach all proxies from the control plane, and what they cost it
    Push(push::Arguments),
    /// What a sidecar holds in a large mesh
    Sidecar(sidecar::Arguments),
    /// What `push` and `sidecar` need: the control plane in this binary
    #[command(hide = true)]
    Control(push::ControlArguments),
    /// What `--quick` and `sidecar` measure: the proxy in this binary
    #[command(hide = true)]
    Proxy {
        #[arg(short = 'c')]
        config: PathBuf,
        #[arg(long)]
        concurrency: usize,
        #[arg(long)]
        log_level: String,
    },
}

const GOALS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/goals.json");

/// Cases of `--quick`; what the proxy does not support yet is reported and skipped there.
const QUICK: &str = "h1,h1istio,h2,mtls,h2mtls,handshake,body10k,body1m,grpc,tcp,tcpconn,log,ringhash,maglev,\
                     hosts:2:20,clusters:2:20,conns:2:50,cores:1,scale:20,idle:50";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.verb {
        Some(Verb::Micro(micro)) => micro::run(&micro),
        Some(Verb::Push(arguments)) => push::run(&arguments),
        Some(Verb::Sidecar(arguments)) => sidecar::run(&arguments),
        Some(Verb::Control(arguments)) => push::control(arguments),
        Some(Verb::Proxy { config, concurrency, log_level }) => {
            let options = leno_proxy::Options {
                config_path: Some(config),
                concurrency: Some(concurrency),
                log_level,
                ..leno_proxy::Options::default()
            };
            leno_proxy::run(options).map(|()| true).map_err(|error| anyhow::anyhow!("{error}"))
        }
        None => measure(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leno-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the cases; whether all proxies answered rightly and all goals were met.
fn measure(arguments: &Arguments) -> Result<bool> {
    ensure!(arguments.rounds > 0, "--rounds: at least one");
    let seconds = |text: f64| Duration::try_from_secs_f64(text).context("a number of seconds");
    let cores = machine::cores()?;
    let mut options = Options {
        cores: cores.clone(),
        rounds: arguments.rounds,
        saturated: seconds(arguments.saturated)?,
        fixed: seconds(arguments.fixed)?,
        warm_up: Duration::from_millis(500),
        settle: Duration::from_secs(2),
        rate: arguments.rate,
    };
    let mut list = arguments.cases.as_str();
    let mut peers = Vec::new();
    if arguments.quick {
        let instant = Duration::from_millis(100);
        options.rounds = 1;
        (options.saturated, options.fixed) = (instant, instant);
        (options.warm_up, options.settle) = (instant / 4, instant / 4);
        options.rate = Some(200.0);
        list = QUICK;
        peers.push(Peer::leno(std::env::current_exe()?));
    } else {
        if !arguments.alone {
            let envoy =
                leno_testkit::envoy::binary().context("no Envoy to compare with (--alone does without)")?;
            peers.push(Peer::envoy(envoy));
        }
        peers.push(Peer::leno(ours(arguments.proxy.as_deref())?));
    }
    let mut wanted = cases::parse(list)?;
    if let Some(own) = wanted.iter().find(|wanted| !arguments.alone && !cases::has_envoy(&wanted.case)) {
        bail!("Envoy has not what {} needs (--alone measures ours only)", own.case.name);
    }
    let files = machine::raise_file_limit()?;
    if list == "all" {
        for wanted in &mut wanted {
            let (case, most) = (wanted.case, wanted.sizes.len());
            wanted.sizes.retain(|size| session::files(&case, *size) < files);
            if wanted.sizes.len() < most {
                println!("{} is cut short: {files} open files are allowed (ulimit -n)", case.name);
            }
        }
        wanted.retain(|wanted| !wanted.sizes.is_empty());
    }
    session::check_files(&wanted, files)?;
    machine::pin(&machine::Cores::split(&cores, 1).load)?;
    let temporary = tempfile::tempdir()?;
    let folder = arguments.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(folder)?;
    wire::tls::make(folder)?;
    let backend = Backend::start(config::ENDPOINTS)?;
    let mut state =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_nanos());
    let mut random = move |bound: usize| {
        state = state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
        usize::try_from((state >> 96) % bound as u128).unwrap_or(0)
    };
    let facts = record::Facts {
        machine: machine::facts(&cores),
        rounds: options.rounds,
        seconds: [options.saturated, options.fixed].map(|time| time.as_secs_f64()),
        rate: options.rate,
        proxies: peers.iter().map(Peer::version).collect(),
    };
    let mut results: Vec<CaseResult> = Vec::new();
    if let Some(path) = arguments.json.as_deref().filter(|path| arguments.resume && path.exists()) {
        results = record::read(path, &facts, &wanted, &peers).with_context(|| path.display().to_string())?;
    }
    let known: Vec<&str> = results.iter().map(|result| result.wanted.case.name).collect();
    let mut left: Vec<&cases::Wanted> =
        wanted.iter().filter(|wanted| !known.contains(&wanted.case.name)).collect();
    left.reverse();
    eprintln!("{}", facts.machine);
    while let Some(wanted) = left.last() {
        let time: Duration = left.iter().map(|wanted| session::estimate(wanted, &peers, &options)).sum();
        eprintln!("{} of {} cases to go, about {}", left.len(), results.len() + left.len(), minutes(time));
        let result = session::run(wanted, &peers, &backend, folder, &options, &mut random)?;
        left.pop();
        print!("{}", result.table());
        results.push(result);
        if let Some(path) = &arguments.json {
            record::write(path, &facts, &results)?;
        }
    }
    if let Some(path) = &arguments.markdown {
        let goals = std::fs::read_to_string(arguments.check.as_deref().unwrap_or(Path::new(GOALS)))?;
        let text = summary::markdown(&serde_json::from_str(&goals)?, &facts, &results)?;
        std::fs::write(path, text)?;
    }
    let mut met = true;
    if let Some(path) = &arguments.check {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let (lines, all) = report::check(&serde_json::from_str(&text)?, &results)?;
        print!("{lines}");
        met = all;
    }
    Ok(met && !results.iter().any(CaseResult::has_refused))
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

/// The `leno` to measure: the one that was named, else built by the cargo that runs us.
fn ours(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        ensure!(path.is_file(), "--proxy {} is no file", path.display());
        return Ok(path.canonicalize()?);
    }
    let own = std::env::current_exe()?;
    let Some(cargo) = std::env::var_os("CARGO") else { bail!("--proxy PATH says which leno to measure") };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "leno", "--bin", "leno"]);
    if own.parent().is_some_and(|folder| folder.ends_with("release")) {
        command.arg("--release");
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    ensure!(command.status()?.success(), "leno cannot be built");
    Ok(own.with_file_name("leno"))
}
