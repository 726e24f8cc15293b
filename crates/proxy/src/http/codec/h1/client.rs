//! The upstream end of an HTTP/1 connection: one exchange after the other.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};

use crate::http::codec::buffer::Transport;
use crate::http::codec::h1::body::{BodyReader, BodyWriter};
use crate::http::codec::h1::head::{self, HeadLimits};
use crate::http::codec::h1::write::{self, WriteStyle};
use crate::http::codec::{BodyLength, Frame, ResetReason};
use crate::http::headers::HeaderMap;
use crate::io::Socket;

/// 1xx answers to one request; more are an attack on the client's memory, or on ours.
const MAX_INTERIM: u32 = 64;

/// A head that came from upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 1xx but 101; the final one follows.
    Interim,
    /// The final head; whether the response ends with it.
    Final {
        /// No body follows.
        end: bool,
    },
}

/// An upstream HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct H1Client {
    transport: Transport,
    limits: HeadLimits,
    style: WriteStyle,
    enable_trailers: bool,
    reader: BodyReader,
    writer: BodyWriter,
    to_head: bool,
    connect: bool,
    answered: bool,
    /// 1xx answers of this exchange.
    interim: u32,
    keep_alive: bool,
    parsed: usize,
    /// Bytes received before this exchange: none since then means that the server said nothing.
    received_before: u64,
    sent_before: u64,
    /// Bytes both ways may follow: an upgrade or CONNECT.
    tunnel: bool,
    /// Our direction of the tunnel ends when all is written.
    ending: bool,
    /// Writing failed; what the server said before may still be read.
    broken: bool,
}

impl H1Client {
    /// A fresh connection.
    pub(crate) fn new(socket: Socket, limits: HeadLimits, style: WriteStyle, enable_trailers: bool) -> Self {
        Self {
            transport: Transport::new(socket, BytesMut::new()),
            limits,
            style,
            enable_trailers,
            reader: BodyReader::Done,
            writer: BodyWriter::Done,
            to_head: false,
            connect: false,
            // Nothing is under way.
            answered: true,
            interim: 0,
            keep_alive: true,
            parsed: 0,
            received_before: 0,
            sent_before: 0,
            tunnel: false,
            ending: false,
            broken: false,
        }
    }

    /// Begins an exchange.
    pub(crate) fn send_head(&mut self, map: &HeaderMap, end: bool) {
        self.to_head = map.method() == b"HEAD";
        self.connect = map.method() == b"CONNECT";
        self.answered = false;
        self.interim = 0;
        self.keep_alive = true;
        self.reader = BodyReader::Done;
        self.received_before = self.transport.received;
        self.sent_before = self.transport.sent;
        let length = write::write_request(self.transport.output.text().bytes(), map, end, self.style);
        self.tunnel = length == BodyLength::UntilClose;
        self.writer = BodyWriter::new(length);
    }

    /// Writes body bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        self.ending = end && self.tunnel;
        self.writer.data(&mut self.transport.output, data, end);
    }

    /// Ends the request with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        self.ending = self.tunnel;
        let trailers = self.enable_trailers.then_some(trailers);
        self.writer.trailers(&mut self.transport.output, trailers);
    }

    /// The response's head, into `map`.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        map: &mut HeaderMap,
    ) -> Poll<Result<Answer, ResetReason>> {
        loop {
            let input = &self.transport.input;
            let fresh = input.get(self.parsed..).unwrap_or_default();
            if !fresh.is_empty()
                && (self.parsed == 0
                    || memchr::memchr(b'\n', fresh).is_some()
                    || input.len() > self.limits.bytes)
            {
                match head::parse_response(input, &self.limits, self.to_head, map) {
                    Err(_) => return Poll::Ready(Err(ResetReason::ProtocolError)),
                    Ok(None) => self.parsed = input.len(),
                    Ok(Some(response)) => {
                        self.transport.input.advance(response.size);
                        self.parsed = 0;
                        if response.status < 200 && response.status != 101 {
                            self.interim += 1;
                            if self.interim > MAX_INTERIM {
                                return Poll::Ready(Err(ResetReason::ProtocolError));
                            }
                            return Poll::Ready(Ok(Answer::Interim));
                        }
                        if response.status == 101 && !self.tunnel {
                            // Nobody asked for it: the client would read what follows as answers.
                            return Poll::Ready(Err(ResetReason::ProtocolError));
                        }
                        let tunnel = self.connect && (200..300).contains(&response.status);
                        self.reader =
                            BodyReader::new(if tunnel { BodyLength::UntilClose } else { response.body });
                        self.keep_alive = response.keep_alive && !tunnel;
                        self.answered = true;
                        return Poll::Ready(Ok(Answer::Final { end: self.reader.is_done() }));
                    }
                }
            }
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) | Err(_) => {
                    let partial = !self.transport.input.is_empty();
                    let reason =
                        if partial { ResetReason::ProtocolError } else { ResetReason::ConnectionTermination };
                    return Poll::Ready(Err(reason));
                }
                Ok(_) => {}
            }
        }
    }

    /// The next piece of the response's body.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ResetReason>> {
        loop {
            match self.reader.decode(&mut self.transport.input) {
                Err(_) => return Poll::Ready(Err(ResetReason::ProtocolError)),
                Ok(Some(Frame::Trailers(_))) if !self.enable_trailers => return Poll::Ready(Ok(Frame::End)),
                Ok(Some(frame)) => return Poll::Ready(Ok(frame)),
                Ok(None) => {}
            }
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) if self.reader == BodyReader::UntilClose => {
                    self.reader = BodyReader::Done;
                    return Poll::Ready(Ok(Frame::End));
                }
                Err(_) if self.reader == BodyReader::UntilClose => {
                    return Poll::Ready(Err(ResetReason::ConnectionTermination));
                }
                // A body that ends early, in order or not, is a protocol error, as Envoy's parser says.
                Ok(0) | Err(_) => return Poll::Ready(Err(ResetReason::ProtocolError)),
                Ok(_) => {}
            }
        }
    }

    /// Writes what waits. A failure is kept for the reading side, which may still find an answer.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.broken {
            return Poll::Ready(());
        }
        // What is complete waits for an answer next; anything else may be one part of many.
        let flushed = if self.writer == BodyWriter::Done {
            self.transport.poll_flush_soon(cx)
        } else {
            self.transport.poll_flush(cx)
        };
        if ready!(flushed).is_err() {
            self.broken = true;
        } else if self.ending {
            self.ending = false;
            let _: Poll<std::io::Result<()>> = self.transport.poll_shutdown(cx);
        }
        Poll::Ready(())
    }

    /// Ready when more of the request may be written.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.broken {
            return Poll::Ready(());
        }
        if ready!(self.transport.poll_room(cx)).is_err() {
            self.broken = true;
        }
        Poll::Ready(())
    }

    /// Bytes of this exchange that were sent and received.
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        (self.transport.sent - self.sent_before, self.transport.received - self.received_before)
    }

    /// Whether nothing of this exchange has reached the network.
    pub(crate) fn nothing_sent(&self) -> bool {
        self.transport.sent == self.sent_before
    }

    /// Whether the server has said nothing in this exchange.
    pub(crate) fn nothing_received(&self) -> bool {
        self.transport.received == self.received_before
    }

    /// Whether the exchange is over in both directions and another may follow.
    pub(crate) fn reusable(&self) -> bool {
        self.is_complete()
            && self.keep_alive
            && !self.broken
            && self.transport.output.len() == 0
            && !self.transport.is_sending()
            && self.transport.input.is_empty()
            && !self.transport.eof
    }

    /// Whether the exchange is over in both directions.
    pub(crate) fn is_complete(&self) -> bool {
        self.answered && self.reader.is_done() && self.writer == BodyWriter::Done
    }

    /// Where the response's body comes from, for bytes that pass unseen.
    pub(crate) fn bulk_source(&mut self) -> Option<(&mut Transport, &mut BodyReader)> {
        self.answered.then_some((&mut self.transport, &mut self.reader))
    }

    /// Where the request's body goes as it is, if it does.
    pub(crate) fn bulk_sink(&mut self) -> Option<&mut Transport> {
        (self.writer == BodyWriter::Plain && !self.broken).then_some(&mut self.transport)
    }

    /// Writing failed: what the server has said may still be read.
    pub(crate) fn note_broken(&mut self) {
        self.broken = true;
    }

    /// The transport, for the pool.
    pub(crate) fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }
}
