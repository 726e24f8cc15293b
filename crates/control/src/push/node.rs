//! Who a proxy says it is: `sidecar~10.0.0.5~reviews-v1-abc.default~default.svc.cluster.local`, and
//! the metadata that Istio's agent sends along.

use std::collections::BTreeMap;
use std::net::IpAddr;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_derive::Graph;
use prost_types::Value;
use prost_types::value::Kind;

use crate::model::Key;
use crate::model::duration::Span;
use crate::model::inputs::{Nodes, Pods};
use crate::registry::instances::{locality_label, locality_of_node};
use crate::scope::locality::NETWORK;
use crate::scope::{Families, Interception, ProxyKey, ProxyOptions, Role, Site};

/// The port of the explicit HTTP proxy unless the metadata says otherwise; Istio's.
const HTTP_PROXY_PORT: u16 = 15080;

/// The metadata field by which an agent says, with `false`, that it has no certificates to give.
const CERTIFICATES: &str = "MESH_CERTIFICATES";

/// A proxy that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// `pod.namespace`.
    pub(crate) name: String,
    /// The whole identifier.
    pub(crate) id: String,
    pub(crate) key: ProxyKey,
}

/// Why a proxy cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadNode {
    #[error("the first request has no node")]
    Missing,
    #[error("node id {0:?} is not TYPE~IP~NAME.NAMESPACE~DOMAIN")]
    Malformed(String),
    #[error("node type {0:?} is neither sidecar nor router")]
    Type(String),
    #[error("metadata {0}: {1}")]
    Metadata(&'static str, String),
}

/// Reads a node. Where it does not give its labels, those of its Pod are taken.
pub(crate) fn parse(graph: &Graph, node: &core::Node) -> Result<Node, BadNode> {
    let malformed = || BadNode::Malformed(node.id.clone());
    let mut parts = node.id.splitn(4, '~');
    let (Some(kind), Some(ip), Some(name), Some(_domain)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed());
    };
    let role = match kind {
        "sidecar" => Role::Sidecar,
        "router" => Role::Router,
        other => return Err(BadNode::Type(other.to_owned())),
    };
    let (pod, id_namespace) = name.rsplit_once('.').ok_or_else(malformed)?;
    let metadata = node.metadata.as_ref().map(|metadata| &metadata.fields);
    let field =
        |name: &str| metadata.and_then(|fields| fields.get(name)).and_then(|value| value.kind.as_ref());
    let namespace = match field("NAMESPACE") {
        Some(Kind::StringValue(namespace)) if !namespace.is_empty() => namespace.clone(),
        None | Some(Kind::NullValue(_) | Kind::StringValue(_)) => id_namespace.to_owned(),
        Some(other) => return Err(BadNode::Metadata("NAMESPACE", format!("{other:?} is no text"))),
    };
    if namespace.is_empty() {
        return Err(malformed());
    }
    let labels = match field("LABELS") {
        Some(Kind::StructValue(labels)) => {
            labels.fields.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
        }
        None | Some(Kind::NullValue(_)) => {
            pod_of(graph, &namespace, pod).map_or_else(BTreeMap::new, |pod| pod.meta.labels.clone())
        }
        Some(other) => return Err(BadNode::Metadata("LABELS", format!("{other:?} is no structure"))),
    };
    let interception = match field("INTERCEPTION_MODE") {
        Some(Kind::StringValue(mode)) => match mode.as_str() {
            "REDIRECT" | "" => Interception::Redirect,
            "TPROXY" => Interception::Tproxy,
            "NONE" => Interception::Explicit {
                address: ip.parse::<IpAddr>().map_err(|_| malformed())?,
                port: http_proxy_port(field("HTTP_PROXY_PORT"))?,
            },
            other => {
                let message = format!("{other:?} is none of REDIRECT, TPROXY, NONE");
                return Err(BadNode::Metadata("INTERCEPTION_MODE", message));
            }
        },
        _ => Interception::Redirect,
    };
    let http10 = matches!(field("HTTP10"), Some(Kind::StringValue(flag)) if flag == "1");
    let idle_timeout = match field("IDLE_TIMEOUT") {
        Some(Kind::StringValue(text)) if !text.is_empty() => {
            let span = Span::parse(text).filter(|span| !span.is_zero());
            Some(span.ok_or_else(|| BadNode::Metadata("IDLE_TIMEOUT", format!("{text:?} is no duration")))?)
        }
        _ => None,
    };
    let words = |name: &str| match field(name) {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    };
    let machine = match words("NODE_NAME") {
        name if name.is_empty() => {
            pod_of(graph, &namespace, pod).map(|pod| pod.node.clone()).unwrap_or_default()
        }
        name => name,
    };
    let network = match words("NETWORK") {
        name if name.is_empty() => labels.get(NETWORK).cloned().unwrap_or_default(),
        name => name,
    };
    let site = Site {
        locality: locality(graph, node, &labels, &machine),
        network,
        node: machine,
        // An agent of Istio's gives certificates, unless it says that it does not.
        certificates: field("ISTIO_VERSION").is_some()
            && !matches!(field(CERTIFICATES), Some(Kind::BoolValue(false))),
    };
    // A gateway does not intercept anything. Without namespaces of its own it has only its address.
    let interception = match interception {
        Interception::Tproxy if role == Role::Router => Interception::Redirect,
        interception => interception,
    };
    Ok(Node {
        name: name.to_owned(),
        id: node.id.clone(),
        key: ProxyKey {
            role,
            namespace,
            labels,
            interception,
            families: families(ip, field("INSTANCE_IPS")),
            options: ProxyOptions { http10, idle_timeout },
            site,
        },
    })
}

/// The kinds of addresses that a proxy has: those that it names, else that of its identifier.
fn families(ip: &str, addresses: Option<&Kind>) -> Families {
    let named = match addresses {
        Some(Kind::StringValue(text)) if !text.is_empty() => text.as_str(),
        _ => ip,
    };
    Families::of(named.split(',').filter_map(|address| address.trim().parse::<IpAddr>().ok()))
}

/// Where a proxy is: what is known of its machine counts before what it says itself.
fn locality(graph: &Graph, node: &core::Node, labels: &BTreeMap<String, String>, machine: &str) -> String {
    if let Some(locality) = locality_label(labels) {
        return locality;
    }
    let key = Key { namespace: String::new(), name: machine.to_owned() };
    let known = graph.input::<Nodes>(&key).map(|node| locality_of_node(&node.meta.labels));
    if let Some(locality) = known.filter(|locality| !locality.is_empty()) {
        return locality;
    }
    match &node.locality {
        Some(core::Locality { region, zone, sub_zone })
            if !(region.is_empty() && zone.is_empty() && sub_zone.is_empty()) =>
        {
            format!("{region}/{zone}/{sub_zone}")
        }
        _ => String::new(),
    }
}

fn pod_of(graph: &Graph, namespace: &str, name: &str) -> Option<std::sync::Arc<crate::model::kube::Pod>> {
    graph.input::<Pods>(&Key { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn http_proxy_port(field: Option<&Kind>) -> Result<u16, BadNode> {
    let port = match field {
        None => return Ok(HTTP_PROXY_PORT),
        Some(Kind::StringValue(port)) => port.parse().ok(),
        Some(Kind::NumberValue(port)) if port.fract() == 0.0 && (1.0..=65535.0).contains(port) => {
            Some(*port as u16)
        }
        Some(_) => None,
    };
    port.filter(|port| *port != 0)
        .ok_or_else(|| BadNode::Metadata("HTTP_PROXY_PORT", format!("{field:?} is no port")))
}

fn text(value: &Value) -> Option<String> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::BoolValue(truth) => Some(truth.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use leno_api::proto::envoy::config::core::v3 as core;
    use leno_derive::Graph;
    use prost_types::Struct;

    use super::{BadNode, parse};
    use crate::scope::{Interception, Role};
    use crate::translate::resource::{from_json, object, text};

    fn node(id: &str, fields: Vec<(&'static str, prost_types::Value)>) -> core::Node {
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        core::Node { id: id.to_owned(), metadata: Some(Struct { fields }), ..core::Node::default() }
    }

    #[test]
    fn reads_istios_nodes() {
        let graph = Graph::new();
        let labels = object([("app", text("reviews"))]);
        let read = parse(
            &graph,
            &node("sidecar~10.0.0.5~reviews-v1.a~a.svc.cluster.local", vec![("LABELS", labels)]),
        );
        let read = read.expect("a good node");
        assert_eq!(read.name, "reviews-v1.a");
        assert_eq!(read.key.role, Role::Sidecar);
        assert_eq!(read.key.namespace, "a");
        assert_eq!(read.key.labels.get("app").map(String::as_str), Some("reviews"));
        assert_eq!(read.key.interception, Interception::Redirect);

        let fields = vec![
            ("INTERCEPTION_MODE", text("NONE")),
            ("HTTP_PROXY_PORT", from_json(&serde_json::json!(15099))),
        ];
        let read =
            parse(&graph, &node("sidecar~127.0.1.5~x.a~a.svc.cluster.local", fields)).expect("a good node");
        let address = "127.0.1.5".parse().expect("an address");
        assert_eq!(read.key.interception, Interception::Explicit { address, port: 15099 });

        let read =
            parse(&graph, &node("router~10.0.0.5~gw.a~a.svc.cluster.local", vec![("NAMESPACE", text("b"))]));
        let read = read.expect("a good node");
        assert_eq!((read.key.role, read.key.namespace.as_str()), (Role::Router, "b"));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let graph = Graph::new();
        let refuse = |id: &str| parse(&graph, &node(id, Vec::new())).expect_err("a bad node");
        assert_eq!(refuse("x"), BadNode::Malformed("x".to_owned()));
        assert_eq!(refuse("sidecar~1.2.3.4~pod~d"), BadNode::Malformed("sidecar~1.2.3.4~pod~d".to_owned()));
        assert_eq!(refuse("ztunnel~1.2.3.4~a.b~d"), BadNode::Type("ztunnel".to_owned()));
        let fields = vec![("INTERCEPTION_MODE", text("NONE")), ("HTTP_PROXY_PORT", text("x"))];
        let error = parse(&graph, &node("sidecar~127.0.0.1~a.b~c", fields)).expect_err("a bad node");
        assert!(matches!(error, BadNode::Metadata("HTTP_PROXY_PORT", _)), "{error}");
    }
}
