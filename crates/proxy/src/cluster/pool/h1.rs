//! HTTP/1 connections: leased to one exchange at a time, idle ones kept on a stack.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures_util::task::AtomicWaker;

use crate::cluster::pool::{Count, Pool, Target, now, open_for_waiters};
use crate::http::codec::h1::client::H1Client;
use crate::http::codec::h1::head::HeadLimits;
use crate::http::codec::h1::write::WriteStyle;
use crate::http::codec::side::Upstream;
use crate::io::Socket;
use crate::tls::TlsInfo;

/// One open HTTP/1 connection.
pub(crate) struct H1Connection {
    client: H1Client,
    count: Count,
    /// Exchanges begun on it.
    exchanges: u32,
    /// It was idle in its pool, be it before its first exchange.
    kept: bool,
    /// The pool's `drained` when it was opened.
    drained: u32,
    /// Rings when something happens to it while it is idle, by this waker.
    alarm: Option<(Arc<Alarm>, Waker)>,
    idle_since: Instant,
    local: Option<SocketAddr>,
    received: u64,
    sent: u64,
}

impl H1Connection {
    pub(super) fn new(socket: Socket, count: Count, target: &Target, drained: u32) -> Box<Self> {
        let http1 = &target.cluster.http.http1;
        let limits = HeadLimits {
            bytes: target.cluster.pool.max_response_head_bytes,
            fields: target.cluster.pool.max_headers,
            absolute_url: true,
            chunked_length: http1.allow_chunked_length,
            custom_methods: true,
            keep_case: http1.keep_case,
            ignored_upgrades: None,
        };
        let style = WriteStyle { proper_case: http1.proper_case, whole_url: http1.whole_url };
        let local = socket.local_address();
        let client = H1Client::new(socket, limits, style, http1.enable_trailers);
        Box::new(Self {
            client,
            count,
            exchanges: 0,
            kept: false,
            drained,
            alarm: None,
            idle_since: now(),
            local,
            received: 0,
            sent: 0,
        })
    }

    fn target(&self) -> &Rc<Target> {
        &self.count.target
    }

    /// Adds the bytes since the last time to the stats.
    fn count_bytes(&mut self) {
        let transport = self.client.transport();
        let (received, sent) = (transport.received, transport.sent);
        let stats = &self.count.target.stats;
        stats.upstream_cx_rx_bytes_total().add(received - self.received);
        stats.upstream_cx_tx_bytes_total().add(sent - self.sent);
        (self.received, self.sent) = (received, sent);
    }

    /// Whether its server has closed it, or says something unasked, while it is idle. Cheap as
    /// long as nothing happens.
    fn has_ended(&mut self) -> bool {
        let Some((alarm, waker)) = &self.alarm else { return false };
        if !alarm.rang.swap(false, Ordering::Relaxed) {
            return false;
        }
        self.client.transport().poll_readable(&mut Context::from_waker(waker)).is_ready()
    }

    /// Whether its limits let another exchange begin on it.
    fn may_live_on(&self) -> bool {
        let limits = &self.target().cluster.pool;
        let stats = &self.target().stats;
        if limits.max_requests_per_connection > 0 && self.exchanges >= limits.max_requests_per_connection {
            stats.upstream_cx_max_requests().inc();
            return false;
        }
        let age = limits.max_connection_duration;
        if age.is_some_and(|age| now().saturating_duration_since(self.count.started) >= age) {
            stats.upstream_cx_max_duration_reached().inc();
            return false;
        }
        true
    }
}

impl Drop for H1Connection {
    fn drop(&mut self) {
        self.count_bytes();
        let stats = &self.count.target.stats;
        stats.upstream_rq_per_cx().record(self.exchanges.into());
        if self.client.transport().eof {
            stats.upstream_cx_destroy_remote().inc();
        } else {
            stats.upstream_cx_destroy_local().inc();
        }
    }
}

/// An HTTP/1 connection in use. Dropped, it goes back to its pool or is closed.
pub(crate) struct H1Lease {
    connection: Option<Box<H1Connection>>,
    pool: Rc<RefCell<Pool>>,
    /// When its exchange was through, if anybody knows without asking the clock.
    ended: Option<Instant>,
}

impl H1Lease {
    fn new(mut connection: Box<H1Connection>, pool: &Rc<RefCell<Pool>>) -> Self {
        connection.exchanges += 1;
        Self { connection: Some(connection), pool: Rc::clone(pool), ended: None }
    }

    /// The exchange is through, just now.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// The connection's codec.
    #[allow(clippy::expect_used, reason = "only drop takes the connection out")]
    pub(crate) fn client(&mut self) -> &mut H1Client {
        &mut self.connection.as_mut().expect("a lease holds its connection until it is dropped").client
    }

    /// Our address on it.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().and_then(|connection| connection.local)
    }

    /// Its TLS session.
    pub(crate) fn tls(&self) -> Option<&Rc<TlsInfo>> {
        self.connection.as_ref().and_then(|connection| connection.count.tls.as_ref())
    }

    /// The connection's number.
    pub(crate) fn connection_id(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.count.id)
    }

    /// Whether an earlier exchange ran on the connection, or it was idle: then its server may
    /// have closed it at any time.
    pub(crate) fn reused(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.kept || connection.exchanges > 1)
    }
}

impl Drop for H1Lease {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        connection.count_bytes();
        let current = connection.drained == self.pool.borrow().drained;
        if connection.client.reusable() && current && connection.may_live_on() {
            connection.idle_since = self.ended.unwrap_or_else(now);
            offer(&self.pool, connection);
        } else {
            let target = Rc::clone(connection.target());
            let stats = &target.stats;
            if !connection.client.is_complete() {
                stats.upstream_cx_destroy_with_active_rq().inc();
                if connection.client.transport().eof {
                    stats.upstream_cx_destroy_remote_with_active_rq().inc();
                } else {
                    stats.upstream_cx_destroy_local_with_active_rq().inc();
                }
            } else if !connection.client.transport().input.is_empty() {
                // More than the answer.
                stats.upstream_cx_protocol_error().inc();
            }
            drop(connection);
            closed(&self.pool, &target);
        }
    }
}

/// A connection has closed: those in line may need another one.
fn closed(pool: &Rc<RefCell<Pool>>, target: &Rc<Target>) {
    let mut state = pool.borrow_mut();
    state.open = state.open.saturating_sub(1);
    let waiting = !state.waiters.is_empty();
    drop(state);
    if waiting {
        open_for_waiters(pool, target, false);
    }
}

/// The idle connection that was used last, if it is alive as far as the reactor knows: that
/// costs no system call, and leaves the race of a request with a close to `forward::retry`.
pub(super) fn take(pool: &Rc<RefCell<Pool>>) -> Option<H1Lease> {
    loop {
        let mut connection = pool.borrow_mut().idle.pop()?;
        if connection.client.transport().is_quiet() && connection.may_live_on() {
            return Some(H1Lease::new(connection, pool));
        }
        let target = Rc::clone(connection.target());
        drop(connection);
        closed(pool, &target);
    }
}

/// Gives a connection to the first in line that can use it, or keeps it.
pub(super) fn offer(pool: &Rc<RefCell<Pool>>, connection: Box<H1Connection>) {
    let mut connection = connection;
    loop {
        let fresh = !connection.kept && connection.exchanges == 0;
        let mut state = pool.borrow_mut();
        if state.waiters.is_empty() {
            drop(state);
            keep(pool, connection);
            return;
        }
        let place = state.waiters.iter().position(|waiter| fresh || !waiter.fresh);
        let Some(waiter) = place.and_then(|place| state.waiters.remove(place)) else {
            // Whoever needs a fresh one and has none on its way may have this one's place.
            let in_the_way = !fresh
                && state.connecting < state.waiters.len()
                && state.waiters.iter().any(|waiter| waiter.fresh && !waiter.ready.is_closed());
            drop(state);
            if in_the_way {
                let target = Rc::clone(connection.target());
                drop(connection);
                closed(pool, &target);
            } else {
                keep(pool, connection);
            }
            return;
        };
        drop(state);
        match waiter.ready.send(Ok(Upstream::H1(H1Lease::new(connection, pool)))) {
            Ok(()) => return,
            Err(Ok(Upstream::H1(mut lease))) => {
                let Some(mut returned) = lease.connection.take() else { return };
                returned.exchanges -= 1;
                connection = returned;
            }
            Err(_) => return,
        }
    }
}

/// Puts a connection on the stack, watched for its end.
fn keep(pool: &Rc<RefCell<Pool>>, mut connection: Box<H1Connection>) {
    connection.client.transport().release();
    connection.kept = true;
    let H1Connection { client, alarm, .. } = &mut *connection;
    let (alarm, waker) = alarm.get_or_insert_with(|| {
        let keeper = Arc::clone(&pool.borrow().keeper);
        let alarm = Arc::new(Alarm { rang: AtomicBool::new(false), keeper });
        (Arc::clone(&alarm), Waker::from(alarm))
    });
    alarm.rang.store(false, Ordering::Relaxed);
    if client.transport().poll_readable(&mut Context::from_waker(waker)).is_ready() {
        let target = Rc::clone(connection.target());
        drop(connection);
        closed(pool, &target);
        return;
    }
    let idle_timeout = connection.target().cluster.pool.idle_timeout;
    let mut state = pool.borrow_mut();
    state.idle.push(connection);
    if !std::mem::replace(&mut state.kept, true) {
        let keeper = Arc::clone(&state.keeper);
        drop(state);
        tokio::task::spawn_local(watch(Rc::downgrade(pool), keeper, idle_timeout));
    }
}

/// Wakes the keeper for one idle connection, so that it need not look at all of them.
struct Alarm {
    rang: AtomicBool,
    keeper: Arc<AtomicWaker>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Relaxed);
        self.keeper.wake();
    }
}

/// Closes idle connections that their server has closed, or that have been idle for too long.
/// Ends with the last idle connection.
async fn watch(
    pool: Weak<RefCell<Pool>>,
    keeper: Arc<AtomicWaker>,
    idle_timeout: Option<std::time::Duration>,
) {
    let mut sleep =
        std::pin::pin!(tokio::time::sleep(idle_timeout.unwrap_or(std::time::Duration::from_secs(86_400))));
    poll_fn(|cx| {
        // Before anything is looked at, so that no alarm is missed.
        keeper.register(cx.waker());
        loop {
            let Some(pool) = pool.upgrade() else { return Poll::Ready(()) };
            let now = now();
            let mut state = pool.borrow_mut();
            // The stack is in the order of time: those that may be too old lie at its bottom.
            let expired = idle_timeout.map_or(0, |limit| {
                let old = |since: Instant| now.saturating_duration_since(since) >= limit;
                state.idle.iter().take_while(|connection| old(connection.idle_since)).count()
            });
            let mut gone: Vec<_> = state.idle.drain(..expired).collect();
            for connection in &gone {
                connection.target().stats.upstream_cx_idle_timeout().inc();
            }
            gone.extend(state.idle.extract_if(.., |connection| connection.has_ended()));
            state.open = state.open.saturating_sub(gone.len());
            let Some(oldest) = state.idle.first().map(|connection| connection.idle_since) else {
                state.kept = false;
                drop(state);
                drop(gone);
                return Poll::Ready(());
            };
            drop(state);
            drop(gone);
            let Some(limit) = idle_timeout else { return Poll::Pending };
            let deadline = tokio::time::Instant::from_std(oldest + limit);
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}
