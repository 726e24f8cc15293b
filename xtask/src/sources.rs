//! The Rust sources of the repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One source file.
pub(crate) struct Source {
    /// Relative to the workspace, with `/`.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

/// All `.rs` files of our own, sorted by path.
pub(crate) fn all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["crates", "samples", "bench", "fuzz", "xtask", "e2e"].iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let path = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|first, second| first.path.cmp(&second.path));
    Ok(sources)
}

impl Source {
    /// Whether it holds nothing but tests.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/") || self.path.starts_with("e2e/")
    }

    /// The lines before the file's own test module, which is its end. A test module that is a file
    /// of its own may be declared anywhere.
    pub(crate) fn code(&self) -> impl Iterator<Item = &str> {
        let opens = |rest: &str| {
            let mut lines = rest.lines().skip(2);
            lines.next().is_some_and(|line| line.starts_with("mod ") && line.contains('{'))
        };
        let mut marks = self.text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| self.text.split_at(at));
        marks.find(|(_, rest)| opens(rest)).map_or(self.text.as_str(), |(code, _)| code).lines()
    }
}
