//! The roots of the mesh in every namespace, where agents find them before they have been given
//! anything: the ConfigMap `istio-ca-root-cert`, and `istio-ca-crl` beside it if anything was revoked.
//!
//! The replica that leads writes them, by server-side apply, so that what others add to them stays. All
//! are written again now and then, should somebody have changed or deleted one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Ca;
use crate::source::kube::client::Fault;
use crate::source::kube::{Cluster, lease};

/// The lease of the replica that writes.
const LEASE: &str = "leno-root-cert-leader";

/// Under which name fields are owned.
const MANAGER: &str = "leno-ca";

/// Namespaces of Kubernetes' own, which istiod leaves alone too.
const LEFT_ALONE: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// How long to wait after writes have failed.
const AGAIN: Duration = Duration::from_secs(2);

/// How often all are written without a reason.
const REPAIR: Duration = Duration::from_secs(300);

/// Starts what writes them; `namespaces` is where to say which there are.
pub(crate) fn spawn(
    cluster: &Cluster,
    ca: &Arc<Ca>,
    tasks: &mut JoinSet<()>,
) -> watch::Sender<BTreeSet<String>> {
    let (leads, leading) = watch::channel(false);
    let (say, namespaces) = watch::channel(BTreeSet::new());
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
    mut namespaces: watch::Receiver<BTreeSet<String>>,
) {
    let mut changes = ca.current.subscribe();
    // What was written where.
    let mut written: BTreeMap<(String, &'static str), String> = BTreeMap::new();
    let mut repair_at = tokio::time::Instant::now() + REPAIR;
    loop {
        let mut failed = false;
        let leads_now = *leads.borrow_and_update();
        if !leads_now {
            // Who leads next does not know what was written.
            written.clear();
        }
        let authority = changes.borrow_and_update().clone();
        let all = namespaces.borrow_and_update().clone();
        written.retain(|(namespace, _), _| all.contains(namespace));
        if let (true, Some(authority)) = (leads_now, authority) {
            // The ConfigMap, the key in it, and the text.
            let wanted = [
                ("istio-ca-root-cert", "root-cert.pem", authority.roots_pem()),
                ("istio-ca-crl", "ca-crl.pem", authority.revocations().to_owned()),
            ];
            for namespace in all.iter().filter(|name| !LEFT_ALONE.contains(&name.as_str())) {
                for (name, key, text) in wanted.iter().filter(|(_, _, text)| !text.is_empty()) {
                    let place = (namespace.clone(), *name);
                    if written.get(&place) == Some(text) {
                        continue;
                    }
                    match write(&cluster, namespace, name, key, text).await {
                        Ok(()) => drop(written.insert(place, text.clone())),
                        // It is being deleted, or gone already.
                        Err(fault) if matches!(fault.code(), 403 | 404) => {
                            tracing::debug!(%fault, namespace, name, "cannot be written");
                            written.insert(place, text.clone());
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

async fn write(cluster: &Cluster, namespace: &str, name: &str, key: &str, text: &str) -> Result<(), Fault> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}?fieldManager={MANAGER}&force=true");
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace, "labels": { "istio.io/config": "true" } },
        "data": { key: text },
    });
    let body = body.to_string().into_bytes();
    let api = cluster.api();
    api.call(Method::PATCH, &path, "application/json", "application/apply-patch+yaml", body).await.map(drop)
}
