//! The `leno` binary: one program, many names. `cli.rs` says which verb runs, `verb/` has one file
//! for each, `up/` is the mesh on one machine. START HERE, then `cli.rs`.

use std::process::ExitCode;

mod cli;
#[cfg(target_os = "linux")]
mod up;
mod verb;

/// A proxy allocates and frees in the same worker thread nearly always, which mimalloc is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(std::env::args_os().collect())
}
