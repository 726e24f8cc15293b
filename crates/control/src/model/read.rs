//! From a YAML node to a validated object: the list of kinds, START HERE to add one.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leno_api::yaml::{self, Dialect, Node, Unknown};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::diagnostic::{Finding, Severity};
use super::mesh::MeshConfig;
use super::{Config, Kind, Meta, Object, ObjectRef, kube, service_entry};

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
    /// It asks for something that Leno does not do yet, and says so.
    Unsupported(Severity),
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
const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const WARNING: Treatment = Treatment::Unsupported(Severity::Warning);
/// For kinds whose absence makes the mesh less safe than its author believes.
const ERROR: Treatment = Treatment::Unsupported(Severity::Error);

/// The kinds that mean something to a mesh.
const KINDS: &[Row] = &[
    row("", &["v1"], "Service", Treatment::Read(Kind::Service)),
    row("", &["v1"], "Pod", Treatment::Read(Kind::Pod)),
    row("", &["v1"], "ConfigMap", Treatment::Read(Kind::MeshConfig)),
    row("discovery.k8s.io", &["v1"], "EndpointSlice", Treatment::Read(Kind::EndpointSlice)),
    row(NETWORKING, ISTIO, "ServiceEntry", Treatment::Read(Kind::ServiceEntry)),
    row(NETWORKING, ISTIO, "VirtualService", Treatment::Read(Kind::VirtualService)),
    row(NETWORKING, ISTIO, "DestinationRule", Treatment::Read(Kind::DestinationRule)),
    row(NETWORKING, ISTIO, "Gateway", Treatment::Read(Kind::Gateway)),
    row(NETWORKING, &[], "Sidecar", WARNING),
    row(NETWORKING, &[], "WorkloadEntry", WARNING),
    row(NETWORKING, &[], "WorkloadGroup", WARNING),
    row(NETWORKING, &[], "EnvoyFilter", WARNING),
    row(NETWORKING, &[], "ProxyConfig", WARNING),
    row(SECURITY, &[], "AuthorizationPolicy", ERROR),
    row(SECURITY, &[], "PeerAuthentication", ERROR),
    row(SECURITY, &[], "RequestAuthentication", ERROR),
    row("telemetry.istio.io", &[], "Telemetry", WARNING),
    row("extensions.istio.io", &[], "WasmPlugin", WARNING),
    row("extensions.istio.io", &[], "TrafficExtension", WARNING),
    row("networking.k8s.io", &[], "Ingress", WARNING),
    row("", &["v1"], "Endpoints", WARNING),
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

/// The ConfigMap and the key in it that hold the MeshConfig.
const MESH_CONFIG_MAP: (&str, &str) = ("istio", "mesh");

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
    spec: T,
    #[serde(default, rename = "status")]
    _status: S,
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
        } else if group == "gateway.networking.k8s.io" {
            vec![warning(
                "unsupported-kind",
                "the Gateway API is not supported yet, has no effect".to_owned(),
            )]
        } else {
            vec![warning(
                "unknown-kind",
                format!("{} {} is not known, has no effect", head.api_version, head.kind),
            )]
        };
        return skipped(findings);
    };
    match row.treatment {
        Treatment::Unsupported(severity) => skipped(vec![Finding {
            severity,
            code: "unsupported-kind",
            path: String::new(),
            message: format!("{} is not supported yet, has no effect", head.kind),
        }]),
        Treatment::Read(_) if !row.versions.is_empty() && !row.versions.contains(&version) => {
            skipped(vec![fault(
                "unknown-kind",
                "apiVersion".to_owned(),
                format!("version {version:?} of {} is not known, use {}", head.kind, row.versions.join(", ")),
            )])
        }
        Treatment::Read(Kind::MeshConfig) if meta.name != MESH_CONFIG_MAP.0 => skipped(Vec::new()),
        Treatment::Read(kind) => {
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
    match kind {
        Kind::Service => typed::<core::Service>(node, |service| {
            let (service, findings) = kube::service(meta, service);
            (Object::Service(service), findings)
        }),
        Kind::Pod => typed::<core::Pod>(node, |pod| (Object::Pod(kube::pod(meta, pod)), Vec::new())),
        Kind::EndpointSlice => typed::<discovery::EndpointSlice>(node, |slice| {
            let (slice, findings) = kube::endpoint_slice(meta, slice);
            (Object::EndpointSlice(slice), findings)
        }),
        Kind::MeshConfig => mesh_config(node),
        Kind::ServiceEntry => {
            typed::<Envelope<service_entry::ServiceEntry, service_entry::Status>>(node, |entry| {
                let findings = entry.spec.validate();
                (Object::ServiceEntry(Config { meta, spec: entry.spec }), findings)
            })
        }
        Kind::VirtualService => typed::<Envelope<_, Value>>(node, |object| {
            let spec: super::virtual_service::VirtualService = object.spec;
            let findings = spec.validate();
            (Object::VirtualService(Config { meta, spec }), findings)
        }),
        Kind::DestinationRule => typed::<Envelope<_, Value>>(node, |object| {
            let spec: super::destination_rule::DestinationRule = object.spec;
            let findings = spec.validate();
            (Object::DestinationRule(Config { meta, spec }), findings)
        }),
        Kind::Gateway => typed::<Envelope<_, Value>>(node, |object| {
            let spec: super::gateway::Gateway = object.spec;
            let findings = spec.validate();
            (Object::Gateway(Config { meta, spec }), findings)
        }),
    }
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
    let path = format!("data.{}", MESH_CONFIG_MAP.1);
    let text = node.find("data").and_then(|data| data.find(MESH_CONFIG_MAP.1)).and_then(Node::as_str);
    let Some(text) = text else {
        let message = format!("the key {:?} with the MeshConfig is missing", MESH_CONFIG_MAP.1);
        return (None, vec![fault("invalid-value", "data".to_owned(), message)]);
    };
    // Places inside the text are not those of the file; the path and the message say which field.
    let refuse = |message: String| (None, vec![fault("invalid-value", path.clone(), message)]);
    let documents = match yaml::parse(text, Dialect::Kubernetes) {
        Ok(documents) => documents,
        Err(error) => return refuse(error.to_string()),
    };
    let Some(document) = documents.first() else {
        return (Some(Object::MeshConfig(MeshConfig::default())), Vec::new());
    };
    match yaml::from_node::<MeshConfig>(document) {
        Ok((config, unknown)) => {
            let mut findings: Vec<Finding> = unknown
                .into_iter()
                .map(|field| Finding {
                    severity: Severity::Warning,
                    code: "unsupported-field",
                    path: path.clone(),
                    message: format!("{}: not supported yet, has no effect", field.path),
                })
                .collect();
            findings.extend(config.validate().into_iter().map(|finding| Finding {
                message: format!("{}: {}", finding.path, finding.message),
                path: path.clone(),
                ..finding
            }));
            (Some(Object::MeshConfig(config)), findings)
        }
        Err(error) => refuse(format!("{}: {}", error.path, error.message)),
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
