//! HTTP/2 connections: many exchanges at a time, each a lease on one place.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;

use crate::cluster::pool::connect::ConnectError;
use crate::cluster::pool::{Count, Pool, Target, http2_settings, now, open_for_waiters};
use crate::http::codec::ResetReason;
use crate::http::codec::buffer::Transport;
use crate::http::codec::h2::H2Client;
use crate::http::codec::h2::link::{Link, Read};
use crate::http::codec::h2::message::HeadRules;
use crate::http::codec::h2::session::{Role, Rules, Session};
use crate::http::codec::side::Upstream;
use crate::http::headers::HeaderMap;
use crate::http::timer::Timer;
use crate::io::Socket;
use crate::tls::TlsInfo;

/// Reads in one turn before others have theirs.
const READS: usize = 8;

/// One open HTTP/2 connection. The task that drives it ends when nobody holds it any more.
pub(crate) struct H2Connection {
    session: Rc<RefCell<Session>>,
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
    tls: Option<Rc<TlsInfo>>,
    target: Rc<Target>,
}

impl H2Connection {
    /// Takes no further exchanges, and closes after the last.
    pub(super) fn drain(&self) {
        self.draining.set(true);
    }

    /// Exchanges under way.
    pub(super) fn active(&self) -> usize {
        self.active.get() as usize
    }

    /// How many more exchanges may begin on it now.
    pub(super) fn room(&self) -> usize {
        if !self.has_room() {
            return 0;
        }
        let theirs = self.session.borrow().peer_max_streams();
        self.limit.min(theirs).saturating_sub(self.active.get()) as usize
    }

    /// Whether another exchange may begin on it now.
    fn has_room(&self) -> bool {
        if self.draining.get() {
            return false;
        }
        let session = self.session.borrow();
        if !session.takes_streams() {
            self.draining.set(true);
            return false;
        }
        let theirs = session.peer_max_streams();
        self.active.get() < self.limit.min(theirs)
    }
}

impl Drop for H2Connection {
    /// Neither the pool nor a stream holds it: it says goodbye, and its driver ends.
    fn drop(&mut self) {
        self.target.stats.upstream_rq_per_cx().record(self.exchanges.get().into());
        self.session.borrow_mut().goaway();
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

    /// Its TLS session.
    pub(crate) fn tls(&self) -> Option<&Rc<TlsInfo>> {
        self.connection.tls.as_ref()
    }

    /// The connection's number.
    pub(crate) fn connection_id(&self) -> u64 {
        self.connection.id
    }

    /// Opens the stream with this head.
    pub(crate) fn open(&self, map: &HeaderMap, end: bool) -> Result<H2Client, ResetReason> {
        H2Client::open(&self.connection.session, map, end, now())
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
        if pool.borrow().waiters.is_empty() {
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

/// Makes a connection of a socket, and starts the task that drives it.
pub(super) fn connect(
    socket: Socket,
    count: Count,
    target: &Rc<Target>,
) -> Result<Rc<H2Connection>, ConnectError> {
    let (Some(settings), Some(stats)) = (http2_settings(&target.cluster), &target.http2_stats) else {
        return Err(ConnectError::Handshake);
    };
    let limits = &target.cluster.pool;
    let rules = Rules {
        settings: settings.clone(),
        heads: HeadRules {
            max_bytes: limits.max_response_head_bytes,
            max_fields: limits.max_headers,
            ascii_only: settings.ascii_only,
            extended_connect: false,
        },
        stream_errors: settings.stream_errors.unwrap_or(false),
    };
    let local = socket.local_address();
    let session = Session::new(Role::Client, rules, stats.clone(), now(), count.id);
    let link = Link::new(Transport::new(socket, BytesMut::new()), session, now());
    let connection = Rc::new(H2Connection {
        session: Rc::clone(&link.session),
        active: Cell::new(0),
        exchanges: Cell::new(0),
        limit: settings.max_concurrent_streams.max(1),
        draining: Cell::new(false),
        idle_since: Cell::new(now()),
        local,
        id: count.id,
        tls: count.tls.clone(),
        target: Rc::clone(target),
    });
    tokio::task::spawn_local(drive(link, Rc::downgrade(&connection), count));
    Ok(connection)
}

/// Drives a connection to its end.
async fn drive(link: Link, connection: Weak<H2Connection>, count: Count) {
    let mut driver = Driver { link, connection, count, counted: (0, 0), timer: Timer::default() };
    let remote = poll_fn(|cx| driver.poll(cx)).await;
    let Driver { link, connection, count, .. } = driver;
    let stats = &count.target.stats;
    let connection = connection.upgrade();
    let busy = link.session.borrow().cut() > 0;
    if remote {
        stats.upstream_cx_destroy_remote().inc();
    } else {
        stats.upstream_cx_destroy_local().inc();
    }
    if busy {
        stats.upstream_cx_destroy_with_active_rq().inc();
        if remote {
            stats.upstream_cx_destroy_remote_with_active_rq().inc();
        } else {
            stats.upstream_cx_destroy_local_with_active_rq().inc();
        }
    }
    if let Some(connection) = connection {
        connection.leave();
        if let Some(pool) = count.target.pool.upgrade() {
            open_for_waiters(&pool, &count.target, false);
        }
    }
    drop(link);
}

impl H2Connection {
    /// Takes no further streams, and leaves its pool.
    fn leave(self: &Rc<Self>) {
        self.draining.set(true);
        if let Some(pool) = self.target.pool.upgrade() {
            forget(&pool, self);
        }
    }

    /// Ends it if it is too old, or was idle for too long; gives when to ask again.
    fn check_age(self: &Rc<Self>, started: Instant) -> Option<Instant> {
        if self.draining.get() {
            return None;
        }
        let now = now();
        let limits = &self.target.cluster.pool;
        let stats = &self.target.stats;
        let old = limits.max_connection_duration.map(|age| started + age);
        if old.is_some_and(|old| now >= old) {
            stats.upstream_cx_max_duration_reached().inc();
            self.leave();
            return None;
        }
        let idle = limits.idle_timeout.map(|limit| {
            // In use, it is looked at a few times per timeout: closing a little late does no harm.
            if self.active.get() > 0 { now + limit / 8 } else { self.idle_since.get() + limit }
        });
        if self.active.get() == 0 && idle.is_some_and(|idle| now >= idle) {
            stats.upstream_cx_idle_timeout().inc();
            self.leave();
            return None;
        }
        old.into_iter().chain(idle).min()
    }
}

/// What drives one connection.
struct Driver {
    link: Link,
    connection: Weak<H2Connection>,
    count: Count,
    /// Bytes received and sent that stats know of.
    counted: (u64, u64),
    timer: Timer,
}

impl Driver {
    /// Reads, then writes all that streams have written since. Ready when the connection is over:
    /// whether its other end ended it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.link.session.borrow_mut().begin_driving(cx.waker());
        let mut remote = false;
        for reads in 0.. {
            match self.link.poll_read(cx, now) {
                Poll::Pending => break,
                Poll::Ready(Read::End) => {
                    remote = true;
                    self.link.session.borrow_mut().lost();
                    break;
                }
                Poll::Ready(Read::Frames) if reads == READS => {
                    cx.waker().wake_by_ref();
                    break;
                }
                Poll::Ready(Read::Frames) => {}
            }
        }
        self.follow_peer();
        loop {
            if !remote && !self.link.session.borrow().is_aborted() {
                let written = self.link.poll_write(cx);
                remote = matches!(written, Poll::Ready(Err(_)));
            }
            self.count_bytes();
            if remote || self.link.session.borrow().is_finished() {
                self.link.session.borrow_mut().lost();
                return Poll::Ready(remote || self.link.session.borrow().is_violated());
            }
            let age =
                self.connection.upgrade().and_then(|connection| connection.check_age(self.count.started));
            let ping = self.link.session.borrow().keepalive_deadline();
            if self.timer.poll(cx, age.into_iter().chain(ping).min()).is_pending() {
                return if self.link.session.borrow().is_finished() {
                    continue_later(cx)
                } else {
                    Poll::Pending
                };
            }
            let mut session = self.link.session.borrow_mut();
            if !session.keep_alive(now()) {
                session.lost();
            }
        }
    }

    /// The peer may have changed how many streams it takes, or take no more.
    fn follow_peer(&self) {
        let Some(connection) = self.connection.upgrade() else { return };
        let Some(pool) = self.count.target.pool.upgrade() else { return };
        if !self.link.session.borrow().takes_streams() {
            if !connection.draining.get() {
                if self.link.session.borrow().is_told_to_go() {
                    self.count.target.stats.upstream_cx_close_notify().inc();
                }
                connection.leave();
                drop(connection);
                open_for_waiters(&pool, &self.count.target, false);
            }
        } else if !pool.borrow().waiters.is_empty() {
            serve_waiters(&pool);
        }
    }

    fn count_bytes(&mut self) {
        let (received, sent) = (self.link.transport.received, self.link.transport.sent);
        let stats = &self.count.target.stats;
        stats.upstream_cx_rx_bytes_total().add(received - self.counted.0);
        stats.upstream_cx_tx_bytes_total().add(sent - self.counted.1);
        self.counted = (received, sent);
    }
}

/// Something has changed since it was looked at.
fn continue_later(cx: &Context<'_>) -> Poll<bool> {
    cx.waker().wake_by_ref();
    Poll::Pending
}
