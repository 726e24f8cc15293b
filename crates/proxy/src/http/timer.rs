//! Deadlines of a stream, and one timer for all of them.
//!
//! Arming a runtime timer for each of several timeouts of each request would cost more than
//! parsing it. A connection has one timer; it is armed when a deadline lies before the time it
//! is armed for, and when it fires early it is armed again for the real deadline. So a request
//! that ends in time never touches the runtime's timer wheel. The streams of an HTTP/2 connection
//! share the connection's timer in the same way (`Timers`).

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// A timer that is armed rarely.
#[derive(Debug, Default)]
pub(crate) struct Timer(Kind);

#[derive(Debug)]
enum Kind {
    /// It has the runtime wake it.
    Own(Option<Armed>),
    /// It is one of many that share one.
    Shared { timers: Rc<Timers>, place: usize },
}

impl Default for Kind {
    fn default() -> Self {
        Kind::Own(None)
    }
}

/// A runtime timer, and who it wakes.
#[derive(Debug)]
struct Armed {
    sleep: Pin<Box<Sleep>>,
    waker: Option<Waker>,
}

impl Armed {
    /// Whether the runtime will wake this task in time, so that there is nothing to do.
    fn will_do(&self, cx: &Context<'_>, deadline: tokio::time::Instant) -> bool {
        self.sleep.deadline() <= deadline
            && !self.sleep.is_elapsed()
            && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
    }
}

impl Timer {
    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let armed = match &mut self.0 {
            Kind::Own(armed) => armed,
            Kind::Shared { timers, place } => return timers.arm(*place, cx, deadline),
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let armed = armed.get_or_insert_with(|| Armed {
            sleep: Box::pin(tokio::time::sleep_until(deadline)),
            waker: None,
        });
        if armed.will_do(cx, deadline) {
            return Poll::Pending;
        }
        armed.waker = None;
        let sleep = &mut armed.sleep;
        loop {
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            // A task that has used up its turn is put off, and nothing is registered then.
            let registers = tokio::task::coop::has_budget_remaining();
            if sleep.as_mut().poll(cx).is_pending() {
                armed.waker = registers.then(|| cx.waker().clone());
                return Poll::Pending;
            }
            if tokio::time::Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Kind::Shared { timers, place } = &self.0 {
            timers.free(*place);
        }
    }
}

/// The timers of all streams of one connection: its task asks `next` and tells `fire`.
#[derive(Debug, Default)]
pub(crate) struct Timers(RefCell<Places>);

#[derive(Debug, Default)]
struct Places {
    places: Vec<Place>,
    free: Vec<usize>,
    /// No deadline is earlier.
    next: Option<Instant>,
}

#[derive(Debug, Default)]
struct Place {
    deadline: Option<Instant>,
    waker: Option<Waker>,
}

impl Timers {
    /// One more timer.
    pub(crate) fn timer(self: &Rc<Self>) -> Timer {
        let mut state = self.0.borrow_mut();
        let place = match state.free.pop() {
            Some(place) => place,
            None => {
                state.places.push(Place::default());
                state.places.len() - 1
            }
        };
        Timer(Kind::Shared { timers: Rc::clone(self), place })
    }

    fn arm(&self, place: usize, cx: &Context<'_>, deadline: Instant) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        let Some(place) = state.places.get_mut(place) else { return Poll::Pending };
        if place.deadline.is_none_or(|armed| armed > deadline) {
            if tokio::time::Instant::now().into_std() >= deadline {
                return Poll::Ready(());
            }
            place.deadline = Some(deadline);
        }
        match &place.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => place.waker = Some(cx.waker().clone()),
        }
        if state.next.is_none_or(|next| next > deadline) {
            state.next = Some(deadline);
        }
        Poll::Pending
    }

    fn free(&self, place: usize) {
        let mut state = self.0.borrow_mut();
        if let Some(entry) = state.places.get_mut(place) {
            *entry = Place::default();
            state.free.push(place);
        }
    }

    /// When `fire` is to be called next, at the latest.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.borrow().next
    }

    /// Wakes all whose deadline has passed.
    pub(crate) fn fire(&self, now: Instant) {
        let mut state = self.0.borrow_mut();
        let mut next: Option<Instant> = None;
        for place in &mut state.places {
            match place.deadline {
                Some(deadline) if deadline <= now => {
                    place.deadline = None;
                    if let Some(waker) = place.waker.take() {
                        waker.wake();
                    }
                }
                Some(deadline) => next = Some(next.map_or(deadline, |next| next.min(deadline))),
                None => {}
            }
        }
        state.next = next;
    }
}

/// What is due when on a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// When something last moved.
    pub(crate) last: Instant,
    /// `stream_idle_timeout`, or the route's `idle_timeout`.
    pub(crate) idle: Option<Duration>,
    /// `request_timeout`: the request must be complete.
    pub(crate) request: Option<Instant>,
    /// `max_stream_duration`.
    pub(crate) duration: Option<Instant>,
    /// The route's `timeout`: the response must be complete.
    pub(crate) route: Option<Instant>,
    /// `per_try_timeout`: this attempt's response must have begun.
    pub(crate) per_try: Option<Instant>,
    /// `per_try_idle_timeout`.
    pub(crate) per_try_idle: Option<Duration>,
    /// How long writing the end of a response may take; `None`: as long as `idle`;
    /// `Some(None)`: for ever.
    pub(crate) flush: Option<Option<Duration>>,
    /// When the access logs are written next (`access_log_flush_interval`).
    pub(crate) log: Option<Instant>,
    /// The cluster's `max_stream_duration`, of this attempt.
    pub(crate) upstream: Option<Instant>,
}

/// Which deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// See `Deadlines::idle`.
    Idle,
    /// See `Deadlines::request`.
    Request,
    /// See `Deadlines::duration`.
    Duration,
    /// See `Deadlines::route`.
    Route,
    /// See `Deadlines::per_try`.
    PerTry,
    /// See `Deadlines::per_try_idle`.
    PerTryIdle,
    /// See `Deadlines::upstream`.
    Upstream,
    /// See `Deadlines::log`: nothing ends.
    Log,
}

impl Expired {
    /// Whether the upstream took too long.
    pub(crate) fn is_upstream_timeout(self) -> bool {
        matches!(self, Expired::Route | Expired::PerTry | Expired::PerTryIdle)
    }
}

impl Deadlines {
    /// Nothing is due.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: now,
            idle: None,
            request: None,
            duration: None,
            route: None,
            per_try: None,
            per_try_idle: None,
            flush: None,
            log: None,
            upstream: None,
        }
    }

    /// What is due next.
    fn next(&self) -> Option<(Instant, Expired)> {
        let after_last = |limit: Option<Duration>| limit.map(|limit| self.last + limit);
        let mut next: Option<(Instant, Expired)> = None;
        let mut consider = |at: Option<Instant>, what| {
            if let Some(at) = at
                && next.is_none_or(|(earliest, _)| at < earliest)
            {
                next = Some((at, what));
            }
        };
        consider(self.route, Expired::Route);
        consider(self.per_try, Expired::PerTry);
        consider(after_last(self.per_try_idle), Expired::PerTryIdle);
        consider(self.upstream, Expired::Upstream);
        consider(self.log, Expired::Log);
        consider(self.duration, Expired::Duration);
        consider(self.request, Expired::Request);
        consider(after_last(self.idle), Expired::Idle);
        next
    }

    /// Ready when one has passed.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, timer: &mut Timer) -> Poll<Expired> {
        let Some((at, expired)) = self.next() else { return Poll::Pending };
        timer.poll(cx, Some(at)).map(|()| expired)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;
    use std::time::Duration;

    use super::{Deadlines, Expired, Timer, Timers};

    #[tokio::test(start_paused = true)]
    async fn timers_that_share_one_fire_each_at_its_time() {
        let timers = Rc::new(Timers::default());
        let start = tokio::time::Instant::now().into_std();
        let second = Duration::from_secs(1);
        let mut waiting: Vec<(Timer, u32)> = [3, 1, 2].into_iter().map(|at| (timers.timer(), at)).collect();
        let mut own = Timer::default();
        let mut fired = Vec::new();
        poll_fn(|cx| {
            waiting.retain_mut(|(timer, at)| {
                let due = timer.poll(cx, Some(start + *at * second)).is_ready();
                if due {
                    fired.push((*at, start.elapsed_secs()));
                }
                !due
            });
            if waiting.is_empty() {
                return Poll::Ready(());
            }
            while own.poll(cx, timers.next()).is_ready() {
                timers.fire(tokio::time::Instant::now().into_std());
            }
            Poll::Pending
        })
        .await;
        assert_eq!(fired, [(1, 1), (2, 2), (3, 3)]);
    }

    trait Elapsed {
        fn elapsed_secs(&self) -> u64;
    }

    impl Elapsed for std::time::Instant {
        fn elapsed_secs(&self) -> u64 {
            tokio::time::Instant::now().into_std().duration_since(*self).as_secs()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_deadline_wins_whatever_the_timer_was_armed_for() {
        let mut timer = Timer::default();
        let start = tokio::time::Instant::now();
        let second = Duration::from_secs(1);
        let mut deadlines = Deadlines::new(start.into_std());
        deadlines.idle = Some(5 * second);
        deadlines.route = Some(start.into_std() + 3 * second);
        assert_eq!(poll_fn(|cx| deadlines.poll(cx, &mut timer)).await, Expired::Route);
        assert_eq!(start.elapsed().as_secs(), 3);
        deadlines.route = None;
        assert_eq!(poll_fn(|cx| deadlines.poll(cx, &mut timer)).await, Expired::Idle);
        assert_eq!(start.elapsed().as_secs(), 5);
        deadlines.per_try = Some(start.into_std() + 7 * second);
        deadlines.last = start.into_std() + 20 * second;
        assert_eq!(poll_fn(|cx| deadlines.poll(cx, &mut timer)).await, Expired::PerTry);
        assert_eq!(start.elapsed().as_secs(), 7);
    }
}
