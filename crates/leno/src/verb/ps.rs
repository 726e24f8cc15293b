//! `leno ps`: what a running `leno up` runs.

use std::process::ExitCode;

use crate::cli::Failure;
use crate::out::{out, outln};

/// Prints a table of pods with their addresses, and what is published where.
#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    /// The mesh, if several run
    #[arg(long)]
    name: Option<String>,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Ps {
    #[cfg(target_os = "linux")]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        use crate::up::client::Client;
        use crate::up::display;

        let overview = Client::connect(self.name.as_deref())?.overview()?;
        if self.json {
            outln!("{}", serde_json::to_string_pretty(&overview)?);
        } else {
            out!("{}", display::table(&overview, None));
        }
        Ok(ExitCode::SUCCESS)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Err(Failure::Error(anyhow::anyhow!("no mesh runs here: leno up needs Linux so far")))
    }
}
