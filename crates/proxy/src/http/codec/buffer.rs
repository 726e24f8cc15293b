//! The socket and buffers of one HTTP/1 connection.
//!
//! A connection holds buffers only while it has bytes in them: an idle one waits for readiness
//! and takes a buffer from the worker's free list when there is something to read. Reading is
//! one `recv` per wake-up, never until `EAGAIN`; writing is one `send` for all that is there.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::io::Socket;
use crate::splice::{self, Pipe};
use crate::turn::{self, Outbox};

/// Size of ordinary buffers.
const SMALL: usize = 16 * 1024;
/// Size of read buffers of connections whose reads fill the ordinary ones.
const LARGE: usize = 256 * 1024;
/// Buffers that a worker keeps for reuse, of each kind.
const KEPT: usize = 64;
/// Pieces up to this size are copied behind what waits to be written already.
const COPY_LIMIT: usize = 16 * 1024;
/// When so much waits to be written, the other side is not read, unless less is configured.
const HIGH_WATER: usize = 256 * 1024;

thread_local! {
    static READ_BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static WRITE_BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_read_buffer() -> BytesMut {
    READ_BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(SMALL))
}

fn give_read_buffer(mut buffer: BytesMut) {
    buffer.clear();
    READ_BUFFERS.with_borrow_mut(|kept| {
        // A buffer of which body pieces are still in flight is not ours alone; it goes with them.
        if kept.len() < KEPT && buffer.try_reclaim(SMALL) && buffer.capacity() < 2 * SMALL {
            kept.push(buffer);
        }
    });
}

/// An empty buffer to write to, from the worker's free list.
pub(crate) fn take_write_buffer() -> Vec<u8> {
    WRITE_BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(4096))
}

/// Gives such a buffer back.
pub(crate) fn give_write_buffer(mut buffer: Vec<u8>) {
    buffer.clear();
    WRITE_BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT && buffer.capacity() > 0 && buffer.capacity() <= 2 * SMALL {
            kept.push(buffer);
        }
    });
}

/// Bytes that wait to be written: a flat part, then shared pieces.
#[derive(Debug, Default)]
pub(crate) struct Output {
    flat: Vec<u8>,
    sent: usize,
    pieces: VecDeque<Bytes>,
    pieces_len: usize,
}

impl Output {
    /// Where small writes go; only while no piece waits.
    pub(crate) fn text(&mut self) -> Text<'_> {
        if self.flat.capacity() == 0 {
            self.flat = take_write_buffer();
        }
        if self.pieces.is_empty() { Text::Flat(&mut self.flat) } else { Text::Piece(self, Vec::new()) }
    }

    /// Appends body bytes.
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if self.pieces.is_empty() && data.len() <= COPY_LIMIT {
            self.copy(&data);
        } else {
            self.pieces_len += data.len();
            self.pieces.push_back(data);
        }
    }

    /// Appends body bytes behind what is flat: there are no pieces.
    fn copy(&mut self, data: &[u8]) {
        if self.flat.capacity() == 0 {
            self.flat = take_write_buffer();
        }
        self.flat.extend_from_slice(data);
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.flat.len() - self.sent + self.pieces_len
    }

    /// Whether it is little, and in one piece of which nothing was sent.
    fn is_small(&self) -> bool {
        self.sent == 0 && self.pieces.is_empty() && self.flat.len() <= SMALL
    }

    /// Puts a message back, of which so many bytes were sent, in front of all that waits.
    fn put_back(&mut self, mut message: Vec<u8>, sent: usize) {
        message.extend_from_slice(self.flat.get(self.sent..).unwrap_or_default());
        give_write_buffer(std::mem::replace(&mut self.flat, message));
        self.sent = sent;
    }

    fn advance(&mut self, mut count: usize) {
        let flat = count.min(self.flat.len() - self.sent);
        self.sent += flat;
        count -= flat;
        if self.sent == self.flat.len() {
            self.flat.clear();
            self.sent = 0;
        }
        while count > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let taken = count.min(piece.len());
            piece.advance(taken);
            self.pieces_len -= taken;
            count -= taken;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

/// Where the codec writes heads and framing.
pub(crate) enum Text<'a> {
    /// Directly behind what waits.
    Flat(&'a mut Vec<u8>),
    /// As a piece of its own, behind other pieces.
    Piece(&'a mut Output, Vec<u8>),
}

impl Text<'_> {
    /// The bytes to append to.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        match self {
            Text::Flat(flat) => flat,
            Text::Piece(_, bytes) => bytes,
        }
    }
}

impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Text::Piece(output, bytes) = self {
            let bytes = Bytes::from(std::mem::take(bytes));
            output.pieces_len += bytes.len();
            output.pieces.push_back(bytes);
        }
    }
}

/// One connection's socket with what was read ahead and what waits to be written.
#[derive(Debug)]
pub(crate) struct Transport {
    /// A message that waits for the end of the turn; goes before the socket does.
    outbox: Outbox,
    socket: Socket,
    /// Bytes read and not consumed.
    pub(crate) input: BytesMut,
    /// Bytes to write.
    pub(crate) output: Output,
    /// The task that the reactor wakes when something comes, if nothing came since it said so.
    awaited_by: Option<NonNull<()>>,
    /// What waits is what came back from the outbox: the socket is to be waited for.
    is_stuck: bool,
    /// The last read filled its buffer: the next one gets a large one.
    bulky: bool,
    /// The peer has ended its direction, or reset the connection.
    pub(crate) eof: bool,
    /// Bytes received since the connection began.
    pub(crate) received: u64,
    /// Bytes sent since the connection began.
    pub(crate) sent: u64,
    /// When so much waits to be written, the other side is not read.
    high_water: usize,
}

impl Transport {
    /// A connection of which `input` was read already.
    pub(crate) fn new(socket: Socket, input: BytesMut) -> Self {
        let received = input.len() as u64;
        let output = Output::default();
        Self {
            outbox: Outbox::default(),
            socket,
            input,
            output,
            awaited_by: None,
            is_stuck: false,
            bulky: false,
            eof: false,
            received,
            sent: 0,
            high_water: HIGH_WATER,
        }
    }

    /// Obeys `per_connection_buffer_limit_bytes` where it is below our own limit.
    pub(crate) fn limit_buffers(&mut self, limit: usize) {
        self.high_water = limit.clamp(1, HIGH_WATER);
    }

    /// Reads once: the number of bytes, 0 at the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        // Holds no buffer while there is nothing to read.
        let empty = self.input.capacity() == 0;
        if empty {
            ready!(self.poll_arrived(cx))?;
            self.input = take_read_buffer();
        }
        let room = if self.bulky { LARGE } else { SMALL };
        if self.input.capacity() - self.input.len() < room / 2 {
            self.input.reserve(room);
        }
        let before = self.input.len();
        self.awaited_by = None;
        self.call_back();
        let count = match self.socket.poll_read_buf(cx, &mut self.input, empty) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(error)) => {
                self.eof = true;
                if !self.outbox.is_waiting() {
                    self.take_back();
                }
                return Poll::Ready(Err(error));
            }
            Poll::Pending => {
                // TLS may have had something that was not for us.
                self.release_input();
                return Poll::Pending;
            }
        };
        self.bulky = self.input.capacity() == self.input.len() || (self.bulky && count >= SMALL);
        self.eof = count == 0;
        if self.eof && !self.outbox.is_waiting() {
            self.take_back();
        }
        self.received += count as u64;
        debug_assert_eq!(before + count, self.input.len());
        Poll::Ready(Ok(count))
    }

    /// Ready when there seems to be something to read. What the reactor was told is not told again,
    /// and a task that it has woken need not ask whether it may go on.
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let task = NonNull::new(cx.waker().data().cast_mut());
        if task.is_some() && self.awaited_by == task {
            if !self.socket.seems_readable() {
                return Poll::Pending;
            }
            self.awaited_by = None;
            return Poll::Ready(Ok(()));
        }
        // A task that has used up its turn is put off, and nothing is registered then.
        let registers = tokio::task::coop::has_budget_remaining();
        let polled = self.socket.poll_read_ready(cx);
        self.awaited_by = if registers && polled.is_pending() { task } else { None };
        polled
    }

    /// Whether the idle connection has become readable: data that nobody asked for, or its end.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.eof || !self.input.is_empty() {
            return Poll::Ready(());
        }
        self.awaited_by = None;
        self.call_back();
        loop {
            ready!(self.socket.poll_read_ready(cx).map(|_| ()));
            // Readiness may be left over from a read that was exactly as long as its buffer.
            match self.socket.try_read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => {
                    self.eof = true;
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Whether nothing has come on the idle connection, as far as the reactor knows: that costs no
    /// system call as a rule, and nobody is registered to be woken.
    pub(crate) fn is_quiet(&mut self) -> bool {
        if self.eof || !self.input.is_empty() {
            return false;
        }
        self.awaited_by = None;
        self.call_back();
        let read = self.socket.try_read(&mut [0; 1]);
        self.eof = !read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        !self.eof
    }

    /// Writes all that waits, a complete message: the end of the worker's turn is soon enough. Ready
    /// also if it has still to be sent then; what the socket does not take waits here again, and the
    /// task is woken.
    pub(crate) fn poll_flush_soon(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.len() == 0 {
            if self.outbox.is_waiting() {
                return Poll::Ready(Ok(()));
            }
        } else if turn::is_kept()
            && !self.is_stuck
            && !self.outbox.is_occupied()
            && self.output.is_small()
            && self.leave(cx)?
        {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    /// Leaves what waits to be sent at the end of the turn; false: it has to be sent now.
    fn leave(&mut self, cx: &Context<'_>) -> io::Result<bool> {
        let length = self.output.flat.len() as u64;
        if let Some(socket) = self.socket.plain() {
            self.sent += length;
            self.outbox.leave(cx, socket, std::mem::take(&mut self.output.flat));
            return Ok(true);
        }
        let Some((socket, sealed)) = self.socket.seal_soon(&self.output.flat)? else { return Ok(false) };
        self.sent += length;
        self.output.flat.clear();
        self.outbox.leave(cx, socket, sealed);
        Ok(true)
    }

    /// Whether bytes are here that the socket does not take.
    pub(crate) fn is_stuck(&self) -> bool {
        self.output.len() > 0 || self.socket.is_stuck()
    }

    /// Takes back what was left to be sent and was not.
    fn take_back(&mut self) {
        let Some((message, sent)) = self.outbox.take_back() else { return };
        self.is_stuck = true;
        if let Socket::Tls(stream) = &mut self.socket {
            // It is sealed; its bytes count as sent, as those do that a session holds.
            stream.put_back(message, sent);
        } else {
            self.sent -= (message.len() - sent) as u64;
            self.output.put_back(message, sent);
        }
    }

    /// A session with TLS may send something when it reads: what was sealed before goes first.
    fn call_back(&mut self) {
        if self.outbox.is_occupied() && matches!(self.socket, Socket::Tls(_)) {
            self.take_back();
        }
    }

    /// Whether a message was left to be sent and was not, so far.
    pub(crate) fn is_sending(&self) -> bool {
        self.outbox.is_occupied() || self.socket.is_stuck()
    }

    /// Writes all that waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outbox.is_occupied() {
            self.take_back();
        }
        while self.output.len() > 0 {
            let output = &self.output;
            let flat = output.flat.get(output.sent..).unwrap_or_default();
            let socket = Pin::new(&mut self.socket);
            let count = if output.pieces.is_empty() {
                ready!(socket.poll_write(cx, flat))?
            } else {
                let mut slices = [io::IoSlice::new(&[]); 16];
                let all = std::iter::once(flat).chain(output.pieces.iter().map(|piece| &piece[..]));
                let mut used = 0;
                for (slice, bytes) in slices.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
                    *slice = io::IoSlice::new(bytes);
                    used += 1;
                }
                ready!(socket.poll_write_vectored(cx, slices.get(..used).unwrap_or_default()))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count as u64;
            self.output.advance(count);
        }
        self.is_stuck = false;
        // TLS may hold sealed bytes that the socket did not take.
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Ready when more may be written: flushes above the high-water mark.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.len() < self.high_water { Poll::Ready(Ok(())) } else { self.poll_flush(cx) }
    }

    /// Ends our direction, after a flush.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    /// Whether bytes can pass from here to `to` unseen: nothing that was read waits here.
    pub(crate) fn splices_to(&self, to: &Transport) -> bool {
        self.input.is_empty() && !self.eof && splice::possible(&self.socket, &to.socket)
    }

    /// Copies bytes that were read to what `to` has to write, up to so many: as many as that is the
    /// cheaper way for. Says how many those are.
    pub(crate) fn copy_to(&mut self, to: &mut Transport, limit: usize) -> usize {
        let count = self.input.len().min(limit);
        if count > COPY_LIMIT || !to.output.pieces.is_empty() {
            return 0;
        }
        to.output.copy(self.input.get(..count).unwrap_or_default());
        self.input.advance(count);
        count
    }

    /// Whether reading brings much at once.
    pub(crate) fn is_bulky(&self) -> bool {
        self.bulky
    }

    /// Takes up to `limit` bytes into a pipe; 0: the end of the stream.
    pub(crate) fn poll_splice_in(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        self.awaited_by = None;
        let outcome = ready!(pipe.poll_fill(cx, &self.socket, limit));
        match &outcome {
            Ok(count) => {
                self.eof = *count == 0;
                self.received += *count as u64;
                self.bulky = *count >= SMALL;
            }
            Err(error) => self.eof = error.kind() != io::ErrorKind::Unsupported,
        }
        Poll::Ready(outcome)
    }

    /// Writes what waits, then what is in the pipe.
    pub(crate) fn poll_splice_out(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        pipe.poll_drain(cx, &self.socket, &mut self.sent)
    }

    /// How much may wait to be written.
    pub(crate) fn high_water(&self) -> usize {
        self.high_water
    }

    /// Gives an empty read buffer back to the worker.
    pub(crate) fn release_input(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 0 {
            give_read_buffer(std::mem::take(&mut self.input));
        }
    }

    /// Gives empty buffers back to the worker.
    pub(crate) fn release(&mut self) {
        self.release_input();
        if self.output.len() == 0 && self.output.flat.capacity() > 0 {
            give_write_buffer(std::mem::take(&mut self.output.flat));
            if self.output.pieces.capacity() > 0 {
                self.output.pieces = VecDeque::new();
            }
        }
    }

    /// The socket and what was read ahead, e.g. for another codec.
    pub(crate) fn into_parts(mut self) -> (Socket, BytesMut) {
        (self.socket, std::mem::take(&mut self.input))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::ErrorKind;
    use std::task::{Context, Poll, Waker};

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::Transport;
    use crate::io::Socket;
    use crate::turn;

    fn transport(socket: UnixStream) -> Transport {
        Transport::new(Socket::Unix(socket), BytesMut::new())
    }

    fn write(transport: &mut Transport, text: &str) {
        transport.output.text().bytes().extend_from_slice(text.as_bytes());
    }

    #[tokio::test]
    async fn a_complete_message_waits_for_the_end_of_the_turn() {
        let _kept = turn::Kept::new();
        let (near, mut peer) = UnixStream::pair().unwrap();
        let mut transport = transport(near);
        write(&mut transport, "hello");
        poll_fn(|cx| transport.poll_flush_soon(cx)).await.unwrap();
        assert_eq!((transport.sent, transport.is_sending()), (5, true));
        let mut got = [0; 11];
        assert_eq!(peer.try_read(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
        turn::end();
        assert!(!transport.is_sending());
        assert_eq!(peer.read(&mut got).await.unwrap(), 5);
        // What may not wait goes behind what does.
        write(&mut transport, "hello");
        poll_fn(|cx| transport.poll_flush_soon(cx)).await.unwrap();
        write(&mut transport, " world");
        poll_fn(|cx| transport.poll_flush(cx)).await.unwrap();
        turn::end();
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!((&got, transport.sent), (b"hello world", 16));
    }

    #[tokio::test]
    async fn a_message_that_the_peer_does_not_take_comes_back() {
        let _kept = turn::Kept::new();
        let (near, mut peer) = UnixStream::pair().unwrap();
        let mut filled = 0;
        while let Ok(count) = near.try_write(&[b'x'; 4096]) {
            filled += count;
        }
        let mut transport = transport(near);
        write(&mut transport, "hello");
        poll_fn(|cx| transport.poll_flush_soon(cx)).await.unwrap();
        turn::end();
        assert!(transport.is_sending());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(transport.poll_flush_soon(&mut cx).is_pending());
        assert_eq!((transport.sent, transport.output.len()), (0, 5));
        let mut got = vec![0; filled + 5];
        let (flushed, read) =
            tokio::join!(poll_fn(|cx| transport.poll_flush_soon(cx)), peer.read_exact(&mut got));
        flushed.unwrap();
        read.unwrap();
        assert_eq!((got.get(filled..), transport.sent), (Some(&b"hello"[..]), 5));
    }

    #[tokio::test]
    async fn who_waits_already_learns_what_comes() {
        let (near, mut peer) = UnixStream::pair().unwrap();
        let mut transport = transport(near);
        for text in ["one", "two"] {
            let mut asked = 0;
            poll_fn(|cx| {
                asked += 1;
                match transport.poll_fill(cx) {
                    Poll::Ready(read) => return Poll::Ready(read),
                    // The task has registered and asks again, as one that watches its client does.
                    Poll::Pending => assert!(transport.poll_fill(cx).is_pending()),
                }
                if asked == 1 {
                    assert_eq!(peer.try_write(text.as_bytes()).unwrap(), 3);
                }
                Poll::Pending
            })
            .await
            .unwrap();
            assert_eq!((&transport.input[..], asked), (text.as_bytes(), 2));
            transport.input.clear();
            transport.release();
        }
        // Another task is told, too.
        let mut cx = Context::from_waker(Waker::noop());
        assert!(transport.poll_fill(&mut cx).is_pending());
        let (read, ()) = tokio::join!(poll_fn(|cx| transport.poll_fill(cx)), async {
            peer.write_all(b"three").await.unwrap();
        });
        assert_eq!(read.unwrap(), 5);
    }
}
