//! `leno version`.

use std::process::ExitCode;

use crate::cli::Failure;
use crate::out::outln;

/// Prints the version, and what it is compatible with.
#[derive(Debug, clap::Args)]
pub(crate) struct Version {
    /// Print the number only
    #[arg(short, long)]
    short: bool,
}

impl Version {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.short {
            outln!("{}", env!("CARGO_PKG_VERSION"));
        } else {
            outln!("leno {}", env!("CARGO_PKG_VERSION"));
            outln!("proxy: Envoy v3 API, compared with Envoy 1.40");
            outln!("control plane: networking.istio.io v1, v1beta1, v1alpha3");
        }
        Ok(ExitCode::SUCCESS)
    }
}
