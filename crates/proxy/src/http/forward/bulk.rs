//! Bodies that nobody looks at pass by: no filter sees them, no retry keeps them, and they are
//! HTTP/1 without framing among their bytes on both sides.
//!
//! Large ones without TLS go from socket to socket, through a pipe in the kernel
//! ([`crate::splice`]), while enough of them is left. What is read already goes from buffer to
//! buffer, if it is little. All else is copied as usual: [`Step::Copy`] says so, at any time.

use std::io;
use std::task::{Context, Poll, ready};

use super::{Downstream, Upstream};
use crate::http::codec::buffer::Transport;
use crate::http::codec::h1::body::BodyReader;
use crate::http::codec::{DownstreamError, ResetReason};
use crate::splice::{CHUNK, Pipe, WORTH};

/// One direction of an exchange.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// With what is under way.
    pipe: Option<Pipe>,
    /// A part has passed: so does the rest, however short.
    begun: bool,
}

/// What became of trying.
#[derive(Debug)]
pub(super) enum Step<E> {
    /// The next piece has to be copied.
    Copy,
    /// So many bytes were taken from the one side, and are on their way to the other.
    Passed {
        /// How many.
        count: usize,
        /// The message is complete, and all of it has gone.
        end: bool,
    },
    /// One side failed.
    Failed(E),
}

/// Which side failed.
enum Side {
    From,
    To,
}

impl Bulk {
    /// The response: pending as long as nothing can be moved.
    pub(super) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Upstream,
        down: &mut Downstream<'_>,
    ) -> Poll<Step<Result<ResetReason, DownstreamError>>> {
        let (Upstream::H1(lease), Downstream::H1(server)) = (up, down) else {
            return Poll::Ready(Step::Copy);
        };
        let (Some((from, reader)), Some(to)) = (lease.client().bulk_source(), server.bulk_sink()) else {
            return Poll::Ready(Step::Copy);
        };
        let until_close = *reader == BodyReader::UntilClose;
        Poll::Ready(match ready!(self.poll(cx, from, reader, to)) {
            Step::Copy => Step::Copy,
            Step::Passed { count, end } => Step::Passed { count, end },
            // As when it is copied, see `H1Client::poll_frame`.
            Step::Failed(Side::From) if until_close => Step::Failed(Ok(ResetReason::ConnectionTermination)),
            Step::Failed(Side::From) => Step::Failed(Ok(ResetReason::ProtocolError)),
            Step::Failed(Side::To) => Step::Failed(Err(DownstreamError::Disconnected)),
        })
    }

    /// The request. That the endpoint takes no more is for its answer to tell, if there is one.
    pub(super) fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream<'_>,
        up: &mut Upstream,
    ) -> Poll<Step<DownstreamError>> {
        let (Upstream::H1(lease), Downstream::H1(server)) = (up, down) else {
            return Poll::Ready(Step::Copy);
        };
        let (Some((from, reader)), Some(to)) = (server.bulk_source(), lease.client().bulk_sink()) else {
            return Poll::Ready(Step::Copy);
        };
        Poll::Ready(match ready!(self.poll(cx, from, reader, to)) {
            Step::Copy => Step::Copy,
            Step::Passed { count, end } => Step::Passed { count, end },
            Step::Failed(Side::From) => Step::Failed(DownstreamError::Disconnected),
            Step::Failed(Side::To) => {
                self.pipe = None;
                lease.client().note_broken();
                Step::Copy
            }
        })
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Transport,
        reader: &mut BodyReader,
        to: &mut Transport,
    ) -> Poll<Step<Side>> {
        if self.pipe.is_some() {
            match ready!(self.drain(cx, to)) {
                Ok(()) if reader.is_done() => {
                    self.pipe = None;
                    return Poll::Ready(Step::Passed { count: 0, end: true });
                }
                Ok(()) => {}
                Err(_) => return Poll::Ready(Step::Failed(Side::To)),
            }
        }
        let left = reader.unframed();
        // Of a stream without known length nobody knows whether much comes: it does if it did.
        let worth = if left == u64::MAX { from.is_bulky() } else { left >= WORTH || self.begun && left > 0 };
        let limit = to.high_water();
        if !worth || (limit as u64) < WORTH || !from.splices_to(to) {
            self.pipe = None;
            return Poll::Ready(copy(from, reader, to));
        }
        // What came before the bulk of it goes out with the head.
        if ready!(to.poll_flush(cx)).is_err() {
            return Poll::Ready(Step::Failed(Side::To));
        }
        let Some(pipe) = self.pipe.take().or_else(Pipe::take) else { return Poll::Ready(Step::Copy) };
        let pipe = self.pipe.insert(pipe);
        let limit = CHUNK.min(limit).min(usize::try_from(left).unwrap_or(usize::MAX));
        match from.poll_splice_in(cx, pipe, limit) {
            Poll::Pending => {
                // Nothing is under way: somebody else may use it.
                self.pipe = None;
                Poll::Pending
            }
            Poll::Ready(Ok(count @ 1..)) => {
                reader.pass(count as u64);
                self.begun = true;
                // How that goes is seen the next time.
                let gone = matches!(self.drain(cx, to), Poll::Ready(Ok(())));
                Poll::Ready(Step::Passed { count, end: gone && reader.is_done() })
            }
            // The codec knows what the end of the stream means here.
            Poll::Ready(Ok(0)) => Poll::Ready(Step::Copy),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Unsupported => Poll::Ready(Step::Copy),
            Poll::Ready(Err(_)) => Poll::Ready(Step::Failed(Side::From)),
        }
    }

    /// Empties the pipe.
    fn drain(&mut self, cx: &mut Context<'_>, to: &mut Transport) -> Poll<io::Result<()>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        match to.poll_splice_out(cx, pipe) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            other => return other,
        }
        // The kernel takes bytes from a socket and gives them to none: that is copied then.
        if let Some(pipe) = self.pipe.take() {
            to.output.push(pipe.into_bytes()?);
        }
        to.poll_flush(cx)
    }
}

/// What is here of the body goes from buffer to buffer, if that is little: a piece of its own would
/// be copied all the same.
fn copy<E>(from: &mut Transport, reader: &mut BodyReader, to: &mut Transport) -> Step<E> {
    let left = usize::try_from(reader.unframed()).unwrap_or(usize::MAX);
    match from.copy_to(to, left) {
        0 => Step::Copy,
        count => {
            reader.pass(count as u64);
            Step::Passed { count, end: reader.is_done() }
        }
    }
}
