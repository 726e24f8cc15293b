//! What matchers may know of a connection or a request. A kind of data implements what it has.

use std::net::SocketAddr;
use std::time::Instant;

use crate::cluster::Metadata;
use crate::http::headers::HeaderMap;
use crate::http::route::Route;
use crate::listener::filter_chain::ConnectionFacts;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::grpc;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata, FilterState, StreamInfo};
use crate::tls::TlsInfo;

/// The data that inputs read.
pub(crate) trait Facts {
    /// The (restored) local address.
    fn destination(&self) -> Option<SocketAddr>;
    /// The (restored, or for requests trusted) remote address.
    fn source(&self) -> Option<SocketAddr>;
    /// The peer of the socket itself.
    fn direct_source(&self) -> Option<SocketAddr>;
    /// The connection's remote address, whatever a request's headers say.
    fn connection_source(&self) -> Option<SocketAddr> {
        self.source()
    }
    /// SNI; empty: none.
    fn server_name(&self) -> &str;
    /// `tls` or `raw_buffer`; empty: not known.
    fn transport(&self) -> &str {
        ""
    }
    /// ALPN, or what the HTTP inspector found.
    fn application_protocols(&self) -> &[Box<str>] {
        &[]
    }
    /// The connection's TLS session, if it has one.
    fn tls(&self) -> Option<&TlsInfo> {
        self.info().and_then(|info| info.connection.tls.as_deref())
    }
    /// Whether the connection is one of TLS.
    fn is_secure(&self) -> bool {
        self.tls().is_some()
    }
    /// Whether the peer presented a certificate that was verified.
    fn is_verified(&self) -> bool {
        self.tls().is_some_and(|tls| tls.trusted)
    }
    /// Shows the names of the peer's certificate until one is accepted; says whether one was.
    fn find_peer_name(&self, kind: PeerName, accept: &mut dyn FnMut(&str) -> bool) -> bool {
        let Some(peer) = self.tls().and_then(|tls| tls.peer.as_ref()?.own()) else { return false };
        match kind {
            PeerName::Uri => peer.uris().any(accept),
            PeerName::Dns => peer.dns_names().any(accept),
            PeerName::Subject => accept(&peer.subject_text()),
        }
    }
    /// What is known of the connection.
    fn connection(&self) -> Option<&ConnectionInfo> {
        self.info().map(|info| &*info.connection)
    }
    /// Metadata of the request's route.
    fn route_metadata(&self) -> Option<&Metadata> {
        None
    }
    /// What is known of the stream.
    fn info(&self) -> Option<&StreamInfo> {
        None
    }
    /// The request's head.
    fn request(&self) -> Option<&HeaderMap> {
        None
    }
    /// The response's head.
    fn response(&self) -> Option<&HeaderMap> {
        None
    }
    /// The response's trailers.
    fn response_trailers(&self) -> Option<&HeaderMap> {
        None
    }
    /// The status of a gRPC call that has ended.
    fn grpc_status(&self) -> Option<u32> {
        None
    }
    /// When the stream ended; `None`: it has not.
    fn end(&self) -> Option<Instant> {
        None
    }
    /// This proxy's node: `id`, `cluster`, `metadata`, `locality`.
    fn node(&self) -> Option<&serde_json::Value> {
        None
    }
    /// Dynamic metadata.
    fn metadata(&self) -> Option<&DynamicMetadata> {
        self.info().map(|info| &info.metadata)
    }
    /// An object of the filter state.
    fn filter_state(&self, key: &str) -> Option<&FilterState> {
        self.info().and_then(|info| info.filter_state.get(key))
    }
}

/// Which names of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerName {
    /// URIs among the subject's alternative names.
    Uri,
    /// DNS names, likewise.
    Dns,
    /// The subject, as RFC 2253 writes it.
    Subject,
}

/// A connection whose filter chain is chosen.
impl Facts for ConnectionFacts<'_> {
    fn destination(&self) -> Option<SocketAddr> {
        Some(self.destination)
    }

    fn source(&self) -> Option<SocketAddr> {
        Some(self.source)
    }

    fn direct_source(&self) -> Option<SocketAddr> {
        Some(self.direct_source)
    }

    fn server_name(&self) -> &str {
        self.server_name
    }

    fn transport(&self) -> &str {
        self.transport
    }

    fn application_protocols(&self) -> &[Box<str>] {
        self.application_protocols
    }
}

/// A connection, as a network filter sees it.
#[derive(Debug)]
pub(crate) struct NetworkFacts<'a> {
    connection: &'a ConnectionInfo,
    /// There are none, which is not the same as not to know.
    headers: HeaderMap,
}

impl<'a> NetworkFacts<'a> {
    /// Of this connection.
    pub(crate) fn new(connection: &'a ConnectionInfo) -> Self {
        Self { connection, headers: HeaderMap::default() }
    }
}

impl Facts for NetworkFacts<'_> {
    fn destination(&self) -> Option<SocketAddr> {
        Some(self.connection.local)
    }

    fn source(&self) -> Option<SocketAddr> {
        Some(self.connection.remote)
    }

    fn direct_source(&self) -> Option<SocketAddr> {
        Some(self.connection.direct_remote)
    }

    fn server_name(&self) -> &str {
        self.connection.server_name.as_deref().unwrap_or_default()
    }

    fn tls(&self) -> Option<&TlsInfo> {
        self.connection.tls.as_deref()
    }

    fn connection(&self) -> Option<&ConnectionInfo> {
        Some(self.connection)
    }

    fn request(&self) -> Option<&HeaderMap> {
        Some(&self.headers)
    }

    fn metadata(&self) -> Option<&DynamicMetadata> {
        Some(&self.connection.found.metadata)
    }

    fn filter_state(&self, key: &str) -> Option<&FilterState> {
        self.connection.found.filter_state.get(key)
    }
}

/// A request, as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestFacts<'a> {
    /// The stream.
    pub(crate) info: &'a StreamInfo,
    /// The request's head.
    pub(crate) request: &'a HeaderMap,
    /// Its route, if it has one yet.
    pub(crate) route: Option<&'a Route>,
}

impl Facts for RequestFacts<'_> {
    fn destination(&self) -> Option<SocketAddr> {
        Some(self.info.connection.local)
    }

    fn source(&self) -> Option<SocketAddr> {
        Some(self.info.connection.remote)
    }

    fn direct_source(&self) -> Option<SocketAddr> {
        Some(self.info.connection.direct_remote)
    }

    fn connection_source(&self) -> Option<SocketAddr> {
        // An address out of `x-forwarded-for` has no port.
        let connection = &self.info.connection;
        Some(if connection.remote.port() == 0 { connection.direct_remote } else { connection.remote })
    }

    fn route_metadata(&self) -> Option<&Metadata> {
        self.route.and_then(|route| route.metadata.as_ref())
    }

    fn server_name(&self) -> &str {
        self.info.connection.server_name.as_deref().unwrap_or_default()
    }

    fn info(&self) -> Option<&StreamInfo> {
        Some(self.info)
    }

    fn request(&self) -> Option<&HeaderMap> {
        Some(self.request)
    }
}

/// A request whose route is looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteFacts<'a> {
    /// The stream; `None`: only the head is known.
    pub(crate) info: Option<&'a StreamInfo>,
    /// The request's head.
    pub(crate) request: &'a HeaderMap,
}

impl Facts for RouteFacts<'_> {
    fn destination(&self) -> Option<SocketAddr> {
        Some(self.info?.connection.local)
    }

    fn source(&self) -> Option<SocketAddr> {
        Some(self.info?.connection.remote)
    }

    fn direct_source(&self) -> Option<SocketAddr> {
        Some(self.info?.connection.direct_remote)
    }

    fn server_name(&self) -> &str {
        self.info.and_then(|info| info.connection.server_name.as_deref()).unwrap_or_default()
    }

    fn info(&self) -> Option<&StreamInfo> {
        self.info
    }

    fn request(&self) -> Option<&HeaderMap> {
        Some(self.request)
    }
}

/// What a log entry is made of, and with it the node.
#[derive(Clone, Copy)]
pub(crate) struct LogFacts<'a> {
    /// The stream or session, and its heads.
    pub(crate) context: FormatContext<'a>,
    /// See [`Facts::node`].
    pub(crate) node: Option<&'a serde_json::Value>,
}

impl Facts for LogFacts<'_> {
    fn destination(&self) -> Option<SocketAddr> {
        Some(self.context.info.connection.local)
    }

    fn source(&self) -> Option<SocketAddr> {
        Some(self.context.info.connection.remote)
    }

    fn direct_source(&self) -> Option<SocketAddr> {
        Some(self.context.info.connection.direct_remote)
    }

    fn connection_source(&self) -> Option<SocketAddr> {
        let connection = &self.context.info.connection;
        Some(if connection.remote.port() == 0 { connection.direct_remote } else { connection.remote })
    }

    fn server_name(&self) -> &str {
        self.context.info.connection.server_name.as_deref().unwrap_or_default()
    }

    fn info(&self) -> Option<&StreamInfo> {
        Some(self.context.info)
    }

    fn request(&self) -> Option<&HeaderMap> {
        self.context.request
    }

    fn response(&self) -> Option<&HeaderMap> {
        self.context.response
    }

    fn response_trailers(&self) -> Option<&HeaderMap> {
        self.context.trailers
    }

    fn grpc_status(&self) -> Option<u32> {
        grpc::status(&self.context)
    }

    fn end(&self) -> Option<Instant> {
        self.context.end
    }

    fn node(&self) -> Option<&serde_json::Value> {
        self.node
    }
}
