//! Gateways: the pods and services that they need, certificates, and others on the same port.

use leno_derive::Cx;
use leno_tls::Certificate;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::analyze::message::{Message, words};
use crate::analyze::raw::{Now, Raw, all, at, find, labels, list, text, texts};

fn selector_path(gateway: &Raw) -> String {
    let selector = labels(gateway.at("/spec/selector"));
    match selector.0.keys().next() {
        Some(name) => format!("spec.selector[{name:?}]"),
        None => "spec.selector".to_owned(),
    }
}

/// Two gateways with one certificate, for which clients may use one connection: IST0138.
pub(super) fn certificates(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let gateways = all(cx, "Gateway");
    let tls = |gateway: &Raw| -> Vec<Value> {
        list(gateway.at("/spec/servers")).iter().filter_map(|server| server.get("tls").cloned()).collect()
    };
    for gateway in &gateways {
        let selector = labels(gateway.at("/spec/selector"));
        let others = gateways.iter().filter(|other| other.key != gateway.key);
        for other in others.filter(|other| selector.selects(&labels(other.at("/spec/selector")))) {
            let pairs =
                tls(gateway).into_iter().flat_map(|a| tls(other).into_iter().map(move |b| (a.clone(), b)));
            for _ in pairs.filter(|(a, b)| is_same_certificate(a, b)) {
                let names = [gateway.key.full_name(), other.key.full_name()];
                let message = format!(
                    "Duplicate certificate in multiple gateways {} may cause 404s if clients re-use HTTP2 \
                     connections.",
                    words(&names)
                );
                out.push(Message::new("IST0138", &gateway.key, message).at("metadata.name"));
            }
        }
    }
}

fn is_same_certificate(a: &Value, b: &Value) -> bool {
    let same = |field: &str| !text(a, field).is_empty() && text(a, field) == text(b, field);
    let both_without = ["", ""] == [text(a, "/credentialName"), text(b, "/credentialName")];
    same("/credentialName") || (both_without && same("/serverCertificate") && same("/privateKey"))
}

/// Gateways of the same pods with the same port and hosts: IST0145.
pub(super) fn conflicts(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let gateways = all(cx, "Gateway");
    let pods = all(cx, "Pod");
    for gateway in &gateways {
        let selector = labels(gateway.at("/spec/selector"));
        let shares = |other: &Raw| {
            let theirs = labels(other.at("/spec/selector"));
            let (a, b) = (selector.to_string(), theirs.to_string());
            a == b
                || ((a.contains(&b) || b.contains(&a))
                    && pods
                        .iter()
                        .any(|pod| selector.selects(&pod.labels()) && theirs.selects(&pod.labels())))
        };
        let others: Vec<&Raw> =
            gateways.iter().filter(|other| other.key != gateway.key && shares(other)).collect();
        for (index, server) in list(gateway.at("/spec/servers")).iter().enumerate() {
            let port = at(server, "/port/number");
            let clashes = |other: &&&Raw| {
                list(other.at("/spec/servers")).iter().any(|theirs| {
                    let hosts = texts(at(theirs, "/hosts"));
                    at(theirs, "/port/number") == port
                        && text(theirs, "/bind") == text(server, "/bind")
                        && texts(at(server, "/hosts")).iter().any(|host| hosts.contains(host))
                })
            };
            let mut names: Vec<String> = others.iter().filter(clashes).map(|it| it.key.full_name()).collect();
            if names.is_empty() {
                continue;
            }
            names.sort();
            let message = format!(
                "Conflict with gateways {} (workload selector {selector}, port {port}, hosts {}).",
                names.join(","),
                texts(at(server, "/hosts")).join(",")
            );
            out.push(Message::new("IST0145", &gateway.key, message).at(format!("spec.servers[{index}]")));
        }
    }
}

/// Gateways without pods (IST0101), and ports that no service in front of these has (IST0162).
pub(super) fn ports(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let (pods, services) = (all(cx, "Pod"), all(cx, "Service"));
    for gateway in all(cx, "Gateway") {
        let selector = labels(gateway.at("/spec/selector"));
        let chosen: Vec<&Raw> = pods.iter().filter(|pod| selector.selects(&pod.labels())).collect();
        if chosen.is_empty() {
            let message = Message::missing(&gateway.key, "selector", &selector.to_string());
            out.push(message.at(selector_path(&gateway)));
            continue;
        }
        let mut offered = Vec::new();
        for service in &services {
            let selects = labels(service.at("/spec/selector"));
            let here = |pod: &&&Raw| pod.key.namespace == service.key.namespace;
            if !chosen.iter().filter(here).any(|pod| selects.selects(&pod.labels())) {
                continue;
            }
            for port in list(service.at("/spec/ports")) {
                if !matches!(text(port, "/protocol"), "TCP" | "") {
                    continue;
                }
                offered.extend(at(port, "/port").as_u64());
                offered.extend(at(port, "/targetPort").as_u64());
            }
        }
        for server in list(gateway.at("/spec/servers")) {
            let Some(number) = at(server, "/port/number").as_u64() else { continue };
            if !offered.contains(&number) {
                let message = format!(
                    "The gateway is listening on a target port (port {number}) that is not defined in the \
                     Service associated with its workload instances (Pod selector {selector}): it cannot be \
                     reached through the Service."
                );
                out.push(Message::new("IST0162", &gateway.key, message).at(selector_path(&gateway)));
            }
        }
    }
}

/// Secrets that are not there (IST0101) or hold no certificate that is valid (IST0161).
pub(super) fn secrets(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let pods = all(cx, "Pod");
    let now = cx.input::<Now>(&()).map(|now| *now);
    for gateway in all(cx, "Gateway") {
        let selector = labels(gateway.at("/spec/selector"));
        let Some(pod) = pods.iter().find(|pod| selector.selects(&pod.labels())) else {
            let message = Message::missing(&gateway.key, "selector", &selector.to_string());
            out.push(message.at(selector_path(&gateway)));
            continue;
        };
        for (index, server) in list(gateway.at("/spec/servers")).iter().enumerate() {
            let name = text(server, "/tls/credentialName");
            if name.is_empty() {
                continue;
            }
            let (namespace, short) = name.split_once('/').unwrap_or((&pod.key.namespace, name));
            let path = format!("spec.servers[{index}].tls.credentialName");
            match find(cx, "Secret", namespace, short) {
                None => out.push(Message::missing(&gateway.key, "credentialName", name).at(path)),
                Some(secret) if !is_good_credential(&secret, now) => {
                    let message = format!(
                        "The credential referenced by the Gateway {} in namespace {} is invalid, which can \
                         cause the traffic not to work as expected.",
                        gateway.key.name, pod.key.namespace
                    );
                    out.push(Message::new("IST0161", &gateway.key, message).at(path));
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether a Secret holds a certificate in PEM that is valid now and a key, under the names that
/// Kubernetes uses or under those of generic Secrets.
fn is_good_credential(secret: &Raw, now: Option<i64>) -> bool {
    let value = |names: [&str; 2]| names.into_iter().find_map(|name| value_of(secret, name));
    let certificate = value(["tls.crt", "cert"]).unwrap_or_default();
    let has_key = value(["tls.key", "key"]).is_some_and(|key| !key.is_empty());
    let text = String::from_utf8_lossy(&certificate).into_owned();
    let body = text.split_once("-----BEGIN CERTIFICATE-----").and_then(|(_, rest)| {
        let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
        leno_base::base64::decode(body.split_whitespace().collect::<String>().as_bytes())
    });
    let certificate = body.and_then(|body| Certificate::parse(&CertificateDer::from(body)).ok());
    let is_valid = |certificate: &Certificate| {
        let (from, to) = certificate.validity();
        now.is_none_or(|now| (from..=to).contains(&now))
    };
    has_key && certificate.as_ref().is_some_and(is_valid)
}

fn value_of(secret: &Raw, name: &str) -> Option<Vec<u8>> {
    if let Some(plain) = secret.at("/stringData").get(name).and_then(Value::as_str) {
        return Some(plain.as_bytes().to_vec());
    }
    leno_base::base64::decode(secret.at("/data").get(name)?.as_str()?.as_bytes())
}
