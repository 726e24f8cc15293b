//! What upstream connections take over of the downstream connection that they are made for: its
//! source address (envoy.filters.listener.original_src), or what their PROXY protocol header
//! says. Such connections have pools of their own, one for each `Via`.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::pool::Pool;
use crate::cluster::{Cluster, Metadata, UpstreamProtocol};
use crate::http::headers::HeaderMap;
use crate::proxy_protocol::Origin;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};

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
    pub(crate) fn find(&self, cluster: &Cluster, downstream_http2: bool) -> Option<&Arc<[Vec<u8>]>> {
        let own = cluster.metadata.get("istio").and_then(|istio| istio.get("alpn_override"));
        if own.and_then(serde_json::Value::as_str) == Some("false") {
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

impl Via {
    /// What connections for requests take over; most take over nothing.
    /// `announce`: PROXY protocol headers are to speak of the client. `host`: what the request asks
    /// for, if endpoints are called by it.
    pub(crate) fn of_request(
        cluster: &Cluster,
        connection: &ConnectionInfo,
        announce: bool,
        host: Option<&Arc<str>>,
    ) -> Option<Self> {
        let found = &connection.found;
        let own = cluster.per_connection().then_some(connection.id);
        let named = cluster.http.server_names.as_ref().zip(host);
        if found.origin.is_none() && found.original_source.is_none() && own.is_none() && named.is_none() {
            return None;
        }
        let origin = found.origin.as_deref().filter(|_| announce && cluster.announces());
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
pub(crate) fn host(cluster: &Cluster, head: &HeaderMap) -> Option<Arc<str>> {
    let names = cluster.http.server_names.as_ref()?;
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
        let pool = Rc::new(RefCell::new(Pool::default()));
        pool.borrow_mut().via = Some(Rc::new(via));
        pools.push(Rc::clone(&pool));
        pool
    }

    /// Closes what is idle and lets what is in use end, in all of them.
    pub(crate) fn drain(&self) {
        self.0.borrow().iter().for_each(super::drain);
    }
}
