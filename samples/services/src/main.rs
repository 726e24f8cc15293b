//! The samples as a program of their own, for container images: `leno-samples bookinfo reviews`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match leno_samples::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-samples: {error:#}");
            ExitCode::FAILURE
        }
    }
}
