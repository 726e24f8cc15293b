//! Tells API servers whom to trust: our roots in MutatingWebhookConfigurations and
//! ValidatingWebhookConfigurations with the label of our revision. Every replica does so, as all
//! write the same. Objects are refused without us (`failurePolicy: Fail`) only once an object that
//! is wrong was seen to be refused by us.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use serde_json::{Value as Json, json};

use super::follow::{SOON, is_final};
use super::{Counts, Webhook};
use crate::source::kube::Cluster;
use crate::source::kube::client::Fault;

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(5);

const BASE: &str = "/apis/admissionregistration.k8s.io/v1";

/// The last part of the names of webhooks that inject.
const INJECTS: &str = "sidecar-injector.istio.io";

/// Registers for ever; `roots` are those of our certificate, `None` while there is none.
pub(crate) async fn register(
    webhook: Arc<Webhook>,
    cluster: Cluster,
    roots: impl Fn() -> Option<String> + Send + Sync + 'static,
) {
    let mut said = String::new();
    loop {
        if let Some(roots) = roots() {
            let bundle = leno_base::base64::encode(roots.as_bytes());
            let mut outcome =
                configurations(&webhook, &cluster, "mutatingwebhookconfigurations", &bundle).await;
            if outcome.is_ok() {
                outcome =
                    configurations(&webhook, &cluster, "validatingwebhookconfigurations", &bundle).await;
            }
            if outcome.as_ref().map_or_else(is_final, |()| true) {
                webhook.registered.store(true, Ordering::Release);
            }
            match outcome {
                Ok(()) => said.clear(),
                Err(fault) if fault.to_string() != said => {
                    tracing::warn!(%fault, "webhook configurations cannot be given our roots");
                    said = fault.to_string();
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(if webhook.is_ready() { EVERY } else { SOON }).await;
    }
}

async fn configurations(webhook: &Webhook, cluster: &Cluster, kind: &str, bundle: &str) -> Result<(), Fault> {
    let revision = match webhook.options.revision.as_str() {
        "" => "default",
        revision => revision,
    };
    let path = format!("{BASE}/{kind}?labelSelector=istio.io%2Frev%3D{revision}");
    let text = cluster.api().get(&path, "application/json").await?;
    let list: Json = serde_json::from_str(&text).map_err(|error| Fault::Broken(error.to_string()))?;
    let validates = kind.starts_with("validating");
    for object in list.get("items").and_then(Json::as_array).into_iter().flatten() {
        let mut operations = changes(object, bundle, validates, false);
        // Once our roots are there it can be seen whether we are asked.
        if validates && operations.is_empty() && is_lenient(object) && refuses(webhook, cluster).await {
            operations = changes(object, bundle, validates, true);
        }
        if operations.is_empty() {
            continue;
        }
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
    Ok(())
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
