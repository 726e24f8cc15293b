//! The supervisor, with shell scripts for processes.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Backoff, Restart, State, Supervisor};
use crate::process::{Exit, Line, ProcessSpec};

const QUICK: Backoff = Backoff {
    first: Duration::from_millis(1),
    longest: Duration::from_millis(4),
    reset_after: Duration::from_secs(60),
};
const NEVER_AGAIN: Backoff = Backoff {
    first: Duration::from_secs(600),
    longest: Duration::from_secs(600),
    reset_after: Duration::from_secs(600),
};

fn supervise(script: &str, restart: Restart, backoff: Backoff) -> (Supervisor, mpsc::Receiver<Line>) {
    let spec = ProcessSpec {
        name: "test".into(),
        argv: vec!["sh".into(), "-c".into(), script.into()],
        ..ProcessSpec::default()
    };
    let (sender, lines) = mpsc::channel(64);
    (Supervisor::start(None, spec, restart, backoff, sender), lines)
}

#[test]
fn the_delay_doubles_up_to_the_longest_and_starts_over() {
    let ms = Duration::from_millis;
    let backoff = Backoff::default();
    let mut last = None;
    let mut delays = Vec::new();
    for ran in [0, 0, 0, 0, 0, 0, 0, 0, 9_999, 10_000, 0] {
        let delay = backoff.next(last, ms(ran));
        delays.push(delay.as_millis());
        last = Some(delay);
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 100, 200]);
}

#[tokio::test]
async fn what_crashes_is_started_again() {
    let (supervisor, mut lines) = supervise("echo up; exit 3", Restart::Always, QUICK);
    let mut status = supervisor.status();
    let seen = status.wait_for(|status| status.restarts == 3).await.unwrap().clone();
    assert_eq!(seen.last_exit, Some(Exit::Code(3)));
    for _ in 0..3 {
        assert_eq!(lines.recv().await.unwrap().text, "up");
    }
    supervisor.stop(Duration::from_secs(60)).await;
    assert_eq!(status.borrow_and_update().state, State::Stopped);
    assert!(status.changed().await.is_err(), "the channel is closed");
}

#[tokio::test]
async fn a_stop_ends_a_running_process_and_a_waiting_one() {
    let (supervisor, mut lines) =
        supervise("trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done", Restart::Always, QUICK);
    assert_eq!(lines.recv().await.unwrap().text, "up");
    assert!(matches!(supervisor.status().borrow().state, State::Running { .. }));
    assert_eq!(supervisor.stop(Duration::from_secs(60)).await, Some(Exit::Code(5)));

    let (supervisor, _lines) = supervise("exit 1", Restart::Always, NEVER_AGAIN);
    let mut status = supervisor.status();
    let waiting =
        status.wait_for(|status| matches!(status.state, State::BackOff { .. })).await.unwrap().clone();
    let expected = State::BackOff { reason: "exit code 1".into(), delay: NEVER_AGAIN.first };
    assert_eq!(waiting.state, expected);
    supervisor.stop(Duration::ZERO).await;
    assert_eq!(status.borrow().state, State::Stopped);
}

#[tokio::test]
async fn policies_that_end() {
    for (script, restart) in
        [("exit 0", Restart::OnFailure), ("exit 0", Restart::Never), ("exit 1", Restart::Never)]
    {
        let (supervisor, _lines) = supervise(script, restart, QUICK);
        let mut status = supervisor.status();
        let ended = status.wait_for(|status| status.state == State::Ended).await.unwrap().clone();
        assert_eq!(ended.restarts, 0, "{script} {restart:?}");
    }
}

#[tokio::test]
async fn a_program_that_is_missing_is_tried_again() {
    let (sender, _lines) = mpsc::channel(64);
    let spec = ProcessSpec { name: "x".into(), argv: vec!["/nowhere/app".into()], ..ProcessSpec::default() };
    let supervisor = Supervisor::start(None, spec, Restart::Always, QUICK, sender);
    let mut status = supervisor.status();
    let seen = status.wait_for(|status| matches!(status.state, State::BackOff { .. })).await.unwrap().clone();
    let State::BackOff { reason, .. } = seen.state else { panic!("{seen:?}") };
    assert_eq!(reason, "x: cannot start /nowhere/app: No such file or directory (os error 2)");
    status.wait_for(|status| status.restarts > 2).await.unwrap();
}

#[tokio::test]
async fn dropping_it_kills_the_process() {
    let (supervisor, mut lines) = supervise("echo up; sleep 600", Restart::Always, QUICK);
    assert_eq!(lines.recv().await.unwrap().text, "up");
    drop(supervisor);
    assert_eq!(lines.recv().await, None);
}
