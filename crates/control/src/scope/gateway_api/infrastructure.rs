//! What runs for a Gateway: one that is *managed* has a Deployment and a Service made for it (`crate::deploy`), any
//! other names Services that are there already. And where it is reached.

use std::collections::BTreeSet;

use leno_derive::{Cx, Query};

use super::listeners::{ListenersOf, controller};
use crate::model::gateway_api::gateway::{Gateway, Listener};
use crate::model::inputs::{KubernetesGateways, ListenerSets, Namespaces, Services as KubernetesServices};
use crate::model::label::{GATEWAY_CONTROLLER, GATEWAY_MANAGED, REVISION};
use crate::model::switches::SwitchInput;
use crate::model::{Config, Key};
use crate::registry::instances::{Health, Instances};
use crate::registry::{full_name, kubernetes_host, of_host};

/// Annotations of a Gateway.
pub(crate) const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
pub(crate) const SERVICE_TYPE: &str = "networking.istio.io/service-type";
const ADDRESS_TYPE: &str = "networking.istio.io/address-type";

/// The port at which gateways say whether they are ready; every Service has it.
const STATUS_PORT: u16 = 15021;

/// How long names of ports may be.
const LONGEST_PORT_NAME: usize = 63;

/// Whether the Service of a Gateway is made for it: unless it names one. An address of its own is one that the Service
/// is to have.
fn is_managed(cx: &Cx<'_>, gateway: &Gateway) -> bool {
    let manual = cx.input::<SwitchInput>(&()).is_none_or(|switches| switches.manual_gateways);
    match gateway.addresses.as_slice() {
        _ if !manual => true,
        [] => true,
        [only] => matches!(only.r#type.as_deref(), None | Some("IPAddress")),
        _ => false,
    }
}

/// The name of what is made for a Gateway.
fn made_name(gateway: &Config<Gateway>) -> String {
    let Config { meta, spec } = gateway;
    let named = meta.annotations.get(NAME_OVERRIDE).filter(|name| !name.is_empty());
    named.cloned().unwrap_or_else(|| format!("{}-{}", meta.name, spec.gateway_class_name))
}

/// The Services in front of a Gateway.
pub(super) struct Services {
    pub(super) hosts: Vec<String>,
    /// What a Gateway asks for that cannot be had: a reason of the Gateway API's, and a message.
    pub(super) refused: Option<(&'static str, String)>,
}

/// The hosts of the Services in front of a Gateway: the one that is made for it, or those that it names.
pub(super) fn services(cx: &Cx<'_>, gateway: &Config<Gateway>) -> Services {
    let Config { meta, spec } = gateway;
    if is_managed(cx, spec) {
        return Services {
            hosts: vec![kubernetes_host(&made_name(gateway), &meta.namespace)],
            refused: None,
        };
    }
    let is_name = |kind: Option<&str>| matches!(kind, None | Some("Hostname"));
    let (named, others): (Vec<_>, Vec<_>) =
        spec.addresses.iter().partition(|address| is_name(address.r#type.as_deref()));
    let others: Vec<&str> = others.into_iter().map(|address| address.value.as_str()).collect();
    let refused = if !others.is_empty() {
        let message = format!("addresses beside names of Services cannot be used: {}", others.join(", "));
        Some(("UnsupportedAddress", message))
    } else if meta.annotations.contains_key(SERVICE_TYPE) {
        Some(("DeprecatedField", format!("the annotation {SERVICE_TYPE} is for Services that are made")))
    } else {
        None
    };
    let hosts = named.into_iter().map(|address| full_name(&address.value, &meta.namespace)).collect();
    Services { hosts, refused }
}

/// A port of a Service that is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: u16,
    /// In small letters.
    pub(crate) protocol: String,
}

/// A Gateway that gateways are to be made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Managed {
    pub(crate) key: Key,
    /// The name of what is made.
    pub(crate) name: String,
    pub(crate) ports: Vec<Port>,
    /// The revision, or tag, of the control plane that is to do it: what the Gateway says, else its namespace; empty
    /// if they say nothing, and `None` if nothing is known of the namespace.
    pub(crate) revision: Option<String>,
}

/// All of them.
pub(crate) struct AllManaged;

impl Query for AllManaged {
    type Key = ();
    type Value = Vec<Managed>;
    const NAME: &'static str = "managed-gateways";

    fn derive(cx: &Cx<'_>, (): &()) -> Vec<Managed> {
        let all = cx.all::<KubernetesGateways>().into_iter();
        all.filter_map(|key| {
            let gateway = cx.input::<KubernetesGateways>(&key)?;
            let is_ours = controller(cx, &gateway.spec.gateway_class_name) == GATEWAY_CONTROLLER;
            if !is_ours || !is_managed(cx, &gateway.spec) {
                return None;
            }
            let revision = gateway.meta.labels.get(REVISION).cloned().or_else(|| {
                let namespace = Key { namespace: String::new(), name: key.namespace.clone() };
                let namespace = cx.input::<Namespaces>(&namespace)?;
                Some(namespace.meta.labels.get(REVISION).cloned().unwrap_or_default())
            });
            let (name, ports) = (made_name(&gateway), ports(cx, &key, &gateway.spec));
            Some(Managed { key, name, ports, revision })
        })
        .collect()
    }
}

/// One port for each that is listened on, be it by its own listeners or by those of ListenerSets.
fn ports(cx: &Cx<'_>, key: &Key, gateway: &Gateway) -> Vec<Port> {
    let sets = cx.get::<ListenersOf>(key).sets.clone().into_iter();
    let sets = sets.filter_map(|set| cx.input::<ListenerSets>(&set));
    let added: Vec<Listener> = sets.flat_map(|set| set.spec.listeners.clone()).collect();
    let status = Port { name: "status-port".to_owned(), number: STATUS_PORT, protocol: "tcp".to_owned() };
    let mut ports = vec![status];
    let mut seen = BTreeSet::new();
    for (index, listener) in gateway.listeners.iter().chain(&added).enumerate() {
        if !seen.insert(listener.port) {
            continue;
        }
        let protocol = listener.protocol.to_ascii_lowercase();
        // Names of listeners are names of hosts.
        let name: String =
            listener.name.chars().take(LONGEST_PORT_NAME).collect::<String>().replace('.', "-");
        let name = if name.is_empty() { format!("{protocol}-{index}") } else { name };
        ports.push(Port { name, number: listener.port, protocol });
    }
    ports
}

/// Where a Gateway, or a ListenerSet of it, is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// The Services, with ports, that lead to somebody who serves.
    pub(super) assigned: BTreeSet<String>,
    /// The addresses to tell people.
    pub(super) addresses: Vec<String>,
    /// What is missing.
    pub(super) problems: BTreeSet<String>,
    /// Whether something is missing that will not come by itself.
    pub(super) is_unusable: bool,
}

/// Where a Gateway is reached on some ports.
pub(super) fn reach(
    cx: &Cx<'_>,
    gateway: &Config<Gateway>,
    hosts: &[String],
    ports: &BTreeSet<u16>,
) -> Reach {
    let namespace = &gateway.meta.namespace;
    let mut reach = Reach::default();
    let (mut external, mut internal) = (BTreeSet::new(), BTreeSet::new());
    // What is told of a Service without addresses of its own outside the cluster.
    let wanted = gateway.meta.annotations.get(ADDRESS_TYPE).map_or("Hostname", String::as_str);
    for host in hosts {
        let all = of_host(cx, host);
        let Some(service) = all.iter().find(|service| service.namespace() == namespace) else {
            let elsewhere: BTreeSet<&str> = all.iter().map(|service| service.namespace()).collect();
            reach.problems.insert(match elsewhere.first() {
                None => format!("there is no Service {host}"),
                Some(other) => format!("the Service {host} is in the namespace {other}, not in {namespace}"),
            });
            reach.is_unusable = true;
            continue;
        };
        let declared =
            service.is_kubernetes().then(|| cx.input::<KubernetesServices>(&service.id.object.key()));
        let declared = declared.flatten();
        let outside = declared.as_ref().map(|service| service.external_addresses.clone()).unwrap_or_default();
        let is_pending = outside.is_empty() && declared.as_ref().is_some_and(|service| service.balanced);
        let is_made = service.labels.contains_key(GATEWAY_MANAGED);
        // Deviation: istiod tells no address before somebody serves there, and keeps what it has told; these are
        // told as long as the Service has them, so that who follows them (names in DNS) is not disturbed by a restart.
        external.extend(outside);
        if wanted != "Hostname" {
            internal.extend(service.addresses.iter().filter(|it| !it.contains('/')).cloned());
        }
        if wanted != "IPAddress" && !is_pending {
            internal.insert(host.clone());
        }
        let instances = cx.get::<Instances>(&service.id);
        let serving: Vec<_> = instances.iter().filter(|it| it.health != Health::Unhealthy).collect();
        for port in ports {
            if serving.iter().any(|instance| instance.ports.contains_key(port)) {
                reach.assigned.insert(format!("{host}:{port}"));
                if is_pending {
                    reach.problems.insert(format!("the Service {host} has no address yet"));
                }
            } else if serving.iter().all(|instance| instance.ports.is_empty()) {
                reach.problems.insert(format!("nobody serves {host}"));
            } else if !is_made || service.port(*port).is_none() {
                let leads = |it: &(&u16, &u16)| *it.1 == *port;
                let meant = serving.iter().find_map(|it| it.ports.iter().find(leads).map(|(own, _)| *own));
                reach.problems.insert(match meant {
                    Some(own) => format!(
                        "the Service {host} has no port {port}; listeners have the Service's ports, and {own} \
                         leads to {port}"
                    ),
                    None => format!("the Service {host} has no port {port}"),
                });
                reach.is_unusable = true;
            }
        }
    }
    let addresses = if external.is_empty() { internal } else { external };
    reach.addresses = addresses.into_iter().collect();
    reach
}
