//! The socket of a downstream or upstream connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::TcpKeepalive;
use crate::tls::stream::TlsStream;

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

impl Socket {
    /// Ready when reading would not wait; needs no buffer.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(stream) => stream.poll_read_ready(cx),
            Socket::Unix(stream) => stream.poll_read_ready(cx),
            Socket::Tls(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Reads without waiting.
    pub(crate) fn try_read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.try_read(bytes),
            Socket::Unix(stream) => stream.try_read(bytes),
            Socket::Tls(stream) => stream.try_read(bytes),
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
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => stream.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
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
