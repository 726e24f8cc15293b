//! One check of one host: connecting, asking and judging the answer, by protocol.
//!
//! A [`Probe`] keeps its connection between checks where `reuse_connection` lets it. Connections
//! are made as those of the cluster are, by [`connect`].

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper_util::rt::TokioIo;
use memchr::memmem;
use tokio::task::JoinHandle;

use crate::cluster::health::config::{Check, Settings};
use crate::cluster::health::session::Outcome;
use crate::cluster::pool::connect;
use crate::cluster::{Cluster, EndpointAddress, EndpointConfig, Metadata};
use crate::http::headers::HeaderMap;
use crate::http::route::mutation::HeaderMutations;
use crate::io::Socket;
use crate::proxy_protocol::UpstreamHeader;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::stream_info::{ClusterFacts, ConnectionInfo, Protocol, StreamInfo};
use crate::tls::{Offer, Transport, UpstreamTls};

mod grpc;
mod http;
mod tcp;

/// `user-agent` of checks.
const USER_AGENT: &str = "Envoy/HC";

/// Whom to ask.
pub(super) struct Target {
    pub(super) cluster: Arc<Cluster>,
    pub(super) settings: Arc<Settings>,
    /// The host's own address.
    pub(super) host: EndpointAddress,
    /// Where it is checked (`health_check_config`).
    pub(super) address: EndpointAddress,
    /// What lies between.
    pub(super) transport: Transport<UpstreamTls>,
    /// The PROXY protocol header in front of all.
    proxy_header: Option<Arc<UpstreamHeader>>,
    /// `health_check_config.hostname`
    pub(super) hostname: Option<Arc<str>>,
}

impl Target {
    pub(super) fn new(cluster: Arc<Cluster>, settings: Arc<Settings>, endpoint: &EndpointConfig) -> Self {
        let check = endpoint.check();
        let mut address = check.address.clone().unwrap_or_else(|| endpoint.address.clone());
        if let (Some(port), EndpointAddress::Ip(ip)) = (check.port, &mut address) {
            ip.set_port(port);
        }
        let criteria = settings.transport_criteria.as_ref();
        let values = criteria.or_else(|| endpoint.metadata.get("envoy.transport_socket_match"));
        let transport = cluster.transport_matching(values).clone();
        let proxy_header = cluster.proxy_header_matching(values).cloned();
        let host = endpoint.address.clone();
        Self { cluster, settings, host, address, transport, proxy_header, hostname: check.hostname.clone() }
    }

    /// The name that the host is addressed by.
    fn authority<'a>(&'a self, configured: Option<&'a str>) -> &'a str {
        self.hostname.as_deref().or(configured).unwrap_or(&self.cluster.name)
    }
}

/// What asks one host.
pub(super) enum Probe {
    Http(http::HttpProbe),
    Grpc(grpc::GrpcProbe),
    Tcp(tcp::TcpProbe),
}

impl Probe {
    pub(super) fn new(check: &Check) -> Self {
        match check {
            Check::Http(_) => Probe::Http(http::HttpProbe::default()),
            Check::Grpc(_) => Probe::Grpc(grpc::GrpcProbe::default()),
            Check::Tcp(_) => Probe::Tcp(tcp::TcpProbe::default()),
        }
    }

    /// Asks once. Not cancelled by itself: the caller gives up after the timeout.
    pub(super) async fn check(&mut self, target: &Target, verdicts: &Verdicts<'_>) -> Outcome {
        match (self, &target.settings.check) {
            (Probe::Http(probe), Check::Http(check)) => probe.check(target, check, verdicts).await,
            (Probe::Grpc(probe), Check::Grpc(check)) => probe.check(target, check).await,
            (Probe::Tcp(probe), Check::Tcp(check)) => probe.check(target, check).await,
            // The probe was made for this very check.
            _ => Outcome::NETWORK,
        }
    }

    /// The check that was given up took too long.
    pub(super) fn timed_out(&mut self, target: &Target) {
        match self {
            Probe::Http(probe) => probe.close(),
            // The stream was reset when it was given up.
            Probe::Grpc(_) if target.settings.reuse => {}
            Probe::Grpc(probe) => probe.close(),
            Probe::Tcp(probe) => probe.close(),
        }
    }

    /// Waits until a kept connection breaks in a way that counts as a failed check.
    pub(super) async fn broken(&mut self) {
        match self {
            Probe::Tcp(probe) => probe.broken().await,
            // The next check opens another one.
            Probe::Http(_) | Probe::Grpc(_) => std::future::pending().await,
        }
    }
}

pub(super) use http::Verdicts;

/// A connection to where the host is checked, made as the cluster makes its own; the timeout of
/// the check is the only one.
async fn connect(target: &Target) -> Option<Socket> {
    let metadata = Metadata::default();
    let header = target.proxy_header.as_deref();
    let socket = connect::attempt(&target.cluster, &target.address, &metadata, header, None).await.ok()?;
    let peer = connect::Peer {
        cluster: &target.cluster,
        address: &target.address,
        others: &[],
        metadata: &metadata,
        via: None,
        hostname: target.hostname.as_deref(),
        transport: &target.transport,
        offer: Offer::Instead(&target.settings.alpn),
        stats: None,
    };
    connect::secure(peer, socket).await.ok().map(|(socket, _)| socket)
}

/// The task that drives a connection; it ends with this.
struct Driver(JoinHandle<()>);

impl Driver {
    fn spawn(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(connection))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn io(socket: Socket) -> TokioIo<Socket> {
    TokioIo::new(socket)
}

/// The headers of a request: the given ones, changed as configured.
fn headers(
    target: &Target,
    protocol: Protocol,
    given: &[(&str, &str)],
    mutations: &HeaderMutations,
) -> ::http::HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in given {
        map.append(name.as_bytes(), value.as_bytes());
    }
    if !mutations.is_empty() {
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let now = Instant::now();
        let connection = ConnectionInfo::plain(0, local, local, now);
        let mut info = StreamInfo::new(Rc::new(connection), Some(protocol), now, SystemTime::now());
        if let EndpointAddress::Ip(address) = &target.host {
            info.upstream.host = Some(*address);
        }
        info.upstream.cluster = Some(Rc::new(ClusterFacts::from(&*target.cluster)));
        mutations.apply(&mut map, &FormatContext::new(&info));
    }
    let fields = map.iter().filter_map(|(name, value)| {
        let name = ::http::HeaderName::from_bytes(name).ok()?;
        Some((name, ::http::HeaderValue::from_bytes(value).ok()?))
    });
    let mut headers = ::http::HeaderMap::new();
    for (name, value) in fields {
        headers.append(name, value);
    }
    headers
}

/// The absolute form that HTTP/2 requests need.
fn absolute(target: &Target, authority: &str, path: &::http::Uri) -> Option<::http::Uri> {
    // Envoy would send names of clusters as they are; what cannot be an authority is replaced
    // by the address, which every host must be content with.
    let authority = ::http::uri::Authority::try_from(authority)
        .or_else(|_| ::http::uri::Authority::try_from(target.address.to_string()));
    let path = path.path_and_query().map_or("/", |path| path.as_str());
    let scheme = if target.transport.tls().is_some() { "https" } else { "http" };
    ::http::Uri::builder().scheme(scheme).authority(authority.ok()?).path_and_query(path).build().ok()
}

/// Whether all parts are there, one after the other, whatever is between them.
fn contains(haystack: &[u8], parts: &[bytes::Bytes]) -> bool {
    let mut rest = haystack;
    parts.iter().all(|part| match memmem::find(rest, part) {
        Some(place) => {
            rest = rest.get(place + part.len()..).unwrap_or_default();
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn parts_must_come_in_order() {
        let parts = |texts: &[&'static str]| texts.iter().map(|text| (*text).into()).collect::<Vec<_>>();
        assert!(contains(b"anything", &[]));
        assert!(contains(b"one two one", &parts(&["one", "two"])));
        assert!(contains(b"one two one", &parts(&["one", "one"])));
        assert!(!contains(b"one two", &parts(&["two", "one"])));
        assert!(!contains(b"aa", &parts(&["aa", "a"])));
    }
}
