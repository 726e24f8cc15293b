//! HTTP/2 streams on the `h2` crate: header blocks translated, flow control passed on.
//!
//! A stream is read only while the other side has room, and every piece read is handed on at
//! once, so its window is given back when it is read: back-pressure goes end to end. Up to
//! `UNASKED` bytes of a message are sent without asking for send window first, which saves
//! short messages a round of bookkeeping.
//!
//! Upgrades: an extended CONNECT (RFC 8441) reads as a GET with `upgrade`, and a response 101
//! is written as 200 to it; upstream the other way round.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use crate::cluster::Http2Settings;
use crate::http::codec::h1::client::Answer;
use crate::http::codec::{DownstreamError, Frame, ResetReason};
use crate::http::headers::{HeaderMap, Known};

/// The preface that an HTTP/2 client sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of each message that are sent without asking for window.
const UNASKED: usize = 16 * 1024;
/// Bytes that one connection may hold for slow readers.
const SEND_BUFFER: usize = 1024 * 1024;
/// Receivers of a proxy forward small frames as they come; the crate's default budget for them
/// is too small for long-lived gRPC connections.
const FRAME_BUDGET: usize = 16 * 1024 * 1024;

/// A server builder with these settings.
pub(crate) fn server(settings: &Http2Settings, max_head: usize) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .header_table_size(settings.hpack_table_size)
        .data_frame_budget(FRAME_BUDGET);
    if settings.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// A client builder with these settings.
pub(crate) fn client(settings: &Http2Settings, max_head: usize) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .initial_max_send_streams(settings.max_concurrent_streams.min(100) as usize)
        .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .header_table_size(settings.hpack_table_size)
        .enable_push(false)
        .data_frame_budget(FRAME_BUDGET);
    builder
}

/// Pings the peer every interval; completes when it does not answer within the timeout, never
/// without settings.
pub(crate) async fn keep_alive(ping: Option<&mut h2::PingPong>, settings: Option<(Duration, Duration)>) {
    let (Some(ping), Some((interval, limit))) = (ping, settings) else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(interval).await;
        if ping.send_ping(h2::Ping::opaque()).is_err() {
            return;
        }
        let pong = std::future::poll_fn(|cx| ping.poll_pong(cx));
        if !matches!(tokio::time::timeout(limit, pong).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// One direction's sending half.
struct Sender {
    stream: SendStream<Bytes>,
    unasked: usize,
}

impl Sender {
    fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, unasked: UNASKED }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if self.unasked > 0 || self.stream.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        self.stream.reserve_capacity(1);
        loop {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(_)) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(Reason::CANCEL.into())),
            }
        }
    }

    fn send(&mut self, data: Bytes, end: bool) -> Result<(), h2::Error> {
        self.unasked = self.unasked.saturating_sub(data.len());
        if data.is_empty() && !end {
            return Ok(());
        }
        self.stream.send_data(data, end)
    }
}

/// Reads the next piece of a message.
fn poll_frame(recv: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Frame, h2::Error>> {
    if let Some(data) = ready!(recv.poll_data(cx)) {
        let data = data?;
        // Handed on right away: see the module's text.
        let _ = recv.flow_control().release_capacity(data.len());
        return Poll::Ready(Ok(Frame::Data { end: recv.is_end_stream(), data }));
    }
    Poll::Ready(Ok(match ready!(recv.poll_trailers(cx))? {
        Some(trailers) => {
            let mut map = Box::new(HeaderMap::default());
            read_fields(&trailers, &mut map);
            Frame::Trailers(map)
        }
        None => Frame::End,
    }))
}

/// The downstream end of one HTTP/2 stream.
pub(crate) struct H2Server {
    respond: SendResponse<Bytes>,
    sender: Option<Sender>,
    recv: RecvStream,
    complete: bool,
    /// The request was an extended CONNECT.
    upgrade: bool,
    failed: Option<DownstreamError>,
    /// `100 Continue` is still owed.
    pub(crate) owes_continue: bool,
    /// A final response head was sent.
    pub(crate) responded: bool,
}

impl H2Server {
    /// Takes over an accepted stream; its head goes to `map`.
    pub(crate) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        map: &mut HeaderMap,
    ) -> Self {
        let (parts, recv) = request.into_parts();
        let upgrade = read_request(&parts, map);
        let complete = recv.is_end_stream();
        let owes_continue =
            map.get(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let owes_continue = owes_continue && !complete;
        Self { respond, sender: None, recv, complete, upgrade, failed: None, owes_continue, responded: false }
    }

    /// Whether the request has been read to its end.
    pub(crate) fn request_complete(&self) -> bool {
        self.complete
    }

    /// The next piece of the request.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, DownstreamError>> {
        if self.owes_continue {
            self.owes_continue = false;
            let mut interim = Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            let _ = self.respond.send_informational(interim);
        }
        let frame = ready!(poll_frame(&mut self.recv, cx));
        Poll::Ready(match frame {
            Ok(frame) => {
                self.complete |= frame.is_last();
                Ok(frame)
            }
            Err(error) => Err(downstream_error(&error)),
        })
    }

    /// Ready when the client has reset the stream or gone away.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamError> {
        if let Some(error) = self.failed {
            return Poll::Ready(error);
        }
        let reset = match &mut self.sender {
            Some(sender) => sender.stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        match reset {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(_)) => Poll::Ready(DownstreamError::Reset),
            Poll::Ready(Err(error)) => Poll::Ready(downstream_error(&error)),
        }
    }

    /// Sends an interim response.
    pub(crate) fn send_informational(&mut self, map: &HeaderMap) {
        if let Some(response) = build_response(map) {
            self.owes_continue &= response.status() != StatusCode::CONTINUE;
            let _ = self.respond.send_informational(response);
        }
    }

    /// Sends the response's head.
    pub(crate) fn send_head(&mut self, map: &HeaderMap, end: bool) {
        let Some(mut response) = build_response(map) else {
            self.fail(DownstreamError::Reset);
            return;
        };
        if self.upgrade && response.status() == StatusCode::SWITCHING_PROTOCOLS {
            *response.status_mut() = StatusCode::OK;
        }
        self.responded = true;
        match self.respond.send_response(response, end) {
            Ok(stream) => self.sender = Some(Sender::new(stream)),
            Err(error) => self.fail(downstream_error(&error)),
        }
    }

    /// Sends body bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        if let Some(sender) = &mut self.sender
            && let Err(error) = sender.send(data, end)
        {
            self.fail(downstream_error(&error));
        }
    }

    /// Ends the response with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        if let Some(sender) = &mut self.sender
            && let Err(error) = sender.stream.send_trailers(write_fields(trailers))
        {
            self.fail(downstream_error(&error));
        }
    }

    fn fail(&mut self, error: DownstreamError) {
        self.failed.get_or_insert(error);
    }

    /// The connection writes; this only reports failures.
    pub(crate) fn poll_flush(&mut self) -> Poll<Result<(), DownstreamError>> {
        Poll::Ready(self.failed.map_or(Ok(()), Err))
    }

    /// Ready when more of the response may be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        if let Some(error) = self.failed {
            return Poll::Ready(Err(error));
        }
        match &mut self.sender {
            None => Poll::Ready(Ok(())),
            Some(sender) => sender.poll_room(cx).map_err(|error| downstream_error(&error)),
        }
    }

    /// Resets the stream.
    pub(crate) fn reset(&mut self, reason: Reason) {
        match &mut self.sender {
            Some(sender) => sender.stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

fn downstream_error(error: &h2::Error) -> DownstreamError {
    if error.is_reset() && error.is_remote() { DownstreamError::Reset } else { DownstreamError::Disconnected }
}

/// The upstream end of one HTTP/2 stream.
pub(crate) struct H2Client {
    sender: Sender,
    response: Option<ResponseFuture>,
    recv: Option<RecvStream>,
    upgrade: bool,
    /// The request was sent to its end.
    request_done: bool,
    response_done: bool,
}

impl H2Client {
    /// Opens a stream with this head.
    pub(crate) fn open(
        connection: &mut SendRequest<Bytes>,
        map: &HeaderMap,
        end: bool,
    ) -> Result<Self, ResetReason> {
        let (request, upgrade) = build_request(map).ok_or(ResetReason::LocalReset)?;
        let end = end && !upgrade;
        // The crate refuses a stream before it is sent: nothing of it has reached the endpoint.
        let (response, stream) =
            connection.send_request(request, end).map_err(|error| match upstream_error(&error) {
                ResetReason::LocalReset => ResetReason::RemoteRefused,
                reason => reason,
            })?;
        Ok(Self {
            sender: Sender::new(stream),
            response: Some(response),
            recv: None,
            upgrade,
            request_done: end,
            response_done: false,
        })
    }

    /// Sends body bytes. Failures show when reading.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        self.request_done |= end;
        let _ = self.sender.send(data, end);
    }

    /// Ends the request with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        self.request_done = true;
        let _ = self.sender.stream.send_trailers(write_fields(trailers));
    }

    /// Ready when more of the request may be sent. An answer that is complete without it makes
    /// room for ever: the rest is dropped.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sender.poll_room(cx).map(|_| ())
    }

    /// The response's head, into `map`.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        map: &mut HeaderMap,
    ) -> Poll<Result<Answer, ResetReason>> {
        let Some(future) = &mut self.response else { return Poll::Pending };
        if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(cx) {
            read_response(&interim, map);
            return Poll::Ready(Ok(Answer::Interim));
        }
        let response = ready!(Pin::new(future).poll(cx)).map_err(|error| upstream_error(&error))?;
        self.response = None;
        let (parts, recv) = response.into_parts();
        read_response(&Response::from_parts(parts, ()), map);
        if map.status() == 101 {
            return Poll::Ready(Err(ResetReason::ProtocolError));
        }
        if self.upgrade && map.status() == 200 {
            map.set_status(101);
        }
        self.response_done = recv.is_end_stream();
        self.recv = Some(recv);
        Poll::Ready(Ok(Answer::Final { end: self.response_done }))
    }

    /// The next piece of the response.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ResetReason>> {
        let Some(recv) = &mut self.recv else { return Poll::Pending };
        let frame = ready!(poll_frame(recv, cx)).map_err(|error| upstream_error(&error))?;
        self.response_done |= frame.is_last();
        Poll::Ready(Ok(frame))
    }

    /// Resets the stream unless it is over.
    pub(crate) fn reset(&mut self) {
        if !self.request_done || !self.response_done {
            // A response that is complete before its request ends without an error.
            let reason = if self.response_done { Reason::NO_ERROR } else { Reason::CANCEL };
            self.sender.stream.send_reset(reason);
        }
    }
}

fn upstream_error(error: &h2::Error) -> ResetReason {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => ResetReason::RemoteRefused,
        // Streams beyond the last one that a GOAWAY names were never looked at.
        Some(Reason::NO_ERROR) if error.is_go_away() => ResetReason::RemoteRefused,
        _ if error.is_go_away() || error.is_io() => ResetReason::ConnectionTermination,
        Some(_) if error.is_remote() => ResetReason::RemoteReset,
        Some(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR) => {
            ResetReason::ProtocolError
        }
        Some(Reason::NO_ERROR | Reason::CANCEL) => ResetReason::RemoteReset,
        Some(_) => ResetReason::ProtocolError,
        None => ResetReason::LocalReset,
    }
}

/// Translates a request's head; says whether it is an upgrade by extended CONNECT.
fn read_request(parts: &http::request::Parts, map: &mut HeaderMap) -> bool {
    map.clear();
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    let upgrade = protocol.is_some();
    let method = if upgrade { "GET" } else { parts.method.as_str() };
    map.append_known(Known::Method, method.as_bytes());
    if let Some(authority) = parts.uri.authority() {
        map.append_known(Known::Authority, authority.as_str().as_bytes());
    } else if let Some(host) = parts.headers.get(http::header::HOST) {
        map.append_known(Known::Authority, host.as_bytes());
    }
    if (parts.method != Method::CONNECT || upgrade)
        && let Some(path) = parts.uri.path_and_query()
    {
        map.append_known(Known::Path, path.as_str().as_bytes());
    }
    if let Some(scheme) = parts.uri.scheme_str() {
        map.append_known(Known::Scheme, scheme.as_bytes());
    }
    let mut cookies = parts.headers.get_all(http::header::COOKIE).iter();
    if let Some(first) = cookies.next() {
        // RFC 9113 section 8.2.3: crumbs are joined for recipients other than HTTP/2.
        let mut joined = first.as_bytes().to_vec();
        for crumb in cookies {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(crumb.as_bytes());
        }
        map.append_known(Known::Cookie, &joined);
    }
    for (name, value) in &parts.headers {
        if *name != http::header::HOST && *name != http::header::COOKIE {
            map.append(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    if let Some(protocol) = protocol {
        map.append_known(Known::Upgrade, protocol.as_str().as_bytes());
    }
    upgrade
}

fn read_response(response: &Response<()>, map: &mut HeaderMap) {
    map.clear();
    map.set_status(response.status().as_u16());
    read_fields(response.headers(), map);
}

fn read_fields(fields: &http::HeaderMap, map: &mut HeaderMap) {
    for (name, value) in fields {
        map.append(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Translates a request's head; says whether it opens an upgrade. `None`: it cannot be said in
/// HTTP/2.
fn build_request(map: &HeaderMap) -> Option<(Request<()>, bool)> {
    let upgrade = map.get_str(Known::Upgrade);
    let connect = map.method() == b"CONNECT";
    let mut request = Request::new(());
    *request.method_mut() =
        if upgrade.is_some() { Method::CONNECT } else { Method::from_bytes(map.method()).ok()? };
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(Authority::try_from(map.authority()).ok()?);
    if !connect {
        uri.scheme =
            Some(if map.get(Known::Scheme) == Some(b"https") { Scheme::HTTPS } else { Scheme::HTTP });
        uri.path_and_query = Some(PathAndQuery::try_from(map.path()).ok()?);
    }
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    if let Some(protocol) = upgrade {
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    *request.headers_mut() = write_fields(map);
    Some((request, upgrade.is_some()))
}

fn build_response(map: &HeaderMap) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(map.status()).ok()?;
    *response.headers_mut() = write_fields(map);
    Some(response)
}

/// All fields but pseudo-headers and those that HTTP/2 forbids (RFC 9113 section 8.2.2). Fields
/// whose names or values the `http` crate cannot hold are left out; the codecs let none pass.
fn write_fields(map: &HeaderMap) -> http::HeaderMap {
    let mut fields = http::HeaderMap::with_capacity(map.len());
    let values = map.share();
    for (index, (known, name, value)) in map.iter_known().enumerate() {
        match known {
            Some(
                Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade
                | Known::Http2Settings,
            ) => continue,
            Some(Known::Te) if value != b"trailers" => continue,
            _ if name.first() == Some(&b':') => continue,
            _ => {}
        }
        let Some(value) = map.shared_value(&values, index) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_maybe_shared(value)) {
            fields.append(name, value);
        }
    }
    fields
}
