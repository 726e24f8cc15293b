//! EndpointSlices of Services, and what kube-proxy makes of both.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use leno_node::Service;
use serde_json::{Value, json};

use super::super::cache::{Objects, Write, text};
use super::{delete, is_deleted, is_owned, is_ready, owner, patch, selects, word};

const SERVICE: &str = "kubernetes.io/service-name";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Makes the slices of all Services with selectors be what they should be.
pub(crate) fn slices(objects: &Objects, node: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for service in objects.all("services").filter(|it| !is_deleted(it)) {
        if !service["spec"]["selector"].is_object() || text(service, "/spec/type") == "ExternalName" {
            continue;
        }
        let wanted = of(objects, service, node);
        let known = objects.of("endpointslices", text(service, "/metadata/namespace"));
        let known: Vec<&Value> = known.map(AsRef::as_ref).filter(|it| is_owned(it, service)).collect();
        for (name, slice) in &wanted {
            match known.iter().find(|it| text(it, "/metadata/name") == name) {
                None => writes.push(Write::Create { plural: "endpointslices", object: slice.clone() }),
                Some(before) => {
                    let fields = ["endpoints", "ports"];
                    if fields.iter().any(|field| before.get(field) != slice.get(field)) {
                        let new = json!({ "endpoints": slice["endpoints"], "ports": slice["ports"] });
                        writes.push(patch("endpointslices", before, "", new));
                    }
                }
            }
        }
        let gone = known.iter().filter(|it| !wanted.contains_key(text(it, "/metadata/name")));
        writes.extend(gone.map(|it| delete("endpointslices", it)));
    }
    writes
}

/// The slices of a Service by name: one for each way in which its ports' names are resolved.
fn of(objects: &Objects, service: &Value, node: &str) -> BTreeMap<String, Value> {
    let namespace = text(service, "/metadata/namespace");
    let unready_count = service.pointer("/spec/publishNotReadyAddresses") == Some(&json!(true));
    let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    let pods = objects.of("pods", namespace).filter(|pod| {
        selects(service.pointer("/spec/selector"), pod.pointer("/metadata/labels"))
            && !text(pod, "/status/podIP").is_empty()
            && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
    });
    for pod in pods {
        let ports = ports(service, pod);
        let (is_ready, deleted) = (is_ready(pod), is_deleted(pod));
        let mut endpoint = json!({
            "addresses": [text(pod, "/status/podIP")],
            "conditions": { "ready": (is_ready && !deleted) || unready_count, "serving": is_ready,
                "terminating": deleted },
            "nodeName": node,
            "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"] },
        });
        let host = text(pod, "/spec/hostname");
        if !host.is_empty() && text(pod, "/spec/subdomain") == text(service, "/metadata/name") {
            endpoint["hostname"] = json!(host);
        }
        groups.entry(ports.to_string()).or_insert((ports, Vec::new())).1.push(endpoint);
    }
    if groups.is_empty() {
        groups.insert(String::new(), (json!([]), Vec::new()));
    }
    let name = text(service, "/metadata/name");
    let slice = |(index, (ports, endpoints)): (usize, (Value, Vec<Value>))| {
        let name = format!("{name}-{}", word(&json!([service["metadata"]["uid"], index]), 5));
        let mut labels = service["metadata"]["labels"].clone();
        if !labels.is_object() {
            labels = json!({});
        }
        labels[SERVICE] = json!(text(service, "/metadata/name"));
        labels["endpointslice.kubernetes.io/managed-by"] = json!(CONTROLLER);
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": namespace, "labels": labels,
                "ownerReferences": owner(service) },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        });
        (name, object)
    };
    groups.into_values().enumerate().map(slice).collect()
}

/// A Service's ports as a pod has them; those whose name it does not know are left out.
fn ports(service: &Value, pod: &Value) -> Value {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let port = |port: &Value| {
        let number = match &port["targetPort"] {
            Value::String(name) => name.parse().ok().or_else(|| container_port(pod, name)),
            Value::Number(number) => number.as_i64().filter(|it| *it != 0),
            _ => None,
        };
        let number = match (&port["targetPort"], number) {
            (Value::String(_), number) => number?,
            (_, number) => number.or_else(|| port["port"].as_i64())?,
        };
        let mut found = json!({ "name": text(port, "/name"), "port": number,
            "protocol": port.get("protocol").cloned().unwrap_or_else(|| json!("TCP")) });
        if let Some(protocol) = port.get("appProtocol") {
            found["appProtocol"] = protocol.clone();
        }
        Some(found)
    };
    Value::Array(ports.into_iter().flatten().filter_map(port).collect())
}

fn container_port(pod: &Value, name: &str) -> Option<i64> {
    let lists = ["/spec/containers", "/spec/initContainers"];
    let containers = lists.iter().filter_map(|it| pod.pointer(it)?.as_array()).flatten();
    let mut ports = containers.filter_map(|it| it.get("ports")?.as_array()).flatten();
    ports.find(|it| text(it, "/name") == name)?.get("containerPort")?.as_i64()
}

/// What kube-proxy leads where: addresses of Services, and ports of the node, to endpoints that are ready.
pub(crate) fn proxied(objects: &Objects, node: Ipv4Addr) -> Vec<Service> {
    let mut found = Vec::new();
    for service in objects.all("services") {
        let address = text(service, "/spec/clusterIP").parse::<Ipv4Addr>().ok();
        let namespace = text(service, "/metadata/namespace");
        let slices: Vec<_> = objects
            .of("endpointslices", namespace)
            .filter(|it| {
                it.pointer("/metadata/labels").and_then(|it| it.get(SERVICE))
                    == Some(&service["metadata"]["name"])
            })
            .collect();
        let is_balanced = text(service, "/spec/type") == "LoadBalancer";
        for port in service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
            if !matches!(text(port, "/protocol"), "" | "TCP") {
                continue;
            }
            let number =
                |name: &str| port.get(name).and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
            let endpoints: Vec<SocketAddrV4> =
                slices.iter().flat_map(|slice| endpoints(slice, text(port, "/name"))).collect();
            let mut lead = |address: Option<Ipv4Addr>, port: Option<u16>| {
                if let (Some(address), Some(port)) = (address, port) {
                    let address = SocketAddrV4::new(address, port);
                    found.push(Service { address, endpoints: endpoints.clone() });
                }
            };
            lead(address, number("port"));
            lead(Some(node), number("nodePort"));
            lead(Some(node).filter(|_| is_balanced), number("port"));
        }
    }
    found
}

fn endpoints(slice: &Value, name: &str) -> Vec<SocketAddrV4> {
    let ports = slice.get("ports").and_then(Value::as_array);
    let port = ports.into_iter().flatten().find(|it| text(it, "/name") == name);
    let port = port.and_then(|it| it.get("port")?.as_u64()).and_then(|it| u16::try_from(it).ok());
    let Some(port) = port else { return Vec::new() };
    let all = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
    let ready = all.filter(|it| it.pointer("/conditions/ready") != Some(&json!(false)));
    let address = |it: &Value| text(it, "/addresses/0").parse().ok();
    ready.filter_map(address).map(|it| SocketAddrV4::new(it, port)).collect()
}
