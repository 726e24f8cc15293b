//! What upstream connections take over of the downstream connection that they are made for: its
//! source address (envoy.filters.listener.original_src), or what their PROXY protocol header
//! says. Such connections have pools of their own, one for each `Via`.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::pool::Pool;
use crate::cluster::{Cluster, Metadata, ServerNames, UpstreamProtocol};
use crate::http::headers::HeaderMap;
use crate::proxy_protocol::Origin;
use crate::telemetry::stream_info::{ClusterFacts, ConnectionInfo, DynamicMetadata};

/// What is taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Via {
    /// For the PROXY protocol header.
    pub(crate) origin: Option<Origin>,
    /// Where connections come from; port 0: any.
    pub(crate) source: Option<SocketAddr>,
    /// SO_MARK of their packets; 0: none.
    pub(crate) mark: u32,
    /// The downstream connection that they are for alone (`connection_pool_per_downstream_connection`).
    pub(crate) own: Option<u64>,
    /// What TLS servers are called, in place of what the transport socket says (`auto_sni`).
    pub(crate) sni: Option<Arc<str>>,
    /// What their certificates must be for (`auto_san_validation`).
    pub(crate) san: Option<Arc<str>>,
    /// What they offer by ALPN, whatever the transport socket says (`istio.alpn`).
    pub(crate) alpn: Option<Arc<[Vec<u8>]>>,
}

/// What connections offer by ALPN for requests, by the protocol that these are sent with.
#[derive(Debug, Default)]
pub(crate) struct AlpnOverrides {
    /// For HTTP/1.1.
    pub(crate) http1: Option<Arc<[Vec<u8>]>>,
    /// For HTTP/2, and where ALPN is to decide.
    pub(crate) http2: Option<Arc<[Vec<u8>]>>,
}

impl AlpnOverrides {
    /// What connections to a cluster offer for a request that came by HTTP/2 or not.
    fn find(
        &self,
        cluster: &Cluster,
        facts: &ClusterFacts,
        downstream_http2: bool,
    ) -> Option<&Arc<[Vec<u8>]>> {
        if facts.mesh().is_some_and(|mesh| mesh.keeps_alpn) {
            return None;
        }
        let http2 = match &cluster.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2(_) | UpstreamProtocol::Auto(_) => true,
            UpstreamProtocol::Downstream(_) => downstream_http2,
        };
        if http2 { self.http2.as_ref() } else { self.http1.as_ref() }
    }
}

/// The metadata that an internal connection to this endpoint takes along.
pub(crate) fn passed(cluster: &Cluster, endpoint: &Metadata) -> DynamicMetadata {
    let mut passed = DynamicMetadata::new();
    for source in &cluster.passthrough {
        let from = if source.of_cluster { &cluster.metadata } else { endpoint };
        if let Some(serde_json::Value::Object(values)) = from.get(&*source.namespace) {
            passed.values_mut(&source.namespace).extend(values.clone());
        }
    }
    passed
}

/// What of a request connections to an endpoint may take over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    /// The downstream connection.
    pub(crate) connection: &'a ConnectionInfo,
    /// It came by HTTP/2.
    pub(crate) http2: bool,
    /// PROXY protocol headers are to speak of the client.
    pub(crate) announce: bool,
    /// The host that it asks for, if endpoints are called by it.
    pub(crate) host: Option<&'a Arc<str>>,
    /// What is offered by ALPN, if a filter says so and the endpoint speaks TLS.
    pub(crate) alpn: Option<&'a AlpnOverrides>,
}

/// What connections for a request take over.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// What few have in common.
    pub(crate) own: Option<Via>,
    /// What is offered by ALPN, which all requests through a connection manager have in common.
    pub(crate) alpn: Option<&'a Arc<[Vec<u8>]>>,
}

impl Wanted<'_> {
    /// As one.
    pub(crate) fn into_via(self) -> Via {
        Via { alpn: self.alpn.cloned(), ..self.own.unwrap_or_default() }
    }
}

impl Via {
    /// What connections for requests to a cluster take over; most take over nothing.
    #[inline]
    pub(crate) fn of_request<'a>(
        cluster: &Cluster,
        facts: &ClusterFacts,
        asking: Asking<'a>,
    ) -> Option<Wanted<'a>> {
        let Asking { connection, http2, announce, host, alpn } = asking;
        let alpn = alpn.and_then(|overrides| overrides.find(cluster, facts, http2));
        let found = &connection.found;
        let is_plain = found.origin.is_none()
            && found.original_source.is_none()
            && (cluster.http.server_names.is_none() || host.is_none())
            && !cluster.per_connection();
        // What is handed over is large: it is not even made for nothing.
        if is_plain {
            return alpn.map(|alpn| Wanted { own: None, alpn: Some(alpn) });
        }
        match (Self::of_client(cluster, connection, announce, host), alpn) {
            (None, None) => None,
            (own, alpn) => Some(Wanted { own, alpn }),
        }
    }

    fn of_client(
        cluster: &Cluster,
        connection: &ConnectionInfo,
        announce: bool,
        host: Option<&Arc<str>>,
    ) -> Option<Self> {
        let own = cluster.per_connection().then_some(connection.id);
        let named = cluster.http.server_names.as_ref().zip(host);
        let origin = connection.found.origin.as_deref().filter(|_| announce && cluster.announces());
        let via = Self::of(origin.cloned(), connection);
        let via = if own.is_some() { Some(Self { own, ..via.unwrap_or_default() }) } else { via };
        let Some((names, host)) = named else { return via };
        let is_address = host.parse::<IpAddr>().is_ok();
        Some(Self {
            sni: (names.sni && !is_address).then(|| Arc::clone(host)),
            san: names.san.then(|| Arc::clone(host)),
            ..via.unwrap_or_default()
        })
    }

    /// What the connection of a TCP session takes over.
    pub(crate) fn of_session(cluster: &Cluster, connection: &ConnectionInfo) -> Option<Self> {
        let own = || Origin { source: connection.remote, destination: connection.local, tlvs: Vec::new() };
        let origin =
            cluster.announces().then(|| connection.found.origin.as_deref().cloned().unwrap_or_else(own));
        Self::of(origin, connection)
    }

    fn of(origin: Option<Origin>, connection: &ConnectionInfo) -> Option<Self> {
        let Some(source) = connection.found.original_source else {
            return origin.is_some().then(|| Self { origin, ..Self::default() });
        };
        let port = if source.port { connection.remote.port() } else { 0 };
        let address = SocketAddr::new(connection.remote.ip(), port);
        Some(Self { origin, source: Some(address), mark: source.mark, ..Self::default() })
    }
}

/// The host that a request asks for, as far as this cluster's endpoints are called by it.
#[inline]
pub(crate) fn host(cluster: &Cluster, head: &HeaderMap) -> Option<Arc<str>> {
    host_by(cluster.http.server_names.as_ref()?, head)
}

fn host_by(names: &ServerNames, head: &HeaderMap) -> Option<Arc<str>> {
    let header = names.header.as_ref().and_then(|header| head.find(header));
    let authority = std::str::from_utf8(header.unwrap_or_else(|| head.authority())).ok()?;
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
            _ => authority,
        },
    };
    (!host.is_empty()).then(|| host.into())
}

/// The pools of one endpoint that are not for everybody.
#[derive(Default)]
pub(crate) struct OwnPools(RefCell<Vec<Rc<RefCell<Pool>>>>);

impl OwnPools {
    /// The pool for these connections; unused ones are forgotten meanwhile.
    pub(crate) fn find(&self, via: Via) -> Rc<RefCell<Pool>> {
        let mut pools = self.0.borrow_mut();
        let wanted = |pool: &Rc<RefCell<Pool>>| pool.borrow().via.as_deref() == Some(&via);
        if let Some(pool) = pools.iter().find(|pool| wanted(pool)) {
            return Rc::clone(pool);
        }
        pools.retain(|pool| Rc::strong_count(pool) > 1 || !pool.borrow().is_unused());
        let pool = Rc::new(RefCell::new(Pool::taking_over(Some(Rc::new(via)))));
        pools.push(Rc::clone(&pool));
        pool
    }

    /// Whether there is no connection in any of them, and nobody waits for one.
    pub(crate) fn are_unused(&self) -> bool {
        self.0.borrow().iter().all(|pool| pool.borrow().is_unused())
    }

    /// Closes what is idle and lets what is in use end, in all of them.
    pub(crate) fn drain(&self) {
        self.0.borrow().iter().for_each(super::drain);
    }
}
