//! One downstream connection: which protocol, which request is next, when it ends.
//!
//! HTTP/1 requests are served one after the other in the connection's own task; between them
//! the task holds no buffers and only a small future. HTTP/2 is in `h2`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use leno_base::drain::Phase;

use crate::drain::DrainWatch;
use crate::http::codec::CodecError;
use crate::http::codec::buffer::Transport;
use crate::http::codec::h1::head::{HeadLimits, RequestHead};
use crate::http::codec::h1::server::{H1Server, NoRequest};
use crate::http::codec::h1::write::WriteStyle;
use crate::http::codec::h2::PREFACE;
use crate::http::codec::side::Downstream;
use crate::http::config::{CodecType, HttpConnectionManager, Manager};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::stream::{Connection, now, refuse_request, serve_request};
use crate::http::timer::Timer;
use crate::io::{Accepted, Socket};
use crate::overload::{Reaction, Timed};
use crate::telemetry::stream_info::{ConnectionInfo, HeadSize};
use crate::worker::Worker;

mod h2;

/// Serves a connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    manager: Arc<HttpConnectionManager>,
    accepted: Accepted,
    info: Rc<ConnectionInfo>,
    drain: DrainWatch,
) {
    let stats = worker.http_stats(&manager.stat_prefix);
    stats.downstream_cx_total().inc();
    stats.downstream_cx_active().inc();
    if info.tls.is_some() {
        stats.downstream_cx_ssl_total().inc();
        stats.downstream_cx_ssl_active().inc();
    }
    let buffer_limit = accepted.buffer_limit;
    let manager = Manager::from(manager);
    let connection = Rc::new(Connection { worker, manager, stats, info, drain, buffer_limit });
    let open = Open(Rc::clone(&connection));
    serve_until_closing(&connection, accepted).await;
    drop(open);
}

/// Serves a connection to its end, or until the drain closes it.
async fn serve_until_closing(connection: &Rc<Connection>, accepted: Accepted) {
    let mut serving = pin!(detect_and_serve(connection, accepted));
    let mut closing = pin!(connection.drain.reached(Phase::Closing));
    let mut seen = None;
    poll_fn(|cx| {
        if serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // This task is registered with the drain from the first time on: a request need not pay
        // for that again.
        let changes = Some(connection.drain.changes());
        if seen == changes {
            return Poll::Pending;
        }
        seen = changes;
        closing.as_mut().poll(cx).map(|()| connection.stats.downstream_cx_destroy_local().inc())
    })
    .await;
}

/// Counts one open connection.
struct Open(Rc<Connection>);

impl Drop for Open {
    fn drop(&mut self) {
        let stats = &self.0.stats;
        stats.downstream_cx_active().dec();
        if self.0.info.tls.is_some() {
            stats.downstream_cx_ssl_active().dec();
        }
        stats.downstream_cx_destroy().inc();
        stats.downstream_cx_length_ms().record_ms(now().saturating_duration_since(self.0.info.started));
    }
}

async fn detect_and_serve(connection: &Rc<Connection>, accepted: Accepted) {
    let mut timer = Timer::default();
    let mut transport = Transport::new(accepted.socket, accepted.buffered);
    let http2 = match connection.manager.codec {
        CodecType::Http1 => false,
        CodecType::Http2 => true,
        // ALPN decides where it was spoken.
        CodecType::Auto => match connection.info.tls.as_ref().and_then(|tls| tls.alpn.as_deref()) {
            Some(protocol) => protocol == "h2",
            None => match detect(connection, &mut transport, &mut timer).await {
                Some(http2) => http2,
                None => return,
            },
        },
    };
    let (socket, input) = transport.into_parts();
    if http2 {
        Box::pin(h2::serve(connection, Transport::new(socket, input), timer)).await;
    } else {
        serve_http1(connection, socket, input, timer, accepted.buffer_limit).await;
    }
}

/// Whether the client begins with HTTP/2's preface; `None`: it is gone.
async fn detect(connection: &Connection, transport: &mut Transport, timer: &mut Timer) -> Option<bool> {
    let deadline = connection.manager.idle_timeout.map(|limit| now() + limit);
    poll_fn(|cx| {
        loop {
            let input = &transport.input[..];
            let common = input.len().min(PREFACE.len());
            if input.get(..common) != PREFACE.get(..common) {
                return Poll::Ready(Some(false));
            }
            if common == PREFACE.len() {
                return Poll::Ready(Some(true));
            }
            match transport.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return timer.poll(cx, deadline).map(|()| None),
            }
        }
    })
    .await
}

/// What comes next on an HTTP/1 connection.
enum Next {
    Request(RequestHead),
    Invalid(Reply),
    Close,
}

async fn serve_http1(
    connection: &Rc<Connection>,
    socket: Socket,
    input: BytesMut,
    mut timer: Timer,
    buffer_limit: usize,
) {
    let manager = &connection.manager;
    let stats = &connection.stats;
    stats.downstream_cx_http1_total().inc();
    stats.downstream_cx_http1_active().inc();
    let limits = HeadLimits {
        bytes: manager.max_request_head_bytes,
        fields: manager.max_headers,
        absolute_url: manager.http1.allow_absolute_url,
        chunked_length: manager.http1.allow_chunked_length,
        custom_methods: manager.http1.custom_methods,
        keep_case: manager.http1.keep_case,
        ignored_upgrades: manager.http1.ignored_upgrades.clone(),
    };
    let style = WriteStyle { proper_case: manager.http1.proper_case, whole_url: false };
    let mut server = H1Server::new(socket, input, limits, style, manager.http1.enable_trailers);
    server.limit_buffers(buffer_limit);
    let mut counted = (0, 0);
    let mut requests = 0;
    let mut since = now();
    let age = max_age(connection);
    loop {
        // An update of the listener may have brought another one.
        let renewed = connection.drain.renewed();
        let manager = renewed.as_deref().unwrap_or(&connection.manager);
        let mut head = HeaderMap::default();
        match next_request(connection, manager, &mut server, &mut head, &mut timer, since, age).await {
            Next::Close => break,
            Next::Invalid(reply) => {
                stats.downstream_cx_protocol_error().inc();
                Box::pin(refuse_request(connection, reply, Downstream::H1(&mut server), &mut timer)).await;
                break;
            }
            Next::Request(request) => {
                match shed(connection) {
                    None => {}
                    Some(Shed::Drain) => server.close = true,
                    Some(Shed::Close) => {
                        stats.downstream_cx_destroy_local().inc();
                        break;
                    }
                    Some(Shed::Abort) => {
                        stats.downstream_rq_overload_close().inc();
                        let reply = Reply::new(500, "overload", "Internal Server Error");
                        let down = Downstream::H1(&mut server);
                        Box::pin(refuse_request(connection, reply, down, &mut timer)).await;
                        break;
                    }
                }
                stats.downstream_rq_http1_total().inc();
                requests += 1;
                if manager.max_requests_per_connection > 0 && requests >= manager.max_requests_per_connection
                {
                    stats.downstream_cx_max_requests_reached().inc();
                    server.close = true;
                } else if end_of(connection, age).is_some_and(|end| now() >= end) {
                    // A client that is never idle is told to go, too.
                    stats.downstream_cx_max_duration_reached().inc();
                    if manager.safe_max_duration {
                        stats.downstream_cx_http1_soft_drain().inc();
                    }
                    server.close = true;
                }
                if request.http10 && !prepare_http10(manager, &mut head) {
                    let reply = Reply::protocol_error(CodecError { status: 426, details: "low_version" });
                    server.answer_in_http11();
                    Box::pin(refuse_request(connection, reply, Downstream::H1(&mut server), &mut timer))
                        .await;
                    break;
                }
                // Boxed, so that a connection between requests stays small; made in its place, as
                // it is too large to be moved for each request.
                let size = HeadSize { wire: request.size as u64, fields: request.fields };
                let down = Downstream::H1(&mut server);
                let place = Box::new_uninit();
                let serving = Box::write(place, serve_request(connection, head, size, down, &mut timer));
                since = Box::into_pin(serving).await;
            }
        }
        count_bytes(connection, server.transport(), &mut counted);
        if !server.reusable() {
            break;
        }
    }
    count_bytes(connection, server.transport(), &mut counted);
    stats.downstream_cx_http1_active().dec();
    close(connection, server.transport(), &mut timer).await;
}

/// What overload makes of a connection on which something comes.
enum Shed {
    /// It ends when that is convenient.
    Drain,
    /// It ends now.
    Close,
    /// HTTP/1: its request is refused, and it ends.
    Abort,
}

fn shed(connection: &Connection) -> Option<Shed> {
    let worker = &connection.worker;
    let overload = worker.overload();
    if overload.is_calm() {
        return None;
    }
    let sheds = |point| overload.sheds(point, worker.stats(), || worker.random());
    if sheds(Reaction::ShedHttp1) {
        Some(Shed::Abort)
    } else if sheds(Reaction::GoAwayAndClose) {
        Some(Shed::Close)
    } else {
        sheds(Reaction::GoAway).then_some(Shed::Drain)
    }
}

/// How long the connection may last.
fn max_age(connection: &Connection) -> Option<Duration> {
    let limit = connection.manager.max_connection_duration?;
    Some(limit + jitter(connection, limit, connection.manager.duration_jitter))
}

/// When it has lasted for so long, as overload has it.
fn end_of(connection: &Connection, age: Option<Duration>) -> Option<Instant> {
    let overload = connection.worker.overload();
    age.map(|limit| connection.info.started + overload.scaled(Timed::ConnectionMax, limit))
}

/// Up to so many percent of a duration.
fn jitter(connection: &Connection, of: Duration, percent: f64) -> Duration {
    if percent <= 0.0 {
        return Duration::ZERO;
    }
    let share = (connection.worker.random() >> 11) as f64 / (1u64 << 53) as f64;
    of.mul_f64(share * percent / 100.0)
}

/// HTTP/1.0 is refused unless configured; false: refuse.
fn prepare_http10(manager: &HttpConnectionManager, head: &mut HeaderMap) -> bool {
    if !manager.http1.accept_http_10 {
        return false;
    }
    if head.authority().is_empty()
        && let Some(host) = &manager.http1.default_host
    {
        head.set(Known::Authority, host.as_bytes());
    }
    true
}

/// Waits for a request on a connection that is idle `since` then.
async fn next_request(
    connection: &Connection,
    manager: &HttpConnectionManager,
    server: &mut H1Server,
    head: &mut HeaderMap,
    timer: &mut Timer,
    since: Instant,
    age: Option<Duration>,
) -> Next {
    let overload = connection.worker.overload();
    // Safely: only with a response.
    let age = age.filter(|_| !manager.safe_max_duration);
    let mut began: Option<Instant> = None;
    poll_fn(|cx| {
        match server.poll_request(cx, head) {
            Poll::Ready(Ok(request)) => return Poll::Ready(Next::Request(request)),
            Poll::Ready(Err(NoRequest::Closed)) => {
                connection.stats.downstream_cx_destroy_remote().inc();
                return Poll::Ready(Next::Close);
            }
            Poll::Ready(Err(NoRequest::Invalid(error))) => {
                return Poll::Ready(Next::Invalid(Reply::protocol_error(error)));
            }
            Poll::Pending => {}
        }
        // Looked at again when overload changes how long it is.
        let idle = manager.idle_timeout.map(|limit| since + overload.scaled(Timed::ConnectionIdle, limit));
        let age = end_of(connection, age);
        if server.is_stuck() {
            // The end of the response before seemed to be sent, and was not.
            let limit = manager.stream_flush_timeout.unwrap_or(manager.stream_idle_timeout);
            let limit = limit.map(|limit| since + overload.scaled(Timed::StreamFlush, limit));
            return timer.poll(cx, limit.into_iter().chain(idle).min()).map(|()| Next::Close);
        }
        if !server.has_input() {
            // A drain ends it with the next response only, as in Envoy: a request may be on its
            // way that would be lost otherwise.
            let expired = timer.poll(cx, idle.into_iter().chain(age).min());
            return expired.map(|()| {
                if age.is_some_and(|age| now() >= age) {
                    connection.stats.downstream_cx_max_duration_reached().inc();
                } else {
                    connection.stats.downstream_cx_idle_timeout().inc();
                }
                Next::Close
            });
        }
        let began = *began.get_or_insert_with(now);
        let deadline = manager.request_headers_timeout.map(|limit| began + limit);
        if deadline.is_none() {
            return timer.poll(cx, idle).map(|()| Next::Close);
        }
        timer.poll(cx, deadline).map(|()| {
            connection.stats.downstream_rq_header_timeout().inc();
            Next::Invalid(Reply::new(408, "request_header_timeout", "request header timeout"))
        })
    })
    .await
}

fn count_bytes(connection: &Connection, transport: &Transport, counted: &mut (u64, u64)) {
    connection.stats.downstream_cx_rx_bytes_total().add(transport.received - counted.0);
    connection.stats.downstream_cx_tx_bytes_total().add(transport.sent - counted.1);
    *counted = (transport.received, transport.sent);
}

/// Ends a connection so that its last bytes arrive: our direction first, then, for
/// `delayed_close_timeout`, what the client still sends is read and dropped. Closing a socket
/// with unread bytes would make the system reset it.
async fn close(connection: &Connection, transport: &mut Transport, timer: &mut Timer) {
    let limit = connection.manager.delayed_close_timeout;
    if transport.eof || limit.is_zero() {
        return;
    }
    let deadline = Some(now() + limit);
    poll_fn(|cx| {
        if transport.poll_shutdown(cx).is_pending() {
            return timer.poll(cx, deadline);
        }
        loop {
            transport.input.clear();
            match transport.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        timer.poll(cx, deadline).map(|()| connection.stats.downstream_cx_delayed_close_timeout().inc())
    })
    .await;
}
