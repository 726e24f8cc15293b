//! `leno logs`: the output of what a running `leno up` runs.

use std::process::ExitCode;

use crate::cli::Failure;

/// Prints the last lines of output, all of them or those of some pods.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The beginning of a pod's name, optionally with a container as `POD/CONTAINER`
    pod: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// How many earlier lines to print
    #[arg(long, default_value_t = 1000)]
    tail: usize,
    /// The mesh, if several run
    #[arg(long)]
    name: Option<String>,
}

impl Logs {
    #[cfg(target_os = "linux")]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        use std::io::Write;

        use crate::up::client::Client;

        let client = Client::connect(self.name.as_deref())?;
        let mut out = std::io::stdout().lock();
        for line in client.logs(self.pod.as_deref(), self.follow, self.tail)? {
            // A reader that has gone away, as `head`, ends it.
            if writeln!(out, "{}", line?).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Err(Failure::Error(anyhow::anyhow!("no mesh runs here: leno up needs Linux so far")))
    }
}
