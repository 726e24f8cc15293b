//! Telling the holders of connections to finish: one signal, many watchers, two phases.
//!
//! A watcher learns first that it should end gracefully (finish what runs, take nothing new:
//! `Connection: close`, GOAWAY) and later that it must end now. The signal's owner learns when
//! the last watcher is gone. No runtime is needed: the futures here keep a list of wakers.
//!
//! ```
//! use leno_base::drain::{self, Phase};
//! let (signal, watcher) = drain::pair();
//! assert_eq!(watcher.phase(), Phase::Serving);
//! signal.drain();
//! assert_eq!(watcher.phase(), Phase::Draining);
//! signal.close();
//! assert_eq!(watcher.phase(), Phase::Closing);
//! drop(watcher);
//! assert_eq!(signal.watchers(), 0);
//! ```

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How far the end is. Only ever moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Business as usual.
    #[default]
    Serving,
    /// Finish what runs, take nothing new.
    Draining,
    /// Stop now.
    Closing,
}

/// Makes a signal and its first watcher.
pub fn pair() -> (Signal, Watcher) {
    let shared = Arc::new(Shared::default());
    let signal = Signal { shared: Arc::clone(&shared) };
    let watcher = signal.watch();
    (signal, watcher)
}

/// The side that ends things. Dropping it closes: nobody could do so later.
#[derive(Debug)]
pub struct Signal {
    shared: Arc<Shared>,
}

impl Signal {
    /// Asks for a graceful end. Without effect after [`Signal::close`].
    pub fn drain(&self) {
        self.shared.advance(Phase::Draining);
    }

    /// Asks for an immediate end.
    pub fn close(&self) {
        self.shared.advance(Phase::Closing);
    }

    /// The phase that watchers see.
    pub fn phase(&self) -> Phase {
        self.shared.lock().phase
    }

    /// One more watcher.
    pub fn watch(&self) -> Watcher {
        self.shared.lock().watchers += 1;
        Watcher { shared: Arc::clone(&self.shared) }
    }

    /// How many watchers live.
    pub fn watchers(&self) -> usize {
        self.shared.lock().watchers
    }

    /// Completes when no watcher lives (at once if there is none).
    pub fn gone(&self) -> Gone<'_> {
        Gone { shared: &self.shared, slot: None }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.close();
    }
}

/// The side that is ended; lives as long as the work it stands for. A clone counts as one more.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

impl Watcher {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.shared.lock().phase
    }

    /// Completes with the phase as soon as that is `at_least` the one given.
    pub fn reached(&self, at_least: Phase) -> Reached<'_> {
        Reached { shared: &self.shared, at_least, slot: None }
    }
}

impl Clone for Watcher {
    fn clone(&self) -> Self {
        self.shared.lock().watchers += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.watchers -= 1;
        if state.watchers == 0 {
            wake(state);
        }
    }
}

/// The future of [`Watcher::reached`].
#[derive(Debug)]
pub struct Reached<'a> {
    shared: &'a Shared,
    at_least: Phase,
    slot: Option<u64>,
}

impl Future for Reached<'_> {
    type Output = Phase;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Phase> {
        let mut state = self.shared.lock();
        if state.phase >= self.at_least {
            return Poll::Ready(state.phase);
        }
        let slot = state.park(self.slot, context.waker());
        drop(state);
        self.slot = Some(slot);
        Poll::Pending
    }
}

impl Drop for Reached<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.slot);
    }
}

/// The future of [`Signal::gone`].
#[derive(Debug)]
pub struct Gone<'a> {
    shared: &'a Shared,
    slot: Option<u64>,
}

impl Future for Gone<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if state.watchers == 0 {
            return Poll::Ready(());
        }
        let slot = state.park(self.slot, context.waker());
        drop(state);
        self.slot = Some(slot);
        Poll::Pending
    }
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.slot);
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    watchers: usize,
    next_slot: u64,
    /// Who waits, by the slot that its future remembers.
    parked: Vec<(u64, Waker)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, and every state in between is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        if phase > state.phase {
            state.phase = phase;
            wake(state);
        }
    }

    fn forget(&self, slot: Option<u64>) {
        if let Some(slot) = slot {
            self.lock().parked.retain(|(parked, _)| *parked != slot);
        }
    }
}

impl State {
    /// Parks a waker in its slot, or in a new one.
    fn park(&mut self, slot: Option<u64>, waker: &Waker) -> u64 {
        if let Some(slot) = slot
            && let Some((_, parked)) = self.parked.iter_mut().find(|(parked, _)| *parked == slot)
        {
            parked.clone_from(waker);
            return slot;
        }
        let slot = slot.unwrap_or(self.next_slot);
        self.next_slot = self.next_slot.max(slot + 1);
        self.parked.push((slot, waker.clone()));
        slot
    }
}

/// Wakes everyone, with the lock released: a waker may run code that takes it again.
fn wake(mut state: MutexGuard<'_, State>) {
    let parked = std::mem::take(&mut state.parked);
    drop(state);
    for (_, waker) in parked {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn watchers_are_woken_at_each_phase() {
        let (signal, watcher) = pair();
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut context = Context::from_waker(&waker);
        let mut draining = pin!(watcher.reached(Phase::Draining));
        let mut closing = pin!(watcher.reached(Phase::Closing));
        for _ in 0..3 {
            assert!(draining.as_mut().poll(&mut context).is_pending());
            assert!(closing.as_mut().poll(&mut context).is_pending());
        }
        signal.drain();
        assert_eq!(counter.0.load(Ordering::SeqCst), 2);
        assert_eq!(draining.as_mut().poll(&mut context), Poll::Ready(Phase::Draining));
        assert!(closing.as_mut().poll(&mut context).is_pending());
        signal.close();
        signal.drain();
        assert_eq!(counter.0.load(Ordering::SeqCst), 3);
        assert_eq!(closing.as_mut().poll(&mut context), Poll::Ready(Phase::Closing));
    }

    #[test]
    fn the_signal_learns_when_the_last_watcher_is_gone() {
        let (signal, watcher) = pair();
        let second = watcher.clone();
        let mut context = Context::from_waker(Waker::noop());
        let mut gone = pin!(signal.gone());
        assert!(gone.as_mut().poll(&mut context).is_pending());
        drop(watcher);
        assert!(gone.as_mut().poll(&mut context).is_pending());
        assert_eq!(signal.watchers(), 1);
        drop(second);
        assert!(gone.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_lost_signal_closes_and_a_lost_future_leaves_no_waker() {
        let (signal, watcher) = pair();
        {
            let mut context = Context::from_waker(Waker::noop());
            let mut reached = pin!(watcher.reached(Phase::Closing));
            assert!(reached.as_mut().poll(&mut context).is_pending());
            assert_eq!(watcher.shared.lock().parked.len(), 1);
        }
        assert!(watcher.shared.lock().parked.is_empty());
        drop(signal);
        assert_eq!(watcher.phase(), Phase::Closing);
    }
}
