//! Processes that a test starts, and waiting for what they do.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Nothing takes that long unless it hangs; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A process that does not outlive its test.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    /// Starts a program whose errors go to a file.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Killed {
        let log = File::create(log).expect("writable");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Killed(child.expect("it starts"))
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Panics
    /// If it has been waited for.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be told");
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it does not.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", || {
            status = self.0.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

/// What other processes do is looked at again and again.
#[expect(clippy::disallowed_methods, reason = "there is no event to wait for")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Waits until something is so that other processes bring about.
///
/// # Panics
/// If it does not come.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    if let Err(late) = eventually(what, is_so) {
        panic!("{late}");
    }
}

/// The same; if it does not come this is said, for those who have more to say.
///
/// # Errors
/// If it does not come.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{what}: it does not come"));
        }
        pause();
    }
    Ok(())
}
