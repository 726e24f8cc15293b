//! Listener filters: what can be learnt of a connection before its filter chain is chosen.
//!
//! Bytes that had to be read stay in `Accepted::buffered`, from where the network filters
//! take them first. The inspectors are pure functions of the bytes seen so far; the only
//! I/O is in `run`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Buf;
use tokio::io::AsyncReadExt;

use crate::io::Accepted;
use crate::listener::accept;
use crate::listener::proxy_protocol::{ProxyProtocol, ProxyProtocolStats};
use crate::listener::{Listener, ListenerFilterKind, ListenerPredicate};
use crate::proxy_protocol::read::{Reading, begun, read};
use crate::telemetry::stats::{ThreadStats, stats_scope};
use crate::telemetry::stream_info::Found;

pub(crate) mod http;
pub(crate) mod tls;

stats_scope! {
    /// `tls_inspector.`
    pub(crate) struct TlsInspectorStats {
        counter alpn_found;
        counter alpn_not_found;
        counter client_hello_too_large;
        counter sni_found;
        counter sni_not_found;
        counter tls_found;
        counter tls_not_found;
        histogram bytes_processed;
    }
}

stats_scope! {
    /// `http_inspector.`
    pub(crate) struct HttpInspectorStats {
        counter http10_found;
        counter http11_found;
        counter http2_found;
        counter http_not_found;
        counter parse_error;
        counter read_error;
    }
}

stats_scope! {
    /// `listener_local_ratelimit.STAT_PREFIX.`
    pub(crate) struct ListenerRateLimitStats {
        counter rate_limited;
    }
}

/// The stats of a listener filter, made once for each listener.
#[derive(Debug)]
pub(crate) enum FilterStats {
    /// It has none.
    None,
    /// TLS inspector.
    Tls(TlsInspectorStats),
    /// HTTP inspector.
    Http(HttpInspectorStats),
    /// PROXY protocol.
    ProxyProtocol(ProxyProtocolStats),
    /// Local rate limit.
    RateLimit(ListenerRateLimitStats),
}

impl FilterStats {
    /// Those of all filters of a listener, in order.
    pub(crate) fn all(listener: &Listener, thread: &ThreadStats) -> Vec<FilterStats> {
        let stats = listener.listener_filters.iter().map(|filter| match &filter.kind {
            ListenerFilterKind::OriginalDst | ListenerFilterKind::OriginalSrc(_) => FilterStats::None,
            ListenerFilterKind::TlsInspector(_) => {
                FilterStats::Tls(TlsInspectorStats::new(thread, "tls_inspector."))
            }
            ListenerFilterKind::HttpInspector => {
                FilterStats::Http(HttpInspectorStats::new(thread, "http_inspector."))
            }
            ListenerFilterKind::LocalRateLimit(filter) => {
                FilterStats::RateLimit(ListenerRateLimitStats::new(thread, &filter.prefix))
            }
            ListenerFilterKind::ProxyProtocol(filter) => {
                FilterStats::ProxyProtocol(ProxyProtocolStats::new(thread, &filter.stats))
            }
        });
        stats.collect()
    }
}

/// What is known of a connection before its filter chain is chosen: the socket's addresses, and
/// what the listener filters found out.
#[derive(Debug)]
pub(crate) struct Inspected {
    /// Where it comes from.
    pub(crate) remote: SocketAddr,
    /// Where it goes.
    pub(crate) local: SocketAddr,
    /// The local address of the socket itself.
    pub(crate) direct_local: SocketAddr,
    /// Whether `local` is not the socket's but was restored.
    pub(crate) restored: bool,
    /// The connection begins with a TLS ClientHello.
    pub(crate) tls: bool,
    /// Its server name (SNI).
    pub(crate) server_name: Option<Box<str>>,
    /// ALPN of the ClientHello, or what plain HTTP looks like: `http/1.0`, `http/1.1`, `h2c`.
    pub(crate) application_protocols: Vec<Box<str>>,
    /// What those behind may read.
    pub(crate) found: Found,
}

impl Inspected {
    /// Of a connection between these addresses.
    pub(crate) fn new(remote: SocketAddr, local: SocketAddr) -> Self {
        Self {
            remote,
            local,
            direct_local: local,
            restored: false,
            tls: false,
            server_name: None,
            application_protocols: Vec::new(),
            found: Found::default(),
        }
    }
}

/// What an inspector says of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    /// Cannot tell yet.
    NeedMore,
    /// It is.
    Yes(T),
    /// It is not.
    No,
}

/// `tls_inspector`'s settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TlsInspection {
    /// `max_client_hello_size`, 16 KiB by default.
    pub(crate) limit: usize,
    /// `close_connection_on_client_hello_parsing_errors`.
    pub(crate) only_tls: bool,
}

/// Bytes that the HTTP inspector looks at, at most.
const HTTP_LIMIT: usize = 64 * 1024;

/// Runs the listener's filters in order on one connection. An error means that it is to be
/// closed: `UnexpectedEof` if the client was the one to close it, `PermissionDenied` if a filter
/// did that counts it itself.
pub(crate) async fn run(
    listener: &Listener,
    stats: &[FilterStats],
    accepted: &mut Accepted,
    found: &mut Inspected,
) -> io::Result<()> {
    for (filter, stats) in listener.listener_filters.iter().zip(stats) {
        if filter.disabled.as_ref().is_some_and(|predicate| predicate.matches(found.local.port())) {
            continue;
        }
        match (&filter.kind, stats) {
            (ListenerFilterKind::OriginalDst, _) => {
                accept::restore(&accepted.socket, listener.transparent, found);
            }
            (ListenerFilterKind::OriginalSrc(source), _) => found.found.original_source = Some(*source),
            (ListenerFilterKind::TlsInspector(settings), FilterStats::Tls(stats)) => {
                inspect_tls(accepted, *settings, stats, found).await?;
            }
            (ListenerFilterKind::HttpInspector, FilterStats::Http(stats)) => {
                inspect_http(accepted, stats, found).await?;
            }
            (ListenerFilterKind::ProxyProtocol(filter), FilterStats::ProxyProtocol(stats)) => {
                read_proxy_header(accepted, filter, stats, found).await?;
            }
            (ListenerFilterKind::LocalRateLimit(limit), FilterStats::RateLimit(stats))
                if limit.enabled && !limit.bucket.take(Instant::now()) =>
            {
                stats.rate_limited().inc();
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            // Each filter has the stats of its kind; a socket within its rate goes on.
            _ => {}
        }
    }
    Ok(())
}

async fn inspect_tls(
    accepted: &mut Accepted,
    settings: TlsInspection,
    stats: &TlsInspectorStats,
    found: &mut Inspected,
) -> io::Result<()> {
    let verdict = read_until(accepted, settings.limit, tls::inspect).await?;
    stats.bytes_processed().record(accepted.buffered.len() as u64);
    match verdict {
        Verdict::Yes(hello) => {
            stats.tls_found().inc();
            if hello.server_name.is_some() {
                stats.sni_found().inc();
            } else {
                stats.sni_not_found().inc();
            }
            if hello.application_protocols.is_empty() {
                stats.alpn_not_found().inc();
            } else {
                stats.alpn_found().inc();
            }
            found.tls = true;
            found.server_name = hello.server_name;
            found.application_protocols = hello.application_protocols;
            Ok(())
        }
        Verdict::NeedMore => {
            stats.client_hello_too_large().inc();
            Err(io::ErrorKind::InvalidData.into())
        }
        Verdict::No => {
            stats.tls_not_found().inc();
            if settings.only_tls { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
        }
    }
}

async fn inspect_http(
    accepted: &mut Accepted,
    stats: &HttpInspectorStats,
    found: &mut Inspected,
) -> io::Result<()> {
    if found.tls {
        return Ok(());
    }
    let Verdict::Yes(protocol) = read_until(accepted, HTTP_LIMIT, http::inspect).await? else {
        stats.http_not_found().inc();
        return Ok(());
    };
    match protocol {
        "http/1.0" => stats.http10_found().inc(),
        "http/1.1" => stats.http11_found().inc(),
        _ => stats.http2_found().inc(),
    }
    found.application_protocols = vec![protocol.into()];
    Ok(())
}

async fn read_proxy_header(
    accepted: &mut Accepted,
    filter: &Arc<ProxyProtocol>,
    stats: &ProxyProtocolStats,
    found: &mut Inspected,
) -> io::Result<()> {
    loop {
        // Where none is needed, one that is not allowed is none.
        let passed_over = begun(&accepted.buffered).is_some_and(|version| filter.disallows(version));
        match read(&accepted.buffered) {
            _ if filter.optional && passed_over => {
                stats.not_found_allowed().inc();
                return Ok(());
            }
            Reading::NeedMore => {}
            Reading::Absent if filter.optional => {
                stats.not_found_allowed().inc();
                return Ok(());
            }
            Reading::Absent | Reading::Endless => {
                stats.not_found_disallowed().inc();
                return Err(io::ErrorKind::InvalidData.into());
            }
            Reading::Invalid(version) if filter.disallows(version) => return Err(stats.disallowed(version)),
            Reading::Invalid(version) => return Err(stats.invalid(version)),
            Reading::Header(header) if filter.disallows(header.version) => {
                return Err(stats.disallowed(header.version));
            }
            Reading::Header(header) => {
                stats.found(header.version);
                accepted.buffered.advance(header.length);
                if let Some((source, destination)) = header.addresses {
                    found.remote = source;
                    found.restored |= destination != found.local;
                    found.local = destination;
                }
                filter.keep(header, found.remote, found.local, &mut found.found);
                return Ok(());
            }
        }
        fill(accepted).await?;
    }
}

/// Reads until `inspect` has a verdict; `NeedMore` if so many bytes do not do.
async fn read_until<T>(
    accepted: &mut Accepted,
    limit: usize,
    inspect: impl Fn(&[u8]) -> Verdict<T>,
) -> io::Result<Verdict<T>> {
    loop {
        match inspect(&accepted.buffered) {
            Verdict::NeedMore if accepted.buffered.len() < limit => fill(accepted).await?,
            verdict => return Ok(verdict),
        }
    }
}

/// Reads more. A client that closes before it can be told what it wants gets nothing.
async fn fill(accepted: &mut Accepted) -> io::Result<()> {
    match accepted.socket.read_buf(&mut accepted.buffered).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

impl ListenerPredicate {
    /// Whether it holds for a connection to this destination port.
    fn matches(&self, port: u16) -> bool {
        match self {
            ListenerPredicate::Or(rules) => rules.iter().any(|rule| rule.matches(port)),
            ListenerPredicate::And(rules) => rules.iter().all(|rule| rule.matches(port)),
            ListenerPredicate::Not(rule) => !rule.matches(port),
            ListenerPredicate::Any => true,
            ListenerPredicate::DestinationPort(start, end) => (*start..*end).contains(&port),
        }
    }
}
