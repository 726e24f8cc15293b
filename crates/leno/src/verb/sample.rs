//! `leno sample ARGS...`, hidden: what `leno up` runs for containers of the samples' image.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cli::Failure;

/// Arguments of a sample service, as `bookinfo reviews`.
#[derive(Debug, clap::Args)]
pub(crate) struct Sample {
    /// Which service, and its options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Sample {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        leno_samples::run(self.arguments)?;
        Ok(ExitCode::SUCCESS)
    }
}
