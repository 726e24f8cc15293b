//! Virtual addresses for services that have none, from 240.240.0.0/16 and 2001:2::/48 as Istio
//! gives them: the same place in both.
//!
//! An address that another control plane has noted in the status of a ServiceEntry is kept; any
//! other depends on the service's name (a hash), not on the order of arrival, so that it stays
//! over restarts and over replicas of the control plane. Should two names collide, the one that
//! comes first in the alphabet keeps the place and the other takes the next free one.
//!
//! Deviation: a Kubernetes Service without `clusterIP` (one that no API server has seen, as in a
//! folder of manifests) is given one here too, where Istio relies on Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use leno_derive::{Cx, Query};

use super::convert::needs_address;
use super::{ServiceId, kubernetes_host};
use crate::model::Kind;
use crate::model::inputs::{ServiceEntries, Services};

/// How many addresses there are to give: the range without its first and last.
const SPACE: u32 = (1 << 16) - 2;

/// Where the ranges begin: the first addresses that are given.
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 1);
const FIRST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);

/// The addresses that a service is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Given {
    fn at(slot: u32) -> Given {
        Given {
            v4: Ipv4Addr::from(u32::from(FIRST_V4) + slot),
            v6: Ipv6Addr::from(u128::from(FIRST_V6) + u128::from(slot)),
        }
    }
}

/// Whether an address is one of those that may be given.
pub(crate) fn is_to_give(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == FIRST_V4.octets()[..2],
        IpAddr::V6(address) => address.segments()[..7] == FIRST_V6.segments()[..7],
    }
}

/// The addresses of one service, if it needs some.
pub(crate) struct AutoAddress;

impl Query for AutoAddress {
    type Key = ServiceId;
    type Value = Option<Given>;
    const NAME: &'static str = "auto-address";

    fn derive(cx: &Cx<'_>, id: &ServiceId) -> Option<Given> {
        cx.get::<AutoAddresses>(&()).get(id).copied()
    }
}

/// All addresses given.
struct AutoAddresses;

impl Query for AutoAddresses {
    type Key = ();
    type Value = BTreeMap<ServiceId, Given>;
    const NAME: &'static str = "auto-addresses";

    fn derive(cx: &Cx<'_>, (): &()) -> BTreeMap<ServiceId, Given> {
        let mut noted = BTreeMap::new();
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
            for host in entry.spec.hosts.iter().filter(|host| needs_address(&entry, host)) {
                let id = ServiceId { host: host.clone(), object: key.of(Kind::ServiceEntry) };
                let before = entry.spec.allocated.iter().filter(|address| address.host == *host);
                let slot = before.filter_map(|address| slot_of(address.value.parse().ok()?)).next();
                match slot {
                    Some(slot) => drop(noted.insert(id, slot)),
                    None => wanting.push(id),
                }
            }
        }
        allocate(noted, wanting)
    }
}

/// The place of an address in its range.
fn slot_of(address: IpAddr) -> Option<u32> {
    let offset = match address {
        IpAddr::V4(address) => u128::from(u32::from(address).checked_sub(u32::from(FIRST_V4))?),
        IpAddr::V6(address) => u128::from(address).checked_sub(u128::from(FIRST_V6))?,
    };
    u32::try_from(offset).ok().filter(|slot| *slot < SPACE)
}

/// Gives each its address: first those whose place is noted, of whom the first keeps it.
fn allocate(noted: BTreeMap<ServiceId, u32>, mut wanting: Vec<ServiceId>) -> BTreeMap<ServiceId, Given> {
    let mut taken = BTreeSet::new();
    let mut given = BTreeMap::new();
    for (id, slot) in noted {
        if taken.insert(slot) {
            given.insert(id, Given::at(slot));
        } else {
            wanting.push(id);
        }
    }
    wanting.sort();
    wanting.dedup();
    let room = (SPACE as usize).saturating_sub(taken.len());
    for id in wanting.into_iter().take(room) {
        let name = format!("{}/{}", id.object.namespace, id.host);
        let mut slot = (fnv(name.as_bytes()) % u64::from(SPACE)) as u32;
        while !taken.insert(slot) {
            slot = (slot + 1) % SPACE;
        }
        given.insert(id, Given::at(slot));
    }
    given
}

/// FNV-1a, 64 bits: the same on every machine and in every release.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{Given, ServiceId, allocate, slot_of};
    use crate::model::{Kind, ObjectRef};

    fn id(name: &str) -> ServiceId {
        let object =
            ObjectRef { kind: Kind::Service, namespace: "default".to_owned(), name: name.to_owned() };
        ServiceId { host: name.to_owned(), object }
    }

    #[test]
    fn addresses_do_not_depend_on_order_or_company() {
        let alone = allocate(BTreeMap::new(), vec![id("reviews")]);
        let many = (0..500).map(|i| id(&format!("s{i}"))).chain([id("reviews")]).collect();
        let many = allocate(BTreeMap::new(), many);
        assert_eq!(alone[&id("reviews")], many[&id("reviews")]);
        let values: BTreeSet<_> = many.values().map(|given| (given.v4, given.v6)).collect();
        assert_eq!(values.len(), 501);
        assert!(many.values().all(|given| given.v4.octets()[..2] == [240, 240]));
        assert!(many.values().all(|given| given.v6.segments()[..3] == [0x2001, 2, 0]));
    }

    #[test]
    fn addresses_that_were_noted_are_kept() {
        let slot = slot_of("240.240.3.7".parse().expect("an address")).expect("of the range");
        let noted = BTreeMap::from([(id("a"), slot), (id("b"), slot)]);
        let given = allocate(noted, vec![id("c")]);
        assert_eq!(given[&id("a")], Given::at(slot));
        assert_eq!(given[&id("a")].v4.to_string(), "240.240.3.7");
        assert_eq!(given[&id("a")].v6.to_string(), "2001:2::307");
        // Two cannot have one address.
        assert_ne!(given[&id("b")], Given::at(slot));
        assert_eq!(slot_of("240.239.0.1".parse().expect("an address")), None);
        assert_eq!(slot_of("2001:2::307".parse().expect("an address")), Some(slot));
    }
}
