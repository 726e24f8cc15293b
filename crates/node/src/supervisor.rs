//! Keeping a process running: what crashes is started again, after a delay that grows while it keeps crashing,
//! as Kubernetes does it (CrashLoopBackOff) but sooner.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::pod::Pod;
use crate::process::{Exit, Line, Process, ProcessSpec};

/// When a process that has ended is started again: a pod's `restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// Unless it ended with code 0.
    OnFailure,
    /// Never.
    Never,
}

/// The delay before a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first restart; each further one waits twice as long.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
    /// A process that has run this long starts over with the first delay.
    pub reset_after: Duration,
}

impl Default for Backoff {
    /// 100 ms, doubled up to 10 s, reset after 10 s of running.
    fn default() -> Backoff {
        Backoff {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(10),
            reset_after: Duration::from_secs(10),
        }
    }
}

impl Backoff {
    /// The next delay, given the last one (if any) and how long the process ran since.
    pub fn next(&self, last: Option<Duration>, ran: Duration) -> Duration {
        match last {
            Some(last) if ran < self.reset_after => last.saturating_mul(2).min(self.longest),
            _ => self.first.min(self.longest),
        }
    }
}

/// What a supervised process is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being started.
    Starting,
    /// It runs.
    Running {
        /// Its number in this pid namespace.
        pid: u32,
        /// Since when.
        since: Instant,
    },
    /// It ended, or could not be started, and waits for the next attempt.
    BackOff {
        /// Why: an exit, or the error of the start.
        reason: String,
        /// How long from the end to the next attempt.
        delay: Duration,
    },
    /// It ended and is not started again, by its [`Restart`] policy.
    Ended,
    /// [`Supervisor::stop`] has ended it.
    Stopped,
}

/// The state with what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// How often it was started again.
    pub restarts: u32,
    /// How it last ended.
    pub last_exit: Option<Exit>,
}

/// Keeps one process running. Dropping it kills the process.
#[derive(Debug)]
pub struct Supervisor {
    name: String,
    status: watch::Receiver<Status>,
    stop: watch::Sender<Option<Duration>>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts a process and keeps it running, in a pod (which it keeps alive) or beside this process.
    pub fn start(
        pod: Option<Pod>,
        spec: ProcessSpec,
        restart: Restart,
        backoff: Backoff,
        lines: mpsc::Sender<Line>,
    ) -> Supervisor {
        let first = Status { state: State::Starting, restarts: 0, last_exit: None };
        let (sender, status) = watch::channel(first);
        let (stop, stopped) = watch::channel(None);
        let name = spec.name.clone();
        let run = Run { pod, spec, restart, backoff, lines, status: sender, stop: stopped };
        Supervisor { name, status, stop, task: tokio::spawn(run.run()) }
    }

    /// The process's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its status, now and whenever it changes. The channel closes after `Ended` or `Stopped`.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Asks the process to end (SIGTERM), kills it after the limit, and does not start it again.
    pub async fn stop(mut self, limit: Duration) -> Option<Exit> {
        let _ = self.stop.send(Some(limit));
        let _ = (&mut self.task).await;
        self.status.borrow().last_exit
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort(); // which drops, and so kills, the process
    }
}

struct Run {
    pod: Option<Pod>,
    spec: ProcessSpec,
    restart: Restart,
    backoff: Backoff,
    lines: mpsc::Sender<Line>,
    status: watch::Sender<Status>,
    stop: watch::Receiver<Option<Duration>>,
}

impl Run {
    async fn run(mut self) {
        let mut delay = None;
        loop {
            let started = Instant::now();
            let reason = match Process::spawn(self.pod.as_ref(), &self.spec, &self.lines).await {
                Ok(process) => match self.attend(&process).await {
                    Some(exit) => {
                        if self.restart == Restart::Never
                            || self.restart == Restart::OnFailure && exit.success()
                        {
                            return self.set(State::Ended);
                        }
                        exit.to_string()
                    }
                    None => return self.set(State::Stopped),
                },
                // It may be a program that is being built, so this counts as a crash.
                Err(e) if self.restart == Restart::Never => {
                    tracing::error!("{e}");
                    return self.set(State::Ended);
                }
                Err(e) => e.to_string(),
            };
            let next = self.backoff.next(delay, started.elapsed());
            delay = Some(next);
            self.set(State::BackOff { reason, delay: next });
            let stopped = tokio::time::timeout(next, self.stop.wait_for(Option::is_some)).await.is_ok();
            if stopped {
                return self.set(State::Stopped);
            }
            self.status.send_modify(|status| {
                status.restarts += 1;
                status.state = State::Starting;
            });
        }
    }

    /// Until the process ends (how) or has been stopped (`None`).
    async fn attend(&mut self, process: &Process) -> Option<Exit> {
        self.set(State::Running { pid: process.pid(), since: Instant::now() });
        let stop = &mut self.stop;
        let limit = tokio::select! {
            exit = process.wait() => {
                self.status.send_modify(|status| status.last_exit = Some(exit));
                return Some(exit);
            }
            stop = stop.wait_for(Option::is_some) => match stop {
                Ok(limit) => limit.unwrap_or_default(),
                Err(_) => Duration::ZERO,
            },
        };
        let exit = process.stop(limit).await;
        self.status.send_modify(|status| status.last_exit = Some(exit));
        None
    }

    fn set(&self, state: State) {
        self.status.send_modify(|status| status.state = state);
    }
}

#[cfg(test)]
mod tests;
