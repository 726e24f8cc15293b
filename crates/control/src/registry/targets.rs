//! The services in front of a workload: which ports of a pod belong to which services.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::instances::{entries_selected, pods_selected, target};
use super::{Service, ServicesOf};
use crate::model::Kind;
use crate::model::inputs::{ServiceEntries, ServiceEntriesByNamespace, Services, ServicesByNamespace};
use crate::model::kube::TargetPort;
use crate::model::selector::selects;

/// Names a workload by what tells it from others: its namespace and labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// A port of a workload and the service port that leads to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) service: Arc<Service>,
    /// The number of the service's port.
    pub(crate) port: u16,
    /// The number of the workload's port.
    pub(crate) target: u16,
}

/// All targets of a workload, in the order of their ports; of two services on one port the older
/// comes first.
pub(crate) struct Targets;

impl Query for Targets {
    type Key = Workload;
    type Value = Vec<Target>;
    const NAME: &'static str = "targets";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Vec<Target> {
        let mut targets = Vec::new();
        for key in cx.bucket::<ServicesByNamespace>(&workload.namespace) {
            let Some(declared) = cx.input::<Services>(&key) else { continue };
            if declared.selector.is_empty() || !selects(&declared.selector, &workload.labels) {
                continue;
            }
            let services = cx.get::<ServicesOf>(&key.of(Kind::Service));
            let Some(service) = services.first() else { continue };
            for port in declared.ports.iter().filter(|port| !port.datagram) {
                let target = match &port.target {
                    TargetPort::Number(number) => Some(*number),
                    // A name means what the container says; pods with the same labels are alike.
                    TargetPort::Name(name) => pods_selected(cx, &workload.namespace, &workload.labels)
                        .iter()
                        .find_map(|pod| target(port, pod))
                        .or_else(|| named_port(cx, workload, name)),
                };
                let Some(target) = target else { continue };
                targets.push(Target { service: Arc::clone(service), port: port.number, target });
            }
        }
        for key in cx.bucket::<ServiceEntriesByNamespace>(&workload.namespace) {
            let Some(entry) = cx.input::<ServiceEntries>(&key) else { continue };
            let selector = entry.spec.workload_selector.as_ref().map(|selector| &selector.labels);
            if !selector.is_some_and(|selector| !selector.is_empty() && selects(selector, &workload.labels)) {
                continue;
            }
            for service in cx.get::<ServicesOf>(&key.of(Kind::ServiceEntry)).iter() {
                for port in &entry.spec.ports {
                    let target = if port.target_port == 0 { port.number } else { port.target_port };
                    let (Ok(number), Ok(target)) = (u16::try_from(port.number), u16::try_from(target)) else {
                        continue;
                    };
                    targets.push(Target { service: Arc::clone(service), port: number, target });
                }
            }
        }
        targets.sort_by(|a, b| {
            (a.target, &a.service.created, &a.service.id, a.port).cmp(&(
                b.target,
                &b.service.created,
                &b.service.id,
                b.port,
            ))
        });
        targets
    }
}

/// The port that a WorkloadEntry with the workload's labels calls so.
fn named_port(cx: &Cx<'_>, workload: &Workload, name: &str) -> Option<u16> {
    let entries = entries_selected(cx, &workload.namespace, &workload.labels);
    entries.iter().find_map(|entry| u16::try_from(*entry.spec.ports.get(name)?).ok())
}
