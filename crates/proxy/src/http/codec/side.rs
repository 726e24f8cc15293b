//! The two sides of a stream, whatever they speak.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

use crate::cluster::pool::tunnel::Tunnel;
use crate::cluster::pool::{H1Lease, H2Lease};
use crate::http::codec::h1::client::Answer;
use crate::http::codec::h1::server::H1Server;
use crate::http::codec::h2::{H2Client, H2Server};
use crate::http::codec::{DownstreamError, Frame, ResetReason};
use crate::http::headers::HeaderMap;
use crate::telemetry::stream_info::{HeadSize, Protocol};
use crate::tls::TlsInfo;

/// The client's side.
pub(crate) enum Downstream<'a> {
    /// The one request under way on an HTTP/1 connection.
    H1(&'a mut H1Server),
    /// One stream of an HTTP/2 connection.
    H2(H2Server),
}

impl Downstream<'_> {
    /// `%PROTOCOL%`.
    pub(crate) fn protocol(&self) -> Protocol {
        match self {
            Downstream::H1(server) if server.request().http10 => Protocol::Http10,
            Downstream::H1(_) => Protocol::Http11,
            Downstream::H2(_) => Protocol::Http2,
        }
    }

    /// Whether the request has been read to its end.
    pub(crate) fn request_complete(&self) -> bool {
        match self {
            Downstream::H1(server) => server.request_complete(),
            Downstream::H2(server) => server.request_complete(),
        }
    }

    /// Whether a final response head was sent.
    pub(crate) fn responded(&self) -> bool {
        match self {
            Downstream::H1(server) => server.responded,
            Downstream::H2(server) => server.responded,
        }
    }

    /// Whether the client waits for `100 Continue`.
    pub(crate) fn set_owes_continue(&mut self, owes: bool) {
        match self {
            Downstream::H1(server) => server.owes_continue = owes,
            Downstream::H2(server) => server.owes_continue = owes,
        }
    }

    /// HTTP/1: has the client send its body, if it asked. An HTTP/2 stream does when the body is
    /// asked for.
    pub(crate) fn send_continue(&mut self) {
        if let Downstream::H1(server) = self {
            server.send_continue();
        }
    }

    /// The next piece of the request.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, DownstreamError>> {
        match self {
            Downstream::H1(server) => server.poll_frame(cx),
            Downstream::H2(server) => server.poll_frame(cx),
        }
    }

    /// Ready when the client has gone away; useful once the request is complete.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamError> {
        match self {
            Downstream::H1(server) => server.poll_closed(cx),
            Downstream::H2(server) => server.poll_closed(cx),
        }
    }

    /// Ready when the client has gone away, also while a part of the request is still to be read;
    /// HTTP/1 reads a bounded part of it ahead for this.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamError> {
        match self {
            Downstream::H1(server) => server.poll_gone(cx),
            Downstream::H2(server) => server.poll_closed(cx),
        }
    }

    /// Sends an interim response.
    pub(crate) fn send_informational(&mut self, map: &HeaderMap) {
        match self {
            Downstream::H1(server) => server.send_informational(map),
            Downstream::H2(server) => server.send_informational(map),
        }
    }

    /// Sends the response's head; gives its length.
    pub(crate) fn send_head(&mut self, map: &HeaderMap, end: bool) -> HeadSize {
        match self {
            Downstream::H1(server) => server.send_head(map, end),
            Downstream::H2(server) => {
                let size = server.send_head(map, end);
                HeadSize { wire: size, fields: size }
            }
        }
    }

    /// Sends body bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        match self {
            Downstream::H1(server) => server.send_data(data, end),
            Downstream::H2(server) => server.send_data(data, end),
        }
    }

    /// Ends the response with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        match self {
            Downstream::H1(server) => server.send_trailers(trailers),
            Downstream::H2(server) => server.send_trailers(trailers),
        }
    }

    /// Writes what waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        match self {
            Downstream::H1(server) => server.poll_flush(cx),
            Downstream::H2(server) => server.poll_flush(cx),
        }
    }

    /// Writes what waits at the end of the response.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        match self {
            Downstream::H1(server) => server.poll_finish(cx),
            Downstream::H2(server) => server.poll_flush(cx),
        }
    }

    /// Ready when more of the response may be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        match self {
            Downstream::H1(server) => server.poll_room(cx),
            Downstream::H2(server) => server.poll_room(cx),
        }
    }

    /// Cuts the response off: a reset, or for HTTP/1 the end of the connection.
    pub(crate) fn reset(&mut self) {
        match self {
            Downstream::H1(server) => server.close = true,
            Downstream::H2(server) => server.reset(),
        }
    }

    /// An answer follows that does not need the rest of the request: HTTP/1 says that it closes
    /// the connection. `forwarding`: the request was on its way up, so that what is here of its
    /// body counts as read. Gives the number of those bytes.
    pub(crate) fn answer_early(&mut self, forwarding: bool) -> u64 {
        let Downstream::H1(server) = self else { return 0 };
        let skipped = if forwarding { server.skip_buffered() } else { 0 };
        server.close |= !server.request_complete();
        skipped
    }

    /// Nothing more of the request will be read.
    pub(crate) fn abandon_request(&mut self) {
        match self {
            Downstream::H1(server) => server.close |= !server.request_complete(),
            // The stream is reset with NO_ERROR behind the response (RFC 9113 section 8.1) when its
            // handle is dropped.
            Downstream::H2(_) => {}
        }
    }

    /// HTTP/2: bytes of the stream's frames, received and sent.
    pub(crate) fn wire_bytes(&self) -> Option<(u64, u64)> {
        match self {
            Downstream::H1(_) => None,
            Downstream::H2(server) => Some(server.wire_bytes()),
        }
    }

    /// HTTP/1: this response is the connection's last.
    pub(crate) fn close_after_response(&mut self) {
        if let Downstream::H1(server) = self {
            server.close = true;
        }
    }
}

/// The endpoint's side.
pub(crate) enum Upstream {
    /// An HTTP/1 connection, for this exchange alone.
    H1(H1Lease),
    /// One stream of an HTTP/2 connection.
    H2 {
        /// The place in the connection.
        lease: Rc<H2Lease>,
        /// The stream, once it is open.
        stream: Option<Box<H2Client>>,
    },
    /// Bytes alone: a CONNECT that ends here.
    Tunnel(Box<Tunnel>),
}

impl Upstream {
    /// `%UPSTREAM_PROTOCOL%`.
    pub(crate) fn protocol(&self) -> Option<Protocol> {
        match self {
            Upstream::H1(_) => Some(Protocol::Http11),
            Upstream::H2 { .. } => Some(Protocol::Http2),
            Upstream::Tunnel(_) => None,
        }
    }

    /// `%UPSTREAM_LOCAL_ADDRESS%`.
    pub(crate) fn local_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Upstream::H1(lease) => lease.local_address(),
            Upstream::H2 { lease, .. } => lease.local_address(),
            Upstream::Tunnel(tunnel) => tunnel.local_address(),
        }
    }

    /// The connection's TLS session.
    pub(crate) fn tls(&self) -> Option<&Rc<TlsInfo>> {
        match self {
            Upstream::H1(lease) => lease.tls(),
            Upstream::H2 { lease, .. } => lease.tls(),
            Upstream::Tunnel(tunnel) => tunnel.tls(),
        }
    }

    /// `%UPSTREAM_CONNECTION_ID%`.
    pub(crate) fn connection_id(&self) -> Option<u64> {
        match self {
            Upstream::H1(lease) => lease.connection_id(),
            Upstream::H2 { lease, .. } => Some(lease.connection_id()),
            Upstream::Tunnel(tunnel) => Some(tunnel.connection_id()),
        }
    }

    /// Bytes that this exchange has sent and received on the wire.
    pub(crate) fn wire_bytes(&mut self) -> (u64, u64) {
        match self {
            Upstream::H1(lease) => lease.client().wire_bytes(),
            Upstream::H2 { stream: Some(stream), .. } => {
                let (received, sent) = stream.wire_bytes();
                (sent, received)
            }
            Upstream::H2 { .. } => (0, 0),
            Upstream::Tunnel(tunnel) => tunnel.wire_bytes(),
        }
    }

    /// Sends the request's head.
    pub(crate) fn send_head(&mut self, map: &HeaderMap, end: bool) -> Result<(), ResetReason> {
        match self {
            Upstream::H1(lease) => {
                lease.client().send_head(map, end);
                Ok(())
            }
            Upstream::H2 { lease, stream } => {
                *stream = Some(Box::new(lease.open(map, end)?));
                Ok(())
            }
            Upstream::Tunnel(_) => Ok(()),
        }
    }

    /// Sends body bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        match self {
            Upstream::H1(lease) => lease.client().send_data(data, end),
            Upstream::H2 { stream: Some(stream), .. } => stream.send_data(data, end),
            Upstream::H2 { .. } => {}
            Upstream::Tunnel(tunnel) => tunnel.send_data(data, end),
        }
    }

    /// Ends the request with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        match self {
            Upstream::H1(lease) => lease.client().send_trailers(trailers),
            Upstream::H2 { stream: Some(stream), .. } => stream.send_trailers(trailers),
            Upstream::H2 { .. } => {}
            Upstream::Tunnel(tunnel) => tunnel.send_data(Bytes::new(), true),
        }
    }

    /// Writes what waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Upstream::H1(lease) => lease.client().poll_flush(cx),
            Upstream::H2 { .. } => Poll::Ready(()),
            Upstream::Tunnel(tunnel) => tunnel.poll_flush(cx),
        }
    }

    /// Ready when more of the request may be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Upstream::H1(lease) => lease.client().poll_room(cx),
            Upstream::H2 { stream: Some(stream), .. } => stream.poll_room(cx),
            Upstream::H2 { .. } => Poll::Ready(()),
            Upstream::Tunnel(tunnel) => tunnel.poll_room(cx),
        }
    }

    /// The response's head.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        map: &mut HeaderMap,
    ) -> Poll<Result<Answer, ResetReason>> {
        match self {
            Upstream::H1(lease) => lease.client().poll_head(cx, map),
            Upstream::H2 { stream: Some(stream), .. } => stream.poll_head(cx, map),
            Upstream::H2 { .. } => Poll::Pending,
            Upstream::Tunnel(_) => Poll::Ready(Ok(Tunnel::head(map))),
        }
    }

    /// The next piece of the response.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ResetReason>> {
        match self {
            Upstream::H1(lease) => lease.client().poll_frame(cx),
            Upstream::H2 { stream: Some(stream), .. } => stream.poll_frame(cx),
            Upstream::H2 { .. } => Poll::Pending,
            Upstream::Tunnel(tunnel) => tunnel.poll_frame(cx),
        }
    }

    /// Whether the endpoint cannot have acted on this request, although it was (partly) written:
    /// it reset a kept connection before it said anything. Only then may a request be replayed
    /// without a retry policy; see `forward::retry`.
    pub(crate) fn untouched(&mut self) -> Untouched {
        match self {
            Upstream::H1(lease) if lease.reused() => {
                let client = lease.client();
                match (client.nothing_received(), client.nothing_sent()) {
                    (true, true) => Untouched::Surely,
                    (true, false) => Untouched::Likely,
                    (false, _) => Untouched::No,
                }
            }
            Upstream::H1(_) | Upstream::H2 { .. } | Upstream::Tunnel(_) => Untouched::No,
        }
    }

    /// The exchange is through, just now: what is counted from then on need not ask the clock.
    pub(crate) fn ended(&mut self, now: Instant) {
        if let Upstream::H1(lease) = self {
            lease.ended(now);
        }
    }

    /// Gives up on the rest of the exchange. An HTTP/1 connection is closed unless both
    /// messages are complete.
    pub(crate) fn reset(&mut self) {
        if let Upstream::H2 { stream: Some(stream), .. } = self {
            stream.reset();
        }
    }
}

/// Whether an endpoint can have acted on a request whose connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untouched {
    /// No byte of it was sent.
    Surely,
    /// A kept connection was closed without an answer: in nearly all cases by an idle timeout
    /// that crossed with the request.
    Likely,
    /// It may have.
    No,
}
