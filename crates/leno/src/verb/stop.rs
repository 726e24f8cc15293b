//! `leno stop`: ends a running `leno up`.

use std::process::ExitCode;

use crate::cli::Failure;
use crate::out::outln;

/// Ends a running mesh, and returns when nothing is left of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    /// The mesh, if several run
    #[arg(long)]
    name: Option<String>,
}

impl Stop {
    #[cfg(target_os = "linux")]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let client = crate::up::client::Client::connect(self.name.as_deref())?;
        let name = client.name().to_owned();
        client.stop()?;
        outln!("mesh {name} has ended");
        Ok(ExitCode::SUCCESS)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Err(Failure::Error(anyhow::anyhow!("no mesh runs here: leno up needs Linux so far")))
    }
}
