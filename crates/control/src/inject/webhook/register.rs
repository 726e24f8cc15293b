//! Tells API servers whom to trust: our roots in MutatingWebhookConfigurations and
//! ValidatingWebhookConfigurations with the label of our revision. Every replica does so, as all
//! write the same. Objects are refused without us (`failurePolicy: Fail`) only once an object that
//! is wrong was seen to be refused by us.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use serde_json::{Value as Json, json};
use tokio::sync::Notify;

use super::follow::{SOON, is_final};
use super::{Counts, Webhook};
use crate::source::kube::Cluster;
use crate::source::kube::client::Fault;

/// How often our roots are looked at, and whether we are asked.
const EVERY: Duration = Duration::from_secs(5);

/// How long to wait after a change, or a fault.
const BREATH: Duration = Duration::from_secs(2);

const KINDS: [&str; 2] = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];

const BASE: &str = "/apis/admissionregistration.k8s.io/v1";

/// The last part of the names of webhooks that inject.
const INJECTS: &str = "sidecar-injector.istio.io";

/// Registers for ever; `roots` are those of our certificate, `None` while there is none.
pub(crate) async fn register(
    webhook: Arc<Webhook>,
    cluster: Cluster,
    roots: impl Fn() -> Option<String> + Send + Sync + 'static,
) {
    let hint = Notify::new();
    let paths = KINDS.map(|kind| list(&webhook, kind));
    let [mutating, validating] = &paths;
    let hints = async {
        tokio::join!(cluster.api().hints(mutating, &hint), cluster.api().hints(validating, &hint));
    };
    let registering = async {
        let mut said = String::new();
        // The roots with which nothing was left to do.
        let mut settled: Option<String> = None;
        loop {
            let patience = if webhook.is_ready() { EVERY } else { SOON };
            let is_hinted = tokio::time::timeout(patience, hint.notified()).await.is_ok();
            // They come from elsewhere, which tells nobody.
            let Some(roots) = roots() else { continue };
            if !is_hinted && settled.as_ref() == Some(&roots) {
                continue;
            }
            settled = None;
            let outcome = all(&webhook, &cluster, &paths, &roots).await;
            if outcome.as_ref().map_or_else(is_final, |_| true) {
                webhook.registered.store(true, Ordering::Release);
            }
            match outcome {
                Ok(rest) => {
                    said.clear();
                    match rest {
                        Rest::Nothing => settled = Some(roots),
                        // Others with other roots may change it back, for ever.
                        Rest::Patched => tokio::time::sleep(BREATH).await,
                        Rest::Unproven => {}
                    }
                }
                Err(fault) => {
                    if fault.to_string() != said {
                        tracing::warn!(%fault, "webhook configurations cannot be given our roots");
                        said = fault.to_string();
                    }
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    };
    tokio::join!(hints, registering);
}

/// The path of the configurations that are ours.
fn list(webhook: &Webhook, kind: &str) -> String {
    let revision = match webhook.options.revision.as_str() {
        "" => "default",
        revision => revision,
    };
    format!("{BASE}/{kind}?labelSelector=istio.io%2Frev%3D{revision}")
}

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rest {
    Nothing,
    /// It was not seen yet that we are asked.
    Unproven,
    /// Something was changed: it is to be seen whether it stays.
    Patched,
}

/// Goes through all configurations.
async fn all(webhook: &Webhook, cluster: &Cluster, paths: &[String; 2], roots: &str) -> Result<Rest, Fault> {
    let bundle = leno_base::base64::encode(roots.as_bytes());
    let mut rest = Rest::Nothing;
    for (kind, path) in KINDS.into_iter().zip(paths) {
        rest = rest.max(configurations(webhook, cluster, kind, path, &bundle).await?);
    }
    Ok(rest)
}

async fn configurations(
    webhook: &Webhook,
    cluster: &Cluster,
    kind: &str,
    path: &str,
    bundle: &str,
) -> Result<Rest, Fault> {
    let text = cluster.api().get(path, "application/json").await?;
    let list: Json = serde_json::from_str(&text).map_err(|error| Fault::Broken(error.to_string()))?;
    let validates = kind.starts_with("validating");
    let mut rest = Rest::Nothing;
    for object in list.get("items").and_then(Json::as_array).into_iter().flatten() {
        let mut operations = changes(object, bundle, validates, false);
        // Once our roots are there it can be seen whether we are asked.
        if validates && operations.is_empty() && is_lenient(object) {
            rest = rest.max(Rest::Unproven);
            if refuses(webhook, cluster).await {
                operations = changes(object, bundle, validates, true);
            }
        }
        if operations.is_empty() {
            continue;
        }
        rest = Rest::Patched;
        let name = object.pointer("/metadata/name").and_then(Json::as_str).unwrap_or_default();
        if let Some(version) = object.pointer("/metadata/resourceVersion") {
            operations
                .insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
        }
        let body = Json::from(operations).to_string().into_bytes();
        let path = format!("{BASE}/{kind}/{name}");
        match cluster
            .api()
            .call(Method::PATCH, &path, "application/json", "application/json-patch+json", body)
            .await
        {
            Ok(_) => {
                Counts::add(&webhook.counts.patched);
                tracing::info!(kind, name, "the webhook configuration was given our roots");
            }
            // Somebody else has changed it meanwhile, or taken it away.
            Err(fault) if matches!(fault.code(), 404 | 409 | 422) => {
                tracing::debug!(%fault, kind, name, "not patched; it is looked at again");
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(rest)
}

/// What is to be changed of a configuration.
pub(super) fn changes(object: &Json, bundle: &str, validates: bool, fails: bool) -> Vec<Json> {
    let mut operations = Vec::new();
    for (index, hook) in object.get("webhooks").and_then(Json::as_array).into_iter().flatten().enumerate() {
        let text = |path: &str| hook.pointer(path).and_then(Json::as_str).unwrap_or_default();
        if !validates && !text("/name").ends_with(INJECTS) {
            continue;
        }
        if text("/clientConfig/caBundle") != bundle {
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            operations.push(json!({"op": "add", "path": path, "value": bundle}));
        }
        if fails && text("/failurePolicy") != "Fail" {
            let path = format!("/webhooks/{index}/failurePolicy");
            operations.push(json!({"op": "add", "path": path, "value": "Fail"}));
        }
    }
    operations
}

/// Whether objects are let in when we cannot be asked.
fn is_lenient(object: &Json) -> bool {
    let hooks = object.get("webhooks").and_then(Json::as_array).into_iter().flatten();
    hooks.into_iter().any(|hook| hook.get("failurePolicy").and_then(Json::as_str) != Some("Fail"))
}

/// Whether an object that is wrong is refused, as a try that stores nothing.
async fn refuses(webhook: &Webhook, cluster: &Cluster) -> bool {
    let namespace = &webhook.options.namespace;
    let path = format!("/apis/networking.istio.io/v1/namespaces/{namespace}/gateways?dryRun=All");
    let body = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": "invalid-gateway",
            "namespace": namespace,
            "labels": {"istio.io/rev": webhook.options.revision},
            // The server's own schema must not refuse it first.
            "annotations": {"istio.io/always-reject": "true"},
        },
        "spec": {},
    });
    let body = body.to_string().into_bytes();
    match cluster.api().call(Method::POST, &path, "application/json", "application/json", body).await {
        Err(Fault::Status { message, .. }) => message.contains("denied the request"),
        _ => false,
    }
}
