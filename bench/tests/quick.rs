//! The benchmark's own test: every case for an instant, on the proxy in this build. It says
//! nothing about speed; it fails when the harness has rotted or an answer is wrong.

use std::process::Command;

/// A case that the proxy refuses because it does not support something yet is no failure here.
const LATER: &str = "not supported";

#[test]
fn every_case_runs() {
    let output = Command::new(env!("CARGO_BIN_EXE_leno-bench")).arg("--quick").output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let refused: Vec<&str> = text.lines().filter(|line| line.contains(": refused: ")).collect();
    for line in &refused {
        assert!(line.contains(LATER), "{line}\n{errors}");
    }
    let status = output.status.code();
    assert!(status == Some(0) || (status == Some(1) && !refused.is_empty()), "{status:?}: {errors}");
    let measured = text.lines().filter(|line| line.starts_with("| leno")).count();
    println!("{measured} measured, {} refused as not supported yet", refused.len());
    assert!(measured >= 10, "{text}\n{errors}");
}

#[test]
fn wrong_command_lines_are_refused() {
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_leno-bench")).args(arguments).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, text) = run(&["--alone", "--proxy", "/nowhere", "h1"]);
    assert_eq!((status, text.as_str()), (Some(2), "leno-bench: --proxy /nowhere is no file\n"));
    let (status, text) = run(&["--rounds", "0"]);
    assert_eq!((status, text.as_str()), (Some(2), "leno-bench: --rounds: at least one\n"));
}

#[test]
fn changes_reach_simulated_proxies() {
    for mode in ["delta", "sotw"] {
        let output = Command::new(env!("CARGO_BIN_EXE_leno-bench"))
            .args(["push", "--services", "5", "--endpoints", "10", "--proxies", "4", "--repeat", "1"])
            .args(["--mode", mode, "--only", "endpoint,destination_rule,new_service"])
            .output()
            .expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let text = String::from_utf8_lossy(&output.stdout);
        let kinds: Vec<&str> =
            text.lines().filter_map(|line| line.split("\"kind\":\"").nth(1)?.split('"').next()).collect();
        assert_eq!(kinds, ["start", "connect", "endpoint", "destination_rule", "new_service"], "{text}");
    }
}

#[test]
fn a_sidecar_is_measured_before_and_after_it_is_used() {
    let output = Command::new(env!("CARGO_BIN_EXE_leno-bench"))
        .args(["sidecar", "--services", "4", "--endpoints", "2", "--calls", "2", "--pods", "--alone"])
        .args(["--settling", "0"])
        .output()
        .expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let called: Vec<&str> =
        text.lines().filter_map(|line| line.split("\"called\":").nth(1)?.split(',').next()).collect();
    assert_eq!(called, ["0", "2"], "{text}");
    assert!(text.lines().all(|line| !line.contains("\"rss_mb\":0.0")), "{text}");
}
