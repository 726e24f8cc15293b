//! The upstream end of one HTTP/2 stream.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;

use super::frame::Reason;
use super::session::Session;
use super::streams::{Over, Slot};
use crate::http::codec::h1::client::Answer;
use crate::http::codec::{Frame, ResetReason};
use crate::http::headers::{HeaderMap, Known};

/// The handle of a stream of ours. Dropped, it resets what is not complete.
#[derive(Debug)]
pub(crate) struct H2Client {
    session: Rc<RefCell<Session>>,
    slot: Slot,
    /// What the request wants to be upgraded to: 200 is said as 101.
    upgrade: Option<Box<[u8]>>,
    /// The request was sent to its end.
    request_done: bool,
    /// The final head was read.
    answered: bool,
    response_done: bool,
}

impl H2Client {
    /// Opens a stream with this head.
    pub(crate) fn open(
        session: &Rc<RefCell<Session>>,
        map: &HeaderMap,
        end: bool,
        now: Instant,
    ) -> Result<Self, ResetReason> {
        let upgrade: Option<Box<[u8]>> = map.get(Known::Upgrade).map(Into::into);
        let end = end && upgrade.is_none();
        let slot = session.borrow_mut().open_request(map, end, now)?;
        let session = Rc::clone(session);
        Ok(Self { session, slot, upgrade, request_done: end, answered: false, response_done: false })
    }

    /// Sends body bytes. Failures show when reading.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        self.request_done |= end;
        self.session.borrow_mut().send_data(self.slot, data, end);
    }

    /// Ends the request with trailers.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) {
        self.request_done = true;
        self.session.borrow_mut().send_trailers(self.slot, trailers);
    }

    /// Ready when more of the request may be sent. An answer that is complete without it makes
    /// room for ever: the rest is dropped.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.session.borrow_mut().poll_room(self.slot, cx).map(|_| ())
    }

    /// The response's head, into `map`.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        map: &mut HeaderMap,
    ) -> Poll<Result<Answer, ResetReason>> {
        if self.answered {
            return Poll::Pending;
        }
        let end = ready!(self.session.borrow_mut().poll_head(self.slot, cx, map)).map_err(reset_reason)?;
        let status = map.status();
        if status < 200 {
            return Poll::Ready(Ok(Answer::Interim));
        }
        if status == 200
            && let Some(kind) = &self.upgrade
        {
            map.set_status(101);
            map.set(Known::Upgrade, kind);
        }
        self.answered = true;
        self.response_done = end;
        Poll::Ready(Ok(Answer::Final { end }))
    }

    /// The next piece of the response.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ResetReason>> {
        if !self.answered {
            return Poll::Pending;
        }
        let frame = ready!(self.session.borrow_mut().poll_frame(self.slot, cx)).map_err(reset_reason)?;
        self.response_done |= frame.is_last();
        Poll::Ready(Ok(frame))
    }

    /// Resets the stream unless it is over.
    pub(crate) fn reset(&mut self) {
        if !self.request_done || !self.response_done {
            // A response that is complete before its request ends without an error.
            let reason = if self.response_done { Reason::NO_ERROR } else { Reason::CANCEL };
            self.session.borrow_mut().reset(self.slot, reason, Over::Local);
        }
    }

    /// Bytes of the stream's frames: (received, sent).
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        self.session.borrow_mut().wire_bytes(self.slot)
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.session.borrow_mut().release(self.slot);
    }
}

fn reset_reason(over: Over) -> ResetReason {
    match over {
        // Neither was looked at.
        Over::Remote(Reason::REFUSED_STREAM) | Over::Unprocessed => ResetReason::RemoteRefused,
        Over::Remote(_) => ResetReason::RemoteReset,
        Over::Violation => ResetReason::ProtocolError,
        Over::Local => ResetReason::LocalReset,
        Over::Lost => ResetReason::ConnectionTermination,
    }
}
