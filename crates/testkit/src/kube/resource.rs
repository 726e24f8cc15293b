//! Which resources there are: Kubernetes' own by a table, others by CustomResourceDefinitions.

use std::sync::Arc;

use serde_json::Value;

use super::store::ResourceName;

/// A resource that is served.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) group: String,
    /// Served versions, the preferred one first.
    pub(super) versions: Vec<Version>,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) kind: String,
    pub(super) list_kind: String,
    pub(super) short: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) namespaced: bool,
    /// Whether it comes from a CustomResourceDefinition.
    pub(super) custom: bool,
}

/// One served version of a resource.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) name: String,
    /// The structural schema; only of custom resources.
    pub(super) schema: Option<Arc<Value>>,
    /// `additionalPrinterColumns`.
    pub(super) columns: Arc<Value>,
    pub(super) status: bool,
    pub(super) scale: Option<Scale>,
}

/// Where a resource keeps what the `scale` subresource shows.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    pub(super) spec_replicas: String,
    pub(super) status_replicas: String,
    pub(super) selector: Option<String>,
}

impl Resource {
    pub(super) fn name(&self) -> ResourceName {
        (self.group.clone(), self.plural.clone())
    }

    pub(super) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// `group/version`, or the version alone for the core group.
    pub(super) fn api_version(&self, version: &str) -> String {
        api_version(&self.group, version)
    }

    /// Whether `metadata.generation` is counted.
    pub(super) fn counts_generations(&self) -> bool {
        self.custom
            || matches!(self.group.as_str(), "apps" | "networking.k8s.io" | "policy" | "apiextensions.k8s.io")
    }
}

pub(super) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A row of the table of built-in resources. `flags`: `n` namespaced, `s` status, `x` scale,
/// `a` in the category `all`.
struct Row(&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const fn row(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    short: &'static str,
    flags: &'static str,
) -> Row {
    Row(group, version, plural, kind, short, flags)
}

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

const BUILT_IN: &[Row] = &[
    row("", "v1", "pods", "Pod", "po", "nsa"),
    row("", "v1", "services", "Service", "svc", "nsa"),
    row("", "v1", "endpoints", "Endpoints", "ep", "n"),
    row("", "v1", "namespaces", "Namespace", "ns", "s"),
    row("", "v1", "nodes", "Node", "no", "s"),
    row("", "v1", "configmaps", "ConfigMap", "cm", "n"),
    row("", "v1", "secrets", "Secret", "", "n"),
    row("", "v1", "serviceaccounts", "ServiceAccount", "sa", "n"),
    row("", "v1", "events", "Event", "ev", "n"),
    row("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc", "ns"),
    row("", "v1", "persistentvolumes", "PersistentVolume", "pv", "s"),
    row("", "v1", "replicationcontrollers", "ReplicationController", "rc", "nsxa"),
    row("", "v1", "limitranges", "LimitRange", "limits", "n"),
    row("", "v1", "resourcequotas", "ResourceQuota", "quota", "ns"),
    row("", "v1", "podtemplates", "PodTemplate", "", "n"),
    row("apps", "v1", "deployments", "Deployment", "deploy", "nsxa"),
    row("apps", "v1", "replicasets", "ReplicaSet", "rs", "nsxa"),
    row("apps", "v1", "statefulsets", "StatefulSet", "sts", "nsxa"),
    row("apps", "v1", "daemonsets", "DaemonSet", "ds", "nsa"),
    row("apps", "v1", "controllerrevisions", "ControllerRevision", "", "n"),
    row("batch", "v1", "jobs", "Job", "", "nsa"),
    row("batch", "v1", "cronjobs", "CronJob", "cj", "nsa"),
    row("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa", "nsa"),
    row("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", "ns"),
    row("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", "", "n"),
    row("networking.k8s.io", "v1", "ingresses", "Ingress", "ing", "ns"),
    row("networking.k8s.io", "v1", "ingressclasses", "IngressClass", "", ""),
    row("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "netpol", "n"),
    row("coordination.k8s.io", "v1", "leases", "Lease", "", "n"),
    row("events.k8s.io", "v1", "events", "Event", "ev", "n"),
    row(RBAC, "v1", "roles", "Role", "", "n"),
    row(RBAC, "v1", "rolebindings", "RoleBinding", "", "n"),
    row(RBAC, "v1", "clusterroles", "ClusterRole", "", ""),
    row(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", "", ""),
    row(ADMISSION, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", "", ""),
    row(ADMISSION, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", "", ""),
    row(ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", "", "s"),
    row(ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", "", ""),
    row(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd crds",
        "s",
    ),
    row("apiregistration.k8s.io", "v1", "apiservices", "APIService", "", "s"),
    row("certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest", "csr", "s"),
    row("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", ""),
    row("storage.k8s.io", "v1", "storageclasses", "StorageClass", "sc", ""),
    row("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", "", ""),
];

/// Resources that can only be created, and answer at once.
pub(super) const REVIEWS: [(&str, &str, &str, bool); 5] = [
    ("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview", false),
    (AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview", false),
    (AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    (AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
];

/// Kubernetes' own resources.
pub(super) fn built_in() -> Vec<Resource> {
    BUILT_IN
        .iter()
        .map(|Row(group, version, plural, kind, short, flags)| Resource {
            group: (*group).to_owned(),
            versions: vec![Version {
                name: (*version).to_owned(),
                schema: None,
                columns: Arc::new(Value::Null),
                status: flags.contains('s'),
                scale: flags.contains('x').then(|| Scale {
                    spec_replicas: ".spec.replicas".to_owned(),
                    status_replicas: ".status.replicas".to_owned(),
                    selector: None,
                }),
            }],
            plural: (*plural).to_owned(),
            singular: kind.to_lowercase(),
            kind: (*kind).to_owned(),
            list_kind: format!("{kind}List"),
            short: short.split_whitespace().map(str::to_owned).collect(),
            categories: if flags.contains('a') { vec!["all".to_owned()] } else { Vec::new() },
            namespaced: flags.contains('n'),
            custom: false,
        })
        .collect()
}

/// The resource that a CustomResourceDefinition defines; `None` if it does not make one.
pub(super) fn custom(definition: &Value) -> Option<Resource> {
    let spec = definition.get("spec")?;
    let names = spec.get("names")?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let texts = |key: &str| -> Vec<String> {
        let list = names.get(key).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let kind = text(names, "kind")?;
    let mut versions: Vec<Version> = Vec::new();
    for version in spec.get("versions")?.as_array()? {
        if version.get("served").and_then(Value::as_bool) != Some(true) {
            continue;
        }
        let subresources = version.get("subresources");
        let scale = subresources.and_then(|all| all.get("scale")).and_then(|scale| {
            Some(Scale {
                spec_replicas: text(scale, "specReplicasPath")?,
                status_replicas: text(scale, "statusReplicasPath")?,
                selector: text(scale, "labelSelectorPath"),
            })
        });
        let schema = version.get("schema").and_then(|schema| schema.get("openAPIV3Schema")).cloned();
        versions.push(Version {
            name: text(version, "name")?,
            schema: schema.map(Arc::new),
            columns: Arc::new(version.get("additionalPrinterColumns").cloned().unwrap_or_default()),
            status: subresources.is_some_and(|all| all.get("status").is_some()),
            scale,
        });
    }
    if versions.is_empty() {
        return None;
    }
    versions.sort_by_key(|version| std::cmp::Reverse(priority(&version.name)));
    Some(Resource {
        group: text(spec, "group")?,
        versions,
        plural: text(names, "plural")?,
        singular: text(names, "singular").unwrap_or_else(|| kind.to_lowercase()),
        list_kind: text(names, "listKind").unwrap_or_else(|| format!("{kind}List")),
        kind,
        short: texts("shortNames"),
        categories: texts("categories"),
        namespaced: text(spec, "scope").as_deref() == Some("Namespaced"),
        custom: true,
    })
}

/// Kubernetes' order of versions: stable ones first, then beta, then alpha, larger numbers first.
fn priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, rest) = rest.split_at(digits);
    let Ok(major) = major.parse() else { return (0, 0, 0) };
    let minor = |text: &str| text.parse().unwrap_or(0);
    if rest.is_empty() {
        (3, major, 0)
    } else if let Some(beta) = rest.strip_prefix("beta") {
        (2, major, minor(beta))
    } else if let Some(alpha) = rest.strip_prefix("alpha") {
        (1, major, minor(alpha))
    } else {
        (0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::priority;

    #[test]
    fn versions_in_order() {
        let mut versions = ["v1alpha1", "v1", "v2beta1", "v10", "foo", "v1beta2", "v1beta1"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v10", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
