//! Transport sockets: TLS of listeners and clusters (envoy.transport_sockets.tls).
//!
//! `config` lowers contexts into `DownstreamTls` and `UpstreamTls`, whose parts may be secrets
//! that come later and change (`secrets`). What handshakes are made from lies in a slot that the
//! main thread fills: a rotated certificate is what new handshakes show, and closes nothing.
//! `stream` drives sessions; [`accept`] and [`connect`] are the stories of one handshake each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use leno_tls::{Findings, Identity, PeerCertificates, ServerContext, ValidationRules};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuite, ClientConfig, CommonState, NamedGroup, ProtocolVersion};

use crate::io::Socket;
use crate::listener::inspect::Verdict;
use crate::listener::inspect::tls::inspect;
use crate::tls::config::{DownstreamSettings, UpstreamSettings};
use crate::tls::stats::TlsStats;
use crate::tls::stream::{HandshakeFailure, Session, TlsStream};

pub(crate) mod config;
pub(crate) mod expiry;
pub(crate) mod secrets;
pub(crate) mod stats;
pub(crate) mod stream;

/// What lies below a chain's filters, or between a cluster and its endpoints.
#[derive(Debug)]
pub(crate) enum Transport<T> {
    /// Plain text (envoy.transport_sockets.raw_buffer).
    Raw,
    /// TLS.
    Tls(Arc<T>),
}

impl<T> Clone for Transport<T> {
    fn clone(&self) -> Self {
        match self {
            Transport::Raw => Transport::Raw,
            Transport::Tls(tls) => Transport::Tls(Arc::clone(tls)),
        }
    }
}

impl<T> Transport<T> {
    /// Whether it is the very same.
    pub(crate) fn is_same(&self, other: &Transport<T>) -> bool {
        match (self, other) {
            (Transport::Raw, Transport::Raw) => true,
            (Transport::Tls(own), Transport::Tls(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }

    /// The TLS settings, if it is TLS.
    pub(crate) fn tls(&self) -> Option<&Arc<T>> {
        match self {
            Transport::Raw => None,
            Transport::Tls(tls) => Some(tls),
        }
    }
}

/// What the main thread replaces and handshakes take. Locked for as long as it takes to copy a
/// pointer, once for each handshake.
#[derive(Debug)]
pub(crate) struct Slot<T>(Mutex<Option<Arc<T>>>);

impl<T> Slot<T> {
    fn new(value: Option<Arc<T>>) -> Self {
        Self(Mutex::new(value))
    }

    /// What is in it now; `None`: a secret is missing.
    pub(crate) fn current(&self) -> Option<Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts something else into it.
    pub(crate) fn set(&self, value: Option<Arc<T>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// What a context was made of.
#[derive(Debug)]
struct Shown {
    identities: Vec<Arc<Identity>>,
    rules: Arc<ValidationRules>,
}

/// TLS of a filter chain (DownstreamTlsContext).
#[derive(Debug)]
pub(crate) struct DownstreamTls {
    /// As configured.
    pub(crate) settings: DownstreamSettings,
    /// What handshakes are made from.
    pub(crate) context: Slot<ServerContext>,
    /// What that was made of, for /certs.
    shown: Slot<Shown>,
}

/// TLS towards the endpoints of a cluster (UpstreamTlsContext).
#[derive(Debug)]
pub(crate) struct UpstreamTls {
    /// As configured.
    pub(crate) settings: UpstreamSettings,
    /// What handshakes are made from.
    pub(crate) context: Slot<ClientConfig>,
    /// What that was made of, for /certs.
    shown: Slot<Shown>,
}

/// What is known of a TLS session.
#[derive(Debug)]
pub(crate) struct TlsInfo {
    /// `%DOWNSTREAM_TLS_VERSION%`.
    pub(crate) version: Option<ProtocolVersion>,
    /// `%DOWNSTREAM_TLS_CIPHER%`.
    pub(crate) cipher: Option<CipherSuite>,
    /// `%DOWNSTREAM_TLS_GROUP%`.
    pub(crate) group: Option<NamedGroup>,
    /// The protocol that was agreed upon (ALPN).
    pub(crate) alpn: Option<Box<str>>,
    /// What the peer has shown.
    pub(crate) peer: Option<PeerCertificates>,
    /// Whether that was found to be in order, not merely let pass (`ACCEPT_UNTRUSTED`).
    pub(crate) trusted: bool,
    /// What we have shown.
    pub(crate) local: Option<Arc<Identity>>,
}

impl TlsInfo {
    fn new(session: &CommonState, findings: &Findings) -> Self {
        Self {
            version: session.protocol_version(),
            cipher: session.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: session.negotiated_key_exchange_group().map(|group| group.name()),
            alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into()),
            peer: session
                .peer_certificates()
                .or(findings.refused.as_deref())
                .and_then(|chain| PeerCertificates::new(chain.to_vec())),
            trusted: session.peer_certificates().is_some() && findings.failure.is_none(),
            local: findings.local.clone(),
        }
    }

    /// Whether HTTP/2 was agreed upon.
    pub(crate) fn is_http2(&self) -> bool {
        self.alpn.as_deref() == Some("h2")
    }
}

/// There is no session.
#[derive(Debug, Default)]
pub(crate) struct NoSession {
    /// The transport's words, if it has any.
    pub(crate) reason: Option<Box<str>>,
    /// What was known when it failed.
    pub(crate) info: Option<Box<TlsInfo>>,
}

impl NoSession {
    fn because(reason: &str) -> Self {
        Self { reason: Some(reason.into()), info: None }
    }
}

/// Shakes hands with a client; `buffered` are bytes that were read of it already.
pub(crate) async fn accept(
    tls: &DownstreamTls,
    stats: Option<&TlsStats>,
    mut socket: Socket,
    buffered: BytesMut,
) -> Result<(Socket, TlsInfo), NoSession> {
    let Some(context) = tls.context.current() else {
        if let Some(stats) = stats {
            stats.not_ready(true);
        }
        return Err(NoSession::because("TLS error: Secret is not supplied by SDS"));
    };
    let mut early = buffered;
    let mut config = Arc::clone(&context.config);
    if !config.alpn_protocols.is_empty() {
        // rustls refuses clients with whom we have no protocol in common; Envoy goes on without.
        let offered = loop {
            match inspect(&early) {
                Verdict::Yes(hello) => break hello.application_protocols,
                Verdict::No => break Vec::new(),
                Verdict::NeedMore => {}
            }
            use tokio::io::AsyncReadExt;
            match socket.read_buf(&mut early).await {
                Ok(0) | Err(_) => return Err(NoSession::default()),
                Ok(_) => {}
            }
        };
        let common = |ours: &Vec<u8>| offered.iter().any(|theirs| theirs.as_bytes() == ours.as_slice());
        if !offered.is_empty() && !config.alpn_protocols.iter().any(common) {
            config = Arc::clone(&context.without_alpn);
        }
    }
    let session = UnbufferedServerConnection::new(config).map_err(|error| words(&error))?;
    let stream = TlsStream::new(socket, Session::Server(session), early.to_vec());
    let mut findings = Findings::default();
    let (socket, info) = complete(stream, stats, &mut findings).await?;
    Ok((socket, info))
}

/// Which protocols a client offers by ALPN.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Offer<'a> {
    /// Those of the transport socket.
    Configured,
    /// These, whatever the transport socket says.
    Instead(&'a [Vec<u8>]),
    /// Those of the transport socket, if it has some, else these.
    Otherwise(&'static [&'static [u8]]),
}

/// Whom a client connects to.
pub(crate) struct Callee {
    /// What it is called (SNI).
    pub(crate) name: ServerName<'static>,
    /// Another host that its certificate must be for, if any (`auto_san_validation`).
    pub(crate) expected: Option<Arc<str>>,
}

/// Shakes hands with a server.
pub(crate) async fn connect(
    tls: &UpstreamTls,
    offer: Offer<'_>,
    stats: Option<&TlsStats>,
    socket: Socket,
    callee: Callee,
) -> Result<(Socket, TlsInfo), NoSession> {
    let Some(mut config) = tls.context.current() else {
        if let Some(stats) = stats {
            stats.not_ready(false);
        }
        return Err(NoSession::because("TLS error: Secret is not supplied by SDS"));
    };
    match offer {
        Offer::Instead(protocols) if !protocols.is_empty() => {
            Arc::make_mut(&mut config).alpn_protocols = protocols.to_vec();
        }
        Offer::Otherwise(protocols) if config.alpn_protocols.is_empty() && !protocols.is_empty() => {
            let protocols = protocols.iter().map(|protocol| protocol.to_vec());
            Arc::make_mut(&mut config).alpn_protocols = protocols.collect();
        }
        Offer::Configured | Offer::Instead(_) | Offer::Otherwise(_) => {}
    }
    let Callee { name, expected } = callee;
    if expected.is_some() {
        // Another connection's session may not have been checked for this host.
        Arc::make_mut(&mut config).resumption = Resumption::disabled();
    }
    let session = UnbufferedClientConnection::new(config, name).map_err(|error| words(&error))?;
    let mut stream = TlsStream::new(socket, Session::Client(session), Vec::new());
    stream.expect(expected);
    let mut findings = Findings::default();
    let (socket, info) = complete(stream, stats, &mut findings).await?;
    Ok((socket, info))
}

/// What a server is called: its SNI, else its address, which is not told to it.
pub(crate) fn server_name(name: Option<&str>, address: Option<SocketAddr>) -> ServerName<'static> {
    let named = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
    named.unwrap_or_else(|| {
        let ip = address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip());
        ServerName::IpAddress(ip.into())
    })
}

async fn complete(
    mut stream: TlsStream,
    stats: Option<&TlsStats>,
    findings: &mut Findings,
) -> Result<(Socket, TlsInfo), NoSession> {
    match stream.handshake(findings).await {
        Ok(()) => {
            if let Some(stats) = stats {
                stats.established(stream.state(), findings);
                stream.count_faults(stats.counts().clone());
            }
            let info = TlsInfo::new(stream.state(), findings);
            Ok((Socket::Tls(Box::new(stream)), info))
        }
        Err(HandshakeFailure::Tls(error, first)) => {
            if let Some(stats) = stats {
                stats.failed(&error, findings);
            }
            let http = matches!(&first, b"GET /" | b"POST " | b"HEAD " | b"PUT /" | b"OPTIO" | b"DELET");
            let text = if http {
                leno_tls::plain_http()
            } else {
                leno_tls::describe(&error, findings.failure.as_ref())
            };
            let info = Some(Box::new(TlsInfo::new(stream.state(), findings)));
            Err(NoSession { reason: Some(text.into()), info })
        }
        Err(HandshakeFailure::Socket(error)) => {
            let reason = leno_tls::describe_socket(&error).map(Into::into);
            Err(NoSession { reason, info: None })
        }
    }
}

fn words(error: &rustls::Error) -> NoSession {
    NoSession::because(&leno_tls::describe(error, None))
}
