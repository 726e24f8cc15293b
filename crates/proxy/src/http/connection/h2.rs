//! One downstream HTTP/2 connection: its streams are futures in the connection's own task.
//!
//! Each turn reads once, runs all streams that are ready, and writes once for all of them. One
//! timer serves the connection and all its streams.
//!
//! It ends in two steps, as Envoy's: a GOAWAY that names no last stream, so that requests on their
//! way are served, and the final one when the client has seen it, or after `drain_timeout`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::stream::{FuturesUnordered, StreamExt};
use leno_base::drain::Phase;

use super::{close, count_bytes, end_of, jitter, max_age};
use crate::http::codec::buffer::Transport;
use crate::http::codec::h2::H2Server;
use crate::http::codec::h2::link::{Link, Read};
use crate::http::codec::h2::message::HeadRules;
use crate::http::codec::h2::session::{Accepted, Role, Rules, Session};
use crate::http::codec::side::Downstream;
use crate::http::stream::{Connection, now, serve_request};
use crate::http::timer::{Timer, Timers};
use crate::overload::{Reaction, Timed};
use crate::telemetry::stream_info::HeadSize;

/// Reads in one turn before others have theirs.
const READS: usize = 8;

/// Serves a connection to its end.
pub(super) async fn serve(connection: &Rc<Connection>, transport: Transport, mut timer: Timer) {
    let manager = &connection.manager;
    let stats = &connection.stats;
    stats.downstream_cx_http2_total().inc();
    stats.downstream_cx_http2_active().inc();
    let rules = Rules {
        settings: manager.http2.clone(),
        heads: HeadRules {
            max_bytes: manager.max_request_head_bytes,
            max_fields: manager.max_headers,
            ascii_only: manager.http2.ascii_only,
            extended_connect: manager.http2.allow_connect,
        },
        stream_errors: manager.http2.stream_errors.unwrap_or(manager.stream_errors),
    };
    let worker = &connection.worker;
    let session = Session::new(Role::Server, rules, worker.http2_stats(), now(), worker.random());
    let mut link = Link::new(transport, session, now());
    drive(connection, &mut link, &mut timer).await;
    if link.session.borrow().is_violated() {
        stats.downstream_cx_protocol_error().inc();
        if link.session.borrow().is_rapidly_reset() {
            stats.downstream_rq_too_many_premature_resets().inc();
        }
    }
    stats.downstream_cx_http2_active().dec();
    if !link.session.borrow().is_aborted() {
        close(connection, &mut link.transport, &mut timer).await;
    }
}

/// How far the connection has come in saying goodbye.
struct Goodbye {
    /// When the final GOAWAY is due at the latest; none: not begun.
    due: Option<Instant>,
}

impl Goodbye {
    fn begin(&mut self, connection: &Connection, link: &Link) {
        if self.due.is_none() {
            link.session.borrow_mut().shutdown_notice();
            let (limit, percent) = (connection.manager.drain_timeout, connection.manager.drain_jitter);
            self.due = Some(now() + limit + jitter(connection, limit, percent));
        }
    }

    fn has_begun(&self) -> bool {
        self.due.is_some()
    }

    /// Sends the final GOAWAY if it is due.
    fn go_on(&self, link: &Link) {
        let Some(due) = self.due else { return };
        let mut session = link.session.borrow_mut();
        if session.notice_seen() || now() >= due {
            session.goaway();
        }
    }
}

/// Drives a connection until nothing more will happen on it.
async fn drive(connection: &Rc<Connection>, link: &mut Link, timer: &mut Timer) {
    let manager = &connection.manager;
    let stats = &connection.stats;
    let overload = connection.worker.overload();
    let timers = Rc::new(Timers::default());
    let mut draining = pin!(connection.drain.reached(Phase::Draining));
    let max_age = max_age(connection);
    let mut streams = FuturesUnordered::new();
    let mut requests: u32 = 0;
    let mut goodbye = Goodbye { due: None };
    let mut idle_since = now();
    let mut counted = (0, 0);
    let mut close_by = None;
    let (mut fresh, mut shed) = (true, false);
    poll_fn(|cx| {
        link.session.borrow_mut().begin_driving(cx.waker());
        let mut reads = READS;
        loop {
            let read = link.poll_read(cx, now);
            // What came with the first bytes is there before anything is read.
            let came = std::mem::take(&mut fresh) || read == Poll::Ready(Read::Frames);
            if came && !overload.is_calm() && close_by.is_none() {
                let sheds =
                    |point| overload.sheds(point, connection.worker.stats(), || connection.worker.random());
                if sheds(Reaction::GoAwayAndClose) {
                    goodbye.begin(connection, link);
                    link.session.borrow_mut().goaway_unserved();
                    stats.downstream_cx_destroy_local().inc();
                    shed = true;
                    close_by = Some(now());
                } else if sheds(Reaction::GoAway) {
                    goodbye.begin(connection, link);
                }
            }
            loop {
                let accepted = if shed { None } else { link.session.borrow_mut().accept() };
                let Some(accepted) = accepted else { break };
                stats.downstream_rq_http2_total().inc();
                if !overload.is_calm()
                    && !goodbye.has_begun()
                    && overload.calls_for(Reaction::DisableHttpKeepalive, || connection.worker.random())
                {
                    stats.downstream_cx_overload_disable_keepalive().inc();
                    stats.downstream_cx_drain_close().inc();
                    goodbye.begin(connection, link);
                }
                requests = requests.saturating_add(1);
                streams.push(serve_stream(Rc::clone(connection), link, accepted, &timers));
                if manager.max_requests_per_connection > 0
                    && requests >= manager.max_requests_per_connection
                    && !goodbye.has_begun()
                {
                    stats.downstream_cx_max_requests_reached().inc();
                    goodbye.begin(connection, link);
                }
            }
            if read == Poll::Ready(Read::End) && !link.session.borrow().is_finished() {
                stats.downstream_cx_destroy_remote().inc();
                link.session.borrow_mut().lost();
            }
            // All that are ready run first; then the connection writes once for all of them.
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
                if streams.is_empty() {
                    idle_since = now();
                }
            }
            reads -= 1;
            if read.is_pending() || link.session.borrow().is_finished() {
                break;
            }
            if reads == 0 {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if !goodbye.has_begun() && draining.as_mut().poll(cx).is_ready() {
            stats.downstream_cx_drain_close().inc();
            goodbye.begin(connection, link);
        }
        goodbye.go_on(link);
        loop {
            if write(connection, link, cx, &mut counted, &streams) {
                return Poll::Ready(());
            }
            let finished = link.session.borrow().is_finished();
            if finished && close_by.is_none() {
                // A client that does not read what is left is not waited for.
                close_by = Some(now() + manager.delayed_close_timeout);
            }
            // Overload may shorten it.
            let scaled = |limit| idle_since + overload.scaled(Timed::ConnectionIdle, limit);
            let idle = manager.idle_timeout.filter(|_| streams.is_empty()).map(scaled);
            let age = end_of(connection, max_age);
            let own = [
                idle.filter(|_| !goodbye.has_begun()),
                age.filter(|_| !goodbye.has_begun()),
                goodbye.due.filter(|_| !finished),
                link.session.borrow().keepalive_deadline().filter(|_| !finished),
                close_by,
                timers.next(),
            ];
            if timer.poll(cx, own.into_iter().flatten().min()).is_pending() {
                return Poll::Pending;
            }
            let now = now();
            timers.fire(now);
            if close_by.is_some_and(|deadline| now >= deadline) {
                link.session.borrow_mut().lost();
                return if streams.is_empty() { Poll::Ready(()) } else { Poll::Pending };
            }
            if !link.session.borrow_mut().keep_alive(now) {
                link.session.borrow_mut().lost();
                cx.waker().wake_by_ref();
            }
            if !goodbye.has_begun() {
                if age.is_some_and(|age| now >= age) {
                    stats.downstream_cx_max_duration_reached().inc();
                    goodbye.begin(connection, link);
                } else if idle.is_some_and(|idle| now >= idle) {
                    stats.downstream_cx_idle_timeout().inc();
                    goodbye.begin(connection, link);
                }
            }
            goodbye.go_on(link);
        }
    })
    .await;
}

/// Writes what there is. True: the connection is over, and so are its streams.
fn write<S>(
    connection: &Connection,
    link: &mut Link,
    cx: &mut Context<'_>,
    counted: &mut (u64, u64),
    streams: &FuturesUnordered<S>,
) -> bool {
    let written = if link.session.borrow().is_aborted() { Poll::Ready(Ok(())) } else { link.poll_write(cx) };
    count_bytes(connection, &link.transport, counted);
    match written {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(_)) => {
            if !link.session.borrow().is_aborted() {
                connection.stats.downstream_cx_destroy_remote().inc();
                link.session.borrow_mut().lost();
                // The streams are yet to learn of it.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending => return false,
    }
    link.session.borrow().is_finished() && streams.is_empty()
}

fn serve_stream(
    connection: Rc<Connection>,
    link: &Link,
    accepted: Accepted,
    timers: &Rc<Timers>,
) -> impl Future<Output = ()> + use<> {
    let wire = accepted.wire;
    let (server, head) = H2Server::new(&link.session, accepted);
    let mut timer = timers.timer();
    async move {
        let size = HeadSize { wire, fields: wire };
        serve_request(&connection, head, size, Downstream::H2(server), &mut timer).await;
    }
}
