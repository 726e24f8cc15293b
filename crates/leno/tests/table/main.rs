//! Behaviour, not only shape: tables of requests that go through our own proxy and through the real
//! Envoy, each configured by our control plane, over both variants of xDS. What must come of each
//! row is written in the table, and both must do it; neither may refuse anything that it is sent.
//!
//! Each run (a mesh, a proxy, a variant) has a process and namespaces of its own, in which pods,
//! redirection and identities are as in a cluster ([`place`]). This binary is the runner and that
//! process, depending on its arguments; hence its own `main`. How to write a mesh: meshes/README.md.
//!
//! `TABLE=mesh` runs one mesh, `TABLE_ROW=text` the rows that contain that, `TABLE_VERBOSE=1` shows
//! what the proxies say and which rows are slow, `TABLE_KEEP=folder` writes their admin pages there.

mod agent;
mod backend;
mod bootstrap;
mod check;
mod client;
#[allow(dead_code, reason = "shared with the tests of the proxy, which use all of it")]
#[path = "../../../proxy/tests/tracing/collect.rs"]
mod collect;
mod collector;
mod inside;
mod keys;
mod mesh;
mod place;
mod row;
mod scene;
#[allow(dead_code, reason = "shared with the tests of the protocol, which use all of it")]
#[path = "../../../xds/tests/support/mod.rs"]
mod support;
mod token;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_node::{InnerSpec, Mode, Node, Outer, Support};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::mesh::Mesh;
use crate::place::Product;

/// A run takes some seconds.
const LIMIT: Duration = Duration::from_secs(240);
/// Runs at a time: most of a run is waiting.
const AT_ONCE: usize = 4;
/// What the tables have together at least.
const ROWS: usize = 500;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) mesh: String,
    pub(crate) product: Product,
    /// What pods run that stand for the rest of a mixed mesh.
    pub(crate) other: Product,
    pub(crate) delta: bool,
    /// A folder of its own.
    pub(crate) folder: String,
    /// Only rows that contain this.
    pub(crate) only: String,
    pub(crate) verbose: bool,
}

impl Run {
    pub(crate) fn name(&self) -> String {
        let product = if matches!(self.product, Product::Ours) { "Leno" } else { "Envoy" };
        format!("{}, {product}, {}", self.mesh, if self.delta { "delta" } else { "state of the world" })
    }

    fn arguments(&self) -> Vec<String> {
        let (product, other) = (self.product.text(), self.other.text());
        let delta = self.delta.to_string();
        ["table", "inside", &self.mesh, product, other, &delta, &self.folder].map(str::to_owned).to_vec()
    }

    fn read(arguments: &[String]) -> Option<Run> {
        let [inside, mesh, product, other, delta, folder] = arguments else { return None };
        let run = Run {
            mesh: mesh.clone(),
            product: Product::read(product),
            other: Product::read(other),
            delta: delta == "true",
            folder: folder.clone(),
            only: std::env::var("TABLE_ROW").unwrap_or_default(),
            verbose: std::env::var_os("TABLE_VERBOSE").is_some(),
        };
        (inside == "inside").then_some(run)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if Node::is_inner() {
        return run_inside(&arguments);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    match run_all() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The inner process: what is wrong goes to a file.
fn run_inside(arguments: &[String]) -> ExitCode {
    let Some(run) = Run::read(arguments) else { return ExitCode::FAILURE };
    let wrong = inside::run(&run).unwrap_or_else(|error| vec![format!("cannot run: {error}")]);
    let written = std::fs::write(format!("{}/wrong", run.folder), wrong.join("\n"));
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all() -> Result<bool, Box<dyn Error>> {
    let only = std::env::var("TABLE").unwrap_or_default();
    let folder = tempfile::tempdir()?;
    let mut meshes = mesh::all()?;
    let mut count = 0;
    for name in &meshes {
        let rows = Mesh::read(name, folder.path())?.count();
        println!("{name}: {rows} rows");
        count += rows;
    }
    if count < ROWS {
        return Err(format!("only {count} rows").into());
    }
    meshes.retain(|name| only.is_empty() || *name == only);
    let mode = match leno_node::support() {
        Support::Namespaces(mode) => mode,
        Support::None { reason } => {
            println!("skipped: namespaces: {}", reason.replace('\n', "; "));
            return Ok(true);
        }
    };
    let envoy = leno_testkit::envoy::binary().map(|path| Product::Envoy(path.display().to_string()));
    let both = match envoy {
        Some(envoy) => vec![(Product::Ours, envoy.clone()), (envoy, Product::Ours)],
        None => vec![(Product::Ours, Product::Ours)],
    };
    let mut runs = Vec::new();
    for mesh in meshes {
        let environment = Mesh::read(&mesh, folder.path())?.environment;
        for (product, other) in &both {
            for delta in [true, false] {
                let folder = folder.path().join(runs.len().to_string());
                std::fs::create_dir(&folder)?;
                let folder = folder.display().to_string();
                let (mesh, product, other) = (mesh.clone(), product.clone(), other.clone());
                let run = Run { mesh, product, other, delta, folder, only: String::new(), verbose: false };
                runs.push((run, environment.clone()));
            }
        }
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(all(runs, mode))
}

/// Runs, each with the variables of its control plane.
async fn all(runs: Vec<(Run, Vec<(String, String)>)>, mode: Mode) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (run, environment) in runs {
        let room = Arc::clone(&room);
        tasks.spawn(async move {
            let _permit = room.acquire().await;
            let start = Instant::now();
            let wrong = outside(&run, environment, mode).await;
            (run, wrong, start.elapsed())
        });
    }
    let mut good = true;
    while let Some(done) = tasks.join_next().await {
        let (run, wrong, took) = done?;
        let verdict = if wrong.is_empty() { "ok" } else { "FAILED" };
        println!("{} ({took:.1?}): {verdict}", run.name());
        wrong.lines().for_each(|line| println!("    {line}"));
        good &= wrong.is_empty();
    }
    println!("all in {:.1?}", start.elapsed());
    Ok(good)
}

/// The outer process of a run; gives what is wrong.
async fn outside(run: &Run, environment: Vec<(String, String)>, mode: Mode) -> String {
    let argv = run.arguments().into_iter().map(Into::into).collect();
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    let mut outer = match Outer::start(InnerSpec { mode, argv, environment }).await {
        Ok(outer) => outer,
        Err(error) => return error.to_string(),
    };
    match tokio::time::timeout(LIMIT, outer.wait()).await {
        Ok(Ok(exit)) if exit.success() => {}
        Ok(exit) => return format!("the inner process: {exit:?}"),
        Err(_) => return format!("not over after {LIMIT:?}"),
    }
    std::fs::read_to_string(format!("{}/wrong", run.folder)).unwrap_or_else(|error| error.to_string())
}
