//! Virtual addresses for services that have none, from 240.240.0.0/16 as Istio gives them.
//!
//! An address depends on the service's name (a hash), not on the order of arrival, so that it stays
//! over restarts and over replicas of the control plane. Should two names collide, the one that
//! comes first in the alphabet keeps the place and the other takes the next free one.
//!
//! Deviation: a Kubernetes Service without `clusterIP` (one that no API server has seen, as in a
//! folder of manifests) is given one here too, where Istio relies on Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use leno_derive::{Cx, Query};

use super::{ServiceId, kubernetes_host, needs_address};
use crate::model::Kind;
use crate::model::inputs::{ServiceEntries, Services};

/// How many addresses there are to give: the range without its first and last.
const SPACE: u32 = (1 << 16) - 2;

/// The address of one service, if it needs one.
pub(crate) struct AutoAddress;

impl Query for AutoAddress {
    type Key = ServiceId;
    type Value = Option<Ipv4Addr>;
    const NAME: &'static str = "auto-address";

    fn derive(cx: &Cx<'_>, id: &ServiceId) -> Option<Ipv4Addr> {
        cx.get::<AutoAddresses>(&()).get(id).copied()
    }
}

/// All addresses given.
struct AutoAddresses;

impl Query for AutoAddresses {
    type Key = ();
    type Value = BTreeMap<ServiceId, Ipv4Addr>;
    const NAME: &'static str = "auto-addresses";

    fn derive(cx: &Cx<'_>, (): &()) -> BTreeMap<ServiceId, Ipv4Addr> {
        let mut wanting = Vec::new();
        for key in cx.all::<Services>() {
            let Some(service) = cx.input::<Services>(&key) else { continue };
            if !service.headless && service.external_name.is_none() && service.cluster_ips.is_empty() {
                let host = kubernetes_host(&key.name, &key.namespace);
                wanting.push(ServiceId { host, object: key.of(Kind::Service) });
            }
        }
        for key in cx.all::<ServiceEntries>() {
            let Some(entry) = cx.input::<ServiceEntries>(&key) else { continue };
            for host in entry.spec.hosts.iter().filter(|host| needs_address(&entry.spec, host)) {
                wanting.push(ServiceId { host: host.clone(), object: key.of(Kind::ServiceEntry) });
            }
        }
        allocate(wanting)
    }
}

fn allocate(mut wanting: Vec<ServiceId>) -> BTreeMap<ServiceId, Ipv4Addr> {
    wanting.sort();
    wanting.dedup();
    let mut taken = BTreeSet::new();
    let mut given = BTreeMap::new();
    for id in wanting.into_iter().take(SPACE as usize) {
        let name = format!("{}/{}", id.object.namespace, id.host);
        let mut slot = (fnv(name.as_bytes()) % u64::from(SPACE)) as u32;
        while !taken.insert(slot) {
            slot = (slot + 1) % SPACE;
        }
        given.insert(id, Ipv4Addr::from(u32::from(Ipv4Addr::new(240, 240, 0, 1)) + slot));
    }
    given
}

/// FNV-1a, 64 bits: the same on every machine and in every release.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::{ServiceId, allocate};
    use crate::model::{Kind, ObjectRef};

    fn id(name: &str) -> ServiceId {
        let object =
            ObjectRef { kind: Kind::Service, namespace: "default".to_owned(), name: name.to_owned() };
        ServiceId { host: name.to_owned(), object }
    }

    #[test]
    fn addresses_do_not_depend_on_order_or_company() {
        let alone = allocate(vec![id("reviews")]);
        let many = allocate((0..500).map(|i| id(&format!("s{i}"))).chain([id("reviews")]).collect());
        assert_eq!(alone[&id("reviews")], many[&id("reviews")]);
        let mut values: Vec<_> = many.values().collect();
        values.sort();
        values.dedup();
        assert_eq!(values.len(), 501);
        assert!(values.iter().all(|ip| ip.octets()[..2] == [240, 240]));
    }
}
