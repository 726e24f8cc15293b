//! How the connections of one filter chain are asked to end, on one worker, and where they
//! learn of newer settings.
//!
//! A chain that an update removes, or a whole proxy that shuts down, moves its `Drain` forward;
//! each connection holds a `DrainWatch`. Draining is graceful: HTTP/1 closes after the next
//! response, HTTP/2 sends GOAWAY, TCP goes on; closing ends all. Gradual draining
//! (`--drain-strategy gradual`) lets each watch see it at a time of its own, spread evenly over
//! the drain time, so that clients do not all come back at once.
//!
//! A chain that a listener's next version still has keeps its `Drain`, which is told the new
//! connection manager (`renew`): HTTP connections use it from their next request on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leno_base::drain::Phase;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::http::config::{HttpConnectionManager, Manager};

/// The side that ends connections.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    phase: Cell<Phase>,
    /// When draining began and how long it is spread; `None`: all see it at once.
    spread: Cell<Option<(Instant, Duration)>>,
    /// While the proxy fails its health checks, connections end after their next response.
    failing: Cell<bool>,
    changed: Notify,
    /// How often `changed` was rung.
    changes: Cell<u64>,
    /// Watches that exist, of connections and of their streams; the drain is complete at 0.
    watches: Cell<usize>,
    /// Watches that were ever made, which places each in the spread.
    made: Cell<u32>,
    /// The chain's connection manager, if it is newer than the one that the connections began with.
    manager: RefCell<Option<Manager>>,
}

impl Shared {
    fn announce(&self) {
        self.changes.set(self.changes.get() + 1);
        self.changed.notify_waiters();
    }
}

impl Drain {
    /// One more connection to watch it.
    pub(crate) fn watch(&self) -> DrainWatch {
        let shared = &self.shared;
        shared.watches.set(shared.watches.get() + 1);
        let number = shared.made.get().wrapping_add(1);
        shared.made.set(number);
        // Multiples of the golden ratio lie evenly, however many there are.
        let share = (f64::from(number) * 0.618_033_988_749_894_9).fract();
        DrainWatch { shared: Rc::clone(shared), share }
    }

    /// Moves forward; never back. Whoever is to drain later is asked now.
    pub(crate) fn advance(&self, phase: Phase) {
        let later = self.shared.spread.take().is_some();
        if phase > self.shared.phase.get() || (later && phase == self.shared.phase.get()) {
            self.shared.phase.set(phase);
            self.shared.announce();
        }
    }

    /// Asks to drain, each connection at its own time within this one.
    pub(crate) fn spread(&self, over: Duration) {
        if self.shared.phase.get() == Phase::Serving {
            self.shared.spread.set(Some((Instant::now(), over)));
            self.shared.phase.set(Phase::Draining);
            self.shared.announce();
        }
    }

    /// Has every connection look at its timers.
    pub(crate) fn wake(&self) {
        self.shared.announce();
    }

    /// Whether connections are to end after their next response because health checks fail.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.shared.failing.set(failing);
    }

    /// The chain has this connection manager from now on.
    pub(crate) fn renew(&self, manager: Arc<HttpConnectionManager>) {
        *self.shared.manager.borrow_mut() = Some(manager.into());
    }

    /// How many watch it: connections and their streams. With 0 the drain is complete.
    pub(crate) fn watches(&self) -> usize {
        self.shared.watches.get()
    }
}

/// The side of one connection, or of a stream of it.
#[derive(Debug)]
pub(crate) struct DrainWatch {
    shared: Rc<Shared>,
    /// Its place in a gradual drain: 0 is the beginning, 1 the end.
    share: f64,
}

impl DrainWatch {
    /// Where the drain stands: `Serving`, `Draining` (end when convenient) or `Closing` (now).
    pub(crate) fn phase(&self) -> Phase {
        match self.shared.phase.get() {
            Phase::Serving if self.shared.failing.get() => Phase::Draining,
            Phase::Draining if self.due().is_some_and(|due| Instant::now() < due) => Phase::Serving,
            phase => phase,
        }
    }

    /// Grows with all that `reached` waits for. As long as it is the same there is no need to poll
    /// that again.
    pub(crate) fn changes(&self) -> u64 {
        self.shared.changes.get()
    }

    /// When this connection is to begin to drain, if that is not now.
    fn due(&self) -> Option<Instant> {
        let (began, over) = self.shared.spread.get()?;
        Some(began + over.mul_f64(self.share))
    }

    /// Completes when the phase is at least `phase`. Failing health checks are no reason: they
    /// end connections with their next response only.
    pub(crate) async fn reached(&self, phase: Phase) {
        loop {
            // Registered before looking, so that a change in between is not missed.
            let changed = self.shared.changed.notified();
            if self.shared.phase.get() >= phase {
                match self.due() {
                    Some(due) if phase == Phase::Draining && self.shared.phase.get() == phase => {
                        tokio::select! {
                            () = tokio::time::sleep_until(due) => return,
                            () = changed => continue,
                        }
                    }
                    _ => return,
                }
            }
            changed.await;
        }
    }

    /// The connection manager of the chain as it is now, if that is not the one that the
    /// connection began with.
    pub(crate) fn renewed(&self) -> Option<Manager> {
        self.shared.manager.borrow().clone()
    }
}

impl Clone for DrainWatch {
    fn clone(&self) -> Self {
        self.shared.watches.set(self.shared.watches.get() + 1);
        Self { shared: Rc::clone(&self.shared), share: self.share }
    }
}

impl Drop for DrainWatch {
    fn drop(&mut self) {
        self.shared.watches.set(self.shared.watches.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leno_base::drain::Phase;

    use super::Drain;

    #[tokio::test(start_paused = true)]
    async fn a_gradual_drain_is_spread_over_its_time() {
        let drain = Drain::default();
        let watches: Vec<_> = (0..100).map(|_| drain.watch()).collect();
        let draining = || watches.iter().filter(|watch| watch.phase() == Phase::Draining).count();
        drain.spread(Duration::from_secs(100));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(draining());
            tokio::time::advance(Duration::from_secs(25)).await;
        }
        seen.push(draining());
        assert!(seen.windows(2).all(|pair| (20..=30).contains(&(pair[1] - pair[0]))), "{seen:?}");
        assert_eq!(seen.last(), Some(&100));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_its_own_time_or_when_it_is_urgent() {
        let drain = Drain::default();
        let watch = drain.watch();
        drain.spread(Duration::from_secs(100));
        let began = tokio::time::Instant::now();
        watch.reached(Phase::Draining).await;
        assert_eq!(began.elapsed().as_secs(), 61);

        let urgent = Drain::default();
        let watch = urgent.watch();
        urgent.spread(Duration::from_secs(100));
        tokio::join!(watch.reached(Phase::Draining), async { urgent.advance(Phase::Draining) });
        assert!(began.elapsed().as_secs() < 62);
        assert_eq!(watch.phase(), Phase::Draining);
        urgent.advance(Phase::Closing);
        watch.reached(Phase::Closing).await;
    }

    #[test]
    fn failing_health_checks_end_with_the_next_response_only_while_they_fail() {
        let drain = Drain::default();
        let watch = drain.watch();
        drain.set_failing(true);
        assert_eq!(watch.phase(), Phase::Draining);
        drain.set_failing(false);
        assert_eq!(watch.phase(), Phase::Serving);
    }
}
