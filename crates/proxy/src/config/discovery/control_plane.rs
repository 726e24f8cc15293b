//! Connections to control planes: which clusters they may be reached by, and how.
//!
//! The xDS client has connections of its own. They are made as the cluster says, TLS included, and
//! speak HTTP/2 whatever it says; where they go is resolved anew for each.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use http::{HeaderMap, HeaderName, HeaderValue};
use leno_base::Name;
use leno_xds::client::grpc::{self, ConnectError, Connection};
use tonic::transport::Channel;

use crate::cluster::pool::connect::{self, Peer};
use crate::cluster::{Cluster, Discovery, EndpointAddress, UpstreamProtocol};
use crate::config::source::XdsServer;
use crate::tls::Offer;

/// Clusters, some of which xDS servers can be reached by: those of the bootstrap, and what CDS has brought (Istio's
/// `sds-external`).
#[derive(Debug, Default)]
pub(crate) struct XdsClusters(RwLock<HashMap<Name, Arc<Cluster>>>);

impl XdsClusters {
    /// Those of the bootstrap.
    pub(crate) fn new<'c>(clusters: impl Iterator<Item = &'c Arc<Cluster>>) -> Self {
        let clusters = clusters.map(|cluster| (cluster.name.clone(), Arc::clone(cluster)));
        Self(RwLock::new(clusters.collect()))
    }

    /// Adds one, or puts it in place of another of its name, which connections that are made from now on go by.
    pub(crate) fn put(&self, cluster: Arc<Cluster>) {
        // Others serve nobody, and there may be very many.
        let serves = matches!(
            &cluster.discovery,
            Discovery::Static(_) | Discovery::StrictDns(_) | Discovery::LogicalDns(_)
        );
        if serves {
            let mut clusters = self.0.write().unwrap_or_else(PoisonError::into_inner);
            clusters.insert(cluster.name.clone(), cluster);
        } else {
            self.remove(&cluster.name);
        }
    }

    /// Forgets one; streams that go by it are not ended.
    pub(crate) fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// Why there is none that an xDS server can be reached by.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Cluster>, String> {
        let clusters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(cluster) = clusters.get(name) else {
            return Err(format!("unknown gRPC client cluster '{name}'"));
        };
        match &cluster.discovery {
            Discovery::Static(_) | Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {
                Ok(Arc::clone(cluster))
            }
            Discovery::Eds { .. }
            | Discovery::OriginalDst { .. }
            | Discovery::Aggregate(_)
            | Discovery::DynamicForwardProxy(_) => {
                Err(format!("cluster '{name}' must be STATIC or resolved by DNS"))
            }
        }
    }

    /// Whether there is one.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        self.find(name).map(|_| ())
    }
}

/// A control plane that is connected to.
#[derive(Debug)]
pub(super) struct ControlPlane {
    cluster: Arc<Cluster>,
    authority: Box<str>,
}

impl ControlPlane {
    pub(super) fn new(server: &XdsServer, cluster: Arc<Cluster>) -> Self {
        let authority = server.authority.clone().unwrap_or_else(|| server.cluster.as_str().into());
        Self { cluster, authority }
    }

    /// Connects to one of the cluster's endpoints: to the next with each attempt.
    pub(super) async fn connect(&self, attempt: usize) -> Result<Channel, ConnectError> {
        let unavailable = |text: String| ConnectError::Transport(text);
        let assignment = match &self.cluster.discovery {
            Discovery::Static(assignment) => assignment,
            Discovery::StrictDns(dns) | Discovery::LogicalDns(dns) => &dns.assignment,
            _ => return Err(unavailable("the cluster's endpoints are not known".to_owned())),
        };
        let endpoints = || assignment.localities.iter().flat_map(|locality| &locality.endpoints);
        let endpoint = endpoints().nth(attempt % endpoints().count().max(1));
        let endpoint = endpoint.ok_or_else(|| unavailable("no endpoint".to_owned()))?;
        let resolved;
        let address = match &endpoint.address {
            EndpointAddress::Internal(..) => {
                return Err(unavailable(
                    "the control plane cannot be reached by an internal listener".to_owned(),
                ));
            }
            EndpointAddress::Name(name, port) => {
                let found = tokio::net::lookup_host((&**name, *port)).await;
                let found = found.map_err(|error| unavailable(format!("{name}: {error}")))?.next();
                let found = found.ok_or_else(|| unavailable(format!("{name}: no address")))?;
                resolved = EndpointAddress::Ip(found);
                &resolved
            }
            address => address,
        };
        let metadata = endpoint.metadata.clone();
        let transport = self.cluster.transport_to(&metadata);
        let peer = Peer {
            cluster: &self.cluster,
            address,
            others: &[],
            metadata: &metadata,
            via: None,
            hostname: endpoint.hostname.as_deref(),
            transport,
            offer: Offer::Otherwise(&[b"h2"]),
            stats: None,
        };
        let header = self.cluster.proxy_header_to(&metadata).map(|header| &**header);
        let connecting = async {
            let socket = connect::attempt(&self.cluster, address, &metadata, header, None).await?;
            connect::secure(peer, socket).await.map(|(socket, _)| socket)
        };
        let socket = tokio::time::timeout(self.cluster.connect_timeout, connecting).await;
        let socket = socket.unwrap_or(Err(connect::ConnectError::Timeout));
        let socket = socket.map_err(|error| unavailable(format!("{address}: {error}")))?;
        let keepalive = match &self.cluster.protocol {
            UpstreamProtocol::Http2(settings) => {
                let pings = settings.keepalive.as_ref();
                pings.and_then(|pings| pings.interval.map(|interval| (interval, pings.timeout)))
            }
            UpstreamProtocol::Http1 | UpstreamProtocol::Downstream(_) | UpstreamProtocol::Auto(_) => None,
        };
        let connection = Connection {
            authority: self.authority.to_string(),
            connect_timeout: self.cluster.connect_timeout,
            keepalive,
        };
        grpc::over(socket, &connection).await
    }
}

/// `initial_metadata` as headers; those that cannot be sent were refused.
pub(super) fn metadata(server: &XdsServer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (key, value) in &server.metadata {
        if let (Ok(key), Ok(value)) = (HeaderName::try_from(&**key), HeaderValue::try_from(&**value)) {
            headers.append(key, value);
        }
    }
    headers
}
