//! The roots of the mesh in every namespace, where agents find them before they have been given
//! anything: the ConfigMap `istio-ca-root-cert`, and `istio-ca-crl` beside it if anything was revoked.
//!
//! The replica that leads writes them, by server-side apply, so that what others add to them stays. All
//! are written again now and then, should somebody have changed or deleted one. When nothing is revoked
//! any more `istio-ca-crl` is taken away: proxies would go on refusing what it names, and, once the lists
//! in it are too old, everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Ca;
use crate::model::KUBERNETES;
use crate::source::kube::client::Fault;
use crate::source::kube::{Cluster, lease};

/// The lease of the replica that writes.
const LEASE: &str = "leno-root-cert-leader";

/// Under which name fields are owned.
const MANAGER: &str = "leno-ca";

/// How long to wait after writes have failed.
const AGAIN: Duration = Duration::from_secs(2);

/// How often all are written without a reason.
const REPAIR: Duration = Duration::from_secs(300);

/// The namespaces that there are, each with a number of its own: one that comes after another of its
/// name has gone has a higher one, and nothing of what was written into the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces {
    numbers: BTreeMap<String, u64>,
    last: u64,
}

impl Namespaces {
    /// These are there now; those in `gone` are others than before, if they are there.
    pub(crate) fn follow(&mut self, all: impl IntoIterator<Item = String>, gone: &BTreeSet<&str>) {
        let mut before = std::mem::take(&mut self.numbers);
        before.retain(|name, _| !gone.contains(name.as_str()));
        for name in all {
            let number = before.remove(&name).unwrap_or_else(|| {
                self.last += 1;
                self.last
            });
            self.numbers.insert(name, number);
        }
    }
}

/// Starts what writes them; `namespaces` is where to say which there are.
pub(crate) fn spawn(cluster: &Cluster, ca: &Arc<Ca>, tasks: &mut JoinSet<()>) -> watch::Sender<Namespaces> {
    let (leads, leading) = watch::channel(false);
    let (say, namespaces) = watch::channel(Namespaces::default());
    let candidate = cluster.clone();
    tasks.spawn(async move { lease::run(candidate, LEASE, leads).await });
    tasks.spawn(publish(cluster.clone(), Arc::clone(ca), leading, namespaces));
    say
}

/// Writes until nobody says anything any more.
async fn publish(
    cluster: Cluster,
    ca: Arc<Ca>,
    mut leads: watch::Receiver<bool>,
    mut namespaces: watch::Receiver<Namespaces>,
) {
    let mut changes = ca.state.subscribe();
    // What was written where, and into which of the namespaces of that name.
    let mut written: BTreeMap<(String, &'static str), (u64, String)> = BTreeMap::new();
    // Of what was said that it may not be written, or taken away.
    let mut said: BTreeSet<(&'static str, bool)> = BTreeSet::new();
    let mut repair_at = tokio::time::Instant::now() + REPAIR;
    loop {
        let mut failed = false;
        let leads_now = *leads.borrow_and_update();
        if !leads_now {
            // Who leads next does not know what was written.
            written.clear();
        }
        changes.borrow_and_update();
        let roots = ca.published_roots();
        let all = namespaces.borrow_and_update().numbers.clone();
        written.retain(|(namespace, _), (number, _)| all.get(namespace) == Some(number));
        if let (true, Some(roots)) = (leads_now, roots) {
            let revocations = ca.authority().map(|authority| authority.revocations().to_owned());
            // The ConfigMap, the key in it, and the text.
            let wanted = [
                ("istio-ca-root-cert", "root-cert.pem", roots),
                ("istio-ca-crl", "ca-crl.pem", revocations.unwrap_or_default()),
            ];
            for (namespace, number) in all.iter().filter(|(name, _)| !KUBERNETES.contains(&name.as_str())) {
                for (name, key, text) in &wanted {
                    let place = (namespace.clone(), *name);
                    if written.get(&place).is_some_and(|(_, written)| written == text) {
                        continue;
                    }
                    let outcome = match text.as_str() {
                        "" => remove(&cluster, namespace, name, key).await,
                        text => write(&cluster, namespace, name, &json!({ (*key): text })).await,
                    };
                    match outcome {
                        Ok(()) => drop(written.insert(place, (*number, text.clone()))),
                        Err(fault) if fault.code() == 404 || is_ending(&fault) => {
                            tracing::debug!(%fault, namespace, name, "its namespace is ending");
                            written.insert(place, (*number, text.clone()));
                        }
                        // It is tried again with the next repair.
                        Err(fault) if fault.code() == 403 => {
                            if said.insert((*name, text.is_empty())) {
                                tracing::warn!(%fault, namespace, name, "may not be written");
                            }
                            written.insert(place, (*number, text.clone()));
                        }
                        Err(fault) => {
                            tracing::warn!(%fault, namespace, name, "cannot be written now");
                            failed = true;
                        }
                    }
                }
                if leads.has_changed().unwrap_or(true) || changes.has_changed().unwrap_or(true) {
                    break;
                }
            }
        }
        let again = if failed { tokio::time::Instant::now() + AGAIN } else { repair_at };
        tokio::select! {
            changed = leads.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            changed = namespaces.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(again) => {}
        }
        if tokio::time::Instant::now() >= repair_at {
            written.clear();
            repair_at = tokio::time::Instant::now() + REPAIR;
        }
    }
}

/// Writes what is to be ours of a ConfigMap.
async fn write(cluster: &Cluster, namespace: &str, name: &str, data: &Value) -> Result<(), Fault> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}?fieldManager={MANAGER}&force=true");
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace, "labels": { "istio.io/config": "true" } },
        "data": data,
    });
    let body = body.to_string().into_bytes();
    let api = cluster.api();
    api.call(Method::PATCH, &path, "application/json", "application/apply-patch+yaml", body).await.map(drop)
}

/// Deletes a ConfigMap that we have made, or what is ours of it.
async fn remove(cluster: &Cluster, namespace: &str, name: &str, key: &str) -> Result<(), Fault> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
    let found = match cluster.api().get(&path, "application/json").await {
        Ok(found) => found,
        Err(fault) if fault.code() == 404 => return Ok(()),
        Err(fault) => return Err(fault),
    };
    let found: ConfigMap = serde_json::from_str(&found).map_err(|error| Fault::Broken(error.to_string()))?;
    let is_ours = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(MANAGER);
    let managers = || found.metadata.managed_fields.iter().flatten();
    if !managers().any(is_ours) {
        return Ok(());
    }
    let is_else = found.data.iter().flatten().any(|(name, _)| name != key) || found.binary_data.is_some();
    if is_else || !managers().all(is_ours) {
        // What others have put there stays.
        return write(cluster, namespace, name, &json!({})).await;
    }
    // The one that was seen, and no other.
    let seen = json!({ "uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version });
    let body = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": seen });
    let body = body.to_string().into_bytes();
    let api = cluster.api();
    api.call(Method::DELETE, &path, "application/json", "application/json", body).await.map(drop)
}

/// Whether nothing can be written because the namespace is being deleted. Permissions that are missing
/// have the same status.
fn is_ending(fault: &Fault) -> bool {
    matches!(fault, Fault::Status { code: 403, cause, .. } if cause.as_deref() == Some("NamespaceTerminating"))
}
