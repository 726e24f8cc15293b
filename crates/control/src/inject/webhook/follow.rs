//! Keeps what injection is configured with: the ConfigMaps `istio-sidecar-injector` and `istio` (of
//! the revision) and ProxyConfig objects, of a cluster or of folders.
//!
//! They are looked at every few seconds: they are few, and change hardly ever.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value as Json;

use super::Webhook;
use crate::inject::{BuiltIn, MeshSettings, ProxyRules, ProxySelection, Refused, Settings};
use crate::source::kube::Cluster;
use crate::source::kube::client::Fault;

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(3);

/// The same until everything is as it should be.
pub(super) const SOON: Duration = Duration::from_millis(200);

/// How often nodes are looked at, in units of `EVERY`.
const NODES_EVERY: u32 = 100;

/// Native sidecars are stable from this minor version of kubelets on.
const NATIVE_SINCE: u32 = 33;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    /// Keys `config` and `values`.
    injector: Option<(String, String)>,
    /// Key `mesh`.
    mesh: Option<String>,
    /// ProxyConfig objects, the oldest first.
    rules: Vec<Json>,
}

/// Follows for ever.
pub(crate) async fn follow(webhook: Arc<Webhook>, cluster: Option<Cluster>, dirs: Vec<PathBuf>) {
    let mut known: Option<Found> = None;
    let mut turn = 0_u32;
    loop {
        let mut is_read = true;
        let found = match &cluster {
            Some(cluster) => in_cluster(&webhook, cluster).await,
            None => Ok(in_folders(&webhook, &dirs)),
        };
        match found {
            Ok(found) if known.as_ref() != Some(&found) => {
                if let Err(Refused(message)) = install(&webhook, &found) {
                    tracing::error!(
                        message,
                        "the configuration of injection cannot be used: the last good one stays"
                    );
                } else {
                    let source = if found.injector.is_some() { "its ConfigMap" } else { "what is built in" };
                    tracing::info!(source, "injection is configured");
                }
                known = Some(found);
            }
            Ok(_) => {}
            Err(fault) => {
                tracing::debug!(%fault, "the configuration of injection cannot be read now");
                is_read = is_final(&fault);
            }
        }
        if is_read {
            webhook.configured.store(true, Ordering::Release);
        }
        if let (Some(cluster), None) = (&cluster, webhook.options.native)
            && turn == 0
        {
            look_at_nodes(&webhook, cluster).await;
        }
        turn = (turn + 1) % NODES_EVERY;
        tokio::time::sleep(if webhook.is_ready() { EVERY } else { SOON }).await;
    }
}

/// Whether waiting does not help: it is not ours to see.
pub(super) fn is_final(fault: &Fault) -> bool {
    fault.code() == 403
}

fn install(webhook: &Webhook, found: &Found) -> Result<(), Refused> {
    let revision = &webhook.options.revision;
    let settings = match &found.injector {
        Some((config, values)) => Settings::parse(config, values, revision)?,
        None => BuiltIn::settings(revision),
    };
    let mesh = found.mesh.as_deref().map_or_else(|| Ok(MeshSettings::default()), MeshSettings::parse)?;
    webhook.install(settings, mesh, ProxyRules(found.rules.iter().map(selection).collect()))
}

fn selection(object: &Json) -> ProxySelection {
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Json::as_object);
    let has_selector = object.pointer("/spec/selector").is_some_and(|selector| !selector.is_null());
    let labels: BTreeMap<String, String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    ProxySelection {
        namespace: object
            .pointer("/metadata/namespace")
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned(),
        labels: has_selector.then_some(labels),
        spec: object.get("spec").cloned().unwrap_or_default(),
    }
}

/// `istio` or `istio-REVISION`.
fn name(base: &str, revision: &str) -> String {
    match revision {
        "" | "default" => base.to_owned(),
        revision => format!("{base}-{revision}"),
    }
}

fn key(map: &Json, name: &str) -> Option<String> {
    map.get("data")?.get(name)?.as_str().map(str::to_owned)
}

async fn in_cluster(webhook: &Webhook, cluster: &Cluster) -> Result<Found, Fault> {
    let options = &webhook.options;
    let map = async |base: &str| {
        let (namespace, name) = (&options.namespace, name(base, &options.revision));
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        match cluster.api().get(&path, "application/json").await {
            Ok(text) => serde_json::from_str::<Json>(&text)
                .map(Some)
                .map_err(|error| Fault::Broken(error.to_string())),
            Err(fault) if fault.code() == 404 => Ok(None),
            Err(fault) => Err(fault),
        }
    };
    let injector = map("istio-sidecar-injector").await?;
    let mesh = map("istio").await?;
    let list = cluster.api().get("/apis/networking.istio.io/v1beta1/proxyconfigs", "application/json").await;
    let mut rules = match list {
        Ok(text) => items(&text),
        // The kind may not be there, or not for us.
        Err(fault) if matches!(fault.code(), 403 | 404) => Vec::new(),
        Err(fault) => return Err(fault),
    };
    rules.sort_by_cached_key(|object| {
        let text = |name: &str| object.pointer(name).and_then(Json::as_str).unwrap_or_default().to_owned();
        (text("/metadata/creationTimestamp"), text("/metadata/name"))
    });
    // What changes without a change of meaning is left out.
    let rules = rules.into_iter().map(|object| {
        serde_json::json!({
            "metadata": {"namespace": object.pointer("/metadata/namespace")},
            "spec": object.get("spec"),
        })
    });
    Ok(Found {
        injector: injector.as_ref().and_then(|map| Some((key(map, "config")?, key(map, "values")?))),
        mesh: mesh.as_ref().and_then(|map| key(map, "mesh")),
        rules: rules.collect(),
    })
}

fn items(list: &str) -> Vec<Json> {
    let mut list: Json = serde_json::from_str(list).unwrap_or_default();
    match list.get_mut("items").map(Json::take) {
        Some(Json::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// The same of the YAML files in folders; of objects of one name the last counts.
fn in_folders(webhook: &Webhook, dirs: &[PathBuf]) -> Found {
    let options = &webhook.options;
    let mut found = Found::default();
    let injector = name("istio-sidecar-injector", &options.revision);
    let mesh = name("istio", &options.revision);
    for path in crate::source::files::configuration_files(dirs) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Ok(documents) = leno_api::yaml::parse(&text, leno_api::yaml::Dialect::Kubernetes) else {
            continue;
        };
        for object in documents.iter().map(leno_api::yaml::Node::to_json) {
            let text = |path: &str| object.pointer(path).and_then(Json::as_str).unwrap_or_default();
            match (text("/kind"), text("/metadata/name")) {
                ("ConfigMap", name) if name == injector => {
                    found.injector = key(&object, "config").zip(key(&object, "values"));
                }
                ("ConfigMap", name) if name == mesh => found.mesh = key(&object, "mesh"),
                ("ProxyConfig", _) => found.rules.push(object),
                _ => {}
            }
        }
    }
    found
}

/// Native sidecars are used if all kubelets have them.
async fn look_at_nodes(webhook: &Webhook, cluster: &Cluster) {
    match cluster.api().get("/api/v1/nodes", "application/json").await {
        Ok(text) => {
            let nodes = items(&text);
            let mut versions = nodes.iter().map(|node| {
                node.pointer("/status/nodeInfo/kubeletVersion").and_then(Json::as_str).and_then(minor)
            });
            let all = versions.all(|minor| minor.is_some_and(|minor| minor >= NATIVE_SINCE));
            webhook.native.store(all, Ordering::Relaxed);
        }
        Err(fault) => tracing::debug!(%fault, "nodes cannot be read: native sidecars stay as they are"),
    }
}

/// The minor version of `v1.33.2`.
pub(super) fn minor(version: &str) -> Option<u32> {
    version.trim_start_matches('v').split('.').nth(1)?.parse().ok()
}
