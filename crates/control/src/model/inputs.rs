//! The inputs of the derivation graph, one table per kind, and their secondary orders.

use leno_derive::{Batch, Graph, Index, Input};

use super::destination_rule::DestinationRule;
use super::gateway::Gateway;
use super::mesh::MeshConfig;
use super::service_entry::ServiceEntry;
use super::virtual_service::VirtualService;
use super::{Change, Config, Key, Kind, Object, ObjectRef, kube};

macro_rules! inputs {
    ($($name:ident: $value:ty = $label:literal;)*) => {$(
        #[doc = concat!("All objects of the kind ", $label, ".")]
        #[derive(Debug)]
        pub(crate) struct $name;
        impl Input for $name {
            type Key = Key;
            type Value = $value;
            const NAME: &'static str = $label;
        }
    )*};
}

inputs! {
    Services: kube::Service = "Service";
    EndpointSlices: kube::EndpointSlice = "EndpointSlice";
    Pods: kube::Pod = "Pod";
    MeshConfigs: MeshConfig = "MeshConfig";
    ServiceEntries: Config<ServiceEntry> = "ServiceEntry";
    VirtualServices: Config<VirtualService> = "VirtualService";
    DestinationRules: Config<DestinationRule> = "DestinationRule";
    Gateways: Config<Gateway> = "Gateway";
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

/// Services by namespace.
pub(crate) struct ServicesByNamespace;

impl Index for ServicesByNamespace {
    type Of = Services;
    type Bucket = String;
    const NAME: &'static str = "services-by-namespace";

    fn buckets(key: &Key, _: &kube::Service) -> Vec<String> {
        vec![key.namespace.clone()]
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

/// Tells the graph of the secondary orders; to be called once, before the first commit.
pub(crate) fn register(graph: &mut Graph) {
    graph.register::<SlicesByService>();
    graph.register::<PodsByLabel>();
    graph.register::<ServicesByNamespace>();
    graph.register::<EntriesByHost>();
    graph.register::<crate::scope::rules::ByGateway>();
    graph.register::<crate::scope::rules::ByHost>();
}

/// Adds a change to a batch.
pub(crate) fn apply(change: Change, batch: &mut Batch) {
    match change {
        Change::Set(reference, object, _) => set(&reference, *object, batch),
        Change::Remove(reference) => remove(&reference, batch),
    }
}

fn set(reference: &ObjectRef, object: Object, batch: &mut Batch) {
    let key = reference.key();
    match object {
        Object::Service(value) => batch.set::<Services>(key, value),
        Object::EndpointSlice(value) => batch.set::<EndpointSlices>(key, value),
        Object::Pod(value) => batch.set::<Pods>(key, value),
        Object::MeshConfig(value) => batch.set::<MeshConfigs>(key, value),
        Object::ServiceEntry(value) => batch.set::<ServiceEntries>(key, value),
        Object::VirtualService(value) => batch.set::<VirtualServices>(key, value),
        Object::DestinationRule(value) => batch.set::<DestinationRules>(key, value),
        Object::Gateway(value) => batch.set::<Gateways>(key, value),
    };
}

fn remove(reference: &ObjectRef, batch: &mut Batch) {
    let key = reference.key();
    match reference.kind {
        Kind::Service => batch.remove::<Services>(&key),
        Kind::EndpointSlice => batch.remove::<EndpointSlices>(&key),
        Kind::Pod => batch.remove::<Pods>(&key),
        Kind::MeshConfig => batch.remove::<MeshConfigs>(&key),
        Kind::ServiceEntry => batch.remove::<ServiceEntries>(&key),
        Kind::VirtualService => batch.remove::<VirtualServices>(&key),
        Kind::DestinationRule => batch.remove::<DestinationRules>(&key),
        Kind::Gateway => batch.remove::<Gateways>(&key),
    };
}
