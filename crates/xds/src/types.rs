//! The vocabulary of both sides: variants of the protocol, types of resources, resources.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};

use bytes::Bytes;
use leno_base::Name;

/// The name that stands for every resource of a type.
pub const WILDCARD: &str = "*";

/// The two variants of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// State of the world: a response holds all resources (LDS, CDS) or whole resources of those
    /// asked for; an acknowledgement repeats the subscription.
    Sotw,
    /// Incremental: a response holds what changed; requests hold changes of the subscription.
    Delta,
}

impl Mode {
    /// The method of the aggregated discovery service.
    pub fn path(self) -> &'static str {
        match self {
            Self::Sotw => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            Self::Delta => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        }
    }
}

/// The type of a resource. Ordered as updates must be pushed so that nothing refers to what is
/// not there yet: clusters, endpoints, listeners, routes, then the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TypeUrl {
    /// CDS: `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// EDS: `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoint,
    /// LDS: `envoy.config.listener.v3.Listener`.
    Listener,
    /// SRDS: `envoy.config.route.v3.ScopedRouteConfiguration`.
    ScopedRoute,
    /// RDS: `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// VHDS: `envoy.config.route.v3.VirtualHost`.
    VirtualHost,
    /// SDS: `envoy.extensions.transport_sockets.tls.v3.Secret`.
    Secret,
    /// ECDS: `envoy.config.core.v3.TypedExtensionConfig`.
    ExtensionConfig,
    /// RTDS: `envoy.service.runtime.v3.Runtime`.
    Runtime,
    /// Any other type, by its whole URL. Never one of the above: see [`TypeUrl::from`].
    Other(Name),
}

impl TypeUrl {
    /// The types that have a name of their own here, in push order.
    pub const KNOWN: [Self; 9] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::ScopedRoute,
        Self::Route,
        Self::VirtualHost,
        Self::Secret,
        Self::ExtensionConfig,
        Self::Runtime,
    ];

    /// The URL, as in `Any.type_url`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::ScopedRoute => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::ExtensionConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::Other(url) => url,
        }
    }

    /// What people call the type: `CDS`; the message's name for others.
    pub fn short(&self) -> &str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::ScopedRoute => "SRDS",
            Self::Route => "RDS",
            Self::VirtualHost => "VHDS",
            Self::Secret => "SDS",
            Self::ExtensionConfig => "ECDS",
            Self::Runtime => "RTDS",
            Self::Other(url) => url.rsplit('/').next().unwrap_or(url),
        }
    }

    /// The method of the service for this type alone, for a `ConfigSource` that is not aggregated.
    /// `None` where there is none.
    pub fn path(&self, mode: Mode) -> Option<&'static str> {
        let (sotw, delta) = match self {
            Self::Cluster => (
                "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
                "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            ),
            Self::Endpoint => (
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            ),
            Self::Listener => (
                "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
                "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            ),
            Self::ScopedRoute => (
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
            ),
            Self::Route => (
                "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
                "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            ),
            Self::VirtualHost if mode == Mode::Sotw => return None,
            Self::VirtualHost => {
                ("", "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts")
            }
            Self::Secret => (
                "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
                "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            ),
            Self::ExtensionConfig => (
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
            ),
            Self::Runtime => (
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
            ),
            Self::Other(_) => return None,
        };
        Some(if mode == Mode::Sotw { sotw } else { delta })
    }

    /// True if a SotW response holds every resource that exists for the client, so that absence
    /// means deletion. The protocol says so of LDS and CDS only.
    pub fn is_whole_in_sotw(&self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The types whose requests wait while an update of this one is worked on, because the
    /// update will change what is asked for (Envoy pauses the same ones).
    pub fn pauses(&self) -> &'static [Self] {
        match self {
            Self::Cluster => &[Self::Endpoint, Self::Secret],
            Self::Listener => &[Self::Route, Self::Secret],
            _ => &[],
        }
    }
}

impl From<&str> for TypeUrl {
    fn from(url: &str) -> Self {
        let known = Self::KNOWN.into_iter().find(|known| known.as_str() == url);
        known.unwrap_or_else(|| Self::Other(Name::new(url)))
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One resource: its name, its version and its encoded message. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Unique within the type.
    pub name: Name,
    /// Says whether two states of the resource are the same. In SotW, which has no versions of
    /// resources, the client sees the version of the response here.
    pub version: Name,
    /// The encoded message, without the `Any` around it.
    pub body: Bytes,
}

impl Resource {
    /// A resource with a version of the caller's choice.
    pub fn new(name: Name, version: Name, body: Bytes) -> Self {
        Self { name, version, body }
    }

    /// A resource whose version is a hash of its bytes: equal bytes, equal version, whoever
    /// computes it. A new release may hash differently, which costs one more push.
    pub fn hashed(name: Name, body: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(&body);
        Self { name, version: Name::from(format!("{:016x}", hasher.finish())), body }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}({} bytes)", self.name, self.version, self.body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_types_have_one_representation_and_push_order() {
        for known in TypeUrl::KNOWN {
            assert_eq!(TypeUrl::from(known.as_str()), known);
        }
        assert!(TypeUrl::KNOWN.is_sorted());
        let other = TypeUrl::from("type.googleapis.com/istio.workload.Address");
        assert_eq!(other.short(), "istio.workload.Address");
        assert!(other > TypeUrl::Runtime);
    }

    #[test]
    fn hashed_versions_follow_the_bytes() {
        let resource = |body: &'static [u8]| Resource::hashed(Name::new("a"), Bytes::from_static(body));
        assert_eq!(resource(b"x"), resource(b"x"));
        assert_ne!(resource(b"x").version, resource(b"y").version);
    }
}
