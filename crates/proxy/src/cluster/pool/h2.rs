//! HTTP/2 connections: many exchanges at a time, each a lease on one place.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;

use crate::cluster::pool::connect::ConnectError;
use crate::cluster::pool::{Count, Pool, Target, http2_settings, now, open_for_waiters};
use crate::http::codec::ResetReason;
use crate::http::codec::h2::{H2Client, client};
use crate::http::codec::side::Upstream;
use crate::http::headers::HeaderMap;
use crate::io::Socket;

/// One open HTTP/2 connection. The task that drives it ends when nobody holds it any more.
pub(crate) struct H2Connection {
    send: RefCell<SendRequest<Bytes>>,
    /// Leases on it.
    active: Cell<u32>,
    /// Exchanges begun on it.
    exchanges: Cell<u32>,
    limit: u32,
    /// Takes no further exchanges: GOAWAY, closed, too old.
    draining: Cell<bool>,
    idle_since: Cell<Instant>,
    local: Option<SocketAddr>,
    id: u64,
    target: Rc<Target>,
}

impl H2Connection {
    /// Takes no further exchanges, and closes after the last.
    pub(super) fn drain(&self) {
        self.draining.set(true);
    }

    /// Whether another exchange may begin on it now.
    fn has_room(&self) -> bool {
        if self.draining.get() {
            return false;
        }
        let mut send = self.send.borrow_mut();
        // An error here is a GOAWAY or the end of the connection.
        if let Poll::Ready(Err(_)) = send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            self.draining.set(true);
            return false;
        }
        let theirs = u32::try_from(send.current_max_send_streams()).unwrap_or(u32::MAX);
        self.active.get() < self.limit.min(theirs)
    }
}

/// A place in an HTTP/2 connection.
pub(crate) struct H2Lease {
    connection: Rc<H2Connection>,
    pool: Rc<RefCell<Pool>>,
}

impl H2Lease {
    fn new(connection: Rc<H2Connection>, pool: &Rc<RefCell<Pool>>) -> Rc<Self> {
        connection.active.set(connection.active.get() + 1);
        connection.exchanges.set(connection.exchanges.get() + 1);
        let limit = connection.target.cluster.pool.max_requests_per_connection;
        if limit > 0 && connection.exchanges.get() >= limit {
            connection.target.stats.upstream_cx_max_requests().inc();
            connection.draining.set(true);
        }
        Rc::new(Self { connection, pool: Rc::clone(pool) })
    }

    /// Our address on the connection.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.connection.local
    }

    /// The connection's number.
    pub(crate) fn connection_id(&self) -> u64 {
        self.connection.id
    }

    /// Opens the stream with this head.
    pub(crate) fn open(&self, map: &HeaderMap, end: bool) -> Result<H2Client, ResetReason> {
        H2Client::open(&mut self.connection.send.borrow_mut(), map, end)
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.active.set(connection.active.get().saturating_sub(1));
        connection.idle_since.set(now());
        if connection.draining.get() {
            let target = Rc::clone(&connection.target);
            forget(&self.pool, connection);
            open_for_waiters(&self.pool, &target, false);
        } else if !self.pool.borrow().waiters.is_empty() {
            serve_waiters(&self.pool);
        }
    }
}

/// A place in a connection that has room: the fullest one, so that the others become idle.
pub(super) fn take(pool: &Rc<RefCell<Pool>>) -> Option<Rc<H2Lease>> {
    let mut state = pool.borrow_mut();
    let mut gone = Vec::new();
    let mut found: Option<Rc<H2Connection>> = None;
    state.streams.retain(|connection| {
        if connection.has_room() {
            if found.as_ref().is_none_or(|best| best.active.get() < connection.active.get()) {
                found = Some(Rc::clone(connection));
            }
        } else if connection.draining.get() {
            gone.push(Rc::clone(connection));
            return false;
        }
        true
    });
    state.open = state.open.saturating_sub(gone.len());
    drop(state);
    drop(gone);
    found.map(|connection| H2Lease::new(connection, pool))
}

/// Gives places to those in line, as long as there are some.
pub(super) fn serve_waiters(pool: &Rc<RefCell<Pool>>) {
    loop {
        if !pool.borrow().waiters.front().is_some_and(|waiter| waiter.http2) {
            return;
        }
        let Some(lease) = take(pool) else { return };
        let Some(waiter) = pool.borrow_mut().waiters.pop_front() else { return };
        // One that has left the line gives its place back right here.
        let _ = waiter.ready.send(Ok(Upstream::H2 { lease, stream: None }));
    }
}

/// Takes a connection out of the pool; its streams go on.
fn forget(pool: &Rc<RefCell<Pool>>, connection: &Rc<H2Connection>) {
    let mut state = pool.borrow_mut();
    let before = state.streams.len();
    let mut gone = Vec::new();
    state.streams.retain(|other| {
        let same = Rc::ptr_eq(other, connection);
        if same {
            gone.push(Rc::clone(other));
        }
        !same
    });
    let removed = before - state.streams.len();
    state.open = state.open.saturating_sub(removed);
}

/// Speaks the preface, and starts the task that drives the connection.
pub(super) async fn handshake(
    socket: Socket,
    count: Count,
    target: &Rc<Target>,
) -> Result<Rc<H2Connection>, ConnectError> {
    let Some(settings) = http2_settings(&target.cluster, true) else {
        return Err(ConnectError::Handshake);
    };
    let builder = client(settings, target.cluster.pool.max_response_head_bytes);
    let local = socket.local_address();
    let (send, driver) = builder.handshake::<_, Bytes>(socket).await.map_err(|_| ConnectError::Handshake)?;
    let connection = Rc::new(H2Connection {
        send: RefCell::new(send),
        active: Cell::new(0),
        exchanges: Cell::new(0),
        limit: settings.max_concurrent_streams.max(1),
        draining: Cell::new(false),
        idle_since: Cell::new(now()),
        local,
        id: count.id,
        target: Rc::clone(target),
    });
    tokio::task::spawn_local(drive(driver, Rc::downgrade(&connection), count, settings.keepalive));
    Ok(connection)
}

/// Drives a connection to its end, with its timeouts: idle, age, unanswered pings.
async fn drive(
    mut driver: h2::client::Connection<Socket, Bytes>,
    connection: Weak<H2Connection>,
    count: Count,
    keepalive: Option<(Duration, Duration)>,
) {
    let target = Rc::clone(&count.target);
    let limits = &target.cluster.pool;
    let mut ping = keepalive.and_then(|_| driver.ping_pong());
    let mut pinger = pin!(crate::http::codec::h2::keep_alive(ping.as_mut(), keepalive));
    let mut housekeeping = pin!(async {
        // Looked at a few times per timeout: closing a little late does no harm.
        let Some(tick) = limits.idle_timeout.into_iter().chain(limits.max_connection_duration).min() else {
            return std::future::pending::<()>().await;
        };
        let tick = (tick / 8).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(tick).await;
            let Some(connection) = connection.upgrade() else { return std::future::pending().await };
            let now = now();
            let old = limits
                .max_connection_duration
                .is_some_and(|age| now.saturating_duration_since(count.started) >= age);
            let idle = connection.active.get() == 0
                && limits
                    .idle_timeout
                    .is_some_and(|limit| now.saturating_duration_since(connection.idle_since.get()) >= limit);
            if old || idle {
                if old {
                    target.stats.upstream_cx_max_duration_reached().inc();
                } else {
                    target.stats.upstream_cx_idle_timeout().inc();
                }
                connection.draining.set(true);
                if let Some(pool) = target.pool.upgrade() {
                    forget(&pool, &connection);
                }
                // Its last handle ends the connection gracefully.
                drop(connection);
                return std::future::pending().await;
            }
        }
    });
    let remote = poll_fn(|cx| {
        if let Poll::Ready(result) = std::pin::Pin::new(&mut driver).poll(cx) {
            return Poll::Ready(result.is_err());
        }
        if pinger.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        let _: Poll<()> = housekeeping.as_mut().poll(cx);
        Poll::Pending
    })
    .await;
    if remote {
        target.stats.upstream_cx_destroy_remote().inc();
    } else {
        target.stats.upstream_cx_destroy_local().inc();
    }
    if let Some(connection) = connection.upgrade() {
        connection.draining.set(true);
        if let Some(pool) = target.pool.upgrade() {
            forget(&pool, &connection);
            open_for_waiters(&pool, &target, false);
        }
    }
}
