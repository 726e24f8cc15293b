//! From a YAML node to a validated object: the list of kinds, START HERE to add one.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leno_api::yaml::{self, Dialect, Node, Unknown};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::diagnostic::{Finding, Severity};
use super::gateway_api::{GROUP, gateway, policy, route};
use super::mesh::MeshConfig;
use super::mesh::network::MeshNetworks;
use super::workload_entry::{self, WorkloadEntry};
use super::{Config, Kind, Meta, Object, ObjectRef, kube, service_entry, support};

/// What became of a node.
#[derive(Debug)]
pub(crate) enum Read {
    /// A good object, perhaps with warnings.
    Object { reference: ObjectRef, object: Box<Object>, findings: Vec<Finding> },
    /// An object that cannot be used, and why. Its last good version stays.
    Rejected { reference: ObjectRef, findings: Vec<Finding> },
    /// Not an object that Leno uses; `findings` says so where its author might expect otherwise.
    Skipped { kind: String, namespace: String, name: String, findings: Vec<Finding> },
}

/// How a kind is treated.
enum Treatment {
    /// It is read.
    Read(Kind),
    /// It asks for something that Leno does not do yet, and is told so.
    Unsupported,
}

/// One row of the list of kinds.
struct Row {
    group: &'static str,
    /// The versions read; empty for any.
    versions: &'static [&'static str],
    kind: &'static str,
    treatment: Treatment,
}

const fn row(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    treatment: Treatment,
) -> Row {
    Row { group, versions, kind, treatment }
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const EXTENSIONS: &str = "extensions.istio.io";
const GATEWAY_X: &str = "gateway.networking.x-k8s.io";
const INGRESS: &str = "networking.k8s.io";

const V1: &[&str] = &["v1"];
const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];
/// The versions in which the kinds of the Gateway API have been served; their shapes agree.
const GATEWAY_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3", "v1alpha2"];

/// The kinds that mean something to a mesh.
const KINDS: &[Row] = &[
    row("", V1, "Service", Treatment::Read(Kind::Service)),
    row("", V1, "Pod", Treatment::Read(Kind::Pod)),
    row("", V1, "Node", Treatment::Read(Kind::Node)),
    row("", V1, "Namespace", Treatment::Read(Kind::Namespace)),
    row("", V1, "Secret", Treatment::Read(Kind::Secret)),
    row("", V1, "ConfigMap", Treatment::Read(Kind::ConfigMap)),
    row("", V1, "Endpoints", Treatment::Read(Kind::Endpoints)),
    row("discovery.k8s.io", V1, "EndpointSlice", Treatment::Read(Kind::EndpointSlice)),
    row(INGRESS, V1, "Ingress", Treatment::Read(Kind::Ingress)),
    row(INGRESS, V1, "IngressClass", Treatment::Read(Kind::IngressClass)),
    row(NETWORKING, NETWORKING_VERSIONS, "ServiceEntry", Treatment::Read(Kind::ServiceEntry)),
    row(NETWORKING, NETWORKING_VERSIONS, "WorkloadEntry", Treatment::Read(Kind::WorkloadEntry)),
    row(NETWORKING, NETWORKING_VERSIONS, "WorkloadGroup", Treatment::Read(Kind::WorkloadGroup)),
    row(NETWORKING, NETWORKING_VERSIONS, "VirtualService", Treatment::Read(Kind::VirtualService)),
    row(NETWORKING, NETWORKING_VERSIONS, "DestinationRule", Treatment::Read(Kind::DestinationRule)),
    row(NETWORKING, NETWORKING_VERSIONS, "Gateway", Treatment::Read(Kind::Gateway)),
    row(NETWORKING, NETWORKING_VERSIONS, "Sidecar", Treatment::Read(Kind::Sidecar)),
    row(NETWORKING, &["v1alpha3"], "EnvoyFilter", Treatment::Read(Kind::EnvoyFilter)),
    row(NETWORKING, &["v1beta1"], "ProxyConfig", Treatment::Read(Kind::ProxyConfig)),
    row(SECURITY, SECURITY_VERSIONS, "AuthorizationPolicy", Treatment::Read(Kind::AuthorizationPolicy)),
    row(SECURITY, SECURITY_VERSIONS, "PeerAuthentication", Treatment::Read(Kind::PeerAuthentication)),
    row(SECURITY, SECURITY_VERSIONS, "RequestAuthentication", Treatment::Read(Kind::RequestAuthentication)),
    row("telemetry.istio.io", &["v1", "v1alpha1"], "Telemetry", Treatment::Read(Kind::Telemetry)),
    row(EXTENSIONS, &[], "WasmPlugin", Treatment::Unsupported),
    row(EXTENSIONS, &[], "TrafficExtension", Treatment::Unsupported),
    row(GROUP, GATEWAY_VERSIONS, "GatewayClass", Treatment::Read(Kind::GatewayClass)),
    row(GROUP, GATEWAY_VERSIONS, "Gateway", Treatment::Read(Kind::KubernetesGateway)),
    row(GROUP, GATEWAY_VERSIONS, "ListenerSet", Treatment::Read(Kind::ListenerSet)),
    row(GROUP, GATEWAY_VERSIONS, "HTTPRoute", Treatment::Read(Kind::HttpRoute)),
    row(GROUP, GATEWAY_VERSIONS, "GRPCRoute", Treatment::Read(Kind::GrpcRoute)),
    row(GROUP, GATEWAY_VERSIONS, "TLSRoute", Treatment::Read(Kind::TlsRoute)),
    row(GROUP, GATEWAY_VERSIONS, "TCPRoute", Treatment::Read(Kind::TcpRoute)),
    row(GROUP, GATEWAY_VERSIONS, "UDPRoute", Treatment::Read(Kind::UdpRoute)),
    row(GROUP, GATEWAY_VERSIONS, "ReferenceGrant", Treatment::Read(Kind::ReferenceGrant)),
    row(GROUP, &["v1", "v1alpha3"], "BackendTLSPolicy", Treatment::Read(Kind::BackendTlsPolicy)),
    row(GATEWAY_X, &["v1alpha1"], "XListenerSet", Treatment::Read(Kind::ListenerSet)),
    row(GATEWAY_X, &["v1alpha1"], "XBackendTrafficPolicy", Treatment::Read(Kind::BackendTrafficPolicy)),
];

/// API groups of Kubernetes whose other kinds are tolerated.
const TOLERATED_GROUPS: [&str; 22] = [
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "monitoring.coreos.com",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "kustomize.config.k8s.io",
];

/// The namespace of objects that name none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// The ConfigMap that holds the MeshConfig.
pub(crate) const MESH_CONFIG_MAP: &str = "istio";
/// Its key with the MeshConfig.
const MESH: &str = "mesh";
/// Its key with the MeshNetworks; may be missing.
const MESH_NETWORKS: &str = "meshNetworks";

/// What every object begins with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: ObjectMeta,
}

/// An object of Istio.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T, S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
    #[serde(default)]
    spec: T,
    #[serde(default)]
    status: S,
}

/// A kind that means something to a mesh, for sources that ask for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Empty for Kubernetes' core group.
    pub(crate) group: &'static str,
    /// The versions that can be read, the best first; empty for any.
    pub(crate) versions: &'static [&'static str],
    pub(crate) kind: &'static str,
    /// What its objects are read as; `None` if that they exist is all that is told.
    pub(crate) reads: Option<Kind>,
}

/// The list of kinds.
pub(crate) fn known() -> impl Iterator<Item = Known> {
    KINDS.iter().map(|row| Known {
        group: row.group,
        versions: row.versions,
        kind: row.kind,
        reads: match row.treatment {
            Treatment::Read(kind) => Some(kind),
            Treatment::Unsupported => None,
        },
    })
}

/// Reads one object.
pub(crate) fn read(node: &Node<'_>) -> Read {
    let head = match yaml::from_node::<Head>(node) {
        Ok((head, _)) => head,
        Err(error) => {
            let findings = vec![fault("parse-error", error.path, with_hint(error.message, error.suggestion))];
            return Read::Skipped {
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                findings,
            };
        }
    };
    let meta = meta(&head.metadata);
    let (group, version) = head.api_version.split_once('/').unwrap_or(("", &head.api_version));
    let skipped = |findings| Read::Skipped {
        kind: head.kind.clone(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        findings,
    };
    let warning =
        |code, message: String| Finding { severity: Severity::Warning, code, path: String::new(), message };
    let Some(row) = KINDS.iter().find(|row| row.group == group && row.kind == head.kind) else {
        let findings = if TOLERATED_GROUPS.contains(&group) {
            Vec::new()
        } else {
            vec![warning(
                "unknown-kind",
                format!("{} {} is not known, has no effect", head.api_version, head.kind),
            )]
        };
        return skipped(findings);
    };
    match row.treatment {
        Treatment::Unsupported => {
            skipped(vec![warning("unsupported-kind", support::whole(&head.kind, support::NO_EFFECT))])
        }
        Treatment::Read(_) if !row.versions.is_empty() && !row.versions.contains(&version) => {
            skipped(vec![fault(
                "unknown-kind",
                "apiVersion".to_owned(),
                format!("version {version:?} of {} is not known, use {}", head.kind, row.versions.join(", ")),
            )])
        }
        Treatment::Read(kind) => {
            let kind = match kind {
                Kind::ConfigMap if meta.name == MESH_CONFIG_MAP => Kind::MeshConfig,
                kind => kind,
            };
            let mut meta = meta;
            if kind.is_cluster_scoped() {
                meta.namespace.clear();
            }
            let reference = ObjectRef { kind, namespace: meta.namespace.clone(), name: meta.name.clone() };
            if reference.name.is_empty() {
                let message = "a name is needed".to_owned();
                return Read::Rejected {
                    reference,
                    findings: vec![fault("invalid-value", "metadata.name".to_owned(), message)],
                };
            }
            let (object, findings) = read_kind(kind, meta, node);
            match object {
                Some(object) if findings.iter().all(|finding| finding.severity != Severity::Error) => {
                    Read::Object { reference, object: Box::new(object), findings }
                }
                _ => Read::Rejected { reference, findings },
            }
        }
    }
}

/// Reads the part that is particular to a kind.
fn read_kind(kind: Kind, meta: Meta, node: &Node<'_>) -> (Option<Object>, Vec<Finding>) {
    let (object, mut findings) = match kind {
        Kind::Service => typed::<core::Service>(node, |service| {
            let (service, findings) = kube::service(meta, service);
            (Object::Service(service), findings)
        }),
        Kind::Pod => typed::<core::Pod>(node, |pod| (Object::Pod(kube::pod(meta, pod)), Vec::new())),
        Kind::Node => typed::<core::Node>(node, |node| (Object::Node(kube::node(meta, node)), Vec::new())),
        Kind::Namespace => {
            typed::<core::Namespace>(node, |_| (Object::Namespace(kube::Namespace { meta }), Vec::new()))
        }
        Kind::Secret => secret(meta, node),
        Kind::ConfigMap => typed::<core::ConfigMap>(node, |map| {
            let map = kube::secret::config_map(meta, map);
            let findings = map.validate();
            (Object::ConfigMap(map), findings)
        }),
        Kind::Endpoints => typed::<core::Endpoints>(node, |endpoints| {
            let (endpoints, findings) = kube::endpoints(meta, endpoints);
            (Object::Endpoints(endpoints), findings)
        }),
        Kind::EndpointSlice => typed::<discovery::EndpointSlice>(node, |slice| {
            let (slice, findings) = kube::endpoint_slice(meta, slice);
            (Object::EndpointSlice(slice), findings)
        }),
        Kind::MeshConfig => return mesh_config(node),
        Kind::ServiceEntry => {
            typed::<Envelope<service_entry::ServiceEntry, service_entry::Status>>(node, |mut entry| {
                let findings = entry.spec.validate();
                entry.spec.allocated = entry.status.addresses;
                (Object::ServiceEntry(Config { meta, spec: entry.spec }), findings)
            })
        }
        Kind::Ingress => spec(meta, node, |spec: &super::Ingress, _| spec.validate(), Object::Ingress),
        Kind::VirtualService => {
            spec(meta, node, |spec: &super::VirtualService, _| spec.validate(), Object::VirtualService)
        }
        Kind::DestinationRule => {
            spec(meta, node, |spec: &super::DestinationRule, _| spec.validate(), Object::DestinationRule)
        }
        Kind::Gateway => spec(meta, node, super::Gateway::validate, Object::Gateway),
        Kind::IngressClass => spec(meta, node, |_, _| Vec::new(), Object::IngressClass),
        Kind::WorkloadEntry => typed::<Envelope<WorkloadEntry, workload_entry::Status>>(node, |entry| {
            let spec = WorkloadEntry { healthy: entry.status.is_healthy(), ..entry.spec };
            let findings = spec.validate();
            (Object::WorkloadEntry(Config { meta, spec }), findings)
        }),
        Kind::WorkloadGroup => {
            spec(meta, node, |spec: &super::WorkloadGroup, _| spec.validate(), Object::WorkloadGroup)
        }
        Kind::Sidecar => spec(meta, node, |spec: &super::Sidecar, _| spec.validate(), Object::Sidecar),
        Kind::EnvoyFilter => typed::<Envelope<super::EnvoyFilter, Value>>(node, |mut filter| {
            let findings = filter.spec.prepare(node.find("spec").unwrap_or(node));
            (Object::EnvoyFilter(Config { meta, spec: filter.spec }), findings)
        }),
        Kind::ProxyConfig => {
            spec(meta, node, |spec: &super::ProxyConfig, _| spec.validate(), Object::ProxyConfig)
        }
        Kind::PeerAuthentication => spec(
            meta,
            node,
            |spec: &super::PeerAuthentication, _| spec.validate(),
            Object::PeerAuthentication,
        ),
        Kind::RequestAuthentication => spec(
            meta,
            node,
            |spec: &super::RequestAuthentication, _| spec.validate(),
            Object::RequestAuthentication,
        ),
        Kind::AuthorizationPolicy => spec(
            meta,
            node,
            |spec: &super::AuthorizationPolicy, _| spec.validate(),
            Object::AuthorizationPolicy,
        ),
        Kind::Telemetry => spec(meta, node, |spec: &super::Telemetry, _| spec.validate(), Object::Telemetry),
        Kind::GatewayClass => {
            spec(meta, node, |spec: &gateway::GatewayClass, _| spec.validate(), Object::GatewayClass)
        }
        Kind::KubernetesGateway => {
            spec(meta, node, |spec: &gateway::Gateway, _| spec.validate(), Object::KubernetesGateway)
        }
        Kind::ListenerSet => {
            spec(meta, node, |spec: &gateway::ListenerSet, _| spec.validate(), Object::ListenerSet)
        }
        Kind::HttpRoute => spec(meta, node, |spec: &route::HttpRoute, _| spec.validate(), Object::HttpRoute),
        Kind::GrpcRoute => spec(meta, node, |spec: &route::GrpcRoute, _| spec.validate(), Object::GrpcRoute),
        Kind::TlsRoute => spec(meta, node, |spec: &route::TlsRoute, _| spec.validate(), Object::TlsRoute),
        Kind::TcpRoute => spec(meta, node, |spec: &route::TcpRoute, _| spec.validate(), Object::TcpRoute),
        Kind::UdpRoute => spec(meta, node, |spec: &route::UdpRoute, _| spec.validate(), Object::UdpRoute),
        Kind::ReferenceGrant => {
            spec(meta, node, |spec: &policy::ReferenceGrant, _| spec.validate(), Object::ReferenceGrant)
        }
        Kind::BackendTlsPolicy => {
            spec(meta, node, |spec: &policy::BackendTlsPolicy, _| spec.validate(), Object::BackendTlsPolicy)
        }
        Kind::BackendTrafficPolicy => spec(
            meta,
            node,
            |spec: &policy::BackendTrafficPolicy, _| spec.validate(),
            Object::BackendTrafficPolicy,
        ),
    };
    findings.extend(support::findings(kind, node));
    (object, findings)
}

/// Reads an object of which only the `spec` is particular.
fn spec<T: DeserializeOwned + Default>(
    meta: Meta,
    node: &Node<'_>,
    validate: impl FnOnce(&T, &Meta) -> Vec<Finding>,
    wrap: impl FnOnce(Config<T>) -> Object,
) -> (Option<Object>, Vec<Finding>) {
    typed::<Envelope<T, Value>>(node, |object| {
        let findings = validate(&object.spec, &meta);
        (wrap(Config { meta, spec: object.spec }), findings)
    })
}

/// Reads a Secret; what is wrong with it is told without its content.
fn secret(meta: Meta, node: &Node<'_>) -> (Option<Object>, Vec<Finding>) {
    let (object, mut findings) = typed::<core::Secret>(node, |secret| {
        (Object::Secret(kube::secret::secret(meta, secret)), Vec::new())
    });
    for finding in findings.iter_mut().filter(|finding| finding.severity == Severity::Error) {
        "cannot be read; the content of Secrets is not shown".clone_into(&mut finding.message);
    }
    if let Some(Object::Secret(secret)) = &object {
        // They may stand under another name than the one that counts.
        let plain = node.find("data").is_none();
        findings.extend(secret.validate().into_iter().map(|mut finding| {
            if plain && let Some(rest) = finding.path.strip_prefix("data") {
                finding.path = format!("stringData{rest}");
            }
            finding
        }));
    }
    (object, findings)
}

/// Reads a serde type; unknown fields become warnings.
fn typed<T: DeserializeOwned>(
    node: &Node<'_>,
    finish: impl FnOnce(T) -> (Object, Vec<Finding>),
) -> (Option<Object>, Vec<Finding>) {
    match yaml::from_node::<T>(node) {
        Ok((value, unknown)) => {
            let mut findings: Vec<Finding> =
                unknown.into_iter().map(|field| unknown_field(field, "unknown-field")).collect();
            let (object, more) = finish(value);
            findings.extend(more);
            (Some(object), findings)
        }
        Err(error) => {
            let message = with_hint(error.message, error.suggestion);
            (None, vec![fault("invalid-value", error.path, message)])
        }
    }
}

/// Reads the YAML inside the ConfigMap.
fn mesh_config(node: &Node<'_>) -> (Option<Object>, Vec<Finding>) {
    let mut findings = Vec::new();
    let text = |key| node.find("data").and_then(|data| data.find(key)).and_then(Node::as_str);
    let Some(mesh) = text(MESH) else {
        let message = format!("the key {MESH:?} with the MeshConfig is missing");
        return (None, vec![fault("invalid-value", "data".to_owned(), message)]);
    };
    let mut config = embedded(MESH, mesh, &mut findings, |config: &MeshConfig, document| {
        let mut findings = config.validate();
        findings.extend(support::findings(Kind::MeshConfig, document));
        findings
    });
    if let Some(networks) = text(MESH_NETWORKS) {
        let networks =
            embedded(MESH_NETWORKS, networks, &mut findings, |networks: &MeshNetworks, document| {
                let mut findings = networks.validate();
                findings.extend(support::networks(document));
                findings
            });
        match (&mut config, networks) {
            (Some(config), Some(networks)) => config.networks = networks,
            _ => config = None,
        }
    }
    (config.map(Object::MeshConfig), findings)
}

/// Reads a document that is the text of a key of a ConfigMap. Places inside the text are not those
/// of the file; the path and the message say which field is meant.
fn embedded<T: DeserializeOwned + Default>(
    key: &str,
    text: &str,
    findings: &mut Vec<Finding>,
    check: impl FnOnce(&T, &Node<'_>) -> Vec<Finding>,
) -> Option<T> {
    let path = format!("data.{key}");
    let documents = match yaml::parse(text, Dialect::Kubernetes) {
        Ok(documents) => documents,
        Err(error) => {
            findings.push(fault("invalid-value", path, error.to_string()));
            return None;
        }
    };
    let Some(document) = documents.first() else { return Some(T::default()) };
    match yaml::from_message_node::<T>(document) {
        Ok((value, unknown)) => {
            let unknown = unknown.into_iter().map(|field| unknown_field(field, "unknown-field"));
            findings.extend(unknown.chain(check(&value, document)).map(|finding| Finding {
                message: format!("{}: {}", finding.path, finding.message),
                path: path.clone(),
                ..finding
            }));
            Some(value)
        }
        Err(error) => {
            let message = with_hint(error.message, error.suggestion);
            findings.push(fault("invalid-value", path, format!("{}: {message}", error.path)));
            None
        }
    }
}

fn meta(metadata: &ObjectMeta) -> Meta {
    Meta {
        namespace: metadata
            .namespace
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
    }
}

fn fault(code: &'static str, path: String, message: String) -> Finding {
    Finding { severity: Severity::Error, code, path, message }
}

fn unknown_field(field: Unknown, code: &'static str) -> Finding {
    let message = with_hint("unknown field, has no effect".to_owned(), field.suggestion);
    Finding { severity: Severity::Warning, code, path: field.path, message }
}

fn with_hint(message: String, suggestion: Option<String>) -> String {
    match suggestion {
        Some(suggestion) => format!("{message}, did you mean '{suggestion}'?"),
        None => message,
    }
}
