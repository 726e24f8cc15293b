//! Gateways of the Gateway API: each that asks for one gets a Deployment and a Service, of the names, labels and ports
//! that it has in a cluster (docs/gateways.md), as if somebody had declared them. Pure.
//!
//! Which routes and listeners are good is the control plane's to say, which reads the same objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;

use super::objects::{Gateway, GatewayPort, Key, Objects, Origin, Service, Workload, WorkloadKind};
use super::plan::{GATEWAY_TEMPLATE, TEMPLATES};

/// The groups that these kinds are of; the second is for those that are tried out.
pub(super) const GROUPS: [&str; 2] = ["gateway.networking.k8s.io", "gateway.networking.x-k8s.io"];

/// The class that is there without being declared, and who serves it.
const CLASS: &str = "istio";
const CONTROLLER: &str = "istio.io/gateway-controller";

/// The port at which gateways say whether they are ready; every Service has it.
const STATUS_PORT: u16 = 15021;

/// Labels and annotations that only controllers of the Gateway API write.
const RESERVED: &str = "gateway.networking.k8s.io/";

/// The kinds of a folder, as far as they are needed here.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Declared {
    pub(super) gateways: Vec<DeclaredGateway>,
    /// The controllers of GatewayClasses.
    pub(super) classes: BTreeMap<String, String>,
    pub(super) sets: Vec<DeclaredSet>,
}

/// A Gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeclaredGateway {
    pub(super) key: Key,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) spec: GatewaySpec,
    pub(super) origin: Origin,
}

/// A ListenerSet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeclaredSet {
    pub(super) key: Key,
    pub(super) spec: ListenerSetSpec,
    pub(super) origin: Origin,
}

#[derive(Deserialize)]
pub(super) struct GatewayClassObject {
    pub(super) spec: GatewayClassSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct GatewayClassSpec {
    pub(super) controller_name: String,
}

#[derive(Deserialize)]
pub(super) struct GatewayObject {
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) spec: GatewaySpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    gateway_class_name: String,
    listeners: Vec<Listener>,
    addresses: Vec<Address>,
    infrastructure: Infrastructure,
    allowed_listeners: AllowedListeners,
}

#[derive(Deserialize)]
pub(super) struct ListenerSetObject {
    pub(super) spec: ListenerSetSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerSetSpec {
    parent_ref: ParentRef,
    listeners: Vec<Listener>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Listener {
    name: String,
    port: u16,
    protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Address {
    r#type: Option<String>,
    value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Infrastructure {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    parameters_ref: Option<ParentRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ParentRef {
    name: String,
    namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct AllowedListeners {
    namespaces: AllowedNamespaces,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct AllowedNamespaces {
    from: Option<String>,
}

/// Adds what is made for Gateways, and what of them is published.
pub(super) fn deploy(objects: &mut Objects) {
    let declared = std::mem::take(&mut objects.gateway_api);
    for gateway in &declared.gateways {
        let class = &gateway.spec.gateway_class_name;
        let controller = declared.classes.get(class).map(String::as_str);
        if controller.or((class == CLASS).then_some(CONTROLLER)) != Some(CONTROLLER) {
            continue; // somebody else's
        }
        let ports = ports(gateway, &declared.sets);
        let addresses = &gateway.spec.addresses;
        let is_managed = match addresses.as_slice() {
            [] => true,
            [only] => matches!(only.r#type.as_deref(), None | Some("IPAddress")),
            _ => false,
        };
        let selectors = if is_managed {
            vec![make(gateway, &ports, objects)]
        } else {
            addresses
                .iter()
                .filter_map(|address| selector(objects, &gateway.key.namespace, address))
                .collect()
        };
        objects.gateways.extend(selectors.into_iter().map(|selector| Gateway {
            key: gateway.key.clone(),
            selector,
            namespace: Some(gateway.key.namespace.clone()),
            ports: ports.iter().map(|(_, port)| port.clone()).collect(),
        }));
    }
    objects.gateway_api = declared;
}

/// The ports that a Gateway and its ListenerSets listen on, each once, with a name.
fn ports(gateway: &DeclaredGateway, sets: &[DeclaredSet]) -> Vec<(String, GatewayPort)> {
    let allowed = |set: &&DeclaredSet| {
        let parent = &set.spec.parent_ref;
        let namespace = parent.namespace.as_ref().unwrap_or(&set.key.namespace);
        let is_here = (namespace, &parent.name) == (&gateway.key.namespace, &gateway.key.name);
        // Which namespaces a selector chooses is left to the control plane: a port without listeners serves nothing.
        is_here
            && match gateway.spec.allowed_listeners.namespaces.from.as_deref() {
                Some("All" | "Selector") => true,
                Some("Same") => set.key.namespace == gateway.key.namespace,
                _ => false,
            }
    };
    let added = sets.iter().filter(allowed).map(|set| (&set.spec.listeners, &set.origin));
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for (listeners, origin) in std::iter::once((&gateway.spec.listeners, &gateway.origin)).chain(added) {
        for (index, listener) in listeners.iter().enumerate() {
            if listener.port == 0 || !seen.insert(listener.port) {
                continue;
            }
            let place = origin.problem(&format!("spec.listeners[{index}].port"), "");
            let protocol = listener.protocol.to_ascii_uppercase();
            ports.push((listener.name.clone(), GatewayPort { number: listener.port, protocol, place }));
        }
    }
    ports
}

/// What chooses the gateways behind an address that is the name of a Service.
fn selector(objects: &Objects, namespace: &str, address: &Address) -> Option<BTreeMap<String, String>> {
    let mut parts = address.value.split('.');
    let key = Key::new(namespace, parts.next()?);
    let is_here = parts.next().is_none_or(|there| there == namespace);
    let is_name = matches!(address.r#type.as_deref(), None | Some("Hostname"));
    objects.services.get(&key).filter(|_| is_here && is_name)?.object.spec.as_ref()?.selector.clone()
}

/// Makes a Deployment and a Service, unless there are such; tells what chooses the gateways.
fn make(
    gateway: &DeclaredGateway,
    ports: &[(String, GatewayPort)],
    objects: &mut Objects,
) -> BTreeMap<String, String> {
    let DeclaredGateway { key, annotations, spec, origin } = gateway;
    let default = || format!("{}-{}", key.name, spec.gateway_class_name);
    let named = |annotation: &str| {
        let asked = annotations.get(annotation).filter(|name| !name.is_empty());
        asked.cloned().unwrap_or_else(default)
    };
    let made = Key::new(&key.namespace, &named("gateway.istio.io/name-override"));
    if spec.infrastructure.parameters_ref.is_some() {
        let message = "leno up has one way to run gateways, so this has no effect";
        objects.problems.push(origin.problem("spec.infrastructure.parametersRef", message));
    }
    let own = |of: &BTreeMap<String, String>| {
        let own = of.iter().filter(|(name, _)| !name.starts_with(RESERVED));
        own.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let chosen = pair("gateway.networking.k8s.io/gateway-name", &key.name);
    let mut labels = own(&spec.infrastructure.labels);
    labels.extend([
        chosen.clone(),
        pair("gateway.networking.k8s.io/gateway-class-name", &spec.gateway_class_name),
        pair("gateway.istio.io/managed", "istio.io-gateway-controller"),
    ]);
    let selector = BTreeMap::from([chosen]);

    if !objects.services.contains_key(&made) {
        let status = (STATUS_PORT, "status-port".to_owned(), "tcp".to_owned());
        let listened = ports.iter().map(|(name, port)| {
            let protocol = port.protocol.to_ascii_lowercase();
            // Names of listeners are names of hosts.
            let name = if name.is_empty() { protocol.clone() } else { name.replace('.', "-") };
            (port.number, name, protocol)
        });
        let ports =
            std::iter::once(status).chain(listened).map(|(number, name, protocol)| core::ServicePort {
                name: Some(name),
                port: i32::from(number),
                app_protocol: Some(protocol),
                ..core::ServicePort::default()
            });
        let mut object = core::Service::default();
        object.metadata.name = Some(made.name.clone());
        object.metadata.namespace = Some(made.namespace.clone());
        object.metadata.labels = Some(labels.clone());
        object.metadata.annotations = Some(own(&spec.infrastructure.annotations));
        object.spec = Some(core::ServiceSpec {
            type_: Some("LoadBalancer".to_owned()),
            selector: Some(selector.clone()),
            ports: Some(ports.collect()),
            ..core::ServiceSpec::default()
        });
        objects.services.insert(made.clone(), Service { key: made.clone(), object });
    }

    let is_there = |it: &Workload| it.kind == WorkloadKind::Deployment && it.key == made;
    if objects.workloads.iter().any(is_there) {
        let message = format!("there is a Deployment {made} already, so none is made for this Gateway");
        objects.problems.push(origin.problem("metadata.name", message));
        return selector;
    }
    labels.extend([
        pair("service.istio.io/canonical-name", &made.name),
        pair("service.istio.io/canonical-revision", "latest"),
        pair("sidecar.istio.io/inject", "false"),
    ]);
    let mut annotations = own(&spec.infrastructure.annotations);
    // As gateways that users declare; the proxy is all there is in the pod.
    annotations.insert(TEMPLATES.to_owned(), GATEWAY_TEMPLATE.to_owned());
    let proxy = core::Container {
        name: "istio-proxy".to_owned(),
        image: Some("auto".to_owned()),
        ..core::Container::default()
    };
    objects.workloads.push(Workload {
        kind: WorkloadKind::Deployment,
        key: made,
        replicas: 1,
        labels,
        annotations,
        spec: core::PodSpec {
            service_account_name: Some(named("gateway.istio.io/service-account")),
            containers: vec![proxy],
            ..core::PodSpec::default()
        },
        service_name: String::new(),
        origin: origin.clone(),
    });
    selector
}
