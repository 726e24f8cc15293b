//! Our proxy with the bootstraps that Istio's agent writes, and its command line, in place of Envoy.
//! `agent.rs` has such proxies at work.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// What pilot-agent starts Envoy with, beside the bootstrap.
const COMMAND_LINE: [&str; 16] = [
    "--drain-time-s",
    "45",
    "--drain-strategy",
    "immediate",
    "--local-address-ip-version",
    "v4",
    "--file-flush-interval-msec",
    "1000",
    "--disable-hot-restart",
    "--allow-unknown-static-fields",
    "-l",
    "warning",
    "--component-log-level",
    "misc:error",
    "--skip-deprecated-logs",
    "--concurrency=2",
];

fn validate(folder: &Path, bootstrap: &Value) -> Output {
    let envoy = folder.join("envoy");
    if !envoy.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_leno"), &envoy).expect("a link");
    }
    let file = folder.join("envoy-rev.json");
    std::fs::write(&file, bootstrap.to_string()).expect("writable");
    let mut command = Command::new(envoy);
    command.args(["--mode", "validate", "-c"]).arg(file).args(COMMAND_LINE);
    command.output().expect("it runs")
}

fn bootstrap(name: &str) -> Value {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../agent/tests/bootstrap").join(name);
    let text = std::fs::read_to_string(&file).expect("readable");
    serde_json::from_str(&text).expect("JSON")
}

/// The agent's own bootstraps are of the shape of Istio's, and real Envoys take them.
#[test]
fn bootstraps_are_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["sidecar.json", "sidecar-envoy.json", "gateway.json"] {
        let bootstrap = bootstrap(name);
        let output = validate(folder.path(), &bootstrap);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What we do not have is said, all of it, and nothing else is wrong.
#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bootstrap = bootstrap("gateway.json");
    bootstrap["cluster_manager"]["load_stats_config"] = serde_json::json!({
        "api_type": "GRPC", "grpc_services": { "envoy_grpc": { "cluster_name": "xds-grpc" } },
    });
    let output = validate(folder.path(), &bootstrap);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wrong: Vec<&str> = said.lines().filter(|line| line.contains("supported")).collect();
    assert_eq!(wrong.len(), 1, "{said}");
    assert!(said.contains("load_stats_config"), "{said}");
}
