//! A TLS session over a socket: drives rustls' unbuffered state machine.
//!
//! An idle session owns no buffers: ciphertext is read into scratch space of the worker, records
//! are opened there and their content goes right to whoever reads; only a record of which a part
//! is missing is kept. What is written is sealed into scratch space and sent at once, or, if it is
//! a complete message, at the end of the worker's turn (`turn`); only what the socket does not take
//! is kept.
//!
//! The end of the stream is the peer's close_notify or, as in Envoy, the socket's end without
//! one: protocols that need to know better have lengths of their own.

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use leno_tls::Findings;
use rustls::CommonState;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::io::{AsyncWrite, ReadBuf};

use crate::http::codec::buffer::take_write_buffer;
use crate::io::Socket;
use crate::tls::stats::SslStats;

/// Bytes that are read at once, at most.
const READ: usize = 64 * 1024;
/// Bytes of one record with its header, at most (RFC 8446 section 5.2, RFC 5246 section 6.2.3).
const RECORD: usize = 5 + 16 * 1024 + 2048;
/// Plain bytes that are sealed at once: four records.
const SEAL: usize = 64 * 1024;
/// Record headers and tags of that many bytes, generously.
const OVERHEAD: usize = 512;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { input: Vec::new(), output: Vec::new(), gathered: Vec::new() }) };
}

/// Space that is used within one call only.
struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
    gathered: Vec<u8>,
}

/// Either side of a session.
pub(crate) enum Session {
    /// We accepted.
    Server(UnbufferedServerConnection),
    /// We connected.
    Client(UnbufferedClientConnection),
}

/// A socket with a TLS session on it.
pub(crate) struct TlsStream {
    socket: Socket,
    session: Session,
    /// Ciphertext that is not opened yet: a part of a record as a rule.
    incoming: Vec<u8>,
    /// Opened bytes that nobody has read yet, from `read` on.
    plain: Vec<u8>,
    read: usize,
    /// Sealed bytes that the socket has not taken yet, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// Whoever writes has sealed bytes that may not be sent yet, before any that follow.
    lent: bool,
    /// The peer has ended its direction.
    ended: bool,
    /// We have ended ours.
    closing: bool,
    /// The peer has broken the protocol: nothing can be read or written any more.
    failed: bool,
    /// What the server's certificate must be for, in the handshake.
    expected: Option<Arc<str>>,
    /// Once there is a session: where its faults are counted.
    counts: Option<SslStats>,
}

/// How far the session is after what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The handshake waits for the peer.
    Handshake,
    /// Data may be sent; all records were opened, or there is no room for more.
    Traffic,
    /// Both sides have closed.
    Closed,
}

/// Where opened bytes go: to the reader as far as there is room, else aside.
struct Sink<'a, 'b> {
    reader: Option<&'a mut ReadBuf<'b>>,
    aside: &'a mut Vec<u8>,
    /// The peer has said goodbye.
    closed: bool,
}

impl Sink<'_, '_> {
    fn put(&mut self, mut bytes: &[u8]) {
        if let Some(reader) = &mut self.reader
            && self.aside.is_empty()
        {
            let (now, later) = bytes.split_at(bytes.len().min(reader.remaining()));
            reader.put_slice(now);
            bytes = later;
        }
        self.aside.extend_from_slice(bytes);
    }

    /// Whether opening further records makes sense.
    fn has_room(&self) -> bool {
        self.aside.is_empty() && self.reader.as_ref().is_none_or(|reader| reader.remaining() > 0)
    }
}

/// One side's records; the two sides differ in type only.
trait Records {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// Whether something waits to be encoded.
    fn has_output(&self) -> bool;
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_output(&self) -> bool {
        self.wants_write()
    }
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_output(&self) -> bool {
        self.wants_write()
    }
}

/// Something to be sealed once everything that was received is seen to.
#[derive(Clone, Copy)]
enum Seal<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

/// Brings a session forward: opens records of `incoming` from `*start` on (moving it) and
/// appends what is to be sent to `out`.
fn advance<R: Records>(
    records: &mut R,
    incoming: &mut [u8],
    start: &mut usize,
    out: &mut Vec<u8>,
    sink: &mut Sink<'_, '_>,
    seal: Seal<'_>,
) -> Result<Progress, rustls::Error> {
    loop {
        let Some(rest) = incoming.get_mut(*start..) else { return Ok(Progress::Traffic) };
        let UnbufferedStatus { mut discard, state } = records.process(rest);
        let progress = match state {
            Err(error) => {
                *start += discard;
                return Err(error);
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(out, |space| match data.encode(space) {
                    Ok(count) => Ok(count),
                    Err(EncodeError::InsufficientSize(needs)) => Err(Some(needs.required_size)),
                    Err(EncodeError::AlreadyEncoded) => Err(None),
                })?;
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                // It is in `out`, which goes out before anything else.
                data.done();
                None
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    sink.put(record.payload);
                }
                if sink.has_room() || !matches!(seal, Seal::Nothing) { None } else { Some(Progress::Traffic) }
            }
            // We never offer it.
            Ok(ConnectionState::ReadEarlyData(_)) => {
                return Err(rustls::Error::General("early data".to_owned()));
            }
            Ok(ConnectionState::PeerClosed) => {
                // It is told once. Our direction is still open.
                sink.closed = true;
                None
            }
            Ok(ConnectionState::Closed) => {
                sink.closed = true;
                Some(Progress::Closed)
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Progress::Handshake),
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let outcome = |result: Result<usize, EncryptError>| match result {
                    Ok(count) => Ok(count),
                    Err(EncryptError::InsufficientSize(needs)) => Err(Some(needs.required_size)),
                    Err(EncryptError::EncryptExhausted) => Err(None),
                };
                match seal {
                    Seal::Nothing => {}
                    Seal::Data(data) => encode(out, |space| outcome(traffic.encrypt(data, space)))?,
                    Seal::CloseNotify => encode(out, |space| outcome(traffic.queue_close_notify(space)))?,
                }
                Some(Progress::Traffic)
            }
            Ok(_) => return Err(rustls::Error::General("unknown state".to_owned())),
        };
        *start += discard;
        if let Some(progress) = progress {
            return Ok(progress);
        }
    }
}

/// Appends the alert that goes with a failure. A session that failed must not be given records
/// any more, and is not: what waits to be encoded comes before them.
fn last_words<R: Records>(records: &mut R, incoming: &mut [u8], out: &mut Vec<u8>) {
    while records.has_output() {
        match records.process(incoming).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let encoded = encode(out, |space| match data.encode(space) {
                    Ok(count) => Ok(count),
                    Err(EncodeError::InsufficientSize(needs)) => Err(Some(needs.required_size)),
                    Err(EncodeError::AlreadyEncoded) => Err(None),
                });
                if encoded.is_err() {
                    return;
                }
            }
            // Data that came before the failure was given already, or is of no use any more.
            Ok(ConnectionState::ReadTraffic(mut traffic)) => while traffic.next_record().is_some() {},
            _ => return,
        }
    }
}

/// Appends what `write` writes into the space that it is given; it says how much it needs.
fn encode(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), rustls::Error> {
    let before = out.len();
    let mut space = 0;
    loop {
        out.resize(before + space, 0);
        match write(&mut out[before..]) {
            Ok(count) => {
                out.truncate(before + count);
                return Ok(());
            }
            Err(Some(needs)) if needs > space => space = needs,
            Err(_) => {
                out.truncate(before);
                return Err(rustls::Error::General("cannot encode".to_owned()));
            }
        }
    }
}

impl Session {
    fn advance(
        &mut self,
        incoming: &mut [u8],
        start: &mut usize,
        out: &mut Vec<u8>,
        sink: &mut Sink<'_, '_>,
        seal: Seal<'_>,
    ) -> Result<Progress, rustls::Error> {
        match self {
            Session::Server(records) => advance(records, incoming, start, out, sink, seal),
            Session::Client(records) => advance(records, incoming, start, out, sink, seal),
        }
    }

    fn last_words(&mut self, incoming: &mut [u8], out: &mut Vec<u8>) {
        match self {
            Session::Server(records) => last_words(records, incoming, out),
            Session::Client(records) => last_words(records, incoming, out),
        }
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// How a handshake ended without a session.
#[derive(Debug)]
pub(crate) enum HandshakeFailure {
    /// TLS refused: what, and the first bytes that the peer sent.
    Tls(rustls::Error, [u8; 5]),
    /// The socket failed, or its peer has closed it.
    Socket(io::Error),
}

impl TlsStream {
    /// Begins a session; `early` are bytes of the peer that were read already.
    pub(crate) fn new(socket: Socket, session: Session, early: Vec<u8>) -> Self {
        Self {
            socket,
            session,
            incoming: early,
            plain: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            sent: 0,
            lent: false,
            ended: false,
            closing: false,
            failed: false,
            expected: None,
            counts: None,
        }
    }

    /// The server's certificate must be for this host too.
    pub(crate) fn expect(&mut self, name: Option<Arc<str>>) {
        self.expected = name;
    }

    /// Faults of the session, which is made now, are counted here (`ssl.connection_error`).
    pub(crate) fn count_faults(&mut self, counts: SslStats) {
        self.counts = Some(counts);
    }

    /// What was negotiated.
    pub(crate) fn state(&self) -> &CommonState {
        match &self.session {
            Session::Server(session) => session,
            Session::Client(session) => session,
        }
    }

    /// The socket below.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Shakes hands.
    ///
    /// What verification finds out is gathered in `findings` right where it happens: other
    /// handshakes of this thread run while this one waits.
    pub(crate) async fn handshake(&mut self, findings: &mut Findings) -> Result<(), HandshakeFailure> {
        let mut first = [0; 5];
        loop {
            for (to, from) in first.iter_mut().zip(&self.incoming) {
                if *to == 0 {
                    *to = *from;
                }
            }
            let mut start = 0;
            let mut sink = Sink { reader: None, aside: &mut self.plain, closed: false };
            let mut incoming = std::mem::take(&mut self.incoming);
            leno_tls::expect_name(self.expected.clone());
            let outcome =
                self.session.advance(&mut incoming, &mut start, &mut self.outgoing, &mut sink, Seal::Nothing);
            leno_tls::expect_name(None);
            findings.add(leno_tls::take_findings());
            self.ended |= sink.closed;
            incoming.drain(..start.min(incoming.len()));
            self.incoming = incoming;
            match outcome {
                Ok(progress) => {
                    std::future::poll_fn(|cx| self.poll_send(cx)).await.map_err(HandshakeFailure::Socket)?;
                    match progress {
                        Progress::Handshake => {}
                        Progress::Traffic | Progress::Closed => {
                            self.expected = None;
                            self.shrink();
                            return Ok(());
                        }
                    }
                }
                Err(error) => {
                    // The alert that goes with it. How that goes does not matter any more.
                    self.fail();
                    let _ = std::future::poll_fn(|cx| self.poll_send(cx)).await;
                    let _ = std::future::poll_fn(|cx| Pin::new(&mut self.socket).poll_shutdown(cx)).await;
                    return Err(HandshakeFailure::Tls(error, first));
                }
            }
            self.receive().await.map_err(HandshakeFailure::Socket)?;
        }
    }

    /// Gives the session up, with the alert that it has to send.
    fn fail(&mut self) {
        self.failed = true;
        if let Some(counts) = &self.counts {
            // In Envoy closing such a session fails in its turn and counts again.
            counts.connection_error().add(2);
        }
        self.session.last_words(&mut self.incoming, &mut self.outgoing);
        self.incoming = Vec::new();
    }

    /// Reads more ciphertext; the end of the stream is an error.
    async fn receive(&mut self) -> io::Result<()> {
        loop {
            let outcome = SCRATCH.with_borrow_mut(|scratch| {
                let space = space(&mut scratch.input, READ);
                let count = self.socket.try_read(space)?;
                self.incoming.extend_from_slice(space.get(..count).unwrap_or_default());
                Ok::<_, io::Error>(count)
            });
            match outcome {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::future::poll_fn(|cx| self.socket.poll_read_ready(cx)).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives back the handshake's buffers.
    fn shrink(&mut self) {
        for buffer in [&mut self.incoming, &mut self.outgoing, &mut self.plain] {
            if buffer.is_empty() {
                *buffer = Vec::new();
            } else {
                buffer.shrink_to_fit();
            }
        }
    }

    /// Whether bytes can be read, or the end, without asking the socket.
    fn has_plain(&self) -> bool {
        self.read < self.plain.len() || self.ended || self.failed
    }

    /// Ready when reading might not wait; there may turn out to be nothing for the reader.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_plain() || self.holds_record() {
            Poll::Ready(Ok(()))
        } else {
            self.socket.poll_read_ready(cx)
        }
    }

    /// See `Socket::seems_readable`.
    pub(crate) fn seems_readable(&self) -> bool {
        self.has_plain() || self.holds_record() || self.socket.seems_readable()
    }

    /// Whether a whole record waits to be opened.
    fn holds_record(&self) -> bool {
        match *self.incoming.as_slice() {
            [_, _, _, high, low, ref rest @ ..] => rest.len() >= usize::from(u16::from_be_bytes([high, low])),
            _ => false,
        }
    }

    /// Reads without waiting.
    pub(crate) fn try_read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(bytes);
        loop {
            if self.take(&mut buf)? {
                return Ok(buf.filled().len());
            }
        }
    }

    /// Reads, waiting if need be.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // What the socket did not take goes on here too: whoever reads may not write again.
        if self.is_stuck() {
            let _: Poll<io::Result<()>> = self.poll_send(cx);
        }
        loop {
            match self.take(buf) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_read_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives the reader bytes, or the end (true), or gets nearer to that with what the socket has.
    fn take(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        if let Some(rest) = self.plain.get(self.read..).filter(|rest| !rest.is_empty()) {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(rest.get(..count).unwrap_or_default());
            self.read += count;
            if self.read == self.plain.len() {
                self.plain = Vec::new();
                self.read = 0;
            }
            return Ok(true);
        }
        if self.ended || buf.remaining() == 0 {
            return Ok(true);
        }
        if self.failed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.lent = false;
        SCRATCH.with_borrow_mut(|scratch| self.open(scratch, buf))
    }

    fn open(&mut self, scratch: &mut Scratch, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let held = self.incoming.len();
        // Room for what the reader wants, but at least for the rest of a record.
        let wanted = if self.holds_record() { 0 } else { (buf.remaining() + OVERHEAD).clamp(RECORD, READ) };
        let input = space(&mut scratch.input, held + wanted);
        input[..held].copy_from_slice(&self.incoming);
        let mut end = held;
        let mut socket_ended = false;
        if wanted > 0 {
            match self.socket.try_read(&mut input[held..]) {
                Ok(0) => socket_ended = true,
                Ok(count) => end += count,
                Err(error) => return Err(error),
            }
        }
        if socket_ended {
            self.ended = true;
            return Ok(true);
        }
        let before = buf.filled().len();
        let mut start = 0;
        let sent_before = self.outgoing.len();
        let mut sink = Sink { reader: Some(buf), aside: &mut self.plain, closed: false };
        let outcome =
            self.session.advance(&mut input[..end], &mut start, &mut self.outgoing, &mut sink, Seal::Nothing);
        self.ended |= sink.closed;
        self.incoming = input.get(start..end).map(<[u8]>::to_vec).unwrap_or_default();
        match outcome {
            Ok(_) => {}
            Err(error) => {
                self.fail();
                self.send_now();
                if buf.filled().len() > before {
                    // What came before the fault is given first.
                    return Ok(true);
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        if self.outgoing.len() > sent_before {
            // An answer to a key update, say. What does not go now goes with the next write.
            self.send_now();
        }
        Ok(buf.filled().len() > before || self.ended)
    }

    /// Sends what waits, as far as the socket takes it at once.
    fn send_now(&mut self) {
        let waker = std::task::Waker::noop();
        let _: Poll<io::Result<()>> = self.poll_send(&mut Context::from_waker(waker));
    }

    /// See `Socket::seal_soon`.
    pub(crate) fn seal_soon(&mut self, message: &[u8]) -> io::Result<Option<(RawFd, Vec<u8>)>> {
        if self.closing || self.failed || self.is_stuck() {
            return Ok(None);
        }
        let Some(socket) = self.socket.plain() else { return Ok(None) };
        let mut out = take_write_buffer();
        let outcome = self.seal_into(&mut out, Seal::Data(message));
        if !matches!(outcome, Ok(Progress::Traffic)) {
            self.outgoing = out;
            self.send_now();
            self.sealed(outcome)?;
            return Ok(None);
        }
        self.lent = true;
        Ok(Some((socket, out)))
    }

    /// Takes such a message back, of which so many bytes were sent.
    pub(crate) fn put_back(&mut self, mut message: Vec<u8>, sent: usize) {
        self.lent = false;
        message.extend_from_slice(self.outgoing.get(self.sent..).unwrap_or_default());
        self.outgoing = message;
        self.sent = sent;
    }

    /// Whether sealed bytes are held that the socket does not take.
    pub(crate) fn is_stuck(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Sends all that waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lent = false;
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.outgoing.clear();
        if self.outgoing.capacity() > RECORD {
            self.outgoing = Vec::new();
        }
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Seals bytes and sends them; those that it says were written are on their way, though
    /// some may wait for the socket (`poll_flush`).
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let now = bytes.get(..SEAL).unwrap_or(bytes);
        self.seal(cx, Seal::Data(now))?;
        Poll::Ready(Ok(now.len()))
    }

    /// The same for bytes in several places.
    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        let (Some(first), second) = (filled.next(), filled.next()) else { return Poll::Ready(Ok(0)) };
        if second.is_none() || first.len() >= SEAL {
            return self.poll_write(cx, first);
        }
        ready!(self.poll_send(cx))?;
        // A record of their own for each would cost more than the copy.
        let mut gathered = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.gathered));
        gathered.clear();
        for slice in slices {
            let room = SEAL - gathered.len();
            gathered.extend_from_slice(slice.get(..room).unwrap_or(slice));
        }
        let outcome = self.poll_write(cx, &gathered);
        SCRATCH.with_borrow_mut(|scratch| scratch.gathered = gathered);
        outcome
    }

    fn seal(&mut self, cx: &mut Context<'_>, what: Seal<'_>) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let mut out = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.output));
        out.clear();
        out.append(&mut self.outgoing);
        let outcome = self.seal_into(&mut out, what);
        let mut sent = 0;
        let written = loop {
            let Some(rest) = out.get(sent..).filter(|rest| !rest.is_empty()) else { break Ok(()) };
            match Pin::new(&mut self.socket).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => break Err(error),
                Poll::Pending => {
                    self.outgoing = rest.to_vec();
                    self.sent = 0;
                    break Ok(());
                }
            }
        };
        if out.capacity() <= SEAL + RECORD {
            SCRATCH.with_borrow_mut(|scratch| scratch.output = out);
        }
        self.sealed(outcome)?;
        written
    }

    /// Seals behind what is in `out`.
    fn seal_into(&mut self, out: &mut Vec<u8>, what: Seal<'_>) -> Result<Progress, rustls::Error> {
        let mut start = 0;
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut sink = Sink { reader: None, aside: &mut self.plain, closed: false };
        let outcome = self.session.advance(&mut incoming, &mut start, out, &mut sink, what);
        self.ended |= sink.closed;
        if start > 0 {
            incoming.drain(..start.min(incoming.len()));
        }
        self.incoming = incoming;
        outcome
    }

    /// What sealing came to; a session that failed is given up.
    fn sealed(&mut self, outcome: Result<Progress, rustls::Error>) -> io::Result<()> {
        match outcome {
            Ok(Progress::Traffic) => Ok(()),
            Ok(Progress::Handshake | Progress::Closed) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => {
                self.fail();
                self.send_now();
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    /// Sends what waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    /// Ends our direction: close_notify, then the socket's end.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        if !self.closing {
            self.closing = true;
            // A session that failed cannot say goodbye; its socket is closed all the same.
            let _ = self.seal(cx, Seal::CloseNotify);
            ready!(self.poll_send(cx))?;
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Drop for TlsStream {
    /// Says goodbye if that costs no waiting, as closing a connection does in Envoy.
    fn drop(&mut self) {
        // Whoever has something sealed, and drops it and this, may not have sent all of it.
        if !self.closing && !self.lent && self.sent == self.outgoing.len() {
            self.closing = true;
            let waker = std::task::Waker::noop();
            let _ = self.seal(&mut Context::from_waker(waker), Seal::CloseNotify);
        }
    }
}

/// The first bytes of a buffer that grows once.
fn space(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

#[cfg(test)]
mod tests;
