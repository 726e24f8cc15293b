//! The downstream end of an HTTP/1 connection: one request after the other.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};

use crate::http::codec::buffer::Transport;
use crate::http::codec::h1::body::{BodyReader, BodyWriter};
use crate::http::codec::h1::head::{self, HeadLimits, RequestHead};
use crate::http::codec::h1::write::{self, ResponseShape, WriteStyle};
use crate::http::codec::{BodyLength, CodecError, DownstreamError, Frame};
use crate::http::headers::HeaderMap;
use crate::io::Socket;
use crate::telemetry::stream_info::HeadSize;

/// Bytes of later requests that are read ahead while one is served.
const PIPELINE_LIMIT: usize = 64 * 1024;

/// The facts while there is no request.
const NO_REQUEST: RequestHead = RequestHead {
    size: 0,
    fields: 0,
    http10: false,
    body: BodyLength::Empty,
    keep_alive: true,
    expects_continue: false,
    upgrade: false,
};

/// Why no further request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRequest {
    /// The client has closed between requests.
    Closed,
    /// What it sent is no request; answered and closed.
    Invalid(CodecError),
}

/// A downstream HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct H1Server {
    transport: Transport,
    limits: HeadLimits,
    style: WriteStyle,
    enable_trailers: bool,
    /// The body of the request under way.
    reader: BodyReader,
    /// The body of the response under way.
    writer: BodyWriter,
    /// Facts of the request under way.
    request: RequestHead,
    to_head: bool,
    connect: bool,
    /// A final response head was written.
    pub(crate) responded: bool,
    /// `100 Continue` is still owed.
    pub(crate) owes_continue: bool,
    /// The connection closes behind this response.
    pub(crate) close: bool,
    /// Bytes in front of which no complete head was found.
    parsed: usize,
}

impl H1Server {
    /// Obeys the listener's `per_connection_buffer_limit_bytes`.
    pub(crate) fn limit_buffers(&mut self, limit: usize) {
        self.transport.limit_buffers(limit);
    }

    /// A connection of which `input` was read already.
    pub(crate) fn new(
        socket: Socket,
        input: BytesMut,
        limits: HeadLimits,
        style: WriteStyle,
        enable_trailers: bool,
    ) -> Self {
        Self {
            transport: Transport::new(socket, input),
            limits,
            style,
            enable_trailers,
            reader: BodyReader::Done,
            writer: BodyWriter::Done,
            request: NO_REQUEST,
            to_head: false,
            connect: false,
            responded: false,
            owes_continue: false,
            close: false,
            parsed: 0,
        }
    }

    /// Whether bytes of a further request are here (its head has begun).
    pub(crate) fn has_input(&self) -> bool {
        !self.transport.input.is_empty()
    }

    /// Waits for the next request's head. Flushes what is still to be written meanwhile.
    pub(crate) fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        map: &mut HeaderMap,
    ) -> Poll<Result<RequestHead, NoRequest>> {
        // What is no request is answered too: not by the rules of the request before it.
        self.responded = false;
        self.to_head = false;
        self.connect = false;
        self.request = NO_REQUEST;
        loop {
            self.skip_blank_lines();
            if self.transport.input.len() > self.parsed && self.worth_parsing() {
                match head::parse_request(&self.transport.input, &self.limits, map) {
                    Err(error) => return Poll::Ready(Err(NoRequest::Invalid(error))),
                    Ok(None) => self.parsed = self.transport.input.len(),
                    Ok(Some(request)) => {
                        self.begin(request, map);
                        return Poll::Ready(Ok(request));
                    }
                }
            }
            if let Poll::Ready(Err(_)) = self.transport.poll_flush_soon(cx) {
                return Poll::Ready(Err(NoRequest::Closed));
            }
            if self.transport.input.is_empty() {
                self.transport.release();
            }
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(NoRequest::Closed)),
                Ok(_) => {}
            }
        }
    }

    /// Before a complete head is there, only a new line can complete it or make it wrong.
    fn worth_parsing(&self) -> bool {
        let fresh = self.transport.input.get(self.parsed..).unwrap_or_default();
        self.parsed == 0
            || memchr::memchr(b'\n', fresh).is_some()
            || self.transport.input.len() > self.limits.bytes
    }

    /// An empty line in front of a request is ignored (RFC 9112 section 2.2).
    fn skip_blank_lines(&mut self) {
        while self.parsed == 0 && self.transport.input.starts_with(b"\r\n") {
            self.transport.input.advance(2);
        }
    }

    fn begin(&mut self, request: RequestHead, map: &HeaderMap) {
        self.transport.input.advance(request.size);
        self.parsed = 0;
        self.reader = BodyReader::new(request.body);
        self.writer = BodyWriter::Done;
        self.to_head = map.method() == b"HEAD";
        self.connect = map.method() == b"CONNECT";
        self.responded = false;
        self.owes_continue = request.expects_continue && !self.reader.is_done();
        self.close = !request.keep_alive;
        self.request = request;
    }

    /// Whether the request has been read to its end.
    pub(crate) fn request_complete(&self) -> bool {
        self.reader.is_done()
    }

    /// Drops what is here of the request's body: an answer that does not need it need not close
    /// the connection for it. Says how many bytes those were.
    pub(crate) fn skip_buffered(&mut self) -> u64 {
        let mut skipped = 0;
        if self.owes_continue || self.request.body == BodyLength::UntilClose {
            return skipped;
        }
        while !self.reader.is_done() {
            match self.reader.decode(&mut self.transport.input) {
                Ok(Some(Frame::Data { data, .. })) => skipped += data.len() as u64,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        skipped
    }

    /// The next piece of the request's body.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, DownstreamError>> {
        loop {
            match self.reader.decode(&mut self.transport.input) {
                Err(error) => {
                    self.close = true;
                    return Poll::Ready(Err(DownstreamError::Protocol(error)));
                }
                Ok(Some(Frame::Trailers(_))) if !self.enable_trailers => return Poll::Ready(Ok(Frame::End)),
                Ok(Some(frame)) => return Poll::Ready(Ok(frame)),
                Ok(None) => {}
            }
            if self.owes_continue {
                self.send_continue();
            }
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) if self.reader == BodyReader::UntilClose => {
                    self.reader = BodyReader::Done;
                    return Poll::Ready(Ok(Frame::End));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(DownstreamError::Disconnected)),
                Ok(_) => {}
            }
        }
    }

    /// Ready when the client has gone away while its request is served.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamError> {
        if self.reader.is_done() { self.poll_gone(cx) } else { Poll::Pending }
    }

    /// The same while a part of the request is still to be read: that is read ahead.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamError> {
        // The end of the client's half of a tunnel is no end of the tunnel.
        if self.request.body == BodyLength::UntilClose {
            return Poll::Pending;
        }
        loop {
            if self.transport.eof {
                return Poll::Ready(DownstreamError::Disconnected);
            }
            if self.transport.input.len() >= PIPELINE_LIMIT {
                return Poll::Pending;
            }
            if self.transport.input.is_empty() {
                self.transport.release_input();
            }
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(DownstreamError::Disconnected),
                Ok(_) => {}
            }
        }
    }

    /// Writes `100 Continue`.
    pub(crate) fn send_continue(&mut self) {
        let owed = std::mem::take(&mut self.owes_continue);
        if owed && !self.responded {
            self.transport.output.text().bytes().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// Writes an interim response (1xx, not 101).
    pub(crate) fn send_informational(&mut self, map: &HeaderMap) {
        if self.responded || self.request.http10 {
            return;
        }
        if map.status() == 100 {
            self.owes_continue = false;
        }
        let shape = self.shape(true);
        write::write_response(
            self.transport.output.text().bytes(),
            map,
            ResponseShape { close: false, ..shape },
            self.style,
        );
    }

    /// Writes the response's head; gives its length.
    pub(crate) fn send_head(&mut self, map: &HeaderMap, end: bool) -> HeadSize {
        if self.owes_continue {
            // The client may or may not send the body now: nothing behind it can be told apart.
            self.close = true;
        }
        let shape = self.shape(end);
        let (length, size) =
            write::write_response(self.transport.output.text().bytes(), map, shape, self.style);
        if length == BodyLength::UntilClose {
            self.close = true;
        } else if self.request.upgrade || self.connect {
            // The tunnel was refused: what the client sends behind its request is no request.
            self.close = true;
        }
        self.writer = BodyWriter::new(length);
        self.responded = true;
        size
    }

    fn shape(&self, end: bool) -> ResponseShape {
        let refused = self.request.upgrade || self.connect;
        ResponseShape {
            end,
            to_head: self.to_head,
            tunnel: self.connect,
            http10: self.request.http10,
            close: self.close || refused,
        }
    }

    /// Writes body bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        self.writer.data(&mut self.transport.output, data, end);
    }

    /// Ends the response with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        let trailers = self.enable_trailers.then_some(trailers);
        self.writer.trailers(&mut self.transport.output, trailers);
    }

    /// Writes what waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        self.transport.poll_flush(cx).map_err(|_| DownstreamError::Disconnected)
    }

    /// Whether bytes of an earlier response are here that the client does not take.
    pub(crate) fn is_stuck(&self) -> bool {
        self.transport.is_stuck()
    }

    /// Writes what waits at the end of a response: if another request may follow, the end of the
    /// worker's turn is soon enough.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        let flushed =
            if self.reusable() { self.transport.poll_flush_soon(cx) } else { self.transport.poll_flush(cx) };
        flushed.map_err(|_| DownstreamError::Disconnected)
    }

    /// Ready when more of the response may be written.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        self.transport.poll_room(cx).map_err(|_| DownstreamError::Disconnected)
    }

    /// Whether another request may follow on this connection.
    pub(crate) fn reusable(&self) -> bool {
        !self.close
            && self.reader.is_done()
            && self.writer == BodyWriter::Done
            && self.responded
            && !self.transport.eof
    }

    /// Where the request's body comes from, for bytes that pass unseen.
    pub(crate) fn bulk_source(&mut self) -> Option<(&mut Transport, &mut BodyReader)> {
        (!self.owes_continue).then_some((&mut self.transport, &mut self.reader))
    }

    /// Where the response's body goes as it is, if it does.
    pub(crate) fn bulk_sink(&mut self) -> Option<&mut Transport> {
        (self.writer == BodyWriter::Plain).then_some(&mut self.transport)
    }

    /// The transport, for closing and for counting bytes.
    pub(crate) fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Answers an HTTP/1.0 request as if it were none: the version is not spoken here.
    pub(crate) fn answer_in_http11(&mut self) {
        self.request.http10 = false;
    }

    /// The request's facts.
    pub(crate) fn request(&self) -> RequestHead {
        self.request
    }
}
