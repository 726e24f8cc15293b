//! Deployments and pods: the services in front of them, and the user that they run as.

use std::collections::{BTreeMap, BTreeSet};

use leno_derive::Cx;
use serde_json::Value;

use super::injection::is_in_mesh;
use crate::analyze::message::{Message, words};
use crate::analyze::raw::{Raw, all, at, labels, list, text};

/// The proxy's user.
const PROXY_USER: u64 = 1337;

/// Workloads that run as the proxy's user, whose connections are not captured: IST0144.
pub(super) fn user(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let pods = all(cx, "Pod").into_iter().map(|pod| (pod, "/spec"));
    let deployments = all(cx, "Deployment").into_iter().map(|it| (it, "/spec/template/spec"));
    for (object, spec) in pods.chain(deployments) {
        if is_control_plane(&object) {
            continue;
        }
        let spec = object.at(spec);
        let is_proxys =
            |holder: &Value| at(holder, "/securityContext/runAsUser").as_u64() == Some(PROXY_USER);
        let containers = list(at(spec, "/containers")).iter();
        let own = containers.filter(|it| !["istio-proxy", "istio-operator"].contains(&text(it, "/name")));
        let count = usize::from(is_proxys(spec)) + own.filter(|container| is_proxys(container)).count();
        if count > 0 {
            let message = "User ID (UID) 1337 is reserved for the sidecar proxy.".to_owned();
            out.push(Message::new("IST0144", &object.key, message));
        }
    }
}

/// Whether an object is a part of the control plane, which has rules of its own.
pub(super) fn is_control_plane(object: &Raw) -> bool {
    let labels = object.labels();
    labels.find("istio").is_some() || labels.find("release") == Some("istio")
}

/// Services of one Deployment that differ in the protocol of a port (IST0116), or that have different
/// ports for one of its (IST0137).
pub(super) fn services(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let services = all(cx, "Service");
    for deployment in all(cx, "Deployment") {
        let waypoint =
            deployment.labels().find("gateway.istio.io/managed") == Some("istio.io-mesh-controller");
        if waypoint || !is_in_mesh(cx, &deployment, "/spec/template") {
            continue;
        }
        let own = labels(deployment.at("/spec/template/metadata/labels"));
        let chosen: Vec<&Raw> = services
            .iter()
            .filter(|service| {
                let selector = labels(service.at("/spec/selector"));
                let here = service.key.namespace == deployment.key.namespace;
                here && !selector.is_empty() && selector.selects(&own)
            })
            .collect();
        let mut protocols: BTreeMap<u64, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
        let mut targets: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        for service in chosen {
            for port in list(service.at("/spec/ports")) {
                let Some(number) = at(port, "/port").as_u64() else { continue };
                let protocol = match text(port, "/protocol") {
                    "" => "TCP",
                    protocol => protocol,
                };
                let names = protocols.entry(number).or_default().entry(protocol).or_default();
                names.push(service.key.full_name());
                let target = match at(port, "/targetPort") {
                    Value::String(name) => name.clone(),
                    Value::Number(target) => target.to_string(),
                    _ => number.to_string(),
                };
                targets.entry(target).or_default().insert(number, service.key.full_name());
            }
        }
        let name = &deployment.key.name;
        for (port, by_protocol) in protocols.into_iter().filter(|(_, protocols)| protocols.len() > 1) {
            let mut names: Vec<String> = by_protocol.into_values().flatten().collect();
            names.sort();
            let message = format!(
                "This deployment {name} is associated with multiple services using port {port} but different \
                 protocols: {}",
                words(&names)
            );
            out.push(Message::new("IST0116", &deployment.key, message).at("metadata.name"));
        }
        for (target, by_port) in targets.into_iter().filter(|(_, ports)| ports.len() > 1) {
            let names: Vec<String> = by_port.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
            let ports: Vec<u64> = by_port.into_keys().collect();
            let message = format!(
                "This deployment {name} is associated with multiple services {} using targetPort {target:?} \
                 but different ports: {}.",
                words(&names),
                words(&ports)
            );
            out.push(Message::new("IST0137", &deployment.key, message).at("metadata.name"));
        }
    }
}
