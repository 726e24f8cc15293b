//! Whether connections are redirected, tried by one, as Istio's `istio-validation` does it: a connection to
//! 127.0.0.6 (::6), port 15002, must come to one of the proxy's ports, and must have been meant for 15002. It is
//! made by the proxy's user; of others, connections to this machine are not redirected.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::redirect::Redirect;
use crate::rules::Family;

const AGAIN: Duration = Duration::from_millis(200);

/// How it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The port that is connected to (15002).
    pub port: u16,
    /// For how long (5 s).
    pub patience: Duration,
    /// The family of the workload's first address.
    pub family: Family,
}

/// Tries until a connection comes back.
///
/// # Errors
/// If none does, or nothing can listen on the proxy's ports.
pub fn validate(redirect: &Redirect, probe: Probe) -> io::Result<()> {
    let (listen, target): (IpAddr, IpAddr) = match probe.family {
        Family::V4 => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 6).into()),
        Family::V6 => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::from_bits(6).into()),
    };
    let mut failed = None;
    let mut listeners = Vec::new();
    for port in [redirect.outbound_port, redirect.inbound_port] {
        match TcpListener::bind((listen, port)) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                listeners.push(listener);
            }
            Err(error) => failed = Some(error),
        }
    }
    if listeners.is_empty() {
        return Err(failed.unwrap_or_else(|| io::Error::other("no port to listen on")));
    }
    let start = Instant::now();
    let mut last = None;
    while let Some(left) = probe.patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        let (socket, begun) = begin(listen, SocketAddr::new(target, probe.port))?;
        if arrived(&listeners, probe.port, AGAIN.min(left))? {
            return Ok(());
        }
        last = begun.and_then(|()| sockopt::socket_error(&socket)?).err();
    }
    let why = last.map_or_else(|| "it went elsewhere".to_owned(), |error| error.to_string());
    let words = format!("a connection to {target}:{} is not redirected: {why}", probe.port);
    Err(io::Error::new(io::ErrorKind::TimedOut, words))
}

/// Begins to connect, from a given address: from ::6, which the kernel would choose, nothing is redirected.
fn begin(from: IpAddr, to: SocketAddr) -> io::Result<(OwnedFd, Result<(), Errno>)> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    let begun = match rustix::net::connect(&socket, &to) {
        Err(Errno::INPROGRESS) => Ok(()),
        other => other,
    };
    Ok((socket, begun))
}

/// Waits for a connection that was meant for the port; others, which anybody may make, are closed.
fn arrived(listeners: &[TcpListener], port: u16, patience: Duration) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        for listener in listeners {
            while let Ok((stream, _)) = listener.accept() {
                if original(&stream).is_ok_and(|original| original.port() == port) {
                    return Ok(true);
                }
            }
        }
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        let mut files: Vec<PollFd<'_>> =
            listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut files, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Where a connection was meant for.
fn original(stream: &TcpStream) -> io::Result<SocketAddr> {
    if stream.local_addr()?.is_ipv4() {
        Ok(SocketAddr::V4(sockopt::ip_original_dst(stream)?))
    } else {
        Ok(SocketAddr::V6(sockopt::ipv6_original_dst(stream)?))
    }
}
