//! Which crate may depend on which (ARCHITECTURE.md, "The crates"). Read from
//! `cargo metadata`, so that a new edge shows up however it was declared.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// (crate, the crates of ours that it may depend on outside its tests).
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("leno-base", &[]),
    ("leno-api", &["leno-base"]),
    ("leno-xds", &["leno-api", "leno-base"]),
    ("leno-derive", &["leno-base"]),
    ("leno-tls", &["leno-base"]),
    ("leno-proxy", &["leno-tls", "leno-xds", "leno-api", "leno-base"]),
    ("leno-gotemplate", &["leno-api", "leno-base"]),
    ("leno-control", &["leno-derive", "leno-gotemplate", "leno-tls", "leno-xds", "leno-api", "leno-base"]),
    ("leno-agent", &["leno-tls", "leno-xds", "leno-api", "leno-base"]),
    ("leno-node", &["leno-base"]),
    ("leno-kubelet", &["leno-node", "leno-base"]),
    ("leno-samples", &[]),
    ("leno-testkit", &["leno-api", "leno-base", "leno-kubelet", "leno-node", "leno-xds"]),
    (
        "leno",
        &[
            "leno-proxy",
            "leno-control",
            "leno-agent",
            "leno-gotemplate",
            "leno-kubelet",
            "leno-node",
            "leno-samples",
            "leno-xds",
            "leno-api",
            "leno-base",
        ],
    ),
    ("leno-bench", &["leno-api", "leno-base", "leno-control", "leno-proxy", "leno-testkit", "leno-xds"]),
    ("leno-fuzz", &["leno-proxy", "leno-tls", "leno-api", "leno-base"]),
    ("xtask", &[]),
];

/// Only in tests.
const DEVELOPMENT_ONLY: &str = "leno-testkit";

/// Edges that the table does not allow, and crates that it does not know.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    Ok(violations(&metadata))
}

fn violations(metadata: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = |name: &str| packages.iter().any(|package| package["name"] == name);
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("{name}: not in the table of layers (xtask/src/layers.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            let fine =
                !ours(target) || allowed.contains(&target) || (for_tests && target == DEVELOPMENT_ONLY);
            if !fine {
                problems.push(format!("{name} must not depend on {target}"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::violations;

    #[test]
    fn upward_edges_and_unknown_crates_are_problems() {
        let metadata = json!({"packages": [
            {"name": "leno-base", "dependencies": [{"name": "leno-api", "kind": null}]},
            {"name": "leno-api", "dependencies": [{"name": "leno-testkit", "kind": "dev"}, {"name": "bytes", "kind": null}]},
            {"name": "leno-testkit", "dependencies": []},
            {"name": "leno-new", "dependencies": []},
        ]});
        let expected = [
            "leno-base must not depend on leno-api",
            "leno-new: not in the table of layers (xtask/src/layers.rs)",
        ];
        assert_eq!(violations(&metadata), expected);
    }
}
