//! All objects of a cluster that analysis looks at, as they are now.

use serde_json::Value;

use super::client::{Api, Fault, Kubernetes};
use super::discovery::{Catalog, watched};

/// What is looked at beside what is watched: Kubernetes' own kinds.
const MORE: [&str; 5] = [
    "/apis/apps/v1/deployments",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/api/v1/configmaps",
];

/// Reads them.
///
/// # Errors
/// If the cluster cannot be reached, or does not let us read what it serves.
pub(crate) async fn read(cluster: &Kubernetes) -> Result<Vec<Value>, String> {
    let api = Api::new(cluster).await?;
    let catalog = Catalog::fetch(&api).await.map_err(|fault| fault.to_string())?;
    let mut objects = Vec::new();
    let served = watched().filter(|known| known.kind != "ConfigMap");
    let served: Vec<String> = served.filter_map(|known| Some(catalog.find(&known)?.path(""))).collect();
    for path in served.iter().map(String::as_str).chain(MORE) {
        read_list(&api, path, &mut objects).await.map_err(|fault| format!("{path}: {fault}"))?;
    }
    Ok(objects)
}

/// Reads one list; one that is not served is empty, as is one that may not be read.
async fn read_list(api: &Api, path: &str, objects: &mut Vec<Value>) -> Result<(), Fault> {
    let mut next = String::new();
    loop {
        let page = match api.get(&format!("{path}?limit=500{next}"), "application/json").await {
            Ok(text) => serde_json::from_str::<Value>(&text).map_err(|error| Fault::broken(&error))?,
            Err(fault) if fault.code() == 404 => return Ok(()),
            Err(fault) if fault.code() == 403 => {
                tracing::warn!(path, %fault, "may not be read, and is taken to be empty");
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        let text =
            |pointer: &str| page.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version) = (text("/kind"), text("/apiVersion"));
        for item in page.get("items").and_then(Value::as_array).into_iter().flatten() {
            let mut item = item.clone();
            if let Some(fields) = item.as_object_mut() {
                // The items of lists do not say what they are.
                fields.entry("kind").or_insert_with(|| Value::from(kind.trim_end_matches("List")));
                fields.entry("apiVersion").or_insert_with(|| Value::from(version.as_str()));
            }
            objects.push(item);
        }
        match text("/metadata/continue") {
            token if token.is_empty() => return Ok(()),
            token => next = format!("&continue={token}"),
        }
    }
}
