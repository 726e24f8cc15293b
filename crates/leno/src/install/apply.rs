//! Installing what was rendered, and taking it away again.
//!
//! Every object carries labels that say of which installation, component and revision it is; what an
//! installation no longer has is found by them. What was installed is kept in a ConfigMap, so that
//! `verify-install` and `upgrade` know it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::component::Kind;
use super::manifest::{Id, Rendered};
use super::operator::Operator;
use super::progress::Progress;
use super::{tag, tree, wait};

/// The label of the installation's name.
pub(crate) const OWNER: &str = "install.operator.istio.io/owning-resource";
/// The label of the installation's namespace.
const OWNER_NAMESPACE: &str = "install.operator.istio.io/owning-resource-namespace";
/// The label of the component.
pub(crate) const COMPONENT: &str = "operator.istio.io/component";
/// The label of the revision.
pub(crate) const REVISION: &str = "istio.io/rev";

/// The key of the ConfigMap that has what was installed.
const STATE: &str = "operator.yaml";

/// Kinds of objects that an installation may have, in the order in which they are taken away: what calls
/// the control plane goes before it.
const KINDS: [(&str, &str); 16] = [
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("v1", "Service"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "ResourceQuota"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ServiceAccount"),
];

/// Kinds that are taken away only with everything, as what users have made goes with them.
const LAST: [(&str, &str); 2] = [
    ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
];

/// How long the Pods of the control plane have to end before what they write is taken away.
const END: Duration = Duration::from_secs(60);

/// How long kinds have to end with their objects: an API server takes them one after the other.
const KINDS_END: Duration = Duration::from_secs(180);

/// Labels of the objects of an installation, without that of the component.
fn labels(operator: &Operator) -> [(&'static str, String); 5] {
    [
        ("operator.istio.io/managed", "Reconcile".to_owned()),
        ("operator.istio.io/version", env!("CARGO_PKG_VERSION").to_owned()),
        (OWNER, operator.name.clone()),
        (OWNER_NAMESPACE, operator.namespace.clone()),
        (REVISION, operator.revision_label().to_owned()),
    ]
}

/// An object with the labels of its installation.
fn labelled(object: &Value, operator: &Operator, kind: Kind) -> Value {
    let mut object = object.clone();
    let mut all = serde_json::Map::new();
    for (name, value) in labels(operator) {
        all.insert(name.to_owned(), Value::from(value));
    }
    all.insert(COMPONENT.to_owned(), Value::from(kind.label()));
    tree::merge(&mut object, &json!({ "metadata": { "labels": all } }));
    object
}

/// What was installed, as an object of it.
fn state(operator: &Operator) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": operator.name, "namespace": operator.namespace },
        "data": { STATE: leno_api::encode::yaml_blocks(&operator.to_json()) },
    })
}

/// What was installed under a revision's name; `None`: nothing that we know of.
///
/// # Errors
/// If the cluster cannot be asked.
pub(crate) async fn installed(
    cluster: &Cluster,
    namespace: &str,
    revision: &str,
) -> anyhow::Result<Option<Operator>> {
    let revision = if revision.is_empty() { "default" } else { revision };
    let selector = format!("{REVISION}={revision},{OWNER},{COMPONENT}");
    let found = cluster.list("v1", "ConfigMap", namespace, &selector).await?;
    Ok(found.iter().find_map(|object| {
        let text = object.get("data")?.get(STATE)?.as_str()?;
        let documents = leno_api::yaml::parse(text, leno_api::yaml::Dialect::Kubernetes).ok()?;
        documents.first().map(|node| Operator::from_json(&node.to_json()))
    }))
}

/// Installs everything, waits until each component runs, and takes away what the installation had
/// before and has no more.
///
/// # Errors
/// If the API server refuses something, or something does not run in time.
pub(crate) async fn install(
    cluster: &Cluster,
    operator: &Operator,
    rendered: &[Rendered],
    patience: Duration,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let mut namespaces: BTreeSet<&str> = rendered.iter().map(|it| it.component.namespace.as_str()).collect();
    namespaces.insert(&operator.namespace);
    for namespace in namespaces {
        let mut object =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
        let network = tree::text(operator.values(), "global.network");
        if !network.is_empty() && namespace == operator.namespace {
            tree::merge(
                &mut object,
                &json!({ "metadata": { "labels": { "topology.istio.io/network": network } } }),
            );
        }
        cluster.ensure(&object).await?;
    }
    let mut kept = BTreeSet::new();
    let state = state(operator);
    kept.insert(Id::of(&state));
    for kind in Kind::ALL {
        let objects: Vec<Value> = rendered
            .iter()
            .filter(|it| it.component.kind == kind)
            .flat_map(|it| &it.objects)
            .map(|object| labelled(object, operator, kind))
            .collect();
        if objects.is_empty() {
            continue;
        }
        kept.extend(objects.iter().map(Id::of));
        progress.begin(kind.title());
        let done = one(cluster, &objects, patience, progress).await;
        if let Err(error) = done {
            progress.failed(kind.title(), &error);
            bail!("{} could not be installed", kind.title());
        }
        progress.installed(kind.title());
    }
    progress.pruning();
    for object in of(cluster, &labels(operator)).await? {
        if !kept.contains(&Id::of(&object)) {
            cluster.delete(&object).await?;
        }
    }
    cluster.apply(&labelled(&state, operator, Kind::Pilot)).await?;
    // Somebody must answer for namespaces that do not say which control plane they want.
    let has_pilot = rendered.iter().any(|it| it.component.kind == Kind::Pilot);
    if has_pilot && !operator.revision.is_empty() && !tag::has_default(cluster).await? {
        tag::set(cluster, operator, tag::DEFAULT).await?;
        progress.said(&format!("Revision {:?} is the default one now", operator.revision));
    }
    Ok(())
}

/// Applies objects and waits for them.
async fn one(
    cluster: &Cluster,
    objects: &[Value],
    patience: Duration,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    // Kinds must be known before there can be objects of them; there are none in charts of ours, so one
    // wait is enough.
    for object in objects {
        cluster.apply(&as_it_is(cluster, object).await?).await?;
    }
    wait::until_ready(cluster, objects, patience, |waiting| progress.waiting(waiting)).await
}

/// The control plane makes its webhooks fail closed as soon as it serves them; an upgrade does not open
/// them again.
async fn as_it_is(cluster: &Cluster, object: &Value) -> anyhow::Result<Value> {
    let id = Id::of(object);
    if id.kind != "ValidatingWebhookConfiguration" {
        return Ok(object.clone());
    }
    let found = cluster.find(&tree::text(object, "apiVersion"), &id).await?.unwrap_or_default();
    let mut object = object.clone();
    let there = found.get("webhooks").and_then(Value::as_array).cloned().unwrap_or_default();
    for webhook in object.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        let is_it = |it: &&Value| it.get("name") == webhook.get("name");
        let closed = there.iter().find(is_it).is_some_and(|it| tree::text(it, "failurePolicy") == "Fail");
        if closed && tree::text(webhook, "failurePolicy") == "Ignore" {
            tree::merge(webhook, &json!({ "failurePolicy": "Fail" }));
        }
    }
    Ok(object)
}

/// The objects in the cluster with some labels that are of a component, in the order in which to take
/// them away.
async fn of(cluster: &Cluster, labels: &[(&str, String)]) -> anyhow::Result<Vec<Value>> {
    let known = [OWNER, OWNER_NAMESPACE, REVISION];
    let named = labels.iter().filter(|(name, _)| known.contains(name));
    let mut selector: Vec<String> = named.map(|(name, value)| format!("{name}={value}")).collect();
    selector.push(COMPONENT.to_owned());
    let mut found = Vec::new();
    for (version, kind) in KINDS {
        found.extend(cluster.list(version, kind, "", &selector.join(",")).await?);
    }
    Ok(found)
}

/// What is to be taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Everything of one control plane.
    Revision(String),
    /// Everything of one installation: its name and namespace, and its revision.
    Installation(String, String, String),
    /// Everything of every control plane, the kinds and with them what users have made included.
    Everything,
}

/// The objects that would be taken away.
///
/// # Errors
/// If the cluster cannot be asked.
pub(crate) async fn find(cluster: &Cluster, target: &Target) -> anyhow::Result<Vec<Value>> {
    match target {
        Target::Revision(revision) => of(cluster, &[(REVISION, revision.clone())]).await,
        Target::Installation(name, namespace, revision) => {
            let labels = [(OWNER, name), (OWNER_NAMESPACE, namespace), (REVISION, revision)];
            of(cluster, &labels.map(|(label, value)| (label, value.clone()))).await
        }
        Target::Everything => {
            let mut found = of(cluster, &[]).await?;
            for (version, kind) in LAST {
                found.extend(cluster.list(version, kind, "", COMPONENT).await?);
            }
            Ok(found)
        }
    }
}

/// Takes objects away; with everything also what control planes have written themselves.
///
/// # Errors
/// If the API server refuses.
pub(crate) async fn uninstall(
    cluster: &Cluster,
    objects: &[Value],
    target: &Target,
    namespace: &str,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    for object in objects {
        if cluster.delete(object).await? {
            progress.removed(&Id::of(object));
        }
    }
    if *target == Target::Everything {
        ended(cluster, namespace).await?;
        for object in left(cluster, namespace).await? {
            if cluster.delete(&object).await? {
                progress.removed(&Id::of(&object));
            }
        }
        gone(cluster, objects).await?;
    }
    Ok(())
}

/// Waits until the kinds are gone, which the API server does in its own time: an installation that follows
/// would find those that are ending, and lose them.
async fn gone(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    let kinds = objects.iter().map(Id::of).filter(|id| id.kind == "CustomResourceDefinition");
    let deadline = tokio::time::Instant::now() + KINDS_END;
    for kind in kinds {
        while cluster.find("apiextensions.k8s.io/v1", &kind).await?.is_some() {
            if tokio::time::Instant::now() >= deadline {
                anyhow::bail!("{} {} does not end: something holds its objects", kind.kind, kind.name);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

/// Waits until no control plane runs any more: it would write again what is taken away.
async fn ended(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + END;
    while tokio::time::Instant::now() < deadline {
        if cluster.list("v1", "Pod", namespace, "app=istiod").await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// What control planes write: their roots in every namespace, their key, their leases.
async fn left(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let mut found = cluster.list("v1", "ConfigMap", "", "istio.io/config=true").await?;
    found.retain(|it| {
        matches!(tree::text(it, "metadata.name").as_str(), "istio-ca-root-cert" | "istio-ca-crl")
    });
    let lease = "coordination.k8s.io/v1";
    let leases = cluster.list(lease, "Lease", namespace, "").await?;
    let is_ours = |name: &str| name.starts_with("leno-") || name.starts_with("istio-");
    found.extend(leases.into_iter().filter(|it| is_ours(&tree::text(it, "metadata.name"))));
    let key =
        Id { kind: "Secret".to_owned(), namespace: namespace.to_owned(), name: "istio-ca-secret".to_owned() };
    if cluster.find("v1", &key).await?.is_some() {
        found.push(json!({ "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": key.name, "namespace": key.namespace } }));
    }
    Ok(found)
}

/// The revisions of control planes in a cluster.
///
/// # Errors
/// If the cluster cannot be asked.
pub(crate) async fn revisions(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let found = cluster.list(KINDS[0].0, KINDS[0].1, "", &format!("{COMPONENT},{REVISION}")).await?;
    let label = |object: &Value| {
        object.pointer("/metadata/labels/istio.io~1rev").and_then(Value::as_str).map(str::to_owned)
    };
    let mut revisions: BTreeSet<String> = found.iter().filter_map(label).collect();
    let found = cluster.list("apps/v1", "Deployment", "", "app=istiod").await?;
    revisions.extend(found.iter().filter_map(label));
    Ok(revisions)
}
