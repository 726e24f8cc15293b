//! Pods for real. This binary is the test's runner (outer process), the node (inner process) and the program
//! that containers run, depending on its arguments; hence its own `main`.
//!
//! Each scenario is a Pod and what must come of it: the lines that its containers say, in the order in which they
//! say them, and how it ends. Nothing sleeps: containers wait for files, and the test for states.

#![cfg(target_os = "linux")]

mod program;
mod scenarios;
mod world;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use leno_node::{InnerSpec, Mode, Node, Outer, Support, support};

/// All scenarios together.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("program") => program::run(arguments.get(1..).unwrap_or_default()),
        _ if Node::is_inner() => inside(),
        Some("--list") => Ok(()),
        _ => outside(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn outside(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    match support() {
        Support::Namespaces(Mode::Root) => {}
        Support::Namespaces(Mode::User) => {
            println!("skipped: pods: this is an ordinary user");
            return Ok(());
        }
        Support::None { reason } => {
            println!("skipped: pods: {}", reason.replace('\n', "; "));
            return Ok(());
        }
    }
    let only = arguments.iter().find(|it| !it.starts_with('-')).cloned().unwrap_or_default();
    let spec = InnerSpec {
        mode: Mode::Root,
        argv: vec!["pods".into()],
        environment: vec![("ONLY".into(), only.into())],
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut outer = Outer::start(spec).await?;
        let exit = tokio::time::timeout(LIMIT, outer.wait()).await??;
        if exit.success() { Ok(()) } else { Err(format!("the inner process: {exit}").into()) }
    })
}

fn inside() -> Result<(), Box<dyn Error>> {
    let node = Node::enter(leno_node::Network::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(scenarios::run(&node))
}
