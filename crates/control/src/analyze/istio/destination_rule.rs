//! DestinationRules: TLS that verifies nobody, hosts and subsets that nothing is behind.

use leno_derive::Cx;
use serde_json::Value;

use super::hosts::Hosts;
use crate::analyze::message::Message;
use crate::analyze::raw::{Labels, Raw, all, at, labels, list, text};

/// TLS to servers whose certificates nobody verifies: IST0128 and, at a port, IST0129.
pub(super) fn certificates(cx: &Cx<'_>, out: &mut Vec<Message>) {
    for rule in all(cx, "DestinationRule") {
        let selected = rule.at("/spec/workloadSelector").is_object();
        let careless = |tls: &Value| {
            let credential = !text(tls, "/credentialName").is_empty() && selected;
            matches!(text(tls, "/mode"), "SIMPLE" | "MUTUAL")
                && text(tls, "/caCertificates").is_empty()
                && !credential
        };
        let about = |tls: &Value| {
            format!(
                "DestinationRule {} in namespace {} has TLS mode set to {} but no caCertificates are set to \
                 validate server identity for host: {}",
                rule.key.full_name(),
                rule.key.namespace,
                text(tls, "/mode"),
                rule.text("/spec/host")
            )
        };
        let tls = rule.at("/spec/trafficPolicy/tls");
        if careless(tls) {
            out.push(Message::new("IST0128", &rule.key, about(tls)).at("spec.trafficPolicy.tls"));
        }
        for (index, port) in list(rule.at("/spec/trafficPolicy/portLevelSettings")).iter().enumerate() {
            let tls = at(port, "/tls");
            if careless(tls) {
                let message = format!("{} at port number:{}", about(tls), at(port, "/port/number"));
                let path = format!("spec.trafficPolicy.portLevelSettings[{index}].tls");
                out.push(Message::new("IST0129", &rule.key, message).at(path));
            }
        }
    }
}

/// Hosts that no service has (IST0174), and subsets that no pod is in (IST0173).
pub(super) fn subsets(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let hosts = Hosts::gather(cx);
    let (pods, nodes) = (all(cx, "Pod"), all(cx, "Node"));
    for rule in all(cx, "DestinationRule") {
        let host = rule.text("/spec/host");
        let Some(known) = hosts.find(host, &rule.key.namespace, rule.at("/spec/exportTo")) else {
            let message = format!(
                "The host {host} defined in the DestinationRule does not match any services in the mesh."
            );
            out.push(Message::new("IST0174", &rule.key, message).at("spec.host"));
            continue;
        };
        for (index, subset) in list(rule.at("/spec/subsets")).iter().enumerate() {
            let mut selector = labels(at(subset, "/labels"));
            for (name, value) in &known.selector {
                selector.0.entry(name).or_insert(value);
            }
            if !pods.iter().any(|pod| is_in(&selector, pod, &nodes)) {
                let message = format!(
                    "The Subset {} defined in the DestinationRule does not select any pods. Requests to it may \
                     get 503 UH (NoHealthyUpstream).",
                    text(subset, "/name")
                );
                out.push(Message::new("IST0173", &rule.key, message).at(format!("spec.subsets[{index}]")));
            }
        }
    }
}

/// Whether a pod has the labels, those of its place included.
fn is_in(selector: &Labels<'_>, pod: &Raw, nodes: &[Raw]) -> bool {
    let mut own = pod.labels();
    let name = pod.text("/spec/nodeName");
    let node = nodes.iter().find(|node| node.key.name == name);
    let places =
        ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];
    let node_labels = node.map(Raw::labels).unwrap_or_default();
    for place in places {
        if let Some(value) = node_labels.find(place).filter(|value| !value.is_empty()) {
            own.0.entry(place).or_insert(value);
        }
    }
    if !name.is_empty() {
        own.0.entry("kubernetes.io/hostname").or_insert(name);
    }
    selector.selects(&own)
}
