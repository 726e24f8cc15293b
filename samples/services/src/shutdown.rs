//! When to stop: one flag that every part of a service can wait for.
//!
//! A flag rather than a plain future, because a service and each of its open streams wait for it.

use tokio::sync::watch;

/// Tells when the service is asked to end. Clones wait for the same request.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Asks for the end when fired, and also when dropped.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Shutdown {
    /// A flag and what fires it.
    pub fn channel() -> (Trigger, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Shutdown(receiver))
    }

    /// A flag that SIGTERM or SIGINT fires. To be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the signal handlers cannot be installed.
    pub fn on_signal() -> std::io::Result<Shutdown> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (trigger, shutdown) = Shutdown::channel();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            trigger.fire();
        });
        Ok(shutdown)
    }

    /// Waits for the request to end. Returns at once if it was made before.
    pub async fn requested(mut self) {
        // An error means that the trigger is gone, which is a request too.
        let _ = self.0.wait_for(|fired| *fired).await;
    }
}

impl Trigger {
    /// Asks for the end.
    pub fn fire(self) {
        self.0.send_replace(true);
    }
}
