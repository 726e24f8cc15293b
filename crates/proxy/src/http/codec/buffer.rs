//! The socket and buffers of one HTTP/1 connection.
//!
//! A connection holds buffers only while it has bytes in them: an idle one waits for readiness
//! and takes a buffer from the worker's free list when there is something to read. Reading is
//! one `recv` per wake-up, never until `EAGAIN`; writing is one `send` for all that is there.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::io::Socket;
use crate::splice::{self, Pipe};

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
            if self.flat.capacity() == 0 {
                self.flat = take_write_buffer();
            }
            self.flat.extend_from_slice(&data);
        } else {
            self.pieces_len += data.len();
            self.pieces.push_back(data);
        }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.flat.len() - self.sent + self.pieces_len
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
    socket: Socket,
    /// Bytes read and not consumed.
    pub(crate) input: BytesMut,
    /// Bytes to write.
    pub(crate) output: Output,
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
        Self { socket, input, output, bulky: false, eof: false, received, sent: 0, high_water: HIGH_WATER }
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
            ready!(self.socket.poll_read_ready(cx))?;
            self.input = take_read_buffer();
        }
        let room = if self.bulky { LARGE } else { SMALL };
        if self.input.capacity() - self.input.len() < room / 2 {
            self.input.reserve(room);
        }
        let before = self.input.len();
        let count = match self.socket.poll_read_buf(cx, &mut self.input, empty) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(error)) => {
                self.eof = true;
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
        self.received += count as u64;
        debug_assert_eq!(before + count, self.input.len());
        Poll::Ready(Ok(count))
    }

    /// Whether the idle connection has become readable: data that nobody asked for, or its end.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.eof || !self.input.is_empty() {
            return Poll::Ready(());
        }
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
        let read = self.socket.try_read(&mut [0; 1]);
        self.eof = !read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        !self.eof
    }

    /// Writes all that waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
