//! The downstream end of one HTTP/2 stream.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::frame::Reason;
use super::session::{Accepted, Session};
use super::streams::{Over, Slot};
use crate::http::codec::{DownstreamError, Frame};
use crate::http::headers::{HeaderMap, Known};

/// The handle of a request's stream. Dropped, it resets what is not complete.
#[derive(Debug)]
pub(crate) struct H2Server {
    session: Rc<RefCell<Session>>,
    slot: Slot,
    complete: bool,
    /// The request was an extended CONNECT (RFC 8441): 101 is said as 200.
    upgrade: bool,
    /// The request was HEAD: the response has no body, whatever is sent as one.
    to_head: bool,
    /// `100 Continue` is still owed.
    pub(crate) owes_continue: bool,
    /// A final response head was sent.
    pub(crate) responded: bool,
}

impl H2Server {
    /// Takes over a stream with its head.
    pub(crate) fn new(session: &Rc<RefCell<Session>>, accepted: Accepted) -> (Self, HeaderMap) {
        let Accepted { slot, head, upgrade, wire: _ } = accepted;
        let complete = session
            .borrow_mut()
            .streams
            .at(slot)
            .is_some_and(|stream| stream.recv_done && stream.inbox.is_empty());
        let expects =
            head.get(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let owes_continue = expects && !complete;
        let session = Rc::clone(session);
        let to_head = head.method() == b"HEAD";
        (Self { session, slot, complete, upgrade, to_head, owes_continue, responded: false }, head)
    }

    /// Whether the request has been read to its end.
    pub(crate) fn request_complete(&self) -> bool {
        self.complete
    }

    /// The next piece of the request.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, DownstreamError>> {
        let mut session = self.session.borrow_mut();
        if std::mem::take(&mut self.owes_continue) && !self.responded {
            session.respond(self.slot, &HeaderMap::default(), 100, false);
        }
        let frame = ready!(session.poll_frame(self.slot, cx)).map_err(error)?;
        self.complete |= frame.is_last();
        Poll::Ready(Ok(frame))
    }

    /// Ready when the client has reset the stream or gone away.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamError> {
        self.session.borrow_mut().poll_over(self.slot, cx).map(error)
    }

    /// Sends an interim response.
    pub(crate) fn send_informational(&mut self, map: &HeaderMap) {
        let status = map.status();
        self.owes_continue &= status != 100;
        if !self.responded {
            self.session.borrow_mut().respond(self.slot, map, status, false);
        }
    }

    /// Sends the response's head; gives its bytes on the wire.
    pub(crate) fn send_head(&mut self, map: &HeaderMap, end: bool) -> u64 {
        self.responded = true;
        let status = match map.status() {
            101 if self.upgrade => 200,
            status => status,
        };
        self.session.borrow_mut().respond(self.slot, map, status, end)
    }

    /// Sends body bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        let data = if self.to_head { Bytes::new() } else { data };
        self.session.borrow_mut().send_data(self.slot, data, end);
    }

    /// Ends the response with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        self.session.borrow_mut().send_trailers(self.slot, trailers);
    }

    /// Ready when nothing of the response waits in the stream. The connection writes.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        self.session
            .borrow_mut()
            .poll_sent(self.slot, cx)
            .map(|over| over.map_or(Ok(()), |over| Err(error(over))))
    }

    /// Ready when more of the response may be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DownstreamError>> {
        self.session
            .borrow_mut()
            .poll_room(self.slot, cx)
            .map(|over| over.map_or(Ok(()), |over| Err(error(over))))
    }

    /// Cuts the response off.
    pub(crate) fn reset(&mut self) {
        self.session.borrow_mut().reset(self.slot, Reason::INTERNAL_ERROR, Over::Local);
    }

    /// Bytes of the stream's frames: (received, sent).
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        self.session.borrow_mut().wire_bytes(self.slot)
    }
}

impl Drop for H2Server {
    fn drop(&mut self) {
        self.session.borrow_mut().release(self.slot);
    }
}

fn error(over: Over) -> DownstreamError {
    match over {
        Over::Remote(_) | Over::Violation | Over::Local => DownstreamError::Reset,
        Over::Lost | Over::Unprocessed => DownstreamError::Disconnected,
    }
}
