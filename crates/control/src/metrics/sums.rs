//! What there is of services, summed up for the page of metrics.
//!
//! The sum is a root of the graph once somebody has looked at the page: a look costs what has changed
//! since the last one, and a sum over the services.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use crate::model::inputs::{EndpointSlices, EntriesByHost, Pods, SlicesByService};
use crate::model::{Key, Kind, ObjectRef};
use crate::registry::instances::{Health, Instances};
use crate::registry::{AllServices, Resolution, Service, ServicesOf};

/// What is to be summed up of services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) services: usize,
    pub(super) without_pod: usize,
    pub(super) without_address: usize,
    pub(super) not_ready: usize,
    pub(super) empty: usize,
    pub(super) empty_dns: usize,
    pub(super) duplicates: usize,
}

impl Sums {
    /// Adds the numbers of an object.
    fn add(&mut self, other: &Sums) {
        self.without_pod += other.without_pod;
        self.without_address += other.without_address;
        self.not_ready += other.not_ready;
        self.empty += other.empty;
        self.empty_dns += other.empty_dns;
        self.duplicates += other.duplicates;
    }
}

/// The numbers of all services. A root.
pub(super) struct AllSums;

impl Query for AllSums {
    type Key = ();
    type Value = Sums;
    const NAME: &'static str = "all-sums";

    fn derive(cx: &Cx<'_>, (): &()) -> Sums {
        let services = cx.get::<AllServices>(&());
        let objects: BTreeSet<&ObjectRef> = services.iter().map(|service| &service.id.object).collect();
        let mut sum = Sums { services: services.len(), ..Sums::default() };
        objects.into_iter().for_each(|object| sum.add(&cx.get::<ServiceSums>(object)));
        sum
    }
}

/// The numbers of the services of one object.
struct ServiceSums;

impl Query for ServiceSums {
    type Key = ObjectRef;
    type Value = Sums;
    const NAME: &'static str = "service-sums";

    fn derive(cx: &Cx<'_>, object: &Self::Key) -> Sums {
        let mut sums = Sums::default();
        let services = cx.get::<ServicesOf>(object);
        for service in services.iter() {
            of_service(cx, service, &mut sums);
        }
        if object.kind == Kind::Service {
            of_slices(cx, &object.key(), &mut sums);
        }
        sums
    }
}

fn of_service(cx: &Cx<'_>, service: &Arc<Service>, sums: &mut Sums) {
    let instances = cx.get::<Instances>(&service.id);
    sums.not_ready += instances.iter().filter(|instance| instance.health == Health::Unhealthy).count();
    if instances.is_empty() {
        match service.resolution {
            Resolution::Endpoints => sums.empty += 1,
            Resolution::Dns | Resolution::DnsRoundRobin => sums.empty_dns += 1,
            Resolution::OriginalDst | Resolution::Dynamic | Resolution::Alias => {}
        }
    }
    if service.id.object.kind == Kind::ServiceEntry {
        let entries = cx.bucket::<EntriesByHost>(&service.id.host);
        // Each counts itself, so that the sum is that of all that are too many.
        let first = entries.iter().filter(|key| key.namespace == service.namespace()).min();
        sums.duplicates += usize::from(first.is_some_and(|first| *first != service.id.object.key()));
    }
}

fn of_slices(cx: &Cx<'_>, key: &Key, sums: &mut Sums) {
    for slice in cx.bucket::<SlicesByService>(key) {
        let Some(slice) = cx.input::<EndpointSlices>(&slice) else { continue };
        for endpoint in &slice.endpoints {
            let Some(name) = &endpoint.pod else { continue };
            let pod = Key { namespace: slice.meta.namespace.clone(), name: name.clone() };
            match cx.input::<Pods>(&pod) {
                None => sums.without_pod += 1,
                Some(pod) if pod.ips.is_empty() => sums.without_address += 1,
                Some(_) => {}
            }
        }
    }
}
