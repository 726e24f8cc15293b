//! Which Pods are injected: label or annotation, selectors, policy.

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Config, pod};

/// What happens to Pods that do not say anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They are injected.
    #[default]
    Enabled,
    /// They are not.
    Disabled,
}

/// Namespaces that are never injected.
pub(crate) const IGNORED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Whether a Pod is injected.
pub(crate) fn is_needed(config: &Config, pod: &Json) -> bool {
    // Redirection would change the node's network.
    if pod.pointer("/spec/hostNetwork") == Some(&Json::Bool(true)) {
        return false;
    }
    if pod.pointer("/metadata/namespace").and_then(Json::as_str).is_some_and(|name| IGNORED.contains(&name)) {
        return false;
    }
    const NAME: &str = "sidecar.istio.io/inject";
    match pod::label(pod, NAME).or_else(|| pod::annotation(pod, NAME)) {
        Some("true") => return true,
        Some("false") => return false,
        None | Some("") => {}
        Some(other) => tracing::warn!("{NAME}: {other:?} is neither true nor false: the policy decides"),
    }
    let labels = pod.pointer("/metadata/labels");
    if config.never.iter().any(|selector| selects(selector, labels)) {
        return false;
    }
    if config.always.iter().any(|selector| selects(selector, labels)) {
        return true;
    }
    config.policy == Policy::Enabled
}

/// Kubernetes' LabelSelector; the empty one, and one that cannot be read, select nothing here.
fn selects(selector: &Json, labels: Option<&Json>) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Json::as_str);
    let equal = selector.get("matchLabels").and_then(Json::as_object);
    let expressions = selector.get("matchExpressions").and_then(Json::as_array);
    if equal.is_none_or(serde_json::Map::is_empty) && expressions.is_none_or(Vec::is_empty) {
        return false;
    }
    equal.into_iter().flatten().all(|(key, value)| label(key) == value.as_str() && value.is_string())
        && expressions.into_iter().flatten().all(|expression| {
            let Some(key) = expression.get("key").and_then(Json::as_str) else { return false };
            let values = expression.get("values").and_then(Json::as_array);
            let is_listed = |value: &str| {
                values.is_some_and(|values| values.iter().any(|known| known.as_str() == Some(value)))
            };
            match (expression.get("operator").and_then(Json::as_str), label(key)) {
                (Some("In"), value) => value.is_some_and(is_listed),
                (Some("NotIn"), value) => !value.is_some_and(is_listed),
                (Some("Exists"), value) => value.is_some(),
                (Some("DoesNotExist"), value) => value.is_none(),
                _ => false,
            }
        })
}
