//! Opening a socket to an endpoint: source address, socket options, timeout. Shared by the
//! HTTP pools and the TCP proxy.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, UnixStream};

use crate::cluster::pool::eyeballs;
use crate::cluster::pool::via::{self, Via};
use crate::cluster::{BindConfig, Cluster, EndpointAddress, Metadata};
use crate::http::codec::ResetReason;
use crate::io::{Socket, set_keepalive, set_raw_option};
use crate::listener::internal;
use crate::proxy_protocol::{self, UpstreamHeader};
use crate::tls::stats::TlsStats;
use crate::tls::{Callee, NoSession, Offer, TlsInfo, Transport, UpstreamTls};

/// Why there is no connection. The text is `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nothing within `connect_timeout`.
    #[error("connect timeout")]
    Timeout,
    /// The system refused to try.
    #[error("immediate connect error: {0}")]
    Local(Box<str>),
    /// The network or the endpoint refused.
    #[error("delayed connect error: {0}")]
    Remote(Box<str>),
    /// There is no TLS session.
    #[error("{0}")]
    Tls(Box<str>),
    /// The connection was lost before it could be used.
    #[error("connection lost in the handshake")]
    Handshake,
}

impl ConnectError {
    /// What a stream's reset is called for it.
    pub(crate) fn reason(&self) -> ResetReason {
        match self {
            ConnectError::Timeout => ResetReason::ConnectionTimeout,
            ConnectError::Local(_) => ResetReason::LocalConnectionFailure,
            ConnectError::Remote(_) | ConnectError::Tls(_) | ConnectError::Handshake => {
                ResetReason::RemoteConnectionFailure
            }
        }
    }

    /// The transport's own words, as far as Envoy has some.
    pub(crate) fn detail(&self) -> Option<Box<str>> {
        let words = matches!(self, ConnectError::Local(_) | ConnectError::Remote(_) | ConnectError::Tls(_));
        words.then(|| self.to_string().into())
    }
}

/// Whom to connect to, and how.
#[derive(Clone, Copy)]
pub(crate) struct Peer<'a> {
    /// The cluster, whose settings hold.
    pub(crate) cluster: &'a Cluster,
    /// Where the endpoint listens.
    pub(crate) address: &'a EndpointAddress,
    /// More addresses of the same host.
    pub(crate) others: &'a [SocketAddr],
    /// The host's metadata, which an internal connection may take along.
    pub(crate) metadata: &'a Metadata,
    /// What is taken over of the downstream connection that it is for.
    pub(crate) via: Option<&'a Via>,
    /// Its host name, for `auto_host_sni`.
    pub(crate) hostname: Option<&'a str>,
    /// What lies between.
    pub(crate) transport: &'a Transport<UpstreamTls>,
    /// What is offered by ALPN.
    pub(crate) offer: Offer<'a>,
    /// Counts of handshakes, if somebody counts them.
    pub(crate) stats: Option<&'a TlsStats>,
}

/// Opens a connection as the cluster says, within its `connect_timeout`. Counts nothing but
/// handshakes.
pub(crate) async fn open(peer: Peer<'_>) -> Result<(Socket, Option<Rc<TlsInfo>>), ConnectError> {
    match tokio::time::timeout(peer.cluster.connect_timeout, whole(peer)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

async fn whole(peer: Peer<'_>) -> Result<(Socket, Option<Rc<TlsInfo>>), ConnectError> {
    let Peer { cluster, address, others, metadata, via, .. } = peer;
    let header = cluster.proxy_header_to(metadata).map(|header| &**header);
    let socket = match address {
        EndpointAddress::Ip(first) if !others.is_empty() => {
            let addresses = eyeballs::order(*first, others, cluster.eyeballs);
            eyeballs::race(addresses, async |address| {
                attempt(cluster, &EndpointAddress::Ip(address), metadata, header, via).await
            })
            .await?
        }
        // The future of a single attempt is large, and there are thousands of it.
        _ => attempt(cluster, address, metadata, header, via).await?,
    };
    secure(peer, socket).await
}

/// Puts on a socket what lies between the cluster and the endpoint.
pub(crate) async fn secure(
    peer: Peer<'_>,
    socket: Socket,
) -> Result<(Socket, Option<Rc<TlsInfo>>), ConnectError> {
    let Some(tls) = peer.transport.tls() else { return Ok((socket, None)) };
    let settings = &tls.settings;
    let hostname = peer.hostname.filter(|name| settings.auto_host_sni && !name.is_empty());
    let address = match peer.address {
        EndpointAddress::Ip(address) => Some(*address),
        EndpointAddress::Name(..) | EndpointAddress::Pipe(_) | EndpointAddress::Internal(..) => None,
    };
    let sni = peer.via.and_then(|via| via.sni.as_deref()).or(hostname).or(settings.sni.as_deref());
    let callee = Callee {
        name: crate::tls::server_name(sni, address),
        expected: peer.via.and_then(|via| via.san.clone()),
    };
    // Boxed: its state is large, and gone when the connection is there.
    match Box::pin(crate::tls::connect(tls, peer.offer, peer.stats, socket, callee)).await {
        Ok((socket, info)) => Ok((socket, Some(Rc::new(info)))),
        Err(NoSession { reason: Some(words), .. }) => Err(ConnectError::Tls(words)),
        Err(NoSession { reason: None, .. }) => Err(ConnectError::Handshake),
    }
}

/// A connection to one address without TLS, and without a limit of time.
pub(crate) async fn attempt(
    cluster: &Cluster,
    address: &EndpointAddress,
    metadata: &Metadata,
    header: Option<&UpstreamHeader>,
    via: Option<&Via>,
) -> Result<Socket, ConnectError> {
    let mut socket = connect(cluster, address, metadata, via).await?;
    if let Some(settings) = header {
        // Before anything else, a TLS handshake too.
        send_proxy_header(&mut socket, settings, via).await?;
    }
    Ok(socket)
}

async fn send_proxy_header(
    socket: &mut Socket,
    settings: &UpstreamHeader,
    via: Option<&Via>,
) -> Result<(), ConnectError> {
    let none = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let (from, to) = (socket.local_address().unwrap_or(none), socket.peer_address().unwrap_or(none));
    let origin = via.and_then(|via| via.origin.as_ref());
    let header = proxy_protocol::write::header(settings, origin, from, to);
    socket.write_all(&header).await.map_err(|error| classify(&error))
}

async fn connect(
    cluster: &Cluster,
    address: &EndpointAddress,
    metadata: &Metadata,
    via: Option<&Via>,
) -> Result<Socket, ConnectError> {
    match address {
        EndpointAddress::Ip(address) => {
            let socket = prepare(cluster, *address, via).map_err(|error| local(&error))?;
            let stream = socket.connect(*address).await.map_err(|error| classify(&error))?;
            // Small writes are already gathered by the codecs; waiting for more only adds latency.
            stream.set_nodelay(true).map_err(|error| local(&error))?;
            Ok(Socket::Tcp(stream))
        }
        EndpointAddress::Pipe(path) => {
            let stream = match path.strip_prefix('@') {
                None => UnixStream::connect(&**path).await.map_err(|error| classify(&error))?,
                Some(name) => connect_abstract(name).map_err(|error| classify(&error))?,
            };
            Ok(Socket::Unix(stream))
        }
        EndpointAddress::Internal(listener, _) => {
            let passed = via::passed(cluster, metadata);
            internal::connect(listener, passed).map_err(|error| local(&error))
        }
        EndpointAddress::Name(name, _) => Err(ConnectError::Local(format!("{name} is not resolved").into())),
    }
}

#[cfg(target_os = "linux")]
fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_name: &str) -> io::Result<UnixStream> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "abstract sockets exist on Linux only"))
}

/// A socket with everything set that must be set before it connects.
fn prepare(cluster: &Cluster, address: SocketAddr, via: Option<&Via>) -> io::Result<TcpSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let BindConfig { sources, options } = &*cluster.bind;
    for (level, name, value) in options {
        set_raw_option(&socket, *level, *name, value)?;
    }
    if let Some(keepalive) = &cluster.tcp_keepalive {
        set_keepalive(&socket, keepalive)?;
    }
    if let Some(source) = via.and_then(|via| via.source) {
        // The address of somebody else: the system must be told that it is meant.
        let (level, name) = if source.is_ipv4() {
            (libc::SOL_IP, libc::IP_TRANSPARENT)
        } else {
            (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
        };
        set_raw_option(&socket, level, name, &1i32.to_ne_bytes())?;
    }
    if let Some(mark) = via.map(|via| via.mark).filter(|mark| *mark != 0) {
        set_raw_option(&socket, libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes())?;
    }
    let own = via.and_then(|via| via.source.as_ref());
    let configured = || sources.iter().find(|source| source.is_ipv4() == address.is_ipv4());
    if let Some(source) = own.or_else(configured) {
        // The port is chosen when connecting, so that one source address serves more than
        // 64 k connections. A kernel without the option gives fewer.
        #[cfg(target_os = "linux")]
        if source.port() == 0 {
            let one = 1i32.to_ne_bytes();
            let _ = set_raw_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &one);
        }
        socket.bind(&(*source).into())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn local(error: &io::Error) -> ConnectError {
    ConnectError::Local(words(error))
}

/// Errors that the system finds out by itself are local, what the network tells is remote.
fn classify(error: &io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NotFound => local(error),
        _ => ConnectError::Remote(words(error)),
    }
}

/// The system's words, without Rust's suffix.
fn words(error: &io::Error) -> Box<str> {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().into()
}
