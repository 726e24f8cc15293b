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

/// A cluster as it is at a time.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) objects: Vec<Value>,
    /// What may not be read, by its path, and why: it is taken to be empty.
    pub(crate) denied: Vec<(String, String)>,
    /// The version of Kubernetes, as `v1.34.1`; empty if the cluster does not tell.
    pub(crate) version: String,
}

/// Reads it.
///
/// # Errors
/// If the cluster cannot be reached, or does not let us read what it serves.
pub(crate) async fn read(cluster: &Kubernetes) -> Result<Snapshot, String> {
    let api = Api::new(cluster).await?;
    let catalog = Catalog::fetch(&api).await.map_err(|fault| fault.to_string())?;
    let version = api.get("/version", "application/json").await.unwrap_or_default();
    let version = serde_json::from_str::<Value>(&version).unwrap_or_default();
    let version = version.get("gitVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut found = Snapshot { version, ..Snapshot::default() };
    let served = watched().filter(|known| known.kind != "ConfigMap");
    let served: Vec<String> = served.filter_map(|known| Some(catalog.find(&known)?.path(""))).collect();
    for path in served.iter().map(String::as_str).chain(MORE) {
        read_list(&api, path, &mut found).await.map_err(|fault| format!("{path}: {fault}"))?;
    }
    Ok(found)
}

/// Reads one list; one that is not served is empty, as is one that may not be read.
async fn read_list(api: &Api, path: &str, found: &mut Snapshot) -> Result<(), Fault> {
    let mut next = String::new();
    loop {
        let page = match api.get(&format!("{path}?limit=500{next}"), "application/json").await {
            Ok(text) => serde_json::from_str::<Value>(&text).map_err(|error| Fault::broken(&error))?,
            Err(fault) if fault.code() == 404 => return Ok(()),
            Err(fault) if fault.code() == 403 => {
                found.denied.push((path.to_owned(), fault.to_string()));
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
            found.objects.push(item);
        }
        match text("/metadata/continue") {
            token if token.is_empty() => return Ok(()),
            token => next = format!("&continue={token}"),
        }
    }
}
