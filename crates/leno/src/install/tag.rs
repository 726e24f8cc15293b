//! Revision tags: other names for control planes, under which namespaces can ask for them.
//!
//! A tag is a MutatingWebhookConfiguration whose selectors have the tag's name and whose webhooks are
//! those of the revision. The tag `default` is what answers for the label `istio-injection=enabled`, and
//! what checks objects that name no revision.

use anyhow::bail;
use serde_json::{Value, json};

use super::charts::Chart;
use super::cluster::Cluster;
use super::manifest::{self, Id};
use super::operator::Operator;
use super::tree;

/// The tag of who answers where nothing is said.
pub(crate) const DEFAULT: &str = "default";

const API: &str = "admissionregistration.k8s.io/v1";
const INJECTOR: &str = "MutatingWebhookConfiguration";

/// A tag as it is in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tag {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) namespaces: Vec<String>,
}

/// Of what a tag is made.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) namespace: String,
    /// In place of `istio-revision-tag-NAME`.
    pub(crate) webhook_name: Option<String>,
    /// Whether namespaces without any label get sidecars.
    pub(crate) auto_inject: bool,
}

fn label(object: &Value, name: &str) -> String {
    let labels = tree::find(object, "metadata.labels");
    labels.and_then(|it| it.get(name)).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The injector of a revision.
async fn injector(cluster: &Cluster, revision: &str) -> anyhow::Result<Option<Value>> {
    let found = cluster.list(API, INJECTOR, "", &format!("istio.io/rev={revision},!istio.io/tag")).await?;
    Ok(found.into_iter().next())
}

/// The objects of a tag.
///
/// # Errors
/// If there is no control plane of that revision.
pub(crate) async fn objects(cluster: &Cluster, wanted: &Wanted) -> anyhow::Result<Vec<Value>> {
    let Some(injector) = injector(cluster, &wanted.revision).await? else {
        bail!("there is no control plane of revision {:?}: no {INJECTOR} is labelled so", wanted.revision);
    };
    let revision = if wanted.revision == DEFAULT { "" } else { &wanted.revision };
    let webhooks = injector.get("webhooks").and_then(Value::as_array);
    let webhook = webhooks.and_then(|all| all.first()).cloned().unwrap_or_default();
    let values = json!({
        "revision": revision,
        "revisionTags": [wanted.name],
        "global": { "istioNamespace": wanted.namespace },
        "sidecarInjectorWebhook": { "enableNamespacesByDefault": wanted.auto_inject },
        // As the revision's own webhooks have it.
        "istiodRemote": {
            "injectionURL": tree::text(&webhook, "clientConfig.url"),
            "injectionPath": tree::find(&webhook, "clientConfig.service.path"),
            "injectionCABundle": tree::text(&webhook, "clientConfig.caBundle"),
        },
    });
    let rendered = manifest::render_chart(Chart::Leno, &values, &wanted.namespace)?;
    let mut found: Vec<Value> =
        rendered.into_iter().filter(|it| label(it, "istio.io/tag") == wanted.name).collect();
    if let (Some(name), Some(object)) = (&wanted.webhook_name, found.first_mut()) {
        tree::merge(object, &json!({ "metadata": { "name": name } }));
    }
    if wanted.name == DEFAULT {
        let values = json!({
            "defaultRevision": wanted.revision,
            "base": {
                "enableCRDTemplates": false,
                "validationURL": "",
            },
            "global": { "istioNamespace": wanted.namespace },
        });
        let mut validator = manifest::render_chart(Chart::Base, &values, &wanted.namespace)?;
        for object in &mut validator {
            let labels = json!({ "operator.istio.io/component": "Pilot", "istio.io/tag": DEFAULT });
            tree::merge(object, &json!({ "metadata": { "labels": labels } }));
        }
        found.extend(validator);
    }
    Ok(found)
}

/// Makes a tag for what was just installed.
///
/// # Errors
/// If the cluster refuses.
pub(crate) async fn set(cluster: &Cluster, operator: &Operator, name: &str) -> anyhow::Result<()> {
    let wanted = Wanted {
        name: name.to_owned(),
        revision: operator.revision_label().to_owned(),
        namespace: operator.namespace.clone(),
        webhook_name: None,
        auto_inject: false,
    };
    for object in objects(cluster, &wanted).await? {
        cluster.apply(&object).await?;
    }
    Ok(())
}

/// Whether anybody answers for namespaces that do not name a revision.
///
/// # Errors
/// If the cluster cannot be asked.
pub(crate) async fn has_default(cluster: &Cluster) -> anyhow::Result<bool> {
    if injector(cluster, DEFAULT).await?.is_some() {
        return Ok(true);
    }
    Ok(!cluster.list(API, INJECTOR, "", "istio.io/tag=default").await?.is_empty())
}

/// The tags of a cluster, and the namespaces that use them.
///
/// # Errors
/// If the cluster cannot be asked.
pub(crate) async fn list(cluster: &Cluster) -> anyhow::Result<Vec<Tag>> {
    let mut tags = Vec::new();
    for object in cluster.list(API, INJECTOR, "", "istio.io/tag").await? {
        let name = label(&object, "istio.io/tag");
        let namespaces = namespaces(cluster, &name).await?;
        tags.push(Tag { revision: label(&object, "istio.io/rev"), namespaces, name });
    }
    tags.sort();
    Ok(tags)
}

/// The namespaces that use a tag.
async fn namespaces(cluster: &Cluster, tag: &str) -> anyhow::Result<Vec<String>> {
    let mut found = cluster.list("v1", "Namespace", "", &format!("istio.io/rev={tag}")).await?;
    if tag == DEFAULT {
        found.extend(cluster.list("v1", "Namespace", "", "istio-injection=enabled").await?);
    }
    let mut names: Vec<String> = found.iter().map(|it| tree::text(it, "metadata.name")).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// A tag by its name.
///
/// # Errors
/// If there is none, or the cluster cannot be asked.
pub(crate) async fn find(cluster: &Cluster, name: &str) -> anyhow::Result<Tag> {
    match list(cluster).await?.into_iter().find(|tag| tag.name == name) {
        Some(tag) => Ok(tag),
        None => bail!("there is no tag {name:?}"),
    }
}

/// Takes a tag away.
///
/// # Errors
/// If the cluster refuses.
pub(crate) async fn remove(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    for kind in [INJECTOR, "ValidatingWebhookConfiguration"] {
        for object in cluster.list(API, kind, "", &format!("istio.io/tag={name}")).await? {
            cluster.delete(&object).await?;
        }
    }
    Ok(())
}

/// Whether an object of a tag would take the place of something else.
///
/// # Errors
/// If the cluster cannot be asked.
pub(crate) async fn is_taken(
    cluster: &Cluster,
    name: &str,
    revision: &str,
) -> anyhow::Result<Option<String>> {
    // A control plane without a name has the selectors of the tag `default` already.
    if name == DEFAULT && revision != DEFAULT && injector(cluster, DEFAULT).await?.is_some() {
        return Ok(Some("the control plane without a revision answers for it".to_owned()));
    }
    let id = Id {
        kind: INJECTOR.to_owned(),
        namespace: String::new(),
        name: format!("istio-sidecar-injector-{name}"),
    };
    Ok(cluster.find(API, &id).await?.map(|_| format!("there is a control plane of revision {name:?}")))
}
