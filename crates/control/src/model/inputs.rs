//! The inputs of the derivation graph, one table per kind, and their secondary orders.

use std::net::IpAddr;

use leno_derive::{Batch, Graph, Index, Input};

use super::authorization_policy::AuthorizationPolicy;
use super::destination_rule::DestinationRule;
use super::envoy_filter::EnvoyFilter;
use super::gateway::Gateway;
use super::ingress::{Ingress, IngressClass};
use super::mesh::MeshConfig;
use super::peer_authentication::PeerAuthentication;
use super::proxy_config::ProxyConfig;
use super::request_authentication::RequestAuthentication;
use super::service_entry::ServiceEntry;
use super::sidecar::Sidecar;
use super::telemetry::Telemetry;
use super::virtual_service::VirtualService;
use super::workload_entry::WorkloadEntry;
use super::workload_group::WorkloadGroup;
use super::{Change, Config, Key, Kind, Object, ObjectRef, gateway_api, kube};

macro_rules! inputs {
    ($($kind:ident => $name:ident: $value:ty;)*) => {
        $(
            #[doc = concat!("All objects of the kind ", stringify!($kind), ".")]
            #[derive(Debug)]
            pub(crate) struct $name;
            impl Input for $name {
                type Key = Key;
                type Value = $value;
                const NAME: &'static str = stringify!($kind);
            }
        )*

        fn set(reference: &ObjectRef, object: Object, batch: &mut Batch) {
            let key = reference.key();
            match object {
                $(Object::$kind(value) => {
                    batch.set::<$name>(key, value);
                })*
            }
        }

        fn remove(reference: &ObjectRef, batch: &mut Batch) {
            let key = reference.key();
            match reference.kind {
                $(Kind::$kind => {
                    batch.remove::<$name>(&key);
                })*
            }
        }
    };
}

inputs! {
    Service => Services: kube::Service;
    EndpointSlice => EndpointSlices: kube::EndpointSlice;
    Endpoints => EndpointsObjects: kube::Endpoints;
    Pod => Pods: kube::Pod;
    Node => Nodes: kube::Node;
    Namespace => Namespaces: kube::Namespace;
    Secret => Secrets: kube::Secret;
    ConfigMap => ConfigMaps: kube::ConfigMap;
    Ingress => Ingresses: Config<Ingress>;
    IngressClass => IngressClasses: Config<IngressClass>;
    MeshConfig => MeshConfigs: MeshConfig;
    ServiceEntry => ServiceEntries: Config<ServiceEntry>;
    WorkloadEntry => WorkloadEntries: Config<WorkloadEntry>;
    WorkloadGroup => WorkloadGroups: Config<WorkloadGroup>;
    VirtualService => VirtualServices: Config<VirtualService>;
    DestinationRule => DestinationRules: Config<DestinationRule>;
    Gateway => Gateways: Config<Gateway>;
    Sidecar => Sidecars: Config<Sidecar>;
    EnvoyFilter => EnvoyFilters: Config<EnvoyFilter>;
    ProxyConfig => ProxyConfigs: Config<ProxyConfig>;
    PeerAuthentication => PeerAuthentications: Config<PeerAuthentication>;
    RequestAuthentication => RequestAuthentications: Config<RequestAuthentication>;
    AuthorizationPolicy => AuthorizationPolicies: Config<AuthorizationPolicy>;
    Telemetry => Telemetries: Config<Telemetry>;
    GatewayClass => GatewayClasses: Config<gateway_api::gateway::GatewayClass>;
    KubernetesGateway => KubernetesGateways: Config<gateway_api::gateway::Gateway>;
    ListenerSet => ListenerSets: Config<gateway_api::gateway::ListenerSet>;
    HttpRoute => HttpRoutes: Config<gateway_api::route::HttpRoute>;
    GrpcRoute => GrpcRoutes: Config<gateway_api::route::GrpcRoute>;
    TlsRoute => TlsRoutes: Config<gateway_api::route::TlsRoute>;
    TcpRoute => TcpRoutes: Config<gateway_api::route::TcpRoute>;
    UdpRoute => UdpRoutes: Config<gateway_api::route::UdpRoute>;
    ReferenceGrant => ReferenceGrants: Config<gateway_api::policy::ReferenceGrant>;
    BackendTlsPolicy => BackendTlsPolicies: Config<gateway_api::policy::BackendTlsPolicy>;
    BackendTrafficPolicy => BackendTrafficPolicies: Config<gateway_api::policy::BackendTrafficPolicy>;
}

macro_rules! by_namespace {
    ($($name:ident of $input:ident: $value:ty = $label:literal;)*) => {
        $(
            #[doc = concat!("The objects of `", stringify!($input), "` by namespace.")]
            pub(crate) struct $name;

            impl Index for $name {
                type Of = $input;
                type Bucket = String;
                const NAME: &'static str = $label;

                fn buckets(key: &Key, _: &$value) -> Vec<String> {
                    vec![key.namespace.clone()]
                }
            }
        )*

        fn register_by_namespace(graph: &mut Graph) {
            $(graph.register::<$name>();)*
        }
    };
}

by_namespace! {
    ServicesByNamespace of Services: kube::Service = "services-by-namespace";
    ServiceEntriesByNamespace of ServiceEntries: Config<ServiceEntry> = "service-entries-by-namespace";
    SidecarsByNamespace of Sidecars: Config<Sidecar> = "sidecars-by-namespace";
    EnvoyFiltersByNamespace of EnvoyFilters: Config<EnvoyFilter> = "envoy-filters-by-namespace";
    ProxyConfigsByNamespace of ProxyConfigs: Config<ProxyConfig> = "proxy-configs-by-namespace";
    PeerAuthenticationsByNamespace of PeerAuthentications: Config<PeerAuthentication> = "peer-authentications-by-namespace";
    RequestAuthenticationsByNamespace of RequestAuthentications: Config<RequestAuthentication> = "request-authentications-by-namespace";
    AuthorizationPoliciesByNamespace of AuthorizationPolicies: Config<AuthorizationPolicy> = "authorization-policies-by-namespace";
    TelemetriesByNamespace of Telemetries: Config<Telemetry> = "telemetries-by-namespace";
    VirtualServicesByNamespace of VirtualServices: Config<VirtualService> = "virtual-services-by-namespace";
    ReferenceGrantsByNamespace of ReferenceGrants: Config<gateway_api::policy::ReferenceGrant> = "reference-grants-by-namespace";
}

/// EndpointSlices by the Service that they belong to.
pub(crate) struct SlicesByService;

impl Index for SlicesByService {
    type Of = EndpointSlices;
    type Bucket = Key;
    const NAME: &'static str = "slices-by-service";

    fn buckets(_: &Key, slice: &kube::EndpointSlice) -> Vec<Key> {
        vec![Key { namespace: slice.meta.namespace.clone(), name: slice.service.clone() }]
    }
}

/// Pods by namespace and one of their labels, so that a selector looks at few of them.
pub(crate) struct PodsByLabel;

impl Index for PodsByLabel {
    type Of = Pods;
    type Bucket = (String, String, String);
    const NAME: &'static str = "pods-by-label";

    fn buckets(_: &Key, pod: &kube::Pod) -> Vec<(String, String, String)> {
        let namespace = &pod.meta.namespace;
        pod.meta.labels.iter().map(|(name, value)| (namespace.clone(), name.clone(), value.clone())).collect()
    }
}

/// WorkloadEntries by namespace and one of their labels, so that a selector looks at few of them.
pub(crate) struct WorkloadEntriesByLabel;

impl Index for WorkloadEntriesByLabel {
    type Of = WorkloadEntries;
    type Bucket = (String, String, String);
    const NAME: &'static str = "workload-entries-by-label";

    fn buckets(_: &Key, entry: &Config<WorkloadEntry>) -> Vec<(String, String, String)> {
        // The object's labels count before those of its spec.
        let mut labels = entry.spec.labels.clone();
        labels.extend(entry.meta.labels.clone());
        let namespace = &entry.meta.namespace;
        labels.into_iter().map(|(name, value)| (namespace.clone(), name, value)).collect()
    }
}

/// ServiceEntries by host.
pub(crate) struct EntriesByHost;

impl Index for EntriesByHost {
    type Of = ServiceEntries;
    type Bucket = String;
    const NAME: &'static str = "service-entries-by-host";

    fn buckets(_: &Key, entry: &Config<ServiceEntry>) -> Vec<String> {
        entry.spec.hosts.clone()
    }
}

/// ServiceEntries by those of their hosts that are not written in lower case, in lower case.
pub(crate) struct EntriesByFoldedHost;

impl Index for EntriesByFoldedHost {
    type Of = ServiceEntries;
    type Bucket = String;
    const NAME: &'static str = "service-entries-by-folded-host";

    fn buckets(_: &Key, entry: &Config<ServiceEntry>) -> Vec<String> {
        let unusual = |host: &&String| host.bytes().any(|byte| byte.is_ascii_uppercase());
        entry.spec.hosts.iter().filter(unusual).map(|host| host.to_ascii_lowercase()).collect()
    }
}

/// Services by their addresses.
pub(crate) struct ServicesByAddress;

impl Index for ServicesByAddress {
    type Of = Services;
    type Bucket = IpAddr;
    const NAME: &'static str = "services-by-address";

    fn buckets(_: &Key, service: &kube::Service) -> Vec<IpAddr> {
        service.cluster_ips.clone()
    }
}

/// ServiceEntries by their addresses, as far as these are single ones.
pub(crate) struct EntriesByAddress;

impl Index for EntriesByAddress {
    type Of = ServiceEntries;
    type Bucket = IpAddr;
    const NAME: &'static str = "service-entries-by-address";

    fn buckets(_: &Key, entry: &Config<ServiceEntry>) -> Vec<IpAddr> {
        // A range of one address is an address.
        let single = |text: &String| text.split('/').next().and_then(|address| address.parse().ok());
        entry.spec.addresses.iter().filter_map(single).collect()
    }
}

/// Tells the graph of these secondary orders. The layers above have more: see `scope::register`.
pub(crate) fn register(graph: &mut Graph) {
    graph.register::<SlicesByService>();
    graph.register::<PodsByLabel>();
    graph.register::<WorkloadEntriesByLabel>();
    register_by_namespace(graph);
    graph.register::<EntriesByHost>();
    graph.register::<EntriesByFoldedHost>();
    graph.register::<EntriesByAddress>();
    graph.register::<ServicesByAddress>();
}

/// Adds a change to a batch.
pub(crate) fn apply(change: Change, batch: &mut Batch) {
    match change {
        Change::Set(reference, object, _) => set(&reference, *object, batch),
        Change::Remove(reference) => remove(&reference, batch),
    }
}
