//! From what authors declare to services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::Cx;

use super::address::AutoAddress;
use super::alias;
use super::protocol::Protocol;
use super::{Distribution, Export, Port, Resolution, Service, ServiceId, kubernetes_host};
use crate::model::inputs::{EntriesByHost, Namespaces, ServiceEntries};
use crate::model::mesh::MeshConfig;
use crate::model::service_entry::{self, ServiceEntry};
use crate::model::{Config, Key, Kind, Meta, kube};

/// The annotation of a Service that plays the part of `exportTo`.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// The annotation, of a service or its namespace, that plays the part of `trafficDistribution`.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Annotations of a Service that name identities: whole ones, and accounts of its namespace.
const IDENTITIES: &str = "alpha.istio.io/canonical-serviceaccounts";
const ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";

/// The annotation of a ServiceEntry that asks to try all addresses of a name, and its value.
const CONNECT_STRATEGY: (&str, &str) = ("istio.io/connect-strategy", "RACE_FIRST_TCP_CONNECT");

/// The label of a ServiceEntry that is to be given no address, with the value `false`.
const GIVE_ADDRESS: &str = "networking.istio.io/enable-autoallocate-ip";

/// A Kubernetes Service.
pub(super) fn of_kubernetes(cx: &Cx<'_>, service: &kube::Service, mesh: &MeshConfig) -> Service {
    let meta = &service.meta;
    let id = ServiceId {
        host: kubernetes_host(&meta.name, &meta.namespace),
        object: meta.key().of(Kind::Service),
    };
    let alias_of = alias::target(cx, service);
    let resolution = if alias_of.is_some() {
        Resolution::Alias
    } else if service.external_name.is_some() {
        // Deviation: a name for something that the mesh does not know is looked up by DNS, where
        // Istio has no cluster and lets such calls pass, so that rules can speak of it.
        Resolution::Dns
    } else if service.headless {
        Resolution::OriginalDst
    } else {
        Resolution::Endpoints
    };
    let mut addresses: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
    let mut given_v6 = None;
    if resolution == Resolution::Endpoints
        && addresses.is_empty()
        && let Some(given) = *cx.get::<AutoAddress>(&id)
    {
        addresses.push(given.v4.to_string());
        given_v6 = Some(given.v6);
    }
    let words = |annotation: &str| -> Vec<String> {
        let text = meta.annotations.get(annotation).filter(|text| !text.is_empty());
        text.map(|text| text.split(',').map(|word| word.trim().to_owned()).collect()).unwrap_or_default()
    };
    let mut accounts = words(IDENTITIES);
    accounts.extend(words(ACCOUNTS).iter().map(|account| identity(mesh, &meta.namespace, account)));
    let ports = service.ports.iter().map(|port| Port {
        number: port.number,
        name: port.name.clone(),
        protocol: if port.datagram {
            Protocol::Datagram
        } else {
            Protocol::of_kubernetes(port.number, &port.name, port.app_protocol.as_deref())
        },
        passthrough: None,
    });
    Service {
        ports: ports.collect(),
        name: meta.name.clone(),
        addresses,
        given_v6,
        resolution,
        // An ExternalName stands for something else that is not known to carry a sidecar.
        external: service.external_name.is_some(),
        labels: meta.labels.clone(),
        distribution: distribution(cx, meta, service.distribution.as_deref()),
        node_local: service.node_local,
        race_connects: false,
        accounts,
        alias_of,
        export_to: Export::new(&meta.namespace, &words(EXPORT_TO), &mesh.default_service_export_to),
        created: meta.created.clone(),
        id,
    }
}

/// One host of a ServiceEntry.
pub(super) fn of_entry(cx: &Cx<'_>, entry: &Config<ServiceEntry>, host: &str, mesh: &MeshConfig) -> Service {
    let meta = &entry.meta;
    let id = ServiceId { host: host.to_owned(), object: meta.key().of(Kind::ServiceEntry) };
    // A range of one address is an address.
    let mut addresses: Vec<String> = entry.spec.addresses.iter().map(|text| single_or_range(text)).collect();
    let mut given_v6 = None;
    if needs_address(entry, host)
        && let Some(given) = *cx.get::<AutoAddress>(&id)
    {
        addresses.push(given.v4.to_string());
        given_v6 = Some(given.v6);
    }
    let strategy = meta.annotations.get(CONNECT_STRATEGY.0);
    let mut ports = entry_ports(entry);
    for other in others(cx, entry, host) {
        for port in entry_ports(&other) {
            if !ports.iter().any(|present| present.number == port.number) {
                ports.push(port);
            }
        }
    }
    Service {
        ports,
        name: host.to_owned(),
        addresses,
        given_v6,
        resolution: resolution(&entry.spec),
        external: entry.spec.location == service_entry::Location::MeshExternal,
        labels: meta.labels.clone(),
        distribution: distribution(cx, meta, None),
        node_local: false,
        race_connects: strategy.is_some_and(|value| value.eq_ignore_ascii_case(CONNECT_STRATEGY.1)),
        accounts: entry.spec.subject_alt_names.clone(),
        alias_of: None,
        export_to: Export::new(&meta.namespace, &entry.spec.export_to, &mesh.default_service_export_to),
        created: meta.created.clone(),
        id,
    }
}

fn resolution(entry: &ServiceEntry) -> Resolution {
    match entry.resolution {
        service_entry::Resolution::Static => Resolution::Endpoints,
        service_entry::Resolution::Dns => Resolution::Dns,
        service_entry::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
        service_entry::Resolution::None => Resolution::OriginalDst,
        service_entry::Resolution::DynamicDns => Resolution::Dynamic,
    }
}

fn entry_ports(entry: &Config<ServiceEntry>) -> Vec<Port> {
    let fixed = entry.spec.resolution == service_entry::Resolution::None;
    let ports = entry.spec.ports.iter().filter_map(|port| {
        let target = u16::try_from(port.target_port).ok().filter(|target| fixed && *target != 0);
        Some(Port {
            number: u16::try_from(port.number).ok()?,
            name: port.name.clone(),
            protocol: Protocol::of_name(&port.protocol),
            passthrough: target,
        })
    });
    ports.collect()
}

/// The other entries of the namespace for a host, from which an entry takes over ports: those that
/// are like it in everything else. None, if there is an older one, of which it is a part itself.
fn others(cx: &Cx<'_>, entry: &Config<ServiceEntry>, host: &str) -> Vec<Arc<Config<ServiceEntry>>> {
    let alike = |other: &Config<ServiceEntry>| {
        let (a, b) = (&entry.spec, &other.spec);
        a.resolution == b.resolution
            && a.workload_selector == b.workload_selector
            && a.export_to == b.export_to
            && entry.meta.labels == other.meta.labels
    };
    let all = of_host(cx, &entry.meta.namespace, host);
    if all.first().is_some_and(|first| first.meta.key() != entry.meta.key()) {
        return Vec::new();
    }
    all.into_iter().skip(1).filter(|other| alike(other)).collect()
}

/// All entries of a namespace for a host, oldest first.
pub(super) fn of_host(cx: &Cx<'_>, namespace: &str, host: &str) -> Vec<Arc<Config<ServiceEntry>>> {
    let keys = cx.bucket::<EntriesByHost>(&host.to_owned());
    let keys = keys.iter().filter(|key| key.namespace == namespace);
    let mut entries: Vec<_> = keys.filter_map(|key| cx.input::<ServiceEntries>(key)).collect();
    entries.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
    entries
}

fn single_or_range(text: &str) -> String {
    match text.split_once('/') {
        Some((address, length)) => match (address.parse::<IpAddr>(), length) {
            (Ok(IpAddr::V4(_)), "32") | (Ok(IpAddr::V6(_)), "128") => address.to_owned(),
            _ => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

/// Which endpoints clients prefer: what the service says, else its annotation, else its namespace's.
fn distribution(cx: &Cx<'_>, meta: &Meta, declared: Option<&str>) -> Distribution {
    match declared {
        Some("PreferSameZone" | "PreferClose") => return Distribution::SameZone,
        Some("PreferSameNode") => return Distribution::SameNode,
        _ => {}
    }
    let read = |annotations: &BTreeMap<String, String>| {
        let text = annotations.get(DISTRIBUTION).filter(|text| !text.is_empty())?;
        Some(match text.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Distribution::SameZone,
            "prefersamenode" => Distribution::SameNode,
            _ => Distribution::Any,
        })
    };
    let of_namespace = || {
        let key = Key { namespace: String::new(), name: meta.namespace.clone() };
        read(&cx.input::<Namespaces>(&key)?.meta.annotations)
    };
    read(&meta.annotations).or_else(of_namespace).unwrap_or_default()
}

/// Whether a host of a ServiceEntry is to be given a virtual address.
pub(super) fn needs_address(entry: &Config<ServiceEntry>, host: &str) -> bool {
    use service_entry::Resolution;
    let opted_out =
        entry.meta.labels.get(GIVE_ADDRESS).is_some_and(|value| value.eq_ignore_ascii_case("false"));
    !opted_out
        && entry.spec.addresses.is_empty()
        && entry.spec.resolution != Resolution::None
        && (!host.starts_with('*') || entry.spec.resolution == Resolution::DynamicDns)
        && host.parse::<IpAddr>().is_err()
}

/// The identity of an account.
pub(super) fn identity(mesh: &MeshConfig, namespace: &str, account: &str) -> String {
    crate::model::identity::identity(&mesh.trust_domain, namespace, account)
}
