//! A session joined to its socket.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use super::session::Session;
use crate::http::codec::buffer::Transport;

/// What reading once brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Frames, or parts of some.
    Frames,
    /// The end of the connection.
    End,
}

/// One connection: session and socket.
#[derive(Debug)]
pub(crate) struct Link {
    /// The socket and its buffers.
    pub(crate) transport: Transport,
    /// The session, which streams share.
    pub(crate) session: Rc<RefCell<Session>>,
}

impl Link {
    /// Joins them; bytes that were read already are taken in.
    pub(crate) fn new(transport: Transport, session: Session, now: Instant) -> Self {
        let mut link = Self { transport, session: Rc::new(RefCell::new(session)) };
        if !link.transport.input.is_empty() {
            link.session.borrow_mut().receive(&mut link.transport.input, now);
        }
        link
    }

    /// Reads once and takes in what came.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, now: impl FnOnce() -> Instant) -> Poll<Read> {
        if self.transport.input.is_empty() {
            self.transport.release_input();
        }
        match ready!(self.transport.poll_fill(cx)) {
            Ok(0) | Err(_) => Poll::Ready(Read::End),
            Ok(_) => {
                self.session.borrow_mut().receive(&mut self.transport.input, now());
                Poll::Ready(Read::Frames)
            }
        }
    }

    /// Writes all that the session has to write.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.transport.poll_flush(cx))?;
            let mut text = self.transport.output.text();
            let more = self.session.borrow_mut().take_output(text.bytes());
            drop(text);
            if !more {
                break;
            }
        }
        let mut session = self.session.borrow_mut();
        session.end_driving();
        if session.streams() == 0 {
            self.transport.release();
        }
        Poll::Ready(Ok(()))
    }
}
