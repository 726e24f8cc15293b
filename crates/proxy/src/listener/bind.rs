//! Listening sockets, made on the main thread so that a port that cannot be had refuses the
//! listener, and handed to the workers, which only accept on them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::listener::accept::ListenSocket;
use crate::listener::{ListenAddress, Listener};

/// The sockets of one listener: one list for each worker.
pub(crate) struct BoundListener {
    /// By worker.
    pub(crate) workers: Vec<Vec<BoundSocket>>,
    /// Where it really listens (port 0 resolved), in the order of its addresses.
    pub(crate) addresses: Vec<ListenAddress>,
}

/// A bound socket that listens when its listener comes into force.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    socket: Socket,
    unix: bool,
    backlog: i32,
}

/// An address that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind '{address}': {reason}")]
pub(crate) struct BindError {
    address: String,
    reason: String,
}

/// Connections that may wait to be accepted, unless configured: the system's maximum.
const BACKLOG: i32 = 4096;

/// Binds the sockets of `listener` for so many workers.
pub(crate) fn bind(listener: &Listener, workers: usize) -> Result<BoundListener, BindError> {
    let mut bound =
        BoundListener { workers: (0..workers).map(|_| Vec::new()).collect(), addresses: Vec::new() };
    for address in &listener.addresses {
        let failed = |error: io::Error| BindError { address: address.to_string(), reason: describe(&error) };
        let (sockets, actual) = match address {
            ListenAddress::Ip(ip) => bind_ip(listener, *ip, workers).map_err(failed)?,
            ListenAddress::Pipe(path, mode) => {
                (bind_pipe(path, *mode, workers).map_err(failed)?, address.clone())
            }
        };
        bound.addresses.push(actual);
        let backlog = listener.backlog.map_or(BACKLOG, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX));
        let unix = matches!(address, ListenAddress::Pipe(..));
        for (worker, socket) in bound.workers.iter_mut().zip(sockets) {
            worker.push(BoundSocket { socket, unix, backlog });
        }
    }
    Ok(bound)
}

/// The system's text without Rust's "(os error n)".
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// One socket per worker with SO_REUSEPORT, else one that all share.
fn bind_ip(
    listener: &Listener,
    address: SocketAddr,
    workers: usize,
) -> io::Result<(Vec<Socket>, ListenAddress)> {
    let first = bind_one(listener, address)?;
    let actual = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..workers {
        let next = if listener.reuse_port { bind_one(listener, actual)? } else { sockets[0].try_clone()? };
        sockets.push(next);
    }
    Ok((sockets, ListenAddress::Ip(actual)))
}

fn bind_one(listener: &Listener, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if listener.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!listener.ipv4_compatible)?;
    }
    if listener.transparent {
        if address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            crate::io::set_raw_option(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_TRANSPARENT,
                &1i32.to_ne_bytes(),
            )?;
        }
    }
    if listener.freebind {
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
    }
    for (level, name, value) in &listener.options {
        crate::io::set_raw_option(&socket, *level, *name, value)?;
    }
    if let Some(keepalive) = &listener.keepalive {
        crate::io::set_keepalive(&socket, keepalive)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// A Unix socket is shared by all workers. A file left behind by an earlier run is replaced.
fn bind_pipe(path: &str, mode: u32, workers: usize) -> io::Result<Vec<Socket>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let address = crate::io::unix_address(path)?;
    if !path.starts_with('@')
        && let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    socket.bind(&address)?;
    if mode != 0 && !path.starts_with('@') {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    let mut sockets = vec![socket];
    for _ in 1..workers {
        sockets.push(sockets[0].try_clone()?);
    }
    Ok(sockets)
}

impl BoundSocket {
    /// Listens from now on: connections wait until a worker accepts them.
    pub(super) fn listen(&self) -> io::Result<()> {
        self.socket.listen(self.backlog)
    }

    /// Hands the socket to the runtime of the calling worker, to accept on it.
    pub(crate) fn into_listening(self) -> io::Result<ListenSocket> {
        let descriptor = OwnedFd::from(self.socket);
        if self.unix {
            let socket = std::os::unix::net::UnixListener::from(descriptor);
            return tokio::net::UnixListener::from_std(socket).map(ListenSocket::Unix);
        }
        let socket = std::net::TcpListener::from(descriptor);
        tokio::net::TcpListener::from_std(socket).map(ListenSocket::Tcp)
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddress::Ip(address) => write!(f, "{address}"),
            ListenAddress::Pipe(path, _) => f.write_str(path),
        }
    }
}
