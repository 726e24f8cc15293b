//! One AdmissionReview (admission.k8s.io/v1 or v1beta1) and its answer.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value as Json, json};

use super::{Counts, Webhook};
use crate::inject::{Refused, Request, patch};
use crate::model::diagnostic::Severity;

/// The names that the webhook's path has for variables.
const IN_PATH: [(&str, &str); 2] = [("cluster", "ISTIO_META_CLUSTER_ID"), ("net", "ISTIO_META_NETWORK")];

/// Whether there is a webhook at a path.
pub(super) fn is_served(path: &str) -> bool {
    ["/inject", "/validate"].iter().any(|base| is_below(path, base))
}

fn is_below(path: &str, base: &str) -> bool {
    path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The answer to a request that [`is_served`].
///
/// # Errors
/// Of what is no review: a status of HTTP, and words.
pub(super) fn answer(
    webhook: &Webhook,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> Result<String, (StatusCode, String)> {
    let injects = is_below(path, "/inject");
    if body.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "no body found".to_owned()));
    }
    if content_type != "application/json" {
        let words = "invalid Content-Type, want `application/json`";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, words.to_owned()));
    }
    let review: Json = serde_json::from_slice(body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("could not decode body: {error}")))?;
    if injects {
        Counts::add(&webhook.counts.requests);
    }
    let text = |name: &str| review.get(name).and_then(Json::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let known =
        matches!(version, "admission.k8s.io/v1" | "admission.k8s.io/v1beta1") && kind == "AdmissionReview";
    let mut response = match (known, review.get("request").filter(|request| request.is_object())) {
        (true, Some(request)) if injects => inject(webhook, path, request),
        (true, Some(request)) => validate(webhook, request),
        (true, None) => refuse("no request in the review"),
        (false, _) => refuse(&format!("unsupported review {version:?} {kind:?}")),
    };
    if injects {
        let failed = response["allowed"] != json!(true);
        Counts::add(if failed { &webhook.counts.failures } else { &webhook.counts.successes });
    }
    response["uid"] = review.pointer("/request/uid").cloned().unwrap_or_else(|| json!(""));
    let version = if known { version } else { "admission.k8s.io/v1" };
    Ok(json!({"apiVersion": version, "kind": "AdmissionReview", "response": response}).to_string())
}

fn refuse(message: &str) -> Json {
    json!({"allowed": false, "status": {"message": message}})
}

fn inject(webhook: &Webhook, path: &str, request: &Json) -> Json {
    let Some(original) = request.get("object").filter(|object| object.is_object()) else {
        return refuse("the review has no object");
    };
    let mut pod = original.clone();
    // Pods of controllers do not say where they are.
    let namespace = request.get("namespace").and_then(Json::as_str).unwrap_or_default();
    let placed =
        pod.pointer("/metadata/namespace").and_then(Json::as_str).is_some_and(|name| !name.is_empty());
    if !placed {
        crate::inject::pod::object(&mut pod, "metadata")["namespace"] = Json::from(namespace);
    }
    let current = webhook.current();
    if !current.injector.wants(&pod) {
        Counts::add(&webhook.counts.skips);
        return json!({"allowed": true});
    }
    let details = Request {
        owner: None,
        variables: variables(path),
        native: webhook.native.load(std::sync::atomic::Ordering::Relaxed),
        rules: (*current.rules).clone(),
    };
    match current.injector.inject(&pod, &details) {
        Ok(mut injected) => {
            // What we have only assumed is not for us to write.
            if !placed && let Some(metadata) = injected.get_mut("metadata").and_then(Json::as_object_mut) {
                metadata.shift_remove("namespace");
                if let Some(old) = original.pointer("/metadata/namespace") {
                    metadata.insert("namespace".to_owned(), old.clone());
                }
            }
            let mut tidy = original.clone();
            crate::inject::pod::tidy(&mut tidy);
            let operations = Json::from(patch::difference(&tidy, &injected)).to_string();
            json!({
                "allowed": true,
                "patchType": "JSONPatch",
                "patch": leno_base::base64::encode(operations.as_bytes()),
            })
        }
        Err(Refused(message)) => {
            tracing::error!(namespace, path, message, "a Pod cannot be injected");
            refuse(&message)
        }
    }
}

/// The variables of a path `/inject/NAME/VALUE/...`; `--slash--` in values is a slash.
pub(super) fn variables(path: &str) -> BTreeMap<String, String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(rest) = path.strip_prefix("/inject/") else { return BTreeMap::new() };
    // An older way to write them.
    if let Some(pairs) = rest.strip_prefix(":ENV:") {
        let pairs = pairs.split(":ENV:").filter_map(|pair| pair.split_once('='));
        return pairs.filter(|(name, _)| !name.is_empty()).map(|(k, v)| named(k, v)).collect();
    }
    let parts: Vec<&str> = rest.split('/').collect();
    let pairs = parts.as_chunks::<2>().0.iter();
    pairs
        .filter(|[name, _]| !name.is_empty())
        .map(|[name, value]| named(name, &value.replace("--slash--", "/")))
        .collect()
}

fn named(name: &str, value: &str) -> (String, String) {
    let known = IN_PATH.iter().find(|(short, _)| *short == name);
    (known.map_or_else(|| name.to_uppercase(), |(_, long)| (*long).to_owned()), value.to_owned())
}

fn validate(webhook: &Webhook, request: &Json) -> Json {
    let operation = request.get("operation").and_then(Json::as_str).unwrap_or_default();
    let object = request.get("object").filter(|object| object.is_object());
    let (Some(object), "CREATE" | "UPDATE") = (object, operation) else {
        return json!({"allowed": true});
    };
    // How a control plane finds out whether it is asked.
    if crate::inject::pod::annotation(object, "istio.io/always-reject") == Some("true") {
        return refuse("configuration is invalid: it asks to be rejected");
    }
    let (_, mut found) = crate::source::files::read_text("object", &object.to_string());
    // Who applies the standard rules for mutual TLS in a cluster is not to be alarmed.
    found.retain(|it| !it.message.contains(crate::model::support::WITHOUT_CERTIFICATES));
    let (errors, warnings): (Vec<_>, Vec<_>) = found.iter().partition(|it| it.severity == Severity::Error);
    let words =
        |found: &[&crate::model::diagnostic::Diagnostic]| -> Vec<String> {
            found
                .iter()
                .map(|it| {
                    if it.path.is_empty() {
                        it.message.clone()
                    } else {
                        format!("{}: {}", it.path, it.message)
                    }
                })
                .collect()
        };
    let warnings = words(&warnings);
    let mut response = if errors.is_empty() {
        Counts::add(&webhook.counts.validated);
        json!({"allowed": true})
    } else {
        Counts::add(&webhook.counts.rejected);
        let dry = if request.get("dryRun") == Some(&json!(true)) { " (dry run)" } else { "" };
        refuse(&format!("configuration is invalid: {}{dry}", words(&errors).join("; ")))
    };
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    response
}
