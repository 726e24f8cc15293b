//! The program as scripts meet it: what it prints, to whom, and how it ends.

use std::process::{Command, Stdio};

fn leno(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `leno crd | head`: more than a pipe holds is written, and nobody reads it.
#[test]
fn a_reader_that_has_enough_is_no_fault() {
    let mut child = leno(&["crd"]).spawn().expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141));
}

#[test]
fn what_is_wrong_is_said_once() {
    for (arguments, code, expected) in [
        (
            &["validate", "/nonexistent"][..],
            1,
            "leno: /nonexistent: No such file or directory (os error 2)\n",
        ),
        (
            &["verify-install", "-c", "/nonexistent"],
            1,
            "leno: failed to read kubeconfig from '\"/nonexistent\"': No such file or directory (os error 2)\n",
        ),
        (&["crd", "nosuch"], 1, "leno: there is no definition whose name begins with \"nosuch\"\n"),
        (&["proxy"], 1, "leno: one of --config-path and --config-yaml is needed\n"),
    ] {
        let output = leno(arguments).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected, "{arguments:?}");
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(code), true), "{arguments:?}");
    }
}
