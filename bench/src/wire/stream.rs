//! A non-blocking TCP stream, with TLS or without, and the bytes that wait to be written.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustls::Connection as Tls;

/// One end of a connection.
pub(crate) struct Stream {
    /// The socket, non-blocking.
    pub(crate) socket: TcpStream,
    tls: Option<Box<Tls>>,
    /// Plain bytes that wait to be written.
    pub(crate) output: Vec<u8>,
    sent: usize,
    /// Bytes that were read and not used up.
    pub(crate) input: Vec<u8>,
}

/// Bytes read at once.
const READ: usize = 64 * 1024;

impl Stream {
    /// A stream on a connected socket; with TLS the handshake runs as data is moved.
    pub(crate) fn new(socket: TcpStream, tls: Option<Tls>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let tls = tls.map(Box::new);
        Ok(Self { socket, tls, output: Vec::new(), sent: 0, input: Vec::new() })
    }

    /// Writes what waits, as far as the socket takes it. Whether something is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            while self.sent < self.output.len() {
                match self.socket.write(self.output.get(self.sent..).unwrap_or_default()) {
                    Ok(count) => self.sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                }
            }
            self.output.clear();
            self.sent = 0;
            return Ok(false);
        };
        loop {
            // During the handshake rustls keeps what is written; its own buffer is bounded.
            let taken = tls.writer().write(self.output.get(self.sent..).unwrap_or_default())?;
            self.sent += taken;
            while tls.wants_write() {
                match tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                }
            }
            if self.sent == self.output.len() {
                self.output.clear();
                self.sent = 0;
                return Ok(false);
            }
            if taken == 0 {
                // Waits for the peer's part of the handshake.
                return Ok(false);
            }
        }
    }

    /// Reads once into `input`. `Some(0)` is the end; `None`: nothing to read.
    pub(crate) fn fill(&mut self) -> io::Result<Option<usize>> {
        let before = self.input.len();
        let Some(tls) = &mut self.tls else {
            return read_into(&mut self.socket, &mut self.input);
        };
        let count = match tls.read_tls(&mut self.socket) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let plain = state.plaintext_bytes_to_read();
        self.input.resize(before + plain, 0);
        if let Some(room) = self.input.get_mut(before..) {
            tls.reader().read_exact(room)?;
        }
        // The handshake goes on, or a ticket is acknowledged; output may wait for it.
        self.flush()?;
        let closed = count == 0 || state.peer_has_closed();
        Ok(if plain > 0 {
            Some(plain)
        } else if closed {
            Some(0)
        } else {
            None
        })
    }
}

fn read_into(socket: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<usize>> {
    input.reserve(READ);
    match rustix::io::read(&*socket, spare_capacity(input)) {
        Ok(count) => Ok(Some(count)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
