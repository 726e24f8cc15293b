//! `cargo xtask tidy`: the rules of the repository, checked. `cargo test -p xtask` runs the
//! same checks, so they are part of the ordinary test run.
//!
//! - `layers`: crates depend on each other only downwards (ARCHITECTURE.md, "The crates");
//! - `files`: sizes, module headers, unsafe code only where it is listed;
//! - `docs`: links of the documentation and paths of ARCHITECTURE.md lead somewhere;
//! - `deviations`: every `// Deviation:` comment is listed in docs/deviations.md.
//!
//! `cargo xtask deviations` rewrites docs/deviations.md from the comments; `compatibility` and
//! `crds` rewrite docs/compatibility.md and deploy/charts/base/files/crds from the control plane's types, through the
//! tests that check them. `profile` makes the profile that release builds are optimised by.

mod deviations;
mod docs;
mod files;
mod layers;
mod profile;
mod sources;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => {
            let problems = tidy()?;
            for problem in &problems {
                eprintln!("{problem}");
            }
            if problems.is_empty() { Ok(()) } else { bail!("{} problems", problems.len()) }
        }
        ["deviations"] => deviations::write(&root()),
        ["compatibility"] => update("UPDATE_COMPATIBILITY", "model::compatibility"),
        ["crds"] => update("UPDATE_CRDS", "model::crd"),
        ["profile"] => profile::make(&root()),
        _ => bail!("usage: cargo xtask tidy | deviations | compatibility | crds | profile"),
    }
}

/// Runs tests of the control plane that write what they would otherwise compare.
fn update(variable: &str, tests: &str) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "-p", "leno-control", "--lib", tests])
        .env(variable, "1")
        .current_dir(root())
        .status()?;
    if status.success() { Ok(()) } else { bail!("the tests {tests} failed") }
}

/// All rules; one line for each problem.
fn tidy() -> Result<Vec<String>> {
    let root = root();
    let mut problems = layers::check(&root)?;
    problems.extend(files::check(&root)?);
    problems.extend(docs::check(&root)?);
    problems.extend(deviations::check(&root)?);
    Ok(problems)
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.clone(), |parent| parent.to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        let problems = super::tidy().unwrap();
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }
}
