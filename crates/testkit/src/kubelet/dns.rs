//! The cluster's DNS: names of Services, and of what the ConfigMap `coredns` of kube-system has as `NodeHosts`, in the
//! form of /etc/hosts, over UDP. What it does not know does not exist, as there is no world outside of the machine.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::cache::{Cache, Objects, text};

const TTL: u32 = 5;
const DOMAIN: &str = ".svc.cluster.local.";

/// Answers until it is dropped.
pub(super) async fn serve(socket: UdpSocket, cache: Cache) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((read, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(query) = Message::from_vec(buffer.get(..read).unwrap_or_default()) else { continue };
        if query.metadata.message_type != MessageType::Query {
            continue;
        }
        if let Ok(bytes) = answer(&query, &cache.objects()).to_vec() {
            let _ = socket.send_to(&bytes, from).await;
        }
    }
}

fn answer(query: &Message, objects: &Objects) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.first().cloned());
    let Some(question) = query.queries.first() else {
        answer.metadata.response_code = ResponseCode::FormErr;
        return answer;
    };
    let owner = question.name().clone();
    let mut name = owner.to_ascii().to_ascii_lowercase();
    if !name.ends_with('.') {
        name.push('.');
    }
    match find(objects, &name) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Found::Alias(other)) => {
            let Ok(alias) = Name::from_ascii(&other) else { return answer };
            answer.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(alias.clone()))));
            // Clients do not follow it by themselves.
            if let (Some(Found::Addresses(addresses)), RecordType::A) =
                (find(objects, &other.to_ascii_lowercase()), question.query_type())
            {
                for address in addresses {
                    answer.add_answer(Record::from_rdata(alias.clone(), TTL, RData::A(A(address))));
                }
            }
        }
        Some(Found::Addresses(addresses)) if question.query_type() == RecordType::A => {
            for address in addresses {
                answer.add_answer(Record::from_rdata(owner.clone(), TTL, RData::A(A(address))));
            }
        }
        Some(Found::Addresses(_)) => {}
    }
    answer
}

#[derive(Debug, PartialEq)]
enum Found {
    Addresses(Vec<Ipv4Addr>),
    Alias(String),
}

/// What a name stands for, which ends in a dot.
fn find(objects: &Objects, name: &str) -> Option<Found> {
    let Some(rest) = name.strip_suffix(DOMAIN) else { return outside(objects, name) };
    let mut parts: Vec<&str> = rest.split('.').collect();
    let (namespace, service) = (parts.pop()?, parts.pop()?);
    let host = parts.pop();
    if !parts.is_empty() {
        return None;
    }
    let found = objects.find("services", namespace, service)?;
    if text(found, "/spec/type") == "ExternalName" {
        return host.is_none().then(|| Found::Alias(format!("{}.", text(found, "/spec/externalName"))));
    }
    if let (Ok(address), None) = (text(found, "/spec/clusterIP").parse(), host) {
        return Some(Found::Addresses(vec![address]));
    }
    let slices = objects.of("endpointslices", namespace).filter(|it| {
        let labels = it.pointer("/metadata/labels");
        labels.and_then(|it| it.get("kubernetes.io/service-name")) == Some(&json!(service))
    });
    let endpoints = slices.filter_map(|it| it.get("endpoints")?.as_array()).flatten();
    let ready = endpoints.filter(|it| it.pointer("/conditions/ready") != Some(&json!(false)));
    let named = ready.filter(|it| host.is_none_or(|host| text(it, "/hostname") == host));
    let addresses: Vec<Ipv4Addr> =
        named.filter_map(|it: &Value| text(it, "/addresses/0").parse().ok()).collect();
    (host.is_none() || !addresses.is_empty()).then_some(Found::Addresses(addresses))
}

/// Who is meant by a name outside of the cluster.
fn outside(objects: &Objects, name: &str) -> Option<Found> {
    let hosts = objects.find("configmaps", "kube-system", "coredns")?;
    let lines = text(hosts, "/data/NodeHosts").lines().map(str::split_whitespace);
    let named = lines.filter(|it| it.clone().skip(1).any(|it| name.strip_suffix('.') == Some(it)));
    let addresses: Vec<Ipv4Addr> = named.filter_map(|mut it| it.next()?.parse().ok()).collect();
    (!addresses.is_empty()).then_some(Found::Addresses(addresses))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cache::Objects;
    use super::{Found, find};

    #[test]
    fn names_of_services() {
        let mut objects = Objects::default();
        let service =
            |name: &str, spec| json!({ "metadata": { "namespace": "a", "name": name }, "spec": spec });
        objects.put("services", service("web", json!({ "clusterIP": "10.96.0.9" })));
        objects.put("services", service("db", json!({ "clusterIP": "None" })));
        objects.put("services", service("away", json!({ "type": "ExternalName", "externalName": "x.test" })));
        let endpoint = |address: &str, host: &str, ready: bool| json!({ "addresses": [address], "hostname": host, "conditions": { "ready": ready } });
        let labels = json!({ "kubernetes.io/service-name": "db" });
        objects.put(
            "endpointslices",
            json!({ "metadata": { "namespace": "a", "name": "db-1", "labels": labels }, "endpoints":
                [endpoint("10.0.0.1", "db-0", true), endpoint("10.0.0.2", "db-1", false)] }),
        );
        objects.put(
            "configmaps",
            json!({ "metadata": { "namespace": "kube-system", "name": "coredns" },
                "data": { "NodeHosts": "198.51.100.1 a.test b.test\n198.51.100.2 c.test\n" } }),
        );
        let address = |it: &str| Some(Found::Addresses(vec![it.parse().unwrap()]));
        for (name, expected) in [
            ("web.a.svc.cluster.local.", address("10.96.0.9")),
            ("db.a.svc.cluster.local.", address("10.0.0.1")),
            ("db-0.db.a.svc.cluster.local.", address("10.0.0.1")),
            ("db-1.db.a.svc.cluster.local.", None),
            ("away.a.svc.cluster.local.", Some(Found::Alias("x.test.".to_owned()))),
            ("web.b.svc.cluster.local.", None),
            ("web.a.", None),
            ("b.test.", address("198.51.100.1")),
            ("c.test.", address("198.51.100.2")),
            ("d.test.", None),
            ("x.y.web.a.svc.cluster.local.", None),
        ] {
            assert_eq!(find(&objects, name), expected, "{name}");
        }
    }
}
