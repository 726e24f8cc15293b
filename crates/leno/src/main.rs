//! The `leno` binary: one program, many names. `cli.rs` says which verb runs, `verb/` has one file
//! for each, `up/` is the mesh on one machine. START HERE, then `cli.rs`.

// Verbs print by `out`: `println!` panics when nobody reads.
#![warn(clippy::print_stdout)]

use std::process::ExitCode;

mod capture;
mod cli;
#[cfg(target_os = "linux")]
mod cni;
mod install;
mod out;
#[cfg(target_os = "linux")]
mod up;
mod verb;

#[global_allocator]
static ALLOCATOR: leno_proxy::Allocator = leno_proxy::Allocator;

fn main() -> ExitCode {
    cli::run(std::env::args_os().collect())
}
