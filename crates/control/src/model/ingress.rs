//! Kubernetes' Ingress and IngressClass (networking.k8s.io).

use serde::Deserialize;

use super::check::Check;
use super::diagnostic::Finding;

/// The `spec` of an Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Ingress {
    /// The IngressClass; absent if an annotation names it, or for the default one.
    pub(crate) ingress_class_name: Option<String>,
    /// Where requests go that no rule matches.
    pub(crate) default_backend: Option<IngressBackend>,
    /// Certificates by host.
    pub(crate) tls: Vec<IngressTls>,
    /// Rules by host.
    pub(crate) rules: Vec<IngressRule>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressBackend {
    /// A Service of the same namespace.
    pub(crate) service: Option<IngressService>,
    /// Another object of the same namespace.
    pub(crate) resource: Option<ResourceReference>,
}

/// A Service and its port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressService {
    /// Name.
    pub(crate) name: String,
    /// Port.
    pub(crate) port: IngressPort,
}

/// A port of a Service by number or name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressPort {
    /// Name.
    pub(crate) name: Option<String>,
    /// Number.
    pub(crate) number: Option<u16>,
}

/// An object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ResourceReference {
    /// API group; absent for the core one.
    pub(crate) api_group: Option<String>,
    /// Kind.
    pub(crate) kind: String,
    /// Name.
    pub(crate) name: String,
}

/// A certificate for hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressTls {
    /// Hosts; empty for all.
    pub(crate) hosts: Vec<String>,
    /// The Secret.
    pub(crate) secret_name: Option<String>,
}

/// What becomes of requests for a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressRule {
    /// Host, perhaps with a wildcard in front; absent for all.
    pub(crate) host: Option<String>,
    /// Rules by path.
    pub(crate) http: Option<IngressPaths>,
}

/// Rules by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressPaths {
    /// The rules; the longest path wins.
    pub(crate) paths: Vec<IngressPath>,
}

/// A rule for a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressPath {
    /// Absent for `/`.
    pub(crate) path: Option<String>,
    /// How the path is compared.
    pub(crate) path_type: Option<PathType>,
    /// Where requests go.
    pub(crate) backend: IngressBackend,
}

/// How the path of an Ingress is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum PathType {
    /// The whole path.
    Exact,
    /// Its first segments.
    Prefix,
    /// As Istio likes it: by prefix, exactly unless it ends in `*`.
    ImplementationSpecific,
}

/// The `spec` of an IngressClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressClass {
    /// Who serves it, such as `istio.io/ingress-controller`.
    pub(crate) controller: String,
    /// An object with parameters.
    pub(crate) parameters: Option<IngressParameters>,
}

/// An object with parameters for an IngressClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressParameters {
    /// API group; absent for the core one.
    pub(crate) api_group: Option<String>,
    /// Kind.
    pub(crate) kind: String,
    /// Name.
    pub(crate) name: String,
    /// `Cluster` or `Namespace`.
    pub(crate) scope: Option<String>,
    /// Namespace, if the scope is such.
    pub(crate) namespace: Option<String>,
}

impl Ingress {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
        if let Some(found) = &self.default_backend {
            check.at("defaultBackend", |check| backend(check, found));
        }
        check.each("rules", &self.rules, |check, rule| {
            if let Some(host) = &rule.host {
                check.at("host", |check| check.host(host));
            }
            let Some(http) = &rule.http else { return };
            check.at("http", |check| {
                check.each("paths", &http.paths, |check, path| {
                    if path.path.as_deref().is_some_and(|path| !path.starts_with('/')) {
                        check.at("path", |check| check.invalid("must begin with /"));
                    }
                    check.at("backend", |check| backend(check, &path.backend));
                });
            });
        });
        check.into_findings()
    }
}

fn backend(check: &mut Check, backend: &IngressBackend) {
    match (&backend.service, &backend.resource) {
        (Some(service), None) => check.at("service", |check| {
            if service.name.is_empty() {
                check.at("name", |check| check.invalid("must not be empty"));
            }
            if service.port.name.is_some() == service.port.number.is_some() {
                check.at("port", |check| check.invalid("exactly one of name and number is needed"));
            }
        }),
        (None, Some(_)) => {}
        _ => check.invalid("exactly one of service and resource is needed"),
    }
}
