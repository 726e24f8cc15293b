//! How the connections of one filter chain are asked to end, on one worker.
//!
//! A chain that is removed or changed by an update, or a whole proxy that shuts down, moves
//! its `Drain` forward; each connection holds a `DrainWatch`. Draining is graceful: HTTP/1
//! closes after the response in flight, HTTP/2 sends GOAWAY, TCP goes on; closing ends all.

use std::cell::Cell;
use std::rc::Rc;

use leno_base::drain::Phase;
use tokio::sync::Notify;

/// The side that ends connections.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    phase: Cell<Phase>,
    changed: Notify,
    /// Watches that exist; the drain is complete at 0.
    watches: Cell<usize>,
}

impl Drain {
    /// One more connection to watch it.
    pub(crate) fn watch(&self) -> DrainWatch {
        self.shared.watches.set(self.shared.watches.get() + 1);
        DrainWatch { shared: Rc::clone(&self.shared) }
    }

    /// Moves forward; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase > self.shared.phase.get() {
            self.shared.phase.set(phase);
            self.shared.changed.notify_waiters();
        }
    }

    /// Connections that are still there.
    pub(crate) fn connections(&self) -> usize {
        self.shared.watches.get()
    }
}

/// The side of one connection.
#[derive(Debug)]
pub(crate) struct DrainWatch {
    shared: Rc<Shared>,
}

impl DrainWatch {
    /// Where the drain stands: `Serving`, `Draining` (end when convenient) or `Closing` (now).
    pub(crate) fn phase(&self) -> Phase {
        self.shared.phase.get()
    }

    /// Completes when the phase is at least `phase`.
    pub(crate) async fn reached(&self, phase: Phase) {
        loop {
            // Registered before looking, so that a change in between is not missed.
            let changed = self.shared.changed.notified();
            if self.phase() >= phase {
                return;
            }
            changed.await;
        }
    }
}

impl Clone for DrainWatch {
    fn clone(&self) -> Self {
        self.shared.watches.set(self.shared.watches.get() + 1);
        Self { shared: Rc::clone(&self.shared) }
    }
}

impl Drop for DrainWatch {
    fn drop(&mut self) {
        self.shared.watches.set(self.shared.watches.get().saturating_sub(1));
    }
}
