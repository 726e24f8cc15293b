//! NDS: which names an agent's DNS server answers by itself, and with which addresses.
//!
//! One table for all that a sidecar's workload, or a gateway, may call. The agent adds the short forms of a
//! Service's name (`reviews`, `reviews.default`, ...) for which it is given the parts.

use std::net::IpAddr;

use leno_api::proto::istio::networking::nds::v1::NameTable as Table;
use leno_api::proto::istio::networking::nds::v1::name_table::NameInfo as Info;
use leno_derive::{Cx, Query};

use super::resource::Resource;
use crate::registry::instances::{Health, Instance, Instances};
use crate::registry::{Resolution, Service};
use crate::scope::sidecar::{EgressOf, imported};
use crate::scope::{Families, ProxyKey, Role};

/// The type of the resource.
pub(crate) const TYPE_URL: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// The table of a proxy as a client, see [`crate::scope::client::ClientOf`]; `None` for those that have
/// no agent. Its name is empty, as in Istio. A root.
///
/// Deviation: a gateway has the names of all that its namespace sees, by which its filters for hosts that are
/// resolved per request find Services; istiod's table for gateways is empty.
pub(crate) struct NameTable;

impl Query for NameTable {
    type Key = ProxyKey;
    type Value = Option<Resource>;
    const NAME: &'static str = "name-table";

    fn derive(cx: &Cx<'_>, client: &ProxyKey) -> Option<Resource> {
        if client.role == Role::Grpc {
            return None;
        }
        let mut message = Table::default();
        let sight = client.viewer(cx).sight();
        for listener in 0..cx.get::<EgressOf>(&sight).len() {
            for (host, service) in imported(cx, &sight, listener).iter() {
                // The first listener that imports a host says what it is.
                if !message.table.contains_key(host) {
                    add(cx, &mut message, host, service, client.families);
                }
            }
        }
        Some(Resource::new("", &message, Vec::new()))
    }
}

/// Adds the names of a service.
fn add(cx: &Cx<'_>, message: &mut Table, host: &str, service: &Service, families: Families) {
    add_pods(cx, message, host, service);
    let ips = addresses(cx, service, families);
    if ips.is_empty() {
        return;
    }
    let mut info = Info { ips, registry: "External".to_owned(), ..Info::default() };
    if service.is_kubernetes() {
        "Kubernetes".clone_into(&mut info.registry);
        info.shortname.clone_from(&service.name);
        service.namespace().clone_into(&mut info.namespace);
    }
    message.table.insert(host.to_owned(), info);
}

/// Adds the names that pods of a headless Service have below its own.
fn add_pods(cx: &Cx<'_>, message: &mut Table, host: &str, service: &Service) {
    if !service.is_kubernetes() || service.resolution != Resolution::OriginalDst {
        return;
    }
    let instances = cx.get::<Instances>(&service.id);
    for instance in ready(&instances).filter(|instance| !instance.hostname.is_empty()) {
        let info = Info {
            ips: vec![instance.address.clone()],
            registry: "Kubernetes".to_owned(),
            shortname: format!("{}.{}", instance.hostname, service.name),
            namespace: service.namespace().to_owned(),
        };
        message.table.insert(format!("{}.{host}", instance.hostname), info);
    }
}

/// The endpoints that DNS names: those that are ready, as in Kubernetes.
fn ready(instances: &[Instance]) -> impl Iterator<Item = &Instance> {
    instances.iter().filter(|instance| instance.health == Health::Healthy)
}

/// What a name stands for, of who asks for this table: the service's own addresses, or its endpoints' if it has none of its own
/// because callers are to choose.
fn addresses(cx: &Cx<'_>, service: &Service, families: Families) -> Vec<String> {
    let own: Vec<String> = service.vips_for(families, true).map(|address| address.to_string()).collect();
    if !own.is_empty() || service.resolution != Resolution::OriginalDst || !service.addresses.is_empty() {
        return own;
    }
    let instances = cx.get::<Instances>(&service.id);
    let mut found: Vec<IpAddr> = Vec::new();
    for address in ready(&instances).filter_map(|instance| instance.address.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found.iter().map(ToString::to_string).collect()
}
