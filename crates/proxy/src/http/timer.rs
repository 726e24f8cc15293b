//! Deadlines of a stream, and one timer for all of them.
//!
//! Arming a runtime timer for each of several timeouts of each request would cost more than
//! parsing it. A connection has one timer; it is armed when a deadline lies before the time it
//! is armed for, and when it fires early it is armed again for the real deadline. So a request
//! that ends in time never touches the runtime's timer wheel.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// A timer that is armed rarely.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let deadline = tokio::time::Instant::from_std(deadline);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if tokio::time::Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
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
            upstream: None,
        }
    }

    /// What is due next.
    fn next(&self) -> Option<(Instant, Expired)> {
        let after_last = |limit: Option<Duration>| limit.map(|limit| self.last + limit);
        let all = [
            (self.route, Expired::Route),
            (self.per_try, Expired::PerTry),
            (after_last(self.per_try_idle), Expired::PerTryIdle),
            (self.upstream, Expired::Upstream),
            (self.duration, Expired::Duration),
            (self.request, Expired::Request),
            (after_last(self.idle), Expired::Idle),
        ];
        let due = all.into_iter().filter_map(|(at, what)| at.map(|at| (at, what)));
        due.min_by_key(|(at, _)| *at)
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
    use std::time::Duration;

    use super::{Deadlines, Expired, Timer};

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
