//! `leno validate`: what the control plane would say about a folder, without running it.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Failure;
use crate::out::outln;

/// Prints one line per fault, with file, line and field. The exit code is 1 if there are errors, or if
/// something cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Validate {
    /// Folders or files of Kubernetes and Istio YAML, `-` for what is piped in
    #[arg(required_unless_present = "filenames", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The same, as istioctl has it
    #[arg(short = 'f', long = "filename", value_name = "PATH", hide = true)]
    filenames: Vec<PathBuf>,
}

impl Validate {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let paths: Vec<PathBuf> = self.paths.into_iter().chain(self.filenames).collect();
        let (piped, paths): (Vec<PathBuf>, Vec<PathBuf>) =
            paths.into_iter().partition(|path| path.as_os_str() == "-");
        let mut texts = Vec::new();
        // However often it is named, it can be read once.
        for path in piped.iter().take(1) {
            super::analyze::gather(path, false, true, &mut texts)?;
        }
        let diagnostics = leno_control::validate(&paths, &texts)?;
        let mut errors = 0;
        for diagnostic in &diagnostics {
            let severity = match diagnostic.severity {
                leno_control::Severity::Error => {
                    errors += 1;
                    "error"
                }
                leno_control::Severity::Warning => "warning",
            };
            outln!("{severity}: {diagnostic}");
        }
        if errors > 0 {
            return Ok(ExitCode::FAILURE);
        }
        outln!("{}", if diagnostics.is_empty() { "no faults found" } else { "no errors found" });
        Ok(ExitCode::SUCCESS)
    }
}
