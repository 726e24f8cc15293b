//! What comes in: typed, validated resources, one file or folder per kind.
//!
//! `read.rs` has the list of kinds and reads an object from a YAML node; START HERE to add a kind.
//! An object with an error is refused as a whole (its last good version stays); what is only not
//! supported yet is a warning. Nothing is ignored in silence: `support.rs` lists the fields that
//! have no effect yet.

pub(crate) mod authorization_policy;
pub(crate) mod check;
#[cfg(test)]
mod compatibility;
#[cfg(test)]
mod crd;
pub(crate) mod credential;
pub(crate) mod destination_rule;
pub(crate) mod diagnostic;
pub(crate) mod duration;
pub(crate) mod envoy_filter;
pub(crate) mod gateway;
pub(crate) mod gateway_api;
pub(crate) mod identity;
pub(crate) mod ingress;
pub(crate) mod inputs;
pub(crate) mod kube;
pub(crate) mod label;
pub(crate) mod mesh;
pub(crate) mod peer_authentication;
pub(crate) mod proxy_config;
pub(crate) mod read;
pub(crate) mod request_authentication;
#[cfg(test)]
mod schema;
pub(crate) mod selector;
pub(crate) mod service_entry;
pub(crate) mod sidecar;
pub(crate) mod string_match;
pub(crate) mod support;
pub(crate) mod switches;
pub(crate) mod telemetry;
#[cfg(test)]
mod tests;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;
pub(crate) mod workload_group;

use std::collections::BTreeMap;
use std::fmt;

use self::authorization_policy::AuthorizationPolicy;
use self::destination_rule::DestinationRule;
use self::envoy_filter::EnvoyFilter;
use self::gateway::Gateway;
use self::ingress::{Ingress, IngressClass};
use self::mesh::MeshConfig;
use self::peer_authentication::PeerAuthentication;
use self::proxy_config::ProxyConfig;
use self::request_authentication::RequestAuthentication;
use self::service_entry::ServiceEntry;
use self::sidecar::Sidecar;
use self::telemetry::Telemetry;
use self::virtual_service::VirtualService;
use self::workload_entry::WorkloadEntry;
use self::workload_group::WorkloadGroup;
use crate::source::Origin;

/// Namespaces of Kubernetes' own, which istiod leaves alone.
pub(crate) const KUBERNETES: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// The kinds that are read. Others are tolerated or reported, see `read.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Kubernetes' Service.
    Service,
    /// Kubernetes' EndpointSlice.
    EndpointSlice,
    /// Kubernetes' Endpoints.
    Endpoints,
    /// Kubernetes' Pod.
    Pod,
    /// Kubernetes' Node.
    Node,
    /// Kubernetes' Namespace.
    Namespace,
    /// Kubernetes' Secret.
    Secret,
    /// Kubernetes' ConfigMap, but for that of the MeshConfig.
    ConfigMap,
    /// Kubernetes' Ingress.
    Ingress,
    /// Kubernetes' IngressClass.
    IngressClass,
    /// The ConfigMap `istio` with the MeshConfig.
    MeshConfig,
    /// Istio's ServiceEntry.
    ServiceEntry,
    /// Istio's WorkloadEntry.
    WorkloadEntry,
    /// Istio's WorkloadGroup.
    WorkloadGroup,
    /// Istio's VirtualService.
    VirtualService,
    /// Istio's DestinationRule.
    DestinationRule,
    /// Istio's Gateway.
    Gateway,
    /// Istio's Sidecar.
    Sidecar,
    /// Istio's EnvoyFilter.
    EnvoyFilter,
    /// Istio's ProxyConfig.
    ProxyConfig,
    /// Istio's PeerAuthentication.
    PeerAuthentication,
    /// Istio's RequestAuthentication.
    RequestAuthentication,
    /// Istio's AuthorizationPolicy.
    AuthorizationPolicy,
    /// Istio's Telemetry.
    Telemetry,
    /// The Gateway API's GatewayClass.
    GatewayClass,
    /// The Gateway API's Gateway.
    KubernetesGateway,
    /// The Gateway API's ListenerSet, or XListenerSet.
    ListenerSet,
    /// The Gateway API's HTTPRoute.
    HttpRoute,
    /// The Gateway API's GRPCRoute.
    GrpcRoute,
    /// The Gateway API's TLSRoute.
    TlsRoute,
    /// The Gateway API's TCPRoute.
    TcpRoute,
    /// The Gateway API's UDPRoute.
    UdpRoute,
    /// The Gateway API's ReferenceGrant.
    ReferenceGrant,
    /// The Gateway API's BackendTLSPolicy.
    BackendTlsPolicy,
    /// The Gateway API's XBackendTrafficPolicy.
    BackendTrafficPolicy,
}

impl Kind {
    /// Whether a change of such an object is a change of endpoints, which must not wait.
    pub(crate) fn is_endpoint(self) -> bool {
        matches!(self, Kind::Pod | Kind::EndpointSlice | Kind::Endpoints | Kind::WorkloadEntry)
    }

    /// Whether it is one of Kubernetes' own that the registry and credentials are made from, and says
    /// nothing about traffic.
    pub(crate) fn is_registry(self) -> bool {
        matches!(
            self,
            Kind::Service
                | Kind::EndpointSlice
                | Kind::Endpoints
                | Kind::Pod
                | Kind::Node
                | Kind::Namespace
                | Kind::Secret
                | Kind::ConfigMap
        )
    }

    /// Whether its objects belong to no namespace.
    pub(crate) fn is_cluster_scoped(self) -> bool {
        matches!(self, Kind::Node | Kind::Namespace | Kind::IngressClass | Kind::GatewayClass)
    }
}

impl fmt::Display for Kind {
    /// The kind as it is written in YAML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::KubernetesGateway => f.write_str("Gateway"),
            Kind::HttpRoute => f.write_str("HTTPRoute"),
            Kind::GrpcRoute => f.write_str("GRPCRoute"),
            Kind::TlsRoute => f.write_str("TLSRoute"),
            Kind::TcpRoute => f.write_str("TCPRoute"),
            Kind::UdpRoute => f.write_str("UDPRoute"),
            Kind::BackendTlsPolicy => f.write_str("BackendTLSPolicy"),
            Kind::BackendTrafficPolicy => f.write_str("XBackendTrafficPolicy"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// The name without the kind.
    pub(crate) fn key(&self) -> Key {
        Key { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Names one object among those of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    /// The name with a kind.
    pub(crate) fn of(&self, kind: Kind) -> ObjectRef {
        ObjectRef { kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What all objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// RFC 3339, so that text order is time order; empty if unknown. Older objects win conflicts.
    pub(crate) created: String,
}

impl Meta {
    /// The object's name among those of its kind.
    pub(crate) fn key(&self) -> Key {
        Key { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// What Istio orders competing objects by.
    pub(crate) fn age(&self) -> (&str, &str, &str) {
        (&self.created, &self.name, &self.namespace)
    }
}

/// An object of Istio or the Gateway API: what all have, and the part of its kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config<T> {
    pub(crate) meta: Meta,
    pub(crate) spec: T,
}

/// An object that was read and found good.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "it travels in a box, and then only its content does")]
pub(crate) enum Object {
    Service(kube::Service),
    EndpointSlice(kube::EndpointSlice),
    Endpoints(kube::Endpoints),
    Pod(kube::Pod),
    Node(kube::Node),
    Namespace(kube::Namespace),
    Secret(kube::Secret),
    ConfigMap(kube::ConfigMap),
    Ingress(Config<Ingress>),
    IngressClass(Config<IngressClass>),
    MeshConfig(MeshConfig),
    ServiceEntry(Config<ServiceEntry>),
    WorkloadEntry(Config<WorkloadEntry>),
    WorkloadGroup(Config<WorkloadGroup>),
    VirtualService(Config<VirtualService>),
    DestinationRule(Config<DestinationRule>),
    Gateway(Config<Gateway>),
    Sidecar(Config<Sidecar>),
    EnvoyFilter(Config<EnvoyFilter>),
    ProxyConfig(Config<ProxyConfig>),
    PeerAuthentication(Config<PeerAuthentication>),
    RequestAuthentication(Config<RequestAuthentication>),
    AuthorizationPolicy(Config<AuthorizationPolicy>),
    Telemetry(Config<Telemetry>),
    GatewayClass(Config<gateway_api::gateway::GatewayClass>),
    KubernetesGateway(Config<gateway_api::gateway::Gateway>),
    ListenerSet(Config<gateway_api::gateway::ListenerSet>),
    HttpRoute(Config<gateway_api::route::HttpRoute>),
    GrpcRoute(Config<gateway_api::route::GrpcRoute>),
    TlsRoute(Config<gateway_api::route::TlsRoute>),
    TcpRoute(Config<gateway_api::route::TcpRoute>),
    UdpRoute(Config<gateway_api::route::UdpRoute>),
    ReferenceGrant(Config<gateway_api::policy::ReferenceGrant>),
    BackendTlsPolicy(Config<gateway_api::policy::BackendTlsPolicy>),
    BackendTrafficPolicy(Config<gateway_api::policy::BackendTrafficPolicy>),
}

/// One difference between what the sources held before and hold now.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The object is new or different, or at least read again.
    Set(ObjectRef, Box<Object>, Origin),
    /// The object is gone.
    Remove(ObjectRef),
}

impl Change {
    /// The object that it is about.
    pub(crate) fn object(&self) -> &ObjectRef {
        match self {
            Change::Set(object, ..) | Change::Remove(object) => object,
        }
    }
}
