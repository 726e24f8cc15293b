//! `leno completion SHELL`.

use std::process::ExitCode;

use clap_complete::Shell;

use crate::cli::{self, Failure};
use crate::out::out;

/// Prints a completion script: `leno completion bash > /etc/bash_completion.d/leno`.
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// The shell to write for
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut cli::command(), "leno", &mut script);
        out!("{}", String::from_utf8_lossy(&script));
        Ok(ExitCode::SUCCESS)
    }
}
