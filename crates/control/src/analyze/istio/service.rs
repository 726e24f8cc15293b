//! Services and ServiceEntries: ports and what they speak, addresses.

use std::collections::{BTreeMap, BTreeSet};

use leno_derive::Cx;
use serde_json::Value;

use super::deployment::is_control_plane;
use super::hosts::scopes;
use crate::analyze::message::Message;
use crate::analyze::raw::{Raw, all, at, list, text, texts};
use crate::registry::protocol::Protocol;

/// Controllers whose Services nobody has written by hand.
const MANAGED: [&str; 3] =
    ["istio.io-gateway-controller", "istio.io-mesh-controller", "istio.io-eastwest-controller"];

/// Ports whose names do not tell what they speak: IST0118, and IST0150 for other names of services.
pub(super) fn port_names(cx: &Cx<'_>, out: &mut Vec<Message>) {
    for service in all(cx, "Service") {
        let manager = service.labels().find("gateway.istio.io/managed").unwrap_or_default();
        if is_control_plane(&service) || MANAGED.contains(&manager) {
            continue;
        }
        let external = service.text("/spec/type") == "ExternalName";
        for (index, port) in list(service.at("/spec/ports")).iter().enumerate() {
            let (name, number) = (text(port, "/name"), at(port, "/port").as_u64().unwrap_or_default());
            let is_udp = matches!(text(port, "/protocol"), "UDP" | "SCTP");
            let declared = at(port, "/appProtocol").as_str();
            let number16 = u16::try_from(number).unwrap_or_default();
            let unknown = Protocol::of_kubernetes(number16, name, declared) == Protocol::Auto && !is_udp;
            if !(unknown || external && name == "tcp") {
                continue;
            }
            let message = if external {
                let words = "Port name for ExternalName service is invalid: the proxy may not forward tcp named \
                             ports, and unmatched traffic of ports that speak TCP, as it should.";
                Message::new("IST0150", &service.key, words.to_owned())
            } else {
                let target = match at(port, "/targetPort") {
                    Value::String(target) => target.clone(),
                    Value::Number(target) => target.to_string(),
                    _ => "0".to_owned(),
                };
                let words = format!(
                    "Port name {name} (port: {number}, targetPort: {target}) doesn't follow the naming \
                     convention of Istio port."
                );
                Message::new("IST0118", &service.key, words)
            };
            out.push(message.at(format!("spec.ports[{index}]")));
        }
    }
}

/// TCP ports of services without addresses, which nothing tells apart: IST0134.
pub(super) fn addresses(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let is_on = |mesh: &Raw, name: &str| mesh.text(&format!("/defaultConfig/proxyMetadata/{name}")) == "true";
    let given = all(cx, "MeshConfig").iter().any(|mesh| {
        let allocated = ["ISTIO_META_DNS_AUTO_ALLOCATE", "PILOT_ENABLE_IP_AUTOALLOCATE"];
        is_on(mesh, "ISTIO_META_DNS_CAPTURE") && allocated.iter().any(|name| is_on(mesh, name))
    });
    if given {
        return;
    }
    for entry in all(cx, "ServiceEntry") {
        if !list(entry.at("/spec/addresses")).is_empty() || !list(entry.at("/status/addresses")).is_empty() {
            continue;
        }
        for (index, port) in list(entry.at("/spec/ports")).iter().enumerate() {
            let protocol = text(port, "/protocol");
            if protocol.is_empty() || protocol.eq_ignore_ascii_case("TCP") {
                let message = "ServiceEntry addresses are required for this protocol.".to_owned();
                out.push(Message::new("IST0134", &entry.key, message).at(format!("spec.ports[{index}]")));
            }
        }
    }
}

/// Entries that disagree on what a port of a host speaks: IST0177.
pub(super) fn protocols(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mut index: BTreeMap<(String, String, u64), Vec<(String, Raw)>> = BTreeMap::new();
    for entry in all(cx, "ServiceEntry") {
        for scope in scopes(&texts(entry.at("/spec/exportTo")), &entry.key.namespace) {
            for host in texts(entry.at("/spec/hosts")) {
                for port in list(entry.at("/spec/ports")) {
                    let Some(number) = at(port, "/number").as_u64() else { continue };
                    let protocol = text(port, "/protocol").to_ascii_uppercase();
                    let key = (scope.clone(), host.to_owned(), number);
                    index.entry(key).or_default().push((protocol, entry.clone()));
                }
            }
        }
    }
    let mut told = BTreeSet::new();
    for ((scope, host, port), entries) in &index {
        let mut entries: Vec<&(String, Raw)> = entries.iter().collect();
        if scope != "*" {
            entries.extend(index.get(&("*".to_owned(), host.clone(), *port)).into_iter().flatten());
        }
        let protocols: BTreeSet<&str> = entries.iter().map(|(protocol, _)| protocol.as_str()).collect();
        if protocols.len() < 2 {
            continue;
        }
        let names: BTreeSet<String> = entries.iter().map(|(_, entry)| entry.key.full_name()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let protocols = protocols.into_iter().collect::<Vec<_>>().join(", ");
        for (_, entry) in entries {
            if told.insert(entry.key.clone()) {
                let message = format!(
                    "Multiple ServiceEntries ({names}) define the same host {host:?} and port {port} with \
                     conflicting protocols ({protocols})."
                );
                out.push(Message::new("IST0177", &entry.key, message).at("metadata.name"));
            }
        }
    }
}
