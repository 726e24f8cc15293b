//! Injection of files: every object that has a template of Pods, in all documents and Lists.

use serde_json::{Value as Json, json};

use super::{Injector, Owner, Policy, Refused, Request, needed, patch};

/// A text with all Pods in it injected, and what is to be said about those that are not.
pub fn inject_text(injector: &Injector, text: &str, native: bool) -> Result<(String, Vec<String>), Refused> {
    let mut out = String::new();
    let mut warnings = Vec::new();
    for document in documents(text) {
        let json = leno_gotemplate::yaml::parse(document).map_err(Refused)?;
        if json.is_null() {
            continue;
        }
        match inject_object(injector, &json, native, &mut warnings)? {
            Some(injected) => out.push_str(&leno_gotemplate::yaml::text(&injected)),
            // What has no Pods stays as it was written, comments and all.
            None => {
                out.push_str(document.trim_start_matches('\n'));
                if !document.ends_with('\n') {
                    out.push('\n');
                }
            }
        }
        out.push_str("---\n");
    }
    Ok((out, warnings))
}

/// The documents of a text, between lines `---`.
fn documents(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        if line.trim_end() == "---" || line.starts_with("--- ") {
            found.push(&text[start..at]);
            start = end;
        }
        at = end;
    }
    found.push(&text[start..]);
    found.retain(|document| !document.trim().is_empty());
    found
}

/// Where the template of Pods is in an object of a kind: metadata and spec stand there.
fn template(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Pod" => "",
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job"
        | "DeploymentConfig" => "/spec/template",
        // Deviation: istioctl puts labels and annotations on the Jobs, where they have no effect.
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return None,
    })
}

/// The object with its Pods injected; `None` if it has none.
pub fn inject_object(
    injector: &Injector,
    object: &Json,
    native: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<Json>, Refused> {
    let text = |path: &str| object.pointer(path).and_then(Json::as_str).unwrap_or_default();
    let kind = text("/kind");
    if kind == "List" {
        let mut list = object.clone();
        if let Some(Json::Array(items)) = list.get_mut("items") {
            for item in items {
                if let Some(injected) = inject_object(injector, item, native, warnings)? {
                    *item = injected;
                }
            }
        }
        return Ok(Some(list));
    }
    let Some(place) = template(kind) else { return Ok(None) };
    let mut result = object.clone();
    let Some(found) = result.pointer_mut(place).filter(|found| found.is_object()) else {
        return Err(Refused(format!("{kind} {:?}: spec.template is required value", text("/metadata/name"))));
    };
    let mut pod = json!({
        "metadata": found.get("metadata").cloned().unwrap_or_else(|| json!({})),
        "spec": found.get("spec").cloned().unwrap_or_else(|| json!({})),
    });
    let namespace = Some(text("/metadata/namespace")).filter(|name| !name.is_empty());
    let owner = match kind {
        "Pod" => None,
        _ => Some(Owner {
            name: text("/metadata/name").to_owned(),
            namespace: text("/metadata/namespace").to_owned(),
            kind: kind.to_owned(),
            api_version: text("/apiVersion").to_owned(),
        }),
    };
    let own_name = pod.pointer("/metadata/name").and_then(Json::as_str).filter(|name| !name.is_empty());
    let name = own_name.unwrap_or(text("/metadata/name"));
    let full = namespace.map_or(name.to_owned(), |namespace| format!("{namespace}/{name}"));
    if pod.pointer("/spec/hostNetwork") == Some(&Json::Bool(true)) {
        warnings.push(format!("===> Skipping injection because {kind} {full:?} has host networking enabled"));
        return Ok(Some(result));
    }
    // Who names a file means it: only what says no, and system namespaces, are left out.
    let config = super::Config { policy: Policy::Enabled, ..super::Config::default() };
    if let Some(namespace) =
        namespace.filter(|_| pod.pointer("/metadata/namespace").is_none() && kind != "Pod")
    {
        let mut placed = pod.clone();
        placed["metadata"]["namespace"] = Json::from(namespace);
        if !needed::is_needed(&config, &placed) {
            warnings.push(format!(
                "===> Skipping injection because {kind} {full:?} has sidecar injection disabled"
            ));
            return Ok(Some(result));
        }
    } else if !needed::is_needed(&config, &pod) {
        warnings
            .push(format!("===> Skipping injection because {kind} {full:?} has sidecar injection disabled"));
        return Ok(Some(result));
    }
    let injected = injector.inject(&pod, &Request { owner, native, ..Request::default() })?;
    // As the webhook would do it: by a patch.
    let operations = patch::difference(&pod, &injected);
    patch::apply(&mut pod, &operations).map_err(Refused)?;
    for part in ["metadata", "spec"] {
        found[part] = pod[part].take();
    }
    Ok(Some(result))
}
