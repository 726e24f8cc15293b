//! `tunneling_config`: the session's bytes are the body of a CONNECT or POST request.
//!
//! [`establish`] sends the request and waits for its answer, [`carry`] moves bytes. The request
//! goes through the cluster's ordinary HTTP connection pool: over HTTP/2 sessions share
//! connections.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::cluster::stats::{Permit, Resource};
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::http::codec::h1::client::Answer;
use crate::http::codec::side::Upstream;
use crate::http::codec::{Frame, ResetReason};
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::mutation::{HeaderMutations, Substitution};
use crate::io::Socket;
use crate::tcp::copy::{End, Moved, Who};
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::{Command, Format};
use crate::telemetry::stream_info::{FilterState, StreamInfo};

/// Filter state: `true` makes a session go without its tunnel.
pub(super) const DISABLE: &str = "envoy.tcp_proxy.disable_tunneling";
/// Filter state: the answer's headers.
const RESPONSE_HEADERS: &str = "envoy.tcp_proxy.propagate_response_headers";
/// Filter state: the answer's trailers.
const RESPONSE_TRAILERS: &str = "envoy.tcp_proxy.propagate_response_trailers";

/// Bytes of downstream that are read while the answer is waited for, and at once later.
const CHUNK: usize = 64 * 1024;

/// TunnelingConfig, lowered.
#[derive(Debug)]
pub(crate) struct Tunneling {
    /// `hostname`: the authority.
    pub(crate) hostname: Format,
    /// `use_post`, with `post_path`; `None`: CONNECT.
    pub(crate) post_path: Option<Box<str>>,
    /// `headers_to_add`.
    pub(crate) headers: HeaderMutations,
    /// `propagate_response_headers`.
    pub(crate) keep_headers: bool,
    /// `propagate_response_trailers`.
    pub(crate) keep_trailers: bool,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(super) enum Refused {
    /// The answer's status is no success.
    Status(u16),
    /// The stream or its connection ended.
    Reset(ResetReason),
    /// Downstream is gone.
    Downstream,
    /// Nothing came for the idle timeout.
    Idle,
}

impl Tunneling {
    /// The request of a session; HTTP/1 leaves the scheme out.
    pub(super) fn request(&self, info: &StreamInfo) -> HeaderMap {
        let mut head = HeaderMap::default();
        let mut authority = Vec::new();
        self.hostname.format(&FormatContext::new(info), "-", &mut authority);
        match &self.post_path {
            None => head.append_known(Known::Method, b"CONNECT"),
            Some(path) => {
                head.append_known(Known::Method, b"POST");
                head.append_known(Known::Path, path.as_bytes());
                head.append_known(Known::Scheme, b"http");
            }
        }
        head.append_known(Known::Authority, &authority);
        self.headers.apply(&mut head, &OfSession(info));
        head
    }

    /// Leaves what the answer says where network filters and logs find it.
    pub(super) fn note_headers(&self, head: &HeaderMap, info: &mut StreamInfo) {
        if self.keep_headers {
            leave(RESPONSE_HEADERS, head, info);
        }
    }

    /// The same for trailers.
    pub(super) fn note_trailers(&self, trailers: &HeaderMap, info: &mut StreamInfo) {
        if self.keep_trailers {
            leave(RESPONSE_TRAILERS, trailers, info);
        }
    }
}

/// As Envoy's envoy.config.core.v3.HeaderMap in JSON.
fn leave(key: &str, map: &HeaderMap, info: &mut StreamInfo) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers: Vec<_> =
        map.iter().map(|(name, value)| json!({ "key": text(name), "value": text(value) })).collect();
    let typed = Some(json!({ "headers": headers }));
    info.filter_state.insert(key.to_owned(), FilterState { text: String::new(), typed, peer: None });
}

/// What commands in `headers_to_add` yield.
struct OfSession<'a>(&'a StreamInfo);

impl Substitution for OfSession<'_> {
    fn substitute(&self, command: &Command, _headers: &HeaderMap, out: &mut Vec<u8>) {
        let context = FormatContext::new(self.0);
        command.operator.value(&context).append(command.max_length, out);
    }
}

/// Counts the tunnel's request while it is under way.
pub(super) struct OpenStream {
    cluster: Rc<WorkerCluster>,
    pub(super) host: Rc<Host>,
    _permit: Permit,
}

impl OpenStream {
    /// `None`: the circuit breaker for requests is open.
    pub(super) fn new(cluster: &Rc<WorkerCluster>, host: &Rc<Host>) -> Option<Self> {
        let permit = Permit::take(&cluster.config, Resource::Requests, false)?;
        cluster.stats.upstream_rq_total().inc();
        cluster.stats.upstream_rq_active().inc();
        host.active.set(host.active.get() + 1);
        host.counts.rq_total.set(host.counts.rq_total.get() + 1);
        Some(Self { cluster: Rc::clone(cluster), host: Rc::clone(host), _permit: permit })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active().dec();
        self.host.active.set(self.host.active.get().saturating_sub(1));
    }
}

/// Sends the request and waits for its answer, which is given whole. What downstream sends
/// meanwhile is read, up to a limit, into `early`: so we see when it goes away.
pub(super) async fn establish(
    up: &mut Upstream,
    head: &HeaderMap,
    downstream: &mut Socket,
    early: &mut BytesMut,
    idle: Option<Duration>,
) -> (HeaderMap, Result<(), Refused>) {
    let mut answer = HeaderMap::default();
    if let Err(reason) = up.send_head(head, false) {
        return (answer, Err(Refused::Reset(reason)));
    }
    let mut timer = idle.map(|limit| Box::pin(tokio::time::sleep(limit)));
    let mut half_closed = false;
    let outcome = poll_fn(|cx| {
        while !half_closed && early.len() < CHUNK {
            match poll_read(cx, downstream, early) {
                Poll::Ready(Ok(0)) => half_closed = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Refused::Downstream)),
                Poll::Pending => break,
            }
        }
        let _: Poll<()> = up.poll_flush(cx);
        loop {
            match up.poll_head(cx, &mut answer) {
                Poll::Ready(Ok(Answer::Interim)) => {}
                Poll::Ready(Ok(Answer::Final { end })) => return Poll::Ready(Ok(end)),
                Poll::Ready(Err(reason)) => return Poll::Ready(Err(Refused::Reset(reason))),
                Poll::Pending => break,
            }
        }
        match &mut timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| Err(Refused::Idle)),
            None => Poll::Pending,
        }
    })
    .await;
    let outcome = outcome.and_then(|end| {
        let status = answer.status();
        // Over HTTP/1 any success will do (RFC 9110 section 9.3.6), as in Envoy.
        let accepted = match up {
            Upstream::H1(_) => status / 100 == 2,
            _ => status == 200,
        };
        if accepted && !end { Ok(()) } else { Err(Refused::Status(status)) }
    });
    (answer, outcome)
}

/// Carries bytes both ways until the end. `early` are bytes of downstream that were read already;
/// `moved` is told as soon as bytes have moved, `trailers` what ends the answer.
pub(super) async fn carry(
    downstream: &mut Socket,
    early: BytesMut,
    up: &mut Upstream,
    idle: Option<Duration>,
    mut moved: impl FnMut(Moved, (u64, u64)),
    trailers: impl FnMut(&HeaderMap),
) -> End {
    let mut carrier = Carrier {
        early,
        out: Bytes::new(),
        sent_all: false,
        ended: false,
        closed: false,
        first: None,
        trailers,
    };
    let mut total = Moved::default();
    let mut timer: Option<(Duration, Pin<Box<Sleep>>)> =
        idle.map(|limit| (limit, Box::pin(tokio::time::sleep(limit))));
    poll_fn(|cx| {
        let before = (total.sent, total.received);
        let end = carrier.poll(cx, downstream, up, &mut total);
        if before != (total.sent, total.received) {
            moved(total, up.wire_bytes());
            if let Some((limit, timer)) = &mut timer {
                timer.as_mut().reset(Instant::now() + *limit);
            }
        }
        match (end, &mut timer) {
            (Poll::Ready(end), _) => {
                moved(total, up.wire_bytes());
                Poll::Ready(end)
            }
            (Poll::Pending, Some((_, timer))) => timer.as_mut().poll(cx).map(|()| End::Idle),
            (Poll::Pending, None) => Poll::Pending,
        }
    })
    .await
}

/// Both directions of a tunnel.
struct Carrier<T> {
    /// From downstream, to be sent.
    early: BytesMut,
    /// From upstream, to be written.
    out: Bytes,
    /// Downstream has ended, and upstream was told.
    sent_all: bool,
    /// Upstream has ended.
    ended: bool,
    /// Downstream was told.
    closed: bool,
    first: Option<Who>,
    trailers: T,
}

impl<T: FnMut(&HeaderMap)> Carrier<T> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        downstream: &mut Socket,
        up: &mut Upstream,
        total: &mut Moved,
    ) -> Poll<End> {
        let end = loop {
            let sent = match self.poll_send(cx, downstream, up, total) {
                Poll::Ready(Err(_)) => break Poll::Ready(End::Downstream),
                other => other.is_ready(),
            };
            let received = match self.poll_receive(cx, downstream, up, total) {
                Poll::Ready(Err(end)) => break Poll::Ready(end),
                other => other.is_ready(),
            };
            // Deviation: Envoy ends a tunnel over HTTP/1 as soon as its client half-closes; ours goes
            // on until the server has answered. When the server has closed there is nothing left.
            if self.closed && (self.sent_all || matches!(up, Upstream::H1(_))) {
                break Poll::Ready(End::Finished(self.first.unwrap_or(Who::Upstream)));
            }
            if !sent && !received {
                break Poll::Pending;
            }
        };
        // All that could be moved was: now it is written.
        let flushed = up.poll_flush(cx);
        if matches!(end, Poll::Ready(End::Finished(Who::Downstream))) {
            ready!(flushed);
        }
        end
    }

    /// Ready when something was moved up.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        downstream: &mut Socket,
        up: &mut Upstream,
        total: &mut Moved,
    ) -> Poll<io::Result<()>> {
        if self.sent_all {
            return Poll::Pending;
        }
        ready!(up.poll_room(cx));
        if self.early.is_empty() {
            match ready!(poll_read(cx, downstream, &mut self.early)) {
                Ok(0) => {
                    self.sent_all = true;
                    self.first = self.first.or(Some(Who::Downstream));
                    up.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let data = self.early.split().freeze();
        total.sent += data.len() as u64;
        up.send_data(data, false);
        Poll::Ready(Ok(()))
    }

    /// Ready when something was moved down.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        downstream: &mut Socket,
        up: &mut Upstream,
        total: &mut Moved,
    ) -> Poll<Result<(), End>> {
        if self.closed {
            return Poll::Pending;
        }
        if !self.out.is_empty() {
            return Poll::Ready(match ready!(Pin::new(downstream).poll_write(cx, &self.out)) {
                Ok(count @ 1..) => {
                    self.out.advance(count);
                    total.received += count as u64;
                    Ok(())
                }
                Ok(0) | Err(_) => Err(End::Downstream),
            });
        }
        // TLS may hold sealed bytes that the socket did not take.
        if ready!(Pin::new(&mut *downstream).poll_flush(cx)).is_err() {
            return Poll::Ready(Err(End::Downstream));
        }
        if self.ended {
            // A client that is gone needs not be told.
            let _ = ready!(Pin::new(downstream).poll_shutdown(cx));
            self.closed = true;
            return Poll::Ready(Ok(()));
        }
        match ready!(up.poll_frame(cx)) {
            Ok(frame) => {
                self.ended = frame.is_last();
                match frame {
                    Frame::Data { data, .. } => self.out = data,
                    Frame::Trailers(trailers) => (self.trailers)(&trailers),
                    Frame::End => {}
                }
                if self.ended {
                    self.first = self.first.or(Some(Who::Upstream));
                }
                Poll::Ready(Ok(()))
            }
            Err(reason) => {
                let kind = match reason {
                    ResetReason::RemoteReset | ResetReason::RemoteRefused => io::ErrorKind::ConnectionReset,
                    _ => io::ErrorKind::ConnectionAborted,
                };
                Poll::Ready(Err(End::Upstream(kind.into())))
            }
        }
    }
}

/// Reads what is there behind what was read before: how much, 0 at the end.
fn poll_read(cx: &mut Context<'_>, from: &mut Socket, into: &mut BytesMut) -> Poll<io::Result<usize>> {
    // No buffer is held while there is nothing to read.
    ready!(from.poll_read_ready(cx))?;
    if into.capacity() - into.len() < CHUNK / 4 {
        into.reserve(CHUNK);
    }
    // The future keeps no state between polls, so a new one each time loses nothing.
    pin!(from.read_buf(into)).poll(cx)
}
