//! The socket of a downstream or upstream connection.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::TcpKeepalive;
use crate::tls::stream::TlsStream;
use crate::turn;

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// Unix domain.
    Unix(UnixStream),
    /// TLS over either.
    Tls(Box<TlsStream>),
}

/// An accepted connection as it leaves the listener filters: the bytes that they had to read
/// to decide come before what the socket still has.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket.
    pub(crate) socket: Socket,
    /// Bytes already read.
    pub(crate) buffered: BytesMut,
    /// The listener's `per_connection_buffer_limit_bytes`.
    pub(crate) buffer_limit: usize,
}

/// 127.0.0.1 or ::1. The rest of 127.0.0.0/8 is as good as any other address, as in Envoy.
pub(crate) fn is_localhost(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address == Ipv4Addr::LOCALHOST,
        IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
    }
}

/// Sets a socket option that the API names by numbers (envoy.config.core.v3.SocketOption).
pub(crate) fn set_raw_option(
    socket: &socket2::Socket,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    let length =
        libc::socklen_t::try_from(value.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open as long as `socket` lives, and the pointer and length
    // describe `value`, which the kernel only reads.
    #[allow(unsafe_code, reason = "no safe wrapper takes an option by number")]
    let outcome = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Switches TCP keep-alive on.
pub(crate) fn set_keepalive(socket: &socket2::Socket, keepalive: &TcpKeepalive) -> io::Result<()> {
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(seconds) = keepalive.time {
        settings = settings.with_time(Duration::from_secs(seconds.into()));
    }
    if let Some(seconds) = keepalive.interval {
        settings = settings.with_interval(Duration::from_secs(seconds.into()));
    }
    if let Some(probes) = keepalive.probes {
        settings = settings.with_retries(probes);
    }
    socket.set_tcp_keepalive(&settings)
}

/// The address of a Unix socket; `@` at the start stands for the abstract name space.
pub(crate) fn unix_address(path: &str) -> io::Result<socket2::SockAddr> {
    match path.strip_prefix('@') {
        Some(name) => socket2::SockAddr::unix(format!("\0{name}")),
        None => socket2::SockAddr::unix(path),
    }
}

/// A socket that the reactor knows.
///
/// Its system calls are made here and not by tokio's streams: one question for readiness in place
/// of two, and none of what the C library does around calls that a thread may be cancelled in.
trait Plain: AsFd {
    /// Ready when reading would not wait.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when writing would not wait.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes a call if the socket is ready for it as far as is known; a call that would have to
    /// wait makes known that it is not.
    fn try_call(&self, interest: Interest, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize>;

    /// A call that handles up to `most` bytes. One that handles fewer has taken all that was there
    /// (or filled all the room), so that the next one need not be made to find that out: an edge
    /// tells when there is more (epoll(7), question 9).
    fn try_once(
        &self,
        interest: Interest,
        most: usize,
        call: impl FnOnce() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let mut some = None;
        let outcome = self.try_call(interest, || {
            let count = call()?;
            if 0 < count && count < most {
                some = Some(count);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        some.map_or(outcome, Ok)
    }

    /// Reads without waiting.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = bytes.len();
        self.try_once(Interest::READABLE, most, || Ok(recv(self, bytes, RecvFlags::empty())?.0))
    }
}

impl Plain for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn try_call(&self, interest: Interest, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(interest, call)
    }
}

impl Plain for UnixStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn try_call(&self, interest: Interest, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(interest, call)
    }
}

/// Reads once. Readiness is asked for each time, also where it is known that there is something:
/// that is what makes a task that reads and reads give way to others.
fn poll_receive(
    stream: &impl Plain,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    mut ready: bool,
) -> Poll<io::Result<usize>> {
    loop {
        if !ready {
            ready!(stream.poll_readable(cx))?;
        }
        ready = false;
        // SAFETY: `recv` writes to the room and reads nothing of it.
        #[allow(unsafe_code, reason = "room that was never written to is not to be written twice")]
        let room = unsafe { buffer.chunk_mut().as_uninit_slice_mut() };
        let most = room.len();
        let received = stream.try_once(Interest::READABLE, most, || {
            let ((bytes, _), _) = recv(stream, room, RecvFlags::empty())?;
            Ok(bytes.len())
        });
        match received {
            Ok(count) => {
                // SAFETY: `recv` has written to so many bytes of the room.
                #[allow(unsafe_code, reason = "see above")]
                unsafe {
                    buffer.advance_mut(count);
                }
                return Poll::Ready(Ok(count));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes once. Sockets have room as a rule, so who is to be woken is said only if there is none.
fn poll_send(stream: &impl Plain, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        let sent =
            stream.try_once(Interest::WRITABLE, bytes.len(), || send(stream, bytes, SendFlags::NOSIGNAL));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_writable(cx))?,
            outcome => return Poll::Ready(outcome),
        }
    }
}

impl Socket {
    /// Ready when reading would not wait; needs no buffer.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        turn::tick();
        match self {
            Socket::Tcp(stream) => stream.poll_read_ready(cx),
            Socket::Unix(stream) => stream.poll_read_ready(cx),
            Socket::Tls(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Whether the reactor has seen something to read that was not read to its end since; no system
    /// call.
    pub(crate) fn seems_readable(&self) -> bool {
        turn::tick();
        // Nothing is called, so readiness stays as it is.
        match self {
            Socket::Tcp(stream) => stream.try_call(Interest::READABLE, || Ok(0)).is_ok(),
            Socket::Unix(stream) => stream.try_call(Interest::READABLE, || Ok(0)).is_ok(),
            Socket::Tls(stream) => stream.seems_readable(),
        }
    }

    /// Reads without waiting.
    pub(crate) fn try_read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.receive(bytes),
            Socket::Unix(stream) => stream.receive(bytes),
            Socket::Tls(stream) => stream.try_read(bytes),
        }
    }

    /// Reads once, behind what is in the buffer: the number of bytes, 0 at the end of the stream.
    /// `ready` says that `poll_read_ready` was so just now, which is not asked again then.
    pub(crate) fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        ready: bool,
    ) -> Poll<io::Result<usize>> {
        turn::tick();
        match self {
            Socket::Tcp(stream) => poll_receive(stream, cx, buffer, ready),
            Socket::Unix(stream) => poll_receive(stream, cx, buffer, ready),
            // The future keeps no state between polls, so a new one each time loses nothing.
            Socket::Tls(_) => pin!(self.read_buf(buffer)).poll(cx),
        }
    }

    /// Its descriptor, if what is written to it goes out as it is.
    pub(crate) fn plain(&self) -> Option<RawFd> {
        match self {
            Socket::Tcp(stream) => Some(stream.as_raw_fd()),
            Socket::Unix(stream) => Some(stream.as_raw_fd()),
            Socket::Tls(_) => None,
        }
    }

    /// Seals a complete message that is to be sent a little later through the descriptor that is
    /// given with it, unless this is not a session with TLS, or earlier bytes are to be sent first.
    /// Until it was sent, or put back, the session must not be read or written.
    pub(crate) fn seal_soon(&mut self, message: &[u8]) -> io::Result<Option<(RawFd, Vec<u8>)>> {
        match self {
            Socket::Tcp(_) | Socket::Unix(_) => Ok(None),
            Socket::Tls(stream) => stream.seal_soon(message),
        }
    }

    /// Whether sealed bytes are held that the socket below does not take.
    pub(crate) fn is_stuck(&self) -> bool {
        match self {
            Socket::Tcp(_) | Socket::Unix(_) => false,
            Socket::Tls(stream) => stream.is_stuck(),
        }
    }

    /// Makes closing it a reset (RST) instead of an orderly end, to pass on one that came from
    /// the other side.
    pub(crate) fn reset_on_close(&self) {
        match self {
            Socket::Tcp(stream) => {
                // Of no importance if the connection is gone already.
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
            Socket::Unix(_) => {}
            Socket::Tls(stream) => stream.socket().reset_on_close(),
        }
    }

    /// The peer's address, if it is an IP address.
    pub(crate) fn peer_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Socket::Tcp(stream) => stream.peer_addr().ok(),
            Socket::Unix(_) => None,
            Socket::Tls(stream) => stream.socket().peer_address(),
        }
    }

    /// The local address, if it is an IP address.
    pub(crate) fn local_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Socket::Tcp(stream) => stream.local_addr().ok(),
            Socket::Unix(_) => None,
            Socket::Tls(stream) => stream.socket().local_address(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        turn::tick();
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => stream.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        turn::tick();
        match self.get_mut() {
            Socket::Tcp(stream) => poll_send(stream, cx, buf),
            Socket::Unix(stream) => poll_send(stream, cx, buf),
            Socket::Tls(stream) => stream.poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Tls(stream) => stream.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => stream.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => stream.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::ErrorKind;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
    use tokio::net::UnixStream;

    use super::Socket;

    #[tokio::test]
    async fn a_read_that_takes_all_is_the_last_until_more_comes() {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let mut socket = Socket::Unix(stream);
        let mut buffer = BytesMut::with_capacity(100);
        for text in ["some", "more"] {
            peer.write_all(text.as_bytes()).await.unwrap();
            buffer.clear();
            let count = poll_fn(|cx| socket.poll_read_buf(cx, &mut buffer, false)).await.unwrap();
            assert_eq!((count, &buffer[..]), (4, text.as_bytes()));
            let Socket::Unix(stream) = &socket else { unreachable!() };
            let asked = stream.try_io(Interest::READABLE, || -> std::io::Result<()> { unreachable!() });
            assert_eq!(asked.unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        // One that fills its room may have left something.
        peer.write_all(b"abc").await.unwrap();
        poll_fn(|cx| socket.poll_read_ready(cx)).await.unwrap();
        let mut two = [0; 2];
        assert_eq!(socket.try_read(&mut two).unwrap(), 2);
        assert_eq!(socket.try_read(&mut two).unwrap(), 1);
        assert_eq!(socket.try_read(&mut two).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(peer);
        assert_eq!(poll_fn(|cx| socket.poll_read_buf(cx, &mut buffer, false)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let mut socket = Socket::Unix(stream);
        let chunk = vec![7; 100_000];
        let mut sent = 0;
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(count) = Pin::new(&mut socket).poll_write(&mut cx, &chunk) {
            sent += count.unwrap();
        }
        assert!(sent > 0);
        let writing = poll_fn(|cx| Pin::new(&mut socket).poll_write(cx, &chunk));
        let mut got = vec![0; sent];
        let (written, read) = tokio::join!(writing, peer.read_exact(&mut got));
        assert!(written.unwrap() > 0);
        assert_eq!(read.unwrap(), sent);
        assert!(got.iter().all(|&byte| byte == 7));
    }
}
