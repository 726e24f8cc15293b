//! What the documentation names is there: the files that its links lead to, and the paths of
//! ARCHITECTURE.md, which says where things are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The document whose paths in backticks are checked too.
const MAP: &str = "ARCHITECTURE.md";

/// Problems of all documents.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let paths = paths(root)?;
    let mut problems = Vec::new();
    for path in paths.iter().filter(|path| path.ends_with(".md")) {
        let text = fs::read_to_string(root.join(path)).with_context(|| path.clone())?;
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        problems.extend(dead_links(path, &text, |link| root.join(folder).join(link).exists()));
        if path == MAP {
            problems.extend(dead_names(&text, &paths));
        }
    }
    Ok(problems)
}

/// All files and folders that may be named, relative to the workspace, folders with `/` at the end.
fn paths(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') || name == "target" {
                continue;
            }
            let path = folder.join(&name);
            let is_folder = entry.file_type()?.is_dir();
            let end = if is_folder { "/" } else { "" };
            paths.push(path.to_string_lossy().replace('\\', "/") + end);
            if is_folder {
                folders.push(path);
            }
        }
    }
    paths.sort();
    Ok(paths)
}

/// Links to files that are not there.
fn dead_links(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (_, rest) in line.match_indices("](").map(|(at, _)| line.split_at(at + 2)) {
            let link = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if !link.is_empty() && !link.contains(':') && !exists(link) {
                problems.push(format!("{path}:{number}: a link to {link}, which is not there"));
            }
        }
    }
    problems
}

/// Paths in backticks that no file and no folder has: whole ones, or the end of one.
fn dead_names(text: &str, paths: &[String]) -> Vec<String> {
    let is_there = |name: &str| {
        paths
            .iter()
            .any(|path| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/')))
    };
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let names = line.split('`').skip(1).step_by(2);
        let is_path = |name: &&str| {
            (name.ends_with('/') || name.ends_with(".rs")) && !name.contains(['<', '{', '*', ' ', ':'])
        };
        for name in names.filter(is_path).filter(|name| !is_there(name)) {
            problems.push(format!("{MAP}:{number}: there is no {name}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::{dead_links, dead_names};

    #[test]
    fn links_lead_somewhere() {
        let text =
            "[a](there.md) and [b](gone.md#part)\n[c](https://example.com) [d](#below) [e](there.md#x)\n";
        let found = dead_links("docs/x.md", text, |link| link == "there.md");
        assert_eq!(found, ["docs/x.md:1: a link to gone.md, which is not there"]);
    }

    #[test]
    fn paths_of_the_map_exist() {
        let paths = ["crates/a/src/tcp/", "crates/a/src/tcp/copy.rs"].map(str::to_owned);
        let text = "`tcp/` → `tcp/copy.rs` → `copy.rs` → `y.rs`\n`p/` `filters/<name>/` `fn` `Arc<Mutex>/`\n";
        let found = dead_names(text, &paths);
        assert_eq!(found, ["ARCHITECTURE.md:1: there is no y.rs", "ARCHITECTURE.md:2: there is no p/"]);
    }
}
