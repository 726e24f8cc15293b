//! The outer process: starts the inner one, passes signals on, and waits.

use std::process::ExitCode;
use std::time::Duration;

use leno_node::{Exit, InnerSpec, Mode, Outer, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// How long the inner process may take to end once it was asked to.
const LIMIT: Duration = Duration::from_secs(15);

/// Signals this close together are one wish: `timeout` sends one to the process and one to its group.
pub(super) const TOGETHER: Duration = Duration::from_millis(500);

/// Runs the inner process until it ends.
pub(crate) async fn run(mode: Mode) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let spec = InnerSpec { mode, argv: std::env::args_os().collect(), environment: Vec::new() };
    let mut outer = Outer::start(spec).await?;
    let mut asked: Option<Instant> = None;
    loop {
        let limit = asked.map_or(Duration::MAX, |asked| LIMIT.saturating_sub(asked.elapsed()));
        tokio::select! {
            exit = outer.wait() => {
                return Ok(match exit? {
                    Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
                    exit => {
                        eprintln!("leno up: {exit}");
                        ExitCode::FAILURE
                    }
                });
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
            () = tokio::time::sleep(limit) => {}
        }
        if asked.is_some_and(|asked| asked.elapsed() < TOGETHER) {
            continue;
        }
        // Asked a second time, or too late: at once.
        outer.signal(if asked.is_some() { Signal::KILL } else { Signal::TERM })?;
        asked.get_or_insert_with(Instant::now);
    }
}
