//! The objects of an installation: charts rendered, settings laid over them, in the order of creation.

use anyhow::{Context, bail};
use leno_api::yaml::{Dialect, parse};
use leno_gotemplate::Limits;
use leno_gotemplate::helm::{self, Capabilities, Release};
use serde_json::Value;

use super::charts::Chart;
use super::component::{Component, RELEASE, components};
use super::operator::Operator;
use super::{overlay, tree};

/// A component and its objects, in the order in which they are to be created.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    pub(crate) component: Component,
    pub(crate) objects: Vec<Value>,
}

/// Kinds in the order in which they must be there.
const ORDER: [&str; 19] = [
    "Namespace",
    "NetworkPolicy",
    "ResourceQuota",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
    "HorizontalPodAutoscaler",
    "NetworkAttachmentDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];

/// What names an object in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Id {
    /// That of an object.
    pub(crate) fn of(object: &Value) -> Id {
        let [kind, namespace, name] =
            ["kind", "metadata.namespace", "metadata.name"].map(|path| tree::text(object, path));
        Id { kind, namespace, name }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{}/{}", self.kind, self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.kind, self.name),
        }
    }
}

/// Renders everything that an operator asks for.
///
/// # Errors
/// If a chart refuses its values, or a setting is for something that is not there.
pub(crate) fn render(operator: &Operator) -> anyhow::Result<Vec<Rendered>> {
    let mut all = Vec::new();
    let mut errors = Vec::new();
    for component in components(operator) {
        let mut objects = render_chart(component.chart, &component.values, &component.namespace)
            .with_context(|| format!("component {}", component.kind.label()))?;
        if let Err(wrong) = overlay::apply(&component, &mut objects) {
            errors.extend(wrong);
        }
        all.push(Rendered { component, objects });
    }
    if !errors.is_empty() {
        bail!("{}", errors.join("\n"));
    }
    Ok(all)
}

/// Renders a chart into a namespace, as `helm template` does.
///
/// # Errors
/// If the chart refuses its values.
pub(crate) fn render_chart(chart: Chart, values: &Value, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let of = |in_templates: bool| {
        let files =
            chart.files().iter().filter(move |file| file.path.starts_with("templates/") == in_templates);
        files.map(|file| (file.path.to_owned(), file.text.to_owned()))
    };
    let source = helm::Chart {
        metadata: chart.yaml("Chart.yaml"),
        values: chart.yaml("values.yaml"),
        templates: of(true).collect(),
        files: of(false).collect(),
    };
    let release =
        Release { name: RELEASE.to_owned(), namespace: namespace.to_owned(), revision: 1, upgrade: false };
    let capabilities = Capabilities { kube_version: "v1.33.0".to_owned(), api_versions: Vec::new() };
    let rendered = helm::render(&source, values, &release, &capabilities, Limits::default())?;
    let mut objects = Vec::new();
    for (path, text) in rendered {
        let documents =
            parse(&text, Dialect::Kubernetes).map_err(|error| anyhow::anyhow!("{}", error.in_file(&path)))?;
        for object in documents.iter().map(leno_api::yaml::Node::to_json).filter(|object| !object.is_null()) {
            objects.push(object);
        }
    }
    let rank = |object: &Value| {
        let kind = tree::text(object, "kind");
        ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
    };
    objects.sort_by_key(|object| (rank(object), Id::of(object)));
    Ok(objects)
}

/// YAML documents of objects.
pub(crate) fn yaml<'o>(objects: impl Iterator<Item = &'o Value>) -> String {
    objects.map(|object| format!("{}---\n", leno_api::encode::yaml_blocks(object))).collect()
}
