//! envoy.filters.listener.original_dst: where a redirected connection was meant to go
//! (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination before redirection, which is the local address if there was none; `None` if the
/// system keeps no record of the connection.
pub(crate) fn of(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let original = match stream.local_addr().ok()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6().or_else(|_| socket.original_dst_v4()),
    };
    original.ok()?.as_socket()
}
