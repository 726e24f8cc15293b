//! Processes beside this one; those in pods are in `tests/namespaces.rs`.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Exit, LONGEST_LINE, Line, Process, ProcessSpec, Stream};

fn shell(script: &str) -> ProcessSpec {
    ProcessSpec {
        name: "test".into(),
        argv: vec!["sh".into(), "-c".into(), script.into()],
        ..ProcessSpec::default()
    }
}

/// Runs to the end: how it ended, and all its output.
async fn run(spec: &ProcessSpec) -> (Exit, Vec<Line>) {
    let (sender, mut receiver) = mpsc::channel(64);
    let process = Process::spawn(None, spec, &sender).await.unwrap();
    drop(sender);
    let mut lines = Vec::new();
    while let Some(line) = receiver.recv().await {
        lines.push(line);
    }
    (process.wait().await, lines)
}

async fn output(spec: &ProcessSpec) -> Vec<String> {
    run(spec).await.1.into_iter().map(|line| line.text).collect()
}

#[tokio::test]
async fn lines_are_tagged_and_the_exit_is_known() {
    let (exit, lines) = run(&shell("echo one; printf 'two\\r\\nthree'; exit 7")).await;
    assert_eq!(exit, Exit::Code(7));
    let line = |text: &str| Line { source: "test".into(), stream: Stream::Stdout, text: text.into() };
    assert_eq!(lines, [line("one"), line("two"), line("three")]);

    let (exit, lines) = run(&shell("echo oh >&2; kill -SEGV $$")).await;
    assert_eq!(exit, Exit::Signal(libc::SIGSEGV));
    assert_eq!(lines[0].stream, Stream::Stderr);
}

#[tokio::test]
async fn long_lines_come_in_pieces_and_nothing_is_lost() {
    let length = LONGEST_LINE * 2 + 5;
    let lines = output(&shell(&format!("head -c {length} /dev/zero | tr '\\0' x; echo; echo end"))).await;
    let lengths: Vec<usize> = lines.iter().map(String::len).collect();
    assert_eq!(lengths, [LONGEST_LINE, LONGEST_LINE, 5, 3]);
}

#[tokio::test]
async fn the_environment_and_directory_are_the_given_ones() {
    let spec = ProcessSpec {
        environment: vec![("REVIEWS_SERVICE_HOST".into(), "10.96.0.1".into())],
        directory: Some("/usr".into()),
        ..shell("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort; pwd")
    };
    let expected = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "REVIEWS_SERVICE_HOST=10.96.0.1",
        "/usr",
    ];
    assert_eq!(output(&spec).await, expected);
}

#[tokio::test]
async fn stopping_is_graceful_and_then_not() {
    let (sender, mut lines) = mpsc::channel(64);
    let polite = shell("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.01; done");
    let process = Process::spawn(None, &polite, &sender).await.unwrap();
    assert_eq!(lines.recv().await.unwrap().text, "ready");
    assert_eq!(process.stop(Duration::from_secs(60)).await, Exit::Code(4));
    assert_eq!(lines.recv().await.unwrap().text, "bye");
    assert_eq!(process.stop(Duration::ZERO).await, Exit::Code(4), "again");

    let deaf = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let process = Process::spawn(None, &deaf, &sender).await.unwrap();
    assert_eq!(lines.recv().await.unwrap().text, "ready");
    assert_eq!(process.stop(Duration::from_millis(20)).await, Exit::Signal(libc::SIGKILL));
}

#[tokio::test]
async fn what_it_started_ends_with_it_or_with_its_handle() {
    // The background process holds the pipe open: its end is the end of the output.
    let (exit, lines) = run(&shell("sleep 600 & echo started")).await;
    assert_eq!((exit, lines.len()), (Exit::Code(0), 1));

    let (sender, mut lines) = mpsc::channel(64);
    let process = Process::spawn(None, &shell("sleep 600 & echo started; wait"), &sender).await.unwrap();
    drop(sender);
    assert_eq!(lines.recv().await.unwrap().text, "started");
    drop(process);
    assert_eq!(lines.recv().await, None);
}

#[tokio::test]
async fn an_unheard_process_does_not_stop_at_a_full_pipe() {
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let talker = shell("head -c 1000000 /dev/zero | tr '\\0' '\\n'");
    let process = Process::spawn(None, &talker, &sender).await.unwrap();
    assert_eq!(process.wait().await, Exit::Code(0));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let (sender, _lines) = mpsc::channel(1);
    let spec = ProcessSpec { argv: vec!["/nowhere/app".into()], ..shell("") };
    let error = Process::spawn(None, &spec, &sender).await.unwrap_err();
    assert_eq!(error.to_string(), "test: cannot start /nowhere/app: No such file or directory (os error 2)");
    let spec = ProcessSpec { argv: Vec::new(), ..shell("") };
    let error = Process::spawn(None, &spec, &sender).await.unwrap_err();
    assert_eq!(error.to_string(), "test: cannot start : no program is given");
}
