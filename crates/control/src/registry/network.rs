//! Networks: which endpoints reach each other directly, and the gateways in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leno_base::Cidr;
use leno_derive::{Cx, Index, Query};

use super::{Mesh, kubernetes_host};
use crate::model::inputs::{Namespaces, Nodes, Services};
use crate::model::{Key, kube};
use crate::scope::locality::{CLUSTER_ID, NETWORK};

/// The port of gateways between networks that takes mutual TLS by SNI.
const GATEWAY_PORT: u16 = 15443;

/// The label of a Service that names another port for that.
const GATEWAY_PORT_LABEL: &str = "networking.istio.io/gatewayPort";

/// The annotation of a NodePort Service that says on which machines it is entered, as JSON labels.
const NODE_SELECTOR: &str = "traffic.istio.io/nodeSelector";

/// Services that are gateways of networks: there are few, so they are all in one place.
pub(crate) struct NetworkServices;

impl Index for NetworkServices {
    type Of = Services;
    type Bucket = ();
    const NAME: &'static str = "network-services";

    fn buckets(_: &Key, service: &kube::Service) -> Vec<()> {
        let is_gateway = service.meta.labels.get(NETWORK).is_some_and(|network| !network.is_empty());
        if is_gateway { vec![()] } else { Vec::new() }
    }
}

/// A way into a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NetworkGateway {
    /// An address, or a name for DNS.
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) network: String,
    /// The cluster that it belongs to; empty if unknown.
    pub(crate) cluster: String,
}

/// The networks of the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Networks {
    /// In the order of their addresses.
    gateways: Vec<NetworkGateway>,
    /// The network of everything that does not say otherwise.
    general: String,
    ranges: Vec<(Cidr, String)>,
}

impl Query for Networks {
    type Key = ();
    type Value = Networks;
    const NAME: &'static str = "networks";

    fn derive(cx: &Cx<'_>, (): &()) -> Networks {
        let mesh = cx.get::<Mesh>(&());
        let mut networks = Networks::default();
        let mut gateways = BTreeSet::new();
        let mut of_registry: Option<String> = None;
        for (name, network) in &mesh.networks.networks {
            for endpoints in &network.endpoints {
                let range = endpoints.from_cidr.as_ref().and_then(|text| text.parse::<Cidr>().ok());
                networks.ranges.extend(range.map(|range| (range, name.clone())));
            }
            let here = network.endpoints.iter().any(|one| one.from_registry.as_deref() == Some(CLUSTER_ID));
            if here {
                of_registry.get_or_insert_with(|| name.clone());
            }
            for gateway in &network.gateways {
                let Ok(port) = u16::try_from(gateway.port) else { continue };
                if let Some(address) = &gateway.address {
                    gateways.insert(NetworkGateway {
                        address: address.clone(),
                        port,
                        network: name.clone(),
                        cluster: String::new(),
                    });
                }
                let service = gateway.registry_service_name.as_ref().filter(|_| here);
                if let Some(service) = service.and_then(|host| service_of_host(cx, host)) {
                    add(cx, &mut gateways, &service, name, port);
                }
            }
        }
        for key in cx.bucket::<NetworkServices>(&()) {
            let Some(service) = cx.input::<Services>(&key) else { continue };
            let Some(network) = service.meta.labels.get(NETWORK) else { continue };
            let port = service.meta.labels.get(GATEWAY_PORT_LABEL).and_then(|port| port.parse().ok());
            let port = port.unwrap_or(GATEWAY_PORT);
            if service.ports.iter().any(|declared| declared.number == port) {
                add(cx, &mut gateways, &service, network, port);
            }
        }
        let system = Key { namespace: String::new(), name: mesh.root_namespace.clone() };
        let system =
            cx.input::<Namespaces>(&system).and_then(|found| found.meta.labels.get(NETWORK).cloned());
        networks.general = system.filter(|name| !name.is_empty()).or(of_registry).unwrap_or_default();
        networks.gateways = gateways.into_iter().collect();
        networks
    }
}

impl Networks {
    /// The ways into networks, in the order of their addresses.
    pub(crate) fn gateways(&self) -> &[NetworkGateway] {
        &self.gateways
    }

    /// Whether there is more than one network as far as anybody can tell.
    pub(crate) fn has_gateways(&self) -> bool {
        !self.gateways.is_empty()
    }

    /// The network of something with an address and perhaps a label that says.
    pub(crate) fn of(&self, address: &str, label: Option<&str>) -> String {
        if let Some(label) = label.filter(|label| !label.is_empty()) {
            return label.to_owned();
        }
        if !self.general.is_empty() {
            return self.general.clone();
        }
        let Ok(address) = address.parse::<IpAddr>() else { return String::new() };
        let found = self.ranges.iter().find(|(range, _)| range.contains(address));
        found.map(|(_, name)| name.clone()).unwrap_or_default()
    }

    /// The gateways into a network: those of its own cluster, if there are any, else all. Names, as
    /// opposed to addresses, only where `named`.
    pub(crate) fn entrances(&self, network: &str, named: bool) -> Vec<&NetworkGateway> {
        let usable = |gateway: &&NetworkGateway| {
            gateway.network == network && (named || gateway.address.parse::<IpAddr>().is_ok())
        };
        let all: Vec<&NetworkGateway> = self.gateways.iter().filter(usable).collect();
        let near: Vec<&NetworkGateway> =
            all.iter().filter(|gateway| gateway.cluster == CLUSTER_ID).copied().collect();
        if near.is_empty() { all } else { near }
    }

    /// By what all weights are to be multiplied so that they can be divided among gateways.
    pub(crate) fn scale(&self, named: bool) -> u32 {
        let mut counts: BTreeMap<(&str, Option<&str>), u32> = BTreeMap::new();
        for gateway in &self.gateways {
            if !named && gateway.address.parse::<IpAddr>().is_err() {
                continue;
            }
            *counts.entry((&gateway.network, None)).or_default() += 1;
            *counts.entry((&gateway.network, Some(&gateway.cluster))).or_default() += 1;
        }
        counts.into_values().fold(1, lcm)
    }
}

/// The least common multiple, or the largest number if it is larger still.
fn lcm(a: u32, b: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (a / gcd(a, b).max(1)).saturating_mul(b)
}

/// Adds the ways into a Service from outside.
fn add(
    cx: &Cx<'_>,
    gateways: &mut BTreeSet<NetworkGateway>,
    service: &kube::Service,
    network: &str,
    port: u16,
) {
    let mut addresses = service.external_addresses.clone();
    let mut entered = port;
    if let Some(selector) = service.meta.annotations.get(NODE_SELECTOR)
        && let Some(number) =
            service.ports.iter().find(|declared| declared.number == port).and_then(|port| port.node_port)
    {
        entered = number;
        addresses.extend(node_addresses(cx, selector));
    }
    gateways.extend(addresses.into_iter().map(|address| NetworkGateway {
        address,
        port: entered,
        network: network.to_owned(),
        cluster: CLUSTER_ID.to_owned(),
    }));
}

/// The addresses of the machines with certain labels.
fn node_addresses(cx: &Cx<'_>, selector: &str) -> Vec<String> {
    let Ok(selector) = serde_json::from_str::<BTreeMap<String, String>>(selector) else { return Vec::new() };
    let nodes = cx.all::<Nodes>().into_iter().filter_map(|key| cx.input::<Nodes>(&key));
    nodes
        .filter(|node| crate::model::selector::selects(&selector, &node.meta.labels))
        .filter_map(|node| node.external.first().map(ToString::to_string))
        .collect()
}

fn service_of_host(cx: &Cx<'_>, host: &str) -> Option<std::sync::Arc<kube::Service>> {
    let (name, rest) = host.split_once('.')?;
    let namespace = rest.split('.').next()?;
    let found = cx.input::<Services>(&Key { namespace: namespace.to_owned(), name: name.to_owned() })?;
    (kubernetes_host(name, namespace) == host).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::{NetworkGateway, Networks, lcm};

    #[test]
    fn weights_can_be_divided_among_gateways() {
        assert_eq!(lcm(4, 6), 12);
        assert_eq!(lcm(1, 1), 1);
        let gateway = |address: &str, network: &str| NetworkGateway {
            address: address.to_owned(),
            port: 15443,
            network: network.to_owned(),
            cluster: String::new(),
        };
        let networks = Networks {
            gateways: vec![gateway("1.1.1.1", "a"), gateway("2.2.2.2", "a"), gateway("a.example.com", "b")],
            ..Networks::default()
        };
        assert_eq!(networks.scale(false), 2);
        assert_eq!(networks.entrances("a", false).len(), 2);
        assert!(networks.entrances("b", false).is_empty());
        assert_eq!(networks.entrances("b", true).len(), 1);
    }
}
