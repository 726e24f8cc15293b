//! Who a proxy says it is: `sidecar~10.0.0.5~reviews-v1-abc.default~default.svc.cluster.local`, and
//! the metadata that Istio's agent sends along.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::yaml::{self, Dialect};
use leno_derive::Graph;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::model::Key;
use crate::model::duration::Span;
use crate::model::inputs::{Nodes, Pods};
use crate::model::switches::SwitchInput;
use crate::registry::instances::{CANONICAL_NAME, CANONICAL_REVISION, locality_label, locality_of_node};
use crate::scope::locality::NETWORK;
use crate::scope::patches::{MetadataNames, Patching};
use crate::scope::proxy_config::{self, Overrides};
use crate::scope::{
    Abilities, Families, Identity, Interception, ProxyFacts, ProxyKey, ProxyOptions, Role, Site,
};

/// The port of the explicit HTTP proxy unless the metadata says otherwise; Istio's.
const HTTP_PROXY_PORT: u16 = 15080;

/// The metadata field by which an agent says, with `false`, that it has no certificates to give.
const CERTIFICATES: &str = "MESH_CERTIFICATES";

/// The metadata field, and the annotation, by which a proxy says whether it is to be told of the clusters
/// only that it uses. Leno's own need not say so.
const LAZY: &str = "LENO_LAZY";
/// The metadata field by which it says the same of virtual hosts.
const LAZY_ROUTES: &str = "LENO_LAZY_ROUTES";
const LAZY_ANNOTATION: &str = "leno/lazy";

/// What Leno's proxies call themselves.
const OURS: &str = "leno";

/// By what OpenTelemetry calls a service: an annotation, then labels.
const OTEL_NAME: &str = "resource.opentelemetry.io/service.name";
const OTEL_LABELS: [&str; 2] = ["app.kubernetes.io/instance", "app.kubernetes.io/name"];

/// Where extensions are used, as proxies list them.
const HTTP_FILTERS: &str = "envoy.filters.http";
const NETWORK_FILTERS: &str = "envoy.filters.network";
const UPSTREAM_FILTERS: &str = "envoy.filters.upstream_network";
const TRACERS: &str = "envoy.tracers";

/// A proxy that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// `pod.namespace`.
    pub(crate) name: String,
    /// The whole identifier.
    pub(crate) id: String,
    /// The service account that it says it has; empty if it does not say.
    pub(crate) service_account: String,
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
    let metadata = node.metadata.as_ref().map(|metadata| &metadata.fields);
    let field =
        |name: &str| metadata.and_then(|fields| fields.get(name)).and_then(|value| value.kind.as_ref());
    let role = match field("GENERATOR") {
        Some(Kind::StringValue(generator)) if generator == "grpc" => Role::Grpc,
        _ => role,
    };
    let (pod, id_namespace) = name.rsplit_once('.').ok_or_else(malformed)?;
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
    let dns_capture = match field("DNS_CAPTURE") {
        Some(Kind::StringValue(flag)) => flag == "true",
        Some(Kind::BoolValue(flag)) => *flag,
        _ => false,
    };
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
    let first = |names: &[&str]| {
        names.iter().filter_map(|name| labels.get(*name)).find(|value| !value.is_empty()).cloned()
    };
    let named = Some(words("WORKLOAD_NAME")).filter(|name| !name.is_empty());
    let annotation = |name: &str| match field("ANNOTATIONS") {
        Some(Kind::StructValue(annotations)) => annotations.fields.get(name).and_then(text),
        _ => pod_of(graph, &namespace, pod).and_then(|pod| pod.meta.annotations.get(name).cloned()),
    };
    let started = match field("PROXY_CONFIG") {
        Some(Kind::StructValue(fields)) => to_json_fields(fields),
        _ => serde_json::Map::new(),
    };
    let own = annotation(proxy_config::ANNOTATION)
        .map_or_else(|| Ok(serde_json::Map::new()), |text| read_yaml(&text));
    let overrides = own.and_then(|own| Overrides::read([started, own])).unwrap_or_else(|error| {
        // It must be good enough for the proxy, which was started with it.
        tracing::warn!(
            node = node.id,
            error,
            "{} makes no sense, and has no effect",
            proxy_config::ANNOTATION
        );
        Overrides::default()
    });
    let identity = Identity {
        cluster: node.cluster.clone(),
        otel_name: annotation(OTEL_NAME)
            .filter(|name| !name.is_empty())
            .or_else(|| first(&OTEL_LABELS))
            .or_else(|| named.clone())
            .unwrap_or_else(|| pod.to_owned()),
        service: first(&CANONICAL_NAME).or(named).unwrap_or_default(),
        revision: first(&CANONICAL_REVISION).unwrap_or_default(),
        mesh: words("MESH_ID"),
        registry: words("CLUSTER_ID"),
    };
    // A gateway does not intercept anything. Without namespaces of its own it has only its address.
    let interception = match interception {
        Interception::Tproxy if role == Role::Router => Interception::Redirect,
        interception => interception,
    };
    let mut abilities = abilities(&node.extensions);
    for (name, ability) in
        [("file-credential", Abilities::FILES_APART), ("credential", Abilities::CREDENTIALS)]
    {
        if field(name).and_then(truth) == Some(true) {
            abilities.insert(ability);
        }
    }
    let says = field(LAZY).and_then(truth);
    let says = says.or_else(|| annotation(LAZY_ANNOTATION).and_then(|text| text.parse().ok()));
    // Others may be able to, and do as they were told to by who wrote their bootstraps. An Envoy refuses a
    // table with domains that it has got one by one, and so is asked about these by themselves.
    let is_ours = node.user_agent_name == OURS;
    let is_lazy = says.unwrap_or(is_ours);
    if role != Role::Sidecar || !is_lazy || !lazy_is_on(graph) {
        abilities.remove(Abilities::ON_DEMAND);
    } else if abilities.has(Abilities::ON_DEMAND)
        && field(LAZY_ROUTES).and_then(truth).unwrap_or(is_ours)
        && lazy_routes_are_on(graph)
    {
        abilities.insert(Abilities::HOSTS_ON_DEMAND);
    }
    Ok(Node {
        // Its namespace is what it has to prove; what else its identifier says is only words.
        name: format!("{pod}.{namespace}"),
        id: node.id.clone(),
        service_account: words("SERVICE_ACCOUNT"),
        key: ProxyKey::from(ProxyFacts {
            role,
            namespace,
            labels,
            interception,
            families: families(ip, field("INSTANCE_IPS")),
            options: ProxyOptions { http10, idle_timeout, dns_capture, abilities, overrides },
            site,
            identity: Arc::new(identity),
            sidecar: None,
            patching: Patching {
                metadata: asked_for(node, &graph.get::<MetadataNames>(&())),
                ..Patching::default()
            },
        }),
    })
}

/// The texts of a proxy's metadata that have names which patches ask for.
pub(crate) fn asked_for(node: &core::Node, names: &BTreeSet<String>) -> BTreeMap<String, String> {
    let metadata = node.metadata.iter().flat_map(|metadata| &metadata.fields);
    let asked = metadata.filter(|(name, _)| names.contains(*name));
    let texts = asked.filter_map(|(name, value)| match value.kind.as_ref()? {
        Kind::StringValue(text) => Some((name.clone(), text.clone())),
        _ => None,
    });
    texts.collect()
}

/// Whether proxies may be told of the clusters only that they use.
fn lazy_is_on(graph: &Graph) -> bool {
    graph.input::<SwitchInput>(&()).is_none_or(|switches| switches.lazy)
}

/// Whether they may be told of the virtual hosts only that they use.
fn lazy_routes_are_on(graph: &Graph) -> bool {
    graph.input::<SwitchInput>(&()).is_none_or(|switches| switches.lazy_routes)
}

/// A truth value of metadata, which may be written as a text.
fn truth(kind: &Kind) -> Option<bool> {
    match kind {
        Kind::BoolValue(truth) => Some(*truth),
        Kind::StringValue(text) => text.parse().ok(),
        _ => None,
    }
}

/// What a proxy has, by the configuration that its extensions take. Of Envoy's own tracers one that
/// lists nothing has all.
fn abilities(extensions: &[core::Extension]) -> Abilities {
    let has = |category: &str, name: &str| {
        extensions.iter().any(|one| one.category == category && one.type_urls.iter().any(|url| url == name))
    };
    let stats = "stats.PluginConfig";
    let exchange = "envoy.tcp.metadataexchange.config.MetadataExchange";
    let alpn = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";
    let found = [
        (Abilities::HTTP_STATS, has(HTTP_FILTERS, stats)),
        (Abilities::TCP_STATS, has(NETWORK_FILTERS, stats)),
        (Abilities::HTTP_PEERS, has(HTTP_FILTERS, "io.istio.http.peer_metadata.Config")),
        (Abilities::TCP_PEERS, has(NETWORK_FILTERS, exchange) && has(UPSTREAM_FILTERS, exchange)),
        (Abilities::ALPN, has(HTTP_FILTERS, alpn)),
        (Abilities::ON_DEMAND, has(HTTP_FILTERS, "envoy.extensions.filters.http.on_demand.v3.OnDemand")),
        (Abilities::DATADOG, extensions.is_empty() || has(TRACERS, "envoy.config.trace.v3.DatadogConfig")),
        (
            Abilities::SKYWALKING,
            extensions.is_empty() || has(TRACERS, "envoy.config.trace.v3.SkyWalkingConfig"),
        ),
    ];
    let mut abilities = Abilities::default();
    found.into_iter().filter(|(_, has)| *has).for_each(|(ability, _)| abilities.insert(ability));
    abilities
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

fn pod_of(graph: &Graph, namespace: &str, name: &str) -> Option<Arc<crate::model::kube::Pod>> {
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

/// Settings as YAML, as in an annotation.
fn read_yaml(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let documents = yaml::parse(text, Dialect::Kubernetes).map_err(|error| error.to_string())?;
    let Some(document) = documents.first() else { return Ok(serde_json::Map::new()) };
    yaml::from_node(document).map(|(found, _)| found).map_err(|error| error.to_string())
}

fn to_json_fields(fields: &Struct) -> serde_json::Map<String, serde_json::Value> {
    fields.fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect()
}

fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
            (*value as i64).into()
        }
        Some(Kind::NumberValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.clone().into(),
        Some(Kind::StructValue(fields)) => to_json_fields(fields).into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
    }
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
    use crate::model::switches::{SwitchInput, Switches};
    use crate::scope::proxy_config::Overrides;
    use crate::scope::{Abilities, Interception, Role};
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
        assert_eq!(read.name, "gw.b", "nobody goes by a name of another namespace");
    }

    #[test]
    fn what_a_proxy_has_and_who_it_is() {
        let graph = Graph::new();
        let fields = vec![
            ("LABELS", object([("app", text("web")), ("version", text("v3"))])),
            ("file-credential", text("true")),
            ("credential", text("true")),
            ("WORKLOAD_NAME", text("web-v3")),
            ("CLUSTER_ID", text("c")),
            ("MESH_ID", text("m")),
            (
                "PROXY_CONFIG",
                from_json(&serde_json::json!({ "concurrency": 2, "tracing": { "sampling": 5 } })),
            ),
            ("ANNOTATIONS", object([("proxy.istio.io/config", text("tracing: {sampling: 7}"))])),
        ];
        let extension = |category: &str, url: &str| core::Extension {
            category: category.to_owned(),
            type_urls: vec![url.to_owned()],
            ..core::Extension::default()
        };
        let mut listed = node("sidecar~10.0.0.5~web-1.a~d", fields);
        listed.cluster = "web.a".to_owned();
        listed.extensions = vec![
            extension("envoy.filters.http", "stats.PluginConfig"),
            extension("envoy.filters.network", "envoy.tcp.metadataexchange.config.MetadataExchange"),
            extension("envoy.tracers", "envoy.config.trace.v3.SkyWalkingConfig"),
        ];
        let key = parse(&graph, &listed).expect("a good node").key;
        let abilities = key.options.abilities;
        assert!(abilities.has(Abilities::HTTP_STATS) && abilities.has(Abilities::SKYWALKING));
        assert!(abilities.has(Abilities::FILES_APART) && abilities.has(Abilities::CREDENTIALS));
        // It could not tell servers who it is.
        assert!(!abilities.has(Abilities::TCP_PEERS) && !abilities.has(Abilities::DATADOG));
        expect_test::expect![[r#"
            Identity {
                cluster: "web.a",
                otel_name: "web-v3",
                service: "web",
                revision: "v3",
                mesh: "m",
                registry: "c",
            }
        "#]]
        .assert_debug_eq(key.identity.as_ref());
        let given = serde_json::json!({ "tracing": { "sampling": 7 } });
        let expected = Overrides::read([given.as_object().expect("an object").clone()]);
        assert_eq!(Ok(key.options.overrides.clone()), expected);
        // Who lists nothing may have all of Envoy's own.
        let plain = parse(&graph, &node("sidecar~10.0.0.5~web-1.a~d", Vec::new())).expect("a good node");
        assert!(plain.key.options.abilities.has(Abilities::DATADOG));
        assert!(!plain.key.options.abilities.has(Abilities::FILES_APART));
        assert!(!plain.key.options.abilities.has(Abilities::CREDENTIALS));
        assert!(!plain.key.options.abilities.has(Abilities::HTTP_PEERS));
        assert_eq!(plain.key.identity.otel_name, "web-1");
    }

    #[test]
    fn who_is_told_only_of_what_he_uses() {
        let graph = Graph::new();
        let read = |graph: &Graph, id: &str, agent: &str, fields: Vec<(&'static str, prost_types::Value)>| {
            let on_demand = core::Extension {
                category: "envoy.filters.http".to_owned(),
                type_urls: vec!["envoy.extensions.filters.http.on_demand.v3.OnDemand".to_owned()],
                ..core::Extension::default()
            };
            let node = core::Node {
                extensions: vec![on_demand],
                user_agent_name: agent.to_owned(),
                ..node(id, fields)
            };
            let key = parse(graph, &node).expect("a good node").key;
            (key.is_lazy(), key.asks_for_hosts())
        };
        let sidecar = "sidecar~10.0.0.5~web-1.a~d";
        let said = |value: &str| vec![("LENO_LAZY", text(value))];
        let annotated = |value: &str| vec![("ANNOTATIONS", object([("leno/lazy", text(value))]))];
        let (all, clusters, hosts) = ((false, false), (true, false), (true, true));
        assert_eq!(read(&graph, sidecar, "leno", Vec::new()), hosts);
        assert_eq!(read(&graph, sidecar, "leno", said("false")), all);
        assert_eq!(read(&graph, sidecar, "leno", annotated("false")), all);
        assert_eq!(read(&graph, sidecar, "leno", vec![("LENO_LAZY_ROUTES", text("false"))]), clusters);
        assert_eq!(read(&graph, sidecar, "envoy", Vec::new()), all);
        assert_eq!(read(&graph, sidecar, "envoy", vec![("LENO_LAZY_ROUTES", text("true"))]), all);
        assert_eq!(read(&graph, sidecar, "envoy", said("true")), clusters);
        assert_eq!(read(&graph, sidecar, "envoy", annotated("true")), clusters);
        let both = [said("true"), vec![("LENO_LAZY_ROUTES", text("true"))]].concat();
        assert_eq!(read(&graph, sidecar, "envoy", both), hosts);
        assert_eq!(read(&graph, "router~10.0.0.5~gw-1.a~d", "leno", said("true")), all);
        // Who cannot ask is told of all.
        let plain = core::Node { user_agent_name: "leno".to_owned(), ..node(sidecar, said("true")) };
        assert!(!parse(&graph, &plain).expect("a good node").key.is_lazy());
        for (name, expected) in [("LENO_LAZY", all), ("LENO_LAZY_ROUTES", clusters)] {
            let mut off = Graph::new();
            let mut batch = leno_derive::Batch::new();
            let switches = Switches::read(|asked| (asked == name).then(|| "false".to_owned()));
            batch.set::<SwitchInput>((), switches);
            off.commit(batch);
            let both = [said("true"), vec![("LENO_LAZY_ROUTES", text("true"))]].concat();
            assert_eq!(read(&off, sidecar, "leno", both), expected);
        }
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
